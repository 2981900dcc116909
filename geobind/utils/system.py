"""Memory of the machine and of this process, and fingerprints and versions as provenance."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import re
import signal
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import geobind
from geobind.errors import DataError

if TYPE_CHECKING:  # `geobind doctor` looks at memory where torch may be broken
    import torch
    from torch import nn

_POWERS = {letter: power for power, letter in enumerate("kmgt", start=1)}
_UNITS = {"": 1} | {letter + mark: base**power for letter, power in _POWERS.items()
                    for mark, base in (("", 1000), ("i", 1024))}  # fmt: skip
_ROOT = Path("/")
_highest = 0  # what was held before the peak was last forgotten


class AvailableMemory(NamedTuple):
    """Memory that a process may use."""

    bytes: int
    says: str  # where the figure comes from


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 8GiB, 500 MB or 2e9.

    Raises:
        DataError: It is none, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    unit = _UNITS.get(found[2]) if found else None
    try:
        count = int(float(found[1]) * unit) if found and unit else 0
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise DataError(f"{text!r} is no amount of memory; write it as 8GiB or 500MB")
    return count


def count_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(root: Path = _ROOT) -> AvailableMemory | None:
    """Return the memory this process may use, including what it holds; None if unknown.

    That is what the system says is available, or what is left of the limit of a container (cgroups of
    either version), whichever is less.

    Args:
        root: Where `proc` and `sys` are.
    """
    held = _number(root / "proc/self/status", r"VmRSS:\s*(\d+) kB", 1024) or 0
    found: list[AvailableMemory] = []
    available = _number(root / "proc/meminfo", r"MemAvailable:\s*(\d+) kB", 1024)
    if available is not None:
        found.append(AvailableMemory(available + held, "what the system says is available"))
    for limit, used in _groups(root):
        found.append(AvailableMemory(max(0, limit - used) + held, "what is left of the container's limit"))
    if not found and root == _ROOT:
        with suppress(ValueError, OSError, AttributeError):
            whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            found.append(AvailableMemory(whole, "all of the machine's, as nothing tells what is free"))
    return min(found, default=None)


def reset_peak() -> bool:
    """Reset the peak that `peak_bytes` reports; return False where the system cannot."""
    global _highest
    before = peak_bytes() or 0
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    _highest = max(_highest, before)
    return True


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
_LARGEST_KEPT = 32 * 2**20  # bytes; glibc takes no more


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory for the next allocation; return False where it cannot.

    A training step frees and allocates the same large tensors every time. Given back to the system between,
    each of their pages is cleared and mapped anew.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def peak_bytes() -> int | None:
    """Return the peak memory of this process since `reset_peak`; None if unknown."""
    peak = _number(Path("/proc/self/status"), r"VmHWM:\s*(\d+) kB", 1024)
    if peak is not None:
        return peak
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # macOS counts bytes, others KiB


def peak_process_bytes() -> int | None:
    """Return the peak memory of this process since it began; None if unknown."""
    peak = peak_bytes()
    return None if peak is None else max(peak, _highest)


PARENT = "GEOBIND_PARENT"  # the environment variable with the process that this one must not outlive
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def end_with_parent() -> None:
    """Arrange that the system kills this process when the parent that the environment names dies (Linux).

    Processes that this one starts in the same way end with it.
    """
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    os.environ[PARENT] = str(os.getpid())
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, int(signal.SIGKILL))
    if parent != str(os.getppid()):  # it died before the system was asked
        os.kill(os.getpid(), signal.SIGKILL)


def release_memory() -> None:
    """Release unused memory to the system, as far as possible."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of the GNU C library


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Yield the limit and the use of each control group that this process is in, those around it included."""
    text = _text(root / "proc/self/cgroup")
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) < 3:
            continue
        if parts[1] == "":
            files = ("memory.max", "memory.current", "inactive_file")
            yield from _of_group(root / "sys/fs/cgroup", parts[2], *files)
        elif "memory" in parts[1].split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _of_group(root / "sys/fs/cgroup/memory", parts[2], *files)


def _of_group(home: Path, path: str, limit: str, used: str, cached: str) -> Iterator[tuple[int, int]]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        folder = home.joinpath(*parts[:depth])
        most, taken = (_number(folder / name, r"^(\d+)\s*$") for name in (limit, used))
        # A group without a limit says so with a number larger than any machine's memory.
        if most is not None and taken is not None and most < 2**60:
            spare = _number(folder / "memory.stat", rf"^{cached} (\d+)$") or 0  # the system takes it back
            yield most, max(0, taken - spare)


def _number(path: Path, pattern: str, unit: int = 1) -> int | None:
    found = re.search(pattern, _text(path), re.MULTILINE)
    return None if found is None else int(found[1]) * unit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def hash_module(module: nn.Module, *, but: Collection[str] = ()) -> str:
    """Return the SHA-256 of a module's parameters and buffers: names, shapes, types and every bit.

    Args:
        module: The module.
        but: Names of entries of its state dict to leave out.
    """
    return hash_tensors({key: value for key, value in module.state_dict().items() if key not in but})


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors: names, shapes, types and every bit."""
    import torch

    total = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        tensor = value.detach().cpu().contiguous()
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def collect_versions() -> dict[str, str]:
    """Return the versions of geobind, torch and Python, and the kind of machine."""
    import torch

    return {
        "geobind": geobind.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def utc_now() -> str:
    """Return the time in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_hardware() -> dict[str, str]:
    """Describe the hardware: processor, cores, memory, accelerators, as far as known."""
    import torch

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
