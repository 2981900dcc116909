"""Texts from strings, files and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geobind.data.readers.files import describe, open_binary
from geobind.errors import DataError
from geobind.utils.arrays import is_bytes

MAX_TEXT_BYTES = 1_000_000


def read_text(raw: Any) -> str:
    """Return a stripped text.

    Args:
        raw: A string, which is the text itself, or a `Path` or bytes, which hold UTF-8.

    Raises:
        DataError: There is no text, too much of it (over a megabyte), or it is not UTF-8.
    """
    name = describe(raw)
    if isinstance(raw, str):
        text, name = raw, "the text given"
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
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half a character; tokenizers fail on it
        raise DataError(f"{name}: is not valid Unicode (it holds half a surrogate pair)")
    if not text.strip():
        raise DataError(f"{name}: is empty")
    return text.strip()
