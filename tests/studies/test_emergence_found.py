"""Findings of an emergence study, on runs whose figures are made up and known."""

import json
import math
from statistics import mean, stdev

import pytest

from geobind.errors import DataError
from geobind.studies.emergence import ALL, AXIS, anchored_name, describe_differences, summarise_emergence
from geobind.studies.grid import Cell
from geobind.studies.runner import CellResult

NAMES = ("a", "b", "c")
PAIRS = [("a", "b"), ("a", "c"), ("b", "c")]


def ran(folder, way, seed, values, emergent=()):
    """A finished run whose R@10 of each unordered pair is known; the two directions differ by 0.1."""
    home = folder / f"{way}-{seed}".replace(" ", "_")
    (home / "stages" / "01_joint").mkdir(parents=True)
    (home / "run.json").write_text('{"recipe": "r"}')
    stages = "[{name: joint, align: b, train: [b]}]"
    (home / "recipe.yaml").write_text(f"name: r\nmodalities: {{a: {{}}}}\nstages: {stages}\n")
    stage = {"name": "joint", "anchor": "a", "align": "b", "seconds": 10.0 + seed}
    (home / "stages" / "01_joint" / "stage.json").write_text(json.dumps(stage))
    rows = [
        {
            "query": one,
            "gallery": two,
            "mark": "emergent" if pair in emergent else "trained",
            "queries": 100,
            "gallery_size": 100,
            "metrics": {
                "R@10": {"value": value + shift, "chance": 0.1, "low": value - 0.1, "high": value + 0.1}
            },
        }
        for pair, value in zip(PAIRS, values, strict=True)
        for one, two, shift in ((*pair, 0.05), (*pair[::-1], -0.05))
    ]
    (home / "retrieval.json").write_text(json.dumps({"rows": rows}))
    return CellResult(Cell("r", (), {AXIS: way, "seed": str(seed)}), home, failed=False)


@pytest.fixture
def study(tmp_path):
    """Three seeds of training around `a` and of all to all, which is better by 0.1, 0.2, 0.3 for b and c."""
    runs = []
    for seed in range(3):
        runs.append(ran(tmp_path, anchored_name("a"), seed, (0.5, 0.6, 0.2), emergent=[("b", "c")]))
        runs.append(ran(tmp_path, ALL, seed, (0.5, 0.6, 0.3 + 0.1 * seed)))
    return runs


def test_a_pair_is_the_mean_of_its_two_directions_over_seeds(study):
    around_a, everything = summarise_emergence(study).ways
    assert around_a.pairs["b", "c"].mean == pytest.approx(0.2)
    assert everything.pairs["b", "c"].mean == pytest.approx(0.4)
    assert everything.pairs["b", "c"].half == pytest.approx(4.302653 * 0.1 / math.sqrt(3))
    assert around_a.every.mean == pytest.approx(mean((0.5, 0.6, 0.2)))


def test_only_pairs_never_trained_together_are_emergent(study):
    around_a, everything = summarise_emergence(study).ways
    assert around_a.emergent == {("b", "c")}
    assert everything.emergent == frozenset()


def test_differences_are_paired_by_seed(study):
    (difference,) = summarise_emergence(study).differences
    assert difference.way == anchored_name("a")
    by_seed = [0.1, 0.2, 0.3]
    assert difference.emergent.mean == pytest.approx(0.2)
    assert difference.emergent.half == pytest.approx(4.302653 * stdev(by_seed) / math.sqrt(3))
    assert difference.every.mean == pytest.approx(0.2 / 3)


def test_a_difference_whose_interval_holds_zero_is_not_claimed(study):
    said = describe_differences(summarise_emergence(study))
    assert any("all pairs" in line and "no difference shown" in line for line in said)


def test_a_difference_apart_from_zero_names_its_direction(tmp_path):
    runs = []
    for seed in range(3):
        runs.append(ran(tmp_path, anchored_name("a"), seed, (0.5, 0.6, 0.2), emergent=[("b", "c")]))
        runs.append(ran(tmp_path, ALL, seed, (0.5, 0.6, 0.1 + 0.001 * seed)))
    (emergent,) = [line for line in describe_differences(summarise_emergence(runs)) if "emergent" in line]
    assert "worse by -0.099" in emergent.replace("\N{MINUS SIGN}", "-")


def test_one_seed_gives_no_verdict(tmp_path):
    runs = [ran(tmp_path, anchored_name("a"), 0, (0.5, 0.6, 0.2)), ran(tmp_path, ALL, 0, (0.5, 0.6, 0.9))]
    (said,) = describe_differences(summarise_emergence(runs))
    assert "no interval" in said


def test_the_result_is_json_without_nan(tmp_path):
    runs = [ran(tmp_path, anchored_name("a"), 0, (0.5, 0.6, 0.2)), ran(tmp_path, ALL, 0, (0.5, 0.6, 0.9))]
    values = json.loads(json.dumps(summarise_emergence(runs).to_dict(), allow_nan=False))
    assert values["ways"][ALL]["pairs"]["b-c"]["mean"] == pytest.approx(0.9)


def test_failed_runs_are_passed_over_and_nothing_finished_is_an_error(study):
    failed = study[0]._replace(failed=True)
    assert summarise_emergence([failed, *study[1:]]).ways[0].every.runs in (2, 3)
    with pytest.raises(DataError, match="no run of the study was finished"):
        summarise_emergence([one._replace(failed=True) for one in study])


def test_an_unknown_measure_is_refused_with_those_there_are(study):
    with pytest.raises(DataError, match=r"no measure 'R@2'; the runs have R@10"):
        summarise_emergence(study, "R@2")


def test_untrained_encoders_stand_below_the_ways_to_bind(study):
    from geobind.evaluation import PairRow, PairTable
    from geobind.evaluation.retrieval_metrics import Metric
    from geobind.studies.emergence import ways_table

    row = PairRow("a", "b", "trained", 100, 100, {"R@10": Metric(0.11, 0.1, 0.05, 0.2)})
    found = summarise_emergence(study, untrained=PairTable((row,)))
    assert ways_table(found).rows[-1][:2] == ["(untrained)", "0.110"]
    assert found.to_dict()["untrained"] == 0.11
