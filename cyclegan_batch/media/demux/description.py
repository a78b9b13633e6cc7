"""A media file as plain values for JSON, which `inspect` prints."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, TypedDict

from ...frames import Size
from ...wording import printable
from .stream_info import Chapter, MediaInfo, StreamInfo, StreamKind, colour_names


class ClockDescription(TypedDict):
    """Where the timestamps of a file begin, begin anew and jump."""

    begins_at_seconds: float
    begins_anew: int
    """How often they go back."""
    jumps: int
    """How often they go ahead."""


class ChapterDescription(TypedDict):
    """One chapter, timed from the first frame."""

    start_seconds: float
    end_seconds: float
    metadata: dict[str, str]


class VideoDescription(TypedDict, total=False):
    """What only a video stream has."""

    size: str | None
    displayed_size: str | None
    sample_aspect_ratio: str | None
    rate: str | None
    constant_rate: bool | None
    frames: int | None
    frames_are: Literal["claimed", "counted", "unknown"]
    pixel_format: str | None
    bits: int
    colour: dict[str, str]
    rotation: int
    mirrored: bool
    interlaced: bool | None
    first_field: Literal["top", "bottom"] | None
    alpha: bool
    hdr: str | None
    peak: float | None
    dolby_vision: bool
    attached_picture: bool
    closed_captions: bool


class AudioDescription(TypedDict, total=False):
    """What only an audio stream has."""

    sample_rate: int | None
    channels: int | None


class StreamDescription(VideoDescription, AudioDescription):
    """One stream; its start counts from the first frame of the file."""

    index: int
    kind: StreamKind
    codec: str
    duration_seconds: float | None
    start_seconds: float | None
    time_base: str | None
    disposition: list[str]
    metadata: dict[str, str]


class MediaDescription(TypedDict):
    """A media file."""

    file: str
    container: str
    duration_seconds: float | None
    clock: ClockDescription
    metadata: dict[str, str]
    chapters: list[ChapterDescription]
    plays: int | Literal["for ever"] | None
    """How often an animated image is shown; None for any other file."""
    streams: list[StreamDescription]


def describe(info: MediaInfo) -> MediaDescription:
    """Return ``info`` as plain values.

    Times count from the first frame, as ``--ss`` and ``--to`` do.
    """
    zero = info.first_frame or Fraction(0)
    return {
        "file": printable(info.path),
        "container": info.format,
        "duration_seconds": None if info.length is None else float(info.length),
        "clock": {
            "begins_at_seconds": float(zero),
            "begins_anew": sum(each.kind == "restart" for each in info.discontinuities),
            "jumps": sum(each.kind == "jump" for each in info.discontinuities),
        },
        "metadata": _printable_tags(info.metadata),
        "chapters": [_describe_chapter(chapter, zero) for chapter in info.chapters],
        "plays": "for ever" if info.plays == 0 else info.plays,
        "streams": [_describe_stream(stream, zero) for stream in info.streams],
    }


def _describe_chapter(chapter: Chapter, zero: Fraction) -> ChapterDescription:
    return {
        "start_seconds": float(chapter["start"] * chapter["time_base"] - zero),
        "end_seconds": float(chapter["end"] * chapter["time_base"] - zero),
        "metadata": _printable_tags(chapter["metadata"]),
    }


def _describe_stream(stream: StreamInfo, zero: Fraction) -> StreamDescription:
    """Return one stream as plain values; its start counts from ``zero`` (seconds)."""
    video: VideoDescription = _describe_video(stream) if stream.kind == "video" else {}
    audio: AudioDescription = {}
    if stream.kind == "audio":
        audio = {"sample_rate": stream.sample_rate, "channels": stream.channels}
    duration = None if stream.duration is None else stream.duration * stream.time_base
    start = None if stream.start_pts is None else stream.start_pts * stream.time_base - zero
    return {
        "index": stream.index,
        "kind": stream.kind,
        "codec": stream.codec,
        **video,
        **audio,
        "duration_seconds": None if duration is None else float(duration),
        "start_seconds": None if start is None else float(start),
        "time_base": _ratio(stream.time_base, "/"),
        "disposition": list(stream.disposition),
        "metadata": _printable_tags(stream.metadata),
    }


def _describe_video(stream: StreamInfo) -> VideoDescription:
    counted, claimed = stream.frames_counted, stream.frames_claimed
    frames_are: Literal["claimed", "counted", "unknown"] = "counted"
    if counted is None:
        frames_are = "unknown" if claimed is None else "claimed"
    first_field: Literal["top", "bottom"] | None = None
    if stream.fields is not None:
        first_field = "top" if stream.fields == "tff" else "bottom"
    return {
        "size": _size(stream.size),
        "displayed_size": _size(stream.displayed_size),
        "sample_aspect_ratio": _ratio(stream.sample_aspect_ratio, ":"),
        "rate": _ratio(stream.average_rate, "/"),
        "constant_rate": stream.constant_rate,
        "frames": counted or claimed,
        "frames_are": frames_are,
        "pixel_format": stream.pix_fmt,
        "bits": stream.bits,
        "colour": colour_names(stream.colour),
        "rotation": stream.rotation,
        "mirrored": stream.mirrored,
        "interlaced": stream.interlaced,
        "first_field": first_field,
        "alpha": stream.alpha,
        "hdr": stream.hdr,
        "peak": stream.peak,
        "dolby_vision": stream.dolby_vision,
        "attached_picture": stream.attached_picture,
        "closed_captions": stream.closed_captions,
    }


def _size(size: Size | None) -> str | None:
    return None if size is None else f"{size[1]}x{size[0]}"


def _ratio(value: Fraction | None, sign: str) -> str | None:
    return None if value is None else f"{value.numerator}{sign}{value.denominator}"


def _printable_tags(tags: dict[str, str]) -> dict[str, str]:
    """Return ``tags`` with bytes that are not UTF-8 written as escapes."""
    return {
        key: value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for key, value in tags.items()
    }
