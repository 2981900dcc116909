"""Calibration of match probabilities: fit a temperature and an offset, measure reliability."""

# Q queries, G gallery items, P matches, M mismatches

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geobind.errors import DataError
from geobind.evaluation.bootstrap import Resampling, draw_counts
from geobind.evaluation.embedded import EmbeddedRows, PairSides, build_pair_sides
from geobind.fuser import Fuser
from geobind.scoring import CLIP_TEMPERATURE, Calibration, PairScales, cosine, probabilities, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e2  # range searched
_GRID = 16
_GOLDEN = (5**0.5 - 1) / 2
_MAX_MISMATCHES = 250_000
_STEPS = 100


def log_loss(similarity_QG: Floats, right_QG: NDArray[np.bool_], temperature: float) -> float:
    """Compute the mean negative log probability of right answers under a softmax, in nats."""
    logit_QG = similarity_QG / temperature
    logit_QG -= logit_QG.max(1, keepdims=True)
    weight_QG = np.exp(logit_QG, out=logit_QG)
    right_Q = (weight_QG * right_QG).sum(1)
    return float(-np.log(np.maximum(right_Q / weight_QG.sum(1), 1e-300)).mean())


def smoothed_loss(similarity_QG: Floats, right_QG: NDArray[np.bool_], temperature: float) -> float:
    """Compute the log loss with labels smoothed over the gallery by 1 / (Q + 2).

    It does for a softmax what Platt's targets do for a single pair: without it, a few queries that all find
    their answer would get probabilities of 1 and a temperature of 0.
    """
    logit_QG = similarity_QG / temperature
    top_Q = logit_QG.max(1)
    anything = float((top_Q + np.log(np.exp(logit_QG - top_Q[:, None]).sum(1)) - logit_QG.mean(1)).mean())
    share = 1 / (len(similarity_QG) + 2)
    return (1 - share) * log_loss(similarity_QG, right_QG, temperature) + share * anything


def fit_temperature(similarity_QG: Floats, right_QG: NDArray[np.bool_]) -> float:
    """Find the temperature of smallest smoothed log loss: a grid, then golden-section search.

    With one right answer for each query the loss is convex in 1 / temperature; with several the grid keeps
    the search from a worse valley.
    """

    def loss(at: float) -> float:
        return smoothed_loss(similarity_QG, right_QG, float(np.exp(at)))

    grid = np.linspace(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE), _GRID).tolist()
    best = int(np.argmin([loss(at) for at in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    while high - low > 1e-3:
        one, two = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, two) if loss(one) <= loss(two) else (one, high)
    return float(np.exp((low + high) / 2))


def fit_scales(match_P: Floats, mismatch_M: Floats, seed: int = 0) -> tuple[float, float]:
    """Fit scale and bias of the log odds of a match (Platt scaling, 1999), both classes weighted equally.

    Targets are Platt's, slightly away from 0 and 1, so that separable similarities give a finite scale.

    Returns:
        The scale, 0 where matches are not more similar than mismatches, and the bias.
    """
    if len(mismatch_M) > _MAX_MISMATCHES:
        mismatch_M = np.random.default_rng(seed).choice(mismatch_M, _MAX_MISMATCHES, replace=False)
    if match_P.mean() <= mismatch_M.mean() + 1e-9:
        return 0.0, 0.0
    similarity_N = np.concatenate([match_P, mismatch_M])
    matches, mismatches = len(match_P), len(mismatch_M)
    target_N = np.repeat([(matches + 1) / (matches + 2), 1 / (matches + 2)], [matches, mismatches])
    weight_N = np.repeat([0.5 / matches, 0.5 / mismatches], [matches, mismatches])
    middle, spread = float(similarity_N.mean()), max(float(similarity_N.std()), 1e-9)
    z_N2 = np.stack([(similarity_N - middle) / spread, np.ones_like(similarity_N)], axis=1)
    scale, bias = _minimise_by_newton(z_N2, target_N, weight_N)
    return max(float(scale / spread), 0.0), float(bias - scale * middle / spread)


def _minimise_by_newton(z_N2: Floats, target_N: Floats, weight_N: Floats) -> Floats:
    """Minimise the weighted logistic loss; a step that does not lower it is halved."""

    def loss(at_2: Floats) -> float:
        logit_N = z_N2 @ at_2
        return float((weight_N * (np.logaddexp(0, logit_N) - target_N * logit_N)).sum())

    at_2, before = np.zeros(2), np.log(2)
    for _ in range(_STEPS):
        p_N = 1 / (1 + np.exp(-(z_N2 @ at_2)))
        slope_2 = z_N2.T @ (weight_N * (p_N - target_N))
        curve_22 = z_N2.T @ (z_N2 * (weight_N * p_N * (1 - p_N))[:, None]) + 1e-12 * np.eye(2)
        step_2 = np.linalg.solve(curve_22, slope_2)
        while (after := loss(at_2 - step_2)) > before and np.abs(step_2).max() > 1e-9:
            step_2 = step_2 / 2
        at_2 = at_2 - step_2
        if np.abs(step_2).max() < 1e-8 or before - after < 1e-12:
            break
        before = after
    return at_2


# N predictions, Q rows they belong to, E bins, B resamples


BINS = 15  # Guo et al.'s number
_PERFECT_DRAWS = 200


@dataclass(frozen=True)
class CalibrationError:
    """Expected calibration error, its interval, and the error that perfect probabilities would show."""

    value: float
    low: float
    high: float
    perfect: float  # mean of the error over outcomes drawn from the probabilities themselves


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions of similar probability."""

    low: float
    high: float
    share: float  # of all predictions
    predicted: float  # mean probability
    happened: float  # share that came true


@dataclass(frozen=True)
class Reliability:
    """Predicted probabilities compared with outcomes."""

    predictions: int
    predicted: float  # mean probability
    happened: float
    log_loss: float  # mean, in nats
    equal_width: CalibrationError  # Guo et al.'s
    equal_mass: CalibrationError
    bins: tuple[ReliabilityBin, ...]  # of equal width, those without a prediction left out


def measure_reliability(
    p_N: Floats,
    happened_N: Floats,
    *,
    row_N: NDArray[np.int64] | None = None,
    log_loss: float | None = None,
    bins: int = BINS,
    options: Resampling | None = None,
) -> Reliability:
    """Compare probabilities with outcomes.

    The expected calibration error is the mean over bins, by their share of predictions, of the distance
    between mean probability and share of outcomes (Guo et al., arXiv:1706.04599, eq. 3). Even perfect
    probabilities show some, as outcomes scatter; resampling adds to it once more, so the interval is the
    basic bootstrap's, which takes that off (Davison and Hinkley, 1997, eq. 5.6), and reaches down to 0 where
    perfect probabilities would often show as much.

    Args:
        p_N: Probabilities.
        happened_N: 1 where the event happened, else 0; between them where ties leave it open.
        row_N: The row (0, 1, ...) that each prediction belongs to, for the resampling; default: each its own.
        log_loss: Mean log loss, where it is not that of these events.
        bins: How many.
        options: How often to draw again.

    Raises:
        DataError: No predictions, or one outside [0, 1].
    """
    options = options or Resampling()
    if not len(p_N) or not ((p_N >= 0) & (p_N <= 1)).all():
        raise DataError("reliability needs probabilities, each from 0 to 1, and at least one")
    row_N = np.arange(len(p_N)) if row_N is None else row_N
    even_N = np.minimum((p_N * bins).astype(np.int64), bins - 1)
    edges = np.unique(np.quantile(p_N, np.linspace(0, 1, bins + 1)[1:-1]))
    mass_N = np.searchsorted(edges, p_N, side="right")
    gap_N = happened_N - p_N
    return Reliability(
        len(p_N),
        float(p_N.mean()),
        float(happened_N.mean()),
        _log_loss(p_N, happened_N) if log_loss is None else log_loss,
        _calibration_error(p_N, gap_N, even_N, row_N, options),
        _calibration_error(p_N, gap_N, mass_N, row_N, options),
        tuple(_build_bin(p_N, happened_N, even_N == e, e, bins) for e in np.unique(even_N).tolist()),
    )


def _log_loss(p_N: Floats, happened_N: Floats) -> float:
    safe_N = np.clip(p_N, 1e-12, 1 - 1e-12)
    return float(-(happened_N * np.log(safe_N) + (1 - happened_N) * np.log(1 - safe_N)).mean())


def _build_bin(
    p_N: Floats, happened_N: Floats, in_N: NDArray[np.bool_], number: int, bins: int
) -> ReliabilityBin:
    share = float(in_N.mean())
    return ReliabilityBin(
        number / bins, (number + 1) / bins, share, float(p_N[in_N].mean()), float(happened_N[in_N].mean())
    )


def _calibration_error(
    p_N: Floats,
    gap_N: Floats,
    bin_N: NDArray[np.int64],
    row_N: NDArray[np.int64],
    options: Resampling,
) -> CalibrationError:
    value = float(_sum_of_gaps(gap_N, bin_N) / len(p_N))
    rows, bins = int(row_N.max()) + 1, int(bin_N.max()) + 1
    gap_QE = np.zeros((rows, bins))
    np.add.at(gap_QE, (row_N, bin_N), gap_N)
    size_Q = np.bincount(row_N, minlength=rows).astype(np.float64)
    drawn = [
        np.abs(times_BQ @ gap_QE).sum(1) / (times_BQ @ size_Q)
        for times_BQ in draw_counts(rows, options, room=2)
    ]
    low, high = (2 * value - q for q in np.quantile(np.concatenate(drawn), options.bounds[::-1]))
    random = np.random.default_rng([options.seed, 2])
    perfect = [_sum_of_gaps((random.random(len(p_N)) < p_N) - p_N, bin_N) for _ in range(_PERFECT_DRAWS)]
    perfect = np.array(perfect) / len(p_N)
    if value <= np.quantile(perfect, options.confidence):  # it may be perfect
        low = 0.0
    return CalibrationError(value, max(float(low), 0.0), max(float(high), value), float(perfect.mean()))


def _sum_of_gaps(gap_N: Floats, bin_N: NDArray[np.int64]) -> float:
    return float(np.abs(np.bincount(bin_N, weights=gap_N)).sum())


MAX_ROWS = 2000  # of a modality that scales are fitted on, and that they are measured on
MIN_ROWS = 20  # with fewer, a pair is left out: one row would move its scales
TIED = 1e-6


@dataclass(frozen=True)
class GalleryCalibration:
    """Calibration over a gallery: is the most probable item right?"""

    query: str
    gallery: str
    temperature: float
    gallery_size: int
    fitted: Reliability
    before: Reliability  # with CLIP's temperature instead of the fitted one


@dataclass(frozen=True)
class MatchCalibration:
    """Calibration of single pairs: is it a match? Measured on as many mismatches as matches."""

    modalities: tuple[str, str]
    scale: float
    bias: float
    fitted: Reliability


@dataclass(frozen=True)
class CalibrationResult:
    """Fitted scales and the reliability of their probabilities on other rows: `calibration.json`."""

    fitted_on: str
    measured_on: str
    by: str = "row"  # what counts as a match: the same row, or the same label
    settings: Resampling = field(default_factory=Resampling)
    scales: tuple[PairScales, ...] = ()
    choices: tuple[GalleryCalibration, ...] = ()
    matchings: tuple[MatchCalibration, ...] = ()

    @property
    def calibration(self) -> Calibration:
        """The scales as a bundle stores them."""
        return Calibration(fitted_on=self.fitted_on, by=self.by, pairs=self.scales)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON, with the conventions of the figures."""
        return {
            "fitted_on": self.fitted_on,
            "measured_on": self.measured_on,
            "by": self.by,
            "settings": {**asdict(self.settings), "bins": BINS, "most_rows": MAX_ROWS},
            "conventions": {
                "choice": "softmax over the gallery; is the most similar item right, ties shared",
                "match": "sigmoid(scale * cosine + bias); as many mismatches as matches",
                "interval": "basic bootstrap over queries; perfect: what perfect probabilities would show",
                "before": f"temperature {CLIP_TEMPERATURE:g}",
            },
            "scales": [pair.model_dump(mode="json") for pair in self.scales],
            "choices": [asdict(one) for one in self.choices],
            "matchings": [asdict(one) for one in self.matchings],
        }


def calibrate(
    embedded: Mapping[str, EmbeddedRows],
    fitted_on: str,
    labels: Sequence[Any] | None = None,
    *,
    max_rows: int = MAX_ROWS,
) -> Calibration:
    """Fit scales for every pair of modalities on rows that no stage has trained on.

    For each direction one temperature, which minimises the log loss of a softmax over the gallery
    (temperature scaling, Guo et al., arXiv:1706.04599, section 4.2), and for both together a scale and a
    bias of the log odds that two observations match (Platt scaling, 1999; matches and mismatches weigh the
    same, and the scale is not negative: probabilities never turn an order round).

    Args:
        embedded: Embeddings by modality, of rows used for nothing else.
        fitted_on: Description of those rows.
        labels: A class for each row, where any row of a class is a right answer.
        max_rows: Largest number of rows used; more are sampled.
    """
    pairs: list[PairScales] = []
    for one, two in combinations(embedded, 2):
        sides, reverse_sides = (
            build_pair_sides(embedded, *names, labels, max_rows=max_rows)
            for names in ((one, two), (two, one))
        )
        if sides is None or reverse_sides is None or len(sides.query_QD) < MIN_ROWS:
            continue
        similarity_QG, right_QG = _compare(sides)
        temperature = fit_temperature(similarity_QG, right_QG), fit_temperature(*_compare(reverse_sides))
        scale, bias = fit_scales(similarity_QG[right_QG], similarity_QG[~right_QG])
        rows = len(sides.query_QD)
        pairs.append(
            PairScales(modalities=(one, two), temperature=temperature, scale=scale, bias=bias, rows=rows)
        )
    by = "row" if labels is None else "label"
    return Calibration(fitted_on=fitted_on, by=by, pairs=tuple(pairs))


def calibrate_fuser(
    fuser: Fuser, embedded: Mapping[str, EmbeddedRows], *, max_rows: int = MAX_ROWS, seed: int = 0
) -> Fuser:
    """Return a fuser whose concentrations fit rows that no stage has trained on.

    Encoders fit the rows that they and the fuser were trained on better than others, so that its
    concentrations are too high. For each modality one factor is fitted, the inverse of the temperature of a
    softmax over the gallery, on rows of which every other modality is shown or hidden at random, at least one
    shown. A modality that fewer than 20 rows have keeps its factor.

    Args:
        fuser: The fuser.
        embedded: Embeddings by modality, of rows used for nothing else.
        max_rows: Largest number of rows used; more are sampled.
        seed: Of what is sampled and shown.
    """
    random, plain = np.random.default_rng([seed, 4]), replace(fuser, scales={})
    scales = dict(fuser.scales)
    known = [name for name in embedded if name in fuser.modalities]
    for wanted in known if len(known) > 1 else ():
        others = [name for name in known if name != wanted]
        row_Q = embedded[wanted].rows_Q
        has_QM = np.stack([np.isin(row_Q, embedded[name].rows_Q) for name in others], axis=1)
        row_Q, has_QM = row_Q[has_QM.any(1)], has_QM[has_QM.any(1)]
        if len(row_Q) > max_rows:
            drawn = np.sort(random.choice(len(row_Q), max_rows, replace=False))
            row_Q, has_QM = row_Q[drawn], has_QM[drawn]
        if len(row_Q) < MIN_ROWS:
            continue
        first_Q = (random.random(has_QM.shape) * has_QM).argmax(1)  # one of those that a row has
        shown_QM = has_QM & (random.random(has_QM.shape) < 0.5)
        shown_QM[np.arange(len(row_Q)), first_Q] = True
        given = {name: _spread(embedded[name], row_Q, has_QM[:, at]) for at, name in enumerate(others)}
        present = {name: torch.from_numpy(shown_QM[:, at]) for at, name in enumerate(others)}
        expected = plain.infer(given, [wanted], present)[wanted]
        logit_QG = expected.concentration_N[:, None] * (expected.mean_ND @ embedded[wanted].of(row_Q).T)
        temperature = fit_temperature(logit_QG.double().numpy(), np.eye(len(row_Q), dtype=bool))
        scales[wanted] = 1 / temperature
    return replace(fuser, scales=scales)


def _spread(embedded: EmbeddedRows, row_Q: NDArray[np.int64], has_Q: NDArray[np.bool_]) -> torch.Tensor:
    """Return the embeddings of some rows (Q, D), zeros where a row has none."""
    spread_QD = torch.zeros(len(row_Q), embedded.embedding_QD.shape[1])
    spread_QD[torch.from_numpy(has_Q)] = embedded.of(row_Q[has_Q]).float().cpu()
    return spread_QD


def measure_calibration(
    calibration: Calibration,
    embedded: Mapping[str, EmbeddedRows],
    measured_on: str,
    labels: Sequence[Any] | None = None,
    *,
    options: Resampling | None = None,
    max_rows: int = MAX_ROWS,
) -> CalibrationResult:
    """Measure the reliability of fitted probabilities on rows that were not used to fit them.

    Args:
        calibration: The fitted scales.
        embedded: Embeddings by modality of the other rows.
        measured_on: Description of the other rows.
        labels: A class for each row, where any row of a class is a right answer.
        options: How often to draw again.
        max_rows: Largest number of rows used; more are sampled.
    """
    options = options or Resampling()
    choices: list[GalleryCalibration] = []
    matchings: list[MatchCalibration] = []
    for scales in calibration.pairs:
        if not set(scales.modalities) <= set(embedded):
            continue
        for query, gallery in (scales.modalities, scales.modalities[::-1]):
            sides = build_pair_sides(embedded, query, gallery, labels, max_rows=max_rows)
            if sides is None:
                continue
            choices.append(_calibrate_gallery(sides, query, gallery, scales, options))
            if query == scales.modalities[0]:
                matchings.append(_calibrate_matches(sides, scales, options))
    return CalibrationResult(
        calibration.fitted_on,
        measured_on,
        calibration.by,
        options,
        calibration.pairs,
        tuple(choices),
        tuple(matchings),
    )


def _compare(sides: PairSides) -> tuple[Floats, NDArray[np.bool_]]:
    return cosine(sides.query_QD, sides.gallery_GD).double().numpy(), sides.right_QG


def _calibrate_gallery(
    sides: PairSides, query: str, gallery: str, scales: PairScales, options: Resampling
) -> GalleryCalibration:
    similarity_QG, right_QG = cosine(sides.query_QD, sides.gallery_GD).double(), sides.right_QG
    value_QG = similarity_QG.numpy()
    first_QG = value_QG >= value_QG.max(1, keepdims=True) - TIED
    # Of tied items any may come first: the share of right ones is how often the first is right.
    happened_Q = (first_QG & right_QG).sum(1) / first_QG.sum(1)
    temperature = scales.temperature[scales.modalities.index(query)]

    def with_(one: float) -> Reliability:
        p_Q = softmax(similarity_QG, one).max(1).values.clamp(0, 1).numpy()
        loss = log_loss(value_QG, right_QG, one)
        return measure_reliability(p_Q, happened_Q, log_loss=loss, options=options)

    return GalleryCalibration(
        query, gallery, temperature, len(sides.gallery_GD), with_(temperature), with_(CLIP_TEMPERATURE)
    )


def _calibrate_matches(sides: PairSides, scales: PairScales, options: Resampling) -> MatchCalibration:
    """Measure one random match and one random mismatch of each query."""
    similarity_QG, right_QG = cosine(sides.query_QD, sides.gallery_GD).double(), sides.right_QG
    p_QG = probabilities(similarity_QG, scales, scales.modalities[0]).numpy()
    drawn_pairs = zip(*_draw_pairs(p_QG, right_QG, options.seed), strict=True)
    p_N, happened_N, row_N = (np.array(part) for part in drawn_pairs)
    fitted = measure_reliability(p_N, happened_N.astype(np.float64), row_N=row_N, options=options)
    return MatchCalibration(scales.modalities, scales.scale, scales.bias, fitted)


def _draw_pairs(p_QG: Floats, right_QG: NDArray[np.bool_], seed: int) -> Iterator[tuple[float, bool, int]]:
    random = np.random.default_rng([seed, 3])
    full = [row for row, right_G in enumerate(right_QG) if right_G.any() and not right_G.all()]
    for number, row in enumerate(full):
        for right in (True, False):
            yield float(p_QG[row, random.choice(np.flatnonzero(right_QG[row] == right))]), right, number
