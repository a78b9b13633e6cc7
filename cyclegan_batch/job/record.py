"""What earlier runs of a job have done, as its journals tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..media import Dropped
from ..wording import Note

if TYPE_CHECKING:
    from ..media.mux.joined_video import Stretch


@dataclass(frozen=True, kw_only=True)
class DoneStretch:
    """A stretch of a video that an earlier run has finished."""

    number: int
    """From 0."""
    stretch: Stretch | None
    """None where no frame of the video falls into it."""
    dropped: tuple[Dropped, ...]
    """What is missing from it or damaged in it."""
    notes: tuple[Note, ...]
    frames: int
    """Frames that were written."""
