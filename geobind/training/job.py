"""What running a stage takes, and what it comes to: what all parts of a stage are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from geobind.binder import Binder
from geobind.data.sampler import Mixture, Plan
from geobind.recipe import Recipe, Stage
from geobind.recipe.pairs import Bound
from geobind.training.losses import ContrastiveLoss
from geobind.training.record import Metrics
from geobind.training.steps.told import plan_of
from geobind.utils.hashing import seed_of

PairLosses = Mapping[str, ContrastiveLoss]  # by pair
Quarantined = tuple[tuple[str, str], ...]  # key and reason


@dataclass(frozen=True, eq=False)
class Job:
    """All that running one stage takes."""

    recipe: Recipe
    stage: Stage
    binder: Binder
    rows: Mixture
    folder: Path  # of this stage alone
    metrics: Metrics
    key: str  # the fingerprint of everything the stage depends on
    look_every: int | None = None  # steps between two looks at the loss; None: as it suits the device
    held: Mixture | None = None  # the rows that it is watched on
    validations: Metrics | None = None  # what is found there

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The encoders that take part, the anchor's first."""
        return {name: self.binder.encoders[name] for name in self.recipe.names_of(self.stage)}

    @property
    def pairs(self) -> tuple[Bound, ...]:
        """The pairs of modalities that are compared."""
        return self.recipe.pairs_of(self.stage)

    @cached_property
    def plan(self) -> Plan:
        """Which rows each step takes."""
        seed = seed_of(self.recipe.seed, self.stage.name, "data")
        return plan_of(self.stage, self.rows, seed)

    @cached_property
    def partial(self) -> bool:
        """Whether some rows lack a modality."""
        return len(self.pairs) > 1 and self.rows.having([*self.encoders]) < len(self.rows)

    @cached_property
    def steps(self) -> int:
        """How many steps the stage takes."""
        if self.stage.steps is not None:
            return self.stage.steps
        return (self.stage.epochs or 0) * self.plan.epoch


class Outcome(NamedTuple):
    """What a stage came to."""

    steps: int
    loss: float
    temperature: float | None  # None if several pairs have one each
    losses: tuple[dict[str, Any], ...]  # of each pair: its modalities, weight, last loss and temperature
    seconds: float
    device: str
    peak_memory_bytes: int | None  # of the accelerator, on this rank
    quarantined: Quarantined
    cached: tuple[str, ...]  # modalities that were read from the embedding cache
    filled: dict[str, Any]  # rows made for the cache on this rank, their bytes, and the seconds it took
    process_bytes: int | None  # the most memory that this process held at once
    process_since: str  # the "stage", or where that cannot be told the "start" of the process
    watched: dict[str, Any] | None  # what evaluations on the way found, and which weights were kept
