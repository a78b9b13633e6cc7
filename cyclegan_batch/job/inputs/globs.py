"""Globs (``frames/**/*.png``), searched for here where the shell left them as they are.

They mean what Python's ``glob`` means with ``recursive=True``: ``*``, ``?`` and ``[…]`` match in a
name, ``**`` any number of folders, and none of them what is hidden. There is one difference: ``**``
does not follow links to folders, which can form loops. Of a store everything beneath the fixed
text is listed (S3), or beneath the fixed folder, and the listing is searched.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...media.pattern import parse_pattern
from .refusals import is_there, unreadable

_MAGIC = re.compile(r"[*?\[]")
_ANY_DEPTH = "**"


def is_glob(source: Path) -> bool:
    """Return whether an input is a glob: it has magic characters, and no file has this name.

    A name with ``%d`` is a pattern of numbered images instead.
    """
    return (
        _MAGIC.search(str(source)) is not None
        and parse_pattern(source.name) is None
        and not is_there(source)
    )


def split_glob(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the fixed folder in front of the first magic part, and the parts from there on."""
    parts = pattern.parts
    first = next(at for at, part in enumerate(parts) if _MAGIC.search(part))
    return type(pattern)(*parts[:first]), parts[first:]


def fixed_beginning(parts: tuple[str, ...]) -> str:
    """Return what the names that match ``parts`` begin with, as far as that is one text."""
    return _MAGIC.split(parts[0], maxsplit=1)[0] if parts else ""


def matches_part(name: str, part: str) -> bool:
    """Return whether a name matches one part of a glob, on which ``**`` matches any."""
    if part == _ANY_DEPTH:
        return not name.startswith(".")
    if name.startswith(".") and not part.startswith("."):
        return False
    return _expression(part).match(name) is not None


@functools.cache
def _expression(part: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(part))


def search(folder: Path, parts: tuple[str, ...]) -> Iterator[tuple[Path, os.DirEntry[str]]]:
    """Yield the files beneath ``folder`` that match ``parts``, as paths relative to it.

    A folder that matches stands for everything beneath it, and so do no parts at all for
    ``folder``. What is hidden beneath such a folder is yielded, too, and links to folders that are
    not followed, for the caller to tell. A path may be yielded twice. Raises InputError.
    """
    seen: set[tuple[Path, int]] = set()
    waiting = [(Path(), 0)]
    while waiting:
        relative, at = waiting.pop()
        if parts[at:] == (_ANY_DEPTH,):
            at = len(parts)  # everything beneath
        if (relative, at) in seen:
            continue
        seen.add((relative, at))
        everything = at == len(parts)
        any_depth = not everything and parts[at] == _ANY_DEPTH
        if any_depth:
            waiting.append((relative, at + 1))
        try:
            with os.scandir(folder / relative) as scan:
                entries = list(scan)
        except OSError as error:
            raise unreadable(folder / relative, error) from error
        for entry in entries:
            path = relative / entry.name
            if everything or any_depth:
                hidden = entry.name.startswith(".")
                if entry.is_dir(follow_symlinks=False) and not hidden:
                    waiting.append((path, at))
                elif everything or (entry.is_dir() and not hidden):
                    yield path, entry
            elif matches_part(entry.name, parts[at]):
                if at + 1 < len(parts):
                    if entry.is_dir():
                        waiting.append((path, at + 1))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((path, len(parts)))
                else:
                    yield path, entry


def matching(objects: Iterable[Path], parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield those of ``objects``, paths relative to a prefix, that `search` would for files.

    Of a hidden folder only the folder itself is yielded, perhaps more than once.
    """
    for path in objects:
        *folders, name = path.parts
        places = _with_no_folder({0}, parts)
        for depth, folder in enumerate(folders, 1):
            hidden = folder.startswith(".")
            if hidden and len(parts) in places:
                yield Path(*folders[:depth])
            here = {at for at in places if at == len(parts) or parts[at] == _ANY_DEPTH}
            behind = {at + 1 for at in places - here if matches_part(folder, parts[at])}
            places = _with_no_folder(behind if hidden else behind | here, parts)
        last = len(parts) - 1
        if len(parts) in places or (last in places and matches_part(name, parts[last])):
            yield path


def _with_no_folder(places: set[int], parts: tuple[str, ...]) -> set[int]:
    """Return the places in ``parts``, and those behind each ``**`` there, as it may match none."""
    for at in sorted(places):
        while at < len(parts) and parts[at] == _ANY_DEPTH:
            at += 1
            places.add(at)
    return places
