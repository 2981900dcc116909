"""The data of the examples: fetched from a local server, checked, or stood in for."""

import http.server
import io
import json
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import fetch_data  # noqa: E402

TILES = {f"repo-1/data/train/{cls}/{cls}{n:02}.jpg": f"{cls} {n}".encode() for cls in "ab" for n in range(2)}
KNOWN = {
    path.removeprefix("repo-1/data/train/"): fetch_data.name_content(content)
    for path, content in TILES.items()
}
DIGEST = fetch_data.digest_files({f"sat/ucm/{path}": name for path, name in KNOWN.items()})


def packed(members):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


@pytest.fixture
def served(monkeypatch):
    """Serve one content at every address, and know a small part of the data by it."""
    answers, asked = {"body": packed(TILES), "status": 200}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(answers["status"])
            self.end_headers()
            self.wfile.write(answers["body"])

        def log_message(self, *_):
            pass

    archive = replace(fetch_data.PARTS["tiles"].archives[0], files=4, digest=DIGEST, max_bytes=100_000)
    part = replace(fetch_data.PARTS["tiles"], archives=(archive,))
    monkeypatch.setattr(fetch_data, "PARTS", {**fetch_data.PARTS, "tiles": part})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield answers, asked, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_part_is_fetched_once_and_checked(served, tmp_path, capsys):
    _, asked, host = served
    fetch_data.main(tmp_path, ["tiles"], host)
    assert asked == [f"/siddhant3c/GNR638_Assignment1/zip/{fetch_data.PARTS['tiles'].archives[0].commit}"]
    assert files_of(tmp_path) == {f"sat/ucm/{path}" for path in KNOWN}
    assert (tmp_path / "sat/ucm/a/a01.jpg").read_bytes() == b"a 1"
    assert "public domain" in capsys.readouterr().out
    fetch_data.main(tmp_path, ["tiles"], host)
    assert len(asked) == 1
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"repo-1/data/train/a/a00.jpg": b"another tile"}, "other files than are known"),
        ({"repo-1/data/train/c/c00.jpg": b"one more"}, "more than is known"),
        ({"repo-1/data/train/a/a00.jpg": b"0" * 9_000_000}, "more than is known"),
    ],
)
def test_other_contents_are_refused_and_nothing_of_them_is_kept(served, tmp_path, change, message):
    answers, _, host = served
    answers["body"] = packed({**TILES, **change})
    with pytest.raises(fetch_data.FetchError, match=message):
        fetch_data.main(tmp_path, ["tiles"], host)
    assert files_of(tmp_path) == set()


def test_members_with_evil_names_are_never_written(served, tmp_path):
    answers, _, host = served
    evil = (
        "repo-1/data/train/../../evil.jpg",
        "/data/train/a/evil.jpg/..",
        "repo-1/data/train/a/../../../x.jpg",
    )
    answers["body"] = packed({**dict.fromkeys(evil, b"evil"), **TILES})
    data = tmp_path / "inside" / "data"
    fetch_data.main(data, ["tiles"], host)
    assert files_of(tmp_path) == {f"inside/data/sat/ucm/{path}" for path in KNOWN}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"0" * 100_001, 200, "more than 0 MB"),
        (b"no archive", 200, "the archive is damaged"),
        (packed(TILES)[:-30], 200, "the archive is damaged"),
        (b"", 404, "cannot be fetched"),
    ],
)
def test_what_cannot_be_fetched_is_one_clear_error(served, tmp_path, body, status, message):
    answers, _, host = served
    answers.update(body=body, status=status)
    with pytest.raises(fetch_data.FetchError, match=message):
        fetch_data.main(tmp_path, ["tiles"], host)
    assert files_of(tmp_path) == set()


def test_only_https_is_fetched_from_elsewhere(tmp_path):
    for host in ("http://example.org", "file:///etc"):
        with pytest.raises(fetch_data.FetchError, match="only https"):
            fetch_data.main(tmp_path, ["tiles"], host)


def test_captions_are_joined_to_their_tiles_and_splits(tmp_path):
    with pytest.raises(fetch_data.FetchError, match="fetch `tiles` first"):
        fetch_data.write_captions(tmp_path)
    for cls in ("airplane", "beach"):
        (tmp_path / "sat/ucm" / cls).mkdir(parents=True)
    lists = tmp_path / "captions/ucm"
    lists.mkdir(parents=True)
    (lists / "train_filename.txt").write_text("48.tif\n101.tif\n")
    (lists / "train_caps.txt").write_text("".join(f"A plane  number {n} .\n" for n in range(10)))
    (lists / "test_filename.txt").write_text("102.tif\n" * 5)
    (lists / "test_caps.txt").write_text("Sand .\n" * 5)
    (lists / "val_filename.txt").write_text("101.tif\n")
    fetch_data.write_captions(tmp_path)
    images = json.loads((tmp_path / "captions/ucm_captions.json").read_text())["images"]
    assert [(one["file"], one["split"], one["suspect"]) for one in images] == [
        ("sat/ucm/airplane/airplane47.jpg", "train", True),
        ("sat/ucm/beach/beach00.jpg", "val", False),
        ("sat/ucm/beach/beach01.jpg", "test", False),
    ]
    assert images[1]["captions"] == [f"A plane number {n}." for n in range(5, 10)]


@pytest.mark.slow
def test_a_stand_in_has_what_both_examples_read_and_says_so(tmp_path, capsys):
    import make_manifests
    import stand_in
    import yaml

    from geobind.recipe import load_recipe

    data = tmp_path / "data"
    stand_in.main(data, places=60, held_out=30)
    assert "say nothing about real places" in capsys.readouterr().out
    make_manifests.main(data, tmp_path / "manifests", 0)
    assert "a stand-in, not real data" in capsys.readouterr().out
    table = (tmp_path / "manifests/evaluate.csv").read_text()
    for concept in make_manifests.CONCEPTS:
        assert f",{concept}," in table
    images = json.loads((data / "captions/ucm_captions.json").read_text())["images"]
    assert {one["split"] for one in images} == {"train", "val", "test"}
    assert all((data / one["file"]).is_file() and len(one["captions"]) == 5 for one in images)
    for example in ("ucm", "real_data"):
        text = (EXAMPLES / example / "recipe.yaml").read_text()
        named = [line.split("./data/")[1].split()[0] for line in text.splitlines() if "./data/" in line]
        assert named and all((data / name).is_file() for name in named)
        (tmp_path / f"{example}.yaml").write_text(text)
        checked = load_recipe(tmp_path / f"{example}.yaml", files=False)
        assert checked.name == yaml.safe_load(text)["name"]
    with pytest.raises(SystemExit, match="is not empty"):
        stand_in.main(data)
