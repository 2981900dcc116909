"""The blocks of land that places fall into."""

# N, M places; LL latitude and longitude in degrees

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

EARTH_KM = 6371.0088  # mean radius
_DEGREE_KM = EARTH_KM * np.pi / 180


def cells_of(places_NLL: NDArray[np.float64], cell_km: float) -> NDArray[np.int64]:
    """Return the cell of each place on a grid of nearly equal areas.

    The Earth is cut into bands of `cell_km` from south to north, and each band into as many columns of equal
    width as come nearest to `cell_km`; a cell's number depends on the place and `cell_km` alone.
    """
    bands = max(1, round(180 * _DEGREE_KM / cell_km))
    band_N = np.clip(((places_NLL[:, 0] + 90) / 180 * bands).astype(np.int64), 0, bands - 1)
    middle_N = np.radians((band_N + 0.5) / bands * 180 - 90)
    columns_N = np.maximum(1, np.round(360 * _DEGREE_KM * np.cos(middle_N) / cell_km)).astype(np.int64)
    column_N = ((places_NLL[:, 1] + 180) / 360 * columns_N).astype(np.int64) % columns_N
    return band_N * (1 << 32) + column_N
