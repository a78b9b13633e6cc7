"""Join encoded stretches of video with everything else of their source into the final file.

No picture passes here, only packets: the translated video's from its stretches, the other streams'
from the source. What the target container cannot hold is found before the first frame
(`plan_streams`), and the file is read once, packet by packet, before it gets its name (`assemble`).
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.stream
from av.format import Flags
from av.stream import Disposition
from av.video.stream import VideoStream

from ..wording import Note, printable
from . import Dropped, aspect
from .alpha import ALPHA_DECODERS
from .containers import container_for
from .demuxing import demux, input_error, open_container, reason
from .joined_video import JoinedVideo, Stretch
from .muxing import (
    add_copied_stream,
    add_stream,
    as_output_error,
    assigned,
    is_refused_packet,
    needs_start_codes,
    set_pixel_shape,
    stream_tags,
    with_start_codes,
)
from .other_streams import Losses, StreamCopier, carried_packets
from .stream_info import FIELD_ORDER
from .streams import StreamPlan
from .verification import verify


@dataclass(frozen=True)
class Assembled:
    """What is to be said of a file that was put together."""

    notes: tuple[Note, ...]
    """What the user is told once."""
    dropped: tuple[Dropped, ...]
    """What of the source's other streams is damaged and missing."""


def assemble(stretches: Sequence[Stretch], plan: StreamPlan, output_partial: Path) -> Assembled:
    """Write the final container under the temporary name ``output_partial`` and read it once.

    Raises OutputError, and InputError where the source is damaged and the plan is to stop then;
    ``output_partial`` is then removed.
    """
    try:
        joined = JoinedVideo(stretches, plan)
        losses = Losses(plan, joined)
        moved = _written(plan, joined, output_partial, losses)
        if moved and plan.chapters:
            # The muxer moves packets but no chapters, and its output alone tells how far.
            losses = Losses(plan, joined)
            _written(plan, joined, output_partial, losses, chapters_later=moved)
    except BaseException:
        output_partial.unlink(missing_ok=True)
        raise
    notes: tuple[Note, ...] = ()
    # What begins late in the source begins early enough here.
    if moved >= Fraction(1, 1000) and joined.shift <= 0:
        text = (
            f"{container_for(plan.output).label} cannot start below zero, so all streams start "
            f"{float(moved):.3f} s later than in {printable(plan.source)}"
        )
        notes = (Note(plan.output, text),)
    return Assembled(notes, losses.dropped)


def _written(
    plan: StreamPlan,
    joined: JoinedVideo,
    partial: Path,
    losses: Losses,
    *,
    chapters_later: Fraction = Fraction(0),
) -> Fraction:
    """Write the file and read it; return how far (seconds) its muxer moved everything."""
    with contextlib.ExitStack() as stack:
        source = None
        if len(plan.carried) > 1:
            source = stack.enter_context(open_container(plan.source))
        first = stack.enter_context(open_container(joined.stretches[0].path))
        sent = _write(plan, joined, first, source, partial, chapters_later, losses)
    return verify(plan, joined, sent, partial)


def _write(
    plan: StreamPlan,
    joined: JoinedVideo,
    first: av.container.InputContainer,
    source: av.container.InputContainer | None,
    partial: Path,
    chapters_later: Fraction,
    losses: Losses,
) -> Counter[int]:
    """Write the file; return the number of packets sent to each of its streams."""
    container = container_for(plan.output)
    options = dict(container.options)
    if container.muxer in ("mp4", "mov"):
        options["movie_timescale"] = str(_movie_timescale(plan, joined, source))
    covers = {} if source is None else _read_covers(plan, source)
    if (
        container.muxer in ("mp4", "mov")
        and not covers
        and any("." in key for key in plan.metadata)
    ):
        # Tags such as com.apple.quicktime.model have a place of their own, which rules out a cover.
        options["movflags"] = "use_metadata_tags"
    sent: Counter[int] = Counter()
    with (
        as_output_error(plan.output),
        av.open(
            f"file:{partial.absolute()}",
            "w",
            format=container.muxer,
            container_options=options,
            metadata_errors="surrogateescape",
        ) as output,
    ):
        output.metadata.update(plan.metadata)
        ways: dict[int, StreamCopier] = {}
        aspects: dict[int, Fraction] = {}
        for choice in plan.carried:
            if choice.way == "video":
                pictures_of = first.streams.video[0]
                video = _add_translated(output, pictures_of, plan, joined)
                shape = plan.sample_aspect_ratio or pictures_of.sample_aspect_ratio
                if shape:
                    aspects[video.index] = shape
                continue
            assert source is not None
            template = source.streams[choice.index]
            stream = add_stream(output, template, choice, covers.get(choice.index, b""))
            if isinstance(template, VideoStream) and template.sample_aspect_ratio:
                aspects[stream.index] = template.sample_aspect_ratio
            if choice.way != "attach" and template.type != "attachment":
                flags: Any = output.format.flags
                may_meet = bool(flags & Flags.ts_nonstrict.value)
                ways[choice.index] = StreamCopier(
                    choice, template, stream, losses, may_meet=may_meet
                )
        output.set_chapters(_moved_chapters(plan, joined, chapters_later - joined.shift))
        output.start_encoding()
        for index, cover in covers.items():
            if index in ways:
                packet = av.Packet(cover)
                packet.pts = packet.dts = 0
                packet.time_base = Fraction(1, 1000)
                packet.is_keyframe = True
                packet.stream = ways[index].stream
                output.mux_one(packet)
                sent[packet.stream_index] += 1
                del ways[index]
        others: Iterator[av.Packet[Any]] = iter(())
        if source is not None:
            others = carried_packets(plan, joined, source, ways, losses)
        pictures = joined.packets()
        if needs_start_codes(container.muxer, first.streams.video[0]):
            # The one muxer that neither takes length-prefixed units nor converts them itself.
            pictures = with_start_codes(pictures, first.streams.video[0])
        refused: Counter[int] = Counter()
        ticks: dict[int, int] = {}
        for packet in _by_time(assigned(pictures, video), others):
            index = packet.stream_index
            if container.muxer == "avi" and index != video.index:
                ticks[index] = _ascending(packet, output.streams[index].time_base, ticks.get(index))
            # FLAC's encoder ends with a packet of nothing but its final header.
            sent[index] += packet.size > 0
            try:
                output.mux_one(packet)
            except av.error.FFmpegError as error:
                if index == video.index or not is_refused_packet(error):
                    raise
                # That the container takes such packets was found out before the first frame.
                sent[index] -= packet.size > 0
                time = None if packet.pts is None else packet.pts * packet.time_base
                number = sent[index] + refused[index]
                refused[index] += 1
                refusal = isinstance(error, av.error.ArgumentError)
                what = f"not taken by {container.label}" if refusal else "damaged"
                trouble = f"{what} ({reason(error)})"
                losses.packet(plan.carried[index], number, time, trouble)
    with as_output_error(plan.output):
        aspect.fill_in(partial, container.muxer, aspects)
    return sent


def _add_translated(
    output: av.container.OutputContainer,
    template: Any,
    plan: StreamPlan,
    joined: JoinedVideo,
) -> Any:
    """Add the translated video: the encoder's parameters, the source's name, language and place."""
    video = plan.video
    stream: Any = add_copied_stream(output, template)
    stream.time_base = joined.time_base
    if needs_start_codes(output.format.name, template):
        # Parameter sets come with every key frame then; these are in MP4's form.
        stream.codec_context.extradata = None
    if video.average_rate is not None and stream.codec_context is not None:
        stream.codec_context.framerate = video.average_rate
    stream.metadata.update(stream_tags(video.metadata, output, encoded=True))
    if plan.alpha and template.codec_context.name in ALPHA_DECODERS:
        stream.metadata["alpha_mode"] = "1"
    if plan.fields is not None and stream.codec_context is not None:
        stream.codec_context.field_order = FIELD_ORDER[plan.fields]
    size = template.codec_context.height, template.codec_context.width
    set_pixel_shape(stream, plan.sample_aspect_ratio or template.sample_aspect_ratio, size, output)
    disposition = Disposition(0)
    for name in video.disposition:
        disposition |= Disposition[name]
    stream.disposition = disposition
    return stream


def _movie_timescale(
    plan: StreamPlan, joined: JoinedVideo, source: av.container.InputContainer | None
) -> int:
    """Return ticks per second in which the start of every track is exact, as far as 31 bits go."""
    scale = joined.time_base.denominator
    for choice in plan.carried:
        if source is None or choice.way not in ("copy", "transcode"):
            continue
        stream = source.streams[choice.index]
        if stream.type in ("audio", "video") and stream.time_base is not None:
            finer = math.lcm(scale, stream.time_base.denominator)
            scale = finer if finer < 2**31 else scale
    return scale


def _read_covers(plan: StreamPlan, source: av.container.InputContainer) -> dict[int, bytes]:
    """Return the bytes of every attached picture that is carried, by index."""
    wanted = {
        choice.index
        for choice in plan.carried
        if choice.way != "video"
        and source.streams[choice.index].disposition & Disposition.attached_pic
    }
    covers: dict[int, bytes] = {}
    if wanted:
        # In a container of its own: there is no way back to what lies before the first picture.
        with open_container(plan.source) as again, _as_input_error(plan.source):
            # Demuxers deliver them before everything else.
            for packet in demux(again, [again.streams[index] for index in sorted(wanted)]):
                if packet.size:
                    covers.setdefault(packet.stream_index, bytes(packet))
                if len(covers) == len(wanted):
                    break
    return covers


def _moved_chapters(plan: StreamPlan, joined: JoinedVideo, seconds: Fraction) -> list[Any]:
    """Return the chapters that overlap what is written, cut, and moved by ``seconds``."""
    chapters = []
    for chapter in plan.chapters:
        base = chapter["time_base"]
        start, end = chapter["start"] * base, chapter["end"] * base
        # What comes before all sound and pictures does not come again.
        start = max(start, joined.shift)
        if plan.to_last_frame:
            end = min(end, joined.source_end)
        if start < end or (start == end and chapter["start"] == chapter["end"]):
            moved = {"start": round((start + seconds) / base), "end": round((end + seconds) / base)}
            chapters.append({**chapter, **moved})
    return chapters


def _ascending(packet: av.Packet[Any], base: Fraction | None, last: int | None) -> int:
    """Keep a packet behind the one at ``last`` in ticks of ``base``; return its own tick.

    AVI's clock for ADPCM is coarser than its packets, and it times them by their bytes anyway.
    """
    base = base or packet.time_base
    ticks = math.floor((packet.dts or 0) * packet.time_base / base + Fraction(1, 2))
    if last is None or ticks > last:
        return ticks
    packet.duration = math.ceil((packet.duration or 0) * packet.time_base / base)
    packet.pts = packet.dts = last + 1
    packet.time_base = base
    return last + 1


def _by_time(
    video: Iterator[av.Packet[Any]], others: Iterator[av.Packet[Any]]
) -> Iterator[av.Packet[Any]]:
    """Merge by decoding time, each in its own order."""
    ours, theirs = next(video, None), next(others, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and _time(ours) <= _time(theirs)):
            assert ours is not None
            yield ours
            ours = next(video, None)
        else:
            yield theirs
            theirs = next(others, None)


def _time(packet: av.Packet[Any]) -> float:
    ticks = packet.pts if packet.dts is None else packet.dts
    return float((ticks or 0) * packet.time_base)


@contextlib.contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    """Turn what FFmpeg says while reading ``path`` into an InputError."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise input_error(path, error) from error
