"""Where files may lie, and that nothing a table holds leads a reader anywhere else."""

import json
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from geobind.data.columns import SAMPLED_CELLS
from geobind.data.options import DataOptions
from geobind.data.readers.audio import audio_seconds, read_audio
from geobind.data.readers.files import CellText, FileResolver, describe, open_binary
from geobind.data.readers.images import read_image
from geobind.data.readers.text import read_text
from geobind.data.table import open_table
from geobind.embedding_cache.keys import FileHashes, content_hash
from geobind.errors import DataError

OPENED: list[str] = []
sys.addaudithook(lambda event, told: OPENED.append(str(told[0])) if event == "open" else None)


@pytest.fixture
def fenced(tmp_path, monkeypatch):
    """A folder of a table beside one of private files, and links that lead from one to the other."""
    for folder in ("set", "private"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / folder / "a.png")
        soundfile.write(tmp_path / folder / "a.wav", np.full(800, 0.25), 8000)
        (tmp_path / folder / "a").write_bytes((tmp_path / folder / "a.png").read_bytes())
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "private" / "a.png")
    (tmp_path / "set" / "out").symlink_to(tmp_path / "private")
    os.mkfifo(tmp_path / "set" / "pipe.png")
    monkeypatch.setenv("SECRET", str(tmp_path / "private"))
    monkeypatch.setenv("HOME", str(tmp_path / "private"))
    monkeypatch.chdir(tmp_path / "private")  # where a name without a folder would be looked for
    return tmp_path


STRINGS = {
    "inside": "a.png",
    "inside, without an end": "a",
    "absolute": "{private}/a.png",
    "absolute, inside": "{set}/a.png",
    "upwards": "../private/a.png",
    "upwards and back": "../set/../private/a.png",
    "upwards, without an end": "../private/a",
    "a link": "link.png",
    "through a link": "out/a.png",
    "a folder": "out",
    "a pipe": "pipe.png",
    "home": "~/a.png",
    "a variable": "$SECRET/a.png",
    "a variable in braces": "${{SECRET}}/a.png",
    "a recipe's variable": "${{oc.env:SECRET}}/a.png",
    "an address": "https://example.org/a.png",
    "an address of a file": "file://{private}/a.png",
    "a bucket": "s3://bucket/a.png",
    "gdal's": "/vsicurl/https://example.org/a.png",
    "a hub's": "hf-hub:someone/a.png",
    "a dataset of a hub": "hf://datasets/someone/a.png",
    "a module": "os.path",
    "null byte": "{private}/a.png\0.png",
    "very long": "a" * 70_000 + ".png",
    "long, of folders": "a/" * 3_000 + "a.png",
    "a drive": "C:\\private\\a.png",
    "a share": "\\\\server\\share\\a.png",
    "a share with slashes": "//server/share/a.png",
    "backslashes": "..\\private\\a.png",
    "a device": "/dev/zero",
    "of a process": "/proc/self/environ",
    "in a tar file": "../private/a.tar::a.png",
    "blank": " ",
    "escaped": "%2e%2e/private/a.png",
    "a line end": "../private/a.png\n",
}
OTHERS = {
    "none": None,
    "a number": 3,
    "a truth": True,
    "numbers": [1.0, 2.0],
    "a list": ["{private}/a.png", "../private/a.png"],
    "a mapping": {"path": "{private}/a.png"},
    "a hub's cell": {"bytes": None, "path": "{private}/a.png"},
    "a raster": {"raster": "{private}/a.png", "x": 0, "y": 0, "width": 8, "height": 8},
}
READERS = {
    "read_image": read_image,
    "read_audio": lambda raw: read_audio(raw, 8000),
    "audio_seconds": lambda raw: audio_seconds(raw, 8000),
    "open_binary": lambda raw: open_binary(raw).__enter__(),
    "read_text": read_text,
    "hash": lambda raw: content_hash(raw, FileHashes(Path("no/such"))),
}


def placed(cell, folder):
    if isinstance(cell, str):
        return cell.format(private=folder / "private", set=folder / "set")
    if isinstance(cell, dict):
        return {name: placed(value, folder) for name, value in cell.items()}
    return [placed(item, folder) for item in cell] if isinstance(cell, list) else cell


def write_table(path, cells):
    if path.suffix == ".csv":
        quoted = ('"' + str(cell).replace('"', '""') + '"' for cell in cells)
        path.write_text("tile\n" + "\n".join(quoted) + "\n")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"tile": cell}) + "\n" for cell in cells))
    else:
        pq.write_table(pa.table({"tile": pa.array(cells)}), path)


def never_opened(folder, before, reader=""):
    """Assert that since then no private file was opened, by any way."""
    names = [os.path.join(os.getcwd(), name) for name in OPENED[before:]]
    real = str(folder / "private")
    assert not [name for name in names if os.path.realpath(name).startswith(real)], reader
    assert not [name for name in names if name.startswith(("/proc/self/environ", "/dev/zero"))], reader


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("before", ["nothing", "text", "files"])
@pytest.mark.parametrize("kind", [*STRINGS, *OTHERS])
def test_no_cell_of_any_table_leads_a_reader_out_of_its_folder(fenced, suffix, before, kind):
    cell = placed({**STRINGS, **OTHERS}[kind], fenced)
    first = {"nothing": [], "text": ["tile"] * SAMPLED_CELLS, "files": ["a.png"] * SAMPLED_CELLS}[before]
    manifest = fenced / "set" / f"m.{suffix}"
    try:
        write_table(manifest, [*first, cell])
    except (pa.ArrowException, TypeError, ValueError):
        pytest.skip("a Parquet file has one type for all cells")
    for said in ({}, {"files": ("tile",)}, {"inline": ("tile",)})[: 3 if before == "nothing" else 1]:
        start = len(OPENED)
        try:
            table = open_table(DataOptions(manifest=manifest, **said), fenced, ["tile"])
            raw = table.samples("tile")[-1]
        except DataError:
            never_opened(fenced, start)
            continue
        for item in raw if isinstance(raw, list) else [raw]:
            assert not isinstance(item, str) or isinstance(item, CellText)
            if isinstance(item, Path):
                assert os.path.realpath(item).startswith(str(fenced / "set"))
            for name, read in READERS.items():
                try:
                    read(item)
                except DataError as error:
                    assert len(str(error)) < 1200
                never_opened(fenced, start, name)


@pytest.mark.parametrize(
    "raw", [None, 3, 2.5, True, [1, 2], ["a"], {"bytes": b"x"}, {"bytes": None, "path": "/a"}, {1}, object()]
)
def test_readers_refuse_what_is_no_file(raw):
    for read in (read_image, lambda raw: read_audio(raw, 8000), read_text):
        with pytest.raises(DataError):
            read(raw)


def test_bytes_of_every_kind_are_contents(tmp_path):
    Image.new("RGB", (8, 8), (9, 8, 7)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for raw in (
        content,
        bytearray(content),
        memoryview(content),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
    ):
        assert read_image(raw)[0, 0, 0] == 9
    for kind in (bytes, bytearray, memoryview):
        with pytest.raises(DataError):  # not the name of a file
            read_image(kind(os.fsencode(tmp_path / "a.png")))


def test_text_of_a_table_is_no_file_name_though_a_file_is_called_so(fenced, refused):
    message = refused(
        lambda: read_image(CellText("a.png")), "'a.png': is text in the table", "files: [COLUMN]"
    )
    assert "no such file" not in message
    assert read_text(CellText(" a.png ")) == "a.png"


def test_a_relative_root_is_that_of_the_folder_one_works_in(tmp_path, monkeypatch):
    for name in ("sounds", "photos"):  # a notebook that changes its folder
        (tmp_path / name / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / name)
        assert FileResolver(Path())(f"{name}/a.wav") == Path(f"{name}/a.wav")


@pytest.mark.parametrize(
    ("there", "cell", "told"),
    [
        ("t/a.png", "t\\a.png", "there is 't/a.png', with slashes in place of backslashes"),
        ("t/a.png", "t/A.PNG", "there is 't/a.png', with another case"),
        ("T/a.png", "t/a.png", "there is 'T/a.png', with another case"),
        ("t/Zu\u0308rich.png", "t/Z\u00fcrich.png", "with another Unicode form"),
        ("t/Z\u00fcrich.png", "t/Zu\u0308rich.png", "with another Unicode form"),
        ("t/STRASSE.png", "t/stra\u00dfe.png", "there is 't/STRASSE.png', with another case"),
        ("t/a b.png", "t/a%20b.png", "there is 't/a b.png', with no percent escapes"),
        ("t/a b.png", "T\\a%20B.png", "there is 't/a b.png', with another spelling"),
        ("t/a.png", "./t\\A.png", "there is 't/a.png', with another spelling"),
        ("t/fi.png", "t/\ufb01.png", "there is 't/fi.png', with another case"),
        ("t/a.png", "t/a .png", None),
        ("t/a.png", "..\\x\\t\\a.png", None),
    ],
)
def test_a_name_as_another_system_spells_it_is_refused_with_what_is_there(
    tmp_path, refused, there, cell, told
):
    (tmp_path / there).parent.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / there)
    (tmp_path / "m.jsonl").write_text(json.dumps({"tile": cell}))
    table = open_table(DataOptions(manifest=tmp_path / "m.jsonl"), tmp_path, ["tile"])
    for read in (table.check_files, lambda: read_image(table.samples("tile")[0])):
        message = refused(read, "no such file")
        assert ("there is" in message) == (told is not None)
        if read == table.check_files and told:
            assert unicodedata.normalize("NFC", told) in unicodedata.normalize("NFC", message)


def test_a_link_whose_target_is_missing_is_called_so(tmp_path, refused):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    refused(lambda: read_image(tmp_path / "a.png"), "no such file; it is a symbolic link whose target")


def test_many_missing_names_list_their_folder_once(tmp_path, monkeypatch):
    for number in range(20):
        (tmp_path / f"A{number}.png").write_bytes(b"x")
    listed = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scan(folder))
    faults = [FileResolver(tmp_path).fault(f"a{number}.png") for number in range(20)]
    assert all("another case" in fault for fault in faults)
    assert len(listed) == 1


def test_names_in_messages_are_short():
    assert len(describe(Path("/" + "a" * 9000))) < 400
    assert len(describe("a" * 9000)) < 400
