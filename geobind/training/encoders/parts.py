"""Make what a stage trains trainable, prove that the rest stayed, and leave plain encoders behind."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning_fabric import Fabric
from torch import Tensor, nn

from geobind.recipe.parts import Full, Head, Last, Lora, Part
from geobind.training.encoders.adapters import check_lora, insert, merge, take_out, tensors_of, trained_state
from geobind.training.encoders.casting import Cast
from geobind.training.encoders.compiling import as_written, compiling
from geobind.training.encoders.depth import last_parameters, rate_shares
from geobind.training.encoders.freezing import check_frozen, frozen_digests, head_of, set_trainable
from geobind.training.encoders.replaying import keep_again
from geobind.training.processes.normalising import normalise_alone
from geobind.training.processes.ranks import alike
from geobind.training.processes.sharding import make_whole
from geobind.utils import files
from geobind.utils.hashing import seed_of

if TYPE_CHECKING:
    from geobind.training.job import Job

ADAPTER = "adapter.safetensors"


def check_part(name: str, encoder: nn.Module, part: Part) -> None:
    """See that an encoder has the part that a stage is to train of it.

    Raises:
        RecipeError: It has no such head, blocks or layers.
        PluginError: What it takes is not installed.
    """
    if isinstance(part, Head):
        head_of(name, encoder)
    elif isinstance(part, Lora):
        check_lora(name, encoder, part)
    elif isinstance(part, Last):
        list(last_parameters(name, encoder, part.blocks))
    if isinstance(part, Full | Last) and part.layer_decay < 1:
        rate_shares(name, encoder, part.layer_decay)


@contextmanager
def in_training(fabric: Fabric, job: Job) -> Generator[dict[str, str]]:
    """Make the encoders of a stage trainable as it asks.

    Afterwards adapters are merged into the weights they adapt, and lie on their own beside the stage.

    Yields:
        The hash of what must not change, by modality.

    Raises:
        TrainingError: It changed.
        RecipeError: An encoder has no such part.
        PluginError: What it takes is not installed.
    """
    encoders, trained = job.encoders, job.stage.trained
    adapted = {name: part for name, part in trained.items() if isinstance(part, Lora)}
    for name, encoder in encoders.items():
        set_trainable(name, encoder, trained.get(name))
    before = held = frozen_digests(encoders, trained)
    cast = Cast(encoders, trained, precision_of(job))
    if cast.type is not None:
        held = frozen_digests(encoders, trained)
    for name, part in adapted.items():
        insert(name, encoders[name], part, seed_of(job.recipe.seed, job.stage.name, "adapter", name))
        set_trainable(name, encoders[name], part)

    with compiling(job.stage.name):
        yield before

    encoders = _plain(fabric, job)
    changes = {name: take_out(encoders[name]) for name in adapted}
    check_frozen(held, frozen_digests(encoders, trained), job.stage.name)
    cast.undo(encoders)
    for name, change in changes.items():
        merge(encoders[name], change)
    for name, encoder in encoders.items():
        set_trainable(name, encoder, None)
    if changes and fabric.is_global_zero:
        small: dict[str, Tensor] = {}
        for name, change in changes.items():
            head = encoders[name].state_dict() if adapted[name].head else {}
            learnt = tensors_of(change) | {k: v for k, v in head.items() if k.startswith("head.")}
            small |= {f"{name}.{key}": tensor for key, tensor in learnt.items()}
        files.write_tensors(job.folder / ADAPTER, small)


def _plain(fabric: Fabric, job: Job) -> dict[str, nn.Module]:
    """Make encoders whole and plain again, with the same batch statistics on all ranks; return them."""
    make_whole(job.binder.encoders)
    for name, encoder in job.encoders.items():
        as_written(encoder)
        keep_again(encoder)
        normalise_alone(encoder)
        if name in job.stage.parts:
            alike(fabric, encoder.buffers())
    return job.encoders


def precision_of(job: Job) -> str:
    """Return the precision that a stage computes in, as Fabric names it."""
    return job.stage.precision or job.recipe.fabric.precision


def shares_of(job: Job) -> dict[nn.Parameter, float]:
    """Return the share of the learning rate of each parameter that does not get all of it."""
    shares: dict[nn.Parameter, float] = {}
    for name, part in job.stage.trained.items():
        if isinstance(part, Full | Last) and part.layer_decay < 1:
            shares |= rate_shares(name, job.encoders[name], part.layer_decay)
    return shares


def states_of(job: Job) -> dict[str, nn.Module]:
    """Return what a checkpoint must hold of each encoder in training, by modality."""
    return {
        name: trained_state(job.encoders[name]) if isinstance(part, Lora) else job.encoders[name]
        for name, part in job.stage.trained.items()
    }
