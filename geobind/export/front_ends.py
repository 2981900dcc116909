"""First layers of exported encoders that prepare decoded images and sounds inside the graph."""

# B inputs of a batch, H height, W width, C channels, S pixels a side of the encoder's image, T samples,
# N frames of a spectrogram, M mel bands

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from geobind.data.readers.audio import read_audio
from geobind.data.readers.images import decode_image
from geobind.errors import DataError, ExportError
from geobind.towers.audio import SoundSpec
from geobind.towers.images import ImageSpec
from geobind.towers.mel import mel_bands

if TYPE_CHECKING:
    from geobind.modality import Modality

_SILENCE = 1e-10  # power; -100 dB, as `geobind.towers.audio.log_mel`
_FIXED_POINT = 2.0**22  # Pillow scales images of 8 bits by whole numbers of this unit
_SUPPORT = {"bicubic": 2.0, "bilinear": 1.0}  # pixels that each filter reaches to either side


class PixelFrontEnd(nn.Module):
    """Scale and crop images of 8 bits as Pillow does, to the bit.

    Pillow weighs pixels in 22-bit fixed point, first along rows, then along columns, and rounds after each.
    Products and sums of such numbers are exact in float64.

    Args:
        spec: The image that the encoder takes.
    """

    name = "pixels"
    free_axes = ("batch", "height", "width")

    def __init__(self, spec: ImageSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, pixels_BHWC: Tensor) -> Tensor:
        """Turn (B, H, W, C) uint8 into (B, C, S, S) uint8."""
        _, height, width, _ = pixels_BHWC.shape
        high, wide = (torch.scalar_tensor(side, dtype=torch.float64) for side in (height, width))
        shorter = torch.minimum(high, wide)
        image_BCHW = pixels_BHWC.permute(0, 3, 1, 2).double()
        image_BCHS = _round_pixels(image_BCHW @ self._weights(width, wide, shorter).T)
        return _round_pixels(self._weights(height, high, shorter) @ image_BCHS).to(torch.uint8)

    def _weights(self, side: Any, length: Tensor, shorter: Tensor) -> Tensor:
        """Return the (S, side) weights of an axis, whole numbers in units of `_FIXED_POINT`."""
        size, support = self.spec.size, _SUPPORT[self.spec.interpolation]
        scaled = torch.floor(size * length / shorter)
        step = length / scaled
        pixel_S1 = torch.arange(size, dtype=torch.float64)[:, None] + torch.round((scaled - size) / 2)
        near_S1 = (pixel_S1 + 0.5) * step
        apart_SH = (torch.arange(side, dtype=torch.float64) - near_S1 + 0.5) / step.clamp(min=1)
        distance_SH = apart_SH.abs().clamp(max=support)
        weight_SH = _bicubic(distance_SH) if support == 2 else 1 - distance_SH
        weight_SH = weight_SH / weight_SH.sum(dim=1, keepdim=True)
        return torch.trunc(weight_SH * _FIXED_POINT + torch.where(weight_SH < 0, -0.5, 0.5))

    def make_example(self) -> Tensor:
        """Return a batch of a size that is like no other, to trace with."""
        return torch.zeros(
            2, 3 * self.spec.size + 1, 2 * self.spec.size + 5, self.spec.channels, dtype=torch.uint8
        )

    def read(self, raw: Any) -> Tensor:
        """Decode an image to (H, W, C) uint8.

        Raises:
            DataError: It is not one of 8 bits with the encoder's number of bands.
        """
        image_CHW = decode_image(raw, channels=self.spec.channels)
        if image_CHW.dtype != torch.uint8:
            raise DataError(f"the front end takes images of 8 bits, not {image_CHW.dtype}; leave it out")
        return image_CHW.permute(1, 2, 0).contiguous()

    def as_raw(self, pixels_HWC: Tensor) -> Tensor:
        """Return a decoded image as `prepare` takes it."""
        return pixels_HWC.permute(2, 0, 1).contiguous()

    def describe(self) -> str:
        """Return how to prepare an input, in one sentence."""
        bands = "RGB" if self.spec.channels == 3 else f"{self.spec.channels} bands"
        return (
            f"Decode to {bands} of 8 bits, (height, width, channels), upright as its EXIF says, of any size; "
            "images of one batch are equally large. Exact for images up to twice as high as wide; of higher "
            "ones a newer Pillow rounds in another order, which changes some pixels."
        )


class WaveformFrontEnd(nn.Module):
    """Cut or repeat a sound to the encoder's length, and make its log-mel spectrogram.

    Args:
        spec: The spectrogram that the encoder takes.
    """

    name = "samples"
    free_axes = ("batch", "samples")
    window_W: Tensor
    bands_FM: Tensor

    def __init__(self, spec: SoundSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("window_W", torch.hann_window(spec.window), persistent=False)
        self.register_buffer("bands_FM", mel_bands(spec), persistent=False)

    def forward(self, samples_BT: Tensor) -> Tensor:
        """Turn (B, T) float32 into (B, 1, M, N) decibels."""
        spec, length = self.spec, samples_BT.shape[1]
        # The middle of a long sound; a short one as often as it fits whole, then silence.
        known = torch.scalar_tensor(length, dtype=torch.float64)
        # In seconds and back: the roundings of the reader are part of which sample is the first.
        spare = (known / spec.rate - spec.samples / spec.rate).clamp(min=0)
        first = torch.round(spare / 2 * spec.rate)
        place_S = torch.arange(spec.samples)
        is_there_S = (place_S < torch.floor(spec.samples / known) * known) | (known > spec.samples)
        heard_BS = samples_BT[:, torch.remainder(place_S + first.long(), known.long())] * is_there_S
        spectrum_BFN = torch.stft(
            heard_BS,
            spec.n_fft,
            spec.hop,
            spec.window,
            self.window_W,
            pad_mode="reflect",
            return_complex=True,
        )
        power_BFN = torch.view_as_real(spectrum_BFN).square().sum(dim=-1)
        power_BMN = (power_BFN.transpose(1, 2) @ self.bands_FM).transpose(1, 2)
        return 10 * power_BMN.clamp(min=_SILENCE).log10()[:, None, :, : spec.frames]

    def make_example(self) -> Tensor:
        """Return a batch of a length that is like no other, to trace with."""
        return torch.zeros(2, 2 * self.spec.samples + 7)

    def read(self, raw: Any) -> Tensor:
        """Decode a sound to (T,) float32 at the encoder's rate.

        Raises:
            DataError: It is no sound.
        """
        return read_audio(raw, self.spec.rate)

    def as_raw(self, samples_T: Tensor) -> tuple[Tensor, int]:
        """Return a decoded sound as `prepare` takes it."""
        return samples_T, self.spec.rate

    def describe(self) -> str:
        """Return how to prepare an input, in one sentence."""
        return (
            f"Decode to one channel of float32 in [-1, 1] at {self.spec.rate} Hz, of any length; sounds of "
            f"one batch are equally long. {self.spec.samples / self.spec.rate:g} s are used: the middle of a "
            "longer sound; a shorter one is repeated."
        )


FrontEnd = PixelFrontEnd | WaveformFrontEnd


def build_front_end(modality: Modality) -> FrontEnd:
    """Build the layers that prepare decoded inputs as a modality's `prepare` does.

    Raises:
        ExportError: There are none for these options; says why.
    """
    spec: Any = getattr(modality, "spec", None)
    if isinstance(spec, ImageSpec):
        if spec.squash:
            why = "`squash`, for which the order that Pillow rounds in depends on its version"
        elif spec.interpolation not in _SUPPORT:
            why = f"interpolation: {spec.interpolation}"
        elif spec.channels not in (1, 3):
            why = f"{spec.channels} bands, which are not scaled by Pillow"
        else:
            return PixelFrontEnd(spec)
    elif isinstance(spec, SoundSpec):
        if spec.loudness is not None:
            why = "`loudness`, which is measured over gated blocks"
        elif spec.crops > 1:
            why = f"crops: {spec.crops}"
        elif getattr(getattr(modality, "htsat", None), "fused", False):
            why = "a fused HTSAT"
        else:
            return WaveformFrontEnd(spec)
    else:
        why = "inputs that are no photos of 8 bits and no sounds"
    raise ExportError(
        f"no front end prepares '{modality.name}' inside the graph: it has {why}; leave --front-end out"
    )


def _round_pixels(sum_of_weighted: Tensor) -> Tensor:
    return torch.floor((sum_of_weighted + _FIXED_POINT / 2) / _FIXED_POINT).clamp(0, 255)


def _bicubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -1/2 (IEEE Transactions ASSP 29, 1981), zero at 2 and beyond."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
