"""Modalities that no installed package provides: classes of a notebook, and files that a recipe names."""

import subprocess
import sys
import textwrap

import pytest
from click.testing import CliRunner

import geobind
from geobind import Binder, Modality, load_recipe, plugins
from geobind.bundles.bundle import push_to_hub
from geobind.cli import main
from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import PluginError
from geobind.recipe import RecipeProblems

CLASS = '''
from geobind import Modality


class Slope(Modality):
    """Two numbers."""

    name = "slope"
    role = "trainable"
    size: int = 2

    def encoder(self, width, *, pretrained=True):
        from torch import nn

        return nn.Linear(self.size, width)

    def prepare(self, raw, *, training=False):
        import torch

        return torch.as_tensor(raw)
'''
FILE = (
    "import geobind\n"
    + CLASS
    + """

class Aspect(Slope):
    name = "aspect"


@geobind.hookimpl
def geobind_modalities():
    return [Slope, Aspect]
"""
)
RECIPE = """
name: hills
width: 8
anchor: slope
plugins: [./{file}.py]
modalities: {{slope: {{}}, aspect: {{}}}}
data: {{manifest: hills.csv, columns: {{slope: [a, b], aspect: [c, d]}}}}
stages:
  - {{name: bind, align: aspect, train: [slope, aspect], batch_size: 8, steps: 2}}
workers: 0
fabric: {{accelerator: cpu}}
"""


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch, request):
    """Forget what a test registers, and give its file a name that no other test imports."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(plugins, "_registered", {})
    plugins.registry.cache_clear()
    yield
    plugins.registry.cache_clear()


def slope_class():
    scope = {"__name__": "notebook"}
    exec(CLASS, scope)
    return scope["Slope"]


def write_recipe(folder, file):
    (folder / f"{file}.py").write_text(FILE)
    (folder / "hills.yaml").write_text(RECIPE.format(file=file))
    rows = "".join(f"{i},{i * i},{-i},1\n" for i in range(16))
    (folder / "hills.csv").write_text("a,b,c,d\n" + rows)
    return folder / "hills.yaml"


def cli(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_class_is_registered_and_returned():
    cls = geobind.register(slope_class())
    assert plugins.registry().get("slope") is cls
    assert str(plugins.registry().plugins["slope"].source) == "(registered) 0 [Slope]"


def test_a_cell_that_is_run_again_replaces_its_class():
    geobind.register(slope_class())
    again = geobind.register(slope_class())
    assert plugins.registry().get("slope") is again


def test_a_name_that_a_plugin_provides_is_not_taken_from_it():
    class Other(slope_class()):
        name = "satellite"

    with pytest.raises(PluginError, match=r"'satellite' is provided by geobind .* already; give Other"):
        geobind.register(Other)


def test_a_faulty_class_is_refused_as_a_plugin_would_be():
    with pytest.raises(PluginError, match="does not implement encoder, prepare"):
        geobind.register(type("Empty", (Modality,), {"name": "empty", "role": "frozen", "__module__": "x"}))


def test_a_bundle_of_a_class_that_is_not_registered_is_refused_when_saved(tmp_path):
    binder = Binder({"slope": slope_class()()}, 8)
    with pytest.raises(PluginError) as refusal:
        binder.save(tmp_path / "bundle")
    assert str(refusal.value) == (
        "'slope' is not saved: no plugin provides notebook.Slope, so the bundle could not be loaded; write "
        "@geobind.register above the class to load it where the class is registered, or make a package of it "
        "to load it anywhere: geobind new modality slope"
    )
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_a_registered_class_loads_where_the_class_is_registered_and_says_so_elsewhere(tmp_path):
    binder = Binder({"slope": geobind.register(slope_class())()}, 8, seed=0)
    binder.save(tmp_path / "bundle")
    again = Binder.load(tmp_path / "bundle")
    raws = [[1.0, 2.0], [3.0, -4.0]]
    assert again.embed("slope", raws).equal(binder.embed("slope", raws))
    plugins._registered.clear()
    plugins.registry.cache_clear()
    with pytest.raises(PluginError, match=r"it was never installed there: name its file") as refusal:
        Binder.load(tmp_path / "bundle")
    assert "pip install" not in str(refusal.value)


def test_a_bundle_of_a_registered_class_is_not_published():
    binder = Binder({"slope": geobind.register(slope_class())()}, 8, seed=0)
    with pytest.raises(PluginError, match=r"cannot publish 'me/hills': 'slope' is of \(registered\)"):
        push_to_hub(binder, "me/hills")


def test_a_recipe_names_the_file_of_its_plugins(tmp_path, monkeypatch):
    recipe = load_recipe(write_recipe(tmp_path, "hill_shapes"))
    assert type(recipe.built["slope"]).__module__ == "hill_shapes"
    assert plugins.registry().plugins["aspect"].source.distribution == "./hill_shapes.py"
    result = cli("check", tmp_path / "hills.yaml")
    assert result.exit_code == 0, result.output
    assert "note: 'slope' is of ./hill_shapes.py " in result.output


@pytest.mark.slow
def test_a_run_with_a_plugin_file_ends_with_a_bundle_that_its_owner_can_use(tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path, "hill_runs")
    run = tmp_path / "run"
    geobind.run(recipe, run)
    script = f"from geobind import Binder; print(Binder.load({str(run / 'bundle')!r}).width)"
    alone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "geobind.register('FILE.py')" in alone.stderr
    script = f"import geobind; geobind.register({str(tmp_path / 'hill_runs.py')!r}); {script}"
    with_file = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert with_file.stdout.strip() == "8", with_file.stderr
    plugins._registered.clear()
    plugins.registry.cache_clear()
    asked = ("eval", run / "bundle", "--data", tmp_path / "hills.csv", "--split", "train")
    asked += ("--column", "slope=a,b", "--column", "aspect=c,d")
    assert "it was never installed there" in cli(*asked).output
    result = cli("--plugin", tmp_path / "hill_runs.py", *asked)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone", None, "No such file or directory; name a Python file of yours"),
        ("broken_hills", "import flir_sdk", "ModuleNotFoundError: No module named 'flir_sdk'"),
        ("silent_hills", "x = 1", "it provides no modality: no function geobind_modalities"),
        ("json", FILE, "there is another module 'json' already; rename the file"),
        ("my-hills", FILE, "not the name of a Python file; call it such as my_modality.py"),
    ],
)
def test_a_plugin_file_that_cannot_be_used_is_named_with_its_line(name, text, message, tmp_path):
    recipe = write_recipe(tmp_path, "unused")
    recipe.write_text(recipe.read_text().replace("./unused.py", f"./{name}.py"))
    if text:
        (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(RecipeProblems) as problems:
        load_recipe(recipe)
    first = str(problems.value).splitlines()[0]
    assert first.startswith(f"{recipe}:5:11: plugins.0: {tmp_path / name}.py: ") and message in first


def test_a_recipe_in_the_folder_of_a_bundle_imports_nothing(tmp_path):
    recipe = write_recipe(tmp_path, "strange_hills")
    (tmp_path / "strange_hills.py").write_text("raise SystemExit('imported')")
    (tmp_path / "binder.json").write_text("{}")
    with pytest.raises(RecipeProblems, match="plugins: code is not taken from the folder of a bundle"):
        load_recipe(recipe)
    assert "strange_hills" not in sys.modules


def test_a_file_that_has_changed_is_read_again(tmp_path):
    file = tmp_path / "growing_hills.py"
    file.write_text(FILE)
    geobind.register(file)
    before = plugins.registry().plugins["slope"].source.version
    file.write_text(FILE.replace("size: int = 2", "size: int = 33333"))
    geobind.register(file)
    assert plugins.registry().get("slope")().size == 33333
    assert plugins.registry().plugins["slope"].source.version != before


@pytest.mark.slow
def test_a_worker_process_of_another_start_method_finds_the_class(tmp_path):
    (tmp_path / "far_hills.py").write_text(FILE)
    script = textwrap.dedent(f"""
        import multiprocessing
        import geobind
        from geobind import plugins
        if __name__ == "__main__":
            geobind.register({str(tmp_path / "far_hills.py")!r})
            modality = plugins.registry().get("slope")()
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(modality.prepare, ([1.0, 2.0],)).tolist())
    """)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert done.stdout.strip() == "[1.0, 2.0]", done.stderr


def test_a_top_level_anchor_is_not_needed_where_every_stage_names_its_own(tmp_path):
    recipe = write_recipe(tmp_path, "own_anchors")
    text = recipe.read_text().replace("anchor: slope\n", "")
    recipe.write_text(text)
    with pytest.raises(RecipeProblems, match="anchor: no modality 'satellite'"):
        load_recipe(recipe)
    recipe.write_text(text.replace("align: aspect", "anchor: slope, align: aspect"))
    assert load_recipe(recipe).names_of(load_recipe(recipe).stages[0]) == ("slope", "aspect")
    recipe.write_text(recipe.read_text() + "anchor: slpe\n")
    with pytest.raises(RecipeProblems, match="anchor: no modality 'slpe'"):
        load_recipe(recipe)


def test_vectors_of_a_recipe_reach_the_modality(tmp_path):
    write_recipe(tmp_path, "unused")
    table = open_table(DataOptions(manifest="hills.csv", columns={"slope": ("a", "b")}), tmp_path, ["slope"])
    assert table.samples("slope")[3].tolist() == [3.0, 9.0]
