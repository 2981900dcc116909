"""Marks of pairs of modalities: trained, emergent, of one shared tower, stale or unconnected.

Every mark follows from what the stages compared and trained, in their order, and from which encoders began as
the two sides of one pretrained CLIP: `mark_pairs`. Tables, reports, checks and defaults all ask it.
"""

# P pairs of modalities, in no order

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

Mark = Literal["trained", "emergent", "shared tower", "stale", "unconnected"]
MARKS: tuple[Mark, ...] = get_args(Mark)
MEANINGS: Mapping[Mark, str] = {
    "trained": "a stage aligned the two, and neither was trained without the other since",
    "emergent": "never trained together; a chain of such pairs joins them",
    "shared tower": "two sides of one pretrained CLIP, trained by no stage here",
    "stale": "a later stage retrained one side of a pair that joined them",
    "unconnected": "no stage and no pretrained model joins them",
}
Pair: TypeAlias = frozenset[str]
Marks: TypeAlias = Mapping[Pair, Mark]


class StageStep(NamedTuple):
    """The part of a stage that decides marks: the pairs it compared and the encoders it trained."""

    compared: tuple[tuple[str, str], ...]
    trained: Collection[str]


def read_trained_pairs(stage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs of a finished stage, as (anchor, other), from its `stage.json`."""
    told = stage.get("losses") or [{"anchor": stage["anchor"], "other": stage["align"]}]
    return [(str(pair["anchor"]), str(pair["other"])) for pair in told]


def read_steps(stages: Iterable[Mapping[str, Any]]) -> tuple[StageStep, ...]:
    """Return the steps of finished stages, from their `stage.json` or a bundle's card.

    Raises:
        KeyError, TypeError, AttributeError: One is not as geobind writes it.
    """
    return tuple(
        StageStep(tuple(read_trained_pairs(stage)), frozenset(map(str, stage["train"]))) for stage in stages
    )


def mark_pairs(
    names: Iterable[str], steps: Iterable[StageStep], shared: Collection[Pair] = ()
) -> dict[Pair, Mark]:
    """Mark every pair of modalities by the stages that joined them, or did not.

    A stage joins the pairs that it compares. It parts a modality that it trains from all others that it does
    not compare it with, since their embeddings stay where it was before.

    Args:
        names: The modalities.
        steps: The stages, in their order.
        shared: The pairs that began as two sides of one pretrained CLIP; see `find_shared_towers`.
    """
    links, broken = _join(steps, shared)
    whole = _connect({*links})
    once = _connect({*links, *broken})
    marks: dict[Pair, Mark] = {}
    for pair in map(frozenset, combinations(dict.fromkeys(names), 2)):
        if pair in links:
            marks[pair] = links[pair]
        elif _joined(whole, pair):
            marks[pair] = "emergent"
        else:
            marks[pair] = "stale" if _joined(once, pair) else "unconnected"
    return marks


def mark_by_pairs(names: Iterable[str], trained: Iterable[Collection[str]]) -> dict[Pair, Mark]:
    """Mark every pair of modalities by the trained pairs alone, whatever stages they were trained in."""
    return mark_pairs(names, [StageStep(tuple((one, two) for one, two in map(sorted, trained)), ())])


def find_stale_pairs(steps: Sequence[StageStep]) -> dict[Pair, int]:
    """Return the pairs that a stage compared and a later one parted, each with the number of that stage."""
    return _join(steps, ())[1]


def find_shared_towers(options: Mapping[str, Any], width: int) -> set[Pair]:
    """Return the pairs of modalities whose encoders are two sides of one pretrained CLIP.

    Args:
        options: The options of each modality, as plain values.
        width: Width of the shared space.
    """
    towers = {name: tower for name in options if (tower := _clip_of(options[name], width)) is not None}
    return {frozenset(pair) for pair in combinations(towers, 2) if towers[pair[0]] == towers[pair[1]]}


def _clip_of(options: Any, width: int) -> tuple[str, ...] | None:
    """Return the pretrained CLIP that an encoder is a side of; None if it is none, or a new head follows."""
    clip = options.get("clip") if isinstance(options, Mapping) else None
    if not isinstance(clip, Mapping) or not isinstance(clip.get("pretrained"), str):
        return None
    model = clip.get("model")
    narrower = isinstance(model, Mapping) and model.get("embed_dim") != width
    headed = options.get("head", "auto") not in ("auto", "identity")
    if narrower or headed or clip.get("projection") is False:
        return None
    return clip["pretrained"], str(model)


def _join(
    steps: Iterable[StageStep], shared: Collection[Pair]
) -> tuple[dict[Pair, Literal["trained", "shared tower"]], dict[Pair, int]]:
    """Return the pairs that are joined after the last stage, and those parted, with the stage's number."""
    links: dict[Pair, Literal["trained", "shared tower"]] = dict.fromkeys(shared, "shared tower")
    broken: dict[Pair, int] = {}
    for number, step in enumerate(steps):
        for pair in [pair for pair in links if pair & frozenset(step.trained)]:
            del links[pair]
            broken[pair] = number
        for pair in map(frozenset, step.compared):
            links[pair] = "trained"
            broken.pop(pair, None)
    return links, broken


def _connect(links: Iterable[Pair]) -> dict[str, int]:
    """Number the groups of modalities that links join, directly or by a chain."""
    group: dict[str, int] = {}
    for number, pair in enumerate(links):
        merged = {group[name] for name in pair if name in group}
        group |= {name: number for name, known in group.items() if known in merged}
        group |= dict.fromkeys(pair, number)
    return group


def _joined(group: Mapping[str, int], pair: Pair) -> bool:
    return len({group.get(name, name) for name in pair}) == 1
