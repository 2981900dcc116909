"""Encoders built from a stranger's card, compared with their weights file before they cost memory."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.utils._python_dispatch import TorchDispatchMode

from geobind.errors import CheckpointError, GeobindError, PluginError
from geobind.hub import without_hub
from geobind.modality import Modality
from geobind.towers.weights import describe_misfit

MAX_HEADER = 4_000_000  # bytes of a weights file's header, where names and shapes stand
_SPARE_BYTES = 64 * 2**20  # beside a multiple of the weights: buffers that are not saved, what building takes
_SPARE_PARTS = 5_000  # parameters, buffers and modules beside those of the weights
_TIMES = 4  # ... and their multiples
_LONGEST = 400  # letters of a reason, which may quote the card


def read_shapes(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, on the meta device: none of their bytes is read.

    Raises:
        CheckpointError: It is not there, no plain file, damaged, or its header is too large.
    """
    try:
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file of weights; the bundle is not whole: save it again")
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        if MAX_HEADER < length <= os.path.getsize(file):
            raise CheckpointError(f"{file}: its header has {length} bytes; at most {MAX_HEADER} are read")
        with safe_open(file, "pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}
            return {
                name: torch.empty(part.get_shape(), dtype=_TYPES[part.get_dtype()], device="meta")
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]  # torch adds a trace of its own
        raise CheckpointError(
            f"{file}: cannot be read as safetensors ({reason}); fetch or save it again"
        ) from None


_TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "U16": torch.uint16,
    "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64, "U64": torch.uint64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


_META = torch.device("meta")
_RANDOM = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}


class _TooLarge(Exception):
    """An encoder takes more than its weights account for."""


class _Bounds(TorchDispatchMode):
    """Ends the building of an encoder that outgrows its weights.

    Args:
        tensors: The weights of the encoder.
    """

    def __init__(self, tensors: Collection[Tensor]) -> None:
        super().__init__()
        self.most_bytes = _SPARE_BYTES + _TIMES * sum(map(_count_bytes, tensors))
        self.most_parts = _SPARE_PARTS + _TIMES * len(tensors)
        self.bytes = self.parts = 0
        self.thread = threading.get_ident()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if named.get("device") is not None:  # something is created: its size is known before it costs
            self._check(func(*args, **{**named, "device": _META, **_unpinned(named)}))
        if func in _RANDOM and args[0].device != _META and named.get("generator") is None:
            return args[0].zero_()  # the weights replace it, and drawing takes most of the time
        made = func(*args, **named)
        self._check(made)
        return made

    def _check(self, made: Any) -> None:
        if isinstance(made, Tensor) and _count_bytes(made) > self.most_bytes:
            raise _TooLarge(f"a tensor of the shape {tuple(made.shape)}")

    def register(self, _: nn.Module, name: str, part: object) -> None:
        """Count a part of a module that is built."""
        if threading.get_ident() != self.thread:
            return
        self.parts += 1
        self.bytes += _count_bytes(part) if isinstance(part, Tensor) else 0
        if self.parts > self.most_parts or self.bytes > self.most_bytes:
            many = self.parts > self.most_parts
            limit = f"{self.most_parts:,} parts" if many else f"{self.most_bytes / 1e6:,.0f} MB"
            raise _TooLarge(f"more than {limit} by '{name}'")


@contextmanager
def bounded_building(tensors: Collection[Tensor]) -> Generator[None]:
    """Bound what the block builds: its parts, their bytes and each tensor, by a multiple of its weights."""
    bounds = _Bounds(tensors)
    with ExitStack() as stack:
        for hook in (
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
            registration.register_module_module_registration_hook,
        ):
            stack.callback(hook(bounds.register).remove)
        stack.enter_context(bounds)
        stack.enter_context(without_hub())
        yield


def check_encoders(
    modalities: Mapping[str, Modality],
    width: int,
    tensors: Mapping[str, Tensor],
    card: Path,
    weights: Path,
) -> None:
    """Check that the encoders which a card describes have the weights of a file, before either takes memory.

    Encoders are built on the meta device, where tensors have shapes alone. One that cannot be built there is
    compared when it is loaded.

    Args:
        modalities: The modalities of the card, with its options.
        width: The width of the shared space.
        tensors: The weights by name, each beginning with the modality's; of the meta device or any other.
        card: The file of the card, for messages.
        weights: The file of the weights, for messages.

    Raises:
        CheckpointError: An encoder cannot be built, or the weights are another's.
        PluginError: A package that an encoder needs is not installed.
    """
    own: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, modality in modalities.items():
        of_file = [tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")]
        with explain_building(f"{card}: modalities.{name}"):
            try:
                with bounded_building(of_file), _META:
                    encoder = modality.encoder(width, pretrained=False)
            except Exception as error:
                if not _needs_memory(error):
                    raise
                unknown.append(f"{name}.")
                continue
            own |= {f"{name}.{key}": value for key, value in encoder.state_dict().items()}
    known = {key: value for key, value in tensors.items() if not key.startswith(tuple(unknown))}
    if misfit := describe_misfit(own, known if unknown else tensors, types=True):
        raise CheckpointError(f"{weights}: the weights are not this model's: {misfit}")


@contextmanager
def explain_building(where: str) -> Generator[None]:
    """Replace whatever building an encoder raises by an error that names the place in the card.

    Raises:
        CheckpointError: The block raised something.
        PluginError: The block raised it.
    """
    try:
        yield
    except PluginError:
        raise
    except Exception as error:  # options of strangers reach into libraries, which raise what they like
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, GeobindError | _TooLarge) else f"{type(error).__name__}: "
        text = f"{kind}{reason}"[:_LONGEST]
        if isinstance(error, _TooLarge):
            text = f"its encoder has {text}, which its weights do not account for"
        raise CheckpointError(f"{where}: {text}") from error


def _needs_memory(error: BaseException | None) -> bool:
    """Return whether an error comes from a tensor without memory, which has no numbers to compute with."""
    while error is not None:
        if isinstance(error, NotImplementedError | RuntimeError | TypeError) and "meta" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _unpinned(named: Mapping[str, Any]) -> dict[str, Any]:
    return {"pin_memory": False} if "pin_memory" in named else {}


def _count_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
