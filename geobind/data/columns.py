"""The columns of a table: each knows where its cells lie on disk, and makes one a raw input when asked."""

# N rows

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa

from geobind.data.arrow import mapped_table
from geobind.data.manifest import CELL
from geobind.data.options import DataOptions
from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The end of a file's name: a dot, a letter, up to four letters or digits.
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")
_LOOK_AT = 100  # cells that decide whether a column holds files or text


class Column(Protocol):
    """One modality's cells. It is small and pickles: a worker maps the same file again."""

    def __getitem__(self, row: int) -> Any:
        """Return the raw input in this row, a list of them, or None where it is missing."""
        ...

    def present_N(self) -> NDArray[np.bool_]:
        """Tell for every row whether the cell is there."""
        ...


@lru_cache(maxsize=32)
def mapped_array(path: Path) -> NDArray[Any]:
    """Map a .npy file into memory, once per process."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class Files:
    """Where the files of a column may lie: names are relative to the first folder, targets within any."""

    root: Path
    links: tuple[Path, ...] = ()

    def __call__(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            DataError: The name leads out of the folders, by itself or through a link.
        """
        path = os.path.join(self.root, name)
        try:
            real = _real_path(path)
        except ValueError as error:
            raise DataError(f"file name {name!r} cannot be used: {error}") from error
        if not any(real.startswith(fence) for fence in _fences((self.root, *self.links))):
            raise DataError(
                f"{name}: leads out of {self.root} (to {real}); move it there, name a higher folder as "
                "`data.root`, or, for a symbolic link, its target's folder in `data.links`"
            )
        return Path(path)

    def fault(self, name: str) -> str | None:
        """Say why a file cannot be used, or None; it is not opened."""
        try:
            state = os.stat(self(name))
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"{name}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}"
        if not stat.S_ISREG(state.st_mode):
            return f"{name}: is not a file"
        return None if state.st_size else f"{name}: is empty (0 bytes)"


@lru_cache(maxsize=64)
def _fences(folders: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(os.path.join(os.path.realpath(folder), "") for folder in folders)


_real_folder = lru_cache(maxsize=4096)(
    os.path.realpath
)  # following every folder of a path costs more than a stat


def _real_path(path: str) -> str:
    folder, name = os.path.split(path)
    if name in ("", ".", "..") or os.path.islink(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(folder), name)


@dataclass(frozen=True)
class ArrowColumn:
    """Cells in a memory-mapped Arrow file: lists of strings or bytes, or any other Arrow value."""

    path: Path
    field: str
    files: Files | None = None  # set where strings name files

    def __getitem__(self, row: int) -> Any:
        scalar = self._cells()[row]
        if not scalar.is_valid:
            return None
        items = scalar.as_py()
        if not isinstance(items, list):
            return items
        items = cast("list[Any]", items)
        if not isinstance(items[0], str | bytes):
            return np.asarray(items, dtype=np.float32)
        if self.files is not None:
            items = [self.files(item) for item in items]
        return items[0] if len(items) == 1 else items

    def present_N(self) -> NDArray[np.bool_]:
        """Tell for every row whether the cell is there."""
        return self._cells().is_valid().to_numpy()

    def file_names(self, rows_N: NDArray[np.int32], limit: int) -> Iterator[tuple[int, str]]:
        """Yield the file names in these rows, each with its row, at most `limit` of them."""
        there_N = rows_N[self.present_N()[rows_N]][:limit]
        cells = self._cells().take(pa.array(there_N)).to_pylist()
        return islice(
            ((int(row), name) for row, names in zip(there_N, cells, strict=True) for name in names), limit
        )

    def _cells(self) -> pa.ChunkedArray:
        return mapped_table(self.path).column(self.field)


@dataclass(frozen=True)
class ArrayColumn:
    """Rows of a memory-mapped array; with a rate they are sounds, `(array, rate)`."""

    path: Path
    rate: int | None = None

    def __getitem__(self, row: int) -> Any:
        array = np.array(mapped_array(self.path)[row])
        return array if self.rate is None else (array, self.rate)

    def present_N(self) -> NDArray[np.bool_]:
        """Every row has one."""
        return np.ones(len(mapped_array(self.path)), dtype=bool)


def _holds_files(
    cells: pa.ChunkedArray, column: str, files: Sequence[str], inline: Sequence[str], where: str
) -> bool:
    """Decide whether the strings of a column name files or are text.

    The recipe's word decides; without one, the first hundred cells must all end like file names, or none.

    Raises:
        DataError: Some do and some do not.
    """
    if column in files or column in inline:
        return column in files
    sample: list[str] = []
    for chunk in cells.chunks:
        sample += chunk.drop_null()[: _LOOK_AT - len(sample)].flatten().to_pylist()
        if len(sample) >= _LOOK_AT:
            break
    like_files = [cell for cell in sample if _SUFFIX.search(cell)]
    if like_files and len(like_files) < len(sample):
        other = next(cell for cell in sample if not _SUFFIX.search(cell))
        raise DataError(
            f"{where}: column '{column}' holds both {like_files[0]!r}, which looks like a file, and "
            f"{other[:60]!r}, which does not; under `data`, say `files: [{column}]` or `inline: [{column}]`"
        )
    return bool(like_files)


def manifest_columns(
    path: Path, options: DataOptions, names: Collection[str], files: Files, where: str
) -> dict[str, Column]:
    """Return the columns of a manifest's Arrow file that the modalities read, by modality."""
    table = mapped_table(path)
    columns: dict[str, Column] = {}
    for name in names:
        column = options.columns.get(name, name)
        field = CELL + column
        if field not in table.column_names:
            continue
        cells = table.column(field)
        strings = pa.types.is_list(cells.type) and pa.types.is_string(cells.type.value_type)
        named = strings and _holds_files(cells, column, options.files, options.inline, where)
        columns[name] = ArrowColumn(path, field, files if named else None)
    return columns


def chosen_columns(
    there: Mapping[str, Column], columns: Mapping[str, str], names: Collection[str], where: str
) -> dict[str, Column]:
    """Pick from ready columns those that the modalities read, by modality.

    Raises:
        DataError: The recipe names a column that is not there, or none of them is.
    """
    chosen = {name: columns.get(name, name) for name in names}
    unknown = [column for name, column in chosen.items() if name in columns and column not in there]
    if unknown or not set(chosen.values()) & set(there):
        wanted = f"'{unknown[0]}'" if unknown else f"for {', '.join(names)}"
        raise DataError(
            f"{where}: has no column {wanted}; its columns: {', '.join(there)}; map them with `columns: "
            f"{{{next(iter(names), 'NAME')}: {next(iter(there))}}}`"
        )
    return {name: there[column] for name, column in chosen.items() if column in there}
