"""Rasters and longitudes: wherever a map of the Earth begins, places at its seam have all neighbours."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geobind.data import RasterOptions, read_window

rasterio = pytest.importorskip("rasterio")

STARTS = (-180, 0, -20, 170, -179.5)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Maps of the Earth that begin at several longitudes; pixels hold the cosine and sine of their own."""
    folder, found = tmp_path_factory.mktemp("maps"), {}
    for start in STARTS:
        lon = np.radians(start + 0.5 + np.arange(360))
        pixels = np.stack([np.cos(lon), np.sin(lon)])[:, None].repeat(180, 1).astype(np.float32)
        profile = {"driver": "GTiff", "count": 2, "height": 180, "width": 360, "dtype": "float32"}
        found[start] = folder / f"{start}.tif"
        with rasterio.open(
            found[start], "w", crs="EPSG:4326", transform=Affine(1, 0, start, 0, -1, 90), **profile
        ) as file:
            file.write(pixels)
    return found


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    start=st.sampled_from(STARTS),
    off=st.floats(-8, 8) | st.sampled_from([0.0, 1e-14, -1e-14, 1e-9, -1e-9, 0.5, -0.5, 180.0]),
    gsd=st.sampled_from([None, 30_000, 50_000, 100_000]),
)
@example(start=0, off=0.0, gsd=None)
def test_a_window_over_the_seam_is_whole_and_shows_its_longitudes(maps, start, off, gsd):
    from geobind.data.rasters.places import find_covered_places

    lon = (start + off + 180) % 360 - 180
    assert find_covered_places(maps[start], np.array([3.0]), np.array([lon])).all()
    seen = read_window(maps[start], 3.0, lon, RasterOptions(size_m=1e6, gsd=gsd, min_valid=1))
    shown = np.degrees(np.arctan2(seen[..., 1], seen[..., 0]))
    side = seen.shape[1]
    expected = ((np.arange(side) + 0.5) / side - 0.5) * 1e6 / 111_320
    assert np.abs((shown - lon + 180) % 360 - 180 - expected).max() < 1.1  # a pixel is a degree


@settings(deadline=None, max_examples=40, derandomize=True)
@given(lon=st.floats(-180, 180), lat=st.floats(-80, 80))
def test_every_map_of_the_earth_shows_the_same_ground(maps, lon, lat):
    windows = [
        read_window(path, lat, lon, RasterOptions(size_m=4e5, gsd=5e4, min_valid=1)) for path in maps.values()
    ]
    for window in windows[1:]:
        assert np.abs(window - windows[0]).max() < 0.03  # moved by half a pixel, of a degree


@pytest.mark.parametrize("crs", ["EPSG:3857", "EPSG:4087"])
@pytest.mark.parametrize("lon", [179.9, -179.9, 180, -180])
def test_a_projected_raster_may_lie_over_the_antimeridian(tmp_path, crs, lon):
    from geobind.data.rasters.places import find_covered_places

    profile = {"driver": "GTiff", "count": 1, "height": 200, "width": 200, "dtype": "uint8", "crs": crs}
    grid = Affine(1000, 0, 19_950_000, 0, -1000, 100_000)
    with rasterio.open(tmp_path / "a.tif", "w", transform=grid, **profile) as file:
        file.write(np.full((1, 200, 200), 9, np.uint8))
    assert find_covered_places(tmp_path / "a.tif", np.array([0.1]), np.array([lon])).all()
    assert (read_window(tmp_path / "a.tif", 0.1, lon, RasterOptions(size_m=20_000, min_valid=1)) == 9).all()
    assert not find_covered_places(tmp_path / "a.tif", np.array([0.1]), np.array([0.0])).any()


def test_the_same_meridian_comes_again_where_a_crs_says_so():
    from rasterio.crs import CRS

    from geobind.data.rasters.places import _measure_circumference

    def around(code):
        return _measure_circumference(CRS.from_user_input(code).to_wkt())

    assert around("EPSG:4326") == pytest.approx(360)
    assert around("EPSG:4807") == pytest.approx(400)  # counted in gon
    assert around("EPSG:3857") == pytest.approx(2 * np.pi * 6378137)
    assert around("EPSG:3832") == pytest.approx(2 * np.pi * 6378137)  # begins at 30 degrees west
    assert [around(code) for code in ("EPSG:32631", "EPSG:3413", "EPSG:3035")] == [None] * 3


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    place=st.integers(0, 5),
    value=st.sampled_from([0.0, 1e-320, 1e-20, 1e20, 1e300, 1e308, -1e308, np.inf, -np.inf, np.nan]),
    gsd=st.sampled_from([None, 3]),
)
@example(place=4, value=-1e308, gsd=None)
def test_a_geotransform_that_makes_no_sense_is_a_dataerror(tmp_path_factory, place, value, gsd):
    from geobind.errors import DataError

    grid = [1e-4, 0, 3, 0, -1e-4, 45.1]
    grid[place] = value
    path = tmp_path_factory.mktemp("grid") / "a.tif"
    profile = {"driver": "GTiff", "count": 1, "height": 60, "width": 60, "dtype": "uint8"}
    with rasterio.open(path, "w", crs="EPSG:4326", transform=Affine(*grid), **profile) as file:
        file.write(np.ones((1, 60, 60), np.uint8))
    for at in ((45.097, 3.003), (0, 0), (-89, 180)):
        try:
            assert read_window(path, *at, RasterOptions(size_m=60, gsd=gsd, min_valid=0)).ndim == 3
        except DataError as error:
            assert str(path) in str(error)


def test_a_place_that_the_crs_has_no_coordinates_for_does_not_spoil_the_others(tmp_path):
    from geobind.data.rasters.places import find_covered_places

    profile = {
        "driver": "GTiff",
        "count": 1,
        "height": 10,
        "width": 10,
        "dtype": "uint8",
        "crs": "EPSG:32631",
    }
    with rasterio.open(
        tmp_path / "a.tif", "w", transform=Affine(10, 0, 5e5, 0, -10, 100.0), **profile
    ) as file:
        file.write(np.ones((1, 10, 10), np.uint8))
    # 90 degrees east and west of the zone's meridian, on the equator, GDAL refuses a whole list of places.
    lat_N, lon_N = np.array([0.0, 0.0005, 0.0, 60.0]), np.array([93.0, 3.0005, -87.0, 3.0])
    assert find_covered_places(tmp_path / "a.tif", lat_N, lon_N).tolist() == [False, True, False, False]
