"""Add streams to an output container: their parameters, tags, dispositions and pixel shape."""

from __future__ import annotations

import contextlib
import errno
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import av.container
import av.error
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext
from av.video.stream import VideoStream

from ...errors import OutputError
from ...files import output_error
from ...wording import printable
from ..demux.demuxing import Packet
from ..demux.stream_info import StreamKind
from . import aspect
from .sound import plan_sound, set_up_sound, state_layout


@dataclass(frozen=True)
class OutputStream:
    """One stream of the output: which stream of the source it is, and what is done with that."""

    index: int
    """The stream's index in the source."""
    kind: StreamKind
    """The stream's kind in the source; an attached picture is video."""
    action: Literal["video", "copy", "convert", "transcode", "attach"]
    """``video``: this is the translated video. ``attach``: a cover becomes an attachment."""
    encoder: str | None = None
    """For ``convert`` (subtitles) and ``transcode`` (audio)."""
    label: str = ""
    """The stream in a few words for messages; empty for the translated video."""


def add_stream(
    output: av.container.OutputContainer, template: Stream, planned: OutputStream, cover: bytes
) -> Stream:
    """Add the stream ``template`` of the source to ``output`` as ``planned``.

    ``cover`` is the content of the attachment for ``attach``. Raises ValueError or FFmpegError
    where the container does not take the stream.
    """
    if planned.action == "attach":
        return _add_attachment(output, template, cover)
    if planned.action in ("transcode", "convert") and template.codec_context is None:
        raise ValueError("there is no decoder for it")
    if planned.action == "transcode":
        stream = _add_audio_encoder(output, template, str(planned.encoder))
    elif planned.action == "convert":
        stream = _add_subtitle_encoder(output, template, str(planned.encoder))
    else:
        stream = add_copied_stream(output, template)
        if isinstance(template, VideoStream):
            # The frame rate is not among what a template copies.
            set_frame_rate(stream, template.average_rate)
    encoded = planned.action == "transcode"
    stream.metadata.update(stream_tags(template.metadata, output, encoded=encoded))
    if isinstance(template, VideoStream) and template.codec_context is not None:
        size = template.codec_context.height, template.codec_context.width
        aspect.reserve(stream, template.sample_aspect_ratio, size, output.format.name)
    stream.disposition = template.disposition
    return stream


def add_copied_stream(output: av.container.OutputContainer, template: Stream) -> Stream:
    """Add a stream whose packets are copied, also where FFmpeg's list of codecs omits its codec.

    Muxers accept more codecs than that list (`avformat_query_codec`): MKV's lacks all that it holds
    under the tags of other containers, such as WMA, Speex and ADPCM, PNG and Huffyuv.
    """
    try:
        stream = output.add_stream_from_template(template, opaque=True)
    except ValueError:
        stand_in = _stand_in_codec(output, template)
        if stand_in is None:
            raise
        return _add_unlisted_stream(output, template, stand_in)
    if template.type == "audio" and stream.codec_context is not None:
        # The MP4 muxer requires the channel layout of PCM.
        state_layout(stream.codec_context)
    _copy_codec_tag(stream, template)
    return stream


def _stand_in_codec(output: av.container.OutputContainer, template: Stream) -> str | None:
    """Return a codec of the same kind that ``output`` lists, where a stream can be made from it."""
    codec = "none"
    if template.type == "audio":
        codec = output.default_audio_codec
    elif template.type == "video" and output.format.name == "matroska":
        codec = output.default_video_codec
    return None if codec == "none" else codec


def _add_unlisted_stream(
    output: av.container.OutputContainer, template: Stream, stand_in: str
) -> Stream:
    """Add a stream of the codec ``stand_in`` and give it the parameters of ``template``."""
    # The null muxer takes every codec and leaves out the tag of the source's container.
    with av.open(io.BytesIO(), "w", format="null") as null:
        untagged = null.add_stream_from_template(template, opaque=True)
        _copy_codec_tag(untagged, template)
        stream = output.add_mux_stream(stand_in)
        av.BitStreamFilterContext("null", untagged, stream)
        stream.time_base = template.time_base
    return stream


def _copy_codec_tag(stream: Stream, template: Stream) -> None:
    if stream.codec_context is not None and stream.codec_context.name in (*TAGGED, "prores"):
        stream.codec_context.codec_tag = template.codec_context.codec_tag


TAGGED = ("rawvideo", "utvideo")
"""Codecs whose pixel format is stated by the stream's tag alone, which AVI, MKV and NUT keep.

The tag of ProRes states its profile, and MOV, MKV and NUT keep it."""


def set_frame_rate(stream: Stream, rate: Fraction | None) -> None:
    """Set the frame rate of an output's video stream, where it is known."""
    if rate and isinstance(stream, VideoStream) and stream.codec_context is not None:
        stream.codec_context.framerate = rate


def _add_attachment(
    output: av.container.OutputContainer, template: Stream, content: bytes
) -> Stream:
    name, mime_type = _cover_name(template)
    stream = output.add_attachment(name, mime_type, content)
    tags = without_tags(template.metadata, frozenset({"filename", "mimetype"}))
    stream.metadata.update(stream_tags(tags, output, encoded=False))
    return stream


def _cover_name(stream: Stream) -> tuple[str, str]:
    """Return the file name and the MIME type under which a cover is attached."""
    codec = stream.codec_context.name if stream.codec_context is not None else "png"
    extension, mime_type = {
        "mjpeg": (".jpg", "image/jpeg"),
        "bmp": (".bmp", "image/bmp"),
        "gif": (".gif", "image/gif"),
        "webp": (".webp", "image/webp"),
    }.get(codec, (".png", "image/png"))
    tags = stream.metadata
    return tags.get("filename", f"cover{extension}"), tags.get("mimetype", mime_type)


def _add_audio_encoder(
    output: av.container.OutputContainer, template: Stream, encoder: str
) -> Stream:
    plan = plan_sound(encoder, template.codec_context)
    stream = output.add_stream(encoder, rate=plan.rate)
    set_up_sound(stream.codec_context, plan)
    stream.codec_context.time_base = stream.time_base = Fraction(1, plan.rate)
    return stream


def _add_subtitle_encoder(
    output: av.container.OutputContainer, template: Stream, encoder: str
) -> Stream:
    stream = output.add_stream(encoder)
    decoder, context = template.codec_context, stream.codec_context
    assert isinstance(decoder, SubtitleCodecContext)
    assert isinstance(context, SubtitleCodecContext)
    # The decoder creates the ASS header, which the encoder requires, when it opens.
    decoder.open(strict=False)
    context.subtitle_header = decoder.subtitle_header
    context.time_base = stream.time_base = Fraction(1, 1000)
    return stream


# Tags

MUXER_TAGS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "duration"})
"""Tags of a file that a muxer derives from what it writes."""
_ENCODING_TAGS = re.compile(
    r"(alpha_mode|encoder|encoder_settings|rotate|BPS|DURATION|NUMBER_OF_\w+|_STATISTICS_\w+)"
    r"(-\w+)?",
    re.IGNORECASE,
)
"""Tags of a stream that describe its packets, and are wrong once it is encoded anew."""


def stream_tags(
    tags: dict[str, str], output: av.container.OutputContainer, *, encoded: bool
) -> dict[str, str]:
    """Return the tags of a source's stream as those of an output's stream."""
    tags = without_tags(tags, frozenset({"duration"}))
    if "name" in tags:
        # FFmpeg's MP4 demuxer calls "name" what its muxer calls "title".
        tags.setdefault("title", tags.pop("name"))
    if output.format.name not in ("mp4", "mov"):
        tags = without_tags(tags, frozenset({"handler_name", "vendor_id"}))
    if output.format.name == "mov" and "language" in tags:
        tags["language"] = _MOV_LANGUAGES.get(tags["language"], tags["language"])
    if encoded:
        tags = {key: text for key, text in tags.items() if not _ENCODING_TAGS.fullmatch(key)}
    return tags


_MOV_LANGUAGES = {
    "deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice",
    "zho": "chi", "sqi": "alb", "hye": "arm", "kat": "geo",
}  # fmt: skip
"""ISO 639-2/T to 639-2/B: FFmpeg's MOV muxer lists Macintosh languages by the latter codes."""


def without_tags(tags: dict[str, str], keys: frozenset[str]) -> dict[str, str]:
    """Return ``tags`` without those named in ``keys``, which are in lower case."""
    return {key: text for key, text in tags.items() if key.lower() not in keys}


# Packets


def assigned(packets: Iterator[Packet], stream: Stream) -> Iterator[Packet]:
    """Yield ``packets`` as packets of the output's ``stream``."""
    for packet in packets:
        packet.stream = stream
        yield packet


def needs_start_codes(muxer: str, template: Stream) -> bool:
    """Return whether ``muxer`` takes the packets of ``template`` only with start codes (annex B).

    AVI's muxer alone neither accepts length-prefixed units nor converts them itself.
    """
    return muxer == "avi" and template.codec_context.name in ("h264", "hevc")


def with_start_codes(packets: Iterator[Packet], template: Stream) -> Iterator[Packet]:
    """Convert H.264 and HEVC of MP4 to the form with start codes (ITU-T H.264, annex B)."""
    converter = av.BitStreamFilterContext(f"{template.codec_context.name}_mp4toannexb", template)
    for packet in packets:
        base = packet.time_base
        for converted in converter.filter(packet):
            converted.time_base = base
            yield converted


# Errors

DISK_ERRNOS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT,
        errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO,
    }
)  # fmt: skip
"""Errors of the disk or the file system. FFmpeg itself uses other numbers (EPERM, EINVAL) too."""


def is_packet_error(error: av.error.FFmpegError) -> bool:
    """Return whether a muxer refused the packet, and not for lack of disk space or memory."""
    return error.errno not in DISK_ERRNOS | {errno.ENOMEM}


@contextlib.contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Turn an error of FFmpeg or the system while ``path`` is written into an OutputError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
            raise output_error(path, error) from error
        raise OutputError(
            f"cannot write {printable(path)}: {error}; choose another --codec or container"
        ) from error
