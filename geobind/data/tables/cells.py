"""Check the values of a column and turn them into Arrow, remembering which one is wrong."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pyarrow as pa

from geobind.data.rasters.cells import WINDOW, checked_window
from geobind.data.reading.files import short
from geobind.utils.arrow import lists_of_one, pc

_JSON_LIST = re.compile(r'\s*\[\s*(["\]]|\{\s*")')  # not "[sic] a text"
_WINDOW = re.compile(r'\s*\{.*"raster"\s*:', re.DOTALL)  # a JSON object that is a window of a raster


__all__ = ["CellError", "cells_to_arrow", "degrees_to_arrow", "short", "times_to_arrow", "words_to_arrow"]


class CellError(ValueError):
    """A value that cannot be used; `index` is its place in the column."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def words_to_arrow(values: list[Any]) -> pa.Array:
    """Strings or numbers as strings; blank ones are missing.

    Raises:
        CellError: One is neither.
    """
    plain = _trimmed(values)
    if plain is not None:
        return plain
    for index, value in enumerate(values):
        if not isinstance(value, str | int | float | None):
            raise CellError(index, f"{short(value)} is not a string")
    return pa.array([None if value is None else str(value).strip() or None for value in values], pa.string())


def degrees_to_arrow(values: list[Any], limit: float) -> pa.Array:
    """Degrees within a limit; blank ones are missing.

    Raises:
        CellError: One is no number, or out of range.
    """
    quick = _numbers(values)
    if quick is not None and pc.all(pc.less_equal(pc.abs(quick), limit)).as_py() is not False:
        return quick
    there = [value is not None and not (isinstance(value, str) and not value.strip()) for value in values]
    try:
        degrees_N = np.array(
            [float(value) if is_there else 0.0 for value, is_there in zip(values, there, strict=True)]
        )
    except (TypeError, ValueError, OverflowError):
        index = next(i for i, value in enumerate(values) if there[i] and not _is_number(value))
        raise CellError(index, f"{short(values[index])} is not a number of degrees") from None
    wrong_N = ~(np.abs(degrees_N) <= limit)  # NaN is wrong too
    if wrong_N.any():
        index = int(np.argmax(wrong_N))
        raise CellError(index, f"{short(values[index])} is not degrees between -{limit:.0f} and {limit:.0f}")
    return pa.array(degrees_N, mask=~np.array(there))


def times_to_arrow(values: list[Any]) -> pa.Array:
    """ISO 8601 times in UTC; a time that names no zone is UTC already, blank ones are missing.

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
            raise CellError(index, f"{short(value)} is not a time such as 2024-06-01T14:30:00Z") from None
    return pa.array(times, pa.timestamp("us"))


def cells_to_arrow(values: list[Any]) -> pa.Array:
    """A modality's cells as lists of strings, numbers or windows of rasters; blank ones are missing.

    A string is a list of one, and so is a window.

    Raises:
        CellError: One is neither a string, nor a list of strings or of numbers, nor JSON of such a list, nor
            a window or a list of them; or some are windows and others not.
    """
    plain = _trimmed(values)
    if (
        plain is not None and not pc.any(pc.match_substring_regex(plain, r"[\[{]")).as_py()
    ):  # nearly all columns
        return lists_of_one(plain)
    items = [_items(value, index) for index, value in enumerate(values)]
    windows = [cell is not None and isinstance(cell[0], dict) for cell in items]
    if not any(windows):
        return pa.array(items)
    for index, cell in enumerate(items):
        if cell is not None and not windows[index]:
            raise CellError(
                index, f"{short(values[index])} is no window of a raster, but others in this column are"
            )
    return pa.array(items, pa.list_(WINDOW))


def _trimmed(values: list[Any]) -> pa.Array | None:
    """Strings without white space around them, blank ones missing; None if some are no strings."""
    try:
        strings = pc.utf8_trim_whitespace(pa.array(values, pa.string()))
    except (pa.ArrowException, TypeError, ValueError):  # ValueError: half a surrogate pair
        return None
    return pc.if_else(pc.equal(pc.binary_length(strings), 0), pa.scalar(None, pa.string()), strings)


def _numbers(values: list[Any]) -> pa.Array | None:
    """Numbers in strings, blank ones missing; None if some are none, or look unlike what Arrow reads."""
    strings = _trimmed(values)
    if strings is None:
        return None
    try:
        numbers = pc.cast(strings, pa.float64())
    except pa.ArrowException:
        return None
    return None if pc.any(pc.is_nan(numbers)).as_py() else numbers


def _items(value: Any, index: int) -> list[str] | list[float] | list[dict[str, Any]] | None:
    if isinstance(value, str) and (_JSON_LIST.match(value) or _WINDOW.match(value)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            kind = "list" if value.lstrip().startswith("[") else "object"
            raise CellError(
                index, f"{short(value)} begins like a JSON {kind} but is not one: {error}"
            ) from error
    if value is None:
        return None
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    if all(isinstance(item, str) for item in items):
        return [item.strip() for item in items if item.strip()] or None
    if items and all(isinstance(item, dict) and "raster" in item for item in items):
        try:
            return [checked_window(item) for item in items]
        except ValueError as error:
            raise CellError(index, str(error)) from error
    if all(isinstance(item, int | float) and not isinstance(item, bool) for item in items):
        try:
            return [float(item) for item in items]
        except OverflowError as error:
            raise CellError(index, f"{short(cast(Any, value))} holds a number that is too large") from error
    raise CellError(
        index,
        f"{short(cast(Any, value))} must be a string, strings, numbers, or a window such as "
        '{"raster": "scene.tif", "size_m": 480}',
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
