"""Copies of a manifest: with splits that keep rows of one place or group together, or with fewer rows."""

# N rows; U units, which are never cut

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from geobind.data.cells import CellError, degrees_to_arrow, is_missing
from geobind.data.delimited import DelimitedFile, is_json_array
from geobind.data.manifest import list_manifest_files
from geobind.data.parquet import ParquetManifest, read_record_batches, report_damage
from geobind.data.readers.files import join_names
from geobind.errors import DataError
from geobind.utils.geo import assign_cells, nearest_km
from geobind.utils.hashing import derive_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

By = Literal["place", "group", "random"]
_NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}
_KM = (1.0, 20_000.0)


@dataclass(frozen=True)
class SplitOptions:
    """Options of splitting a table.

    Raises:
        DataError: The shares do not add up to 1, their names do not fit them, or a size is out of range.
    """

    by: By = "place"
    shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    names: tuple[str, ...] = ()  # by default train and test, or train, val and test
    seed: int = 0
    cell_km: float = 100.0
    buffer_km: float = 0.0  # rows of other splits nearer to the first one than this are left out
    group: str | None = None  # the column whose values are never cut, where it is not `group`

    def __post_init__(self) -> None:
        if any(share <= 0 for share in self.shares) or abs(sum(self.shares) - 1) > 1e-6:
            raise DataError(f"shares must be above 0 and add up to 1, not {', '.join(map(str, self.shares))}")
        if len(self.split_names) != len(self.shares) or len(set(self.split_names)) != len(self.shares):
            raise DataError(
                f"{len(self.shares)} shares need as many different names of splits: --names A,B,..."
            )
        if not _KM[0] <= self.cell_km <= _KM[1] or not 0 <= self.buffer_km <= _KM[1]:
            raise DataError(f"a cell must be {_KM[0]:g} to {_KM[1]:g} km wide, and a buffer not negative")
        if self.group is not None and self.by != "group":
            raise DataError(f"--group {self.group}: only splitting by group has one: --by group")

    @property
    def split_names(self) -> tuple[str, ...]:
        """The names of the splits, in the order of the shares."""
        return self.names or _NAMES.get(len(self.shares), ())


def split_places(places_NLL: NDArray[np.float64], options: SplitOptions) -> list[str | None]:
    """Assign each place to a split, all places of a cell to the same.

    Returns:
        The split of each row; None of a row that lies within `buffer_km` of the first split but in another.
    """
    splits = split_units(assign_cells(places_NLL, options.cell_km).tolist(), options)
    if not options.buffer_km:
        return splits
    first_N = np.array([split == options.split_names[0] for split in splits])
    near_N = nearest_km(places_NLL, places_NLL[first_N]) < options.buffer_km
    return [
        None if near and not first else split
        for split, near, first in zip(splits, near_N, first_N, strict=True)
    ]


def split_units(units: Sequence[Any], options: SplitOptions) -> list[str | None]:
    """Assign rows to splits by units (cells, groups), as near to the shares as whole units allow.

    A unit's turn depends on the seed and its name alone. Each goes to the split that lacks most rows; those
    larger than the smallest split is meant to be come first, lest one of them overflow it.
    """
    count = len(units)
    sizes: dict[Any, int] = {}
    for unit in units:
        sizes[unit] = sizes.get(unit, 0) + 1
    least = min(options.shares) * count
    turns = sorted(
        sizes, key=lambda unit: (-sizes[unit] if sizes[unit] > least else 0, derive_seed(options.seed, unit))
    )
    lacking = [share * count for share in options.shares]
    chosen: dict[Any, str] = {}
    for unit in turns:
        most = int(np.argmax(lacking))
        chosen[unit] = options.split_names[most]
        lacking[most] -= sizes[unit]
    return [chosen[unit] for unit in units]


def split_manifest(
    manifest: Path, target: Path, options: SplitOptions, columns: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Write a copy of a manifest with a new column `split`; all other columns stay.

    Args:
        manifest: A CSV, TSV, JSONL or Parquet file.
        target: A file of the same kind.
        options: How to split.
        columns: The manifest's own names of lat, lon, group and split, where they differ.

    Returns:
        Rows of each split; those that are left out count as `""`.

    Raises:
        DataError: The manifest has no such columns, a row has no place or group, or a split would be empty.
    """
    from geobind.utils.files import write_atomic

    column_names = {name: name for name in ("lat", "lon", "split", "group")} | dict(columns or {})
    column_names |= {"group": options.group} if options.group else {}
    if manifest.is_dir():
        raise DataError(f"{manifest}: is a folder; split the manifest it was packed from")
    (manifest,) = list_manifest_files(manifest)
    if target.suffix.lower() != manifest.suffix.lower():
        raise DataError(f"{target}: must end in {manifest.suffix}, as {manifest.name} does")
    wanted = {
        "place": [column_names["lat"], column_names["lon"]],
        "group": [column_names["group"]],
        "random": [],
    }[options.by]
    packed = _is_packed(manifest)
    values = _read_parquet_values(manifest, wanted) if packed else _read_text_values(manifest, wanted)
    splits = _assign_splits(values, options, column_names, manifest)
    counts = {name: splits.count(name) for name in (*options.split_names, None) if name or None in splits}
    empty = next((name for name in options.split_names if not counts[name]), None)
    if empty:
        raise DataError(
            f"{manifest}: split '{empty}' would be empty: {len(splits)} rows are too few, or lie in too few "
            "cells or groups; make cells smaller (--cell-km) or the share larger (--shares)"
        )
    write_atomic(target, _encode_rows(manifest, [True] * len(splits), (column_names["split"], splits)))
    return {name or "": count for name, count in counts.items()}


def select_rows(manifest: Path, target: Path, kept: Sequence[bool]) -> None:
    """Write a copy of a manifest with some of its rows; all columns stay.

    Args:
        manifest: A CSV, TSV, JSONL, JSON or Parquet file.
        target: A file of the same kind.
        kept: Whether each row of the manifest is wanted.

    Raises:
        DataError: It is a folder, the target is of another kind, or the manifest has other rows by now.
    """
    from geobind.utils.files import write_atomic

    if manifest.is_dir():
        raise DataError(f"{manifest}: is a folder; write the manifest that it was packed from")
    (manifest,) = list_manifest_files(manifest)
    if target.suffix.lower() != manifest.suffix.lower():
        raise DataError(f"{target}: must end in {manifest.suffix}, as {manifest.name} does")
    count = len((_read_parquet_values if _is_packed(manifest) else _read_text_values)(manifest, ())[""])
    if count != len(kept):
        raise DataError(
            f"{manifest}: has {count:,} rows, of which {len(kept):,} were read; leave limits out, read again"
        )
    if not any(kept):
        raise DataError(f"{target}: not written: no row of {manifest.name} is left")
    write_atomic(target, _encode_rows(manifest, kept, None))


def _is_packed(manifest: Path) -> bool:
    return manifest.suffix.lower() in (".parquet", ".geoparquet")


# A column to add or replace: its name, and a value for each row.
_Column = tuple[str, Sequence[str | None]]


def _encode_rows(manifest: Path, kept: Sequence[bool], added: _Column | None) -> bytes:
    """Encode a manifest again as a file of its kind, with some of its rows and perhaps another column."""
    if _is_packed(manifest):
        return _encode_parquet(manifest, kept, added)
    if manifest.suffix.lower() in (".jsonl", ".json"):
        return _encode_json(manifest, kept, added)
    return _encode_delimited(manifest, kept, added)


def _assign_splits(
    values: dict[str, list[Any]], options: SplitOptions, column_names: Mapping[str, str], manifest: Path
) -> list[str | None]:
    lines = values.pop("")
    for column, cells in values.items():
        blank = next((line for line, cell in zip(lines, cells, strict=True) if is_missing(cell)), None)
        if blank is not None:
            raise DataError(
                f"{manifest}:{blank}: has no '{column}', by which rows are split; fill it or drop the row"
            )
    if options.by == "random":
        return split_units(lines, options)
    if options.by == "group":
        return split_units([str(cell) for cell in values[column_names["group"]]], options)
    axes: list[NDArray[np.float64]] = []
    for name, limit in (("lat", 90.0), ("lon", 180.0)):
        try:
            axes.append(degrees_to_arrow(values[column_names[name]], limit).to_numpy(zero_copy_only=False))
        except CellError as error:
            raise DataError(
                f"{manifest}:{lines[error.index]}: column '{column_names[name]}': {error}"
            ) from error
    return split_places(np.stack(axes, axis=1), options)


def _read_text_values(manifest: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    rows = DelimitedFile(manifest)
    values: dict[str, list[Any]] = {"": [], **{column: [] for column in wanted}}
    for lines, columns in rows:
        values[""] += lines
        for column in wanted:
            values[column] += columns.get(column) or [None] * len(lines)
    _check(rows.columns, wanted, manifest)
    return values


def _read_parquet_values(manifest: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    rows = ParquetManifest(manifest)
    _check(rows.file.schema_arrow.names, wanted, manifest)
    values: dict[str, list[Any]] = {column: [] for column in wanted}
    with report_damage(manifest):
        for batch in read_record_batches(manifest, rows.file, sorted(wanted)) if wanted else ():
            for column in wanted:
                values[column] += batch.column(column).to_pylist()
    return {"": list(range(rows.file.metadata.num_rows)), **values}


def _check(there: Any, wanted: Sequence[str], manifest: Path) -> None:
    for column in wanted:
        if column not in there:
            raise DataError(
                f"{manifest}: has no column '{column}' to split by; its columns: {join_names(there)}; name "
                "another, with --column lat=COLUMN --column lon=COLUMN or --by group --group COLUMN"
            )


def _encode_delimited(manifest: Path, kept: Sequence[bool], added: _Column | None) -> bytes:
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    target = io.StringIO()
    writer = csv.writer(target, delimiter=delimiter, lineterminator="\n")
    rows, first = DelimitedFile(manifest), 0
    for number, (lines, columns) in enumerate(rows):
        last = first + len(lines)
        cells: dict[str, Sequence[Any]] = dict(columns)
        if added is not None:
            cells[added[0]] = [value or "" for value in added[1][first:last]]
        if not number:
            writer.writerow(cells)
        writer.writerows(compress(zip(*cells.values(), strict=True), kept[first:last]))
        first = last
    return target.getvalue().encode()


def _encode_json(manifest: Path, kept: Sequence[bool], added: _Column | None) -> bytes:
    """Encode the rows of a JSONL file, or of an array, as they are, but for the added column."""
    with open(manifest, "rb") as file:
        texts = (
            [json.dumps(row) for row in json.loads(file.read().decode("utf-8-sig"))]
            if is_json_array(manifest)
            else [line for raw in file if (line := raw.decode("utf-8-sig")).strip()]
        )
    more = [{}] * len(texts) if added is None else [{added[0]: value} for value in added[1]]
    rows = [
        json.dumps({**json.loads(text), **cell}, ensure_ascii="\\u" in text)  # \\ud800 is no character
        for text, cell in compress(zip(texts, more, strict=True), kept)
    ]
    text = f"[{','.join(rows)}]" if is_json_array(manifest) else "".join(f"{row}\n" for row in rows)
    return text.encode()


def _encode_parquet(manifest: Path, kept: Sequence[bool], added: _Column | None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file, target, first = ParquetManifest(manifest).file, io.BytesIO(), 0
    schema = file.schema_arrow
    index, field = -1, pa.field("", pa.string())
    if added is not None:
        index, field = schema.get_field_index(added[0]), pa.field(added[0], pa.string())
        schema = schema.append(field) if index < 0 else schema.set(index, field)
    with report_damage(manifest), pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in read_record_batches(manifest, file, file.schema_arrow.names):
            table, last = pa.Table.from_batches([batch]), first + batch.num_rows
            if added is not None:
                values = pa.array(added[1][first:last], pa.string())
                table = (
                    table.append_column(field, values)
                    if index < 0
                    else table.set_column(index, field, values)
                )
            writer.write_table(table.cast(schema).filter(pa.array(kept[first:last], pa.bool_())))
            first = last
    return target.getvalue()
