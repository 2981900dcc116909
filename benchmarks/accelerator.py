"""Checks and measurements that need an accelerator: results that must hold on it, and how well it is used.

    python benchmarks/accelerator.py --out FOLDER            # a CUDA machine, 9 minutes at most
    python benchmarks/accelerator.py --small --out FOLDER    # a CPU: the same code, no figure means anything

- checks: frozen weights stay to the bit; the tiled losses against float64; 16-mixed and bf16-mixed; the
  kernel of shared batch norm; pinned loading; `Binder.embed` against the CPU
- training: samples a second of two ViT-B/32 in bf16 against open_clip's loop, and shares of the matrix peak
- batch: the largest exact batch directly, in chunks, and with the frozen side from the cache
- loss: InfoNCE, worked out in tiles, against open_clip's ClipLoss
- input: the loader alone, by the number of worker processes
- choices: fused AdamW, images normalised in one pass, batches copied ahead, activations computed twice, each
  against doing without; what `compile: auto` and `checkpoint_activations: auto` become
- compile: losses with torch.compile against those without

Nothing is downloaded: weights are random, and files are made in a temporary folder. Each part has a share of
the time and a process of its own (`parts.py`). A part that fails or has no time left is recorded, and the
rest goes on. FOLDER gets `accelerator.json` and `accelerator.md`, written anew after each part.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parts import GRACE, Case, Found, Part, Result, Setup, run_parts

BEGUN = time.monotonic()
SECONDS = 540.0
SEED = 0


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks-accelerator"), metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="tiny, on a CPU, to see that all of it runs")
    parser.add_argument("--only", nargs="+", choices=SHARES, help="these parts alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    # Read when torch and huggingface_hub are imported: nothing here may start CUDA before the parts' own
    # processes do, nor reach for a network.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GEOBIND_CACHE"] = str(Path(folder) / "cache")
        setup = Setup(given.small, "cpu", Path(folder))
        (machine,) = run_parts([Part("machine", 30, machine_facts)], setup, seconds=30)
        facts = machine.rows[0].figures if machine.rows else {}
        if not given.small and not facts.get("cuda"):
            why = machine.status if machine.status != "ok" else "this machine has no CUDA device"
            print(f"{why}; --small runs on a CPU", file=sys.stderr)
            return 2
        if given.small:
            import torch

            torch.set_num_threads(1)
        setup = setup._replace(device="cpu" if given.small else "cuda")
        results: list[Result] = []

        def note(result: Result) -> None:
            results.append(result)
            print(f"{result.name}: {result.status} ({result.seconds:.1f} s)", flush=True)
            write_report(given.out, setup, facts, given.seconds, results)

        chosen = [part for part in all_parts() if not given.only or part.name in given.only]
        left = given.seconds - GRACE - (time.monotonic() - BEGUN)
        run_parts(chosen, setup, seconds=left, note=note)
    print((given.out / "accelerator.md").read_text(encoding="utf-8"))
    return int(any(result.status.startswith("failed") for result in results))


# Seconds of each part. Compiling comes last, because nothing can stop it halfway.
SHARES = {"checks": 80.0, "training": 120.0, "batch": 90.0, "loss": 50.0, "input": 45.0}
SHARES |= {"choices": 90.0, "compile": 65.0}


def all_parts() -> list[Part]:
    """Return the parts in their order."""
    import accelerator_checks as checks
    import accelerator_choices as choices
    import accelerator_speed as speed

    makers = {
        "checks": checks.checks,
        "training": speed.training,
        "batch": speed.largest_batch,
        "loss": speed.tiled_loss,
        "input": speed.input_pipeline,
        "choices": choices.choices,
        "compile": checks.compiled,
    }
    return [Part(name, seconds, makers[name]) for name, seconds in SHARES.items()]


def machine_facts(setup: Setup) -> Iterator[Case]:
    """Return the case that looks at the machine: in a process of its own, for it starts CUDA."""
    yield Case("facts", lambda _: _facts(setup.small))


def _facts(small: bool) -> Found:
    import torch

    from geobind.utils import system

    facts: dict[str, Any] = {**system.describe_hardware(), **system.collect_versions()}
    facts |= {name: version(name) for name in ("torchvision", "open_clip_torch", "lightning-fabric")}
    facts["threads"] = 1 if small else torch.get_num_threads()
    facts["cuda"] = torch.cuda.is_available() and not small
    if facts["cuda"]:
        gpu = torch.cuda.get_device_properties(0)
        facts |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
        facts |= {"gpu_count": torch.cuda.device_count(), "capability": f"{gpu.major}.{gpu.minor}"}
        facts |= {"cuda_version": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        facts |= {"driver": _driver()}
    return Found("", facts)


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.split()[
            0
        ]
    return "unknown"


def write_report(
    folder: Path, setup: Setup, facts: dict[str, Any], seconds: float, results: Sequence[Result]
) -> None:
    """Write the JSON and the table of what has been found so far."""
    report = {
        "format": 1,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - BEGUN, 1),
        "budget_seconds": seconds,
        "small": setup.small,
        "device": setup.device,
        "seed": SEED,
        "machine": facts,
        "parts": [{**result._asdict(), "rows": [row._asdict() for row in result.rows]} for result in results],
    }
    _replace(folder / "accelerator.json", json.dumps(_plain(report), indent=1, allow_nan=False) + "\n")
    _replace(folder / "accelerator.md", table(report))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, which knows no infinity and no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def table(report: dict[str, Any]) -> str:
    """Return one Markdown table of all parts, below a line about the machine."""
    facts = report["machine"]
    keys = ("gpu", "gpu_memory_gib", "gpu_count", "driver", "cuda_version", "cudnn", "processor", "cores")
    keys += ("memory", "torch", "open_clip_torch", "lightning-fabric", "geobind", "python", "machine")
    line = "; ".join(f"{key.replace('_', ' ')} {facts[key]}" for key in keys if key in facts)
    lines = ["# An accelerator", ""]
    if report["small"]:
        lines += ["Small mode, on a CPU: it shows that all parts run. No figure means anything.", ""]
    lines += [
        f"{report['written']}; {report['seconds']:.0f} of {report['budget_seconds']:.0f} s; {line}.",
        "",
    ]
    lines += [f"Seed {report['seed']}; precision as each row says; TF32 off unless a row says otherwise.", ""]
    lines += ["| part | case | result | status | s |", "|---|---|---|---|---|"]
    for part in report["parts"]:
        lines.append(_line(part["name"], "", "", part["status"], part["seconds"], bold=True))
        lines += [_line("", row["case"], row["text"], row["status"], row["seconds"]) for row in part["rows"]]
    return "\n".join(lines) + "\n"


def _line(*cells: Any, bold: bool = False) -> str:
    *words, seconds = cells
    plain = [str(word).replace("|", "\\|").replace("\n", " ") for word in words]
    if bold:
        plain[0] = f"**{plain[0]}**"
    return f"| {' | '.join([*plain, f'{seconds:.1f}'])} |"


if __name__ == "__main__":
    sys.exit(main())
