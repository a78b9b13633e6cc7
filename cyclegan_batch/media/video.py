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

import contextlib
import heapq
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import cv2
import numpy as np
from av.codec.context import Flags
from av.filter import Graph
from av.video.stream import VideoStream

from ..errors import CycleganBatchError, InputError, OutputError
from ..files import OutputLock, output_error, publish, refuse_existing, temporary_path
from ..frames import Frame, Geometry, Pixels, PixelType, Size
from ..machine import cpu_threads, own_scheduling
from ..options import TranslateOptions
from ..wording import printable
from . import Dropped, Place, dropped_at
from .alpha import ALPHA_DECODERS, Alpha, alpha_of, has_alpha
from .assemble import assemble
from .clocks import LONGEST_GAP, JobClock, seam_notes, start_note
from .colour import ColourPlan, FromRGB, ToRGB, bits_of, output_tags, resolve
from .demuxing import demux, open_container, reason
from .formats import PIPE
from .frame_properties import orientation
from .joined_video import Stretch
from .lookahead import UNCOUNTED
from .messages import captured
from .muxing import DISK_ERRNOS, TAGGED
from .pattern import parse_pattern
from .probe import asf_claims, media_info, probe
from .stream_info import FIELD_ORDER, Fields, MediaInfo, StreamInfo
from .streams import StreamPlan, plan_streams

_Y4M = ".y4m"
_Y4M_MUXER = "yuv4mpegpipe"


# The plan


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder that was opened with these very settings."""

    name: str
    pix_fmt: str
    options: tuple[tuple[str, str], ...]
    """For FFmpeg, all of them known to the encoder."""
    threads: int
    """Part of the plan: the bits that x264 writes depend on it."""
    time_base: Fraction
    """The source's, or one over the rate for encoders that count frames."""
    counts_frames: bool
    """Time stamps are frame numbers (MPEG-2 and its like); the real ones come back later."""
    rate: Fraction
    format: str
    """The muxer of the stretch."""
    fields: Fields | None = None
    """Which field is first, where every frame is marked as interlaced."""
    alpha: bool = False
    """The pictures go in with the alpha of their source."""
    notes: tuple[str, ...] = ()


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
    notes: tuple[str, ...]
    """What the user is told once."""
    opened: av.container.InputContainer | None = field(default=None, repr=False, compare=False)
    """A pipe, which cannot be opened twice."""

    @property
    def name(self) -> str:
        """What messages call the input."""
        return "standard input" if self.path == PIPE else printable(self.path)

    @property
    def picture_rate(self) -> Fraction | None:
        """Frames per second of a pattern of pictures, else None."""
        return _picture_rate(self.path, self.options)


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
    opened = _open_pipe() if path == PIPE else None
    if opened is not None:
        info = media_info(opened, path)
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
    wanted = _Extras(_output_fields(stream, size, target, options), stream.alpha)
    if to_y4m:
        encoder, lost = _plan_y4m(stream, options, wanted)
    else:
        codec = options.codec or _default_codec(output)
        encoder, lost = _plan_with_extras(
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
        losses = tuple(f"{_name(output, 'standard output')} goes without {what}" for what in lost)
        if losses and options.strict:
            raise OutputError(f"{'; '.join(losses)}; leave out --strict to accept that")
    notes = [*colour.notes, *(f"{name}: {note}" for note in encoder.notes)]
    if stream.bits > 8 and pixel_type == "uint8":
        notes.append(
            f"{name}: of its {stream.bits} bits, 8 pass the network (the model takes uint8); "
            "a model file that takes float16 keeps them"
        )
    if stream.interlaced and not options.deinterlaces and wanted.fields == encoder.fields:
        notes.append(f"{name}: the video is interlaced; --deinterlace makes whole frames of it")
    notes += [f"{name}: {note}" for note in _clock_notes(info, stream, streams)]
    notes += losses if streams is None else streams.notes
    if to_y4m and stream.constant_rate is False:
        notes.append(
            f"{name}: y4m has one frame rate, so the variable times of the source are lost"
        )
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
        opened=opened,
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


class _Counted:
    """A pipe that knows how much was read of it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        data: bytes = self._file.read(size)
        self.count += len(data)
        return data


def _open_pipe() -> av.container.InputContainer:
    """Open standard input as y4m; nothing in y4m refers to another file. Raises InputError."""
    try:
        return av.open(_Counted(sys.stdin.buffer), "r", format=_Y4M_MUXER)
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(
            f"standard input is not y4m ({reason(error)}); pipe it like this: "
            "ffmpeg -i VIDEO -f yuv4mpegpipe - | cyclegan-batch translate - OUTPUT …"
        ) from error


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


# The encoder

_HARDWARE = ("_nvenc", "_qsv", "_amf", "_vaapi", "_videotoolbox", "_vulkan", "_mf", "_v4l2m2m")

_QUALITY = {
    "libx264": ("crf", "18"),
    "libx264rgb": ("crf", "18"),
    "libx265": ("crf", "20"),
    "libsvtav1": ("crf", "24"),
    "libaom-av1": ("crf", "22"),
    "libvpx-vp9": ("crf", "24"),
    "libvpx": ("crf", "8"),
    "h264_nvenc": ("cq", "19"),
    "hevc_nvenc": ("cq", "21"),
    "av1_nvenc": ("cq", "25"),
}
"""The option that ``--crf`` is for an encoder, and its value for about the quality of x264's 18."""

_WORST_QUALITY = {
    **dict.fromkeys(("libsvtav1", "libaom-av1", "libvpx-vp9", "libvpx"), 63),
    **dict.fromkeys(("libx264", "libx264rgb", "libx265", "h264_nvenc", "hevc_nvenc"), 51),
    "av1_nvenc": 63,
}
"""The largest ``--crf``; the least is 0. libx264 would take any number as the nearest it knows."""

_WITH_QUALITY = {
    # Without a bit rate of 0 libvpx takes the value as a lower bound of its own 200 kb/s.
    "libvpx-vp9": {"b": "0"},
    "libaom-av1": {"b": "0"},
    # VP8 has no such mode: here the rate is a bound that is not reached.
    "libvpx": {"b": "100M"},
    "h264_nvenc": {"rc": "vbr", "b": "0"},
    "hevc_nvenc": {"rc": "vbr", "b": "0"},
    "av1_nvenc": {"rc": "vbr", "b": "0"},
}

_OWN_RATE_CONTROL = frozenset(
    {"b", "qp", "crf", "cq", "global_quality", "q", "qscale", "rc", "lossless"}
)
"""Whoever passes one of these by ``--encoder-opt`` decides about the rate alone."""

_QSCALE = dict.fromkeys(
    ("mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "wmv1", "wmv2", "flv", "msmpeg4v2", "msmpeg4"), 2
)
"""Encoders with a fixed quantiser instead, 1..31; FFmpeg's own default is 200 kb/s."""
_FF_QP2LAMBDA = 118

_ENCODER_THREADS = 16
"""Beyond this x264 gains little and loses quality; FFmpeg's own bound."""


def _default_codec(output: Path) -> str:
    return "libvpx-vp9" if output.suffix.lower() == ".webm" else "libx264"


@dataclass(frozen=True)
class _Extras:
    """What a picture can have besides its colours, and not every encoder holds."""

    fields: Fields | None
    alpha: bool


_NOTHING = _Extras(None, alpha=False)


def _plan_with_extras(
    codec: str,
    output: Path,
    stream: StreamInfo,
    colour: ColourPlan,
    size: Size,
    aspect: Fraction | None,
    options: TranslateOptions,
    wanted: _Extras,
) -> tuple[EncoderPlan, list[str]]:
    """Choose the encoder, and say what it loses of ``wanted``. Raises OutputError.

    What it holds shows in a frame that it encoded: many take a setting without a word.
    """
    if wanted == _NOTHING:
        return _plan_encoder(codec, stream, colour, size, aspect, options, wanted), []
    held = _NOTHING
    with contextlib.suppress(OutputError):
        plan = _plan_encoder(codec, stream, colour, size, aspect, options, wanted)
        held = _held(plan, colour, size, aspect, output)
    if held != wanted:
        plan = _plan_encoder(codec, stream, colour, size, aspect, options, held)
    what = f"stream {stream.index} ({stream.label})"
    lost = []
    if wanted.fields and not held.fields:
        lost.append(
            f"the mark that {what} is interlaced: {plan.name} cannot set it here, so players will "
            "show both fields at once; --deinterlace makes whole frames of them"
        )
    if wanted.alpha and not held.alpha:
        why = f"{plan.name} in {output.suffix} cannot hold it"
        if options.pix_fmt is not None and not has_alpha(options.pix_fmt):
            why = f"--pix-fmt {options.pix_fmt} has none"
        lost.append(
            f"the alpha of {what}: {why}; -c prores_ks in .mov, -c ffv1 in .mkv and "
            "libvpx-vp9 in .webm keep it"
        )
    return plan, lost


def _held(
    plan: EncoderPlan, colour: ColourPlan, size: Size, aspect: Fraction | None, output: Path
) -> _Extras:
    """Encode one frame, and return what of the plan's extras its decoder gives back."""
    from_rgb = FromRGB(colour, plan.pix_fmt, plan.fields)
    grey = np.full((*size, 3), 128, np.uint8)
    clear = Alpha(np.zeros(size, np.uint8), 8) if plan.alpha else None
    frame = from_rgb(grey, interlaced=plan.fields is not None, alpha=clear)
    frame.pts, frame.time_base = 0, plan.time_base
    shown: list[Any] = []
    file = io.BytesIO()
    with contextlib.suppress(av.error.FFmpegError, ValueError):
        with own_scheduling(), av.open(file, "w", format=plan.format) as written:
            stream = _add_encoder(written, plan, colour, size, aspect)
            written.mux([*stream.encode(frame), *stream.encode(None)])
        file.seek(0)
        with av.open(file, "r", format=plan.format) as read:
            decode = _decoder(read.streams.video[0], alpha=plan.alpha)
            for packet in read.demux():
                shown += decode(packet)
    if not shown:
        return _NOTHING
    first: av.VideoFrame = shown[0]
    alpha = alpha_of(first) if plan.alpha else None
    beside = plan.name in ALPHA_DECODERS.values()
    fits = not beside or output.suffix.lower() in _BLOCK_ADDITIONS
    return _Extras(
        plan.fields if first.interlaced_frame else None,
        alpha=alpha is not None and not alpha.values.any() and fits,
    )


def _decoder(stream: Any, *, alpha: bool) -> Callable[[av.Packet[Any]], list[av.VideoFrame]]:
    """Return what decodes the packets of ``stream``: itself, or a decoder that reads alpha."""
    reader = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name) if alpha else None
    if reader is None:
        return lambda packet: packet.decode()
    context: Any = av.CodecContext.create(reader, "r")
    context.extradata = stream.codec_context.extradata
    context.thread_count = stream.codec_context.thread_count
    context.flags = stream.codec_context.flags
    decode: Callable[[av.Packet[Any]], list[av.VideoFrame]] = context.decode
    return decode


_BLOCK_ADDITIONS = (".mkv", ".webm")
"""Containers in which a packet can have a second part, as the alpha of VP8 and VP9 is."""


def _plan_encoder(
    codec: str,
    stream: StreamInfo,
    colour: ColourPlan,
    size: Size,
    aspect: Fraction | None,
    options: TranslateOptions,
    extras: _Extras,
) -> EncoderPlan:
    """Choose the encoder and its pixel format by opening them. Raises OutputError."""
    try:
        return _open_first(codec, stream, colour, size, aspect, options, extras)
    except OutputError as error:
        if not codec.endswith(_HARDWARE):
            raise
        # Its presets and options mean nothing to x264.
        software = replace(options, preset=None, encoder_opt={})
        plan = _open_first("libx264", stream, colour, size, aspect, software, extras)
        note = f"{codec} does not open here ({reason(error.__cause__)}), libx264 encodes"
        return replace(plan, notes=(note, *plan.notes))


def _open_first(
    name: str,
    stream: StreamInfo,
    colour: ColourPlan,
    size: Size,
    aspect: Fraction | None,
    options: TranslateOptions,
    extras: _Extras,
) -> EncoderPlan:
    """Return the first of the sensible settings that opens. Raises OutputError."""
    try:
        codec = av.Codec(name, "w")
    except (ValueError, LookupError) as error:
        raise OutputError(
            f"--codec {name} is no encoder of this FFmpeg; choose one such as libx264, libx265, "
            "libsvtav1, libvpx-vp9 or h264_nvenc (doctor lists those that open)"
        ) from error
    if codec.type != "video":
        raise OutputError(f"--codec {name} encodes {codec.type}; choose a video encoder")
    formats = [each.name for each in codec.video_formats or ()]
    if options.pix_fmt is not None and formats and options.pix_fmt not in formats:
        raise OutputError(
            f"{name} does not take --pix-fmt {options.pix_fmt}; choose one of {', '.join(formats)}"
        )
    common = formats
    if extras.alpha and codec.name in ALPHA_DECODERS.values():
        # FFmpeg takes other formats with alpha as an experiment only.
        common = [each for each in formats if each == "yuva420p"]
    wanted = options.pix_fmt or choose_pix_fmt(
        stream.pix_fmt or "yuv420p", common, alpha=extras.alpha
    )
    alpha = extras.alpha and has_alpha(wanted)
    encoder_options = _encoder_options(codec.name, options)
    if alpha and codec.name == "libvpx":
        # It takes no alpha beside frames that are never shown.
        encoder_options.setdefault("auto-alt-ref", "0")
    worst = _WORST_QUALITY.get(codec.name)
    if options.crf is not None and worst is not None and not 0 <= options.crf <= worst:
        raise OutputError(
            f"{codec.name} has no --crf {options.crf:g}; choose one from 0 to {worst}, "
            f"smaller is better ({_QUALITY[codec.name][1]} if none is said)"
        )
    rate = stream.average_rate or Fraction(25)
    draft = EncoderPlan(
        name=codec.name,
        pix_fmt=wanted,
        options=tuple(encoder_options.items()),
        threads=_encoder_threads(codec.name),
        time_base=stream.time_base,
        counts_frames=False,
        rate=rate,
        format=_stretch_format(codec.name, alpha=alpha),
        fields=extras.fields,
        alpha=alpha,
    )
    refused: Exception | None = None
    for plan in _variants(draft, size, formats, explicit=options.pix_fmt is not None):
        try:
            unknown = _opened(plan, colour, size, aspect)
        except (av.error.FFmpegError, ValueError, OSError) as failure:
            refused = refused or failure
            continue
        _refuse_unknown(plan.name, unknown)
        return plan
    height, width = size
    if _is_odd_for(wanted, size):
        full = [each for each in formats if each.startswith("yuv") and not _is_odd_for(each, size)]
        choices = " or ".join(f"--pix-fmt {each}" for each in full) or "another --codec"
        raise OutputError(
            f"{name} cannot encode {width}×{height} as {wanted}, whose sides must be even "
            f"({reason(refused)}); choose {choices}, or an encoder such as libvpx-vp9"
        ) from refused
    raise OutputError(
        f"{name} does not open for {width}×{height} {wanted} "
        f"with {_as_text(encoder_options)}: {reason(refused)}; "
        "change --codec, --pix-fmt, --preset, --crf or --encoder-opt"
    ) from refused


def _variants(
    draft: EncoderPlan, size: Size, formats: list[str], *, explicit: bool
) -> Iterator[EncoderPlan]:
    """Yield what to try to open: as drafted, counting frames, and then with full chroma."""
    clocks = [draft]
    # The real times come back later, so any rate will do where a standard does not know this one.
    for rate in (draft.rate, Fraction(25)):
        clocks.append(replace(draft, rate=rate, time_base=1 / rate, counts_frames=True))
    yield from clocks
    if explicit or not _is_odd_for(draft.pix_fmt, size):
        return
    bits = bits_of(draft.pix_fmt)
    chroma = "yuva444" if draft.alpha else "yuv444"
    full = [each for each in formats if each.startswith(chroma) and bits_of(each) == bits]
    height, width = size
    note = f"{draft.name} takes no {width}×{height} in {draft.pix_fmt}, so it encodes "
    for each in full:
        for clock in clocks:
            yield replace(clock, pix_fmt=each, notes=(*draft.notes, note + each))


def _opened(
    plan: EncoderPlan, colour: ColourPlan, size: Size, aspect: Fraction | None
) -> list[str]:
    """Open the encoder and let go of it; return the options that it did not take.

    Raises FFmpegError, with what the encoder said about it.
    """

    def opened() -> list[str]:
        context: Any = av.CodecContext.create(plan.name, "w")
        _set_up(context, plan, colour, size, aspect)
        with own_scheduling():
            context.open()
        return [key for key in context.options if key != "chroma_sample_location"]

    # FFmpeg only warns of what it does not know inside x264-params and its like.
    if not any(key.endswith("-params") for key, _ in plan.options):
        with contextlib.suppress(av.error.FFmpegError):
            return opened()
    with captured() as logs:
        unknown = opened()
    return unknown + [found[1] for *_, text in logs if (found := _PARAMETER_REFUSED.match(text))]


_PARAMETER_REFUSED = re.compile(
    r"(?:Error parsing option|Unknown option:|Invalid value for) '?(.+?)'?\.?\s*$"
)
"""What libx264, libx265 and libsvtav1 say of one of their own parameters."""


def _add_encoder(
    container: av.container.OutputContainer,
    plan: EncoderPlan,
    colour: ColourPlan,
    size: Size,
    aspect: Fraction | None,
) -> Any:
    """Add a stream that is encoded as planned."""
    stream: Any = container.add_stream(plan.name, rate=plan.rate)
    _set_up(stream.codec_context, plan, colour, size, aspect)
    stream.time_base = plan.time_base
    return stream


def _set_up(
    context: Any, plan: EncoderPlan, colour: ColourPlan, size: Size, aspect: Fraction | None
) -> None:
    if plan.name == "libsvtav1":
        # It writes 20 lines to standard error by itself; 1 is "errors only".
        os.environ.setdefault("SVT_LOG", "1")
    context.height, context.width = size
    context.pix_fmt = plan.pix_fmt
    context.time_base, context.framerate = plan.time_base, plan.rate
    context.thread_count = plan.threads
    if aspect:
        context.sample_aspect_ratio = aspect
    tags = output_tags(colour, plan.pix_fmt)
    context.colorspace, context.color_range = tags.matrix, tags.range
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    if plan.fields:
        context.field_order = FIELD_ORDER[plan.fields]
        context.flags |= Flags.interlaced_dct | Flags.interlaced_me
    options = dict(plan.options)
    if plan.name == "libx265":
        # It writes to standard error by itself, unless the user wants to see it.
        said = options.get("x265-params")
        options["x265-params"] = ":".join(filter(None, ["log-level=error", said]))
    if tags.chroma_location > 1:
        # To the left is what decoders assume anyway.
        options.setdefault("chroma_sample_location", str(tags.chroma_location))
    if plan.format == _Y4M_MUXER:
        # In y4m it is never left unsaid: without this the header claims JPEG's.
        options["chroma_sample_location"] = colour.chroma_location
    if plan.name in _QSCALE and not _OWN_RATE_CONTROL & options.keys():
        context.qscale = True
        context.global_quality = _QSCALE[plan.name] * _FF_QP2LAMBDA
    context.options = options


def _encoder_options(name: str, options: TranslateOptions) -> dict[str, str]:
    """Return ``--crf``, ``--preset`` and ``--encoder-opt`` in the encoder's own words."""
    chosen: dict[str, str] = {}
    quality = _QUALITY.get(name)
    if options.crf is not None and quality is None:
        raise OutputError(f"{name} has no --crf; set its rate by --encoder-opt, e.g. b=8M")
    if quality is not None and not _OWN_RATE_CONTROL & options.encoder_opt.keys():
        word, value = quality
        chosen[word] = value if options.crf is None else f"{options.crf:g}"
        chosen |= _WITH_QUALITY.get(name, {})
    elif options.crf is not None and quality is not None:
        chosen[quality[0]] = f"{options.crf:g}"
    if options.preset is not None:
        chosen["preset"] = options.preset
    return chosen | options.encoder_opt


def _refuse_unknown(name: str, unknown: list[str]) -> None:
    """Raise OutputError for options that the opened encoder did not take."""
    if "preset" in unknown:
        raise OutputError(f"{name} has no --preset; leave it out")
    if unknown:
        raise OutputError(
            f"{name} does not take {', '.join(unknown)}; "
            f"ffmpeg -h encoder={name} lists what --encoder-opt can set"
        )


def _encoder_threads(name: str) -> int:
    cores = cpu_threads()
    if name == "libx265":
        # Frames in parallel, beside its own pool of threads; x265's own rule.
        return 1 if cores < 4 else 2 if cores < 8 else 3
    # x264's own rule; frame threads wait for each other half of the time.
    return max(1, min(cores * 3 // 2, _ENCODER_THREADS))


def _stretch_format(name: str, *, alpha: bool) -> str:
    """Return the muxer of the stretch: MP4, else MKV, MOV or NUT, whichever can hold the codec."""
    beside = alpha and name in ALPHA_DECODERS.values()
    choices: tuple[str, ...] = ("matroska",) if beside else ("mp4", "matroska", "mov", "nut")
    if name in TAGGED:
        choices = ("nut",)
    for muxer in choices:
        with contextlib.suppress(ValueError, av.error.FFmpegError):
            trial = av.open(io.BytesIO(), "w", format=muxer)
            trial.add_stream(name)
            return muxer
    raise OutputError(f"--codec {name} fits neither MP4, MKV, MOV nor NUT; choose another one")


def choose_pix_fmt(source: str, formats: list[str], *, alpha: bool = False) -> str:
    """Return which of an encoder's ``formats`` loses least of ``source``, and adds least to it.

    RGB and grey count as 4:2:0: that is what players play. An encoder that lists none takes any.
    With ``alpha`` one that holds alpha is preferred, and without it none does.
    """
    plain = re.sub(r"^yuvj", "yuv", source)
    if not formats:
        return re.sub("^yuva", "yuv", plain) if not alpha else plain.replace("yuv4", "yuva4", 1)
    x, y, bits = _sampling(plain)
    described = av.VideoFormat(plain)
    # A palette has one component, as grey does.
    if described.is_rgb or len(described.components) < 3 or plain.startswith("xyz"):
        x, y = 2, 2
    candidates = [each for each in formats if re.match(r"yuv4\d\dp(\d+le)?$|nv12$|p010le$", each)]
    if alpha:
        clear = [each for each in formats if re.match(_CLEAR, each)]
        candidates = clear or candidates

    def loss(each: str) -> tuple[bool, int, int, int, bool]:
        across, down, deep = _sampling(each)
        return (
            across > x or down > y,
            max(0, bits - deep),
            (x - across) + (y - down),
            max(0, deep - bits),
            not each.startswith("yuv"),
        )

    return min(candidates, key=loss, default=formats[0])


_CLEAR = r"yuva4\d\dp(\d+le)?$|gbrap(\d+le)?$|(rgba|bgra|argb|abgr)$|rgba64[bl]e$"
"""Pixel formats with alpha that are written."""


def _sampling(pix_fmt: str) -> tuple[int, int, int]:
    """Return luma samples per chroma sample across and down, and the bits of a pixel format."""
    components = av.VideoFormat(pix_fmt, 16, 16).components
    chroma = components[1] if len(components) > 1 else components[0]
    return 16 // chroma.width, 16 // chroma.height, bits_of(pix_fmt)


def _is_odd_for(pix_fmt: str, size: Size) -> bool:
    """Say whether a side is no multiple of the pixel format's chroma."""
    across, down, _ = _sampling(pix_fmt)
    return bool(size[0] % down or size[1] % across)


def _as_text(options: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in options.items()) or "no options"


_Y4M_FORMATS = [
    "gray",
    *(f"yuv{chroma}p{deep}" for deep in ("", "10le", "12le") for chroma in (420, 422, 444)),
]


def _plan_y4m(
    stream: StreamInfo, options: TranslateOptions, wanted: _Extras
) -> tuple[EncoderPlan, list[str]]:
    """Plan a y4m stream: pictures as they are; more than 8 bits are FFmpeg's extension of it."""
    if options.pix_fmt is not None and options.pix_fmt not in _Y4M_FORMATS:
        raise OutputError(
            f"y4m does not hold --pix-fmt {options.pix_fmt}; "
            f"choose one of {', '.join(_Y4M_FORMATS)}"
        )
    rate = stream.average_rate or Fraction(25)
    lost = []
    if wanted.alpha:
        lost.append(f"the alpha of stream {stream.index} ({stream.label}): y4m cannot hold it")
    plan = EncoderPlan(
        name="rawvideo",
        pix_fmt=options.pix_fmt or choose_pix_fmt(stream.pix_fmt or "yuv420p", _Y4M_FORMATS),
        options=(),
        threads=1,
        time_base=1 / rate,
        counts_frames=True,
        rate=rate,
        format=_Y4M_MUXER,
        fields=wanted.fields,
    )
    return plan, lost


# The source


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


@dataclass(frozen=True)
class _Decoded:
    """A frame on its way to the converter."""

    index: int
    timing: Timing
    picture: av.VideoFrame
    turn: tuple[int, bool]
    """Rotation and mirroring, as `upright` takes them."""


@dataclass(frozen=True)
class _Lost:
    """A frame that could not be decoded."""

    pts: int | None
    cause: str


class _UncertainError(Exception):
    """Something could not be decoded, and with several threads it is not certain what."""


_FAR = 20
"""Seconds from which on it is worth seeking to the start of a stretch."""
_MARGIN = 5
"""Seconds before it from which on everything is decoded."""


class VideoSource:
    """The frames of one stretch of a video, in presentation order."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        self.notes: tuple[str, ...] = ()
        """What only reading shows, to be said once."""
        self._container: av.container.InputContainer | None = None
        self._first: int | None = None
        """Time of the first frame in ticks."""
        self._end = 0
        """Where the last one ends."""
        self._packets = 0
        """Of the video stream; what its header counts."""
        self._ends: dict[int, Fraction] = {}
        """Seconds at which each stream ended so far."""
        self._stood: dict[int, Fraction] = {}
        """Seconds at which each stream stood whose packets do not say how long they last."""
        self._pauses: dict[int, Fraction] = {}
        """The longest time, in seconds, from one such packet to the next."""
        self._read = 0
        """Where the last packet ends, in bytes, in a file that is read from front to back."""
        self._marked: list[Fraction] = []
        """Where packets of the video end that the demuxer marked as damaged, in seconds."""
        self._broken: str | None = None
        """Why the file could not be read to its end."""
        self._sought = False
        self._clock = JobClock(plan.info.format)
        base = plan.stream.time_base
        self._step = max(1, round(1 / ((plan.stream.average_rate or Fraction(25)) * base)))
        self._from = _ticks(plan.options.ss, base)
        self._to = _ticks(plan.options.to, base)

    def read(self) -> Iterator[_Decoded | Dropped]:
        """Yield decoded frames, and `Dropped` for each that cannot be and for a file cut short."""
        plan = self._plan
        index, dropped = 0, False
        gaps = _Gaps(self._step, round(LONGEST_GAP / plan.stream.time_base))
        for item in self._cut(self._timed(self._deinterlaced(self._pictures()))):
            lost = item if isinstance(item, _Lost) else None
            if not isinstance(item, _Lost):
                timing, picture = item
                turn = self._turn(picture)
                self._look_at_size(index, picture, turn)
                if picture.is_corrupt:
                    dropped = True
                    yield self._concealed(index, timing.pts)
                yield _Decoded(index, timing, picture, turn)
            gaps.take(item.pts if isinstance(item, _Lost) else item[0].pts, self._seams())
            if lost is not None:
                dropped = True
                yield self._dropped(index, lost)
            index += 1
            if index == plan.options.frames:
                break
        if index == 0:
            raise self._nothing()
        self._say_seams()
        if error := self._missing(gaps, dropped=dropped):
            yield Dropped(plan.name, error)
        limited = index == plan.options.frames or self._reached_end_asked_for()
        if not limited and (error := self._cut_short()):
            yield Dropped(plan.name, error)

    def converter(self) -> Callable[[_Decoded], Frame | Dropped]:
        """Return a function from a decoded frame to an upright RGB one, one for each worker."""
        plan = self._plan
        to_rgb = ToRGB(plan.colour, plan.pixel_type)

        def convert(item: _Decoded) -> Frame | Dropped:
            try:
                stored = to_rgb(item.picture)
            except av.error.FFmpegError as error:
                return self._dropped(item.index, _Lost(item.timing.pts, reason(error)))
            rotation, mirrored = item.turn
            pixels = upright(stored, rotation, mirrored=mirrored)
            if pixels.shape[:2] != plan.size:
                # A stream that changes its size: an encoder cannot, so all get the first one's.
                size = (pixels.shape[0], pixels.shape[1])
                pixels = Geometry(size, plan.size, plan.size).into_network(pixels)
            extras = plan.encoder.alpha or item.picture.interlaced_frame
            timing = self._with_extras(item) if extras else item.timing
            return Frame(item.index, pixels, timing)

        return convert

    def _with_extras(self, item: _Decoded) -> Timing:
        """Return the frame's timing with what does not pass the network."""
        rotation, mirrored = item.turn
        alpha = alpha_of(item.picture) if self._plan.encoder.alpha else None
        if alpha is not None:
            alpha = replace(alpha, values=upright(alpha.values, rotation, mirrored=mirrored))
        plan = self._plan
        interlaced = item.picture.interlaced_frame and not (
            rotation % 180 or plan.size != plan.output_size
        )
        return replace(item.timing, interlaced=interlaced, alpha=alpha)

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    # Decoding

    def _open(self) -> av.container.InputContainer:
        plan = self._plan
        if plan.opened is not None:
            return plan.opened
        return open_container(plan.path, image_pattern_rate=plan.picture_rate)

    def _pictures(self) -> Iterator[av.VideoFrame | _Lost]:
        """Yield frames as they are shown, with several threads as long as nothing is lost.

        FFmpeg's threads report a broken packet late, and drop good frames beside it at the end of
        the file. At the first sign of that one thread reads everything again, up to where it was.
        """
        given = 0
        try:
            for item in self._decode(careful=False):
                yield item
                given += 1
        except _UncertainError:
            if self._plan.opened is not None:
                raise InputError(f"{self._plan.name}: a frame of it cannot be decoded") from None
            self._packets, self._ends, self._broken, self._marked = 0, {}, None, []
            self._stood, self._pauses = {}, {}
            for item in self._decode(careful=True):
                # What is lost was not among what was given.
                if given and not isinstance(item, _Lost):
                    given -= 1
                else:
                    yield item

    def _decode(self, *, careful: bool) -> Iterator[av.VideoFrame | _Lost]:
        self.close()
        container = self._container = self._open()
        self._clock = JobClock(container.format.name)
        stream = self._video_stream(container)
        stream.thread_type = "AUTO"
        # Otherwise HEVC's decoder leaves out, without a word, what it concealed (FFmpeg 8).
        stream.codec_context.flags |= Flags.output_corrupt
        if careful:
            stream.codec_context.thread_count = 1
        decode = _decoder(stream, alpha=self._plan.encoder.alpha)
        shown = _Shown(careful=careful)
        packets = self._demux(container)
        seeking = self._from is not None and self._may_seek()
        for packet in packets:
            # The flushing packet's own stream_index is 0 in any case (PyAV 18.1).
            if packet.stream.index != stream.index:
                continue
            shown.expect(packet)
            try:
                frames = decode(packet)
            except av.error.EOFError:
                continue
            except av.error.FFmpegError as error:
                shown.fail(packet, reason(error))
                continue
            for frame in frames:
                if frame.is_corrupt:
                    if shown.is_leading(frame):
                        continue
                    shown.conceal()
                yield from shown.before(frame)
                if shown.is_late(frame):
                    continue
                yield frame
                if seeking:
                    seeking = False
                    self._seek(container, stream, frame)
                    # A seek flushes the decoders of the container, and no other.
                    decode = _decoder(stream, alpha=self._plan.encoder.alpha)
                    shown = _Shown(careful=careful)
            if not packet.size:
                break
        yield from shown.rest()

    def _video_stream(self, container: av.container.InputContainer) -> VideoStream:
        """Return the stream that is translated."""
        index = self._plan.stream.index
        # Of a pattern of pictures, or a pipe, there is but one.
        return next(
            (s for s in container.streams.video if s.index == index), container.streams.video[0]
        )

    def _demux(self, container: av.container.InputContainer) -> Iterator[av.Packet[Any]]:
        """Yield all packets and note how far each stream goes; the flushing one comes last."""
        video = self._plan.stream.index
        packets = self._clock.steady(demux(container, list(container.streams)))
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self._broken = reason(error)
                break
            if packet is None:
                return
            if packet.size:
                time = packet.pts if packet.pts is not None else packet.dts
                if time is not None:
                    end = (time + (packet.duration or 0)) * packet.time_base
                    index = packet.stream_index
                    self._ends[index] = max(end, self._ends.get(index, end))
                    self._note_pause(packet)
                    if index == video and packet.is_corrupt:
                        self._marked.append(end)
                if packet.stream_index == video:
                    self._packets += 1
                    self._read = (packet.pos or 0) + packet.size
            yield packet
        # The demuxer broke off, and what the decoder still holds is good.
        flush: av.Packet[Any] = av.Packet()
        flush.stream = container.streams[video]
        yield flush

    def _note_pause(self, packet: av.Packet[Any]) -> None:
        """Note the longest time between two packets of a stream that do not say how they last."""
        if packet.dts is None or packet.duration:
            return
        index, time = packet.stream_index, packet.dts * packet.time_base
        pause = time - self._stood.get(index, time)
        self._stood[index] = time
        self._pauses[index] = max(pause, self._pauses.get(index, pause))

    def _end_of(self, index: int) -> Fraction:
        """Return where a stream ended, in seconds, at the latest."""
        return self._ends.get(index, Fraction(0)) + self._pauses.get(index, 0)

    def _may_seek(self) -> bool:
        """Say whether the container's index leads exactly to frames (not MPEG-TS, PS and AVI)."""
        plan = self._plan
        indexed = plan.info.format.startswith(("mov", "matroska"))
        return indexed and not plan.options.deinterlaces and plan.opened is None

    def _seek(
        self, container: av.container.InputContainer, stream: Any, first: av.VideoFrame
    ) -> None:
        """Go near the start of the stretch, once the time of the first frame is known."""
        base = self._plan.stream.time_base
        if first.pts is None or self._from is None or self._from * base < _FAR:
            return
        container.seek(
            first.pts + math.floor(self._from - _MARGIN / base), stream=stream, backward=True
        )
        self._clock.forget()
        self._sought = True

    def _seams(self) -> list[int]:
        """Return where the clock was mended so far, in ticks."""
        base = self._plan.stream.time_base
        # A frame that a decoder held back may come a little after.
        return [math.floor(seam.at / base) for seam in self._clock.seams]

    # Order, time, stretch

    def _deinterlaced(
        self, items: Iterator[av.VideoFrame | _Lost]
    ) -> Iterator[av.VideoFrame | _Lost]:
        """Make whole frames of fields (bwdif), one of each frame or one of each field."""
        plan = self._plan
        if not plan.options.deinterlaces:
            yield from items
            return
        both = plan.options.deinterlace_rate == "field"
        waiting = _Waiting(both=both, step=self._step)
        deinterlacer: _Deinterlacer | None = None
        for item in items:
            if isinstance(item, _Lost):
                waiting.put(item)
                continue
            if deinterlacer is None or not deinterlacer.takes(item):
                if deinterlacer is not None:
                    yield from waiting.timed(deinterlacer.flush())
                deinterlacer = _Deinterlacer(item, plan.stream.fields, both=both)
            waiting.put(item)
            yield from waiting.timed(deinterlacer.take(item))
        if deinterlacer is not None:
            yield from waiting.timed(deinterlacer.flush())
        yield from waiting.lost()

    def _timed(
        self, items: Iterator[av.VideoFrame | _Lost]
    ) -> Iterator[tuple[Timing, av.VideoFrame] | _Lost]:
        last: int | None = None
        for item in items:
            if isinstance(item, _Lost):
                yield item
                continue
            pts = item.pts
            if pts is None:
                pts = 0 if last is None else last + self._step
            if last is not None and pts <= last:
                pts = last + 1
            last = pts
            if self._first is None:
                self._first = pts
            self._end = pts + (item.duration or self._step)
            yield Timing(pts, item.duration or None), item

    def _cut(
        self, items: Iterator[tuple[Timing, av.VideoFrame] | _Lost]
    ) -> Iterator[tuple[Timing, av.VideoFrame] | _Lost]:
        """Leave out what is before ``--ss`` and from ``--to`` on, counted from the first frame."""
        for item in items:
            pts = item.pts if isinstance(item, _Lost) else item[0].pts
            since = None if pts is None or self._first is None else pts - self._first
            if self._to is not None and since is not None and since >= self._to:
                return
            if self._from is None or (since is not None and since >= self._from):
                yield item

    # What is wrong

    def _say_seams(self) -> None:
        """Note where the clock of the file did not go on, unless the plan has said it already."""
        plan = self._plan
        said = {seam.kind for seam in plan.info.seams}
        seams = [seam for seam in self._clock.seams if seam.kind not in said]
        told = seam_notes(seams, (self._first or 0) * plan.stream.time_base)
        self.notes = (*self.notes, *(f"{plan.name}: {note}" for note in told))

    def _turn(self, picture: av.VideoFrame) -> tuple[int, bool]:
        """Return how a frame becomes upright: a photo by its own EXIF, a video by its matrix."""
        stream = self._plan.stream
        if self._plan.picture_rate is not None:
            return orientation(picture)
        return stream.rotation, stream.mirrored

    def _look_at_size(self, index: int, picture: av.VideoFrame, turn: tuple[int, bool]) -> None:
        plan = self._plan
        shown = picture.height, picture.width
        if turn[0] % 180:
            shown = shown[::-1]
        if not self.notes and shown != plan.size:
            height, width = plan.size
            self.notes = (
                f"{plan.name}: the video changes its size (frame {index} is "
                f"{shown[1]}×{shown[0]}); all frames become {width}×{height}",
            )

    def _dropped(self, index: int, lost: _Lost) -> Dropped:
        advice = "repair the file" + self._or_skip("leave such frames out")
        return self._told(index, lost.pts, f"cannot be decoded ({lost.cause}); {advice}")

    def _concealed(self, index: int, pts: int) -> Dropped:
        """Return what is reported of a damaged frame whose gaps the decoder filled; it is kept."""
        advice = "repair the file" + self._or_skip("keep such frames")
        return self._told(index, pts, f"damaged, concealed by the decoder; {advice}")

    def _told(self, index: int, pts: int | None, trouble: str) -> Dropped:
        plan = self._plan
        seconds = None
        if pts is not None:
            seconds = float((pts - (self._first or 0)) * plan.stream.time_base)
        return dropped_at(Place(plan.name, "frame", index, seconds, trouble))

    def _nothing(self) -> CycleganBatchError:
        plan = self._plan
        if self._first is not None:
            end = (
                max(self._ends.values(), default=Fraction(0)) - self._first * plan.stream.time_base
            )
            return InputError(
                f"{plan.name}: no frame lies in the stretch asked for, the video ends at "
                f"{float(end):.3f} s; change --ss or --to"
            )
        broken = f" ({self._broken})" if self._broken else ""
        return InputError(f"{plan.name}: not one frame can be decoded{broken}; check the file")

    def _reached_end_asked_for(self) -> bool:
        return (
            self._to is not None and self._first is not None and self._end - self._first >= self._to
        )

    def _cut_short(self) -> InputError | None:
        """Compare what was read with what the header says; FFmpeg reports no error for it."""
        plan, stream = self._plan, self._plan.stream
        advice = "copy or record it again" + self._or_skip("take what there is")
        if self._broken:
            return InputError(f"{plan.name}: cannot be read to its end ({self._broken}); {advice}")
        if plan.info.format == _Y4M_MUXER:
            # FFmpeg drops a part of a frame without a word.
            rest = self._size() - self._read
            if rest <= 0:
                return None
            return InputError(
                f"{plan.name}: is cut short: behind {self._packets} whole frames there are "
                f"{rest} bytes that are none; {advice}"
            )
        if self._sought or plan.info.format.startswith(UNCOUNTED):
            return None
        claimed = self._frames_indexed()
        if claimed is not None and self._packets < claimed - 1:
            return InputError(
                f"{plan.name}: is cut short: its header says {claimed} frames, "
                f"{self._packets} are there; {advice}"
            )
        if claimed is not None and stream.frames_claimed is not None:
            return None
        found, said = self._found_and_said_end()
        if said is None or found + self._step * stream.time_base + _ROUNDING >= said:
            return None
        return InputError(
            f"{plan.name}: is cut short: its header says {float(said):.3f} s, "
            f"{float(found):.3f} s are there; {advice}"
        )

    def _frames_indexed(self) -> int | None:
        """Return how many frames the container lists, or None where it lists none."""
        plan, container = self._plan, self._container
        if plan.info.format.startswith("avi"):
            # It lists empty ones, too.
            return None
        if plan.info.format.startswith("mov") and container is not None:
            # Without what an edit list cuts off, and with every fragment that was met.
            return len(self._video_stream(container).index_entries) or None
        return plan.stream.frames_claimed

    def _size(self) -> int:
        """Return how many bytes the file has, or came out of the pipe."""
        if self._plan.opened is None:
            return self._plan.path.stat().st_size
        pipe: Any = self._plan.opened.file
        counted: int = pipe.file.count
        return counted

    def _or_skip(self, purpose: str) -> str:
        """Return how damage is gone over where it ends the run."""
        if self._plan.options.on_error == "skip":
            return ""
        return f", or leave out --on-error fail to {purpose}"

    def _missing(self, gaps: _Gaps, *, dropped: bool) -> InputError | None:
        """Return what to say of frames that never arrived, an error where there was damage.

        A recording may leave out frames at will: without damage they are no more than a note.
        """
        plan = self._plan
        if gaps.first is None or not plan.info.format.startswith(UNCOUNTED):
            return None
        seconds = float((gaps.first - (self._first or 0)) * plan.stream.time_base)
        frames = f"{gaps.missing}{' more' if dropped else ''} frame"
        frames += " is" if gaps.missing == 1 else "s are"
        told = f"{plan.name}: {frames} missing from {seconds:.3f} s on"
        # Where parts are joined the demuxer marks the last packet of the first, which is whole.
        seams = [seam.at for seam in self._clock.seams]
        marked = [end for end in self._marked if all(abs(end - at) > 1 for at in seams)]
        if not dropped and not marked:
            self.notes = (*self.notes, f"{told}; the source gives no damage as the reason")
            return None
        advice = "repair the file" + self._or_skip("do without")
        return InputError(f"{told}: the damaged file gives nothing to decode there; {advice}")

    def _found_and_said_end(self) -> tuple[Fraction, Fraction | None]:
        """Return where the video ends, and where by the header it should, in seconds.

        Where only the whole file's duration is known, both are of the longest stream.
        """
        info, stream = self._plan.info, self._plan.stream
        nothing = Fraction(0)
        if self._plan.picture_rate is not None:
            return nothing, None
        if info.format == "asf":
            found = max(map(self._end_of, self._ends), default=nothing)
            claims = asf_claims(self._plan.path)
            # Where no byte is missing its last picture is shown for that long.
            missing = claims is not None and self._size() < claims[0]
            return found, claims[1] if claims is not None and missing else None
        if stream.duration is not None:
            # In fragments it counts from 0 where another part of the file says it (sidx, mehd).
            fragments = info.format.startswith("mov") and stream.frames_claimed is None
            start = 0 if fragments else stream.start_pts or 0
            said = stream.duration
            if info.format == "avi" and stream.frames_claimed is not None:
                # One tick for each, empty ones too; without its index FFmpeg says what is there.
                said = max(said, stream.frames_claimed)
            return self._end_of(stream.index), (start + said) * stream.time_base
        found = max(map(self._end_of, self._ends), default=nothing)
        if info.duration is None:
            return found, None
        # Headers count from 0, not from the first frame, but from an earlier start if there is one.
        starts = [s.start_pts * s.time_base for s in info.streams if s.start_pts is not None]
        return found, info.duration + min([nothing, *starts])


class _Gaps:
    """Frames that an even rate leaves out, where a container does not say what it should hold."""

    def __init__(self, step: int, longest: int) -> None:
        self._step, self._longest = step, longest
        self._last: int | None = None
        self._even = self._uneven = self._found = 0
        self._where: int | None = None

    def take(self, pts: int | None, seams: Sequence[int] = ()) -> None:
        """Take the time of the next frame, or of one known to be lost, in ticks.

        Between two frames with one of ``seams`` between them nothing is missing.
        """
        if pts is None:
            return
        last = self._last
        self._last = pts if last is None else max(last, pts)
        if last is None or any(last < seam <= pts for seam in seams):
            return
        steps = round((pts - last) / self._step)
        if abs(pts - last - steps * self._step) > max(1, self._step // 8):
            self._uneven += 1
        elif steps == 1:
            self._even += 1
        elif steps > 1 and pts - last <= self._longest:
            self._found += steps - 1
            if self._where is None:
                self._where = last + self._step

    @property
    def missing(self) -> int:
        """How many; none where the rate is not even."""
        return self._found if self._even > 9 * self._uneven else 0

    @property
    def first(self) -> int | None:
        """When the first of them was due, in ticks, or None."""
        return self._where if self.missing else None


_ROUNDING = Fraction(2, 1000)
"""Containers write durations in milliseconds."""


def _ticks(seconds: float | None, base: Fraction) -> Fraction | None:
    """Return ``seconds`` in ticks, half a tick early so that a rounded decimal meets its frame."""
    if seconds is None:
        return None
    return Fraction(seconds).limit_denominator(10**6) / base - Fraction(1, 2)


class _Shown:
    """Which packets became frames: a decoder does not say which frame a broken packet was."""

    def __init__(self, *, careful: bool) -> None:
        self._careful = careful
        self._waiting: list[int] = []
        self._first: int | None = None
        self._failed = False
        self._cause = "its data is damaged"
        self._reported: set[int] = set()
        self._begins_with_key: bool | None = None
        self._first_key: int | None = None

    def expect(self, packet: av.Packet[Any]) -> None:
        if not packet.size:
            return
        if self._begins_with_key is None:
            self._begins_with_key = packet.is_keyframe
        if self._first_key is None and packet.is_keyframe:
            self._first_key = packet.pts
        if packet.pts is not None and not packet.is_discard:
            heapq.heappush(self._waiting, packet.pts)

    def is_leading(self, frame: av.VideoFrame) -> bool:
        """Say whether a damaged ``frame`` only lacks what lies before the beginning of the file.

        A recording may begin between two key frames, or with one that others before it refer to.
        """
        if self._first is None and not self._begins_with_key:
            return True
        if frame.pts is None or self._first_key is None:
            return False
        return frame.pts < self._first_key

    def conceal(self) -> None:
        """Note a frame whose gaps the decoder filled. Raises _UncertainError unless ``careful``.

        Several threads do not always fill them alike, nor flag the same frames.
        """
        if not self._careful:
            raise _UncertainError
        self._failed = True

    def fail(self, packet: av.Packet[Any], cause: str) -> None:
        """Note a packet that cannot be decoded. Raises _UncertainError unless ``careful``."""
        if not self._careful:
            raise _UncertainError
        self._failed, self._cause = True, cause
        if packet.pts is None and packet.size:
            # Nameless, it is the next one to be reported.
            heapq.heappush(self._waiting, self._waiting[0] if self._waiting else 0)

    def before(self, frame: av.VideoFrame) -> Iterator[_Lost]:
        """Yield what should have been shown before ``frame``."""
        if frame.pts is None:
            return
        if self._first is None:
            self._first = frame.pts
        while self._waiting and self._waiting[0] < frame.pts:
            pts = heapq.heappop(self._waiting)
            # What comes before the first key frame, or after it by its own references, is no loss.
            if not self._careful and pts > self._first:
                raise _UncertainError
            # Some packets are never shown (VP8's hidden frames): only after an error it counts.
            if self._failed:
                self._reported.add(pts)
                yield _Lost(pts, self._cause)
        if self._waiting and self._waiting[0] == frame.pts:
            heapq.heappop(self._waiting)

    def is_late(self, frame: av.VideoFrame) -> bool:
        """Say whether ``frame`` was given up: without its references it comes after later ones."""
        return frame.pts in self._reported

    def rest(self) -> Iterator[_Lost]:
        """Yield what should have been shown at the end."""
        if self._waiting and not self._careful:
            raise _UncertainError
        if self._failed:
            yield from (_Lost(pts, self._cause) for pts in sorted(self._waiting))


class _Deinterlacer:
    """FFmpeg's bwdif, one frame out for each frame in, or ``both`` of its fields."""

    def __init__(self, frame: av.VideoFrame, fields: Fields | None, *, both: bool) -> None:
        self._shape = frame.width, frame.height, frame.format.name
        graph = self._graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
        # Where frames say nothing, what the container says counts.
        parity = "auto" if frame.interlaced_frame or fields is None else fields
        settings = f"mode={'send_field' if both else 'send_frame'}:parity={parity}"
        graph.link_nodes(source, graph.add("bwdif", settings), graph.add("buffersink"))
        graph.configure()
        self._count = 0

    def takes(self, frame: av.VideoFrame) -> bool:
        return (frame.width, frame.height, frame.format.name) == self._shape

    def take(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        # Its own clock: what matters is the order, and time stamps may be missing.
        kept = frame.pts, frame.time_base
        frame.pts, frame.time_base = self._count, Fraction(1, 1000)
        self._count += 1
        self._graph.push(frame)
        frame.pts = kept[0]
        if kept[1] is not None:
            frame.time_base = kept[1]
        return self._pull()

    def flush(self) -> list[av.VideoFrame]:
        self._graph.push(None)
        return self._pull()

    def _pull(self) -> list[av.VideoFrame]:
        frames: list[av.VideoFrame] = []
        with contextlib.suppress(av.error.BlockingIOError, av.error.EOFError):
            while True:
                pulled = self._graph.pull()
                assert isinstance(pulled, av.VideoFrame)
                frames.append(pulled)
        return frames


class _Waiting:
    """What went into a deinterlacer: frames come out in the same order, and get their times here.

    With ``both`` fields each frame comes out twice, and a tick is half as long.
    """

    def __init__(self, *, both: bool, step: int) -> None:
        self._both, self._step = both, step
        self._items: list[av.VideoFrame | _Lost] = []
        self._second = False

    def put(self, item: av.VideoFrame | _Lost) -> None:
        self._items.append(item)

    def timed(self, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame | _Lost]:
        """Yield filtered ``frames``, and the lost ones in between."""
        for frame in frames:
            yield from self.lost()
            before = self._items[0]
            assert isinstance(before, av.VideoFrame)
            pts = before.pts
            if not self._both or self._second:
                self._items.pop(0)
            if self._both and pts is not None:
                pts = 2 * pts + (self._field(before) if self._second else 0)
            self._second = self._both and not self._second
            frame.pts, frame.duration = pts, before.duration
            yield frame

    def lost(self) -> Iterator[_Lost]:
        """Yield the frames that were lost before the next one."""
        while self._items and isinstance(self._items[0], _Lost):
            lost = self._items.pop(0)
            assert isinstance(lost, _Lost)
            if not self._both:
                yield lost
                continue
            first = None if lost.pts is None else 2 * lost.pts
            yield _Lost(first, lost.cause)
            yield _Lost(None if first is None else first + self._step, lost.cause)

    def _field(self, before: av.VideoFrame) -> int:
        """Return after how many of the shorter ticks the second field is shown."""
        later = (each.pts for each in self._items if isinstance(each, av.VideoFrame))
        following = next((pts for pts in later if pts is not None), None)
        gap = None if following is None or before.pts is None else following - before.pts
        return min([n for n in (before.duration, gap) if n and n > 0], default=self._step)


_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


def upright(stored: Pixels, rotation: int, *, mirrored: bool) -> Pixels:
    """Return the stored picture as it is to be seen: mirrored, then turned counter-clockwise."""
    # OpenCV turns no half floats; their bits it does.
    turned: Any = stored if stored.dtype == np.uint8 else stored.view(np.uint16)
    if mirrored:
        turned = cv2.flip(turned, 1)
    if rotation:
        turned = cv2.rotate(turned, _TURNS[rotation])
    result: Pixels = np.asarray(turned).view(stored.dtype)
    return result


# The sink


class _Y4MFile:
    """A file of y4m whose header says the sample aspect ratio: PyAV cannot set it on a stream."""

    def __init__(self, file: Any, aspect: Fraction | None) -> None:
        self._file = file
        self._aspect = aspect

    def write(self, data: bytes) -> int:
        """Write ``data``, which is the header first."""
        if self._aspect is not None:
            ratio = f" A{self._aspect.numerator}:{self._aspect.denominator}".encode()
            self._file.write(bytes(data).replace(b" A0:0", ratio, 1))
            self._aspect = None
        else:
            self._file.write(data)
        return len(data)


class VideoSink:
    """Encode one stretch, and make the final file of it."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        self._piped = plan.output == PIPE
        self._partial = temporary_path(plan.output)
        self._stretch = self._partial.with_name(f"{self._partial.stem}-0.partial")
        if plan.streams is None:
            # y4m is final as it is.
            self._stretch = self._partial
        self._container: av.container.OutputContainer | None = None
        self._stream: Any = None
        self._file: Any = None
        """What y4m is written to."""
        self._times: list[int] = []
        self._last_duration: int | None = None
        self._written: list[Path] = []
        self._lock: OutputLock | None = None
        if not self._piped and plan.output.parent.is_dir():
            self._claim()
        self.notes: tuple[str, ...] = ()
        """What the user is told once the file is written."""

    @property
    def written(self) -> list[Path]:
        """The final names that are whole so far."""
        return self._written

    def converter(self) -> Callable[[Frame], tuple[Timing, av.VideoFrame]]:
        """Return a function from a translated frame to one for the encoder; each worker its own."""
        plan = self._plan
        from_rgb = FromRGB(plan.colour, plan.encoder.pix_fmt, plan.encoder.fields)

        def convert(frame: Frame) -> tuple[Timing, av.VideoFrame]:
            timing: Timing = frame.tag
            try:
                return timing, from_rgb(
                    frame.pixels, interlaced=timing.interlaced, alpha=timing.alpha
                )
            except av.error.FFmpegError as error:
                raise self._failed(error) from error

        return convert

    def write(self, item: tuple[Timing, av.VideoFrame]) -> None:
        """Encode the next frame. Raises OutputError, BrokenPipeError where nobody reads."""
        timing, frame = item
        encoder = self._plan.encoder
        with self._translated():
            if self._container is None:
                self._open()
            frame.pts = (
                len(self._times) if encoder.counts_frames else timing.pts - self._origin(timing)
            )
            frame.time_base = encoder.time_base
            self._times.append(timing.pts)
            self._last_duration = timing.duration
            first = len(self._times) == 1
            # The first frame opens the encoder.
            with own_scheduling() if first else contextlib.nullcontext():
                packets = self._stream.encode(frame)
            self._mux(packets)

    def finish(self) -> Sequence[Dropped]:
        """Flush the encoder, join its stretch with the rest, publish. Raises OutputError."""
        plan = self._plan
        dropped: Sequence[Dropped] = ()
        if self._container is None:
            raise OutputError(
                f"cannot write {printable(plan.output)}: no frame arrived; see the failures above"
            )
        with self._translated():
            if plan.streams is not None:
                self._mux(self._last_packets())
            container, self._container = self._container, None
            container.close()
            self._close_file()
            if self._piped:
                return ()
        if plan.streams is not None:
            stretch = Stretch(
                self._stretch, plan.stream.time_base, tuple(self._times), self._last_duration
            )
            assembled = assemble([stretch], plan.streams, self._partial)
            self.notes, dropped = assembled.notes, assembled.dropped
        publish(self._partial, plan.output, overwrite=plan.options.overwrite)
        self._written.append(plan.output)
        self.discard()
        return dropped

    def discard(self) -> None:
        """Close and remove what has only a temporary name."""
        container, self._container = self._container, None
        if container is not None:
            # It may be closed because the disk is full or the pipe gone: that is known already.
            with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
                container.close()
        with contextlib.suppress(OSError):
            self._close_file()
        if not self._piped:
            for path in {self._stretch, self._partial}:
                # Where not even the folder exists, there is nothing to remove.
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _claim(self) -> None:
        """Take the output for this process. Raises OutputInUseError, OutputExistsError."""
        if self._lock is None:
            self._lock = OutputLock(self._plan.output)
            if not self._plan.options.overwrite:
                try:
                    refuse_existing(self._plan.output)
                except OutputError:
                    self._lock.release()
                    raise

    def _last_packets(self) -> list[av.Packet[Any]]:
        packets: list[av.Packet[Any]] = self._stream.encode(None)
        if len(self._times) <= 2 and packets and packets[0].pts == 0:
            # x265 4.2 knows its delay from the third frame on; until then it returns what happens
            # to be in memory. All that counts here is that it ascends and comes before 0.
            for number, packet in enumerate(packets):
                packet.dts = number - len(packets)
        return packets

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.flush()
            if not self._piped:
                file.close()

    def _origin(self, timing: Timing) -> int:
        return self._times[0] if self._times else timing.pts

    def _open(self) -> None:
        plan = self._plan
        encoder = plan.encoder
        options = {"strict": "-1"} if plan.streams is None else {}
        if encoder.format in ("mp4", "mov"):
            # Room for time stamps of any source, so that the order is kept.
            options["movie_timescale"] = str(min(encoder.time_base.denominator, 2**31 - 1))
        if not self._piped:
            plan.output.parent.mkdir(parents=True, exist_ok=True)
            self._claim()
        target: Any = f"file:{self._stretch.absolute()}"
        if plan.streams is None:
            self._file = sys.stdout.buffer if self._piped else self._stretch.open("wb")
            target = _Y4MFile(self._file, plan.sample_aspect_ratio)
        self._container = av.open(target, "w", format=encoder.format, container_options=options)
        self._stream = _add_encoder(
            self._container, encoder, plan.colour, plan.output_size, plan.sample_aspect_ratio
        )

    def _mux(self, packets: list[av.Packet[Any]]) -> None:
        assert self._container is not None
        for packet in packets:
            self._container.mux_one(packet)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what FFmpeg and the system say into an OutputError, except that a pipe is closed."""
        try:
            yield
        except BrokenPipeError:
            raise
        except (av.error.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> OutputError:
        plan = self._plan
        from_system = not isinstance(error, av.error.FFmpegError)
        if isinstance(error, OSError) and (from_system or error.errno in DISK_ERRNOS):
            return output_error(plan.output, error)
        return OutputError(
            f"cannot write {printable(plan.output)}: {plan.encoder.name} failed "
            f"({reason(error)}); choose another --codec"
        )


__all__ = [
    "PIPE",
    "EncoderPlan",
    "Timing",
    "VideoPlan",
    "VideoSink",
    "VideoSource",
    "choose_pix_fmt",
    "plan_video",
    "upright",
]
