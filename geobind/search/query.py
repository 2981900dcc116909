"""Queries composed of observations of any modalities, as commands, pages and Python write them."""

# D width

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geobind.archive.archive import check_box
from geobind.errors import DataError, did_you_mean
from geobind.modality import Content, Modality, Place
from geobind.scoring import add_embeddings
from geobind.utils.files import read_limited
from geobind.utils.formatting import format_count, format_number, shorten

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.archive import Archive
    from geobind.archive.table import Box
    from geobind.binder import Binder

MAX_BYTES = 500_000_000  # of a file that a query names
MAX_PARTS = 64


class QueryPart(NamedTuple):
    """One observation of a query and its weight."""

    modality: str
    raw: Any
    weight: float
    label: str  # of the observation, for people

    def __str__(self) -> str:
        return f"{self.modality} {self.label}"


@dataclass(frozen=True, eq=False)
class Query:
    """An embedded query: its unit-length vector (D,), its words, and the modality if it has one part."""

    vector: NDArray[np.float32]
    label: str = "query"
    modality: str | None = None


def parse_query(
    queries: Sequence[str],
    weights: Sequence[str],
    modalities: Mapping[str, Modality],
    *,
    option: str = "--query",
) -> list[QueryPart]:
    """Parse the parts of a query from NAME=VALUE and weights from NAME=NUMBER.

    `NAME=@FILE` reads a file. A modality of texts takes any other value as its words, one of places takes
    `LAT,LON`; every other modality needs a file. Nothing but what follows `@` is ever a path. The n-th weight
    of a modality is that of its n-th part.

    Args:
        queries: Such as `text=church bells` and `audio=@rain.wav`.
        weights: Such as `audio=-0.5`.
        modalities: Those of the binder that will embed them.
        option: What messages call the first.

    Raises:
        DataError: One is not of that form, names a modality that is not there, a file that cannot be read, or
            a weight without a part.
    """
    if not queries:
        raise DataError(f'no query: give at least one, such as {option} text="church bells"')
    if len(queries) > MAX_PARTS:
        raise DataError(f"{len(queries)} parts of a query; give at most {MAX_PARTS}")
    named = [_split(option, text, 'NAME=VALUE, such as text="church bells"') for text in queries]
    given = [_split("--weight", text, "NAME=NUMBER, such as audio=-0.5") for text in weights]
    for name, _ in [*named, *given]:
        if name not in modalities:
            hint = did_you_mean(name, modalities, f"it has {', '.join(sorted(modalities))}")
            raise DataError(f"this bundle has no modality '{name}'; {hint}")
    weight_of = {name: _parse_weights(name, sum(one == name for one, _ in named), given) for name, _ in named}
    if unused := next((name for name, _ in given if name not in weight_of), None):
        raise DataError(f"--weight {unused}: there is no {option} {unused}; a weight needs its part")
    parts: list[QueryPart] = []
    for name, value in named:
        raw, label = _read_value(modalities[name], value, f"{option} {name}={shorten(value, 60)}")
        parts.append(QueryPart(name, raw, weight_of[name].pop(0), label))
    return parts


def _split(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name.strip() or not equals or not value.strip():
        raise DataError(f"{option} {shorten(text, 80)}: write {form}")
    return name.strip(), value.strip()


def _parse_weights(name: str, parts: int, given: Sequence[tuple[str, str]]) -> list[float]:
    """Return the weights of a modality's parts, 1 each where none are given."""
    texts = [value for one, value in given if one == name]
    if texts and len(texts) != parts:
        raise DataError(
            f"{format_count(len(texts), 'weight')} of {name} for {format_count(parts, 'part')} of it; give "
            "one for each, in their order"
        )
    weights: list[float] = []
    for text in texts:
        try:
            weights.append(float(text))
        except ValueError:
            weights.append(math.nan)
        if not math.isfinite(weights[-1]):
            raise DataError(f"--weight {name}={shorten(text, 40)}: not a number; write such as {name}=-0.5")
    return weights or [1.0] * parts


def _read_value(modality: Modality, value: str, where: str) -> tuple[Any, str]:
    """Return the raw input of a value, and its words."""
    if value.startswith("@"):
        path = Path(value[1:])
        try:
            content = read_limited(path, MAX_BYTES, "one observation")
        except OSError as error:
            raise DataError(f"{where}: {path} cannot be read: {error.strerror or error}") from error
        return Content(content, str(path)), path.name
    if modality.widget == "text":
        return value, f'"{shorten(value, 80)}"'
    if modality.widget == "place":
        place = _parse_place(value, where)
        return place, str(place)
    if modality.widget == "numbers":
        numbers = parse_numbers(value)
        if numbers is None:
            raise DataError(f"{where}: write numbers with commas between, such as {modality.name}=0.5,12")
        return np.array(numbers), shorten(value, 40)
    raise DataError(f"{where}: {modality.name} is read from a file; write {modality.name}=@{value}")


def _parse_place(text: str, where: str) -> Place:
    numbers = parse_numbers(text, 2)
    if numbers is None or not (abs(numbers[0]) <= 90 and abs(numbers[1]) <= 180):
        raise DataError(f"{where}: a place is LATITUDE,LONGITUDE in degrees, such as 46.95,7.44")
    return Place(numbers[0], numbers[1])


def parse_numbers(text: str, count: int | None = None) -> tuple[float, ...] | None:
    """Return finite numbers with commas between, so many if `count` is given; None for another text."""
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        return None
    fits = count in (None, len(numbers)) and all(map(math.isfinite, numbers))
    return numbers if fits else None


def embed_query(binder: Binder, parts: Sequence[QueryPart] | Mapping[str, Any], **weights: float) -> Query:
    """Embed the parts of a query and add them with their weights.

    Args:
        binder: The binder of the archive.
        parts: As `parse_query` gives them; or one raw input for each modality, as `Binder.compose` takes.
        weights: By modality, for raw inputs; default 1 each, negative ones subtract.

    Raises:
        DataError: An input cannot be read, or the parts cancel out.
    """
    if isinstance(parts, Mapping):
        if unused := next((name for name in weights if name not in parts), None):
            raise DataError(f"a weight for {unused}, but no input of it")
        parts = [
            QueryPart(name, raw, float(weights.get(name, 1.0)), _describe(raw)) for name, raw in parts.items()
        ]
    embedded = {str(number): binder.embed(part.modality, [part.raw]) for number, part in enumerate(parts)}
    weight_of = {str(number): part.weight for number, part in enumerate(parts)}
    vector_1D = add_embeddings(embedded, weight_of)
    alone = parts[0].modality if len(parts) == 1 and parts[0].weight > 0 else None
    return Query(vector_1D[0].numpy(), describe_parts(parts), alone)


def describe_parts(parts: Sequence[QueryPart]) -> str:
    """Return a query in words, such as `text "church bells" - 0.5 x audio rain.wav`."""
    words = ""
    for number, part in enumerate(parts):
        size = "" if abs(part.weight) == 1 else f"{format_number(abs(part.weight))} x "
        sign = ("" if number == 0 else " + ") if part.weight >= 0 else ("-" if number == 0 else " - ")
        words += f"{sign}{size}{part}"
    return words


def _describe(raw: Any) -> str:
    if isinstance(raw, Path):
        return raw.name
    if isinstance(raw, Content):
        return Path(raw.name).name
    return (
        f'"{shorten(raw, 80)}"' if isinstance(raw, str) else str(raw) if isinstance(raw, Place) else "input"
    )


def as_query(query: Any) -> Query:
    """Return a query as such; an embedding, as `Binder.compose` gives it, becomes one without words.

    Raises:
        DataError: It is several embeddings, or none.
    """
    if isinstance(query, Query):
        return query
    from geobind.search.index import check_queries

    shape = getattr(query, "shape", None)
    if shape is None or len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] != 1):
        raise DataError(
            "a query is one embedding, (D,) or (1, D), as Binder.compose gives it, or what embed_query "
            f"gives; not {f'of shape {tuple(shape)}' if shape is not None else f'a {type(query).__name__}'}"
        )
    return Query(check_queries(query, shape[-1])[0])


def check_width(query: Query, archive: Archive) -> None:
    """Check that a query is as wide as the embeddings of an archive.

    Raises:
        DataError: It is not.
    """
    if query.vector.shape != (archive.width,):
        raise DataError(
            f"the query has width {query.vector.shape[0]}, and {archive.path} holds embeddings of width "
            f"{archive.width}; embed it with the bundle that the archive was made with"
        )


# Where and when ---------------------------------------------------------------------------------------


def parse_bbox(text: str) -> Box:
    """Parse W,S,E,N in degrees; a west larger than the east crosses the antimeridian.

    Raises:
        DataError: It is not four numbers, or they are no such degrees.
    """
    numbers = parse_numbers(text, 4)
    if numbers is None:
        raise DataError(f"--bbox {shorten(text, 60)}: write W,S,E,N in degrees, such as 7.3,46.9,7.5,47.0")
    return check_box(numbers)


_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_time(text: str) -> tuple[datetime | None, datetime | None]:
    """Parse A/B, both ISO 8601 and both included; `..` or nothing leaves a side open, one day is that day.

    Raises:
        DataError: One is no such time, or A is later than B.
    """
    first, slash, last = (word.strip() for word in text.partition("/"))
    start = _parse_moment(first, text, end=False)
    end = _parse_moment(last if slash else first, text, end=True)
    if start is None and end is None:
        raise DataError(f"--time {shorten(text, 60)}: leaves both sides open; leave it out instead")
    if start and end and (start.tzinfo is None) != (end.tzinfo is None):
        raise DataError(
            f"--time {shorten(text, 60)}: one of the two has a time zone; give both one, or neither"
        )
    if start and end and start > end:
        raise DataError(f"--time {shorten(text, 60)}: begins after it ends; write the earlier time first")
    return start, end


def _parse_moment(word: str, text: str, *, end: bool) -> datetime | None:
    if word in ("", ".."):
        return None
    try:
        moment = datetime.fromisoformat(word)
    except ValueError as error:
        raise DataError(
            f"--time {shorten(text, 60)}: write A/B in ISO 8601, such as 2024-06-01/2024-08-31"
        ) from error
    if end and _DAY.fullmatch(word):
        moment += timedelta(days=1) - timedelta(microseconds=1)
    return moment
