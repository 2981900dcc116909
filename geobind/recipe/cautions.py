"""What a stage is allowed to ask for, but probably not what its author wants."""

from __future__ import annotations

from collections.abc import Iterator

from geobind.recipe.schema import Recipe, Stage


def cautions(recipe: Recipe, stage: Stage) -> Iterator[str]:
    """Say what options of a stage do not do, and which do."""
    ranks = _ranks(recipe)
    if stage.accumulate > 1:
        yield f"accumulate: {stage.accumulate} steps to a move add no negatives: {_instead(stage, ranks)}"
        if stage.steps is not None and stage.accumulate > stage.steps:
            yield f"accumulate: {stage.accumulate} exceeds the {stage.steps} steps: the weights move once"
    if getattr(stage.loss, "local", False) and ranks == 1:
        yield "loss.local: changes nothing with one process, which has all rows"
    if isinstance(stage.chunk, int) and not is_cut(recipe, stage):
        rows, whose = stage.batch_size // (ranks or 1), "a process has" if ranks else "there are"
        yield f"chunk: {stage.chunk} cuts nothing, as {whose} {rows} rows; steps take one pass"


def is_cut(recipe: Recipe, stage: Stage) -> bool:
    """Whether a stage has a chunk that is smaller than what a process has of a batch, as far as is known."""
    if not isinstance(stage.chunk, int):
        return False
    return "batch_size" in stage.open or stage.chunk * (_ranks(recipe) or 1) < stage.batch_size


def _instead(stage: Stage, ranks: int | None) -> str:
    """Say what a row is compared with, and how to compare it with more."""
    if "batch_size" in stage.open:
        return "rows meet those of their own batch alone; a larger `batch_size` with `chunk` adds some"
    larger, chunk = stage.batch_size * stage.accumulate, max(2, stage.batch_size // (ranks or 1))
    if isinstance(stage.chunk, int):
        chunk = min(stage.chunk, chunk)
    queue = getattr(stage.loss, "queue", None)
    more = f" and {queue} that are queued" if queue else ""
    return (
        f"a row meets the {stage.batch_size - 1} others of its batch{more}; `batch_size: {larger}` with "
        f"`chunk: {chunk}` takes as many rows to a move in the same memory, and a row meets {larger - 1}"
    )


def _ranks(recipe: Recipe) -> int | None:
    """How many processes there will be, if the recipe says."""
    devices = recipe.fabric.devices
    return devices * recipe.fabric.num_nodes if isinstance(devices, int) else None
