"""The contract of the environment modality, and what it does with missing numbers."""

import numpy as np
import pytest
import torch
from geobind_modality_environment import Environment

from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts


class TestEnvironment(ModalityContract):
    modality = Environment(size=3, mean=(10, 0, 5), std=(2, 1, 5))
    raws = [[12.0, 0.5, 7.0], np.array([8.0, np.nan, 0.0])]
    bad_raws = [[1.0, 2.0], [np.inf, 0, 0], [np.nan] * 3, "no_such_file.npy", None]


def test_missing_numbers_count_as_the_mean_and_are_marked():
    values = Environment(size=2, mean=(10.0,), std=(2.0,)).prepare([12.0, np.nan])
    assert values.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_numbers_are_left_out_in_training_alone():
    modality = Environment(size=1000, drop=0.3)
    torch.manual_seed(0)
    there = modality.prepare(np.ones(1000), training=True)[1]
    assert 0.6 < there.mean() < 0.8
    assert modality.prepare(np.ones(1000))[1].mean() == 1


def test_noise_never_falls_on_missing_numbers():
    torch.manual_seed(0)
    values = Environment(size=2, noise=1.0).prepare([0.0, np.nan], training=True)
    assert values[0, 0] != 0
    assert values[0, 1] == 0


def test_without_missing_numbers_allowed_one_is_refused():
    with pytest.raises(DataError, match="number 1 of a vector is missing"):
        Environment(size=2, missing=False).prepare([0.0, np.nan])


MEAN = [11.0, 14.0, 12.5, 16.0, 16.5, 30.0, 19.5, 2.8]  # of toy Earth's covariates
STD = [12.5, 13.5, 7.5, 11.0, 30.0, 27.5, 24.5, 2.1]


def test_covariates_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts("environment", "covariates", tmp_path, {"size": 8, "mean": MEAN, "std": STD})
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
