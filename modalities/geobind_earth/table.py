"""The rows of real Earth, made once into the cache folder."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from geobind.data.cache import build_once, cache_root
from geobind.data.columns import ArrayColumn, ArrowColumn, TableColumn
from geobind.data.dataset import DatasetRows
from geobind.utils.hashing import hash_sources, short_fingerprint
from geobind_earth.dataset import Earth
from geobind_earth.grids import SOURCES, locate_source
from geobind_earth.places import LandPlaces, draw_places, name_blocks
from geobind_earth.words import CLIMATES, describe_places, name_labels, write_captions

_log = logging.getLogger("geobind.earth")  # below the logger that the command line configures
_ARRAYS = ("tile", "heights", "climate", "cover", "coordinates", "facts")


def open_rows(options: Earth) -> DatasetRows:
    """Return the Arrow file of the places and their columns, made if need be.

    Raises:
        DataError: A package that holds a raster is not installed.
    """
    for name in SOURCES:
        locate_source(name)
    versions = {source.package: version(source.package) for source in SOURCES.values()}
    address = short_fingerprint(options.model_dump(), versions, hash_sources(__file__))
    folder = build_once(cache_root() / Earth.name / address, lambda target: _make(target, options))
    path = folder / "rows.arrow"
    columns: dict[str, TableColumn] = {name: ArrayColumn(folder / f"{name}.npy") for name in _ARRAYS}
    columns["captions"] = ArrowColumn(path, "captions")
    return DatasetRows(path, columns)


def _make(folder: Path, options: Earth) -> None:
    count = options.places + options.held_out + options.validation
    _log.info("making real Earth: %d places, once, into %s", count, folder.parent)
    places = draw_places(options)
    climate = np.concatenate(
        [places.turbidity_N12, np.eye(len(CLIMATES), dtype=np.float32)[places.zone_N - 1]], axis=1
    )
    arrays = {
        "tile": places.tile_NSS3,
        "heights": places.metres_NSS,
        "climate": climate,
        "cover": np.sqrt(places.cover_NK),
        "coordinates": np.stack([places.lat, places.lon], axis=1).astype(np.float32),
        "facts": places.facts(),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    table = _rows(places, options)
    with pa.ipc.new_file(str(folder / "rows.arrow"), table.schema) as writer:
        writer.write_table(table)


def _rows(places: LandPlaces, options: Earth) -> pa.Table:
    count = len(places.lat)
    words = describe_places(places)
    return pa.table(
        {
            "line": pa.array(range(count), pa.int64()),
            "key": [f"{Earth.name}:{split}:{row}" for row, split in enumerate(places.split)],
            "split": places.split.tolist(),
            "lat": places.lat,
            "lon": places.lon,
            "label": name_labels(places),
            "group": name_blocks(places.lat, places.lon, options.block_degrees).tolist(),
            "licence": [Earth.licence] * count,
            "captions": pa.array([write_captions(place) for place in words], pa.list_(pa.string())),
        }
    )
