"""Read GIF, JPEG 2000, AVIF and HEIC: first the header, then the samples.

The headers are parsed here, so that no decoder allocates memory before the size is known. Pillow
decodes GIF, and AVIF of 8 bits. imagecodecs decodes AVIF of more bits, which Pillow would truncate,
and JPEG 2000, on whose damaged files Pillow 13 hangs. pillow-heif decodes HEIC where it is
installed; it is optional, since its wheel contains GPL code.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import AvifImagePlugin, GifImagePlugin

from ...errors import InputError
from ..formats import HEIC_MISSING
from .image_header import Header, exif_orientation
from .tiff import Samples, whole_range

if TYPE_CHECKING:
    from pillow_heif import HeifFile

# The pipeline runs one conversion per core already. Pillow has this setting for the whole process.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_LARGEST_METADATA = 8 << 20
"""Bytes of the boxes in front of the pixels beyond which a file is hostile."""


# GIF (GIF89a, 17 to 27)


def read_gif(file: BinaryIO) -> Header:
    """Describe a GIF up to its second image."""
    width, height, flags = struct.unpack("<6x2HB2x", file.read(13))
    _skip_palette(file, flags)
    alpha, images = False, 0
    while images < 2:
        kind = file.read(1)
        if kind == b"\x21":
            label = file.read(1)
            content = _sub_blocks(file, keep=label == b"\xf9")
            alpha = alpha or (label == b"\xf9" and bool(content[0] & 1))
        elif kind == b"\x2c":
            left, top, columns, rows, flags = struct.unpack("<4HB", file.read(9))
            if left + columns > width or top + rows > height:
                raise ValueError("its image reaches beyond its canvas")
            _skip_palette(file, flags)
            file.seek(1, os.SEEK_CUR)
            _sub_blocks(file)
            images += 1
            alpha = alpha or (columns, rows) != (width, height)
        elif kind == b"\x3b":
            break
        else:
            raise ValueError("it has no end" if not kind else "it has a block of an unknown kind")
    if not images:
        raise ValueError("it has no image")
    return Header("gif", (height, width), "RGBA" if alpha else "RGB", pages=images)


def _skip_palette(file: BinaryIO, flags: int) -> None:
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, os.SEEK_CUR)


def _sub_blocks(file: BinaryIO, *, keep: bool = False) -> bytes:
    """Read to the end of the next sub-blocks; return their content, or nothing without ``keep``."""
    content = b""
    while True:
        (length,) = file.read(1)
        if not length:
            return content
        if keep:
            content += file.read(length)
        else:
            file.seek(length, os.SEEK_CUR)


# JPEG 2000 (ISO/IEC 15444-1)

_SIGNATURE_BOX = b"\0\0\0\x0cjP  "
_SRGB, _GREY = 16, 17
"""Numbers of enumerated colour spaces (I.5.3.3)."""
_UNSUPPORTED_SPACES = {12: "CMYK", 14: "CIELab", 18: "sYCC"}
"""Names for messages; the first two are numbers of ISO/IEC 15444-2."""


def read_jp2(file: BinaryIO) -> Header:
    """Describe a JPEG 2000 image by its codestream, whose values the decoder uses."""
    icc, colour, start = None, None, 0
    if file.read(8) == _SIGNATURE_BOX:
        for kind, begin, end in boxes(file, 0, file.seek(0, os.SEEK_END)):
            if kind == b"jp2h":
                icc, colour = _jp2_colour(file, begin, end)
            elif kind == b"jp2c":
                start = begin
                break
        if not start:
            raise ValueError("it has no image")
    file.seek(start)
    right, bottom, left, top, parts = struct.unpack(">8x4I16xH", file.read(42))
    sizes = [struct.unpack("3B", file.read(3)) for _ in range(min(parts, 5))]
    depths = {(size & 0x7F) + 1 for size, *_ in sizes}
    if parts not in (1, 2, 3, 4):
        raise ValueError(f"a colour of {parts} samples")
    if any(size & 0x80 for size, *_ in sizes):
        raise InputError("signed samples are not supported; convert it to PNG")
    bits = max(depths)
    if len(depths) > 1:
        raise InputError("samples of different sizes are not supported; convert it to PNG")
    if bits > 16:
        raise InputError(f"samples of {bits} bits are not supported; convert it to PNG")
    if colour not in (None, _SRGB, _GREY):
        space = _UNSUPPORTED_SPACES.get(colour, f"number {colour}")
        raise InputError(f"colour space {space} is not supported; convert it to PNG with sRGB")
    return Header(
        "jp2",
        (bottom - top, right - left),
        {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[parts],
        bits=16 if bits > 8 else 8,
        levels=2**bits,
        icc=icc,
    )


def _jp2_colour(file: BinaryIO, begin: int, end: int) -> tuple[bytes | None, int | None]:
    """Return the profile and the number of the colour space, None for what is absent."""
    icc = colour = None
    for kind, start, stop in boxes(file, begin, end):
        if kind == b"pclr":
            raise InputError("a palette in JPEG 2000 is not supported; convert it to PNG")
        if kind == b"colr":
            file.seek(start)
            content = file.read(min(stop - start, _LARGEST_METADATA))
            if content[0] == 1:
                colour = int.from_bytes(content[3:7])
            elif content[0] == 2:
                icc = content[3:]
    return icc, colour


# AVIF and HEIC (ISO/IEC 14496-12, 23008-12; the AVIF specification)


def read_avif(file: BinaryIO) -> Header:
    """Describe an AVIF."""
    primary = _primary_item(file)
    bits = primary.bits
    file.seek(0)
    image = AvifImagePlugin.AvifImageFile(file)
    exif = image.info.get("exif")
    return Header(
        "avif",
        image.size[::-1],
        image.mode,
        bits=16 if bits > 8 else 8,
        levels=2**bits if bits > 8 else 256,
        # Pillow converts the file's rotation and mirroring (irot, imir) to an EXIF orientation.
        orientation=exif_orientation(exif),
        pages=image.n_frames,
        icc=image.info.get("icc_profile"),
        exif=exif and exif.removeprefix(b"Exif\0\0"),
        transfer=primary.transfer,
        primaries=primary.primaries,
        peak=primary.peak,
    )


def read_heic(file: BinaryIO) -> Header:
    """Describe a HEIC; libheif turns it upright by its boxes and not by EXIF (ISO/IEC 23008-12)."""
    peak = _primary_item(file).peak
    file.seek(0)
    images = _heif(file)
    primary = images[images.primary_index]
    info: dict[str, Any] = dict(primary.info)
    exif, nclx, bits = info.get("exif"), info.get("nclx_profile") or {}, info.get("bit_depth", 8)
    return Header(
        "heic",
        primary.size[::-1],
        primary.mode.partition(";")[0],
        bits=16 if bits > 8 else 8,
        levels=2**bits if bits > 8 else 256,
        pages=len(images),
        icc=info.get("icc_profile") or None,
        exif=exif and exif.removeprefix(b"Exif\0\0"),
        transfer=nclx.get("transfer_characteristics", 2),
        primaries=nclx.get("color_primaries", 2),
        peak=peak,
    )


def _heif(file: BinaryIO) -> HeifFile:
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(HEIC_MISSING) from error
    pillow_heif.options.DECODE_THREADS = 1
    return pillow_heif.open_heif(file, convert_hdr_to_8bit=False, hdr_to_16bit=False)


@dataclass
class _PrimaryItem:
    """The properties of the image that a file shows."""

    primaries: int = 2
    transfer: int = 2
    bits: int = 8
    display_peak: float = 0
    content_peak: float = 0

    @property
    def peak(self) -> float | None:
        """cd/m²; that of the mastering display precedes the content light level."""
        return self.display_peak or self.content_peak or None


def _primary_item(file: BinaryIO) -> _PrimaryItem:
    """Return what the properties of the primary image state.

    A file may hold further images, such as an HDR rendering by a gain map, or depth.
    """
    item = 0
    shared: list[tuple[bytes, bytes]] = []
    lists: dict[int, list[int]] = {}
    for kind, begin, end in boxes(file, 0, file.seek(0, os.SEEK_END)):
        if kind != b"meta":
            continue
        for inner, start, stop in boxes(file, begin + 4, end):
            if inner == b"pitm":
                file.seek(start)
                version = file.read(4)[0]
                item = int.from_bytes(file.read(4 if version else 2))
            elif inner == b"iprp":
                for part, first, last in boxes(file, start, stop):
                    file.seek(first)
                    if part == b"ipco":
                        shared = [
                            (name, _content(file, a, b)) for name, a, b in boxes(file, first, last)
                        ]
                    elif part == b"ipma":
                        lists |= _property_lists(_content(file, first, last))
    primary = _PrimaryItem()
    for number in lists.get(item, ()):
        name, content = shared[number - 1] if 0 < number <= len(shared) else (b"", b"")
        if name == b"colr" and content[:4] == b"nclx":
            primary.primaries, primary.transfer = struct.unpack_from(">HH", content, 4)
        elif name == b"pixi":
            primary.bits = max(content[5 : 5 + content[4]], default=8)
        elif name == b"av1C":
            coded = 12 if content[2] & 0x20 else 10 if content[2] & 0x40 else 8
            primary.bits = max(primary.bits, coded)
        elif name == b"mdcv" and len(content) >= 20:
            primary.display_peak = struct.unpack_from(">I", content, 16)[0] / 10000
        elif name == b"clli" and len(content) >= 2:
            primary.content_peak = float(struct.unpack_from(">H", content)[0])
    return primary


def _property_lists(content: bytes) -> dict[int, list[int]]:
    """Return the numbers of each item's shared properties (ISO/IEC 23008-12, 9.3)."""
    version, wide = content[0], content[3] & 1
    (count,) = struct.unpack_from(">I", content, 4)
    place = 8
    lists: dict[int, list[int]] = {}
    for _ in range(count):
        (item,) = struct.unpack_from(">H" if version < 1 else ">I", content, place)
        place += 2 if version < 1 else 4
        number = content[place]
        place += 1
        step = 2 if wide else 1
        mask = 0x7FFF if wide else 0x7F
        lists[item] = [
            int.from_bytes(content[place + step * i : place + step * (i + 1)]) & mask
            for i in range(number)
        ]
        place += step * number
    return lists


def boxes(file: BinaryIO, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield each box between ``begin`` and ``end``: its type, and the range of its content."""
    while begin + 8 <= end:
        file.seek(begin)
        size, kind = struct.unpack(">I4s", file.read(8))
        start = begin + 8
        if size == 1:
            size, start = int.from_bytes(file.read(8)), start + 8
        stop = end if size == 0 else begin + size
        if not start <= stop <= end:
            raise ValueError(f"its box {ascii(kind)[2:-1]} ends after the box around it")
        yield kind, start, stop
        begin = stop


def _content(file: BinaryIO, begin: int, end: int) -> bytes:
    if end - begin > _LARGEST_METADATA:
        raise ValueError(f"a box of {end - begin} bytes")
    file.seek(begin)
    return file.read(end - begin)


# The samples


def decode_still(data: bytes, header: Header) -> tuple[Samples, Samples | None]:
    """Return the stored samples, ``(H, W)`` for grey or RGB, and the alpha beside them.

    They are uint8, or uint16 where they have more than 8 bits, scaled to the whole range.
    """
    return _split(_DECODERS[header.format](data, header), header)


def _split(samples: Samples, header: Header) -> tuple[Samples, Samples | None]:
    if samples.ndim == 3 and samples.shape[2] in (2, 4):
        alpha = np.ascontiguousarray(samples[..., -1])
        colours = samples[..., 0] if samples.shape[2] == 2 else samples[..., :3]
        return np.ascontiguousarray(colours), alpha
    return samples[..., 0] if samples.ndim == 3 and samples.shape[2] == 1 else samples, None


def _decode_gif(data: bytes, header: Header) -> Samples:
    image = GifImagePlugin.GifImageFile(io.BytesIO(data))
    return np.asarray(image.convert(header.mode))


def _decode_jp2(data: bytes, header: Header) -> Samples:
    import imagecodecs

    return _scaled(imagecodecs.jpeg2k_decode(data, numthreads=1), header)


def _decode_avif(data: bytes, header: Header) -> Samples:
    if header.levels == 256:
        return np.asarray(AvifImagePlugin.AvifImageFile(io.BytesIO(data)))
    import imagecodecs

    return _scaled(imagecodecs.avif_decode(data, index=0, numthreads=1), header)


def _decode_heic(data: bytes, header: Header) -> Samples:
    images = _heif(io.BytesIO(data))
    samples = np.asarray(images[images.primary_index])
    return samples if header.levels == 256 else _scaled(samples, header)


def _scaled(samples: Samples, header: Header) -> Samples:
    """Return ``samples`` scaled to the whole range. Raises ValueError where one is too large."""
    if int(samples.max()) >= header.levels:
        raise ValueError("its depth and its samples contradict each other")
    return whole_range(samples, header.levels.bit_length() - 1)


_DECODERS = {
    "gif": _decode_gif,
    "jp2": _decode_jp2,
    "avif": _decode_avif,
    "heic": _decode_heic,
}
