"""Watch a stage on held-out rows while it runs: evaluate, remember the best weights, say when to stop."""

# N rows watched, D width

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from geobind.errors import CheckpointError, TrainingError
from geobind.inputs import still
from geobind.scoring import unit
from geobind.towers.weights import read_weights
from geobind.training.encoders.parts import states_of
from geobind.training.losses import ContrastiveLoss
from geobind.training.processes.ranks import Ranks, on_first, tensor_from_first, told_by_first
from geobind.training.processes.sharding import like
from geobind.training.processes.whole import whole
from geobind.training.record import Recorder
from geobind.training.steps.moving import Moving
from geobind.training.watch.averaging import Average
from geobind.training.watch.held import Facts, Inputs, Sides
from geobind.training.watch.patience import State
from geobind.training.watch.validation import measures
from geobind.utils import files

if TYPE_CHECKING:
    from geobind.training.job import Job

_BEST = "best-*.safetensors"


class Watched(NamedTuple):
    """What watching a stage came to."""

    steps: int  # taken, fewer than planned if it stopped early
    facts: dict[str, Any] | None  # for stage.json; None if it was not watched


def remove_best(folder: Path, *, but: Path | None = None) -> None:
    """Remove the best weights of a stage from its folder, save those of one evaluation."""
    for file in folder.glob(_BEST):
        if file != but:
            file.unlink(missing_ok=True)


class Watching:
    """The watch over one stage; a stage without `watch` has one that does nothing.

    All ranks embed their share of the rows, the first one measures, and all are told what it found, so that
    they stop together.

    Args:
        fabric: Where the stage runs.
        job: The stage.
        moving: Its module as Fabric set it up.
        losses: By pair.
        stored: The modalities that are read from the embedding cache, in whole or but for their head.
    """

    def __init__(
        self,
        fabric: Fabric,
        job: Job,
        moving: Moving,
        losses: Mapping[str, ContrastiveLoss],
        stored: Mapping[str, Any],
    ) -> None:
        self.fabric, self.job, self.losses = fabric, job, losses
        self.module, self.stored = moving.module, stored
        self.average = Average(job.encoders, job.stage.average)  # evaluated and kept in the weights' place
        self.watch = None if job.held is None else job.stage.watch
        self.state = State()
        self.ranks = Ranks(fabric.all_gather, fabric.world_size)
        self._inputs: dict[str, Inputs] = {}
        self._still: dict[str, Sides] = {}  # of the sides that the stage does not move: embedded once
        self._taken = 0

    @property
    def saved(self) -> dict[str, nn.Module]:
        """What a checkpoint must hold, for a resumed run to go on as if it had not stopped."""
        watched: dict[str, nn.Module] = {"watch": self.state} if self.watch else {}
        return {**watched, "average": self.average} if self.job.stage.ema else watched

    @property
    def over(self) -> bool:
        """Whether the stage stops before its time."""
        return bool(self.state.get("stopped_after"))

    def begin(self, first_step: int) -> None:
        """Get ready to go on with a step: read the rows, drop what will be found again.

        Raises:
            DataError: Too many of the rows cannot be read.
        """
        self._taken = first_step
        if self.fabric.is_global_zero and self.job.validations:
            self.job.validations.rewind(self.job.stage.name, first_step)
        self.prune()
        held = self.job.held
        if self.watch is not None and held is not None and not self.over:
            self._inputs = {n: Inputs(self.fabric, self.job, held, n) for n in self.job.encoders}
            self._facts = Facts.of(held)

    def look(self, step: int, log: Recorder, *, moved: bool = True) -> None:
        """Take the weights of a step into their mean, if it moved them; evaluate after it if it is time.

        Raises:
            TrainingError: A loss since the last look, or an embedding, was not finite.
            StorageError: The best weights cannot be written.
        """
        if moved:
            self.average.update()
        self._taken = taken = step + 1
        if self.watch is None or (taken % self.watch.every and taken != self.job.steps):
            return
        log.look()  # what is evaluated is known to be finite
        began = time.monotonic()
        with self.average.in_place():
            found = self._measured(step)
            value = found[self.watch.measure]
            if self.state.judge(value, taken, self.watch) and self.watch.keep == "best":
                self._write(taken)
        best = self.state.get("best")
        log.aside = f"{self.watch.split} {self.watch.measure} {value:.4g} (best {best:.4g})"
        told = {name: f"{number:.6g}" for name, number in found.items()}
        told |= {"best": f"{best:.6g}", "seconds": f"{time.monotonic() - began:.3g}"}
        on_first(self.fabric, lambda: self._tell({"step": step, **told}))
        log.pass_over()  # the time was not spent on training

    def prune(self) -> None:
        """Remove weights that are the best no more, once no checkpoint names them."""
        if self.fabric.is_global_zero:
            remove_best(self.job.folder, but=self._file(self.state.get("best_steps")))

    def finish(self) -> Watched:
        """Leave the weights that the stage ends with, and tell what was found.

        Raises:
            CheckpointError: The best weights are not on disk any more.
        """
        best, watch, facts = self.state.get("best_steps"), self.watch, None
        if watch is not None and watch.keep == "best" and best != self._taken:
            self._read(best)
        else:
            self.average.take()
        if watch is not None:
            kept = best if watch.keep == "best" else self._taken
            facts = {"split": watch.split, "measure": watch.measure, "evaluations": self.state.get("seen")}
            facts |= {"best": self.state.get("best"), "best_steps": best, "kept_steps": kept}
            facts |= {"planned_steps": self.job.steps, "stopped_early": self.over}
            self._say(facts)
        return Watched(self._taken, facts)

    def _measured(self, step: int) -> dict[str, float]:
        sides = {name: self._embedded(name) for name in self._inputs}
        for name, found in sides.items():  # every rank has all of them, so that all stop here
            if not bool(found.embedding_ND.isfinite().all()):
                raise TrainingError(
                    f"stage '{self.job.stage.name}': '{name}' embeds to values not finite after step {step}\n"
                    f"  lower the learning rate or clip_norm, and run again with --resume"
                )
        return told_by_first(self.fabric, lambda: measures(self.job, self.losses, sides, self._facts))

    def _tell(self, row: dict[str, Any]) -> None:
        if self.job.validations:
            self.job.validations.add(self.job.stage.name, [row])

    def _embedded(self, name: str) -> Sides:
        if name in self._still:
            return self._still[name]
        encoder = self.job.encoders[name]

        def forward(batch: Any) -> Tensor:
            if name not in self.stored:
                return self.module(batch, part=lambda bind, inputs: bind.embed(name, inputs))
            with self.fabric.autocast():  # the module has no more than its head
                return unit(self.fabric.to_device(encoder)(batch))

        with still(self.module), still(encoder):
            found = self._inputs[name].embed(forward, self.ranks, self.job.recipe.width)
        if name not in self.job.stage.parts:
            self._still[name] = found
            self._inputs[name].forget()
        return found

    def _kept(self) -> dict[str, Tensor]:
        """What the best weights are: all that is saved of the encoders, and the losses' parameters."""
        states = {f"encoder.{name}": m.state_dict() for name, m in states_of(self.job).items()}
        states |= {f"loss.{name}": dict(loss.named_parameters()) for name, loss in self.losses.items()}
        return {f"{head}.{key}": value for head, state in states.items() for key, value in state.items()}

    def _write(self, steps: int) -> None:
        tensors = {name: whole(value) for name, value in self._kept().items()}  # on every rank
        on_first(self.fabric, lambda: files.write_tensors(self._file(steps), tensors))

    @torch.no_grad()
    def _read(self, steps: int) -> None:
        targets, file = self._kept(), self._file(steps)

        def read() -> dict[str, Tensor]:
            found = read_weights(file)
            if found.keys() != targets.keys():
                raise CheckpointError(f"{file}: not this stage's best weights; remove {file.parent}")
            return found

        found = on_first(self.fabric, read) or {}  # the others need not see the first one's disk
        for name, target in targets.items():
            target.copy_(like(target, tensor_from_first(self.fabric, found.get(name), target)))

    def _file(self, steps: int) -> Path:
        return self.job.folder / _BEST.replace("*", f"{steps:08d}")

    def _say(self, facts: Mapping[str, Any]) -> None:
        if not self.fabric.is_global_zero:
            return
        early = f"stopped after {self._taken} of {self.job.steps} steps, " if self.over else ""
        told = f"{early}weights after {facts['kept_steps']} steps kept"
        print(
            f"{self.job.stage.name}: {told} (best {facts['measure']} on split '{facts['split']}': "
            f"{facts['best']:.4g}, after {facts['best_steps']})",
            file=sys.stderr,
            flush=True,
        )
