"""FLV files that were joined with cat, read as one.

FFmpeg takes the header of the second file for a tag of 5 MB and steps over it, with all that comes
in these bytes. Without the header what follows is but more tags.
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
"""Signature, version, which streams there are, its own size, and the size of no tag before the
first (Adobe Flash Video File Format Specification 10.1, annex E.2 and E.3)."""
_TAGS = (8, 9, 18)
"""Sound, video, script."""


def joined_flv(path: Path) -> io.RawIOBase | None:
    """Open ``path`` without the headers within where it is several FLV files, else return None.

    Raises OSError.
    """
    status = path.stat()
    places = _headers_within(path, status.st_size, status.st_mtime_ns)
    return _WithoutHeaders(path, status.st_size, places) if places else None


@lru_cache(maxsize=64)
def _headers_within(path: Path, size: int, mtime_ns: int) -> tuple[int, ...]:
    """Return where the headers of the second file and those after it are."""
    with path.open("rb") as file:
        if not _HEADER.match(file.read(13)):
            return ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = [match.start() for match in _HEADER.finditer(content, 13)]
            return tuple(at for at in found if _follows_a_tag(content, at))


def _follows_a_tag(content: mmap.mmap, at: int) -> bool:
    """Say whether a whole tag ends at ``at``: picture data may look like a header."""
    length: int = struct.unpack_from(">I", content, at - 4)[0]
    start = at - 4 - length
    if start < 13 or content[start] & 0x1F not in _TAGS:
        return False
    return int.from_bytes(content[start + 1 : start + 4], "big") + 11 == length


class _WithoutHeaders(io.RawIOBase):
    """A file for FFmpeg in which the bytes of some headers are not."""

    def __init__(self, path: Path, size: int, places: tuple[int, ...]) -> None:
        self._file = path.open("rb")
        starts = (0, *(place + 13 for place in places))
        self._parts = list(zip(starts, (*places, size), strict=True))
        self._length = sum(end - start for start, end in self._parts)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes, which do not reach over the end of one file."""
        before = 0
        for start, end in self._parts:
            if self._at < before + end - start:
                self._file.seek(start + self._at - before)
                left = before + end - start - self._at
                data = self._file.read(left if size < 0 else min(size, left))
                self._at += len(data)
                return data
            before += end - start
        return b""

    def close(self) -> None:
        self._file.close()
        super().close()
