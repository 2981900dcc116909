"""Say what pydantic found, at the place it was written, with the word that was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ValidationError

from geobind.errors import did_you_mean
from geobind.recipe.reading import Path_, Problem, Written

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def field_problems(
    written: Written, error: ValidationError, prefix: Path_, model: type[BaseModel]
) -> Iterator[Problem]:
    """Say what pydantic found, at the place it was written."""
    for item in error.errors(include_url=False, include_context=True):
        path = written_path(written.values, (*prefix, *item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            near = did_you_mean(str(item["loc"][-1]), _fields(model, item["loc"][:-1]))
            message = "unknown key" + (f"; {near}" if near else "")
        elif item["type"] == "missing":
            message = "missing; it must be given"
        elif item["type"] == "union_tag_not_found":
            path = (*path, _tag_key(item))
            message = "missing; it must be given"
        elif item["type"] == "union_tag_invalid":
            path = (*path, _tag_key(item))
            message = _unknown_tag(item)
        elif item["type"] in ("model_type", "model_attributes_type"):
            message = f"must be a block of keys (got {item['input']!r})"
        elif isinstance(item["input"], str | int | float | bool | None):
            message += f" (got {item['input']!r})"
        yield written.problem(path, message)


def _tag_key(item: ErrorDetails) -> str:
    """The key whose word says which block of several is meant."""
    return item.get("ctx", {})["discriminator"].strip("'")


def _unknown_tag(item: ErrorDetails) -> str:
    told = item.get("ctx", {})
    known, given = re.findall(r"'([^']*)'", told["expected_tags"]), told["tag"]
    near = did_you_mean(given, known)
    return f"Input should be one of {', '.join(known)} (got '{given}')" + (f"; {near}" if near else "")


def written_path(values: Any, loc: Path_) -> Path_:
    """Drop from pydantic's location the names of union members, which nobody wrote.

    The last word is kept even when it is absent: it is the key that is missing.
    """
    path: list[str | int] = []
    node: Any = values
    for position, word in enumerate(loc):
        inside = (isinstance(node, dict) and word in node) or (
            isinstance(node, list) and isinstance(word, int) and word < len(node)
        )
        if inside:
            node = cast(Any, node)[word]
            path.append(word)
        elif (
            position == len(loc) - 1
            and isinstance(node, dict)
            and isinstance(word, str)
            and word.isidentifier()
        ):
            path.append(word)
    return tuple(path)


def _fields(model: Any, loc: Path_) -> list[str]:
    """List the keys allowed in the block at `loc`, as far as the models tell."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for word in loc:
        nodes = [child for node in nodes for child in _children(node, word, definitions)] or nodes
    return [key for node in nodes for key in _expanded_properties(node, definitions)]


def _expand(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _expand(definitions[node["$ref"].rsplit("/", 1)[-1]], definitions)
    members = [m for key in ("anyOf", "oneOf", "allOf") for m in node.get(key, [])]
    return [node, *(found for member in members for found in _expand(member, definitions))]


def _children(node: dict[str, Any], word: str | int, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for option in _expand(node, definitions):
        if isinstance(word, int):
            found += [option["items"]] if isinstance(option.get("items"), dict) else []
        else:
            child = option.get("properties", {}).get(word, option.get("additionalProperties"))
            found += [child] if isinstance(child, dict) else []
    return found


def _expanded_properties(node: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    return [key for option in _expand(node, definitions) for key in option.get("properties", {})]
