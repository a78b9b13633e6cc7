"""A worker in an actor of a Ray cluster: two queues are its connection. Nothing here imports Ray.

Ray loads this module on every machine that has an actor, so the package must be installed there.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import BackendError, CycleganBatchError
from ...wording import printable
from ..report import versions
from .messages import Crashed, FromWorker, Progress, Raised, ToWorker
from .worker import Worker

_MOST_DIFFERENCES = 3
"""Differing versions that a message lists."""


@dataclass(frozen=True)
class Surroundings:
    """What the machine of an actor must share with the one on which the command runs."""

    host: str
    """The name of that one."""
    versions: Mapping[str, str]
    """Of the packages that pixels depend on."""
    folder: Path | None
    """The current folder, from which relative paths lead; None where no path is local."""
    token: Path | None
    """A file in the job folder, where that is local."""
    content: bytes
    """What the token holds."""
    inputs: Path | None
    """An input, where they are local."""
    engine: Path | None
    """The file of a TensorRT engine."""

    def check(self) -> None:
        """Enter the folder. Raises BackendError where this machine differs."""
        here = socket.gethostname()
        found = versions()
        differing = [
            f"{name} {found.get(name, 'none')}, here {self.versions.get(name, 'none')}"
            for name in sorted(found.keys() | self.versions.keys())
            if found.get(name) != self.versions.get(name)
        ]
        if differing:
            more = len(differing) - _MOST_DIFFERENCES
            listed = ", ".join(differing[:_MOST_DIFFERENCES]) + (f", {more} more" * (more > 0))
            raise BackendError(
                f"the machine {here} of the cluster does not have the packages of {self.host}, on "
                f"which pixels depend: {listed}; install the same versions on both"
            )
        for path, content in (
            (self.folder, None), (self.token, self.content), (self.inputs, None)
        ):  # fmt: skip
            if path is not None and not _is_there(path, content):
                seen = printable(path)
                if path is self.token:
                    # There may well be a folder of this name.
                    seen = f"what is written into {printable(path.parent)}"
                raise BackendError(
                    f"the worker on {here} does not see {seen} of {self.host}; a "
                    "cluster reads and writes what all its machines see under one name: a network "
                    "folder, or URLs such as s3://…"
                )
            if path is self.folder and path is not None:
                os.chdir(path)
        if self.engine is not None and not self.engine.is_file():
            raise BackendError(
                f"the worker on {here} has no file {printable(self.engine)}: an engine belongs to "
                "its GPU and does not travel; build it there, or give the ONNX file with "
                "--backend tensorrt"
            )


def _is_there(path: Path, content: bytes | None) -> bool:
    try:
        return path.exists() if content is None else path.read_bytes() == content
    except OSError:
        return False


class RayWorker:
    """What Ray makes an actor of. Its methods may run side by side, each in a thread of its own."""

    def __init__(self) -> None:
        self._to_worker: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
        self._from_worker: queue.SimpleQueue[FromWorker] = queue.SimpleQueue()

    # For the command

    def begin(self, surroundings: Surroundings, plan: bytes) -> None:
        """Start to work by a pickled plan."""
        threading.Thread(target=self._work, args=(surroundings, plan), daemon=True).start()

    def give(self, message: ToWorker) -> None:
        """Take a message to the worker."""
        self._to_worker.put(message)

    def take(self, seconds: float) -> list[FromWorker]:
        """Return the messages from the worker, at the latest after some seconds.

        Progress alone waits until then: a large cluster shall not keep the command busy with it.
        """
        messages: list[FromWorker] = []
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._from_worker.get(timeout=max(0, deadline - time.monotonic())))
                if not isinstance(messages[-1], Progress):
                    deadline = 0
        return messages

    # For the worker, in a thread of its own

    def _work(self, surroundings: Surroundings, plan: bytes) -> None:
        try:
            surroundings.check()
            worker = Worker(self)
            worker.work(pickle.loads(plan))
        except CycleganBatchError as error:
            self.send(Raised(error))
        except Exception:
            self.send(Crashed(traceback.format_exc()))

    def send(self, message: FromWorker) -> None:
        """Send a message to the command."""
        self._from_worker.put(message)

    def recv(self) -> ToWorker:
        """Wait for a message from the command."""
        return self._to_worker.get()
