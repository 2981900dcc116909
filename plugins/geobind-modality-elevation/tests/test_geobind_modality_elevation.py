"""The contract of the elevation modality, and what it does with metres."""

import io

import numpy as np
import pytest
from geobind_modality_elevation import Elevation
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts

HILL = 500 * np.exp(-np.hypot(*np.mgrid[-8:8, -8:8]) / 4)
PLAIN = np.full((20, 30), 12.0)


def tiff(metres_HW):
    Image.fromarray(metres_HW.astype(np.float32)).save(file := io.BytesIO(), "TIFF")
    return file.getvalue()


class TestElevation(ModalityContract):
    modality = Elevation()
    raws = [HILL, PLAIN]
    files = [tiff(HILL)]
    bad_raws = [
        "no_such_file.tif",
        b"no image",
        np.zeros(5),
        np.zeros((3, 4, 5)),
        np.full((4, 4), -32768.0),
        None,
    ]


@settings(max_examples=50, deadline=None)
@given(st.floats(-400, 6000), st.floats(0, 2000))
def test_relief_does_not_depend_on_the_height_it_stands_on(base, rise):
    modality = Elevation()
    relief = modality.prepare(HILL / 500 * rise + base)[1]
    assert np.allclose(relief, modality.prepare(HILL / 500 * rise)[1], atol=1e-3)


def test_missing_heights_are_the_sea_or_what_is_said():
    window = np.full((16, 16), 100.0)
    window[:8] = np.nan
    assert Elevation().read_metres(window).min() == 0
    assert Elevation(missing=-50).read_metres(window).min() == -50


def test_stored_units_become_metres():
    assert Elevation(scale=28, offset=-450).read_metres(np.array([[16.0, 100.0]])).tolist() == [
        [-2.0, 2350.0]
    ]


def test_a_value_that_stands_for_none_is_refused_with_the_fix():
    with pytest.raises(DataError, match="are no metres: set `scale` and `offset`, or NaN"):
        Elevation().prepare(np.array([[10.0, -32768.0]]))


def test_a_picture_goes_from_black_to_white():
    grey = Elevation().picture(HILL)
    assert (grey.min(), grey.max(), grey.dtype) == (0, 255, np.uint8)


@pytest.mark.slow
def test_heights_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts(
        "elevation", "heights", tmp_path, {"timm": {"model": "test_resnet", "pretrained": False}, "size": 32}
    )
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
