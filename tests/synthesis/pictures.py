"""Picture files made on the spot, whole and broken, with known pixels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

Samples = npt.NDArray[Any]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def photo(height: int = 48, width: int = 64, *, seed: int = 0) -> Samples:
    """Return smooth RGB with some noise, which every codec can hold well: ``(H, W, 3)`` uint8."""
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 3))
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [
        255 * rows / max(height - 1, 1),
        255 * columns / max(width - 1, 1),
        127 + 100 * np.sin((rows + 2 * columns + 7 * seed) / 9.0),
    ]
    return np.clip(np.stack(planes, axis=-1) + noise, 0, 255).astype(np.uint8)


def alpha(height: int = 48, width: int = 64) -> Samples:
    """Return alpha with every one of its values: ``(H, W)`` uint8."""
    return (np.arange(height * width) * 7 % 256).astype(np.uint8).reshape(height, width)


def png(samples: Samples, *chunks: tuple[bytes, bytes], depth: int = 0, **header: int) -> bytes:
    """Return a PNG of ``(H, W[, 1..4])`` uint8 or uint16, written by hand.

    ``depth``: 1, 2 or 4 for grey or palette samples below 8 bits. ``chunks`` go between IHDR and
    IDAT. ``header``: ``colour`` where the number of channels does not say it (3: palette).
    """
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    colour = header.get("colour", {1: 0, 2: 4, 3: 2, 4: 6}[channels])
    depth = depth or samples.dtype.itemsize * 8
    if depth < 8:
        bits = (samples[..., np.newaxis] >> np.arange(depth - 1, -1, -1)) & 1
        rows = [np.packbits(row.reshape(-1)).tobytes() for row in bits]
    else:
        rows = [row.tobytes() for row in samples.astype(samples.dtype.newbyteorder(">"))]
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    start = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    every = [(b"IHDR", start), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(png_chunk(kind, content) for kind, content in every)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return one chunk with its checksum."""
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def tiff(
    samples: Samples,
    *,
    bits: int | None = None,
    order: str = "<",
    planes: bool = False,
    tile: tuple[int, int] | None = None,
    rows: int = 7,
    predictor: bool = False,
    compression: int = 1,
    photometric: int | None = None,
    big: bool = False,
    tags: dict[int, tuple[int, ...]] | None = None,
) -> bytes:
    """Return a TIFF of ``(H, W, bands)`` uint8 or uint16, written by hand after TIFF 6.0.

    ``compression``: 1, 8 (Deflate) or 32773 (PackBits). ``tags``: more of them, as SHORTs, or None
    to leave one out.
    """
    height, width, bands = samples.shape
    bits = bits or samples.dtype.itemsize * 8
    pieces = []
    for block in np.moveaxis(samples, 2, 0)[..., np.newaxis] if planes else [samples]:
        for top in range(0, height, tile[0] if tile else rows):
            for left in range(0, width, tile[1] if tile else width):
                if tile is None:
                    piece = block[top : top + rows]
                else:
                    piece = np.zeros((*tile, block.shape[2]), block.dtype)
                    part = block[top : top + tile[0], left : left + tile[1]]
                    piece[: part.shape[0], : part.shape[1]] = part
                pieces.append(_tiff_piece(piece, bits, order, predictor, compression))
    colours = 2 if bands > 2 else 1
    entries: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (bits,) * bands,
        259: (compression,),
        262: (colours if photometric is None else photometric,),
        277: (bands,),
        284: (2 if planes else 1,),
        317: (2 if predictor else 1,),
    }
    if tile:
        entries |= {322: (tile[1],), 323: (tile[0],)}
    else:
        entries[278] = (rows,)
    entries |= tags or {}
    where, sizes = (324, 325) if tile else (273, 279)
    offset_kind, long_kind = ("Q", 16) if big else ("I", 4)
    inline, head = (8, 16) if big else (4, 8)
    directory = [*entries.items(), (where, ()), (sizes, tuple(map(len, pieces)))]
    start = head + (8 if big else 2) + len(directory) * (20 if big else 12) + inline
    values = b""
    laid: dict[int, tuple[int, int, bytes]] = {}
    # The values that do not fit into the directory come first, the pieces last.
    room = sum(len(v) * 8 + 8 for v in entries.values()) + 2 * (len(pieces) * 8 + 8)
    at = start + room
    offsets = tuple(at + sum(map(len, pieces[:number])) for number in range(len(pieces)))
    for tag, value in directory:
        kind, letter = (long_kind, offset_kind) if tag in (where, sizes) else (3, "H")
        if tag == where:
            value = offsets
        body = struct.pack(f"{order}{len(value)}{letter}", *value)
        if len(body) > inline:
            pointer = struct.pack(order + offset_kind, start + len(values))
            values += body + bytes(-len(body) % 8)
            body = pointer
        laid[tag] = (kind, len(value), body.ljust(inline, b"\0"))
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    data += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8)
    data += struct.pack(order + ("Q" if big else "H"), len(laid))
    for tag, (kind, count, body) in sorted(laid.items()):
        data += struct.pack(order + "HH" + offset_kind, tag, kind, count) + body
    return (data + bytes(inline) + values).ljust(at, b"\0") + b"".join(pieces)


def _tiff_piece(piece: Samples, bits: int, order: str, predictor: bool, compression: int) -> bytes:
    if predictor:
        piece = np.diff(piece, axis=1, prepend=piece[:, :1] * 0)
    if bits in (8, 16):
        data = piece.astype(piece.dtype.newbyteorder(order)).tobytes()
    else:
        # Every row begins at a byte.
        flags = (piece[..., np.newaxis] >> np.arange(bits - 1, -1, -1)) & 1
        data = b"".join(np.packbits(row.reshape(-1)).tobytes() for row in flags.astype(np.uint8))
    if compression == 8:
        return zlib.compress(data)
    if compression == 32773:
        parts = [data[start : start + 128] for start in range(0, len(data), 128)]
        return b"".join(bytes([len(part) - 1]) + part for part in parts)
    return data


def pillow(samples: Samples, format_: str, mode: str | None = None, **options: Any) -> bytes:
    """Return ``samples`` as Pillow writes them, converted to ``mode`` first where one is named."""
    image = Image.fromarray(samples)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, format_, **options)
    return file.getvalue()


def cmyk(samples: Samples, format_: str, **options: Any) -> bytes:
    """Return ``(H, W, 4)`` uint8 ink levels (0: none) as a CMYK file."""
    file = io.BytesIO()
    Image.fromarray(samples, mode="CMYK").save(file, format_, **options)
    return file.getvalue()


def exif(orientation: int | None = None, **tags: Any) -> bytes:
    """Return an EXIF block with its signature; ``tags``: make, artist, taken, latitude."""
    block = Image.Exif()
    if orientation is not None:
        block[0x0112] = orientation
    if "make" in tags:
        block[0x010F] = tags["make"]
    if "artist" in tags:
        block[0x013B] = tags["artist"]
    if "taken" in tags:
        block[0x8769] = {0x9003: tags["taken"], 0xA002: 4000, 0x927C: b"maker"}
    if "latitude" in tags:
        block[0x8825] = {1: "N", 2: tags["latitude"]}
    return block.tobytes()


def turned(samples: Samples, orientation: int) -> Samples:
    """Return how a camera stores upright ``samples`` under an EXIF orientation."""
    return {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](samples).copy()


def srgb_profile() -> bytes:
    """Return an RGB profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grey_profile(gamma: float) -> bytes:
    """Return a minimal ICC v2 profile for grey with ``gamma`` and white D50."""
    d50 = struct.pack(">3i", 63190, 65536, 54061)  # 0.9642, 1, 0.8249 as s15Fixed16
    return _profile(
        b"GRAY",
        b"mntr",
        {
            b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(78),
            b"wtpt": b"XYZ " + bytes(4) + d50,
            b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2),
            b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        },
    )


def ink_lab(c: int, m: int, y: int, k: int) -> tuple[float, float, float]:
    """Return the Lab of full inks under `cmyk_profile`; black ink is L* 10, whatever is beneath."""
    if k:
        return 10.0, 0.0, 0.0
    return 100.0 - 20.0 * (c + m + y), 40.0 * m - 25.0 * c, 40.0 * y - 20.0 * c


def cmyk_profile() -> bytes:
    """Return a tiny ICC v2 output profile whose inks are unlike plain arithmetic (`ink_lab`)."""
    corners = []
    for corner in range(16):
        lightness, redness, yellowness = ink_lab(*((corner >> shift) & 1 for shift in (3, 2, 1, 0)))
        # Lab as 16 bits in version 2: L* 0..100 is 0..0xFF00, a* and b* are offset by 128.
        corners += [round(lightness * 652.8), round((redness + 128) * 256)]
        corners += [round((yellowness + 128) * 256)]
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = (
        b"mft2"
        + bytes(4)
        + bytes([4, 3, 2, 0])
        + identity
        + struct.pack(">2H", 2, 2)
        + struct.pack(">2H", 0, 65535) * 4
        + struct.pack(">48H", *corners)
        + struct.pack(">2H", 0, 65535) * 3
    )
    back = (
        b"mft2"
        + bytes(4)
        + bytes([3, 4, 2, 0])
        + identity
        + struct.pack(">2H", 2, 2)
        + struct.pack(">2H", 0, 65535) * 3
        + struct.pack(">32H", *[0, 0, 0, 65535] * 4, *[0] * 16)
        + struct.pack(">2H", 0, 65535) * 4
    )
    return _profile(
        b"CMYK",
        b"prtr",
        {
            b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78),
            b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),
            b"A2B0": table,
            b"A2B1": table,
            b"B2A0": back,
            b"B2A1": back,
            b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        },
        b"Lab ",
    )


def _profile(
    space: bytes, kind: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ "
) -> bytes:
    padded = {name: body + bytes(-len(body) % 4) for name, body in tags.items()}
    offset = 128 + 4 + 12 * len(padded)
    directory, bodies = struct.pack(">I", len(padded)), b""
    for name, body in padded.items():
        directory += name + struct.pack(">II", offset + len(bodies), len(body))
        bodies += body
    header = struct.pack(">I", offset + len(bodies)) + bytes(4) + b"\x02\x40\0\0"
    header += kind + space + connection + bytes(12) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + directory + bodies
