"""From disk to batch, one core: geobind against a plain PyTorch Dataset and WebDataset, on the same files.

All contenders do the same work on the same observations, in random order, in one process with one thread:

- images: a JPEG tile is decoded, a random part of it scaled (antialiased) to 224 pixels and mirrored half of
  the time; a caption becomes CLIP's tokens. The plain Dataset does it with Pillow, as most tutorials do.
- sounds: of a recording of 10 s a random window of 2 s at 16 kHz becomes a log-mel spectrogram. The plain
  Dataset reads the file with soundfile, resamples it with torchaudio and cuts, as most tutorials do.
- bytes: the tiles are read and not decoded, which leaves what the loader and the format cost.

`scale` is the loader alone, on one large batch after the other: samples a second by the number of processes,
when the first batch comes, and how much of prepared rows lies in memory between processes and batch.
"""

from __future__ import annotations

import csv
import io
import os
import random
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from geobind.data import DataOptions, Table, open_table, pack_table
from geobind.data.loader import BatchLoader, ModalityInput
from geobind.data.sampler import BatchSampler
from geobind.data.sources import TableRows

CLIP = {
    "model": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "patch_size": 32, "head_width": 32},
        "text_cfg": {"context_length": 77, "width": 32, "heads": 1, "layers": 1},
    },
    "pretrained": False,
}
WORDS = "a view of the dark green forest beside two wide roads where houses fields and water lie near".split()
RATE, SECONDS = 16_000, 2.0
Batches = Callable[[int], Iterator[Any]]  # an epoch of batches, by its seed


class Contender(NamedTuple):
    name: str
    batches: Batches


def write_tiles(folder: Path, count: int, side: int) -> None:
    """Write JPEG tiles that compress as aerial images do, each with a caption, and a manifest of them."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(30, 220, (side // 16, side // 16, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
        fine += rng.normal(0, 5, (side, side, 1)).astype(np.int16)
        name = f"{number:06}.jpg"
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(folder / name, quality=85)
        rows.append((name, " ".join(rng.choice(WORDS, 10))))
    write_manifest(folder, ("satellite", "text"), rows)


def write_sounds(folder: Path, count: int, kind: str) -> None:
    """Write recordings of 10 s at 44.1 kHz, each with a caption, and a manifest of them."""
    import soundfile

    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        noise = np.cumsum(rng.normal(0, 0.02, 441_000)) * 0.995 ** np.arange(441_000).clip(0, 50)
        name = f"{number:06}.{kind}"
        soundfile.write(folder / name, noise / (np.abs(noise).max() * 1.1), 44_100)
        rows.append((name, " ".join(rng.choice(WORDS, 10))))
    write_manifest(folder, ("audio", "text"), rows)


def write_manifest(folder: Path, columns: tuple[str, str], rows: list[tuple[str, str]]) -> None:
    with open(folder / "manifest.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def read_manifest(folder: Path) -> list[tuple[str, str]]:
    with open(folder / "manifest.csv", newline="") as file:
        return [(name, text) for name, text in list(csv.reader(file))[1:]]


def write_shards(folder: Path, per_shard: int = 500) -> list[str]:
    """Write the observations as WebDataset shards, and a manifest whose cells are members of them."""
    rows, shards, cells = read_manifest(folder), [], []
    for start in range(0, len(rows), per_shard):
        shard = folder / f"{start // per_shard:04}.tar"
        with tarfile.open(shard, "w") as archive:
            for name, text in rows[start : start + per_shard]:
                for member, content in (
                    (name, (folder / name).read_bytes()),
                    (f"{name[:6]}.txt", text.encode()),
                ):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
                cells.append((f"{shard.name}::{name}", text))
        shards.append(str(shard))
    with open(folder / "members.csv", "w", newline="") as file:
        header = next(csv.reader(open(folder / "manifest.csv", newline="")))
        csv.writer(file).writerows([header, *cells])
    return shards


def ours(
    manifest: Path, sides: dict[str, Any], batch: int, workers: int = 0, steps: int | None = None
) -> Batches:
    """Return what yields `(step, batches, meta)`: the steps of an epoch, or `steps` of them."""
    table = opened(manifest, sides)
    rows = TableRows(table, tuple(sides))
    given = {name: ModalityInput(modality, augment=name != "text") for name, modality in sides.items()}
    last = len(rows) // batch if steps is None else steps

    def batches(seed: int) -> Iterator[Any]:
        yield from BatchLoader(rows, given, BatchSampler((len(rows),), batch, seed), 0, last, workers=workers)

    return batches


def opened(manifest: Path, sides: dict[str, Any]) -> Table:
    return open_table(DataOptions(manifest=manifest.name), manifest.parent, list(sides))


class Plain(Dataset):
    """A dataset as tutorials write it: a list of files and a transform."""

    def __init__(self, folder: Path, first: Callable[[Any], Any], second: Callable[[str], Any]) -> None:
        self.folder, self.rows, self.first, self.second = folder, read_manifest(folder), first, second

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        name, text = self.rows[index]
        return self.first(self.folder / name), self.second(text)


def plain(dataset: Plain, batch: int) -> Batches:
    def batches(seed: int) -> Iterator[Any]:
        order = torch.Generator().manual_seed(seed)
        yield from DataLoader(dataset, batch, shuffle=True, drop_last=True, generator=order)

    return batches


def webdataset(shards: list[str], kind: str, first: Any, second: Any, batch: int) -> Batches:
    import webdataset as wds

    def batches(seed: int) -> Iterator[Any]:
        random.seed(seed)
        dataset = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False, seed=seed)
        dataset = dataset.shuffle(1000).to_tuple(kind, "txt")
        dataset = dataset.map_tuple(first, lambda text: second(text.decode()))
        yield from dataset.batched(batch, partial=False)

    return batches


def tile_of(source: Path | bytes) -> torch.Tensor:
    from PIL import Image

    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source).convert("RGB")
    return TILE(image)


TILE = v2.Compose(
    [
        v2.RandomResizedCrop(224, scale=(0.5, 1), interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
    ]
)


class Mel:
    """A recording to the spectrogram of a random window."""

    def __init__(self) -> None:
        from torchaudio.transforms import AmplitudeToDB, MelSpectrogram, Resample

        self.resample = Resample(44_100, RATE)
        options = {"win_length": 400, "hop_length": 160, "f_min": 20.0}
        self.mel, self.db = MelSpectrogram(RATE, 512, n_mels=64, **options), AmplitudeToDB()

    def __call__(self, source: Path | bytes) -> torch.Tensor:
        import soundfile

        samples, rate = soundfile.read(
            io.BytesIO(source) if isinstance(source, bytes) else source, dtype="float32", always_2d=True
        )
        if rate != 44_100:
            raise SystemExit("recordings of 44.1 kHz are expected")
        mono_T = self.resample(torch.from_numpy(samples.mean(axis=1)))
        length = int(RATE * SECONDS)
        start = int(torch.randint(len(mono_T) - length + 1, ()))
        return self.db(self.mel(mono_T[start : start + length]))[None]


class Bytes:
    """Stands in for a modality that decodes nothing: what is left is the loader and the format."""

    def prepare(self, raw: Any, *, training: bool = False) -> torch.Tensor:
        return torch.tensor(read(raw))


def read(source: Path | bytes | str) -> int:
    return len(source.read_bytes() if isinstance(source, Path) else source)


def contenders(task: str, folder: Path, batch: int) -> list[Contender]:
    """Set up every way to read the files in `folder`; ours come first."""
    import open_clip

    from geobind_audio import Audio
    from geobind_satellite import Satellite
    from geobind_text import Text

    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    second: Callable[[str], Any] = lambda text: tokenizer(text)[0]  # noqa: E731
    sides: dict[str, Any] = {"text": Text(clip=CLIP)}
    if task == "images":
        augment = {"random_resized_crop": [0.5, 1], "hflip": True}
        name, kind, first = "satellite", "jpg", tile_of
        sides[name] = Satellite(clip=CLIP, augment=augment)
    elif task == "sounds":
        name, kind, first = "audio", next(folder.glob("0*")).suffix[1:], Mel()
        sides[name] = Audio(timm={"model": "test_resnet", "pretrained": False}, seconds=SECONDS, rate=RATE)
    else:
        name, kind, first, second = "satellite", "jpg", read, len
        sides = {"satellite": Bytes(), "text": Bytes()}
    sides = {name: sides[name], "text": sides["text"]}
    shards = write_shards(folder)
    if not (folder / "packed").is_dir():
        pack_table(opened(folder / "manifest.csv", sides), folder / "packed")
    found = [
        Contender("geobind, files", ours(folder / "manifest.csv", sides, batch)),
        Contender("geobind, packed", ours(folder / "packed", sides, batch)),
        Contender("geobind, tar members", ours(folder / "members.csv", sides, batch)),
        Contender("plain Dataset, files", plain(Plain(folder, first, second), batch)),
    ]
    try:
        peer = webdataset(shards, kind, first, second, batch)
        next(iter(peer(0)))
        found.append(Contender("WebDataset, shards", peer))
        # What is left of the difference if it decodes as we do.
        same = partial(sides[name].prepare, training=True), sides["text"].prepare
        found.append(Contender("WebDataset, our decoding", webdataset(shards, kind, *same, batch)))
    except ImportError:
        print("WebDataset is not installed: pip install webdataset")
    return found


def speed(task: str, folder: Path, batch: int, rounds: int) -> None:
    """Print samples a second of each contender, and medians of the rounds' ratios to the plain Dataset."""
    found = contenders(task, folder, batch)
    rates: dict[str, list[float]] = {contender.name: [] for contender in found}
    for number in range(rounds + 1):
        for contender in found:
            begun = time.process_time()
            count = sum(1 for _ in contender.batches(number)) * batch
            if number:  # the first round pays for imports and fills caches
                rates[contender.name].append(count / (time.process_time() - begun))
    files = len(read_manifest(folder))
    size = sum(os.stat(folder / name).st_size for name, _ in read_manifest(folder)) / files
    print(f"{task}: {files} files of {size / 1000:.0f} kB, batches of {batch}; samples a CPU second")
    for name, values in rates.items():
        ratios = [mine / other for mine, other in zip(values, rates["plain Dataset, files"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        middle = statistics.median(values)
        print(
            f"  {name:<26} {middle:>7.0f}   {statistics.median(ratios):.2f} of the plain Dataset ({spread})"
        )


def scale(folder: Path, batch: int, workers: list[int], rounds: int) -> None:
    """Print speed and memory of three batches for each number of processes, medians of the rounds."""
    from geobind.data.shares import count_bytes
    from geobind_satellite import Satellite

    files, steps = read_manifest(folder), 3
    with open(folder / "again.csv", "w", newline="") as file:
        again = ((files[row % len(files)][0],) for row in range(batch * steps))
        csv.writer(file).writerows([("satellite",), *again])
    satellite = Satellite(
        timm={"model": "test_resnet", "pretrained": False},
        size=224,
        augment={"random_resized_crop": [0.5, 1]},
    )
    rows = TableRows(opened(folder / "again.csv", {"satellite": satellite}), ("satellite",))
    sides = {"satellite": ModalityInput(satellite, augment=True)}
    print(f"{steps} batches of {batch:,} tiles to crops of 224 pixels; medians of {rounds} rounds")
    print(
        f"{'processes':>9} {'first, s':>9} {'samples/s':>10} {'per CPU s':>10} {'rows between':>13} {'MB':>6}"
    )
    found: dict[int, list[tuple[float, ...]]] = {count: [] for count in workers}
    for _ in range(rounds):
        for count in workers:
            loader = BatchLoader(rows, sides, BatchSampler((len(rows),), batch, 0), 0, steps, workers=count)
            begun, busy, first, size = time.perf_counter(), _cpu_seconds(), 0.0, 0.0
            for _, made, _ in loader:
                first = first or time.perf_counter() - begun
                size = count_bytes(made["satellite"]) / batch / 1e6
            took, busy = time.perf_counter() - begun, _cpu_seconds() - busy
            most = loader.most_in_flight
            found[count].append((first, batch * steps / took, batch * steps / busy, most, most * size))
    for count, values in found.items():
        first, rate, each, most, size = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{count:>9} {first:>9.1f} {rate:>10.0f} {each:>10.0f} {most:>13,.0f} {size:>6.0f}", flush=True)


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
