"""Pixels and waveforms are prepared inside a graph as `prepare` does it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.binder import Binder
from geobind.errors import DataError, ExportError
from geobind.export import export_encoder
from geobind.export.front_ends import PixelFrontEnd, WaveformFrontEnd, build_front_end
from geobind.towers.images import ImageSpec, prepare_image
from geobind_audio import Audio
from geobind_satellite import Satellite

RESNET = {"model": "test_resnet", "pretrained": False}
SOUND = Audio(timm=RESNET, seconds=1, hop_ms=20)


def pixels(seed, height, width, bands=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.sampled_from([8, 32, 100]),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from([1, 3]),
)
def test_images_are_scaled_as_by_pillow_to_the_bit(height, width, size, how, bands):
    height = min(height, 2 * width)  # a newer Pillow takes the axes of higher ones in another order
    spec = ImageSpec(bands, size, (0.5,), (0.5,), how, squash=False, unit=True)
    image = pixels(height, height, width, bands)
    made = PixelFrontEnd(spec)(torch.from_numpy(image)[None])[0]
    assert torch.equal(made, prepare_image(torch.from_numpy(image).permute(2, 0, 1), spec))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60_000))
def test_sounds_of_any_length_make_the_same_spectrogram(length):
    sound = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
    made = WaveformFrontEnd(SOUND.spec)(torch.from_numpy(sound)[None])[0]
    assert torch.allclose(made, SOUND.prepare((sound, 16_000)), atol=1e-3)


def test_silence_is_at_100_decibels_below():
    made = WaveformFrontEnd(SOUND.spec)(torch.zeros(1, 20_000))
    assert torch.equal(made, torch.full_like(made, -100))


@pytest.mark.parametrize("modality", [Satellite(timm=RESNET, size=32), SOUND])
def test_a_file_with_a_front_end_takes_decoded_inputs_of_any_size(modality, tmp_path):
    binder = Binder({"m": modality}, 16, seed=0)
    result = export_encoder(binder, "m", tmp_path / "m.pt2", front_end=True)
    assert result.largest_difference < 1e-6
    run = torch.export.load(result.file).module()
    if modality is SOUND:
        sound = np.random.default_rng(1).normal(0, 0.1, 12_345).astype(np.float32)
        made, wanted = run(torch.from_numpy(sound)[None]), binder.embed("m", (sound, 16_000))
    else:
        image = pixels(1, 111, 77)
        made, wanted = run(torch.from_numpy(image)[None]), binder.embed("m", image)
    assert torch.allclose(made, wanted, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("modality", [Satellite(timm=RESNET, size=32), SOUND])
def test_a_front_end_has_an_onnx_form(modality, tmp_path):
    for module in ("onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    binder = Binder({"m": modality}, 16, seed=0)
    assert export_encoder(binder, "m", tmp_path / "m.onnx", front_end=True).largest_difference < 2e-6


@pytest.mark.parametrize(
    ("modality", "why"),
    [
        (Satellite(timm=RESNET, channels=4), "4 bands"),
        (Satellite(timm=RESNET, squash=True), "squash"),
        (Audio(timm=RESNET, crops=3), "crops: 3"),
        (Audio(timm=RESNET, loudness=-20), "loudness"),
    ],
)
def test_options_that_no_front_end_serves_say_why(modality, why):
    with pytest.raises(ExportError, match=why):
        build_front_end(modality)


def test_an_image_of_more_than_8_bits_is_refused_by_the_front_end():
    front = build_front_end(Satellite(timm=RESNET, size=32))
    with pytest.raises(DataError, match="8 bits"):
        front.read(torch.rand(3, 40, 40))
