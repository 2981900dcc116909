"""Contact sheets of raw and prepared observations."""

# C channels, H height, W width, T samples, M mel bands, F frames

from __future__ import annotations

import io
import random
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

import numpy as np

from geobind.data.augmentation import Geometry, draw_geometry, share_geometry
from geobind.data.inspect import detect_kind
from geobind.data.readers.files import open_binary
from geobind.data.seeds import seeded_rng
from geobind.data.table import first_observation
from geobind.errors import DataError
from geobind.modality import Place, choose_picture
from geobind.utils.arrays import is_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from geobind.data.table import Row, Table
    from geobind.modality import Modality


Kind = Literal["image", "sound", "words", "numbers"]
Limits = tuple[float, float]  # the values that are shown black and white

_RATE = 16_000
_SHORTEST = 1024  # samples that make a spectrogram
_DECIBELS = 70  # shown below the loudest
_LETTERS = 160
_MOST_TOKENS = 60
_FIRST_TOKENS = 3  # before the words that they are of


def detect_raw_kind(raw: Any) -> Kind:
    """Detect what kind of observation a raw input is.

    Raises:
        DataError: It is a file that cannot be read.
    """
    if isinstance(raw, str):
        return "words"
    if isinstance(raw, Path | bytes):
        with open_binary(raw) as file:
            kind = detect_kind(file.read(16))
        return kind if kind != "unknown" else "words"
    if isinstance(raw, Place):
        return "words"
    if isinstance(raw, tuple):
        return "sound"  # samples, and their rate
    return "image" if getattr(raw, "ndim", 3) in (2, 3) else "numbers"


def draw_raw(axis: Axes, raw: Any) -> None:
    """Draw a raw input, or write why it is missing or broken."""
    try:
        if raw is None or isinstance(raw, DataError):
            return write_text(axis, "missing" if raw is None else str(raw))
        kind = detect_raw_kind(raw)
        if kind == "words":
            write_text(axis, _read_text(raw))
        elif kind == "sound":
            _draw_sound(axis, raw)
        elif isinstance(raw, Path | bytes):
            from geobind.data.readers.images import read_image

            draw_array(axis, read_image(raw).numpy(), last=False)
        else:
            draw_array(axis, np.asarray(raw), last=not is_tensor(raw))  # a tensor begins with its channels
    except DataError as error:
        write_text(axis, str(error))


def draw_prepared(axis: Axes, prepared: Any, raw: Any, limits: Limits | None = None) -> None:
    """Draw a prepared input.

    Args:
        axis: Where to draw.
        prepared: A tensor or a mapping of tensors, of which the largest is drawn.
        raw: What it was made of: a sound's picture is a spectrogram, a text's words follow its tokens.
        limits: What to show black and white, if the values are not of 8 bits; by default the image's own,
            which would hide a change of brightness.
    """
    if isinstance(prepared, DataError):
        return write_text(axis, str(prepared))
    if isinstance(prepared, Mapping):
        prepared = max(cast("Mapping[str, Any]", prepared).values(), key=lambda tensor: tensor.numel())
    array, kind = np.asarray(prepared), detect_raw_kind(raw)
    if kind == "sound" and array.ndim >= 2:
        draw_spectrograms(axis, array)
    elif kind == "words" and array.ndim == 1 and np.issubdtype(array.dtype, np.integer):
        tokens = _cut_padding(array)
        first = _format_tokens(tokens, _FIRST_TOKENS)
        write_text(axis, f"[{len(tokens)} tokens: {first}] {_read_text(raw)}")
    else:
        draw_array(axis, array, last=False, limits=limits)


def compute_limits(prepared: Any) -> Limits | None:
    """Compute the range that holds most values of an image, to display it; None for 8 bits."""
    array = np.asarray(prepared) if not isinstance(prepared, Mapping | DataError) else np.zeros(0)
    if array.ndim < 2 or array.dtype == np.uint8:
        return None
    low, high = np.percentile(array, (2, 98))
    return float(low), float(high)


def draw_spectrograms(axis: Axes, array: NDArray[Any]) -> None:
    """Draw one spectrogram (M, F) or several (..., M, F), the first on top, low notes below high ones."""
    mel_KMF = array.reshape(-1, *array.shape[-2:])
    gap_1F = np.full((max(1, mel_KMF.shape[1] // 16), mel_KMF.shape[2]), np.nan)
    rows = [row for mel_MF in mel_KMF[::-1] for row in (mel_MF, gap_1F)][:-1]
    axis.imshow(np.concatenate(rows), origin="lower", aspect="auto", cmap="magma", interpolation="nearest")


def draw_array(axis: Axes, array: NDArray[Any], *, last: bool, limits: Limits | None = None) -> None:
    """Draw numbers by their shape alone: pictures of any number of bands, planes, curves, tokens.

    Args:
        axis: Where to draw.
        array: (C, H, W), (H, W) or (T,); of more than three bands the first three are shown.
        last: The channels of three axes come last, as in arrays of images; they come first in tensors.
        limits: What to show black and white.
    """
    array = array[0] if array.ndim > 3 else array
    if array.ndim == 3:
        array = array if last else array.transpose(1, 2, 0)
        image = array[..., :3] if array.shape[2] >= 3 else array[..., 0]
        axis.imshow(
            _visible(image, limits), cmap="gray", vmin=None if image.ndim == 3 else 0, vmax=_top(image)
        )
    elif array.ndim == 2:
        axis.imshow(array, origin="lower", aspect="auto", cmap="magma")
    elif np.issubdtype(array.dtype, np.integer):
        write_text(axis, _format_tokens(_cut_padding(array.ravel()), _MOST_TOKENS))
    else:
        axis.plot(np.arange(array.size), array.ravel(), linewidth=0.6)


def write_text(axis: Axes, text: str) -> None:
    """Write a text into a cell, cut where it would not fit."""
    short = text if len(text) <= _LETTERS else text[:_LETTERS] + " ..."
    axis.text(
        0, 1, textwrap.fill(short, 28), fontsize=6, va="top", transform=axis.transAxes, parse_math=False
    )


_WINDOW, _HOP = 512, 128  # samples


def spectrogram(sound_T: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a sound's loudness by frequency and moment: (257, W) decibels, low frequencies first."""
    frames_WT = np.lib.stride_tricks.sliding_window_view(sound_T, _WINDOW)[::_HOP]
    power_WH = np.abs(np.fft.rfft(frames_WT * np.hanning(_WINDOW), axis=1)) ** 2 / (_WINDOW / 4) ** 2
    return (10 * np.log10(power_WH.T + 1e-10)).astype(np.float32)


def _draw_sound(axis: Axes, raw: Any) -> None:
    from geobind.data.readers.audio import read_audio

    samples_T = read_audio(raw, _RATE).numpy()
    loud_FW = spectrogram(np.pad(samples_T, (0, max(0, _SHORTEST - len(samples_T)))))
    axis.imshow(loud_FW, origin="lower", aspect="auto", cmap="magma", vmin=float(loud_FW.max()) - _DECIBELS)


def _read_text(raw: Any) -> str:
    from geobind.data.readers.text import read_text

    return str(raw) if isinstance(raw, str | Place) else read_text(raw)


def _cut_padding(tokens: NDArray[Any]) -> NDArray[Any]:
    """Return tokens without the 0 or -1 that follow the last of them."""
    there = np.flatnonzero(tokens > 0)
    return tokens[: there[-1] + 1] if len(there) else tokens[:0]


def _format_tokens(tokens: NDArray[Any], most: int) -> str:
    more = " ..." if len(tokens) > most else ""
    return " ".join(map(str, tokens[:most])) + more


def _visible(image: NDArray[Any], limits: Limits | None) -> NDArray[Any]:
    if image.dtype == np.uint8:
        return image
    low, high = limits or np.percentile(image, (2, 98))
    return np.clip((image - low) / max(float(high - low), 1e-9), 0, 1)


def _top(image: NDArray[Any]) -> float | None:
    """Return the value drawn white in a single band; matplotlib would stretch each band on its own."""
    return None if image.ndim == 3 else 255 if image.dtype == np.uint8 else 1


_MOST_ROWS = 30
_MOST_DRAWS = 8
_SIDE = 1.7  # inches of a cell
_FIRST = 10  # rows looked at to see whether they hold several observations


class SheetModality(NamedTuple):
    """One modality of a stage's sheet: who prepares its inputs, whether and how they are augmented."""

    modality: Modality
    trained: bool
    geometry: Geometry = "own"


class Rows(Protocol):
    """Rows of a stage, as a sheet reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True)
class SheetCell:
    """One cell of a sheet: how it is drawn and what stands above it."""

    draw: Callable[[Axes], None]
    title: str = ""


def draw_table_sheet(table: Table, rows: int = 6, seed: int = 0) -> bytes:
    """Draw some rows of a table, one row each: a column for each modality; PNG bytes.

    Raises:
        DataError: More than 30 rows are asked for.
    """
    cells: list[list[SheetCell]] = []
    for row in _choose_rows(len(table), rows, seed):
        shown: list[SheetCell] = []
        for name, column in table.columns.items():
            try:
                raw = first_observation(column[int(table.rows_N[row])])
            except DataError as error:
                raw = error
            shown.append(SheetCell(partial(draw_raw, raw=raw), name))
        cells.append(_add_key(shown, table.keys[row]))
    return _render_sheet(cells)


def draw_stage_sheet(
    stage_rows: Rows, sides: Mapping[str, SheetModality], rows: int = 4, seed: int = 0, draws: int = 3
) -> bytes:
    """Draw rows of a stage: each raw input, prepared for embedding, and prepared for training.

    Training draws are made as training makes them: one of several equally good observations, then the
    modality's augmentations if the stage trains it. An image that is not of 8 bits is shown within the limits
    of its plain self, so that changes of its brightness can be seen.

    Args:
        stage_rows: The rows of the stage.
        sides: Its modalities.
        rows: Rows to draw.
        seed: Which rows, and which draws.
        draws: Training draws of each modality that has any.

    Returns:
        PNG bytes.

    Raises:
        DataError: More than 30 rows are asked for, or more than 8 draws.
    """
    if not 0 <= draws <= _MOST_DRAWS:
        raise DataError(f"a sheet shows 0 to {_MOST_DRAWS} draws, not {draws}")
    chosen = _choose_rows(len(stage_rows), rows, seed)
    drawn = {
        name: draws if side.trained or _has_several(stage_rows, name) else 0 for name, side in sides.items()
    }
    cells: list[list[SheetCell]] = []
    for row in chosen:
        observed = stage_rows[row]
        shown: list[SheetCell] = []
        for name, side in sides.items():
            shown += _draw_modality(name, side, observed.raws.get(name), (seed, row), drawn[name])
        cells.append(_add_key(shown, observed.key or f"row {row}"))
    return _render_sheet(cells)


def _draw_modality(
    name: str, side: SheetModality, raw: Any, seeds: tuple[int, int], draws: int
) -> list[SheetCell]:
    first = first_observation(raw)
    shown = [SheetCell(partial(draw_raw, raw=choose_picture(side.modality, first)), name)]
    if first is None:
        return shown + [SheetCell(_leave_empty)] * (1 + draws)
    plain = _prepared(side.modality, first)
    limits = compute_limits(plain)
    shown.append(SheetCell(partial(draw_prepared, prepared=plain, raw=first, limits=limits), "prepared"))
    for draw in range(draws):
        geometry = share_geometry(side.geometry, draw_geometry(*seeds, draw))
        with seeded_rng(*seeds, draw), geometry:
            one = random.choice(cast("list[Any]", raw)) if isinstance(raw, list) else raw
            made = _prepared(side.modality, one, training=side.trained)
        cell = partial(draw_prepared, prepared=made, raw=one, limits=limits)
        shown.append(SheetCell(cell, f"training {draw + 1}"))
    return shown


def _prepared(modality: Modality, raw: Any, *, training: bool = False) -> Any:
    """Return the prepared input, or the error that explains why there is none."""
    try:
        return modality.prepare(raw, training=training)
    except DataError as error:
        return error


def _has_several(stage_rows: Rows, name: str) -> bool:
    """Return whether any of the first rows holds several observations of a modality."""
    raws = (stage_rows[row].raws.get(name) for row in range(min(_FIRST, len(stage_rows))))
    return any(isinstance(raw, list) and len(cast("list[Any]", raw)) > 1 for raw in raws)


def _add_key(shown: list[SheetCell], key: str) -> list[SheetCell]:
    return [replace(shown[0], title=f"{shown[0].title}: {key}"), *shown[1:]] if shown else shown


def _leave_empty(axis: Axes) -> None:
    """Draw nothing."""


def _choose_rows(count: int, rows: int, seed: int) -> list[int]:
    if not 1 <= rows <= _MOST_ROWS:
        raise DataError(f"a sheet shows 1 to {_MOST_ROWS} rows, not {rows}")
    return sorted(int(row) for row in np.random.default_rng(seed).permutation(count)[:rows])


def _render_sheet(cells: Sequence[Sequence[SheetCell]]) -> bytes:
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
            cell.draw(axis)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()
