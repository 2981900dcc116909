"""The shared space in two dimensions: what lies where, and whether what belongs together lies together."""

# N embeddings of all modalities, D width

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from geobind.report.figures import MARKERS, MUTED, SERIES, SIGNS, Panel
from geobind.report.held_out import HeldOut

MOST_POINTS = 250  # of a modality
LINES = 12  # places whose observations are joined


def principal(embedding_ND: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project onto the two directions of largest variance.

    Returns:
        The projections (N, 2), and the share of the variance along each direction (2,).
    """
    centred_ND = embedding_ND - embedding_ND.mean(axis=0)
    _, size_K, direction_KD = np.linalg.svd(centred_ND, full_matrices=False)
    # The sign of a direction is arbitrary; the largest component positive makes it the same everywhere.
    largest = np.abs(direction_KD[:2]).argmax(axis=1)
    sign_2 = np.sign(direction_KD[np.arange(2), largest])
    return (
        centred_ND @ (direction_KD[:2] * sign_2[:, None]).T,
        size_K[:2] ** 2 / max(float((size_K**2).sum()), 1e-30),
    )


class Scatter(NamedTuple):
    """The drawing, and what its key and its caption say."""

    panel: Panel
    key: list[tuple[str, int, str]]  # sign, number of the page's series colour, modality
    shares: NDArray[np.float64]  # of the variance, along the two directions
    places: int  # whose observations are joined


def scatter(held_out: HeldOut) -> Scatter | None:
    """Draw the embeddings of all modalities, and lines between those of the same place for a few places."""
    names = list(held_out.spaces)
    chosen = {name: _spread(len(space.rows_Q)) for name, space in held_out.spaces.items()}
    parts = [held_out.spaces[name].embedding_QD.numpy()[chosen[name]] for name in names]
    if sum(map(len, parts)) < 3:
        return None
    at_N2, share_2 = principal(np.concatenate(parts).astype(np.float64))
    where = dict(zip(names, np.split(at_N2, np.cumsum([len(part) for part in parts])[:-1]), strict=True))
    places = _joined({name: held_out.spaces[name].rows_Q[chosen[name]] for name in names}, where)

    def draw(axes: Axes) -> None:
        for line in places:
            axes.plot(line[:, 0], line[:, 1], color=MUTED, lw=0.8, alpha=0.75, zorder=3)
        for place, name in enumerate(names):
            look = {"marker": MARKERS[place % len(MARKERS)], "c": SERIES[place % len(SERIES)]}
            axes.scatter(*where[name].T, s=13, alpha=0.75, linewidths=0, label=name, **look)
        axes.tick_params(labelbottom=False, labelleft=False)
        axes.grid(visible=False)
        axes.set_aspect("equal", adjustable="datalim")  # or distances would lie
        for spine in axes.spines.values():
            spine.set_visible(False)

    alt = (
        f"scatter of {sum(map(len, parts))} embeddings of {', '.join(names)} in the two directions of "
        f"largest variance, with lines between the observations of {len(places)} places"
    )
    key = [(SIGNS[n % len(SIGNS)], n % len(SERIES), name) for n, name in enumerate(names)]
    return Scatter(Panel("space", draw, 5.4, 4.0, alt, legend=True), key, share_2, len(places))


def _spread(count: int) -> NDArray[np.int64]:
    """At most `MOST_POINTS` numbers, evenly spread over the rows."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(np.int64))


def _joined(
    rows: dict[str, NDArray[np.int64]], where: dict[str, NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """For a few rows that have several modalities, the points of their embeddings."""
    held: dict[int, list[NDArray[np.float64]]] = {}
    for name, there in rows.items():
        for place, row in enumerate(there):
            held.setdefault(int(row), []).append(where[name][place])
    several = [np.stack(points) for _, points in sorted(held.items()) if len(points) > 1]
    step = max(1, len(several) // LINES)
    return several[::step][:LINES]
