"""`geobind serve`."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geobind.cli.options import Compute, bundle_option, compute_options
from geobind.cli.search import archive_argument, find_inputs, inputs_options
from geobind.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from geobind.archive import Archive
    from geobind.binder import Binder

_log = logging.getLogger(__name__)
_FOLDER = click.Path(path_type=Path)


@click.command("serve")
@archive_argument
@bundle_option
@click.option("--raster", type=_FOLDER, help="The raster it was made of, to see and to cut pictures from.")
@click.option(
    "--bank",
    "banks",
    type=_FOLDER,
    multiple=True,
    help="A folder of sounds or photos, or a file with a text on each line, to describe places with; "
    "repeatable, each with its --as.",
)
@click.option("--as", "names", multiple=True, metavar="MODALITY", help="What a bank is of; repeatable.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="0: any free one."
)
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="A further name that browsers may call the server by, such as that of a proxy; repeatable.",
)
@click.option(
    "--view",
    type=_FOLDER,
    help="Folder for a copy of the raster with overviews, if it has none; default: beside the archive.",
)
@inputs_options
@compute_options(workers=True)
def serve_command(
    archive: Path,
    bundle: str,
    raster: Path | None,
    banks: tuple[Path, ...],
    names: tuple[str, ...],
    host: str,
    port: int,
    allowed: tuple[str, ...],
    view: Path | None,
    data: str | None,
    columns: tuple[str, ...],
    root: Path | None,
    compute: Compute,
) -> None:
    """Explore ARCHIVE in a browser: by words, sounds, pictures, numbers and places.

    The page needs no network. It is served to this machine alone unless --host says otherwise.
    """
    from geobind.archive import Archive
    from geobind.extras import INSTALL, find_missing

    needed = ["fastapi", "uvicorn", *(["rasterio"] if raster else [])]
    for fault in find_missing({module: INSTALL[module] for module in needed}):
        raise DataError(f"geobind serve {fault}")
    if len(banks) != len(names):
        raise DataError(f"{len(banks)} of --bank and {len(names)} of --as; give one --as for each --bank")
    with _listen(host, port) as listening:
        binder = compute.load(bundle)
        opened = Archive.open(archive, binder)
        show = None if data is None else find_inputs(opened, binder, bundle, data, columns, root)
        named = dict(zip(names, banks, strict=True))
        _serve(opened, binder, raster, show, named, listening, allowed, view)


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that a port in use is found before anything is loaded.

    Raises:
        DataError: The address is none of this machine's, or the port is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot listen at {host}, port {port}: {reason}; give another --port or --host"
        ) from error


def _serve(
    archive: Archive,
    binder: Binder,
    raster: Path | None,
    show: Callable[[str], Any] | None,
    banks: dict[str, Path],
    listening: socket.socket,
    allowed: tuple[str, ...],
    view: Path | None,
) -> None:
    import uvicorn

    from geobind.serving.app import build_app, configure_server
    from geobind.serving.explorer import Explorer, load_bank
    from geobind.serving.limits import LOOPBACK, Limits
    from geobind.serving.tiles import SceneRaster

    scene = None
    if raster is not None:
        scene = SceneRaster.of_archive(
            raster, archive.metadata, folder=view or archive.path.absolute().parent
        )
    limits = Limits()
    loaded = [load_bank(binder, name, bank) for name, bank in banks.items()]
    explorer = Explorer(binder, archive, scene, loaded, limits, show)
    explorer.warm_up()
    host, port = listening.getsockname()[:2]
    app = build_app(explorer, (*LOOPBACK, host, *allowed), limits)
    if host not in LOOPBACK:
        _log.warning("whoever can reach %s, port %d, can use this page; it asks for no password", host, port)
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"http://{shown}:{port}/ shows {len(archive):,} of {archive.modality}; Ctrl-C ends it")
    uvicorn.Server(configure_server(app, limits)).run(sockets=[listening])
