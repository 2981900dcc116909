import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from geobind.errors import DataError
from geobind.evaluation import FewShotOptions, LabelledEmbeddings, Resampling, few_shot
from geobind.evaluation.linear import logistic

FEW = Resampling(resamples=100)
NAMES = [f"c{c}" for c in range(5)]


def rows(count, noise, seed, width=12, classes=5):
    centre_CD = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    class_N = torch.arange(count) % classes
    x_ND = centre_CD[class_N] + noise * torch.randn(count, width, generator=random)
    return LabelledEmbeddings(normalize(x_ND, dim=1), [NAMES[c] for c in class_N])


def options(*shots, draws=4, **more):
    return FewShotOptions(shots=shots, draws=draws, resampling=FEW, **more)


def accuracy(curves):
    return {
        (curve.classifier, point.shots): point.metrics["accuracy"].value
        for curve in curves
        for point in curve.points
    }


def test_well_parted_classes_are_recognised_from_one_example():
    curves = few_shot(rows(100, 0.05, 0), rows(50, 0.05, 1), options=options(1, 4, "all"))
    assert set(accuracy(curves).values()) == {1.0}
    assert [curve.classifier for curve in curves] == ["logistic", "nearest mean"]


def test_shuffled_training_labels_give_chance():
    train, test = rows(200, 3.0, 0), rows(500, 3.0, 1)
    honest = accuracy(few_shot(train, test, options=options(4)))
    found = []
    for seed in range(24):
        labels = np.random.default_rng(seed).permutation(train.labels).tolist()
        found.append([*accuracy(few_shot(train._replace(labels=labels), test, options=options(4))).values()])
    assert min(honest.values()) > 0.27
    assert np.mean(found, axis=0) == pytest.approx(np.full(2, 0.2), abs=0.03)


def test_accuracy_grows_with_examples():
    found = accuracy(few_shot(rows(400, 1.2, 0), rows(300, 1.2, 1), options=options(1, 8, "all", draws=8)))
    for classifier in ("logistic", "nearest mean"):
        one, eight, every = (found[classifier, k] for k in (1, 8, "all"))
        assert 0.2 < one < eight - 0.05 and eight - 0.02 < every < 1


def test_each_point_says_what_it_was_made_from():
    train = LabelledEmbeddings(rows(40, 0.5, 0).embeddings, ["c0"] * 30 + ["c1"] * 7 + [None] * 3)
    test = rows(50, 0.5, 1)._replace(labels=["c0", "c1"] * 25)
    logistic_curve, mean_curve = few_shot(train, test, options=options(2, 16, 64, "all"))
    assert [(p.shots, p.fewest, p.rows, p.draws) for p in logistic_curve.points] == [
        (2, 2, 4, 4),
        (16, 7, 23, 4),
        (64, 7, 37, 1),  # nobody has more
        ("all", 7, 37, 1),
    ]
    assert [p.penalty for p in logistic_curve.points] == [0.1] * 4
    assert [p.penalty for p in mean_curve.points] == [None] * 4
    assert logistic_curve.points[-1].deviation == 0.0 < logistic_curve.points[0].deviation
    assert json.loads(json.dumps(logistic_curve.to_dict()))["points"][0]["shots"] == 2


def test_the_same_seed_gives_the_same_curve_and_another_seed_another():
    train, test = rows(100, 1.5, 0), rows(100, 1.5, 1)
    one, again, other = (
        accuracy(few_shot(train, test, options=FewShotOptions((2,), 4, resampling=Resampling(50, seed=seed))))
        for seed in (0, 0, 1)
    )
    assert one == again != other


def test_more_shots_of_a_draw_contain_the_fewer():
    from geobind.evaluation.classification import build_query_classes
    from geobind.evaluation.few_shot_curves import _draw_supports

    truth = build_query_classes(rows(100, 1, 0).labels, NAMES, 100)
    two, eight = ([set(s.tolist()) for s in _draw_supports(truth, k, options(1))] for k in (2, 8))
    assert all(small < large for small, large in zip(two, eight, strict=True))
    assert [len(s) for s in two] == [10] * 4
    assert two[0] != two[1]


def test_the_penalty_is_chosen_on_validation_rows_and_never_on_the_test_rows():
    train, val = rows(60, 1.5, 0, width=40), rows(500, 1.5, 2, width=40)
    chosen = []
    for test in (rows(500, 1.5, 1, width=40), rows(500, 9.0, 3, width=40)):
        curve, _ = few_shot(train, test, validation=val, options=options("all"))
        chosen.append(curve.points[0].penalty)
    assert chosen[0] == chosen[1]
    best = {
        p: accuracy(few_shot(train, val, options=options("all", penalty=p)))["logistic", "all"]
        for p in FewShotOptions().penalties
    }
    assert best[chosen[0]] == max(best.values())


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(3, 30), st.integers(1, 40))
def test_logistic_regression_is_solved_to_the_optimum(seed, classes, count, width):
    random = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(count, width, generator=random).double()
    class_N = torch.randint(0, classes, (count,), generator=random)
    (fit,) = logistic(x_ND, class_N, classes, [0.5])
    # Written down again without reducing the width: the gradient there is zero.
    scale = (x_ND - x_ND.mean(0)).square().sum(1).mean().sqrt()
    weight = (fit.weight_DC * scale).requires_grad_()
    bias = (fit.bias_C + x_ND.mean(0) @ fit.weight_DC).requires_grad_()
    loss = cross_entropy((x_ND - x_ND.mean(0)) / scale @ weight + bias, class_N, reduction="sum")
    (loss + 0.25 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-4 * count and bias.grad.abs().max() < 1e-4 * count


def test_logistic_regression_does_not_care_where_the_embeddings_lie_or_how_long_they_are():
    train, test = rows(60, 1.0, 0), rows(40, 1.0, 1)
    class_N = torch.arange(60) % 5
    shift = torch.full((12,), 7.0)
    (one,) = logistic(train.embeddings, class_N, 5, [0.1])
    (two,) = logistic(3 * train.embeddings + shift, class_N, 5, [0.1])
    assert torch.allclose(one.scores(test.embeddings), two.scores(3 * test.embeddings + shift), atol=1e-3)


def test_a_larger_penalty_gives_smaller_weights_largest_first():
    train = rows(60, 1.0, 0)
    fits = list(logistic(train.embeddings, torch.arange(60) % 5, 5, [0.01, 10.0, 1.0]))
    norms = [float(fit.weight_DC.norm()) for fit in fits]
    assert norms == sorted(norms)


def test_a_class_that_all_rows_share_a_point_in_is_no_obstacle():
    same = torch.full((10, 4), 0.5)
    curves = few_shot(
        LabelledEmbeddings(same, NAMES[:2] * 5),
        LabelledEmbeddings(same, NAMES[:2] * 5),
        options=options(1, "all"),
    )
    assert set(accuracy(curves).values()) == {0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shots": (0,)}, "shots are whole numbers"),
        ({"draws": 0}, "at least 1, not 0"),
        ({"penalty": 0.0}, "must be positive"),
    ],
)
def test_options_out_of_range_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        FewShotOptions(**given)


def test_a_test_row_of_a_class_without_training_rows_is_refused():
    test = rows(10, 0.1, 1)
    train = rows(10, 0.1, 0)._replace(labels=["c0", "c1"] * 5)
    with pytest.raises(DataError, match="labelled c2, c3, c4, which is none of the 2 classes"):
        few_shot(train, test, options=options(1))
