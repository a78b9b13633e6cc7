"""Read what a picture file says of itself, before a pixel is decoded or memory is taken for one.

The format is known by content, never by name, and from an allow-list. JPEG and BMP
headers are Pillow's to read, TIFF ones tifffile's (`media.tiff`); those of AVIF, GIF, HEIC and JPEG
2000 are in `media.stills`. PNG and WebP are walked chunk by chunk here, since Pillow's WebP reader
takes memory for the whole canvas when it opens a file, its PNG reader accepts files whose end is
missing, and libpng prints what it thinks of optional chunks to the terminal.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from PIL import BmpImagePlugin, Image, JpegImagePlugin

from ..errors import InputError
from ..frames import Size
from .formats import SNIFFED, ImageFormat, sniff_format

# Pillow warns about metadata that it cannot read. What matters of it is said in our own notes, and
# `warnings.catch_warnings` may not be used from several threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_LARGEST_METADATA = 8 << 20
"""Bytes of one profile or EXIF block beyond which a file is hostile (real ones: below 4 MiB)."""

_TRANSPOSED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap height and width."""

# Tag numbers of EXIF 2.32, table 4.
_ORIENTATION = 0x0112
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825

_KEPT_TAGS = frozenset(
    {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F}
)
"""What describes the picture: its title, camera, software, date, author, copyright, keywords."""

_LEFT_OUT_OF_EXIF = frozenset({0x927C, 0xA002, 0xA003, 0xA005})
"""Maker notes (their offsets break, and some hold a copy of the old picture), the old width and
height, and the interoperability folder."""


@dataclass(frozen=True)
class Header:
    """A picture file, described."""

    format: ImageFormat
    size: Size
    """Stored height and width."""
    mode: str
    """Pillow's name of the colour mode (``L``, ``RGB``, ``CMYK``, …)."""
    bits: int = 8
    """Per sample: 16, or 8 for everything up to 8."""
    orientation: int = 1
    """1..8, as EXIF counts."""
    pages: int = 1
    """Pictures in the file, thumbnails not counted."""
    icc: bytes | None = None
    exif: bytes | None = None
    """As a TIFF structure, without the ``Exif`` signature in front."""
    png: PngExtras | None = None
    bands: int = 4
    """Samples of a pixel, at most."""
    levels: int = 256
    """That a stored sample can have."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, across and down, as they are stored."""
    geo: tuple[tuple[int, Any], ...] = ()
    """GeoTIFF tags and their values."""
    transfer: int = 2
    """Transfer characteristic as of ITU-T H.273: 2 unspecified, 16 PQ, 18 HLG."""

    @property
    def displayed_size(self) -> Size:
        """Height and width once the picture is upright."""
        height, width = self.size
        return (width, height) if self.orientation in _TRANSPOSED else (height, width)


@dataclass(frozen=True)
class PngExtras:
    """What only PNG has."""

    transparent_grey: int | None = None
    """The one grey sample that is transparent, scaled to 8 or 16 bits."""
    colour_chunks: tuple[tuple[bytes, bytes], ...] = ()
    """cICP, sRGB, gAMA and cHRM chunks: how the numbers are to be shown without a profile."""


def read_header(file: BinaryIO, name: str, *, max_pixels: int) -> Header:
    """Describe the picture in the seekable ``file``; ``name`` is for messages.

    Raises InputError where the file is no picture of a known format, is damaged as far as a header
    can tell, or is larger than ``max_pixels``.
    """
    head = file.read(SNIFFED)
    file.seek(0)
    format_ = sniff_format(head)
    if format_ is None:
        if not head:
            raise InputError(f"{name}: the file is empty; replace it with a whole copy")
        raise InputError(
            f"{name}: not a picture of a known format: {_other_format(head)}; "
            "convert it to JPEG, PNG, WebP or TIFF"
        )
    reader = _READERS[format_]
    try:
        header = reader(file)
    # Whatever a hostile header makes a parser raise, it is the file that is wrong: Pillow raises
    # SyntaxError, ValueError, struct.error, IndexError, OverflowError and more.
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:
        raise damaged(name, format_, error) from error
    height, width = header.size
    if height < 1 or width < 1:
        raise damaged(name, format_, f"its header says {width}×{height} pixels")
    if height * width * max(header.bands, 4) > 4 * max_pixels:
        bands = f" of {header.bands} bands" if header.bands > 4 else ""
        raise InputError(
            f"{name}: {width}×{height}{bands} is more than --max-pixels {max_pixels} allows; "
            "raise it if the picture is really this large"
        )
    if header.orientation not in range(1, 9):
        header = replace(header, orientation=1)
    return header


def damaged(name: str, format_: ImageFormat, found: object) -> InputError:
    """Return the error for a picture that cannot be read, for the reason ``found``."""
    reason = str(found).replace("\n", " ")
    return InputError(
        f"{name}: cannot be read as {FORMAT_NAMES[format_]}: {reason or type(found).__name__}; "
        "the file is damaged, cut off or of a rare kind: replace it or convert it"
    )


FORMAT_NAMES: dict[ImageFormat, str] = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WebP",
    "avif": "AVIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "gif": "GIF",
    "jp2": "JPEG 2000",
    "heic": "HEIC",
}


def portable_exif(exif: bytes) -> bytes | None:
    """Return what of an EXIF block stays true of a translated, upright picture.

    The orientation, the thumbnail of the old picture, its size and the maker notes are left out.
    Returns a TIFF structure, or None where nothing is left or the block cannot be read.
    """
    try:
        old = Image.Exif()
        old.load(exif)
        return _portable(old)
    except Exception:
        return None  # Metadata that cannot be read never costs the picture.


def _portable(old: Image.Exif) -> bytes | None:
    new = Image.Exif()
    for tag in _KEPT_TAGS & set(old):
        new[tag] = old[tag]
    for folder in (_EXIF_IFD, _GPS_IFD):
        kept = {k: v for k, v in old.get_ifd(folder).items() if k not in _LEFT_OUT_OF_EXIF}
        if kept:
            new[folder] = kept
    # Without the signature that JPEG puts in front.
    return new.tobytes()[6:] if len(new) else None


def quiet_png(data: bytes) -> bytes:
    """Return a PNG without its optional chunks, after checking every chunk's sum and the end.

    A decoder has nothing to warn about then. Raises ValueError that says what is wrong.
    """
    kept = [_PNG_SIGNATURE]
    whole = False
    for kind, start, end in _png_chunks(io.BytesIO(data)):
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise ValueError(f"wrong checksum of chunk {_chunk_name(kind)}")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[start:end])
        whole = kind == b"IEND"
    if not whole:
        raise ValueError("it has no end")
    return b"".join(kept)


# PNG (ISO/IEC 15948)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def _read_png(file: BinaryIO) -> Header:
    chunks: dict[bytes, bytes] = {}
    texts: dict[bytes, bytes] = {}
    for kind, start, end in _png_chunks(file):
        if kind in (b"tEXt", b"zTXt", b"iTXt") and end - start <= _LARGEST_METADATA:
            file.seek(start + 8)
            texts |= _png_text(kind, file.read(end - start - 12))
        elif kind in (
            b"IHDR",
            b"tRNS",
            b"iCCP",
            b"eXIf",
            b"acTL",
            b"cICP",
            b"sRGB",
            b"gAMA",
            b"cHRM",
            b"pHYs",
        ):
            if end - start > _LARGEST_METADATA:
                raise ValueError(f"{_chunk_name(kind)} of {end - start} bytes")
            file.seek(start + 8)
            content, check = file.read(end - start - 12), file.read(4)
            if zlib.crc32(kind + content) != int.from_bytes(check):
                raise ValueError(f"wrong checksum of chunk {_chunk_name(kind)}")
            chunks.setdefault(kind, content)
        elif kind == b"IDAT":
            chunks.setdefault(kind, b"")
    if b"IDAT" not in chunks:
        raise ValueError("it has no picture data")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(
        ">IIBBBBB", chunks[b"IHDR"]
    )
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise ValueError(f"colour type {colour} with {depth} bits")
    grey = None
    if colour == 0 and len(chunks.get(b"tRNS", b"")) == 2:
        (sample,) = struct.unpack(">H", chunks[b"tRNS"])
        grey = sample if depth == 16 else sample * 255 // (2**depth - 1)
    exif = chunks.get(b"eXIf") or _raw_profile(texts)
    return Header(
        format="png",
        size=(height, width),
        mode=_PNG_MODES[colour],
        bits=16 if depth == 16 else 8,
        levels=2**depth,
        orientation=_png_orientation(exif, texts),
        pages=int.from_bytes(chunks.get(b"acTL", b"\0\0\0\1")[:4]),
        icc=_png_profile(chunks.get(b"iCCP")),
        exif=exif,
        dpi=_png_resolution(chunks.get(b"pHYs", b"")),
        # cICP: primaries, transfer, matrix, range (PNG, third edition, 11.3.2.6).
        transfer=chunks.get(b"cICP", b"\2\2\0\1")[1],
        png=PngExtras(
            grey,
            tuple((k, chunks[k]) for k in (b"cICP", b"sRGB", b"gAMA", b"cHRM") if k in chunks),
        ),
    )


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each chunk, where it starts, and where it ends, checksum included."""
    length = file.seek(0, os.SEEK_END)
    position = len(_PNG_SIGNATURE)
    kind = b""
    while kind != b"IEND" and position < length:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        end = position + 12 + size
        if end > length:
            raise ValueError(f"{_chunk_name(kind)} ends after the file")
        if (position == 8) != (kind == b"IHDR"):
            raise ValueError(f"{_chunk_name(kind)} is out of place")
        yield kind, position, end
        position = end


def _png_resolution(chunk: bytes) -> tuple[float, float] | None:
    """Return pixels per inch from those per metre; without a unit they are a ratio only."""
    if len(chunk) != 9 or chunk[8] != 1:
        return None
    across, down = struct.unpack(">II", chunk[:8])
    return _usable((across * 0.0254, down * 0.0254))


_XMP = b"XML:com.adobe.xmp"
_RAW_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")
"""Keywords of the texts in which ImageMagick and others keep EXIF as hexadecimal digits."""


def _png_text(kind: bytes, content: bytes) -> dict[bytes, bytes]:
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
            text = zlib.decompressobj().decompress(text, _LARGEST_METADATA)
        except zlib.error:
            return {}  # Metadata that cannot be read never costs the picture.
    return {keyword: text}


def _raw_profile(texts: dict[bytes, bytes]) -> bytes | None:
    """Return EXIF that is kept as a text: a name, a length, and the digits in lines."""
    for keyword in _RAW_PROFILES:
        try:
            digits = b"".join(texts.get(keyword, b"").split()[2:])
            block = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            continue  # Metadata that cannot be read never costs the picture.
        if block.startswith((b"Exif\0\0", b"II", b"MM")):
            return block.removeprefix(b"Exif\0\0")
    return None


def _png_orientation(exif: bytes | None, texts: dict[bytes, bytes]) -> int:
    """Return the orientation by EXIF, or by XMP where EXIF says none."""
    told = _told_orientation(exif)
    if told is None and (found := _XMP_ORIENTATION.search(texts.get(_XMP, b""))):
        return int(found[1])
    return 1 if told is None else told


_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")


def _png_profile(chunk: bytes | None) -> bytes | None:
    """Return the colour profile in an iCCP chunk; one that cannot be read is empty."""
    if chunk is None:
        return None
    _, _, packed = chunk.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed[1:], _LARGEST_METADATA)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof else b""


def _chunk_name(kind: bytes) -> str:
    return ascii(kind.decode("latin-1"))[1:-1]


# WebP (RFC 9649)


def _read_webp(file: BinaryIO) -> Header:
    length = file.seek(0, os.SEEK_END)
    file.seek(4)
    riff_end = 8 + int.from_bytes(file.read(4), "little")
    if riff_end > length:
        raise ValueError(f"{length} bytes of {riff_end}")
    position = 12
    canvas: Size | None = None
    size: Size | None = None
    alpha = animated = False
    metadata: dict[bytes, bytes] = {}
    while position + 8 <= riff_end:
        file.seek(position)
        kind, extent = struct.unpack("<4sI", file.read(8))
        position += 8 + extent + extent % 2
        if kind == b"VP8X":
            flags, width, height = struct.unpack("<I3s3s", file.read(10))
            animated, alpha = bool(flags & 0x02), bool(flags & 0x10)
            canvas = _from_24_bits(height), _from_24_bits(width)
        elif kind == b"VP8 " and size is None:
            width, height = struct.unpack("<6x2H", file.read(10))
            size = height & 0x3FFF, width & 0x3FFF
        elif kind == b"VP8L" and size is None:
            (bits,) = struct.unpack("<xI", file.read(5))
            size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
            alpha = alpha or bool(bits >> 28 & 1)
        elif kind in (b"ICCP", b"EXIF") and extent <= _LARGEST_METADATA:
            metadata.setdefault(kind, file.read(extent))
    if animated:
        return Header("webp", canvas or (1, 1), "RGBA", pages=2)
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


def _from_24_bits(value: bytes) -> int:
    return int.from_bytes(value, "little") + 1


# JPEG and BMP. Their classes are called and not Image.open, which tries every format it knows
# and has a limit of its own on the number of pixels.


def _read_jpeg(file: BinaryIO) -> Header:
    image = JpegImagePlugin.JpegImageFile(file)
    exif = image.info.get("exif")
    return Header(
        format="jpg",
        size=image.size[::-1],
        mode=image.mode,
        orientation=exif_orientation(exif),
        icc=image.info.get("icc_profile"),
        exif=exif[6:] if exif else None,
        dpi=_usable(image.info.get("dpi")),
    )


def _usable(dpi: Any) -> tuple[float, float] | None:
    """Return a resolution that can be true, else None."""
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def _read_bmp(file: BinaryIO) -> Header:
    image = BmpImagePlugin.BmpImageFile(file)
    return Header("bmp", image.size[::-1], image.mode)


def _read_tiff(file: BinaryIO) -> Header:
    from .tiff import read_tiff_header

    found = read_tiff_header(file)
    try:
        exif = None if found.exif is None else _portable(found.exif)
    except Exception:
        exif = None  # Metadata that cannot be read never costs the picture.
    return Header(
        format="tiff",
        size=found.size,
        mode=found.mode,
        bits=16 if found.bits > 8 else 8,
        levels=2**found.bits,
        bands=found.bands,
        orientation=found.orientation,
        pages=found.pages,
        icc=found.icc,
        exif=exif,
        dpi=_usable(found.dpi),
        geo=found.geo,
    )


def exif_orientation(exif: bytes | None) -> int:
    """Return the orientation that an EXIF block tells; 1 (upright) where it tells none."""
    told = _told_orientation(exif)
    return 1 if told is None else told


def _told_orientation(exif: bytes | None) -> int | None:
    if not exif:
        return None
    try:
        block = Image.Exif()
        block.load(exif)
        return int(block[_ORIENTATION]) if _ORIENTATION in block else None
    except Exception:
        return None  # Metadata that cannot be read never costs the picture.


def _other_format(head: bytes) -> str:
    for signature, name in _STRANGERS.items():
        if signature in head[: len(signature) + 8]:
            return f"its content is {name}"
    return "its content is none of them"


_STRANGERS = {
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
"""First bytes of what is often named as a picture."""


def _read_still(format_: ImageFormat) -> Callable[[BinaryIO], Header]:
    """Return a reader of `media.stills`, which is loaded with the first such picture."""

    def read(file: BinaryIO) -> Header:
        from . import stills

        reader: Callable[[BinaryIO], Header] = getattr(stills, f"read_{format_}")
        return reader(file)

    return read


_READERS: dict[ImageFormat, Callable[[BinaryIO], Header]] = {
    "jpg": _read_jpeg,
    "png": _read_png,
    "webp": _read_webp,
    "bmp": _read_bmp,
    "tiff": _read_tiff,
    "avif": _read_still("avif"),
    "gif": _read_still("gif"),
    "jp2": _read_still("jp2"),
    "heic": _read_still("heic"),
}
