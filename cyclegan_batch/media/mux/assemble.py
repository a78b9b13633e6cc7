"""Join encoded stretches of video with everything else of their source into the final file.

Only packets are handled here, no frames: those of the translated video come from its stretches,
those of the other streams from the source. `streams` decided before the first frame what the
container takes, and `verification` reads the file packet by packet before it gets its name.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
from av.format import Flags
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from ...wording import Note, printable
from .. import Dropped
from ..alpha import ALPHA_DECODERS
from ..demux.demuxing import Packet, demux, input_error, open_container, reason
from ..demux.stream_info import FIELD_ORDER, Chapter
from . import aspect
from .containers import container_for
from .joined_video import JoinedVideo, Stretch
from .muxing import (
    add_copied_stream,
    add_stream,
    as_output_error,
    assigned,
    is_packet_error,
    needs_start_codes,
    set_frame_rate,
    stream_tags,
    with_start_codes,
)
from .other_streams import AudioTranscoder, Copier, Losses, Span, StreamCopier, other_packets
from .streams import StreamPlan
from .verification import verify


@dataclass(frozen=True)
class Assembled:
    """What is reported of a file that was assembled."""

    notes: tuple[Note, ...]
    dropped: tuple[Dropped, ...]
    """The damage to the source's other streams, and what of them is missing."""


def assemble(stretches: Sequence[Stretch], plan: StreamPlan, output_partial: Path) -> Assembled:
    """Write the final container under the temporary name ``output_partial`` and read it once.

    ``stretches`` are the parts of the video in their order; a video in one piece has one.
    Raises OutputError, and InputError where the source is damaged and the plan stops at damage;
    ``output_partial`` is then removed.
    """
    try:
        joined = JoinedVideo(stretches, plan)
        losses = Losses(plan, joined)
        delay = _write_and_verify(plan, joined, output_partial, losses)
        if delay and plan.chapters:
            # The muxer delays packets but not chapters, and only its output shows by how much.
            losses = Losses(plan, joined)
            _write_and_verify(plan, joined, output_partial, losses, chapter_delay=delay)
    except BaseException:
        output_partial.unlink(missing_ok=True)
        raise
    notes: tuple[Note, ...] = ()
    # A source that begins above zero was moved back towards zero, so nothing starts too late.
    if delay >= Fraction(1, 1000) and joined.shift <= 0:
        text = (
            f"{container_for(plan.output).label} cannot start below zero, so all streams start "
            f"{float(delay):.3f} s later than in {printable(plan.source)}"
        )
        notes = (Note(plan.output, text),)
    return Assembled(notes, losses.dropped)


def _write_and_verify(
    plan: StreamPlan,
    joined: JoinedVideo,
    partial: Path,
    losses: Losses,
    *,
    chapter_delay: Fraction = Fraction(0),
) -> Fraction:
    """Write the file and read it; return by how many seconds its muxer delayed everything."""
    with contextlib.ExitStack() as stack:
        source = None
        if len(plan.streams) > 1:
            source = stack.enter_context(open_container(plan.source))
        first = stack.enter_context(open_container(joined.stretches[0].path))
        sent = _write(plan, joined, first, source, partial, chapter_delay, losses)
    return verify(plan, joined, sent, partial)


def _write(
    plan: StreamPlan,
    joined: JoinedVideo,
    first: av.container.InputContainer,
    source: av.container.InputContainer | None,
    partial: Path,
    chapter_delay: Fraction,
    losses: Losses,
) -> Counter[int]:
    """Write the file; return the number of packets sent to each of its streams.

    ``first`` is the first stretch; ``source`` is None where the video is its only stream.
    """
    covers = {} if source is None else _read_covers(plan, source)
    with (
        as_output_error(plan.output),
        av.open(
            f"file:{partial.absolute()}",
            "w",
            format=plan.format,
            container_options=_muxer_options(plan, joined, source, with_cover=bool(covers)),
            metadata_errors="surrogateescape",
        ) as output,
    ):
        output.metadata.update(plan.metadata)
        streams = _add_streams(output, plan, joined, first, source, covers, losses)
        output.set_chapters([{**each} for each in _chapters(plan, joined, chapter_delay)])
        output.start_encoding()
        sent = _write_covers(output, covers, streams)
        others: Iterator[Packet] = iter(())
        if source is not None:
            end = joined.source_end if plan.to_last_frame else None
            others = other_packets(source, streams.copiers, losses, end)
        template = first.streams.video[0]
        video = joined.packets()
        if needs_start_codes(plan.format, template):
            video = with_start_codes(video, template)
        packets = _interleaved(assigned(video, streams.video), others)
        _write_packets(output, packets, streams.video.index, plan, losses, sent)
    with as_output_error(plan.output):
        aspect.fill_in(partial, plan.format, streams.aspects)
    return sent


def _muxer_options(
    plan: StreamPlan,
    joined: JoinedVideo,
    source: av.container.InputContainer | None,
    *,
    with_cover: bool,
) -> dict[str, str]:
    options = dict(container_for(plan.output).options)
    if plan.format in ("matroska", "webm"):
        # Without it, the numbers that identify the segment and its tracks are random.
        options["fflags"] = "+bitexact"
    if plan.format in ("mp4", "mov"):
        options["movie_timescale"] = str(_movie_timescale(plan, joined, source))
        if not with_cover and any("." in key for key in plan.metadata):
            # Tags such as com.apple.quicktime.model need an atom that rules out a cover.
            options["movflags"] = "use_metadata_tags"
    return options


def _movie_timescale(
    plan: StreamPlan, joined: JoinedVideo, source: av.container.InputContainer | None
) -> int:
    """Return ticks per second in which every track's start is exact, of at most 31 bits."""
    scale = joined.time_base.denominator
    for planned in plan.streams:
        if source is None or planned.action not in ("copy", "transcode"):
            continue
        time_base = source.streams[planned.index].time_base
        if planned.kind in ("audio", "video") and time_base is not None:
            finer = math.lcm(scale, time_base.denominator)
            scale = finer if finer < 2**31 else scale
    return scale


# Streams


@dataclass
class _OutputStreams:
    """The streams that were added to the output."""

    video: Stream
    """The translated one."""
    copiers: dict[int, Copier] = field(default_factory=dict)
    """The copiers that return the packets of the others, by the index in the source."""
    aspects: dict[int, Fraction] = field(default_factory=dict)
    """Sample aspect ratios, by the index in the output."""


def _add_streams(
    output: av.container.OutputContainer,
    plan: StreamPlan,
    joined: JoinedVideo,
    first: av.container.InputContainer,
    source: av.container.InputContainer | None,
    covers: dict[int, bytes],
    losses: Losses,
) -> _OutputStreams:
    """Add all planned streams to ``output``, in their order."""
    video: Stream | None = None
    copiers: dict[int, Copier] = {}
    aspects: dict[int, Fraction] = {}
    span = Span.of(plan, joined)
    flags: Any = output.format.flags
    equal_times = bool(flags & Flags.ts_nonstrict.value)
    for planned in plan.streams:
        if planned.action == "video":
            encoded = first.streams.video[0]
            stream = video = _add_translated(output, encoded, plan, joined)
            ratio = plan.translated.sample_aspect_ratio or encoded.sample_aspect_ratio
        else:
            assert source is not None
            template = source.streams[planned.index]
            stream = add_stream(output, template, planned, covers.get(planned.index, b""))
            ratio = None
            if isinstance(template, VideoStream) and template.codec_context is not None:
                ratio = template.sample_aspect_ratio
            if planned.action == "transcode":
                copiers[planned.index] = AudioTranscoder(planned, template, stream, span, losses)
            elif planned.action != "attach" and planned.kind != "attachment":
                copiers[planned.index] = StreamCopier(
                    planned, template, stream, span, equal_times=equal_times
                )
        if ratio:
            aspects[stream.index] = ratio
    assert video is not None
    return _OutputStreams(video, copiers, aspects)


def _add_translated(
    output: av.container.OutputContainer,
    template: VideoStream,
    plan: StreamPlan,
    joined: JoinedVideo,
) -> Stream:
    """Add the translated video: the encoder's parameters, the source's name, language and place."""
    stream = add_copied_stream(output, template)
    stream.time_base = joined.time_base
    if needs_start_codes(plan.format, template):
        # With start codes, parameter sets come with every key frame; these have MP4's form.
        stream.codec_context.extradata = None
    set_frame_rate(stream, plan.video.average_rate)
    stream.metadata.update(stream_tags(plan.video.metadata, output, encoded=True))
    if plan.translated.alpha and template.codec_context.name in ALPHA_DECODERS:
        stream.metadata["alpha_mode"] = "1"
    fields = plan.translated.fields
    if fields and isinstance(stream, VideoStream) and stream.codec_context is not None:
        stream.codec_context.field_order = FIELD_ORDER[fields]
    size = template.codec_context.height, template.codec_context.width
    ratio = plan.translated.sample_aspect_ratio or template.sample_aspect_ratio
    aspect.reserve(stream, ratio, size, output.format.name)
    disposition = Disposition(0)
    for name in plan.video.disposition:
        disposition |= Disposition[name]
    stream.disposition = disposition
    return stream


# Covers and chapters


def _read_covers(plan: StreamPlan, source: av.container.InputContainer) -> dict[int, bytes]:
    """Return the bytes of every attached picture that the output gets, by index."""
    indices = sorted(
        {
            planned.index
            for planned in plan.streams
            if planned.action != "video"
            and source.streams[planned.index].disposition & Disposition.attached_pic
        }
    )
    covers: dict[int, bytes] = {}
    if not indices:
        return covers
    # The file is opened once more: no seek leads back to packets before the first frame.
    with open_container(plan.source) as container:
        try:
            # Demuxers deliver attached pictures before everything else.
            for packet in demux(container, [container.streams[index] for index in indices]):
                if packet.size:
                    covers.setdefault(packet.stream_index, bytes(packet))
                if len(covers) == len(indices):
                    break
        except av.error.FFmpegError as error:
            raise input_error(plan.source, error) from error
    return covers


def _write_covers(
    output: av.container.OutputContainer, covers: dict[int, bytes], streams: _OutputStreams
) -> Counter[int]:
    """Write the covers that are streams, and return the number of packets of each."""
    sent: Counter[int] = Counter()
    for index, cover in covers.items():
        # A cover that becomes an attachment has no copier.
        copier = streams.copiers.pop(index, None)
        if copier is not None:
            packet = av.Packet(cover)
            packet.pts = packet.dts = 0
            packet.time_base = Fraction(1, 1000)
            packet.is_keyframe = True
            packet.stream = copier.stream
            output.mux_one(packet)
            sent[packet.stream_index] += 1
    return sent


def _chapters(plan: StreamPlan, joined: JoinedVideo, delay: Fraction) -> list[Chapter]:
    """Return the chapters that overlap what is written, cut to it, on the output's timeline.

    ``delay`` (seconds) is added to their times.
    """
    move = delay - joined.shift
    chapters: list[Chapter] = []
    for chapter in plan.chapters:
        base = chapter["time_base"]
        start, end = chapter["start"] * base, chapter["end"] * base
        # A chapter that begins before all audio and video is cut to where they begin.
        start = max(start, joined.shift)
        if plan.to_last_frame:
            end = min(end, joined.source_end)
        if start < end or (start == end and chapter["start"] == chapter["end"]):
            ticks = round((start + move) / base), round((end + move) / base)
            chapters.append({**chapter, "start": ticks[0], "end": ticks[1]})
    return chapters


# Packets


def _write_packets(
    output: av.container.OutputContainer,
    packets: Iterator[Packet],
    video: int,
    plan: StreamPlan,
    losses: Losses,
    sent: Counter[int],
) -> None:
    """Write ``packets`` and count them in ``sent`` by stream; ``video`` is the translated one.

    A packet of another stream that the muxer refuses is added to ``losses``.
    """
    refused: Counter[int] = Counter()
    last_ticks: dict[int, int] = {}
    for packet in packets:
        index = packet.stream_index
        if plan.format == "avi" and index != video:
            base = output.streams[index].time_base
            last_ticks[index] = _keep_ascending(packet, base, last_ticks.get(index))
        # FLAC's encoder ends with an empty packet, which holds only its final header.
        sent[index] += packet.size > 0
        try:
            output.mux_one(packet)
        except av.error.FFmpegError as error:
            if index == video or not is_packet_error(error):
                raise
            # The plan tried whether the container takes such packets, so this one is damaged.
            sent[index] -= packet.size > 0
            time = None if packet.pts is None else packet.pts * packet.time_base
            number = sent[index] + refused[index]
            refused[index] += 1
            refusal = isinstance(error, av.error.ArgumentError)
            label = container_for(plan.output).label
            what = f"not taken by {label}" if refusal else "damaged"
            losses.add_packet(plan.streams[index], number, time, f"{what} ({reason(error)})")


def _keep_ascending(packet: Packet, base: Fraction | None, last: int | None) -> int:
    """Move a packet behind the one at ``last`` in ticks of ``base``; return its own tick.

    AVI's clock for ADPCM is coarser than its packets, and AVI times them by their bytes anyway.
    """
    base = base or packet.time_base
    ticks = math.floor((packet.dts or 0) * packet.time_base / base + Fraction(1, 2))
    if last is None or ticks > last:
        return ticks
    packet.duration = math.ceil((packet.duration or 0) * packet.time_base / base)
    packet.pts = packet.dts = last + 1
    packet.time_base = base
    return last + 1


def _interleaved(video: Iterator[Packet], others: Iterator[Packet]) -> Iterator[Packet]:
    """Merge the packets by decoding time; ``video`` and ``others`` each keep their order."""
    next_video, next_other = next(video, None), next(others, None)
    while next_video is not None or next_other is not None:
        if next_other is None or (
            next_video is not None and _time(next_video) <= _time(next_other)
        ):
            assert next_video is not None
            yield next_video
            next_video = next(video, None)
        else:
            yield next_other
            next_other = next(others, None)


def _time(packet: Packet) -> float:
    ticks = packet.pts if packet.dts is None else packet.dts
    return float((ticks or 0) * packet.time_base)
