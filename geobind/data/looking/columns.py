"""Look at every observation of one modality of a table, or only at whether its file is there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from geobind.data.looking.inspecting import Facts, inspect_raw
from geobind.data.rasters.cells import RasterColumn
from geobind.data.tables.columns import ArrowColumn
from geobind.errors import DataError
from geobind.utils.progress import track

if TYPE_CHECKING:
    from geobind.data.tables.table import Table

_CHUNK = 64  # observations looked at together; those not in files of their own are held in memory


class Seen(NamedTuple):
    """An observation: its row, and what was found of it."""

    row: int
    facts: Facts


def look(table: Table, name: str) -> Iterator[Seen]:
    """Inspect every observation of a modality, a file that many rows name only once."""
    known: dict[Path, Facts] = {}
    rows = table.rows_with([name])
    if not len(rows):
        return
    raws = _raws(table, name, track(rows, f"checking {name}", len(rows)))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoders let other threads run
        while chunk := list(islice(raws, _CHUNK)):
            fresh = dict.fromkeys(raw for _, raw in chunk if isinstance(raw, Path) and raw not in known)
            known |= zip(fresh, pool.map(inspect_raw, fresh), strict=True)
            others = pool.map(inspect_raw, [raw for _, raw in chunk if not isinstance(raw, Path | Facts)])
            for row, raw in chunk:
                if isinstance(raw, Facts):
                    yield Seen(row, raw)
                else:
                    yield Seen(row, known[raw] if isinstance(raw, Path) else next(others))


def _raws(table: Table, name: str, rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield each observation with its row, or the facts of one that cannot be had."""
    samples = table.samples(name)
    for row in rows:
        try:
            cell = samples[int(row)]
        except DataError as error:
            yield int(row), Facts(fault=str(error))
            continue
        yield from ((int(row), raw) for raw in (cell if isinstance(cell, list) else [cell]))


def look_quickly(table: Table, name: str) -> Iterator[Seen]:
    """See whether the files of a modality are there and not empty; nothing is decoded."""
    column = table.columns[name]
    number = {int(row): index for index, row in enumerate(table.rows_N)}
    if isinstance(column, ArrowColumn) and column.files is not None:
        for row, file in column.file_names(table.rows_N, len(table) * 1000):
            yield Seen(number[row], Facts(fault=column.files.fault(file)))
        return
    if isinstance(column, RasterColumn):
        files = column.file_names(table.rows_N, len(table))
        faults = [(row, fault) for row, file in files if (fault := column.files.fault(file))]
        yield from (Seen(number[row], Facts(fault=fault)) for row, fault in faults)
        if faults:
            return
    yield from (Seen(int(row), Facts()) for row in table.rows_with([name]))
