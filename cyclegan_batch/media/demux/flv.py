"""Read FLV files that were joined with cat as one file.

FFmpeg takes the header of the second file for a tag of 5 MB and skips it, with everything that
those bytes hold. Without that header the file goes on with the tags of the second file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from .spliced import Parts

_HEADER = re.compile(rb"FLV\x01[\x00\x01\x04\x05]\x00\x00\x00\x09\x00\x00\x00\x00")
"""Signature, version, flags of the streams, the header's size, and the size of the tag before the
first, which is 0 (Adobe Flash Video File Format Specification 10.1, annex E.2 and E.3)."""
_HEADER_SIZE = 13
_TAG_TYPES = (8, 9, 18)
"""Audio, video, script."""
_PIECE = 2**20
"""Bytes that are searched at once."""


def flv_parts(path: Path, file: BinaryIO, size: int) -> Parts | None:
    """Return the open file of ``size`` bytes without its inner headers where it is several FLVs.

    None where it is one, or no FLV. Raises OSError.
    """
    file.seek(0)
    if not _HEADER.match(file.read(_HEADER_SIZE)):
        return None
    headers = _inner_headers(path, size, path.stat().st_mtime_ns)
    starts = (0, *(header + _HEADER_SIZE for header in headers))
    return tuple(zip(starts, (*headers, size), strict=True)) if headers else None


@lru_cache(maxsize=64)
def _inner_headers(path: Path, size: int, mtime_ns: int) -> tuple[int, ...]:
    """Return the offsets of the headers of the second file and those after it."""
    with path.open("rb") as file:
        return tuple(offset for offset in [*_headers(file)] if _follows_a_tag(file, offset))


def _headers(file: BinaryIO) -> Iterator[int]:
    """Yield the offsets of all that looks like a header, but for the first."""
    at = file.seek(_HEADER_SIZE)
    content = b""
    while data := file.read(_PIECE):
        content += data
        yield from (at + match.start() for match in _HEADER.finditer(content))
        # A header may lie across two pieces.
        kept = content[-(_HEADER_SIZE - 1) :]
        at, content = at + len(content) - len(kept), kept


def _follows_a_tag(file: BinaryIO, offset: int) -> bool:
    """Return whether a complete tag ends at ``offset``: video data may look like a header."""
    file.seek(offset - 4)
    length = int.from_bytes(file.read(4), "big")
    start = offset - 4 - length
    if start < _HEADER_SIZE:
        return False
    file.seek(start)
    tag = file.read(4)
    return tag[0] & 0x1F in _TAG_TYPES and int.from_bytes(tag[1:], "big") + 11 == length
