"""Small rasters in every orientation and CRS, and a model that sees them."""

import numpy as np
import torch
from affine import Affine
from torch import nn

from geobind.binder import Binder
from geobind.modality import Modality


class Mean(Modality):
    """Sees the mean colour of each quarter of a tile."""

    name = "mean"
    role = "frozen"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return nn.Linear(12, width)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        pixels_HWB = np.ascontiguousarray(raw)[..., :3]
        pixels_BHW = torch.from_numpy(pixels_HWB).permute(2, 0, 1).float() / 255
        return nn.functional.adaptive_avg_pool2d(pixels_BHW, 2).flatten()


def build_binder(width=16, seed=0):
    return Binder({"mean": Mean()}, width, seed=seed)


def write_scene(
    path, *, height=200, width=300, crs="EPSG:32631", where=None, flip=False, bands=3, seed=0, **options
):
    """Write smooth noise of 8 bits; with `flip` the same scene, its southernmost row first."""
    import rasterio

    rng = np.random.default_rng(seed)
    coarse = rng.uniform(20, 230, (bands, height // 10 + 2, width // 10 + 2))
    pixels = coarse.repeat(10, 1).repeat(10, 2)[:, :height, :width]
    pixels = (pixels + rng.uniform(-10, 10, pixels.shape)).astype(np.uint8)
    where = Affine(10, 0, 500_000, 0, -10, 5_000_000) if where is None else where
    if flip:
        pixels, where = pixels[:, ::-1], where @ Affine.translation(0, height) @ Affine.scale(1, -1)
    change = options.pop("change", None)
    if change is not None:
        pixels = change(pixels)
    profile = {"driver": "GTiff", "count": len(pixels), "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=crs, transform=where, **options) as file:
        file.write(pixels)
        if len(pixels) == 4:
            from rasterio.enums import ColorInterp

            file.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
    return path
