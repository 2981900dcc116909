"""Tables of rows: keys, splits, places, labels, observations and licences."""

# N rows, LL latitude and longitude in degrees

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast, overload

import numpy as np
import pyarrow as pa

from geobind.data.cells import PLACE_COLUMNS
from geobind.data.columns import (
    ArrowColumn,
    TableColumn,
    keep_first_observations,
    open_manifest_columns,
    read_place,
    select_columns,
)
from geobind.data.manifest import convert_manifest
from geobind.data.options import ColumnChoice, DataOptions
from geobind.data.rasters.column import RasterColumn
from geobind.data.readers.files import FileResolver, join_names
from geobind.errors import DataError
from geobind.licences import UNSTATED
from geobind.modality import Pair, Place
from geobind.utils.arrow import map_arrow_table, pc

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


T = TypeVar("T")


class Row(NamedTuple):
    """One row: its observations by modality, key, place and label."""

    raws: Mapping[str, Any]  # raw inputs, or lists of equally good ones; None where it is missing
    key: str = ""  # names the row in messages
    place: Place | None = None
    label: str | None = None


def first_observation(raw: Any) -> Any:
    """Return the first of several equally good observations, or the only one; None where there is none."""
    if isinstance(raw, list):
        items = cast("list[Any]", raw)
        return items[0] if items else None
    return raw


@dataclass(frozen=True, eq=False)
class LazySequence(Sequence[T], Generic[T]):
    """A sequence whose items are made when asked for; a slice is such a sequence again."""

    rows_N: NDArray[np.int32]
    make: Callable[[int], T]

    def __len__(self) -> int:
        return len(self.rows_N)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> LazySequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | LazySequence[T]:
        if isinstance(index, slice):
            return replace(self, rows_N=self.rows_N[index])
        return self.make(int(self.rows_N[index]))


_SHOWN = 5  # mistakes listed in one message


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of places with one column for each modality.

    It pickles small, because the cells lie in memory-mapped files that every process shares.
    """

    name: str  # what messages call it
    path: Path  # the Arrow file with keys, splits and places
    rows_N: NDArray[np.int32]  # the rows of the file that are meant
    columns: Mapping[str, TableColumn]  # by modality
    view: str = ""  # the split, if it is one
    licence: str = ""  # of rows without a licence of their own, if their dataset states one

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def keys(self) -> Sequence[str]:
        """The name of each row in messages: column `key`, or else the file and line."""
        return LazySequence(self.rows_N, self._key)

    @property
    def splits(self) -> dict[str, int]:
        """Rows in each split; rows without one are in none."""
        counted = Counter(word for word in self._field("split") or () if word is not None)
        return dict(sorted(counted.items()))

    @property
    def labels(self) -> list[str | None] | None:
        """The class of each row, or None if no row has one."""
        return self._field("label")

    @property
    def groups(self) -> list[str | None] | None:
        """The group of each row, such as the recording it was cut from; None if no row has one."""
        return self._field("group")

    @property
    def places_LL(self) -> NDArray[np.float64] | None:
        """Latitude and longitude of each row (N, 2), NaN where unknown; None if no row has them."""
        lat, lon = self._array("lat"), self._array("lon")
        return None if lat is None or lon is None else np.stack([lat, lon], axis=1)

    @property
    def lat(self) -> NDArray[np.float64] | None:
        """Degrees north of each row (N,), NaN where unknown; None if no row has them."""
        return self._array("lat")

    @property
    def lon(self) -> NDArray[np.float64] | None:
        """Degrees east of each row (N,), NaN where unknown; None if no row has them."""
        return self._array("lon")

    @property
    def time(self) -> NDArray[np.datetime64] | None:
        """When, in UTC (N,), NaT where unknown; None if no row has it."""
        return self._array("time")

    def split(self, name: str) -> Table:
        """Return the rows of one split.

        Raises:
            DataError: There are none; the message lists the splits there are.
        """
        words = map_arrow_table(self.path).column("split")
        chosen_N = pc.fill_null(pc.equal(words, name), False).to_numpy()
        rows_N = self.rows_N[chosen_N[self.rows_N]]
        if not len(rows_N):
            there = ", ".join(f"'{split}' ({count} rows)" for split, count in self.splits.items()) or "none"
            raise DataError(f"{self.name}: has no rows of split '{name}'; its splits: {there}")
        return replace(self, rows_N=rows_N, view=name)

    def take(self, index: ArrayLike) -> Table:
        """Return the rows with these numbers (counted in this table), or where this mask is true."""
        return replace(self, rows_N=self.rows_N[np.asarray(index)])

    def rows_with(self, names: Collection[str]) -> NDArray[np.int64]:
        """Return the numbers of the rows (counted in this table) that have all of these modalities."""
        mask_N = np.ones(len(self), dtype=bool)
        for name in names:
            mask_N &= self._present_N(name)
        return np.flatnonzero(mask_N)

    def samples(self, name: str) -> Sequence[Any]:
        """Return the raw inputs of one modality, one for each row, None where it is missing.

        Raises:
            DataError: No row has this modality.
        """
        if not self._present_N(name).any():
            raise DataError(f"{self.name}: has nothing for '{name}'{self._of_view()}; {self._advice(name)}")
        return LazySequence(self.rows_N, self.columns[name].__getitem__)

    def pairs(self, anchor: str, other: str) -> TablePairs:
        """Return the rows that have both modalities as pairs, whose cells are read when asked for.

        Raises:
            DataError: There are none.
        """
        table = self.take(self.rows_with((anchor, other)))
        if not len(table):
            counts = [f"{self._present_N(name).sum()} have '{name}'" for name in (anchor, other)]
            lacking = next((name for name in (anchor, other) if not self._present_N(name).any()), other)
            raise DataError(
                f"{self.name}: no row{self._of_view()} has both '{anchor}' and '{other}': of {len(self)} "
                f"rows, {' and '.join(counts)}; {self._advice(lacking)}"
            )
        return TablePairs(table, anchor, other)

    def read_row(self, index: int, names: Collection[str]) -> Row:
        """Return raw inputs of one row (counted in this table), and what is known about it."""
        row = int(self.rows_N[index])
        key = self._key(row)
        try:
            raws = {name: self.columns[name][row] for name in names}
        except DataError as error:
            raise DataError(f"{key}: {error}") from error
        return Row(raws, key, read_place(self.path, row), self._cell("label", row))

    def check_files(self, limit: int = 100_000) -> int:
        """Check that the files named are there, lie where they may, and are not empty.

        Args:
            limit: Look at no more files than this, from the top of each column.

        Returns:
            How many files were looked at.

        Raises:
            DataError: Some are not; the message counts them and lists the first few with their rows.
        """
        checked = 0
        wrong: list[str] = []
        for name, column in self.columns.items():
            if not isinstance(column, ArrowColumn | RasterColumn) or column.files is None:
                continue
            for row, file in column.file_names(self.rows_N, limit):
                checked += 1
                fault = column.files.fault(file)
                if fault:
                    wrong.append(f"{self._key(row)}: {name}: {fault}")
        if wrong:
            more = f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            listed = "".join(f"\n  {line}" for line in wrong[:_SHOWN])
            raise DataError(f"{self.name}: {len(wrong)} of {checked} files cannot be used:{listed}{more}")
        return checked

    def _cell(self, field: str, row: int) -> Any:
        table = map_arrow_table(self.path)
        return table.column(field)[row].as_py() if field in table.column_names else None

    def _key(self, row: int) -> str:
        return self._cell("key", row) or f"{self.name}:{self._cell('line', row)}"

    def _taken(self, field: str) -> pa.ChunkedArray | None:
        table = map_arrow_table(self.path)
        if field not in table.column_names:
            return None
        values = table.column(field).take(pa.array(self.rows_N))
        return None if values.null_count == len(values) else values

    def _field(self, field: str) -> list[str | None] | None:
        values = self._taken(field)
        return None if values is None else values.to_pylist()

    def _array(self, field: str) -> NDArray[Any] | None:
        values = self._taken(field)
        return None if values is None else values.to_numpy()

    def _present_N(self, name: str) -> NDArray[np.bool_]:
        column = self.columns.get(name)
        return np.zeros(len(self), dtype=bool) if column is None else column.present_N()[self.rows_N]

    def _of_view(self) -> str:
        return f" of split '{self.view}'" if self.view else ""

    def _advice(self, name: str) -> str:
        column = self.columns.get(name)
        if isinstance(column, RasterColumn) and column.field is None:
            rasters = join_names(column.options.paths)
            return f"no place of these rows lies in {rasters}: use another split or table"
        if name in self.columns:
            return f"fill the column of '{name}', or use another split or table"
        return (
            f"no column is read as '{name}': map one with `columns: {{{name}: COLUMN}}`, or use another table"
        )


@dataclass(frozen=True, eq=False)
class TablePairs(Sequence[Pair]):
    """The pairs of two modalities, one for each row of `table`; a slice is such a sequence again."""

    table: Table  # only rows that have both
    anchor: str
    other: str

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> TablePairs: ...
    def __getitem__(self, index: int | slice) -> Pair | TablePairs:
        if isinstance(index, slice):
            return replace(self, table=self.table.take(np.arange(len(self))[index]))
        raws, key, place, label = self.table.read_row(index, (self.anchor, self.other))
        return Pair(raws[self.anchor], raws[self.other], key, place, label)


def open_table(
    options: DataOptions | str | Path,
    base: Path = Path(),
    names: Collection[str] = (),
    **columns: ColumnChoice,
) -> Table:
    """Open a manifest, or the table that a recipe's `data` describes.

    `open_table("places.csv", satellite="tile", audio="sound")` maps columns of a manifest to modalities.

    Args:
        options: Path of a manifest, or a `data` block.
        base: The folder that relative paths start from: a recipe's own.
        names: The modalities wanted; those that have no column in the table are left out of it. By default
            all that are mapped.
        columns: With a path, the column of each modality, and of key, split, lat, lon, time, label; several
            columns of numbers are one vector, and `place` is each row's `Place`.

    Raises:
        DataError: The table is missing, malformed, or has no column for any of the modalities.
    """
    if not isinstance(options, DataOptions):
        options = DataOptions(manifest=Path(options), columns=dict(columns))
    names = names or [name for name in options.columns if name not in PLACE_COLUMNS]
    if options.dataset is not None:
        name = options.dataset.name
        path, all_columns = options.dataset.rows()
        cells = select_columns(path, all_columns, options.columns, names, name)
    else:
        manifest = base / cast(Path, options.manifest)
        name = manifest.name
        held = [name for name in names if name not in options.rasters or not options.rasters[name].paths]
        path = convert_manifest(manifest, options.columns, held, options.limit)
        folder = manifest if manifest.is_dir() else manifest.parent
        files = FileResolver(
            base / options.root if options.root else folder, tuple(base / f for f in options.links)
        )
        cells = open_manifest_columns(path, options, names, files, name)
    count = map_arrow_table(path).num_rows
    cells = keep_first_observations(cells, options.first, names)
    rows_N = np.arange(min(count, options.limit or count), dtype=np.int32)
    licence = options.dataset.licence if options.dataset is not None else ""
    return Table(name, path, rows_N, cells, licence=licence)


COLUMN = "licence"


def count_licences(table: Table) -> dict[str, int]:
    """Count a table's rows by their `licence`, the most frequent first; empty when it has no such column."""
    rows = map_arrow_table(table.path)
    if COLUMN not in rows.column_names:
        return {table.licence: len(table)} if table.licence else {}
    words: Sequence[str | None] = rows.column(COLUMN).take(table.rows_N).to_pylist()
    return dict(Counter(word or UNSTATED for word in words).most_common())
