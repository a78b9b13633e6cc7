"""Decide for every stream of a source how it gets into the output, before the first frame.

`containers` gives the container of the output's name, `trial` tries whether it holds a stream, and
`assemble` carries the plan out.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error

from ...errors import InputError, OutputError
from ...options import TranslateOptions
from ...wording import Note, printable
from ..demux.demuxing import open_container
from ..demux.stream_info import Chapter, MediaInfo, StreamInfo
from ..demux.timestamps import BROADCAST_FORMATS
from .containers import CONTAINERS, Container, container_for
from .muxing import MUXER_TAGS, OutputStream, without_tags
from .sound import plan_sound
from .trial import TranslatedVideo, Trial


@dataclass(frozen=True)
class StreamPlan:
    """What the output holds beside the translated frames, and how it gets there."""

    source: Path
    output: Path
    format: str
    """FFmpeg's name of the muxer."""
    video: StreamInfo
    """The source's stream that is translated."""
    translated: TranslatedVideo
    streams: tuple[OutputStream, ...]
    """All streams of the output, in their order."""
    metadata: dict[str, str]
    chapters: tuple[Chapter, ...]
    from_first_frame: bool
    """Everything starts with the first translated frame, which moves to 0 (``--ss``)."""
    beginning: Fraction
    """Seconds of the source that become 0 where nothing is cut: where its first stream begins."""
    to_last_frame: bool
    """Everything ends with the last translated frame (``--to``, ``--frames``)."""
    notes: tuple[Note, ...]
    """Notes on what is left out or changed."""
    undecodable: tuple[Note, ...] = ()
    """One note for each audio stream that was to be encoded and cannot be decoded."""
    stops_at_damage: bool = False
    """A damaged packet is an error (``--on-error fail``)."""


def plan_streams(
    info: MediaInfo,
    video: StreamInfo,
    output: Path,
    options: TranslateOptions,
    translated: TranslatedVideo,
) -> StreamPlan:
    """Decide for every stream of ``info`` how it gets into ``output``, before the first frame.

    ``video`` is the stream of ``info`` that becomes ``translated``. Short files are written to
    memory as planned and read back; a stream that makes one fail is left out with a note. Raises
    OutputError where the container cannot hold the translated video, or, with ``options.strict``,
    where anything is left out, and InputError where no audio of a stream to encode can be decoded
    and ``options`` do not allow that.
    """
    container = container_for(output)
    trial = Trial(container, info, translated)
    _check_translated_video(info, video, output, translated, trial)
    selection = _StreamSelection(info, video, output, options, trial)
    selection.select()
    included = [info.streams[each.index] for each in selection.streams]
    beginning = _beginning(info, included, container)
    left_out = [
        *selection.left_out,
        *_late_audio(video, included, container, options, beginning),
        *_captions_and_chapters(info, video, container.label, chapters=container.chapters),
    ]
    if selection.undecodable and (options.strict or options.on_error == "fail"):
        raise InputError("; ".join(map(str, selection.undecodable)))
    lost = (*translated.losses, *left_out)
    warnings = [f"{printable(output)} goes without {what}" for what in lost]
    if warnings and options.strict:
        # Another container does not keep what the encoder loses.
        remedy = ", or choose .mkv" if left_out else ""
        raise OutputError(f"{'; '.join(warnings)}; leave out --strict to accept that{remedy}")
    return StreamPlan(
        source=info.path,
        output=output,
        format=container.muxer,
        video=video,
        translated=translated,
        streams=tuple(selection.streams),
        metadata=without_tags(info.metadata, MUXER_TAGS),
        chapters=info.chapters if container.chapters else (),
        from_first_frame=options.ss is not None,
        beginning=beginning,
        to_last_frame=options.to is not None or options.frames is not None,
        notes=(
            *(Note(None, warning) for warning in warnings),
            *selection.notes,
            *selection.undecodable,
        ),
        undecodable=tuple(selection.undecodable),
        stops_at_damage=options.on_error == "fail",
    )


def left_out_of_frames(
    info: MediaInfo, video: StreamInfo, options: TranslateOptions, held_by: str
) -> list[str]:
    """Return what an output loses of ``info`` that holds the frames of ``video`` alone.

    ``held_by`` is the output in messages, ``y4m`` or ``images``. Each text completes ``goes without
    …``.
    """
    return [
        *(
            f"stream {stream.index} ({stream.label}): {held_by} cannot hold it"
            for stream in info.streams
            if stream.index != video.index and not _is_unwanted(info, stream, options)
        ),
        *_captions_and_chapters(info, video, held_by, chapters=False),
    ]


def _check_translated_video(
    info: MediaInfo, video: StreamInfo, output: Path, translated: TranslatedVideo, trial: Trial
) -> None:
    """Raise OutputError where the container cannot hold the translated video."""
    container = container_for(output)
    failure = trial.failure(None, [OutputStream(video.index, "video", "video")])
    codec = av.Codec(translated.encoder, "w").canonical_name
    if failure is None and container.codecs is not None and codec not in container.codecs:
        failure = "it would be data that no player recognises"
    if failure:
        raise OutputError(
            f"cannot write {printable(output)}: {container.label} cannot hold "
            f"{translated.encoder} video in {translated.pix_fmt} ({failure}); choose another "
            f"--codec or another extension than {output.suffix}{_that_hold(translated.encoder)}"
        )
    if container.muxer == "avi" and video.constant_rate is False:
        raise OutputError(
            f"cannot write {printable(output)}: AVI holds only a constant frame rate, and "
            f"{printable(info.path)} has a variable one; choose .mkv or .mp4"
        )


def _that_hold(encoder: str) -> str:
    """Return the extensions of the containers that hold an encoder's codec, for a message."""
    codec = av.Codec(encoder, "w").canonical_name
    labels: dict[str, str] = {}
    for suffix, container in CONTAINERS.items():
        is_held = container.codecs is None or codec in container.codecs
        with contextlib.suppress(ValueError, av.error.FFmpegError):
            if is_held and container.label not in labels:
                with av.open(io.BytesIO(), "w", format=container.muxer) as trial:
                    trial.add_stream(encoder)
                    labels[container.label] = suffix
    words = list(labels.values())
    return f", such as {words[0]}" if len(words) == 1 else f": {', '.join(words)}" if words else ""


class _StreamSelection:
    """The choice of the output's streams, and of the source's streams that are left out."""

    def __init__(
        self,
        info: MediaInfo,
        video: StreamInfo,
        output: Path,
        options: TranslateOptions,
        trial: Trial,
    ) -> None:
        self._info = info
        self._output = output
        self._options = options
        self._trial = trial
        self._container = container_for(output)
        self._translated = OutputStream(video.index, "video", "video")
        self.streams: list[OutputStream] = []
        self.left_out: list[str] = []
        """Streams that the container cannot hold, and why; each completes ``goes without …``."""
        self.undecodable: list[Note] = []
        """Audio streams of which nothing can be decoded."""
        self.notes: list[Note] = []
        """What changes in a stream that is kept."""

    def select(self) -> None:
        """Choose for every stream what is done with it. Raises OutputError."""
        with contextlib.ExitStack() as stack:
            source = None
            if len(self._info.streams) > 1:
                source = stack.enter_context(open_container(self._info.path))
            for stream in self._info.streams:
                if stream.index == self._translated.index:
                    self.streams.append(self._translated)
                elif source is not None and not _is_unwanted(self._info, stream, self._options):
                    self._select(stream, source)
            # In the output covers and attachments come last, whatever their order here.
            self.streams.sort(key=lambda each: _position(self._info.streams[each.index]))
            # Each of them alone is accepted; a container may still refuse them together.
            if failure := self._trial.failure(source, self.streams):
                raise OutputError(
                    f"cannot write {printable(self._output)}: {self._container.label} cannot hold "
                    f"these streams of {printable(self._info.path)} together ({failure}); "
                    "choose .mkv"
                )

    def _select(self, stream: StreamInfo, source: av.container.InputContainer) -> None:
        """Choose the first way of keeping ``stream`` that the container takes, if there is one."""
        candidates = _candidates(stream, self._container, self._options)
        transcoded = any(each.action == "transcode" for each in candidates)
        if transcoded and not self._trial.audio_frames(stream.index):
            text = (
                f"stream {stream.index} ({stream.label}): nothing of it can be decoded, so its "
                "sound is lost; repair the file, or try --audio copy"
            )
            self.undecodable.append(Note(self._info.path, text))
            return
        failure: str | None = None
        for candidate in candidates:
            failure = self._trial.failure(source, [self._translated, candidate])
            if failure is None:
                self.streams.append(candidate)
                if transcoded:
                    self._note_downmix(stream, candidate, source)
                return
        if transcoded:
            raise OutputError(
                f"cannot write {printable(self._output)}: --audio {self._options.audio} does not "
                f"work for stream {stream.index} ({stream.label}) in {self._container.label} "
                f"({failure}); choose another encoder such as aac or libopus, or --audio copy or "
                "none"
            )
        codec = "libopus" if self._container.muxer == "webm" else "aac"
        remedy = f"; --audio {codec} keeps its sound" if stream.kind == "audio" else ""
        self.left_out.append(
            f"stream {stream.index} ({stream.label}): "
            f"{self._container.label} cannot hold it{remedy}"
        )

    def _note_downmix(
        self, stream: StreamInfo, planned: OutputStream, source: av.container.InputContainer
    ) -> None:
        """Add a note where the encoder takes fewer channels than the stream has."""
        plan = plan_sound(str(planned.encoder), source.streams[stream.index].codec_context)
        if plan.mixed_down:
            text = (
                f"stream {stream.index} ({stream.label}): {plan.encoder} does not take its "
                f"{stream.channels} channels, so they are mixed down to {plan.layout}"
            )
            self.notes.append(Note(self._info.path, text))


def _position(stream: StreamInfo) -> int:
    """Return a sort key: first tracks, then covers, then attachments."""
    return 2 if stream.kind == "attachment" else int(stream.attached_picture)


def _is_unwanted(info: MediaInfo, stream: StreamInfo, options: TranslateOptions) -> bool:
    """Return whether a stream is left out without a note."""
    if stream.kind == "audio":
        return options.audio == "none"
    return _is_rewritten_by_muxer(info, stream)


def _is_rewritten_by_muxer(info: MediaInfo, stream: StreamInfo) -> bool:
    """Return whether a data track is one that MP4 muxers write anew: chapter titles, time code."""
    chapter_text = stream.codec == "bin_data" and bool(info.chapters)
    return (
        stream.kind == "data"
        and info.format.startswith("mov")
        and (chapter_text or "timecode" in stream.metadata)
    )


def _candidates(
    stream: StreamInfo, container: Container, options: TranslateOptions
) -> tuple[OutputStream, ...]:
    """Return the ways in which ``stream`` may get into the output, best first."""
    copied = OutputStream(stream.index, stream.kind, "copy", label=stream.label)
    if stream.attached_picture:
        if container.attachments:
            return (replace(copied, action="attach"),)
        return (copied,) if container.cover else ()
    if stream.kind == "attachment":
        return (copied,) if container.attachments else ()
    if stream.kind == "audio" and options.audio != "copy":
        return (replace(copied, action="transcode", encoder=options.audio),)
    if container.codecs is not None and stream.codec not in container.codecs:
        return ()
    if container.muxer == "avi" and stream.kind == "video" and stream.codec in ("h264", "hevc"):
        return ()
    if stream.kind == "subtitle" and stream.codec in _TEXT_SUBTITLES:
        encoders = [each for each in _TEXT_SUBTITLE_ENCODERS if each != stream.codec]
        return copied, *(replace(copied, action="convert", encoder=each) for each in encoders)
    return (copied,)


_TEXT_SUBTITLES = frozenset({"ass", "mov_text", "ssa", "subrip", "text", "webvtt"})
"""Subtitles that are text, and are converted to one another where a container requires it."""
_TEXT_SUBTITLE_ENCODERS = ("mov_text", "subrip", "webvtt")
"""The formats that MP4, MKV and WebM hold, in the order in which they are tried."""


def _beginning(info: MediaInfo, included: Sequence[StreamInfo], container: Container) -> Fraction:
    """Return when the first audio or video stream of those ``included`` begins, in seconds."""
    start = replace(info, streams=tuple(included)).start or Fraction(0)
    if info.format in BROADCAST_FORMATS:
        # From MPEG-TS to MPEG-TS the timestamps stay as they are, unless they lie below zero.
        return min(start, Fraction(0)) if info.format == container.muxer else start
    # In other containers a little audio below zero is there for its decoder to start up (priming).
    return Fraction(0) if -_LONGEST_PRIMING < start < 0 else start


_LONGEST_PRIMING = Fraction(1, 2)
"""Seconds of audio below zero; AAC has 2112 samples of 8 kHz at most, Opus 80 ms."""


def _late_audio(
    video: StreamInfo,
    included: Sequence[StreamInfo],
    container: Container,
    options: TranslateOptions,
    beginning: Fraction,
) -> list[str]:
    """Return the audio streams whose late start AVI cannot hold."""
    if container.muxer != "avi":
        return []
    zero = beginning
    if options.ss is not None:
        zero = (video.start_pts or 0) * video.time_base + Fraction(options.ss)
    late = []
    for stream in included:
        delay = (stream.start_pts or 0) * stream.time_base - zero
        if stream.kind == "audio" and delay > _NOTICEABLE_DELAY:
            late.append(
                f"the late start of stream {stream.index} ({stream.label}): AVI begins all sound "
                f"at once, here {float(delay):.3f} s too early"
            )
    return late


_NOTICEABLE_DELAY = Fraction(1, 20)
"""Seconds between audio and video from which on people notice it (ITU-R BT.1359: 0.045)."""


def _captions_and_chapters(
    info: MediaInfo, video: StreamInfo, label: str, *, chapters: bool
) -> list[str]:
    """Return what is lost of the source's captions and chapters.

    ``label`` is the name of the output's format, which holds ``chapters`` or does not.
    """
    left_out = []
    if video.closed_captions:
        left_out.append(
            f"the closed captions inside stream {video.index} ({video.label}): "
            "they are part of the packets that are encoded anew"
        )
    if info.chapters and not chapters:
        left_out.append(f"{len(info.chapters)} chapters: {label} cannot hold them")
    return left_out
