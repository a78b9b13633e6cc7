"""Give a file its name when it is whole: a temporary name first, then a flush, then a rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

from .errors import OutputError


def temporary_path(final: Path) -> Path:
    """Return where ``final`` is written until it is whole: hidden, in the same folder.

    The name follows from the final one, so that a later run replaces what a killed one left; its
    length does not, so that a name of 255 bytes has a temporary one too.
    """
    digest = hashlib.sha256(os.fsencode(final.name)).hexdigest()[:16]
    return final.with_name(f".{digest}.partial")


def publish(partial: Path, final: Path, *, overwrite: bool) -> None:
    """Flush ``partial`` to the disk and rename it to ``final``, in one step for every onlooker.

    Raises OutputError, also where ``final`` exists and ``overwrite`` is false; ``partial`` stays.
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
            _rename_to_new(partial, final)
        _flush_folder(final.parent)
    except OSError as error:
        raise output_error(final, error) from error


def printable(path: Path) -> str:
    """Return ``path`` as text for messages: what is not printable text is spelled as an escape.

    Bytes that are not UTF-8 would stop a print, line ends would break a message in two, and control
    characters would reach the terminal.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def output_error(path: Path, error: OSError) -> OutputError:
    """Return ``error`` as an OutputError about ``path`` that says what to do."""
    found, remedy = _REASONS.get(
        error.errno or 0, (error.strerror or str(error), "check the output folder")
    )
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
