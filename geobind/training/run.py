"""From a recipe to a bundle: every stage in turn, then what was measured."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric import Fabric

from geobind import bundle, plugins, provenance, storage
from geobind.binder import Binder
from geobind.data.table import Table, open_table
from geobind.errors import RecipeError
from geobind.evaluation import PairTable
from geobind.modality import Pair

from geobind.recipe import Recipe, Stage
from geobind.recipe.reading import dump
from geobind.towers.weights import load_strictly, read_weights
from geobind.training.measure import measure
from geobind.training.record import Metrics
from geobind.seeds import fingerprint
from geobind.training.stage import Job, Outcome, run_stage


class Finished(NamedTuple):
    """What a run leaves behind."""

    folder: Path
    bundle: Path
    table: PairTable | None  # None when the recipe evaluates nothing


def run(recipe: Recipe, folder: Path, *, resume: bool = False) -> Finished:
    """Run every stage of a recipe, measure, and save a bundle.

    Args:
        recipe: A checked recipe.
        folder: Where everything of this run goes.
        resume: Go on with a run that lies there: finished stages that are unchanged are not run again, an
            interrupted one goes on from its last checkpoint.

    Raises:
        GeobindError: Something is wrong that a user can mend; what is finished stays.
    """
    fabrics = _Fabrics(recipe)
    fabric = fabrics.of(recipe.fabric.precision)
    if fabric.is_global_zero:
        _open_folder(recipe, folder, resume)
    fabric.barrier()
    with fabric.rank_zero_first():
        data = _Data(recipe)
    pairs = [data.pairs(stage) for stage in recipe.stages]
    binder = Binder(recipe.built, recipe.width, seed=recipe.seed)
    _rehearse(recipe, binder, pairs)

    stages: list[dict[str, Any]] = []
    metrics = Metrics(folder / "metrics.csv")
    key = fingerprint(recipe.seed, recipe.width)
    for number, (stage, rows) in enumerate(zip(recipe.stages, pairs, strict=True), start=1):
        key = _key(key, recipe, stage)
        home = folder / "stages" / f"{number:02d}_{stage.name}"
        done = storage.read_json(home / "stage.json")
        if done.get("key") == key:
            load_strictly(_trained(binder, stage), read_weights(home / "trained.safetensors"), str(home))
            _say(fabric, f"{stage.name}: finished before, unchanged; not run again")
        else:
            _say(fabric, f"{stage.name}: align {stage.align} with {recipe.anchor_of(stage)}, train {_listed(stage)}")
            job = Job(recipe, stage, binder, rows, home, metrics, key)
            outcome = run_stage(fabrics.of(stage.precision or recipe.fabric.precision), job)
            done = _finish(fabric, job, outcome)
        stages.append({k: v for k, v in done.items() if k != "quarantined"})

    table = None
    if fabric.is_global_zero:
        table = data.measure(binder)
        binder.card = bundle.card_of(
            binder,
            name=recipe.name,
            recipe=recipe.written,
            stages=stages,
            metrics=table.to_dict() if table else {},
        )
        binder.save(folder / "bundle")
        if table:
            storage.write_json(folder / "retrieval.json", table.to_dict())
    fabric.barrier()
    return Finished(folder, folder / "bundle", table)


class _Fabrics:
    """One Fabric for each precision that the stages ask for."""

    def __init__(self, recipe: Recipe) -> None:
        self.options = recipe.fabric
        self.made: dict[str, Fabric] = {}

    def of(self, precision: str) -> Fabric:
        """Make, or find, the Fabric of a precision."""
        if precision not in self.made:
            options = self.options.model_dump() | {"precision": precision}
            try:
                fabric = Fabric(**options)
                fabric.launch()
            except (ValueError, RuntimeError, TypeError, ImportError) as error:
                reason = str(error).splitlines()[0]
                raise RecipeError(f"fabric {options} cannot run on this machine: {reason}") from error
            self.made[precision] = fabric
        return self.made[precision]


class _Data:
    """The tables a recipe reads, each opened once."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tables: dict[str, Table] = {}
        for stage in recipe.stages:
            self._table(recipe.data_of(stage))
        self._table(self._evaluated())

    def pairs(self, stage: Stage) -> Any:
        """The pairs a stage trains on."""
        anchor = self.recipe.anchor_of(stage)
        own = self.recipe.built[stage.align].pairs(stage.split, anchor)
        if own is not None:
            return own
        table = self._table(self.recipe.data_of(stage))
        if table is None:
            raise RecipeError(f"stage '{stage.name}': '{stage.align}' brings no pairs and the recipe names no data")
        return table.split(stage.split).pairs(anchor, stage.align)

    def measure(self, binder: Binder) -> PairTable | None:
        """Measure what the recipe's `evaluate` asks for."""
        options = self.recipe.evaluate
        table = self._table(self._evaluated())
        if options is None or table is None:
            return None
        trained = {frozenset((self.recipe.anchor_of(stage), stage.align)) for stage in self.recipe.stages}
        return measure(binder, table.split(options.split), trained, options)

    def _evaluated(self) -> Any:
        evaluate = self.recipe.evaluate
        return (evaluate.data or self.recipe.data) if evaluate else None

    def _table(self, options: Any) -> Table | None:
        if options is None:
            return None
        name = options.model_dump_json()
        if name not in self.tables:
            self.tables[name] = open_table(options, self.recipe.base, tuple(self.recipe.modalities))
        return self.tables[name]


def _open_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    if (folder / "run.json").exists() and not resume:
        raise RecipeError(f"{folder} holds a run already: go on with it (--resume), or choose another folder (--out)")
    storage.sweep(folder)
    storage.write(folder / "recipe.yaml", dump(recipe.written).encode())
    sources = {name: str(plugins.registry().plugins[name].source) for name in recipe.modalities}
    facts = {"recipe": recipe.name, "versions": provenance.versions(), "plugins": sources}
    storage.write_json(folder / "run.json", facts)


def _rehearse(recipe: Recipe, binder: Binder, pairs: list[Any]) -> None:
    """Embed one pair of every stage, so that what cannot work fails before hours of training."""
    for stage, rows in zip(recipe.stages, pairs, strict=True):
        pair: Pair = rows[0]
        for name, raw in ((recipe.anchor_of(stage), pair.anchor), (stage.align, pair.other)):
            binder.embed(name, raw[0] if isinstance(raw, list) else raw)


def _finish(fabric: Fabric, job: Job, outcome: Outcome) -> dict[str, Any]:
    """Write what a stage trained; `stage.json` comes last and means that the stage is finished."""
    stage, recipe = job.stage, job.recipe
    done = {
        "name": stage.name,
        "key": job.key,
        "anchor": recipe.anchor_of(stage),
        "align": stage.align,
        "train": stage.parts,
        "pairs": len(job.pairs),
        "batch_size": stage.batch_size,
        **outcome._asdict(),
        "broken": len(outcome.quarantined),
        "digests": {name: provenance.digest(job.binder.encoders[name]) for name in stage.parts},
    }
    if fabric.is_global_zero:
        storage.write_tensors(job.folder / "trained.safetensors", _trained(job.binder, stage).state_dict())
        storage.write_json(job.folder / "stage.json", done)
        (job.folder / "state.ckpt").unlink(missing_ok=True)
    fabric.barrier()
    return done


def _key(previous: str, recipe: Recipe, stage: Stage) -> str:
    """Fingerprint all that a stage's result depends on, the stages before it included."""
    sides = (recipe.anchor_of(stage), stage.align)
    data = recipe.data_of(stage)
    return fingerprint(
        previous,
        stage.model_dump(mode="json", exclude={"checkpoint_seconds"}),
        {name: recipe.built[name].model_dump(mode="json") for name in sides},
        {name: plugins.registry().plugins[name].source.version for name in sides},
        data.model_dump(mode="json") if data else None,
    )


def _trained(binder: Binder, stage: Stage) -> Any:
    from torch import nn

    return nn.ModuleDict({name: binder.encoders[name] for name in stage.parts})


def _listed(stage: Stage) -> str:
    parts: Mapping[str, str] = stage.parts
    return ", ".join(name if part == "full" else f"{name} ({part})" for name, part in parts.items())


def _say(fabric: Fabric, line: str) -> None:
    if fabric.is_global_zero:
        print(line, file=sys.stderr, flush=True)
