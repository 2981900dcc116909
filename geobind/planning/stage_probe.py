"""Measure one stage: real rows, really prepared, a few real steps of two sizes or more."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from geobind.data.loader import BatchLoader
from geobind.embedding_cache.loader import StoredLoader
from geobind.errors import DataError, GeobindError
from geobind.planning.bench import Bench, goes_through, seconds_since
from geobind.planning.filling_probe import measure_filling
from geobind.planning.found import StageFound, Step
from geobind.planning.lines import Line, fit
from geobind.planning.subset import Clock
from geobind.training.cache import read_from_cache
from geobind.training.stage import loader_of, workers_of
from geobind.training.trainable import in_training
from geobind.utils import files

_FIRST = 8  # rows of the first steps
_FEW, _MANY = 5, 30  # steps of one size
_HELD = 64  # rows to watch it on


@dataclass
class StageProbe:
    """Measures one stage.

    Args:
        bench: Where.
        ranks: Devices that will share a batch.
        usable: Bytes that a step may take; None where nothing tells.
        seconds: How long it may take, about.
        most: No larger batch makes sense, and why.
    """

    bench: Bench
    ranks: int
    usable: float | None
    seconds: float
    most: tuple[int, str]

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._steps: list[Step] = []
        self._a_row = 0.0  # seconds that the frozen sides of a row take
        self._other = 0.0
        self._idle: int | None = None

    def measure(self) -> StageFound:
        """Measure everything.

        Raises:
            GeobindError: The stage cannot run, not even with the fewest rows.
        """
        job = self.bench.job
        filling, frozen, self._a_row = measure_filling(self.bench, self.seconds)
        warm, checkpoint_bytes, checkpoint_seconds = self._warm_up()
        failed = self._sizes(warm)
        two_pass = None if failed else self._two_pass()
        watching = self._watching()
        cached = filling.sides if filling else {}
        return StageFound(
            name=job.stage.name,
            rows=len(job.rows),
            sources=tuple(len(source.rows) for source in job.rows.sources),
            most=self.most[0],
            most_why=self.most[1],
            steps=tuple(self._steps),
            loading_a_row=self._loading(),
            two_pass=two_pass,
            filling=filling if cached else None,
            uncached={name: self._why_not(name) for name in frozen if name not in cached},
            frozen=frozen,
            other_seconds=self._other,
            checkpoint_bytes=checkpoint_bytes,
            checkpoint_seconds=checkpoint_seconds,
            trained_bytes=sum(
                value.numel() * value.element_size()
                for name in job.stage.parts
                for value in job.encoders[name].state_dict().values()
            ),
            watching_seconds=watching,
            failed=failed,
        )

    @property
    def _left(self) -> float:
        return self.seconds - seconds_since(self._began)

    @property
    def _target(self) -> int:
        return max(2, self.bench.job.stage.batch_size // self.ranks)

    def _warm_up(self) -> tuple[Step, int, float]:
        """Take the first, slow steps; return them, and what a checkpoint takes in bytes and seconds."""
        size = self._least()
        began = time.monotonic()
        ran = self.bench.run(size, 2, saves=True)
        warm = Step(rows=size, seconds=seconds_since(began) / 2, bytes=None)
        path = ran.job.folder / "state.ckpt"
        if not path.is_file():
            return warm, 0, 0.0
        content = path.read_bytes()
        began = time.monotonic()
        files.write(path, content)
        return warm, len(content), seconds_since(began)

    def _least(self) -> int:
        """Return the fewest rows, of those tried, that make a batch."""
        size = min(_FIRST, self._target)
        while size < self._target and not self._makes_a_batch(size):
            size = min(2 * size, self._target)
        return size

    def _why_not(self, name: str) -> str:
        """Return why a frozen side is not read from the cache."""
        stage = self.bench.job.stage
        if stage.cache == "off":
            return "cache: off"
        short = stage.cache == "auto" and not goes_through(self.bench.job)
        return "the stage does not go through its rows once" if short else self.bench.why_not(name)

    def _makes_a_batch(self, size: int) -> bool:
        try:
            _ = self.bench.at(size, 2, size).plan
        except DataError:  # a table's share would be less than a row
            return False
        return True

    def _sizes(self, warm: Step) -> str:
        """Take steps of two sizes or three; return why it ended before the stage's own."""
        guess, size = fit([(0, 0.0), (warm.rows, warm.seconds)]), self._first(warm)
        while True:
            last = size >= self._target
            steps = int(min(_MANY, max(_FEW, 0.4 * self._left / max(guess(size), 1e-6)))) if last else _FEW
            try:
                ran = self.bench.run(size, steps)
            except GeobindError as error:
                if not self._steps:
                    raise
                return str(error).partition("\n")[0]
            self._idle, self._other = ran.idle, ran.other
            self._steps.append(Step(rows=size, seconds=ran.seconds, bytes=ran.bytes))
            known = [(step.rows, step.seconds) for step in self._steps]
            guess = fit(known if len(known) > 1 else [(0, 0.0), *known])
            larger = None if last else self._larger(size, guess)
            if larger is None:
                return ""
            size = larger

    def _first(self, warm: Step) -> int:
        """Return the first size whose steps count: a quarter of the last one, if that is not too slow."""
        quarter = 2 ** int(math.log2(max(2, self._target // 4)))
        slow = warm.seconds / warm.rows  # more than it is from the second step on
        while quarter > warm.rows and 0.25 * _FEW * quarter * slow > 0.3 * self._left:
            quarter //= 2
        if warm.rows < self._target:
            return max(warm.rows, quarter)
        return quarter if self._makes_a_batch(quarter) else self._target

    def _larger(self, size: int, guess: Line) -> int | None:
        """Return the next size; None where what is left of the time, or the memory, does not allow it."""
        target = self._target
        for one in (target, *(2**power for power in range(int(math.log2(target)), 0, -1))):
            if one <= size or not self._fits(one):
                continue
            more = max(0, one - self.bench.ready) * self._a_row if self.bench.caches else 0.0
            line_lacks_a_point = len(self._steps) == 1 and one <= 2 * size
            if line_lacks_a_point or _FEW * guess(one) + more < 0.6 * self._left:
                return one
        return None

    def _fits(self, size: int) -> bool:
        known = [(step.rows, step.bytes) for step in self._steps if step.bytes is not None]
        if len(known) == 1 and self._idle is not None:
            known.append((0, min(self._idle, known[0][1])))
        return self.usable is None or not known or fit(known)(size) <= self.usable

    def _two_pass(self) -> Step | None:
        """Take steps in two passes if the stage may need them, of twice the rows that one pass took."""
        asked, largest = self.bench.job.stage.chunk, self._steps[-1].rows
        if asked is None or (asked == "auto" and (largest >= self._target or self._fits(self._target))):
            return None
        chunk = min(asked, largest) if isinstance(asked, int) else largest
        size = min(2 * chunk, self._target)
        if size <= chunk:
            size, chunk = self._target, max(2, self._target // 2)
        # The first steps of a size take new memory, which slows them.
        guess = 2 * fit((step.rows, step.seconds) for step in self._steps)(size)
        ran = self.bench.run(size, int(min(_MANY, max(2 * _FEW, 0.4 * self._left / guess))), chunk=chunk)
        return Step(rows=size, seconds=ran.seconds, bytes=ran.bytes, chunk=chunk)

    def _watching(self) -> float:
        """Return the seconds of an evaluation on the way; getting ready for them counts as other."""
        job = self.bench.job
        if job.stage.watch is None or job.held is None:
            return 0.0
        rows = min(_HELD, len(job.held))
        size = self._steps[0].rows
        plain, ran = self.bench.run(size, 2), self.bench.run(size, 2, held=rows)
        told = ran.job.validations.rows if isinstance(ran.job.validations, Clock) else []
        each = [float(row["seconds"]) for row in told]
        more = len(job.held) / rows
        if not each:
            return 0.0
        self._other += max(0.0, ran.other - plain.other - sum(each)) * more
        return each[-1] * more

    def _loading(self) -> float:
        """Return the seconds that a row of a batch takes if nothing else is done."""
        bench, size = self.bench, self._steps[-1].rows
        job = bench.at(size, _FEW, max(size, bench.ready) if bench.caches else size * _FEW)
        with bench.quiet(), in_training(bench.fabric, job) as frozen:
            cached = read_from_cache(bench.fabric, job, frozen, workers_of(bench.fabric, job))
            at = _times(cached.loader(job, loader_of(bench.fabric, job, first_step=0)))
            cached.close()
        return (at[-1] - at[1]) / (len(at) - 2) / size if len(at) > 2 else 0.0


def _times(loader: BatchLoader | StoredLoader) -> list[float]:
    return [time.monotonic() for _ in loader]
