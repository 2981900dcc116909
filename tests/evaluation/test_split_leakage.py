from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.evaluation import leakage
from geobind.utils.geo import nearest_km

EARTH_KM = 6371.0088


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path_factory.mktemp("cache")))


def haversine(a, b):
    lat1, lon1, lat2, lon2 = np.radians([a[..., 0], a[..., 1], b[..., 0], b[..., 1]])
    h = np.sin((lat2 - lat1) / 2) ** 2 + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(h, 1)))


def brute_km(places, others):
    return np.array([haversine(np.broadcast_to(p, others.shape), others).min() for p in places])


def anywhere(rows, seed):
    random = np.random.default_rng(seed)
    return np.stack(
        [np.degrees(np.arcsin(random.uniform(-1, 1, rows))), random.uniform(-180, 180, rows)], axis=1
    )


def in_towns(rows, seed, spread=0.02):
    random = np.random.default_rng(seed)
    return anywhere(7, 99)[random.integers(0, 7, rows)] + random.normal(0, spread, (rows, 2)).clip(-0.1, 0.1)


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 400), others=st.integers(1, 900), seed=st.integers(0, 1000), towns=st.booleans())
def test_the_nearest_other_is_the_one_that_comparing_all_with_all_finds(rows, others, seed, towns):
    make = in_towns if towns else anywhere
    places, train = make(rows, seed), make(others, seed + 1)
    np.testing.assert_allclose(nearest_km(places, train), brute_km(places, train), atol=1e-6)


def test_poles_the_date_line_copies_and_opposite_sides_of_earth():
    places = np.array([[90.0, 0.0], [0.0, 180.0], [10.0, 20.0], [0.0, 0.0]])
    assert nearest_km(places[:1], np.array([[90.0, 123.0]]))[0] == pytest.approx(0, abs=1e-6)
    assert nearest_km(places[1:2], np.array([[0.0, -179.99]]))[0] == pytest.approx(
        EARTH_KM * np.radians(0.01)
    )
    assert nearest_km(places[2:3], np.repeat(places[2:3], 5000, axis=0))[0] == 0
    assert nearest_km(places[3:], np.array([[0.0, 180.0]]))[0] == pytest.approx(np.pi * EARTH_KM)


@pytest.mark.slow
def test_a_hundred_thousand_rows_against_ten_thousand_take_seconds_not_minutes():
    begun = time.process_time()
    nearest_km(anywhere(10_000, 0), anywhere(100_000, 1))
    nearest_km(in_towns(10_000, 0), in_towns(100_000, 1))
    assert time.process_time() - begun < 20


def manifest(tmp_path, rows, header="split,lat,lon,photo,note,group", **options):
    (tmp_path / "rows.csv").write_text("\n".join([header, *rows]) + "\n")
    options.setdefault("inline", [c for c in ("note", "group") if c in header])
    return open_table(DataOptions(manifest="rows.csv", **options), tmp_path, ["photo", "note", "group"])


def compared(table, **options):
    return leakage(table.split("train"), table.split("test"), **options)


def test_rows_far_apart_with_nothing_in_common_do_not_leak(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"333")):
        (tmp_path / f"{name}.png").write_bytes(content)
    table = manifest(tmp_path, ["train,10,10,a.png,x,r1", "train,20,20,b.png,y,r2", "test,50,50,c.png,z,r3"])
    found = compared(table)
    assert (found.warning, found.faults) == (None, [])
    assert found.near.least_km == pytest.approx(haversine(np.array([20, 20]), np.array([50, 50])))
    assert (found.near.shared_cells, found.near.in_shared_cells) == (0, 0.0)
    assert (found.groups.shared, found.groups.compared) == (0, 1)
    assert found.summary().startswith(
        "split 'test' of rows.csv against split 'train' of rows.csv: note: 0 copies"
    )


def test_neighbours_are_counted_within_1_10_and_100_km_and_by_cell(tmp_path):
    km = 360 / (2 * np.pi * EARTH_KM)
    rows = ["train,0.5,0.5,,x,"] + [f"test,{0.5 + d * km},0.5,,y{d},".strip() for d in (0.5, 5, 50, 500)]
    found = compared(manifest(tmp_path, rows))
    assert found.near.within_km == {"1": 0.25, "10": 0.5, "100": 0.75}
    assert found.near.in_shared_cells == 0.75  # 50 km north is still in the cell from 0 to 1 degree
    assert found.near.shared_cells == 1
    assert found.faults == [
        "25% of test rows lie within 1 km of a training row",
        "50% of test rows lie within 10 km of a training row",
    ]


def test_a_copied_file_is_found_under_another_name_and_a_like_sized_one_is_not(tmp_path):
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"else"), ("d", b"longer")):
        (tmp_path / f"{name}.png").write_bytes(content)
    rows = ["train,,,a.png,x,", "test,,,b.png,y,", "test,,,c.png,z,", "test,,,d.png,w,"]
    found = compared(manifest(tmp_path, rows))
    assert (found.copies["photo"].rows, found.copies["photo"].compared) == (1, 3)
    assert found.faults == ["1 test row has a training row's photo (rows.csv:3 and rows.csv:2)"]
    assert found.near is None
    assert found.groups is None


def test_two_places_may_be_described_alike_which_is_counted_but_is_no_fault(tmp_path):
    found = compared(manifest(tmp_path, ["train,,,,a beach,", "test,,,,a beach,"]))
    assert (found.copies["note"].rows, found.copies["note"].words) == (1, True)
    assert found.warning is None


def test_any_item_of_a_list_counts_and_a_missing_file_is_passed_over(tmp_path):
    rows = [
        'train,,,gone.png,"[""a wood"", ""trees""]",',
        'test,,,lost.png,"[""a town"", ""trees""]",',
    ]
    found = compared(manifest(tmp_path, rows))
    assert found.copies["note"].rows == 1
    assert found.copies["photo"].rows == 0


def test_rows_of_one_recording_on_both_sides_are_told(tmp_path):
    rows = ["train,,,,a,tape1", "train,,,,b,tape2", "test,,,,c,tape1", "test,,,,d,tape1", "test,,,,e,tape3"]
    found = compared(manifest(tmp_path, rows))
    assert (found.groups.shared, found.groups.test_rows, found.groups.compared) == (1, 2, 3)
    assert found.warning == (
        "split 'test' of rows.csv leaks from split 'train' of rows.csv: "
        "2 test rows are of groups that were trained on"
    )


def test_only_the_modalities_asked_for_are_compared(tmp_path):
    table = manifest(tmp_path, ["train,,,,a,", "test,,,,a,"])
    assert compared(table, modalities=["photo"]).copies.keys() == {"photo"}


def test_sounds_and_pictures_of_toy_earth_are_compared_and_none_repeats():
    toyearth = {"places": 6, "held_out": 3, "tile_size": 16, "photo_size": 16, "seconds": 0.25}
    options = DataOptions(toyearth=toyearth, columns={"seen": "tile", "heard": "sound"})
    table = open_table(options, None, ["seen", "heard"])
    found = compared(table)
    assert {name: (c.compared, c.rows) for name, c in found.copies.items()} == {
        "seen": (3, 0),
        "heard": (3, 0),
    }
    again = leakage(table, table.split("test"))
    assert {name: c.rows for name, c in again.copies.items()} == {"seen": 3, "heard": 3}
    assert again.near.least_km == pytest.approx(0, abs=1e-6)


def test_all_that_was_found_is_plain_json(tmp_path):
    found = compared(manifest(tmp_path, ["train,1,1,,a,t", "test,1,1,,b,t"]))
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["near"]["within_km"] == {"1": 1.0, "10": 1.0, "100": 1.0}
    assert len(plain["faults"]) == 3
