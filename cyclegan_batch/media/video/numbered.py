"""Plan a video that becomes numbered images (``out_%06d.png``): their format, and what they lose.

- The numbers begin at 1, as FFmpeg's do. Where the source is numbered images itself, each image
  keeps its number.
- A frame that is lost leaves its number out.
- A number that is wider than the pattern takes more digits.
- The images hold the frames only: no sound, and no times.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from ...frames import PixelType, Size
from ...options import TranslateOptions
from ..demux.stream_info import StreamInfo
from ..formats import IMAGE_FORMATS, ImageFormat
from ..images.codec import DEFAULT_QUALITY
from ..images.image_header import FORMAT_NAMES
from .colour import ColourPlan
from .encoder import EncoderPlan, EncoderRequest, Extras

NUMBERED_MUXER = "image2"
"""The format of an `EncoderPlan` of numbered images, by FFmpeg's name. FFmpeg does not write them
here."""

_WITHOUT_ALPHA = ("jpg", "bmp")
_LOSSY = ("jpg", "webp", "avif")

_PIX_FMTS = {
    (False, False): "rgb24",
    (False, True): "rgba",
    (True, False): "rgb48be",
    (True, True): "rgba64be",
}
"""What the images hold by FFmpeg's names: whether they have 16 bits, and alpha."""

_LIKELY_BYTES: dict[str, float] = {
    "png": 1.3, "jpg": 0.4, "webp": 0.2, "avif": 0.3, "tiff": 1.7, "bmp": 3.0
}  # fmt: skip
"""Bytes of a pixel, by and large: the means of three clips with the default qualities, of which
single ones had 0.5 to 1.5 times as many."""

_BT2020 = 9
"""The number of its primaries (ITU-T H.273)."""


def format_of(output: Path) -> ImageFormat:
    """Return the format of the images of a pattern."""
    return IMAGE_FORMATS[output.suffix.lower()]


def likely_bytes(plan: EncoderPlan, size: Size) -> int:
    """Return about how many bytes an image of ``size`` (height, width) has."""
    deep = 2 if plan.pix_fmt.endswith("be") else 1
    return int(size[0] * size[1] * deep * _LIKELY_BYTES[plan.name])


def plan_numbered(
    output: Path, request: EncoderRequest, extras: Extras, pixel_type: PixelType
) -> tuple[EncoderPlan, list[str]]:
    """Return how the images of ``output`` are written, with a text for each loss of a frame."""
    stream, options = request.stream, request.options
    format_ = format_of(output)
    label = FORMAT_NAMES[format_]
    deep = format_ == "png" and pixel_type == "float16" and stream.bits > 8
    alpha = extras.alpha and format_ not in _WITHOUT_ALPHA
    subject = f"stream {stream.index} ({stream.label})"
    losses = []
    if extras.alpha and not alpha:
        losses.append(f"the alpha of {subject}: {label} cannot hold it; .png, .webp and .tif can")
    if extras.fields:
        losses.append(
            f"the mark that {subject} is interlaced: images cannot hold it, so each shows both "
            "fields at once; --deinterlace makes whole frames of them"
        )
    if request.aspect not in (None, 1):
        losses.append(
            f"the shape of the pixels of {subject} ({request.aspect}): FFmpeg reads what images "
            "state of it upside down, so they state nothing"
        )
    if request.colour.tags.primaries == _BT2020 and format_ != "png":
        losses.append(f"the primaries of {subject} (BT.2020): {label} states none here; .png does")
    plan = EncoderPlan(
        name=format_,
        pix_fmt=_PIX_FMTS[deep, alpha],
        options=tuple(_settings(format_, options).items()),
        threads=1,
        time_base=stream.time_base,
        counts_frames=False,
        rate=stream.average_rate or Fraction(25),
        format=NUMBERED_MUXER,
        alpha=alpha,
        notes=tuple(_notes(output, format_, stream, options, pixel_type)),
    )
    return plan, losses


def _settings(format_: ImageFormat, options: TranslateOptions) -> dict[str, str]:
    """Return the settings of the encoder, for the plan in words."""
    if format_ in _LOSSY:
        return {"quality": str(options.quality or DEFAULT_QUALITY)}
    if format_ == "png" and options.png_level is not None:
        return {"level": str(options.png_level)}
    return {}


def _notes(
    output: Path,
    format_: ImageFormat,
    stream: StreamInfo,
    options: TranslateOptions,
    pixel_type: PixelType,
) -> list[str]:
    notes = []
    if options.quality is not None and format_ not in _LOSSY:
        notes.append(f"no effect of --quality, as no image is written as {', '.join(_LOSSY)}")
    if options.png_level is not None and format_ != "png":
        notes.append("no effect of --png-level, as no image is written as png")
    if stream.bits > 8 and pixel_type == "float16" and format_ != "png":
        label = FORMAT_NAMES[format_]
        notes.append(f"its {stream.bits} bits become 8 ({label} is written with 8); .png keeps 16")
    if stream.constant_rate is False:
        notes.append(f"images have no times, so the variable ones are lost ({output.name})")
    return notes


def colour_chunks(colour: ColourPlan, format_: ImageFormat) -> tuple[tuple[bytes, bytes], ...]:
    """Return PNG's chunk for wide primaries: an image without it is taken as sRGB.

    cICP states primaries and transfer by their numbers in ITU-T H.273, RGB and full range
    (PNG, third edition, 11.3.2.6).
    """
    tags = colour.tags
    if format_ != "png" or tags.primaries != _BT2020:
        return ()
    return ((b"cICP", bytes((tags.primaries, tags.transfer, 0, 1))),)
