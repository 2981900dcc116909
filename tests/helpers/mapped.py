"""A binder of words, recordings, places and tiles, and archives of a raster's tiles embedded by it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from geobind.archive import TileGrid, model_digest, write_archive
from geobind.binder import Binder
from geobind.bundles.card import Card
from geobind.errors import DataError
from geobind.modality import Modality, Place
from geobind.scoring import Calibration, PairScales

WIDTH = 16


class Fixed(nn.Module):
    """A linear map that depends on nothing but its seed."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        weight = torch.randn(WIDTH, width, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(weight)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return x_BF @ self.weight


def numbers_of(content: bytes) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(content).digest()[:4], "little")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


class Words(Modality):
    """Words, or the bytes of a file of them."""

    name = "words"
    role = "trainable"
    widget = "text"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Fixed(0, width)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        if not isinstance(raw, str | bytes):
            raise DataError(f"no words: {type(raw).__name__}")
        return numbers_of(raw if isinstance(raw, bytes) else raw.encode())


class Recording(Modality):
    """The bytes of a file, never a string."""

    name = "recording"
    role = "trainable"
    widget = "sound"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Fixed(0, width)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        if not isinstance(raw, bytes):
            raise DataError(f"no recording: {type(raw).__name__}")
        return numbers_of(raw)


class Spot(Modality):
    """A place."""

    name = "spot"
    role = "trainable"
    widget = "place"

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Fixed(0, width)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        if not isinstance(raw, Place):
            raise DataError(f"no place: {type(raw).__name__}")
        return numbers_of(f"{raw.lat} {raw.lon}".encode())


class Tile(Modality):
    """Sixteen numbers."""

    name = "tile"
    role = "frozen"
    seed: int = 0

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Fixed(self.seed, width)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        return torch.as_tensor(np.asarray(raw), dtype=torch.float32)


SCALES = PairScales(modalities=("words", "tile"), temperature=(0.1, 0.1), scale=10.0, bias=-1.0, rows=50)


def build_binder(*, seed: int = 0, calibrated: bool = True) -> Binder:
    """Return a binder whose words and tiles are calibrated."""
    modalities = {"words": Words(), "recording": Recording(), "spot": Spot(), "tile": Tile(seed=seed)}
    binder = Binder(modalities, WIDTH, pretrained=False)
    calibration = Calibration(fitted_on="val", pairs=(SCALES,)) if calibrated else None
    binder.card = Card(
        format=1,
        width=WIDTH,
        modalities={},
        origins={},
        digests={},
        recipe={},
        stages=[],
        calibration=calibration,
    )
    return binder


def write_tiles(
    path: Path,
    binder: Binder,
    *,
    rows: int = 12,
    columns: int = 15,
    size_m: float = 640,
    stride_m: float = 320,
    missing: tuple[int, ...] = (3, 40),
    crs: str = "EPSG:32631",
    transform: tuple[float, ...] | None = None,
    lat: float = 45.0,
    lon: float = 3.0,
    seed: int = 0,
    time: str | None = None,
    grid: bool = True,
) -> np.ndarray:
    """Write an archive of random tiles; return their embeddings by row and column, NaN if missing."""
    random = np.random.default_rng(seed)
    raw = random.standard_normal((rows * columns, WIDTH)).astype(np.float32)
    vectors = binder.embed("tile", list(raw), numpy=True)
    kept = np.setdiff1d(np.arange(rows * columns), missing)
    row, column = np.divmod(kept, columns)
    layout = TileGrid(
        crs=crs,
        transform=transform or (stride_m, 0, 500_000, 0, -stride_m, 5_000_000),
        rows=rows,
        columns=columns,
        size_m=size_m,
        stride_m=stride_m,
    )
    write_archive(
        path,
        vectors[kept],
        lat - row * stride_m / 111_320,
        (lon + column * stride_m / 78_700 + 180) % 360 - 180,
        modality="tile",
        model=model_digest(binder, "tile"),
        ids=[f"r{r}c{c}" for r, c in zip(row, column, strict=True)],
        size_m=size_m,
        time=None if time is None else [np.datetime64(time) + np.timedelta64(int(c), "D") for c in column],
        source="scene.tif",
        **({"row": row, "column": column, "grid": layout} if grid else {}),
    )
    image = np.full((rows, columns, WIDTH), np.nan, np.float32)
    image[row, column] = vectors[kept].astype(np.float16)
    return image
