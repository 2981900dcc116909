"""Rows that a fuser is trained on, and their frozen embeddings from the embedding cache."""

# N rows of all tables, Q of them with a modality, D width of the space

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from geobind import plugins
from geobind.binder import Binder
from geobind.data.loader import choose_workers
from geobind.data.sampler import MixedDataset, WeightedSource
from geobind.data.sources import TableRows
from geobind.data.table import Table
from geobind.embedding_cache.build import CacheBuilder, RowEncoder, ensure_cached, hash_inputs
from geobind.embedding_cache.keys import FileHashes, Uncacheable, cache_key_facts
from geobind.embedding_cache.loader import RawColumn
from geobind.embedding_cache.store import CacheEntry, embeddings_folder, prune, read_limit
from geobind.errors import DataError, StorageError
from geobind.evaluation.embedded import FirstObservations
from geobind.fuser import FEWEST_ROWS, Fuser, train_fuser
from geobind.recipe.schema import FuserOptions
from geobind.training.trainable import check_frozen
from geobind.utils.hashing import derive_seed
from geobind.utils.logs import rank_zero_logger
from geobind.utils.system import hash_module

_log = rank_zero_logger(__name__)
_PRECISION = "32-true"  # binders embed in the precision of their weights
_BATCH = 64  # inputs per forward pass


def draw_fuser_rows(tables: Sequence[Table], options: FuserOptions, seed: int = 0) -> MixedDataset:
    """Draw the rows that a fuser is trained on: those that hold two modalities or more.

    Args:
        tables: Tables of all splits.
        options: Which split, and how many rows of each table at most.
        seed: Of the draw.

    Raises:
        DataError: A table has no such split, or there are too few rows.
    """
    sources: list[WeightedSource] = []
    for number, table in enumerate(tables):
        part = table.split(options.split)
        count_N = np.zeros(len(part), np.int64)
        for name in part.columns:
            count_N[part.rows_with([name])] += 1
        row_R = np.flatnonzero(count_N > 1)
        if len(row_R) > options.rows:
            random = np.random.default_rng(derive_seed(seed, "fuser", number))
            row_R = np.sort(random.choice(row_R, options.rows, replace=False))
        sources.append(WeightedSource(part.name, TableRows(part.take(row_R), tuple(part.columns))))
    count = sum(len(source.rows) for source in sources)
    if count < FEWEST_ROWS:
        where = ", ".join(dict.fromkeys(table.name for table in tables)) or "the pairs of plugins"
        raise DataError(
            f"`fuse`: {where}: split '{options.split}' has {count:,} rows with two modalities or more, and a "
            f"fuser needs {FEWEST_ROWS}; name rows that hold several (`fuse.split`), or drop `fuse`"
        )
    return MixedDataset(tuple(sources))


def train_on_rows(
    binder: Binder,
    rows: MixedDataset,
    options: FuserOptions,
    *,
    workers: int | str = "auto",
    max_broken: float = 0.01,
    seed: int = 0,
) -> Fuser:
    """Train a fuser on a binder's frozen embeddings of rows.

    Args:
        binder: The encoders.
        rows: Of `draw_fuser_rows`.
        options: Of the network and its training.
        workers: Processes that prepare inputs.
        max_broken: Share of the inputs of a modality that may be unusable.
        seed: Of first weights, batches and hidden inputs.

    Raises:
        DataError: Too many inputs are broken, or too few rows are left.
    """
    there = {name for source in rows.sources for name in source.rows.names}
    embedded: dict[str, Tensor] = {}
    present: dict[str, Tensor] = {}
    for name in (one for one in binder.modalities if one in there):
        embedded[name], present[name] = embed_column(
            binder, rows, name, workers=workers, max_broken=max_broken
        )
    digests = {name: hash_module(binder.encoders[name]) for name in embedded}
    where = ", ".join(dict.fromkeys(source.name for source in rows.sources))
    source = f"{len(rows):,} rows of split '{options.split}' of {where}"
    _log.info("training a fuser of %s on %s", ", ".join(embedded), source)
    return train_fuser(embedded, options, present=present, digests=digests, source=source, seed=seed)


def embed_column(
    binder: Binder,
    rows: MixedDataset,
    name: str,
    *,
    workers: int | str = "auto",
    max_broken: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Embed one modality of all rows by the embedding cache.

    Args:
        binder: The encoders, frozen.
        rows: The rows.
        name: The modality.
        workers: Processes that prepare inputs.
        max_broken: Share of the inputs that may be unusable.

    Returns:
        Embeddings (N, D), zeros where there is none, and which rows have one (N,).

    Raises:
        DataError: Too many inputs are broken.
    """
    raws = FirstObservations(RawColumn(rows, name))
    try:
        return _read_cached(binder, rows, name, raws, workers, max_broken)
    except (Uncacheable, StorageError) as error:
        _log.info("fuse: %s is not cached: %s", name, error)
    there_N = torch.tensor([raws[row] is not None for row in range(len(raws))])
    embedded_ND = torch.zeros(len(raws), binder.width)
    if bool(there_N.any()):
        inputs = (raws[row] for row in torch.nonzero(there_N)[:, 0].tolist())
        embedded_ND[there_N] = binder.embed(name, inputs)
    return embedded_ND, there_N


def _read_cached(
    binder: Binder,
    rows: MixedDataset,
    name: str,
    raws: FirstObservations,
    workers: int | str,
    max_broken: float,
) -> tuple[Tensor, Tensor]:
    """Read the embeddings of one modality from the cache, after computing missing ones."""
    encoder, modality = binder.encoders[name], binder.modalities[name]
    weights = hash_module(encoder)
    files = FileHashes(embeddings_folder() / "files.sqlite")
    facts = cache_key_facts(
        modality,
        plugins.registry().plugins[name].source,
        weights=weights,
        part="whole",
        width=binder.width,
        precision=_PRECISION,
        augmented=False,
        files=files,
    )
    entry = CacheEntry(facts)
    try:
        cells = FirstObservations(RawColumn(rows, name, described=True))
        inputs = hash_inputs(cells, files, f"looking at {name}")
        builder = CacheBuilder(
            entry,
            modality,
            raws,
            False,
            0,
            RowEncoder(encoder, "whole", nullcontext, binder.device),
            lambda: check_frozen({name: weights}, {name: hash_module(encoder)}, "fuse"),
            batch_size=_BATCH,
            workers=workers if isinstance(workers, int) else choose_workers(len(raws)),
        )
        column = ensure_cached(inputs, builder, views=0, max_broken=max_broken)
    finally:
        entry.close()
        prune(read_limit())
    if column is None:  # another rank's fault, and there is one rank
        raise Uncacheable("its rows could not be computed")
    row_N = column.lookup.fixed_N
    there_N = torch.from_numpy(row_N >= 0)
    embedded_ND = torch.zeros(len(row_N), binder.width)
    if bool(there_N.any()):
        embedded_ND[there_N] = column.read(row_N[row_N >= 0])
    return embedded_ND, there_N
