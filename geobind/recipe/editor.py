"""What people and editors can know of a recipe's options: a JSON schema, and a flat list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from geobind.plugins import Registry
from geobind.recipe.schema import Recipe

Schema = dict[str, Any]
_ENTRY = "#/$defs/Entry"


def editor_schema(registry: Registry) -> Schema:
    """Return the JSON schema of recipes, with the options of every installed modality."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    entries: Schema = {}
    for name, plugin in registry.plugins.items():
        own = plugin.cls.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        definitions |= {f"{name}.{model}": part for model, part in own.pop("$defs", {}).items()}
        core = definitions["Entry"]["properties"]
        own["properties"] = {**own.get("properties", {}), **core}
        own["description"] = f"{plugin.source}. {own.get('description', '')}".strip()
        entries[name] = {"anyOf": [own, {"type": "null"}]}
    schema["properties"]["modalities"] |= {"properties": entries, "additionalProperties": {"$ref": _ENTRY}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "geobind recipe"}


def options_of(cls: type[BaseModel]) -> list[dict[str, Any]]:
    """List a class's options, nested ones too: path, type, default, whether required, help."""
    schema = cls.model_json_schema()
    return list(_options(schema, schema.get("$defs", {}), ()))


def _options(schema: Schema, definitions: Schema, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        yield {
            "path": ".".join((*path, name)),
            "type": _type(field),
            "default": field.get("default"),
            "required": name in required,
            "help": field.get("description", ""),
        }
        for inner in _references(field):
            yield from _options(definitions[inner], definitions, (*path, name))


def _references(field: Schema) -> Iterator[str]:
    for part in (field, *field.get("anyOf", []), *field.get("allOf", [])):
        if "$ref" in part:
            yield part["$ref"].rsplit("/", 1)[-1]


def _type(field: Schema) -> str:
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return " | ".join(_type(part) for part in field["anyOf"])
    if "$ref" in field:
        return field["$ref"].rsplit("/", 1)[-1]
    if field.get("type") == "array":
        inner = field.get("items") or {}
        return f"list of {_type(inner)}" if inner else "list"
    return str(field.get("type", "any"))
