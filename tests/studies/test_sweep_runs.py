"""Sweeps that run: what is shared, what is skipped, what a failure leaves, and what is said of them."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.studies import runner
from geobind.studies.grid import Cell, build_grid, parse_axis
from geobind.studies.runner import CellResult, run_cells
from geobind.studies.summary import seed_interval, summarise_sweep, write_sweep
from geobind.training.interruption import Stopped

pytestmark = pytest.mark.slow

RECIPE = """
name: tiny
width: 16
modalities:
  satellite: {timm: &small {model: test_resnet.r160_in1k, pretrained: false}, size: 32, head: linear}
  ground_image: {role: trainable, timm: *small, size: 32, head: linear}
data:
  toyearth: {places: 32, held_out: 16}
  columns: {satellite: tile, ground_image: photo}
stages:
  - {name: first, align: ground_image, train: [satellite, ground_image], batch_size: 16, steps: 1}
  - {name: last, align: ground_image, train: [satellite], batch_size: 16, steps: 1}
evaluate: {split: test}
"""
RATE = "stages.last.optimizer.lr"


def sweep(folder, *axes, options=()):
    words = [word for axis in axes for word in ("--sweep", axis)]
    command = [sys.executable, "-m", "geobind", "run", "tiny.yaml", *words, "--out", "grid", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a sweep of two cells, and what the command said."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.yaml").write_text(RECIPE)
    done = sweep(folder, f"{RATE}=1e-3,2e-3")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_stages_that_cells_share_are_trained_once(swept):
    folder, done = swept
    assert done.stderr.count("first: align ground_image") == 1
    assert done.stderr.count("last: align ground_image") == 2
    assert "takes over 1 finished stage)" in done.stderr
    cells = sorted((folder / "grid").glob("lr=*"))
    one, two = [(cell / "stages" / "01_first" / "trained.safetensors").read_bytes() for cell in cells]
    assert one == two
    for cell in cells:
        assert {row["stage"] for row in csv.DictReader((cell / "metrics.csv").open())} == {"first", "last"}


def test_the_table_the_plot_and_the_page_are_written(swept):
    folder, done = swept
    assert "R@1 trained" in done.stdout
    assert "1e-3" in done.stdout
    rows = list(csv.DictReader((folder / "grid" / "sweep.csv").open()))
    assert [row[RATE] for row in rows] == ["1e-3", "2e-3"]
    page = (folder / "grid" / "sweep.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    assert (folder / "grid" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_sweep_runs_nothing_again_and_a_wider_one_runs_the_new_cells_only(swept):
    folder, _ = swept
    again = sweep(folder, f"{RATE}=1e-3,2e-3,4e-3")
    assert again.returncode == 0
    # Two cells, then a stage of the third.
    assert again.stderr.count("finished before, unchanged; not run again") == 3
    assert again.stderr.count("last: align ground_image") == 1


def test_a_sweep_prints_json_for_programs(swept):
    folder, _ = swept
    done = sweep(folder, f"{RATE}=1e-3,2e-3", options=("--json",))
    told = json.loads(done.stdout)
    assert (told["measure"], told["failed"], told["page"]) == ("R@1", [], "grid/sweep.html")
    assert [one["settings"][RATE] for one in told["settings"]] == ["1e-3", "2e-3"]
    assert told["settings"][0]["trained"]["half_width"] is None  # of a single seed


def test_a_cell_that_fails_is_named_and_does_not_stop_the_others(swept, capfd):
    folder, _ = swept
    recipe, home = str(folder / "tiny.yaml"), folder / "failing"
    # More than there are rows, which no check without the rows can see.
    ran = run_cells(build_grid(recipe, [parse_axis("stages.last.batch_size=4096,16")]), home)
    assert [one.failed for one in ran] == [True, False]
    assert "4096" in capfd.readouterr().err
    summary = summarise_sweep(ran)
    assert [line.failed for line in summary.lines] == [1, 0]
    assert math.isnan(summary.lines[0].measured["trained"].mean)
    assert "0 (1 failed)" in write_sweep(summary, "t", home).read_text()


CELL = """#!/bin/sh
trap 'echo asked >> {home}/heard; sleep 0.2; exit 143' {name}
echo up > {home}/up
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize("name", ["TERM", "USR1", "INT"])
def test_a_study_that_is_asked_to_stop_asks_its_cell_and_waits_for_it(tmp_path, monkeypatch, name):
    program, number = tmp_path / "cell", signal.Signals[f"SIG{name}"]
    program.write_text(CELL.format(home=tmp_path, name=name))
    program.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(program))

    def ask():
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    asking, before = threading.Thread(target=ask), signal.getsignal(number)
    asking.start()
    cell = Cell("tiny.yaml", (), {"seed": "1"})
    with pytest.raises(Stopped, match=f"{number.name}: the study stops after") as caught:
        runner._run(cell, None, tmp_path)
    asking.join()
    assert (tmp_path / "heard").read_text() == "asked\n"  # and it has ended, as the next line is reached
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_study_without_measurements_says_what_is_missing(tmp_path):
    cells = build_grid("three_modal", [parse_axis("seed=0")])
    with pytest.raises(DataError, match="evaluate"):
        summarise_sweep([CellResult(cells[0], Path("nowhere"), failed=True)])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12))
def test_the_interval_over_seeds_is_students(values):
    found = seed_interval([*values, math.nan])
    t = {2: 12.7062, 3: 4.302653, 4: 3.182446, 5: 2.776445}.get(len(values))
    assert found.mean == pytest.approx(fmean(values))
    assert found.runs == len(values)
    if t:
        assert found.half == pytest.approx(t * stdev(values) / math.sqrt(len(values)), rel=1e-5)


def test_one_seed_has_no_interval():
    assert math.isnan(seed_interval([0.5]).half)


def test_untrained_encoders_are_the_last_row_of_a_sweep_s_table():
    from geobind.studies.summary import UNTRAINED_ROW, SeedInterval, SettingRow, SweepSummary, sweep_table

    figure = SeedInterval(0.4, 0.1, 3)
    line = SettingRow({"a": "1", "b": "2"}, (), 0, {"trained": figure, "emergent": figure}, 0.02, figure)
    table = sweep_table(SweepSummary("R@10", ("a", "b"), (line,), {"trained": 0.021, "emergent": 0.03}))
    assert table.rows[-1] == [UNTRAINED_ROW, "", "", "0.021", "0.030", "", ""]
    assert len(table.rows[-1]) == len(table.heads)
    assert len(sweep_table(SweepSummary("R@10", ("a", "b"), (line,))).rows) == 1


def test_a_baseline_that_cannot_be_measured_is_logged_and_costs_nothing_else(tmp_path, caplog):
    from geobind.studies.grid import Cell
    from geobind.studies.runner import measure_untrained

    assert measure_untrained(Cell("no_such_recipe", (), {}), tmp_path) is None
    assert "no baseline of untrained encoders" in caplog.text
