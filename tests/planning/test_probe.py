"""Real measurements of the toy modalities: what is measured, and that nothing is left behind or changed."""

import json
import os
import sys
from pathlib import Path

import pytest
import toy
from click.testing import CliRunner
from made_up import GB, all_found, filling, stage_found

from geobind import report
from geobind.cli import main
from geobind.errors import DataError, RecipeError, TrainingError
from geobind.planning import auto
from geobind.planning.auto import AutoResolver, make_plan
from geobind.planning.bench import Bench
from geobind.planning.models import EndingMeasurement, Machine, ProbeResult, StageMeasurement, read_plan
from geobind.planning.probe import Progress, measure_recipe
from geobind.recipe.parsing import parse_yaml
from geobind.training.run import run
from geobind.utils import files as storage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("toys")]
# Each measurement of a size sets a stage up anew: a second of them is enough here.
SECONDS = 1.0


def seen(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file under a folder, with its time and content."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def measured(recipe, scratch, **options) -> ProbeResult:
    """The measurements that `ask` brings from another process, made in this one."""
    options = {"seconds": SECONDS, "limit": None, **options}
    scratch.mkdir(parents=True)
    events = [
        event for event in measure_recipe(recipe, scratch, **options) if not isinstance(event, Progress)
    ]
    (machine,) = (event for event in events if isinstance(event, Machine))
    (ending,) = (event for event in events if isinstance(event, EndingMeasurement))
    stages = tuple(event for event in events if isinstance(event, StageMeasurement))
    return ProbeResult(machine=machine, stages=stages, ending=ending)


@pytest.fixture
def write_report(monkeypatch):
    """The writer of reports; runs and measurements write none, which takes most of their time."""
    write = report.write_report
    monkeypatch.setattr(report, "write_report", lambda *_, **__: None)
    return write


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Measure in this process, and count how often."""
    asked, found = [], {}

    def ask(recipe, *, seconds, limit, say):
        asked.append(limit)
        if recipe.name not in found:
            found[recipe.name] = measured(recipe, tmp_path / "scratch")
        machine = found[recipe.name].machine.model_copy(update={"available": limit})
        return found[recipe.name].model_copy(update={"machine": machine})

    monkeypatch.setattr(auto, "run_probe_process", ask)
    return asked


@pytest.fixture
def full_cache(write_report, tmp_path):
    """A cache that holds the rows of the second stage's frozen side."""
    run(toy.recipe(tmp_path, "stages.0.steps=1", "stages.0.epochs=null"), tmp_path / "before")


def test_every_stage_is_measured_and_the_cache_and_folders_stay_as_they_are(full_cache, tmp_path):
    recipe = toy.recipe(tmp_path)
    before = seen(tmp_path)
    assert any("embeddings" in path for path in before)
    found = measured(recipe, tmp_path.parent / f"{tmp_path.name}-scratch")
    assert seen(tmp_path) == before
    assert os.environ["GEOBIND_CACHE"] == str(tmp_path / "cache")

    one, two = found.stages
    assert (one.rows, one.frozen, one.filling) == (96, (), None)
    assert one.steps[-1].rows == 16 and all(step.seconds > 0 for step in one.steps)
    assert one.trained_bytes == sum(
        value.numel() * value.element_size() for value in toy.Net(8, 0.0, True).state_dict().values()
    ) * 2  # fmt: skip
    assert one.checkpoint_bytes > 2 * one.trained_bytes  # the weights and AdamW's two moments
    assert two.frozen == ("cold",)
    assert two.filling.sides["cold"].inputs == pytest.approx(96)
    assert two.filling.sides["cold"].missing == 0  # they are in the cache
    assert found.ending.seconds > 0
    assert found.machine.bundle_bytes > one.trained_bytes


def test_two_passes_and_evaluations_on_the_way_are_measured(write_report, tmp_path):
    plain = ("modalities.left.norm=false", "modalities.right.norm=false")
    watch = "stages.1.watch={every: 3, split: val, limit: 24}"
    once = "stages.1.steps=2"  # of the six that its rows make
    found = measured(toy.recipe(tmp_path, "stages.0.chunk=4", *plain, watch, once), tmp_path / "scratch")
    assert found.stages[1].uncached == {"cold": "the stage does not take all of its rows once"}
    two = found.stages[0].two_pass
    assert (two.chunk, two.rows) == (4, 8)
    assert two.seconds > 0
    assert found.stages[1].two_pass is None
    assert found.stages[1].watching_seconds > found.stages[0].watching_seconds == 0


def test_processes_of_one_machine_share_its_memory_and_a_batch(tmp_path):
    recipe = toy.recipe(tmp_path, "fabric={accelerator: cpu, devices: 2}")
    events = measure_recipe(recipe, tmp_path, SECONDS, 8 * GB)
    machine = next(event for event in events if isinstance(event, Machine))
    assert (machine.available, machine.ranks) == (4 * GB, 2)
    assert "measured on one device of 2" in machine.notes[0]


def test_why_a_frozen_side_is_not_cached_is_told(tmp_path):
    bench = Bench(None, None, tmp_path, caches=True)
    bench.messages += [
        "one: step 3",
        "one: wild cold is not cached: no",
        "one: cold is not cached: it draws (x)",
    ]
    assert bench.find_cache_refusal("cold") == "it draws (x)"
    assert bench.find_cache_refusal("hot") == ""


def test_an_open_batch_is_settled_written_down_and_kept_when_the_run_goes_on(
    here, write_report, tmp_path, logged
):
    recipe = toy.recipe(tmp_path, "stages.0.batch_size=auto", "stages.1.chunk=auto")
    folder = run(recipe, tmp_path / "run", resolver=AutoResolver(limit=2**40)).folder
    assert here == [2**40]
    written = parse_yaml((folder / "recipe.yaml").read_text(), "")[0]["stages"]
    assert (written[0]["batch_size"], written[1]["chunk"]) == (16, None)  # a quarter of 96 rows is 24
    assert storage.read_json(folder / "stages" / "01_one" / "stage.json")["batch_size"] == 16
    plan = read_plan(folder)
    assert [stage.settled for stage in plan.stages] == [{"batch_size": 16}, {"chunk": None}]

    run(recipe, folder, resume=True, resolver=AutoResolver(limit=2**40 + 1))
    assert here == [2**40], "the plan that lies there is not made again"
    said = logged()
    assert "one: batch_size 16 (as planned before" in said
    assert "one: finished before, unchanged; not run again" in said
    # A number written by hand is the same stage: the fingerprint is that of the settled value.
    run(toy.recipe(tmp_path, "stages.0.batch_size=16"), folder, resume=True)
    assert "one: finished before, unchanged; not run again" in logged()

    text = write_report(folder).read_text()
    assert "Planned and measured" in text and "direct: 16 pairs at once" in text

    assert "no more than a quarter of its 96 rows" in text
    changed = toy.recipe(tmp_path, "stages.0.batch_size=auto", "stages.1.chunk=auto", "width=9")
    with pytest.raises(RecipeError, match="even 2 pairs take"):
        run(changed, folder, resume=True, resolver=AutoResolver(limit=1000))
    assert here == [2**40, 1000]


def test_an_open_batch_that_nothing_settles_is_refused_before_anything_runs(tmp_path):
    recipe = toy.recipe(tmp_path, "stages.0.batch_size=auto")
    with pytest.raises(RecipeError, match="stage 'one': `batch_size: auto` is not resolved"):
        run(recipe, tmp_path / "run")


def test_a_run_that_cannot_be_says_the_same_when_it_is_planned(here, tmp_path):
    recipe = toy.recipe(tmp_path, "stages.0.batch_size=4000")
    with pytest.raises(DataError) as planned:
        make_plan(recipe, say=print)
    with pytest.raises(DataError) as ran:
        run(recipe, tmp_path / "run")
    assert str(planned.value) == str(ran.value)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Give other processes the toy modalities too."""
    site = tmp_path / "site"
    site.mkdir()
    here = Path(toy.__file__).parent
    text = f"import sys; sys.path.append({str(here)!r})\nimport toy\ntoy.install()\n"
    (site / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    return site


def test_the_command_prints_a_plan_keeps_it_where_it_is_told_and_leaves_no_process(elsewhere, tmp_path):
    toy.recipe(tmp_path)
    words = ["plan", str(tmp_path / "toy.yaml"), "--seconds", "1", "--json", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == storage.read_json(tmp_path / "run" / "plan.json")
    assert set(told) >= {
        "recipe",
        "device",
        "memory",
        "stages",
        "seconds",
        "memory_bytes",
        "disk_bytes",
        "notes",
    }
    stage = told["stages"][1]
    assert set(stage["seconds"]) == {"step", "loading", "epoch", "filling", "watching", "other", "stage"}
    assert (stage["name"], stage["way"], stage["steps"], stage["epoch_steps"]) == ("two", "cached", 7, 6)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["plan.json"]
    assert stage["cached"]["cold"] == {"rows": 96, "missing": 96, "bytes": 96 * (2 * 8 + 20)}
    assert not (tmp_path / "cache" / "embeddings").exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            r"was killed \(starting\).* memory is full",
        ),
        ("import sys; print('oh', file=sys.stderr); sys.exit(3)", r"failed \(starting; exit code 3\):\n  oh"),
        ('print(\'["error", ["DataError", "no rows"]]\')', "no rows"),
        ("", "ended before it had measured"),
    ],
)
def test_a_measuring_process_that_dies_is_told_with_what_it_was_doing(
    monkeypatch, tmp_path, program, message
):
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(auto.sys, "executable", str(script))
    with pytest.raises((TrainingError, DataError), match=message):
        make_plan(toy.recipe(tmp_path), say=lambda _: None)


def test_a_table_for_people_fits_a_terminal(monkeypatch, tmp_path):
    stages = stage_found("one"), stage_found("two", filling=filling(), most=64)
    monkeypatch.setattr(
        auto, "run_probe_process", lambda *_, **options: all_found(*stages, available=options["limit"])
    )
    toy.recipe(tmp_path)
    result = CliRunner().invoke(main, ["plan", str(tmp_path / "toy.yaml"), "--memory", "1TB"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if line.startswith(("one ", "two ", "whole run")))
    assert any(line.startswith("one: direct: 16 pairs at once take") for line in lines)
    assert "900.0" in result.stdout  # of the terabyte, what is counted on
    wrong = CliRunner().invoke(main, ["plan", str(tmp_path / "toy.yaml"), "--memory", "lots"])
    assert wrong.exit_code == 2 and "write it as 8GiB" in wrong.output
