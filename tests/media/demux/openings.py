"""How often a file is opened, by whatever program."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from tests.needs import need


class Openings:
    """Count by inotify how often a file is opened."""

    def __init__(self, path: Path) -> None:
        # inotify exists on Linux only.
        need("linux")
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0
        watch = libc.inotify_add_watch(self._descriptor, os.fsencode(path), 0x20)  # IN_OPEN
        assert watch >= 0

    def count(self) -> int:
        try:
            events = os.read(self._descriptor, 4096)
        except BlockingIOError:
            events = b""
        finally:
            os.close(self._descriptor)
        return len(events) // struct.calcsize("iIII")
