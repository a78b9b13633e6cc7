"""Walk through an animated image and tell its frames, without decoding a pixel.

The formats are read by their specifications: GIF89a; PNG, third edition (APNG); and RFC 9649
(WebP). Of each frame this gives where its compressed data lie, its rectangle of the canvas, its
time, and how it is laid over the frames before it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

from ...errors import InputError
from ...frames import Size
from ..demux.stream_info import ColourTags
from ..formats import AnimationFormat

Disposal: TypeAlias = Literal["keep", "clear", "restore"]
"""What becomes of a frame's rectangle before the next frame: it stays, becomes transparent, or gets
back what was there before the frame."""

MOST_FRAMES = 2**18
"""Frames beyond which a file is refused: they are listed in memory. 87 minutes at 50 a second."""

_SHOWN_AT_ONCE = Fraction(1, 10)
"""Seconds for which a frame without a time is shown, as browsers do."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One frame as it is stored: a rectangle of the canvas."""

    data: tuple[tuple[int, int], ...]
    """The compressed data: the first offset in the file, and the one behind the last. Of a GIF the
    image data, of a PNG the chunks IDAT or fdAT, of a WebP the chunks in ANMF."""
    left: int
    top: int
    width: int
    height: int
    seconds: Fraction
    """For which it is shown."""
    disposal: Disposal = "keep"
    is_blended: bool = True
    """Transparent pixels show what is below; else the rectangle is replaced as a whole."""
    may_be_transparent: bool = False
    palette: tuple[int, int] | None = None
    """Of a GIF: offset and bytes of the table of colours."""
    transparent: int | None = None
    """Of a GIF: the index that is transparent."""
    is_interlaced: bool = False
    """Of a GIF: its rows are stored in four passes."""


@dataclass
class Structure:
    """An animated image, as far as it was walked through."""

    format: AnimationFormat
    size: Size = (0, 0)
    """Height and width of the canvas."""
    pieces: tuple[Piece, ...] = ()
    plays: int = 0
    """How often it is shown; 0 is for ever."""
    trouble: str | None = None
    """How its end shows that some of it is missing; None where it is whole."""
    colour: ColourTags = field(default_factory=ColourTags)
    head: tuple[tuple[bytes, bytes], ...] = ()
    """Of a PNG: IHDR and the chunks that its frames share, PLTE and tRNS; type and content."""


def sniffed(head: bytes) -> AnimationFormat | None:
    """Return the format of which a file may be an animation, by its first bytes (21 suffice)."""
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "apng"
    # The flags of the extended header (RFC 9649, 2.7.1).
    is_webp = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X"
    return "webp" if is_webp and len(head) > 20 and head[20] & 2 else None


def is_animation(path: Path) -> bool:
    """Return whether a file is an animated image, by no more of it than that needs.

    Raises OSError where it cannot be read.
    """
    with path.open("rb") as file:
        return has_several_frames(file)


def has_several_frames(file: BinaryIO) -> bool:
    """Return whether an open file is an animation: a GIF of several images, an APNG, a WebP.

    It is read no further than that needs. False where it ends or is damaged before. Raises OSError.
    """
    format_ = sniffed(file.read(_HEAD))
    if format_ is None or format_ == "webp":
        return format_ is not None
    walked = _walk(file, Structure(format_))
    try:
        return next(walked, None) is not None and next(walked, None) is not None
    except (ValueError, struct.error):
        return False


def read_structure(file: BinaryIO) -> Structure | None:
    """Return the structure of an open animation; of a GIF with one image, too.

    None where the file is no animated image. Where it breaks off, ``trouble`` tells it, and what is
    whole before is returned. Raises ValueError or struct.error where not even its header can be
    read, InputError where it has more than `MOST_FRAMES`, and OSError.
    """
    file.seek(0)
    format_ = sniffed(file.read(_HEAD))
    if format_ is None:
        return None
    structure = Structure(format_)
    pieces = []
    try:
        for piece in _walk(file, structure):
            pieces.append(piece)
            if len(pieces) > MOST_FRAMES:
                raise InputError(f"it has more than {MOST_FRAMES} frames; split it")
    except (ValueError, struct.error) as error:
        if not all(structure.size):
            raise
        is_end = isinstance(error, struct.error)
        structure.trouble = "it ends within a frame" if is_end else str(error)
    structure.pieces = tuple(pieces)
    is_still = format_ == "apng" and not pieces and structure.trouble is None
    return None if is_still else structure


_HEAD = 32


def _walk(file: BinaryIO, structure: Structure) -> Iterator[Piece]:
    file.seek(0)
    walk = {"gif": _walk_gif, "apng": _walk_apng, "webp": _walk_webp}[structure.format]
    return walk(file, structure)


# GIF (GIF89a, 17 to 27)

_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
"""Application extensions that hold how often an animation is repeated."""


def _walk_gif(file: BinaryIO, structure: Structure) -> Iterator[Piece]:
    width, height, flags = struct.unpack("<6x2HB2x", file.read(13))
    structure.size = height, width
    structure.plays = 1  # without the extension of Netscape
    shared = _skip_palette(file, flags)
    control = _NO_CONTROL
    while (kind := file.read(1)) != b"\x3b":
        if kind == b"\x21":
            label = file.read(1)
            if label == b"\xf9":
                content = _sub_blocks(file)
                control = content if len(content) >= 4 else _NO_CONTROL
            elif label == b"\xff":
                content = _sub_blocks(file)
                if content[:11] in _LOOPS and len(content) >= 14 and content[11] == 1:
                    repeated = int.from_bytes(content[12:14], "little")
                    # Shown once more than that (Chromium, cc/paint/image_animation_count.h).
                    structure.plays = repeated and repeated + 1
            else:
                _skip_sub_blocks(file)
        elif kind == b"\x2c":
            left, top, columns, rows, flags = struct.unpack("<4HB", file.read(9))
            own = _skip_palette(file, flags)
            start = file.tell()
            (_,) = struct.unpack("B", file.read(1))
            _skip_sub_blocks(file)
            packed, delay, index = struct.unpack("<BHB", control[:4])
            yield Piece(
                data=((start, file.tell()),),
                left=left,
                top=top,
                width=columns,
                height=rows,
                # Browsers show frames of 0 and of 1 hundredths for ten (Firefox's
                # image/FrameTimeout.h); FFmpeg 8.1 does so with 0 only.
                seconds=Fraction(delay, 100) if delay > 1 else _SHOWN_AT_ONCE,
                disposal=_GIF_DISPOSALS.get(packed >> 2 & 7, "keep"),
                may_be_transparent=bool(packed & 1),
                palette=own or shared,
                transparent=index if packed & 1 else None,
                is_interlaced=bool(flags & 0x40),
            )
            control = _NO_CONTROL
        elif not kind:
            raise ValueError("it has no end")
        elif kind != b"\0":  # some programs write empty sub-blocks between the blocks
            raise ValueError("it has a block of an unknown kind")


_NO_CONTROL = bytes(4)
_GIF_DISPOSALS: dict[int, Disposal] = {2: "clear", 3: "restore"}


def _skip_palette(file: BinaryIO, flags: int) -> tuple[int, int] | None:
    """Skip a table of colours, if there is one; return its offset and its bytes."""
    if not flags & 0x80:
        return None
    length = 3 << (flags & 7) + 1
    start = file.tell()
    file.seek(length, os.SEEK_CUR)
    return start, length


def _sub_blocks(file: BinaryIO) -> bytes:
    """Return the content of the next sub-blocks, of which extensions have few."""
    content = b""
    while True:
        (length,) = struct.unpack("B", file.read(1))
        if not length:
            return content
        block = file.read(length)
        if len(content) < _LONGEST_EXTENSION:
            content += block


_LONGEST_EXTENSION = 1024


def _skip_sub_blocks(file: BinaryIO) -> None:
    while True:
        (length,) = struct.unpack("B", file.read(1))
        if not length:
            return
        file.seek(length, os.SEEK_CUR)


# APNG (PNG, third edition, 11.3.6)

_PNG_DISPOSALS: dict[int, Disposal] = {1: "clear", 2: "restore"}


def _walk_apng(file: BinaryIO, structure: Structure) -> Iterator[Piece]:
    length = file.seek(0, os.SEEK_END)
    position, frames, found = 8, 0, 0
    control: bytes | None = None
    data: list[tuple[int, int]] = []
    head: dict[bytes, bytes] = {}
    may_be_transparent = False
    kind = b""
    while kind != b"IEND":
        file.seek(position)
        extent, kind = struct.unpack(">I4s", file.read(8).ljust(8, b"\xff"))
        end = position + 12 + extent
        if end > length:
            if control is not None and data:  # perhaps whole
                yield _apng_piece(control, data, may_be_transparent or b"tRNS" in head)
            raise ValueError("it ends within a frame")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"cICP") and kind not in head:
            head[kind] = file.read(min(extent, 1024))
        if kind == b"IHDR":
            width, height, colour = struct.unpack(">IIxB", head[kind][:10])
            structure.size = height, width
            may_be_transparent = colour in (4, 6)
        elif kind == b"acTL":
            frames, structure.plays = struct.unpack(">II", head[kind])
        elif kind == b"IDAT" and b"acTL" not in head:
            return  # no animation: it would stand before
        elif kind in (b"fcTL", b"IEND"):
            if control is not None and data:
                found += 1
                yield _apng_piece(control, data, may_be_transparent or b"tRNS" in head)
            data = []
            control = file.read(extent) if kind == b"fcTL" else None
        elif kind in (b"IDAT", b"fdAT") and control is not None:
            # An image before the first fcTL is for programs that show no animations.
            data.append((position, end))
        if not structure.head and kind in (b"IDAT", b"fcTL"):
            shared = (b"IHDR", b"PLTE", b"tRNS")
            structure.head = tuple((name, head[name]) for name in shared if name in head)
            if len(head.get(b"cICP", b"")) == 4:
                primaries, transfer = head[b"cICP"][:2]
                structure.colour = ColourTags(primaries=primaries, transfer=transfer, range=2)
        position = end
    if found < frames:
        raise ValueError(f"its header states {frames} frames, it holds {found}")


def _apng_piece(control: bytes, data: list[tuple[int, int]], may_be_transparent: bool) -> Piece:
    width, height, left, top, numerator, denominator, disposal, blend = struct.unpack(
        ">4x4IHHBB", control
    )
    return Piece(
        data=tuple(data),
        left=left,
        top=top,
        width=width,
        height=height,
        seconds=Fraction(numerator, denominator or 100) or _SHOWN_AT_ONCE,
        disposal=_PNG_DISPOSALS.get(disposal, "keep"),
        is_blended=blend == 1,
        may_be_transparent=may_be_transparent,
    )


# WebP (RFC 9649, 2.7)


def _walk_webp(file: BinaryIO, structure: Structure) -> Iterator[Piece]:
    length = file.seek(0, os.SEEK_END)
    file.seek(4)
    (extent,) = struct.unpack("<I", file.read(4))
    end, position = 8 + extent, 12
    while position + 8 <= min(end, length):
        file.seek(position)
        kind, extent = struct.unpack("<4sI", file.read(8))
        start, position = position + 8, position + 8 + extent + extent % 2
        if start + extent > min(end, length):
            break
        if kind == b"VP8X":
            width, height = struct.unpack("<4x3s3s", file.read(10))
            structure.size = _one_more(height), _one_more(width)
        elif kind == b"ANIM":
            (structure.plays,) = struct.unpack("<4xH", file.read(6))
        elif kind == b"ANMF":
            head = file.read(min(extent, 29))
            if len(head) < 16:
                raise ValueError("a frame in it is shorter than its header")
            sides = [int.from_bytes(head[at : at + 3], "little") for at in range(0, 15, 3)]
            left, top, width, height, milliseconds = sides
            flags, first = head[15], head[16:20]
            yield Piece(
                data=((start + 16, start + extent),),
                left=2 * left,
                top=2 * top,
                width=width + 1,
                height=height + 1,
                seconds=Fraction(milliseconds, 1000) or _SHOWN_AT_ONCE,
                disposal="clear" if flags & 1 else "keep",
                is_blended=not flags & 2,
                # VP8 without ALPH is opaque; VP8L tells by a bit behind its signature and sizes.
                may_be_transparent=first != b"VP8 "
                and (first != b"VP8L" or len(head) < 29 or bool(head[28] & 0x10)),
            )
    if end > length:
        raise ValueError(f"its header states {end} bytes, it has {length}")
    # The last chunk may lack the byte that makes its length even.
    if position not in (end, end + 1):
        raise ValueError("the lengths of its chunks contradict that of the file")


def _one_more(value: bytes) -> int:
    """Return a width or a height from its 24 bits, which hold one less."""
    return int.from_bytes(value, "little") + 1
