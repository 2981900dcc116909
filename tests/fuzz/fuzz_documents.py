"""Documents to be damaged: recipes, sweep files, files of a run and of its bundle; and how each is read."""

import json
import os
import re
import shutil
import sys
import tempfile
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "helpers"))
ROOT = HERE.parents[1]
SECRET = "a secret of the environment"

STAGES = """\
name: toy
width: 8
anchor: hub
workers: 0
fabric: {accelerator: cpu}
modalities: {hub: {}, spoke: {}, rim: {}}
data: {manifest: toy.jsonl}
stages:
  - {name: one, align: spoke, train: [hub, spoke], batch_size: 16, steps: 4,
     watch: {every: 2, split: val}, optimizer: {name: adamw, lr: 0.01}}
  - {name: two, align: [spoke, rim], pairs: all, train: [spoke, rim], batch_size: 16, steps: 3,
     schedule: {name: warm_restarts, period: 3}, optimizer: {name: adamw, lr: 0.01}}
evaluate: {split: test, calibrate: fit, sums: [hub+spoke:rim]}
card: {use: "tests", not_for: "use", licence: CC-BY-4.0}
"""
# The files of a run that are damaged; all that are there when it has ended.
RUN = (
    "run.json", "recipe.yaml", "metrics.csv", "validation.csv", "stages/01_one/stage.json", "retrieval.json",
    "gap.json", "leakage.json", "calibration.json", "arithmetic.json", "plan.json",
)  # fmt: skip
BUNDLE = ("binder.json", "model.safetensors")


def seeds():
    """Return documents by kind; those of the run beside this file are called after its files."""
    shipped = [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    sweeps = [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*/*.yaml"))]
    made = {"recipe": [STAGES.encode(), *shipped], "sweep": sweeps}
    made |= {
        f"run:{name}": [(HERE / "run" / name).read_bytes()] for name in RUN if (HERE / "run" / name).is_file()
    }
    return made | {f"bundle:{name}": [(HERE / "run" / "bundle" / name).read_bytes()] for name in BUNDLE}


YAML = [
    *"2024-01-01 ~ ${name} ${stages.0.name} ${a.${b}} .nan .inf 1e400 1e-300 1e300 -1 0 99999999999".split(),
    *"123456789012345678901234567890 [] {} [[1]] *x yes ../.. /etc/passwd hf-hub:evil/x".split(),
    *"local-dir:/etc auto null infonce siglip << hub text 1:30 0x7f ' [[[[[[[[".split(),
    *("!!binary aGk=", "!!set {a, b}", '"${name} ${oc.env:HF_TOKEN}"', "{a: 1}", "&x [*x]", "&x 1"),
    *('"\\ud800"', '"\\0"', "!mine 3", "? a", "- 1", '"'),
]
JSON = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 1e-300, 1e300, -0.5, float("nan"), float("inf")),
    *("", "x", "../../x", "\ud800", "a\0b", "9" * 400, "2024-13-45", "<script>", "|", "x" * 5000),
    *([], {}, [[]], [1, "a", None], {"a": {}}, {"": None}),
)


def damaged_yaml(content, rng):
    """Return a document of which one to four words are others, or lines are moved, doubled or shifted."""
    text = content.decode()
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.8:
            words = list(re.finditer(r"[\w.+/-]+", text))
            if words:
                word = rng.choice(words)
                text = text[: word.start()] + rng.choice(YAML) + text[word.end() :]
        else:
            lines = text.split("\n")
            at = rng.randrange(len(lines))
            lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, ["  " + lines[at]], [lines[at][1:]]))
            text = "\n".join(lines)
    return text.encode("utf-8", "surrogatepass")


def damaged_json(content, rng):
    """Return a document of which one to four values are others, gone, or under another key."""
    whole = [json.loads(content)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = whole, 0
        while (
            isinstance(holder[key], dict | list) and holder[key] and (holder is whole or rng.random() < 0.75)
        ):
            holder = holder[key]
            key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        if holder is whole or rng.random() < 0.7:
            holder[key] = deepcopy(rng.choice(JSON))  # a later change must not reach the list
        elif rng.random() < 0.5:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(("", "x", "a.b", "name"))] = holder.pop(key)
        else:
            holder.append(deepcopy(holder[key]))
    return json.dumps(whole[0]).encode("utf-8", "surrogatepass")


def damaged(kind, content, rng):
    """Return a copy that is damaged as its kind invites it, or None for a kind of no such form."""
    if kind in ("recipe", "sweep") or kind.endswith(".yaml"):
        return damaged_yaml(content, rng)
    return damaged_json(content, rng) if kind.endswith(".json") else None


def calls(kind, content, folder):
    """Return the calls that read a document of this kind."""
    folder = Path(folder)
    os.environ["HF_TOKEN"] = SECRET
    if kind in ("recipe", "sweep"):
        path = folder / f"{kind}.yaml"
        path.write_bytes(content)
        return [lambda: recipe(path)] if kind == "recipe" else [lambda: sweep(path)]
    place, _, name = kind.partition(":")
    copy = damaged_run(Path("bundle", name) if place == "bundle" else Path(name), content)
    if name == "model.safetensors":
        return [lambda: bundle(copy / "bundle")]
    if place == "bundle":
        return [lambda: bundle(copy / "bundle"), lambda: report(copy)]
    return [lambda: report(copy), lambda: comparison(copy)]


@cache
def copied_run():
    """Return a copy of the run that this process damages."""
    copy = Path(tempfile.mkdtemp()) / "run"
    return shutil.copytree(HERE / "run", copy, ignore=shutil.ignore_patterns("trained.safetensors"))


damages = []  # the file of the copied run that is damaged, once for each item


def damaged_run(name, content):
    """Return a run of which one file is other than it was; what the last item damaged is whole again."""
    copy = copied_run()
    if damages:
        shutil.copyfile(HERE / "run" / damages[-1], copy / damages[-1])
    damages.append(name)
    (copy / name).write_bytes(content)
    return copy


def install():
    """Make the modalities of the run known to this process; read and parse only once what is whole."""
    import toy

    from geobind import plugins
    from geobind.report import comparison, page, run_files

    whole = (HERE / "run" / "recipe.yaml").read_text(encoding="utf-8")
    parse, read = run_files.parse_yaml, run_files.read_run
    parsed = parse(whole, "recipe.yaml")
    run_files.parse_yaml = lambda text, file: deepcopy(parsed) if text == whole else parse(text, file)
    reference = read(HERE / "run")
    once = lru_cache(maxsize=1)(lambda folder, item: read(folder))
    page.read_run = comparison.read_run = lambda folder: (
        reference if folder == HERE / "run" else once(folder, len(damages))
    )
    known, built_in = toy.registry(), plugins.registry()
    known.plugins.update(built_in.plugins)
    plugins.registry = lambda: known


def recipe(path):
    from geobind.recipe import load_recipe
    from geobind.recipe.describe import describe_details, describe_stage, recipe_warnings, stage_facts
    from geobind.recipe.parsing import dump_yaml

    loaded = load_recipe(path, files=False)
    for stage in loaded.stages:
        describe_stage(loaded, stage), stage_facts(loaded, stage)
        list(describe_details(loaded, stage)), list(recipe_warnings(loaded, stage))
    if SECRET in dump_yaml(loaded.written):
        raise AssertionError("the recipe holds a secret of the environment")


def sweep(path):
    from geobind.studies.sweep_file import load_sweeps

    load_sweeps(str(path))


def bundle(folder):
    import toy

    from geobind.binder import Binder
    from geobind.bundles.card import read_card
    from geobind.bundles.model_card import render_model_card

    render_model_card(read_card(folder).model_dump())
    binder = Binder.load(folder)
    embeddings = binder.embed(next(iter(binder.modalities)), [toy.view(0, "hub")])
    if not embeddings.isfinite().all():
        raise AssertionError("embeddings that are not finite")


def draw_nothing():
    """Leave out what takes a second a page: the figures, whose values are what reading lets through."""
    from geobind.report import comparison, page

    page.draw_svg = comparison.draw_svg = lambda panel: ""
    page.draw_png = lambda panels, columns: b""


def report(folder):
    from geobind.report import write_report

    draw_nothing()

    page = write_report(folder).read_text(encoding="utf-8")
    if "<script>" in page:
        raise AssertionError("a page with a script of a stranger")


def comparison(folder):
    from geobind.report import build_comparison_tables, compare, write_comparison

    draw_nothing()

    found = compare([folder, HERE / "run"])
    build_comparison_tables(found)
    write_comparison(found, folder / "compare.html")


def make_run(folder: Path):
    """Train three tiny encoders for seven steps: what lies in `run/`, without what is drawn."""
    import toy

    from geobind.training.run import run

    toy.install()
    with (folder / "toy.jsonl").open("w", encoding="utf-8") as file:
        for i in range(96):
            row = {"key": f"row {i}", "split": ("train", "train", "val", "test", "fit")[i % 5]}
            row |= {"label": "even" if i % 2 else "odd", "lat": i / 2, "lon": float(i), "licence": "CC0-1.0"}
            file.write(json.dumps(row | {name: toy.view(i, name) for name in ("hub", "spoke", "rim")}) + "\n")
    made = run(toy.recipe(folder, text=STAGES), folder / "run").folder
    stages = [{"name": "one", "steps": 4}, {"name": "two", "steps": 3}]
    parts = {
        "batch_size": 16,
        "why": "as given",
        "memory_bytes": 10**8,
        "disk": {"cache": 0, "trained": 9000},
    }
    plan = {"memory": {"kind": "process"}, "opening_seconds": 1.0, "evaluation_seconds": 0.5}
    plan |= {"stages": [{**stage, **parts, "seconds": {"stage": 0.3}} for stage in stages]}
    (made / "plan.json").write_text(json.dumps({**plan, "memory_bytes": 10**8, "disk_bytes": 30_000}))
    for drawn in (*made.glob("figures/*"), *made.glob("*.html")):
        drawn.unlink()
    return made


if __name__ == "__main__":
    make_run(Path(sys.argv[1]))
