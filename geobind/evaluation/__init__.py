"""How well the modalities find each other: exact ranks, measures beside chance and interval, every pair."""

from __future__ import annotations

from geobind.evaluation.expectation import Counts
from geobind.evaluation.leakage import Leakage, leakage
from geobind.evaluation.pairs import PairRow, PairTable, Skipped, evaluate_pairs
from geobind.evaluation.protocols import PROTOCOLS, Protocol, protocol
from geobind.evaluation.published import Published, published, render_published
from geobind.evaluation.ranks import rank_counts, rank_counts_both
from geobind.evaluation.retrieval import Metric, Retrieval, Settings, retrieval
from geobind.evaluation.splits import geoclap_split, psm_split, soundingearth_split
from geobind.evaluation.table import render, summary

__all__ = [
    "PROTOCOLS",
    "Counts",
    "Leakage",
    "Metric",
    "PairRow",
    "PairTable",
    "Protocol",
    "Published",
    "Retrieval",
    "Settings",
    "Skipped",
    "evaluate_pairs",
    "geoclap_split",
    "leakage",
    "protocol",
    "psm_split",
    "published",
    "rank_counts",
    "rank_counts_both",
    "render",
    "render_published",
    "retrieval",
    "soundingearth_split",
    "summary",
]
