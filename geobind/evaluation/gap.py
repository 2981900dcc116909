"""Modality gap, alignment and uniformity of a shared embedding space."""

# N rows, D width, B resamples, F folds

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind.evaluation.bootstrap import Resampling, draw_counts
from geobind.evaluation.embedded import EmbeddedRows, build_pair_sides
from geobind.evaluation.linear import ridge
from geobind.evaluation.retrieval_metrics import Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MAX_ROWS = 2000  # of a modality that are compared with each other
MIN_ROWS = 10
_FOLDS = 5
_SWAPS = 200
_NORMAL = 1.959964  # of a standard normal, 95 % lie within this of 0


@dataclass(frozen=True)
class PairGap:
    """Gap between two modalities, on the rows that have both."""

    modalities: tuple[str, str]
    rows: int
    distance: Metric  # between their centroids; chance: the two swapped in random rows
    separable: Metric  # share of left-out embeddings that a linear classifier gives to their modality
    alignment: Metric  # mean squared distance within rows; chance: between rows


@dataclass(frozen=True)
class ModalityUniformity:
    """Uniformity of one modality on the sphere: 0 for a single point, lower for more even."""

    modality: str
    rows: int
    uniformity: Metric  # chance: points drawn evenly from the sphere


@dataclass(frozen=True)
class ModalityGap:
    """Every pair of modalities, and each modality alone: `gap.json`."""

    pairs: tuple[PairGap, ...] = ()
    spreads: tuple[ModalityUniformity, ...] = ()
    settings: Resampling = field(default_factory=Resampling)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON, with the conventions of the figures."""
        return {
            "settings": {**asdict(self.settings), "most_rows": MAX_ROWS},
            "conventions": {
                "distance": "between centroids of unit-length embeddings (arXiv:2203.02053); 0 to 2",
                "separable": f"ridge regression to +1 and -1, {_FOLDS} folds of rows",
                "alignment": "mean of |a - b|^2 (arXiv:2005.10242, eq. 4 with alpha 2); 0 to 4",
                "uniformity": "log of the mean of exp(-2 |x - y|^2) over pairs (eq. 5 with t 2)",
                "interval": "bootstrap over rows (percentile; of the distance basic); of uniformity normal",
            },
            "pairs": [asdict(pair) for pair in self.pairs],
            "spreads": [asdict(spread) for spread in self.spreads],
        }


def modality_gap(
    embedded: Mapping[str, EmbeddedRows], *, options: Resampling | None = None, max_rows: int = MAX_ROWS
) -> ModalityGap:
    """Measure the modality gap (Liang et al., arXiv:2203.02053), alignment and uniformity (arXiv:2005.10242).

    Args:
        embedded: Embeddings by modality, of the same table.
        options: How often to draw again; uniformity has a 95 % interval whatever its confidence.
        max_rows: Largest number of rows used; more are sampled.
    """
    options = options or Resampling()
    pairs: list[PairGap] = []
    for one, two in combinations(embedded, 2):
        sides = build_pair_sides(embedded, one, two, max_rows=max_rows)
        if sides is not None and len(sides.query_QD) >= MIN_ROWS:
            a_ND, b_ND = (part.double().numpy() for part in (sides.query_QD, sides.gallery_GD))
            pairs.append(_measure_pair((one, two), a_ND, b_ND, options))
    spreads = tuple(
        ModalityUniformity(name, len(part), measure_uniformity(part))
        for name, one in embedded.items()
        if len(part := _sample_embeddings(one, max_rows)) >= MIN_ROWS
    )
    return ModalityGap(tuple(pairs), spreads, options)


def _sample_embeddings(one: EmbeddedRows, max_rows: int) -> Floats:
    count = len(one.rows_Q)
    kept = np.arange(count)
    if count > max_rows:
        kept = np.sort(np.random.default_rng(0).choice(count, max_rows, replace=False))
    return one.embedding_QD.double().numpy()[kept]


def _measure_pair(names: tuple[str, str], a_ND: Floats, b_ND: Floats, options: Resampling) -> PairGap:
    apart_ND = a_ND - b_ND
    square_N = (apart_ND**2).sum(1)
    right_N = _classify_sides(a_ND, b_ND, options.seed)
    drawn: list[Floats] = []
    for times_BN in draw_counts(len(a_ND), options, room=4):
        total_B1 = times_BN.sum(1, keepdims=True)
        distance_B = np.linalg.norm(times_BN @ apart_ND / total_B1, axis=1)
        drawn.append(np.column_stack([distance_B, times_BN @ np.stack([right_N, square_N], 1) / total_B1]))
    low_3, high_3 = np.quantile(np.concatenate(drawn), options.bounds, axis=0).tolist()
    alignment = Metric(float(square_N.mean()), _mean_distance_between_rows(a_ND, b_ND), low_3[2], high_3[2])
    return PairGap(
        names,
        len(a_ND),
        _measure_distance(apart_ND, low_3[0], high_3[0], options),
        Metric(float(right_N.mean()), 0.5, low_3[1], high_3[1]),
        alignment,
    )


def _measure_distance(apart_ND: Floats, low: float, high: float, options: Resampling) -> Metric:
    """Measure the length of the mean difference; its interval corrects for the bias of scatter."""
    value = float(np.linalg.norm(apart_ND.mean(0)))
    random = np.random.default_rng([options.seed, 4])
    swapped_BN = random.choice([-1.0, 1.0], (_SWAPS, len(apart_ND)))
    chance_B = np.linalg.norm(swapped_BN @ apart_ND / len(apart_ND), axis=1)
    low, high = max(2 * value - high, 0.0), max(2 * value - low, value)
    if value <= np.quantile(chance_B, options.confidence):  # swapping the two would often part them as far
        low = 0.0
    return Metric(value, float(chance_B.mean()), low, high)


def _mean_distance_between_rows(a_ND: Floats, b_ND: Floats) -> float:
    """Compute the mean squared distance between observations of different rows."""
    count = len(a_ND)
    square = ((a_ND**2).sum(1).mean() + (b_ND**2).sum(1).mean()) * count * (count - 1)
    product = a_ND.sum(0) @ b_ND.sum(0) - (a_ND * b_ND).sum()
    return float((square - 2 * product) / (count * (count - 1)))


def _classify_sides(a_ND: Floats, b_ND: Floats, seed: int) -> Floats:
    """Compute the share of each row's two embeddings that a cross-validated classifier assigns correctly."""
    fold_N = np.random.default_rng([seed, 5]).permutation(np.arange(len(a_ND)) % _FOLDS)
    right_N = np.zeros(len(a_ND))
    for fold in range(_FOLDS):
        test_N, train_N = fold_N == fold, fold_N != fold
        rows_ND = np.concatenate([a_ND[train_N], b_ND[train_N]])
        side_N1 = np.repeat([1.0, -1.0], int(train_N.sum()))[:, None]
        fitted = ridge(rows_ND, side_N1)
        one_N, two_N = (
            np.sign(fitted.predict(a_ND[test_N])[:, 0]),
            np.sign(fitted.predict(b_ND[test_N])[:, 0]),
        )
        right_N[test_N] = (2 + one_N - two_N) / 4  # a classifier that says nothing (0) gets half of them
    return right_N


def measure_uniformity(x_ND: Floats) -> Metric:
    """Measure uniformity on the sphere: log mean exp(-2 |x - y|^2) over pairs of different rows.

    Source: Wang and Isola, arXiv:2005.10242, eq. 5 with t = 2. The interval is normal: the mean over pairs
    is a U-statistic, whose variance is four times that of the rows' own means, divided by their number.
    """
    count, width = x_ND.shape
    kernel_NN = np.exp(-2 * np.clip(2 - 2 * x_ND @ x_ND.T, 0, None))
    np.fill_diagonal(kernel_NN, 0)
    mean_N = kernel_NN.sum(1) / (count - 1)
    mean = float(mean_N.mean())
    wide = _NORMAL * 2 * float(mean_N.std(ddof=1)) / np.sqrt(count) / mean
    value = float(np.log(mean))
    return Metric(value, _uniformity_of_sphere(width), float(value - wide), float(value + wide))


def _uniformity_of_sphere(width: int) -> float:
    """Compute the uniformity of points drawn evenly from the unit sphere in `width` dimensions.

    The cosine of two such points has the density (1 - t^2)^((width - 3) / 2); the mean of exp(4 t - 4) under
    it is summed over angles, which tames the ends.
    """
    angle = (np.arange(20_000) + 0.5) * np.pi / 20_000
    log_density = (width - 2) * np.log(np.sin(angle))
    weight = np.exp(log_density - log_density.max())
    return float(np.log((weight * np.exp(4 * np.cos(angle) - 4)).sum() / weight.sum()))
