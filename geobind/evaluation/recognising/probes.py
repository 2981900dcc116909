"""What probing an embedding came to, in one value for tables, pages and `probes.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from geobind.evaluation.recognising.fact_probes import FactProbe
from geobind.evaluation.recognising.few_shot import Curve
from geobind.evaluation.recognising.recognition import Recognition


@dataclass(frozen=True)
class Probes:
    """Zero-shot and few-shot recognition of one modality, or facts read from it, beside other features."""

    modality: str
    data: str
    split: str
    kind: Literal["classes", "facts"]
    classes: tuple[str, ...] = ()
    queries: int = 0
    majority: float = 0.0  # the accuracy of always naming the most frequent class
    zero_shot: Mapping[str, Recognition] | None = None  # by what describes the classes
    curves: Mapping[str, tuple[Curve, ...]] | None = None  # by features
    facts: Mapping[str, tuple[FactProbe, ...]] | None = None  # by features
    settings: Mapping[str, Any] | None = None

    @property
    def chance(self) -> float:
        """The accuracy of naming any class at random."""
        return 1 / max(len(self.classes), 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plain: dict[str, Any] = {
            "modality": self.modality,
            "data": self.data,
            "split": self.split,
            "kind": self.kind,
            "settings": dict(self.settings or {}),
        }
        if self.kind == "facts":
            facts = {
                name: [probe.to_dict() for probe in probes] for name, probes in (self.facts or {}).items()
            }
            return {**plain, "facts": facts}
        return {
            **plain,
            "classes": list(self.classes),
            "queries": self.queries,
            "chance": self.chance,
            "majority": self.majority,
            "zero_shot": {name: found.to_dict() for name, found in (self.zero_shot or {}).items()},
            "curves": {
                name: [curve.to_dict() for curve in curves] for name, curves in (self.curves or {}).items()
            },
        }
