"""What planning, running and reporting share: units of work, failures, counters."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from ..errors import CycleganBatchError, OutputError, OutputExistsError, OutputInUseError
from ..files import exists
from ..media import Dropped, Place, Sink, Source, Whole
from ..media.pattern import numbered_files
from ..remote import is_remote
from ..wording import Note

if TYPE_CHECKING:
    from ..media.images.shards import ImageShard, ImageSource
    from ..media.images.sinks import ImageSink, ObjectSink
    from ..media.mux.joined_video import Stretch
    from ..media.tars.plan import TarPlan
    from ..media.tars.sink import TarSink
    from ..media.tars.source import TarSource
    from ..media.video.numbered_sink import NumberedJoinSink, NumberedSink, NumberedStretchSink
    from ..media.video.plan import VideoPlan
    from ..media.video.sink import JoinSink, StretchSink, VideoSink
    from ..media.video.source import JoinSource, StretchSource, VideoSource

_NOTHING_WRITABLE = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.ENODEV, errno.EHOSTUNREACH),  # a store without the bucket, or that does not answer
    }
)
"""Errors after which no other output can be written there either."""


AnySource: TypeAlias = "Source[Any]"
"""The source of a unit; what it yields depends on the unit's kind."""
AnySink: TypeAlias = "Sink[Any]"
"""The sink of a unit; what it takes depends on the unit's kind."""


class Unit(Protocol):
    """A piece of work that is done or not done as a whole."""

    @property
    def name(self) -> str:
        """The file or the folder, as messages call it."""

    @property
    def frames(self) -> int | None:
        """How many frames are expected, or None where the input does not show it."""

    @property
    def temporal(self) -> float:
        """The strength of the filter against flicker, 0 for none."""

    def open_source(self, previous: AnySource | None = None) -> AnySource:
        """Open the input. Raises InputError.

        ``previous`` is the source that was read before, still open. A stretch of the same video
        goes on with its decoder; closing the previous source then closes nothing.
        """

    def open_sink(self, source: AnySource) -> AnySink:
        """Open the output under a temporary name. Raises OutputError.

        ``source`` is the unit's own, open. The sink of a tar takes from it what is no image; the
        others do without.
        """


@dataclass(frozen=True)
class VideoUnit:
    """A video, a pattern of images or standard input."""

    plan: VideoPlan

    @property
    def name(self) -> str:
        """The file, as messages call it."""
        return self.plan.name

    @property
    def frames(self) -> int | None:
        """How many frames are expected, or None where the file does not show it."""
        return self.plan.frames_expected

    @property
    def temporal(self) -> float:
        """The strength of the filter against flicker, 0 for none."""
        return self.plan.temporal

    def open_source(self, previous: AnySource | None = None) -> VideoSource:
        """Open the decoder. Raises InputError."""
        from ..media.video.source import VideoSource

        return VideoSource(self.plan)

    def open_sink(self, source: AnySource) -> VideoSink | NumberedSink:
        """Open the encoder. Raises OutputError."""
        from ..media.video.numbered_sink import NumberedSink
        from ..media.video.sink import VideoSink

        return NumberedSink(self.plan) if self.plan.is_numbered else VideoSink(self.plan)


@dataclass(frozen=True)
class StretchUnit:
    """A stretch of a video: a file of its own, which is joined with the others when all are done.

    Consecutive stretches in one process share one reading of the video.
    """

    plan: VideoPlan
    number: int
    """From 0 to ``plan.stretches - 1``."""
    folder: Path
    """Holds the files of the video's stretches; the sink makes it with the first frame."""
    before: tuple[Stretch, ...] = ()
    """The last stretches that are done directly before this one, in order; three suffice.

    To be given where an earlier run ended here and found no damage at all in the video. Then most
    of what precedes them need not be decoded again.
    """

    @property
    def name(self) -> str:
        """The video, as messages call it."""
        return self.plan.name

    @property
    def frames(self) -> int:
        """How many frames the stretch is expected to have."""
        each, whole = self.plan.stretch_frames, self.plan.frames_expected
        assert each is not None
        assert whole is not None
        return min(each, whole - self.number * each)

    @property
    def temporal(self) -> float:
        """The strength of the filter against flicker, 0 for none."""
        return self.plan.temporal

    def open_source(self, previous: AnySource | None = None) -> StretchSource:
        """Return the reader of the frames, which goes on with the reading of ``previous``."""
        from ..media.video.source import StretchSource

        return StretchSource(self.plan, self.number, previous, self.before)

    def open_sink(self, source: AnySource) -> StretchSink | NumberedStretchSink:
        """Return the encoder. The output is not locked: whoever hands out the stretches does it."""
        from ..media.video.numbered_sink import NumberedStretchSink
        from ..media.video.sink import StretchSink

        sink = NumberedStretchSink if self.plan.is_numbered else StretchSink
        return sink(self.plan, self.number, self.folder)


@dataclass(frozen=True)
class JoinUnit:
    """The join of a video's stretches with the other streams of its source. It has no frames.

    The files of the stretches stay: they are needed until it is recorded that the output is whole.
    """

    plan: VideoPlan
    stretches: tuple[Stretch, ...]
    """Those that have frames, in their order."""
    temporal: ClassVar[float] = 0.0

    @property
    def name(self) -> str:
        """The video, as messages call it."""
        return self.plan.name

    @property
    def frames(self) -> int:
        """None of its own."""
        return 0

    def open_source(self, previous: AnySource | None = None) -> JoinSource:
        """Return a source without frames."""
        from ..media.video.source import JoinSource

        return JoinSource()

    def open_sink(self, source: AnySource) -> JoinSink | NumberedJoinSink:
        """Return the join. The output is not locked."""
        from ..media.video.numbered_sink import NumberedJoinSink
        from ..media.video.sink import JoinSink

        sink = NumberedJoinSink if self.plan.is_numbered else JoinSink
        return sink(self.plan, self.stretches)


@dataclass(frozen=True)
class ImageUnit:
    """A shard of images, each of which has a file of its own."""

    shard: ImageShard
    temporal: ClassVar[float] = 0.0

    @property
    def name(self) -> str:
        """The image, or the folder and which of its images."""
        return self.shard.name

    @property
    def frames(self) -> int:
        """How many images the shard has."""
        return len(self.shard.entries)

    def open_source(self, previous: AnySource | None = None) -> ImageSource:
        """Return the reader of the images."""
        from ..media.images.shards import ImageSource

        return ImageSource(self.shard)

    def open_sink(self, source: AnySource) -> ImageSink | ObjectSink:
        """Return the writer of the images."""
        from ..media.images.sinks import ImageSink, ObjectSink

        # All outputs of a job lie beneath one root.
        if is_remote(self.shard.entries[0].output):
            return ObjectSink(self.shard)
        return ImageSink(self.shard)


@dataclass(frozen=True)
class TarUnit:
    """A tar, in one piece."""

    plan: TarPlan
    temporal: ClassVar[float] = 0.0

    @property
    def name(self) -> str:
        """The tar, as messages call it."""
        return self.plan.name

    @property
    def frames(self) -> None:
        """None: how many images a tar has is known at its end."""
        return

    def open_source(self, previous: AnySource | None = None) -> TarSource:
        """Open the tar. Raises InputError."""
        from ..media.tars.source import TarSource

        return TarSource(self.plan)

    def open_sink(self, source: AnySource) -> TarSink:
        """Open the output, into which ``source`` passes what is no image. Raises OutputError."""
        from ..media.tars.sink import TarSink
        from ..media.tars.source import TarSource

        assert isinstance(source, TarSource)
        return TarSink(self.plan, source)


def output_exists(unit: Unit, output: Path) -> bool:
    """Return whether there is anything of the ``output`` of a unit."""
    if isinstance(unit, VideoUnit | StretchUnit | JoinUnit):
        return unit.plan.existing() is not None
    return exists(output)


@dataclass(frozen=True)
class Outcome:
    """How a unit ended."""

    unit: Unit
    error: CycleganBatchError | None
    """Why the unit as a whole was given up; None where it is done."""
    dropped: tuple[Dropped, ...] = ()
    """What is missing from it or damaged in it."""
    notes: tuple[Note, ...] = ()
    frames: int = 0
    """Frames that were written."""
    reused: int = 0
    """Those of them that were not computed, since they repeat the frame before them."""


class Observer(Protocol):
    """What a run reports of its units, in the order in which it happens, from one thread."""

    def dropped(self, unit: Unit, dropped: Dropped) -> None:
        """Take something that is missing from ``unit`` or damaged in it; `ended` has it again."""

    def published(self, unit: Unit, items: Sequence[Whole]) -> None:
        """Take what has become whole of ``unit``: files under their final names, or a stretch."""

    def ended(self, outcome: Outcome) -> None:
        """Take the end of a unit. A unit in whose middle the run was stopped has no end."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Damaged frames or packets that follow each other without a gap."""

    first: int
    last: int
    start_seconds: float | None
    """When the first is shown, counted from the first frame of the file."""
    end_seconds: float | None
    """When the last is shown."""


@dataclass(frozen=True)
class Failure:
    """Something that is missing from the output or damaged in it, and why."""

    name: str
    """The file, with the frame where the failure concerns one."""
    error: CycleganBatchError
    """Where the failure has several places, the error of the first."""
    count: int = 1
    """How many frames or packets of the file are concerned; 1 where the whole file is."""
    spans: tuple[Span, ...] = ()
    """The places in the file, ascending; the first `_MOST_SPANS` spans."""
    last: Place | None = None
    """The last place, where the failure has places."""

    @property
    def cause(self) -> str:
        """The reason as a sentence that names the file and all places."""
        if self.last is None or self.count == 1:
            return str(self.error)
        return f"{_places(self.last, self.count, self.spans)}: {self.last.trouble}"

    def and_at(self, place: Place) -> Failure:
        """Return this failure with one more place of the same trouble."""
        spans = self.spans
        end = spans[-1]
        if place.number == end.last + 1:
            spans = (*spans[:-1], replace(end, last=place.number, end_seconds=place.seconds))
        elif len(spans) < _MOST_SPANS:
            spans = (*spans, _span(place))
        return Failure(place.subject, self.error, self.count + 1, spans, place)

    def description(self) -> dict[str, object]:
        """Return the failure as values for JSON."""
        return {
            "name": self.name,
            "cause": self.cause,
            "count": self.count,
            "spans": [asdict(span) for span in self.spans],
        }


def without_frames(error: CycleganBatchError) -> CycleganBatchError:
    """Return ``error`` after removing its tracebacks and those of its causes.

    A traceback keeps the arrays and the open files of every function that it names alive. A run
    that goes on may keep thousands of errors.
    """
    chain: list[BaseException | None] = [error]
    visited: set[int] = set()
    while chain:
        each = chain.pop()
        if each is not None and id(each) not in visited:
            visited.add(id(each))
            each.__traceback__ = None
            chain += [each.__cause__, each.__context__]
    return error


_MOST_SPANS = 1000
"""Spans that are kept of one kind of damage in one file; the places beyond them are counted."""
_MOST_WRITTEN_SPANS = 6
"""Spans that a message lists."""


def _span(place: Place) -> Span:
    return Span(
        first=place.number,
        last=place.number,
        start_seconds=place.seconds,
        end_seconds=place.seconds,
    )


def _places(last: Place, count: int, spans: Sequence[Span]) -> str:
    """Return several places of a file in words: ``clip.ts, frames 3 (0.120 s) and 5 (0.200 s)``."""
    words = []
    for span in spans[:_MOST_WRITTEN_SPANS]:
        several = span.last > span.first
        number = f"{span.first}–{span.last}" if several else f"{span.first}"
        if span.start_seconds is not None and span.end_seconds is not None:
            number += f" ({span.start_seconds:.3f}"
            number += f"–{span.end_seconds:.3f} s)" if several else " s)"
        words.append(number)
    listed_count = sum(span.last - span.first + 1 for span in spans[:_MOST_WRITTEN_SPANS])
    if listed_count < count:
        upto = "" if last.seconds is None else f" ({last.seconds:.3f} s)"
        words.append(f"{count - listed_count:,} more up to {last.number}{upto}")
    enumeration = f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
    return f"{last.subject}, {last.kind}s {enumeration}, {count:,} in all"


@dataclass
class Stage:
    """The workers of a stage and how busy they were."""

    workers: int
    busy_seconds: float = 0.0
    """Seconds of work without the waiting for queues, summed over the workers."""


@dataclass
class Counters:
    """The state of a run: its threads write it, progress display and report read it."""

    frames_done: int = 0
    reused: int = 0
    """Those of them that were not computed, since they repeat the frame before them."""
    units_done: int = 0
    unit: str = ""
    """The unit that is being written."""
    failures: list[Failure] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    """Notes for the user, in the order in which they arose."""
    written: list[Path] = field(default_factory=list)
    """Outputs that are whole under their final names."""
    left: int = 0
    """Number of outputs that another process wrote during the run and that stay (``-n``)."""
    stages: dict[str, Stage] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    """When the run began, by `time.monotonic`."""
    workers: int = 1
    """Processes that work side by side."""
    unsettled: int = 0
    """Frames and packets that other processes have reported as damaged or missing, of units that
    have not ended."""
    interrupted: bool = False
    """The user stopped the run."""
    pipe_closed: bool = False
    """The process that reads standard output closed it before the end."""
    ended: float | None = None
    """When the translation ended, by `time.monotonic`, where something follows it."""
    comparing: Counters | None = None
    """The state of the comparisons that are being made behind the translation."""
    expected: int | None = None
    """In the counters of comparisons: how many frames they are going to have, where that is
    known."""
    _index_of_kind: dict[tuple[str, str, str], int] = field(default_factory=dict, repr=False)
    """The index in ``failures`` of each kind of damage to a file: file, kind of place, trouble."""

    @property
    def failed(self) -> int:
        """How many frames, packets and files are damaged or missing."""
        return sum(failure.count for failure in self.failures) + self.unsettled

    def record(self, name: str, error: CycleganBatchError, place: Place | None = None) -> Failure:
        """Add a failure and return it; the same trouble at many places of a file is one failure."""
        if place is None:
            self.failures.append(Failure(name, error))
            return self.failures[-1]
        kind = place.subject, place.kind, place.trouble
        failure = Failure(name, error, spans=(_span(place),), last=place)
        return self._merged(kind, failure, lambda earlier: earlier.and_at(place))

    def record_unit(self, name: str, error: CycleganBatchError) -> Failure:
        """Add the failure of a whole unit and return it.

        The stretches of a video that cannot be written fail one after the other: one failure.
        """
        return self._merged((name, "", str(error)), Failure(name, error), lambda earlier: earlier)

    def _merged(
        self,
        kind: tuple[str, str, str],
        failure: Failure,
        merge: Callable[[Failure], Failure],
    ) -> Failure:
        """Add ``failure``, or merge it with the earlier one of its kind; return the result."""
        index = self._index_of_kind.setdefault(kind, len(self.failures))
        if index == len(self.failures):
            self.failures.append(failure)
        else:
            self.failures[index] = merge(self.failures[index])
        return self.failures[index]

    def count_existing_as_left(self) -> None:
        """Move from ``failures`` to ``left`` the outputs that another process has written by now.

        They are those that it was still writing when this process needed them.
        """
        for failure in list(self.failures):
            output = failure.error.output if isinstance(failure.error, OutputInUseError) else None
            if output is not None and (exists(output) or numbered_files(output)):
                self.failures.remove(failure)
                self.left += 1

    @property
    def seconds(self) -> float:
        """Seconds since the run began, until the translation ended."""
        return (time.monotonic() if self.ended is None else self.ended) - self.started

    def limiting_stage(self) -> str | None:
        """Return the stage with the largest busy share, or None before the first frame."""
        if not self.frames_done:
            return None
        return max(
            self.stages, key=lambda name: self.stages[name].busy_seconds / self.stages[name].workers
        )


@dataclass(frozen=True)
class Tolerance:
    """After which failures a run goes on."""

    skip_errors: bool = False
    """It goes on after failures (``--on-error skip``)."""
    max_failures: int | None = None
    """It ends after more failures than these; None for any number."""
    skip_existing: bool = False
    """An output that exists is none (``--skip-existing``)."""

    def record(self, counters: Counters, dropped: Dropped) -> None:
        """Record what is missing. Raises its error where the run is to end."""
        if not self._is_left(counters, dropped.error):
            failure = counters.record(dropped.name, dropped.error, dropped.place)
            self._go_on(counters, dropped.error, failure)

    def record_unit(self, counters: Counters, name: str, error: CycleganBatchError) -> None:
        """Record the failure of a whole unit. Raises it where the run is to end."""
        if not self._is_left(counters, error):
            self._go_on(counters, error, counters.record_unit(name, error))

    def _is_left(self, counters: Counters, error: CycleganBatchError) -> bool:
        if self.skip_existing and isinstance(error, OutputExistsError):
            counters.left += 1
            return True
        return False

    def _go_on(self, counters: Counters, error: CycleganBatchError, failure: Failure) -> None:
        """Raise ``error`` unless the run goes on after it and others can succeed."""
        if not self.skip_errors or is_hopeless(error):
            raise error
        self.check(counters, error, failure)
        without_frames(error)

    def check(self, counters: Counters, error: CycleganBatchError, failure: Failure) -> None:
        """Raise an error where there are too many failures, of which ``error`` is the last.

        ``failure`` is the one that it was recorded as.
        """
        if self.max_failures is not None and counters.failed > self.max_failures:
            raise type(error)(
                too_many_failures(counters.failed, self.max_failures, str(error))
            ) from failure.error


def too_many_failures(count: int, allowed: int, last: str) -> str:
    """Return the reason why a job with ``count`` failures was given up, the last one included."""
    return f"gave up, as {count} failures are more than --max-failures {allowed} allows; {last}"


def is_hopeless(error: CycleganBatchError) -> bool:
    """Return whether no other unit can be written either: no space, no permission."""
    cause = error.__cause__
    if not isinstance(error, OutputError) or not isinstance(cause, OSError):
        return False
    return cause.errno in _NOTHING_WRITABLE
