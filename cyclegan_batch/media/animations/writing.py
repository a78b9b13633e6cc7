"""Write animated images: each frame is encoded by itself, and written as it comes.

Every frame covers the whole canvas, and differs from the one before it in nearly every pixel, as
what a generator draws does; so nothing is gained by differences between frames. Frames can be
encoded side by side, only one of them is in memory, and the bytes are the same in every run. The
formats are those of `structure`.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, ClassVar, Protocol, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from PIL import Image

from ...frames import Size
from ..formats import AnimationFormat
from ..images.codec import Extras, encode_picture
from ..images.png import SIGNATURE
from ..images.png_writer import chunk
from .structure import read_structure

Samples: TypeAlias = npt.NDArray[np.uint8]

DEFAULT_QUALITY = 80
"""Of an animated WebP."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the frames of an animation are encoded."""

    size: Size
    """Height and width, of every frame."""
    alpha: bool
    """The frames have alpha."""
    plays: int
    """How often it is shown; 0 is for ever."""
    icc: bytes | None = None
    """The profile of the colours, which a GIF cannot hold."""
    quality: int = DEFAULT_QUALITY
    """Of WebP, from 1 to 100, which is lossless."""
    png_level: int | None = None
    """Of APNG: zlib's level, or None for the fast writer."""


class Writer(Protocol):
    """The file of an animation, and the encoder of its frames."""

    ticks: ClassVar[int]
    """Of the format's clock, in a second."""
    longest: ClassVar[int]
    """Ticks for which a frame can be shown, at most."""
    largest_side: ClassVar[int]
    """Pixels."""

    def __init__(self, file: BinaryIO, settings: Settings) -> None:
        """Write what precedes the first frame into the open ``file``, from its beginning."""

    def add(self, frame: bytes, ticks: int) -> None:
        """Write the next frame, which `encode` has returned, to be shown for ``ticks``."""

    def finish(self) -> None:
        """Write what follows the last frame. The file stays open."""


def encode_frame(
    format_: AnimationFormat, colours: Samples, alpha: Samples | None, settings: Settings
) -> bytes:
    """Return RGB ``(H, W, 3)`` with alpha ``(H, W)``, or None, as a frame for a writer.

    Safe to call from several threads. Raises OutputError.
    """
    return _ENCODERS[format_](colours, alpha, settings)


# GIF


_COLOURS = 256
_OPAQUE = 128
"""Alpha from which on a pixel is opaque: GIF holds one bit."""
_SAMPLED = 2**16
"""Pixels by which the colours of a frame are chosen, at most."""


def _encode_gif(colours: Samples, alpha: Samples | None, settings: Settings) -> bytes:
    """Return the image block: its descriptor, a table of its own colours, and its indices."""
    indices, table = _quantised(colours, alpha if settings.alpha else None)
    still = Image.fromarray(indices)
    # Other colours than grey, with which Pillow would write fewer of them.
    still.putpalette(bytes(range(256)) * 3)
    file = io.BytesIO()
    still.save(file, "GIF", optimize=False, interlace=0)
    structure = read_structure(file)
    assert structure is not None
    ((begin, end),) = structure.pieces[0].data
    height, width = settings.size
    descriptor = struct.pack("<B4HB", 0x2C, 0, 0, width, height, 0x87)
    return descriptor + table + file.getvalue()[begin:end]


def _quantised(colours: Samples, alpha: Samples | None) -> tuple[Samples, bytes]:
    """Return the index of each pixel, and 256 colours of three bytes; with alpha the last is clear.

    FFmpeg's palettegen and paletteuse choose 256 colours for this frame alone. On two clips of 480
    pixels their PSNR was 1.9 and 3.8 dB above that of Pillow's octree. The error of a pixel is
    spread over its neighbours (Sierra, two rows): without that, slopes of a colour become bands;
    Floyd-Steinberg's was 0.9 dB worse and took 4 to 6 % more bytes. The colours are those of a
    sample of the pixels, which costs 0.1 dB and takes a third of the time.
    """
    samples = colours if alpha is None else np.dstack([colours, alpha])
    layout = "rgb24" if alpha is None else "rgba"
    step = math.ceil(math.sqrt(colours.shape[0] * colours.shape[1] / _SAMPLED))
    reserved = 0 if alpha is None else 1
    choose = f"stats_mode=single:reserve_transparent={reserved}"
    palette = _filtered("palettegen", choose, [(samples[::step, ::step], layout)])
    chosen = np.frombuffer(memoryview(palette.planes[0]), np.uint8).reshape(16, -1)[:, :64]
    use = f"dither=sierra2:alpha_threshold={_OPAQUE}"
    inputs = [(samples, layout), (chosen.reshape(16, 16, 4), "bgra")]
    result = _filtered("paletteuse", use, inputs)
    height, width = colours.shape[:2]
    indices = np.frombuffer(memoryview(result.planes[0]), np.uint8).reshape(height, -1)[:, :width]
    # Four bytes of each colour: blue, green, red and alpha.
    table = np.frombuffer(memoryview(result.planes[1]), np.uint8).reshape(_COLOURS, 4)
    return indices.copy(), table[:, 2::-1].tobytes()


def _filtered(name: str, options: str, inputs: list[tuple[Samples, str]]) -> av.VideoFrame:
    """Return what a filter of FFmpeg makes of one frame at each of its inputs, by pixel formats."""
    graph = Graph()
    graph.threads = 1
    node, sink = graph.add(name, options), graph.add("buffersink")
    node.link_to(sink)
    sources = []
    for number, (samples, layout) in enumerate(inputs):
        height, width = samples.shape[:2]
        source = graph.add_buffer(
            width=width, height=height, format=av.VideoFormat(layout), time_base=Fraction(1)
        )
        source.link_to(node, 0, number)
        sources.append(source)
    graph.configure()
    for source, (samples, layout) in zip(sources, inputs, strict=True):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(samples), format=layout)
        frame.pts, frame.time_base = 0, Fraction(1)
        source.push(frame)
        source.push(None)
    filtered = sink.pull()
    assert isinstance(filtered, av.VideoFrame)
    return filtered


class GifWriter:
    """Write a GIF (GIF89a)."""

    ticks: ClassVar = 100
    longest: ClassVar = 2**16 - 1
    largest_side: ClassVar = 2**16 - 1

    def __init__(self, file: BinaryIO, settings: Settings) -> None:
        self._file, self._settings = file, settings
        height, width = settings.size
        file.write(struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x70, 0, 0))
        if settings.plays != 1:
            repeated = min(max(settings.plays - 1, 0), 2**16 - 1)
            file.write(struct.pack("<3s11sBBHB", b"!\xff\x0b", b"NETSCAPE2.0", 3, 1, repeated, 0))

    def add(self, frame: bytes, ticks: int) -> None:
        """Write the next frame, which is shown for ``ticks``."""
        # Transparent pixels show what is below, so that a frame with some leaves nothing below.
        flags = 2 << 2 | 1 if self._settings.alpha else 1 << 2
        self._file.write(struct.pack("<3sBHBB", b"!\xf9\4", flags, ticks, _COLOURS - 1, 0))
        self._file.write(frame)

    def finish(self) -> None:
        """Write the trailer."""
        self._file.write(b";")


# WebP


def _encode_webp(colours: Samples, alpha: Samples | None, settings: Settings) -> bytes:
    """Return the chunks of the image: ALPH and VP8, or VP8L."""
    data = encode_picture(colours, "webp", quality=settings.quality, extras=Extras(alpha=alpha))
    if data[12:16] != b"VP8X":
        return data[12:]
    return data[30:]


class WebpWriter:
    """Write an animated WebP (RFC 9649)."""

    ticks: ClassVar = 1000
    longest: ClassVar = 2**24 - 1
    largest_side: ClassVar = 16383

    def __init__(self, file: BinaryIO, settings: Settings) -> None:
        self._file, self._size = file, settings.size
        height, width = settings.size
        profile = settings.icc or b""
        flags = 2 | (0x10 if settings.alpha else 0) | (0x20 if profile else 0)
        file.write(b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + bytes([flags, 0, 0, 0]))
        file.write(_three_bytes(width - 1) + _three_bytes(height - 1))
        if profile:
            file.write(struct.pack("<4sI", b"ICCP", len(profile)))
            file.write(profile + bytes(len(profile) % 2))
        file.write(struct.pack("<4sIIH", b"ANIM", 6, 0, min(settings.plays, 2**16 - 1)))

    def add(self, frame: bytes, ticks: int) -> None:
        """Write the next frame, which is shown for ``ticks``."""
        height, width = self._size
        # It replaces what is below, and stays.
        place = bytes(6) + _three_bytes(width - 1) + _three_bytes(height - 1)
        self._file.write(struct.pack("<4sI", b"ANMF", 16 + len(frame)))
        self._file.write(place + _three_bytes(ticks) + b"\2" + frame)
        if self._file.tell() > 2**32 - 2:
            raise ValueError("a WebP holds 4 GiB at most; write .apng or a video")

    def finish(self) -> None:
        """Write the length into the header."""
        length = self._file.tell() - 8
        self._file.seek(4)
        self._file.write(struct.pack("<I", length))


def _three_bytes(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


# APNG


def _encode_apng(colours: Samples, alpha: Samples | None, settings: Settings) -> bytes:
    """Return a PNG file."""
    extras = Extras(alpha=alpha)
    return encode_picture(colours, "png", png_level=settings.png_level, extras=extras)


class ApngWriter:
    """Write an APNG (PNG, third edition)."""

    ticks: ClassVar = 1000
    longest: ClassVar = 1000 * (2**16 - 1)
    largest_side: ClassVar = 2**31 - 1

    def __init__(self, file: BinaryIO, settings: Settings) -> None:
        self._file, self._settings = file, settings
        self._frames = self._chunks = 0
        height, width = settings.size
        colour = 6 if settings.alpha else 2
        head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
        file.write(SIGNATURE + chunk(b"IHDR", head))
        if settings.icc:
            file.write(chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(settings.icc)))
        self._control = file.tell()
        self._write_control()

    def _write_control(self) -> None:
        plays = min(self._settings.plays, 2**31 - 1)
        self._file.write(chunk(b"acTL", struct.pack(">II", self._frames, plays)))

    def add(self, frame: bytes, ticks: int) -> None:
        """Write the next frame, which is shown for ``ticks``."""
        height, width = self._settings.size
        scale = next(each for each in (1, 10, 100, 1000) if round(ticks / each) < 2**16)
        time = struct.pack(">HH", round(ticks / scale), 1000 // scale)
        self._add(b"fcTL", struct.pack(">IIII", width, height, 0, 0) + time + b"\0\0")
        at = len(SIGNATURE)
        while at < len(frame):
            length, kind = struct.unpack_from(">I4s", frame, at)
            content, at = frame[at + 8 : at + 8 + length], at + 12 + length
            if kind == b"IDAT" and self._frames:
                self._add(b"fdAT", content)
            elif kind == b"IDAT":
                self._file.write(chunk(kind, content))
        self._frames += 1

    def _add(self, kind: bytes, content: bytes) -> None:
        """Write a chunk of those that are numbered."""
        self._file.write(chunk(kind, struct.pack(">I", self._chunks) + content))
        self._chunks += 1

    def finish(self) -> None:
        """Write the end, and the number of frames into the header."""
        self._file.write(chunk(b"IEND", b""))
        self._file.seek(self._control)
        self._write_control()


_ENCODERS = {"gif": _encode_gif, "apng": _encode_apng, "webp": _encode_webp}
WRITERS: dict[AnimationFormat, type[Writer]] = {
    "gif": GifWriter,
    "apng": ApngWriter,
    "webp": WebpWriter,
}


class Schedule:
    """When the frames of an animation begin, on the clock of its format."""

    def __init__(self, ticks: int) -> None:
        """``ticks``: of the clock, in a second."""
        self._ticks = ticks
        self.begin = -1
        """Of the last frame."""

    def next(self, seconds: Fraction) -> int:
        """Return how long the last frame is shown, where the next begins at ``seconds``.

        The times are rounded, not the durations, which would add up to a drift. Each frame lasts a
        tick at least, and those behind it come later for it.
        """
        begin = max(int(seconds * self._ticks + Fraction(1, 2)), self.begin + 1)
        duration, self.begin = begin - self.begin, begin
        return duration
