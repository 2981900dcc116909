"""Sounds whose headers do not tell their length: MP3, FLAC and Ogg, as streams whose headers do.

libsndfile decodes as many samples as a header promises, or as it estimates where no header does. So a stream
of which the true number is another is given a header that states it; headers of frames are read, and nothing
is decoded.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO, NamedTuple, cast

from geobind.errors import DataError

_BLOCK = 2**20  # bytes read at a time
_FIRST = 2**16  # bytes in which the first frame of an MP3 must begin
_MAX_JUNK = 2**24  # bytes between frames, such as pictures in tags, that are searched for the next frame
_ID3 = 10  # bytes of the header of a tag

# Kilobits a second by the index in a frame's header: MPEG 1, layers I, II, III; MPEG 2, layers I and others.
_RATES_1 = (
    (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
)
_RATES_2 = (
    (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_BLANK_TAG = b"ID3\4" + bytes(5) + b"\x40" + bytes(0x40)
# How files begin that libsndfile knows by these letters; others may be MPEG audio, which has none.
_CONTAINERS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b".snd", b"dns.", b"caff", b"riff", b"NIST", b"MATL")
_HZ = (44_100, 48_000, 32_000)


class SplicedStream(io.RawIOBase):
    """A stream whose first bytes are replaced by others."""

    def __init__(self, head: bytes, stream: BinaryIO, replaced: int) -> None:
        super().__init__()
        self._head, self._stream, self._shift = head, stream, replaced - len(head)
        self._length = stream.seek(0, os.SEEK_END) - self._shift
        self._at = 0

    def readable(self) -> bool:
        """Return true."""
        return True

    def seekable(self) -> bool:
        """Return true."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fill a buffer from the position on, and return how many bytes there were."""
        content = self._head[self._at : self._at + len(buffer)]
        if not content:
            self._stream.seek(self._at + self._shift)
            content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def state_length(stream: BinaryIO) -> BinaryIO:
    """Return a stream whose header states the true number of samples: mostly the one given.

    Args:
        stream: A sound of any format; that of other formats is returned as it is.

    Raises:
        DataError: There are fewer samples than the header states, or several recordings in one stream. The
            message is what follows the name of the file.
    """
    begin = _skip_tags(stream)
    head = _read_at(stream, begin, 4)
    if head == b"fLaC":
        return _state_flac_length(stream, begin)
    if head == b"OggS":
        _check_ogg(stream, begin)
    elif head not in _CONTAINERS:
        return _state_mp3_length(stream, begin) or _rewind(stream)
    return _rewind(stream)


def _rewind(stream: BinaryIO) -> BinaryIO:
    stream.seek(0)
    return stream


def _read_at(stream: BinaryIO, at: int, size: int) -> bytes:
    stream.seek(at)
    return stream.read(size)


def _skip_tags(stream: BinaryIO) -> int:
    """Return where a sound begins after its ID3 tags."""
    at = 0
    while (head := _read_at(stream, at, _ID3))[:3] == b"ID3" and len(head) == _ID3:
        size = 0
        for byte in head[6:]:  # seven bits of each
            size = size << 7 | byte & 0x7F
        at += _ID3 + size + (_ID3 if head[5] & 0x10 else 0)
    return at


class _Mpeg(NamedTuple):
    """Properties that the frames of one MPEG stream share."""

    mark: int  # the second byte of each header, with the bit that tells of a checksum set
    sizes: tuple[int, ...]  # bytes of a frame by the third byte of its header; 0 of one that cannot be
    samples: int  # of a frame
    side: int  # bytes between the header and the tag of a first frame
    layer: int

    def size(self, head: bytes) -> int:
        """Return the bytes of the frame that begins so, or 0 if none does."""
        fits = len(head) > 2 and head[0] == 0xFF and head[1] | 1 == self.mark
        return self.sizes[head[2]] if fits else 0


def _parse_mpeg(head: bytes) -> _Mpeg | None:
    """Return what the first header of a stream says of all its frames; None if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer, hz = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3
    if version == 1 or layer == 4 or hz == 3 or not 0 < head[2] >> 4 < 15:  # 0: free format, of any rate
        return None
    first = version == 3  # MPEG 1; others halve or quarter the rate of samples
    rate = _HZ[hz] // {3: 1, 2: 2, 0: 4}[version]
    kilobits = _RATES_1[layer - 1] if first else _RATES_2[min(layer, 2) - 1]
    samples = 384 if layer == 1 else 576 if layer == 3 and not first else 1152
    sizes = [0] * 256
    for byte in range(256):
        if byte >> 2 & 3 == hz and 0 < byte >> 4 < 15:
            slots, padding = kilobits[(byte >> 4) - 1] * 1000, byte >> 1 & 1
            sizes[byte] = (
                (12 * slots // rate + padding) * 4 if layer == 1 else samples // 8 * slots // rate + padding
            )
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Mpeg(head[1] | 1, tuple(sizes), samples, side, layer)


def _state_mp3_length(stream: BinaryIO, begin: int) -> BinaryIO | None:
    """Return a stream of MPEG audio whose first frame states how many follow; None if it is no such audio.

    It begins with a blank tag: libsndfile takes a stream without one for MPEG audio only after it has looked
    for other formats in files of the working folder.
    """
    found = _find_first_frame(stream, begin)
    if found is None:
        return None
    begin, mpeg = found
    head = _read_at(stream, begin, 4 + mpeg.side + 40)
    has_info, stated = _parse_info(head, mpeg)
    audio = begin + mpeg.size(head) if has_info else begin
    count, constant = _count_frames(stream, audio, mpeg)
    if mpeg.layer != 3 and not constant:
        raise DataError("MPEG audio of varying rate that is not of layer III; convert it to FLAC")
    info, replaced = b"", begin
    if count and mpeg.layer == 3 and (stated is None or abs(stated - count) > 1):  # some count the first too
        info, replaced = _make_info(_read_at(stream, audio, 4), mpeg, count), audio
    return cast(BinaryIO, SplicedStream(_BLANK_TAG + info, stream, replaced))


def _find_first_frame(stream: BinaryIO, begin: int) -> tuple[int, _Mpeg] | None:
    """Find a frame that others like it follow, beyond what was cut through."""
    block = _read_at(stream, begin, _FIRST)
    at = block.find(b"\xff")
    while at >= 0:
        mpeg = _parse_mpeg(block[at : at + 4])
        if mpeg and _is_followed(stream, begin + at, mpeg, 1 if at == 0 else 3):
            return begin + at, mpeg
        at = block.find(b"\xff", at + 1)
    return None


def _is_followed(stream: BinaryIO, at: int, mpeg: _Mpeg, frames: int) -> bool:
    """Return whether so many frames follow the one here, or fewer and the end."""
    for _ in range(frames + 1):
        head = _read_at(stream, at, 4)
        if len(head) < 4:
            return True
        size = mpeg.size(head)
        if not size:
            return False
        at += size
    return True


def _parse_info(head: bytes, mpeg: _Mpeg) -> tuple[bool, int | None]:
    """Return whether a first frame is a tag without sound, and how many frames it says there are."""
    tag = head[4 + mpeg.side :]
    if mpeg.layer == 3 and tag[:4] in (b"Xing", b"Info"):
        return True, int.from_bytes(tag[8:12], "big") if tag[7] & 1 else None
    return head[36:40] == b"VBRI", None  # which libsndfile does not read


def _count_frames(stream: BinaryIO, at: int, mpeg: _Mpeg) -> tuple[int, bool]:
    """Return how many whole frames there are from here to the end, and whether all have one rate."""
    end = stream.seek(0, os.SEEK_END)
    count, junk, rates = 0, 0, set[int]()
    sizes, mark = mpeg.sizes, mpeg.mark
    while at + 4 <= end:
        block, i = _read_at(stream, at, _BLOCK), 0
        last = len(block) - 4
        while i <= last:
            size = sizes[block[i + 2]] if block[i] == 0xFF and block[i + 1] | 1 == mark else 0
            if not size or at + i + size > end:
                break
            rates.add(block[i + 2] >> 4)
            count += 1
            i += size
        at += i
        if i <= last:  # no frame here: a tag, damage, or the end
            following = _find_frame(stream, at + 1, end, mpeg)
            if following is None:
                break
            junk += following - at
            if junk > _MAX_JUNK:
                raise DataError(f"holds over {_MAX_JUNK >> 20} MB between its frames; the file is damaged")
            at = following
    return count, len(rates) < 2


def _find_frame(stream: BinaryIO, at: int, end: int, mpeg: _Mpeg) -> int | None:
    """Find the next frame that another like it follows."""
    limit = min(end, at + _MAX_JUNK)
    while at < limit:
        block = _read_at(stream, at, _BLOCK + 4)
        i = block.find(b"\xff", 0, _BLOCK)
        while i >= 0:
            size = mpeg.size(block[i : i + 3])
            if size and mpeg.size(_read_at(stream, at + i + size, 3)):
                return at + i
            i = block.find(b"\xff", i + 1, _BLOCK)
        at += _BLOCK
    return None


def _make_info(head: bytes, mpeg: _Mpeg, count: int) -> bytes:
    """Make the frame that states how many frames follow it, as Xing's encoder wrote it first."""
    needed = 4 + mpeg.side + 12
    byte = next(
        byte for byte, size in enumerate(mpeg.sizes) if size >= needed and not byte & 3
    )  # neither padded nor private
    frame = bytearray(mpeg.sizes[byte])
    frame[:4] = bytes([0xFF, mpeg.mark, byte, head[3]])
    frame[4 + mpeg.side : needed] = b"Xing" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return bytes(frame)


_TAGS = (b"TAG", b"APETAGEX", b"ID3", b"LYRICSBEGIN", bytes(8))  # what programs put behind a sound
_STREAMINFO = 42  # bytes from the mark to the end of the first block of metadata
_TOTAL = 21  # where the number of samples begins, in the lower half of a byte
_LARGEST_HEADER = 16  # bytes of a frame's header


def _state_flac_length(stream: BinaryIO, begin: int) -> BinaryIO:
    info = _read_at(stream, begin, _STREAMINFO)
    if len(info) < _STREAMINFO or info[4] & 0x7F:  # libsndfile says what is wrong
        return _rewind(stream)
    stated = int.from_bytes(info[_TOTAL : _TOTAL + 5], "big") & (1 << 36) - 1
    usual = int.from_bytes(info[10:12], "big")  # samples of a frame; the last has fewer
    if stated and stated == _find_last_end(stream, begin + _STREAMINFO, usual):
        return _rewind(stream)
    there = _follow_frames(stream, begin + _STREAMINFO, usual)
    if not there:
        raise DataError("has no samples: not one whole frame of FLAC is there")
    if there < stated:
        raise DataError(f"the header promises {stated} samples but there are {there}; the file is cut short")
    if there == stated:
        return _rewind(stream)
    total = (info[_TOTAL] & 0xF0) << 32 | there
    head = info[:_TOTAL] + total.to_bytes(5, "big") + bytes(16)  # the checksum of other samples is of no use
    return cast(BinaryIO, SplicedStream(head, stream, begin + _STREAMINFO))


def _find_last_end(stream: BinaryIO, begin: int, usual: int) -> int | None:
    """Return the sample at which the last frame ends whose header stands near the end of the file."""
    end = stream.seek(0, os.SEEK_END)
    start = max(begin, end - _FIRST)
    while True:
        block = _read_at(stream, start, end - start)
        at = len(block)
        while (at := max(block.rfind(b"\xff\xf8", 0, at), block.rfind(b"\xff\xf9", 0, at))) >= 0:
            frame = _parse_flac_frame(block[at : at + _LARGEST_HEADER], usual)
            if frame is not None:
                return frame[1]
        if start == begin or end - start > _BLOCK:
            return None
        start = max(begin, end - 2 * (end - start))


def _follow_frames(stream: BinaryIO, begin: int, usual: int) -> int:
    """Return the sample at which the last whole frame ends, each beginning where the one before it ends.

    Raises:
        DataError: A frame in the middle is missing or damaged.
    """
    size = stream.seek(0, os.SEEK_END)
    last, reached, skipped, at = begin, 0, 0, begin
    while at < size:
        block = _read_at(stream, at, _BLOCK + _LARGEST_HEADER)
        i = _find_sync(block, 0)
        while 0 <= i < _BLOCK:
            frame = _parse_flac_frame(block[i : i + _LARGEST_HEADER], usual)
            if frame is not None and frame[0] == reached:
                last, reached, skipped = at + i, frame[1], 0
            elif frame is not None and reached < frame[0] < reached + 2**20:
                skipped += 1  # chance makes one now and then, a gap makes all that follow it so
            i = _find_sync(block, i + 1)
        at += _BLOCK
    if skipped > 2:
        raise DataError(f"damaged sound: frames are missing after {reached} samples")
    return reached if _is_whole(stream, last, size) else _start_of(stream, last, usual)


def _find_sync(block: bytes, at: int) -> int:
    found = [i for i in (block.find(b"\xff\xf8", at), block.find(b"\xff\xf9", at)) if i >= 0]
    return min(found, default=-1)


def _start_of(stream: BinaryIO, at: int, usual: int) -> int:
    frame = _parse_flac_frame(_read_at(stream, at, _LARGEST_HEADER), usual)
    return frame[0] if frame else 0


def _parse_flac_frame(head: bytes, usual: int) -> tuple[int, int] | None:
    """Return the first sample of a frame and the one after its last; None if this is no header of a frame."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1 or head[3] >> 4 > 10 or head[2] & 0xF == 15:
        return None
    ones = 8 - (~head[4] & 0xFF).bit_length()  # how UTF-8 tells the number of bytes
    if ones == 1 or ones == 8:
        return None
    number = head[4] & (0x7F >> ones)
    at = 5
    for byte in head[5 : 5 + max(0, ones - 1)]:
        if byte >> 6 != 2:
            return None
        number, at = number << 6 | byte & 0x3F, at + 1
    code, hz = head[2] >> 4, head[2] & 0xF
    longer = {6: 1, 7: 2}.get(code, 0)
    extra, at = head[at : at + longer], at + longer
    at += {12: 1, 13: 2, 14: 2}.get(hz, 0)
    if code == 0 or at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    samples = (
        int.from_bytes(extra, "big") + 1
        if longer
        else 192
        if code == 1
        else 576 << code - 2
        if code < 6
        else 256 << code - 8
    )
    start = number if head[1] & 1 else number * usual
    return start, start + samples


def _make_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table: list[int] = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> bits - 1 & 1 else 0)
        table.append(value & (1 << bits) - 1)
    return tuple(table)


_CRC8, _CRC16 = _make_table(0x07, 8), _make_table(0x8005, 16)


def _crc8(content: bytes) -> int:
    value = 0
    for byte in content:
        value = _CRC8[value ^ byte]
    return value


def _is_whole(stream: BinaryIO, at: int, end: int) -> bool:
    """Return whether a frame begins here that ends, by its checksum, where the file or a tag does."""
    content, value = _read_at(stream, at, min(end - at, 2**21)), 0
    for i, byte in enumerate(content, start=1):
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
        if value == 0 and (i == len(content) or content.startswith(_TAGS, i)):
            return True
    return False


def _check_ogg(stream: BinaryIO, begin: int) -> None:
    """Check that an Ogg file holds one recording, of which libsndfile would read the first alone.

    Raises:
        DataError: It holds several, one after the other.
    """
    at = begin
    while (head := _read_at(stream, at, 27))[:4] == b"OggS" and len(head) == 27 and head[5] & 2:
        lengths = _read_at(stream, at + 27, head[26])
        at += 27 + len(lengths) + sum(lengths)
    while block := _read_at(stream, at, _BLOCK + 6):
        if b"OggS\0\2" in block or b"OggS\0\6" in block:
            raise DataError(
                "holds several recordings, one after the other; join them: ffmpeg -i INPUT x.flac"
            )
        at += _BLOCK
