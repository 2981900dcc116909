"""Preparation, batching and device transfer of the inputs of encoders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MappingView, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from geobind.errors import DataError, PluginError
from geobind.modality import Modality
from geobind.utils.arrays import is_array, is_bytes
from geobind.utils.formatting import shorten
from geobind.utils.system import count_cpus

if TYPE_CHECKING:
    from geobind.modality import Prepared

Item = TypeVar("Item")
Result = TypeVar("Result")
Workers = int | Literal["auto"]


def split_inputs(x: Any) -> Sequence[Any] | Iterator[Any] | None:
    """Return the raw inputs in x in their order, or None if x is one input.

    Lists and other sequences, iterators, views of a dict, and one-dimensional arrays and columns of anything
    but numbers are many inputs. A string, bytes, a path, a tuple, a mapping, and an array, tensor or column
    of numbers are one, whatever their axes.

    Raises:
        DataError: x is a set, whose order means nothing.
    """
    if isinstance(x, Set) and not isinstance(x, MappingView):
        raise DataError(
            f"a {type(x).__name__} has no order, so that no result could be told from another: give sorted(x)"
        )
    if isinstance(x, MappingView):
        return list(cast("MappingView", x))  # pyright: ignore[reportUnknownVariableType, reportArgumentType]
    if isinstance(x, str | tuple) or is_bytes(x) or is_array(x):
        return _list_column(x)
    return x if isinstance(x, Sequence | Iterator) else None


def _list_column(x: Any) -> list[Any] | None:
    """Return the entries of a one-dimensional array or column of anything but numbers."""
    if isinstance(x, Tensor | memoryview) or not hasattr(x, "__array__") or getattr(x, "ndim", 1) != 1:
        return None
    values = x if isinstance(x, np.ndarray) else np.asarray(x)
    # Type T is numpy's own of strings; times and records are left to the modality, which refuses them.
    return values.tolist() if values.ndim == 1 and values.dtype.kind in "OUST" else None


def group_items(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield the items in groups of `size`, the last one perhaps smaller."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def prepare_input(modality: Modality, number: int, raw: Any, *, alone: bool = False) -> Any:
    """Prepare one input; a DataError names it by its number.

    Args:
        modality: What it is.
        number: Its place among the inputs.
        raw: The input.
        alone: Whether it was taken for the only one, because of its type.
    """
    try:
        return modality.prepare(raw)
    except DataError as error:
        single = isinstance(raw, str | Mapping) or is_bytes(raw) or not hasattr(raw, "__iter__")
        hint = "; if these are several inputs, give list(x)" if alone and not single else ""
        raise DataError(f"input {number} of modality '{modality.name}': {error}{hint}") from error


_SHARE = 8  # inputs that a thread prepares at a time: handing over one by one costs as much as a short text
_MOST_THREADS = 32
_BATCHES_AHEAD = 2
_BATCHES_COMPUTED = 2  # that a GPU has to work on: one that it computes, one that waits


def choose_threads(workers: Workers, count: int | None = None) -> int:
    """Choose how many threads prepare inputs: none for a few, else one for each processor.

    Raises:
        DataError: `workers` is neither `auto` nor a number of threads.
    """
    if workers == "auto":
        cpus = count_cpus()
        return 0 if cpus < 2 or (count is not None and count <= _SHARE) else min(cpus, _MOST_THREADS)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DataError(f"workers must be `auto` or a number of threads, not {workers!r}")
    return workers


def run_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Result]:
    """Yield the function's result of each item in their order, worked out by threads before it is asked for.

    An error is raised where its result would be; what comes after it is dropped.

    Args:
        function: What threads call, several at once.
        items: They are taken in this thread.
        threads: 0 calls it in this thread, when a result is asked for.
        ahead: How many items at most are begun before their results are asked for.
    """
    if not threads:
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, "geobind-prepare") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def prepare_ahead(
    modality: Modality, inputs: Iterable[Any], size: int, threads: int, *, alone: bool = False
) -> Iterator[Prepared]:
    """Yield batches of prepared inputs in their order; threads prepare at most two batches ahead.

    Args:
        modality: What they are.
        inputs: They are taken in this thread.
        size: Inputs in a batch.
        threads: 0 prepares each batch when it is asked for.
        alone: Whether an input was taken for the only one, because of its type.

    Raises:
        DataError: An input cannot be prepared; the message gives its number.
    """

    def prepare(numbered: Sequence[tuple[int, Any]]) -> list[Prepared]:
        with torch.no_grad():  # each thread has a mode of its own
            return [prepare_input(modality, number, raw, alone=alone) for number, raw in numbered]

    share = min(_SHARE, size)
    ahead = max(threads, _BATCHES_AHEAD * size // share)
    shares = run_ahead(prepare, group_items(enumerate(inputs), share), threads, ahead)
    for samples in group_items(chain.from_iterable(shares), size):
        yield collate(samples)


def collate(samples: Sequence[Prepared], keys: Sequence[str] | None = None) -> Prepared:
    """Stack prepared inputs, tensors or dicts of tensors, into a batch.

    Where some images (C, H, W) are uint8, which counts from 0 to 1, and others float, all become float32:
    each then means the same as it does alone.

    Args:
        samples: The prepared inputs.
        keys: What an error calls them; default: their numbers.

    Raises:
        DataError: There are none, or they differ in shape, type or keys.
    """
    if not samples:
        raise DataError("a batch needs at least one input")
    kinds = {(sample.shape, sample.dtype) if isinstance(sample, Tensor) else None for sample in samples}
    if len(kinds) == 1 and None not in kinds and torch.utils.data.get_worker_info() is None:
        return torch.stack(cast("list[Tensor]", samples))  # as below, but for what a process would share
    if {kind[1] for kind in kinds if kind is not None and len(kind[0]) == _IMAGE_AXES} == _MIXED:
        samples = [to_float(sample) if isinstance(sample, Tensor) else sample for sample in samples]
    first = samples[0]
    for number, sample in enumerate(samples):
        if not _match(sample, first):
            one, other = (keys[n] if keys else f"number {n}" for n in (0, number))
            raise DataError(
                f"inputs of a batch must be prepared alike: {one} is {_describe_prepared(first)}, "
                f"{other} is {_describe_prepared(sample)}"
            )
    return default_collate([dict(sample) if isinstance(sample, Mapping) else sample for sample in samples])


_IMAGE_AXES = 3
_MIXED = {torch.uint8, torch.float32}


def to_float(sample: Tensor) -> Tensor:
    """Return an image as floats from 0 to 1; what is not uint8 as it is."""
    return sample.float() / 255 if sample.dtype == torch.uint8 else sample


def _match(one: Prepared, other: Prepared) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype
    return _describe_prepared(one) == _describe_prepared(other)


def _describe_prepared(sample: Prepared) -> str:
    if isinstance(sample, Tensor):
        return f"{str(sample.dtype).removeprefix('torch.')} of shape {tuple(sample.shape)}"
    return "{" + ", ".join(f"{name}: {_describe_prepared(sample[name])}" for name in sorted(sample)) + "}"


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch, a tensor or a dict of them, to a device.

    To a GPU it goes by way of pinned memory, so that nothing here waits for the copy.
    """
    if not isinstance(batch, Tensor):
        return {name: to_device(part, device) for name, part in batch.items()}
    if device.type != "cuda":
        return batch.to(device)
    pinned = batch.pin_memory() if batch.device.type == "cpu" else batch
    return pinned.to(device, non_blocking=True)


def copy_ahead(batches: Iterable[tuple[Item, Any]], device: torch.device) -> Iterator[tuple[Item, Any]]:
    """Yield batches on a device, and what comes with each, in order.

    To a GPU the next batch is copied, on a stream of its own, while one is computed: whoever takes a batch
    launches its work before taking another. No more than two are worked on at a time, since a batch keeps its
    memory until its work is done. Elsewhere a batch is taken when it is asked for.

    Args:
        batches: Tensors or dicts of them on the CPU, each with anything; None stays None.
        device: Where they are computed.
    """
    if device.type != "cuda":
        for item, batch in batches:
            yield item, None if batch is None else to_device(batch, device)
        return
    copying, computing = _find_copy_stream(device), torch.cuda.current_stream(device)
    before: tuple[Item, Any, torch.Event] | None = None
    worked: deque[torch.Event] = deque()
    for item, batch in batches:
        if len(worked) == _BATCHES_COMPUTED:
            worked.popleft().synchronize()
        with torch.cuda.stream(copying):
            moved = None if batch is None else to_device(batch, device)
        fetched = item, moved, copying.record_event()
        if before is not None:
            yield _receive(*before, computing)
            worked.append(computing.record_event())
        before = fetched
    if before is not None:
        yield _receive(*before, computing)


@cache
def _find_copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream that copies to a GPU: memory of one stream is not given to another."""
    return torch.cuda.Stream(device)


def _receive(item: Item, batch: Any, copied: torch.Event, computing: torch.cuda.Stream) -> tuple[Item, Any]:
    """Return a batch that the computing stream may use from here on."""
    computing.wait_event(copied)
    for tensor in _iter_tensors(batch):
        tensor.record_stream(computing)  # its memory is not given to the next copy before it is read
    return item, batch


def _iter_tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif batch is not None:
        for part in batch.values():
            yield from _iter_tensors(part)


def embed_batches(
    encode: Callable[[Any], Tensor], batches: Iterable[tuple[Item, Any]], device: torch.device
) -> Iterator[tuple[Item, Tensor | None]]:
    """Yield what comes with each batch, and its embeddings on the CPU, in order.

    On a GPU the next batch is prepared and copied while one is computed.

    Args:
        encode: Returns the embeddings (B, D) of a batch on the device.
        batches: Prepared batches on the CPU, each with anything; of None there are no embeddings.
        device: Where they are computed.
    """
    cuda = device.type == "cuda"
    before: tuple[Item, Tensor | None, torch.Event] | None = None
    for item, batch in copy_ahead(batches, device):
        # torch pins what it copies from a GPU without waiting
        embedding_BD = None if batch is None else encode(batch).to("cpu", non_blocking=cuda)
        if not cuda:
            yield item, embedding_BD
            continue
        done = torch.cuda.current_stream(device).record_event()
        if before is not None:
            before[2].synchronize()
            yield before[:2]
        before = item, embedding_BD, done
    if before is not None:
        before[2].synchronize()
        yield before[:2]


def check_width(embedding_BD: Tensor, width: int, name: str) -> Tensor:
    """Check that embeddings are (B, width), and return them.

    Raises:
        PluginError: They are not; the encoder of their modality is wrong.
    """
    if embedding_BD.ndim != 2 or embedding_BD.shape[1] != width:
        raise PluginError(
            f"the encoder of '{name}' gives {tuple(embedding_BD.shape)}, not (batch, {width}): "
            f"its `encoder(width)` must end in that width"
        )
    return embedding_BD


def list_class_examples(labels: Any, templates: Any) -> list[list[Any]]:
    """List the examples of each class: its name in every template, or those that a mapping gives.

    Raises:
        DataError: There are no labels or examples, they have no order or are no names, or a template has no
            place for the name.
    """
    if isinstance(labels, Mapping):
        given = cast("Mapping[Any, Any]", labels)
        classes = [[x] if (many := split_inputs(x)) is None else list(many) for x in given.values()]
        for name, examples in zip(given, classes, strict=True):
            if not examples:
                raise DataError(f"class {shorten(repr(name), 60)} has no examples")
    else:
        patterns = _list_names(templates, "templates")
        if not patterns or any("{}" not in pattern for pattern in patterns):
            raise DataError("every template must contain {}, where the name of the class goes")
        classes = [
            [pattern.replace("{}", name) for pattern in patterns] for name in _list_names(labels, "labels")
        ]
    if not classes:
        raise DataError("no labels to choose from")
    return classes


def _list_names(names: Any, what: str) -> list[str]:
    """Return strings as a list, in their order."""
    listed = list(names) if isinstance(names, tuple) else split_inputs(names)
    if listed is None:
        raise DataError(f"{what} must be a list of names, not {shorten(repr(names), 60)}")
    listed = list(listed)
    for number, name in enumerate(listed):
        if not isinstance(name, str):
            raise DataError(
                f"{what} must be names: number {number} is a {type(name).__name__}, {shorten(repr(name), 60)}"
            )
    return listed


@contextmanager
def eval_mode(encoder: nn.Module) -> Generator[None]:
    """Put an encoder in eval mode without gradients, and restore its modes afterwards."""
    training = [module for module in encoder.modules() if module.training]
    if training:  # mostly none is, and setting the mode of each takes longer than finding that out
        encoder.eval()
    try:
        # Not inference_mode: a probe trained on its tensors could not run backward.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
