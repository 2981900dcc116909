"""`geobind eval`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
    read_bundle_card,
)
from geobind.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table as Grid

    from geobind.binder import Binder
    from geobind.data.options import DataOptions
    from geobind.data.table import Table
    from geobind.evaluation import Leakage, PairTable, Protocol, ProtocolResult
    from geobind.evaluation.arithmetic import SumResult
    from geobind.evaluation.calibration import CalibrationResult
    from geobind.evaluation.embedded import EmbeddedRows
    from geobind.evaluation.gap import ModalityGap
    from geobind.evaluation.questions import QuestionResults
    from geobind.evaluation.subsets import SubsetRow
    from geobind.fuser import Fuser


class EvalOptions(NamedTuple):
    """Options of `geobind eval` beyond retrieval."""

    calibrate: str | None
    keep: bool
    sums: tuple[str, ...]
    gap: bool
    questions: str | None
    untrained: bool
    bank: str | None
    subsets: bool
    fuse: str | None


class ExtraMetrics(NamedTuple):
    """Results of the options beyond retrieval."""

    calibrated: CalibrationResult | None
    sums: list[SumResult]
    gap: ModalityGap
    subsets: list[SubsetRow]
    questions: QuestionResults | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "gap": self.gap.to_dict(),
            "calibration": self.calibrated.to_dict() if self.calibrated else None,
            "arithmetic": [one.to_dict() for one in self.sums],
            "subsets": [asdict(one) for one in self.subsets],
            "questions": self.questions.to_dict() if self.questions else None,
        }


def extra_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options beyond retrieval to a command."""
    for option in (
        click.option("--gap", is_flag=True, help="Show how far apart the modalities lie in their space."),
        click.option(
            "--arithmetic",
            "sums",
            multiple=True,
            metavar="ONE+TWO:GALLERY",
            help="Search a gallery with sums of embeddings (on toy Earth also of two places); repeatable.",
        ),
        click.option(
            "--questions",
            metavar="FILE|NAME",
            help="Put questions in words to every modality: YAML as under `evaluate.questions` of a recipe; "
            "`recipe`: those of the bundle's; or shipped ones, such as toyearth.",
        ),
        click.option(
            "--untrained",
            is_flag=True,
            help="Show the same encoders with random weights beside retrieval and questions.",
        ),
        click.option(
            "--keep", is_flag=True, help="With --calibrate or --fuse: store what is fitted in the bundle."
        ),
        click.option(
            "--subsets",
            is_flag=True,
            help="Search each modality with every subset of the others, beside the best single one; also by "
            "the bundle's fuser, if it has one.",
        ),
        click.option(
            "--fuse",
            metavar="SPLIT",
            help="As --subsets, by a fuser trained on the embeddings of these rows (minutes).",
        ),
        click.option(
            "--bank",
            metavar="SPLIT",
            help="Bridge emergent pairs by rows of this split, instead of the bundle's own bank.",
        ),
        click.option(
            "--calibrate",
            metavar="SPLIT",
            help="Fit probabilities on these rows; measure their calibration.",
        ),
        click.option(
            "--clusters",
            type=click.Choice(["cell", "group", "row"]),
            help="Queries that are not independent: of one cell of a degree or one group; row: none. "
            "Default: groups where the rows have them, else cells.",
        ),
    ):
        command = option(command)
    return command


def check_options(asked: EvalOptions, split: str, bundle: str, names: Mapping[str, Any]) -> None:
    """Check options before anything is embedded.

    Raises:
        DataError: Calibrated and measured on the same rows, nowhere to keep scales, or a malformed sum.
    """
    from geobind.recipe.embedding_sum import parse_sum

    if asked.fuse == split:
        raise DataError(f"--fuse {split}: these are the rows measured on; name others, such as train")
    if asked.bank == split:
        raise DataError(f"--bank {split}: these are the rows measured on; name others, such as train")
    if asked.calibrate == split:
        raise DataError(
            f"--calibrate {split}: these are the rows measured on; name others, or probabilities look better "
            "than they are"
        )
    fitted = asked.calibrate is not None or asked.fuse is not None
    if asked.keep and not (fitted and Path(bundle).is_dir()):
        raise DataError("--keep needs --calibrate or --fuse, and a bundle in a folder of yours")
    for text in asked.sums:
        parse_sum(text, names)


def measure_extras(
    binder: Binder,
    table: Table,
    data: DataOptions,
    held_out: Table,
    found: Mapping[str, EmbeddedRows],
    by: str,
    asked: EvalOptions,
    clusters: Literal["cell", "group", "row"] | None,
) -> ExtraMetrics:
    """Compute the chosen metrics beyond retrieval; see `geobind.evaluation.held_out`."""
    from geobind.evaluation.gap import modality_gap
    from geobind.evaluation.held_out import fit_and_measure_calibration, measure_sum
    from geobind.evaluation.split_leakage import choose_clusters
    from geobind.evaluation.subsets import evaluate_subsets
    from geobind.recipe.embedding_sum import parse_sum

    calibrated = None
    if asked.calibrate is not None:
        calibrated = fit_and_measure_calibration(binder, table.split(asked.calibrate), held_out, found, by)
    sums = [
        one
        for text in asked.sums
        for one in measure_sum(
            binder, held_out, data, found, parse_sum(text, binder.modalities), by, clusters
        )
    ]
    subsets: list[SubsetRow] = []
    if asked.subsets or asked.fuse is not None:
        known = calibrated.calibration if calibrated else binder.card and binder.card.calibration
        subsets = evaluate_subsets(found, known, choose_clusters(held_out, clusters).of_rows, binder.fuser)
    return ExtraMetrics(calibrated, sums, modality_gap(found), subsets)


def store_fitted(binder: Binder, calibrated: CalibrationResult | None, bundle: str) -> None:
    """Store fitted scales and a trained or calibrated fuser in a bundle; its weights stay as they are.

    Raises:
        StorageError: The folder cannot be written.
    """
    from geobind.bundles.bundle import save_card, save_fuser

    if calibrated is not None:
        save_card(binder, Path(bundle), calibration=calibrated.calibration)
    if binder.fuser is not None:
        save_fuser(binder, Path(bundle))


def render_extras(more: ExtraMetrics, asked: EvalOptions, fuser: Fuser | None) -> Iterator[Grid]:
    """Yield the tables for people."""
    from geobind.evaluation.subsets import build_fuser_table, build_subset_table
    from geobind.evaluation.tables import (
        build_calibration_table,
        build_gap_table,
        build_question_table,
        build_sum_table,
    )

    if more.calibrated:
        yield build_calibration_table(more.calibrated)
    yield from map(build_sum_table, more.sums)
    if more.subsets:
        yield build_subset_table(more.subsets)
    if fuser is not None and (by_fuser := build_fuser_table(more.subsets, fuser)) is not None:
        yield by_fuser
    if more.questions:
        yield build_question_table(more.questions)
    if asked.gap:
        yield build_gap_table(more.gap)


@click.command("eval")
@bundle_argument
@click.option(
    "--data",
    required=True,
    help="A manifest, or a dataset such as `toyearth`, with the options of the bundle's recipe.",
)
@click.option("--split", default="test", show_default=True, help="The held-out rows.")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    help="A published convention beside the clean one: geobind2024, sat2cap, soundingearth, geoclap2023, "
    "psm2024; repeatable.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="MODALITY=COLUMN",
    help="Which column a modality (or key, split, lat, lon, label, group) is read from; repeatable.",
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder that file names are relative to.")
@click.option("--anchor", help="What protocols take for the image; default: the anchor of each stage.")
@click.option("--by", type=click.Choice(["row", "label"]), default="row", show_default=True)
@click.option("--limit", type=click.IntRange(2), help="At most this many rows, the first ones.")
@click.option("--train-split", help="Report what the held-out rows share with this split.")
@extra_options
@compute_options(workers=True, runtime=True)
@json_option
def eval_command(
    bundle: str,
    data: str,
    split: str,
    protocols: tuple[str, ...],
    columns: tuple[str, ...],
    root: Path | None,
    anchor: str | None,
    by: Literal["row", "label"],
    limit: int | None,
    train_split: str | None,
    clusters: Literal["cell", "group", "row"] | None,
    as_json: bool,
    compute: Compute,
    **given: Any,
) -> None:
    """Measure how well the modalities of BUNDLE, a folder or a hub id, find each other on held-out rows."""
    mapped = parse_columns(columns)

    from geobind.binder import Binder
    from geobind.data.table import open_table
    from geobind.evaluation import get_protocol, leakage
    from geobind.evaluation.embedded import embed_rows
    from geobind.evaluation.held_out import (
        build_bank,
        build_retrieval_table,
        check_comparable,
        take_first_rows,
    )
    from geobind.evaluation.questions import Space, ask_questions, load_questions, read_truths
    from geobind.evaluation.split_leakage import choose_clusters

    chosen = [get_protocol(name) for name in dict.fromkeys(protocols) if name != "clean"]
    card = read_bundle_card(bundle)
    asked = EvalOptions(**given)
    check_options(asked, split, bundle, card.modalities)
    questions = load_questions(asked.questions, card.recipe) if asked.questions else {}
    options = data_options_from_cli(card, data, mapped, root)
    table = open_table(options, Path.cwd(), tuple(card.modalities))
    held_out = take_first_rows(table.split(split), limit)
    check_comparable(held_out, card.modalities, by)
    chosen_clusters = choose_clusters(held_out, clusters)
    binder = compute.load(bundle)  # nothing of the data stands in the way any more
    leak = leakage(table.split(train_split), held_out, most_images=None) if train_split else None
    pairs = _pairs(binder, anchor)
    truths = read_truths(held_out, options, questions, binder.modalities, Path.cwd())
    space = Space(binder, embed_rows(binder, held_out))
    found = space.embedded
    if asked.bank is not None:
        binder.bank = build_bank(binder, table.split(asked.bank))
    if asked.fuse is not None:
        binder.fuser = _train_fuser(binder, table, asked.fuse)
    clean = build_retrieval_table(held_out, found, binder.marks, by, clusters, bridge=binder.bank_bridge)
    fresh = None
    if asked.untrained:
        untrained = Binder(binder.modalities, binder.width, pretrained=False, seed=0).to(binder.device)
        untrained.precision, untrained.runtime = binder.precision, binder.runtime
        untrained.workers = binder.workers
        fresh = Space(untrained, embed_rows(untrained, held_out))
        theirs = build_retrieval_table(held_out, fresh.embedded, binder.marks, by, clusters)
        clean = clean.set_beside("untrained", theirs)
    if leak and leak.warning:
        clean = replace(clean, warnings=(leak.warning, *clean.warnings))
    more = measure_extras(binder, table, options, held_out, found, by, asked, clusters)
    more = more._replace(
        questions=ask_questions(space, questions, truths, binder.marks, chosen_clusters, fresh)
    )
    if asked.keep:
        store_fitted(binder, more.calibrated, bundle)
    results = [result for each in chosen for result in _published(each, found, pairs)]
    print_precisions(binder)
    if as_json:
        facts = _as_dict(bundle, held_out, clean, results, leak) | more.to_dict()
        print_json(facts | {"precision": describe_precisions(binder)})
    else:
        _show(clean, results, leak, render_extras(more, asked, binder.fuser))


def _train_fuser(binder: Binder, table: Table, split: str) -> Fuser:
    """Train a fuser on the rows of a split."""
    from geobind.recipe.schema import FuserOptions
    from geobind.training.fuser_rows import draw_fuser_rows, train_on_rows

    options = FuserOptions(split=split)
    return train_on_rows(binder, draw_fuser_rows([table], options), options)


def _pairs(binder: Binder, anchor: str | None) -> list[tuple[str, str]]:
    """Return the pairs that protocols measure, as (anchor, other)."""
    if anchor is not None:
        binder.modality(anchor)
    elif steps := binder.steps:
        return list(dict.fromkeys(pair for step in steps for pair in step.compared))
    anchor = anchor or next(iter(binder.modalities))
    return [(anchor, other) for other in binder.modalities if other != anchor]


def _published(
    protocol: Protocol, found: Mapping[str, EmbeddedRows], pairs: list[tuple[str, str]]
) -> list[ProtocolResult]:
    """Return a protocol's results for every pair that has rows."""
    import numpy as np

    from geobind.evaluation import evaluate_protocol

    results: list[ProtocolResult] = []
    for names in pairs:
        if not all(name in found for name in names):
            continue
        one, two = (found[name] for name in names)
        _, of_one, of_two = np.intersect1d(one.rows_Q, two.rows_Q, return_indices=True)
        if len(of_one) > 1:
            sides = one.embedding_QD[of_one], two.embedding_QD[of_two]
            results.append(evaluate_protocol(protocol, *sides, names=names))
    return results


def _as_dict(
    bundle: str, table: Table, clean: PairTable, results: list[ProtocolResult], leak: Leakage | None
) -> dict[str, Any]:
    return {
        "bundle": bundle,
        "data": table.name,
        "split": table.view,
        "rows": len(table),
        "clean": clean.to_dict(),
        "protocols": [result.to_dict() for result in results],
        "leakage": leak.to_dict() if leak else None,
    }


def _show(
    clean: PairTable, results: list[ProtocolResult], leak: Leakage | None, others: Iterable[Grid]
) -> None:
    from rich.console import Console

    from geobind.cli.options import print_table
    from geobind.evaluation import build_pair_table, build_protocol_tables

    console = Console(emoji=False)
    print_table(build_pair_table(clean))
    if leak and not leak.warning:  # the table has warnings
        console.print(f"leakage: {leak.summary()}", markup=False)
    for grid in others:
        print_table(grid)
    for grid in build_protocol_tables(results):
        print_table(grid)
