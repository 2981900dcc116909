"""Cost of ways to decode, scale and resample, and their effect on the signal."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import soundfile
import soxr
import torch
import torchaudio
import torchvision.io
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from geobind.data import audio_seconds, read_audio, read_image
from geobind.data.readers.images import decode_image
from geobind.towers.images import ImageSpec, prepare_image

CLIP = ImageSpec(3, 224, (0.5,), (0.5,), "bicubic", squash=False, unit=True)
Calls = dict[str, Callable[[], object]]


def compare(rounds: int) -> None:
    for side, count in ((256, 20), (3500, 2)):
        files = [jpeg(side, number) for number in range(count)]
        told(
            f"a JPEG of {side} x {side} ({len(files[0]) // 1000} kB) to an RGB tensor",
            decoders(files),
            rounds,
            count,
        )
        scaled = {
            "all of it, channels first": lambda files=files: [small(read_image(file)) for file in files],
            "all of it, as decoded": lambda files=files: [small(decode_image(file)) for file in files],
            "what is needed (geobind)": lambda files=files: [
                small(decode_image(file, needed=224)) for file in files
            ],
            "to embed, by Pillow (geobind)": lambda files=files: [
                prepare_image(file, CLIP) for file in files
            ],
        }
        told("  ... scaled to 224", scaled, rounds, count)
    sounds(rounds)
    resampling(rounds)


def told(what: str, calls: Calls, rounds: int, count: int = 1) -> None:
    """Print the CPU time of each call, and its share of the first one's in the same round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            if number:
                times[name].append((time.process_time() - begun) / count)
    print(what)
    first = next(iter(times.values()))
    for name, values in times.items():
        ratio = statistics.median(mine / other for mine, other in zip(values, first, strict=True))
        print(f"    {name:<28} {1000 * statistics.median(values):>8.2f} ms   {ratio:.2f}")


def jpeg(side: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 220, (side // 16, side // 16, 3), dtype=np.uint8))
    fine = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
    fine += rng.normal(0, 5, (side, side, 1)).astype(np.int16)
    target = io.BytesIO()
    Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(target, "JPEG", quality=85)
    return target.getvalue()


def decoders(files: list[bytes]) -> Calls:
    def pillow(file: bytes) -> torch.Tensor:
        return torch.from_numpy(
            np.array(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1).copy()
        )

    def torchvisions(file: bytes) -> torch.Tensor:
        return torchvision.io.decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8))

    differ = max(int((pillow(file).short() - torchvisions(file).short()).abs().max()) for file in files)
    print(f"(torchvision's pixels differ from Pillow's by at most {differ})")
    return {
        "Pillow": lambda: [pillow(file) for file in files],
        "torchvision, as decoded": lambda: [torchvisions(file) for file in files],
        "read_image": lambda: [read_image(file) for file in files],
        "decode_image": lambda: [decode_image(file) for file in files],
    }


def small(image_CHW: torch.Tensor) -> torch.Tensor:
    size = [224, 224]
    return functional.resize(image_CHW, size, InterpolationMode.BICUBIC, antialias=True).contiguous()


def sounds(rounds: int) -> None:
    """A window of 2 s in the middle of a minute, read by seeking, against the whole."""
    noise = np.cumsum(np.random.default_rng(0).normal(0, 0.02, 60 * 48_000)) * 1e-3
    for kind, subtype in (("WAV", None), ("FLAC", None), ("OGG", None), ("OGG", "OPUS"), ("MP3", None)):
        target = io.BytesIO()
        with soundfile.SoundFile(target, "w", 48_000, 1, subtype, format=kind) as file:
            for start in range(0, len(noise), 40_000):  # libsndfile's Vorbis encoder wants small blocks
                file.write(noise[start : start + 40_000])
        content = target.getvalue()
        calls: Calls = {
            "the whole": lambda content=content: read_audio(content, 16_000),
            "its length": lambda content=content: audio_seconds(content, 16_000),
            "2 s of it": lambda content=content: read_audio(content, 16_000, start=29.0, seconds=2.0),
        }
        told(f"a minute of {subtype or kind} to 16 kHz", calls, rounds)


def resampling(rounds: int) -> None:
    """Time, and how much of a tone of 8.96 kHz (too high for 16 kHz) is left, and of one of 7.04 kHz lost."""
    samples_T = np.random.default_rng(0).normal(0, 0.1, 441_000).astype(np.float32)
    torchs = torchaudio.transforms.Resample(44_100, 16_000)
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        f"soxr {quality}": lambda x, quality=quality: soxr.resample(x, 44_100, 16_000, quality=quality)
        for quality in ("HQ", "QQ", "LQ", "MQ", "VHQ")
    }
    ways["soxr HQ, streamed"] = streamed
    ways["torchaudio"] = lambda x: torchs(torch.from_numpy(x)).numpy()
    told(
        "10 s from 44.1 to 16 kHz",
        {name: lambda way=way: way(samples_T) for name, way in ways.items()},
        rounds,
    )
    for name, way in ways.items():
        left, kept = (decibels(way(tone(hertz))) for hertz in (8960, 7040))
        print(
            f"    {name:<28} {left:>8.1f} dB left of what is too high, {kept:>6.2f} dB at 0.88 of the highest"
        )


def streamed(samples_T: np.ndarray) -> np.ndarray:
    stream, size = soxr.ResampleStream(44_100, 16_000, 1, dtype="float32", quality="HQ"), 65_536
    starts = range(0, len(samples_T), size)
    parts = [
        stream.resample_chunk(samples_T[at : at + size], last=at + size >= len(samples_T)) for at in starts
    ]
    return np.concatenate(parts)


def tone(hertz: float) -> np.ndarray:
    return (np.sqrt(2) * np.sin(2 * np.pi * hertz * np.arange(88_200) / 44_100)).astype(np.float32)


def decibels(samples_T: np.ndarray) -> float:
    return float(20 * np.log10(samples_T[4000:-4000].std() + 1e-12))
