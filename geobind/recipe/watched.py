"""What is wrong with the blocks that watch a run: `watch` of a stage, and `loggers`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from geobind import loggers
from geobind.data.options import DataOptions
from geobind.errors import PluginError
from geobind.recipe.reading import Path_
from geobind.recipe.schema import Recipe, Stage
from geobind.recipe.stages import own_pairs

Faults = Iterator[tuple[Path_, str]]  # where, and what to do about it


def watch_faults(recipe: Recipe, stage: Stage) -> Faults:
    """List what is wrong with how a stage is watched, each with where inside the stage."""
    watch, evaluate = stage.watch, recipe.evaluate
    if watch is None or not all(name in recipe.modalities for name in stage.aligned):
        return
    mine = _tables(recipe, stage, watch.data)
    for other in recipe.stages:
        known = all(name in recipe.modalities for name in other.aligned)
        if known and other.split == watch.split and any(t in mine for t in _tables(recipe, other)):
            whose = "this stage trains" if other is stage else f"stage {other.name!r} trains"
            yield ("watch", "split"), f"{whose} on split {watch.split!r}: name rows that none does"
            break
    chosen = watch.keep == "best" or watch.patience is not None
    measured = evaluate and (evaluate.data or recipe.data)
    if evaluate and chosen and evaluate.split == watch.split and measured and _facts(measured) in mine:
        yield (
            ("watch", "split"),
            f"`evaluate` measures on split {watch.split!r} too: what is chosen on the rows that it is "
            "measured on looks better than it is; name a validation split",
        )


def logger_faults(recipe: Recipe) -> Faults:
    """List the loggers that cannot be used, and why."""
    for number, said in enumerate(recipe.loggers):
        try:
            loggers.make(*named(said))
        except PluginError as error:
            yield ("loggers", number), str(error)


def named(said: Any) -> tuple[str, Mapping[str, Any]]:
    """The name and the options of a logger, however it was written."""
    return (said, {}) if isinstance(said, str) else (said.name, dict(said.model_extra or {}))


def _tables(recipe: Recipe, stage: Stage, other: DataOptions | None = None) -> list[dict[str, Any]]:
    """Where the rows of a stage come from, as plain values: tables, and modalities that bring their own."""
    if other is not None:
        return [_facts(other)]
    own = own_pairs(stage, recipe.built)
    others = [name for name in stage.aligned if name not in own]
    tables = recipe.tables_of(stage, others) if others else ()
    return [{"pairs of": name} for name in own] + [_facts(table) for table in tables]


def _facts(table: DataOptions) -> dict[str, Any]:
    return table.model_dump(mode="json", exclude={"weight"})
