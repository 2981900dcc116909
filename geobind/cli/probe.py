"""`geobind probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.options import (
    Compute,
    bundle_argument,
    compute_options,
    data_options_from_cli,
    describe_precisions,
    json_option,
    parse_columns,
    print_json,
    print_precisions,
    print_table,
    read_bundle_card,
)
from geobind.errors import DataError

if TYPE_CHECKING:
    from geobind.evaluation import ProbeResults

_ALL = "all"


@click.command("probe")
@bundle_argument
@click.option(
    "--data",
    required=True,
    help="A manifest, or a dataset such as `toyearth`, with the options of the bundle's recipe.",
)
@click.option("--modality", required=True, help="What is recognised.")
@click.option("--labels", default="label", show_default=True, help="The column of classes.")
@click.option("--through", multiple=True, metavar="MODALITY", help="What describes the classes; repeatable.")
@click.option("--template", "templates", multiple=True, help="A prompt with {} for the class; repeatable.")
@click.option(
    "--examples",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Rows that describe a class where no prompt can.",
)
@click.option(
    "--shots",
    default="1,2,4,8,16,32,all",
    show_default=True,
    help="Examples of each class to learn from; `all` is the linear probe.",
)
@click.option("--draws", type=click.IntRange(1), default=10, show_default=True, help="Draws of the examples.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="COLUMN",
    help="Instead of classes: a number of each place to read off; repeatable.",
)
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="Folds for --target.")
@click.option("--cell-km", default=100.0, show_default=True, help="Land that is never cut by a fold.")
@click.option(
    "--beside",
    multiple=True,
    metavar="trunk|random|RECIPE",
    help="The same on features before the head: of this bundle, of random weights, or of a "
    "recipe's encoder before any training; repeatable.",
)
@click.option("--split", default="test", show_default=True, help="The rows that are measured.")
@click.option("--train-split", default="train", show_default=True, help="The rows that examples come from.")
@click.option("--val-split", help="The rows that the strength of the logistic regression is chosen on.")
@click.option("--column", "columns", multiple=True, metavar="MODALITY=COLUMN", help="As of `geobind eval`.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder that file names are relative to.")
@click.option("--limit", type=click.IntRange(2), help="At most this many rows of a split, the first ones.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for probes.json and few_shot.png.",
)
@compute_options(workers=True, runtime=True)
@json_option
def probe_command(bundle: str, as_json: bool, out: Path | None, compute: Compute, **asked: Any) -> None:
    """Probe one modality of BUNDLE, a folder or a hub id: classes from few examples, or numeric targets."""
    columns = parse_columns(asked["columns"])
    if asked["labels"] != "label":
        columns["label"] = asked["labels"]
    shots = _shots(asked["shots"])
    if wrong := [template for template in asked["templates"] if "{}" not in template]:
        raise DataError(f"--template {wrong[0]!r}: must contain {{}}, where the class goes")

    from geobind.evaluation import FactOptions, FewShotOptions, Resampling, probing

    card = read_bundle_card(bundle)
    probing.check_modalities(card.modalities, (asked["modality"], *asked["through"]))
    of_data = data_options_from_cli(card, asked["data"], columns, asked["root"])
    request = probing.ProbeRequest(
        source=probing.ProbeSource(of_data, asked["limit"]),
        modality=asked["modality"],
        split=asked["split"],
        train_split=asked["train_split"],
        val_split=asked["val_split"],
        through=asked["through"],
        templates=asked["templates"] or ("{}",),
        examples=asked["examples"],
        seed=asked["seed"],
    )
    if asked["targets"]:
        probing.read_targets(request.source, request.split, request.modality, asked["targets"])
    else:
        probing.check_classes(request, shots)
    # Nothing of the data stands in the way any more: only now are weights read.
    binder = compute.load(bundle, {asked["modality"], *asked["through"]})
    resampling = Resampling(seed=request.seed)
    binders = probing.build_feature_binders(binder, request, asked["beside"])
    if asked["targets"]:
        options = FactOptions(asked["folds"], asked["cell_km"], resampling)
        probes = probing.probe_targets(binders, request, asked["targets"], options)
    else:
        probes = probing.probe_classes(
            binders, request, FewShotOptions(shots, asked["draws"], resampling=resampling)
        )
    print_precisions(binder)
    facts = probes.to_dict() | {"precision": describe_precisions(binder)}
    _write(probes, facts, out)
    _show(probes, facts, as_json)


def _shots(text: str) -> tuple[Any, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if wrong := [word for word in words if word != _ALL and not word.isdecimal()]:
        raise DataError(f"--shots {wrong[0]}: write whole numbers and `all`, such as 1,2,4,8,all")
    # 0 shots are what --through gives; no classifier is fitted.
    return tuple(word if word == _ALL else int(word) for word in dict.fromkeys(words) if word != "0")


def _write(probes: ProbeResults, facts: dict[str, Any], out: Path | None) -> None:
    if out is None:
        return
    from geobind.report.plots import draw_png, probe_panel
    from geobind.utils.files import write_atomic, write_json

    write_json(out / "probes.json", facts)
    if probes.curves:
        write_atomic(out / "few_shot.png", draw_png([probe_panel(probes)], 1))


def _show(probes: ProbeResults, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    from geobind.evaluation import build_probe_tables

    for grid in build_probe_tables(probes):
        print_table(grid)
