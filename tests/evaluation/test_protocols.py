from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from geobind.errors import DataError
from geobind.evaluation import (
    PROTOCOLS,
    build_protocol_tables,
    evaluate_protocol,
    geoclap_split,
    get_protocol,
    psm_split,
    soundingearth_split,
)
from geobind.evaluation.protocols import select_gallery_rows

# A naive second opinion: each convention once more from its description alone, over whole matrices and in
# loops. `s[i, j]` is the similarity of image i and the other modality's row j.


def mean_place(values, at):
    """The place of one value among all, best (largest) first, the mean place where several are equal."""
    better = sum(value > values[at] for value in values)
    equal = sum(value == values[at] for value in values)
    return better + (equal + 1) / 2


def of_rows(s):
    return [mean_place(s[i], i) for i in range(len(s))]


def of_columns(s):
    return [mean_place(s[:, i], i) for i in range(len(s))]


def share_below(places, k):
    return sum(place < k for place in places) / len(places)


def in_top(s, k):
    return sum(i in np.argsort(-s[i])[:k] for i in range(len(s))) / len(s)


def naive_sat2cap(s):
    return [in_top(s, 5), in_top(s, 10), np.median(of_columns(s))]


def naive_geobind2024(s):
    return [in_top(s, 10), in_top(s, 100), np.median(of_columns(s))]


def naive_soundingearth(s):
    distance = np.sqrt(2 - 2 * s).T  # rows are sounds
    distance = distance / distance.mean(axis=0)
    image_to_sound = of_columns(-distance)
    sound_to_image = of_rows(-distance)
    return [
        figure
        for places in (image_to_sound, sound_to_image)
        for figure in (*(share_below(places, k) for k in (100, 500, 1000)), np.median(places))
    ]


def naive_geoclap2023(s):
    def program(matrix):
        places = of_columns(matrix)
        return [share_below(places, 100), np.median(places)]

    return program(s) + program(s.T)  # called "image to sound" with rows = images, then with rows = sounds


def naive_psm2024(s):
    return [
        f
        for matrix in (s, s.T)
        for f in (share_below(of_rows(matrix), 0.1 * len(s)), np.median(of_rows(matrix)))
    ]


NAIVE = {
    "sat2cap": naive_sat2cap,
    "geobind2024": naive_geobind2024,
    "soundingearth": naive_soundingearth,
    "geoclap2023": naive_geoclap2023,
    "psm2024": naive_psm2024,
}


def embedded(s):
    """Unit vectors of which `s`, up to one factor, holds the similarities."""
    columns = s.shape[1]
    scale = 0.99 / np.linalg.norm(s, axis=1).max()
    rest = np.sqrt(1 - np.sum((scale * s) ** 2, axis=1, keepdims=True))
    one = np.concatenate([scale * s, rest], axis=1)
    return one, np.eye(columns, columns + 1)


def worked_example():
    """The matrix of docs/evaluation.md: every other direction beats a row, or a column, but never both."""
    own = np.linspace(0.1, 0.9, 250)
    s = np.diag(own)
    for i in range(250):
        s[i, i + 1 : i + 1 + (20 if i < 109 else 5)] = own[i] + 0.001
        s[i + 1 : i + 1 + (13 if i < 125 else 12), i] = own[i] + 0.001
    return s


def noisy(rows, seed, hubs=0.0):
    """Pairs that find each other now and then, with some photos that are near every image."""
    random = np.random.default_rng(seed)
    image = random.normal(size=(rows, 24))
    other = image + 2.0 * random.normal(size=(rows, 24)) + hubs * random.normal(size=(1, 24))
    other *= random.uniform(0.2, 1, size=(rows, 1)) ** (hubs > 0)
    other[:, 0] += hubs * random.normal(size=rows)
    return [normalize(torch.tensor(side), dim=1) for side in (image, other)]


def values(name, one, two, **options):
    return [figure.value for figure in evaluate_protocol(get_protocol(name), one, two, **options).figures]


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_protocol_gives_what_its_published_code_would(name, seed):
    one, two = noisy(176, seed, hubs=1.0)  # eleven of SoundingEarth's batches
    s = (one @ two.T).numpy()
    np.testing.assert_allclose(values(name, one, two), NAIVE[name](s), atol=1e-9)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_quirks_disagree_with_what_the_names_promise(name):
    one, two = noisy(400, 3, hubs=1.0)
    figures = evaluate_protocol(get_protocol(name), one, two).figures
    assert any(figure.value != pytest.approx(figure.clean) for figure in figures)


def test_the_worked_example_reads_56_percent_and_13_and_a_half_as_sat2cap_prints_it():
    one, two = embedded(worked_example())
    found = {f.says: f.value for f in evaluate_protocol(get_protocol("sat2cap"), one, two).figures}
    assert found["anchor → other R@10"] == pytest.approx(0.564)
    assert found["anchor → other median rank"] == 13.5


def test_neither_direction_of_the_worked_example_gives_both():
    s = worked_example()
    there, back = of_rows(s), of_columns(s)
    pairs = [(share_below(places, 10.5), np.median(places)) for places in (there, back)]
    assert pairs[0] == (pytest.approx(0.564), 6.0)
    assert pairs[1] == (pytest.approx(0.04), 13.5)


@settings(deadline=None, max_examples=50)
@given(places=st.lists(st.integers(1, 40), min_size=1, max_size=60), k=st.integers(1, 40))
def test_more_than_half_within_k_means_a_median_within_k(places, k):
    if np.mean(np.array(places) <= k) > 0.5:
        assert np.median(places) <= k


def test_a_strict_recall_at_100_is_a_recall_at_99():
    s = np.eye(200) * 0.5
    s[0, 1:100] = 0.6  # image 0 has 99 rivals: its own row is the 100th
    one, two = embedded(s)
    found = {f.says: f for f in evaluate_protocol(get_protocol("psm2024"), one, two).figures}
    assert found["anchor → other R@10%"].value == 199 / 200
    s[0, 20:100] = 0  # 19 rivals: the 20th of the 10 % that are 20
    found = {f.says: f for f in evaluate_protocol(get_protocol("psm2024"), *embedded(s)).figures}
    assert (found["anchor → other R@10%"].value, found["anchor → other R@10%"].clean) == (199 / 200, 1.0)


def test_a_share_that_is_not_whole_is_not_rounded_by_psm():
    s = np.eye(15) * 0.5
    s[0, 1] = 0.6  # rank 2; 10 % of 15 is 1.5
    found = evaluate_protocol(get_protocol("psm2024"), *embedded(s)).figures[0]
    assert (found.value, found.clean) == (14 / 15, 1.0)


def test_geoclap_prints_each_direction_under_the_name_of_the_other():
    one, two = noisy(200, 5, hubs=1.0)
    figures = {
        f.says: f
        for f in evaluate_protocol(get_protocol("geoclap2023"), one, two, names=("tile", "sound")).figures
    }
    printed = figures["tile → sound median rank"]
    assert printed.means == "sound → tile median rank"
    assert printed.value == figures["sound → tile median rank"].clean
    assert printed.clean == figures["sound → tile median rank"].value


def test_dividing_distances_by_their_means_moves_the_ranks_of_images_only():
    one, two = noisy(160, 7, hubs=1.0)
    figures = {f.says: f for f in evaluate_protocol(get_protocol("soundingearth"), one, two).figures}
    assert figures["anchor → other median rank"].value == figures["anchor → other median rank"].clean
    assert figures["other → anchor median rank"].value != figures["other → anchor median rank"].clean


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_constant_embedding_has_the_median_rank_of_chance_everywhere(name):
    same = normalize(torch.ones(64, 8), dim=1)
    figures = evaluate_protocol(get_protocol(name), same, same).figures
    assert [f.value for f in figures if f.says.endswith("rank")] == [
        32.5 for f in figures if f.says.endswith("rank")
    ]


def test_a_gallery_that_is_too_large_is_drawn_by_the_seed_and_one_too_small_is_said_to_be():
    geoclap = get_protocol("geoclap2023")
    rows = select_gallery_rows(20_000, geoclap, 0)
    assert len(set(rows)) == 10_159
    np.testing.assert_array_equal(rows, select_gallery_rows(20_000, geoclap, 0))
    assert set(rows) != set(select_gallery_rows(20_000, geoclap, 1))
    one, two = noisy(50, 0)
    assert (
        evaluate_protocol(geoclap, one, two).caveat == "gallery of 50 rows, published 10,159: not comparable"
    )


def test_soundingearth_drops_its_last_incomplete_batch():
    one, two = noisy(50, 0)
    result = evaluate_protocol(get_protocol("soundingearth"), one, two)
    assert (result.available, result.gallery, result.caveat) == (50, 48, None)
    assert values("soundingearth", one, two) == values("soundingearth", one[:48], two[:48])


def test_numpy_and_tensors_give_the_same_figures():
    one, two = noisy(100, 2)
    assert values("sat2cap", one, two) == values("sat2cap", one.numpy(), two.numpy())


def test_every_protocol_names_its_paper_its_code_and_what_is_not_known():
    for name, each in PROTOCOLS.items():
        assert name == each.name
        assert "arXiv:" in each.paper
        assert each.code and each.split and each.ranks and each.unknown
        assert each.to_dict()["unknown"]


def test_an_unknown_protocol_is_refused_with_the_list():
    with pytest.raises(DataError, match="no protocol 'clip'; there are clean, geobind2024, sat2cap"):
        get_protocol("clip")


def test_sides_of_different_lengths_are_refused():
    one, two = noisy(10, 0)
    with pytest.raises(DataError, match="10 rows of tile against 9 of photo; give pairs"):
        evaluate_protocol(get_protocol("sat2cap"), one, two[:9], names=("tile", "photo"))


def test_what_is_printed_shows_the_value_its_meaning_the_clean_value_and_the_notes():
    from rich.console import Console

    one, two = noisy(60, 0)
    results = [evaluate_protocol(each, one, two, names=("tile", "photo")) for each in PROTOCOLS.values()]
    text = io.StringIO()
    for grid in build_protocol_tables(results):
        Console(file=text, width=200).print(grid)
    for phrase in ("As sat2cap prints it", "photo → tile median rank", "not comparable", "not known:"):
        assert phrase in text.getvalue()
    assert json.loads(json.dumps(results[0].to_dict()))["figures"][0]["says"] == "tile → photo R@10"


# Splits


def test_soundingearth_splits_by_the_last_digit_of_a_recordings_number():
    words = soundingearth_split(np.arange(1000, 1010))
    assert (
        words.tolist() == ["train"] * 2 + ["test"] + ["train"] * 2 + ["test", "train", "val"] + ["train"] * 2
    )


def test_geoclap_splits_its_table_into_its_published_sizes():
    words = geoclap_split(50_792)
    assert [int((words == word).sum()) for word in ("train", "val", "test")] == [35_554, 5_079, 10_159]


@pytest.mark.parametrize("n", [0, 1, 2, 7, 99])
def test_geoclap_gives_every_row_one_split_whatever_the_number(n):
    assert set(geoclap_split(n)) <= {"train", "val", "test"}
    assert len(geoclap_split(n)) == n


def towns(rows, seed=0):
    """Rows in two hundred towns, some crowded, and a few anywhere."""
    random = np.random.default_rng(seed)
    town = random.integers(0, 200, rows)
    lat, lon = random.uniform(-60, 70, 200)[town], random.uniform(-180, 180, 200)[town]
    crowd = random.uniform(0, 1, rows) < (town / 200)
    return np.where(crowd, lat, random.uniform(-80, 80, rows)), np.where(
        crowd, lon, random.uniform(-180, 180, rows)
    )


def naive_psm(lat, lon, seed, cell, share):
    """The published steps one row at a time."""
    cells = [cell(a, b) for a, b in zip(lat, lon, strict=True)]
    counts = {}
    for row in np.random.RandomState(seed).permutation(len(cells)):
        counts[cells[row]] = counts.get(cells[row], 0) + 1
    large = {c: count for c, count in counts.items() if count >= 25}
    low, high = (np.quantile(list(large.values()), q) for q in (0.33, 0.66))
    random = np.random.RandomState(seed)
    word = {}
    for band in (
        [c for c, n in large.items() if n <= low],
        [c for c, n in large.items() if low < n <= high],
        [c for c, n in large.items() if n > high],
    ):
        out = random.choice(band, int(share * len(band)), replace=False)
        val = random.choice(out, int(0.4 * len(out)), replace=False)
        word |= {c: "test" for c in out} | {c: "val" for c in val}
    return [word.get(c, "train") for c in cells]


def degree_cell(lat, lon):
    return int(lat + 90) * 360 + int(lon + 180)


def ten_km_cell(lat, lon):
    wide = 10.0 / (111.0 * np.cos(np.radians(lat)))
    return int((lat + 90) // (10.0 / 111.0)) * 360 + int((lon + 180) // wide)


@pytest.mark.parametrize("seed", [42, 7])
@pytest.mark.parametrize(
    ("cells", "cell", "share"), [("10km", ten_km_cell, 0.35), ("degree", degree_cell, 0.10)]
)
def test_psm_splits_as_its_published_steps_do(seed, cells, cell, share):
    lat, lon = towns(12_000)
    words = psm_split(lat, lon, seed, cells)
    assert set(words) == {"train", "val", "test"}
    assert words.tolist() == naive_psm(lat, lon, seed, cell, share)


def test_psm_keeps_every_cell_in_one_split():
    lat, lon = towns(12_000, 1)
    words, cells = psm_split(lat, lon), [ten_km_cell(a, b) for a, b in zip(lat, lon, strict=True)]
    of = {}
    for cell, word in zip(cells, words, strict=True):
        of.setdefault(cell, set()).add(word)
    assert all(len(found) == 1 for found in of.values())


def test_psm_holds_nothing_out_where_no_cell_is_crowded():
    assert set(psm_split(np.linspace(-80, 80, 30), np.zeros(30))) == {"train"}


def test_psm_refuses_a_row_without_a_place():
    with pytest.raises(DataError, match="row 1 has no place"):
        psm_split([1.0, float("nan")], [2.0, 3.0])
