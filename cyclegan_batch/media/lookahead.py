"""Read the first packets of a file, or all: its header does not tell every time and rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import av.container
import av.error
import av.stream
import av.video.stream
from av.video.frame import VideoFrame

from .alpha import alpha_of
from .clocks import BROADCAST, JobClock
from .demuxing import demux
from .frame_properties import bits_per_sample, field_order, orientation
from .stream_info import ColourTags, MediaInfo, StreamInfo

UNCOUNTED = ("mpegts", "mpeg")
"""Containers that do not say how much they hold."""

LOOKAHEAD_PACKETS = 300
"""Video packets read per stream where no index tells whether the rate is constant."""

_LOOKAHEAD_BYTES = 2**25


class Look:
    """What the first packets and the first frame of a video stream add to its header."""

    def __init__(self, stream: av.video.stream.VideoStream, *, indexed: bool) -> None:
        """``indexed``: what the container lists of a stream is the stream."""
        self.stream = stream
        self.first: VideoFrame | None = None
        self.times: list[int] = []
        """Presentation times of frames as far as they are known."""
        self.packets = 0
        self.size = 0
        self.frames = 0
        self.captions = False
        self.end = False
        # The index of an MP4 lacks what an edit list cuts off; others may be cut themselves.
        if stream.frames and (indexed or len(stream.index_entries) >= stream.frames):
            self.index: list[int] | None = [
                entry.timestamp for entry in stream.index_entries if not entry.is_discard
            ]
        else:
            self.index = None

    @property
    def satisfied(self) -> bool:
        """No further packet is needed."""
        if self.first is None or self.packets < _CAPTION_PACKETS:
            enough = False
        else:
            enough = self.index is not None or self.packets >= LOOKAHEAD_PACKETS
        return self.end or enough or self.size > _LOOKAHEAD_BYTES

    def take(self, packet: av.Packet[Any], *, steady: bool, whole: bool) -> None:
        """Take the next packet; ``steady``: its clock is still that of the first."""
        if packet.size:
            self.packets += 1
            self.size += packet.size
            if self.packets <= _CAPTION_PACKETS:
                self.captions = self.captions or _CAPTION_MARK in bytes(packet)
            time = packet.dts if packet.pts is None else packet.pts
            if steady and time is not None and not packet.is_discard and not whole:
                self.times.append(time)
        else:
            self.end = True
        if self.first is None or whole:
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                # What cannot be decoded is the translation's to report; here the rest is described.
                return
            for frame in frames:
                assert isinstance(frame, VideoFrame)
                self.frames += 1
                if self.first is None:
                    self.first = frame
                if steady and whole and frame.pts is not None:
                    self.times.append(frame.pts)

    def known_times(self, *, whole: bool) -> list[int]:
        """Return when frames are shown, without gaps, ascending."""
        if self.index is not None and not whole:
            return self.index
        times = sorted(self.times)
        if not self.end and self.index is None:
            # The last ones in decoding order leave gaps that later packets fill.
            times = times[: -min(_REORDERED, len(times) // 2) or None]
        return times

    def complete(self, info: StreamInfo, *, whole: bool) -> StreamInfo:
        """Return ``info`` with what was seen."""
        times = self.known_times(whole=whole)
        if not self.stream.average_rate:
            # What FFmpeg guesses instead may be the ticks of the clock.
            info = replace(
                info, average_rate=_even_rate(times, info.time_base) or info.average_rate
            )
        if self.index is not None:
            # An edit list may show less than is there.
            info = replace(info, frames_claimed=len(self.index))
        info = replace(
            info,
            constant_rate=_evenly_spaced(times),
            closed_captions=self.captions,
            frames_counted=self.frames if whole else None,
        )
        frame = self.first
        if frame is None:
            return info
        rotation, mirrored = orientation(frame)
        size = info.size if info.size and all(info.size) else (frame.height, frame.width)
        # The bitstream is closer to the pixels than the container (tried: PQ in a BT.709 box).
        tags = info.colour
        colour = ColourTags(
            matrix=tags.matrix if frame.colorspace == 2 else int(frame.colorspace),
            primaries=tags.primaries if frame.color_primaries == 2 else int(frame.color_primaries),
            transfer=tags.transfer if frame.color_trc == 2 else int(frame.color_trc),
            range=int(frame.color_range) or tags.range,
        )
        interlaced = bool(info.interlaced or frame.interlaced_frame)
        fields = field_order(frame) if frame.interlaced_frame else info.fields
        drawn = alpha_of(frame) if info.codec == "gif" else None
        return replace(
            info,
            size=size,
            rotation=rotation,
            mirrored=mirrored,
            pix_fmt=info.pix_fmt or frame.format.name,
            bits=bits_per_sample(frame.format),
            colour=colour,
            # A field order alone is a claim of the header; a frame flagged so is coded so.
            interlaced=interlaced,
            fields=(fields or "tff") if interlaced else None,
            # GIF's decoder always gives alpha, and most of them have no transparent pixel.
            alpha=info.alpha or (drawn is not None and bool((drawn.values < 255).any())),
        )


_CAPTION_PACKETS = 16

_CAPTION_MARK = b"GA94\x03"
"""Start of CEA-608/708 data (ATSC A/53 Part 4, 6.2.3), in SEI, user data and OBUs alike."""

_REORDERED = 17
"""One more than the deepest reordering that H.264 and HEVC allow."""

_CHEAP_BYTES = 2**26
"""Files of `BROADCAST` up to this size are read as a whole for their clock: within a second."""


class Spans:
    """From when to when each stream goes in a file of `BROADCAST`, whose header does not tell."""

    def __init__(self) -> None:
        self._times: dict[int, tuple[Fraction, Fraction]] = {}
        """By the stream's index, in seconds."""
        self._endless: set[int] = set()
        """Streams whose packets do not say how long they last."""
        self.whole = False
        """The file was read to its end."""

    def take(self, packet: av.Packet[Any]) -> None:
        """Extend the span of the packet's stream."""
        time = packet.dts if packet.pts is None else packet.pts
        if packet.size and time is not None:
            start, end = time * packet.time_base, (time + (packet.duration or 0)) * packet.time_base
            before = self._times.get(packet.stream_index, (start, end))
            self._times[packet.stream_index] = min(start, before[0]), max(end, before[1])
            if not packet.duration:
                self._endless.add(packet.stream_index)

    def complete(self, info: MediaInfo, looks: dict[int, Look], clock: JobClock) -> MediaInfo:
        """Return ``info`` with what was seen."""
        info = replace(info, seams=tuple(clock.seams))
        if info.format not in BROADCAST:
            return info
        streams = []
        for stream in info.streams:
            if stream.index in self._times:
                start, end = self._times[stream.index]
                look = looks.get(stream.index)
                if look is not None and look.first is not None and look.first.pts is not None:
                    # Of a recording that begins between two key frames, what comes before is lost.
                    start = look.first.pts * stream.time_base
                if stream.index in self._endless and stream.average_rate:
                    end += 1 / stream.average_rate
                stream = replace(
                    stream,
                    start_pts=round(start / stream.time_base),
                    paused=round(clock.paused.get(stream.index, 0) / stream.time_base),
                )
                if look is not None and info.seams:
                    # FFmpeg takes the rate from all times that it looked at, on whatever clock.
                    rate = _even_rate(look.known_times(whole=False), stream.time_base)
                    stream = replace(stream, average_rate=rate or stream.average_rate)
                if self._measured(info):
                    stream = replace(stream, duration=round((end - start) / stream.time_base))
            streams.append(stream)
        info = replace(info, streams=tuple(streams))
        ends = [
            (stream.start_pts + stream.duration) * stream.time_base
            for stream in streams
            if stream.start_pts is not None and stream.duration is not None
        ]
        if self._measured(info) and ends and (begin := info.start) is not None:
            info = replace(info, duration=max(ends) - begin)
        return info

    def _measured(self, info: MediaInfo) -> bool:
        """Say whether what was read is more than what the container says of itself."""
        return self.whole and (bool(info.seams) or info.format in UNCOUNTED)


def look_into(
    container: av.container.InputContainer,
    looks: dict[int, Look],
    clock: JobClock,
    spans: Spans,
    *,
    whole: bool,
) -> None:
    """Read packets until every look is satisfied and the clock is known, or all of them."""
    for look in looks.values():
        look.stream.thread_type = "AUTO" if whole else "SLICE"
    broadcast = container.format.name in BROADCAST
    to_the_end = whole or (broadcast and 0 <= container.size <= _CHEAP_BYTES)
    streams = list(container.streams) if broadcast else [look.stream for look in looks.values()]
    size, done = 0, False
    packets = clock.steady(demux(container, streams))
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            if done or any(look.first is not None for look in looks.values()):
                # There is a picture; that the file breaks off is the translation's to report.
                return
            raise
        if packet is None:
            spans.whole = True
            return
        spans.take(packet)
        found = looks.get(packet.stream.index)
        if found is None:
            continue
        size += packet.size
        if whole or not found.satisfied:
            found.take(packet, steady=not clock.seams, whole=whole)
            continue
        # The size is for a stream that begins late or never: no pass over it all for that.
        if size > 4 * _LOOKAHEAD_BYTES or all(other.satisfied for other in looks.values()):
            done = True
            if not to_the_end:
                return


def _evenly_spaced(times: Sequence[int]) -> bool | None:
    """Say whether ``times`` (ticks, ascending) lie within one tick of an even grid."""
    if len(times) < 2:
        return None
    steps, first = len(times) - 1, times[0]
    span = times[-1] - first
    # In integers, since an index may have a million entries: first + span·i/steps against time.
    return all(abs(span * i - (time - first) * steps) <= steps for i, time in enumerate(times))


def _even_rate(times: Sequence[int], time_base: Fraction) -> Fraction | None:
    """Return the rate of frames at ``times`` (ticks, ascending), where it is constant."""
    if not _evenly_spaced(times) or times[0] == times[-1]:
        return None
    return ((len(times) - 1) / ((times[-1] - times[0]) * time_base)).limit_denominator(1001)
