"""Draw observations on a sheet, each by what it is: images, sounds as spectrograms, texts, numbers."""

# C channels, H height, W width, T samples

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from geobind.data.files import open_binary
from geobind.data.inspecting import kind_of
from geobind.data.order import seeded
from geobind.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from geobind.data.table import Table
    from geobind.modality import Modality, Pair

_MOST_ROWS = 30
_SIDE = 1.7  # inches of a cell
_RATE = 16_000
_SHORTEST = 1024  # samples that make a spectrogram
_DECIBELS = 70  # shown below the loudest
_LETTERS = 160
_MOST_TOKENS = 60


@dataclass(frozen=True)
class Shown:
    """One cell of a sheet: what is drawn and what stands above it."""

    drawn: Any  # a raw input, or what `prepare` made
    title: str = ""


def sheet_of_table(table: Table, rows: int = 6, seed: int = 0) -> bytes:
    """Draw some rows of a table, one row each: a column for each modality; PNG bytes.

    Raises:
        DataError: More than 30 rows are asked for.
    """
    cells: list[list[Shown]] = []
    for row in _drawn_rows(len(table), rows, seed):
        shown: list[Shown] = []
        for name, column in table.columns.items():
            try:
                raw = column[int(table.rows_N[row])]
            except DataError as error:
                raw = error
            shown.append(Shown(raw, f"{name}: {table.keys[row]}" if not shown else name))
        cells.append(shown)
    return _sheet(cells)


def sheet_of_stage(
    pairs: Sequence[Pair],
    sides: Sequence[tuple[Modality, bool]],
    rows: int = 4,
    seed: int = 0,
    draws: int = 3,
) -> bytes:
    """Draw what a stage sees of some pairs: the raw input, as it is embedded, and as it is trained on.

    Args:
        pairs: The pairs of the stage.
        sides: The anchor and the other modality, each with whether the stage trains it: the prepared input of
            one that is not trained is never augmented.
        rows: Pairs to draw.
        seed: Which pairs, and which augmentations.
        draws: Augmented examples of each trained side.

    Returns:
        PNG bytes.

    Raises:
        DataError: An input cannot be prepared, or more than 30 rows are asked for.
    """
    cells: list[list[Shown]] = []
    for row in _drawn_rows(len(pairs), rows, seed):
        pair = pairs[row]
        shown: list[Shown] = []
        for (modality, trained), raw in zip(sides, (pair.anchor, pair.other), strict=True):
            first = cast("list[Any]", raw)[0] if isinstance(raw, list) else raw
            shown.append(Shown(first, f"{modality.name}: {pair.key}" if not shown else modality.name))
            shown.append(Shown(modality.prepare(first), "prepared"))
            for draw in range(draws if trained else 0):
                with seeded(seed, row, draw):
                    shown.append(Shown(modality.prepare(first, training=True), f"training {draw + 1}"))
        cells.append(shown)
    return _sheet(cells)


def _drawn_rows(count: int, rows: int, seed: int) -> list[int]:
    if not 1 <= rows <= _MOST_ROWS:
        raise DataError(f"a sheet shows 1 to {_MOST_ROWS} rows, not {rows}")
    return sorted(int(row) for row in np.random.default_rng(seed).permutation(count)[:rows])


def _sheet(cells: Sequence[Sequence[Shown]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(cells[0])
    figure = Figure(figsize=(_SIDE * columns, (_SIDE + 0.25) * len(cells)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cells), columns, squeeze=False)
    for row, shown in enumerate(cells):
        for axis, cell in zip(axes[row], shown, strict=True):
            axis.set_axis_off()
            axis.set_title(cell.title[:40], fontsize=6)
            _draw(axis, cell.drawn)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def _draw(axis: Axes, drawn: Any) -> None:
    if isinstance(drawn, list):
        drawn = cast("list[Any]", drawn)[0]
    if isinstance(drawn, Mapping):  # the largest tensor of several says most
        drawn = max(cast("Mapping[str, Any]", drawn).values(), key=lambda tensor: tensor.numel())
    try:
        if drawn is None or isinstance(drawn, str | DataError):
            _write(axis, "missing" if drawn is None else str(drawn))
        elif isinstance(drawn, Path | bytes):
            _draw_encoded(axis, drawn)
        elif isinstance(drawn, tuple):
            samples, rate = cast("tuple[Any, int]", drawn)
            _draw_sound(axis, (samples, rate))
        else:
            draw_array(axis, np.asarray(drawn), last=isinstance(drawn, np.ndarray))
    except DataError as error:
        _write(axis, str(error))


def _draw_encoded(axis: Axes, raw: Path | bytes) -> None:
    from geobind.data.readers import read_image, read_text

    with open_binary(raw) as file:
        kind = kind_of(file.read(16))
    if kind == "image":
        draw_array(axis, read_image(raw).numpy(), last=False)
    elif kind == "sound":
        _draw_sound(axis, raw)
    else:
        _write(axis, read_text(raw))


def _draw_sound(axis: Axes, raw: Any) -> None:
    from geobind.data.readers import read_audio
    from geobind.toyearth.sheet import spectrogram

    samples_T = read_audio(raw, _RATE).numpy()
    loud_FW = spectrogram(np.pad(samples_T, (0, max(0, _SHORTEST - len(samples_T)))))
    axis.imshow(loud_FW, origin="lower", aspect="auto", cmap="magma", vmin=float(loud_FW.max()) - _DECIBELS)


def draw_array(axis: Axes, array: NDArray[Any], *, last: bool) -> None:
    """Draw numbers by their shape alone: pictures with 1 or 3 channels, planes, curves, tokens.

    Args:
        axis: Where to draw.
        array: (C, H, W), (H, W) or (T,).
        last: The channels of three axes come last, as in arrays of images; they come first in tensors.
    """
    array = array[0] if array.ndim > 3 else array
    if array.ndim == 3:
        array = array if last else array.transpose(1, 2, 0)
        if array.shape[2] > 1 or last or array.dtype == np.uint8:
            axis.imshow(_visible(array[..., :3] if array.shape[2] >= 3 else array[..., 0]), cmap="gray")
            return
        array = array[..., 0]  # one plane of any other values is a spectrogram rather than a picture
    if array.ndim == 2:
        axis.imshow(array, origin="lower", aspect="auto", cmap="magma")
    elif np.issubdtype(array.dtype, np.integer):
        ends = np.trim_zeros(array.ravel(), "b")[:_MOST_TOKENS]
        _write(axis, " ".join(map(str, ends)))
    else:
        axis.plot(np.arange(array.size), array.ravel(), linewidth=0.6)


def _visible(image: NDArray[Any]) -> NDArray[Any]:
    """Bring values of any unit between 0 and 1, by the percentiles that satellite images are shown with."""
    if image.dtype == np.uint8:
        return image
    low, high = np.percentile(image, (2, 98))
    return np.clip((image - low) / max(float(high - low), 1e-9), 0, 1)


def _write(axis: Axes, text: str) -> None:
    short = text if len(text) <= _LETTERS else text[:_LETTERS] + " ..."
    axis.text(
        0, 1, textwrap.fill(short, 28), fontsize=6, va="top", transform=axis.transAxes, parse_math=False
    )
