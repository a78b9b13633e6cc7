"""Open a media file safely, and read its packets.

The only module that calls ``av.open`` for reading a user's file: every container is opened by its
absolute path with a protocol and a format allow-list, so that a playlist, a script or a URL hidden
in a media file reads no other file and opens no connection.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import av.container
import av.error
import av.video.stream
from av.stream import Stream

from ..errors import InputError
from ..wording import printable
from .flv import joined_flv
from .pattern import pattern_files

Packet: TypeAlias = "av.Packet[Stream]"
"""A packet of a stream of any kind."""

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


def demux(container: av.container.InputContainer, streams: Sequence[Stream]) -> Iterator[Packet]:
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
