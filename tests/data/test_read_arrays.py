"""Arrays of .npy files and rasters of one band, as measured values."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, TiffImagePlugin

from geobind.data import read_band, read_npy
from geobind.errors import DataError

VALUES = np.array([[0.0, 1.5, -2.0], [3.0, np.nan, 5.0]])


def npy(array, **options):
    np.save(file := io.BytesIO(), array, **options)
    return file.getvalue()


def image(array, kind, **options):
    Image.fromarray(array).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "raw",
    [
        VALUES,
        VALUES[None],
        VALUES[..., None].astype(np.float32),
        torch.from_numpy(VALUES),
        VALUES.tolist(),
        npy(VALUES),
        image(VALUES.astype(np.float32), "TIFF"),
        Image.fromarray(VALUES.astype(np.float32)),
    ],
    ids=["array", "band first", "band last", "tensor", "rows", "npy", "tiff", "pillow"],
)
def test_a_band_is_read_alike_whatever_holds_it(raw):
    band = read_band(raw)
    assert band.dtype == np.float64
    assert np.array_equal(band, VALUES, equal_nan=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(arrays.arrays(st.sampled_from(["<i2", "<u2", "<i4", "<f4"]), (3, 4), elements=st.integers(0, 32_767)))
def test_tiffs_keep_every_value_exactly(values):
    assert np.array_equal(read_band(image(values, "TIFF")), values)


def test_negative_heights_of_16_bits_and_deep_pngs_are_kept():
    signed = np.array([[-32_768, -5], [7, 32_767]], np.int16)
    deep = np.array([[0, 65_535], [256, 7]], np.uint16)
    assert np.array_equal(read_band(image(signed, "TIFF")), signed)
    assert np.array_equal(read_band(image(deep, "PNG")), deep)


def test_what_a_tiff_states_to_be_no_data_is_nan(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[42113], tags.tagtype[42113] = "-9999", 2
    path = tmp_path / "heights.tif"
    path.write_bytes(image(np.array([[-9999.0, 12.0]], np.float32), "TIFF", tiffinfo=tags))
    assert np.array_equal(read_band(path), [[np.nan, 12.0]], equal_nan=True)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (np.zeros((3, 4, 5)), "two axes"),
        (np.zeros(5), "two axes"),
        (np.zeros((0, 4)), "is empty"),
        (np.array([[1.0, np.inf]]), "infinite at row 0, column 1"),
        (image(np.zeros((4, 4, 3), np.uint8), "PNG"), "has 3 bands where one is read"),
        (Image.new("RGB", (3, 3)), "mode 'RGB'"),
        (b"nothing", "cannot be read as a raster of one band"),
        (npy(VALUES)[:-8], "is cut short"),
        ([["a", "b"]], "cannot be read as numbers"),
        ("no_such_file.tif", "no such file"),
        (None, "must be a path, bytes, an image or a 2-D array"),
    ],
)
def test_what_is_no_band_is_refused_with_the_reason(raw, words):
    with pytest.raises(DataError, match=words):
        read_band(raw)


def test_an_array_file_with_a_made_up_shape_is_refused_before_it_is_made_room_for():
    real = npy(np.zeros((1, 1000)))
    claimed = real.replace(b"(1, 1000)", b"(9**9,9 )")  # no literal: refused as damaged
    huge = real.replace(b"(1, 1000), }", b"(99999999999,),}")
    for content, words in ((claimed, "damaged"), (huge, "damaged|cut short")):
        assert content != real
        with pytest.raises(DataError, match=words):
            read_npy(content)


def test_an_array_file_of_objects_is_not_unpickled():
    with pytest.raises(DataError, match="where numbers are read"):
        read_npy(npy(np.array([print], dtype=object), allow_pickle=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_damaged_array_file_is_a_data_error_or_an_array(data):
    content = bytearray(npy(np.arange(6.0).reshape(2, 3)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(6, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert read_npy(bytes(content)).nbytes <= len(content)
    except DataError as error:
        assert "bytes given" in str(error)
