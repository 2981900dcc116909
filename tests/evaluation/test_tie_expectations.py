from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalMAP, RetrievalNormalizedDCG

from geobind.evaluation.embeddings import EmbeddingMatrix
from geobind.evaluation.ranks import RankCounts
from geobind.evaluation.retrieval_metrics import (
    _score_query,
    relevance_by_code,
    relevance_by_distance,
    score_rankings,
)


def orders_of(score):
    """Every ranking that the scores allow, ties in every order."""
    for order in permutations(range(len(score))):
        if all(score[a] >= score[b] for a, b in pairwise(order)):
            yield list(order)


def plain_measures(order, relevant, gain):
    """Rank, reciprocal rank, average precision and DCG of one ranking, by their definitions."""
    hits = [place for place, item in enumerate(order, 1) if relevant[item]]
    precision = np.mean([(at + 1) / place for at, place in enumerate(hits)])
    dcg = sum(gain[item] / np.log2(1 + place) for place, item in enumerate(order, 1))
    return np.array([hits[0], 1 / hits[0], precision, dcg])


def counts_of(score, relevant):
    best = max(s for s, r in zip(score, relevant, strict=True) if r)
    tied = [s == best for s in score]
    found = sum(t and r for t, r in zip(tied, relevant, strict=True))
    values = sum(s > best for s in score), sum(tied), found, sum(relevant)
    return RankCounts(*(np.array([value]) for value in values), len(score))


rankings = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 2), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n).filter(any),
    )
)


@settings(deadline=None, max_examples=80)
@given(rankings)
def test_every_measure_is_its_mean_over_all_ways_to_break_ties(ranking):
    score, relevant = ranking
    gain = np.where(relevant, 1.0 / (1 + np.arange(len(score))), 0.0)
    orders = list(orders_of(score))
    rank, reciprocal, precision, dcg = np.mean([plain_measures(o, relevant, gain) for o in orders], axis=0)
    counts = counts_of(score, relevant)
    assert counts.rank_Q[0] == pytest.approx(rank)
    assert counts.reciprocal_Q[0] == pytest.approx(reciprocal)
    for k in range(1, len(score) + 2):
        hits = np.mean([any(relevant[item] for item in order[:k]) for order in orders])
        assert counts.hit_Q(k)[0] == pytest.approx(hits)
    score_G, chosen = np.array(score, dtype=np.float32), np.flatnonzero(relevant)
    measured = _score_query(score_G[chosen], gain[chosen], np.sort(score_G), 1e-6, False)
    ideal = sum(g / np.log2(2 + at) for at, g in enumerate(sorted(gain, reverse=True)))
    assert measured[0] == pytest.approx(precision)
    assert measured[2] == pytest.approx(dcg / ideal)


@settings(deadline=None, max_examples=6)
@given(gallery=st.integers(2, 40), share=st.floats(0.05, 1), seed=st.integers(0, 1000))
def test_chance_is_what_random_rankings_score(gallery, share, seed):
    random = np.random.default_rng(seed)
    m = max(1, int(share * gallery))
    relevant, gain = (
        np.arange(gallery) < m,
        np.where(np.arange(gallery) < m, random.uniform(0.1, 1, gallery), 0),
    )
    trials = 1500
    drawn = np.array([plain_measures(random.permutation(gallery), relevant, gain) for _ in range(trials)])
    counts = counts_of(list(range(gallery)), relevant).chance()
    score_P = random.normal(size=m).astype(np.float32)
    rest = random.normal(size=gallery - m).astype(np.float32)
    measured = _score_query(score_P, gain[:m], np.sort(np.concatenate([score_P, rest])), 1e-6, False)
    ideal = sum(g / np.log2(2 + at) for at, g in enumerate(sorted(gain, reverse=True)))
    chances = np.array([counts.rank_Q[0], counts.reciprocal_Q[0], measured[1], measured[3] * ideal])
    error = drawn.std(axis=0) / np.sqrt(trials)
    assert (np.abs(drawn.mean(axis=0) - chances) <= 5 * error + 1e-9).all()
    for k in (1, 3, gallery):
        assert np.mean(drawn[:, 0] <= k) == pytest.approx(counts.hit_Q(k)[0], abs=5 * 0.5 / np.sqrt(trials))
    median = counts.chance_median_rank()
    assert np.mean(drawn[:, 0] < median) <= 0.5 + 0.04
    assert np.mean(drawn[:, 0] <= median) >= 0.5 - 0.04


def test_the_chance_median_pools_queries_with_few_and_many_positives():
    relevant = np.array([1] * 50 + [20] * 50)
    counts = RankCounts(np.zeros(100, int), np.ones(100, int), np.ones(100, int), relevant, 200)
    random = np.random.default_rng(0)
    ranks = [random.permutation(200)[:m].min() + 1 for m in relevant for _ in range(200)]
    assert counts.chance_median_rank() == pytest.approx(np.median(ranks), abs=1)


def unit(rows, seed, width=16):
    table = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return EmbeddingMatrix(torch.nn.functional.normalize(table, dim=1), "rows")


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), classes=st.integers(1, 6))
def test_map_and_ndcg_by_label_agree_with_torchmetrics_when_nothing_ties(seed, classes):
    random = np.random.default_rng(seed)
    query, gallery = unit(30, seed), unit(50, seed + 1)
    query_label = random.integers(0, classes, 30)
    gallery_label = np.concatenate([np.arange(classes), random.integers(0, classes, 50 - classes)])
    ours = score_rankings(query, gallery, {"label": relevance_by_code(query_label, gallery_label)}, 0.0)[
        "label"
    ]
    # torchmetrics takes relevant items of negative score for irrelevant: shift all above zero.
    score = (query.block(slice(0, 30)) @ gallery.block(slice(0, 50)).T).flatten().double() + 2
    target = torch.from_numpy(query_label[:, None] == gallery_label).flatten()
    index = torch.arange(30).repeat_interleave(50)
    mean_precision = RetrievalMAP()(score, target, indexes=index)
    assert ours.average_precision.value_Q.mean() == pytest.approx(float(mean_precision), rel=1e-5)
    ndcg = RetrievalNormalizedDCG()(score, target.long(), indexes=index)
    assert ours.ndcg.value_Q.mean() == pytest.approx(float(ndcg), rel=1e-5)


def haversine_km(one, two):
    (lat1, lon1), (lat2, lon2) = np.radians(one), np.radians(two)
    inside = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return 2 * 6371.0088 * np.arcsin(np.sqrt(inside))


degrees = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@settings(deadline=None, max_examples=60)
@given(at=degrees, offset=st.tuples(st.floats(-3, 3), st.floats(-3, 3)), scale=st.floats(0.01, 3000))
def test_the_gain_of_a_place_follows_the_haversine_distance(at, offset, scale):
    near = (float(np.clip(at[0] + offset[0], -90, 90)), at[1] + offset[1])
    items, gain = relevance_by_distance(np.array([at]), np.array([near]), scale).items(0)
    distance = haversine_km(at, near)
    if distance > 10.01 * scale:
        assert len(items) == 0
    elif distance < 9.99 * scale:
        assert gain[0] == pytest.approx(np.exp(-distance / scale), rel=1e-3, abs=1e-6)


def test_the_antipode_is_half_a_circumference_away():
    _, gain = relevance_by_distance(np.array([[10.0, 20.0]]), np.array([[-10.0, -160.0]]), 10000.0).items(0)
    assert -10000 * np.log(gain[0]) == pytest.approx(np.pi * 6371.0088, rel=1e-6)


def test_unknown_labels_and_places_are_neither_asked_nor_found():
    items, _ = relevance_by_code(np.array([-1, 0]), np.array([-1, 0, -1])).items(0)
    assert len(items) == 0
    places = np.array([[np.nan, np.nan], [1.0, 1.0]])
    relevance = relevance_by_distance(places, places, 25.0)
    assert [relevance.items(0)[0].tolist(), relevance.items(1)[0].tolist()] == [[], [1]]
