"""How results look in a notebook: a matrix of retrieval as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class RetrievalCell(NamedTuple):
    """One direction of retrieval in a matrix."""

    query: str
    gallery: str
    mark: str
    value: float
    chance: float


def render_matrix(title: str, metric: str, names: Sequence[str], cells: Iterable[RetrievalCell]) -> str:
    """Return a matrix of retrieval as an HTML table: queries down, galleries across, pairs by their mark.

    Trained pairs are bold; the mark and the chance level stand in the tooltip of a cell.
    """
    by_pair = {(cell.query, cell.gallery): cell for cell in cells}
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = [f"<p>{escape(title)}</p>"]
    if by_pair:
        lines.append(f"<table><thead><tr><th>{escape(metric)}: query, gallery</th>{head}</tr></thead><tbody>")
        for query in names:
            row = "".join(_render_cell(by_pair.get((query, gallery))) for gallery in names)
            lines.append(f"<tr><th>{escape(query)}</th>{row}</tr>")
        lines.append("</tbody></table>")
    return "\n".join(lines)


def _render_cell(cell: RetrievalCell | None) -> str:
    if cell is None:
        return "<td></td>"
    shown = f"{cell.value:.3g}"
    shown = f"<b>{shown}</b>" if cell.mark == "trained" else shown
    return f'<td title="{escape(cell.mark)}, chance {cell.chance:.3g}">{shown}</td>'


def choose_metric(known: Iterable[str]) -> str:
    """Return the metric that a matrix shows: R@10 where there is one, else the first."""
    listed = list(known)
    return "R@10" if "R@10" in listed else next(iter(listed), "")
