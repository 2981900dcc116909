"""The contract of the depth modality, its units and its gaps."""

import io

import numpy as np
import pytest
from geobind_modality_depth import Depth
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from geobind.errors import DataError
from geobind.testing import ModalityContract
from geobind_toyearth.learning import bind_to_facts

ROAD = 60 / np.linspace(1, 16, 16)[:, None] * np.ones((1, 16))
WALL = np.full((20, 30), 3.0)


def png(metres_HW):
    Image.fromarray(metres_HW.astype(np.uint16)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


class TestDepth(ModalityContract):
    modality = Depth(size=32)
    raws = [ROAD, WALL]
    files = [png(ROAD)]
    bad_raws = [
        "no_such_file.png",
        b"no image",
        np.ones(5),
        np.ones((3, 4, 5)),
        np.zeros((4, 4)),
        np.full((4, 4), -1.0),
        np.full((4, 4), 2500.0),
        None,
    ]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(0.1, 2), st.floats(100, 2000), st.sampled_from(["log", "inverse"]))
def test_disparity_and_metres_of_one_scene_are_prepared_alike(baseline, focal, view):
    stereo = Depth(size=16, unit="disparity", scale=baseline * focal, view=view)
    metres = Depth(size=16, view=view).prepare(ROAD)
    assert np.allclose(stereo.prepare(baseline * focal / ROAD), metres, atol=1e-4)


@pytest.mark.parametrize("gap", [0.0, np.nan])
@pytest.mark.parametrize("unit", ["metres", "disparity"])
def test_a_gap_is_marked_in_the_second_channel(gap, unit):
    scene = np.full((16, 16), 20.0)
    scene[:4] = gap
    depth, known = Depth(size=16, unit=unit, scale=1 if unit == "metres" else 400).prepare(scene)
    assert np.array_equal(known[:, 0], [0.0] * 4 + [1.0] * 12)
    assert np.array_equal(depth[:4], np.zeros((4, 16)))
    assert np.allclose(depth[4:], np.log(2) / 1.5)


def test_millimetres_taken_for_metres_are_refused_with_the_fix():
    with pytest.raises(DataError, match=r"set `scale` \(0.001 for millimetres\)"):
        Depth().prepare(WALL * 1000)
    assert np.allclose(Depth(scale=0.001).read_metres(WALL * 1000), WALL)


def test_a_near_thing_stays_apart_from_a_nearer_one_in_inverse_depth_and_far_ones_do_not():
    def differ(view, *metres):
        scenes = [Depth(size=8, view=view).prepare(np.full((8, 8), depth))[0, 0, 0] for depth in metres]
        return float(abs(scenes[0] - scenes[1]))

    assert differ("inverse", 1.0, 2.0) > 100 * differ("inverse", 200.0, 400.0)
    assert differ("log", 1.0, 2.0) == pytest.approx(differ("log", 200.0, 400.0), rel=1e-4)


def test_options_that_would_spoil_a_depth_are_refused():
    with pytest.raises(ValidationError, match="without jitter"):
        Depth(augment={"jitter": 0.1})
    with pytest.raises(ValidationError, match="must be below `far`"):
        Depth(near=5, far=2)


def test_a_picture_is_bright_where_things_are_near_and_black_where_nothing_is_known():
    scene = ROAD.copy()
    scene[0] = 0
    grey = Depth().picture(scene)
    assert grey[0, 0] == 0
    assert grey[-1, 0] > grey[1, 0] > 0


@pytest.mark.slow
def test_depths_of_toy_earth_are_found_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path / "cache"))
    learning = bind_to_facts(
        "depth", "depth", tmp_path, {"timm": {"model": "test_resnet", "pretrained": False}, "size": 32}
    )
    print(learning)
    assert learning.trained > 2 * learning.chance
    assert learning.untrained < 1.6 * learning.chance
