"""Cost and gain of a step in two passes: CPU time and peak memory by the size of the batch.

    python benchmarks/two_pass.py [--only time|memory|local] [--batches 32 64 128] [--chunk 16] [--rounds 3]

Two equal timm vision transformers (`--model`, `--size`) with random weights, both trained, or one of them
frozen. A step in one pass and a step in two (`chunk`) take the same batch through the classes that a stage
uses. Times are CPU seconds of one thread: medians of steps that take turns. Memory is what the peak of a
process grows by from before its first step, in a process of its own for each case. `local` times the loss of
one of W processes, which with `loss.local` takes the part of its own rows.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

WIDTH = 256
Setup = dict[str, Any]


def setup(args: argparse.Namespace, batch: int, frozen: bool) -> Setup:
    """Build the two encoders, their loss and a batch, as a stage does."""
    import timm
    import torch
    from lightning_fabric import Fabric

    from geobind.losses import InfoNCE
    from geobind.recipe.schema import build_pairs
    from geobind.training.distributed import Ranks
    from geobind.training.module import ContrastiveModule

    torch.set_num_threads(1)
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = timm.create_model(args.model, img_size=args.size, num_classes=WIDTH)

        def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            return self.trunk(image_BCHW.float() / 255)

    encoders = {"one": Net().train(), "two": Net().train()}
    if frozen:
        encoders["two"].eval().requires_grad_(False)
    pairs = build_pairs("one", ["two"])
    bind = ContrastiveModule(encoders, {"one-two": InfoNCE()}, pairs, Ranks(lambda part, **_: part, 1), WIDTH)
    shape = (batch, 3, args.size, args.size)
    images = {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name in encoders}
    fabric = Fabric(accelerator="cpu", devices=1)
    return {"bind": bind, "fabric": fabric, "module": fabric.setup(bind), "images": images}


def step(made: Setup, chunk: int | None) -> float:
    """Leave the gradient of a step; return its CPU seconds."""
    from geobind.training.gradients import GradientAccumulator

    made["bind"].zero_grad()
    gradients = GradientAccumulator(made["fabric"], made["bind"], made["module"], chunk)
    start = time.process_time()
    gradients(made["images"], None)
    return time.process_time() - start


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_case(args: argparse.Namespace) -> None:
    """Print the memory of one case, for the process that asked for it."""
    made = setup(args, args.batches[0], args.frozen)
    before = peak_mib()
    for _ in range(2):
        step(made, args.chunk or None)
    print(json.dumps({"before": before, "peak": peak_mib()}))


def memory(args: argparse.Namespace, batch: int, chunk: int, frozen: bool) -> dict[str, float]:
    """Return the memory of a case in a process of its own, in MiB."""
    words = ["--model", args.model, "--size", args.size, "--batches", batch, "--chunk", chunk, "--case"]
    words += ["--frozen"] if frozen else []
    command = [sys.executable, __file__, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def times(args: argparse.Namespace, batch: int, frozen: bool) -> None:
    """Print the time of two passes beside that of one, and how far the gradients differ."""
    made = setup(args, batch, frozen)
    bind = made["bind"]
    found: dict[int | None, list[float]] = {None: [], args.chunk: []}
    gradients: dict[int | None, list[Any]] = {}
    for chunk in found:
        step(made, chunk)
        gradients[chunk] = [p.grad.clone() for p in bind.parameters() if p.requires_grad]
    for _ in range(args.rounds):
        for chunk, values in found.items():
            values.append(step(made, chunk))
    ratio = statistics.median(two / one for one, two in zip(found[None], found[args.chunk], strict=True))
    both = list(zip(gradients[None], gradients[args.chunk], strict=True))
    squares = (
        sum(float(part.square().sum()) for part in parts) for parts in (map(_less, both), gradients[None])
    )
    apart = math.sqrt(operator.truediv(*squares))
    # The bias of keys in attention has no gradient but for rounding.
    far = max(float(_less(two).abs().max() / two[0].abs().max()) for two in both if two[0].abs().max() > 1e-6)
    one, two = (statistics.median(values) for values in found.values())
    print(
        f"  batch {batch}: one pass {one:.2f} s, two {two:.2f} s, ratio {ratio:.2f}; "
        f"gradients differ by {apart:.0e} of the norm, at most {far:.0e} of the largest number of a tensor",
        flush=True,
    )


def _less(two: tuple[Any, Any]) -> Any:
    return two[0] - two[1]


def local(args: argparse.Namespace) -> None:
    """Print what the loss costs a process that takes the part of its own rows."""
    import torch

    from geobind.losses import InfoNCE, SigLIP

    torch.set_num_threads(1)
    count, width = 8192, 512
    sides = torch.nn.functional.normalize(torch.randn(2, count, width), dim=-1)

    def seconds(loss: torch.nn.Module, own: slice | None) -> float:
        one_ND, other_ND = (side.clone().requires_grad_() for side in sides)
        start = time.process_time()
        loss(one_ND, other_ND, None, own).backward()
        return time.process_time() - start

    print(
        f"the loss of one of W processes, by that of all {count} rows of {width} numbers, both sides trained"
    )
    for name, loss in (("infonce", InfoNCE()), ("siglip", SigLIP())):
        whole = statistics.median(seconds(loss, None) for _ in range(args.rounds))
        told = []
        for world in (2, 4, 8):
            own = slice(0, count // world)
            part = statistics.median(seconds(loss, own) for _ in range(args.rounds))
            told.append(f"W = {world}: {part / whole:.2f}")
        print(f"  {name}: {'; '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["time", "memory", "local"], help="one part")
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--frozen", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        one_case(args)
        return
    title = f"{args.model} at {args.size} pixels, chunks of {args.chunk}"
    for frozen in (False, True):
        sides = "one side trained, one frozen" if frozen else "both sides trained"
        if args.only in (None, "time"):
            print(f"{title}, {sides}: CPU seconds of a step", flush=True)
            for batch in args.batches:
                times(args, batch, frozen)
        if args.only in (None, "memory"):
            print(f"{title}, {sides}: MiB that a step adds at its peak to what there is before the first")
            for batch in args.batches:
                one, two = (memory(args, batch, chunk, frozen) for chunk in (0, args.chunk))
                grown = (f"{case['peak'] - case['before']:.0f}" for case in (one, two))
                print(f"  batch {batch}: {' in one pass, '.join(grown)} in two", flush=True)
    if args.only in (None, "local"):
        local(args)


if __name__ == "__main__":
    main()
