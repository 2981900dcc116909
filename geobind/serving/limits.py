"""Limits of a server that strangers may reach: hosts, bodies, deadlines, waiting, and words of errors."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
T = TypeVar("T")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Nothing is loaded from elsewhere; `data:` are MapLibre's icons and media of banks, `blob:` recordings.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Limits:
    """Limits on what one client, and all of them together, can make a server spend."""

    upload_bytes: int = 20 * 1024**2  # a sound or an image
    query_bytes: int = 256 * 1024  # a query: words, places and vectors
    held_bytes: int = 160 * 1024**2  # bodies of all requests in progress
    text: int = 2000  # characters of a text
    parts: int = 12  # of a query
    queries: int = 64  # kept, the latest
    waiting: int = 8  # calls that wait for the model, and as many for reading of rasters by each thread
    call_s: float = 30.0  # a call of the model
    body_s: float = 30.0  # until a body has arrived
    pause_s: float = 5.0  # between two pieces of a body
    header_s: float = 5.0  # until a request has arrived after its connection was opened
    request_s: float = 120.0  # a request, its answer included
    connections: int = 256


class Refusal(Exception):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Busy(Refusal):
    """Too much is going on; the client may try again."""

    def __init__(self, message: str = "the server is busy; try again in a moment") -> None:
        super().__init__(503, message)


class Guard:
    """ASGI middleware: refuse foreign hosts and sites, take in bodies within limits, add headers of safety.

    A body is read whole before the application is called, counted while it arrives, so that a client that
    stalls holds a connection for some seconds and nothing else.

    Args:
        app: The application.
        hosts: Names by which clients may call this server: a page elsewhere whose name is made to point
            here (DNS rebinding) sends another.
        body_limit: Bytes that a request to a path may carry.
        limits: The limits.
    """

    def __init__(
        self, app: App, hosts: Iterable[str], body_limit: Callable[[str], int], limits: Limits
    ) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}
        self.body_limit = body_limit
        self.limits = limits
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def send_safely(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *_SAFE]
            await send(message)

        held = 0
        try:
            self._check(scope)
            body = bytearray()
            try:
                async with asyncio.timeout(self.limits.body_s):
                    async for piece in self._iter_body(scope, receive):
                        held += len(piece)
                        self._hold(len(piece))
                        body += piece
            except TimeoutError:
                raise Refusal(408, "the request did not arrive in time") from None
            await self.app(scope, _replay(bytes(body), receive), send_safely)
        except Refusal as refusal:
            if not started:
                await send_refusal(send_safely, refusal)
        finally:
            self.held -= held

    def _check(self, scope: Scope) -> None:
        """Raise for a request that comes from elsewhere or asks for what there is not."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if host_name(headers.get(b"host", "")) not in self.hosts:
            raise Refusal(400, "this server is not known by that name; --allow-host NAME adds one")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise Refusal(405, "only GET, HEAD and POST are answered")
        if scope["method"] == "POST":
            # A page elsewhere could make a visitor's browser send requests, though not read the answers.
            origin = headers.get(b"origin")
            if origin is not None and _origin_host(origin) not in self.hosts:
                raise Refusal(403, "requests from pages of other sites are refused")
        length = headers.get(b"content-length", "0")
        if not length.isdecimal():
            raise Refusal(400, "Content-Length must be a number")
        self._check_size(scope, int(length[:20]))

    def _check_size(self, scope: Scope, size: int) -> None:
        most = self.body_limit(scope["path"]) if scope["method"] == "POST" else 0
        if size > most:
            raise Refusal(413, f"a request here may have at most {most:,} bytes")

    async def _iter_body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        size, more = 0, True
        while more:
            async with asyncio.timeout(self.limits.pause_s):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the client has gone")
            piece = message.get("body", b"")
            size += len(piece)
            self._check_size(scope, size)
            yield piece
            more = message.get("more_body", False)

    def _hold(self, size: int) -> None:
        self.held += size
        if self.held > self.limits.held_bytes:
            raise Busy()


_SAFE = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, then what comes after it."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def send_refusal(send: Send, refusal: Refusal) -> None:
    """Send a refusal as JSON; the connection is closed, for the rest of a body may be on its way."""
    body = json.dumps({"error": str(refusal)}).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        "connection": "close",
        **({"retry-after": "2"} if refusal.status == 503 else {}),
    }
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def host_name(authority: str) -> str:
    """Return the host of `host`, `host:port` or `[v6]:port`, in lower case; empty if it is none."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?", authority)
    return (found[1] or found[2]).lower() if found else ""


def _origin_host(origin: str) -> str:
    try:
        return host_name(urlsplit(origin).netloc)
    except ValueError:
        return ""


class Gate:
    """Calls of blocking functions by few threads, with a bound on how many wait and for how long.

    Args:
        threads: Calls at a time.
        waiting: Calls that may wait for a thread.
        call_s: Seconds until the client of a call is told that the server is busy; the call itself cannot be
            stopped, and keeps its thread until it ends.
    """

    def __init__(self, threads: int, waiting: int, call_s: float) -> None:
        self._pool = ThreadPoolExecutor(threads, "geobind-serve")
        self._most = threads + waiting
        self._call_s = call_s
        self._inside = 0
        self._counting = threading.Lock()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function in a thread of this gate.

        Raises:
            Busy: Too many wait, or it takes too long.
        """
        with self._counting:
            if self._inside >= self._most:
                raise Busy()
            self._inside += 1
        deadline = time.monotonic() + self._call_s
        future = self._pool.submit(_unless_late, deadline, function, *args)
        future.add_done_callback(self._leave)
        try:
            async with asyncio.timeout(self._call_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Busy("this takes too long; the server is busy or the input is large") from None

    def _leave(self, _: object) -> None:
        with self._counting:  # called by the thread: to wake the loop for it would take longer
            self._inside -= 1


def _unless_late(deadline: float, function: Callable[..., T], *args: Any) -> T:
    if time.monotonic() > deadline:  # whoever asked has been answered
        raise TimeoutError
    return function(*args)


_INPUT = re.compile(r"^input \d+ of modality '[^']*': ")
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\:,;'\"()]+){2,}[/\\]?")
_BYTES = re.compile(r"\bb(['\"]).*?(?<!\\)\1")
_MOST = 300  # characters of a message


def describe_to_client(error: Exception, name: str) -> str:
    """Return what a client is told of an input that was refused: nothing of this machine, no bytes.

    Args:
        error: Why; its message may name files here, or quote them.
        name: What the input is called in the message.
    """
    message = _INPUT.sub("", str(error))
    if name not in message:  # not about the input: about something here
        return f"{name}: cannot be used"
    message = _BYTES.sub("...", _PATH.sub("...", message)).replace("\n", " ")
    return message if len(message) <= _MOST else message[: _MOST - 3] + "..."
