"""A dataset of a third party: lakes that are drawn by their size."""

# N lakes, S pixels along a side

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import Field

import geobind
from geobind.data import ArrayColumn, ArrowColumn, Dataset, DatasetRows, build_once, cache_root


class Lakes(Dataset):
    """Lakes, each as a tile and a sentence."""

    name: ClassVar[str] = "lakes"
    title: ClassVar[str] = "drawn lakes"
    about: ClassVar[str] = "lakes that are drawn instead of a manifest"
    licence: ClassVar[str] = "CC0-1.0"
    caution: ClassVar[str] = "Navigation: the lakes are drawn."

    count: int = Field(default=100, ge=1, description="how many lakes")
    side: int = Field(default=16, ge=8, description="side of a tile, in pixels")

    def rows(self) -> DatasetRows:
        """Return the lakes, drawn once."""
        folder = build_once(cache_root() / "lakes" / f"{self.count}x{self.side}", self.draw)
        path = folder / "rows.arrow"
        array = {name: ArrayColumn(folder / f"{name}.npy") for name in ("tile", "size")}
        return DatasetRows(path, {**array, "words": ArrowColumn(path, "words")})

    def vector_names(self) -> Mapping[str, Sequence[str]]:
        """Return the names of what is measured of a lake."""
        return {"size": ("radius", "area")}

    def draw(self, folder: Path) -> None:
        """Draw the lakes into an empty folder."""
        import numpy as np
        import pyarrow as pa

        radius_N = np.linspace(1, self.side / 2, self.count)
        x_S = np.arange(self.side) - (self.side - 1) / 2
        lake_NSS = np.hypot(x_S[:, None], x_S) < radius_N[:, None, None]
        tile_NSSC = np.where(lake_NSS[..., None], [20, 60, 160], [90, 140, 70]).astype(np.uint8)
        np.save(folder / "tile.npy", tile_NSSC)
        np.save(folder / "size.npy", np.stack([radius_N, np.pi * radius_N**2], axis=1))
        large = [bool(radius > self.side / 4) for radius in radius_N]
        table = pa.table(
            {
                "line": pa.array(range(self.count), pa.int64()),
                "key": [f"lakes:{row}" for row in range(self.count)],
                "split": ["test" if row % 5 == 0 else "train" for row in range(self.count)],
                "label": ["large" if one else "small" for one in large],
                "words": [[f"a {'large' if one else 'small'} lake"] for one in large],
            }
        )
        with pa.ipc.new_file(str(folder / "rows.arrow"), table.schema) as writer:
            writer.write_table(table)


@geobind.hookimpl
def geobind_datasets() -> list[type[Dataset]]:
    """Return the dataset of this plugin."""
    return [Lakes]
