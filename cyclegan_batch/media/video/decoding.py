"""Decode the frames of a video stream in presentation order, and report those that were lost."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import av.container
import av.error
import numpy as np
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ...errors import InputError
from ...machine import cpu_threads
from ..alpha import decoder
from ..animations.reading import ANIMATIONS, AnimationFile, Unreadable
from ..demux.demuxing import Packet, demux, input_error, open_container, reason
from ..demux.standard_input import StandardInput, standard_input
from ..demux.timestamps import Timeline
from ..formats import PIPE
from .cut_short import Received
from .ending import Ending
from .loss import LossDetector, Lost, UncertainError
from .plan import VideoPlan

_SEEK_FROM = 20
"""Seconds from the first frame; a stretch that starts earlier is reached without a seek."""
_SEEK_MARGIN = 5
"""Seconds before the stretch at which decoding starts after a seek.

FFmpeg seeks by decoding time stamps, so a seek to the very start of the stretch can lead to a key
frame that is shown after it (FFmpeg ticket 11137)."""


_MOST_DELAYED = 14
"""Frames by which H.264's decoder is delayed at most; it can hold 16."""


class FrameReader:
    """Read the video stream of a plan from its beginning, or from shortly before ``start``."""

    def __init__(self, plan: VideoPlan, start: Fraction | None, known: Sequence[int] = ()) -> None:
        """``start``: ticks after the first frame; frames before it are not needed.

        ``known``: the times (PTS) of frames that directly precede those that are needed, as an
        earlier reading found them; none where not `can_begin_anywhere`.
        """
        self._plan, self._start, self._known = plan, start, known
        self._container: av.container.InputContainer | None = None
        self._pipe: StandardInput | None = None
        self._animation: AnimationFile | None = None
        self.timeline = Timeline(plan.info.format)
        """Holds the timestamp discontinuities found so far."""
        self.received = Received(plan.stream.index)
        self.has_seeked = False
        """A seek skipped a part of the file, so `received` does not describe the whole of it."""

    def frames(self) -> Iterator[av.VideoFrame | Lost]:
        """Yield frames in presentation order, from several threads as long as nothing is damaged.

        FFmpeg's frame threads report a broken packet late, and at the end of the file they drop
        intact frames beside it. At the first sign of damage the file is therefore decoded again
        from its beginning, by one thread, and the frames that were yielded before are skipped.
        Raises InputError, also for damage in a pipe, which cannot be read again.

        With ``known`` times only the first frame of the file, the last known one and those behind
        it are yielded. The packets between are read, but most of them are not decoded. Raises
        UncertainError where that cannot be told to give the same frames. Frames that refer to a
        damaged one behind them have come out by then; what a decoder fills into them depends on
        all that it has decoded before.
        """
        if self._plan.info.format in ANIMATIONS:
            yield from self._frames_of_animation()
            return
        count = 0
        try:
            for item in self._decode(careful=False):
                yield item
                count += 1
        except UncertainError:
            if self._known:
                raise
            if self._pipe is not None:
                raise InputError(f"{self._plan.name}: a frame in it cannot be decoded") from None
            for item in self._decode(careful=True):
                # The first pass yielded frames only: it ends at the first sign of a lost one.
                if count and not isinstance(item, Lost):
                    count -= 1
                else:
                    yield item

    @property
    def stream(self) -> VideoStream | None:
        """The stream that is read, while the file is open; None where FFmpeg does not read it."""
        return None if self._container is None else self._stream_of(self._container)

    def size(self) -> int:
        """Return the bytes of the file, or those that came out of the pipe. Raises InputError."""
        if self._pipe is not None:
            return self._pipe.bytes_read
        try:
            return self._plan.path.stat().st_size
        except OSError as error:
            raise input_error(self._plan.path, error) from error

    def close(self) -> None:
        """Close the file; twice is fine."""
        if self._animation is not None:
            self._animation.close()
        container, self._container = self._container, None
        if container is None:
            return
        if self._pipe is not None:
            self._pipe.close()
        else:
            container.close()

    def _frames_of_animation(self) -> Iterator[av.VideoFrame | Lost]:
        """Yield the frames of an animated image, which FFmpeg does not read. Raises InputError."""
        plan, received = self._plan, self.received
        layout = "rgba" if plan.stream.alpha else "rgb24"
        try:
            self._animation = AnimationFile(plan.path, max_pixels=plan.options.max_pixels)
            for item in self._animation.frames():
                received.packets += 1
                if isinstance(item, Unreadable):
                    yield Lost(item.pts, item.cause)
                    continue
                pixels = item.canvas if layout == "rgba" else item.canvas[..., :3]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=layout)
                frame.pts, frame.duration = item.pts, item.duration
                frame.time_base = plan.stream.time_base
                yield frame
            received.failure = self._animation.trouble
        except OSError as error:
            received.failure = reason(error)

    def _open(self) -> av.container.InputContainer:
        plan = self._plan
        if plan.path == PIPE:
            self._pipe = standard_input()
            return self._pipe.container
        return open_container(plan.path, image_pattern_rate=plan.picture_rate)

    def _decode(self, *, careful: bool) -> Iterator[av.VideoFrame | Lost]:
        """Yield frames and lost ones. Raises UncertainError at damage, unless ``careful``."""
        self.close()
        container = self._container = self._open()
        self.timeline = Timeline(container.format.name)
        self.received = Received(self._plan.stream.index)
        stream = self._stream_of(container)
        stream.thread_type = "AUTO"
        # Without this flag HEVC's decoder leaves concealed frames out (FFmpeg 8).
        stream.codec_context.flags |= Flags.output_corrupt
        if careful:
            stream.codec_context.thread_count = 1
        else:
            _let_threads_finish(stream.codec_context)
        decode = decoder(stream, alpha=self._plan.encoder.alpha)
        losses = LossDetector(careful=careful)
        ending = Ending(stream)
        may_seek = self._start is not None and can_begin_anywhere(self._plan)
        overlap = _Overlap(self._known)
        for packet in self._demux(container):
            # PyAV 18.1 sets no stream_index on the flushing packet: it is 0.
            if packet.stream.index != stream.index or overlap.passes_by(packet):
                continue
            losses.expect(packet)
            if not careful:
                ending.take(packet)
                # Behind the last packet come frames of which FFmpeg may not know all.
                if not packet.size and ending.is_damaged():
                    raise UncertainError
            try:
                frames = decode(packet)
            except av.error.EOFError:
                continue
            except av.error.FFmpegError as error:
                losses.note_undecodable(packet, reason(error))
                continue
            for frame in frames:
                if frame.is_corrupt:
                    if losses.is_leading(frame):
                        continue
                    losses.note_concealed()
                yield from losses.lost_before(frame)
                if losses.is_late(frame) or overlap.is_known(frame):
                    continue
                yield frame
                # Behind the last packet every frame is on its way already.
                was_moved = may_seek and packet.size > 0 and self._seek(container, stream, frame)
                may_seek = False
                if overlap.begins() or was_moved:
                    stream.codec_context.flush_buffers()
                    # That flushes the decoder of the container, but not one of our own.
                    decode = decoder(stream, alpha=self._plan.encoder.alpha)
                    losses = LossDetector(careful=careful)
                    ending = Ending(stream)
                    break
            if not packet.size:
                break
        overlap.end()
        yield from losses.lost_at_end()

    def _stream_of(self, container: av.container.InputContainer) -> VideoStream:
        """Return the stream that is translated; a pattern of images or a pipe has only one."""
        index = self._plan.stream.index
        videos = container.streams.video
        return next((stream for stream in videos if stream.index == index), videos[0])

    def _demux(self, container: av.container.InputContainer) -> Iterator[Packet]:
        """Yield the packets of all streams; the flushing one of the video comes last."""
        packets = self.timeline.place(demux(container, list(container.streams)))
        try:
            for packet in packets:
                self.received.take(packet)
                yield packet
        except (av.error.FFmpegError, OSError) as error:
            self.received.failure = reason(error)
            # The demuxer failed, but the frames that the decoder still holds are intact.
            flush = av.Packet()
            flush.stream = container.streams[self._plan.stream.index]
            yield flush

    def _seek(
        self, container: av.container.InputContainer, stream: VideoStream, first: av.VideoFrame
    ) -> bool:
        """Go to shortly before the stretch, whose times count from the ``first`` frame.

        Return whether that was worth a seek.
        """
        base = self._plan.stream.time_base
        if first.pts is None or self._start is None or self._start * base < _SEEK_FROM:
            return False
        target = first.pts + math.floor(self._start - _SEEK_MARGIN / base)
        container.seek(target, stream=stream, backward=True)
        self.timeline.forget()
        self.has_seeked = True
        return True


def _let_threads_finish(context: VideoCodecContext) -> None:
    """Let H.264 come out so late that no thread still decodes it; set before the decoder opens.

    A thread returns the frame that is due by then, with its marks as they are when the thread
    begins. Another one may decode that frame still, if nothing refers to it, and what it conceals
    would go unnoticed. When a thread begins, all others together have at most as many packets
    as there are threads. In other codecs no such frame was found but at the end of the file.
    """
    if context.codec.canonical_name != "h264":
        return
    reorders = context.reorder_depth
    context.thread_count = max(1, min(cpu_threads() + 1, _MOST_DELAYED - reorders))
    delayed = min(reorders + context.thread_count, _MOST_DELAYED)
    context.reorder_depth = max(reorders, delayed)


def can_begin_anywhere(plan: VideoPlan) -> bool:
    """Return whether decoding from a key frame in the middle gives the frames of the whole.

    In MPEG-TS, MPEG-PS and AVI, and by a seek there, it does not. A deinterlacer requires the
    frames before, too.
    """
    return plan.info.format.startswith(("mov", "matroska")) and not plan.options.deinterlaces


class _Overlap:
    """The frames whose times are known, where the decoder begins in the middle of the file.

    Behind the first frame of the file packets are passed by up to a key frame among the known
    ones. From there on every known time must be met; then the file is the one that was read
    before, and the decoder is on its track. Without known times nothing is passed by.
    """

    def __init__(self, known: Sequence[int]) -> None:
        """``known``: PTS, ascending."""
        self._known = known
        self._key: int | None = None
        """The index of the key frame's time, once there was one."""
        self._next: int | None = None
        """The index of the time that is due."""
        self.is_passing_by = False
        """No packet is decoded until there is a key frame among the known ones."""

    def begins(self) -> bool:
        """Begin to pass packets by, and return whether there are any known times to come."""
        self.is_passing_by = bool(self._known) and self._next is None
        return self.is_passing_by

    def passes_by(self, packet: Packet) -> bool:
        """Return whether the next packet of the video is not decoded. Raises UncertainError."""
        if not self.is_passing_by:
            return False
        if packet.pts is None or not packet.is_keyframe or packet.pts < self._known[0]:
            return packet.size > 0
        index = bisect.bisect_left(self._known, packet.pts)
        if index == len(self._known) or self._known[index] != packet.pts:
            raise UncertainError
        self._key = self._next = index
        self.is_passing_by = False
        return False

    def is_known(self, frame: av.VideoFrame) -> bool:
        """Return whether a frame is a known one, other than the last. Raises UncertainError."""
        due = self._next
        if due is None or due == len(self._known):
            return False
        if due == self._key and frame.pts is not None and frame.pts < self._known[due]:
            # A leading picture of the key frame is shown before it, and lacks its references.
            return True
        if frame.pts != self._known[due]:
            raise UncertainError
        self._next = due + 1
        return self._next < len(self._known)

    def end(self) -> None:
        """Take the end of the file. Raises UncertainError where known times were not met."""
        if self._known and self._next != len(self._known):
            raise UncertainError
