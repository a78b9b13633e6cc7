"""Decide for every stream of a source how it gets into the output, before the first frame."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import av.container
import av.error
import av.stream

from ..errors import InputError, OutputError
from ..frames import Size
from ..options import TranslateOptions
from ..wording import Note, printable
from .clocks import BROADCAST
from .containers import Container, container_for
from .demuxing import open_container
from .muxing import MUXER_TAGS, Carried, without_tags
from .sound import plan_sound
from .stream_info import Fields, MediaInfo, StreamInfo
from .trial import SampleVideo, Trial


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
    notes: tuple[Note, ...]
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
    container = container_for(output)
    trial = Trial(
        container, info, SampleVideo(encoder, pix_fmt, size, encoder_options, stretch_format)
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
    mixed: list[Note] = []
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
    notes = tuple(Note(None, f"{printable(output)} goes without {what}") for what in lost)
    if notes and options.strict:
        # Another container helps against none of what the encoder loses.
        remedy = ", or choose .mkv" if len(notes) > given else ""
        raise OutputError(
            f"{'; '.join(map(str, notes))}; leave out --strict to accept that{remedy}"
        )
    notes += (*mixed, *(Note(None, why) for why in undecodable))
    return StreamPlan(
        source=info.path,
        output=output,
        format=container.muxer,
        video=video,
        carried=tuple(carried),
        metadata=without_tags(info.metadata, MUXER_TAGS),
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


def _beginning(info: MediaInfo, kept: Sequence[StreamInfo], container: Container) -> Fraction:
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
    stream: StreamInfo, container: Container, options: TranslateOptions
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
    stream: StreamInfo, container: Container, output: Path, encoder: str, why: str
) -> None:
    """Raise OutputError for an ``--audio`` encoder that does not open or does not fit."""
    raise OutputError(
        f"cannot write {printable(output)}: --audio {encoder} does not work for stream "
        f"{stream.index} ({stream.label}) in {container.label} ({why}); choose another encoder "
        "such as aac or libopus, or --audio copy or none"
    )


def _mixed_down(
    source: av.container.InputContainer, stream: StreamInfo, choice: Carried
) -> list[Note]:
    """Return a note where the encoder takes fewer channels than there are."""
    made = plan_sound(str(choice.encoder), source.streams[stream.index].codec_context)
    if not made.mixed_down:
        return []
    return [
        Note(
            None,
            f"stream {stream.index} ({stream.label}): {made.encoder} does not take its "
            f"{stream.channels} channels, so they are mixed down to {made.layout}",
        )
    ]
