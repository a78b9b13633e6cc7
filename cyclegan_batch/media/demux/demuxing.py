"""Open a media file safely, and read its packets.

Only this module calls ``av.open`` to read a user's file. It opens every container by its absolute
path with a list of allowed protocols and formats, so that a playlist, a script or a URL hidden in a
media file reads no other file and opens no connection. FFmpeg gets an object of a store as an open
file, never its URL, and no protocol at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeAlias

import av
import av.container
import av.error
import av.video.stream
from av.stream import Stream

from ...errors import InputError
from ...remote import is_remote
from ...wording import printable
from ..pattern import pattern_files
from .flv import flv_parts
from .spliced import Parts, SplicedFile

Packet: TypeAlias = "av.Packet[Stream]"
"""A packet of a stream of any kind."""

_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,ogg,"
    "flv,asf,mxf,nut,yuv4mpegpipe,dv,rm,gxf,wtv,nsv,mjpeg,"
    "wav,w64,mp3,flac,aac,ac3,eac3,aiff,caf,au,ape,wv,tta,amr,dts,truehd,mp2"
)
"""Demuxers that read one file and nothing else: none for playlists, scripts or devices."""


def open_container(
    path: Path, *, image_pattern_rate: Fraction | None = None
) -> av.container.InputContainer:
    """Open ``path`` for reading, as a context manager; no other file and no network is read.

    With ``image_pattern_rate`` (frames per second) ``path`` is a pattern of numbered images
    (``f_%06d.png``), of which the first is the one with the lowest number. Raises InputError.
    """
    if image_pattern_rate is None:
        check_is_file(path)
        file, format_name, options = _source(path), None, {"format_whitelist": _FORMATS}
    else:
        folder = str(path.absolute().parent).replace("%", "%%")
        file, format_name = f"file:{folder}/{path.name}", "image2"
        options = _image_pattern_options(path, image_pattern_rate)
    # FFmpeg reads an open file without a protocol, so that it needs none.
    protocols = "file" if isinstance(file, str) else "none"
    try:
        container: av.container.InputContainer = av.open(
            file,
            "r",
            format=format_name,
            container_options={"protocol_whitelist": protocols} | options,
            # Tags in an encoding other than UTF-8 are kept byte for byte.
            metadata_errors="surrogateescape",
        )
    except (av.error.FFmpegError, OSError) as error:
        raise input_error(path, error) from error
    except _StoppedError:
        raise KeyboardInterrupt from None
    return container


def _source(path: Path) -> str | SplicedFile:
    """Return what FFmpeg opens: the name of a file, an object, or a file of parts.

    Raises InputError.
    """
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            size = file.seek(0, os.SEEK_END)
            parts = flv_parts(path, file, size)
            if is_remote(path):
                stack.pop_all()
                return _Object(path, file, parts or ((0, size),))
            if parts:
                stack.pop_all()
                return SplicedFile(file, parts)
    except OSError as error:
        raise input_error(path, error) from error
    # With "file:" in front, a name such as "concat:a|b" or "http://…" is only a name.
    return f"file:{path.absolute()}"


class _Object(SplicedFile):
    """An object of a store as FFmpeg reads it.

    A failure of the store is an InputError, which passes all that takes FFmpeg's own errors for
    damage: the next run is to try again what the store did not give.
    """

    def __init__(self, path: Path, file: BinaryIO, parts: Parts) -> None:
        super().__init__(file, parts)
        # Where the content leaves the format in doubt, FFmpeg looks at the end of the name.
        self.name = f"object{path.suffix}"
        self._path = path
        self._has_failed = False

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes. Raises InputError, once; then the file is at its end."""
        # PyAV raises the exception when FFmpeg returns, which until then may try again; PyAV
        # prints an exception that is followed by another one.
        if self._has_failed:
            return b""
        try:
            return super().read(size)
        except OSError as error:
            self._has_failed = True
            raise input_error(self._path, error) from error
        except KeyboardInterrupt:
            # PyAV prints what is no Exception, and goes on.
            self._has_failed = True
            raise _StoppedError from None


class _StoppedError(Exception):
    """KeyboardInterrupt, while FFmpeg reads an object."""


def _image_pattern_options(pattern: Path, rate: Fraction) -> dict[str, str]:
    """Return the options of FFmpeg's image2 demuxer. Raises InputError where no file matches."""
    numbers = pattern_files(pattern)
    if not numbers:
        raise InputError(
            f"no file matches {printable(pattern)}; check the name and the number of digits"
        )
    return {
        "format_whitelist": "image2",
        "framerate": str(rate),
        "pattern_type": "sequence",
        "start_number": str(min(numbers)),
    }


def demux(container: av.container.InputContainer, streams: Sequence[Stream]) -> Iterator[Packet]:
    """Yield the packets of ``streams``, and at the end an empty one for each of them.

    An empty packet has a ``stream`` but no ``stream_index`` of its own. Where OGG files were
    joined, Theora begins again with headers; these are left out, since they hold no frame.
    """
    theora = {stream.index for stream in streams if decoder_name(stream) == "theora"}
    try:
        for packet in container.demux(list(streams)):
            # The first bit of a packet marks a header (Theora specification, 6.1).
            header = theora and packet.size and memoryview(packet)[0] & 0x80
            if not header or packet.stream.index not in theora:
                yield packet
    except IndexError:
        # PyAV 18.1 raises this at the end of a file in which a stream appeared while it was read
        # (MPEG-TS). By then all packets of ``streams`` have been yielded.
        return
    except _StoppedError:
        raise KeyboardInterrupt from None


def decoder_name(stream: Stream) -> str | None:
    """Return the name of the decoder of ``stream``; None where FFmpeg has none for its codec."""
    return None if stream.codec_context is None else stream.codec_context.name


def input_error(path: Path, error: Exception) -> InputError:
    """Return FFmpeg's or the system's ``error`` about ``path`` as an InputError."""
    message = getattr(error, "strerror", None) or str(error)
    if isinstance(error, av.error.InvalidDataError | av.error.ArgumentError):
        return InputError(
            f"cannot read {printable(path)}: its content is no media format that is read here "
            f"({message}); give a video such as MP4, MOV, MKV, WebM, AVI or MPEG-TS"
        )
    where = "store" if is_remote(path) else "disk"
    return InputError(
        f"cannot read {printable(path)}: {message}; check the name, the permissions and the {where}"
    )


def reason(error: BaseException | None) -> str:
    """Return what FFmpeg logged about an error, else the name of the error."""
    log = getattr(error, "log", None)
    if log and log[2].strip():
        return str(log[2]).strip().rstrip(".")
    if isinstance(error, av.error.FFmpegError) and error.errno == errno.EPERM:
        # Many codecs return -1 for any failure, which is also the number of this error.
        return "the codec gives no reason"
    return getattr(error, "strerror", None) or str(error)


def check_is_file(path: Path) -> None:
    """Raise InputError, with a message for each case, unless ``path`` is a regular file."""
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
