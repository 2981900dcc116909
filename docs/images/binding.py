"""Draw binding.png, the README's picture, from the folder of a run of recipes/three_modal.yaml.

python docs/images/binding.py runs/three_modal docs/images/binding.png
"""

from __future__ import annotations

import io
import json
import sys
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from PIL import Image

from geobind.data.contact_sheet import spectrogram
from geobind_toyearth import render_photos, render_sounds, render_tiles, write_captions
from geobind_toyearth.contact_sheet import typical_places

NAMES = ("text", "ground_image", "satellite", "audio")
INK, EMERGENT = "#1b1f24", "#b3420a"
WIDE, GAP, TOP = 1.75, 0.55, 2.75  # inches


def main(run: Path, out: Path) -> None:
    """Draw observations of one place side by side, and between every two how well they find each other."""
    rows = json.loads((run / "retrieval.json").read_text(encoding="utf-8"))["rows"]
    recall = {frozenset((row["query"], row["gallery"])): [] for row in rows}
    marks = {frozenset((row["query"], row["gallery"])): row["mark"] for row in rows}
    for row in rows:
        recall[frozenset((row["query"], row["gallery"]))].append(row["metrics"]["R@10"]["value"])
    chance = rows[0]["metrics"]["R@10"]["chance"]

    figure = Figure(figsize=(4 * WIDE + 3 * GAP + 0.2, 3.75), dpi=110)
    FigureCanvasAgg(figure)
    page = figure.add_axes((0, 0, 1, 1))
    page.set_xlim(0, figure.get_figwidth())
    page.set_ylim(0, figure.get_figheight())
    page.set_axis_off()
    _observations(figure)
    centre = {name: 0.1 + WIDE / 2 + i * (WIDE + GAP) for i, name in enumerate(NAMES)}
    for pair, values in recall.items():
        left, right = sorted(pair, key=NAMES.index)
        figures = f"{sum(values) / len(values):.2f}"
        _arc(page, centre[left], centre[right], figures, marks[pair] == "trained")
    page.text(0.1, 3.65, "Four observations of one place", size=9.5, color=INK, va="top")
    told = f"R@10 among {rows[0]['gallery_size']} unseen places, mean of both directions; chance {chance:.2f}"
    page.text(0.1, 0.08, told, size=9, color=INK)
    shot = io.BytesIO()
    figure.savefig(shot, format="png")
    # A palette halves the file: the camera's grain does not compress.
    Image.open(shot).convert("RGB").quantize(256).save(out, format="PNG", optimize=True)


def _observations(figure: Figure) -> None:
    places = typical_places().take([0])
    boxes = [figure.add_axes(_box(figure, i)) for i in range(4)]
    for box, name in zip(boxes, NAMES, strict=True):
        box.set_xticks([])
        box.set_yticks([])
        box.set_title(name, size=9.5, color=INK, family="monospace")
    words, photo, tile, sound = boxes
    caption = textwrap.fill(write_captions(places, 0, count=1)[0][0], 22)
    words.text(0.5, 0.5, caption, size=8, ha="center", va="center", transform=words.transAxes)
    photo.imshow(render_photos(places, 0, size=192)[0], aspect="auto")
    tile.imshow(render_tiles(places, 0, size=192, gsd=10 / 3)[0], aspect="auto")
    levels = spectrogram(render_sounds(places, 0, rate=16_000)[0])
    sound.imshow(levels, origin="lower", aspect="auto", cmap="magma", vmin=-75, vmax=-5)


def _box(figure: Figure, i: int) -> tuple[float, float, float, float]:
    wide, high = figure.get_figwidth(), figure.get_figheight()
    return (0.1 + i * (WIDE + GAP)) / wide, (TOP - 1.15) / high, WIDE / wide, 1.55 / high


def _arc(page: Axes, left: float, right: float, figures: str, trained: bool) -> None:
    """Join two observations that a stage trained by a line, two that no stage did by a dotted arc below."""
    if trained:
        page.plot([left + WIDE / 2, right - WIDE / 2], [TOP - 0.35] * 2, color=INK, lw=2.2)
        page.text((left + right) / 2, TOP - 0.27, figures, size=10, ha="center", va="bottom", color=INK)
        page.text((left + right) / 2, TOP - 0.45, "trained", size=7, ha="center", va="top", color=INK)
        return
    far = right - left > 2.5 * (WIDE + GAP)
    start, depth = TOP - 1.2, 1.15 if far else 0.6
    inset = 0.25 if far else 0.0
    arc = FancyArrowPatch(
        (left - inset, start),
        (right + inset, start),
        arrowstyle="-",
        connectionstyle=f"arc3,rad={1.9 * depth / (right - left + 2 * inset):.3f}",
        linestyle=(0, (1.5, 2)),
        color=EMERGENT,
        lw=2,
    )
    page.add_patch(arc)
    page.text(
        (left + right) / 2,
        start - depth + 0.02,
        f"{figures} never trained together",
        size=9,
        ha="center",
        va="center",
        color=EMERGENT,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
