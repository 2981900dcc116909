"""Formatting of numbers, durations and lists; a number and its unit stay on one line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

NBSP = "\N{NO-BREAK SPACE}"
_ORDINALS = {1: "st", 2: "nd", 3: "rd"}


def format_number(value: float) -> str:
    """Write a measure: one decimal from 1.5 on (ranks), three below (shares)."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.1f}" if abs(value) >= 1.5 else f"{value:.3f}"


def format_decimal(value: float) -> str:
    """Write a measure with three decimals, whatever its size."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def format_signed(value: float) -> str:
    """Write a difference with its sign."""
    return "–" if not math.isfinite(value) else ("+" if value >= 0 else "−") + format_number(abs(value))


def format_duration(seconds: float) -> str:
    """Write a length of time with its two largest units."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 59.5:
        return f"{seconds:.1f}{NBSP}s" if seconds < 10 else f"{seconds:.0f}{NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{NBSP}min{NBSP}{whole % 60:02d}{NBSP}s"
    return f"{whole // 3600}{NBSP}h{NBSP}{whole % 3600 // 60:02d}{NBSP}min"


def format_size(count: float) -> str:
    """Write a number of bytes."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            plain = unit == "bytes" or count >= 100
            return f"{count:.0f}{NBSP}{unit}" if plain else f"{count:.1f}{NBSP}{unit}"
        count /= 1000
    return f"{count:.1f}{NBSP}GB"


def format_rank(value: float) -> str:
    """Write a rank as an ordinal; the mean rank of a tie keeps its half."""
    if value != int(value):
        return f"{value:,.1f}th"
    whole = int(value)
    ending = "th" if whole % 100 in (11, 12, 13) else _ORDINALS.get(whole % 10, "th")
    return f"{whole:,}{ending}"


def shorten(text: str, most: int) -> str:
    """Cut a text at a word, with an ellipsis, so that it is no longer than `most` characters."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    cut = text[: most - 1]
    return (cut.rsplit(" ", 1)[0] if " " in cut[most // 2 :] else cut) + "…"


def format_first_fault(error: ValidationError, *keys: str, whole: str = "the file", skip: int = 0) -> str:
    """Format the first fault of values that pydantic refused: its key, then what is wrong.

    `keys` come before the key that pydantic states, of which the first `skip` parts are left out; `whole`
    names the values where no key is at fault. Keys are a stranger's, and cut at 100 characters.
    """
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = shorten(".".join(map(str, (*keys, *first["loc"][skip:]))), 100)
    return f"{where or whole}: {first['msg'].removeprefix('Value error, ')}"


def join_words(words: Sequence[str]) -> str:
    """Join words as a sentence does: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def format_count(how_many: int, thing: str) -> str:
    """Write how many things there are, in the plural where it is due."""
    return f"{how_many:,} {thing}{'' if how_many == 1 else 's'}"


def format_percent(share: float) -> str:
    """Format a share in percent."""
    return f"{100 * share:.1f}{NBSP}%"


def format_cosine(similarity: float) -> str:
    """Format a cosine similarity."""
    return f"{similarity:.2f}".replace("-", "−")


def format_sentence(text: str) -> str:
    """Format a text as a sentence."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
