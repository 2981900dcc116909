"""Write docs/api.md, docs/cli.md and docs/recipe_keys.md from the code: `python docs/make_reference.py`."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import click

from geobind import Recipe
from geobind.cli import main

DOCS = Path(__file__).parent
# What users, documents and plugins import. Everything else may move without notice.
PUBLIC = [
    "geobind",
    "geobind.data",
    "geobind.archive",
    "geobind.search",
    "geobind.maps",
    "geobind.serving",
    "geobind.evaluation",
    "geobind.export",
    "geobind.bridge",
    "geobind.fuser",
    "geobind.losses",
    "geobind.towers",
    "geobind.testing",
    "geobind.importers",
    "geobind.importers.reading",
    "geobind.loggers",
    "geobind.pretrained",
    "geobind.errors",
]
_API_HEAD = """# Public API

These names are geobind's face: they keep their meaning and signature, and a change of one is told in
[CHANGELOG](../CHANGELOG.md). What is not listed here may move or change. The page is made from the code by
`python docs/make_reference.py`; a test compares the two.
"""
_CLI_HEAD = """# Commands

Made from `geobind COMMAND --help` by `python docs/make_reference.py`. Every command also takes
`-q` (`--quiet`, warnings and errors alone), `-v` (`--verbose`, debug messages), `--debug` (the
traceback of an error) and `-h` (`--help`).
"""
_COMMON = ("-q, --quiet", "-v, --verbose", "--debug", "-h, --help")
_KEYS_HEAD = """# Recipe keys

Every key that a recipe may have, with its type, default and meaning; [Recipes](recipes.md) explains how they
work together. Options of a modality stand in `geobind modalities show NAME`. The page is made from the schema
by `python docs/make_reference.py`; a test compares the two.
"""


def public_names(module: Any) -> list[str]:
    """Return the public names of a module: its `__all__`, or what it defines without an underscore."""
    listed = getattr(module, "__all__", None)
    if listed is None:
        defined = vars(module).items()
        listed = [
            name
            for name, value in defined
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
        ]
    return sorted(listed, key=lambda name: (name.lower(), name))


def render_signature(value: Any) -> str:
    """Return the parameters of a function or class with their defaults, without annotations."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        plain = parameter.replace(annotation=parameter.empty)
        default = parameter.default
        if default is not parameter.empty and not isinstance(default, str | int | float | tuple | type(None)):
            plain = plain.replace(default=_Ellipsis())
        parameters.append(plain)
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


class _Ellipsis:
    """A default that is an object, whose repr may differ from one Python to the next."""

    def __repr__(self) -> str:
        return "..."


def render_names() -> str:
    """Return the text of docs/api.md."""
    parts = [_API_HEAD]
    for name in PUBLIC:
        module = importlib.import_module(name)
        parts.append(f"## {name}\n\n{_first_paragraph(module)}\n")
        for word in public_names(module):
            value = getattr(module, word)
            if inspect.isclass(value) or inspect.isroutine(value):
                parts.append(f"- `{word}{render_signature(value)}`: {_first_paragraph(value)}")
            else:
                parts.append(f"- `{word}`")
        parts.append("")
    return "\n".join(parts)


def _first_paragraph(value: Any) -> str:
    text = inspect.getdoc(value) or ""
    return " ".join(text.partition("\n\n")[0].split())


def render_commands() -> str:
    """Return the text of docs/cli.md."""
    parts = [_CLI_HEAD]
    with click.Context(main, info_name="geobind", **main.context_settings) as ctx:
        for name in main.list_commands(ctx):
            command = main.get_command(ctx, name)
            assert command is not None
            parts += _render_command(command, ctx, name, level=2)
    return "\n".join(parts)


def _render_command(command: click.Command, parent: click.Context, name: str, level: int) -> list[str]:
    with click.Context(command, info_name=name, parent=parent) as ctx:
        usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
        parts = [f"{'#' * level} {ctx.command_path}\n", f"```text\n{usage}\n```\n"]
        parts += [_render_help(command.help or "")]
        if command.epilog:
            parts += [_render_help(command.epilog)]
        given = [record for option in command.get_params(ctx) if (record := option.get_help_record(ctx))]
        records = [record for record in given if record[0] not in _COMMON]
        if records:
            parts += ["| option | meaning |", "|---|---|"]
            parts += [f"| `{_cell(words)}` | {_escape(_cell(meaning))} |" for words, meaning in records]
            parts.append("")
        if isinstance(command, click.Group):
            for word in command.list_commands(ctx):
                below = command.get_command(ctx, word)
                if below is not None:
                    parts += _render_command(below, ctx, word, level + 1)
    return parts


def _render_help(text: str) -> str:
    """Keep paragraphs that click is told not to wrap as they are, in a block."""
    rendered: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith("\b"):
            rendered.append("```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```")
        else:
            rendered.append(_escape(" ".join(paragraph.split())))
    return "\n\n".join(rendered) + "\n"


def render_keys() -> str:
    """Return the text of docs/recipe_keys.md."""
    schema = Recipe.model_json_schema()
    parts = [_KEYS_HEAD, *_render_block("A recipe", schema)]
    for name, block in schema["$defs"].items():
        if "properties" in block:
            parts += _render_block(name, block)
    return "\n".join(parts)


def _render_block(name: str, block: dict[str, Any]) -> list[str]:
    needed = set(block.get("required", ()))
    parts = [f"## {name}\n"]
    if name != "A recipe" and block.get("description"):
        parts.append(_escape(" ".join(str(block["description"]).split())) + "\n")
    parts += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, value in block["properties"].items():
        default = "needed" if key in needed else _render_default(value)
        meaning = _escape(_cell(value.get("description", "")))
        parts.append(f"| `{key}` | {_name_type(value)} | {default} | {meaning} |")
    return [*parts, ""]


def _render_default(value: dict[str, Any]) -> str:
    """Write a default as YAML takes it; that of a block stands where the block does."""
    if "default" not in value or isinstance(value["default"], dict):
        return ""
    return f"`{_cell(json.dumps(value['default']))}`"


def _name_type(value: dict[str, Any]) -> str:
    """Return the type of a key's value in words, with its bounds and a link where it is a block."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for choices in ("anyOf", "oneOf"):
        if choices in value:
            return " or ".join(dict.fromkeys(map(_name_type, value[choices])))
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    kind = {"string": "text", "object": "block", "null": "nothing"}.get(
        value.get("type", ""), value.get("type", "any")
    )
    if kind == "array":
        return f"list of {_name_type(value.get('items', {}))}"
    if kind == "block" and isinstance(value.get("additionalProperties"), dict):
        return f"block of {_name_type(value['additionalProperties'])} by name"
    low = value.get("minimum", value.get("exclusiveMinimum"))
    high = value.get("maximum", value.get("exclusiveMaximum"))
    if low is None and high is None:
        return str(kind)
    signs = (">" if "exclusiveMinimum" in value else "≥", "<" if "exclusiveMaximum" in value else "≤")
    bounds = [
        f"{sign} {bound:,}" for sign, bound in zip(signs, (low, high), strict=True) if bound is not None
    ]
    return f"{kind} {', '.join(bounds)}"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _escape(text: str) -> str:
    """Keep what looks like a tag of HTML as text."""
    return re.sub(r"<(?=[\w/])", "&lt;", text)


PAGES = {"api.md": render_names, "cli.md": render_commands, "recipe_keys.md": render_keys}

if __name__ == "__main__":
    for page, render in PAGES.items():
        (DOCS / page).write_text(render().rstrip("\n") + "\n", encoding="utf-8")
