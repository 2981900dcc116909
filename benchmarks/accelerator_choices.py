"""What is done on a device for its speed or memory, each with and without."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerator_speed import size, spread, timed
from paired import interval, take_turns
from parts import Case, Deadline, Found, Setup, check
from stages import SMALL, TINY, Shape, Stage, Tower, images, run, synchronize
from torch import Tensor

from geobind.inference import copy_ahead, to_device
from geobind.planning.models import EndingMeasurement, Machine, ProbeResult, StageMeasurement
from geobind.planning.predict import predict_run
from geobind.planning.probe import measure_recipe
from geobind.towers.tower import channels_last, normalise_once

NORMALISE_BOUND = 1e-5  # of the largest difference between normalised images
LOSS_BOUND = 1e-3  # relative, between the losses of steps with and without


def choices(setup: Setup) -> Iterator[Case]:
    """Return each choice, with and without in turns, and what a plan makes of `auto`."""
    least = 1 if setup.small else 8
    yield Case("AdamW: fused / not", partial(adamw, setup), least)
    yield Case("normalising: one pass / five", partial(normalising, setup), least)
    yield Case("copying: one batch ahead / in line", partial(copying, setup), least)
    yield Case("activations: computed twice / kept", partial(checkpointing, setup), least)
    yield Case("compile and checkpoint_activations: auto", partial(planned, setup), 1 if setup.small else 40)


def _compare(setup: Setup, ways: Mapping[str, Callable[[], object]], deadline: Deadline) -> Found:
    """Time two ways in turns, the device waited for; the ratio is of the first to the second."""

    def wait(work: Callable[[], object]) -> None:
        work()
        synchronize(setup.device)

    first = sum(timed(setup.device, work) for work in ways.values())  # pays for kernels and memory, too
    rounds = 2 if setup.small else max(2, min(15, int(0.4 * deadline.left() / first)))
    times = take_turns({name: partial(wait, ways[name]) for name in ways}, rounds, time.perf_counter)
    one, other = times.values()
    ratio = interval([a / b for a, b in zip(one, other, strict=True)])
    middle = {name: interval(taken).median for name, taken in times.items()}
    text = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in middle.items())
    return Found(f"{text}; ratio {spread(ratio, '.3f')}", {"seconds": middle, "ratio": ratio._asdict()})


def adamw(setup: Setup, deadline: Deadline) -> Found:
    """Step AdamW on the weights of a tower by its fused kernel and by torch's default."""
    shape, width = (TINY, 32) if setup.small else (Shape(), 512)

    def make(fused: bool | None) -> Callable[[], object]:
        weights = [*Tower(shape, width).to(setup.device).parameters()]
        for weight in weights:
            weight.grad = torch.full_like(weight, 1e-3)
        return torch.optim.AdamW(weights, lr=1e-6, fused=fused).step

    return _compare(setup, {"fused": make(True), "default": make(None)}, deadline)


def normalising(setup: Setup, deadline: Deadline) -> Found:
    """Normalise 8-bit images by one multiplication and addition, and as it was done before."""
    batch = 8 if setup.small else 1024
    image_BCHW = images(32 if setup.small else 224, setup.device).repeat(1 + batch // 256, 1, 1, 1)[:batch]
    mean, std = (torch.full((3, 1, 1), value, device=setup.device) for value in (0.48, 0.27))

    def before() -> Tensor:
        return channels_last((image_BCHW.float() / 255 - mean) / std)

    now = partial(normalise_once, image_BCHW, mean, std)
    apart = float((now() - before()).abs().max())
    check(apart <= NORMALISE_BOUND, f"largest difference {apart:.0e} (bound {NORMALISE_BOUND:.0e})")
    return _compare(setup, {"one pass": now, "five": before}, deadline)


def copying(setup: Setup, deadline: Deadline) -> Found:
    """Train a small tower on float images that are copied while the ones before are computed, and in line."""
    shape, count, steps = (TINY, 8, 4) if setup.small else (SMALL._replace(size=224), 512, 12)
    tower, device = Tower(shape, 32).to(setup.device), torch.device(setup.device)
    drawn = torch.rand(count, 3, shape.size, shape.size)
    loaded = [drawn + number for number in range(4)]
    if setup.device == "cuda":
        loaded = [batch.pin_memory() for batch in loaded]
    batches = [(number, loaded[number % len(loaded)]) for number in range(steps)]

    def train(copied: Iterable[tuple[int, Tensor]]) -> Tensor:
        sums: list[Tensor] = []
        for _, image in copied:
            tower(image).square().mean().backward()
            sums.append(image.sum())
            tower.zero_grad()
        return torch.stack(sums)

    def ahead() -> Tensor:
        return train(copy_ahead(batches, device))

    def in_line() -> Tensor:
        return train((number, to_device(batch, device)) for number, batch in batches)

    # Memory that was given to the next batch too early would show here.
    check(torch.equal(ahead(), in_line()), "a batch that was copied ahead is another one on the device")
    return _compare(setup, {"ahead": ahead, "in line": in_line}, deadline)


def _stage(setup: Setup, **options: Any) -> Stage:
    sizes: dict[str, Any] = {"shape": TINY, "width": 32} if setup.small else {"shape": Shape(), "width": 512}
    batch, steps = (16, 4) if setup.small else (512, 12)
    return Stage(setup.device, batch, steps, precision="bf16-mixed", **sizes, **options)


def checkpointing(setup: Setup, deadline: Deadline) -> Found:
    """Train with activations that are computed twice, and with those that are kept: time, memory, losses."""
    ways = {"twice": _stage(setup, checkpoint_activations=True), "kept": _stage(setup)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {}
    peaks: dict[str, int | None] = {}
    for number in range(1 if setup.small else 5):
        if number > 1 and deadline.left() < 10:
            break
        for name, stage in ways.items():
            # Looked at, for which the device is waited for, at the middle and the end alone.
            ran = run(stage, stage.binder(), every=stage.steps // 2)
            seconds[name].append((ran.stamps[-1] - ran.stamps[0]) / (stage.steps // 2))
            losses[name] = ran.losses
            peaks[name] = ran.outcome.peak_memory_bytes or ran.outcome.process_bytes
    apart = max(abs(one - other) / other for one, other in zip(*losses.values(), strict=True))
    check(apart <= LOSS_BOUND, f"losses differ by {apart:.0e} (bound {LOSS_BOUND:.0e})")
    ratio = interval([one / other for one, other in zip(*seconds.values(), strict=True)])
    middle = {name: interval(taken).median for name, taken in seconds.items()}
    told = [f"{name} {1e3 * middle[name]:.3g} ms a step, {size(peaks[name])}" for name in ways]
    text = f"{', '.join(told)}; ratio {spread(ratio, '.3f')}; losses {apart:.0e} apart"
    return Found(text, {"seconds": middle, "peak_bytes": peaks, "ratio": ratio._asdict(), "losses": apart})


def planned(setup: Setup, deadline: Deadline) -> Found:
    """Plan a stage that leaves both to `auto`, in less memory than its batch takes."""
    stage = _stage(setup, compile="auto", checkpoint_activations="auto")
    limit = (1 if setup.small else 16) * 2**29
    recipe = stage.recipe()
    with tempfile.TemporaryDirectory() as name:
        found = [*measure_recipe(recipe, Path(name), 2.0 if setup.small else 0.3 * deadline.left(), limit)]
    machine = next(event for event in found if isinstance(event, Machine))
    ending = next(event for event in found if isinstance(event, EndingMeasurement))
    measured = tuple(event for event in found if isinstance(event, StageMeasurement))
    (plan,) = predict_run(recipe, ProbeResult(machine=machine, stages=measured, ending=ending)).stages
    return Found(f"{plan.settled_words}; {plan.why}", {**plan.settled, "measured": measured[0].model_dump()})
