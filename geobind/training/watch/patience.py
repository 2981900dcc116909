"""What a watch over a stage remembers: the best evaluation so far, and how long nothing got better."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from geobind.recipe.watching import Watch


class State(nn.Module):
    """What a watch remembers: plain numbers, in the stage's checkpoint.

    The gain of an evaluation is counted from the last one that had enough of it, so that many small ones add
    up; the best is simply the best.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, first in (("best", math.nan), ("mark", math.nan)):
            self.register_buffer(name, torch.tensor(first, dtype=torch.float64))
        for name in ("best_steps", "seen", "waited", "stopped_after"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def get(self, name: str) -> Any:
        """One of the numbers."""
        return self.get_buffer(name).item()

    def judge(self, value: float, steps: int, watch: Watch) -> bool:
        """Take an evaluation in; whether it is the best so far.

        Args:
            value: Of the measure that is watched.
            steps: How many were taken when it was measured.
            watch: What counts as better, and how long to wait for it.
        """
        sign = -1 if watch.measure == "loss" else 1
        best, mark = self.get("best"), self.get("mark")
        better = math.isnan(best) or sign * (value - best) > 0
        gained = math.isnan(mark) or (sign * (value - mark) > 0 and sign * (value - mark) >= watch.least)
        found = {"seen": self.get("seen") + 1, "waited": 0 if gained else self.get("waited") + 1}
        found |= {"best": value, "best_steps": steps} if better else {}
        found |= {"mark": value} if gained else {}
        if watch.patience is not None and found["waited"] >= watch.patience:
            found["stopped_after"] = steps
        for name, number in found.items():
            self.get_buffer(name).fill_(number)
        return better
