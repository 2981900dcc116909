"""Memory over an epoch, and how a manifest of a million rows opens, shuffles and is shared by processes."""

from __future__ import annotations

import csv
import gc
import io
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from geobind.data import DataOptions, Table, open_table
from geobind.data.loader import BatchLoader, ModalityInput
from geobind.data.sampler import BatchSampler
from geobind.data.sources import TableRows


class Bytes:
    """Stands in for a modality whose preparation costs nothing."""

    def prepare(self, raw: object, *, training: bool = False):
        import torch

        return torch.tensor([len(str(raw))])


def status(process: int | str = "self") -> dict[str, float]:
    """Resident memory of a process in MB: in all, what no file holds, and what no other process shares."""
    found = {}
    for name in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{process}/{name}").read_text().splitlines():
            word, _, rest = line.partition(":")
            if rest.endswith("kB"):
                found[word] = int(rest.split()[0]) / 1000
    # Not Private_Clean: pages of a mapped file that happens to have no other reader.
    return {"rss": found["VmRSS"], "anonymous": found["RssAnon"], "alone": found["Private_Dirty"]}


def epoch(folder: Path, rows: int, batch: int) -> None:
    """Print the memory of this process over an epoch of images and texts."""
    from PIL import Image

    from geobind_satellite import Satellite

    rng, tiles = np.random.default_rng(0), 500
    for number in range(tiles):
        noise = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64)).save(folder / f"{number}.jpg")
    with open(folder / "rows.csv", "w", newline="") as file:
        lines = ((f"{row % tiles}.jpg", f"the {row}th place of them all") for row in range(rows))
        csv.writer(file).writerows([("satellite", "text"), *lines])
    table = open_table(DataOptions(manifest="rows.csv"), folder, ["satellite", "text"])
    satellite = Satellite(
        timm={"model": "test_resnet", "pretrained": False}, size=48, augment={"random_resized_crop": [0.5, 1]}
    )
    sides = {"satellite": ModalityInput(satellite, augment=True), "text": ModalityInput(Bytes())}
    print(f"{rows:,} rows, batches of {batch}; MB of this process: in all, not of files")
    for step, _, _ in loader(table, sides, batch):
        if step % max(1, rows // batch // 10) == 0 or step + 1 == rows // batch:
            gc.collect()
            now = status()
            print(f"  after {(step + 1) * batch:>8,} rows: {now['rss']:>6.0f} {now['anonymous']:>6.0f}")


def loader(
    table: Table, sides: dict[str, ModalityInput], batch: int, workers: int = 0, steps: int | None = None
) -> BatchLoader:
    rows = TableRows(table, tuple(sides))
    return BatchLoader(
        rows, sides, BatchSampler((len(rows),), batch, 0), 0, steps or len(rows) // batch, workers=workers
    )


def write_rows(folder: Path, rows: int) -> Path:
    """Write a manifest in which every row has two file names, a place, a label and a split."""
    target = folder / f"{rows}.csv"
    with open(target, "w", newline="") as file:
        file.write("key,split,lat,lon,label,satellite,text\n")
        rng = np.random.default_rng(0)
        for start in range(0, rows, 100_000):
            part = io.StringIO()
            for row, (lat, lon) in enumerate(rng.uniform(-80, 80, (min(100_000, rows - start), 2)), start):
                split = "test" if row % 10 == 0 else "train"
                part.write(
                    f"place-{row},{split},{lat:.5f},{lon:.5f},class {row % 40},"
                    f"tiles/{row % 1000:03}/{row}.jpg,a caption of place {row} as people write them\n"
                )
            file.write(part.getvalue())
    return target


def million(folder: Path, rows: int, batch: int) -> None:
    """Print how long a large manifest takes to open and to shuffle, and what each worker adds to memory."""
    (small, large), names = (write_rows(folder, count) for count in (10_000, rows)), ["satellite", "text"]
    print(f"{rows:,} rows, {large.stat().st_size / 1e6:.0f} MB of CSV")
    table = timed("opened the first time (checked, and written to the cache)", lambda: opened(large, names))
    table = timed("opened again", lambda: opened(large, names))
    train = timed("the rows of a split", lambda: table.split("train"))
    sampler = BatchSampler((len(train),), batch, 0)
    timed("shuffled: the first step's rows", lambda: sampler.rows(0))
    timed("the same step of the next epoch", lambda: sampler.rows(sampler.steps_per_epoch))
    samples = train.samples("text")
    timed("a thousand rows read at random", lambda: [samples[int(row)] for row in sampler.rows(1)[:1000]])
    for count in (1, 2, 4):
        few, many = (in_a_new_process(manifest, names, batch, count) for manifest in (small, large))
        print(
            f"  {count} workers: each has {many:.1f} MB that no other shares; with a manifest of 10,000 rows "
            f"{few:.1f} MB"
        )


def in_a_new_process(*given: Any) -> float:
    """Measure workers of a process that did nothing else, as its memory is what they begin with."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(workers_alone, *given).result()


def opened(manifest: Path, names: list[str]) -> Table:
    return open_table(DataOptions(manifest=manifest.name), manifest.parent, names)


def timed(what: str, call):
    begun, busy = time.perf_counter(), time.process_time()
    found = call()
    busy, begun = time.process_time() - busy, time.perf_counter() - begun
    print(f"  {busy:>7.3f} CPU s, {begun:>7.3f} s by the clock: {what}")
    return found


def workers_alone(manifest: Path, names: list[str], batch: int, workers: int) -> float:
    """Return the memory that a worker shares with no other process, in MB (mean), after 100 batches each."""
    steps = 100 * workers
    # Fetching a batch makes a path of each file's name, and does not open it.
    sides = {name: ModalityInput(Bytes()) for name in names}
    for step, _, _ in loader(opened(manifest, names), sides, batch, workers, steps):
        if step == steps - workers:
            alone = [status(process)["alone"] for process in children()]
            return sum(alone) / len(alone)
    raise SystemExit("no batch came")


def children() -> Iterator[int]:
    """The processes that load data for this one."""
    return (process.pid for process in multiprocessing.active_children() if process.pid)
