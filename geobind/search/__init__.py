"""Search over archives of embeddings: composed queries, exact search, indexes of measured recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.search.hits import Hits as Hits
    from geobind.search.hits import build_index as build_index
    from geobind.search.hits import search as search
    from geobind.search.index import ApproximateIndex as ApproximateIndex
    from geobind.search.index import Exact as Exact
    from geobind.search.index import Matches as Matches
    from geobind.search.index import MeasuredRecall as MeasuredRecall
    from geobind.search.index import VectorIndex as VectorIndex
    from geobind.search.index import create_index as create_index
    from geobind.search.index import load_index as load_index
    from geobind.search.query import Query as Query
    from geobind.search.query import embed_query as embed_query
    from geobind.search.query import parse_query as parse_query
    from geobind.search.recall import measure_recall as measure_recall

_HOMES = {
    "ApproximateIndex": "geobind.search.index",
    "Exact": "geobind.search.index",
    "Hits": "geobind.search.hits",
    "Matches": "geobind.search.index",
    "MeasuredRecall": "geobind.search.index",
    "Query": "geobind.search.query",
    "VectorIndex": "geobind.search.index",
    "build_index": "geobind.search.hits",
    "create_index": "geobind.search.index",
    "embed_query": "geobind.search.query",
    "load_index": "geobind.search.index",
    "measure_recall": "geobind.search.recall",
    "parse_query": "geobind.search.query",
    "search": "geobind.search.hits",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
