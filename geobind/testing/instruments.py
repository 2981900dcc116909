"""Measurements of the contract: embeddings as the binder sees them, other processes, audit hooks."""

# B inputs of a batch, D width

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from geobind.modality import Modality
from geobind.utils.vectors import unit

if TYPE_CHECKING:
    from geobind.modality import Prepared

_WEIGHT_FILES = (".bin", ".ckpt", ".npz", ".onnx", ".pt", ".pth", ".safetensors")


def layout(prepared: Any) -> str:
    """Describe the shape and dtype of a prepared input; two that stack have the same description.

    Raises:
        TypeError: It is neither a tensor nor a dict of tensors.
    """
    if isinstance(prepared, Tensor):
        return f"{str(prepared.dtype).removeprefix('torch.')} {tuple(prepared.shape)}"
    if isinstance(prepared, Mapping):
        return ", ".join(f"{key}: {layout(value)}" for key, value in sorted(prepared.items()))
    raise TypeError(type(prepared).__name__)


def difference(one: object, other: object) -> str | None:
    """Describe how tensors, or dicts or lists of them, differ in any bit, or return None; NaN equals NaN."""
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    except AssertionError as error:
        return " ".join(str(error).split())
    return None


def build(modality: Modality, width: int, *, seed: int = 0) -> nn.Module:
    """Build the encoder without weights, initialised from `seed`, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return modality.encoder(width, pretrained=False).eval()


def collate(prepared: Sequence[Prepared]) -> Prepared:
    """Stack prepared inputs into a batch.

    Raises:
        SkipTest: They do not stack, so there is nothing to judge; the test that says why is named.
    """
    try:
        return default_collate(list(prepared))
    except (KeyError, RuntimeError, TypeError) as error:
        raise SkipTest("no batch to judge: see test_prepared_inputs_share_one_layout") from error


def encode(encoder: nn.Module, prepared: Sequence[Prepared]) -> Tensor:
    """Pass prepared inputs through an encoder as one batch.

    Raises:
        SkipTest: There is no batch, or no tensor to judge; the test that says why is named.
    """
    output = encoder(collate(prepared))
    if not isinstance(output, Tensor):
        raise SkipTest("no embeddings to judge: see test_embeds_to_any_width")
    return output


def embed(encoder: nn.Module, prepared: Sequence[Prepared]) -> Tensor:
    """Embed prepared inputs as one batch: float (B, D) of unit length, as the binder will."""
    with torch.no_grad():
        output = encode(encoder, prepared)
        return unit(output.reshape(len(prepared), -1))


def distance(one_D: Tensor, other_D: Tensor) -> float:
    """Return the largest Euclidean distance between rows; one NaN makes it NaN, which passes any bound."""
    return float((one_D - other_D).norm(dim=-1).max())


def contents(encoder: nn.Module) -> dict[str, Tensor]:
    """Copy every parameter and buffer, also those that `state_dict` leaves out."""
    named = (*encoder.named_parameters(), *encoder.named_buffers())
    return {name: value.detach().clone() for name, value in named}


def prepare_in_a_worker(modality: Modality, raws: Sequence[Any]) -> list[Prepared]:
    """Prepare inputs in another process, which was spawned and knows only what it unpickles."""
    # Bytes, because an executor that cannot unpickle a task dies without saying why.
    task = pickle.dumps((modality, list(raws)))
    try:
        return pickle.loads(_worker().submit(_prepare_pickled, list(sys.path), task).result())
    except BrokenProcessPool:
        _worker.cache_clear()
        raise


@lru_cache(maxsize=1)
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _prepare_pickled(path: list[str], task: bytes) -> bytes:
    sys.path[:] = path
    modality, raws = pickle.loads(task)
    return pickle.dumps([modality.prepare(raw) for raw in raws])


@lru_cache
def imports_torch(module: str, path: tuple[str, ...]) -> bool:
    """Return whether importing a module, in a fresh interpreter with this `sys.path`, imports torch.

    Raises:
        ImportError: The module cannot be imported there; the message is the interpreter's.
    """
    code = f"import sys; sys.path[:] = sys.argv[1:]; import {module}; sys.exit(99 * ('torch' in sys.modules))"
    child = subprocess.run([sys.executable, "-c", code, *path], capture_output=True, text=True)
    if child.returncode not in (0, 99):
        raise ImportError(child.stderr.strip().rpartition("\n")[2])
    return child.returncode == 99


class Outside(BaseException):
    """Code under watch reached outside; not an Exception, so that no retry or fallback hides it."""


def reaches_outside(action: Callable[[], object]) -> str | None:
    """Run an action and return the first host it connects to or file of weights it opens, or None.

    The attempt itself is stopped.
    """
    global _seen
    _listen()
    _seen = seen = []
    try:
        action()
    except Outside:
        pass
    finally:
        _seen = None
    return seen[0] if seen else None


_seen: list[str] | None = None  # None while nothing is under watch


@lru_cache(maxsize=1)
def _listen() -> None:
    sys.addaudithook(_audit)  # once: an audit hook cannot be removed


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event == "open" and str(arguments[0]).endswith(_WEIGHT_FILES):
        target = f"opens {arguments[0]}"
    elif event == "socket.getaddrinfo":
        target = f"looks up {arguments[0]}"
    elif event == "socket.connect" and isinstance(arguments[1], tuple):  # a local (Unix) socket has a path
        target = f"connects to {arguments[1][0]}:{arguments[1][1]}"
    else:
        return
    _seen.append(target)
    raise Outside(target)
