"""Names and first bytes: which medium a file holds, before anything opens it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..wording import printable

Kind: TypeAlias = Literal["image", "video", "pattern", "pipe", "unread", "other"]
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
"""The picture formats that are read, by extension, in lower case."""

WRITTEN_FORMATS = frozenset[ImageFormat]({"jpg", "png", "webp", "avif", "bmp", "tiff"})
"""The picture formats that are written; of the others the output is a PNG."""

UNREAD_IMAGES = frozenset(
    {".cur", ".dcm", ".dcx", ".dds", ".djvu", ".emf", ".eps", ".exr", ".fits", ".hdr", ".icns"}
    | {".ico", ".jls", ".jng", ".jxl", ".jxr", ".kra", ".mpo", ".pam", ".pbm", ".pcx", ".pfm"}
    | {".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".sgi", ".svg", ".svgz", ".tga", ".wbmp"}
    | {".wdp", ".wmf", ".xbm", ".xcf", ".xpm"}
    # What a camera writes without developing it.
    | {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mrw"}
    | {".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"}
)
"""Extensions of pictures that are not read here: they are named, and never left out silently."""

HEIC_MISSING = (
    "HEIC pictures are read by pillow-heif, which is not installed: "
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
"""The extensions that make a file of a folder a video. GIF is not among them: 256 colours hold no
generator's output."""

PIPE = Path("-")
"""Standard input as an INPUT, standard output as OUTPUT."""


@dataclass(frozen=True)
class Entry:
    """One input and the output it becomes."""

    kind: Kind
    """``unread``: a picture of a kind that is not read (`why_unread`), so a failure."""
    source: Path
    """The file; for ``pattern`` its pattern (``f_%06d.png``), for ``pipe`` `PIPE`."""
    output: Path
    """The file to write; `PIPE` for standard output."""


def counted_suffixes(suffixes: Iterable[str], most: int = 6) -> str:
    """Return how often each extension occurs, the commonest first: ``.psd 9, .svg 2``."""
    counts = Counter(suffix.lower() for suffix in suffixes).most_common()
    shown = [
        f"{printable(Path(suffix)) if suffix else 'without extension'} {n}" for suffix, n in counts
    ]
    return ", ".join([*shown[:most], *(["…"] if len(shown) > most else [])])


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Return a sort key that puts ``f2`` before ``f10``, folder by folder, alike everywhere."""
    return tuple(
        tuple(
            (0, int(piece), piece) if piece.isascii() and piece.isdigit() else (1, 0, piece)
            for piece in re.split(r"([0-9]+)", part)
        )
        for part in path.parts
    )


SNIFFED = 64
"""Bytes at the beginning of a file that tell its format."""

_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_PICTURE_BRANDS = _AVIF_BRANDS | _HEIC_BRANDS | {b"mif1", b"msf1"}


def sniff_format(head: bytes) -> ImageFormat | None:
    """Return the picture format that the first `SNIFFED` bytes of a file tell, or None."""
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
    if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS:
        # The first brand may be that of any such file; the others say of which kind.
        end = min(int.from_bytes(head[:4]), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
        return "avif" if brands & _AVIF_BRANDS else "heic"
    return None
