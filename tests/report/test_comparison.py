"""Comparison of runs, in the terminal and on a page."""

import json
import shutil

import pytest
from click.testing import CliRunner
from small_world import copied

from geobind.cli import main
from geobind.errors import DataError
from geobind.report import compare, write_comparison


@pytest.fixture
def altered(finished, tmp_path):
    """A copy of a run that measured what a test says."""
    folder = copied(finished, tmp_path)

    def alter(change):
        path = folder / "retrieval.json"
        values = json.loads(path.read_text())
        for row in values["rows"]:
            change(row)
        path.write_text(json.dumps(values))
        return folder

    return alter


def figure(comparison, measure, query, gallery, place=1):
    table = next(table for table in comparison.tables if table.measure == measure)
    line = next(line for line in table.lines if (line.query, line.gallery) == (query, gallery))
    return line.runs[place]


@pytest.mark.slow
def test_only_what_differs_in_the_recipes_is_listed_and_stages_go_by_name(finished, second):
    comparison = compare([finished, second])
    assert dict(comparison.recipes) == {
        "seed": ["–", "1"],
        "stages.sound_to_tile.optimizer.lr": ["–", "0.002"],
    }
    assert comparison.labels == ["first", "second"]


def test_differences_are_from_the_first_run_and_intervals_apart_are_told(finished, altered):
    def change(row):
        row["metrics"]["R@1"] = {"value": 0.9, "chance": 0.04, "low": 0.85, "high": 0.95}
        row["metrics"]["median_rank"] = {"value": 24.0, "chance": 12.5, "low": 23.5, "high": 24.0}

    comparison = compare([finished, altered(change)], ["R@1", "median_rank"])
    recall = figure(comparison, "R@1", "photo", "tile")
    assert recall.difference == pytest.approx(
        0.9 - figure(comparison, "R@1", "photo", "tile", 0).measured.value
    )
    assert (recall.apart, recall.better) == (True, True)
    assert figure(comparison, "median_rank", "photo", "tile").better is False
    assert "better in 12 and worse in 0 of 12 pairs" in comparison.tables[0].verdicts[0]
    assert "worse in 12 of 12 pairs" in comparison.tables[1].verdicts[0]


def test_a_run_compared_with_its_copy_overlaps_in_everything(finished, tmp_path):
    copy = copied(finished, tmp_path)
    shutil.copy(finished / "queries.safetensors", copy)
    comparison = compare([finished, copy])
    assert comparison.recipes == []
    others = [one for table in comparison.tables for line in table.lines for one in line.runs[1:]]
    assert {one.apart for one in others} == {False}
    assert {one.paired.p for one in others} == {1.0}  # the same queries, with the same scores
    verdict = comparison.tables[0].verdicts[0]
    assert "on the same queries (paired, 95 %); better in 0 and worse in 0 after Holm, 12 tests" in verdict
    assert [table.measure for table in comparison.tables][:2] == ["R@1", "R@10"]


def test_galleries_of_different_sizes_are_not_compared(finished, altered):
    comparison = compare([finished, altered(lambda row: row.update(gallery_size=1000))])
    one = figure(comparison, "R@1", "photo", "tile")
    assert one.difference is None
    assert one.note == "among 1,000 items, not 24: not comparable"


def test_runs_of_one_name_are_told_apart_by_their_folders(finished, tmp_path):
    one = shutil.copytree(finished, tmp_path / "a" / "run")
    two = shutil.copytree(finished, tmp_path / "b" / "run")
    assert compare([one, two]).labels == ["a/run", "b/run"]


def test_runs_that_cannot_be_compared_are_told(finished, tmp_path):
    with pytest.raises(DataError, match="1 runs to compare; name 2 to 7"):
        compare([finished])
    with pytest.raises(DataError, match="named twice"):
        compare([finished, finished / ".." / finished.name])
    with pytest.raises(DataError, match="no run has the measure 'R@7'; there are R@1, R@5"):
        compare([finished, copied(finished, tmp_path)], ["R@7"])
    with pytest.raises(DataError, match=r"not a run, it has no run\.json"):
        compare([finished, tmp_path])


def test_the_page_stands_alone_and_holds_every_run(finished, second, tmp_path):
    text = write_comparison(compare([finished, second]), tmp_path / "compare.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "stages.sound_to_tile.optimizer.lr" in text
    assert text.count("<svg") == 12
    assert "var(--series-1)" in text
    assert "<script" not in text


def test_the_command_prints_a_table_and_names_the_page(finished, second, tmp_path):
    out = tmp_path / "both.html"
    done = CliRunner().invoke(
        main, ["compare", str(finished), str(second), "--out", str(out), "--measure", "R@5"]
    )
    assert done.exit_code == 0, done.output
    assert "R@5" in done.output
    assert "second against first: better in" in " ".join(done.output.split())
    assert out.is_file()


def test_the_command_gives_programs_every_measure_of_every_run(finished, second, tmp_path):
    out = tmp_path / "both.html"
    done = CliRunner().invoke(main, ["compare", str(finished), str(second), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["page"] == str(out) and out.is_file()
    assert len(told["runs"]) == 2
    first = told["measures"][0]["pairs"][0]
    assert len(first["values"]) == 2 and first["differences"][0] is None


@pytest.mark.slow
def test_the_report_command_writes_the_page_again_with_its_galleries(finished, home, tmp_path, path):
    folder = shutil.copytree(finished, tmp_path / finished.name)
    done = CliRunner().invoke(main, ["report", str(folder), "--base", str(home)])
    assert done.exit_code == 0, done.output
    assert f"report: {folder / 'report.html'}" in done.output.replace("\n", "")
    assert (folder / "report.html").read_bytes() == path.read_bytes()
    done = CliRunner().invoke(main, ["report", str(folder), "--no-galleries", "--json"])
    told = {"report": str(folder / "report.html"), "galleries": False, "why_not": None}
    assert json.loads(done.stdout) == told


def test_the_report_command_says_why_there_are_no_galleries(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("metrics.csv"))
    done = CliRunner().invoke(main, ["report", str(folder), "--base", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "no galleries: manifest" in done.output
    assert "name the recipe's folder with --base" in done.output
    assert "<audio" not in (folder / "report.html").read_text()
