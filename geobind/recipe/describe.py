"""Sentences about the stages of a recipe, its warnings, and the JSON schema for editors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from geobind import plugins
from geobind.data.options import MixedData
from geobind.modality import Modality
from geobind.plugins import Registry
from geobind.recipe.marks import find_stale_pairs
from geobind.recipe.schema import Recipe, Stage, Watch
from geobind.recipe.stage_options import Full, Head, Last, Lora, Part


def recipe_warnings(recipe: Recipe, stage: Stage) -> Iterator[str]:
    """Yield warnings about options that have no effect or another than expected."""
    ranks = _ranks(recipe)
    if stage.accumulate > 1:
        yield f"accumulate: {stage.accumulate} steps to a move add no negatives: {_instead(stage, ranks)}"
        if stage.steps is not None and stage.accumulate > stage.steps:
            yield f"accumulate: {stage.accumulate} exceeds the {stage.steps} steps: the weights move once"
    if isinstance(stage.chunk, int) and not is_chunked(recipe, stage):
        rows, whose = stage.batch_size // (ranks or 1), "a process has" if ranks else "there are"
        yield f"chunk: {stage.chunk} cuts nothing, as {whose} {rows} rows; steps take one pass"

    yield from _describe_stale(recipe, stage)
    if still := _find_unturned(recipe, stage):
        frozen = [name for name in recipe.together_in(stage) if name not in stage.parts]
        yield (
            f"augment.together: mirrors, turns and crops no {_listed(still)}, because this stage does not "
            f"train {_listed(frozen)}, whose embeddings are cached; `cache: off` turns all alike"
        )


def _describe_stale(recipe: Recipe, stage: Stage) -> Iterator[str]:
    """Yield a line for each modality whose training here leaves pairs of earlier stages stale."""
    steps = recipe.steps
    number = len(steps) - len(recipe.stages) + recipe.stages.index(stage)
    parted = [pair for pair, by in find_stale_pairs(steps).items() if by == number]
    for name in stage.parts:
        if others := sorted(other for pair in parted if name in pair for other in pair - {name}):
            yield (
                f"train: {name} moves away from {_listed(others)}, aligned with it before, and leaves their "
                f"pairs stale: align {_listed(others)} here too, or after this stage, or do not train {name}"
            )


def _find_unturned(recipe: Recipe, stage: Stage) -> list[str]:
    """Return the trained modalities that stay unchanged beside a co-registered one that is not augmented."""
    kinds = recipe.geometry_of(stage)
    return [name for name, kind in kinds.items() if kind == "none" and name in stage.parts]


def is_chunked(recipe: Recipe, stage: Stage) -> bool:
    """Return whether a chunk is smaller than a process's share of the batch, as far as is known."""
    if not isinstance(stage.chunk, int):
        return False
    return "batch_size" in stage.auto_options or stage.chunk * (_ranks(recipe) or 1) < stage.batch_size


def _instead(stage: Stage, ranks: int | None) -> str:
    """Return what a row is compared with, and how to compare it with more."""
    if "batch_size" in stage.auto_options:
        return "rows meet those of their own batch alone; a larger `batch_size` with `chunk` adds some"
    larger, chunk = stage.batch_size * stage.accumulate, max(2, stage.batch_size // (ranks or 1))
    if isinstance(stage.chunk, int):
        chunk = min(stage.chunk, chunk)
    queue = getattr(stage.loss, "queue", None)
    more = f" and {queue} that are queued" if queue else ""
    return (
        f"a row meets the {stage.batch_size - 1} others of its batch{more}; `batch_size: {larger}` with "
        f"`chunk: {chunk}` takes as many rows to a move in the same memory, and a row meets {larger - 1}"
    )


def _ranks(recipe: Recipe) -> int | None:
    """Return the number of processes, None where the recipe leaves it open."""
    devices = recipe.fabric.devices
    return devices * recipe.fabric.num_nodes if isinstance(devices, int) else None


def describe_stage(recipe: Recipe, stage: Stage) -> str:
    """Return a sentence about what a stage aligns and trains."""
    anchor = recipe.anchor_of(stage)
    if stage.pairs == "all" and len(stage.aligned) > 1:
        aligned = f"{_listed(recipe.names_of(stage))} with each other"
    else:
        aligned = f"{_listed(stage.aligned)} with {anchor}"
    trained = ", ".join(f"{name}{_how(part)}" for name, part in stage.trained.items())
    return f"align {aligned}, train {trained}"


def describe_unpublished(recipe: Recipe) -> Iterator[str]:
    """Yield a line for each modality of no package, which is not there where a bundle is sent."""
    for name in recipe.modalities:
        plugin = plugins.registry().plugins.get(name)
        if plugin is not None and not plugin.source.published:
            yield (
                f"'{name}' is of {plugin.source}, no installed package: the bundle loads only where that is "
                f"registered; `geobind new modality {name}` begins a package"
            )


def describe_details(recipe: Recipe, stage: Stage) -> Iterator[str]:
    """Yield the details of a stage: pairs, tables, neighbours, two passes, validation."""
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
    if (together := recipe.together_in(stage)) and not _find_unturned(recipe, stage):
        yield f"augment: {_listed(together)} are mirrored, turned and cropped alike"
    if stage.auto_options:
        yield f"{' and '.join(stage.auto_options)}: auto, chosen by what is measured when the run begins"
    if is_chunked(recipe, stage):
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
    if stage.ema_options:
        yield f"ema: ends with the mean of its weights, decay {stage.ema_options.decay:g}"


def stage_facts(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Return the facts of a stage as plain values."""
    return {
        "name": stage.name,
        "anchor": recipe.anchor_of(stage),
        "align": list(stage.aligned),
        "train": stage.parts,
        "pairs": [pair._asdict() for pair in recipe.pairs_of(stage)],
        "data": [source._asdict() for source in _sources(recipe, stage)],
        "warnings": list(recipe_warnings(recipe, stage)),
    }


def _watch(watch: Watch) -> str:
    """Return when and by what a stage is validated, and which weights are kept."""
    kept = "the best weights are kept" if watch.keep == "best" else "the last weights are kept"
    times = "an evaluation" if watch.patience == 1 else f"{watch.patience} evaluations"
    stop = f"; stops after {times} without a gain" if watch.patience else ""
    return f"{watch.measure} on split '{watch.split}' every {watch.every} steps; {kept}{stop}"


def _how(part: Part) -> str:
    """Return the trained part of an encoder, in brackets; empty for all of it."""
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
    own, tables = recipe.stage_sources(stage)
    names = [f"the pairs of {name}" for name in own]
    names += [table.source for table in tables]
    weights = [table.weight if isinstance(table, MixedData) else None for table in tables]
    weights = [1.0] if len(names) == 1 else [*(None for _ in own), *weights]
    total = sum(weight or 0.0 for weight in weights)
    return [_Source(name, weight and weight / total) for name, weight in zip(names, weights, strict=True)]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


Schema = dict[str, Any]
_ENTRY = "#/$defs/ModalityEntry"


def build_editor_schema(registry: Registry[Modality]) -> Schema:
    """Return the JSON schema of recipes, with the options of every installed modality."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    entries: Schema = {}
    for name, plugin in registry.plugins.items():
        own = plugin.cls.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions |= {f"{name}.{model}": part for model, part in own.pop("$defs", {}).items()}
        core = definitions["ModalityEntry"]["properties"]
        own["properties"] = {**own.get("properties", {}), **core}
        own["description"] = f"{plugin.source}. {own.get('description', '')}".strip()
        entries[name] = {"anyOf": [own, {"type": "null"}]}
    schema["properties"]["modalities"] |= {"properties": entries, "additionalProperties": {"$ref": _ENTRY}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "geobind recipe"}


def list_options(cls: type[BaseModel]) -> list[dict[str, Any]]:
    """List a class's options, nested ones too: path, type, default, whether required, help."""
    schema = cls.model_json_schema()
    return list(_options(schema, schema.get("$defs", {}), ()))


def _options(schema: Schema, definitions: Schema, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        yield {
            "path": ".".join((*path, name)),
            "type": _type(field),
            "default": field.get("default"),
            "required": name in required,
            "help": field.get("description", ""),
        }
        for inner in _references(field):
            yield from _options(definitions[inner], definitions, (*path, name))


def _references(field: Schema) -> Iterator[str]:
    for part in (field, *field.get("anyOf", []), *field.get("allOf", [])):
        if "$ref" in part:
            yield part["$ref"].rsplit("/", 1)[-1]


def _type(field: Schema) -> str:
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return " | ".join(_type(part) for part in field["anyOf"])
    if "$ref" in field:
        return field["$ref"].rsplit("/", 1)[-1]
    if field.get("type") == "array":
        inner = field.get("items") or {}
        return f"list of {_type(inner)}" if inner else "list"
    return str(field.get("type", "any"))
