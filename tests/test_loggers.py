"""Loggers: how recipes name them, what they are given, what happens when one fails; the built-in ones."""

import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import toy

import geobind
from geobind.errors import PluginError
from geobind.loggers import About, FabricWriter, Logger, registry
from geobind.recipe.parsing import RecipeProblems
from geobind.training.run import run

MODALITIES = Path(geobind.__file__).parent.parent / "modalities"


class Notebook:
    """A writer that remembers."""

    pages: ClassVar[list["Notebook"]] = []

    def __init__(self, about):
        self.about, self.rows, self.closed = about, [], False
        self.pages.append(self)

    def numbers(self, values, step):
        self.rows.append((step, values))

    def close(self):
        self.closed = True


class Notes(Logger):
    name: ClassVar[str] = "notes"
    paper: str = "white"

    def open(self, about):
        return Notebook(about)


class Torn(Logger):
    name: ClassVar[str] = "torn"

    def open(self, about):
        raise ConnectionError("no route to host")


class Absent(Logger):
    name: ClassVar[str] = "absent"
    needs: ClassVar[str] = "no_such_package"
    install: ClassVar[str] = "pip install 'geobind[absent]'"

    def open(self, about):
        raise AssertionError


@pytest.fixture
def installed(monkeypatch):
    """Loggers as if their plugins were installed, beside the toy modalities."""
    from geobind.plugins import Plugin, Source

    monkeypatch.setattr("geobind.plugins.registry", toy.registry)
    monkeypatch.setattr("geobind.report.write_report", lambda *_, **__: None)
    built_in = load_built_in(monkeypatch)
    classes = (Notes, Torn, Absent, *built_in)
    known = {cls.name: Plugin(cls, Source(cls.name, "toy", "1.0")) for cls in classes}
    made = sys.modules["geobind.loggers"]
    monkeypatch.setattr(made, "registry", lambda: made.Registry("logger", known, ()))
    monkeypatch.setattr(Notebook, "pages", [])
    torch.set_num_threads(1)


def load_built_in(monkeypatch):
    monkeypatch.syspath_prepend(str(MODALITIES))
    entry = EntryPoint("loggers", "geobind_logging", "geobind")
    return sys.modules["geobind.loggers"].LOGGER.load(entry)


def go(folder, *overrides, resume=False):
    folder.mkdir(exist_ok=True)
    recipe = toy.recipe(folder, "fabric.accelerator=cpu", "stages.0.epochs=1", *overrides)
    return run(recipe, folder / "run", resume=resume).folder


def test_a_logger_gets_the_figures_of_every_step_of_every_stage(installed, tmp_path):
    go(tmp_path, "loggers=[notes]", "stages.0.watch={every: 4, limit: 20, measure: R@1}")
    one, two = Notebook.pages
    assert (one.about.stage, two.about.stage) == ("one", "two") and one.closed and two.closed
    assert one.about.recipe["width"] == 8 and "width: 8" in one.about.recipe_text
    steps = [step for step, values in one.rows if "loss" in values]
    assert steps == list(range(6)) and one.about.first_step == 0
    assert set(one.rows[0][1]) == {"loss", "temperature", "lr", "grad_norm", "samples_per_second"}
    seen = [(step, set(values)) for step, values in one.rows if "loss" not in values]
    assert seen == [(s, {"validation/loss", "validation/R@1", "validation/best"}) for s in (3, 5)]


def test_pairs_have_figures_of_their_own(installed, tmp_path):
    toy.write_wheel(tmp_path / "wheel.jsonl")
    run(toy.recipe(tmp_path, "loggers=[{name: notes}]", "stages.0.steps=2", text=toy.WHEEL), tmp_path / "run")
    assert {"loss/hub-spoke", "temperature/hub-rim"} <= set(Notebook.pages[0].rows[0][1])


def test_a_resumed_stage_says_from_which_step_figures_come_again(installed, tmp_path, monkeypatch):
    from geobind.training import metrics

    class Killed(BaseException):
        pass

    real = metrics.Recorder.add

    def dies(self, step, broken):
        if step.number == 4:
            raise Killed
        real(self, step, broken)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Recorder, "add", dies)
        with pytest.raises(Killed):
            go(tmp_path, "loggers=[notes]")
    assert Notebook.pages[0].closed
    go(tmp_path, "loggers=[notes]", resume=True)
    assert [page.about.first_step for page in Notebook.pages] == [0, 4, 0]
    assert [step for step, _ in Notebook.pages[1].rows] == [4, 5]


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(installed, tmp_path, logged):
    folder = go(tmp_path, "loggers=[torn, notes]")
    said = logged()
    assert said.count("warning: logger 'torn' failed and is left out from now on: no route to host") == 1
    assert (folder / "bundle").is_dir() and len(Notebook.pages) == 2


def test_loggers_do_not_change_what_is_trained_nor_make_a_stage_run_again(installed, tmp_path, logged):
    go(tmp_path)
    go(tmp_path, "loggers=[notes]", resume=True)
    assert logged().count("finished before, unchanged; not run again") == 2
    assert Notebook.pages == []


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("[note]", "loggers.0: no logger named 'note'; did you mean 'notes'?"),
        ("[{name: notes, papr: red}]", "logger 'notes' has no option 'papr'; did you mean 'paper'?"),
        (
            "[notes, {name: notes, paper: 3}]",
            "loggers.1: logger 'notes': paper: Input should be a valid string",
        ),
        (
            "[absent]",
            "loggers.0: logger 'absent' needs no_such_package, which is not installed: "
            "pip install 'geobind[absent]'",
        ),
        ("[{paper: red}]", "loggers.0.name: missing; it must be given"),
    ],
)
def test_mistakes_about_loggers_are_found_with_the_recipe(installed, tmp_path, said, answer):
    with pytest.raises(RecipeProblems) as caught:
        toy.recipe(tmp_path, f"loggers={said}")
    assert answer in str(caught.value)


def test_the_built_in_loggers_come_through_the_hook(monkeypatch):
    assert [cls.name for cls in load_built_in(monkeypatch)] == ["tensorboard", "wandb", "mlflow"]
    for cls in load_built_in(monkeypatch):
        assert cls.install.startswith("pip install") and cls.needs


def about(folder, first_step=0):
    return About("toy", folder, "one", first_step, {"width": 8}, "width: 8\n")


def built_in(monkeypatch, name):
    return next(cls for cls in load_built_in(monkeypatch) if cls.name == name)()


def test_tensorboard_shows_figures_and_the_recipe_and_forgets_what_comes_again(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = built_in(monkeypatch, "tensorboard")
    first = logger.open(about(tmp_path))
    for step in range(4):
        first.numbers({"loss": float(step), "validation/R@10": 0.5}, step)
    first.close()
    again = logger.open(about(tmp_path, first_step=2))
    again.numbers({"loss": 9.0}, 2)
    again.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "one"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (1, 1.0), (2, 9.0)]
    assert "validation/R_at_10" in events.Tags()["scalars"]
    assert any("recipe" in tag for tag in events.Tags()["tensors"])
    anew = logger.open(about(tmp_path))  # the stage begins again: nothing of before is shown
    anew.numbers({"loss": 1.5}, 0)
    anew.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "one"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == [1.5]


def test_weights_and_biases_gets_a_run_for_each_stage_which_is_resumed_with_it(tmp_path, monkeypatch):
    asked, logged = [], []
    run_ = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("end")
    )
    fake = types.SimpleNamespace(init=lambda **how: asked.append(how) or run_)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    logger = built_in(monkeypatch, "wandb")
    for first in (0, 3, 0):
        writer = logger.open(about(tmp_path, first))
        writer.numbers({"loss": 1.0}, first)
        writer.close()
    ids = [how["id"] for how in asked]
    assert ids[0] == ids[1] != ids[2] and asked[0]["group"] == "toy" and asked[0]["project"] == "geobind"
    assert asked[0]["config"]["recipe"] == {"width": 8}
    assert logged[:3] == [(0, {"loss": 1.0}), "end", (3, {"loss": 1.0})]


def test_mlflow_gets_a_run_for_each_stage_under_names_it_allows(tmp_path, monkeypatch):
    told = []

    class Client:
        def __init__(self, tracking_uri=None):
            told.append(tracking_uri)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"experiment {name}"

        def create_run(self, home, run_name):
            told.append((home, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run{len(told)}"))

        def log_text(self, run, text, file):
            told.append((file, text))

        def log_metric(self, run, name, value, step):
            told.append((run, name, value, step))

        def set_terminated(self, run):
            told.append(f"{run} ends")

    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client))
    writer = built_in(monkeypatch, "mlflow").open(about(tmp_path))
    writer.numbers({"validation/R@10": 0.5}, 7)
    writer.close()
    assert told == [
        None,
        ("experiment toy", "one"),
        ("recipe.yaml", "width: 8\n"),
        ("run2", "validation/R_10", 0.5, 7),
        "run2 ends",
    ]


def test_a_logger_of_lightning_fabric_can_be_handed_figures(tmp_path):
    from lightning_fabric.loggers import CSVLogger

    logger = CSVLogger(str(tmp_path), name="x", version="y")
    writer = FabricWriter(logger)
    writer.numbers({"loss": 2.0}, 3)
    writer.close()
    assert (tmp_path / "x" / "y" / "metrics.csv").read_text().split() == ["loss,step", "2.0,3"]


def test_a_missing_package_is_one_error_with_the_command(monkeypatch):
    with pytest.raises(PluginError, match=r"needs no_such_package.*pip install 'geobind\[absent\]'"):
        Absent().check()


def test_every_installed_plugin_can_be_asked_for_loggers():
    assert registry().broken == () and all(issubclass(cls, Logger) for cls, _ in registry().plugins.values())
