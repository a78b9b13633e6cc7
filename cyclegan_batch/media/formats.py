"""The media that files hold, by their extensions and first bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..file_identity import FileIdentity
from ..wording import printable
from .pattern import parse_pattern

Kind: TypeAlias = Literal[
    "image", "video", "tar", "pattern", "pipe", "unread", "other", "comparison"
]
AnimationFormat: TypeAlias = Literal["gif", "apng", "webp"]
ImageFormat: TypeAlias = Literal["jpg", "png", "webp", "avif", "bmp", "tiff", "gif", "jp2", "heic"]

IMAGE_FORMATS: dict[str, ImageFormat] = {
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".jpe": "jpg",
    ".jfif": "jpg",
    ".png": "png",
    ".apng": "png",
    ".webp": "webp",
    ".avif": "avif",
    ".avifs": "avif",
    ".bmp": "bmp",
    ".dib": "bmp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".gif": "gif",
    ".jp2": "jp2",
    ".j2k": "jp2",
    ".j2c": "jp2",
    ".jpc": "jp2",
    ".jpf": "jp2",
    ".jpx": "jp2",
    ".heic": "heic",
    ".heics": "heic",
    ".heif": "heic",
    ".heifs": "heic",
    ".hif": "heic",
}
"""The image formats that are read, by extension in lower case."""

WRITTEN_FORMATS = frozenset[ImageFormat]({"jpg", "png", "webp", "avif", "bmp", "tiff"})
"""The image formats that are written. The output of the others is PNG."""


def output_format(stored: ImageFormat, asked: str) -> ImageFormat:
    """Return the format in which an image of the format ``stored`` is written.

    ``asked`` is the option ``--format``.
    """
    if asked == "same":
        return stored if stored in WRITTEN_FORMATS else "png"
    return IMAGE_FORMATS[f".{asked}"]


UNREAD_IMAGES = frozenset(
    {".cur", ".dcm", ".dcx", ".dds", ".djvu", ".emf", ".eps", ".exr", ".fits", ".hdr", ".icns"}
    | {".ico", ".jls", ".jng", ".jxl", ".jxr", ".kra", ".mpo", ".pam", ".pbm", ".pcx", ".pfm"}
    | {".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".sgi", ".svg", ".svgz", ".tga", ".wbmp"}
    | {".wdp", ".wmf", ".xbm", ".xcf", ".xpm"}
    # Raw formats of cameras.
    | {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw"}
    | {".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"}
)
"""Extensions of images that are not read here. Such files are reported, not silently left out."""

HEIC_MISSING = (
    "HEIC images are read by pillow-heif, which is not installed: "
    "pip install 'cyclegan-batch[heic]'"
)

VIDEO_SUFFIXES = frozenset(
    {".264", ".265", ".360", ".3g2", ".3gp", ".amv", ".asf", ".avc", ".avi", ".divx", ".dv"}
    | {".dvr-ms", ".evo", ".f4v", ".flv", ".gxf", ".h264", ".h265", ".hevc", ".insv", ".ismv"}
    | {".ivf", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mk3d", ".mkv", ".mod"}
    | {".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nsv", ".nut", ".obu", ".ogm"}
    | {".ogv", ".qt", ".rm", ".rmvb", ".tod", ".tp", ".trp", ".ts", ".vob", ".vro", ".webm"}
    | {".wmv", ".wtv", ".y4m"}
)
"""The extensions of videos in a folder; `ANIMATION_SUFFIXES` are those of images that may move."""

ANIMATION_SUFFIXES: dict[str, AnimationFormat] = {
    ".gif": "gif",
    ".webp": "webp",
    ".apng": "apng",
    ".png": "apng",
}
"""The formats of animated images, by extension in lower case. They are written, too: a video of
another kind becomes an APNG only under the name ``.apng``."""

TAR_SUFFIX = ".tar"
"""The extension of tars with images in them (media/tars)."""

PACKED_TARS = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tbz2", ".txz")
"""The endings of compressed tars, which are not read."""

PIPE = Path("-")
"""Standard input as an INPUT, standard output as OUTPUT."""


@dataclass(frozen=True)
class Entry:
    """One input and the output it becomes."""

    kind: Kind
    """``unread`` is an image of a kind that is not read, or a file of a list that is missing: a
    failure, whose reason `why_unread` gives. The source of a ``comparison`` is an output."""
    source: Path
    """The file. For ``pattern`` it is the pattern (``f_%06d.png``), for ``pipe`` `PIPE`."""
    output: Path
    """The file to write, or `PIPE` for standard output."""
    problem: str | None = None
    """Why an ``unread`` file cannot be read, where that is known better than by its kind."""
    status: FileIdentity | None = None
    """Size and time of an object of a store, as it was listed; None for a file."""

    @property
    def is_numbered(self) -> bool:
        """Whether the output is a pattern of numbered images, into which a video is split."""
        return self.kind in ("video", "pattern", "pipe") and is_numbered_output(self.output)


def is_numbered_output(output: Path) -> bool:
    """Return whether the name of a video's output is a pattern of images (``out_%06d.png``)."""
    return output.suffix.lower() in IMAGE_FORMATS and parse_pattern(output.name) is not None


def counted_suffixes(suffixes: Iterable[str], most: int = 6) -> str:
    """Return how often each extension occurs, the most common first: ``.psd 9, .svg 2``."""
    counts = Counter(suffix.lower() for suffix in suffixes).most_common()
    words = [f"{printable(suffix) if suffix else 'without extension'} {n}" for suffix, n in counts]
    return ", ".join([*words[:most], *(["…"] if len(words) > most else [])])


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Return a sort key, the same on every system, that puts ``f2`` before ``f10`` in a folder."""
    return tuple(
        tuple(
            (0, int(piece), piece) if piece.isascii() and piece.isdigit() else (1, 0, piece)
            for piece in re.split(r"([0-9]+)", part)
        )
        for part in path.parts
    )


SNIFFED = 64
"""Number of bytes at the beginning of a file that `sniff_format` takes."""

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_IMAGE_BRANDS = _AVIF_BRANDS | _HEIC_BRANDS | {b"mif1", b"msf1"}


def sniff_format(head: bytes) -> ImageFormat | None:
    """Return the image format by the first `SNIFFED` bytes of a file, or None."""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith(b"BM"):
        return "bmp"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "jp2"
    if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS:
        # The major brand may be a generic one. The compatible brands tell AVIF from HEIC.
        end = min(int.from_bytes(head[:4]), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
        return "avif" if brands & _AVIF_BRANDS else "heic"
    return None
