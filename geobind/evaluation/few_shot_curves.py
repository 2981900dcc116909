"""Few-shot curves, probe results, and the features of an encoder's trunk."""

# N training rows, V validation rows, Q queries, C classes, D width, E draws, P penalties, B batch, F features

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from geobind.binder import Binder
from geobind.errors import DataError
from geobind.evaluation.bootstrap import Resampling
from geobind.evaluation.classification import (
    QueryClasses,
    Recognition,
    average_hits,
    build_prototypes,
    build_query_classes,
    hits_QM,
)
from geobind.evaluation.embeddings import EmbeddingMatrix, Embeddings, check_same_width
from geobind.evaluation.linear import logistic
from geobind.evaluation.regression_probe import FactProbe
from geobind.evaluation.retrieval_metrics import Metric
from geobind.utils.hashing import derive_seed
from geobind.utils.progress import track
from geobind.utils.vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray


Shots = int | Literal["all"]
Classifier = Literal["logistic", "nearest mean"]
CURVE: tuple[Shots, ...] = (1, 2, 4, 8, 16, 32, "all")  # ImageBind's figure 3, and the linear probe


@dataclass(frozen=True)
class FewShotOptions:
    """Options of few-shot evaluation: support sets, classifiers, resampling."""

    shots: tuple[Shots, ...] = CURVE  # none: zero-shot recognition alone
    draws: int = 10
    penalty: float = 0.1  # of the logistic regression, where there are no validation rows to choose it on
    penalties: tuple[float, ...] = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)  # to choose from
    resampling: Resampling = field(default_factory=Resampling)

    def __post_init__(self) -> None:
        """Raise DataError for a setting out of range."""
        wrong = [k for k in self.shots if k != "all" and k < 1]
        if wrong:
            raise DataError(f"shots are whole numbers from 1, or `all`, not {list(self.shots)}")
        if self.draws < 1:
            raise DataError(f"draws of support sets: give at least 1, not {self.draws}")
        if self.penalty <= 0 or not self.penalties or min(self.penalties) <= 0:
            raise DataError("the penalties of a logistic regression must be positive")


@dataclass(frozen=True)
class FewShotPoint:
    """Accuracy with some number of examples of each class."""

    shots: Shots
    fewest: int  # examples of the smallest class
    rows: int  # examples of all classes together
    draws: int
    metrics: Mapping[str, Metric]  # accuracy, mean_per_class: the mean over draws
    deviation: float  # standard deviation of the accuracy between draws
    penalty: float | None


@dataclass(frozen=True)
class FewShotCurve:
    """Accuracy of one classifier by number of examples."""

    classifier: Classifier
    points: tuple[FewShotPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"classifier": self.classifier, "points": [asdict(point) for point in self.points]}


class LabelledEmbeddings(NamedTuple):
    """Unit-length embeddings and the class of each row, None where unknown."""

    embeddings: Embeddings
    labels: Any
    groups: Any = None  # rows of one group are not independent


class _LabelledRows(NamedTuple):
    row_ND: Tensor
    truth: QueryClasses


def few_shot(
    train: LabelledEmbeddings,
    test: LabelledEmbeddings,
    *,
    validation: LabelledEmbeddings | None = None,
    options: FewShotOptions | None = None,
    progress: bool | None = None,
) -> tuple[FewShotCurve, ...]:
    """Train two classifiers on a few rows of each class, several times, and measure them on all test rows.

    The classifiers are a logistic regression and the nearest class mean. The examples of a draw are the first
    of a seeded order of each class's rows, so that four shots contain the two shots of the same draw. With
    `all` the logistic regression is the linear probe. Intervals are over queries and over draws.

    Args:
        train: Rows that examples are drawn from.
        test: Rows that are measured. Nothing is chosen on them.
        validation: Rows on which the penalty is chosen for each number of shots, as in CLIP's protocol; so
            many labelled rows are no few shots any more, and without them the penalty is `options.penalty`.
        options: Shots, draws, penalties, resampling.
        progress: Show a progress bar; default: when it takes long and a person is watching.

    Raises:
        DataError: A test row is of a class no training row has, or embeddings do not fit.
    """
    options = options or FewShotOptions()
    classes = sorted({label for label in train.labels if label is not None})
    known = _check_labelled(train, classes, "training rows")
    queries = _check_labelled(test, classes, "queries", reference=train)
    validation_rows = (
        None
        if validation is None
        else _check_labelled(validation, classes, "validation rows", reference=train)
    )
    logistic_points: list[FewShotPoint] = []
    mean_points: list[FewShotPoint] = []
    for shots in track(options.shots, "few-shot curve", len(options.shots), progress):
        supports = list(_draw_supports(known.truth, shots, options))
        # The steps of this work are the shots; those with many rows take longest.
        logistic_points.append(_fit_logistic_point(shots, supports, known, queries, validation_rows, options))
        mean_points.append(_fit_mean_point(shots, supports, known, queries, options))
    return FewShotCurve("logistic", tuple(logistic_points)), FewShotCurve("nearest mean", tuple(mean_points))


def _check_labelled(
    rows: LabelledEmbeddings, classes: Sequence[str], name: str, reference: LabelledEmbeddings | None = None
) -> _LabelledRows:
    checked = EmbeddingMatrix(rows.embeddings, name).check()
    if reference is not None:
        check_same_width(checked, EmbeddingMatrix(reference.embeddings, "training rows"))
    truth = build_query_classes(rows.labels, classes, checked.size, rows.groups)
    row_ND = checked.block(slice(0, checked.size)).cpu()
    return _LabelledRows(row_ND[torch.as_tensor(truth.kept_Q)], truth)


def _draw_supports(truth: QueryClasses, shots: Shots, options: FewShotOptions) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each draw; all rows are drawn once."""
    of_class = [np.flatnonzero(truth.class_Q == c) for c in range(len(truth.classes))]
    if shots == "all" or shots >= max(map(len, of_class)):
        yield np.concatenate(of_class)
        return
    for draw in range(options.draws):
        yield np.concatenate(
            [
                _shuffle_class(rows, options.resampling.seed, draw, name)[:shots]
                for name, rows in zip(truth.classes, of_class, strict=True)
            ]
        )


def _shuffle_class(rows: NDArray[np.int64], seed: int, draw: int, name: str) -> NDArray[np.int64]:
    """Shuffle the rows of a class; larger supports of one draw contain the smaller."""
    return np.random.default_rng(derive_seed(seed, "support", draw, name)).permutation(rows)


def _fit_logistic_point(
    shots: Shots,
    supports: Sequence[NDArray[np.int64]],
    known: _LabelledRows,
    queries: _LabelledRows,
    validation_rows: _LabelledRows | None,
    options: FewShotOptions,
) -> FewShotPoint:
    penalties = [options.penalty] if validation_rows is None else sorted(options.penalties, reverse=True)
    hit_EPQ: list[list[NDArray[np.float64]]] = []
    right_EP: list[list[float]] = []
    for support in supports:
        row_ND, class_N = known.row_ND[support], torch.as_tensor(known.truth.class_Q[support])
        fits = list(logistic(row_ND, class_N, len(known.truth.classes), penalties))
        hit_EPQ.append([_hits_Q(fit.scores(queries.row_ND), queries) for fit in fits])
        if validation_rows is not None:
            right_EP.append(
                [float(_hits_Q(fit.scores(validation_rows.row_ND), validation_rows).mean()) for fit in fits]
            )
    # Of equally good penalties the largest, which comes first.
    best = int(np.argmax(np.mean(right_EP, axis=0))) if right_EP else 0
    hit_EQ = np.stack([hit_PQ[best] for hit_PQ in hit_EPQ])
    return _build_point(shots, supports, known, queries, hit_EQ, options, penalties[best])


def _fit_mean_point(
    shots: Shots,
    supports: Sequence[NDArray[np.int64]],
    known: _LabelledRows,
    queries: _LabelledRows,
    options: FewShotOptions,
) -> FewShotPoint:
    hits: list[NDArray[np.float64]] = []
    for support in supports:
        class_N = known.truth.class_Q[support]
        row_ND = known.row_ND[support]
        means = build_prototypes(
            {name: row_ND[torch.as_tensor(class_N == c)] for c, name in enumerate(known.truth.classes)}
        )
        hits.append(_hits_Q(queries.row_ND @ means.class_CD.T, queries))
    return _build_point(shots, supports, known, queries, np.stack(hits), options, None)


def _hits_Q(score_QC: Tensor, queries: _LabelledRows) -> NDArray[np.float64]:
    return hits_QM(score_QC.double().numpy(), queries.truth.class_Q, [1])[:, 0]


def _build_point(
    shots: Shots,
    supports: Sequence[NDArray[np.int64]],
    known: _LabelledRows,
    queries: _LabelledRows,
    hit_EQ: NDArray[np.float64],
    options: FewShotOptions,
    penalty: float | None,
) -> FewShotPoint:
    metrics, _ = average_hits(hit_EQ[:, :, None], queries.truth, [1], options.resampling)
    counts_C = np.bincount(known.truth.class_Q[supports[0]], minlength=len(known.truth.classes))
    deviation = float(hit_EQ.mean(1).std(ddof=1)) if len(hit_EQ) > 1 else 0.0
    return FewShotPoint(
        shots, int(counts_C.min()), int(counts_C.sum()), len(supports), metrics, deviation, penalty
    )


@dataclass(frozen=True)
class ProbeResults:
    """Zero-shot and few-shot recognition of one modality, or facts read from it: `probes.json`."""

    modality: str
    data: str
    split: str
    kind: Literal["classes", "facts"]
    classes: tuple[str, ...] = ()
    queries: int = 0
    majority: float = 0.0  # the accuracy of always naming the most frequent class
    zero_shot: Mapping[str, Recognition] | None = None  # by what describes the classes
    curves: Mapping[str, tuple[FewShotCurve, ...]] | None = None  # by features
    facts: Mapping[str, tuple[FactProbe, ...]] | None = None  # by features
    settings: Mapping[str, Any] | None = None

    @property
    def chance(self) -> float:
        """The accuracy of naming any class at random."""
        return 1 / max(len(self.classes), 1)

    @property
    def shots(self) -> list[Shots]:
        """The numbers of examples that some curve has."""
        curves = (curve for of_features in (self.curves or {}).values() for curve in of_features)
        return list(dict.fromkeys(point.shots for curve in curves for point in curve.points))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        plain: dict[str, Any] = {
            "modality": self.modality,
            "data": self.data,
            "split": self.split,
            "kind": self.kind,
            "settings": dict(self.settings or {}),
        }
        if self.kind == "facts":
            facts = {
                name: [probe.to_dict() for probe in probes] for name, probes in (self.facts or {}).items()
            }
            return {**plain, "facts": facts}
        return {
            **plain,
            "classes": list(self.classes),
            "queries": self.queries,
            "chance": self.chance,
            "majority": self.majority,
            "zero_shot": {name: result.to_dict() for name, result in (self.zero_shot or {}).items()},
            "curves": {
                name: [curve.to_dict() for curve in curves] for name, curves in (self.curves or {}).items()
            },
        }


class TrunkBinder(Binder):
    """A binder with one encoder and no head: `embed` returns the encoder's own features.

    A head is what the contract calls so, an attribute of the encoder that can be trained alone; an encoder
    without one gives its embeddings.
    """

    def forward(self, name: str, batch: Any) -> Tensor:
        """Turn a prepared batch into unit-length float32 features (B, F)."""
        return unit(self.encoders[name](batch).flatten(1))


def build_trunk(binder: Binder, name: str) -> TrunkBinder:
    """Copy an encoder as it is now, without its head; untrained, if no stage has trained the binder.

    Raises:
        PluginError: The binder has no such modality.
    """
    trunk = TrunkBinder({name: binder.modality(name)}, binder.width, pretrained=False)
    trunk.encoders[name].load_state_dict(binder.encoders[name].state_dict())
    return _remove_heads(trunk.to(binder.device))


def build_random_trunk(binder: Binder, name: str, seed: int) -> TrunkBinder:
    """Build an encoder anew with random weights, without its head: what the architecture alone gives.

    Raises:
        PluginError: The binder has no such modality.
    """
    return _remove_heads(
        TrunkBinder({name: binder.modality(name)}, binder.width, pretrained=False, seed=seed)
    )


def _remove_heads(trunk: TrunkBinder) -> TrunkBinder:
    for encoder in trunk.encoders.values():
        if isinstance(getattr(encoder, "head", None), nn.Module):
            encoder.head = nn.Identity()
    return trunk.eval()
