"""The packets of the source's other streams, as they go into the output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

import av
import av.container
import av.error
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.stream import Stream

from ...errors import InputError
from ...wording import printable
from .. import Dropped, Place, dropped_at
from ..demux.demuxing import Packet, decoder_name, demux, reason
from ..demux.timestamps import Timeline
from .joined_video import JoinedVideo
from .muxing import OutputStream
from .sound import Resampler
from .streams import StreamPlan
from .subtitles import SubtitleConverter

_MOST_LOSSES = 10_000
"""Damaged packets of a file that are listed one by one; the rest is counted."""


class Losses:
    """The packets of the source's other streams that are damaged or cannot be written."""

    def __init__(self, plan: StreamPlan, joined: JoinedVideo) -> None:
        self._plan = plan
        self._name = printable(plan.source)
        self._start = joined.times[0] * joined.time_base
        """Time of the first frame in the output, in seconds."""
        self._dropped = [Dropped(self._name, InputError(str(note))) for note in plan.undecodable]
        self._more = 0

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """All losses, in the order in which they were added."""
        if not self._more:
            return tuple(self._dropped)
        text = f"{self._name}: {self._more:,} more packets of its other streams are damaged"
        return (*self._dropped, Dropped(self._name, InputError(text)))

    def add_packet(
        self, planned: OutputStream, number: int, time: Fraction | None, trouble: str
    ) -> None:
        """Add the packet ``number`` of a stream, due at ``time`` (seconds of the output).

        Raises InputError where the plan stops at damage.
        """
        stream = f"{self._name}, stream {planned.index} ({planned.label})"
        seconds = None if time is None else float(time - self._start)
        advice = "left out; repair the file"
        if self._plan.stops_at_damage:
            advice = "repair the file, or leave out --on-error fail to leave such packets out"
        self._add(
            dropped_at(
                Place(
                    subject=stream,
                    kind="packet",
                    number=number,
                    seconds=seconds,
                    trouble=f"{trouble}; {advice}",
                )
            )
        )

    def add_rest(self, cause: str) -> None:
        """Add that the source cannot be read to its end. Raises InputError like `add_packet`."""
        text = f"{self._name}: its other streams cannot be read to their end ({cause})"
        self._add(Dropped(self._name, InputError(f"{text}; copy or record it again")))

    def _add(self, dropped: Dropped) -> None:
        if self._plan.stops_at_damage:
            raise dropped.error
        if len(self._dropped) < _MOST_LOSSES:
            self._dropped.append(dropped)
        else:
            self._more += 1


@dataclass(frozen=True)
class Span:
    """The part of the source that is written, in seconds on the source's timeline."""

    start: Fraction | None
    """None: from the beginning."""
    end: Fraction | None
    """None: to the end."""
    shift: Fraction
    """Subtracted from every time."""

    @classmethod
    def of(cls, plan: StreamPlan, joined: JoinedVideo) -> Span:
        """Return the span that belongs to the translated frames."""
        start = joined.source_start if plan.from_first_frame else None
        end = joined.source_end if plan.to_last_frame else None
        return cls(start, end, joined.shift)

    def __contains__(self, time: Fraction) -> bool:
        return (self.start is None or time >= self.start) and (self.end is None or time < self.end)


class StreamCopier:
    """Copy the packets of one stream to the output, text subtitles converted where planned."""

    def __init__(
        self,
        planned: OutputStream,
        template: Stream,
        stream: Stream,
        span: Span,
        *,
        equal_times: bool,
    ) -> None:
        """``template`` is the source's stream, ``stream`` the output's.

        ``equal_times``: the container takes two packets with one decoding time.
        """
        self.template = template
        self.stream = stream
        self._kind = planned.kind
        if span.start is None and self._kind not in ("audio", "video"):
            # A subtitle may begin before all audio and video, which would be below 0 in the output.
            span = replace(span, start=span.shift)
        self._span = span
        self._equal_times = equal_times
        self._converter: SubtitleConverter | None = None
        if planned.action == "convert":
            self._converter = SubtitleConverter(template, stream, planned.encoder)
        self._started = self._kind != "video"
        """The first packet that is written of a video must be a key frame."""
        self._last: Fraction | None = None
        """Decoding time of the last packet, in seconds."""

    def take(self, packet: Packet) -> Iterator[Packet]:
        """Yield the output's packets that follow from ``packet``; an empty one ends the stream."""
        if not packet.size:
            if self._converter is not None:
                yield from self._placed(self._converter.rest())
            return
        if self._is_gap(packet) or not _complete_times(packet) or not self._cut(packet):
            return
        if self._span.start is not None and not self._started and not packet.is_keyframe:
            return
        self._started = True
        if self._converter is None:
            yield from self._placed([_without_header(packet, self.template)])
        else:
            yield from self._placed(self._converter.convert(packet))

    def _is_gap(self, packet: Packet) -> bool:
        """Return whether a packet of MOV text is a gap; muxers that need gaps write them anew."""
        return decoder_name(self.template) == "mov_text" and bytes(packet)[:2] == b"\0\0"

    def _cut(self, packet: Packet) -> bool:
        """Cut ``packet`` at the start of the span; return False where it lies outside."""
        assert packet.pts is not None
        base, start, end = packet.time_base, self._span.start, self._span.end
        time = packet.pts * base
        if end is not None and time >= end:
            return False
        if start is None or time >= start:
            return True
        lasts_until = time
        if self._kind == "subtitle":
            lasts_until += (packet.duration or 0) * base
        if lasts_until <= start:
            return False
        # A line that is on screen at the start of the span is kept until its end.
        packet.duration = math.floor((lasts_until - start) / base)
        packet.pts = packet.dts = math.ceil(start / base)
        return True

    def _placed(self, packets: Sequence[Packet]) -> Iterator[Packet]:
        """Yield packets on the timeline of the output, in ascending order."""
        for packet in packets:
            ticks = round(self._span.shift / packet.time_base)
            packet.pts = (packet.pts or 0) - ticks
            packet.dts = (packet.dts or 0) - ticks
            self._keep_ascending(packet)
            if not packet.duration and self._last is not None and self._kind == "audio":
                # The MP4 muxer would end the stream before a last packet without duration.
                packet.duration = round(packet.dts - self._last / packet.time_base)
            self._last = packet.dts * packet.time_base
            packet.stream = self.stream
            yield packet

    def _keep_ascending(self, packet: Packet) -> None:
        """Move a packet behind the last one where it is not; muxers refuse it otherwise.

        It moves by the shortest step that the clocks allow: TrueHD has 1200 packets a second, so
        that in MKV's milliseconds one in six has the time of another.
        """
        if self._last is None or packet.dts is None or packet.pts is None:
            return
        time = packet.dts * packet.time_base
        if time > self._last or (time == self._last and self._equal_times):
            return
        tick = min(self.stream.time_base or packet.time_base, packet.time_base)
        pts, duration = packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base
        packet.dts = math.floor(self._last / tick) + (0 if self._equal_times else 1)
        packet.pts = max(round(pts / tick), packet.dts)
        packet.duration, packet.time_base = round(duration / tick), tick


def _complete_times(packet: Packet) -> bool:
    """Give ``packet`` both time stamps where it has one; return False where it has none."""
    if packet.pts is None:
        packet.pts = packet.dts
    if packet.dts is None:
        packet.dts = packet.pts
    return packet.pts is not None


def _without_header(packet: Packet, template: Stream) -> Packet:
    """Return ``packet`` without a header that differs from that of ``template``.

    Joined FLV files have one for each part, and FFmpeg's MKV muxer writes it to the wrong place.
    """
    context = template.codec_context
    if context is None or not context.extradata or not packet.has_sidedata("new_extradata"):
        return packet
    bare = av.Packet(bytes(packet))
    bare.pts, bare.dts, bare.duration = packet.pts, packet.dts, packet.duration
    bare.time_base, bare.is_keyframe = packet.time_base, packet.is_keyframe
    return bare


class AudioTranscoder:
    """Decode one audio stream and encode it anew."""

    def __init__(
        self, planned: OutputStream, template: Stream, stream: Stream, span: Span, losses: Losses
    ) -> None:
        """``template`` is the source's stream, ``stream`` the output's."""
        assert isinstance(stream, AudioStream)
        self.template = template
        self.stream = stream
        self._planned = planned
        self._span = span
        self._losses = losses
        self._resampler = Resampler(stream.codec_context)
        self._packets = 0
        """Packets of the source so far."""
        self._next_time = Fraction(0)
        """When the next frame begins, in seconds of the source."""
        self._last_dts: int | None = None
        """Of the packets of the output."""

    def take(self, packet: Packet) -> Iterator[Packet]:
        """Yield the output's packets that follow from ``packet``; an empty one ends the stream."""
        frames = self._decoded(packet)
        self._packets += packet.size > 0
        for frame in frames:
            base = frame.time_base or Fraction(1, frame.sample_rate)
            # A frame that the decoder still held at the end may have no time.
            time = self._next_time if frame.pts is None else frame.pts * base
            self._next_time = time + Fraction(frame.samples, frame.sample_rate)
            if time in self._span:
                frame.pts = round((time - self._span.shift) / base)
                yield from self._encoded(self._resampler.resample(frame))
        if not packet.size:
            yield from self._encoded([*self._resampler.resample(None), None])

    def _decoded(self, packet: Packet) -> list[AudioFrame]:
        try:
            return [each for each in packet.decode() if isinstance(each, AudioFrame)]
        except av.error.FFmpegError as error:
            # A damaged packet loses only its own samples, as in every player.
            time = None if packet.pts is None else packet.pts * packet.time_base
            if packet.size and (time is None or time in self._span):
                due = None if time is None else time - self._span.shift
                trouble = f"cannot be decoded ({reason(error)})"
                self._losses.add_packet(self._planned, self._packets, due, trouble)
            return []

    def _encoded(self, frames: Sequence[AudioFrame | None]) -> Iterator[Packet]:
        for frame in frames:
            for packet in self.stream.encode(frame):
                if packet.dts is not None:
                    if self._last_dts is not None and packet.dts <= self._last_dts:
                        # The source's times went back, which muxers refuse.
                        packet.dts = self._last_dts + 1
                        packet.pts = max(packet.pts or 0, packet.dts)
                    self._last_dts = packet.dts
                yield packet


Copier: TypeAlias = StreamCopier | AudioTranscoder


def other_packets(
    source: av.container.InputContainer,
    copiers: Mapping[int, Copier],
    losses: Losses,
    end: Fraction | None,
) -> Iterator[Packet]:
    """Yield the packets of the other streams for the output, in the source's order.

    ``copiers`` holds one for the index of each stream. A source that breaks off before ``end``
    (seconds; None: its end) is added to ``losses``.
    """
    if not copiers:
        return
    # All streams are read, so that the timeline is the same as it was for the translated video.
    packets = Timeline(source.format.name).place(demux(source, list(source.streams)))
    latest = Fraction(0)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            if end is None or latest < end:
                losses.add_rest(reason(error))
            for copier in copiers.values():
                flush = av.Packet()
                flush.stream = copier.template
                yield from copier.take(flush)
            return
        if packet is None:
            return
        if packet.dts is not None:
            latest = max(latest, packet.dts * packet.time_base)
        # The empty packet at the end has a stream, but no index of its own.
        if packet.stream.index in copiers:
            yield from copiers[packet.stream.index].take(packet)
