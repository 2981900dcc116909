"""examples/imagery against a catalogue on this machine: searched, cut, resumed, refused."""

import csv
import http.server
import importlib.util
import json
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
from rasterio.transform import from_origin  # noqa: E402

FILE = Path(__file__).parents[2] / "examples" / "imagery" / "cut_windows.py"
spec = importlib.util.spec_from_file_location("cut_windows", FILE)
cut_windows = importlib.util.module_from_spec(spec)
sys.modules["cut_windows"] = cut_windows
spec.loader.exec_module(cut_windows)

LAT, LON = 51.05, 3.72
NORTH, WEST = 5_660_000, 548_000  # EPSG:32631, a scene of 10 km with the place inside


class Catalogue(http.server.BaseHTTPRequestHandler):
    """Answers searches with what the test sets, and files with the ranges asked for."""

    items: list = []
    folder = Path()
    searches: list = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.searches.append(body)
        self._send(200, json.dumps({"type": "FeatureCollection", "features": self.items}).encode())

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.folder / self.path.strip("/")
        if not path.is_file():
            self._send(404, b"")
            return
        content, ranged = path.read_bytes(), re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if ranged is None:
            self._send(200, content)
            return
        first, last = int(ranged[1]), min(int(ranged[2] or len(content) - 1), len(content) - 1)
        self._send(206, content[first : last + 1], f"bytes {first}-{last}/{len(content)}")

    def _send(self, code, content, ranges=None):
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if ranges:
            self.send_header("Content-Range", ranges)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    """The address of a catalogue of two scenes: one half empty and clear, one whole with a few clouds."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    pixels = np.random.default_rng(0).integers(1, 255, (3, 1000, 1000), dtype=np.uint8)
    holes = pixels.copy()
    holes[:, :, 240:] = 0  # the place is in column 246
    profile = {"driver": "GTiff", "width": 1000, "height": 1000, "count": 3, "dtype": "uint8", "tiled": True}
    place = {"crs": "EPSG:32631", "transform": from_origin(WEST, NORTH, 10, 10)}
    for name, content in (("whole", pixels), ("holes", holes)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile, **place) as file:
            file.write(content)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Catalogue)
    address = f"http://127.0.0.1:{server.server_port}"
    Catalogue.folder, Catalogue.searches = tmp_path, []
    Catalogue.items = [
        {
            "id": name,
            "properties": {"datetime": "2024-06-01T10:00:00Z", "eo:cloud_cover": clouds},
            "assets": {"visual": {"href": f"{address}/{name}.tif"}},
        }
        for name, clouds in (("whole", 5.0), ("holes", 0.0), ("cloudy", 90.0))
    ]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield address
    server.shutdown()
    server.server_close()


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cut_windows.py", *map(str, words), "--time", "2024-05-01/2024-09-30"])
    return cut_windows.main()


def write_places(path, *rows):
    path.write_text("key,lat,lon\n" + "".join(f"{key},{lat},{lon}\n" for key, lat, lon in rows))
    return path


def test_the_clearest_whole_scene_is_cut_around_the_place_and_read_by_geobind(
    tmp_path, monkeypatch, catalogue
):
    from geobind.data import RasterOptions, read_window

    places = write_places(tmp_path / "places.csv", ("here", LAT, LON))
    words = (places, "--out", tmp_path / "tiles", "--size-m", 640, "--catalogue", catalogue)
    assert run(monkeypatch, *words) == 0
    (row,) = csv.DictReader((tmp_path / "tiles/manifest.csv").open())
    assert (row["key"], row["scene"], row["time"]) == ("here", "whole", "2024-06-01T10:00:00Z")
    options = RasterOptions(size_m=640, gsd=10)
    cut = read_window(tmp_path / "tiles" / row["satellite"], LAT, LON, options)
    assert np.array_equal(cut, read_window(tmp_path / "whole.tif", LAT, LON, options))
    (tmp_path / "whole.tif").unlink()
    assert run(monkeypatch, *words) == 0  # what is there is kept
    assert len(Catalogue.searches) == 1
    assert not [*(tmp_path / "tiles").glob("*.part")]


def test_a_window_of_a_real_scene_shows_the_same_ground(tmp_path, monkeypatch, catalogue, data):
    from geobind.data import RasterOptions, read_window

    scene = data / "geotiff" / "s2_gent_truecolor_uint16_epsg3857.tif"
    with rasterio.open(scene) as file:
        west, south, east, north = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    lat, lon = (south + north) / 2, (west + east) / 2
    share = cut_windows.cut_window(
        str(scene), cut_windows.Spot("gent", lat, lon), 640, tmp_path / "window.tif"
    )
    assert share == 1
    options = RasterOptions(size_m=640, gsd=10, stretch=(0, 255))
    assert np.array_equal(
        read_window(tmp_path / "window.tif", lat, lon, options), read_window(scene, lat, lon, options)
    )


def test_a_place_without_a_scene_is_named_and_the_others_are_cut(tmp_path, monkeypatch, catalogue, capsys):
    places = write_places(tmp_path / "places.csv", ("far", -30, 100), ("here", LAT, LON))
    assert run(monkeypatch, places, "--out", tmp_path / "tiles", "--catalogue", catalogue) == 0
    assert "far: none of 2 scenes covers it; widen --time or --clouds" in capsys.readouterr().err
    assert [row["key"] for row in csv.DictReader((tmp_path / "tiles/manifest.csv").open())] == ["here"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,latitude\n", "places.csv: needs columns lat and lon; has key, latitude"),
        ("key,lat,lon\na,x,1\n", "places.csv:2: 'x', '1' are no degrees"),
        ("key,lat,lon\na,91,1\n", "places.csv:2: latitude 91 or longitude 1 is out of range"),
        ("key,lat,lon\na,1,1\na,2,2\n", "places.csv: key 'a' is there twice"),
        ("key,lat,lon\n", "places.csv: has no rows"),
    ],
)
def test_a_table_that_is_none_of_places_is_refused(tmp_path, monkeypatch, capsys, text, message):
    (tmp_path / "places.csv").write_text(text)
    assert run(monkeypatch, tmp_path / "places.csv", "--out", tmp_path / "tiles") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "/etc/passwd", "http://example.org/a.tif", "ftp://a/b", "http://127.0.0.1/a"],
)
def test_a_catalogue_elsewhere_names_no_file_or_host_of_this_machine(address):
    with pytest.raises(cut_windows.CutError, match="only https and s3 addresses are"):
        cut_windows.to_gdal(address, local=False)


def test_a_catalogue_that_is_away_or_refuses_is_one_message(tmp_path, monkeypatch, catalogue, capsys):
    places = write_places(tmp_path / "places.csv", ("here", LAT, LON))
    monkeypatch.setattr(cut_windows.time, "sleep", lambda _: None)
    assert run(monkeypatch, places, "--out", tmp_path / "tiles", "--catalogue", "http://127.0.0.1:9") == 2
    assert "error: http://127.0.0.1:9/search cannot be reached" in capsys.readouterr().err
    assert run(monkeypatch, places, "--out", tmp_path / "t", "--catalogue", catalogue, "--asset", "b04") == 2
    assert "has no asset 'b04'" in capsys.readouterr().err
