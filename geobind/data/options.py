"""What a recipe can say about its data."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ToyEarthOptions(BaseModel):
    """A procedural planet: places with a tile, a photo, a sound and captions that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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


class RasterOptions(BaseModel):
    """How windows are cut out of rasters: around every row's place, or as the cells of a column say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | tuple[str, ...] | None = Field(
        default=None,
        description="GeoTIFF to cut a window from around each row's lat and lon, found as file names of "
        "cells are; of several, the first that covers the place",
    )
    size_m: float | None = Field(default=None, gt=0, le=1e6, description="side of a window, in metres")
    gsd: float | None = Field(
        default=None, gt=0, le=1e5, description="metres per pixel of a window; default: the raster's own"
    )
    bands: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="bands to read, the first being 1; default: all but alpha"
    )
    stretch: tuple[float, float] | None = Field(
        default=None, description="values that become 0 and 255 of an 8-bit image; default: left as they are"
    )
    fill: float = Field(default=0.0, allow_inf_nan=False, description="value of pixels that are missing")
    min_valid: float = Field(
        default=0.5, ge=0, le=1, description="share of a window's pixels that must be there"
    )
    nearest: bool = Field(
        default=False, description="take the nearest pixel instead of averaging, as class maps need it"
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The rasters that windows are cut from where no cell names one."""
        return (self.path,) if isinstance(self.path, str) else self.path or ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.paths and self.size_m is None:
            raise ValueError("`path` needs `size_m`, the side of a window in metres")
        if self.bands is not None and min(self.bands) < 1:
            raise ValueError("bands are counted from 1")
        if self.stretch is not None and not self.stretch[0] < self.stretch[1]:
            raise ValueError("`stretch` must be two numbers, the lower one first")
        return self


class DataOptions(BaseModel):
    """One table of places: a manifest of files, or toy Earth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Path | None = Field(
        default=None,
        description="a CSV, JSONL or Parquet file with a row per place, or a folder of Parquet files, "
        "relative to the recipe",
    )
    toyearth: ToyEarthOptions | None = Field(
        default=None, description="a procedural planet instead of a manifest"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="column of each modality, and of key, split, lat, lon, time, label; else its own name",
    )
    files: tuple[str, ...] = Field(
        default=(), description="columns whose strings name files, where that is in doubt"
    )
    inline: tuple[str, ...] = Field(
        default=(), description="columns whose strings are the text itself, where in doubt"
    )
    root: Path | None = Field(
        default=None,
        description="folder that file names are relative to and cannot leave, relative to the recipe; "
        "by default the manifest's own",
    )
    links: tuple[Path, ...] = Field(
        default=(),
        description="other folders that symbolic links under `root` may lead to, relative to the recipe",
    )
    rasters: dict[str, RasterOptions] = Field(
        default_factory=dict,
        description="how windows are cut out of GeoTIFFs, by modality; with a `path` no column is needed",
    )
    first: tuple[str, ...] = Field(
        default=(),
        description="modalities of which only the first of several observations in a cell is used, such as "
        "the first caption of a photo; by default training draws one",
    )
    limit: int | None = Field(default=None, ge=1, description="use only this many rows from the top")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.manifest is None) == (self.toyearth is None):
            raise ValueError("give exactly one of `manifest` and `toyearth`")
        if self.toyearth is not None and (
            self.root or self.links or self.files or self.inline or self.rasters
        ):
            raise ValueError(
                "`root`, `links`, `files`, `inline`, `rasters` belong to a manifest; toy Earth has no files"
            )
        for name, rasters in self.rasters.items():
            if rasters.paths and name in self.columns:
                raise ValueError(f"'{name}' has both a column and a raster's `path`; keep one")
        both = sorted(set(self.files) & set(self.inline))
        if both:
            raise ValueError(f"column '{both[0]}' is in both `files` and `inline`")
        return self


class MixedData(DataOptions):
    """One of several tables that a stage draws from."""

    weight: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="share of the rows drawn, relative to the other tables' weights; "
        "default for all: as many rows as each has",
    )
