"""Lists of inputs: ``@names.txt``, and ``@-`` on standard input.

A list has one name a line; one that holds a NUL byte has a NUL behind each name, as written by
``find -print0``. A name is only ever the name of a file or of a folder: no URL, no pattern, and no
further list. Names are relative to the current folder, wherever the list lies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError
from ...remote import PROTOCOLS
from ...wording import printable

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ListedName(NamedTuple):
    """A name in a list."""

    name: str
    number: int
    """Of its line, from 1; in a list with NUL bytes, of the name."""
    place: str
    """The path that it keeps below OUTPUT, normalised; empty for OUTPUT itself."""
    identity: str
    """The absolute path by which the same file is known again."""


class NameList(NamedTuple):
    """A list as it was read."""

    source: Path
    """As the user wrote it: ``@names.txt``."""
    separator: str
    """A line end or a NUL."""
    names: tuple[ListedName, ...]

    def where(self, name: ListedName) -> str:
        """Return where ``name`` stands, for a message."""
        unit = "name" if self.separator == "\0" else "line"
        return f"{printable(self.source)}, {unit} {name.number}"


def is_list(source: Path) -> bool:
    """Return whether an input is a list: it begins with ``@``, and no file has this name."""
    return str(source).startswith("@") and not os.path.lexists(source)


def read_lists(sources: Sequence[Path]) -> list[NameList]:
    """Read the lists of a job, all of them, since their names are placed together.

    A relative name keeps its path below OUTPUT. An absolute one, and one that ``..`` leads out of
    the current folder, keeps its path below the deepest folder that all such names share.

    Raises InputError for a list that cannot be read or holds no name.
    """
    texts = [_read(source) for source in sources]
    separators = ["\0" if "\0" in text else "\n" for text in texts]
    numbered = [
        _names(source, text, separator)
        for source, text, separator in zip(sources, texts, separators, strict=True)
    ]
    placed = iter(_placed(name for names in numbered for _, name in names))
    return [
        NameList(
            source,
            separator,
            tuple(ListedName(name, number, *next(placed)) for number, name in names),
        )
        for source, separator, names in zip(sources, separators, numbered, strict=True)
    ]


def _read(source: Path) -> str:
    name = os.fspath(source)[1:]
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except FileNotFoundError as error:
        if name.partition(":/")[0] in PROTOCOLS:
            raise InputError(
                f"{printable(source)}: a list is a local file; copy it here, or give a glob of the "
                "store"
            ) from error
        raise InputError(
            f"{printable(source)}: no such file, and no list {printable(name)}; check the name"
        ) from error
    except OSError as error:
        raise InputError(
            f"{printable(source)}: the list cannot be read: {error.strerror or error}"
        ) from error
    return os.fsdecode(data.removeprefix(_BYTE_ORDER_MARK))


def _names(source: Path, text: str, separator: str) -> list[tuple[int, str]]:
    """Return the names with their numbers, without empty ones. Raises InputError."""
    lines = text.split(separator)
    if separator == "\n":
        lines = [line.removesuffix("\r") for line in lines]
    names = [(number, line) for number, line in enumerate(lines, 1) if line]
    if not names:
        raise InputError(
            f"{printable(source)}: the list holds no name; one path a line is expected, "
            "or one before each NUL byte"
        )
    return names


def _placed(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the place below OUTPUT and the identity of each name.

    Paths are text, and no file is looked at but for names with ``..``: a list may have a million.
    """
    here = os.getcwd()  # noqa: PTH109 - text
    real_folders: dict[str, str] = {}
    placed: list[tuple[str | None, str]] = []
    for name in names:
        if ".." in name and ".." in name.replace(os.sep, "/").split("/"):
            # Only the file system knows where ``link/..`` leads.
            folder, last = os.path.split(name)
            if last in ("", ".", ".."):
                path = os.path.realpath(name)
            else:
                if folder not in real_folders:
                    real_folders[folder] = os.path.realpath(folder)
                path = os.path.join(real_folders[folder], last)  # noqa: PTH118 - text
            placed.append((_below(here, path), path))
        elif os.path.isabs(name):  # noqa: PTH117 - text
            placed.append((None, _normal(name)))
        else:
            place = os.path.normpath(name)
            place = "" if place == "." else place
            placed.append((place, os.path.join(here, place)))  # noqa: PTH118 - text
    # The folders of files, and the folders around listed folders.
    outside = {os.path.dirname(path) for place, path in placed if place is None}  # noqa: PTH120
    shared = os.path.commonpath(outside) if outside else ""
    return [
        (path[len(shared) :].lstrip(os.sep) if place is None else place, path)
        for place, path in placed
    ]


def _normal(path: str) -> str:
    """Return an absolute path in its usual form; POSIX lets ``//`` stand for another root."""
    path = os.path.normpath(path)
    return path[1:] if path.startswith("//") else path


def _below(folder: str, path: str) -> str | None:
    """Return ``path`` relative to ``folder``, or None where it lies outside; both are absolute."""
    if path == folder:
        return ""
    folder = folder.rstrip(os.sep) + os.sep
    return path[len(folder) :] if path.startswith(folder) else None
