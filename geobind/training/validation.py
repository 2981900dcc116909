"""Validation during training: rows, measures, best weights, early stopping."""

# N rows, B of a block, D width

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from geobind.data.sampler import MixedDataset
from geobind.data.sources import RowMetadata
from geobind.data.table import first_observation
from geobind.embedding_cache.loader import RawColumn
from geobind.errors import CheckpointError, DataError, TrainingError
from geobind.evaluation import rank_counts_both
from geobind.inference import collate, eval_mode, to_device
from geobind.recipe import Recipe, Stage
from geobind.recipe.schema import ModalityPair, Watch
from geobind.towers.weights import read_weights
from geobind.training.distributed import (
    Ranks,
    broadcast_object,
    broadcast_result,
    broadcast_tensor,
    full_tensor,
    rank_zero_run,
)
from geobind.training.ema import WeightAverage
from geobind.training.fabric import Fabric
from geobind.training.fsdp import shard_like
from geobind.training.loss_inputs import build_loss_context
from geobind.training.losses import ContrastiveLoss
from geobind.training.metrics import Recorder
from geobind.training.optimizer import OptimizerState
from geobind.utils import files
from geobind.utils.logs import rank_zero_logger
from geobind.utils.vectors import unit

_log = rank_zero_logger(__name__)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.modality import Modality
    from geobind.training.stage import StageRun


BLOCK = 64  # rows of a forward pass: always as many, because bits depend on it
_MAX_KEPT_BYTES = 2**28  # of prepared inputs; past that they are prepared again for each evaluation
_SHOWN = 5


class EmbeddedSide(NamedTuple):
    """One modality of all rows: the rows that have it, and their embeddings on every rank."""

    rows_N: NDArray[np.int64]  # rising
    embedding_ND: Tensor

    def select(self, rows: NDArray[np.int64]) -> Tensor:
        """The embeddings of some of these rows."""
        return self.embedding_ND[torch.from_numpy(np.searchsorted(self.rows_N, rows))]


def subsample(rows: MixedDataset, limit: int | None) -> MixedDataset:
    """Return at most `limit` rows, evenly spaced."""
    if limit is None or len(rows) <= limit:
        return rows
    picked_N = np.arange(limit) * len(rows) // limit
    ends = [*rows.starts[1:], len(rows)]
    picks = [
        picked_N[(picked_N >= start) & (picked_N < end)] - start
        for start, end in zip(rows.starts, ends, strict=True)
    ]
    return MixedDataset(
        tuple(s._replace(rows=s.rows.take(i)) for s, i in zip(rows.sources, picks, strict=True) if len(i))
    )


class ValidationInputs:
    """The inputs of one modality in the validation rows, prepared as for evaluation.

    Inputs that cannot be read are left out, with a warning, before anything is trained.

    Args:
        fabric: Where the stage runs.
        stage: Its name, for messages.
        rows: The validation rows.
        name: The modality's name.
        modality: It prepares the inputs.
        max_broken: Largest share of inputs that may be unreadable.

    Raises:
        DataError: More inputs cannot be read than `max_broken` allows.
    """

    def __init__(
        self,
        fabric: Fabric,
        stage: str,
        rows: MixedDataset,
        name: str,
        modality: Modality,
        max_broken: float,
    ) -> None:
        self.fabric, self.stage, self.name, self.modality = fabric, stage, name, modality
        self._cells = RawColumn(rows, name)
        self._kept: dict[int, Any] = {}  # prepared inputs by row
        starts = zip(rows.sources, rows.starts, strict=True)
        present_N = np.concatenate([source.rows.rows_with([name]) + start for source, start in starts])
        faults = broadcast_object(fabric, self._prepare_all(present_N))  # all ranks leave out the same rows
        self.rows_N = np.array([row for row in present_N.tolist() if row not in faults], dtype=np.int64)
        self._check_faults(faults, len(present_N), max_broken)

    def embed(self, forward: Callable[[Any], Tensor], ranks: Ranks, width: int) -> EmbeddedSide:
        """Embed all rows; ranks take blocks in turn, and all take the same number."""
        blocks = [self.rows_N[at : at + BLOCK] for at in range(0, len(self.rows_N), BLOCK)]
        rank, results = self.fabric.global_rank, []
        for first in range(0, len(blocks), ranks.world):
            mine = blocks[min(first + rank, len(blocks) - 1)]  # a rank with no block left repeats the last
            whole_BD = torch.zeros(BLOCK, width, device=self.fabric.device)
            batch = collate([self._input(int(row)) for row in mine])
            whole_BD[: len(mine)] = forward(to_device(batch, self.fabric.device))
            gathered_ND = ranks(whole_BD).cpu()
            results += [
                gathered_ND[number * BLOCK : number * BLOCK + len(block)]
                for number, block in enumerate(blocks[first : first + ranks.world])
            ]
        return EmbeddedSide(self.rows_N, torch.cat(results) if results else torch.zeros(0, width))

    def clear(self) -> None:
        """Release the prepared inputs."""
        self._kept.clear()

    def _prepare_all(self, present_N: NDArray[np.int64]) -> dict[int, str]:
        """Prepare every row once, keep what fits in memory, and return the reason of each failure."""
        faults: dict[int, str] = {}
        size = 0
        for row in present_N.tolist():
            try:
                prepared = self._input(row)
            except DataError as error:
                faults[row] = str(error)
                continue
            size += _bytes(prepared)
            if size <= _MAX_KEPT_BYTES:
                self._kept[row] = prepared
        return faults

    def _input(self, row: int) -> Any:
        if row in self._kept:
            return self._kept[row]
        raw = self._cells[row]
        return self.modality.prepare(first_observation(raw))

    def _check_faults(self, faults: Mapping[int, str], count: int, max_broken: float) -> None:
        if not faults:
            return
        listed = "".join(f"\n  {reason}" for reason in islice(faults.values(), _SHOWN))
        problem = (
            f"stage '{self.stage}': {len(faults)} of {count} validation rows have no usable '{self.name}'"
        )
        if len(faults) > max_broken * count or len(faults) == count:
            raise DataError(
                f"{problem}, more than max_broken ({max_broken:g}) allows; repair or remove them, or raise "
                f"max_broken:{listed}"
            )
        _log.warning("%s; they are left out:%s", problem, listed)


def _bytes(prepared: Any) -> int:
    tensors = prepared.values() if isinstance(prepared, Mapping) else (prepared,)
    return sum(tensor.nbytes for tensor in tensors)


# N rows with both of a pair, D width


_MIN_ROWS = 2  # rows with both of a pair: contrasting needs a second row


def validation_columns(recipe: Recipe) -> list[str]:
    """Return the columns of validation.csv after stage and step."""
    watched = [stage for stage in recipe.stages if stage.watch]
    results = ["loss", *(f"R@{stage.watch.cutoff}" for stage in watched if stage.watch)]
    for stage in watched:
        pairs = recipe.pairs_of(stage)
        if stage.watch and len(pairs) > 1:
            results += [f"R@{stage.watch.cutoff}:{pair.name}" for pair in pairs]
    return list(dict.fromkeys([*results, "best", "seconds"]))


def check_validation_rows(recipe: Recipe, stage: Stage, rows: MixedDataset) -> None:
    """Check that the validation rows of a stage can tell good embeddings from bad ones.

    Raises:
        DataError: A pair has too few rows, or rows have no labels where those are the right answers.
    """
    watch = stage.watch
    if watch is None:
        return
    limit = _MIN_ROWS - 1 if watch.measure == "loss" else max(_MIN_ROWS - 1, watch.cutoff)
    for pair in recipe.pairs_of(stage):
        count = rows.having(pair.both)
        if count <= limit:
            always = f", so that {watch.measure} is always 1" if count >= _MIN_ROWS else ""
            raise DataError(
                f"stage '{stage.name}': split '{watch.split}' has {count} rows with both '{pair.anchor}' and "
                f"'{pair.other}' to watch it on{always}; give it more than {limit}, or watch another measure"
            )
    if watch.by == "label":
        unlabelled = [s.name for s in rows.sources if any(one is None for one in s.rows.metadata().label_N)]
        if unlabelled:
            raise DataError(
                f"stage '{stage.name}': {unlabelled[0]} has rows of split '{watch.split}' without a `label`, "
                f"which `watch.by: label` needs"
            )


def measure_pairs(
    stage: Stage,
    pairs: Sequence[ModalityPair],
    losses: Mapping[str, ContrastiveLoss],
    sides: Mapping[str, EmbeddedSide],
    metadata: RowMetadata,
) -> dict[str, float]:
    """Return recall and loss of every pair of a stage.

    Recall is the mean over both directions of every pair. The loss is that of batches as large as those of
    training, made of rows in their order, so that the two can be compared.

    Args:
        stage: The stage.
        pairs: The pairs that it compares.
        losses: By pair.
        sides: The embedded rows, by modality.
        metadata: Of the validation rows.

    Returns:
        `loss`, `R@k`, and `R@k:PAIR` of every pair if there are several.

    Raises:
        DataError: An embedding is not finite.
    """
    watch = stage.watch
    cutoff = watch.cutoff if watch else 10
    shared = {pair.name: _shared_rows(pair, sides) for pair in pairs}
    recalls: dict[str, float] = {}
    for pair in pairs:
        row_N = shared[pair.name]
        ids = metadata.label_N[row_N] if watch and watch.by == "label" else row_N
        both = rank_counts_both(
            sides[pair.anchor].select(row_N), sides[pair.other].select(row_N), query_ids=ids, gallery_ids=ids
        )
        recalls[pair.name] = float(np.mean([counts.hit_Q(cutoff).mean() for counts in both]))
    name = f"R@{cutoff}"
    several = {f"{name}:{pair}": recall for pair, recall in recalls.items()} if len(recalls) > 1 else {}
    total = sum(
        pair.weight * _mean_loss(stage, losses[pair.name], pair, sides, shared[pair.name], metadata)
        for pair in pairs
    )
    return {"loss": total, name: float(np.mean(list(recalls.values()))), **several}


def _shared_rows(pair: ModalityPair, sides: Mapping[str, EmbeddedSide]) -> NDArray[np.int64]:
    return np.intersect1d(sides[pair.anchor].rows_N, sides[pair.other].rows_N)


@torch.no_grad()
def _mean_loss(
    stage: Stage,
    loss: ContrastiveLoss,
    pair: ModalityPair,
    sides: Mapping[str, EmbeddedSide],
    row_N: NDArray[np.int64],
    metadata: RowMetadata,
) -> float:
    values: list[float] = []
    device = next((tensor.device for tensor in (*loss.parameters(), *loss.buffers())), torch.device("cpu"))
    with eval_mode(loss):
        for rows in _batches(row_N, stage.batch_size):
            meta = metadata.batch(rows, [f"held out {row}" for row in rows])
            context = build_loss_context(lambda tensor: tensor, device, stage.loss, meta)
            anchor_ND, other_ND = (sides[name].select(rows).to(device) for name in (pair.anchor, pair.other))
            values.append(float(loss(anchor_ND, other_ND, context)))
    return float(np.mean(values))


def _batches(row_N: NDArray[np.int64], size: int) -> Sequence[NDArray[np.int64]]:
    """Return batches of exactly `size` rows, or one batch of all where there are fewer."""
    full = [row_N[at : at + size] for at in range(0, len(row_N) - size + 1, size)]
    return full or [row_N]


class EarlyStopping(nn.Module):
    """The state of early stopping: plain numbers, saved in the stage's checkpoint.

    An improvement is measured from the last sufficient one (`mark`), so that small ones add up;
    `best` is the best value of all.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, first in (("best", math.nan), ("mark", math.nan)):
            self.register_buffer(name, torch.tensor(first, dtype=torch.float64))
        for name in ("best_steps", "seen", "waited", "stopped_after"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def get(self, name: str) -> Any:
        """Return one of the numbers."""
        return self.get_buffer(name).item()

    def judge(self, value: float, steps: int, watch: Watch) -> bool:
        """Record an evaluation and return whether it is the best so far.

        Args:
            value: The value of the measure.
            steps: Steps taken when it was measured.
            watch: The options: what counts as better, and the patience.
        """
        sign = -1 if watch.measure == "loss" else 1
        best, mark = self.get("best"), self.get("mark")
        better = math.isnan(best) or sign * (value - best) > 0
        gained = math.isnan(mark) or (sign * (value - mark) > 0 and sign * (value - mark) >= watch.least)
        changes = {"seen": self.get("seen") + 1, "waited": 0 if gained else self.get("waited") + 1}
        changes |= {"best": value, "best_steps": steps} if better else {}
        changes |= {"mark": value} if gained else {}
        if watch.patience is not None and changes["waited"] >= watch.patience:
            changes["stopped_after"] = steps
        for name, number in changes.items():
            self.get_buffer(name).fill_(number)
        return better


# N rows watched, D width


_BEST = "best-*.safetensors"


class ValidationResult(NamedTuple):
    """The result of validating a stage."""

    steps: int  # taken, fewer than planned if it stopped early
    facts: dict[str, Any] | None  # for stage.json; None without `watch`


def remove_best_weights(folder: Path, *, but: Path | None = None) -> None:
    """Remove best weights from a stage's folder, except those in the file `but`."""
    for file in folder.glob(_BEST):
        if file != but:
            file.unlink(missing_ok=True)


class Validator:
    """Validates a stage while it trains; without `watch` it only averages weights, if `ema` is set.

    Every rank embeds its share of the rows, rank zero measures, and the result is broadcast, so that all
    ranks stop together.

    Args:
        fabric: Where the stage runs.
        job: The stage.
        optimizer: Holds the module as Fabric set it up.
        losses: By pair.
        stored: The modalities that are read from the embedding cache, in whole or but for their head.
    """

    def __init__(
        self,
        fabric: Fabric,
        job: StageRun,
        optimizer: OptimizerState,
        losses: Mapping[str, ContrastiveLoss],
        stored: Mapping[str, Any],
    ) -> None:
        self.fabric, self.job, self.losses = fabric, job, losses
        self.wrapped, self.stored = optimizer.wrapped, stored
        self.average = WeightAverage(
            job.encoders, job.stage.ema_options
        )  # evaluated and kept instead of the weights
        self.watch = None if job.validation_rows is None else job.stage.watch
        self.state = EarlyStopping()
        self.ranks = Ranks(fabric.all_gather, fabric.world_size)
        self._inputs: dict[str, ValidationInputs] = {}
        self._frozen: dict[str, EmbeddedSide] = {}  # modalities that the stage does not train, embedded once
        self._taken = 0

    @property
    def checkpoint_modules(self) -> dict[str, nn.Module]:
        """The modules that a checkpoint must hold for an exact resume."""
        watched: dict[str, nn.Module] = {"watch": self.state} if self.watch else {}
        return {**watched, "average": self.average} if self.job.stage.ema else watched

    @property
    def is_stopped(self) -> bool:
        """Whether early stopping ends the stage."""
        return bool(self.state.get("stopped_after"))

    def start(self, first_step: int) -> None:
        """Prepare for a first step: read the rows, drop results that will be measured again.

        Raises:
            DataError: Too many of the rows cannot be read.
        """
        self._taken = first_step
        if self.fabric.is_global_zero and self.job.validation_metrics:
            self.job.validation_metrics.rewind(self.job.stage.name, first_step)
        self.prune()
        rows = self.job.validation_rows
        if self.watch is not None and rows is not None and not self.is_stopped:
            self._inputs = {
                name: ValidationInputs(
                    self.fabric,
                    self.job.stage.name,
                    rows,
                    name,
                    self.job.recipe.built[name],
                    self.job.recipe.max_broken,
                )
                for name in self.job.encoders
            }
            self._metadata = rows.metadata()

    def after_step(self, step: int, log: Recorder, *, moved: bool = True) -> None:
        """Average the weights if the step moved them, and evaluate when it is due.

        Raises:
            TrainingError: A loss since the last flush, or an embedding, is not finite.
            StorageError: The best weights cannot be written.
        """
        if moved:
            self.average.update()
        self._taken = taken = step + 1
        if self.watch is None or (taken % self.watch.every and taken != self.job.steps):
            return
        log.flush()  # only finite weights are evaluated
        began = time.monotonic()
        with self.average.swapped_in():
            results = self._measure(step)
            value = results[self.watch.measure]
            if self.state.judge(value, taken, self.watch) and self.watch.keep == "best":
                self._write(taken)
        best = self.state.get("best")
        log.status_extra = f"{self.watch.split} {self.watch.measure} {value:.4g} (best {best:.4g})"
        row = {name: f"{number:.6g}" for name, number in results.items()}
        row |= {"best": f"{best:.6g}", "seconds": f"{time.monotonic() - began:.3g}"}
        rank_zero_run(self.fabric, lambda: self._add_row({"step": step, **row}))
        log.exclude_elapsed()  # validation is no part of the throughput

    def prune(self) -> None:
        """Remove weights that are no longer the best, once no checkpoint names them."""
        if self.fabric.is_global_zero:
            remove_best_weights(self.job.folder, but=self._file(self.state.get("best_steps")))

    def finish(self) -> ValidationResult:
        """Load the weights that the stage ends with, and return the result.

        Raises:
            CheckpointError: The best weights are no longer on disk.
        """
        best, watch, facts = self.state.get("best_steps"), self.watch, None
        if watch is not None and watch.keep == "best" and best != self._taken:
            self._read(best)
        else:
            self.average.copy_to_weights()
        if watch is not None:
            kept = best if watch.keep == "best" else self._taken
            facts = {"split": watch.split, "measure": watch.measure, "evaluations": self.state.get("seen")}
            facts |= {"best": self.state.get("best"), "best_steps": best, "kept_steps": kept}
            facts |= {"planned_steps": self.job.steps, "stopped_early": self.is_stopped}
            self._log_result(facts)
        return ValidationResult(self._taken, facts)

    def _measure(self, step: int) -> dict[str, float]:
        sides = {name: self._embed(name) for name in self._inputs}
        for name, side in sides.items():  # every rank has all of them, so all ranks stop here
            if not bool(side.embedding_ND.isfinite().all()):
                raise TrainingError(
                    f"stage '{self.job.stage.name}': '{name}' embeds to values not finite after step {step}\n"
                    f"  lower the learning rate or clip_norm, and run again with --resume"
                )
        stage, pairs = self.job.stage, self.job.pairs
        return broadcast_result(
            self.fabric, lambda: measure_pairs(stage, pairs, self.losses, sides, self._metadata)
        )

    def _add_row(self, row: dict[str, Any]) -> None:
        if self.job.validation_metrics:
            self.job.validation_metrics.add(self.job.stage.name, [row])

    def _embed(self, name: str) -> EmbeddedSide:
        if name in self._frozen:
            return self._frozen[name]
        encoder = self.job.encoders[name]

        def forward(batch: Any) -> Tensor:
            if name not in self.stored:
                return self.wrapped("embed", name, batch)
            with self.fabric.autocast():  # the module has no more than its head
                return unit(self.fabric.to_device(encoder)(batch))

        with eval_mode(self.wrapped), eval_mode(encoder):
            results = self._inputs[name].embed(forward, self.ranks, self.job.recipe.width)
        if name not in self.job.stage.parts:
            self._frozen[name] = results
            self._inputs[name].clear()
        return results

    def _best_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the best weights: the encoders' trained state and the losses' parameters."""
        states = {f"encoder.{name}": m.state_dict() for name, m in self.job.trained_states.items()}
        states |= {f"loss.{name}": dict(loss.named_parameters()) for name, loss in self.losses.items()}
        return {f"{head}.{key}": value for head, state in states.items() for key, value in state.items()}

    def _write(self, steps: int) -> None:
        tensors = {name: full_tensor(value) for name, value in self._best_tensors().items()}  # on every rank
        rank_zero_run(self.fabric, lambda: files.write_tensors(self._file(steps), tensors))

    @torch.no_grad()
    def _read(self, steps: int) -> None:
        targets, file = self._best_tensors(), self._file(steps)

        def read() -> dict[str, Tensor]:
            results = read_weights(file)
            if results.keys() != targets.keys():
                raise CheckpointError(f"{file}: not this stage's best weights; remove {file.parent}")
            return results

        results = rank_zero_run(self.fabric, read) or {}  # only rank zero needs to see its disk
        for name, target in targets.items():
            target.copy_(shard_like(target, broadcast_tensor(self.fabric, results.get(name), target)))

    def _file(self, steps: int) -> Path:
        return self.job.folder / _BEST.replace("*", f"{steps:08d}")

    def _log_result(self, facts: Mapping[str, Any]) -> None:
        early = f"stopped after {self._taken} of {self.job.steps} steps, " if self.is_stopped else ""
        kept = f"{early}weights after {facts['kept_steps']} steps kept"
        _log.info(
            "%s: %s (best %s on split '%s': %.4g, after %s)",
            self.job.stage.name,
            kept,
            *(facts[name] for name in ("measure", "split", "best", "best_steps")),
        )
