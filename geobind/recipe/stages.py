"""What is wrong with one stage that no field of it can tell alone: names, pairs, weights, rows, roles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from geobind.data.options import MixedData
from geobind.errors import did_you_mean
from geobind.modality import Modality
from geobind.recipe.pairs import bound_pairs, pair_words
from geobind.recipe.reading import Path_
from geobind.recipe.schema import Recipe, Stage

Faults = Iterator[tuple[Path_, str]]  # where inside the stage, and what to do about it


def stage_faults(recipe: Recipe, stage: Stage, built: Mapping[str, Modality]) -> Faults:
    """List what is wrong with a stage."""
    if stage.anchor is not None and stage.anchor not in recipe.modalities:
        yield ("anchor",), unknown(stage.anchor, recipe.modalities)
    yield from _aligned(recipe, stage)
    if all(name in recipe.modalities for name in stage.aligned):
        yield from _rows(recipe, stage, built)
    if (stage.epochs is None) == (stage.steps is None):
        yield (), "say how long: give either `epochs` or `steps`"
    if not stage.parts:
        yield ("train",), "nothing to train: name an encoder"
    for name in stage.parts:
        yield from _trained(recipe, stage, name, built)
    yield from _pairs(recipe, stage)
    yield from _queue(recipe, stage)
    if isinstance(recipe.fabric.devices, int):
        ranks = recipe.fabric.devices * recipe.fabric.num_nodes
        if "batch_size" not in stage.open and (ranks < 1 or stage.batch_size % ranks):
            yield ("batch_size",), f"{stage.batch_size} pairs do not divide among {ranks} devices"


def unknown(name: str, known: Iterable[str]) -> str:
    """Say that a recipe has no such modality, and which was probably meant."""
    names = sorted(known)
    hint = did_you_mean(name, names, f"the recipe has {', '.join(names)}")
    return f"no modality {name!r} under `modalities`; {hint}"


def own_pairs(stage: Stage, built: Mapping[str, Modality]) -> list[str]:
    """The aligned modalities whose plugin brings pairs of its own."""
    return [name for name in stage.aligned if name in built and _brings_pairs(built[name])]


def _aligned(recipe: Recipe, stage: Stage) -> Faults:
    anchor = recipe.anchor_of(stage)
    if not stage.aligned:
        yield ("align",), "nothing to align: name a modality"
    for number, name in enumerate(stage.aligned):
        path: Path_ = ("align",) if isinstance(stage.align, str) else ("align", number)
        if name not in recipe.modalities:
            yield path, unknown(name, recipe.modalities)
        elif name == anchor:
            yield path, f"{anchor!r} is this stage's anchor: a modality is not aligned with itself"
        elif name in stage.aligned[:number]:
            yield path, f"{name!r} is there already; keep one"


def _rows(recipe: Recipe, stage: Stage, built: Mapping[str, Modality]) -> Faults:
    own = own_pairs(stage, built)
    others = [name for name in stage.aligned if name not in own]
    tables = recipe.tables_of(stage, others) if others else ()
    for name in stage.aligned:
        table = stage.data is not None or recipe.modalities[name].data or recipe.data
        if name not in own and name != recipe.anchor_of(stage) and not table:
            yield (), f"has no rows: give `data` to the stage, to {name!r}, or to the whole recipe"
    if stage.data == ():
        yield ("data",), "no table to draw from: name one"
    weighted = [isinstance(table, MixedData) and table.weight is not None for table in tables]
    if any(weighted) and not all(weighted):
        absent = weighted.index(False)
        yield ("data", absent), "has no `weight`, but another table has; give one to all of them or to none"
    elif any(weighted) and own:
        yield ("data",), f"{own[0]!r} brings its own pairs, which have no weight; give the tables none either"
    if stage.mix == "rows" and len(own) + len(tables) == 1:
        yield ("mix",), "there is one table, so that nothing is mixed; name several in `data`, or drop this"


def _trained(recipe: Recipe, stage: Stage, name: str, built: Mapping[str, Modality]) -> Faults:
    if name not in recipe.modalities:
        yield ("train",), unknown(name, recipe.modalities)
    elif name not in recipe.names_of(stage):
        yield ("train",), f"{name!r} takes no part in this stage, so no gradient reaches it"
    elif name in built and recipe.role(name) == "frozen":
        yield (
            ("train",),
            f"{name!r} is frozen by its plugin; to train it on purpose write `{name}: {{role: trainable}}`",
        )


def _pairs(recipe: Recipe, stage: Stage) -> Faults:
    anchor, pairs = recipe.anchor_of(stage), recipe.pairs_of(stage)
    if stage.parts and set(stage.parts) <= set(recipe.names_of(stage)):
        for pair in pairs:
            if not pair.both & set(stage.parts):
                fix = f"train one of the two, or do not align {pair.other!r}"
                yield ("train",), f"nothing to train in {pair.name!r}: {fix}"
    named: dict[str, str] = {}  # pair: the word that it was called by
    called = {word: pair.name for pair in pairs for word in pair_words(pair.anchor, pair.other, anchor)}
    for word in stage.weights:
        pair = called.get(word)
        if pair is None:
            yield ("weights", word), _no_pair(recipe, stage, word)
        elif pair in named:
            yield ("weights", word), f"is the pair that {named[pair]!r} gives a weight to; keep one"
        else:
            named[pair] = word


def _queue(recipe: Recipe, stage: Stage) -> Faults:
    queued = {pair.other for pair in recipe.pairs_of(stage)} if getattr(stage.loss, "queue", None) else set()
    for name in sorted(queued & set(stage.parts)):
        fix = "do not train it here, or drop the queue"
        yield ("loss", "queue"), f"{name!r} is in training, so its queued embeddings would be stale; {fix}"


def _no_pair(recipe: Recipe, stage: Stage, word: str) -> str:
    anchor, pairs = recipe.anchor_of(stage), recipe.pairs_of(stage)
    every = bound_pairs(anchor, stage.aligned, "all", recipe.names_of(stage))
    if any(word in pair_words(pair.anchor, pair.other, anchor) for pair in every):
        if stage.pairs == "all":
            return f"{word!r} is not compared, as neither of the two is trained; drop its weight"
        return f"{word!r} is not compared: this stage compares with {anchor!r} alone, unless `pairs: all`"
    words = [pair.other if pair.anchor == anchor else pair.name for pair in pairs]
    hint = did_you_mean(word, words, f"it has {', '.join(words)}")
    return f"no pair {word!r} in this stage; {hint}"


def _brings_pairs(modality: Modality) -> bool:
    return type(modality).pairs is not Modality.pairs
