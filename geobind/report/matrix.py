"""The retrieval matrix: every ordered pair of modalities in one square, trained and emergent told apart."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from geobind.report.figures import INK, MUTED, SERIES, Panel
from geobind.report.left import Measured, PairDone, Retrieved
from geobind.utils.formatting import number

MAIN = ("R@1", "R@10", "R@1%", "median_rank", "label_mAP", "place_nDCG")
LOWER_IS_BETTER = ("median_rank", "mean_rank")
TITLES = {
    "median_rank": "median rank",
    "mean_rank": "mean rank",
    "label_mAP": "label mAP",
    "label_nDCG": "label nDCG",
    "place_nDCG": "place nDCG",
}
_FEW = 50  # with fewer gallery items than this, one in ten finds its match by chance
_WASH = LinearSegmentedColormap.from_list("wash", ["#ffffff", SERIES[0]])


class Square(NamedTuple):
    """One cell of the matrix."""

    pair: PairDone
    measured: Measured


def headline(retrieved: Retrieved) -> str:
    """The measure that the matrix shows: recall@10, or recall@1 in small galleries."""
    small = min((row.gallery_size for row in retrieved.rows), default=0) < _FEW
    wanted = ("R@1", "R@10") if small else ("R@10", "R@1")
    there = retrieved.rows[0].metrics if retrieved.rows else {}
    return next((name for name in wanted if name in there), next(iter(there), ""))


def explained(measure: str) -> str:
    """Say what a cell of the matrix holds."""
    title = TITLES.get(measure, measure)
    if not measure.startswith("R@"):
        return f"{title} of queries (rows) in a gallery (columns)."
    first = measure.removeprefix("R@")
    where = f"in the first {first}" if first.endswith("%") else f"among the first {first}"
    return f"{title}: the share of queries (rows) whose right answer is {where} of the gallery (columns)."


def beats_chance(measure: str, measured: Measured) -> bool:
    """Whether the whole interval lies on the better side of chance."""
    if measure in LOWER_IS_BETTER:
        return measured.high < measured.chance
    return measured.low > measured.chance


def squares(retrieved: Retrieved, measure: str) -> dict[tuple[str, str], Square]:
    """The cells of the matrix, by query and gallery."""
    return {
        (row.query, row.gallery): Square(row, row.metrics[measure])
        for row in retrieved.rows
        if measure in row.metrics
    }


def matrix_panel(retrieved: Retrieved, measure: str) -> Panel:
    """The matrix as a drawing, for slides and papers; a page holds it as a table."""
    names = retrieved.modalities
    cells = squares(retrieved, measure)

    def draw(axes: Axes) -> None:
        for (query, gallery), (pair, measured) in cells.items():
            corner = names.index(gallery), names.index(query)
            trained = pair.mark == "trained"
            face = _WASH(0.75 * min(max(measured.value, 0.0), 1.0))
            square = Rectangle(
                (corner[0] + 0.04, corner[1] + 0.04), 0.92, 0.92, facecolor=face, edgecolor=INK
            )
            square.set(linewidth=1.4 if trained else 0.8, linestyle="-" if trained else ":")
            axes.add_patch(square)
            middle = corner[0] + 0.5
            axes.text(middle, corner[1] + 0.45, number(measured.value), ha="center", va="center", size=11)
            chance = f"chance {number(measured.chance)}"
            axes.text(middle, corner[1] + 0.72, chance, ha="center", va="center", size=7, color=MUTED)
        axes.set(xlim=(0, len(names)), ylim=(len(names), 0), aspect="equal")
        axes.set_xticks([place + 0.5 for place in range(len(names))], names)
        axes.set_yticks([place + 0.5 for place in range(len(names))], names)
        axes.set_title(f"{TITLES.get(measure, measure)}; solid frame: trained, dotted: emergent")
        axes.set_xlabel("gallery")
        axes.set_ylabel("query")
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    side = 1.4 + 0.95 * len(names)
    return Panel("matrix", draw, side + 0.4, side, f"{measure} between {', '.join(names)}")
