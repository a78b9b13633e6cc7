"""Several workers, each a process of its own; this one hands out, hears, merges and records.

A thread of its own does all that, so that the calling one only waits, and Ctrl-C reaches it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from ...errors import BackendError, OutputExistsError
from ...files import remove_leftovers
from ...media import Dropped, Whole, Written
from ...wording import Note, printable
from ..units import STAGES, Counters, Failure, Outcome, Stage, Tolerance, Unit, is_hopeless
from . import plan_of_worker, worker_devices
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
    ToWorker,
    Work,
)
from .worker import PATIENCE, STOPS

if TYPE_CHECKING:
    from ..dispatch import Dispatcher
    from ..plan import JobPlan

_WATCH = 0.1
_MOST_DEATHS = 3
"""Workers that die in a row before anything was done; the run ends with the last of them."""
_KEPT_LINES = 10
"""Of what a worker prints; an error shows them."""


class WorkerError(Exception):
    """A bug in a worker process; the message is its traceback."""


def run_in_processes(
    plan: JobPlan,
    dispatcher: Dispatcher,
    counters: Counters,
    watch: Callable[[Counters], None] | None,
) -> None:
    """Do the work of ``plan`` in worker processes; see `pipeline.run`."""
    runner = _Runner(plan, dispatcher, counters)
    ended = threading.Event()

    def supervise() -> None:
        try:
            runner.supervise()
        finally:
            ended.set()

    thread = threading.Thread(target=supervise, name="workers", daemon=True)
    try:
        thread.start()
        while not ended.wait(_WATCH):
            if watch:
                watch(counters)
    except KeyboardInterrupt:
        counters.interrupted = True
    finally:
        runner.stop.set()
        ended.wait(PATIENCE + 1)
    if plan.options.skip_existing:
        counters.count_existing_as_left()
    if runner.error is not None and not counters.interrupted:
        raise runner.error
    if watch and not counters.interrupted:
        watch(counters)


@dataclass(eq=False)
class _Worker:
    """A worker process as its runner sees it."""

    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    units: Iterator[Unit | None]
    listener: threading.Thread
    """Reads what the process prints."""
    sender: threading.Thread
    """Sends the plan, which may be large, while the process starts."""
    last_words: deque[str]
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

    def send(self, message: ToWorker) -> None:
        # One that has died is found by `_Runner.supervise`.
        with contextlib.suppress(OSError):
            self.connection.send(message)


class _Runner:
    """The workers of one run."""

    def __init__(self, plan: JobPlan, dispatcher: Dispatcher, counters: Counters) -> None:
        self._plan, self._dispatcher, self._counters = plan, dispatcher, counters
        self._devices = worker_devices(plan) or ()
        self._count = len(self._devices)
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
        self._busy = dict.fromkeys(STAGES, 0.0)
        """Seconds of the workers that have ended."""
        self._notes: set[Note] = set(counters.notes)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        counters.workers = self._count
        counters.stages = {name: Stage(workers=self._count) for name in STAGES}

    def supervise(self) -> None:
        """Start the workers and serve them until all have ended."""
        if hasattr(signal, "pthread_sigmask"):
            # The workers inherit this, and ignore the signals as soon as they can.
            signal.pthread_sigmask(
                signal.SIG_BLOCK, {getattr(signal, name) for name in STOPS if hasattr(signal, name)}
            )
        try:
            for number in range(self._count):
                self._start(number)
            while self._workers and not self.stop.is_set():
                self._serve()
        except BaseException as error:
            self.error = error
        finally:
            try:
                self._end_all()
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
            if worker.process.poll() is not None:
                self._bury(worker)

    # The processes

    def _start(self, number: int) -> None:
        """Start the worker of this number. Raises BackendError."""
        here, there = socket.socketpair()
        with here, there:
            descriptor = there.fileno()
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109
                # Else the current folder would come before them.
                "PYTHONSAFEPATH": "1",
            }
            command = [sys.executable, "-m", "cyclegan_batch.job.runners.worker", str(descriptor)]
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[descriptor],
                    env=environment,
                )
            except OSError as error:
                raise BackendError(
                    f"cannot start a worker process: {error.strerror}; use fewer --workers"
                ) from error
            connection = Connection(here.detach())
        words: deque[str] = deque(maxlen=_KEPT_LINES)
        plan = pickle.dumps(plan_of_worker(self._plan, self._devices[number], self._count))

        def send_plan() -> None:
            with contextlib.suppress(OSError):
                connection.send_bytes(plan)

        listener = threading.Thread(target=_pass_on, args=(process, words), daemon=True)
        sender = threading.Thread(target=send_plan, daemon=True)
        listener.start()
        sender.start()
        units = self._dispatcher.units(number)
        self._workers.append(_Worker(number, process, connection, units, listener, sender, words))

    def _bury(self, worker: _Worker) -> None:
        """Take leave of a process that has ended, and replace it where it died."""
        self._hear_all(worker)
        status = worker.process.wait()
        worker.listener.join(5)  # what it printed last may be on its way
        worker.connection.close()
        self._workers.remove(worker)
        for name, stage in worker.progress.stages.items():
            self._busy[name] += stage.busy_seconds
        if worker.is_done:
            self._show()
            return
        # What is tried again is counted then, without the images that are whole.
        self._frames += sum(worker.images.values())
        self._show()
        for folder in self._dispatcher.folders(worker.number):
            remove_leftovers(folder)
        if self.stop.is_set():
            self._settle([worker])
            return
        how = _how(status)
        self._deaths += not worker.is_ready
        for number in list(worker.pending):
            self._forget(worker, number)
        for outcome in self._dispatcher.died(worker.number, how):
            self._take_end(outcome)
        hopeless = not self._dispatcher.anything_done and self._dispatcher.killers >= _MOST_DEATHS
        if self._deaths >= _MOST_DEATHS or hopeless:
            when = "before anything was done" if worker.is_ready else "as it started"
            words = "".join(f"\n  {line}" for line in worker.last_words)
            raise BackendError(
                f"a worker process was {how} {when}, as others before it; "
                + (f"its last words:{words}" if words else "it printed nothing")
                + ("\n" if words else "; ")
                + "where the memory is short, use fewer workers or a smaller --size"
            )
        if not self._dispatcher.is_finished:
            self._start(worker.number)

    def _end_all(self) -> None:
        """Tell the workers to stop, and kill those that do not."""
        for worker in self._workers:
            if worker.is_ready and not worker.sender.is_alive():
                worker.send(Stop())
            else:
                worker.process.kill()
        deadline = time.monotonic() + PATIENCE
        self.stop.set()
        while self._workers:
            if time.monotonic() > deadline:
                for worker in self._workers:
                    worker.process.kill()
            try:
                self._hear(_WATCH)
            except BaseException as error:
                self.error = self.error or error
            for worker in list(self._workers):
                if worker.process.poll() is not None:
                    try:
                        self._bury(worker)
                    except BaseException as error:
                        self.error = self.error or error

    # What they tell

    def _hear(self, seconds: float) -> None:
        """Take the messages that arrive within some time, or have arrived."""
        connections = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(connections), seconds):
            assert isinstance(connection, Connection)
            worker = connections[connection]
            try:
                message: FromWorker = connection.recv()
            except (EOFError, OSError):
                # Its end follows; the loop shall not turn for nothing until then.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(_WATCH)
                continue
            self._take(worker, message)

    def _hear_all(self, worker: _Worker) -> None:
        """Take all messages of a process that has ended."""
        with contextlib.suppress(EOFError, OSError):
            while worker.connection.poll():
                message: FromWorker = worker.connection.recv()
                self._take(worker, message)

    def _answer(self, worker: _Worker) -> None:
        """Hand out a unit, where there is one, or nothing where there will be none."""
        unit = next(worker.units, NoMore())
        if unit is None:
            return
        worker.wants = False
        if isinstance(unit, NoMore):
            worker.send(unit)
            return
        number, self._next_number = self._next_number, self._next_number + 1
        worker.out[number] = unit
        worker.send(Work(number, unit))

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


def _pass_on(process: subprocess.Popen[bytes], last_words: deque[str]) -> None:
    """Print what a worker prints, on standard error, and keep the last lines."""
    assert process.stdout is not None
    with process.stdout as lines:
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            last_words.append(text)
            if sys.stderr is not None:
                with contextlib.suppress(OSError, ValueError):
                    print(printable(text), file=sys.stderr, flush=True)


def _how(status: int) -> str:
    """Return in words how a process has died, by its exit status."""
    if status >= 0:
        return f"ended by an exit with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
