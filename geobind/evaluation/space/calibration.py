"""Fit what makes similarities probabilities on one split, and see on another how good they are."""

# Q queries, G gallery items, P matches, M mismatches

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind.evaluation.embedded import Embedded, Sides, sides
from geobind.evaluation.ranking.resampling import Resampling
from geobind.evaluation.space.fitting import fitted_scales, fitted_temperature, log_loss
from geobind.evaluation.space.reliability import BINS, Reliability, reliability
from geobind.scoring import CLIP_TEMPERATURE, Calibration, PairScales, cosine, probabilities, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MOST_ROWS = 2000  # of a modality that scales are fitted on, and that they are measured on
FEWEST_ROWS = 20  # with fewer, a pair is left out: one row would move its scales
TIED = 1e-6


@dataclass(frozen=True)
class Choice:
    """Probabilities over a gallery: is the item with the largest one right?"""

    query: str
    gallery: str
    temperature: float
    gallery_size: int
    fitted: Reliability
    before: Reliability  # with CLIP's temperature instead of the fitted one


@dataclass(frozen=True)
class Matching:
    """Probabilities of single pairs: is it a match? As many mismatches as matches are asked."""

    modalities: tuple[str, str]
    scale: float
    bias: float
    fitted: Reliability


@dataclass(frozen=True)
class Calibrated:
    """Fitted scales, and how good the probabilities that they give are on other rows."""

    calibration: Calibration
    measured_on: str
    choices: tuple[Choice, ...]
    matchings: tuple[Matching, ...]
    options: Resampling

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, with the conventions that the figures follow."""
        return {
            "fitted_on": self.calibration.fitted_on,
            "measured_on": self.measured_on,
            "by": self.calibration.by,
            "settings": {**asdict(self.options), "bins": BINS, "most_rows": MOST_ROWS},
            "conventions": {
                "choice": "softmax over the gallery; is the most similar item right, ties shared",
                "match": "sigmoid(scale * cosine + bias); as many mismatches as matches",
                "interval": "basic bootstrap over queries; perfect: what perfect probabilities would show",
                "before": f"temperature {CLIP_TEMPERATURE:g}",
            },
            "scales": [pair.model_dump(mode="json") for pair in self.calibration.pairs],
            "choices": [asdict(one) for one in self.choices],
            "matchings": [asdict(one) for one in self.matchings],
        }


def calibrate(
    found: Mapping[str, Embedded],
    fitted_on: str,
    labels: Sequence[Any] | None = None,
    *,
    most: int = MOST_ROWS,
) -> Calibration:
    """Fit scales for every pair of modalities on rows that no stage has trained on.

    For each direction one temperature, which makes the log loss of a softmax over the gallery least
    (temperature scaling, Guo et al., arXiv:1706.04599, section 4.2), and for both together a scale and a
    bias of the log odds that two observations match (Platt scaling, 1999; matches and mismatches weigh the
    same, and the scale is not negative: probabilities never turn an order round).

    Args:
        found: Embeddings by modality, of rows that are used for nothing else.
        fitted_on: What those rows are, in words.
        labels: A class for each row, where any row of a class is a right answer.
        most: From more rows than this, so many are drawn.
    """
    pairs: list[PairScales] = []
    for one, two in combinations(found, 2):
        there, back = (sides(found, *names, labels, most=most) for names in ((one, two), (two, one)))
        if there is None or back is None or len(there.query_QD) < FEWEST_ROWS:
            continue
        similarity_QG, right_QG = _compared(there)
        temperature = fitted_temperature(similarity_QG, right_QG), fitted_temperature(*_compared(back))
        scale, bias = fitted_scales(similarity_QG[right_QG], similarity_QG[~right_QG])
        rows = len(there.query_QD)
        pairs.append(
            PairScales(modalities=(one, two), temperature=temperature, scale=scale, bias=bias, rows=rows)
        )
    by = "row" if labels is None else "label"
    return Calibration(fitted_on=fitted_on, by=by, pairs=tuple(pairs))


def measure_calibration(
    calibration: Calibration,
    found: Mapping[str, Embedded],
    measured_on: str,
    labels: Sequence[Any] | None = None,
    *,
    options: Resampling | None = None,
    most: int = MOST_ROWS,
) -> Calibrated:
    """See how good fitted probabilities are on rows that they were not fitted on.

    Args:
        calibration: What was fitted.
        found: Embeddings by modality of the other rows.
        measured_on: What those are, in words.
        labels: A class for each row, where any row of a class is a right answer.
        options: How often to draw again.
        most: From more rows than this, so many are drawn.
    """
    options = options or Resampling()
    choices: list[Choice] = []
    matchings: list[Matching] = []
    for scales in calibration.pairs:
        if not set(scales.modalities) <= set(found):
            continue
        for query, gallery in (scales.modalities, scales.modalities[::-1]):
            there = sides(found, query, gallery, labels, most=most)
            if there is None:
                continue
            choices.append(_choice(there, query, gallery, scales, options))
            if query == scales.modalities[0]:
                matchings.append(_matching(there, scales, options))
    return Calibrated(calibration, measured_on, tuple(choices), tuple(matchings), options)


def _compared(there: Sides) -> tuple[Floats, NDArray[np.bool_]]:
    return cosine(there.query_QD, there.gallery_GD).double().numpy(), there.right_QG


def _choice(there: Sides, query: str, gallery: str, scales: PairScales, options: Resampling) -> Choice:
    similarity_QG, right_QG = cosine(there.query_QD, there.gallery_GD).double(), there.right_QG
    value_QG = similarity_QG.numpy()
    first_QG = value_QG >= value_QG.max(1, keepdims=True) - TIED
    # Of tied items any may come first: the share of right ones is how often the first is right.
    happened_Q = (first_QG & right_QG).sum(1) / first_QG.sum(1)
    temperature = scales.temperature[scales.modalities.index(query)]

    def with_(one: float) -> Reliability:
        p_Q = softmax(similarity_QG, one).max(1).values.clamp(0, 1).numpy()
        loss = log_loss(value_QG, right_QG, one)
        return reliability(p_Q, happened_Q, log_loss=loss, options=options)

    return Choice(
        query, gallery, temperature, len(there.gallery_GD), with_(temperature), with_(CLIP_TEMPERATURE)
    )


def _matching(there: Sides, scales: PairScales, options: Resampling) -> Matching:
    """Ask of each query one of its matches and one mismatch, drawn."""
    similarity_QG, right_QG = cosine(there.query_QD, there.gallery_GD).double(), there.right_QG
    p_QG = probabilities(similarity_QG, scales, scales.modalities[0]).numpy()
    asked = zip(*_asked(p_QG, right_QG, options.seed), strict=True)
    p_N, happened_N, row_N = (np.array(part) for part in asked)
    fitted = reliability(p_N, happened_N.astype(np.float64), row_N=row_N, options=options)
    return Matching(scales.modalities, scales.scale, scales.bias, fitted)


def _asked(p_QG: Floats, right_QG: NDArray[np.bool_], seed: int) -> Iterator[tuple[float, bool, int]]:
    random = np.random.default_rng([seed, 3])
    full = [row for row, right_G in enumerate(right_QG) if right_G.any() and not right_G.all()]
    for number, row in enumerate(full):
        for right in (True, False):
            yield float(p_QG[row, random.choice(np.flatnonzero(right_QG[row] == right))]), right, number
