"""What the pixel formats of FFmpeg hold, and which of an encoder's formats suits a source."""

from __future__ import annotations

import re

import av

from ...frames import Size

_ALPHA_FORMATS = r"yuva4\d\dp(\d+le)?$|gbrap(\d+le)?$|(rgba|bgra|argb|abgr)$|rgba64[bl]e$"
"""The pixel formats with alpha that are written."""

Y4M_FORMATS = [
    "gray",
    *(f"yuv{chroma}p{deep}" for deep in ("", "10le", "12le") for chroma in (420, 422, 444)),
]
"""The pixel formats that a y4m stream can hold."""


def choose_pix_fmt(source: str, formats: list[str], *, alpha: bool = False) -> str:
    """Return which of an encoder's ``formats`` loses least of ``source``, and adds least to it.

    RGB and grey count as 4:2:0, which players support. An encoder that lists no formats takes all.
    With ``alpha`` a format that holds alpha is preferred; without it none is chosen.
    """
    plain = re.sub(r"^yuvj", "yuv", source)
    if not formats:
        return re.sub("^yuva", "yuv", plain) if not alpha else plain.replace("yuv4", "yuva4", 1)
    x, y, bits = _sampling(plain)
    source_format = av.VideoFormat(plain)
    # A palette has one component, as grey does.
    if source_format.is_rgb or len(source_format.components) < 3 or plain.startswith("xyz"):
        x, y = 2, 2
    candidates = [each for each in formats if re.match(r"yuv4\d\dp(\d+le)?$|nv12$|p010le$", each)]
    if alpha:
        candidates = [each for each in formats if re.match(_ALPHA_FORMATS, each)] or candidates

    def loss(pix_fmt: str) -> tuple[bool, int, int, int, bool]:
        across, down, deep = _sampling(pix_fmt)
        return (
            across > x or down > y,
            max(0, bits - deep),
            (x - across) + (y - down),
            max(0, deep - bits),
            not pix_fmt.startswith("yuv"),
        )

    return min(candidates, key=loss, default=formats[0])


def bits_of(pix_fmt: str) -> int:
    """Return the bits per component of an FFmpeg pixel format."""
    return max(component.bits for component in av.VideoFormat(pix_fmt).components)


def frame_bytes(pix_fmt: str, size: Size) -> int:
    """Return the bytes of a frame of ``size`` (height, width) in a planar format, as y4m has it."""
    height, width = size
    return sum(
        each.width * each.height * (2 if each.bits > 8 else 1)
        for each in av.VideoFormat(pix_fmt, width, height).components
    )


def is_odd_for(pix_fmt: str, size: Size) -> bool:
    """Return whether a side is not a multiple of the pixel format's chroma subsampling."""
    across, down, _ = _sampling(pix_fmt)
    return bool(size[0] % down or size[1] % across)


def _sampling(pix_fmt: str) -> tuple[int, int, int]:
    """Return luma samples per chroma sample across and down, and the bits of a pixel format."""
    components = av.VideoFormat(pix_fmt, 16, 16).components
    chroma = components[1] if len(components) > 1 else components[0]
    return 16 // chroma.width, 16 // chroma.height, bits_of(pix_fmt)
