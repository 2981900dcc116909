"""Headers of image files: size, bands, bits and layout as a file states them, before it is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from geobind.errors import DataError

Format = Literal["JPEG", "PNG", "WEBP", "TIFF", "JPEG2000", "GIF", "BMP"]
Numbers = Literal["unsigned", "signed", "float", "complex"]

_JPEG_2000_STARTS = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_STARTS: tuple[tuple[Format, tuple[bytes, ...]], ...] = (
    ("JPEG", (b"\xff\xd8\xff",)),
    ("PNG", (b"\x89PNG\r\n\x1a\n",)),
    ("TIFF", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("JPEG2000", _JPEG_2000_STARTS),
    ("GIF", (b"GIF8",)),
    ("BMP", (b"BM",)),
)
_MAX_PAGES = 64  # directories of a TIFF that are followed
_MAX_ENTRIES = 4096  # of one directory
_MAX_BYTES = 2**20  # of one entry's values
_MAX_PARTS = 100_000  # markers of a JPEG, boxes of a JPEG 2000 file

# Tags of TIFF 6.0.
_KIND, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES = 254, 256, 257, 258, 262, 277
_PLACES = (33922, 34264)  # of GeoTIFF 1.1: tie points, or the matrix from pixels to coordinates
_ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _FORMAT = 278, 284, 322, 323, 338, 339
_GEO_JP2 = bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03")  # the UUID of a box that holds a GeoTIFF
_SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of whole numbers
_GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = (0, 1), 2, 3, 5, 6, 8
_NUMBERS: dict[int, Numbers] = {
    1: "unsigned",
    2: "signed",
    3: "float",
    4: "unsigned",
    5: "complex",
    6: "complex",
}


@dataclass(frozen=True)
class ImageHeader:
    """Properties of its pixels that a file states."""

    format: Format
    width: int
    height: int
    bands: int  # samples of a pixel, transparency included; a palette is one
    bits: int = 8  # of a sample, the deepest
    numbers: Numbers = "unsigned"
    photo: bool = True  # whether bits, bands and their meaning are those of a photograph of 8 bits
    pages: int = 1  # images of equal rank and size
    interleaved: bool = True  # whether the bands of a pixel lie side by side
    georeferenced: bool = False  # whether it says where on Earth its pixels lie
    block: tuple[int, int] = (0, 0)  # height and width of what is compressed together; 0 where not stated

    def describe(self) -> str:
        """Return the bands and their type in words."""
        bands = f"{self.bands} band{'' if self.bands == 1 else 's'}"
        return f"{bands} of {self.bits}-bit {self.numbers} numbers"


def detect_format(head: bytes) -> Format | None:
    """Return the format of a file by its first 16 bytes, or None of one that is no image known here."""
    if head.startswith(b"RIFF"):
        return "WEBP" if head[8:12] == b"WEBP" else None
    return next((name for name, starts in _STARTS if head.startswith(starts)), None)


def read_header(file: BinaryIO, name: str) -> ImageHeader | None:
    """Read the header of an image file, from its beginning, and return to it.

    Args:
        file: A file that can seek.
        name: What messages call it.

    Returns:
        The header; None of a file that is no image known here, and of formats that hold nothing but
        photographs of 8 bits (WebP, GIF, BMP).

    Raises:
        DataError: The header is damaged.
    """
    file.seek(0)
    kind = detect_format(file.read(16))
    try:
        header = _READERS[kind](file) if kind in _READERS else None
    except (struct.error, OverflowError, OSError, ValueError) as error:
        raise DataError(f"{name}: the header of this {kind} file is damaged or cut short") from error
    finally:
        file.seek(0)
    if header is not None and header.bands < 1:
        raise DataError(f"{name}: the header of this {kind} file is damaged: it states no band")
    return header


def _unpack(file: BinaryIO, at: int, form: str) -> tuple[Any, ...]:
    file.seek(at)
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _read_png(file: BinaryIO) -> ImageHeader:
    _, chunk, width, height, bits, colour = _unpack(file, 8, ">I4sIIBB")
    if chunk != b"IHDR":
        raise ValueError("no IHDR")
    bands = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    return ImageHeader("PNG", width, height, bands, bits, photo=bits <= 8)


def _read_jpeg(file: BinaryIO) -> ImageHeader | None:
    """Read the frame header (SOF) of a JPEG; None if there is none, which its decoder explains."""
    at = 2
    for _ in range(_MAX_PARTS):
        file.seek(at)
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] == 0xDA:  # start of the scan
            return None
        if marker[1] == 0xFF:  # a byte of fill
            at += 1
        elif marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD8:  # without a length
            at += 2
        elif 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            _, bits, height, width, bands = _unpack(file, at + 2, ">HBHHB")
            return ImageHeader("JPEG", width, height, bands, bits, photo=bits == 8 and bands in (1, 3, 4))
        else:
            at += 2 + _unpack(file, at + 2, ">H")[0]
    return None


class _Directory:
    """One directory (IFD) of a TIFF: the whole numbers of its tags."""

    def __init__(self, file: BinaryIO, at: int, order: str, big: bool) -> None:
        self.file, self.order, self.big = file, order, big
        counts, step, head = ("Q", 20, 8) if big else ("H", 12, 2)
        (count,) = _unpack(file, at, order + counts)
        if count > _MAX_ENTRIES:
            raise ValueError("too many entries")
        word = "Q" if big else "I"
        self.entries: dict[int, tuple[int, int, int]] = {}  # tag: type, number of values, where they stand
        for index in range(count):
            entry = at + head + index * step
            tag, kind, values = _unpack(file, entry, f"{order}HH{word}")
            self.entries.setdefault(tag, (kind, values, entry + 4 + struct.calcsize(word)))
        (self.next,) = _unpack(file, at + head + count * step, order + word)

    def __contains__(self, tag: int) -> bool:
        return tag in self.entries

    def values(self, tag: int, otherwise: int) -> tuple[int, ...]:
        """Return the values of a tag, at most a megabyte of them, or a default."""
        kind, count, at = self.entries.get(tag, (0, 0, 0))
        if kind not in _SIZES or not count:
            return (otherwise,)
        size = struct.calcsize(self.order + _SIZES[kind])
        if size * count > (8 if self.big else 4):
            (at,) = _unpack(self.file, at, self.order + ("Q" if self.big else "I"))
        return _unpack(self.file, at, f"{self.order}{min(count, _MAX_BYTES // size)}{_SIZES[kind]}")

    def value(self, tag: int, otherwise: int) -> int:
        """Return the first value of a tag, or a default."""
        return self.values(tag, otherwise)[0]


def _directories(file: BinaryIO) -> Iterator[_Directory]:
    file.seek(0)
    head = file.read(16)
    order, big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _MAX_PAGES:
        seen.add(at)
        directory = _Directory(file, at, order, big)
        yield directory
        at = directory.next


def _read_tiff(file: BinaryIO) -> ImageHeader:
    first, *others = _directories(file)
    width, height = first.value(_WIDTH, 0), first.value(_HEIGHT, 0)
    bands, bits = first.value(_SAMPLES, 1), max(first.values(_BITS, 1))
    formats: set[Numbers] = {_NUMBERS.get(value, "float") for value in first.values(_FORMAT, 1)}
    numbers: Numbers = formats.pop() if len(formats) == 1 else "float"
    interleaved = first.value(_PLANAR, 1) == 1
    photometric, extra = first.value(_PHOTOMETRIC, 0), first.values(_EXTRA, 0)
    alpha = _EXTRA in first and extra[-1] in (1, 2)
    colours = 1 if photometric in (*_GREY, _PALETTE) else 4 if photometric == _CMYK else 3
    shown = photometric in (*_GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB) and bands == colours + alpha
    same = [page for page in others if (page.value(_WIDTH, 0), page.value(_HEIGHT, 0)) == (width, height)]
    return ImageHeader(
        "TIFF",
        width,
        height,
        bands,
        bits,
        numbers,
        photo=bits <= 8 and numbers == "unsigned" and (interleaved or bands == 1) and shown,
        pages=1 + sum(not page.value(_KIND, 0) & 5 for page in same),  # neither reduced nor a mask
        interleaved=interleaved,
        georeferenced=any(tag in first for tag in _PLACES),
        block=(
            first.value(_TILE_HEIGHT, 0) or min(height, first.value(_ROWS, height)),
            first.value(_TILE_WIDTH, 0) or width,
        ),
    )


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the boxes of a JPEG 2000 file: name, and where their content starts and ends."""
    for _ in range(_MAX_PARTS):
        if at + 8 > end:
            return
        size, name = _unpack(file, at, ">I4s")
        head = 8
        if size == 1:
            (size,), head = _unpack(file, at + 8, ">Q"), 16
        stop = end if size == 0 else at + size
        if stop < at + head:
            raise ValueError("a box of no size")
        yield bytes(name), at + head, min(stop, end)
        at = stop


def _read_jpeg_2000(file: BinaryIO) -> ImageHeader:
    start, alpha, palette, georeferenced = 0, False, False, False
    if file.seek(0) == 0 and file.read(4) != _JPEG_2000_STARTS[1]:
        start = -1
        for name, at, end in _boxes(file, 0, file.seek(0, 2)):
            if name == b"jp2c":
                start = at
                break
            # The second is GML, which says the same as the first.
            georeferenced = georeferenced or name == b"asoc"
            georeferenced = georeferenced or (name == b"uuid" and _unpack(file, at, "16s")[0] == _GEO_JP2)
            for inner, inner_at, _ in _boxes(file, at, end) if name == b"jp2h" else ():
                palette = palette or inner == b"pclr"
                if inner == b"cdef":
                    (count,) = _unpack(file, inner_at, ">H")
                    kinds = _unpack(file, inner_at + 2, f">{3 * min(count, 1024)}H")[1::3]
                    alpha = any(kind in (1, 2) for kind in kinds)
    if start < 0:
        raise ValueError("no codestream")
    _, right, low, left, top, tile_width, tile_height = _unpack(file, start + 6, ">HIIIIII")
    (bands,) = _unpack(file, start + 40, ">H")
    depths = _unpack(file, start + 42, f">{3 * min(bands, 1024)}B")[::3]
    bits = max((depth & 0x7F) + 1 for depth in depths)
    signed = any(depth & 0x80 for depth in depths)
    photo = bits == 8 and not signed and bands in ((2, 4) if alpha else (1, 3))
    return ImageHeader(
        "JPEG2000",
        right - left,
        low - top,
        bands,
        bits,
        "signed" if signed else "unsigned",
        photo=photo and not (palette and bands != 1),
        georeferenced=georeferenced,
        block=(tile_height, tile_width),
    )


_READERS = {"PNG": _read_png, "JPEG": _read_jpeg, "TIFF": _read_tiff, "JPEG2000": _read_jpeg_2000}
