"""Galleries: the best, the median and the worst queries of a pair, and what they found."""

# Q queries, G gallery items

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from geobind.report.held_out import HeldOut, Ranked, ranked
from geobind.report.shown import Budget, Shown, show
from geobind.utils.formatting import rank, short

MOST_GALLERIES = 6
EXAMPLES = 2  # of the best, of the median and of the worst
FOUND = 3  # gallery items shown for a query
PICTURE_BYTES = 2_000_000
SOUND_BYTES = 3_600_000


class Item(NamedTuple):
    """One observation on the page."""

    shown: Shown
    key: str
    label: str
    similarity: float
    place: str  # "1st", or the rank of the right answer
    right: bool


class Example(NamedTuple):
    """A query, the first it found, and its right answer where that is not among them."""

    query: Item
    found: list[Item]
    answer: Item | None
    rank: str


class Gallery(NamedTuple):
    """The examples of one pair."""

    query: str
    gallery: str
    trained: bool
    size: int
    groups: list[tuple[str, list[Example]]]


def ordered_pairs(names: Collection[str], anchor: str | None) -> list[tuple[str, str]]:
    """One direction of every pair: from an observation to the anchor's first, then among the others."""
    pairs = [(two, one) if one == anchor else (one, two) for one, two in combinations(names, 2)]
    return sorted(pairs, key=lambda pair: pair[1] != anchor)


def galleries(
    held_out: HeldOut, anchor: str | None, trained: Collection[frozenset[str]]
) -> tuple[list[Gallery], list[str]]:
    """Make the galleries of a page.

    Returns:
        The galleries, and what had to be left out.
    """
    pairs = ordered_pairs(held_out.spaces, anchor)
    budget = Budget(PICTURE_BYTES, SOUND_BYTES, min(len(pairs), MOST_GALLERIES))
    made: list[Gallery] = []
    for query, gallery in pairs[:MOST_GALLERIES]:
        budget.next_part()
        found = ranked(held_out, query, gallery)
        if found is not None:
            made.append(_gallery(held_out, found, frozenset((query, gallery)) in trained, budget))
    left_out = [f"{q} to {g}" for q, g in pairs[MOST_GALLERIES:]]
    notes = [f"Pairs left out to keep the page small: {', '.join(left_out)}."] if left_out else []
    if budget.left_out:
        notes.append(f"{budget.left_out} pictures or players were left out to keep the page small.")
    return made, notes


def _gallery(held_out: HeldOut, found: Ranked, trained: bool, budget: Budget) -> Gallery:
    groups = [
        (title, [_example(held_out, found, int(query), budget) for query in queries])
        for title, queries in _chosen(found)
    ]
    return Gallery(found.query, found.gallery, trained, len(found.gallery_G), groups)


def _chosen(found: Ranked) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Pick queries from the top, the middle and the bottom of the ranks, none twice."""
    answer_Q = np.where(found.right_QG, found.similarity_QG, -np.inf).max(axis=1)
    rival_Q = np.where(found.right_QG, -np.inf, found.similarity_QG).max(axis=1)
    order_Q = np.lexsort((rival_Q - answer_Q, found.rank_Q))  # of one rank, the clearest first
    count = len(order_Q)
    many = min(EXAMPLES, max(1, count // 3))
    middle = min(max(count // 2 - many // 2, many), max(count - 2 * many, many))
    yield "Best", order_Q[:many]
    if count >= 2 * many + 1:
        yield "Median", order_Q[middle : min(middle + many, count - many)]
    if count > many:
        yield "Worst", order_Q[-many:]


def _example(held_out: HeldOut, found: Ranked, query: int, budget: Budget) -> Example:
    similarity_G, right_G = found.similarity_QG[query], found.right_QG[query]
    first = np.argsort(-similarity_G, kind="stable")[:FOUND]
    ranked_as = rank(float(found.rank_Q[query]))

    def item(name: str, row: int, similarity: float, place: str, right: bool) -> Item:
        shown = budget.admit(show(held_out.raw(name, row)))
        label = (held_out.table.labels or [None] * len(held_out.table))[row]
        key = short(held_out.table.keys[row], 48)
        return Item(shown, key, short(label or "", 40), similarity, place, right)

    def hit(at: int, place: str) -> Item:
        row, similarity = int(found.gallery_G[at]), float(similarity_G[at])
        return item(found.gallery, row, similarity, place, bool(right_G[at]))

    asked = item(found.query, int(found.query_Q[query]), 1.0, "", right=False)
    shown = [hit(int(at), rank(place)) for place, at in enumerate(first, start=1)]
    best = int(np.where(right_G, similarity_G, -np.inf).argmax())
    return Example(asked, shown, None if any(i.right for i in shown) else hit(best, ranked_as), ranked_as)
