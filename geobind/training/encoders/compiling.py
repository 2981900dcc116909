"""torch.compile of the encoders of a stage, in place: no name of a weight changes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from geobind.errors import TrainingError
from geobind.training.encoders.depth import block_names

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
_BACKEND = "inductor"


def compile_encoder(encoder: nn.Module, mode: Mode, *, by_block: bool) -> None:
    """Compile an encoder when it is first called, in place.

    Args:
        encoder: The encoder.
        mode: What torch.compile is to strive for.
        by_block: Compile each block on its own, and nothing outside of them: what sharded blocks do before
            and after they compute cannot be compiled.
    """
    if not any(True for _ in encoder.parameters()):
        return  # nothing but what was read from the cache goes through it
    blocks = block_names(encoder) if by_block else []
    for module in [encoder.get_submodule(name) for name in blocks] or [encoder]:
        module.compile(backend=_BACKEND, mode=None if mode == "default" else mode)


def as_written(encoder: nn.Module) -> None:
    """Let an encoder run as its Python says again."""
    for module in encoder.modules():
        module._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]


@contextmanager
def compiling(stage: str) -> Generator[None]:
    """Say what to do where encoders cannot be compiled.

    Raises:
        TrainingError: torch.compile failed.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise TrainingError(
            f"stage '{stage}': torch.compile cannot compile its encoders ({type(error).__name__}: {reason}); "
            f"drop `fabric.compile`, or install what it misses (on a CPU a C++ compiler)"
        ) from error
