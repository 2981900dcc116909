"""Training, validation and evaluation rows of a recipe."""

# R rows of a table that a stage uses

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from geobind.binder import Binder, build_binder
from geobind.bridge import AnchorBank
from geobind.data.options import DataOptions, MixedData
from geobind.data.sampler import MixedDataset, WeightedSource
from geobind.data.sources import PluginPairs, TableRows
from geobind.data.table import Table, open_table
from geobind.errors import DataError, RecipeError
from geobind.evaluation import Leakage, leakage
from geobind.evaluation.held_out import (
    EvaluationResults,
    build_bank,
    check_evaluation_rows,
    draw_rows,
    measure_all,
    take_first_rows,
    with_warnings,
)
from geobind.evaluation.questions import read_truths
from geobind.evaluation.split_leakage import ImageHashes
from geobind.fuser import Fuser
from geobind.recipe import Recipe, Stage
from geobind.training.fuser_rows import draw_fuser_rows, train_on_rows
from geobind.training.validation import check_validation_rows, subsample
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

_MIN_SHARED = 2  # rows that two modalities must share to be compared


class StageRows(NamedTuple):
    """The rows of one stage."""

    training: MixedDataset
    validation: MixedDataset | None  # None without `watch`


def count_steps(stage: Stage, rows: MixedDataset) -> int:
    """Count the steps of a stage on its training rows.

    Raises:
        DataError: They are too few for a batch.
    """
    if stage.steps is not None:
        return stage.steps
    try:
        sampler = rows.sampler(stage.batch_size, 0, mixed=stage.mix == "rows")
    except DataError as error:
        raise DataError(f"stage '{stage.name}': {error}") from error
    return (stage.epochs or 0) * sampler.steps_per_epoch


class StageData:
    """The tables of a recipe, each opened once, and the rows of its stages."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tables: dict[str, Table] = {}
        self._rows: dict[str, MixedDataset] = {}
        self._validation_rows: dict[str, MixedDataset] = {}
        self._leaks: dict[str, Leakage] = {}
        self._image_hashes: ImageHashes = {}
        for stage in recipe.stages:
            for options in recipe.tables_of(stage):
                self._open(options)
            if stage.watch and stage.watch.data:
                self._open(stage.watch.data)
        self._table(self.recipe.evaluation_data)

    def resolve(self) -> list[StageRows]:
        """Return the rows of every stage, and check the rows that `evaluate` measures on.

        Raises:
            DataError: A stage has no rows to train or validate on, or `evaluate` lacks some.
        """
        training = [self.rows(stage) for stage in self.recipe.stages]
        self.check()
        validation = [self.validation_rows(stage) for stage in self.recipe.stages]
        return [StageRows(*rows) for rows in zip(training, validation, strict=True)]

    def rows(self, stage: Stage) -> MixedDataset:
        """Return the training rows of a stage: pairs of plugins, and rows of tables.

        Raises:
            DataError: A table has no row to train on, or two modalities that are compared share no rows.
        """
        if stage.name not in self._rows:
            sources = self._sources(stage)
            names = [source.name for source in sources]
            for number, source in enumerate(sources):
                if names.index(source.name) < number:
                    sources[number] = source._replace(name=f"{source.name} ({number + 1})")
            self._rows[stage.name] = MixedDataset(tuple(sources))
            self._check(stage, self._rows[stage.name])
        return self._rows[stage.name]

    def validation_rows(self, stage: Stage) -> MixedDataset | None:
        """Return the validation rows of a stage, None without `watch`.

        Raises:
            DataError: There are none, or too few to tell good embeddings from bad ones.
        """
        watch = stage.watch
        if watch is None:
            return None
        if stage.name not in self._validation_rows:
            other = {"data": watch.data} if watch.data else {}
            try:
                validated = stage.model_copy(update={"split": watch.split, **other})
                rows = subsample(
                    MixedDataset(tuple(self._sources(validated, own=not watch.data))), watch.limit
                )
            except DataError as error:
                datasets = [table.dataset for table in self.recipe.tables_of(stage) if table.dataset]
                hints = dict.fromkeys(dataset.held_out_hint for dataset in datasets if dataset.held_out_hint)
                raise DataError(
                    f"stage '{stage.name}' cannot be watched: {error}\n  name rows to watch it on with "
                    f"{'; '.join(('`watch.split` and `watch.data`', *hints))}"
                ) from error
            check_validation_rows(self.recipe, stage, rows)
            self._validation_rows[stage.name] = rows
        return self._validation_rows[stage.name]

    def _sources(self, stage: Stage, *, own: bool = True) -> list[WeightedSource]:
        anchor = self.recipe.anchor_of(stage)
        brought = {n: self.recipe.built[n].pairs(stage.split, anchor) for n in stage.aligned} if own else {}
        plugins = {
            name: PluginPairs(pairs, anchor, name) for name, pairs in brought.items() if pairs is not None
        }
        others = [name for name in stage.aligned if name not in plugins]
        tables = self.recipe.stage_sources(stage, plugins).tables
        if not plugins and not tables:
            raise RecipeError(
                f"stage '{stage.name}': '{others[0]}' brings no pairs and the recipe names no data"
            )
        return [
            *(WeightedSource(f"the pairs of '{name}'", pairs) for name, pairs in plugins.items()),
            *(self._source(stage, options, others) for options in tables),
        ]

    def _source(self, stage: Stage, options: DataOptions, others: Sequence[str]) -> WeightedSource:
        anchor = self.recipe.anchor_of(stage)
        table = self._open(options).split(stage.split)
        weight = options.weight if isinstance(options, MixedData) else None
        if len(stage.aligned) == 1:
            return WeightedSource(
                table.name, TableRows(table.pairs(anchor, others[0]).table, (anchor, others[0])), weight
            )
        names = tuple(name for name in (anchor, *others) if name in table.columns)
        pairs = [pair for pair in self.recipe.pairs_of(stage) if pair.both <= set(names)]
        row_R = np.unique(np.concatenate([np.zeros(0, int), *(table.rows_with(pair.both) for pair in pairs)]))
        if not len(row_R):
            wanted = ", ".join(pair.name for pair in self.recipe.pairs_of(stage))
            raise DataError(
                f"{table.name}: no row of split '{stage.split}' has both of a pair that stage '{stage.name}' "
                f"compares ({wanted}); its columns are read as {', '.join(table.columns)}: map others with "
                f"`columns`, or use another table"
            )
        return WeightedSource(table.name, TableRows(table.take(row_R), names), weight)

    def _check(self, stage: Stage, rows: MixedDataset) -> None:
        pairs = self.recipe.pairs_of(stage)
        for pair in pairs if len(pairs) > 1 else ():
            if rows.having(pair.both) < _MIN_SHARED:
                where = ", ".join(source.name for source in rows.sources)
                raise DataError(
                    f"stage '{stage.name}': of {where} only {rows.having(pair.both)} rows have both "
                    f"'{pair.anchor}' and '{pair.other}', and comparing needs {_MIN_SHARED}; give data that "
                    f"has both, or compare less (`align`, `pairs`)"
                )

    def check(self) -> None:
        """Check that the rows have what the recipe's `fuse` and `evaluate` need.

        Raises:
            DataError: They lack something.
        """
        self.fuser_rows()
        options, table = self.recipe.evaluate, self._table(self.recipe.evaluation_data)
        if options is not None and table is not None:
            check_evaluation_rows(table, options)
            held_out = take_first_rows(table.split(options.split), options.limit)
            data = self.recipe.evaluation_data
            if data is not None:
                read_truths(held_out, data, options.questions, self.recipe.built, self.recipe.base)

    def measure(self, binder: Binder) -> EvaluationResults | None:
        """Return the measurements that the recipe's `evaluate` asks for."""
        options, data = self.recipe.evaluate, self.recipe.evaluation_data
        table = self._table(data)
        if options is None or data is None or table is None:
            return None
        recipe = self.recipe
        untrained = build_binder(recipe).to(binder.device) if options.untrained else None
        measured = measure_all(
            binder,
            table,
            data,
            recipe.marks,
            options,
            untrained=untrained,
            base=recipe.base,
            anchor=recipe.anchor,
        )
        warnings = dict.fromkeys(leak.warning for leak in self.leakage().values() if leak.warning)
        return with_warnings(measured, tuple(warnings))

    def build_bank(self, binder: Binder) -> AnchorBank | None:
        """Embed the bank of a trained binder; None if none is asked for or of use, or a row is broken."""
        recipe = self.recipe
        if not recipe.bank:
            return None
        try:
            return build_bank(
                binder,
                self._draw_training_rows,
                anchor=recipe.anchor,
                marks=recipe.marks,
                most=recipe.bank,
            )
        except DataError as error:
            _log.warning("the bundle has no bank: %s", error)
            return None

    def fuser_rows(self) -> MixedDataset | None:
        """Return the rows that `fuse` trains on, of every table that a stage trains on.

        Raises:
            DataError: They have no such split, or too few rows hold several modalities.
        """
        recipe = self.recipe
        if recipe.fuse is None:
            return None
        tables = [self._open(options) for stage in recipe.stages for options in recipe.tables_of(stage)]
        different = {id(table): table for table in tables}
        return draw_fuser_rows([*different.values()], recipe.fuse, recipe.seed)

    def train_fuser(self, binder: Binder) -> Fuser | None:
        """Train the fuser that the recipe asks for; None where it asks for none, or its rows are broken."""
        recipe, rows = self.recipe, self.fuser_rows()
        if recipe.fuse is None or rows is None:
            return None
        shared: Any = {"workers": recipe.workers, "max_broken": recipe.max_broken, "seed": recipe.seed}
        try:
            return train_on_rows(binder, rows, recipe.fuse, **shared)
        except DataError as error:  # the stages' work is kept
            _log.warning("the bundle has no fuser: %s", error)
            return None

    def _draw_training_rows(self, name: str, most: int) -> Table | None:
        """Draw training rows that have a modality, of the first stage and table with any."""
        for stage in self.recipe.stages:
            for source in self.rows(stage).sources if name in self.recipe.names_of(stage) else ():
                table = source.rows.table
                drawn = draw_rows(table, name, most, self.recipe.seed) if table is not None else None
                if drawn is not None:
                    return drawn
        return None

    def evaluation_table(self) -> Table | None:
        """Return the rows that `evaluate` measures on."""
        options, table = self.recipe.evaluate, self._table(self.recipe.evaluation_data)
        if options is None or table is None:
            return None
        return take_first_rows(table.split(options.split), options.limit)

    def all_leakage(self) -> dict[str, Leakage]:
        """Return the leakage of evaluation and validation rows into training tables."""
        return {**self.leakage(), **self.validation_leakage()}

    def leakage(self) -> dict[str, Leakage]:
        """Return the leakage between evaluation rows and each stage's training tables."""
        held_out = self.evaluation_table()
        if held_out is None or self._leaks:
            return self._leaks
        for stage in self.recipe.stages:
            self._leaks |= self._shared(stage, held_out)
        return self._leaks

    def validation_leakage(self) -> dict[str, Leakage]:
        """Return the leakage between validation tables and training tables."""
        leaks: dict[str, Leakage] = {}
        for stage in self.recipe.stages:
            rows = self.validation_rows(stage)
            for source in rows.sources if rows else ():
                if (table := source.rows.table) is not None:
                    shared = self._shared(stage, table)
                    leaks |= {f"{name}, watched on {source.name}": leak for name, leak in shared.items()}
        return leaks

    def _shared(self, stage: Stage, test: Table) -> dict[str, Leakage]:
        """Return the leakage between a table and each training table of a stage."""
        sources = self.rows(stage).sources
        return {
            stage.name if len(sources) == 1 else f"{stage.name}: {source.name}": leakage(
                table, test, source.rows.names, looked=self._image_hashes
            )
            for source in sources
            if (table := source.rows.table) is not None
        }

    def _table(self, options: DataOptions | None) -> Table | None:
        return None if options is None else self._open(options)

    def _open(self, options: DataOptions) -> Table:
        name = options.model_dump_json(exclude={"weight"})
        if name not in self.tables:
            self.tables[name] = open_table(options, self.recipe.base, tuple(self.recipe.modalities))
        return self.tables[name]
