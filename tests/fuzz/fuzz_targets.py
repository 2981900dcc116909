"""Read damaged files as geobind does. What comes back must be sound, and what is refused must say why."""

import math
from pathlib import Path

import fuzz_documents
import numpy as np
import torch

from geobind.data.inspect import inspect_raw
from geobind.data.manifest import list_manifest_columns
from geobind.data.options import DataOptions, RasterOptions
from geobind.data.rasters.opening import open_raster
from geobind.data.rasters.window import read_pixels, read_window
from geobind.data.readers.audio import audio_seconds, read_audio
from geobind.data.readers.images import read_image
from geobind.data.readers.tar import build_index, read_member
from geobind.data.split import SplitOptions, split_manifest
from geobind.data.table import open_table
from geobind.errors import GeobindError

LONGEST_LINE, MOST_LINES = 3000, 120  # of a reason: characters; a recipe has up to a hundred mistakes
NAMES = ("photo", "caption", "window", "numbers")


class Wrong(Exception):
    """A result, or the reason of a refusal, is not as it should be."""


def outcome(kind, content, folder, number):
    """Return "read" or the reason why not; anything else that happens is a fault and is raised."""
    reasons = [reason for call in calls(kind, content, folder, number) if (reason := told(call))]
    return reasons[0] if reasons else "read"


def told(call):
    try:
        call()
    except GeobindError as error:
        reason = str(error)
        lines = reason.splitlines()
        if not reason.strip() or len(lines) > MOST_LINES or max(map(len, lines)) > LONGEST_LINE:
            raise Wrong(f"a reason of {len(reason)} characters: {reason[:200]!r}") from error
        return reason
    return None


def calls(kind, content, folder, number):
    Path(folder).mkdir(exist_ok=True)
    if kind in ("csv", "tsv", "jsonl", "parquet", "geoparquet"):
        path = written(folder, f"{number}.{kind}", content)
        return [lambda: manifest(path), lambda: split(path), lambda: columns(path)]
    if kind in ("recipe", "sweep") or kind.startswith(("run:", "bundle:")):
        return fuzz_documents.calls(kind, content, folder)
    if kind == "tar":
        path = written(folder, f"{number}.tar", content)
        return [lambda: tar(path)]
    if kind == "geotiff":
        path = written(folder, f"{number}.tif", content)
        told(lambda: image(content))  # most have more bands or bits than a photo, and are refused
        return [lambda: raster(path), lambda: inspected(path)]
    if kind in ("wav", "flac", "ogg", "opus", "mp3", "aiff"):
        return [lambda: sound(content), lambda: inspected(content)]
    told(lambda: image(content, channels=1))  # most have three, and are refused
    return [lambda: image(content), lambda: inspected(content)]


def written(folder, name, content):
    path = Path(folder) / name
    path.write_bytes(content)
    return path


def image(content, channels=3):
    image_CHW = read_image(content, channels=channels)
    if image_CHW.shape[0] != channels or image_CHW.dtype not in (torch.uint8, torch.float32):
        raise Wrong(f"an image of shape {tuple(image_CHW.shape)} and type {image_CHW.dtype}")
    if image_CHW.dtype == torch.float32 and not image_CHW.isfinite().all():
        raise Wrong("an image that is not finite")


def sound(content):
    seconds = audio_seconds(content, 16_000)
    if not 0 <= seconds < math.inf:
        raise Wrong(f"a sound of {seconds} s")
    for window in ({}, {"start": seconds / 2, "seconds": 0.2}, {"loudness": -23.0}):
        samples_T = read_audio(content, 16_000, **window)
        if samples_T.dtype != torch.float32 or not len(samples_T) or not samples_T.isfinite().all():
            raise Wrong(f"a sound of {len(samples_T)} samples of type {samples_T.dtype}")


def raster(path):
    dataset = open_raster(path)
    for pixels in (
        lambda: read_pixels(path, 0, 0, 32, 32, RasterOptions(min_valid=0)),
        lambda: read_window(
            path, 45.1, 15.0, RasterOptions(size_m=320, gsd=20, stretch=(0, 3000), min_valid=0)
        ),
    ):
        array_HWB = pixels()
        if array_HWB.dtype not in (np.uint8, np.float32) or array_HWB.shape[:2] not in ((32, 32), (16, 16)):
            raise Wrong(f"a window of shape {array_HWB.shape} and type {array_HWB.dtype} of {dataset.name}")


def inspected(raw):
    facts = inspect_raw(raw)
    if facts.fault is not None:
        raise GeobindError(facts.fault)


def manifest(path):
    table = open_table(DataOptions(manifest=path.name), path.parent, NAMES)
    if table.places_LL is not None and not (np.abs(np.nan_to_num(table.places_LL)) <= [90, 180]).all():
        raise Wrong("places that are none")
    for told_of_rows in (table.splits, table.labels, table.groups, table.time):
        len(told_of_rows) if told_of_rows is not None else 0
    reasons = []
    for name in table.columns:
        rows = table.rows_with([name])[:5]
        for row in rows:
            try:
                table.samples(name)[int(row)]
            except GeobindError as error:  # a file named there is not there, mostly
                reasons.append(error)
    if table.keys:
        str(table.keys[0]), str(table.keys[len(table) - 1])


def columns(path):
    list_manifest_columns(path)


def split(path):
    split_manifest(path, path.with_name(f"split-{path.name}"), SplitOptions(by="random", shares=(0.5, 0.5)))


def tar(path):
    for name in ("a.jpg", "b" * 5, "b" * 150):
        try:
            read_member(path, name, f"{path.name}::{name}")
        except GeobindError as error:
            if "no such member" not in str(error):
                raise
    if build_index(path).shape[1] > 1000:
        raise Wrong("more members than there can be")
