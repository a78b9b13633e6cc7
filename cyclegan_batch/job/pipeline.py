"""Run a plan: the only module that owns threads and queues.

    reader → to RGB ×k → (batcher) network ×contexts → from RGB ×k → writer

Every arrow is a bounded queue, so memory is flat and the slowest stage sets the pace; a stage with
several workers hands its results on in the order in which it took them. All units flow through the
same stages: the next file's frames fill the pipeline while the last one drains.

What goes wrong is one of three things. A picture that cannot be read is `Dropped` and a unit that
cannot be finished is given up; both are recorded, and end the run only where the plan says so.
Anything else ends the run: the first error is carried to the caller, and no stage outlives it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from ..backends import Backend
from ..errors import (
    CycleganBatchError,
    InputError,
    OutOfMemoryError,
    OutputError,
    OutputExistsError,
)
from ..frames import Frame, Geometry, Pixels, Size, stack
from ..media import Dropped, Encoded, Place, Raw, Sink, Source
from ..wording import Note
from .units import (
    STAGES,
    Counters,
    Schedule,
    Stage,
    Unit,
    is_hopeless,
    too_many_failures,
    without_frames,
)

T = TypeVar("T")
Taken = TypeVar("Taken")
Result = TypeVar("Result")

_WATCH = 0.1
"""Seconds after which a waiting thread looks whether the run was stopped."""

_PATIENCE = 4.0
"""Seconds that a stopped run waits for its threads (Ctrl-C promises five in all)."""


def run(
    units: Iterable[Unit],
    backend: Backend,
    schedule: Schedule,
    *,
    geometry: Callable[[Size], Geometry],
    keep_size: bool = False,
    skip_errors: bool = False,
    max_failures: int | None = None,
    skip_existing: bool = False,
    counters: Counters | None = None,
    watch: Callable[[Counters], None] | None = None,
) -> Counters:
    """Translate ``units`` in order and return what happened.

    The calling thread only waits: it calls ``watch`` about ten times a second and stays out of
    native code, so that Ctrl-C reaches it. A KeyboardInterrupt there stops the run: nothing keeps a
    final name that is not whole, and ``interrupted`` is set.

    Raises the first error that the plan does not allow to be skipped.
    """
    counters = counters or Counters()
    job = _Run(
        backend, schedule, geometry, keep_size, skip_errors, max_failures, skip_existing, counters
    )
    with _opencv_in_the_callers_threads():
        return job.execute(units, watch)


# The messages between the stages. Every one of them belongs to an open unit (_Open).


class _Open(Generic[Raw, Encoded]):
    """A unit on its way through the pipeline, with its source and its sink."""

    def __init__(self, name: str, source: Source[Raw], sink: Sink[Encoded]) -> None:
        self.name, self.source, self.sink = name, source, sink
        self.given_up = False
        """Whether the rest of the unit is discarded, so that the reader may stop."""
        self._users = 2
        self._lock = threading.Lock()
        self._own = _OwnConverters[Raw, Encoded]()

    def leave(self) -> None:
        """Close the source after the second call: the reader and the writer each leave once.

        The reader may be in the middle of the source when the writer gives up.
        """
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.source.close()

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


AnyOpen: TypeAlias = _Open[Any, Any]
"""A unit whose types concern nobody but its own source and sink."""


@dataclass(frozen=True)
class _Raw:
    """A frame as the source yielded it."""

    at: AnyOpen
    convert: Callable[[], Frame | Dropped]


@dataclass(frozen=True)
class _Origin:
    """Which frame it is, and how it returns from the network's size to its own."""

    at: AnyOpen
    index: int
    tag: Any
    """What the source gives the sink (`Frame.tag`)."""
    shape: Geometry


@dataclass(frozen=True)
class _Picture:
    """An RGB frame at the network's size, before or behind the network."""

    origin: _Origin
    pixels: Pixels
    """``(H, W, 3)``."""


@dataclass(frozen=True)
class _Batch:
    """Frames of one unit and one size, before or behind the network."""

    origins: Sequence[_Origin]
    rows: Sequence[Pixels]
    """``(H, W, 3)`` for each origin."""


@dataclass(frozen=True)
class _Encoded:
    """A translated frame, ready for the sink."""

    at: AnyOpen
    write: Callable[[], Dropped | None]


@dataclass(frozen=True)
class _Lost:
    """A frame that could not be read or encoded."""

    at: AnyOpen
    dropped: Dropped


@dataclass(frozen=True)
class _End:
    """The end of a unit, given up for ``error`` or whole; ``at`` is None if it never opened."""

    at: AnyOpen | None
    name: str
    error: CycleganBatchError | None = None


class _StoppedError(Exception):
    """The run was stopped while this thread was waiting."""


class _EndedError(Exception):
    """The channel is empty and nobody puts into it any more."""


class _Channel(Generic[T]):
    """A bounded first-in first-out queue; whoever waits for it wakes up when the run is stopped."""

    def __init__(self, length: int, stop: threading.Event) -> None:
        self._length, self._stop = length, stop
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> None:
        with self._changed:
            self._check()
            while len(self._items) >= self._length:
                self._changed.wait(_WATCH)
                self._check()
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T:
        with self._changed:
            self._check()
            while not self._items:
                if self._closed:
                    raise _EndedError
                self._changed.wait(_WATCH)
                self._check()
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _StoppedError


class _Batcher:
    """Groups the frames of one unit and one size; every other message passes in its place.

    Called by one thread at a time, in the order of the frames.
    """

    def __init__(self, output: _Channel[_Batch | _Lost | _End], batch_size: int) -> None:
        self.batch_size = batch_size
        self._output = output
        self._pictures: list[_Picture] = []

    def put(self, message: _Picture | _Lost | _End) -> None:
        if not isinstance(message, _Picture):
            self._flush()
            self._output.put(message)
            return
        if self._pictures and not self._alike(self._pictures[0], message):
            self._flush()
        self._pictures.append(message)
        if len(self._pictures) >= self.batch_size:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._output.close()

    def _flush(self) -> None:
        pictures, self._pictures = self._pictures, []
        if pictures:
            origins = [picture.origin for picture in pictures]
            self._output.put(_Batch(origins, [picture.pixels for picture in pictures]))

    @staticmethod
    def _alike(one: _Picture, other: _Picture) -> bool:
        return one.origin.at is other.origin.at and one.pixels.shape == other.pixels.shape


class _Unbatcher:
    """Takes translated batches apart: each frame of a batch may go to another worker.

    Called by one thread at a time.
    """

    def __init__(self, source: _Channel[_Batch | _Lost | _End]) -> None:
        self._source = source
        self._batch: _Batch | None = None
        self._next = 0

    def get(self) -> _Picture | _Lost | _End:
        """Return the next frame of the current batch, or the next message. Raises _EndedError."""
        if self._batch is None:
            message = self._source.get()
            if not isinstance(message, _Batch):
                return message
            self._batch, self._next = message, 0
        batch, number = self._batch, self._next
        self._next += 1
        if self._next == len(batch.origins):
            self._batch = None
        return _Picture(batch.origins[number], batch.rows[number])


class _Stage(Generic[Taken, Result]):
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
                del message  # what was taken need not wait for its turn
                with self._handing_on:
                    self._counter.busy_seconds += busy
                    while self._handed_on != turn:
                        if self._stop.is_set():
                            raise _StoppedError
                        self._handing_on.wait(_WATCH)
                # Only the worker whose turn it is comes here: the order needs no lock.
                self._hand_on(result)
                del result
                with self._handing_on:
                    self._handed_on += 1
                    self._handing_on.notify_all()
        except _EndedError:
            with self._handing_on:
                self._left -= 1
                last = not self._left
            if last:
                self._close()


class _Run:
    """One run: its threads, its queues and its first error."""

    def __init__(
        self,
        backend: Backend,
        schedule: Schedule,
        geometry: Callable[[Size], Geometry],
        keep_size: bool,
        skip_errors: bool,
        max_failures: int | None,
        skip_existing: bool,
        counters: Counters,
    ) -> None:
        self.schedule, self.counters = schedule, counters
        self.geometry, self.keep_size = geometry, keep_size
        self.skip_errors, self.max_failures = skip_errors, max_failures
        self.skip_existing = skip_existing
        self.backends = [backend, *(backend.fork() for _ in range(schedule.contexts - 1))]
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.open: set[AnyOpen] = set()
        self.threads: list[threading.Thread] = []
        self.running: set[threading.Thread] = set()
        """The threads that have not ended."""
        self.ended = threading.Event()
        """Set whenever a thread ends."""

        workers = (1, schedule.converters, schedule.contexts, schedule.converters, 1)
        counters.stages = {name: Stage(workers=n) for name, n in zip(STAGES, workers, strict=True)}
        self.raw: _Channel[_Raw | _Lost | _End] = _Channel(schedule.converter_queue, self.stop)
        # These two are counted in batches. The batch that is being taken apart behind the network
        # occupies a place of its queue; a batch of one frame never is.
        batches = schedule.contexts + 1
        self.batches: _Channel[_Batch | _Lost | _End] = _Channel(batches, self.stop)
        if schedule.batch_size > 1:
            batches -= 1
        self.translated: _Channel[_Batch | _Lost | _End] = _Channel(batches, self.stop)
        self.encoded: _Channel[_Encoded | _Lost | _End] = _Channel(
            schedule.converter_queue, self.stop
        )
        self.batcher = _Batcher(self.batches, schedule.batch_size)

    # The life of a run

    def execute(self, units: Iterable[Unit], watch: Callable[[Counters], None] | None) -> Counters:
        try:
            self._start(units)
            while self.running:
                # Not `Thread.join`: before Python 3.13 an interrupt in it makes a thread that still
                # works count as ended (gh-90882).
                self.ended.wait(_WATCH)
                self.ended.clear()
                if watch:
                    watch(self.counters)
        except KeyboardInterrupt:
            self.counters.interrupted = True
        finally:
            self._end()
        if self.skip_existing:
            self.counters.leave_what_exists()
        if self.error is not None and not self.counters.interrupted:
            raise self.error
        if watch and not self.counters.interrupted:
            watch(self.counters)
        return self.counters

    def _start(self, units: Iterable[Unit]) -> None:
        stages = self.counters.stages
        to_rgb = _Stage(
            stages["to rgb"],
            self.stop,
            take=self.raw.get,
            hand_on=self.batcher.put,
            close=self.batcher.close,
        )
        network = _Stage(
            stages["network"],
            self.stop,
            take=self.batches.get,
            hand_on=self.translated.put,
            close=self.translated.close,
        )
        from_rgb = _Stage(
            stages["from rgb"],
            self.stop,
            take=_Unbatcher(self.translated).get,
            hand_on=self.encoded.put,
            close=self.encoded.close,
        )
        self._thread("read", partial(self._read, units))
        for number in range(self.schedule.converters):
            self._thread(f"to rgb {number}", partial(to_rgb.work, self._to_rgb))
        for number, backend in enumerate(self.backends):
            translate = partial(self._translate, backend)
            self._thread(f"network {number}", partial(network.work, translate))
        for number in range(self.schedule.converters):
            self._thread(f"from rgb {number}", partial(from_rgb.work, self._from_rgb))
        self._thread("write", self._write)

    def _end(self) -> None:
        """Stop the threads that still run, and remove the outputs that are not whole."""
        if self.running:
            self._halt()
            # Native code may take a moment until it is cut off.
            deadline = time.monotonic() + _PATIENCE
            while self.running and time.monotonic() < deadline:
                self.ended.wait(_WATCH)
                self.ended.clear()
        # While the writer is still at work its outputs cannot be removed: they have temporary
        # names, which the next run uses again.
        if not any(thread.name == "write" for thread in self.running):
            for at in list(self.open):
                self._close(at, keep=False)
        if not self.running:
            for thread in self.threads:
                thread.join()
            # The first backend is the caller's.
            for backend in self.backends[1:]:
                backend.close()

    def _halt(self) -> None:
        self.stop.set()
        for backend in self.backends:
            backend.cancel()

    def _fail(self, error: BaseException) -> None:
        with self.lock:
            if self.error is None and not self.stop.is_set():
                self.error = error
        self._halt()

    # Threads

    def _thread(self, name: str, body: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                if name != "write":
                    _let_the_writer_go_first()
                body()
            except _StoppedError:
                pass
            except BaseException as error:
                self._fail(error)
            finally:
                with self.lock:
                    self.running.discard(thread)
                self.ended.set()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        with self.lock:
            self.running.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            self.running.discard(thread)
            raise
        self.threads.append(thread)

    @contextlib.contextmanager
    def _busy(self, name: str) -> Iterator[None]:
        """Measure a stage that has one worker."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.counters.stages[name].busy_seconds += time.perf_counter() - begin

    # The stages

    def _read(self, units: Iterable[Unit]) -> None:
        for unit in units:
            try:
                with self._busy("read"):
                    at = self._open(unit)
            except (InputError, OutputError) as error:
                self.raw.put(_End(None, unit.name, error))
                continue
            end = _End(at, unit.name)
            try:
                self._read_unit(at)
            except InputError as error:
                end = replace(end, error=error)
            finally:
                at.leave()
            self.raw.put(end)
        self.raw.close()

    def _read_unit(self, at: AnyOpen) -> None:
        with contextlib.closing(at.read()) as frames:
            while not at.given_up:
                with self._busy("read"):
                    frame = next(frames, None)
                if frame is None:
                    break
                self.raw.put(_Lost(at, frame) if isinstance(frame, Dropped) else _Raw(at, frame))

    def _open(self, unit: Unit) -> AnyOpen:
        source = unit.open_source()
        try:
            sink = unit.open_sink()
        except BaseException:
            source.close()
            raise
        at = _Open(unit.name, source, sink)
        with self.lock:
            self.open.add(at)
        return at

    def _to_rgb(self, message: _Raw | _Lost | _End) -> _Picture | _Lost | _End:
        if not isinstance(message, _Raw):
            return message
        at = message.at
        try:
            frame = message.convert()
        except InputError as error:
            frame = Dropped(at.name, error)
        if isinstance(frame, Dropped):
            return _Lost(at, frame)
        height, width = frame.pixels.shape[:2]
        shape = self.geometry((height, width))
        pixels = shape.into_network(frame.pixels)
        return _Picture(_Origin(at, frame.index, frame.tag, shape), pixels)

    def _translate(self, backend: Backend, message: _Batch | _Lost | _End) -> _Batch | _Lost | _End:
        if not isinstance(message, _Batch):
            return message
        translated: list[Pixels] = []
        while (done := len(translated)) < len(message.rows):
            size = self.batcher.batch_size
            part = message.rows[done : done + size]
            first = message.origins[done]
            try:
                rows = backend.infer(stack(part, size))
            except OutOfMemoryError as error:
                if size == 1:
                    raise _named(first, error) from error
                self._halve_batch(size, first)
                continue
            except CycleganBatchError as error:
                raise _named(first, error) from error
            translated.extend(rows[: len(part)])
        return _Batch(message.origins, translated)

    def _halve_batch(self, size: int, first: _Origin) -> None:
        with self.lock:
            if self.batcher.batch_size == size:
                self.batcher.batch_size = size // 2
                text = f"out of memory with a batch of {size} at frame {first.index}"
                self.counters.notes.append(
                    Note(first.at.name, f"{text}; going on with {size // 2}")
                )

    def _from_rgb(self, message: _Picture | _Lost | _End) -> _Encoded | _Lost | _End:
        if not isinstance(message, _Picture):
            return message
        origin = message.origin
        at = origin.at
        pixels = origin.shape.out_of_network(message.pixels, keep_size=self.keep_size)
        try:
            return _Encoded(at, at.encoded(Frame(origin.index, pixels, origin.tag)))
        except (InputError, OutputError) as error:
            return _Lost(at, Dropped(at.name, error))

    def _write(self) -> None:
        while True:
            try:
                message = self.encoded.get()
            except _EndedError:
                return
            with self._busy("write"):
                self._write_one(message)

    def _write_one(self, message: _Encoded | _Lost | _End) -> None:
        if isinstance(message, _Lost):
            self._record_dropped(message.dropped)
        elif isinstance(message, _End):
            self._finish(message)
        elif message.at in self.open:
            self.counters.unit = message.at.name
            try:
                dropped = message.write()
            except BrokenPipeError:
                # The reader of our output has closed it: that ends the run, and is no failure.
                self.counters.pipe_closed = True
                self._halt()
            except OutputError as error:
                self._close(message.at, keep=False)
                self._record(message.at.name, error)
            else:
                if dropped is not None:
                    self._record_dropped(dropped)
                else:
                    self.counters.frames_done += 1

    def _finish(self, end: _End) -> None:
        error: CycleganBatchError | None = end.error
        if end.at is not None and end.at not in self.open:
            return  # Its sink has failed, and that is recorded.
        lacking: Sequence[Dropped] = ()
        if end.at is not None and error is None:
            try:
                lacking = end.at.sink.finish()
            except BrokenPipeError:
                self.counters.pipe_closed = True
            except (InputError, OutputError) as failure:
                error = failure
        if end.at is not None:
            self._close(end.at, keep=error is None)
        if error is not None:
            self._record(end.name, error)
        elif end.at is not None:
            self.counters.units_done += 1
        for dropped in lacking:
            self._record_dropped(dropped)

    def _record_dropped(self, dropped: Dropped) -> None:
        self._record(dropped.name, dropped.error, dropped.place)

    def _record(self, name: str, error: CycleganBatchError, place: Place | None = None) -> None:
        """Record a failure; end the run where the plan requires it or no other unit can succeed."""
        if self.skip_existing and isinstance(error, OutputExistsError):
            self.counters.left += 1
            return
        failure = self.counters.record(name, error, place)
        if not self.skip_errors or is_hopeless(error):
            raise error
        if self.max_failures is not None and self.counters.failed > self.max_failures:
            raise type(error)(
                too_many_failures(self.counters.failed, self.max_failures, str(error))
            ) from failure.error
        without_frames(error)

    def _close(self, at: AnyOpen, *, keep: bool) -> None:
        with self.lock:
            self.open.discard(at)
        at.given_up = not keep
        at.leave()
        if not keep:
            at.sink.discard()
        # A shard that was given up has whole files, too: each is named by itself.
        self.counters.written += at.sink.written
        self.counters.notes.extend([*at.source.notes, *at.sink.notes])


def _named(origin: _Origin, error: CycleganBatchError) -> CycleganBatchError:
    """Return ``error`` with the file and the frame at which the network met it."""
    return type(error)(f"{origin.at.name}, frame {origin.index}: {error}")


@contextlib.contextmanager
def _opencv_in_the_callers_threads() -> Iterator[None]:
    """Let OpenCV start no threads of its own, and do as before afterwards.

    The converters are one for each core already. Its threads would begin with the lowered priority
    of a converter, and outlive it.
    """
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _let_the_writer_go_first() -> None:
    """Lower the priority of the calling thread, and of the threads that it starts, within the run.

    The threads of an encoder wait for one another, so that a converter which takes the core of one
    holds up all of them, while whatever comes before the writer has queues to fill the gaps with
    (tried on two cores, 1280×720 to x264 veryfast: 528 frames in 7.9 instead of 9.9 s). Only Linux
    has a priority for each thread.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A process that may not change it runs as it is.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + 10)
