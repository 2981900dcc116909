from __future__ import annotations

import numpy as np
import pytest

from geobind_toyearth import FACTS, Places, Planet

CALM_DAY = {
    "water": 0.0,
    "sea": 0.0,
    "forest": 0.0,
    "conifer": 0.0,
    "crops": 0.0,
    "bare": 0.0,
    "buildings": 0.0,
    "roads": 0.0,
    "relief": 0.1,
    "snow": 0.0,
    "summer": 0.8,
    "spring": 0.5,
    "daylight": 0.7,
    "morning": 0.5,
    "wind": 0.1,
    "rain": 0.0,
}


@pytest.fixture(scope="session")
def places() -> Places:
    return Planet(0).places(48, seed=4)


@pytest.fixture(scope="session")
def with_facts(places):
    """Make 48 places that share all facts but keep nuisances of their own."""

    def make(**facts: float) -> Places:
        row = [{**CALM_DAY, **facts}[name] for name in FACTS]
        return places._replace(facts=np.tile(np.array(row, dtype=np.float32), (len(places.lat), 1)))

    return make
