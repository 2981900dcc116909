"""Weights from files and hubs, and strict loading into a model."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from geobind.errors import CheckpointError
from geobind.hub import hub_or_cache, missing_weights_error
from geobind.pretrained import locate_packaged
from geobind.towers.options import PICKLED, PYTORCH

_SHOWN = 3  # keys named in a message
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
_NESTED = ("state_dict", "model", "module")  # where trainers put the weights among other things


def find_weights_file(source: str) -> Path | None:
    """Find the weights that `source` names: a path, `package:NAME`, or `owner/name` of a hub.

    Returns:
        None if it is neither.

    Raises:
        CheckpointError: It can only be a hub's or a package's, and cannot be had.
    """
    if packaged := locate_packaged(source):
        return packaged
    path = Path(source)
    if path.exists() or path.suffix.lower() in (".safetensors", *PYTORCH):
        return path
    if not _HUB_ID.fullmatch(source):
        return None
    from huggingface_hub import hf_hub_download

    faults: list[Exception] = []
    with hub_or_cache():
        for name in _HUB_FILES:
            try:
                file = Path(hf_hub_download(source, name))
            except Exception as error:  # the hub's errors have no common base class
                faults.append(error)
                continue
            with suppress(Exception):
                hf_hub_download(source, "config.json")  # lies beside the weights, and says what they cannot
            return file
    raise missing_weights_error(f"the weights of {source}", faults[0]) from faults[0]


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read every tensor of a .safetensors or PyTorch file, or of a folder that holds one or a sharded set.

    Of a PyTorch file, which is a pickle, nothing but tensors and plain values is read (`weights_only`): it
    cannot run code.

    Raises:
        CheckpointError: There is no such file, it holds more than that, or it is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in weight_files(Path(source)):
        if file.suffix.lower() in PYTORCH:
            tensors |= _read_pytorch(file)
            continue
        try:
            tensors |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: cannot be read as safetensors ({error}); fetch or save it again"
            ) from None
    return tensors


def read_tensors(file: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Read some tensors of a .safetensors file.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        with safe_open(file, "pt") as weights:
            return {name: weights.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as safetensors ({error}); fetch or save it again"
        ) from None


def weight_files(path: Path) -> list[Path]:
    """List the files of weights that `path` (a file or a folder) stands for, safetensors first.

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
    files = sorted(path.glob("*.safetensors")) or sorted(
        file for file in path.iterdir() if file.suffix.lower() in PYTORCH
    )
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise CheckpointError(f"{path}: expected one .safetensors file, found {names}; name the file itself")
    return files


def _read_pytorch(file: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        named = f" ({what[1]})" if what else ""
        raise CheckpointError(
            f"{file}: holds more than weights{named}, and reading that could run code; where you trust it, "
            "write its weights alone with safetensors.torch.save_file and name the .safetensors file"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file}: cannot be read as a PyTorch file ({reason}); fetch or save it again"
        ) from None
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        content = next((content[name] for name in _NESTED if isinstance(content.get(name), dict)), None)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds no weights by name; save a state_dict")
    named = cast("dict[Any, Any]", content)
    # Copied, because a state dict may share memory that is then trained.
    return {str(key): value.clone() for key, value in named.items() if isinstance(value, Tensor)}


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load weights whose names and shapes must be exactly the model's.

    Raises:
        CheckpointError: They are not; the message names `source` and the first offending keys.
    """
    if misfit := describe_misfit(model.state_dict(), tensors):
        raise CheckpointError(f"{source}: the weights are not this model's: {misfit}")
    model.load_state_dict(dict(tensors))


def describe_misfit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, types: bool = False) -> str:
    """Return how weights differ from a model's own in names and shapes, empty if they do not.

    Args:
        own: The model's, of any device.
        tensors: The weights.
        types: Whether their types count: whole numbers are no weights, and digits must not be lost.
    """
    both = [key for key in own if key in tensors]
    faults = {
        "missing": [key for key in own if key not in tensors],
        "unexpected": [key for key in tensors if key not in own],
        "shape": [
            f"{key} {tuple(tensors[key].shape)} for {tuple(own[key].shape)}"
            for key in both
            if tensors[key].shape != own[key].shape
        ],
        "type": [
            f"{key} {tensors[key].dtype} for {own[key].dtype}"
            for key in both
            if types and not _widens(tensors[key].dtype, own[key].dtype)
        ],
    }
    return "; ".join(_some(kind, keys) for kind, keys in faults.items() if keys)


def _widens(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """Return whether every number of a type is one of another, of the same kind."""
    kinds = narrow.is_floating_point == wide.is_floating_point and narrow.is_complex == wide.is_complex
    return narrow == wide or (
        kinds and narrow.is_floating_point and torch.promote_types(narrow, wide) == wide
    )


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
