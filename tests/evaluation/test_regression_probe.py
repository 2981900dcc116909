import json

import numpy as np
import pytest

from geobind.errors import DataError
from geobind.evaluation import FactOptions, Resampling, probe_facts
from geobind.evaluation.regression_probe import _predict
from geobind.utils.geo import assign_cells

ROWS = 400
OPTIONS = FactOptions(cell_km=300, resampling=Resampling(resamples=200))


def earth(seed=0, width=16):
    random = np.random.default_rng(seed)
    x_ND = random.normal(size=(ROWS, width))
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    places = np.stack([random.uniform(-60, 60, ROWS), random.uniform(-180, 180, ROWS)], axis=1)
    return x_ND.astype(np.float32), places, random


def test_a_fact_that_the_embedding_holds_is_read_and_one_that_it_does_not_hold_is_not():
    x_ND, places, random = earth()
    facts = {"held": 3 * x_ND[:, 0] - x_ND[:, 1] + 10, "noise": random.normal(size=ROWS)}
    held, noise = probe_facts(x_ND, facts, places=places, options=OPTIONS)
    assert (held.name, noise.name) == ("held", "noise")
    assert held.r2.value > 0.999 and held.error < 0.01
    assert noise.r2.value < 0.02
    for probe in (held, noise):
        assert probe.r2.low <= probe.r2.value <= probe.r2.high
        assert -0.05 < probe.r2.chance <= 0
        assert probe.rows == ROWS and probe.blocks == len(set(assign_cells(places, 300).tolist()))


def test_shuffled_facts_are_not_read():
    x_ND, places, random = earth()
    (probe,) = probe_facts(x_ND, {"f": random.permutation(x_ND[:, 0])}, places=places, options=OPTIONS)
    assert probe.r2.value < 0.02


def test_what_location_alone_gives_stands_beside():
    x_ND, places, _ = earth()
    smooth = np.sin(np.radians(places[:, 0]) * 2) + np.cos(np.radians(places[:, 1]))
    (probe,) = probe_facts(x_ND, {"smooth": smooth}, places=places, options=OPTIONS)
    assert probe.nearest_place > 0.8 > 0.1 > probe.r2.value


def test_blocks_of_land_are_predicted_from_other_blocks():
    # An embedding that knows the cell by heart, and a fact that differs between cells: nothing carries over.
    random = np.random.default_rng(0)
    cell_N = np.arange(ROWS) % 20
    x_ND = np.eye(20, dtype=np.float32)[cell_N]
    fact = {"of the cell": random.normal(size=20)[cell_N]}
    (blocked,) = probe_facts(x_ND, fact, blocks=cell_N, options=OPTIONS)
    (open_,) = probe_facts(x_ND, fact, options=OPTIONS)
    assert open_.r2.value > 0.99 and blocked.r2.value < 0
    assert (blocked.blocks, open_.blocks) == (20, ROWS)
    assert blocked.nearest_place is None


def test_no_block_is_cut_by_a_fold(monkeypatch):
    from geobind.evaluation import regression_probe

    seen = []

    def spy(units, options):
        from geobind.data.split import split_units

        seen.append((list(units), split_units(units, options)))
        return seen[-1][1]

    monkeypatch.setattr(regression_probe, "split_units", spy)
    x_ND, places, _ = earth()
    block_N = assign_cells(places, 2000)
    _predict(x_ND.astype(float), places[:, :1], block_N, places, OPTIONS)
    ((units, folds),) = seen
    of_unit = {}
    for unit, fold in zip(units, folds, strict=True):
        assert of_unit.setdefault(unit, fold) == fold
    assert len(set(folds)) == OPTIONS.folds


def test_rows_without_a_value_are_left_out_of_that_fact_alone():
    x_ND, places, _random = earth()
    whole = x_ND[:, 0].astype(float)
    gappy = [None if i % 4 == 0 else value for i, value in enumerate(x_ND[:, 1].tolist())]
    probes = probe_facts(
        x_ND, {"gappy": gappy, "whole": whole, "twice": 2 * whole}, places=places, options=OPTIONS
    )
    assert [(probe.name, probe.rows) for probe in probes] == [("gappy", 300), ("whole", 400), ("twice", 400)]
    assert all(probe.r2.value > 0.99 for probe in probes)
    assert probes[1].r2.value == pytest.approx(probes[2].r2.value)


def test_intervals_are_over_blocks_so_copies_of_rows_do_not_narrow_them():
    x_ND, _, random = earth()
    y_N = x_ND[:, 0] + 0.2 * random.normal(size=ROWS)
    (once,) = probe_facts(x_ND, {"f": y_N}, blocks=np.arange(ROWS), options=OPTIONS)
    many = np.repeat(np.arange(ROWS), 5)
    (copied,) = probe_facts(x_ND[many], {"f": y_N[many]}, blocks=many, options=OPTIONS)
    width, copied_width = (p.r2.high - p.r2.low for p in (once, copied))
    assert copied_width == pytest.approx(width, rel=0.3)


def test_results_are_plain_values():
    x_ND, places, _ = earth()
    (probe,) = probe_facts(x_ND, {"f": x_ND[:, 0]}, places=places, options=OPTIONS)
    assert json.loads(json.dumps(probe.to_dict()))["r2"]["value"] == probe.r2.value


@pytest.mark.parametrize(
    ("facts", "more", "message"),
    [
        ({"f": ["wet"] * ROWS}, {}, "fact 'f': could not convert"),
        ({"f": [1.0]}, {}, "fact 'f': shape .* for 400 rows"),
        ({"f": [1.0] * ROWS}, {}, "no two different values"),
        ({"f": [float("inf")] * ROWS}, {}, "row 0 is infinite"),
        ({"f": range(ROWS)}, {"blocks": ["one"] * 200 + ["two"] * 200}, "the rows lie in 2"),
        ({"f": range(ROWS)}, {"places": [(0.0, None)] * ROWS}, "finite latitude and longitude"),
    ],
)
def test_what_cannot_be_probed_is_refused(facts, more, message):
    x_ND, _, _ = earth()
    with pytest.raises(DataError, match=message):
        probe_facts(x_ND, facts, options=OPTIONS, **more)


def test_options_out_of_range_are_refused():
    for given in ({"folds": 1}, {"cell_km": 0.5}):
        with pytest.raises(DataError, match="give 2 folds or more"):
            FactOptions(**given)
