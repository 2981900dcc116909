"""The addresses of the page over a real socket: their answers, what they never answer, clients that stall."""

import contextlib
import gzip
import json
import re
import socket
import time
from pathlib import Path

import pytest
import served

from geobind.serving import app

PATHS = re.compile(r"(/\w+){2,}|[A-Z]:\\")


def tile_of(explorer):
    """The address of a tile in the middle of the archive."""
    tile, _, _ = served.address_of(explorer.archive.lat_N[44], explorer.archive.lon_N[44], 12)
    return f"{tile.z}/{tile.x}/{tile.y}"


def told(answer):
    """The sentence of a refusal, which names nothing of this machine."""
    status, headers, body = answer
    message = json.loads(body)["error"]
    assert status >= 400 and headers["content-type"].startswith("application/json")
    assert not PATHS.search(message) and "Traceback" not in message and "b'" not in message
    return message


def test_the_page_needs_only_its_own_files(server):
    status, headers, html = server.ask("/")
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(rb'(?:src|href)="([^"#]+)"', html)
    assert named and all(not re.match(rb"(\w+:)?//", name) for name in named)
    for name in named:
        assert server.ask("/" + name.decode())[0] == 200


def test_files_are_packed_and_not_sent_twice(server):
    _, headers, packed = server.ask("/page/page.js", headers={"accept-encoding": "gzip"})
    status, plain_headers, plain = server.ask("/page/page.js")
    assert status == 200 and gzip.decompress(packed) == plain and len(packed) < len(plain)
    assert "content-encoding" not in plain_headers
    status, _, body = server.ask("/page/page.js", headers={"if-none-match": headers["etag"]})
    assert (status, body) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/%2e%2e%2fapp.py",
        "/page/..%5capp.py",
        "/page//etc/passwd",
        "/page/app.py",
        "/page/",
        "/../../etc/passwd",
        "//etc/passwd",
        "/page/page.js%00.html",
        "/docs",
        "/api/about/",
        "/openapi.json",
        "/api/map/../../../etc/passwd/0/0/0",
    ],
)
def test_no_other_file_is_served(server, path):
    status, headers, body = server.ask(path)
    assert status in (404, 422)
    assert b"root:" not in body and b"import" not in body
    assert headers["content-security-policy"].startswith("default-src 'none'")


def test_a_page_is_small(server):
    sent = sum(len(file.packed) for name, file in app.read_page().items())
    assert sent < 600_000
    assert {"page.js", "maplibre-gl.mjs", "maplibre-gl.LICENSE.txt"} <= set(app.read_page())


def test_the_page_learns_what_it_may_ask(server):
    about = json.loads(server.ask("/api/about")[2])
    assert {one["name"]: one["widget"] for one in about["modalities"]} == {
        "text": "text",
        "audio": "sound",
        "satellite": "image",
        "ground_image": "image",
        "spot": "place",
    }
    assert about["archive"] == {**about["archive"], "name": "scene", "rows": 88, "mapped": True}
    assert about["banks"] == ["audio", "text"]
    west, south, east, north = about["extent"]
    assert 2.9 < west < east < 3.1 and 40.6 < south < north < 40.7


def test_a_query_of_words_a_sound_and_a_place(server, explorer):
    status, _, body = server.ask("/api/embed/audio", served.make_sound())
    assert status == 200
    status, found = server.query(
        {"modality": "text", "text": "snow"},
        {"modality": "audio", "embedding": json.loads(body)["embedding"], "weight": -0.5},
        {"modality": "spot", "place": [40.0, 3.0], "weight": 0.2},
        k=7,
    )
    assert status == 200 and len(found["nearest"]) == 7
    values = [one["similarity"] for one in found["nearest"]]
    assert values == sorted(values, reverse=True) and found["low"] < found["high"]
    assert server.ask(f"/api/map/{found['name']}/5/0/0")[0] == 204
    status, headers, _ = server.ask(f"/api/map/{found['name']}/{tile_of(explorer)}")
    assert status == 200 and headers["content-type"] == "image/png"


def test_scene_pictures_and_places_are_answered(server, explorer):
    lat, lon = float(explorer.archive.lat_N[5]), float(explorer.archive.lon_N[5])
    here = json.loads(server.ask(f"/api/here?lat={lat}&lon={lon}")[2])
    assert here["row"] == 5 and here["banks"][0]["items"]
    assert json.loads(server.ask("/api/row/5")[2]) == here
    assert json.loads(server.ask("/api/here?lat=0&lon=0")[2]) == {"row": None}
    assert server.ask("/api/row/5/picture/160")[1]["content-type"] in ("image/jpeg", "image/png")
    assert server.ask(f"/api/scene/{tile_of(explorer)}")[0] == 200
    assert server.ask("/api/scene/12/0/0")[0] == 204


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/embed/audio", b"", 422),
        ("/api/embed/audio", b"\0" * 3_000_000, 422),
        ("/api/embed/satellite", b"/etc/passwd", 422),
        ("/api/embed/text", b"/etc/passwd", 422),
        ("/api/embed/smell", b"x", 404),
        ("/api/query", b"", 422),
        ("/api/query", b"{", 422),
        ("/api/query", b"[1]", 422),
        ("/api/query", b'{"parts": []}', 422),
        ("/api/query", b'{"parts": [{"modality": "text", "text": "x", "weight": NaN}]}', 422),
        ("/api/query", b'{"parts": [{"modality": "text", "text": "x", "weight": "abc"}]}', 422),
        ("/api/query", b'{"parts": [{"modality": "text", "text": "x", "weight": 1e999}]}', 422),
        ("/api/query", b'{"parts": [{"modality": "satellite", "text": "/etc/passwd"}]}', 422),
        ("/api/query", b'{"parts": [{"modality": "text", "text": "x", "more": 1}]}', 422),
        ("/api/query", b'{"parts": ' + b"[" * 100_000, 422),
        ("/api/query", b"\xff\xfe", 422),
        ("/api/query", b"x" * 300_000, 413),
        ("/api/about", b"x", 413),
        ("/api/about", b"", 405),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(server, path, body, status):
    answer = server.ask(path, body)
    assert answer[0] == status, answer
    assert "passwd" not in told(answer)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/here?lat=x&lon=1", 422),
        ("/api/here?lat=nan&lon=1", 422),
        ("/api/here", 422),
        ("/api/row/99999", 404),
        ("/api/row/-1", 404),
        ("/api/row/" + "9" * 5000, 422),
        ("/api/row/1/picture/99", 404),
        ("/api/map/none/0/0/0", 404),
        ("/api/map/none/0/0/x", 422),
        ("/api/scene/99/0/0", 422),
        ("/nothing", 404),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(server, path, status):
    answer = server.ask(path)
    assert answer[0] == status, answer
    told(answer)


def test_an_upload_beyond_the_limit_is_refused_before_it_is_sent(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(
            b"POST /api/embed/audio HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 413")


def test_an_upload_without_a_length_is_counted(explorer):
    head = b"POST /api/embed/audio HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    piece = b"64\r\n" + b"x" * 100 + b"\r\n"
    with served.Served(explorer, upload_bytes=1000) as server:
        assert server.raw(head + piece * 11).startswith(b"HTTP/1.1 413")
        assert server.raw(head + piece * 10 + b"0\r\n\r\n").startswith(b"HTTP/1.1 422")


def test_a_fault_of_ours_is_one_sentence_and_goes_to_the_log(explorer, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("the secret of /home/me")

    with served.Served(explorer) as server:
        monkeypatch.setattr(explorer, "look", fail)
        status, _, body = server.ask("/api/row/1")
    assert status == 500 and "secret" not in told((status, {"content-type": "application/json"}, body))
    assert "secret" in caplog.text


def test_a_raster_that_breaks_while_it_is_served_discloses_no_path(explorer, monkeypatch):
    from geobind.errors import DataError

    def fail(*_):
        raise DataError("/home/me/scene.tif: damaged")

    with served.Served(explorer) as server:
        monkeypatch.setattr(explorer.scene, "draw_tile", fail)
        assert told(server.ask("/api/scene/1/0/0")) == "this cannot be read or drawn"


# Clients that stall


def stall(port, content, count):
    """So many connections that send this and then nothing."""
    stack = contextlib.ExitStack()
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        client.sendall(content)
    return stack


@pytest.mark.parametrize("content", [served.UPLOAD, b"", b"GET / HTTP/1.1\r\nHos", served.UPLOAD[:70]])
def test_clients_that_stall_do_not_block_others_and_are_closed(explorer, content):
    limits = {"pause_s": 1.0, "header_s": 1.0, "connections": 64}
    with served.Served(explorer, **limits) as server, stall(server.port, content, 60):
        assert server.ask("/api/about", timeout=5)[0] == 200
        assert server.query({"modality": "text", "text": "snow"})[0] == 200
        end = time.monotonic() + 10
        while server.server.server_state.connections and time.monotonic() < end:
            time.sleep(0.1)
        assert len(server.server.server_state.connections) <= 1  # the one just answered


def test_more_connections_than_allowed_are_told_to_come_back(explorer):
    with served.Served(explorer, connections=8, header_s=60.0) as server, stall(server.port, b"", 8):
        assert server.ask("/", timeout=5)[0] == 503
    with served.Served(explorer, connections=8) as server:
        assert server.ask("/", timeout=5)[0] == 200


def test_a_client_that_does_not_read_its_answer_is_closed(explorer, monkeypatch):
    monkeypatch.setitem(
        app.read_page(), "huge.txt", app._PageFile(b"x" * 50_000_000, b"", "text/plain", '"x"')
    )
    with served.Served(explorer, request_s=1.0, header_s=1.0) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall(b"GET /page/huge.txt HTTP/1.1\r\nHost: localhost\r\n\r\n")
            time.sleep(0.2)
            assert server.server.server_state.connections
            end = time.monotonic() + 10
            while server.server.server_state.connections and time.monotonic() < end:
                time.sleep(0.1)
            assert not server.server.server_state.connections


def test_the_vendored_library_is_the_published_one():
    """The files are those of the npm package maplibre-gl 6.17.0, unchanged; its licence lies beside them."""
    import hashlib

    folder = Path(app.__file__).parent / "page"
    digests = {
        "maplibre-gl.mjs": "e02cb08c572fd0950a75343cd558099c",
        "maplibre-gl-worker.mjs": "73d7a024a4efe1a46e49db193e18cfe3",
        "maplibre-gl.css": "a90798a1953017790e590f7e1bd35ff1",
        "maplibre-gl.LICENSE.txt": "ee5fc05a0677eaf69601d2c7db0d9ecd",
    }
    assert {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:32] for name in digests
    } == digests


def test_small_answers_do_not_wait_for_the_network_to_confirm(server):
    held = {}
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
        client.sendall(b"GET /api/about HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.recv(10)
        for connection in list(server.server.server_state.connections):
            there = connection.transport.get_extra_info("socket")
            held[there.getpeername()] = there.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert held[client.getsockname()]
