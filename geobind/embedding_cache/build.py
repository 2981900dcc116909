"""Cached columns of embeddings: finding missing rows and computing them."""

# B inputs of a batch, M rows, F numbers of a row, D width of the space

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from geobind.data.loader import Failure, load_batches
from geobind.data.seeds import seeded_rng
from geobind.data.sources import find_missing_storage
from geobind.embedding_cache.keys import (
    MISSING,
    CachedPart,
    FileHashes,
    Uncacheable,
    content_hashes,
    hash_view,
    pack_hashes,
)
from geobind.embedding_cache.store import LIMIT_VARIABLE, CacheEntry, ShardRows, read_limit
from geobind.errors import DataError, StorageError
from geobind.inference import collate, eval_mode, to_device
from geobind.modality import Modality
from geobind.utils.progress import track
from geobind.utils.vectors import unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Prepared


_SECONDS = 30.0  # the most that an interruption loses
_BYTES = 2**27  # the most to keep in memory before writing


class MissingRow(NamedTuple):
    """An observation whose row is missing."""

    row: int  # number of the pair
    item: int  # number among the pair's equally good observations
    view: int  # number of the augmented view
    content: tuple[int, int]


class _PreparedInput(NamedTuple):
    number: int
    prepared: Prepared | None
    fault: str = ""
    drew: bool = False  # random numbers, although preparing must be deterministic


@dataclass
class CacheBuilder:
    """Computes missing rows of one modality and writes them.

    Args:
        entry: The cache entry to write to.
        modality: Prepares the inputs.
        raws: The raw input of each pair, or a list of equally good ones.
        augmented: Whether to prepare inputs as for training.
        views: Number of augmented views of each input; 0 means that preparing must be deterministic.
        encode: Maps a prepared batch to float32 (B, F).
        check: Raises TrainingError if the encoder's weights are not those of the entry's key.
        batch_size: Inputs per forward pass.
        workers: Number of processes that prepare inputs.
    """

    entry: CacheEntry
    modality: Modality
    raws: Sequence[Any]
    augmented: bool
    views: int
    encode: Callable[[Any], NDArray[np.float32]]
    check: Callable[[], None]
    batch_size: int
    workers: int
    _made: list[tuple[NDArray[np.float32], list[tuple[int, int]]]] = field(default_factory=list, init=False)
    _written: float = field(default=0.0, init=False)

    def fill(self, missing: Sequence[MissingRow]) -> dict[int, str]:
        """Compute and write the rows of these observations.

        Returns:
            The faults of unusable observations, by their number in `missing`.

        Raises:
            Uncacheable: Preparing draws random numbers, or the rows would not fit.
            TrainingError: The encoder changes its weights while it runs.
            StorageError: The disk is full.
        """
        faults: dict[int, str] = {}
        numbers = range(len(missing))
        batches = [numbers[i : i + self.batch_size] for i in range(0, len(missing), self.batch_size)]
        samples = _MissingInputs(self, missing)
        self._written = time.monotonic()
        title = f"embedding {self.modality.name} for the cache, batches of {self.batch_size}"
        loaded = load_batches(samples, batches, _collate, self.workers)
        try:
            for good, batch, broken, drew in track(loaded, title, len(batches)):
                if drew:
                    raise Uncacheable(
                        "preparing it draws random numbers; `cache: {views: K}` keeps K augmented views "
                        "of each"
                    )
                faults |= broken
                if good:
                    self._keep(self.encode(batch), [missing[number].content for number in good], len(missing))
        except KeyboardInterrupt:  # the run is asked to stop: keep the rows so far
            self._write()
            raise
        self._write()
        return faults

    def _keep(self, value_BF: NDArray[np.float32], contents: list[tuple[int, int]], total: int) -> None:
        needed = total * value_BF[0].size * 2
        if needed > read_limit():
            raise Uncacheable(
                f"{total} rows of {value_BF[0].size} numbers take {needed / 1e9:.3g} GB, more than the "
                f"{read_limit() / 1e9:g} GB that {LIMIT_VARIABLE} allows"
            )
        self._made.append((value_BF, contents))
        unwritten = sum(values.nbytes for values, _ in self._made)
        if unwritten >= _BYTES or time.monotonic() - self._written >= _SECONDS:
            self._write()

    def _write(self) -> None:
        if not self._made:
            return
        # Weights that drift would put rows of one encoder under the key of another.
        self.check()
        content_M2 = np.array(
            [content for _, contents in self._made for content in contents], dtype=np.uint64
        )
        self.entry.add(content_M2, np.concatenate([values for values, _ in self._made]))
        self._made, self._written = [], time.monotonic()


class _MissingInputs(Dataset[Any]):
    """Prepares observations, and detects whether that draws random numbers."""

    def __init__(self, builder: CacheBuilder, missing: Sequence[MissingRow]) -> None:
        self.modality, self.raws, self.missing = builder.modality, builder.raws, missing
        self.augmented, self.views = builder.augmented, builder.views

    def __getitem__(self, number: int) -> _PreparedInput | Failure:
        row, item, _, content = self.missing[number]
        try:
            raw = self.raws[row]
            one = raw[item] if isinstance(raw, list) else raw
            # The seed of a view is its content hash, so it is the same in every run.
            with seeded_rng(*content):
                prepared = self.modality.prepare(one, training=self.augmented)
                after = _draw_numbers()
            with seeded_rng(*content):
                drew = after != _draw_numbers()
            return _PreparedInput(number, prepared, drew=drew and not self.views)
        except DataError as error:
            if gone := find_missing_storage(self.raws, row):
                return Failure(gone)
            return _PreparedInput(number, None, fault=str(error))
        except Exception as error:  # a bug, not the data's fault: it ends the run, with a note where
            error.add_note(f"while preparing input {row} of {self.modality.name}")
            raise


def _draw_numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.random_sample()), float(torch.rand((), dtype=torch.float64))


def _collate(samples: list[_PreparedInput]) -> tuple[list[int], Any, dict[int, str], bool]:
    """Return the prepared numbers and their batch, the faults of the others, and whether any drew numbers."""
    good = [sample for sample in samples if sample.prepared is not None]
    batch = collate([sample.prepared for sample in good if sample.prepared is not None]) if good else None
    faults = {sample.number: sample.fault for sample in samples if sample.prepared is None}
    return [sample.number for sample in good], batch, faults, any(sample.drew for sample in samples)


# N pairs, M observations (a pair may have several), K views of each, B pairs of a batch, F numbers of a row


ContentHash = tuple[int, int]
_MAX_SHOWN = 5  # broken inputs in a message


class InputHashes(NamedTuple):
    """Content hashes of all inputs of one modality."""

    first_N: NDArray[np.int64]  # (N + 1,) first observation of each pair
    listed_N: NDArray[np.bool_]  # whether the pair has a list of observations, of which one is drawn
    contents_M: list[bytes | DataError]


class FillRanks(NamedTuple):
    """The processes that share the filling of the cache."""

    rank: int
    world: int
    agree: Callable[[bool], bool]  # true if true on every rank; all ranks wait for each other


SINGLE_PROCESS = FillRanks(0, 1, bool)


@dataclass(frozen=True, eq=False)
class CacheIndex:
    """Index from pairs to rows of the cache, small enough to send to the loader's processes."""

    first_N: NDArray[np.int64]
    listed_N: NDArray[np.bool_]
    row_MK: NDArray[np.int64]  # rows of the cache, -1 for none
    faults: Mapping[int, str]  # reasons for missing rows, by observation

    def cell(self, pair: int) -> int | list[int] | None:
        """Return the number of a pair's observation, or a list of numbers if it has several."""
        start, end = int(self.first_N[pair]), int(self.first_N[pair + 1])
        if self.listed_N[pair]:
            return list(range(start, end))
        return None if self.faults.get(start) == str(MISSING) else start

    def row(self, item: int, draw: Callable[[int], int]) -> int:
        """Return the cache row of one of the observation's views.

        Raises:
            DataError: The observation is unusable.
        """
        views = self.row_MK.shape[1]
        row = int(self.row_MK[item, draw(views) if views > 1 else 0])
        if row < 0:
            raise DataError(self.faults[item])
        return row

    def pick(self, pair: int, draw: Callable[[int], int]) -> int:
        """Return the cache row of a pair: of one observation, drawn as the loader draws it, and of one view.

        Raises:
            DataError: The observation is unusable.
        """
        start, end = int(self.first_N[pair]), int(self.first_N[pair + 1])
        return self.row(start + (draw(end - start) if self.listed_N[pair] else 0), draw)

    @property
    def fixed_N(self) -> NDArray[np.int64]:
        """Row of each pair with a single cached row, -1 for the others (N,)."""
        if self.row_MK.shape[1] > 1:
            return np.full(len(self.listed_N), -1, dtype=np.int64)
        return np.where(self.listed_N, -1, self.row_MK[self.first_N[:-1], 0])


class CachedColumn(NamedTuple):
    """One modality of a stage as read from the cache."""

    lookup: CacheIndex
    rows: ShardRows
    made: int  # rows that this process computed

    def read(self, row_B: NDArray[np.int64]) -> Tensor:
        """Return rows by their numbers, float32 (B, F)."""
        return self.rows.read(row_B)


def hash_inputs(raws: Sequence[Any], files: FileHashes, title: str) -> InputHashes:
    """Hash every input of one modality, reusing the hashes of known files.

    Raises:
        Uncacheable: An input is of a kind that cannot be hashed.
    """
    counts: list[int] = []
    listed: list[bool] = []
    contents: list[bytes | DataError] = []

    def cells() -> Iterator[Any]:
        for cell in track(_iter_cells(raws), title, len(raws)):
            listed.append(isinstance(cell, list) and len(cell) > 0)
            yield cell

    for hashes in content_hashes(cells(), files):
        counts.append(len(hashes))
        contents += hashes
    return InputHashes(np.cumsum([0, *counts]), np.array(listed, dtype=bool), contents)


def ensure_cached(
    inputs: InputHashes,
    builder: CacheBuilder,
    *,
    views: int,
    max_broken: float,
    ranks: FillRanks = SINGLE_PROCESS,
) -> CachedColumn | None:
    """Return the cached rows of one modality, after computing missing ones, each rank its share.

    Args:
        inputs: The modality's inputs.
        builder: Computes rows.
        views: Number of augmented views of each observation; 0 means none is augmented.
        max_broken: Share of the observations that may be unusable.
        ranks: The processes that share the work.

    Returns:
        The column, or None if another rank failed to compute its rows and raises.

    Raises:
        Uncacheable: The rows cannot be kept, or another process prunes them.
        StorageError: The disk is full.
        DataError: Too many observations are broken.
    """
    content_MK2 = _hash_views(inputs, views)
    faults: dict[ContentHash, str] = {}
    made = 0
    # The second pass computes rows that another machine has on its own disk, and those of shards lost since.
    for step in (ranks.world, 1):
        missing = _find_missing(inputs, content_MK2, builder.entry.rows(), faults)
        mine = missing[ranks.rank :: step] if step > 1 else missing
        trouble: Exception | None = None
        try:
            unusable = builder.fill(mine) if mine else {}
            faults |= {mine[number].content: reason for number, reason in unusable.items()}
            made += len(mine) - len(unusable)
        except (Uncacheable, StorageError) as error:
            trouble = error
        if not ranks.agree(trouble is None):
            if trouble:
                raise trouble
            return None
    if ranks.rank == 0:
        builder.entry.merge()
    ranks.agree(True)  # no rank reads before the merge is done
    rows = builder.entry.rows()
    lost = _find_missing(inputs, content_MK2, rows, faults)
    if not ranks.agree(not lost):
        raise Uncacheable(f"{len(lost)} of its rows were pruned by another process")
    index = _build_index(inputs, content_MK2, rows, faults)
    _check_broken(builder, inputs, index, max_broken)
    return CachedColumn(index, rows, made)


def _hash_views(inputs: InputHashes, views: int) -> NDArray[np.uint64]:
    """Return the hash of each view of each observation (M, K, 2); zeros for broken inputs."""
    unknown = bytes(16)
    hashes = (unknown if isinstance(one, DataError) else one for one in inputs.contents_M)
    if views:
        hashes = (one if one == unknown else hash_view(one, view) for one in hashes for view in range(views))
    return pack_hashes(hashes).reshape(len(inputs.contents_M), max(views, 1), 2)


def _find_missing(
    inputs: InputHashes, content_MK2: NDArray[np.uint64], rows: ShardRows, faults: Mapping[ContentHash, str]
) -> list[MissingRow]:
    """Return the usable observations without a row, each content once."""
    row_L = rows.find(content_MK2.reshape(-1, 2))
    views = content_MK2.shape[1]
    missing: dict[ContentHash, MissingRow] = {}
    for place in np.flatnonzero(row_L < 0):
        item, view = divmod(int(place), views)
        first, second = content_MK2[item, view].tolist()
        content = first, second
        if content in missing or content in faults or isinstance(inputs.contents_M[item], DataError):
            continue
        pair = int(np.searchsorted(inputs.first_N, item, side="right")) - 1
        missing[content] = MissingRow(pair, item - int(inputs.first_N[pair]), view, content)
    return list(missing.values())


def _build_index(
    inputs: InputHashes, content_MK2: NDArray[np.uint64], rows: ShardRows, faults: Mapping[ContentHash, str]
) -> CacheIndex:
    row_MK = rows.find(content_MK2.reshape(-1, 2)).reshape(content_MK2.shape[:2])
    reasons: dict[int, str] = {}
    for item in np.flatnonzero((row_MK < 0).any(axis=1)).tolist():
        error = inputs.contents_M[item]
        known = (faults[words] for view in content_MK2[item].tolist() if (words := tuple(view)) in faults)
        reasons[item] = str(error) if isinstance(error, DataError) else next(known)
    return CacheIndex(inputs.first_N, inputs.listed_N, row_MK, reasons)


def _check_broken(builder: CacheBuilder, inputs: InputHashes, index: CacheIndex, max_broken: float) -> None:
    broken = {item: why for item, why in index.faults.items() if inputs.contents_M[item] is not MISSING}
    count = len(index.row_MK)
    if len(broken) > max_broken * count:
        first = int(np.searchsorted(inputs.first_N, next(iter(broken)), side="right")) - 1
        if gone := find_missing_storage(builder.raws, first):
            raise DataError(gone)
        listed = "".join(f"\n  {reason}" for reason in [*broken.values()][:_MAX_SHOWN])
        raise DataError(
            f"{builder.modality.name}: {len(broken)} of {count} inputs cannot be used, more than max_broken "
            f"({max_broken:g}) allows; mend or drop them, or raise it:{listed}"
        )


def _iter_cells(raws: Sequence[Any]) -> Iterator[Any]:
    """Yield every cell, or the error that reading it raised."""
    for number in range(len(raws)):
        try:
            yield raws[number]
        except DataError as error:
            yield error


class RowEncoder:
    """Computes cache rows with an encoder or its trunk, without gradients and in eval mode.

    The features of a trunk are the input of its encoder's `head`, whatever the encoder does before.

    Args:
        encoder: The whole encoder, on its device.
        part: "whole" gives unit-length embeddings (B, D), "trunk" the head's input (B, F).
        context: Context of the precision to compute in.
        device: The encoder's device.
    """

    def __init__(
        self,
        encoder: nn.Module,
        part: CachedPart,
        context: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
    ) -> None:
        self.encoder, self.part, self.context, self.device = encoder, part, context, device
        self._trusted = False

    def __call__(self, batch: Any) -> NDArray[np.float32]:
        """Return a row for each input of a prepared batch.

        Raises:
            Uncacheable: The encoder returns more than an embedding, or has operations after its head, or
                calls the head with something other than features.
        """
        with eval_mode(self.encoder), self.context():
            x = to_device(batch, self.device)
            if self.part == "whole":
                output = self.encoder(x)
                if not isinstance(output, Tensor):
                    raise Uncacheable("its encoder returns more than an embedding")
                value_BF = unit(output)
            else:
                value_BF, output_BD = self._compute_features(x)
                if not self._trusted:
                    self._check_head_is_last(value_BF, output_BD)
            return value_BF.float().cpu().numpy()

    def _compute_features(self, x: Any) -> tuple[Tensor, Tensor]:
        given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append((args, kwargs))

        hook = self._head.register_forward_pre_hook(listen, with_kwargs=True)
        try:
            output_BD = self.encoder(x)
        finally:
            hook.remove()
        if len(given) != 1 or given[0][1] or len(given[0][0]) != 1 or not isinstance(given[0][0][0], Tensor):
            raise Uncacheable("its head is not called once with one tensor")
        features_BF = given[0][0][0]
        if features_BF.ndim < 2 or len(features_BF) != len(output_BD):
            raise Uncacheable("its head is not given one row of features for each input")
        return features_BF, output_BD

    @property
    def _head(self) -> nn.Module:
        head = self.encoder.head
        return head if isinstance(head, nn.Module) else nn.Identity()

    def _check_head_is_last(self, features_BF: Tensor, output_BD: Tensor) -> None:
        """Check that nothing follows the head."""
        again_BD = self._head(features_BF)
        if not isinstance(output_BD, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise Uncacheable("its encoder returns more than an embedding")
        if again_BD.shape != output_BD.shape or not torch.allclose(
            again_BD.float(), output_BD.float(), rtol=1e-3, atol=1e-5, equal_nan=True
        ):
            raise Uncacheable("its encoder has operations after its head")
        self._trusted = True
