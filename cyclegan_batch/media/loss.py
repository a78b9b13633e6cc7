"""Which frames of a video were lost: packets that never became frames, and gaps of an even rate."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av


@dataclass(frozen=True)
class Lost:
    """A frame that could not be decoded."""

    pts: int | None
    cause: str


class UncertainError(Exception):
    """Something could not be decoded, and with several threads it is not certain what."""


class Shown:
    """Which packets became frames: a decoder does not say which frame a broken packet was."""

    def __init__(self, *, careful: bool) -> None:
        self._careful = careful
        self._waiting: list[int] = []
        self._first: int | None = None
        self._failed = False
        self._cause = "its data is damaged"
        self._reported: set[int] = set()
        self._begins_with_key: bool | None = None
        self._first_key: int | None = None

    def expect(self, packet: av.Packet[Any]) -> None:
        """Note a packet that is about to be decoded."""
        if not packet.size:
            return
        if self._begins_with_key is None:
            self._begins_with_key = packet.is_keyframe
        if self._first_key is None and packet.is_keyframe:
            self._first_key = packet.pts
        if packet.pts is not None and not packet.is_discard:
            heapq.heappush(self._waiting, packet.pts)

    def is_leading(self, frame: av.VideoFrame) -> bool:
        """Say whether a damaged ``frame`` only lacks what lies before the beginning of the file.

        A recording may begin between two key frames, or with one that others before it refer to.
        """
        if self._first is None and not self._begins_with_key:
            return True
        if frame.pts is None or self._first_key is None:
            return False
        return frame.pts < self._first_key

    def conceal(self) -> None:
        """Note a frame whose gaps the decoder filled. Raises UncertainError unless ``careful``.

        Several threads do not always fill them alike, nor flag the same frames.
        """
        if not self._careful:
            raise UncertainError
        self._failed = True

    def fail(self, packet: av.Packet[Any], cause: str) -> None:
        """Note a packet that cannot be decoded. Raises UncertainError unless ``careful``."""
        if not self._careful:
            raise UncertainError
        self._failed, self._cause = True, cause
        if packet.pts is None and packet.size:
            # Nameless, it is the next one to be reported.
            heapq.heappush(self._waiting, self._waiting[0] if self._waiting else 0)

    def before(self, frame: av.VideoFrame) -> Iterator[Lost]:
        """Yield what should have been shown before ``frame``."""
        if frame.pts is None:
            return
        if self._first is None:
            self._first = frame.pts
        while self._waiting and self._waiting[0] < frame.pts:
            pts = heapq.heappop(self._waiting)
            # What comes before the first key frame, or after it by its own references, is no loss.
            if not self._careful and pts > self._first:
                raise UncertainError
            # Some packets are never shown (VP8's hidden frames): only after an error it counts.
            if self._failed:
                self._reported.add(pts)
                yield Lost(pts, self._cause)
        if self._waiting and self._waiting[0] == frame.pts:
            heapq.heappop(self._waiting)

    def is_late(self, frame: av.VideoFrame) -> bool:
        """Say whether ``frame`` was given up: without its references it comes after later ones."""
        return frame.pts in self._reported

    def rest(self) -> Iterator[Lost]:
        """Yield what should have been shown at the end."""
        if self._waiting and not self._careful:
            raise UncertainError
        if self._failed:
            yield from (Lost(pts, self._cause) for pts in sorted(self._waiting))


class Gaps:
    """Frames that an even rate leaves out, where a container does not say what it should hold."""

    def __init__(self, step: int, longest: int) -> None:
        self._step, self._longest = step, longest
        self._last: int | None = None
        self._even = self._uneven = self._found = 0
        self._where: int | None = None

    def take(self, pts: int | None, seams: Sequence[int] = ()) -> None:
        """Take the time of the next frame, or of one known to be lost, in ticks.

        Between two frames with one of ``seams`` between them nothing is missing.
        """
        if pts is None:
            return
        last = self._last
        self._last = pts if last is None else max(last, pts)
        if last is None or any(last < seam <= pts for seam in seams):
            return
        steps = round((pts - last) / self._step)
        if abs(pts - last - steps * self._step) > max(1, self._step // 8):
            self._uneven += 1
        elif steps == 1:
            self._even += 1
        elif steps > 1 and pts - last <= self._longest:
            self._found += steps - 1
            if self._where is None:
                self._where = last + self._step

    @property
    def missing(self) -> int:
        """How many; none where the rate is not even."""
        return self._found if self._even > 9 * self._uneven else 0

    @property
    def first(self) -> int | None:
        """When the first of them was due, in ticks, or None."""
        return self._where if self.missing else None
