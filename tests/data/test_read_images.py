import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geobind.data.readers import images
from geobind.data.readers.images import decode_image, read_image
from geobind.errors import DataError

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3) * 4


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_a_lossless_file_gives_its_pixels(tmp_path, kind):
    path = tmp_path / "a.img"
    path.write_bytes(encoded(Image.fromarray(RGB), kind))
    for raw in (
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        RGB,
        torch.tensor(RGB).permute(2, 0, 1),
    ):
        image = read_image(raw)
        assert image.shape == (3, 4, 5)
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        assert np.array_equal(image.permute(1, 2, 0).numpy(), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_are_read(kind):
    flat = Image.new("RGB", (20, 10), (200, 100, 50))
    image = read_image(encoded(flat, kind))
    assert image.shape == (3, 10, 20)
    assert (image.float().mean((1, 2)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_of_photo_becomes_rgb(mode):
    white = Image.new("RGB", (3, 2), "white").convert(mode)
    assert read_image(white).tolist() == torch.full((3, 2, 3), 255).tolist()


def test_sixteen_bit_grey_is_refused_as_rgb_and_kept_for_one_channel(refused):
    deep = np.array([[0, 257, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        file = encoded(Image.fromarray(deep), kind)
        refused(
            lambda file=file: read_image(file),
            "1 band of 16-bit",
            "not read as RGB",
            "8 bits" if kind == "PNG" else "stretch",
        )
        assert read_image(file, channels=1).tolist() == [[[0.0, 257.0, 65535.0]]]


def test_palette_indices_are_kept_for_one_channel():
    classes = Image.new("P", (2, 1))
    classes.putpalette([9, 9, 9, 200, 0, 0])
    classes.putpixel((1, 0), 1)
    assert read_image(encoded(classes), channels=1).tolist() == [[[0, 1]]]
    assert read_image(encoded(classes))[:, 0, 1].tolist() == [200, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    file = encoded(Image.fromarray(RGB), kind, exif=exif, lossless=True)
    assert np.array_equal(read_image(file).permute(1, 2, 0).numpy(), np.rot90(RGB, -1))


def test_arrays_may_have_their_channels_first_or_last():
    bands = np.random.default_rng(0).random((5, 7, 9)).astype(np.float64)
    assert read_image(bands, channels=5).shape == (5, 7, 9)
    assert read_image(bands, channels=9).shape == (9, 5, 7)
    assert read_image(bands, channels=9).dtype == torch.float32
    assert read_image(RGB[..., 0]).shape == (3, 4, 5)
    assert read_image(RGB[..., :1]).shape == (3, 4, 5)
    assert read_image(RGB[..., 0], channels=1).shape == (1, 4, 5)


def test_where_both_layouts_fit_the_last_axis_holds_the_channels():
    cube = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert read_image(cube)[0].tolist() == cube[..., 0].tolist()


def test_a_file_as_high_as_it_has_channels_is_not_misread():
    low = np.zeros((4, 9, 3), np.uint8)
    with pytest.raises(DataError, match="has 3 channels where 4 are wanted"):
        read_image(encoded(Image.fromarray(low)), channels=4)


def test_the_result_is_not_the_input_s_memory_when_that_is_read_only():
    frozen = RGB.copy()
    frozen.flags.writeable = False
    read_image(frozen).add_(1)
    assert np.array_equal(frozen, RGB)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (np.zeros((4, 4, 5)), ("has 4 channels where 3 are wanted",)),
        (torch.zeros(2, 8, 8), ("has 2 channels where 3 are wanted",)),
        (np.full((2, 2, 3), np.nan), ("12 of 12 values are NaN",)),
        (np.array([[1e300]]), ("NaN or infinite",)),
        (np.zeros((0, 3, 3)), ("shape (0, 3, 3)",)),
        (np.zeros(3), ("shape (3,)",)),
        (np.zeros((2, 2), complex), ("complex128, are complex",)),
        (np.array([["a"]]), ("are no numbers",)),
        (b"", ("0 bytes",)),
        (b"hello there, this is text", ("not a readable JPEG", "hello")),
        (b"version https://git-lfs.github.com/spec/v1\n", ("git lfs pull",)),
        ("https://example.org/a.png", ("is an address", "download")),
        ("no/such/file.png", ("no/such/file.png", "no such file")),
        (12, ("not a int",)),
        (Image.new("F", (2, 2)), ("mode 'F'",)),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(refused, raw, words):
    refused(lambda: read_image(raw), *words)


def test_folders_pipes_and_null_bytes_are_refused(tmp_path, refused):
    refused(lambda: read_image(tmp_path), "folder")
    refused(lambda: read_image("/dev/null"), "not a file")
    refused(lambda: read_image("a\0.png"), "null")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_truncated_file_is_named(tmp_path, refused, kind):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "cut.img"
    path.write_bytes(encoded(Image.fromarray(noise), kind)[:-2000])
    refused(lambda: read_image(path), "cut.img")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_gives_an_image_or_a_dataerror(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "BMP"]))
    file = bytearray(encoded(Image.fromarray(RGB), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert read_image(bytes(file)).shape[0] == 3
    except DataError as error:
        assert str(error).startswith("the ")


def test_size_is_checked_before_decoding(refused, monkeypatch):
    refused(lambda: read_image(encoded(Image.new("1", (30_001, 1)))), "30001 x 1 pixels")
    monkeypatch.setattr(images, "MAX_PIXELS", 10)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    refused(lambda: read_image(Image.new("RGB", (4, 5))), "4 x 5 pixels")


def test_what_a_header_states_to_be_too_large_is_refused_with_the_fix(refused):
    file = bytearray(encoded(Image.fromarray(RGB)))
    file[16:24] = struct.pack(">II", 30_000, 30_000)  # what the header says of width and height
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    said = refused(
        lambda: read_image(bytes(file)), "30000 x 30000 pixels; at most 30000 a side", "cut it into"
    )
    assert "DOS" not in said


def test_real_geotiffs_are_read_or_explained(real_data):
    outcomes = set()
    for path in sorted((real_data / "geotiff").glob("*.tif"))[:12]:
        try:
            outcomes.add(read_image(path).shape[0])
        except DataError as error:
            assert path.name in str(error)
            outcomes.add("explained")
    assert outcomes == {3, "explained"}


def photo(size=(256, 192), seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}, {"keep_rgb": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(mode, options):
    if mode != "RGB" and set(options) & {"keep_rgb", "subsampling"}:
        return
    target = io.BytesIO()
    photo().convert(mode).save(target, "JPEG", **options)
    wanted = np.asarray(Image.open(target).convert("RGB")).transpose(2, 0, 1)
    for image in (read_image(target.getvalue()), decode_image(target.getvalue())):
        assert np.array_equal(image.numpy(), wanted)
    assert read_image(target.getvalue()).is_contiguous()


def test_a_jpeg_is_decoded_smaller_where_less_is_needed():
    content = encoded(photo((1600, 1200)), "JPEG")
    sizes = {needed: tuple(read_image(content, needed=needed).shape[1:]) for needed in (10, 75, 150, 151)}
    assert sizes == {10: (150, 200), 75: (300, 400), 150: (600, 800), 151: (1200, 1600)}
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = read_image(encoded(photo((1600, 1200)), "JPEG", exif=turned), needed=75)
    assert tuple(upright.shape[1:]) == (400, 300)


def test_what_is_made_from_a_smaller_jpeg_hardly_differs():
    from torchvision.transforms.v2.functional import resize

    content = encoded(photo((1024, 1024)), "JPEG", quality=90)
    whole, smaller = (read_image(content, needed=needed) for needed in (None, 64))
    assert smaller.shape[1] == 256
    differ = (
        resize(whole, [64, 64], antialias=True).float() - resize(smaller, [64, 64], antialias=True).float()
    )
    assert differ.abs().mean() < 1  # of 255, of colours as strong as no photo has them


def test_a_jpeg_cut_short_is_refused_though_it_could_be_shown_in_part(refused):
    target = io.BytesIO()
    photo().save(target, "JPEG")
    content = target.getvalue()
    refused(lambda: read_image(content[: len(content) // 2]), "cannot be decoded as an image", "truncated")
    refused(lambda: read_image(content[:40]), "bytes given")


def test_views_of_arrays_are_read_as_what_they_show():
    array = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for view in (array[::-1], array[:, ::-1], array[::2, ::2], np.asfortranarray(array)):
        assert np.array_equal(read_image(view).numpy(), view.transpose(2, 0, 1))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("squash", [True, False])
def test_the_order_in_which_pixels_lie_changes_no_picture_made_from_them(interpolation, squash):
    from geobind.towers.images import ImageSpec, prepare_image
    from geobind.towers.options import PhotoAugment

    content = encoded(photo(), "JPEG")
    spec = ImageSpec(3, 64, (0.5,) * 3, (0.5,) * 3, interpolation, squash, True)
    for augment in (None, PhotoAugment(random_resized_crop=(0.5, 1), hflip=True)):
        made = []
        for raw in (content, read_image(content)):
            torch.manual_seed(0)
            made.append(prepare_image(raw, spec, augment))
        assert torch.equal(*made)
        assert made[0].is_contiguous()
