"""Describe a media file: what its header, its first packets and its first frames tell."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from uuid import UUID

import av
import av.container
import av.error
import av.stream
import av.video.stream

from .alpha import ALPHA_DECODERS, has_alpha
from .clocks import JobClock
from .demuxing import input_error, open_container
from .frame_properties import bits_per_sample
from .lookahead import Look, Spans, look_into
from .stream_info import FIELDS, Chapter, ColourTags, MediaInfo, StreamInfo


def probe(
    path: Path, *, count_frames: bool = False, image_pattern_rate: Fraction | None = None
) -> MediaInfo:
    """Describe the media file at ``path``; ``count_frames`` decodes it all. Raises InputError."""
    with open_container(path, image_pattern_rate=image_pattern_rate) as container:
        try:
            info = media_info(container, path)
            looks = {
                stream.index: Look(stream, indexed=info.format.startswith("mov"))
                for stream in container.streams.video
                if not _is_attached(stream) and stream.codec_context is not None
            }
            clock, spans = JobClock(info.format), Spans()
            if looks:
                look_into(container, looks, clock, spans, whole=count_frames)
        except av.error.FFmpegError as error:
            raise input_error(path, error) from error
        streams = [
            looks[stream.index].complete(stream, whole=count_frames)
            if stream.index in looks
            else stream
            for stream in info.streams
        ]
        # Closed captions and matrices are read from frames, everything else before the file closes.
        info = spans.complete(replace(info, streams=tuple(streams)), looks, clock)
        return replace(info, chapters=_on_the_clock(info.chapters, info.start))


def asf_claims(path: Path) -> tuple[int, Fraction] | None:
    """Return the bytes and the seconds that an ASF file (WMV) has by its header, or None.

    FFmpeg keeps both to itself where they are not true. Raises InputError.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2**16)
    except OSError as error:
        raise input_error(path, error) from error
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or len(head) < at + _ASF_FIELDS.size:
        return None
    size, played, preroll, flags = _ASF_FIELDS.unpack_from(head, at)
    seconds = Fraction(played, 10**7) - Fraction(preroll, 1000)
    # A broadcast was written without knowing its end.
    return None if flags & 1 or not size else (size, seconds)


_ASF_FILE_PROPERTIES = UUID("8cabdca1-a947-11cf-8ee4-00c00c205365").bytes_le

_ASF_FIELDS = struct.Struct("<40xQ16xQ8xQI")
"""File size, play duration (100 ns), preroll (ms) and flags; ASF specification, 3.2."""


def _on_the_clock(chapters: tuple[Chapter, ...], start: Fraction | None) -> tuple[Chapter, ...]:
    """Return ``chapters`` on the clock of the streams, which begin at ``start`` (seconds).

    Some programs let them count from the first frame (ffmpeg with -output_ts_offset): where all end
    before it, they do.
    """
    ends = [chapter["end"] * chapter["time_base"] for chapter in chapters]
    if not ends or start is None or max(ends) > start:
        return chapters
    moved: list[Chapter] = []
    for chapter in chapters:
        ticks = round(start / chapter["time_base"])
        start_ticks, end_ticks = chapter["start"] + ticks, chapter["end"] + ticks
        moved.append({**chapter, "start": start_ticks, "end": end_ticks})
    return tuple(moved)


def media_info(container: av.container.InputContainer, path: Path) -> MediaInfo:
    """Describe an open container by its header alone; no packet is read (so a pipe stays whole)."""
    duration = container.duration
    return MediaInfo(
        path=path,
        format=container.format.name,
        duration=None if duration is None else Fraction(duration, av.time_base),
        streams=tuple(_stream_info(stream) for stream in container.streams),
        metadata=dict(container.metadata),
        chapters=tuple(
            {**chapter, "time_base": chapter["time_base"] or Fraction(1, av.time_base)}
            for chapter in container.chapters()
        ),
    )


def _stream_info(stream: av.stream.Stream) -> StreamInfo:
    """Describe one stream by the container's header."""
    context = stream.codec_context
    known = ("video", "audio", "subtitle", "attachment")
    info = StreamInfo(
        index=stream.index,
        kind=stream.type if stream.type in known else "data",  # type: ignore[arg-type]
        codec=_codec_name(stream),
        time_base=stream.time_base or Fraction(1, av.time_base),
        start_pts=stream.start_time,
        duration=stream.duration,
        metadata=dict(stream.metadata),
        disposition=tuple(
            flag.name for flag in av.stream.Disposition if flag.name and flag & stream.disposition
        ),
    )
    if isinstance(stream, av.video.stream.VideoStream) and context is not None:
        return _video_info(info, stream)
    if stream.type == "audio" and context is not None:
        return replace(info, sample_rate=context.sample_rate, channels=context.channels)  # type: ignore[attr-defined]
    return info


def _codec_name(stream: av.stream.Stream) -> str:
    """Return the codec's own name, not that of the decoder (``av1``, not ``libdav1d``)."""
    if stream.codec_context is not None:
        return str(stream.codec_context.codec.canonical_name)
    if stream.type == "attachment":
        return stream.metadata.get("mimetype", "unknown")
    # Streams of a codec that FFmpeg does not know have no such attribute.
    return getattr(stream, "name", None) or "unknown"


def _is_attached(stream: av.stream.Stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _video_info(info: StreamInfo, stream: av.video.stream.VideoStream) -> StreamInfo:
    """Add what the header says of a video stream."""
    context = stream.codec_context
    return replace(
        info,
        size=(context.height, context.width),
        sample_aspect_ratio=stream.sample_aspect_ratio or None,
        average_rate=_rate(stream),
        frames_claimed=stream.frames or None,
        pix_fmt=context.format.name if context.format is not None else None,
        bits=bits_per_sample(context.format),
        colour=ColourTags(
            matrix=context.colorspace,
            primaries=context.color_primaries,
            transfer=context.color_trc,
            range=context.color_range,
        ),
        interlaced={0: None, 1: False}.get(context.field_order, True),
        fields=FIELDS.get(context.field_order),
        alpha=info.codec != "gif"
        and (
            _alpha_beside(info) or (context.format is not None and has_alpha(context.format.name))
        ),
        attached_picture=_is_attached(stream),
    )


def _rate(stream: av.video.stream.VideoStream) -> Fraction | None:
    """Return frames per second, as far as the header tells."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if average and guessed and average > _HIGHEST_RATE > guessed:
        # FFmpeg 8 says of raw DV that it has a frame for each tick of its clock.
        return guessed
    return average or guessed or None


_HIGHEST_RATE = 1000
"""Frames per second above which a rate is a clock."""


def _alpha_beside(info: StreamInfo) -> bool:
    """Say whether alpha is a second stream inside the packets, as VP8 and VP9 have it."""
    return info.codec in ALPHA_DECODERS and info.metadata.get("alpha_mode") == "1"
