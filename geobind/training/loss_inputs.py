"""Per-row metadata (labels, places, times) that losses and batches ask for."""

# B rows on this rank

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from geobind.data.neighbours import compute_grouped_share
from geobind.errors import DataError
from geobind.inference import to_device
from geobind.recipe.stage_options import InfoNCEOptions, LossOptions
from geobind.training.losses import LossContext, hash_labels, unit_sphere

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.sampler import BatchSampler, MixedDataset, WeightedSource
    from geobind.data.sources import BatchMeta
    from geobind.recipe import Stage

_MIN_NEIGHBOUR_SHARE = 0.9  # of the neighbours asked for: fewer are worth a warning


def build_loss_context(
    gather: Callable[[Tensor], Tensor], device: torch.device, options: LossOptions, meta: BatchMeta
) -> LossContext | None:
    """Build the loss context of the rows of all ranks; None if the loss needs none.

    Args:
        gather: Puts the rows of all ranks after one another.
        device: Where the loss is taken.
        options: The loss's.
        meta: What is known of this rank's rows.
    """
    labels = xyz = hours = rows = None
    if options.positives == "label":
        labels = gather(to_device(hash_labels(meta.labels or [None] * len(meta.keys)), device))
    if options.needs_places:
        point_N3 = unit_sphere(_to_tensor(meta.lat, meta), _to_tensor(meta.lon, meta))
        xyz = gather(to_device(point_N3, device))
    if options.needs_times:
        hours = gather(to_device(_to_tensor(meta.hours, meta), device))
    if isinstance(options, InfoNCEOptions) and options.queue is not None:
        rows = gather(to_device(hash_labels(meta.keys), device))
    if labels is None and xyz is None and hours is None and rows is None:
        return None
    return LossContext(
        labels_N=labels,
        xyz_N3=xyz,
        hours_N=hours,
        rows_N=rows,
        same_within_m=options.same_within_m,
        ignore_within_m=options.ignore_within_m,
        ignore_within_h=options.ignore_within_hours,
        ignore_when=options.ignore_when,
    )


def _to_tensor(values_B: NDArray[np.float64] | None, meta: BatchMeta) -> Tensor:
    return torch.as_tensor(np.full(len(meta.keys), np.nan) if values_B is None else values_B)


def build_batch_sampler(stage: Stage, rows: MixedDataset, seed: int) -> BatchSampler:
    """Build the batch sampler of a stage.

    Raises:
        DataError: A table has too few rows for its part of a batch, or no places for batches of neighbours.
    """
    neighbours = stage.batches.neighbours if stage.batches else None
    try:
        return rows.sampler(stage.batch_size, seed, mixed=stage.mix == "rows", neighbours=neighbours)
    except DataError as error:
        raise DataError(f"stage '{stage.name}': {error}") from error


def check_loss_inputs(stage: Stage, rows: MixedDataset) -> list[str]:
    """Check that a stage's rows have what its loss and its batches need.

    Returns:
        Warnings about what is there, but scarce.

    Raises:
        DataError: No row of a table says it.
    """
    for source in rows.sources:
        _check_source(stage, source)
    return list(_scattered_warnings(stage, rows))


def _check_source(stage: Stage, source: WeightedSource) -> None:
    loss = stage.loss
    needs = {
        "positives: label": ("label", "`label`", loss.positives == "label"),
        "same_within_m": ("place", "`lat` and `lon`", loss.same_within_m is not None),
        "ignore_within_m": ("place", "`lat` and `lon`", loss.ignore_within_m is not None),
        "ignore_within_hours": ("time and place", "`lat`, `lon` and `time`", loss.needs_times),
    }
    if not any(wanted for _, _, wanted in needs.values()):
        return
    known = source.rows.metadata()
    present = {
        "label": any(label is not None for label in known.label_N),
        "place": bool(np.isfinite(known.lat_N).any()),
        "time and place": bool(np.isfinite(known.hour_N).any()),
    }
    for option, (what, columns, wanted) in needs.items():
        if wanted and not present[what]:
            raise DataError(
                f"stage '{stage.name}': no row of {source.name} has a {what}, which `{option}` asks for; "
                f"give it {columns}, map columns with `columns`, or drop the option from `loss`"
            )


def _scattered_warnings(stage: Stage, rows: MixedDataset) -> Iterator[str]:
    """Yield warnings of tables with too few neighbours for the batches."""
    sampler, options = build_batch_sampler(stage, rows, seed=0), stage.batches
    if sampler.neighbours is None or options is None:
        return
    near = f"from {options.near_km[0]:g} to {options.near_km[1]:g} km of each other"
    for source, places, count in zip(rows.sources, sampler.places, sampler.row_counts, strict=True):
        share = compute_grouped_share(places, sampler.neighbours, count, seed=0)
        if not share:
            raise DataError(
                f"stage '{stage.name}': no rows of {source.name} were found {near} that a batch of {count} "
                f"could hold; widen `batches.near_km`, raise its share, or drop `batches`"
            )
        if share < _MIN_NEIGHBOUR_SHARE * options.share:
            yield (
                f"stage '{stage.name}': places of {source.name} are scattered: {share:.0%} of a batch are "
                f"neighbours, not {options.share:.0%}; widen `batches.near_km`, or lower its share"
            )
