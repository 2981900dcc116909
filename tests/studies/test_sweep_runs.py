"""Sweeps that run: what is shared, what is skipped, what a failure leaves, and what is said of them."""

import csv
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.studies.cells import grid, parse_axis
from geobind.studies.outcome import spread, summarise
from geobind.studies.running import Ran, run_cells
from geobind.studies.sweep_page import write_sweep

QUICK = ["data.toyearth.places=48", "data.toyearth.held_out=16"]
QUICK += [f"stages.{i}.{change}" for i in range(3) for change in ("batch_size=16", "epochs=1")]
LAST = "stages.audio_to_satellite"


def sweep(folder, *axes):
    words = [word for change in QUICK for word in ("--set", change)]
    words += [word for axis in axes for word in ("--sweep", axis)]
    command = [sys.executable, "-m", "geobind", "run", "three_modal", *words, "--out", "grid"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a sweep of two cells, and what the command said."""
    folder = tmp_path_factory.mktemp("sweep")
    done = sweep(folder, f"{LAST}.optimizer.lr=1e-3,2e-3")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_stages_that_cells_share_are_trained_once(swept):
    folder, done = swept
    assert done.stderr.count("align text with ground_image") == 1
    assert done.stderr.count("align audio with satellite") == 2
    assert "takes over 2 finished stages" in done.stderr
    first, second = sorted((folder / "grid").glob("lr=*"))
    for stage in ("01_text_to_ground", "02_satellite_to_ground"):
        weights = [(cell / "stages" / stage / "trained.safetensors").read_bytes() for cell in (first, second)]
        assert weights[0] == weights[1]
    curves = [
        {row["stage"] for row in csv.DictReader((cell / "metrics.csv").open())} for cell in (first, second)
    ]
    assert curves[0] == curves[1] == {"text_to_ground", "satellite_to_ground", "audio_to_satellite"}


def test_the_table_the_plot_and_the_page_are_written(swept):
    folder, done = swept
    assert "R@1 trained" in done.stdout
    assert "1e-3" in done.stdout
    rows = list(csv.DictReader((folder / "grid" / "sweep.csv").open()))
    assert [row[f"{LAST}.optimizer.lr"] for row in rows] == ["1e-3", "2e-3"]
    page = (folder / "grid" / "sweep.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    assert (folder / "grid" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_sweep_runs_nothing_again_and_a_wider_one_runs_the_new_cells_only(swept):
    folder, _ = swept
    again = sweep(folder, f"{LAST}.optimizer.lr=1e-3,2e-3,4e-3")
    assert again.returncode == 0
    assert (
        again.stderr.count("finished before, unchanged; not run again") == 2 + 2
    )  # cells, then their stages
    assert again.stderr.count("align audio with satellite") == 1


def test_a_cell_that_fails_is_named_and_does_not_stop_the_others(tmp_path, capfd):
    axes = [parse_axis(f"{LAST}.batch_size=4096,16")]  # more than there are rows: fails when the stage starts
    ran = run_cells(grid("three_modal", axes, QUICK), tmp_path)
    assert [one.failed for one in ran] == [True, False]
    assert "4096" in capfd.readouterr().err
    summary = summarise(ran)
    assert [line.failed for line in summary.lines] == [1, 0]
    assert math.isnan(summary.lines[0].measured["trained"].mean)
    assert "0 (1 failed)" in write_sweep(summary, "t", tmp_path).read_text()


def test_a_study_without_measurements_says_what_is_missing(tmp_path):
    cells = grid("three_modal", [parse_axis("seed=0")])
    with pytest.raises(DataError, match="evaluate"):
        summarise([Ran(cells[0], Path("nowhere"), failed=True)])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12))
def test_the_interval_over_seeds_is_students(values):
    found = spread([*values, math.nan])
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values))
    assert found.mean == pytest.approx(fmean(values))
    assert found.runs == len(values)
    if t:
        assert found.half == pytest.approx(t * stdev(values) / math.sqrt(len(values)))


def test_one_seed_has_no_interval():
    assert math.isnan(spread([0.5]).half)
