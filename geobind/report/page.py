"""Pages from templates: everything that is put into one is escaped, and nothing in one is fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import geobind
from geobind.report.matrix import TITLES
from geobind.utils import formatting

_TEMPLATES = Path(__file__).parent / "templates"


def trained(parts: Mapping[str, str]) -> str:
    """Write what a stage trained: encoders, and the part of each that is not the whole."""
    return formatting.listed([name if part == "full" else f"{name} ({part})" for name, part in parts.items()])


def cosine(similarity: float) -> str:
    """Write a cosine similarity."""
    return f"{similarity:.2f}".replace("-", "−")


def share(part: float) -> str:
    """Write a share in percent."""
    return f"{100 * part:.1f}{formatting.NBSP}%"


def title_of(measure: str) -> str:
    """Write the name of a measure."""
    return TITLES.get(measure, measure)


def sentence(text: str) -> str:
    """Write what is said as a sentence."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


_FILTERS: dict[str, Callable[..., str]] = {
    "number": formatting.number,
    "signed": formatting.signed,
    "cosine": cosine,
    "share": share,
    "duration": formatting.duration,
    "size": formatting.size,
    "listed": formatting.listed,
    "thing": formatting.count,
    "trained": trained,
    "title_of": title_of,
    "sentence": sentence,
}


def render(template: str, **values: Any) -> bytes:
    """Fill a template; every value is escaped unless it is an SVG drawing of our own."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    style = Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
    shared = {"style": style, "version": geobind.__version__}
    # Half a surrogate pair in a caption is no character, and cannot be written as one.
    return environment.get_template(template).render(shared, **values).encode("utf-8", "replace")
