"""Regression probes: numbers of places predicted from embeddings across spatial blocks."""

# N places, T facts, D width, K folds, U blocks of land, B resamples; LL latitude and longitude in degrees

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geobind.data.split import SplitOptions, split_units
from geobind.errors import DataError
from geobind.evaluation.bootstrap import Resampling
from geobind.evaluation.embeddings import EmbeddingMatrix, Embeddings, encode_values
from geobind.evaluation.intervals import student_quantile
from geobind.evaluation.linear import ridge
from geobind.evaluation.retrieval_metrics import Metric
from geobind.utils.geo import assign_cells, find_nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Codes = NDArray[np.int64]


@dataclass(frozen=True)
class FactOptions:
    """Options of regression probes: folds, cell size, resampling."""

    folds: int = 5
    cell_km: float = 100.0  # a cell of this size is never cut; make it as wide as facts resemble each other
    resampling: Resampling = field(default_factory=Resampling)

    def __post_init__(self) -> None:
        """Raise DataError for a setting out of range."""
        if self.folds < 2 or not 1 <= self.cell_km <= 20_000:
            raise DataError(
                f"folds {self.folds} and cell_km {self.cell_km}: give 2 folds or more, "
                "and cells of 1 to 20,000 km"
            )


@dataclass(frozen=True)
class FactProbe:
    """Variation of one fact that embeddings explain on held-out blocks of land."""

    name: str
    rows: int
    blocks: int
    r2: Metric  # its chance is the mean of the fitted places as the prediction, a little below 0
    nearest_place: float | None  # the R2 of the fact at the nearest fitted place: what location alone gives
    error: float  # mean absolute error, in the fact's own unit

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


class _Predictions(NamedTuple):
    ridge_NT: Floats
    mean_NT: Floats
    nearest_NT: Floats | None


def probe_facts(
    embeddings: Embeddings,
    facts: Mapping[str, Any],
    *,
    places: Any = None,
    blocks: Any = None,
    options: FactOptions | None = None,
) -> tuple[FactProbe, ...]:
    """Predict facts of places from their embeddings by ridge regression, across spatially blocked folds.

    Neighbouring places resemble each other, so folds drawn at random would let a probe answer from memory of
    the surroundings (Roberts et al. 2017, Ecography 40:913). Here whole cells of a grid go to one fold. R2 is
    1 - squared error / variance, over the predictions of all folds together.

    Args:
        embeddings: Unit-length embeddings (N, D).
        facts: By name, a number for each row; NaN or None where unknown.
        places: Latitude and longitude in degrees (N, 2); cells of `options.cell_km` are the blocks.
        blocks: Or else what block each row is of. Without either every row is a block of its own.
        options: Folds, cells, resampling.

    Returns:
        A probe for each fact, in their order. Intervals are over blocks.

    Raises:
        DataError: A fact that is not a number or does not vary, too few blocks, or rows that do not fit.
    """
    options = options or FactOptions()
    rows = EmbeddingMatrix(embeddings, "embeddings").check()
    x_ND = rows.block(slice(0, rows.size)).double().cpu().numpy()
    place_NLL = None if places is None else _check_places(places, rows.size)
    block_N = _number_blocks(place_NLL, blocks, rows.size, options)
    fact_NT = np.stack([_check_numbers(name, values, rows.size) for name, values in facts.items()], axis=1)
    names = list(facts)
    probe_by_name: dict[str, FactProbe] = {}
    for columns, known_N in _group_by_known_rows(fact_NT):
        known_places = None if place_NLL is None else place_NLL[known_N]
        of_names = [names[t] for t in columns]
        y_NT = fact_NT[known_N][:, columns]
        _check_vary(of_names, y_NT)
        predicted = _predict(x_ND[known_N], y_NT, block_N[known_N], known_places, options)
        probes = _score(of_names, y_NT, predicted, block_N[known_N], options.resampling)
        probe_by_name |= {probe.name: probe for probe in probes}
    return tuple(probe_by_name[name] for name in names)


def _check_numbers(name: str, values: Any, rows: int) -> Floats:
    try:
        number_N = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"fact '{name}': {error}; give one number per row") from error
    if number_N.shape != (rows,):
        raise DataError(f"fact '{name}': shape {number_N.shape} for {rows} rows; give one number per row")
    if np.isinf(number_N).any():
        raise DataError(f"fact '{name}': row {int(np.argmax(np.isinf(number_N)))} is infinite")
    return number_N


def _check_places(places: Any, rows: int) -> Floats:
    place_NLL = np.asarray(places, dtype=np.float64)
    if place_NLL.shape != (rows, 2) or not np.isfinite(place_NLL).all():
        raise DataError(
            f"places: need a finite latitude and longitude for each of {rows} rows; leave out rows without"
        )
    return place_NLL


def _number_blocks(place_NLL: Floats | None, blocks: Any, rows: int, options: FactOptions) -> Codes:
    if blocks is not None:
        return encode_values(blocks, rows, "blocks")
    if place_NLL is None:
        return np.arange(rows)
    return encode_values(assign_cells(place_NLL, options.cell_km), rows, "cells")


def _group_by_known_rows(fact_NT: Floats) -> Iterator[tuple[list[int], NDArray[np.bool_]]]:
    """Group facts known at the same rows, which share one decomposition."""
    known_NT = np.isfinite(fact_NT)
    groups: dict[bytes, list[int]] = {}
    for t in range(fact_NT.shape[1]):
        groups.setdefault(known_NT[:, t].tobytes(), []).append(t)
    for columns in groups.values():
        yield columns, known_NT[:, columns[0]]


def _check_vary(names: Sequence[str], y_NT: Floats) -> None:
    for t, name in enumerate(names):
        if len(y_NT) == 0 or np.ptp(y_NT[:, t]) == 0:
            raise DataError(
                f"fact '{name}' has no two different values in these rows; there is nothing to explain"
            )


def _predict(
    x_ND: Floats, y_NT: Floats, block_N: Codes, place_NLL: Floats | None, options: FactOptions
) -> _Predictions:
    """Predict every row from the folds it is not in."""
    count = len(np.unique(block_N))
    if count < options.folds:
        raise DataError(
            f"{options.folds} folds need as many blocks of land, but the rows lie in {count}: make cells "
            "smaller (cell_km), or take fewer folds"
        )
    names = tuple(map(str, range(options.folds)))
    split = SplitOptions(
        shares=(1 / options.folds,) * options.folds, names=names, seed=options.resampling.seed
    )
    fold_N = np.array(split_units(block_N.tolist(), split))
    ridge_NT, mean_NT = np.empty_like(y_NT), np.empty_like(y_NT)
    nearest_NT = None if place_NLL is None else np.empty_like(y_NT)
    for name in names:
        out_N = fold_N == name
        ridge_NT[out_N] = ridge(x_ND[~out_N], y_NT[~out_N]).predict(x_ND[out_N])
        mean_NT[out_N] = y_NT[~out_N].mean(0)
        if nearest_NT is not None and place_NLL is not None:
            nearest_NT[out_N] = y_NT[~out_N][find_nearest(place_NLL[out_N], place_NLL[~out_N])]
    return _Predictions(ridge_NT, mean_NT, nearest_NT)


def _score(
    names: Sequence[str], y_NT: Floats, predicted: _Predictions, block_N: Codes, options: Resampling
) -> list[FactProbe]:
    square_NT = (y_NT - predicted.ridge_NT) ** 2
    low_T, high_T = _bound_r2(y_NT, square_NT, block_N, options)
    total_T = ((y_NT - y_NT.mean(0)) ** 2).sum(0)

    def r2_T(guess_NT: Floats) -> Floats:
        return 1 - ((y_NT - guess_NT) ** 2).sum(0) / total_T

    value_T, mean_T = r2_T(predicted.ridge_NT), r2_T(predicted.mean_NT)
    nearest_T = None if predicted.nearest_NT is None else r2_T(predicted.nearest_NT)
    error_T = np.abs(y_NT - predicted.ridge_NT).mean(0)
    return [
        FactProbe(
            name,
            len(y_NT),
            len(np.unique(block_N)),
            Metric(float(value_T[t]), float(mean_T[t]), float(low_T[t]), float(high_T[t])),
            None if nearest_T is None else float(nearest_T[t]),
            float(error_T[t]),
        )
        for t, name in enumerate(names)
    ]


def _bound_r2(y_NT: Floats, square_NT: Floats, block_N: Codes, options: Resampling) -> tuple[Floats, Floats]:
    """Compute bounds of R2 by leaving out one block at a time (jackknife), with Student's t.

    The unexplained share, 1 - R2, is positive and skewed, so its logarithm is bounded.
    """
    _, unit_N = np.unique(block_N, return_inverse=True)
    units = int(unit_N.max()) + 1
    centred_NT = y_NT - y_NT.mean(0)

    def sums_UT(value_NT: Floats) -> Floats:
        made_UT = np.zeros((units, y_NT.shape[1]))
        np.add.at(made_UT, unit_N, value_NT)
        return made_UT

    count_U1 = np.bincount(unit_N)[:, None].astype(np.float64)
    left_U1 = len(y_NT) - count_U1
    error_UT, first_UT, second_UT = sums_UT(square_NT), sums_UT(centred_NT), sums_UT(centred_NT**2)
    total_T = (centred_NT**2).sum(0)
    variance_UT = total_T - second_UT - (-first_UT) ** 2 / np.maximum(left_U1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # one block may hold all that varies
        left_UT = np.log((square_NT.sum(0) - error_UT) / variance_UT)
        whole_T = np.log(square_NT.sum(0) / total_T)
        apart_UT = np.where(np.isfinite(left_UT - whole_T), left_UT - whole_T, 0.0)
    deviation_T = np.sqrt((units - 1) / units * (apart_UT**2).sum(0))
    freedom = float(count_U1.sum() ** 2 / (count_U1**2).sum()) - 1
    half_T = student_quantile(options.confidence, round(max(freedom, 1.0), 2)) * deviation_T
    return 1 - np.exp(whole_T + half_T), 1 - np.exp(whole_T - half_T)
