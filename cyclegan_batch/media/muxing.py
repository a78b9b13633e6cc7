"""Add streams to a container that is written: their parameters, tags, dispositions and shape."""

from __future__ import annotations

import contextlib
import errno
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.container
import av.error
import av.stream
from av.video.stream import VideoStream

from ..errors import OutputError
from ..files import output_error
from ..frames import Size
from ..wording import printable
from . import aspect
from .sound import plan_sound, set_up_sound, state_layout


@dataclass(frozen=True)
class Carried:
    """One stream of the output, in its order."""

    index: int
    """The stream's index in the source."""
    way: Literal["video", "copy", "convert", "transcode", "attach"]
    """``video`` is the translated one; ``attach`` turns a cover into an attachment."""
    encoder: str | None = None
    """For ``convert`` (subtitles) and ``transcode`` (audio)."""
    label: str = ""
    """The stream in a few words for messages."""


def add_stream(
    output: av.container.OutputContainer,
    template: av.stream.Stream,
    choice: Carried,
    cover: bytes,
) -> Any:
    """Add a stream of the source to ``output`` in the chosen way; ``cover`` is for ``attach``."""
    if choice.way == "attach":
        name, kind = _cover_name(template)
        stream: Any = output.add_attachment(name, kind, cover)
        tags = without_tags(dict(template.metadata), frozenset({"filename", "mimetype"}))
        stream.metadata.update(stream_tags(tags, output, encoded=False))
        return stream
    if choice.way in ("transcode", "convert") and template.codec_context is None:
        raise ValueError("there is no decoder for it")
    if choice.way == "transcode":
        stream = _add_audio_encoder(output, template, str(choice.encoder))
    elif choice.way == "convert":
        stream = output.add_stream(str(choice.encoder))
        decoder: Any = template.codec_context
        # The decoder makes the ASS header, which the encoder needs, when it opens.
        decoder.open(strict=False)
        stream.codec_context.subtitle_header = decoder.subtitle_header
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
    else:
        stream = add_copied_stream(output, template)
        if (
            isinstance(template, VideoStream)
            and template.average_rate
            and stream.codec_context is not None
        ):
            # Not part of what a template copies.
            stream.codec_context.framerate = template.average_rate
    encoded = choice.way == "transcode"
    stream.metadata.update(stream_tags(template.metadata, output, encoded=encoded))
    if isinstance(template, VideoStream):
        size = template.codec_context.height, template.codec_context.width
        set_pixel_shape(stream, template.sample_aspect_ratio, size, output)
    stream.disposition = template.disposition
    return stream


def set_pixel_shape(
    stream: Any,
    sample_aspect_ratio: Fraction | None,
    size: Size,
    output: av.container.OutputContainer,
) -> None:
    """Give an output stream the shape of its pixels, which no template copies."""
    aspect.reserve(stream, sample_aspect_ratio, size, output.format.name)


def add_copied_stream(output: av.container.OutputContainer, template: av.stream.Stream) -> Any:
    """Add a stream whose packets are copied, also where FFmpeg's own list does not know of it.

    That list (`avformat_query_codec`) is shorter than what writers take: MKV's lacks all codecs
    that it holds under the tags of other containers, such as WMA, Speex and ADPCM, PNG and Huffyuv.
    """
    try:
        stream: Any = output.add_stream_from_template(template, opaque=True)
    except ValueError:
        codec = "none"
        if template.type == "audio":
            codec = output.default_audio_codec
        elif template.type == "video" and output.format.name == "matroska":
            codec = output.default_video_codec
        if codec == "none":
            raise
    else:
        context = stream.codec_context
        if template.type == "audio" and context is not None:
            # MP4 must know the layout of PCM.
            state_layout(context)
        if context is not None and context.name in TAGGED:
            context.codec_tag = template.codec_context.codec_tag
        return stream
    # Takes every codec and, as is done above, leaves out the tag of the source's container.
    with av.open(io.BytesIO(), "w", format="null") as anything:
        untagged: Any = anything.add_stream_from_template(template, opaque=True)
        if untagged.codec_context is not None and untagged.codec_context.name in TAGGED:
            untagged.codec_context.codec_tag = template.codec_context.codec_tag
        stream = output.add_mux_stream(codec)
        av.BitStreamFilterContext("null", untagged, stream)
        stream.time_base = template.time_base
    return stream


TAGGED = ("rawvideo", "utvideo")
"""Codecs whose pixel format only the tag of the stream tells, which AVI, MKV and NUT keep."""


def _add_audio_encoder(
    output: av.container.OutputContainer, template: av.stream.Stream, encoder: str
) -> Any:
    plan = plan_sound(encoder, template.codec_context)
    stream: Any = output.add_stream(encoder, rate=plan.rate)
    set_up_sound(stream.codec_context, plan)
    stream.codec_context.time_base = stream.time_base = Fraction(1, plan.rate)
    return stream


def _cover_name(stream: av.stream.Stream) -> tuple[str, str]:
    """Return file name and MIME type under which a cover is attached."""
    codec = stream.codec_context.name if stream.codec_context is not None else "png"
    ending, kind = {
        "mjpeg": (".jpg", "image/jpeg"),
        "bmp": (".bmp", "image/bmp"),
        "gif": (".gif", "image/gif"),
        "webp": (".webp", "image/webp"),
    }.get(codec, (".png", "image/png"))
    metadata = stream.metadata
    return metadata.get("filename", f"cover{ending}"), metadata.get("mimetype", kind)


MUXER_TAGS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "duration"})
"""Tags that a muxer derives from its own file."""

_ENCODING_TAGS = re.compile(
    r"(alpha_mode|encoder|encoder_settings|rotate|BPS|DURATION|NUMBER_OF_\w+|_STATISTICS_\w+)"
    r"(-\w+)?",
    re.IGNORECASE,
)
"""Tags that describe packets which are not copied."""


def stream_tags(
    tags: dict[str, str], output: av.container.OutputContainer, *, encoded: bool
) -> dict[str, str]:
    """Return the tags of a source's stream as those of an output's stream."""
    tags = without_tags(tags, frozenset({"duration"}))
    if "name" in tags:
        # MP4's reader says "name" where its writer wants "title".
        tags.setdefault("title", tags.pop("name"))
    if output.format.name not in ("mp4", "mov"):
        tags = without_tags(tags, frozenset({"handler_name", "vendor_id"}))
    if output.format.name == "mov" and "language" in tags:
        tags["language"] = _MOV_LANGUAGES.get(tags["language"], tags["language"])
    if encoded:
        tags = {k: v for k, v in tags.items() if not _ENCODING_TAGS.fullmatch(k)}
    return tags


_MOV_LANGUAGES = {
    "deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice",
    "zho": "chi", "sqi": "alb", "hye": "arm", "kat": "geo",
}  # fmt: skip
"""ISO 639-2/T to 639-2/B: FFmpeg's MOV writer knows Macintosh languages by the latter names."""


def without_tags(tags: dict[str, str], keys: frozenset[str]) -> dict[str, str]:
    """Return ``tags`` without those named in ``keys``, which are in lower case."""
    return {key: value for key, value in tags.items() if key.lower() not in keys}


def needs_start_codes(muxer: str, template: Any) -> bool:
    """Say whether a muxer takes the packets of ``template`` with start codes only."""
    return muxer == "avi" and template.codec_context.name in ("h264", "hevc")


def with_start_codes(packets: Iterator[av.Packet[Any]], template: Any) -> Iterator[av.Packet[Any]]:
    """Turn H.264 and HEVC of MP4 into the form with start codes (ITU-T H.264, annex B)."""
    filters = av.BitStreamFilterContext(f"{template.codec_context.name}_mp4toannexb", template)
    for packet in packets:
        base = packet.time_base
        for converted in filters.filter(packet):
            converted.time_base = base
            yield converted


def assigned(packets: Iterator[av.Packet[Any]], stream: Any) -> Iterator[av.Packet[Any]]:
    """Yield ``packets`` as packets of the output's ``stream``."""
    for packet in packets:
        packet.stream = stream
        yield packet


DISK_ERRNOS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT,
        errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO,
    }
)  # fmt: skip
"""What the system says; FFmpeg also uses such numbers (EPERM, EINVAL) for opinions of its own."""


def is_refused_packet(error: av.error.FFmpegError) -> bool:
    """Say whether a writer refuses what it was given, and not the disk or the memory."""
    return error.errno not in DISK_ERRNOS | {errno.ENOMEM}


@contextlib.contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Turn what FFmpeg or the system says while writing ``path`` into an OutputError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
            raise output_error(path, error) from error
        raise OutputError(
            f"cannot write {printable(path)}: {error}; choose another --codec or container"
        ) from error
