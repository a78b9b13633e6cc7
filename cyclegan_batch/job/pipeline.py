"""Run a plan: this module alone starts threads.

    reader → to RGB ×k → (batcher) network ×contexts → (filter) → from RGB ×k → writer

Every arrow is a bounded queue (flow.py), so memory is flat and the slowest stage sets the pace; a
stage with several workers hands its results on in the order in which it took its messages. All
units flow through the same stages: the frames of the next file fill the pipeline while those of the
last one leave it. The filter against flicker is a stage only where the plan has one; it needs the
frames of a unit in order, so it has one worker.

There are three kinds of failure. A frame that cannot be read is `Dropped` and a unit that cannot be
finished is given up; both are recorded, and end the run only where the plan requires it. Any other
error ends the run: the first one is raised to the caller, and no thread outlives the run.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backends import Backend
from ..errors import (
    CycleganBatchError,
    InputError,
    OutOfMemoryError,
    OutputError,
)
from ..frames import Frame, Geometry, Pixels, Size, stack
from ..machine import opencv_without_threads
from ..media import Dropped, Source, Written
from ..wording import Note
from .flow import (
    WATCH,
    AnyOpenUnit,
    Batch,
    Batcher,
    Channel,
    EncodedFrame,
    End,
    EndedError,
    Lost,
    NetworkFrame,
    OpenUnit,
    Origin,
    RawFrame,
    StageWorkers,
    StoppedError,
    Unbatcher,
)
from .schedule import Schedule
from .units import (
    Counters,
    Observer,
    Outcome,
    Stage,
    Tolerance,
    Unit,
)

if TYPE_CHECKING:
    from ..temporal.flow_filter import FlowFilter

_PATIENCE = 4.0
"""Seconds that a stopped run waits for its threads, so that Ctrl-C takes at most five in all."""


def run(
    units: Iterable[Unit | None],
    backend: Backend,
    schedule: Schedule,
    *,
    geometry: Callable[[Size], Geometry],
    keep_size: bool = False,
    reuse: bool = True,
    skip_errors: bool = False,
    max_failures: int | None = None,
    skip_existing: bool = False,
    counters: Counters | None = None,
    observer: Observer | None = None,
    watch: Callable[[Counters], None] | None = None,
) -> Counters:
    """Translate ``units`` in order and return what happened; ``observer`` is told at once.

    A thread of its own reads ``units``, one unit ahead of the frames; None means that no unit is
    ready yet. With ``reuse``, a frame whose pixels equal those of the frame before it is not
    computed again.

    The calling thread only waits: it calls ``watch`` about ten times a second and stays
    out of native code, so that Ctrl-C reaches it. A KeyboardInterrupt in it stops the run: no
    output that is not whole keeps its final name, and ``interrupted`` is set.

    Raises the first error that the plan does not allow to be skipped.
    """
    counters = counters or Counters()
    job = _Run(
        backend,
        schedule,
        counters,
        geometry=geometry,
        keep_size=keep_size,
        reuse=reuse,
        tolerance=Tolerance(skip_errors, max_failures, skip_existing),
        observer=observer,
    )
    with opencv_without_threads():
        return job.execute(units, watch)


class _Run:
    """One run: its threads, its queues and its first error."""

    def __init__(
        self,
        backend: Backend,
        schedule: Schedule,
        counters: Counters,
        *,
        geometry: Callable[[Size], Geometry],
        keep_size: bool,
        reuse: bool,
        tolerance: Tolerance,
        observer: Observer | None,
    ) -> None:
        self.schedule, self.counters = schedule, counters
        # The frames of a video, and most images of a folder, have one size.
        self.geometry, self.keep_size = lru_cache(geometry), keep_size
        self.tolerance, self.observer = tolerance, observer
        self.backends = [backend, *(backend.fork() for _ in range(schedule.contexts - 1))]
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.lock = threading.Lock()
        self.open_units: set[AnyOpenUnit] = set()
        self.threads: list[threading.Thread] = []
        self.running: set[threading.Thread] = set()
        """The threads that have not ended."""
        self.ended = threading.Event()
        """Set whenever a thread ends."""

        counters.stages = {name: Stage(workers=n) for name, n in schedule.stages.items()}
        self.raw: Channel[RawFrame | Lost | End] = Channel(
            schedule.converter_queue, self.stop, lot=schedule.lot
        )
        # The next two queues count batches. A batch that the Unbatcher takes apart frame by frame
        # still counts as one behind the network, so its queue is shorter by one. A batch of one
        # frame leaves the queue and the Unbatcher at once.
        batches = schedule.contexts + 1
        self.batches: Channel[Batch | Lost | End] = Channel(batches, self.stop, lot=schedule.lot)
        if schedule.batch_size > 1:
            batches -= 1
        self.translated: Channel[Batch | Lost | End] = Channel(batches, self.stop, lot=schedule.lot)
        self.encoded: Channel[EncodedFrame | Lost | End] = Channel(
            schedule.converter_queue, self.stop, lot=schedule.lot
        )
        self.batcher = Batcher(self.batches, schedule.batch_size, reuse=reuse)
        self.filtered: Channel[NetworkFrame | Lost | End] = Channel(
            schedule.converter_queue, self.stop, lot=schedule.lot
        )
        self.filter: FlowFilter | None = None
        """Of the unit whose frames come out of the network."""

    # The life of a run

    def execute(
        self, units: Iterable[Unit | None], watch: Callable[[Counters], None] | None
    ) -> Counters:
        try:
            self._start(units)
            while self.running:
                # Not `Thread.join`: before Python 3.13 an interrupt in it makes a thread that still
                # works count as ended (gh-90882).
                self.ended.wait(WATCH)
                self.ended.clear()
                if watch:
                    watch(self.counters)
        except KeyboardInterrupt:
            self.counters.interrupted = True
        finally:
            self._end()
        if self.tolerance.skip_existing:
            self.counters.count_existing_as_left()
        if self.error is not None and not self.counters.interrupted:
            raise self.error
        if watch and not self.counters.interrupted:
            watch(self.counters)
        return self.counters

    def _start(self, units: Iterable[Unit | None]) -> None:
        stages = self.counters.stages
        to_rgb = StageWorkers(
            stages["to rgb"],
            self.stop,
            take=self.raw.get,
            hand_on=self.batcher.put,
            close=self.batcher.close,
        )
        network = StageWorkers(
            stages["network"],
            self.stop,
            take=self.batches.get,
            hand_on=self.translated.put,
            close=self.translated.close,
        )
        take = Unbatcher(self.translated).get
        if self.schedule.filters:
            temporal = StageWorkers(
                stages["temporal"],
                self.stop,
                take=take,
                hand_on=self._put_filtered,
                close=self.filtered.close,
            )
            self._thread("temporal", partial(temporal.work, self._filter))
            take = self.filtered.get
        from_rgb = StageWorkers(
            stages["from rgb"],
            self.stop,
            take=take,
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
            # Native code may take a moment to react to the cancellation.
            deadline = time.monotonic() + _PATIENCE
            while self.running and time.monotonic() < deadline:
                self.ended.wait(WATCH)
                self.ended.clear()
        # The outputs of a writer that is still at work cannot be removed. They have temporary
        # names, which the next run uses again.
        if not any(thread.name == "write" for thread in self.running):
            for open_unit in list(self.open_units):
                self._close(open_unit, keep=False)
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
                if name != "write" and self.schedule.encodes_video:
                    _lower_priority()
                body()
            except StoppedError:
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
        """Add the time within to a stage that has one worker."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.counters.stages[name].busy_seconds += time.perf_counter() - begin

    # The stages

    def _read(self, units: Iterable[Unit | None]) -> None:
        source: Source[Any] | None = None
        """Of the last unit: the next one may go on with its decoder."""
        try:
            for unit in units:
                if unit is None:
                    if self.stop.wait(WATCH):
                        raise StoppedError
                    continue
                # A join reads nothing: the unit behind it goes on with the source before it.
                reads = unit.frames != 0
                try:
                    with self._busy("read"):
                        open_unit = self._open(unit, source if reads else None)
                except (InputError, OutputError) as error:
                    self.raw.put(End(unit, None, error))
                    continue
                if reads:
                    source = open_unit.source
                end = End(unit, open_unit)
                try:
                    self._read_unit(open_unit)
                except InputError as error:
                    end = replace(end, error=error)
                self.raw.put(end)
                if not reads:
                    open_unit.source.close()
        finally:
            if source is not None:
                source.close()
        self.raw.close()

    def _read_unit(self, open_unit: AnyOpenUnit) -> None:
        with contextlib.closing(open_unit.read()) as frames:
            while not open_unit.given_up:
                with self._busy("read"):
                    frame = next(frames, None)
                if frame is None:
                    break
                if isinstance(frame, Dropped):
                    self.raw.put(Lost(open_unit, frame))
                else:
                    self.raw.put(RawFrame(open_unit, frame))

    def _open(self, unit: Unit, previous: Source[Any] | None) -> AnyOpenUnit:
        """Open a unit and close the source before it."""
        try:
            source = unit.open_source(previous)
        finally:
            if previous is not None:
                previous.close()
        try:
            sink = unit.open_sink(source)
        except BaseException:
            source.close()
            raise
        open_unit = OpenUnit(unit, source, sink)
        with self.lock:
            self.open_units.add(open_unit)
        return open_unit

    def _to_rgb(self, message: RawFrame | Lost | End) -> NetworkFrame | Lost | End:
        if not isinstance(message, RawFrame):
            return message
        unit = message.unit
        try:
            frame = message.convert()
        except InputError as error:
            frame = Dropped(unit.name, error)
        if isinstance(frame, Dropped):
            return Lost(unit, frame)
        height, width = frame.pixels.shape[:2]
        shape = self.geometry((height, width))
        pixels = shape.into_network(frame.pixels)
        origin = Origin(unit, frame.index, frame.tag, shape, warm_up=frame.warm_up)
        return NetworkFrame(origin, pixels)

    def _translate(self, backend: Backend, message: Batch | Lost | End) -> Batch | Lost | End:
        if not isinstance(message, Batch):
            return message
        computed = message.origins.computed
        if not computed:
            return message
        parts: list[Pixels] = []
        start = 0
        while start < len(computed):
            size = self.batcher.batch_size
            part = message.pixels[start : start + size]
            first = computed[start]
            try:
                rows = backend.infer(part if len(part) == size else stack([*part], size))
            except OutOfMemoryError as error:
                if size == 1:
                    raise _named(first, error) from error
                self._halve_batch(size, first)
                continue
            except CycleganBatchError as error:
                raise _named(first, error) from error
            parts.append(rows[: len(part)])
            start += len(part)
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
        is_filtered = computed[0].unit.unit.temporal > 0
        return Batch(message.origins, rows, message.pixels if is_filtered else None)

    def _halve_batch(self, size: int, first: Origin) -> None:
        with self.lock:
            if self.batcher.batch_size == size:
                self.batcher.batch_size = size // 2
                text = f"out of memory with a batch of {size} at frame {first.index}"
                self.counters.notes.append(
                    Note(first.unit.name, f"{text}; going on with {size // 2}")
                )

    def _filter(self, message: NetworkFrame | Lost | End) -> NetworkFrame | Lost | End:
        if isinstance(message, End):
            self.filter = None
        if not isinstance(message, NetworkFrame) or message.source is None:
            return message
        if self.filter is None:
            from ..temporal.flow_filter import FlowFilter

            self.filter = FlowFilter(message.origin.unit.unit.temporal)
        return NetworkFrame(message.origin, self.filter(message.source, message.pixels))

    def _put_filtered(self, *messages: NetworkFrame | Lost | End) -> None:
        """Hand on what is to be written. Raises StoppedError."""
        self.filtered.put(
            *(
                message
                for message in messages
                if not (isinstance(message, NetworkFrame) and message.origin.warm_up)
            )
        )

    def _from_rgb(self, message: NetworkFrame | Lost | End) -> EncodedFrame | Lost | End:
        if not isinstance(message, NetworkFrame):
            return message
        origin, unit = message.origin, message.origin.unit
        pixels = origin.shape.out_of_network(message.pixels, keep_size=self.keep_size)
        try:
            write = unit.encoded(Frame(origin.index, pixels, origin.tag))
        except (InputError, OutputError) as error:
            return Lost(unit, Dropped(unit.name, error))
        return EncodedFrame(unit, write, origin.repeats)

    def _write(self) -> None:
        while True:
            try:
                messages = self.encoded.get()
            except EndedError:
                return
            with self._busy("write"):
                for message in messages:
                    if self.stop.is_set():
                        raise StoppedError
                    self._write_one(message)

    def _write_one(self, message: EncodedFrame | Lost | End) -> None:
        if isinstance(message, Lost):
            if not message.dropped.warm_up:
                self._drop(message.unit, message.dropped)
        elif isinstance(message, End):
            self._finish(message)
        elif message.unit in self.open_units:
            self.counters.unit = message.unit.name
            try:
                dropped = message.write()
            except BrokenPipeError:
                # The process that reads standard output has closed it: the run ends without a
                # failure.
                self.counters.pipe_closed = True
                self._halt()
            except OutputError as error:
                self._give_up(message.unit, error)
            else:
                if dropped is not None:
                    self._drop(message.unit, dropped)
                else:
                    self.counters.frames_done += 1
                    message.unit.frames += 1
                    self.counters.reused += message.repeats
                    message.unit.reused += message.repeats
                self._report_whole(message.unit)

    def _finish(self, end: End) -> None:
        open_unit = end.unit
        if open_unit is None:
            assert end.error is not None
            self._report_end(Outcome(end.planned, end.error))
            self.tolerance.record_unit(self.counters, end.planned.name, end.error)
            return
        if open_unit not in self.open_units:
            return  # The failure of its sink is recorded already.
        if end.error is not None:
            self._give_up(open_unit, end.error)
            return
        missing: Sequence[Dropped] = ()
        try:
            missing = open_unit.sink.finish()
        except BrokenPipeError:
            self.counters.pipe_closed = True
        except (InputError, OutputError) as error:
            self._give_up(open_unit, error)
            return
        notes = self._close(open_unit, keep=True)
        self.counters.units_done += 1
        # Every part of the outcome is reported before the first that may end the run.
        all_dropped = (*open_unit.dropped, *missing)
        self._report_end(open_unit.outcome(None, all_dropped, notes))
        for dropped in missing:
            self.tolerance.record(self.counters, dropped)

    def _give_up(self, open_unit: AnyOpenUnit, error: CycleganBatchError) -> None:
        notes = self._close(open_unit, keep=False)
        self._report_end(open_unit.outcome(error, tuple(open_unit.dropped), notes))
        self.tolerance.record_unit(self.counters, open_unit.name, error)

    def _drop(self, open_unit: AnyOpenUnit, dropped: Dropped) -> None:
        open_unit.dropped.append(dropped)
        if self.observer is not None:
            self.observer.dropped(open_unit.unit, dropped)
        self.tolerance.record(self.counters, dropped)

    def _report_whole(self, open_unit: AnyOpenUnit) -> None:
        """Report what has become whole since the last call."""
        items = open_unit.sink.written[open_unit.published :]
        if items:
            open_unit.published += len(items)
            self.counters.written += [each.path for each in items if isinstance(each, Written)]
            if self.observer is not None:
                self.observer.published(open_unit.unit, items)

    def _report_end(self, outcome: Outcome) -> None:
        if self.observer is not None:
            self.observer.ended(outcome)

    def _close(self, open_unit: AnyOpenUnit, *, keep: bool) -> tuple[Note, ...]:
        """Close the sink of a unit and return the notes on it; the reader closes its source."""
        with self.lock:
            self.open_units.discard(open_unit)
        open_unit.given_up = not keep
        if not keep:
            open_unit.sink.discard()
        # A shard that was given up may have whole files as well: each has a name of its own.
        self._report_whole(open_unit)
        notes = (*open_unit.source.notes, *open_unit.sink.notes)
        self.counters.notes.extend(notes)
        return notes


def _named(origin: Origin, error: CycleganBatchError) -> CycleganBatchError:
    """Return ``error`` with the file and the frame at which it occurred in the network."""
    return type(error)(f"{origin.unit.name}, frame {origin.index}: {error}")


def _lower_priority() -> None:
    """Lower the priority of the calling thread, and of the threads that it starts.

    The threads of an encoder wait for one another: a converter that takes the core of one of them
    delays all of them. The queues of the stages before the writer bridge such delays. Measured on
    two cores, 1280×720 to x264 veryfast: 528 frames in 7.9 instead of 9.9 s. Only Linux has a
    priority for each thread.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A process without the right to change it keeps its priority.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + 10)
