"""A media file in plain JSON-able values, as `inspect` prints it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ..frames import Size
from ..wording import printable
from .stream_info import MediaInfo, StreamInfo, colour_names


def describe(info: MediaInfo) -> dict[str, Any]:
    """Return ``info`` as plain JSON-able values, in the words that `inspect` prints.

    Times count from the first frame, as ``--ss`` and ``--to`` do.
    """
    zero = info.first_frame or Fraction(0)
    return {
        "file": printable(info.path),
        "container": info.format,
        "duration_seconds": None if info.length is None else float(info.length),
        "clock": {
            "begins_at_seconds": float(zero),
            "begins_anew": sum(seam.kind == "restart" for seam in info.seams),
            "jumps": sum(seam.kind == "jump" for seam in info.seams),
        },
        "metadata": _printable_tags(info.metadata),
        "chapters": [
            {
                "start_seconds": float(chapter["start"] * chapter["time_base"] - zero),
                "end_seconds": float(chapter["end"] * chapter["time_base"] - zero),
                "metadata": _printable_tags(chapter["metadata"]),
            }
            for chapter in info.chapters
        ],
        "streams": [_describe_stream(stream, zero) for stream in info.streams],
    }


def _describe_stream(stream: StreamInfo, zero: Fraction) -> dict[str, Any]:
    """Return one stream as plain values, its start counted from ``zero`` (seconds).

    Video and audio have words of their own.
    """
    words: dict[str, Any] = {"index": stream.index, "kind": stream.kind, "codec": stream.codec}
    if stream.kind == "video":
        words |= {
            "size": _size_words(stream.size),
            "displayed_size": _size_words(stream.displayed_size),
            "sample_aspect_ratio": _ratio(stream.sample_aspect_ratio, ":"),
            "rate": _ratio(stream.average_rate, "/"),
            "constant_rate": stream.constant_rate,
            "frames": stream.frames_counted or stream.frames_claimed,
            "frames_are": "claimed" if stream.frames_counted is None else "counted",
            "pixel_format": stream.pix_fmt,
            "bits": stream.bits,
            "colour": colour_names(stream.colour),
            "rotation": stream.rotation,
            "mirrored": stream.mirrored,
            "interlaced": stream.interlaced,
            "first_field": {"tff": "top", "bff": "bottom", None: None}[stream.fields],
            "alpha": stream.alpha,
            "hdr": stream.hdr,
            "attached_picture": stream.attached_picture,
            "closed_captions": stream.closed_captions,
        }
        if stream.frames_counted is None and stream.frames_claimed is None:
            words["frames_are"] = "unknown"
    if stream.kind == "audio":
        words |= {"sample_rate": stream.sample_rate, "channels": stream.channels}
    words["duration_seconds"] = (
        None if stream.duration is None else float(stream.duration * stream.time_base)
    )
    words["start_seconds"] = (
        None if stream.start_pts is None else float(stream.start_pts * stream.time_base - zero)
    )
    words["time_base"] = _ratio(stream.time_base, "/")
    words["disposition"] = list(stream.disposition)
    words["metadata"] = _printable_tags(stream.metadata)
    return words


def _size_words(size: Size | None) -> str | None:
    return None if size is None else f"{size[1]}x{size[0]}"


def _ratio(value: Fraction | None, sign: str) -> str | None:
    return None if value is None else f"{value.numerator}{sign}{value.denominator}"


def _printable_tags(tags: dict[str, str]) -> dict[str, str]:
    """Return ``tags`` with bytes that were no UTF-8 spelled out."""
    return {
        key: value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for key, value in tags.items()
    }
