"""Describe a media file by its header, its first packets and its first frames."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from uuid import UUID

import av
import av.container
import av.error
from av.audio.stream import AudioStream
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from ..alpha import ALPHA_DECODERS, has_alpha
from .demuxing import input_error, open_container
from .frame_properties import bits_per_sample
from .lookahead import StreamSpans, VideoLookahead, read_ahead
from .stream_info import FIELDS_BY_ORDER, Chapter, ColourTags, MediaInfo, StreamInfo
from .timestamps import Timeline


def probe(
    path: Path, *, count_frames: bool = False, image_pattern_rate: Fraction | None = None
) -> MediaInfo:
    """Describe the media file at ``path``. Raises InputError.

    With ``count_frames`` every frame is decoded. ``image_pattern_rate`` is that of
    `open_container`.
    """
    with open_container(path, image_pattern_rate=image_pattern_rate) as container:
        try:
            info = media_info(container, path)
            lookaheads = {
                stream.index: VideoLookahead(stream, indexed=info.format.startswith("mov"))
                for stream in container.streams.video
                if not _is_attached(stream) and stream.codec_context is not None
            }
            timeline, spans = Timeline(info.format), StreamSpans()
            if lookaheads:
                read_ahead(container, lookaheads, timeline, spans, whole=count_frames)
        except av.error.FFmpegError as error:
            raise input_error(path, error) from error
        streams = [
            lookaheads[stream.index].add_to(stream, whole=count_frames)
            if stream.index in lookaheads
            else stream
            for stream in info.streams
        ]
        info = spans.add_to(replace(info, streams=tuple(streams)), lookaheads, timeline)
        return replace(info, chapters=_on_timeline(info.chapters, info.start))


def asf_claims(path: Path) -> tuple[int, Fraction] | None:
    """Return the size (bytes) and duration (seconds) in the header of an ASF file (WMV), or None.

    FFmpeg does not return them where they are wrong. Raises InputError.
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
    # The flag of a broadcast: its header was written before its end was known.
    return None if flags & 1 or not size else (size, seconds)


_ASF_FILE_PROPERTIES = UUID("8cabdca1-a947-11cf-8ee4-00c00c205365").bytes_le

_ASF_FIELDS = struct.Struct("<40xQ16xQ8xQI")
"""File size, play duration (100 ns), preroll (ms) and flags; ASF specification, 3.2."""


def _on_timeline(chapters: tuple[Chapter, ...], start: Fraction | None) -> tuple[Chapter, ...]:
    """Return ``chapters`` on the timeline of the streams, which begin at ``start`` (seconds).

    Some programs (ffmpeg with -output_ts_offset) write chapters that count from the first frame. It
    is taken to be so where all chapters end before the streams begin.
    """
    ends = [chapter["end"] * chapter["time_base"] for chapter in chapters]
    if not ends or start is None or max(ends) > start:
        return chapters
    shifted_chapters: list[Chapter] = []
    for chapter in chapters:
        ticks = round(start / chapter["time_base"])
        start_ticks, end_ticks = chapter["start"] + ticks, chapter["end"] + ticks
        shifted_chapters.append({**chapter, "start": start_ticks, "end": end_ticks})
    return tuple(shifted_chapters)


def media_info(container: av.container.InputContainer, path: Path) -> MediaInfo:
    """Describe an open container by its header alone.

    No packet is read, so that a pipe still holds all of them.
    """
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


def _stream_info(stream: Stream) -> StreamInfo:
    """Describe one stream by the container's header."""
    context = stream.codec_context
    info = StreamInfo(
        index=stream.index,
        kind="data" if stream.type == "unknown" else stream.type,
        codec=_codec_name(stream),
        time_base=stream.time_base or Fraction(1, av.time_base),
        start_pts=stream.start_time,
        duration=stream.duration,
        metadata=dict(stream.metadata),
        disposition=tuple(
            flag.name for flag in Disposition if flag.name and flag & stream.disposition
        ),
    )
    if context is None:
        return info
    if isinstance(stream, VideoStream):
        return _video_info(info, stream)
    if isinstance(stream, AudioStream):
        audio = stream.codec_context
        return replace(info, sample_rate=audio.sample_rate, channels=audio.channels)
    return info


def _codec_name(stream: Stream) -> str:
    """Return the codec's own name, not that of the decoder (``av1``, not ``libdav1d``)."""
    if stream.codec_context is not None:
        return str(stream.codec_context.codec.canonical_name)
    if stream.type == "attachment":
        return stream.metadata.get("mimetype", "unknown")
    # A stream whose codec is unknown to FFmpeg has no such attribute.
    return getattr(stream, "name", None) or "unknown"


def _is_attached(stream: Stream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _video_info(info: StreamInfo, stream: VideoStream) -> StreamInfo:
    """Add what the header states of a video stream."""
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
        dolby_vision=context.codec_tag in _DOLBY_VISION_TAGS,
        interlaced={0: None, 1: False}.get(context.field_order, True),
        fields=FIELDS_BY_ORDER.get(context.field_order),
        alpha=info.codec != "gif"
        and (
            _alpha_beside(info) or (context.format is not None and has_alpha(context.format.name))
        ),
        attached_picture=_is_attached(stream),
    )


_DOLBY_VISION_TAGS = frozenset({"dvh1", "dvhe", "dva1", "dvav", "dav1"})
"""Sample entries of MP4 for streams that are Dolby Vision only (Dolby Vision Streams Within the ISO
Base Media File Format, 3.1). A base layer that others can show has the tag of its codec."""


def _rate(stream: VideoStream) -> Fraction | None:
    """Return frames per second, as far as the header states them."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if average and guessed and average > _HIGHEST_RATE > guessed:
        # FFmpeg 8 returns one frame for each tick of the clock for raw DV.
        return guessed
    return average or guessed or None


_HIGHEST_RATE = 1000
"""Frames per second; a higher rate is that of a clock."""


def _alpha_beside(info: StreamInfo) -> bool:
    """Return whether alpha is a second stream inside the packets, as VP8 and VP9 have it."""
    return info.codec in ALPHA_DECODERS and info.metadata.get("alpha_mode") == "1"
