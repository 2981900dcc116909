"""The rows that a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geobind.errors import DataError

if TYPE_CHECKING:
    from geobind.binder import Binder
    from geobind.data.options import DataOptions

TOYEARTH = "toyearth"


def mapped_columns(columns: tuple[str, ...]) -> dict[str, str]:
    """Read `--column MODALITY=COLUMN`.

    Raises:
        DataError: One is not of that form.
    """
    wrong = [text for text in columns if not all(text.partition("="))]
    if wrong:
        raise DataError(f"--column {wrong[0]}: write MODALITY=COLUMN, such as --column label=class")
    return dict(text.split("=", 1) for text in columns)


def asked_data(binder: Binder, data: str, columns: Mapping[str, str], root: Path | None) -> DataOptions:
    """Return the `data` block that `--data`, `--column` and `--root` stand for."""
    from geobind.data.options import DataOptions, ToyEarthOptions

    if data != TOYEARTH:
        return DataOptions(manifest=Path(data), columns=dict(columns), root=root)
    for said in _of_recipe(binder):
        if isinstance(said, Mapping) and TOYEARTH in said:
            known = DataOptions.model_validate(said)
            return known.model_copy(update={"columns": {**known.columns, **columns}})
    return DataOptions(toyearth=ToyEarthOptions(), columns=dict(columns))


def _of_recipe(binder: Binder) -> list[Any]:
    """The `data` blocks of the recipe a bundle was made with, what it was measured on first."""
    recipe: Mapping[str, Any] = binder.card.recipe if binder.card else {}
    evaluate = recipe.get("evaluate")
    return [evaluate.get("data") if isinstance(evaluate, Mapping) else None, recipe.get("data")]
