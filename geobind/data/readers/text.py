"""Texts from strings, files and bytes."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from geobind.data.readers.files import describe, open_binary
from geobind.errors import DataError
from geobind.utils.arrays import is_bytes

MAX_TEXT_BYTES = 1_000_000
MAX_WORD = 250  # letters of a run without spaces; tokenizers take the square of its length
_LETTERS_PER_TOKEN = 50  # the longest entry of CLIP's vocabulary is one of 32 bytes
# Characters of these categories show nothing by themselves: controls, formats, halves, spaces, marks.
_INVISIBLE = {"Cc", "Cf", "Cs", "Zs", "Zl", "Zp", "Mn", "Me"}
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a pattern that are drawn as nothing


def read_text(raw: Any) -> str:
    """Return a stripped text.

    Args:
        raw: A string, which is the text itself, or a `Path` or bytes, which hold UTF-8.

    Raises:
        DataError: There is no text or none that shows (zero-width characters alone), too much of it (over a
            megabyte), or it is not UTF-8.
    """
    name = describe(raw)
    if isinstance(raw, str):
        text, name = raw, "the text given"
        if len(text) > MAX_TEXT_BYTES:
            raise DataError(f"{name}: has over {MAX_TEXT_BYTES} letters; no encoder reads that much text")
    elif isinstance(raw, Path) or is_bytes(raw):
        with open_binary(raw) as file:
            content = file.read(MAX_TEXT_BYTES + 1)
        try:
            text = content[:MAX_TEXT_BYTES].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if len(content) <= MAX_TEXT_BYTES:  # otherwise the cut may have split a character
                raise DataError(f"{name}: not UTF-8 text: {error}") from error
            text = ""
        if len(content) > MAX_TEXT_BYTES:
            raise DataError(f"{name}: holds over {MAX_TEXT_BYTES} bytes; no encoder reads that much text")
    else:
        raise DataError(f"a text must be a string, a Path or bytes, not {name}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half a character; tokenizers fail on it
        raise DataError(f"{name}: is not valid Unicode (it holds half a surrogate pair)") from None
    text = text.strip()
    if not text:
        raise DataError(f"{name}: is empty")
    if not any(map(_shows, text)):
        raise DataError(
            f"{name}: shows nothing, since it holds {len(text)} invisible characters alone "
            f"(U+{ord(text[0]):04X} first); leave the row out"
        )
    return text


def limit_text(text: str, tokens: int) -> str:
    """Cut a text to what an encoder of so many tokens can read, before it is tokenised.

    A run without spaces is cut after `MAX_WORD` letters and the text after `50 * tokens`, more than so many
    tokens hold: the rest would be cut off after tokenising. A text within both limits stays as it is.
    """
    most = _LETTERS_PER_TOKEN * tokens
    words = text.split(maxsplit=most)
    if len(text) <= most and all(len(word) <= MAX_WORD for word in words):
        return text
    return " ".join(word[:MAX_WORD] for word in words)[:most]


def _shows(letter: str) -> bool:
    return letter not in _BLANKS and unicodedata.category(letter) not in _INVISIBLE
