"""What FFmpeg says of its own accord: PyAV drops it, unless one of these two is in force."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import av.logging

_printed = False


@contextlib.contextmanager
def printed() -> Iterator[None]:
    """Let FFmpeg print its warnings and errors to standard error, as its own programs do.

    It does so in C. PyAV's callback would take the GIL in FFmpeg's threads, and whoever closes a
    decoder holds the GIL while it waits for them (PyAV 18.1; seen as a hang).
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
    """Give what FFmpeg logs in this thread as (level, who, text), and let its errors carry it.

    Never while a decoder is at work, and so only where something went wrong or has to be known: see
    `printed`. What its own threads log meanwhile is dropped.
    """
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.WARNING)
    # The next file of a folder has the same complaint.
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture(local=False), av.logging.Capture() as logs:
            yield logs
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)
        if _printed:
            av.logging.restore_default_callback()
