"""Damage real files and read them: nothing may crash, hang, fill the memory or fail without a reason.

Files are images, sounds, tables, archives, rasters, recipes, sweep files, and those of runs and bundles.

    python tests/fuzz/fuzz_readers.py [--count 12000] [--seed 0] [--data FOLDER] [--save FOLDER]

The count is shared by the formats; those that are read in a millisecond or two get four times as many. Each
item is a pure function of seed, format and number: `--only wav:17` runs one again. Items run in processes
with a limit of time and of memory; the exit status is 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from functools import partial
from itertools import count as count_up
from itertools import islice
from pathlib import Path

import fuzz_documents
import fuzz_mutations
import fuzz_pool
import fuzz_seeds

LIMIT_S = 60  # of the processor, or asleep, after which a process is ended
LONGEST_S = 10  # of the processor
TEXT = ("csv", "tsv", "jsonl")
QUICK = (
    *TEXT, "parquet", "geoparquet", "tar", "sweep", "flac", "run:arithmetic.json", "geotiff",
    "jpeg", "jpeg2000", "png", "webp", "tiff", "gif", "bmp",
)  # fmt: skip
OFTEN = 4  # items of a quick format for each of another
MOST_BYTES = 1_500_000_000  # a photo of the largest size that is read takes 300 MB, and 400 MB in Pillow


class Reading:
    """Damage a file and read it, in a worker."""

    def __init__(self, data, save, kinds):
        import fuzz_targets
        import torch

        torch.set_num_threads(1)
        fuzz_documents.install()
        os.environ["GEOBIND_CACHE"] = tempfile.mkdtemp()
        self.seeds, self.outcome, self.save = fuzz_seeds.seeds(data), fuzz_targets.outcome, save
        with tempfile.TemporaryDirectory() as folder:  # imports take seconds, which count for no item
            for kind in kinds:
                self.outcome(kind, self.seeds[kind][0], os.path.join(folder, re.sub(r"\W", "_", kind)), 0)

    def __call__(self, seed, kind, number, folder):
        content = self.item(seed, kind, number)
        name = f"{kind.replace(':', '_').replace('/', '_')}-{number}"
        if self.save:  # before it is read, in case it takes the process down
            (self.save / name).write_bytes(content)
        outcome = self.outcome(kind, content, folder, number)
        if self.save:
            (self.save / name).unlink()
        return outcome

    def item(self, seed, kind, number):
        rng = random.Random(f"{seed} {kind} {number}")
        others = [content for family in self.seeds.values() for content in family]
        content = rng.choice(self.seeds[kind])
        if kind in TEXT and rng.random() < 0.6:  # else nearly all would be refused as not well-formed
            return fuzz_mutations.revalued(content, rng)
        if rng.random() < 0.8 and (text := fuzz_documents.damaged(kind, content, rng)) is not None:
            return text
        damaged = fuzz_mutations.mutated(content, others, rng)
        return fuzz_mutations.mended(kind, damaged) if rng.random() < 0.7 else damaged


def fuzz(count, seed=0, data=None, save=None, workers=2, only=None, pattern=""):
    """Yield the results of so many items, shared by the formats."""
    kinds = [kind for kind in sorted(fuzz_seeds.seeds()) if re.search(pattern or "", kind)]
    tasks = islice(_tasks(seed, kinds), count)
    if only:
        kind, _, number = only.rpartition(":")
        kinds = [kind]
        tasks = [(seed, kind, int(number))]
    for result in fuzz_pool.run(tasks, partial(Reading, data, save, kinds), workers, LIMIT_S):
        if not result.fault and result.seconds > LONGEST_S:
            result = result._replace(fault=True, outcome=f"took {result.seconds:.1f} s")
        if not result.fault and result.grown > MOST_BYTES:
            result = result._replace(fault=True, outcome=f"took {result.grown / 1e6:.0f} MB")
        yield result


def _tasks(seed, kinds):
    for turn in count_up():
        for kind in kinds:
            often = OFTEN if kind in QUICK else 1
            yield from ((seed, kind, turn * often + number) for number in range(often))


class Tally:
    """Outcomes of the items of a format."""

    def __init__(self):
        self.items = self.read = self.faults = self.most = 0
        self.seconds = self.slowest = 0.0

    def add(self, result):
        self.items += 1
        self.read += result.outcome == "read"
        self.faults += result.fault
        self.seconds += result.seconds
        self.slowest, self.most = max(self.slowest, result.seconds), max(self.most, result.grown)

    def row(self, name):
        refused = self.items - self.read - self.faults
        mean = f"{1000 * self.seconds / self.items:.1f}"
        cells = (self.items, self.read, refused, self.faults, mean, f"{self.slowest:.2f}")
        return row(name, *cells, f"{self.most / 1e6:.0f}")


class Summary:
    """Outcomes of all items."""

    def __init__(self):
        self.by_kind, self.reasons, self.all = defaultdict(Tally), Counter(), Tally()

    def add(self, result):
        self.all.add(result)
        self.by_kind[result.task[1]].add(result)
        if not result.fault:
            self.reasons[_kind_of(result.outcome)] += 1

    def lines(self):
        """Yield a line for each format, one for all of them, then the commonest reasons."""
        yield row("format", "items", "read", "refused", "faults", "mean ms", "slowest s", "most MB")
        yield from (tally.row(kind) for kind, tally in sorted(self.by_kind.items()))
        yield self.all.row("all")
        yield from (f"{count:>7}  {reason}" for reason, count in self.reasons.most_common(25))


def row(name, *cells):
    return f"{name:>28}" + "".join(f"{cell:>11}" for cell in cells)


def _kind_of(reason):
    return re.sub(r"(/\S+|\d+|'[^']*'|b?\"[^\"]*\")", "_", reason)[:110]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long, whatever the count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="a folder of real files to damage too")
    parser.add_argument("--save", type=Path, help="a folder for the items that were faults")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kinds", help="what the name of a format must match, such as run:|recipe")
    parser.add_argument("--only", help="FORMAT:NUMBER, one item")
    given = parser.parse_args()
    if given.save:
        given.save.mkdir(parents=True, exist_ok=True)
    summary, begun = Summary(), time.monotonic()
    with suppress(KeyboardInterrupt):  # what there is so far
        for result in fuzz(
            given.count, given.seed, given.data, given.save, given.workers, given.only, given.kinds
        ):
            summary.add(result)
            if result.fault or given.only:
                print(f"{':'.join(map(str, result.task[1:]))}: {result.outcome}", flush=True)
            if summary.all.items % 1000 == 0:
                print(f"{summary.all.items} items", file=sys.stderr, flush=True)
            if time.monotonic() - begun > 60 * given.minutes:
                break
    print("\n".join(summary.lines()))
    return summary.all.faults > 0


if __name__ == "__main__":
    sys.exit(main())
