"""Contrastive losses against open_clip's: time and memory of forward plus backward, on one CPU thread.

python benchmarks/losses.py            # 4,096 pairs of width 512
python benchmarks/losses.py --n 16384 --repeats 3 --only "both, both trained"
python benchmarks/losses.py --memory

The fair rival is open_clip's loss with one product of the similarities, as it computes it on several GPUs
(`logits_per_text = logits_per_image.T`); on one it takes two. The same, and a cross-entropy in three lines,
also run under bf16 autocast.

Each time is a median of CPU seconds; the variants take turns, so that whatever else the machine does falls on
all of them. A ratio is the median of those of neighbours, with its bootstrap interval. Memory is by how much
the peak resident size exceeds the inputs, each variant alone in a fresh process (Linux only).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from paired import ratio
from torch.nn import functional as F

from geobind.losses import InfoNCE, LossContext, SigLIP, Temperature, unit_sphere

# N pairs, D width


class Variant(NamedTuple):
    """One loss with the sides that are trained, and its matrix products in units of N^2 D multiply-adds."""

    peer: str
    loss: object
    anchor: bool
    other: bool
    products: int
    context: LossContext | None = None


class Peer(torch.nn.Module):
    """An open_clip loss with its scalars, called as ours are."""

    def __init__(self, loss, scale, bias=None):
        super().__init__()
        self.loss = loss
        self.log_scale = torch.nn.Parameter(torch.tensor(scale).log())
        self.bias = None if bias is None else torch.nn.Parameter(torch.tensor(bias))

    def forward(self, anchor_ND, other_ND):
        """Return the open_clip loss."""
        scalars = (self.log_scale.exp(),) if self.bias is None else (self.log_scale.exp(), self.bias)
        return self.loss(anchor_ND, other_ND, *scalars)


class OneProduct(ClipLoss):
    """open_clip's loss as it is on several GPUs: both directions from one product."""

    def get_logits(self, image_features, text_features, logit_scale, logit_bias=None):
        """Return the logits of both directions."""
        logits = logit_scale * image_features @ text_features.T
        return logits, logits.T


def three_lines(anchor_ND, other_ND, scale):
    """Return the loss as one writes it by hand."""
    logits, own = scale * anchor_ND @ other_ND.T, torch.arange(len(anchor_ND))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class InBf16(torch.nn.Module):
    """A loss under bf16 autocast, as users of mixed precision run it."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, *given):
        """Return the loss."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.loss(*given)


def variants(n: int, d: int) -> dict[str, Variant]:
    generator = torch.Generator().manual_seed(1)
    lat, lon = torch.rand(n, generator=generator) * 140 - 70, torch.rand(n, generator=generator) * 360
    places = LossContext(xyz_N3=unit_sphere(lat, lon), ignore_within_m=1000)
    same = LossContext(xyz_N3=places.xyz_N3, same_within_m=1000)
    labels = LossContext(labels_N=torch.randint(0, n // 8, (n,), generator=generator))
    clip, siglip = "open_clip ClipLoss", "open_clip SigLipLoss"
    there = InfoNCE("anchor_to_other")
    one, bf16 = "open_clip, one product", "open_clip, one product, bf16"
    return {
        one: Variant(one, Peer(OneProduct(), 1 / 0.07), True, True, 3),
        clip: Variant(one, Peer(ClipLoss(), 1 / 0.07), True, True, 6),
        "three lines": Variant(one, Peer(three_lines, 1 / 0.07), True, True, 3),
        bf16: Variant(bf16, InBf16(Peer(OneProduct(), 1 / 0.07)), True, True, 3),
        "ClipLoss, bf16": Variant(bf16, InBf16(Peer(ClipLoss(), 1 / 0.07)), True, True, 6),
        "three lines, bf16": Variant(bf16, InBf16(Peer(three_lines, 1 / 0.07)), True, True, 3),
        "both, bf16, auto": Variant(bf16, InBf16(InfoNCE()), True, True, 4),
        "both, bf16, half": Variant(bf16, InBf16(InfoNCE(products="half")), True, True, 4),
        "both, bf16, float32": Variant(bf16, InBf16(InfoNCE(products="float32")), True, True, 4),
        "both, both trained": Variant(one, InfoNCE(), True, True, 4),
        "both, other frozen": Variant(one, InfoNCE(), True, False, 3),
        "both, anchor frozen": Variant(one, InfoNCE(), False, True, 3),
        "both, scale 100": Variant(one, InfoNCE(temperature=Temperature(0.01)), True, True, 4),
        "both, labels": Variant(one, InfoNCE(), True, True, 4, labels),
        "both, near places ignored": Variant(one, InfoNCE(), True, True, 4, places),
        "both, rows of one place": Variant(one, InfoNCE(), True, True, 4, same),
        "both, hardness 1": Variant(one, InfoNCE(hardness=1.0), True, True, 6),
        "one way, both trained": Variant(one, there, True, True, 3),
        "one way, other frozen": Variant(one, there, True, False, 2),
        "one way, anchor frozen": Variant(one, there, False, True, 2),
        siglip: Variant(siglip, Peer(SigLipLoss(), 10.0, -10.0), True, True, 3),
        "SigLIP, both trained": Variant(siglip, SigLIP(), True, True, 3),
        "SigLIP, other frozen": Variant(siglip, SigLIP(), True, False, 2),
        "SigLIP, hardness 1": Variant(siglip, SigLIP(hardness=1.0), True, True, 6),
    }


def embeddings(n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    anchor = torch.randn(n, d, generator=generator)
    other = anchor + torch.randn(n, d, generator=generator)
    return F.normalize(anchor, dim=1), F.normalize(other, dim=1)


def step(variant: Variant, anchor: torch.Tensor, other: torch.Tensor) -> None:
    sides = (anchor.detach().requires_grad_(variant.anchor), other.detach().requires_grad_(variant.other))
    variant.loss(*sides, *(() if variant.context is None else (variant.context,))).backward()


def seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def product_seconds(d: int) -> float:
    """Time one product of a tile, the largest share of any loss's work; the unit of `share of peak`."""
    rows, columns = torch.randn(512, d), torch.randn(1024, d)
    out = torch.empty(512, 1024)
    return min(seconds(lambda: torch.mm(rows, columns.T, out=out)) for _ in range(10))


def peak_growth(name: str, n: int, d: int) -> float:
    """Return by how many MiB the peak resident size grows in one step, in this process."""
    variant = variants(n, d)[name]
    step(variants(8, d)[name], *embeddings(8, d))  # libraries and thread pools come up before the measurement
    anchor, other = embeddings(n, d)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    before = _status_kib("VmRSS")
    step(variant, anchor, other)
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_alone(name: str, n: int, d: int) -> str:
    if not Path("/proc/self/clear_refs").exists():
        return "-"
    command = [sys.executable, __file__, "--n", str(n), "--d", str(d), "--peak-of", name]
    return f"{float(subprocess.run(command, check=True, capture_output=True, text=True).stdout):.0f}"


def gap(loss, anchor: torch.Tensor, other: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return how far the anchor's gradient is from the wanted one, relative to its norm."""
    side = anchor.clone().requires_grad_()
    loss(side, other).backward()
    return ((side.grad - wanted).norm() / wanted.norm()).item()


def exact_gradient(anchor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the anchor's gradient of InfoNCE in float64."""
    side = anchor.double().requires_grad_()
    InfoNCE().double()(side, other.double()).backward()
    return side.grad


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=4096, help="pairs")
    parser.add_argument("--d", type=int, default=512, help="width")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--only", nargs="*", help="measure these variants and their peers alone")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        print(peak_growth(options.peak_of, options.n, options.d))
        return
    chosen = variants(options.n, options.d)
    if options.only:
        keep = {*options.only, *(chosen[name].peer for name in options.only)}
        chosen = {name: variant for name, variant in chosen.items() if name in keep}
    if options.memory:
        for name in chosen:
            print(f"{name:32}{peak_alone(name, options.n, options.d):>7} MiB")
        return
    compare(chosen, options.n, options.d, options.repeats)


def compare(chosen: dict[str, Variant], n: int, d: int, repeats: int) -> None:
    anchor, other = embeddings(n, d)
    times, products = {name: [] for name in chosen}, []
    for _ in range(repeats):
        products.append(product_seconds(d))
        for name, variant in chosen.items():
            times[name].append(seconds(lambda variant=variant: step(variant, anchor, other)))
    unit = statistics.median(products) / (512 * 1024) * n**2  # one product of N^2 D at peak
    peak = 2 * n**2 * d / unit / 1e9
    print(f"N {n}, D {d}, one thread, torch {torch.__version__}, {peak:.0f} GFLOP/s at best")
    print(f"{'':32}{'ms':>8}{'of peak':>9}  by its peer")
    median = {name: statistics.median(taken) for name, taken in times.items()}
    for name, variant in chosen.items():
        share, by = variant.products * unit / median[name], ratio(times[name], times[variant.peer])
        print(f"{name:32}{median[name] * 1e3:8.1f}{share:9.0%}  {by if name != variant.peer else '1'}")
    infonce = [name for name in chosen if chosen[name].context is None and "SigL" not in name]
    plain = [n for n in infonce if not any(word in n for word in ("way", "frozen", "hardness", "100"))]
    if n <= 8192 and plain:
        wanted = exact_gradient(anchor, other)
        far = (f"{name} {gap(chosen[name].loss, anchor, other, wanted):.1e}" for name in plain)
        print(f"gradient, beside that in float64: {'; '.join(far)}")


if __name__ == "__main__":
    main()
