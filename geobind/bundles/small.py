"""Small bundles: what a binder changes of another bundle's weights, and which weights these must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from geobind.bundles.deltas import applied, difference
from geobind.errors import CheckpointError
from geobind.provenance import digest_of
from geobind.towers.weights import read_weights

DELTA = "adapter.safetensors"


class Over(BaseModel):
    """The bundle that a small one changes."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="its folder's name, or its id on a hub")
    digests: dict[str, str] = Field(description="SHA-256 of each of its encoders that is used")


def split_off(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], name: str
) -> tuple[dict[str, Tensor], Over, dict[str, str]]:
    """Separate a binder's weights into those of a base and what changes them.

    Args:
        tensors: The weights of its encoders; their names begin with the modality's.
        base: Those of the base.
        name: What the base is called.

    Returns:
        The change; the base, as it must be found again; and the hash of each encoder that comes of the two,
        whose weights are the binder's to their rounding.
    """
    delta = difference(base, tensors)
    whole = _by_encoder(applied(base, delta, tensors))
    shared = {encoder: own for encoder, own in _by_encoder(base).items() if encoder in whole}
    return delta, Over(name=name, digests=_digests(shared)), _digests(whole)


def read_over(folder: Path, over: Over, base: Path, names: Iterable[str]) -> dict[str, Tensor]:
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
    encoders = _by_encoder(tensors)
    found = _digests({name: encoders.get(name, {}) for name in over.digests})
    others = [name for name in over.digests if found[name] != over.digests[name]]
    if others:
        raise CheckpointError(
            f"{folder}: made over the bundle '{over.name}', but {base.parent} has other weights of "
            f"{', '.join(others)}; name its own base: Binder.load({folder.name!r}, base=FOLDER)"
        )
    delta = read_weights(folder / DELTA)
    try:
        return applied(tensors, delta, names)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder / DELTA}: does not fit its base: {reason}; fetch it again") from None


def base_of(folder: Path, over: Over, base: str | Path | None) -> str | Path:
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


def _by_encoder(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        encoder, _, own = name.partition(".")
        found.setdefault(encoder, {})[own] = tensor
    return found


def _digests(encoders: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    return {name: digest_of(tensors) for name, tensors in encoders.items()}
