from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from geobind.errors import DataError
from geobind.evaluation import (
    Metric,
    PairRow,
    PairTable,
    RetrievalSettings,
    build_pair_table,
    evaluate_pairs,
    rank_counts,
    retrieval,
)
from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.held_out import find_collapsed

TRAINED = {frozenset({"satellite", "photo"}), frozenset({"satellite", "sound"})}
QUICK = RetrievalSettings(resamples=100)


def unit(rows, seed, width=32):
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def three(rows=60):
    tile = unit(rows, 0)
    photo = normalize(tile + 0.1 * unit(rows, 1), dim=1)
    return {"satellite": tile, "photo": photo, "sound": unit(rows, 2)}


def test_every_ordered_pair_has_a_row_marked_trained_or_emergent():
    table = evaluate_pairs(three(), TRAINED, settings=QUICK)
    assert [(row.query, row.gallery, row.mark) for row in table.rows] == [
        ("satellite", "photo", "trained"),
        ("satellite", "sound", "trained"),
        ("photo", "satellite", "trained"),
        ("photo", "sound", "emergent"),
        ("sound", "satellite", "trained"),
        ("sound", "photo", "emergent"),
    ]


def test_each_row_is_what_retrieval_says_of_its_two_modalities():
    places = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    labels = ["forest", "town", None] * 20
    table = evaluate_pairs(three(), TRAINED, labels=labels, places=places, settings=QUICK)
    for row in table.rows:
        alone = retrieval(
            three()[row.query],
            three()[row.gallery],
            query_labels=labels,
            gallery_labels=labels,
            query_places=places,
            gallery_places=places,
            settings=QUICK,
        )
        assert row.metrics.keys() == alone.metrics.keys()
        for name, metric in alone.metrics.items():
            assert row.metrics[name].value == pytest.approx(metric.value), name


def test_the_aligned_pair_beats_chance_and_the_random_pair_does_not():
    rows = {(row.query, row.gallery): row.metrics for row in evaluate_pairs(three(), TRAINED).rows}
    assert rows["satellite", "photo"]["R@1"].low > 0.9
    assert rows["satellite", "photo"]["median_rank"].high == 1
    random = rows["photo", "sound"]
    for name in ("R@10", "R@100", "mean_rank", "median_rank"):
        assert random[name].low <= random[name].chance <= random[name].high


def test_random_embeddings_leave_chance_inside_almost_every_interval():
    labels = np.arange(400) % 5
    places = np.random.default_rng(3).uniform(-2, 2, (400, 2))
    inside = []
    for seed in range(8):
        found = retrieval(
            unit(400, 2 * seed),
            unit(400, 2 * seed + 1),
            query_labels=labels,
            gallery_labels=labels,
            query_places=places,
            gallery_places=places,
            settings=RetrievalSettings(resamples=200),
        )
        names = (
            "R@10",
            "R@100",
            "R@10%",
            "mean_rank",
            "median_rank",
            "MRR",
            "label_mAP",
            "label_nDCG",
            "place_nDCG",
        )
        inside += [found.metrics[n].low <= found.metrics[n].chance <= found.metrics[n].high for n in names]
    # Nominally 95 %; one embedding's queries share a gallery, so a few more may miss.
    assert np.mean(inside) > 0.85


@settings(deadline=None, max_examples=15)
@given(rows=st.integers(2, 80), groups=st.integers(1, 80), seed=st.integers(0, 1000))
def test_a_constant_embedding_scores_exactly_chance_in_every_measure(rows, groups, seed):
    random = np.random.default_rng(seed)
    same = unit(1, seed).expand(rows, -1)
    ids, labels = random.integers(0, groups, rows), random.integers(0, 4, rows)
    places = random.uniform(-1, 1, (rows, 2))
    for row in evaluate_pairs(
        {"a": same, "b": same},
        [],
        ids=ids,
        labels=labels,
        places=places,
        settings=RetrievalSettings(resamples=5),
    ).rows:
        for name, metric in row.metrics.items():
            if name != "median_rank":  # with several positives only the mean over ties is known
                assert metric.value == pytest.approx(metric.chance, rel=1e-9), name


def test_several_sounds_of_a_place_are_positives_of_each_other():
    tile = unit(20, 0).repeat_interleave(3, dim=0)
    ids = np.repeat(np.arange(20), 3)
    metrics = evaluate_pairs({"satellite": tile, "sound": tile}, [], ids=ids, settings=QUICK).rows[0].metrics
    assert metrics["R@1"].value == metrics["MRR"].value == 1.0
    assert metrics["mAP"].value == pytest.approx(1.0)
    assert metrics["R@1"].chance == pytest.approx(3 / 60)


def test_with_one_positive_each_map_is_left_to_mrr():
    assert "mAP" not in evaluate_pairs(three(), [], settings=QUICK).rows[0].metrics


def test_missing_rows_leave_both_sides_of_the_pair():
    there = np.arange(60) % 3 != 0
    embeddings = three()
    embeddings["sound"] = embeddings["sound"].clone()
    embeddings["sound"][~there] = float("nan")
    table = evaluate_pairs(embeddings, TRAINED, presence={"sound": there}, settings=QUICK)
    rows = {(row.query, row.gallery): row for row in table.rows}
    assert rows["satellite", "photo"].gallery_size == 60
    assert (rows["photo", "sound"].queries, rows["photo", "sound"].gallery_size) == (40, 40)
    expected = rank_counts(embeddings["photo"][there], embeddings["sound"][there]).rank_Q.mean()
    assert rows["photo", "sound"].metrics["mean_rank"].value == pytest.approx(expected)


def test_modalities_that_never_meet_are_listed_as_skipped():
    half = np.arange(60) < 30
    table = evaluate_pairs(three(), TRAINED, presence={"photo": half, "sound": ~half}, settings=QUICK)
    assert len(table.rows) == 4
    assert table.skipped[0].modalities == ("photo", "sound")
    assert table.skipped[0].reason == "0 rows have both; two are needed"


def test_cut_offs_beyond_the_gallery_count_everything_as_found():
    metric = evaluate_pairs(three(), [], settings=QUICK).rows[0].metrics["R@100"]
    assert (metric.value, metric.chance, metric.low, metric.high) == (1.0, 1.0, 1.0, 1.0)


def test_recall_at_a_percentage_rounds_up_to_whole_items():
    metrics = evaluate_pairs(three(), [], settings=QUICK).rows[0].metrics
    assert metrics["R@1%"].value == metrics["R@1"].value
    assert metrics["R@10%"].chance == pytest.approx(6 / 60)


def test_the_table_is_plain_json_and_says_its_conventions():
    table = evaluate_pairs(three(), TRAINED, settings=QUICK)
    plain = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert plain == table.to_dict()
    assert plain["settings"]["resamples"] == 100
    assert plain["conventions"]["interval"].startswith("Wilson score with Student's t over queries")
    assert set(plain["rows"][0]["metrics"]["R@1"]) == {"value", "chance", "low", "high", "p"}


def test_the_terminal_table_shows_marks_intervals_and_chance():
    from rich.console import Console

    half = np.arange(60) < 30
    table = evaluate_pairs(three(), TRAINED, presence={"photo": half, "sound": ~half}, settings=QUICK)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(build_pair_table(table, metrics=["R@1", "median_rank", "absent"]))
    text = console.export_text()
    assert "trained" in text
    assert "chance 0.033" in text
    assert "absent" not in text
    assert "not measured: photo and sound: 0 rows have both" in text


def test_intervals_need_no_seed_and_are_the_same_every_time():
    runs = [
        evaluate_pairs(three(), TRAINED, settings=RetrievalSettings(seed=seed)).to_dict()["rows"]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] == runs[2]


def test_every_query_of_a_pair_keeps_its_scores_with_the_row_it_came_from():
    half = np.arange(60) < 30
    table = evaluate_pairs(three(), TRAINED, presence={"photo": half}, settings=QUICK)
    scores = table.scores["photo", "satellite"]
    row = next(row for row in table.rows if (row.query, row.gallery) == ("photo", "satellite"))
    assert scores.row_Q.tolist() == list(range(30))
    for name, value_Q in zip(scores.measures, scores.value_QM.T, strict=True):
        assert np.nanmean(value_Q) == pytest.approx(row.metrics[name].value)
    assert "scores" not in table.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a"] * 59}, "labels: 59 values for 60 rows; give one per row"),
        ({"places": np.zeros((60, 3))}, r"places: shape \(60, 3\) for 60 rows"),
        (
            {"places": np.full((60, 2), 95.0)},
            r"places: row 0 is \(95.0, 95.0\); give degrees, latitude first",
        ),
        ({"ids": [1] * 61}, "ids: 61 values for 60 rows"),
        ({"ids": [None] + [1] * 59}, "ids: row 0 has no id"),
        ({"presence": {"smell": np.ones(60, bool)}}, "presence names 'smell', which has no embeddings"),
        (
            {"presence": {"sound": np.ones(60)}},
            r"presence of sound: float64 of shape \(60,\); give 60 booleans",
        ),
        ({"trained": [{"satellite", "smell"}]}, "no embeddings of 'smell' were given"),
        ({"trained": [{"satellite"}]}, r"trained pair \['satellite'\] does not name two modalities"),
        ({"embeddings": {"a": unit(3, 0)}}, r"1 modalities to compare \(a\); give at least two"),
        ({"embeddings": {"a": unit(3, 0), "b": unit(4, 0)}}, r"modalities differ in rows \(a 3, b 4\)"),
        (
            {"embeddings": {"a": unit(3, 0), "b": unit(3, 0, 8)}, "trained": []},
            "a is 32 wide but b is 8 wide",
        ),
    ],
)
def test_input_that_does_not_fit_is_refused_by_name(change, message):
    given = {"embeddings": three(), "trained": TRAINED, "settings": QUICK} | change
    with pytest.raises(DataError, match=message):
        evaluate_pairs(given.pop("embeddings"), given.pop("trained"), **given)


def test_a_bad_row_is_named_by_its_own_number_even_among_missing_rows():
    embeddings = three()
    embeddings["sound"] = embeddings["sound"].clone()
    embeddings["sound"][[2, 9]] = float("nan")
    present = np.arange(60) != 2
    with pytest.raises(DataError, match=r"sound: row 9 is not finite .* leave the row out with `presence`"):
        evaluate_pairs(embeddings, TRAINED, presence={"sound": present}, settings=QUICK)


def test_labels_for_one_side_only_are_refused():
    with pytest.raises(DataError, match="labels were given for one side only"):
        retrieval(unit(2, 0), unit(2, 1), query_labels=["a", "b"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"recall_at": (0,)},
        {"recall_percent": (0.0,)},
        {"scale_km": 0.0},
        {"tolerance": -1.0},
        {"resamples": 0},
        {"confidence": 1.0},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(DataError, match=f"evaluation setting {next(iter(wrong))} is"):
        RetrievalSettings(**wrong)


@pytest.mark.parametrize(("spread", "collapsed"), [(1e-4, True), (0.0, True), (0.5, False)])
def test_a_space_that_has_collapsed_is_said_to_be_one(spread, collapsed):
    random = np.random.default_rng(0)
    rows = np.arange(40)
    embedded = {}
    for name in ("tile", "sound"):
        x = random.normal(size=8) + spread * random.normal(size=(40, 8))
        embedded[name] = EmbeddedRows(rows, torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)))
    found = list(find_collapsed(embedded))
    assert len(found) == (2 if collapsed else 0)
    assert all("are nearly equal" in line for line in found)


def pair_row(recall, **beside):
    def measured(value, low):
        return {"R@10": Metric(value, 0.01, low, 1.0), "median_rank": Metric(5.0, 50.0, 1.0, 9.0)}

    others = {name: measured(*figures) for name, figures in beside.items()}
    return PairRow("a", "b", "emergent", 100, 100, measured(recall, 0.0), others)


def test_a_recall_is_a_share_of_what_direct_training_reaches():
    row = pair_row(0.1, direct=(0.4, 0.3), untrained=(0.01, 0.0))
    assert row.share_of_direct("R@10") == pytest.approx(0.25)
    assert row.share_of_direct("median_rank") is None
    assert pair_row(0.1, untrained=(0.01, 0.0)).share_of_direct("R@10") is None


def test_there_is_no_share_where_direct_training_finds_nothing():
    assert pair_row(0.1, direct=(0.02, 0.005)).share_of_direct("R@10") is None


def test_figures_of_other_encoders_stand_beside_those_of_the_same_pair_alone():
    table = PairTable((pair_row(0.1), replace(pair_row(0.2), query="c")))
    both = table.set_beside("direct", PairTable((pair_row(0.4),)))
    assert [list(row.beside) for row in both.rows] == [["direct"], []]
    assert both.baselines == ("direct",) and table.baselines == ()
