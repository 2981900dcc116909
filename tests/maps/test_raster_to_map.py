"""From a raster to a map: what is found lies where it is in the raster, whatever way up and in any CRS."""

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

from geobind.archive import embed_raster
from geobind.binder import Binder
from geobind.maps import find_regions, map_query, write_map
from geobind.modality import Modality
from geobind.search import search


class Colour(Modality):
    """The mean colour of an image."""

    name = "colour"
    role = "frozen"
    widget = "image"

    def encoder(self, width, *, pretrained=True):
        return nn.Identity()

    def prepare(self, raw, *, training=False):
        image = np.asarray(raw, dtype=np.float32)
        return torch.from_numpy(image.reshape(-1, 3).mean(0) if image.shape[-1] == 3 else image.mean((1, 2)))


BINDER = Binder({"colour": Colour()}, 3)
RED = torch.tensor([1.0, 0.0, 0.0])
GRIDS = {
    "north up": ("EPSG:32631", (10, 0, 500_000, 0, -10, 5_000_000)),
    "south up": ("EPSG:32631", (10, 0, 500_000, 0, 10, 4_998_720)),
    "degrees": ("EPSG:4326", (0.0001, 0, 10.0, 0, -0.0001, 0.0128)),
    "over the antimeridian": ("EPSG:4326", (0.0001, 0, 179.99, 0, -0.0001, 0.0128)),
}


@pytest.mark.parametrize("stride", [0.5, 1.0])
@pytest.mark.parametrize("name", GRIDS)
def test_the_reddest_pixel_lies_on_the_red_square(tmp_path, name, stride):
    crs, transform = GRIDS[name]
    image = np.zeros((3, 128, 160), np.uint8)
    image[1] = 90
    image[0, 64:80, 96:112] = 255  # a tile of 16 pixels of each grid
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", "GTiff", 160, 128, 3, dtype="uint8", crs=crs, transform=rasterio.Affine(*transform)
    ) as file:
        file.write(image)
        x, y = file.xy(71.5, 103.5)
    metres = 16 * (10 if crs == "EPSG:32631" else 11.13195)
    archive = embed_raster(
        BINDER, "colour", path, tmp_path / "a.parquet", size_m=metres, stride_m=stride * metres
    )
    drawn = map_query(archive, RED)
    with rasterio.open(write_map(drawn, tmp_path / "map.tif")) as file:
        row, column = np.unravel_index(np.nanargmax(file.read(1)), file.shape)
        found_x, found_y = file.xy(row, column)
    pixel = abs(transform[0])
    assert (found_x, found_y) == (pytest.approx(x, abs=pixel), pytest.approx(y, abs=pixel))
    best = search(archive, RED, 1)
    assert find_regions(archive, drawn, 1).ids_K[0] == best.ids_K[0]
    assert archive.row_N[best.rows_K[0]] == row and archive.column_N[best.rows_K[0]] == column
