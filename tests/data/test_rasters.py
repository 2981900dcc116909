import math
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data.options import RasterOptions
from geobind.data.rasters.places import find_covered_places, measure_extent
from geobind.data.rasters.window import read_pixels, read_window
from geobind.errors import DataError

rasterio = pytest.importorskip("rasterio")
from affine import Affine  # noqa: E402
from rasterio.warp import transform  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NodataShadowWarning"),
]


def write(path, values, crs="EPSG:32631", where=None, **options):
    """Write a (B, H, W) array."""
    values = np.atleast_3d(values) if values.ndim == 3 else values[None]
    bands, height, width = values.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    where = where if where is not None else Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(path, "w", **profile, crs=crs, transform=where, **options) as file:
        file.write(values)
    return path


def middle(path):
    with rasterio.open(path) as file:
        x, y = file.xy(file.height / 2 - 0.5, file.width / 2 - 0.5)
        (lon,), (lat,) = transform(file.crs, "EPSG:4326", [x], [y])
    return lat, lon


def look(size_m=480, gsd=10, **options):
    return RasterOptions(size_m=size_m, gsd=gsd, **options)


def ground(path, crs, where, shape, centre):
    """Write a raster whose two values are metres east and north of a place, on the ellipsoid."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    x, y = np.tensordot(np.array(where).reshape(3, 3)[:2], np.stack([columns, rows, np.ones_like(rows)]), 1)
    lon, lat = (np.array(axis) for axis in transform(crs, "EPSG:4326", x.ravel(), y.ravel())[:2])
    sine = math.sin(math.radians(centre[0]))
    root = math.sqrt(1 - 0.00669437999014 * sine**2)
    east = (lon - centre[1]) * math.radians(6378137 / root * math.cos(math.radians(centre[0])))
    north = (lat - centre[0]) * math.radians(6378137 * (1 - 0.00669437999014) / root**3)
    return write(path, np.stack([east, north]).reshape(2, *shape).astype(np.float32), crs, where)


def expected(size_m, side):
    offset = (np.arange(side) + 0.5) * size_m / side - size_m / 2
    return np.meshgrid(offset, -offset)


def grid(crs, centre, pixel, turn=0.0, flip=1, size=160):
    """Return the transform of a raster around a place, turned by so many degrees."""
    (x,), (y,) = transform("EPSG:4326", crs, [centre[1]], [centre[0]])
    turned, scale = np.radians(turn), np.diag([pixel, -pixel * flip, 1])
    rotation = np.array(
        [[np.cos(turned), -np.sin(turned), 0], [np.sin(turned), np.cos(turned), 0], [0, 0, 1]]
    )
    start = np.array([[1, 0, 0.3 - size / 2], [0, 1, -0.4 - size / 2], [0, 0, 1]])
    matrix = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]]) @ rotation @ scale @ start
    return Affine(*matrix[:2].ravel())


@pytest.mark.parametrize("gsd", [4, 10, 24])
@pytest.mark.parametrize(
    ("crs", "centre", "pixel", "turn", "flip"),
    [
        ("EPSG:32631", (45.1, 3.2), 10, 0, 1),
        ("EPSG:32631", (60.0, 5.9), 7, 0, 1),  # the grid is turned by 2.5 degrees
        ("EPSG:4326", (60.0, 5.9), 1e-4, 0, 1),  # pixels twice as high as wide
        ("EPSG:4326", (-33.0, 151.0), 1e-4, 0, 1),
        ("EPSG:3857", (60.0, 5.9), 20, 0, 1),  # 20 map metres are 10
        ("EPSG:3035", (52.0, 10.0), 10, 0, 1),
        ("EPSG:32631", (45.1, 3.2), 10, 30, 1),
        ("EPSG:32631", (45.1, 3.2), 10, 90, 1),
        ("EPSG:32631", (45.1, 3.2), 10, 180, 1),
        ("EPSG:32631", (45.1, 3.2), 10, 0, -1),  # south up
        ("EPSG:4326", (10.0, 20.0), 1e-4, 0, -1),
        ("EPSG:3413", (75.0, 100.0), 10, 0, 1),  # polar: north points anywhere
        ("EPSG:3031", (-80.0, -120.0), 10, 0, 1),
    ],
)
def test_a_window_shows_the_right_metres_in_every_crs_grid_and_resolution(
    tmp_path, crs, centre, pixel, turn, flip, gsd
):
    where = grid(crs, centre, pixel, turn, flip)
    path = ground(tmp_path / "g.tif", crs, where, (160, 160), centre)
    seen = read_window(path, *centre, look(size_m=480, gsd=gsd, min_valid=1))
    side = 480 // gsd
    assert seen.shape == (side, side, 2)
    east, north = expected(480, side)
    # A grid turned by less than 5 degrees is left as it is; one that fits is moved by half a pixel at most.
    allowed = 5.5 if gsd == 10 else 2.5
    tilt = 480 / 2 * math.tan(math.radians(2.6)) if (crs, centre) == ("EPSG:32631", (60.0, 5.9)) else 0
    assert np.abs(seen[..., 0] - east).max() <= allowed + tilt
    assert np.abs(seen[..., 1] - north).max() <= allowed + tilt
    assert np.abs(seen.mean(axis=(0, 1))).max() < allowed


@given(
    lat=st.floats(-80, 80),
    lon=st.floats(-179.5, 179.5),
    gsd=st.sampled_from([3, 10, 37]),
    turn=st.floats(-180, 180),
)
@settings(deadline=None, max_examples=25)
def test_a_turned_raster_shows_the_same_ground(tmp_path_factory, lat, lon, gsd, turn):
    folder = tmp_path_factory.mktemp("turned")
    where = grid("EPSG:4326", (lat, lon), 1e-4, turn)
    path = ground(folder / "g.tif", "EPSG:4326", where, (160, 160), (lat, lon))
    size = 480 * math.cos(math.radians(lat))  # what surely lies inside
    seen = read_window(path, lat, lon, look(size_m=size, gsd=gsd, min_valid=1))
    east, north = expected(size, seen.shape[0])
    allowed = 24 if abs(turn) < 6 else 7  # up to 5 degrees are left as they are: 21 m at the edge
    assert np.abs(seen[..., 0] - east).max() < allowed
    assert np.abs(seen[..., 1] - north).max() < allowed


def test_pixels_that_fit_are_cut_out_unchanged(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 100, 120), dtype=np.uint8)
    path = write(tmp_path / "a.tif", values)
    lat, lon = middle(path)
    for gsd in (10, None):
        seen = read_window(path, lat, lon, look(size_m=480, gsd=gsd))
        assert seen.dtype == np.uint8
        assert np.array_equal(seen, values.transpose(1, 2, 0)[26:74, 36:84])


def test_coarser_pixels_are_averages_and_finer_ones_between_their_neighbours(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (1, 96, 96), dtype=np.uint8)
    path = write(tmp_path / "a.tif", values)
    lat, lon = middle(path)
    coarse = read_window(path, lat, lon, look(size_m=960.4, gsd=40))[..., 0]
    means = values[0].reshape(24, 4, 24, 4).mean(axis=(1, 3))
    assert coarse.shape == (24, 24)
    assert np.abs(coarse - means).max() < 6
    fine = read_window(path, lat, lon, look(size_m=480, gsd=2.5))
    assert fine.shape == (192, 192, 1)
    assert np.abs(np.diff(fine[..., 0].astype(int), axis=0)).max() < 70  # neighbours differ by up to 255


def test_without_a_gsd_pixels_are_square_and_as_fine_as_the_raster(tmp_path):
    path = ground(tmp_path / "g.tif", "EPSG:4326", grid("EPSG:4326", (60, 5), 1e-4), (160, 160), (60, 5))
    seen = read_window(path, 60, 5, look(size_m=400, gsd=None, min_valid=1))
    assert seen.shape[:2] == (72, 72)  # 1e-4 degrees of longitude are 5.6 m there


@pytest.mark.parametrize(
    ("kind", "expects"),
    [
        ("uint8", "uint8"),
        ("int8", "float32"),
        ("uint16", "float32"),
        ("int16", "float32"),
        ("uint32", "float32"),
        ("int32", "float32"),
        ("float32", "float32"),
        ("float64", "float32"),
    ],
)
def test_8_bits_stay_and_all_else_becomes_float(tmp_path, kind, expects):
    values = (np.arange(40 * 40).reshape(1, 40, 40) % 120).astype(kind)
    path = write(tmp_path / "a.tif", values)
    seen = read_window(path, *middle(path), look(size_m=200))
    assert seen.dtype == expects
    assert np.array_equal(seen[..., 0], values[0, 10:30, 10:30])


def test_bands_are_counted_from_1_in_the_order_asked_for(tmp_path, refused):
    values = np.stack([np.full((40, 40), i, np.uint16) for i in range(1, 14)])
    path = write(tmp_path / "a.tif", values)
    place = middle(path)
    assert read_window(path, *place, look(100)).shape == (10, 10, 13)
    assert read_window(path, *place, look(100, bands=(4, 3, 2)))[0, 0].tolist() == [4, 3, 2]
    refused(lambda: read_window(path, *place, look(100, bands=(14,))), "a.tif", "bands [14]", "1 to 13")


def test_an_alpha_band_is_a_mask_and_not_a_band(tmp_path):
    values = np.full((4, 40, 40), 200, np.uint8)
    values[3, :, :20] = 0
    path = write(tmp_path / "a.tif", values, photometric="RGB", alpha="YES")
    seen = read_window(path, *middle(path), look(200, fill=7))
    assert seen.shape == (20, 20, 3)
    assert (seen[:, :10] == 7).all() and (seen[:, 10:] == 200).all()


def test_nodata_is_filled_and_never_averaged_in(tmp_path):
    values = np.full((2, 40, 40), 5.0, np.float32)
    values[:, ::2, ::2] = -3.4e38
    values[:, 39, 39] = np.nan
    path = write(tmp_path / "a.tif", values, nodata=-3.4e38)
    place = middle(path)
    assert (read_window(path, *place, look(360, gsd=20)) == 5).all()
    own = read_pixels(path, 0, 0, 40, 40, RasterOptions(fill=-1))
    assert set(np.unique(own)) == {-1, 5} and own[39, 39].tolist() == [-1, -1]


def test_in_8_bits_one_band_at_the_nodata_value_is_a_colour(tmp_path):
    values = np.zeros((3, 20, 20), np.uint8)
    values[2, :, :15] = 9
    path = write(tmp_path / "a.tif", values, nodata=0)
    seen = read_pixels(path, 0, 0, 20, 20, RasterOptions(fill=77))
    assert seen[0, 0].tolist() == [0, 0, 9] and seen[0, 19].tolist() == [77, 77, 77]


def test_a_window_with_more_than_half_missing_is_refused(tmp_path, refused):
    values = np.full((1, 100, 100), 9, np.uint16)
    values[:, :, :50] = 0
    path = write(tmp_path / "a.tif", values, nodata=0)
    lat, lon = middle(path)
    assert read_window(path, lat, lon, look(400)).min() == 0
    west = lon - 0.0012
    message = refused(lambda: read_window(path, lat, west, look(400)), "a.tif", "missing", "min_valid (0.5)")
    assert "around 45.1" in message
    assert read_window(path, lat, west, look(400, min_valid=0.1, fill=3)).min() == 3


def test_a_window_partly_outside_is_padded_and_one_outside_refused(tmp_path, refused):
    path = write(tmp_path / "a.tif", np.full((1, 50, 50), 9, np.uint8))
    with rasterio.open(path) as file:
        (lon,), (lat,) = transform(file.crs, "EPSG:4326", [500_100], [4_999_750])
    seen = read_window(path, lat, lon, look(400, fill=255))[..., 0]
    assert (seen[:, :10] == 255).all() and (seen[:, 10:] == 9).all()
    refused(lambda: read_window(path, 10, 20, look(400)), "100% of the pixels are missing")
    for x, y in ((-5, 0), (45, 0), (0, -5), (0, 45)):
        part = read_pixels(path, x, y, 10, 10)
        assert (part == 9).sum() == 50
    refused(lambda: read_pixels(path, 400, 400, 10, 10), "10 x 10 pixels at 400, 400", "100%")


def test_stretch_makes_an_8_bit_image(tmp_path, refused):
    values = np.array([[[0, 1000, 1500, 2000, 9000, 65535]] * 6], np.uint16)
    path = write(tmp_path / "a.tif", values, nodata=65535)
    seen = read_pixels(path, 0, 0, 6, 6, RasterOptions(stretch=(1000, 2000), fill=1))
    assert seen.dtype == np.uint8
    assert seen[0, :, 0].tolist() == [0, 0, 128, 255, 255, 1]
    wrong = RasterOptions(stretch=(0, 1), fill=-1)
    refused(lambda: read_pixels(path, 0, 0, 6, 6, wrong), "`fill` must be from 0 to 255")


def test_classes_are_not_averaged(tmp_path):
    values = np.random.default_rng(0).choice([1, 40], (1, 60, 60)).astype(np.uint8)
    path = write(tmp_path / "a.tif", values)
    place = middle(path)
    assert len(np.unique(read_window(path, *place, look(600, gsd=30)))) > 2
    assert set(np.unique(read_window(path, *place, look(600, gsd=30, nearest=True)))) == {1, 40}
    turned = write(tmp_path / "t.tif", values, where=grid("EPSG:32631", place, 10, 33, size=60))
    assert set(np.unique(read_window(turned, *place, look(300, gsd=5, nearest=True)))) == {1, 40}
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {1: (255, 0, 0, 255), 40: (0, 0, 255, 255)})
    assert set(np.unique(read_window(path, *place, look(600, gsd=30)))) == {1, 40}


def test_a_raster_from_0_to_360_degrees_knows_western_places(tmp_path):
    values = np.broadcast_to(np.arange(360, dtype=np.uint16)[None, None], (1, 180, 360)).copy()
    path = write(tmp_path / "a.tif", values, "EPSG:4326", Affine(1, 0, 0, 0, -1, 90))
    assert read_window(path, 0.5, -9.5, look(2000, 1000)).mean() == 350
    assert read_window(path, 0.5, 9.5, look(2000, 1000)).mean() == 9


@pytest.mark.parametrize("lon", [180, -180, 179.9999, -179.9999])
def test_a_window_goes_on_at_the_other_edge_of_a_map_of_the_earth(tmp_path, lon):
    values = np.full((1, 1800, 3600), 7, np.uint8)
    path = write(
        tmp_path / "a.tif", values, "EPSG:4326", Affine(0.1, 0, -180, 0, -0.1, 90), compress="deflate"
    )
    assert (read_window(path, 0.05, lon, look(100_000, 5000, min_valid=0.3)) == 7).all()
    map_ = write(
        tmp_path / "m.tif", values[:, :401, :401], "EPSG:3857", Affine(1e5, 0, -2.0037e7, 0, -1e5, 2e7)
    )
    assert (read_window(map_, 0.05, lon, look(2e5, 2e4, min_valid=0.3)) == 7).all()


def test_places_without_a_direction_north_are_refused(tmp_path, refused):
    path = write(
        tmp_path / "a.tif", np.zeros((1, 9, 9), np.uint8), "EPSG:3413", Affine(1e4, 0, -4e4, 0, -1e4, 4e4)
    )
    for place in ((90, 0), (-90, 0), (10, 190), (math.nan, 0)):
        refused(lambda place=place: read_window(path, *place, look()), "no place a window can be cut around")


def test_which_places_lie_inside(tmp_path):
    path = write(tmp_path / "a.tif", np.zeros((1, 50, 50), np.uint8))
    lat, lon = middle(path)
    inside = find_covered_places(
        path, np.array([lat, lat + 1, np.nan, lat]), np.array([lon, lon, lon, lon - 0.1])
    )
    assert inside.tolist() == [True, False, False, False]
    assert find_covered_places(path, np.array([]), np.array([])).tolist() == []


def test_an_extent_runs_from_south_to_north_whichever_row_comes_first(tmp_path):
    values = np.zeros((1, 50, 50), np.uint8)
    down = write(tmp_path / "down.tif", values, where=Affine(10, 0, 500_000, 0, -10, 5_000_000))
    up = write(tmp_path / "up.tif", values, where=Affine(10, 0, 500_000, 0, 10, 4_999_500))
    assert measure_extent(up) == pytest.approx(measure_extent(down))


def test_a_raster_that_says_not_where_it_lies_can_be_read_by_pixels_alone(tmp_path, refused):
    values = np.arange(400, dtype=np.uint8).reshape(1, 20, 20)
    none = write(tmp_path / "none.tif", values, None, Affine.identity())
    refused(
        lambda: read_window(none, 1, 2, look()), "none.tif", "no CRS", "gdal_edit.py", "x, y, width, height"
    )
    half = write(tmp_path / "half.tif", values, "EPSG:4326", Affine.identity())
    refused(lambda: read_window(half, 1, 2, look()), "half.tif", "no geotransform")
    assert np.array_equal(read_pixels(none, 3, 2, 5, 4)[..., 0], values[0, 2:6, 3:8])


def test_what_is_no_raster_is_named_with_the_reason(tmp_path, refused):
    (tmp_path / "text.tif").write_text("hello, I am no raster")
    (tmp_path / "empty.tif").touch()
    (tmp_path / "cut.tif").write_bytes(
        write(tmp_path / "a.tif", np.random.default_rng(0).random((1, 300, 300))).read_bytes()[:2000]
    )
    (tmp_path / "head.tif").write_bytes(b"II*\0" + bytes(50))
    for name, *words in (
        ("gone.tif", "no such file"),
        ("text.tif", "is no GeoTIFF", "gdal_translate"),
        ("empty.tif", "0 bytes"),
        ("head.tif", "header of this TIFF file is damaged"),
        (".", "folder"),
        ("cut.tif",),
    ):
        refused(lambda name=name: read_pixels(tmp_path / name, 0, 0, 300, 300), str(tmp_path / name), *words)
    complex_ = write(tmp_path / "c.tif", np.zeros((1, 9, 9), np.complex64))
    refused(lambda: read_pixels(complex_, 0, 0, 3, 3), "complex")


def test_jpeg_2000_is_read_too(tmp_path):
    values = np.random.default_rng(0).integers(0, 4000, (2, 128, 128)).astype(np.uint16)
    profile = {"driver": "JP2OpenJPEG", "count": 2, "height": 128, "width": 128, "dtype": "uint16"}
    where = Affine(10, 0, 500_000, 0, -10, 5_000_000)
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES"}
    with rasterio.open(
        tmp_path / "a.jp2", "w", crs="EPSG:32631", transform=where, **profile, **lossless
    ) as file:
        file.write(values)
    seen = read_window(tmp_path / "a.jp2", *middle(tmp_path / "a.jp2"), look(640))
    assert np.array_equal(seen, values.transpose(1, 2, 0)[32:96, 32:96])


def test_virtual_rasters_addresses_and_other_drivers_are_refused(tmp_path, refused):
    secret = write(tmp_path / "secret.tif", np.full((1, 20, 20), 99, np.uint8))
    vrt = tmp_path / "a.vrt"
    vrt.write_text(
        '<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "b.tif").write_text(vrt.read_text())
    for name in (vrt, tmp_path / "b.tif", "/vsicurl/http://localhost/a.tif", f"GTIFF_DIR:1:{secret}"):
        refused(lambda name=name: read_pixels(name, 0, 0, 20, 20))
    refused(lambda: read_pixels("http://localhost/a.tif", 0, 0, 20, 20))


def test_files_beside_a_raster_are_not_looked_at(tmp_path, refused):
    secret = write(tmp_path / "secret.tif", np.full((1, 8, 8), 99, np.uint8))
    path = write(
        tmp_path / "a.tif", np.full((1, 64, 64), 5, np.uint8), tiled=True, blockxsize=16, blockysize=16
    )
    (tmp_path / "a.tif.ovr").write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "a.tif.msk").write_bytes(secret.read_bytes())
    overviews = f"<Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>{secret}</MDI></Metadata>"
    (tmp_path / "a.tif.aux.xml").write_text(f"<PAMDataset>{overviews}</PAMDataset>")
    assert (read_window(path, *middle(path), look(640, gsd=80)) == 5).all()
    inner = write(tmp_path / "i.tif", np.full((1, 64, 64), 5, np.uint8))
    with rasterio.open(inner, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(secret))
    refused(lambda: read_pixels(inner, 0, 0, 4, 4), "refers to overviews in another file")


def test_windows_that_would_fill_the_memory_are_refused(tmp_path, refused):
    path = write(tmp_path / "a.tif", np.zeros((3, 50, 50), np.uint8))
    place = middle(path)
    refused(lambda: read_window(path, *place, look(1e6, 0.1)), "million values", "gsd")
    refused(lambda: read_pixels(path, 0, 0, 10**6, 10**6), "million values")
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32631"}
    where = Affine(0.01, 0, 500_000, 0, -0.01, 5_000_000)
    huge = tmp_path / "huge.tif"
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True}
    with rasterio.open(huge, "w", width=40_000, height=40_000, transform=where, **profile, **tiles):
        pass
    refused(
        lambda: read_window(huge, *middle(huge), look(400, 10)), "million pixels of the raster", "gdaladdo"
    )


def test_a_raster_is_opened_once_and_again_when_it_changes_under_its_old_mtime(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", np.full((1, 20, 20), 1, np.uint8))
    before = path.stat()
    opened = []
    plain = rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda *a, **k: opened.append(a) or plain(*a, **k))
    for _ in range(5):
        assert read_pixels(path, 0, 0, 2, 2).max() == 1
    assert len(opened) == 1
    write(path, np.full((1, 20, 20), 2, np.uint8))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    opened.clear()
    assert read_pixels(path, 0, 0, 2, 2).max() == 2
    assert len(opened) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_opens_its_own(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (1, 400, 400), dtype=np.uint8)
    path = write(tmp_path / "a.tif", values, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    read_pixels(path, 0, 0, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    spots = [(x, y) for x in range(0, 390, 37) for y in range(0, 390, 41)]
    good = all(
        np.array_equal(read_pixels(path, x, y, 9, 9)[..., 0], values[0, y : y + 9, x : x + 9])
        for x, y in spots
    )
    if child == 0:
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert good


def test_without_rasterio_the_message_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['rasterio'] = None\n"
        "from geobind.data.rasters.window import read_pixels\n"
        "from geobind.errors import DataError\n"
        "try: read_pixels('a.tif', 0, 0, 1, 1)\n"
        "except DataError as error: assert \"pip install 'geobind[geo]'\" in str(error), error\n"
        "else: sys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


REAL = {  # name: bands that are no alpha, type of the values
    "aerial_0p6m_epsg3857_jpeg_cog": (3, "uint8"),
    "aerial_rgba_epsg3857_alpha": (3, "uint8"),
    "corine2018_flanders_epsg3035_int8": (1, "float32"),
    "float32_nodata_tiny": (1, "float32"),
    "gray_shade_epsg3857": (1, "uint8"),
    "landsat_2020": (4, "uint8"),
    "landsat_bahamas_rgb_utm18n": (3, "uint8"),
    "naip_20200831": (4, "uint8"),
    "neon_2018_SJER_3_252000_4107000_image_477": (3, "uint8"),
    "neon_australia": (3, "uint8"),
    "rgb_customwkt_utm18n": (3, "uint8"),
    "rgba_uint16_utm12n": (3, "float32"),
    "s2_capelookout_rgb_utm18n_10m": (3, "uint8"),
    "s2_capelookout_rgbn_epsg4326": (4, "uint8"),
    "s2_float64_epsg4326_cog": (4, "float32"),
    "s2_gent_truecolor_uint16_epsg3857": (3, "float32"),
    "world_rgb_epsg4326": (3, "uint8"),
}


def fullest(path):
    """The place with most pixels around it that are there, and metres around it."""
    with rasterio.open(path) as file:
        mask = file.dataset_mask(out_shape=(16, 16)) > 0
        around = sum(np.pad(mask, 1)[i : i + 16, j : j + 16].astype(int) for i in range(3) for j in range(3))
        row, column = np.unravel_index(np.argmax(around), mask.shape)
        x, y = file.xy(*((np.array([row, column]) + 0.5) / 16 * file.shape))
        (lon,), (lat,) = transform(file.crs, "EPSG:4326", [x], [y])
        spacing = file.res[0] * (111_000 if file.crs.is_geographic else 1)
        return lat, lon, spacing, min(*file.shape) / 6 * spacing


@pytest.mark.parametrize("name", REAL)
def test_real_rasters_are_read(real_data, name):
    path = real_data / "geotiff" / f"{name}.tif"
    bands, kind = REAL[name]
    lat, lon, spacing, size = fullest(path)
    size = min(size, 1e6)
    for factor in (0.5, 1, 3):
        gsd = min(spacing * factor, 1e5)
        options = RasterOptions(size_m=size, gsd=gsd, min_valid=0.1)
        seen = read_window(path, lat, lon, options)
        assert seen.shape[2] == bands and seen.dtype == kind
        assert seen.shape[0] == seen.shape[1] == max(1, round(size / gsd))
        assert -1000 < seen.min() <= seen.max() < 65536


def test_two_projections_of_one_scene_show_the_same_ground(real_data):
    degrees = real_data / "geotiff" / "s2_capelookout_rgbn_epsg4326.tif"
    metres = real_data / "geotiff" / "s2_capelookout_rgb_utm18n_10m.tif"
    place = (34.66, -76.55)
    alike = []
    for dx, dy in ((0, 0), (0.02, 0.01), (-0.03, 0.02)):
        one, other = (
            read_window(path, place[0] + dy, place[1] + dx, look(960, bands=(1, 2, 3))).astype(float)
            for path in (degrees, metres)
        )
        alike.append(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    assert min(alike) > 0.9


def test_a_real_raster_without_crs_is_refused(real_data, refused):
    path = real_data / "geotiff" / "neon_2019_YELL_2_541000_4977000_image_crop.tif"
    refused(lambda: read_window(path, 44, -110, look()), "no CRS")
    assert read_pixels(path, 0, 0, 300, 200).shape == (200, 300, 3)


def test_options_pickle():
    options = look(bands=(1, 2), stretch=(0, 3000))
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"path": "a.tif"}, "size_m"),
        ({"size_m": 10, "bands": (0,)}, "from 1"),
        ({"size_m": 10, "stretch": (5, 5)}, "lower one first"),
        ({"size_m": -1}, "size_m"),
        ({"size": 10}, "size"),
    ],
)
def test_wrong_options_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        RasterOptions(**options)


def test_an_error_is_a_data_error_in_every_call(tmp_path):
    with pytest.raises(DataError, match="how large a window"):
        path = write(tmp_path / "a.tif", np.zeros((1, 9, 9), np.uint8))
        read_window(path, 1, 2, RasterOptions())
