"""A process that has no row for an encoder where others have: it runs beside them, without a trace.

Sharded weights are sent, and statistics of a batch put together, by every process or by none. So the encoder
runs on a row of which nothing is kept.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import nn

from geobind.data.loader import collate
from geobind.errors import DataError
from geobind.training.processes.normalising import ABSENCE, is_shared
from geobind.training.processes.sharding import shards

if TYPE_CHECKING:
    from geobind.embedding_cache.build import Stored
    from geobind.training.job import Job


def spare_rows(
    fabric: Fabric, job: Job, encoders: nn.ModuleDict, stored: Mapping[str, Stored]
) -> dict[str, Any]:
    """Return, of each modality whose encoder every process must run or none, a prepared batch of one row.

    Args:
        fabric: Where the stage runs.
        job: The stage.
        encoders: What it computes of each encoder, set up.
        stored: The modalities that are read from the embedding cache.
    """
    if fabric.world_size == 1 or not job.partial:
        return {}
    bound = {
        name: encoder
        for name, encoder in encoders.items()
        if name in job.stage.parts and (shards(fabric) or any(map(is_shared, encoder.modules())))
    }
    return {
        name: fabric.to_device(
            torch.zeros(1, *stored[name].rows.shape) if name in stored else _first(job, name)
        )
        for name in bound
    }


@contextmanager
def absent(encoder: nn.Module) -> Generator[None]:
    """Let an encoder run with others and leave no trace: no number is drawn, no statistic counts its rows."""
    modes = [(module, module.training) for module in encoder.modules()]
    for module, _ in modes:
        module.training = module.training and is_shared(module)  # those update with the others' rows
    ABSENCE.here = True
    try:
        yield
    finally:
        ABSENCE.here = False
        for module, training in modes:
            module.training = training


def _first(job: Job, name: str) -> Any:
    """The first row that has a modality and can be read, as a batch."""
    prepare = job.recipe.built[name].prepare
    for source in job.rows.sources:
        for row in source.rows.rows_with([name]):
            try:
                raw = source.rows[int(row)].raws[name]
                return collate([prepare(raw[0] if isinstance(raw, list) else raw)])
            except DataError:
                continue  # the loader tells of it when its turn comes
    raise DataError(f"no row has a '{name}' that can be read")
