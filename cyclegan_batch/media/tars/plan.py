"""How a tar is read and written, as a value, and what its first bytes tell beforehand."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...file_identity import FileIdentity
from ...frames import PixelType, Size
from ...options import TranslateOptions
from ...remote import RemotePath
from ...wording import Note, printable
from ..formats import Entry
from ..images.headers import read_header
from .names import extension_of, image_format, key_of
from .reading import TarReader

_LOOKED_AT = 4 << 20
"""Bytes at the beginning of a tar that are read for the plan at most."""


@dataclass(frozen=True, kw_only=True)
class TarPlan:
    """One tar and the tar that it becomes."""

    path: Path
    output: Path
    pixel_type: PixelType
    format: str
    """The option ``--format``, for the images in it."""
    quality: int | None
    png_level: int | None
    white: int | None
    max_pixels: int
    hash_inputs: bool
    overwrite: bool
    """The output may replace a file that exists."""
    status: FileIdentity | None = None
    """Size and time of an object of a store, as it was listed; None for a file."""

    @property
    def name(self) -> str:
        """The tar, as messages call it."""
        return printable(self.path)

    def member(self, name: str) -> str:
        """Return a member, as messages call it: ``x.tar/0001.jpg``."""
        return f"{self.name}/{printable(name)}"


def plan_tar(
    entry: Entry, options: TranslateOptions, *, pixel_type: PixelType, replaces: bool = False
) -> TarPlan:
    """Return the plan of a tar. No file is opened.

    ``replaces``: the output may replace a file even without ``options.overwrite``.
    """
    return TarPlan(
        path=entry.source,
        output=entry.output,
        pixel_type=pixel_type,
        format=options.format,
        quality=options.quality,
        png_level=options.png_level,
        white=options.white,
        max_pixels=options.max_pixels,
        hash_inputs=options.hash_inputs,
        overwrite=options.overwrite or replaces,
        status=entry.status,
    )


def first_sizes(plan: TarPlan, most: int) -> tuple[list[Size], list[Note]]:
    """Return the (height, width) of the first images of a tar, at most ``most``, and notes on them.

    Nothing of a tar that cannot be read, which is reported when it is translated.
    """
    sizes: list[Size] = []
    keys: dict[str, dict[str, None]] = {}
    with contextlib.suppress(InputError, OSError):
        # What lies beyond these bytes ends the look, as a tar that is cut off.
        reader = TarReader(io.BytesIO(_head(plan.path)), plan.name)
        for member in reader.members():
            name = member.info.name
            if len(sizes) == most:
                break
            if member.refusal is not None or image_format(name) is None:
                continue
            with contextlib.suppress(InputError):
                data = io.BytesIO(reader.read(1 << 20))
                header = read_header(data, plan.member(name), max_pixels=plan.max_pixels)
                sizes.append(header.displayed_size)
                keys.setdefault(key_of(name) or name, {})[extension_of(name)] = None
    several = next((list(found) for found in keys.values() if len(found) > 1), [])
    if not several:
        return sizes, []
    text = (
        f"a sample holds several images ({printable(', '.join(several[:4]))}), and each is "
        "translated; where one is a mask or depth, store it as .npy or in another tar"
    )
    return sizes, [Note(plan.path, text)]


def _head(path: Path) -> bytes:
    """Return the first bytes of a tar; those of an object by one request. Raises OSError."""
    if isinstance(path, RemotePath):
        return path.read_range(0, _LOOKED_AT)
    with path.open("rb") as file:
        return file.read(_LOOKED_AT)
