"""Read FLV files that were joined with cat as one file.

FFmpeg takes the header of the second file for a tag of 5 MB and skips it, with everything that
those bytes hold. Without that header the file goes on with the tags of the second file.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
from functools import lru_cache
from pathlib import Path

from .spliced import SplicedFile

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
    if not headers:
        return None
    starts = (0, *(header + _HEADER_SIZE for header in headers))
    return SplicedFile(path, tuple(zip(starts, (*headers, status.st_size), strict=True)))


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
