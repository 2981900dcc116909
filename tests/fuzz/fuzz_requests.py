"""Requests of strangers to the page's server: damaged uploads, queries, addresses and heads, over a socket.

    PYTHONPATH=tests/helpers python tests/fuzz/fuzz_requests.py [10000] [--from 0]

An answer is a refusal or a result: no status of 500 or above but 503, no path of this machine, no stack.
"""

import argparse
import io
import json
import random
import re
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import served
import soundfile
from PIL import Image

NAMES = ("text", "audio", "satellite", "ground_image", "spot", "smell", "", "../x", "%2e%2e", "a" * 200)
NUMBERS = ("0", "-1", "1e999", "nan", "NaN", "Infinity", "9" * 400, "9" * 5000, "0x1", "1.5", "٣", "", "null")
WORDS = (
    "/etc/passwd",
    "file:///etc/passwd",
    "scene.tif",
    "\\\\host\\share",
    "a wood",
    "\0",
    "\ud83c",
    "é" * 50,
)
PATHS = (
    "/", "/page/{}", "/api/about", "/api/row/{}", "/api/row/{}/picture/{}", "/api/here?lat={}&lon={}",
    "/api/map/{}/{}/{}/{}", "/api/map/{}.tif", "/api/nearest/{}.geojson", "/api/scene/{}/{}/{}", "/{}",
)  # fmt: skip


def seeds():
    """Files that a modality reads, to be damaged."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    found = [served.make_sound(1, 4000)]
    for kind in ("FLAC", "OGG"):
        file = io.BytesIO()
        soundfile.write(file, np.zeros(2000), 8000, format=kind)
        found.append(file.getvalue())
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        found.append(file.getvalue())
    return [*found, b"", b"\0" * 1000, b"PK\3\4", b"%PDF-1.4", b"#!/bin/sh", b"/etc/passwd", b"a wood"]


def damage(draw, content):
    """Flip, cut, repeat or insert some bytes."""
    content = bytearray(content)
    for _ in range(draw.choice((0, 1, 1, 2, 5, 30))):
        at = draw.randrange(len(content) + 1)
        match draw.randrange(4):
            case 0 if content:
                content[at % len(content)] = draw.randrange(256)
            case 1:
                del content[at : at + draw.choice((1, 4, 100))]
            case 2:
                content[at:at] = draw.randbytes(draw.choice((1, 4, 20)))
            case _:
                content[at:at] = content[at : at + 64]
    return bytes(content[:200_000])


def any_value(draw, depth=0):
    pool = [None, True, 0, -1, 1e308, 10**400, "", *WORDS[:5], "A" * 342, [], {}, [1, 2], [40.0, 3.0]]
    if depth < 3 and draw.random() < 0.3:
        return [any_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return draw.choice(pool)


def make_query(draw):
    """A query with some parts that are right and some that are not."""
    right = ({"modality": "text", "text": "snow"}, {"modality": "spot", "place": [40, 3], "weight": -0.5})
    if draw.random() < 0.25:
        return json.dumps({"parts": [draw.choice(right) for _ in range(draw.choice((1, 2, 12)))]}).encode()
    parts = []
    for _ in range(draw.choice((0, 1, 1, 2, 3, 13))):
        part = {"modality": draw.choice(NAMES), "weight": draw.choice((1, -1, 0.5, 0, 7, "x", None))}
        part[draw.choice(("text", "place", "embedding", "more"))] = any_value(draw)
        part |= (
            {draw.choice(("text", "place", "weight", "modality")): any_value(draw)}
            if draw.random() < 0.2
            else {}
        )
        parts.append({key: value for key, value in part.items() if draw.random() < 0.9})
    query = {"parts": parts if draw.random() < 0.9 else any_value(draw)}
    query |= {"k": draw.choice((1, 24, 0, -1, 201, "x", 1e9))} if draw.random() < 0.3 else {}
    body = json.dumps(query).encode()
    return damage(draw, body) if draw.random() < 0.3 else body


def make_request(draw, files):
    """The bytes of a request."""
    kind = draw.random()
    method, headers = "GET", [("Host", "localhost")]
    body = b""
    if kind < 0.35:
        method, path = "POST", f"/api/embed/{draw.choice(NAMES)}"
        body = damage(draw, draw.choice(files))
    elif kind < 0.7:
        method, path, body = "POST", "/api/query", make_query(draw)
    else:
        path = draw.choice(PATHS)
        words = [
            draw.choice((*NUMBERS, *NAMES, "12", "3", "..", "%00", "%ff", "a b"))
            for _ in range(path.count("{}"))
        ]
        path = path.format(*words)
        method = draw.choice(("GET", "GET", "GET", "HEAD", "POST", "PUT", "OPTIONS"))
    if body or draw.random() < 0.1:
        length = len(body) if draw.random() < 0.95 else draw.choice((0, -1, len(body) // 2, "x", 10**30))
        headers.append(("Content-Length", length))
    if draw.random() < 0.15:
        names = ("Host", "Origin", "Range", "Accept-Encoding", "If-None-Match", "Expect", "Upgrade", "X\0")
        headers.append(
            (draw.choice(names), draw.choice(("gzip", "evil.example", "bytes=0-", "*", "x" * 9000, "\xff")))
        )
    headers.append(("Connection", "close"))
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    head = "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n"
    return damage(draw, head + body) if draw.random() < 0.05 else head + body


def send(port, content):
    """Return the answer."""
    found = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(content)
            while piece := client.recv(1 << 16):
                found += piece
    except OSError:
        pass
    return found


def find_fault(answer, folder):
    """Why an answer is wrong; None if it is right."""
    if not answer:
        return None  # the connection was closed: no request in HTTP
    status = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    if not status:
        return "no status"
    if int(status[1]) >= 500 and status[1] != b"503":
        return f"status {status[1].decode()}"
    body = answer.partition(b"\r\n\r\n")[2]
    for word in (str(folder).encode(), b"Traceback", b"site-packages", b"root:x:"):
        if word in body:
            return f"discloses {word.decode()}"
    return None


def fuzz(server, folder, numbers, show=print):
    """Send these requests; return how often each status came, and the faults."""
    files, statuses, faults = seeds(), Counter(), []
    for number in numbers:
        content = make_request(random.Random(number), files)
        answer = send(server.port, content)
        statuses[answer[9:12].decode() or "closed"] += 1
        if fault := find_fault(answer, folder):
            faults.append((number, fault, content[:300]))
            show(number, fault, content[:300])
    return statuses, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    parser.add_argument("--from", dest="start", type=int, default=0)
    chosen = parser.parse_args()
    binder = served.make_binder()
    with tempfile.TemporaryDirectory() as home:
        folder = served.write_world(Path(home), binder)
        # A damaged head may leave the server waiting for the rest.
        limits = {"pause_s": 0.5, "header_s": 1.0}
        with served.Served(served.make_explorer(folder, binder), **limits) as server:
            statuses, faults = fuzz(server, folder, range(chosen.start, chosen.start + chosen.count))
            alive = server.ask("/api/about")[0] == 200
    print(dict(sorted(statuses.items())), f"{len(faults)} faults", "alive" if alive else "dead")
    return 1 if faults or not alive else 0


if __name__ == "__main__":
    sys.exit(main())
