"""Read WebDataset shards: tar files whose members belong together when they share a name up to its first dot.

Nothing is extracted: a member's name is never a path on this machine, and its bytes stay in memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from geobind.errors import DataError

MAX_MEMBER = 256 * 1024**2  # bytes
SUFFIXES = (".tar", ".tar.gz", ".tgz")


class Sample(NamedTuple):
    """The members of a shard that share a name."""

    key: str
    members: dict[str, bytes]  # by what follows the first dot, lower-case: `overhead.jpg`


def shards_in(sources: tuple[Path, ...]) -> list[Path]:
    """The shards given, and those in the folders given (at any depth), in order of their names."""
    found: list[Path] = []
    for source in sources:
        inside = sorted(path for path in source.rglob("*") if path.name.endswith(SUFFIXES))
        found += inside if source.is_dir() else [source]
    return found


def read_shard(path: Path, wanted: frozenset[str], max_member: int = MAX_MEMBER) -> Iterator[Sample]:
    """Yield the samples of a shard in order.

    Args:
        path: The shard, a tar file, perhaps compressed with gzip.
        wanted: What follows the first dot in the names of the members to read; of others there is a name,
            with no bytes.
        max_member: Most bytes that a wanted member may have.

    Raises:
        DataError: The file is damaged, or holds a link, a device, a name that leads out of the archive, a
            member twice, or one that is too large.
    """
    key, members = "", dict[str, bytes]()
    try:
        # Streaming: an index of a shard of a hundred thousand members would be read for nothing.
        with tarfile.open(path, "r|gz" if path.name.endswith(SUFFIXES[1:]) else "r|") as archive:
            for member in archive:
                if member.isdir():
                    continue
                its_key, extension = _parts(member, path)
                if its_key != key:
                    if members:
                        yield Sample(key, members)
                    key, members = its_key, {}
                if extension in members:
                    raise DataError(f"{path}: '{key}' has '{extension}' twice")
                if extension in wanted and member.size > max_member:
                    raise DataError(
                        f"{path}: {member.name}: {member.size} bytes, more than the {max_member} allowed"
                    )
                members[extension] = _content(archive, member, path) if extension in wanted else b""
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else every header is kept
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        after = f" after '{key}'" if key else ""
        raise DataError(f"{path}: not a tar file that can be read{after}: {error}") from error
    if members:
        yield Sample(key, members)


def _parts(member: tarfile.TarInfo, path: Path) -> tuple[str, str]:
    """A member's key and extension."""
    if not member.isreg():
        raise DataError(f"{path}: {member.name}: is a link or a device; shards hold plain files")
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise DataError(f"{path}: {member.name}: leads out of the archive")
    stem, _, extension = name.name.partition(".")
    return str(name.with_name(stem)) if stem else name.name, extension.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    file = archive.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise DataError(f"{path}: {member.name}: is cut short ({len(content)} of {member.size} bytes)")
    return content
