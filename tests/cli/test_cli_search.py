"""Search, maps, indexes and comparisons on the command line, and what each says of a mistake."""

import json

import mapped
import numpy as np
import pytest
import rasterio
from click.testing import CliRunner

from geobind.archive import Archive
from geobind.binder import Binder
from geobind.bridge import AnchorBank, Bridge
from geobind.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    binder = mapped.build_binder()
    mapped.write_tiles(folder / "scene.parquet", binder)
    mapped.write_tiles(folder / "before.parquet", binder, seed=1)
    mapped.write_tiles(folder / "other.parquet", mapped.build_binder(seed=1))
    mapped.write_tiles(folder / "nowhere.parquet", binder, grid=False)
    (folder / "rain.wav").write_bytes(b"rain")
    (folder / "scene.tif").write_bytes(b"the raster")
    (folder / "bundle").mkdir()
    return folder


@pytest.fixture
def run(place, monkeypatch):
    binder = mapped.build_binder()
    monkeypatch.chdir(place)
    monkeypatch.setattr(Binder, "from_pretrained", lambda name, **_: binder)

    def invoke(*words, code=0):
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == code, result.output
        return result.output

    return invoke


WITH = ("--bundle", "bundle")


def test_search_prints_the_hits_and_writes_them(run, tmp_path):
    out, page = tmp_path / "hits.geojson", tmp_path / "hits.html"
    text = run(
        "search", "scene.parquet", *WITH, "--query", "words=church bells", "--query", "recording=@rain.wav",
        "--weight", "recording=-0.5", "--bbox", "3.0,44.98,3.04,45.01", "-k", 4, "--out", out,
        "--gallery", page,
    )  # fmt: skip
    assert 'words "church bells" - 0.500 x recording rain.wav' in text and f"{out}: 4 hits" in text
    assert len(json.loads(out.read_text())["features"]) == 4 and "church bells" in page.read_text()
    told = json.loads(run("search", "scene.parquet", *WITH, "--query", "words=bells", "-k", 2, "--json"))
    assert [hit["rank"] for hit in told["hits"]] == [1, 2] and told["query"] == 'words "bells"'


@pytest.fixture
def photos(place):
    """Three pictures below a folder, and an archive of them: by file name, and by the keys of a manifest."""
    from PIL import Image

    from geobind.archive import write_archive
    from geobind.archive.archive import model_digest

    binder = mapped.build_binder()
    folder = place / "photos"
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    names = ["a.png", "b.png", "deep/c.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (80 * number, 200, 0)).save(folder / name)
    vectors = binder.embed("words", names, numpy=True)
    digest = model_digest(binder, "tile")
    for out, ids in (
        ("photos.parquet", names),
        ("keyed.parquet", ["a", "b", "c"]),
        ("out.parquet", ["../x"]),
    ):
        some = vectors[: len(ids)]
        nan = np.full(len(ids), np.nan)
        write_archive(place / out, some, nan, nan, modality="tile", model=digest, ids=ids)
    (place / "photos.csv").write_text("key,picture\na,a.png\nb,b.png\nc,deep/c.png\n")
    return place


def test_the_gallery_of_a_folder_or_a_manifest_shows_its_pictures(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("geobind.cli.embed.read_bundle_card", lambda bundle: None)  # of datasets alone
    page = tmp_path / "hits.html"
    ask = (*WITH, "--query", "words=b.png", "-k", 3, "--gallery", page)
    run("search", "photos.parquet", *ask, "--data", "photos")
    assert page.read_text().count("data:image/") == 3
    table = ("--data", "photos.csv", "--column", "tile=picture", "--root", "photos")
    run("search", "keyed.parquet", *ask, *table)
    assert page.read_text().count("data:image/") == 3


def test_no_name_in_an_archive_leads_out_of_the_folder(run, photos, tmp_path):
    (photos / "x").write_text("secret")
    ask = (*WITH, "--query", "words=b.png", "--gallery", tmp_path / "hits.html")
    text = run("search", "out.parquet", *ask, "--data", "photos", code=2)
    assert "--data photos: has no row of out.parquet; give what `geobind embed` was given" in text


def test_pictures_come_from_one_source_and_need_a_page(run):
    ask = ("search", "scene.parquet", *WITH, "--query", "words=bells")
    assert "--data has pictures for a page: name one with --gallery" in run(*ask, "--data", "photos", code=2)
    both = ("--gallery", "hits.html", "--data", "photos", "--raster", "scene.tif")
    assert "pictures come from one of the two" in run(*ask, *both, code=2)


def test_an_index_is_built_shown_and_used(run, tmp_path):
    folder = tmp_path / "index"
    assert "is exact: recall 1 with every filter" in run("index", "build", "scene.parquet", "--out", folder)
    assert f"index 'exact' of 178 rows, float16 x {mapped.WIDTH}" in run("index", "info", folder)
    query = ("search", "scene.parquet", *WITH, "--query", "words=bells", "--json")
    assert run(*query) == run(*query, "--index", folder)
    text = run("search", "before.parquet", *WITH, "--query", "words=bells", "--index", folder, code=2)
    assert "the index is of another archive than before.parquet" in text


def test_the_recall_of_an_approximate_index_is_shown_by_filter_share(run, tmp_path):
    pytest.importorskip("faiss")
    np.save(tmp_path / "q.npy", np.random.default_rng(0).standard_normal((20, mapped.WIDTH)).astype("f4"))
    text = run(
        "index",
        "build",
        "scene.parquet",
        "--kind",
        "faiss",
        "--out",
        tmp_path / "i",
        "--queries",
        tmp_path / "q.npy",
    )
    assert "100.0" in text and "50.0" in text and "used" in text and "exact" in text
    measured = json.loads(run("index", "info", tmp_path / "i", "--json"))["measured"]
    assert {one["queries"] for one in measured} == {20}


def test_a_map_is_written_with_all_that_was_asked_for(run, tmp_path):
    out = tmp_path / "bells.tif"
    text = run(
        "map", "scene.parquet", *WITH, "--query", "words=bells", "--out", out, "--probability",
        "--paint", "viridis", "--stac", "--peaks", tmp_path / "peaks.geojson", "-k", 3,
    )  # fmt: skip
    assert 'words "bells": 12 x 15 pixels, 178 tiles' in text
    with rasterio.open(out) as file:
        assert file.count == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"bells.tif", "bells_viridis.tif", "bells_legend.png", "bells.tif.json", "peaks.geojson"}
    assert len(json.loads((tmp_path / "peaks.geojson").read_text())["features"]) == 3


def test_maps_of_classes_of_two_queries_and_of_two_dates(run, tmp_path):
    text = run(
        "map", "scene.parquet", *WITH, "--class", "calm: words=silence", "--class", "loud:words=bells",
        "--class", "loud:recording=@rain.wav", "--out", tmp_path / "classes.tif",
    )  # fmt: skip
    assert "calm: " in text and "loud: " in text
    with rasterio.open(tmp_path / "classes.tif") as file:
        assert set(np.unique(file.read(1))) == {0, 1, 2}
    run(
        "map", "scene.parquet", *WITH, "--query", "words=a", "--minus", "words=b", "--out", tmp_path / "m.tif"
    )
    text = run(
        "map",
        "scene.parquet",
        *WITH,
        "--query",
        "words=a",
        "--before",
        "before.parquet",
        "--out",
        tmp_path / "d.tif",
    )
    assert 'change of words "a"' in text and "difference:" in text


def test_what_is_built_mapped_composed_and_joined_is_printed_as_json(run, tmp_path):
    words = ("map", "scene.parquet", *WITH, "--query", "words=bells", "--out", tmp_path / "m.tif", "--json")
    drawn = json.loads(run(*words))
    assert (drawn["height"], drawn["width"], drawn["tiles"]) == (12, 15, 178)
    assert drawn["similarity"]["low"] <= drawn["similarity"]["median"] <= drawn["similarity"]["high"]
    assert drawn["files"] == [str(tmp_path / "m.tif")]
    classes = ("--class", "calm: words=silence", "--class", "loud:words=bells")
    drawn = json.loads(run("map", "scene.parquet", *WITH, *classes, "--out", tmp_path / "c.tif", "--json"))
    assert sum(drawn["classes"].values()) == pytest.approx(1)
    one = json.loads(run("compose", "bundle", "--query", "words=a", "--out", tmp_path / "q.npy", "--json"))
    assert one["file"] == str(tmp_path / "q.npy") and one["rows"] == 1
    built = json.loads(run("index", "build", "scene.parquet", "--out", tmp_path / "index", "--json"))
    assert (built["kind"], built["folder"]) == ("exact", str(tmp_path / "index"))
    assert json.loads(run("archive", "check", "scene.parquet", "--json"))["rows"] == 178
    assert json.loads(run("archive", "merge", "scene.parquet", "--json"))["rows"] == 178


QUERY = ("--query", "words=bells")
MAP = ("map", "scene.parquet", *WITH, "--out", "x.tif")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("search", "gone.parquet", *WITH, *QUERY), "gone.parquet: no such file"),
        (("search", "other.parquet", *WITH, *QUERY), "other.parquet: embedded by another model"),
        (("search", "scene.parquet", "--bundle", "gone", *QUERY), "no folder 'gone'"),
        (("search", "scene.parquet", *WITH, "--query", "sound=a"), "this bundle has no modality 'sound'"),
        (("search", "scene.parquet", *WITH, "--query", "recording=rain.wav"), "write recording=@rain.wav"),
        (
            ("search", "scene.parquet", *WITH, *QUERY, "--weight", "spot=1"),
            "--weight spot: there is no --query spot; a weight needs its part",
        ),
        (
            ("search", "scene.parquet", *WITH, *QUERY, "--bbox", "44,100,45,101"),
            "these begin with a latitude",
        ),
        (
            ("search", "scene.parquet", *WITH, *QUERY, "--bbox", "44.9,3,45,3.1"),
            "latitude and longitude of the box changed places: write longitude first",
        ),
        (("search", "scene.parquet", *WITH, *QUERY, "--time", "2024-01-01"), "its rows have no times"),
        (
            ("search", "scene.parquet", *WITH, *QUERY, "--raster", "a.tif"),
            "name one with --gallery hits.html",
        ),
        (
            ("search", "scene.parquet", *WITH, *QUERY, "--index", "gone"),
            "gone: no index, or one whose building",
        ),
        (("index", "build", "scene.parquet", "--kind", "fais", "--out", "i"), "did you mean 'faiss'?"),
        (MAP, "give either --query"),
        ((*MAP, *QUERY, "--class", "a:words=b"), "give either --query"),
        ((*MAP, "--class", "words=b", "--class", "a:words=b"), "--class words=b: write LABEL:NAME=VALUE"),
        ((*MAP, "--class", "a:words=b"), "a map of classes needs 2 to 250 of them, not 1"),
        ((*MAP, "--class", "a:words=b", "--paint", "viridis"), "--paint has no meaning with --class"),
        (
            (*MAP, *QUERY, "--minus", "words=a", "--before", "before.parquet"),
            "--before has no meaning with --minus",
        ),
        ((*MAP, *QUERY, "--minus", "words=a", "--probability"), "--probability has no meaning with --minus"),
        (("map", "scene.parquet", *WITH, *QUERY, "--out", "scene.parquet"), "let its name end in .tif"),
        (
            ("map", "scene.parquet", *WITH, *QUERY, "--out", "scene.tif"),
            "is the raster that scene.parquet was made",
        ),
        ((*MAP, *QUERY, "--before", "other.parquet"), "other.parquet: embedded by another model"),
        ((*MAP, *QUERY, "--paint", "virids"), "no colour map 'virids'; did you mean 'viridis'?"),
        ((*MAP, "--query", "spot=1,2", "--probability"), "no calibration of spot and tile is known"),
        (("map", "nowhere.parquet", *WITH, *QUERY, "--out", "x.tif"), "so they have no map"),
        (
            ("search", "scene.parquet", *WITH, *QUERY, "--bridge"),
            "none between words and tile: the bundle has no bank",
        ),
        ((*MAP, *QUERY, "--query", "words=a", "--bridge"), "is a sum; a bridge joins two modalities"),
        ((*MAP, *QUERY, "--bridge", "--probability"), "--probability has no meaning with --bridge"),
        (("similarity", "bundle", "words=a"), "give at least two observations"),
        (("similarity", "bundle", "words=a", "b"), "write NAME=VALUE"),
        (("classify", "bundle", "words=a", "--label", "x"), "a choice needs at least two labels"),
        (
            ("classify", "bundle", "words=a", "--label", "x", "--label", "y"),
            "this binder has no modality 'text'",
        ),
        (
            ("compose", "bundle", "--query", "words=a", "--weight", "words=0", "--out", "q.npy"),
            "every weight is 0",
        ),
    ],
)
def test_each_mistake_is_one_message_and_leaves_no_file(run, place, words, reason):
    before = {path.name for path in place.iterdir()}
    text = run(*words, code=2)
    assert reason in " ".join(text.split()) and "Traceback" not in text
    assert {path.name for path in place.iterdir()} == before


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (("--before", "other.parquet"), "other.parquet: embedded by another model"),
        (("--minus", "sound=a"), "this bundle has no modality 'sound'"),
    ],
)
def test_what_a_map_subtracts_is_checked_before_the_archive_is_read(run, monkeypatch, option, reason):
    monkeypatch.setattr(Archive, "iter_blocks", lambda *_, **__: pytest.fail("embeddings are read"))
    assert reason in run(*MAP, *QUERY, *option, code=2)


def test_observations_are_compared_classified_and_composed(run, tmp_path):
    told = json.loads(
        run("similarity", "bundle", "words=rain", "recording=@rain.wav", "words=snow", "--json")
    )
    similarity = np.array(told["similarity"])
    assert told["observations"][1] == "recording rain.wav"
    assert similarity[0, 1] == pytest.approx(1, abs=1e-5) and abs(similarity[0, 2]) < 0.99
    assert "recording rain.wav" in run("similarity", "bundle", "words=a", "recording=@rain.wav")
    labels = ("--label", "rain", "--label", "snow", "--through", "words", "--json")
    (row,) = json.loads(run("classify", "bundle", "recording=@rain.wav", *labels))
    assert row["probabilities"]["rain"] > 0.9 and sum(row["probabilities"].values()) == pytest.approx(1)
    assert "rain" in run("classify", "bundle", "recording=@rain.wav", *labels[:-1])
    run("compose", "bundle", "--query", "words=a", "--query", "words=b", "--out", tmp_path / "q.npy")
    vector = np.load(tmp_path / "q.npy")
    expected = mapped.build_binder().embed("words", ["a", "b"], numpy=True).sum(axis=0)
    assert vector.shape == (1, mapped.WIDTH)
    assert np.allclose(vector[0], expected / np.linalg.norm(expected), atol=1e-6)


def test_a_bridge_of_the_bundle_is_used_where_it_is_asked_for(run, tmp_path, monkeypatch):
    bridge = Bridge(AnchorBank(mapped.build_binder().embed("words", [str(n) for n in range(50)]), "anchor"))
    query = ("search", "scene.parquet", *WITH, *QUERY, "--json")
    plain = json.loads(run(*query))
    monkeypatch.setattr(Binder, "bridge", lambda self, one, two: bridge.between(one, two))
    drawn = json.loads(run(*query, "--bridge"))
    assert [hit["similarity"] for hit in plain["hits"]] != [hit["similarity"] for hit in drawn["hits"]]
    run("map", "scene.parquet", *WITH, *QUERY, "--bridge", "--out", tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif") as file:
        assert np.nanmax(file.read(1)) == pytest.approx(drawn["hits"][0]["similarity"], abs=1e-5)
