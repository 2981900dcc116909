"""Conversion of a table's cells to Arrow, by the role of their column."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pyarrow as pa

from geobind.data.rasters.column import WINDOW, check_window
from geobind.data.readers.files import shorten
from geobind.utils.arrow import pc, wrap_in_lists

_JSON_LIST = re.compile(r'\s*\[\s*(["\]]|\{\s*")')  # not "[sic] a text"
_WINDOW = re.compile(r'\s*\{.*"raster"\s*:', re.DOTALL)  # a JSON object that is a window of a raster


class CellError(ValueError):
    """A value that cannot be used; `index` is its place in the column."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def strings_to_arrow(values: list[Any]) -> pa.Array:
    """Convert strings or numbers to strings; blank ones become null.

    Raises:
        CellError: One is neither.
    """
    plain = _trim_strings(values)
    if plain is not None:
        return plain
    for index, value in enumerate(values):
        if not isinstance(value, str | int | float | None):
            raise CellError(index, f"{shorten(value)} is not a string")
    return pa.array([None if value is None else str(value).strip() or None for value in values], pa.string())


def degrees_to_arrow(values: list[Any], limit: float) -> pa.Array:
    """Convert degrees within a limit; blank ones become null.

    Raises:
        CellError: One is no number, or out of range.
    """
    quick = _parse_numbers(values)
    if quick is not None and pc.all(pc.less_equal(pc.abs(quick), limit)).as_py() is not False:
        return quick
    is_filled = [value is not None and not (isinstance(value, str) and not value.strip()) for value in values]
    try:
        degrees_N = np.array(
            [float(value) if filled else 0.0 for value, filled in zip(values, is_filled, strict=True)]
        )
    except (TypeError, ValueError, OverflowError):
        index = next(i for i, value in enumerate(values) if is_filled[i] and not _is_number(value))
        raise CellError(index, f"{shorten(values[index])} is not a number of degrees") from None
    wrong_N = ~(np.abs(degrees_N) <= limit)  # NaN is wrong too
    if wrong_N.any():
        index = int(np.argmax(wrong_N))
        raise CellError(
            index, f"{shorten(values[index])} is not degrees between -{limit:.0f} and {limit:.0f}"
        )
    return pa.array(degrees_N, mask=~np.array(is_filled))


def numbers_to_arrow(values: list[Any]) -> pa.Array:
    """Convert numbers, or strings of them, to 64-bit floats; blank ones and NaN become null.

    Raises:
        CellError: One is no finite number.
    """
    quick = _parse_numbers(values)
    if quick is not None and pc.all(pc.is_finite(quick)).as_py() is not False:
        return quick
    number_N = np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if not isinstance(value, str | int | float) or not _is_number(value):
            raise CellError(
                index, f"{shorten(value)} is not a number; leave a cell empty where it is missing"
            )
        number_N[index] = float(value)
        if np.isinf(number_N[index]):
            raise CellError(index, f"{shorten(value)} is infinite; leave it empty where it is missing")
    return pa.array(number_N, from_pandas=True)


def times_to_arrow(values: list[Any]) -> pa.Array:
    """Convert ISO 8601 times to UTC; times without a zone are UTC, blank ones become null.

    Raises:
        CellError: One is no such time.
    """
    times: list[datetime | None] = []
    for index, value in enumerate(values):
        if value is None or value == "":
            times.append(None)
            continue
        try:
            time = datetime.fromisoformat(str(value).strip())
            times.append(time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time)
        except (ValueError, OverflowError):
            raise CellError(index, f"{shorten(value)} is not a time such as 2024-06-01T14:30:00Z") from None
    return pa.array(times, pa.timestamp("us"))


def cells_to_arrow(values: list[Any]) -> pa.Array:
    """Convert a modality's cells to lists of strings, numbers or raster windows; blank ones become null.

    A string is a list of one, and so is a window.

    Raises:
        CellError: One is neither a string, nor a list of strings or of numbers, nor JSON of such a list, nor
            a window or a list of them; or some are windows and others not.
    """
    plain = _trim_strings(values)
    if (
        plain is not None and not pc.any(pc.match_substring_regex(plain, r"[\[{]")).as_py()
    ):  # nearly all columns
        return wrap_in_lists(plain)
    items = [_parse_items(value, index) for index, value in enumerate(values)]
    windows = [cell is not None and isinstance(cell[0], dict) for cell in items]
    if not any(windows):
        return pa.array(items)
    for index, cell in enumerate(items):
        if cell is not None and not windows[index]:
            raise CellError(
                index, f"{shorten(values[index])} is no window of a raster, but others in this column are"
            )
    return pa.array(items, pa.list_(WINDOW))


def _trim_strings(values: list[Any]) -> pa.Array | None:
    """Return stripped strings, blank ones null; None if a value is not a string."""
    try:
        strings = pc.utf8_trim_whitespace(pa.array(values, pa.string()))
    except (pa.ArrowException, TypeError, ValueError):  # ValueError: half a surrogate pair
        return None
    return pc.if_else(pc.equal(pc.binary_length(strings), 0), pa.scalar(None, pa.string()), strings)


def _parse_numbers(values: list[Any]) -> pa.Array | None:
    """Parse numbers in strings, blank ones null; None if Arrow cannot read one of them."""
    strings = _trim_strings(values)
    if strings is None:
        return None
    try:
        numbers = pc.cast(strings, pa.float64())
    except pa.ArrowException:
        return None
    return None if pc.any(pc.is_nan(numbers)).as_py() else numbers


def _parse_items(value: Any, index: int) -> list[str] | list[float] | list[dict[str, Any]] | None:
    if isinstance(value, str) and (_JSON_LIST.match(value) or _WINDOW.match(value)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            kind = "list" if value.lstrip().startswith("[") else "object"
            raise CellError(
                index, f"{shorten(value)} begins like a JSON {kind} but is not one: {error}"
            ) from error
    if value is None:
        return None
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    if all(isinstance(item, str) for item in items):
        return [item.strip() for item in items if item.strip()] or None
    if items and all(isinstance(item, dict) and "raster" in item for item in items):
        try:
            return [check_window(item) for item in items]
        except ValueError as error:
            raise CellError(index, str(error)) from error
    if all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        try:
            return [float(item) for item in items]
        except OverflowError as error:
            raise CellError(index, f"{shorten(cast(Any, value))} holds a number that is too large") from error
    raise CellError(
        index,
        f"{shorten(cast(Any, value))} must be a string, strings, numbers, or a window such as "
        '{"raster": "scene.tif", "size_m": 480}',
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


_CONVERTERS: dict[str, Callable[[list[Any]], pa.Array]] = {
    "key": strings_to_arrow,
    "split": strings_to_arrow,
    "label": strings_to_arrow,
    "group": strings_to_arrow,
    "licence": strings_to_arrow,
    "lat": lambda values: degrees_to_arrow(values, 90.0),
    "lon": lambda values: degrees_to_arrow(values, 180.0),
    "time": times_to_arrow,
}
PLACE_COLUMNS = tuple(_CONVERTERS)
NUMBER = "number:"  # what the fields that hold a vector's numbers begin with


def find_converter(field: str) -> Callable[[list[Any]], pa.Array]:
    """Return the function that converts the values of a field of a table."""
    return numbers_to_arrow if field.startswith(NUMBER) else _CONVERTERS.get(field, cells_to_arrow)
