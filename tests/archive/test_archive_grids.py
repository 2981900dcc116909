"""Tiles of rasters: where they lie and what they show, in every orientation and CRS."""

import pickle

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")
import scenes  # noqa: E402
from affine import Affine  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from geobind.archive import Archive, embed_raster  # noqa: E402
from geobind.archive.grid import find_named_cells, lay_grid, parse_naming  # noqa: E402
from geobind.archive.sources import RasterTiles  # noqa: E402
from geobind.data import RasterOptions, read_window  # noqa: E402
from geobind.errors import DataError  # noqa: E402


def turned(degrees, scale=10, x=500_000, y=5_000_000):
    return Affine.translation(x, y) @ Affine.rotation(degrees) @ Affine.scale(scale, -scale)


SCENES = {
    "utm": {},
    "bottom up": {"flip": True},
    "turned by 30 degrees": {"where": turned(30)},
    "turned by 180 degrees": {"where": turned(180)},
    "geographic": {"crs": "EPSG:4326", "where": Affine(1.3e-4, 0, 5, 0, -9e-5, 52)},
    "geographic, bottom up": {"crs": "EPSG:4326", "where": Affine(1.3e-4, 0, 5, 0, -9e-5, 52), "flip": True},
    "mercator at 60 degrees": {"crs": "EPSG:3857", "where": Affine(20, 0, 600_000, 0, -20, 8_400_000)},
    "over the antimeridian": {"crs": "EPSG:4326", "where": Affine(9e-5, 0, 179.99, 0, -9e-5, 10)},
    "from 0 to 360": {"crs": "EPSG:4326", "where": Affine(9e-5, 0, 359.99, 0, -9e-5, 10)},
    "polar": {"crs": "EPSG:3413", "where": Affine(10, 0, 100_000, 0, -10, -1_500_000)},
}


def read_all(source):
    found = [source.read(block, 0, source.count(block)) for block in range(source.blocks)]
    raws = [raw for inputs in found for raw in inputs.raws]
    return raws, {
        name: np.concatenate([inputs.columns[name] for inputs in found]) for name in found[0].columns
    }


@pytest.mark.parametrize("kind", SCENES)
@pytest.mark.parametrize("gsd", [None, 20])
def test_a_tile_shows_what_a_window_around_its_middle_shows(tmp_path, kind, gsd):
    path = scenes.write_scene(tmp_path / "a.tif", **SCENES[kind])
    options = RasterOptions(size_m=400, gsd=gsd, min_valid=0)
    source = RasterTiles(path, options, stride_m=200)
    raws, columns = read_all(source)
    grid = source.lattice.grid
    assert len(raws) == grid.rows * grid.columns > 60
    fixed = RasterOptions(size_m=400, gsd=400 / source.side, min_valid=0)
    for number in range(0, len(raws), 17):
        window = read_window(path, columns["lat"][number], columns["lon"][number], fixed)
        off = np.abs(raws[number].astype(int) - window.astype(int)).mean()
        assert raws[number].shape == window.shape and off < 12, (kind, off)
        assert off < np.abs(raws[number][::-1].astype(int) - window.astype(int)).mean() / 2


def test_tiles_pickle_after_some_were_read(tmp_path):
    path = scenes.write_scene(tmp_path / "a.tif", **SCENES[next(iter(SCENES))])
    source = RasterTiles(path, RasterOptions(size_m=400), stride_m=400)
    raws, columns = read_all(source)
    again, others = read_all(pickle.loads(pickle.dumps(source)))
    assert all(map(np.array_equal, raws, again)) and np.array_equal(columns["id"], others["id"])


@pytest.mark.parametrize("kind", SCENES)
def test_footprints_have_the_tiles_size_around_their_middle_counterclockwise(tmp_path, kind):
    path = scenes.write_scene(tmp_path / "a.tif", **SCENES[kind])
    _, columns = read_all(RasterTiles(path, RasterOptions(size_m=400), stride_m=400))
    corners, lat, lon = columns["corners"], columns["lat"], columns["lon"]
    assert (np.abs(lon) <= 180).all() and (np.abs(corners[..., 0]) <= 180).all()
    east = ((corners[..., 0] - lon[:, None] + 180) % 360 - 180) * 111_320 * np.cos(np.radians(lat))[:, None]
    north = (corners[..., 1] - lat[:, None]) * 111_320
    sides = np.hypot(np.diff(east[:, [0, 1, 2, 3, 0]]), np.diff(north[:, [0, 1, 2, 3, 0]]))
    assert np.abs(sides / 400 - 1).max() < 0.03
    assert np.abs(np.stack([east, north]).mean(axis=2)).max() < 5
    after = np.roll(np.arange(4), -1)
    assert ((east * north[:, after] - east[:, after] * north).sum(axis=1) > 0).all()


def test_a_raster_whose_first_row_is_the_southernmost_gives_the_same_archive(tmp_path):
    binder, archives = scenes.build_binder(), []
    for flip in (False, True):
        path = scenes.write_scene(tmp_path / "a.tif", flip=flip)
        out = tmp_path / f"{flip}.parquet"
        archives.append(embed_raster(binder, "mean", path, out, size_m=320, stride_m=160))
    one, two = archives
    assert np.array_equal(one.ids, two.ids) and one.grid.transform == pytest.approx(two.grid.transform)
    assert np.array_equal(one.read_vectors(), two.read_vectors())
    assert np.allclose(one.lat_N, two.lat_N, atol=1e-9) and np.allclose(one.lon_N, two.lon_N, atol=1e-9)


@pytest.mark.parametrize("kind", ["utm", "bottom up", "turned by 30 degrees", "geographic"])
def test_the_grid_is_a_raster_whose_pixels_have_the_tiles_middles(tmp_path, kind):
    path = scenes.write_scene(tmp_path / "a.tif", **SCENES[kind])
    archive = embed_raster(
        scenes.build_binder(), "mean", path, tmp_path / "a.parquet", size_m=320, stride_m=160
    )
    x, y = Affine(*archive.grid.transform) @ (archive.column_N + 0.5, archive.row_N + 0.5)
    lon, lat = rasterio.warp.transform(archive.grid.crs, "EPSG:4326", x, y)[:2]
    assert np.allclose(lon, archive.lon_N, atol=1e-8) and np.allclose(lat, archive.lat_N, atol=1e-8)
    if kind != "turned by 30 degrees":
        assert np.all(np.diff(archive.lat_N[np.lexsort([archive.row_N, archive.column_N])][:5]) < 0)


@pytest.mark.slow
def test_tiles_go_around_the_earth_over_the_seam_of_a_whole_map(tmp_path):
    where = Affine(1, 0, -180, 0, -1, 90)
    path = scenes.write_scene(tmp_path / "a.tif", height=180, width=360, crs="EPSG:4326", where=where)
    archive = embed_raster(
        scenes.build_binder(),
        "mean",
        path,
        tmp_path / "a.parquet",
        size_m=1e6,
        stride_m=111_194.9 * 4,
        min_valid=0.9,
    )
    assert archive.grid.columns == 90
    west, _, east, _ = archive.footprint().T
    assert (west > east).sum() >= archive.grid.rows // 2
    inside = archive.find_rows((178, -20, -178, 20))
    assert len(inside) and np.all(np.abs(archive.lon_N[inside]) >= 178)


def hole(pixels):
    pixels[:, :100, :100] = 7
    return pixels


def with_alpha(pixels):
    return np.concatenate(
        [pixels, np.where(np.indices(pixels.shape[1:]).max(axis=0) < 100, 0, 255)[None]]
    ).astype(np.uint8)


@pytest.mark.parametrize(
    ("written", "asked"),
    [({"nodata": 7, "change": hole}, {}), ({"change": hole}, {"nodata": 7}), ({"change": with_alpha}, {})],
)
def test_tiles_without_enough_pixels_are_left_out(tmp_path, written, asked):
    path = scenes.write_scene(tmp_path / "a.tif", **written)
    for min_valid in (0.0, 0.5, 1.0):
        archive = embed_raster(
            scenes.build_binder(), "mean", path, tmp_path / f"{min_valid}.parquet", size_m=200, stride_m=100,
            min_valid=min_valid, **asked,
        )  # fmt: skip
        row, column = np.mgrid[: archive.grid.rows, : archive.grid.columns]
        left = (
            np.clip(10 - row, 0, 2) * np.clip(10 - column, 0, 2) / 4
        )  # of a tile, in the corner that is empty
        there = 1 - left
        assert len(archive) == ((there >= min_valid) & (there > 0)).sum()
        assert archive.valid_N.min() >= min_valid
        assert np.allclose(archive.valid_N, there[archive.row_N, archive.column_N], atol=0.01)


def test_a_missing_value_that_the_raster_does_not_state_is_not_mixed_into_resampled_tiles(tmp_path):
    path = scenes.write_scene(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"tiles must be resampled, .*gdal_edit.py -a_nodata 7"):
        embed_raster(
            scenes.build_binder(), "mean", path, tmp_path / "a.parquet", size_m=200, gsd=20, nodata=7
        )


def test_a_raster_without_a_place_or_smaller_than_a_tile_is_refused(tmp_path):
    path = scenes.write_scene(tmp_path / "a.tif", crs=None)
    with pytest.raises(
        DataError,
        match=r"a.tif: does not say where on Earth it lies \(it has no CRS\); write it: gdal_edit.py",
    ):
        lay_grid(path, 200, 200)
    with pytest.raises(
        DataError, match="has 300 x 200 pixels, and a tile of 5000 m is 500 x 500: give a smaller --size-m"
    ):
        lay_grid(scenes.write_scene(tmp_path / "b.tif"), 5000, 5000)


def test_a_raster_with_nothing_in_it_is_refused_and_says_why(tmp_path):
    path = scenes.write_scene(tmp_path / "a.tif", nodata=9, change=lambda pixels: np.full_like(pixels, 9))
    with pytest.raises(
        DataError,
        match=r"a.tif: nothing to embed: no tile has enough pixels that are there; lower --min-valid",
    ):
        embed_raster(scenes.build_binder(), "mean", path, tmp_path / "a.parquet", size_m=200)


# Major TOM's grid, from its paper: 2,004 rows of 10 km; a cell's name is its lower left corner.


def test_cells_of_major_tom_have_its_names_and_middles(tmp_path):
    scene = scenes.write_scene(
        tmp_path / "a.tif", crs="EPSG:4326", where=Affine(2e-3, 0, -0.2, 0, -2e-3, 0.2)
    )
    cells = find_named_cells(scene, 10)
    by_name = dict(zip(cells.name_N, zip(cells.lat_N, cells.lon_N, strict=True), strict=True))
    assert {"0U_0R", "0U_1L", "1D_0R", "1D_1L"} <= set(by_name)
    columns = int(np.ceil(2 * np.pi * 6378.137 / 10))
    assert by_name["0U_0R"] == pytest.approx((90 / 2004, 180 / columns))
    assert by_name["1D_1L"][0] == pytest.approx(-90 / 2004)
    assert all(-0.2 <= lat <= 0.2 for lat, _ in by_name.values())


@settings(max_examples=40, deadline=None)
@given(st.floats(-179, 179), st.floats(-80, 80))
def test_every_cell_of_a_scene_is_found_once_wherever_it_lies(tmp_path_factory, lon, lat):
    path = tmp_path_factory.mktemp("cells") / "a.tif"
    where = Affine(5e-3, 0, lon, 0, -5e-3, lat)
    scenes.write_scene(path, height=100, width=100, crs="EPSG:4326", where=where)
    cells = find_named_cells(path, 20)
    assert len(set(cells.name_N)) == len(cells.name_N)
    off = (cells.lon_N - lon) % 360
    assert (off <= 0.5 + 1e-6).all() and (cells.lat_N <= lat).all() and (cells.lat_N >= lat - 0.5).all()
    area = (0.5 * 111.19) ** 2 * np.cos(np.radians(lat - 0.25)) / 400
    assert area * 0.4 - 3 < len(cells.name_N) < area * 1.6 + 6


def test_an_archive_of_named_cells_has_one_tile_in_the_middle_of_each(tmp_path):
    path = scenes.write_scene(tmp_path / "a.tif")
    archive = embed_raster(
        scenes.build_binder(), "mean", path, tmp_path / "a.parquet", size_m=200, grid="majortom:0.5km"
    )
    assert archive.grid is None and archive.metadata.naming == "majortom:0.5km" and len(archive) > 15
    assert all(name.count("_") == 1 and name.split("_")[0][-1] in "UD" for name in archive.ids)
    _, south, _, north = archive.footprint().T
    assert np.allclose((south + north) / 2, archive.lat_N, atol=1e-6)


@pytest.mark.parametrize(
    "text", ["major", "majortom:", "majortom:10", "majortom:0km", "majortom:xkm", "h3:5"]
)
def test_a_grid_that_is_not_known_is_refused(text):
    with pytest.raises(DataError, match=f"--grid {text}: there are `raster` and `majortom:10km`"):
        parse_naming(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size_m", "options"),
    [
        ("s2_capelookout_rgb_utm18n_10m", 640, {}),
        ("s2_capelookout_rgbn_epsg4326", 640, {}),
        ("aerial_rgba_epsg3857_alpha", 200, {}),
        ("rgb_customwkt_utm18n", 6000, {}),
        ("s2_gent_truecolor_uint16_epsg3857", 2000, {"stretch": (0, 3000)}),
        ("rgba_uint16_utm12n", 60, {"bands": (1, 2, 3), "stretch": (0, 65535)}),
        ("world_rgb_epsg4326", 500_000, {}),
    ],
)
def test_real_scenes_become_archives(tmp_path, real_data, name, size_m, options):
    path = real_data / "geotiff" / f"{name}.tif"
    archive = embed_raster(
        scenes.build_binder(), "mean", path, tmp_path / "a.parquet", size_m=size_m, **options
    )
    assert len(archive) >= 3 and archive.check() == len(archive)
    reopened = Archive.open(archive.path)
    west, south, east, north = reopened.bounds
    assert west < east and south < north
