"""Write docs/api.md, the list of every public name, from the code: `python docs/make_api.py`."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

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
    "geobind.losses",
    "geobind.towers",
    "geobind.testing",
    "geobind.importers",
    "geobind.importers.reading",
    "geobind.loggers",
    "geobind.pretrained",
    "geobind.errors",
]
PAGE = Path(__file__).parent / "api.md"
HEAD = """# Public API

These names are geobind's face: they keep their meaning and signature, and a change of one is told in
[CHANGELOG](../CHANGELOG.md). What is not listed here may move or change. The page is made from the code by
`python docs/make_api.py`; a test compares the two.
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


def render_page() -> str:
    """Return the text of docs/api.md."""
    parts = [HEAD]
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


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
