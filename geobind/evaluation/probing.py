"""Probes of one modality: zero-shot and few-shot recognition, and numbers read off embeddings."""

# N rows, T facts

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from geobind.binder import Binder
from geobind.bundles.bundle import make_unknown_modality_error
from geobind.data.numbers import find_number_columns, read_number_columns
from geobind.data.options import DataOptions
from geobind.data.table import Table, open_table
from geobind.errors import DataError, GeobindError
from geobind.evaluation.classification import Prototypes, build_prototypes, build_query_classes, zero_shot
from geobind.evaluation.embedded import embed_rows
from geobind.evaluation.few_shot_curves import (
    FewShotOptions,
    LabelledEmbeddings,
    ProbeResults,
    build_random_trunk,
    build_trunk,
    few_shot,
)
from geobind.evaluation.held_out import take_first_rows
from geobind.evaluation.regression_probe import FactOptions, probe_facts
from geobind.evaluation.split_leakage import choose_clusters
from geobind.inference import list_class_examples
from geobind.recipe import load_recipe
from geobind.utils.hashing import derive_seed


class ProbeSource(NamedTuple):
    """A table to probe, limited to its first rows."""

    options: DataOptions
    limit: int | None

    def table(self, split: str, *names: str) -> Table:
        """Open the rows of a split with these columns; a limit takes the first."""
        table = open_table(self.options.narrow(names), Path.cwd(), names)
        return take_first_rows(table.split(split), self.limit)

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


def embed_labelled(binder: Binder, table: Table, name: str) -> LabelledEmbeddings:
    """Embed rows that all have the modality and a label."""
    clusters = choose_clusters(table, None).of_rows
    return LabelledEmbeddings(embed_rows(binder, table)[name].embedding_QD, table.labels, clusters)


def accepts_sentences(binder: Binder, name: str) -> bool:
    """Return whether a modality takes a sentence as input; such a modality describes classes by prompts."""
    try:
        binder.modality(name).prepare("a place")
    except GeobindError:  # nor is it a file name
        return False
    return True


def prototypes_from_prompts(
    binder: Binder, name: str, classes: Sequence[str], templates: Sequence[str]
) -> Prototypes:
    """Build class prototypes from prompts: names in every template, with `_` read as a space."""
    examples = list_class_examples([label.replace("_", " ") for label in classes], templates)
    return build_prototypes(
        {label: binder.embed(name, of) for label, of in zip(classes, examples, strict=True)}
    )


def prototypes_from_examples(
    binder: Binder, table: Table, name: str, classes: Sequence[str], max_examples: int, seed: int
) -> Prototypes:
    """Build class prototypes from example rows: at most `max_examples` of each class, drawn by the seed.

    Raises:
        DataError: A class has no row with the modality.
    """
    labels = np.array(table.labels, dtype=object)
    chosen: dict[str, list[int]] = {}
    for label in classes:
        random = np.random.default_rng(derive_seed(seed, "examples", name, label))
        chosen[label] = random.permutation(np.flatnonzero(labels == label))[:max_examples].tolist()
        if not chosen[label]:
            raise DataError(
                f"{table.name}: no row of split '{table.view}' shows class '{label}' in '{name}'; describe "
                "the classes through another modality (--through)"
            )
    rows = [row for of in chosen.values() for row in of]
    embedding_ND = embed_rows(binder, table.take(rows))[name].embedding_QD
    ends = np.cumsum([len(of) for of in chosen.values()])[:-1].tolist()
    parts = np.split(np.arange(len(rows)), ends)
    return build_prototypes({label: embedding_ND[part] for label, part in zip(classes, parts, strict=True)})


def read_targets(
    source: ProbeSource, split: str, name: str, targets: Sequence[str]
) -> tuple[Table, Mapping[str, Any]]:
    """Open the rows that have a modality, and read the target columns.

    Where a dataset has columns of vectors of named facts, as toy Earth has, a target is the name of a fact,
    or that of a column for all of its facts.

    Raises:
        DataError: A target is no column, or a cell is no number.
    """
    columns = find_number_columns(source.options, targets)
    table = source.table(split, name, *columns)
    table = table.take(table.rows_with([name]))
    return table, read_number_columns(table, source.options, targets)


class ProbeRequest(NamedTuple):
    """A request to probe one modality: rows, splits, class descriptions and seed."""

    source: ProbeSource
    modality: str
    split: str
    train_split: str
    val_split: str | None
    through: tuple[str, ...]
    templates: tuple[str, ...]
    examples: int
    seed: int


def build_feature_binders(
    binder: Binder, request: ProbeRequest, beside: tuple[str, ...]
) -> dict[str, Binder]:
    """Build the binders to probe, by their names in tables: the embeddings, then other features."""
    name = request.modality
    binders: dict[str, Binder] = {name: binder}
    for word in dict.fromkeys(beside):
        if word == "trunk":
            binders["its trunk"] = build_trunk(binder, name)
        elif word == "random":
            binders["random trunk"] = build_random_trunk(binder, name, request.seed).to(binder.device)
        else:
            recipe = load_recipe(word)
            if name not in recipe.built:
                raise DataError(f"--beside {word}: that recipe has no modality '{name}'")
            fresh = Binder({name: recipe.built[name]}, recipe.width, seed=recipe.seed)
            binders[f"trunk of {recipe.name}, untrained"] = build_trunk(fresh, name).to(binder.device)
    for each in binders.values():
        each.precision, each.runtime, each.workers = binder.precision, binder.runtime, binder.workers
    return binders


def check_modalities(known: Collection[str], names: Iterable[str]) -> None:
    """Check that a bundle has the modalities to probe.

    Raises:
        PluginError: It lacks one.
    """
    for name in names:
        if name not in known:
            raise make_unknown_modality_error(name, known)


def check_classes(request: ProbeRequest, shots: Sequence[Any]) -> None:
    """Check, before a bundle is loaded, that rows allow the recognition asked for.

    Raises:
        DataError: Nothing is asked for, rows or labels are missing, or a class has no training row.
    """
    if not shots and not request.through:
        raise DataError("nothing to measure: --shots 0 fits no classifier; describe the classes by --through")
    test = request.source.labelled(request.split, request.modality)
    if not shots:
        return
    train = request.source.labelled(request.train_split, request.modality)
    known = {label for label in train.labels or () if label is not None}
    absent = sorted({str(label) for label in test.labels or () if label is not None and label not in known})
    if absent:
        raise DataError(
            f"{test.name}: rows of split '{request.split}' are of {', '.join(absent[:5])}, of which split "
            f"'{request.train_split}' has no row with '{request.modality}'; leave them out, or ask for "
            "`--shots 0` alone"
        )
    if request.val_split:
        request.source.labelled(request.val_split, request.modality)


def probe_classes(
    binders: Mapping[str, Binder], request: ProbeRequest, options: FewShotOptions
) -> ProbeResults:
    """Measure zero-shot and few-shot recognition, from embeddings and from other features."""
    source, name = request.source, request.modality
    test = source.labelled(request.split, name)
    train = source.labelled(request.train_split, name) if options.shots else None
    val = source.labelled(request.val_split, name) if request.val_split and options.shots else None
    known = (*(test.labels or ()), *((train.labels if train else None) or ()))
    classes = sorted({label for label in known if label is not None})
    truth = build_query_classes(test.labels, classes, len(test))
    binder = binders[name]
    queries = embed_labelled(binder, test, name)
    zero = {
        word: zero_shot(
            queries.embeddings, queries.labels, described, groups=queries.groups, options=options.resampling
        )
        for word, described in (
            (word, _described(binder, request, word, classes)) for word in request.through
        )
    }
    curves: dict[str, Any] = {}
    for features, of in binders.items():
        if train is None:
            break
        sides = embed_labelled(of, train, name), queries if of is binder else embed_labelled(of, test, name)
        validation = embed_labelled(of, val, name) if val else None
        curves[features] = few_shot(*sides, validation=validation, options=options)
    settings = {"train_split": request.train_split, "val_split": request.val_split, "draws": options.draws}
    settings |= {"clusters": choose_clusters(test, None).note}
    settings |= {"templates": list(request.templates), "examples": request.examples, "seed": request.seed}
    return ProbeResults(
        name,
        test.name,
        request.split,
        "classes",
        truth.classes,
        len(test),
        truth.majority,
        zero,
        curves,
        settings=settings,
    )


def _described(binder: Binder, request: ProbeRequest, through: str, classes: list[str]) -> Prototypes:
    binder.modality(through)
    if accepts_sentences(binder, through):
        return prototypes_from_prompts(binder, through, classes, request.templates)
    table = request.source.labelled(request.train_split, through)
    return prototypes_from_examples(binder, table, through, classes, request.examples, request.seed)


def probe_targets(
    binders: Mapping[str, Binder],
    request: ProbeRequest,
    targets: tuple[str, ...],
    options: FactOptions,
) -> ProbeResults:
    """Measure how well numbers of places can be read from embeddings and from other features."""
    table, facts = read_targets(request.source, request.split, request.modality, targets)
    places = table.places_LL
    if places is not None and not np.isfinite(places).all():
        raise DataError(
            f"{table.name}: some rows have no lat and lon, by which folds are cut; fill them or drop the rows"
        )
    # Without places, rows of a group share a fold.
    blocks = None if places is not None else table.groups
    probes = {
        features: probe_facts(
            embed_rows(of, table)[request.modality].embedding_QD,
            facts,
            places=places,
            blocks=blocks,
            options=options,
        )
        for features, of in binders.items()
    }
    settings: dict[str, Any] = {"folds": options.folds, "cell_km": options.cell_km, "seed": request.seed}
    settings["blocks"] = "cells" if places is not None else "rows" if blocks is None else "groups"
    return ProbeResults(request.modality, table.name, request.split, "facts", facts=probes, settings=settings)
