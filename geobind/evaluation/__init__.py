"""How well the modalities find each other: exact ranks, measures beside chance and interval, every pair."""

from __future__ import annotations

from geobind.evaluation.bootstrap import Resampling
from geobind.evaluation.classification import Prototypes, Recognition, prototypes, prototypes_of, zero_shot
from geobind.evaluation.few_shot_curves import (
    Curve,
    FewShotOptions,
    Labelled,
    Point,
    Probes,
    Trunk,
    few_shot,
    random_trunk,
    trunk_of,
)
from geobind.evaluation.linear import Ridge, ridge
from geobind.evaluation.pairs import PairRow, PairTable, Skipped, evaluate_pairs
from geobind.evaluation.protocols import (
    PROTOCOLS,
    Protocol,
    Published,
    geoclap_split,
    protocol,
    psm_split,
    published,
    render_published,
    soundingearth_split,
)
from geobind.evaluation.ranks import Counts, rank_counts, rank_counts_both
from geobind.evaluation.regression_probe import FactOptions, FactProbe, probe_facts
from geobind.evaluation.retrieval_metrics import Metric, Retrieval, Settings, retrieval
from geobind.evaluation.split_leakage import Leakage, leakage
from geobind.evaluation.tables import render, render_probes, summary

__all__ = [
    "PROTOCOLS",
    "Counts",
    "Curve",
    "FactOptions",
    "FactProbe",
    "FewShotOptions",
    "Labelled",
    "Leakage",
    "Metric",
    "PairRow",
    "PairTable",
    "Point",
    "Probes",
    "Protocol",
    "Prototypes",
    "Published",
    "Recognition",
    "Resampling",
    "Retrieval",
    "Ridge",
    "Settings",
    "Skipped",
    "Trunk",
    "evaluate_pairs",
    "few_shot",
    "geoclap_split",
    "leakage",
    "probe_facts",
    "protocol",
    "prototypes",
    "prototypes_of",
    "psm_split",
    "published",
    "random_trunk",
    "rank_counts",
    "rank_counts_both",
    "render",
    "render_probes",
    "render_published",
    "retrieval",
    "ridge",
    "soundingearth_split",
    "summary",
    "trunk_of",
    "zero_shot",
]
