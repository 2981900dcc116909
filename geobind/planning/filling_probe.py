"""Measure what reading a stage's frozen sides from the cache takes: making some of their rows, really."""

# M observations, K views of each

from __future__ import annotations

import math
import time

from geobind.embedding_cache.build import Stored
from geobind.embedding_cache.store import limit_bytes
from geobind.planning.bench import Bench, seconds_since
from geobind.planning.found import Filling, Side
from geobind.planning.lines import different, fit
from geobind.training.cache import Cached, read_from_cache
from geobind.training.stage import workers_of
from geobind.training.trainable import in_training

_WARM, _MOST = 8, 256  # rows made to warm up, and at most
_PART = 0.3  # of a stage's time
_ALWAYS = 10**9  # steps; more than an epoch of anything


def measure_filling(bench: Bench, seconds: float) -> tuple[Filling | None, tuple[str, ...], float]:
    """Make some rows of the frozen sides in the scratch cache, and see how long it takes.

    Where the cache may not hold them all, the bench goes on without it, as the stage will.

    Args:
        bench: Where; `ready` says how many rows are made afterwards.
        seconds: How long the whole stage may be measured.

    Returns:
        What all rows take, None where nothing is cached; the frozen sides; the seconds of one row more.
    """
    rows = len(bench.job.rows)
    looked = min(_WARM, rows)
    began = time.monotonic()
    frozen, _ = _fill(bench, looked)
    if not frozen or not bench.caches:
        return None, frozen, 0.0
    afford = max(1, int(_PART * seconds * looked / seconds_since(began)))
    points: list[tuple[float, float]] = []
    sides: dict[str, Side] = {}
    unlike, most = 1.0, 0
    for more in (min(_MOST // 4, max(1, afford // 4)), min(_MOST, afford)):
        before, looked = looked, min(rows, looked + more)
        if looked == before and points:
            break
        with bench.holding() as held:
            _, cached = _fill(bench, looked)
        points.append((looked - before, cached.filled.seconds))
        sides = {name: side_of(stored, before, looked, rows) for name, stored in cached.sides.items()}
        unlike, most = _unlike(cached, sides, rows / looked), max(most, *held, 0)
    needed = sum(side.inputs * side.row_bytes for side in sides.values())
    if needed > limit_bytes():
        bench.caches = False
        reason = f"its {needed / 1e9:.3g} GB of rows are more than the cache may hold"
        bench.said += [f"{bench.job.stage.name}: {name} is not cached: {reason}" for name in sides]
        return None, frozen, 0.0
    bench.ready, line = looked, fit(points)
    return Filling(seconds=line(rows * unlike), bytes=most or None, sides=sides), frozen, line.slope


def side_of(stored: Stored, before: int, looked: int, rows: int) -> Side:
    """Say of all rows what was found of a side in some.

    Args:
        stored: The side, in the rows looked at.
        before: Of these, how many were made already.
        looked: How many they are.
        rows: How many there are.
    """
    row_MK = stored.picks.row_MK
    found = len(set(row_MK[row_MK >= 0].tolist()))
    inputs = different(found, row_MK.size, round(row_MK.size * rows / looked))
    new = max(1.0, found * (1 - before / looked))
    missing = inputs * min(1.0, stored.made / new)
    return Side(inputs=inputs, missing=missing, row_bytes=2 * math.prod(stored.rows.shape) + 20)


def _fill(bench: Bench, rows: int) -> tuple[tuple[str, ...], Cached]:
    job = bench.at(2, _ALWAYS, rows)
    with bench.quiet(), in_training(bench.fabric, job) as frozen:
        cached = read_from_cache(bench.fabric, job, frozen, workers_of(bench.fabric, job))
        cached.close()
    return tuple(frozen), cached


def _unlike(cached: Cached, sides: dict[str, Side], share: float) -> float:
    """Return the part of the inputs of all rows that are not like another."""
    found = [side.inputs / (share * cached.sides[name].picks.row_MK.size) for name, side in sides.items()]
    return min(1.0, *found, 1.0)
