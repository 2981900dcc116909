"""Batch loading: preparation, collation, worker processes, quarantine of broken samples."""

# B rows of a batch on this rank, M modalities

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from geobind.data.augmentation import UNCHANGED, Geometry, draw_geometry, share_geometry
from geobind.data.sampler import BatchSampler
from geobind.data.seeds import Seeds, derive_row_seeds, preserve_rng, set_seeds
from geobind.data.shares import Fault, PreparedBatch, Shares, choose_share_size, count_bytes
from geobind.data.sources import BatchMeta, find_missing_storage, hours_since_1970
from geobind.data.table import Row
from geobind.errors import DataError
from geobind.inference import Workers, collate, group_items
from geobind.modality import Modality
from geobind.utils.system import available_memory, count_cpus

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Prepared


class PreparedRow(NamedTuple):
    """One row, prepared."""

    prepared: Mapping[str, Prepared]  # by modality; what the row lacks is not in it
    known: Row  # without raw inputs
    faults: list[Fault]


class Collator(NamedTuple):
    """Collate function: the batch of each modality holds, in order, the rows that have it."""

    names: tuple[str, ...]

    def __call__(self, samples: list[PreparedRow]) -> PreparedBatch:
        """Return the batch of every modality that some row has, what is known of the rows, and the faults."""
        whole = all(len(sample.prepared) == len(self.names) for sample in samples)
        batches: dict[str, Prepared] = {}
        for name in self.names:
            there = samples if whole else [sample for sample in samples if name in sample.prepared]
            if there:
                inputs, keys = [s.prepared[name] for s in there], [s.known.key or "?" for s in there]
                batches[name] = collate(inputs, keys)
        faults = [fault for sample in samples for fault in sample.faults]
        meta = _meta([sample.known for sample in samples])
        if not whole:
            present = [[name in sample.prepared for name in self.names] for sample in samples]
            meta = meta._replace(present_BM=np.array(present))
        return batches, meta, faults


def _meta(rows: Sequence[Row]) -> BatchMeta:
    lat = lon = labels = hours = None
    places = [row.place for row in rows]
    known = [place for place in places if place is not None]
    if known:
        lat = np.array([place.lat if place else np.nan for place in places])
        lon = np.array([place.lon if place else np.nan for place in places])
    if any(place.time is not None for place in known):
        hours = np.array([hours_since_1970(place) for place in places])
    if any(row.label is not None for row in rows):
        labels = [row.label for row in rows]
    return BatchMeta([row.key for row in rows], lat, lon, labels, hours=hours)


_FEW = 1000  # rows that are prepared before worker processes have even started
_ROWS_EACH = 125  # rows for which another process is worth its start
_MEMORY_EACH = (
    256 * 2**20
)  # bytes that a process comes to have for itself; all of them get half of what is there
_PATIENCE = 1800  # seconds for one batch or share of it; whoever takes longer hangs
_LOOK = 5  # seconds between two looks at whether the processes still live
_DEATHS = ("DataLoader worker", "DataLoader timed out")  # how torch begins to say so


class WorkerDied(DataError):
    """A loader process died or hangs; the message says what to do."""

    @classmethod
    def of(cls, error: Exception) -> Self:
        """Build the error that explains an exception raised by torch."""
        if isinstance(error, cls):
            return error
        if str(error).startswith(_DEATHS[1]):
            return cls(
                f"processes that load data have brought nothing for {_PATIENCE} s: the disk or network they "
                "read from may hang; `workers: 0` shows where"
            )
        return cls(
            f"a process that loads data died ({error}); it may have had too little memory: use fewer "
            "`workers`, or give more (in a container, also shared memory: --shm-size); "
            "`workers: 0` shows errors of native code"
        )


def is_worker_death(error: Exception) -> bool:
    """Return whether torch reports that a loader process died or hangs."""
    return isinstance(error, RuntimeError) and str(error).startswith(_DEATHS)


class Failure(NamedTuple):
    """A user error passed from a worker; torch would wrap the exception itself in a traceback."""

    message: str


def choose_workers(rows: int) -> int:
    """Choose how many processes load data: none for few rows, else as CPUs, memory and rows suggest."""
    if rows < _FEW:
        return 0
    cpus = count_cpus()
    memory = available_memory()
    fitting = cpus if memory is None else memory.bytes // (2 * _MEMORY_EACH)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this machine that share it
    return max(1, min(cpus // here, fitting // here, rows // _ROWS_EACH))


def load_batches(
    samples: Dataset[Any],
    batches: Iterable[Any],
    collate: Callable[[list[Any]], Any],
    workers: int,
    *,
    ahead: int = 2,
    pin: bool = True,
) -> Iterator[Any]:
    """Yield the batches in order.

    Args:
        samples: Returns one sample for one item of a batch, or `Failure`.
        batches: The items of each batch.
        collate: Makes a batch of a list of samples; may raise DataError.
        workers: Processes; 0 does the work in this one.
        ahead: Batches of each process that are in flight.
        pin: Whether to lay batches into pinned memory where there is an accelerator.

    Raises:
        DataError: A sample or a batch failed.
        WorkerDied: A process died, or hangs.
    """
    guarded, pinned = _Guarded(collate), pin and torch.cuda.is_available()
    if not workers and not pinned:
        for batch in batches:
            yield _unwrap(guarded(_fetch(samples, batch)))
        return
    others = set(multiprocessing.active_children())
    loader = DataLoader(
        samples,
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]
        collate_fn=guarded,
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=ahead if workers else None,
        timeout=min(_LOOK, _PATIENCE) if workers else 0,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # or it would draw from the global one, and change what comes after
    )
    loaded = iter(loader)
    try:
        yield from map(_unwrap, _wait_for_each(loaded))
    except (RuntimeError, OSError, EOFError) as error:
        # Of one that dies while it hands over a batch torch knows only that a connection broke.
        if not (is_worker_death(error) or (workers and isinstance(error, ConnectionError | EOFError))):
            raise
        with suppress(RuntimeError):  # torch tells of a death once more, at a moment of its own
            getattr(loaded, "_shutdown_workers", lambda: None)()
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
            process.join(1)  # one that waits for a disk that hangs cannot even be killed
        raise WorkerDied.of(error) from error


def _fetch(samples: Dataset[Any], wanted: Sequence[Any]) -> list[Any]:
    """Return the samples of a batch, as torch's loader asks for them."""
    together = getattr(samples, "__getitems__", None)
    return [samples[one] for one in wanted] if together is None else together(wanted)


def _unwrap(batch: Any) -> Any:
    """Return a batch.

    Raises:
        DataError: It failed.
    """
    if isinstance(batch, Failure):
        raise DataError(batch.message)
    return batch


def _wait_for_each(loaded: Iterator[Any]) -> Iterator[Any]:
    """Yield what torch brings, waiting up to `_PATIENCE` for each in steps of `_LOOK`.

    Torch is told of a death by a signal, and misses the one of a process that dies before it listens; it
    looks at its processes only when a wait runs out.
    """
    while True:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                batch = next(loaded)
            except StopIteration:
                return
            except RuntimeError as error:
                if not str(error).startswith(_DEATHS[1]) or time.monotonic() >= end:
                    raise
            else:
                break
        yield batch


def _ignore_signals(_: int) -> None:
    """Ignore SIGINT and SIGUSR1 in workers: the main process handles them.

    It finishes its step, which takes batches, and then ends the others: in the worst case by a SIGTERM of
    its own, which is the second.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _restore_signal)


def _restore_signal(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class _Guarded:
    collate: Callable[[list[Any]], Any]

    def __call__(self, samples: list[Any]) -> Any:
        failed = next((sample for sample in samples if isinstance(sample, Failure)), None)
        if failed is not None:
            return failed
        try:
            return self.collate(samples)
        except DataError as error:
            return Failure(str(error))


class SeededRow(NamedTuple):
    """A row of a step, and what it seeds random numbers with."""

    step: int
    row: int
    seeds: Seeds


_SEEDED_ROWS = 1024  # whose seeds are derived at a time
_ATTEMPTS = 10  # replacements tried for a broken row
_JUDGED_FROM = 1000  # rows seen before a share of broken ones means anything
_SHOWN = 5  # broken rows listed in one message


class Preparer(Protocol):
    """Protocol of objects that prepare raw inputs: a modality or a stand-in."""

    def prepare(self, raw: Any, *, training: bool = False) -> Prepared:
        """Prepare one raw input as a tensor, or a dict of tensors."""
        ...


class ModalityInput(NamedTuple):
    """One modality of a batch: who prepares its inputs, and whether and how they are augmented."""

    preparer: Preparer
    augment: bool = False
    geometry: Geometry = "own"


class _Rows(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...


@dataclass
class BatchLoader:
    """Batches of steps `first_step` up to `last_step`: `(step, batch of each modality, BatchMeta)`.

    What a step holds depends on the rows, the sampler and the step alone: not on workers, nor on where the
    run began. Rank r of `world` gets the r-th of `world` equal runs of the step's rows, so that the ranks'
    batches put together in rank order are the batch of a single process.

    Where rows may lack a modality, its batch holds those that have it, and `BatchMeta.present_BM` says
    which. Where they may not, a missing input is broken.

    A row that raises DataError is replaced by another and recorded in `quarantined`. Once 1,000 rows (or
    all there are) have been seen on this rank, more than the share `max_broken` of them broken is an error;
    if it is 0, any is at once. So is a row whose ten replacements are broken too, and a missing file whose
    like are all missing: then the data are gone.

    Raises:
        DataError: The batch cannot be shared by the ranks; on the way: too much is broken.
    """

    rows: _Rows
    sides: Mapping[str, ModalityInput]  # by modality
    sampler: BatchSampler
    first_step: int
    last_step: int
    workers: Workers = "auto"
    rank: int = 0
    world: int = 1
    partial: bool = False  # whether rows may lack a modality
    max_broken: float = 0.01

    def __post_init__(self) -> None:
        if self.sampler.batch_size % self.world:
            raise DataError(
                f"a batch of {self.sampler.batch_size} cannot be shared by {self.world} processes; "
                f"make it a multiple"
            )
        self._faults: dict[int, tuple[str, str]] = {}
        self._seen = 0
        self.most_in_flight = 0  # rows given to processes and not taken from them yet, in the last iteration

    @property
    def quarantined(self) -> list[tuple[str, str]]:
        """The broken rows met so far on this rank: key and reason."""
        return list(self._faults.values())

    def __len__(self) -> int:
        return max(0, self.last_step - self.first_step)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Prepared], BatchMeta]]:
        self._faults, self._seen = {}, 0
        steps = range(self.first_step, self.last_step)
        for step, (batch, meta, faults) in zip(steps, self._load(self._list_rows(steps)), strict=False):
            self._judge(faults, len(meta.keys))
            yield step, batch, meta

    def _list_rows(self, steps: range) -> Iterator[list[SeededRow]]:
        """Yield the rows of each step; seeds are derived for many at once, which takes as long as for few."""
        share = self.sampler.batch_size // self.world
        for some in group_items(steps, max(1, _SEEDED_ROWS // share)):
            numbered = [(step, row) for step in some for row in self.indices(step).tolist()]
            seeds = derive_row_seeds(self.sampler.seed, numbered)
            seeded = [SeededRow(*index, own) for index, own in zip(numbered, seeds, strict=True)]
            yield from group_items(seeded, share)

    def _load(self, batches: Iterator[list[SeededRow]]) -> Iterator[PreparedBatch]:
        """Yield the prepared batches; processes prepare shares of them."""
        samples, collator = _Samples(self), Collator(tuple(self.sides))
        workers = choose_workers(len(self.rows)) if self.workers == "auto" else self.workers
        first = next(batches, None)
        if first is None:
            return
        batches = chain([first], batches)
        if not workers:
            yield from load_batches(samples, batches, collator, 0)
            return
        # In a process, as in all that follows: what it reads may crash.
        (row_bytes,) = load_batches(samples, [first[:1]], _count_row, 1)
        size = choose_share_size(len(first), workers, row_bytes)
        whole = size.rows >= len(first)
        shares = Shares(size.rows, tuple(self.sides), pin=torch.cuda.is_available())
        loaded = load_batches(samples, shares.cut(batches), collator, workers, ahead=size.ahead, pin=whole)
        for batch in shares.join(loaded):
            self.most_in_flight = shares.most_in_flight
            yield batch

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return this rank's rows of a step."""
        share = self.sampler.batch_size // self.world
        return self.sampler.rows(step)[self.rank * share : (self.rank + 1) * share]

    def _judge(self, faults: Sequence[Fault], count: int) -> None:
        self._seen += count
        self._faults |= {row: (key, reason) for row, key, reason in faults}
        seen = min(self._seen, len(self.rows))
        if seen >= min(_JUDGED_FROM, len(self.rows)) and len(self._faults) > self.max_broken * seen:
            raise DataError(
                f"{len(self._faults)} of {seen} rows seen cannot be used, more than max_broken "
                f"({self.max_broken:g}) allows; mend or drop them, or raise it:"
                f"{_list_faults(self.quarantined)}"
            )


def _count_row(samples: list[PreparedRow]) -> int:
    """Return the memory of a prepared row."""
    return sum(map(count_bytes, samples[0].prepared.values()))


def _list_faults(faults: Sequence[tuple[str, str]]) -> str:
    return "".join(f"\n  {key}: {reason}" for key, reason in faults[:_SHOWN])


class _Samples(Dataset[Any]):
    """Dataset of prepared rows; a broken row is replaced by another one."""

    def __init__(self, loader: BatchLoader) -> None:
        self.rows, self.sides, self.sampler = loader.rows, dict(loader.sides), loader.sampler
        self.shared = any(side.geometry == "shared" for side in self.sides.values())
        self.partial = loader.partial
        self.attempts = _ATTEMPTS if loader.max_broken else 0

    def __getitem__(self, wanted: SeededRow) -> PreparedRow | Failure:
        return self.__getitems__([wanted])[0]

    def __getitems__(self, wanted: Sequence[SeededRow]) -> list[PreparedRow | Failure]:
        """Return the samples of a batch; torch's loader asks for them together."""
        with preserve_rng():
            return [self._sample(*one) for one in wanted]

    def _sample(self, step: int, row: int, seeds: Seeds) -> PreparedRow | Failure:
        faults: dict[int, tuple[str, str]] = {}
        for attempt in range(self.attempts + 1):
            drawn = row
            if attempt:
                drawn = self.sampler.replacement(step, row, attempt)
                (seeds,) = derive_row_seeds(self.sampler.seed, [(step, drawn)])
            key = f"row {drawn}"
            try:
                seen = self.rows[drawn]
                key = seen.key or key
                prepared = self._prepared(step, drawn, seen.raws, seeds)
                replaced = [(broken, *fault) for broken, fault in faults.items()]
                return PreparedRow(prepared, Row({}, key, seen.place, seen.label), replaced)
            except DataError as error:
                if missing := find_missing_storage(self.rows, drawn):
                    return Failure(missing)
                faults[drawn] = key, str(error)
            except Exception as error:  # a bug, not the data's fault: it ends the run, but say where
                error.add_note(f"while preparing {key}")
                raise
        also = "" if self.attempts else " (max_broken is 0)"
        return Failure(
            f"a row and what was drawn instead cannot be used{also}:{_list_faults([*faults.values()])}"
        )

    def _prepared(self, step: int, row: int, raws: Mapping[str, Any], seeds: Seeds) -> dict[str, Prepared]:
        set_seeds(seeds)
        geometry = draw_geometry(self.sampler.seed, step, row) if self.shared else UNCHANGED
        prepared: dict[str, Prepared] = {}
        for name, (preparer, augment, kind) in self.sides.items():
            raw = raws.get(name)
            if raw is None and self.partial:
                continue
            one = _choose_observation(raw, random.randrange)
            if kind == "own":
                prepared[name] = preparer.prepare(one, training=augment)
            else:
                with share_geometry(kind, geometry):
                    prepared[name] = preparer.prepare(one, training=augment)
        return prepared


def _choose_observation(raw: Any, choose: Any) -> Any:
    """Choose one of several equally good observations."""
    if isinstance(raw, list):
        items = cast("list[Any]", raw)
        raw = items[choose(len(items))] if items else None
    if raw is None:
        raise DataError("is missing")
    return raw


class _Inputs(Dataset[Any]):
    def __init__(self, modality: Modality, samples: Sequence[Any]) -> None:
        self.modality, self.samples = modality, samples

    def __getitem__(self, index: int) -> Prepared | Failure:
        try:
            return self.modality.prepare(_choose_observation(self.samples[index], lambda _: 0))
        except DataError as error:
            return Failure(f"input {index}: {error}")


def prepare_batches(
    modality: Modality, samples: Sequence[Any], batch_size: int, workers: Workers = "auto"
) -> Iterator[tuple[NDArray[np.int64], Prepared]]:
    """Prepare raw inputs for embedding, in order and without augmentation; of a list, the first item.

    Yields:
        The numbers of the inputs in the batch, and the batch; the last one may be smaller.

    Raises:
        DataError: An input cannot be prepared; the message gives its number.
    """
    count = len(samples)
    batches = [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
    chosen = choose_workers(count) if workers == "auto" else workers
    for rows, batch in zip(
        batches, load_batches(_Inputs(modality, samples), batches, collate, chosen), strict=True
    ):
        yield np.arange(rows.start, rows.stop), batch
