"""Animated images byte by byte, with what Pillow does not write: all disposals, places, times."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Part:
    """A frame as it is stored, ``(H, W, 4)``: red, green, blue and alpha."""

    pixels: Any
    left: int = 0
    top: int = 0
    time: int = 10
    """Hundredths of a second in GIF, else milliseconds."""
    disposal: int = 0
    blended: bool = True
    """Of PNG and WebP; a GIF is always blended."""
    interlaced: bool = False
    control: bool = True
    """Of GIF: there is a control extension before it."""


def parts(
    random: np.random.Generator, size: tuple[int, int], count: int, *, disposals: int, alpha: str
) -> list[Part]:
    """Return random parts that cover rectangles of a canvas of ``size``; the first covers it all.

    ``alpha`` is ``none``, ``bit`` or ``full``.
    """
    result = []
    for number in range(count):
        top, left = (int(random.integers(0, side - 1)) if number else 0 for side in size)
        height = int(random.integers(1, size[0] - top + 1)) if number else size[0]
        width = int(random.integers(1, size[1] - left + 1)) if number else size[1]
        pixels = random.integers(0, 256, (height, width, 4), np.uint8)
        # A GIF has 256 colours for each part.
        pixels[..., :3] = (pixels[..., :3] // 64) * 85
        if alpha == "none":
            pixels[..., 3] = 255
        elif alpha == "bit":
            pixels[..., 3] = np.where(pixels[..., 3] > 100, 255, 0)
        result.append(
            Part(
                pixels,
                left // 2 * 2,
                top // 2 * 2,
                time=int(random.integers(2, 40)),
                disposal=int(random.integers(0, disposals)),
                blended=bool(random.integers(0, 2)),
                interlaced=bool(random.integers(0, 2)),
            )
        )
    return result


def gif(
    path: Path,
    frames: Sequence[Part],
    size: tuple[int, int] | None = None,
    *,
    loops: int | None = 0,
    end: bytes = b";",
    local: bool = True,
) -> Path:
    """Write a GIF of up to 128 colours a part; those of the first are shared without ``local``."""
    height, width = size or frames[0].pixels.shape[:2]
    tables = [_table(part.pixels) for part in frames]
    shared = b"" if local else tables[0][0]
    data = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x70 | (0 if local else 0x87), 0, 0)
    data += shared
    if loops is not None:
        data += b"!\xff\x0bNETSCAPE2.0\3\1" + struct.pack("<H", loops) + b"\0"
    for part, (table, indices) in zip(frames, tables, strict=True):
        clear = bool((part.pixels[..., 3] == 0).any())
        flags = part.disposal << 2 | clear
        if part.control:
            data += struct.pack("<3sBHBB", b"!\xf9\4", flags, part.time, 255, 0)
        rows, columns = indices.shape
        marks = (0x87 if local else 0) | (0x40 if part.interlaced else 0)
        data += struct.pack("<BHHHHB", 0x2C, part.left, part.top, columns, rows, marks)
        data += (table if local else b"") + _lzw(indices, interlaced=part.interlaced)
    path.write_bytes(data + end)
    return path


def _table(pixels: Any) -> tuple[bytes, Any]:
    """Return 256 colours, of which the last is transparent, and the index of each pixel."""
    colours, inverse = np.unique(pixels[..., :3].reshape(-1, 3), axis=0, return_inverse=True)
    assert len(colours) < 256
    indices = inverse.reshape(pixels.shape[:2]).astype(np.uint8)
    indices[pixels[..., 3] == 0] = 255
    return colours.astype(np.uint8).tobytes().ljust(768, b"\0"), indices


def _lzw(indices: Any, *, interlaced: bool) -> bytes:
    """Return the image data of a GIF, as Pillow compresses them."""
    if interlaced:
        rows = len(indices)
        passes = ((0, 8), (4, 8), (2, 4), (1, 2))
        indices = indices[[row for first, step in passes for row in range(first, rows, step)]]
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(indices))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(file, "GIF", optimize=False, interlace=0)
    data = file.getvalue()
    at = 13 + 768
    while data[at] == 0x21:
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    assert data[at] == 0x2C
    return data[at + 10 : -1]


def apng(
    path: Path,
    frames: Sequence[Part],
    size: tuple[int, int] | None = None,
    *,
    plays: int = 0,
    hidden: Any = None,
    times: Sequence[tuple[int, int]] | None = None,
    stated: int | None = None,
    end: bool = True,
    chunks: bytes = b"",
) -> Path:
    """Write an APNG; ``hidden`` is a default image that is not part of the animation.

    ``times`` are numerators and denominators, ``stated`` is the number of frames in its header,
    and ``chunks`` follow IHDR.
    """
    height, width = size or frames[0].pixels.shape[:2]
    has_alpha = any((part.pixels[..., 3] < 255).any() for part in frames)
    channels = 4 if has_alpha else 3
    head = struct.pack(">IIBBBBB", width, height, 8, 6 if has_alpha else 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks
    data += chunk(b"acTL", struct.pack(">II", len(frames) if stated is None else stated, plays))
    number = 0
    if hidden is not None:
        data += chunk(b"IDAT", _deflated(hidden[..., :channels]))
    for index, part in enumerate(frames):
        rows, columns = part.pixels.shape[:2]
        time = times[index] if times else (part.time, 1000)
        place = struct.pack(">IIII", columns, rows, part.left, part.top)
        control = place + struct.pack(">HHBB", *time, part.disposal, part.blended)
        data += chunk(b"fcTL", struct.pack(">I", number) + control)
        number += 1
        content = _deflated(part.pixels[..., :channels])
        if index == 0 and hidden is None:
            data += chunk(b"IDAT", content)
            continue
        for piece in (content[:50], content[50:]):
            data += chunk(b"fdAT", struct.pack(">I", number) + piece)
            number += 1
    path.write_bytes(data + (chunk(b"IEND", b"") if end else b""))
    return path


def _deflated(pixels: Any) -> bytes:
    rows = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    return zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def webp(
    path: Path, frames: Sequence[Part], size: tuple[int, int] | None = None, *, plays: int = 0
) -> Path:
    """Write an animated WebP without loss."""
    height, width = size or frames[0].pixels.shape[:2]
    content = b"VP8X\x0a\0\0\0\x12\0\0\0" + _three(width - 1) + _three(height - 1)
    content += struct.pack("<4sIIH", b"ANIM", 6, 0, plays)
    for part in frames:
        file = io.BytesIO()
        Image.fromarray(part.pixels).save(file, "WEBP", lossless=True, exact=True)
        still = file.getvalue()
        still = still[30:] if still[12:16] == b"VP8X" else still[12:]
        rows, columns = part.pixels.shape[:2]
        head = _three(part.left // 2) + _three(part.top // 2) + _three(columns - 1)
        head += _three(rows - 1) + _three(part.time)
        head += bytes([(not part.blended) << 1 | (part.disposal == 1)])
        content += struct.pack("<4sI", b"ANMF", 16 + len(still)) + head + still
    path.write_bytes(struct.pack("<4sI4s", b"RIFF", 4 + len(content), b"WEBP") + content)
    return path


def _three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]
