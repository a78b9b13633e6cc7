"""Write a file under a temporary name, flush it to the disk, and rename it when it is whole.

Several processes may write into one folder. Each uses its own temporary names, none replaces a file
that another has finished, and each removes the temporary files of processes that have died.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import getpass
import hashlib
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from .errors import OutputError, OutputExistsError, OutputInUseError
from .remote import RemotePath, copy_out, is_remote
from .wording import printable

if sys.platform != "win32":
    import fcntl

PathLike: TypeAlias = str | os.PathLike[str]
"""A path as a Python caller may pass it."""

LONGEST_NAME = 255
"""Bytes of a name on most file systems."""


def exists(path: Path) -> bool:
    """Return whether there is something under this name, be it a link that leads nowhere.

    Raises OutputError for a store that does not answer.
    """
    if not is_remote(path):
        return os.path.lexists(path)
    try:
        return path.exists()
    except OSError as error:
        raise output_error(path, error) from error


def size_of(path: Path) -> int | None:
    """Return the bytes of a file or an object, None where there is none or none can be read.

    A job may have a million of them. Raises OSError for a store that does not answer.
    """
    try:
        if isinstance(path, RemotePath):
            return path.stat().st_size
    except FileNotFoundError:
        return None
    try:
        return os.stat(path).st_size  # noqa: PTH116 - quick
    except (OSError, ValueError):
        return None


def temporary_path(final: Path) -> Path:
    """Return the hidden path, in the same folder, where this process writes ``final``.

    That of an object of a store lies in the `scratch_folder`; `publish` puts it from there.

    The name is made of hashes of the final name and of the process, so that it is short enough even
    where the final name has 255 bytes. The first call for a folder removes the temporary files that
    dead processes left in it.
    """
    folder = scratch_folder() if is_remote(final) else final.parent
    _remove_leftovers(folder)
    return folder / f".{_digest(final)}-{_machine()}-{_own_process(os.getpid())}.partial"


def scratch_folder() -> Path:
    """Return this user's folder for what is written here before it is put into a store.

    It lies where the system has its temporary files (``TMPDIR``). Raises OutputError.
    """
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir()) / f"cyclegan-batch-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise output_error(folder, error) from error
    # The folder of temporary files is everybody's: another user may have made this one.
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != getattr(os, "getuid", int)():
        raise OutputError(
            f"cannot write into {printable(folder)}: it is not this user's; set TMPDIR to a folder "
            "of your own"
        )
    return folder


class OutputLock:
    """The right to write one output, held by one process at a time until it is released.

    The system releases the lock when the process ends, however it ends, so a lock file that is left
    over locks nothing. On a file system without locks every process gets the right; their temporary
    names differ there, and the file of the first one to finish stays.
    """

    def __init__(self, final: Path, *, name: str | None = None) -> None:
        """Take the lock. Raises OutputInUseError, which names the holder, and OutputError.

        ``name``: what messages call the output, where that is not the file.
        """
        self._path = final.with_name(f".{_digest(final)}-lock.partial")
        self._descriptor: int | None = None
        if is_remote(final):
            return  # a store has no locks
        try:
            # Another process may hold the lock for a moment, in _remove_leftovers.
            for pause in (0.02, 0.1, None):
                if self._try_to_take():
                    return
                if pause is not None:
                    time.sleep(pause)
        except OSError as error:
            self.release()  # the empty lock file exists even where the disk is full
            raise output_error(final, error) from error
        holder = ""
        with contextlib.suppress(OSError):
            holder = self._path.read_text(errors="replace").strip()
        process = printable(holder or "another process")
        raise OutputInUseError(
            f"cannot write {name or printable(final)}: {process} is writing it; "
            "wait until that has ended, or choose another output",
            final,
        )

    def release(self) -> None:
        """Release the lock. May be called again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
            os.close(descriptor)

    def _try_to_take(self) -> bool:
        """Try once to take the lock; True also on a file system without locks. Raises OSError."""
        descriptor = _open_locked(self._path, os.O_CREAT)
        if descriptor is None:
            return False
        self._descriptor = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        return True


def _open_locked(path: Path, flags: int = 0) -> int | None:
    """Return a descriptor of ``path`` that holds its lock, None where another process holds it.

    Raises OSError.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | flags, 0o666)
        try:
            if sys.platform != "win32":
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = path.stat()
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            status = None
        except OSError:
            return descriptor  # a file system without locks
        # The previous holder may have removed the file after it was opened here.
        if status is not None and os.path.samestat(status, os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def writing(final: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield the temporary path of ``final``, and `publish` it where the block raises nothing.

    The folder of ``final`` must exist when the block ends. No temporary file is left in any case.
    Raises OutputError, also for an OSError of the block, and OutputExistsError where ``final``
    exists and ``overwrite`` is false.
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
    if exists(final):
        raise _exists(final)


def _exists(final: Path) -> OutputExistsError:
    return OutputExistsError(
        f"cannot write {printable(final)}: it exists already; pass -y to overwrite or -n to skip"
    )


def publish(partial: Path, final: Path, *, overwrite: bool) -> None:
    """Flush ``partial`` to the disk and rename it to ``final`` atomically.

    Raises OutputError, and OutputExistsError where ``final`` exists and ``overwrite`` is false;
    ``partial`` stays then. A ``final`` in a store is put from ``partial``, which is removed.
    """
    (error,) = publish_all([(partial, final)], overwrite=overwrite)
    if error is not None:
        raise error


def publish_all(
    pairs: Sequence[tuple[Path, Path]], *, overwrite: bool
) -> tuple[OutputError | None, ...]:
    """`publish` each partial and final path of ``pairs``; return what it would raise, or None.

    All files are flushed side by side, then all are renamed, then each folder is flushed once.
    """

    def flush(share: slice) -> list[OutputError | None]:
        return [_attempt(final, _flushing(partial, final)) for partial, final in pairs[share]]

    def _flushing(partial: Path, final: Path) -> Callable[[], None]:
        if is_remote(final):
            return functools.partial(_put, partial, final, overwrite=overwrite)
        return functools.partial(_flush, partial)

    # One file system call for all, syncfs, would also wait for the files of other processes, and
    # would not report which file could not be written.
    errors: list[OutputError | None] = [None] * len(pairs)
    shares = [slice(first, None, _FLUSHES) for first in range(min(_FLUSHES, len(pairs)))]
    if len(pairs) > 1:
        with ThreadPoolExecutor(len(shares), "flush") as pool:
            for share, results in zip(shares, pool.map(flush, shares), strict=True):
                errors[share] = results
    elif pairs:
        errors = flush(shares[0])
    rename = _rename_over if overwrite else _rename_to_new
    local = [(number, *pair) for number, pair in enumerate(pairs) if not is_remote(pair[1])]
    for number, partial, final in local:
        errors[number] = errors[number] or _attempt(
            final, functools.partial(rename, partial, final)
        )
    flush_folder = functools.cache(_flush_folder)
    for number, _, final in local:
        errors[number] = errors[number] or _attempt(
            final,
            functools.partial(flush_folder, os.path.dirname(final)),  # noqa: PTH120 - quick
        )
    return tuple(errors)


_FLUSHES = 16
"""Files that are flushed at once, so that a file system commits several in one transaction."""


def _attempt(final: Path, action: Callable[[], None]) -> OutputError | None:
    """Call ``action`` and return its error, as one of writing ``final``."""
    try:
        action()
    except OSError as error:
        return publishing_error(final, error)
    return None


def publishing_error(final: Path, error: OSError) -> OutputError:
    """Return ``error``, which kept ``final`` from getting its name, as an OutputError."""
    is_there = isinstance(error, FileExistsError)
    problem = _exists(final) if is_there else output_error(final, error)
    problem.__cause__ = error
    return problem


def _flush(path: Path) -> None:
    """Flush a file to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(partial: Path, final: Path, *, overwrite: bool) -> None:
    """Put a file into a store, and remove it here. Raises OSError."""
    copy_out(partial, final, overwrite=overwrite)
    partial.unlink()


def output_error(path: Path, error: OSError) -> OutputError:
    """Return ``error`` as an OutputError that names ``path`` and a remedy."""
    number = error.errno or 0
    if number == errno.EEXIST and not exists(path):
        number = errno.ENOTDIR  # a file stands where the folder should be
    reason, remedy = _REASONS.get(number, (error.strerror or str(error), "check the output folder"))
    if is_remote(path):
        reason = error.strerror or str(error)
        remedy = _REMEDIES_OF_STORES.get(number, "check the URL, and run the same command again")
    return OutputError(f"cannot write {printable(path)}: {reason}; {remedy}")


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
"""Reason and remedy by errno."""

_REMEDIES_OF_STORES = {
    errno.ENODEV: "check the URL, or create the bucket",
    errno.EHOSTUNREACH: "run the same command again when it does",
    errno.ENOSPC: "free some space and run the same command again",
    errno.EACCES: "use credentials that may write there",
    errno.EEXIST: "pass -y to overwrite or -n to skip",
    errno.ENAMETOOLONG: "choose a shorter name",
}
"""Remedy by errno, where the store itself has told the reason."""


def _rename_over(partial: Path, final: Path) -> None:
    """Rename ``partial``, over an existing file where there is one. Raises OSError."""
    try:
        partial.replace(final)
    except FileExistsError:
        # Some network file systems rename to free names only. Where the process dies between the
        # two, the output is missing, and a job makes it again.
        final.unlink()
        partial.rename(final)


def _rename_to_new(partial: Path, final: Path) -> None:
    """Rename ``partial``, but never over an existing file. Raises FileExistsError."""
    try:
        # A hard link is the only portable operation that fails where the name exists.
        os.link(partial, final)
    except FileExistsError:
        raise
    except OSError:
        # File systems without hard links (FAT, some network shares): check, then rename.
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, "file exists", str(final)) from None
        partial.rename(final)
    else:
        partial.unlink()


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it, or all objects beneath a prefix, as far as it goes."""
    if not isinstance(folder, RemotePath):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        for name in folder.beneath():
            (folder / name).unlink(missing_ok=True)


# The names of temporary files, and the removal of those that are left over


def _digest(final: Path) -> str:
    # Those of all folders of a store are written into one.
    name = str(final) if is_remote(final) else final.name
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


@functools.cache
def _machine() -> str:
    """Return a hash of this boot of this host or container: the scope of our process numbers."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))  # noqa: PTH115 - text, not a file
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _process(number: int) -> str:
    """Return ``number`` and the start time of that process.

    Instead of the time stand 0 where the system has no /proc, and ``ended`` for a zombie.
    """
    try:
        status = Path(f"/proc/{number}/stat").read_bytes()
    except OSError:
        return f"{number}-0"
    # The start time tells processes of one number apart. It is field 22 (proc_pid_stat(5)), the
    # state is field 3; the name in parentheses, field 2, may contain anything.
    state, *others = status.rpartition(b")")[2].split()
    if state in (b"Z", b"X"):
        return f"{number}-ended"  # killed, and its parent has not waited for it yet
    return f"{number}-{int(others[18])}"


@functools.cache
def _own_process(number: int) -> str:
    """Return `_process` of this process, which has ``number`` and starts no second time."""
    return _process(number)


_LEFTOVER = re.compile(
    r"\.[0-9a-f]{16}-(?:lock|([0-9a-f]{8})-(([0-9]+)-[0-9]+)(?:-[0-9]+)?)\.partial"
)
"""Matches a lock, or a temporary file: groups 1 to 3 are the machine, the process, its number."""

_DAY = 86400.0
"""Seconds without a write after which a temporary file of another machine is left over."""

_CLEANED: set[str] = set()
"""The folders in which this process has removed leftovers."""


def _remove_leftovers(folder: Path) -> None:
    """`remove_leftovers` of a folder, once for each folder."""
    name = os.path.abspath(folder)  # noqa: PTH100 - text: a job may have a million files
    if name not in _CLEANED and remove_leftovers(folder):
        _CLEANED.add(name)


def remove_leftovers(folder: Path) -> bool:
    """Remove the temporary files and locks of dead processes; return whether the folder exists.

    Those of a store are here, in the `scratch_folder`.
    """
    if is_remote(folder):
        folder = scratch_folder()
    try:
        with os.scandir(folder) as entries:
            candidates = [
                (entry, match) for entry in entries if (match := _LEFTOVER.fullmatch(entry.name))
            ]
    except OSError:
        return False  # it does not exist yet, or the first write in it reports what is wrong
    for entry, match in candidates:
        with contextlib.suppress(OSError):
            path = Path(entry.path)
            if match[1] is None:
                descriptor = _open_locked(path)
                if descriptor is not None:
                    path.unlink(missing_ok=True)
                    os.close(descriptor)
            elif _is_dead(match[1], match[2], int(match[3]), entry):
                shutil.rmtree(path) if entry.is_dir(follow_symlinks=False) else path.unlink()
    return True


def _is_dead(machine: str, process: str, number: int, entry: os.DirEntry[str]) -> bool:
    """Return whether the process that wrote ``entry`` has ended, as far as can be found out."""
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
    # A process of this number runs. Where its start time can be read, it is a different process.
    return not _process(number).endswith("-0")


def _flush_folder(folder: str) -> None:
    """Flush a folder, so that a rename in it survives a power cut, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Some network file systems refuse to flush a folder.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
