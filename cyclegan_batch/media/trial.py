"""Try what a container holds: short files are written to memory and read back."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import av.container
import av.error
import av.stream

from ..frames import Size
from ..machine import own_scheduling
from .containers import Container
from .demuxing import demux, reason
from .muxing import (
    Carried,
    add_copied_stream,
    add_stream,
    assigned,
    is_refused_packet,
    needs_start_codes,
    with_start_codes,
)
from .sound import Resampler, first_sound
from .stream_info import MediaInfo

_SAMPLED = 12
"""Packets of a stream with which a container is tried."""

_SAMPLE_BYTES = 2**24

_SAMPLE_PACKETS = 3000
"""How much of a file is read for them; a stream that begins later is tried by its header."""


class SampleVideo:
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


class Trial:
    """Short files written to memory and read back, to learn what a container takes.

    They hold the first packets of every stream: many a header is accepted whose first packet is
    not, or that cannot be ended, or whose streams nobody finds again.
    """

    def __init__(self, container: Container, info: MediaInfo, video: SampleVideo) -> None:
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
                    stream: Any = add_copied_stream(output, template)
                    if needs_start_codes(muxer, template):
                        stream.codec_context.extradata = None
                    if stream.codec_context is not None:
                        stream.codec_context.framerate = Fraction(25)
                else:
                    assert source is not None
                    stream = add_stream(output, source.streams[choice.index], choice, b"\0")
                streams.append(stream)
            output.start_encoding()
            for choice, stream in zip(carried, streams, strict=True):
                if choice.way == "video":
                    pictures: Iterator[av.Packet[Any]] = (
                        packet for packet in stretch.demux(template) if packet.size
                    )
                    if needs_start_codes(muxer, template):
                        pictures = with_start_codes(pictures, template)
                    packets: Iterator[av.Packet[Any]] = assigned(pictures, stream)
                elif choice.way == "transcode":
                    packets = self._encoded(choice, stream)
                elif choice.way == "copy":
                    assert source is not None
                    packets = assigned(iter(self._first_packets(source, choice.index)), stream)
                else:
                    continue
                refused: Exception | None = None
                for packet in packets:
                    try:
                        output.mux_one(packet)
                    except av.error.FFmpegError as error:
                        if choice.way != "copy" or not is_refused_packet(error):
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
