"""Try what a container holds: short files are written to memory and read back."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import av.container
import av.error
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ...frames import Size
from ...machine import own_scheduling
from ..demux.demuxing import Packet, demux, reason
from ..demux.stream_info import Fields, MediaInfo
from .containers import Container
from .muxing import (
    OutputStream,
    add_copied_stream,
    add_stream,
    assigned,
    is_packet_error,
    needs_start_codes,
    set_frame_rate,
    with_start_codes,
)
from .sound import Resampler, first_sound

_PACKETS_TRIED = 12
"""Packets of each stream with which a container is tried."""
_MOST_BYTES_READ = 2**24
_MOST_PACKETS_READ = 3000
"""The most that is read of a source for them; a stream that begins later is tried by its header."""


@dataclass(frozen=True, kw_only=True)
class TranslatedVideo:
    """The translated video as its encoder will write it."""

    encoder: str
    pix_fmt: str
    size: Size
    """Height and width."""
    encoder_options: tuple[tuple[str, str], ...] = ()
    """FFmpeg's."""
    stretch_format: str = "mp4"
    """The muxer of its stretches."""
    sample_aspect_ratio: Fraction | None = None
    """None keeps what its encoder wrote."""
    fields: Fields | None = None
    """Which field is first, where its frames are interlaced."""
    alpha: bool = False
    """It is transparent in places."""
    losses: tuple[str, ...] = ()
    """What the encoder cannot keep of the source's video; each completes ``goes without …``."""


class _SampleVideo:
    """One frame from the encoder of the translated video, in a file of its own."""

    def __init__(self, video: TranslatedVideo) -> None:
        self._file: bytes | None = None
        self._encoder, self._format = video.encoder, video.stretch_format
        height, width = video.size
        self._frame = VideoFrame(width, height, video.pix_fmt)
        for plane in self._frame.planes:
            plane.update(bytes(plane.buffer_size))
        # The quality of the frame does not matter, and look-ahead is most of the time it takes.
        self._options = {
            "libx264": {"preset": "ultrafast"},
            "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
        }.get(video.encoder, dict(video.encoder_options))

    def open(self) -> av.container.InputContainer:
        """Return the file, open for reading. Raises FFmpegError, ValueError."""
        if self._file is None:
            self._file = self._encoded()
        return av.open(io.BytesIO(self._file), "r")

    def decoded_formats(self) -> set[str]:
        """Return the size and pixel format (`_size_and_format`) to which the frame decodes."""
        with self.open() as stretch:
            return {_size_and_format(frame) for frame in stretch.decode(stretch.streams.video[0])}

    def _encoded(self) -> bytes:
        buffer = io.BytesIO()
        with own_scheduling(), av.open(buffer, "w", format=self._format) as output:
            stream = output.add_stream(self._encoder, rate=25)
            assert isinstance(stream, VideoStream)
            frame = self._frame
            stream.width, stream.height = frame.width, frame.height
            stream.pix_fmt = frame.format.name
            stream.codec_context.time_base = Fraction(1, 25)
            stream.options = {**self._options}
            frame.pts, frame.time_base = 0, Fraction(1, 25)
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                # x265 4.2 leaves the DTS unset.
                packet.dts = packet.pts
                output.mux(packet)
        return buffer.getvalue()


def _size_and_format(frame: VideoFrame) -> str:
    """Return size and pixel format without its bits: ProRes 4444 has 10 in MKV and 12 in MOV."""
    name = re.sub(r"(p|gray)\d+[lb]e$", r"\1", frame.format.name)
    return f"{frame.width}×{frame.height} {name}"


class Trial:
    """Short files written to memory and read back, to learn what a container takes.

    They hold the first packets of every stream: some muxers accept a header and then refuse its
    first packet, fail at the end of the file, or write streams that no demuxer finds.
    """

    def __init__(self, container: Container, info: MediaInfo, video: TranslatedVideo) -> None:
        self._container = container
        self._info = info
        self._video = _SampleVideo(video)
        self._audio_frames: dict[int, list[AudioFrame]] = {}
        self._packets: dict[int, list[Packet]] | None = None

    def audio_frames(self, index: int) -> list[AudioFrame]:
        """Return the first frames of an audio stream; none where no packet can be decoded."""
        if index not in self._audio_frames:
            self._audio_frames[index] = first_sound(self._info.path, index)
        return self._audio_frames[index]

    def failure(
        self, source: av.container.InputContainer | None, streams: Sequence[OutputStream]
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
                sent = self._write(output, source, streams)
                output.close()
                content = buffer.getvalue()
            finally:
                # With the buffer closed, PyAV writes no trailer; that would fail a second time.
                buffer.close()
                output.close()
            return self._difference(content, streams, sent)
        except (av.error.FFmpegError, ValueError, KeyError) as error:
            return reason(error)

    def _write(
        self,
        output: av.container.OutputContainer,
        source: av.container.InputContainer | None,
        streams: Sequence[OutputStream],
    ) -> Counter[int]:
        """Write the first packets of every stream; return how many of each."""
        sent: Counter[int] = Counter()
        with self._video.open() as stretch:
            outputs = [self._add(output, stretch, source, planned) for planned in streams]
            output.start_encoding()
            for planned, stream in zip(streams, outputs, strict=True):
                packets = self._packets_for(planned, stream, stretch, source)
                sent[stream.index] = _mux(output, packets, skip_damaged=planned.action == "copy")
        return sent

    def _add(
        self,
        output: av.container.OutputContainer,
        stretch: av.container.InputContainer,
        source: av.container.InputContainer | None,
        planned: OutputStream,
    ) -> Stream:
        if planned.action != "video":
            assert source is not None
            return add_stream(output, source.streams[planned.index], planned, b"\0")
        template = stretch.streams.video[0]
        stream = add_copied_stream(output, template)
        if needs_start_codes(self._container.muxer, template):
            stream.codec_context.extradata = None
        set_frame_rate(stream, Fraction(25))
        return stream

    def _packets_for(
        self,
        planned: OutputStream,
        stream: Stream,
        stretch: av.container.InputContainer,
        source: av.container.InputContainer | None,
    ) -> Iterator[Packet]:
        """Return the packets with which ``stream`` of the output is tried."""
        if planned.action == "video":
            template = stretch.streams.video[0]
            packets: Iterator[Packet] = (each for each in demux(stretch, [template]) if each.size)
            if needs_start_codes(self._container.muxer, template):
                packets = with_start_codes(packets, template)
            return assigned(packets, stream)
        if planned.action == "transcode":
            return self._encoded_audio(planned, stream)
        if planned.action == "copy":
            assert source is not None
            return assigned(iter(self._first_packets(source, planned.index)), stream)
        return iter(())

    def _encoded_audio(self, planned: OutputStream, stream: Stream) -> Iterator[Packet]:
        assert isinstance(stream, AudioStream)
        resampler = Resampler(stream.codec_context)
        samples = 0
        for frame in (*self.audio_frames(planned.index), None):
            for resampled in resampler.resample(frame):
                # Times count from 0, since the first ones of the source may lie below it.
                resampled.pts, resampled.time_base = samples, Fraction(1, resampled.sample_rate)
                samples += resampled.samples
                yield from stream.encode(resampled)
        yield from stream.encode(None)

    def _first_packets(self, source: av.container.InputContainer, index: int) -> list[Packet]:
        """Return copies of a stream's first packets, whose times count from 0."""
        if self._packets is None:
            self._packets = _first_packets_by_stream(source)
        copies = []
        origin: int | None = None
        last: int | None = None
        for packet in self._packets.get(index, ()):
            copy = av.Packet(bytes(packet))
            dts = packet.dts if packet.dts is not None else packet.pts
            if dts is None:
                dts = 0 if last is None else last + 1
            origin = dts if origin is None else origin
            delay = 0 if packet.pts is None else max(0, packet.pts - dts)
            dts = dts - origin if last is None else max(dts - origin, last + 1)
            copy.dts, copy.pts, copy.time_base = dts, dts + delay, packet.time_base
            # The MP4 muxer would end the stream before a last packet without duration.
            copy.duration = packet.duration or (0 if last is None else dts - last)
            last = dts
            copy.is_keyframe = packet.is_keyframe
            copies.append(copy)
        return copies

    def _difference(
        self, content: bytes, streams: Sequence[OutputStream], sent: Counter[int]
    ) -> str | None:
        """Return how the streams read from ``content`` differ from those written, or None."""
        video = next(n for n, planned in enumerate(streams) if planned.action == "video")
        received: Counter[int] = Counter()
        formats: set[str] = set()
        with av.open(
            io.BytesIO(content),
            "r",
            format=self._container.muxer,
            metadata_errors="surrogateescape",
        ) as container:
            kinds = [stream.type for stream in container.streams]
            for packet in demux(container, list(container.streams)):
                received[packet.stream.index] += packet.size > 0
                if packet.stream.index == video and packet.stream.type == "video":
                    formats |= {_size_and_format(frame) for frame in _video_frames(packet)}
        for number, planned in enumerate(streams):
            if planned.action not in ("video", "copy", "transcode") or not sent[number]:
                continue
            if planned.kind not in ("video", "audio"):
                continue
            if number >= len(kinds) or kinds[number] != planned.kind:
                return f"no {planned.kind} can be read back"
            if received[number] != sent[number]:
                return f"of {sent[number]} packets {received[number]} can be read back"
        if not formats:
            return "the video cannot be decoded"
        if formats != self._video.decoded_formats():
            return f"it would be read as {', '.join(sorted(formats))}"
        return None


def _video_frames(packet: Packet) -> Iterator[VideoFrame]:
    for frame in packet.decode():
        assert isinstance(frame, VideoFrame)
        yield frame


def _mux(
    output: av.container.OutputContainer, packets: Iterator[Packet], *, skip_damaged: bool
) -> int:
    """Write ``packets`` and return how many there were, empty ones not counted.

    With ``skip_damaged`` one that the muxer refuses is left out, since it may be damaged; raises
    FFmpegError where none is left.
    """
    sent = 0
    refusal: Exception | None = None
    for packet in packets:
        try:
            output.mux_one(packet)
        except av.error.FFmpegError as error:
            if not skip_damaged or not is_packet_error(error):
                raise
            refusal = error
        else:
            sent += packet.size > 0
    if refusal is not None and not sent:
        raise refusal
    return sent


def _first_packets_by_stream(source: av.container.InputContainer) -> dict[int, list[Packet]]:
    """Return the first packets of each stream of the source, by its index."""
    first: dict[int, list[Packet]] = {}
    size = 0
    packets = demux(source, list(source.streams))
    # The translation reports what cannot be read.
    with contextlib.suppress(av.error.FFmpegError):
        for number, packet in enumerate(packets):
            if not packet.size:
                continue
            size += packet.size
            of_stream = first.setdefault(packet.stream_index, [])
            gap = packet.stream.type == "subtitle" and bytes(packet)[:2] == b"\0\0"
            if len(of_stream) < _PACKETS_TRIED and not gap:
                of_stream.append(packet)
            enough = len(first) == len(source.streams) and all(
                len(each) >= _PACKETS_TRIED for each in first.values()
            )
            if enough or size > _MOST_BYTES_READ or number > _MOST_PACKETS_READ:
                break
    return first
