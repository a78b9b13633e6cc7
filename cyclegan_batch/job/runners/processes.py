"""Workers that are processes of this machine, each with a socket pair."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from ...errors import BackendError
from ...wording import Note, printable
from . import Share, import_path, plan_of_worker
from .messages import FromWorker, ToWorker
from .transport import Link
from .worker import STOPS

if TYPE_CHECKING:
    from ..plan import JobPlan

_PAUSE = 0.1
_KEPT_LINES = 10
"""Of what a worker prints; an error shows them."""


class Processes:
    """A `Transport`: worker processes, one for each device."""

    def __init__(self, plan: JobPlan, devices: Sequence[str]) -> None:
        self._plan, self._devices = plan, devices

    @property
    def count(self) -> int:
        """How many workers there are to be."""
        return len(self._devices)

    def open(self) -> Iterable[Note]:
        """Block the signals that stop a run, in this thread."""
        if hasattr(signal, "pthread_sigmask"):
            # The workers inherit this, and ignore the signals as soon as they can.
            signal.pthread_sigmask(
                signal.SIG_BLOCK, {getattr(signal, name) for name in STOPS if hasattr(signal, name)}
            )
        return ()

    def start(self, number: int) -> _Process:
        """Start the process of this number. Raises BackendError."""
        return _Process(pickle.dumps(plan_of_worker(self._plan, self._share(number))))

    def _share(self, number: int) -> Share:
        """Return the share of a process: its device, and an equal part of the CPU."""
        request, schedule = self._plan.backend.request, self._plan.schedule
        device, contexts = self._devices[number], schedule.contexts
        if device == "cpu":
            contexts = max(1, contexts // self.count)
        return Share(
            device=device,
            threads=max(1, request.threads // self.count),
            contexts=contexts,
            converters=max(1, schedule.converters // self.count),
        )

    def hear(self, links: Sequence[Link], seconds: float) -> Iterator[tuple[Link, FromWorker]]:
        """Yield a message of each process that has sent some, or does so within some time."""
        processes = {link.connection: link for link in links if isinstance(link, _Process)}
        for connection in wait(list(processes), seconds):
            assert isinstance(connection, Connection)
            process = processes[connection]
            try:
                message: FromWorker = connection.recv()
            except (EOFError, OSError):
                # Its end follows; the caller's loop shall not turn for nothing until then.
                process.wait(_PAUSE)
                continue
            yield process, message

    def close(self) -> None:
        """Do nothing."""


class _Process:
    """A worker process as its supervisor sees it, a `Link`."""

    def __init__(self, plan: bytes) -> None:
        """Start it, and send it its pickled plan. Raises BackendError."""
        here, there = socket.socketpair()
        with here, there:
            descriptor = there.fileno()
            environment = os.environ | {
                "PYTHONPATH": import_path(),
                # Else the current folder would come before them.
                "PYTHONSAFEPATH": "1",
            }
            command = [sys.executable, "-m", "cyclegan_batch.job.runners.worker", str(descriptor)]
            try:
                self._process = subprocess.Popen(
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
            self.connection = Connection(here.detach())
        self._last_words: deque[str] = deque(maxlen=_KEPT_LINES)
        self._listener = threading.Thread(
            target=_pass_on, args=(self._process, self._last_words), daemon=True
        )
        self._listener.start()
        # The plan may be large: it is sent while the process starts. Nothing else is sent before
        # the process has told that it is ready, and so has it.
        threading.Thread(target=self._send_plan, args=(plan,), daemon=True).start()

    def _send_plan(self, plan: bytes) -> None:
        with contextlib.suppress(OSError):
            self.connection.send_bytes(plan)

    def send(self, message: ToWorker) -> None:
        """Send a message; one that has died is found by `has_ended`."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def rest(self) -> Iterator[FromWorker]:
        """Yield what it has sent and nobody has taken."""
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll():
                message: FromWorker = self.connection.recv()
                yield message

    def has_ended(self) -> bool:
        """Return whether the process has ended."""
        return self._process.poll() is not None

    def wait(self, seconds: float) -> None:
        """Wait for its end for some time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> str:
        """Wait for what it printed last, close the connection, and return how it ended."""
        status = self._process.wait()
        self._listener.join(5)
        self.connection.close()
        return _how(status)

    def last_words(self) -> str:
        """Return what it printed last, as the middle of a sentence."""
        lines = "".join(f"\n  {line}" for line in self._last_words)
        return f"its last words:{lines}" if lines else "it printed nothing"


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
