"""Importers: manifests of public datasets as they are distributed.

An importer reads one dataset's layout and yields rows; this package finds importers, writes the manifest, and
counts what is missing. The built-in importers come through the entry points third parties use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geobind.importers.contract import Column, Importer, LeftOut, Row

if TYPE_CHECKING:
    from geobind.importers.writing import ImportSummary, write_manifest

__all__ = ["Column", "ImportSummary", "Importer", "LeftOut", "Row", "write_manifest"]


def __getattr__(name: str) -> Any:
    # Plugins import this package to derive their classes, and should not pay for Arrow then.
    if name in ("ImportSummary", "write_manifest"):
        from geobind.importers import writing

        return getattr(writing, name)
    raise AttributeError(f"module 'geobind.importers' has no attribute {name!r}")
