"""Losses built from the options of a stage."""

from __future__ import annotations

from geobind.errors import DataError
from geobind.recipe.schema import Stage
from geobind.recipe.stage_options import InfoNCEOptions, LossOptions, TemperatureOptions
from geobind.training.losses import ContrastiveLoss, EmbeddingQueue, InfoNCE, SigLIP, Temperature


def build_loss(options: LossOptions, width: int) -> ContrastiveLoss:
    """Build the loss that the options describe, for embeddings of this width."""
    temperature = _build_temperature(options.temperature)
    if options.name == "siglip":
        return SigLIP(
            temperature, options.bias, options.hardness, local=options.local, products=options.products
        )
    queue = None if options.queue is None else EmbeddingQueue(options.queue, width)
    return InfoNCE(
        options.direction,
        temperature,
        queue,
        options.hardness,
        local=options.local,
        products=options.products,
    )


def check_queue(stage: Stage, rows: int) -> None:
    """Check that a queue is too short to hold a row twice.

    Raises:
        DataError: The queue and a batch have more rows than the data.
    """
    size = stage.loss.queue if isinstance(stage.loss, InfoNCEOptions) else None
    max_size = rows - stage.batch_size
    if size is not None and size > max_size:
        fix = f"set loss.queue to {max_size} or less" if max_size > 0 else "drop loss.queue"
        raise DataError(
            f"stage '{stage.name}': a queue of {size} embeddings and a batch of {stage.batch_size} are more "
            f"than the {rows} rows of the data, so that the queue would hold some twice; {fix}"
        )


def _build_temperature(options: TemperatureOptions) -> Temperature:
    return Temperature(
        options.init, learn=options.learn, min_scale=1 / options.maximum, max_scale=1 / options.minimum
    )
