"""Deterministic mode (`fabric: {deterministic: true}`): the same bits every time, or an error."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.backends import cudnn

from geobind.errors import TrainingError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # without it cuBLAS may take another algorithm each time
_WORKSPACES = (":4096:8", ":16:8")  # those that torch takes for deterministic
_NAMED = re.compile(r"^(.+?) does not have a deterministic implementation")


@contextmanager
def deterministic(wanted: bool) -> Generator[None]:
    """Allow only operations that give the same bits every time; afterwards all is as it was.

    Args:
        wanted: False does nothing.

    Raises:
        TrainingError: An operation has no deterministic implementation where it runs.
    """
    if not wanted:
        yield
        return
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(_WORKSPACE)
    if workspace not in _WORKSPACES:
        os.environ[_WORKSPACE] = _WORKSPACES[0]
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        fault = _fault(str(error))
        if fault is None:
            raise
        raise TrainingError(fault) from error
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace


def _fault(message: str) -> str | None:
    """Say which operation is not deterministic, and what to do; None of other errors."""
    named = _NAMED.match(message)
    if named:
        return (
            f"fabric.deterministic: the operation {named[1]} has no deterministic implementation on this "
            f"device; use an encoder or an option that does without it, run on a CPU "
            f"(fabric.accelerator: cpu), or drop `deterministic`"
        )
    if "CuBLAS" in message and _WORKSPACE in message:
        return (
            f"fabric.deterministic: CUDA was in use in this process before {_WORKSPACE} was set; start the "
            f"program with {_WORKSPACE}={_WORKSPACES[0]} in its environment"
        )
    return None
