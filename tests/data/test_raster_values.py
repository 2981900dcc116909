"""Which raster a window is cut from, and in which units its values come."""

import logging

import numpy as np
import pytest
from rasterio.transform import from_origin
from rasterio.warp import transform

from geobind.data import DataOptions, RasterOptions, open_table, read_image, read_pixels
from geobind.data.rasters import window

rasterio = pytest.importorskip("rasterio")


def raster(path, pixels, *, west=500_000, pixel=10, scale=None, offset=None, **options):
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    where = {"crs": "EPSG:32631", "transform": from_origin(west, 5_000_000, pixel, pixel)}
    with rasterio.open(path, "w", **profile, **where, **options) as file:
        file.write(pixels)
        if scale is not None:
            file.scales, file.offsets = (scale,) * count, (offset,) * count
    return path


def place(x, y):
    (lon,), (lat,) = transform("EPSG:32631", "EPSG:4326", [x], [y])
    return lat, lon


def cut(folder, at, paths, **options):
    (folder / "m.csv").write_text("text,lat,lon\n" + "".join(f"a,{lat},{lon}\n" for lat, lon in at))
    rasters = {"satellite": {"path": paths, "size_m": 640, **options}}
    data = DataOptions(manifest=folder / "m.csv", rasters=rasters)
    return open_table(data, folder, ["satellite", "text"])


@pytest.mark.parametrize("paths", [("a.tif", "b.tif"), ("b.tif", "a.tif")])
def test_of_overlapping_rasters_the_one_with_most_of_the_window_is_read(tmp_path, paths):
    raster(tmp_path / "a.tif", np.full((1, 400, 400), 100, np.uint8))
    raster(tmp_path / "b.tif", np.full((1, 400, 400), 200, np.uint8), west=503_000)
    table = cut(tmp_path, [place(503_900, 4_998_000), place(503_100, 4_998_000)], paths, fill=7)
    assert [set(np.unique(tile)) for tile in table.samples("satellite")] == [{200}, {100}]


def test_valid_pixels_count_not_the_extent(tmp_path):
    clouded = np.full((1, 400, 400), 100, np.uint8)
    clouded[:, ::2] = 0
    raster(tmp_path / "a.tif", clouded, nodata=0)
    raster(tmp_path / "b.tif", np.full((1, 400, 400), 200, np.uint8))
    table = cut(tmp_path, [place(502_000, 4_998_000)], ("a.tif", "b.tif"))
    assert (table.samples("satellite")[0] == 200).all()


def test_of_rasters_that_have_all_of_it_the_nearest_to_gsd_is_read_then_the_first(tmp_path):
    for name, pixel, value in (("a.tif", 40, 1), ("b.tif", 10, 2), ("c.tif", 10, 3)):
        size = 4000 // pixel
        raster(tmp_path / name, np.full((1, size, size), value, np.uint8), pixel=pixel)
    at, paths = [place(502_000, 4_998_000)], ("a.tif", "b.tif", "c.tif")
    found = {gsd: cut(tmp_path, at, paths, gsd=gsd).samples("satellite")[0].max() for gsd in (10, 40)}
    assert found == {10: 2, 40: 1}
    assert cut(tmp_path, at, paths).samples("satellite")[0].max() == 1


def test_a_scene_of_somewhere_else_is_told_with_both_extents(tmp_path, refused):
    raster(tmp_path / "a.tif", np.full((1, 40, 40), 1, np.uint8))
    lat, lon = place(500_200, 4_999_800)
    swapped = cut(tmp_path, [(lon, lat), (lon, lat + 1)], ("a.tif",))
    words = "0 of 2 places lie in a.tif", "latitudes 45.15", "latitudes 3.003 to 3.003", "swapped"
    refused(lambda: swapped.samples("satellite"), *words)
    refused(lambda: swapped.pairs("satellite", "text"), *words)


def test_scale_and_offset_of_a_raster_are_applied_and_it_is_said_once(tmp_path, caplog):
    window._report_scale.cache_clear()
    old = raster(tmp_path / "old.tif", np.full((2, 8, 8), 500, np.uint16), scale=1e-4, offset=0.0)
    new = raster(tmp_path / "new.tif", np.full((2, 8, 8), 1500, np.uint16), scale=1e-4, offset=-0.1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            seen = [read_pixels(path, 0, 0, 8, 8) for path in (old, new)]
    assert np.array_equal(*seen)
    assert seen[0].dtype == np.float32
    assert seen[0].mean() == pytest.approx(0.05)
    assert [("scaled: false" in line, "-0.1" in line) for line in caplog.messages] == [(1, 0), (1, 1)]
    caplog.clear()
    assert read_pixels(new, 0, 0, 8, 8, RasterOptions(scaled=False)).max() == 1500
    assert read_pixels(new, 0, 0, 8, 8, RasterOptions(scaled=True)).max() == pytest.approx(0.05)
    assert read_image(new, channels=2).max() == pytest.approx(0.05)


def test_missing_pixels_are_filled_after_scaling(tmp_path):
    pixels = np.full((1, 8, 8), 1500, np.uint16)
    pixels[0, :2] = 0
    path = raster(tmp_path / "a.tif", pixels, scale=1e-4, offset=-0.1, nodata=0)
    seen = read_pixels(path, 0, 0, 8, 8, RasterOptions(fill=-9))
    assert sorted({round(float(value), 6) for value in seen.ravel()}) == [-9, 0.05]


def test_a_stretch_in_stored_values_of_a_scaled_raster_is_refused(tmp_path, refused):
    path = raster(tmp_path / "a.tif", np.full((1, 8, 8), 1500, np.uint16), scale=1e-4, offset=-0.1)
    refused(lambda: read_pixels(path, 0, 0, 8, 8, RasterOptions(stretch=(0, 3000))), "scaled: false")
    scaled = read_pixels(path, 0, 0, 8, 8, RasterOptions(stretch=(0, 0.1)))
    stored = read_pixels(path, 0, 0, 8, 8, RasterOptions(stretch=(1000, 2000), scaled=False))
    assert (scaled == stored).all()
    assert scaled.max() == 128


def test_a_scale_of_nothing_is_refused(tmp_path, refused):
    path = raster(tmp_path / "a.tif", np.full((1, 8, 8), 1, np.uint16), scale=float("nan"), offset=0.0)
    refused(lambda: read_pixels(path, 0, 0, 8, 8), "make no sense", "scaled: false")


def test_a_raster_named_by_a_cell_without_a_size_is_read_whole(tmp_path):
    raster(tmp_path / "a.tif", np.full((5, 12, 9), 1500, np.uint16))
    (tmp_path / "m.csv").write_text("tile\na.tif\n")
    options = {"tile": {"stretch": (0, 3000), "bands": (3, 2, 1)}}
    table = open_table(DataOptions(manifest=tmp_path / "m.csv", rasters=options), tmp_path, ["tile"])
    seen = table.samples("tile")[0]
    assert seen.shape == (12, 9, 3)
    assert set(np.unique(seen)) == {128}
