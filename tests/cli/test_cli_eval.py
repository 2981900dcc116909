"""geobind eval: a bundle of two tiny modalities, measured on manifests and on toy Earth."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from geobind import plugins
from geobind.binder import Binder
from geobind.bundles.bundle import build_card
from geobind.cli import main
from geobind.evaluation import PROTOCOLS
from geobind.modality import Modality

ROWS = 40


class Net(nn.Module):
    def __init__(self, width, turn):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(6, width) + turn * torch.randn(6, width))

    def forward(self, x_BF):
        return x_BF @ self.matrix


class Left(Modality):
    """Six numbers, or a picture of which six are taken."""

    name = "left"
    role = "trainable"
    turn: float = 0.0

    def encoder(self, width, *, pretrained=True):
        return Net(width, self.turn)

    def prepare(self, raw, *, training=False):
        values = np.asarray(raw[0] if isinstance(raw, tuple) else raw, dtype=np.float32).reshape(-1)
        return torch.from_numpy(values[np.linspace(0, len(values) - 1, 6).astype(int)] + 1e-3)


class Right(Left):
    """The other side."""

    name = "right"


class Words(Left):
    """A word, of which six letters are taken."""

    name = "words"

    def prepare(self, raw, *, training=False):
        return super().prepare([ord(letter) - 110 for letter in raw])


class Third(Left):
    """A third one."""

    name = "third"


@pytest.fixture(autouse=True)
def registry(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))
    known = {
        c.name: plugins.Plugin(c, plugins.Source(c.name, "tiny", "1.0")) for c in (Left, Right, Third, Words)
    }
    monkeypatch.setattr(plugins, "registry", lambda: plugins.Registry("modality", known, ()))


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path)


def make_bundle(tmp_path, *, data=None, aligned=True):
    binder = Binder({"left": Left(), "right": Right(turn=0.1), "third": Third(turn=0.5)}, 8, seed=0)
    stages = [{"name": "one", "anchor": "left", "align": "right", "train": ["right"]}] if aligned else []
    facts = {"pairs": 1, "steps": 1, "loss": 0.0, "temperature": 0.1}
    recipe = {"data": data} if data else {}
    binder.card = build_card(binder, stages=[{**stage, **facts} for stage in stages], recipe=recipe)
    return str(binder.save(tmp_path / "bundle"))


@pytest.fixture
def manifest(tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for i in range(2 * ROWS):
        values = random.normal(size=6)
        rows.append(
            {
                "split": "train" if i < ROWS else "test",
                "lat": float(i % ROWS),
                "lon": 10.0 + 0.001 * (i >= ROWS),
                "label": "odd" if i % 2 else "even",
                "a": values.tolist(),
                "b": (values + 0.3 * random.normal(size=6)).tolist(),
                "third": None if i % 5 == 0 else values.tolist(),
                "tape": f"tape{i // 3}",
            }
        )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


COLUMNS = ("--column", "left=a", "--column", "right=b")


def run(*arguments):
    return CliRunner().invoke(main, ["eval", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)


def as_json(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_clean_table_covers_every_pair_and_marks_what_was_trained(bundle, manifest):
    found = as_json(bundle, "--data", manifest, *COLUMNS)
    assert found["protocols"] == []
    assert found["leakage"] is None
    assert (found["rows"], found["split"]) == (ROWS, "test")
    marks = {(row["query"], row["gallery"]): row["mark"] for row in found["clean"]["rows"]}
    assert len(marks) == 6
    assert {pair for pair, mark in marks.items() if mark == "trained"} == {
        ("left", "right"),
        ("right", "left"),
    }


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_stands_beside_the_clean_table_never_instead(bundle, manifest, name):
    alone = as_json(bundle, "--data", manifest, *COLUMNS)
    found = as_json(bundle, "--data", manifest, *COLUMNS, "--protocol", name)
    assert found["clean"] == alone["clean"]
    (result,) = found["protocols"]
    assert (result["name"], result["anchor"], result["other"]) == (name, "left", "right")
    assert result["unknown"] and result["paper"] and result["code"]


def test_clean_adds_nothing_and_protocols_repeat_in_the_order_given(bundle, manifest):
    chosen = [
        "--protocol",
        "psm2024",
        "--protocol",
        "clean",
        "--protocol",
        "sat2cap",
        "--protocol",
        "psm2024",
    ]
    found = as_json(bundle, "--data", manifest, *COLUMNS, *chosen)
    assert [result["name"] for result in found["protocols"]] == ["psm2024", "sat2cap"]


def test_the_clean_value_of_a_protocol_is_that_of_the_clean_table(bundle, manifest):
    found = as_json(bundle, "--data", manifest, *COLUMNS, "--protocol", "sat2cap")
    (row,) = (r for r in found["clean"]["rows"] if (r["query"], r["gallery"]) == ("left", "right"))
    clean = {figure["says"]: figure["clean"] for figure in found["protocols"][0]["figures"]}
    assert clean["left → right R@10"] == pytest.approx(row["metrics"]["R@10"]["value"])
    assert clean["left → right median rank"] == row["metrics"]["median_rank"]["value"]


def test_another_anchor_is_measured_with_every_other_on_the_rows_that_have_both(bundle, manifest):
    found = as_json(bundle, "--data", manifest, *COLUMNS, "--protocol", "sat2cap", "--anchor", "third")
    assert [(r["anchor"], r["other"], r["rows"]) for r in found["protocols"]] == [
        ("third", "left", 32),
        ("third", "right", 32),
    ]


def test_a_bundle_that_was_never_trained_has_its_first_modality_as_anchor(tmp_path, manifest):
    bundle = make_bundle(tmp_path, aligned=False)
    found = as_json(bundle, "--data", manifest, *COLUMNS, "--protocol", "sat2cap")
    assert [(r["anchor"], r["other"]) for r in found["protocols"]] == [("left", "right"), ("left", "third")]


def test_the_limit_takes_the_first_rows_and_labels_can_be_the_right_answer(bundle, manifest):
    found = as_json(bundle, "--data", manifest, *COLUMNS, "--limit", "10", "--by", "label")
    assert found["rows"] == 10
    (row,) = (r for r in found["clean"]["rows"] if (r["query"], r["gallery"]) == ("left", "right"))
    assert row["metrics"]["R@1"]["chance"] == pytest.approx(0.5)


def test_a_split_that_leaks_is_told(bundle, manifest):
    arguments = (bundle, "--data", manifest, *COLUMNS, "--train-split", "train", "--column", "group=tape")
    found = as_json(*arguments)["leakage"]
    assert found["near"]["within_km"] == {"1": 1.0, "10": 1.0, "100": 1.0}
    assert found["groups"] == {"shared": 1, "test_rows": 2, "compared": 40}
    text = run(*arguments).stdout
    assert "leaks from split 'train' of rows.jsonl" in text
    assert "2 test rows are of groups that were trained on" in " ".join(text.split())


def test_people_see_the_clean_table_first_and_then_each_convention_with_its_gaps(bundle, manifest):
    text = run(bundle, "--data", manifest, *COLUMNS, "--protocol", "geoclap2023").stdout
    assert text.index("Retrieval between modalities") < text.index("As geoclap2023 prints it")
    for phrase in ("what it measures", "not comparable", "not known:", "mvrl/geoclap"):
        assert phrase in text


def test_toy_earth_is_the_one_of_the_bundles_recipe(tmp_path):
    toyearth = {"places": 4, "held_out": 8, "tile_size": 16, "photo_size": 16, "seconds": 0.25}
    data = {"toyearth": toyearth, "columns": {"left": "tile", "right": "photo"}}
    bundle = make_bundle(tmp_path, data=data)
    found = as_json(bundle, "--data", "toyearth", "--column", "third=sound", "--train-split", "train")
    assert (found["data"], found["rows"]) == ("toyearth", 8)
    assert len(found["clean"]["rows"]) == 6
    assert found["leakage"]["train_rows"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--protocol", "clip"), "no protocol 'clip'; there are clean, geobind2024"),
        (("--column", "left"), "--column left: write NAME=COLUMN"),
        (("--split", "val"), "has no rows of split 'val'"),
        (("--train-split", "val"), "has no rows of split 'val'"),
        (("--anchor", "sonar"), "this binder has no modality 'sonar'"),
    ],
)
def test_mistakes_are_named(bundle, manifest, arguments, message):
    result = run(bundle, "--data", manifest, *COLUMNS, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_help_names_every_protocol():
    text = " ".join(run("--help").output.split())
    assert all(name in text for name in PROTOCOLS)


def test_importing_the_command_does_not_import_torch():
    code = "import geobind.cli.evaluate, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def three_splits(manifest):
    """The manifest, half of its training rows for validation."""
    lines = open(manifest).read().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[: ROWS // 2]:
        row["split"] = "val"
    with open(manifest, "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def test_scales_are_fitted_on_one_split_measured_on_another_and_kept_if_asked(bundle, three_splits):
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


def test_people_see_the_tables_they_ask_for(bundle, three_splits):
    asked = ("--calibrate", "val", "--gap", "--arithmetic", "left+right:third")
    text = " ".join(run(bundle, "--data", three_splits, *COLUMNS, *asked).stdout.split())
    for phrase in ("Calibration", "Modality gap", "left + right to third", "observations of one place added"):
        assert phrase in text
    plain = run(bundle, "--data", three_splits, *COLUMNS).stdout
    assert "Calibration" not in plain and "Modality gap" not in plain


def test_a_manifest_has_sums_of_its_own_rows_only_and_toy_earth_of_two_places_too(tmp_path, manifest, bundle):
    asked = ("--arithmetic", "left+right:third")
    (alone,) = as_json(bundle, "--data", manifest, *COLUMNS, *asked)["arithmetic"]
    assert alone["truth"] == "row"
    toyearth = {"places": 2, "held_out": 12, "tile_size": 16, "photo_size": 16, "seconds": 0.25}
    data = {"toyearth": toyearth, "columns": {"left": "tile", "right": "sound", "third": "photo"}}
    toy = make_bundle(tmp_path / "toy", data=data)
    both = as_json(toy, "--data", "toyearth", *asked)["arithmetic"]
    assert [one["truth"] for one in both] == ["composed", "row"]
    assert both[0]["queries"][0]["gallery_size"] == 60


def test_whole_groups_are_drawn_for_intervals(bundle, manifest):
    arguments = (bundle, "--data", manifest, *COLUMNS, "--column", "group=tape", "--clusters", "group")
    found = as_json(*arguments)["clean"]
    assert found["clusters"] == "group"
    assert "whole clusters of queries (group)" in found["conventions"]["interval"]


def test_a_leaking_split_is_a_warning_in_the_table(bundle, manifest):
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
        (("--keep",), "--keep needs --calibrate or --fuse"),
        (("--arithmetic", "left:right"), "write ONE+TWO:GALLERY"),
        (("--arithmetic", "left+sonar:right"), "no modality 'sonar'"),
        (("--clusters", "group"), "intervals by group need a column `group`"),
    ],
)
def test_mistakes_about_further_measures_are_named(bundle, manifest, arguments, message):
    result = run(bundle, "--data", manifest, *COLUMNS, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def altered(manifest, tmp_path, change):
    rows = [json.loads(line) for line in open(manifest)]
    for number, row in enumerate(rows):
        change(number, row)
    path = tmp_path / "altered.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_map_stands_in_the_table_by_label(bundle, manifest):
    result = run(bundle, "--data", manifest, *COLUMNS, "--by", "label")
    assert " mAP " in result.stdout


def test_a_pair_with_a_query_that_has_no_right_answer_is_named_and_the_others_are_measured(
    bundle, manifest, tmp_path
):
    def harbour(number, row):
        if number % 10 == 5:
            row["label"] = "harbour"  # rows 5, 15, ... have no `third`

    path = altered(manifest, tmp_path, harbour)
    found = as_json(bundle, "--data", path, *COLUMNS, "--by", "label")["clean"]
    assert {tuple(pair["modalities"]) for pair in found["skipped"]} == {("left", "third"), ("right", "third")}
    reason = "4 rows of 'left' are of classes that no row of 'third' shows: harbour"
    assert found["skipped"][0]["reason"] == reason
    assert len(found["rows"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda number, row: row.pop("label") if number % 2 else None, "needs a `label` in every row"),
        (
            lambda number, row: row.update({"label": f"own {number}", "third": None, "ab"[number % 2]: None}),
            "no two modalities can be compared by label",
        ),
        (lambda number, row: row.update(b=None, third=None), "two are needed"),
    ],
)
def test_rows_that_cannot_be_compared_are_found_before_the_bundle_is_loaded(
    bundle, manifest, tmp_path, change, message, monkeypatch
):
    path = altered(manifest, tmp_path, change)
    monkeypatch.setattr(Binder, "from_pretrained", lambda *_, **__: pytest.fail("the bundle was loaded"))
    result = run(bundle, "--data", path, *COLUMNS, "--by", "label")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_line_says_which_rows_count_as_dependent(bundle, manifest):
    by_group = as_json(bundle, "--data", manifest, *COLUMNS, "--column", "group=tape")["clean"]
    assert by_group["clusters"] == "group"
    assert by_group["cluster_note"].startswith("rows of one group count as dependent, by default: 14 for 40")
    alone = as_json(bundle, "--data", manifest, *COLUMNS, "--clusters", "row")["clean"]
    assert alone["clusters"] is None
    text = " ".join(run(bundle, "--data", manifest, *COLUMNS).stdout.split())
    assert "rows of one cell of a degree count as dependent, by default: 40 for 40 rows" in text


QUESTION = "north: {prompts: [cold, warm], truth: lat, above: 19, through: words}\n"


@pytest.fixture
def spoken(tmp_path):
    """A bundle with a modality of words, which no column holds."""
    binder = Binder({"left": Left(), "right": Right(turn=0.1), "words": Words()}, 8, seed=0)
    binder.card = build_card(binder, recipe={})
    return str(binder.save(tmp_path / "spoken"))


def ask(bundle, manifest, tmp_path, question, *options):
    file = tmp_path / "questions.yaml"
    file.write_text(question)
    columns = ("--column", "left=a", "--column", "right=b")
    words = ["eval", bundle, "--data", str(manifest), *columns, "--questions", str(file), *options]
    return CliRunner().invoke(main, words)


def test_questions_of_a_file_are_put_to_a_bundle_beside_random_weights(spoken, manifest, tmp_path):
    done = ask(spoken, manifest, tmp_path, QUESTION, "--untrained", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    (question,) = result["questions"]["questions"]
    assert [answer["modality"] for answer in question["answers"]] == ["left", "right"]
    assert all(answer["true_rows"] == 20 and answer["untrained"] for answer in question["answers"])
    assert all("untrained" in row["beside"] for row in result["clean"]["rows"])


def test_the_anchor_stands_beside_on_the_same_rows_and_not_beside_itself(spoken, manifest, tmp_path):
    result = json.loads(ask(spoken, manifest, tmp_path, QUESTION, "--json").stdout)["questions"]
    left, right = result["questions"][0]["answers"]
    assert result["anchor"] == "left" and left["anchor"] is None
    assert right["anchor"] == left["auc"]  # every row has both


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toyerth", "no such file, nor shipped questions; did you mean 'toyearth'"),
        ("recipe", "the bundle's recipe asks no questions; name a file, or toyearth"),
    ],
)
def test_questions_that_are_nowhere_are_refused_with_those_there_are(spoken, manifest, name, message):
    done = run(spoken, "--data", str(manifest), "--questions", name)
    assert done.exit_code == 2 and message in " ".join(done.output.split())


def test_the_answers_are_a_table_for_people(spoken, manifest, tmp_path):
    done = ask(spoken, manifest, tmp_path, QUESTION)
    assert "questions in words" in done.stdout
    assert "north: cold / warm; lat above 19" in done.stdout
    assert re.search(r"left \((?:emergent|unconnected)\) +0\.\d{3} +0\.\d{3} to [01]\.\d{3}", done.stdout)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (QUESTION.replace("lat", "rain"), "no column for rain"),
        (QUESTION.replace("above: 19", "above: 90"), "none is true"),
        (QUESTION.replace("through: words", "through: smell"), "no modality 'smell'"),
        (QUESTION.replace("above", "over"), "north.above: Field required"),
        ("- a list", "YAML mapping"),
    ],
)
def test_a_question_that_cannot_be_asked_ends_the_command(spoken, manifest, tmp_path, question, message):
    done = ask(spoken, manifest, tmp_path, question)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_a_bank_of_another_split_bridges_emergent_pairs_in_table_and_json(tmp_path, manifest):
    binder = Binder({"left": Left(), "right": Right(turn=0.1), "third": Third(turn=0.5)}, 8, seed=0)
    facts = {"pairs": 1, "steps": 1, "loss": 0.0, "temperature": 0.1}
    stages = [
        {"name": one, "anchor": "left", "align": one, "train": [one], **facts} for one in ("right", "third")
    ]
    binder.card = build_card(binder, stages=stages, recipe={"anchor": "left"})
    bundle = str(binder.save(tmp_path / "bundle"))
    columns = (*COLUMNS, "--column", "third=third")
    plain = as_json(bundle, "--data", manifest, *columns)["clean"]
    assert plain["bridged"] == [] and plain["bridge_note"] == ""
    found = as_json(bundle, "--data", manifest, *columns, "--bank", "train")["clean"]
    assert found["rows"] == plain["rows"]
    assert {(one["row"]["query"], one["row"]["gallery"]) for one in found["bridged"]} == {
        ("right", "third"),
        ("third", "right"),
    }
    assert found["bridge_note"].startswith("bridged by 40 unlabelled rows of 'left'; weight 0.5")
    assert "each is moved towards the rows of 'left' that are most like it" in found["bridge_note"]
    shown = run(bundle, "--data", manifest, *columns, "--bank", "train").output
    assert shown.count("emergent, bridged") == 2 and "gain" in shown
    refused = run(bundle, "--data", manifest, *columns, "--bank", "test")
    assert refused.exit_code == 2 and "these are the rows measured on" in refused.output


def test_subsets_stand_beside_their_best_single_input_and_the_sum(bundle, manifest):
    columns = (*COLUMNS, "--column", "third=third")
    found = as_json(bundle, "--data", manifest, *columns, "--subsets")["subsets"]
    assert {(*row["inputs"], row["gallery"]) for row in found} == {
        ("left", "right", "third"),
        ("left", "third", "right"),
        ("right", "third", "left"),
    }
    for row in found:
        assert row["queries"] == 32 and row["best_single"] in row["inputs"] and not row["calibrated"]
        assert row["over_sum"]["value"] == 0  # equal weights are the plain sum
        gain = row["metrics"]["R@10"]["value"] - row["single"]["value"]
        assert row["over_single"]["value"] == pytest.approx(gain)
    assert "Several inputs together" in run(bundle, "--data", manifest, *columns, "--subsets").output


def test_a_fuser_of_another_split_stands_beside_and_is_kept_in_the_bundle(bundle, manifest, tmp_path):
    columns = (*COLUMNS, "--column", "third=third")
    found = as_json(bundle, "--data", manifest, *columns, "--fuse", "train", "--keep")["subsets"]
    assert len(found) == 3 and all(row["fuser"]["metrics"]["R@10"]["chance"] > 0 for row in found)
    for row in found:
        gain = row["fuser"]["metrics"]["R@10"]["value"] - row["single"]["value"]
        assert row["fuser"]["over_single"]["value"] == pytest.approx(gain)
    kept = Binder.load(bundle).fuser
    assert kept.rows == 40 and kept.source.startswith("40 rows of split 'train' of ")
    again = as_json(bundle, "--data", manifest, *columns, "--subsets")["subsets"]
    assert [row["fuser"] for row in again] == [row["fuser"] for row in found]
    words = ["eval", bundle, "--data", manifest, *columns, "--subsets"]
    shown = CliRunner().invoke(main, words, env={"COLUMNS": "80"}).output
    assert "by the fuser" in shown and "…" not in shown
    refused = run(bundle, "--data", manifest, *columns, "--fuse", "test")
    assert refused.exit_code == 2 and "these are the rows measured on" in refused.output
