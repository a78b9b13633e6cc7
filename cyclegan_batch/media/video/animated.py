"""Plan an animated image as the output of a video: GIF, animated WebP or APNG.

Such a file holds frames of 8 bits, their times, transparency, and how often it is shown; nothing
else.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from ...errors import OutputError
from ...wording import printable
from ..animations.writing import DEFAULT_QUALITY, WRITERS
from ..formats import ANIMATION_SUFFIXES, AnimationFormat
from ..pattern import parse_pattern
from .encoder import EncoderPlan, EncoderRequest, Extras

LABELS: dict[AnimationFormat, str] = {"gif": "GIF", "apng": "APNG", "webp": "WebP"}

HOLDING_PROFILES = frozenset({"apng", "webp"})
"""The formats that hold a colour profile."""

BYTES_PER_PIXEL = {"gif": 0.9, "webp": 0.1, "apng": 1.7}
"""About what a translated frame takes; two clips of 480×270 took 0.9, 0.06 to 0.1, 1.6 to 1.8."""

_SLOWED = 50
"""Frames a second beyond which browsers show a GIF more slowly: those of less than 0.02 s for
0.1 s."""


def animation_format(output: Path) -> AnimationFormat | None:
    """Return the format of an output that is an animated image by its name, else None."""
    if parse_pattern(output.name):
        return None
    return ANIMATION_SUFFIXES.get(output.suffix.lower())


def plan_animation(
    format_: AnimationFormat, output: Path, request: EncoderRequest, extras: Extras
) -> tuple[EncoderPlan, list[str]]:
    """Return the encoder, and a text for each property of the video that the format cannot hold.

    Each text completes ``goes without …``. Raises OutputError where the format has no such size.
    """
    stream, (height, width), label = request.stream, request.size, LABELS[format_]
    writer = WRITERS[format_]
    if max(height, width) > writer.largest_side:
        raise OutputError(
            f"cannot write {printable(output)}: {width}×{height} is more than {label} can hold "
            f"({writer.largest_side} pixels a side); choose .apng, or a video such as .mkv"
        )
    subject = f"stream {stream.index} ({stream.label})"
    losses = []
    if extras.fields:
        losses.append(
            f"the mark that {subject} is interlaced: {label} has none; --deinterlace makes whole "
            "frames of its fields"
        )
    if request.aspect not in (None, 1):
        losses.append(f"the shape of the pixels of {subject}, {request.aspect}: {label} has none")
    notes = []
    if stream.bits > 8:
        notes.append(f"its {stream.bits} bits become 8, as {label} holds no more")
    rate = stream.average_rate or Fraction(25)
    if format_ == "gif":
        if extras.alpha and stream.codec != "gif":
            notes.append("its transparency becomes one bit, as GIF holds no more")
        if rate > writer.ticks:
            notes.append(
                f"GIF holds {writer.ticks} frames a second at most, and the video has "
                f"{float(rate):.6g}, so it is shown more slowly; .webp and .apng hold the times"
            )
        elif rate > _SLOWED:
            notes.append(
                "browsers show frames of a GIF that last less than 0.02 s for 0.1 s, and the video "
                f"has {float(rate):.6g} a second; .webp and .apng are shown as they are"
            )
    options = request.options
    settings: tuple[tuple[str, str], ...] = ()
    pix_fmt = "pal8"
    if format_ == "webp":
        quality = DEFAULT_QUALITY if options.quality is None else options.quality
        settings = (("quality", str(quality)),)
        pix_fmt = "bgra" if quality == 100 else "yuva420p" if extras.alpha else "yuv420p"
    elif format_ == "apng":
        if options.png_level is not None:
            settings = (("png_level", str(options.png_level)),)
        pix_fmt = "rgba" if extras.alpha else "rgb24"
    plan = EncoderPlan(
        name=format_,
        pix_fmt=pix_fmt,
        options=settings,
        threads=1,
        time_base=Fraction(1, writer.ticks),
        counts_frames=False,
        rate=rate,
        format=format_,
        alpha=extras.alpha,
        notes=tuple(notes),
    )
    return plan, losses
