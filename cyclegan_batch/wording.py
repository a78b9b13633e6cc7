"""How paths, times, counts and foreign errors are written in every message of this package."""

from __future__ import annotations

import os
from pathlib import Path


def printable(text: Path | str) -> str:
    """Return a path or a text for one line of a message: what cannot be printed becomes an escape.

    Bytes that are not UTF-8 would stop a print, line ends would break a message in two, and control
    characters would reach the terminal.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in os.fspath(text))


def _escaped(character: str) -> str:
    # A byte of a path that is not UTF-8 (PEP 383) is written as that byte.
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


def first_line(error: BaseException, most: int = 200) -> str:
    """Return the first line of a foreign error, at most ``most`` characters, or its type's name.

    The later lines of such errors (onnx, torch, CUDA) address the makers of the library.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
