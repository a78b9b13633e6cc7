"""Convert text subtitles to the format that a container holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import av
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

from ..demux.demuxing import Packet

_DRAWING = re.compile(rb"\\p[1-9]")
"""The override that makes an ASS line a drawing; its number is the scale of the coordinates."""


class SubtitleConverter:
    """Decode the packets of one subtitle stream and encode them in another text format."""

    def __init__(self, template: Stream, stream: Stream, encoder: str | None) -> None:
        """``template`` is the source's stream, ``stream`` the output's."""
        self._time_base = template.time_base or Fraction(1, av.time_base)
        decoder, subtitle_encoder = template.codec_context, stream.codec_context
        assert isinstance(decoder, SubtitleCodecContext)
        assert isinstance(subtitle_encoder, SubtitleCodecContext)
        self._decoder, self._encoder = decoder, subtitle_encoder
        self._one_at_a_time = encoder == "mov_text"
        """MOV text shows one packet at a time, so where lines overlap each packet holds all that
        are on screen."""
        self._lines: list[tuple[int, bytes]] = []
        """Lines on screen: when each ends, in ticks of the source, and its text in ASS."""
        self._since = 0
        """The tick from which on these lines are on screen together."""

    def convert(self, packet: Packet) -> list[Packet]:
        """Return what is complete after ``packet``; an empty one (a gap in MP4) has no line."""
        subtitle = self._decoder.decode2(packet)
        if subtitle is None or not len(subtitle):
            return []
        lines = [line.ass for line in subtitle if isinstance(line, AssSubtitle)]
        if any(_DRAWING.search(line) for line in lines):
            # In ASS a line may be a shape; as text its coordinates would be shown.
            return []
        start, duration, base = packet.pts or 0, packet.duration or 0, packet.time_base
        if not self._one_at_a_time:
            return [self._encoded(subtitle, start, duration, base)]
        before = self._until(max(start, self._since) if self._lines else start, base)
        if not duration:
            # A packet without a duration stays on screen until the next one.
            return [*before, self._encoded(subtitle, start, 0, base)]
        self._lines += [(start + duration, line) for line in lines]
        return before

    def rest(self) -> list[Packet]:
        """Return what is still on screen after the last packet."""
        return self._until(None, self._time_base)

    def _until(self, time: int | None, base: Fraction) -> list[Packet]:
        """Return what is on screen before ``time``, a packet for every change; None: to the end."""
        packets = []
        while self._lines:
            start, lines = self._since, [line for _, line in self._lines]
            ends = [end for end, _ in self._lines] + ([] if time is None else [time])
            self._since = min(ends)
            duration = self._since - start
            if duration > 0:
                text = SubtitleSet.create(_one_line(lines), 0, duration)
                packets.append(self._encoded(text, start, duration, base))
            self._lines = [each for each in self._lines if each[0] > self._since]
            if self._since == time:
                break
        self._since = time or 0
        return packets

    def _encoded(self, subtitle: SubtitleSet, start: int, duration: int, base: Fraction) -> Packet:
        packet: Packet = self._encoder.encode_subtitle(subtitle)
        packet.time_base = base
        packet.pts = packet.dts = start
        packet.duration = duration
        return packet


def _one_line(lines: Sequence[bytes]) -> bytes:
    """Return ASS lines as one, below each other, each in its own style."""
    fields = [line.split(b",", 8) for line in lines]
    texts = [fields[0][8], *(b"{\\r" + each[2] + b"}" + each[8] for each in fields[1:])]
    return b",".join([*fields[0][:8], b"\\N".join(texts)])
