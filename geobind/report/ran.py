"""What the report says of how a run came about: versions, hardware, time, memory, seed, data, licences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import PurePath
from typing import Any

from geobind.data.table import Table, licences
from geobind.recipe.schema import names_of
from geobind.report.facts import Run
from geobind.utils import formatting


def what_ran(run: Run, held_out: Table | None) -> Iterator[tuple[str, str]]:
    """Yield what is known, each with its name.

    Args:
        run: The run.
        held_out: The rows it was measured on, where they are at hand.
    """
    versions = run.card.get("versions") or run.started.get("versions") or {}
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    hardware = run.started.get("hardware")
    if isinstance(hardware, Mapping):
        yield "hardware", ", ".join(f"{name} {value}" for name, value in hardware.items())
    yield from _spent(run.started)
    yield "plugins", ", ".join(f"{name}: {plugin}" for name, plugin in run.started.get("plugins", {}).items())
    yield "seed", str(run.recipe.get("seed", 0))
    sources: dict[str, list[str]] = {}
    for stage in run.recipe["stages"]:
        source = formatting.listed(list(dict.fromkeys(map(_source, _tables(run, stage)))))
        split = f", split {stage['split']}" if "split" in stage else ""
        sources.setdefault(source + split, []).append(stage["name"])
    for source, stages in sources.items():
        yield ("trained on" if len(sources) == 1 else f"data of {formatting.listed(stages)}"), source
    evaluate = run.recipe.get("evaluate")
    if evaluate is not None:
        source = _source(evaluate.get("data") or run.recipe.get("data"))
        yield "measured on", f"split {evaluate.get('split', 'test')} of {source}"
    found = licences(held_out) if held_out is not None else {}
    if found:
        counted = (
            f"{formatting.short(name, 80)} ({formatting.count(rows, 'row')})" for name, rows in found.items()
        )
        yield "licences of held-out rows", ", ".join(counted)


def _tables(run: Run, stage: Mapping[str, Any]) -> list[Mapping[str, Any] | None]:
    """The tables that a stage draws from, as the recipe names them."""
    said = stage.get("data")
    if said is not None:
        return said if isinstance(said, list) else [said]
    own = [(run.recipe["modalities"].get(name) or {}).get("data") for name in names_of(stage["align"])]
    return [data or run.recipe.get("data") for data in own]


def _spent(started: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How long a run took, and how much memory; a run that went on tells of its last part."""
    with suppress(KeyError, TypeError, ValueError):
        times = [datetime.fromisoformat(started[name]) for name in ("started", "finished")]
        took = formatting.duration((times[1] - times[0]).total_seconds())
        yield "took", f"{took}, from {times[0]:%Y-%m-%d %H:%M} UTC"
    peak = started.get("peak_memory_bytes")
    if isinstance(peak, int):
        yield "peak memory", f"{formatting.size(peak)} of the machine's, by the first process"


def _source(data: Mapping[str, Any] | None) -> str:
    if data is None:
        return "pairs that its modality brings"
    if data.get("toyearth") is not None:
        options = ", ".join(f"{name} {value}" for name, value in data["toyearth"].items())
        return f"toy Earth{f' ({options})' if options else ''}"
    name = str(data.get("manifest", "?"))
    return PurePath(name).name if PurePath(name).is_absolute() else name
