"""Any folder of images: splits and classes are the names of folders."""

import io
from datetime import UTC, datetime

import pytest
from layouts import imported, jpeg, put
from PIL import Image

from geobind.errors import DataError
from geobind_datasets.image_folder import ImageFolder


def lines(rows):
    return [(row["key"], row["split"], row.get("label")) for row in rows]


def test_folders_are_splits_and_classes(tmp_path):
    folder = tmp_path / "scenes"
    for name in ("test/beach/1.jpg", "train/beach/1.jpg", "train/forest/dark/2.PNG", "valid/3.tif"):
        put(folder / name, jpeg())
    put(folder / "train" / "beach" / ".hidden.jpg", jpeg())
    put(folder / "readme.txt", b"x")
    summary, rows = imported(ImageFolder(sources=(folder,)), tmp_path / "scenes.parquet")
    assert lines(rows) == [
        ("test/beach/1.jpg", "test", "beach"),
        ("train/beach/1.jpg", "train", "beach"),
        ("train/forest/dark/2.PNG", "train", "forest/dark"),
        ("valid/3.tif", "val", None),
    ]
    assert rows[0]["satellite"] == "scenes/test/beach/1.jpg"
    assert summary.left_out == {"is no image, by its name: *.txt": 1}


def test_a_flat_folder_is_of_train_without_classes(tmp_path):
    put(tmp_path / "photos" / "a.jpg", jpeg())
    importer = ImageFolder(sources=(tmp_path / "photos",), column="ground_image", text="a {label}")
    _, rows = imported(importer, tmp_path / "photos.parquet")
    assert rows == [{"key": "a.jpg", "split": "train", "ground_image": "photos/a.jpg"}]


def test_classes_become_text_where_asked_for(tmp_path):
    put(tmp_path / "scenes" / "dense_forest" / "a.jpg", jpeg())
    importer = ImageFolder(sources=(tmp_path / "scenes",), text="an image of a {label}")
    _, rows = imported(importer, tmp_path / "scenes.parquet")
    assert rows[0]["text"] == ["an image of a dense forest"]


def photo(latitude, longitude, taken="2021:07:01 09:30:00"):
    exif = Image.Exif()
    gps, detail = exif.get_ifd(0x8825), exif.get_ifd(0x8769)
    gps.update({1: latitude[1], 2: latitude[0], 3: longitude[1], 4: longitude[0]})
    detail[0x9003] = taken
    target = io.BytesIO()
    Image.new("RGB", (8, 8)).save(target, "JPEG", exif=exif)
    return target.getvalue()


def test_cameras_say_where_and_when(tmp_path):
    folder = tmp_path / "photos"
    put(folder / "a.jpg", photo(((10.0, 30.0, 36.0), "S"), ((20.0, 15.0, 0.0), "W")))
    put(folder / "b.jpg", jpeg())
    put(folder / "c.jpg", b"broken")
    put(folder / "d.jpg", photo(((1.0, 2.0), "N"), ((1.0, 2.0), "E"), "0000:00:00 00:00:00"))
    importer = ImageFolder(sources=(folder,), gps=True)
    summary, rows = imported(importer, tmp_path / "photos.parquet")
    assert rows[0]["lat"] == pytest.approx(-10.51)
    assert rows[0]["lon"] == pytest.approx(-20.25)
    assert rows[0]["time"] == datetime(2021, 7, 1, 9, 30, tzinfo=UTC)
    assert all("lat" not in row and "time" not in row for row in rows[1:])
    assert summary.rows == 4


def test_a_place_without_its_hemisphere_or_of_a_camera_that_knows_none_is_no_place(tmp_path):
    folder = tmp_path / "photos"
    ten, nothing = (10.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    put(folder / "a.jpg", photo((ten, ""), (ten, "E")))
    put(folder / "b.jpg", photo((ten, "N"), (ten, "?")))
    put(folder / "c.jpg", photo((nothing, "N"), (nothing, "E")))
    put(folder / "d.jpg", photo(((95.0, 0.0, 0.0), "N"), (ten, "E")))
    put(folder / "e.jpg", photo((nothing, "N"), (ten, "w")))
    _, rows = imported(ImageFolder(sources=(folder,), gps=True), tmp_path / "photos.parquet")
    assert [row.get("lat") for row in rows] == [None, None, None, None, 0]
    assert rows[4]["lon"] == -10
    assert all("time" in row for row in rows)


def test_a_folder_without_images_is_told(tmp_path):
    put(tmp_path / "sounds" / "a.mp3", b"x")
    with pytest.raises(DataError, match="there is no image in it"):
        imported(ImageFolder(sources=(tmp_path / "sounds",)), tmp_path / "out.parquet")


def test_a_column_must_be_a_word(tmp_path):
    with pytest.raises(ValueError, match="column"):
        ImageFolder(sources=(tmp_path,), column="a b")
