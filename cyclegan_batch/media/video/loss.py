"""Find the frames that a damaged video lost.

A decoder does not report which frame a damaged packet belonged to, nor that it left a frame out.
Two observations replace that report. `LossDetector` compares the presentation time stamps (PTS) of
the packets that entered the decoder with those of the frames that came out of it. `GapCounter`
counts the times that an even frame rate leaves empty: there the packet itself is missing, and the
decoder never received it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av

from ..demux.demuxing import Packet


@dataclass(frozen=True)
class Lost:
    """A frame that could not be decoded."""

    pts: int | None
    cause: str


class UncertainError(Exception):
    """Damage that several decoding threads cannot attribute to its frame; one thread can.

    Also: decoding from the middle of the file may not give the frames that decoding from its
    beginning gives.
    """


class LossDetector:
    """Match the decoded frames with the packets by PTS, and report the packets without a frame.

    A decoder returns frames in presentation order, so once a frame has come out, a packet with a
    lower PTS will not become one any more. Only ``careful`` decoding, by one thread, attributes
    damage to the right frame; without it every method raises UncertainError at the first damage.
    """

    def __init__(self, *, careful: bool) -> None:
        self._careful = careful
        self._pending: list[int] = []
        """A heap: the PTS of the packets whose frames have not come out."""
        self._first_pts: int | None = None
        """Of the first decoded frame."""
        self._is_damaged = False
        self._cause = "its data is damaged"
        self._reported: set[int] = set()
        self._begins_with_key: bool | None = None
        self._first_key_pts: int | None = None

    def expect(self, packet: Packet) -> None:
        """Take a packet that is about to be decoded."""
        if not packet.size:
            return
        if self._begins_with_key is None:
            self._begins_with_key = packet.is_keyframe
        if self._first_key_pts is None and packet.is_keyframe:
            self._first_key_pts = packet.pts
        if packet.pts is not None and not packet.is_discard:
            heapq.heappush(self._pending, packet.pts)

    def is_leading(self, frame: av.VideoFrame) -> bool:
        """Return whether a corrupt ``frame`` lacks only references that precede the file.

        That is no damage: a recording may begin between two key frames, or with a key frame whose
        leading pictures (decoded after it, shown before it) refer to the group of pictures before.
        """
        if self._first_pts is None and not self._begins_with_key:
            return True
        if frame.pts is None or self._first_key_pts is None:
            return False
        return frame.pts < self._first_key_pts

    def note_concealed(self) -> None:
        """Note a frame in which the decoder concealed errors. Raises UncertainError.

        With several threads neither the concealment nor the flagged frames are always the same.
        """
        if not self._careful:
            raise UncertainError
        self._is_damaged = True

    def note_undecodable(self, packet: Packet, cause: str) -> None:
        """Note a packet that the decoder refused. Raises UncertainError."""
        if not self._careful:
            raise UncertainError
        self._is_damaged, self._cause = True, cause
        if packet.pts is None and packet.size:
            # A packet without PTS is taken for the frame that is due next.
            heapq.heappush(self._pending, self._pending[0] if self._pending else 0)

    def lost_before(self, frame: av.VideoFrame) -> Iterator[Lost]:
        """Yield the frames that should have been shown before ``frame``. Raises UncertainError."""
        if frame.pts is None:
            return
        if self._first_pts is None:
            self._first_pts = frame.pts
        while self._pending and self._pending[0] < frame.pts:
            pts = heapq.heappop(self._pending)
            # A packet with a lower PTS than the first decoded frame is no sign of damage: it came
            # before the first key frame, or is one of its leading pictures.
            if not self._careful and pts > self._first_pts:
                raise UncertainError
            # VP8's hidden frames (alternate references) never come out either. Therefore a packet
            # without a frame counts as lost only after an error.
            if self._is_damaged:
                self._reported.add(pts)
                yield Lost(pts, self._cause)
        if self._pending and self._pending[0] == frame.pts:
            heapq.heappop(self._pending)

    def is_late(self, frame: av.VideoFrame) -> bool:
        """Return whether ``frame`` was reported as lost: it came out after later frames.

        Frames whose references are missing come out of their order.
        """
        return frame.pts in self._reported

    def lost_at_end(self) -> Iterator[Lost]:
        """Yield the frames that should have been shown after the last. Raises UncertainError."""
        if self._pending and not self._careful:
            raise UncertainError
        if self._is_damaged:
            yield from (Lost(pts, self._cause) for pts in sorted(self._pending))


class GapCounter:
    """Count the frames that an even frame rate leaves out.

    For containers whose header holds no number of frames (MPEG-TS and the like).
    """

    def __init__(self, step: int, longest: int) -> None:
        """``step``: ticks from one frame to the next by the average frame rate.

        A gap of more than ``longest`` ticks is a timestamp discontinuity, not missing frames.
        """
        self._step, self._longest = step, longest
        self._last: int | None = None
        self._even = self._uneven = self._left_out = 0
        self._first_missing: int | None = None

    def take(self, pts: int | None, discontinuities: Sequence[int] = ()) -> None:
        """Take the PTS of the next frame, or of one that is known to be lost.

        Where one of ``discontinuities`` (PTS) lies between two frames, nothing counts as missing.
        """
        if pts is None:
            return
        last = self._last
        self._last = pts if last is None else max(last, pts)
        if last is None or any(last < place <= pts for place in discontinuities):
            return
        steps = round((pts - last) / self._step)
        if abs(pts - last - steps * self._step) > max(1, self._step // 8):
            self._uneven += 1
        elif steps == 1:
            self._even += 1
        elif steps > 1 and pts - last <= self._longest:
            self._left_out += steps - 1
            if self._first_missing is None:
                self._first_missing = last + self._step

    @property
    def missing(self) -> int:
        """How many frames are missing; 0 where the frame rate is not even."""
        return self._left_out if self._even > 9 * self._uneven else 0

    @property
    def first(self) -> int | None:
        """The PTS at which the first of them was due, or None."""
        return self._first_missing if self.missing else None
