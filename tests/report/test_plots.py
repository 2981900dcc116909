"""Drawings of a report: curves, maps, the shared space, with their texts and choices."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_world import EVIL

from geobind.evaluation import Metric
from geobind.report.examples import (
    build_scatter,
    embed_sample,
    ordered_pairs,
    project_to_plane,
    rank_pair,
)
from geobind.report.places import _extent, build_rank_map, trace_land
from geobind.report.plots import Panel, beats_chance, draw_png, draw_svg, explain_measure, thin_curve
from geobind.report.run_files import StageCurve, read_curves
from geobind.scoring import unit
from geobind.utils import formatting

pytestmark = pytest.mark.slow

FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, min_size=1, max_size=400), st.integers(1, 50))
@settings(deadline=None, max_examples=60)
def test_a_thinned_curve_keeps_its_extremes_its_mean_and_its_order(values, most):
    curve = StageCurve(np.arange(len(values)) * 3, np.array(values))
    points = thin_curve(curve, most)
    assert len(points.step_P) == min(most, len(values))
    assert (np.diff(points.step_P) > 0).all()
    assert (points.low_P.min(), points.high_P.max()) == (min(values), max(values))
    assert (points.low_P <= points.mean_P + 1e-6).all()
    assert (points.mean_P <= points.high_P + 1e-6).all()


@given(arrays.arrays(np.float64, (12, 5), elements=st.floats(-10, 10)))
@settings(deadline=None, max_examples=40)
def test_two_directions_hold_no_more_than_all_and_what_lies_in_a_plane_keeps_its_distances(values):
    at_N2, share_2 = project_to_plane(values)
    assert -1e-9 <= share_2.sum() <= 1 + 1e-9
    flat = values.copy()
    flat[:, 2:] = 0
    at_N2, _ = project_to_plane(flat)
    for a, b in ((0, 1), (3, 7)):
        assert np.linalg.norm(at_N2[a] - at_N2[b]) == pytest.approx(
            np.linalg.norm(flat[a] - flat[b]), abs=1e-6
        )


def test_labels_of_a_drawing_are_text_that_follows_the_page_and_breaks_nothing():
    def draw(axes):
        axes.plot([0, 1], [0, 1], color="#0072b2", label=f"$x {EVIL}")
        axes.legend()

    drawn = str(draw_svg(Panel("a b", draw, 3, 2, f'"quoted" {EVIL}')))
    assert EVIL not in drawn
    assert "$x &lt;script&gt;" in drawn
    assert "var(--series-0)" in drawn
    assert not re.search("xmlns|http|metadata|<!--|#0072b2", drawn)
    assert drawn.startswith('<svg viewBox="0 0 216 144" role="img" aria-label="&#34;quoted&#34; &lt;script')
    assert all(name.startswith("a-b-") for name in re.findall(r'\bid="([^"]*)"', drawn))


def test_a_drawing_is_the_same_each_time():
    panel = Panel("one", lambda axes: axes.plot([1, 2]), 2, 2, "a line", title="t")
    assert draw_svg(panel) == draw_svg(panel)
    assert draw_png([panel, panel, panel], 2) == draw_png([panel, panel, panel], 2)


def test_metrics_are_read_up_to_a_row_that_was_cut_short(tmp_path):
    (tmp_path / "metrics.csv").write_text("stage,step,loss,grad_norm\none,0,2.5,\none,1,2.25,\none,2")
    curves = read_curves(tmp_path / "metrics.csv")
    assert list(curves["one"]) == ["loss"]
    assert curves["one"]["loss"].value_S.tolist() == [2.5, 2.25]
    assert read_curves(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (formatting.format_number(0.1234), "0.123"),
        (formatting.format_number(12.34), "12.3"),
        (formatting.format_number(1234.5), "1,234.5"),
        (formatting.format_number(float("nan")), "–"),
        (formatting.format_signed(-0.5), "−0.500"),
        (formatting.format_signed(3), "+3.0"),
        (formatting.format_duration(4.04), "4.0 s"),
        (formatting.format_duration(59.7), "1 min 00 s"),
        (formatting.format_duration(7260), "2 h 01 min"),
        (formatting.format_duration(float("nan")), "–"),
        (formatting.format_size(999), "999 bytes"),
        (formatting.format_size(12_300), "12.3 kB"),
        (formatting.format_size(5e9), "5.0 GB"),
        (formatting.format_rank(1), "1st"),
        (formatting.format_rank(112), "112th"),
        (formatting.format_rank(1023), "1,023rd"),
        (formatting.format_rank(2.5), "2.5th"),
        (formatting.join_words(["a", "b", "c"]), "a, b and c"),
        (formatting.join_words(["a"]), "a"),
        (formatting.format_count(1, "row"), "1 row"),
        (formatting.format_count(1200, "row"), "1,200 rows"),
    ],
)
def test_numbers_are_written_as_people_read_them(said, wanted):
    assert said.replace(formatting.NBSP, " ") == wanted


@given(st.text(max_size=80), st.integers(2, 40))
@settings(deadline=None, max_examples=60)
def test_a_text_is_cut_to_length(text, most):
    assert len(formatting.shorten(text, most)) <= most


def test_lower_ranks_and_higher_recalls_beat_chance_and_only_as_whole_intervals():
    assert beats_chance("R@10", Metric(value=0.3, chance=0.1, low=0.2, high=0.4))
    assert not beats_chance("R@10", Metric(value=0.3, chance=0.1, low=0.05, high=0.4))
    assert beats_chance("median_rank", Metric(value=3, chance=10, low=2, high=5))
    assert not beats_chance("median_rank", Metric(value=12, chance=10, low=11, high=15))


def test_what_the_matrix_holds_is_said_in_words():
    assert "among the first 10 of the gallery" in explain_measure("R@10")
    assert "in the first 1% of the gallery" in explain_measure("R@1%")
    assert explain_measure("label_mAP").startswith("label mAP")


def test_pairs_look_for_the_anchor_first_and_each_pair_is_there_once():
    pairs = ordered_pairs(["tile", "photo", "words"], "tile")
    assert pairs == [("photo", "tile"), ("words", "tile"), ("photo", "words")]


@pytest.fixture
def rows(opened):
    return embed_sample(*opened, by_label=False)


def test_ranks_on_the_page_are_those_that_were_measured(rows, finished):
    from geobind.report.run_files import read_run

    measured = read_run(finished).retrieved
    for row in measured.rows:
        found = rank_pair(rows, row.query, row.gallery)
        assert np.mean(found.rank_Q == 1) == pytest.approx(row.metrics["R@1"].value)
        assert np.median(found.rank_Q) == pytest.approx(row.metrics["median_rank"].value)


def test_the_newest_pair_comes_first_whatever_the_anchor():
    names = ["tile", "photo", "words", "sound"]
    assert ordered_pairs(names, "tile", ("sound", "tile"))[0] == ("sound", "tile")
    assert ordered_pairs(names, "tile", ("words", "photo"))[:2] == [("words", "photo"), ("photo", "tile")]
    assert len(ordered_pairs(names, "tile", ("words", "photo"))) == 6
    assert ordered_pairs(["tile", "photo"], "tile", ("sound", "tile")) == [("photo", "tile")]


def test_by_label_every_row_of_the_class_is_a_right_answer(opened):
    rows = embed_sample(*opened, by_label=True)
    found = rank_pair(rows, "words", "tile")
    labels = np.array(rows.table.labels)
    assert (found.right_QG == (labels[:, None] == labels)).all()
    assert found.rank_Q.min() == 1


def test_a_map_counts_every_place_once_and_says_so_in_words(rows):
    drawn = build_rank_map(rows, rank_pair(rows, "sound", "tile"))
    assert sum(band.queries for band in drawn.bands) == len(rows.table) == 24
    assert "map of 24 places" in drawn.panel.alt
    assert len({band.sign for band in drawn.bands}) == len({band.words for band in drawn.bands}) == 4


def test_a_map_of_near_places_shows_their_surroundings_and_one_of_far_places_the_world():
    assert _extent(np.array([[50.0, -120.0], [-30.0, 150.0]])) == (-180, 180, -90, 90)
    west, east, south, north = _extent(np.array([[48.1, 11.5], [48.3, 11.6]]))
    assert 11 < west < 11.5 < 11.6 < east < 12
    assert 48 < south < 48.1 < 48.3 < north < 48.5
    west, east, south, north = _extent(np.array([[48.1, 11.5]]))
    assert west < 11.5 < east
    assert south < 48.1 < north


def test_land_lies_under_a_map_unless_it_is_too_narrow_for_coarse_coastlines():
    world = trace_land((-180, 180, -90, 90))
    assert len(world) > 100
    assert any(outline.contains_point((10.0, 50.0)) for outline in world)  # Germany
    assert not any(outline.contains_point((-40.0, 30.0)) for outline in world)  # the Atlantic
    west, east, south, north = extent = (-10, 30, 35, 60)
    corners = np.concatenate([outline.get_extents().get_points() for outline in trace_land(extent)])
    assert (corners.min(axis=0) >= (west, south)).all() and (corners.max(axis=0) <= (east, north)).all()
    assert trace_land((11, 12, 48, 49)) == []


def test_a_planet_that_is_made_up_has_no_coastlines_of_earth(rows):
    found = rank_pair(rows, "sound", "tile")
    earth, other = (draw_svg(build_rank_map(rows, found, on_earth=real).panel) for real in (True, False))
    assert "var(--land)" in earth
    assert "var(--land)" not in other


def test_the_space_joins_observations_of_the_same_places(rows):
    drawn = build_scatter(rows)
    assert drawn.places == 12
    assert [name for _, _, name in drawn.key] == ["tile", "photo", "words", "sound"]
    assert "96 embeddings" in drawn.panel.alt


def test_a_constant_embedding_ranks_in_the_middle(rows):
    from geobind.evaluation.embedded import EmbeddedRows

    same = {
        name: EmbeddedRows(s.rows_Q, unit(torch.ones_like(s.embedding_QD))) for name, s in rows.spaces.items()
    }
    rows.spaces.update(same)
    assert set(rank_pair(rows, "words", "tile").rank_Q) == {12.5}
