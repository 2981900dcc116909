"""What is known of rows whose retrieval is measured: ids, labels, places and clusters, as numbers."""

# N rows

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from geobind.errors import DataError
from geobind.evaluation.ranking.rows import codes


@dataclass(frozen=True)
class Truth:
    """What is known of each row: its id, and perhaps its label, place and cluster, as numbers."""

    id_N: np.ndarray
    label_N: np.ndarray | None = None
    place_N2: np.ndarray | None = None
    cluster_N: np.ndarray | None = None  # rows of one number are no independent queries

    def take(self, rows: np.ndarray | None) -> Truth:
        """The truth of some rows; None for all."""
        if rows is None:
            return self
        others = (self.label_N, self.place_N2, self.cluster_N)
        return Truth(self.id_N[rows], *(None if known is None else known[rows] for known in others))

    @property
    def drawn_N(self) -> np.ndarray | None:
        """Clusters numbered through, a row without one being a cluster of its own; None without clusters."""
        if self.cluster_N is None:
            return None
        own_N = self.cluster_N.max() + 1 + np.arange(len(self.cluster_N))
        return np.unique(np.where(self.cluster_N < 0, own_N, self.cluster_N), return_inverse=True)[1]


def truth(
    size: int,
    id_N: np.ndarray,
    labels: Any,
    places: Any,
    known: dict[Any, int] | None = None,
    clusters: Any = None,
    *,
    prefix: str = "",
) -> Truth:
    """Labels, places and clusters checked against the number of rows and made numbers."""
    label_N = None if labels is None else codes(labels, size, f"{prefix}labels", known)
    place_N2 = None if places is None else _places(places, size, f"{prefix}places")
    cluster_N = None if clusters is None else codes(clusters, size, f"{prefix}clusters")
    return Truth(id_N, label_N, place_N2, cluster_N)


def _places(places: Any, size: int, name: str) -> np.ndarray:
    unknown = (np.nan, np.nan)
    rows = (
        places if isinstance(places, np.ndarray) else [unknown if at is None else tuple(at) for at in places]
    )
    place_N2 = np.asarray(rows, dtype=np.float64)
    if place_N2.shape != (size, 2):
        raise DataError(
            f"{name}: shape {place_N2.shape} for {size} rows; give latitude and longitude of each row"
        )
    outside_N = (np.abs(place_N2[:, 0]) > 90) | (np.abs(place_N2[:, 1]) > 360)
    if outside_N.any():
        row = int(np.argmax(outside_N))
        raise DataError(f"{name}: row {row} is {tuple(place_N2[row].tolist())}; give degrees, latitude first")
    return place_N2
