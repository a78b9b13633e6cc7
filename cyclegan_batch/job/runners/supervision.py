"""Several workers: this process starts them, hands out, hears, merges and records.

A thread of its own does all that, so that the calling one only waits, and Ctrl-C reaches it. What a
worker is, a process of this machine or an actor of a cluster, is the business of a `Transport`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...errors import BackendError, OutputExistsError
from ...files import remove_leftovers
from ...media import Dropped, Whole, Written
from ...wording import Note
from ..units import Counters, Failure, Outcome, Stage, Tolerance, Unit, is_hopeless
from .messages import (
    Crashed,
    Done,
    Ended,
    FromWorker,
    Missing,
    Next,
    NoMore,
    Progress,
    Published,
    Raised,
    Ready,
    Stop,
    Work,
)
from .transport import Link, Transport
from .worker import PATIENCE, STOPS

if TYPE_CHECKING:
    from ..dispatch import Dispatcher
    from ..plan import JobPlan

_WATCH = 0.1
_MOST_DEATHS = 3
"""Workers that die in a row before anything was done; the run ends with the last of them."""


class WorkerError(Exception):
    """A bug in a worker; the message is its traceback."""


def run_with_workers(
    plan: JobPlan,
    transport: Transport,
    dispatcher: Dispatcher,
    counters: Counters,
    watch: Callable[[Counters], None] | None,
) -> None:
    """Do the work of ``plan`` in the workers of ``transport``; see `pipeline.run`."""
    supervisor = _Supervisor(plan, transport, dispatcher, counters)
    ended = threading.Event()

    def supervise() -> None:
        try:
            supervisor.supervise()
        finally:
            ended.set()

    thread = threading.Thread(target=supervise, name="workers", daemon=True)
    renewed = False
    try:
        thread.start()
        while not ended.wait(_WATCH):
            if supervisor.is_open and not renewed:
                renewed = True
                _renew_signal_handlers()
            if watch:
                watch(counters)
    except KeyboardInterrupt:
        counters.interrupted = True
    finally:
        supervisor.stop.set()
        ended.wait(PATIENCE + 1)
    if plan.options.skip_existing:
        counters.count_existing_as_left()
    if supervisor.error is not None and not counters.interrupted:
        raise supervisor.error
    if watch and not counters.interrupted:
        watch(counters)


def _renew_signal_handlers() -> None:
    """Install Python's handlers again: the core of Ray puts its own before them, which prints."""
    for name in STOPS:
        number = getattr(signal, name, None)
        handler = None if number is None else signal.getsignal(number)
        if number is not None and callable(handler):
            # Outside of the main thread Python sets no handlers.
            with contextlib.suppress(ValueError):
                signal.signal(number, handler)


@dataclass(eq=False)
class _Worker:
    """A worker as its supervisor sees it."""

    number: int
    link: Link
    units: Iterator[Unit | None]
    out: dict[int, Unit] = field(default_factory=dict)
    """The units that it has, by number."""
    pending: dict[int, list[Dropped]] = field(default_factory=dict)
    """What is missing from them so far."""
    images: dict[int, int] = field(default_factory=dict)
    """How many of their images are whole."""
    is_ready: bool = False
    wants: bool = False
    """It waits for a unit."""
    is_done: bool = False
    """It ends by itself, or has told why not."""
    progress: Progress = field(default_factory=lambda: Progress(0, 0, "", {}, ()))
    frames_ended: int = 0
    """Frames of its units that have ended."""
    reused_ended: int = 0
    """Those of them that repeat the frame before them."""


class _Supervisor:
    """The workers of one run."""

    def __init__(
        self, plan: JobPlan, transport: Transport, dispatcher: Dispatcher, counters: Counters
    ) -> None:
        self._transport, self._dispatcher, self._counters = transport, dispatcher, counters
        self._tolerance = Tolerance(
            plan.options.on_error == "skip", plan.options.max_failures, plan.options.skip_existing
        )
        self._workers: list[_Worker] = []
        self._next_number = 0
        self._deaths = 0
        """Workers that died in a row before they were ready."""
        self._was_ready = False
        self._frames = 0
        """Of units that have ended, and of images that are whole."""
        self._reused = 0
        """Repeated frames of units that have ended."""
        self._stages = tuple(plan.schedule.stages)
        self._busy = dict.fromkeys(self._stages, 0.0)
        """Seconds of the workers that have ended."""
        self._notes: set[Note] = set(counters.notes)
        self.is_open = False
        """Whether the transport is open."""
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def supervise(self) -> None:
        """Start the workers and serve them until all have ended."""
        try:
            self._note(self._transport.open())
            self.is_open = True
            count = self._transport.count
            self._counters.workers = count
            self._counters.stages = {name: Stage(workers=count) for name in self._stages}
            for number in range(count):
                self._start(number)
            while self._workers and not self.stop.is_set():
                self._serve()
        except BaseException as error:
            self.error = error
        finally:
            for end in (self._end_all, self._transport.close):
                try:
                    end()
                except BaseException as error:
                    self.error = self.error or error
            self._settle(self._workers)

    def _serve(self) -> None:
        """Take what has arrived, hand out units, and replace the workers that have died."""
        self._hear(_WATCH)
        for worker in self._workers:
            if worker.wants:
                self._answer(worker)
        for worker in list(self._workers):
            if not worker.is_ready and self._dispatcher.is_finished:
                worker.is_done = True
                worker.link.kill()  # all was done before it came to its start
            if worker.link.has_ended():
                self._bury(worker)

    # The workers

    def _start(self, number: int) -> None:
        """Start the worker of this number. Raises BackendError."""
        link = self._transport.start(number)
        self._workers.append(_Worker(number, link, self._dispatcher.units(number)))

    def _bury(self, worker: _Worker) -> None:
        """Take leave of a worker that has ended, and replace it where it died."""
        for message in worker.link.rest():
            self._take(worker, message)
        how = worker.link.close()
        self._workers.remove(worker)
        for name, stage in worker.progress.stages.items():
            self._busy[name] += stage.busy_seconds
        # Images that are whole, of units that have not ended. Whoever does the rest counts that.
        self._frames += sum(worker.images.values())
        self._show()
        if worker.is_done:
            return
        for folder in self._dispatcher.folders(worker.number):
            remove_leftovers(folder)
        if self.stop.is_set():
            self._settle([worker])
            return
        self._deaths += not worker.is_ready
        for number in list(worker.pending):
            self._forget(worker, number)
        for outcome in self._dispatcher.died(worker.number, how):
            self._take_end(outcome)
        hopeless = not self._dispatcher.anything_done and self._dispatcher.killers >= _MOST_DEATHS
        if self._deaths >= _MOST_DEATHS or hopeless:
            when = "before anything was done" if worker.is_ready else "as it started"
            words = worker.link.last_words()
            raise BackendError(
                f"a worker process was {how} {when}, as others before it; {words}"
                + ("\n" if "\n" in words else "; ")
                + "where the memory is short, use fewer workers or a smaller --size"
            )
        text = f"was {how}; what it had and was not whole is begun again"
        self._note([Note(f"worker {worker.number + 1}", text)])
        if not self._dispatcher.is_finished:
            self._start(worker.number)

    def _end_all(self) -> None:
        """Tell the workers to stop, and kill those that do not."""
        for worker in self._workers:
            if worker.is_ready:
                worker.link.send(Stop())
            else:
                worker.link.kill()
        deadline = time.monotonic() + PATIENCE
        self.stop.set()
        while self._workers:
            if time.monotonic() > deadline:
                for worker in self._workers:
                    worker.link.kill()
            try:
                self._hear(_WATCH)
            except BaseException as error:
                self.error = self.error or error
            for worker in list(self._workers):
                if worker.link.has_ended():
                    try:
                        self._bury(worker)
                    except BaseException as error:
                        self.error = self.error or error

    # What they tell

    def _hear(self, seconds: float) -> None:
        """Take the messages that arrive within some time, or have arrived."""
        workers = {worker.link: worker for worker in self._workers}
        for link, message in self._transport.hear(list(workers), seconds):
            self._take(workers[link], message)

    def _answer(self, worker: _Worker) -> None:
        """Hand out a unit, where there is one, or nothing where there will be none."""
        unit = next(worker.units, NoMore())
        if unit is None:
            return
        worker.wants = False
        if isinstance(unit, NoMore):
            worker.link.send(unit)
            return
        number, self._next_number = self._next_number, self._next_number + 1
        worker.out[number] = unit
        worker.link.send(Work(number, unit))

    def _take(self, worker: _Worker, message: FromWorker) -> None:
        """Take one message. Raises what is to end the run."""
        match message:
            case Ready():
                worker.is_ready = True
                self._deaths = 0
                if not self._was_ready:
                    self._was_ready = True
                    self._counters.started = time.monotonic()
            case Next():
                worker.wants = True
            case Missing(number, dropped):
                self._take_missing(worker, number, dropped)
            case Published(number, items):
                worker.images[number] = worker.images.get(number, 0) + len(items)
                self._publish(worker, number, items)
            case Ended(number, items, error, dropped, notes, frames, reused):
                self._publish(worker, number, items)
                unit = worker.out.pop(number)
                worker.images.pop(number, None)
                self._forget(worker, number)
                worker.frames_ended += frames
                worker.reused_ended += reused
                self._take_end(Outcome(unit, error, tuple(dropped), tuple(notes), frames, reused))
            case Progress():
                self._note(message.notes)
                if message.stages:
                    worker.progress = message
                    self._counters.unit = message.unit or self._counters.unit
                self._show()
            case Raised(error):
                worker.is_done = True
                raise error
            case Crashed(traceback):
                worker.is_done = True
                raise WorkerError(f"in a worker process\n\n{traceback}")
            case Done():
                worker.is_done = True

    def _take_missing(self, worker: _Worker, number: int, dropped: Dropped) -> None:
        """Count what is missing from a unit that has not ended; it is recorded at its end."""
        if self._tolerance.skip_existing and isinstance(dropped.error, OutputExistsError):
            return
        worker.pending.setdefault(number, []).append(dropped)
        self._counters.unsettled += 1
        most = self._tolerance.max_failures
        too_many = most is not None and self._counters.failed > most
        if too_many or not self._tolerance.skip_errors or is_hopeless(dropped.error):
            last = self._settle(self._workers)
            assert last is not None
            if not too_many:
                raise dropped.error
            self._tolerance.check(self._counters, dropped.error, last)

    def _publish(self, worker: _Worker, number: int, items: Sequence[Whole]) -> None:
        """Take what is whole."""
        if items:
            self._counters.written += [each.path for each in items if isinstance(each, Written)]
            self._dispatcher.published(worker.out[number], items)

    def _take_end(self, outcome: Outcome) -> None:
        """Take the end of a unit. Raises the failure that is to end the run."""
        self._frames += outcome.frames
        self._reused += outcome.reused
        self._counters.units_done += outcome.error is None
        self._dispatcher.ended(outcome)
        self._note(outcome.notes)
        for each in outcome.dropped:
            self._tolerance.record(self._counters, each)
        if outcome.error is not None:
            self._tolerance.record_unit(self._counters, outcome.unit.name, outcome.error)

    def _forget(self, worker: _Worker, number: int) -> None:
        """Forget what was missing from a unit: it has ended, or is tried again."""
        self._counters.unsettled -= len(worker.pending.pop(number, ()))

    def _settle(self, workers: Iterable[_Worker]) -> Failure | None:
        """Record what is missing from units that have not ended; return the last failure."""
        failure = None
        for worker in workers:
            for number, missing in list(worker.pending.items()):
                self._forget(worker, number)
                for each in missing:
                    failure = self._counters.record(each.name, each.error, each.place)
        return failure

    def _note(self, notes: Iterable[Note]) -> None:
        """Add the notes that no worker has reported before."""
        for note in notes:
            if note not in self._notes:
                self._notes.add(note)
                self._counters.notes.append(note)

    def _show(self) -> None:
        """Sum up for the display and the report."""
        workers = self._workers
        self._counters.frames_done = self._frames + sum(
            max(0, worker.progress.frames - worker.frames_ended) for worker in workers
        )
        self._counters.reused = self._reused + sum(
            max(0, worker.progress.reused - worker.reused_ended) for worker in workers
        )
        for name, stage in self._counters.stages.items():
            shares = [worker.progress.stages[name] for worker in workers if worker.progress.stages]
            stage.busy_seconds = self._busy[name] + sum(share.busy_seconds for share in shares)
            if shares:
                stage.workers = max(stage.workers, sum(share.workers for share in shares))
