"""Patterns of numbered images (``f_%06d.png``), in the grammar of FFmpeg's image2 (de)muxer.

The grammar was compared with FFmpeg 8 (``av_get_frame_filename2``). A pattern holds exactly one
number: ``%d``, ``%6d`` or ``%06d``, where a width pads with zeros, with or without the leading 0.
``%%`` is a percent sign, and so is ``%`` with digits before another ``%``. A name with any other
``%``, with more than one number, or with a number that is wider than the name of a file can be, is
no pattern. FFmpeg applies the grammar to the whole path; here it applies to the file's name only,
and `demux.demuxing` escapes the folder for FFmpeg.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import LONGEST_NAME
from ..wording import printable

_TOKEN = re.compile(r"%([0-9]{0,9})([%d])|([^%]+)")


@dataclass(frozen=True)
class Pattern:
    """A parsed pattern: the text around the number, and the number's width."""

    before: str
    digits: int
    """The width to which the number is padded with zeros."""
    after: str

    def name(self, number: int) -> str:
        """Return the file name of ``number``."""
        return f"{self.before}{number:0{self.digits}d}{self.after}"

    def number(self, name: str) -> int | None:
        """Return the number in the file name ``name``, or None where the name does not match."""
        match = re.fullmatch(re.escape(self.before) + "([0-9]+)" + re.escape(self.after), name)
        if match is None:
            return None
        text = match[1]
        padded = len(text) == max(self.digits, 1)
        return int(text) if padded or (len(text) > self.digits and text[0] != "0") else None


def parse_pattern(name: str) -> Pattern | None:
    """Return the pattern that a file name stands for, or None where it is none."""
    parts, digits, end = [""], 0, 0
    for token in _TOKEN.finditer(name):
        if token.start() != end:
            return None
        width, kind, text = token.groups()
        if kind == "d":
            digits = int(width or 0)
            parts.append("")
        else:
            parts[-1] += text or "%"
        end = token.end()
    # A name of a billion digits would fill the memory.
    if end != len(name) or len(parts) != 2 or digits > LONGEST_NAME:
        return None
    return Pattern(parts[0], digits, parts[1])


def pattern_files(path: Path) -> dict[int, Path]:
    """Return the files that match the pattern ``path`` by their numbers, ascending.

    Raises InputError where the name is no pattern, where the folder cannot be listed, and at a gap
    in the numbers, at which FFmpeg would end or fail.
    """
    pattern = parse_pattern(path.name)
    if pattern is None:
        raise InputError(
            f"{printable(path)} is no pattern of numbered images: write exactly one number such as "
            "%06d, and %% for a percent sign"
        )
    try:
        files = _matching(path, pattern)
    except OSError as error:
        raise InputError(
            f"cannot read {printable(path)}: {error.strerror or error}; check the name, the "
            "permissions and the disk"
        ) from error
    first, last = min(files, default=0), max(files, default=-1)
    missing = next((number for number in range(first, last) if number not in files), None)
    if missing is not None:
        gap = path.with_name(pattern.name(missing))
        count = last - first + 1 - len(files)
        more = f", and {count - 1} more like it" if count > 1 else ""
        raise InputError(
            f"cannot play {printable(path)}: {printable(gap)} is missing{more}, between the "
            f"numbers {first} and {last}; number the images without gaps"
        )
    return files


def numbered_files(path: Path) -> dict[int, Path]:
    """Return what is there of the pattern ``path`` as an output, by its numbers, ascending.

    There may be gaps. Nothing is there where the folder cannot be listed, nor of a name without a
    number.
    """
    pattern = parse_pattern(path.name)
    if pattern is None:
        return {}
    try:
        return _matching(path, pattern)
    except OSError:
        return {}


def _matching(path: Path, pattern: Pattern) -> dict[int, Path]:
    """Return the files that match ``pattern``, by their numbers, ascending. Raises OSError."""
    names = (entry.name for entry in path.parent.iterdir())
    numbers = sorted(n for name in names if (n := pattern.number(name)) is not None)
    return {n: path.with_name(pattern.name(n)) for n in numbers}


def as_spans(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return ascending numbers as the first and the last of each row of consecutive ones."""
    rows = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    spans = ([number for _, number in row] for _, row in rows)
    return tuple((span[0], span[-1]) for span in spans)


def numbered_bytes(path: Path, spans: Iterable[tuple[int, int]]) -> int | None:
    """Return the bytes of those images of the pattern ``path`` that have the numbers of ``spans``.

    None where one of them is missing.
    """
    files = numbered_files(path)
    total = 0
    for first, last in spans:
        for number in range(first, last + 1):
            try:
                total += files[number].stat().st_size
            except (KeyError, OSError):
                return None
    return total
