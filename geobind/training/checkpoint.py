"""Checkpoints of a stage, independent of the number of processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geobind.errors import CheckpointError, TrainingError
from geobind.training.distributed import broadcast_object, broadcast_tensor, full_tensor, rank_zero_run
from geobind.training.fabric import Fabric
from geobind.training.fsdp import shard_like
from geobind.utils import files

_FORMAT = 2
_Slots = dict[str, dict[str, Tensor]]  # what the optimiser keeps of each parameter, by their names


class Checkpoint:
    """Atomic checkpoint of a stage: weights, optimizer state, next step.

    Data order, augmentation and dropout depend on the step alone, so nothing else needs keeping. Only the
    first process reads and writes the file, so that the others need not see its disk.

    Args:
        fabric: Where the stage runs.
        path: The file.
        key: The stage's fingerprint; a checkpoint of another is not gone on with.
        modules: What is trained, by name; their parameters may be sharded.
        optimizer: Its optimiser.
        seconds: Least time between two checkpoints; 0: every step.
    """

    def __init__(
        self,
        fabric: Fabric,
        path: Path,
        key: str,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer,
        seconds: float,
    ) -> None:
        self.fabric, self.path, self.key = fabric, path, key
        self.modules, self.optimizer, self.seconds = modules, optimizer, seconds
        self._names: dict[Tensor, str] = {
            parameter: f"{name}.{key}"
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
        }
        self._saved = self._looked = time.monotonic()
        self._look_at = self._last_look = 0  # steps
        self.extra: Mapping[str, Any] = {}

    def due(self, step: int) -> bool:
        """Return whether to save after a step; every rank must call it, and all get the same answer.

        Only the first looks at the clock, and the others wait for what it says. So they look seldom: each
        time at most half of the time that is left goes by, as far as the steps before tell.
        """
        if self.seconds == 0:
            return True
        if step < self._look_at:
            return False
        now = time.monotonic()
        left = self.seconds - (now - self._saved)
        # Whoever resumes begins in the middle: the first look is at the first step.
        taken = step - self._last_look if self._looked > self._saved else 1
        each = max(now - self._looked, 1e-6) / max(taken, 1)
        ahead = min(max(int(left / each / 2), 1), 2 * max(taken, 1))
        due, self._look_at = broadcast_object(self.fabric, (left <= 0, step + ahead))
        self._looked, self._last_look = now, step
        return due

    def save(self, step: int, extra: Mapping[str, Any]) -> Path:
        """Write the state that step `step` starts from; every rank must call it.

        Args:
            step: The next one.
            extra: Plain values that the stage will tell at its end: what `extra` is after `restore`.

        Raises:
            StorageError: The disk is full; the last checkpoint is untouched.
            TrainingError: A weight is not finite; the last checkpoint is untouched.
        """
        modules = {name: dict(self._whole(module.state_dict())) for name, module in self.modules.items()}
        optimizer = {name: dict(self._whole(slots)) for name, slots in self._slots().items()}

        def write() -> None:
            self._check_finite(modules, step)
            state = {"format": _FORMAT, "key": self.key, "step": step, "told": dict(extra)}
            state |= {"modules": modules, "optimizer": optimizer}
            files.write_state(self.path, state | {"precision": self._precision().state_dict()})

        rank_zero_run(self.fabric, write)
        self._saved = self._looked = time.monotonic()
        self._last_look = self._look_at = step
        return self.path

    def restore(self) -> int:
        """Load the state of this very stage, if there is one, and return the next step.

        Raises:
            CheckpointError: The file is damaged; the processes but the first are told, too.
        """
        state, fault = self._read() if self.fabric.is_global_zero else ({}, "")
        step, precision, kept, fault = broadcast_object(
            self.fabric, (state.get("step"), state.get("precision"), _kinds(state), fault)
        )
        if fault:
            raise CheckpointError(fault)
        if step is None:
            return 0
        self.extra = state.get("told", {})
        for name, module in self.modules.items():
            saved = state["modules"][name] if state else {}
            own = module.state_dict()
            module.load_state_dict({k: self._given(saved.get(k), value) for k, value in own.items()})
        self._restore_optimizer(state.get("optimizer", {}), kept)
        if precision:
            self._precision().load_state_dict(precision)
        return int(step)

    def _check_finite(self, modules: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """Check that weights are finite: gradients can overflow while the loss does not."""
        tensors = {
            f"{name}.{key}": value for name, values in modules.items() for key, value in values.items()
        }
        wrong = [name for name in self._names.values() if not torch.isfinite(tensors[name]).all()]
        if wrong:
            raise TrainingError(
                f"stage '{self.path.parent.name[3:]}': weights are not finite after step {step - 1}: "
                f"{', '.join(wrong[:3])}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}\n"
                f"  last good checkpoint: {self.path if self.path.exists() else 'none yet'}\n"
                f"  lower the learning rate or clip_norm, and run again with --resume"
            )

    def _read(self) -> tuple[dict[str, Any], str]:
        """Return the state and its fault, both empty where there is none."""
        try:
            state = files.read_state(self.path)
        except CheckpointError as error:
            return {}, str(error)
        if state is None or state.get("key") != self.key:
            return {}, ""
        fault = self._fault(state)
        return (
            state,
            f"{self.path}: does not fit its stage ({fault}); remove it to start over" if fault else "",
        )

    def _fault(self, state: Mapping[str, Any]) -> str:
        if state.get("format") != _FORMAT:
            return "it is of another version of geobind"
        try:
            for name, module in self.modules.items():
                saved, own = state["modules"][name], module.state_dict()
                if saved.keys() != own.keys():
                    return f"{name} has other weights: {', '.join(sorted(saved.keys() ^ own.keys()))}"
                for key, value in own.items():
                    if isinstance(value, Tensor) and value.shape != saved[key].shape:
                        return f"{name}.{key} is {tuple(saved[key].shape)}, not {tuple(value.shape)}"
            unknown = state["optimizer"].keys() - set(self._names.values())
            return f"the optimizer knows {', '.join(sorted(unknown))}" if unknown else ""
        except (KeyError, TypeError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"

    def _slots(self) -> _Slots:
        """Return the optimizer state by the names of the parameters."""
        return {self._names[parameter]: slots for parameter, slots in self.optimizer.state.items()}

    def _whole(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield values with full tensors on rank zero, and empty tensors elsewhere."""
        for key, value in values.items():
            if isinstance(value, Tensor):
                value = full_tensor(value)
                value = value.cpu() if self.fabric.is_global_zero else value.new_empty(0)
            yield key, value

    def _given(self, value: Any, own: Any) -> Any:
        """Broadcast a value from rank zero; of a tensor, return the shard of this rank."""
        if not isinstance(own, Tensor):
            return broadcast_object(self.fabric, value)
        return shard_like(own, broadcast_tensor(self.fabric, value, own))

    def _restore_optimizer(self, slots: _Slots, kept: dict[str, dict[str, tuple[Any, Any]]]) -> None:
        numbers = {}
        for group in self.optimizer.param_groups:
            numbers |= {p: len(numbers) + place for place, p in enumerate(group["params"])}
        state: dict[int, dict[str, Tensor]] = {}
        for parameter, number in numbers.items():
            name = self._names[parameter]
            if name in kept:
                own = {
                    key: parameter if shape == parameter.shape else torch.empty(shape, dtype=dtype)
                    for key, (shape, dtype) in kept[name].items()
                }
                saved = slots.get(name, {})
                state[number] = {key: self._given(saved.get(key), value) for key, value in own.items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _precision(self) -> Any:
        return self.fabric.strategy.precision  # holds the scale of gradients in 16-mixed


def _kinds(state: Mapping[str, Any]) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Return shape and type of every tensor of the optimizer state."""
    return {
        name: {key: (tuple(value.shape), value.dtype) for key, value in slots.items()}
        for name, slots in state.get("optimizer", {}).items()
    }
