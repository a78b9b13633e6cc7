"""The encoded stretches of the translated video as one stream, with decoding times made anew."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.stream

from ..errors import OutputError
from ..wording import printable
from .demuxing import open_container
from .stream_info import StreamInfo
from .streams import StreamPlan


@dataclass(frozen=True)
class Stretch:
    """One unit of video as its encoder left it: a video-only file, and the times of its frames."""

    path: Path
    """MP4, or what can hold the codec where MP4 cannot.

    Its time stamps say only which frame comes before which.
    """
    time_base: Fraction
    """The source stream's."""
    times: tuple[int, ...]
    """Presentation times of the frames that were sent to the encoder, in ticks, ascending.

    As in the source, also where only a part is translated.
    """
    last_duration: int | None
    """Duration of the last frame in ticks, where the source says it."""


class JoinedVideo:
    """The packets of all stretches on one clock, with decoding times made anew."""

    def __init__(self, stretches: Sequence[Stretch], plan: StreamPlan) -> None:
        self.stretches = stretches
        self._output = plan.output
        self.time_base = stretches[0].time_base
        times = [time for stretch in stretches for time in stretch.times]
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            raise ValueError("frame times must ascend, within and across stretches")
        gaps = [b - a for a, b in itertools.pairwise(times)]
        last = stretches[-1].last_duration or (gaps[-1] if gaps else self._one_frame(plan.video))
        self.source_start = times[0] * self.time_base
        """Seconds on the source's clock."""
        self.source_end = (times[-1] + last) * self.time_base
        origin = times[0]
        if not plan.from_first_frame:
            origin = min(origin, math.floor(plan.beginning / self.time_base))
        self.shift = origin * self.time_base
        """Seconds that are taken off every time of the source."""
        self.times = [time - origin for time in times]
        if plan.format == "avi":
            # AVI counts frames and has no other clock.
            rate = plan.video.average_rate or Fraction(25)
            if not plan.from_first_frame:
                self.shift = plan.beginning
            self.times = [round((time * self.time_base - self.shift) * rate) for time in times]
            self.time_base, gaps, last = 1 / rate, [1] * len(gaps), 1
        self.end = self.times[-1] + last
        self._ranks = self._presentation_ranks()
        self._delay = max(k - rank for k, rank in enumerate(self._ranks))
        # Before the first frame decoding times step back by the shortest gap: that cannot collide.
        self._step = min([*gaps, last])

    @staticmethod
    def _one_frame(video: StreamInfo) -> int:
        return max(1, round(1 / ((video.average_rate or Fraction(25)) * video.time_base)))

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
            order = sorted(range(len(stamps)), key=lambda k: stamps[k] or 0)
            position = [0] * len(order)
            for rank, k in enumerate(order):
                position[k] = rank
            ranks += [len(ranks) + rank for rank in position]
        if len(extradata) > 1:
            raise OutputError(
                f"cannot write {printable(self._output)}: its stretches were encoded with "
                "different settings; translate the whole of it again"
            )
        return ranks

    def packets(self) -> Iterator[av.Packet[Any]]:
        """Yield every packet in decoding order, timed in `time_base`."""
        k = 0
        for stretch in self.stretches:
            with open_container(stretch.path) as container:
                for packet in container.demux(container.streams.video[0]):
                    if packet.size:
                        yield self._timed(packet, k)
                        k += 1

    def _timed(self, packet: av.Packet[Any], k: int) -> av.Packet[Any]:
        if packet.is_discard:
            # The stretch's edit list ends early (VP9 in MP4), and the flag can only be left behind.
            keyframe = packet.is_keyframe
            packet = av.Packet(bytes(packet))
            packet.is_keyframe = keyframe
        rank = self._ranks[k]
        packet.time_base = self.time_base
        packet.pts = self.times[rank]
        packet.dts = self._decoding_time(k)
        # The edit list of an MP4 takes its end from this, and so keeps the last frame's duration.
        following = self.times[rank + 1] if rank + 1 < len(self.times) else self.end
        packet.duration = following - self.times[rank]
        return packet

    def _decoding_time(self, k: int) -> int:
        early = self._delay - k
        return self.times[k - self._delay] if early <= 0 else self.times[0] - early * self._step
