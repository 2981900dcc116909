"""Results of a finished run: bundle, JSON measurements, report."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from geobind.binder import Binder
from geobind.bundles import bundle
from geobind.bundles.card import read_card
from geobind.bundles.stability import Proof
from geobind.data.table import Table, count_licences
from geobind.evaluation.held_out import EvaluationResults
from geobind.evaluation.query_scores import FILE, write_query_scores
from geobind.recipe import Recipe
from geobind.training.stability import collect_proofs
from geobind.training.stage_data import StageData
from geobind.utils import files, system

_MAX_LICENCES = 30  # named one by one for a source; the others are counted together
_OTHERS = "others"
_NOT_IN_BUNDLE = ("quarantined", "parts", "proof")  # of a stage, not told again in the bundle


def write_results(
    recipe: Recipe,
    binder: Binder,
    stages: list[dict[str, Any]],
    sources: StageData,
    measured: EvaluationResults | None,
    folder: Path,
) -> None:
    """Write the bundle, the measurements as JSON, and the report.

    Raises:
        StorageError: The disk is full or the folder cannot be written.
    """
    parts = measured.parts() if measured else {}
    stage_facts = [
        {field: value for field, value in stage.items() if field not in _NOT_IN_BUNDLE} for stage in stages
    ]
    base = read_card(recipe.base_bundle.folder) if recipe.base_bundle else None
    proof, data = collect_proofs(stages), list(describe_data(recipe, sources, measured))
    if base is not None:  # what it was trained on, and for which pairs, is true of the new bundle too
        stage_facts, data = [*base.stages, *stage_facts], [*base.data, *data]
        proof = Proof(stages=(*(base.proof.stages if base.proof else ()), *proof.stages))
    retrieval = parts.get("retrieval", {})
    others = {name: part for name, part in parts.items() if name != "retrieval"}
    binder.card = bundle.build_card(
        binder,
        name=recipe.name,
        recipe=recipe.written,
        stages=stage_facts,
        metrics={**retrieval, **others},
        data=data,
        author=recipe.card.model_dump(mode="json"),
        proof=proof,
        calibration=measured.calibrated.calibration if measured and measured.calibrated else None,
    )
    binder.save(folder / "bundle")
    for name, part in parts.items():
        files.write_json(folder / f"{name}.json", part)
    if measured and measured.table.scores:
        write_query_scores(folder / FILE, measured.table.scores, measured.held_out.keys)
    _record_finish(folder)
    from geobind.report import write_report  # matplotlib: not before it is needed

    write_report(
        folder,
        binder=binder,
        table=measured.table if measured else None,
        held_out=measured.held_out if measured else None,
        embedded=measured.embedded if measured else None,
    )


def _record_finish(folder: Path) -> None:
    facts = files.read_json(folder / "run.json")
    finished = {"finished": system.utc_now(), "peak_memory_bytes": system.peak_process_bytes()}
    files.write_json(folder / "run.json", {**facts, **finished})


def describe_data(
    recipe: Recipe, sources: StageData, measured: EvaluationResults | None
) -> Iterator[dict[str, Any]]:
    """Yield the use, size and licences of each set of rows."""
    for stage in recipe.stages:
        for source in sources.rows(stage).sources:
            facts = {"used_for": "training", "stage": stage.name, "source": source.name, "split": stage.split}
            yield {**facts, "rows": len(source.rows), "licences": _count_licences(source.rows.table)}
    for use, table in (
        ("calibrating", measured and measured.calibrating),
        ("measuring", measured and measured.held_out),
    ):
        if table is not None:
            facts = {"used_for": use, "source": table.name, "split": table.view}
            yield {**facts, "rows": len(table), "licences": _count_licences(table)}


def _count_licences(table: Table | None) -> dict[str, int]:
    counts = count_licences(table) if table else {}
    named = dict(islice(counts.items(), _MAX_LICENCES))
    rest = sum(counts.values()) - sum(named.values())
    return {**named, _OTHERS: rest} if rest else named
