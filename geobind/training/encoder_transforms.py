"""torch.compile and activation checkpointing of encoders, in place and undone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint

from geobind.errors import TrainingError
from geobind.training.blocks import find_blocks
from geobind.training.sync_batchnorm import DUMMY_PASS

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
_BACKEND = "inductor"


def compile_encoder(encoder: nn.Module, mode: Mode, *, by_block: bool) -> None:
    """Compile an encoder when it is first called, in place.

    Args:
        encoder: The encoder.
        mode: Mode of torch.compile.
        by_block: Compile each block on its own and nothing else: the communication of sharded blocks
            cannot be compiled.
    """
    if not any(True for _ in encoder.parameters()):
        return  # only cached embeddings pass through it
    blocks = find_blocks(encoder) if by_block else []
    for module in [encoder.get_submodule(name) for name in blocks] or [encoder]:
        module.compile(backend=_BACKEND, mode=None if mode == "default" else mode)


def uncompile(encoder: nn.Module) -> None:
    """Undo the compilation of an encoder, in place."""
    for module in encoder.modules():
        module._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]


@contextmanager
def explain_compile_errors(stage: str) -> Generator[None]:
    """Raise an error with the fix if torch.compile fails inside the block.

    Raises:
        TrainingError: torch.compile failed.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = " ".join(str(error).strip().splitlines()[:2])  # "backend='...' raised:", and what
        raise TrainingError(
            f"stage '{stage}': torch.compile cannot compile its encoders ({type(error).__name__}: {reason}); "
            f"set its `compile: false`, or install what it needs (on a CPU a C++ compiler)"
        ) from error


_PLAIN = "_geobind_plain_class"


def enable_checkpointing(encoder: nn.Module) -> int:
    """Enable activation checkpointing of an encoder's blocks; return their number.

    Recomputation repeats dropout's draws and counts each batch once in batch statistics. Structure and names
    stay.
    """
    names = find_blocks(encoder)
    for name in names:
        block = encoder.get_submodule(name)
        block.__class__ = _checkpointed_class(type(block))
    return len(names)


def disable_checkpointing(encoder: nn.Module) -> None:
    """Disable activation checkpointing of an encoder's blocks."""
    for module in encoder.modules():
        plain = getattr(type(module), _PLAIN, None)
        if plain is not None:
            module.__class__ = plain


@cache
def _checkpointed_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a block that recomputes its activations in the backward pass."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = partial(kind.forward, self, **kwargs)
        if (
            not torch.is_grad_enabled() or DUMMY_PASS.here
        ):  # a row that leaves no trace would, the second time
            return run(*args)
        normed = any(isinstance(module, _NormBase) and module.training for module in self.modules())
        more: Any = (
            {"context_fn": partial(_recompute_contexts, self)} if normed else {}
        )  # torch.compile takes none
        return checkpoint(run, *args, use_reentrant=False, **more)

    return type(kind.__name__, (kind,), {"forward": forward, _PLAIN: kind, "__module__": kind.__module__})


def _recompute_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's first computation and of its recomputation."""
    return nullcontext(), _preserve_buffers(block)


@contextmanager
def _preserve_buffers(block: nn.Module) -> Generator[None]:
    """Restore a block's buffers on leaving."""
    before = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)  # .data: autograd's saved version stays valid
