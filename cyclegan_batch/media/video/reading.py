"""Read a video once: upright RGB frames in presentation order, with their times and numbers.

The time of a frame is its presentation time stamp (PTS) in ticks of the source's time base. A frame
without PTS follows the one before it by the average frame rate, and a PTS that does not ascend is
moved to one tick after the one before, so that no frame is lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import av.error
import cv2
import cv2.typing
import numpy as np

from ...errors import CycleganBatchError, InputError
from ...frames import Frame, Geometry, Pixels
from ...wording import Note
from .. import Dropped, Place, dropped_at
from ..alpha import alpha_of
from ..demux.demuxing import reason
from ..demux.frame_properties import orientation
from ..demux.lookahead import UNCOUNTED
from ..demux.timestamps import LONGEST_GAP, discontinuity_notes
from .colour import ToRGB
from .cut_short import cut_short
from .decoding import FrameReader, can_begin_anywhere
from .deinterlace import Deinterlacer, FieldTimes
from .loss import GapCounter, Lost, UncertainError
from .plan import Timing, VideoPlan


@dataclass(frozen=True)
class Decoded:
    """A frame on its way to the converter."""

    index: int
    timing: Timing
    frame: av.VideoFrame
    turn: tuple[int, bool]
    """Rotation and mirroring, as `upright` takes them."""
    warm_up: bool = False
    """See `Frame`."""


class Reading:
    """One reading of a video from its beginning, which several sources may share.

    A frame has its number among all that the plan translates; one that is lost has a number, too.
    """

    def __init__(self, plan: VideoPlan, known: Sequence[int] = (), first: int = 0) -> None:
        """``known``: the times (PTS) of the frames directly before number ``first``.

        An earlier reading found them, and no damage. Frames before ``first`` are then not needed,
        but for the plan's ``warm_up``, and most of them are not decoded.
        """
        self.plan = plan
        known, first = known[: max(0, len(known) - plan.warm_up)], first - plan.warm_up
        self.users = 0
        """How many sources share it."""
        self._known_end = (known[-1], first) if known and can_begin_anywhere(plan) else None
        """The time of the last known frame, and the number of the one behind it."""
        self.position = first if self._known_end else 0
        """The number of the next frame."""
        self._first_pts: int | None = None
        self._end = 0
        """Ticks at which the last frame ends."""
        base = plan.stream.time_base
        self._step = max(1, round(1 / ((plan.stream.average_rate or Fraction(25)) * base)))
        """Ticks from frame to frame at the average frame rate."""
        self._from = _ticks(plan.options.ss, base)
        self._to = _ticks(plan.options.to, base)
        self._reader = FrameReader(plan, self._from, known if self._known_end else ())
        self._items = self._all()
        self._findings: list[Dropped | Note] = []
        """What is known once the whole video is read."""
        self._error: CycleganBatchError | None = None
        """Why the video cannot be read."""
        self._kept: deque[Decoded] = deque(maxlen=plan.warm_up)
        """The last frames that were read, which may be in front of the next stretch."""

    def read(self, first: int, end: int | None) -> Iterator[Decoded | Dropped | Note]:
        """Yield what concerns the frames from number ``first`` to the one before ``end``.

        Frames before ``first`` are read and left out. The last of them, as many as the plan's
        ``warm_up``, come first, marked as such, also where they were read before; nothing else that
        concerns them. Where ``end`` is None, what is known at the end of the file follows. Raises
        InputError where the video as a whole cannot be read.
        """
        if self._error is not None:
            raise self._error
        start = first - self.plan.warm_up
        yield from (replace(each, warm_up=True) for each in (*self._kept,) if each.index >= start)
        try:
            while end is None or self.position < end:
                number, item = next(self._items)
                if isinstance(item, Decoded):
                    self._kept.append(item)
                if number >= first:
                    yield item
                elif number >= start and isinstance(item, Decoded):
                    yield replace(item, warm_up=True)
        except StopIteration:
            if end is None:
                yield from self._findings
        except CycleganBatchError as error:
            self._error = error
            raise

    def _all(self) -> Generator[tuple[int, Decoded | Dropped | Note]]:
        """Yield decoded frames and what concerns single ones, each with the frame's number."""
        if self._known_end is not None:
            try:
                yield from self._numbered()
            except UncertainError:
                self._known_end = None
                self._reader.close()
                self._reader = FrameReader(self.plan, self._from)
            else:
                return
        reached = self.position
        for number, item in self._numbered():
            if number >= reached:
                yield number, item

    def _numbered(self) -> Generator[tuple[int, Decoded | Dropped | Note]]:
        """Yield what `_all` does. Raises UncertainError where frames that were left out matter."""
        plan = self.plan
        number = 0
        any_dropped = changes_size = False
        gaps = GapCounter(self._step, round(LONGEST_GAP / plan.stream.time_base))
        for item in self._cut(self._timed(self._deinterlaced(self._reader.frames()))):
            if isinstance(item, Lost):
                gaps.take(item.pts, self._discontinuities())
                any_dropped = True
                self.position = max(self.position, number + 1)
                yield number, self._undecodable(number, item)
            else:
                timing, frame = item
                if self._known_end is not None and timing.pts == self._known_end[0]:
                    number = self._known_end[1] - 1
                turn = self._turn(frame)
                if not changes_size and (note := self._other_size(number, frame, turn)):
                    if self._known_end is not None:
                        # It may not be the first that differs.
                        raise UncertainError
                    changes_size = True
                    yield number, note
                if frame.is_corrupt:
                    any_dropped = True
                    yield number, self._concealed(number, timing.pts)
                self.position = max(self.position, number + 1)
                yield number, Decoded(number, timing, frame, turn)
                gaps.take(timing.pts, self._discontinuities())
            number += 1
            if number == plan.options.frames:
                break
        if number == 0:
            raise self._without_frames()
        self._findings += self._discontinuity_notes()
        if missing := self._missing(gaps, any_dropped=any_dropped):
            self._findings.append(missing)
        ends_early = number == plan.options.frames or self._has_reached_to()
        if not ends_early and (error := self._cut_short()):
            self._findings.append(Dropped(plan.name, error))

    def converter(self) -> Callable[[Decoded], Frame | Dropped]:
        """Return a function from a decoded frame to an upright RGB one, one for each worker."""
        plan = self.plan
        to_rgb = ToRGB(plan.colour, plan.pixel_type, shared=plan.warm_up > 0)

        def convert(item: Decoded) -> Frame | Dropped:
            try:
                stored = to_rgb(item.frame)
            except av.error.FFmpegError as error:
                lost = self._undecodable(item.index, Lost(item.timing.pts, reason(error)))
                return replace(lost, warm_up=item.warm_up)
            rotation, mirrored = item.turn
            pixels = upright(stored, rotation, mirrored=mirrored)
            if pixels.shape[:2] != plan.size:
                # The stream changes its size, which an encoder cannot do: all get the first size.
                size = (pixels.shape[0], pixels.shape[1])
                pixels = Geometry(size, plan.size, plan.size).into_network(pixels)
            has_extras = plan.encoder.alpha or item.frame.interlaced_frame
            timing = self._with_extras(item) if has_extras else item.timing
            return Frame(item.index, pixels, timing, item.warm_up)

        return convert

    def close(self) -> None:
        """Close the file. Nothing can be read any more."""
        self._items.close()
        self._reader.close()

    def _with_extras(self, item: Decoded) -> Timing:
        """Return the frame's timing with the properties that bypass the network."""
        plan = self.plan
        rotation, mirrored = item.turn
        alpha = alpha_of(item.frame) if plan.encoder.alpha else None
        if alpha is not None:
            alpha = replace(alpha, values=upright(alpha.values, rotation, mirrored=mirrored))
        keeps_lines = not rotation % 180 and plan.size == plan.output_size
        return replace(
            item.timing, interlaced=item.frame.interlaced_frame and keeps_lines, alpha=alpha
        )

    # Times, and the stretch

    def _deinterlaced(
        self, items: Iterator[av.VideoFrame | Lost]
    ) -> Iterator[av.VideoFrame | Lost]:
        """Deinterlace where the options ask for it: one frame of each frame, or of each field."""
        plan = self.plan
        if not plan.options.deinterlaces:
            yield from items
            return
        both = plan.options.deinterlace_rate == "field"
        times = FieldTimes(both=both, step=self._step)
        deinterlacer: Deinterlacer | None = None
        for item in items:
            if isinstance(item, Lost):
                times.put(item)
                continue
            if deinterlacer is None or not deinterlacer.takes(item):
                if deinterlacer is not None:
                    yield from times.timed(deinterlacer.flush())
                deinterlacer = Deinterlacer(item, plan.stream.fields, both=both)
            times.put(item)
            yield from times.timed(deinterlacer.take(item))
        if deinterlacer is not None:
            yield from times.timed(deinterlacer.flush())
        yield from times.lost()

    def _timed(
        self, items: Iterator[av.VideoFrame | Lost]
    ) -> Iterator[tuple[Timing, av.VideoFrame] | Lost]:
        """Give every frame a PTS, each greater than the one before."""
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
            if self._first_pts is None:
                self._first_pts = pts
            self._end = pts + (item.duration or self._step)
            yield Timing(pts, item.duration or None), item

    def _cut(
        self, items: Iterator[tuple[Timing, av.VideoFrame] | Lost]
    ) -> Iterator[tuple[Timing, av.VideoFrame] | Lost]:
        """Leave out what is before ``--ss`` and from ``--to`` on, counted from the first frame."""
        for item in items:
            pts = item.pts if isinstance(item, Lost) else item[0].pts
            since = None if pts is None or self._first_pts is None else pts - self._first_pts
            if self._to is not None and since is not None and since >= self._to:
                return
            if self._from is None or (since is not None and since >= self._from):
                yield item

    def _has_reached_to(self) -> bool:
        """Return whether the last frame ends at ``--to`` or behind it."""
        first = self._first_pts
        return self._to is not None and first is not None and self._end - first >= self._to

    def _turn(self, frame: av.VideoFrame) -> tuple[int, bool]:
        """Return rotation and mirroring: those of an image's EXIF, or of the video's matrix."""
        stream = self.plan.stream
        if self.plan.picture_rate is not None:
            return orientation(frame)
        return stream.rotation, stream.mirrored

    def _discontinuities(self) -> list[int]:
        """Return the PTS of the timestamp discontinuities, as far as packets were read."""
        base = self.plan.stream.time_base
        return [math.floor(each.at / base) for each in self._reader.timeline.discontinuities]

    # Notes and errors

    def _discontinuity_notes(self) -> Iterator[Note]:
        """Yield notes on the timestamp discontinuities of the kinds that the plan has not noted."""
        plan = self.plan
        planned = {each.kind for each in plan.info.discontinuities}
        discontinuities = self._reader.timeline.discontinuities
        others = [each for each in discontinuities if each.kind not in planned]
        texts = discontinuity_notes(others, (self._first_pts or 0) * plan.stream.time_base)
        return (Note(plan.name, text) for text in texts)

    def _other_size(self, number: int, frame: av.VideoFrame, turn: tuple[int, bool]) -> Note | None:
        """Return a note where the size of a frame differs from the planned one."""
        plan = self.plan
        size = frame.height, frame.width
        if turn[0] % 180:
            size = size[::-1]
        if size == plan.size:
            return None
        height, width = plan.size
        text = (
            f"the video changes its size (frame {number} is {size[1]}×{size[0]}); "
            f"all frames become {width}×{height}"
        )
        return Note(plan.name, text)

    def _undecodable(self, index: int, lost: Lost) -> Dropped:
        """Return the report of a frame that cannot be decoded."""
        advice = "repair the file" + self._or_skip("leave such frames out")
        return self._damaged(index, lost.pts, f"cannot be decoded ({lost.cause}); {advice}")

    def _concealed(self, index: int, pts: int) -> Dropped:
        """Return the report of a frame whose errors the decoder concealed; the frame is kept."""
        advice = "repair the file" + self._or_skip("keep such frames")
        return self._damaged(index, pts, f"damaged, concealed by the decoder; {advice}")

    def _damaged(self, index: int, pts: int | None, trouble: str) -> Dropped:
        plan = self.plan
        seconds = None
        if pts is not None:
            seconds = float((pts - (self._first_pts or 0)) * plan.stream.time_base)
        return dropped_at(
            Place(subject=plan.name, kind="frame", number=index, seconds=seconds, trouble=trouble)
        )

    def _or_skip(self, purpose: str) -> str:
        """Return the advice to leave out ``--on-error fail``, empty where it is not given."""
        if self.plan.options.on_error == "skip":
            return ""
        return f", or leave out --on-error fail to {purpose}"

    def _without_frames(self) -> CycleganBatchError:
        plan, received = self.plan, self._reader.received
        if self._first_pts is not None:
            end = received.end - self._first_pts * plan.stream.time_base
            return InputError(
                f"{plan.name}: no frame lies in the range of --ss and --to, and the video ends at "
                f"{float(end):.3f} s; change --ss or --to"
            )
        failure = f" ({received.failure})" if received.failure else ""
        return InputError(f"{plan.name}: no frame of it can be decoded{failure}; check the file")

    def _missing(self, gaps: GapCounter, *, any_dropped: bool) -> Dropped | Note | None:
        """Return an error for frames whose packets are missing from a damaged file.

        Where nothing is damaged it is a note instead: a recording may leave frames out.
        """
        plan = self.plan
        if gaps.first is None or not plan.info.format.startswith(UNCOUNTED):
            return None
        seconds = float((gaps.first - (self._first_pts or 0)) * plan.stream.time_base)
        frames = f"{gaps.missing}{' more' if any_dropped else ''} frame"
        frames += " is" if gaps.missing == 1 else "s are"
        trouble = f"{frames} missing from {seconds:.3f} s on"
        # Where recordings were joined, the demuxer marks the last packet of the first one as
        # corrupt, although it is whole.
        joints = [each.at for each in self._reader.timeline.discontinuities]
        is_damaged = any_dropped or any(
            all(abs(end - joint) > 1 for joint in joints)
            for end in self._reader.received.corrupt_ends
        )
        if not is_damaged:
            text = f"{trouble}; the file shows no damage there"
            return Note(plan.name, text)
        advice = "repair the file" + self._or_skip("do without them")
        error = InputError(
            f"{plan.name}: {trouble}, since the damaged file has no data for them; {advice}"
        )
        return Dropped(plan.name, error)

    def _cut_short(self) -> InputError | None:
        reader = self._reader
        trouble = cut_short(
            self.plan,
            reader.received,
            reader.stream,
            step=self._step,
            size=reader.size,
            is_part=reader.has_seeked,
        )
        if trouble is None:
            return None
        advice = "copy or record it again" + self._or_skip("take what there is")
        return InputError(f"{self.plan.name}: {trouble}; {advice}")


def _ticks(seconds: float | None, base: Fraction) -> Fraction | None:
    """Return ``seconds`` in ticks, less half a tick, so that a rounded decimal hits its frame."""
    if seconds is None:
        return None
    return Fraction(seconds).limit_denominator(10**6) / base - Fraction(1, 2)


_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


def upright(stored: Pixels, rotation: int, *, mirrored: bool) -> Pixels:
    """Return a stored image as it is to be seen: mirrored, then turned counter-clockwise."""
    # OpenCV does not rotate float16, so its bits are rotated as uint16.
    turned: cv2.typing.MatLike = stored if stored.dtype == np.uint8 else stored.view(np.uint16)
    if mirrored:
        turned = cv2.flip(turned, 1)
    if rotation:
        turned = cv2.rotate(turned, _TURNS[rotation])
    return np.asarray(turned).view(stored.dtype)
