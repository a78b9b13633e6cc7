"""Turn decoded pictures into RGB and translated RGB back, so that colours come out as they went in.

Both ways use the same matrix, range and chroma siting, decided once (`resolve`) from the stream's
tags, or guessed where it has none. The output carries exactly the tags of its source: a guess is
used for the arithmetic, never written down as if it were known.

The arithmetic is swscale's, with the flags that keep it honest; its defaults darken by a level. Two
of its habits decide how it is called here (FFmpeg 8.1, 1280×720, one core):

- planar RGB is written by vector code, packed RGB is not: ``gbrp`` and OpenCV's merge take 2.2 ms,
  ``rgb24`` takes 5.1 ms, with equal pixels;
- 16-bit RGB has its white not at 65535 but near 255·256, and elsewhere on the way in than on the
  way out. The tables below put it back to 1, so that 10 bits survive the round trip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any, Literal, cast

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from ..errors import InputError
from ..frames import Pixels, PixelType
from ..wording import Note
from .alpha import Alpha, put_alpha
from .stream_info import ColourTags, Fields, StreamInfo

Matrix = Literal["bt601", "bt709", "bt2020", "fcc", "smpte240m", "rgb"]

NAMES = ("bt601", "bt709", "bt2020")
"""The matrices that ``--color`` takes."""

_RANGES = {"limited": False, "full": True}

_MATRIX_FROM_TAG: dict[int, Matrix] = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
}
"""ITU-T H.273 table 4, as far as swscale computes it; 2 is "unspecified", 3 reserved."""

_MATRIX_FROM_PRIMARIES: dict[int, Matrix] = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}

_TAG_FROM_MATRIX = {"bt601": 6, "bt709": 1, "bt2020": 9}

_COLORSPACE = {
    "bt601": Colorspace.ITU601,
    "bt709": Colorspace.ITU709,
    "bt2020": Colorspace.BT2020,
    "fcc": Colorspace.FCC,
    "smpte240m": Colorspace.SMPTE240M,
    "rgb": Colorspace.ITU709,
}
"""swscale's names; where both sides are RGB it uses none."""

_LOCATIONS = {1: "left", 2: "center", 3: "topleft", 4: "top", 5: "bottomleft", 6: "bottom"}
"""AVChromaLocation, in the words of FFmpeg's ``setparams``."""

_FLAGS = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    # Without it every pair of pixels is averaged before the chroma filter, which cannot put chroma
    # to the left then; it is also the faster way (1.6 against 2.1 ms).
    | Interpolation.FULL_CHR_H_INP
)


@dataclass(frozen=True)
class ColourPlan:
    """How the numbers of a stream stand for colours, and what its output says about that."""

    matrix: Matrix
    """What the pictures of the source are converted with."""
    output_matrix: Matrix
    """The same, except for an RGB source, whose YUV output needs one."""
    full_range: bool
    output_full_range: bool
    chroma_location: str
    """Where chroma samples sit, in the words of FFmpeg's ``setparams``."""
    tags: ColourTags
    """What the output is tagged with: the source's own tags."""
    guessed: bool
    """The source does not say its matrix."""
    notes: tuple[Note, ...] = ()


def resolve(stream: StreamInfo, override: str | None = None, *, name: str = "") -> ColourPlan:
    """Decide how the pictures of ``stream`` become RGB.

    ``override``: ``MATRIX[:RANGE]`` as given to ``--color``. It replaces what is guessed, and also
    what a tag says; the tags are passed on as they are. ``name`` is the file, for messages.

    Untagged means: BT.709 from 720 lines on, else BT.601 (or as the primaries say, where those are
    tagged), limited range except for the ``yuvj`` formats; chroma to the left as MPEG-2 and
    later have it, in the middle for full range (JPEG).

    Raises InputError for HDR, for a matrix that cannot be computed, and for a wrong ``override``.
    """
    named = f"{name}: " if name else ""
    tags = stream.colour
    if stream.hdr:
        raise InputError(
            f"{named}the video is HDR ({stream.hdr}), and generators are trained on SDR pictures; "
            "tone-map it first, e.g. with FFmpeg: -vf zscale=t=linear:npl=100,tonemap=hable,"
            "zscale=p=bt709:t=bt709:m=bt709,format=yuv420p"
        )
    rgb = stream.pix_fmt is not None and _is_rgb(stream.pix_fmt)
    guess = _guess(stream)
    tagged = None if tags.matrix == 2 else _MATRIX_FROM_TAG.get(tags.matrix)
    if not rgb and tags.matrix not in (2, 3) and tagged in (None, "rgb") and not override:
        raise InputError(
            f"{named}the colour matrix is number {tags.matrix} of ITU-T H.273, "
            "which cannot be converted; if the tag is wrong, say what is right, e.g. --color bt709"
        )
    full = _full_range(stream)
    wanted, wanted_full = _parse(override) if override else (None, None)
    matrix = wanted or tagged or guess
    if wanted_full is not None:
        full = wanted_full
    output_full, output_tags = full, tags
    if rgb:
        # The output is YUV: it needs a matrix, and a tag that says so; it cannot keep "RGB".
        matrix, output_full = "rgb", bool(wanted_full)
        full = True
        output_tags = ColourTags(
            matrix=_TAG_FROM_MATRIX[wanted or guess],
            primaries=tags.primaries,
            transfer=tags.transfer,
            range=2 if output_full else 1,
        )
    elif (stream.pix_fmt or "").startswith("yuvj") and tags.range == 0:
        # The pixel format itself says "full"; the output's plain one cannot.
        output_tags = ColourTags(
            tags.matrix, tags.primaries, tags.transfer, 2, tags.chroma_location
        )
    guessed = tagged is None and wanted is None and not rgb
    notes: tuple[Note, ...] = ()
    if guessed and not _is_grey(stream.pix_fmt):
        text = (
            f"the video does not say its colour matrix: taken as {guess} "
            f"({'full' if full else 'limited'} range); --color MATRIX[:RANGE] says otherwise"
        )
        notes = (Note(name or None, text),)
    if wanted and tagged not in (None, wanted, "rgb"):
        text = f"--color {override} is used although the video is tagged {tagged}"
        notes = (Note(name or None, text),)
    location = _LOCATIONS.get(tags.chroma_location) or ("center" if full and not rgb else "left")
    return ColourPlan(
        matrix=matrix,
        output_matrix=(wanted or guess) if rgb else matrix,
        full_range=full,
        output_full_range=output_full,
        chroma_location=location,
        tags=output_tags,
        guessed=guessed,
        notes=notes,
    )


class ToRGB:
    """Convert decoded pictures to RGB; one for each worker thread, the GIL is released."""

    def __init__(self, plan: ColourPlan, pixel_type: PixelType) -> None:
        self._plan, self._pixel_type = plan, pixel_type
        self._reformatter = VideoReformatter()
        self._siting = _Siting(plan.chroma_location)

    def __call__(self, frame: av.VideoFrame) -> Pixels:
        """Return ``(H, W, 3)`` RGB, uint8 or float16 in [0, 1]; the array is the caller's."""
        plan = self._plan
        bits = bits_of(frame.format.name)
        deep = bits > 8 or self._pixel_type == "float16"
        planar = self._reformatter.reformat(
            self._siting(frame),
            format="gbrp16le" if deep else "gbrp",
            src_colorspace=_COLORSPACE[plan.matrix],
            src_color_range=_color_range(plan.full_range),
            dst_color_range=ColorRange.JPEG,
            interpolation=_FLAGS,
            threads=1,
        )
        green, blue, red = _planes(planar, np.uint16 if deep else np.uint8)
        merged = cv2.merge((red, green, blue))
        if not deep:
            return np.asarray(merged)
        white = (
            (2**bits - 1) << (16 - bits) if plan.full_range or plan.matrix == "rgb" else _WHITE_IN
        )
        return _look_up(merged, _table_from_uint16(self._pixel_type, white))


class FromRGB:
    """Convert translated RGB to pictures for the encoder; one for each worker thread.

    ``fields``: which field is first, where the encoder is to mark every picture as interlaced.
    """

    def __init__(self, plan: ColourPlan, pix_fmt: str, fields: Fields | None = None) -> None:
        self._plan, self._pix_fmt = plan, pix_fmt
        self._deep = bits_of(pix_fmt) > 8
        self._white = 65535 if _is_rgb(pix_fmt) else _WHITE_OUT
        self._reformatter = VideoReformatter()
        location = plan.chroma_location
        self._sitings = {False: _Siting(location), True: _Siting(location, fields or "tff")}
        self._marked = fields is not None
        self._mark = _Siting(location, fields or "prog")
        self._templates: dict[bool, av.VideoFrame] = {}

    def __call__(
        self, pixels: Pixels, *, interlaced: bool = False, alpha: Alpha | None = None
    ) -> av.VideoFrame:
        """Return ``(H, W, 3)`` RGB, uint8 or float16 in [0, 1] (clamped), as a tagged picture.

        ``interlaced``: the lines belong to two fields, and so does the chroma of each.
        """
        plan = self._plan
        rgb = self._filled(pixels, interlaced=interlaced)
        frame = self._reformatter.reformat(
            rgb,
            format=self._pix_fmt,
            dst_colorspace=_COLORSPACE[plan.output_matrix],
            src_color_range=ColorRange.JPEG,
            dst_color_range=_color_range(plan.output_full_range),
            interpolation=_FLAGS,
            threads=1,
        )
        if frame is rgb:
            # Nothing was to be done (an RGB encoder), and the template is ours.
            frame = self._templates.pop(interlaced)
        if alpha is not None:
            put_alpha(frame, alpha)
        if interlaced != self._marked:
            frame = self._mark(frame, force=True)
        tags = output_tags(plan, self._pix_fmt)
        frame.colorspace, frame.color_range = tags.matrix, tags.range
        frame.color_primaries, frame.color_trc = tags.primaries, tags.transfer
        return frame

    def _filled(self, pixels: Pixels, *, interlaced: bool) -> av.VideoFrame:
        """Return the template with ``pixels`` in it.

        Copied into FFmpeg's own memory (0.2 ms at 1280×720): swscale's vector code reads past the
        end of rows that are not padded, and only a filter gives a frame its chroma location.
        """
        deep = self._deep or pixels.dtype != np.uint8
        format_ = "gbrp16le" if deep else "rgb24"
        height, width = pixels.shape[:2]
        template = self._templates.get(interlaced)
        if template is None or (template.height, template.width, template.format.name) != (
            height,
            width,
            format_,
        ):
            template = self._sitings[interlaced](av.VideoFrame(width, height, format_), force=True)
            self._templates[interlaced] = template
        if not deep:
            buffer = template.planes[0]
            padded = np.frombuffer(cast(Any, buffer), np.uint8).reshape(height, buffer.line_size)
            padded[:, : width * 3] = pixels.reshape(height, width * 3)
            return template
        white = self._white
        if pixels.dtype == np.uint8:
            values = _look_up(pixels, _table_from_uint8(white))
        else:
            bits = np.ascontiguousarray(pixels).view(np.uint16)
            values = _look_up(bits, _table_from_float16(white))
        green, blue, red = _planes(template, np.uint16)
        cv2.split(values, (red, green, blue))
        return template


def output_tags(plan: ColourPlan, pix_fmt: str) -> ColourTags:
    """Return the tags of an output in ``pix_fmt``: the source's, except that RGB has no matrix."""
    return replace(plan.tags, matrix=0, range=2) if _is_rgb(pix_fmt) else plan.tags


def bits_of(pix_fmt: str) -> int:
    """Return the bits per component of an FFmpeg pixel format."""
    return max(component.bits for component in av.VideoFormat(pix_fmt).components)


class _Siting:
    """Tell frames where their chroma sits and which field is first.

    By a filter (2 µs): PyAV has no attribute for either.
    """

    def __init__(self, location: str, fields: Fields | Literal["prog"] | None = None) -> None:
        self._settings = f"chroma_location={location}"
        if fields is not None:
            self._settings += f":field_mode={fields}"
        self._key: tuple[int, int, str] | None = None
        self._graph: Any = None

    def __call__(self, frame: av.VideoFrame, *, force: bool = False) -> av.VideoFrame:
        chroma = frame.format.components[1:2]
        subsampled = chroma and (chroma[0].width, chroma[0].height) != (frame.width, frame.height)
        if not (force or subsampled):
            return frame
        key = frame.width, frame.height, frame.format.name
        if key != self._key:
            graph = Graph()
            source = graph.add_buffer(
                width=key[0], height=key[1], format=frame.format, time_base=Fraction(1, 1000)
            )
            graph.link_nodes(
                source,
                graph.add("setparams", self._settings),
                graph.add("buffersink"),
            ).configure()
            self._graph, self._key = graph, key
        self._graph.push(frame)
        sited: av.VideoFrame = self._graph.pull()
        return sited


# 16-bit RGB, as swscale has it (measured over all codes of 8, 10 and 12 bits; residual half a step)

_WHITE_IN = 65283
"""What limited-range white becomes; full range becomes its code, shifted up to 16 bits."""

_WHITE_OUT = 255 * 256
"""What becomes white in every range and depth of YUV; in RGB it is 65535."""


@cache
def _table_from_uint16(pixel_type: PixelType, white: int) -> npt.NDArray[Any]:
    """Return what each 16-bit sample is in the model's pixel type."""
    value = np.minimum(np.arange(65536) / white, 1.0)
    if pixel_type == "float16":
        return value.astype(np.float16)
    levels: npt.NDArray[Any] = np.floor(value * 255 + 0.5).astype(np.uint8)
    return levels


@cache
def _table_from_uint8(white: int) -> npt.NDArray[Any]:
    table: npt.NDArray[Any] = np.rint(np.arange(256) * (white / 255)).astype(np.uint16)
    return table


@cache
def _table_from_float16(white: int) -> npt.NDArray[Any]:
    """Return what each float16, by its bits, is as a 16-bit sample; not-a-number becomes black."""
    value = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    return np.rint(np.clip(np.nan_to_num(value, nan=0.0), 0.0, 1.0) * white).astype(np.uint16)


def _look_up(array: npt.NDArray[Any], table: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return ``table[array]``: for half floats a table is faster than arithmetic."""
    try:
        return cast(npt.NDArray[Any], cv2.LUT(array, table))
    except cv2.error:
        # OpenCV 4 has no tables for 16 bits: NumPy takes eight times as long.
        taken: npt.NDArray[Any] = np.take(table, array)
        return taken


def _planes(frame: av.VideoFrame, dtype: type[np.generic]) -> list[npt.NDArray[Any]]:
    """Return views of the planes of ``frame`` without their padding; they keep the frame alive."""
    step = np.dtype(dtype).itemsize
    return [
        np.frombuffer(cast(Any, plane), dtype).reshape(plane.height, plane.line_size // step)[
            :, : plane.width
        ]
        for plane in frame.planes
    ]


def _color_range(full: bool) -> ColorRange:
    return ColorRange.JPEG if full else ColorRange.MPEG


def _is_rgb(pix_fmt: str) -> bool:
    return av.VideoFormat(pix_fmt).is_rgb or pix_fmt == "pal8"


def _is_grey(pix_fmt: str | None) -> bool:
    return pix_fmt is not None and pix_fmt.startswith(("gray", "ya", "mono"))


def _full_range(stream: StreamInfo) -> bool:
    if stream.colour.range:
        return stream.colour.range == 2
    return (stream.pix_fmt or "").startswith("yuvj")


def _guess(stream: StreamInfo) -> Matrix:
    from_primaries = _MATRIX_FROM_PRIMARIES.get(stream.colour.primaries)
    if from_primaries:
        return from_primaries
    return "bt709" if stream.size and stream.size[0] >= 720 else "bt601"


def _parse(override: str) -> tuple[Matrix, bool | None]:
    matrix, _, range_ = override.partition(":")
    if matrix not in NAMES or (range_ and range_ not in _RANGES) or override.endswith(":"):
        raise InputError(
            f"--color {override} is not understood: expected MATRIX[:RANGE] with MATRIX one of "
            f"{', '.join(NAMES)} and RANGE limited or full, e.g. --color bt709:limited"
        )
    return matrix, _RANGES.get(range_)  # type: ignore[return-value]
