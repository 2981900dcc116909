"""Requests of a page: queries of any parts, the nearest rows, what a place looks, sounds and reads like."""

import numpy as np
import pytest
import served
import torch

from geobind.archive.archive import Archive
from geobind.errors import DataError, PluginError
from geobind.modality import Content, Place
from geobind.serving.explorer import (
    Explorer,
    PartRequest,
    QueryRequest,
    decode_vector,
    encode_vector,
    load_bank,
    nearest,
)
from geobind.serving.limits import Limits, Refusal
from geobind.serving.tiles import SceneRaster


def ask(explorer, *parts, k=5):
    return explorer.ask(QueryRequest(parts=[PartRequest(**part) for part in parts], k=k))


def test_an_answer_is_what_the_binder_composes(explorer, binder):
    sound = served.make_sound(7)
    parts = {"text": "a deep wood", "audio": Content(sound), "spot": Place(40.0, 3.0)}
    vector_D = binder.compose(parts, {"audio": -0.5, "spot": 0.25})[0].numpy()
    similarity_N = Archive.open(explorer.archive.path).read_vectors() @ vector_D
    answer = ask(
        explorer,
        {"modality": "text", "text": "a deep wood"},
        {"modality": "audio", "embedding": explorer.embed("audio", sound), "weight": -0.5},
        {"modality": "spot", "place": (40.0, 3.0), "weight": 0.25},
    )
    assert np.abs(answer.similarity_N - similarity_N).max() < 1e-3  # a link holds float16
    assert (answer.nearest_K == np.argsort(-answer.similarity_N, kind="stable")[:5]).all()


def test_archives_that_stay_in_half_precision_give_the_same(explorer, binder, monkeypatch):
    monkeypatch.setattr("geobind.serving.explorer._LOADED", 0)
    monkeypatch.setattr("geobind.serving.explorer._BLOCK", 7)
    half = Explorer(binder, explorer.archive)
    one, other = (ask(each, {"modality": "text", "text": "snow"}) for each in (explorer, half))
    assert np.abs(one.similarity_N - other.similarity_N).max() < 1e-6


@pytest.mark.parametrize("k", [1, 3, 10, 99])
def test_the_nearest_are_sorted_and_ties_keep_their_order(k):
    similarity_N = np.array([0.5, 0.9, 0.5, 0.5, -1, 0.9], np.float32)
    assert nearest(similarity_N, k).tolist() == [1, 5, 0, 2, 3, 4][:k]


def test_the_same_query_is_kept_and_older_ones_go(binder, explorer):
    few = Explorer(binder, explorer.archive, limits=Limits(queries=2))
    names = [ask(few, {"modality": "text", "text": text}).name for text in ("a", "b", "a", "c")]
    assert names[0] == names[2]
    assert few.find_answer(names[0]).name == names[0]
    with pytest.raises(Refusal, match="ask it again"):
        few.find_answer(names[1])


@pytest.mark.parametrize("name", ["audio", "satellite", "ground_image", "spot"])
@pytest.mark.parametrize("text", ["/etc/passwd", "scene.tif", "a wood"])
def test_a_string_never_becomes_a_path(explorer, name, text):
    with pytest.raises(Refusal, match="text alone") as refused:
        ask(explorer, {"modality": name, "text": text})
    assert text not in str(refused.value)


def test_a_path_given_as_text_is_words(explorer, tmp_path):
    file = tmp_path / "secret.txt"
    file.write_text("a wood")
    words = ask(explorer, {"modality": "text", "text": str(file)})
    assert words.name != ask(explorer, {"modality": "text", "text": "a wood"}).name


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"modality": "smell", "text": "x"}, "no such modality"),
        ({"modality": "text"}, "either"),
        ({"modality": "text", "text": "x", "place": (1, 2)}, "either"),
        ({"modality": "text", "text": " "}, "characters"),
        ({"modality": "text", "text": "a\0b"}, "characters"),
        ({"modality": "text", "text": "x" * 2001}, "characters"),
        ({"modality": "text", "text": "\ud800"}, "Unicode"),
        ({"modality": "text", "place": (1, 2)}, "places alone"),
        ({"modality": "spot", "place": (91, 2)}, "latitudes"),
        ({"modality": "spot", "place": (1, -181)}, "latitudes"),
        ({"modality": "audio", "embedding": "???"}, "embedding"),
        ({"modality": "audio", "embedding": "é"}, "base 64"),
        ({"modality": "audio", "embedding": "AAAA"}, "another model"),
        ({"modality": "audio", "embedding": "A" * 342}, "another model|damaged"),
        ({"modality": "text", "text": "x", "weight": 0.0}, "cancel out"),
    ],
)
def test_parts_that_cannot_be_used_are_refused(explorer, part, reason):
    with pytest.raises(Refusal, match=reason):
        explorer.ask(QueryRequest.model_construct(parts=[PartRequest.model_construct(**part)], k=3))


def test_vectors_that_are_no_embedding_are_refused(binder):
    for values in (np.zeros(binder.width), np.full(binder.width, np.nan), np.full(binder.width, 9.0)):
        with pytest.raises(Refusal, match="damaged"):
            decode_vector(encode_vector(torch.tensor(values)[None]), binder.width)


def test_a_vector_survives_a_link(binder):
    vector_1D = binder.embed("text", ["a wood"])
    again_1D = decode_vector(encode_vector(vector_1D), binder.width)
    assert torch.abs(again_1D - vector_1D).max() < 1e-3
    assert again_1D.norm() == pytest.approx(1)


def test_as_many_parts_as_allowed(explorer):
    part = {"modality": "text", "text": "wood"}
    assert len(ask(explorer, *[part] * 12).nearest_K) == 5
    for parts in ([], [part] * 13):
        with pytest.raises(Refusal, match="1 to 12"):
            ask(explorer, *parts)


def test_uploads_are_for_modalities_of_files(explorer):
    for name in ("text", "spot"):
        with pytest.raises(Refusal, match="in words"):
            explorer.embed(name, b"x")
    with pytest.raises(Refusal, match="no such modality"):
        explorer.embed("smell", b"x")


@pytest.mark.parametrize(
    "content", [b"x", b"\0" * 100_000, b"RIFF" + b"\0" * 40, b"\x89PNG\r\n\x1a\n", b"GIF89a"]
)
@pytest.mark.parametrize("name", ["audio", "satellite"])
def test_files_that_cannot_be_read_are_refused_with_the_readers_words(explorer, name, content):
    with pytest.raises(Refusal, match=f"the file for {name}: ") as refused:
        explorer.embed(name, content)
    assert refused.value.status == 422
    assert "b'" not in str(refused.value)


def test_a_place_is_described_by_its_neighbours_in_archive_and_banks(explorer):
    found = explorer.look(3)
    assert found["row"] == 3 and found["id"]
    assert len(found["like"]) == 6 and all(one["row"] != 3 for one in found["like"])
    audio, text = found["banks"]
    assert audio["modality"] == "audio" and all(
        item["sound"].startswith("data:audio/wav") for item in audio["items"]
    )
    assert {item["words"] for item in text["items"]} == {"a wood", "a lake", "the sea in the evening"}
    assert [item["similarity"] for item in text["items"]] == sorted(
        (i["similarity"] for i in text["items"]), reverse=True
    )


def test_every_row_is_found_at_its_place(explorer):
    archive = explorer.archive
    for row in range(0, len(archive), 7):
        assert explorer.find_row(float(archive.lat_N[row]), float(archive.lon_N[row])) == row
    assert explorer.find_row(-40.0, 100.0) is None
    with pytest.raises(Refusal, match="latitudes"):
        explorer.find_row(float("nan"), 0.0)


def test_rows_without_a_grid_are_found_by_distance(binder, tmp_path):
    from geobind.archive import write_archive
    from geobind.archive.archive import model_digest

    vectors = binder.embed("text", ["a", "b", "c"], numpy=True)
    digest = model_digest(binder, "text")
    path = tmp_path / "points.parquet"
    write_archive(path, vectors, [10.0, 20.0, np.nan], [179.0, 0.0, np.nan], modality="text", model=digest)
    points = Explorer(binder, Archive.open(path, binder))
    rows = [points.find_row(10.0, -179.0), points.find_row(21.0, 1.0)]
    assert [str(points.archive.ids[row]) for row in rows] == ["0", "1"]
    about = points.describe()
    assert about["archive"]["mapped"] is False and about["archive"]["placed"] is True
    found = points.look(2)
    assert found["lat"] is None
    assert points.draw_row(0, 80) is None


def test_a_picture_of_a_row_is_its_tile(explorer, world):
    import io

    from PIL import Image

    picture = explorer.draw_row(0, 80)
    assert picture is not None
    pixels = np.asarray(Image.open(io.BytesIO(picture.content)))
    image = served.paint_scene()
    archive = explorer.archive
    r, c = int(archive.row_N[0]), int(archive.column_N[0])
    tile = image[:, r * 32 : (r + 1) * 32, c * 32 : (c + 1) * 32]
    assert np.abs(pixels.mean(axis=(0, 1)) - tile.mean(axis=(1, 2))).max() < 4
    with pytest.raises(Refusal, match="no such row"):
        explorer.draw_row(10_000, 80)


def test_a_row_without_a_scene_shows_its_own_file(binder, tmp_path):
    import io

    from PIL import Image

    from geobind.archive import write_archive
    from geobind.archive.archive import model_digest

    Image.new("RGB", (16, 16), (10, 200, 30)).save(tmp_path / "green.png")
    vectors = binder.embed("text", ["a", "b"], numpy=True)
    path, nowhere = tmp_path / "files.parquet", np.full(2, np.nan)
    digest = model_digest(binder, "text")
    names = ["gone.png", "green.png"]
    write_archive(path, vectors, nowhere, nowhere, modality="text", model=digest, ids=names)
    known = {"green.png": tmp_path / "green.png"}
    files = Explorer(binder, Archive.open(path, binder), show=known.get)
    assert files.describe()["pictures"] is True
    rows = files.describe_rows(np.arange(2), np.zeros(2, np.float32))
    pictures = {row["id"]: files.draw_row(row["row"], 160) for row in rows}
    assert pictures["gone.png"] is None and pictures["green.png"].kind.startswith("image/")
    pixels = np.asarray(Image.open(io.BytesIO(pictures["green.png"].content)).convert("RGB"))
    assert np.abs(pixels.mean(axis=(0, 1)) - (10, 200, 30)).max() < 4


def test_numbers_are_asked_of_modalities_of_numbers_alone(explorer, binder, tmp_path):
    from geobind.binder import Binder
    from geobind.serving.explorer import PartRequest, QueryRequest
    from geobind_vector import Vector

    soil = Binder({**binder.modalities, "vector": Vector(size=2)}, binder.width, pretrained=False, seed=3)
    asked = Explorer(soil, explorer.archive)
    answer = asked.ask(QueryRequest(parts=[PartRequest(modality="vector", numbers=(0.5, 12))]))
    assert len(answer.nearest_K)
    for modality, numbers, reason in (
        ("text", (1.0,), "numbers are given to modalities of numbers alone"),
        ("vector", (1.0,), "2 finite numbers"),
    ):
        with pytest.raises(Refusal, match=reason):
            asked.ask(QueryRequest(parts=[PartRequest(modality=modality, numbers=numbers)]))


def test_a_scene_of_elsewhere_is_refused(binder, explorer, tmp_path):
    import rasterio

    moved = rasterio.Affine(10, 0, 300_000, 0, -10, 200_000)
    scene = SceneRaster(served.write_scene(tmp_path / "b.tif", served.paint_scene(), transform=moved))
    with pytest.raises(DataError, match="elsewhere"):
        Explorer(binder, explorer.archive, scene)


def test_a_bank_leaves_out_what_cannot_be_read_and_says_so(binder, world, logged):
    bank = load_bank(binder, "audio", world / "sounds")
    assert list(bank.names) == ["0.wav", "1.wav", "2.wav", "3.wav"]
    assert "1 of 5 are left out" in logged()
    alone = binder.embed("audio", world / "sounds" / "2.wav").numpy()
    assert np.abs(bank.vector_ND[2] - alone[0]).max() < 1e-5


def test_files_that_systems_leave_in_a_folder_are_none_of_a_bank(binder, world, tmp_path, logged):
    (tmp_path / "0.wav").write_bytes((world / "sounds" / "0.wav").read_bytes())
    for name in ("Thumbs.db", "desktop.ini", "._0.wav", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    assert list(load_bank(binder, "audio", tmp_path).names) == ["0.wav"]
    assert "left out" not in logged()


def test_a_bank_without_anything_is_refused(binder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.wav").write_bytes(b"x")
    (tmp_path / "words.txt").write_text("\n \n")
    with pytest.raises(DataError, match="holds nothing"):
        load_bank(binder, "audio", tmp_path / "empty")
    with pytest.raises(DataError, match="holds nothing"):
        load_bank(binder, "text", tmp_path / "words.txt")
    with pytest.raises(DataError, match="none of 1"):
        load_bank(binder, "audio", tmp_path / "bad")
    with pytest.raises(DataError, match="a folder of files"):
        load_bank(binder, "audio", tmp_path / "words.txt")
    with pytest.raises(PluginError, match="no modality"):
        load_bank(binder, "smell", tmp_path / "bad")
