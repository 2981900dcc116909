"""The rows a recipe's stages read, and those it is measured on."""

from __future__ import annotations

from collections.abc import Sequence

from geobind.binder import Binder
from geobind.data.options import DataOptions
from geobind.data.table import Table, open_table
from geobind.errors import RecipeError
from geobind.evaluation import Leakage, PairTable, leakage
from geobind.modality import Pair
from geobind.recipe import Recipe, Stage
from geobind.training.measure import first_rows, measure


class Sources:
    """The tables a recipe reads, each opened once."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tables: dict[str, Table] = {}
        for stage in recipe.stages:
            self._table(recipe.data_of(stage))
        self._table(self._evaluated())

    def pairs(self, stage: Stage) -> Sequence[Pair]:
        """The pairs a stage trains on."""
        anchor = self.recipe.anchor_of(stage)
        own = self.recipe.built[stage.align].pairs(stage.split, anchor)
        if own is not None:
            return own
        table = self._table(self.recipe.data_of(stage))
        if table is None:
            raise RecipeError(
                f"stage '{stage.name}': '{stage.align}' brings no pairs and the recipe names no data"
            )
        return table.split(stage.split).pairs(anchor, stage.align)

    def measure(self, binder: Binder) -> PairTable | None:
        """Measure what the recipe's `evaluate` asks for."""
        options = self.recipe.evaluate
        table = self._table(self._evaluated())
        if options is None or table is None:
            return None
        trained = {frozenset((self.recipe.anchor_of(stage), stage.align)) for stage in self.recipe.stages}
        return measure(binder, table.split(options.split), trained, options)

    def leakage(self) -> dict[str, Leakage]:
        """What the rows measured on share with each stage's training rows, where both are tables."""
        options, held_out = self.recipe.evaluate, self._table(self._evaluated())
        if options is None or held_out is None:
            return {}
        test = first_rows(held_out.split(options.split), options.limit)
        found: dict[str, Leakage] = {}
        for stage in self.recipe.stages:
            names = (self.recipe.anchor_of(stage), stage.align)
            table = self._table(self.recipe.data_of(stage))
            if table is not None and self.recipe.built[stage.align].pairs(stage.split, names[0]) is None:
                train = table.split(stage.split)
                found[stage.name] = leakage(train.take(train.rows_with(names)), test, names)
        return found

    def _evaluated(self) -> DataOptions | None:
        evaluate = self.recipe.evaluate
        return (evaluate.data or self.recipe.data) if evaluate else None

    def _table(self, options: DataOptions | None) -> Table | None:
        if options is None:
            return None
        name = options.model_dump_json()
        if name not in self.tables:
            self.tables[name] = open_table(options, self.recipe.base, tuple(self.recipe.modalities))
        return self.tables[name]
