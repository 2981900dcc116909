"""The rules of the house: imports go down, the core knows no plugin by name, and it starts quickly."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from geobind import extras, hookspecs, plugins
from geobind.data.dataset import registry as datasets

ROOT = Path(__file__).parent.parent
CORE = ROOT / "geobind"

# From the ground up: a module imports from lines above its own, never from its own line or below it.
LAYERS = """
errors
utils extras
modality licences hub
hookspecs inference precision
plugins
data loggers pretrained
recipe towers importers
scoring
bridge fusion export
fuser runtimes
bundles
binder
evaluation embedding_cache archive
report
search
maps
training
losses planning
studies
doctor scaffold serving
testing cli
__main__
""".split("\n")[1:-1]
LAYER = {module: height for height, line in enumerate(LAYERS) for module in line.split()}

# The same inside training: losses, the trained module, its gradients, the optimizer, a stage, a run.
TRAINING_LAYERS = """
fabric metrics ema blocks resume losses lora_attention
interruption distributed
fsdp
checkpoint lora sync_batchnorm
encoder_transforms
trainable
cache loss_inputs module fuser_rows
gradients
optimizer launch
validation
stage stage_data run_loggers
stability
results
run
""".split("\n")[1:-1]

# Files of over 700 lines, and why each is one subject.
LONG = {}

# Modules of under 60 lines with one importer, in their own package, and why each stands alone.
SMALL = {
    "hookspecs.py": "what plugin authors read and import",
    "training/lora_attention.py": "imports peft, which only adapters need",
}

# Strings in code that are the name of a built-in modality or dataset, and why each may be.
NAMED = {
    ("recipe/schema.py", "satellite"): "the default anchor",
    ("recipe/schema.py", "text"): "the default modality that reads a question",
    ("binder.py", "satellite"): "the default anchor",
    ("binder.py", "text"): "the default modality that describes classes",
    ("towers/clip.py", "text"): "open_clip's word for a tower",
    ("modality.py", "text"): "a widget of pages, where words are given",
    ("serving/explorer.py", "text"): "a widget of pages, where words are given",
    ("testing/contract.py", "text"): "the widget whose strings are words",
    ("export/inputs.py", "text"): "the same widget",
    ("extras.py", "earth"): "a modality in plugins/, of embeddings of the Earth",
    ("export/wrappers.py", "text"): "a kind of input of other libraries",
    ("export/wrappers.py", "audio"): "a kind of input of other libraries",
    ("data/options.py", "toyearth"): "a key that fingerprints of stages have always held",
    ("search/query.py", "text"): "the widget whose strings are words",
    ("cli/search.py", "text"): "the default modality that describes classes",
    ("cli/__init__.py", "toyearth"): "the command that writes it as files",
    ("cli/data.py", "toyearth"): "the command that writes it as files",
}

FILES = [path.relative_to(CORE).as_posix() for path in sorted(CORE.rglob("*.py"))]
TEXTS = {name: (CORE / name).read_text(encoding="utf-8") for name in FILES}
TREES = {name: ast.parse(text) for name, text in TEXTS.items()}


def module_of(name):
    return name.split("/")[0].removesuffix(".py")


def parts(tree):
    """Every node of a tree, save what stands under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from parts(node)


def imports(tree):
    for node in parts(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def strings(tree):
    """String constants that are no docstrings."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    }


def identifiers(tree):
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


def built_ins():
    """The names of the modalities and datasets that come with geobind, and the modules of all its plugins."""
    found = [*plugins.registry().plugins.items(), *datasets().plugins.items()]
    names = {name for name, plugin in found if plugin.source.distribution == "geobind"}
    return names, {
        entry.value.split(".")[0] for entry in plugins.list_entry_points() if entry.dist.name == "geobind"
    }


def hooks():
    """The names of the hooks, in the order of their specifications."""
    marker = f"{hookspecs.hookspec.project_name}_spec"
    return {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, marker)}.keys()


def found_in(files, find):
    """Return the findings of `find` by file, of files that have any."""
    return {name: found for name in files if (found := find(name))}


def test_every_module_has_one_place_in_the_order():
    assert {module_of(name) for name in FILES} - {"__init__"} <= set(LAYER)
    assert len(LAYER) == sum(len(line.split()) for line in LAYERS)


def test_imports_go_down():
    def upward(name):
        here = module_of(name)
        imported = {path.split(".")[1] for path in imports(TREES[name]) if path.startswith("geobind.")} - {
            here
        }
        return {there for there in imported if LAYER.get(there, 0) >= LAYER.get(here, len(LAYERS))}

    assert found_in(FILES, upward) == {}


def test_the_core_does_not_import_its_test_kit_nor_pytest():
    def kits(name):
        kit = (
            ("pytest", "_pytest")
            if module_of(name) == "testing"
            else ("pytest", "_pytest", "geobind.testing")
        )
        return {
            path for path in imports(TREES[name]) if f"{path}.".startswith(tuple(f"{word}." for word in kit))
        }

    assert found_in(FILES, kits) == {}


def test_the_core_names_no_built_in_modality_or_dataset():
    names, modules = built_ins()
    # "text", "audio", "earth" are also words of the language, in identifiers; these are names of ours alone.
    ours = (modules - hooks()) | {word for word in names if "_" in word} | {*datasets().plugins} - {"earth"}

    def named(name):
        said = {word for word in strings(TREES[name]) & names if (name, word) not in NAMED}
        imported = {path for path in imports(TREES[name]) if path.split(".")[0] in modules}
        return (
            said | imported | {word for word in identifiers(TREES[name]) if any(our in word for our in ours)}
        )

    assert names == {"audio", "earth", "ground_image", "satellite", "text", "toyearth", "vector"}
    assert found_in(FILES, named) == {}


def test_each_name_the_core_may_say_is_said():
    assert all(word in strings(TREES[name]) for name, word in NAMED)


def test_a_module_imports_optional_packages_only_when_they_are_needed():
    def optional(name):
        body = [node for node in TREES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
        tops = {path.split(".")[0] for path in imports(ast.Module(body, []))}
        return tops & {*extras.INSTALL, "torchaudio"}

    # Imported by lora.py and by the command in the function that needs them.
    needing = {"training/lora_attention.py": {"peft"}, "serving/app.py": {"fastapi", "uvicorn"}}
    assert found_in(FILES, optional) == needing


def test_open_clip_and_timm_are_imported_each_by_the_towers_that_need_it():
    def heavy(name):
        body = [node for node in TREES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
        found = {path for path in imports(ast.Module(body, []))}
        return {
            word
            for word in ("open_clip", "timm", "geobind.towers.clip", "geobind.towers.timm")
            if any(f"{path}.".startswith(f"{word}.") for path in found)
        }

    assert found_in(FILES, heavy) == {"towers/clip.py": {"open_clip"}, "towers/timm.py": {"timm"}}


@pytest.mark.parametrize("module", ["geobind", "geobind.plugins", "geobind.recipe", "geobind.cli"])
def test_importing_what_every_command_needs_does_not_import_torch(module):
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_fabric_is_imported_in_one_place_which_keeps_torchmetrics_and_transformers_out():
    def fabric(name):
        return {path for path in imports(TREES[name]) if path.split(".")[0] == "lightning_fabric"}

    assert set(found_in(FILES, fabric)) == {"training/fabric.py"}
    heavy = "{'torchmetrics', 'transformers'}"
    code = f"import geobind.training.fabric, sys; sys.exit(len({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_hook_has_a_section_in_the_documentation():
    headings = re.findall(
        r"^## `(\w+)`$", (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert headings == [*hooks()]


def test_imports_inside_training_go_down():
    height = {module: n for n, line in enumerate(TRAINING_LAYERS) for module in line.split()}
    files = [name for name in FILES if name.startswith("training/") and name != "training/__init__.py"]
    place = {name: name.split("/")[1].removesuffix(".py") for name in files}

    def upward(name):
        here = place[name]
        paths = (path.split(".") for path in imports(TREES[name]))
        imported = {path[2] for path in paths if path[:2] == ["geobind", "training"]} - {here}
        return {there for there in imported if height[there] >= height[here]}

    assert set(place.values()) == set(height)
    assert found_in(files, upward) == {}


@functools.cache
def imported_files(name):
    """Files of the core that a file imports, also inside functions."""
    found = set()
    for path in imports(TREES[name]):
        words = path.split(".")
        tries = ["/".join(words[1:end]) for end in (len(words), len(words) - 1) if words[0] == "geobind"]
        files = (file for stem in tries for file in (f"{stem}.py", f"{stem}/__init__.py") if file in TEXTS)
        found |= {next(files, name)}  # `from geobind.a import b` is the file a/b.py where there is one
    return found - {name}


def test_no_file_imports_itself_through_others():
    graphlib.TopologicalSorter({name: imported_files(name) for name in FILES}).prepare()


def test_long_files_have_a_reason():
    assert {name for name in FILES if TEXTS[name].count("\n") > 700} == set(LONG)


def test_small_modules_with_one_reader_in_their_package_have_a_reason():
    readers = {name: {file for file in FILES if name in imported_files(file)} for name in FILES}

    def small(name):
        alone = len(readers[name]) == 1 and Path(*readers[name]).parent == Path(name).parent
        return alone and TEXTS[name].count("\n") < 60 and not Path(name).name.startswith("__")

    assert {name for name in FILES if small(name)} == set(SMALL)


def test_a_class_name_means_one_thing():
    trees = TREES | {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "modalities").rglob("*.py"))
    }
    homes = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, set()).add(file)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_every_package_is_distributed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    roots = {ROOT: "geobind", ROOT / "modalities": ""}
    there = {
        ".".join(path.parent.relative_to(root).parts)
        for root, top in roots.items()
        for path in (root / top).rglob("__init__.py")
    }
    assert set(listed["packages"]) == there | {"geobind.recipes"}
    assert set(listed["py-modules"]) == {path.stem for path in (ROOT / "modalities").glob("*.py")}


def test_no_assert_stands_between_a_user_and_a_message():
    assert (
        found_in(FILES, lambda name: [n.lineno for n in ast.walk(TREES[name]) if isinstance(n, ast.Assert)])
        == {}
    )


def test_no_test_module_imports_another():
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    names = {path.stem for path in tests}

    def borrowed(path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name in [node.module]
            if name in names
        }

    assert {path.name: found for path in tests if (found := borrowed(path))} == {}


def test_docstrings_name_what_they_describe():
    opener = re.compile(r"\s*(What|Say|Says|Tell|Tells|See|Let)\b")

    def vague(name):
        owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = (node for node in ast.walk(TREES[name]) if isinstance(node, owners))
        return {text.split("\n")[0] for node in nodes if opener.match(text := ast.get_docstring(node) or "")}

    assert found_in(FILES, vague) == {}
