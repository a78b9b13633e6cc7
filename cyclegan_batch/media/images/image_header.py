"""The description of an image file by its header, and what its EXIF block holds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...errors import InputError
from ...frames import Size
from ..formats import ImageFormat

# Pillow warns about metadata that it cannot read. Our own notes report what matters of it, and
# `warnings.catch_warnings` may not be used from several threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

LARGEST_METADATA = 8 << 20
"""Bytes of one profile or EXIF block beyond which a file is hostile (real ones: below 4 MiB)."""

_TRANSPOSED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap height and width."""


@dataclass(frozen=True)
class Header:
    """An image file, described."""

    format: ImageFormat
    size: Size
    """Stored height and width."""
    mode: str
    """Pillow's name of the colour mode (``L``, ``RGB``, ``CMYK``, …)."""
    bits: int = 8
    """Per sample: 16, or 8 for everything up to 8."""
    orientation: int = 1
    """1..8, as in EXIF."""
    pages: int = 1
    """Images in the file, thumbnails not counted."""
    icc: bytes | None = None
    exif: bytes | None = None
    """As a TIFF structure, without the ``Exif`` signature in front."""
    png: PngExtras | None = None
    bands: int = 4
    """Samples of a pixel, at most."""
    levels: int = 256
    """Number of values that a stored sample can have."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, across and down, as they are stored."""
    geo: tuple[tuple[int, object], ...] = ()
    """GeoTIFF tags and their values."""
    transfer: int = 2
    """Transfer characteristic as of ITU-T H.273: 2 unspecified, 16 PQ, 18 HLG."""
    primaries: int = 2
    """As of ITU-T H.273: 2 unspecified, 9 BT.2020."""
    peak: float | None = None
    """cd/m² of the brightest pixel, where mastering display or content light level states it."""

    @property
    def displayed_size(self) -> Size:
        """Height and width of the upright image."""
        height, width = self.size
        return (width, height) if self.orientation in _TRANSPOSED else (height, width)


@dataclass(frozen=True)
class PngExtras:
    """What only a PNG file holds."""

    transparent_grey: int | None = None
    """The one grey sample that is transparent, scaled to 8 or 16 bits."""
    colour_chunks: tuple[tuple[bytes, bytes], ...] = ()
    """cICP, sRGB, gAMA and cHRM chunks: how samples are to be shown without a profile."""


FORMAT_NAMES: dict[ImageFormat, str] = {
    "jpg": "JPEG",
    "png": "PNG",
    "webp": "WebP",
    "avif": "AVIF",
    "bmp": "BMP",
    "tiff": "TIFF",
    "gif": "GIF",
    "jp2": "JPEG 2000",
    "heic": "HEIC",
}
"""The names of the formats in messages."""


def damaged(name: str, format_: ImageFormat, cause: object) -> InputError:
    """Return the error for an image that cannot be read; ``cause`` is an exception or a text."""
    reason = str(cause).replace("\n", " ")
    return InputError(
        f"{name}: cannot be read as {FORMAT_NAMES[format_]}: {reason or type(cause).__name__}; "
        "the file is damaged, cut off or of a rare kind: replace it or convert it"
    )


def usable_dpi(dpi: Any) -> tuple[float, float] | None:
    """Return a resolution that can be true, else None."""
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


# EXIF 2.32, table 4. An image whose metadata cannot be read is read without it: an EXIF block that
# makes Pillow fail, with whatever exception, counts as none.

_ORIENTATION = 0x0112
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825

_DESCRIPTIVE_TAGS = frozenset(
    {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F}
)
"""Title, camera, software, date, author, copyright and keywords."""

_STALE_TAGS = frozenset({0x927C, 0xA002, 0xA003, 0xA005})
"""Maker notes (their offsets break, and some hold a copy of the old image), the old width and
height, and the interoperability folder."""


def exif_orientation(exif: bytes | None) -> int:
    """Return the orientation in an EXIF block; 1 (upright) where it holds none."""
    return stated_orientation(exif) or 1


def stated_orientation(exif: bytes | None) -> int | None:
    """Return the orientation in an EXIF block, or None where it holds none."""
    if not exif:
        return None
    try:
        block = _parsed(exif)
        return int(block[_ORIENTATION]) if _ORIENTATION in block else None
    except Exception:
        return None


def portable_exif(exif: bytes | Image.Exif) -> bytes | None:
    """Return the part of an EXIF block that holds for a translated, upright image, too.

    The orientation, the thumbnail of the old image, its size and the maker notes are left out.
    Returns a TIFF structure, or None where nothing is left or the block cannot be read.
    """
    try:
        old = exif if isinstance(exif, Image.Exif) else _parsed(exif)
        new = Image.Exif()
        for tag in _DESCRIPTIVE_TAGS & set(old):
            new[tag] = old[tag]
        for folder in (_EXIF_IFD, _GPS_IFD):
            tags = {k: v for k, v in old.get_ifd(folder).items() if k not in _STALE_TAGS}
            if tags:
                new[folder] = tags
        # Without the signature that JPEG puts in front.
        return new.tobytes()[6:] if len(new) else None
    except Exception:
        return None


def _parsed(exif: bytes) -> Image.Exif:
    block = Image.Exif()
    block.load(exif)
    return block
