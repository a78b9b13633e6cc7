"""Image files in a store: their headers are read in ranges, many side by side."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO, cast

from ...errors import InputError
from ...frames import Size
from ...remote import RemotePath
from ...wording import printable
from ..ahead import ahead
from ..formats import Entry
from .headers import read_header

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_FIRST_RANGE = 64 << 10
"""Bytes; the headers of most images, with their metadata, have less."""

_LARGEST_RANGE = 8 << 20


def open_image(entry: Entry) -> BinaryIO:
    """Open the file of an image for reading its header; a large object is not read whole.

    Raises OSError.
    """
    if entry.status is None:
        return entry.source.open("rb")
    assert isinstance(entry.source, RemotePath)
    return cast(BinaryIO, io.BufferedReader(_Ranges(entry.source, entry.status.size)))


def displayed_sizes(entries: Iterable[Entry], *, max_pixels: int) -> list[Size]:
    """Return the height and width of each upright image; what cannot be read is left out."""

    def size_of(entry: Entry) -> Size | None:
        try:
            with open_image(entry) as file:
                header = read_header(file, printable(entry.source), max_pixels=max_pixels)
        except (InputError, OSError):
            return None
        return header.displayed_size

    entries = list(entries)
    if any(entry.status is not None for entry in entries):
        sizes = [size for _, size in ahead(size_of, entries)]
    else:
        sizes = list(map(size_of, entries))
    return [size for size in sizes if size is not None]


class _Ranges(io.RawIOBase):
    """An object of a known size. Each range that is read is twice as long as the one before.

    So a reader that jumps to the end of a file asks for little, and one that walks over all of it
    (the chunks of a PNG) does not ask often.
    """

    def __init__(self, path: RemotePath, size: int) -> None:
        self._path, self._size = path, size
        self._at = self._start = 0
        self._data = b""
        self._length = _FIRST_RANGE

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not self._start <= self._at < self._start + len(self._data):
            end = min(self._at + self._length, self._size)
            if self._at >= end:
                return 0
            self._start, self._data = self._at, self._path.read_range(self._at, end)
            self._length = min(2 * self._length, _LARGEST_RANGE)
        place = self._at - self._start
        part = self._data[place : place + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)
