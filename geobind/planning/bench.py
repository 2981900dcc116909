"""Short runs of a stage on few rows, with timed steps."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from geobind.data.sampler import MixedDataset, WeightedSource
from geobind.training.cache import CachedInputs, open_stage_cache
from geobind.training.fabric import Fabric
from geobind.training.metrics import MetricsFile
from geobind.training.stage import StageResult, StageRun, count_workers, run_stage
from geobind.training.trainable import prepare_encoders
from geobind.training.validation import subsample
from geobind.utils import system
from geobind.utils.logs import captured


def sample_rows(rows: MixedDataset, count: int) -> MixedDataset:
    """Return at most `count` rows of each source; a smaller sample is a subset of a larger one."""
    return MixedDataset(tuple(_sample_source(source, count) for source in rows.sources))


def _sample_source(source: WeightedSource, count: int) -> WeightedSource:
    there, size = source.rows, len(source.rows)
    chosen = np.sort(np.random.default_rng(0).permutation(size)[:count])
    return source._replace(rows=there.take(chosen))


class StepTimer(MetricsFile):
    """Records the times of steps instead of writing metrics."""

    write_every = 0.0  # each step has its own time

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "metrics.csv")
        self.at: list[float] = []
        self.rows: list[dict[str, Any]] = []

    def rewind(self, stage: str, step: int) -> None:
        """Do nothing, as there are no earlier steps."""

    def add(self, stage: str, rows: Sequence[dict[str, Any]]) -> None:
        """Record the time and the rows."""
        self.at.append(time.monotonic())
        self.rows += rows

    def sync(self) -> None:
        """Do nothing, as nothing is written."""

    def mean(self) -> float:
        """Return the mean seconds of a step.

        The first steps do not count: their batches were prepared while the stage was set up.
        """
        gaps = np.diff(self.at)
        kept = gaps[2:] if len(gaps) > 4 else gaps[1:] if len(gaps) > 1 else gaps
        return float(kept.mean()) if len(kept) else 0.0


_SLOW = 1e-9  # learning rate, so that measuring does not train
_NEVER = 1e9  # seconds


class BenchRun(NamedTuple):
    """Measurements of a few steps of a stage."""

    job: StageRun
    seconds: float  # of a step
    other: float  # before the first step and after the last, without filling the cache
    bytes: int | None  # peak memory
    idle: int | None  # memory before the run
    outcome: StageResult


@dataclass
class Bench:
    """Runs a stage with few rows and few steps.

    Args:
        fabric: One device.
        job: The stage with all its rows.
        folder: A scratch folder.
        caches: Whether frozen modalities are read from the cache.
    """

    fabric: Fabric
    job: StageRun
    folder: Path
    caches: bool
    ready: int = 0  # rows whose frozen modalities are in the scratch cache
    messages: list[str] = field(default_factory=list)
    stages_built: int = 0  # stages made so far

    def build_stage(
        self,
        size: int,
        steps: int,
        rows: int,
        *,
        saves: bool = False,
        held: int = 0,
        **tried: Any,
    ) -> StageRun:
        """Return the same stage with batches of `size` from `rows` rows of each source.

        Args:
            size: Rows of a batch.
            steps: Number of steps.
            rows: Rows of each source to draw batches from.
            saves: Whether each step writes a checkpoint.
            held: Validation rows, evaluated after each step; 0: none.
            tried: Other options of the stage; without them it takes one pass, and nothing that is `auto`.
        """
        job = self.job
        watch = job.stage.watch.model_copy(update={"every": 1, "patience": None}) if job.stage.watch else None
        changes: dict[str, Any] = {
            "batch_size": size,
            "steps": steps,
            "epochs": None,
            "chunk": None,
            "accumulate": 1,
            "watch": watch if held else None,
            "checkpoint_seconds": 0.0 if saves else _NEVER,
            "cache": job.stage.cache if self.caches else "off",
            "optimizer": job.stage.optimizer.model_copy(update={"lr": _SLOW}),
            **tried,
        }
        recipe = job.recipe.model_copy(update={"workers": count_workers(self.fabric, job)})
        stage = job.stage.model_copy(update=changes)
        self.stages_built += 1
        home = self.folder / f"{stage.name}-{self.stages_built}"  # its own, so that no checkpoint is resumed
        rows_ = sample_rows(job.rows, rows)
        watched = subsample(job.validation_rows, held) if held and job.validation_rows else None
        notes = StepTimer(home)
        return StageRun(recipe, stage, job.binder, rows_, home, StepTimer(home), "probe", 1, watched, notes)

    def run(self, size: int, steps: int, *, saves: bool = False, held: int = 0, **tried: Any) -> BenchRun:
        """Run a few steps of one batch size; the rest is as of `build_stage`.

        Raises:
            GeobindError: The stage cannot run with this size.
        """
        # Cached rows are reused; others are prepared in every step, as in the stage.
        rows = max(size, self.ready) if self.caches else size * steps
        job = self.build_stage(size, steps, rows, saves=saves, held=held, **tried)
        clock = job.metrics
        idle = self._idle()
        with self.capture_messages():
            outcome = run_stage(self.fabric, job)
        self.ready = max(self.ready, rows) if self.caches else 0
        seconds = clock.mean() if isinstance(clock, StepTimer) else 0.0
        within = clock.at[-1] - clock.at[0] + seconds if isinstance(clock, StepTimer) and clock.at else 0.0
        other = max(0.0, outcome.seconds - within - outcome.filled["seconds"])
        process = outcome.process_bytes if outcome.process_since == "stage" else None
        return BenchRun(job, seconds, other, outcome.peak_memory_bytes or process, idle, outcome)

    def _idle(self) -> int | None:
        """Release unused memory, and return the memory still held."""
        system.release_memory()
        if self.fabric.device.type == "cuda":
            torch.cuda.empty_cache()
            return torch.cuda.memory_allocated(self.fabric.device)
        return system.peak_bytes() if system.reset_peak() else None

    @contextmanager
    def measure_peak(self) -> Generator[list[int]]:
        """Append the peak memory of the block to the yielded list, where it can be measured."""
        found: list[int] = []
        known = self._idle() is not None
        cuda = self.fabric.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
        yield found
        peak = torch.cuda.max_memory_allocated(self.fabric.device) if cuda else system.peak_bytes()
        if peak is not None and known:
            found.append(peak)

    @contextmanager
    def capture_messages(self) -> Generator[None]:
        """Collect the messages of training in `messages`, instead of showing them."""
        with captured() as messages:
            yield
        self.messages += messages

    @contextmanager
    def open_cache(self, job: StageRun) -> Generator[tuple[tuple[str, ...], CachedInputs]]:
        """Yield the frozen modalities of a stage and its part of the cache, filled as training fills it."""
        with self.capture_messages(), prepare_encoders(self.fabric, job) as frozen:
            cached = open_stage_cache(self.fabric, job, frozen, count_workers(self.fabric, job))
            yield tuple(frozen), cached
            cached.close()

    def find_cache_refusal(self, name: str) -> str:
        """Return the reason that training logged for not caching a modality."""
        pattern = re.compile(rf"^[^:]*: {re.escape(name)} is not cached: (.*)$")
        return next((found[1] for line in self.messages if (found := pattern.match(line))), "")


def seconds_since(start: float) -> float:
    """Return the seconds since a time of the monotonic clock."""
    return time.monotonic() - start


def covers_all_rows(job: StageRun) -> bool:
    """Return whether a stage takes all of its rows at least once."""
    return job.steps >= job.sampler.steps_per_epoch
