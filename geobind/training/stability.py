"""Proof that a stage leaves the embeddings of frozen modalities bit-identical."""

# N rows, D width

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import nn

from geobind.binder import Binder
from geobind.bundles.stability import ModalityState, Proof, StageProof, describe_difference, hash_embeddings
from geobind.data.table import Table, first_observation
from geobind.embedding_cache.loader import RawColumn
from geobind.errors import DataError, TrainingError
from geobind.inference import collate, eval_mode, to_device
from geobind.recipe import Recipe
from geobind.training.fabric import Fabric
from geobind.training.stage_data import StageData
from geobind.training.trainable import check_frozen
from geobind.utils import system
from geobind.utils.hashing import fingerprint

ROWS = 32  # of each modality, in one forward pass
_MAX_CANDIDATES = 2 * ROWS  # some rows may be broken


class _PreparedRows(NamedTuple):
    """Rows of one modality, prepared as for evaluation, in one batch."""

    where: str  # the table and its split
    keys: tuple[str, ...]
    batch: Any

    @property
    def name(self) -> str:
        """Hash that identifies the rows."""
        return fingerprint(self.where, list(self.keys))


class _EncoderState(NamedTuple):
    """Weights hash and device of a modality; equal values imply equal embeddings."""

    weights: str  # hash of the state dict
    buffers: str  # hash of the buffers outside the state dict
    device: torch.device


class Prover:
    """Embeds the same rows before and after each stage, on one thread if a CPU computes.

    The rows are the first ones of the evaluation's table, or of a stage for a modality that the table lacks;
    so a stage appended to a recipe changes none of them. They are prepared once. After a stage all are
    embedded; before the next one only those whose encoder differs from what this process hashed last.

    Args:
        recipe: The recipe, with its modalities.
        sources: The rows of its stages.
        binder: The encoders.
    """

    def __init__(self, recipe: Recipe, sources: StageData, binder: Binder) -> None:
        self.recipe, self.sources, self.binder = recipe, sources, binder
        self._rows: dict[str, _PreparedRows | None] = {}
        self._states: dict[str, tuple[_EncoderState, ModalityState]] = {}

    def compute_states(self, fabric: Fabric) -> dict[str, ModalityState]:
        """Return the current state of every modality."""
        with _single_thread():
            return {name: self._compute_state(fabric, name) for name in self.binder.modalities}

    def prove(
        self, fabric: Fabric, stage: str, trained: Sequence[str], before: Mapping[str, ModalityState]
    ) -> StageProof:
        """Return the states of all modalities before and after a stage.

        Raises:
            TrainingError: The stage changed an encoder that it does not train.
        """
        self._states.clear()  # the stage may have changed an encoder in ways that only its embeddings show
        after = self.compute_states(fabric)
        changed = [n for n in after if n not in trained and after[n].weights != before[n].weights]
        if changed:
            now = {name: after[name].weights for name in changed}  # before they were embedded
            check_frozen(now, {n: system.hash_module(self.binder.encoders[n]) for n in now}, stage)
            raise TrainingError(
                f"stage '{stage}' changed the weights of {', '.join(changed)}, which it does not train; "
                f"encoders of different modalities must not share modules"
            )
        return StageProof(
            stage=stage,
            trained=tuple(trained),
            before=dict(before),
            after=after,
            keys={name: rows.keys for name, rows in self._rows.items() if rows},
            made_by=system.collect_versions() | {"device": str(fabric.device), "batch": str(ROWS)},
        )

    def _compute_state(self, fabric: Fabric, name: str) -> ModalityState:
        encoder = self.binder.encoders[name]
        weights = system.hash_module(encoder)
        if name not in self._rows:
            self._rows[name] = _prepare_rows(self.recipe, self.sources, name)
        rows = self._rows[name]
        if rows is None:
            return ModalityState(weights=weights)
        now = _EncoderState(weights, _hash_unsaved_buffers(encoder), fabric.device)
        before = self._states.get(name)
        if before is None or before[0] != now:
            self._states[name] = now, self._embed(fabric, name, rows, weights)
        return self._states[name][1]

    def _embed(self, fabric: Fabric, name: str, rows: _PreparedRows, weights: str) -> ModalityState:
        encoder = self.binder.encoders[name]
        home = next((p.device for p in encoder.parameters()), torch.device("cpu"))
        try:
            with eval_mode(encoder.to(fabric.device)):
                embedding_ND = self.binder(name, to_device(rows.batch, fabric.device))
        finally:
            encoder.to(home)
        embeddings = hash_embeddings(embedding_ND)
        return ModalityState(weights=weights, rows=rows.name, count=len(rows.keys), embeddings=embeddings)


def _hash_unsaved_buffers(encoder: nn.Module) -> str:
    """Return the hash of the buffers outside the state dict."""
    saved = encoder.state_dict().keys()
    return system.hash_tensors({key: value for key, value in encoder.named_buffers() if key not in saved})


def collect_proofs(stages: Sequence[Mapping[str, Any]]) -> Proof:
    """Return the proofs of all stages, including those finished in an earlier run."""
    proofs = [StageProof.model_validate(stage["proof"]) for stage in stages if stage.get("proof")]
    return Proof(stages=tuple(proofs))


def describe_proof(proof: StageProof, last: Mapping[str, Any] | None) -> list[str]:
    """Return lines on what a stage left bit-identical, and on changes since the stage before it.

    Args:
        proof: The proof of the stage.
        last: The `stage.json` of the stage before, None for the first.
    """
    lines: list[str] = []
    same = ", ".join(f"{n} ({_describe_state(proof.after[n])})" for n in proof.identical)
    if same:
        lines.append(f"bit-identical to before (every digit; archives stay valid): {same}")
    strays = [name for name in proof.changed if name not in proof.trained]
    if strays:
        lines.append(
            f"warning: {', '.join(strays)} changed their embeddings of the same rows with the same weights: "
            f"an encoder gives another result each time"
        )
    if last and last.get("proof"):
        was = StageProof.model_validate(last["proof"]).after
        for name in was:
            if name in proof.before and (change := describe_difference(was[name], proof.before[name])):
                lines.append(f"warning: '{name}' changed since stage '{last['name']}': {change}")
    return lines


def _describe_state(state: ModalityState) -> str:
    return f"{state.count} rows embedded" if state.count else "weights; it has no rows to embed"


def _prepare_rows(recipe: Recipe, sources: StageData, name: str) -> _PreparedRows | None:
    where, cells, keys = _find_rows(recipe, sources, name)
    good: list[tuple[str, Any]] = []
    for key, cell in islice(zip(keys, cells, strict=True), _MAX_CANDIDATES):
        try:
            raw = cell()
            good.append((key, recipe.built[name].prepare(first_observation(raw))))
        except DataError:
            continue  # a stage that needs it counts it as broken
        if len(good) == ROWS:
            break
    if not good:
        return None
    return _PreparedRows(where, tuple(key for key, _ in good), collate([prepared for _, prepared in good]))


def _find_rows(recipe: Recipe, sources: StageData, name: str) -> tuple[str, list[Any], list[str]]:
    """Return rows that have a modality: the name of their table, a reader for each, and their keys."""
    table = sources.evaluation_table()
    if table is not None and len(table.rows_with([name])):
        return _find_table_rows(table, name)
    for stage in recipe.stages:
        if name in recipe.names_of(stage):
            rows = sources.rows(stage)
            cells = RawColumn(rows, name)
            numbers = [
                s.rows.rows_with([name]) + first for s, first in zip(rows.sources, rows.starts, strict=True)
            ]
            picked = [int(row) for part in numbers for row in part[:_MAX_CANDIDATES]][:_MAX_CANDIDATES]
            keys = [rows[row].key for row in picked]
            where = f"split '{stage.split}' of {', '.join(s.name for s in rows.sources)}"
            return where, [partial(cells.__getitem__, row) for row in picked], keys
    return "", [], []


def _find_table_rows(table: Table, name: str) -> tuple[str, list[Any], list[str]]:
    taken = table.take(table.rows_with([name])[:_MAX_CANDIDATES])
    samples = taken.samples(name)
    reads = [partial(samples.__getitem__, row) for row in range(len(taken))]
    return f"split '{table.view}' of {table.name}", reads, [taken.keys[row] for row in range(len(taken))]


@contextmanager
def _single_thread() -> Generator[None]:
    """Compute on one thread: the division of sums among threads changes their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
