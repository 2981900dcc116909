"""The contract of the thermal modality, and its units."""

import io

import numpy as np
import pytest
from geobind_modality_thermal import Thermal
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts

CITY = 290 + 8 * np.exp(-np.hypot(*np.mgrid[-8:8, -8:8]) / 4)
ICE = np.full((20, 30), 240.0)


def tiff(values_HW):
    Image.fromarray(values_HW.astype(np.float32)).save(file := io.BytesIO(), "TIFF")
    return file.getvalue()


class TestThermal(ModalityContract):
    modality = Thermal()
    raws = [CITY, ICE]
    files = [tiff(CITY)]
    bad_raws = [
        "no_such_file.tif",
        b"no image",
        np.zeros(5),
        np.full((3, 4, 5), 280.0),
        np.full((4, 4), np.nan),
        np.full((4, 4), 25.0),
        np.full((4, 4), -9999.0),
        None,
    ]


@pytest.mark.parametrize(("unit", "value", "fix"), [("kelvin", 25, "celsius"), ("celsius", 298, "kelvin")])
def test_temperatures_in_the_other_unit_are_refused_with_the_fix(unit, value, fix):
    with pytest.raises(DataError, match=f"are none in {unit}: set `unit: {fix}`"):
        Thermal(unit=unit).prepare(np.full((4, 4), float(value)))


def test_counts_of_a_sensor_are_refused_with_the_fix():
    with pytest.raises(DataError, match=r"set `scale` and `offset`.* between 150 and 400"):
        Thermal().prepare(np.full((4, 4), 14_500.0))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(-60, 60))
def test_the_encoder_sees_kelvin_whatever_the_unit(celsius):
    window = CITY - 290 + celsius
    in_kelvin = Thermal(size=16).prepare(window + 273.15)
    assert np.allclose(Thermal(size=16, unit="celsius").prepare(window), in_kelvin, atol=1e-5)


def test_clouds_are_missing_and_do_not_move_the_mean():
    counts = np.full((16, 16), 14_500.0)
    counts[:8] = 0
    modality = Thermal(size=16, scale=0.02, missing=0)
    assert np.nanmean(modality.read_kelvin(counts)) == pytest.approx(290)
    temperature, contrast = modality.prepare(counts)
    assert np.allclose(temperature, 0.1, atol=1e-6)
    assert np.allclose(contrast, 0, atol=1e-6)


def test_jitter_which_would_change_the_temperature_is_refused():
    with pytest.raises(ValidationError, match="a temperature is measured"):
        Thermal(augment={"jitter": 0.2})


@pytest.mark.slow
def test_temperatures_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts(
        "thermal",
        "temperature",
        tmp_path,
        {"timm": {"model": "test_resnet", "pretrained": False}, "size": 32},
    )
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
