"""Rasters of measured values: what such modalities inherit."""

from typing import ClassVar

import numpy as np
import pytest
import torch

import geobind
from geobind.towers import BandOptions, TileAugment


class Ratio(BandOptions, geobind.Modality):
    """Two bands on a scale of their own."""

    name: ClassVar[str] = "ratio"
    role: ClassVar[str] = "trainable"
    band_mean: ClassVar[tuple[float, ...]] = (2.0, -1.0)
    band_std: ClassVar[tuple[float, ...]] = (4.0, 0.5)

    def prepare(self, raw, *, training=False):
        return self.prepare_bands([raw, -raw], TileAugment(vflip=True, hflip=True) if training else None)


RAMP = np.arange(64.0).reshape(8, 8)


def test_bands_become_an_image_of_the_size_asked_for_in_their_own_units():
    image = Ratio(size=8).prepare(RAMP)
    assert image.dtype == torch.float32
    assert np.array_equal(image.numpy(), np.stack([RAMP, -RAMP]).astype(np.float32))
    assert Ratio(size=16).prepare(RAMP).shape == (2, 16, 16)


def test_the_encoder_sees_bands_with_their_mean_and_spread_taken_off():
    encoder = Ratio(size=32).encoder(12).eval()
    seen = []
    encoder.trunk.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert encoder(torch.full((1, 2, 32, 32), 6.0)).shape == (1, 12)
    assert seen[0].unique().tolist() == [1.0, 14.0]


def test_bands_are_augmented_together():
    torch.manual_seed(0)
    for _ in range(20):
        image = Ratio(size=8).prepare(RAMP, training=True)
        assert torch.equal(image[1], -image[0])


def test_importing_them_imports_no_torch():
    import subprocess
    import sys

    code = "from geobind.towers import BandOptions; import sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("size", [7, 1025])
def test_sizes_are_bounded(size):
    with pytest.raises(ValueError, match="size"):
        Ratio(size=size)
