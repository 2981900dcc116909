"""Arrays of numbers from tensors, numpy and the array containers of other libraries."""

from __future__ import annotations

import array
import sys
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np

from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_PROTOCOLS = ("__array__", "__array_interface__", "__dlpack__")
_NO_NUMBERS = {
    "O": "hold Python objects: give numbers, such as x.astype('float32')",
    "V": "are records of several fields: choose one field, or structured_to_unstructured(x)",
    "c": "are complex: give their magnitude or their real part",
    "M": "are times: give numbers",
    "m": "are durations: give numbers",
}


def is_array(value: object) -> bool:
    """Return whether a value is a tensor, a numpy array, or what numpy can read as one (jax, pandas, xarray).

    A PIL image is none, though it can be read as one: it is an image, whoever asks.
    """
    if isinstance(value, np.ndarray):
        return True
    pillow = sys.modules.get("PIL.Image")
    if isinstance(value, type) or (pillow is not None and isinstance(value, pillow.Image)):
        return False
    if isinstance(value, memoryview):
        return not is_bytes(value)
    return isinstance(value, array.array) or any(hasattr(value, name) for name in _PROTOCOLS)


def is_bytes(value: object) -> TypeGuard[bytes | bytearray | memoryview]:
    """Return whether a value is the bytes of a file, and not a view of an array's memory."""
    if isinstance(value, memoryview):
        return value.ndim == 1 and value.itemsize == 1
    return isinstance(value, bytes | bytearray)


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor, without importing torch for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Return a plain numpy array of what `is_array` accepts: native order, no mask, a type that numpy has.

    Args:
        value: The container. Values of bfloat16 and 8-bit floats become float32; others keep their type.
        name: What it is called in messages.

    Raises:
        DataError: It holds no real numbers (complex, objects, records, texts), hides some behind a mask, or
            has no values at hand (sparse, quantised and meta tensors); the message says how to convert it.
    """
    if not isinstance(value, np.ndarray):
        if is_tensor(value):
            return _from_tensor(value, name)
        value = _from_container(value, name)
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(cast(Any, value)):
        raise DataError(f"{name}: some of its values are masked; fill them first: x.filled(value)")
    plain = np.asarray(cast("NDArray[Any]", value))
    if plain.dtype.kind == "V" and plain.dtype.names is None and plain.dtype.type is not np.void:
        plain = plain.astype(np.float32)  # bfloat16 and 8-bit floats, as ml_dtypes adds them to numpy
    if plain.dtype.kind not in "buif":
        reason = _NO_NUMBERS.get(plain.dtype.kind, "are no numbers")
        raise DataError(f"{name}: its values, of type {str(plain.dtype)[:60]}, {reason}")
    return plain if plain.dtype.isnative else plain.astype(plain.dtype.newbyteorder("="))


def check_tensor(value: Tensor, name: str) -> Tensor:
    """Return a tensor of real numbers that can be read as it is; its device and gradient stay.

    Raises:
        DataError: It is sparse, nested, quantised, complex or without values; the message says how to
            convert it.
    """
    import torch

    fix = None
    if value.is_meta:
        fix = "is on the meta device, which holds no values: make it on a real one"
    elif value.is_nested:
        fix = "is nested: give list(x.unbind())"
    elif value.layout != torch.strided:
        fix = f"is sparse ({value.layout}): give x.to_dense()"
    elif value.is_quantized:
        fix = f"is quantised ({value.dtype}): give x.dequantize()"
    elif value.is_complex():
        fix = f"is complex ({value.dtype}): give x.abs() or x.real"
    if fix is not None:
        raise DataError(f"{name}: {fix}")
    return value.resolve_neg()


def _from_tensor(tensor: Tensor, name: str) -> NDArray[Any]:
    import torch

    plain = check_tensor(tensor, name).detach()
    try:
        if plain.dtype.is_floating_point and plain.dtype not in (torch.float16, torch.float32, torch.float64):
            plain = plain.float()  # numpy has no such type
        return plain.cpu().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{name}: a {type(tensor).__name__} of {tensor.dtype} cannot be read "
            f"({str(error).splitlines()[0]}); give x.float()"
        ) from error


def _from_container(value: Any, name: str) -> NDArray[Any]:
    readable = isinstance(value, array.array | memoryview) or any(
        hasattr(value, protocol) for protocol in _PROTOCOLS[:2]
    )
    try:
        if readable:
            return np.asarray(value)
        from torch import from_dlpack

        return _from_tensor(from_dlpack(value), name)
    except DataError:
        raise
    except Exception as error:  # whatever another library raises, such as for values on its own device
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{name}: a {type(value).__name__} cannot be read as a numpy array "
            f"({type(error).__name__}: {reason}); give one"
        ) from error
