"""The built-in modality of numbers: options, standardisation, missing numbers, a frozen anchor."""

import io

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from geobind import Binder
from geobind.errors import DataError, RecipeError
from geobind_vector import Vector


def npy(values):
    np.save(file := io.BytesIO(), np.asarray(values))
    return file.getvalue()


def test_numbers_are_standardised():
    vector = Vector(size=2, mean=[10, 1], std=[2, 4])
    assert vector.prepare([14, 1]).tolist() == [2, 0]
    assert Vector(size=2, mean=[1]).prepare([1, 3]).tolist() == [0, 2]


def test_a_missing_number_is_the_mean_and_the_encoder_is_told():
    vector = Vector(size=2, mean=[10, 1], std=[2, 4], missing=True)
    assert vector.prepare(np.array([14, np.nan], np.float32)).tolist() == [[2, 0], [1, 0]]
    encoder = vector.encoder(8).eval()
    there, missing = vector.prepare([14, 1]), vector.prepare([14, np.nan])  # alike but for the mask
    assert not torch.equal(encoder(there[None]), encoder(missing[None]))


def test_files_and_their_bytes_hold_vectors(tmp_path):
    (tmp_path / "v.npy").write_bytes(npy([1.0, 2.0]))
    vector = Vector(size=2)
    for raw in (tmp_path / "v.npy", str(tmp_path / "v.npy"), npy([1.0, 2.0])):
        assert vector.prepare(raw).tolist() == [1, 2]


def test_identity_embeds_the_numbers_themselves():
    binder = Binder({"vector": Vector(size=3, identity=True)}, 3)
    assert torch.allclose(binder.embed("vector", [[3.0, 0, 4]]), torch.tensor([[0.6, 0, 0.8]]))
    with pytest.raises(RecipeError, match="identity of 3 numbers needs `width: 3`"):
        Vector(size=3, identity=True).encoder(8)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1, 2, 3], r"a vector of 2 finite numbers is wanted, not shape \(3,\)"),
        ([1, np.inf], "not infinite numbers"),
        ([1, np.nan], r"number 1 of a vector is missing \(NaN\); fill it, or set `missing: true`"),
        ([np.nan, np.nan], "nothing but NaN"),
        ([1, 1e300], "too large"),
        ("gone.npy", "gone.npy: no such file"),
        (b"PK", "damaged .npy file"),
        (["warm", "cold"], "cannot be read as numbers.*; give numbers"),
        (np.array([1 + 2j, 0]), "are complex"),
        (np.ma.masked_array([1.0, 2.0], mask=[True, False]), "values are masked"),
    ],
)
def test_what_is_no_vector_is_refused(raw, message):
    with pytest.raises(DataError, match=message):
        Vector(size=2).prepare(raw)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [1, 2, 3]}, "`mean` has 3 values; give 1 or 2"),
        ({"std": [1, 0]}, "`std` above 0"),
        ({"hidden": [0]}, "widths from 1"),
        ({"identity": True, "hidden": [4]}, "`identity` has no layers"),
        ({"identity": True, "missing": True}, "`identity` has no layers"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Vector(size=2, **options)
