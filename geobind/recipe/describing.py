"""What a stage does, in words for people and as plain values for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from geobind.data.options import MixedData
from geobind.recipe.cautions import cautions, is_cut
from geobind.recipe.parts import Full, Head, Last, Lora, Part
from geobind.recipe.schema import Recipe, Stage
from geobind.recipe.stages import own_pairs
from geobind.recipe.watching import Watch


def sentence(recipe: Recipe, stage: Stage) -> str:
    """Say what a stage aligns, with what, and what it trains."""
    anchor = recipe.anchor_of(stage)
    if stage.pairs == "all" and len(stage.aligned) > 1:
        aligned = f"{_listed(recipe.names_of(stage))} with each other"
    else:
        aligned = f"{_listed(stage.aligned)} with {anchor}"
    trained = ", ".join(f"{name}{_how(part)}" for name, part in stage.trained.items())
    return f"align {aligned}, train {trained}"


def details(recipe: Recipe, stage: Stage) -> Iterator[str]:
    """Say what follows from a stage with several pairs or tables, or with neighbours in its batches."""
    pairs, sources = recipe.pairs_of(stage), _sources(recipe, stage)
    if len(pairs) > 1 or any(pair.weight != 1 for pair in pairs):
        told = (pair.name if pair.weight == 1 else f"{pair.name} (weight {pair.weight:g})" for pair in pairs)
        yield f"pairs: {', '.join(told)}; each has its own temperature"
    if stage.batches:
        least, most = stage.batches.near_km
        yield (
            f"batches: {stage.batches.share:.0%} in groups of up to {stage.batches.together} neighbours, "
            f"{least:g} to {most:g} km from each other"
        )
    if stage.open:
        yield f"{' and '.join(stage.open)}: auto, settled by what fits in memory when the run begins"
    if is_cut(recipe, stage):
        yield f"steps: two passes, {stage.chunk} rows of a process at a time, the gradient of all"
    if stage.accumulate > 1:
        yield f"steps: every {stage.accumulate} move the weights once, by their mean gradient"
    if len(sources) > 1:
        told = (name + (f" {share:.0%}" if share else "") for name, share in sources)
        how = "each batch from one of them" if stage.mix == "batches" else "each batch from all of them"
        much = "" if sources[0].share else ", in proportion to their rows"
        yield f"data: {', '.join(told)}; {how}{much}"
    if stage.watch:
        yield f"watch: {_watch(stage.watch)}"
    if stage.average:
        yield f"ema: ends with the mean of its weights, decay {stage.average.decay:g}"


def facts(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """What follows from a stage, as plain values."""
    return {
        "name": stage.name,
        "anchor": recipe.anchor_of(stage),
        "align": list(stage.aligned),
        "train": stage.parts,
        "pairs": [pair._asdict() for pair in recipe.pairs_of(stage)],
        "data": [source._asdict() for source in _sources(recipe, stage)],
        "warnings": list(cautions(recipe, stage)),
    }


def _watch(watch: Watch) -> str:
    """Say when a stage is evaluated, by what, and what follows."""
    kept = "the best weights are kept" if watch.keep == "best" else "the last weights are kept"
    times = "an evaluation" if watch.patience == 1 else f"{watch.patience} evaluations"
    stop = f"; stops after {times} without a gain" if watch.patience else ""
    return f"{watch.measure} on split '{watch.split}' every {watch.every} steps; {kept}{stop}"


def _how(part: Part) -> str:
    """Say what is trained of an encoder, in brackets, if it is not plainly all of it."""
    said: list[str] = []
    if isinstance(part, Head):
        said.append("head")
    elif isinstance(part, Lora):
        said.append(f"lora of rank {part.rank}")
    elif isinstance(part, Last):
        said.append(f"last {part.blocks} blocks" if part.blocks > 1 else "last block")
    if isinstance(part, Full | Last) and part.layer_decay < 1:
        said.append(f"layer decay {part.layer_decay:g}")
    return f" ({', '.join(said)})" if said else ""


class _Source(NamedTuple):
    table: str
    share: float | None  # of the rows drawn; None where that depends on how many rows there are


def _sources(recipe: Recipe, stage: Stage) -> list[_Source]:
    own = own_pairs(stage, recipe.built)
    others = [name for name in stage.aligned if name not in own]
    tables = recipe.tables_of(stage, others) if others else ()
    names = [f"the pairs of {name}" for name in own]
    names += ["toyearth" if table.manifest is None else table.manifest.name for table in tables]
    weights = [table.weight if isinstance(table, MixedData) else None for table in tables]
    weights = [1.0] if len(names) == 1 else [*(None for _ in own), *weights]
    total = sum(weight or 0.0 for weight in weights)
    return [_Source(name, weight and weight / total) for name, weight in zip(names, weights, strict=True)]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
