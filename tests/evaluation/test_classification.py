import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.evaluation.bootstrap import Resampling, draw_counts
from geobind.evaluation.classification import (
    build_query_classes,
    count_confusions,
    hits_QM,
    measure_recognition,
)

FEW = Resampling(resamples=200)


def scored(seed=0, queries=60, classes=4):
    random = np.random.default_rng(seed)
    class_Q = random.integers(0, classes, queries)
    score_QC = random.normal(size=(queries, classes))
    score_QC[np.arange(queries), class_Q] += 1.0
    names = [f"c{c}" for c in range(classes)]
    return score_QC, build_query_classes([names[c] for c in class_Q], names, queries)


def test_scores_that_say_nothing_get_exactly_chance():
    _, truth = scored()
    found = measure_recognition(np.ones((60, 4)), truth, top=(1, 2, 5), options=FEW)
    assert set(found.metrics) == {"accuracy", "top2", "mean_per_class"}  # 5 of 4 classes is no question
    for name, metric in found.metrics.items():
        assert metric.value == pytest.approx(0.5 if name == "top2" else 0.25, abs=1e-12)
        assert metric.chance == pytest.approx(metric.value)
        assert metric.low < metric.value < metric.high
        assert metric.high - metric.low < 0.04 and metric.p == 1


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(2, 6), st.booleans())
def test_hits_are_the_expectation_over_all_orders_of_ties(seed, classes, rounded):
    random = np.random.default_rng(seed)
    score_QC = random.normal(size=(8, classes))
    score_QC = score_QC.round() if rounded else score_QC
    class_Q = random.integers(0, classes, 8)
    tops = list(range(1, classes + 1))
    hit_QM = hits_QM(score_QC, class_Q, tops)
    for q in range(8):
        orders = [np.argsort(-(score_QC[q] + 1e-4 * random.normal(size=classes))) for _ in range(300)]
        for m, k in enumerate(tops):
            share = np.mean([class_Q[q] in order[:k] for order in orders])
            assert abs(share - hit_QM[q, m]) < (0.15 if rounded else 0.02)
    assert (hit_QM[:, -1] == 1).all()


def test_every_query_is_counted_once_among_the_confusions_and_the_diagonal_is_the_accuracy():
    score_QC, truth = scored()
    score_QC[:5] = 0.0  # ties are shared out
    found = measure_recognition(score_QC, truth, options=FEW)
    assert found.confusion_CC.sum(1) == pytest.approx(np.bincount(truth.class_Q))
    assert np.trace(found.confusion_CC) / 60 == pytest.approx(found.metrics["accuracy"].value)
    assert (
        count_confusions(np.eye(4)[truth.class_Q], truth.class_Q) == np.diag(np.bincount(truth.class_Q))
    ).all()


def test_the_mean_over_classes_counts_a_rare_class_as_much_as_a_frequent_one():
    truth = build_query_classes(["often"] * 90 + ["rare"] * 10, ["often", "rare"], 100)
    found = measure_recognition(np.tile([1.0, 0.0], (100, 1)), truth, options=FEW)
    assert found.metrics["accuracy"].value == found.majority == 0.9
    assert found.metrics["mean_per_class"].value == 0.5
    assert {name: metric.value for name, metric in found.per_class.items()} == {"often": 1.0, "rare": 0.0}


def test_intervals_hold_the_value_and_shrink_with_more_queries():
    widths = []
    for queries in (40, 640):
        score_QC, truth = scored(1, queries)
        for metric in measure_recognition(score_QC, truth, options=FEW).metrics.values():
            assert metric.low <= metric.value <= metric.high
        metric = measure_recognition(score_QC, truth, options=FEW).metrics["accuracy"]
        widths.append(metric.high - metric.low)
    assert widths[1] < widths[0] / 2


def test_queries_of_one_group_are_drawn_together_so_that_the_interval_is_wider():
    # Ten recordings, each cut into 30 clips that are all right or all wrong.
    labels = ["a", "b"] * 150
    right_Q = np.repeat(np.arange(10) % 2 == 0, 30)
    score_QC = np.zeros((300, 2))
    score_QC[np.arange(300), [(0 if label == "a" else 1) for label in labels]] = np.where(right_Q, 1.0, -1.0)
    widths = []
    for groups in (None, np.repeat(np.arange(10), 30)):
        truth = build_query_classes(labels, ["a", "b"], 300, groups)
        metric = measure_recognition(score_QC, truth, options=FEW).metrics["accuracy"]
        assert metric.value == 0.5
        widths.append(metric.high - metric.low)
    assert widths[1] > 3 * widths[0]


def test_every_resample_draws_as_many_units_as_there_are():
    group_Q = np.array([0, 0, 0, 1, 2, 2])
    for times_BQ in draw_counts(6, FEW, group_Q):
        assert (times_BQ[:, [0, 3, 4]].sum(1) == 3).all()
        assert (times_BQ[:, 0] == times_BQ[:, 2]).all()


def test_rows_without_a_label_are_left_out_with_their_groups():
    truth = build_query_classes(["a", None, "b", "a"], ["a", "b"], 4, ["x", "y", None, "x"])
    assert truth.kept_Q.tolist() == [True, False, True, True]
    assert truth.class_Q.tolist() == [0, 1, 0]
    assert truth.group_Q.tolist() == [0, 1, 0]
    assert truth.majority == 2 / 3


@pytest.mark.parametrize(
    ("labels", "classes", "groups", "message"),
    [
        (["a", "z"], ["a", "b"], None, "labelled z, which is none of the 2 classes"),
        (["a", "a"], ["a"], None, "two or more different classes"),
        ([None, None], ["a", "b"], None, "no row has a label"),
        (["a"], ["a", "b"], None, "1 values for 2 rows"),
        (["a", "b"], ["a", "b"], ["x"], "groups: 1 values for 2 rows"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, classes, groups, message):
    with pytest.raises(DataError, match=message):
        build_query_classes(labels, classes, 2, groups)


def test_settings_out_of_range_are_refused():
    with pytest.raises(DataError, match="at least 1 resample"):
        Resampling(resamples=0)


def test_results_are_plain_values():
    import json

    score_QC, truth = scored()
    plain = json.loads(json.dumps(measure_recognition(score_QC, truth, options=FEW).to_dict()))
    assert plain["queries"] == 60 and len(plain["confusion"]) == 4
    assert set(plain["per_class"]) == set(plain["classes"])
