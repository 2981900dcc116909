"""A small archive with its scene and banks, and a server of them: what the tests of the page look at."""

import contextlib
import http.client
import io
import json
import math
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import nn

from geobind.archive import TileGrid, write_archive
from geobind.archive.archive import Archive, model_digest
from geobind.binder import Binder, build_binder
from geobind.modality import Modality, Place
from geobind.recipe import load_recipe
from geobind.serving.explorer import Explorer, load_bank
from geobind.serving.limits import LOOPBACK, Limits
from geobind.serving.tiles import SceneRaster, TileAddress

SIDE, COLUMNS, ROWS = 32, 12, 8
CORNER = (500_000.0, 4_500_000.0)  # of the scene, in UTM zone 31 north
METRES = 10.0
# The start of an upload whose rest does not come.
UPLOAD = b"POST /api/embed/audio HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nRIFF"


class Spot(Modality):
    """A place on the globe."""

    role = "frozen"
    name = "spot"
    widget = "place"
    accepts = "a Place"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(3, width)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        assert isinstance(raw, Place)
        lat, lon = np.radians(raw.lat), np.radians(raw.lon)
        point = [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]
        return torch.tensor(point, dtype=torch.float32)


def make_binder() -> Binder:
    small = build_binder(load_recipe("three_modal"))
    return Binder({**small.modalities, "spot": Spot()}, small.width, pretrained=False, seed=3)


def paint_scene() -> np.ndarray:
    """(3, H, W): red grows to the east, green to the south; the last column of tiles is missing (0)."""
    row, column = np.mgrid[: ROWS * SIDE, : COLUMNS * SIDE]
    noise = np.random.default_rng(0).integers(0, 60, row.shape)
    bands = [1 + column * 250 // (COLUMNS * SIDE), 1 + row * 250 // (ROWS * SIDE), 100 + noise]
    image = np.stack(bands).astype(np.uint8)
    image[:, :, -SIDE:] = 0
    return image


def write_scene(path, image, *, crs="EPSG:32631", transform=None, nodata=0, **options):
    import rasterio

    transform = transform or rasterio.Affine(METRES, 0, CORNER[0], 0, -METRES, CORNER[1])
    facts = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
    with rasterio.open(
        path, "w", driver="GTiff", crs=crs, transform=transform, nodata=nodata, **facts, **options
    ) as file:
        file.write(image)
    return path


def make_grid(rows, columns, step, *, crs="EPSG:32631", corner=CORNER):
    """A grid of square cells of `step` metres, each seen whole."""
    return TileGrid(
        crs=crs,
        transform=(step, 0, corner[0], 0, -step, corner[1]),
        rows=rows,
        columns=columns,
        size_m=step,
        stride_m=step,
    )


def write_tiles(path, binder, vectors, row, column, grid, **more):
    """Write an archive of embeddings of these cells of a grid."""
    from rasterio.warp import transform

    step, _, left, _, _, top = grid.transform
    lon, lat = transform(grid.crs, "EPSG:4326", left + (column + 0.5) * step, top - (row + 0.5) * step)
    model = model_digest(binder, "satellite")
    where = {"row": row, "column": column, "grid": grid, "size_m": step}
    write_archive(path, vectors, lat, lon, modality="satellite", model=model, **where, **more)


def write_world(folder, binder):
    """Write scene.tif, scene.parquet, sounds/ and words.txt."""
    image = paint_scene()
    write_scene(folder / "scene.tif", image)
    cells = [(row, column) for row in range(ROWS) for column in range(COLUMNS - 1)]
    tiles = [image[:, r * SIDE : (r + 1) * SIDE, c * SIDE : (c + 1) * SIDE] for r, c in cells]
    vectors = binder.embed("satellite", [np.ascontiguousarray(tile) for tile in tiles], numpy=True)
    row, column = np.array(cells).T
    grid = make_grid(ROWS, COLUMNS, SIDE * METRES)
    write_tiles(folder / "scene.parquet", binder, vectors, row, column, grid, source="scene.tif")
    (folder / "sounds").mkdir()
    for number in range(4):
        (folder / "sounds" / f"{number}.wav").write_bytes(make_sound(number))
    (folder / "sounds" / "broken.wav").write_bytes(b"not a sound")
    (folder / "words.txt").write_text("a wood\n\na lake\nthe sea in the evening\n")
    return folder


def make_sound(number=0, rate=16000, *, seconds=1) -> bytes:
    file = io.BytesIO()
    samples = 0.1 * np.random.default_rng(number).standard_normal(seconds * rate)
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def make_photo(number=0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_explorer(folder, binder, limits=None) -> Explorer:
    archive = Archive.open(folder / "scene.parquet", binder)
    banks = [load_bank(binder, "audio", folder / "sounds"), load_bank(binder, "text", folder / "words.txt")]
    scene = SceneRaster.of_archive(folder / "scene.tif", archive.metadata)
    return Explorer(binder, archive, scene, banks, limits or Limits())


def address_of(lat, lon, zoom):
    """The tile at a place, and the place's pixel in it."""
    x = (lon + 180) / 360 * 2**zoom
    y = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**zoom
    tile = TileAddress(zoom, int(x), int(y))
    return tile, int((x - tile.x) * 256), int((y - tile.y) * 256)


class Served:
    """A server on a port of its own."""

    def __init__(self, explorer, **limits):
        import uvicorn

        from geobind.serving.app import build_app, configure_server

        self.limits = replace(Limits(), **limits)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        app = build_app(explorer, LOOPBACK, self.limits)
        self.server = uvicorn.Server(configure_server(app, self.limits))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(timeout=20)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path, body=None, method=None, headers=(), timeout=30):
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def query(self, *parts, **more):
        status, _, body = self.ask("/api/query", json.dumps({"parts": parts, **more}))
        return status, json.loads(body)

    def raw(self, content, *, wait=5.0):
        """Return the answer to bytes sent as they are."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as client:
            parts = []
            with contextlib.suppress(OSError):
                client.sendall(content)
            with contextlib.suppress(OSError):
                while piece := client.recv(65536):
                    parts.append(piece)
            return b"".join(parts)
