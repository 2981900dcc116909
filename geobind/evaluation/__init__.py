"""How well the modalities find each other: exact ranks, measures beside chance and interval, every pair."""

from __future__ import annotations

from geobind.evaluation.expectation import Counts
from geobind.evaluation.pairs import PairRow, PairTable, Skipped, evaluate_pairs
from geobind.evaluation.ranks import rank_counts, rank_counts_both
from geobind.evaluation.retrieval import Metric, Retrieval, Settings, retrieval
from geobind.evaluation.table import render

__all__ = [
    "Counts",
    "Metric",
    "PairRow",
    "PairTable",
    "Retrieval",
    "Settings",
    "Skipped",
    "evaluate_pairs",
    "rank_counts",
    "rank_counts_both",
    "render",
    "retrieval",
]
