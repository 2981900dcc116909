"""Notation of embedding sums: `satellite+2*audio:ground_image`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import isfinite
from typing import NamedTuple

from geobind.errors import DataError, did_you_mean


class EmbeddingSum(NamedTuple):
    """The modalities of a sum and their weights, and the gallery to search."""

    weights: Mapping[str, float]  # by modality
    gallery: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The modalities of the sum."""
        return tuple(self.weights)

    @property
    def words(self) -> list[str]:
        """The modalities, with each weight other than 1."""
        return [name if weight == 1 else f"{weight:g}*{name}" for name, weight in self.weights.items()]

    def __str__(self) -> str:
        """Return the sum in its notation."""
        return f"{'+'.join(self.words)}:{self.gallery}"


def parse_sum(text: str, known: Collection[str]) -> EmbeddingSum:
    """Parse a sum such as `satellite+audio:ground_image`.

    Raises:
        DataError: The notation is wrong, or a modality is unknown.
    """
    left, _, gallery = (word.strip() for word in text.partition(":"))
    terms = (term.rpartition("*") for term in left.split("+"))
    said = [(name.strip(), factor.strip()) for factor, _, name in terms]
    weights = {name: _weight(factor, text) for name, factor in said}
    if not gallery or len(said) < 2 or not all(weights) or len({*weights, gallery}) <= len(said):
        example = "+".join([*known, "one", "two"][:2])
        raise DataError(
            f"sum '{text}': write ONE+TWO:GALLERY with different modalities, such as {example}:OTHER; a part "
            f"can have a weight, as in 2*{example}:OTHER"
        )
    strangers = [name for name in (*weights, gallery) if name not in known]
    if strangers:
        hint = did_you_mean(strangers[0], known, f"there are {', '.join(known)}")
        raise DataError(f"sum '{text}': no modality '{strangers[0]}'; {hint}")
    return EmbeddingSum(weights, gallery)


def _weight(factor: str, text: str) -> float:
    try:
        weight = float(factor or 1)
    except ValueError:
        weight = 0.0
    if not (weight and isfinite(weight)):
        raise DataError(f"sum '{text}': '{factor}' is no weight; write a number that is not 0")
    return weight
