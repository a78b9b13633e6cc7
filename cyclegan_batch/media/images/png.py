"""Read the header of a PNG file (ISO/IEC 15948) chunk by chunk.

Pillow's reader accepts files whose end is missing, and libpng prints warnings about optional chunks
to the terminal.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from .image_header import (
    LARGEST_METADATA,
    Header,
    PngExtras,
    stated_orientation,
    usable_dpi,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
"""Pillow's colour modes by PNG's colour type."""
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits per sample that each colour type allows."""
_COLOUR_CHUNKS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
_LIGHT_CHUNKS = (b"mDCV", b"cLLI")
_HEADER_CHUNKS = frozenset(
    {b"IHDR", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"pHYs", *_COLOUR_CHUNKS, *_LIGHT_CHUNKS}
)
_IMAGE_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})


def read_png(file: BinaryIO) -> Header:
    """Describe a PNG file. Raises ValueError, KeyError or struct.error where it is damaged."""
    chunks, texts = _read_chunks(file)
    if b"IDAT" not in chunks:
        raise ValueError("it has no image data")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(
        ">IIBBBBB", chunks[b"IHDR"]
    )
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ValueError(f"colour type {colour} with {depth} bits")
    grey = None
    if colour == 0 and len(chunks.get(b"tRNS", b"")) == 2:
        (sample,) = struct.unpack(">H", chunks[b"tRNS"])
        grey = sample if depth == 16 else sample * 255 // (2**depth - 1)
    exif = chunks.get(b"eXIf") or _raw_profile(texts)
    return Header(
        format="png",
        size=(height, width),
        mode=_MODES[colour],
        bits=16 if depth == 16 else 8,
        levels=2**depth,
        orientation=_orientation(exif, texts),
        pages=int.from_bytes(chunks.get(b"acTL", b"\0\0\0\1")[:4]),
        icc=_profile(chunks.get(b"iCCP")),
        exif=exif,
        dpi=_resolution(chunks.get(b"pHYs", b"")),
        # cICP: primaries, transfer, matrix, range (PNG, third edition, 11.3.2.6).
        transfer=chunks.get(b"cICP", b"\2\2\0\1")[1],
        primaries=chunks.get(b"cICP", b"\2\2\0\1")[0],
        peak=_peak(chunks.get(b"mDCV", b""), chunks.get(b"cLLI", b"")),
        png=PngExtras(grey, tuple((k, chunks[k]) for k in _COLOUR_CHUNKS if k in chunks)),
    )


def _peak(display: bytes, light: bytes) -> float | None:
    """Return cd/m² by mDCV, else cLLI, both in 0.0001 cd/m² (PNG, third edition, 11.3.2.7, 8)."""
    if len(display) == 24 and (stated := int.from_bytes(display[16:20])):
        return stated / 10000
    return int.from_bytes(light[:4]) / 10000 or None if len(light) == 8 else None


def quiet_png(data: bytes) -> bytes:
    """Return a PNG without its optional chunks, after checking every chunk's sum and the end.

    A decoder prints no warning about such a file. Raises ValueError where it is damaged.
    """
    parts = [SIGNATURE]
    whole = False
    for kind, start, end in _chunks(io.BytesIO(data)):
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise ValueError(f"wrong checksum of chunk {_printable(kind)}")
        if kind in _IMAGE_CHUNKS:
            parts.append(data[start:end])
        whole = kind == b"IEND"
    if not whole:
        raise ValueError("it has no end")
    return b"".join(parts)


def _read_chunks(file: BinaryIO) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Return the first chunk of each kind that a header needs, and texts by their keyword.

    IDAT has empty content, which only shows that there is one.
    """
    chunks: dict[bytes, bytes] = {}
    texts: dict[bytes, bytes] = {}
    for kind, start, end in _chunks(file):
        size = end - start
        if kind in _TEXT_CHUNKS and size <= LARGEST_METADATA:
            file.seek(start + 8)
            texts |= _text(kind, file.read(size - 12))
        elif kind in _HEADER_CHUNKS:
            if size > LARGEST_METADATA:
                raise ValueError(f"{_printable(kind)} of {size} bytes")
            file.seek(start + 8)
            content, check = file.read(size - 12), file.read(4)
            if zlib.crc32(kind + content) != int.from_bytes(check):
                raise ValueError(f"wrong checksum of chunk {_printable(kind)}")
            chunks.setdefault(kind, content)
        elif kind == b"IDAT":
            chunks.setdefault(kind, b"")
    return chunks, texts


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each chunk, where it starts, and where it ends, checksum included."""
    length = file.seek(0, os.SEEK_END)
    position = len(SIGNATURE)
    kind = b""
    while kind != b"IEND" and position < length:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        end = position + 12 + size
        if end > length:
            raise ValueError(f"{_printable(kind)} ends after the file")
        if (position == 8) != (kind == b"IHDR"):
            raise ValueError(f"{_printable(kind)} is out of place")
        yield kind, position, end
        position = end


def _resolution(chunk: bytes) -> tuple[float, float] | None:
    """Return pixels per inch from those per metre; None without a unit, where they are a ratio."""
    if len(chunk) != 9 or chunk[8] != 1:
        return None
    across, down = struct.unpack(">II", chunk[:8])
    return usable_dpi((across * 0.0254, down * 0.0254))


# Metadata. What cannot be read of it is left out: it never makes a file unreadable.

_XMP = b"XML:com.adobe.xmp"
_RAW_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
"""Keywords of the texts in which ImageMagick and others keep EXIF as hexadecimal digits."""


def _text(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    """Return the text of a chunk by its keyword, where that is one of the above."""
    keyword, _, text = content.partition(b"\0")
    if keyword != _XMP and keyword not in _RAW_PROFILES:
        return {}
    packed = kind == b"zTXt"
    if packed:
        text = text[1:]
    elif kind == b"iTXt":
        packed = text[:1] == b"\1"
        # Behind two bytes come the language and the translated keyword.
        text = text[2:].split(b"\0", 2)[-1]
    if packed:
        try:
            text = zlib.decompressobj().decompress(text, LARGEST_METADATA)
        except zlib.error:
            return {}
    return {keyword: text}


def _raw_profile(texts: dict[bytes, bytes]) -> bytes | None:
    """Return EXIF that is kept as a text: a name, a length, and the digits in lines."""
    for keyword in _RAW_PROFILES:
        try:
            digits = b"".join(texts.get(keyword, b"").split()[2:])
            block = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            continue
        if block.startswith((b"Exif\0\0", b"II", b"MM")):
            return block.removeprefix(b"Exif\0\0")
    return None


def _orientation(exif: bytes | None, texts: dict[bytes, bytes]) -> int:
    """Return the orientation by EXIF, or by XMP where EXIF holds none."""
    by_exif = stated_orientation(exif)
    if by_exif is not None:
        return by_exif
    match = _XMP_ORIENTATION.search(texts.get(_XMP, b""))
    return 1 if match is None else int(match[1])


_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")


def _profile(chunk: bytes | None) -> bytes | None:
    """Return the colour profile in an iCCP chunk; one that cannot be read is empty."""
    if chunk is None:
        return None
    _, _, packed = chunk.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed[1:], LARGEST_METADATA)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof else b""


def _printable(kind: bytes) -> str:
    return ascii(kind.decode("latin-1"))[1:-1]
