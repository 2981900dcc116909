"""The state of an interrupted stage on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from geobind import storage
from geobind.errors import CheckpointError


class Checkpoint:
    """What a stage trains, its optimiser, and the next step, in one file that is whole or not there.

    Data order, augmentation and dropout depend on the step alone, so nothing else needs keeping.

    Args:
        path: The file.
        key: The stage's fingerprint; a checkpoint of another is not gone on with.
        modules: What is trained, by name.
        optimizer: Its optimiser.
    """

    def __init__(self, path: Path, key: str, modules: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
        self.path, self.key, self.modules, self.optimizer = path, key, modules, optimizer
        self._saved = time.monotonic()

    def age(self) -> float:
        """Seconds since the last save, or since the stage began."""
        return time.monotonic() - self._saved

    def save(self, step: int) -> Path:
        """Write the state that step `step` starts from.

        Raises:
            StorageError: The disk is full; the last checkpoint is untouched.
        """
        modules = {name: module.state_dict() for name, module in self.modules.items()}
        state = {"key": self.key, "step": step, "modules": modules, "optimizer": self.optimizer.state_dict()}
        storage.write_state(self.path, state)
        self._saved = time.monotonic()
        return self.path

    def restore(self) -> int:
        """Load the state, if there is one of this very stage, and return the step to go on with.

        Raises:
            CheckpointError: The file is damaged.
        """
        state = storage.read_state(self.path)
        if state is None or state.get("key") != self.key:
            return 0
        try:
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
            self.optimizer.load_state_dict(state["optimizer"])
            return int(state["step"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{self.path}: does not fit its stage ({reason}); remove it to start over"
            ) from error
