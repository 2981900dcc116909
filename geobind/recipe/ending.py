"""What is wrong with the blocks about the time after the last stage: `evaluate` and `card`."""

from __future__ import annotations

from collections.abc import Iterator

from geobind.errors import DataError
from geobind.recipe.reading import Path_
from geobind.recipe.schema import Recipe
from geobind.recipe.stages import unknown
from geobind.recipe.sums import read_sum


def ending_faults(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    """List what is wrong, each with where and what to do about it."""
    yield from ((("card", "weights", name), unknown(name, recipe.modalities)) for name in _strangers(recipe))
    evaluate = recipe.evaluate
    if evaluate is None:
        return
    if evaluate.data is None and recipe.data is None:
        yield ("evaluate",), "has no rows: give `data` here or for the whole recipe"
    for number, text in enumerate(evaluate.sums):
        try:
            read_sum(text, recipe.modalities)
        except DataError as error:
            yield ("evaluate", "sums", number), str(error)
    data = evaluate.data or recipe.data
    for stage in recipe.stages:
        known = all(name in recipe.modalities for name in stage.aligned)
        if stage.split == evaluate.calibrate and known and data in recipe.tables_of(stage):
            message = f"stage {stage.name!r} trains on split {stage.split!r}: name rows that none does"
            yield ("evaluate", "calibrate"), message


def _strangers(recipe: Recipe) -> list[str]:
    return [name for name in recipe.card.weights if name not in recipe.modalities]
