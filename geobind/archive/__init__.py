"""Archives: embeddings of a raster, a table or a folder as one GeoParquet file that every GIS reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geobind.utils.faces import lazy_names

if TYPE_CHECKING:
    from geobind.archive.archive import Archive as Archive
    from geobind.archive.archive import model_digest as model_digest
    from geobind.archive.embedding import embed_raster as embed_raster
    from geobind.archive.embedding import embed_table as embed_table
    from geobind.archive.joining import join_archives as join_archives
    from geobind.archive.table import TileGrid as TileGrid
    from geobind.archive.table import write_archive as write_archive

_HOMES = {
    "Archive": "geobind.archive.archive",
    "embed_raster": "geobind.archive.embedding",
    "embed_table": "geobind.archive.embedding",
    "join_archives": "geobind.archive.joining",
    "model_digest": "geobind.archive.archive",
    "TileGrid": "geobind.archive.table",
    "write_archive": "geobind.archive.table",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
