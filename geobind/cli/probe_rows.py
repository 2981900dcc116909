"""Rows for `geobind probe`: embeddings with their labels and facts, and what stands for each class."""

# N rows, T facts

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geobind.cli.asked import TOYEARTH
from geobind.errors import DataError, GeobindError
from geobind.utils.hashing import seed_of

if TYPE_CHECKING:
    from geobind.binder import Binder
    from geobind.data.options import DataOptions
    from geobind.data.table import Table
    from geobind.evaluation import Labelled, Prototypes

_FACTS = "facts"  # toy Earth's column of all facts


class Source(NamedTuple):
    """Where rows come from: the table, how many of them, and which split."""

    options: DataOptions
    limit: int | None

    def table(self, split: str, *names: str) -> Table:
        """Open the rows of a split with these columns; a limit takes the first."""
        from geobind.data.table import open_table
        from geobind.training.final_evaluation import first_rows

        return first_rows(open_table(self.options, Path.cwd(), names).split(split), self.limit)

    def labelled(self, split: str, name: str) -> Table:
        """Open the rows of a split that have a label and this modality.

        Raises:
            DataError: There are none.
        """
        table = self.table(split, name)
        labels = table.labels
        if labels is None:
            raise DataError(
                f"{table.name}: no row of split '{split}' has a label; name the column of classes (--labels)"
            )
        kept = [row for row in table.rows_with([name]) if labels[row] is not None]
        if not kept:
            raise DataError(f"{table.name}: no row of split '{split}' has both a label and '{name}'")
        return table.take(kept)


def embedded(binder: Binder, table: Table, name: str) -> Labelled:
    """Embed rows that all have the modality and a label."""
    from geobind.evaluation import Labelled
    from geobind.evaluation.embedded import embed_rows

    return Labelled(embed_rows(binder, table)[name].embedding_QD, table.labels, table.groups)


def reads_sentences(binder: Binder, name: str) -> bool:
    """Whether a modality takes a sentence as it is: such a one describes classes by prompts."""
    try:
        binder.modality(name).prepare("a place")
    except GeobindError:  # it is no name of a file either
        return False
    return True


def prompted(binder: Binder, name: str, classes: Sequence[str], templates: Sequence[str]) -> Prototypes:
    """Describe classes by their names, put into every template; `_` in a name is read as a space."""
    from geobind.evaluation import prototypes
    from geobind.inference import class_examples

    examples = class_examples([label.replace("_", " ") for label in classes], templates)
    return prototypes({label: binder.embed(name, of) for label, of in zip(classes, examples, strict=True)})


def exemplified(
    binder: Binder, table: Table, name: str, classes: Sequence[str], most: int, seed: int
) -> Prototypes:
    """Describe classes by rows of theirs, at most so many of each, drawn by the seed.

    Raises:
        DataError: A class has no row with the modality.
    """
    from geobind.evaluation import prototypes
    from geobind.evaluation.embedded import embed_rows

    labels = np.array(table.labels, dtype=object)
    chosen: dict[str, list[int]] = {}
    for label in classes:
        random = np.random.default_rng(seed_of(seed, "examples", name, label))
        chosen[label] = random.permutation(np.flatnonzero(labels == label))[:most].tolist()
        if not chosen[label]:
            raise DataError(
                f"{table.name}: no row of split '{table.view}' shows class '{label}' in '{name}'; describe "
                "the classes through another modality (--through)"
            )
    rows = [row for of in chosen.values() for row in of]
    embedding_ND = embed_rows(binder, table.take(rows))[name].embedding_QD
    ends = np.cumsum([len(of) for of in chosen.values()])[:-1].tolist()
    parts = np.split(np.arange(len(rows)), ends)
    return prototypes({label: embedding_ND[part] for label, part in zip(classes, parts, strict=True)})


def facts_of(
    source: Source, split: str, name: str, targets: Sequence[str]
) -> tuple[Table, Mapping[str, Any]]:
    """Open the rows that have a modality, and read numbers of them by the names of their columns.

    Of toy Earth a target is the name of a fact, or `facts` for all.

    Raises:
        DataError: A target is no column, or a cell is no number.
    """
    toyearth = source.options.toyearth is not None
    columns = (_FACTS,) if toyearth else tuple(targets)
    table = source.table(split, name, *columns)
    table = table.take(table.rows_with([name]))
    if toyearth:
        return table, _toy_facts(table, targets)
    for target in targets:
        if target not in table.columns:
            raise DataError(f"{table.name}: has no column '{target}' (--target)")
    return table, {target: _numbers(table, target) for target in targets}


def _toy_facts(table: Table, targets: Sequence[str]) -> Mapping[str, Any]:
    from geobind.toyearth import FACTS

    wanted = list(FACTS) if _FACTS in targets else list(targets)
    if unknown := [target for target in wanted if target not in FACTS]:
        raise DataError(f"{TOYEARTH}: has no fact '{unknown[0]}'; its facts: {', '.join(FACTS)}")
    fact_NT = np.stack([np.asarray(row) for row in table.samples(_FACTS)])
    return {target: fact_NT[:, FACTS.index(target)] for target in wanted}


def _numbers(table: Table, target: str) -> list[float | None]:
    numbers: list[float | None] = []
    for row, cell in enumerate(table.samples(target)):
        try:
            numbers.append(None if cell is None else float(np.asarray(cell).reshape(()).item()))
        except (TypeError, ValueError):
            raise DataError(
                f"{table.keys[row]}: column '{target}' (--target) is {cell!r}, not a number"
            ) from None
    return numbers
