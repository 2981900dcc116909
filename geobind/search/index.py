"""Exact search of embeddings, and the contract of indexes that approximate it within a measured recall."""

# N rows, R rows that pass a filter, B of a block, Q queries, K matches, D width

from __future__ import annotations

import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self, SupportsIndex

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geobind.errors import CheckpointError, DataError, PluginError
from geobind.extras import find_missing
from geobind.plugins import PluginKind, Registry, list_entry_points
from geobind.utils.arrays import as_array, is_array
from geobind.utils.files import read_json, replace_atomic, write_json
from geobind.utils.formatting import format_first_fault

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Rows = NDArray[np.int64]
    Vectors = NDArray[np.floating[Any]]

CARD, _VECTORS = "card.json", "vectors.npy"
EXACT_ROWS, EXACT_SHARE = (
    50_000,
    0.02,
)  # filters that leave fewer rows than either are always searched exactly
MIN_RECALL = 0.99  # an approximation is used only where its measured recall reaches this
_BLOCK_BYTES = 2**25  # of vectors that are scored at a time
_CACHED_BYTES = 2**19  # of float32 that are converted at a time: they stay in a processor's cache
_FEW = 4  # queries up to which numkong, which reads all rows for each, is faster than a blocked product
_HALF = 2.0**-11  # by which rounding to float16 changes a number, as a share of it
_LENGTH_SLACK = 0.01  # of unit-length vectors that were rounded to float16


class Matches(NamedTuple):
    """The rows nearest to each query (Q, K), best first, with their similarities; equal ones in row order."""

    rows_QK: Rows
    similarity_QK: NDArray[np.float32]


class MeasuredRecall(BaseModel):
    """Share of the true nearest rows that an index returns, over queries of the same filter share."""

    model_config = ConfigDict(frozen=True)

    share: float = Field(gt=0, le=1, description="of the rows that pass the filter; 1: no filter")
    k: int = Field(ge=1)
    effort: int = Field(ge=1, description="of the engine, such as the lists that are probed")
    recall: float = Field(ge=0, le=1)
    queries: int = Field(ge=1)


class IndexCard(BaseModel):
    """The facts of an index: what it holds, of which archive and model, and its measured recall."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    kind: str
    rows: int = Field(ge=1)
    width: int = Field(ge=1)
    dtype: Literal["float16", "float32"]
    archive: str = Field("", description="digest of the archive")
    model: str = Field("", description="digest of the model that embedded it")
    measured: tuple[MeasuredRecall, ...] = ()


class VectorIndex(ABC):
    """A search structure over unit-length embeddings; rows are numbered in the order they are added."""

    name: ClassVar[str]  # the word that commands use
    needs: ClassVar[str] = ""  # the module that it imports, if geobind does not come with it
    install: ClassVar[str] = ""  # the command that installs it

    archive: str = ""  # digest of the archive that the rows are of
    model: str = ""  # digest of the model that embedded them

    @abstractmethod
    def add(self, vectors_ND: Any) -> None:
        """Append unit-length embeddings, float16 or float32 (N, D).

        Raises:
            DataError: Another width or type than before, or a row that is not finite or not of unit length.
        """

    @abstractmethod
    def search(self, query_QD: Any, k: int, rows: Any = None) -> Matches:
        """Return the K = min(k, rows) nearest of all rows, or of those given.

        Args:
            query_QD: Embeddings; one (D,) is a query of one row. They are scaled to unit length.
            k: Matches for each query.
            rows: Row numbers, or a mask of N, that the search is limited to.

        Raises:
            DataError: Queries of another width or not finite, k below 1, or rows that are not there.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the index; a folder without its card is no index.

        Raises:
            StorageError: The disk is full, or the folder cannot be written.
        """

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read an index; no pickle.

        Raises:
            CheckpointError: It is damaged, incomplete, or of another kind.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    @abstractmethod
    def measured(self) -> Sequence[MeasuredRecall]:
        """The recall measured on this index's own rows; empty of an index that is exact."""


class Exact(VectorIndex):
    """Exact search: the rows with the largest dot products, whatever the kernel and the filter."""

    name: ClassVar[str] = "exact"

    def __init__(self) -> None:
        self._parts: list[Vectors] = []

    def add(self, vectors_ND: Any) -> None:
        """Append unit-length embeddings; see `VectorIndex.add`."""
        added_ND = check_vectors(vectors_ND)
        first_ND = self._parts[0] if self._parts else added_ND  # `vectors` would join the parts: a copy
        if (added_ND.shape[1], added_ND.dtype) != (first_ND.shape[1], first_ND.dtype):
            raise DataError(
                f"vectors of {added_ND.dtype} x {added_ND.shape[1]} do not fit an index of "
                f"{first_ND.dtype} x {first_ND.shape[1]}"
            )
        self._parts.append(added_ND)

    @property
    def vectors(self) -> Vectors:
        """The rows (N, D)."""
        if not self._parts:
            raise DataError("the index is empty; add vectors first")
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0]

    @property
    def width(self) -> int:
        """Length D of a vector."""
        return self.vectors.shape[1]

    def search(self, query_QD: Any, k: int, rows: Any = None) -> Matches:
        """Return the nearest rows; see `VectorIndex.search`."""
        if rows is None:
            return scan(_cut(self.vectors), query_QD, k, self.width)
        chosen_R = check_rows(rows, len(self))
        step = block_rows(self.width, self.vectors.dtype)
        gathered = (
            (chosen_R[start : start + step], self.vectors[chosen_R[start : start + step]])
            for start in range(0, len(chosen_R), step)
        )
        return scan(gathered, query_QD, k, self.width)

    def save(self, folder: Path) -> None:
        """Write the index; see `VectorIndex.save`."""
        self.write_vectors(folder)
        write_json(folder / CARD, build_card(self, self.vectors).model_dump())

    def write_vectors(self, folder: Path) -> None:
        """Write the rows without a card; that of an index which was there before is removed first."""
        (folder / CARD).unlink(missing_ok=True)
        with replace_atomic(folder / _VECTORS) as temporary, temporary.open("wb") as file:
            np.save(file, self.vectors, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an index, its vectors mapped from the disk; see `VectorIndex.load`."""
        index, card = cls(), read_card(folder)
        index._parts = [_map_vectors(folder / _VECTORS, card)]
        index.archive, index.model = card.archive, card.model
        return index

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def measured(self) -> Sequence[MeasuredRecall]:
        """Nothing: it is exact."""
        return ()


class ApproximateIndex(VectorIndex):
    """An index that looks at part of the rows, where its measured recall allows that.

    It holds the vectors too, for an exact search where the recall was not measured, is below `MIN_RECALL`, or
    a filter leaves few rows. Subclasses build, query, write and read an engine of their own.
    """

    filters: ClassVar[bool] = True  # whether the engine can be limited to rows; otherwise those are exact
    efforts: Sequence[int] = (1,)  # how much of the rows the engine may look at, ascending

    def __init__(self) -> None:
        self.exact = Exact()
        self._measured: tuple[MeasuredRecall, ...] = ()
        self._built = 0

    @abstractmethod
    def build(self, vectors_ND: Vectors) -> None:
        """Build the engine over all rows, and set `efforts`."""

    @abstractmethod
    def find(self, query_QD: NDArray[np.float32], k: int, rows: Rows | None, effort: int) -> Rows:
        """Return candidate rows of each query (Q, any), with -1 where there are fewer."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write the engine beside the vectors."""

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Read the engine back, and set `efforts`.

        Raises:
            CheckpointError: It is damaged.
        """

    def add(self, vectors_ND: Any) -> None:
        """Append unit-length embeddings; what was measured before holds no longer."""
        self.exact.add(vectors_ND)
        self._measured = ()

    def search(self, query_QD: Any, k: int, rows: Any = None) -> Matches:
        """Return the nearest rows, exactly wherever the measured recall is too low."""
        chosen = None if rows is None else check_rows(rows, len(self))
        left = len(self) if chosen is None else len(chosen)
        effort = choose_effort(self._measured, left, len(self), k)
        if effort is None or (chosen is not None and not self.filters):
            return self.exact.search(query_QD, k, chosen)
        count, found = min(check_count(k), left), self.approximate(query_QD, k, chosen, effort)
        short = [number for number, one in enumerate(found) if one.rows_QK.shape[1] < count]
        if short:  # the engine saw too few rows that pass the filter
            again = self.exact.search(check_queries(query_QD, self.exact.width)[short], k, chosen)
            for number, rows_K, similarity_K in zip(short, *again, strict=True):
                found[number] = Matches(rows_K[None], similarity_K[None])
        return Matches(*map(np.concatenate, zip(*found, strict=True)))

    def approximate(self, query_QD: Any, k: int, rows: Rows | None, effort: int) -> list[Matches]:
        """Return what the engine finds for each query with some effort, exactly scored; it may be too few."""
        query_QD = check_queries(query_QD, self.exact.width)
        self.prepare()
        candidates = self.find(query_QD, check_count(k), rows, effort)
        pairs = zip(query_QD, candidates, strict=True)
        return [self.exact.search(query_D, k, row_C[row_C >= 0]) for query_D, row_C in pairs]

    def prepare(self) -> None:
        """Build the engine over the rows added so far, unless it is."""
        if self._built != len(self):
            self.build(self.exact.vectors)
            self._built = len(self)

    def save(self, folder: Path) -> None:
        """Write the index, which must have been measured; see `VectorIndex.save`.

        Raises:
            DataError: Its recall was not measured.
        """
        if not self._measured:
            raise DataError(f"index '{self.name}': its recall was not measured; call measure_recall first")
        self.prepare()
        self.exact.write_vectors(folder)
        self.write(folder)
        write_json(folder / CARD, build_card(self, self.exact.vectors).model_dump())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an index; see `VectorIndex.load`."""
        index, card = cls(), read_card(folder)
        index.exact = Exact.load(folder)
        index.archive, index.model = card.archive, card.model
        index._measured, index._built = card.measured, card.rows
        index.read(folder)
        return index

    def __len__(self) -> int:
        return len(self.exact)

    @property
    def measured(self) -> Sequence[MeasuredRecall]:
        """The recall by filter share, number of matches and effort."""
        return self._measured

    @measured.setter
    def measured(self, measured: Iterable[MeasuredRecall]) -> None:
        self._measured = tuple(measured)


def choose_effort(measured: Sequence[MeasuredRecall], left: int, total: int, k: int) -> int | None:
    """Return the least effort with enough recall for a filter that leaves some rows; None: search exactly.

    Recall must have been measured at shares on both sides of this one, with at least as many matches; the
    harder side decides, since more effort looks at more rows.
    """
    if left <= max(EXACT_ROWS, EXACT_SHARE * total):
        return None
    share, counts = left / total, sorted({one.k for one in measured if one.k >= k})
    known = [one for one in measured if counts and one.k == counts[0]]
    below = max((one.share for one in known if one.share <= share), default=None)
    above = min((one.share for one in known if one.share >= share), default=None)
    least = [
        min((one.effort for one in known if one.share == side and one.recall >= MIN_RECALL), default=None)
        for side in (below, above)
    ]
    enough = [effort for effort in least if effort is not None]
    return max(enough) if len(enough) == len(least) else None


# Registry ---------------------------------------------------------------------------------------------


INDEX = PluginKind("index", VectorIndex, "geobind.search.VectorIndex", "geobind_indexes")


@lru_cache(maxsize=1)
def registry() -> Registry[VectorIndex]:
    """Return every kind of index on this machine; plugins are looked up once per process."""
    return INDEX.collect(list_entry_points())


def create_index(name: str) -> VectorIndex:
    """Create an empty index of a kind.

    Raises:
        PluginError: There is none of this name, or the package it needs is not installed.
    """
    return _require_kind(name)()


def load_index(folder: str | Path) -> VectorIndex:
    """Read an index of whatever kind its card names.

    Raises:
        CheckpointError: There is none, or it is damaged.
        PluginError: No plugin provides its kind, or the package that it needs is not installed.
    """
    return _require_kind(read_card(Path(folder)).kind).load(Path(folder))


def _require_kind(name: str) -> type[VectorIndex]:
    if name == Exact.name:
        return Exact
    cls = registry().get(name)
    for fault in find_missing({cls.needs: cls.install} if cls.needs else {}):
        raise PluginError(f"index '{name}' {fault}")
    return cls


# Cards and vectors on disk ----------------------------------------------------------------------------


def build_card(index: VectorIndex, vectors_ND: Vectors) -> IndexCard:
    """Return the facts of an index."""
    return IndexCard(
        kind=index.name,
        rows=len(vectors_ND),
        width=vectors_ND.shape[1],
        dtype="float16" if vectors_ND.dtype == np.float16 else "float32",
        archive=index.archive,
        model=index.model,
        measured=tuple(index.measured),
    )


def read_card(folder: Path) -> IndexCard:
    """Read the card of an index.

    Raises:
        CheckpointError: There is none, or it is not as geobind writes it.
    """
    values = read_json(folder / CARD)
    if not values:
        raise CheckpointError(
            f"{folder}: no index, or one whose building was interrupted; make it with `geobind index build`"
        )
    try:
        return IndexCard.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(
            f"{folder / CARD}: {format_first_fault(error)}; build the index again"
        ) from None


def _map_vectors(path: Path, card: IndexCard) -> Vectors:
    """Map vectors from the disk, without reading them.

    Raises:
        CheckpointError: They are not there, or not those of the card.
    """
    try:
        vectors = np.load(path, mmap_mode="c", allow_pickle=False)  # torch wants to be able to write
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); build the index again") from error
    if vectors.shape != (card.rows, card.width) or vectors.dtype != np.dtype(card.dtype):
        raise CheckpointError(
            f"{path}: holds {vectors.dtype} of shape {vectors.shape}, and its card says {card.dtype} of "
            f"({card.rows}, {card.width}); build the index again"
        )
    return vectors


# Checks -----------------------------------------------------------------------------------------------


def check_vectors(vectors_ND: Any) -> Vectors:
    """Return unit-length embeddings as float16 or float32 (N, D).

    Raises:
        DataError: They are no such array, not finite, or not of unit length.
    """
    if not is_array(vectors_ND):
        raise DataError(f"vectors must be an array (N, D), not a {type(vectors_ND).__name__}")
    values = as_array(vectors_ND, "vectors")
    if values.ndim != 2 or not values.size:
        raise DataError(f"vectors must be (N, D) with at least one row, not of shape {values.shape}")
    kept = np.ascontiguousarray(values if values.dtype.str[1:] in ("f2", "f4") else values.astype(np.float32))
    for start, block_BD in _cut(kept):
        length_B = np.sqrt(np.einsum("bd,bd->b", block_BD, block_BD, dtype=np.float32))
        wrong_B = ~(np.abs(length_B - 1) <= _LENGTH_SLACK)
        if wrong_B.any():
            row = int(np.argmax(wrong_B))
            raise DataError(
                f"vectors: row {int(start[row])} has length {length_B[row]:.4g}, and indexes hold embeddings "
                "of length 1, as `Binder.embed` gives them"
            )
    return kept


def check_queries(query_QD: Any, width: int) -> NDArray[np.float32]:
    """Return queries scaled to unit length, float32 (Q, D).

    Raises:
        DataError: They are of another width, not finite, or zero.
    """
    if not is_array(query_QD):
        raise DataError(f"a query must be an embedding, not a {type(query_QD).__name__}: see Binder.compose")
    values = as_array(query_QD, "the query")
    rows = values[None] if values.ndim == 1 else values
    if rows.ndim != 2 or rows.shape[1] != width:
        raise DataError(
            f"the query has shape {values.shape}, and the index holds vectors of width {width}; embed it "
            "with the model of the archive"
        )
    import torch

    from geobind.utils.vectors import require_directions, unit

    known = torch.from_numpy(np.require(rows, np.float32, ["C", "W"]))
    return unit(require_directions(known, "the query")).numpy()


def check_count(k: int) -> int:
    """Return a number of matches.

    Raises:
        DataError: It is no whole number of at least 1.
    """
    if isinstance(k, bool) or not isinstance(k, SupportsIndex) or operator.index(k) < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(f"k must be a whole number of at least 1, not {k!r}")
    return operator.index(k)


def check_rows(rows: Any, total: int) -> Rows:
    """Return row numbers, sorted and each once, of numbers or of a mask.

    Raises:
        DataError: They are no whole numbers of rows that are there, or the mask has another length.
    """
    given = np.asarray(rows)
    if given.dtype == bool:
        if given.shape != (total,):
            raise DataError(f"a mask of {given.shape} rows for an index of {total}")
        return np.flatnonzero(given)
    if given.size and given.dtype.kind not in "iu":
        raise DataError(f"rows must be whole numbers or a mask, not {given.dtype}")
    chosen = np.unique(given).astype(np.int64)
    if len(chosen) and not 0 <= chosen[0] <= chosen[-1] < total:
        raise DataError(f"rows {chosen[0]} to {chosen[-1]} are not all in an index of {total} rows")
    return chosen


# Scoring ----------------------------------------------------------------------------------------------


class _Kernel(Protocol):
    """Dot products of a block with all queries, (Q, B), within `slack_Q` of the exact ones."""

    slack_Q: NDArray[np.float64]

    def __call__(self, block_BD: Vectors) -> NDArray[Any]: ...


class _TorchKernel:
    """A product in float32, to which rows are converted piece by piece."""

    def __init__(self, query_QD: NDArray[np.float32]) -> None:
        import torch

        width = query_QD.shape[1]
        self.query_DQ = torch.from_numpy(query_QD).T.contiguous()
        self.buffer_BD = torch.empty(max(1, _CACHED_BYTES // (4 * width)), width)
        self.slack_Q = np.full(len(query_QD), _rounding(width))

    def __call__(self, block_BD: Vectors) -> NDArray[Any]:
        rows_BD = _as_tensor(block_BD)
        score_BQ = self.buffer_BD.new_empty(len(rows_BD), self.query_DQ.shape[1])
        for start in range(0, len(rows_BD), len(self.buffer_BD)):
            part_BD = rows_BD[start : start + len(self.buffer_BD)]
            converted_BD = self.buffer_BD[: len(part_BD)].copy_(part_BD)
            score_BQ[start : start + len(part_BD)] = converted_BD @ self.query_DQ
        return score_BQ.T.numpy()


class _StoredKernel:
    """A product in the type of the rows, which are read once and not converted; queries are rounded to it.

    Numkong's sums are float32; torch's are rounded to the type once they are complete.
    """

    def __init__(self, query_QD: NDArray[np.float32], kind: np.dtype[Any]) -> None:
        rounded_QD = query_QD.astype(kind)
        lost_Q = np.linalg.norm(query_QD.astype(np.float64) - rounded_QD, axis=1)
        self.slack_Q = (1 + _LENGTH_SLACK) * lost_Q + _rounding(query_QD.shape[1])
        self.product: Callable[[Vectors], NDArray[Any]]
        if has_fast_kernel():
            from numkong import cdist  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

            self.product = lambda block_BD: np.asarray(cdist(rounded_QD, block_BD, metric="dot"))
        else:
            import torch

            queries = [torch.from_numpy(query_D) for query_D in rounded_QD]
            self.product = lambda block_BD: np.stack(
                [torch.mv(_as_tensor(block_BD), query_D).numpy() for query_D in queries]
            )
            self.slack_Q += (1 + _LENGTH_SLACK) * _HALF

    def __call__(self, block_BD: Vectors) -> NDArray[Any]:
        return self.product(block_BD)


def _as_tensor(block_BD: Vectors) -> Tensor:
    import torch

    return torch.from_numpy(np.require(block_BD, requirements=["C", "W"]))


def _rounding(width: int) -> float:
    """Return the bound of a float32 dot product's error, whatever the order of its sum."""
    return 2 * width * 2.0**-24


def _choose_kernel(query_QD: NDArray[np.float32], kind: np.dtype[Any]) -> _Kernel:
    if len(query_QD) <= _FEW and (has_fast_kernel() or (kind == np.float16 and has_half_product())):
        return _StoredKernel(query_QD, kind)
    return _TorchKernel(query_QD)


@lru_cache(maxsize=1)
def has_fast_kernel() -> bool:
    """Return whether numkong can be used on this machine."""
    try:
        import numkong  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except (ImportError, OSError):
        return False
    return True


@lru_cache(maxsize=1)
def has_half_product() -> bool:
    """Return whether torch multiplies float16 faster here than it converts it, with sums in float32.

    It does on processors with the right instructions; on others it may take ten times as long.
    """
    import torch

    drawn_ND = np.random.default_rng(0).random((2048, 512), np.float32)  # none negative: sums do not cancel
    rows_ND = torch.nn.functional.normalize(torch.from_numpy(drawn_ND)).half()
    query_D = rows_ND[0].clone()
    seconds: list[float] = []
    for multiply in (lambda: torch.mv(rows_ND, query_D), lambda: torch.mv(rows_ND.float(), query_D.float())):
        times: list[float] = []
        for _ in range(3):
            began = time.perf_counter()
            multiply()
            times.append(time.perf_counter() - began)
        seconds.append(min(times))
    exact_N = rows_ND.double() @ query_D.double()
    error = float((torch.mv(rows_ND, query_D).double() - exact_N).abs().max())
    return seconds[0] < seconds[1] and error <= _HALF + _rounding(rows_ND.shape[1])


def block_rows(width: int, kind: np.dtype[Any]) -> int:
    """Return the rows of a block that is scored at a time."""
    return max(1, _BLOCK_BYTES // (width * kind.itemsize))


def _cut(vectors_ND: Vectors) -> Iterator[tuple[Rows, Vectors]]:
    """Yield blocks of rows with their numbers."""
    step = block_rows(vectors_ND.shape[1], vectors_ND.dtype)
    for start in range(0, len(vectors_ND), step):
        block = vectors_ND[start : start + step]
        yield np.arange(start, start + len(block)), block


def scan(blocks: Iterable[tuple[Rows, Vectors]], query_QD: Any, k: int, width: int) -> Matches:
    """Find the nearest rows exactly, in one pass over blocks of vectors.

    A fast kernel scores all rows of a block within a known error; the few that may be among the nearest are
    scored again in float64. So the result is the same to the bit for every kernel, block size and filter.

    Args:
        blocks: Row numbers (B,) and their vectors (B, D), in ascending order.
        query_QD: Embeddings.
        k: Matches for each query.
        width: Length D of a vector.

    Returns:
        (Q, K) matches, with K the smaller of `k` and the rows there are.

    Raises:
        DataError: As `VectorIndex.search`.
    """
    query_QD, count = check_queries(query_QD, width), check_count(k)
    best = [(np.zeros(0, np.int64), np.zeros(0)) for _ in query_QD]
    kernel: _Kernel | None = None
    for rows_B, block_BD in blocks:
        kernel = kernel or _choose_kernel(query_QD, block_BD.dtype)
        score_QB = kernel(block_BD)
        for number, slack in enumerate(kernel.slack_Q):
            best[number] = _keep_best(
                best[number], rows_B, block_BD, query_QD[number], score_QB[number], count, float(slack)
            )
    return Matches(
        np.stack([rows for rows, _ in best]), np.stack([score for _, score in best]).astype(np.float32)
    )


def _keep_best(
    best: tuple[Rows, NDArray[np.float64]],
    rows_B: Rows,
    block_BD: Vectors,
    query_D: NDArray[np.float32],
    score_B: NDArray[Any],
    count: int,
    slack: float,
) -> tuple[Rows, NDArray[np.float64]]:
    """Merge the best rows of a block, by exact scores, into the best so far."""
    rows_K, exact_K = best
    least = exact_K[-1] - slack if len(rows_K) == count else -np.inf
    maybe = np.flatnonzero(score_B >= least)
    if not len(maybe):
        return best
    if len(maybe) > count:
        kth = np.partition(score_B[maybe], -count)[-count]
        maybe = maybe[score_B[maybe] >= kth - 2 * slack]
    exact_M = (block_BD[maybe].astype(np.float64) * query_D).sum(axis=1)
    rows = np.concatenate([rows_K, rows_B[maybe]])
    exact = np.concatenate([exact_K, exact_M])
    order = np.lexsort((rows, -exact))[:count]
    return rows[order], exact[order]
