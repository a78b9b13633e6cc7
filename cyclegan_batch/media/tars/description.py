"""What a tar holds, in numbers, for `inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...errors import InputError
from ...wording import printable
from .names import extension_of, image_format, key_of
from .reading import CHUNK, TarReader

_LISTED = 20
"""Extensions and refused members that are listed one by one."""


def describe_tar(path: Path) -> dict[str, object]:
    """Return how many samples, images and other members a tar has, which is read to its end.

    Raises InputError where it cannot be read, is damaged or cut off.
    """
    extensions: Counter[str] = Counter()
    refused: list[str] = []
    samples = images = 0
    last: str | None = None
    try:
        file = path.open("rb", buffering=CHUNK)
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error
    with file:
        reader = TarReader(file, printable(path))
        for member in reader.members():
            name = member.info.name
            key = key_of(name)
            samples += key is not None and key != last
            last = key
            if member.refusal is not None:
                refused.append(f"{printable(name)}: {member.refusal}")
            elif not member.info.isdir():
                extensions[extension_of(name)] += 1
                images += image_format(name) is not None
    return {
        "path": printable(path),
        "samples": samples,
        "images": images,
        "extensions": dict(extensions.most_common(_LISTED)),
        "refused": len(refused),
        "refused_members": refused[:_LISTED],
        "end": reader.note or "whole",
    }
