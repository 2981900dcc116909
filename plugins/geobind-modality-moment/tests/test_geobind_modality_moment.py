"""The contract of the moment modality, and the sun."""

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from geobind_modality_moment import Moment, sun_height
from hypothesis import given, settings
from hypothesis import strategies as st

import geobind
from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts

NOON = datetime(2024, 6, 21, 12, 0, tzinfo=UTC)


class TestMoment(ModalityContract):
    modality = Moment()
    raws = [geobind.Place(48.0, 11.0, NOON), geobind.Place(-33.0, 151.0, datetime(2024, 1, 5, 3))]
    bad_raws = [geobind.Place(48.0, 11.0), geobind.Place(float("nan"), 0.0, NOON), "noon", None, 12]


@pytest.mark.parametrize(
    ("lat", "lon", "time", "degrees"),
    [
        (23.44, 0.0, NOON, 90.0),  # overhead at the tropic at midsummer
        (51.48, 0.0, NOON, 61.9),
        (90.0, 0.0, NOON, 23.4),
        (-90.0, 0.0, NOON, -23.4),
        (0.0, 0.0, datetime(2024, 3, 20, 12, 8, tzinfo=UTC), 90.0),
    ],
)
def test_the_sun_stands_where_almanacs_say(lat, lon, time, degrees):
    assert math.degrees(sun_height(geobind.Place(lat, lon, time))) == pytest.approx(degrees, abs=0.8)


@settings(max_examples=50, deadline=None)
@given(st.floats(-90, 90), st.floats(-180, 180), st.integers(0, 24 * 365))
def test_zones_of_a_clock_do_not_move_the_sun(lat, lon, hours):
    time = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=hours)
    elsewhere = time.astimezone(timezone(timedelta(hours=9)))
    assert sun_height(geobind.Place(lat, lon, time)) == pytest.approx(
        sun_height(geobind.Place(lat, lon, elsewhere)), abs=1e-9
    )


def test_the_same_day_is_summer_in_the_north_and_winter_in_the_south():
    north, south = (Moment().prepare(geobind.Place(lat, 0.0, NOON))[2].item() for lat in (45.0, -45.0))
    assert north > 0.99
    assert south < -0.99


def test_a_place_without_time_names_the_column():
    with pytest.raises(DataError, match="has no time; fill the table's column `time`"):
        Moment().prepare(geobind.Place(1.0, 2.0))


def test_moments_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts("moment", "place", tmp_path)
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
