"""Places of real Earth, on made-up rasters: splits, buffer, facts, captions, and the table of a recipe."""

import numpy as np
import pytest

from geobind.data import DataOptions, open_table
from geobind.errors import DataError
from geobind.recipe import load_recipe
from geobind.utils.geo import nearest_km
from geobind_earth import places, table
from geobind_earth.dataset import Earth
from geobind_earth.grids import SOURCES
from geobind_earth.places import FACTS, draw_places, name_blocks
from geobind_earth.words import CLIMATES, COVERS, describe_places, name_labels, write_captions

SMALL = Earth(places=60, held_out=20, validation=10, tile_size=8, height_size=8)


def at(places, split):
    rows = places.split == split
    return np.stack([places.lat[rows], places.lon[rows]], axis=1)


def test_splits_have_the_sizes_asked_for_and_share_no_block(small_earth):
    drawn = draw_places(SMALL)
    assert {split: len(at(drawn, split)) for split in ("train", "test", "val")} == {
        "train": 60,
        "test": 20,
        "val": 10,
    }
    blocks = {split: {*name_blocks(*at(drawn, split).T, 10)} for split in ("train", "test", "val")}
    assert not blocks["train"] & (blocks["test"] | blocks["val"])
    assert not blocks["test"] & blocks["val"]


def test_training_places_keep_the_buffer_from_those_held_out(small_earth):
    drawn = draw_places(SMALL)
    held_out = np.concatenate([at(drawn, "test"), at(drawn, "val")])
    assert nearest_km(at(drawn, "train"), held_out).min() >= SMALL.buffer_km


def test_the_same_seed_gives_the_same_places_and_another_gives_others(small_earth):
    one, again, other = (
        draw_places(SMALL),
        draw_places(SMALL),
        draw_places(SMALL.model_copy(update={"seed": 1})),
    )
    assert np.array_equal(one.lat, again.lat)
    assert np.array_equal(one.tile_NSS3, again.tile_NSS3)
    assert not np.array_equal(one.lat, other.lat)


def test_coasts_and_towns_have_their_shares(small_earth):
    kinds = draw_places(SMALL).kind.tolist()
    assert (kinds.count("coast"), kinds.count("town")) == (9 + 3 + 1, 12 + 4 + 2)


def test_shares_of_land_cover_sum_to_one_and_places_lie_on_land(small_earth):
    drawn = draw_places(SMALL)
    assert np.allclose(drawn.cover_NK.sum(1), 1)
    assert set(drawn.zone_N) <= set(range(1, 32))
    assert drawn.facts().shape == (90, len(FACTS))


def test_more_places_than_the_land_has_is_a_message(small_earth, monkeypatch):
    monkeypatch.setattr(places, "_ROUNDS", 2)
    with pytest.raises(DataError, match=r"too few places for 3,000 of split 'train'.*ask for fewer"):
        draw_places(SMALL.model_copy(update={"places": 3000, "buffer_km": 2000.0}))


def test_blocks_meet_at_the_antimeridian_without_overlap():
    names = name_blocks(np.array([5.0, 5.0, 5.0, -5.0]), np.array([179.9, -180.0, 180.0, 0.0]), 10)
    assert names.tolist() == ["b0_17", "b0_-18", "b0_-18", "b-1_0"]


def test_the_first_caption_has_all_words_and_the_others_a_part(small_earth):
    drawn = draw_places(SMALL)
    for words in describe_places(drawn):
        captions = write_captions(words)
        assert len(captions) == 5
        for word in (words.cover, words.terrain, words.height, words.climate, words.coast, words.people):
            assert word in captions[0]
        assert all("  " not in caption and caption == caption.strip() for caption in captions)


def test_labels_are_groups_of_land_cover(small_earth):
    assert set(name_labels(draw_places(SMALL))) <= {group for _, group in COVERS}
    assert len(COVERS) == 17
    assert len(CLIMATES) == 31


@pytest.fixture
def packages(monkeypatch, tmp_path, small_earth):
    monkeypatch.setattr(table, "locate_source", lambda name: tmp_path)
    monkeypatch.setattr(table, "version", lambda package: "1")


def test_a_recipe_reads_the_table_by_its_name(packages):
    options = DataOptions.model_validate(
        {
            "earth": SMALL.model_dump(),
            "columns": {"satellite": "tile", "text": "captions", "vector": "climate"},
        }
    )
    rows = open_table(options)
    assert len(rows) == 90
    assert rows.splits == {"train": 60, "test": 20, "val": 10}
    assert rows.columns["satellite"][0].shape == (8, 8, 3)
    assert len(rows.columns["vector"][0]) == 12 + 31


def test_names_of_numbers_fit_their_columns(packages):
    _path, columns = SMALL.rows()
    for column, names in SMALL.vector_names().items():
        assert len(columns[column][0]) == len(names)


def test_check_names_a_missing_package_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Earth, "requires", lambda self: {"not_there": "pip install not-there"})
    file = tmp_path / "r.yaml"
    file.write_text(
        "modalities:\n  satellite: {timm: {model: resnet10t, pretrained: false}}\n  text: {role: trainable}\n"
        "data:\n  earth: {places: 10}\n  columns: {satellite: tile, text: captions}\n"
        "stages: [{align: text, train: [text], steps: 1}]\n"
    )
    with pytest.raises(Exception, match=r"r\.yaml:5.*needs not_there.*pip install not-there"):
        load_recipe(file)


def test_the_terms_of_every_package_are_credited():
    assert set(Earth.credits) == {source.package for source in SOURCES.values()}
    assert all(Earth.credits.values())
