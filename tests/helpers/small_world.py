"""Four small modalities that see, hear and read toy Earth: enough of a run to report on, in seconds."""

import csv
import json
import shutil
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from geobind import plugins
from geobind.data.readers.audio import read_audio
from geobind.data.readers.images import read_image
from geobind.data.readers.text import read_text
from geobind.modality import Modality

EVIL = "<script>alert('seen')</script>"
OPTIONS = {"places": 40, "held_out": 24, "tile_size": 16, "photo_size": 16, "seconds": 0.5, "rate": 8000}


class Small(Modality):
    """Numbers in, a small network."""

    role = "trainable"
    hidden: int = 128

    def inputs(self) -> int:
        raise NotImplementedError

    def encoder(self, width: int, *, pretrained: bool = True) -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm1d(self.inputs()),
            nn.Linear(self.inputs(), self.hidden),
            nn.GELU(),
            nn.Linear(self.hidden, width),
        )


class Tile(Small):
    """Pictures from above."""

    name = "tile"
    side: int = 12

    def inputs(self) -> int:
        return 3 * self.side**2

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        image_CHW = read_image(raw).float() / 255
        return nn.functional.adaptive_avg_pool2d(image_CHW, self.side).flatten()


class Photo(Tile):
    """Pictures from the ground."""

    name = "photo"


class Sound(Small):
    """Mean and spread of the spectrum."""

    name = "sound"

    def inputs(self) -> int:
        return 130

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        samples_T = read_audio(raw, 4000, seconds=2.0).numpy()
        samples_T = np.pad(samples_T, (0, max(0, 256 - len(samples_T))))
        blocks_BT = np.lib.stride_tricks.sliding_window_view(samples_T, 256)[::64]
        level_BF = np.log(np.abs(np.fft.rfft(blocks_BT * np.hanning(256), axis=1)) ** 2 + 1e-6)[:, :65]
        return torch.tensor(np.concatenate([level_BF.mean(0), level_BF.std(0)]), dtype=torch.float32)


class Words(Small):
    """A bag of words."""

    name = "words"

    def inputs(self) -> int:
        return 256

    def prepare(self, raw, *, training: bool = False) -> torch.Tensor:
        bag_F = torch.zeros(256)
        for word in read_text(raw).lower().split():
            bag_F[zlib.crc32(word.strip(".,").encode()) % 256] += 1
        return bag_F


RECIPE = """\
name: {name}
width: 32
anchor: tile
workers: 0
fabric: {{accelerator: cpu}}
modalities: {{tile: {{}}, photo: {{}}, words: {{}}, sound: {{}}}}
data:
  {data}
  columns: {{words: captions}}
stages:
  - {{name: photo_to_tile, align: photo, train: [tile, photo], batch_size: {batch}, epochs: {epochs}}}
  - {{name: words_to_photo, anchor: photo, align: words, train: [words], batch_size: {batch},
      epochs: {epochs}}}
  - {{name: sound_to_tile, align: sound, train: [sound], batch_size: {batch}, epochs: {epochs}}}
evaluate: {{split: test}}
"""


def registry() -> plugins.Registry:
    classes = (Tile, Photo, Words, Sound)
    return plugins.Registry(
        "modality", {c.name: plugins.Plugin(c, plugins.Source(c.name, "small", "1.0")) for c in classes}, ()
    )


def write_recipe(path, data: str, *, batch: int = 16, epochs: int = 2, name: str = "small"):
    path.write_text(RECIPE.format(data=data, batch=batch, epochs=epochs, name=name), encoding="utf-8")
    return path


@contextmanager
def patched(cache: Path):
    """The small modalities installed, a cache of their own, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "registry", registry)
        patch.setenv("GEOBIND_CACHE", str(cache))
        yield
    torch.set_num_threads(threads)


def write_world(folder: Path) -> Path:
    """Toy Earth as files, its manifest with a licence, evil words, and a sound that is no sound."""
    from geobind_toyearth import ToyEarth

    manifest = ToyEarth(**OPTIONS).write_files(folder)
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        captions = json.loads(row["captions"])
        row["captions"] = json.dumps([f"{EVIL} {captions[0]} & <b>more</b>"])
        row["key"] = f"{EVIL}{number}"
        row["label"] = f"{row['label']} {EVIL}"
        row["licence"] = f"CC BY 4.0 {EVIL}"
    (folder / rows[3]["sound"]).write_bytes(b"this is no sound")
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def run(home: Path, out: str, *overrides: str) -> Path:
    """Run the recipe of the small modalities on the world in `home`."""
    from geobind.recipe import load_recipe
    from geobind.training.run import run

    recipe = write_recipe(home / "small.yaml", "manifest: world/manifest.csv")
    return run(load_recipe(recipe, ("max_broken=0.2", *overrides)), home / out).folder


def copied(run: Path, to: Path, *left_out: str) -> Path:
    """A run without its report, and without what would be drawn: that takes longest."""
    without = shutil.ignore_patterns("figures", "report.html", "*.safetensors", "metrics.csv", *left_out)
    return Path(shutil.copytree(run, to / "run", ignore=without))
