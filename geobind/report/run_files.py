"""Readers of the files in a run folder."""

# S steps looked at

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, TypeAdapter, ValidationError

from geobind.bundles.card import CARD, read_card
from geobind.errors import CheckpointError, DataError
from geobind.evaluation import Leakage, PairTable, ProbeResults
from geobind.evaluation.arithmetic import SumResult
from geobind.evaluation.calibration import CalibrationResult
from geobind.evaluation.gap import ModalityGap
from geobind.evaluation.questions import QuestionResults
from geobind.recipe import Recipe
from geobind.recipe.marks import Mark, Pair
from geobind.recipe.parsing import parse_yaml, read_yaml_text
from geobind.utils import files
from geobind.utils.formatting import format_first_fault


class RunFileModel(BaseModel):
    """Base model of run-folder JSON; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PairLoss(RunFileModel):
    """Final loss and temperature of a pair of modalities in a stage."""

    anchor: str
    other: str
    loss: float | None = None
    temperature: float = math.nan


class WatchResult(RunFileModel):
    """Validation summary of a stage."""

    split: str
    measure: str
    evaluations: int = 0
    best: float = math.nan
    best_steps: int = 0
    kept_steps: int = 0
    planned_steps: int = 0
    stopped_early: bool = False


class FinishedStage(RunFileModel):
    """`stage.json` of a finished stage."""

    name: str
    anchor: str
    align: str | tuple[str, ...]
    losses: tuple[PairLoss, ...] = ()
    train: dict[str, str] = {}
    pairs: int = 0
    batch_size: int = 0
    steps: int = 0
    loss: float = math.nan
    temperature: float | None = None  # None if several pairs have one each
    seconds: float = math.nan
    quarantined: tuple[tuple[str, str], ...] = ()
    broken: int = 0
    device: str | None = None
    peak_memory_bytes: int | None = None
    process_bytes: int | None = None
    filled: dict[str, FiniteFloat] = {}
    watched: WatchResult | None = None

    @property
    def aligned(self) -> tuple[str, ...]:
        """The modalities aligned with the anchor, itself among them if pairs without it were trained."""
        names = (self.align,) if isinstance(self.align, str) else self.align
        return names if all(pair.anchor == self.anchor for pair in self.losses) else (self.anchor, *names)

    @property
    def temperatures(self) -> str:
        """The final temperature of each pair."""
        if len(self.losses) < 2:
            return "–" if self.temperature is None else f"{self.temperature:.4f}"
        return ", ".join(f"{pair.anchor}-{pair.other} {pair.temperature:.4f}" for pair in self.losses)


class _Arithmetic(RunFileModel):
    """`arithmetic.json`."""

    sums: tuple[SumResult, ...] = ()


class RunRecord(RunFileModel):
    """`run.json`: versions, hardware, when it ran."""

    recipe: str | None = None
    versions: dict[str, str] = {}
    hardware: dict[str, str | float | None] = {}
    plugins: dict[str, str] = {}
    started: str | None = None
    finished: str | None = None
    peak_memory_bytes: int | None = None


class _WrittenModality(RunFileModel):
    data: dict[str, Any] | None = None


class _WrittenStage(RunFileModel):
    name: str
    align: str | list[str]
    anchor: str | None = None
    pairs: Literal["anchor", "all"] = "anchor"
    train: list[str] | dict[str, Any]
    split: str = "train"
    data: dict[str, Any] | list[dict[str, Any]] | None = None


class _WrittenEvaluation(RunFileModel):
    split: str = "test"
    by: Literal["row", "label"] = "row"
    data: dict[str, Any] | None = None


class _WrittenRecipe(RunFileModel):
    """The keys of a recipe that a report reads; others may be of another version or plugin."""

    name: str | None = None
    width: int | None = None
    seed: int = 0
    anchor: str = Recipe.model_fields["anchor"].default
    modalities: dict[str, _WrittenModality | None]
    stages: list[_WrittenStage]
    data: dict[str, Any] | None = None
    evaluate: _WrittenEvaluation | None = None


MEASURES = ("loss", "temperature", "lr", "grad_norm")  # the columns of metrics.csv that are drawn
_OF_PAIRS = ("loss:", "temperature:", "R@")  # and of each pair, in stages that have several
WATCHED = "validation"  # what the names of curves of validation.csv begin with
_WATCHED = ("loss",)
Checked = TypeVar("Checked")


class StageCurve(NamedTuple):
    """One metric of a stage over its steps."""

    step_S: NDArray[np.int64]
    value_S: NDArray[np.float64]


Curves = Mapping[str, Mapping[str, StageCurve]]  # by stage, then by measure


@dataclass(frozen=True)
class Run:
    """Everything that a report reads of a run."""

    folder: Path
    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    started: Mapping[str, Any]  # run.json
    card: Mapping[str, Any]  # binder.json of the bundle; empty while the run is not finished
    stages: tuple[FinishedStage, ...]
    curves: Curves
    retrieved: PairTable | None
    leaks: Mapping[str, Leakage]  # by stage
    gap: ModalityGap | None = None
    calibration: CalibrationResult | None = None
    sums: tuple[SumResult, ...] = ()
    probes: ProbeResults | None = None
    questions: QuestionResults | None = None

    @property
    def unfinished(self) -> list[str]:
        """The stages of the recipe that are not finished."""
        done = {stage.name for stage in self.stages}
        return [name for name in (stage["name"] for stage in self.recipe["stages"]) if name not in done]

    @property
    def by(self) -> str:
        """The kind of right answer to a query: `row` or `label`."""
        return (self.recipe.get("evaluate") or {}).get("by", "row")

    @property
    def anchor(self) -> str:
        """The modality that stages align with by default."""
        return self.recipe.get("anchor", Recipe.model_fields["anchor"].default)

    @property
    def marks(self) -> dict[Pair, Mark]:
        """The marks of the measured pairs of modalities."""
        return {
            frozenset((row.query, row.gallery)): row.mark
            for row in (self.retrieved.rows if self.retrieved else ())
        }


def read_run(folder: Path) -> Run:
    """Read the files of a run, finished or not.

    Raises:
        DataError: The folder holds no run.
        CheckpointError: A file of it is damaged.
    """
    record, recipe_file = folder / "run.json", folder / "recipe.yaml"
    if not record.is_file() or not recipe_file.is_file():
        raise DataError(f"{folder}: not a run, it has no run.json and recipe.yaml; give what `--out` named")
    started = load_checked(RunRecord, record).model_dump(exclude_none=True)
    text = read_yaml_text(recipe_file)
    recipe, _ = parse_yaml(text, str(recipe_file))
    _check_written(recipe, recipe_file)
    arithmetic = _load_if_present(_Arithmetic, folder / "arithmetic.json")
    return Run(
        folder=folder,
        name=str(recipe.get("name") or started.get("recipe") or folder.name),
        recipe=recipe,
        recipe_text=text,
        started=started,
        card=read_card(folder / "bundle").model_dump() if (folder / "bundle" / CARD).is_file() else {},
        stages=tuple(
            load_checked(FinishedStage, path) for path in sorted(folder.glob("stages/*/stage.json"))
        ),
        curves=_join_curves(
            read_curves(folder / "metrics.csv"), read_curves(folder / "validation.csv", _WATCHED)
        ),
        retrieved=_load_if_present(PairTable, folder / "retrieval.json"),
        leaks=load_checked(dict[str, Leakage], folder / "leakage.json"),
        gap=_load_if_present(ModalityGap, folder / "gap.json"),
        calibration=_load_if_present(CalibrationResult, folder / "calibration.json"),
        sums=arithmetic.sums if arithmetic else (),
        probes=_load_if_present(ProbeResults, folder / "probes.json"),
        questions=_load_if_present(QuestionResults, folder / "questions.json"),
    )


def _join_curves(curves: Curves, watched: Curves) -> Curves:
    """Add validation curves to the training curves of each stage."""
    return {
        stage: {**training, **{f"{WATCHED}:{name}": curve for name, curve in watched.get(stage, {}).items()}}
        for stage, training in curves.items()
    }


def read_curves(path: Path, measures: tuple[str, ...] = MEASURES) -> Curves:
    """Read metrics.csv, or a file like it; absent metrics and truncated rows are skipped.

    Raises:
        CheckpointError: It cannot be read as such a file.
    """
    if not path.is_file():
        return {}
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for stage, step, measure, value in _points(csv.DictReader(file), measures):
                points.setdefault(stage, {}).setdefault(measure, []).append((step, value))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path}: not readable as metrics ({error})") from error
    return {
        stage: {
            measure: StageCurve(*map(np.array, zip(*points_of_measure, strict=True)))
            for measure, points_of_measure in measures_of_stage.items()
        }
        for stage, measures_of_stage in points.items()
    }


def _points(rows: csv.DictReader[str], measures: tuple[str, ...]) -> Iterator[tuple[str, int, str, float]]:
    more = [name for name in rows.fieldnames or () if name.startswith(_OF_PAIRS)]
    for row in rows:
        for measure in (*measures, *more):
            try:
                yield row["stage"], int(row["step"]), measure, float(row[measure])
            except (KeyError, TypeError, ValueError):  # a measure the stage has not, or a row half written
                continue


def load_checked(kind: type[Checked], path: Path) -> Checked:
    """Load and validate a JSON file of a run.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        # As JSON, for then strictness takes lists for tuples, but no text for a number.
        return _adapter(kind).validate_json(json.dumps(files.read_json(path)), strict=True)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: {format_first_fault(error)}; run again with --resume to mend it"
        ) from None


@cache  # building one takes ten times as long as reading a file with it
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check_written(recipe: Mapping[str, Any], path: Path) -> None:
    """Check what a report reads of a run's recipe, whose values stay as they were written.

    Raises:
        CheckpointError: It is not the recipe of a run.
    """
    try:
        _WrittenRecipe.model_validate(recipe, strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {format_first_fault(error)}; it is not the recipe of a run") from None


def _load_if_present(kind: type[Checked], path: Path) -> Checked | None:
    return load_checked(kind, path) if path.is_file() else None
