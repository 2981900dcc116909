"""Sums of two places on toy Earth, where what shows both can be rendered: one's land at another's moment."""

# Q queries, N rows

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geobind.binder import Binder
from geobind.data.options import DataOptions, ToyEarthOptions
from geobind.data.table import Table
from geobind.data.toyearth_table import put_together, render_column
from geobind.errors import DataError
from geobind.evaluation.embedded import Embedded
from geobind.evaluation.ranking.retrieval import Settings
from geobind.evaluation.space.arithmetic import Arithmetic, sums_of_two_places
from geobind.recipe.sums import Sum
from geobind.utils.hashing import seed_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

MOST_QUERIES = 500
FEWEST_PLACES = 10  # with fewer, rivals of different kinds would be the same picture
_CHUNK = 100  # places rendered at a time


def sums_on_toyearth(
    binder: Binder,
    table: Table,
    options: DataOptions,
    found: Mapping[str, Embedded],
    wanted: Sum,
    *,
    most: int = MOST_QUERIES,
    settings: Settings | None = None,
) -> Arithmetic:
    """Add observations of two places, and look for the first's land at the second's moment.

    The gallery holds that truth for every query, rendered, and four rivals: the first place as it was, the
    second as it was, the two swapped, and truths in which the land or the moment is that of a third place.
    To find the truth a sum must take the land from one part and the moment from the other; a part alone
    cannot tell it from a rival that agrees in what that part shows.

    Args:
        binder: The encoders.
        table: Rows of toy Earth.
        options: The `data` block that they are read by.
        found: Their embeddings, by modality.
        wanted: The part that shows the land, the part that tells of the moment, and the gallery.
        most: From more rows than this, so many are drawn.
        settings: Cut-offs, resamples.

    Raises:
        DataError: The rows are not toy Earth's, there are too few, or the sum is not of two parts.
    """
    toyearth = _checked(table, options, wanted)
    random = np.random.default_rng(seed_of(0, "sums"))
    land_Q = random.permutation(len(table))[:most]
    # Shifts along one shuffled circle, such that no two kinds of rival are the same picture.
    moment_Q, third_Q = np.roll(land_Q, -1), np.roll(land_Q, -3)

    def rendered(land: NDArray[np.int64], moment: NDArray[np.int64]) -> Tensor:
        column = options.columns.get(wanted.gallery, wanted.gallery)
        raws = _rendered(toyearth, column, table.rows_N[land], table.rows_N[moment])
        return binder.embed(wanted.gallery, raws)

    land, moment = wanted.parts
    rivals = {
        "the first place as it was": found[wanted.gallery].of(land_Q),
        "the second place as it was": found[wanted.gallery].of(moment_Q),
        "the two swapped": rendered(moment_Q, land_Q),
        "the same land, another moment": rendered(land_Q, third_Q),
        "other land, the same moment": rendered(third_Q, moment_Q),
    }
    first, _, *made = rivals.values()  # every second place is also a first: once is enough in a gallery
    return sums_of_two_places(
        wanted,
        {land: found[land].of(land_Q), moment: found[moment].of(moment_Q)},
        rendered(land_Q, moment_Q),
        torch.cat([first, *made]),
        rivals,
        f"the land of one place, by its {land}, at the season, hour and weather of another, by its {moment}",
        settings,
    )


def _checked(table: Table, options: DataOptions, wanted: Sum) -> ToyEarthOptions:
    if options.toyearth is None:
        raise DataError(f"{table.name}: only toy Earth can render the land of one place at another's moment")
    if len(wanted.parts) != 2:
        raise DataError(f"sum '{wanted}': toy Earth takes the land from one part and the moment from another")
    if len(table) < FEWEST_PLACES:
        raise DataError(f"{table.name}: {len(table)} rows; sums of two places need {FEWEST_PLACES}")
    return options.toyearth


def _rendered(
    toyearth: ToyEarthOptions, column: str, land_Q: NDArray[np.int32], moment_Q: NDArray[np.int32]
) -> Iterator[Any]:
    """What a column shows of the land of some rows at the moments of others, rendered as it is asked for."""
    places = put_together(toyearth, land_Q, moment_Q)
    for start in range(0, len(land_Q), _CHUNK):
        for raw in render_column(column, places.take(slice(start, start + _CHUNK)), toyearth):
            yield _first(raw)


def _first(raw: Any) -> Any:
    return raw[0] if isinstance(raw, list) else raw
