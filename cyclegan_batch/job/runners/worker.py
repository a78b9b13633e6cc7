"""A worker: it opens the model once and runs the units that it is given, in a process of its own.

It asks for a unit whenever its pipeline has room for one, and reports what becomes of them. It ends
when it is told to, or when the other end of its connection is closed: the runner has died.

``python -m cyclegan_batch.job.runners.worker DESCRIPTOR`` is started by `processes` with one end of
a socket pair. In an actor of a cluster (`ray_actor`) the connection is a pair of queues.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Protocol

from ...errors import CycleganBatchError
from ...media import Dropped, Whole
from ...wording import Note
from ..units import Counters, ImageUnit, Outcome, Unit
from .local import run_here
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

if TYPE_CHECKING:
    from ..plan import JobPlan

PATIENCE = 4.0
"""Seconds after which a worker that was told to stop, or whose runner has died, is killed."""

STOPS = ("SIGINT", "SIGTERM", "SIGHUP")
"""The signals that a terminal or a batch system sends to all processes of a run. Only the runner
obeys them, and tells its workers."""


class ToRunner(Protocol):
    """The worker's end of a connection."""

    def send(self, message: FromWorker, /) -> None:
        """Send a message. Raises OSError where the other end is closed."""

    def recv(self) -> ToWorker:
        """Wait for a message and return it. Raises EOFError or OSError where there are no more."""


class Worker:
    """What tells the runner of the pipeline of this process, as its `Observer`."""

    def __init__(self, connection: ToRunner) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._answers: queue.Queue[Work | NoMore] = queue.Queue()
        self._stopped = threading.Event()
        self._numbers: dict[int, tuple[int, Unit]] = {}
        """The number of each unit that has not ended, by its `id`."""
        self._whole: dict[int, Sequence[Whole]] = {}
        """What became whole of units that have not ended, except images."""
        self._notes_sent = 0

    def work(self, plan: JobPlan) -> None:
        """Open the plan's backend and do units until there are no more."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        try:
            backend = plan.open_backend(lambda sentence: self._say(Note(None, sentence)))
            try:
                self._send(Ready())
                counters = Counters()
                run_here(plan, backend, self._units(), self, counters, self._watch)
                self._report(counters)
            finally:
                backend.close()
        except CycleganBatchError as error:
            self._send(Raised(error))
        except Exception:
            self._send(Crashed(traceback.format_exc()))
        else:
            self._send(Done())

    def _units(self) -> Iterator[Unit | None]:
        while True:
            self._send(Next())
            while True:
                with contextlib.suppress(queue.Empty):
                    answer = self._answers.get(timeout=0.1)
                    break
                yield None
            if isinstance(answer, NoMore):
                return
            self._numbers[id(answer.unit)] = answer.number, answer.unit
            yield answer.unit

    # What the pipeline reports

    def dropped(self, unit: Unit, dropped: Dropped) -> None:
        """Tell the runner what is missing."""
        self._send(Missing(self._number(unit), dropped))

    def published(self, unit: Unit, items: Sequence[Whole]) -> None:
        """Tell the runner which images are whole; a video is told with its end."""
        if isinstance(unit, ImageUnit):
            self._send(Published(self._number(unit), tuple(items)))
        else:
            self._whole[id(unit)] = tuple(items)

    def ended(self, outcome: Outcome) -> None:
        """Tell the runner that a unit has ended."""
        unit = outcome.unit
        number = self._number(unit)
        items = self._whole.pop(id(unit), ())
        self._send(
            Ended(
                number,
                items,
                outcome.error,
                outcome.dropped,
                outcome.notes,
                outcome.frames,
                outcome.reused,
            )
        )
        del self._numbers[id(unit)]

    def _number(self, unit: Unit) -> int:
        return self._numbers[id(unit)][0]

    def _watch(self, counters: Counters) -> None:
        self._report(counters)
        if self._stopped.is_set():
            raise KeyboardInterrupt

    def _report(self, counters: Counters) -> None:
        notes = tuple(counters.notes[self._notes_sent :])
        self._notes_sent += len(notes)
        stages = {name: replace(stage) for name, stage in counters.stages.items()}
        self._send(Progress(counters.frames_done, counters.reused, counters.unit, stages, notes))

    def _say(self, note: Note) -> None:
        self._send(Progress(0, 0, "", {}, (note,)))

    # The connection

    def _send(self, message: FromWorker) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            self._end_soon()

    def _listen(self) -> None:
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                break
            if isinstance(message, Stop):
                break
            self._answers.put(message)
        self._end_soon()

    def _end_soon(self) -> None:
        """Stop the pipeline. The process ends after `PATIENCE`, even if the pipeline still runs."""
        if not self._stopped.is_set():
            self._stopped.set()
            # Python's own thread for this needs no GIL, which native code may keep.
            faulthandler.dump_traceback_later(
                PATIENCE, exit=True, file=os.open(os.devnull, os.O_WRONLY)
            )


def main() -> None:
    """Run a worker on the descriptor that is the argument."""
    signals = [getattr(signal, name) for name in STOPS if hasattr(signal, name)]
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    # The runner blocks them before it starts a worker: none arrives before it is ignored.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    try:
        plan: JobPlan = connection.recv()
    except EOFError:
        return
    Worker(connection).work(plan)


if __name__ == "__main__":
    main()
