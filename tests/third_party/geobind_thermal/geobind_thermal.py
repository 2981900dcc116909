"""Thermal infrared images of a place, for geobind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

import geobind
from geobind.errors import DataError


class Thermal(geobind.Modality):
    """A raster of surface temperature."""

    name = "thermal"
    role = "trainable"
    accepts = "a 2-D array of kelvin, or the path or bytes of a .npy file with one"

    size: int = Field(default=32, ge=16, le=512, description="Pixels along each side.")

    def encoder(self, width, *, pretrained=True):
        from torch import nn

        layers = [nn.Conv2d(1, 16, 5, stride=2), nn.GELU(), nn.Conv2d(16, 32, 5, stride=2), nn.GELU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, width))

    def prepare(self, raw, *, training=False):
        import torch
        from torch.nn.functional import interpolate

        from geobind.data import open_binary

        try:
            if isinstance(raw, str | Path | bytes):  # a table hands over paths, or the bytes of a file
                with open_binary(raw) as file:
                    raw = np.load(file, allow_pickle=False)
            kelvin = torch.tensor(np.asarray(raw, dtype=np.float32))
        except (OSError, TypeError, ValueError) as error:
            raise DataError(f"cannot read {raw!r:.80} ({error}); give {self.accepts}") from error
        if kelvin.ndim != 2 or not (kelvin > 0).all():
            raise DataError(
                f"{raw!r:.80} is not {self.accepts}: shape {tuple(kelvin.shape)}, or values below 0 K"
            )
        if training and torch.rand(()) < 0.5:
            kelvin = kelvin.flip(-1)
        image = interpolate(kelvin[None, None], (self.size, self.size), mode="bilinear", antialias=True)[0]
        return (image - 290) / 20  # most of the Earth lies within 20 K of 290 K


@geobind.hookimpl
def geobind_modalities():
    return [Thermal]
