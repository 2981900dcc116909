"""Search over archives: exact with and without an index, inside boxes and spans; results as files."""

import json
import re

import mapped
import numpy as np
import pytest

from geobind.archive import Archive
from geobind.bridge import AnchorBank, Bridge
from geobind.errors import CheckpointError, DataError
from geobind.search import build_index, embed_query, load_index, search
from geobind.search.hits import box_geometry, explain_no_rows, write_gallery, write_geojson

BINDER = mapped.build_binder()
QUERY = embed_query(BINDER, {"words": "bells <b>"})


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("hits") / "scene.parquet"
    mapped.write_tiles(path, BINDER, time="2024-06-01")
    return Archive.open(path, BINDER)


@pytest.fixture(scope="module")
def index(archive):
    return build_index(archive)


def nearest(archive, k, rows=slice(None)):
    score = archive.read_vectors(rows).astype(np.float64) @ QUERY.vector
    return np.asarray(archive.read_ids(rows))[np.argsort(-score)[:k]].tolist()


def test_hits_are_the_nearest_rows_with_or_without_an_index(archive, index):
    for used in (None, index):
        hits = search(archive, QUERY, 7, index=used)
        assert hits.ids_K.tolist() == nearest(archive, 7)
        assert np.array_equal(hits.lat_K, archive.lat_N[hits.rows_K])
    assert len(search(archive, QUERY, 10_000)) == len(archive)


@pytest.mark.parametrize("indexed", [False, True])
def test_a_box_and_a_span_limit_the_search_and_it_stays_exact(archive, index, indexed):
    box, span = (3.005, 44.98, 3.04, 44.995), ("2024-06-04", "2024-06-09")
    used = index if indexed else None
    rows = archive.find_rows(box, span)
    assert 0 < len(rows) < len(archive) / 2
    hits = search(archive, QUERY, 5, bbox=box, time=span, index=used)
    assert hits.ids_K.tolist() == nearest(archive, 5, rows)
    assert len(search(archive, QUERY, 5, bbox=(100, 0, 101, 1), index=used)) == 0


def test_an_index_of_another_archive_or_model_is_refused(archive, index, tmp_path):
    mapped.write_tiles(tmp_path / "other.parquet", BINDER, seed=1)
    other = Archive.open(tmp_path / "other.parquet")
    with pytest.raises(CheckpointError, match=r"the index is of another archive than .*other\.parquet \(178"):
        search(other, QUERY, index=index)
    changed = mapped.build_binder(seed=1)
    mapped.write_tiles(tmp_path / "model.parquet", changed, time="2024-06-01")
    with pytest.raises(CheckpointError, match="embedded by another model"):
        search(Archive.open(tmp_path / "model.parquet"), QUERY, index=index)
    index.save(tmp_path / "index")
    assert len(search(archive, QUERY, index=load_index(tmp_path / "index"))) == 20


def test_a_query_of_another_width_is_refused(archive):
    with pytest.raises(DataError, match=r"the query has width 8, and .*scene\.parquet holds"):
        search(archive, np.ones(8))


def test_hits_are_geojson_with_a_footprint_for_each(archive, tmp_path):
    hits = search(archive, QUERY, 3)
    write_geojson(hits.to_geojson(), tmp_path / "hits.geojson")
    read = json.loads((tmp_path / "hits.geojson").read_text())
    assert read["type"] == "FeatureCollection" and len(read["features"]) == 3
    first = read["features"][0]
    assert first["properties"]["rank"] == 1 and first["properties"]["id"] == hits.ids_K[0]
    assert re.fullmatch(r"2024-06-\d\dT00:00:00Z", first["properties"]["time"])
    (ring,) = first["geometry"]["coordinates"]
    lon, lat = np.array(ring[:4]).mean(axis=0)
    assert (lat, lon) == pytest.approx((hits.lat_K[0], hits.lon_K[0]), abs=1e-6)
    assert ring[0] == ring[4] and ring[1][0] > ring[0][0] and ring[2][1] > ring[1][1]  # counterclockwise


def test_geopandas_reads_the_hits(archive, tmp_path):
    geopandas = pytest.importorskip("geopandas")
    write_geojson(search(archive, QUERY, 4).to_geojson(), tmp_path / "hits.geojson")
    frame = geopandas.GeoDataFrame.from_features(json.loads((tmp_path / "hits.geojson").read_text()))
    assert frame.geometry.is_valid.all() and len(frame) == 4


def test_a_box_over_the_antimeridian_becomes_two_polygons():
    both = box_geometry((179.9, -1, -179.9, 1))
    assert both["type"] == "MultiPolygon"
    assert [ring[0][0] for (ring,) in both["coordinates"]] == [179.9, -180.0]
    assert box_geometry((1, 2, 1, 2)) == {"type": "Point", "coordinates": [1, 2]}
    assert box_geometry((np.nan,) * 4) is None


def test_an_archive_over_the_antimeridian_is_searched_by_one_box(tmp_path):
    mapped.write_tiles(tmp_path / "a.parquet", BINDER, lon=179.97)
    archive = Archive.open(tmp_path / "a.parquet")
    hits = search(archive, QUERY, 500, bbox=(179.98, 40, -179.99, 50))
    assert 0 < len(hits) < len(archive) and {*np.sign(hits.lon_K)} == {-1, 1}


def test_why_no_row_passes_is_explained(archive):
    box = (44.9, 3.0, 45.0, 3.1)
    words = explain_no_rows(archive, box, None)
    assert re.search(r"its rows span 3,44\.9\d+,3\.0\d+,45 \(W,S,E,N\), and latitude and longitude", words)
    assert "latitude" not in explain_no_rows(archive, (10, 10, 11, 11), None)
    assert "its times go from 2024-06-01" in explain_no_rows(archive, None, ("2020", "2021"))


def test_the_gallery_escapes_names_and_fetches_nothing(archive, tmp_path):
    write_gallery(archive, search(archive, QUERY, 3), tmp_path / "hits.html")
    page = (tmp_path / "hits.html").read_text()
    assert "<b>" not in page.split("<h1>")[1].split("</h1>")[0] and "&lt;b&gt;" in page
    assert "http" not in page.split("<body>")[1]


def test_a_bridge_scores_rows_as_it_does_pairs(archive, index):
    references = {
        name: BINDER.embed("words", [f"{name} {n}" for n in range(150)]) for name in ("words", "tile")
    }
    bank = AnchorBank(BINDER.embed("words", [str(n) for n in range(50)]), "anchor", references)
    for bridge in (Bridge(bank), Bridge(bank).between("words", "tile")):
        score = bridge.score(QUERY.vector[None], archive.read_vectors())[0].numpy()
        hits = search(archive, QUERY, 9, bridge=bridge)
        assert hits.rows_K.tolist() == np.argsort(-score, kind="stable")[:9].tolist()
        assert np.allclose(hits.similarity_K, np.sort(score)[::-1][:9], atol=1e-5)
        assert len(search(archive, QUERY, 9, bbox=(3.0, 44.9, 3.02, 45.1), bridge=bridge)) == 9
    with pytest.raises(DataError, match="leave one of the two out"):
        search(archive, QUERY, bridge=Bridge(bank), index=index)
