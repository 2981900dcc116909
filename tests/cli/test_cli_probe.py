"""geobind probe: a bundle of three tiny modalities, one of which reads sentences."""

import json

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from geobind import plugins
from geobind.binder import Binder
from geobind.bundles.bundle import build_card
from geobind.cli import main
from geobind.errors import DataError
from geobind.modality import Modality

CENTRES = {
    name: np.eye(6, dtype=np.float32)[place] for place, name in enumerate(("sandy_beach", "forest", "town"))
}
ROWS = 90


class Net(nn.Module):
    """An encoder that returns its input, by way of a trunk of nine numbers."""

    def __init__(self, width):
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 9, bias=False), nn.Linear(9, width, bias=False)
        with torch.no_grad():
            self.trunk.weight.copy_(torch.eye(9, 6))
            self.head.weight.copy_(torch.eye(width, 9))

    def forward(self, x_BF):
        return self.head(self.trunk(x_BF))


class Tile(Modality):
    """Six numbers, or a picture as the means of six stretches of it."""

    name = "tile"
    role = "trainable"

    def encoder(self, width, *, pretrained=True):
        return Net(width)

    def prepare(self, raw, *, training=False):
        if isinstance(raw, str):
            raise DataError(f"{raw}: no such file")
        return torch.from_numpy(np.asarray(raw, dtype=np.float32).reshape(6, -1).mean(1))


class Sound(Tile):
    """Six numbers of another kind."""

    name = "sound"


class Words(Tile):
    """A sentence: the sum of the classes it names."""

    name = "words"

    def prepare(self, raw, *, training=False):
        named = [of for name, of in CENTRES.items() if name.replace("_", " ") in raw]
        return torch.from_numpy(np.sum([*named, np.full(6, 1e-3)], axis=0, dtype=np.float32))


@pytest.fixture(autouse=True)
def registry(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))
    known = {c.name: plugins.Plugin(c, plugins.Source(c.name, "tiny", "1.0")) for c in (Tile, Sound, Words)}
    monkeypatch.setattr(plugins, "registry", lambda: plugins.Registry("modality", known, ()))


@pytest.fixture
def bundle(tmp_path):
    binder = Binder({"tile": Tile(), "sound": Sound(), "words": Words()}, 6, seed=0)
    binder.card = build_card(binder)
    return str(binder.save(tmp_path / "bundle"))


@pytest.fixture
def manifest(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for i in range(ROWS):
        label = list(CENTRES)[i % 3]
        tile = CENTRES[label] + 0.1 * random.normal(size=6)
        rows.append(
            {
                "split": ("train", "val", "test")[i // 30],
                "lat": float(random.uniform(-60, 60)),
                "lon": float(random.uniform(-180, 180)),
                "label": label,
                "other": "odd" if i % 2 else "even",
                "tile": tile.tolist(),
                "sound": (CENTRES[label] + 0.2 * random.normal(size=6)).tolist() if i % 2 else None,
                "height": float(tile[0] - tile[1]) if i % 5 else None,
                "named": "high",
                "group": f"tape {i // 3}",
            }
        )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(bundle, manifest, *arguments):
    words = ["probe", bundle, "--data", manifest, "--modality", "tile", *arguments]
    return CliRunner().invoke(main, words, env={"COLUMNS": "200"}, catch_exceptions=False)


def as_json(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


QUICK = ("--shots", "0,1,4,all", "--draws", "3")


def test_prompts_and_example_sounds_describe_the_classes_and_examples_teach_them(bundle, manifest):
    found = as_json(bundle, manifest, "--through", "words", "--through", "sound", *QUICK)
    assert found["classes"] == ["forest", "sandy_beach", "town"]
    assert (found["queries"], found["split"], found["data"]) == (30, "test", "rows.jsonl")
    assert found["chance"] == pytest.approx(1 / 3) == found["majority"]
    for through in ("words", "sound"):
        assert found["zero_shot"][through]["metrics"]["accuracy"]["value"] == 1.0
    (curves,) = found["curves"].values()
    assert [curve["classifier"] for curve in curves] == ["logistic", "nearest mean"]
    assert [point["shots"] for point in curves[0]["points"]] == [1, 4, "all"]
    assert curves[0]["points"][-1]["metrics"]["accuracy"]["value"] == 1.0
    assert curves[0]["points"][-1]["rows"] == 30


def test_a_template_that_names_another_class_too_is_heard(bundle, manifest):
    found = as_json(
        bundle,
        manifest,
        "--through",
        "words",
        "--template",
        "{} beside a forest",
        "--template",
        "a {}",
        *QUICK,
    )
    assert found["settings"]["templates"] == ["{} beside a forest", "a {}"]
    assert found["zero_shot"]["words"]["metrics"]["accuracy"]["value"] > 0.9


def test_other_features_stand_beside(bundle, manifest, tmp_path):
    recipe = tmp_path / "fresh.yaml"
    stage = {"name": "one", "align": "sound", "train": ["sound"], "batch_size": 2, "steps": 1}
    said = {"name": "fresh", "width": 6, "anchor": "tile", "modalities": {"tile": {}, "sound": {}}}
    recipe.write_text(yaml.safe_dump({**said, "data": {"manifest": "rows.jsonl"}, "stages": [stage]}))
    words = [word for beside in ("trunk", "random", str(recipe)) for word in ("--beside", beside)]
    found = as_json(bundle, manifest, *words, *QUICK)
    assert list(found["curves"]) == ["tile", "its trunk", "random trunk", "trunk of fresh, untrained"]
    of_trunk = found["curves"]["its trunk"][0]["points"][-1]["metrics"]["accuracy"]["value"]
    assert of_trunk == 1.0


def test_the_penalty_is_chosen_on_the_validation_split(bundle, manifest):
    found = as_json(bundle, manifest, "--val-split", "val", *QUICK)
    penalties = {point["penalty"] for point in found["curves"]["tile"][0]["points"]}
    assert penalties <= {100.0, 10.0, 1.0, 0.1, 0.01, 0.001}
    assert as_json(bundle, manifest, *QUICK)["curves"]["tile"][0]["points"][0]["penalty"] == 0.1


def test_another_column_of_classes_that_the_tiles_know_nothing_of_gives_chance(bundle, manifest):
    found = as_json(bundle, manifest, "--labels", "other", "--shots", "all")
    assert found["classes"] == ["even", "odd"]
    metric = found["curves"]["tile"][0]["points"][0]["metrics"]["accuracy"]
    assert metric["low"] <= 0.5 <= metric["high"]


def test_numbers_of_places_are_read_across_blocks_of_land(bundle, manifest):
    found = as_json(
        bundle, manifest, "--target", "height", "--beside", "trunk", "--split", "train", "--folds", "3"
    )
    assert found["kind"] == "facts"
    assert found["settings"]["blocks"] == "cells"
    for features in ("tile", "its trunk"):
        (probe,) = found["facts"][features]
        assert (probe["name"], probe["rows"]) == ("height", 24)
        assert probe["r2"]["value"] > 0.9
        assert probe["nearest_place"] < 0.5


def test_results_are_written_with_a_drawing_and_shown_as_tables(bundle, manifest, tmp_path):
    out = tmp_path / "out"
    result = run(bundle, manifest, "--through", "sound", *QUICK, "--out", str(out))
    for phrase in (
        "Zero-shot recognition of tile",
        "Few-shot recognition of tile",
        "nearest mean",
        "chance 0.333",
    ):
        assert phrase in result.stdout
    assert set(json.loads((out / "probes.json").read_text())["curves"]) == {"tile"}
    assert (out / "few_shot.png").read_bytes()[:4] == b"\x89PNG"
    text = run(bundle, manifest, "--target", "height", "--out", str(tmp_path / "facts")).stdout
    assert "Facts read from tile" in text and "nearest place" in text
    assert [path.name for path in (tmp_path / "facts").iterdir()] == ["probes.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shots", "1,two"), "--shots two: write whole numbers and `all`"),
        (("--template", "a photo"), "must contain {}"),
        (("--through", "smell"), "no modality 'smell'"),
        (("--labels", "colour"), "has no column 'colour'"),
        (("--target", "depth"), "has no column 'depth'"),
        (("--target", "named"), "column 'named' is 'high', not a number"),
        (("--split", "nowhere"), "has no rows of split 'nowhere'"),
        (("--beside", "nothing.yaml"), "no such recipe file"),
        (("--column", "tile"), "write NAME=COLUMN"),
    ],
)
def test_mistakes_are_named_with_their_remedy(bundle, manifest, arguments, message):
    result = run(bundle, manifest, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_class_without_an_example_is_named(bundle, manifest, tmp_path):
    rows = [json.loads(line) for line in open(manifest)]
    for row in rows:
        if row["label"] == "town":
            row["sound"] = None
    path = tmp_path / "quiet.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(bundle, str(path), "--through", "sound", *QUICK)
    assert result.exit_code == 2
    assert "no row of split 'train' shows class 'town' in 'sound'" in result.output


def test_facts_of_toy_earth_are_targets(bundle):
    binder = Binder({"tile": Tile()}, 6, seed=0)
    binder.card = build_card(
        binder, recipe={"data": {"toyearth": {"places": 12, "held_out": 24, "tile_size": 8, "photo_size": 8}}}
    )
    saved = str(binder.save(bundle + "2"))
    columns = ("--column", "tile=tile", "--folds", "2")
    found = as_json(saved, "toyearth", "--target", "water", "--target", "relief", *columns)
    assert [probe["name"] for probe in found["facts"]["tile"]] == ["water", "relief"]
    assert len(as_json(saved, "toyearth", "--target", "facts", *columns)["facts"]["tile"]) == 16
    result = run(saved, "toyearth", "--target", "gold", *columns)
    assert "toyearth: has no fact 'gold'; its facts: water, sea" in result.output


def no_weights(monkeypatch):
    """Make reading a bundle's weights an error."""
    monkeypatch.setattr(Binder, "from_pretrained", lambda *_, **__: pytest.fail("the bundle was loaded"))


def test_zero_shots_need_no_training_rows(bundle, tmp_path, manifest):
    rows = [json.loads(line) for line in open(manifest)]
    alone = tmp_path / "alone.jsonl"
    alone.write_text("".join(json.dumps(row) + "\n" for row in rows if row["split"] == "test"))
    found = as_json(bundle, str(alone), "--through", "words", "--shots", "0")
    assert found["zero_shot"]["words"]["metrics"]["accuracy"]["value"] == 1.0
    assert found["curves"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shots", "0"), "nothing to measure: --shots 0 fits no classifier"),
        (("--through", "words", "--labels", "absent"), "has no column 'absent', wanted as 'label'"),
        (("--train-split", "none"), "none"),
        (("--target", "nothing"), "has no column 'nothing'"),
        (("--through", "smell", "--shots", "0"), "no modality 'smell'"),
    ],
)
def test_what_the_rows_lack_is_found_before_the_bundle_is_loaded(
    bundle, manifest, arguments, message, monkeypatch
):
    no_weights(monkeypatch)
    result = run(bundle, manifest, *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_a_class_without_training_rows_is_named_before_the_bundle_is_loaded(
    bundle, manifest, tmp_path, monkeypatch
):
    no_weights(monkeypatch)
    rows = [json.loads(line) for line in open(manifest)]
    kept = [row for row in rows if row["split"] == "test" or row["label"] != "town"]
    lacking = tmp_path / "lacking.jsonl"
    lacking.write_text("".join(json.dumps(row) + "\n" for row in kept))
    result = run(bundle, str(lacking), "--shots", "1")
    assert result.exit_code == 2
    assert "rows of split 'test' are of town, of which split 'train' has no row" in result.stderr
