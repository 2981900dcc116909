"""Options of losses and batches in whole runs: resumed, in two processes, refused in time."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
import yaml
from toy_runs import losses, run_ranks, same, toy_run, weights

from geobind import plugins
from geobind.data.options import DataOptions
from geobind.data.sampler import MixedDataset, WeightedSource
from geobind.data.sources import TableRows, hours_since_1970
from geobind.data.table import open_table
from geobind.errors import DataError
from geobind.recipe import RecipeProblems, Stage
from geobind.training import metrics
from geobind.training.loss_inputs import check_loss_inputs

pytestmark = pytest.mark.usefixtures("toy_registry")
BATCHES = "{near_km: [100, 900], share: 0.5, together: 4}"
HARD = (
    "{name: infonce, hardness: 0.5, positives: place, same_within_m: 130e3, ignore_within_m: 300e3, "
    "ignore_within_hours: 1.5, ignore_when: either}"
)
SIGLIP = "{name: siglip, ignore_within_m: 1000}"
ASKED = [
    f"stages.0.loss={HARD}",
    f"stages.0.batches={BATCHES}",
    f"stages.1.loss={SIGLIP}",
    f"stages.1.batches={BATCHES}",
    "stages.0.epochs=2",
    "modalities.left.norm=false",
    "modalities.right.norm=false",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "registry", toy.registry)
        torch.set_num_threads(1)
        yield toy_run(tmp_path_factory.mktemp("whole"), *ASKED)


def test_each_loss_learns(whole):
    for stage in ("one", "two"):
        taken = [loss for name, _, loss in losses(whole) if name == stage]
        assert np.mean(taken[-3:]) < np.mean(taken[:3])


@pytest.mark.slow
@pytest.mark.parametrize("dies_after", [3, 15])
def test_a_killed_run_resumes_bit_for_bit(whole, tmp_path, dies_after, monkeypatch):
    add, taken = metrics.Recorder.add, iter(range(10_000))

    def add_then_die(self, *arguments):
        add(self, *arguments)
        if next(taken) == dies_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Recorder, "add", add_then_die)
        with pytest.raises(KeyboardInterrupt):
            toy_run(tmp_path, *ASKED)
    toy_run(tmp_path, *ASKED, resume=True)
    assert losses(whole) == losses(tmp_path / "run")
    assert same(weights(whole), weights(tmp_path / "run"))


@pytest.mark.slow
def test_two_processes_come_to_what_one_does(whole, tmp_path):
    options = [*ASKED, "fabric.accelerator=cpu", "fabric.devices=2"]
    sets = [word for option in options for word in ("--set", option)]
    run_ranks(tmp_path, toy.main, [str(tmp_path / "two"), *sets])
    for (_, _, a), (_, _, b) in zip(losses(whole), losses(tmp_path / "two" / "run"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    one, two = weights(whole), weights(tmp_path / "two" / "run")
    assert all(torch.allclose(one[key], two[key], atol=2e-4) for key in one)


def table(folder, header, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "wheel.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return open_table(
        DataOptions(manifest=Path("wheel.csv"), inline=("hub", "spoke")), folder, ("hub", "spoke")
    )


def test_times_are_hours_of_utc_whether_read_row_by_row_or_at_once(tmp_path):
    rows = TableRows(
        table(
            tmp_path,
            "split,hub,spoke,lat,lon,time",
            "train,a,b,47,8,2024-06-01T14:30:00Z",
            "train,a,b,47,8,2024-06-01T14:30:00+02:00",
            "train,a,b,47,8,1969-12-31T23:00:00",
            "train,a,b,47,8,",
            "train,a,b,,,2024-06-01T14:30:00Z",
        ),
        ("hub", "spoke"),
    )
    one_by_one = [hours_since_1970(rows[row].place) for row in range(5)]
    np.testing.assert_array_equal(rows.metadata().hour_N, one_by_one)
    assert one_by_one[0] - one_by_one[1] == 2 and one_by_one[2] == -1
    assert np.isnan(one_by_one[3]) and np.isnan(one_by_one[4])


def test_rows_that_do_not_say_what_a_loss_asks_for_are_refused_before_training(tmp_path, monkeypatch):
    told = toy.place(0)._replace(time=None)
    monkeypatch.setattr(toy, "place", lambda _: told)
    message = r"stage 'one': no row of the pairs of 'right' has a time and place, which `ignore_within_hours`"
    with pytest.raises(DataError, match=message):
        toy_run(tmp_path, "stages.0.loss={name: siglip, ignore_within_hours: 2}")
    monkeypatch.setattr(toy, "place", lambda _: None)
    with pytest.raises(DataError, match="has a place, which `ignore_within_m` asks for; give it `lat`"):
        toy_run(tmp_path / "m", "stages.0.loss={name: infonce, ignore_within_m: 2}")
    with pytest.raises(DataError, match=r"the pairs of 'right': no row has a place, but batches of neigh"):
        toy_run(tmp_path / "b", f"stages.0.batches={BATCHES}")
    assert not (tmp_path / "m" / "run" / "stages").exists()


def test_places_too_scattered_are_refused_and_rather_scattered_ones_are_told(tmp_path):
    recipe = toy.recipe(tmp_path, "stages.0.batches={near_km: [1, 50], share: 0.5}")
    rows = MixedDataset((WeightedSource("x", toy_rows(recipe)),))
    with pytest.raises(DataError, match=r"no rows of x were found from 1 to 50 km of each other that a "):
        check_loss_inputs(recipe.stages[0], rows)
    recipe = toy.recipe(tmp_path, "stages.0.batches={near_km: [1, 250], share: 1.0}")
    (warning,) = check_loss_inputs(recipe.stages[0], rows)
    assert "places of x are scattered" in warning and "of a batch are neighbours, not 100%" in warning


def toy_rows(recipe):
    from geobind.data.sources import PluginPairs

    return PluginPairs(recipe.built["right"].pairs("train", "left"), "left", "right")


def problems(tmp_path, *overrides, text=toy.RECIPE):
    with pytest.raises(RecipeProblems) as caught:
        toy.recipe(tmp_path, *overrides, text=text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "loss={positives: place}",
            "`positives: place` and `same_within_m` go together; give both or neither",
        ),
        ("loss={same_within_m: 5}", "`positives: place` and `same_within_m` go together"),
        (
            "loss={positives: place, same_within_m: 50, ignore_within_m: 50}",
            "rows within 50 m are positives, which leaves none to ignore within 50 m; raise ignore_within_m",
        ),
        ("loss={ignore_when: either, ignore_within_m: 50}", "give both, or drop it"),
        ("loss={hardness: -1}", "stages.0.loss.hardness: Input should be greater than or equal to 0"),
        (
            "loss={name: pcme}",
            "stages.0.loss.name: Input should be one of infonce, siglip (got 'pcme'); the loss 'pcme' was "
            "removed; choose infonce or siglip",
        ),
        ("batches={near_km: [10, 30]}", "10 to 30 is too narrow a ring to find groups in"),
        ("batches={near_km: [1, 30], share: 1.5}", "stages.0.batches.share: Input should be less than or"),
        ("batches={near: 3}", "stages.0.batches.near_km: missing; it must be given"),
    ],
)
def test_what_makes_no_sense_is_found_with_its_line(tmp_path, override, message):
    if override.startswith("loss={") and "name" not in override:
        override = override.replace("loss={", "loss={name: infonce, ")
    assert message in problems(tmp_path, f"stages.0.{override}")


CSV = """\
name: wheel
width: 8
anchor: hub
modalities: {hub: {}, spoke: {}}
data: {manifest: wheel.csv}
stages:
  - name: one
    align: spoke
    train: [hub]
    batch_size: 4
    steps: 1
    batches: {near_km: [1, 50]}
    loss:
      name: infonce
      positives: label
      ignore_within_hours: 3
"""
TABLED = CSV.split("    batches:")[0]


def test_columns_that_a_stage_asks_for_are_missed_before_anything_is_read(tmp_path):
    table(tmp_path, "split,hub,spoke,when,Lat", "train,a,b,2024-06-01,3")
    found = problems(tmp_path, text=CSV)
    assert (
        "toy.yaml:16:7: stages.0.loss.ignore_within_hours: needs `lat` and `lon` and `time` of every row, "
        "but wheel.csv has no such column; add it, or map another with `columns: {lat: COLUMN}`" in found
    )
    assert "toy.yaml:15:7: stages.0.loss.positives: needs `label` of every row" in found
    assert "toy.yaml:12:5: stages.0.batches: needs `lat` and `lon` of every row" in found
    mapped = "data.columns={lat: Latt, lon: Length, spoke: Q}"
    found = problems(tmp_path, mapped, text=CSV)
    assert (
        "--set data.columns: data.columns.lat: wheel.csv has no column 'Latt'; did you mean 'Lat'?" in found
    )
    assert "data.columns.lon: wheel.csv has no column 'Length'; its columns: " in found
    assert "data.columns.spoke: wheel.csv has no column 'Q'" in found
    assert "needs `lat`" not in found and "needs `time`" in found
    mapped = "data.columns={lat: Lat, lon: Lat, time: when, label: hub}"
    assert toy.recipe(tmp_path, mapped, text=CSV).stages[0].batches.share == 0.5


def test_a_mapped_column_that_is_not_there_is_told_at_its_line(tmp_path):
    table(tmp_path, "split,hub,spoke", "train,a,b")
    mapped = "{manifest: wheel.csv, columns:\n  {hub: hubb}}"
    found = problems(tmp_path, text=TABLED.replace("{manifest: wheel.csv}", mapped))
    assert found.endswith(
        "toy.yaml:6:4: data.columns.hub: wheel.csv has no column 'hubb'; did you mean 'hub'?"
    )


def test_labels_and_groups_that_a_measure_asks_for_are_missed_before_anything_is_read(tmp_path):
    table(tmp_path, "split,hub,spoke", "train,a,b")
    measured = "evaluate: {by: label, clusters: group}\n"
    watched = "stages.0.watch={every: 1, by: label}"
    found = problems(tmp_path, watched, text=TABLED + measured)
    assert "evaluate.by: needs `label` of every row, but wheel.csv has no such column" in found
    assert "evaluate.clusters: needs `group` of every row" in found
    assert "stages.0.watch.by: needs `label` of every row" in found


def test_every_loss_and_batch_that_the_documentation_shows_is_valid():
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    shown = [yaml.safe_load(found) for found in re.findall(r"`(\{name: (?:infonce|siglip)[^`]*\})`", text)]
    assert len(shown) >= 4
    for block in re.findall(r"```yaml\n((?:loss|batches):.*?)```", text, re.DOTALL):
        shown.append(yaml.safe_load(block))
    for values in shown:
        values |= {"hardness": 1.0} if values.get("hardness") == "b" else {}
        fields = values if {"loss", "batches"} & set(values) else {"loss": values}
        Stage.model_validate(
            {"name": "x", "align": "y", "train": ["y"], "batch_size": 4, "steps": 1, **fields}
        )
