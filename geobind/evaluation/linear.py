"""Logistic and ridge regression on embeddings."""

# N rows, C classes, D width, R rank of the rows, T targets, A penalties

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


_STEPS, _PRODUCTS = 100, 500  # at most, of Newton's method and of the conjugate gradients of a step
_FLAT = 1e-6  # largest slope, for each row, at which the optimum counts as reached


class Logistic(NamedTuple):
    """A linear classifier: the class with the largest of `x @ weight_DC + bias_C`."""

    weight_DC: Tensor
    bias_C: Tensor

    def scores(self, x_ND: Tensor) -> Tensor:
        """Return logits (N, C) in float64."""
        return x_ND.double() @ self.weight_DC + self.bias_C


def logistic(x_ND: Tensor, class_N: Tensor, classes: int, penalties: Sequence[float]) -> Iterator[Logistic]:
    """Fit a classifier for each penalty, from large to small.

    It minimises the sum over rows of the cross-entropy plus `penalty / 2` times the squared weights, the bias
    not penalised, in float64: the classifier of CLIP's linear probe (arXiv:2103.00020, appendix A.3). The
    problem is convex, so how it is solved does not matter; here by Newton's method.

    Embeddings are first shifted by their mean and divided by one number, their root mean squared distance
    from it: one penalty then means the same for embeddings all over the sphere and for those in a cone.

    Args:
        x_ND: Embeddings (N, D).
        class_N: The class of each row, 0 to `classes` - 1.
        classes: How many classes there are.
        penalties: Positive strengths.

    Raises:
        DataError: A penalty is not positive.
    """
    if not penalties or min(penalties) <= 0:
        raise DataError(f"penalties must be positive, not {list(penalties)}")
    x_ND = x_ND.double()
    mean_D = x_ND.mean(0)
    centred_ND = x_ND - mean_D
    scale = centred_ND.square().sum(1).mean().sqrt().clamp_min(1e-12)
    # The best weights are combinations of the rows: few rows in a wide space need few unknowns.
    u_NR, s_R, v_RD = torch.linalg.svd(centred_ND / scale, full_matrices=False)
    kept_R = s_R > s_R[0] * 1e-10
    v_RD, one_N1 = v_RD[kept_R], torch.ones(len(x_ND), 1, dtype=torch.float64)
    row_NR = torch.cat([u_NR[:, kept_R] * s_R[kept_R], one_N1], dim=1)
    right_NC = functional.one_hot(class_N, classes).double()
    weight_RC = torch.zeros(row_NR.shape[1], classes, dtype=torch.float64)
    for penalty in sorted(penalties, reverse=True):
        weight_RC = _minimise(weight_RC, row_NR, right_NC, penalty)
        weight_DC = v_RD.T @ weight_RC[:-1] / scale
        yield Logistic(weight_DC, weight_RC[-1] - mean_D @ weight_DC)


def _minimise(start_RC: Tensor, row_NR: Tensor, right_NC: Tensor, penalty: float) -> Tensor:
    """Find the best weights (R, C) by Newton's method, starting from those of a larger penalty."""
    weight_RC, penalty_R1 = start_RC, torch.full((row_NR.shape[1], 1), penalty, dtype=torch.float64)
    penalty_R1[-1] = 0.0

    def loss(at_RC: Tensor) -> float:
        logit_NC = row_NR @ at_RC
        entropy = logit_NC.logsumexp(1).sum() - (logit_NC * right_NC).sum()
        return float(entropy + 0.5 * (penalty_R1 * at_RC.square()).sum())

    value = loss(weight_RC)
    for _ in range(_STEPS):
        share_NC = (row_NR @ weight_RC).softmax(1)
        slope_RC = row_NR.T @ (share_NC - right_NC) + penalty_R1 * weight_RC
        if float(slope_RC.abs().max()) <= _FLAT * len(row_NR):
            break
        step_RC = _newton_step(row_NR, share_NC, slope_RC, penalty_R1)
        gain, length = float((slope_RC * step_RC).sum()), 1.0
        while (new := loss(weight_RC - length * step_RC)) > value - 1e-4 * length * gain and length > 1e-10:
            length /= 2
        if new >= value:
            break  # as low as float64 can tell
        weight_RC, value = weight_RC - length * step_RC, new
    return weight_RC


def _newton_step(row_NR: Tensor, share_NC: Tensor, slope_RC: Tensor, penalty_R1: Tensor) -> Tensor:
    """Solve curvature @ step = slope by conjugate gradients, which need only products with the curvature."""
    # The columns of the rows are orthogonal, so that the curvature is nearly diagonal.
    spread_C = (share_NC * (1 - share_NC)).mean(0)
    diagonal_RC = row_NR.square().sum(0)[:, None] * spread_C + penalty_R1 + 1e-12
    step_RC = torch.zeros_like(slope_RC)
    rest_RC, eased_RC = slope_RC, slope_RC / diagonal_RC
    way_RC, size = eased_RC, float((slope_RC * eased_RC).sum())
    enough = 1e-4 * size  # exact enough for Newton's method to converge fast
    for _ in range(_PRODUCTS):
        moved_NC = row_NR @ way_RC
        bent_NC = share_NC * (moved_NC - (share_NC * moved_NC).sum(1, keepdim=True))
        curved_RC = row_NR.T @ bent_NC + penalty_R1 * way_RC
        curvature = float((way_RC * curved_RC).sum())
        if curvature <= 0:
            break
        step_RC = step_RC + size / curvature * way_RC
        rest_RC = rest_RC - size / curvature * curved_RC
        eased_RC = rest_RC / diagonal_RC
        size, before = float((rest_RC * eased_RC).sum()), size
        if size <= enough:
            break
        way_RC = eased_RC + size / before * way_RC
    return step_RC


# Shares of the rows' mean squared length about their mean, times the number of rows.
SHARES: tuple[float, ...] = tuple(float(share) for share in np.logspace(-7, 1, 17))


@dataclass(frozen=True)
class Ridge:
    """A linear map from embeddings to targets: `x @ weight_DT + bias_T`."""

    weight_DT: Floats
    bias_T: Floats
    penalty_T: Floats
    left_out_T: Floats  # mean squared error of rows left out one at a time, with that penalty

    def predict(self, x_ND: Floats) -> Floats:
        """Predict the targets (N, T)."""
        return x_ND.astype(np.float64) @ self.weight_DT + self.bias_T


def ridge(x_ND: Floats, y_NT: Floats, shares: tuple[float, ...] = SHARES) -> Ridge:
    """Fit a linear map with the penalty that predicts each left-out row best.

    It minimises the squared error plus `penalty` times the squared weights, the bias not penalised. The error
    of a row that is left out is known without fitting again: residual / (1 - leverage) (Allen's PRESS, 1974).

    Args:
        x_ND: Embeddings.
        y_NT: One or more numbers for each row; each target has its own penalty.
        shares: Penalties to choose from, as shares of the sum of the rows' squared distances from their mean.

    Raises:
        DataError: Fewer than three rows, a value that is not finite, or a penalty that is not positive.
    """
    x_ND, y_NT = x_ND.astype(np.float64), y_NT.astype(np.float64)
    if len(x_ND) < 3 or len(x_ND) != len(y_NT):
        raise DataError(f"a regression needs three rows or more, with their targets, not {len(x_ND)}")
    if not (np.isfinite(x_ND).all() and np.isfinite(y_NT).all()):
        raise DataError("a regression needs finite numbers; leave rows without a value out")
    if not shares or min(shares) <= 0:
        raise DataError(f"penalties must be positive, not {list(shares)}")
    mean_D, mean_T = x_ND.mean(0), y_NT.mean(0)
    # By torch: of many rows it takes seconds, and numpy has one thread (see geobind.cli).
    parts = torch.linalg.svd(torch.from_numpy(x_ND - mean_D), full_matrices=False)
    u_NR, s_R, v_RD = (part.numpy() for part in parts)
    kept_R = s_R > max(s_R[0], 1e-300) * 1e-12
    u_NR, s_R, v_RD = u_NR[:, kept_R], s_R[kept_R], v_RD[kept_R]
    centred_NT = y_NT - mean_T
    along_RT = u_NR.T @ centred_NT
    penalty_A = np.array(shares) * max(float((s_R**2).sum()), 1e-300)
    error_AT = np.stack([_left_out_T(u_NR, s_R, along_RT, centred_NT, penalty) for penalty in penalty_A])
    # Of equally good penalties the largest.
    best_T = len(penalty_A) - 1 - np.argmin(error_AT[::-1], axis=0)
    penalty_T = penalty_A[best_T]
    weight_DT = v_RD.T @ ((s_R[:, None] / (s_R[:, None] ** 2 + penalty_T)) * along_RT)
    left_out_T = error_AT[best_T, np.arange(len(best_T))]
    return Ridge(weight_DT, mean_T - mean_D @ weight_DT, penalty_T, left_out_T)


def _left_out_T(u_NR: Floats, s_R: Floats, along_RT: Floats, centred_NT: Floats, penalty: float) -> Floats:
    shrink_R = s_R**2 / (s_R**2 + penalty)
    # 1 / N: the bias alone follows each row that far.
    leverage_N = 1 / len(u_NR) + (u_NR**2) @ shrink_R
    residual_NT = centred_NT - u_NR @ (shrink_R[:, None] * along_RT)
    return ((residual_NT / np.maximum(1 - leverage_N, 1e-12)[:, None]) ** 2).mean(0)
