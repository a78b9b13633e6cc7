"""Write the sample aspect ratio of a stream into containers where PyAV cannot set it.

FFmpeg's muxers of Matroska, AVI and NUT take the ratio from a field of the stream that PyAV 18.1
does not expose; MP4, MOV and MPEG-TS take it from a field that PyAV does. NUT always holds two
bytes for it. In the others a placeholder that holds the ratio is appended to the title of the
stream. Once the file is written, the element that FFmpeg would have written replaces it, without
moving any other byte (models: libavformat's matroskaenc.c, avienc.c, nutenc.c).
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from av.stream import Stream
from av.video.stream import VideoStream

from ...frames import Size

_LENGTH = 120
"""Bytes of the placeholder; AVI needs 76 of them."""
_PLACEHOLDER = re.compile(rb"<aspect (\d+):(\d+) (\d+)x(\d+) _+>")


def reserve(stream: Stream, aspect: Fraction | None, size: Size, muxer: str) -> None:
    """Set the sample aspect ratio of an output stream, and make room for it where that is needed.

    ``size``: height and width. `fill_in` must be called once the file is written.
    """
    if not aspect:
        return
    if isinstance(stream, VideoStream) and stream.codec_context is not None:
        stream.codec_context.sample_aspect_ratio = aspect
    if aspect == 1 or muxer not in _WITH_PLACEHOLDER:
        return
    height, width = size
    text = f"<aspect {aspect.numerator}:{aspect.denominator} {width}x{height} "
    stream.metadata["title"] = stream.metadata.get("title", "") + text.ljust(_LENGTH - 1, "_") + ">"


def fill_in(path: Path, muxer: str, aspects: Mapping[int, Fraction]) -> None:
    """Write the ratios for which `reserve` has made room into the header of the file at ``path``.

    ``aspects``: the sample aspect ratio of each video stream that has one, by its index. Raises
    OSError, and ValueError where the header does not have the layout that FFmpeg writes.
    """
    non_square = {index: each for index, each in aspects.items() if each != 1}
    if not non_square:
        return
    with path.open("r+b") as file:
        if muxer in _WITH_PLACEHOLDER:
            _WITH_PLACEHOLDER[muxer](file, muxer)
        elif muxer == "nut":
            _fill_in_nut(file, non_square)


class _Aspect:
    """The aspect ratios and the size that a placeholder holds."""

    def __init__(self, placeholder: re.Match[bytes]) -> None:
        numerator, denominator, self.width, self.height = map(int, placeholder.groups())
        self.sample = Fraction(numerator, denominator)
        self.display = self.sample * Fraction(self.width, self.height)


# Matroska and WebM (RFC 9559)

_SEGMENT, _TRACKS, _TRACK = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae"
_CRC, _VOID, _NAME, _VIDEO = b"\xbf", b"\xec", b"\x53\x6e", b"\xe0"
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = b"\x54\xb0", b"\x54\xba", b"\x54\xb2"
_DISPLAY = (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT)
_RATIO = 3
"""The display size is a ratio of width to height, not a number of pixels."""


def _fill_in_matroska(file: BinaryIO, muxer: str) -> None:
    while True:
        name, length = _ebml_head(file)
        if name == _TRACKS:
            break
        if name != _SEGMENT:
            file.seek(length, 1)
    start = file.tell()
    tracks = file.read(length)
    parts = []
    for name, payload, whole in _elements(tracks):
        if name == _TRACK and _PLACEHOLDER.search(payload):
            head = whole[: len(whole) - len(payload)]
            parts.append(head + _track_with_aspect(payload, webm=muxer == "webm"))
        else:
            parts.append(whole)
    if parts and parts[0][:1] == _CRC:
        crc = zlib.crc32(b"".join(parts[1:]))
        parts[0] = _element(_CRC, crc.to_bytes(4, "little"))
    rewritten = b"".join(parts)
    if len(rewritten) != length:
        raise ValueError(f"the tracks of a Matroska file take {len(rewritten)} bytes, not {length}")
    file.seek(start)
    file.write(rewritten)


def _track_with_aspect(payload: bytes, *, webm: bool) -> bytes:
    """Return a TrackEntry of the same length, without the placeholder and with a display size."""
    placeholder = _PLACEHOLDER.search(payload)
    assert placeholder is not None
    aspect = _Aspect(placeholder)
    children = b""
    for name, content, whole in _elements(payload):
        if name == _NAME:
            title = _PLACEHOLDER.sub(b"", content)
            children += _element(_NAME, title) if title else b""
        elif name == _VIDEO:
            video = b"".join(each for kind, _, each in _elements(content) if kind not in _DISPLAY)
            children += _element(_VIDEO, video + _display(aspect, webm=webm))
        else:
            children += whole
    rest = len(payload) - len(children)
    # The shortest void element takes two bytes.
    return children + _VOID + bytes([0x80 | (rest - 2)]) + bytes(rest - 2)


def _display(aspect: _Aspect, *, webm: bool) -> bytes:
    if webm:
        # WebM allows a display size in pixels only.
        width, height = max(1, round(aspect.width * aspect.sample)), aspect.height
        unit = b""
    else:
        width, height = aspect.display.numerator, aspect.display.denominator
        unit = _element(_DISPLAY_UNIT, bytes([_RATIO]))
    return (
        _element(_DISPLAY_WIDTH, _number(width)) + _element(_DISPLAY_HEIGHT, _number(height)) + unit
    )


def _number(value: int) -> bytes:
    return value.to_bytes(max(1, -(-value.bit_length() // 8)), "big")


def _element(name: bytes, payload: bytes) -> bytes:
    length = 1
    while len(payload) >= (1 << (7 * length)) - 1:
        length += 1
    return name + ((1 << (7 * length)) | len(payload)).to_bytes(length, "big") + payload


def _elements(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield name, payload and all bytes of each element of a master element."""
    at = 0
    while at < len(data):
        name = data[at : at + _vint_length(data[at])]
        begin = at + len(name)
        size = data[begin : begin + _vint_length(data[begin])]
        begin += len(size)
        end = begin + (int.from_bytes(size, "big") & ((1 << (7 * len(size))) - 1))
        yield name, data[begin:end], data[at:end]
        at = end


def _ebml_head(file: BinaryIO) -> tuple[bytes, int]:
    """Read the name and the length of the next element. Raises ValueError at the end."""
    parts = []
    for _ in range(2):
        first = file.read(1)
        if not first or not first[0]:
            raise ValueError("a Matroska file has no tracks")
        parts.append(first + file.read(_vint_length(first[0]) - 1))
    name, size = parts
    return name, int.from_bytes(size, "big") & ((1 << (7 * len(size))) - 1)


def _vint_length(first: int) -> int:
    return 9 - first.bit_length()


# AVI (its OpenDML extension holds the display aspect ratio)


def _fill_in_avi(file: BinaryIO, _muxer: str) -> None:
    # RIFF, its length, AVI; the list of headers follows.
    (length,) = struct.unpack("<16xI", file.read(20))
    header = file.read(length)
    for placeholder in list(_PLACEHOLDER.finditer(header)):
        begin = header.rfind(b"strn", 0, placeholder.start())
        (size,) = struct.unpack_from("<I", header, begin + 4)
        end = begin + 8 + size + size % 2
        title = header[begin + 8 : placeholder.start()]
        chunks = _video_properties(_Aspect(placeholder))
        rest = end - begin - len(chunks) - 8
        name = b"strn" if title else b"JUNK"
        chunks += name + struct.pack("<I", rest) + title.ljust(rest, b"\0")
        if len(chunks) != end - begin:
            raise ValueError("the name of a stream in an AVI file leaves no room")
        header = header[:begin] + chunks + header[end:]
    file.seek(20)
    file.write(header)


def _video_properties(aspect: _Aspect) -> bytes:
    """Return a ``vprp`` chunk for progressive frames; 0 is "unknown"."""
    ratio = aspect.display.limit_denominator(0x7FFF)
    width, height = aspect.width, aspect.height
    content = struct.pack("<5I", 0, 0, 0, width, height)
    content += struct.pack("<2H", ratio.denominator, ratio.numerator)
    content += struct.pack("<3I", width, height, 1)
    content += struct.pack("<8I", height, width, height, width, 0, 0, 0, 0)
    return b"vprp" + struct.pack("<I", len(content)) + content


_WITH_PLACEHOLDER = {
    "matroska": _fill_in_matroska,
    "webm": _fill_in_matroska,
    "avi": _fill_in_avi,
}


# NUT (its specification, "stream headers"; they are repeated in long files)

_STREAM_STARTCODE = bytes.fromhex("4e5311405bf2f9db")
_ONE_BYTE = 127
"""The largest number that takes one byte."""


def _fill_in_nut(file: BinaryIO, aspects: Mapping[int, Fraction]) -> None:
    with mmap.mmap(file.fileno(), 0) as content:
        at = content.find(_STREAM_STARTCODE)
        while at >= 0:
            length, begin = _nut_number(content, at + len(_STREAM_STARTCODE))
            if length > 4096:
                # The header of a longer packet has a checksum of its own.
                begin += 4
            end = begin + length - 4
            if _nut_checksum(content[begin:end]) != content[end : end + 4]:
                raise ValueError("the checksum of a stream header in a NUT file is wrong")
            index, place = _nut_place(content, begin)
            if index in aspects:
                content[place : place + 2] = bytes(_in_one_byte(aspects[index]))
                content[end : end + 4] = _nut_checksum(content[begin:end])
            at = content.find(_STREAM_STARTCODE, end)


def _nut_place(content: mmap.mmap, at: int) -> tuple[int, int]:
    """Return the index of the stream whose header is at ``at``, and the offset of its ratio."""
    index, at = _nut_number(content, at)
    kind, at = _nut_number(content, at)
    tag, at = _nut_number(content, at)
    at += tag
    for _ in range(5):  # time base, two settings of time stamps, delay, flags
        _, at = _nut_number(content, at)
    extradata, at = _nut_number(content, at)
    at += extradata
    if kind != 0:
        return -1, at
    for _ in range(2):  # width, height
        _, at = _nut_number(content, at)
    return index, at


def _nut_number(content: mmap.mmap, at: int) -> tuple[int, int]:
    """Return a number that is stored in seven bits a byte, and the offset behind it."""
    value = 0
    while True:
        byte = content[at]
        value, at = value << 7 | byte & 0x7F, at + 1
        if byte < 0x80:
            return value, at


def _in_one_byte(aspect: Fraction) -> tuple[int, int]:
    """Return the nearest ratio of two numbers that take one byte each."""
    near = aspect.limit_denominator(_ONE_BYTE)
    if near.numerator > _ONE_BYTE:
        near = 1 / (1 / aspect).limit_denominator(_ONE_BYTE)
    return near.numerator, near.denominator


def _nut_checksum(content: bytes) -> bytes:
    """Return the CRC-32 with generator 0x04C11DB7 and initial value 0, highest bit first."""
    crc = 0
    for byte in content:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x104C11DB7 if crc & 0x80000000 else 0)
    return crc.to_bytes(4, "big")
