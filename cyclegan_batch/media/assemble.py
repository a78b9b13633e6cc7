"""Join encoded stretches of video with everything else of their source into the final file.

No picture passes here, only packets: the translated video's from its stretches, the other streams' from
the source. What the target container cannot hold is found before the first frame (`plan_streams`),
and the file is read once, packet by packet, before it gets its name (`assemble`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path


@dataclass(frozen=True)
class Stretch:
    """One unit of video as its encoder left it: a video-only file, and the times of its frames."""

    path: Path
    """MP4 (MKV where MP4 cannot) with packets in decoding order; its own time stamps only give the order."""
    time_base: Fraction
    """The source stream's."""
    times: tuple[int, ...]
    """Presentation times of the frames that were sent to the encoder, in ticks, ascending."""
    last_duration: int | None
    """Duration of the last frame in ticks, where the source says it."""
