"""Maps of queries: what each pixel is and where it lies, their files, and what cannot be mapped."""

import json

import mapped
import numpy as np
import pytest
import rasterio

from geobind.archive import Archive
from geobind.bridge import AnchorBank, Bridge
from geobind.errors import CheckpointError, DataError
from geobind.maps import find_regions, map_change, map_classes, map_query, paint_map, similarity, write_map
from geobind.maps.cog import draw_legend, write_stac_item
from geobind.search import embed_query

BINDER = mapped.build_binder()
QUERY = embed_query(BINDER, {"words": "bells"})
OTHER = embed_query(BINDER, {"words": "waves"})


def open_tiles(path, binder=BINDER, **options):
    image = mapped.write_tiles(path, binder, **options)
    return Archive.open(path), image


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return open_tiles(tmp_path_factory.mktemp("maps") / "scene.parquet", time="2024-06-01")


def validate(path):
    cog = pytest.importorskip("rio_cogeo")
    valid, errors, warnings = cog.cog_validate(path, strict=True)
    assert (valid, errors, warnings) == (True, [], [])


def test_each_pixel_is_the_similarity_of_its_tile_and_nan_where_there_is_none(tiles):
    archive, image = tiles
    drawn = map_query(archive, QUERY)
    expected = image @ QUERY.vector
    assert np.allclose(drawn.similarity_HW, expected, atol=1e-5, equal_nan=True)
    assert np.isnan(drawn.similarity_HW).sum() == 2 and drawn.span == (
        "2024-06-01T00:00:00Z",
        "2024-06-15T00:00:00Z",
    )
    ids = archive.read_ids(drawn.rows_HW[5, :3])
    assert ids.tolist() == ["r5c0", "r5c1", "r5c2"] and drawn.rows_HW[0, 3] == -1


def test_a_map_is_a_valid_cog_that_says_what_it_shows(tiles, tmp_path):
    archive, image = tiles
    path = write_map(map_query(archive, QUERY), tmp_path / "bells.tif")
    validate(path)
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32631 and file.transform[:6] == (320, 0, 500_000, 0, -320, 5_000_000)
        assert np.isnan(file.nodata) and file.descriptions == ("cosine similarity",)
        assert np.allclose(file.read(1), image @ QUERY.vector, atol=1e-5, equal_nan=True)
        tags = file.tags()
        assert tags["geobind_query"] == 'words "bells"' and tags["geobind_model"] == archive.model
        assert tags["geobind_source"] == "scene.tif" and tags["geobind_time"].startswith("2024-06-01T")
        statistics = {name: float(value) for name, value in file.tags(1).items()}
        assert statistics["STATISTICS_MAXIMUM"] == pytest.approx(np.nanmax(image @ QUERY.vector), abs=1e-5)
        assert statistics["STATISTICS_VALID_PERCENT"] == pytest.approx(100 * 178 / 180, abs=1e-3)


@pytest.mark.slow
def test_a_large_map_has_overviews_and_is_valid(tmp_path):
    drawn = similarity.QueryMap(
        "bells",
        np.random.default_rng(0).standard_normal((1100, 1300)).astype(np.float32),
        np.zeros((1100, 1300), np.int64),
        (10, 0, 0, 0, -10, 0),
        "EPSG:32631",
        "model",
    )
    path = write_map(drawn, tmp_path / "large.tif")
    validate(path)
    with rasterio.open(path) as file:
        assert file.overviews(1) == [2, 4] and file.block_shapes == [(512, 512)]


def test_two_maps_of_one_query_are_the_same_file(tiles, tmp_path):
    one, two = (write_map(map_query(tiles[0], QUERY), tmp_path / f"{n}.tif").read_bytes() for n in "ab")
    assert one == two


def test_probability_is_the_binders_own(tiles, tmp_path):
    archive, image = tiles
    drawn = map_query(archive, QUERY, binder=BINDER, prior=0.1)
    inside = ~np.isnan(drawn.similarity_HW)
    expected = BINDER.similarity(image[inside], QUERY.vector[None], probability=("words", "tile"), prior=0.1)
    assert np.allclose(drawn.probability_HW[inside], expected[:, 0], atol=2e-3)
    assert np.isnan(drawn.probability_HW[~inside]).all()
    path = write_map(drawn, tmp_path / "bells.tif")
    validate(path)
    with rasterio.open(path) as file:
        words = "probability of a match of words and tile, where 10.0% of tiles match"
        assert file.descriptions == ("cosine similarity", words)


def test_probability_needs_calibration_and_a_query_of_one_observation(tiles):
    with pytest.raises(DataError, match="no calibration of words and tile is known"):
        map_query(tiles[0], QUERY, binder=mapped.build_binder(calibrated=False))
    both = embed_query(BINDER, {"words": "bells", "spot": mapped.Place(1, 2)})
    with pytest.raises(DataError, match="only a query of one observation has a probability"):
        map_query(tiles[0], both, binder=BINDER)


def test_a_missing_calibration_is_named_before_the_embeddings_are_read(tiles, monkeypatch):
    monkeypatch.setattr(Archive, "iter_blocks", lambda *_, **__: pytest.fail("embeddings are read"))
    with pytest.raises(DataError, match="no calibration of words and tile is known"):
        map_query(tiles[0], QUERY, binder=mapped.build_binder(calibrated=False))


def test_a_box_cuts_the_map_to_its_tiles_and_moves_its_corner(tiles, tmp_path):
    archive, image = tiles
    row, column = archive.row_N, archive.column_N
    inside = (row >= 4) & (row <= 6) & (column >= 2) & (column <= 7)
    box = (
        archive.lon_N[inside].min() - 1e-6,
        archive.lat_N[inside].min() - 1e-6,
        archive.lon_N[inside].max() + 1e-6,
        archive.lat_N[inside].max() + 1e-6,
    )
    drawn = map_query(archive, QUERY, bbox=box)
    assert np.allclose(drawn.similarity_HW, (image @ QUERY.vector)[4:7, 2:8], atol=1e-5)
    assert drawn.transform == (320, 0, 500_000 + 640, 0, -320, 5_000_000 - 4 * 320)


def test_rows_from_south_to_north_and_turned_grids_keep_their_transform(tmp_path):
    for name, transform in {
        "up": (320, 0, 5e5, 0, 320, 5e6),
        "turned": (300, 90, 5e5, 90, -300, 5e6),
    }.items():
        archive, _ = open_tiles(tmp_path / f"{name}.parquet", transform=transform)
        path = write_map(map_query(archive, QUERY), tmp_path / f"{name}.tif")
        validate(path)
        with rasterio.open(path) as file:
            assert file.transform[:6] == pytest.approx(transform)


def test_classes_are_the_most_similar_query_and_nothing_where_there_is_no_tile(tiles, tmp_path):
    archive, image = tiles
    drawn = map_classes(archive, {"bells": QUERY, "waves": OTHER})
    score = np.stack([image @ QUERY.vector, image @ OTHER.vector])
    known = ~np.isnan(score[0])
    assert np.array_equal(drawn.class_HW[known], 1 + score.argmax(axis=0)[known])
    assert (drawn.class_HW[~known] == 0).all()
    path = write_map(drawn, tmp_path / "classes.tif")
    validate(path)
    with rasterio.open(path) as file:
        assert file.nodata == 0 and file.dtypes == ("uint8",)
        assert json.loads(file.tags()["geobind_classes"]) == {"1": "bells", "2": "waves"}
        assert file.colormap(1)[1] == (0, 114, 178, 255)
    draw_legend(drawn, tmp_path / "legend.png")
    assert (tmp_path / "legend.png").read_bytes().startswith(b"\x89PNG")


def test_a_map_of_one_class_is_refused(tiles):
    with pytest.raises(DataError, match="needs 2 to 250 of them, not 1"):
        map_classes(tiles[0], {"bells": QUERY})


def test_a_change_is_later_minus_earlier_where_both_have_tiles(tiles, tmp_path):
    archive, image = tiles
    earlier, before = open_tiles(tmp_path / "before.parquet", seed=1, missing=(7,))
    change = map_change(map_query(archive, QUERY), map_query(earlier, QUERY))
    assert np.allclose(change.similarity_HW, (image - before) @ QUERY.vector, atol=1e-5, equal_nan=True)
    assert np.isnan(change.similarity_HW).sum() == 3 and change.label == 'change of words "bells"'
    path = paint_map(change, tmp_path / "change.tif", "RdBu_r")
    validate(path)
    with rasterio.open(path) as file:
        low, high = map(float, file.tags()["geobind_range"].split())
        assert low == -high
        middle = file.read(1)[np.abs(change.similarity_HW) < 0.02]
        assert (np.abs(middle.astype(int) - 128) < 10).all()


def test_two_queries_are_compared_on_one_archive(tiles):
    change = map_change(map_query(tiles[0], QUERY), map_query(tiles[0], OTHER))
    assert change.label == '(words "bells") - (words "waves")'


def test_maps_of_two_grids_or_models_are_not_subtracted(tiles, tmp_path):
    other, _ = open_tiles(tmp_path / "a.parquet", columns=14)
    with pytest.raises(DataError, match=r"lie on different grids \(12 x 15 tiles at .*; 12 x 14 tiles"):
        map_change(map_query(tiles[0], QUERY), map_query(other, QUERY))
    changed, _ = open_tiles(tmp_path / "b.parquet", mapped.build_binder(seed=1))
    with pytest.raises(CheckpointError, match="the maps are of two models"):
        map_change(map_query(tiles[0], QUERY), map_query(changed, QUERY))


def test_a_painted_map_has_a_colour_table_and_its_range(tiles, tmp_path):
    drawn = map_query(tiles[0], QUERY)
    path = paint_map(drawn, tmp_path / "bells.tif", "viridis")
    validate(path)
    with rasterio.open(path) as file:
        level, colours = file.read(1), file.colormap(1)
        low, high = map(float, file.tags()["geobind_range"].split())
        assert colours[1] == (68, 1, 84, 255) and colours[255] == (253, 231, 37, 255)
        known = level > 0
        assert np.array_equal(known, ~np.isnan(drawn.similarity_HW))
        back = low + (level[known].astype(float) - 1) / 254 * (high - low)
        inside = (drawn.similarity_HW[known] >= low) & (drawn.similarity_HW[known] <= high)
        assert np.abs(back - drawn.similarity_HW[known])[inside].max() <= (high - low) / 254
    draw_legend(drawn, tmp_path / "legend.png", "viridis")
    with pytest.raises(DataError, match="no colour map 'virids'; did you mean 'viridis'"):
        paint_map(drawn, tmp_path / "x.tif", "virids")


def test_regions_are_the_best_tiles_that_do_not_overlap(tmp_path):
    archive, image = open_tiles(tmp_path / "a.parquet", size_m=640, stride_m=320)
    drawn = map_query(archive, QUERY)
    hits = find_regions(archive, drawn, 100)
    cells = np.array([[int(part) for part in name[1:].split("c")] for name in hits.ids_K])
    score = (image @ QUERY.vector)[tuple(cells.T)]
    assert (np.diff(score) <= 1e-6).all() and score[0] == pytest.approx(
        np.nanmax(image @ QUERY.vector), abs=1e-5
    )
    for number, one in enumerate(cells):
        shared = np.prod(np.maximum(2 - np.abs(cells[:number] - one), 0), axis=1)
        assert (shared / (8 - shared) <= 0.1).all()
    every = {(r, c) for r in range(12) for c in range(15) if not np.isnan(image[r, c, 0])}
    for r, c in every - {tuple(cell) for cell in cells}:  # what is left out overlaps with a better one
        shared = np.prod(np.maximum(2 - np.abs(cells - [r, c]), 0), axis=1)
        assert ((shared / (8 - shared) > 0.1) & (score >= image[r, c] @ QUERY.vector - 1e-6)).any()
    assert len(find_regions(archive, drawn, 5)) == 5
    assert (find_regions(archive, drawn, 100, least=0.2).similarity_K >= 0.2).all()
    tight, _ = open_tiles(tmp_path / "b.parquet", size_m=320, stride_m=320)
    assert len(find_regions(tight, map_query(tight, QUERY), 500)) == len(tight)


@pytest.mark.parametrize("time", [None, "2024-06-01"])
def test_the_stac_item_says_where_when_and_what(tmp_path, time):
    pystac = pytest.importorskip("pystac")
    archive, _ = open_tiles(tmp_path / "a.parquet", time=time)
    path = write_map(map_query(archive, QUERY), tmp_path / "bells.tif")
    item = pystac.Item.from_file(str(write_stac_item(map_query(archive, QUERY), path)))
    assert item.id == "bells" and item.assets["map"].href.endswith("bells.tif")
    west, south, east, north = item.bbox
    assert 2.9 < west < 3.01 < east < 3.1 and 45.1 < north < 45.2 and south < north
    assert item.properties["geobind:query"] == 'words "bells"'
    assert ("start_datetime" in item.properties) == (time is not None)
    ring = np.array(item.geometry["coordinates"][0])
    area = (ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]).sum() / 2
    assert area > 0  # counterclockwise


def test_what_has_no_map_is_refused_and_told_why(tiles, tmp_path, monkeypatch):
    plain, _ = open_tiles(tmp_path / "plain.parquet", grid=False)
    with pytest.raises(DataError, match="its rows are not tiles of one raster, so they have no map"):
        map_query(plain, QUERY)
    with pytest.raises(DataError, match="no tile passes the filter"):
        map_query(tiles[0], QUERY, bbox=(0, 0, 1, 1))
    with pytest.raises(DataError, match="the query has width 4, and"):
        map_query(tiles[0], np.ones(4))
    monkeypatch.setattr(similarity, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match=r"a map of 12 x 15 tiles is larger than 100; cut it with --bbox"):
        map_query(tiles[0], QUERY)


def test_an_unknown_crs_is_named(tmp_path):
    archive, _ = open_tiles(tmp_path / "a.parquet", crs="EPSG:999999")
    with pytest.raises(DataError, match=r"bells\.tif: the map cannot be written as a GeoTIFF"):
        write_map(map_query(archive, QUERY), tmp_path / "bells.tif")


def test_a_bridge_scores_the_map_and_excludes_probabilities(tiles):
    archive, image = tiles
    bridge = Bridge(AnchorBank(BINDER.embed("words", [str(n) for n in range(50)]), "anchor"))
    drawn = map_query(archive, QUERY, bridge=bridge)
    known = ~np.isnan(image[..., 0])
    expected = bridge.score(QUERY.vector[None], image[known])[0]
    assert (
        np.allclose(drawn.similarity_HW[known], expected, atol=1e-5)
        and np.isnan(drawn.similarity_HW[~known]).all()
    )
    with pytest.raises(DataError, match="fitted to cosines, not to bridged scores"):
        map_query(archive, QUERY, bridge=bridge, binder=BINDER)
