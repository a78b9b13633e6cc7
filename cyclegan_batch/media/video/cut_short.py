"""Find out whether a file was cut short, of which FFmpeg reports nothing where a packet ends there.

What the demuxer delivered is compared with what the header states: a number of frames where the
container has one, else a duration. A y4m stream states neither, but all its frames have one length.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from av.video.stream import VideoStream

from ..demux.demuxing import Packet
from ..demux.lookahead import UNCOUNTED
from ..demux.probe import asf_claims
from ..demux.standard_input import Y4M_MUXER
from .plan import VideoPlan

_ROUNDING = Fraction(2, 1000)
"""Seconds: containers round durations to milliseconds."""


class Received:
    """How much of a file the demuxer delivered."""

    def __init__(self, video_index: int) -> None:
        """``video_index``: the index of the stream whose packets are counted."""
        self._video_index = video_index
        self.packets = 0
        """Of the video stream."""
        self.end_byte = 0
        """Offset behind the video's last packet, in a file that is read from front to back."""
        self.corrupt_ends: list[Fraction] = []
        """When those packets of the video end, in seconds, that the demuxer marked as corrupt."""
        self.failure: str | None = None
        """Why the demuxer stopped before the end."""
        self._ends: dict[int, Fraction] = {}
        """Seconds at which each stream ended so far."""
        self._last_dts: dict[int, Fraction] = {}
        """Decoding time, in seconds, of each stream's last packet that has no duration."""
        self._longest_steps: dict[int, Fraction] = {}
        """The most seconds from one packet without a duration to the next, for each stream."""

    def take(self, packet: Packet) -> None:
        """Note the next packet of any stream."""
        if not packet.size:
            return
        index, time = packet.stream_index, packet.pts if packet.pts is not None else packet.dts
        if time is not None:
            end = (time + (packet.duration or 0)) * packet.time_base
            self._ends[index] = max(end, self._ends.get(index, end))
            self._note_step(packet)
            if index == self._video_index and packet.is_corrupt:
                self.corrupt_ends.append(end)
        if index == self._video_index:
            self.packets += 1
            self.end_byte = (packet.pos or 0) + packet.size

    def _note_step(self, packet: Packet) -> None:
        if packet.dts is None or packet.duration:
            return
        index, time = packet.stream_index, packet.dts * packet.time_base
        step = time - self._last_dts.get(index, time)
        self._last_dts[index] = time
        self._longest_steps[index] = max(step, self._longest_steps.get(index, step))

    @property
    def end(self) -> Fraction:
        """Where the last packet ends, in seconds."""
        return max(self._ends.values(), default=Fraction(0))

    def latest_end_of(self, index: int) -> Fraction:
        """Return where a stream ended at the latest, in seconds.

        A last packet without a duration may last as long as the longest such packet before it.
        """
        return self._ends.get(index, Fraction(0)) + self._longest_steps.get(index, 0)

    @property
    def latest_end(self) -> Fraction:
        """Where the last of all streams ended at the latest, in seconds."""
        return max(map(self.latest_end_of, self._ends), default=Fraction(0))


def cut_short(
    plan: VideoPlan,
    received: Received,
    stream: VideoStream | None,
    *,
    step: int,
    size: Callable[[], int],
    is_part: bool,
) -> str | None:
    """Return what the file lacks at its end, in words, or None where it is whole.

    ``stream`` is the stream that FFmpeg read, if it did, ``step`` a frame's duration in ticks, and
    ``size`` returns the bytes of the file or pipe; ``is_part``: a seek has left out some of the
    packets.
    """
    if received.failure:
        return f"cannot be read to its end ({received.failure})"
    if plan.info.format == Y4M_MUXER:
        # FFmpeg drops a part of a frame silently.
        rest = size() - received.end_byte
        if rest <= 0:
            return None
        return f"is cut short: {rest} bytes of a frame follow {received.packets} whole ones"
    if is_part or plan.info.format.startswith(UNCOUNTED):
        return None
    announced = _announced_frames(plan, stream)
    if announced is not None and received.packets < announced - 1:
        return f"is cut short: its header states {announced} frames, it holds {received.packets}"
    if announced is not None and plan.stream.frames_claimed is not None:
        return None
    end, announced_end = _ends(plan, received, size)
    if announced_end is None or end + step * plan.stream.time_base + _ROUNDING >= announced_end:
        return None
    return (
        f"is cut short: its header states {float(announced_end):.3f} s, it holds {float(end):.3f} s"
    )


def _announced_frames(plan: VideoPlan, stream: VideoStream | None) -> int | None:
    """Return how many frames the container lists, or None where it lists none."""
    if plan.info.format.startswith("avi"):
        # AVI's index lists empty frames, too.
        return None
    if stream is not None and plan.info.format.startswith("mov"):
        # FFmpeg's index of MP4 leaves out what an edit list cuts off, and it holds the frames of
        # every fragment that was read.
        return len(stream.index_entries) or None
    return plan.stream.frames_claimed


def _ends(
    plan: VideoPlan, received: Received, size: Callable[[], int]
) -> tuple[Fraction, Fraction | None]:
    """Return where the video ends, and where it should by the header (or None), in seconds.

    Where only the duration of the whole file is known, both are those of the longest stream.
    """
    info, stream = plan.info, plan.stream
    if plan.picture_rate is not None:
        return Fraction(0), None
    if info.format == "asf":
        claims = asf_claims(plan.path)
        # In a WMV whose bytes are all there, the last image is shown until the stated end.
        is_missing = claims is not None and size() < claims[0]
        return received.latest_end, claims[1] if claims is not None and is_missing else None
    if stream.duration is not None:
        # In fragmented MP4 the duration stands in another part of the file (sidx, mehd) and counts
        # from 0, not from the first frame.
        is_fragmented = info.format.startswith("mov") and stream.frames_claimed is None
        start = 0 if is_fragmented else stream.start_pts or 0
        duration = stream.duration
        if info.format == "avi" and stream.frames_claimed is not None:
            # AVI's header states one tick for each frame, empty ones included; without the index,
            # FFmpeg's duration is that of the frames that are there.
            duration = max(duration, stream.frames_claimed)
        return received.latest_end_of(stream.index), (start + duration) * stream.time_base
    if info.duration is None:
        return received.latest_end, None
    # The header counts from 0, not from the first frame, but from an earlier start if there is one.
    starts = [s.start_pts * s.time_base for s in info.streams if s.start_pts is not None]
    return received.latest_end, info.duration + min([Fraction(0), *starts])
