"""A tiny modality whose inputs lie in files, and what a stage does to read its side from the cache."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from geobind import plugins
from geobind.errors import DataError
from geobind.modality import Modality
from geobind.utils import system

WIDTH = 6


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 12), nn.ReLU())
        self.head = nn.Linear(12, width)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x_BF))


class Note(Modality):
    """Four numbers in a text file, or in a string."""

    name = "note"
    role = "frozen"
    scale: float = 1.0
    noise: float = 0.0
    table: str = ""

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return Net(width)

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        text = raw.read_text() if isinstance(raw, Path) else raw
        try:
            x_F = self.scale * torch.tensor([float(word) for word in text.split()])
        except ValueError as error:
            raise DataError(f"{raw}: no numbers") from error
        return x_F + self.noise * torch.randn(4) if training and self.noise else x_F


SOURCE = plugins.Source("note", "acme", "1.0")


def note_files(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.txt" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_text(f"{i} {i * i % 7} 1 {-i}")
    return paths


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(WIDTH).eval()


def stored(
    raws, *, modality=None, encoder=None, source=SOURCE, part="whole", augmented=False, views=0, **more
):
    """Read a side from the cache as a stage does; return it and the entry it lies in."""
    from geobind.embedding_cache.build import CacheBuilder, RowEncoder, ensure_cached, hash_inputs
    from geobind.embedding_cache.keys import FileHashes, cache_key_facts
    from geobind.embedding_cache.store import CacheEntry, embeddings_folder
    from geobind.training.trainable import check_frozen

    modality, encoder = modality or Note(), encoder or net()
    files = FileHashes(embeddings_folder() / "files.sqlite")
    weights = system.hash_module(encoder)
    facts = cache_key_facts(
        modality,
        source,
        weights=weights,
        part=part,
        width=WIDTH,
        precision="32-true",
        augmented=augmented,
        files=files,
    )
    entry = CacheEntry(facts)
    filling = CacheBuilder(
        entry,
        modality,
        raws,
        augmented,
        views,
        RowEncoder(encoder, part, nullcontext, torch.device("cpu")),
        lambda: check_frozen({"note": weights}, {"note": system.hash_module(encoder)}, "toy"),
        batch_size=more.pop("batch_size", 8),
        workers=0,
    )
    side = ensure_cached(
        hash_inputs(raws, files, "looking"),
        filling,
        views=views,
        max_broken=more.pop("max_broken", 0.0),
        **more,
    )
    entry.close()
    return side, entry


def fill_folder(folder: Path, die_after_shards: int | None = None) -> None:
    """Embed the files of a folder, a shard for every batch; to be run in a process of its own."""
    from geobind.embedding_cache import build
    from geobind.embedding_cache import store as entry

    build._SECONDS = 0.0
    if die_after_shards is not None:
        add, left = entry.CacheEntry.add, iter(range(die_after_shards))

        def add_then_die(self, *what):
            if next(left, None) is None:  # in the middle of writing
                (self.folder / ".half.safetensors.1.part").write_bytes(b"half of a shard")
                os.kill(os.getpid(), signal.SIGKILL)
            return add(self, *what)

        entry.CacheEntry.add = add_then_die
    stored(sorted(folder.glob("*.txt")))
