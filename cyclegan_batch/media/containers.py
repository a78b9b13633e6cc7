"""Open a media file safely, and say what is in it.

The only module that calls ``av.open`` for reading: every container is opened by its absolute path with
a protocol and a format allow-list, so that a playlist, a script or a URL hidden in a media file
reads no other file and opens no connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from ..frames import Size


@dataclass(frozen=True)
class ColourTags:
    """The colour tags of a stream as ITU-T H.273 code points (2 means unspecified)."""

    matrix: int = 2
    primaries: int = 2
    transfer: int = 2
    range: int = 0
    """0 unspecified, 1 limited (MPEG), 2 full (JPEG), as AVColorRange."""
    chroma_location: int = 0


@dataclass(frozen=True)
class StreamInfo:
    """One stream of a media file."""

    index: int
    kind: Literal["video", "audio", "subtitle", "data", "attachment"]
    codec: str
    time_base: Fraction
    start_pts: int | None
    """In ticks of ``time_base``."""
    duration: int | None
    """In ticks of ``time_base``; None where the container does not say."""
    metadata: dict[str, str]
    disposition: tuple[str, ...]
    # Video only
    size: Size | None = None
    """Stored height and width."""
    displayed_size: Size | None = None
    """Height and width after rotation; sample aspect not applied."""
    sample_aspect_ratio: Fraction | None = None
    rotation: int = 0
    """Degrees counter-clockwise that bring the stored picture upright: 0, 90, 180, 270."""
    mirrored: bool = False
    """The display matrix also mirrors left to right (applied before the rotation)."""
    average_rate: Fraction | None = None
    constant_rate: bool | None = None
    frames_claimed: int | None = None
    """What the header or the index says."""
    pix_fmt: str | None = None
    bits: int = 8
    colour: ColourTags = ColourTags()
    hdr: str | None = None
    """``PQ``, ``HLG`` or None."""
    interlaced: bool | None = None
    attached_picture: bool = False
    closed_captions: bool = False
    # Audio only
    sample_rate: int | None = None
    channels: int | None = None


@dataclass(frozen=True)
class MediaInfo:
    """A media file, described."""

    path: Path
    format: str
    """FFmpeg's name of the container, e.g. ``mov,mp4,m4a,3gp,3g2,mj2``."""
    duration: Fraction | None
    """Seconds."""
    streams: tuple[StreamInfo, ...]
    metadata: dict[str, str]
    chapters: tuple[dict[str, Any], ...]
    """``id, start, end, time_base, metadata``, as PyAV reads them."""

    def best_video(self, index: int | None = None) -> StreamInfo:
        """Return the video stream to translate: ``index``, or the one FFmpeg would choose. Raises InputError."""
        raise NotImplementedError


def probe(path: Path, *, count_frames: bool = False) -> MediaInfo:
    """Describe the media file at ``path``. Raises InputError."""
    raise NotImplementedError
