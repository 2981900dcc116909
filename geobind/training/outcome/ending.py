"""What a run measures after its last stage, and what it can be told of that before its first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from geobind.binder import Binder
from geobind.data.options import DataOptions
from geobind.data.table import Table
from geobind.errors import DataError
from geobind.evaluation import PairTable
from geobind.evaluation.arithmetic import FEWEST_PLACES, Arithmetic, sums_of_rows, sums_on_toyearth
from geobind.evaluation.calibration import Calibrated, calibrate, measure_calibration
from geobind.evaluation.embedded import Embedded, embed_rows
from geobind.evaluation.modality_gap import Gap, modality_gap
from geobind.evaluation.split_leakage import clusters_of
from geobind.recipe.measuring import Evaluation
from geobind.recipe.sums import Sum, read_sum
from geobind.training.outcome.measure import Trained, first_rows, labels_of, tabulate


@dataclass(frozen=True)
class Measured:
    """All that was measured on held-out rows, and the embeddings that it was measured from."""

    held_out: Table
    embedded: Mapping[str, Embedded]
    table: PairTable
    gap: Gap
    calibrated: Calibrated | None
    calibrating: Table | None  # the rows that it was fitted on
    sums: tuple[Arithmetic, ...]

    def parts(self) -> dict[str, dict[str, Any]]:
        """Plain values, ready for JSON, by what they are about; what was not asked for is left out."""
        found = {"retrieval": self.table.to_dict(), "gap": self.gap.to_dict()}
        if self.calibrated:
            found["calibration"] = self.calibrated.to_dict()
        if self.sums:
            found["arithmetic"] = {"sums": [one.to_dict() for one in self.sums]}
        return found


def check_rows(table: Table, options: Evaluation) -> None:
    """See that a table has what `evaluate` asks for, before hours of training.

    Raises:
        DataError: It has no such split, labels, clusters, or rows with all modalities of a sum.
    """
    held_out = first_rows(table.split(options.split), options.limit)
    if options.by == "label":
        labels_of(held_out)
    if options.clusters:
        clusters_of(held_out, options.clusters)
    if options.calibrate:
        table.split(options.calibrate)
    for text in options.sums:
        wanted = read_sum(text, table.columns)
        if len(held_out.rows_with((*wanted.parts, wanted.gallery))) < 2:
            raise DataError(
                f"{table.name}: sum '{wanted}': fewer than two rows of '{options.split}' have all"
            )


def measure_all(
    binder: Binder, table: Table, data: DataOptions, trained: Trained, options: Evaluation
) -> Measured:
    """Measure all that `evaluate` asks for; every row is embedded once.

    Args:
        binder: The encoders.
        table: The rows that it names, of all splits.
        data: How they were opened.
        trained: Pairs of modalities that some stage aligned.
        options: What to measure.

    Raises:
        DataError: The rows do not allow it.
    """
    held_out = first_rows(table.split(options.split), options.limit)
    found = embed_rows(binder, held_out)
    measured = tabulate(held_out, found, trained, options.by, options.clusters)
    calibrating = table.split(options.calibrate) if options.calibrate else None
    calibrated = None
    if calibrating is not None:
        calibrated = calibrated_on(binder, calibrating, held_out, found, options.by)
    sums = tuple(
        one
        for text in options.sums
        for one in sums_of(binder, held_out, data, found, read_sum(text, found), options.by)
    )
    return Measured(held_out, found, measured, modality_gap(found), calibrated, calibrating, sums)


def calibrated_on(
    binder: Binder, rows: Table, held_out: Table, found: Mapping[str, Embedded], by: str
) -> Calibrated:
    """Fit probabilities on some rows and see how good they are on held-out ones.

    Raises:
        DataError: A row has no label where labels decide.
    """
    label = by == "label"
    fitted_on = f"split '{rows.view}' of {rows.name}"
    calibration = calibrate(embed_rows(binder, rows), fitted_on, labels_of(rows) if label else None)
    measured_on = f"split '{held_out.view}' of {held_out.name}"
    return measure_calibration(calibration, found, measured_on, labels_of(held_out) if label else None)


def sums_of(
    binder: Binder, table: Table, data: DataOptions, found: Mapping[str, Embedded], wanted: Sum, by: str
) -> list[Arithmetic]:
    """Measure a sum: of observations of one place, and on toy Earth of two places as well.

    Raises:
        DataError: Too few rows have all its modalities.
    """
    measured = [sums_of_rows(found, wanted, labels_of(table) if by == "label" else None)]
    if data.toyearth is not None and len(wanted.parts) == 2 and len(table) >= FEWEST_PLACES:
        measured.insert(0, sums_on_toyearth(binder, table, data, found, wanted))
    return measured


def warned(measured: Measured, warnings: tuple[str, ...]) -> Measured:
    """The same, with warnings in its table."""
    return replace(measured, table=replace(measured.table, warnings=warnings))
