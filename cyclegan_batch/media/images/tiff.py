"""Read TIFF by tifffile and imagecodecs, since Pillow and OpenCV misread some of its kinds.

Compared with the values that were written, Pillow 13 and OpenCV 5 mix up 16-bit samples in
separate planes, and Pillow those of grey with alpha; both invert 16-bit grey whose 0 is white. Only
the kinds of an allow-list are read, and a test checks every combination of them; anything else is
refused. The samples are returned as stored: the caller applies the orientation.
"""

from __future__ import annotations

import io
import logging
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import InputError
from ...frames import Size

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

Samples = npt.NDArray[Any]
"""An image of uint8 or uint16, ``(H, W)`` or ``(H, W, channels)``."""

# tifffile also logs to the terminal what it reports by a result or an exception.
logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)

# Tag numbers: TIFF 6.0; its Technical Note 1; GeoTIFF 1.1.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _BANDS, _ROWS, _STRIP_BYTES = 273, 274, 277, 278, 279
_X_RESOLUTION, _Y_RESOLUTION, _PLANES, _RESOLUTION_UNIT, _PREDICTOR = 282, 283, 284, 296, 317
_COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 320, 322, 323, 324, 325
_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _ICC = 332, 338, 339, 34675

_DECISIVE = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_OFFSETS, _BANDS, _ROWS}
    | {_STRIP_BYTES, _PLANES, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS}
    | {_TILE_BYTES, _INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT}
)
"""Tags without which the samples would be misinterpreted."""

_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""The tags that hold the geographic place of every pixel (GeoTIFF 1.1, 7.1)."""

_COMPRESSIONS = {
    1: "none",
    2: "CCITT RLE",
    3: "CCITT Group 3",
    4: "CCITT Group 4",
    5: "LZW",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    34925: "LZMA",
    50000: "Zstandard",
}
"""The names of the compressions that are decoded."""
_JPEG = 7

_GREY_FROM_WHITE, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_GREY_FROM_WHITE: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
"""Number of samples of a colour, by PhotometricInterpretation."""
_OTHER_MODES = {8: "LAB", 9: "ICCLAB", 10: "ITULAB", 32803: "CFA", 34892: "LinearRaw"}

_REDUCED = 1
"""The bit of NewSubfileType for a smaller copy of another page."""
_MOST_PAGES = 64
"""Pages that are read at most. A pyramid has far fewer levels."""


@dataclass(frozen=True)
class TiffHeader:
    """The description of a page."""

    size: Size
    bands: int
    """Samples of a pixel, including those beyond its colour."""
    bits: int
    """Per sample."""
    mode: str
    """Pillow's name of the colour mode."""
    orientation: int
    pages: int
    icc: bytes | None
    exif: Image.Exif | None
    dpi: tuple[float, float] | None
    """Pixels per inch, across and down."""
    geo: tuple[tuple[int, object], ...]
    """GeoTIFF tags and their values."""


def read_tiff_header(file: BinaryIO) -> TiffHeader:
    """Describe the first page that is no thumbnail. ``file`` stays open.

    Raises any exception of tifffile for a damaged file, and InputError without a file name for a
    kind that is not supported.
    """
    tiff, page, pages = _open(file)
    return TiffHeader(
        size=(page.imagelength, page.imagewidth),
        bands=page.samplesperpixel,
        bits=page.bitspersample,
        mode=_mode(page),
        orientation=_integer(page, _ORIENTATION, 1),
        pages=pages,
        icc=_bytes(page, _ICC),
        exif=_exif(tiff, page),
        dpi=_dpi(page),
        geo=tuple(
            (tag, value) for tag in _GEO_TAGS if (value := page.tags.valueof(tag)) is not None
        ),
    )


@dataclass(frozen=True)
class TiffSamples:
    """The samples of an image as they are stored, not turned upright."""

    colours: Samples
    """Grey ``(H, W)``, RGB ``(H, W, 3)`` or inks ``(H, W, 4)``, uint8, or uint16 where they have
    more than 8 bits, scaled to the whole range."""
    alpha: Samples | None
    """``(H, W)`` of the same type. The colours are not premultiplied by it."""
    undeclared: bool
    """``alpha`` is a band that the file does not declare to be alpha."""
    more_bands: int
    """Number of bands beyond the colour and ``alpha``, which are left out."""


def decode_tiff(data: bytes) -> TiffSamples:
    """Return the samples of the page that `read_tiff_header` describes; raises as that does."""
    tiff, page, _ = _open(io.BytesIO(data))
    _check_pieces(tiff, page)
    if page.compression == _JPEG:
        _check_jpegs(data, page)
    stored = page.asarray(squeeze=False, maxworkers=1)
    # The axes are: separate planes, depth, height, width, interleaved samples.
    samples = np.moveaxis(stored[:, 0], 0, 2)[..., 0] if len(stored) > 1 else stored[0, 0]
    if samples.dtype == bool:
        samples = samples.astype(np.uint8)
    count = _COLOURS[int(page.photometric)]
    colours = _colours(page, samples[..., :count])
    bands, kinds = samples.shape[2] - count, _extra_samples(page)
    if not bands or int(page.photometric) == _CMYK:
        return TiffSamples(colours, None, False, bands)
    alpha = np.ascontiguousarray(whole_range(samples[..., count], page.bitspersample))
    if kinds[:1] == (1,):
        colours = _unmultiplied(colours, alpha)
    return TiffSamples(colours, alpha, kinds[:1] == (0,), bands - 1)


def _open(file: BinaryIO) -> tuple[TiffFile, TiffPage, int]:
    """Return a TIFF, its first page that is no thumbnail, and how many such pages there are."""
    from tifffile import TiffFile

    # With _multifile, tifffile would open other files that this one names.
    tiff = TiffFile(file, _multifile=False)
    page: Any = None
    pages = 0
    for index in range(_MOST_PAGES):
        try:
            current: Any = tiff.pages[index]
        except IndexError:
            break
        if not index:
            first = current
        if not current.subfiletype & _REDUCED:
            page = page or current
            pages += 1
        if pages > 1:
            break
    page = page or first
    _check(tiff, page)
    return tiff, page, max(pages, 1)


def _check(tiff: TiffFile, page: TiffPage) -> None:
    """Raise InputError for a kind that is not supported, ValueError for impossible tags."""
    height, width = page.imagelength, page.imagewidth
    if height < 1 or width < 1:
        raise ValueError(f"its header states {width}×{height} pixels")
    unread = _tag_numbers(tiff, page) & _DECISIVE - set(page.tags.keys())
    if unread:
        raise ValueError(f"its tag {min(unread)} cannot be read")
    if page.compression not in _COMPRESSIONS:
        raise InputError(
            f"TIFF compression {_name(page.compression)} is not supported; save it with LZW or "
            "Deflate"
        )
    bits = page.tags.valueof(_BITS, (1,))
    if page.compression == _JPEG and page.bitspersample != 8:
        raise InputError("JPEG of other than 8 bits is not supported; save it with LZW")
    if not page.bitspersample or len(set(bits if isinstance(bits, tuple) else (bits,))) > 1:
        raise InputError(f"samples of different sizes ({bits} bits) are not supported")
    if page.sampleformat != 1 or page.bitspersample > 16:
        mode = "F" if page.sampleformat == 3 else "I"
        raise InputError(
            f"colour mode {mode} is not supported; convert it to 8 or 16 bits, unsigned"
        )
    if page.predictor not in (1, 2):
        raise ValueError(f"predictor {int(page.predictor)} is not one for integers")
    photometric = int(page.photometric)
    if photometric not in _COLOURS or _integer(page, _INK_SET, 1) != 1:
        mode = _OTHER_MODES.get(photometric, _name(page.photometric))
        raise InputError(f"colour mode {mode} is not supported; convert it to RGB")
    if photometric == _YCBCR and page.bitspersample != 8:
        raise InputError("YCbCr of other than 8 bits is not supported; convert it to RGB")
    if page.samplesperpixel < _COLOURS[photometric]:
        raise ValueError(f"a colour of {page.samplesperpixel} samples")
    if page.imagedepth != 1:
        raise InputError("it is a volume and no image; split it into single images first")
    if page.tilelength * page.tilewidth > 16 * max(height * width, 1 << 16):
        # Decoders allocate memory for a whole tile, even where the image covers little of it.
        raise ValueError("its tiles are far larger than the image")


def _check_pieces(tiff: TiffFile, page: TiffPage) -> None:
    """Raise ValueError where strips or tiles are missing; they would be decoded as black."""
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if len(pieces) != math.prod(page.chunked):
        raise ValueError(f"{len(pieces)} strips or tiles of {math.prod(page.chunked)}")
    length = tiff.filehandle.size
    if any(not (count and offset) or offset + count > length for offset, count in pieces):
        raise ValueError("some of its strips or tiles are missing or end after the file")


def _check_jpegs(data: bytes, page: TiffPage) -> None:
    """Raise ValueError where a JPEG is larger than its strip or tile: decoders use its own size."""
    rows = page.tilelength or min(page.rowsperstrip, page.imagelength)
    columns = page.tilewidth or page.imagewidth
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        height, width = _jpeg_size(data[offset : offset + count])
        if width > columns + 16 or height > rows + 16:
            raise ValueError(f"a piece of {columns}×{rows} is {width}×{height}")


def _jpeg_size(data: bytes) -> Size:
    """Return height and width by the only frame header (ITU-T T.81, B.2.2)."""
    sizes = []
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, position + 1)
        if marker == 0xDA:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            sizes.append(struct.unpack_from(">HH", data, position + 5))
        position += 2 + length
    if len(sizes) != 1:
        raise ValueError("one of its pieces is no JPEG")
    height, width = sizes[0]
    return height, width


def _tag_numbers(tiff: TiffFile, page: TiffPage) -> set[int]:
    """Return the numbers of a page's tags, including those that tifffile could not read."""
    kind = tiff.tiff
    tiff.filehandle.seek(page.offset)
    (count,) = struct.unpack(kind.tagnoformat, tiff.filehandle.read(kind.tagnosize))
    records = tiff.filehandle.read(count * kind.tagsize)
    starts = range(0, len(records) - 1, kind.tagsize)
    return {struct.unpack_from(kind.byteorder + "H", records, start)[0] for start in starts}


def _colours(page: TiffPage, samples: Samples) -> Samples:
    photometric, bits = int(page.photometric), page.bitspersample
    if photometric == _PALETTE:
        return _palette(page)[samples[..., 0]]
    if photometric == _GREY_FROM_WHITE:
        samples = (2**bits - 1) - samples
    whole = whole_range(samples, bits)
    if photometric == _YCBCR and page.compression != _JPEG:
        height, width = whole.shape[:2]
        return np.asarray(Image.frombytes("YCbCr", (width, height), whole.tobytes()).convert("RGB"))
    return np.ascontiguousarray(whole[..., 0] if whole.shape[2] == 1 else whole)


def _palette(page: TiffPage) -> Samples:
    """Return the palette as RGB uint8; some writers fill its low bytes only, some the high ones."""
    table = np.asarray(page.tags.valueof(_COLOUR_MAP), np.uint16).reshape(3, -1)
    if table.shape[1] < 2**page.bitspersample:
        raise ValueError(f"its palette has {table.shape[1]} colours")
    bytes_ = table if table.max() < 256 else table >> 8
    return np.ascontiguousarray(bytes_.T.astype(np.uint8))


def whole_range(samples: Samples, bits: int) -> Samples:
    """Return samples of ``bits`` scaled to uint8, or to uint16 beyond 8 bits."""
    if bits in (8, 16):
        return samples.astype(samples.dtype.newbyteorder("="), copy=False)
    white = 255 if bits < 8 else 65535
    levels = np.arange(2**bits, dtype=np.uint64) * (2 * white) + (2**bits - 1)
    table = levels // (2 * (2**bits - 1))
    scaled: Samples = table.astype(np.uint8 if bits < 8 else np.uint16)[samples]
    return scaled


def _unmultiplied(colours: Samples, alpha: Samples) -> Samples:
    """Return premultiplied colours divided by ``alpha``, rounded."""
    white = np.float32(np.iinfo(alpha.dtype).max)
    share = alpha if colours.ndim == 2 else alpha[..., np.newaxis]
    straight = colours * (white / np.maximum(share, 1).astype(np.float32))
    return np.where(share == 0, 0, np.minimum(np.rint(straight), white)).astype(alpha.dtype)


def _mode(page: TiffPage) -> str:
    photometric, bits = int(page.photometric), page.bitspersample
    if photometric in (_GREY, _GREY_FROM_WHITE):
        alpha = page.samplesperpixel > 1
        return "LA" if alpha else "I;16" if bits > 8 else "1" if bits == 1 else "L"
    if photometric == _PALETTE:
        return "P"
    if photometric == _CMYK:
        return "CMYK"
    return "RGBA" if page.samplesperpixel > 3 else "RGB"


def _extra_samples(page: TiffPage) -> tuple[int, ...]:
    value = page.tags.valueof(_EXTRA_SAMPLES, ())
    return tuple(int(each) for each in (value if isinstance(value, tuple) else (value,)))


def _integer(page: TiffPage, tag: int, default: int) -> int:
    value = page.tags.valueof(tag, default)
    return int(value) if isinstance(value, int) else default


def _bytes(page: TiffPage, tag: int) -> bytes | None:
    value = page.tags.valueof(tag)
    return value if isinstance(value, bytes) else None


def _dpi(page: TiffPage) -> tuple[float, float] | None:
    per_inch = {2: 1.0, 3: 2.54}.get(_integer(page, _RESOLUTION_UNIT, 2))
    x, y = (page.tags.valueof(tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    try:
        return None if per_inch is None else (per_inch * x[0] / x[1], per_inch * y[0] / y[1])
    except (TypeError, IndexError, ZeroDivisionError):
        return None


def _exif(tiff: TiffFile, page: TiffPage) -> Image.Exif | None:
    """Return the tags of the page as EXIF, with its EXIF and GPS directories."""
    exif = Image.Exif()
    exif.bigtiff, exif.endian = tiff.is_bigtiff, tiff.byteorder
    try:
        exif.load_from_fp(tiff.filehandle, page.offset)  # type: ignore[arg-type]
    except Exception:
        return None  # Unreadable metadata is no reason to refuse the image.
    return exif


def _name(number: int) -> str:
    return getattr(number, "name", str(int(number)))
