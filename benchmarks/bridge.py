"""Cost of bridged scores beside cosines, as ratios of one run, and their extra memory.

    python benchmarks/bridge.py [--rows 4000] [--bank 4000] [--width 512] [--rounds 7]

Plain similarity and bridged scores take turns in one process with one thread; medians count.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch

from geobind.bridge import REFERENCE_ROWS, AnchorBank, Bridge
from geobind.scoring import cosine
from geobind.utils.vectors import unit


def peak_mb() -> float:
    """Return the process's peak resident size."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description="The cost of a bridge.")
    for name, value in (("rows", 4_000), ("bank", 4_000), ("width", 512), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = (chosen.rows, chosen.rows, chosen.bank)
    a_ND, b_ND, anchor_RD = (unit(torch.randn(size, chosen.width)) for size in sizes)
    references = {name: unit(torch.randn(REFERENCE_ROWS, chosen.width)) for name in ("one", "two")}
    plain = Bridge(AnchorBank(anchor_RD))
    corrected = Bridge(AnchorBank(anchor_RD, references=references), names=("one", "two"))
    jobs: dict[str, Callable[[], object]] = {
        "cosine, all to all": lambda: cosine(a_ND, b_ND),
        "bridged score, all to all": lambda: corrected.score(a_ND, b_ND),
        "... without correction": lambda: plain.score(a_ND, b_ND),
        "apply, one side": lambda: plain.apply(a_ND),
        "cosine, one query": lambda: cosine(a_ND[:1], b_ND),
        "one query against a bridged gallery": lambda: cosine(plain.apply(a_ND[:1]), b_ND),
    }
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    extra: dict[str, float] = {}
    for turn in range(chosen.rounds + 1):  # the first warms up, and shows what each adds to the peak
        for name, job in jobs.items():
            before, start = peak_mb(), time.process_time()
            job()
            if turn:
                taken[name].append(time.process_time() - start)
            else:
                extra[name] = peak_mb() - before
    print(f"{chosen.rows:,} rows a side, bank of {chosen.bank:,}, width {chosen.width}, one thread")
    print("| | time, of cosine | added to the peak, MB |\n|---|---|---|")
    for name, seconds in taken.items():
        base = taken["cosine, one query" if "one query" in name else "cosine, all to all"]
        print(f"| {name} | {statistics.median(seconds) / statistics.median(base):.1f} | {extra[name]:.0f} |")


if __name__ == "__main__":
    main()
