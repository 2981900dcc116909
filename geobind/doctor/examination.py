"""Checks of an installation, with the command that repairs each fault."""

from __future__ import annotations

import json
import os
import platform
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from geobind.data.cache import cache_root
from geobind.doctor.probes import IMAGES, MARK, NEEDS, RASTERS, SOUNDS, WITH_TORCH, WITHOUT_TORCH
from geobind.extras import INSTALL
from geobind.utils import system

# ok; absent: optional and not installed; untried: another part is needed; note: geobind works without it
State = Literal["ok", "absent", "untried", "note", "fault"]
Section = Literal["machine", "packages", "folders", "formats", "plugins"]
PATIENCE = 120.0  # seconds for one part: the first import from a network disk takes long
_OLDEST, _TESTED, _LIMIT = (3, 11), (3, 13), (3, 15)  # versions of Python
_OLDEST_PIP = (22, 3)  # came with Python 3.11
_LITTLE = 2e9  # bytes of a disk
_REINSTALL = "pip install --force-reinstall --no-deps geobind"
_SELECTOR = "https://pytorch.org/get-started/locally/"

# Optional packages, and their purpose.
OPTIONAL = {
    "torchaudio": "mel spectrograms, which torch alone computes as well",
    "transformers": "HTSAT, CLAP's audio encoder",
    "rasterio": "windows of GeoTIFFs",
    "scipy": "datasets that come as MATLAB files",
    "peft": "LoRA",
    "tensorboard": "`loggers: [tensorboard]`",
    "numkong": "exact search at the speed of memory",
    "faiss-cpu": "`geobind index build --kind faiss`",
    "lancedb": "`geobind index build --kind lance`",
    "ray": "`geobind embed --ray`",
    "onnx": "`geobind export`",
    "onnxscript": "`geobind export`",
    "onnxruntime": "`geobind export`",
    "openvino": "`geobind embed --runtime openvino`",
    "fastapi": "`geobind serve`",
    "uvicorn": "`geobind serve`",
}
_MODULES = {"faiss-cpu": "faiss"}  # packages whose module has another name
_LESSER = {"OGG", "Opus", "MP3", "WebP", "TIFF", *RASTERS}  # formats that an older library may lack


@dataclass(frozen=True)
class DoctorFinding:
    """The result of one check."""

    section: Section
    part: str
    state: State
    told: str = ""  # for people
    fix: str = ""  # the command that repairs or installs it
    facts: Mapping[str, Any] = field(default_factory=dict)  # for programs


class ProbeOutcome(NamedTuple):
    """The facts found by a probe, or its error."""

    facts: Mapping[str, Any]
    error: str = ""


def examine(patience: float = PATIENCE) -> list[DoctorFinding]:
    """Check everything that geobind needs or can use.

    Args:
        patience: Seconds that one check may take.
    """
    with ThreadPoolExecutor(2) as pool:
        probed = pool.map(lambda names: run_probes(names, patience), ([*WITH_TORCH], [*WITHOUT_TORCH]))
        needed = _requirements()
        local = [_system(), python_finding(sys.version_info[:3]), pip_finding(_version("pip")), _memory()]
        first, second = probed
    outcomes = first | second
    return [
        *local,
        *_computing(outcomes),
        *_packages(outcomes, needed),
        *_folders(outcomes),
        *_formats(outcomes),
        *_plugins(outcomes),
    ]


def summarise() -> list[DoctorFinding]:
    """List the machine and the version of each package, without trying any: that takes no time."""
    needed = _requirements()
    names = dict.fromkeys((*WITH_TORCH, *WITHOUT_TORCH))
    packages = [
        DoctorFinding("packages", name, "ok", version)
        for name in names
        if (version := _version(name)) is not None and (name.lower() in needed or name in OPTIONAL)
    ]
    return [python_finding(sys.version_info[:3]), _system(), _memory(), *packages]


def run_probes(names: Sequence[str], patience: float) -> dict[str, ProbeOutcome]:
    """Run probes in a child process, and the remaining ones in another when it dies.

    Args:
        names: The probes, of `probes.PROBES`.
        patience: Seconds that one of them may take.

    Returns:
        The outcome of each, without those that depend on a failed one.
    """
    found: dict[str, ProbeOutcome] = {}
    left = [*names]
    while left:
        found |= _run_process(left, patience)
        failed = {name for name, outcome in found.items() if outcome.error}
        left = [name for name in left if name not in found and not failed.intersection(NEEDS.get(name, ()))]
    return found


def _run_process(names: Sequence[str], patience: float) -> dict[str, ProbeOutcome]:
    """Run probes in one process until it ends; its death is the outcome of the probe in progress."""
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from geobind.doctor.probes import main; main({[*names]!r})"
    )
    found: dict[str, ProbeOutcome] = {}
    current = ""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        error = ""
        for line in _lines(process, patience):
            if line is None:
                error = f"did not end within {patience:g} s"
                process.kill()
                break
            if "begin" in line:
                current = line["begin"]
            else:
                found[line["end"]] = ProbeOutcome(line.get("facts", {}), line.get("error", ""))
                current = ""
        code = process.wait()
        if current or error or not found:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines()
            reason = error or _how_it_died(code, words[-1][:200] if words else "")
            # One that has not begun a probe will not begin any other.
            broken = [current] if current else [name for name in names if name not in found]
            found |= {name: ProbeOutcome({}, reason) for name in broken}
    return found


def _lines(process: subprocess.Popen[bytes], patience: float) -> Iterator[dict[str, Any] | None]:
    """Yield the messages of the probe process, and None once it has been silent for too long."""
    said: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:
        with process.stdout or open(os.devnull, "rb") as stream:
            for line in stream:
                said.put(line)
        said.put(b"")

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            line = said.get(timeout=patience)
        except queue.Empty:
            yield None
            return
        if not line:
            return
        if line.startswith(MARK.encode()):
            yield json.loads(line[len(MARK) :])


def _how_it_died(code: int, last: str) -> str:
    name = ""
    if code < 0:
        with suppress(ValueError):
            name = f" ({signal.Signals(-code).name})"
    how = f"is killed by signal {-code}{name}" if code < 0 else f"ends with exit code {code}"
    return f"the process that loads it {how}{f': {last}' if last else ''}"


def python_finding(version: tuple[int, ...]) -> DoctorFinding:
    """Compare the version of Python with the supported and tested ones."""
    told, tested = ".".join(map(str, version)), ".".join(map(str, _TESTED))
    state: State = "ok"
    if version[:2] < _OLDEST:
        state, told = "fault", f"{told} is too old: geobind needs {'.'.join(map(str, _OLDEST))} or newer"
    elif version[:2] >= _LIMIT:
        state, told = "note", f"{told} is newer than any that geobind knows"
    elif version[:2] > _TESTED:
        state, told = "note", f"{told}; the newest that geobind is tested on is {tested}"
    fix = "" if state == "ok" else f"python{tested} -m venv .venv, and install geobind there"
    return DoctorFinding(
        "machine", "Python", state, told, fix, {"version": told, "executable": sys.executable}
    )


def pip_finding(version: str | None) -> DoctorFinding:
    """Compare the version of pip with the oldest that installs geobind."""
    facts = {"version": version}
    if version is None:
        told = "not installed; with uv, write `uv pip` for `pip` below"
        return DoctorFinding("machine", "pip", "absent", told, "python -m ensurepip", facts)
    if _numbers(version)[:2] < _OLDEST_PIP:
        told = (
            f"{version} is too old: it may not find the wheels that {'.'.join(map(str, _OLDEST_PIP))} finds"
        )
        return DoctorFinding("machine", "pip", "note", told, "python -m pip install --upgrade pip", facts)
    return DoctorFinding("machine", "pip", "ok", version, facts=facts)


def _system() -> DoctorFinding:
    told = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return DoctorFinding("machine", "system", "ok", told, facts={"platform": platform.platform()})


def _memory() -> DoctorFinding:
    free = system.available_memory()
    if free is None:
        return DoctorFinding("machine", "memory", "ok", "the system does not tell")
    told, facts = f"{_size(free.bytes)} free: {free.says}", {"free_bytes": free.bytes}
    return DoctorFinding("machine", "memory", "ok", told, facts=facts)


def _computing(outcomes: Mapping[str, ProbeOutcome]) -> Iterator[DoctorFinding]:
    """Report the processor and the accelerators."""
    cores = system.count_cpus()
    facts: dict[str, Any] = {"cores": cores}
    told = f"{cores} {'core' if cores == 1 else 'cores'}"
    if tried := outcomes.get("processor"):
        fault = tried.error or tried.facts["bf16"]
        facts["bf16"] = not fault
        told += f"; bf16 does not work ({fault})" if fault else ", bf16 works"
    yield DoctorFinding("machine", "processor", "ok", told, facts=facts)
    tried = outcomes.get("accelerators")
    if tried is None:
        yield _untried("machine", "accelerators", ["torch"])
    elif tried.error:
        fix = f"install the torch that fits: {_SELECTOR}"
        yield DoctorFinding("machine", "accelerators", "note", tried.error, fix)
    else:
        yield from accelerator_findings(tried.facts)


def accelerator_findings(facts: Mapping[str, Any]) -> Iterator[DoctorFinding]:
    """Report each accelerator, or why there is none.

    Args:
        facts: What the probe `accelerators` found.
    """
    for device in facts["devices"]:
        size = (
            f", {_size(device['free_bytes'])} of {_size(device['bytes'])} free" if "bytes" in device else ""
        )
        told = f"{device['name']}{size}"
        kept = {**device, "bf16": not device["bf16"]}
        if device["bf16"]:
            told += f"; bf16 does not work ({device['bf16']})"
            fix = "set `fabric: {precision: 32-true}`, or install the torch that fits: " + _SELECTOR
            yield DoctorFinding("machine", device["device"], "note", told, fix, kept)
        else:
            yield DoctorFinding("machine", device["device"], "ok", f"{told}, bf16 works", facts=kept)
    if facts["devices"]:
        return
    built, driver, said = facts["built"], facts["driver"], " ".join(facts["said"])
    kept = {"cuda_of_torch": built, "cuda_of_driver": driver}
    if driver is None:
        told = "none; training runs on the processor"
        yield DoctorFinding("machine", "accelerators", "ok", told, facts=kept)
    elif built is None:
        told = f"torch is built without CUDA, but there is an NVIDIA driver for CUDA {driver}"
        fix = f"install a torch built for CUDA: {_SELECTOR}"
        yield DoctorFinding("machine", "accelerators", "note", told, fix, kept)
    else:
        told = f"torch, built for CUDA {built}, finds no GPU; the NVIDIA driver is for CUDA {driver}"
        fix = f"update the NVIDIA driver, or install a torch built for CUDA {driver}: {_SELECTOR}"
        if _numbers(driver) >= _numbers(built):
            fix = "nvidia-smi: if it lists a GPU, see that CUDA_VISIBLE_DEVICES does not hide it"
        yield DoctorFinding(
            "machine", "accelerators", "note", f"{told}{f' ({said})' if said else ''}", fix, kept
        )


def _packages(outcomes: Mapping[str, ProbeOutcome], needed: Mapping[str, str]) -> Iterator[DoctorFinding]:
    """Report every usable package: its version, whether that is supported, whether it loads."""
    version = _version("geobind")
    if version is None:
        told = "runs from a folder that is on Python's path, and is not installed: no plugin is found"
        yield DoctorFinding("packages", "geobind", "fault", told, "pip install -e .")
    else:
        home = str(Path(__file__).parents[1])
        yield DoctorFinding("packages", "geobind", "ok", f"{version} in {home}", facts={"version": version})
    for name in (*WITH_TORCH, *WITHOUT_TORCH):
        if name not in {*SOUNDS, *IMAGES, *RASTERS, "processor", "accelerators", "plugins"}:
            yield package_finding(name, _version(name), needed.get(name.lower(), name), outcomes)


def package_finding(
    name: str, version: str | None, requirement: str, outcomes: Mapping[str, ProbeOutcome]
) -> DoctorFinding:
    """Report one package.

    Args:
        name: The distribution.
        version: The installed version, None if there is none.
        requirement: geobind's requirement, such as `numpy>=1.26`.
        outcomes: The outcomes of all probes.
    """
    optional = name in OPTIONAL
    outcome = outcomes.get(name)
    facts = {"version": version, "requirement": requirement, "loads": bool(outcome and not outcome.error)}
    if outcome is None and version is not None:
        return _untried("packages", name, _failed(name, outcomes), version, facts)
    if version is None and (outcome is None or outcome.error.startswith("ModuleNotFoundError")):
        if not optional:
            fix = f"pip install {shlex.quote(requirement)}"
            return DoctorFinding("packages", name, "fault", "not installed", fix, facts)
        fix = INSTALL.get(_MODULES.get(name, name), f"pip install {name}")
        return DoctorFinding("packages", name, "absent", f"not installed; for {OPTIONAL[name]}", fix, facts)
    shown = version or "of unknown version"
    if outcome is not None and outcome.error:
        told = f"{shown} does not load: {outcome.error}"
        if optional:
            told += f" (for {OPTIONAL[name]})"
        fix = _reinstall(name, requirement)
        return DoctorFinding("packages", name, "note" if optional else "fault", told, fix, facts)
    found = dict(outcome.facts) if outcome else {}
    more = found.pop("told", "")
    shown, facts = f"{shown}, {more}" if more else shown, {**found, **facts}
    if version is not None and not _fits(version, requirement):
        fix = f"pip install {shlex.quote(requirement)}"
        return DoctorFinding("packages", name, "note", f"{shown}; geobind asks for {requirement}", fix, facts)
    return DoctorFinding("packages", name, "ok", shown, facts=facts)


def _reinstall(name: str, requirement: str) -> str:
    """Return the command that repairs an installed package that does not load."""
    torch = _version("torch")
    if name == "torchaudio" and torch is not None:  # no other torch, whose version it would take along
        return f"pip uninstall -y torchaudio && pip install torchaudio torch=={torch.partition('+')[0]}"
    if name == "torchvision" and torch is not None:
        return f"pip install --force-reinstall torchvision torch=={torch.partition('+')[0]}"
    return f"pip install --force-reinstall {shlex.quote(requirement)}"


def _folders(outcomes: Mapping[str, ProbeOutcome]) -> Iterator[DoctorFinding]:
    """Report the folders that geobind writes to: whether they are writable, and the free space."""
    cache, other = cache_root(), "another that can be written"
    fix = f"export GEOBIND_CACHE=FOLDER, {other}"
    yield folder_finding("cache", cache, "fault", fix, held=_bytes_in(cache))
    hub = outcomes.get("huggingface_hub")
    if hub is not None and "cache" in hub.facts:
        yield folder_finding("hub cache", Path(hub.facts["cache"]), "note", f"export HF_HOME=FOLDER, {other}")
    yield folder_finding("output", Path.cwd(), "note", f"geobind run RECIPE --out FOLDER, {other}")
    fix = f"export TMPDIR=FOLDER, {other}"
    try:
        yield folder_finding("temporary", Path(tempfile.gettempdir()), "fault", fix)
    except OSError as error:
        yield DoctorFinding("folders", "temporary", "fault", f"there is none: {error.strerror}", fix)


def folder_finding(
    part: str, folder: Path, state: State, fix: str, *, held: int | None = None
) -> DoctorFinding:
    """Check a folder, or its nearest existing parent, by writing and removing a file.

    Args:
        part: The purpose of the folder.
        folder: The folder; it need not exist.
        state: The state if it is not writable.
        fix: How to choose another.
        held: Bytes in it.
    """
    facts: dict[str, Any] = {"folder": str(folder)}
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        told = f"{folder} cannot be written: {error.strerror or error}"
        return DoctorFinding("folders", part, state, told, fix, {**facts, "writable": False})
    facts |= {"writable": True, "free_bytes": free} | ({} if held is None else {"bytes": held})
    told = f"{folder}: {_size(free)} free" + (f", holds {_size(held)}" if held else "")
    if free < _LITTLE:
        fix = "geobind cache prune --max-gb 1" if held else fix
        return DoctorFinding("folders", part, "note", f"{told}; that is little", fix, facts)
    return DoctorFinding("folders", part, "ok", told, facts=facts)


def _formats(outcomes: Mapping[str, ProbeOutcome]) -> Iterator[DoctorFinding]:
    """Report the file formats that were written and read, and each that failed."""
    for part, names in (("sounds", SOUNDS), ("images", IMAGES), ("rasters", RASTERS)):
        good = [name for name in names if name in outcomes and not outcomes[name].error]
        if good:
            yield DoctorFinding("formats", part, "ok", ", ".join(good), facts={"formats": good})
        untried = [name for name in names if name not in outcomes]
        if untried:
            blocking = sorted({other for name in untried for other in _failed(name, outcomes)})
            yield _untried("formats", part, blocking, ", ".join(untried))
        for name in names:
            if name in outcomes and outcomes[name].error:
                yield _format_fault(name, part, outcomes)


def _format_fault(name: str, part: str, outcomes: Mapping[str, ProbeOutcome]) -> DoctorFinding:
    blocking = _failed(name, outcomes)
    if blocking:
        return _untried("formats", name, blocking)
    library = {"sounds": "soundfile", "images": "pillow", "rasters": "rasterio"}[part]
    state: State = "note" if name in _LESSER else "fault"
    fix = f"pip install --upgrade --force-reinstall {library}"
    return DoctorFinding("formats", name, state, f"cannot be read: {outcomes[name].error}", fix)


def _plugins(outcomes: Mapping[str, ProbeOutcome]) -> Iterator[DoctorFinding]:
    """Report what each plugin provides, and the broken ones."""
    outcome = outcomes.get("plugins")
    if outcome is None:
        yield _untried("plugins", "all of them", _failed("plugins", outcomes))
        return
    if outcome.error:
        found = {entry.dist.name for entry in metadata.entry_points(group="geobind") if entry.dist}
        others = sorted(found - {"geobind"})
        fix = f"pip uninstall {' '.join(others)}, one at a time" if others else _REINSTALL
        yield DoctorFinding("plugins", "all of them", "fault", outcome.error, fix)
        return
    provided: dict[str, dict[str, list[str]]] = {}  # by distribution and kind
    for one in outcome.facts["installed"]:
        provided.setdefault(one["distribution"], {}).setdefault(one["kind"], []).append(one["name"])
    for distribution, names in provided.items():
        told = "; ".join(f"{kind}: {', '.join(each)}" for kind, each in names.items())
        yield DoctorFinding("plugins", distribution, "ok", told, facts=names)
    for one in outcome.facts["broken"]:
        name = one["distribution"]
        own = name == "geobind"
        fix = _REINSTALL if own else f"pip install --upgrade {name}, or pip uninstall {name}"
        yield DoctorFinding("plugins", one["plugin"], "fault" if own else "note", one["reason"], fix, one)


def _untried(
    section: Section,
    part: str,
    blocking: Sequence[str],
    what: str = "",
    facts: Mapping[str, Any] | None = None,
) -> DoctorFinding:
    told = f"not tried, as {' and '.join(blocking)} {'does' if len(blocking) == 1 else 'do'} not load"
    return DoctorFinding(section, part, "untried", f"{what}: {told}" if what else told, facts=facts or {})


def _failed(name: str, outcomes: Mapping[str, ProbeOutcome]) -> list[str]:
    """Return the dependencies of a probe that do not load."""
    return [need for need in NEEDS.get(name, ()) if need in outcomes and outcomes[need].error]


def _requirements() -> dict[str, str]:
    """Return geobind's requirements, such as `numpy>=1.26`, by lower-case name."""
    try:
        declared = metadata.requires("geobind") or []
        from packaging.requirements import Requirement
    except (metadata.PackageNotFoundError, ImportError):
        return {}
    found: dict[str, str] = {}
    for line in declared:
        requirement = Requirement(line)
        if not requirement.extras:
            found[requirement.name.lower()] = f"{requirement.name}{requirement.specifier}"
    return found


def _fits(version: str, requirement: str) -> bool:
    try:
        from packaging.requirements import Requirement
        from packaging.version import InvalidVersion
    except ImportError:
        return True
    try:
        return Requirement(requirement).specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return True


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in version.split(".") if word.isdecimal())


def _bytes_in(folder: Path) -> int:
    """Return the total size of the files in a folder."""
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(home, name)).st_size
    return total


def _size(count: float) -> str:
    """Format an amount of bytes for people."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
