"""Sources and sinks: one pair for each medium, all behind the two protocols below.

They start no threads of the pipeline and are not thread-safe: `cyclegan_batch.job.pipeline` calls
them. `Source.read` and `Sink.write` run in order, from one thread each. `Source.converter` and
`Sink.converter` are called once by each worker thread, so that every worker has its own state and
many convert side by side.

    Source.read → converter → (batcher, backend) → converter → Sink.write … Sink.finish
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar

from ..errors import CycleganBatchError, InputError
from ..file_identity import FileIdentity
from ..wording import Note

if TYPE_CHECKING:
    from ..frames import Frame, Pixels, Size
    from .mux.joined_video import Stretch

Raw = TypeVar("Raw")
"""What a source yields and its converter takes."""
Encoded = TypeVar("Encoded")
"""What a sink's converter returns and its `Sink.write` takes."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A damaged frame or packet of a file; a report lists those with the same trouble together.

    ``clip.ts, frame 17 (0.680 s): cannot be decoded; repair the file``
    """

    subject: str
    """The file, or its stream, as messages call it."""
    kind: Literal["frame", "packet"]
    number: int
    """From 0, in the order of the output."""
    seconds: float | None
    """When it is shown or heard, counted from the first frame, where that is known."""
    trouble: str
    """What is wrong and what to do, in words that suit one place and several."""

    @property
    def name(self) -> str:
        """The file with the frame."""
        time = "" if self.seconds is None else f" ({self.seconds:.3f} s)"
        return f"{self.subject}, {self.kind} {self.number}{time}"


@dataclass(frozen=True)
class Dropped:
    """Something missing from the output or damaged in it; ``--on-error`` decides what follows.

    A damaged frame that is kept is reported in this way, too; the frame itself follows.
    """

    name: str
    """The file, or ``file, frame 17``."""
    error: CycleganBatchError
    place: Place | None = None
    """Set where a single frame or packet of a file is concerned."""
    warm_up: bool = False
    """It is a frame in front of its unit (`Frame.warm_up`), which the unit before reports."""


def dropped_at(place: Place) -> Dropped:
    """Return the report of a damaged frame or packet."""
    return Dropped(place.name, InputError(f"{place.name}: {place.trouble}"), place)


@dataclass(frozen=True, kw_only=True)
class Written:
    """An output that is whole under its final name, and the input that it was made of."""

    path: Path
    source: Path
    identity: FileIdentity | None
    """Of the source when it was read; None for standard input."""
    source_size: Size | None
    """Height and width of the upright source; None for a tar, whose images may differ."""
    size: Size | None
    """Height and width of the output."""
    bytes: int
    sha256: str
    """Of the output's bytes."""
    images: int | None = None
    """How many translated images a tar holds; None for what is no tar."""
    numbers: tuple[tuple[int, int], ...] = ()
    """Of numbered images, of which ``path`` is the pattern: the first and the last number of each
    row of consecutive ones. ``bytes`` is then their sum, and ``sha256`` that of their digests, a
    line each."""


Whole: TypeAlias = "Written | Stretch"
"""What a sink has finished: a file under its final name, or a stretch that is yet to be joined."""


class Source(Protocol[Raw]):
    """The frames of one unit, in order."""

    def read(self) -> Iterator[Raw | Dropped]:
        """Yield what `converter` takes, in presentation order, or `Dropped`.

        Called once, from one thread. Raises InputError where the unit as a whole cannot be read.
        """

    def converter(self) -> Callable[[Raw], Frame | Dropped]:
        """Return a function from an item of `read` to a Frame; each worker thread makes its own.

        It returns Dropped or raises InputError where the frame cannot be read.
        """

    @property
    def notes(self) -> Sequence[Note]:
        """Notes for the user, as far as they are known; each is reported once."""
        ...

    def close(self) -> None:
        """Release the input. May be called at any time after `read` has stopped; twice is fine."""


class Sink(Protocol[Encoded]):
    """The output of one unit."""

    def converter(self) -> Callable[[Frame], Encoded]:
        """Return a function from a translated Frame to what `write` takes; one per worker thread.

        It raises OutputError where the frame cannot be encoded.
        """

    @property
    def written(self) -> Sequence[Whole]:
        """What is whole so far; it only grows."""
        ...

    @property
    def notes(self) -> Sequence[Note]:
        """Notes for the user, as far as they are known; each is reported once."""
        ...

    def write(self, item: Encoded) -> Dropped | None:
        """Write the next frame, in order; return Dropped where a single frame is lost.

        Raises OutputError where the unit as a whole cannot be written, BrokenPipeError where the
        reader of a pipe has closed it.
        """

    def finish(self) -> Sequence[Dropped]:
        """Flush, check the output and give it its final name; return what is missing from it.

        Raises OutputError, and InputError where missing parts are not to be skipped.
        """

    def discard(self) -> None:
        """Remove everything under a temporary name. Safe after any error; twice is fine.

        Frames with files of their own that are whole may get their final names first.
        """


def first_frame(source: Source[Raw], name: str) -> Pixels:
    """Return the pixels of the first frame of ``source`` that can be read, and close it.

    ``name`` is for messages. Raises InputError where there is no such frame: the first error that
    the source reported, if any.
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
