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
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="which planet, and which places on it")
    tile_size: int = Field(default=64, ge=8, le=1024, description="side of a satellite tile, in pixels")
    photo_size: int = Field(default=64, ge=8, le=1024, description="side of a ground photo, in pixels")
    gsd: float = Field(
        default=10.0, ge=0.1, le=100, description="ground sampling distance of a tile, metres per pixel"
    )
    seconds: float = Field(default=2.0, ge=0.25, le=60, description="length of a sound")
    rate: int = Field(default=16_000, ge=4000, le=48_000, description="sampling rate of a sound, in Hz")
    captions: int = Field(default=5, ge=1, le=50, description="captions of a place")


class DataOptions(BaseModel):
    """One table of places: a manifest of files, or toy Earth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: Path | None = Field(
        default=None, description="a CSV, JSONL or Parquet file with a row per place, relative to the recipe"
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
    limit: int | None = Field(default=None, ge=1, description="use only this many rows from the top")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.manifest is None) == (self.toyearth is None):
            raise ValueError("give exactly one of `manifest` and `toyearth`")
        if self.toyearth is not None and (self.root or self.links or self.files or self.inline):
            raise ValueError(
                "`root`, `links`, `files` and `inline` belong to a manifest; toy Earth has no files"
            )
        both = sorted(set(self.files) & set(self.inline))
        if both:
            raise ValueError(f"column '{both[0]}' is in both `files` and `inline`")
        return self
