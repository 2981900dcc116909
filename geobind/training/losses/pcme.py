"""PCME++: probabilistic embeddings and their matching loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geobind.errors import CheckpointError, RecipeError
from geobind.towers.weights import read_weights
from geobind.training.losses.base import ContrastiveLoss, Temperature, check_batch
from geobind.training.losses.tiling import (
    LossAndGrads,
    NeededGrads,
    Pairing,
    Tile,
    TiledGradients,
    apply_kernel,
    block_length,
    tile_blocks,
)

if TYPE_CHECKING:
    from geobind.training.losses.base import LossContext


# N pairs on all ranks, D width, T x C one tile


def matching(
    query_ND: Tensor,
    key_ND: Tensor,
    scale: Tensor,
    bias: Tensor,
    pairing: Pairing,
    needed: NeededGrads,
    *,
    pseudo: float,
) -> LossAndGrads:
    """Return 2 M + pseudo (R + C), and its gradients, for logits of scale q.k + bias.

    M is the binary cross-entropy of telling positives from the rest, a mean over all N^2 entries. In R every
    entry at least as likely as its row's own pair counts as a positive too, in C as its column's (Chun,
    arXiv:2305.18171, eqs. 1 and 2 and its pseudo-positives, weighted as in the authors' code). One product
    of N^2 D multiply-adds, one more per trainable side.
    """
    pairs = len(query_ND)
    row_blocks, column_blocks = tile_blocks(query_ND, key_ND)
    gradients = TiledGradients(query_ND, key_ND, scale, needed)
    own_N = (query_ND * key_ND).sum(1) * scale + bias
    loss_N, slope_N = query_ND.new_zeros(2, pairs)
    space = query_ND.new_empty(block_length(row_blocks[0]) * block_length(column_blocks[0]))
    for rows in row_blocks:
        scaled_TD = query_ND[rows] * scale
        for columns in column_blocks:
            tile = Tile(pairing, rows, columns)
            shape = (len(scaled_TD), block_length(columns))
            logits_TC = torch.mm(scaled_TD, key_ND[columns].T, out=space[: math.prod(shape)].view(shape))
            logits_TC += bias
            pull_TC = _pull(tile, logits_TC, own_N, pseudo)
            tile.mask_ignored_(pull_TC)
            loss_N[rows] -= (pull_TC * logits_TC).sum(1)
            tile.mask_ignored_(logits_TC, fill=-math.inf)
            loss_N[rows] += F.softplus(logits_TC).sum(1).mul_(2 + 2 * pseudo)
            if gradients.uses_tiles or needed.bias:
                weights_TC = logits_TC.sigmoid_().mul_(2 + 2 * pseudo).sub_(pull_TC)
                slope_N[rows] += weights_TC.sum(1)
                gradients.add_(rows, columns, weights_TC.div_(pairs**2), scaled_TD)
    slope = slope_N.mean() / pairs if needed.bias else None
    return gradients.finish(loss_N.mean() / pairs, slope)


def _pull(tile: Tile, logits_TC: Tensor, own_N: Tensor, pseudo: float) -> Tensor:
    """How often each entry counts as a positive: twice, and `pseudo` times for its row and its column."""
    mask_TC = tile.positive_mask(logits_TC)
    pull_TC = torch.zeros_like(logits_TC)
    if pseudo:
        pull_TC += logits_TC >= own_N[tile.rows, None]
        pull_TC += logits_TC >= own_N[tile.columns]
        pull_TC *= pseudo
    return pull_TC if mask_TC is None else pull_TC.masked_fill_(mask_TC, 2 + 2 * pseudo)


# N pairs on all ranks, D width

_FIRST_VARIANCE = 0.1  # of an embedding in all, at first: small beside the squared distances of 0 to 4


class Uncertainty(nn.Module):
    """The variance of an embedding, as a linear function of its mean: log sigma^2 = W mu + b.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight_DD = nn.Parameter(0.01 * torch.randn(width, width) / math.sqrt(width))
        self.bias_D = nn.Parameter(torch.full((width,), math.log(_FIRST_VARIANCE / width)))

    def forward(self, mean_ND: Tensor) -> Tensor:
        """Return the log-variances (N, D) of unit-length embeddings, never in half precision."""
        dtype = torch.promote_types(self.weight_DD.dtype, torch.float32)
        return F.linear(mean_ND.to(dtype), self.weight_DD.to(dtype), self.bias_D.to(dtype))

    def variance(self, mean_ND: Tensor) -> Tensor:
        """Return how uncertain each embedding is: its variance, summed over the axes (N,)."""
        return self(mean_ND).exp().sum(1)


class PCME(ContrastiveLoss):
    """Probabilistic matching with the closed-form sampled distance (Chun, PCME++, arXiv:2305.18171).

    The distance of two Gaussians is d = |mu_a - mu_o|^2 + sum(sigma_a^2 + sigma_o^2), the mean squared
    distance of two draws. A pair matches with probability sigmoid(-a d + b); a is one over the temperature.
    The loss is 2 M + pseudo (P_a + P_o) + vib (V_a + V_o) as in the authors' code: M the binary cross-entropy
    over all N x N entries; P the same where an entry at least as near as a row's (a column's) own pair counts
    as a pair too; V the mean divergence from the standard normal, which keeps variances from collapsing.

    An encoder gives the mean alone, so each side has an `Uncertainty` here, which is trained with the stage
    even where the encoder is frozen. What the mean does not tell, it cannot know; the paper's variances are
    read off the backbone. Exact at any batch size, in memory that grows with N.

    Args:
        width: D.
        temperature: One over a, learnt from 0.2 by default (a = 5, as in the paper).
        shift: b at first; learnt.
        pseudo: Weight of the pseudo-positives; 0 for none.
        vib: Weight of the variational information bottleneck.

    Raises:
        RecipeError: If a weight is negative.
    """

    def __init__(
        self,
        width: int,
        temperature: Temperature | None = None,
        shift: float = 5.0,
        pseudo: float = 0.1,
        vib: float = 1e-4,
    ) -> None:
        super().__init__()
        if not (0 <= pseudo < math.inf and 0 <= vib < math.inf):
            raise RecipeError(f"pcme: weights pseudo {pseudo} and vib {vib} must be 0 or positive")
        self.temperature = Temperature(0.2) if temperature is None else temperature
        self.shift = nn.Parameter(torch.tensor(float(shift)))
        self.pseudo, self.vib = pseudo, vib
        self.anchor, self.other = Uncertainty(width), Uncertainty(width)

    def forward(self, anchor_ND: Tensor, other_ND: Tensor, context: LossContext | None = None) -> Tensor:
        """Return the loss of N pairs of unit-length embeddings, a scalar; NaN if any embedding is not finite.

        Raises:
            DataError: If the batch cannot be contrasted.
        """
        check_batch(anchor_ND, other_ND, context)
        pairing = Pairing.from_context(len(anchor_ND), context, anchor_ND.device)
        pseudo = self.pseudo

        def kernel(
            query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, needed: NeededGrads
        ) -> LossAndGrads:
            return matching(query, key, scale, bias, pairing, needed, pseudo=pseudo)

        with torch.autocast(anchor_ND.device.type, enabled=False):
            logs = self.anchor(anchor_ND), self.other(other_ND)
            sides = (anchor_ND.to(logs[0].dtype), logs[0]), (other_ND.to(logs[1].dtype), logs[1])
            square_N, other_square_N = (mean.square().sum(1) + log.exp().sum(1) for mean, log in sides)
            # q.k = -d: the tiles need not know that there are variances.
            one_N = torch.ones_like(square_N)
            query_ND = torch.cat([2 * sides[0][0], torch.stack([-square_N, -one_N], dim=1)], dim=1)
            key_ND = torch.cat([sides[1][0], torch.stack([one_N, other_square_N], dim=1)], dim=1)
            loss = apply_kernel(kernel, query_ND, key_ND, self.temperature.scale, self.shift)
            return loss + self.vib * (_divergence(*sides[0]) + _divergence(*sides[1]))


def _divergence(mean_ND: Tensor, log_ND: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence from the standard normal, a mean over embeddings and axes."""
    return -0.5 * (1 + log_ND - mean_ND.square() - log_ND.exp()).mean()


def uncertainties(losses: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the weights of all heads of some losses, by `PAIR.anchor.` and `PAIR.other.` and their name."""
    return {
        f"{pair}.{side}.{name}": value
        for pair, loss in losses.items()
        if isinstance(loss, PCME)
        for side in ("anchor", "other")
        for name, value in getattr(loss, side).state_dict().items()
    }


def read_uncertainties(path: Path) -> dict[str, Uncertainty]:
    """Read the heads that a stage left, by `PAIR.anchor` and `PAIR.other`.

    Args:
        path: `uncertainty.safetensors` in the stage's folder.

    Raises:
        CheckpointError: The file is not there, or holds something else.
    """
    weights = read_weights(path)
    heads: dict[str, Uncertainty] = {}
    for name, value in weights.items():
        whose, _, part = name.rpartition(".")
        if part == "bias_D":
            heads[whose] = Uncertainty(len(value))
    try:
        for whose, head in heads.items():
            parts = ("weight_DD", "bias_D")
            head.load_state_dict({part: weights[f"{whose}.{part}"] for part in parts})
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: does not hold the uncertainties of a stage: {reason}") from error
    return heads
