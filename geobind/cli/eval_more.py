"""What geobind eval measures beside retrieval: calibration, sums, the modality gap; and how it shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from geobind.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table as Grid

    from geobind.binder import Binder
    from geobind.data.options import DataOptions
    from geobind.data.table import Table
    from geobind.evaluation.arithmetic import Arithmetic
    from geobind.evaluation.calibration import Calibrated
    from geobind.evaluation.embedded import Embedded
    from geobind.evaluation.modality_gap import Gap
    from geobind.evaluation.retrieval_metrics import Metric

_MEASURES = ("R@1", "R@10", "median_rank")


class Asked(NamedTuple):
    """What the command line asks for beside retrieval."""

    calibrate: str | None
    keep: bool
    sums: tuple[str, ...]
    gap: bool


class More(NamedTuple):
    """What was measured of it."""

    calibrated: Calibrated | None
    sums: list[Arithmetic]
    gap: Gap

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "gap": self.gap.to_dict(),
            "calibration": self.calibrated.to_dict() if self.calibrated else None,
            "arithmetic": [one.to_dict() for one in self.sums],
        }


def more_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options."""
    for option in (
        click.option("--gap", is_flag=True, help="Show how far apart the modalities lie in their space."),
        click.option(
            "--arithmetic",
            "sums",
            multiple=True,
            metavar="ONE+TWO:GALLERY",
            help="Do sums of embeddings find what holds what both say? On toy Earth of two places as well; "
            "repeatable.",
        ),
        click.option("--keep", is_flag=True, help="With --calibrate: store the scales in the bundle."),
        click.option(
            "--calibrate", metavar="SPLIT", help="Fit probabilities on these rows; see how good they are."
        ),
        click.option(
            "--clusters",
            type=click.Choice(["cell", "group"]),
            help="Intervals draw whole cells of a degree, or groups, of queries.",
        ),
    ):
        command = option(command)
    return command


def check(asked: Asked, split: str, bundle: str, names: Mapping[str, Any]) -> None:
    """Find what cannot be, before anything is embedded.

    Raises:
        DataError: Calibrated and measured on the same rows, nowhere to keep scales, or a malformed sum.
    """
    from geobind.recipe.embedding_sum import read_sum

    if asked.calibrate == split:
        raise DataError(
            f"--calibrate {split}: these are the rows measured on; name others, or probabilities look better "
            "than they are"
        )
    if asked.keep and (asked.calibrate is None or not Path(bundle).is_dir()):
        raise DataError("--keep needs --calibrate SPLIT and a bundle in a folder of yours")
    for text in asked.sums:
        read_sum(text, names)


def measure_more(
    binder: Binder,
    table: Table,
    data: DataOptions,
    held_out: Table,
    found: Mapping[str, Embedded],
    by: str,
    asked: Asked,
) -> More:
    """Measure what is asked for; see `geobind.training.final_evaluation`."""
    from geobind.evaluation.modality_gap import modality_gap
    from geobind.recipe.embedding_sum import read_sum
    from geobind.training.final_evaluation import calibrated_on, sums_of

    calibrated = None
    if asked.calibrate is not None:
        calibrated = calibrated_on(binder, table.split(asked.calibrate), held_out, found, by)
    sums = [
        one
        for text in asked.sums
        for one in sums_of(binder, held_out, data, found, read_sum(text, binder.modalities), by)
    ]
    return More(calibrated, sums, modality_gap(found))


def keep(binder: Binder, calibrated: Calibrated, bundle: str) -> None:
    """Store fitted scales in a bundle's card; its weights stay as they are.

    Raises:
        StorageError: The folder cannot be written.
    """
    from geobind.bundles.bundle import save_card

    save_card(binder, Path(bundle), calibration=calibrated.calibration)


def grids(more: More, asked: Asked) -> Iterator[Grid]:
    """The tables for people."""
    if more.calibrated:
        yield _calibration(more.calibrated)
    yield from map(_arithmetic, more.sums)
    if asked.gap:
        yield _gap(more.gap)


def _calibration(calibrated: Calibrated) -> Grid:
    from rich.table import Table

    known = calibrated.calibration
    grid = Table(title="Calibration", caption_justify="left")
    grid.caption = (
        f"fitted on {known.fitted_on}, measured on {calibrated.measured_on}; error: expected calibration "
        "error, 15 bins of equal width"
    )
    for name in ("query to gallery", "temperature", "error", "perfect shows", "before", "log loss"):
        grid.add_column(name, justify="left" if name == "query to gallery" else "right", no_wrap=True)
    for one in calibrated.choices:
        error, before = one.fitted.equal_width, one.before.equal_width
        told = f"{error.value:.3f} [dim]{error.low:.3f} to {error.high:.3f}[/dim]"
        pair = f"{one.query} to {one.gallery}"
        numbers = (f"{error.perfect:.3f}", f"{before.value:.3f}", f"{one.fitted.log_loss:.2f}")
        grid.add_row(pair, f"{one.temperature:.4f}", told, *numbers)
    for one in calibrated.matchings:
        error = one.fitted.equal_width
        told = f"{error.value:.3f} [dim]{error.low:.3f} to {error.high:.3f}[/dim]"
        pair = f"{one.modalities[0]} and {one.modalities[1]} match"
        grid.add_row(pair, "", told, f"{error.perfect:.3f}", "", f"{one.fitted.log_loss:.2f}")
    return grid


def _arithmetic(one: Arithmetic) -> Grid:
    from rich.table import Table

    grid = Table(title=f"{' + '.join(one.sum.words)} to {one.sum.gallery}", caption=one.says)
    grid.add_column("query", no_wrap=True)
    measures = [name for name in _MEASURES if name in one.queries[0].retrieval.metrics]
    rivals = list(one.queries[0].preferred)
    for name in measures:
        grid.add_column(name.replace("_", " "), justify="right")
    for name in rivals:
        grid.add_column(f"beats {name}", justify="right")
    for query in one.queries:
        cells = [query.retrieval.metrics[name] for name in measures]
        grid.add_row(query.name, *map(_figure, cells), *(_figure(query.preferred[name]) for name in rivals))
    return grid


def _gap(gap: Gap) -> Grid:
    from rich.table import Table

    grid = Table(title="Modality gap")
    for name in ("modalities", "distance of centroids", "told apart", "alignment"):
        grid.add_column(name, justify="left" if name == "modalities" else "right")
    for pair in gap.pairs:
        cells = map(_figure, (pair.distance, pair.separable, pair.alignment))
        grid.add_row(" and ".join(pair.modalities), *cells)
    for spread in gap.spreads:
        grid.add_row(f"{spread.modality}: uniformity", "", "", _figure(spread.uniformity))
    return grid


def _figure(metric: Metric) -> str:
    value, low, high, chance = (
        f"{part:,.1f}" if abs(part) >= 10 else f"{part:.3f}"
        for part in (metric.value, metric.low, metric.high, metric.chance)
    )
    return f"{value}\n[dim]{low} to {high}\nchance {chance}[/dim]"
