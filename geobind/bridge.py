"""A bridge between modalities that never trained together: a bank of anchor embeddings draws both.

    project(x) = unit(softmax(x A^T / t) A)
    bridged(x) = unit(x + w project(x))
    score(a, b) = a.b - (r(a) + r(b)) / 2

A is the bank: embeddings of anchor inputs, without labels or pairs. r is the mean of the k highest
similarities to unlabelled rows of the other modality, where the bank has such rows: the score is half of CSLS
(Conneau et al., arXiv:1710.04087, section 2.3), in units of a cosine. `docs/bridge.md` says where it helps.
"""

# N and M embeddings, R rows of the bank, K reference rows of a modality, D width of the space

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from geobind.errors import CheckpointError, DataError
from geobind.recipe.marks import Marks
from geobind.scoring import as_rows, cosine
from geobind.utils.files import read_hashed_tensors
from geobind.utils.system import hash_tensors
from geobind.utils.vectors import require_directions, unit

__all__ = ["AnchorBank", "Bridge", "BridgeOptions", "choose_bridge", "fit_options"]

BANK = "bank.safetensors"
BANK_ROWS, REFERENCE_ROWS = 4_000, 1_000  # of a bank that a run makes
MAX_BANK = 256 * 2**20  # bytes of a bank's file
_BLOCK = 2**22  # similarities held at once: 16 MiB
_KEPT = 16  # drawn references that a bank keeps: of a few pairs, options and devices
_LENGTH = 1.5  # of extended rows before they are scaled: embedding 1, one 1, half of a hubness at most 0.5
_ANCHOR, _OTHER = "anchor", "other."  # names of tensors in a file


class BridgeOptions(BaseModel):
    """How far, how sharply and against how many neighbours a bridge draws; fitted on toy Earth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=0.5, ge=0, le=100, description="w: how far towards the bank; 0: not at all")
    temperature: float = Field(default=0.02, ge=1e-4, le=100, description="t: of the softmax over the bank")
    neighbours: int = Field(default=100, ge=1, le=1_000_000, description="k: of the correction for hubs")

    def describe(self) -> str:
        """Return the options in words."""
        return f"weight {self.weight:g}, temperature {self.temperature:g}, {self.neighbours} neighbours"


DEFAULTS = BridgeOptions()


@dataclass(frozen=True)
class AnchorBank:
    """Unlabelled embeddings of an anchor, and perhaps of other modalities as references of the correction.

    Args:
        vectors: Embeddings of anchor inputs (R, D), two or more: a tensor or an array, such as an archive's.
        anchor: The modality that they are of.
        references: Unlabelled embeddings (K, D) by modality, for the correction; it is left out without.
        digests: SHA-256 of the weights that embedded each modality; what is left out is not checked.
        source: What the rows are, in words.

    Raises:
        DataError: No rows, one row, a row that is not finite or all zeros, or references of another width.
    """

    vectors: Any
    anchor: str = ""
    references: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    drawn: dict[tuple[Any, ...], Tensor] = field(
        default_factory=dict[tuple[Any, ...], Tensor], init=False, repr=False, compare=False
    )  # references drawn towards the bank, which no query changes

    def __post_init__(self) -> None:
        """Check the rows; they become unit-length float32 tensors."""
        anchor_RD = _check_rows(self.vectors, "the bank")
        if len(anchor_RD) < 2:
            raise DataError("the bank: has one row, and would draw everything towards it; give two or more")
        object.__setattr__(self, "vectors", anchor_RD)
        checked = {
            name: _check_rows(rows, f"the bank's references of '{name}'")
            for name, rows in self.references.items()
        }
        for name, rows in checked.items():
            if rows.shape[1] != self.width:
                raise DataError(
                    f"the bank's references of '{name}' are {rows.shape[1]} wide, its anchors {self.width}; "
                    "give embeddings of one space"
                )
        object.__setattr__(self, "references", checked)

    def __repr__(self) -> str:
        """Return the facts of the bank, without its numbers."""
        others = ", ".join(f"{name} {len(rows)}" for name, rows in self.references.items())
        size = f"{len(self)} rows of '{self.anchor}', {self.width} wide"
        return f"AnchorBank({size}; references: {others or 'none'})"

    def __len__(self) -> int:
        """Return how many anchors it has."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return int(self.vectors.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """Return its rows as they are stored: float16, which errs by 5e-4 of a number at most."""
        named = {_ANCHOR: self.vectors} | {f"{_OTHER}{name}": rows for name, rows in self.references.items()}
        return {name: rows.to("cpu", torch.float16) for name, rows in named.items()}

    def check_model(self, width: int, digests: Mapping[str, str]) -> AnchorBank:
        """Return the bank, after a check that a model made it.

        Raises:
            DataError: It is of another width, or was embedded by other weights.
        """
        if self.width != width:
            raise DataError(
                f"the bank is {self.width} wide, this model's embeddings {width}: make one with it"
            )
        for name, digest in self.digests.items():
            if digest != digests.get(name, digest):
                raise DataError(
                    f"the bank was embedded by other weights of '{name}' ({digest[:12]}; this model's are "
                    f"{digests[name][:12]}): make one with this model"
                )
        return self


class BankFacts(BaseModel):
    """Facts of a bank on the card of its bundle."""

    model_config = ConfigDict(frozen=True)

    anchor: str = Field(description="the modality of the bank's rows")
    rows: int = Field(ge=2, description="how many")
    source: str = Field(default="", description="what the rows are")
    digests: dict[str, str] = Field(default={}, description="SHA-256 of the weights of each modality")
    sha256: str = Field(description="of the stored rows")
    options: BridgeOptions = BridgeOptions()


def describe_bank(bank: AnchorBank, options: BridgeOptions = DEFAULTS) -> BankFacts:
    """Return the facts of a bank for a bundle's card."""
    return BankFacts(
        anchor=bank.anchor,
        rows=len(bank),
        source=bank.source,
        digests=dict(bank.digests),
        sha256=hash_tensors(bank.tensors()),
        options=options,
    )


def read_bank(path: Path, facts: BankFacts) -> AnchorBank | None:
    """Read the bank of a bundle; None where the file is not there, since a bundle works without it.

    Raises:
        CheckpointError: It is damaged, too large, or not the one that the card describes.
    """
    fix = f"; fetch it again, or remove it: the bundle loads without {path.name}"
    tensors = read_hashed_tensors(path, MAX_BANK, "bank", facts.sha256, fix)
    if tensors is None:
        return None
    if _ANCHOR not in tensors:
        raise CheckpointError(f"{path}: holds no rows of its anchor '{facts.anchor}'{fix}")
    references = {
        name.removeprefix(_OTHER): rows for name, rows in tensors.items() if name.startswith(_OTHER)
    }
    try:
        return AnchorBank(tensors[_ANCHOR], facts.anchor, references, facts.digests, facts.source)
    except DataError as error:
        raise CheckpointError(f"{path}: {error}{fix}") from None


@dataclass(frozen=True)
class Bridge:
    """A bank with the options of bridging, and perhaps the two modalities that it joins.

    Args:
        bank: The bank.
        options: Weight, temperature and neighbours.
        names: The modalities of the first and of the second embeddings in `score`: their references correct
            for hubs. Without names, or without references of both, nothing is corrected.
    """

    bank: AnchorBank
    options: BridgeOptions = DEFAULTS
    names: tuple[str, str] | None = None

    def between(self, one: str, two: str) -> Bridge:
        """Return the bridge with the modalities that it joins."""
        return replace(self, names=(one, two))

    def describe(self) -> str:
        """Return the bank and the options in words."""
        return f"{self.bank.source or repr(self.bank)}; {self.options.describe()}"

    @property
    def corrected(self) -> bool:
        """Whether scores are corrected for hubs."""
        return self.names is not None and set(self.names) <= set(self.bank.references)

    def project(self, x_ND: Any) -> Tensor:
        """Return the mean of the bank's rows, weighted by their similarity to each embedding: (N, D).

        Raises:
            DataError: Embeddings of another width, or a row that is not finite.
        """
        x_ND = self._check(x_ND)
        anchor_RD = self.bank.vectors.to(x_ND.device)
        parts = [
            torch.softmax((part_BD @ anchor_RD.T).div_(self.options.temperature), dim=1) @ anchor_RD
            for part_BD in _cut(x_ND, len(anchor_RD))
        ]
        return unit(torch.cat(parts)) if parts else x_ND

    def apply(self, x_ND: Any) -> Tensor:
        """Return embeddings drawn towards the bank, of unit length (N, D): `unit(x + w project(x))`.

        Raises:
            DataError: Embeddings of another width, or a row that is not finite.
        """
        x_ND = self._check(x_ND)
        return x_ND if self.options.weight == 0 else unit(x_ND + self.options.weight * self.project(x_ND))

    def score(self, a_ND: Any, b_MD: Any) -> Tensor:
        """Compare every row of `a_ND` with every row of `b_MD`: (N, M), in units of a cosine.

        Raises:
            DataError: Embeddings of another width, or a row that is not finite.
        """
        a_ND, b_MD = self.apply(a_ND), self.apply(b_MD)
        score_NM = cosine(a_ND, b_MD)
        if self.corrected and self.names:
            one, two = self.names
            score_NM -= self._hubness(a_ND, two)[:, None] / 2
            score_NM -= self._hubness(b_MD, one).to(score_NM.device)[None] / 2
        return score_NM

    def embed_pair(self, a_ND: Any, b_MD: Any) -> tuple[Tensor, Tensor]:
        """Return unit vectors (N, D + 4) and (M, D + 4) whose cosine is 4/9 of the score.

        Whatever ranks by cosine thus ranks by the score: a measure of retrieval, an index.
        """
        a_ND, b_MD = self.apply(a_ND), self.apply(b_MD)
        names = self.names if self.corrected and self.names else None
        half_N = self._hubness(a_ND, names[1]) / 2 if names else a_ND.new_zeros(len(a_ND))
        half_M = self._hubness(b_MD, names[0]) / 2 if names else b_MD.new_zeros(len(b_MD))
        return _extend(a_ND, half_N, first=True), _extend(b_MD, half_M, first=False)

    def _hubness(self, bridged_ND: Tensor, other: str) -> Tensor:
        """Return the mean similarity of each row to its nearest references of another modality: (N,)."""
        reference_KD = self._draw_references(other, bridged_ND.device)
        count = min(self.options.neighbours, len(reference_KD))
        parts = [
            (part_BD @ reference_KD.T).topk(count, dim=1).values.mean(dim=1)
            for part_BD in _cut(bridged_ND, len(reference_KD))
        ]
        return torch.cat(parts) if parts else bridged_ND.new_zeros(0)

    def _draw_references(self, other: str, device: torch.device) -> Tensor:
        """Return a modality's references drawn towards the bank (K, D), which keeps them."""
        key = (other, self.options.weight, self.options.temperature, device)
        reference_KD = self.bank.drawn.get(key)
        if reference_KD is None:
            with torch.inference_mode(False), torch.no_grad():  # a later score may want gradients
                reference_KD = self.apply(self.bank.references[other].to(device))
            if len(self.bank.drawn) >= _KEPT:
                self.bank.drawn.clear()
            self.bank.drawn[key] = reference_KD
        return reference_KD

    def _check(self, x_ND: Any) -> Tensor:
        rows = as_rows(x_ND)
        if rows.shape[1] != self.bank.width:
            raise DataError(
                f"embeddings are {rows.shape[1]} wide, the bank {self.bank.width}: both must be of one model"
            )
        return unit(require_directions(rows, "embeddings"))


def choose_bridge(bridge: Bridge | None, marks: Marks, one: str, two: str) -> Bridge | None:
    """Return the bridge of two modalities where it helps: they are emergent, and neither is its anchor."""
    if bridge is None or bridge.bank.anchor in (one, two) or marks.get(frozenset((one, two))) != "emergent":
        return None
    return bridge.between(one, two)


WEIGHTS, TEMPERATURES = (0.0, 0.25, 0.5, 1.0, 2.0), (0.01, 0.02, 0.03, 0.05)


def fit_options(bank: AnchorBank, pairs: Sequence[tuple[Any, Any]], neighbours: int = 100) -> BridgeOptions:
    """Choose weight and temperature by the mean reciprocal rank on rows of trained pairs.

    Args:
        bank: The bank.
        pairs: Embeddings of two modalities, row i of both of one place: rows apart from those measured.
        neighbours: Kept as it is.

    Raises:
        DataError: No pairs, or sides of different numbers of rows.
    """
    if not pairs or any(len(one) != len(two) for one, two in pairs):
        raise DataError("a bridge is fitted on pairs of equally many rows, and on at least one pair")
    best, chosen = -math.inf, DEFAULTS
    for weight, temperature in product(WEIGHTS, TEMPERATURES):
        options = BridgeOptions(weight=weight, temperature=temperature, neighbours=neighbours)
        found = sum(_mean_reciprocal_rank(Bridge(bank, options).score(*pair)) for pair in pairs)
        if found > best + 1e-9:
            best, chosen = found, options
    return chosen


def _mean_reciprocal_rank(score_NN: Tensor) -> float:
    own_N = score_NN.diagonal()
    above_N, beside_N = (score_NN > own_N[:, None]).sum(1), (score_NN > own_N[None]).sum(0)
    return float(((1 / (1 + above_N)).mean() + (1 / (1 + beside_N)).mean()) / 2)


def _check_rows(vectors: Any, name: str) -> Tensor:
    rows = as_rows(vectors)
    if not rows.numel():
        raise DataError(f"{name}: is empty, of shape {tuple(rows.shape)}; give embeddings (rows, width)")
    return unit(require_directions(rows.float(), name))


def _cut(x_ND: Tensor, width: int) -> Iterator[Tensor]:
    """Yield blocks of rows whose similarities to `width` others fit into the memory of a block."""
    yield from x_ND.split(max(_BLOCK // max(width, 1), 1)) if len(x_ND) else ()


def _extend(x_ND: Tensor, half_N: Tensor, *, first: bool) -> Tensor:
    """Add four numbers to each row: 1, minus half of its hubness, and what makes all rows equally long."""
    one_N, none_N = torch.ones_like(half_N), torch.zeros_like(half_N)
    rest_N = (_LENGTH**2 - 2 - half_N.square()).clamp(min=0).sqrt()
    more = (one_N, -half_N, rest_N, none_N) if first else (-half_N, one_N, none_N, rest_N)
    return torch.cat([x_ND, torch.stack(more, dim=1)], dim=1) / _LENGTH
