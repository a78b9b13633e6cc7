"""Open a media file safely, and say what is in it.

The only module that calls ``av.open`` for reading a user's file: every container is opened by its
absolute path with a protocol and a format allow-list, so that a playlist, a script or a URL hidden
in a media file reads no other file and opens no connection.
"""

from __future__ import annotations

import errno
import math
import re
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias
from uuid import UUID

import av
import av.container
import av.error
import av.stream
import av.video.stream
from av.filter import Graph
from av.video.frame import VideoFrame

from ..errors import InputError
from ..frames import Size
from ..wording import printable
from .alpha import alpha_of, has_alpha
from .clocks import BROADCAST, JobClock, Seam
from .flv import joined_flv
from .pattern import pattern_files

Fields: TypeAlias = Literal["tff", "bff"]
"""Which field of an interlaced frame is shown first: the top one (line 0 is in it) or the other."""


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
    sample_aspect_ratio: Fraction | None = None
    rotation: int = 0
    """Degrees counter-clockwise that bring the stored picture upright: 0, 90, 180, 270."""
    mirrored: bool = False
    """The display matrix also mirrors left to right, before the rotation: the upright picture is
    ``np.rot90(np.fliplr(stored) if mirrored else stored, rotation // 90)``."""
    average_rate: Fraction | None = None
    constant_rate: bool | None = None
    """All frames lie on an even grid, within one tick; None where too little is known.

    From the index where it is whole, else from the first `LOOKAHEAD_PACKETS` packets; from every
    frame where they were counted."""
    frames_claimed: int | None = None
    """What the header or the index says."""
    frames_counted: int | None = None
    """What the stream decodes to, where it was counted."""
    pix_fmt: str | None = None
    bits: int = 8
    colour: ColourTags = ColourTags()
    paused: int = 0
    """Ticks without a picture between the parts of a file whose clock was mended."""
    interlaced: bool | None = None
    """By the header's field order or the first frame; None where neither says."""
    fields: Fields | None = None
    """Which field is first, where the video is interlaced; the top one where nothing says it."""
    alpha: bool = False
    """The pictures are transparent in places: by the pixel format, or beside it (VP8, VP9)."""
    attached_picture: bool = False
    closed_captions: bool = False
    """CEA-608/708 captions inside the video's packets (the first of them were looked at)."""
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
        return _HDR.get(self.colour.transfer)

    @property
    def label(self) -> str:
        """The stream in a few words for a message: ``audio aac, eng``."""
        kind = "attached picture" if self.attached_picture else self.kind
        language = self.metadata.get("language", "und")
        return f"{kind} {self.codec}" + ("" if language == "und" else f", {language}")


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
    seams: tuple[Seam, ...] = ()
    """Where the clock of the file begins anew or jumps, as far as it was read for this. All times
    here are on the one clock that `JobClock` makes of it."""

    @property
    def start(self) -> Fraction | None:
        """When the first picture or sound begins, in seconds; None where nothing tells."""
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
        """Seconds from the first picture or sound to the last; None where nothing tells."""
        if self.duration is None or not self.format.startswith("matroska"):
            return self.duration
        # Matroska counts from 0.
        return self.duration - max(Fraction(0), self.start or Fraction(0))

    @property
    def first_frame(self) -> Fraction | None:
        """When the first frame of the best video is shown, else the first sound, in seconds."""
        videos = [s for s in self.streams if s.kind == "video" and not s.attached_picture]
        if not videos:
            return self.start
        best = max(videos, key=_ffmpeg_score)
        return None if best.start_pts is None else best.start_pts * best.time_base

    def best_video(self, index: int | None = None) -> StreamInfo:
        """Return the video stream to translate: ``index``, or the one FFmpeg would choose.

        That is the largest picture, where being marked as default counts as five million pixels;
        the first of equals. Attached pictures are no video. Raises InputError.
        """
        name = printable(self.path)
        videos = [s for s in self.streams if s.kind == "video" and not s.attached_picture]
        listed = ", ".join(f"{s.index} ({s.label})" for s in self.streams) or "nothing"
        if index is not None:
            for stream in videos:
                if stream.index == index:
                    return stream
            choices = ", ".join(str(s.index) for s in videos) or "none"
            raise InputError(
                f"{name}: stream {index} is no video; found {listed}; choose one of: {choices}"
            )
        if not videos:
            pictures = any(s.attached_picture for s in self.streams)
            what = "only an attached picture, no video" if pictures else "no video stream"
            raise InputError(f"{name}: {what}; found {listed}; give a file that holds a video")
        return max(videos, key=_ffmpeg_score)


def _ffmpeg_score(stream: StreamInfo) -> int:
    """Rank a video stream as the ffmpeg program does when no stream is named."""
    height, width = stream.size or (0, 0)
    return height * width + (5_000_000 if "default" in stream.disposition else 0)


UNCOUNTED = ("mpegts", "mpeg")
"""Containers that do not say how much they hold."""
LOOKAHEAD_PACKETS = 300
"""Video packets read per stream where no index tells whether the rate is constant."""
_LOOKAHEAD_BYTES = 2**25

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,ogg,"
    "flv,asf,mxf,nut,yuv4mpegpipe,gif,dv,rm,gxf,wtv,nsv,mjpeg,"
    "wav,w64,mp3,flac,aac,ac3,eac3,aiff,caf,au,ape,wv,tta,amr,dts,truehd,mp2"
)
"""Demuxers that read one file and nothing else; never a playlist, a script or a device."""


def open_container(
    path: Path, *, image_pattern_rate: Fraction | None = None
) -> av.container.InputContainer:
    """Open ``path`` for reading, as a context manager; it reads no other file and no network.

    With ``image_pattern_rate`` (frames per second) ``path`` is a numbered pattern of images
    (``f_%06d.png``), which starts at the lowest number there is. Raises InputError.
    """
    options = {"protocol_whitelist": "file"}
    url: Any
    if image_pattern_rate is None:
        _check_is_file(path)
        options["format_whitelist"] = _FORMATS
        # "file:" keeps a name such as "concat:a|b" or "http://…" a name.
        url, format_name = f"file:{path.absolute()}", None
        try:
            url = joined_flv(path) or url
        except OSError as error:
            raise input_error(path, error) from error
    else:
        options["format_whitelist"] = "image2"
        options["framerate"] = str(image_pattern_rate)
        options["pattern_type"] = "sequence"
        numbers = pattern_files(path)
        if not numbers:
            raise InputError(
                f"no file matches {printable(path)}; check the name and the number of digits"
            )
        options["start_number"] = str(min(numbers))
        folder = str(path.absolute().parent).replace("%", "%%")
        url, format_name = f"file:{folder}/{path.name}", "image2"
    try:
        opened: av.container.InputContainer = av.open(
            url,
            "r",
            format=format_name,
            container_options=options,
            # Tags in some other encoding come back as they were, byte for byte.
            metadata_errors="surrogateescape",
        )
    except (av.error.FFmpegError, OSError) as error:
        raise input_error(path, error) from error
    return opened


def demux(
    container: av.container.InputContainer, streams: Sequence[av.stream.Stream]
) -> Iterator[av.Packet[Any]]:
    """Yield the packets of ``streams``, at the end an empty one for each of them.

    An empty packet has a ``stream`` but no ``stream_index`` of its own. The headers with which
    Theora begins anew where OGG files were joined are left out: they are no frames.
    """
    theora = any(stream.type == "video" and stream.name == "theora" for stream in streams)
    try:
        for packet in container.demux(list(streams)):
            # Its first bit tells a header (Theora specification, 6.1).
            header = theora and packet.size and memoryview(packet)[0] & 0x80
            if not header or packet.stream.name != "theora":
                yield packet
    except IndexError:
        # PyAV 18.1 trips at the end, over a stream that only appeared on the way (MPEG-TS); by
        # then all of ours are done.
        return


def input_error(path: Path, error: Exception) -> InputError:
    """Return what FFmpeg says about ``path`` as an InputError in three beats."""
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, av.error.InvalidDataError | av.error.ArgumentError):
        return InputError(
            f"cannot read {printable(path)}: its content is no media format that is read here "
            f"({reason}); give a video such as MP4, MOV, MKV, WebM, AVI or MPEG-TS"
        )
    return InputError(
        f"cannot read {printable(path)}: {reason}; check the name, the permissions and the disk"
    )


def reason(error: BaseException | None) -> str:
    """Return what FFmpeg logged about an error, else what it is called."""
    log = getattr(error, "log", None)
    if log and log[2].strip():
        return str(log[2]).strip().rstrip(".")
    if isinstance(error, av.error.FFmpegError) and error.errno == errno.EPERM:
        # Many a codec returns -1 for whatever is wrong, and that is this error's number.
        return "the codec gives no reason"
    return getattr(error, "strerror", None) or str(error)


def _check_is_file(path: Path) -> None:
    """Refuse what is no regular file with a sentence of its own. Raises InputError."""
    name = printable(path)
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist; check the spelling of the name") from error
    except (OSError, ValueError) as error:
        raise input_error(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{name} is a folder where a media file was expected; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is no regular file; copy its content into a file first")
    if status.st_size == 0:
        raise InputError(f"{name} is empty (0 bytes); copy or record it again")


def probe(
    path: Path, *, count_frames: bool = False, image_pattern_rate: Fraction | None = None
) -> MediaInfo:
    """Describe the media file at ``path``; ``count_frames`` decodes it all. Raises InputError."""
    with open_container(path, image_pattern_rate=image_pattern_rate) as container:
        try:
            info = media_info(container, path)
            looks = {
                stream.index: _Look(stream, indexed=info.format.startswith("mov"))
                for stream in container.streams.video
                if not _is_attached(stream) and stream.codec_context is not None
            }
            clock, spans = JobClock(info.format), _Spans()
            if looks:
                _look_into(container, looks, clock, spans, whole=count_frames)
        except av.error.FFmpegError as error:
            raise input_error(path, error) from error
        streams = [
            looks[stream.index].complete(stream, whole=count_frames)
            if stream.index in looks
            else stream
            for stream in info.streams
        ]
        # Closed captions and matrices are read from frames, everything else before the file closes.
        info = spans.complete(replace(info, streams=tuple(streams)), looks, clock)
        return replace(info, chapters=_on_the_clock(info.chapters, info.start))


def asf_claims(path: Path) -> tuple[int, Fraction] | None:
    """Return the bytes and the seconds that an ASF file (WMV) has by its header, or None.

    FFmpeg keeps both to itself where they are not true. Raises InputError.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2**16)
    except OSError as error:
        raise input_error(path, error) from error
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or len(head) < at + _ASF_FIELDS.size:
        return None
    size, played, preroll, flags = _ASF_FIELDS.unpack_from(head, at)
    seconds = Fraction(played, 10**7) - Fraction(preroll, 1000)
    # A broadcast was written without knowing its end.
    return None if flags & 1 or not size else (size, seconds)


_ASF_FILE_PROPERTIES = UUID("8cabdca1-a947-11cf-8ee4-00c00c205365").bytes_le
_ASF_FIELDS = struct.Struct("<40xQ16xQ8xQI")
"""File size, play duration (100 ns), preroll (ms) and flags; ASF specification, 3.2."""


def _on_the_clock(
    chapters: tuple[dict[str, Any], ...], start: Fraction | None
) -> tuple[dict[str, Any], ...]:
    """Return ``chapters`` on the clock of the streams, which begin at ``start`` (seconds).

    Some programs let them count from the first frame (ffmpeg with -output_ts_offset): where all end
    before it, they do.
    """
    ends = [chapter["end"] * chapter["time_base"] for chapter in chapters]
    if not ends or start is None or max(ends) > start:
        return chapters
    moved = []
    for chapter in chapters:
        ticks = round(start / chapter["time_base"])
        times = {name: chapter[name] + ticks for name in ("start", "end")}
        moved.append({**chapter, **times})
    return tuple(moved)


def media_info(container: av.container.InputContainer, path: Path) -> MediaInfo:
    """Describe an open container by its header alone; no packet is read (so a pipe stays whole)."""
    duration = container.duration
    return MediaInfo(
        path=path,
        format=container.format.name,
        duration=None if duration is None else Fraction(duration, av.time_base),
        streams=tuple(_stream_info(stream) for stream in container.streams),
        metadata=dict(container.metadata),
        chapters=tuple(dict(chapter) for chapter in container.chapters()),
    )


def _stream_info(stream: av.stream.Stream) -> StreamInfo:
    """Describe one stream by the container's header."""
    context = stream.codec_context
    known = ("video", "audio", "subtitle", "attachment")
    info = StreamInfo(
        index=stream.index,
        kind=stream.type if stream.type in known else "data",  # type: ignore[arg-type]
        codec=_codec_name(stream),
        time_base=stream.time_base or Fraction(1, av.time_base),
        start_pts=stream.start_time,
        duration=stream.duration,
        metadata=dict(stream.metadata),
        disposition=tuple(
            flag.name for flag in av.stream.Disposition if flag.name and flag & stream.disposition
        ),
    )
    if isinstance(stream, av.video.stream.VideoStream) and context is not None:
        return _video_info(info, stream)
    if stream.type == "audio" and context is not None:
        return replace(info, sample_rate=context.sample_rate, channels=context.channels)  # type: ignore[attr-defined]
    return info


def _codec_name(stream: av.stream.Stream) -> str:
    """Return the codec's own name, not that of the decoder (``av1``, not ``libdav1d``)."""
    if stream.codec_context is not None:
        return str(stream.codec_context.codec.canonical_name)
    if stream.type == "attachment":
        return stream.metadata.get("mimetype", "unknown")
    # Streams of a codec that FFmpeg does not know have no such attribute.
    return getattr(stream, "name", None) or "unknown"


def _is_attached(stream: av.stream.Stream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _video_info(info: StreamInfo, stream: av.video.stream.VideoStream) -> StreamInfo:
    """Add what the header says of a video stream."""
    context = stream.codec_context
    return replace(
        info,
        size=(context.height, context.width),
        sample_aspect_ratio=stream.sample_aspect_ratio or None,
        average_rate=_rate(stream),
        frames_claimed=stream.frames or None,
        pix_fmt=context.format.name if context.format is not None else None,
        bits=_bits(context.format),
        colour=ColourTags(
            matrix=context.colorspace,
            primaries=context.color_primaries,
            transfer=context.color_trc,
            range=context.color_range,
        ),
        interlaced={0: None, 1: False}.get(context.field_order, True),
        fields=_FIELDS.get(context.field_order),
        alpha=info.codec != "gif"
        and (
            _alpha_beside(info) or (context.format is not None and has_alpha(context.format.name))
        ),
        attached_picture=_is_attached(stream),
    )


def _rate(stream: av.video.stream.VideoStream) -> Fraction | None:
    """Return frames per second, as far as the header tells."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if average and guessed and average > _HIGHEST_RATE > guessed:
        # FFmpeg 8 says of raw DV that it has a frame for each tick of its clock.
        return guessed
    return average or guessed or None


_HIGHEST_RATE = 1000
"""Frames per second above which a rate is a clock."""


_FIELDS: dict[int, Fields] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
"""AVFieldOrder, by the field that is shown first."""
FIELD_ORDER: dict[Fields, int] = {"tff": 2, "bff": 3}
"""The same the other way: fields are coded in the order in which they are shown."""


def _alpha_beside(info: StreamInfo) -> bool:
    """Say whether alpha is a second stream inside the packets, as VP8 and VP9 have it."""
    return info.codec in ALPHA_DECODERS and info.metadata.get("alpha_mode") == "1"


ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Decoders that read alpha where FFmpeg's own of that codec leaves it out."""


def _bits(pixel_format: Any) -> int:
    return max((c.bits for c in pixel_format.components), default=8) if pixel_format else 8


_HDR = {16: "PQ", 18: "HLG"}
"""H.273 transfer characteristics that mean high dynamic range."""


class _Look:
    """What the first packets and the first frame of a video stream add to its header."""

    def __init__(self, stream: av.video.stream.VideoStream, *, indexed: bool) -> None:
        """``indexed``: what the container lists of a stream is the stream."""
        self.stream = stream
        self.first: VideoFrame | None = None
        self.times: list[int] = []
        """Presentation times of frames as far as they are known."""
        self.packets = 0
        self.size = 0
        self.frames = 0
        self.captions = False
        self.end = False
        # The index of an MP4 lacks what an edit list cuts off; others may be cut themselves.
        if stream.frames and (indexed or len(stream.index_entries) >= stream.frames):
            self.index: list[int] | None = [
                entry.timestamp for entry in stream.index_entries if not entry.is_discard
            ]
        else:
            self.index = None

    @property
    def satisfied(self) -> bool:
        if self.first is None or self.packets < _CAPTION_PACKETS:
            enough = False
        else:
            enough = self.index is not None or self.packets >= LOOKAHEAD_PACKETS
        return self.end or enough or self.size > _LOOKAHEAD_BYTES

    def take(self, packet: av.Packet[Any], *, steady: bool, whole: bool) -> None:
        """Take the next packet; ``steady``: its clock is still that of the first."""
        if packet.size:
            self.packets += 1
            self.size += packet.size
            if self.packets <= _CAPTION_PACKETS:
                self.captions = self.captions or _CAPTION_MARK in bytes(packet)
            time = packet.dts if packet.pts is None else packet.pts
            if steady and time is not None and not packet.is_discard and not whole:
                self.times.append(time)
        else:
            self.end = True
        if self.first is None or whole:
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                # What cannot be decoded is the translation's to report; here the rest is described.
                return
            for frame in frames:
                assert isinstance(frame, VideoFrame)
                self.frames += 1
                if self.first is None:
                    self.first = frame
                if steady and whole and frame.pts is not None:
                    self.times.append(frame.pts)

    def known_times(self, *, whole: bool) -> list[int]:
        """Return when frames are shown, without gaps, ascending."""
        if self.index is not None and not whole:
            return self.index
        times = sorted(self.times)
        if not self.end and self.index is None:
            # The last ones in decoding order leave gaps that later packets fill.
            times = times[: -min(_REORDERED, len(times) // 2) or None]
        return times

    def complete(self, info: StreamInfo, *, whole: bool) -> StreamInfo:
        """Return ``info`` with what was seen."""
        times = self.known_times(whole=whole)
        if not self.stream.average_rate:
            # What FFmpeg guesses instead may be the ticks of the clock.
            info = replace(
                info, average_rate=_even_rate(times, info.time_base) or info.average_rate
            )
        if self.index is not None:
            # An edit list may show less than is there.
            info = replace(info, frames_claimed=len(self.index))
        info = replace(
            info,
            constant_rate=_evenly_spaced(times),
            closed_captions=self.captions,
            frames_counted=self.frames if whole else None,
        )
        frame = self.first
        if frame is None:
            return info
        rotation, mirrored = orientation(frame)
        size = info.size if info.size and all(info.size) else (frame.height, frame.width)
        # The bitstream is closer to the pixels than the container (tried: PQ in a BT.709 box).
        tags = info.colour
        colour = ColourTags(
            matrix=tags.matrix if frame.colorspace == 2 else int(frame.colorspace),
            primaries=tags.primaries if frame.color_primaries == 2 else int(frame.color_primaries),
            transfer=tags.transfer if frame.color_trc == 2 else int(frame.color_trc),
            range=int(frame.color_range) or tags.range,
        )
        interlaced = bool(info.interlaced or frame.interlaced_frame)
        fields = _fields_of(frame) if frame.interlaced_frame else info.fields
        drawn = alpha_of(frame) if info.codec == "gif" else None
        return replace(
            info,
            size=size,
            rotation=rotation,
            mirrored=mirrored,
            pix_fmt=info.pix_fmt or frame.format.name,
            bits=_bits(frame.format),
            colour=colour,
            # A field order alone is a claim of the header; a frame flagged so is coded so.
            interlaced=interlaced,
            fields=(fields or "tff") if interlaced else None,
            # GIF's decoder always gives alpha, and most of them have no transparent pixel.
            alpha=info.alpha or (drawn is not None and bool((drawn.values < 255).any())),
        )


def _fields_of(frame: VideoFrame) -> Fields:
    """Return which field of an interlaced frame is first, by a filter: PyAV does not tell it."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    select = graph.add("select", "eq(interlace_type\\,TOPFIRST)")
    graph.link_nodes(source, select, graph.add("buffersink")).configure()
    graph.push(frame)
    try:
        graph.pull()
    except av.error.BlockingIOError:
        return "bff"
    return "tff"


_CAPTION_PACKETS = 16
_CAPTION_MARK = b"GA94\x03"
"""Start of CEA-608/708 data (ATSC A/53 Part 4, 6.2.3), in SEI, user data and OBUs alike."""
_REORDERED = 17
"""One more than the deepest reordering that H.264 and HEVC allow."""


_CHEAP_BYTES = 2**26
"""Files of `BROADCAST` up to this size are read as a whole for their clock: within a second."""


class _Spans:
    """From when to when each stream goes in a file of `BROADCAST`, whose header does not tell."""

    def __init__(self) -> None:
        self._times: dict[int, tuple[Fraction, Fraction]] = {}
        """By the stream's index, in seconds."""
        self._endless: set[int] = set()
        """Streams whose packets do not say how long they last."""
        self.whole = False
        """The file was read to its end."""

    def take(self, packet: av.Packet[Any]) -> None:
        time = packet.dts if packet.pts is None else packet.pts
        if packet.size and time is not None:
            start, end = time * packet.time_base, (time + (packet.duration or 0)) * packet.time_base
            before = self._times.get(packet.stream_index, (start, end))
            self._times[packet.stream_index] = min(start, before[0]), max(end, before[1])
            if not packet.duration:
                self._endless.add(packet.stream_index)

    def complete(self, info: MediaInfo, looks: dict[int, _Look], clock: JobClock) -> MediaInfo:
        """Return ``info`` with what was seen."""
        info = replace(info, seams=tuple(clock.seams))
        if info.format not in BROADCAST:
            return info
        streams = []
        for stream in info.streams:
            if stream.index in self._times:
                start, end = self._times[stream.index]
                look = looks.get(stream.index)
                if look is not None and look.first is not None and look.first.pts is not None:
                    # Of a recording that begins between two key frames, what comes before is lost.
                    start = look.first.pts * stream.time_base
                if stream.index in self._endless and stream.average_rate:
                    end += 1 / stream.average_rate
                stream = replace(
                    stream,
                    start_pts=round(start / stream.time_base),
                    paused=round(clock.paused.get(stream.index, 0) / stream.time_base),
                )
                if look is not None and info.seams:
                    # FFmpeg takes the rate from all times that it looked at, on whatever clock.
                    rate = _even_rate(look.known_times(whole=False), stream.time_base)
                    stream = replace(stream, average_rate=rate or stream.average_rate)
                if self._measured(info):
                    stream = replace(stream, duration=round((end - start) / stream.time_base))
            streams.append(stream)
        info = replace(info, streams=tuple(streams))
        ends = [
            (stream.start_pts + stream.duration) * stream.time_base
            for stream in streams
            if stream.start_pts is not None and stream.duration is not None
        ]
        if self._measured(info) and ends and (begin := info.start) is not None:
            info = replace(info, duration=max(ends) - begin)
        return info

    def _measured(self, info: MediaInfo) -> bool:
        """Say whether what was read is more than what the container says of itself."""
        return self.whole and (bool(info.seams) or info.format in UNCOUNTED)


def _look_into(
    container: av.container.InputContainer,
    looks: dict[int, _Look],
    clock: JobClock,
    spans: _Spans,
    *,
    whole: bool,
) -> None:
    """Read packets until every look is satisfied and the clock is known, or all of them."""
    for look in looks.values():
        look.stream.thread_type = "AUTO" if whole else "SLICE"
    broadcast = container.format.name in BROADCAST
    to_the_end = whole or (broadcast and 0 <= container.size <= _CHEAP_BYTES)
    streams = list(container.streams) if broadcast else [look.stream for look in looks.values()]
    size, done = 0, False
    packets = clock.steady(demux(container, streams))
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            if done or any(look.first is not None for look in looks.values()):
                # There is a picture; that the file breaks off is the translation's to report.
                return
            raise
        if packet is None:
            spans.whole = True
            return
        spans.take(packet)
        found = looks.get(packet.stream.index)
        if found is None:
            continue
        size += packet.size
        if whole or not found.satisfied:
            found.take(packet, steady=not clock.seams, whole=whole)
            continue
        # The size is for a stream that begins late or never: no pass over it all for that.
        if size > 4 * _LOOKAHEAD_BYTES or all(other.satisfied for other in looks.values()):
            done = True
            if not to_the_end:
                return


def _evenly_spaced(times: Sequence[int]) -> bool | None:
    """Say whether ``times`` (ticks, ascending) lie within one tick of an even grid."""
    if len(times) < 2:
        return None
    steps, first = len(times) - 1, times[0]
    span = times[-1] - first
    # In integers, since an index may have a million entries: first + span·i/steps against time.
    return all(abs(span * i - (time - first) * steps) <= steps for i, time in enumerate(times))


def _even_rate(times: Sequence[int], time_base: Fraction) -> Fraction | None:
    """Return the rate of frames at ``times`` (ticks, ascending), where it is constant."""
    if not _evenly_spaced(times) or times[0] == times[-1]:
        return None
    return ((len(times) - 1) / ((times[-1] - times[0]) * time_base)).limit_denominator(1001)


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """Return the rotation (degrees counter-clockwise) and mirroring of the display matrix.

    It maps stored coordinates to displayed ones, y downwards: x' = a·x + c·y, y' = b·x + d·y
    (ISO/IEC 14496-12, 8.3.2). Angles between the right ones are taken to the nearest. FFmpeg makes
    one of a picture's EXIF orientation too.
    """
    side_data = _side_data(frame, "DISPLAYMATRIX")
    if side_data is None:
        return 0, False
    a, b, _, c, d, *_ = struct.unpack("=9i", side_data[:36])
    mirrored = a * d - b * c < 0
    if mirrored:
        # Undo the mirroring, which comes first: what is left is a rotation.
        a, b = -a, -b
    return round(math.degrees(math.atan2(-b, a)) / 90) * 90 % 360, mirrored


def _side_data(frame: VideoFrame, kind: str) -> bytes | None:
    """Return one kind of a frame's side data, by the name that PyAV has for it.

    PyAV 18.1 lists none at all where there is a kind that it does not know (FFmpeg 8 has EXIF, 31),
    so whatever it trips over is taken off a second reference to the frame.
    """
    while True:
        try:
            found: Any = frame.side_data.get(kind)
        except ValueError as error:
            unknown = _UNKNOWN_SIDE_DATA.match(str(error))
            if unknown is None:
                raise
            frame = _without_side_data(frame, unknown[1])
        else:
            return None if found is None else bytes(found)


_UNKNOWN_SIDE_DATA = re.compile(r"(\d+) is not a valid Type")


def _without_side_data(frame: VideoFrame, number: str) -> VideoFrame:
    """Return ``frame``, sharing its picture, without one AVFrameSideDataType (its number)."""
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
    )
    removed = graph.add("sidedata", f"mode=delete:type={number}")
    graph.link_nodes(source, removed, graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    pulled = graph.pull()
    assert isinstance(pulled, VideoFrame)
    return pulled


def describe(info: MediaInfo) -> dict[str, Any]:
    """Return ``info`` as plain JSON-able values, in the words that `inspect` prints.

    Times count from the first frame, as ``--ss`` and ``--to`` do.
    """
    zero = info.first_frame or Fraction(0)
    return {
        "file": printable(info.path),
        "container": info.format,
        "duration_seconds": None if info.length is None else float(info.length),
        "clock": {
            "begins_at_seconds": float(zero),
            "begins_anew": sum(seam.kind == "restart" for seam in info.seams),
            "jumps": sum(seam.kind == "jump" for seam in info.seams),
        },
        "metadata": _printable_tags(info.metadata),
        "chapters": [
            {
                "start_seconds": float(chapter["start"] * chapter["time_base"] - zero),
                "end_seconds": float(chapter["end"] * chapter["time_base"] - zero),
                "metadata": _printable_tags(chapter["metadata"]),
            }
            for chapter in info.chapters
        ],
        "streams": [_describe_stream(stream, zero) for stream in info.streams],
    }


def _describe_stream(stream: StreamInfo, zero: Fraction) -> dict[str, Any]:
    """Return one stream as plain values, its start counted from ``zero`` (seconds).

    Video and audio have words of their own.
    """
    words: dict[str, Any] = {"index": stream.index, "kind": stream.kind, "codec": stream.codec}
    if stream.kind == "video":
        words |= {
            "size": _size_words(stream.size),
            "displayed_size": _size_words(stream.displayed_size),
            "sample_aspect_ratio": _ratio(stream.sample_aspect_ratio, ":"),
            "rate": _ratio(stream.average_rate, "/"),
            "constant_rate": stream.constant_rate,
            "frames": stream.frames_counted or stream.frames_claimed,
            "frames_are": "claimed" if stream.frames_counted is None else "counted",
            "pixel_format": stream.pix_fmt,
            "bits": stream.bits,
            "colour": colour_names(stream.colour),
            "rotation": stream.rotation,
            "mirrored": stream.mirrored,
            "interlaced": stream.interlaced,
            "first_field": {"tff": "top", "bff": "bottom", None: None}[stream.fields],
            "alpha": stream.alpha,
            "hdr": stream.hdr,
            "attached_picture": stream.attached_picture,
            "closed_captions": stream.closed_captions,
        }
        if stream.frames_counted is None and stream.frames_claimed is None:
            words["frames_are"] = "unknown"
    if stream.kind == "audio":
        words |= {"sample_rate": stream.sample_rate, "channels": stream.channels}
    words["duration_seconds"] = (
        None if stream.duration is None else float(stream.duration * stream.time_base)
    )
    words["start_seconds"] = (
        None if stream.start_pts is None else float(stream.start_pts * stream.time_base - zero)
    )
    words["time_base"] = _ratio(stream.time_base, "/")
    words["disposition"] = list(stream.disposition)
    words["metadata"] = _printable_tags(stream.metadata)
    return words


def colour_names(colour: ColourTags) -> dict[str, str]:
    """Return the tags by FFmpeg's names, each ``untagged`` where the file says nothing."""
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


# ITU-T H.273 tables 2, 3 and 4, in the words of FFmpeg's options.
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


def _size_words(size: Size | None) -> str | None:
    return None if size is None else f"{size[1]}x{size[0]}"


def _ratio(value: Fraction | None, sign: str) -> str | None:
    return None if value is None else f"{value.numerator}{sign}{value.denominator}"


def _printable_tags(tags: dict[str, str]) -> dict[str, str]:
    """Return ``tags`` with bytes that were no UTF-8 spelled out."""
    return {
        key: value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        for key, value in tags.items()
    }
