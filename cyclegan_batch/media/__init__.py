"""Sources and sinks: one pair for each medium, all behind the two protocols below.

Neither owns a thread and neither is thread-safe: `cyclegan_batch.pipeline` alone schedules them.
The two ends that must run in order (`Source.read`, `Sink.write`) are called from one thread each;
the two conversions beside them (`Source.converter`, `Sink.converter`) are made once per worker, so
that each worker holds its own state and many run side by side.

    Source.read → converter → (batcher, backend) → converter → Sink.write … Sink.finish
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import CycleganBatchError
from ..frames import Frame


@dataclass(frozen=True)
class Dropped:
    """A picture missing from the output: the run goes on without it or fails, as the plan says."""

    name: str
    """The file, or ``file, frame 17``."""
    error: CycleganBatchError


class Source(Protocol):
    """The pictures of one unit, in order."""

    def read(self) -> Iterator[Any]:
        """Yield what `converter` takes, in presentation order, or `Dropped`.

        Called once, from one thread. Raises InputError where the unit as a whole cannot be read.
        """

    def converter(self) -> Callable[[Any], Frame | Dropped]:
        """Return a function from an item of `read` to a Frame; each worker thread makes its own.

        It may return Dropped, or raise InputError, where this picture cannot be read.
        """

    @property
    def notes(self) -> Sequence[str]:
        """What was found on the way that the user is told once."""
        ...

    def close(self) -> None:
        """Release the input. May be called at any time after `read` has stopped; twice is fine."""


class Sink(Protocol):
    """Where the pictures of one unit go; nothing has its final name before `finish`."""

    def converter(self) -> Callable[[Frame], Any]:
        """Return a function from a translated Frame to what `write` takes; one per worker thread.

        It may raise OutputError where this picture cannot be encoded.
        """

    @property
    def written(self) -> Sequence[Path]:
        """The final names that are whole so far."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What was found on the way that the user is told once."""
        ...

    def write(self, item: Any) -> Dropped | None:
        """Take the next picture, in order; return Dropped where only this one is lost.

        Raises OutputError where the unit as a whole cannot be written, BrokenPipeError where
        whoever reads a pipe has gone.
        """

    def finish(self) -> None:
        """Flush, check what was written, and give it its final name. Raises OutputError."""

    def discard(self) -> None:
        """Remove all that has only a temporary name. Safe after any error; twice is fine."""
