"""Plan one video: what is read, how it is encoded, and what else its output holds.

`plan_video` decides everything before the first frame, and opens the encoder for real to do so. The
plan is a value: `VideoSource` reads the frames of a plan, and `VideoSink` encodes them into a file
of their own, which `assemble` joins with the other streams of the source. A long video is cut into
stretches, each of which is encoded by itself and joined with the others when all are done. Pipes
(y4m) and numbered images are videos too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from ...errors import InputError, OutputError
from ...file_identity import FileIdentity, identity_of
from ...files import exists
from ...frames import PixelType, Size
from ...option_table import options_given
from ...options import TranslateOptions
from ...remote import is_remote
from ...wording import Note, printable
from ..alpha import Alpha
from ..animations.reading import ANIMATIONS, describe_animation
from ..demux.probe import media_info, probe
from ..demux.standard_input import Y4M_MUXER, standard_input
from ..demux.stream_info import Fields, MediaInfo, StreamInfo
from ..demux.timestamps import discontinuity_notes, start_note
from ..formats import PIPE, is_numbered_output
from ..mux.streams import StreamPlan, left_out_of_frames, plan_streams
from ..mux.trial import TranslatedVideo
from ..pattern import numbered_files, parse_pattern, pattern_files
from .animated import BYTES_PER_PIXEL, HOLDING_PROFILES, LABELS, animation_format, plan_animation
from .colour import ColourPlan, resolve
from .editing import encoder_name, held_colours
from .encoder import (
    EncoderPlan,
    EncoderRequest,
    Extras,
    default_codec,
    plan_with_extras,
    plan_y4m,
    why_in_one_piece,
)
from .numbered import likely_bytes, plan_numbered
from .pixel_formats import frame_bytes

_Y4M = ".y4m"
_FRAME_LINE = b"FRAME\n"
"""Stands before each frame of a y4m file."""


@dataclass(frozen=True)
class VideoPlan:
    """Everything that was decided about one video."""

    path: Path
    """The file, a pattern of images (``f_%06d.png``), or ``-``."""
    identity: FileIdentity | None
    """Of the input as it was planned; None for standard input."""
    output: Path
    info: MediaInfo
    stream: StreamInfo
    colour: ColourPlan
    pixel_type: PixelType
    size: Size
    """Height and width of the upright frames that the source yields."""
    output_size: Size
    """Height and width of the frames that the sink gets."""
    sample_aspect_ratio: Fraction | None
    """Of the upright output."""
    encoder: EncoderPlan
    streams: StreamPlan | None
    """What else goes into the output; None for y4m and animated images, which hold nothing else."""
    options: TranslateOptions
    frames_expected: int | None
    """By the header, or by duration and frame rate; None where neither is known."""
    stretch_frames: int | None
    """Frames of each stretch but the last, of about ten seconds; None: the video is one piece."""
    first_number: int | None
    """The number of the first image, where the output is numbered images; else None."""
    notes: tuple[Note, ...]
    """Notes that are reported before the first frame."""
    temporal: float = 0.0
    """The strength of the filter against flicker, 0 for none."""
    warm_up: int = 0
    """Frames in front of each stretch that are computed with it, and not written: so that the
    filter has forgotten with which frame it began."""

    @property
    def name(self) -> str:
        """The input, as messages call it."""
        return _name(self.path)

    @property
    def y4m_bytes(self) -> int | None:
        """The size of an output that is y4m, but for its header; None where it is not known.

        As sure as `frames_expected`, for which see `is_count_stated`.
        """
        if self.encoder.format != Y4M_MUXER or self.frames_expected is None:
            return None
        frame = len(_FRAME_LINE) + frame_bytes(self.encoder.pix_fmt, self.output_size)
        return self.frames_expected * frame

    @property
    def likely_bytes(self) -> int | None:
        """About the size of numbered images or an animated one; None where it is not known."""
        if self.frames_expected is None:
            return None
        if self.is_animation:
            each = BYTES_PER_PIXEL[self.encoder.format]
            return round(self.frames_expected * math.prod(self.output_size) * each)
        if not self.is_numbered:
            return None
        return self.frames_expected * likely_bytes(self.encoder, self.output_size)

    @property
    def is_animation(self) -> bool:
        """Whether the output is an animated image."""
        return self.encoder.format in ANIMATIONS

    @property
    def is_numbered(self) -> bool:
        """Whether the output is numbered images."""
        return self.first_number is not None

    def image_number(self, index: int, timing: Timing) -> int:
        """Return the number of the image that the frame of this number becomes."""
        assert self.first_number is not None
        if self.picture_rate is None or self.options.deinterlace_rate == "field":
            return self.first_number + index
        # A source of numbered images has a tick for each number.
        return self.first_number + timing.pts - (self.stream.start_pts or 0)

    def existing(self) -> Path | None:
        """Return what exists of the output: the file, or one of the numbered images."""
        if self.is_numbered:
            return next(iter(numbered_files(self.output).values()), None)
        return self.output if exists(self.output) else None

    @property
    def is_count_stated(self) -> bool:
        """Whether the source states its number of frames; a duration may be that of its sound.

        All frames of a y4m file have one length, so its size states their number.
        """
        counted = self.stream.frames_counted or self.stream.frames_claimed
        return counted is not None or self.info.format == Y4M_MUXER

    @property
    def picture_rate(self) -> Fraction | None:
        """Frames per second of a pattern of images, else None."""
        return _pattern_rate(self.path, self.options)

    @property
    def stretches(self) -> int:
        """How many stretches the video has, as far as its header tells; 1 where it is one piece.

        The last one has no end: it takes what is more than expected.
        """
        if self.stretch_frames is None or self.frames_expected is None:
            return 1
        return math.ceil(self.frames_expected / self.stretch_frames)

    def why_changed(self) -> InputError | None:
        """Return an error where the input is no longer as it was planned, by its size and time.

        Raises that error with ``--on-error fail``, and InputError where the input is gone.
        """
        if self.identity is None:
            return None
        now = input_identity(self.path, replace(self.options, hash_inputs=False), asked=True)
        if now is None or now.matches(replace(self.identity, sha256=None)):
            return None
        error = InputError(
            f"{self.name}: was changed while it was translated, so the output may be of both "
            "states; translate it again when nothing writes to it any more"
        )
        if self.options.on_error == "fail":
            raise error
        return error


@dataclass(frozen=True)
class Timing:
    """When a frame is shown, and the properties of it that bypass the network."""

    pts: int
    """In ticks of the source's time base."""
    duration: int | None
    """In ticks, where the source holds it."""
    interlaced: bool = field(default=False, compare=False)
    """The lines of the source's frame belong to two fields, and so do those of the output's."""
    alpha: Alpha | None = field(default=None, compare=False, repr=False)
    """Of the upright frame, where the output holds it."""


def plan_video(
    path: Path,
    output: Path,
    options: TranslateOptions,
    *,
    pixel_type: PixelType,
    output_size: Callable[[Size], Size] = lambda size: size,
    temporal: float = 0.0,
    warm_up: int = 0,
) -> VideoPlan:
    """Decide how the video at ``path`` becomes ``output``, before the first frame.

    ``output_size`` maps the upright size (height, width) of the source to that of the frames which
    the sink will get. ``-`` is standard input or output as y4m; a pattern of images needs ``fps``.
    ``temporal`` and ``warm_up`` are kept for the one who runs the plan; a video in one piece has no
    frames in front of it.

    Raises InputError where ``path`` is no video or is not to be translated, OutputError where it
    cannot be encoded as the options ask.
    """
    is_numbered = is_numbered_output(output)
    if is_numbered and options.fps is None and parse_pattern(path.name):
        # Nothing is played: each image becomes the image of its number.
        options = replace(options, fps="25")
    if path == PIPE:
        info = media_info(standard_input().container, path)
    else:
        info = described(path, options)
    _refuse_hidden_animation(info, output)
    stream = info.best_video(options.stream)
    if options.deinterlace_rate == "field":
        stream = _at_field_rate(stream)
    name = _name(path)
    if stream.size is None or not all(stream.size) or stream.pix_fmt is None:
        raise InputError(
            f"{name}: stream {stream.index} ({stream.label}) cannot be decoded; "
            "convert it to a common format first"
        )
    colour = resolve(stream, options.color, hdr=options.hdr, name=name)
    size = stream.displayed_size or stream.size
    target = output_size(size)
    aspect = _output_aspect(stream, size, target)
    request = EncoderRequest(stream, colour, target, aspect, options)
    extras = Extras(_output_fields(stream, size, target, options), stream.alpha)
    streams = None
    if is_numbered:
        encoder, losses = plan_numbered(output, request, extras, pixel_type)
        left_out = left_out_of_frames(info, stream, options, "images")
        stream_notes = _frame_notes(name, output, losses, left_out, options)
    elif output == PIPE or output.suffix.lower() == _Y4M:
        encoder, losses = plan_y4m(request, extras)
        left_out = left_out_of_frames(info, stream, options, "y4m")
        stream_notes = _frame_notes(name, output, losses, left_out, options)
        if stream.constant_rate is False:
            text = "y4m has one frame rate, so the variable times of the source are lost"
            stream_notes += (Note(name, text),)
    elif (format_ := animation_format(output)) is not None:
        encoder, losses = plan_animation(format_, output, request, extras)
        left_out = left_out_of_frames(info, stream, options, LABELS[format_])
        stream_notes = _frame_notes(name, output, losses, left_out, options)
    else:
        codec = encoder_name(options.codec or default_codec(output))
        colour = held_colours(codec, colour, name, options.pix_fmt)
        encoder, losses = plan_with_extras(codec, output, replace(request, colour=colour), extras)
        translated = TranslatedVideo(
            encoder=encoder.name,
            encoder_options=encoder.options,
            stretch_format=encoder.format,
            pix_fmt=encoder.pix_fmt,
            size=target,
            sample_aspect_ratio=aspect,
            fields=extras.fields,
            alpha=encoder.alpha,
            losses=tuple(losses),
        )
        streams = plan_streams(info, stream, output, options, translated)
        stream_notes = streams.notes
    texts = [*encoder.notes]
    if info.icc and encoder.format not in HOLDING_PROFILES:
        texts.append("its colour profile is left out, which .webp and .apng keep")
    if stream.bits > 8 and pixel_type == "uint8" and encoder.format not in ANIMATIONS:
        texts.append(
            f"its {stream.bits} bits become 8 (the model takes uint8); "
            "a model file that takes float16 keeps them"
        )
    if stream.interlaced and not options.deinterlaces and extras.fields == encoder.fields:
        texts.append("the video is interlaced; --deinterlace makes whole frames of it")
    texts += _timestamp_notes(info, stream, streams)
    frames_expected = _frames_expected(info, stream, options)
    stretch_frames = None
    pattern_rate = _pattern_rate(path, options)
    if path != PIPE and (is_numbered or (streams is not None and pattern_rate is None)):
        stretch_frames = _stretch_frames(stream, frames_expected)
        if stretch_frames and not is_numbered and (reason := why_in_one_piece(encoder)):
            stretch_frames = None
            texts.append(reason)
    first_number = None
    if is_numbered:
        first_number = 1 if pattern_rate is None else min(pattern_files(path), default=1)
    notes = [*colour.notes, *(Note(name, text) for text in texts), *stream_notes]
    return VideoPlan(
        path=path,
        identity=input_identity(path, options),
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
        frames_expected=frames_expected,
        stretch_frames=stretch_frames,
        first_number=first_number,
        notes=tuple(dict.fromkeys(notes)),
        temporal=temporal,
        warm_up=0 if stretch_frames is None else warm_up,
    )


def described(path: Path, options: TranslateOptions) -> MediaInfo:
    """Describe a video, a pattern of images or an animated image. Raises InputError."""
    rate = _pattern_rate(path, options)
    if rate is not None:
        return probe(path, image_pattern_rate=rate)
    return describe_animation(path, max_pixels=options.max_pixels) or probe(path)


def _at_field_rate(stream: StreamInfo) -> StreamInfo:
    """Return ``stream`` with two frames for each of its frames, in ticks of half the length."""
    return replace(
        stream,
        time_base=stream.time_base / 2,
        start_pts=_twice(stream.start_pts),
        duration=_twice(stream.duration),
        paused=2 * stream.paused,
        average_rate=_twice(stream.average_rate),
        frames_counted=_twice(stream.frames_counted),
    )


_Number = TypeVar("_Number", int, Fraction)


def _twice(value: _Number | None) -> _Number | None:
    return None if value is None else 2 * value


def _refuse_hidden_animation(info: MediaInfo, output: Path) -> None:
    """Raise OutputError where a video has the name of a PNG, which most take for one image."""
    is_png = animation_format(output) is not None and output.suffix.lower() == ".png"
    if is_png and info.format not in ANIMATIONS:
        moving, stem = output.with_suffix(".apng").name, output.stem.replace("%", "%%")
        raise OutputError(
            f"cannot write {printable(output)}: {_name(info.path)} is a video and .png an image; "
            f"name an animated PNG {printable(moving)}, and one image for each frame "
            f"{printable(f'{stem}_%06d.png')}"
        )


def _frame_notes(
    name: str, output: Path, losses: list[str], left_out: list[str], options: TranslateOptions
) -> tuple[Note, ...]:
    """Return notes on what y4m, numbered and animated images lose, which hold frames alone.

    ``losses`` are those of the frames themselves, ``left_out`` is what a container can hold. With
    ``--strict`` raise OutputError instead.
    """
    output_name = "standard output" if output == PIPE else printable(output)
    notes = tuple(Note(None, f"{output_name} goes without {loss}") for loss in losses + left_out)
    if notes and options.strict:
        remedy = ", or choose .mkv" if left_out else ""
        raise OutputError(
            f"{'; '.join(map(str, notes))}; leave out --strict to accept that{remedy}"
        )
    why, names = "y4m holds frames that are not encoded", {*_ENCODER_OPTIONS}
    if is_numbered_output(output):
        why, names = "numbered images are no encoded video", {*_ENCODER_OPTIONS, "pix_fmt"}
    elif (format_ := animation_format(output)) is not None:
        why, names = f"{LABELS[format_]} has none of them", {*_ENCODER_OPTIONS, "pix_fmt"}
        names |= {"quality", "png_level"} - {_IMAGE_OPTIONS.get(format_)}
    useless = [each.flag for each in options_given(options) if each.name in names]
    if useless:
        text = f"no effect of {', '.join(useless)}, as {why}"
        notes += (Note(name, text),)
    return notes


_ENCODER_OPTIONS = ("codec", "crf", "preset", "encoder_opt")
_IMAGE_OPTIONS = {"webp": "quality", "apng": "png_level"}
"""The one option of still images that an animated one has."""


def _timestamp_notes(info: MediaInfo, stream: StreamInfo, streams: StreamPlan | None) -> list[str]:
    """Return the texts of the notes on the source's time stamps, as far as they are known."""
    notes = discontinuity_notes(info.discontinuities, (stream.start_pts or 0) * stream.time_base)
    if streams is not None and not streams.from_first_frame:
        note = start_note(streams.beginning)
        notes += [note] if note else []
    return notes


def _name(path: Path) -> str:
    return "standard input" if path == PIPE else printable(path)


def input_identity(
    path: Path, options: TranslateOptions, *, asked: bool = False
) -> FileIdentity | None:
    """Return the identity of a file or a pattern of images; None for standard input.

    ``asked``: ask a store also for what it has listed. Raises InputError where it cannot be read.
    """
    if path == PIPE:
        return None
    is_pattern = _pattern_rate(path, options) is not None
    try:
        files = pattern_files(path).values() if is_pattern else (path,)
        return identity_of(files, hashed=options.hash_inputs, asked=asked)
    except OSError as error:
        raise InputError(
            f"{_name(path)}: cannot be read: {error.strerror or error}; check the name, the "
            "permissions and the disk"
        ) from error


def _pattern_rate(path: Path, options: TranslateOptions) -> Fraction | None:
    """Return the rate of a pattern of images, or None for any other input. Raises InputError."""
    if path == PIPE or not parse_pattern(path.name) or path.exists():
        return None
    if is_remote(path):
        raise InputError(
            f"{printable(path)} is a pattern of images, which is played from a folder only; copy "
            "the images into one, or name their prefix to translate each by itself"
        )
    if options.fps is None:
        raise InputError(
            f"{printable(path)} is a pattern of images, which have no frame rate; set it, "
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
    """Return how many frames are translated by the header, or None where it does not show that."""
    rate = stream.average_rate
    whole = stream.frames_counted or stream.frames_claimed
    if whole is not None and stream.frames_counted is None and options.deinterlace_rate == "field":
        # `_at_field_rate` leaves frames_claimed as it is: it is compared with a count of packets.
        whole *= 2
    seconds = info.duration
    if stream.duration is not None:
        seconds = (stream.duration - stream.paused) * stream.time_base
    elif seconds is not None and info.format.startswith("matroska"):
        # Matroska's duration counts from 0, not from the first frame.
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


_STRETCH_SECONDS = 10
_KEY_FRAMES = 250
"""Frames from key frame to key frame of x264 and x265. Stretches of 300 frames, which are 10 s at
30 frames a second, would have two key frames each: a still picture took 1.5 times the bytes. Those
of 100 frames, at 10 frames a second, took 1.4 times the bytes of a screen recording."""
_MOST_GROUPS = 4
"""Groups of pictures, each with its key frame, in a stretch, however high the frame rate."""


def _stretch_frames(stream: StreamInfo, frames_expected: int | None) -> int | None:
    """Return how many frames a stretch has, None where the video is too short for two of them."""
    groups = int(_STRETCH_SECONDS * (stream.average_rate or Fraction(25)) / _KEY_FRAMES)
    frames = _KEY_FRAMES * min(max(groups, 1), _MOST_GROUPS)
    if frames_expected is None or 2 * frames_expected <= 3 * frames:
        return None
    return frames


def _output_aspect(stream: StreamInfo, size: Size, target: Size) -> Fraction | None:
    """Return the sample aspect ratio with which the output has the source's shape."""
    aspect = stream.sample_aspect_ratio
    if stream.rotation % 180 and aspect:
        aspect = 1 / aspect
    stretch = Fraction(size[1] * target[0], size[0] * target[1])
    # A difference that comes from rounding a side to whole pixels does not count.
    if abs(stretch - 1) > Fraction(1, 100):
        aspect = ((aspect or Fraction(1)) * stretch).limit_denominator(1000)
    return aspect


def _output_fields(
    stream: StreamInfo, size: Size, target: Size, options: TranslateOptions
) -> Fields | None:
    """Return which field of the output's frames is first, None where they have no fields."""
    loses_lines = stream.rotation % 180 or size != target
    if not stream.interlaced or options.deinterlaces or loses_lines:
        return None
    fields = stream.fields or "tff"
    if stream.rotation == 180 and size[0] % 2 == 0:
        # Upside down, the first line belongs to the other field.
        return "bff" if fields == "tff" else "tff"
    return fields
