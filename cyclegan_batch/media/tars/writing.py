"""Write a tar as a stream: the same members give the same bytes."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from typing import BinaryIO, Literal

from .reading import BLOCK

_END = 2 * BLOCK
"""Bytes of the end mark; the whole file is padded to `tarfile.RECORDSIZE`, as by other writers."""


class TarWriter:
    """A tar that grows member by member."""

    def __init__(self, file: BinaryIO, *, gnu: bool) -> None:
        """``gnu``: long names in the format of GNU tar; else in that of pax."""
        self._file = file
        self._format: Literal[1, 2] = tarfile.GNU_FORMAT if gnu else tarfile.PAX_FORMAT
        self._digest = hashlib.sha256()
        self.bytes = 0
        """Written so far."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bytes written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def add(
        self, info: tarfile.TarInfo, content: Callable[[Callable[[bytes], None]], None]
    ) -> None:
        """Append a member; ``content`` passes its ``info.size`` bytes to its argument.

        Raises OSError.
        """
        self._write(info.tobuf(self._format, "utf-8", "surrogateescape"))
        begin = self.bytes
        content(self._write)
        assert self.bytes == begin + info.size
        self._write(bytes(-info.size % BLOCK))

    def finish(self) -> None:
        """Append the end mark. Raises OSError."""
        self._write(bytes(_END + -(self.bytes + _END) % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)
