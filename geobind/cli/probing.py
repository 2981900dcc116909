"""Probing for `geobind probe`: embed the rows that are asked for, and measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from geobind.cli.probe_rows import Source, embedded, exemplified, facts_of, prompted, reads_sentences
from geobind.errors import DataError

if TYPE_CHECKING:
    from geobind.binder import Binder
    from geobind.evaluation import FactOptions, FewShotOptions, Probes, Prototypes


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
