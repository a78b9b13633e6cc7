"""Join the encoded stretches of the translated video to one stream with new decoding times."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from ...errors import OutputError
from ...wording import printable
from ..demux.demuxing import Packet, open_container
from ..demux.stream_info import StreamInfo
from .streams import StreamPlan


@dataclass(frozen=True)
class Stretch:
    """One part of the video as its encoder wrote it: a video-only file, and its frames' times."""

    path: Path
    """An MP4, or another container where MP4 cannot hold the codec.

    Only the order of the frames is taken from its time stamps.
    """
    time_base: Fraction
    """The source stream's."""
    times: tuple[int, ...]
    """Presentation times of the frames that were sent to the encoder, in ticks, ascending.

    They are the source's times, also where only a part of it is translated.
    """
    last_duration: int | None
    """Duration of the last frame in ticks; None where the source does not state it."""


class JoinedVideo:
    """The packets of all stretches on one timeline."""

    def __init__(self, stretches: Sequence[Stretch], plan: StreamPlan) -> None:
        self.stretches = stretches
        self._output = plan.output
        self.time_base = stretches[0].time_base
        times = [time for stretch in stretches for time in stretch.times]
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            raise OutputError(
                f"cannot write {printable(plan.output)}: the times of its stretches do not ascend, "
                "so they are not of one job; begin anew with --no-resume"
            )
        gaps = [b - a for a, b in itertools.pairwise(times)]
        last = stretches[-1].last_duration or (gaps[-1] if gaps else _frame_duration(plan.video))
        self.source_start = times[0] * self.time_base
        """Seconds on the source's timeline."""
        self.source_end = (times[-1] + last) * self.time_base
        origin = times[0]
        if not plan.from_first_frame:
            origin = min(origin, math.floor(plan.beginning / self.time_base))
        self.shift = origin * self.time_base
        """Seconds that are subtracted from every time of the source."""
        self.times = [time - origin for time in times]
        """Presentation times of all frames in the output, in ticks of `time_base`."""
        if plan.format == "avi":
            # AVI counts frames and has no other clock.
            rate = plan.video.average_rate or Fraction(25)
            if not plan.from_first_frame:
                self.shift = plan.beginning
            self.times = [round((time * self.time_base - self.shift) * rate) for time in times]
            self.time_base, gaps, last = 1 / rate, [1] * len(gaps), 1
        self.end = self.times[-1] + last
        self._ranks = self._presentation_ranks()
        self._delay = max(position - rank for position, rank in enumerate(self._ranks))
        """The most places by which a frame comes later in decoding than in presentation order."""
        self._step = min([*gaps, last])

    def _presentation_ranks(self) -> list[int]:
        """Return for each packet in decoding order its frame's position in presentation order."""
        ranks: list[int] = []
        extradata: set[bytes | None] = set()
        for stretch in self.stretches:
            with open_container(stretch.path) as container:
                stream = container.streams.video[0]
                extradata.add(stream.codec_context.extradata)
                stamps = [packet.pts for packet in container.demux(stream) if packet.size]
            if len(stamps) != len(stretch.times) or None in stamps:
                raise OutputError(
                    f"cannot write {printable(self._output)}: the encoder returned {len(stamps)} "
                    f"packets for {len(stretch.times)} frames; choose another --codec"
                )
            order = sorted(range(len(stamps)), key=lambda position: stamps[position] or 0)
            rank_of = [0] * len(order)
            for rank, position in enumerate(order):
                rank_of[position] = rank
            ranks += [len(ranks) + rank for rank in rank_of]
        if len(extradata) > 1:
            raise OutputError(
                f"cannot write {printable(self._output)}: its stretches were encoded with "
                "different settings; translate the whole of it again"
            )
        return ranks

    def packets(self) -> Iterator[Packet]:
        """Yield every packet in decoding order, timed in `time_base`."""
        position = 0
        for stretch in self.stretches:
            with open_container(stretch.path) as container:
                for packet in container.demux([container.streams.video[0]]):
                    if packet.size:
                        yield self._timed(packet, position)
                        position += 1

    def _timed(self, packet: Packet, position: int) -> Packet:
        """Return the packet at ``position`` in decoding order with its times in the output."""
        if packet.is_discard:
            # The stretch's edit list ends early (VP9 in MP4). The flag cannot be cleared, so a new
            # packet replaces this one.
            is_keyframe = packet.is_keyframe
            packet = av.Packet(bytes(packet))
            packet.is_keyframe = is_keyframe
        rank = self._ranks[position]
        packet.time_base = self.time_base
        packet.pts = self.times[rank]
        packet.dts = self._decoding_time(position)
        # The MP4 muxer ends the edit list by this duration, and so keeps that of the last frame.
        following = self.times[rank + 1] if rank + 1 < len(self.times) else self.end
        packet.duration = following - self.times[rank]
        return packet

    def _decoding_time(self, position: int) -> int:
        early = self._delay - position
        if early <= 0:
            return self.times[position - self._delay]
        # Before the first frame decoding times step back by the shortest gap, so that none collide.
        return self.times[0] - early * self._step


def _frame_duration(video: StreamInfo) -> int:
    """Return the duration of one frame in ticks, from the rate; 25 frames a second without one."""
    return max(1, round(1 / ((video.average_rate or Fraction(25)) * video.time_base)))
