"""How well the modalities find each other: exact ranks, measures beside chance and interval, every pair."""

from __future__ import annotations

from geobind.evaluation.expectation import Counts
from geobind.evaluation.fact_probes import FactOptions, FactProbe, probe_facts
from geobind.evaluation.few_shot import Curve, FewShotOptions, Labelled, Point, few_shot
from geobind.evaluation.leakage import Leakage, leakage
from geobind.evaluation.pairs import PairRow, PairTable, Skipped, evaluate_pairs
from geobind.evaluation.probe_tables import render_probes
from geobind.evaluation.probes import Probes
from geobind.evaluation.protocols import PROTOCOLS, Protocol, protocol
from geobind.evaluation.published import Published, published, render_published
from geobind.evaluation.ranks import rank_counts, rank_counts_both
from geobind.evaluation.recognition import Recognition
from geobind.evaluation.resampling import Resampling
from geobind.evaluation.retrieval import Metric, Retrieval, Settings, retrieval
from geobind.evaluation.ridge import Ridge, ridge
from geobind.evaluation.splits import geoclap_split, psm_split, soundingearth_split
from geobind.evaluation.table import render, summary
from geobind.evaluation.trunks import Trunk, random_trunk, trunk_of
from geobind.evaluation.zero_shot import Prototypes, prototypes, prototypes_of, zero_shot

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
