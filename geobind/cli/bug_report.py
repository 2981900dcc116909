"""Reports of unexpected errors: a file to send with a bug report."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import geobind

_KEPT = 20  # reports in the folder
_LONGEST = 200_000  # characters of a traceback


def explain_unexpected(error: BaseException) -> str:
    """Write a bug report about an error that nobody foresaw and return one line that names both."""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(": ")
    report = _write_report(error, what)
    where = f"; a report for its authors is in {report}" if report else ""
    return f"unexpected {what}{where} (--debug shows the traceback)"


def _write_report(error: BaseException, what: str) -> Path | None:
    """Write a report into the cache folder, or where temporary files go; None if neither can be written."""
    from geobind.data.cache import cache_root

    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    text = ""
    with suppress(Exception):
        text = "\n".join(_lines(error, what))
    for folder in (cache_root() / "bug_reports", Path(tempfile.gettempdir())):
        path = folder / f"geobind-{name}"
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            if folder.name == "bug_reports":
                _remove_old(folder)
            return path
    return None


def _remove_old(folder: Path) -> None:
    for path in sorted(folder.glob("geobind-*.txt"))[:-_KEPT]:
        path.unlink(missing_ok=True)


def _lines(error: BaseException, what: str) -> Iterator[str]:
    yield from (f"geobind {geobind.__version__} met an error that it does not foresee.", "")
    yield f"what      {what}"
    yield f"command   geobind {' '.join(map(repr, sys.argv[1:]))}"
    yield from ("", "This installation (`geobind doctor` tests it):", "")
    yield from _list_installation()
    yield from ("", "Traceback:", "")
    yield "".join(traceback.format_exception(error))[-_LONGEST:]


def _list_installation() -> Sequence[str]:
    """List machine and packages, as far as that takes no imports and no processes."""
    try:
        from geobind.doctor.examination import summarise

        return [f"  {finding.part:17}  {finding.told}" for finding in summarise()]
    except Exception as error:  # the installation may be what is broken
        return [f"  cannot be examined: {type(error).__name__}: {error}"]
