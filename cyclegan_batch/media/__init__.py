"""Sources and sinks: one pair for each medium, all behind the two protocols below.

Neither owns a thread and neither is thread-safe: `cyclegan_batch.job.pipeline` alone schedules
them. The two ends that must run in order (`Source.read`, `Sink.write`) are called from one thread
each; the two conversions beside them (`Source.converter`, `Sink.converter`) are made once per
worker, so that each worker holds its own state and many run side by side.

    Source.read → converter → (batcher, backend) → converter → Sink.write … Sink.finish
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from ..errors import CycleganBatchError, InputError
from ..wording import Note

if TYPE_CHECKING:
    from ..frames import Frame, Pixels

Raw = TypeVar("Raw")
"""What a source yields and its converter takes."""
Encoded = TypeVar("Encoded")
"""What a sink's converter returns and its `Sink.write` takes."""


@dataclass(frozen=True)
class Place:
    """One frame or packet of a file that is damaged; those with the same trouble are told at once.

    A sentence is made of it: ``clip.ts, frame 17 (0.680 s): cannot be decoded; repair the file``.
    """

    of: str
    """The file, or its stream, as messages call it."""
    kind: str
    """``frame`` or ``packet``."""
    number: int
    """From 0, in the order of the output."""
    seconds: float | None
    """When it is shown or heard, from the first frame on, where that is known."""
    trouble: str
    """What is the matter and what to do, in words that also fit several of them."""

    @property
    def name(self) -> str:
        """The file with the frame."""
        time = "" if self.seconds is None else f" ({self.seconds:.3f} s)"
        return f"{self.of}, {self.kind} {self.number}{time}"


@dataclass(frozen=True)
class Dropped:
    """What is missing from the output or damaged in it: the run goes on or ends, as the plan says.

    A damaged frame that is kept is reported so, too, and then follows itself.
    """

    name: str
    """The file, or ``file, frame 17``."""
    error: CycleganBatchError
    place: Place | None = None
    """Where it is one of the many frames or packets of a file."""


def dropped_at(place: Place) -> Dropped:
    """Return what is reported of a damaged frame or packet."""
    return Dropped(place.name, InputError(f"{place.name}: {place.trouble}"), place)


class Source(Protocol[Raw]):
    """The pictures of one unit, in order."""

    def read(self) -> Iterator[Raw | Dropped]:
        """Yield what `converter` takes, in presentation order, or `Dropped`.

        Called once, from one thread. Raises InputError where the unit as a whole cannot be read.
        """

    def converter(self) -> Callable[[Raw], Frame | Dropped]:
        """Return a function from an item of `read` to a Frame; each worker thread makes its own.

        It may return Dropped, or raise InputError, where this picture cannot be read.
        """

    @property
    def notes(self) -> Sequence[Note]:
        """What was found on the way that the user is told once."""
        ...

    def close(self) -> None:
        """Release the input. May be called at any time after `read` has stopped; twice is fine."""


class Sink(Protocol[Encoded]):
    """Where the pictures of one unit go; nothing has its final name before `finish`."""

    def converter(self) -> Callable[[Frame], Encoded]:
        """Return a function from a translated Frame to what `write` takes; one per worker thread.

        It may raise OutputError where this picture cannot be encoded.
        """

    @property
    def written(self) -> Sequence[Path]:
        """The final names that are whole so far."""
        ...

    @property
    def notes(self) -> Sequence[Note]:
        """What was found on the way that the user is told once."""
        ...

    def write(self, item: Encoded) -> Dropped | None:
        """Take the next picture, in order; return Dropped where only this one is lost.

        Raises OutputError where the unit as a whole cannot be written, BrokenPipeError where
        whoever reads a pipe has gone.
        """

    def finish(self) -> Sequence[Dropped]:
        """Flush, check what was written, and give it its final name; return what it lacks.

        Raises OutputError, and InputError where what is missing is not to be skipped.
        """

    def discard(self) -> None:
        """Remove all that has only a temporary name. Safe after any error; twice is fine."""


def first_frame(source: Source[Raw], name: str) -> Pixels:
    """Return the pixels of the first frame of ``source`` that can be read, and close it.

    ``name`` is for messages. Raises InputError where there is no such frame: the first one's error,
    if it had one.
    """
    convert = source.converter()
    error: CycleganBatchError | None = None
    try:
        for item in source.read():
            frame = item if isinstance(item, Dropped) else convert(item)
            if not isinstance(frame, Dropped):
                return frame.pixels
            # The error of a frame that the decoder concealed comes before that frame.
            error = error or frame.error
    finally:
        source.close()
    raise error or InputError(f"{name}: no frame was found at this place; check the file")
