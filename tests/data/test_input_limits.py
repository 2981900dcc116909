"""Limits on images and rasters: what they cost at most, in bytes allocated and pixels read."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from affine import Affine
from PIL import Image

from geobind.data import RasterOptions, read_image, read_pixels, read_window
from geobind.data.rasters import opening, window
from geobind.errors import DataError

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def tiff(width, height, bands, *, bits=8, rows=None, planar=1):
    """A TIFF of some hundred bytes that claims this of itself."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: bands, 278: rows or height}
    tags |= {279: min(width * height, 2**32 - 1), 284: planar}
    wide = {256, 257, 273, 278, 279}
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) if tag in wide else struct.pack("<HHIHH", tag, 3, 1, value, 0)
        for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + struct.pack("<H", len(tags)) + entries + bytes(4)


def peak(call):
    """The bytes that Python and NumPy allocate at the peak of a call that is refused."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            call()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("planar", [1, 2])
def test_a_raster_that_claims_many_bands_is_refused_before_gdal_opens_it(tmp_path, monkeypatch, planar):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(8, 8, 65_535, planar=planar))
    assert path.stat().st_size < 500
    monkeypatch.setattr(rasterio, "open", lambda *_, **__: pytest.fail("it was opened"))
    for call in (
        lambda: read_pixels(path, 0, 0, 8, 8),
        lambda: read_image(path),
        lambda: read_image(path, channels=65_535),
    ):
        size, message = peak(call)
        assert "65,535 bands" in message or "65535 bands" in message
        assert size < 4e6


def test_as_many_bands_as_a_modality_can_have_are_read(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(8, 8, opening.MAX_BANDS, planar=2))
    assert read_pixels(path, 0, 0, 8, 8).shape == (8, 8, opening.MAX_BANDS)


@pytest.mark.parametrize(
    ("width", "height", "bands", "bits", "rows"),
    [(2**31 - 1, 2**31 - 1, 1, 8, 1), (2**31 - 1, 2**31 - 1, 1, 8, None), (30_000, 3000, 3, 32, None)],
)
def test_blocks_larger_than_memory_are_refused_before_gdal_opens_the_file(
    tmp_path, monkeypatch, width, height, bands, bits, rows
):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(width, height, bands, bits=bits, rows=rows))
    monkeypatch.setattr(rasterio, "open", lambda *_, **__: pytest.fail("it was opened"))
    size, message = peak(lambda: read_pixels(path, 0, 0, 8, 8))
    assert "in blocks of" in message
    assert size < 4e6


def test_a_window_of_too_many_blocks_is_refused(tmp_path, monkeypatch, refused):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(64, 64, 1, rows=1))
    monkeypatch.setattr(window, "_MAX_BLOCKS", 63)
    monkeypatch.setattr(window, "_read_pixels", lambda *_: pytest.fail("it was read"))
    refused(lambda: read_pixels(path, 0, 0, 64, 64), "64 blocks of 1 x 64 pixels")


@pytest.mark.parametrize("turn", [0, 30])
def test_a_window_of_too_many_values_is_refused_before_it_is_allocated(tmp_path, turn):
    grid = Affine.translation(3, 45) @ Affine.rotation(turn) @ Affine.scale(1e-4, -1e-4)
    profile = {"driver": "GTiff", "count": 3, "height": 60, "width": 60, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", crs="EPSG:4326", transform=grid, **profile) as file:
        file.write(np.ones((3, 60, 60), np.uint8))
    options = RasterOptions(size_m=300, gsd=1e-3, min_valid=0)
    size, message = peak(lambda: read_window(tmp_path / "a.tif", 45, 3, options))
    assert "300000 x 300000 pixels of 3 bands" in message
    assert size < 4e6


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("shape", [(30_000, 1), (1, 30_000), (3, 20_000), (8000, 400)])
def test_a_thin_image_is_cut_before_it_is_scaled(monkeypatch, size, shape):
    from geobind.towers import images
    from geobind.towers.images import ImageSpec, prepare_image

    made = []
    resize = images.transforms.resize

    def count(image, *args, **kwargs):
        scaled = resize(image, *args, **kwargs)
        made.append(math.prod(images.transforms.get_size(scaled)))
        return scaled

    monkeypatch.setattr(images.transforms, "resize", count)
    spec = ImageSpec(3, size, (0.5,) * 3, (0.5,) * 3, "bicubic", False, True)
    image = Image.fromarray(np.zeros((*shape, 3), np.uint8) + np.uint8(9))
    assert (prepare_image(image, spec) == 9).all()
    assert prepare_image(image, spec).shape == (3, size, size)
    assert max(made) <= 2**24 + size * size


def test_the_middle_of_a_thin_image_stays_what_it_was(monkeypatch):
    from geobind.towers import images
    from geobind.towers.images import ImageSpec, _crop_oblong, prepare_image

    monkeypatch.setattr(images, "_MOST_SCALED", 16 * 40 * 40)

    pixels_CHW = torch.randint(0, 255, (3, 20, 20 * 40), dtype=torch.uint8)
    spec = ImageSpec(3, 40, (0.5,) * 3, (0.5,) * 3, "bicubic", False, True)
    middle_CHW = pixels_CHW[:, :, 20 * 20 - 160 : 20 * 20 + 160]
    assert torch.equal(_crop_oblong(pixels_CHW, 40), middle_CHW)
    assert torch.equal(prepare_image(pixels_CHW, spec), prepare_image(middle_CHW, spec))
    wide_CHW = pixels_CHW[:, :, : 20 * 16]
    assert _crop_oblong(wide_CHW, 40) is wide_CHW
