"""One video in, one video out: decoded, converted and encoded in this process.

`plan_video` decides everything before the first frame, and opens the encoder for real to do so.
`VideoSource` reads the frames of one stretch, upright and in presentation order; `VideoSink`
encodes them into a stretch of their own and lets `assemble` join it with the rest of the source.
Pipes (y4m) and numbered pictures are videos too.

The time of a frame is the source's presentation time stamp, in ticks of its time base, where there
is one. Frames without one follow the last by the average rate; a time stamp that does not ascend is
moved to one tick after the last, so that no frame is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import InputError, OutputError
from ..frames import PixelType, Size
from ..options import TranslateOptions
from ..wording import Note, printable
from .alpha import Alpha
from .clocks import seam_notes, start_note
from .colour import ColourPlan, resolve
from .encoder import (
    EncoderPlan,
    Extras,
    default_codec,
    plan_with_extras,
    plan_y4m,
)
from .formats import PIPE
from .pattern import parse_pattern
from .probe import media_info, probe
from .standard_input import standard_input
from .stream_info import Fields, MediaInfo, StreamInfo
from .streams import StreamPlan, plan_streams

_Y4M = ".y4m"


@dataclass(frozen=True)
class VideoPlan:
    """Everything that was decided about one video."""

    path: Path
    """The file, a pattern of pictures (``f_%06d.png``), or ``-``."""
    output: Path
    info: MediaInfo
    stream: StreamInfo
    colour: ColourPlan
    pixel_type: PixelType
    size: Size
    """Height and width of the upright frames that the source gives."""
    output_size: Size
    """Height and width of the frames that the sink takes."""
    sample_aspect_ratio: Fraction | None
    """Of the upright output."""
    encoder: EncoderPlan
    streams: StreamPlan | None
    """What else goes into the output; None for y4m, which holds nothing else."""
    options: TranslateOptions
    frames_expected: int | None
    """By the header, or by duration and rate; None where neither is known."""
    notes: tuple[Note, ...]
    """What the user is told once."""

    @property
    def name(self) -> str:
        """What messages call the input."""
        return "standard input" if self.path == PIPE else printable(self.path)

    @property
    def picture_rate(self) -> Fraction | None:
        """Frames per second of a pattern of pictures, else None."""
        return _picture_rate(self.path, self.options)


@dataclass(frozen=True)
class Timing:
    """When a frame is shown; what the sink gets back with the translated picture."""

    pts: int
    """In ticks of the source's time base."""
    duration: int | None
    """In ticks, where the source says it."""
    interlaced: bool = field(default=False, compare=False)
    """The picture's lines belong to two fields, and so do those of the output."""
    alpha: Alpha | None = field(default=None, compare=False, repr=False)
    """Of the upright picture, where the output holds it."""


def plan_video(
    path: Path,
    output: Path,
    options: TranslateOptions,
    *,
    pixel_type: PixelType,
    output_size: Callable[[Size], Size] = lambda size: size,
) -> VideoPlan:
    """Decide how the video at ``path`` becomes ``output``, before the first frame.

    ``output_size`` maps the upright size (height, width) of the source to that of the pictures
    which the sink will get. ``-`` is standard input or output as y4m; a pattern of pictures needs
    ``fps``.

    Raises InputError where ``path`` is no video or is HDR, OutputError where it cannot be encoded
    as asked.
    """
    if parse_pattern(output.name):
        raise OutputError(
            f"cannot write {printable(output)}: numbered pictures are no output here; "
            "name a video, and let FFmpeg take it apart: ffmpeg -i VIDEO out_%06d.png"
        )
    if path == PIPE:
        info = media_info(standard_input().container, path)
    else:
        info = probe(path, image_pattern_rate=_picture_rate(path, options))
    stream = info.best_video(options.stream)
    if options.deinterlace_rate == "field":
        stream = _at_field_rate(stream)
    if stream.size is None or not all(stream.size) or stream.pix_fmt is None:
        raise InputError(
            f"{_name(path)}: stream {stream.index} ({stream.label}) cannot be decoded; "
            "convert it to a common format first"
        )
    name = _name(path)
    colour = resolve(stream, options.color, name=name)
    size = stream.displayed_size or stream.size
    target = output_size(size)
    aspect = _output_aspect(stream, size, target)
    to_y4m = output == PIPE or output.suffix.lower() == _Y4M
    wanted = Extras(_output_fields(stream, size, target, options), stream.alpha)
    if to_y4m:
        encoder, lost = plan_y4m(stream, options, wanted)
    else:
        codec = options.codec or default_codec(output)
        encoder, lost = plan_with_extras(
            codec, output, stream, colour, target, aspect, options, wanted
        )
    streams = None
    if not to_y4m:
        streams = plan_streams(
            info,
            stream,
            output,
            options,
            encoder=encoder.name,
            encoder_options=dict(encoder.options),
            stretch_format=encoder.format,
            pix_fmt=encoder.pix_fmt,
            size=target,
            sample_aspect_ratio=aspect,
            fields=wanted.fields,
            alpha=encoder.alpha,
            lost=lost,
        )
    else:
        target_name = _name(output, "standard output")
        losses = tuple(Note(None, f"{target_name} goes without {what}") for what in lost)
        if losses and options.strict:
            words = "; ".join(map(str, losses))
            raise OutputError(f"{words}; leave out --strict to accept that")
    notes = [*colour.notes, *(Note(name, text) for text in encoder.notes)]
    if stream.bits > 8 and pixel_type == "uint8":
        text = (
            f"of its {stream.bits} bits, 8 pass the network (the model takes uint8); "
            "a model file that takes float16 keeps them"
        )
        notes.append(Note(name, text))
    if stream.interlaced and not options.deinterlaces and wanted.fields == encoder.fields:
        text = "the video is interlaced; --deinterlace makes whole frames of it"
        notes.append(Note(name, text))
    notes += [Note(name, text) for text in _clock_notes(info, stream, streams)]
    notes += losses if streams is None else streams.notes
    if to_y4m and stream.constant_rate is False:
        text = "y4m has one frame rate, so the variable times of the source are lost"
        notes.append(Note(name, text))
    return VideoPlan(
        path=path,
        output=output,
        info=info,
        stream=stream,
        colour=colour,
        pixel_type=pixel_type,
        size=size,
        output_size=target,
        sample_aspect_ratio=aspect,
        encoder=encoder,
        streams=streams,
        options=options,
        frames_expected=_frames_expected(info, stream, options),
        notes=tuple(dict.fromkeys(notes)),
    )


def _at_field_rate(stream: StreamInfo) -> StreamInfo:
    """Return ``stream`` with two frames for each, on a clock that has the times of both."""
    twice: dict[str, Any] = {"time_base": stream.time_base / 2}
    for name in ("start_pts", "duration", "paused", "average_rate", "frames_counted"):
        value = getattr(stream, name)
        twice[name] = None if value is None else 2 * value
    return replace(stream, **twice)


def _clock_notes(info: MediaInfo, stream: StreamInfo, streams: StreamPlan | None) -> list[str]:
    """Return what the user is told of the clock of the source, as far as it is known."""
    notes = seam_notes(info.seams, (stream.start_pts or 0) * stream.time_base)
    if streams is not None and not streams.from_first_frame:
        note = start_note(streams.beginning)
        notes += [note] if note else []
    return notes


def _name(path: Path, pipe: str = "standard input") -> str:
    return pipe if path == PIPE else printable(path)


def _picture_rate(path: Path, options: TranslateOptions) -> Fraction | None:
    """Return the rate of a pattern of pictures, or None for any other input. Raises InputError."""
    if path == PIPE or not parse_pattern(path.name) or path.exists():
        return None
    if options.fps is None:
        raise InputError(
            f"{printable(path)} is a pattern of pictures, which have no frame rate; say it, "
            "e.g. --fps 25 or --fps 30000/1001"
        )
    try:
        rate = Fraction(options.fps)
    except (ValueError, ZeroDivisionError) as error:
        rate = Fraction(0)
        cause: Exception | None = error
    else:
        cause = None
    if rate <= 0:
        raise InputError(
            f"--fps {options.fps} is no frame rate; expected a number such as 25 or 30000/1001"
        ) from cause
    return rate


def _frames_expected(info: MediaInfo, stream: StreamInfo, options: TranslateOptions) -> int | None:
    """Return how many frames the stretch has, as far as the header tells."""
    rate = stream.average_rate
    whole = stream.frames_counted or stream.frames_claimed
    if whole is not None and stream.frames_counted is None and options.deinterlace_rate == "field":
        # What the header counts is compared with its packets, so it stays as it is.
        whole *= 2
    seconds = info.duration
    if stream.duration is not None:
        seconds = (stream.duration - stream.paused) * stream.time_base
    elif seconds is not None and info.format.startswith("matroska"):
        # Matroska counts from 0, not from its first frame.
        seconds -= max(Fraction(0), (stream.start_pts or 0) * stream.time_base)
    if whole is None and rate and seconds:
        whole = round(seconds * rate)
    if whole is not None and rate and (options.ss is not None or options.to is not None):
        start = math.ceil(Fraction(options.ss or 0).limit_denominator(10**6) * rate)
        end = whole
        if options.to is not None:
            end = min(end, math.ceil(Fraction(options.to).limit_denominator(10**6) * rate))
        whole = max(0, end - start)
    if whole is None:
        return options.frames
    return whole if options.frames is None else min(whole, options.frames)


def _output_aspect(stream: StreamInfo, size: Size, target: Size) -> Fraction | None:
    """Return the sample aspect ratio with which the output has the source's shape."""
    aspect = stream.sample_aspect_ratio
    if stream.rotation % 180 and aspect:
        aspect = 1 / aspect
    stretch = Fraction(size[1] * target[0], size[0] * target[1])
    # Rounding to whole pixels is no change of shape.
    if abs(stretch - 1) > Fraction(1, 100):
        aspect = ((aspect or Fraction(1)) * stretch).limit_denominator(1000)
    return aspect


def _output_fields(
    stream: StreamInfo, size: Size, target: Size, options: TranslateOptions
) -> Fields | None:
    """Return which field of the output's frames is first, None where they have no fields."""
    turned_over = stream.rotation % 180 or size != target
    if not stream.interlaced or options.deinterlaces or turned_over:
        return None
    fields = stream.fields or "tff"
    if stream.rotation == 180 and size[0] % 2 == 0:
        # Upside down, the first line belongs to the other field.
        return "bff" if fields == "tff" else "tff"
    return fields
