"""The process around a command: its signals and its standard streams."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ..errors import OutputError


class Stops:
    """Ctrl-C, SIGTERM and a closed terminal: once is a request to stop, twice ends the process.

    An exception that a signal handler raises can get lost in foreign code (a callback, an import
    hook): so the request is remembered, too, and `check` repeats it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a request wait until `requested` is looked at: for work that stops between steps."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to requests, for one command.

        After it the handlers are again those of the program that called it; but once a stop was
        asked for, the process is about to end, and the next request ends it at once.
        """
        self.requested = False
        handlers: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # What whoever started us wants ignored (nohup, a job in the background) stays ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                # Not the main thread, where a program calls the command: its handlers are its own.
                with contextlib.suppress(ValueError):
                    handlers[number] = signal.signal(number, self._stop)
        try:
            yield
        finally:
            if not self.requested:
                for number, handler in handlers.items():
                    # None is one that was not set from Python, and cannot be from here.
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for."""
        if self.requested:
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            os._exit(130)
        self.requested = True
        if not self._deferred:
            raise KeyboardInterrupt


STOPS = Stops()


def claim_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed.

    A file opened next would get its number, and what libraries print would end up in that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest free number, so this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - for good
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that is not text goes out as the bytes it has on the disk.
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else None)


def print_result(text: str) -> None:
    """Print what was asked for; whoever closes the pipe has enough. Raises OutputError."""
    try:
        print(text, flush=True)
    except OSError as error:
        # What is left in the buffer would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        raise OutputError(
            f"cannot write to standard output: {error.strerror}; send it somewhere else"
        ) from error
