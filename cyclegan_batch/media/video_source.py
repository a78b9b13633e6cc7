"""Read one stretch of a video: frames upright, in presentation order, with their times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import av.container
import av.error
import cv2
import numpy as np
from av.codec.context import Flags
from av.video.stream import VideoStream

from ..errors import CycleganBatchError, InputError
from ..frames import Frame, Geometry, Pixels
from ..wording import Note
from . import Dropped, Place, dropped_at
from .alpha import alpha_of, decoder
from .clocks import LONGEST_GAP, JobClock, seam_notes
from .colour import ToRGB
from .deinterlace import Deinterlacer, FieldTimes
from .demuxing import demux, open_container, reason
from .formats import PIPE
from .frame_properties import orientation
from .lookahead import UNCOUNTED
from .loss import Gaps, Lost, Shown, UncertainError
from .probe import asf_claims
from .standard_input import Y4M_MUXER, StandardInput, standard_input
from .video import Timing, VideoPlan


@dataclass(frozen=True)
class _Decoded:
    """A frame on its way to the converter."""

    index: int
    timing: Timing
    picture: av.VideoFrame
    turn: tuple[int, bool]
    """Rotation and mirroring, as `upright` takes them."""


_FAR = 20
"""Seconds from which on it is worth seeking to the start of a stretch."""
_MARGIN = 5
"""Seconds before it from which on everything is decoded."""


class VideoSource:
    """The frames of one stretch of a video, in presentation order."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        self.notes: tuple[Note, ...] = ()
        """What only reading shows, to be said once."""
        self._container: av.container.InputContainer | None = None
        self._pipe: StandardInput | None = None
        self._first: int | None = None
        """Time of the first frame in ticks."""
        self._end = 0
        """Where the last one ends."""
        self._packets = 0
        """Of the video stream; what its header counts."""
        self._ends: dict[int, Fraction] = {}
        """Seconds at which each stream ended so far."""
        self._stood: dict[int, Fraction] = {}
        """Seconds at which each stream stood whose packets do not say how long they last."""
        self._pauses: dict[int, Fraction] = {}
        """The longest time, in seconds, from one such packet to the next."""
        self._read = 0
        """Where the last packet ends, in bytes, in a file that is read from front to back."""
        self._marked: list[Fraction] = []
        """Where packets of the video end that the demuxer marked as damaged, in seconds."""
        self._broken: str | None = None
        """Why the file could not be read to its end."""
        self._sought = False
        self._clock = JobClock(plan.info.format)
        base = plan.stream.time_base
        self._step = max(1, round(1 / ((plan.stream.average_rate or Fraction(25)) * base)))
        self._from = _ticks(plan.options.ss, base)
        self._to = _ticks(plan.options.to, base)

    def read(self) -> Iterator[_Decoded | Dropped]:
        """Yield decoded frames, and `Dropped` for each that cannot be and for a file cut short."""
        plan = self._plan
        index, dropped = 0, False
        gaps = Gaps(self._step, round(LONGEST_GAP / plan.stream.time_base))
        for item in self._cut(self._timed(self._deinterlaced(self._pictures()))):
            lost = item if isinstance(item, Lost) else None
            if not isinstance(item, Lost):
                timing, picture = item
                turn = self._turn(picture)
                self._look_at_size(index, picture, turn)
                if picture.is_corrupt:
                    dropped = True
                    yield self._concealed(index, timing.pts)
                yield _Decoded(index, timing, picture, turn)
            gaps.take(item.pts if isinstance(item, Lost) else item[0].pts, self._seams())
            if lost is not None:
                dropped = True
                yield self._dropped(index, lost)
            index += 1
            if index == plan.options.frames:
                break
        if index == 0:
            raise self._nothing()
        self._say_seams()
        if error := self._missing(gaps, dropped=dropped):
            yield Dropped(plan.name, error)
        limited = index == plan.options.frames or self._reached_end_asked_for()
        if not limited and (error := self._cut_short()):
            yield Dropped(plan.name, error)

    def converter(self) -> Callable[[_Decoded], Frame | Dropped]:
        """Return a function from a decoded frame to an upright RGB one, one for each worker."""
        plan = self._plan
        to_rgb = ToRGB(plan.colour, plan.pixel_type)

        def convert(item: _Decoded) -> Frame | Dropped:
            try:
                stored = to_rgb(item.picture)
            except av.error.FFmpegError as error:
                return self._dropped(item.index, Lost(item.timing.pts, reason(error)))
            rotation, mirrored = item.turn
            pixels = upright(stored, rotation, mirrored=mirrored)
            if pixels.shape[:2] != plan.size:
                # A stream that changes its size: an encoder cannot, so all get the first one's.
                size = (pixels.shape[0], pixels.shape[1])
                pixels = Geometry(size, plan.size, plan.size).into_network(pixels)
            extras = plan.encoder.alpha or item.picture.interlaced_frame
            timing = self._with_extras(item) if extras else item.timing
            return Frame(item.index, pixels, timing)

        return convert

    def _with_extras(self, item: _Decoded) -> Timing:
        """Return the frame's timing with what does not pass the network."""
        rotation, mirrored = item.turn
        alpha = alpha_of(item.picture) if self._plan.encoder.alpha else None
        if alpha is not None:
            alpha = replace(alpha, values=upright(alpha.values, rotation, mirrored=mirrored))
        plan = self._plan
        interlaced = item.picture.interlaced_frame and not (
            rotation % 180 or plan.size != plan.output_size
        )
        return replace(item.timing, interlaced=interlaced, alpha=alpha)

    def close(self) -> None:
        """Close the file."""
        container, self._container = self._container, None
        if container is None:
            return
        if self._pipe is not None:
            self._pipe.close()
        else:
            container.close()

    # Decoding

    def _open(self) -> av.container.InputContainer:
        plan = self._plan
        if plan.path == PIPE:
            self._pipe = standard_input()
            return self._pipe.container
        return open_container(plan.path, image_pattern_rate=plan.picture_rate)

    def _pictures(self) -> Iterator[av.VideoFrame | Lost]:
        """Yield frames as they are shown, with several threads as long as nothing is lost.

        FFmpeg's threads report a broken packet late, and drop good frames beside it at the end of
        the file. At the first sign of that one thread reads everything again, up to where it was.
        """
        given = 0
        try:
            for item in self._decode(careful=False):
                yield item
                given += 1
        except UncertainError:
            if self._plan.path == PIPE:
                raise InputError(f"{self._plan.name}: a frame of it cannot be decoded") from None
            self._packets, self._ends, self._broken, self._marked = 0, {}, None, []
            self._stood, self._pauses = {}, {}
            for item in self._decode(careful=True):
                # What is lost was not among what was given.
                if given and not isinstance(item, Lost):
                    given -= 1
                else:
                    yield item

    def _decode(self, *, careful: bool) -> Iterator[av.VideoFrame | Lost]:
        self.close()
        container = self._container = self._open()
        self._clock = JobClock(container.format.name)
        stream = self._video_stream(container)
        stream.thread_type = "AUTO"
        # Otherwise HEVC's decoder leaves out, without a word, what it concealed (FFmpeg 8).
        stream.codec_context.flags |= Flags.output_corrupt
        if careful:
            stream.codec_context.thread_count = 1
        decode = decoder(stream, alpha=self._plan.encoder.alpha)
        shown = Shown(careful=careful)
        packets = self._demux(container)
        seeking = self._from is not None and self._may_seek()
        for packet in packets:
            # The flushing packet's own stream_index is 0 in any case (PyAV 18.1).
            if packet.stream.index != stream.index:
                continue
            shown.expect(packet)
            try:
                frames = decode(packet)
            except av.error.EOFError:
                continue
            except av.error.FFmpegError as error:
                shown.fail(packet, reason(error))
                continue
            for frame in frames:
                if frame.is_corrupt:
                    if shown.is_leading(frame):
                        continue
                    shown.conceal()
                yield from shown.before(frame)
                if shown.is_late(frame):
                    continue
                yield frame
                if seeking:
                    seeking = False
                    self._seek(container, stream, frame)
                    # A seek flushes the decoders of the container, and no other.
                    decode = decoder(stream, alpha=self._plan.encoder.alpha)
                    shown = Shown(careful=careful)
            if not packet.size:
                break
        yield from shown.rest()

    def _video_stream(self, container: av.container.InputContainer) -> VideoStream:
        """Return the stream that is translated."""
        index = self._plan.stream.index
        # Of a pattern of pictures, or a pipe, there is but one.
        return next(
            (s for s in container.streams.video if s.index == index), container.streams.video[0]
        )

    def _demux(self, container: av.container.InputContainer) -> Iterator[av.Packet[Any]]:
        """Yield all packets and note how far each stream goes; the flushing one comes last."""
        video = self._plan.stream.index
        packets = self._clock.steady(demux(container, list(container.streams)))
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self._broken = reason(error)
                break
            if packet is None:
                return
            if packet.size:
                time = packet.pts if packet.pts is not None else packet.dts
                if time is not None:
                    end = (time + (packet.duration or 0)) * packet.time_base
                    index = packet.stream_index
                    self._ends[index] = max(end, self._ends.get(index, end))
                    self._note_pause(packet)
                    if index == video and packet.is_corrupt:
                        self._marked.append(end)
                if packet.stream_index == video:
                    self._packets += 1
                    self._read = (packet.pos or 0) + packet.size
            yield packet
        # The demuxer broke off, and what the decoder still holds is good.
        flush: av.Packet[Any] = av.Packet()
        flush.stream = container.streams[video]
        yield flush

    def _note_pause(self, packet: av.Packet[Any]) -> None:
        """Note the longest time between two packets of a stream that do not say how they last."""
        if packet.dts is None or packet.duration:
            return
        index, time = packet.stream_index, packet.dts * packet.time_base
        pause = time - self._stood.get(index, time)
        self._stood[index] = time
        self._pauses[index] = max(pause, self._pauses.get(index, pause))

    def _end_of(self, index: int) -> Fraction:
        """Return where a stream ended, in seconds, at the latest."""
        return self._ends.get(index, Fraction(0)) + self._pauses.get(index, 0)

    def _may_seek(self) -> bool:
        """Say whether the container's index leads exactly to frames (not MPEG-TS, PS and AVI)."""
        plan = self._plan
        indexed = plan.info.format.startswith(("mov", "matroska"))
        return indexed and not plan.options.deinterlaces

    def _seek(
        self, container: av.container.InputContainer, stream: Any, first: av.VideoFrame
    ) -> None:
        """Go near the start of the stretch, once the time of the first frame is known."""
        base = self._plan.stream.time_base
        if first.pts is None or self._from is None or self._from * base < _FAR:
            return
        container.seek(
            first.pts + math.floor(self._from - _MARGIN / base), stream=stream, backward=True
        )
        self._clock.forget()
        self._sought = True

    def _seams(self) -> list[int]:
        """Return where the clock was mended so far, in ticks."""
        base = self._plan.stream.time_base
        # A frame that a decoder held back may come a little after.
        return [math.floor(seam.at / base) for seam in self._clock.seams]

    # Order, time, stretch

    def _deinterlaced(
        self, items: Iterator[av.VideoFrame | Lost]
    ) -> Iterator[av.VideoFrame | Lost]:
        """Make whole frames of fields (bwdif), one of each frame or one of each field."""
        plan = self._plan
        if not plan.options.deinterlaces:
            yield from items
            return
        both = plan.options.deinterlace_rate == "field"
        waiting = FieldTimes(both=both, step=self._step)
        deinterlacer: Deinterlacer | None = None
        for item in items:
            if isinstance(item, Lost):
                waiting.put(item)
                continue
            if deinterlacer is None or not deinterlacer.takes(item):
                if deinterlacer is not None:
                    yield from waiting.timed(deinterlacer.flush())
                deinterlacer = Deinterlacer(item, plan.stream.fields, both=both)
            waiting.put(item)
            yield from waiting.timed(deinterlacer.take(item))
        if deinterlacer is not None:
            yield from waiting.timed(deinterlacer.flush())
        yield from waiting.lost()

    def _timed(
        self, items: Iterator[av.VideoFrame | Lost]
    ) -> Iterator[tuple[Timing, av.VideoFrame] | Lost]:
        last: int | None = None
        for item in items:
            if isinstance(item, Lost):
                yield item
                continue
            pts = item.pts
            if pts is None:
                pts = 0 if last is None else last + self._step
            if last is not None and pts <= last:
                pts = last + 1
            last = pts
            if self._first is None:
                self._first = pts
            self._end = pts + (item.duration or self._step)
            yield Timing(pts, item.duration or None), item

    def _cut(
        self, items: Iterator[tuple[Timing, av.VideoFrame] | Lost]
    ) -> Iterator[tuple[Timing, av.VideoFrame] | Lost]:
        """Leave out what is before ``--ss`` and from ``--to`` on, counted from the first frame."""
        for item in items:
            pts = item.pts if isinstance(item, Lost) else item[0].pts
            since = None if pts is None or self._first is None else pts - self._first
            if self._to is not None and since is not None and since >= self._to:
                return
            if self._from is None or (since is not None and since >= self._from):
                yield item

    # What is wrong

    def _say_seams(self) -> None:
        """Note where the clock of the file did not go on, unless the plan has said it already."""
        plan = self._plan
        said = {seam.kind for seam in plan.info.seams}
        seams = [seam for seam in self._clock.seams if seam.kind not in said]
        told = seam_notes(seams, (self._first or 0) * plan.stream.time_base)
        self.notes = (*self.notes, *(Note(plan.name, text) for text in told))

    def _turn(self, picture: av.VideoFrame) -> tuple[int, bool]:
        """Return how a frame becomes upright: a photo by its own EXIF, a video by its matrix."""
        stream = self._plan.stream
        if self._plan.picture_rate is not None:
            return orientation(picture)
        return stream.rotation, stream.mirrored

    def _look_at_size(self, index: int, picture: av.VideoFrame, turn: tuple[int, bool]) -> None:
        plan = self._plan
        shown = picture.height, picture.width
        if turn[0] % 180:
            shown = shown[::-1]
        if not self.notes and shown != plan.size:
            height, width = plan.size
            text = (
                f"the video changes its size (frame {index} is {shown[1]}×{shown[0]}); "
                f"all frames become {width}×{height}"
            )
            self.notes = (Note(plan.name, text),)

    def _dropped(self, index: int, lost: Lost) -> Dropped:
        advice = "repair the file" + self._or_skip("leave such frames out")
        return self._told(index, lost.pts, f"cannot be decoded ({lost.cause}); {advice}")

    def _concealed(self, index: int, pts: int) -> Dropped:
        """Return what is reported of a damaged frame whose gaps the decoder filled; it is kept."""
        advice = "repair the file" + self._or_skip("keep such frames")
        return self._told(index, pts, f"damaged, concealed by the decoder; {advice}")

    def _told(self, index: int, pts: int | None, trouble: str) -> Dropped:
        plan = self._plan
        seconds = None
        if pts is not None:
            seconds = float((pts - (self._first or 0)) * plan.stream.time_base)
        return dropped_at(Place(plan.name, "frame", index, seconds, trouble))

    def _nothing(self) -> CycleganBatchError:
        plan = self._plan
        if self._first is not None:
            end = (
                max(self._ends.values(), default=Fraction(0)) - self._first * plan.stream.time_base
            )
            return InputError(
                f"{plan.name}: no frame lies in the stretch asked for, the video ends at "
                f"{float(end):.3f} s; change --ss or --to"
            )
        broken = f" ({self._broken})" if self._broken else ""
        return InputError(f"{plan.name}: not one frame can be decoded{broken}; check the file")

    def _reached_end_asked_for(self) -> bool:
        return (
            self._to is not None and self._first is not None and self._end - self._first >= self._to
        )

    def _cut_short(self) -> InputError | None:
        """Compare what was read with what the header says; FFmpeg reports no error for it."""
        plan, stream = self._plan, self._plan.stream
        advice = "copy or record it again" + self._or_skip("take what there is")
        if self._broken:
            return InputError(f"{plan.name}: cannot be read to its end ({self._broken}); {advice}")
        if plan.info.format == Y4M_MUXER:
            # FFmpeg drops a part of a frame without a word.
            rest = self._size() - self._read
            if rest <= 0:
                return None
            return InputError(
                f"{plan.name}: is cut short: behind {self._packets} whole frames there are "
                f"{rest} bytes that are none; {advice}"
            )
        if self._sought or plan.info.format.startswith(UNCOUNTED):
            return None
        claimed = self._frames_indexed()
        if claimed is not None and self._packets < claimed - 1:
            return InputError(
                f"{plan.name}: is cut short: its header says {claimed} frames, "
                f"{self._packets} are there; {advice}"
            )
        if claimed is not None and stream.frames_claimed is not None:
            return None
        found, said = self._found_and_said_end()
        if said is None or found + self._step * stream.time_base + _ROUNDING >= said:
            return None
        return InputError(
            f"{plan.name}: is cut short: its header says {float(said):.3f} s, "
            f"{float(found):.3f} s are there; {advice}"
        )

    def _frames_indexed(self) -> int | None:
        """Return how many frames the container lists, or None where it lists none."""
        plan, container = self._plan, self._container
        if plan.info.format.startswith("avi"):
            # It lists empty ones, too.
            return None
        if plan.info.format.startswith("mov") and container is not None:
            # Without what an edit list cuts off, and with every fragment that was met.
            return len(self._video_stream(container).index_entries) or None
        return plan.stream.frames_claimed

    def _size(self) -> int:
        """Return how many bytes the file has, or came out of the pipe."""
        if self._pipe is not None:
            return self._pipe.bytes_read
        return self._plan.path.stat().st_size

    def _or_skip(self, purpose: str) -> str:
        """Return how damage is gone over where it ends the run."""
        if self._plan.options.on_error == "skip":
            return ""
        return f", or leave out --on-error fail to {purpose}"

    def _missing(self, gaps: Gaps, *, dropped: bool) -> InputError | None:
        """Return what to say of frames that never arrived, an error where there was damage.

        A recording may leave out frames at will: without damage they are no more than a note.
        """
        plan = self._plan
        if gaps.first is None or not plan.info.format.startswith(UNCOUNTED):
            return None
        seconds = float((gaps.first - (self._first or 0)) * plan.stream.time_base)
        frames = f"{gaps.missing}{' more' if dropped else ''} frame"
        frames += " is" if gaps.missing == 1 else "s are"
        told = f"{frames} missing from {seconds:.3f} s on"
        # Where parts are joined the demuxer marks the last packet of the first, which is whole.
        seams = [seam.at for seam in self._clock.seams]
        marked = [end for end in self._marked if all(abs(end - at) > 1 for at in seams)]
        if not dropped and not marked:
            text = f"{told}; the source gives no damage as the reason"
            self.notes = (*self.notes, Note(plan.name, text))
            return None
        advice = "repair the file" + self._or_skip("do without")
        return InputError(
            f"{plan.name}: {told}: the damaged file gives nothing to decode there; {advice}"
        )

    def _found_and_said_end(self) -> tuple[Fraction, Fraction | None]:
        """Return where the video ends, and where by the header it should, in seconds.

        Where only the whole file's duration is known, both are of the longest stream.
        """
        info, stream = self._plan.info, self._plan.stream
        nothing = Fraction(0)
        if self._plan.picture_rate is not None:
            return nothing, None
        if info.format == "asf":
            found = max(map(self._end_of, self._ends), default=nothing)
            claims = asf_claims(self._plan.path)
            # Where no byte is missing its last picture is shown for that long.
            missing = claims is not None and self._size() < claims[0]
            return found, claims[1] if claims is not None and missing else None
        if stream.duration is not None:
            # In fragments it counts from 0 where another part of the file says it (sidx, mehd).
            fragments = info.format.startswith("mov") and stream.frames_claimed is None
            start = 0 if fragments else stream.start_pts or 0
            said = stream.duration
            if info.format == "avi" and stream.frames_claimed is not None:
                # One tick for each, empty ones too; without its index FFmpeg says what is there.
                said = max(said, stream.frames_claimed)
            return self._end_of(stream.index), (start + said) * stream.time_base
        found = max(map(self._end_of, self._ends), default=nothing)
        if info.duration is None:
            return found, None
        # Headers count from 0, not from the first frame, but from an earlier start if there is one.
        starts = [s.start_pts * s.time_base for s in info.streams if s.start_pts is not None]
        return found, info.duration + min([nothing, *starts])


_ROUNDING = Fraction(2, 1000)
"""Containers write durations in milliseconds."""


def _ticks(seconds: float | None, base: Fraction) -> Fraction | None:
    """Return ``seconds`` in ticks, half a tick early so that a rounded decimal meets its frame."""
    if seconds is None:
        return None
    return Fraction(seconds).limit_denominator(10**6) / base - Fraction(1, 2)


_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


def upright(stored: Pixels, rotation: int, *, mirrored: bool) -> Pixels:
    """Return the stored picture as it is to be seen: mirrored, then turned counter-clockwise."""
    # OpenCV turns no half floats; their bits it does.
    turned: Any = stored if stored.dtype == np.uint8 else stored.view(np.uint16)
    if mirrored:
        turned = cv2.flip(turned, 1)
    if rotation:
        turned = cv2.rotate(turned, _TURNS[rotation])
    result: Pixels = np.asarray(turned).view(stored.dtype)
    return result
