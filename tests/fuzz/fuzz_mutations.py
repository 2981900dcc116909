"""Damage a file: a pure function of the file and a random generator."""

import re
import struct
import zlib

EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WORDS = (
    b'"', b"'", b"\n", b"\r", b"\0", b",", b"[", b"]", b"{", b"}", b"null", b"NaN", b"1e999", b"-1",
    b"\xff\xfe", b"[" * 3000, b'{"raster":', b'{"raster": 3}', b"../../etc/passwd", b"\xed\xa0\x80",
    b"9" * 400,
)  # fmt: skip
VALUES = (
    b"NaN", b"1e999", b"-1", b"91", b"1" * 30, b"null", b"true", b"[]", b"{}", b"[[1]]", b'[1, "a"]', b"",
    b'["a", null]', b'"../../x"', b'"\\ud800"', b'"a\\u0000b.jpg"', b'{"raster": "a.tif"}', b"2024-13-45",
    b'{"raster": "a.tif", "x": 1e18}', b'{"raster": "s.tif", "lat": 91, "lon": 0}', b'{"tile": {}}',
    b"0001-01-01T00:00:00+23:59",
)  # fmt: skip


def revalued(content, rng):
    """Return a text in which one to three numbers or strings are others."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(re.finditer(rb'-?[0-9][0-9.eE-]*|"[^"\n]*"', content))
        if places:
            place = rng.choice(places)
            content = content[: place.start()] + rng.choice(VALUES) + content[place.end() :]
    return content


def mutated(content, others, rng):
    """Return a damaged copy: one to eight changes, often at the ends, where headers and footers lie."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 8))):
        rng.choice(CHANGES)(data, others, rng)
    return bytes(data)


def _where(data, rng):
    if not data:
        return 0
    near = rng.random()
    if near < 0.4:
        return min(rng.randrange(256), len(data) - 1)
    if near < 0.55:
        return max(0, len(data) - 1 - rng.randrange(512))
    return rng.randrange(len(data))


def flip(data, _others, rng):
    for _ in range(rng.choice((1, 1, 4, 40))):
        at = _where(data, rng)
        if data:
            data[at] ^= 1 << rng.randrange(8)


def overwrite(data, _others, rng):
    at = _where(data, rng)
    data[at : at + 8] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 4, 8))))


def extreme(data, _others, rng):
    at, value = _where(data, rng), rng.choice(EXTREME)
    form = rng.choice("<I >I <H >H B".split())
    word = struct.pack(form, value & (2 ** (8 * struct.calcsize(form)) - 1))
    data[at : at + len(word)] = word


def truncate(data, _others, rng):
    del data[rng.randrange(len(data) + 1) if rng.random() < 0.5 else max(0, len(data) - rng.randrange(64)) :]


def delete(data, _others, rng):
    at = _where(data, rng)
    del data[at : at + rng.choice((1, 2, 16, 300))]


def repeat(data, _others, rng):
    at, size = _where(data, rng), rng.choice((1, 4, 64, 2000))
    data[at:at] = bytes(data[at : at + size]) * rng.choice((1, 2, 20))


def insert(data, _others, rng):
    at = _where(data, rng)
    data[at:at] = rng.choice(WORDS) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 3, 50)))


def splice(data, others, rng):
    other = rng.choice(others)
    at, there = _where(data, rng), _where(other, rng)
    data[at : at + rng.choice((0, 16, 10**9))] = other[there : there + rng.choice((16, 400, 10**9))]


def blank(data, _others, rng):
    at = _where(data, rng)
    size = min(rng.choice((4, 64, 1000)), len(data) - at)
    data[at : at + size] = bytes([rng.choice((0, 255, 65))]) * size


CHANGES = (flip, flip, overwrite, extreme, extreme, truncate, delete, repeat, insert, splice, blank)


def mended(kind, content):
    """Make the checksums of a damaged file right again, so that what they protect is read at all."""
    data = bytearray(content)
    if kind == "png":
        at = 8
        while at + 12 <= len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4], "big")
            data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")[: max(0, len(data) - end)]
            at = end + 4
    elif kind == "tar":
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    elif kind in ("ogg", "opus"):
        for page in re.finditer(b"OggS", content):
            _mend_page(data, page.start())
    return bytes(data)


def _mend_page(data, at):
    if len(data) < at + 27:
        return
    sizes = data[at + 27 : at + 27 + data[at + 26]]
    end = at + 27 + len(sizes) + sum(sizes)
    data[at + 22 : at + 26] = bytes(4)
    checksum = 0
    for byte in data[at:end]:
        checksum = (checksum << 8 & 0xFFFFFFFF) ^ OGG[checksum >> 24 ^ byte]
    data[at + 22 : at + 26] = checksum.to_bytes(4, "little")


def _ogg_table():
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)
        yield value & 0xFFFFFFFF


OGG = tuple(_ogg_table())
