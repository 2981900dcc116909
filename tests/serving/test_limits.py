"""Limits of a server: who may ask, how large, how slowly, how many at a time, and what an error discloses."""

import asyncio
import json
import threading

import pytest

from geobind.errors import DataError
from geobind.serving.limits import Busy, Gate, Guard, Limits, Refusal, describe_to_client, host_name

HOSTS = ("127.0.0.1", "localhost", "::1")


async def echo(scope, receive, send):
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


async def answer(guard, pieces=(b"",), *, method="POST", path="/", delay=0.0, **headers):
    """Status, headers and body that a guarded application answers."""
    queue, sent = list(pieces), []

    async def receive():
        await asyncio.sleep(delay)
        if not queue:
            return {"type": "http.disconnect"}
        piece = queue.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(queue)}

    async def send(message):
        sent.append(message)

    headers = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await guard({"type": "http", "method": method, "path": path, "headers": pairs}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def ask(pieces=(b"",), *, app=echo, limits=None, most=100, guard=None, **more):
    guard = guard or Guard(app, HOSTS, lambda path: most, limits or Limits())
    return asyncio.run(answer(guard, pieces, **more))


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:8765", "localhost"),
        ("[::1]:80", "::1"),
        ("evil.example", "evil.example"),
        ("localhost@evil.example", ""),
        ("localhost:8765:1", ""),
        ("localhost/", ""),
        ("", ""),
    ],
)
def test_a_host_header_is_read_strictly(authority, host):
    assert host_name(authority) == host


def test_only_the_names_that_were_given_are_answered():
    assert ask(host="127.0.0.1:8765")[0] == 200
    for name in ("evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example"):
        status, _, body = ask(host=name)
        assert status == 400 and b"--allow-host" in body


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://[", "http://localhost.evil.example"]
)
def test_pages_of_other_sites_cannot_post(origin):
    assert ask(origin=origin)[0] == 403
    assert ask(origin="http://localhost:8765")[0] == 200


def test_other_methods_are_refused():
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(method=method)[0] == 405


def test_a_body_announced_too_large_is_refused_before_it_is_read():
    status, headers, _ = ask(pieces=[], content_length="101")
    assert status == 413
    assert headers[b"connection"] == b"close"


def test_a_body_without_a_length_is_counted_while_it_comes():
    assert ask([b"x" * 60, b"x" * 40])[2] == b"100"
    assert ask([b"x" * 60, b"x" * 41])[0] == 413


def test_a_get_has_no_body():
    assert ask([b"x"], method="GET")[0] == 413
    assert ask(method="GET")[0] == 200


def test_a_pause_in_a_body_ends_it():
    status, _, body = ask([b"a", b"b"], limits=Limits(pause_s=0.02), delay=0.2)
    assert status == 408 and b"in time" in body


def test_a_body_that_drips_for_ever_ends_too():
    assert ask([b"a"] * 90, limits=Limits(pause_s=0.1, body_s=0.2), delay=0.02)[0] == 408


def test_a_client_that_goes_away_calls_nothing():
    called = []

    async def app(scope, receive, send):
        called.append(scope)

    guard = Guard(app, HOSTS, lambda path: 10, Limits())
    assert ask(pieces=[], guard=guard)[0] == 400
    assert called == []


def test_bodies_of_all_clients_together_are_limited_and_given_back():
    limits = Limits(held_bytes=150)
    inside = []

    async def app(scope, receive, send):
        inside.append(guard.held)
        await asyncio.sleep(0.05)
        await echo(scope, receive, send)

    guard = Guard(app, HOSTS, lambda path: 100, limits)

    async def both():
        return await asyncio.gather(answer(guard, [b"x" * 100]), answer(guard, [b"x" * 100]))

    found = asyncio.run(both())
    assert sorted(status for status, _, _ in found) == [200, 503]
    assert next(headers for status, headers, _ in found if status == 503)[b"retry-after"] == b"2"
    assert inside == [100] and guard.held == 0
    assert ask([b"x" * 100], guard=guard)[0] == 200


def test_every_answer_has_the_headers_of_safety():
    for found in (ask(), ask(host="evil.example"), ask(method="PUT")):
        headers = found[1]
        assert headers[b"content-security-policy"].startswith(b"default-src 'none'")
        assert b"unsafe" not in headers[b"content-security-policy"]
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert headers[b"referrer-policy"] == b"no-referrer"


def test_more_calls_than_may_wait_are_told_to_come_back():
    async def many():
        gate, hold = Gate(1, 2, 5.0), threading.Event()
        calls = [asyncio.create_task(gate.run(hold.wait, 5)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as busy:
            await gate.run(int)
        hold.set()
        assert await asyncio.gather(*calls) == [True] * 3
        await asyncio.sleep(0.05)
        assert await gate.run(int) == 0
        return busy.value.status

    assert asyncio.run(many()) == 503


def test_a_call_that_takes_too_long_is_answered_and_those_behind_it_are_not_begun():
    async def slow():
        gate, hold, begun = Gate(1, 2, 0.1), threading.Event(), []
        first = asyncio.create_task(gate.run(hold.wait, 5))
        second = asyncio.create_task(gate.run(begun.append, 1))
        for call in (first, second):
            with pytest.raises(Busy):
                await call
        with pytest.raises(Busy):  # the first still has the thread
            await asyncio.gather(*(gate.run(int) for _ in range(3)))
        hold.set()
        await asyncio.sleep(0.1)
        return begun, await gate.run(int)

    assert asyncio.run(slow()) == ([], 0)


def test_an_error_of_the_call_itself_comes_through():
    def fail():
        raise Refusal(422, "no")

    with pytest.raises(Refusal, match="no"):
        asyncio.run(Gate(1, 1, 1.0).run(fail))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("input 0 of modality 'audio': the file: no sound", "the file: no sound"),
        ("input 0 of modality 'audio': the file: see /home/me/model/weights.bin", "the file: see ..."),
        (r"the file: see C:\Users\me\model.bin, please", "the file: see ..., please"),
        ("the file: it begins with b'root:x:0:0:\\'' here", "the file: it begins with ... here"),
        ("/srv/product.tif: damaged", "the file: cannot be used"),
        ("the file: two\nlines", "the file: two lines"),
    ],
)
def test_a_client_is_told_nothing_of_this_machine(message, told):
    assert describe_to_client(DataError(message), "the file") == told


def test_what_a_client_is_told_is_short():
    assert len(describe_to_client(DataError("the file: " + "x" * 10_000), "the file")) == 300


def test_a_refusal_is_json():
    assert json.loads(ask(method="PUT")[2]) == {"error": "only GET, HEAD and POST are answered"}
