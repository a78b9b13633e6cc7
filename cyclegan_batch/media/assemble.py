"""Join encoded stretches of video with everything else of their source into the final file.

No picture passes here, only packets: the translated video's from its stretches, the other streams'
from the source. What the target container cannot hold is found before the first frame
(`plan_streams`), and the file is read once, packet by packet, before it gets its name (`assemble`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import av
import av.container
import av.error
import av.stream
from av.format import Flags
from av.stream import Disposition
from av.subtitles.subtitle import SubtitleSet
from av.video.stream import VideoStream

from ..errors import InputError, OutputError
from ..files import output_error
from ..frames import Size
from ..machine import own_scheduling
from ..options import TranslateOptions
from ..wording import printable
from . import Dropped, Place, aspect, dropped_at
from .clocks import BROADCAST, JobClock
from .probe import (
    ALPHA_DECODERS,
    FIELD_ORDER,
    Fields,
    MediaInfo,
    StreamInfo,
    demux,
    input_error,
    open_container,
    reason,
)
from .sound import Resampler, first_sound, plan_sound, set_up_sound, state_layout


@dataclass(frozen=True)
class Stretch:
    """One unit of video as its encoder left it: a video-only file, and the times of its frames."""

    path: Path
    """MP4, or what can hold the codec where MP4 cannot.

    Its time stamps say only which frame comes before which.
    """
    time_base: Fraction
    """The source stream's."""
    times: tuple[int, ...]
    """Presentation times of the frames that were sent to the encoder, in ticks, ascending.

    As in the source, also where only a part is translated.
    """
    last_duration: int | None
    """Duration of the last frame in ticks, where the source says it."""


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


@dataclass(frozen=True)
class StreamPlan:
    """What goes into the output besides the pictures, and how."""

    source: Path
    output: Path
    format: str
    """FFmpeg's name of the muxer."""
    video: StreamInfo
    carried: tuple[Carried, ...]
    metadata: dict[str, str]
    chapters: tuple[dict[str, Any], ...]
    from_first_frame: bool
    """Everything starts with the first translated frame, which moves to 0 (``--ss``)."""
    beginning: Fraction
    """Seconds of the source that become 0 where nothing is cut: where its first stream begins."""
    to_last_frame: bool
    """Everything ends with the last translated frame (``--to``, ``--frames``)."""
    notes: tuple[str, ...]
    """One warning for each thing that is left out."""
    undecodable: tuple[str, ...] = ()
    """Why a track of sound is lost that was to be encoded anew, one sentence for each."""
    stops_at_damage: bool = False
    """A damaged packet is an error (``--on-error fail``)."""
    sample_aspect_ratio: Fraction | None = None
    """Of the translated video; None leaves what its encoder says."""
    fields: Fields | None = None
    """Which field is first in the translated video, where its frames are interlaced."""
    alpha: bool = False
    """The translated video is transparent in places."""


@dataclass(frozen=True)
class _Container:
    """What one of the target containers can do."""

    muxer: str
    label: str
    negative_start: bool = False
    """Time stamps below zero survive (as an edit list)."""
    chapters: bool = False
    attachments: bool = False
    cover: bool = False
    """An attached picture is a stream of its own."""
    options: tuple[tuple[str, str], ...] = ()
    codecs: frozenset[str] | None = None
    """All that can be read back, where the muxer accepts more than that."""


# fmt: off
_TS_CODECS = frozenset({
    "mpeg1video", "mpeg2video", "mpeg4", "h264", "hevc", "vvc", "cavs", "avs2", "avs3", "vc1",
    "mp2", "mp3", "aac", "aac_latm", "ac3", "eac3", "dts", "truehd", "opus", "s302m",
    "dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "klv", "timed_id3", "scte_35",
})
# fmt: on
_PASS_DISPOSITIONS = (("default_mode", "passthrough"),)

_MP4 = _Container("mp4", "MP4", negative_start=True, chapters=True, cover=True)
_MOV = _Container("mov", "MOV", negative_start=True, chapters=True)
_TS = _Container("mpegts", "MPEG-TS", codecs=_TS_CODECS)
_M2TS = _Container("mpegts", "MPEG-TS", codecs=_TS_CODECS, options=(("mpegts_m2ts_mode", "1"),))
CONTAINERS = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".mov": _MOV,
    ".mkv": _Container(
        "matroska", "MKV", chapters=True, attachments=True, options=_PASS_DISPOSITIONS
    ),
    ".webm": _Container("webm", "WebM", chapters=True, options=_PASS_DISPOSITIONS),
    ".avi": _Container("avi", "AVI"),
    ".ts": _TS,
    ".m2t": _TS,
    ".m2ts": _M2TS,
    ".mts": _M2TS,
    ".nut": _Container("nut", "NUT", chapters=True),
}
"""Containers that can be written, by the extension of the output's name."""


def _container(output: Path) -> _Container:
    """Return what the extension of ``output`` names. Raises OutputError."""
    found = CONTAINERS.get(output.suffix.lower())
    if found is None:
        suffix = f"extension {output.suffix!r}" if output.suffix else "no extension"
        better = printable(Path(output.stem + ".mkv"))
        raise OutputError(
            f"cannot write {printable(output)}: {suffix} names no container that is written here; "
            f"choose one of {', '.join(CONTAINERS)}, such as {better}"
        )
    return found


# Planning


def plan_streams(
    info: MediaInfo,
    video: StreamInfo,
    output: Path,
    options: TranslateOptions,
    *,
    encoder: str,
    pix_fmt: str,
    size: Size,
    encoder_options: Mapping[str, str] = MappingProxyType({}),
    stretch_format: str = "mp4",
    sample_aspect_ratio: Fraction | None = None,
    fields: Fields | None = None,
    alpha: bool = False,
    lost: Sequence[str] = (),
) -> StreamPlan:
    """Decide for every stream of ``info`` how it gets into ``output``, before the first frame.

    ``encoder``, ``pix_fmt``, ``size`` (height, width), ``encoder_options`` (FFmpeg's),
    ``sample_aspect_ratio``, ``fields`` and ``alpha`` are those of the translated video, whose
    stretches are written by the muxer ``stretch_format``, and ``lost`` is what its encoder does not
    hold of it, counted with the rest. Short files are written to memory with what is planned, and
    read back; what makes one fail is left out, with a note each, or with ``options.strict`` an
    OutputError. Raises OutputError where the container cannot hold the translated video itself.
    """
    container = _container(output)
    trial = _Trial(
        container, info, _SampleVideo(encoder, pix_fmt, size, encoder_options, stretch_format)
    )
    error = trial.failure(None, [Carried(video.index, "video")])
    codec = av.Codec(encoder, "w").canonical_name
    if error is None and container.codecs is not None and codec not in container.codecs:
        error = "as data that no player finds"
    if error:
        raise OutputError(
            f"cannot write {printable(output)}: {container.label} cannot hold {encoder} video in "
            f"{pix_fmt} ({error}); choose another --codec or another extension than {output.suffix}"
        )
    if container.muxer == "avi" and video.constant_rate is False:
        raise OutputError(
            f"cannot write {printable(output)}: AVI holds only a constant frame rate, and "
            f"{printable(info.path)} has a variable one; choose .mkv or .mp4"
        )
    lost = [*lost]
    given = len(lost)
    undecodable: list[str] = []
    mixed: list[str] = []
    carried: list[Carried] = []
    others = [stream for stream in info.streams if stream.index != video.index]
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_container(info.path)) if others else None
        for stream in info.streams:
            if stream.index == video.index:
                carried.append(Carried(stream.index, "video"))
                continue
            if _comes_back_by_itself(info, stream) or (
                stream.kind == "audio" and options.audio == "none"
            ):
                continue
            choices = _choices(stream, container, options)
            if choices and choices[0].way == "transcode" and not trial.sound(stream.index):
                undecodable.append(
                    f"{printable(info.path)}: stream {stream.index} ({stream.label}): nothing of "
                    "it can be decoded, so its sound is lost; repair the file, or try --audio copy"
                )
                continue
            why: str | None = None
            for choice in choices:
                why = trial.failure(source, [Carried(video.index, "video"), choice])
                if why is None:
                    carried.append(replace(choice, label=stream.label))
                    if choice.way == "transcode":
                        assert source is not None
                        mixed += _mixed_down(source, stream, choice)
                    break
            else:
                if choices and choices[-1].way == "transcode":
                    _refuse_audio_encoder(stream, container, output, options.audio, str(why))
                codec = "libopus" if container.muxer == "webm" else "aac"
                remedy = f"; --audio {codec} keeps its sound" if stream.kind == "audio" else ""
                lost.append(
                    f"stream {stream.index} ({stream.label}): "
                    f"{container.label} cannot hold it{remedy}"
                )
        # Tracks first: attachments and covers get the last places, whatever their order here.
        carried.sort(key=lambda choice: _place(info.streams[choice.index]))
        # Each fits alone; whether all fit together is another question.
        if error := trial.failure(source, carried):
            raise OutputError(
                f"cannot write {printable(output)}: {container.label} cannot hold these streams of "
                f"{printable(info.path)} together ({error}); choose .mkv"
            )
    kept = [info.streams[choice.index] for choice in carried]
    beginning = _beginning(info, kept, container)
    if container.muxer == "avi":
        starts = [(stream.start_pts or 0) * stream.time_base for stream in kept]
        zero = beginning
        if options.ss is not None:
            zero = (video.start_pts or 0) * video.time_base + Fraction(options.ss)
        lost += [
            f"the late start of stream {stream.index} ({stream.label}): AVI begins all sound at "
            f"once, here {float(start - zero):.3f} s too early"
            for stream, start in zip(kept, starts, strict=True)
            if stream.kind == "audio" and start - zero > _NOTICED
        ]
    if video.closed_captions:
        lost.append(
            f"the closed captions inside stream {video.index} ({video.label}): "
            "they end with the packets that carry them"
        )
    if info.chapters and not container.chapters:
        lost.append(f"{len(info.chapters)} chapters: {container.label} cannot hold them")
    if undecodable and (options.strict or options.on_error == "fail"):
        raise InputError("; ".join(undecodable))
    notes = tuple(f"{printable(output)} goes without {what}" for what in lost)
    if notes and options.strict:
        # Another container helps against none of what the encoder loses.
        remedy = ", or choose .mkv" if len(notes) > given else ""
        raise OutputError(f"{'; '.join(notes)}; leave out --strict to accept that{remedy}")
    notes += (*mixed, *undecodable)
    return StreamPlan(
        source=info.path,
        output=output,
        format=container.muxer,
        video=video,
        carried=tuple(carried),
        metadata=_without(info.metadata, _OF_THE_FILE),
        chapters=info.chapters if container.chapters else (),
        from_first_frame=options.ss is not None,
        beginning=beginning,
        to_last_frame=options.to is not None or options.frames is not None,
        notes=notes,
        undecodable=tuple(undecodable),
        stops_at_damage=options.on_error == "fail",
        sample_aspect_ratio=sample_aspect_ratio,
        fields=fields,
        alpha=alpha,
    )


def _beginning(info: MediaInfo, kept: Sequence[StreamInfo], container: _Container) -> Fraction:
    """Return when the first of the ``kept`` sounds and pictures begins, in seconds."""
    start = replace(info, streams=tuple(kept)).start or Fraction(0)
    if info.format in BROADCAST:
        # From MPEG-TS to MPEG-TS nothing is gained by another clock, as long as it can be written.
        return min(start, Fraction(0)) if info.format == container.muxer else start
    # Elsewhere a little sound below zero is what its decoder needs to begin.
    return Fraction(0) if -_PRIMING < start < 0 else start


_PRIMING = Fraction(1, 2)
"""Seconds; AAC needs 2112 samples of 8 kHz at most, Opus 80 ms."""
_NOTICED = Fraction(1, 20)
"""Seconds between sound and picture from which on people notice (ITU-R BT.1359: 0.045)."""


def _place(stream: StreamInfo) -> int:
    return 2 if stream.kind == "attachment" else int(stream.attached_picture)


def _comes_back_by_itself(info: MediaInfo, stream: StreamInfo) -> bool:
    """Say whether a data track is one that MP4 muxers make anew: chapter titles, a time code."""
    chapter_text = stream.codec == "bin_data" and bool(info.chapters)
    return (
        stream.kind == "data"
        and info.format.startswith("mov")
        and (chapter_text or "timecode" in stream.metadata)
    )


def _choices(
    stream: StreamInfo, container: _Container, options: TranslateOptions
) -> tuple[Carried, ...]:
    """Return the ways in which ``stream`` may be carried, best first."""
    index = stream.index
    if stream.attached_picture:
        if container.attachments:
            return (Carried(index, "attach"),)
        return (Carried(index, "copy"),) if container.cover else ()
    if stream.kind == "attachment":
        return (Carried(index, "copy"),) if container.attachments else ()
    if stream.kind == "audio" and options.audio != "copy":
        return (Carried(index, "transcode", options.audio),)
    if container.codecs is not None and stream.codec not in container.codecs:
        return ()
    if container.muxer == "avi" and stream.kind == "video" and stream.codec in ("h264", "hevc"):
        return ()
    copied = Carried(index, "copy")
    if stream.kind == "subtitle" and stream.codec in _TEXTS:
        others = (encoder for encoder in _TEXT_ENCODERS if encoder != stream.codec)
        return copied, *(Carried(index, "convert", encoder) for encoder in others)
    return (copied,)


_TEXTS = frozenset({"ass", "mov_text", "ssa", "subrip", "text", "webvtt"})
"""Subtitles that are text, and become one another where a container asks for it."""
_TEXT_ENCODERS = ("mov_text", "subrip", "webvtt")
"""What MP4, MKV and WebM hold, in the order in which it is tried."""


def _refuse_audio_encoder(
    stream: StreamInfo, container: _Container, output: Path, encoder: str, why: str
) -> None:
    """Raise OutputError for an ``--audio`` encoder that does not open or does not fit."""
    raise OutputError(
        f"cannot write {printable(output)}: --audio {encoder} does not work for stream "
        f"{stream.index} ({stream.label}) in {container.label} ({why}); choose another encoder "
        "such as aac or libopus, or --audio copy or none"
    )


def _mixed_down(
    source: av.container.InputContainer, stream: StreamInfo, choice: Carried
) -> list[str]:
    """Return a note where the encoder takes fewer channels than there are."""
    made = plan_sound(str(choice.encoder), source.streams[stream.index].codec_context)
    if not made.mixed_down:
        return []
    return [
        f"stream {stream.index} ({stream.label}): {made.encoder} does not take its "
        f"{stream.channels} channels, so they are mixed down to {made.layout}"
    ]


_SAMPLED = 12
"""Packets of a stream with which a container is tried."""
_SAMPLE_BYTES = 2**24
_SAMPLE_PACKETS = 3000
"""How much of a file is read for them; a stream that begins later is tried by its header."""


class _SampleVideo:
    """One frame from the encoder of the translated video, in a stretch of its own."""

    def __init__(
        self,
        encoder: str,
        pix_fmt: str,
        size: Size,
        options: Mapping[str, str],
        stretch_format: str,
    ) -> None:
        self._made: bytes | None = None
        self._encoder, self._format = encoder, stretch_format
        self._picture = av.VideoFrame(size[1], size[0], pix_fmt)
        for plane in self._picture.planes:
            plane.update(bytes(plane.buffer_size))
        # What it looks like does not matter, and look-ahead buffers are most of its cost.
        self._options = {
            "libx264": {"preset": "ultrafast"},
            "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
        }.get(encoder, dict(options))

    def open(self) -> av.container.InputContainer:
        """Return the stretch, open for reading. Raises FFmpegError, ValueError."""
        if self._made is None:
            self._made = self._encoded()
        return av.open(io.BytesIO(self._made), "r")

    def shown(self) -> set[str]:
        """Return what `_pixels` says of the frame as it is decoded from the stretch."""
        with self.open() as stretch:
            return {_pixels(frame) for frame in stretch.decode(stretch.streams.video[0])}

    def _encoded(self) -> bytes:
        buffer = io.BytesIO()
        with own_scheduling(), av.open(buffer, "w", format=self._format) as output:
            stream: Any = output.add_stream(self._encoder, rate=25)
            picture = self._picture
            stream.width, stream.height = picture.width, picture.height
            stream.pix_fmt = picture.format.name
            stream.codec_context.time_base = Fraction(1, 25)
            stream.options = self._options
            picture.pts, picture.time_base = 0, Fraction(1, 25)
            for packet in [*stream.encode(picture), *stream.encode(None)]:
                # x265 4.2 does not know it yet.
                packet.dts = packet.pts
                output.mux(packet)
        return buffer.getvalue()


def _pixels(frame: Any) -> str:
    """Return size and pixel format without its bits: ProRes 4444 has 10 in MKV and 12 in MOV."""
    name = re.sub(r"(p|gray)\d+[lb]e$", r"\1", frame.format.name)
    return f"{frame.width}×{frame.height} {name}"


class _Trial:
    """Short files written to memory and read back, to learn what a container takes.

    They hold the first packets of every stream: many a header is accepted whose first packet is
    not, or that cannot be ended, or whose streams nobody finds again.
    """

    def __init__(self, container: _Container, info: MediaInfo, video: _SampleVideo) -> None:
        self._container = container
        self._info = info
        self._video = video
        self._sound: dict[int, list[Any]] = {}
        self._packets: dict[int, list[av.Packet[Any]]] | None = None

    def sound(self, index: int) -> list[Any]:
        """Return the first frames of a stream of sound; none where it cannot be decoded at all."""
        if index not in self._sound:
            self._sound[index] = first_sound(self._info.path, index)
        return self._sound[index]

    def failure(
        self, source: av.container.InputContainer | None, carried: Sequence[Carried]
    ) -> str | None:
        """Return why these streams cannot be written and read back, or None where they can."""
        buffer = io.BytesIO()
        try:
            output = av.open(
                buffer,
                "w",
                format=self._container.muxer,
                container_options=dict(self._container.options),
                metadata_errors="surrogateescape",
            )
            try:
                sent = self._write(output, source, carried)
                output.close()
                written = buffer.getvalue()
            finally:
                # On a closed file PyAV writes no trailer, which would fail again.
                buffer.close()
                output.close()
            return self._difference(written, carried, sent)
        except (av.error.FFmpegError, ValueError, KeyError) as error:
            return reason(error)

    def _write(
        self,
        output: av.container.OutputContainer,
        source: av.container.InputContainer | None,
        carried: Sequence[Carried],
    ) -> Counter[int]:
        """Write the first packets of every stream; return how many of each."""
        muxer = self._container.muxer
        sent: Counter[int] = Counter()
        with self._video.open() as stretch:
            template = stretch.streams.video[0]
            streams = []
            for choice in carried:
                if choice.way == "video":
                    stream: Any = _add_copied(output, template)
                    if _needs_start_codes(muxer, template):
                        stream.codec_context.extradata = None
                    if stream.codec_context is not None:
                        stream.codec_context.framerate = Fraction(25)
                else:
                    assert source is not None
                    stream = _add_stream(output, source.streams[choice.index], choice, b"\0")
                streams.append(stream)
            output.start_encoding()
            for choice, stream in zip(carried, streams, strict=True):
                if choice.way == "video":
                    pictures: Iterator[av.Packet[Any]] = (
                        packet for packet in stretch.demux(template) if packet.size
                    )
                    if _needs_start_codes(muxer, template):
                        pictures = _with_start_codes(pictures, template)
                    packets: Iterator[av.Packet[Any]] = _of_stream(pictures, stream)
                elif choice.way == "transcode":
                    packets = self._encoded(choice, stream)
                elif choice.way == "copy":
                    assert source is not None
                    packets = _of_stream(iter(self._first_packets(source, choice.index)), stream)
                else:
                    continue
                refused: Exception | None = None
                for packet in packets:
                    try:
                        output.mux_one(packet)
                    except av.error.FFmpegError as error:
                        if choice.way != "copy" or not _is_of_the_packet(error):
                            raise
                        # One that is damaged says nothing of the container.
                        refused = error
                    else:
                        sent[stream.index] += packet.size > 0
                if refused is not None and not sent[stream.index]:
                    raise refused
        return sent

    def _encoded(self, choice: Carried, stream: Any) -> Iterator[av.Packet[Any]]:
        resampler = Resampler(stream.codec_context)
        samples = 0
        for frame in (*self.sound(choice.index), None):
            for ready in resampler.resampled(frame):
                # From 0 on: in the source the first ones may lie before it.
                ready.pts, ready.time_base = samples, Fraction(1, ready.sample_rate)
                samples += ready.samples
                yield from stream.encode(ready)
        yield from stream.encode(None)

    def _first_packets(
        self, source: av.container.InputContainer, index: int
    ) -> list[av.Packet[Any]]:
        """Return copies of a stream's first packets, from 0 on."""
        if self._packets is None:
            self._packets = _sample(source)
        copies = []
        origin: int | None = None
        last: int | None = None
        for packet in self._packets.get(index, ()):
            copy = av.Packet(bytes(packet))
            dts = packet.dts if packet.dts is not None else packet.pts
            if dts is None:
                dts = 0 if last is None else last + 1
            origin = dts if origin is None else origin
            late = 0 if packet.pts is None else max(0, packet.pts - dts)
            dts = dts - origin if last is None else max(dts - origin, last + 1)
            copy.dts, copy.pts, copy.time_base = dts, dts + late, packet.time_base
            # MP4 would end before a last packet that lasts no time.
            copy.duration = packet.duration or (0 if last is None else dts - last)
            last = dts
            copy.is_keyframe = packet.is_keyframe
            copies.append(copy)
        return copies

    def _difference(
        self, written: bytes, carried: Sequence[Carried], sent: Counter[int]
    ) -> str | None:
        """Say what of the written streams is not found again, if anything is not."""
        found: Counter[int] = Counter()
        with av.open(
            io.BytesIO(written),
            "r",
            format=self._container.muxer,
            metadata_errors="surrogateescape",
        ) as container:
            streams = list(container.streams)
            video = next(n for n, choice in enumerate(carried) if choice.way == "video")
            shown: set[str] = set()
            for packet in demux(container, streams):
                found[packet.stream.index] += packet.size > 0
                if packet.stream.index == video and packet.stream.type == "video":
                    shown |= {_pixels(frame) for frame in packet.decode()}
            for number, choice in enumerate(carried):
                if choice.way not in ("video", "copy", "transcode") or not sent[number]:
                    continue
                kind = "video" if choice.way == "video" else self._info.streams[choice.index].kind
                if kind not in ("video", "audio"):
                    continue
                if number >= len(streams) or streams[number].type != kind:
                    return f"the {kind} is not found again"
                if found[number] != sent[number]:
                    return f"of {sent[number]} packets {found[number]} are found again"
        if not shown:
            return "the video cannot be decoded"
        if shown != self._video.shown():
            return f"it would be read as {', '.join(sorted(shown))}"
        return None


def _sample(source: av.container.InputContainer) -> dict[int, list[av.Packet[Any]]]:
    """Return the first packets of each stream but the pictures, by index."""
    first: dict[int, list[av.Packet[Any]]] = {}
    size = 0
    packets = demux(source, list(source.streams))
    # What cannot be read is for the translation to report.
    with contextlib.suppress(av.error.FFmpegError):
        for number, packet in enumerate(packets):
            if not packet.size:
                continue
            size += packet.size
            taken = first.setdefault(packet.stream_index, [])
            gap = packet.stream.type == "subtitle" and bytes(packet)[:2] == b"\0\0"
            if len(taken) < _SAMPLED and not gap:
                taken.append(packet)
            enough = len(first) == len(source.streams) and all(
                len(each) >= _SAMPLED for each in first.values()
            )
            if enough or size > _SAMPLE_BYTES or number > _SAMPLE_PACKETS:
                break
    return first


def _add_stream(
    output: av.container.OutputContainer,
    template: av.stream.Stream,
    choice: Carried,
    cover: bytes,
) -> Any:
    """Add a stream of the source to ``output`` in the chosen way; ``cover`` is for ``attach``."""
    if choice.way == "attach":
        name, kind = _cover_name(template)
        stream: Any = output.add_attachment(name, kind, cover)
        tags = _without(dict(template.metadata), frozenset({"filename", "mimetype"}))
        stream.metadata.update(_stream_tags(tags, output, encoded=False))
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
        stream = _add_copied(output, template)
        if (
            isinstance(template, VideoStream)
            and template.average_rate
            and stream.codec_context is not None
        ):
            # Not part of what a template copies.
            stream.codec_context.framerate = template.average_rate
    encoded = choice.way == "transcode"
    stream.metadata.update(_stream_tags(template.metadata, output, encoded=encoded))
    if isinstance(template, VideoStream):
        size = template.codec_context.height, template.codec_context.width
        _shape(stream, template.sample_aspect_ratio, size, output)
    stream.disposition = template.disposition
    return stream


def _shape(
    stream: Any,
    sample_aspect_ratio: Fraction | None,
    size: Size,
    output: av.container.OutputContainer,
) -> None:
    """Give an output stream the shape of its pixels, which no template copies."""
    aspect.reserve(stream, sample_aspect_ratio, size, output.format.name)


def _add_copied(output: av.container.OutputContainer, template: av.stream.Stream) -> Any:
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


_OF_THE_FILE = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "duration"}
)
"""Tags that a muxer derives from its own file."""
_OF_THE_ENCODING = re.compile(
    r"(alpha_mode|encoder|encoder_settings|rotate|BPS|DURATION|NUMBER_OF_\w+|_STATISTICS_\w+)"
    r"(-\w+)?",
    re.IGNORECASE,
)
"""Tags that describe packets which are not copied."""


def _stream_tags(
    tags: dict[str, str], output: av.container.OutputContainer, *, encoded: bool
) -> dict[str, str]:
    """Return the tags of a source's stream as those of an output's stream."""
    tags = _without(tags, frozenset({"duration"}))
    if "name" in tags:
        # MP4's reader says "name" where its writer wants "title".
        tags.setdefault("title", tags.pop("name"))
    if output.format.name not in ("mp4", "mov"):
        tags = _without(tags, frozenset({"handler_name", "vendor_id"}))
    if output.format.name == "mov" and "language" in tags:
        tags["language"] = _MOV_LANGUAGES.get(tags["language"], tags["language"])
    if encoded:
        tags = {k: v for k, v in tags.items() if not _OF_THE_ENCODING.fullmatch(k)}
    return tags


_MOV_LANGUAGES = {
    "deu": "ger", "nld": "dut", "ell": "gre", "isl": "ice",
    "zho": "chi", "sqi": "alb", "hye": "arm", "kat": "geo",
}  # fmt: skip
"""ISO 639-2/T to 639-2/B: FFmpeg's MOV writer knows Macintosh languages by the latter names."""


def _without(tags: dict[str, str], keys: frozenset[str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key.lower() not in keys}


# Joining


@dataclass(frozen=True)
class Assembled:
    """What is to be said of a file that was put together."""

    notes: tuple[str, ...]
    """What the user is told once."""
    dropped: tuple[Dropped, ...]
    """What of the source's other streams is damaged and missing."""


def assemble(stretches: Sequence[Stretch], plan: StreamPlan, output_partial: Path) -> Assembled:
    """Write the final container under the temporary name ``output_partial`` and read it once.

    Raises OutputError, and InputError where the source is damaged and the plan is to stop then;
    ``output_partial`` is then removed.
    """
    try:
        joined = _JoinedVideo(stretches, plan)
        losses = _Losses(plan, joined)
        moved = _written(plan, joined, output_partial, losses)
        if moved and plan.chapters:
            # The muxer moves packets but no chapters, and its output alone tells how far.
            losses = _Losses(plan, joined)
            _written(plan, joined, output_partial, losses, chapters_later=moved)
    except BaseException:
        output_partial.unlink(missing_ok=True)
        raise
    notes: tuple[str, ...] = ()
    # What begins late in the source begins early enough here.
    if moved >= Fraction(1, 1000) and joined.shift <= 0:
        notes = (
            f"{printable(plan.output)}: {_container(plan.output).label} cannot start below zero, "
            f"so all streams start {float(moved):.3f} s later than in {printable(plan.source)}",
        )
    return Assembled(notes, losses.dropped)


_MOST_LOSSES = 10_000
"""Damaged packets of a file that are listed one by one; what is more is counted."""


class _Losses:
    """What of the source's other streams cannot be carried."""

    def __init__(self, plan: StreamPlan, joined: _JoinedVideo) -> None:
        self._plan = plan
        self._name = printable(plan.source)
        self._start = joined.times[0] * joined.time_base
        """Of the first frame in the output, in seconds."""
        self._dropped = [Dropped(self._name, InputError(why)) for why in plan.undecodable]
        self._more = 0

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """All of them."""
        if not self._more:
            return tuple(self._dropped)
        told = f"{self._name}: {self._more:,} more packets of its other streams are damaged"
        return (*self._dropped, Dropped(self._name, InputError(told)))

    def packet(self, choice: Carried, number: int, time: Fraction | None, trouble: str) -> None:
        """Note the packet ``number`` of a stream, due at ``time`` (seconds of the output).

        Raises InputError where the plan is to stop at damage.
        """
        of = f"{self._name}, stream {choice.index} ({choice.label})"
        seconds = None if time is None else float(time - self._start)
        advice = "left out; repair the file"
        if self._plan.stops_at_damage:
            advice = "repair the file, or leave out --on-error fail to do without such packets"
        self._add(dropped_at(Place(of, "packet", number, seconds, f"{trouble}; {advice}")))

    def rest(self, cause: str) -> None:
        """Note that the source cannot be read to its end. Raises InputError like `packet`."""
        told = f"{self._name}: its other streams cannot be read to their end ({cause})"
        self._add(Dropped(self._name, InputError(f"{told}; copy or record it again")))

    def _add(self, dropped: Dropped) -> None:
        if self._plan.stops_at_damage:
            raise dropped.error
        if len(self._dropped) < _MOST_LOSSES:
            self._dropped.append(dropped)
        else:
            self._more += 1


class _JoinedVideo:
    """The packets of all stretches on one clock, with decoding times made anew."""

    def __init__(self, stretches: Sequence[Stretch], plan: StreamPlan) -> None:
        self.stretches = stretches
        self._output = plan.output
        self.time_base = stretches[0].time_base
        times = [time for stretch in stretches for time in stretch.times]
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            raise ValueError("frame times must ascend, within and across stretches")
        gaps = [b - a for a, b in itertools.pairwise(times)]
        last = stretches[-1].last_duration or (gaps[-1] if gaps else self._one_frame(plan.video))
        self.source_start = times[0] * self.time_base
        """Seconds on the source's clock."""
        self.source_end = (times[-1] + last) * self.time_base
        origin = times[0]
        if not plan.from_first_frame:
            origin = min(origin, math.floor(plan.beginning / self.time_base))
        self.shift = origin * self.time_base
        """Seconds that are taken off every time of the source."""
        self.times = [time - origin for time in times]
        if plan.format == "avi":
            # AVI counts frames and has no other clock.
            rate = plan.video.average_rate or Fraction(25)
            if not plan.from_first_frame:
                self.shift = plan.beginning
            self.times = [round((time * self.time_base - self.shift) * rate) for time in times]
            self.time_base, gaps, last = 1 / rate, [1] * len(gaps), 1
        self.end = self.times[-1] + last
        self._ranks = self._presentation_ranks()
        self._delay = max(k - rank for k, rank in enumerate(self._ranks))
        # Before the first frame decoding times step back by the shortest gap: that cannot collide.
        self._step = min([*gaps, last])

    @staticmethod
    def _one_frame(video: StreamInfo) -> int:
        return max(1, round(1 / ((video.average_rate or Fraction(25)) * video.time_base)))

    def _presentation_ranks(self) -> list[int]:
        """Return for each packet in decoding order its frame's position in presentation order."""
        ranks: list[int] = []
        extradata: set[bytes | None] = set()
        for stretch in self.stretches:
            with open_container(stretch.path) as container:
                stream = container.streams.video[0]
                extradata.add(stream.codec_context.extradata)
                stamps = [packet.pts for packet in container.demux(stream) if packet.size]
            if len(stamps) != len(stretch.times) or None in stamps:
                raise OutputError(
                    f"cannot write {printable(self._output)}: the encoder returned {len(stamps)} "
                    f"packets for {len(stretch.times)} frames; choose another --codec"
                )
            order = sorted(range(len(stamps)), key=lambda k: stamps[k] or 0)
            position = [0] * len(order)
            for rank, k in enumerate(order):
                position[k] = rank
            ranks += [len(ranks) + rank for rank in position]
        if len(extradata) > 1:
            raise OutputError(
                f"cannot write {printable(self._output)}: its stretches were encoded with "
                "different settings; translate the whole of it again"
            )
        return ranks

    def packets(self) -> Iterator[av.Packet[Any]]:
        """Yield every packet in decoding order, timed in `time_base`."""
        k = 0
        for stretch in self.stretches:
            with open_container(stretch.path) as container:
                for packet in container.demux(container.streams.video[0]):
                    if packet.size:
                        yield self._timed(packet, k)
                        k += 1

    def _timed(self, packet: av.Packet[Any], k: int) -> av.Packet[Any]:
        if packet.is_discard:
            # The stretch's edit list ends early (VP9 in MP4), and the flag can only be left behind.
            keyframe = packet.is_keyframe
            packet = av.Packet(bytes(packet))
            packet.is_keyframe = keyframe
        rank = self._ranks[k]
        packet.time_base = self.time_base
        packet.pts = self.times[rank]
        packet.dts = self._decoding_time(k)
        # The edit list of an MP4 takes its end from this, and so keeps the last frame's duration.
        following = self.times[rank + 1] if rank + 1 < len(self.times) else self.end
        packet.duration = following - self.times[rank]
        return packet

    def _decoding_time(self, k: int) -> int:
        early = self._delay - k
        return self.times[k - self._delay] if early <= 0 else self.times[0] - early * self._step


def _written(
    plan: StreamPlan,
    joined: _JoinedVideo,
    partial: Path,
    losses: _Losses,
    *,
    chapters_later: Fraction = Fraction(0),
) -> Fraction:
    """Write the file and read it; return how far (seconds) its muxer moved everything."""
    with contextlib.ExitStack() as stack:
        source = None
        if len(plan.carried) > 1:
            source = stack.enter_context(open_container(plan.source))
        first = stack.enter_context(open_container(joined.stretches[0].path))
        sent = _write(plan, joined, first, source, partial, chapters_later, losses)
    return _check(plan, joined, sent, partial)


def _write(
    plan: StreamPlan,
    joined: _JoinedVideo,
    first: av.container.InputContainer,
    source: av.container.InputContainer | None,
    partial: Path,
    chapters_later: Fraction,
    losses: _Losses,
) -> Counter[int]:
    """Write the file; return the number of packets sent to each of its streams."""
    container = _container(plan.output)
    options = dict(container.options)
    if container.muxer in ("mp4", "mov"):
        options["movie_timescale"] = str(_movie_timescale(plan, joined, source))
    covers = {} if source is None else _read_covers(plan, source)
    if (
        container.muxer in ("mp4", "mov")
        and not covers
        and any("." in key for key in plan.metadata)
    ):
        # Tags such as com.apple.quicktime.model have a place of their own, which rules out a cover.
        options["movflags"] = "use_metadata_tags"
    sent: Counter[int] = Counter()
    with (
        _as_output_error(plan.output),
        av.open(
            f"file:{partial.absolute()}",
            "w",
            format=container.muxer,
            container_options=options,
            metadata_errors="surrogateescape",
        ) as output,
    ):
        output.metadata.update(plan.metadata)
        ways: dict[int, _Way] = {}
        aspects: dict[int, Fraction] = {}
        for choice in plan.carried:
            if choice.way == "video":
                pictures_of = first.streams.video[0]
                video = _add_translated(output, pictures_of, plan, joined)
                shape = plan.sample_aspect_ratio or pictures_of.sample_aspect_ratio
                if shape:
                    aspects[video.index] = shape
                continue
            assert source is not None
            template = source.streams[choice.index]
            stream = _add_stream(output, template, choice, covers.get(choice.index, b""))
            if isinstance(template, VideoStream) and template.sample_aspect_ratio:
                aspects[stream.index] = template.sample_aspect_ratio
            if choice.way != "attach" and template.type != "attachment":
                flags: Any = output.format.flags
                may_meet = bool(flags & Flags.ts_nonstrict.value)
                ways[choice.index] = _Way(choice, template, stream, losses, may_meet=may_meet)
        output.set_chapters(_moved_chapters(plan, joined, chapters_later - joined.shift))
        output.start_encoding()
        for index, cover in covers.items():
            if index in ways:
                packet = av.Packet(cover)
                packet.pts = packet.dts = 0
                packet.time_base = Fraction(1, 1000)
                packet.is_keyframe = True
                packet.stream = ways[index].stream
                output.mux_one(packet)
                sent[packet.stream_index] += 1
                del ways[index]
        others: Iterator[av.Packet[Any]] = iter(())
        if source is not None:
            others = _carried_packets(plan, joined, source, ways, losses)
        pictures = joined.packets()
        if _needs_start_codes(container.muxer, first.streams.video[0]):
            # The one muxer that neither takes length-prefixed units nor converts them itself.
            pictures = _with_start_codes(pictures, first.streams.video[0])
        refused: Counter[int] = Counter()
        ticks: dict[int, int] = {}
        for packet in _by_time(_of_stream(pictures, video), others):
            index = packet.stream_index
            if container.muxer == "avi" and index != video.index:
                ticks[index] = _ascending(packet, output.streams[index].time_base, ticks.get(index))
            # FLAC's encoder ends with a packet of nothing but its final header.
            sent[index] += packet.size > 0
            try:
                output.mux_one(packet)
            except av.error.FFmpegError as error:
                if index == video.index or not _is_of_the_packet(error):
                    raise
                # That the container takes such packets was found out before the first frame.
                sent[index] -= packet.size > 0
                time = None if packet.pts is None else packet.pts * packet.time_base
                number = sent[index] + refused[index]
                refused[index] += 1
                refusal = isinstance(error, av.error.ArgumentError)
                what = f"not taken by {container.label}" if refusal else "damaged"
                trouble = f"{what} ({reason(error)})"
                losses.packet(plan.carried[index], number, time, trouble)
    with _as_output_error(plan.output):
        aspect.fill_in(partial, container.muxer, aspects)
    return sent


def _add_translated(
    output: av.container.OutputContainer,
    template: Any,
    plan: StreamPlan,
    joined: _JoinedVideo,
) -> Any:
    """Add the translated video: the encoder's parameters, the source's name, language and place."""
    video = plan.video
    stream: Any = _add_copied(output, template)
    stream.time_base = joined.time_base
    if _needs_start_codes(output.format.name, template):
        # Parameter sets come with every key frame then; these are in MP4's form.
        stream.codec_context.extradata = None
    if video.average_rate is not None and stream.codec_context is not None:
        stream.codec_context.framerate = video.average_rate
    stream.metadata.update(_stream_tags(video.metadata, output, encoded=True))
    if plan.alpha and template.codec_context.name in ALPHA_DECODERS:
        stream.metadata["alpha_mode"] = "1"
    if plan.fields is not None and stream.codec_context is not None:
        stream.codec_context.field_order = FIELD_ORDER[plan.fields]
    size = template.codec_context.height, template.codec_context.width
    _shape(stream, plan.sample_aspect_ratio or template.sample_aspect_ratio, size, output)
    disposition = Disposition(0)
    for name in video.disposition:
        disposition |= Disposition[name]
    stream.disposition = disposition
    return stream


def _movie_timescale(
    plan: StreamPlan, joined: _JoinedVideo, source: av.container.InputContainer | None
) -> int:
    """Return ticks per second in which the start of every track is exact, as far as 31 bits go."""
    scale = joined.time_base.denominator
    for choice in plan.carried:
        if source is None or choice.way not in ("copy", "transcode"):
            continue
        stream = source.streams[choice.index]
        if stream.type in ("audio", "video") and stream.time_base is not None:
            finer = math.lcm(scale, stream.time_base.denominator)
            scale = finer if finer < 2**31 else scale
    return scale


def _read_covers(plan: StreamPlan, source: av.container.InputContainer) -> dict[int, bytes]:
    """Return the bytes of every attached picture that is carried, by index."""
    wanted = {
        choice.index
        for choice in plan.carried
        if choice.way != "video"
        and source.streams[choice.index].disposition & Disposition.attached_pic
    }
    covers: dict[int, bytes] = {}
    if wanted:
        # In a container of its own: there is no way back to what lies before the first picture.
        with open_container(plan.source) as again, _as_input_error(plan.source):
            # Demuxers deliver them before everything else.
            for packet in demux(again, [again.streams[index] for index in sorted(wanted)]):
                if packet.size:
                    covers.setdefault(packet.stream_index, bytes(packet))
                if len(covers) == len(wanted):
                    break
    return covers


def _moved_chapters(plan: StreamPlan, joined: _JoinedVideo, seconds: Fraction) -> list[Any]:
    """Return the chapters that overlap what is written, cut, and moved by ``seconds``."""
    chapters = []
    for chapter in plan.chapters:
        base = chapter["time_base"]
        start, end = chapter["start"] * base, chapter["end"] * base
        # What comes before all sound and pictures does not come again.
        start = max(start, joined.shift)
        if plan.to_last_frame:
            end = min(end, joined.source_end)
        if start < end or (start == end and chapter["start"] == chapter["end"]):
            moved = {"start": round((start + seconds) / base), "end": round((end + seconds) / base)}
            chapters.append({**chapter, **moved})
    return chapters


_DRAWING = re.compile(rb"\\p[1-9]")
"""The override of an ASS line that is a drawing, by the scale of its coordinates."""


def _one_line(lines: Sequence[bytes]) -> bytes:
    """Return ASS lines as one, below each other, each in its own style."""
    fields = [line.split(b",", 8) for line in lines]
    texts = [fields[0][8], *(b"{\\r" + each[2] + b"}" + each[8] for each in fields[1:])]
    return b",".join([*fields[0][:8], b"\\N".join(texts)])


class _Way:
    """One stream on its way from the source to the output."""

    def __init__(
        self, choice: Carried, template: Any, stream: Any, losses: _Losses, *, may_meet: bool
    ) -> None:
        self.choice = choice
        self._losses = losses
        self._packets = 0
        self.template = template
        self.stream = stream
        self._started = template.type != "video"
        self._last: int | None = None
        self._latest: Fraction | None = None
        """Seconds at which the last packet is decoded."""
        self._may_meet = may_meet
        """Two packets may have one time, as the container has it."""
        self._lines: list[tuple[int, bytes]] = []
        """Subtitles on screen: when each ends, in ticks of the source, and its ASS line."""
        self._shown_from = 0
        if choice.way == "transcode":
            self._resampler = Resampler(stream.codec_context)
            self._due = Fraction(0)

    def take(
        self, packet: av.Packet[Any], start: Fraction | None, end: Fraction | None, shift: Fraction
    ) -> Iterator[av.Packet[Any]]:
        """Yield what becomes of a packet of the source; the empty one at the end flushes."""
        if self.choice.way == "transcode":
            yield from self._transcoded(packet, start, end, shift)
            return
        if not packet.size and self._lines:
            yield from self._placed(self._shown_until(None, self.template.time_base), shift)
        if not packet.size or (packet.pts is None and packet.dts is None):
            return
        if self.template.name == "mov_text" and bytes(packet)[:2] == b"\0\0":
            # A gap between two lines: muxers that need gaps make them.
            return
        base = packet.time_base
        if packet.pts is None:
            packet.pts = packet.dts
        if packet.dts is None:
            packet.dts = packet.pts
        assert packet.pts is not None
        assert packet.dts is not None
        time = packet.pts * base
        lasting = self.template.type == "subtitle"
        until = time + (packet.duration or 0) * base if lasting else time
        if (start is not None and until < start) or (end is not None and time >= end):
            return
        if start is not None and time < start:
            if not lasting or until == start:
                return
            # A line that is on screen at the cut stays until its end.
            packet.duration = math.floor((until - start) / base)
            packet.pts = packet.dts = math.ceil(start / base)
        if start is not None and not self._started and not packet.is_keyframe:
            return
        self._started = True
        copied = self.choice.way == "copy"
        moved = [_without_header(packet, self.template)] if copied else self._converted(packet)
        yield from self._placed(moved, shift)

    def _placed(
        self, packets: Sequence[av.Packet[Any]], shift: Fraction
    ) -> Iterator[av.Packet[Any]]:
        """Yield packets of the output on its clock, in ascending order."""
        for out in packets:
            ticks = round(shift / out.time_base)
            out.pts = (out.pts or 0) - ticks
            out.dts = (out.dts or 0) - ticks
            self._keep_behind(out)
            if not out.duration and self._latest is not None and self.template.type == "audio":
                # MP4 would end before a last packet that lasts no time.
                out.duration = round(out.dts - self._latest / out.time_base)
            self._latest = out.dts * out.time_base
            out.stream = self.stream
            yield out

    def _keep_behind(self, out: av.Packet[Any]) -> None:
        """Move a packet that would not ascend behind the last one; muxers refuse it otherwise.

        By the shortest step there is: TrueHD has 1200 packets a second, of which MKV's clock of
        milliseconds times every fifth together with another.
        """
        if self._latest is None or out.dts is None or out.pts is None:
            return
        time = out.dts * out.time_base
        if time > self._latest or (time == self._latest and self._may_meet):
            return
        tick = min(self.stream.time_base or out.time_base, out.time_base)
        pts, duration = out.pts * out.time_base, (out.duration or 0) * out.time_base
        out.dts = math.floor(self._latest / tick) + (0 if self._may_meet else 1)
        out.pts = max(round(pts / tick), out.dts)
        out.duration, out.time_base = round(duration / tick), tick

    def _converted(self, packet: av.Packet[Any]) -> list[av.Packet[Any]]:
        """Return a subtitle in the other text format; an empty one (a gap in MP4) has no line."""
        subtitle = self.template.codec_context.decode2(packet)
        if subtitle is None or not len(subtitle):
            return []
        if any(_DRAWING.search(line.ass) for line in subtitle):
            # ASS also draws shapes; their coordinates would be shown as words.
            return []
        start, duration, base = packet.pts or 0, packet.duration or 0, packet.time_base
        if self.choice.encoder != "mov_text":
            return [self._encoded_text(subtitle, start, duration, base)]
        shown = self._shown_until(max(start, self._shown_from) if self._lines else start, base)
        if not duration:
            # It stays until the next one, as far as anybody knows.
            return [*shown, self._encoded_text(subtitle, start, 0, base)]
        self._lines += [(start + duration, line.ass) for line in subtitle]
        return shown

    def _shown_until(self, time: int | None, base: Fraction) -> list[av.Packet[Any]]:
        """Return what is on screen before ``time``, a packet for every change; None: to the end.

        MOV text shows one packet at a time: where lines overlap, each packet holds all that are on
        screen.
        """
        packets = []
        while self._lines:
            start, lines = self._shown_from, [line for _, line in self._lines]
            ends = [end for end, _ in self._lines] + ([] if time is None else [time])
            self._shown_from = min(ends)
            if self._shown_from > start:
                text = SubtitleSet.create(_one_line(lines), 0, self._shown_from - start)
                packets.append(self._encoded_text(text, start, self._shown_from - start, base))
            self._lines = [each for each in self._lines if each[0] > self._shown_from]
            if self._shown_from == time:
                break
        self._shown_from = time or 0
        return packets

    def _encoded_text(
        self, subtitle: SubtitleSet, start: int, duration: int, base: Fraction
    ) -> av.Packet[Any]:
        out: av.Packet[Any] = self.stream.codec_context.encode_subtitle(subtitle)
        out.time_base = base
        out.pts = out.dts = start
        out.duration = duration
        return out

    def _transcoded(
        self, packet: av.Packet[Any], start: Fraction | None, end: Fraction | None, shift: Fraction
    ) -> Iterator[av.Packet[Any]]:
        frames: list[Any] = []
        try:
            frames = list(packet.decode())
        except av.error.FFmpegError as error:
            # A broken packet costs its own sound, as in every player.
            time = None if packet.pts is None else packet.pts * packet.time_base
            inside = (start is None or time is None or time >= start) and (
                end is None or time is None or time < end
            )
            if packet.size and inside:
                due = None if time is None else time - shift
                trouble = f"cannot be decoded ({reason(error)})"
                self._losses.packet(self.choice, self._packets, due, trouble)
        self._packets += packet.size > 0
        for frame in frames:
            # What a decoder still held at the end may have no time.
            time = self._due if frame.pts is None else frame.pts * frame.time_base
            self._due = time + Fraction(frame.samples, frame.sample_rate)
            if (start is None or time >= start) and (end is None or time < end):
                frame.pts = round((time - shift) / frame.time_base)
                yield from self._encoded(self._resampler.resampled(frame))
        if not packet.size:
            yield from self._encoded([*self._resampler.resampled(None), None])

    def _encoded(self, frames: Sequence[Any]) -> Iterator[av.Packet[Any]]:
        for frame in frames:
            for packet in self.stream.encode(frame):
                if packet.dts is not None:
                    if self._last is not None and packet.dts <= self._last:
                        # Times that step back in the source; muxers refuse them.
                        packet.dts = self._last + 1
                        packet.pts = max(packet.pts or 0, packet.dts)
                    self._last = packet.dts
                yield packet


def _without_header(packet: av.Packet[Any], template: Any) -> av.Packet[Any]:
    """Return ``packet`` without another header of its stream than that of ``template``.

    Joined FLV has one for each part, and FFmpeg's writer of MKV puts it where it does not fit.
    """
    context = template.codec_context
    if context is None or not context.extradata or not packet.has_sidedata("new_extradata"):
        return packet
    bare: av.Packet[Any] = av.Packet(bytes(packet))
    bare.pts, bare.dts, bare.duration = packet.pts, packet.dts, packet.duration
    bare.time_base, bare.is_keyframe = packet.time_base, packet.is_keyframe
    return bare


def _carried_packets(
    plan: StreamPlan,
    joined: _JoinedVideo,
    source: av.container.InputContainer,
    ways: dict[int, _Way],
    losses: _Losses,
) -> Iterator[av.Packet[Any]]:
    """Yield the packets of the other streams, in the source's order."""
    if not ways:
        return
    start = joined.source_start if plan.from_first_frame else None
    end = joined.source_end if plan.to_last_frame else None
    # Of all streams, so that the clock comes out as it did for the pictures.
    packets = JobClock(source.format.name).steady(demux(source, list(source.streams)))
    latest = Fraction(0)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            if end is None or latest < end:
                losses.rest(reason(error))
            for each in ways.values():
                flush: av.Packet[Any] = av.Packet()
                flush.stream = each.template
                yield from each.take(flush, start, end, joined.shift)
            return
        if packet is None:
            return
        if packet.dts is not None:
            latest = max(latest, packet.dts * packet.time_base)
        # An empty packet at the end has a stream, but no index of its own.
        way = ways.get(packet.stream.index)
        if way is not None:
            heard = way.template.type in ("audio", "video")
            since = joined.shift if start is None and not heard else start
            yield from way.take(packet, since, end, joined.shift)


def _needs_start_codes(muxer: str, template: Any) -> bool:
    return muxer == "avi" and template.codec_context.name in ("h264", "hevc")


def _with_start_codes(packets: Iterator[av.Packet[Any]], template: Any) -> Iterator[av.Packet[Any]]:
    """Turn H.264 and HEVC of MP4 into the form with start codes (ITU-T H.264, annex B)."""
    filters = av.BitStreamFilterContext(f"{template.codec_context.name}_mp4toannexb", template)
    for packet in packets:
        base = packet.time_base
        for converted in filters.filter(packet):
            converted.time_base = base
            yield converted


def _ascending(packet: av.Packet[Any], base: Fraction | None, last: int | None) -> int:
    """Keep a packet behind the one at ``last`` in ticks of ``base``; return its own tick.

    AVI's clock for ADPCM is coarser than its packets, and it times them by their bytes anyway.
    """
    base = base or packet.time_base
    ticks = math.floor((packet.dts or 0) * packet.time_base / base + Fraction(1, 2))
    if last is None or ticks > last:
        return ticks
    packet.duration = math.ceil((packet.duration or 0) * packet.time_base / base)
    packet.pts = packet.dts = last + 1
    packet.time_base = base
    return last + 1


def _of_stream(packets: Iterator[av.Packet[Any]], stream: Any) -> Iterator[av.Packet[Any]]:
    for packet in packets:
        packet.stream = stream
        yield packet


def _by_time(
    video: Iterator[av.Packet[Any]], others: Iterator[av.Packet[Any]]
) -> Iterator[av.Packet[Any]]:
    """Merge by decoding time, each in its own order."""
    ours, theirs = next(video, None), next(others, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and _time(ours) <= _time(theirs)):
            assert ours is not None
            yield ours
            ours = next(video, None)
        else:
            yield theirs
            theirs = next(others, None)


def _time(packet: av.Packet[Any]) -> float:
    ticks = packet.pts if packet.dts is None else packet.dts
    return float((ticks or 0) * packet.time_base)


# Checking


def _check(plan: StreamPlan, joined: _JoinedVideo, sent: Counter[int], partial: Path) -> Fraction:
    """Read the written file packet by packet. Raises OutputError unless all arrived, on time.

    Returns by how many seconds everything is later because the container cannot start below zero.
    """
    times: list[int] = []
    found: Counter[int] = Counter()
    with open_container(partial) as container, _as_output_error(plan.output):
        position = next(i for i, choice in enumerate(plan.carried) if choice.way == "video")
        stream = container.streams[position]
        tick = stream.time_base or Fraction(1, av.time_base)
        timed = plan.format != "avi"
        for packet in demux(container, list(container.streams)):
            if not packet.size:
                continue
            found[packet.stream_index] += 1
            if packet.stream_index != stream.index:
                continue
            if packet.is_discard:
                raise _not_whole(plan, "one of its frames is marked to be left out")
            stamp = packet.pts if packet.pts is not None else packet.dts
            times.append(stamp or 0)
        kinds = {s.index: s.type for s in container.streams}
    if len(times) != len(joined.times):
        raise _not_whole(plan, f"it holds {len(times)} frames, {len(joined.times)} were sent")
    for index, count in sent.items():
        if kinds.get(index) == "audio" and found[index] != count:
            raise _not_whole(
                plan, f"stream {index} holds {found[index]} audio packets, {count} were sent"
            )
    if not timed:
        return Fraction(0)
    times.sort()
    moved = times[0] * tick - joined.times[0] * joined.time_base
    if abs(moved) <= tick or _container(plan.output).negative_start:
        moved = Fraction(0)
    # In whole numbers of a common unit: there may be a million frames.
    unit = Fraction(1, math.lcm(*(x.denominator for x in (tick, joined.time_base, moved))))
    ours, theirs, later = int(tick / unit), int(joined.time_base / unit), int(moved / unit)
    for number, (time, sent_time) in enumerate(zip(times, joined.times, strict=True)):
        wanted = sent_time * theirs + later
        if abs(time * ours - wanted) > ours:
            there, due = float(time * tick), float(wanted * unit)
            raise _not_whole(plan, f"frame {number} is at {there:.6f} s, not {due:.6f} s")
    return moved


def _not_whole(plan: StreamPlan, found: str) -> OutputError:
    return OutputError(
        f"{printable(plan.output)} was written but did not come out whole: {found}; "
        "choose another --codec or container, such as .mkv"
    )


OF_THE_DISK = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT,
        errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EIO,
    }
)  # fmt: skip
"""What the system says; FFmpeg also uses such numbers (EPERM, EINVAL) for opinions of its own."""


def _is_of_the_packet(error: av.error.FFmpegError) -> bool:
    """Say whether a writer refuses what it was given, and not the disk or the memory."""
    return error.errno not in OF_THE_DISK | {errno.ENOMEM}


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    """Turn what FFmpeg or the system says while writing ``path`` into an OutputError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise output_error(path, error) from error
        raise OutputError(
            f"cannot write {printable(path)}: {error}; choose another --codec or container"
        ) from error


@contextlib.contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    """Turn what FFmpeg says while reading ``path`` into an InputError."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise input_error(path, error) from error
