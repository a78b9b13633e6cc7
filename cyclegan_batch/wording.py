"""How paths, times, counts and foreign errors are written in every message of this package."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Note:
    """A fact that is reported to the user once."""

    subject: Path | str | None
    """The file, or the name of whatever the text is about; None where the text is a sentence."""
    text: str

    def __str__(self) -> str:
        return self.text if self.subject is None else f"{printable(self.subject)}: {self.text}"


def grouped(notes: Iterable[Note]) -> tuple[str, ...]:
    """Return one sentence for each text among ``notes``: ``a.mp4 and 2 more: is interlaced``."""
    alike: dict[tuple[bool, str], list[Note]] = {}
    for note in dict.fromkeys(notes):
        alike.setdefault((note.subject is None, note.text), []).append(note)
    sentences = []
    for first, *others in alike.values():
        more = f" and {len(others)} more" if others else ""
        sentences.append(
            str(
                first
                if first.subject is None
                else Note(f"{printable(first.subject)}{more}", first.text)
            )
        )
    return tuple(sentences)


def printable(text: Path | str) -> str:
    """Return a path or a text for one line of a message, unprintable characters as escapes.

    Unescaped, bytes that are not UTF-8 would make print fail, line ends would break the message in
    two, and control characters would reach the terminal.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    # A byte of a path that is not UTF-8 (PEP 383) becomes an escape of that byte.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]


def clock(seconds: float) -> str:
    """Return ``seconds`` as ``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def counted(count: int, noun: str) -> str:
    """Return ``1 frame`` or ``3 frames``, for a noun whose plural ends in s."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def byte_size(count: int) -> str:
    """Return a number of bytes as ``1.5 GiB``, or in MiB below one."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def why_store_failed(error: OSError) -> str:
    """Return why an object of a store cannot be read, and what to do, without its name."""
    if isinstance(error, FileNotFoundError):
        return "no such object, and none beneath it; check the bucket and the key"
    if isinstance(error, PermissionError):
        denied = error.strerror == os.strerror(errno.EACCES)
        reason = "permission denied" if denied else error.strerror
        return f"{reason}; check the credentials for this store, and what they allow"
    # A store that is away, or that answers otherwise than it should.
    return (
        f"cannot be read: {error.strerror or error}; check the URL and the settings of this store, "
        "and run this again when it answers"
    )


def first_line(error: BaseException, most: int = 200) -> str:
    """Return the first line of a foreign error, at most ``most`` characters, or its type's name.

    The later lines of such errors (onnx, torch, CUDA) are for the developers of the library.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
