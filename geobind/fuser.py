"""Any subset of modalities in, any modality out: a small masked transformer trained on frozen embeddings.

One query for each wanted modality attends to the embeddings that are given, never to its own (Perceiver,
Jaegle et al., arXiv:2103.03206), and gives a correction to their weighted sum and a concentration. Training
hides inputs at random. The loss is the cross-entropy of finding the row's own embedding by
`concentration * mean . embedding` among those of the batch: the concentration is thus one over the
temperature of a softmax, as that of a product of experts is (`geobind.fusion`).
"""

# N rows, B of a batch, M modalities, D width of the space, H width of the fuser

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from geobind.data.seeds import preserve_rng
from geobind.errors import CheckpointError, DataError
from geobind.fusion import Expectation, check_row_counts
from geobind.recipe.schema import FuserOptions
from geobind.towers.weights import describe_misfit
from geobind.utils.files import read_hashed_tensors
from geobind.utils.hashing import derive_seed
from geobind.utils.progress import track
from geobind.utils.system import hash_tensors
from geobind.utils.vectors import unit

__all__ = ["Fuser", "FuserOptions", "train_fuser"]

FUSER = "fuser.safetensors"
MAX_FUSER = 256 * 2**20  # bytes of a fuser's file
FEWEST_ROWS = 32  # with two modalities or more: fewer teach nothing
_HEADS = 4
_FIRST, _LARGEST = 2.5, math.log(1000)  # of the logarithm of a concentration
_BLOCK = 4096  # rows fused at once


class FuserNetwork(nn.Module):
    """The masked transformer of a fuser; it knows modalities by their number.

    Args:
        modalities: How many.
        width: Length of an embedding.
        hidden: Length of its own vectors, a multiple of 4.
        layers: Blocks of attention and MLP.
        dropout: Share of a block's output that training drops.
    """

    def __init__(
        self, modalities: int, width: int, hidden: int, layers: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.log_weight_MM = nn.Parameter(torch.zeros(modalities, modalities))  # wanted, given
        self.inward = nn.ModuleList([nn.Linear(width, hidden) for _ in range(modalities)])
        self.asked_MH = nn.Parameter(torch.randn(modalities, hidden) * 0.02)
        self.nothing_H = nn.Parameter(torch.zeros(hidden))  # attended to where nothing is given
        self.blocks = nn.ModuleList([_Block(hidden, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(hidden)
        self.outward = nn.Linear(hidden, width)
        self.concentration = nn.Linear(hidden, 1)
        for last in (self.outward, self.concentration):  # training begins at the plain sum
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        nn.init.constant_(self.concentration.bias, _FIRST)

    def forward(self, x_BMD: Tensor, given_BM: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each modality its expected embedding (B, M, D) and a concentration (B, M)."""
        count = x_BMD.shape[1]
        seen_BMM = given_BM[:, None] & ~torch.eye(count, dtype=torch.bool)  # by the query of each modality
        input_BMH = torch.stack([part(x_BMD[:, number]) for number, part in enumerate(self.inward)], dim=1)
        key_BKH = torch.cat([input_BMH, self.nothing_H.expand(len(x_BMD), 1, -1)], dim=1)
        mask_BMK = functional.pad(seen_BMM, (0, 1), value=True)
        query_BMH = self.asked_MH.expand(len(x_BMD), -1, -1)
        for block in self.blocks:
            query_BMH = block(query_BMH, key_BKH, mask_BMK)
        query_BMH = self.norm(query_BMH)
        sum_BMD = (seen_BMM * self.log_weight_MM.exp()) @ x_BMD
        mean_BMD = unit(unit(sum_BMD) + self.outward(query_BMH))
        concentration_BM = self.concentration(query_BMH)[..., 0].clamp(0, _LARGEST).exp()
        return mean_BMD, concentration_BM


class _Block(nn.Module):
    """Attention of the queries to the inputs, then an MLP; both added to the queries."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm_query, self.norm_key, self.norm_mlp = (nn.LayerNorm(hidden) for _ in range(3))
        self.query, self.out = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query_BMH: Tensor, key_BKH: Tensor, mask_BMK: Tensor) -> Tensor:
        """Return the queries, each having seen what its mask lets through."""
        q = self._split(self.query(self.norm_query(query_BMH)))
        k, v = map(self._split, self.key_value(self.norm_key(key_BKH)).chunk(2, dim=-1))
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask_BMK[:, None])
        query_BMH = query_BMH + self.dropout(self.out(seen.transpose(1, 2).flatten(2)))
        return query_BMH + self.dropout(self.mlp(self.norm_mlp(query_BMH)))

    @staticmethod
    def _split(x_BMH: Tensor) -> Tensor:
        return x_BMH.unflatten(-1, (_HEADS, -1)).transpose(1, 2)


Scale = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


class FuserFacts(BaseModel):
    """Facts of a fuser on the card of its bundle."""

    model_config = ConfigDict(frozen=True)

    modalities: tuple[str, ...] = Field(min_length=2, max_length=100, description="in the network's order")
    hidden: int = Field(ge=_HEADS, le=4096, multiple_of=_HEADS, description="width of the network")
    layers: int = Field(ge=1, le=16)
    rows: int = Field(ge=0, description="rows that it was trained on")
    source: str = Field(default="", max_length=1000, description="what the rows are")
    digests: dict[str, str] = Field(default={}, description="SHA-256 of the weights of each modality")
    scales: dict[str, Scale] = Field(default={}, description="factors of concentrations, by modality")
    sha256: str = Field(description="of the fuser's weights")


@dataclass(frozen=True, eq=False)
class Fuser:
    """A trained masked transformer, the modalities that it knows, and the weights that embedded them.

    `scales` are factors of its concentrations by modality, fitted on rows that no encoder was trained on
    (`geobind.evaluation.calibrate_fuser`); 1 where there is none.
    """

    network: FuserNetwork
    modalities: tuple[str, ...]
    rows: int = 0
    source: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return the facts of the fuser, without its weights."""
        return f"Fuser({', '.join(self.modalities)}; {self.width} wide; {self.rows:,} rows)"

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self.network.outward.out_features

    def infer(
        self,
        given: Mapping[str, Tensor],
        wanted: Collection[str] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Expectation]:
        """Infer the embeddings of modalities from those of any subset of them.

        Args:
            given: Unit-length embeddings (N, D) by modality, of equally many rows.
            wanted: The modalities to infer, default: all that it knows; one that is given stays as it is.
            present: By modality, (N,) booleans: the rows that have it; without an entry all have.

        Raises:
            DataError: Nothing is given, different numbers of rows, another width, or an unknown modality.
        """
        wanted = self.modalities if wanted is None else tuple(wanted)
        self.check_known((*given, *wanted))
        count = check_row_counts(given)
        for name, rows in given.items():
            if rows.shape[1] != self.width:
                raise DataError(f"embeddings of '{name}' are {rows.shape[1]} wide, the fuser's {self.width}")
        x_NMD = torch.zeros(count, len(self.modalities), self.width)
        given_NM = torch.zeros(count, len(self.modalities), dtype=torch.bool)
        for name, rows in given.items():
            number = self.modalities.index(name)
            there_N = (present or {}).get(name)
            given_NM[:, number] = True if there_N is None else there_N.cpu()
            x_NMD[:, number] = rows.detach().cpu().float() * given_NM[:, number, None]
        with torch.no_grad():
            blocks = [
                self.network(*part) for part in zip(x_NMD.split(_BLOCK), given_NM.split(_BLOCK), strict=True)
            ]
        mean_NMD, concentration_NM = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return {
            name: self._expect(name, x_NMD, given_NM, mean_NMD, concentration_NM, tuple(given))
            for name in wanted
        }

    def _expect(
        self,
        wanted: str,
        x_NMD: Tensor,
        given_NM: Tensor,
        mean_NMD: Tensor,
        concentration_NM: Tensor,
        inputs: tuple[str, ...],
    ) -> Expectation:
        """Return the expectation of one modality: its own embedding where given, zeros where nothing is."""
        number = self.modalities.index(wanted)
        own_N, any_N = given_NM[:, number], given_NM.any(dim=1)
        mean_ND = torch.where(own_N[:, None], x_NMD[:, number], mean_NMD[:, number]) * any_N[:, None]
        scaled_N = self.scales.get(wanted, 1.0) * concentration_NM[:, number]
        concentration_N = torch.where(own_N, torch.inf, scaled_N).where(any_N, 0.0)
        return Expectation(mean_ND, concentration_N, inputs, True, f"by a fuser trained on {self.source}")

    def check_known(self, names: Collection[str]) -> None:
        """Check that it was trained on some modalities.

        Raises:
            DataError: On one it was not.
        """
        if unknown := [name for name in dict.fromkeys(names) if name not in self.modalities]:
            raise DataError(
                f"the fuser was not trained on {', '.join(unknown)}; it knows {', '.join(self.modalities)}: "
                "name these alone, or infer without it (fuser=False)"
            )

    def check_model(self, width: int, digests: Mapping[str, str]) -> Fuser:
        """Return the fuser, after a check that it was trained on a model's embeddings.

        Raises:
            DataError: It is of another width, or was trained on embeddings of other weights.
        """
        if self.width != width:
            raise DataError(
                f"the fuser takes embeddings {self.width} wide, this model's are {width}: train another"
            )
        for name, digest in self.digests.items():
            if digest != digests.get(name, digest):
                raise DataError(
                    f"the fuser was trained on embeddings of other weights of '{name}': train another"
                )
        return self


def describe_fuser(fuser: Fuser) -> FuserFacts:
    """Return the facts of a fuser for a bundle's card."""
    return FuserFacts(
        modalities=fuser.modalities,
        hidden=fuser.network.outward.in_features,
        layers=len(fuser.network.blocks),
        rows=fuser.rows,
        source=fuser.source,
        digests=dict(fuser.digests),
        scales=dict(fuser.scales),
        sha256=hash_tensors(fuser.network.state_dict()),
    )


def read_fuser(path: Path, facts: FuserFacts, width: int) -> Fuser | None:
    """Read the fuser of a bundle; None where the file is not there, since a bundle works without it.

    Raises:
        CheckpointError: It is damaged, too large, or not the one that the card describes.
    """
    fix = f"; fetch it again, or remove it: the bundle loads without {path.name}"
    tensors = read_hashed_tensors(path, MAX_FUSER, "fuser", facts.sha256, fix)
    if tensors is None:
        return None
    with torch.device("meta"):  # shapes are compared before anything takes memory
        network = FuserNetwork(len(facts.modalities), width, facts.hidden, facts.layers)
    if misfit := describe_misfit(network.state_dict(), tensors, types=True):
        raise CheckpointError(f"{path}: the weights are not those that the card describes: {misfit}{fix}")
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise CheckpointError(f"{path}: its weights are not finite{fix}")
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return Fuser(network.eval(), facts.modalities, facts.rows, facts.source, facts.digests, facts.scales)


def train_fuser(
    embedded: Mapping[str, Tensor],
    options: FuserOptions | None = None,
    *,
    present: Mapping[str, Tensor] | None = None,
    digests: Mapping[str, str] | None = None,
    source: str = "rows of embeddings",
    seed: int = 0,
) -> Fuser:
    """Train a fuser on frozen embeddings of rows.

    Args:
        embedded: Unit-length embeddings (N, D) by modality, of equally many rows.
        options: Of the network and its training.
        present: By modality, (N,) booleans: the rows that have it; without an entry all have.
        digests: SHA-256 of the weights that embedded each modality.
        source: What the rows are, in words.
        seed: Of first weights, batches and hidden inputs.

    Raises:
        DataError: Fewer than two modalities, or too few rows with two of them.
    """
    options = options or FuserOptions()
    x_NMD, there_NM = stack_rows(embedded, present or {})
    count, width = len(x_NMD), x_NMD.shape[2]
    with preserve_rng():
        torch.manual_seed(derive_seed(seed, "fuser") % 2**63)
        network = FuserNetwork(
            len(embedded), width, options.width, options.layers, dropout=options.dropout
        ).train()
        size = min(options.batch_size, count)
        steps = options.epochs * (count // size)
        optimizer = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=_DECAY)
        warmup = min(_WARMUP, max(steps // 10, 1))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * step / steps)) / 2,
        )
        for _ in track(range(options.epochs), "training the fuser"):
            for row_B in torch.randperm(count)[: count // size * size].split(size):
                optimizer.zero_grad()
                _loss(network, x_NMD[row_B], there_NM[row_B]).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
    return Fuser(network.eval(), tuple(embedded), count, source, dict(digests or {}))


_DECAY, _WARMUP = 0.05, 50  # weight decay; steps in which the learning rate rises
_SHOWN = (0.15, 0.85)  # share of a row's inputs that training shows, drawn evenly


def stack_rows(embedded: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows with two modalities or more as (N, M, D), and which they have (N, M).

    Raises:
        DataError: Fewer than two modalities, or too few such rows.
    """
    if len(embedded) < 2:
        raise DataError(f"a fuser needs two modalities or more, not {', '.join(embedded) or 'none'}")
    count = check_row_counts(embedded)
    all_N = torch.ones(count, dtype=torch.bool)
    there_NM = torch.stack([present.get(name, all_N) for name in embedded], dim=1)
    x_NMD = torch.stack([unit(rows.detach()) for rows in embedded.values()], dim=1) * there_NM[..., None]
    several_N = there_NM.sum(dim=1) > 1
    if int(several_N.sum()) < FEWEST_ROWS:
        raise DataError(
            f"of {count:,} rows {int(several_N.sum()):,} have two of {', '.join(embedded)}, and a fuser "
            f"needs {FEWEST_ROWS}: give rows that hold several modalities"
        )
    return x_NMD[several_N], there_NM[several_N]


def _loss(network: FuserNetwork, x_BMD: Tensor, there_BM: Tensor) -> Tensor:
    """Return the mean cross-entropy of finding each row's embedding from some of its others."""
    low, high = _SHOWN
    shown_B1 = low + (high - low) * torch.rand(len(x_BMD), 1)
    given_BM = there_BM & (torch.rand(there_BM.shape) < shown_B1)
    mean_BMD, concentration_BM = network(x_BMD, given_BM)
    losses: list[Tensor] = []
    for number in range(x_BMD.shape[1]):
        row_Q = torch.nonzero(there_BM[:, number])[:, 0]
        others_Q = given_BM[row_Q].sum(dim=1) - given_BM[row_Q, number].int() > 0
        score_QQ = mean_BMD[row_Q, number] @ x_BMD[row_Q, number].T
        logit_QQ = concentration_BM[row_Q, number, None] * score_QQ
        loss_Q = functional.cross_entropy(logit_QQ, torch.arange(len(row_Q)), reduction="none")
        losses.append((loss_Q * others_Q).sum() / others_Q.sum().clamp(min=1))
    return torch.stack(losses).mean()
