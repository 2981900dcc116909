"""The application: the page's addresses, and the server that answers them."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import logging
import socket
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from geobind.errors import GeobindError
from geobind.serving.explorer import Explorer, QueryAnswer, QueryRequest
from geobind.serving.limits import LOOPBACK, App, Gate, Guard, Limits, Refusal
from geobind.serving.tiles import TileAddress, TilePicture

_log = logging.getLogger(__name__)

_KINDS = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_CROPS = (80, 160, 320, 640)  # sides in pixels of the pictures of rows
_TILE_THREADS = 2


class _PageFile(NamedTuple):
    content: bytes
    packed: bytes  # gzip
    kind: str
    tag: str


@cache
def read_page() -> Mapping[str, _PageFile]:
    """Return the files of the page by name; no other file is ever read for a client."""
    found: dict[str, _PageFile] = {}
    for file in files("geobind.serving").joinpath("page").iterdir():
        kind = _KINDS.get(file.name.rpartition(".")[2])
        if kind is not None and file.is_file():
            content = file.read_bytes()
            tag = '"' + hashlib.sha256(content).hexdigest()[:16] + '"'
            found[file.name] = _PageFile(content, gzip.compress(content, 6, mtime=0), kind, tag)
    return found


def body_limit(limits: Limits, path: str) -> int:
    """Return how many bytes a POST to a path may carry."""
    if path.startswith("/api/embed/"):
        return limits.upload_bytes
    return limits.query_bytes if path == "/api/query" else 0


def build_app(explorer: Explorer, hosts: Iterable[str] = LOOPBACK, limits: Limits | None = None) -> App:
    """Build the application that answers a page's questions.

    Args:
        explorer: Answers them.
        hosts: Names by which clients may call the server.
        limits: The limits.
    """
    limits = limits or Limits()
    # No pages that load scripts from elsewhere, and no redirects, which would not know a proxy's path.
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    model = Gate(1, limits.waiting, limits.call_s)
    drawing = Gate(_TILE_THREADS, limits.waiting * 8, limits.call_s)
    _add_errors(app)
    page = read_page()

    @app.get("/")
    async def index(request: Request) -> Response:
        return _send_file(request, page["index.html"])

    @app.get("/page/{name}")
    async def static(request: Request, name: str) -> Response:
        if name not in page:
            raise Refusal(404, "there is no such file")
        return _send_file(request, page[name])

    @app.get("/api/about")
    async def about() -> Response:
        return _send_json(explorer.describe())

    @app.post("/api/embed/{modality}")
    async def embed(request: Request, modality: str) -> Response:
        content = await request.body()
        if not content:
            raise Refusal(422, "the file is empty")
        return _send_json({"embedding": await model.run(explorer.embed, modality, content)})

    @app.post("/api/query")
    async def query(request: Request) -> Response:
        try:
            asked = QueryRequest.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            where = ".".join(str(step)[:40] for step in first["loc"][:4])
            raise Refusal(422, f"the query cannot be read: {where}: {first['msg'][:100]}") from None
        return _send_json(_describe_answer(explorer, await model.run(explorer.ask, asked)))

    @app.get("/api/map/{name}/{z}/{x}/{y}")
    async def map_tile(name: str, z: int, x: int, y: int) -> Response:
        tile = TileAddress(z, x, y)
        return _send_picture(await drawing.run(explorer.paint_tile, name, tile))

    @app.get("/api/map/{name}.tif")
    async def map_file(name: str) -> Response:
        content = await drawing.run(explorer.write_map, name)
        return _send_download(content, "image/tiff; application=geotiff; profile=cloud-optimized", "map.tif")

    @app.get("/api/nearest/{name}.geojson")
    async def nearest_file(name: str) -> Response:
        found = await drawing.run(explorer.list_nearest, name)
        content = json.dumps(found, allow_nan=False).encode()
        return _send_download(content, "application/geo+json", "nearest.geojson")

    @app.get("/api/scene/{z}/{x}/{y}")
    async def scene_tile(z: int, x: int, y: int) -> Response:
        if explorer.scene is None:
            raise Refusal(404, "there is no scene")
        return _send_picture(await drawing.run(explorer.scene.draw_tile, TileAddress(z, x, y)))

    @app.get("/api/row/{row}")
    async def row_facts(row: int) -> Response:
        return _send_json(await drawing.run(explorer.look, row))

    @app.get("/api/row/{row}/picture/{side}")
    async def row_picture(row: int, side: int) -> Response:
        if side not in _CROPS:
            raise Refusal(404, "there is no picture of that size")
        return _send_picture(await drawing.run(explorer.draw_row, row, side))

    @app.get("/api/here")
    async def here(lat: float, lon: float) -> Response:
        row = await drawing.run(explorer.find_row, lat, lon)
        return _send_json({"row": None} if row is None else await drawing.run(explorer.look, row))

    return Guard(app, hosts, lambda path: body_limit(limits, path), limits)  # pyright: ignore[reportArgumentType]


def _describe_answer(explorer: Explorer, answer: QueryAnswer) -> dict[str, Any]:
    return {
        "name": answer.name,
        "low": round(answer.low, 4),
        "high": round(answer.high, 4),
        "nearest": explorer.describe_rows(answer.nearest_K, answer.similarity_N),
    }


def _send_json(values: Any) -> Response:
    content = json.dumps(values, allow_nan=False, separators=(",", ":")).encode()
    return Response(content, media_type="application/json", headers={"cache-control": "no-store"})


def _send_picture(picture: TilePicture | None) -> Response:
    if picture is None:
        return Response(status_code=204, headers={"cache-control": "no-cache"})
    headers = {"cache-control": "private, max-age=3600"}
    return Response(picture.content, media_type=picture.kind, headers=headers)


def _send_download(content: bytes, kind: str, name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return Response(content, media_type=kind, headers=headers)


def _send_file(request: Request, file: _PageFile) -> Response:
    headers = {"etag": file.tag, "cache-control": "no-cache", "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    packed = "gzip" in request.headers.get("accept-encoding", "")
    if packed:
        headers["content-encoding"] = "gzip"
    return Response(file.packed if packed else file.content, media_type=file.kind, headers=headers)


def _add_errors(app: FastAPI) -> None:
    """Answer every error with one sentence that says nothing of this machine."""

    def answer(status: int, message: str) -> JSONResponse:
        headers = {"cache-control": "no-store", **({"retry-after": "2"} if status == 503 else {})}
        return JSONResponse({"error": message}, status, headers=headers)

    @app.exception_handler(Refusal)
    async def refuse(_: Request, error: Refusal) -> Response:
        return answer(error.status, str(error))

    @app.exception_handler(GeobindError)
    async def cannot(_: Request, error: GeobindError) -> Response:
        _log.warning("a request failed: %s", error)
        return answer(422, "this cannot be read or drawn")

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, __: RequestValidationError) -> Response:
        return answer(422, "a number in the address cannot be read")

    @app.exception_handler(HTTPException)
    async def missing(_: Request, error: HTTPException) -> Response:
        return answer(error.status_code, "there is nothing here" if error.status_code == 404 else "refused")

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        _log.error("a fault in %s %s", request.method, request.url.path, exc_info=error)
        return answer(500, "a fault of the server; its log says more")


# The server -------------------------------------------------------------------------------------------


def watch_connections(limits: Limits) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with deadlines: for a request to arrive, and for its answer to be read.

    Uvicorn has neither: a client that opens connections and sends part of a header would hold them for ever.
    """

    class WatchedProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            # An answer is written in two parts; the second would wait 40 ms for the first to be confirmed.
            # asyncio sets this option, but only of sockets that were made with the number of TCP.
            connection = transport.get_extra_info("socket")
            if connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._seen: object = self
            self._since = self.loop.time()
            self._watch = self.loop.call_later(1.0, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            self._watch.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            cycle: Any = self.cycle
            answering = cycle is not None and not cycle.response_complete
            state = (cycle, answering)
            if state != self._seen:
                self._seen, self._since = state, self.loop.time()
            allowed = limits.request_s if answering else limits.header_s
            if self.loop.time() - self._since > allowed:
                self.transport.abort()
            else:
                self._watch = self.loop.call_later(1.0, self._look)

    return WatchedProtocol


def configure_server(app: App, limits: Limits) -> uvicorn.Config:
    """Return uvicorn's configuration, with every limit that it knows set."""
    return uvicorn.Config(
        app,  # pyright: ignore[reportArgumentType]
        http=watch_connections(limits),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=16 * 1024,
    )
