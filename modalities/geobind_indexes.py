"""Approximate indexes that come with geobind: faiss and LanceDB."""

from __future__ import annotations

from typing import TYPE_CHECKING

import geobind

if TYPE_CHECKING:
    from geobind.search import VectorIndex


@geobind.hookimpl
def geobind_indexes() -> list[type[VectorIndex]]:
    """Offer them; numpy is imported only when an index is looked for."""
    from geobind_index_engines import Faiss, Lance

    return [Faiss, Lance]
