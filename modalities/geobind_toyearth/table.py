"""The rows of toy Earth, rendered into the cache folder or written as files."""

# N places, Q queries, F facts

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from geobind.data.cache import build_once, cache_root
from geobind.data.columns import ArrayColumn, ArrowColumn, TableColumn
from geobind.data.dataset import DatasetRows
from geobind.errors import DataError
from geobind.utils.arrow import map_arrow_table
from geobind.utils.hashing import hash_sources, short_fingerprint
from geobind.utils.progress import is_interactive, track
from geobind_toyearth.cameras import render_clips, render_depths
from geobind_toyearth.captions import write_captions
from geobind_toyearth.dataset import ToyEarth
from geobind_toyearth.motion import render_motions
from geobind_toyearth.photos import render_photos
from geobind_toyearth.planet import FACTS, Places, Planet
from geobind_toyearth.rasters import render_heights, render_lights, render_temperatures
from geobind_toyearth.sounds import render_sounds
from geobind_toyearth.tiles import render_tiles
from geobind_toyearth.vectors import embed_places, measure_covariates

if TYPE_CHECKING:
    from numpy.typing import NDArray

_log = logging.getLogger("geobind.toyearth")  # below the logger that the command line configures
_CHUNK = 100  # places rendered at a time
_YEAR = 2024


def open_rows(options: ToyEarth) -> DatasetRows:
    """Return the Arrow file of toy Earth's places and its columns, each rendered when it is looked up."""
    # Without rows for validation the planet has the address that it had before there were any.
    settings = options.model_dump(exclude=set() if options.validation else {"validation"})
    address = short_fingerprint(settings, hash_sources(__file__))
    folder = build_once(cache_root() / ToyEarth.name / address, lambda target: _write_rows(target, options))
    return DatasetRows(folder / _ROWS, _RenderedColumns(folder, options))


class _RenderedColumns(Mapping[str, TableColumn]):
    """The columns of toy Earth; those that are arrays are rendered into the cache when they are looked up."""

    def __init__(self, folder: Path, options: ToyEarth) -> None:
        self._folder, self._options = folder, options

    def __getitem__(self, name: str) -> TableColumn:
        if name not in self:
            raise KeyError(name)
        if name == CAPTIONS:
            return ArrowColumn(self._folder / _ROWS, CAPTIONS)
        folder = build_once(self._folder / name, lambda target: _render(target, name, self._options))
        return ArrayColumn(folder / f"{name}.npy", _RATES[name](self._options) if name in _RATES else None)

    def __contains__(self, name: object) -> bool:
        return name in _RENDERERS or name == CAPTIONS

    def __iter__(self) -> Iterator[str]:
        yield from (*_RENDERERS, CAPTIONS)

    def __len__(self) -> int:
        return len(_RENDERERS) + 1


def _render_sounds(places: Places, options: ToyEarth) -> NDArray[np.int16]:
    samples_NT = render_sounds(places, options.seed, options.seconds, options.rate)
    return np.round(np.clip(samples_NT, -1, 1) * 32767).astype(np.int16)


_MOTION_RATE = 50  # Hz
_ROWS = "rows.arrow"
CAPTIONS = "captions"
# The columns that are arrays: a row for each place.
_RENDERERS: dict[str, Callable[[Places, ToyEarth], NDArray[Any]]] = {
    "tile": lambda places, options: render_tiles(places, options.seed, options.tile_size, options.gsd),
    "photo": lambda places, options: render_photos(places, options.seed, options.photo_size),
    "sound": _render_sounds,
    "facts": lambda places, options: places.facts,
    "heights": lambda places, options: render_heights(places, options.seed, options.tile_size, options.gsd),
    "lights": lambda places, options: render_lights(places, options.seed, options.tile_size, options.gsd),
    "temperature": lambda places, options: render_temperatures(
        places, options.seed, options.tile_size, options.gsd
    ),
    "depth": lambda places, options: render_depths(places, options.seed, options.photo_size),
    "clip": lambda places, options: render_clips(places, options.seed, options.photo_size),
    "motion": lambda places, options: render_motions(places, options.seed, rate=_MOTION_RATE),
    "covariates": lambda places, options: measure_covariates(places, options.seed),
    "embedding": lambda places, options: embed_places(places, options.seed),
}
# Samples a second of those that are recordings.
_RATES: dict[str, Callable[[ToyEarth], int]] = {
    "sound": lambda options: options.rate,
    "motion": lambda options: _MOTION_RATE,
}


def write_files(folder: Path, options: ToyEarth) -> Path:
    """Write toy Earth as PNG and WAV files with a CSV manifest, and return the manifest.

    Raises:
        DataError: The folder cannot be written, or holds a manifest already.
    """
    import soundfile
    from PIL import Image

    path, columns = open_rows(options)
    manifest = folder / "manifest.csv"
    if manifest.exists():
        raise DataError(f"{manifest}: is there already; choose another folder or delete it")
    rows = map_arrow_table(path).drop_columns(["line"]).to_pylist()
    try:
        cells = {name: columns[name] for name in ("tile", "photo", "sound")}
        for name in cells:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for row in track(range(len(rows)), "writing toy Earth", len(rows)):
            files = {name: f"{name}/{row:06d}.{'wav' if name == 'sound' else 'png'}" for name in cells}
            for name in ("tile", "photo"):
                Image.fromarray(cells[name][row]).save(folder / files[name])
            samples_T, rate = cells["sound"][row]
            soundfile.write(folder / files["sound"], samples_T, rate, subtype="PCM_16")
            rows[row] |= {**files, "captions": json.dumps(rows[row]["captions"])}
        with open(manifest, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise DataError(f"cannot write toy Earth to {folder}: {error.strerror or error}") from error
    return manifest


def list_places(options: ToyEarth) -> Places:
    """Return the places of toy Earth, in the order of its rows: to train on, held out, and for validation."""
    count = options.places + options.held_out + options.validation
    return Planet(options.seed).places(count, options.seed)


def render_column(name: str, places: Places, options: ToyEarth) -> Sequence[Any]:
    """Render one column of any places, such as a tile, a photo or a sound of each.

    Raises:
        DataError: There is no such column.
    """
    if name == CAPTIONS:
        return write_captions(places, options.seed, options.captions)
    if name not in _RENDERERS:
        known = ", ".join((*_RENDERERS, CAPTIONS))
        raise DataError(f"{ToyEarth.name}: has no column '{name}'; its columns: {known}")
    array = _RENDERERS[name](places, options)
    return [(row, _RATES[name](options)) for row in array] if name in _RATES else list(array)


def _render(folder: Path, name: str, options: ToyEarth) -> None:
    """Render a column of arrays into a folder, in chunks, by as many processes as load data."""
    from geobind.data.loader import choose_workers, load_batches  # imports torch

    places = list_places(options)
    count = len(places.lat)
    if not is_interactive() and count >= 1000:  # no bar will be seen
        _log.info("rendering %s of toy Earth: %d places, once, into %s", name, count, folder.parent)
    first = _RENDERERS[name](places.take(slice(0, _CHUNK)), options)
    path, shape = folder / f"{name}.npy", (count, *first.shape[1:])
    array = np.lib.format.open_memmap(path, "w+", first.dtype, shape)
    array[:_CHUNK] = first
    starts = range(_CHUNK, count, _CHUNK)
    # A process that another one loads data in may have none of its own.
    workers = 0 if multiprocessing.current_process().daemon else choose_workers(count)
    chunks: Any = _Chunks(path, name, options, places)
    # One would only do the work of this process.
    done = load_batches(chunks, ([start] for start in starts), sum, workers if workers > 1 else 0, pin=False)
    for _ in track(done, f"rendering {name} of toy Earth", len(starts)):
        pass
    array.flush()


@dataclass(frozen=True, eq=False)
class _Chunks:
    """Chunks of a column, each rendered into its file when it is asked for."""

    path: Path
    name: str
    options: ToyEarth
    places: Places

    def __getitem__(self, start: int) -> int:
        rows = slice(start, start + _CHUNK)
        array = np.lib.format.open_memmap(self.path, "r+")
        array[rows] = _RENDERERS[self.name](self.places.take(rows), self.options)
        return 0


def _write_rows(folder: Path, options: ToyEarth) -> None:
    places = list_places(options)
    table = _rows(places, write_captions(places, options.seed, options.captions), options)
    with pa.ipc.new_file(str(folder / _ROWS), table.schema) as writer:
        writer.write_table(table)


def _rows(places: Places, captions: list[list[str]], options: ToyEarth) -> pa.Table:
    count = len(captions)
    # Last, so that asking for them moves no other row.
    split = ["train"] * options.places + ["test"] * options.held_out + ["val"] * options.validation
    return pa.table(
        {
            "line": pa.array(range(count), pa.int64()),
            "key": [f"{ToyEarth.name}:{split[row]}:{row}" for row in range(count)],
            "split": split,
            "lat": places.lat,
            "lon": places.lon,
            "time": pa.array([_time(places, row) for row in range(count)], pa.timestamp("us")),
            "label": _labels(places),
            "captions": pa.array(captions, pa.list_(pa.string())),
        }
    )


def _time(places: Places, row: int) -> datetime:
    """Return the UTC of a month and an hour of local solar time."""
    local = datetime(_YEAR, int(places.month[row]), 15) + timedelta(hours=float(places.hour[row]))
    return local - timedelta(hours=float(places.lon[row]) / 15)


def _labels(places: Places) -> list[str]:
    """Name each place by what covers most of it, or as town where it is densely built."""
    fact = dict(zip(FACTS, places.facts.T, strict=True))
    cover = {name: fact[name] for name in ("water", "forest", "crops", "bare")}
    cover["grass"] = 1 - sum(cover.values())
    names = [*cover]
    most_N = np.argmax(np.stack([cover[name] for name in names]), axis=0)
    towns_N = (fact["buildings"] > 0.5) & (fact["water"] < 0.5)
    return ["town" if town else names[most] for most, town in zip(most_N, towns_N, strict=True)]


# The facts that pass: season, time of day, weather. The others, snow too, are of the ground: tiles show them.
MOMENT = ("summer", "spring", "daylight", "morning", "wind", "rain")


def combine_places(options: ToyEarth, land_Q: NDArray[np.integer], moment_Q: NDArray[np.integer]) -> Places:
    """Return places with the land of some rows, seen at the moments of others.

    Coordinates and the facts of the ground come from the one, month, hour and the facts of the moment from
    the other, so that such a place also has a layout of its own, like a place that was drawn.

    Args:
        options: Which toy Earth.
        land_Q: Rows of its table.
        moment_Q: As many rows.
    """
    places = list_places(options)
    land, moment = places.take(land_Q), places.take(moment_Q)
    passing_F = np.isin(FACTS, MOMENT)
    facts_QF = np.where(passing_F, moment.facts, land.facts)
    return Places(land.lat, land.lon, moment.month, moment.hour, facts_QF)


def render_composed(
    options: ToyEarth, column: str, land_Q: NDArray[np.integer], moment_Q: NDArray[np.integer]
) -> Iterator[Any]:
    """Yield what a column shows of the land of some rows at the moments of others, in chunks."""
    places = combine_places(options, land_Q, moment_Q)
    for start in range(0, len(land_Q), _CHUNK):
        yield from render_column(column, places.take(slice(start, start + _CHUNK)), options)
