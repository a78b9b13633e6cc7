"""FFmpeg's own log: PyAV drops it, unless one of these two context managers is active."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import av.logging

_printed = False


@contextlib.contextmanager
def printed() -> Iterator[None]:
    """Let FFmpeg print its warnings and errors to standard error, as its own programs do.

    FFmpeg prints them in C. PyAV's callback would take the GIL in FFmpeg's threads, while whoever
    closes a decoder holds the GIL and waits for these threads (PyAV 18.1; seen as a hang).
    """
    global _printed
    level = av.logging.get_level()
    _printed = True
    av.logging.set_libav_level(av.logging.WARNING)
    av.logging.restore_default_callback()
    try:
        yield
    finally:
        _printed = False
        av.logging.set_level(level)


@contextlib.contextmanager
def captured() -> Iterator[list[tuple[int, str, str]]]:
    """Collect what FFmpeg logs in this thread as (level, component, text).

    An error of FFmpeg that is raised meanwhile holds its log message, too. Not for use while a
    decoder runs, which could hang as described in `printed`: use it after an error, or where only
    the log has the answer. What FFmpeg's other threads log meanwhile is dropped.
    """
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    # FFmpeg would leave out a message that equals the last one, such as that of the file before.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(local=False), av.logging.Capture() as logs:
            yield logs
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)
        if _printed:
            av.logging.restore_default_callback()
