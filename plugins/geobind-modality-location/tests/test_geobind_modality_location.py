"""The contract of the location modality, and the mathematics of its features."""

import math
import sys
from datetime import datetime

import numpy as np
import pytest
import torch
from geobind_modality_location import (
    Location,
    count_harmonics,
    equal_earth,
    read_degrees,
    spherical_harmonics,
)

import geobind
from geobind.errors import CheckpointError, DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts

RAWS = [geobind.Place(48.1, 11.6, datetime(2024, 5, 1)), (-33.9, 151.2)]
BAD = ["no place", (1.0,), (1.0, 2.0, 3.0), (float("nan"), 0.0), (91.0, 0.0), (0.0, 361.0), None, b"\x00"]


class TestHarmonics(ModalityContract):
    modality = Location(degree=6, hidden=16)
    raws = RAWS
    bad_raws = BAD


class TestFourier(ModalityContract):
    modality = Location(features="fourier", hidden=16)
    raws = RAWS
    bad_raws = BAD


class TestGeoclip(ModalityContract):
    modality = Location(features="geoclip", pretrained=False)
    raws = RAWS
    bad_raws = BAD


def test_harmonics_are_orthonormal_over_the_sphere():
    degree = 9
    nodes, weights = np.polynomial.legendre.leggauss(24)
    lon = np.arange(48) / 48 * 360 - 180
    grid = np.stack(np.meshgrid(np.degrees(np.arcsin(nodes)), lon, indexing="ij"), axis=-1).reshape(-1, 2)
    values = spherical_harmonics(torch.tensor(grid), degree).numpy()
    weight = np.repeat(weights / 2, 48) / 48
    assert np.allclose((values * weight[:, None]).T @ values, np.eye(count_harmonics(degree)), atol=1e-10)


def test_the_squares_of_a_degree_sum_to_its_number_of_harmonics_everywhere():
    places = torch.tensor([[90.0, 0.0], [-90.0, 77.0], [0.0, 180.0], [51.3, -0.1], [-89.999, 10.0]])
    values = spherical_harmonics(places, 40)
    for level in range(40):
        squares = values[:, level**2 : (level + 1) ** 2].square().sum(1)
        assert torch.allclose(squares, torch.full_like(squares, 2 * level + 1), rtol=1e-9)


@pytest.mark.parametrize("features", ["harmonics", "fourier"])
def test_a_pole_is_one_place_and_the_antimeridian_no_seam(features):
    encoder = Location(features=features, hidden=32).encoder(16)
    poles = encoder(torch.tensor([[90.0, 0.0], [90.0, 123.0]]))
    seam = encoder(torch.tensor([[10.0, 180.0], [10.0, -180.0]]))
    assert torch.allclose(poles[0], poles[1], atol=1e-5)
    assert torch.allclose(seam[0], seam[1], atol=1e-5)


@pytest.mark.parametrize(
    ("raw", "degrees"),
    [
        ("48.1, 11.6", (48.1, 11.6)),
        ("48.1 11.6", (48.1, 11.6)),
        (np.array([1, 2]), (1, 2)),
        ([0, 359], (0, 359)),
    ],
)
def test_places_are_read_as_people_write_them(raw, degrees):
    assert read_degrees(raw, "") == pytest.approx(degrees)


def test_longitudes_over_180_are_the_same_places():
    assert Location().prepare((0.0, 359.0)).tolist() == [0.0, -1.0]


def test_swapped_degrees_are_called_so():
    with pytest.raises(DataError, match="latitude comes first"):
        Location().prepare((151.2, -33.9))


def test_jitter_moves_places_by_its_distance_in_training_alone():
    moved = Location(jitter_km=100.0)
    assert moved.prepare((60.0, 10.0)).tolist() == [60.0, 10.0]
    torch.manual_seed(0)
    shifts = torch.stack([moved.prepare((60.0, 10.0), training=True) for _ in range(400)]) - torch.tensor(
        [60.0, 10]
    )
    km = shifts * torch.tensor([111.2, 111.2 * math.cos(math.radians(60))])
    assert km.std(0).tolist() == pytest.approx([100, 100], rel=0.15)


def test_equal_earth_has_its_published_extent():
    east, north = (
        (equal_earth(torch.tensor([[0.0, 180.0], [90.0, 0.0]])) * 180 / 66.50336).diagonal().tolist()
    )
    assert (east, north) == pytest.approx((2.7066, 1.3173), abs=1e-3)


def test_missing_weights_name_the_command_that_installs_them(monkeypatch):
    import geobind_modality_location as module

    def missing(name):
        raise module.PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", missing)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps 'geoclip>=1\.3,<2'"):
        Location(features="geoclip").encoder(512)


def test_geoclips_weights_give_geoclips_embeddings():
    pytest.importorskip("pandas")
    pytest.importorskip("geoclip")
    from geoclip import LocationEncoder

    places = torch.tensor([[48.86, 2.35], [45.76, 4.84], [40.71, -74.01], [-1.29, 36.82], [89.0, 179.0]])
    with torch.no_grad():
        theirs = LocationEncoder()(places)
        ours = Location(features="geoclip").encoder(512)(places)
    assert torch.allclose(ours, theirs, atol=5e-4 * theirs.abs().max().item())


def test_importing_the_plugin_imports_no_torch():
    import subprocess

    code = "import geobind_modality_location, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_coordinates_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts("location", "place", tmp_path, {"degree": 10})
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
