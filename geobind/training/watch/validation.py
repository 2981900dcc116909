"""How well a stage's pairs find each other in held-out rows, and what the stage's own loss is there."""

# N rows with both of a pair, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from geobind.data.sampler import Mixture
from geobind.errors import DataError
from geobind.evaluation import rank_counts_both
from geobind.inputs import still
from geobind.recipe import Recipe, Stage
from geobind.recipe.pairs import Bound
from geobind.training.losses import ContrastiveLoss
from geobind.training.steps.told import context_of
from geobind.training.watch.held import Facts, Sides

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.training.job import Job

_FEWEST = 2  # rows with both of a pair: one alone has nothing to be told from


def fields(recipe: Recipe) -> list[str]:
    """The columns of validation.csv beside stage and step."""
    watched = [stage for stage in recipe.stages if stage.watch]
    found = ["loss", *(f"R@{stage.watch.cutoff}" for stage in watched if stage.watch)]
    for stage in watched:
        pairs = recipe.pairs_of(stage)
        if stage.watch and len(pairs) > 1:
            found += [f"R@{stage.watch.cutoff}:{pair.name}" for pair in pairs]
    return list(dict.fromkeys([*found, "best", "seconds"]))


def check_held(recipe: Recipe, stage: Stage, rows: Mixture) -> None:
    """See that the rows a stage is watched on can tell good embeddings from bad ones.

    Raises:
        DataError: A pair has too few rows, or rows have no labels where those are the right answers.
    """
    watch = stage.watch
    if watch is None:
        return
    most = _FEWEST - 1 if watch.measure == "loss" else max(_FEWEST - 1, watch.cutoff)
    for pair in recipe.pairs_of(stage):
        count = rows.having(pair.both)
        if count <= most:
            always = f", so that {watch.measure} is always 1" if count >= _FEWEST else ""
            raise DataError(
                f"stage '{stage.name}': split '{watch.split}' has {count} rows with both '{pair.anchor}' and "
                f"'{pair.other}' to watch it on{always}; give it more than {most}, or watch another measure"
            )
    if watch.by == "label":
        unlabelled = [s.name for s in rows.sources if any(one is None for one in s.rows.known().label_N)]
        if unlabelled:
            raise DataError(
                f"stage '{stage.name}': {unlabelled[0]} has rows of split '{watch.split}' without a `label`, "
                f"which `watch.by: label` needs"
            )


def measures(
    job: Job, losses: Mapping[str, ContrastiveLoss], sides: Mapping[str, Sides], facts: Facts
) -> dict[str, float]:
    """Measure the pairs of a stage.

    Recall is the mean over both directions of every pair. The loss is that of batches as large as those of
    training, made of rows in their order, so that the two can be compared.

    Args:
        job: The stage.
        losses: By pair.
        sides: The embedded rows, by modality.
        facts: What is known of the rows.

    Returns:
        `loss`, `R@k`, and `R@k:PAIR` of every pair if there are several.

    Raises:
        DataError: An embedding is not finite.
    """
    watch = job.stage.watch
    cutoff = watch.cutoff if watch else 10
    shared = {pair.name: _shared(pair, sides) for pair in job.pairs}
    recalls: dict[str, float] = {}
    for pair in job.pairs:
        row_N = shared[pair.name]
        ids = facts.label_N[row_N] if watch and watch.by == "label" else row_N
        both = rank_counts_both(
            sides[pair.anchor].of(row_N), sides[pair.other].of(row_N), query_ids=ids, gallery_ids=ids
        )
        recalls[pair.name] = float(np.mean([counts.hit_Q(cutoff).mean() for counts in both]))
    name = f"R@{cutoff}"
    several = {f"{name}:{pair}": recall for pair, recall in recalls.items()} if len(recalls) > 1 else {}
    total = sum(pair.weight * _loss(job, pair, losses, sides, shared[pair.name], facts) for pair in job.pairs)
    return {"loss": total, name: float(np.mean(list(recalls.values()))), **several}


def _shared(pair: Bound, sides: Mapping[str, Sides]) -> NDArray[np.int64]:
    return np.intersect1d(sides[pair.anchor].rows_N, sides[pair.other].rows_N)


@torch.no_grad()
def _loss(
    job: Job,
    pair: Bound,
    losses: Mapping[str, ContrastiveLoss],
    sides: Mapping[str, Sides],
    row_N: NDArray[np.int64],
    facts: Facts,
) -> float:
    loss, found = losses[pair.name], []
    device = next((tensor.device for tensor in (*loss.parameters(), *loss.buffers())), torch.device("cpu"))
    with still(loss):
        for rows in _batches(row_N, job.stage.batch_size):
            context = context_of(lambda here: here, device, job.stage.loss, facts.meta(rows))
            anchor_ND, other_ND = (sides[name].of(rows).to(device) for name in (pair.anchor, pair.other))
            found.append(float(loss(anchor_ND, other_ND, context)))
    return float(np.mean(found))


def _batches(row_N: NDArray[np.int64], size: int) -> Sequence[NDArray[np.int64]]:
    """Batches of exactly `size` rows, or one of all where there are fewer."""
    whole = [row_N[at : at + size] for at in range(0, len(row_N) - size + 1, size)]
    return whole or [row_N]
