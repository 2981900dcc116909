"""Preparation, batching and device transfer of the inputs of encoders."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from geobind.errors import DataError, PluginError
from geobind.modality import Modality

if TYPE_CHECKING:
    from geobind.modality import Prepared


def is_many_inputs(x: object) -> bool:
    """Return whether x is many raw inputs, and not one."""
    # A tuple is one input, (samples, rate); arrays and tensors are one input, whatever their axes.
    return isinstance(x, Sequence | Iterator) and not isinstance(x, str | bytes | bytearray | tuple)


def batch_inputs(inputs: Iterable[Any], size: int) -> Iterator[list[tuple[int, Any]]]:
    """Number the inputs and yield them in groups of `size`, the last one perhaps smaller."""
    group: list[tuple[int, Any]] = []
    for numbered in enumerate(inputs):
        group.append(numbered)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def prepare_input(modality: Modality, number: int, raw: Any) -> Any:
    """Prepare one input; a DataError names it by its number."""
    try:
        return modality.prepare(raw)
    except DataError as error:
        raise DataError(f"input {number} of modality '{modality.name}': {error}") from error


def collate(samples: Sequence[Prepared]) -> Prepared:
    """Stack prepared inputs, tensors or dicts of tensors, into a batch.

    Raises:
        DataError: There are none, or they differ in shape, type or keys.
    """
    if not samples:
        raise DataError("a batch needs at least one input")
    first = samples[0]
    for number, sample in enumerate(samples):
        if not _match(sample, first):
            raise DataError(
                f"inputs of a batch must be prepared alike: number 0 is {_describe_prepared(first)}, "
                f"number {number} is {_describe_prepared(sample)}"
            )
    return default_collate([dict(sample) if isinstance(sample, Mapping) else sample for sample in samples])


def _match(one: Prepared, other: Prepared) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype
    return _describe_prepared(one) == _describe_prepared(other)


def _describe_prepared(sample: Prepared) -> str:
    if isinstance(sample, Tensor):
        return f"{str(sample.dtype).removeprefix('torch.')} of shape {tuple(sample.shape)}"
    return "{" + ", ".join(f"{name}: {_describe_prepared(sample[name])}" for name in sorted(sample)) + "}"


def to_device(batch: Any, device: torch.device) -> Any:
    """Move a batch, a tensor or a dict of tensors, to a device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


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


def list_class_examples(
    labels: Sequence[str] | Mapping[str, Any], templates: Sequence[str]
) -> list[list[Any]]:
    """List the examples of each class: its name in every template, or those that a mapping gives.

    Raises:
        DataError: There are no labels, or a template has no place for the name.
    """
    if not labels:
        raise DataError("no labels to choose from")
    if isinstance(labels, Mapping):
        return [list(examples) if is_many_inputs(examples) else [examples] for examples in labels.values()]
    if isinstance(labels, str) or not templates or any("{}" not in template for template in templates):
        raise DataError("labels must be a list of names, and every template must contain {}")
    return [[template.replace("{}", label) for template in templates] for label in labels]


@contextmanager
def eval_mode(encoder: nn.Module) -> Generator[None]:
    """Put an encoder in eval mode without gradients, and restore its modes afterwards."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        # Not inference_mode: a probe trained on its tensors could not run backward.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
