"""Rows become a manifest that is whole or not there, and whatever is not in it is counted."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest

from geobind.data.options import DataOptions
from geobind.data.table import open_table
from geobind.errors import DataError, PluginError
from geobind.importers import Column, Importer, LeftOut, write_manifest
from geobind.importers.writing import FILELESS

PLACE = ["key", "split", "label", "group", "licence", "lat", "lon", "time"]
ROWS: list = []


class Toy(Importer):
    """Yields whatever a test put into ROWS, for the files of a folder."""

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toys"
    home: ClassVar[str] = "https://example.org/toys"
    licence: ClassVar[str] = "CC0"
    citation: ClassVar[str] = "Nobody, Toys, 2024"
    layout: ClassVar[str] = "*.jpg"
    columns: ClassVar[dict] = {
        "satellite": Column("file"),
        "text": Column("string"),
        "photos": Column("file", several=True),
        "window": Column("window"),
    }

    def rows(self):
        folder = self.folder()
        for row in ROWS:
            yield row(folder) if callable(row) else row


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made = tmp_path / "toys"
    made.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (made / name).write_bytes(b"\xff\xd8")
    monkeypatch.setattr(f"{__name__}.ROWS", [])
    return made


def rows_of(path):
    return [
        {name: value for name, value in row.items() if value is not None}
        for row in pq.read_table(path).to_pylist()
    ]


def write(folder, *rows, out=None, **options):
    ROWS[:] = rows
    return write_manifest(Toy(sources=(folder,)), out or folder.parent / "toys.parquet", **options)


def test_a_row_is_written_as_manifests_are_read(folder):
    summary = write(
        folder,
        lambda f: {
            "key": 7,
            "lat": "48.5",
            "lon": -3,
            "time": "2024-06-01T14:30:00+02:00",
            "label": "beach",
            "satellite": f / "a.jpg",
            "text": [" a beach ", "", "sand"],
            "photos": [f / "a.jpg", f / "b.jpg"],
            "window": {"raster": f / "c.jpg", "size_m": 640.0},
        },
    )
    assert pq.read_schema(summary.manifest).names == [*PLACE, *Toy.columns]
    (row,) = rows_of(summary.manifest)
    window = row.pop("window")
    assert row == {
        "key": "7",
        "split": "train",
        "label": "beach",
        "lat": 48.5,
        "lon": -3.0,
        "time": datetime(2024, 6, 1, 12, 30, tzinfo=UTC),
        "satellite": "toys/a.jpg",
        "text": ["a beach", "sand"],
        "photos": ["toys/a.jpg", "toys/b.jpg"],
    }
    assert (window["raster"], window["size_m"], window["lat"]) == ("toys/c.jpg", 640.0, None)
    table = open_table(DataOptions(manifest=summary.manifest), Path(), list(Toy.columns))
    assert table.samples("satellite")[0] == folder / "a.jpg"
    assert table.samples("text")[0] == ["a beach", "sand"]
    assert table.samples("photos")[0] == [folder / "a.jpg", folder / "b.jpg"]


def test_a_row_without_split_is_of_train_and_one_whose_split_is_none_of_none(folder):
    summary = write(
        folder,
        *(
            {"text": word, **split}
            for word, split in (("a", {}), ("b", {"split": None}), ("c", {"split": "x"}))
        ),
    )
    assert summary.splits == {"": 1, "train": 1, "x": 1}
    assert open_table(DataOptions(manifest=summary.manifest), Path(), ["text"]).splits == {"train": 1, "x": 1}


def test_missing_files_are_skipped_and_counted(folder):
    summary = write(
        folder,
        lambda f: {"key": "whole", "satellite": f / "a.jpg", "photos": [f / "b.jpg", f / "gone.jpg"]},
        lambda f: {"key": "half", "satellite": f / "gone.jpg", "photos": [f / "b.jpg"]},
        lambda f: {"key": "words", "satellite": f / "gone.jpg", "text": "words alone"},
        {"key": "never had any", "text": "words alone"},
    )
    assert [row["key"] for row in rows_of(summary.manifest)] == ["whole", "half", "never had any"]
    assert summary.missing == {"photos": 1, "satellite": 2}
    assert summary.absent == str(folder / "gone.jpg")
    assert summary.left_out == {FILELESS: 1}
    assert summary.filled == {"satellite": 1, "text": 1, "photos": 2, "window": 0}
    assert "satellite" not in rows_of(summary.manifest)[1]


def test_missing_files_can_be_kept_and_are_still_counted(folder):
    summary = write(folder, lambda f: {"satellite": f / "gone.jpg"}, missing="keep")
    assert rows_of(summary.manifest)[0]["satellite"] == "toys/gone.jpg"
    assert (summary.rows, summary.missing, summary.left_out) == (1, {"satellite": 1}, {})


def test_files_that_came_after_an_import_are_found_by_the_next(folder):
    ask = [lambda f: {"key": "1", "satellite": f / "a.jpg", "photos": [f / "new.jpg"]}]
    assert write(folder, *ask).missing == {"photos": 1}
    (folder / "new.jpg").write_bytes(b"\xff\xd8")
    assert write(folder, *ask).missing == {}


def test_what_cannot_be_used_is_counted_by_reason(folder):
    summary = write(
        folder,
        {"text": "good", "lat": 1, "lon": 2},
        {"text": "no place", "lat": "", "lon": None},
        {"text": "half a place", "lat": 1, "lon": ""},
        {"text": "off", "lat": 91, "lon": 0},
        {"text": "unknown", "lat": "nan", "lon": 0},
        {"text": "off", "lat": 0, "lon": "east"},
        {"text": "off", "time": "yesterday"},
        LeftOut("silence"),
        LeftOut("silence"),
    )
    assert summary.left_out == {
        "silence": 2,
        "its latitude is not degrees from -90 to 90": 1,
        "its longitude is not degrees from -180 to 180": 1,
        "its time is not ISO 8601": 1,
    }
    assert [(row["text"], row.get("lat"), row.get("lon")) for row in rows_of(summary.manifest)] == [
        (["good"], 1.0, 2.0),
        (["no place"], None, None),
        (["half a place"], None, None),
        (["unknown"], None, None),
    ]


def test_names_are_relative_to_the_dataset_where_the_manifest_lies_elsewhere(folder, tmp_path):
    out = tmp_path / "manifests" / "toys.parquet"
    summary = write(folder, lambda f: {"satellite": f / "a.jpg"}, out=out)
    assert summary.root == folder
    assert rows_of(out)[0]["satellite"] == "a.jpg"
    options = DataOptions(manifest=out, root=summary.root)
    assert open_table(options, Path(), ["satellite"]).samples("satellite")[0] == folder / "a.jpg"


def test_a_root_can_be_chosen_and_files_outside_of_it_are_refused(folder, tmp_path):
    out = tmp_path / "manifests" / "toys.parquet"
    summary = write(folder, lambda f: {"satellite": f / "a.jpg"}, out=out, root=tmp_path)
    assert (summary.root, rows_of(out)[0]["satellite"]) == (tmp_path, "toys/a.jpg")
    with pytest.raises(DataError) as failure:
        write(folder, lambda f: {"satellite": f / ".." / "other.jpg"}, out=out)
    assert str(failure.value) == (
        f"{folder}/../other.jpg: lies outside of {folder}, which file names are relative to; "
        "name a folder above both with --root"
    )
    assert rows_of(out)[0]["satellite"] == "toys/a.jpg"  # what was there is untouched


def test_a_cell_may_name_a_file_inside_a_tar_file(folder):
    (folder / "0.tar").write_bytes(b"")
    summary = write(
        folder,
        lambda f: {"satellite": Path(f"{f}/0.tar::b/1.jpg"), "photos": [Path(f"{f}/1.tar::1.jpg")]},
    )
    assert rows_of(summary.manifest)[0]["satellite"] == "toys/0.tar::b/1.jpg"
    assert summary.missing == {"photos": 1}
    assert summary.absent == str(folder / "1.tar")


def test_only_so_many_rows_as_asked_for_are_written_and_read(folder):
    def explode(_):
        raise AssertionError("read too far")

    summary = write(
        folder, {"text": "a"}, {"text": "b", "lat": 99, "lon": 0}, {"text": "c"}, explode, limit=2
    )
    assert [row["text"] for row in rows_of(summary.manifest)] == [["a"], ["c"]]


def test_an_import_that_leaves_nothing_says_why_and_writes_nothing(folder):
    with pytest.raises(DataError) as failure:
        write(folder, lambda f: {"satellite": f / "gone.jpg"}, LeftOut("silence"))
    assert str(failure.value) == (
        f"{folder}: not toy as distributed: not a row could be written: 1 left out: silence; "
        f"1 left out: {FILELESS}; 1 files are not there, such as {folder}/gone.jpg\n"
        "  expected:\n    *.jpg\n  found:\n    a.jpg\n    b.jpg\n    c.jpg"
    )
    assert list(folder.parent.iterdir()) == [folder]


def test_an_import_that_fails_on_the_way_leaves_nothing_behind(folder):
    def broken(_):
        raise PermissionError(13, "Permission denied", str(folder / "list.csv"))

    with pytest.raises(DataError, match=r"list\.csv: Permission denied"):
        write(folder, *({"text": str(number)} for number in range(20_000)), broken)
    assert list(folder.parent.iterdir()) == [folder]


def test_many_rows_are_written_in_groups_and_none_is_lost(folder):
    summary = write(folder, *({"key": number, "text": "x"} for number in range(40_000)))
    assert pq.ParquetFile(summary.manifest).num_row_groups == 3
    assert pq.read_table(summary.manifest)["key"].to_pylist() == [str(number) for number in range(40_000)]


FAULTS = {
    "a column it does not declare": (
        {"sound": "x"},
        "importer 'toy' fills 'sound', which is none of its columns",
    ),
    "a name in place of a path": (
        {"key": "1", "satellite": "a.jpg"},
        "importer 'toy': row 1: 'a.jpg' in column 'satellite', which is of kind file and holds one",
    ),
    "several files where one belongs": (
        lambda f: {"key": "1", "satellite": [f, f]},
        "in column 'satellite', which is of kind file and holds one",
    ),
    "a number in place of a text": (
        {"key": "1", "text": 3},
        "importer 'toy': row 1: 3 in column 'text', which is of kind string",
    ),
    "a list in place of a word": (
        {"key": "1", "label": ["a", "b"], "text": "x"},
        r"importer 'toy': row 1: 'label': ['a', 'b'] is not a string",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_importer_that_breaks_its_word_is_named(fault, folder):
    row, message = FAULTS[fault]
    with pytest.raises(PluginError) as failure:
        write(folder, row)
    assert message in str(failure.value)


def test_the_manifest_says_where_it_comes_from(folder):
    summary = write(folder, {"text": "x"})
    told = json.loads(pq.read_schema(summary.manifest).metadata[b"geobind.importer"])
    assert told == {
        "name": "toy",
        "title": "Toys",
        "home": "https://example.org/toys",
        "licence": "CC0",
        "citation": "Nobody, Toys, 2024",
        "options": {},
    }


def test_columns_that_would_be_mistaken_are_told(folder):
    (folder / "bare").write_bytes(b"x")
    summary = write(
        folder,
        lambda f: {"satellite": f / "bare", "text": "see beach.jpg", "photos": [f / "a.jpg"]},
        lambda f: {"satellite": f / "a.jpg", "text": "a beach", "photos": [f / "a.jpg"]},
    )
    assert (summary.files, summary.inline) == (("satellite",), ("text",))
    options = DataOptions(manifest=summary.manifest, files=summary.files, inline=summary.inline)
    table = open_table(options, Path(), ["satellite", "text"])
    assert table.samples("satellite")[0] == folder / "bare"
    assert table.samples("text")[0] == "see beach.jpg"


def test_a_manifest_must_be_parquet(folder):
    with pytest.raises(DataError, match=r"toys\.csv: a manifest is written as Parquet"):
        write(folder, {"text": "x"}, out=folder.parent / "toys.csv")


def test_folders_that_share_no_parent_need_a_root(folder, monkeypatch):
    monkeypatch.setattr(Toy, "folders", lambda self: [Path("/one"), Path("/two")])
    with pytest.raises(DataError, match="have no folder in common"):
        write(folder, {"text": "x"})
