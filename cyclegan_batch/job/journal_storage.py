"""Where the lines of a journal lie: in a file that is appended to, or in objects of a store.

A store appends to no object. There the name of a journal is a prefix, beneath which it lies in an
object for each unit, which is put anew as a whole when there is more to tell, and in one for the
beginning and one for the end of each run. The names of the objects, ``RUN-NUMBER.jsonl``, sort in
the order in which they are to be read. A run that ends whole puts one object in place of all.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from ..errors import InputError
from ..files import temporary_path
from ..media.ahead import ahead
from ..remote import RemotePath, is_remote
from ..wording import printable
from .job_folder import JOURNALS, mark_as_open
from .journal_lines import Json

Line: TypeAlias = "dict[str, Json]"

_LONGEST_LINE = 8 << 20
"""Bytes of a line that is read. Those that a journal writes stay below a tenth of it."""

_SMALL = 4 << 20
"""Bytes of an object up to which it is read by one request, and held in the memory."""

_PUT_AFTER = 10.0
"""Seconds after which an object is put though its unit has not ended, for others to see."""

_FULL = 1 << 20
"""Bytes of an object to which nothing is added: it would be put again and again as a whole."""

_OBJECT = re.compile(rf"([0-9]{{13}})[0-9a-f]{{8}}-[0-9]{{8}}{re.escape(JOURNALS)}")
"""The name of an object: the run, which begins with milliseconds since 1970, and its number."""


class Storage(Protocol):
    """The lines of one journal, for one run. It is not safe for threads.

    Each method but `close` raises OSError where the journal cannot be read or written.
    """

    run: str
    """The name of this run in its lines."""

    def append(self, data: bytes, about: object, *, flush: bool) -> None:
        """Append whole lines by one write.

        ``about`` is the unit that they tell of, None for the run itself. ``flush``: they are to
        survive whatever happens after the call.
        """

    def settle(self, about: object = None) -> None:
        """Take that nothing more will be told about a unit; by default about any."""

    def read(self) -> Iterator[tuple[Path, Line]]:
        """Yield all lines of the journal as `lines_of` does."""

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Put ``lines`` in place of what `read` has found. Where that fails, all stays."""

    def close(self) -> None:
        """Release the journal."""


def open_storage(journal: Path) -> Storage:
    """Open the journal of this name for a new run. Raises OSError."""
    return _Objects(journal) if isinstance(journal, RemotePath) else _File(journal)


class _File:
    """A journal on a disk."""

    def __init__(self, path: Path) -> None:
        self.run = secrets.token_hex(4)
        self._path = path
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor = os.open(path, flags, 0o666)
        try:
            mark_as_open(self._descriptor)
            # The last line of a run that was cut off may lack its end.
            length = os.fstat(self._descriptor).st_size
            if length and os.pread(self._descriptor, 1, length - 1) != b"\n":
                os.write(self._descriptor, b"\n")
        except BaseException:
            self.close()
            raise

    def append(self, data: bytes, about: object, *, flush: bool) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]
        if flush:
            os.fsync(self._descriptor)

    def settle(self, about: object = None) -> None:
        """Do nothing: every line is in the file already."""

    def read(self) -> Iterator[tuple[Path, Line]]:
        return lines_of([self._path])

    def rewrite(self, lines: Iterable[bytes]) -> None:
        # Not files.writing, which removes the old file where the file system cannot rename over it:
        # a process that died then would leave no journal. It stays, longer and as true.
        partial = temporary_path(self._path)
        try:
            with partial.open("wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(eq=False)
class _Object:
    """An object of this run that may be put again."""

    number: int
    about: object
    """Kept, so that nothing else gets its `id`."""
    data: bytearray = field(default_factory=bytearray)
    changed: float | None = None
    """When it got the first line that is not in the store, by `time.monotonic`."""


class _Objects:
    """A journal on a store."""

    def __init__(self, journal: RemotePath) -> None:
        self._journal = journal
        # Its name comes behind those of all runs before it, whatever the clocks of their machines.
        matches = (_OBJECT.fullmatch(each.name) for each in journal_files(journal.parent))
        latest = max((int(match[1]) for match in matches if match), default=0)
        now = time.time_ns() // 1_000_000
        self.run = f"{max(now, latest + 1):013}{secrets.token_hex(4)}"
        self._count = 0
        self._objects: dict[int, _Object] = {}
        """Those that are not settled, by the `id` of what they are about."""
        self._found: list[RemotePath] = []
        """What `read` has read."""

    def append(self, data: bytes, about: object, *, flush: bool) -> None:
        if about is None:
            self.settle()
        each = self._objects.get(id(about))
        if each is None:
            each = self._objects[id(about)] = _Object(self._next_number(), about)
        each.data += data
        each.changed = each.changed or time.monotonic()
        if flush:
            self._put(each)
        if about is None:
            self.settle()
        elif len(each.data) >= _FULL:
            self.settle(about)
        for other in self._objects.values():
            if other.changed is not None and time.monotonic() - other.changed > _PUT_AFTER:
                self._put(other)

    def settle(self, about: object = None) -> None:
        for key in list(self._objects) if about is None else [id(about)]:
            each = self._objects.pop(key, None)
            if each is not None and each.changed is not None:
                self._put(each)

    def read(self) -> Iterator[tuple[Path, Line]]:
        files = journal_files(self._journal.parent)
        self._found = [
            each for each in files if isinstance(each, RemotePath) and each.parent == self._journal
        ]
        return lines_of(self._found)

    def rewrite(self, lines: Iterable[bytes]) -> None:
        try:
            with self._path(self._next_number()).open("wb") as file:
                file.writelines(lines)
        except OSError:
            return
        # In their order: what is left of them after a kill is overridden as before.
        with contextlib.suppress(OSError):
            for _ in ahead(functools.partial(RemotePath.unlink, missing_ok=True), self._found):
                pass

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _next_number(self) -> int:
        self._count += 1
        return self._count - 1

    def _path(self, number: int) -> Path:
        return self._journal / f"{self.run}-{number:08}{JOURNALS}"

    def _put(self, each: _Object) -> None:
        self._path(each.number).write_bytes(each.data)
        each.changed = None


# Reading


def journal_files(folder: Path) -> list[Path]:
    """Return the files, or objects, of all journals in a job folder; none where it is missing.

    Raises OSError for a store that does not answer.
    """
    if isinstance(folder, RemotePath):
        return [
            folder / name
            for name in folder.beneath()
            if len(name.parts) == 2
            and name.parts[0].endswith(JOURNALS)
            and _OBJECT.fullmatch(name.name)
        ]
    try:
        with os.scandir(folder) as entries:
            return [
                folder / entry.name
                for entry in entries
                if entry.name.endswith(JOURNALS) and entry.is_file(follow_symlinks=False)
            ]
    except OSError:
        return []


def journal_of(file: Path) -> Path:
    """Return the journal that a file or an object belongs to, by its name in the job folder."""
    return file.parent if is_remote(file) else file


def lines_of(files: Sequence[Path]) -> Iterator[tuple[Path, Line]]:
    """Yield each line of several journals with its journal, in the order in which to read them.

    A file that cannot be read tells nothing. An object that cannot be read raises InputError, and
    FileNotFoundError where it is not there any more, as another run has put one in place of all.
    """
    if any(map(is_remote, files)):
        yield from _lines_of_objects(sorted(files, key=lambda path: path.name))
        return
    # By the clock, which may have been set: then of an output that two journals tell of, the older
    # line is taken, and its identity or its size will not match.
    for file in sorted(files, key=_modified):
        with contextlib.suppress(OSError), file.open("rb") as opened:
            for line in _lines(opened):
                yield file, line


def _lines_of_objects(objects: Sequence[Path]) -> Iterator[tuple[Path, Line]]:
    try:
        for file, content in _contents(objects):
            for line in _lines(content):
                yield journal_of(file), line
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(
            f"{printable(str(error.filename))}: cannot be read: {error.strerror or error}; what "
            "earlier runs have done is written there, so nothing is begun without it"
        ) from error


def _modified(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_mtime_ns, path.name
    except OSError:
        return 0, path.name


def _lines(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines of a file that are whole and hold a JSON object."""
    whole = True
    while line := file.readline(_LONGEST_LINE):
        begins, whole = whole, line.endswith(b"\n")
        if not (begins and whole):
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _contents(objects: Sequence[Path]) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield each object with its content; several are fetched ahead. Raises OSError."""

    def fetch(path: Path) -> bytes | None:
        return path.read_bytes() if path.stat().st_size <= _SMALL else None

    with contextlib.closing(ahead(fetch, objects)) as fetched:
        for path, data in fetched:
            with path.open("rb") if data is None else io.BytesIO(data) as content:
                yield path, content
