"""Fetch what can be fetched of the data of examples/ucm and examples/real_data: tiles, captions, photos.

    python fetch_data.py DATA tiles captions     # 57 MB, all that examples/ucm needs but the weights
    python fetch_data.py DATA photos             # 130 MB more, for examples/real_data

Each part is one commit of a public repository. Nothing is kept of a part unless every file is there with the
content that is known here. The terms are those of the sources, which are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

HOST = "https://codeload.github.com"
MAX_FILE_BYTES = 8_000_000  # of one file, unpacked
TIMEOUT_S = 60
_BLOCK = 1 << 20


class FetchError(Exception):
    """An error that a user can mend, or must know of."""


@dataclass(frozen=True)
class Archive:
    """Some files of one commit of a repository."""

    repository: str
    commit: str
    members: str  # pattern of paths in the repository
    target: str  # where a file goes, from the groups of `members`
    files: int
    digest: str  # of `digest_files`
    max_bytes: int  # of the archive


@dataclass(frozen=True)
class Part:
    """Files that a user asks for by one name."""

    archives: tuple[Archive, ...]
    folder: str  # below DATA; a part whose folder is there is not fetched again
    terms: str


PARTS: Mapping[str, Part] = {
    "tiles": Part(
        (
            Archive(
                "siddhant3c/GNR638_Assignment1",
                "e6ad4f752b24ba5051c4c3d9924dfc55478eef5a",
                r"data/(?:train|test)/(\w+)/(\w+\.jpg)",
                "sat/ucm/{0}/{1}",
                2100,
                "511ad51e9162371593bf5ec381260e9d471723e4bb22c24aad55b6bc94c801e9",
                60_000_000,
            ),
        ),
        "sat/ucm",
        "UC Merced Land Use (Yang and Newsam 2010), images of the USGS, public domain",
    ),
    "captions": Part(
        (
            Archive(
                "ZhanYang-nwpu/PE-RSITR",
                "db5fba3850cb82bddc644a24b48c3907f096ea2d",
                r"data/ucm_precomp/((?:train|test)_(?:caps|filename)\.txt)",
                "captions/ucm/{0}",
                4,
                "6b71250a949f1cb1d46272e8abe5f513d8b01f8ef664cecc4df2b375de378b03",
                30_000_000,
            ),
            Archive(
                "CQULab/JGDN",
                "0ecbf7bc93da8ca88677ae5fb1a1ae01f69da29b",
                r"data/ucm_precomp/(val_filename\.txt)",
                "captions/ucm/{0}",
                1,
                "f5f3654eb04e3e80b8215d29764a5a69cc5e9f4099ee37cdc6b6970d4f90016b",
                30_000_000,
            ),
        ),
        "captions/ucm",
        "UCM-captions (Qu et al. 2016), for research",
    ),
    "photos": Part(
        (
            Archive(
                "alex21th/MCV-M3-Project",
                "f44c6474d72362528c14650b04f3a13adc060a4c",
                r"data/MIT_split/(train|test)/(\w+)/([\w-]+\.jpg)",
                "ground/scene8/{1}/{0}_{2}",
                2688,
                "30369884a526cbf7c6647026122bdcc7b454f5055fb911cc234e80d9cfb9393d",
                200_000_000,
            ),
        ),
        "ground/scene8",
        "eight scene categories of Oliva and Torralba (2001), for research",
    ),
}
# Tiles whose captions are those of another tile.
SUSPECT = frozenset(
    "airplane47 airplane88 denseresidential05 denseresidential06 denseresidential50 harbor84 intersection79 "
    "mediumresidential76 overpass49 overpass50 overpass51".split()
)


def main(data: Path, names: list[str], host: str = HOST) -> None:
    """Fetch the parts that are not there yet.

    Raises:
        FetchError: One cannot be had, or is not what is known of it; those before it are kept.
    """
    for name in names:
        part = PARTS[name]
        if (data / part.folder).exists():
            print(f"{name}: {data / part.folder} is there already")
        else:
            print(f"{name}: {part.terms}")
            fetch_part(part, data, host)
        if name == "captions":
            write_captions(data)


def fetch_part(part: Part, data: Path, host: str) -> None:
    """Fetch a part into its folder, whole or not at all.

    Raises:
        FetchError: An archive cannot be had, or is not what is known of it.
    """
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data, prefix=".fetching-") as folder:
        for archive in part.archives:
            address = f"{host}/{archive.repository}/zip/{archive.commit}"
            packed = Path(folder) / "archive.zip"
            download(address, packed, archive.max_bytes)
            found = unpack(packed, archive, Path(folder) / "files")
            if len(found) != archive.files or digest_files(found) != archive.digest:
                raise FetchError(
                    f"{address}: holds other files than are known here ({len(found)} of {archive.files})"
                )
        target = data / part.folder
        target.parent.mkdir(parents=True, exist_ok=True)
        (Path(folder) / "files" / part.folder).rename(target)
    print(f"  {target}: {sum(archive.files for archive in part.archives)} files")


def download(address: str, path: Path, most: int) -> None:
    """Download an address into a file of at most `most` bytes.

    Raises:
        FetchError: It cannot be had, or is larger.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost"):
        raise FetchError(f"{address}: only https is fetched")
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer, path.open("wb") as file:
            while block := answer.read(_BLOCK):
                if file.tell() + len(block) > most:
                    raise FetchError(f"{address}: has more than {most / 1e6:.0f} MB")
                file.write(block)
    except (OSError, urllib.error.URLError) as error:
        raise FetchError(f"{address}: cannot be fetched ({error}); try again, or see the README") from error


def unpack(packed: Path, archive: Archive, folder: Path) -> dict[str, str]:
    """Unpack the members wanted; names come from the pattern's groups alone.

    Returns:
        Where each file goes, and its content's name as git counts it.

    Raises:
        FetchError: The archive is damaged, or has too many or too large members.
    """
    found: dict[str, str] = {}
    try:
        with zipfile.ZipFile(packed) as opened:
            for member, target in _wanted(opened, archive):
                if member.file_size > MAX_FILE_BYTES or len(found) >= archive.files:
                    raise FetchError(f"{archive.repository}: {member.filename}: more than is known here")
                with opened.open(member) as file:
                    content = _read(file, member)
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                found[target] = name_content(content)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise FetchError(f"{archive.repository}: the archive is damaged ({error})") from error
    return found


def _wanted(opened: zipfile.ZipFile, archive: Archive) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    for member in opened.infolist():
        inside = str(PurePosixPath(*PurePosixPath(member.filename).parts[1:]))  # without the commit's folder
        match = re.fullmatch(archive.members, inside, re.ASCII)
        if match and not member.is_dir():
            yield member, archive.target.format(*match.groups()).lower()


def _read(file: BinaryIO | zipfile.ZipExtFile, member: zipfile.ZipInfo) -> bytes:
    content = file.read(MAX_FILE_BYTES + 1)  # a member may state less than it holds
    if len(content) > MAX_FILE_BYTES:
        raise FetchError(f"{member.filename}: more than {MAX_FILE_BYTES / 1e6:.0f} MB")
    return content


def name_content(content: bytes) -> str:
    """Return the name that git gives a content, which a repository's own listing shows."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def digest_files(found: Mapping[str, str]) -> str:
    """Return the SHA-256 of the sorted lines `PATH NAME_OF_CONTENT`."""
    return hashlib.sha256("".join(f"{k} {v}\n" for k, v in sorted(found.items())).encode()).hexdigest()


def write_captions(data: Path) -> None:
    """Write captions/ucm_captions.json from the published lists: five captions of each tile, and its split.

    Tile N is number (N - 1) mod 100 of class (N - 1) / 100, in alphabetical order. Published are training
    and test rows; validation rows are those of the training ones that the second list names.

    Raises:
        FetchError: The tiles, which tell the classes, are not there.
    """
    lists = data / "captions/ucm"
    if not (data / "sat/ucm").is_dir():
        raise FetchError("captions belong to tiles: fetch `tiles` first")
    classes = sorted(path.name for path in (data / "sat/ucm").iterdir() if path.is_dir())
    held = set((lists / "val_filename.txt").read_text(encoding="utf-8").split())
    images = []
    for split in ("train", "test"):
        names = list(dict.fromkeys((lists / f"{split}_filename.txt").read_text(encoding="utf-8").split()))
        lines = (lists / f"{split}_caps.txt").read_text(encoding="utf-8").splitlines()
        for place, name in enumerate(names):
            number = int(name.removesuffix(".tif"))
            cls = classes[(number - 1) // 100]
            stem = f"{cls}{(number - 1) % 100:02}"
            images.append(
                {
                    "file": f"sat/ucm/{cls}/{stem}.jpg",
                    "ucm_id": number,
                    "cls": cls,
                    "split": "val" if name in held else split,
                    "captions": [tidy(line) for line in lines[5 * place : 5 * place + 5]],
                    "suspect": stem in SUSPECT,
                }
            )
    path = data / "captions/ucm_captions.json"
    content = {"dataset": "UCM-captions", "images": sorted(images, key=lambda image: image["ucm_id"])}
    path.write_text(json.dumps(content, indent=0), encoding="utf-8")
    print(f"  {path}: {len(images)} tiles with five captions each")


def tidy(line: str) -> str:
    """Return a sentence without the space before its stop, and with single spaces."""
    return re.sub(r" ([.,])", r"\1", " ".join(line.split()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch the public data of the examples.")
    parser.add_argument("data", type=Path, help="the folder that the data go to")
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--host", default=HOST, help="a mirror of codeload.github.com")
    given = parser.parse_args()
    try:
        main(given.data, given.parts, given.host.rstrip("/"))
    except FetchError as error:
        sys.exit(str(error))
    finally:
        for left in given.data.glob(".fetching-*"):
            shutil.rmtree(left, ignore_errors=True)
