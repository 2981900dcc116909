"""The contract of the Earth embeddings' modality, and what it reads out of products."""

import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from geobind_modality_earth import SOURCE_VARIABLE, Earth, dequantise
from hypothesis import given, settings
from hypothesis import strategies as st

import geobind
from geobind import Binder
from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts

rasterio = pytest.importorskip("rasterio")

SIZE = 8
MUNICH = geobind.Place(48.137, 11.575, datetime(2024, 5, 1))
WEST, NORTH, STEP = 11.0, 49.0, 0.1  # of a grid of 20 x 20 pixels


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(SOURCE_VARIABLE, raising=False)


def make_pixels(size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(-120, 120, (size, 20, 20)).astype(np.int8)


def write_tiff(path, values_SYX, *, nodata=None, bottom_up=False, crs="EPSG:4326", grid=None):
    grid = grid or rasterio.transform.Affine(STEP, 0, WEST, 0, -STEP, NORTH)
    if bottom_up:
        values_SYX = values_SYX[:, ::-1]
        grid = rasterio.transform.Affine(STEP, 0, WEST, 0, STEP, NORTH - 20 * STEP)
    bands, height, width = values_SYX.shape
    how = {"count": bands, "height": height, "width": width, "dtype": values_SYX.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=grid, nodata=nodata, **how) as file:
        file.write(values_SYX)
    return str(path)


def pixel_of(values_SYX, place):
    return values_SYX[:, int((NORTH - place.lat) / STEP), int((place.lon - WEST) / STEP)]


def write_points(path, vectors, kind=None, **columns):
    size = len(vectors[0])
    flat = pa.array(np.concatenate(vectors))
    lists = pa.FixedSizeListArray.from_arrays(flat, size) if kind is None else pa.array(vectors, kind)
    columns = columns or {"lat": [48.137, 48.2, -33.9], "lon": [11.575, 11.575, 151.2]}
    pq.write_table(pa.table({**columns, "embedding": lists}), path)
    return str(path)


def make_vectors(dtype=np.float32):
    return [*np.random.default_rng(1).normal(size=(3, SIZE)).astype(dtype)]


class TestVectors(ModalityContract):
    modality = Earth(size=SIZE)
    width = SIZE
    raws = [torch.arange(1.0, 1 + SIZE), [0.5] * SIZE, np.eye(SIZE, dtype=np.float32)[3]]
    bad_raws = [
        [1.0] * 5,
        [float("nan")] * SIZE,
        [1e300] * SIZE,
        np.zeros(SIZE),
        np.ones(SIZE, np.int8),
        "no place",
        "48.1, 11.6",
        MUNICH,
        geobind.Place(91.0, 0.0),
        geobind.Place(float("nan"), 0.0),
        None,
        b"\0",
    ]


class TestProjected(ModalityContract):
    modality = Earth(size=SIZE, quantisation="alphaearth")
    raws = [np.arange(1, 1 + SIZE, dtype=np.int8), np.full(SIZE, -127, np.int8)]
    bad_raws = [np.full(SIZE, -128, np.int8), np.ones(SIZE, np.int16)]


@settings(max_examples=50, deadline=None)
@given(st.integers(-127, 127))
def test_alphaearth_is_dequantised_by_its_square(stored):
    value = dequantise(np.array([stored], np.int8), "alphaearth")[0]
    assert np.isclose(np.sign(value) * np.sqrt(abs(value)) * 127.5, stored)
    assert abs(value) <= (127 / 127.5) ** 2


def test_linear_numbers_are_scaled():
    assert dequantise(np.array([-4, 100], np.int16), "linear", 0.5, 1.0).tolist() == [-1.0, 51.0]


def test_a_wider_space_keeps_cosines():
    vector_BS = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(0))
    wide_BD = Earth(size=SIZE).encoder(3 * SIZE)(vector_BS)
    assert torch.allclose(wide_BD @ wide_BD.T, vector_BS @ vector_BS.T, atol=1e-5)


@pytest.mark.parametrize("bottom_up", [False, True])
def test_a_place_is_looked_up_in_a_geotiff_with_north_at_either_end(tmp_path, bottom_up):
    pixels = make_pixels()
    modality = Earth(
        size=SIZE,
        source=write_tiff(tmp_path / "a.tif", pixels, nodata=-128, bottom_up=bottom_up),
        quantisation="alphaearth",
    )
    expected = dequantise(pixel_of(pixels, MUNICH), "alphaearth").astype(np.float32)
    assert modality.prepare(MUNICH).numpy().tolist() == expected.tolist()
    assert modality.prepare("48.137, 11.575").numpy().tolist() == expected.tolist()


def test_a_projected_geotiff_is_looked_up_by_degrees(tmp_path):
    grid = rasterio.transform.Affine(1000, 0, 680_000, 0, -1000, 5_340_000)
    pixels = make_pixels().astype(np.float32)
    source = write_tiff(tmp_path / "utm.tif", pixels, crs="EPSG:32632", grid=grid)
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", "EPSG:32632", [MUNICH.lon], [MUNICH.lat])
    expected = pixels[:, int((5_340_000 - y) // 1000), int((x - 680_000) // 1000)]
    assert Earth(size=SIZE, source=source).prepare(MUNICH).tolist() == expected.tolist()


def test_the_tile_that_covers_a_place_is_found(tmp_path):
    far = rasterio.transform.Affine(STEP, 0, 100, 0, -STEP, 10)
    sources = [
        write_tiff(tmp_path / "far.tif", make_pixels(seed=1), grid=far),
        write_tiff(tmp_path / "near.tif", pixels := make_pixels()),
    ]
    modality = Earth(size=SIZE, source=sources, quantisation="linear", scale=0.5)
    assert modality.prepare(MUNICH).tolist() == (pixel_of(pixels, MUNICH) * 0.5).tolist()


def test_the_product_of_the_nearest_year_is_taken(tmp_path):
    pixels = {year: make_pixels(seed=year) for year in (2018, 2020)}
    sources = [write_tiff(tmp_path / f"{year}.tif", pixels[year]) for year in pixels]
    options = {"size": SIZE, "source": sources, "year": (2018, 2020), "quantisation": "alphaearth"}
    modality = Earth(**options, within_years=4)
    for year, product in ((2017, 2018), (2019, 2018), (2020, 2020), (2024, 2020)):
        expected = dequantise(pixel_of(pixels[product], MUNICH), "alphaearth").astype(np.float32)
        found = modality.prepare(MUNICH._replace(time=datetime(year, 1, 1)))
        assert found.tolist() == expected.tolist(), year
    with pytest.raises(
        DataError, match=r"no product of 2024 for 48.137, 11.575 .* of 2018, 2020.*`within_years`"
    ):
        Earth(**options).prepare(MUNICH)
    with pytest.raises(DataError, match="has no time, and there are products of 2018, 2020"):
        modality.prepare(MUNICH._replace(time=None))


def test_a_place_outside_is_named_with_the_product(tmp_path):
    modality = Earth(
        size=SIZE, source=write_tiff(tmp_path / "a.tif", make_pixels()), quantisation="alphaearth"
    )
    message = (
        r"no embedding of -33.9, 151.2: .*a\.tif does not cover it \(latitudes 47 to 49, longitudes 11 to 13"
    )
    with pytest.raises(DataError, match=message):
        modality.prepare(geobind.Place(-33.9, 151.2))


@pytest.mark.parametrize(
    ("values", "nodata", "options", "message"),
    [
        (make_pixels(), None, {}, "is of type int8, so it is quantised"),
        (make_pixels().astype(np.float32), None, {"quantisation": "alphaearth"}, "type float32.*to none"),
        (make_pixels().astype(np.int16), None, {"quantisation": "alphaearth"}, "type int16.*to linear"),
        (np.ones((SIZE, 20, 20)), None, {"quantisation": "linear", "scale": 2}, "float64, not quantised"),
        (make_pixels(5), None, {"quantisation": "alphaearth"}, "has 5 bands, not 8"),
        (np.full((SIZE, 20, 20), -128, np.int8), None, {"quantisation": "alphaearth"}, r"masked \(-128\)"),
        (np.full((SIZE, 20, 20), -9.0), -9, {}, r"missing \(nodata\)"),
        (np.full((SIZE, 20, 20), np.nan, np.float32), None, {}, "pixel 6, 9 is missing"),
        (np.zeros((SIZE, 20, 20), np.float32), None, {}, "pixel 6, 9 is all zeros"),
    ],
)
def test_a_pixel_that_is_no_such_embedding_is_refused(tmp_path, values, nodata, options, message):
    source = write_tiff(tmp_path / "a.tif", values, nodata=nodata)
    with pytest.raises(DataError, match=message):
        Earth(size=SIZE, source=source, **options).prepare(geobind.Place(48.05, 11.65))


@pytest.mark.parametrize("name", ["absent.tif", "absent.parquet", "absent.zarr"])
def test_a_product_that_is_no_file_here_is_refused(name):
    if name.endswith(".zarr"):
        pytest.importorskip("zarr")
    with pytest.raises(DataError, match=name):
        Earth(size=SIZE, source=name, column="embedding", variable="embedding").prepare(MUNICH)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
@pytest.mark.parametrize("kind", [None, "list"])
def test_the_nearest_point_of_a_geoparquet_is_taken(tmp_path, dtype, kind):
    vectors = [*(50 * np.array(make_vectors())).astype(dtype)]
    kind = kind and pa.list_(pa.from_numpy_dtype(dtype))
    options = {"quantisation": "linear", "scale": 1} if dtype == np.int8 else {}
    source = write_points(tmp_path / "a.parquet", vectors, kind)
    modality = Earth(size=SIZE, source=source, column="embedding", max_km=8, **options)
    for lat, row in ((48.14, 0), (48.19, 1), (48.25, 1)):
        assert (
            modality.prepare(geobind.Place(lat, 11.575)).tolist() == vectors[row].astype(np.float32).tolist()
        )
    with pytest.raises(DataError, match=r"no embedding of 48\.3, 11\.575: .* no point within 8 km"):
        modality.prepare(geobind.Place(48.3, 11.575))


def test_the_nearest_point_may_lie_over_the_antimeridian_and_rows_without_place_have_none(tmp_path):
    places = {"centre_lat": [None, 10.0, 10.0], "centre_lon": [None, 170.0, -179.99]}
    source = write_points(tmp_path / "a.parquet", vectors := make_vectors(), **places)
    columns = {"column": "embedding", "lat_column": "centre_lat", "lon_column": "centre_lon"}
    modality = Earth(size=SIZE, source=source, max_km=5, **columns)
    for lon in (179.99, 180.01):
        assert modality.prepare(geobind.Place(10.0, lon)).tolist() == vectors[2].tolist()


def test_a_parquet_that_changes_is_read_anew(tmp_path):
    modality = Earth(size=SIZE, source=str(tmp_path / "a.parquet"), column="embedding")
    write_points(tmp_path / "a.parquet", vectors := make_vectors())
    assert modality.prepare(MUNICH).tolist() == vectors[0].tolist()
    write_points(tmp_path / "a.parquet", [vector.astype(np.float64) for vector in vectors[::-1]])
    assert modality.prepare(MUNICH).tolist() == vectors[2].tolist()


@pytest.mark.parametrize(
    ("vectors", "kind", "options", "message"),
    [
        (
            make_vectors(),
            None,
            {"column": "vector"},
            r"no column 'vector' \(`column`\); its columns: lat, lon",
        ),
        (make_vectors(), None, {"lat_column": "y"}, r"no column 'y' \(`lat_column`\)"),
        (make_vectors(), None, {"column": "lat"}, "'lat' .* holds double, not lists of 8 numbers"),
        (make_vectors(), None, {"size": 9}, "holds 8 numbers, not 9: set `size`"),
        ([[1.0] * 8, [1.0] * 7, [1.0] * 8], pa.list_(pa.float32()), {}, "row 1: .* not 7 numbers"),
        ([[1.0] * 8, [1.0] * 8, None], pa.list_(pa.float32()), {}, "row 2: .* not none"),
        (
            [[1.0] * 8, [1.0] * 7 + [None], [1.0] * 8],
            pa.list_(pa.float32()),
            {},
            "row 1: .* not one with a gap",
        ),
        ([["a"] * 8] * 3, pa.list_(pa.string()), {}, "lists of string, not of numbers"),
        ([np.full(8, np.nan)] * 3, None, {}, "row 0 holds NaN"),
        ([np.ones(8, np.int8)] * 3, None, {}, "row 0 is of type int8, so it is quantised"),
    ],
)
def test_a_parquet_without_such_embeddings_is_refused(tmp_path, vectors, kind, options, message):
    source = str(tmp_path / "a.parquet")
    if kind is None:
        write_points(source, vectors)
    else:
        places = {"lat": [48.137, 48.2, -33.9], "lon": [11.575, 11.575, 151.2]}
        pq.write_table(pa.table({**places, "embedding": pa.array(vectors, kind)}), source)
    with pytest.raises(DataError, match=message):
        Earth(**{"size": SIZE, "source": source, "column": "embedding", **options}).prepare(MUNICH)


def write_zarr(path, values_SYX, lat_Y, lon_X):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w")
    for name, values in (("embedding", values_SYX), ("lat", lat_Y), ("lon", lon_X)):
        group.create_array(name, data=np.asarray(values))
    return str(path)


def test_a_place_is_looked_up_in_a_zarr_store(tmp_path):
    pixels = make_pixels()
    lat_Y, lon_X = NORTH - STEP * (np.arange(20) + 0.5), WEST + STEP * (np.arange(20) + 0.5)
    source = write_zarr(tmp_path / "a.zarr", pixels, lat_Y, lon_X + 360)
    options = {"size": SIZE, "source": source, "quantisation": "alphaearth"}
    place = geobind.Place(48.06, 11.63)
    expected = dequantise(pixel_of(pixels, place), "alphaearth").astype(np.float32)
    assert Earth(**options, variable="embedding").prepare(place).tolist() == expected.tolist()
    with pytest.raises(DataError, match=r"no embedding of 46.9, 11.6: .* does not cover it"):
        Earth(**options, variable="embedding").prepare(geobind.Place(46.9, 11.6))
    with pytest.raises(DataError, match="no array 'other'; its arrays: embedding, lat, lon"):
        Earth(**options, variable="other").prepare(place)
    with pytest.raises(DataError, match=r"has the shape \(8, 20, 20\); .* with 9 bands"):
        Earth(**{**options, "size": 9}, variable="embedding").prepare(place)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantisation": "linear"}, "`scale`"),
        ({"scale": 2}, "`scale`"),
        ({"offset": 2}, "`offset`"),
        ({"source": "https://example.org/a.tif"}, "is an address"),
        ({"source": "/vsicurl/https:/example.org/a.tif"}, "is an address"),
        ({"source": "a.parquet"}, "`column`"),
        ({"source": "a.zarr"}, "`variable`"),
        ({"source": ["a.tif", "b.tif"], "year": [2020]}, "1 values for 2 sources"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Earth(size=SIZE, **options)


def test_a_bundle_reads_no_product_but_the_one_its_user_names(tmp_path, monkeypatch):
    pixels = make_pixels()
    source = write_tiff(tmp_path / "a.tif", pixels)
    earth = Earth(size=SIZE, source=source, quantisation="alphaearth")
    Binder({"earth": earth}, width=SIZE).save(tmp_path / "bundle")
    card = tmp_path / "bundle" / "binder.json"
    assert str(tmp_path) not in card.read_text()
    card.write_text(card.read_text().replace('"a.tif"', f'"{source}"'))
    with pytest.raises(DataError, match=f"cannot name files on your disk, set {SOURCE_VARIABLE}=PRODUCT"):
        Binder.load(tmp_path / "bundle").embed("earth", MUNICH)
    monkeypatch.setenv(SOURCE_VARIABLE, source)
    vector = dequantise(pixel_of(pixels, MUNICH), "alphaearth")
    embedding = Binder.load(tmp_path / "bundle").embed("earth", MUNICH)
    assert np.allclose(np.asarray(embedding).ravel(), vector / np.linalg.norm(vector), atol=1e-6)


@pytest.mark.slow
def test_the_recipe_of_the_readme_runs(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    recipe = readme.split("```yaml\n")[2].split("```")[0]  # the one that looks a product up
    (tmp_path / "recipe.yaml").write_text(recipe)
    write_tiff(tmp_path / "alphaearth_2024.tif", make_pixels(64), nodata=-128)
    rng = np.random.default_rng(0)
    rows = [
        f"{47.1 + 1.8 * a:.4f},{11.1 + 1.8 * b:.4f},2024-05-01,{a:.3f},{b:.3f}"
        for a, b in rng.random((64, 2))
    ]
    (tmp_path / "places.csv").write_text("\n".join(["lat,lon,time,temperature,rain", *rows]))
    command = [sys.executable, "-m", "geobind", "run", "recipe.yaml", "--set", "stages.0.epochs=1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]


def test_embeddings_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts("earth", "embedding", tmp_path, {"size": 64}, frozen=True)
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
