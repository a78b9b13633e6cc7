"""Describe an image file before a pixel is decoded or memory is allocated for one.

The format is recognised by content, never by name, and from a list of allowed formats. JPEG and BMP
headers are read by Pillow (those of a JPEG without metadata here), TIFF ones by tifffile (`tiff`),
PNG ones by `png`, and those of AVIF, GIF, HEIC and JPEG 2000 by `stills`. WebP is walked chunk by
chunk here, since Pillow's reader allocates memory for the whole canvas when it opens a file.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO

from PIL import BmpImagePlugin, JpegImagePlugin

from ...errors import InputError
from ...frames import Size
from ..formats import SNIFFED, ImageFormat, sniff_format
from .image_header import (
    LARGEST_METADATA,
    Header,
    damaged,
    exif_orientation,
    portable_exif,
    usable_dpi,
)
from .png import read_png


def read_header(file: BinaryIO, name: str, *, max_pixels: int) -> Header:
    """Describe the image in the seekable ``file``; ``name`` is for messages.

    Raises InputError where the file is no image of a known format, is damaged as far as its header
    shows, or is larger than ``max_pixels``.
    """
    head = file.read(SNIFFED)
    file.seek(0)
    format_ = sniff_format(head)
    if format_ is None:
        if not head:
            raise InputError(f"{name}: the file is empty; replace it with a whole copy")
        raise InputError(
            f"{name}: not an image of a known format: {_other_format(head)}; "
            "convert it to JPEG, PNG, WebP or TIFF"
        )
    reader = _READERS[format_]
    try:
        header = reader(file)
    # A hostile header makes parsers raise anything, and each of it means a damaged file: Pillow
    # raises SyntaxError, ValueError, struct.error, IndexError, OverflowError and more.
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except struct.error as error:
        raise damaged(name, format_, "it ends within its header") from error
    except Exception as error:
        raise damaged(name, format_, error) from error
    height, width = header.size
    if height < 1 or width < 1:
        raise damaged(name, format_, f"its header states {width}×{height} pixels")
    if height * width * max(header.bands, 4) > 4 * max_pixels:
        bands = f" of {header.bands} bands" if header.bands > 4 else ""
        raise InputError(
            f"{name}: {width}×{height}{bands} is more than --max-pixels {max_pixels} allows; "
            "raise it if the image is really this large"
        )
    if header.orientation not in range(1, 9):
        header = replace(header, orientation=1)
    return header


# WebP (RFC 9649)


def _read_webp(file: BinaryIO) -> Header:
    canvas: Size | None = None
    size: Size | None = None
    alpha = animated = False
    metadata: dict[bytes, bytes] = {}
    for kind, extent in _riff_chunks(file):
        if kind == b"VP8X":
            flags, width, height = struct.unpack("<I3s3s", file.read(10))
            animated, alpha = bool(flags & 0x02), bool(flags & 0x10)
            canvas = _canvas_length(height), _canvas_length(width)
        elif kind == b"VP8 " and size is None:
            width, height = struct.unpack("<6x2H", file.read(10))
            size = height & 0x3FFF, width & 0x3FFF
        elif kind == b"VP8L" and size is None:
            (bits,) = struct.unpack("<xI", file.read(5))
            size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
            alpha = alpha or bool(bits >> 28 & 1)
        elif kind in (b"ICCP", b"EXIF") and extent <= LARGEST_METADATA:
            metadata.setdefault(kind, file.read(extent))
    if animated:
        return Header("webp", canvas or (1, 1), "RGBA", pages=2, icc=metadata.get(b"ICCP"))
    if size is None or (canvas is not None and canvas != size):
        raise ValueError("its sizes contradict each other")
    exif = metadata.get(b"EXIF")
    return Header(
        format="webp",
        size=size,
        mode="RGBA" if alpha else "RGB",
        orientation=exif_orientation(exif),
        icc=metadata.get(b"ICCP"),
        exif=exif,
    )


def _riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the kind and the size of each chunk, with ``file`` at the start of its content."""
    length = file.seek(0, os.SEEK_END)
    file.seek(4)
    end = 8 + int.from_bytes(file.read(4), "little")
    if end > length:
        raise ValueError(f"{length} bytes of {end}")
    position = 12
    while position + 8 <= end:
        file.seek(position)
        kind, extent = struct.unpack("<4sI", file.read(8))
        position += 8 + extent + extent % 2
        yield kind, extent


def _canvas_length(value: bytes) -> int:
    """Return a width or a height from its 24 bits, which hold one less."""
    return int.from_bytes(value, "little") + 1


# JPEG and BMP. Pillow's classes are called instead of Image.open, which tries every format that
# Pillow reads and has a limit of its own on the number of pixels.


def _read_jpeg(file: BinaryIO) -> Header:
    plain = _plain_jpeg(file.read(_PLAIN_HEAD))
    if plain is not None:
        return plain
    file.seek(0)
    image = JpegImagePlugin.JpegImageFile(file)
    exif = image.info.get("exif")
    return Header(
        format="jpg",
        size=image.size[::-1],
        mode=image.mode,
        orientation=exif_orientation(exif),
        icc=image.info.get("icc_profile"),
        exif=exif[6:] if exif else None,
        dpi=usable_dpi(image.info.get("dpi")),
    )


_PLAIN_HEAD = 4096
"""Bytes; the segments before the samples of a JPEG without metadata have 600 to 800."""


def _plain_jpeg(head: bytes) -> Header | None:
    """Return the header of an ordinary JPEG without metadata, None where Pillow has to read it.

    Most images of a data set are such files, and to walk over their few segments (ITU-T T.81, B.1)
    takes less than half as long as Pillow does. Only 8 bits, grey or three components, and
    well-formed segments are accepted, so that the result is always the one that Pillow returns.
    """
    size: Size | None = None
    mode = ""
    dpi: tuple[float, float] | None = None
    at = 2
    while head[at : at + 1] == b"\xff" and at + 4 <= len(head):
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4])
        content = head[at + 4 : at + 2 + length]
        if length < 2 or len(content) != length - 2:
            return None
        if marker == _SOS:
            return None if size is None else Header("jpg", size, mode, dpi=dpi)
        if marker in (_SOF0, _SOF2) and size is None:
            if len(content) not in (9, 15) or content[0] != 8 or content[5] * 3 + 6 != len(content):
                return None
            size = int.from_bytes(content[1:3]), int.from_bytes(content[3:5])
            mode = "L" if content[5] == 1 else "RGB"
            if 0 in size:
                return None
        elif marker == _APP0 and at == 2 and content[:5] == b"JFIF\0" and len(content) == 14:
            # JFIF 1.02: the unit (1: inch, 2: centimetre) and the density across and down.
            if scale := {1: 1.0, 2: 2.54}.get(content[7]):
                density = int.from_bytes(content[8:10]), int.from_bytes(content[10:12])
                dpi = usable_dpi(value * scale for value in density)
        elif marker == _DQT:
            # Tables of 8 bits: each is its number and 64 values.
            if len(content) % 65 or max(content[::65], default=0) > 15:
                return None
        elif marker not in (_DHT, _DRI, _COM):
            return None
        at += 2 + length
    return None


_SOF0, _SOF2, _DHT, _SOS, _DQT, _DRI = 0xC0, 0xC2, 0xC4, 0xDA, 0xDB, 0xDD
_APP0, _COM = 0xE0, 0xFE
"""Markers (T.81, table B.1)."""


def _read_bmp(file: BinaryIO) -> Header:
    image = BmpImagePlugin.BmpImageFile(file)
    return Header("bmp", image.size[::-1], image.mode)


# Formats whose readers are loaded with the first such image


def _read_tiff(file: BinaryIO) -> Header:
    from .tiff import read_tiff_header

    tiff = read_tiff_header(file)
    return Header(
        format="tiff",
        size=tiff.size,
        mode=tiff.mode,
        bits=16 if tiff.bits > 8 else 8,
        levels=2**tiff.bits,
        bands=tiff.bands,
        orientation=tiff.orientation,
        pages=tiff.pages,
        icc=tiff.icc,
        exif=None if tiff.exif is None else portable_exif(tiff.exif),
        dpi=usable_dpi(tiff.dpi),
        geo=tiff.geo,
    )


def _read_avif(file: BinaryIO) -> Header:
    from .stills import read_avif

    return read_avif(file)


def _read_gif(file: BinaryIO) -> Header:
    from .stills import read_gif

    return read_gif(file)


def _read_jp2(file: BinaryIO) -> Header:
    from .stills import read_jp2

    return read_jp2(file)


def _read_heic(file: BinaryIO) -> Header:
    from .stills import read_heic

    return read_heic(file)


_READERS: dict[ImageFormat, Callable[[BinaryIO], Header]] = {
    "jpg": _read_jpeg,
    "png": read_png,
    "webp": _read_webp,
    "bmp": _read_bmp,
    "tiff": _read_tiff,
    "avif": _read_avif,
    "gif": _read_gif,
    "jp2": _read_jp2,
    "heic": _read_heic,
}


# Files that are no image of a known format


def _other_format(head: bytes) -> str:
    for signature, name in _OTHER_SIGNATURES.items():
        if signature in head[: len(signature) + 8]:
            return f"its content is {name}"
    return "its content is not recognised"


_OTHER_SIGNATURES = {
    b"ftyp": "an MP4-like container",
    b"\x1aE\xdf\xa3": "a Matroska video",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"\0\0\0\x0cJXL": "JPEG XL",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
"""First bytes of files that often have the name of an image."""
