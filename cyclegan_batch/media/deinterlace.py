"""Deinterlacing by FFmpeg's bwdif, with the times of the frames put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction

import av
import av.error
from av.filter import Graph

from .loss import Lost
from .stream_info import Fields


class Deinterlacer:
    """FFmpeg's bwdif, one frame out for each frame in, or ``both`` of its fields."""

    def __init__(self, frame: av.VideoFrame, fields: Fields | None, *, both: bool) -> None:
        self._shape = frame.width, frame.height, frame.format.name
        graph = self._graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        # Where frames say nothing, what the container says counts.
        parity = "auto" if frame.interlaced_frame or fields is None else fields
        settings = f"mode={'send_field' if both else 'send_frame'}:parity={parity}"
        graph.link_nodes(source, graph.add("bwdif", settings), graph.add("buffersink"))
        graph.configure()
        self._count = 0

    def takes(self, frame: av.VideoFrame) -> bool:
        """Return whether ``frame`` has the size and pixel format of this filter."""
        return (frame.width, frame.height, frame.format.name) == self._shape

    def take(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """Filter the next frame, and return those that come out: bwdif is one frame late."""
        # Its own clock: what matters is the order, and time stamps may be missing.
        kept = frame.pts, frame.time_base
        frame.pts, frame.time_base = self._count, Fraction(1, 1000)
        self._count += 1
        self._graph.push(frame)
        frame.pts = kept[0]
        if kept[1] is not None:
            frame.time_base = kept[1]
        return self._pull()

    def flush(self) -> list[av.VideoFrame]:
        """Return the frames that the filter still holds."""
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> list[av.VideoFrame]:
        frames: list[av.VideoFrame] = []
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                pulled = self._graph.pull()
                assert isinstance(pulled, av.VideoFrame)
                frames.append(pulled)
        return frames


class FieldTimes:
    """What went into a deinterlacer: frames come out in the same order, and get their times here.

    With ``both`` fields each frame comes out twice, and a tick is half as long.
    """

    def __init__(self, *, both: bool, step: int) -> None:
        self._both, self._step = both, step
        self._items: list[av.VideoFrame | Lost] = []
        self._second = False

    def put(self, item: av.VideoFrame | Lost) -> None:
        """Note the next item in presentation order."""
        self._items.append(item)

    def timed(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame | Lost]:
        """Yield filtered ``frames``, and the lost ones in between."""
        for frame in frames:
            yield from self.lost()
            before = self._items[0]
            assert isinstance(before, av.VideoFrame)
            pts = before.pts
            if not self._both or self._second:
                self._items.pop(0)
            if self._both and pts is not None:
                pts = 2 * pts + (self._field(before) if self._second else 0)
            self._second = self._both and not self._second
            frame.pts, frame.duration = pts, before.duration
            yield frame

    def lost(self) -> Iterator[Lost]:
        """Yield the frames that were lost before the next one."""
        while self._items and isinstance(self._items[0], Lost):
            lost = self._items.pop(0)
            assert isinstance(lost, Lost)
            if not self._both:
                yield lost
                continue
            first = None if lost.pts is None else 2 * lost.pts
            yield Lost(first, lost.cause)
            yield Lost(None if first is None else first + self._step, lost.cause)

    def _field(self, before: av.VideoFrame) -> int:
        """Return after how many of the shorter ticks the second field is shown."""
        later = (each.pts for each in self._items if isinstance(each, av.VideoFrame))
        following = next((pts for pts in later if pts is not None), None)
        gap = None if following is None or before.pts is None else following - before.pts
        return min([n for n in (before.duration, gap) if n and n > 0], default=self._step)
