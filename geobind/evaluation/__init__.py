"""Measures of an embedding space: retrieval, recognition, probes, calibration, modality gap, arithmetic."""

from __future__ import annotations

from geobind.evaluation.arithmetic import sums_of_rows
from geobind.evaluation.bootstrap import Resampling
from geobind.evaluation.calibration import calibrate, measure_calibration
from geobind.evaluation.classification import Prototypes, Recognition, prototypes, prototypes_of, zero_shot
from geobind.evaluation.embedded import Embedded
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
from geobind.evaluation.gap import modality_gap
from geobind.evaluation.held_out import EvaluationResults, measure, measure_all
from geobind.evaluation.linear import Ridge, logistic, ridge
from geobind.evaluation.pairs import PairRow, PairTable, Skipped, evaluate_pairs
from geobind.evaluation.probing import (
    ProbeRequest,
    ProbeSource,
    build_feature_binders,
    probe_classes,
    probe_targets,
)
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
from geobind.scoring import Calibration, cosine, probabilities, unit

__all__ = [
    "PROTOCOLS",
    "Calibration",
    "Counts",
    "Curve",
    "Embedded",
    "EvaluationResults",
    "FactOptions",
    "FactProbe",
    "FewShotOptions",
    "Labelled",
    "Leakage",
    "Metric",
    "PairRow",
    "PairTable",
    "Point",
    "ProbeRequest",
    "ProbeSource",
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
    "build_feature_binders",
    "calibrate",
    "cosine",
    "evaluate_pairs",
    "few_shot",
    "geoclap_split",
    "leakage",
    "logistic",
    "measure",
    "measure_all",
    "measure_calibration",
    "modality_gap",
    "probabilities",
    "probe_classes",
    "probe_facts",
    "probe_targets",
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
    "sums_of_rows",
    "trunk_of",
    "unit",
    "zero_shot",
]
