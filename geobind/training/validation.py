"""Validation during training: held-out rows, measures, the best weights, early stopping."""

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
from lightning_fabric import Fabric
from torch import Tensor, nn

from geobind.data.sampler import MixedDataset
from geobind.data.sources import RowMetadata
from geobind.embedding_cache.loader import RawColumn
from geobind.errors import CheckpointError, DataError, TrainingError
from geobind.evaluation import rank_counts_both
from geobind.inference import collate, eval_mode, to_device
from geobind.recipe import Recipe, Stage
from geobind.recipe.schema import ModalityPair, Watch
from geobind.scoring import unit
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
from geobind.training.fsdp import shard_like
from geobind.training.loss_inputs import build_loss_context
from geobind.training.losses import ContrastiveLoss
from geobind.training.metrics import Recorder
from geobind.training.optimizer import OptimizerState
from geobind.training.trainable import collect_trained_states
from geobind.utils import files
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    """Take rows at even distances, at most `limit` of them."""
    if limit is None or len(rows) <= limit:
        return rows
    picked_N = np.arange(limit) * len(rows) // limit
    ends = [*rows.starts[1:], len(rows)]
    there = [
        picked_N[(picked_N >= start) & (picked_N < end)] - start
        for start, end in zip(rows.starts, ends, strict=True)
    ]
    return MixedDataset(
        tuple(s._replace(rows=s.rows.take(i)) for s, i in zip(rows.sources, there, strict=True) if len(i))
    )


class ValidationInputs:
    """The inputs of one modality in some rows, prepared as for evaluation.

    Inputs that cannot be read are left out, and said, before anything is trained.

    Args:
        fabric: Where the stage runs.
        job: The stage.
        rows: The rows.
        name: The modality.

    Raises:
        DataError: More of them cannot be read than the recipe's `max_broken` allows.
    """

    def __init__(self, fabric: Fabric, job: StageRun, rows: MixedDataset, name: str) -> None:
        self.fabric, self.name = fabric, name
        self._prepare: Callable[..., Any] = job.recipe.built[name].prepare
        self._cells = RawColumn(rows, name)
        self._kept: dict[int, Any] = {}  # prepared inputs by row
        starts = zip(rows.sources, rows.starts, strict=True)
        there_N = np.concatenate([source.rows.rows_with([name]) + start for source, start in starts])
        left = self._look(there_N)
        faults = broadcast_object(fabric, left)  # what the first process cannot read, none takes
        self.rows_N = np.array([row for row in there_N.tolist() if row not in faults], dtype=np.int64)
        self._judge(faults, len(there_N), job)

    def embed(self, forward: Callable[[Any], Tensor], ranks: Ranks, width: int) -> EmbeddedSide:
        """Embed all rows; each rank takes every so many-th block, and all take equally many."""
        blocks = [self.rows_N[at : at + BLOCK] for at in range(0, len(self.rows_N), BLOCK)]
        rank, found = self.fabric.global_rank, []
        for first in range(0, len(blocks), ranks.world):
            mine = blocks[min(first + rank, len(blocks) - 1)]  # a rank with nothing left does the last again
            whole_BD = torch.zeros(BLOCK, width, device=self.fabric.device)
            batch = collate([self._input(int(row)) for row in mine])
            whole_BD[: len(mine)] = forward(to_device(batch, self.fabric.device))
            gathered_ND = ranks(whole_BD).cpu()
            found += [
                gathered_ND[number * BLOCK : number * BLOCK + len(block)]
                for number, block in enumerate(blocks[first : first + ranks.world])
            ]
        return EmbeddedSide(self.rows_N, torch.cat(found) if found else torch.zeros(0, width))

    def clear(self) -> None:
        """Let go of the prepared inputs."""
        self._kept.clear()

    def _look(self, there_N: NDArray[np.int64]) -> dict[int, str]:
        faults: dict[int, str] = {}
        size = 0
        for row in there_N.tolist():
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
        return self._prepare(raw[0] if isinstance(raw, list) else raw)

    def _judge(self, faults: Mapping[int, str], count: int, job: StageRun) -> None:
        if not faults:
            return
        most, stage = job.recipe.max_broken, job.stage
        listed = "".join(f"\n  {reason}" for reason in islice(faults.values(), _SHOWN))
        said = (
            f"stage '{stage.name}': {len(faults)} of {count} rows to watch it on have no usable '{self.name}'"
        )
        if len(faults) > most * count or len(faults) == count:
            raise DataError(
                f"{said}, more than max_broken ({most:g}) allows; mend or drop them, or raise it:{listed}"
            )
        _log.warning("%s; they are left out:%s", said, listed)


def _bytes(prepared: Any) -> int:
    tensors = prepared.values() if isinstance(prepared, Mapping) else (prepared,)
    return sum(tensor.nbytes for tensor in tensors)


# N rows with both of a pair, D width


_MIN_ROWS = 2  # rows with both of a pair: one alone has nothing to be told from


def validation_columns(recipe: Recipe) -> list[str]:
    """The columns of validation.csv beside stage and step."""
    watched = [stage for stage in recipe.stages if stage.watch]
    found = ["loss", *(f"R@{stage.watch.cutoff}" for stage in watched if stage.watch)]
    for stage in watched:
        pairs = recipe.pairs_of(stage)
        if stage.watch and len(pairs) > 1:
            found += [f"R@{stage.watch.cutoff}:{pair.name}" for pair in pairs]
    return list(dict.fromkeys([*found, "best", "seconds"]))


def check_validation_rows(recipe: Recipe, stage: Stage, rows: MixedDataset) -> None:
    """See that the rows a stage is watched on can tell good embeddings from bad ones.

    Raises:
        DataError: A pair has too few rows, or rows have no labels where those are the right answers.
    """
    watch = stage.watch
    if watch is None:
        return
    most = _MIN_ROWS - 1 if watch.measure == "loss" else max(_MIN_ROWS - 1, watch.cutoff)
    for pair in recipe.pairs_of(stage):
        count = rows.having(pair.both)
        if count <= most:
            always = f", so that {watch.measure} is always 1" if count >= _MIN_ROWS else ""
            raise DataError(
                f"stage '{stage.name}': split '{watch.split}' has {count} rows with both '{pair.anchor}' and "
                f"'{pair.other}' to watch it on{always}; give it more than {most}, or watch another measure"
            )
    if watch.by == "label":
        unlabelled = [s.name for s in rows.sources if any(one is None for one in s.rows.metadata().label_N)]
        if unlabelled:
            raise DataError(
                f"stage '{stage.name}': {unlabelled[0]} has rows of split '{watch.split}' without a `label`, "
                f"which `watch.by: label` needs"
            )


def measure_pairs(
    job: StageRun,
    losses: Mapping[str, ContrastiveLoss],
    sides: Mapping[str, EmbeddedSide],
    facts: RowMetadata,
) -> dict[str, float]:
    """Measure the pairs of a stage.

    Recall is the mean over both directions of every pair. The loss is that of batches as large as those of
    training, made of rows in their order, so that the two can be compared.

    Args:
        job: The stage.
        losses: By pair.
        sides: The embedded rows, by modality.
        facts: What is known of the rows.

    Returns:
        `loss`, `R@k`, and `R@k:PAIR` of every pair if there are several.

    Raises:
        DataError: An embedding is not finite.
    """
    watch = job.stage.watch
    cutoff = watch.cutoff if watch else 10
    shared = {pair.name: _shared_rows(pair, sides) for pair in job.pairs}
    recalls: dict[str, float] = {}
    for pair in job.pairs:
        row_N = shared[pair.name]
        ids = facts.label_N[row_N] if watch and watch.by == "label" else row_N
        both = rank_counts_both(
            sides[pair.anchor].select(row_N), sides[pair.other].select(row_N), query_ids=ids, gallery_ids=ids
        )
        recalls[pair.name] = float(np.mean([counts.hit_Q(cutoff).mean() for counts in both]))
    name = f"R@{cutoff}"
    several = {f"{name}:{pair}": recall for pair, recall in recalls.items()} if len(recalls) > 1 else {}
    total = sum(pair.weight * _loss(job, pair, losses, sides, shared[pair.name], facts) for pair in job.pairs)
    return {"loss": total, name: float(np.mean(list(recalls.values()))), **several}


def _shared_rows(pair: ModalityPair, sides: Mapping[str, EmbeddedSide]) -> NDArray[np.int64]:
    return np.intersect1d(sides[pair.anchor].rows_N, sides[pair.other].rows_N)


@torch.no_grad()
def _loss(
    job: StageRun,
    pair: ModalityPair,
    losses: Mapping[str, ContrastiveLoss],
    sides: Mapping[str, EmbeddedSide],
    row_N: NDArray[np.int64],
    facts: RowMetadata,
) -> float:
    loss, found = losses[pair.name], []
    device = next((tensor.device for tensor in (*loss.parameters(), *loss.buffers())), torch.device("cpu"))
    with eval_mode(loss):
        for rows in _batches(row_N, job.stage.batch_size):
            meta = facts.batch(rows, [f"held out {row}" for row in rows])
            context = build_loss_context(lambda here: here, device, job.stage.loss, meta)
            anchor_ND, other_ND = (sides[name].select(rows).to(device) for name in (pair.anchor, pair.other))
            found.append(float(loss(anchor_ND, other_ND, context)))
    return float(np.mean(found))


def _batches(row_N: NDArray[np.int64], size: int) -> Sequence[NDArray[np.int64]]:
    """Batches of exactly `size` rows, or one of all where there are fewer."""
    full = [row_N[at : at + size] for at in range(0, len(row_N) - size + 1, size)]
    return full or [row_N]


class EarlyStopping(nn.Module):
    """What a watch remembers: plain numbers, in the stage's checkpoint.

    The gain of an evaluation is counted from the last one that had enough of it, so that many small ones add
    up; the best is simply the best.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, first in (("best", math.nan), ("mark", math.nan)):
            self.register_buffer(name, torch.tensor(first, dtype=torch.float64))
        for name in ("best_steps", "seen", "waited", "stopped_after"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def get(self, name: str) -> Any:
        """One of the numbers."""
        return self.get_buffer(name).item()

    def judge(self, value: float, steps: int, watch: Watch) -> bool:
        """Take an evaluation in; whether it is the best so far.

        Args:
            value: Of the measure that is watched.
            steps: How many were taken when it was measured.
            watch: What counts as better, and how long to wait for it.
        """
        sign = -1 if watch.measure == "loss" else 1
        best, mark = self.get("best"), self.get("mark")
        better = math.isnan(best) or sign * (value - best) > 0
        gained = math.isnan(mark) or (sign * (value - mark) > 0 and sign * (value - mark) >= watch.least)
        found = {"seen": self.get("seen") + 1, "waited": 0 if gained else self.get("waited") + 1}
        found |= {"best": value, "best_steps": steps} if better else {}
        found |= {"mark": value} if gained else {}
        if watch.patience is not None and found["waited"] >= watch.patience:
            found["stopped_after"] = steps
        for name, number in found.items():
            self.get_buffer(name).fill_(number)
        return better


# N rows watched, D width


_BEST = "best-*.safetensors"


class ValidationResult(NamedTuple):
    """What watching a stage came to."""

    steps: int  # taken, fewer than planned if it stopped early
    facts: dict[str, Any] | None  # for stage.json; None if it was not watched


def remove_best_weights(folder: Path, *, but: Path | None = None) -> None:
    """Remove the best weights of a stage from its folder, save those of one evaluation."""
    for file in folder.glob(_BEST):
        if file != but:
            file.unlink(missing_ok=True)


class Validator:
    """The watch over one stage; a stage without `watch` has one that does nothing.

    All ranks embed their share of the rows, the first one measures, and all are told what it found, so that
    they stop together.

    Args:
        fabric: Where the stage runs.
        job: The stage.
        optimizer: Its module as Fabric set it up.
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
            job.encoders, job.stage.average
        )  # evaluated and kept in the weights' place
        self.watch = None if job.validation_rows is None else job.stage.watch
        self.state = EarlyStopping()
        self.ranks = Ranks(fabric.all_gather, fabric.world_size)
        self._inputs: dict[str, ValidationInputs] = {}
        self._still: dict[str, EmbeddedSide] = {}  # of the sides that the stage does not move: embedded once
        self._taken = 0

    @property
    def checkpoint_modules(self) -> dict[str, nn.Module]:
        """What a checkpoint must hold, for a resumed run to go on as if it had not stopped."""
        watched: dict[str, nn.Module] = {"watch": self.state} if self.watch else {}
        return {**watched, "average": self.average} if self.job.stage.ema else watched

    @property
    def is_stopped(self) -> bool:
        """Whether the stage stops before its time."""
        return bool(self.state.get("stopped_after"))

    def start(self, first_step: int) -> None:
        """Get ready to go on with a step: read the rows, drop what will be found again.

        Raises:
            DataError: Too many of the rows cannot be read.
        """
        self._taken = first_step
        if self.fabric.is_global_zero and self.job.validation_metrics:
            self.job.validation_metrics.rewind(self.job.stage.name, first_step)
        self.prune()
        held = self.job.validation_rows
        if self.watch is not None and held is not None and not self.is_stopped:
            self._inputs = {n: ValidationInputs(self.fabric, self.job, held, n) for n in self.job.encoders}
            self._facts = held.metadata()

    def after_step(self, step: int, log: Recorder, *, moved: bool = True) -> None:
        """Take the weights of a step into their mean, if it moved them; evaluate after it if it is time.

        Raises:
            TrainingError: A loss since the last look, or an embedding, was not finite.
            StorageError: The best weights cannot be written.
        """
        if moved:
            self.average.update()
        self._taken = taken = step + 1
        if self.watch is None or (taken % self.watch.every and taken != self.job.steps):
            return
        log.flush()  # what is evaluated is known to be finite
        began = time.monotonic()
        with self.average.swapped_in():
            found = self._measured(step)
            value = found[self.watch.measure]
            if self.state.judge(value, taken, self.watch) and self.watch.keep == "best":
                self._write(taken)
        best = self.state.get("best")
        log.status_extra = f"{self.watch.split} {self.watch.measure} {value:.4g} (best {best:.4g})"
        told = {name: f"{number:.6g}" for name, number in found.items()}
        told |= {"best": f"{best:.6g}", "seconds": f"{time.monotonic() - began:.3g}"}
        rank_zero_run(self.fabric, lambda: self._tell({"step": step, **told}))
        log.exclude_elapsed()  # the time was not spent on training

    def prune(self) -> None:
        """Remove weights that are the best no more, once no checkpoint names them."""
        if self.fabric.is_global_zero:
            remove_best_weights(self.job.folder, but=self._file(self.state.get("best_steps")))

    def finish(self) -> ValidationResult:
        """Leave the weights that the stage ends with, and tell what was found.

        Raises:
            CheckpointError: The best weights are not on disk any more.
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
            self._say(facts)
        return ValidationResult(self._taken, facts)

    def _measured(self, step: int) -> dict[str, float]:
        sides = {name: self._embedded(name) for name in self._inputs}
        for name, found in sides.items():  # every rank has all of them, so that all stop here
            if not bool(found.embedding_ND.isfinite().all()):
                raise TrainingError(
                    f"stage '{self.job.stage.name}': '{name}' embeds to values not finite after step {step}\n"
                    f"  lower the learning rate or clip_norm, and run again with --resume"
                )
        return broadcast_result(self.fabric, lambda: measure_pairs(self.job, self.losses, sides, self._facts))

    def _tell(self, row: dict[str, Any]) -> None:
        if self.job.validation_metrics:
            self.job.validation_metrics.add(self.job.stage.name, [row])

    def _embedded(self, name: str) -> EmbeddedSide:
        if name in self._still:
            return self._still[name]
        encoder = self.job.encoders[name]

        def forward(batch: Any) -> Tensor:
            if name not in self.stored:
                return self.wrapped("embed", name, batch)
            with self.fabric.autocast():  # the module has no more than its head
                return unit(self.fabric.to_device(encoder)(batch))

        with eval_mode(self.wrapped), eval_mode(encoder):
            found = self._inputs[name].embed(forward, self.ranks, self.job.recipe.width)
        if name not in self.job.stage.parts:
            self._still[name] = found
            self._inputs[name].clear()
        return found

    def _kept(self) -> dict[str, Tensor]:
        """What the best weights are: all that is saved of the encoders, and the losses' parameters."""
        states = {f"encoder.{name}": m.state_dict() for name, m in collect_trained_states(self.job).items()}
        states |= {f"loss.{name}": dict(loss.named_parameters()) for name, loss in self.losses.items()}
        return {f"{head}.{key}": value for head, state in states.items() for key, value in state.items()}

    def _write(self, steps: int) -> None:
        tensors = {name: full_tensor(value) for name, value in self._kept().items()}  # on every rank
        rank_zero_run(self.fabric, lambda: files.write_tensors(self._file(steps), tensors))

    @torch.no_grad()
    def _read(self, steps: int) -> None:
        targets, file = self._kept(), self._file(steps)

        def read() -> dict[str, Tensor]:
            found = read_weights(file)
            if found.keys() != targets.keys():
                raise CheckpointError(f"{file}: not this stage's best weights; remove {file.parent}")
            return found

        found = rank_zero_run(self.fabric, read) or {}  # the others need not see the first one's disk
        for name, target in targets.items():
            target.copy_(shard_like(target, broadcast_tensor(self.fabric, found.get(name), target)))

    def _file(self, steps: int) -> Path:
        return self.job.folder / _BEST.replace("*", f"{steps:08d}")

    def _say(self, facts: Mapping[str, Any]) -> None:
        early = f"stopped after {self._taken} of {self.job.steps} steps, " if self.is_stopped else ""
        told = f"{early}weights after {facts['kept_steps']} steps kept"
        _log.info(
            "%s: %s (best %s on split '%s': %.4g, after %s)",
            self.job.stage.name,
            told,
            *(facts[name] for name in ("measure", "split", "best", "best_steps")),
        )
