"""Look at every observation of a table: what cannot be used, what is there twice, what splits share."""

# N rows

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from geobind.data.check_words import NEAR_KM, warnings
from geobind.data.columns import ArrowColumn
from geobind.data.inspecting import Facts, inspect_raw
from geobind.data.nearest import nearest_km
from geobind.data.raster_cells import RasterColumn
from geobind.data.twins import twins_across
from geobind.errors import DataError
from geobind.progress import track

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.table import Table

_CHUNK = 64  # observations looked at together; those not in files of their own are held in memory
_EXAMPLES = 5
Report = dict[str, Any]


class _Item(NamedTuple):
    row: int
    facts: Facts


def check_table(table: Table, *, quick: bool = False) -> Report:
    """Look at a table and say what is in it, in values that JSON can hold.

    Args:
        table: What to look at.
        quick: Only see whether files are there and not empty; nothing is decoded or compared.

    Returns:
        `rows`, `splits`, `modalities` (for each: rows by split, kinds, sizes, rates, repeats), `labels`,
        `groups` (those in several splits), `places` (distances between splits), `broken` (how many
        observations cannot be used) and `warnings` (sentences about what can be used but should be known).
    """
    splits = _splits(table)
    look = _look_quickly if quick else _look
    found = {name: list(look(table, name)) for name in table.columns}
    modalities = {name: _modality(items, splits, table.keys) for name, items in found.items()}
    report: Report = {
        "name": table.name,
        "rows": len(table),
        "splits": table.splits,
        "without_split": sum(split is None for split in splits),
        "modalities": modalities,
        "labels": _labels(table.labels, splits),
        "groups": _groups(table.groups, splits),
        "places": _places(table.places_LL, splits),
        "broken": sum(told["broken"] for told in modalities.values()),
    }
    return {**report, "warnings": list(warnings(report))}


def _splits(table: Table) -> list[str | None]:
    splits: list[str | None] = [None] * len(table)
    for name in table.splits:
        for row in np.flatnonzero(np.isin(table.rows_N, table.split(name).rows_N)):
            splits[row] = name
    return splits


def _look(table: Table, name: str) -> Iterator[_Item]:
    """Inspect every observation of a modality, a file that many rows name only once."""
    known: dict[Path, Facts] = {}
    rows = table.rows_with([name])
    if not len(rows):
        return
    raws = _raws(table, name, track(rows, f"checking {name}", len(rows)))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoders let other threads run
        while chunk := list(islice(raws, _CHUNK)):
            fresh = dict.fromkeys(raw for _, raw in chunk if isinstance(raw, Path) and raw not in known)
            known |= zip(fresh, pool.map(inspect_raw, fresh), strict=True)
            others = pool.map(inspect_raw, [raw for _, raw in chunk if not isinstance(raw, Path | Facts)])
            for row, raw in chunk:
                if isinstance(raw, Facts):
                    yield _Item(row, raw)
                else:
                    yield _Item(row, known[raw] if isinstance(raw, Path) else next(others))


def _raws(table: Table, name: str, rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield each observation with its row, or the facts of one that cannot be had."""
    samples = table.samples(name)
    for row in rows:
        try:
            cell = samples[int(row)]
        except DataError as error:
            yield int(row), Facts(fault=str(error))
            continue
        yield from ((int(row), raw) for raw in (cell if isinstance(cell, list) else [cell]))


def _look_quickly(table: Table, name: str) -> Iterator[_Item]:
    column = table.columns[name]
    number = {int(row): index for index, row in enumerate(table.rows_N)}
    if isinstance(column, ArrowColumn) and column.files is not None:
        for row, file in column.file_names(table.rows_N, len(table) * 1000):
            yield _Item(number[row], Facts(fault=column.files.fault(file)))
        return
    if isinstance(column, RasterColumn):
        files = column.file_names(table.rows_N, len(table))
        faults = [(row, fault) for row, file in files if (fault := column.files.fault(file))]
        yield from (_Item(number[row], Facts(fault=fault)) for row, fault in faults)
        if faults:
            return
    yield from (_Item(int(row), Facts()) for row in table.rows_with([name]))


def _modality(items: Sequence[_Item], splits: Sequence[str | None], keys: Sequence[str]) -> Report:
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
        "faults": [{"row": keys[item.row], "reason": item.facts.fault} for item in bad[:1000]],
        "image_sizes": _counted(f"{f.size[0]} x {f.size[1]}" for _, f in good if f.size),
        "image_channels": _counted(str(f.channels) for _, f in good if f.size),
        "sound_rates": _counted(str(f.rate) for _, f in good if f.rate),
        "sound_seconds": _spread([f.seconds for _, f in good if f.seconds is not None]),
        "silent": sum(f.silent for _, f in good),
        "lengths": _spread([f.length for _, f in good if f.length is not None]),
        "repeated": _repeated(good, splits, keys),
        "near": _near(good, splits, keys),
        "flat": sum(f.kind == "image" and f.size is not None and f.marks is None for _, f in good),
    }


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


def _repeated(items: Sequence[_Item], splits: Sequence[str | None], keys: Sequence[str]) -> Report:
    """Count observations whose content, bit by bit, is in several rows, and in several splits."""
    rows: defaultdict[bytes, dict[int, None]] = defaultdict(dict)
    for row, facts in items:
        if facts.digest:
            rows[facts.digest][row] = None
    groups = [list(group) for group in rows.values() if len(group) > 1]
    across = [group for group in groups if len({splits[row] for row in group} - {None}) > 1]
    return {
        "distinct": len(rows),
        "groups": len(groups),
        "across_splits": len(across),
        "examples": [_named(group, splits, keys) for group in (across or groups)[:_EXAMPLES]],
    }


def _near(items: Sequence[_Item], splits: Sequence[str | None], keys: Sequence[str]) -> Report:
    """Count images that are nearly the same as one in another split, but not the same bit by bit."""
    pairs: list[tuple[int, int]] = []
    for one, other in twins_across([f.marks for _, f in items], [splits[row] for row, _ in items]):
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
