"""geobind eval beside retrieval: calibration, sums, the modality gap, clusters."""

import json

import pytest
from test_cli_eval import COLUMNS, ROWS, as_json, bundle, make_bundle, manifest, registry, run  # noqa: F401

from geobind.binder import Binder


@pytest.fixture
def three_splits(manifest):  # noqa: F811
    """The manifest, half of its training rows for validation."""
    lines = open(manifest).read().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[: ROWS // 2]:
        row["split"] = "val"
    with open(manifest, "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def test_scales_are_fitted_on_one_split_measured_on_another_and_kept_if_asked(bundle, three_splits):  # noqa: F811
    arguments = (bundle, "--data", three_splits, *COLUMNS, "--calibrate", "val")
    found = as_json(*arguments)["calibration"]
    assert found["fitted_on"] == "split 'val' of rows.jsonl"
    assert found["measured_on"] == "split 'test' of rows.jsonl"
    assert [scales["modalities"] for scales in found["scales"]] == [["left", "right"]]
    assert found["choices"][0]["fitted"]["log_loss"] < found["choices"][0]["before"]["log_loss"]
    assert Binder.load(bundle).card.calibration is None
    weights = open(f"{bundle}/model.safetensors", "rb").read()
    as_json(*arguments, "--keep")
    kept = Binder.load(bundle)
    assert kept.temperature("left", "right").source == "fitted on split 'val' of rows.jsonl"
    assert kept.temperature("left", "right").value == found["scales"][0]["temperature"][0]
    assert open(f"{bundle}/model.safetensors", "rb").read() == weights


def test_people_see_the_tables_they_ask_for(bundle, three_splits):  # noqa: F811
    asked = ("--calibrate", "val", "--gap", "--arithmetic", "left+right:third")
    text = " ".join(run(bundle, "--data", three_splits, *COLUMNS, *asked).stdout.split())
    for phrase in ("Calibration", "Modality gap", "left + right to third", "observations of one place added"):
        assert phrase in text
    plain = run(bundle, "--data", three_splits, *COLUMNS).stdout
    assert "Calibration" not in plain and "Modality gap" not in plain


def test_a_manifest_has_sums_of_its_own_rows_only_and_toy_earth_of_two_places_too(tmp_path, manifest, bundle):  # noqa: F811
    asked = ("--arithmetic", "left+right:third")
    (alone,) = as_json(bundle, "--data", manifest, *COLUMNS, *asked)["arithmetic"]
    assert alone["truth"] == "row"
    toyearth = {"places": 2, "held_out": 12, "tile_size": 16, "photo_size": 16, "seconds": 0.25}
    data = {"toyearth": toyearth, "columns": {"left": "tile", "right": "sound", "third": "photo"}}
    toy = make_bundle(tmp_path / "toy", data=data)
    both = as_json(toy, "--data", "toyearth", *asked)["arithmetic"]
    assert [one["truth"] for one in both] == ["composed", "row"]
    assert both[0]["queries"][0]["gallery_size"] == 60


def test_whole_groups_are_drawn_for_intervals(bundle, manifest):  # noqa: F811
    arguments = (bundle, "--data", manifest, *COLUMNS, "--column", "group=tape", "--clusters", "group")
    found = as_json(*arguments)["clean"]
    assert found["clusters"] == "group"
    assert "whole clusters of queries (group)" in found["conventions"]["interval"]


def test_a_leaking_split_is_a_warning_in_the_table(bundle, manifest):  # noqa: F811
    found = as_json(bundle, "--data", manifest, *COLUMNS, "--train-split", "train")
    (warning,) = found["clean"]["warnings"]
    assert "leaks from split 'train'" in warning
    text = run(bundle, "--data", manifest, *COLUMNS, "--train-split", "train").stdout
    assert " ".join(text.split()).count("leaks from") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--calibrate", "test"), "--calibrate test: these are the rows measured on"),
        (("--calibrate", "val"), "has no rows of split 'val'"),
        (("--keep",), "--keep needs --calibrate SPLIT"),
        (("--arithmetic", "left:right"), "write ONE+TWO:GALLERY"),
        (("--arithmetic", "left+sonar:right"), "no modality 'sonar'"),
        (("--clusters", "group"), "intervals by group need a column `group`"),
    ],
)
def test_mistakes_are_named(bundle, manifest, arguments, message):  # noqa: F811
    result = run(bundle, "--data", manifest, *COLUMNS, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
