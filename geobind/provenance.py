"""Where weights come from: their fingerprint, and the versions they were made with."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import torch
from torch import nn

import geobind


def digest(module: nn.Module, *, but: Collection[str] = ()) -> str:
    """Return the SHA-256 of a module's parameters and buffers: names, shapes, types and every bit.

    Args:
        module: The module.
        but: Names of entries of its state dict to leave out.
    """
    return digest_of({key: value for key, value in module.state_dict().items() if key not in but})


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors: names, shapes, types and every bit."""
    total = hashlib.sha256()
    for key, value in sorted(tensors.items()):
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


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def hardware() -> dict[str, str]:
    """Say what computes: processor, cores, memory, accelerators, as far as the system tells."""
    told = {"processor": _processor(), "cores": str(os.cpu_count() or "")}
    with suppress(ValueError, OSError, AttributeError):
        told["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        told["accelerator"] = f"{len(names)} x {', '.join(dict.fromkeys(names))}"
    return {name: value for name, value in told.items() if value}


def _processor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
