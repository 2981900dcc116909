"""Speed and memory on a device: training, the largest batch, the loss of many pairs, the input pipeline."""

# B rows of a batch, N pairs, D width

from __future__ import annotations

import copy
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerator_checks import float32_products, satellite, tiles
from cache import Clip, open_clip_epoch
from data_speed import ours
from losses import Peer, Variant, embeddings, step
from open_clip.loss import ClipLoss
from paired import Interval, interval
from parts import Case, Deadline, Found, Setup, free_memory
from stages import TINY, Shape, Stage, Stamps, Tower, images, is_out_of_memory, run, synchronize
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from geobind import Binder
from geobind.training.losses import InfoNCE
from geobind.training.stage import StageRun
from geobind.utils import system

GIB = 2**30
BOTH, ONE = ("one", "two"), ("one",)
WINDOW = 10  # steps that one side takes before it is the other's turn


def timed(device: str, work: Callable[[], Any]) -> float:
    """Return the seconds that work takes, the device waited for."""
    synchronize(device)
    begun = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begun


def peak_of(device: str, work: Callable[[], Any]) -> int | None:
    """Return by how many bytes memory grows at most while work is done; None where nothing tells."""
    if device == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    if not system.reset_peak():
        return None
    before = system.peak_bytes()
    work()
    peak = system.peak_bytes()
    return None if before is None or peak is None else peak - before


def size(count: int | None) -> str:
    """Return a number of bytes in words."""
    if count is None:
        return "unknown"
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


def spread(found: Interval, form: str = ".2f") -> str:
    """Return a median and its interval in words."""
    return f"{found.median:{form}} (95 %: {found.low:{form}} to {found.high:{form}})"


# Training


class Enough(Exception):
    """Ends a stage that has been timed for long enough."""


class Contest(NamedTuple):
    """The step that our stage and open_clip's loop both take."""

    name: str
    train: tuple[str, ...]
    cache: str = "off"

    def flops(self, forward: int, both: int) -> int:
        """Return the FLOPs that a pair needs, of those of a tower's forward pass and of both passes."""
        return sum(both if name in self.train else 0 if self.cache != "off" else forward for name in BOTH)


CONTESTS = (
    Contest("both towers trained", BOTH),
    Contest("one tower frozen", ONE),
    Contest("one tower frozen, ours cached", ONE, "auto"),
)


def training(setup: Setup) -> Iterator[Case]:
    """Return the training speeds, beside the peak of matrix products."""
    peak: list[float] = []
    yield Case("peak of bf16 matrix products", partial(matrix_peak, setup, peak))
    for number, contest in enumerate(CONTESTS):
        share = 1 / (len(CONTESTS) - number)
        yield Case(contest.name, partial(train, setup, contest, share, peak), 1 if setup.small else 15)


def matrix_peak(setup: Setup, peak: list[float], _: Deadline) -> Found:
    """Measure the most FLOPs a second in a product of large bfloat16 matrices."""
    sizes, repeats = ((256,), 3) if setup.small else ((4096, 8192, 16384), 10)
    found = {}
    for n in sizes:
        one, other = (torch.randn(n, n, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
        out = torch.empty_like(one)

        def products(count: int, one: Any = one, other: Any = other, out: Any = out) -> None:
            for _ in range(count):
                torch.mm(one, other, out=out)

        products(3)
        seconds = [timed(setup.device, lambda: products(5)) / 5 for _ in range(repeats)]
        found[n] = 2 * n**3 / statistics.median(seconds)
    peak.append(max(found.values()))
    best = max(found, key=lambda n: found[n])
    figures = {"flops_per_second": peak[-1], "by_size": found}
    return Found(f"{peak[-1] / 1e12:.3g} TFLOP/s, of matrices of {best:,}", figures)


def tower_flops(shape: Shape, width: int, device: str) -> tuple[int, int]:
    """Return the FLOPs of one image through a tower: forward alone, and forward and backward."""
    tower, rows = Tower(shape, width).to(device), torch.arange(2, device=device)
    counts = []
    # Written out as plain products: what fused attention computes again is no work of the model's.
    for backward in (False, True):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = tower(rows)
            if backward:
                out.sum().backward()
        counts.append(counter.get_total_flops() // len(rows))
    return counts[0], counts[1]


class Recorded(ClipLoss):
    """open_clip's loss, which remembers its values."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[torch.Tensor] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = super().forward(*args, **kwargs)
        self.values.append(found["contrastive_loss"].detach())
        return found


def rival_of(stage: Stage, towers: nn.ModuleDict) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a copy of both towers as a model of open_clip's, and its optimizer as its `main` makes it."""
    one, two = (copy.deepcopy(towers[name]).to(stage.device) for name in BOTH)
    two.requires_grad_("two" in stage.train)
    model = Clip(one, two).to(stage.device)
    named = [(key, p) for key, p in model.named_parameters() if p.requires_grad]
    plain = [p for key, p in named if p.ndim < 2 or "ln" in key or "bias" in key or "logit_scale" in key]
    others = [p for _, p in named if not any(p is q for q in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.2}]
    return model, torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98), eps=1e-6)


def train(setup: Setup, contest: Contest, share: float, peak: list[float], deadline: Deadline) -> Found:
    """Time our stage and open_clip's loop in turns, on copies of the same towers and the same batches."""
    batch = 16 if setup.small else 1024
    end = deadline.within(share * deadline.left())
    while True:
        try:
            return _race(setup, contest, batch, peak, end)
        except Exception as error:
            if not is_out_of_memory(error) or batch <= 32:
                raise
        free_memory()  # outside the handler, which holds on to it
        batch //= 2


def _race(setup: Setup, contest: Contest, batch: int, peak: list[float], end: Deadline) -> Found:
    small = setup.small
    window, most = (2, 3) if small else (WINDOW, 15)
    shape, width = (TINY, 32) if small else (Shape(), 512)
    # Two steps an epoch: whatever is cached is used.
    options: dict[str, Any] = {"rows": 2 * batch, "train": contest.train, "cache": contest.cache}
    options |= {"precision": "bf16-mixed", "shape": shape, "width": width}
    options["workers"] = 0 if small else min(4, os.cpu_count() or 1)
    stage = Stage(setup.device, batch, window * (most + 1), **options)
    images(shape.size, "cpu" if setup.device == "cpu" else "cuda:0")
    binder = stage.binder()
    model, optimizer = rival_of(stage, binder.encoders)
    loss, first = Recorded(), list[float]()
    seconds: tuple[list[float], list[float]] = [], []
    began = 0.0

    def between(look: int, job: StageRun, figures: Stamps) -> None:
        nonlocal began
        now = time.perf_counter()
        if look:  # what comes first pays for imports, compilation of kernels and memory
            seconds[0].append(now - began)
        else:
            first.append(figures.losses[0])
        rows = [torch.from_numpy(job.sampler.rows(look * window + number)) for number in range(window)]
        precision = {"device": setup.device, "precision": "amp_bf16"}
        taken = timed(setup.device, lambda: open_clip_epoch(model, optimizer, rows, loss, **precision))
        if look:
            seconds[1].append(taken)
        if look and end.left() < 1.5 * (seconds[0][-1] + seconds[1][-1]):
            raise Enough
        began = time.perf_counter()

    with suppress(Enough):
        run(stage, binder, every=window, between=between)
    rates = [[window * batch / taken for taken in side] for side in seconds]
    return _compared(contest, stage, rates, peak, (first[0], float(loss.values[0])))


def _compared(
    contest: Contest, stage: Stage, rates: list[list[float]], peak: list[float], first: tuple[float, float]
) -> Found:
    """Return samples a second of both, their ratio, and their shares of the peak."""
    middle = [statistics.median(side) for side in rates]
    ratio = interval([one / other for one, other in zip(*rates, strict=True)])
    forward, both = tower_flops(stage.shape, stage.width, stage.device)
    flops = contest.flops(forward, both), contest._replace(cache="off").flops(forward, both)
    figures: dict[str, Any] = {"batch": stage.batch, "windows": len(rates[0]), "first_losses": first}
    figures |= {"samples_per_second": middle[0], "open_clip_samples_per_second": middle[1]}
    figures |= {"ratio": ratio._asdict(), "flops_per_pair": flops[0], "open_clip_flops_per_pair": flops[1]}
    text = f"batch {stage.batch:,}: {middle[0]:,.0f} samples/s, open_clip's loop {middle[1]:,.0f}; "
    text += f"ratio {spread(ratio, '.3f')}"
    if peak:
        shares = [rate * count / peak[-1] for rate, count in zip(middle, flops, strict=True)]
        figures |= {"share_of_peak": shares[0], "open_clip_share_of_peak": shares[1]}
        text += f"; {shares[0]:.1%} and {shares[1]:.1%} of the matrix peak"
    text += f"; losses of the first step {abs(first[0] - first[1]) / first[1]:.0e} apart"
    return Found(text, figures)


# The largest batch


class Way(NamedTuple):
    """A way to have a large exact batch."""

    name: str
    train: tuple[str, ...]
    chunk: bool = False
    cache: str = "off"


WAYS = (
    Way("direct, both towers trained", BOTH),
    Way("chunk, both towers trained", BOTH, chunk=True),
    Way("direct, one tower frozen", ONE),
    Way("cached, one tower frozen", ONE, cache="auto"),
)


def largest_batch(setup: Setup) -> Iterator[Case]:
    """Return how large a batch can be, for each way to have it."""
    first: dict[str, tuple[float, float]] = {}
    for number, way in enumerate(WAYS):
        share = 1 / (len(WAYS) - number)
        yield Case(way.name, partial(largest, setup, way, share, first), 1 if setup.small else 10)


def largest(
    setup: Setup, way: Way, share: float, first: dict[str, tuple[float, float]], deadline: Deadline
) -> Found:
    """Double the batch of a stage until memory or time is over."""
    end = deadline.within(share * deadline.left())
    start, most, chunk = (8, 32, 4) if setup.small else (512, 2**20, 256)
    shape, width = (TINY, 32) if setup.small else (Shape(), 512)
    options: dict[str, Any] = {"train": way.train, "cache": way.cache, "shape": shape, "width": width}
    options |= {"precision": "bf16-mixed", "chunk": chunk if way.chunk else None}
    options["workers"] = 0 if setup.small else 2
    binder = Stage(setup.device, start, 2, **options).binder()
    tried: list[dict[str, Any]] = []
    batch, ended = start, "the largest that was to be tried"
    while batch <= most:
        begun = end.clock()
        outcome = _attempt(Stage(setup.device, batch, 3, **options), binder)
        if outcome is None:
            ended = f"memory is full at {batch:,}"
            break
        if batch == start:
            first[way.name] = outcome.pop("first")
        outcome.pop("first", None)
        tried.append({"batch": batch, **outcome})
        # The next takes twice as long, and more where its rows are not in the cache yet.
        if not setup.small and end.left() < 3 * (end.clock() - begun):
            ended = "time is over"
            break
        batch *= 2
    if not tried:
        raise MemoryError(f"not even {start} rows fit")
    last, peaks = tried[-1], [size(one["peak_bytes"]) for one in tried]
    text = f"{last['batch']:,} rows ({ended}); peak {peaks[-1]}, of {start} rows {peaks[0]}; "
    text += f"{last['samples_per_second']:,.0f} samples/s"
    if way.chunk and WAYS[0].name in first:
        one, other = first[way.name], first[WAYS[0].name]
        apart = [abs(a - b) / b for a, b in zip(one, other, strict=True)]
        text += f"; loss and gradient norm of {start} rows {apart[0]:.0e} and {apart[1]:.0e} from direct"
    return Found(text, {"ended": ended, "tried": tried, "first": first.get(way.name)})


def _attempt(stage: Stage, binder: Binder) -> dict[str, Any] | None:
    """Take the steps of a stage; None if memory is full."""
    try:
        ran = run(stage, binder)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        ran = None
    if ran is None:
        free_memory()
        return None
    peak = ran.outcome.peak_memory_bytes or ran.outcome.process_bytes
    rate = stage.batch / (ran.stamps[-1] - ran.stamps[-2])
    first = ran.losses[0], ran.norms[0]
    return {"peak_bytes": peak, "samples_per_second": rate, "first": first}


# The loss


def tiled_loss(setup: Setup) -> Iterator[Case]:
    """Return our InfoNCE against open_clip's ClipLoss, by the number of pairs."""
    width = 32 if setup.small else 512
    for n in (256, 1_100) if setup.small else (4_096, 8_192, 16_384, 32_768, 65_536):
        yield Case(
            f"{n:,} pairs of width {width}", partial(loss_costs, setup, n, width), 1 if setup.small else 3
        )


def loss_costs(setup: Setup, n: int, width: int, deadline: Deadline) -> Found:
    """Time both losses in turns, forward and backward, and measure their peak memory."""
    sides = [side.to(setup.device) for side in embeddings(n, width)]
    ours, theirs = InfoNCE().to(setup.device), Peer(ClipLoss(), 1 / 0.07).to(setup.device)
    exact: Callable[[], AbstractContextManager[Any]] = lambda: float32_products("highest")  # noqa: E731
    ways: dict[str, tuple[Variant, Callable[[], AbstractContextManager[Any]]]] = {
        "ours": (Variant("", ours, True, True, 4), exact),
        "ClipLoss": (Variant("", theirs, True, True, 6), exact),
        "ClipLoss in bf16 autocast": (
            Variant("", theirs, True, True, 6),
            lambda: torch.autocast(setup.device, torch.bfloat16),
        ),
    }
    if setup.device == "cuda":
        ways["ours in TF32"] = (Variant("", ours, True, True, 4), lambda: float32_products("high"))
    peaks: dict[str, int | None] = {}
    full: list[str] = []
    for name, (variant, under) in ways.items():
        try:
            _step(variant, sides, under)  # pays for libraries and kernels
            peaks[name] = peak_of(setup.device, partial(_step, variant, sides, under))
        except Exception as error:
            if name == "ours" or not is_out_of_memory(error):
                raise
            full.append(name)
        free_memory()
    times: dict[str, list[float]] = {name: [] for name in peaks}
    for number in range(2 if setup.small else 7):
        if number > 2 and deadline.left() < 5:
            break
        for name, taken in times.items():
            variant, under = ways[name]
            taken.append(timed(setup.device, partial(_step, variant, sides, under)))
    return _loss_found(times, peaks, full)


def _step(variant: Variant, sides: list[torch.Tensor], under: Callable[[], Any]) -> None:
    with under():
        step(variant, *sides)


def _loss_found(times: dict[str, list[float]], peaks: dict[str, int | None], full: list[str]) -> Found:
    figures: dict[str, Any] = {"out_of_memory": full}
    words = []
    for name, taken in times.items():
        middle = statistics.median(taken)
        figures[name] = {"seconds": middle, "peak_bytes": peaks[name]}
        text = f"{name} {middle * 1e3:.3g} ms, {size(peaks[name])}"
        if name != "ours":
            ratio = interval([other / one for one, other in zip(times["ours"], taken, strict=True)])
            figures[name]["time_by_ours"] = ratio._asdict()
            text += f", {ratio.median:.2f} times ours' time"
        words.append(text)
    words += [f"{name}: out of memory" for name in full]
    return Found("; ".join(words), figures)


# The input pipeline


def input_pipeline(setup: Setup) -> Iterator[Case]:
    """Return samples a second of the loader alone, by the number of worker processes."""
    count, side = (24, 64) if setup.small else (1000, 256)
    cores = system.count_cpus()
    most = min(16, cores)
    alone: list[float] = []
    yield Case(f"writing {count:,} JPEG tiles of {side} pixels", partial(write, setup, count, side))
    for workers in sorted({0, most, *(n for n in (1, 2, 4, 8) if n < most)}):
        case = partial(loader_speed, setup, count, side, workers, alone)
        yield Case(f"{workers} workers", case, 1 if setup.small else 5)


def write(setup: Setup, count: int, side: int, _: Deadline) -> Found:
    """Write the files."""
    folder = tiles(setup, count, side).parent
    total = sum(file.stat().st_size for file in folder.glob("*.jpg"))
    return Found(f"{total / count / 1000:.0f} kB each", {"count": count, "bytes": total})


def loader_speed(
    setup: Setup, count: int, side: int, workers: int, alone: list[float], deadline: Deadline
) -> Found:
    """Take batches to the device as fast as they come: decoded, cropped at random and mirrored."""
    batch, seconds = (8, 0.1) if setup.small else (64, 4.0)
    modality = satellite(32) if setup.small else satellite()
    batch = min(batch, _room(modality["satellite"].prepare(_first(setup, count, side)), workers))
    batches = ours(tiles(setup, count, side), modality, batch, workers=workers, steps=10**6)(0)
    pinned, taken, begun = False, 0, 0.0
    # Not counted: starting the processes, and what they have prepared by then.
    ahead = 1 + 2 * workers
    for number, (_, found, _) in enumerate(batches):
        image = found["satellite"]
        pinned = image.is_pinned()
        image.to(setup.device, non_blocking=True)
        if number < ahead:
            begun = time.perf_counter()
            continue
        taken += 1
        over = time.perf_counter() - begun > seconds and taken >= ahead
        if over or deadline.left() < 1:
            break
    synchronize(setup.device)
    rate = taken * batch / (time.perf_counter() - begun)
    batches.close()
    if workers == 0:
        alone.append(rate)
    text = f"{rate:,.0f} samples/s, batches of {batch}, {'pinned' if pinned else 'not pinned'}"
    if workers and alone:
        text += f", {rate / alone[0]:.2f} times that without workers"
    figures = {"workers": workers, "samples_per_second": rate, "pinned": pinned}
    return Found(text, {**figures, "batch": batch, "batches": taken})


def _first(setup: Setup, count: int, side: int) -> Path:
    return tiles(setup, count, side).with_name("000000.jpg")


def _room(image: torch.Tensor, workers: int) -> int:
    """Return how many rows a batch may have: those that worker processes have ready lie in shared memory."""
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else 2**63
    return max(1, free // 2 // (image.nbytes * (2 * workers + 2)))
