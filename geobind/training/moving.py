"""What moves the weights of a stage: its module and optimiser as Fabric sets them up, rate, clipping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from geobind.training.bind import Bind
from geobind.training.freezing import parameter_groups
from geobind.training.parts import shares_of
from geobind.training.schedule import learning_rate

if TYPE_CHECKING:
    from geobind.training.stage import Job


class Moving(NamedTuple):
    """A stage's module and optimiser."""

    fabric: Fabric
    job: Job
    module: Any  # the `Bind` as Fabric set it up
    optimizer: Any  # as Fabric set it up
    adamw: torch.optim.Optimizer  # inside it: what a checkpoint holds the state of

    def set_rate(self, step: int) -> float:
        """Set the learning rate of a step, and return it."""
        stage = self.job.stage
        rate = learning_rate(step, self.job.steps, stage.optimizer.lr, stage.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        return rate

    def step(self) -> Tensor | None:
        """Clip the gradient, move the weights, and return the norm that the gradient had."""
        norm = None
        if self.job.stage.clip_norm is not None:
            # A norm that is not finite is left to the recorder, which can name step and rows.
            norm = self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=self.job.stage.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def set_up(fabric: Fabric, job: Job, bind: Bind) -> Moving:
    """Build the optimiser of what a stage trains, and set both up where the stage runs."""
    options = job.stage.optimizer
    groups = parameter_groups(bind, options, shares_of(job))
    # On a CPU the fused kernel goes through the weights once; elsewhere torch knows best.
    fused = True if fabric.device.type == "cpu" else None
    adamw = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps, fused=fused)
    module, optimizer = fabric.setup(bind, adamw)
    return Moving(fabric, job, module, optimizer, adamw)
