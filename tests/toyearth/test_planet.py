from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind_toyearth import FACT_NOTES, FACTS, Places, Planet

AT = {name: i for i, name in enumerate(FACTS)}
HASH = """
import hashlib, numpy as np
from geobind_toyearth import Planet
facts = Planet(3).places(64, seed=5).facts.astype(np.float64)
print(hashlib.sha256((np.round(facts, 3) + 0.0).astype("<f8").tobytes()).hexdigest())
"""
PINNED = "88d404970038b118f38f2659f07260dff2bf6241966ed78e29a56987068bf789"


def test_every_fact_is_documented():
    assert tuple(FACT_NOTES) == FACTS
    assert all(FACT_NOTES.values())


def test_importing_the_toy_earth_imports_no_heavy_package():
    heavy = "{'torch', 'scipy', 'PIL', 'matplotlib'}"
    code = f"import sys, geobind_toyearth; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_another_process_finds_the_pinned_facts():
    done = subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True)
    here = np.round(Planet(3).places(64, seed=5).facts.astype(np.float64), 3) + 0.0
    assert done.stdout.strip() == hashlib.sha256(here.astype("<f8").tobytes()).hexdigest() == PINNED


def test_seeds_of_planet_and_places_both_matter():
    a, b, c = Planet(0).places(50, seed=0), Planet(0).places(50, seed=1), Planet(1).places(50, seed=0)
    assert not np.array_equal(a.lat, b.lat)
    assert np.array_equal(a.lat, c.lat)
    assert not np.allclose(a.facts, c.facts, atol=0.05)


def test_places_have_the_promised_shapes_and_ranges():
    places = Planet(0).places(3000, seed=1)
    assert places.facts.shape == (3000, len(FACTS)) and places.facts.dtype == np.float32
    assert places.facts.min() >= 0 and places.facts.max() <= 1
    assert np.abs(places.lat).max() < 75 and np.abs(places.lon).max() <= 180
    assert places.month.min() == 1 and places.month.max() == 12
    assert 0 <= places.hour.min() and places.hour.max() < 24
    assert Planet(0).places(0).facts.shape == (0, len(FACTS))


def test_places_are_even_over_the_spheres_area():
    height = np.sin(np.radians(Planet(0).places(4000, seed=2).lat)) / math.sin(math.radians(75))
    shares = np.histogram(height, bins=10, range=(-1, 1))[0] / 4000
    assert np.abs(shares - 0.1).max() < 0.03


def test_covers_never_exceed_the_ground():
    facts = Planet(0).places(2000).facts
    total = sum(facts[:, AT[name]] for name in ("water", "forest", "crops", "bare"))
    assert total.max() <= 1 + 1e-6
    assert (facts[:, AT["sea"]] <= facts[:, AT["water"]]).all()
    assert (facts[:, AT["conifer"]] <= facts[:, AT["forest"]]).all()


def test_every_fact_varies_from_place_to_place():
    assert Planet(0).places(2000).facts.std(axis=0).min() > 0.12


@settings(deadline=None, max_examples=40)
@given(
    lat=st.floats(-90, 90),
    month=st.floats(1, 12.99),
    hour=st.floats(0, 23.99),
    seed=st.integers(0, 50),
)
def test_nothing_jumps_at_the_date_line(lat, month, hour, seed):
    east, west = Planet(seed).facts([lat, lat], [180.0, -180.0], [month] * 2, [hour] * 2)
    assert np.allclose(east, west, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(lon=st.floats(-180, 180), pole=st.sampled_from([-90.0, 90.0]), seed=st.integers(0, 50))
def test_a_pole_is_one_place_whatever_its_longitude(lon, pole, seed):
    a, b = Planet(seed).facts([pole, pole], [lon, 0.0], [3.0, 3.0], [12.0, 12.0])
    assert np.allclose(a, b, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    lat=st.floats(-89.9, 89.9),
    lon=st.floats(-179.9, 179.9),
    month=st.floats(1, 12.9),
    hour=st.floats(0, 23.9),
)
def test_facts_are_smooth_over_a_few_kilometres(lat, lon, month, hour):
    near, far = Planet(0).facts([lat, lat + 0.02], [lon, lon], [month] * 2, [hour] * 2)
    assert np.abs(near - far).max() < 0.05


def test_the_year_and_the_day_close_into_circles():
    start, end = Planet(0).facts([40, 40], [10, 10], [1.0, 12.9999], [0.0, 23.9999])
    assert np.allclose(start, end, atol=1e-2)


def test_seasons_are_opposite_in_the_two_hemispheres():
    lat = np.array([50.0, -50.0, 50.0, -50.0])
    facts = Planet(0).facts(lat, np.zeros(4), np.array([7.0, 7.0, 1.0, 1.0]), np.full(4, 12.0))
    summer = facts[:, AT["summer"]]
    assert summer[0] > 0.95 and summer[1] < 0.05 and summer[2] < 0.05 and summer[3] > 0.95
    assert np.isclose(Planet(0).facts([0.0], [0.0], [7.0], [12.0])[0, AT["summer"]], 0.5)


def test_the_sun_is_high_at_noon_and_gone_at_midnight():
    noon, midnight = Planet(0).facts([10, 10], [0, 0], [3, 3], [12, 0])[:, AT["daylight"]]
    assert noon > 0.9 and midnight == 0


def test_it_snows_near_the_poles_in_winter_not_at_the_equator():
    lon = np.linspace(-180, 180, 50)
    snow = AT["snow"]
    assert Planet(0).facts(np.full(50, 70.0), lon, np.full(50, 1.0), np.full(50, 12.0))[:, snow].mean() > 0.8
    assert Planet(0).facts(np.zeros(50), lon, np.full(50, 1.0), np.full(50, 12.0))[:, snow].mean() < 0.1


def test_facts_of_a_place_do_not_depend_on_its_batch_mates():
    places = Planet(0).places(200)
    alone = Planet(0).facts(places.lat[7:8], places.lon[7:8], places.month[7:8], places.hour[7:8])
    assert np.array_equal(alone[0], places.facts[7])


def test_taking_rows_keeps_columns_together():
    places = Planet(0).places(20)
    some = places.take([3, 1])
    assert isinstance(some, Places)
    assert np.array_equal(some.facts, places.facts[[3, 1]]) and np.array_equal(some.lat, places.lat[[3, 1]])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([91.0], [0.0], [1.0], [0.0]), r"lat\[0\] = 91.0 is not usable"),
        (([0.0], [181.0], [1.0], [0.0]), r"lon\[0\] = 181.0 is not usable"),
        (([0.0], [0.0], [13.0], [0.0]), r"month\[0\] = 13.0 is not usable"),
        (([0.0], [0.0], [1.0], [24.0]), r"hour\[0\] = 24.0 is not usable"),
        (([0.0, math.nan], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]), r"lat\[1\] = nan is not usable"),
        (([0.0, 1.0], [0.0], [1.0], [0.0]), r"differ in length \(lat 2, lon 1, month 1, hour 1\)"),
        (([[0.0]], [0.0], [1.0], [0.0]), "lat is not usable: give one value"),
        ((["north"], [0.0], [1.0], [0.0]), "lat must be numbers"),
    ],
)
def test_unusable_coordinates_are_named(columns, message):
    with pytest.raises(DataError, match=message):
        Planet(0).facts(*columns)


def test_unusable_counts_and_seeds_are_refused():
    with pytest.raises(DataError, match="count is -1: give a whole number from 0"):
        Planet(0).places(-1)
    with pytest.raises(DataError, match="seed is -3"):
        Planet(-3)
    with pytest.raises(DataError, match="seed is 0"):
        Planet(0).places(3, seed=0.5)
