"""Leakage between splits: shared files, near-duplicates, clusters of rows."""

# N rows

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from geobind.data.inspect import SILENT, find_near_duplicates, inspect_raw
from geobind.data.table import Table
from geobind.errors import DataError
from geobind.inference import group_items
from geobind.utils.geo import nearest_km
from geobind.utils.progress import track

Digest: TypeAlias = bytes
HashedRow: TypeAlias = tuple[int, tuple[int, int] | None]
ImageHashes: TypeAlias = dict[tuple[str, str, bytes], list[HashedRow]]

MAX_IMAGES = 20_000
_CHUNK = 2**20
_DECODE_BATCH = 64  # images decoded together


@dataclass(frozen=True)
class SharedObservations:
    """Test rows that have an observation of a training row, byte for byte or nearly."""

    compared: int  # test rows whose observations could be read
    rows: int
    words: bool  # observations are strings: two places may well be described alike
    example: str | None  # keys of two such rows
    near: int | None = None  # rows with an image nearly a training row's; None where none was looked for
    near_example: str | None = None
    near_unseen: str | None = None  # why none was looked for
    featureless: int = 0  # rows equal to a training row's that show nothing: flat images, silent sounds


def find_copies(
    train: Table, test: Table, name: str, looked: ImageHashes, max_images: int | None = MAX_IMAGES
) -> SharedObservations:
    """Find the test rows of one modality whose observations a training row has too.

    Files are compared by content, so that copies under other names are found and only files of equal size
    are read; lists (of captions) by each of their items. Images are compared by their difference hashes as
    well, which finds images saved again or resized, not cropped ones. Unreadable observations are skipped
    here; loading them raises an error.

    Args:
        train: Rows trained on.
        test: Rows held out.
        name: The modality.
        looked: Hashes of images seen before; pass one dict to all calls.
        max_images: Near duplicates are not searched for among more images: all must be decoded.
    """
    rows_train, rows_test = train.rows_with([name]), test.rows_with([name])
    sizes = _file_sizes(test, name, rows_test) & _file_sizes(train, name, rows_train)
    first = {digest: row for row, digest in _hash_items(train, name, rows_train, sizes)}
    compared: set[int] = set()
    copied_from: dict[int, int] = {}
    blank: set[int] = set()
    words = False
    for row, item in _iterate_items(test, name, rows_test):
        compared.add(row)
        words = words or isinstance(item, str)
        digest = _hash_item(item, sizes)
        if digest is None or digest not in first:
            continue
        if _is_featureless(item, digest):  # all black or silent: alike, and no sign of a leak
            blank.add(row)
        else:
            copied_from.setdefault(row, first[digest])
    example = next((f"{test.keys[row]} and {train.keys[twin]}" for row, twin in copied_from.items()), None)
    same = SharedObservations(len(compared), len(copied_from), words, example, featureless=len(blank))
    if not _are_images(test, name, rows_test) or not _are_images(train, name, rows_train):
        return same
    if max_images is not None and len(rows_train) + len(rows_test) > max_images:
        many = f"{len(rows_train) + len(rows_test):,} images to decode, more than {max_images:,}"
        return replace(same, near_unseen=many)
    twins = _find_twins(
        _hash_images(train, name, rows_train, looked), _hash_images(test, name, rows_test, looked)
    )
    twins = {row: twin for row, twin in twins.items() if row not in copied_from}
    example = next((f"{test.keys[row]} and {train.keys[twin]}" for row, twin in twins.items()), None)
    return replace(same, near=len(twins), near_example=example)


_FEATURELESS: dict[Digest, bool] = {}  # by content, so that no copy is decoded twice
_MOST_KNOWN = 100_000


def _is_featureless(item: Any, digest: Digest) -> bool:
    """Return whether an image is of one colour, or a sound silent."""
    if digest not in _FEATURELESS:
        if len(_FEATURELESS) >= _MOST_KNOWN:
            _FEATURELESS.clear()
        if isinstance(item, tuple):  # samples and their rate
            samples = np.asarray(item[0])
            _FEATURELESS[digest] = bool(np.abs(samples).max(initial=0) < SILENT)
        else:
            _FEATURELESS[digest] = not isinstance(item, str) and inspect_raw(item).featureless
    return _FEATURELESS[digest]


def _are_images(table: Table, name: str, rows_N: NDArray[np.int64]) -> bool:
    first = next((item for _, item in _iterate_items(table, name, rows_N[:1])), None)
    return first is not None and not isinstance(first, tuple) and inspect_raw(first).kind == "image"


def _hash_images(table: Table, name: str, rows_N: NDArray[np.int64], looked: ImageHashes) -> list[HashedRow]:
    """Return the difference hashes of a modality's images, each with its row."""
    key = str(table.path), name, table.rows_N[rows_N].tobytes()
    if key not in looked:
        items = track(_iterate_items(table, name, rows_N), f"looking at {name}", len(rows_N))
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoders let other threads run
            looked[key] = [
                (row, marks)
                for part in group_items(items, _DECODE_BATCH)
                for row, marks in pool.map(lambda one: (one[0], inspect_raw(one[1]).marks), part)
            ]
    return looked[key]


def _find_twins(train: list[HashedRow], test: list[HashedRow]) -> dict[int, int]:
    """Find, for each test row, a training row with nearly the same image."""
    marked = [*train, *test]
    side = ["a"] * len(train) + ["b"] * len(test)
    pairs = find_near_duplicates([marks for _, marks in marked], side)
    return {marked[two][0]: marked[one][0] for one, two in pairs}


def _iterate_items(table: Table, name: str, rows_N: NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
    """Yield the readable observations of the rows, each with its row."""
    samples = table.samples(name) if len(rows_N) else ()
    for row in map(int, rows_N):
        try:
            sample = samples[row]
        except DataError:
            continue
        for item in sample if isinstance(sample, list) else [sample]:
            if isinstance(item, Path | str | bytes | np.ndarray | tuple):
                yield row, item


def _file_sizes(table: Table, name: str, rows_N: NDArray[np.int64]) -> set[int]:
    """Return the file sizes of a column; a column without files has none."""
    return {
        size for _, item in _items_of_files(table, name, rows_N) if (size := _file_size(item)) is not None
    }


def _items_of_files(table: Table, name: str, rows_N: NDArray[np.int64]) -> Iterator[tuple[int, Path]]:
    for row, item in _iterate_items(table, name, rows_N):
        if not isinstance(item, Path):
            return
        yield row, item


def _file_size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _hash_items(
    table: Table, name: str, rows_N: NDArray[np.int64], sizes: Collection[int]
) -> Iterator[tuple[int, Digest]]:
    for row, item in _iterate_items(table, name, rows_N):
        digest = _hash_item(item, sizes)
        if digest is not None:
            yield row, digest


def _hash_item(item: Any, sizes: Collection[int]) -> Digest | None:
    """Hash an observation; None for a file whose size no file of the other table has."""
    if isinstance(item, Path):
        return _hash_file(item) if _file_size(item) in sizes else None
    digest = hashlib.blake2b(digest_size=16)
    for part in item if isinstance(item, tuple) else (item,):
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(part if isinstance(part, bytes) else str(part).encode())
    return digest.digest()


def _hash_file(path: Path) -> Digest | None:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return None
    return digest.digest()


# N rows with a place; LL latitude and longitude in degrees


REACHES_KM = (1, 10, 100)
WARN_WITHIN = {1: 0.01, 10: 0.10}  # largest share of test rows this near to a training row without a warning


@dataclass(frozen=True)
class NearestDistances:
    """Ground distances from test rows to the nearest training row."""

    test_rows: int  # with a place
    train_rows: int
    least_km: float
    median_km: float
    within_km: dict[
        Annotated[str, Field(pattern=r"^\d{1,5}(\.\d{1,5})?$")], float
    ]  # shares of test rows, by kilometres
    shared_cells: int  # 1-degree cells that hold rows of both
    in_shared_cells: float  # share of test rows


@dataclass(frozen=True)
class SharedGroups:
    """Groups (recordings, say) that have rows in both splits."""

    shared: int
    test_rows: int  # rows of those groups
    compared: int  # test rows with a group


@dataclass(frozen=True)
class Leakage:
    """Overlap of a test split with a training split; None where the tables do not tell."""

    train: str
    test: str
    train_rows: int
    test_rows: int
    near: NearestDistances | None
    copies: dict[str, SharedObservations]  # by modality
    groups: SharedGroups | None
    faults: list[str]  # what makes figures on this split look better than they are

    @property
    def warning(self) -> str | None:
        """One line for tables if the split leaks, else None."""
        return f"{self.test} leaks from {self.train}: {'; '.join(self.faults)}" if self.faults else None

    def summary(self) -> str:
        """Return one line for people, whether or not the split leaks."""
        if self.warning:
            return self.warning
        parts = [
            f"{name}: {shared.rows:,} copies{'' if shared.near is None else f', {shared.near:,} near ones'}"
            for name, shared in self.copies.items()
        ]
        if self.near:
            shares = ", ".join(f"{share:.0%} within {km} km" for km, share in self.near.within_km.items())
            parts.append(f"nearest {self.near.least_km:,.2f} km, {shares}")
        if self.groups:
            parts.append("no shared group")
        return f"{self.test} against {self.train}: {'; '.join(parts) or 'nothing to compare'}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def leakage(
    train: Table,
    test: Table,
    modalities: Collection[str] | None = None,
    *,
    looked: ImageHashes | None = None,
    most_images: int | None = MAX_IMAGES,
) -> Leakage:
    """Compare test rows with training rows.

    Args:
        train: Rows trained on.
        test: Rows held out; of the same table or of another.
        modalities: Whose contents are compared; by default all that both tables have.
        looked: Image hashes seen before; passing one dict to several calls saves decoding images again.
        most_images: Near duplicates are not searched for in modalities with more images than this.
    """
    seen: ImageHashes = {} if looked is None else looked
    both = sorted(set(train.columns) & set(test.columns))
    names = both if modalities is None else [name for name in both if name in modalities]
    near = _measure_distances(train.places_LL, test.places_LL)
    copies = {name: find_copies(train, test, name, seen, most_images) for name in names}
    groups = _find_shared_groups(train, test)
    return Leakage(
        _table_name(train),
        _table_name(test),
        len(train),
        len(test),
        near,
        copies,
        groups,
        list(_find_faults(near, copies, groups)),
    )


def _find_faults(
    near: NearestDistances | None, copies: Mapping[str, SharedObservations], groups: SharedGroups | None
) -> Iterator[str]:
    """Yield what makes figures on the test split look better than they are."""
    for name, shared in copies.items():
        if shared.rows and not shared.words:
            yield f"{_test_rows(shared.rows, 'has', 'have')} a training row's {name} ({shared.example})"
        if shared.near:
            twins = f"{_test_rows(shared.near, 'has', 'have')} nearly the same {name} as a training row"
            yield f"{twins} ({shared.near_example})"
    if groups and groups.shared:
        yield f"{_test_rows(groups.test_rows, 'is', 'are')} of groups that were trained on"
    if near:
        for reach, limit in WARN_WITHIN.items():
            share = near.within_km[str(reach)]
            if share > limit:
                yield f"{share:.0%} of test rows lie within {reach} km of a training row"


def _test_rows(count: int, one: str, many: str) -> str:
    return f"1 test row {one}" if count == 1 else f"{count:,} test rows {many}"


def _table_name(table: Table) -> str:
    return f"split '{table.view}' of {table.name}" if table.view else table.name


def _measure_distances(
    train_LL: NDArray[np.float64] | None, test_LL: NDArray[np.float64] | None
) -> NearestDistances | None:
    train_NLL, test_NLL = _known_places(train_LL), _known_places(test_LL)
    if not len(train_NLL) or not len(test_NLL):
        return None
    km_N = nearest_km(test_NLL, train_NLL)
    train_cell_N, test_cell_N = number_degree_cells(train_NLL), number_degree_cells(test_NLL)
    shared_N = np.isin(test_cell_N, train_cell_N)
    return NearestDistances(
        len(test_NLL),
        len(train_NLL),
        float(km_N.min()),
        float(np.median(km_N)),
        {str(reach): float(np.mean(km_N <= reach)) for reach in REACHES_KM},
        len(np.unique(test_cell_N[shared_N])),
        float(shared_N.mean()),
    )


def _known_places(place_LL: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if place_LL is None:
        return np.zeros((0, 2))
    return place_LL[np.isfinite(place_LL).all(axis=1)]


def number_degree_cells(place_NLL: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number each place's 1-degree cell; 180 degrees east is 180 degrees west."""
    lat_N, lon_N = np.floor(place_NLL).astype(np.int64).T
    return lat_N * 360 + (lon_N + 180) % 360


def _find_shared_groups(train: Table, test: Table) -> SharedGroups | None:
    train_groups, test_groups = _group_of_rows(train), _group_of_rows(test)
    if not train_groups or not test_groups:
        return None
    shared = set(train_groups) & set(test_groups)
    return SharedGroups(len(shared), sum(group in shared for group in test_groups), len(test_groups))


def _group_of_rows(table: Table) -> list[str]:
    return [group for group in table.groups or () if group is not None]


ClusterBy = Literal["cell", "group", "row"]
MIN_CELLS = (
    8  # with fewer, cells are not taken for clusters unless asked for: intervals would be all there is
)


class Clusters(NamedTuple):
    """The cluster of each row, and why it is what it is."""

    by: Literal["cell", "group"] | None
    of_rows: Sequence[str | int | None] | None  # None: every row counts alone
    note: str


def choose_clusters(table: Table, by: ClusterBy | None) -> Clusters:
    """Choose which rows count as dependent queries: by default those of one `group`, else of one cell.

    Args:
        table: The rows.
        by: `cell`, `group`, or `row` for none; None decides by what the table has.

    Raises:
        DataError: Cells or groups are asked for, and no row says.
    """
    if by == "row":
        return Clusters(None, None, "each row counts alone, as `clusters: row` asks")
    chosen: Literal["cell", "group"] | None = by
    if by is None:
        chosen = "group" if table.groups is not None else "cell" if table.places_LL is not None else None
    if chosen is None:
        return Clusters(
            None, None, "each row counts alone; a column `group` would name rows that belong together"
        )
    of_rows = cluster_rows(table, chosen)
    count = len({of for of in of_rows if of is not None}) + sum(of is None for of in of_rows)
    thing = "group" if chosen == "group" else "cell of a degree"
    if by is None and chosen == "cell" and count < MIN_CELLS:
        return Clusters(
            None,
            None,
            f"each row counts alone, since all lie in {count} cells of a degree; a column `group` would name "
            "rows that belong together",
        )
    how = "" if by else ", by default"
    note = f"rows of one {thing} count as dependent{how}: {count:,} for {len(of_rows):,} rows"
    return Clusters(chosen, of_rows, note)


def cluster_rows(table: Table, by: Literal["cell", "group"]) -> Sequence[str | int | None]:
    """Return the cluster of each row; None for a row that counts alone.

    Args:
        table: The rows.
        by: `cell`: the 1-degree cell of its place; `group`: the table's `group` column.

    Raises:
        DataError: No row says.
    """
    if by == "group":
        if table.groups is None:
            raise DataError(
                f"{table.name}: intervals by group need a column `group`; map one with "
                "`columns: {group: COLUMN}`"
            )
        return table.groups
    places_LL = table.places_LL
    if places_LL is None:
        raise DataError(f"{table.name}: intervals by cell need columns `lat` and `lon`")
    known_N = np.atleast_1d(np.isfinite(places_LL).all(axis=1))
    cell_N = number_degree_cells(np.where(known_N[:, None], places_LL, 0.0))
    return [int(cell) if known else None for cell, known in zip(cell_N, known_N, strict=True)]
