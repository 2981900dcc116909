"""Bundles stored as a difference to a base bundle."""

# M rows and N columns of a weight laid out as a matrix, R the rank of its change

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from geobind.errors import CheckpointError
from geobind.towers.weights import read_weights
from geobind.utils.system import hash_tensors

DOWN, UP = ".lora_A", ".lora_B"  # what stands after a weight's name; the field's names for the factors
_SAVES = 0.5  # factors larger than this share of their weight are not worth it
_ROUNDINGS = 4  # how many times a weight may have been rounded since
_EXTRA = 4  # more directions than the rank that is tried: a random one may miss a true one
_FACTORED = (torch.float32, torch.float64)  # in shorter types rounding hides a small change


def name_factors(name: str, down_RN: Tensor, up_MR: Tensor) -> dict[str, Tensor]:
    """Name the two factors of a change of a weight."""
    return {name + DOWN: down_RN.flatten(1).contiguous(), name + UP: up_MR.flatten(1).contiguous()}


def add_factors(weight: Tensor, down_RN: Tensor, up_MR: Tensor) -> Tensor:
    """Return a weight of any shape (M, ...) with the product of two factors added."""
    change_MN = up_MR.to(weight.device, torch.float32) @ down_RN.to(weight.device, torch.float32)
    return (weight + change_MN.reshape(weight.shape)).to(weight.dtype)


def compute_delta(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what leads from some weights to others.

    A tensor that is bit-equal in both is left out. One whose change has a low rank, as after LoRA, is
    two factors, exact to the rounding of its numbers; any other is there whole.

    Args:
        before: The weights to start from, by name.
        after: Those to arrive at; none is in `before` alone that matters.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in after.items():
        old = before.get(name)
        if old is not None and (old.shape, old.dtype) == (tensor.shape, tensor.dtype):
            old = old.to(tensor.device)
            if torch.equal(old, tensor):
                continue
            pair = _factored(old, tensor)
            if pair is not None:
                found |= name_factors(name, *pair)
                continue
        found[name] = tensor.contiguous()
    return found


def apply_delta(
    before: Mapping[str, Tensor], delta: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, Tensor]:
    """Return the weights of these names that `delta` leads to from `before`.

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


def _factored(old: Tensor, new: Tensor) -> tuple[Tensor, Tensor] | None:
    """Split a weight's change into factors, (R, N) and (M, R); None where that saves too little.

    The columns of the change times random vectors span it as soon as these are as many as its rank (the
    range finder of arXiv:0909.4061, algorithm 4.1), so that their number is doubled until they do.
    """
    if new.ndim < 2 or new.dtype not in _FACTORED or not bool(torch.isfinite(new).all()):
        return None
    change_MN = (new.double() - old.double()).flatten(1)
    rows, columns = change_MN.shape
    allowed = _ROUNDINGS * torch.finfo(new.dtype).eps / 2 * new.abs().max().item()
    most = int(_SAVES * prod(new.shape) / (rows + columns))
    generator = torch.Generator(device="cpu").manual_seed(0)
    rank = 1
    while rank <= most:
        random_NR = torch.randn(columns, rank + _EXTRA, generator=generator, dtype=torch.float64)
        basis_MR = torch.linalg.qr(change_MN @ random_NR.to(change_MN.device)).Q
        inside_RN = basis_MR.T @ change_MN
        left_RR, size_R, right_RN = torch.linalg.svd(inside_RN, full_matrices=False)
        up_MR = basis_MR @ (left_RR * size_R)[:, :rank]
        down_RN = right_RN[:rank]
        if (change_MN - up_MR @ down_RN).abs().max().item() <= allowed:
            return down_RN.to(new.dtype), up_MR.to(new.dtype)
        rank = min(2 * rank, most) if rank < most else most + 1
    return None


DELTA_FILE = "adapter.safetensors"


class BaseReference(BaseModel):
    """The bundle that a small one changes."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="its folder's name, or its id on a hub")
    digests: dict[str, str] = Field(description="SHA-256 of each of its encoders that is used")


def split_delta(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], name: str
) -> tuple[dict[str, Tensor], BaseReference, dict[str, str]]:
    """Separate a binder's weights into those of a base and what changes them.

    Args:
        tensors: The weights of its encoders; their names begin with the modality's.
        base: Those of the base.
        name: What the base is called.

    Returns:
        The change; the base, as it must be found again; and the hash of each encoder that comes of the two,
        whose weights are the binder's to their rounding.
    """
    delta = compute_delta(base, tensors)
    whole = _group_by_encoder(apply_delta(base, delta, tensors))
    shared = {encoder: own for encoder, own in _group_by_encoder(base).items() if encoder in whole}
    return delta, BaseReference(name=name, digests=_hash_encoders(shared)), _hash_encoders(whole)


def read_with_base(folder: Path, over: BaseReference, base: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Read the weights of a small bundle from it and its base.

    Args:
        folder: The bundle.
        over: What its card says of the base.
        base: The file of the base's weights.
        names: The weights wanted.

    Raises:
        CheckpointError: The base is not the one it was made over, or a file is damaged.
    """
    tensors = read_weights(base)
    encoders = _group_by_encoder(tensors)
    found = _hash_encoders({name: encoders.get(name, {}) for name in over.digests})
    others = [name for name in over.digests if found[name] != over.digests[name]]
    if others:
        raise CheckpointError(
            f"{folder}: made over the bundle '{over.name}', but {base.parent} has other weights of "
            f"{', '.join(others)}; name its own base: Binder.load({folder.name!r}, base=FOLDER)"
        )
    delta = read_weights(folder / DELTA_FILE)
    try:
        return apply_delta(tensors, delta, names)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder / DELTA_FILE}: does not fit its base: {reason}; fetch it again"
        ) from None


def find_base(folder: Path, over: BaseReference, base: str | Path | None) -> str | Path:
    """Tell where the base of a small bundle is: as told, beside it, or on a hub.

    Raises:
        CheckpointError: It can be in none of these places.
    """
    if base is not None:
        return base
    beside = folder.resolve().parent / Path(over.name).name
    if beside.is_dir():
        return beside
    if "/" in over.name:
        return over.name
    raise CheckpointError(
        f"{folder}: holds only what it changes of the bundle '{over.name}', which is not beside it; "
        f"name it: Binder.load({folder.name!r}, base=FOLDER)"
    )


def _group_by_encoder(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        encoder, _, own = name.partition(".")
        found.setdefault(encoder, {})[own] = tensor
    return found


def _hash_encoders(encoders: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    return {name: hash_tensors(tensors) for name, tensors in encoders.items()}
