"""Read FLV files that were joined with cat as one file.

FFmpeg takes the header of the second file for a tag of 5 MB and skips it, with everything that
those bytes hold. Without that header the file goes on with the tags of the second file.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import struct
from functools import lru_cache
from pathlib import Path

_HEADER = re.compile(rb"FLV\x01[\x00\x01\x04\x05]\x00\x00\x00\x09\x00\x00\x00\x00")
"""Signature, version, flags of the streams, the header's size, and the size of the tag before the
first, which is 0 (Adobe Flash Video File Format Specification 10.1, annex E.2 and E.3)."""
_HEADER_SIZE = 13
_TAG_TYPES = (8, 9, 18)
"""Audio, video, script."""


def joined_flv(path: Path) -> io.RawIOBase | None:
    """Open ``path`` without its inner headers where it is several FLV files, else return None.

    Raises OSError.
    """
    status = path.stat()
    headers = _inner_headers(path, status.st_size, status.st_mtime_ns)
    return _WithoutHeaders(path, status.st_size, headers) if headers else None


@lru_cache(maxsize=64)
def _inner_headers(path: Path, size: int, mtime_ns: int) -> tuple[int, ...]:
    """Return the offsets of the headers of the second file and those after it."""
    with path.open("rb") as file:
        if not _HEADER.match(file.read(_HEADER_SIZE)):
            return ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            offsets = [match.start() for match in _HEADER.finditer(content, _HEADER_SIZE)]
            return tuple(offset for offset in offsets if _follows_a_tag(content, offset))


def _follows_a_tag(content: mmap.mmap, offset: int) -> bool:
    """Return whether a complete tag ends at ``offset``: video data may look like a header."""
    length: int = struct.unpack_from(">I", content, offset - 4)[0]
    start = offset - 4 - length
    if start < _HEADER_SIZE or content[start] & 0x1F not in _TAG_TYPES:
        return False
    return int.from_bytes(content[start + 1 : start + 4], "big") + 11 == length


class _WithoutHeaders(io.RawIOBase):
    """A file for FFmpeg from which the bytes of some headers are left out."""

    def __init__(self, path: Path, size: int, headers: tuple[int, ...]) -> None:
        self._file = path.open("rb")
        starts = (0, *(header + _HEADER_SIZE for header in headers))
        self._parts = list(zip(starts, (*headers, size), strict=True))
        self._length = sum(end - start for start, end in self._parts)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes; fewer at the end of each of the joined files."""
        before = 0
        for start, end in self._parts:
            if self._position < before + end - start:
                self._file.seek(start + self._position - before)
                left = before + end - start - self._position
                data = self._file.read(left if size < 0 else min(size, left))
                self._position += len(data)
                return data
            before += end - start
        return b""

    def close(self) -> None:
        self._file.close()
        super().close()
