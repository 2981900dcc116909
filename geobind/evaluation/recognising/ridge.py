"""Ridge regression in closed form, its penalty chosen by leaving out one row at a time."""

# N rows, D width, T targets, A penalties, R rank of the rows

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geobind.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

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
    u_NR, s_R, v_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
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
