"""Run folders of strangers: whatever is of another type than geobind writes is named with its file."""

import json
import shutil
from pathlib import Path

import pytest

from geobind.errors import CheckpointError, GeobindError
from geobind.report.run_files import read_run

RUN = Path(__file__).parents[1] / "fuzz" / "run"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(RUN, tmp_path / "run"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("versions", "1.0"),
        ("versions", {"torch": None}),
        ("hardware", ["a", "b"]),
        ("plugins", [1]),
        ("plugins", {"tile": {}}),
        ("started", 3),
        ("peak_memory_bytes", "many"),
        ("peak_memory_bytes", "9" * 400),
        ("peak_memory_bytes", 10**30),
        ("peak_memory_bytes", 1e300),
        ("recipe", {}),
    ],
)
def test_a_fact_of_a_run_of_another_type_is_named(folder, field, value):
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, field: value}))
    with pytest.raises(CheckpointError, match=r"run\.json"):
        read_run(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", '{"versions": ', "[" * 100_000, '{"a": 1e-300}', "\udcff"]
)
def test_a_run_file_that_is_no_json_object_is_named(folder, text):
    (folder / "run.json").write_text(text, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"run\.json"):
        read_run(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stages:", "stages: {}\nother:"),
        ("stages:", "stages: [3]\nother:"),
        ("stages:", "stages: [{name: one}]\nother:"),
        ("stages:", "stages: [{name: 3, align: spoke, train: [hub]}]\nother:"),
        ("stages:", "stages: [{name: one, align: {}, train: [hub]}]\nother:"),
        ("stages:", "stages: [{name: one, align: spoke, train: [[]]}]\nother:"),
        ("stages:", "stages: [{name: one, align: spoke, train: [hub], data: 3}]\nother:"),
        ("stages:", "stages: [{name: one, align: spoke, train: [hub], pairs: some}]\nother:"),
        ("modalities:", "modalities: [hub]\nother:"),
        ("modalities:", "modalities: {hub: 3}\nother:"),
        ("modalities:", "modalities: {hub: {data: 3}}\nother:"),
        ("evaluate:", "evaluate: yes\nother:"),
        ("evaluate:", "evaluate: {by: 3}\nother:"),
        ("width: 8", "width: {}"),
        ("anchor: hub", "anchor: [hub]"),
        ("seed:", "seed: x\nother:"),
        ("name: toy", "name: 2024-01-01"),
    ],
)
def test_a_recipe_of_a_run_of_another_form_is_named(folder, old, new):
    text = (folder / "recipe.yaml").read_text()
    if old == "seed:":
        text += "seed: 0\n"
    assert old in text
    (folder / "recipe.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(GeobindError, match=r"recipe\.yaml"):
        read_run(folder)


def test_a_card_of_another_form_is_named(folder):
    (folder / "bundle" / "binder.json").write_text('{"versions": 3, "width": 8, "modalities": {}}')
    with pytest.raises(CheckpointError, match=r"binder\.json"):
        read_run(folder)


def test_a_whole_run_is_read(folder):
    run = read_run(folder)
    assert (run.name, run.by, run.unfinished, len(run.stages)) == ("toy", "row", [], 2)


def test_a_sum_without_its_queries_is_a_damaged_file(folder):
    written = json.loads((folder / "arithmetic.json").read_text(encoding="utf-8"))
    written["sums"][0]["queries"] = []
    (folder / "arithmetic.json").write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match=r"arithmetic\.json: sums\.0\.queries: .* at least 1 item"):
        read_run(folder)


def test_bytes_that_are_no_number_are_a_damaged_stage(folder):
    path = folder / "stages" / "01_one" / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "filled": {"bytes": float("inf")}}))
    with pytest.raises(CheckpointError, match=r"stage\.json: filled\.bytes: Input should be a finite number"):
        read_run(folder)


@pytest.mark.parametrize("distance", ["", "x", "nan", "-1", "1e400"])
def test_a_distance_of_leakage_that_is_no_number_is_a_damaged_file(folder, distance):
    leaks = json.loads((folder / "leakage.json").read_text())
    leaks["one"]["near"]["within_km"] = {distance: 0.5}
    (folder / "leakage.json").write_text(json.dumps(leaks))
    with pytest.raises(CheckpointError, match=r"leakage\.json: one\.near\.within_km"):
        read_run(folder)
