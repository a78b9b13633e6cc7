"""Read the first packets of a file, or all of them, for what its header does not state.

That is: the properties of the first frame, whether the frame rate is constant, whether there are
captions, and in the containers of a broadcast the timeline and the duration of every stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import av.container
import av.error
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..alpha import alpha_of
from .demuxing import Packet, demux
from .frame_properties import (
    bits_per_sample,
    field_order,
    has_dolby_vision,
    orientation,
    stated_peak,
)
from .stream_info import ColourTags, MediaInfo, StreamInfo
from .timestamps import BROADCAST_FORMATS, Timeline

UNCOUNTED = ("mpegts", "mpeg")
"""Containers whose header states no duration and no number of frames."""
LOOKAHEAD_PACKETS = 300
"""Video packets read per stream where no index tells whether the rate is constant."""
_LOOKAHEAD_BYTES = 2**25
_CHEAP_BYTES = 2**26
"""`BROADCAST_FORMATS` up to this size are read completely for their timestamps: within a second."""
_CAPTION_PACKETS = 16
"""Video packets in which captions are looked for."""
_CAPTION_MARK = b"GA94\x03"
"""Start of CEA-608/708 data (ATSC A/53 Part 4, 6.2.3), in SEI, user data and OBUs alike."""
_REORDERED = 17
"""One more than the deepest reordering that H.264 and HEVC allow."""


class VideoLookahead:
    """What the first packets and the first frame of a video stream add to its header."""

    def __init__(self, stream: VideoStream, *, indexed: bool) -> None:
        """``indexed``: the container's index lists exactly the frames that the stream shows."""
        self.stream = stream
        self.first: VideoFrame | None = None
        self._times: list[int] = []
        """Presentation times of frames as far as they are known."""
        self._packets = 0
        self._bytes = 0
        self._frames = 0
        self._captions = False
        self._at_end = False
        self._index: list[int] | None = None
        """Presentation times by the index, where it is complete."""
        # The index of an MP4 leaves out what an edit list cuts off; in other containers an index
        # that is shorter than the stream is cut off itself.
        if stream.frames and (indexed or len(stream.index_entries) >= stream.frames):
            self._index = [each.timestamp for each in stream.index_entries if not each.is_discard]

    @property
    def complete(self) -> bool:
        """No further packet is needed."""
        if self._at_end or self._bytes > _LOOKAHEAD_BYTES:
            return True
        if self.first is None or self._packets < _CAPTION_PACKETS:
            return False
        return self._index is not None or self._packets >= LOOKAHEAD_PACKETS

    def take(self, packet: Packet, *, steady: bool, whole: bool) -> None:
        """Take the next packet.

        ``steady``: there was no discontinuity since the first packet. ``whole``: every frame is
        decoded, and times are those of frames, not of packets.
        """
        if packet.size:
            self._packets += 1
            self._bytes += packet.size
            if self._packets <= _CAPTION_PACKETS:
                self._captions = self._captions or _CAPTION_MARK in bytes(packet)
            time = packet.dts if packet.pts is None else packet.pts
            if steady and time is not None and not packet.is_discard and not whole:
                self._times.append(time)
        else:
            self._at_end = True
        if self.first is None or whole:
            self._decode(packet, take_times=steady and whole)

    def _decode(self, packet: Packet, *, take_times: bool) -> None:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            # The translation reports what cannot be decoded; here the rest is described.
            return
        for frame in frames:
            assert isinstance(frame, VideoFrame)
            self._frames += 1
            if self.first is None:
                self.first = frame
            if take_times and frame.pts is not None:
                self._times.append(frame.pts)

    def times(self, *, whole: bool) -> list[int]:
        """Return when frames are shown, ascending and without gaps.

        ``whole``: the decoded frames are counted, not the entries of the index.
        """
        if self._index is not None and not whole:
            return self._index
        times = sorted(self._times)
        if not self._at_end and self._index is None:
            # The last packets in decoding order leave gaps that later packets fill.
            times = times[: -min(_REORDERED, len(times) // 2) or None]
        return times

    def add_to(self, info: StreamInfo, *, whole: bool) -> StreamInfo:
        """Return ``info`` with what was read of the stream."""
        times = self.times(whole=whole)
        if not self.stream.average_rate:
            # FFmpeg's guess of the rate may be the ticks of the clock.
            info = replace(
                info, average_rate=_even_rate(times, info.time_base) or info.average_rate
            )
        if self._index is not None:
            # An edit list may show fewer frames than the header counts.
            info = replace(info, frames_claimed=len(self._index))
        info = replace(
            info,
            constant_rate=evenly_spaced(times),
            closed_captions=self._captions,
            frames_counted=self._frames if whole else None,
        )
        return info if self.first is None else _with_frame_properties(info, self.first)


def _with_frame_properties(info: StreamInfo, frame: VideoFrame) -> StreamInfo:
    """Return ``info`` with what its first frame states."""
    rotation, mirrored = orientation(frame)
    # The bitstream overrides the container (tried: a PQ stream in a container tagged BT.709).
    tags = info.colour
    colour = ColourTags(
        matrix=tags.matrix if frame.colorspace == 2 else int(frame.colorspace),
        primaries=tags.primaries if frame.color_primaries == 2 else int(frame.color_primaries),
        transfer=tags.transfer if frame.color_trc == 2 else int(frame.color_trc),
        range=int(frame.color_range) or tags.range,
    )
    # A header may state a field order for a progressive video; a frame's own flag is reliable.
    interlaced = bool(info.interlaced or frame.interlaced_frame)
    fields = field_order(frame) if frame.interlaced_frame else info.fields
    # GIF's decoder always returns alpha, and most GIF files have no transparent pixel.
    alpha = alpha_of(frame) if info.codec == "gif" else None
    return replace(
        info,
        size=info.size if info.size and all(info.size) else (frame.height, frame.width),
        rotation=rotation,
        mirrored=mirrored,
        pix_fmt=info.pix_fmt or frame.format.name,
        bits=bits_per_sample(frame.format),
        colour=colour,
        peak=stated_peak(frame),
        dolby_vision=info.dolby_vision or has_dolby_vision(frame),
        interlaced=interlaced,
        fields=(fields or "tff") if interlaced else None,
        alpha=info.alpha or (alpha is not None and bool((alpha.values < 255).any())),
    )


class StreamSpans:
    """When each stream of a file begins and ends, by its packets.

    Only files of `BROADCAST_FORMATS` need it: their header does not state it.
    """

    def __init__(self) -> None:
        self._spans: dict[int, tuple[Fraction, Fraction]] = {}
        """By the stream's index, in seconds."""
        self._without_durations: set[int] = set()
        """Streams whose packets have no duration."""
        self.at_end = False
        """The file was read to its end."""

    def take(self, packet: Packet) -> None:
        """Extend the span of the packet's stream."""
        time = packet.dts if packet.pts is None else packet.pts
        if packet.size and time is not None:
            start, end = time * packet.time_base, (time + (packet.duration or 0)) * packet.time_base
            span = self._spans.get(packet.stream_index, (start, end))
            self._spans[packet.stream_index] = min(start, span[0]), max(end, span[1])
            if not packet.duration:
                self._without_durations.add(packet.stream_index)

    def add_to(
        self, info: MediaInfo, lookaheads: Mapping[int, VideoLookahead], timeline: Timeline
    ) -> MediaInfo:
        """Return ``info`` with what was read of the timeline and the streams."""
        info = replace(info, discontinuities=tuple(timeline.discontinuities))
        if info.format not in BROADCAST_FORMATS:
            return info
        # These headers state no duration, or one that still includes the discontinuities.
        measured = self.at_end and (bool(info.discontinuities) or info.format in UNCOUNTED)
        streams = []
        for stream in info.streams:
            if stream.index in self._spans:
                stream = self._with_span(
                    stream,
                    lookaheads.get(stream.index),
                    timeline,
                    has_discontinuities=bool(info.discontinuities),
                    measured=measured,
                )
            streams.append(stream)
        info = replace(info, streams=tuple(streams))
        ends = [
            (stream.start_pts + stream.duration) * stream.time_base
            for stream in streams
            if stream.start_pts is not None and stream.duration is not None
        ]
        if measured and ends and (start := info.start) is not None:
            info = replace(info, duration=max(ends) - start)
        return info

    def _with_span(
        self,
        stream: StreamInfo,
        lookahead: VideoLookahead | None,
        timeline: Timeline,
        *,
        has_discontinuities: bool,
        measured: bool,
    ) -> StreamInfo:
        """Return ``stream`` with its start, and where it was ``measured``, its duration."""
        start, end = self._spans[stream.index]
        first = None if lookahead is None else lookahead.first
        if first is not None and first.pts is not None:
            # A recording may begin between two key frames; before the first nothing is decoded.
            start = first.pts * stream.time_base
        if stream.index in self._without_durations and stream.average_rate:
            end += 1 / stream.average_rate
        stream = replace(
            stream,
            start_pts=round(start / stream.time_base),
            paused=round(timeline.paused.get(stream.index, 0) / stream.time_base),
        )
        if lookahead is not None and has_discontinuities:
            # FFmpeg derives the rate from timestamps on both sides of a discontinuity.
            rate = _even_rate(lookahead.times(whole=False), stream.time_base)
            stream = replace(stream, average_rate=rate or stream.average_rate)
        if measured:
            stream = replace(stream, duration=round((end - start) / stream.time_base))
        return stream


def read_ahead(
    container: av.container.InputContainer,
    lookaheads: Mapping[int, VideoLookahead],
    timeline: Timeline,
    spans: StreamSpans,
    *,
    whole: bool,
) -> None:
    """Read packets until every lookahead is complete and the timeline is known, or all of them."""
    for lookahead in lookaheads.values():
        lookahead.stream.thread_type = "AUTO" if whole else "SLICE"
    broadcast = container.format.name in BROADCAST_FORMATS
    to_the_end = whole or (broadcast and 0 <= container.size <= _CHEAP_BYTES)
    streams: list[Stream] = [each.stream for each in lookaheads.values()]
    if broadcast:
        streams = list(container.streams)
    size, complete = 0, False
    packets = timeline.place(demux(container, streams))
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            if complete or any(each.first is not None for each in lookaheads.values()):
                # What was read is enough; the translation reports that the file breaks off.
                return
            raise
        if packet is None:
            spans.at_end = True
            return
        spans.take(packet)
        current = lookaheads.get(packet.stream.index)
        if current is None:
            continue
        size += packet.size
        if whole or not current.complete:
            current.take(packet, steady=not timeline.discontinuities, whole=whole)
            continue
        # The size ends the search for a stream that begins late or never: 4 times 32 MiB.
        if size > 4 * _LOOKAHEAD_BYTES or all(each.complete for each in lookaheads.values()):
            complete = True
            if not to_the_end:
                return


def evenly_spaced(times: Sequence[int]) -> bool | None:
    """Return whether ``times`` (ticks, ascending) lie within one tick of an even grid."""
    if len(times) < 2:
        return None
    steps, first = len(times) - 1, times[0]
    span = times[-1] - first
    # In integers, since an index may have a million entries: first + span·i/steps against time.
    return all(abs(span * i - (time - first) * steps) <= steps for i, time in enumerate(times))


def _even_rate(times: Sequence[int], time_base: Fraction) -> Fraction | None:
    """Return the rate of frames at ``times`` (ticks, ascending), where it is constant."""
    if not evenly_spaced(times) or times[0] == times[-1]:
        return None
    return ((len(times) - 1) / ((times[-1] - times[0]) * time_base)).limit_denominator(1001)
