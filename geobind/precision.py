"""The type that encoders compute in when they embed: chosen by timing one batch, with its cost in digits."""

# B inputs in a batch, D width

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from geobind.errors import DataError
from geobind.utils.formatting import shorten
from geobind.utils.vectors import unit

Precision = Literal["float32", "bfloat16", "int8", "auto"]  # int8: of runtimes alone
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ROWS = 12  # that the two types are compared on, and the fewest that `auto` looks at
_TIMED = 16  # rows of a batch that are timed on a CPU, where more would take long
_ROUNDS = 4
_GAIN = 0.8  # of the time in float32: worth its digits, and more than clocks of busy machines err by
_ALIKE = 0.999  # the least cosine to float32 that is no other embedding

Value = TypeVar("Value")


@dataclass(frozen=True)
class PrecisionChoice:
    """The type that an encoder computes in, and why."""

    dtype: Literal["float32", "bfloat16", "int8"]
    reason: str
    cosine: float | None = None  # the least one to the embedding in float32
    rows: int = 0  # that this was measured on

    def __str__(self) -> str:
        compared = (
            "" if self.cosine is None else f"; least cosine to float32 of {self.rows} rows {self.cosine:.5f}"
        )
        return f"{self.dtype} ({self.reason}){compared}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"dtype": self.dtype, "reason": self.reason, "cosine": self.cosine, "rows": self.rows}


def check_precision(asked: Any) -> Precision:
    """Return a precision.

    Raises:
        DataError: There is none of this name.
    """
    if asked not in PRECISIONS:
        raise DataError(f"precision must be {', '.join(PRECISIONS)}, not {shorten(repr(asked), 60)}")
    return asked


def choose_precision(encoder: nn.Module, lowered: nn.Module, batch: Any) -> PrecisionChoice:
    """Choose bfloat16 where it is really faster and the embeddings stay the same, else float32.

    Flags of processors and drivers do not say whether bfloat16 is computed or emulated, so both are timed.

    Args:
        encoder: In float32, in eval mode.
        lowered: Its copy in bfloat16.
        batch: Prepared inputs on their device, at least 12 for a figure that means something.
    """
    measured = measure_cosine(encoder, lowered, batch)
    if measured.dtype == "float32":
        return measured
    cosine = cast("float", measured.cosine)
    if not cosine >= _ALIKE:
        reason = f"in bfloat16 the least cosine to float32 of {ROWS} rows is {cosine:.4f}, below {_ALIKE}"
        return PrecisionChoice("float32", reason)
    device = _find_device(batch)
    timed = _take(batch, _TIMED) if device.type == "cpu" else batch
    times: dict[nn.Module, float] = {}
    for _ in range(_ROUNDS):
        for module in (encoder, lowered):
            times[module] = min(times.get(module, float("inf")), _time(lambda m=module: m(timed), device))
    ratio = times[lowered] / times[encoder]
    if ratio > _GAIN:
        return PrecisionChoice("float32", f"bfloat16 takes {ratio:.2f} of its time on this {device.type}")
    reason = f"{ratio:.2f} of float32's time on this {device.type}"
    return PrecisionChoice("bfloat16", reason, cosine, measured.rows)


def measure_cosine(encoder: nn.Module, lowered: Callable[[Any], Tensor], batch: Any) -> PrecisionChoice:
    """Measure the least cosine between embeddings in bfloat16 and in float32 of the first rows of a batch.

    Returns:
        The choice of bfloat16 with its cosine; of float32 where the encoder cannot compute in bfloat16.
    """
    few = _take(batch, ROWS)
    try:
        low_BD = unit(lowered(few))
    except (RuntimeError, TypeError, NotImplementedError) as error:  # what torch raises for mixed types
        reason = shorten(str(error).partition("\n")[0], 120)
        return PrecisionChoice("float32", f"its encoder does not compute in bfloat16: {reason}")
    cosine = float((low_BD * unit(encoder(few))).sum(-1).amin())
    return PrecisionChoice("bfloat16", "as asked", cosine, len(low_BD))


def choose_training_precision(device: torch.device) -> tuple[Literal["32-true", "bf16-mixed"], str]:
    """Choose bf16-mixed where a training step of convolutions and products is faster in it, and say why."""
    drawn = torch.Generator().manual_seed(0)
    image_BCHW = torch.randn(32, 32, 28, 28, generator=drawn).contiguous(memory_format=torch.channels_last)
    row_BF = torch.randn(1024, 512, generator=drawn)
    inputs = [(nn.Conv2d(32, 64, 3), image_BCHW), (nn.Linear(512, 2048), row_BF)]
    pairs = [(module.to(device), x.to(device)) for module, x in inputs]

    def step(low: bool) -> None:
        for module, x in pairs:
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                loss = module(x).float().square().mean()
            loss.backward()

    times = {False: float("inf"), True: float("inf")}
    for _ in range(1 + _ROUNDS):  # the first of each prepares kernels and is never the fastest
        for low in times:
            times[low] = min(times[low], _time(lambda low=low: step(low), device))
    ratio = times[True] / times[False]
    if ratio > _GAIN:
        return "32-true", f"a step in bf16-mixed takes {ratio:.2f} of its time on this {device.type}"
    return "bf16-mixed", f"a step takes {ratio:.2f} of its time in 32-true on this {device.type}"


@contextmanager
def float32_attention() -> Generator[None]:
    """Compute attention under a CPU's autocast in float32 inside the block, and what follows it in bfloat16.

    The gradient of torch's own kernel takes five times as long in bfloat16 as in float32, and is less exact.
    The rule is the dispatcher's, so that it reaches attention inside of any encoder, and holds where a
    checkpointed block is computed again.
    """
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    library.impl("scaled_dot_product_attention", _attend_in_float32, "AutocastCPU")
    try:
        yield
    finally:
        library._destroy()  # pyright: ignore[reportPrivateUsage]  # torch has no public way to take it back


def _attend_in_float32(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *more: Any, **options: Any
) -> Tensor:
    low = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        given = query.float(), key.float(), value.float(), attn_mask
        return functional.scaled_dot_product_attention(*given, *more, **options).to(low)


@dataclass
class Lowering:
    """Copies of encoders in bfloat16: the weights, their digests and what is saved stay float32."""

    choices: dict[str, PrecisionChoice] = field(default_factory=dict)  # by name
    _copies: dict[str, tuple[Any, nn.Module | None]] = field(default_factory=dict)

    def take(self, name: str, encoder: nn.Module, batch: Any, asked: Precision) -> nn.Module:
        """Return an encoder, or its copy in bfloat16.

        What `auto` chose is kept until the weights change or move; fewer than 12 inputs are computed in
        float32, and decide nothing.

        Raises:
            DataError: bfloat16 is asked for, and the encoder cannot compute in it.
        """
        if asked == "float32":
            return encoder
        state = asked, read_state(encoder)
        if name not in self._copies or self._copies[name][0] != state:
            if asked == "auto" and _count_rows(batch) < ROWS:
                self.choices[name] = PrecisionChoice("float32", f"fewer than {ROWS} inputs")
                return encoder
            lowered = copy.deepcopy(encoder).to(torch.bfloat16)
            decide = choose_precision if asked == "auto" else measure_cosine
            choice = self.choices[name] = decide(encoder, lowered, batch)
            if asked == "bfloat16" and choice.dtype == "float32":
                raise DataError(f"precision bfloat16 of '{name}': {choice.reason}; use float32 or auto")
            self._copies[name] = state, lowered if choice.dtype == "bfloat16" else None
        return self._copies[name][1] or encoder


def read_state(encoder: nn.Module) -> tuple[Any, ...]:
    """Return what changes whenever weights are replaced, moved, or written in place."""
    tensors = [*encoder.parameters(), *encoder.buffers()]
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version, t.device) for t in tensors)


def _time(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _tensors(batch: Any) -> list[Tensor]:
    return [batch] if isinstance(batch, Tensor) else [*cast("Mapping[str, Tensor]", batch).values()]


def _count_rows(batch: Any) -> int:
    return len(_tensors(batch)[0])


def _find_device(batch: Any) -> torch.device:
    return _tensors(batch)[0].device


def _take(batch: Any, rows: int) -> Any:
    return batch[:rows] if isinstance(batch, Tensor) else {name: t[:rows] for name, t in batch.items()}
