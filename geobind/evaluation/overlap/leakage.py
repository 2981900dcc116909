"""What a test split has in common with the rows trained on: neighbours, cells, copies, recordings' groups."""

# N rows with a place; LL latitude and longitude in degrees

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geobind.data.table import Table
from geobind.evaluation.overlap.contents import MOST_IMAGES, Copies, Looked, copies
from geobind.utils.geo import nearest_km

REACHES_KM = (1, 10, 100)
WARN_WITHIN = {1: 0.01, 10: 0.10}  # share of test rows this near to a training row from which on it is told


@dataclass(frozen=True)
class Near:
    """Distances on the ground from test rows to the nearest training row."""

    test_rows: int  # with a place
    train_rows: int
    least_km: float
    median_km: float
    within_km: dict[str, float]  # shares of test rows, by kilometres
    shared_cells: int  # 1-degree cells that hold rows of both
    in_shared_cells: float  # share of test rows


@dataclass(frozen=True)
class Groups:
    """Groups (recordings, say) that have rows in both splits."""

    shared: int
    test_rows: int  # rows of those groups
    compared: int  # test rows with a group


@dataclass(frozen=True)
class Leakage:
    """What a test split shares with a training split; None where the tables do not say."""

    train: str
    test: str
    train_rows: int
    test_rows: int
    near: Near | None
    copies: dict[str, Copies]  # by modality
    groups: Groups | None

    @property
    def faults(self) -> list[str]:
        """What makes figures on this split look better than they are."""
        said: list[str] = []
        for name, found in self.copies.items():
            if found.rows and not found.words:
                said.append(
                    f"{_test_rows(found.rows, 'has', 'have')} a training row's {name} ({found.example})"
                )
            if found.near:
                twins = f"{_test_rows(found.near, 'has', 'have')} nearly the same {name} as a training row"
                said.append(f"{twins} ({found.near_example})")
        if self.groups and self.groups.shared:
            said.append(f"{_test_rows(self.groups.test_rows, 'is', 'are')} of groups that were trained on")
        if self.near:
            for reach, limit in WARN_WITHIN.items():
                share = self.near.within_km[str(reach)]
                if share > limit:
                    said.append(f"{share:.0%} of test rows lie within {reach} km of a training row")
        return said

    @property
    def warning(self) -> str | None:
        """One line for the table of figures if the split leaks, else None."""
        return f"{self.test} leaks from {self.train}: {'; '.join(self.faults)}" if self.faults else None

    def summary(self) -> str:
        """One line for people, whether or not the split leaks."""
        if self.warning:
            return self.warning
        parts = [
            f"{name}: {found.rows:,} copies{'' if found.near is None else f', {found.near:,} near ones'}"
            for name, found in self.copies.items()
        ]
        if self.near:
            shares = ", ".join(f"{share:.0%} within {km} km" for km, share in self.near.within_km.items())
            parts.append(f"nearest {self.near.least_km:,.2f} km, {shares}")
        if self.groups:
            parts.append("no shared group")
        return f"{self.test} against {self.train}: {'; '.join(parts) or 'nothing to compare'}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "faults": self.faults}


def leakage(
    train: Table,
    test: Table,
    modalities: Collection[str] | None = None,
    *,
    looked: Looked | None = None,
    most_images: int | None = MOST_IMAGES,
) -> Leakage:
    """Compares the rows tested on with those trained on.

    Args:
        train: Rows trained on.
        test: Rows held out; of the same table or of another.
        modalities: Whose contents are compared; by default all that both tables have.
        looked: What was seen of images before; one dict passed to several calls saves decoding them again.
        most_images: With more images of a modality than this, nearly equal ones are not looked for.
    """
    seen: Looked = {} if looked is None else looked
    both = sorted(set(train.columns) & set(test.columns))
    names = both if modalities is None else [name for name in both if name in modalities]
    return Leakage(
        _called(train),
        _called(test),
        len(train),
        len(test),
        _near(train.places_LL, test.places_LL),
        {name: copies(train, test, name, seen, most_images) for name in names},
        _groups(train, test),
    )


def _test_rows(count: int, one: str, many: str) -> str:
    return f"1 test row {one}" if count == 1 else f"{count:,} test rows {many}"


def _called(table: Table) -> str:
    return f"split '{table.view}' of {table.name}" if table.view else table.name


def _near(train_LL: NDArray[np.float64] | None, test_LL: NDArray[np.float64] | None) -> Near | None:
    train_NLL, test_NLL = _known(train_LL), _known(test_LL)
    if not len(train_NLL) or not len(test_NLL):
        return None
    km_N = nearest_km(test_NLL, train_NLL)
    train_cell_N, test_cell_N = cells_of(train_NLL), cells_of(test_NLL)
    shared_N = np.isin(test_cell_N, train_cell_N)
    return Near(
        len(test_NLL),
        len(train_NLL),
        float(km_N.min()),
        float(np.median(km_N)),
        {str(reach): float(np.mean(km_N <= reach)) for reach in REACHES_KM},
        len(np.unique(test_cell_N[shared_N])),
        float(shared_N.mean()),
    )


def _known(place_LL: NDArray[np.float64] | None) -> NDArray[np.float64]:
    if place_LL is None:
        return np.zeros((0, 2))
    return place_LL[np.isfinite(place_LL).all(axis=1)]


def cells_of(place_NLL: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of each place's 1-degree cell; 180 degrees east is 180 degrees west."""
    lat_N, lon_N = np.floor(place_NLL).astype(np.int64).T
    return lat_N * 360 + (lon_N + 180) % 360


def _groups(train: Table, test: Table) -> Groups | None:
    train_groups, test_groups = _group_of_rows(train), _group_of_rows(test)
    if not train_groups or not test_groups:
        return None
    shared = set(train_groups) & set(test_groups)
    return Groups(len(shared), sum(group in shared for group in test_groups), len(test_groups))


def _group_of_rows(table: Table) -> list[str]:
    return [group for group in table.groups or () if group is not None]
