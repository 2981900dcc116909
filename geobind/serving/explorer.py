"""Questions that a page asks of an archive: what is near to a query, what a place looks and sounds like."""

# N rows of the archive, K matches, D width

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from geobind.data.rasters.places import find_covered_places
from geobind.errors import DataError, GeobindError
from geobind.maps.cog import write_map
from geobind.maps.similarity import QueryMap
from geobind.modality import Content, Modality, Place, choose_picture
from geobind.report.media import Media, build_media
from geobind.scoring import add_embeddings
from geobind.search.hits import describe_rows
from geobind.search.query import QueryPart, describe_parts
from geobind.serving.limits import Limits, Refusal, describe_to_client
from geobind.serving.tiles import GridTiles, SceneRaster, TileAddress, TilePicture
from geobind.utils.files import is_hidden, read_limited
from geobind.utils.formatting import shorten
from geobind.utils.geo import find_nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from geobind.archive import Archive
    from geobind.binder import Binder

K = TypeVar("K")
V = TypeVar("V")
_log = logging.getLogger(__name__)

COLOURS = 254  # of a map; the last two of 256 stay free, one of them transparent
_SPREAD = (0.5, 99.5)  # percentiles of the similarities that the colours span
_LIKE = 6  # places that look like one
_BANK = 3  # items of a bank for a place
_MOST_BANK = 20_000  # items
_MOST_BANK_BYTES = 50_000_000  # of a file of texts
_BLOCK = 8192  # rows multiplied at a time
_LOADED = 2**30  # bytes of float32 embeddings; larger archives stay in the precision they are stored in
_POINT_PIXELS = 64  # side of the picture around a row that has no size


class PartRequest(BaseModel):
    """One observation of a query: words, a place, or an embedding that `Explorer.embed` gave."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    modality: Annotated[str, Field(max_length=100)]
    weight: Annotated[float, Field(ge=-1, le=1)] = 1.0
    text: str | None = None
    place: tuple[float, float] | None = None
    numbers: Annotated[tuple[float, ...] | None, Field(min_length=1, max_length=65_536)] = None
    embedding: Annotated[str, Field(max_length=200_000)] | None = None


class QueryRequest(BaseModel):
    """A query of a page: its parts, and how many matches it asks for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: list[PartRequest]
    k: Annotated[int, Field(ge=1, le=200)] = 24


@dataclass(frozen=True, eq=False)
class QueryAnswer:
    """The similarity of every row to a query, and the rows nearest to it."""

    name: str  # a hash of the query's embedding
    label: str  # the query in words
    similarity_N: NDArray[np.float32]
    nearest_K: NDArray[np.int64]
    low: float  # similarities that the first and the last colour stand for
    high: float
    colour_N: NDArray[np.uint8]


class PlaceBank(NamedTuple):
    """Observations of one modality that places are described with."""

    modality: Modality
    items: Sequence[Any]
    names: Sequence[str]
    vector_ND: NDArray[np.float32]


class _Latest(Generic[K, V]):
    """The latest values by key; safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: K, value: V) -> V:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


class Explorer:
    """An archive, the binder that embeds queries of it, and what its places are shown with.

    Args:
        binder: The binder that the archive was made with.
        archive: The archive.
        scene: The raster that it was made of, if it is to be seen.
        banks: Observations that places are described with.
        limits: The limits of queries.
        show: Returns what to show of a row by its id, or None; where there is no scene.

    Raises:
        DataError: The scene lies elsewhere than the archive's rows, or the archive is damaged.
    """

    def __init__(
        self,
        binder: Binder,
        archive: Archive,
        scene: SceneRaster | None = None,
        banks: Sequence[PlaceBank] = (),
        limits: Limits | None = None,
        show: Callable[[str], Any] | None = None,
    ) -> None:
        self.binder, self.archive, self.scene, self.banks = binder, archive, scene, banks
        self._show_row = show
        self.limits = limits or Limits()
        small = len(archive) * archive.width * 4 <= _LOADED
        self._vector_ND = archive.read_vectors(dtype=np.float32 if small else None)
        self._lat_N, self._lon_N = archive.lat_N, archive.lon_N
        if scene is not None and not find_covered_places(scene.path, self._lat_N, self._lon_N).any():
            raise DataError(
                f"{scene.path}: lies elsewhere than the rows of {archive.path}; give its own raster"
            )
        self.grid = None
        if archive.grid is not None and archive.row_N is not None and archive.column_N is not None:
            self.grid = GridTiles(archive.grid, archive.row_N, archive.column_N)
        self._answers: _Latest[str, QueryAnswer] = _Latest(self.limits.queries)
        self._embedded: _Latest[tuple[str, bytes], Tensor] = _Latest(4 * self.limits.queries)
        self._media: _Latest[tuple[str, int], Media] = _Latest(256)
        from matplotlib import colormaps

        self.colours_K3 = (colormaps["viridis"](np.linspace(0, 1, COLOURS))[:, :3] * 255).astype(np.uint8)

    def warm_up(self) -> None:
        """Embed a word, so that the first query is as quick as others."""
        for name, modality in self.binder.modalities.items():
            if modality.widget == "text":
                self.binder.embed(name, ["a place"], progress=False)

    def describe(self) -> dict[str, Any]:
        """Return what a page must know before it asks anything."""
        placed_N = np.isfinite(self._lat_N) & np.isfinite(self._lon_N)
        extent = self.scene.extent if self.scene else None
        if extent is None and placed_N.any():
            lon_K, lat_K = self._lon_N[placed_N], self._lat_N[placed_N]
            extent = (lon_K.min(), lat_K.min(), lon_K.max(), lat_K.max())
        return {
            "modalities": [
                {"name": name, "widget": modality.widget, "accepts": modality.accepts}
                for name, modality in self.binder.modalities.items()
            ],
            "archive": {
                "name": self.archive.path.stem,
                "modality": self.archive.modality,
                "rows": len(self.archive),
                "model": self.archive.model[:16],
                "mapped": self.grid is not None,
                "placed": bool(placed_N.any()),
            },
            "extent": None if extent is None else [float(side) for side in extent],
            "scene": {"zoom": self.scene.max_zoom} if self.scene else None,
            "pictures": self.scene is not None or self._show_row is not None,
            "banks": [bank.modality.name for bank in self.banks],
            "colours": ["#" + bytes(colour).hex() for colour in self.colours_K3[:: COLOURS // 8]],
            "limits": {"upload": self.limits.upload_bytes, "text": self.limits.text},
        }

    # Queries

    def embed(self, name: str, content: bytes) -> str:
        """Embed an uploaded file; return its embedding in letters that a link can hold.

        Raises:
            Refusal: There is no such modality, or the content is none that it reads.
        """
        modality = self._modality(name)
        if modality.widget in ("text", "place"):
            raise Refusal(422, f"{name}: is given in words, not as a file")
        title = f"the file for {name}"
        return encode_vector(self._embed(name, content, Content(content, title), title))

    def _modality(self, name: str) -> Modality:
        modality = self.binder.modalities.get(name)
        if modality is None:
            raise Refusal(404, "there is no such modality")
        return modality

    def _embed(self, name: str, key: bytes, raw: Any, title: str) -> Tensor:
        """Embed one input (1, D), or take the embedding that the same input had."""
        address = name, hashlib.sha256(key).digest()
        if (known := self._embedded.get(address)) is not None:
            return known
        try:
            return self._embedded.put(address, self.binder.embed(name, [raw], progress=False))
        except GeobindError as error:
            _log.info("refused an input: %s", error)
            raise Refusal(422, describe_to_client(error, title)) from None

    def _embed_part(self, part: PartRequest) -> Tensor:
        modality = self._modality(part.modality)
        given = (part.text, part.place, part.numbers, part.embedding)
        if sum(value is not None for value in given) != 1:
            raise Refusal(422, "a part of a query has either a text, a place, numbers or an embedding")
        if part.embedding is not None:
            return decode_vector(part.embedding, self.binder.width)
        if part.text is not None:
            if modality.widget != "text":  # elsewhere a string would be the path of a file
                raise Refusal(422, "words are given to modalities of text alone")
            if not part.text.strip() or len(part.text) > self.limits.text or "\0" in part.text:
                raise Refusal(422, f"a text must have 1 to {self.limits.text} characters")
            try:
                key = part.text.encode()
            except UnicodeEncodeError:
                raise Refusal(422, "the text is not valid Unicode") from None
            return self._embed(part.modality, key, part.text, "the text")
        if part.numbers is not None:
            if modality.widget != "numbers":
                raise Refusal(422, "numbers are given to modalities of numbers alone")
            numbers = np.array(part.numbers)
            return self._embed(part.modality, numbers.tobytes(), numbers, "a vector")
        if modality.widget != "place":
            raise Refusal(422, "a place is given to modalities of places alone")
        place = check_place(*(part.place or ()))
        return self._embed(part.modality, repr(part.place).encode(), place, "the place")

    def ask(self, request: QueryRequest) -> QueryAnswer:
        """Compare every row with a query.

        Raises:
            Refusal: A part cannot be used, or the parts cancel out.
        """
        if not 1 <= len(request.parts) <= self.limits.parts:
            raise Refusal(422, f"a query has 1 to {self.limits.parts} parts")
        embedded = {str(number): self._embed_part(part) for number, part in enumerate(request.parts)}
        weights = {str(number): part.weight for number, part in enumerate(request.parts)}
        try:
            vector_1D = add_embeddings(embedded, weights)
        except DataError:
            raise Refusal(422, "the parts cancel out: change a weight") from None
        name = hashlib.sha256(vector_1D.numpy().tobytes()).hexdigest()[:24]
        known = self._answers.get(name)
        if known is not None and len(known.nearest_K) == min(request.k, len(self.archive)):
            return known
        label = describe_parts([_name_part(part) for part in request.parts])
        return self._answers.put(name, self._compare(name, label, vector_1D, request.k))

    def _compare(self, name: str, label: str, vector_1D: Tensor, k: int) -> QueryAnswer:
        similarity_N = self._score(vector_1D[0].numpy())
        low, high = np.percentile(similarity_N, _SPREAD).tolist()
        scale = COLOURS / max(high - low, 1e-9)
        colour_N = np.clip((similarity_N - low) * scale, 0, COLOURS - 1).astype(np.uint8)
        return QueryAnswer(name, label, similarity_N, nearest(similarity_N, k), low, high, colour_N)

    def _score(self, vector_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the similarity of every row (N,)."""
        if self._vector_ND.dtype == np.float32:
            return (torch.from_numpy(self._vector_ND) @ torch.from_numpy(vector_D)).numpy()
        parts = [
            self._vector_ND[start : start + _BLOCK].astype(np.float32) @ vector_D
            for start in range(0, len(self._vector_ND), _BLOCK)
        ]
        return np.concatenate(parts)

    def find_answer(self, name: str) -> QueryAnswer:
        """Return an answer that was given before.

        Raises:
            Refusal: It is no longer kept; the page asks again.
        """
        answer = self._answers.get(name)
        if answer is None:
            raise Refusal(404, "this query is no longer kept; ask it again")
        return answer

    def describe_rows(self, rows_K: NDArray[Any], similarity_N: NDArray[np.float32]) -> list[dict[str, Any]]:
        """Return rows as a page lists them."""
        ids = self.archive.read_ids(rows_K)
        return [
            {
                "row": int(row),
                "id": str(name),
                "similarity": round(float(similarity_N[row]), 4),
                "lat": finite(self._lat_N[row]),
                "lon": finite(self._lon_N[row]),
            }
            for row, name in zip(rows_K, ids, strict=True)
        ]

    def paint_tile(self, name: str, tile: TileAddress) -> TilePicture | None:
        """Paint a tile of an answer's map; None where the archive is not.

        Raises:
            Refusal: The answer is no longer kept.
            DataError: There is no such tile.
        """
        answer = self.find_answer(name)
        return self.grid.paint_tile(tile, answer.colour_N, self.colours_K3) if self.grid else None

    def list_nearest(self, name: str) -> dict[str, Any]:
        """Return the nearest rows of an answer as GeoJSON.

        Raises:
            Refusal: The answer is no longer kept.
        """
        answer = self.find_answer(name)
        found = answer.similarity_N[answer.nearest_K]
        return describe_rows(self.archive, answer.nearest_K, found, answer.label).to_geojson()

    def write_map(self, name: str) -> bytes:
        """Return the map of an answer as a cloud-optimized GeoTIFF.

        Raises:
            Refusal: The answer is no longer kept, or the archive has no grid.
        """
        answer, grid = self.find_answer(name), self.archive.grid
        if self.grid is None or grid is None:
            raise Refusal(404, "these rows lie on no grid, so there is no map of them")
        rows_HW = self.grid.value_RC.astype(np.int64)
        similarity_HW = np.append(answer.similarity_N, np.float32(np.nan))[rows_HW]
        source = self.archive.metadata.source
        drawn = QueryMap(
            answer.label, similarity_HW, rows_HW, grid.transform, grid.crs, self.archive.model, source
        )
        with TemporaryDirectory(prefix="geobind") as folder:
            return write_map(drawn, Path(folder) / "map.tif").read_bytes()

    # Places

    def find_row(self, lat: float, lon: float) -> int | None:
        """Return the row at a place, or the nearest one where rows are points; None where there is none."""
        check_place(lat, lon)
        if self.grid is not None:
            return self.grid.find_value(lat, lon)
        placed = np.flatnonzero(np.isfinite(self._lat_N) & np.isfinite(self._lon_N))
        if not len(placed):
            return None
        place_KLL = np.stack([self._lat_N[placed], self._lon_N[placed]], axis=1)
        return int(placed[find_nearest(np.array([[lat, lon]]), place_KLL)[0]])

    def look(self, row: int) -> dict[str, Any]:
        """Return what a row's place looks, sounds and reads like: its neighbours among rows and in banks.

        Raises:
            Refusal: There is no such row.
        """
        self._check_row(row)
        vector_D = self._vector_ND[row].astype(np.float32)
        similarity_N = self._score(vector_D)
        like_K = nearest(similarity_N, _LIKE + 1)
        found = self.describe_rows(np.array([row]), similarity_N)[0]
        return {
            **found,
            "id": str(self.archive.read_ids([row])[0]),
            "like": self.describe_rows(like_K[like_K != row][:_LIKE], similarity_N),
            "banks": [
                {"modality": bank.modality.name, "items": self._describe_items(bank, vector_D)}
                for bank in self.banks
            ],
        }

    def _describe_items(self, bank: PlaceBank, vector_D: NDArray[np.float32]) -> list[dict[str, Any]]:
        similarity_N = bank.vector_ND @ vector_D
        items: list[dict[str, Any]] = []
        for number in nearest(similarity_N, _BANK).tolist():
            media = self._show(bank, number)
            items.append(
                {
                    "name": bank.names[number],
                    "similarity": round(float(similarity_N[number]), 4),
                    "picture": media.picture,
                    "sound": media.sound,
                    "words": media.words,
                }
            )
        return items

    def _show(self, bank: PlaceBank, number: int) -> Media:
        address = bank.modality.name, number
        if (known := self._media.get(address)) is not None:
            return known
        return self._media.put(address, build_media(choose_picture(bank.modality, bank.items[number])))

    def draw_row(self, row: int, side: int) -> TilePicture | None:
        """Draw the picture of a row; None where there is nothing to show of it.

        Raises:
            Refusal: There is no such row.
            DataError: The raster cannot be read there.
        """
        self._check_row(row)
        if self.scene is None and self._show_row is not None:
            return self._draw_input(row, self._show_row)
        lat, lon = float(self._lat_N[row]), float(self._lon_N[row])
        if self.scene is None or not (math.isfinite(lat) and math.isfinite(lon)):
            return None
        grid = self.archive.grid
        if grid is not None:
            share = self.scene.count_pixels(grid)
        else:
            share = self.scene.measure_box(*self.archive.footprint([row])[0].tolist()) or _POINT_PIXELS
        return self.scene.draw_around(lat, lon, share, side)

    def _draw_input(self, row: int, show: Callable[[str], Any]) -> TilePicture | None:
        address = "", row
        media = self._media.get(address)
        if media is None:
            media = self._media.put(address, build_media(show(str(self.archive.read_ids([row])[0]))))
        if not media.picture:
            return None
        head, _, content = media.picture.partition(",")  # data:image/png;base64,...
        return TilePicture(base64.b64decode(content), head.removeprefix("data:").partition(";")[0])

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self.archive):
            raise Refusal(404, "there is no such row")


def _name_part(part: PartRequest) -> QueryPart:
    """Return a part as the labels of queries name it."""
    words = (
        f'"{shorten(part.text, 80)}"'
        if part.text is not None
        else str(Place(*part.place))
        if part.place
        else "file"
    )
    return QueryPart(part.modality, None, part.weight, words)


def nearest(similarity_N: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the k rows of the largest similarities, best first; equal ones in row order."""
    k = min(k, len(similarity_N))
    if k == 0:
        return np.empty(0, np.int64)
    least = np.partition(similarity_N, len(similarity_N) - k)[len(similarity_N) - k]
    candidate_C = np.flatnonzero(similarity_N >= least)
    return candidate_C[np.argsort(-similarity_N[candidate_C], kind="stable")][:k]


def finite(value: Any) -> float | None:
    """Return a number as JSON can hold it: None for NaN."""
    return round(float(value), 6) if math.isfinite(value) else None


def check_place(lat: float, lon: float) -> Place:
    """Return a place.

    Raises:
        Refusal: It is none on Earth.
    """
    if not (math.isfinite(lat) and math.isfinite(lon) and abs(lat) <= 90 and abs(lon) <= 180):
        raise Refusal(422, "latitudes go from -90 to 90 and longitudes from -180 to 180")
    return Place(lat, lon)


def encode_vector(vector_1D: Tensor) -> str:
    """Return an embedding in letters that a link can hold: float16 in URL-safe base 64."""
    return base64.urlsafe_b64encode(vector_1D.numpy().astype("<f2").tobytes()).decode().rstrip("=")


def decode_vector(text: str, width: int) -> Tensor:
    """Return an embedding (1, D) from its letters.

    Raises:
        Refusal: They are not an embedding of this width, or it has no direction.
    """
    try:
        content = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        raise Refusal(422, "the embedding is not in URL-safe base 64") from None
    if len(content) != 2 * width:
        raise Refusal(422, "the embedding is of another model; give the file itself")
    vector_D = np.frombuffer(content, "<f2").astype(np.float32)
    length = float(np.linalg.norm(vector_D.astype(np.float64)))
    if not (np.isfinite(vector_D).all() and 0.5 < length < 2):
        raise Refusal(422, "the embedding is damaged")
    return torch.from_numpy(vector_D / np.float32(length))[None]


def load_bank(binder: Binder, name: str, path: Path, *, batch_size: int = 64) -> PlaceBank:
    """Embed the files of a folder, or the lines of a text file, as a bank.

    Files that cannot be read are left out, with a warning.

    Raises:
        PluginError: The binder has no such modality.
        DataError: There is nothing that can be read.
    """
    modality = binder.modality(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not is_hidden(file.name))
        items: list[Any] = list(files)
        names = [file.name for file in files]
    elif modality.widget == "text" and path.is_file():
        lines = read_limited(path, _MOST_BANK_BYTES, "a bank").decode(errors="replace").splitlines()
        items = [line.strip() for line in lines if line.strip()]
        names = [shorten(line, 60) for line in items]
    else:
        raise DataError(f"{path}: a bank is a folder of files or, of texts, a file with one on each line")
    if not items:
        raise DataError(f"{path}: holds nothing for a bank")
    if len(items) > _MOST_BANK:
        raise DataError(f"{path}: holds {len(items):,} items; a bank has at most {_MOST_BANK:,}")
    began = time.perf_counter()
    vectors: list[Tensor] = []
    kept: list[int] = []
    faults: list[DataError] = []
    for start in range(0, len(items), batch_size):
        group = range(start, min(start + batch_size, len(items)))
        for number, vector in _embed_readable(binder, name, items, group, faults):
            kept.append(number)
            vectors.append(vector)
    if not kept:
        raise DataError(f"{path}: none of {len(items)} can be read as {name}; the first: {faults[0]}")
    if faults:
        _log.warning("%s: %d of %d are left out; the first: %s", path, len(faults), len(items), faults[0])
    _log.info("%s: %d of %s, embedded in %.0f s", path.name, len(kept), name, time.perf_counter() - began)
    chosen, titles = [items[number] for number in kept], [names[number] for number in kept]
    return PlaceBank(modality, chosen, titles, torch.cat(vectors).numpy())


def _embed_readable(
    binder: Binder, name: str, items: Sequence[Any], group: range, faults: list[DataError]
) -> list[tuple[int, Tensor]]:
    """Embed a group at once, or one by one if something in it cannot be read."""
    try:
        vector_ND = binder.embed(name, [items[number] for number in group], progress=False)
        return [(number, vector_ND[place : place + 1]) for place, number in enumerate(group)]
    except DataError as error:
        if len(group) == 1:
            faults.append(error)
            return []
    return [
        pair
        for number in group
        for pair in _embed_readable(binder, name, items, range(number, number + 1), faults)
    ]
