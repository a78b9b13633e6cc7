"""A file for FFmpeg that is put together of parts of another file and of given bytes."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, TypeAlias

Parts: TypeAlias = tuple[tuple[int, int] | bytes, ...]
"""Each the first offset and the one behind the last, or bytes that stand there instead."""


class SplicedFile(io.RawIOBase):
    """Parts of a file, one after the other, as one file for FFmpeg."""

    def __init__(self, file: BinaryIO, parts: Parts) -> None:
        """``file`` is closed with this one."""
        self._file = file
        self._parts = parts
        self._length = sum(map(_length, parts))
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to ``offset`` from ``whence``, and return the position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes; fewer at the end of each part."""
        before = 0
        for part in self._parts:
            length = _length(part)
            if self._position < before + length:
                within = self._position - before
                count = length - within if size < 0 else min(size, length - within)
                data = self._bytes(part, within, count)
                self._position += len(data)
                return data
            before += length
        return b""

    def _bytes(self, part: tuple[int, int] | bytes, within: int, count: int) -> bytes:
        if isinstance(part, bytes):
            return part[within : within + count]
        self._file.seek(part[0] + within)
        return self._file.read(count)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _length(part: tuple[int, int] | bytes) -> int:
    return len(part) if isinstance(part, bytes) else part[1] - part[0]
