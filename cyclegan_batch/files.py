"""Give a file its name when it is whole: a temporary name first, then a flush, then a rename.

Several processes may write into one folder: each has temporary names of its own, none replaces what
another has finished, and what a process that has died left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from .errors import OutputError, OutputExistsError, OutputInUseError
from .wording import printable

if sys.platform != "win32":
    import fcntl

PathLike: TypeAlias = str | os.PathLike[str]
"""A path as a Python caller may give it."""


def temporary_path(final: Path) -> Path:
    """Return where this process writes ``final`` until it is whole: hidden, in the same folder.

    The name follows from the final one and from the process; its length does not, so that a name
    of 255 bytes has a temporary one too. The first call for a folder removes what processes that
    have died left in it.
    """
    _remove_leftovers(final.parent)
    return final.with_name(f".{_digest(final)}-{_machine()}-{_process(os.getpid())}.partial")


class OutputLock:
    """The right to write one output, held by one process at a time until it is released.

    The system releases it when the process ends, however it ends: a lock that is left over counts
    for nothing. Where the file system knows no locks there is none; temporary names keep two
    processes apart there, and the first to finish is the one whose file stays.
    """

    def __init__(self, final: Path) -> None:
        """Take the lock. Raises OutputInUseError with its holder, OutputError."""
        self._path = final.with_name(f".{_digest(final)}-lock.partial")
        self._descriptor: int | None = None
        try:
            # Another process looks for a moment whether a lock is left over; see _remove_leftovers.
            for pause in (0.02, 0.1, None):
                if self._taken():
                    return
                if pause is not None:
                    time.sleep(pause)
        except OSError as error:
            self.release()  # a disk without room for a word takes the file all the same
            raise output_error(final, error) from error
        holder = ""
        with contextlib.suppress(OSError):
            holder = self._path.read_text(errors="replace").strip()
        raise OutputInUseError(
            f"cannot write {printable(final)}: {printable(Path(holder or 'another process'))} is "
            "writing it; wait until that has ended, or choose another output",
            final,
        )

    def release(self) -> None:
        """Give the lock back; twice is fine."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(descriptor)

    def _taken(self) -> bool:
        """Try once; True also where there are no locks. Raises OSError."""
        descriptor = _locked(self._path, os.O_CREAT)
        if descriptor is None:
            return False
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return True


def _locked(path: Path, flags: int = 0) -> int | None:
    """Return a descriptor of ``path`` and the lock on it; None where another process holds it.

    Raises OSError.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | flags, 0o666)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = path.stat()
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            there = None
        except OSError:
            return descriptor  # a file system without locks
        # Whoever held it before may have removed the file since it was opened.
        if there is not None and os.path.samestat(there, os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def writing(final: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield the temporary path of ``final``, and `publish` it where the block ends well.

    The folder of ``final`` must exist. Whatever ends the block, no temporary file is left. Raises
    OutputError, also for an OSError of the block, and OutputExistsError where ``final`` exists and
    ``overwrite`` is false.
    """
    partial = temporary_path(final)
    try:
        yield partial
        publish(partial, final, overwrite=overwrite)
    except OSError as error:
        raise output_error(final, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def refuse_existing(final: Path) -> None:
    """Raise OutputExistsError where ``final`` exists."""
    if os.path.lexists(final):
        raise _exists(final)


def _exists(final: Path) -> OutputExistsError:
    return OutputExistsError(
        f"cannot write {printable(final)}: it exists already; pass -y to overwrite or -n to skip"
    )


def publish(partial: Path, final: Path, *, overwrite: bool) -> None:
    """Flush ``partial`` to the disk and rename it to ``final``, in one step for every onlooker.

    Raises OutputError, OutputExistsError where ``final`` exists and ``overwrite`` is false;
    ``partial`` stays.
    """
    try:
        descriptor = os.open(partial, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if overwrite:
            partial.replace(final)
        else:
            try:
                _rename_to_new(partial, final)
            except FileExistsError as error:
                raise _exists(final) from error
        _flush_folder(final.parent)
    except OSError as error:
        raise output_error(final, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """Return ``error`` as an OutputError about ``path`` that says what to do."""
    number = error.errno or 0
    if number == errno.EEXIST and not os.path.lexists(path):
        number = errno.ENOTDIR  # what exists is a file in the place of its folder
    found, remedy = _REASONS.get(number, (error.strerror or str(error), "check the output folder"))
    return OutputError(f"cannot write {printable(path)}: {found}; {remedy}")


_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EFBIG: ("the file system takes no file this large", "choose another output folder"),
    errno.EROFS: ("the file system is read-only", "choose another output folder"),
    errno.EACCES: ("permission denied", "choose a folder that you may write to"),
    errno.EPERM: ("operation not permitted", "choose a folder that you may write to"),
    errno.ENOENT: ("its folder does not exist", "create the folder first"),
    errno.ENOTDIR: ("its folder is a file", "choose another output folder"),
    errno.EISDIR: ("a folder has this name", "choose another output name"),
    errno.EEXIST: ("it exists already", "pass -y to overwrite or -n to skip"),
    errno.ENAMETOOLONG: ("the name is too long for the file system", "choose a shorter name"),
}
"""What was found, and what to do, by errno."""


def _rename_to_new(partial: Path, final: Path) -> None:
    """Rename, but never over an existing file. Raises FileExistsError."""
    try:
        # A hard link is the one portable way to take a name only if it is free.
        os.link(partial, final)
    except FileExistsError:
        raise
    except OSError:
        # File systems without hard links (FAT, some network shares): look first, then rename.
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, "file exists", str(final)) from None
        partial.rename(final)
    else:
        partial.unlink()


# Whose temporary names they are


def _digest(final: Path) -> str:
    return hashlib.sha256(os.fsencode(final.name)).hexdigest()[:16]


@functools.cache
def _machine() -> str:
    """Return a word for what shares our process numbers: this boot of this host or container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - text, not a file
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _process(number: int) -> str:
    """Return ``number`` and when that process started (0 where the system does not tell)."""
    try:
        status = Path(f"/proc/{number}/stat").read_bytes()
    except OSError:
        return f"{number}-0"
    # Numbers are used again. The name, in parentheses, may hold anything; the start is field 22
    # (proc_pid_stat(5)).
    return f"{number}-{int(status.rpartition(b')')[2].split()[19])}"


_LEFTOVER = re.compile(
    r"\.[0-9a-f]{16}-(?:lock|([0-9a-f]{8})-(([0-9]+)-[0-9]+)(?:-[0-9]+)?)\.partial"
)
"""A lock, or the machine, the process and its number, and perhaps one of its several files."""

_DAY = 86400.0
"""Seconds without a write after which a file of another machine counts as left over."""

_LOOKED_AT: set[str] = set()
"""The folders in which leftovers were removed."""


def _remove_leftovers(folder: Path) -> None:
    """Remove, once for each folder, what processes that have died left in it."""
    name = os.path.abspath(folder)  # noqa: PTH100 - text: a job may have a million files
    if name in _LOOKED_AT:
        return
    try:
        with os.scandir(folder) as entries:
            found = [
                (entry, match) for entry in entries if (match := _LEFTOVER.fullmatch(entry.name))
            ]
    except OSError:
        return  # not there yet, or for its first writer to complain about
    _LOOKED_AT.add(name)
    for entry, match in found:
        with contextlib.suppress(OSError):
            path = Path(entry.path)
            if match[1] is None:
                descriptor = _locked(path)
                if descriptor is not None:
                    path.unlink(missing_ok=True)
                    os.close(descriptor)
            elif _is_dead(match[1], match[2], int(match[3]), entry):
                shutil.rmtree(path) if entry.is_dir(follow_symlinks=False) else path.unlink()


def _is_dead(machine: str, process: str, number: int, entry: os.DirEntry[str]) -> bool:
    """Tell whether the process that made ``entry`` has ended, as far as that can be known."""
    if machine != _machine() or os.name != "posix":
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY
    if _process(number) == process:
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    # It lives, and is another process where its start can be read.
    return not _process(number).endswith("-0")


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets a folder be flushed."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some network file systems refuse to flush a folder; the rename holds all the same.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
