"""Convert decoded frames to RGB, and translated RGB back, so that an identity keeps all colours.

HDR is the exception: it becomes SDR on its way to RGB, and the output is tagged as that.

Both directions use the same matrix, range and chroma location, decided once (`resolve`) from the
stream's tags, or guessed where it is untagged. The output carries exactly the tags of its source: a
guess is used in the arithmetic, but never written as a tag.

swscale does the arithmetic, with flags for accuracy; its defaults darken by a level. Two of its
properties decide how it is called here (FFmpeg 8.1, 1280×720, one core):

- it writes planar RGB by vector code, packed RGB without: ``gbrp`` and OpenCV's merge take 2.2 ms,
  ``rgb24`` takes 5.1 ms, with equal pixels;
- white in its 16-bit RGB is not 65535 but near 255·256, with different values to RGB and from RGB.
  The tables below map white to 1, so that 10 bits survive the round trip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any, Literal, TypeVar

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from ...errors import InputError
from ...frames import Pixels, PixelType, look_up
from ...options import HdrChoice
from ...wording import Note
from ..alpha import Alpha, put_alpha
from ..demux.stream_info import ColourTags, Fields, StreamInfo
from ..tone_mapping import ASSUMED_PEAK, CURVES, ToneMapping
from .pixel_formats import bits_of

Matrix = Literal["bt601", "bt709", "bt2020", "fcc", "smpte240m", "rgb"]

_Sample = TypeVar("_Sample", bound=np.integer[Any] | np.floating[Any])

_COLOR_MATRICES: dict[str, Matrix] = {"bt601": "bt601", "bt709": "bt709", "bt2020": "bt2020"}
_COLOR_RANGES = {"limited": False, "full": True}
"""What ``--color`` accepts: a matrix, and whether the range is full."""

_MATRIX_FROM_TAG: dict[int, Matrix] = {
    0: "rgb",
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    9: "bt2020",
}
"""The matrices of ITU-T H.273, table 4, that swscale computes; 2 is "unspecified", 3 reserved."""

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
"""swscale's names; it ignores the one for "rgb", where both sides are RGB."""

_LOCATIONS = {1: "left", 2: "center", 3: "topleft", 4: "top", 5: "bottomleft", 6: "bottom"}
"""AVChromaLocation, as FFmpeg's filter ``setparams`` names it."""

_FLAGS = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    # Without this flag every pair of pixels is averaged before the chroma filter, which then cannot
    # place chroma to the left. With it the conversion is also faster (1.6 against 2.1 ms).
    | Interpolation.FULL_CHR_H_INP
)


@dataclass(frozen=True)
class ColourPlan:
    """How the samples of a stream encode colours, and how its output is tagged."""

    matrix: Matrix
    """For the conversion of the source's frames to RGB."""
    output_matrix: Matrix
    """The same as ``matrix``, except for an RGB source, whose YUV output needs a matrix, and for an
    HDR source, whose output is BT.709."""
    full_range: bool
    output_full_range: bool
    chroma_location: str
    """Where chroma samples sit, as FFmpeg's filter ``setparams`` names it."""
    tags: ColourTags
    """The tags of the output: those of the source, except for RGB, ``yuvj`` and HDR sources."""
    guessed: bool
    """The source has no tag of its matrix."""
    tone_mapping: ToneMapping | None = None
    """For an HDR source: how it becomes SDR."""
    notes: tuple[Note, ...] = ()


def resolve(
    stream: StreamInfo,
    override: str | None = None,
    *,
    hdr: HdrChoice = "tonemap",
    name: str = "",
) -> ColourPlan:
    """Decide how the frames of ``stream`` become RGB.

    ``override`` is ``MATRIX[:RANGE]``, the value of ``--color``. It takes precedence over guesses
    and over tags; the tags are passed on unchanged. ``hdr``: what becomes of an HDR source, whose
    output is SDR and tagged BT.709. ``name`` is the file, for messages.

    For an untagged stream the guess is: the matrix that belongs to the primaries, where those are
    tagged, else BT.2020 for HDR, BT.709 from 720 lines on and BT.601 below; limited range, except
    for the ``yuvj`` formats; chroma to the left as in MPEG-2 and later, in the middle for full
    range (JPEG).

    Raises InputError for HDR that is refused, for Dolby Vision without a base layer that others can
    show, for a matrix that cannot be computed, and for a wrong ``override``.
    """
    named = f"{name}: " if name else ""
    tags = stream.colour
    if stream.hdr and hdr == "refuse":
        raise InputError(
            f"{named}the video is HDR ({stream.hdr}), which --hdr refuse refuses; "
            "leave that out to have it mapped to SDR"
        )
    if stream.dolby_vision and tags.transfer == _UNSPECIFIED:
        raise InputError(
            f"{named}the video is Dolby Vision whose base layer is neither HLG nor PQ nor SDR "
            "(profile 5), and only its own decoders show it; convert it first"
        )
    rgb = stream.pix_fmt is not None and _is_rgb(stream.pix_fmt)
    guess = _guess(stream)
    tag_matrix = None if tags.matrix == 2 else _MATRIX_FROM_TAG.get(tags.matrix)
    if not rgb and tags.matrix not in (2, 3) and tag_matrix in (None, "rgb") and not override:
        raise InputError(
            f"{named}the colour matrix is number {tags.matrix} of ITU-T H.273, "
            "which cannot be converted; if the tag is wrong, override it, e.g. --color bt709"
        )
    full = _full_range(stream)
    override_matrix, override_full = _parse(override) if override else (None, None)
    matrix = override_matrix or tag_matrix or guess
    if override_full is not None:
        full = override_full
    output_full, output_tags = full, tags
    if rgb:
        # The output is YUV, so it needs a matrix and its tag instead of the tag "RGB".
        matrix, output_full = "rgb", bool(override_full)
        full = True
        output_tags = ColourTags(
            matrix=_TAG_FROM_MATRIX[override_matrix or guess],
            primaries=tags.primaries,
            transfer=tags.transfer,
            range=2 if output_full else 1,
        )
    elif (stream.pix_fmt or "").startswith("yuvj") and tags.range == 0:
        # "yuvj" means full range; the output's "yuv" format does not, so it gets the tag.
        output_tags = ColourTags(
            tags.matrix, tags.primaries, tags.transfer, 2, tags.chroma_location
        )
    guessed = tag_matrix is None and override_matrix is None and not rgb
    notes: tuple[Note, ...] = ()
    tone_mapping = _tone_mapping(stream)
    output_matrix = (override_matrix or guess) if rgb else matrix
    if tone_mapping is not None:
        output_matrix = "bt709"
        output_tags = ColourTags(1, 1, 1, output_tags.range, output_tags.chroma_location)
    if guessed and not _is_grey(stream.pix_fmt):
        text = (
            f"the video has no tag of its colour matrix: taken as {guess} "
            f"({'full' if full else 'limited'} range); --color MATRIX[:RANGE] overrides that"
        )
        notes = (Note(name or None, text),)
    if override_matrix and tag_matrix not in (None, override_matrix, "rgb"):
        text = f"--color {override} is used although the video is tagged {tag_matrix}"
        notes = (Note(name or None, text),)
    if tone_mapping is not None:
        text = f"the video is HDR ({tone_mapping.name}): it is mapped to SDR (BT.709)"
        notes += (Note(name or None, f"{text}; --hdr refuse makes that an error"),)
    location = _LOCATIONS.get(tags.chroma_location) or ("center" if full and not rgb else "left")
    return ColourPlan(
        matrix=matrix,
        output_matrix=output_matrix,
        full_range=full,
        output_full_range=output_full,
        chroma_location=location,
        tags=output_tags,
        guessed=guessed,
        tone_mapping=tone_mapping,
        notes=notes,
    )


_UNSPECIFIED = 2
"""A tag of ITU-T H.273 that states nothing."""


def _tone_mapping(stream: StreamInfo) -> ToneMapping | None:
    curve = CURVES.get(stream.colour.transfer)
    if curve is None:
        return None
    return ToneMapping(curve, stream.peak or ASSUMED_PEAK, stream.colour.primaries)


class ToRGB:
    """Convert decoded frames to RGB, without the GIL; each worker thread needs one of its own."""

    def __init__(self, plan: ColourPlan, pixel_type: PixelType, *, shared: bool = False) -> None:
        """``shared``: another thread may convert the same frame at the same time.

        PyAV changes the tags of a frame while it is converted, so each needs a reference.
        """
        self._plan, self._pixel_type, self._shared = plan, pixel_type, shared
        self._reformatter = VideoReformatter()
        self._properties = _FrameProperties(plan.chroma_location)

    def __call__(self, frame: av.VideoFrame) -> Pixels:
        """Return ``(H, W, 3)`` RGB, uint8 or float16 in [0, 1]; the caller owns the array."""
        plan = self._plan
        bits = bits_of(frame.format.name)
        deep = bits > 8 or self._pixel_type == "float16" or plan.tone_mapping is not None
        planar = self._reformatter.reformat(
            self._properties(frame, force=self._shared),
            format="gbrp16le" if deep else "gbrp",
            src_colorspace=_COLORSPACE[plan.matrix],
            src_color_range=_color_range(plan.full_range),
            dst_color_range=ColorRange.JPEG,
            interpolation=_FLAGS,
            threads=1,
        )
        if not deep:
            green, blue, red = _planes(planar, np.uint8)
            return np.asarray(cv2.merge((red, green, blue)))
        planes = _planes(planar, np.uint16)
        ordered = planes[2], planes[0], planes[1]
        white = (
            (2**bits - 1) << (16 - bits) if plan.full_range or plan.matrix == "rgb" else _WHITE_IN
        )
        if plan.tone_mapping is not None:
            return plan.tone_mapping(ordered, white, self._pixel_type)
        merged = np.asarray(cv2.merge(ordered))
        return look_up(merged, _table_from_uint16(self._pixel_type, white))


class FromRGB:
    """Convert translated RGB to frames for the encoder; each worker thread needs one of its own.

    ``fields``: which field is first, where the encoder is to mark every frame as interlaced.
    """

    def __init__(self, plan: ColourPlan, pix_fmt: str, fields: Fields | None = None) -> None:
        self._plan, self._pix_fmt = plan, pix_fmt
        self._deep = bits_of(pix_fmt) > 8
        self._white = 65535 if _is_rgb(pix_fmt) else _WHITE_OUT
        self._reformatter = VideoReformatter()
        location = plan.chroma_location
        self._properties = {
            False: _FrameProperties(location),
            True: _FrameProperties(location, fields or "tff"),
        }
        self._marked = fields is not None
        self._mark = _FrameProperties(location, fields or "prog")
        self._templates: dict[bool, av.VideoFrame] = {}

    def __call__(
        self, pixels: Pixels, *, interlaced: bool = False, alpha: Alpha | None = None
    ) -> av.VideoFrame:
        """Return ``(H, W, 3)`` RGB, uint8 or float16 in [0, 1] (clamped), as a tagged frame.

        ``interlaced``: the lines belong to two fields, and the chroma is subsampled in each field.
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
            # Without a conversion (an RGB encoder) this is the template itself, which must not be
            # reused: the next call makes a new one.
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
        """Return a frame of FFmpeg's own memory, into which ``pixels`` were copied.

        The copy (0.2 ms at 1280×720) is needed because swscale's vector code reads past the end of
        rows that are not padded. The frame is reused: only a filter sets its chroma location.
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
            template = self._properties[interlaced](
                av.VideoFrame(width, height, format_), force=True
            )
            self._templates[interlaced] = template
        if not deep:
            buffer = template.planes[0]
            padded = np.frombuffer(memoryview(buffer), np.uint8).reshape(height, buffer.line_size)
            padded[:, : width * 3] = pixels.reshape(height, width * 3)
            return template
        white = self._white
        if pixels.dtype == np.uint8:
            values = look_up(pixels, _table_from_uint8(white))
        else:
            bits = np.ascontiguousarray(pixels).view(np.uint16)
            values = look_up(bits, _table_from_float16(white))
        green, blue, red = _planes(template, np.uint16)
        cv2.split(values, (red, green, blue))
        return template


def of_output(plan: ColourPlan, pix_fmt: str) -> ColourPlan:
    """Return how frames in ``pix_fmt`` that `FromRGB` made with ``plan`` become RGB again.

    The output of an untagged source is untagged, so that its matrix cannot be read from it.
    """
    rgb = _is_rgb(pix_fmt)
    return replace(
        plan,
        matrix="rgb" if rgb else plan.output_matrix,
        full_range=rgb or plan.output_full_range,
        tone_mapping=None,
    )


def output_tags(plan: ColourPlan, pix_fmt: str) -> ColourTags:
    """Return the tags of an output in ``pix_fmt``: the plan's, except that RGB has no matrix."""
    return replace(plan.tags, matrix=0, range=2) if _is_rgb(pix_fmt) else plan.tags


class _FrameProperties:
    """Set the chroma location and the field order of frames.

    The filter ``setparams`` does so (2 µs), because PyAV has no attribute for either.
    """

    def __init__(self, location: str, fields: Fields | Literal["prog"] | None = None) -> None:
        self._settings = f"chroma_location={location}"
        if fields is not None:
            self._settings += f":field_mode={fields}"
        self._key: tuple[int, int, str] | None = None
        self._graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame, *, force: bool = False) -> av.VideoFrame:
        chroma = frame.format.components[1:2]
        subsampled = chroma and (chroma[0].width, chroma[0].height) != (frame.width, frame.height)
        if not (force or subsampled):
            return frame
        key = frame.width, frame.height, frame.format.name
        graph = self._graph
        if graph is None or key != self._key:
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
        graph.vpush(frame)
        return graph.vpull()


# swscale's 16-bit RGB, measured over all codes of 8, 10 and 12 bits; at most half a step remains.

_WHITE_IN = 65283
"""The 16-bit sample to which swscale converts limited-range white; full-range white becomes its
code, shifted up to 16 bits."""

_WHITE_OUT = 255 * 256
"""The 16-bit sample that swscale converts to white in every range and depth of YUV; for RGB it is
65535."""


@cache
def _table_from_uint16(
    pixel_type: PixelType, white: int
) -> npt.NDArray[np.float16] | npt.NDArray[np.uint8]:
    """Return a table from a 16-bit sample to the model's pixel type."""
    value = np.minimum(np.arange(65536) / white, 1.0)
    if pixel_type == "float16":
        return value.astype(np.float16)
    return np.floor(value * 255 + 0.5).astype(np.uint8)


@cache
def _table_from_uint8(white: int) -> npt.NDArray[np.uint16]:
    return np.asarray(np.rint(np.arange(256) * (white / 255)), np.uint16)


@cache
def _table_from_float16(white: int) -> npt.NDArray[np.uint16]:
    """Return a table from the bits of a float16 to a 16-bit sample; not-a-number becomes black."""
    value = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    numbers: npt.NDArray[np.float64] = np.nan_to_num(value, nan=0.0)
    return np.rint(np.clip(numbers, 0.0, 1.0) * white).astype(np.uint16)


def _planes(frame: av.VideoFrame, dtype: type[_Sample]) -> list[npt.NDArray[_Sample]]:
    """Return views of the planes of ``frame`` without their padding; they keep the frame alive."""
    step = np.dtype(dtype).itemsize
    return [
        np.frombuffer(memoryview(plane), dtype).reshape(plane.height, plane.line_size // step)[
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
    if stream.hdr:
        return "bt2020"
    return "bt709" if stream.size and stream.size[0] >= 720 else "bt601"


def _parse(override: str) -> tuple[Matrix, bool | None]:
    name, _, range_ = override.partition(":")
    matrix = _COLOR_MATRICES.get(name)
    if matrix is None or (range_ and range_ not in _COLOR_RANGES) or override.endswith(":"):
        raise InputError(
            f"--color {override} is not understood: expected MATRIX[:RANGE] with MATRIX one of "
            f"{', '.join(_COLOR_MATRICES)} and RANGE limited or full, e.g. --color bt709:limited"
        )
    return matrix, _COLOR_RANGES.get(range_)
