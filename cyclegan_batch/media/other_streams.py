"""The packets of the source's other streams, as they go into the output."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import av.container
import av.error
import av.stream
from av.subtitles.subtitle import SubtitleSet

from ..errors import InputError
from ..wording import printable
from . import Dropped, Place, dropped_at
from .clocks import JobClock
from .demuxing import demux, reason
from .joined_video import JoinedVideo
from .muxing import Carried
from .sound import Resampler
from .streams import StreamPlan

_MOST_LOSSES = 10_000
"""Damaged packets of a file that are listed one by one; what is more is counted."""


class Losses:
    """What of the source's other streams cannot be carried."""

    def __init__(self, plan: StreamPlan, joined: JoinedVideo) -> None:
        self._plan = plan
        self._name = printable(plan.source)
        self._start = joined.times[0] * joined.time_base
        """Of the first frame in the output, in seconds."""
        self._dropped = [Dropped(self._name, InputError(why)) for why in plan.undecodable]
        self._more = 0

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """All of them."""
        if not self._more:
            return tuple(self._dropped)
        told = f"{self._name}: {self._more:,} more packets of its other streams are damaged"
        return (*self._dropped, Dropped(self._name, InputError(told)))

    def packet(self, choice: Carried, number: int, time: Fraction | None, trouble: str) -> None:
        """Note the packet ``number`` of a stream, due at ``time`` (seconds of the output).

        Raises InputError where the plan is to stop at damage.
        """
        of = f"{self._name}, stream {choice.index} ({choice.label})"
        seconds = None if time is None else float(time - self._start)
        advice = "left out; repair the file"
        if self._plan.stops_at_damage:
            advice = "repair the file, or leave out --on-error fail to do without such packets"
        self._add(dropped_at(Place(of, "packet", number, seconds, f"{trouble}; {advice}")))

    def rest(self, cause: str) -> None:
        """Note that the source cannot be read to its end. Raises InputError like `packet`."""
        told = f"{self._name}: its other streams cannot be read to their end ({cause})"
        self._add(Dropped(self._name, InputError(f"{told}; copy or record it again")))

    def _add(self, dropped: Dropped) -> None:
        if self._plan.stops_at_damage:
            raise dropped.error
        if len(self._dropped) < _MOST_LOSSES:
            self._dropped.append(dropped)
        else:
            self._more += 1


_DRAWING = re.compile(rb"\\p[1-9]")
"""The override of an ASS line that is a drawing, by the scale of its coordinates."""


def _one_line(lines: Sequence[bytes]) -> bytes:
    """Return ASS lines as one, below each other, each in its own style."""
    fields = [line.split(b",", 8) for line in lines]
    texts = [fields[0][8], *(b"{\\r" + each[2] + b"}" + each[8] for each in fields[1:])]
    return b",".join([*fields[0][:8], b"\\N".join(texts)])


class StreamCopier:
    """One stream on its way from the source to the output."""

    def __init__(
        self, choice: Carried, template: Any, stream: Any, losses: Losses, *, may_meet: bool
    ) -> None:
        self.choice = choice
        self._losses = losses
        self._packets = 0
        self.template = template
        self.stream = stream
        self._started = template.type != "video"
        self._last: int | None = None
        self._latest: Fraction | None = None
        """Seconds at which the last packet is decoded."""
        self._may_meet = may_meet
        """Two packets may have one time, as the container has it."""
        self._lines: list[tuple[int, bytes]] = []
        """Subtitles on screen: when each ends, in ticks of the source, and its ASS line."""
        self._shown_from = 0
        if choice.way == "transcode":
            self._resampler = Resampler(stream.codec_context)
            self._due = Fraction(0)

    def take(
        self, packet: av.Packet[Any], start: Fraction | None, end: Fraction | None, shift: Fraction
    ) -> Iterator[av.Packet[Any]]:
        """Yield what becomes of a packet of the source; the empty one at the end flushes."""
        if self.choice.way == "transcode":
            yield from self._transcoded(packet, start, end, shift)
            return
        if not packet.size and self._lines:
            yield from self._placed(self._shown_until(None, self.template.time_base), shift)
        if not packet.size or (packet.pts is None and packet.dts is None):
            return
        if self.template.name == "mov_text" and bytes(packet)[:2] == b"\0\0":
            # A gap between two lines: muxers that need gaps make them.
            return
        base = packet.time_base
        if packet.pts is None:
            packet.pts = packet.dts
        if packet.dts is None:
            packet.dts = packet.pts
        assert packet.pts is not None
        assert packet.dts is not None
        time = packet.pts * base
        lasting = self.template.type == "subtitle"
        until = time + (packet.duration or 0) * base if lasting else time
        if (start is not None and until < start) or (end is not None and time >= end):
            return
        if start is not None and time < start:
            if not lasting or until == start:
                return
            # A line that is on screen at the cut stays until its end.
            packet.duration = math.floor((until - start) / base)
            packet.pts = packet.dts = math.ceil(start / base)
        if start is not None and not self._started and not packet.is_keyframe:
            return
        self._started = True
        copied = self.choice.way == "copy"
        moved = [_without_header(packet, self.template)] if copied else self._converted(packet)
        yield from self._placed(moved, shift)

    def _placed(
        self, packets: Sequence[av.Packet[Any]], shift: Fraction
    ) -> Iterator[av.Packet[Any]]:
        """Yield packets of the output on its clock, in ascending order."""
        for out in packets:
            ticks = round(shift / out.time_base)
            out.pts = (out.pts or 0) - ticks
            out.dts = (out.dts or 0) - ticks
            self._keep_behind(out)
            if not out.duration and self._latest is not None and self.template.type == "audio":
                # MP4 would end before a last packet that lasts no time.
                out.duration = round(out.dts - self._latest / out.time_base)
            self._latest = out.dts * out.time_base
            out.stream = self.stream
            yield out

    def _keep_behind(self, out: av.Packet[Any]) -> None:
        """Move a packet that would not ascend behind the last one; muxers refuse it otherwise.

        By the shortest step there is: TrueHD has 1200 packets a second, of which MKV's clock of
        milliseconds times every fifth together with another.
        """
        if self._latest is None or out.dts is None or out.pts is None:
            return
        time = out.dts * out.time_base
        if time > self._latest or (time == self._latest and self._may_meet):
            return
        tick = min(self.stream.time_base or out.time_base, out.time_base)
        pts, duration = out.pts * out.time_base, (out.duration or 0) * out.time_base
        out.dts = math.floor(self._latest / tick) + (0 if self._may_meet else 1)
        out.pts = max(round(pts / tick), out.dts)
        out.duration, out.time_base = round(duration / tick), tick

    def _converted(self, packet: av.Packet[Any]) -> list[av.Packet[Any]]:
        """Return a subtitle in the other text format; an empty one (a gap in MP4) has no line."""
        subtitle = self.template.codec_context.decode2(packet)
        if subtitle is None or not len(subtitle):
            return []
        if any(_DRAWING.search(line.ass) for line in subtitle):
            # ASS also draws shapes; their coordinates would be shown as words.
            return []
        start, duration, base = packet.pts or 0, packet.duration or 0, packet.time_base
        if self.choice.encoder != "mov_text":
            return [self._encoded_text(subtitle, start, duration, base)]
        shown = self._shown_until(max(start, self._shown_from) if self._lines else start, base)
        if not duration:
            # It stays until the next one, as far as anybody knows.
            return [*shown, self._encoded_text(subtitle, start, 0, base)]
        self._lines += [(start + duration, line.ass) for line in subtitle]
        return shown

    def _shown_until(self, time: int | None, base: Fraction) -> list[av.Packet[Any]]:
        """Return what is on screen before ``time``, a packet for every change; None: to the end.

        MOV text shows one packet at a time: where lines overlap, each packet holds all that are on
        screen.
        """
        packets = []
        while self._lines:
            start, lines = self._shown_from, [line for _, line in self._lines]
            ends = [end for end, _ in self._lines] + ([] if time is None else [time])
            self._shown_from = min(ends)
            if self._shown_from > start:
                text = SubtitleSet.create(_one_line(lines), 0, self._shown_from - start)
                packets.append(self._encoded_text(text, start, self._shown_from - start, base))
            self._lines = [each for each in self._lines if each[0] > self._shown_from]
            if self._shown_from == time:
                break
        self._shown_from = time or 0
        return packets

    def _encoded_text(
        self, subtitle: SubtitleSet, start: int, duration: int, base: Fraction
    ) -> av.Packet[Any]:
        out: av.Packet[Any] = self.stream.codec_context.encode_subtitle(subtitle)
        out.time_base = base
        out.pts = out.dts = start
        out.duration = duration
        return out

    def _transcoded(
        self, packet: av.Packet[Any], start: Fraction | None, end: Fraction | None, shift: Fraction
    ) -> Iterator[av.Packet[Any]]:
        frames: list[Any] = []
        try:
            frames = list(packet.decode())
        except av.error.FFmpegError as error:
            # A broken packet costs its own sound, as in every player.
            time = None if packet.pts is None else packet.pts * packet.time_base
            inside = (start is None or time is None or time >= start) and (
                end is None or time is None or time < end
            )
            if packet.size and inside:
                due = None if time is None else time - shift
                trouble = f"cannot be decoded ({reason(error)})"
                self._losses.packet(self.choice, self._packets, due, trouble)
        self._packets += packet.size > 0
        for frame in frames:
            # What a decoder still held at the end may have no time.
            time = self._due if frame.pts is None else frame.pts * frame.time_base
            self._due = time + Fraction(frame.samples, frame.sample_rate)
            if (start is None or time >= start) and (end is None or time < end):
                frame.pts = round((time - shift) / frame.time_base)
                yield from self._encoded(self._resampler.resampled(frame))
        if not packet.size:
            yield from self._encoded([*self._resampler.resampled(None), None])

    def _encoded(self, frames: Sequence[Any]) -> Iterator[av.Packet[Any]]:
        for frame in frames:
            for packet in self.stream.encode(frame):
                if packet.dts is not None:
                    if self._last is not None and packet.dts <= self._last:
                        # Times that step back in the source; muxers refuse them.
                        packet.dts = self._last + 1
                        packet.pts = max(packet.pts or 0, packet.dts)
                    self._last = packet.dts
                yield packet


def _without_header(packet: av.Packet[Any], template: Any) -> av.Packet[Any]:
    """Return ``packet`` without another header of its stream than that of ``template``.

    Joined FLV has one for each part, and FFmpeg's writer of MKV puts it where it does not fit.
    """
    context = template.codec_context
    if context is None or not context.extradata or not packet.has_sidedata("new_extradata"):
        return packet
    bare: av.Packet[Any] = av.Packet(bytes(packet))
    bare.pts, bare.dts, bare.duration = packet.pts, packet.dts, packet.duration
    bare.time_base, bare.is_keyframe = packet.time_base, packet.is_keyframe
    return bare


def carried_packets(
    plan: StreamPlan,
    joined: JoinedVideo,
    source: av.container.InputContainer,
    ways: dict[int, StreamCopier],
    losses: Losses,
) -> Iterator[av.Packet[Any]]:
    """Yield the packets of the other streams, in the source's order."""
    if not ways:
        return
    start = joined.source_start if plan.from_first_frame else None
    end = joined.source_end if plan.to_last_frame else None
    # Of all streams, so that the clock comes out as it did for the pictures.
    packets = JobClock(source.format.name).steady(demux(source, list(source.streams)))
    latest = Fraction(0)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            if end is None or latest < end:
                losses.rest(reason(error))
            for each in ways.values():
                flush: av.Packet[Any] = av.Packet()
                flush.stream = each.template
                yield from each.take(flush, start, end, joined.shift)
            return
        if packet is None:
            return
        if packet.dts is not None:
            latest = max(latest, packet.dts * packet.time_base)
        # An empty packet at the end has a stream, but no index of its own.
        way = ways.get(packet.stream.index)
        if way is not None:
            heard = way.template.type in ("audio", "video")
            since = joined.shift if start is None and not heard else start
            yield from way.take(packet, since, end, joined.shift)
