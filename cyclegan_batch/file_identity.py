"""What tells one state of a file from another: its size and time, or its content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .remote import RemotePath


@dataclass(frozen=True)
class FileIdentity:
    """The state in which a file was read. A job that is run again compares it with the file's."""

    size: int
    """Bytes; of several files their sum."""
    mtime_ns: int
    """When it was last modified, in nanoseconds since 1970; of several files the latest."""
    sha256: str | None = None
    """Of its content (``--hash-inputs``), in hexadecimal; of several files that of their digests,
    a line each."""

    def matches(self, earlier: FileIdentity) -> bool:
        """Return whether the file is as it was ``earlier``.

        Where both have a digest of the content, the time of modification does not count.
        """
        if self.sha256 is not None and earlier.sha256 is not None:
            return self.sha256 == earlier.sha256
        return (self.size, self.mtime_ns) == (earlier.size, earlier.mtime_ns)


def identity_of(paths: Iterable[Path], *, hashed: bool, asked: bool = False) -> FileIdentity:
    """Return the identity of one file, or of several that are one input. Raises OSError.

    ``hashed``: read their content, too. ``asked``: ask a store also for what it has listed.
    """
    size = 0
    times = []
    digests = []
    for path in paths:
        status = path.ask() if asked and isinstance(path, RemotePath) else path.stat()
        size += status.st_size
        times.append(status.st_mtime_ns)
        if hashed:
            digests.append(sha256_of(path))
    if len(digests) > 1:
        digests = [hashlib.sha256("\n".join(digests).encode()).hexdigest()]
    return FileIdentity(size, max(times, default=0), digests[0] if digests else None)


def identity_of_status(status: os.stat_result) -> FileIdentity:
    """Return the identity of a file or an object by its size and time."""
    return FileIdentity(status.st_size, status.st_mtime_ns)


def identity_of_data(data: bytes, mtime_ns: int, *, hashed: bool) -> FileIdentity:
    """Return the identity of a file that was read into memory; ``mtime_ns`` is its time then."""
    digest = hashlib.sha256(data).hexdigest() if hashed else None
    return FileIdentity(len(data), mtime_ns, digest)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
