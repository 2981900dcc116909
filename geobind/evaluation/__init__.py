"""How well the modalities find each other: exact ranks, measures beside chance and interval, every pair."""

from __future__ import annotations

from geobind.evaluation.overlap.leakage import Leakage, leakage
from geobind.evaluation.pairs import PairRow, PairTable, Skipped, evaluate_pairs
from geobind.evaluation.protocols.conventions import PROTOCOLS, Protocol, protocol
from geobind.evaluation.protocols.published import Published, published, render_published
from geobind.evaluation.protocols.splits import geoclap_split, psm_split, soundingearth_split
from geobind.evaluation.ranking.expectation import Counts
from geobind.evaluation.ranking.ranks import rank_counts, rank_counts_both
from geobind.evaluation.ranking.resampling import Resampling
from geobind.evaluation.ranking.retrieval import Metric, Retrieval, Settings, retrieval
from geobind.evaluation.recognising.fact_probes import FactOptions, FactProbe, probe_facts
from geobind.evaluation.recognising.few_shot import Curve, FewShotOptions, Labelled, Point, few_shot
from geobind.evaluation.recognising.probe_tables import render_probes
from geobind.evaluation.recognising.probes import Probes
from geobind.evaluation.recognising.recognition import Recognition
from geobind.evaluation.recognising.ridge import Ridge, ridge
from geobind.evaluation.recognising.trunks import Trunk, random_trunk, trunk_of
from geobind.evaluation.recognising.zero_shot import Prototypes, prototypes, prototypes_of, zero_shot
from geobind.evaluation.table import render, summary

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
