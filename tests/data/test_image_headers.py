"""The header of an image file decides what is read: modes, bit depths, band counts and file types."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geobind.data.inspect import inspect_raw
from geobind.data.readers.image_header import read_header
from geobind.data.readers.images import read_image
from geobind.errors import DataError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

KINDS = {
    "uint8": ("unsigned", 8),
    "int8": ("signed", 8),
    "uint16": ("unsigned", 16),
    "int16": ("signed", 16),
    "uint32": ("unsigned", 32),
    "int32": ("signed", 32),
    "float32": ("float", 32),
    "float64": ("float", 64),
    "complex64": ("complex", 64),
}
RNG = np.random.default_rng(0)


def tiff(path, pixels, **options):
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with rasterio.open(path, "w", **profile, **options) as file:
        file.write(pixels)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels):
    """A PNG of 8 or 16 bits with 1 to 4 bands, (H, W, B); Pillow writes no colour of 16 bits."""
    height, width, bands = pixels.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def encoded(image, kind, **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


@pytest.mark.parametrize("photometric", ["RGB", "MINISBLACK"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", KINDS)
def test_a_tiff_gives_the_pixels_that_it_holds_or_is_refused(tmp_path, dtype, count, interleave, photometric):
    pixels = RNG.integers(0, 120, (count, 8, 9)).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = tiff(tmp_path / "a.tif", pixels, interleave=interleave, photometric=photometric)
    read = set()
    for raw in (path, path.read_bytes()):
        for channels in range(1, 6):
            try:
                image = read_image(raw, channels=channels).numpy()
            except DataError as error:
                assert str(error).startswith(("the ", str(path)))
                continue
            read.add(channels)
            if channels == count:
                assert np.array_equal(image, pixels.astype(image.dtype))
            else:  # grey as RGB, or RGB without what GDAL calls alpha
                assert dtype == "uint8"
                assert channels == 3
                assert count in (1, 2, 4)
                assert np.array_equal(image, pixels[:1].repeat(3, 0) if count < 3 else pixels[:3])
    readable = dtype != "complex64" and (count != 3 or dtype == "uint8")
    assert (count in read) == readable
    assert 3 not in read or dtype == "uint8"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.sampled_from(["uint8", "uint16"]), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_a_png_of_more_than_8_bits_is_never_shown_as_rgb(dtype, bands, channels, opened):
    pixels = RNG.integers(0, 250, (5, 6, bands)).astype(dtype)
    file = png(pixels)
    raw = Image.open(io.BytesIO(file)) if opened else file
    try:
        image = read_image(raw, channels=channels).numpy().transpose(1, 2, 0)
    except DataError:
        assert dtype == "uint16" or channels != bands
        return
    if dtype == "uint16":
        assert bands == channels == 1
    shown = pixels if channels == bands else pixels[..., :3] if bands > 2 else pixels[..., :1].repeat(3, 2)
    assert np.array_equal(image, shown.astype(image.dtype))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_jpeg_2000_gives_the_pixels_that_it_holds_or_is_refused(tmp_path, dtype, count):
    pixels = RNG.integers(0, 250, (count, 16, 16)).astype(dtype)
    profile = {"driver": "JP2OpenJPEG", "count": count, "height": 16, "width": 16, "dtype": dtype}
    try:
        with rasterio.open(tmp_path / "a.jp2", "w", **profile, QUALITY="100", REVERSIBLE="YES") as file:
            file.write(pixels)
    except rasterio.errors.RasterioError:
        pytest.skip("GDAL writes no JPEG 2000 here")
    path = tmp_path / "a.jp2"
    with path.open("rb") as file:
        header = read_header(file, "a.jp2")
    assert (header.bands, header.bits, header.width) == (count, 8 * pixels.itemsize, 16)
    for channels in range(1, 6):
        try:
            image = read_image(path, channels=channels).numpy()
        except DataError:
            assert channels != count or (channels == 3 and dtype == "uint16")
            continue
        assert channels == count or (dtype == "uint8" and channels == 3)
        shown = pixels if channels == count else pixels[:1].repeat(3, 0) if count < 3 else pixels[:3]
        assert np.array_equal(image, shown.astype(image.dtype))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "CMYK", "P", "1", "I;16"])
def test_a_header_names_the_size_bands_and_bits_of_what_pillow_writes(kind, mode):
    image = Image.new("RGB", (7, 5), (200, 100, 50)).convert("L" if mode == "I;16" else mode)
    image = Image.fromarray(np.asarray(image).astype(np.uint16)) if mode == "I;16" else image
    try:
        file = encoded(image, kind)
    except (OSError, ValueError, KeyError):
        return  # no such file can be
    header = read_header(io.BytesIO(file), "a")
    assert (header.width, header.height) == (7, 5)
    assert header.bands == len(Image.open(io.BytesIO(file)).getbands())
    assert header.bits == (16 if mode == "I;16" else 1 if mode == "1" and kind != "JPEG" else 8)
    # Four bands of which none is stated to be alpha are not read as a photo from JPEG 2000.
    assert header.photo == (mode != "I;16" and (mode, kind) != ("CMYK", "JPEG2000"))


def test_a_tiff_of_several_pages_is_no_image_of_its_first(tmp_path, refused):
    pages = [Image.fromarray(np.full((6, 6), 10 * n, np.uint8)) for n in range(4)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    refused(lambda: read_image(tmp_path / "stack.tif"), "stack.tif", "4 images of one size", "bands")


def test_overviews_and_masks_are_no_pages(tmp_path):
    path = tiff(tmp_path / "a.tif", np.full((3, 64, 64), 9, np.uint8), photometric="RGB")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
        file.write_mask(np.full((64, 64), 255, np.uint8))
    assert read_image(path).float().mean() == 9


def test_a_band_called_alpha_that_is_asked_for_is_no_mask(tmp_path):
    pixels = np.stack(
        [np.full((8, 8), value, np.uint8) for value in (10, 60, 110, 0)]
    )  # water in near infrared
    path = tiff(tmp_path / "naip.tif", pixels, photometric="RGB", alpha="YES")
    assert read_image(path, channels=4).float().mean((1, 2)).tolist() == [10, 60, 110, 0]
    from geobind.data import RasterOptions, read_pixels

    assert read_pixels(path, 0, 0, 8, 8, RasterOptions(bands=(1, 2, 3, 4)))[0, 0].tolist() == [10, 60, 110, 0]
    with pytest.raises(DataError, match="missing"):
        read_pixels(path, 0, 0, 8, 8, RasterOptions(bands=(1, 2, 3)))


@pytest.mark.parametrize(
    ("kind", "three", "none"),
    [
        ("TIFF", struct.pack("<HHIH", 277, 3, 1, 3), struct.pack("<HHIH", 277, 3, 1, 0)),
        ("JPEG", b"\x08\0\x05\0\x07\x03", b"\x08\0\x05\0\x07\0"),
    ],
)
def test_an_image_of_no_band_is_damaged(kind, three, none):
    whole = encoded(Image.new("RGB", (7, 5)), kind)
    damaged = whole.replace(three, none)
    assert damaged != whole and inspect_raw(whole).fault is None
    reason = f"the header of this {kind} file is damaged: it states no band"
    assert reason in inspect_raw(damaged).fault
    with pytest.raises(DataError, match=reason):
        read_image(damaged)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "JPEG2000"])
@settings(deadline=None, max_examples=80, derandomize=True)
@given(data=st.data())
def test_a_damaged_header_is_a_header_or_a_dataerror(kind, data):
    file = bytearray(encoded(Image.new("RGB", (9, 8)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(file)))
    for content in (bytes(file), bytes(file[:cut])):
        try:
            header = read_header(io.BytesIO(content), "a.img")
        except DataError as error:
            assert str(error).startswith("a.img: the header of this")
        else:
            assert header is None or header.bands >= 0


def test_8_bit_and_float_images_keep_in_a_batch_what_they_mean_alone():
    from geobind.inference import collate

    bytes_CHW, float_CHW = torch.full((3, 4, 4), 51, dtype=torch.uint8), torch.full((3, 4, 4), 0.7)
    batch = collate([bytes_CHW, float_CHW])
    assert batch.dtype == torch.float32
    assert batch[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.7])


def somewhere():
    from rasterio.transform import from_origin

    return {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)}


@pytest.mark.parametrize("count", [1, 3, 4, 6])
@pytest.mark.parametrize("opened", [False, True])
def test_a_georeferenced_scene_is_no_tile_and_is_refused_with_the_fix(tmp_path, count, opened):
    path = tiff(tmp_path / "scene.tif", np.zeros((count, 40, 1025), "uint8"), **somewhere())
    if opened and count == 6:
        pytest.skip("Pillow opens no six bands")
    with pytest.raises(DataError, match=r"a scene of 1025 x 40 pixels .* --raster FILE .*`rasters: \{NAME"):
        read_image(Image.open(path) if opened else path, channels=count)


def test_a_georeferenced_tile_and_a_large_photo_as_tiff_are_images(tmp_path):
    pixels = RNG.integers(0, 255, (3, 1024, 1024)).astype("uint8")
    tile = tiff(tmp_path / "tile.tif", pixels, photometric="RGB", **somewhere())
    assert np.array_equal(read_image(tile).numpy(), pixels)
    photo = tiff(tmp_path / "photo.tif", np.zeros((3, 8, 1025), "uint8"), photometric="RGB")
    assert read_image(photo).shape == (3, 8, 1025)


def test_a_georeferenced_jpeg_2000_is_known_as_one(tmp_path):
    profile = {"driver": "JP2OpenJPEG", "count": 3, "height": 16, "width": 1030, "dtype": "uint8"}
    for name, options in (("plain.jp2", {}), ("scene.jp2", somewhere())):
        try:
            with rasterio.open(tmp_path / name, "w", **profile, **options) as file:
                file.write(np.zeros((3, 16, 1030), "uint8"))
        except rasterio.errors.RasterioError:
            pytest.skip("GDAL writes no JPEG 2000 here")
    assert read_image(tmp_path / "plain.jp2").shape == (3, 16, 1030)
    with pytest.raises(DataError, match="with a georeference"):
        read_image(tmp_path / "scene.jp2")
