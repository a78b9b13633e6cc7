"""Read a video: as a whole, or one stretch of it, or nothing where its stretches are joined."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from ...frames import Frame
from ...wording import Note
from .. import Dropped
from ..mux.joined_video import Stretch
from .plan import VideoPlan
from .reading import Decoded, Reading


class VideoSource:
    """The frames of a video, in presentation order."""

    def __init__(self, plan: VideoPlan) -> None:
        self._reading = Reading(plan)
        self._first = 0
        self._end: int | None = None
        self.notes: tuple[Note, ...] = ()
        """Notes on what is known only once the file is read."""

    def read(self) -> Iterator[Decoded | Dropped]:
        """Yield decoded frames, and `Dropped` for damaged or missing ones and a file cut short."""
        for item in self._reading.read(self._first, self._end):
            if isinstance(item, Note):
                self.notes = (*self.notes, item)
            else:
                yield item

    def converter(self) -> Callable[[Decoded], Frame | Dropped]:
        """Return a function from a decoded frame to an upright RGB one, one for each worker."""
        return self._reading.converter()

    def close(self) -> None:
        """Close the file."""
        self._reading.close()


class StretchSource(VideoSource):
    """The frames of one stretch of a video; consecutive stretches share one reading of it.

    So the frames are always those of an uninterrupted reading: stretches that belong to others are
    decoded and left out. Only the last stretch reports what is known at the end of the file.
    """

    def __init__(
        self,
        plan: VideoPlan,
        number: int,
        previous: object = None,
        before: Sequence[Stretch] = (),
    ) -> None:
        """Go on with the reading of ``previous``, the last source read, if it leads here.

        That is so where it is of an earlier stretch of the same video; ``number`` counts from 0.
        Else the stretches directly ``before`` this one, which an earlier reading found without any
        damage, allow this one to decode little of what precedes them.
        """
        assert plan.stretch_frames is not None
        first = number * plan.stretch_frames
        if isinstance(previous, StretchSource) and previous._leads_to(plan, first):
            self._reading = previous._reading
        else:
            self._reading = Reading(plan, _known_times(before, plan.stretch_frames), first)
        self._reading.users += 1
        self._is_open = True
        self._first = first
        self._end = None if number == plan.stretches - 1 else first + plan.stretch_frames
        self.notes = ()

    def close(self) -> None:
        """Close the file, unless the source of a later stretch goes on with it."""
        if self._is_open:
            self._is_open = False
            self._reading.users -= 1
            if not self._reading.users:
                self._reading.close()

    def _leads_to(self, plan: VideoPlan, first: int) -> bool:
        """Return whether this source's reading comes to the frame of number ``first``."""
        reading = self._reading
        return self._is_open and reading.position <= first and reading.plan == plan


_OVERLAP = 3
"""Stretches that are decoded again to find the frames behind them. A group of pictures is seldom
longer."""


def _known_times(before: Sequence[Stretch], frames: int) -> tuple[int, ...]:
    """Return the times of the last stretches of ``before`` that have all of their ``frames``."""
    complete = itertools.takewhile(lambda each: len(each.times) == frames, reversed(before))
    used = tuple(itertools.islice(complete, _OVERLAP))
    return tuple(time for stretch in reversed(used) for time in stretch.times)


class JoinSource:
    """No frames: the stretches of a video that are to be joined have all been written."""

    notes: tuple[Note, ...] = ()

    def read(self) -> Iterator[Decoded | Dropped]:
        """Yield nothing."""
        return iter(())

    def converter(self) -> Callable[[Decoded], Frame | Dropped]:
        """Raise AssertionError: there is nothing to convert."""
        raise AssertionError("a join has no frames")

    def close(self) -> None:
        """Do nothing."""
