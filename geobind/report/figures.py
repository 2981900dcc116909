"""Figures that are drawn once and kept twice: as SVG that follows the page's colours, and as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2125", "#5b636b", "#d8dce0"
# Okabe and Ito's palette, which colour-blind people can tell apart, without its yellow.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7d7d7d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIGNS = ("●", "■", "▲", "◆", "▼", "✚", "✖")  # the markers as letters, for keys outside of a drawing
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
# From found first to far off: blue to rust, told apart by shape as well.
BANDS = ("#08519c", "#4f9bd0", "#d99a3d", "#a63d17")

# Each colour of a figure becomes a variable of the style sheet, which has a light and a dark value for it.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--rule",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
    **{colour: f"--band-{number}" for number, colour in enumerate(BANDS)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with dollar signs is a name
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

Draw = Callable[[Axes], None]


class Panel(NamedTuple):
    """One drawing: what to draw, how large in inches, and what to call it for those who cannot see it."""

    name: str  # unique in a page
    draw: Draw
    width: float
    height: float
    alt: str
    title: str = ""  # for a PNG, which stands alone; a page has headings and captions
    legend: bool = False  # for a PNG as well


def svg(panel: Panel) -> Markup:
    """Draw a panel as SVG to be put into a page."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": panel.name}):
        figure = _figure([panel], 1, alone=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), panel)


def png(panels: list[Panel], columns: int, dpi: int = 144) -> bytes:
    """Draw panels side by side as one PNG on white."""
    with mpl.rc_context({**_STYLE, "figure.facecolor": "white"}):
        buffer = io.BytesIO()
        _figure(panels, columns, alone=True).savefig(
            buffer, format="png", dpi=dpi, metadata={"Software": None}
        )
    return buffer.getvalue()


def _figure(panels: list[Panel], columns: int, *, alone: bool) -> Figure:
    rows = -(-len(panels) // columns)
    legend = 0.5 if alone and any(panel.legend for panel in panels) else 0.0
    figure = Figure(
        figsize=(columns * max(p.width for p in panels), rows * (max(p.height for p in panels) + legend)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, axis in zip(panels, axes, strict=False):
        panel.draw(axis)
        if alone and panel.title:
            axis.set_title(panel.title)
        if alone and panel.legend:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=4, handletextpad=0.1)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _for_page(text: str, panel: Panel) -> Markup:
    """Strip what a page does not want of an SVG file, and make its ids and colours the page's own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)  # matplotlib repeats each label as a comment
    own = re.sub(r"\W", "-", panel.name)
    text = re.sub(r'\bid="', f'id="{own}-', text)
    text = text.replace("url(#", f"url(#{own}-").replace('href="#', f'href="#{own}-')
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": var({variable})")
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _opening(panel), text, count=1)
    return Markup(text)


def _opening(panel: Panel) -> str:
    alt = str(Markup.escape(panel.alt)).replace("\\", r"\\")
    return rf'<svg viewBox="\1" role="img" aria-label="{alt}">'
