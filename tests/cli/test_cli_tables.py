"""Tables in a terminal of 80 columns, or one narrower than they are: no figure is broken or lost."""

import re

import numpy as np
import pytest
from rich.table import Table

from geobind.cli.options import print_table
from geobind.evaluation import (
    LabelledEmbeddings,
    ProbeResults,
    build_pair_table,
    build_probe_tables,
    build_protocol_tables,
    build_prototypes_from_labels,
    build_summary_table,
    evaluate_pairs,
    evaluate_protocol,
    few_shot,
    get_protocol,
    zero_shot,
)
from geobind.evaluation.few_shot_curves import FewShotOptions
from geobind.evaluation.regression_probe import FactProbe
from geobind.evaluation.retrieval_metrics import Metric
from geobind.report.comparison import Comparison, MetricDelta, MetricRow, MetricTable, build_comparison_tables
from geobind.studies.summary import SeedInterval, SettingRow, SweepSummary, sweep_table, to_rich_table

NAMES = ("satellite", "ground_image", "hyperspectral_night")
FIGURE = re.compile(r"\d[\d,]*\.\d+")


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


RANDOM = np.random.default_rng(0)
SPACE = {name: unit(RANDOM.normal(size=(1200, 16))) for name in NAMES}
LABELS = [f"class_{row % 4}" for row in range(1200)]


def retrieval_tables():
    places = np.stack([RANDOM.uniform(-60, 60, 1200), RANDOM.uniform(-180, 180, 1200)], axis=1)
    table = evaluate_pairs(SPACE, [NAMES[:2]], labels=LABELS, places=places)
    return [build_pair_table(table), build_summary_table(table)]


def probe_tables():
    rows = SPACE["satellite"]
    labelled = LabelledEmbeddings(rows[:600], LABELS[:600])
    curves = few_shot(labelled, labelled, options=FewShotOptions(shots=(1, "all"), draws=2), progress=False)
    seen = zero_shot(rows[:600], LABELS[:600], build_prototypes_from_labels(rows, LABELS))
    classes = tuple(sorted(set(LABELS)))
    features = {name: curves for name in ("satellite", "its trunk", "trunk of a_long_recipe, untrained")}
    one = ProbeResults("satellite", "t", "test", "classes", classes, 600, 0.25, {"text": seen}, features)
    facts = (FactProbe("mean_annual_rainfall", 600, 40, Metric(0.5, 0.0, 0.4, 0.6), 0.3, 1.0),)
    numbers = ProbeResults("satellite", "t", "test", "facts", facts=dict.fromkeys(features, facts))
    return [*build_probe_tables(one), *build_probe_tables(numbers)]


def protocol_tables():
    pair = SPACE["satellite"], SPACE["ground_image"]
    return build_protocol_tables([evaluate_protocol(get_protocol("geoclap2023"), *pair, names=NAMES[:2])])


def comparison_tables():
    one = MetricDelta(Metric(1234.5, 600, 1200.25, 1300.5), 12.5, True, True)
    lines = [MetricRow(a, b, "emergent", [one] * 5) for a in NAMES for b in NAMES if a != b]
    labels = [f"runs/with_a_long_name_{number}" for number in range(5)]
    verdict = "a against b: better in 3 and worse in 2 of 6 pairs on the same queries (paired, 95 %)"
    recipes = [("stages.audio_to_satellite.optimizer.lr", [f"value {number}" for number in range(5)])]
    return build_comparison_tables(
        Comparison(labels, [], recipes, [MetricTable("median_rank", lines, [verdict] * 4)])
    )


def study_tables():
    figure = SeedInterval(0.123, 0.045, 3)
    settings = {"stages.audio_to_satellite.optimizer.lr": "1e-3", "modalities.audio.hop_ms": "10"}
    line = SettingRow(settings, (), 0, {"trained": figure, "emergent": figure}, 0.02, figure)
    return [to_rich_table(sweep_table(SweepSummary("R@10", tuple(settings), (line, line))))]


@pytest.mark.parametrize(
    "build", [retrieval_tables, probe_tables, protocol_tables, comparison_tables, study_tables]
)
def test_every_table_fits_80_columns_and_keeps_its_figures(build, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for table in build():
        print_table(table)
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= 80, shown
        cells = [str(cell) for column in table.columns for cell in column.cells]
        wanted = [figure for cell in cells for figure in FIGURE.findall(re.sub(r"\[.*?\]", "", cell))]
        found = FIGURE.findall(shown)
        assert all(found.count(figure) >= wanted.count(figure) for figure in set(wanted)), shown


def test_a_table_that_fits_is_printed_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = Table(title="figures", caption="a note")
    for name in ("query to gallery", "R@1", "R@10"):
        table.add_column(name)
    table.add_row("a to b", "0.123", "0.456")
    print_table(table)
    shown = capsys.readouterr().out
    assert shown.count("a to b") == shown.count("figures") == shown.count("a note") == 1


def test_a_table_wider_than_the_terminal_is_printed_in_parts_with_its_first_column(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    table = Table(box=None)
    for name in ("query to gallery", "R@1", "R@10"):
        table.add_column(name, no_wrap=True)
    table.add_row("satellite to ground_image", "0.123 (.002)", "0.456 (.020)")
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "satellite" in line] == [
        ["satellite", "to", "ground_image", "0.123", "(.002)"],
        ["satellite", "to", "ground_image", "0.456", "(.020)"],
    ]


def test_colons_around_a_word_are_no_picture(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = Table(box=None, caption="a row leaks (earth:train:7)")
    table.add_column("key")
    table.add_row("earth:train:5")
    print_table(table)
    printed = capsys.readouterr().out
    assert "earth:train:5" in printed
    assert "earth:train:7" in printed


@pytest.mark.parametrize(("columns", "parts"), [(40, 1), (39, 2)])
def test_a_table_as_wide_as_the_terminal_is_printed_whole(columns, parts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("a to b", "one", "two"):
        table.add_column(name, no_wrap=True)
    table.add_row("x" * 10, "y" * 13, "z" * 14)
    print_table(table)
    assert capsys.readouterr().out.count("x" * 10) == parts
