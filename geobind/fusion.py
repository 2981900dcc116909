"""Any subset of modalities in, any modality out: a product of von Mises-Fisher experts.

Each input says of a wanted modality that its embedding lies near the input's own direction x, with a
concentration k: density ~ exp(k x.y). Experts multiply (Hinton, 2002, Neural Computation 14:1771), and their
product is of the same family: mean direction unit(sum k x), concentration |sum k x|. The concentrations are
the inverse temperatures that calibration fits for each pair (`geobind.evaluation.calibrate`), so that the
softmax over a gallery by the product is the product of the fitted ones. Without calibration all experts weigh
the same.
"""

# N rows, D width of the space

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geobind.errors import DataError
from geobind.scoring import Calibration
from geobind.utils.vectors import unit


@dataclass(frozen=True)
class Expectation:
    """The expected embedding of a modality for each row, and how sure it is."""

    mean_ND: Tensor  # unit length; zeros where no input of a row says anything
    concentration_N: Tensor  # of a von Mises-Fisher distribution; infinite where the modality was given
    inputs: tuple[str, ...]  # the modalities it was inferred from
    calibrated: bool  # False: every input weighs the same, and the concentration has no scale
    fuser: str = ""  # the fuser that inferred it, in words; empty for a product of experts

    @property
    def note(self) -> str:
        """Where its weights come from, in words."""
        if self.fuser:
            return self.fuser
        if self.calibrated:
            return "weights from calibration on held-out rows"
        return "equal weights: no calibration of these modalities is known"


def fuse(
    given: Mapping[str, Tensor],
    wanted: str,
    calibration: Calibration | None = None,
    present: Mapping[str, Tensor] | None = None,
) -> Expectation:
    """Infer the embedding of one modality from those of others.

    Args:
        given: Unit-length embeddings (N, D) by modality, of equally many rows.
        wanted: The modality to infer; where it is given, it stays as it is.
        calibration: Fitted temperatures; used where it knows each given modality with the wanted one.
        present: By modality, (N,) booleans: the rows that have it; without an entry all have.

    Raises:
        DataError: Nothing is given, or different numbers of rows.
    """
    check_row_counts(given)
    present = present or {}
    own_N = _present(given, present, wanted)
    others = tuple(name for name in given if name != wanted)
    weights, calibrated = weigh(others, wanted, calibration)
    first = next(iter(given.values()))
    sum_ND = torch.zeros_like(first, dtype=torch.float64)
    for name in others:
        sum_ND += weights[name] * _present(given, present, name)[:, None] * given[name].double()
    mean_ND, length_N = unit(sum_ND), sum_ND.norm(dim=1).float()
    if wanted in given:
        mean_ND = torch.where(own_N[:, None], given[wanted].float(), mean_ND)
        length_N = torch.where(own_N, torch.inf, length_N)
    return Expectation(mean_ND, length_N, tuple(given), calibrated)


def weigh(
    given: Collection[str], wanted: str, calibration: Calibration | None
) -> tuple[dict[str, float], bool]:
    """Return the concentration of each given modality's expert, and whether they are calibrated."""
    fitted = {name: calibration.temperature(name, wanted) if calibration else None for name in given}
    known = {name: 1 / temperature for name, temperature in fitted.items() if temperature is not None}
    return (known, True) if len(known) == len(fitted) and known else (dict.fromkeys(given, 1.0), False)


def check_row_counts(given: Mapping[str, Tensor]) -> int:
    """Return how many rows each modality has.

    Raises:
        DataError: Nothing is given, or they have different numbers.
    """
    counts = {name: len(rows) for name, rows in given.items()}
    if not counts:
        raise DataError("nothing to infer from: give at least one modality with an input")
    if len(set(counts.values())) > 1:
        raise DataError(
            f"the inputs must have equally many rows, with None where one is missing, not {counts}"
        )
    return next(iter(counts.values()))


def _present(given: Mapping[str, Tensor], present: Mapping[str, Tensor], name: str) -> Tensor:
    """Return which rows have a modality: (N,)."""
    first = next(iter(given.values()))
    if name not in given:
        return torch.zeros(len(first), dtype=torch.bool, device=first.device)
    return present.get(name, torch.ones(len(first), dtype=torch.bool, device=first.device)).to(first.device)
