"""The geometry of the sphere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.utils.geo import (
    EARTH_KM,
    assign_cells,
    chord_to_km,
    find_nearest,
    km_to_chord,
    nearest_km,
    to_unit_sphere,
)


def haversine(one, other):
    (lat, lon), (lat2, lon2) = np.radians(one), np.radians(other)
    half = np.sin((lat2 - lat) / 2) ** 2 + np.cos(lat) * np.cos(lat2) * np.sin((lon2 - lon) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(half))


def test_chords_of_unit_vectors_are_haversine_distances():
    places = np.array([[48.1, 11.5], [48.2, 11.6], [-33.9, 151.2], [90.0, 0.0]])
    vectors = to_unit_sphere(places)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    for row in range(1, len(places)):
        chord = np.linalg.norm(vectors[row] - vectors[0])
        assert chord_to_km(chord) == pytest.approx(haversine(places[0], places[row]))


@pytest.mark.parametrize("km", [0.001, 1, 1000, 15_000])
def test_distances_and_chords_convert_both_ways(km):
    assert chord_to_km(np.array([km_to_chord(km)]))[0] == pytest.approx(km, rel=1e-9)


def test_no_chord_is_longer_than_the_diameter():
    assert km_to_chord(1e6) == 2


def test_the_nearest_place_is_the_one_whose_distance_is_returned():
    random = np.random.default_rng(0)
    at, others = (
        random.uniform([-80, -180], [80, 180], (50, 2)),
        random.uniform([-80, -180], [80, 180], (90, 2)),
    )
    nearest = find_nearest(at, others)
    km = [haversine(place, others[row]) for place, row in zip(at, nearest, strict=True)]
    np.testing.assert_allclose(km, nearest_km(at, others))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    lat=st.floats(-90, 90),
    lon=st.floats(-180, 180) | st.sampled_from([-180.0, 180.0, -1e-14, 1e-14, 179.9999999]),
    cell_km=st.floats(1, 20_000),
)
def test_the_antimeridian_is_one_meridian_to_cells_and_distances(lat, lon, cell_km):
    from geobind.evaluation.split_leakage import number_degree_cells

    seam = np.array([[lat, 180.0], [lat, -180.0]])
    assert len(set(assign_cells(seam, cell_km))) == 1
    assert len(set(number_degree_cells(seam))) == 1
    assert nearest_km(seam[:1], seam[1:])[0] == pytest.approx(0, abs=1e-6)
    there = assign_cells(np.array([[lat, lon]]), cell_km)
    assert (there >= 0).all()
    at = np.array([[lat, lon]])
    assert np.allclose(nearest_km(at, seam[:1]), nearest_km(at, seam[1:]), atol=1e-6)
