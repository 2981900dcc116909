"""Archives of one model joined into one: scenes of a region, years of a place."""

# N rows of all archives, A archives

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from geobind.archive.archive import Archive, find_repeated
from geobind.archive.table import (
    ArchiveMetadata,
    ArchiveWriter,
    Box,
    build_schema,
    build_stac_item,
    count_group_rows,
    measure_box,
    order_by_place,
)
from geobind.errors import CheckpointError, DataError
from geobind.utils.files import write_json
from geobind.utils.hashing import fingerprint

if TYPE_CHECKING:
    from numpy.typing import NDArray


def join_archives(paths: Sequence[str | Path], out: str | Path) -> Archive:
    """Join archives of one model into another, its rows along one curve over the Earth.

    Args:
        paths: The archives; they stay as they are.
        out: The archive to write. Its rows have no grid: several scenes have none in common.

    Raises:
        DataError: An archive cannot be read, or two rows have one name.
        CheckpointError: Archives are of different models.
        StorageError: The disk is full.
    """
    archives = [Archive.open(path) for path in paths]
    if len(archives) < 2:
        raise DataError("to join archives, name at least two")
    out = Path(out)
    if out.suffix != ".parquet" or out.resolve() in {archive.path.resolve() for archive in archives}:
        raise DataError(f"{out}: give the joined archive a name of its own that ends in .parquet")
    metadata = _combine(archives)
    names = np.concatenate([archive.ids for archive in archives])
    if (repeated := find_repeated(names)) is not None:
        raise DataError(
            f"'{repeated}' is the name of several rows; embed one of the archives under another name"
        )
    lat_N, lon_N = (np.concatenate([getattr(a, axis) for a in archives]) for axis in ("lat_N", "lon_N"))
    order_N = order_by_place(lat_N, lon_N)
    start_A = np.concatenate([[0], np.cumsum([len(archive) for archive in archives])])
    kinds = {kind for archive in archives for kind in archive.geometry_types}
    with ArchiveWriter(out, metadata, _combine_boxes(archives), sorted(kinds)) as writer:
        size = count_group_rows(metadata)
        for first in range(0, len(order_N), size):
            writer.write(_gather(archives, metadata, start_A, order_N[first : first + size]))
    write_json(out.with_suffix(".json"), build_stac_item(metadata, out))
    return Archive.open(out)


def _combine(archives: Sequence[Archive]) -> ArchiveMetadata:
    """Return what the joined archive states: what all state, and nothing of one grid.

    Raises:
        CheckpointError: Archives are of different models.
        DataError: Their embeddings were computed or are stored in different types.
    """
    first = archives[0]
    for other in archives[1:]:
        for fact in ("modality", "model", "width"):
            mine, its = getattr(first, fact), getattr(other, fact)
            if mine != its:
                raise CheckpointError(
                    f"{first.path} and {other.path}: embeddings of another {fact} ({str(mine)[:12]} and "
                    f"{str(its)[:12]}) cannot be mixed"
                )
        for mine, its in (
            (first.dtype, other.dtype),
            (first.metadata.computed, other.metadata.computed),
            (first.metadata.runtime, other.metadata.runtime),
        ):
            if mine != its:
                raise DataError(f"{first.path} is in {mine}, {other.path} in {its}: embed one again")
    facts = [archive.metadata for archive in archives]
    shared: dict[str, Any] = {
        name: getattr(facts[0], name)
        for name in ("bundle", "naming", "pixels", "reading")
        if all(getattr(one, name) == getattr(facts[0], name) for one in facts)
    }
    shared |= {name: any(getattr(one, name) for one in facts) for name in ("timed", "placed")}
    known = [one.cosine for one in facts if one.cosine is not None]
    sources = ", ".join(dict.fromkeys(one.source for one in facts))
    plan = fingerprint([one.plan for one in facts])
    return facts[0].model_copy(
        update={
            "grid": None,
            "naming": "",
            "pixels": None,
            "reading": {},
            "source": sources[:1000],
            "plan": plan,
            "cosine": min(known, default=None),
        }
        | shared
    )


def _combine_boxes(archives: Sequence[Archive]) -> Box | None:
    boxes = [archive.bounds for archive in archives if archive.bounds is not None]
    return measure_box(np.array(boxes, dtype=np.float64).reshape(-1, 4))


def _gather(
    archives: Sequence[Archive],
    metadata: ArchiveMetadata,
    start_A: NDArray[np.int64],
    row_K: NDArray[np.int64],
) -> pa.Table:
    """Return these rows of all archives, in their order, with the columns of the joined archive."""
    schema = build_schema(metadata)
    tables: list[pa.Table] = []
    places: list[NDArray[np.int64]] = []
    archive_K = np.searchsorted(start_A, row_K, side="right") - 1
    for number in np.unique(archive_K).tolist():
        mine = np.flatnonzero(archive_K == number)
        table = archives[number].read_table(row_K[mine] - start_A[number])
        for field in schema:
            if field.name not in table.column_names:  # of an archive without times or places
                table = table.append_column(field, pa.nulls(len(table), field.type))
        tables.append(table.select(schema.names).cast(schema))
        places.append(mine)
    return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))
