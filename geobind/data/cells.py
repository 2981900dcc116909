"""Conversion of a table's cells to Arrow, by the role of their column: one rule for all formats."""

# Each converter takes Python values (of CSV and JSONL) or an Arrow array of any type (of Parquet). What a
# value means is decided for single Python values; arrays of strings, numbers and bytes have shortcuts to
# the same results.

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast
from uuid import UUID

import numpy as np
import pyarrow as pa

from geobind.data.rasters.column import WINDOW, check_window
from geobind.data.readers.files import show_value
from geobind.utils.arrow import pc, wrap_in_lists

Values = list[Any] | pa.Array

# What pandas, R, NumPy, spreadsheets and databases write for a missing value. A cell of any role that is one
# of these is missing; the item of a list is not, so a list of one keeps the word.
MISSING_WORDS = frozenset(
    ("NA", "N/A", "n/a", "#N/A", "<NA>", "nan", "NaN", "NAN", "NaT", "null", "NULL", "None", "\\N")
)
_MISSING = pa.array(["", *sorted(MISSING_WORDS)], pa.string())
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")  # float() reads 4_8.1 too
_JSON_LIST = re.compile(r'\[\s*(?:["\]]|\{\s*")')  # not "[sic] a text"
_NUMBERS = re.compile(  # a list of numbers, perhaps as NumPy prints it; not "[...]"
    r"""\[[\s.,\[\]]*+(?=[+-]?(?:\d|inf)|[nN][aou]|[tTfF])
    (?:[\s\d.,+\-eE\[\]]|nan|NaN|inf|None|null|true|false|True|False)*+(?<=\])""",
    re.ASCII | re.VERBOSE,
)
_WINDOW = re.compile(r'\{.*"raster"\s*:', re.DOTALL)  # a JSON object that is a window of a raster
_PRINTED = re.compile(  # a value as Python prints it: list, tuple, dict or set, bytes, array, object
    r"""\[\s*b?'.*\] | \[\s*(?:None|nan|NaT|True|False)\s*,.*\] | \(\s*b?'.*'.*\) | \{\s*'.*\}
    | b'.*' | b"[^"]*\\x.*" | (?:array|tensor)\(.*\) | <[\w.]+[^<>]*\ at\ 0x[0-9A-Fa-f]+>""",
    re.DOTALL | re.VERBOSE,
)
_MAY_BE_MORE = r"""^(?:[\[{(<]|b['"]|array\(|tensor\()"""  # strings that the patterns above are tried on
_FIRST_MOMENT, _LAST_MOMENT = -62_135_596_800_000_000, 253_402_300_799_999_999  # years 1 to 9999, in us
_LIKE_STRINGS = ("large_string", "string_view", "large_utf8", "utf8_view")
_LIKE_BYTES = ("large_binary", "binary_view", "fixed_size_binary")
_LIKE_LISTS = ("large_list<", "fixed_size_list<", "list_view<", "large_list_view<")


class CellError(ValueError):
    """A value that cannot be used; `index` is its place in the column."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def convert_column(field: str, values: Values) -> pa.Array:
    """Convert a column in the role of a place column, a part of a vector, or else of a modality.

    Raises:
        CellError: A value cannot be used in this role.
        ValueError: The column cannot be used; its message is short.
    """
    convert = numbers_to_arrow if field.startswith(NUMBER) else CONVERTERS.get(field, cells_to_arrow)
    kind = None if isinstance(values, list) else str(values.type)[:60]
    try:
        return convert(values if isinstance(values, list) else _to_plain(values))
    except CellError as error:
        if kind is None or kind == "string":
            raise
        raise CellError(error.index, f"{error} (the column is of type {kind})") from error
    except (pa.ArrowException, TypeError, ValueError, ArithmeticError, LookupError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(reason if kind is None else f"its type {kind} cannot be used: {reason}") from error


def _to_plain(array: pa.Array) -> pa.Array:
    """Return an array without dictionaries, runs and extensions, its strings, bytes and lists of one kind."""
    kind = array.type
    name = str(kind)
    if name == "extension<arrow.uuid>":
        return pa.array([None if value is None else str(value) for value in array.to_pylist()], pa.string())
    if isinstance(array, pa.ExtensionArray):
        if len(getattr(kind, "shape", ())) > 1:
            raise ValueError("a cell is a vector, not an array of several axes")
        return _to_plain(array.storage)
    if pa.types.is_dictionary(kind):
        return _to_plain(cast(Any, array).dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return _to_plain(pc.run_end_decode(array))
    if name in _LIKE_STRINGS:
        return pc.cast(array, pa.string())
    if name.startswith(_LIKE_BYTES):
        return pc.cast(array, pa.binary())
    if name.startswith(_LIKE_LISTS):
        return pc.cast(array, pa.list_(kind.value_type))
    return array


def _to_values(values: Values) -> list[Any]:
    return values if isinstance(values, list) else values.to_pylist()


def _show(values: Values, index: int) -> str:
    return show_value(values[index] if isinstance(values, list) else values[index].as_py())


def is_missing(value: Any) -> bool:
    """Return whether a value is none: null, NaN, blank, or a word for a missing value."""
    if isinstance(value, str):
        return not value.strip() or value.strip() in MISSING_WORDS
    return value is None or (isinstance(value, float | Decimal) and math.isnan(value))


def strings_to_arrow(values: Values) -> pa.Array:
    """Convert strings, numbers, dates or booleans to strings; missing ones become null.

    Raises:
        CellError: One is none of these.
    """
    strings = _trim_strings(values)
    if strings is not None:
        return strings
    if not isinstance(values, list) and pa.types.is_integer(values.type):
        return pc.cast(values, pa.string())
    words = [_to_word(value, index) for index, value in enumerate(_to_values(values))]
    return pa.array(words, pa.string())


def _to_word(value: Any, index: int) -> str | None:
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):  # strings, of writers that do not mark them as such
        try:
            word = value.decode().strip()
        except UnicodeDecodeError:
            raise CellError(index, f"{show_value(value)} is not UTF-8 text") from None
        return None if is_missing(word) else word
    if isinstance(value, int) and abs(value) > 2**200:  # str() refuses some
        raise CellError(index, "is too large a number")
    if isinstance(value, str | int | float | Decimal | date | time | timedelta | UUID):
        return str(value).strip()
    raise CellError(index, f"{show_value(value)} is not a string")


def degrees_to_arrow(values: Values, limit: float) -> pa.Array:
    """Convert degrees within a limit; missing ones become null.

    Raises:
        CellError: One is no number, or out of range.
    """
    degrees = _parse_numbers(values)
    if degrees is None:
        numbers = [
            _to_number(value, index, "a number of degrees") for index, value in enumerate(_to_values(values))
        ]
        degrees = pa.array(numbers, pa.float64())
    wrong = pc.fill_null(pc.greater(pc.abs(degrees), limit), False)
    if pc.any(wrong).as_py():
        index = int(pc.index(wrong, True).as_py())
        swapped = "; are lat and lon exchanged?" if limit < abs(degrees[index].as_py()) <= 180 else ""
        raise CellError(
            index, f"{_show(values, index)} is not degrees between -{limit:.0f} and {limit:.0f}{swapped}"
        )
    return degrees


def numbers_to_arrow(values: Values) -> pa.Array:
    """Convert numbers, or strings of them, to 64-bit floats; missing ones become null.

    Raises:
        CellError: One is no finite number.
    """
    numbers = _parse_numbers(values)
    if numbers is None:
        numbers = pa.array([_to_number(value, index) for index, value in enumerate(_to_values(values))])
        numbers = pc.cast(numbers, pa.float64())
    infinite = pc.fill_null(pc.is_inf(numbers), False)
    if pc.any(infinite).as_py():
        index = int(pc.index(infinite, True).as_py())
        raise CellError(index, f"{_show(values, index)} is infinite; leave it empty where it is missing")
    return numbers


def _to_number(
    value: Any, index: int, meant: str = "a number; leave a cell empty where it is missing"
) -> float | None:
    if is_missing(value):
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return float(value)
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str) and value.strip().lstrip("+-").lower() in ("inf", "infinity"):
        return math.inf
    comma = isinstance(value, str) and _NUMBER.fullmatch(value.strip().replace(",", ".", 1))
    point = "; write a decimal point, not a comma" if comma else ""
    raise CellError(index, f"{show_value(value)} is not {meant}{point}")


def times_to_arrow(values: Values) -> pa.Array:
    """Convert ISO 8601 times to UTC; times without a zone are UTC, missing ones become null.

    Raises:
        CellError: One is no such time.
    """
    if not isinstance(values, list) and (pa.types.is_timestamp(values.type) or pa.types.is_date(values.type)):
        return _moments_to_arrow(values)
    return pa.array(
        [_to_time(value, index) for index, value in enumerate(_to_values(values))], pa.timestamp("us")
    )


def _to_time(value: Any, index: int) -> datetime | None:
    if is_missing(value):
        return None
    try:
        moment = datetime.fromisoformat(str(value).strip())
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise CellError(index, f"{show_value(value)} is not a time such as 2024-06-01T14:30:00Z") from None


def _moments_to_arrow(array: pa.Array) -> pa.Array:
    """Convert timestamps and dates to microseconds in UTC."""
    kind = array.type
    if pa.types.is_date(kind):
        array, unit = pc.cast(array, pa.date64()), "ms"
    else:
        unit = kind.unit
    # As integers, because casting to a type without zone would shift to local wall time.
    counts = pc.cast(array, pa.int64())
    per_us = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}[unit]
    divisor = 1000 if unit == "ns" else 1
    wrong = pc.or_(
        pc.less(counts, max(-(2**63), _FIRST_MOMENT // per_us * divisor)),
        pc.greater(counts, min(2**63 - 1, _LAST_MOMENT // per_us * divisor)),
    )
    if pc.any(wrong).as_py():
        raise CellError(int(pc.index(wrong, True).as_py()), "is a time outside of the years 1 to 9999")
    moments = pc.divide(counts, divisor) if divisor > 1 else pc.multiply(counts, per_us)
    return moments.cast(pa.timestamp("us"))


class _Cell(NamedTuple):
    """A modality's cell: its items, all of one kind."""

    kind: str  # strings, bytes, numbers or window
    items: list[Any]


_ARROW_KINDS = {"strings": pa.string(), "bytes": pa.binary(), "numbers": pa.float64(), "window": WINDOW}
_MEANINGS = {
    "strings": "a string",
    "bytes": "an encoded file",
    "numbers": "numbers",
    "window": "a window of a raster",
}


def cells_to_arrow(values: Values) -> pa.Array:
    """Convert a modality's cells to lists of strings, bytes, numbers or raster windows; missing ones to null.

    One of them is a list of one. Blank items of lists are left out. A struct with a field `bytes`, or
    without any bytes `path`, as Hugging Face datasets write images and sounds, is that field.

    Raises:
        CellError: One is none of these, nor JSON of a list or window; or they are of different kinds.
    """
    strings = _trim_strings(values)
    if strings is not None:
        if not pc.any(pc.match_substring_regex(strings, _MAY_BE_MORE)).as_py():  # nearly all columns
            return wrap_in_lists(strings)
        values = strings
    elif not isinstance(values, list):
        quick = _wrap_array(values)
        if quick is not None:
            return quick
    cells = [_parse_cell(value, index) for index, value in enumerate(_to_values(values))]
    kind = next((cell.kind for cell in cells if cell is not None), None)
    if kind is None:
        return pa.nulls(len(cells))
    for index, cell in enumerate(cells):
        if cell is not None and cell.kind != kind:
            raise CellError(
                index,
                f"{_show(values, index)} is {_MEANINGS[cell.kind]}, but cells above are {_MEANINGS[kind]}: "
                "a column holds one of them",
            )
    items = [None if cell is None else cell.items for cell in cells]
    return pa.array(items, pa.list_(_ARROW_KINDS[kind]))


def _parse_cell(value: Any, index: int) -> _Cell | None:
    if is_missing(value):
        return None
    if isinstance(value, str):
        return _parse_string(value.strip(), index)
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    items = [_unpack(item) for item in items]
    filled = [item for item in items if item is not None and item != b"" and item != ""]
    if not filled:
        return None
    if all(isinstance(item, str) for item in filled):
        texts = [item.strip() for item in filled if item.strip()]
        return _Cell("strings", texts) if texts else None
    if all(isinstance(item, bytes) for item in filled):
        return _Cell("bytes", filled)
    if all(isinstance(item, dict) and "raster" in item for item in filled):
        try:
            return _Cell("window", [check_window(item) for item in filled])
        except ValueError as error:
            raise CellError(index, str(error)) from error
    if all(isinstance(item, int | float | Decimal) and not isinstance(item, bool) for item in items):
        try:
            return _Cell("numbers", [float(item) for item in items])
        except OverflowError as error:
            raise CellError(index, f"{show_value(value)} holds a number that is too large") from error
    raise CellError(
        index,
        f"{show_value(value)} must be a string, strings, numbers, or a window such as "
        '{"raster": "scene.tif", "size_m": 480}',
    )


def _unpack(item: Any) -> Any:
    """Return the bytes, or else the path, of an image or sound that Hugging Face datasets packed."""
    if isinstance(item, dict) and "bytes" in item:
        packed = cast("dict[str, Any]", item)
        if isinstance(packed["bytes"], bytes | None):
            return packed["bytes"] or packed.get("path")
    return cast(Any, item)


def _parse_string(text: str, index: int) -> _Cell | None:
    if _JSON_LIST.match(text) or _NUMBERS.fullmatch(text) or _WINDOW.match(text):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            kind = "list" if text.startswith("[") else "object"
            raise CellError(
                index, f"{show_value(text)} begins like a JSON {kind} but is not one: {error}"
            ) from error
        return _parse_cell(value, index)
    if _PRINTED.fullmatch(text):
        raise CellError(
            index,
            f"{show_value(text)} is a value as Python prints it, which pandas' to_csv does with lists; write "
            "JSON, for example df[column].map(json.dumps), or Parquet",
        )
    return _Cell("strings", [text])


def _wrap_array(array: pa.Array) -> pa.Array | None:
    """Return bytes, numbers, and lists of these or of strings as lists; None where single values decide."""
    kind = array.type
    if _is_packed(kind):
        packed = pc.struct_field(array, "bytes")
        whole = pc.equal(packed.is_null(), array.is_null())
        return _wrap_array(_to_plain(packed)) if pc.all(whole).as_py() else None
    if pa.types.is_binary(kind):
        empty = pc.equal(pc.binary_length(array), 0)
        if pc.any(empty).as_py():  # else a copy, of images perhaps, for nothing
            array = pc.if_else(empty, pa.scalar(None, kind), array)
        return wrap_in_lists(array)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        numbers = _parse_numbers(array)
        return None if numbers is None else wrap_in_lists(numbers)
    return _wrap_lists(array) if pa.types.is_list(kind) else None


def _wrap_lists(array: pa.Array) -> pa.Array | None:
    items = _to_plain(cast(Any, array).flatten())
    if _is_packed(items.type):
        items = _to_plain(pc.struct_field(items, "bytes"))
    kind = items.type
    if items.null_count:
        return None
    if pa.types.is_string(kind):
        items = pc.utf8_trim_whitespace(items)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        if pc.any(pc.equal(pc.binary_length(items), 0)).as_py():
            return None
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        items = items if pa.types.is_float32(kind) else pc.cast(items, pa.float64(), safe=False)
    else:
        return None
    lengths_N = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, items, mask=pa.array(lengths_N == 0))


def _is_packed(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    packed = str(kind.field("bytes").type)
    return "binary" in packed and kind.get_field_index("raster") < 0


def _trim_strings(values: Values) -> pa.Array | None:
    """Return stripped strings, missing ones null; None if a value is not a string."""
    if not isinstance(values, list) and not pa.types.is_string(values.type):
        return None
    try:
        strings = pc.utf8_trim_whitespace(
            pa.array(values, pa.string()) if isinstance(values, list) else values
        )
    except (pa.ArrowException, TypeError, ValueError):  # ValueError: half a surrogate pair
        return None
    return pc.if_else(pc.is_in(strings, _MISSING), pa.scalar(None, pa.string()), strings)


def _parse_numbers(values: Values) -> pa.Array | None:
    """Return numbers, missing ones null; None where single values decide."""
    try:
        if not isinstance(values, list) and not pa.types.is_string(values.type):
            is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
            numbers = pc.cast(values, pa.float64(), safe=False) if is_number else None
        else:
            strings = _trim_strings(values)
            is_number = strings is not None and pc.all(
                pc.match_substring_regex(strings, f"^{_NUMBER.pattern}$")
            ).as_py() in (True, None)
            numbers = pc.cast(strings, pa.float64()) if is_number else None
    except pa.ArrowException:
        return None
    if numbers is None or not pc.any(pc.is_nan(numbers)).as_py():
        return numbers
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


CONVERTERS: dict[str, Callable[[Values], pa.Array]] = {
    "key": strings_to_arrow,
    "split": strings_to_arrow,
    "label": strings_to_arrow,
    "group": strings_to_arrow,
    "licence": strings_to_arrow,
    "lat": lambda values: degrees_to_arrow(values, 90.0),
    "lon": lambda values: degrees_to_arrow(values, 180.0),
    "time": times_to_arrow,
}
PLACE_COLUMNS = tuple(CONVERTERS)
NUMBER = "number:"  # what the fields that hold a vector's numbers begin with
