"""The contract of the IMU modality, its rates, units and changes in training."""

import io

import numpy as np
import pytest
import torch
from geobind_modality_imu import GRAVITY, Imu, resample, rotate_about
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts


def walk(steps_a_second, rate=50.0, seconds=6.0, push=2.0):
    times = np.arange(round(rate * seconds)) / rate
    motion = np.zeros((6, len(times)))
    motion[2] = GRAVITY + push * np.sin(2 * np.pi * steps_a_second * times)
    motion[4] = 0.5 * np.cos(np.pi * steps_a_second * times)
    return motion


def npy(array):
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


class TestImu(ModalityContract):
    modality = Imu(seconds=2, recorded=50, augment={"turn": True, "noise": 0.1})
    raws = [walk(1.5), (walk(2.5, rate=100), 100), walk(2.0, seconds=0.5).T]
    files = [npy(walk(1.5))]
    bad_raws = [
        "no_such_file.npy",
        b"no array",
        np.zeros((5, 100)),
        np.zeros((6, 100)),
        np.full((6, 100), np.nan),
        (walk(2), None),
        (walk(2), 0),
        (walk(2), float("nan")),
        None,
    ]


class TestSeveralCrops(ModalityContract):
    modality = Imu(seconds=1, recorded=50, crops=3)
    raws = [walk(1.5), walk(2.5)]
    one_layout = False


def test_a_recording_without_a_known_rate_is_refused_with_the_fix():
    with pytest.raises(DataError, match=r"give \(array, rate\), or set `recorded`"):
        Imu().prepare(walk(2))


@pytest.mark.parametrize("rate", [25.0, 100.0, 62.5, 200.0])
def test_one_walk_is_prepared_alike_at_every_rate_it_was_recorded_with(rate):
    modality = Imu(seconds=4)
    once, other = modality.prepare((walk(1.0), 50)), modality.prepare((walk(1.0, rate=rate), rate))
    assert np.corrcoef(once[2], other[2])[0, 1] > 0.99


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(-20, 20), st.floats(1, 400), st.floats(1, 400), st.integers(2, 200))
def test_a_constant_stays_itself_when_it_is_resampled(value, source, rate, count):
    made = resample(np.full((2, count), value), source, rate)
    assert made.shape[1] == max(1, int(count * rate / source + 1e-9))
    assert np.allclose(made, value, atol=1e-6)


def test_fast_shaking_does_not_turn_into_slow_swaying():
    times = np.arange(1000) / 1000
    shaking = np.sin(2 * np.pi * 95 * times)[None]
    assert np.abs(resample(shaking, 1000, 100)).max() < 0.3
    assert np.abs(shaking[:, ::10]).max() > 0.9


@pytest.mark.parametrize(
    ("stated", "motion", "fix"),
    [
        ({}, walk(2) / GRAVITY, "set `acceleration: g`"),
        ({"acceleration": "g"}, walk(2), "set `acceleration: m/s2`"),
        ({}, walk(2) * [[0], [0], [0], [1], [1], [1]], "set `gravity: false`"),
    ],
)
def test_another_unit_of_acceleration_is_refused_with_the_fix(stated, motion, fix):
    with pytest.raises(DataError, match=fix):
        Imu(recorded=50, **stated).prepare(motion)


def test_units_do_not_change_what_the_encoder_sees():
    si = Imu(recorded=50).prepare(walk(2))
    other = walk(2)
    other[:3] /= GRAVITY
    other[3:] *= 180 / np.pi
    assert torch.allclose(Imu(recorded=50, acceleration="g", rotation="deg/s").prepare(other), si, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.floats(-7, 7))
def test_a_rotation_keeps_lengths_and_its_axis(axis, angle):
    axis = np.add(axis, [0, 0, 6])
    turn = rotate_about(axis, angle)
    assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.allclose(turn @ axis, axis, atol=1e-9)


def test_turning_keeps_the_force_along_gravity_and_changes_the_gyroscope_across_it():
    modality = Imu(recorded=50, seconds=2, augment={"turn": True})
    torch.manual_seed(0)
    turned, again = (modality.prepare(walk(2, seconds=2), training=True) for _ in range(2))
    plain = modality.prepare(walk(2, seconds=2))
    assert torch.allclose(turned[2], plain[2], atol=1e-5)
    assert not torch.allclose(turned[3:5], again[3:5], atol=1e-2)
    assert torch.allclose(turned[3:5].norm(dim=0), plain[3:5].norm(dim=0), atol=1e-5)


def test_crops_are_evenly_spaced_and_training_takes_one_at_random():
    ramp = walk(0.0, seconds=10)
    ramp[5] = np.arange(500)
    modality = Imu(recorded=50, seconds=1, crops=3)
    assert (modality.prepare(ramp)[:, 5, 0] * 2).tolist() == [0.0, 225.0, 450.0]
    torch.manual_seed(0)
    starts = {float(modality.prepare(ramp, training=True)[5, 0]) for _ in range(8)}
    assert len(starts) > 4


@pytest.mark.slow
def test_walks_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts("imu", "motion", tmp_path)
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
