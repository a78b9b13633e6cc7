"""Deinterlace by FFmpeg's bwdif, and give the frames that come out the times of the source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction

import av
import av.error
from av.filter import Graph

from ..demux.stream_info import Fields
from .loss import Lost


class Deinterlacer:
    """FFmpeg's filter bwdif: one frame out for each frame in, or one for each of its fields."""

    def __init__(self, frame: av.VideoFrame, fields: Fields | None, *, both: bool) -> None:
        """``frame`` sets size and pixel format; ``both``: a frame for each of the two fields."""
        self._shape = frame.width, frame.height, frame.format.name
        graph = self._graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        # The container's field order counts where the frames carry no interlaced flag.
        parity = "auto" if frame.interlaced_frame or fields is None else fields
        settings = f"mode={'send_field' if both else 'send_frame'}:parity={parity}"
        graph.link_nodes(source, graph.add("bwdif", settings), graph.add("buffersink"))
        graph.configure()
        self._count = 0

    def takes(self, frame: av.VideoFrame) -> bool:
        """Return whether ``frame`` has the size and the pixel format of this filter."""
        return (frame.width, frame.height, frame.format.name) == self._shape

    def take(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """Filter the next frame; return the frames that are complete: bwdif is one frame late."""
        # The filter counts frames instead of using PTS, which may be missing.
        pts, time_base = frame.pts, frame.time_base
        frame.pts, frame.time_base = self._count, Fraction(1, 1000)
        self._count += 1
        self._graph.push(frame)
        frame.pts = pts
        if time_base is not None:
            frame.time_base = time_base
        return self._pull()

    def flush(self) -> list[av.VideoFrame]:
        """Return the frames that the filter still holds."""
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> list[av.VideoFrame]:
        frames: list[av.VideoFrame] = []
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                frames.append(self._graph.vpull())
        return frames


class FieldTimes:
    """Hold what entered a deinterlacer, to give the frames that come out their times.

    Frames come out in the order in which they entered. With ``both`` fields each comes out twice,
    and a tick is half as long.
    """

    def __init__(self, *, both: bool, step: int) -> None:
        """``step``: how many of the output's ticks a field lasts where no time stamp states it."""
        self._both, self._step = both, step
        self._items: list[av.VideoFrame | Lost] = []
        self._second = False

    def put(self, item: av.VideoFrame | Lost) -> None:
        """Add the next item in presentation order."""
        self._items.append(item)

    def timed(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame | Lost]:
        """Yield the filtered ``frames`` with their times, and the lost frames between them."""
        for frame in frames:
            yield from self.lost()
            source = self._items[0]
            assert isinstance(source, av.VideoFrame)
            pts = source.pts
            if not self._both or self._second:
                self._items.pop(0)
            if self._both and pts is not None:
                pts = 2 * pts + (self._ticks_to_second_field(source) if self._second else 0)
            self._second = self._both and not self._second
            frame.pts, frame.duration = pts, source.duration
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

    def _ticks_to_second_field(self, frame: av.VideoFrame) -> int:
        """Return how many of the shorter ticks after the first field the second one is shown."""
        later = (item.pts for item in self._items if isinstance(item, av.VideoFrame))
        next_pts = next((pts for pts in later if pts is not None), None)
        gap = None if next_pts is None or frame.pts is None else next_pts - frame.pts
        return min([n for n in (frame.duration, gap) if n and n > 0], default=self._step)
