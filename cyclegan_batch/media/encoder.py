"""Choose a video encoder, open it, and set it up."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import numpy as np
from av.codec.context import Flags

from ..errors import OutputError
from ..frames import Size
from ..machine import cpu_threads, own_scheduling
from ..options import TranslateOptions
from .alpha import ALPHA_DECODERS, Alpha, alpha_of, decoder, has_alpha
from .colour import ColourPlan, FromRGB, bits_of, output_tags
from .demuxing import reason
from .messages import captured
from .muxing import TAGGED
from .standard_input import Y4M_MUXER
from .stream_info import FIELD_ORDER, Fields, StreamInfo


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


def default_codec(output: Path) -> str:
    """Return the encoder for the extension of ``output``."""
    return "libvpx-vp9" if output.suffix.lower() == ".webm" else "libx264"


@dataclass(frozen=True)
class Extras:
    """What a picture can have besides its colours, and not every encoder holds."""

    fields: Fields | None
    alpha: bool


_NOTHING = Extras(None, alpha=False)


def plan_with_extras(
    codec: str,
    output: Path,
    stream: StreamInfo,
    colour: ColourPlan,
    size: Size,
    aspect: Fraction | None,
    options: TranslateOptions,
    wanted: Extras,
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
) -> Extras:
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
            stream = add_encoder(written, plan, colour, size, aspect)
            written.mux([*stream.encode(frame), *stream.encode(None)])
        file.seek(0)
        with av.open(file, "r", format=plan.format) as read:
            decode = decoder(read.streams.video[0], alpha=plan.alpha)
            for packet in read.demux():
                shown += decode(packet)
    if not shown:
        return _NOTHING
    first: av.VideoFrame = shown[0]
    alpha = alpha_of(first) if plan.alpha else None
    beside = plan.name in ALPHA_DECODERS.values()
    fits = not beside or output.suffix.lower() in _BLOCK_ADDITIONS
    return Extras(
        plan.fields if first.interlaced_frame else None,
        alpha=alpha is not None and not alpha.values.any() and fits,
    )


_BLOCK_ADDITIONS = (".mkv", ".webm")
"""Containers in which a packet can have a second part, as the alpha of VP8 and VP9 is."""


def _plan_encoder(
    codec: str,
    stream: StreamInfo,
    colour: ColourPlan,
    size: Size,
    aspect: Fraction | None,
    options: TranslateOptions,
    extras: Extras,
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
    extras: Extras,
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


def add_encoder(
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
    if plan.format == Y4M_MUXER:
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


def plan_y4m(
    stream: StreamInfo, options: TranslateOptions, wanted: Extras
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
        format=Y4M_MUXER,
        fields=wanted.fields,
    )
    return plan, lost
