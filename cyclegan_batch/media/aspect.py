"""Give a stream the shape of its pixels in containers whose writer cannot be told it.

FFmpeg's writers of Matroska, AVI and NUT take the sample aspect ratio from a field of the stream
that PyAV 18.1 does not reach (MP4, MOV and MPEG-TS take it from where it does). So the title of the
stream ends in a placeholder that tells the shape, and once the file is written, the element that
belongs there takes the placeholder's room. No other byte moves; FFmpeg's own writers are the model
of what is written (libavformat: matroskaenc.c, avienc.c, nutenc.c).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from ..frames import Size

_LENGTH = 120
"""Bytes of the placeholder; AVI needs 76 of them."""
_PLACEHOLDER = re.compile(rb"<aspect (\d+):(\d+) (\d+)x(\d+) _+>")


def reserve(stream: Any, aspect: Fraction | None, size: Size, muxer: str) -> None:
    """Set the sample aspect ratio of an output stream, and make room for it where that is needed.

    ``size``: height and width. `fill_in` is to be called once the file is written.
    """
    if not aspect:
        return
    stream.codec_context.sample_aspect_ratio = aspect
    if aspect == 1 or muxer not in _WRITERS:
        return
    height, width = size
    text = f"<aspect {aspect.numerator}:{aspect.denominator} {width}x{height} "
    stream.metadata["title"] = stream.metadata.get("title", "") + text.ljust(_LENGTH - 1, "_") + ">"


def fill_in(path: Path, muxer: str) -> None:
    """Replace every placeholder in the header of the file at ``path``.

    Raises OSError, and ValueError where the header is not laid out as it should be.
    """
    if muxer in _WRITERS:
        with path.open("r+b") as file:
            _WRITERS[muxer](file, muxer)


class _Shape:
    """What a placeholder tells."""

    def __init__(self, found: re.Match[bytes]) -> None:
        numerator, denominator, self.width, self.height = map(int, found.groups())
        self.sample = Fraction(numerator, denominator)
        self.display = self.sample * Fraction(self.width, self.height)


# Matroska and WebM (RFC 9559)

_SEGMENT, _TRACKS, _TRACK = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae"
_CRC, _VOID, _NAME, _VIDEO = b"\xbf", b"\xec", b"\x53\x6e", b"\xe0"
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = b"\x54\xb0", b"\x54\xba", b"\x54\xb2"
_DISPLAY = (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT)
_RATIO = 3
"""The display size is no number of pixels, it is the ratio of the picture's sides."""


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
            parts.append(head + _shaped_track(payload, webm=muxer == "webm"))
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


def _shaped_track(payload: bytes, *, webm: bool) -> bytes:
    """Return a TrackEntry of the same length, without the placeholder and with a display size."""
    found = _PLACEHOLDER.search(payload)
    assert found is not None
    shape = _Shape(found)
    children = b""
    for name, content, whole in _elements(payload):
        if name == _NAME:
            title = _PLACEHOLDER.sub(b"", content)
            children += _element(_NAME, title) if title else b""
        elif name == _VIDEO:
            kept = b"".join(each for kind, _, each in _elements(content) if kind not in _DISPLAY)
            children += _element(_VIDEO, kept + _display(shape, webm=webm))
        else:
            children += whole
    rest = len(payload) - len(children)
    # The shortest void takes two bytes.
    return children + _VOID + bytes([0x80 | (rest - 2)]) + bytes(rest - 2)


def _display(shape: _Shape, *, webm: bool) -> bytes:
    if webm:
        # WebM has pixels only.
        width, height = max(1, round(shape.width * shape.sample)), shape.height
        unit = b""
    else:
        width, height = shape.display.numerator, shape.display.denominator
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
    found = []
    for _ in range(2):
        first = file.read(1)
        if not first or not first[0]:
            raise ValueError("a Matroska file has no tracks")
        found.append(first + file.read(_vint_length(first[0]) - 1))
    name, size = found
    return name, int.from_bytes(size, "big") & ((1 << (7 * len(size))) - 1)


def _vint_length(first: int) -> int:
    return 9 - first.bit_length()


# AVI (the OpenDML extension has the shape of the picture)


def _fill_in_avi(file: BinaryIO, _muxer: str) -> None:
    # RIFF, its length, AVI; then the list of headers, which is first.
    (length,) = struct.unpack("<16xI", file.read(20))
    header = file.read(length)
    for found in list(_PLACEHOLDER.finditer(header)):
        begin = header.rfind(b"strn", 0, found.start())
        (size,) = struct.unpack_from("<I", header, begin + 4)
        end = begin + 8 + size + size % 2
        title = header[begin + 8 : found.start()]
        shaped = _video_properties(_Shape(found))
        rest = end - begin - len(shaped) - 8
        name = b"strn" if title else b"JUNK"
        shaped += name + struct.pack("<I", rest) + title.ljust(rest, b"\0")
        if len(shaped) != end - begin:
            raise ValueError("the name of a stream in an AVI file leaves no room")
        header = header[:begin] + shaped + header[end:]
    file.seek(20)
    file.write(header)


def _video_properties(shape: _Shape) -> bytes:
    """Return a ``vprp`` chunk for progressive frames; 0 is "unknown"."""
    ratio = shape.display.limit_denominator(0x7FFF)
    width, height = shape.width, shape.height
    content = struct.pack("<5I", 0, 0, 0, width, height)
    content += struct.pack("<2H", ratio.denominator, ratio.numerator)
    content += struct.pack("<3I", width, height, 1)
    content += struct.pack("<8I", height, width, height, width, 0, 0, 0, 0)
    return b"vprp" + struct.pack("<I", len(content)) + content


_WRITERS = {
    "matroska": _fill_in_matroska,
    "webm": _fill_in_matroska,
    "avi": _fill_in_avi,
}
