"""Batches of neighbours: how far groups are apart, every row once an epoch, the seed and step alone."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data import neighbours
from geobind.data.neighbours import Coordinates, compute_grouped_share, neighbour_batches
from geobind.data.options import NeighbourOptions
from geobind.data.sampler import MixedDataset, WeightedSource
from geobind.data.sources import PluginPairs
from geobind.errors import DataError
from geobind.modality import Pair, Place

EARTH_KM = 6371.0088


def km_apart(lat_N, lon_N):
    lat, lon = np.radians(lat_N), np.radians(lon_N)
    half = np.sin((lat[:, None] - lat) / 2) ** 2
    half += np.cos(lat[:, None]) * np.cos(lat) * np.sin((lon[:, None] - lon) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(half, 1)))


def towns(rows, seed, spread_km, unknown=0.1):
    """Rows in a few towns, one of them at a pole and one at the antimeridian; some nowhere."""
    rng = np.random.default_rng(seed)
    centre = np.array([[89.99, 10.0], [-17.0, 180.0], [47.0, 8.0], [0.0, 0.0]])[rng.integers(0, 4, rows)]
    degrees = rng.normal(size=(rows, 2)) * spread_km / 111
    lat = centre[:, 0] + degrees[:, 0]
    over = np.abs(lat) > 90
    lat[over] = np.sign(lat[over]) * 180 - lat[over]
    lon = (centre[:, 1] + degrees[:, 1] / np.maximum(0.01, np.cos(np.radians(lat))) + 180) % 360 - 180
    lat[rng.random(rows) < unknown] = np.nan
    return Coordinates(lat, lon)


def groups(places, options, seed=0):
    row, group = neighbours._form_groups(places, options, np.random.default_rng(seed))
    return [row[group == number] for number in range(group.max() + 1)]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    least=st.sampled_from([0.0, 0.5, 3.0, 40.0, 2000.0]),
    wider=st.sampled_from([4.0, 10.0, 100.0]),
    together=st.integers(2, 9),
    seed=st.integers(0, 1000),
)
def test_every_two_rows_of_a_group_lie_inside_the_range(least, wider, together, seed):
    options = NeighbourOptions(least, min(wider * (least or 1), 20_000), 0.5, together)
    places = towns(400, seed, spread_km=3 * options.max_km)
    seen = []
    for group in groups(places, options, seed):
        assert 2 <= len(group) <= together
        km = km_apart(places.lat_N[group], places.lon_N[group])[np.triu_indices(len(group), 1)]
        assert km.min() >= least * (1 - 1e-9) and km.max() <= options.max_km * (1 + 1e-9)
        seen += group.tolist()
    assert len(seen) == len(set(seen))


def test_rows_of_one_place_are_never_in_one_group_unless_the_range_begins_at_nought():
    here = Coordinates(np.full(50, 47.0), np.full(50, 8.0))
    assert not compute_grouped_share(here, NeighbourOptions(0.1, 10, 0.5, 4), 10, 0)
    assert compute_grouped_share(here, NeighbourOptions(0, 10, 0.5, 4), 10, 0) > 0.3


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    rows=st.integers(8, 300),
    batch=st.integers(4, 40),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    together=st.integers(2, 9),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 3),
)
def test_every_row_comes_at_most_once_an_epoch_and_as_many_as_fill_batches(
    rows, batch, share, together, seed, epoch
):
    batch = min(batch, rows)
    places = towns(rows, seed % 1000, spread_km=20)
    found = neighbour_batches(places, NeighbourOptions(1, 50, share, together), batch, seed, epoch)
    assert found.shape == (rows // batch, batch)
    assert len(np.unique(found)) == found.size
    assert 0 <= found.min() and found.max() < rows


def neighbours_share(places, batch, options):
    """Which share of a batch's rows have another of the batch in their range."""
    km = km_apart(places.lat_N[batch], places.lon_N[batch])
    return ((km >= options.min_km) & (km <= options.max_km)).any(1).mean()


def test_batches_hold_the_share_of_neighbours_asked_for_evenly():
    rng = np.random.default_rng(0)  # all of the Earth, thinly
    centre = np.stack([np.degrees(np.arcsin(rng.uniform(-1, 1, 500))), rng.uniform(-180, 180, 500)], axis=1)
    at = np.repeat(centre, 8, axis=0) + rng.normal(size=(4000, 2)) * 0.05
    places, options = Coordinates(at[:, 0], at[:, 1]), NeighbourOptions(1, 30, 0.5, 8)
    assert compute_grouped_share(places, options, 100, 0) == pytest.approx(0.5, abs=0.01)
    near = [
        neighbours_share(places, batch, options) for batch in neighbour_batches(places, options, 100, 0, 0)
    ]
    random = np.random.default_rng(0).permutation(4000).reshape(40, 100)
    chance = np.mean([neighbours_share(places, batch, options) for batch in random])
    assert chance < 0.25
    assert min(near) > 0.45


def test_scattered_places_are_drawn_at_random_and_it_is_said_how_many_are_neighbours():
    lat, lon = np.linspace(-80, 80, 60), np.linspace(-170, 170, 60)
    assert compute_grouped_share(Coordinates(lat, lon), NeighbourOptions(1, 10, 0.5, 8), 10, 0) == 0
    assert (
        len(np.unique(neighbour_batches(Coordinates(lat, lon), NeighbourOptions(1, 10, 0.5, 8), 10, 0, 0)))
        == 60
    )
    nowhere = Coordinates(np.full(60, np.nan), np.full(60, np.nan))
    assert len(np.unique(neighbour_batches(nowhere, NeighbourOptions(1, 10, 0.5, 8), 10, 0, 0))) == 60


def mixture(*sizes, place=lambda i: Place(47 + i / 500, 8.0)):
    def rows(name, size):
        return PluginPairs([Pair(i, i, f"{name}{i}", place(i)) for i in range(size)], "a", "b")

    return MixedDataset(
        tuple(WeightedSource(name, rows(name, size)) for name, size in zip("xyz", sizes, strict=False))
    )


OPTIONS = NeighbourOptions(1, 20, 0.5, 4)


@pytest.mark.parametrize("mixed", [False, True])
def test_a_plan_is_a_function_of_the_seed_and_the_step_alone(mixed):
    sampler = mixture(60, 90).sampler(10, 7, mixed=mixed, neighbours=OPTIONS)
    again = pickle.loads(pickle.dumps(mixture(60, 90).sampler(10, 7, mixed=mixed, neighbours=OPTIONS)))
    there = [sampler.rows(step).tolist() for step in range(40)]
    back = {step: again.rows(step).tolist() for step in reversed(range(40))}
    assert there == [back[step] for step in range(40)]
    other = mixture(60, 90).sampler(10, 8, mixed=mixed, neighbours=OPTIONS)
    assert there != [other.rows(step).tolist() for step in range(40)]
    row = sampler.rows(3)[0]
    assert sampler.replacement(3, row, 1) == again.replacement(3, row, 1)
    assert sampler.replacement(3, row, 1) not in sampler.rows(3)


def test_each_source_of_a_mixture_goes_through_its_own_epochs():
    sampler = mixture(60, 90).sampler(10, 7, neighbours=OPTIONS)
    seen = np.concatenate([sampler.rows(step) for step in range(sampler.steps_per_epoch)])
    assert np.bincount(seen, minlength=150).max() <= 2


def test_rows_without_places_cannot_be_neighbours():
    with pytest.raises(DataError, match=r"x: no row has a place, but batches of neighbours are asked for"):
        mixture(20, place=lambda _: None).sampler(5, 0, neighbours=OPTIONS)
