"""Which modalities a stage compares with each other, and how much each comparison counts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

Pairing = Literal["anchor", "all"]


class Bound(NamedTuple):
    """Two modalities that a stage compares; in a loss the first is the anchor and the second the other."""

    anchor: str
    other: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        """What recipes, metrics and messages call it."""
        return f"{self.anchor}-{self.other}"

    @property
    def both(self) -> frozenset[str]:
        """The two, whichever is named first."""
        return frozenset((self.anchor, self.other))


def bound_pairs(
    anchor: str,
    aligned: Sequence[str],
    pairing: Pairing = "anchor",
    trained: Collection[str] = (),
    weights: Mapping[str, float] | None = None,
) -> tuple[Bound, ...]:
    """List the pairs of modalities that a stage compares.

    Args:
        anchor: The stage's anchor.
        aligned: What it aligns, in its order.
        pairing: "anchor" compares each with the anchor; "all" compares every two of them, the anchor among
            them, save two that the stage leaves as they are, for nothing would come of it.
        trained: The modalities in training; only "all" asks.
        weights: How much a pair counts, by one of its `pair_words`.

    Returns:
        The pairs, those with the anchor first.
    """
    names = list(dict.fromkeys((anchor, *aligned)))
    pairs = [(anchor, other) for other in names[1:]]
    if pairing == "all":
        pairs = [pair for pair in combinations(names, 2) if set(pair) & set(trained)]
    said = weights or {}
    return tuple(
        Bound(*pair, next((said[word] for word in pair_words(*pair, anchor) if word in said), 1.0))
        for pair in pairs
    )


def pair_words(one: str, two: str, anchor: str) -> tuple[str, ...]:
    """List what a recipe can call a pair: `one-two`, `two-one`, and `two` alone with the anchor."""
    alone = (two,) if one == anchor else (one,) if two == anchor else ()
    return (f"{one}-{two}", f"{two}-{one}", *alone)


def pairs_done(stage: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what a finished stage compared, as (anchor, other), from what `stage.json` holds."""
    told = stage.get("losses") or [{"anchor": stage["anchor"], "other": stage["align"]}]
    return [(str(pair["anchor"]), str(pair["other"])) for pair in told]


def names_of(aligned: str | Iterable[str]) -> tuple[str, ...]:
    """Read `align`, which is one name or several."""
    return (aligned,) if isinstance(aligned, str) else tuple(aligned)
