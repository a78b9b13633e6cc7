"""The time that a promise in seconds is held against."""

from __future__ import annotations

import hashlib
import threading
import time
from types import TracebackType

_BUFFER = bytes(1 << 18)


class Stopwatch:
    """Measures the block within, as the CPU seconds of a thread that computes without a break.

    On a calm machine these are the seconds of a clock. On a loaded one, and on one that stood still
    for a while, a process is slower by no fault of its own, and so is this clock.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._compute, daemon=True)

    def __enter__(self) -> Stopwatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _compute(self) -> None:
        begin = time.thread_time()
        while not self._ended.is_set():
            hashlib.sha256(_BUFFER)  # lets other threads have Python's lock
            self.seconds = time.thread_time() - begin
