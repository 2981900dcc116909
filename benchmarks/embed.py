"""The cost of `Binder.embed`, in turns on the same JPEG files.

    python benchmarks/embed.py --only hand [--files 64] [--rounds 15] [--batch 32]
    python benchmarks/embed.py --only ahead [--files 2000] [--rounds 5]
    python benchmarks/embed.py --only precision [--files 64] [--rounds 5]
    python benchmarks/embed.py --only runtimes [--files 16] [--rounds 9]

`hand`: against decoding the same files and calling the encoder by hand, in CPU seconds of one thread.
`ahead`: inputs prepared by threads ahead of a small encoder, against one after the other, in wall time on
all processors, with OMP_WAIT_POLICY=PASSIVE as the commands set it: a figure for a quiet machine.
`precision`: bfloat16 against float32, in CPU seconds of one thread, on prepared inputs; the least cosine; and
what `precision="auto"` chooses.
`runtimes`: onnxruntime and OpenVINO, where they are installed, against torch in float32, on the same clock.

Of neighbours the ratio is taken, and printed is the median with a bootstrap interval. Which comes first
changes from round to round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import geobind.cli  # noqa: F401  # sets how threads wait, as for commands, before torch is loaded

# isort: split
import numpy as np
import torch
from paired import ratio, take_turns
from PIL import Image

from geobind import Binder
from geobind.errors import GeobindError
from geobind.evaluation import unit
from geobind.plugins import registry


def write_images(folder: Path, count: int) -> list[Path]:
    random = np.random.default_rng(0)
    files = [folder / f"{i}.jpg" for i in range(count)]
    for file in files:
        small = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((256, 256), Image.Resampling.BICUBIC).save(file, quality=90)
    return files


def by_hand(binder: Binder, files: list[Path], batch: int) -> torch.Tensor:
    modality, encoder = binder.modalities["satellite"], binder.encoders["satellite"]
    parts = []
    with torch.no_grad():
        for start in range(0, len(files), batch):
            prepared = torch.stack([modality.prepare(file) for file in files[start : start + batch]])
            parts.append(unit(encoder(prepared)))
    return torch.cat(parts)


ENCODERS = {
    "resnet10t, 64 pixels": (
        {
            "timm": {
                "model": "resnet10t",
                "pretrained": False,
                "options": {"channels": [24, 48, 96, 128], "stem_width": 12, "global_pool": "catavgmax"},
            },
            "size": 64,
            "head": "mlp",
        },
        128,
    ),
    "resnet18, 224 pixels": ({"timm": {"model": "resnet18", "pretrained": False}}, 512),
    "ViT-B/32, 224 pixels": ({"clip": {"model": "ViT-B-32", "pretrained": False}}, 512),
}


def build(encoder: str) -> Binder:
    options, width = ENCODERS[encoder]
    return Binder({"satellite": registry().get("satellite").model_validate(options)}, width, seed=0)


def compare_with_hand(folder: Path, count: int, rounds: int, batch: int) -> None:
    torch.set_num_threads(1)
    binder = build("resnet18, 224 pixels")
    files = write_images(folder, count)
    calls = {
        "by hand": lambda: by_hand(binder, files, batch),
        "embed": lambda: binder.embed("satellite", files, batch_size=batch),
    }
    assert torch.allclose(calls["by hand"](), calls["embed"](), atol=1e-6)
    times = take_turns(calls, rounds)
    for name, values in times.items():
        print(
            f"{name}: {statistics.median(values):.3f} CPU s for {count} files "
            f"({min(values):.3f} to {max(values):.3f})"
        )
    print(f"embed / by hand: {ratio(times['embed'], times['by hand'])}")


def compare_with_one_by_one(folder: Path, count: int, rounds: int, batch: int) -> None:
    encoder = "resnet10t, 64 pixels"
    binder = build(encoder)
    files = write_images(folder, count)
    calls = {
        "ahead": lambda: binder.embed("satellite", files, batch_size=batch),
        "one after the other": lambda: binder.embed("satellite", files, batch_size=batch, workers=0),
    }
    assert torch.equal(calls["ahead"](), calls["one after the other"]())
    times = take_turns(calls, rounds, clock=time.perf_counter)
    print(f"{encoder}, {count} files, {torch.get_num_threads()} threads of torch")
    for name, values in times.items():
        print(f"{name}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
    print(f"ahead / one after the other, wall time: {ratio(times['ahead'], times['one after the other'])}")


def build_with_images(folder: Path, count: int) -> Iterator[tuple[str, Binder, torch.Tensor]]:
    """Yield each encoder, by name and in a binder, with the images that it takes."""
    torch.set_num_threads(1)
    files = write_images(folder, count)
    for encoder in ENCODERS:
        binder = build(encoder)
        yield encoder, binder, torch.stack([binder.modalities["satellite"].prepare(file) for file in files])


def embed_images(
    binder: Binder, images: torch.Tensor, batch: int, precision: str, runtime: str = "torch"
) -> torch.Tensor:
    batches = ((None, part) for part in images.split(batch))
    parts = binder.embed_prepared("satellite", batches, precision, runtime)
    return torch.cat([part for _, part in parts if part is not None])


def compare_precisions(folder: Path, count: int, rounds: int, batch: int) -> None:
    for encoder, binder, images in build_with_images(folder, count):
        embed = partial(embed_images, binder, images, batch)
        calls = {name: partial(embed, name) for name in ("float32", "bfloat16")}
        cosine_N = (calls["float32"]() * calls["bfloat16"]()).sum(1)
        times = take_turns(calls, rounds)
        embed("auto")
        print(f"{encoder}: bfloat16 / float32 {ratio(times['bfloat16'], times['float32'])}, ", end="")
        print(f"cosine {cosine_N.mean():.5f} on average, least {cosine_N.min():.5f}")
        print(f"  auto: {binder.precisions['satellite']}")


RUNTIMES = (
    ("onnxruntime", "float32"),
    ("onnxruntime", "int8"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
)


def compare_runtimes(folder: Path, count: int, rounds: int, batch: int) -> None:
    for encoder, binder, images in build_with_images(folder, count):
        embed = partial(embed_images, binder, images, batch)
        calls = {("torch", "float32"): partial(embed, "float32")}
        exact_ND = calls["torch", "float32"]()
        cosines: dict[tuple[str, str], float] = {}
        for name in RUNTIMES:
            runtime, precision = name
            start = time.perf_counter()
            try:
                cosines[name] = float((embed(precision, runtime) * exact_ND).sum(1).min())
            except GeobindError as error:
                print(f"{encoder}: {' '.join(name)}: {error}")
                continue
            print(f"{encoder}: {' '.join(name)} compiled in {time.perf_counter() - start:.1f} s")
            calls[name] = partial(embed, precision, runtime)
        times = take_turns(calls, rounds)
        for name, cosine in cosines.items():
            by = ratio(times[name], times["torch", "float32"])
            print(f"{encoder}: {' '.join(name)} / torch {by}, least cosine {cosine:.5f}")


COMPARISONS = {
    "hand": (compare_with_hand, 64, 15, 32),
    "ahead": (compare_with_one_by_one, 2000, 5, 64),
    "precision": (compare_precisions, 64, 5, 16),
    "runtimes": (compare_runtimes, 16, 9, 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=COMPARISONS, default="hand")
    for name in ("files", "rounds", "batch"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    compare, files, rounds, batch = COMPARISONS[args.only]
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.files or files, args.rounds or rounds, args.batch or batch)


if __name__ == "__main__":
    main()
