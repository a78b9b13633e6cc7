"""The job folder beside the outputs: the names in it, and the lock on it.

It holds the journals, the stretches of videos that are not joined yet, and locks. What a run may
rely on there is little: that a file which it has written and flushed is still there afterwards.

- Without locks (some network file systems, `flock` fails) every run is let in. Two runs that write
  the same outputs then do the same work twice; each output is still written whole under a name of
  its own process, and renamed.
- Without a rename over an existing name, a journal keeps its length: it is not rewritten.
- Where several machines append to one file, lines may get lost or damaged (NFS has no atomic
  append). Each costs that its outputs are made again. Every part of ``--shard`` has a file of its
  own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import time
from pathlib import Path

from ..errors import OutputInUseError
from ..files import output_error
from ..remote import RemotePath, is_remote
from ..wording import printable

if sys.platform != "win32":
    import fcntl

FOLDER = ".cyclegan-batch"
"""The job folder's name. Hidden, so that it is never an input of another job."""

JOURNALS = ".jsonl"
"""How the names of journals end."""


def name_of(output: Path, root: Path) -> str:
    """Return an output's name in a journal: relative to the root, with ``/`` on every system."""
    # Text is faster than Path.relative_to; a job may have a million outputs.
    text, base = str(output), str(root)
    if base == ".":
        name = text
    elif text.startswith(base.rstrip(os.sep) + os.sep):
        name = text[len(base.rstrip(os.sep)) + 1 :]
    else:
        name = str(output.relative_to(root))
    return name if os.sep == "/" else name.replace(os.sep, "/")


def stretch_folders(folder: Path) -> set[str]:
    """Return the names of the folders in a job folder, each with the stretches of a video.

    Raises OSError for a store that does not answer.
    """
    if isinstance(folder, RemotePath):
        parts = (name.parts for name in folder.beneath())
        return {first for first, *others in parts if others and not first.endswith(JOURNALS)}
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
    except OSError:
        return set()


def digest_of(name: str) -> str:
    """Return what stands for an output in the names of files: 16 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def journal_name(output: Path, root: Path, part: tuple[int, int] = (1, 1)) -> str:
    """Return the name of the journal of a job that writes ``output``: a folder, or one file.

    ``part``: the number of the part that a run does (``--shard``), and how many there are.
    """
    if output != root:
        return digest_of(output.name) + JOURNALS
    number, parts = part
    return f"journal-{number}of{parts}{JOURNALS}" if parts > 1 else f"journal{JOURNALS}"


class FolderLock:
    """The right to work in an output folder: alone, or beside others that share it.

    The system releases it when the process ends, however it ends, so a lock file that is left over
    locks nothing. It is never removed, as several processes may hold it.
    """

    def __init__(self, folder: Path, root: Path, *, shared: bool) -> None:
        """Take the lock of a job folder. Raises OutputInUseError, which names a holder.

        Raises OutputError where the lock file cannot be made.
        """
        path = folder / "lock"
        try:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise output_error(path, error) from error
        # `status` holds the lock for a moment.
        for pause in (0.02, 0.1, None):
            if _flock(self._descriptor, shared=shared) is not False:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
                    holder = f"process {os.getpid()} on {socket.gethostname()}\n"
                    os.pwrite(self._descriptor, holder.encode(), 0)
                return
            if pause is not None:
                time.sleep(pause)
        holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
        self.release()
        advice = "wait until it has ended, or choose another output folder"
        if not shared:
            advice = "wait until it has ended, or let both share the folder with -n or --shard"
        raise OutputInUseError(
            f"cannot write into {printable(root)}: {printable(holder or 'another process')} is at "
            f"work there; {advice}"
        )

    def release(self) -> None:
        """Release the lock. May be called again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def mark_as_open(descriptor: int) -> None:
    """Mark a journal as one that a process at work is writing; `is_open` tells."""
    # `is_open` holds the lock for a moment.
    _flock(descriptor, shared=True, wait=True)


def is_open(journal: Path) -> bool | None:
    """Return whether a process at work is writing a journal; None where the system cannot tell."""
    if is_remote(journal):
        return None
    try:
        descriptor = os.open(journal, os.O_RDONLY)
    except OSError:
        return False
    try:
        taken = _flock(descriptor, shared=False)
    finally:
        os.close(descriptor)
    return None if taken is None else not taken


def _flock(descriptor: int, *, shared: bool, wait: bool = False) -> bool | None:
    """Lock an open file; False where another process holds it, None where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, mode if wait else mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
