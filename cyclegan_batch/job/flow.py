"""The messages between the stages of the pipeline, and the queues and workers that they pass.

    RawFrame → NetworkFrame → Batch → (network) → Batch → NetworkFrame → EncodedFrame

A `Lost` or an `End` passes every queue in its place among the frames. Frames cross the two queues
of the network as batches: one queue operation for a batch, not for a frame.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from ..errors import CycleganBatchError
from ..frames import Frame, Geometry, Pixels, stack
from ..media import Dropped, Encoded, Raw, Sink, Source
from .units import Stage, Unit

T = TypeVar("T")
Taken = TypeVar("Taken")
Result = TypeVar("Result")

WATCH = 0.1
"""Seconds between two looks of a waiting thread at whether the run was stopped."""


class OpenUnit(Generic[Raw, Encoded]):
    """A unit on its way through the pipeline, with its source and its sink."""

    def __init__(self, unit: Unit, source: Source[Raw], sink: Sink[Encoded]) -> None:
        self.unit, self.name, self.source, self.sink = unit, unit.name, source, sink
        self.given_up = False
        """Whether the rest of the unit is discarded, so that the reader may stop."""
        self.dropped: list[Dropped] = []
        """What was reported of it so far."""
        self.frames = 0
        """Frames of it that were written."""
        self.published = 0
        """How much of what its sink has finished is reported."""
        self._own = _OwnConverters[Raw, Encoded]()

    def read(self) -> Generator[Callable[[], Frame | Dropped] | Dropped]:
        """Yield the frames of the source, each as a function that converts it to RGB.

        The function uses the source's converter of the thread that calls it.
        """
        items = self.source.read()
        try:
            for item in items:
                yield item if isinstance(item, Dropped) else partial(self._to_frame, item)
        finally:
            if isinstance(items, Generator):
                items.close()

    def encoded(self, frame: Frame) -> Callable[[], Dropped | None]:
        """Convert a translated frame for the sink and return the function that writes it.

        Raises InputError, OutputError.
        """
        if self._own.to_encoded is None:
            self._own.to_encoded = self.sink.converter()
        return partial(self.sink.write, self._own.to_encoded(frame))

    def _to_frame(self, item: Raw) -> Frame | Dropped:
        if self._own.to_frame is None:
            self._own.to_frame = self.source.converter()
        return self._own.to_frame(item)


class _OwnConverters(threading.local, Generic[Raw, Encoded]):
    """The converters of one unit that belong to the calling thread."""

    to_frame: Callable[[Raw], Frame | Dropped] | None = None
    to_encoded: Callable[[Frame], Encoded] | None = None


AnyOpenUnit: TypeAlias = OpenUnit[Any, Any]
"""A unit in a queue that holds units of all kinds; only its own methods use its types."""


@dataclass(frozen=True)
class RawFrame:
    """A frame as the source yielded it."""

    unit: AnyOpenUnit
    convert: Callable[[], Frame | Dropped]


@dataclass(frozen=True)
class Origin:
    """Which frame it is, and how it returns from the network's size to its own."""

    unit: AnyOpenUnit
    index: int
    tag: object
    """What the source gives the sink (`Frame.tag`)."""
    shape: Geometry


@dataclass(frozen=True)
class NetworkFrame:
    """An RGB frame at the network's size, before or behind the network."""

    origin: Origin
    pixels: Pixels
    """``(H, W, 3)``."""


@dataclass(frozen=True)
class Batch:
    """Frames of one unit and one size, before or behind the network."""

    origins: Sequence[Origin]
    pixels: Pixels
    """``(N, H, W, 3)``: a row for each origin; in front of the network filled up with the last."""


@dataclass(frozen=True)
class EncodedFrame:
    """A translated frame, ready for the sink."""

    unit: AnyOpenUnit
    write: Callable[[], Dropped | None]


@dataclass(frozen=True)
class Lost:
    """A frame that could not be read or encoded."""

    unit: AnyOpenUnit
    dropped: Dropped


@dataclass(frozen=True)
class End:
    """The end of a unit, given up for ``error`` or whole."""

    planned: Unit
    unit: AnyOpenUnit | None
    """None where it could not be opened."""
    error: CycleganBatchError | None = None


class StoppedError(Exception):
    """The run was stopped: this thread ends."""


class EndedError(Exception):
    """The channel is empty and closed."""


class Channel(Generic[T]):
    """A bounded first-in first-out queue; waiting in it ends when the run is stopped."""

    def __init__(self, length: int, stop: threading.Event) -> None:
        """``length``: how many items may wait; ``stop`` is set when the run is stopped."""
        self._length, self._stop = length, stop
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        """Append an item as soon as there is room. Raises StoppedError."""
        with self._changed:
            self._check()
            while len(self._items) >= self._length:
                self._changed.wait(WATCH)
                self._check()
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        """Return the next item as soon as there is one. Raises StoppedError, EndedError."""
        with self._changed:
            self._check()
            while not self._items:
                if self._closed:
                    raise EndedError
                self._changed.wait(WATCH)
                self._check()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """End the channel behind its last item."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self._stop.is_set():
            raise StoppedError


class Batcher:
    """Groups the frames of one unit and one size; every other message passes in its place.

    Called by one thread at a time, in the order of the frames.
    """

    def __init__(self, output: Channel[Batch | Lost | End], batch_size: int) -> None:
        self.batch_size = batch_size
        self._output = output
        self._frames: list[NetworkFrame] = []

    def put(self, message: NetworkFrame | Lost | End) -> None:
        """Add the next message; batches that it completes go to the output. Raises StoppedError."""
        if not isinstance(message, NetworkFrame):
            self._flush()
            self._output.put(message)
            return
        if self._frames and not self._alike(self._frames[0], message):
            self._flush()
        self._frames.append(message)
        if len(self._frames) >= self.batch_size:
            self._flush()

    def close(self) -> None:
        """Send the last frames as a smaller batch, and close the output. Raises StoppedError."""
        self._flush()
        self._output.close()

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if frames:
            origins = [frame.origin for frame in frames]
            pixels = stack([frame.pixels for frame in frames], self.batch_size)
            self._output.put(Batch(origins, pixels))

    @staticmethod
    def _alike(one: NetworkFrame, other: NetworkFrame) -> bool:
        return one.origin.unit is other.origin.unit and one.pixels.shape == other.pixels.shape


class Unbatcher:
    """Takes translated batches apart: each frame of a batch may go to another worker.

    Called by one thread at a time.
    """

    def __init__(self, source: Channel[Batch | Lost | End]) -> None:
        self._source = source
        self._batch: Batch | None = None
        self._next = 0

    def get(self) -> NetworkFrame | Lost | End:
        """Return the next frame of the current batch, or the next message. Raises EndedError."""
        if self._batch is None:
            message = self._source.get()
            if not isinstance(message, Batch):
                return message
            self._batch, self._next = message, 0
        batch, number = self._batch, self._next
        self._next += 1
        if self._next == len(batch.origins):
            self._batch = None
        return NetworkFrame(batch.origins[number], batch.pixels[number])


class StageWorkers(Generic[Taken, Result]):
    """Workers that take in turn, work in parallel, and hand on in the order of taking."""

    def __init__(
        self,
        counter: Stage,
        stop: threading.Event,
        *,
        take: Callable[[], Taken],
        hand_on: Callable[[Result], None],
        close: Callable[[], None],
    ) -> None:
        self._counter, self._stop = counter, stop
        self._take, self._hand_on, self._close = take, hand_on, close
        self._taking, self._handing_on = threading.Lock(), threading.Condition()
        self._taken = self._handed_on = 0
        self._left = counter.workers

    def work(self, convert: Callable[[Taken], Result]) -> None:
        """Work as one of the workers until there is nothing more to take."""
        try:
            while True:
                with self._taking:
                    message = self._take()
                    turn = self._taken
                    self._taken += 1
                begin = time.perf_counter()
                result = convert(message)
                busy = time.perf_counter() - begin
                del message  # frees its pixels before the wait for the turn
                with self._handing_on:
                    self._counter.busy_seconds += busy
                    while self._handed_on != turn:
                        if self._stop.is_set():
                            raise StoppedError
                        self._handing_on.wait(WATCH)
                # Only the worker whose turn it is reaches this line, so no lock is needed.
                self._hand_on(result)
                del result
                with self._handing_on:
                    self._handed_on += 1
                    self._handing_on.notify_all()
        except EndedError:
            with self._handing_on:
                self._left -= 1
                last = not self._left
            if last:
                self._close()
