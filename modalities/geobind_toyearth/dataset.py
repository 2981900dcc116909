"""Toy Earth as a dataset of recipes, `data: {toyearth: {places: 4000}}`, and the hook that provides it."""

# Q queries

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

import geobind
from geobind.data.dataset import Dataset, DatasetRows
from geobind.licences import GENERATED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geobind.data.dataset import Composer


class ToyEarth(Dataset):
    """A procedural planet: places with tiles, photos, sounds, captions and more that belong together."""

    name: ClassVar[str] = "toyearth"
    title: ClassVar[str] = "toy Earth"
    about: ClassVar[str] = "a procedural planet instead of a manifest"
    licence: ClassVar[str] = GENERATED
    on_earth: ClassVar[bool] = False
    caution: ClassVar[str] = (
        "Anything on the real Earth: it was trained or measured on a procedural toy planet."
    )
    held_out_hint: ClassVar[str] = "toy Earth has some with `toyearth: {validation: 500}`"

    places: int = Field(default=4500, ge=1, le=1_000_000, description="places of split `train`")
    held_out: int = Field(default=500, ge=0, le=1_000_000, description="places of split `test`")
    validation: int = Field(default=0, ge=0, le=1_000_000, description="places of split `val`")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="which planet, and which places on it")
    tile_size: int = Field(default=64, ge=8, le=1024, description="side of a satellite tile, in pixels")
    photo_size: int = Field(default=64, ge=8, le=1024, description="side of a ground photo, in pixels")
    gsd: float = Field(
        default=10.0, ge=0.1, le=100, description="ground sampling distance of a tile, metres per pixel"
    )
    seconds: float = Field(default=2.0, ge=0.25, le=60, description="length of a sound")
    rate: int = Field(default=16_000, ge=4000, le=48_000, description="sampling rate of a sound, in Hz")
    captions: int = Field(default=5, ge=1, le=50, description="captions of a place")

    def rows(self) -> DatasetRows:
        """Return the places; a column is rendered into the cache folder when it is looked up.

        The columns are `tile` and `photo` (uint8 arrays), `sound` (int16 array and rate), `captions` (a list
        of strings), `facts` (float32 array), and for other sensors `heights`, `lights`, `temperature` and
        `depth` (float32 rasters), `clip` (uint8 frames), `motion` (float32 array and rate), `covariates` and
        `embedding` (float32 vectors). The label is the land cover that most of the place has.
        """
        from geobind_toyearth.table import open_rows

        return open_rows(self)

    def vector_names(self) -> Mapping[str, Sequence[str]]:
        """Return the names of a place's facts."""
        from geobind_toyearth.planet import FACTS

        return {"facts": FACTS}

    def composer(self) -> Composer:
        """Return the function that renders the land of some places at the moments of others."""
        from geobind_toyearth.table import render_composed

        def compose(column: str, land_Q: NDArray[np.integer], moment_Q: NDArray[np.integer]) -> Iterator[Any]:
            return render_composed(self, column, land_Q, moment_Q)

        return compose

    def write_files(self, folder: Path) -> Path:
        """Write the places as PNG and WAV files with a CSV manifest, for people to look at and to edit.

        Returns:
            The manifest, `folder/manifest.csv`; its columns are key, split, lat, lon, time, label, tile,
            photo, sound and captions.

        Raises:
            DataError: The folder cannot be written, or holds a manifest already.
        """
        from geobind_toyearth.table import write_files

        return write_files(folder, self)


@geobind.hookimpl
def geobind_datasets() -> list[type[Dataset]]:
    """Return the dataset of this package."""
    return [ToyEarth]
