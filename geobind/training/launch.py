"""Launch of Lightning Fabric from a recipe and the environment of torchrun or SLURM."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import distributed as dist

from geobind.data.sampler import MixedDataset
from geobind.errors import RecipeError
from geobind.precision import choose_training_precision
from geobind.recipe import Recipe
from geobind.recipe.schema import FabricOptions, FabricPrecision
from geobind.training.distributed import broadcast_result, close_at_exit
from geobind.training.fabric import Fabric
from geobind.training.fsdp import build_fsdp2_strategy, is_sharded
from geobind.training.gradients import chunk_rows
from geobind.utils.files import read_json
from geobind.utils.logs import rank_zero_logger, set_rank

_log = rank_zero_logger(__name__)

# What Fabric and DDP say of themselves on every process; nothing that a user can change.
_NOISE = (
    r"torch\.distributed\.nn\.functional\.all_gather is deprecated",
    "Grad strides do not match bucket view",
)


class TrainingPrecision(NamedTuple):
    """The precision that `auto` of a recipe stands for in a run, and why."""

    precision: FabricPrecision
    reason: str


def resolve_precision(recipe: Recipe, folder: Path) -> tuple[Recipe, TrainingPrecision | None]:
    """Replace `precision: auto` by what is faster here, or by what the run in this folder began with.

    Returns:
        The recipe, and what was chosen; None where nothing is `auto`.
    """
    blocks = recipe.fabric, *recipe.stages
    if all(block.precision != "auto" for block in blocks):
        return recipe, None
    fabric = make_fabric(recipe.fabric, "32-true")

    def choose() -> TrainingPrecision:
        known = read_json(folder / "run.json").get("precision")
        if known in ("32-true", "bf16-mixed"):
            return TrainingPrecision(known, "the run began with it")
        return TrainingPrecision(*choose_training_precision(fabric.device))

    chosen = broadcast_result(fabric, choose)
    _log.info("precision: auto is %s: %s", *chosen)
    resolved = [
        block.model_copy(update={"precision": chosen.precision}) if block.precision == "auto" else block
        for block in blocks
    ]
    return recipe.model_copy(update={"fabric": resolved[0], "stages": resolved[1:]}), chosen


def launch_fabrics(recipe: Recipe) -> dict[str, Fabric]:
    """Launch one Fabric for each precision of the stages.

    Raises:
        RecipeError: This machine cannot run it.
    """
    wanted = [recipe.fabric.precision, *(stage.precision for stage in recipe.stages if stage.precision)]
    return {precision: make_fabric(recipe.fabric, precision) for precision in dict.fromkeys(wanted)}


def check_batch_division(fabric: Fabric, recipe: Recipe, training: Sequence[MixedDataset]) -> None:
    """Check that the batches of every stage divide among the ranks.

    Raises:
        RecipeError: A batch does not divide among them, or rows lack modalities where they would embed them
            a chunk at a time with sharded weights.
    """
    world = fabric.world_size
    for stage, rows in zip(recipe.stages, training, strict=True):
        if stage.batch_size % world:
            near = max(stage.batch_size // world, 1) * world
            raise RecipeError(
                f"stage '{stage.name}': a batch of {stage.batch_size} cannot be shared by {world} processes; "
                f"make it a multiple, such as {near}"
            )
        if not is_sharded(fabric) or chunk_rows(stage, world) is None:
            continue
        if len(recipe.pairs_of(stage)) > 1 and rows.having(recipe.names_of(stage)) < len(rows):
            raise RecipeError(
                f"stage '{stage.name}': some rows lack a modality, so that with `chunk` processes would run "
                f"an encoder unequally often, which sharded weights cannot; use `fabric: {{strategy: ddp}}`, "
                f"drop `chunk`, or give each aligned modality a stage of its own"
            )


def make_fabric(options: FabricOptions, precision: str) -> Fabric:
    """Launch Lightning Fabric with one precision.

    Raises:
        RecipeError: This machine has no such accelerator, device or precision.
    """
    wanted: dict[str, Any] = options.model_dump(include={"accelerator", "devices", "num_nodes", "strategy"})
    wanted |= {"precision": precision} | _launcher_counts(options)
    for noise in _NOISE:
        warnings.filterwarnings("ignore", message=noise)
    alone = wanted["devices"] == 1 and wanted["num_nodes"] == 1
    try:
        if options.strategy == "fsdp2":
            strategy: Any = "auto" if alone else build_fsdp2_strategy()  # alone there is nobody to share with
            fabric = Fabric(**{**wanted, "strategy": strategy})
        else:
            fabric = Fabric(**wanted)
        fabric.launch()
    except (ValueError, RuntimeError, TypeError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"fabric {wanted} cannot run on this machine: {reason}") from error
    set_rank(fabric.global_rank)
    _log.debug("Fabric: %s, %d processes, precision %s", fabric.device, fabric.world_size, precision)
    if fabric.world_size > 1:
        close_at_exit()
    return fabric


def _launcher_counts(options: FabricOptions) -> dict[str, int]:
    """Return devices and nodes from torchrun or SLURM, where the recipe leaves them open."""
    if dist.is_available() and dist.is_torchelastic_launched():
        names = ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    elif "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        names = ("SLURM_NTASKS_PER_NODE", "SLURM_NNODES")
    else:
        return {}
    counts = dict(zip(("devices", "num_nodes"), (os.environ.get(name, "") for name in names), strict=True))
    free = {"devices": options.devices == "auto", "num_nodes": "num_nodes" not in options.model_fields_set}
    return {name: int(count) for name, count in counts.items() if count.isdigit() and free[name]}
