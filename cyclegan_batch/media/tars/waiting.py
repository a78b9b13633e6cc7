"""Bytes between the reader of a tar and its writer: in memory up to a bound, else on the disk."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .reading import CHUNK

IN_MEMORY = 64 << 20
"""Bytes that wait in memory at most."""


@dataclass(frozen=True)
class Held:
    """Bytes that wait to be written once."""

    size: int
    data: bytes | None
    """None where they lie on the disk."""
    offset: int = 0
    """Of those on the disk."""


class WaitingRoom:
    """Keeps bytes until they are written. Any thread may call it.

    What does not fit into memory goes into a file without a name, which the system removes when the
    process ends, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` is where that file lies; it exists by then."""
        self._folder = folder
        self._lock = threading.Lock()
        self._in_memory = 0
        self._spool: IO[bytes] | None = None
        self._end = self._spooled = 0
        """Of the file: where the next bytes go, and how many of its bytes are still needed."""
        self.largest = 0
        """The most bytes that waited in memory at once."""

    def put(self, data: bytes) -> Held:
        """Keep ``data``. Raises OSError."""
        with self._lock:
            if self._in_memory + len(data) <= IN_MEMORY:
                self._in_memory += len(data)
                self.largest = max(self.largest, self._in_memory)
                return Held(len(data), data)
        pieces = iter((data, b""))
        return self.fetch(len(data), lambda count: next(pieces))

    def fetch(self, size: int, read: Callable[[int], bytes]) -> Held:
        """Keep on the disk ``size`` bytes, which ``read`` returns piece by piece.

        Raises OSError, and what ``read`` raises.
        """
        with self._lock:
            if self._spool is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._spool = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            offset = self._end
            self._end += size
            self._spooled += size
        at, end = offset, offset + size
        while at < end:
            piece = read(CHUNK)
            with self._lock:
                # The file may have been closed meanwhile, and its number be that of another one.
                if self._spool is None:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                while piece:
                    done = os.pwrite(self._spool.fileno(), piece, at)
                    piece, at = piece[done:], at + done
        return Held(size, None, offset)

    def take(self, held: Held, write: Callable[[bytes], None]) -> None:
        """Pass the bytes to ``write`` and forget them. Raises OSError."""
        if held.data is not None:
            write(held.data)
        else:
            assert self._spool is not None
            at, end = held.offset, held.offset + held.size
            while at < end:
                piece = os.pread(self._spool.fileno(), min(CHUNK, end - at), at)
                if not piece:
                    raise OSError("the temporary file of this process was cut off")
                write(piece)
                at += len(piece)
        self.forget(held)

    def forget(self, held: Held) -> None:
        """Forget bytes that are not going to be written."""
        with self._lock:
            if held.data is not None:
                self._in_memory -= held.size
                return
            self._spooled -= held.size
            if not self._spooled and self._spool is not None:
                self._end = 0
                self._spool.truncate(0)

    def close(self) -> None:
        """Forget everything. May be called again."""
        with self._lock:
            spool, self._spool = self._spool, None
            if spool is not None:
                spool.close()
