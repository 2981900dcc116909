"""The main job, `geobind run recipes/three_modal.yaml` from an empty cache, and what its parts cost.

    python benchmarks/main_job.py [--rounds 1] [--seed 0] [--set A.B=C] [--against CHECKOUT] [--small]

Each round is a process of its own, with its cache and its run in a temporary folder. Its parts are counted
exclusively (what writes the report is not part of what writes the bundle), in CPU seconds of the process and
of those that it started, which are counted where they end, and in seconds by the clock. Modules are compiled
to bytecode before, as pip does it. With `--against` the package of another checkout takes turns with this
one, and the ratios of neighbours are printed. `--small` is a minute's run with few places and one epoch a
stage.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[1]
RECIPE = "recipes/three_modal.yaml"
SMALL = (
    "data.toyearth.places=640",
    "data.toyearth.held_out=100",
    *(f"stages.{n}.epochs=1" for n in range(3)),
)

# Where the work of a part begins, as "module:name", and what tells calls of it apart.
PARTS: tuple[tuple[str, str, Callable[..., str]], ...] = (
    ("geobind_toyearth.table:_write_rows", "places and captions", lambda *_: ""),
    ("geobind_toyearth.table:_render", "rendering", lambda _, name, *__: name),
    ("geobind.training.run:build_binder", "building the encoders", lambda *_: ""),
    ("geobind.training.run:rehearse", "rehearsal", lambda *_: ""),
    ("geobind.training.run:run_stage", "stage", lambda _, job: job.stage.name),
    ("geobind.training.stage:open_stage_cache", "embeddings of frozen encoders", lambda *_: ""),
    ("geobind.training.stability:Prover.compute_states", "proof", lambda *_: ""),
    ("geobind.training.stability:Prover.prove", "proof", lambda *_: ""),
    ("geobind.training.stage_data:StageData.measure", "evaluation", lambda *_: ""),
    ("geobind.training.run:write_results", "bundle and files", lambda *_: ""),
    ("geobind.report:write_report", "report", lambda *_: ""),
)

IMPORTED = ("geobind.cli.run", "geobind.planning.auto", "geobind.report.page", "open_clip", "timm")


class Cost(NamedTuple):
    """The cost of a part."""

    own: float = 0.0  # CPU seconds of the process itself
    others: float = 0.0  # of the processes that it started and that have ended
    wall: float = 0.0

    @classmethod
    def now(cls) -> Cost:
        times = os.times()
        return cls(time.process_time(), times.children_user + times.children_system, time.perf_counter())

    def plus(self, other: Cost, sign: int = 1) -> Cost:
        return Cost(*(a + sign * b for a, b in zip(self, other, strict=True)))

    @property
    def cpu(self) -> float:
        return self.own + self.others


class Meter:
    """Counts what happens inside of parts, each moment for the innermost one."""

    def __init__(self) -> None:
        self.costs: dict[str, Cost] = {}
        self._open: list[str] = ["everything else"]
        self._since = Cost.now()

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        self.count()
        self._open.append(name)
        try:
            yield
        finally:
            self.count()
            self._open.pop()

    def count(self) -> None:
        """Give what was spent since the last count to the part that is open."""
        now, name = Cost.now(), self._open[-1]
        self.costs[name] = self.costs.get(name, Cost()).plus(now).plus(self._since, -1)
        self._since = now

    def watch(self, where: str, part: str, detail: Callable[..., str]) -> None:
        """Count calls of a function as a part; one that this version lacks is left out."""
        module, _, path = where.partition(":")
        *homes, name = path.split(".")
        home = functools.reduce(getattr, homes, importlib.import_module(module))
        if not hasattr(home, name):
            return
        called = getattr(home, name)

        @functools.wraps(called)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(f"{part} {detail(*args)}".strip()):
                return called(*args, **kwargs)

        setattr(home, name, counted)


def run_inside(settings: list[str], out: Path) -> None:
    """Run the job in this process, and write what its parts cost."""
    meter = Meter()
    meter.costs["imports"] = Cost(time.process_time())
    with meter.part("imports"):
        import geobind.cli  # sets the environment before torch is imported

        for where, part, detail in PARTS:
            meter.watch(where, part, detail)
        for name in IMPORTED:
            importlib.import_module(name)
    words = ["run", str(Path(geobind.__file__).parents[1] / RECIPE), "--out", str(out / "run")]
    words += [word for setting in settings for word in ("--set", setting)]
    try:
        geobind.cli.main(words)
    except SystemExit as end:
        if end.code:
            raise
    meter.count()
    (out / "costs.json").write_text(json.dumps(meter.costs))


def import_from(checkout: Path) -> dict[str, str]:
    """Return the environment in which a process imports the package of a checkout."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "modalities")])}


def compile_modules(checkout: Path) -> None:
    """Import what a run imports, which leaves bytecode for those that follow."""
    code = "import " + ", ".join(IMPORTED)
    subprocess.run([sys.executable, "-c", code], env=import_from(checkout), check=True)


def run_apart(checkout: Path, settings: list[str]) -> dict[str, Cost]:
    """Run the job of a checkout in a process of its own; return what its parts cost."""
    with tempfile.TemporaryDirectory() as temporary:
        there = import_from(checkout) | {"GEOBIND_CACHE": str(Path(temporary) / "cache")}
        words = [sys.executable, __file__, "--inside", temporary]
        words += [word for setting in settings for word in ("--set", setting)]
        done = subprocess.run(words, env=there, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the job failed:\n{done.stdout}\n{done.stderr}")
        costs = json.loads((Path(temporary) / "costs.json").read_text())
        print("\n".join(done.stdout.splitlines()[-20:]), flush=True)
    return {name: Cost(*cost) for name, cost in costs.items()}


def total(costs: dict[str, Cost]) -> Cost:
    return functools.reduce(Cost.plus, costs.values())


def show(rounds: list[dict[str, Cost]]) -> None:
    """Print the median cost of each part."""
    print(f"{'':<44} {'CPU s':>8} {'of others':>10} {'clock':>8}")
    for name in dict.fromkeys(name for costs in rounds for name in costs):
        line([costs.get(name, Cost()) for costs in rounds], name)
    line([total(costs) for costs in rounds], "all of it")


def line(costs: list[Cost], name: str) -> None:
    cpu, others, wall = (
        statistics.median(values)
        for values in ([c.cpu for c in costs], [c.others for c in costs], [c.wall for c in costs])
    )
    print(f"{name:<44} {cpu:>8.1f} {others:>10.1f} {wall:>8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a key of the recipe")
    parser.add_argument("--against", type=Path, help="another checkout of geobind, to take turns with")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        run_inside(given.set, given.inside)
        return
    settings = [f"seed={given.seed}", *(SMALL if given.small else ()), *given.set]
    checkouts = {"this": HERE} | ({"other": given.against.resolve()} if given.against else {})
    rounds: dict[str, list[dict[str, Cost]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory() as bytecode:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = bytecode
        for checkout in checkouts.values():
            compile_modules(checkout)
        for number in range(given.rounds):
            for name in sorted(checkouts, reverse=number % 2 == 0):
                rounds[name].append(run_apart(checkouts[name], settings))
    for name, costs in rounds.items():
        print(f"\n{name} checkout, {given.rounds} rounds" if given.against else "")
        show(costs)
    if given.against:
        from paired import ratio

        cpu, wall = (
            [[getattr(total(costs), kind) for costs in rounds[name]] for name in ("this", "other")]
            for kind in ("cpu", "wall")
        )
        print(f"\nthis / other: CPU {ratio(*cpu)}, by the clock {ratio(*wall)}")


if __name__ == "__main__":
    main()
