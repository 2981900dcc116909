"""What separates two sets of weights: whole tensors, or two small factors where its rank is low."""

# M rows and N columns of a weight laid out as a matrix, R the rank of its change

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import torch
from torch import Tensor

DOWN, UP = ".lora_A", ".lora_B"  # what stands after a weight's name; the field's names for the factors
_SAVES = 0.5  # factors larger than this share of their weight are not worth it
_ROUNDINGS = 4  # how many times a weight may have been rounded since
_EXTRA = 4  # more directions than the rank that is tried: a random one may miss a true one
_FACTORED = (torch.float32, torch.float64)  # in shorter types rounding hides a small change


def factors(name: str, down_RN: Tensor, up_MR: Tensor) -> dict[str, Tensor]:
    """Name the two factors of a change of a weight."""
    return {name + DOWN: down_RN.flatten(1).contiguous(), name + UP: up_MR.flatten(1).contiguous()}


def changed(weight: Tensor, down_RN: Tensor, up_MR: Tensor) -> Tensor:
    """Return a weight of any shape (M, ...) with the product of two factors added."""
    change_MN = up_MR.to(weight.device, torch.float32) @ down_RN.to(weight.device, torch.float32)
    return (weight + change_MN.reshape(weight.shape)).to(weight.dtype)


def difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
                found |= factors(name, *pair)
                continue
        found[name] = tensor.contiguous()
    return found


def applied(
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
            after[name] = changed(before[name], delta[name + DOWN], delta[name + UP])
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
