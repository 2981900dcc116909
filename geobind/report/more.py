"""The sections of a report about what is measured beside retrieval."""

from __future__ import annotations

from typing import Any

from geobind.report.facts import Run
from geobind.report.figures import Panel, svg
from geobind.report.planned import planned
from geobind.report.reliability import reliability_panels

_MEASURES = ("R@1", "R@10", "median_rank")
_COLUMNS = 4  # of a PNG


def of_more(run: Run, pictures: dict[str, tuple[list[Panel], int]]) -> dict[str, Any]:
    """What the page says of calibration, the modality gap, arithmetic and probes, where there is any."""
    panels = reliability_panels(run.calibration) if run.calibration else []
    if panels:
        pictures["calibration"] = panels, min(_COLUMNS, len(panels))
    there = {name for one in run.sums for query in one.queries for name in query.metrics}
    return {
        "reliability": [svg(panel) for panel in panels],
        "planned": planned(run),
        "sum_measures": [name for name in _MEASURES if name in there],
    }
