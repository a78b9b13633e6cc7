"""The description of a media file and its streams: sizes, rates, times, colour tags."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from ...errors import InputError
from ...frames import Size
from ...wording import printable
from ..tone_mapping import CURVES
from .timestamps import Discontinuity

Fields: TypeAlias = Literal["tff", "bff"]
"""The field of an interlaced frame that is shown first: the top one (line 0) or the bottom one."""
StreamKind: TypeAlias = Literal["video", "audio", "subtitle", "data", "attachment"]


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
    kind: StreamKind
    codec: str
    time_base: Fraction
    start_pts: int | None
    """In ticks of ``time_base``."""
    duration: int | None
    """In ticks of ``time_base``; None where the container does not state it."""
    metadata: dict[str, str]
    disposition: tuple[str, ...]
    # Video only
    size: Size | None = None
    """Stored height and width."""
    sample_aspect_ratio: Fraction | None = None
    rotation: int = 0
    """Degrees counter-clockwise that bring the stored frame upright: 0, 90, 180, 270."""
    mirrored: bool = False
    """The display matrix also mirrors left to right, before the rotation: the upright frame is
    ``np.rot90(np.fliplr(stored) if mirrored else stored, rotation // 90)``."""
    average_rate: Fraction | None = None
    constant_rate: bool | None = None
    """All frames lie on an even grid, within one tick; None where too few times are known.

    The times are those of the index where it is complete, else of the first packets
    (`lookahead.LOOKAHEAD_PACKETS`), or of every frame where the frames were counted."""
    frames_claimed: int | None = None
    """By the header or the index."""
    frames_counted: int | None = None
    """Frames that the stream decodes to, where they were counted."""
    pix_fmt: str | None = None
    bits: int = 8
    colour: ColourTags = ColourTags()
    peak: float | None = None
    """cd/m² of the brightest pixel, where mastering display or content light level states it."""
    dolby_vision: bool = False
    """The stream is marked as Dolby Vision, or its first frame has metadata of it."""
    paused: int = 0
    """Ticks at the discontinuities of the file during which the stream shows no frame, in all."""
    interlaced: bool | None = None
    """By the header's field order or the first frame; None where neither states it."""
    fields: Fields | None = None
    """Where the video is interlaced; the top field is first where nothing states it."""
    alpha: bool = False
    """The frames hold transparency, in the pixel format or beside it (VP8, VP9)."""
    attached_picture: bool = False
    closed_captions: bool = False
    """The first packets of the video hold CEA-608/708 captions."""
    # Audio only
    sample_rate: int | None = None
    channels: int | None = None

    @property
    def displayed_size(self) -> Size | None:
        """Height and width after rotation; sample aspect not applied."""
        return self.size[::-1] if self.size and self.rotation % 180 else self.size

    @property
    def hdr(self) -> str | None:
        """``PQ``, ``HLG`` or None."""
        return CURVES.get(self.colour.transfer)

    @property
    def label(self) -> str:
        """The stream in a few words for a message: ``audio aac, eng``."""
        kind = "attached picture" if self.attached_picture else self.kind
        language = self.metadata.get("language", "und")
        return f"{kind} {self.codec}" + ("" if language == "und" else f", {language}")


class Chapter(TypedDict):
    """A chapter of a media file, with PyAV's keys."""

    id: int
    start: int
    """In ticks of ``time_base``, like ``end``."""
    end: int
    time_base: Fraction
    metadata: dict[str, str]


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
    chapters: tuple[Chapter, ...]
    discontinuities: tuple[Discontinuity, ...] = ()
    """Where the timestamps begin anew or jump, as far as the file was read. All times of the
    streams are on the one `Timeline` without these places."""
    plays: int | None = None
    """How often an animated image is shown, 0 for ever; None for any other file."""
    icc: bytes | None = None
    """The colour profile of an animated image."""

    @property
    def start(self) -> Fraction | None:
        """When the first audio or video stream begins, in seconds; None where none states it."""
        starts = [
            stream.start_pts * stream.time_base
            for stream in self.streams
            if stream.start_pts is not None
            and stream.kind in ("video", "audio")
            and not stream.attached_picture
        ]
        return min(starts, default=None)

    @property
    def length(self) -> Fraction | None:
        """Seconds from the start to the end; None where the container does not state it."""
        if self.duration is None or not self.format.startswith("matroska"):
            return self.duration
        # Matroska's duration counts from time 0, not from the start.
        return self.duration - max(Fraction(0), self.start or Fraction(0))

    @property
    def first_frame(self) -> Fraction | None:
        """When the first frame of the best video is shown, in seconds; without video, `start`."""
        videos = [s for s in self.streams if s.kind == "video" and not s.attached_picture]
        if not videos:
            return self.start
        best = max(videos, key=_ffmpeg_score)
        return None if best.start_pts is None else best.start_pts * best.time_base

    def best_video(self, index: int | None = None) -> StreamInfo:
        """Return the video stream to translate: ``index``, or the one FFmpeg would choose.

        That is the stream with the largest frames, where being marked as default counts as five
        million pixels; of several equal ones the first. Attached pictures do not count as video.
        Raises InputError.
        """
        name = printable(self.path)
        videos = [s for s in self.streams if s.kind == "video" and not s.attached_picture]
        labels = ", ".join(f"{s.index} ({s.label})" for s in self.streams) or "nothing"
        if index is not None:
            for stream in videos:
                if stream.index == index:
                    return stream
            choices = ", ".join(str(s.index) for s in videos) or "none"
            raise InputError(
                f"{name}: stream {index} is no video; found {labels}; choose one of: {choices}"
            )
        if not videos:
            pictures = any(s.attached_picture for s in self.streams)
            what = "only an attached picture, no video" if pictures else "no video stream"
            raise InputError(f"{name}: {what}; found {labels}; give a file that holds a video")
        return max(videos, key=_ffmpeg_score)


def _ffmpeg_score(stream: StreamInfo) -> int:
    """Return the rank that the ffmpeg program gives a video stream when none is named."""
    height, width = stream.size or (0, 0)
    return height * width + (5_000_000 if "default" in stream.disposition else 0)


FIELDS_BY_ORDER: dict[int, Fields] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
"""The field that is shown first, by AVFieldOrder."""

FIELD_ORDER: dict[Fields, int] = {"tff": 2, "bff": 3}
"""AVFieldOrder by the field that is shown first; fields are coded in the order of showing."""


def colour_names(colour: ColourTags) -> dict[str, str]:
    """Return the tags by FFmpeg's names, ``untagged`` where the file does not state one."""
    return {
        "matrix": _MATRICES.get(colour.matrix, f"unknown ({colour.matrix})"),
        "primaries": _PRIMARIES.get(colour.primaries, f"unknown ({colour.primaries})"),
        "transfer": _TRANSFERS.get(colour.transfer, f"unknown ({colour.transfer})"),
        "range": {0: "untagged", 1: "limited", 2: "full"}.get(
            colour.range, f"unknown ({colour.range})"
        ),
    }


def _names(text: str) -> dict[int, str]:
    return {int(code): name for code, name in (item.split(":") for item in text.split())}


# ITU-T H.273 tables 2, 3 and 4, by the names that FFmpeg's options have.
_PRIMARIES = _names(
    "1:bt709 2:untagged 4:bt470m 5:bt470bg 6:smpte170m 7:smpte240m 8:film 9:bt2020 10:smpte428 "
    "11:smpte431 12:smpte432 22:ebu3213"
)

_TRANSFERS = _names(
    "1:bt709 2:untagged 4:gamma22 5:gamma28 6:smpte170m 7:smpte240m 8:linear 9:log100 10:log316 "
    "11:iec61966-2-4 12:bt1361e 13:iec61966-2-1 14:bt2020-10 15:bt2020-12 16:smpte2084 17:smpte428 "
    "18:arib-std-b67"
)

_MATRICES = _names(
    "0:gbr 1:bt709 2:untagged 4:fcc 5:bt470bg 6:smpte170m 7:smpte240m 8:ycgco 9:bt2020nc "
    "10:bt2020c 11:smpte2085 12:chroma-derived-nc 13:chroma-derived-c 14:ictcp 15:ipt-c2 "
    "16:ycgco-re 17:ycgco-ro"
)
