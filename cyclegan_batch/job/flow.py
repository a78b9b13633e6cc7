"""The messages between the stages of the pipeline, and the queues and workers that they pass.

    RawFrame → NetworkFrame → Batch → (network) → Batch → NetworkFrame → EncodedFrame

A `Lost` or an `End` passes every queue in its place among the frames. Frames cross the two queues
of the network as batches: one queue operation for a batch, not for a frame. Where frames are small,
a worker takes several messages at once and hands their results on together, since waking the next
worker takes longer than to decode a small image.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from ..errors import CycleganBatchError
from ..frames import Frame, Geometry, Pixels, stack
from ..media import Dropped, Encoded, Raw, Sink, Source
from .units import LOT_BYTES, Stage, Unit


class Message(Protocol):
    """What passes a queue."""

    @property
    def nbytes(self) -> int:
        """Bytes of RGB pixels that it holds."""


T = TypeVar("T", bound=Message)
Taken = TypeVar("Taken")
Result = TypeVar("Result", bound=Message)
Handed = TypeVar("Handed", contravariant=True)

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

    nbytes: ClassVar[int] = 0
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

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes


@dataclass(frozen=True)
class Batch:
    """Frames of one unit and one size, before or behind the network."""

    origins: Sequence[Origin]
    pixels: Pixels
    """``(N, H, W, 3)``: a row for each origin; in front of the network filled up with the last."""

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes


@dataclass(frozen=True)
class EncodedFrame:
    """A translated frame, ready for the sink."""

    nbytes: ClassVar[int] = 0
    unit: AnyOpenUnit
    write: Callable[[], Dropped | None]


@dataclass(frozen=True)
class Lost:
    """A frame that could not be read or encoded."""

    nbytes: ClassVar[int] = 0
    unit: AnyOpenUnit
    dropped: Dropped


@dataclass(frozen=True)
class End:
    """The end of a unit, given up for ``error`` or whole."""

    nbytes: ClassVar[int] = 0
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

    def __init__(self, length: int, stop: threading.Event, *, lot: int = 1) -> None:
        """``length``: how many items may wait, ``lot`` times as many if they are small.

        ``lot``: how many items may be taken at once; ``stop`` is set when the run is stopped.
        """
        self._length, self._stop, self._lot = length, stop, lot
        self._items: deque[T] = deque()
        self._nbytes = 0
        self._lock = threading.Lock()
        self._arrived, self._left = threading.Condition(self._lock), threading.Condition(self._lock)
        self._closed = False

    def put(self, *items: T) -> None:
        """Append items, each as soon as there is room for it. Raises StoppedError."""
        with self._lock:
            self._check()
            for item in items:
                while self._is_full():
                    self._arrived.notify()
                    self._left.wait(WATCH)
                    self._check()
                self._items.append(item)
                self._nbytes += item.nbytes
            self._arrived.notify()

    def get(self, takers: int = 1) -> list[T]:
        """Return the next items as soon as there is one: a share of them for one of ``takers``.

        Raises StoppedError, EndedError.
        """
        with self._lock:
            self._check()
            while not self._items:
                if self._closed:
                    raise EndedError
                self._arrived.wait(WATCH)
                self._check()
            share = min(self._lot, -(-len(self._items) // takers))
            taken = [self._items.popleft()]
            nbytes = taken[0].nbytes
            while len(taken) < share and nbytes < LOT_BYTES:
                taken.append(self._items.popleft())
                nbytes += taken[-1].nbytes
            self._nbytes -= nbytes
            self._left.notify()
            return taken

    def close(self) -> None:
        """End the channel behind its last item."""
        with self._lock:
            self._closed = True
            self._arrived.notify_all()

    def _is_full(self) -> bool:
        count = len(self._items)
        small = self._nbytes < LOT_BYTES
        return count >= (self._length * self._lot if small else self._length)

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

    def put(self, *messages: NetworkFrame | Lost | End) -> None:
        """Add messages; batches that they complete go to the output. Raises StoppedError."""
        out: list[Batch | Lost | End] = []
        for message in messages:
            if not isinstance(message, NetworkFrame):
                out += (*self._batch(), message)
                continue
            if self._frames and not self._alike(self._frames[0], message):
                out += self._batch()
            self._frames.append(message)
            if len(self._frames) >= self.batch_size:
                out += self._batch()
        if out:
            self._output.put(*out)

    def close(self) -> None:
        """Send the last frames as a smaller batch, and close the output. Raises StoppedError."""
        self._output.put(*self._batch())
        self._output.close()

    def _batch(self) -> Sequence[Batch]:
        """Return the frames that wait as a batch, or nothing where none does."""
        frames, self._frames = self._frames, []
        if not frames:
            return ()
        origins = [frame.origin for frame in frames]
        return (Batch(origins, stack([frame.pixels for frame in frames], self.batch_size)),)

    @staticmethod
    def _alike(one: NetworkFrame, other: NetworkFrame) -> bool:
        return one.origin.unit is other.origin.unit and one.pixels.shape == other.pixels.shape


class Unbatcher:
    """Takes translated batches apart: each frame of a batch may go to another worker.

    Called by one thread at a time.
    """

    def __init__(self, source: Channel[Batch | Lost | End]) -> None:
        self._source = source
        self._waiting: deque[NetworkFrame | Lost | End] = deque()
        self._share = 1

    def get(self, takers: int) -> list[NetworkFrame | Lost | End]:
        """Return the next frames and messages, as many as the batches that were taken at once.

        Raises StoppedError, EndedError.
        """
        if not self._waiting:
            messages = self._source.get(takers)
            self._share = len(messages)
            for message in messages:
                if isinstance(message, Batch):
                    parts = zip(message.origins, message.pixels, strict=False)
                    self._waiting.extend(NetworkFrame(*part) for part in parts)
                else:
                    self._waiting.append(message)
        count = min(self._share, len(self._waiting))
        return [self._waiting.popleft() for _ in range(count)]


class _HandOn(Protocol[Handed]):
    def __call__(self, *results: Handed) -> None: ...


class StageWorkers(Generic[Taken, Result]):
    """Workers that take in turn, work in parallel, and hand on in the order of taking."""

    def __init__(
        self,
        counter: Stage,
        stop: threading.Event,
        *,
        take: Callable[[int], list[Taken]],
        hand_on: _HandOn[Result],
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
                    messages = self._take(self._counter.workers)
                    turn = self._taken
                    self._taken += 1
                messages.reverse()
                while messages:
                    results = self._converted(messages, convert)
                    self._wait_for(turn)
                    # Only the worker whose turn it is reaches this line, so no lock is needed.
                    self._hand_on(*results)
                    del results
                with self._handing_on:
                    self._handed_on += 1
                    self._handing_on.notify_all()
        except EndedError:
            with self._handing_on:
                self._left -= 1
                last = not self._left
            if last:
                self._close()

    def _converted(
        self, messages: list[Taken], convert: Callable[[Taken], Result]
    ) -> Sequence[Result]:
        """Return the results of ``messages``, the last one first, until they hold many bytes.

        The messages are removed from the list, which frees their pixels. Raises StoppedError.
        """
        results: list[Result] = []
        nbytes = 0
        begin = time.perf_counter()
        while messages and nbytes < LOT_BYTES:
            if self._stop.is_set():
                raise StoppedError
            results.append(convert(messages.pop()))
            nbytes += results[-1].nbytes
        busy = time.perf_counter() - begin
        with self._handing_on:
            self._counter.busy_seconds += busy
        return results

    def _wait_for(self, turn: int) -> None:
        """Wait until all that was taken before ``turn`` is handed on. Raises StoppedError."""
        with self._handing_on:
            while self._handed_on != turn:
                if self._stop.is_set():
                    raise StoppedError
                self._handing_on.wait(WATCH)
