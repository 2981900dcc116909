import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.recipe import load_recipe

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "ucm"
sys.path.append(str(EXAMPLE))

import make_manifest  # noqa: E402
import measure_captions as measure  # noqa: E402


def image(number, cls, split, captions, suspect=False):
    file = f"sat/ucm/{cls}/{cls}{number:02}.jpg"
    return {
        "file": file,
        "ucm_id": number,
        "cls": cls,
        "split": split,
        "captions": captions,
        "suspect": suspect,
    }


@pytest.fixture
def folder(tmp_path):
    images = [
        image(0, "freeway", "train", ["two freeways", "freeways"]),
        image(1, "freeway", "train", ["a piece of farmland"], suspect=True),
        image(2, "harbor", "val", ["boats"]),
        image(3, "harbor", "test", ["boats", "many boats"]),
        image(4, "harbor", "test", ["boats", "white boats"]),
    ]
    for of in images:
        (tmp_path / of["file"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / of["file"]).write_bytes(b"tile")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions/ucm_captions.json").write_text(json.dumps({"images": images}))
    return tmp_path


@pytest.fixture
def manifest(folder):
    make_manifest.main(folder, folder / "out" / "ucm.csv")
    return folder / "out" / "ucm.csv"


def test_tiles_with_captions_of_another_are_left_out_and_classes_are_in_words(manifest):
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["freeway00", "harbor02", "harbor03", "harbor04"]
    assert [row["label"] for row in rows] == ["freeways", "harbor", "harbor", "harbor"]


def test_a_missing_tile_stops_the_script(folder):
    (folder / "sat/ucm/harbor/harbor03.jpg").unlink()
    with pytest.raises(SystemExit, match=r"harbor03\.jpg: no such file"):
        make_manifest.main(folder, folder / "ucm.csv")


def test_geobind_reads_the_captions_as_text(folder, manifest):
    table = open_table(DataOptions(manifest=manifest, root=folder), folder, ["satellite", "text"])
    assert table.splits == {"test": 2, "train": 1, "val": 1}
    assert table.samples("text")[0] == ["two freeways", "freeways"]


def test_the_recipe_is_right(folder, manifest):
    (folder / "recipe.yaml").write_text((EXAMPLE / "recipe.yaml").read_text())
    changes = ("modalities.satellite.timm.pretrained=false", "data.manifest=out/ucm.csv", "data.root=.")
    recipe = load_recipe(folder / "recipe.yaml", changes)
    assert [stage.align for stage in recipe.stages] == ["text"]
    assert recipe.stages[0].parts == {"satellite": "head", "text": "full"}


def test_the_best_there_can_be_counts_captions_that_tiles_share(folder, manifest):
    rows = measure.rows_of(manifest, folder, "test")
    assert rows.said == ["boats", "many boats", "boats", "white boats"]
    # Each tile has one caption of its own; "boats" is right for one of its two tiles.
    assert measure.ceilings(rows) == (1.0, 3 / 4)
    same = rows._replace(captions=[["boats", "boats"], ["boats", "boats"]])
    assert measure.ceilings(same) == (0.5, 0.5)


def test_a_perfect_embedding_reaches_the_ceiling_and_a_constant_one_chance(folder, manifest):
    rows = measure.rows_of(manifest, folder, "test")
    tile_ND = np.eye(2, 3, dtype=np.float32)
    own_TD = tile_ND[rows.owner_T]
    to_captions, to_tiles = measure.both_ways(tile_ND, own_TD, rows)
    assert (to_captions["from"], to_captions["to"]) == ("satellite", "text")
    assert to_captions["metrics"]["R@1"]["value"] == to_tiles["metrics"]["R@1"]["value"] == 1.0
    assert to_captions["metrics"]["R@1"]["chance"] == to_tiles["metrics"]["R@1"]["chance"] == 0.5
    # Both are harbours: who knows that alone knows nothing.
    assert [of["metrics"]["R@1"]["value"] for of in measure.class_known(rows)] == [0.5, 0.5]
    flat = measure.both_ways(tile_ND[[0, 0]], own_TD[[0, 0, 0, 0]], rows)
    assert [of["metrics"]["R@1"]["value"] for of in flat] == [0.5, 0.5]
    assert "R@1 at most 0.750" in measure.line("geobind", to_tiles, 0.75)


def test_the_linear_baseline_finds_captions_whose_words_the_features_hold():
    random = np.random.default_rng(0)
    things = [f"thing{letter}" for letter in "abcdefgh"]
    shown_NW = random.random((80, 8)) < 0.4
    shown_NW[:, 0] |= ~shown_NW.any(1)
    captions = [
        [" ".join(np.array(things)[row]), "a " + " and ".join(np.array(things)[row])] for row in shown_NW
    ]
    features_ND = shown_NW @ random.normal(size=(8, 20)) + 0.01 * random.normal(size=(80, 20))
    train, test = (
        measure.Rows([Path()] * 40, captions[part], [""] * 40) for part in (slice(0, 40), slice(40, 80))
    )
    found = measure.linear_baseline(features_ND[:40], features_ND[40:], train, test)
    ceilings = measure.ceilings(test)
    for row, ceiling in zip(found, ceilings, strict=True):
        assert row["metrics"]["R@1"]["value"] > 0.8 * ceiling
    shuffled = measure.linear_baseline(features_ND[random.permutation(40)], features_ND[40:], train, test)
    assert shuffled[0]["metrics"]["R@1"]["value"] < 0.3


def test_real_captions_make_the_published_split(data, tmp_path, capsys):
    make_manifest.main(data, tmp_path / "ucm.csv")
    assert "train 1669, test 210, val 210; 11 tiles" in capsys.readouterr().out.replace(
        "val 210, test 210", "test 210, val 210"
    )
    rows = measure.rows_of(tmp_path / "ucm.csv", data, "test")
    assert len(rows.said) == 1050
    assert measure.ceilings(rows)[1] < 0.5
