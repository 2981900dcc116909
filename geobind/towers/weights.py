"""Read weights from safetensors files, and refuse what does not fit the model to the letter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file

from geobind.errors import CheckpointError
from geobind.towers.options import PICKLED

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 3  # keys named in a message


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a .safetensors file, or of a folder that holds one or a sharded set.

    Raises:
        CheckpointError: There is no such file, it is a pickle, or it is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(Path(source)):
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: cannot be read as safetensors ({error}); fetch or save it again"
            ) from None
    return tensors


def weight_files(path: Path) -> list[Path]:
    """List the safetensors files that `path` (a file or a folder) stands for.

    Raises:
        CheckpointError: There are none, or it is unclear which.
    """
    if path.suffix.lower() in PICKLED:
        raise CheckpointError(
            f"{path}: a pickle can run code when it is read; convert it once with "
            "safetensors.torch.save_file and name the .safetensors file"
        )
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such file or folder of weights")
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        return _shards(indices[0])
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        there = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{path}: expected one .safetensors file, found {there}; name the file itself")
    return files


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load weights whose names and shapes must be exactly the model's.

    Raises:
        CheckpointError: They are not; the message names `source` and the first offending keys.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    unlike = [
        f"{key} {tuple(tensors[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    faults = [
        _some(*fault)
        for fault in (("missing", missing), ("unexpected", unexpected), ("shape", unlike))
        if fault[1]
    ]
    if faults:
        raise CheckpointError(f"{source}: the weights are not this model's: {'; '.join(faults)}")
    model.load_state_dict(dict(tensors))


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: not an index of sharded weights (no weight_map)") from None
    for name in names:
        # A name such as ../other would leave the folder.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index}: {name!r} is not a .safetensors file of this folder")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index}: its shard {name} is missing")
    return [index.parent / name for name in sorted(names)]


def _some(kind: str, keys: list[str]) -> str:
    rest = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return f"{kind} {', '.join(keys[:_SHOWN])}{rest}"
