"""Standard input as a y4m video: opened once in a process, and read once from front to back.

The header of a pipe is read when its job is planned, and its frames when the job runs. A plan is a
value and cannot hold the open pipe between the two, so this module holds it.
"""

from __future__ import annotations

import sys
from typing import BinaryIO

import av
import av.container
import av.error

from ...errors import InputError
from .demuxing import reason

Y4M_MUXER = "yuv4mpegpipe"
"""FFmpeg's name of y4m, for its demuxer and its muxer."""


class StandardInput:
    """Standard input, opened as y4m: a format in which nothing refers to another file."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the header from ``file``. Raises InputError where it is not y4m."""
        self.file = file
        self._reader = _Reader(file)
        try:
            self.container: av.container.InputContainer = av.open(
                self._reader, "r", format=Y4M_MUXER
            )
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(
                f"standard input is not y4m ({reason(error)}); pipe it like this: "
                "ffmpeg -i VIDEO -f yuv4mpegpipe - | cyclegan-batch translate - OUTPUT …"
            ) from error

    @property
    def bytes_read(self) -> int:
        """How much FFmpeg has taken out of the pipe."""
        return self._reader.count

    def close(self) -> None:
        """Close the container; the next `standard_input` reads the header of another video."""
        global _current
        if _current is self:
            _current = None
        self.container.close()


class _Reader:
    """The file object that FFmpeg reads: without ``seek`` and ``close``, and it counts bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        data = self._file.read(size)
        self.count += len(data)
        return data


_current: StandardInput | None = None


def standard_input() -> StandardInput:
    """Return the open standard input of this process; the first call reads its header.

    Raises InputError where it is not y4m.
    """
    global _current
    if _current is None or _current.file is not sys.stdin.buffer:
        _current = StandardInput(sys.stdin.buffer)
    return _current
