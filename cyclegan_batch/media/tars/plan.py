"""How a tar is read and written, as a value, and what its first bytes tell beforehand."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ...file_identity import FileIdentity
from ...frames import PixelType, Size
from ...options import HdrChoice, TranslateOptions
from ...remote import RemotePath
from ...wording import Note, byte_size, printable
from ..formats import Entry, ImageFormat
from ..images.headers import read_header
from .names import extension_of, image_format, key_of
from .reading import TarReader

_LOOKED_AT = 4 << 20
"""Bytes at the beginning of a tar that are read for the plan at most."""
LISTED = 6
"""Extensions that a note lists at most."""


@dataclass(frozen=True, kw_only=True)
class TarPlan:
    """One tar and the tar that it becomes."""

    path: Path
    output: Path
    pixel_type: PixelType
    format: str
    """The option ``--format``, for the images in it."""
    extensions: tuple[str, ...] = ()
    """Those of the images that are translated (``--tar-images``); empty for every image."""
    quality: int | None
    png_level: int | None
    white: int | None
    hdr: HdrChoice
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

    def asks_for(self, name: str) -> bool:
        """Return whether a member is translated if it is an image."""
        return not self.extensions or extension_of(name) in self.extensions

    def translated_format(self, name: str) -> ImageFormat | None:
        """Return the format of an image that is translated; None for any other member."""
        return image_format(name) if self.asks_for(name) else None

    def no_image(self, others: Collection[str]) -> str:
        """Return in words that nothing is translated; ``others`` are extensions of its images."""
        if not others:
            return "holds no image"
        found = ", ".join([*sorted(others)[:LISTED], *(["…"] if len(others) > LISTED else [])])
        asked = ",".join(self.extensions)
        return printable(f"holds no image of --tar-images {asked} (its images: {found})")


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
        extensions=options.tar_extensions,
        quality=options.quality,
        png_level=options.png_level,
        white=options.white,
        hdr=options.hdr,
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
    matches = False
    others: set[str] = set()
    with contextlib.suppress(InputError, OSError):
        # What lies beyond these bytes ends the look, as a tar that is cut off.
        reader = TarReader(io.BytesIO(_head(plan.path)), plan.name)
        for member in reader.members():
            name = member.info.name
            if len(sizes) == most:
                break
            is_file = member.refusal is None and not member.info.isdir()
            if not is_file or image_format(name) is None:
                continue
            if plan.translated_format(name) is None:
                others.add(extension_of(name))
                continue
            matches = True
            with contextlib.suppress(InputError):
                data = io.BytesIO(reader.read(1 << 20))
                header = read_header(data, plan.member(name), max_pixels=plan.max_pixels)
                sizes.append(header.displayed_size)
                keys.setdefault(key_of(name) or name, {})[extension_of(name)] = None
    if others and not matches:
        text = f"as far as its first {byte_size(_LOOKED_AT)} show, it {plan.no_image(others)}"
        return sizes, [Note(plan.path, text)]
    several = next((list(found) for found in keys.values() if len(found) > 1), [])
    if not several or plan.extensions:
        return sizes, []
    text = (
        f"a sample holds several images ({printable(', '.join(several[:4]))}), and each is "
        "translated; where one is a mask or depth, name the extensions of the others, such as "
        f"--tar-images {printable(min(several, key=lambda each: each.count('.')))}"
    )
    return sizes, [Note(plan.path, text)]


def _head(path: Path) -> bytes:
    """Return the first bytes of a tar; those of an object by one request. Raises OSError."""
    if isinstance(path, RemotePath):
        return path.read_range(0, _LOOKED_AT)
    with path.open("rb") as file:
        return file.read(_LOOKED_AT)
