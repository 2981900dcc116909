"""The tables, the plot and the page of an emergence study."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from geobind.report.plots import TITLES
from geobind.studies.emergent_pairs import Emergence, Way, verdicts
from geobind.studies.showing import Grid, dots, said, write_study
from geobind.utils import files, formatting

_NOTE = (
    "Every figure is the mean of both directions on held-out rows; ± is half of a 95 % t interval over "
    "seeds. A pair marked * was never trained together in that way to bind: it is emergent. All "
    "ways but the one as written train every encoder at once, from the same start, for the same steps."
)


def write_emergence(found: Emergence, title: str, home: Path) -> Path:
    """Write emergence.json, emergence.png and emergence.html; return the page.

    Raises:
        StorageError: One of them cannot be written.
    """
    files.write_json(home / "emergence.json", found.to_dict())
    measure = TITLES.get(found.measure, found.measure)
    series = {way.name: {"-".join(pair): figure for pair, figure in way.pairs.items()} for way in found.ways}
    panels = [dots("emergence", f"{measure} of each pair", series, found.chance, "pair of modalities")]
    return write_study(
        home, "emergence", title, [_NOTE, *verdicts(found)], [ways_table(found), pairs_table(found)], panels
    )


def ways_table(found: Emergence) -> Grid:
    """A row for each way to bind: over all pairs, over its emergent ones, and its time."""
    measure = TITLES.get(found.measure, found.measure)
    rows = [
        [
            way.name,
            said(way.every),
            _emergent(way),
            str(way.every.runs),
            formatting.duration(way.seconds.mean),
        ]
        for way in found.ways
    ]
    heads = ["bound", f"{measure}, all pairs", "its emergent pairs", "seeds", "training time"]
    return Grid(f"Ways to bind (chance {formatting.number(found.chance)})", heads, rows)


def pairs_table(found: Emergence) -> Grid:
    """A row for each pair of modalities, a column for each way to bind."""
    rows = [["-".join(pair), *(_cell(way, pair) for way in found.ways)] for pair in found.pairs]
    return Grid("Pairs (* emergent)", ["pair", *(way.name for way in found.ways)], rows)


def _emergent(way: Way) -> str:
    return formatting.number(fmean(way.pairs[pair].mean for pair in way.emergent)) if way.emergent else "none"


def _cell(way: Way, pair: tuple[str, str]) -> str:
    if pair not in way.pairs:
        return "–"
    return said(way.pairs[pair]) + ("*" if pair in way.emergent else "")
