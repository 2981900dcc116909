import csv
import hashlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from geobind.data import loader
from geobind.data.options import DataOptions
from geobind.data.readers.audio import read_audio
from geobind.data.readers.images import read_image
from geobind.data.table import open_table
from geobind_toyearth import ToyEarth
from geobind_toyearth import table as toyearth_table

SMALL = {
    "places": 5,
    "held_out": 2,
    "seed": 3,
    "tile_size": 16,
    "photo_size": 24,
    "seconds": 0.25,
    "rate": 8000,
    "captions": 2,
}
NAMES = ("sky", "ground", "ear", "words", "truth")
COLUMNS = {"sky": "tile", "ground": "photo", "ear": "sound", "words": "captions", "truth": "facts"}


PINNED = {  # of `digest`
    "sky": "8c770234b2139d1c",
    "ground": "f81c97f05c0c3622",
    "ear": "e1e3e34c5e3c09f2",
    "truth": "b437bee946566f20",
    "words": "ec6ac44779ca94c7",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("toyearth"))


@pytest.fixture(autouse=True)
def _shared_cache(cache, monkeypatch, _own_cache):
    monkeypatch.setenv("GEOBIND_CACHE", cache)


def opened(tmp_path, **options):
    return open_table(DataOptions(toyearth=SMALL, columns=COLUMNS, **options), tmp_path, NAMES)


def test_toy_earth_is_a_table_of_two_splits(tmp_path):
    table = opened(tmp_path)
    assert table.splits == {"test": 2, "train": 5}
    assert table.samples("sky")[0].shape == (16, 16, 3)
    assert table.samples("ground")[0].dtype == np.uint8
    samples, rate = table.samples("ear")[6]
    assert (samples.shape, samples.dtype, rate) == ((2000,), np.int16, 8000)
    assert len(table.samples("words")[0]) == 2
    assert table.samples("truth")[0].dtype == np.float32
    assert np.abs(table.places_LL).max() <= 180
    assert not np.isnat(table.time).any()
    assert all(table.labels)
    assert table.split("test").pairs("sky", "ear")[0].key == "toyearth:test:5"
    assert len(opened(tmp_path, limit=3)) == 3


def test_it_is_rendered_once(tmp_path, monkeypatch):
    opened(tmp_path)
    monkeypatch.setattr(toyearth_table, "_render", lambda *_: pytest.fail("it was rendered again"))
    opened(tmp_path)


def test_only_the_columns_that_are_read_are_rendered(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path))
    table = open_table(DataOptions(toyearth=SMALL, columns={"ear": "sound"}), tmp_path, ["ear"])
    assert {path.stem for path in table.path.parent.rglob("*.npy")} == {"sound"}


SENSORS = {
    "heights": ((16, 16), np.float32),
    "lights": ((16, 16), np.float32),
    "temperature": ((16, 16), np.float32),
    "depth": ((24, 24), np.float32),
    "clip": ((6, 24, 24, 3), np.uint8),
    "motion": ((6, 300), np.float32),
    "covariates": ((8,), np.float32),
    "embedding": ((64,), np.float32),
}


@pytest.mark.parametrize("column", SENSORS)
def test_a_sensor_has_a_column_that_a_place_composed_of_itself_agrees_with(column, tmp_path):
    table = open_table(DataOptions(toyearth=SMALL, columns={"it": column}), tmp_path, ["it"])
    cells = [table.samples("it")[row] for row in range(7)]
    composed = list(ToyEarth(**SMALL).composer()(column, np.array([6, 2]), np.array([6, 2])))
    if column == "motion":
        assert {rate for _, rate in [*cells, *composed]} == {50}
        cells, composed = ([array for array, _ in some] for some in (cells, composed))
    assert {(cell.shape, cell.dtype.type) for cell in cells} == {SENSORS[column]}
    # The last bit of a power depends on how many places are computed at once, and a grey level on that.
    near = 1 if column == "clip" else 1e-3
    for cell, row in zip(composed, (6, 2), strict=True):
        assert np.allclose(cell.astype(float), cells[row].astype(float), rtol=0, atol=near, equal_nan=True)


def digest(table):
    """Hash each column by means of blocks, which the last bits of another processor do not move."""
    means = {
        "sky": [cell.reshape(4, 4, 4, 4, 3).mean(axis=(1, 3)) for cell in table.samples("sky")],
        "ground": [cell.reshape(4, 6, 4, 6, 3).mean(axis=(1, 3)) for cell in table.samples("ground")],
        "ear": [
            np.sqrt((cell.astype(float).reshape(20, 100) ** 2).mean(1)) for cell, _ in table.samples("ear")
        ],
        "truth": [1000 * cell for cell in table.samples("truth")],
    }
    digests = {name: np.round(values).astype("<i4").tobytes() for name, values in means.items()}
    digests["words"] = "\n".join(line for lines in table.samples("words") for line in lines).encode()
    return {name: hashlib.sha256(content).hexdigest()[:16] for name, content in digests.items()}


def test_the_columns_that_were_there_first_are_what_they_were(tmp_path):
    assert digest(opened(tmp_path)) == PINNED


@pytest.mark.parametrize("workers", [0, 2])
def test_places_do_not_depend_on_how_many_are_rendered_at_a_time_nor_where(tmp_path, monkeypatch, workers):
    whole = list(opened(tmp_path).samples("sky"))
    monkeypatch.setenv("GEOBIND_CACHE", str(tmp_path))
    monkeypatch.setattr(toyearth_table, "_CHUNK", 2)
    monkeypatch.setattr(loader, "choose_workers", lambda rows: workers)
    assert np.array_equal(whole, list(opened(tmp_path).samples("sky")))


def test_new_renderers_render_anew(tmp_path, monkeypatch):
    before = open_table(DataOptions(toyearth=SMALL, columns=COLUMNS), tmp_path, NAMES).path
    monkeypatch.setattr(toyearth_table, "hash_sources", lambda file: "other")
    assert opened(tmp_path).path != before


def test_a_column_toy_earth_lacks_is_named(tmp_path, refused):
    options = DataOptions(toyearth=SMALL, columns={"sky": "tiles"})
    refused(
        lambda: open_table(options, tmp_path, ["sky"]),
        "no column 'tiles'",
        "tile, photo, sound, facts, heights",
    )
    refused(lambda: open_table(DataOptions(toyearth=SMALL), tmp_path, ["sky"]), "for sky", "{sky: tile}")


def test_files_hold_what_the_arrays_hold(tmp_path, refused):
    manifest = ToyEarth(**SMALL).write_files(tmp_path / "world")
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    with Image.open(tmp_path / "world" / rows[0]["tile"]) as image:
        assert image.size == (16, 16)
    assert soundfile.info(tmp_path / "world" / rows[0]["sound"]).frames == 2000

    written = open_table(
        DataOptions(manifest=manifest, columns={**COLUMNS, "truth": "label"}), tmp_path, NAMES
    )
    table = opened(tmp_path)
    assert written.check_files() == 21
    assert written.splits == table.splits
    assert np.allclose(written.places_LL, table.places_LL)
    assert np.array_equal(written.time, table.time)
    assert written.labels == table.labels
    for row in range(7):
        for name in ("sky", "ground"):
            assert read_image(written.samples(name)[row]).equal(read_image(table.samples(name)[row]))
        assert read_audio(written.samples("ear")[row], 8000).equal(
            read_audio(table.samples("ear")[row], 8000)
        )
        assert written.samples("words")[row] == table.samples("words")[row]
    refused(lambda: ToyEarth(**SMALL).write_files(tmp_path / "world"), "is there already")
