"""The data report: broken files, duplicates, near-duplicates, leaks between splits."""

# C channels, H height, W width, N images

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import numpy as np

from geobind.data.columns import ArrowColumn
from geobind.data.numbers import measure_vectors
from geobind.data.rasters.column import RasterColumn
from geobind.data.readers.files import describe, open_binary
from geobind.data.readers.image_header import detect_format, read_header
from geobind.errors import DataError
from geobind.modality import Place
from geobind.utils.geo import nearest_km
from geobind.utils.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.table import Table


Kind = Literal["image", "sound", "words", "numbers", "unknown"]

_SOUNDS = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"FORM", b".snd", b"RF64")
_FLAT = 2.0  # grey levels of 255; below, an image's hash is noise
SILENT = 1e-4  # of full scale
_HEAD, _PART = 16, 2**20  # bytes


@dataclass(frozen=True)
class ObservationFacts:
    """Properties of one observation; `fault` is the reason why it cannot be used."""

    kind: Kind = "unknown"
    fault: str | None = None
    digest: bytes = b""  # of the content; empty if it was not read
    size: tuple[int, int] | None = None  # width and height of an image
    channels: int | None = None
    rate: int | None = None
    seconds: float | None = None
    silent: bool = False
    length: int | None = None  # characters of a text, numbers of a vector
    marks: tuple[int, int] | None = None  # difference hashes of 64 and 256 bits; None of a flat image
    flat: bool = False  # an image of next to no contrast, such as one that is all black
    deep: bool = False  # whether an image holds other values than those of 8 bits

    @property
    def featureless(self) -> bool:
        """Whether there is nothing in it by which two places could be told apart."""
        return self.flat or self.silent


Prepare = Callable[[Any], Any]


def inspect_raw(raw: Any, prepare: Prepare | None = None) -> ObservationFacts:
    """Decode an observation and return its properties; faults are reported, not raised.

    Args:
        raw: A path, bytes, a string, an array of an image (H, W, C) or of numbers, or a place, as columns
            give them.
        prepare: What a modality makes of it: what that refuses is a fault too.
    """
    facts = _inspect(raw)
    if prepare is None or facts.fault is not None:
        return facts
    try:
        prepare(raw)
    except DataError as error:
        return replace(facts, fault=str(error))
    return facts


def _inspect(raw: Any) -> ObservationFacts:
    try:
        if isinstance(raw, str):
            return ObservationFacts(
                "words", digest=_hash_bytes(raw.encode("utf-8", "replace")), length=len(raw)
            )
        if isinstance(raw, np.ndarray):
            return _inspect_array(raw)
        if isinstance(raw, Place):
            return ObservationFacts("numbers", digest=_hash_bytes(repr(raw).encode()), length=len(raw))
        with open_binary(raw) as file:
            head = file.read(_HEAD)
            digest = _hash_stream(file, head)
        return _inspect_content(raw, head, digest)
    except (DataError, OSError) as error:
        return ObservationFacts(fault=str(error))


def detect_kind(content: bytes) -> Kind:
    """Detect the kind of an encoded observation by its first bytes; `unknown` may be text."""
    if detect_format(content) is not None:
        return "image"
    return "sound" if content.startswith((b"RIFF", *_SOUNDS)) else "unknown"


def _inspect_content(raw: Path | bytes, head: bytes, digest: bytes) -> ObservationFacts:
    from geobind.data.readers.text import read_text

    kind = detect_kind(head)
    try:
        if kind == "image":
            return _inspect_image(raw, digest)
        if kind == "sound":
            return _inspect_sound(raw, digest)
        return ObservationFacts("words", digest=digest, length=len(read_text(raw)))
    except DataError as error:
        if kind == "unknown" and isinstance(error.__cause__, UnicodeDecodeError):
            fault = f"{describe(raw)}: is no image, sound or text known here; it begins with {head[:8]!r}"
            return ObservationFacts(fault=fault)
        return ObservationFacts(kind, str(error), digest)


def _inspect_array(array: NDArray[Any]) -> ObservationFacts:
    digest = _hash_bytes(np.ascontiguousarray(array).data)
    if array.ndim != 3:
        lacking = np.isinf(array).any() or np.isnan(array).all()  # NaN is a number that is missing
        fault = "holds numbers that are infinite, or nothing but NaN" if lacking else None
        return ObservationFacts("numbers", fault, digest, length=array.size)
    return _describe_image(array.transpose(2, 0, 1), digest)


def _describe_image(image_CHW: NDArray[Any], digest: bytes) -> ObservationFacts:
    channels, height, width = image_CHW.shape
    marks = _compute_hashes(image_CHW)
    return ObservationFacts(
        "image",
        None,
        digest,
        (width, height),
        channels,
        marks=marks,
        flat=marks is None,
        deep=image_CHW.dtype != np.uint8,
    )


def _inspect_image(raw: Path | bytes, digest: bytes) -> ObservationFacts:
    """Inspect an encoded image in the bands that it has; no modality says here how many it wants."""
    from geobind.data.readers.images import is_too_large, read_image

    with open_binary(raw) as file:
        header = read_header(file, describe(raw))
    if header is None or header.photo:
        return _describe_image(read_image(raw).numpy(), digest)
    large = is_too_large(header.width, header.height)
    if large and header.format in ("TIFF", "JPEG2000") and isinstance(raw, Path):
        return _inspect_raster(raw, digest)
    return _describe_image(read_image(raw, channels=header.bands).numpy(), digest)


def _inspect_raster(path: Path, digest: bytes) -> ObservationFacts:
    from geobind.data.rasters.opening import open_raster

    dataset = open_raster(path)
    size, deep = (dataset.width, dataset.height), set(dataset.dtypes) != {"uint8"}
    return ObservationFacts("image", None, digest, size, dataset.count, deep=deep)


_ANY_RATE = 16_000  # of a file, which has one of its own


def _inspect_sound(raw: Path | bytes, digest: bytes) -> ObservationFacts:
    from geobind.data.readers.audio import open_recording

    with open_recording(raw, _ANY_RATE) as recording:
        rate, channels = recording.rate, recording.channels
        samples_T = recording.read(rate)
    return ObservationFacts(
        "sound",
        None,
        digest,
        channels=channels,
        rate=rate,
        seconds=len(samples_T) / rate,
        silent=float(samples_T.abs().max()) < SILENT,
    )


def _compute_hashes(image_CHW: NDArray[Any]) -> tuple[int, int] | None:
    """Return the difference hashes of an image: is each patch brighter than the one to its left?"""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    grey_11HW = torch.from_numpy(image_CHW.mean(axis=0, dtype=np.float64))[None, None]
    coarse, fine = (adaptive_avg_pool2d(grey_11HW, (n, n + 1))[0, 0].numpy() for n in (8, 16))
    scale = (
        1.0
        if image_CHW.dtype == np.uint8
        else 255 / max(1e-9, float(image_CHW.max()) - float(image_CHW.min()))
    )
    if coarse.std() * scale < _FLAT:
        return None
    small, large = (
        int.from_bytes(np.packbits(np.diff(patches, axis=1) > 0).tobytes(), "big")
        for patches in (coarse, fine)
    )
    return small, large


def _hash_stream(file: BinaryIO, head: bytes) -> bytes:
    digest = hashlib.blake2b(head, digest_size=16)
    while part := file.read(_PART):  # a raster may be larger than memory
        digest.update(part)
    return digest.digest()


def _hash_bytes(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


_CHUNK = 64  # observations looked at together; those not in files of their own are held in memory


class InspectedObservation(NamedTuple):
    """An observation: its row and its properties."""

    row: int
    facts: ObservationFacts


def inspect_column(table: Table, name: str, prepare: Prepare | None = None) -> Iterator[InspectedObservation]:
    """Inspect every observation of a modality, a file that many rows name only once."""

    def inspect(raw: Any) -> ObservationFacts:
        return inspect_raw(raw, prepare)

    known: dict[Path, ObservationFacts] = {}
    rows = table.rows_with([name])
    if not len(rows):
        return
    raws = _raws(table, name, track(rows, f"checking {name}", len(rows)))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoders let other threads run
        while chunk := list(islice(raws, _CHUNK)):
            fresh = dict.fromkeys(raw for _, raw in chunk if isinstance(raw, Path) and raw not in known)
            known |= zip(fresh, pool.map(inspect, fresh), strict=True)
            others = pool.map(
                inspect, [raw for _, raw in chunk if not isinstance(raw, Path | ObservationFacts)]
            )
            for row, raw in chunk:
                if isinstance(raw, ObservationFacts):
                    yield InspectedObservation(row, raw)
                else:
                    yield InspectedObservation(row, known[raw] if isinstance(raw, Path) else next(others))


def _raws(table: Table, name: str, rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield each observation with its row, or the facts of one that cannot be had."""
    samples = table.samples(name)
    for row in rows:
        try:
            cell = samples[int(row)]
        except DataError as error:
            yield int(row), ObservationFacts(fault=str(error))
            continue
        yield from ((int(row), raw) for raw in (cell if isinstance(cell, list) else [cell]))


def check_column_files(table: Table, name: str) -> Iterator[InspectedObservation]:
    """Check that the files of a modality exist and are not empty, without decoding them."""
    column = table.columns[name]
    number = {int(row): index for index, row in enumerate(table.rows_N)}
    if isinstance(column, ArrowColumn) and column.files is not None:
        for row, file in column.file_names(table.rows_N, len(table) * 1000):
            yield InspectedObservation(number[row], ObservationFacts(fault=column.files.fault(file)))
        return
    if isinstance(column, RasterColumn):
        files = column.file_names(table.rows_N, len(table))
        faults = [(row, fault) for row, file in files if (fault := column.files.fault(file))]
        yield from (InspectedObservation(number[row], ObservationFacts(fault=fault)) for row, fault in faults)
        if faults:
            return
    yield from (InspectedObservation(int(row), ObservationFacts()) for row in table.rows_with([name]))


SMALL, LARGE = 3, 32  # bits of 64 and of 256 by which two images that are the same may differ
_BLOCK = 500_000  # pairs compared at a time
STATED = (
    f"difference hashes that differ by at most {SMALL} of 64 and {LARGE} of 256 bits: the same image saved "
    "again or resized, not one cropped or turned"
)


def find_near_duplicates(
    marks: Sequence[tuple[int, int] | None], splits: Sequence[str | None]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that are nearly the same and lie in different splits, each once.

    Args:
        marks: The hashes of each image, of 64 and 256 bits; None of one that has none.
        splits: The split of each image; those of None are left out.
    """
    rows = [row for row, mark in enumerate(marks) if mark is not None and splits[row] is not None]
    small_N = np.array([_mark(marks, row)[0] for row in rows], dtype=np.uint64)
    seen: set[tuple[int, int]] = set()
    # Two hashes that differ in at most 3 bits agree in one of 4 parts.
    for part in range(SMALL + 1):
        key_N = (small_N >> np.uint64(16 * part)) & np.uint64(0xFFFF)
        for bucket in _buckets(key_N):
            for one, other in _pairs(bucket, [splits[rows[i]] for i in bucket], small_N):
                pair = rows[one], rows[other]
                if pair not in seen and _differ(marks, *pair) <= LARGE:
                    seen.add(pair)
                    yield pair


def _mark(marks: Sequence[tuple[int, int] | None], row: int) -> tuple[int, int]:
    return marks[row] or (0, 0)


def _differ(marks: Sequence[tuple[int, int] | None], one: int, other: int) -> int:
    return (_mark(marks, one)[1] ^ _mark(marks, other)[1]).bit_count()


def _buckets(key_N: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    order = np.argsort(key_N, kind="stable")
    edges = np.flatnonzero(np.diff(key_N[order])) + 1
    yield from (bucket for bucket in np.split(order, edges) if len(bucket) > 1)


def _pairs(
    bucket: NDArray[np.int64], splits: Sequence[str | None], small_N: NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    groups = {split: bucket[[s == split for s in splits]] for split in dict.fromkeys(splits)}
    for (one, first), (other, second) in product(groups.items(), repeat=2):
        if str(one) >= str(other):
            continue
        step = max(1, _BLOCK // len(second))
        for start in range(0, len(first), step):
            part = first[start : start + step]
            differing = small_N[part][:, None] ^ small_N[second][None]
            bits = np.unpackbits(differing.view(np.uint8).reshape(*differing.shape, 8), axis=-1)
            for i, j in np.argwhere(bits.sum(axis=-1) <= SMALL):
                yield int(part[i]), int(second[j])


NEAR_KM = (1.0, 10.0)
_LISTED = 5
_MOST_RASTERS = 1000  # of a column whose scales are compared


def list_warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield warnings about usable data: shared rows between splits, silence, classes absent from training."""
    for name, summary in report["modalities"].items():
        texts = set(summary["kinds"]) <= {"words"}
        if summary["repeated"]["across_splits"] and not texts:  # captions may well say the same of two places
            yield (
                f"{name}: {summary['repeated']['across_splits']} observations are in several "
                "splits bit by bit: "
                + "; ".join(" = ".join(pair) for pair in summary["repeated"]["examples"])
            )
        if summary["near"]["pairs"]:
            yield (
                f"{name}: {summary['near']['pairs']} pairs of images across splits are nearly the same: "
                + "; ".join(" ~ ".join(pair) for pair in summary["near"]["examples"])
            )
        if summary["silent"]:
            yield f"{name}: {summary['silent']} sounds are silent"
        if summary["flat"]:
            images = summary["kinds"]["image"]
            yield (
                f"{name}: {summary['flat']} of {images} images are of one colour or nearly (all black, say): "
                "look at one; missing pixels and a wrong `stretch` look so"
            )
        if len(summary["image_values"]) > 1:
            both = _counts(summary["image_values"])
            yield (
                f"{name}: images of {both} are mixed; values of 8 bits count from "
                "0 to 1 and others as they are: bring all to one type (rasters by `stretch`)"
            )
        if summary["scales"]:
            yield f"{name}: {summary['scales']}"
        if len(summary["sound_rates"]) > 1:
            yield f"{name}: sounds have {len(summary['sound_rates'])} sampling rates; low ones lack treble"
    for pair in (report["places"] or {}).get("apart", []):
        if pair["within_1_km"] or pair["least_km"] < NEAR_KM[0]:
            yield (
                f"places: {pair['within_1_km']:.1%} of '{pair['of']}' lie within 1 km of '{pair['from']}' "
                f"(the nearest at {pair['least_km']:,.2f} km); split by blocks: `geobind data split`"
            )
    groups = report["groups"]
    if groups and groups["across_splits"]:
        yield (
            f"groups: {groups['across_splits']} of {groups['groups']} have rows in several splits: "
            f"{'; '.join(groups['examples'])}; keep them whole: `geobind data split --by group`"
        )
    labels = report["labels"]
    if labels and "train" in labels["by_split"]:
        for split, counts in labels["by_split"].items():
            strange = sorted(set(counts) - set(labels["by_split"]["train"]))
            if strange:
                yield f"labels: '{split}' has classes that 'train' has not: {', '.join(strange[:10])}"


def format_report(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report as lines of text."""
    yield f"{report['name']}: {report['rows']:,} rows; {_counts(report['splits'])}"
    if report["without_split"]:
        yield f"  {report['without_split']} rows are in no split"
    for name, summary in report["modalities"].items():
        yield from _modality_lines(name, summary)
    if labels := report["labels"]:
        (most, many), (least, few) = labels["largest"], labels["smallest"]
        yield f"labels: {labels['classes']} classes, from {least} ({few} rows) to {most} ({many} rows)"
        if labels["without"]:
            yield f"  {labels['without']} rows have none"
    if groups := report["groups"]:
        yield f"groups: {groups['groups']:,}; in several splits: {groups['across_splits']:,}"
        if groups["without"]:
            yield f"  {groups['without']} rows have none"
    if places := report["places"]:
        yield f"places: {places['rows']} rows"
        for pair in places["apart"]:
            shares = ", ".join(f"{pair[f'within_{km:g}_km']:.1%} within {km:g} km" for km in NEAR_KM)
            yield f"  '{pair['of']}' from '{pair['from']}': at least {pair['least_km']:,.1f} km; {shares}"
    if any(summary["near"]["pairs"] for summary in report["modalities"].values()):
        yield f"(nearly the same: {STATED})"
    yield from (f"warning: {warning}" for warning in report["warnings"])


def _modality_lines(name: str, summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"{name}: {summary['rows']} rows; {_counts(summary['by_split'])}"
    if summary["repeated"]["distinct"]:
        yield f"  {_counts(summary['kinds'])}; {summary['repeated']['distinct']:,} distinct"
    if summary["image_sizes"]:
        yield f"  pixels {_counts(summary['image_sizes'])}; channels {_counts(summary['image_channels'])}"
    if summary["sound_rates"]:
        yield f"  Hz {_counts(summary['sound_rates'])}; seconds {_spread_text(summary['sound_seconds'])}"
    if summary["lengths"]:
        yield f"  length {_spread_text(summary['lengths'])}"
    if spread := summary["spread"]:
        whose = f"rows of '{spread['split']}'" if spread["split"] else "rows"
        yield f"  for a recipe, by {spread['rows']:,} {whose}: {spread['options']}"
    if summary["flat"]:
        yield f"  {summary['flat']} images are of one colour or nearly, and were not compared"
    if summary["broken"]:
        yield f"  {summary['broken']} cannot be used:"
        yield from (f"    {fault['row']}: {fault['reason']}" for fault in summary["faults"][:_LISTED])
        if summary["broken"] > _LISTED:
            yield f"    ... and {summary['broken'] - _LISTED} more (--json lists them)"


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{word or 'in no split'} ({count:,})" for word, count in list(counts.items())[:_LISTED]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"


def _spread_text(values: Mapping[str, float]) -> str:
    return f"{values['least']:.4g} to {values['most']:.4g}, median {values['median']:.4g}"


# N rows


_EXAMPLES = 5
Report = dict[str, Any]


def inspect_table(
    table: Table,
    *,
    quick: bool = False,
    prepare: Mapping[str, Prepare] | None = None,
    training: str = "train",
) -> Report:
    """Return a report on a table's contents, as values that JSON can hold.

    Args:
        table: What to look at.
        quick: Only see whether files are there and not empty; nothing is decoded or compared.
        prepare: What the modalities of a recipe make of their observations: what they refuse is broken.
        training: The split that mean and standard deviation of vectors are taken of; of all rows without it.

    Returns:
        `rows`, `splits`, `modalities` (for each: rows by split, kinds, sizes, rates, repeats, and of vectors
        the `spread` of their numbers), `labels`,
        `groups` (those in several splits), `places` (distances between splits), `broken` (how many
        observations cannot be used), `broken_rows` (the numbers of their rows, from 0) and `warnings`
        (sentences about what can be used but should be known).
    """
    splits = _splits(table)
    known = table.split(training) if training in table.splits else table
    modalities: dict[str, Report] = {}
    for name in table.columns:
        seen = (
            check_column_files(table, name)
            if quick
            else inspect_column(table, name, (prepare or {}).get(name))
        )
        modalities[name] = _modality(list(seen), splits, table.keys, _compare_scales(table, name))
        spread = None if quick else measure_vectors(known, name)
        modalities[name]["spread"] = spread and spread.to_dict() | {"split": known.view or None}
    report: Report = {
        "name": table.name,
        "rows": len(table),
        "splits": table.splits,
        "without_split": sum(split is None for split in splits),
        "modalities": modalities,
        "labels": _labels(table.labels, splits),
        "groups": _groups(table.groups, splits),
        "places": _places(table.places_LL, splits),
        "broken": sum(summary["broken"] for summary in modalities.values()),
        "broken_rows": sorted({row for summary in modalities.values() for row in summary.pop("broken_rows")}),
    }
    return {**report, "warnings": list(list_warnings(report))}


def _splits(table: Table) -> list[str | None]:
    splits: list[str | None] = [None] * len(table)
    for name in table.splits:
        for row in np.flatnonzero(np.isin(table.rows_N, table.split(name).rows_N)):
            splits[row] = name
    return splits


def _modality(
    items: Sequence[InspectedObservation],
    splits: Sequence[str | None],
    keys: Sequence[str],
    scales: str | None,
) -> Report:
    good = [item for item in items if item.facts.fault is None]
    rows = {item.row for item in items}
    bad = [item for item in items if item.facts.fault is not None]
    kinds = Counter(item.facts.kind for item in good)
    return {
        "rows": len(rows),
        "by_split": dict(sorted(Counter(splits[row] or "" for row in rows).items())),
        "observations": len(items),
        "kinds": dict(kinds.most_common()),
        "broken": len(bad),
        "broken_rows": [item.row for item in bad],
        "faults": [{"row": keys[item.row], "reason": item.facts.fault} for item in bad[:1000]],
        "image_sizes": _counted(f"{f.size[0]} x {f.size[1]}" for _, f in good if f.size),
        "image_channels": _counted(str(f.channels) for _, f in good if f.size),
        "image_values": _counted("other values" if f.deep else "8 bits" for _, f in good if f.size),
        "sound_rates": _counted(str(f.rate) for _, f in good if f.rate),
        "sound_seconds": _spread([f.seconds for _, f in good if f.seconds is not None]),
        "silent": sum(f.silent for _, f in good),
        "lengths": _spread([f.length for _, f in good if f.length is not None]),
        "repeated": _repeated(good, splits, keys),
        "near": _near(good, splits, keys),
        "flat": sum(f.flat for _, f in good),
        "scales": scales,
    }


def _compare_scales(table: Table, name: str) -> str | None:
    """Return what is wrong with the scales and offsets that the rasters of a column state, if anything is."""
    from geobind.data.rasters.window import list_scales

    column = table.columns[name]
    if not isinstance(column, RasterColumn):
        return None
    stated: set[tuple[float, float]] = set()
    for _, file in column.file_names(table.rows_N, _MOST_RASTERS):
        with suppress(DataError):  # it is broken, and reported as such
            stated |= set(list_scales(column.files(file)))
    applied = column.options.scaled is not False
    if len(stated) < 2 or (applied and (1.0, 0.0) not in stated):
        return None
    listed = ", ".join(f"* {scale:g} + {offset:g}" for scale, offset in sorted(stated)[:_LISTED])
    return (
        "some rasters state a scale or an offset, which is applied, and others none"
        if applied
        else "rasters state different scales and offsets, and their values are read as stored"
    ) + f" ({listed}): the same number may mean different things"


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "least": float(min(values)),
        "median": float(np.median(np.array(values))),
        "most": float(max(values)),
    }


def _repeated(
    items: Sequence[InspectedObservation], splits: Sequence[str | None], keys: Sequence[str]
) -> Report:
    """Count observations whose content, bit by bit, is in several rows, and in several splits."""
    rows: defaultdict[bytes, dict[int, None]] = defaultdict(dict)
    for row, facts in items:
        if facts.digest and not facts.featureless:  # all that is black is alike, and no sign of a leak
            rows[facts.digest][row] = None
    groups = [list(group) for group in rows.values() if len(group) > 1]
    across = [group for group in groups if len({splits[row] for row in group} - {None}) > 1]
    return {
        "distinct": len(rows),
        "groups": len(groups),
        "across_splits": len(across),
        "examples": [_named(group, splits, keys) for group in (across or groups)[:_EXAMPLES]],
    }


def _near(items: Sequence[InspectedObservation], splits: Sequence[str | None], keys: Sequence[str]) -> Report:
    """Count images that are nearly the same as one in another split, but not the same bit by bit."""
    pairs: list[tuple[int, int]] = []
    for one, other in find_near_duplicates([f.marks for _, f in items], [splits[row] for row, _ in items]):
        if items[one].facts.digest != items[other].facts.digest:
            pairs.append((items[one].row, items[other].row))
    return {
        "pairs": len(pairs),
        "examples": [_named(sorted(pair), splits, keys) for pair in sorted(pairs)[:_EXAMPLES]],
    }


def _named(rows: Iterable[int], splits: Sequence[str | None], keys: Sequence[str]) -> list[str]:
    """Name rows with their splits, one of each split first."""
    first: dict[str | None, int] = {}
    for row in rows:
        first.setdefault(splits[row], row)
    chosen = list(first.values()) if len(first) > 1 else list(islice(rows, 2))
    return [f"{keys[row]} ({splits[row]})" for row in chosen]


def _labels(labels: Sequence[str | None] | None, splits: Sequence[str | None]) -> Report | None:
    if labels is None:
        return None
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for label, split in zip(labels, splits, strict=True):
        if label is not None:
            counts[split or ""][label] += 1
    total = sum(counts.values(), Counter[str]())
    ranked = total.most_common()
    return {
        "classes": len(total),
        "without": sum(label is None for label in labels),
        "largest": ranked[0],
        "smallest": ranked[-1],
        "by_split": {split: dict(count.most_common()) for split, count in sorted(counts.items())},
    }


def _groups(groups: Sequence[str | None] | None, splits: Sequence[str | None]) -> Report | None:
    """Count what should not be cut, such as recordings, and what is cut all the same."""
    if groups is None:
        return None
    found: defaultdict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        if group is not None:
            found[group] |= {split} if split is not None else set()
    across = [group for group, there in found.items() if len(there) > 1]
    return {
        "groups": len(found),
        "without": sum(group is None for group in groups),
        "across_splits": len(across),
        "examples": [f"{group} ({', '.join(sorted(found[group]))})" for group in across[:_EXAMPLES]],
    }


def _places(places_NLL: NDArray[np.float64] | None, splits: Sequence[str | None]) -> Report | None:
    """Measure how near the places of each split come to those of each other split."""
    if places_NLL is None:
        return None
    known_N = np.isfinite(places_NLL).all(axis=1)
    names = sorted({split for split in splits if split is not None})
    split_N = np.array([split or "" for split in splits])
    places = {name: places_NLL[known_N & (split_N == name)] for name in names}
    apart: list[Report] = []
    for one, other in combinations([name for name in names if len(places[name])], 2):
        few, many = sorted((one, other), key=lambda name: len(places[name]))
        km_N = nearest_km(places[few], places[many])
        shares = {f"within_{limit:g}_km": float((km_N < limit).mean()) for limit in NEAR_KM}
        apart.append({"of": few, "from": many, "least_km": float(km_N.min()), **shares})
    return {"rows": int(known_N.sum()), "apart": apart}
