"""What a decoded frame holds beside its pixels: orientation, field order, bit depth."""

from __future__ import annotations

import math
import re
import struct
from fractions import Fraction
from typing import Any

import av.error
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from .stream_info import Fields


def bits_per_sample(pixel_format: VideoFormat | None) -> int:
    """Return the bits of the deepest component; 8 where the format is not known."""
    return max((c.bits for c in pixel_format.components), default=8) if pixel_format else 8


def field_order(frame: VideoFrame) -> Fields:
    """Return which field of an interlaced frame is first.

    FFmpeg's filter ``select`` tests it, since PyAV has no attribute for it.
    """
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    select = graph.add("select", "eq(interlace_type\\,TOPFIRST)")
    graph.link_nodes(source, select, graph.add("buffersink")).configure()
    graph.push(frame)
    try:
        graph.pull()
    except av.error.BlockingIOError:
        return "bff"
    return "tff"


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """Return the rotation (degrees counter-clockwise) and the mirroring of the display matrix.

    The matrix maps stored coordinates to displayed ones, y downwards: x' = a·x + c·y,
    y' = b·x + d·y (ISO/IEC 14496-12, 8.3.2). An angle between two right angles is rounded to the
    nearer one. FFmpeg also turns the EXIF orientation of an image into such a matrix.
    """
    side_data = _side_data(frame, "DISPLAYMATRIX")
    if side_data is None:
        return 0, False
    a, b, _, c, d, *_ = struct.unpack("=9i", side_data[:36])
    mirrored = a * d - b * c < 0
    if mirrored:
        # Undo the mirroring, which comes first: what is left is a rotation.
        a, b = -a, -b
    return round(math.degrees(math.atan2(-b, a)) / 90) * 90 % 360, mirrored


def stated_peak(frame: VideoFrame) -> float | None:
    """Return the peak of an HDR frame in cd/m², None where it states none.

    That of the mastering display (SMPTE ST 2086) precedes the content light level (CTA-861,
    MaxCLL). 0 means unknown in both.
    """
    display = _side_data(frame, "MASTERING_DISPLAY_METADATA")
    if display is not None and len(display) >= _MASTERING_DISPLAY.size:
        numerator, denominator, is_known = _MASTERING_DISPLAY.unpack_from(display)
        if is_known and numerator > 0 and denominator > 0:
            return float(numerator / denominator)
    light = _side_data(frame, "CONTENT_LIGHT_LEVEL")
    if light is not None and len(light) >= 4:
        return float(struct.unpack_from("=I", light)[0]) or None
    return None


_MASTERING_DISPLAY = struct.Struct("=72xii4xi")
"""The largest luminance in FFmpeg's AVMasteringDisplayMetadata, and whether it is set."""


def has_dolby_vision(frame: VideoFrame) -> bool:
    """Return whether a frame carries metadata of Dolby Vision (its RPU)."""
    kinds = ("DOVI_METADATA", "DOVI_RPU_BUFFER")
    return any(_side_data(frame, kind) is not None for kind in kinds)


def _side_data(frame: VideoFrame, kind: str) -> bytes | None:
    """Return one kind of a frame's side data, by PyAV's name of it.

    PyAV 18.1 lists no side data at all where one kind is unknown to it (FFmpeg 8 has EXIF, 31), so
    each unknown kind is removed from a second reference to the frame.
    """
    while True:
        try:
            side_data: Any = frame.side_data.get(kind)
        except ValueError as error:
            unknown = _UNKNOWN_SIDE_DATA.match(str(error))
            if unknown is None:
                raise
            frame = _without_side_data(frame, unknown[1])
        else:
            return None if side_data is None else bytes(side_data)


_UNKNOWN_SIDE_DATA = re.compile(r"(\d+) is not a valid Type")


def _without_side_data(frame: VideoFrame, number: str) -> VideoFrame:
    """Return a frame with the same pixels but without the AVFrameSideDataType ``number``."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    removed = graph.add("sidedata", f"mode=delete:type={number}")
    graph.link_nodes(source, removed, graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    filtered = graph.pull()
    assert isinstance(filtered, VideoFrame)
    return filtered
