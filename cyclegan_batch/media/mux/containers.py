"""The containers that can be written, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import OutputError
from ...wording import printable


@dataclass(frozen=True)
class Container:
    """What one of the output containers can hold."""

    muxer: str
    """FFmpeg's name of its writer."""
    label: str
    """Its name in messages."""
    negative_start: bool = False
    """It keeps time stamps below zero (as an edit list)."""
    chapters: bool = False
    attachments: bool = False
    cover: bool = False
    """An attached picture is a stream of its own."""
    options: tuple[tuple[str, str], ...] = ()
    """Options of the muxer."""
    codecs: frozenset[str] | None = None
    """The codecs that can be read back, where the muxer accepts others, too; else None."""


# fmt: off
_TS_CODECS = frozenset({
    "mpeg1video", "mpeg2video", "mpeg4", "h264", "hevc", "vvc", "cavs", "avs2", "avs3", "vc1",
    "mp2", "mp3", "aac", "aac_latm", "ac3", "eac3", "dts", "truehd", "opus", "s302m",
    "dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "klv", "timed_id3", "scte_35",
})
# fmt: on
_PASS_DISPOSITIONS = (("default_mode", "passthrough"),)

_MP4 = Container("mp4", "MP4", negative_start=True, chapters=True, cover=True)
_MOV = Container("mov", "MOV", negative_start=True, chapters=True)
_TS = Container("mpegts", "MPEG-TS", codecs=_TS_CODECS)
_M2TS = Container("mpegts", "MPEG-TS", codecs=_TS_CODECS, options=(("mpegts_m2ts_mode", "1"),))
CONTAINERS = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".mov": _MOV,
    ".mkv": Container(
        "matroska", "MKV", chapters=True, attachments=True, options=_PASS_DISPOSITIONS
    ),
    ".webm": Container("webm", "WebM", chapters=True, options=_PASS_DISPOSITIONS),
    ".avi": Container("avi", "AVI"),
    ".ts": _TS,
    ".m2t": _TS,
    ".m2ts": _M2TS,
    ".mts": _M2TS,
    ".nut": Container("nut", "NUT", chapters=True),
}
"""Containers that can be written, by the extension of the output's name."""


def container_for(output: Path) -> Container:
    """Return the container that the extension of ``output`` names. Raises OutputError."""
    container = CONTAINERS.get(output.suffix.lower())
    if container is None:
        suffix = f"extension {output.suffix!r}" if output.suffix else "no extension"
        better = printable(Path(output.stem + ".mkv"))
        raise OutputError(
            f"cannot write {printable(output)}: {suffix} names no container that is written here; "
            f"choose one of {', '.join(CONTAINERS)}, .y4m, .gif, .webp or .apng, such as {better}"
        )
    return container
