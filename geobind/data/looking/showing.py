"""Contact sheets: rows of a table as they are, and as a stage's encoders see them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np

from geobind.data.batches.order import seeded
from geobind.data.looking.drawing import draw_prepared, draw_raw, limits_of
from geobind.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from geobind.data.tables.table import Table
    from geobind.data.tables.views import Observed
    from geobind.modality import Modality

_MOST_ROWS = 30
_MOST_DRAWS = 8
_SIDE = 1.7  # inches of a cell
_FIRST = 10  # rows looked at to see whether they hold several observations


class Side(NamedTuple):
    """One modality of a stage's sheet: who prepares its inputs, and whether the stage trains it."""

    modality: Modality
    trained: bool


class Rows(Protocol):
    """What is drawn: rows of a stage."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Observed: ...


@dataclass(frozen=True)
class Shown:
    """One cell of a sheet: how it is drawn and what stands above it."""

    draw: Callable[[Axes], None]
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
                raw = _first(column[int(table.rows_N[row])])
            except DataError as error:
                raw = error
            shown.append(Shown(partial(draw_raw, raw=raw), name))
        cells.append(_keyed(shown, table.keys[row]))
    return _sheet(cells)


def sheet_of_stage(
    stage_rows: Rows, sides: Mapping[str, Side], rows: int = 4, seed: int = 0, draws: int = 3
) -> bytes:
    """Draw what a stage sees of some rows: each raw input, as it is embedded, and as it is trained on.

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
    chosen = _drawn_rows(len(stage_rows), rows, seed)
    drawn = {name: draws if side.trained or _several(stage_rows, name) else 0 for name, side in sides.items()}
    cells: list[list[Shown]] = []
    for row in chosen:
        observed = stage_rows[row]
        shown: list[Shown] = []
        for name, side in sides.items():
            shown += _seen(name, side, observed.raws.get(name), (seed, row), drawn[name])
        cells.append(_keyed(shown, observed.key or f"row {row}"))
    return _sheet(cells)


def _seen(name: str, side: Side, raw: Any, seeds: tuple[int, int], draws: int) -> list[Shown]:
    first = _first(raw)
    shown = [Shown(partial(draw_raw, raw=first), name)]
    if first is None:
        return shown + [Shown(_nothing)] * (1 + draws)
    plain = _prepared(side.modality, first)
    limits = limits_of(plain)
    shown.append(Shown(partial(draw_prepared, prepared=plain, raw=first, limits=limits), "prepared"))
    for draw in range(draws):
        with seeded(*seeds, draw):
            one = random.choice(cast("list[Any]", raw)) if isinstance(raw, list) else raw
            made = _prepared(side.modality, one, training=side.trained)
        cell = partial(draw_prepared, prepared=made, raw=one, limits=limits)
        shown.append(Shown(cell, f"training {draw + 1}"))
    return shown


def _prepared(modality: Modality, raw: Any, *, training: bool = False) -> Any:
    """What the modality makes of a raw input, or why it cannot."""
    try:
        return modality.prepare(raw, training=training)
    except DataError as error:
        return error


def _several(stage_rows: Rows, name: str) -> bool:
    """Whether rows hold several observations of a modality, as far as the first tell."""
    raws = (stage_rows[row].raws.get(name) for row in range(min(_FIRST, len(stage_rows))))
    return any(isinstance(raw, list) and len(cast("list[Any]", raw)) > 1 for raw in raws)


def _first(raw: Any) -> Any:
    if isinstance(raw, list):
        items = cast("list[Any]", raw)
        return items[0] if items else None
    return raw


def _keyed(shown: list[Shown], key: str) -> list[Shown]:
    return [replace(shown[0], title=f"{shown[0].title}: {key}"), *shown[1:]] if shown else shown


def _nothing(axis: Axes) -> None:
    """Leave a cell empty."""


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
            cell.draw(axis)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()
