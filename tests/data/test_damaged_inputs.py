"""Faults that damaged files once led to (tests/fuzz/fuzz_readers.py found them), one test for each."""

import io
import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from geobind.data.inspect import inspect_raw
from geobind.data.options import DataOptions, RasterOptions
from geobind.data.readers.audio import audio_seconds, read_audio
from geobind.data.readers.files import FileResolver, join_names
from geobind.data.split import SplitOptions, split_manifest
from geobind.data.table import open_table

HALVES = SplitOptions(by="random", shares=(0.5, 0.5))


def opened(folder, name, columns=("tile",)):
    return open_table(DataOptions(manifest=name), folder, columns)


def test_a_parquet_file_with_a_damaged_page_is_refused_by_split_too(tmp_path, refused):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"tile": [f"{i}.png" for i in range(99)]}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)
    path.write_bytes(content)
    refused(lambda: opened(tmp_path, "m.parquet"), "m.parquet: damaged after row 0")
    refused(lambda: split_manifest(path, tmp_path / "n.parquet", HALVES), "m.parquet: damaged")
    path.write_bytes(content[:-20])
    refused(
        lambda: split_manifest(path, tmp_path / "n.parquet", HALVES), "not a Parquet file that can be read"
    )


def test_strings_of_a_parquet_file_that_are_not_utf8_are_refused_when_it_is_opened(tmp_path, refused):
    offsets, content = np.array([0, 3, 6], np.int32), np.frombuffer(b"a\xff\xfeb.c", np.uint8)
    column = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(content))
    pq.write_table(pa.table({"tile": ["a", "b"], "key": column}), tmp_path / "m.parquet")
    refused(lambda: opened(tmp_path, "m.parquet"), "m.parquet: damaged after row 0", "UTF8")


def test_a_parquet_file_whose_columns_have_no_readable_names_is_refused(tmp_path, refused):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"tile": ["a", "b"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"tile", b"t\xff\xfee"))
    refused(lambda: opened(tmp_path, "m.parquet"), "m.parquet: not a Parquet file that can be read")


def test_half_a_character_in_jsonl_is_kept_by_split(tmp_path):
    rows = [{"tile": "a.png", "note": "half \ud800"}, {"tile": "b.png", "note": "Straße"}]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split_manifest(path, tmp_path / "n.jsonl", HALVES)
    kept = [json.loads(line) for line in (tmp_path / "n.jsonl").read_text().splitlines()]
    assert [row["note"] for row in kept] == [row["note"] for row in rows]


def test_a_file_name_with_a_null_byte_is_refused_wherever_it_leads(tmp_path, refused):
    refused(
        lambda: FileResolver(tmp_path)("a\0.png"), "file name 'a\\x00.png' cannot be used: embedded null byte"
    )
    assert "null byte" in FileResolver(tmp_path).fault("a\0.png")
    window = {"raster": "a\0.tif", "x": 0, "y": 0, "width": 8, "height": 8}
    (tmp_path / "m.jsonl").write_text(json.dumps({"tile": window}))
    table = opened(tmp_path, "m.jsonl")
    refused(lambda: table.samples("tile")[0], "null byte")


@pytest.mark.parametrize(
    "cell",
    [
        {"raster": "a.tif", "x" * 9000: 1},
        {"raster": "a.tif", "x": 10**4000},
        {"raster": "a", "bands": [0] * 999},
    ],
)
def test_messages_stay_short_whatever_a_cell_holds(tmp_path, refused, cell):
    (tmp_path / "m.jsonl").write_text(json.dumps({"tile": cell}))
    assert len(refused(lambda: opened(tmp_path, "m.jsonl"), "m.jsonl:1: column 'tile'")) < 600


def test_messages_stay_short_however_many_columns_there_are(tmp_path, refused):
    (tmp_path / "m.csv").write_text(",".join(f"column{i}" for i in range(3000)) + "\n")
    (tmp_path / "n.csv").write_text(",".join(f"column{i}" for i in range(3000)) + "\na,b\n")
    refused(lambda: opened(tmp_path, "m.csv"), "has no rows")
    assert len(refused(lambda: opened(tmp_path, "n.csv"), "n.csv:2: 2 cells, but the header has 3000")) < 900
    assert join_names([]) == "none"


def test_a_sound_that_claims_no_sampling_rate_is_refused(refused):
    target = io.BytesIO()
    soundfile.write(target, np.zeros(100), 8000, format="WAV")
    content = bytearray(target.getvalue())
    content[24:28] = bytes(4)
    for read in (lambda: audio_seconds(bytes(content), 8000), lambda: read_audio(bytes(content), 8000)):
        refused(read, "the 244 bytes given: ")


@pytest.mark.parametrize(("column", "cell"), [("tile", [1, 10**400]), ("lat", 10**400), ("lon", 1e400)])
def test_numbers_too_large_for_a_float_are_refused(tmp_path, refused, column, cell):
    (tmp_path / "m.jsonl").write_text(json.dumps({"tile": [1.0], "lat": 1, "lon": 1, column: cell}))
    assert len(refused(lambda: opened(tmp_path, "m.jsonl"), f"m.jsonl:1: column '{column}'")) < 300


def test_looking_at_values_as_large_as_float32_holds_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inspect_raw(np.full((32, 32, 3), 3e38, np.float32)).fault is None
        assert inspect_raw(
            np.random.default_rng(0).uniform(-3e38, 3e38, (32, 32, 3)).astype(np.float32)
        ).marks


def test_what_gdal_raises_at_any_touch_of_a_raster_is_told(refused):
    errors = pytest.importorskip("rasterio._err")
    from geobind.data.rasters.opening import report_raster_damage

    def touch(path, error):
        raise error

    told = report_raster_damage(touch)
    refused(
        lambda: told("a.tif", errors.CPLE_AppDefinedError(1, 2, "a strange tag")),
        "a.tif: damaged raster",
        "tag",
    )
    refused(lambda: told("a.tif", UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")), "a.tif: damaged raster")
    with pytest.raises(ZeroDivisionError):
        told("a.tif", ZeroDivisionError())


def test_a_number_too_large_for_32_bits_is_refused_where_it_is_read(tmp_path, refused):
    (tmp_path / "m.jsonl").write_text(json.dumps({"tile": [1.0, 1e39], "key": "a"}))
    table = opened(tmp_path, "m.jsonl")
    refused(lambda: table.samples("tile")[0], "holds a number larger than 3.4e+38")
    refused(lambda: table.read_row(0, ["tile"]), "a: holds a number")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("step", [1e-300, 1e-15, 1e200])
def test_a_geotransform_that_makes_no_sense_is_refused(tmp_path, refused, step):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import from_origin

    from geobind.data.rasters.window import read_window

    profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(
        tmp_path / "a.tif", "w", transform=from_origin(5e5, 5e6, step, step), **profile
    ) as raster:
        raster.write(np.ones((1, 8, 8), np.uint8))
    refused(lambda: read_window(tmp_path / "a.tif", 45.1, 15.0, RasterOptions(size_m=100)), "a.tif")
