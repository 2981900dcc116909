"""Near-duplicate images in two splits."""

import numpy as np
import pytest
from PIL import Image

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.evaluation import leakage, split_leakage


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))


def scene(seed, side=96):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def table(tmp_path):
    for number in range(6):
        scene(number).save(tmp_path / f"{number}.png")
    scene(0).save(tmp_path / "again.jpg", quality=80)
    scene(1).resize((48, 48)).save(tmp_path / "small.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "2.png").read_bytes())
    train = "".join(f"train,{number}.png\n" for number in range(4))
    test = "".join(f"test,{name}\n" for name in ("again.jpg", "small.png", "copy.png", "4.png", "5.png"))
    (tmp_path / "rows.csv").write_text(f"split,photo\n{train}{test}")
    return open_table(DataOptions(manifest="rows.csv"), tmp_path, ["photo"])


def test_an_image_saved_again_or_resized_is_found_and_a_copy_is_counted_as_a_copy(table):
    found = leakage(table.split("train"), table.split("test"))
    assert (found.copies["photo"].rows, found.copies["photo"].near) == (1, 2)
    assert found.copies["photo"].near_example == "rows.csv:6 and rows.csv:2"
    assert (
        "2 test rows have nearly the same photo as a training row (rows.csv:6 and rows.csv:2)"
        in found.warning
    )
    assert leakage(table.split("train"), table.split("test").take([3, 4])).warning is None


def test_more_images_than_the_limit_are_not_decoded_and_that_is_said(table, monkeypatch):
    monkeypatch.setattr(split_leakage, "_hash_images", lambda *_: pytest.fail("decoded"))
    found = leakage(table.split("train"), table.split("test"), most_images=8).copies["photo"]
    assert found.near is None
    assert found.near_unseen == "9 images to decode, more than 8"


def test_images_are_decoded_once_for_all_calls(table, monkeypatch):
    looked = {}
    first = leakage(table.split("train"), table.split("test"), looked=looked)
    monkeypatch.setattr(split_leakage, "_are_images", lambda *_: True)
    monkeypatch.setattr(split_leakage, "_is_featureless", lambda *_: False)  # looks at copies alone
    monkeypatch.setattr(split_leakage, "inspect_raw", lambda _: pytest.fail("decoded again"))
    assert leakage(table.split("train"), table.split("test"), looked=looked).copies == first.copies


def test_equal_observations_that_show_nothing_are_no_copies_of_a_place(tmp_path):
    import soundfile

    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    scene(1).save(tmp_path / "scene.png")
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(size=8000) / 9, 8000)
    for split in ("train", "test"):
        for name in ("black.png", "scene.png", "silent.wav", "noise.wav"):
            (tmp_path / f"{split}_{name}").write_bytes((tmp_path / name).read_bytes())
    rows = [
        f"{split},{split}_{image},{split}_{sound}"
        for split in ("train", "test")
        for image, sound in (("black.png", "silent.wav"), ("scene.png", "noise.wav"))
    ]
    (tmp_path / "rows.csv").write_text("split,photo,sound\n" + "\n".join(rows) + "\n")
    table = open_table(DataOptions(manifest="rows.csv"), tmp_path, ["photo", "sound"])
    found = leakage(table.split("train"), table.split("test"))
    for name in ("photo", "sound"):
        assert (found.copies[name].rows, found.copies[name].featureless) == (1, 1)
        assert found.copies[name].near in (0, None)
