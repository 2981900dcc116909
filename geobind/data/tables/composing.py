"""Places of toy Earth put together: the land of one, at the moment of another."""

# N places

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geobind.data.options import ToyEarthOptions
from geobind.data.tables.toyearth import places_of
from geobind.toyearth.facts import FACTS, Places

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What passes: season, time of day and weather. The rest lies on the ground, snow with it: a tile shows it.
MOMENT = ("summer", "spring", "daylight", "morning", "wind", "rain")


def put_together(
    options: ToyEarthOptions, land_N: NDArray[np.integer], moment_N: NDArray[np.integer]
) -> Places:
    """Make places with the land of some rows, seen at the moment of others.

    Coordinates and the facts of the ground come from the one, month, hour and the facts of the moment from
    the other, so that such a place also has its own layout, as a place has that was drawn.

    Args:
        options: Which toy Earth.
        land_N: Rows of its table.
        moment_N: As many rows.
    """
    places = places_of(options)
    land, moment = places.take(land_N), places.take(moment_N)
    passing_F = np.isin(FACTS, MOMENT)
    facts_NF = np.where(passing_F, moment.facts, land.facts)
    return Places(land.lat, land.lon, moment.month, moment.hour, facts_NF)
