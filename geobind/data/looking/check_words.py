"""What a look at a table found, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from geobind.data.looking.twins import STATED

NEAR_KM = (1.0, 10.0)
_LISTED = 5


def warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """Say what can be used but should be known: what splits share, silence, classes never trained on."""
    for name, told in report["modalities"].items():
        texts = set(told["kinds"]) <= {"words"}
        if told["repeated"]["across_splits"] and not texts:  # captions may well say the same of two places
            yield (
                f"{name}: {told['repeated']['across_splits']} observations are in several splits bit by bit: "
                + "; ".join(" = ".join(pair) for pair in told["repeated"]["examples"])
            )
        if told["near"]["pairs"]:
            yield (
                f"{name}: {told['near']['pairs']} pairs of images across splits are nearly the same: "
                + "; ".join(" ~ ".join(pair) for pair in told["near"]["examples"])
            )
        if told["silent"]:
            yield f"{name}: {told['silent']} sounds are silent"
        if len(told["sound_rates"]) > 1:
            yield f"{name}: sounds have {len(told['sound_rates'])} sampling rates; low ones lack treble"
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


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Say what was found, line by line."""
    yield f"{report['name']}: {report['rows']:,} rows; {_counts(report['splits'])}"
    if report["without_split"]:
        yield f"  {report['without_split']} rows are in no split"
    for name, told in report["modalities"].items():
        yield from _modality(name, told)
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
    if any(told["near"]["pairs"] for told in report["modalities"].values()):
        yield f"(nearly the same: {STATED})"
    yield from (f"warning: {warning}" for warning in report["warnings"])


def _modality(name: str, told: Mapping[str, Any]) -> Iterator[str]:
    yield f"{name}: {told['rows']} rows; {_counts(told['by_split'])}"
    if told["repeated"]["distinct"]:
        yield f"  {_counts(told['kinds'])}; {told['repeated']['distinct']:,} distinct"
    if told["image_sizes"]:
        yield f"  pixels {_counts(told['image_sizes'])}; channels {_counts(told['image_channels'])}"
    if told["sound_rates"]:
        yield f"  Hz {_counts(told['sound_rates'])}; seconds {_spread(told['sound_seconds'])}"
    if told["lengths"]:
        yield f"  length {_spread(told['lengths'])}"
    if told["flat"]:
        yield f"  {told['flat']} images have no feature and were not compared"
    if told["broken"]:
        yield f"  {told['broken']} cannot be used:"
        yield from (f"    {fault['row']}: {fault['reason']}" for fault in told["faults"][:_LISTED])
        if told["broken"] > _LISTED:
            yield f"    ... and {told['broken'] - _LISTED} more (--json lists them)"


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{word or 'in no split'} ({count:,})" for word, count in list(counts.items())[:_LISTED]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "") if shown else "none"


def _spread(values: Mapping[str, float]) -> str:
    return f"{values['least']:.4g} to {values['most']:.4g}, median {values['median']:.4g}"
