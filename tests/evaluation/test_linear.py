import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.errors import DataError
from geobind.evaluation import ridge


def fitted(x_ND, y_NT, penalty):
    """Ridge with an unpenalised bias, by the normal equations."""
    mean_D, mean_T = x_ND.mean(0), y_NT.mean(0)
    c = x_ND - mean_D
    weight = np.linalg.solve(c.T @ c + penalty * np.eye(c.shape[1]), c.T @ (y_NT - mean_T))
    return weight, mean_T - mean_D @ weight


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.integers(4, 30),
    st.integers(1, 12),
    st.integers(1, 3),
    st.sampled_from([1e-3, 0.1, 3]),
)
def test_ridge_is_that_of_the_normal_equations(seed, rows, width, targets, share):
    random = np.random.default_rng(seed)
    x_ND, y_NT = random.normal(size=(rows, width)), random.normal(size=(rows, targets))
    found = ridge(x_ND, y_NT, (share,))
    weight, bias = fitted(x_ND, y_NT, found.penalty_T[0])
    assert found.penalty_T[0] == pytest.approx(share * ((x_ND - x_ND.mean(0)) ** 2).sum())
    assert np.allclose(found.weight_DT, weight, atol=1e-8) and np.allclose(found.bias_T, bias, atol=1e-8)
    assert np.allclose(found.predict(x_ND), x_ND @ weight + bias, atol=1e-8)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(4, 12), st.integers(1, 20))
def test_the_error_of_left_out_rows_is_that_of_fitting_without_them(seed, rows, width):
    random = np.random.default_rng(seed)
    x_ND, y_NT = random.normal(size=(rows, width)), random.normal(size=(rows, 2))
    found = ridge(x_ND, y_NT, (0.05,))
    errors = []
    for out in range(rows):
        kept = np.arange(rows) != out
        weight, bias = fitted(x_ND[kept], y_NT[kept], found.penalty_T[0])
        errors.append((y_NT[out] - x_ND[out] @ weight - bias) ** 2)
    assert np.allclose(found.left_out_T, np.mean(errors, axis=0), rtol=1e-6)


def test_each_target_has_the_penalty_that_leaves_the_smallest_error():
    random = np.random.default_rng(0)
    x_ND = random.normal(size=(60, 40))
    clear = x_ND @ random.normal(size=40)
    y_NT = np.stack([clear, random.normal(size=60)], axis=1)
    found = ridge(x_ND, y_NT)
    assert found.penalty_T[0] < found.penalty_T[1] / 100
    each = [ridge(x_ND, y_NT, (share,)).left_out_T for share in np.logspace(-7, 1, 17)]
    assert np.allclose(found.left_out_T, np.min(each, axis=0))


def test_embeddings_that_are_all_alike_predict_the_mean():
    found = ridge(np.full((5, 3), 0.5), np.arange(5.0)[:, None])
    assert found.predict(np.full((1, 3), 0.5)) == pytest.approx(np.array([[2.0]]))


@pytest.mark.parametrize(
    ("x", "y", "shares", "message"),
    [
        (np.ones((2, 2)), np.ones((2, 1)), (1.0,), "three rows"),
        (np.ones((4, 2)), np.ones((3, 1)), (1.0,), "three rows"),
        (np.full((4, 2), np.nan), np.ones((4, 1)), (1.0,), "finite"),
        (np.ones((4, 2)), np.ones((4, 1)), (0.0,), "must be positive"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x, y, shares, message):
    with pytest.raises(DataError, match=message):
        ridge(x, y, shares)
