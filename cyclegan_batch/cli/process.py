"""The process around a command: its signals and its standard streams."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from ..errors import OutputError


class Stops:
    """Ctrl-C, SIGTERM and a closed terminal: the first is a request to stop, the next one exits.

    Foreign code (a callback, an import hook) can swallow the exception that a signal handler
    raises. `requested` therefore stays set, and `check` raises the exception again.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal only sets `requested`: for work that stops between steps."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals within the block, which runs one command.

        The handlers of the calling program are restored afterwards. After a request they are not:
        the process is about to end, and the next signal is to end it at once.
        """
        self.requested = False
        handlers: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # A signal that the parent process ignores (nohup, a background job) stays ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                # Python sets handlers in the main thread only; a program that calls the command
                # in another one keeps its own.
                with contextlib.suppress(ValueError):
                    handlers[number] = signal.signal(number, self._stop)
        try:
            yield
        finally:
            if not self.requested:
                for number, handler in handlers.items():
                    # None stands for a handler that was not set from Python; Python cannot restore
                    # it.
                    signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt after a request to stop."""
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
    """Open /dev/null in the place of each standard stream that is closed.

    Otherwise the next file to be opened would get the number of that stream, and what libraries
    print would end up in the file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # open() takes the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A file name that is not UTF-8 is printed as the bytes that it has on the disk.
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdout else None)


def print_result(text: str) -> None:
    """Print the result of a command; a closed pipe ends the process with 0. Raises OutputError.

    A character that the encoding of standard output lacks becomes an escape sequence.
    """
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except OSError as error:
        # Python flushes the rest of the buffer when it exits, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        raise OutputError(
            f"cannot write to standard output: {error.strerror}; send it somewhere else"
        ) from error


_IMPORTING = 50_000
"""Allocated objects between two collections of garbage while modules are imported; Python's default
is 700."""


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Load NumPy, and let what is imported within the block cost less of the CPU.

    NumPy's OpenBLAS starts a thread for each core that spins for a while, and no command computes
    with it. Modules leave hardly any garbage behind, so it is looked for less often. In five
    alternating pairs on two busy cores the imports of `translate` took 0.38 instead of 0.39 CPU
    seconds.
    """
    name = "OPENBLAS_NUM_THREADS"  # read once, when the library is loaded
    is_set = name in os.environ
    os.environ.setdefault(name, "1")
    try:
        import numpy  # noqa: F401
    finally:
        if not is_set:
            # Child processes, and torch where it has an OpenBLAS of its own, do as they are told.
            del os.environ[name]
    thresholds = gc.get_threshold()
    gc.set_threshold(_IMPORTING, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
