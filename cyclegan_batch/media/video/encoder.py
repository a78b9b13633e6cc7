"""Choose a video encoder by opening it, and configure it as planned."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import cv2
import numpy as np
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ...errors import OutputError
from ...frames import Size
from ...machine import cpu_threads, own_scheduling
from ...options import TranslateOptions
from ..alpha import ALPHA_DECODERS, Alpha, alpha_of, decoder, has_alpha
from ..demux.demuxing import reason
from ..demux.ffmpeg_log import captured
from ..demux.standard_input import Y4M_MUXER
from ..demux.stream_info import FIELD_ORDER, Fields, StreamInfo
from ..mux.muxing import TAGGED
from .colour import ColourPlan, FromRGB, output_tags
from .editing import (
    fitting_formats,
    is_for_editing,
    profile_options,
    source_format,
)
from .pixel_formats import Y4M_FORMATS, bits_of, choose_pix_fmt, is_odd_for

_HARDWARE_SUFFIXES = (
    "_nvenc",
    "_qsv",
    "_amf",
    "_vaapi",
    "_videotoolbox",
    "_vulkan",
    "_mf",
    "_v4l2m2m",
)

_QUALITY_OPTIONS = {
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
"""The option of an encoder that ``--crf`` sets; its default is about the quality of x264's 18."""

_LARGEST_CRF = {
    **dict.fromkeys(("libsvtav1", "libaom-av1", "libvpx-vp9", "libvpx"), 63),
    **dict.fromkeys(("libx264", "libx264rgb", "libx265", "h264_nvenc", "hevc_nvenc"), 51),
    "av1_nvenc": 63,
}
"""The largest ``--crf``; the smallest is 0. libx264 itself accepts any number and uses the nearest
that it has."""

_OPTIONS_WITH_QUALITY = {
    # Without a bit rate of 0, libvpx treats the quality as a lower bound at its default 200 kb/s.
    "libvpx-vp9": {"b": "0"},
    "libaom-av1": {"b": "0"},
    # VP8 has no mode of constant quality: the bit rate is an upper bound that is not reached.
    "libvpx": {"b": "100M"},
    "h264_nvenc": {"rc": "vbr", "b": "0"},
    "hevc_nvenc": {"rc": "vbr", "b": "0"},
    "av1_nvenc": {"rc": "vbr", "b": "0"},
}

_RATE_CONTROL_OPTIONS = frozenset(
    {"b", "qp", "crf", "cq", "global_quality", "q", "qscale", "rc", "lossless"}
)
"""With one of these in ``--encoder-opt``, no default of the rate control is added."""

_QSCALE = dict.fromkeys(
    ("mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "wmv1", "wmv2", "flv", "msmpeg4v2", "msmpeg4"), 2
)
"""Encoders without ``--crf``, and their fixed quantiser (1..31): FFmpeg would use 200 kb/s."""
_FF_QP2LAMBDA = 118

_THREADS = {
    **dict.fromkeys(("libx264", "libx264rgb"), 16),
    "libx265": 3,
    **dict.fromkeys(("libvpx", "mpeg4", "mpeg2video", "mpeg1video", "h263p", "dnxhd", "mjpeg"), 4),
}
"""Threads of each encoder, on every machine: the bits of many depend on how many there are.

So a big machine sets the numbers, as far as a small one loses nothing. On two shared cores:

16 threads of x264 (medium, CRF 18), against the 3 slices per frame of before, took 0.95 to 1.03
times the CPU time at 1280×720, 0.97 to 1.02 at 256×256, 0.96 to 1.09 at 1920×1080. Bytes: 0.6 %
fewer, 4.6 % fewer, 0.1 % more. Memory: 190 MB, 20 MB, 330 MB more; 12 threads took 50 MB to
80 MB less than 16. By x264's own rule, 3 threads for 2 cores, 16 fill 11 cores.

3 frames in parallel of x265, beside its pool, took 0.92 to 1.02 times the CPU time of 1, and 26 MB.
4 slices of MPEG-4 and MPEG-2 take 0.1 % more bytes than 1, and 16 take 0.5 %. VP8 writes the same
bits with 2 threads as with 16, and waits in busy loops. 8 threads of DNxHD take 290 MB, 3 138 MB.
"""
_OTHERS_THREADS = 8
"""The bits of all other encoders do not depend on it."""

_JOINABLE = frozenset({
    "libx264", "libx264rgb", "libx265", "libsvtav1", "libvpx", "libvpx-vp9",
    "mpeg4", "mpeg2video", "mpeg1video", "flv", "msmpeg4", "msmpeg4v2", "wmv1", "wmv2", "svq1",
    "cinepak", "msvideo1", "rpza", "qtrle", "flashsv",
    "ffv1", "ffvhuff", "huffyuv", "utvideo", "magicyuv", "zlib", "png", "tiff", "exr", "dpx",
    "targa", "sgi", "jpeg2000", "jpegls", "ljpeg", "mjpeg", "rawvideo",
    "prores", "prores_aw", "prores_ks", "dnxhd", "cfhd", "dvvideo", "dxv", "asv1", "asv2", "cljr",
    "avrp", "r10k", "r210", "v210", "v308", "v408", "v410", "y41p", "yuv4",
})  # fmt: skip
"""Encoders whose stretches join without a seam, and whose bits are the same in every run.

A test holds each of them. H.261, H.263, Snow, AMV and SpeedHQ control their rate across frames by
default, GIF comes out different every time, and hardware was never tried.
"""

_SPANNING = frozenset({
    "b", "bitrate", "target-bitrate", "tbr", "rc", "maxrate", "minrate", "max-bitrate", "mbr",
    "bufsize", "buf-sz", "vbv-maxrate", "vbv-bufsize", "nal-hrd", "hrd", "strict-cbr", "cbr",
    "pass", "stats", "passlogfile", "zones", "zonefile", "qpfile", "force-key-frames",
})  # fmt: skip
"""Options and parameters, with hyphens, for which an encoder must see the whole video in one run:
its rate is controlled over many frames, or frames are named by their number."""

_AVX512 = 256
"""OpenCV's number (CV_CPU_AVX512_SKX) for the parts of AVX-512 that x264 uses."""

_BLOCK_ADDITIONS = (".mkv", ".webm")
"""Containers in which a packet can have a second part, in which VP8 and VP9 hold alpha."""

_REFUSED_PARAMETER = re.compile(
    r"(?:Error parsing option|Unknown option:|Invalid value for) '?(.+?)'?\.?\s*$"
)
"""The log line of libx264, libx265 and libsvtav1 on one of their parameters that they refuse."""


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder that was opened with these very settings."""

    name: str
    pix_fmt: str
    options: tuple[tuple[str, str], ...]
    """FFmpeg's options, all of them accepted by the encoder."""
    threads: int
    """Part of the plan because the bits that many encoders write depend on it."""
    time_base: Fraction
    """The source's, or 1 / ``rate`` for encoders that count frames."""
    counts_frames: bool
    """Time stamps are frame numbers (MPEG-2 and others); the muxer gets the real ones later."""
    rate: Fraction
    format: str
    """The muxer of the stretch."""
    fields: Fields | None = None
    """Which field is first, where every frame is marked as interlaced."""
    alpha: bool = False
    """The frames are encoded with the alpha of their source."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Extras:
    """Properties of a frame besides its colours that not every encoder can keep."""

    fields: Fields | None
    alpha: bool


_NO_EXTRAS = Extras(None, alpha=False)


@dataclass(frozen=True)
class EncoderRequest:
    """What is to be encoded, and what the user chose for it."""

    stream: StreamInfo
    """The source."""
    colour: ColourPlan
    size: Size
    """Height and width of the encoded frames."""
    aspect: Fraction | None
    """Their sample aspect ratio."""
    options: TranslateOptions


def default_codec(output: Path) -> str:
    """Return the encoder that is used for the extension of ``output`` without ``--codec``."""
    return "libvpx-vp9" if output.suffix.lower() == ".webm" else "libx264"


def plan_with_extras(
    codec: str, output: Path, request: EncoderRequest, extras: Extras
) -> tuple[EncoderPlan, list[str]]:
    """Choose the encoder; return it with a text for each of the ``extras`` that it loses.

    Many encoders accept a setting that they do not apply, so one frame is encoded and decoded to
    find out which extras it keeps. Raises OutputError.
    """
    if extras == _NO_EXTRAS:
        return _plan_encoder(codec, request, extras), []
    kept_extras = _NO_EXTRAS
    with contextlib.suppress(OutputError):
        plan = _plan_encoder(codec, request, extras)
        kept_extras = _try_extras(plan, request, output)
    if kept_extras != extras:
        plan = _plan_encoder(codec, request, kept_extras)
    stream, options = request.stream, request.options
    subject = f"stream {stream.index} ({stream.label})"
    losses = []
    if extras.fields and not kept_extras.fields:
        losses.append(
            f"the mark that {subject} is interlaced: {plan.name} cannot set it here, so players "
            "will show both fields at once; --deinterlace makes whole frames of them"
        )
    if extras.alpha and not kept_extras.alpha:
        why = f"{plan.name} in {output.suffix} cannot hold it"
        if options.pix_fmt is not None and not has_alpha(options.pix_fmt):
            why = f"--pix-fmt {options.pix_fmt} has none"
        elif is_for_editing(plan.name) and "profile" in options.encoder_opt:
            why = f"{plan.name}'s profile {options.encoder_opt['profile']} has none"
        losses.append(
            f"the alpha of {subject}: {why}; -c prores_ks in .mov, -c ffv1 in .mkv and "
            "libvpx-vp9 in .webm keep it"
        )
    return plan, losses


def plan_y4m(request: EncoderRequest, extras: Extras) -> tuple[EncoderPlan, list[str]]:
    """Plan a y4m stream as `plan_with_extras` does; more than 8 bits are FFmpeg's extension of it.

    Raises OutputError.
    """
    stream, options = request.stream, request.options
    if options.pix_fmt is not None and options.pix_fmt not in Y4M_FORMATS:
        raise OutputError(
            f"y4m does not hold --pix-fmt {options.pix_fmt}; choose one of {', '.join(Y4M_FORMATS)}"
        )
    rate = stream.average_rate or Fraction(25)
    losses = []
    if extras.alpha:
        losses.append(f"the alpha of stream {stream.index} ({stream.label}): y4m cannot hold it")
    plan = EncoderPlan(
        name="rawvideo",
        pix_fmt=options.pix_fmt or choose_pix_fmt(stream.pix_fmt or "yuv420p", Y4M_FORMATS),
        options=(),
        threads=1,
        time_base=1 / rate,
        counts_frames=True,
        rate=rate,
        format=Y4M_MUXER,
        fields=extras.fields,
    )
    return plan, losses


def _try_extras(plan: EncoderPlan, request: EncoderRequest, output: Path) -> Extras:
    """Encode and decode one frame, and return which of the plan's extras it still has."""
    from_rgb = FromRGB(request.colour, plan.pix_fmt, plan.fields)
    grey = np.full((*request.size, 3), 128, np.uint8)
    transparent = Alpha(np.zeros(request.size, np.uint8), 8) if plan.alpha else None
    frame = from_rgb(grey, interlaced=plan.fields is not None, alpha=transparent)
    frame.pts, frame.time_base = 0, plan.time_base
    decoded: list[av.VideoFrame] = []
    file = io.BytesIO()
    with contextlib.suppress(av.error.FFmpegError, ValueError):
        with own_scheduling(), av.open(file, "w", format=plan.format) as trial:
            stream = add_encoder(trial, plan, request.colour, request.size, request.aspect)
            trial.mux([*stream.encode(frame), *stream.encode(None)])
        file.seek(0)
        with av.open(file, "r", format=plan.format) as reread:
            decode = decoder(reread.streams.video[0], alpha=plan.alpha)
            for packet in reread.demux():
                decoded += decode(packet)
    if not decoded:
        return _NO_EXTRAS
    alpha = alpha_of(decoded[0]) if plan.alpha else None
    needs_additions = plan.name in ALPHA_DECODERS.values()
    fits = not needs_additions or output.suffix.lower() in _BLOCK_ADDITIONS
    return Extras(
        plan.fields if decoded[0].interlaced_frame else None,
        alpha=alpha is not None and not alpha.values.any() and fits,
    )


def _plan_encoder(codec: str, request: EncoderRequest, extras: Extras) -> EncoderPlan:
    """Choose the encoder and its pixel format by opening them. Raises OutputError.

    A hardware encoder that does not open is replaced by libx264.
    """
    try:
        return _first_that_opens(codec, request, extras)
    except OutputError as error:
        if not codec.endswith(_HARDWARE_SUFFIXES):
            raise
        # x264 has other presets and options.
        options = replace(request.options, preset=None, encoder_opt={})
        plan = _first_that_opens("libx264", replace(request, options=options), extras)
        note = f"{codec} does not open here ({reason(error.__cause__)}), libx264 encodes"
        return replace(plan, notes=(note, *plan.notes))


def _first_that_opens(name: str, request: EncoderRequest, extras: Extras) -> EncoderPlan:
    """Return the first settings with which the encoder opens. Raises OutputError."""
    options, size = request.options, request.size
    codec, formats = _codec(name, options)
    usable = fitting_formats(codec.name, formats, size, options)
    if extras.alpha and codec.name in ALPHA_DECODERS.values():
        # In other formats with alpha FFmpeg's support for these encoders is experimental.
        usable = [each for each in formats if each == "yuva420p"]
    source = source_format(codec.name, request.stream.pix_fmt or "yuv420p")
    pix_fmt = options.pix_fmt or choose_pix_fmt(source, usable, alpha=extras.alpha)
    alpha = extras.alpha and has_alpha(pix_fmt)
    encoder_options = _encoder_options(codec.name, options)
    encoder_options |= profile_options(codec.name, pix_fmt, options.encoder_opt)
    if alpha and codec.name == "libvpx":
        # libvpx does not combine alpha with alternate references, frames that are never shown.
        encoder_options.setdefault("auto-alt-ref", "0")
    draft = EncoderPlan(
        name=codec.name,
        pix_fmt=pix_fmt,
        options=tuple(encoder_options.items()),
        threads=_THREADS.get(codec.name, _OTHERS_THREADS),
        time_base=request.stream.time_base,
        counts_frames=False,
        rate=request.stream.average_rate or Fraction(25),
        format=_stretch_format(codec.name, alpha=alpha),
        fields=extras.fields,
        alpha=alpha,
    )
    first_error: Exception | None = None
    for plan in _variants(draft, size, formats, explicit=options.pix_fmt is not None):
        try:
            refused = _refused_options(plan, request)
        except (av.error.FFmpegError, ValueError, OSError) as error:
            first_error = first_error or error
            continue
        _raise_for_refused(plan.name, refused)
        return plan
    height, width = size
    if is_odd_for(pix_fmt, size):
        even = [each for each in formats if each.startswith("yuv") and not is_odd_for(each, size)]
        choices = " or ".join(f"--pix-fmt {each}" for each in even) or "another --codec"
        raise OutputError(
            f"{name} cannot encode {width}×{height} as {pix_fmt}, whose sides must be even "
            f"({reason(first_error)}); choose {choices}, or an encoder such as libvpx-vp9"
        ) from first_error
    settings = " ".join(f"{key}={value}" for key, value in encoder_options.items()) or "no options"
    raise OutputError(
        f"{name} does not open for {width}×{height} {pix_fmt} with {settings}: "
        f"{reason(first_error)}; change --codec, --pix-fmt, --preset, --crf or --encoder-opt"
    ) from first_error


def _video_encoders() -> list[str]:
    names = []
    for name in sorted(av.codecs_available):
        with contextlib.suppress(ValueError, LookupError):
            if av.Codec(name, "w").type == "video":
                names.append(name)
    return names


def _codec(name: str, options: TranslateOptions) -> tuple[av.Codec, list[str]]:
    """Return the encoder and its pixel formats. Raises OutputError for options it cannot have."""
    try:
        codec = av.Codec(name, "w")
    except (ValueError, LookupError) as error:
        similar = difflib.get_close_matches(name, _video_encoders(), 1, cutoff=0.75)
        remedy = (
            f"do you mean {similar[0]}?"
            if similar
            else "choose one such as libx264, libx265, libsvtav1, libvpx-vp9 or h264_nvenc"
        )
        raise OutputError(
            f"--codec {name} is no encoder of this FFmpeg; {remedy} (cyclegan-batch doctor lists "
            "those that open)"
        ) from error
    if codec.type != "video":
        raise OutputError(f"--codec {name} encodes {codec.type}; choose a video encoder")
    formats = [each.name for each in codec.video_formats or ()]
    if options.pix_fmt is not None and formats and options.pix_fmt not in formats:
        raise OutputError(
            f"{name} does not take --pix-fmt {options.pix_fmt}; choose one of {', '.join(formats)}"
        )
    largest = _LARGEST_CRF.get(codec.name)
    if options.crf is not None and largest is not None and not 0 <= options.crf <= largest:
        raise OutputError(
            f"{codec.name} has no --crf {options.crf:g}; choose one from 0 to {largest}, "
            f"smaller is better (the default is {_QUALITY_OPTIONS[codec.name][1]})"
        )
    return codec, formats


def _variants(
    draft: EncoderPlan, size: Size, formats: list[str], *, explicit: bool
) -> Iterator[EncoderPlan]:
    """Yield the plans to try: the draft, then counting frames, then both with full chroma."""
    clocks = [draft]
    # The muxer gets the real times later, so 25 serves where a standard excludes the real rate.
    for rate in (draft.rate, Fraction(25)):
        clocks.append(replace(draft, rate=rate, time_base=1 / rate, counts_frames=True))
    yield from clocks
    if explicit or not is_odd_for(draft.pix_fmt, size):
        return
    bits = bits_of(draft.pix_fmt)
    chroma = "yuva444" if draft.alpha else "yuv444"
    full = [each for each in formats if each.startswith(chroma) and bits_of(each) == bits]
    height, width = size
    note = f"{draft.name} takes no {width}×{height} in {draft.pix_fmt}, so it encodes "
    for pix_fmt in full:
        for clock in clocks:
            yield replace(clock, pix_fmt=pix_fmt, notes=(*draft.notes, note + pix_fmt))


def _refused_options(plan: EncoderPlan, request: EncoderRequest) -> list[str]:
    """Open the encoder, close it again, and return the options that it did not accept.

    Raises FFmpegError with what the encoder logged, and ValueError or OSError.
    """

    def open_encoder(plan: EncoderPlan) -> list[str]:
        context = av.CodecContext.create(plan.name, "w")
        assert isinstance(context, VideoCodecContext)
        _configure(context, plan, request.colour, request.size, request.aspect)
        with own_scheduling():
            context.open()
        return [key for key in context.options if key != "chroma_sample_location"]

    # An unknown parameter inside x264-params and the like only makes FFmpeg log a warning. So the
    # log is captured where there are such parameters, and where the encoder does not open.
    if not any(key.endswith("-params") for key, _ in plan.options):
        try:
            return open_encoder(plan)
        except av.error.FFmpegError:
            with captured():
                # The last message of several threads is that they failed; that of one says why.
                open_encoder(replace(plan, threads=1))
            raise
    with captured() as logs:
        refused = open_encoder(plan)
    matches = (_REFUSED_PARAMETER.match(text) for *_, text in logs)
    return refused + [match[1] for match in matches if match]


def why_in_one_piece(plan: EncoderPlan) -> str | None:
    """Return as a note why the video cannot be encoded in stretches; None where it can be.

    It can where a test has shown that the stretches of the encoder join, and where every frame has
    the same quality whatever the other frames need.
    """
    cause = None
    if plan.format == Y4M_MUXER or plan.name not in _JOINABLE:
        cause = f"parts of it that {plan.name} encodes one by one are not known to join"
    elif setting := _spanning_setting(plan):
        cause = f"{plan.name}'s {setting} spans the whole video"
    return cause and f"{cause}, so it is encoded in one piece: a killed run begins it anew"


def _spanning_setting(plan: EncoderPlan) -> str | None:
    """Return the setting by which one frame's quality depends on all frames; None without one."""
    options = dict(plan.options)
    ours = _OPTIONS_WITH_QUALITY.get(plan.name, {})
    for key, value in _with_parameters(options):
        is_ours = ours.get(key) == value and "crf" in options
        # DNxHD gives every frame the same number of bytes.
        is_of_one_frame = key == "b" and plan.name == "dnxhd"
        if key == "flags" and "pass" in value:
            return f"flags={value}"
        if key in _SPANNING and value not in ("0", "none") and not (is_ours or is_of_one_frame):
            return f"{key}={value}"
    if plan.name in _QSCALE and _RATE_CONTROL_OPTIONS & options.keys():
        return "bit rate"
    by_crf = "crf" in options and ours.items() <= options.items()
    by_another = "qp" in options or options.get("lossless", "0") != "0"
    if plan.name in _QUALITY_OPTIONS and not by_crf and not by_another:
        return "bit rate"
    return None


def _with_parameters(options: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield names, with hyphens, and values of options and of the parameters inside of them."""
    for key, value in options.items():
        if key.endswith(("-params", "opts")):
            for parameter in value.split(":"):
                name, _, setting = parameter.partition("=")
                yield name.replace("_", "-"), setting or "1"
        else:
            yield key.replace("_", "-"), value


def add_encoder(
    container: av.container.OutputContainer,
    plan: EncoderPlan,
    colour: ColourPlan,
    size: Size,
    aspect: Fraction | None,
) -> VideoStream:
    """Add a stream that is encoded as planned."""
    stream = container.add_stream(plan.name, rate=plan.rate)
    assert isinstance(stream, VideoStream)
    _configure(stream.codec_context, plan, colour, size, aspect)
    stream.time_base = plan.time_base
    return stream


def _configure(
    context: VideoCodecContext,
    plan: EncoderPlan,
    colour: ColourPlan,
    size: Size,
    aspect: Fraction | None,
) -> None:
    if plan.name == "libsvtav1":
        # SVT-AV1 writes 20 lines to standard error by itself; 1 is "errors only".
        os.environ.setdefault("SVT_LOG", "1")
    context.height, context.width = size
    context.pix_fmt = plan.pix_fmt
    context.time_base, context.framerate = plan.time_base, plan.rate
    # PyAV's default, SLICE, makes x264 cut every frame into as many slices as there are threads.
    context.thread_count, context.thread_type = plan.threads, "AUTO"
    if aspect:
        context.sample_aspect_ratio = aspect
    tags = output_tags(colour, plan.pix_fmt)
    context.colorspace, context.color_range = tags.matrix, tags.range
    context.color_primaries, context.color_trc = tags.primaries, tags.transfer
    if plan.fields:
        context.field_order = FIELD_ORDER[plan.fields]
        context.flags |= Flags.interlaced_dct | Flags.interlaced_me
    options = dict(plan.options)
    for key, parameters in _own_parameters(plan.name).items():
        # A parameter of the user comes later and is used.
        options[key] = ":".join(filter(None, [parameters, options.get(key)]))
    if tags.chroma_location > 1:
        # Without the option decoders assume 1, to the left.
        options.setdefault("chroma_sample_location", str(tags.chroma_location))
    if plan.format == Y4M_MUXER:
        # A y4m header always names a chroma location: without this option, that of JPEG.
        options["chroma_sample_location"] = colour.chroma_location
    if plan.name in _QSCALE and not _RATE_CONTROL_OPTIONS & options.keys():
        context.qscale = True
        context.global_quality = _QSCALE[plan.name] * _FF_QP2LAMBDA
    context.options = options


def _own_parameters(name: str) -> dict[str, str]:
    """Return parameters that make an encoder silent, and its bits the same on every machine."""
    if name == "libx265":
        # x265 writes to standard error by itself, and into the video on which CPU it ran (info).
        # With less than four threads in its pool it decides otherwise than with more.
        return {"x265-params": f"log-level=error:info=0:pools={max(4, cpu_threads())}"}
    if name in ("libx264", "libx264rgb") and cv2.checkHardwareSupport(_AVX512):
        # With AVX-512, x264 165 writes other bits than with AVX2, and for widths such as 352 other
        # bits in every run (by mbtree). It is no faster for it.
        return {"x264-params": "asm=avx2"}
    return {}


def _encoder_options(name: str, options: TranslateOptions) -> dict[str, str]:
    """Return ``--crf``, ``--preset`` and ``--encoder-opt`` as the encoder's own options."""
    encoder_options: dict[str, str] = {}
    quality = _QUALITY_OPTIONS.get(name)
    if options.crf is not None and quality is None:
        raise OutputError(f"{name} has no --crf; set its rate by --encoder-opt, e.g. b=8M")
    if quality is not None and not _RATE_CONTROL_OPTIONS & options.encoder_opt.keys():
        key, default = quality
        encoder_options[key] = default if options.crf is None else f"{options.crf:g}"
        encoder_options |= _OPTIONS_WITH_QUALITY.get(name, {})
    elif options.crf is not None and quality is not None:
        encoder_options[quality[0]] = f"{options.crf:g}"
    if options.preset is not None:
        encoder_options["preset"] = options.preset
    return encoder_options | options.encoder_opt


def _raise_for_refused(name: str, refused: list[str]) -> None:
    """Raise OutputError if the opened encoder did not accept all options."""
    if "preset" in refused:
        raise OutputError(f"{name} has no --preset; leave it out")
    if refused:
        raise OutputError(
            f"{name} does not take {', '.join(refused)}; "
            f"ffmpeg -h encoder={name} lists what --encoder-opt can set"
        )


def _stretch_format(name: str, *, alpha: bool) -> str:
    """Return the muxer of the stretch: the first of MP4, MKV, MOV and NUT that holds the codec."""
    needs_additions = alpha and name in ALPHA_DECODERS.values()
    choices: tuple[str, ...] = ("mp4", "matroska", "mov", "nut")
    if needs_additions:
        choices = ("matroska",)
    if name in TAGGED:
        choices = ("nut",)
    for muxer in choices:
        with contextlib.suppress(ValueError, av.error.FFmpegError):
            trial = av.open(io.BytesIO(), "w", format=muxer)
            trial.add_stream(name)
            return muxer
    raise OutputError(f"--codec {name} fits neither MP4, MKV, MOV nor NUT; choose another one")
