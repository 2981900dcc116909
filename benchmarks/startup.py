"""Start-up of commands: CPU seconds of a process, user and system, its children's too.

    python benchmarks/startup.py [--rounds 5]

The commands take turns; each runs once before, which reads its files from disk and compiles modules to
bytecode, as pip does when it installs them. Printed are the medians with bootstrap intervals. `embed` uses a
small bundle with random weights, which is made for it: the towers of the shipped recipe for tiles and words.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from paired import interval

GEOBIND = (sys.executable, "-m", "geobind")


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return what is timed."""
    make_bundle(folder)
    embed = (*GEOBIND, "embed", str(folder / "bundle"))
    return {
        "python": (sys.executable, "-c", "pass"),
        "import torch": (sys.executable, "-c", "import torch"),
        "geobind --help": (*GEOBIND, "--help"),
        "geobind run --help": (*GEOBIND, "run", "--help"),
        "geobind recipes": (*GEOBIND, "recipes"),
        "geobind modalities list": (*GEOBIND, "modalities", "list"),
        "geobind check three_modal": (*GEOBIND, "check", "three_modal"),
        "embed one image": (*embed, "satellite", str(folder / "0.jpg"), "--out", str(folder / "i.npy")),
        "embed one text": (*embed, "text", "a harbour", "--out", str(folder / "t.npy")),
    }


def make_bundle(folder: Path) -> None:
    """Write a bundle and an image in a process of its own."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from embed import write_images
from geobind import Binder
from geobind.plugins import registry
layers = {{"context_length": 48, "width": 128, "heads": 4, "layers": 2}}
clip = {{"pretrained": False, "model": {{"embed_dim": 128, "text_cfg": layers, "vision_cfg": {{}}}}}}
image = {{"timm": {{"model": "resnet10t", "pretrained": False}}, "size": 64, "head": "mlp"}}
options = {{"satellite": image, "text": {{"clip": clip}}}}
built = {{name: registry().get(name).model_validate(given) for name, given in options.items()}}
Binder(built, 128, seed=0).save(Path({str(folder / "bundle")!r}))
write_images(Path({str(folder)!r}), 1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def seconds(command: tuple[str, ...], folder: Path) -> float:
    """Return the CPU seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        asked = commands(folder)
        for command in asked.values():
            seconds(command, folder)
        times: dict[str, list[float]] = {title: [] for title in asked}
        for number in range(args.rounds):
            for title in sorted(asked, reverse=number % 2 == 0):
                times[title].append(seconds(asked[title], folder))
    for title, values in times.items():
        found = interval(values)
        print(f"{title:28}{found.median:7.2f} CPU s (95 %: {found.low:.2f} to {found.high:.2f})")


if __name__ == "__main__":
    main()
