"""Files that workers write under temporary names, and that get their names together.

To flush a file and its folder takes several times as long as to encode a small image. Many files
are flushed in little more time than one.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ...errors import OutputError
from ...files import output_error, publish_all, temporary_path

_What = TypeVar("_What")

_PUBLISHED_AFTER = 1.0
"""Seconds after which whole files get their final names before the unit ends: a process that is
killed while a slow network is at work loses no more than that."""


@dataclass(frozen=True)
class Partial(Generic[_What]):
    """A file that is whole under its temporary name."""

    path: Path
    final: Path
    what: _What
    """What the sink knows of it."""


class Lot(Generic[_What]):
    """The files of a unit that wait for their final names.

    Any worker may `write`; the other methods are called by one thread.
    """

    def __init__(self, overwrites: Callable[[Path], bool]) -> None:
        """Begin a lot; ``overwrites`` tells whether a file may replace one that exists."""
        self._overwrites = overwrites
        self._whole: list[Partial[_What]] = []
        """Files that wait, in order."""
        self._published = time.monotonic()
        """When files got their final names for the last time."""
        self._partials: set[Path] = set()
        """The temporary files that exist."""
        self._discarded = False
        self._lock = threading.Lock()
        """Guards the two above, which the workers change, too."""

    def write(self, final: Path, data: bytes, what: _What) -> Partial[_What]:
        """Write ``data`` under the temporary name of ``final``. Raises OutputError."""
        partial = temporary_path(final)
        with self._lock:
            self._partials.add(partial)
        try:
            try:
                partial.write_bytes(data)
            except FileNotFoundError:
                final.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(data)
        except OSError as error:
            self._remove(partial)
            raise output_error(final, error) from error
        with self._lock:
            late = self._discarded
        if late:
            self._remove(partial)
        return Partial(partial, final, what)

    def add(self, file: Partial[_What]) -> None:
        """Take the next file, in order."""
        self._whole.append(file)

    @property
    def is_due(self) -> bool:
        """Whether it is time to `publish`."""
        return time.monotonic() - self._published >= _PUBLISHED_AFTER

    def publish(self) -> list[tuple[_What, OutputError | None]]:
        """Give the files that were added their final names.

        Returns each with the error by which it is lost, in order but for those that may replace a
        file, which come last.
        """
        whole, self._whole = self._whole, []
        errors: list[OutputError | None] = []
        whole.sort(key=lambda each: self._overwrites(each.final))
        for overwrite, files in itertools.groupby(
            whole, key=lambda each: self._overwrites(each.final)
        ):
            errors += publish_all([(each.path, each.final) for each in files], overwrite=overwrite)
        for file, error in zip(whole, errors, strict=True):
            if error is None:
                with self._lock:
                    self._partials.discard(file.path)
            else:
                self._remove(file.path)
        self._published = time.monotonic()
        return [(file.what, error) for file, error in zip(whole, errors, strict=True)]

    def discard(self) -> None:
        """Remove all files that have temporary names, now and later."""
        with self._lock:
            self._discarded = True
            partials = list(self._partials)
        for partial in partials:
            self._remove(partial)

    def _remove(self, partial: Path) -> None:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        with self._lock:
            self._partials.discard(partial)
