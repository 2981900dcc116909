"""Measures of an embedding space: retrieval, recognition, probes, calibration, modality gap, arithmetic."""

from __future__ import annotations

from geobind.evaluation.arithmetic import evaluate_sum_of_rows
from geobind.evaluation.bootstrap import Resampling
from geobind.evaluation.calibration import calibrate, calibrate_fuser, measure_calibration
from geobind.evaluation.classification import (
    Prototypes,
    Recognition,
    build_prototypes,
    build_prototypes_from_labels,
    zero_shot,
)
from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.few_shot_curves import (
    FewShotCurve,
    FewShotOptions,
    FewShotPoint,
    LabelledEmbeddings,
    ProbeResults,
    TrunkBinder,
    build_random_trunk,
    build_trunk,
    few_shot,
)
from geobind.evaluation.gap import modality_gap
from geobind.evaluation.held_out import EvaluationResults, measure_all, measure_retrieval
from geobind.evaluation.linear import Ridge, logistic, ridge
from geobind.evaluation.pairs import PairRow, PairTable, SkippedPair, evaluate_pairs
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
    ProtocolResult,
    evaluate_protocol,
    geoclap_split,
    get_protocol,
    psm_split,
    soundingearth_split,
)
from geobind.evaluation.questions import measure_auc
from geobind.evaluation.ranks import RankCounts, rank_counts, rank_counts_both
from geobind.evaluation.regression_probe import FactOptions, FactProbe, probe_facts
from geobind.evaluation.retrieval_metrics import Metric, Retrieval, RetrievalSettings, retrieval
from geobind.evaluation.split_leakage import Leakage, leakage
from geobind.evaluation.subsets import FuserScore, SubsetRow, evaluate_subsets
from geobind.evaluation.tables import (
    build_pair_table,
    build_probe_tables,
    build_protocol_tables,
    build_summary_table,
)
from geobind.recipe.marks import StageStep, mark_by_pairs, mark_pairs
from geobind.scoring import Calibration, cosine, probabilities
from geobind.utils.vectors import unit

__all__ = [
    "PROTOCOLS",
    "Calibration",
    "EmbeddedRows",
    "EvaluationResults",
    "FactOptions",
    "FactProbe",
    "FewShotCurve",
    "FewShotOptions",
    "FewShotPoint",
    "FuserScore",
    "LabelledEmbeddings",
    "Leakage",
    "Metric",
    "PairRow",
    "PairTable",
    "ProbeRequest",
    "ProbeResults",
    "ProbeSource",
    "Protocol",
    "ProtocolResult",
    "Prototypes",
    "RankCounts",
    "Recognition",
    "Resampling",
    "Retrieval",
    "RetrievalSettings",
    "Ridge",
    "SkippedPair",
    "StageStep",
    "SubsetRow",
    "TrunkBinder",
    "build_feature_binders",
    "build_pair_table",
    "build_probe_tables",
    "build_protocol_tables",
    "build_prototypes",
    "build_prototypes_from_labels",
    "build_random_trunk",
    "build_summary_table",
    "build_trunk",
    "calibrate",
    "calibrate_fuser",
    "cosine",
    "evaluate_pairs",
    "evaluate_protocol",
    "evaluate_subsets",
    "evaluate_sum_of_rows",
    "few_shot",
    "geoclap_split",
    "get_protocol",
    "leakage",
    "logistic",
    "mark_by_pairs",
    "mark_pairs",
    "measure_all",
    "measure_auc",
    "measure_calibration",
    "measure_retrieval",
    "modality_gap",
    "probabilities",
    "probe_classes",
    "probe_facts",
    "probe_targets",
    "psm_split",
    "rank_counts",
    "rank_counts_both",
    "retrieval",
    "ridge",
    "soundingearth_split",
    "unit",
    "zero_shot",
]
