"""The contract of the night-lights modality, and its scale."""

import io

import numpy as np
import pytest
from geobind_modality_nightlights import NightLights
from PIL import Image

from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts

TOWN = 30 * np.exp(-np.hypot(*np.mgrid[-8:8, -8:8]) / 2)
DARK = np.zeros((16, 16))


def png(values_HW):
    Image.fromarray(values_HW.astype(np.uint8)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


class TestNightLights(ModalityContract):
    modality = NightLights()
    raws = [TOWN, DARK]
    files = [png(TOWN)]
    bad_raws = ["no_such_file.png", b"no image", np.zeros(5), np.zeros((3, 4, 5)), np.full((4, 4), 1e9), None]


def test_bright_cities_do_not_drown_villages():
    lights = np.zeros((16, 16))
    lights[3, 3], lights[12, 12] = 1.0, 1000.0
    scale = NightLights(size=16).prepare(lights)[0]
    assert 0.05 < scale[3, 3] / scale[12, 12] < 0.2


def test_missing_and_negative_radiance_is_dark():
    assert NightLights().read_radiance(np.array([[np.nan, -0.4, 2.0]])).tolist() == [[0.0, 0.0, 2.0]]


def test_what_is_no_radiance_is_refused():
    with pytest.raises(DataError, match="no light of the Earth"):
        NightLights().prepare(np.full((4, 4), 1e9))


@pytest.mark.slow
def test_lights_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts(
        "nightlights", "lights", tmp_path, {"timm": {"model": "test_resnet", "pretrained": False}, "size": 32}
    )
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
