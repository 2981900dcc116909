"""What a ranking with ties is worth: the mean of each measure over every way to break the ties.

A tied group fills T places after the L items that beat it; each order of the group is equally likely. A
constant embedding is one group of everything, so what it scores is the chance level. The idea is McSherry and
Najork's (ECIR 2008); the closed forms here are checked against random rankings in the tests.
"""

# Q queries, P positives of one query, G gallery items

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch


@lru_cache(maxsize=8)
def harmonics(size: int) -> np.ndarray:
    """The harmonic numbers H_0 .. H_size, H_n = 1 + 1/2 + ... + 1/n."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, size + 1))])


@lru_cache(maxsize=8)
def discounts(size: int) -> np.ndarray:
    """Sums of the first 0 .. size discounts of DCG, 1 / log2(1 + rank) (Järvelin and Kekäläinen, 2002)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, size + 2)))])


@dataclass(frozen=True)
class Counts:
    """Where the best positive of each query stands, ties and all; every measure of rank follows from it."""

    larger_Q: np.ndarray  # items that beat the best positive
    tied_Q: np.ndarray  # items tied with it, itself included
    found_Q: np.ndarray  # positives among the tied
    relevant_Q: np.ndarray  # positives in the gallery
    gallery: int

    @property
    def rank_Q(self) -> np.ndarray:
        """Mean rank of the best positive: 1 + larger + ties / 2 when there is one positive."""
        return self.larger_Q + (self.tied_Q + 1) / (self.found_Q + 1)

    @property
    def strict_rank_Q(self) -> np.ndarray:
        """Rank with every tie broken for the positive, as some code does; a constant embedding gets 1."""
        return 1 + self.larger_Q

    def chance(self) -> Counts:
        """The counts of an embedding that says nothing: the whole gallery tied."""
        everything_Q = np.full_like(self.tied_Q, self.gallery)
        return Counts(
            np.zeros_like(self.larger_Q), everything_Q, self.relevant_Q, self.relevant_Q, self.gallery
        )

    def hit_Q(self, k: int) -> np.ndarray:
        """Probability of a positive in the first `k`: clip((k - larger) / tied, 0, 1) if there is one.

        With m positives among T tied items, of which the first j = k - larger are seen, a miss has the
        hypergeometric probability C(T - m, j) / C(T, j).
        """
        seen_Q = np.clip(k - self.larger_Q, 0, self.tied_Q)
        return np.where(
            self.found_Q == 1, seen_Q / self.tied_Q, 1 - _miss_probability(self.tied_Q, self.found_Q, seen_Q)
        )

    @property
    def reciprocal_Q(self) -> np.ndarray:
        """Mean of 1 / rank of the best positive; (H_(L+T) - H_L) / T for one positive."""
        table = harmonics(self.gallery)
        value_Q = (table[self.larger_Q + self.tied_Q] - table[self.larger_Q]) / self.tied_Q
        several_Q = self.found_Q > 1
        if several_Q.any():
            triples = np.stack([self.larger_Q, self.tied_Q, self.found_Q], axis=1)[several_Q]
            distinct, back = np.unique(triples, axis=0, return_inverse=True)
            value_Q[several_Q] = np.array([_reciprocal(*map(int, triple)) for triple in distinct])[
                back.ravel()
            ]
        return value_Q

    @property
    def median_rank(self) -> float:
        """Median over queries of `rank_Q`."""
        return float(np.median(self.rank_Q))

    def chance_median_rank(self) -> float:
        """Median rank over queries and random rankings: the k at which chance recall@k passes one half.

        (G + 1) / 2 for one positive. With m it lies below the chance mean rank, (G + 1) / (m + 1), for the
        best of m ranks is skewed; that mean is what `median_rank` of a constant embedding is.
        """
        count, how_often = np.unique(self.relevant_Q, return_counts=True)
        none = np.zeros_like(count)
        pooled = Counts(none, np.full_like(count, self.gallery), count, count, self.gallery)
        low, high = 1, self.gallery
        while low < high:
            middle = (low + high) // 2
            if np.average(pooled.hit_Q(middle), weights=how_often) >= 0.5 - 1e-9:
                high = middle
            else:
                low = middle + 1
        # A cumulative probability of exactly one half leaves the median anywhere up to the next rank.
        even = abs(np.average(pooled.hit_Q(low), weights=how_often) - 0.5) < 1e-9
        return low + 0.5 if even else float(low)


def _miss_probability(total: np.ndarray, wanted: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """C(total - wanted, drawn) / C(total, drawn): no wanted item among those drawn."""
    possible = drawn <= total - wanted
    left = np.where(possible, total - wanted - drawn, 0)

    def log_factorial(n: np.ndarray) -> np.ndarray:
        return torch.lgamma(torch.from_numpy(n + 1.0)).numpy()

    log_ratio = log_factorial(total - wanted) + log_factorial(total - drawn)
    log_ratio -= log_factorial(left) + log_factorial(total)
    return np.where(possible, np.exp(np.minimum(log_ratio, 0.0)), 0.0)


def _reciprocal(larger: int, tied: int, found: int) -> float:
    """Mean of 1 / (larger + place of the first of `found` positives among `tied` shuffled items)."""
    place = np.arange(0, tied - found + 2)
    none_yet = _miss_probability(np.full_like(place, tied), np.full_like(place, found), place)
    return float(np.sum((none_yet[:-1] - none_yet[1:]) / (larger + place[1:])))


def average_precision(
    larger_P: np.ndarray,
    tied_P: np.ndarray,
    positives_larger_P: np.ndarray,
    positives_tied_P: np.ndarray,
    gallery: int,
) -> float:
    """Mean precision at the positives of one query, ties broken at random.

    For a positive with L items and A positives above it, in a group of T items with r other positives, let
    s = r / (T - 1) be the share of positives in the rest of the group. The mean over its places j = 1 .. T of
    (A + 1 + s (j - 1)) / (L + j) is s + (A + 1 - s (L + 1)) (H_(L+T) - H_L) / T.

    Args:
        larger_P: L, for each positive.
        tied_P: T, itself included.
        positives_larger_P: A.
        positives_tied_P: r + 1, itself included.
        gallery: how many items there are.
    """
    table = harmonics(gallery)
    share_P = (positives_tied_P - 1) / np.maximum(tied_P - 1, 1)
    spread_P = (table[larger_P + tied_P] - table[larger_P]) / tied_P
    return float(np.mean(share_P + (positives_larger_P + 1 - share_P * (larger_P + 1)) * spread_P))


def chance_average_precision(relevant: int, gallery: int) -> float:
    """Average precision of a random ranking: `average_precision` with everything tied."""
    share = (relevant - 1) / max(gallery - 1, 1)
    return float(share + (1 - share) * harmonics(gallery)[gallery] / gallery)


def discounted_gain(larger_P: np.ndarray, tied_P: np.ndarray, gain_P: np.ndarray, gallery: int) -> float:
    """DCG of one query, ties broken at random: each gain at the mean discount of its group's places."""
    table = discounts(gallery)
    return float(np.sum(gain_P * (table[larger_P + tied_P] - table[larger_P]) / tied_P))


def ideal_gain(gain_P: np.ndarray, gallery: int) -> float:
    """The largest DCG there can be: gains in falling order."""
    return float(np.sum(np.sort(gain_P)[::-1] * np.diff(discounts(gallery)[: len(gain_P) + 1])))


def chance_gain(gain_P: np.ndarray, gallery: int) -> float:
    """DCG of a random ranking: the mean gain of the gallery at every place."""
    return float(gain_P.sum() * discounts(gallery)[gallery] / gallery)
