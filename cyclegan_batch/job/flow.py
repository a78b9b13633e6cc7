"""The messages between the stages of the pipeline, and the queues and workers that they pass.

    RawFrame → NetworkFrame → Batch → (network) → Batch → NetworkFrame → EncodedFrame

Where a filter against flicker stands behind the network, a batch and a frame from there carry what
the network got, too, and the filter takes that away.

A `Lost` or an `End` passes every queue in its place among the frames. Frames cross the two queues
of the network as batches: one queue operation for a batch, not for a frame. Where frames are small,
a worker takes several messages at once and hands their results on together, since waking the next
worker takes longer than to decode a small image.

A frame with the same pixels as the frame before it crosses the network without pixels. The
`Batcher` finds it, and the `Unbatcher` gives it the result of the frame before it. Both see all
frames in order, so no worker of the network needs a result of another one. Until the frame before
it has reached the `Unbatcher`, a repeated frame joins its batch, so that no worker has to wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from ..errors import CycleganBatchError
from ..frames import Frame, Geometry, Pixels, same_pixels, stack
from ..media import Dropped, Encoded, Raw, Sink, Source
from ..wording import Note
from .schedule import LOT_BYTES
from .units import Outcome, Stage, Unit


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
        self.reused = 0
        """Those of them that repeat the frame before them."""
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

    def outcome(
        self,
        error: CycleganBatchError | None,
        dropped: tuple[Dropped, ...],
        notes: tuple[Note, ...],
    ) -> Outcome:
        """Return how the unit has ended."""
        return Outcome(self.unit, error, dropped, notes, frames=self.frames, reused=self.reused)

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
    repeats: bool = False
    """Whether the network would get the same pixels as for the frame before it in its unit, whose
    result it takes."""
    warm_up: bool = False
    """See `Frame`."""


@dataclass(frozen=True)
class NetworkFrame:
    """An RGB frame at the network's size, before or behind the network."""

    origin: Origin
    pixels: Pixels
    """``(H, W, 3)``; behind the network read-only, since repeated frames share them."""
    source: Pixels | None = None
    """Of which the pixels are the translation, ``(H, W, 3)``, on the way to the filter."""

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes + (0 if self.source is None else self.source.nbytes)


class Origins:
    """The frames of a batch, in order. Repeated ones may join until the batch is taken apart."""

    def __init__(self, origins: Sequence[Origin], most: int) -> None:
        """``most``: how many frames there may be."""
        self.computed = tuple(origin for origin in origins if not origin.repeats)
        """Those that the network computes."""
        self._origins, self._most = list(origins), most
        self._lock = threading.Lock()

    def join(self, origin: Origin) -> bool:
        """Append a frame that repeats the last one, and return whether there was room for it."""
        with self._lock:
            if len(self._origins) >= self._most:
                return False
            self._origins.append(origin)
            return True

    def close(self) -> Sequence[Origin]:
        """Return all frames; from now on none joins."""
        with self._lock:
            self._most = 0
            return self._origins


@dataclass(frozen=True)
class Batch:
    """Frames of one unit and one size, before or behind the network."""

    origins: Origins
    pixels: Pixels
    """``(N, H, W, 3)``: a row for each frame that is computed, and in front of the network filled
    up with the last of them. No rows where all frames repeat the last one of the batch before."""
    sources: Pixels | None = None
    """Behind the network, where the unit is filtered: what the network got, at least as many rows
    as ``pixels``."""

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.pixels.nbytes + (0 if self.sources is None else self.sources.nbytes)


@dataclass(frozen=True)
class EncodedFrame:
    """A translated frame, ready for the sink."""

    nbytes: ClassVar[int] = 0
    unit: AnyOpenUnit
    write: Callable[[], Dropped | None]
    repeats: bool
    """See `Origin`."""


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


_MOST_FRAMES = 8
"""How many frames a batch holds at most, repeated ones included, as a multiple of its rows."""


class Batcher:
    """Groups the frames of one unit and one size; every other message passes in its place.

    A frame that repeats the one before it joins its batch, in the network or behind it. Where that
    has been taken apart, is full, or has a lost frame behind it, the repeated frame begins a batch
    without rows, which leaves at once. So repeated frames change neither which others share a batch
    nor when they leave, but where a batch is full before it has all its rows.

    Called by one thread at a time, in the order of the frames.
    """

    def __init__(
        self, output: Channel[Batch | Lost | End], batch_size: int, *, reuse: bool
    ) -> None:
        """``reuse``: whether repeated frames are left out of the network."""
        self.batch_size = batch_size
        self._output, self._reuse = output, reuse
        self._origins: list[Origin] = []
        """The frames that wait for the next batch."""
        self._rows: list[Pixels] = []
        """The pixels of those that are computed; the first of them is always."""
        self._last: NetworkFrame | None = None
        """The last frame of the unit that is computed."""
        self._left: Origins | None = None
        """Of the last batch, where nothing has followed it."""

    def put(self, *messages: NetworkFrame | Lost | End) -> None:
        """Add messages; batches that they complete go to the output. Raises StoppedError."""
        out: list[Batch | Lost | End] = []
        for message in messages:
            if isinstance(message, NetworkFrame):
                out += self._add(message)
                continue
            out += (*self._batch(), message)
            self._left = None
            if isinstance(message, End):
                self._last = None
        if out:
            self._output.put(*out)

    def close(self) -> None:
        """Send the last frames as a smaller batch, and close the output. Raises StoppedError."""
        self._output.put(*self._batch())
        self._output.close()

    def _add(self, frame: NetworkFrame) -> Sequence[Batch]:
        """Add a frame and return the batches that are complete by now."""
        last, out = self._last, list[Batch]()
        alike = last is not None and self._alike(last, frame)
        if self._reuse and last is not None and alike and same_pixels(last.pixels, frame.pixels):
            origin = replace(frame.origin, repeats=True)
            if self._rows:
                self._origins.append(origin)
            elif self._left is None or not self._left.join(origin):
                out.append(self._leave([origin], np.empty((0, *frame.pixels.shape))))
        else:
            if not alike:
                out += self._batch()
            self._origins.append(frame.origin)
            self._rows.append(frame.pixels)
            self._last = frame
        if len(self._rows) >= self.batch_size or len(self._origins) >= self._most:
            out += self._batch()
        return out

    def _batch(self) -> Sequence[Batch]:
        """Return the frames that wait as a batch, or nothing where none does."""
        origins, self._origins = self._origins, []
        rows, self._rows = self._rows, []
        return (self._leave(origins, stack(rows, self.batch_size)),) if rows else ()

    def _leave(self, origins: Sequence[Origin], pixels: Pixels) -> Batch:
        self._left = Origins(origins, self._most)
        return Batch(self._left, pixels)

    @property
    def _most(self) -> int:
        return _MOST_FRAMES * self.batch_size

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
        self._last: tuple[Pixels, Pixels | None] | None = None
        """The result of the last frame that was not a repeated one, and its source."""

    def get(self, takers: int) -> list[NetworkFrame | Lost | End]:
        """Return the next frames and messages, as many as the batches that were taken at once.

        Raises StoppedError, EndedError.
        """
        if not self._waiting:
            messages = self._source.get(takers)
            self._share = len(messages)
            for message in messages:
                if isinstance(message, Batch):
                    self._waiting.extend(self._frames(message))
                    continue
                if isinstance(message, End):
                    self._last = None
                self._waiting.append(message)
        count = min(self._share, len(self._waiting))
        return [self._waiting.popleft() for _ in range(count)]

    def _frames(self, batch: Batch) -> Iterator[NetworkFrame]:
        shared = batch.pixels.view()
        shared.flags.writeable = False
        rows = zip(shared, repeat(None) if batch.sources is None else batch.sources, strict=False)
        for origin in batch.origins.close():
            if not origin.repeats:
                self._last = next(rows)
            assert self._last is not None
            yield NetworkFrame(origin, *self._last)


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
