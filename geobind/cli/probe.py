"""`geobind probe`."""

# N rows, T facts

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from geobind.cli.options import TOYEARTH, asked_data, bundle_argument, json_option, mapped_columns
from geobind.errors import DataError, GeobindError
from geobind.utils.hashing import seed_of

if TYPE_CHECKING:
    from geobind.binder import Binder
    from geobind.data.options import DataOptions
    from geobind.data.table import Table
    from geobind.evaluation import FactOptions, FewShotOptions, Labelled, Probes, Prototypes


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
    from geobind_toyearth import FACTS

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


class Asked(NamedTuple):
    """The options of the command line."""

    source: Source
    modality: str
    split: str
    train_split: str
    val_split: str | None
    through: tuple[str, ...]
    templates: tuple[str, ...]
    examples: int
    seed: int


def feature_binders(binder: Binder, said: Asked, beside: tuple[str, ...]) -> dict[str, Binder]:
    """The binder whose embeddings are probed, then those of other features, by what tables call them."""
    from geobind.binder import Binder
    from geobind.evaluation import random_trunk, trunk_of
    from geobind.recipe import load_recipe

    name = said.modality
    found: dict[str, Binder] = {name: binder}
    for word in dict.fromkeys(beside):
        if word == "trunk":
            found["its trunk"] = trunk_of(binder, name)
        elif word == "random":
            found["random trunk"] = random_trunk(binder, name, said.seed).to(binder.device)
        else:
            recipe = load_recipe(word)
            if name not in recipe.built:
                raise DataError(f"--beside {word}: that recipe has no modality '{name}'")
            fresh = Binder({name: recipe.built[name]}, recipe.width, seed=recipe.seed)
            found[f"trunk of {recipe.name}, untrained"] = trunk_of(fresh, name).to(binder.device)
    return found


def probe_classes(binders: Mapping[str, Binder], said: Asked, options: FewShotOptions) -> Probes:
    """Recognise classes without examples and with some, from embeddings and from other features."""
    from geobind.evaluation import Probes, few_shot, zero_shot
    from geobind.evaluation.classification import truth_of

    source, name = said.source, said.modality
    test = source.labelled(said.split, name)
    train = source.labelled(said.train_split, name)
    val = source.labelled(said.val_split, name) if said.val_split else None
    classes = sorted({label for label in (*(test.labels or ()), *(train.labels or ())) if label is not None})
    truth = truth_of(test.labels, classes, len(test))
    binder = binders[name]
    queries = embedded(binder, test, name)
    zero = {
        word: zero_shot(
            queries.embeddings, queries.labels, found, groups=queries.groups, options=options.resampling
        )
        for word, found in ((word, _described(binder, said, word, classes)) for word in said.through)
    }
    curves: dict[str, Any] = {}
    for features, of in binders.items() if options.shots else ():
        sides = embedded(of, train, name), queries if of is binder else embedded(of, test, name)
        held = embedded(of, val, name) if val else None
        curves[features] = few_shot(*sides, validation=held, options=options)
    settings = {"train_split": said.train_split, "val_split": said.val_split, "draws": options.draws}
    settings |= {"templates": list(said.templates), "examples": said.examples, "seed": said.seed}
    return Probes(
        name,
        test.name,
        said.split,
        "classes",
        truth.classes,
        len(test),
        truth.majority,
        zero,
        curves,
        settings=settings,
    )


def _described(binder: Binder, said: Asked, through: str, classes: list[str]) -> Prototypes:
    binder.modality(through)
    if reads_sentences(binder, through):
        return prompted(binder, through, classes, said.templates)
    table = said.source.labelled(said.train_split, through)
    return exemplified(binder, table, through, classes, said.examples, said.seed)


def probe_facts_of(
    binders: Mapping[str, Binder],
    said: Asked,
    targets: tuple[str, ...],
    options: FactOptions,
) -> Probes:
    """Read numbers of places off the embeddings of one modality, and off other features of it."""
    import numpy as np

    from geobind.evaluation import Probes, probe_facts
    from geobind.evaluation.embedded import embed_rows

    table, facts = facts_of(said.source, said.split, said.modality, targets)
    places = table.places_LL
    if places is not None and not np.isfinite(places).all():
        raise DataError(
            f"{table.name}: some rows have no lat and lon, by which folds are cut; fill them or drop the rows"
        )
    # Without places, rows of a group stay together.
    blocks = None if places is not None else table.groups
    found = {
        features: probe_facts(
            embed_rows(of, table)[said.modality].embedding_QD,
            facts,
            places=places,
            blocks=blocks,
            options=options,
        )
        for features, of in binders.items()
    }
    settings: dict[str, Any] = {"folds": options.folds, "cell_km": options.cell_km, "seed": said.seed}
    settings["blocks"] = "cells" if places is not None else "rows" if blocks is None else "groups"
    return Probes(said.modality, table.name, said.split, "facts", facts=found, settings=settings)


_ALL = "all"


@click.command("probe")
@bundle_argument
@click.option("--data", required=True, help="A manifest, or `toyearth` (as in the bundle's recipe).")
@click.option("--modality", required=True, help="What is recognised.")
@click.option("--labels", default="label", show_default=True, help="The column of classes.")
@click.option("--through", multiple=True, metavar="MODALITY", help="What describes the classes; repeatable.")
@click.option("--template", "templates", multiple=True, help="A prompt with {} for the class; repeatable.")
@click.option(
    "--examples",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Rows that describe a class where no prompt can.",
)
@click.option(
    "--shots",
    default="1,2,4,8,16,32,all",
    show_default=True,
    help="Examples of each class to learn from; `all` is the linear probe.",
)
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True, help="Draws of the examples.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="COLUMN",
    help="Instead of classes: a number of each place to read off; repeatable.",
)
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Folds for --target.")
@click.option("--cell-km", default=100.0, show_default=True, help="Land that is never cut by a fold.")
@click.option(
    "--beside",
    multiple=True,
    metavar="trunk|random|RECIPE",
    help="The same on features before the head: of this bundle, of random weights, or of a "
    "recipe's encoder before any training; repeatable.",
)
@click.option("--split", default="test", show_default=True, help="The rows that are measured.")
@click.option("--train-split", default="train", show_default=True, help="The rows that examples come from.")
@click.option("--val-split", help="The rows that the strength of the logistic regression is chosen on.")
@click.option("--column", "columns", multiple=True, metavar="MODALITY=COLUMN", help="As of `geobind eval`.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder that file names are relative to.")
@click.option("--limit", type=click.IntRange(2), help="At most this many rows of a split, the first ones.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for probes.json and few_shot.png."
)
@json_option
def probe_command(bundle: str, as_json: bool, out: Path | None, **asked: Any) -> None:
    """See what one modality of BUNDLE, a folder or a hub id, tells of its rows' classes or of numbers."""
    columns = mapped_columns(asked["columns"])
    if asked["labels"] != "label":
        columns["label"] = asked["labels"]
    shots = _shots(asked["shots"])
    if wrong := [template for template in asked["templates"] if "{}" not in template]:
        raise DataError(f"--template {wrong[0]!r}: must contain {{}}, where the class goes")

    import torch

    from geobind.binder import Binder
    from geobind.evaluation import FactOptions, FewShotOptions, Resampling

    binder = Binder.from_pretrained(bundle).to("cuda" if torch.cuda.is_available() else "cpu")
    binder.modality(asked["modality"])
    of_data = asked_data(binder, asked["data"], columns, asked["root"])
    said = Asked(
        source=Source(of_data, asked["limit"]),
        modality=asked["modality"],
        split=asked["split"],
        train_split=asked["train_split"],
        val_split=asked["val_split"],
        through=asked["through"],
        templates=asked["templates"] or ("{}",),
        examples=asked["examples"],
        seed=asked["seed"],
    )
    resampling = Resampling(seed=said.seed)
    binders = feature_binders(binder, said, asked["beside"])
    if asked["targets"]:
        options = FactOptions(asked["folds"], asked["cell_km"], resampling)
        probes = probe_facts_of(binders, said, asked["targets"], options)
    else:
        probes = probe_classes(binders, said, FewShotOptions(shots, asked["draws"], resampling=resampling))
    _write(probes, out)
    _show(probes, as_json)


def _shots(text: str) -> tuple[Any, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if wrong := [word for word in words if word != _ALL and not word.isdecimal()]:
        raise DataError(f"--shots {wrong[0]}: write whole numbers and `all`, such as 1,2,4,8,all")
    # 0 shots are what --through gives; no classifier is fitted.
    return tuple(word if word == _ALL else int(word) for word in dict.fromkeys(words) if word != "0")


def _write(probes: Probes, out: Path | None) -> None:
    if out is None:
        return
    from geobind.report.plots import png, probe_panel
    from geobind.utils.files import write, write_json

    write_json(out / "probes.json", probes.to_dict())
    if probes.curves:
        write(out / "few_shot.png", png([probe_panel(probes)], 1))


def _show(probes: Probes, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(probes.to_dict(), indent=1))
        return
    from rich.console import Console

    from geobind.evaluation import render_probes

    console = Console()
    for grid in render_probes(probes):
        console.print(grid)
