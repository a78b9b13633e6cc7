"""The names of a tar's members in the WebDataset convention, and those that images get.

The convention: the key of a member is its name up to the first dot of its base name, and what
follows that dot is its extension. Members of one key that follow each other are a sample, such as
``0001.jpg``, ``0001.json`` and ``0001.seg.npy``.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Sequence

from ..formats import IMAGE_FORMATS, ImageFormat, output_format

_KEY = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")


def key_of(name: str) -> str | None:
    """Return the key of a member; None for one that is no part of a sample.

    Such are names without a dot, and those that begin with it.
    """
    match = _KEY.fullmatch(name)
    return match[1] if match else None


def extension_of(name: str) -> str:
    """Return what follows the first dot of a base name, in lower case: ``seg.png``."""
    match = _KEY.fullmatch(name)
    return match[2].lower() if match else ""


def image_format(name: str) -> ImageFormat | None:
    """Return the format of an image by its name; None for a member that is no image.

    A hidden file is none: some systems pack one beside each file, with its extension.
    """
    if posixpath.basename(name).startswith("."):
        return None
    return IMAGE_FORMATS.get(posixpath.splitext(name)[1].lower())


def output_names(members: Sequence[tuple[str, ImageFormat | None]], asked: str) -> list[str]:
    """Return the names that the members of a sample get, each given with its format as an image.

    ``asked`` is the option ``--format``. Where a new extension would give a member the name of
    another one, it keeps its full name and the extension is appended: ``0001.jpg.png``.
    """
    new = [_renamed(name, stored, asked) for name, stored in members]
    count = Counter(new)
    for at, (name, stored) in enumerate(members):
        while stored is not None and new[at] != name and count[new[at]] > 1:
            count[new[at]] -= 1
            full = new[at] if new[at].startswith(name) else name
            new[at] = f"{full}.{output_format(stored, asked)}"
            count[new[at]] += 1
    return new


def _renamed(name: str, stored: ImageFormat | None, asked: str) -> str:
    if stored is None or (target := output_format(stored, asked)) == stored:
        return name
    return f"{posixpath.splitext(name)[0]}.{target}"
