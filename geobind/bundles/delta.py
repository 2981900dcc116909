"""Small bundles: the tensors that differ from those of a base bundle."""

# M rows and N columns of a weight laid out as a matrix, R the rank of its change

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from geobind.errors import CheckpointError
from geobind.towers.weights import read_weights
from geobind.utils.system import hash_tensors

DOWN, UP = ".lora_A", ".lora_B"  # suffixes of a weight's name: the usual names of the two factors
DELTA_FILE = "adapter.safetensors"
_NAME = re.compile(r"[^/\\:\x00-\x1f]+|[\w.-]+/[\w.-]+")  # of a base: a folder's, or OWNER/NAME of a hub
_LONGEST_NAME = 255


def name_factors(name: str, down_RN: Tensor, up_MR: Tensor) -> dict[str, Tensor]:
    """Return the two factors of a weight's change, by the names under which they are saved."""
    return {name + DOWN: down_RN.flatten(1).contiguous(), name + UP: up_MR.flatten(1).contiguous()}


def add_factors(weight: Tensor, down_RN: Tensor, up_MR: Tensor) -> Tensor:
    """Return a weight of any shape (M, ...) with the product of two factors added.

    Raises:
        RuntimeError: The factors do not fit the weight.
    """
    # Before they are multiplied: two long thin factors have a product larger than any memory.
    shapes = tuple(up_MR.shape), tuple(down_RN.shape), tuple(weight.shape)
    if up_MR.ndim != 2 or down_RN.ndim != 2 or not weight.ndim or up_MR.shape[0] != weight.shape[0]:
        raise RuntimeError(f"factors of the shapes {shapes[0]} and {shapes[1]} for a weight of {shapes[2]}")
    if up_MR.shape[0] * down_RN.shape[1] != weight.numel():
        raise RuntimeError(f"factors of the shapes {shapes[0]} and {shapes[1]} for a weight of {shapes[2]}")
    change_MN = up_MR.to(weight.device, torch.float32) @ down_RN.to(weight.device, torch.float32)
    return (weight + change_MN.reshape(weight.shape)).to(weight.dtype)


def compute_delta(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of `after` that are not bit-equal in `before`.

    Args:
        before: The weights to start from, by name.
        after: The weights to arrive at.
    """
    return {
        name: tensor.contiguous()
        for name, tensor in after.items()
        if (old := before.get(name)) is None
        or (old.shape, old.dtype) != (tensor.shape, tensor.dtype)
        or not torch.equal(old.to(tensor.device), tensor)
    }


def apply_delta(
    before: Mapping[str, Tensor], delta: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """Return the weights of these names after `delta` is applied to `before`.

    Bundles of earlier versions hold the change of a weight as two factors; newer ones hold the weight whole.

    Raises:
        KeyError: A weight is in neither, or a factor lacks the other.
        RuntimeError: A factor does not fit its weight.
    """
    after: dict[str, Tensor] = {}
    for name in names:
        if name in delta:
            after[name] = delta[name]
        elif name + DOWN in delta:
            after[name] = add_factors(before[name], delta[name + DOWN], delta[name + UP])
        else:
            after[name] = before[name]
    return after


class BaseReference(BaseModel):
    """The base bundle of a small one."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="its folder's name, or its id on a hub")
    digests: dict[str, str] = Field(description="SHA-256 of each of its encoders that is used")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        """Refuse whatever could name another folder than one beside the bundle."""
        if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name) or set(name.split("/")) & {".", ".."}:
            raise ValueError(f"{name[:80]!r} is neither the name of a folder nor OWNER/NAME of a hub")
        return name


def split_delta(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], name: str
) -> tuple[dict[str, Tensor], BaseReference]:
    """Return the weights that a binder does not share with a base, and a reference to that base.

    Args:
        tensors: The weights of the binder's encoders; each name begins with the modality's.
        base: The weights of the base.
        name: The base's folder name, or its id on a hub.
    """
    used = group_by_encoder(tensors).keys()
    shared = {encoder: own for encoder, own in group_by_encoder(base).items() if encoder in used}
    return compute_delta(base, tensors), BaseReference(name=name, digests=_hash_encoders(shared))


def read_with_base(folder: Path, over: BaseReference, base: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Read the weights of a small bundle from it and its base.

    Args:
        folder: The bundle.
        over: The base that its card names.
        base: The file of the base's weights.
        names: The weights to return.

    Raises:
        CheckpointError: It was saved over another base, or a file is damaged.
    """
    tensors = read_weights(base)
    encoders = group_by_encoder(tensors)
    digests = _hash_encoders({name: encoders.get(name, {}) for name in over.digests})
    others = [name for name in over.digests if digests[name] != over.digests[name]]
    if others:
        raise _other_base_error(folder, over, base, others)
    delta = read_weights(folder / DELTA_FILE)
    try:
        return apply_delta(tensors, delta, names)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder / DELTA_FILE}: does not fit its base: {reason}; fetch it again"
        ) from None


def _other_base_error(
    folder: Path, over: BaseReference, base: Path, encoders: Iterable[str]
) -> CheckpointError:
    return CheckpointError(
        f"{folder}: made over the bundle '{over.name}', but {base.parent} has other weights of "
        f"{', '.join(encoders)}; name its own base: Binder.load({folder.name!r}, base=FOLDER)"
    )


def find_base(folder: Path, over: BaseReference, base: str | Path | None) -> str | Path:
    """Return where the base of a small bundle is: `base` if given, else beside it or on a hub.

    Raises:
        CheckpointError: It is not beside the bundle, and its name is no id on a hub.
    """
    if base is not None:
        return base
    beside = folder.resolve().parent / over.name.rpartition("/")[2]
    if beside.is_dir():
        return beside
    if "/" in over.name:
        return over.name
    raise CheckpointError(
        f"{folder}: holds only what it changes of the bundle '{over.name}', which is not beside it; "
        f"name it: Binder.load({folder.name!r}, base=FOLDER)"
    )


def combine_shapes(
    folder: Path,
    over: BaseReference,
    base: Path,
    of_base: Mapping[str, Tensor],
    of_delta: Mapping[str, Tensor],
    encoders: Collection[str],
) -> dict[str, Tensor]:
    """Return the tensors that a small bundle and its base hold together of some encoders, factors left out.

    Args:
        folder: The bundle.
        over: The base that its card names.
        base: The file of the base's weights.
        of_base: The tensors of the base, of the meta device or any other.
        of_delta: Those of the bundle.
        encoders: The encoders that are wanted.

    Raises:
        CheckpointError: The base lacks an encoder that the card says it has.
    """
    there = group_by_encoder(of_base).keys()
    if lacking := [encoder for encoder in over.digests if encoder not in there]:
        raise _other_base_error(folder, over, base, lacking)
    whole = {name: tensor for name, tensor in of_delta.items() if not name.endswith((DOWN, UP))}
    return {name: t for name, t in of_base.items() if name.partition(".")[0] in encoders} | whole


def find_factored(tensors: Iterable[str]) -> set[str]:
    """Return the encoders of which a small bundle holds factors, as earlier versions wrote them."""
    return {name.partition(".")[0] for name in tensors if name.endswith((DOWN, UP))}


def group_by_encoder(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the weights of each encoder, under their names within it."""
    encoders: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        encoder, _, own = name.partition(".")
        encoders.setdefault(encoder, {})[own] = tensor
    return encoders


def _hash_encoders(encoders: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    return {name: hash_tensors(tensors) for name, tensors in encoders.items()}
