"""Checks across the fields of a recipe, and the tables and columns that its stages read."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from geobind import loggers
from geobind.data.dataset import Dataset
from geobind.data.options import DataOptions, MixedData
from geobind.errors import DataError, PluginError, did_you_mean
from geobind.extras import INSTALL, find_missing, is_installed
from geobind.modality import Modality
from geobind.plugins import Registry
from geobind.pretrained import find_faults
from geobind.recipe.embedding_sum import parse_sum
from geobind.recipe.parsing import (
    KeyPath,
    ParsedYaml,
    Problem,
    explain_field_errors,
    iterate_strings,
    to_key_path,
)
from geobind.recipe.schema import (
    ModalityEntry,
    Recipe,
    Stage,
    build_pairs,
    find_pair,
    find_pair_providers,
    pair_aliases,
)
from geobind.recipe.stage_options import CachedViews, Lora

Faults = Iterator[tuple[KeyPath, str]]  # key path inside the stage, and message with the fix


def find_stage_faults(recipe: Recipe, stage: Stage, built: Mapping[str, Modality]) -> Faults:
    """Yield the mistakes of a stage."""
    if stage.anchor is not None and stage.anchor not in recipe.modalities:
        yield ("anchor",), explain_unknown(stage.anchor, recipe.modalities)
    yield from _aligned(recipe, stage)
    if all(name in recipe.modalities for name in stage.aligned):
        yield from _rows(recipe, stage, built)
    if (stage.epochs is None) == (stage.steps is None):
        yield (), "give either `epochs` or `steps`"
    if not stage.parts:
        yield ("train",), "nothing to train: name an encoder"
    for name in stage.parts:
        yield from _trained(recipe, stage, name, built)
    yield from _pairs(recipe, stage)
    yield from _queue(recipe, stage)
    yield from _views(recipe, stage)
    if isinstance(recipe.fabric.devices, int):
        ranks = recipe.fabric.devices * recipe.fabric.num_nodes
        if "batch_size" not in stage.auto_options and (ranks < 1 or stage.batch_size % ranks):
            yield ("batch_size",), f"{stage.batch_size} pairs do not divide among {ranks} devices"


def explain_unknown(name: str, known: Iterable[str]) -> str:
    """Return the message about an unknown modality, with the name that may be meant."""
    names = sorted(known)
    hint = did_you_mean(name, names, f"the recipe has {', '.join(names)}")
    return f"no modality {name!r} under `modalities`; {hint}"


def _aligned(recipe: Recipe, stage: Stage) -> Faults:
    anchor = recipe.anchor_of(stage)
    if not stage.aligned:
        yield ("align",), "nothing to align: name a modality"
    for number, name in enumerate(stage.aligned):
        path: KeyPath = ("align",) if isinstance(stage.align, str) else ("align", number)
        if name not in recipe.modalities:
            yield path, explain_unknown(name, recipe.modalities)
        elif name == anchor:
            yield path, f"{anchor!r} is this stage's anchor: a modality is not aligned with itself"
        elif name in stage.aligned[:number]:
            yield path, f"{name!r} is there already; keep one"


def _rows(recipe: Recipe, stage: Stage, built: Mapping[str, Modality]) -> Faults:
    own, tables = recipe.stage_sources(stage, find_pair_providers(built))
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
        yield ("train",), explain_unknown(name, recipe.modalities)
    elif name not in recipe.names_of(stage):
        yield ("train",), f"{name!r} takes no part in this stage, so no gradient reaches it"
    elif name in built and recipe.role(name) == "frozen":
        taken = recipe.base_bundle is not None and name in recipe.base_bundle.modalities
        why = "comes from the base bundle, and stays as it is" if taken else "is frozen by its plugin"
        yield ("train",), f"{name!r} {why}; to train it on purpose write `{name}: {{role: trainable}}`"


def _pairs(recipe: Recipe, stage: Stage) -> Faults:
    anchor, pairs = recipe.anchor_of(stage), recipe.pairs_of(stage)
    if stage.parts and set(stage.parts) <= set(recipe.names_of(stage)):
        for pair in pairs:
            if not pair.both & set(stage.parts):
                fix = f"train one of the two, or do not align {pair.other!r}"
                yield ("train",), f"nothing to train in {pair.name!r}: {fix}"
    named: dict[str, str] = {}  # pair: the word that it was called by
    called = {word: pair.name for pair in pairs for word in pair_aliases(pair.anchor, pair.other, anchor)}
    for word in stage.weights:
        pair = called.get(word)
        if pair is None:
            yield ("weights", word), _no_pair(recipe, stage, word)
        elif pair in named:
            yield ("weights", word), f"is the pair that {named[pair]!r} gives a weight to; keep one"
        else:
            named[pair] = word


def _views(recipe: Recipe, stage: Stage) -> Faults:
    if isinstance(stage.cache, CachedViews) and (together := recipe.together_in(stage)):
        yield (
            ("cache",),
            f"views are drawn one by one, so that {' and '.join(together)} would not be turned alike; write "
            "`cache: auto`, or take them out of `augment.together`",
        )


_GEOMETRY = ("hflip", "vflip", "rotations", "random_resized_crop")


def find_augment_faults(recipe: Recipe, built: Mapping[str, Modality]) -> Faults:
    """Yield the mistakes of the `augment` section."""
    path, together = ("augment", "together"), recipe.augment.together
    if len(together) == 1:
        yield path, "names one modality, which has nothing to be turned alike with; name two or drop it"
    drawn: dict[str, dict[str, Any]] = {}  # what each draws
    for number, name in enumerate(together):
        if name not in recipe.modalities:
            yield (*path, number), explain_unknown(name, recipe.modalities)
        elif name in together[:number]:
            yield (*path, number), f"{name!r} is there already; keep one"
        elif name in built:
            augment = getattr(built[name], "augment", None)
            if isinstance(augment, BaseModel) and "hflip" in type(augment).model_fields:
                drawn[name] = {option: getattr(augment, option, False) for option in _GEOMETRY}
            else:
                yield (
                    (*path, number),
                    f"{name!r} cannot be turned alike with others: its plugin has no option `augment` of "
                    "geobind's images (TileAugment or PhotoAugment)",
                )
    first = next(iter(drawn), "")
    for name, options in drawn.items():
        if differing := [option for option in options if options[option] != drawn[first][option]]:
            told = ", ".join(f"{option} {options[option]} and {drawn[first][option]}" for option in differing)
            yield (
                (*path, together.index(name)),
                f"{name!r} and {first!r} are to be turned alike, but their `augment` differs ({told}); give "
                "both the same",
            )


def _queue(recipe: Recipe, stage: Stage) -> Faults:
    queued = {pair.other for pair in recipe.pairs_of(stage)} if getattr(stage.loss, "queue", None) else set()
    for name in sorted(queued & set(stage.parts)):
        fix = "do not train it here, or drop the queue"
        yield ("loss", "queue"), f"{name!r} is in training, so its queued embeddings would be stale; {fix}"


def _no_pair(recipe: Recipe, stage: Stage, word: str) -> str:
    anchor, pairs = recipe.anchor_of(stage), recipe.pairs_of(stage)
    every = build_pairs(anchor, stage.aligned, "all", recipe.names_of(stage))
    if any(word in pair_aliases(pair.anchor, pair.other, anchor) for pair in every):
        if stage.pairs == "all":
            return f"{word!r} is not compared, as neither of the two is trained; drop its weight"
        return f"{word!r} is not compared: this stage compares with {anchor!r} alone, unless `pairs: all`"
    words = [pair.other if pair.anchor == anchor else pair.name for pair in pairs]
    hint = did_you_mean(word, words, f"it has {', '.join(words)}")
    return f"no pair {word!r} in this stage; {hint}"


_WITH_HEADER = (".csv", ".tsv", ".parquet", ".geoparquet", "")  # a row of JSONL need not name all columns
Fault = tuple[KeyPath, str]  # where in the recipe, and what to do about it
_CLUSTERS = {None: (), "row": (), "cell": ("lat", "lon"), "group": ("group",)}


def find_column_faults(recipe: Recipe, blocks: Iterable[tuple[KeyPath, DataOptions]]) -> Iterator[Fault]:
    """Yield the columns that a recipe needs and a manifest lacks, according to its header.

    Manifests that are missing or unreadable are reported elsewhere.

    Args:
        recipe: The recipe.
        blocks: Every `data` block of it, with its path.
    """
    for path, table in blocks:
        yield from _mapped(recipe, path, table)
    for number, stage in enumerate(recipe.stages):
        tables = recipe.stage_sources(stage).tables
        for at, columns in _asked(stage).items():
            yield from _needed(recipe, ("stages", number, *at), columns, tables)
        if stage.watch and stage.watch.by == "label":
            held = tables if stage.watch.data is None else (stage.watch.data,)
            yield from _needed(recipe, ("stages", number, "watch", "by"), ("label",), held)
    evaluate = recipe.evaluate
    measured = recipe.evaluation_data
    if evaluate and measured:
        asked = {"by": ("label",) if evaluate.by == "label" else (), "clusters": _CLUSTERS[evaluate.clusters]}
        for word, columns in asked.items():
            yield from _needed(recipe, ("evaluate", word), columns, (measured,))


def _mapped(recipe: Recipe, path: KeyPath, table: DataOptions) -> Iterator[Fault]:
    """Yield the mapped columns that a manifest lacks."""
    there = _columns_of(recipe, table)
    if not there or table.manifest is None:
        return
    from geobind.data.cells import PLACE_COLUMNS
    from geobind.data.manifest import list_absent
    from geobind.data.readers.files import join_names

    for name, choice in table.columns.items():
        if not (name in recipe.modalities or name in PLACE_COLUMNS):
            continue
        for column in list_absent(choice, there):
            hint = did_you_mean(column, there, f"its columns: {join_names(there)}")
            yield (*path, "columns", name), f"{table.manifest.name} has no column '{column}'; {hint}"


def _needed(
    recipe: Recipe, path: KeyPath, columns: Sequence[str], tables: Iterable[DataOptions]
) -> Iterator[Fault]:
    """Yield the tables without a column that an option needs; `_mapped` reports mapped ones."""
    for table in tables if columns else ():
        there = _columns_of(recipe, table)
        absent = [name for name in columns if there and name not in there and name not in table.columns]
        if absent and table.manifest is not None:
            named = " and ".join(f"`{name}`" for name in absent)
            message = (
                f"needs {named} of every row, but {table.manifest.name} has no such column; add it, "
                f"or map another with `columns: {{{absent[0]}: COLUMN}}`"
            )
            yield path, message


def _asked(stage: Stage) -> dict[KeyPath, tuple[str, ...]]:
    """Return the columns that a stage needs, by the option that needs them."""
    loss, place = stage.loss, ("lat", "lon")
    asked = {
        ("batches",): place if stage.batches else (),
        ("loss", "positives"): ("label",) if loss.positives == "label" else (),
        ("loss", "same_within_m"): place if loss.same_within_m else (),
        ("loss", "ignore_within_m"): place if loss.ignore_within_m else (),
        ("loss", "ignore_within_hours"): (*place, "time") if loss.needs_times else (),
    }
    return {at: columns for at, columns in asked.items() if columns}


def _columns_of(recipe: Recipe, table: DataOptions) -> list[str]:
    """Return the columns of a manifest; none where they are unknown without reading all of it."""
    if table.manifest is None or table.manifest.suffix.lower() not in _WITH_HEADER:
        return []
    from geobind.data.manifest import list_manifest_columns

    try:
        return list_manifest_columns(recipe.base / table.manifest)
    except (DataError, OSError):
        return []


def find_evaluation_faults(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Yield the mistakes of the `evaluate` and `card` sections."""
    yield from (
        (("card", "weights", name), explain_unknown(name, recipe.modalities)) for name in _strangers(recipe)
    )
    evaluate = recipe.evaluate
    if evaluate is None:
        return
    data = recipe.evaluation_data
    if data is None:
        yield ("evaluate",), "has no rows: give `data` here or for the whole recipe"
    for number, text in enumerate(evaluate.sums):
        try:
            parse_sum(text, recipe.modalities)
        except DataError as error:
            yield ("evaluate", "sums", number), str(error)
    for number, text in enumerate(evaluate.direct):
        if fault := _find_direct_fault(recipe, text):
            yield ("evaluate", "direct", number), fault
    for name, question in evaluate.questions.items():
        at = ("evaluate", "questions", name)
        if question.through not in recipe.modalities:
            yield (*at, "through"), explain_unknown(question.through, recipe.modalities)
        for number, modality in enumerate(question.modalities):
            if modality not in recipe.modalities:
                yield (*at, "modalities", number), explain_unknown(modality, recipe.modalities)
        if data is not None and (fault := _find_number_fault(recipe, data, question.truth)):
            yield (*at, "truth"), fault
    for stage in recipe.stages:
        known = all(name in recipe.modalities for name in stage.aligned)
        if stage.split == evaluate.calibrate and known and data in recipe.tables_of(stage):
            message = f"stage {stage.name!r} trains on split {stage.split!r}: name rows that none does"
            yield ("evaluate", "calibrate"), message
    trained_on = [table for stage in recipe.stages for table in _tables(recipe, stage)]
    if (
        recipe.fuse
        and data is not None
        and recipe.fuse.split == evaluate.split
        and _facts(data) in trained_on
    ):
        message = f"`evaluate` measures on split {evaluate.split!r}: name other rows, such as train"
        yield ("fuse", "split"), message


def _find_direct_fault(recipe: Recipe, text: str) -> str | None:
    """Return why a pair cannot be trained on its own as an upper bound; None where it can."""
    pair = find_pair(text, recipe.modalities)
    if pair is None:
        there = ", ".join(recipe.modalities)
        return f"'{text}' is no pair of modalities; write ONE-TWO with two of {there}"
    if recipe.marks.get(frozenset(pair)) == "trained":
        return f"a stage compares {pair[0]} and {pair[1]} already; name an emergent pair"
    if not any(set(pair) & set(stage.parts) for stage in recipe.stages):
        return f"no stage trains {pair[0]} or {pair[1]}, so there is nothing to train on the pair itself"
    return None


def _find_number_fault(recipe: Recipe, data: DataOptions, name: str) -> str | None:
    """Return why a table has no numbers called so, as far as its header tells; None: it may have them."""
    from geobind.data.numbers import find_number_columns

    try:
        columns = find_number_columns(data, [name])
    except DataError as error:
        return str(error)
    there = _columns_of(recipe, data)
    if not there or name in there or name in data.columns or data.manifest is None:
        return None
    return f"{data.manifest.name} has no column '{columns[0]}'; {did_you_mean(name, there, 'add it')}"


def _strangers(recipe: Recipe) -> list[str]:
    return [name for name in recipe.card.weights if name not in recipe.modalities]


def find_watch_faults(recipe: Recipe, stage: Stage) -> Faults:
    """Yield the mistakes of a stage's `watch` section."""
    watch, evaluate = stage.watch, recipe.evaluate
    if watch is None or not all(name in recipe.modalities for name in stage.aligned):
        return
    mine = _tables(recipe, stage, watch.data)
    for other in recipe.stages:
        known = all(name in recipe.modalities for name in other.aligned)
        if known and other.split == watch.split and any(t in mine for t in _tables(recipe, other)):
            whose = "this stage trains" if other is stage else f"stage {other.name!r} trains"
            yield ("watch", "split"), f"{whose} on split {watch.split!r}: name rows that none does"
            break
    chosen = watch.keep == "best" or watch.patience is not None
    measured = recipe.evaluation_data
    if evaluate and chosen and evaluate.split == watch.split and measured and _facts(measured) in mine:
        yield (
            ("watch", "split"),
            f"`evaluate` measures on split {watch.split!r} too: what is chosen on the rows that it is "
            "measured on looks better than it is; name a validation split",
        )


def find_logger_faults(recipe: Recipe) -> Faults:
    """Yield the loggers that cannot be used, and why."""
    for number, said in enumerate(recipe.loggers):
        try:
            loggers.build_logger(*split_logger_entry(said))
        except PluginError as error:
            yield ("loggers", number), str(error)


def split_logger_entry(said: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the options of a logger entry."""
    return (said, {}) if isinstance(said, str) else (said.name, dict(said.model_extra or {}))


def _tables(recipe: Recipe, stage: Stage, other: DataOptions | None = None) -> list[dict[str, Any]]:
    """Return the sources of a stage's rows as plain values: tables, and modalities with their own pairs."""
    if other is not None:
        return [_facts(other)]
    own, tables = recipe.stage_sources(stage)
    return [{"pairs of": name} for name in own] + [_facts(table) for table in tables]


def _facts(table: DataOptions) -> dict[str, Any]:
    return table.model_dump(mode="json", exclude={"weight"})


# Stand-ins for wrong values of required fields, so that the rest can be checked.
_STAND_INS: dict[str | int, Any] = {"name": "unnamed", "batch_size": 2, "period": 1, "blocks": 1}


def check_fields(written: ParsedYaml) -> tuple[Recipe | None, list[Problem], set[int]]:
    """Check keys, types and limits.

    Returns:
        The recipe without the wrong values, so that later checks can run (None when nothing is left); the
        mistakes; and the numbers of the stages with mistakes.
    """
    try:
        return Recipe.model_validate(written.values), [], set()
    except ValidationError as error:
        problems = list(explain_field_errors(written, error, (), Recipe))
        faults = [to_key_path(written.values, item["loc"]) for item in error.errors()]
    marred = {int(path[1]) for path in faults if len(path) > 1 and path[0] == "stages"}
    try:
        return Recipe.model_validate(_without(written.values, faults)), problems, marred
    except ValidationError:
        return None, problems, marred


def _without(values: dict[str, Any], paths: Iterable[KeyPath]) -> dict[str, Any]:
    pruned, faulty = copy.deepcopy(values), dict.fromkeys(paths)
    # With a value all in it goes; of a list the last item goes first, so that the others keep their numbers.
    for path in [path for path in reversed(faulty) if not any(path[:n] in faulty for n in range(len(path)))]:
        node: Any = pruned
        for word in path[:-1]:
            node = node[word]
        if isinstance(node, dict) and path:
            node.pop(path[-1], None)
            if path[-1] in _STAND_INS:
                node[path[-1]] = _STAND_INS[path[-1]]
            elif path[-2:-1] == ("train",):
                node[path[-1]] = "full"  # it is to be trained, if it is not clear how
        elif isinstance(node, list):
            cast(list[Any], node).pop(int(path[-1]))
    return pruned


def check_modalities(
    written: ParsedYaml, registry: Registry[Modality], base: Path, taken: Mapping[str, Modality]
) -> tuple[dict[str, Modality], list[Problem]]:
    """Construct each modality of the recipe from its options.

    An option that begins with ./ or ../ is a file or folder relative to `base`, for every plugin, so that a
    recipe means the same in every working folder. Those of `taken` are constructed already.
    """
    built = dict(taken)
    problems: list[Problem] = []
    entries = written.values.get("modalities")
    for name, values in entries.items() if isinstance(entries, dict) else ():
        if name in taken:
            continue
        path: KeyPath = ("modalities", str(name))
        try:
            cls = registry.get(str(name))
            options = ModalityEntry.model_validate(values or {}).options
            absent = [
                (at, text) for at, text in iterate_strings(options, path) if _is_path(text, base) is False
            ]
            problems += [
                written.problem(at, f"no such file or folder: {text} (from {base})") for at, text in absent
            ]
            if not absent:
                built[str(name)] = cls.model_validate(_located(options, base))
        except PluginError as error:
            problems.append(written.problem(path, str(error)))
        except ValidationError as error:
            # Mistakes in `role` and `data` are found with the recipe's fields.
            if error.title != "ModalityEntry":
                problems.extend(explain_field_errors(written, error, path, registry.get(str(name))))
    return built, problems


def _is_path(text: str, base: Path) -> bool | None:
    """Return whether a relative path exists; None for text that is no path."""
    return (base / text).exists() if text.startswith(("./", "../")) else None


def _located(value: Any, base: Path) -> Any:
    if isinstance(value, dict):
        return {key: _located(child, base) for key, child in value.items()}
    if isinstance(value, list):
        return [_located(child, base) for child in value]
    return str((base / value).resolve()) if isinstance(value, str) and _is_path(value, base) else value


def check_stages(
    written: ParsedYaml, recipe: Recipe, built: dict[str, Modality], marred: Collection[int] = ()
) -> list[Problem]:
    """Check across fields: names, roles, data, and trained parts.

    Nothing is reported as missing from a stage in `marred`, as it may be misspelt.
    """
    problems: list[Problem] = []
    unused = "anchor" not in written.values and all(stage.anchor for stage in recipe.stages)
    if recipe.anchor not in recipe.modalities and not unused:
        problems.append(written.problem(("anchor",), explain_unknown(recipe.anchor, recipe.modalities)))
    names = [stage.name for stage in recipe.stages]
    for index, stage in enumerate(recipe.stages):
        path: KeyPath = ("stages", index)
        if stage.name in names[:index]:
            problems.append(
                written.problem((*path, "name"), f"stage {stage.name!r} is there already; rename one")
            )
        found = [
            (at, message)
            for at, message in find_stage_faults(recipe, stage, built)
            if at or index not in marred
        ]
        found += find_watch_faults(recipe, stage)
        problems.extend(written.problem((*path, *at), message) for at, message in found)
    for faults in (find_augment_faults(recipe, built), find_evaluation_faults(recipe)):
        problems.extend(written.problem(at, message) for at, message in faults)
    return problems


def check_packages(written: ParsedYaml, recipe: Recipe, built: Mapping[str, Modality]) -> list[Problem]:
    """Check that every optional package and logger of a recipe is installed, without importing it."""
    faults: list[tuple[KeyPath, str]] = [*find_logger_faults(recipe)]
    for name, modality in built.items():
        faults += [(("modalities", name), message) for message in _list_missing(modality)]
        faults += [(("modalities", name), message) for message in find_faults(modality.model_dump())]
    for path, options in list_data_blocks(recipe):
        if options.dataset is not None:
            where: KeyPath = (*path, options.dataset.name)
            faults += [(where, message) for message in _list_missing(options.dataset)]
        if options.rasters:
            faults += [((*path, "rasters"), message) for message in find_missing(_install("rasterio"))]
    for number, stage in enumerate(recipe.stages):
        for name in (name for name, part in stage.trained.items() if isinstance(part, Lora)):
            path = ("stages", number, "train", name)
            faults += [(path, message) for message in find_missing(_install("peft"))]
    return [written.problem(path, message) for path, message in faults]


def _list_missing(part: Modality | Dataset) -> list[str]:
    """Return a message for each missing package of a modality or dataset, or for a fault of its plugin."""
    try:
        return [*find_missing(part.requires())]
    except Exception as error:  # of a plugin's own code
        return [f"its plugin fails to name what it requires ({type(error).__name__}: {error})"]


def _install(module: str) -> dict[str, str]:
    return {module: INSTALL[module]}


def check_files(written: ParsedYaml, recipe: Recipe) -> list[Problem]:
    """Check that manifests exist, have the columns that stages need, and places that their rasters cover."""
    whose = "the current folder" if recipe.base == Path() else f"the recipe's folder, {recipe.base}"
    missing = [
        (path, f"no such file: {manifest} (relative to {whose})")
        for path, manifest in find_missing_files(recipe)
    ]
    faults = find_column_faults(recipe, list_data_blocks(recipe))
    uncovered = [] if missing else find_uncovered(recipe)
    return [written.problem(path, message) for path, message in [*missing, *faults, *uncovered]]


def find_uncovered(recipe: Recipe) -> Iterator[Fault]:
    """Yield the rasters that cover none of the places that windows are to be cut around."""
    from geobind.data.rasters.column import RasterColumn
    from geobind.data.table import open_table

    for path, options in list_data_blocks(recipe):
        for name, rasters in options.rasters.items():
            if not rasters.paths or options.manifest is None:
                continue
            try:
                column = open_table(options.narrow([name]), recipe.base, [name]).columns[name]
                if not isinstance(column, RasterColumn):
                    continue
                gone = [file for file in map(column.files, rasters.paths) if not Path(str(file)).exists()]
                if gone:
                    yield (*path, "rasters", name, "path"), f"{gone[0]}: no such file"
                elif is_installed("rasterio"):  # if not, it is named among the missing packages
                    column.present_N()
            except DataError as error:
                yield (*path, "rasters", name, "path"), str(error)


def find_missing_files(recipe: Recipe) -> list[tuple[KeyPath, Path]]:
    """Return the missing manifests of a recipe, each with its key path."""
    named = (
        (path, options.manifest) for path, options in list_data_blocks(recipe) if options.manifest is not None
    )
    return [((*path, "manifest"), file) for path, file in named if not (recipe.base / file).exists()]


def list_data_blocks(recipe: Recipe) -> Iterator[tuple[KeyPath, DataOptions]]:
    """Yield every `data` block of a recipe with its key path."""
    blocks: list[tuple[KeyPath, DataOptions | None]] = [(("data",), recipe.data)]
    blocks += [(("modalities", name, "data"), entry.data) for name, entry in recipe.modalities.items()]
    for number, stage in enumerate(recipe.stages):
        path: KeyPath = ("stages", number, "data")
        if isinstance(stage.data, tuple):
            blocks += [((*path, place), options) for place, options in enumerate(stage.data)]
        else:
            blocks.append((path, stage.data))
        blocks.append((("stages", number, "watch", "data"), stage.watch and stage.watch.data))
    blocks.append((("evaluate", "data"), recipe.evaluate and recipe.evaluate.data))
    return ((path, options) for path, options in blocks if options is not None)
