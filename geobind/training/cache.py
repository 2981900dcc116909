"""Inputs of a stage from the embedding cache: embeddings of frozen modalities, features of frozen trunks."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
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
from geobind.embedding_cache.keys import CachedPart, FileHashes, Uncacheable, cache_key_facts
from geobind.embedding_cache.loader import CachedLoader, RawColumn
from geobind.embedding_cache.store import CacheEntry, embeddings_folder, prune, read_limit
from geobind.errors import StorageError
from geobind.recipe.stage_options import CachedViews, Last, Lora
from geobind.training.fabric import Fabric
from geobind.training.trainable import check_frozen, hash_frozen
from geobind.utils.logs import rank_zero_logger

_log = rank_zero_logger(__name__)

if TYPE_CHECKING:
    from geobind.data.sampler import MixedDataset
    from geobind.training.stage import StageRun

# Other precisions cast the encoders themselves, so that their hash would no longer fit.
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
_BATCH = {"cpu": 64}  # inputs per forward pass while the cache is filled
_BATCH_ELSEWHERE = 256


class FillStats(NamedTuple):
    """Rows that this process added to the cache before the first step."""

    seconds: float = 0.0  # for finding rows and computing the missing ones
    rows: int = 0
    bytes: int = 0


class CachedInputs(NamedTuple):
    """The modalities that a stage reads from the cache."""

    sides: Mapping[str, CachedColumn] = {}
    entries: tuple[CacheEntry, ...] = ()
    filled: FillStats = FillStats()

    def remaining_modules(
        self, encoders: Mapping[str, nn.Module], trained: Collection[str]
    ) -> dict[str, nn.Module]:
        """Return the part of each encoder that remains to be computed: nothing, the head, or all of it."""
        parts = {n: encoders[n].get_submodule("head") if n in trained else nn.Identity() for n in self.sides}
        return {name: parts.get(name, encoder) for name, encoder in encoders.items()}

    def wrap_loader(self, loader: BatchLoader, rows: MixedDataset) -> BatchLoader | CachedLoader:
        """Return a loader that reads cached modalities instead of preparing them."""
        return CachedLoader(loader, rows, self.sides) if self.sides else loader

    def close(self) -> None:
        """Release the entries, so that they can be pruned."""
        for entry in self.entries:
            entry.close()


def open_stage_cache(fabric: Fabric, job: StageRun, digests: Mapping[str, str], workers: int) -> CachedInputs:
    """Return the cached rows of each modality that is frozen or trains its head only; compute missing ones.

    With `cache: auto`, a stage of less than one epoch is not cached, as it sees no row twice. A modality that
    cannot be cached is computed as usual, and the log says why.

    Args:
        fabric: The stage's processes and precision.
        job: The stage.
        digests: Hashes of the frozen weights by modality: of the encoder, or of its trunk.
        workers: Number of processes that prepare inputs.

    Raises:
        TrainingError: An encoder changes its weights while it runs.
        DataError: Too many inputs are broken.
    """
    option = job.stage.cache
    precision = job.recipe.precision_of(job.stage)
    if option == "off" or precision not in _PRECISIONS:
        return CachedInputs()
    if option == "auto" and job.steps < job.sampler.steps_per_epoch:
        return CachedInputs()
    views = option.views if isinstance(option, CachedViews) else 0
    started = time.monotonic()
    sides: dict[str, CachedColumn] = {}
    entries: list[CacheEntry] = []
    trained = job.stage.trained
    for name in digests:
        if isinstance(trained.get(name), Last | Lora):
            continue  # they train more than a head on top of a trunk
        cached = _ModalityReader(fabric, job, name, digests[name], precision, views, workers).read()
        if cached is not None:
            sides[name], entry = cached
            entries.append(entry)
    if fabric.is_global_zero:
        prune(read_limit())
    made = {name: side.made for name, side in sides.items()}
    size = sum(count * (2 * math.prod(sides[name].rows.shape) + 20) for name, count in made.items())
    return CachedInputs(
        sides, tuple(entries), FillStats(time.monotonic() - started, sum(made.values()), size)
    )


class _ModalityReader(NamedTuple):
    """Fills and opens the cache of one modality of a stage."""

    fabric: Fabric
    job: StageRun
    name: str
    digest: str
    precision: str
    views: int
    workers: int

    def read(self) -> tuple[CachedColumn, CacheEntry] | None:
        """Return its cached rows and their entry, None if it cannot be cached; the same on every rank."""
        try:
            entry, inputs = self._open_entry()
        except (Uncacheable, StorageError) as error:
            self._agree(False)
            _log.info("%s: %s is not cached: %s", *self._names, error)
            return None
        ranks = FillRanks(self.fabric.global_rank, self.fabric.world_size, self._agree)
        try:
            if self._agree(True):
                options: Any = {"views": self.views, "max_broken": self.job.recipe.max_broken}
                column = ensure_cached(inputs, self._make_builder(entry), ranks=ranks, **options)
                if column is not None:
                    count, made = len(inputs.contents_M), _describe_new_rows(column)
                    _log.info("%s: %s: %d inputs, read from the cache%s", *self._names, count, made)
                    return column, entry
        except (Uncacheable, StorageError) as error:
            _log.info("%s: %s is not cached: %s", *self._names, error)
        entry.close()
        return None

    def _open_entry(self) -> tuple[CacheEntry, InputHashes]:
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

    def _make_builder(self, entry: CacheEntry) -> CacheBuilder:
        fabric, encoder = self.fabric, self.fabric.to_device(self.job.encoders[self.name])
        return CacheBuilder(
            entry,
            self.job.recipe.built[self.name],
            RawColumn(self.job.rows, self.name),
            self._augmented,
            self.views,
            RowEncoder(encoder, self._part, fabric.autocast, fabric.device),
            lambda: check_frozen({self.name: self.digest}, self._hash_weights(encoder), self.job.stage.name),
            batch_size=_BATCH.get(fabric.device.type, _BATCH_ELSEWHERE),
            workers=self.workers,
        )

    def _hash_weights(self, encoder: nn.Module) -> dict[str, str]:
        return hash_frozen({self.name: encoder}, self.job.stage.trained)

    @property
    def _part(self) -> CachedPart:
        return "trunk" if self.name in self.job.stage.parts else "whole"

    @property
    def _augmented(self) -> bool:
        return self.views > 0 or self._part == "trunk"

    def _agree(self, ok: bool) -> bool:
        """Return whether `ok` is true on every rank; all ranks wait for each other."""
        total = self.fabric.all_reduce(torch.tensor(float(ok), device=self.fabric.device), reduce_op="sum")
        return bool(torch.as_tensor(total).item() == self.fabric.world_size)

    @property
    def _names(self) -> tuple[str, str]:
        return self.job.stage.name, self.name


def _describe_new_rows(column: CachedColumn) -> str:
    return f", {column.made} rows made just now" if column.made else ""
