"""What a stage reads from the embedding cache: the sides that it leaves as they are, and frozen trunks."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn

from geobind import plugins
from geobind.data.loader import BatchLoader
from geobind.embedding_cache.build import (
    CacheBuilder,
    CachedColumn,
    FillRanks,
    InputHashes,
    RowEncoder,
    ensure_cached,
    hash_inputs,
)
from geobind.embedding_cache.keys import FileHashes, Part, Uncacheable, cache_key_facts
from geobind.embedding_cache.loader import CachedLoader, RawColumn
from geobind.embedding_cache.store import CacheEntry, embeddings_folder, prune, read_limit
from geobind.errors import StorageError
from geobind.recipe.stage_options import CachedViews, Last, Lora
from geobind.training.trainable import check_frozen, hash_frozen
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

if TYPE_CHECKING:
    from geobind.data.sampler import MixedDataset
    from geobind.training.stage import StageRun

# The others turn the encoders themselves to another precision, which is not the one their hash is of.
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
_BATCH = {"cpu": 64}  # inputs per forward pass while rows are made
_BATCH_ELSEWHERE = 256


class FillStats(NamedTuple):
    """What this process made for the cache before the first step."""

    seconds: float = 0.0  # to look for rows, and to make those that were missing
    rows: int = 0
    bytes: int = 0


class CachedInputs(NamedTuple):
    """The sides of a stage that are read from the cache, by modality."""

    sides: Mapping[str, CachedColumn] = {}
    entries: tuple[CacheEntry, ...] = ()
    filled: FillStats = FillStats()

    def remaining_modules(
        self, encoders: Mapping[str, nn.Module], trained: Collection[str]
    ) -> dict[str, nn.Module]:
        """Return what is left to compute of each encoder: nothing, the head, or all of it."""
        left = {n: encoders[n].get_submodule("head") if n in trained else nn.Identity() for n in self.sides}
        return {name: left.get(name, encoder) for name, encoder in encoders.items()}

    def wrap_loader(self, loader: BatchLoader, rows: MixedDataset) -> BatchLoader | CachedLoader:
        """Return a loader that reads cached modalities instead of preparing them."""
        return CachedLoader(loader, rows, self.sides) if self.sides else loader

    def close(self) -> None:
        """Let the entries be pruned again."""
        for entry in self.entries:
            entry.close()


def open_stage_cache(fabric: Fabric, job: StageRun, digests: Mapping[str, str], workers: int) -> CachedInputs:
    """Find the rows of every side that a stage does not train, or only by its head; make those missing.

    With `cache: auto` a stage that does not go through its rows once is left alone: what it sees is not
    seen again. A side that cannot be cached is computed as ever, and why is said.

    Args:
        fabric: Where the stage runs.
        job: The stage.
        digests: The hash of what it leaves as it is, by modality: an encoder's, or its trunk's.
        workers: Processes that prepare inputs.

    Raises:
        TrainingError: An encoder changes its weights while it runs.
        DataError: Too many inputs are broken.
    """
    wanted = job.stage.cache
    precision = job.recipe.precision_of(job.stage)
    if wanted == "off" or precision not in _PRECISIONS:
        return CachedInputs()
    if wanted == "auto" and job.steps < job.sampler.steps_per_epoch:
        return CachedInputs()
    views = wanted.views if isinstance(wanted, CachedViews) else 0
    started = time.monotonic()
    sides: dict[str, CachedColumn] = {}
    entries: list[CacheEntry] = []
    trained = job.stage.trained
    for name in digests:
        if isinstance(trained.get(name), Last | Lora):
            continue  # what they train is no head on top of a trunk
        found = _ModalityReader(fabric, job, name, digests[name], precision, views, workers).stored()
        if found is not None:
            sides[name], entry = found
            entries.append(entry)
    if fabric.is_global_zero:
        prune(read_limit())
    made = {name: side.made for name, side in sides.items()}
    size = sum(count * (2 * math.prod(sides[name].rows.shape) + 20) for name, count in made.items())
    return CachedInputs(
        sides, tuple(entries), FillStats(time.monotonic() - started, sum(made.values()), size)
    )


class _ModalityReader(NamedTuple):
    """One side of a stage on its way into the cache."""

    fabric: Fabric
    job: StageRun
    name: str
    digest: str
    precision: str
    views: int
    workers: int

    def stored(self) -> tuple[CachedColumn, CacheEntry] | None:
        """Return its rows and where they lie, or None where they cannot be kept: the same on every rank."""
        try:
            entry, seen = self._opened()
        except (Uncacheable, StorageError) as error:
            return self._given_up(error)
        ranks = FillRanks(self.fabric.global_rank, self.fabric.world_size, self._agree)
        try:
            if self._agree(True):
                views, most = self.views, self.job.recipe.max_broken
                found = ensure_cached(seen, self._filling(entry), views=views, max_broken=most, ranks=ranks)
                if found is not None:
                    inputs, made = len(seen.contents_M), _new_rows(found)
                    _log.info("%s: %s: %d inputs, read from the cache%s", *self._names, inputs, made)
                    return found, entry
        except (Uncacheable, StorageError) as error:
            _log.info("%s: %s is not cached: %s", *self._names, error)
        entry.close()
        return None

    def _opened(self) -> tuple[CacheEntry, InputHashes]:
        job, modality = self.job, self.job.recipe.built[self.name]
        files = FileHashes(embeddings_folder() / "files.sqlite")
        facts = cache_key_facts(
            modality,
            plugins.registry().plugins[self.name].source,
            weights=self.digest,
            part=self._part,
            width=job.recipe.width,
            precision=self.precision,
            augmented=self._augmented,
            files=files,
        )
        cells = RawColumn(job.rows, self.name, described=True)
        return CacheEntry(facts), hash_inputs(cells, files, f"looking at {self.name}")

    def _filling(self, entry: CacheEntry) -> CacheBuilder:
        fabric, encoder = self.fabric, self.fabric.to_device(self.job.encoders[self.name])
        return CacheBuilder(
            entry,
            self.job.recipe.built[self.name],
            RawColumn(self.job.rows, self.name),
            self._augmented,
            self.views,
            RowEncoder(encoder, self._part, fabric.autocast, fabric.device),
            lambda: check_frozen({self.name: self.digest}, self._digests(encoder), self.job.stage.name),
            batch_size=_BATCH.get(fabric.device.type, _BATCH_ELSEWHERE),
            workers=self.workers,
        )

    def _digests(self, encoder: nn.Module) -> dict[str, str]:
        return hash_frozen({self.name: encoder}, self.job.stage.trained)

    @property
    def _part(self) -> Part:
        return "trunk" if self.name in self.job.stage.parts else "whole"

    @property
    def _augmented(self) -> bool:
        return self.views > 0 or self._part == "trunk"

    def _given_up(self, error: Exception) -> None:
        self._agree(False)
        _log.info("%s: %s is not cached: %s", *self._names, error)

    def _agree(self, here: bool) -> bool:
        """Whether it is so on every rank; they all wait for each other."""
        total = self.fabric.all_reduce(torch.tensor(float(here), device=self.fabric.device), reduce_op="sum")
        return bool(torch.as_tensor(total).item() == self.fabric.world_size)

    @property
    def _names(self) -> tuple[str, str]:
        return self.job.stage.name, self.name


def _new_rows(found: CachedColumn) -> str:
    return f", {found.made} rows made just now" if found.made else ""
