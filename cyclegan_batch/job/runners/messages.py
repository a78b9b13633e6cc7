"""What a worker process and its runner tell each other, as values that can be pickled.

A unit keeps the number that the runner gave it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ...errors import CycleganBatchError
from ...media import Dropped, Whole
from ...wording import Note
from ..units import Stage, Unit

# To the worker


@dataclass(frozen=True)
class Work:
    """The next unit."""

    number: int
    unit: Unit


@dataclass(frozen=True)
class NoMore:
    """There is nothing more to do: the worker ends when its units have ended."""


@dataclass(frozen=True)
class Stop:
    """The worker ends now; what is not whole is removed."""


# From the worker


@dataclass(frozen=True)
class Ready:
    """The backend is open."""


@dataclass(frozen=True)
class Next:
    """The worker has room for another unit, which `Work` or `NoMore` answers."""


@dataclass(frozen=True)
class Missing:
    """Something of a unit is missing or damaged."""

    number: int
    dropped: Dropped


@dataclass(frozen=True)
class Published:
    """Images of a shard that are whole."""

    number: int
    items: Sequence[Whole]


@dataclass(frozen=True)
class Ended:
    """The end of a unit, with what of it became whole only then."""

    number: int
    items: Sequence[Whole]
    error: CycleganBatchError | None
    dropped: Sequence[Dropped]
    notes: Sequence[Note]
    frames: int
    reused: int


@dataclass(frozen=True)
class Progress:
    """How far the worker is."""

    frames: int
    """Written since its start."""
    reused: int
    """Those of them that repeat the frame before them."""
    unit: str
    stages: Mapping[str, Stage]
    notes: Sequence[Note]
    """Those that are new."""


@dataclass(frozen=True)
class Raised:
    """The worker ends with an error that ends the run."""

    error: CycleganBatchError


@dataclass(frozen=True)
class Crashed:
    """The worker ends with an exception that is a bug."""

    traceback: str


@dataclass(frozen=True)
class Done:
    """The worker ends as it should."""


ToWorker: TypeAlias = Work | NoMore | Stop
FromWorker: TypeAlias = (
    Ready | Next | Missing | Published | Ended | Progress | Raised | Crashed | Done
)
