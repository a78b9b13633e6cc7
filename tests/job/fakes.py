"""Sources, sinks, a backend and units that hold nothing, for tests of the pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cyclegan_batch.frames import Frame, Geometry, Pixels, Size, SizeRequirements, geometry
from cyclegan_batch.job.schedule import Schedule
from cyclegan_batch.media import Dropped, Written
from cyclegan_batch.wording import Note

OUT = Written(
    path=Path("out"),
    source=Path("in"),
    identity=None,
    source_size=(4, 6),
    size=(4, 6),
    bytes=0,
    sha256="",
)

PLAIN = Schedule(batch_size=1, contexts=1, converters=2)


class FakeSource:
    notes: tuple[Note, ...] = ()

    def __init__(self, numbers: list[int], size: Size = (4, 6)) -> None:
        self.numbers, self.size = numbers, size
        self.closed = False
        self.on_read: Callable[[int], Any] = lambda number: number
        self.on_convert: Callable[[int], None] = lambda number: None
        self.shade: Callable[[int], int] = lambda number: number % 256
        """The value of all pixels of a frame; neighbours differ unless a test sets it."""

    def read(self) -> Iterator[Any]:
        for number in self.numbers:
            yield self.on_read(number)

    def converter(self) -> Callable[[Any], Frame | Dropped]:
        def convert(number: int) -> Frame:
            self.on_convert(number)
            return Frame(number, np.full((*self.size, 3), self.shade(number), np.uint8), tag=number)

        return convert

    def close(self) -> None:
        self.closed = True


class FakeSink:
    notes: tuple[Note, ...] = ()

    def __init__(self) -> None:
        self.got: list[tuple[int, int]] = []
        self.finished = self.discarded = False
        self.on_convert: Callable[[Frame], None] = lambda frame: None
        self.on_write: Callable[[Any], Dropped | None] = lambda item: None
        self.on_finish: Callable[[], None] = lambda: None
        self.lacking: list[Dropped] = []

    @property
    def written(self) -> list[Written]:
        return [OUT] if self.finished else []

    def converter(self) -> Callable[[Frame], Any]:
        def convert(frame: Frame) -> tuple[int, int]:
            self.on_convert(frame)
            assert frame.pixels.min() == frame.pixels.max()
            return frame.tag, int(frame.pixels.max())

        return convert

    def write(self, item: tuple[int, int]) -> Dropped | None:
        dropped = self.on_write(item)
        self.got.append(item)
        return dropped

    def finish(self) -> list[Dropped]:
        self.on_finish()
        self.finished = True
        return self.lacking

    def discard(self) -> None:
        self.discarded = True


class FakeBackend:
    """Adds one to every pixel."""

    card: Any = None
    name = "fake"
    device = "cpu"
    precision = "fp32"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.cancelled = threading.Event()
        self.on_infer: Callable[[Pixels], None] = lambda frames: None

    def infer(self, frames: Pixels) -> Pixels:
        self.shapes.append(frames.shape)
        self.on_infer(frames)
        return frames + np.uint8(1)

    def fork(self) -> FakeBackend:
        other = FakeBackend()
        other.shapes, other.cancelled, other.on_infer = self.shapes, self.cancelled, self.on_infer
        return other

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        pass


@dataclass(eq=False)
class Unit:
    """A unit that opens the given source and sink."""

    name: str
    opens_source: Callable[[], Any]
    opens_sink: Callable[[], Any]
    frames: int | None = None
    temporal: float = 0.0

    def open_source(self, previous: Any = None) -> Any:
        return self.opens_source()

    def open_sink(self, source: Any) -> Any:
        return self.opens_sink()


def as_it_is(size: Size) -> Geometry:
    return geometry(size, SizeRequirements())


def unit(source: FakeSource, sink: FakeSink, name: str = "clip") -> Unit:
    return Unit(name, opens_source=lambda: source, opens_sink=lambda: sink)


def translated(numbers: list[int]) -> list[tuple[int, int]]:
    return [(number, (number + 1) % 256) for number in numbers]
