"""Read GIF files whose first image has no extension before it.

FFmpeg 8 divides a GIF into packets at its extensions. Until it has seen one it takes all images for
one packet, of which the decoder returns the first image alone. Pillow writes no extension where no
duration is given.
"""

from __future__ import annotations

from typing import BinaryIO

from .spliced import Parts

_SIGNATURES = (b"GIF87a", b"GIF89a")
_SCREEN = 13
"""Bytes of the signature and the logical screen descriptor (GIF89a, 17 and 18)."""
_IMAGE = b","
"""The first byte of an image descriptor (GIF89a, 20)."""
_CONTROL = bytes.fromhex("21f9040000000000")
"""A graphic control extension that states nothing: no delay, no disposal, no transparency."""


def gif_parts(file: BinaryIO, size: int) -> Parts | None:
    """Return an open GIF of ``size`` bytes with an extension before its first image.

    None where it has one, and where the file is no GIF. Raises OSError.
    """
    file.seek(0)
    head = file.read(_SCREEN)
    if head[:6] not in _SIGNATURES or len(head) < _SCREEN:
        return None
    table = 3 * 2 ** ((head[10] & 7) + 1) if head[10] & 0x80 else 0
    at = file.seek(_SCREEN + table)
    if file.read(1) != _IMAGE:
        return None
    return (0, at), _CONTROL, (at, size)
