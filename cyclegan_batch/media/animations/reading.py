"""Read an animated image as the video that it is: its description, and its whole frames.

A file holds rectangles that are laid over each other. Each is decoded here by itself, as a still
image, and laid upon the canvas as the format says, so that whole frames result. Pillow decodes the
rectangles of a GIF, `images.codec` those of PNG and WebP. What no rectangle covers is transparent,
in GIF also where the file names a background colour: that is what browsers show.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import GifImagePlugin

from ...errors import InputError
from ...wording import printable
from ..demux.demuxing import check_is_file, input_error
from ..demux.lookahead import evenly_spaced
from ..demux.stream_info import MediaInfo, StreamInfo
from ..images.codec import decode_picture
from ..images.headers import read_header
from ..images.png import SIGNATURE
from ..images.png_writer import chunk
from .structure import Piece, Structure, read_structure

Canvas: TypeAlias = npt.NDArray[np.uint8]
"""``(H, W, 4)``: red, green, blue and alpha; the colours are not multiplied by it."""

ANIMATIONS = frozenset({"gif", "apng", "webp"})
"""The formats of `MediaInfo` that are read here."""

_FINEST_CLOCK = 100_000
"""Ticks a second of the clock of an APNG whose times have no smaller common one."""


def describe_animation(path: Path, *, max_pixels: int) -> MediaInfo | None:
    """Describe an animated image as a video; None where the file is none.

    A GIF counts as one with a single image, too. Its first frame is decoded, in order to know
    whether it is transparent anywhere. Raises InputError where it has no frame, or where its canvas
    has more than ``max_pixels``.
    """
    check_is_file(path)
    name, icc = printable(path), None
    try:
        with path.open("rb") as file:
            structure = _structure(file, name, max_pixels)
            if structure is None:
                return None
            alpha = _is_transparent(file, structure)
            file.seek(0)
            # A file that is damaged behind its first frames has no whole header for that module.
            with contextlib.suppress(InputError):
                icc = read_header(file, name, max_pixels=max_pixels).icc
    except OSError as error:
        raise input_error(path, error) from error
    clock = Clock(structure)
    times = [clock.ticks(piece) for piece in range(len(structure.pieces) + 1)]
    duration = times[-1] * clock.base
    frames = len(structure.pieces)
    stream = StreamInfo(
        index=0,
        kind="video",
        codec=structure.format,
        time_base=clock.base,
        start_pts=0,
        duration=times[-1],
        metadata={},
        disposition=("default",),
        size=structure.size,
        average_rate=(frames / duration).limit_denominator(1001),
        constant_rate=evenly_spaced(times[:-1]),
        frames_claimed=frames,
        pix_fmt="rgba" if alpha else "rgb24",
        colour=structure.colour,
        interlaced=False,
        alpha=alpha,
    )
    return MediaInfo(
        path=path,
        format=structure.format,
        duration=duration,
        streams=(stream,),
        metadata={},
        chapters=(),
        plays=structure.plays,
        icc=icc,
    )


def _structure(file: BinaryIO, name: str, max_pixels: int) -> Structure | None:
    """Return the structure of a file that holds frames, None for other files. Raises InputError."""
    try:
        structure = read_structure(file)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except (ValueError, struct.error) as error:
        raise InputError(
            f"{name}: is damaged: its header cannot be read ({error}); replace it with a whole copy"
        ) from error
    if structure is None:
        return None
    height, width = structure.size
    if not height or not width:
        raise InputError(f"{name}: is damaged: its header states {width}×{height} pixels")
    if height * width > max_pixels:
        raise InputError(
            f"{name}: {width}×{height} is more than --max-pixels {max_pixels} allows; "
            "raise it if the animation is really this large"
        )
    if not structure.pieces:
        trouble = structure.trouble or "it has no image"
        raise InputError(f"{name}: is damaged: {trouble}; replace it with a whole copy")
    return structure


class Clock:
    """When the frames of an animation are shown, in ticks."""

    def __init__(self, structure: Structure) -> None:
        fixed = {"gif": 100, "webp": 1000}.get(structure.format)
        rate = fixed or math.lcm(*{each.seconds.denominator for each in structure.pieces})
        self.base = Fraction(1, min(rate, _FINEST_CLOCK))
        """Seconds of a tick."""
        ends = itertools.accumulate(each.seconds for each in structure.pieces)
        self._seconds = [Fraction(0), *ends]

    def ticks(self, frame: int) -> int:
        """Return when ``frame`` begins, and for the number of frames when the last one ends."""
        return round(self._seconds[frame] / self.base)


def _is_transparent(file: BinaryIO, structure: Structure) -> bool:
    """Return whether a frame may be transparent somewhere; most GIF files have none.

    The first frame shows it, and each one that is taken away and not covered by the next.
    """
    first, *others = structure.pieces
    painter = _Painter(file, structure)
    try:
        if int(painter.frame(first)[..., 3].min()) < 255:
            return True
    except (ValueError, struct.error, InputError):
        return first.may_be_transparent or bool(others)
    before = first
    for piece in others:
        is_cleared = before.disposal == "clear" or (before is first and before.disposal != "keep")
        covers = (
            piece.left <= before.left
            and piece.top <= before.top
            and piece.left + piece.width >= before.left + before.width
            and piece.top + piece.height >= before.top + before.height
        )
        if is_cleared and (piece.may_be_transparent or not covers):
            return True
        if not piece.is_blended and piece.may_be_transparent:
            return True
        # What this piece covers comes back with the next one, where it restores it.
        if not (is_cleared and piece.disposal == "restore"):
            before = piece
    return False


@dataclass(frozen=True)
class Shown:
    """A whole frame."""

    pts: int
    """In ticks of the `Clock`."""
    duration: int
    """In ticks."""
    canvas: Canvas


@dataclass(frozen=True)
class Unreadable:
    """A frame that is damaged; those behind it are laid over what was there before it."""

    pts: int
    cause: str


class AnimationFile:
    """An animated image that is read from its beginning to its end."""

    def __init__(self, path: Path, *, max_pixels: int) -> None:
        """Open it. Raises InputError where it is none any more, and OSError."""
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(path.open("rb"))
            structure = _structure(self._file, printable(path), max_pixels)
            if structure is None:
                raise InputError(f"{printable(path)}: is no animation any more; give it again")
            stack.pop_all()
        self._structure = structure
        self._max_pixels = max_pixels

    @property
    def trouble(self) -> str | None:
        """How the end of the file shows that some of it is missing."""
        return self._structure.trouble

    def frames(self) -> Iterator[Shown | Unreadable]:
        """Yield the frames in their order. Raises OSError."""
        clock = Clock(self._structure)
        painter = _Painter(self._file, self._structure, self._max_pixels)
        for number, piece in enumerate(self._structure.pieces):
            begin = clock.ticks(number)
            try:
                canvas = painter.frame(piece)
            except (ValueError, struct.error, InputError) as error:
                yield Unreadable(begin, str(error))
            else:
                yield Shown(begin, max(1, clock.ticks(number + 1) - begin), canvas)

    def close(self) -> None:
        """Close the file; twice is fine."""
        self._file.close()


class _Painter:
    """Lay the rectangles of an animation over each other, one after the other."""

    def __init__(self, file: BinaryIO, structure: Structure, max_pixels: int | None = None) -> None:
        self._file, self._structure = file, structure
        height, width = structure.size
        self._max_pixels = max_pixels or height * width
        self._canvas = np.zeros((height, width, 4), np.uint8)
        self._leave: tuple[tuple[slice, slice], Canvas | None] | None = None
        """The rectangle that the last frame leaves, and what is put there; None for nothing."""

    def frame(self, piece: Piece) -> Canvas:
        """Return the canvas with ``piece`` upon it.

        Raises ValueError, struct.error or InputError where the piece is damaged; the canvas is then
        as the frame before leaves it.
        """
        canvas = self._canvas
        if self._leave is not None:
            place, content = self._leave
            canvas[place] = 0 if content is None else content
            self._leave = None
        if piece.width * piece.height > max(self._max_pixels, canvas.size // 4):
            raise ValueError(f"it has {piece.width}×{piece.height} pixels, more than its canvas")
        pixels: Canvas = _DECODERS[self._structure.format](self._file, self._structure, piece)
        if pixels.shape[:2] != (piece.height, piece.width):
            raise ValueError("its sizes contradict each other")
        # What reaches beyond the canvas is cut off.
        place = (
            slice(piece.top, piece.top + piece.height),
            slice(piece.left, piece.left + piece.width),
        )
        below = canvas[place]
        pixels = pixels[: below.shape[0], : below.shape[1]]
        if piece.disposal == "restore":
            self._leave = place, below.copy()
        elif piece.disposal == "clear":
            self._leave = place, None
        canvas[place] = _over(pixels, below) if piece.is_blended else pixels
        return canvas.copy()


def _over(above: Canvas, below: Canvas) -> Canvas:
    """Return ``above`` laid over ``below`` (PNG, third edition, 13.16)."""
    alpha = above[..., 3:]
    if alpha.size == 0 or alpha.min() == 255:
        return above
    if ((alpha == 0) | (alpha == 255)).all():
        return np.where(alpha == 0, below, above)
    over, under = alpha / np.float32(255), below[..., 3:] / np.float32(255)
    under = under * (1 - over)
    whole = over + under
    colours = above[..., :3] * over + below[..., :3] * under
    np.divide(colours, whole, out=colours, where=whole > 0)
    blended: Canvas = np.rint(np.concatenate([colours, 255 * whole], axis=2)).astype(np.uint8)
    return blended


# One rectangle as a still image


def _read(file: BinaryIO, begin: int, end: int) -> bytes:
    file.seek(begin)
    data = file.read(end - begin)
    if len(data) != end - begin:
        raise ValueError("it ends within a frame")
    return data


def _decode_gif(file: BinaryIO, structure: Structure, piece: Piece) -> Canvas:
    """Return a rectangle of a GIF, by its indices, which Pillow decodes from a file of its own."""
    size = struct.pack("<HH", piece.width, piece.height)
    # With these colours Pillow returns the indices as grey.
    grey = np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes()
    still = b"".join([
        b"GIF89a", size, b"\xf7\0\0", grey,
        b",\0\0\0\0", size, b"\x40" if piece.is_interlaced else b"\0",
        *(_read(file, *extent) for extent in piece.data), b";",
    ])  # fmt: skip
    try:
        indices = np.asarray(GifImagePlugin.GifImageFile(io.BytesIO(still)))
    # Pillow raises exceptions of many types on a damaged file.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error
    table = np.zeros((256, 4), np.uint8)
    table[:, 3] = 255
    # A file without any table leaves the colours to the program: grey.
    table[:, :3] = np.arange(256)[:, np.newaxis]
    if piece.palette is not None:
        start, length = piece.palette
        colours = np.frombuffer(_read(file, start, start + length), np.uint8).reshape(-1, 3)
        table[:, :3] = 0
        table[: len(colours), :3] = colours
    if piece.transparent is not None:
        table[piece.transparent] = 0
    colours_of_all: Canvas = table[indices]
    return colours_of_all


def _decode_apng(file: BinaryIO, structure: Structure, piece: Piece) -> Canvas:
    """Return a rectangle of an APNG, as the PNG file that its chunks make."""
    head = dict(structure.head)
    sides = struct.pack(">II", piece.width, piece.height)
    parts = [SIGNATURE, chunk(b"IHDR", sides + head.pop(b"IHDR")[8:])]
    parts += [chunk(kind, content) for kind, content in head.items()]
    for begin, end in piece.data:
        data = _read(file, begin, end)
        if zlib.crc32(data[4:-4]) != int.from_bytes(data[-4:]):
            raise ValueError("wrong checksum of a chunk")
        # In front of the data of fdAT stands a number.
        parts.append(chunk(b"IDAT", data[8 if data[4:8] == b"IDAT" else 12 : -4]))
    return _decode_still(b"".join([*parts, chunk(b"IEND", b"")]), piece)


def _decode_webp(file: BinaryIO, structure: Structure, piece: Piece) -> Canvas:
    """Return a rectangle of a WebP, as the WebP file that its chunks make."""
    ((begin, end),) = piece.data
    chunks = _read(file, begin, end)
    if chunks[:4] == b"ALPH":
        sides = (struct.pack("<I", side - 1)[:3] for side in (piece.width, piece.height))
        chunks = b"VP8X\x0a\0\0\0\x10\0\0\0" + b"".join(sides) + chunks
    return _decode_still(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks, piece)


def _decode_still(data: bytes, piece: Piece) -> Canvas:
    try:
        picture = decode_picture(data, "it", max_pixels=piece.width * piece.height)
    except InputError as error:
        raise ValueError(str(error).removeprefix("it: ")) from error
    alpha = picture.extras.alpha
    if alpha is None:
        alpha = np.full(picture.pixels.shape[:2], 255, np.uint8)
    return np.dstack([picture.pixels, alpha])


_DECODERS = {"gif": _decode_gif, "apng": _decode_apng, "webp": _decode_webp}
