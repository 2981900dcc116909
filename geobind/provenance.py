"""Where weights come from: their fingerprint, and the versions they were made with."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection

import torch
from torch import nn

import geobind


def digest(module: nn.Module, *, but: Collection[str] = ()) -> str:
    """Return the SHA-256 of a module's parameters and buffers: names, shapes, types and every bit.

    Args:
        module: The module.
        but: Names of entries of its state dict to leave out.
    """
    total = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if key not in but:
            tensor = value.detach().cpu().contiguous()
            total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def versions() -> dict[str, str]:
    """Name the versions of what computes: geobind, torch and Python, and the kind of machine."""
    return {
        "geobind": geobind.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
