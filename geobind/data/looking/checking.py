"""Look at every observation of a table: what cannot be used, what is there twice, what splits share."""

# N rows

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from geobind.data.looking.check_words import NEAR_KM, warnings
from geobind.data.looking.columns import Seen, look, look_quickly
from geobind.data.looking.twins import twins_across
from geobind.utils.geo import nearest_km

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geobind.data.tables.table import Table

_EXAMPLES = 5
Report = dict[str, Any]


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
    view = look_quickly if quick else look
    found = {name: list(view(table, name)) for name in table.columns}
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


def _modality(items: Sequence[Seen], splits: Sequence[str | None], keys: Sequence[str]) -> Report:
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


def _repeated(items: Sequence[Seen], splits: Sequence[str | None], keys: Sequence[str]) -> Report:
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


def _near(items: Sequence[Seen], splits: Sequence[str | None], keys: Sequence[str]) -> Report:
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
