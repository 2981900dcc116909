"""Coverage of the intervals of evaluation: the table of docs/evaluation.md.

    python benchmarks/intervals.py [--draws 2000]

Queries are drawn from a population whose figures are known: the log of a query's rank among 500 items is
normal, and correlated within clusters. An interval is right if it contains the population's figure. The share
of hits is drawn anew each time within its range, since the coverage of a count jumps with the share.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from geobind.evaluation.intervals import bound_median, compare_means, compare_medians, estimate_share
from geobind.evaluation.split_leakage import choose_clusters

GALLERY, FIRST = 500, 10
SPREAD = 1.5  # standard deviation of the log of a rank
RANK_G = np.arange(1, GALLERY + 1)


class Scenario(NamedTuple):
    """Queries of one kind."""

    name: str
    share: tuple[float, float]  # R@10 lies between
    clusters: int
    size: int = 1  # mean number of queries in a cluster
    correlation: float = 0.0  # of the logs of ranks within a cluster
    even: bool = False  # clusters of equal size
    hidden: bool = False  # clusters are not given, but are in the table's column `group`


HALF, HIGH, LOW = (0.4, 0.6), (0.95, 0.99), (0.01, 0.05)
SCENARIOS = (
    Scenario("20 queries, near 0.5", HALF, 20),
    Scenario("20 queries, near 1", HIGH, 20),
    Scenario("100 queries, near 0.5", HALF, 100),
    Scenario("100 queries, near 1", HIGH, 100),
    Scenario("100 queries, near 0", LOW, 100),
    Scenario("500 queries, near 0.5", HALF, 500),
    Scenario("8 clusters, near 0.5", HALF, 8, 15, 0.3),
    Scenario("8 equal clusters, near 0.5", HALF, 8, 15, 0.3, even=True),
    Scenario("8 clusters, near 1", HIGH, 8, 15, 0.3),
    Scenario("20 clusters, near 0.5", HALF, 20, 15, 0.3),
    Scenario("20 clusters, near 1", HIGH, 20, 15, 0.3),
    Scenario("20 clusters, near 0", LOW, 20, 15, 0.3),
    Scenario("20 clusters, near 0.5, correlation 0.7", HALF, 20, 15, 0.7),
    Scenario("20 clusters, near 1, correlation 0.7", HIGH, 20, 15, 0.7),
    Scenario("50 clusters, near 1", HIGH, 50, 10, 0.3),
    Scenario("clusters by default, near 0.5", HALF, 20, 15, 0.3, hidden=True),
)
MEASURES = ("R@10", "MRR", "mean rank", "median rank")


class Population(NamedTuple):
    """Ranks of a known distribution."""

    middle: float  # mean of the log of a rank

    @classmethod
    def with_share(cls, share: float) -> Population:
        """Return the population whose R@10 is `share`."""
        return cls(float(np.log(FIRST) - SPREAD * float(torch.special.ndtri(torch.tensor(share).double()))))

    def figures(self) -> Mapping[str, float]:
        """Return what a sample estimates."""
        end_G = torch.special.ndtr(torch.from_numpy((np.log(RANK_G) - self.middle) / SPREAD)).numpy()
        end_G[-1] = 1.0
        p_G = np.diff(end_G, prepend=0.0)
        return {
            "R@10": float(p_G[:FIRST].sum()),
            "MRR": float(p_G @ (1 / RANK_G)),
            "mean rank": float(p_G @ RANK_G),
            "median rank": float(RANK_G[np.searchsorted(end_G, 0.5)]),
        }


def draw_clusters(one: Scenario, random: np.random.Generator) -> Any:
    """Draw the cluster of each query; None if each is alone."""
    if one.size == 1:
        return None
    size_U = np.full(one.clusters, one.size)
    if not one.even:
        size_U = 1 + random.geometric(1 / one.size, one.clusters)
    return np.repeat(np.arange(one.clusters), size_U)


def draw_ranks(one: Scenario, at: Population, unit_Q: Any, random: np.random.Generator) -> Any:
    """Draw the rank of each query."""
    count = one.clusters if unit_Q is None else len(unit_Q)
    shared_Q = 0.0 if unit_Q is None else random.normal(size=one.clusters)[unit_Q]
    own_Q = random.normal(size=count)
    z_Q = np.sqrt(one.correlation) * shared_Q + np.sqrt(1 - one.correlation) * own_Q
    return np.minimum(np.ceil(np.exp(at.middle + SPREAD * z_Q)), GALLERY)


def bound_all(rank_Q: Any, unit_Q: Any) -> Iterator[tuple[str, tuple[float, float]]]:
    """Yield the interval of each measure."""
    yield "R@10", estimate_share((rank_Q <= FIRST).astype(float), unit_Q).bounds()
    yield "MRR", estimate_share(1 / rank_Q, unit_Q).bounds()
    low, high = estimate_share((rank_Q - 1) / (GALLERY - 1), unit_Q).bounds()
    yield "mean rank", (1 + low * (GALLERY - 1), 1 + high * (GALLERY - 1))
    yield "median rank", bound_median(rank_Q, (1, GALLERY), unit_Q)


def measure_coverage(one: Scenario, draws: int, seed: int = 0) -> dict[str, float]:
    """Return how often the 95 % interval of each measure contains the population's figure."""
    random = np.random.default_rng(seed)
    right: dict[str, int] = dict.fromkeys(MEASURES, 0)
    for _ in range(draws):
        at = Population.with_share(random.uniform(*one.share))
        truth, unit_Q = at.figures(), draw_clusters(one, random)
        rank_Q = draw_ranks(one, at, unit_Q, random)
        if one.hidden:
            rows: Any = SimpleNamespace(groups=[f"tape {unit}" for unit in unit_Q], places_LL=None)
            unit_Q = np.unique(choose_clusters(rows, None).of_rows, return_inverse=True)[1]
        for name, (low, high) in bound_all(rank_Q, unit_Q):
            right[name] += low <= truth[name] <= high
    return {name: count / draws for name, count in right.items()}


def measure_false_alarms(one: Scenario, draws: int, seed: int = 1) -> dict[str, float]:
    """Return how often two equally good runs are shown to differ at 5 %, by their paired queries."""
    random = np.random.default_rng(seed)
    wrong = {"paired R@10": 0, "paired median rank": 0}
    for _ in range(draws):
        at, unit_Q = Population.with_share(random.uniform(*one.share)), draw_clusters(one, random)
        shared_Q = draw_ranks(one, at, unit_Q, random)
        a_Q, b_Q = (np.ceil(shared_Q * np.exp(0.7 * random.normal(size=len(shared_Q)))) for _ in range(2))
        hit_Q = (a_Q <= FIRST).astype(float) - (b_Q <= FIRST)
        wrong["paired R@10"] += compare_means(hit_Q, unit_Q).p < 0.05
        wrong["paired median rank"] += compare_medians(a_Q, b_Q, unit_Q, resamples=200).p < 0.05
    return {name: count / draws for name, count in wrong.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args().draws
    print("| queries |", " | ".join(MEASURES), "|")
    print("|---" * (len(MEASURES) + 1) + "|")
    for one in SCENARIOS:
        found = measure_coverage(one, draws)
        print(f"| {one.name} |", " | ".join(f"{found[name]:.3f}" for name in MEASURES), "|", flush=True)
    print()
    for one in (SCENARIOS[2], SCENARIOS[6], SCENARIOS[9]):
        alarms = measure_false_alarms(one, max(draws // 4, 1))
        print(f"{one.name}:", ", ".join(f"{name} {share:.3f}" for name, share in alarms.items()), flush=True)


if __name__ == "__main__":
    main()
