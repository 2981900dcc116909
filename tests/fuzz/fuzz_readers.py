"""Damage real files and read them: nothing may crash, hang, fill the memory or fail without a reason.

Files are images, sounds, tables, archives, rasters, recipes, sweep files, and those of runs and bundles.

    python tests/fuzz/fuzz_readers.py [--count 12000] [--seed 0] [--data FOLDER] [--save FOLDER]

The count is shared by the formats. Each item is a pure function of seed, format and number: `--only wav:17`
runs one again. Items run in processes with a limit of time and of memory; the exit status is 1 if there is
a fault.
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
from functools import partial
from pathlib import Path

import fuzz_documents
import fuzz_mutations
import fuzz_pool
import fuzz_seeds

LIMIT_S = 60  # of the clock, after which a process is ended
LONGEST_S = 10  # of the processor
TEXT = ("csv", "tsv", "jsonl")
MOST_BYTES = 1_500_000_000  # a photo of the largest size that is read takes 300 MB, and 400 MB in Pillow


class Reading:
    """What a worker calls: damage a file and read it."""

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
    """Yield the results of so many items, an equal number of each format."""
    kinds = [kind for kind in sorted(fuzz_seeds.seeds()) if re.search(pattern or "", kind)]
    tasks = [(seed, kind, number) for number in range(-(-count // len(kinds))) for kind in kinds][:count]
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


def summary(results):
    """Say what happened, a line for each format, then the commonest reasons."""
    by_kind = defaultdict(list)
    for result in results:
        by_kind[result.task[1]].append(result)
    yield row("format", "items", "read", "refused", "faults", "slowest s", "most MB")
    for kind, found in sorted(by_kind.items()):
        faults = sum(result.fault for result in found)
        read = sum(result.outcome == "read" for result in found)
        slowest, most = max(result.seconds for result in found), max(result.grown for result in found)
        refused = len(found) - read - faults
        yield row(kind, len(found), read, refused, faults, f"{slowest:.2f}", f"{most / 1e6:.0f}")
    reasons = Counter(_kind_of(result.outcome) for result in results if not result.fault)
    yield from (f"{count:>7}  {reason}" for reason, count in reasons.most_common(25))


def row(name, *cells):
    return f"{name:>28}" + "".join(f"{cell:>12}" for cell in cells)


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
    results, begun = [], time.monotonic()
    for result in fuzz(
        given.count, given.seed, given.data, given.save, given.workers, given.only, given.kinds
    ):
        results.append(result)
        if result.fault or given.only:
            print(f"{':'.join(map(str, result.task[1:]))}: {result.outcome}", flush=True)
        if len(results) % 1000 == 0:
            print(f"{len(results)} items", file=sys.stderr, flush=True)
        if time.monotonic() - begun > 60 * given.minutes:
            break
    print("\n".join(summary(results)))
    return any(result.fault for result in results)


if __name__ == "__main__":
    sys.exit(main())
