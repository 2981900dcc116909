"""Tiles of a web map: every pixel shows what lies at its place, whatever the CRS."""

import io
import math

import numpy as np
import pytest
import rasterio
import served
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from geobind.errors import DataError
from geobind.serving import tiles
from geobind.serving.tiles import SIDE, GridTiles, SceneRaster, TileAddress

UTM = rasterio.Affine(10, 0, 500_000, 0, -10, 4_500_000)
LAT, LON = 40.64, 3.01  # within 4 km of it
WHERE = {
    "utm": ("EPSG:32631", UTM),
    "degrees": ("EPSG:4326", rasterio.Affine(0.0001, 0, 3.0, 0, -0.0001, 40.65)),
    "south up": ("EPSG:32631", rasterio.Affine(10, 0, 500_000, 0, 10, 4_500_000 - 2560)),
    "turned": ("EPSG:32631", UTM @ rasterio.Affine.rotation(30)),
    "mercator": ("EPSG:3857", rasterio.Affine(12, 0, 333_958, 0, -12, 4_960_000)),
}


def place_of(crs, transform, column, row):
    from rasterio.warp import transform as move

    x, y = transform @ (column, row)
    lon, lat = move(crs, "EPSG:4326", [x], [y])
    return lat[0], lon[0]


def gradient(height=256, width=384):
    row, column = np.mgrid[:height, :width]
    return np.stack([row, column * 255 // width, np.full_like(row, 9)]).clip(1, 255).astype(np.uint8)


def shown(picture):
    return np.asarray(Image.open(io.BytesIO(picture.content)).convert("RGBA")).astype(int)


@pytest.mark.parametrize("kind", WHERE)
def test_a_pixel_of_a_tile_shows_the_raster_at_its_place(tmp_path, kind):
    crs, transform = WHERE[kind]
    image = gradient()
    scene = SceneRaster(served.write_scene(tmp_path / "a.tif", image, crs=crs, transform=transform))
    for column, row in [(20.5, 30.5), (200.5, 128.5), (370.5, 240.5)]:
        lat, lon = place_of(crs, transform, column, row)
        tile, x, y = served.address_of(lat, lon, 14)
        found = shown(scene.draw_tile(tile))[y, x]
        wanted = image[:, int(row), int(column)]
        assert found[3] == 255
        assert np.abs(found[:3] - wanted).max() <= 8, (found, wanted)  # a pixel off, and JPEG


@pytest.mark.parametrize("zoom", [7, 9, 11])
def test_a_raster_is_seen_from_afar_too(tmp_path, zoom):
    scene = SceneRaster(served.write_scene(tmp_path / "a.tif", gradient()))
    assert scene.draw_tile(served.address_of(LAT, LON, zoom)[0]) is not None
    assert scene.draw_tile(TileAddress(zoom, 0, 0)) is None


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:3035"])
@pytest.mark.parametrize("zoom", [0, 1, 2])
def test_the_whole_earth_is_drawn_though_the_crs_is_of_a_part_of_it(tmp_path, crs, zoom):
    from rasterio.warp import transform as move

    (x,), (y,) = move("EPSG:4326", crs, [LON], [LAT])
    transform = rasterio.Affine(10_000, 0, x - 1_280_000, 0, -10_000, y + 1_280_000)
    image = np.full((3, 256, 256), 90, np.uint8)
    scene = SceneRaster(served.write_scene(tmp_path / "a.tif", image, crs=crs, transform=transform))
    tile, x, y = served.address_of(LAT, LON, zoom)
    found = shown(scene.draw_tile(tile))
    assert np.abs(found[y, x] - [90, 90, 90, 255]).max() <= 3
    assert found[..., 3].min() == 0 or zoom > 1


def test_missing_pixels_are_transparent(tmp_path):
    image = gradient()
    image[:, :, 200:] = 0
    scene = SceneRaster(served.write_scene(tmp_path / "a.tif", image))
    for column, alpha in ((100.5, 255), (300.5, 0)):
        tile, x, y = served.address_of(*place_of("EPSG:32631", UTM, column, 100.5), 14)
        picture = scene.draw_tile(tile)
        assert picture is None if alpha == 0 and picture is None else shown(picture)[y, x, 3] == alpha


def test_a_raster_over_the_antimeridian_is_shown_on_both_sides(tmp_path):
    transform = rasterio.Affine(0.01, 0, 179.0, 0, -0.01, 10.0)
    image = gradient(200, 200)
    scene = SceneRaster(served.write_scene(tmp_path / "a.tif", image, crs="EPSG:4326", transform=transform))
    for lon, column in ((179.5, 50), (-179.5, 150)):
        tile, x, y = served.address_of(9.0, lon, 8)
        assert np.abs(shown(scene.draw_tile(tile))[y, x, :3] - image[:, 100, column]).max() <= 12


def test_other_values_than_bytes_are_stretched(tmp_path):
    image = np.linspace(0, 4000, 3 * 256 * 384).reshape(3, 256, 384).astype(np.uint16) + 1
    path = served.write_scene(tmp_path / "a.tif", image)
    tile, x, y = served.address_of(*place_of("EPSG:32631", UTM, 200.5, 128.5), 14)
    assert 60 < shown(SceneRaster(path).draw_tile(tile))[y, x, 0] < 200
    assert shown(SceneRaster(path, stretch=(0, 1)).draw_tile(tile))[y, x, 0] == 255


def test_a_single_band_is_grey(tmp_path):
    scene = SceneRaster(served.write_scene(tmp_path / "a.tif", gradient()[:1]))
    found = shown(scene.draw_tile(served.address_of(LAT, LON, 14)[0]))
    assert (found[..., 0] == found[..., 1]).all()


def test_a_large_raster_without_overviews_is_copied_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "_WHOLE", 100)
    path = served.write_scene(tmp_path / "a.tif", gradient(1200, 1300))
    with pytest.raises(DataError, match="gdaladdo"):
        SceneRaster(path)
    before = path.read_bytes()
    (tmp_path / "views").mkdir()
    view = SceneRaster(path, folder=tmp_path / "views").view
    assert view.parent == tmp_path / "views" and path.read_bytes() == before
    with rasterio.open(view) as copy:
        assert copy.overviews(1)
    written = view.stat().st_mtime_ns
    again = SceneRaster(path, folder=tmp_path / "views")
    assert again.view.stat().st_mtime_ns == written
    tile, x, y = served.address_of(*place_of("EPSG:32631", UTM, 100.5, 50.5), 14)
    assert np.abs(shown(again.draw_tile(tile))[y, x, :3] - gradient(1200, 1300)[:, 50, 100]).max() <= 8


def test_a_raster_that_does_not_say_where_it_lies_is_refused(tmp_path):
    path = served.write_scene(tmp_path / "a.tif", gradient(), crs=None, transform=rasterio.Affine.identity())
    with pytest.raises(DataError, match="where on Earth"):
        SceneRaster(path)


def test_a_band_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no band 4"):
        SceneRaster(served.write_scene(tmp_path / "a.tif", gradient()), bands=(4, 1, 2))


def test_a_damaged_raster_is_a_clear_error(tmp_path):
    path = served.write_scene(tmp_path / "a.tif", gradient())
    scene = SceneRaster(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a\.tif"):
        scene.draw_tile(served.address_of(LAT, LON, 14)[0])


@pytest.mark.parametrize("tile", [(0, 1, 0), (-1, 0, 0), (23, 0, 0), (3, -1, 2), (3, 2, 8)])
def test_tiles_that_are_not_in_the_pyramid_are_refused(tmp_path, tile):
    scene = SceneRaster(served.write_scene(tmp_path / "a.tif", gradient()))
    with pytest.raises(DataError, match="no tile"):
        scene.draw_tile(TileAddress(*tile))
    with pytest.raises(DataError, match="no tile"):
        grid_tiles().paint_tile(TileAddress(*tile), np.zeros(90, np.uint8), np.zeros((254, 3), np.uint8))


# Values of a grid


def grid_tiles():
    """A grid of 8 x 12 cells of 320 m without its last column; the value of each is its number."""
    row, column = (axis.ravel() for axis in np.mgrid[:8, :11])
    return GridTiles(served.make_grid(8, 12, 320.0), row, column)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.floats(0.02, 10.98), st.floats(0.02, 7.98), st.integers(9, 17))
def test_a_pixel_of_a_map_has_the_colour_of_the_cell_at_its_place(column, row, zoom):
    assume(all(abs(at - round(at)) > 1e-6 for at in (column, row)))  # a border belongs to either cell
    cells = grid_tiles()
    lat, lon = place_of("EPSG:32631", UTM, column * 32, row * 32)
    value = cells.find_value(lat, lon)
    assert value == int(row) * 11 + int(column)
    colours = np.stack([np.arange(254)] * 3, axis=1).astype(np.uint8)
    tile, x, y = served.address_of(lat, lon, zoom)
    found = shown(cells.paint_tile(tile, np.arange(88, dtype=np.uint8), colours))[y, x]
    # A pixel is as wide as some metres: the cell of its middle may be the next one.
    metres = 40_075_017 * math.cos(math.radians(lat)) / 2**zoom / SIDE
    near = min(abs(column - round(column)), abs(row - round(row))) * 320 < 1.5 * metres + 1
    assert near or tuple(found) == (value, value, value, 255)


def test_a_grid_too_large_or_rows_outside_of_it_are_refused_before_memory_is_taken():
    grid = grid_tiles()._grid
    rows = np.array([0, 1])
    with pytest.raises(DataError, match="too large"):
        GridTiles(grid.model_copy(update={"rows": 2**31, "columns": 2**31}), rows, rows)
    for wrong in (np.array([0, 8]), np.array([0, -1])):
        with pytest.raises(DataError, match="row 1 of the archive lies outside"):
            GridTiles(grid, wrong, rows)


def test_cells_without_a_value_are_transparent():
    cells = grid_tiles()
    lat, lon = place_of("EPSG:32631", UTM, 11.5 * 32, 4.5 * 32)
    assert cells.find_value(lat, lon) is None
    tile, x, y = served.address_of(lat, lon, 15)
    picture = cells.paint_tile(tile, np.zeros(88, np.uint8), np.full((254, 3), 200, np.uint8))
    assert picture is None or shown(picture)[y, x, 3] == 0
    assert cells.find_value(-40.0, 170.0) is None
    assert (
        cells.paint_tile(TileAddress(5, 0, 0), np.zeros(88, np.uint8), np.zeros((254, 3), np.uint8)) is None
    )
