"""Encode a video in one piece, or in stretches that are joined, and make the final file of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import av.container
import av.error
from av.video.stream import VideoStream

from ...errors import OutputError
from ...file_identity import sha256_of
from ...files import OutputLock, output_error, publish, refuse_existing, temporary_path
from ...frames import Frame
from ...machine import own_scheduling, return_free_memory
from ...remote import is_remote
from ...wording import Note, printable
from .. import Dropped, Written
from ..demux.demuxing import Packet, reason
from ..formats import PIPE
from ..mux.assemble import assemble
from ..mux.joined_video import Stretch
from ..mux.muxing import DISK_ERRNOS
from .animated_encoding import AnimationEncoding
from .colour import FromRGB
from .encoder import add_encoder
from .numbered import NUMBERED_MUXER
from .plan import Timing, VideoPlan


class _Y4MFile:
    """Write the sample aspect ratio into the header of y4m: PyAV cannot set it on the stream."""

    def __init__(self, file: BinaryIO, aspect: Fraction | None) -> None:
        self._file = file
        self._aspect = aspect

    def write(self, data: bytes) -> int:
        """Write ``data``; the first call gets the header."""
        if self._aspect is not None:
            ratio = f" A{self._aspect.numerator}:{self._aspect.denominator}".encode()
            self._file.write(bytes(data).replace(b" A0:0", ratio, 1))
            self._aspect = None
        else:
            self._file.write(data)
        return len(data)


class _Encoding:
    """One run of the encoder: translated frames become the packets of one file."""

    def __init__(self, plan: VideoPlan, path: Path) -> None:
        """``path`` is where the file is written; a pipe needs none. Its folder may not exist."""
        self.plan, self.path = plan, path
        self._piped = plan.output == PIPE
        self._container: av.container.OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._file: BinaryIO | None = None
        """The open file or pipe of y4m."""
        self._times: list[int] = []
        """The PTS of the source, for each frame that was encoded."""
        self._last_duration: int | None = None

    @property
    def is_empty(self) -> bool:
        """No frame was written."""
        return not self._times

    def converter(self) -> Callable[[Frame], tuple[Timing, av.VideoFrame]]:
        """Return a function from a translated frame to one for the encoder, one for each worker."""
        plan = self.plan
        from_rgb = FromRGB(plan.colour, plan.encoder.pix_fmt, plan.encoder.fields)

        def convert(frame: Frame) -> tuple[Timing, av.VideoFrame]:
            timing = frame.tag
            assert isinstance(timing, Timing)
            try:
                return timing, from_rgb(
                    frame.pixels, interlaced=timing.interlaced, alpha=timing.alpha
                )
            except av.error.FFmpegError as error:
                raise _failed(plan, error) from error

        return convert

    def write(self, timing: Timing, frame: av.VideoFrame | bytes) -> None:
        """Encode the next frame. Raises OutputError, and BrokenPipeError for a closed pipe."""
        assert isinstance(frame, av.VideoFrame)
        encoder = self.plan.encoder
        with as_output_error(self.plan):
            if self._container is None:
                self._open()
            self._times.append(timing.pts)
            self._last_duration = timing.duration
            number = len(self._times) - 1
            frame.pts = number if encoder.counts_frames else timing.pts - self._times[0]
            frame.time_base = encoder.time_base
            assert self._stream is not None
            # The first frame opens the encoder.
            with contextlib.nullcontext() if number else own_scheduling():
                packets = self._stream.encode(frame)
            self._mux(packets)

    def finish(self) -> None:
        """Flush the encoder and close the file. Raises OutputError, and BrokenPipeError."""
        with as_output_error(self.plan):
            if self.plan.streams is not None:
                self._mux(self._last_packets())
            container, self._container = self._container, None
            assert container is not None
            container.close()
            self._close_file()

    def stretch(self, path: Path) -> Stretch:
        """Return what was encoded as a file that is now at ``path``."""
        base = self.plan.stream.time_base
        return Stretch(path, base, tuple(self._times), self._last_duration)

    def discard(self) -> None:
        """Close the file and remove it."""
        container, self._container = self._container, None
        if container is not None:
            # Where a full disk or a closed pipe ended the run, this fails for the same reason.
            with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
                container.close()
        with contextlib.suppress(OSError):
            self._close_file()
        if not self._piped:
            _remove(self.path)

    def _last_packets(self) -> list[Packet]:
        assert self._stream is not None
        packets = self._stream.encode(None)
        if len(self._times) <= 2 and packets and packets[0].pts == 0:
            # x265 4.2 knows its delay, and so the decoding times (DTS), only from the third frame
            # on; for fewer frames it returns uninitialised memory. The DTS must ascend and be
            # below 0.
            for number, packet in enumerate(packets):
                packet.dts = number - len(packets)
        return packets

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.flush()
            if not self._piped:
                file.close()

    def _open(self) -> None:
        plan = self.plan
        encoder = plan.encoder
        # FFmpeg writes y4m of more than 8 bits with "-strict -1" only: it is an extension.
        options = {"strict": "-1"} if plan.streams is None else {}
        if encoder.format in ("mp4", "mov"):
            # A time scale so fine that the time stamps of any source keep their order.
            options["movie_timescale"] = str(min(encoder.time_base.denominator, 2**31 - 1))
        target: str | _Y4MFile = f"file:{self.path.absolute()}"
        if not self._piped:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if plan.streams is None:
            self._file = sys.stdout.buffer if self._piped else self.path.open("wb")
            target = _Y4MFile(self._file, plan.sample_aspect_ratio)
        self._container = av.open(target, "w", format=encoder.format, container_options=options)
        self._stream = add_encoder(
            self._container, encoder, plan.colour, plan.output_size, plan.sample_aspect_ratio
        )

    def _mux(self, packets: list[Packet]) -> None:
        assert self._container is not None
        for packet in packets:
            self._container.mux_one(packet)


class _Output:
    """The final file of a video, from its temporary name to its own."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        # Not files.writing: the file is written in several steps.
        self.partial = temporary_path(plan.output)
        self.notes: tuple[Note, ...] = ()
        """Notes that are known once the stretches are joined."""

    def join(self, stretches: Sequence[Stretch]) -> Sequence[Dropped]:
        """Join the stretches with the other streams; return what is missing. Raises OutputError."""
        assert self._plan.streams is not None
        if not stretches:
            raise without_frames(self._plan)
        assembled = assemble(stretches, self._plan.streams, self.partial)
        self.notes = assembled.notes
        return assembled.dropped

    def publish(self) -> tuple[Written, Sequence[Dropped]]:
        """Give the file its final name; return it, and what a change of the input spoiled."""
        plan = self._plan
        error = plan.why_changed()
        with as_output_error(plan):
            result = Written(
                path=plan.output,
                source=plan.path,
                identity=plan.identity,
                source_size=plan.size,
                size=plan.output_size,
                bytes=self.partial.stat().st_size,
                sha256=sha256_of(self.partial),
            )
        publish(self.partial, plan.output, overwrite=plan.options.overwrite)
        return result, () if error is None else (Dropped(plan.name, error),)


class OutputHold:
    """The right of this process to write the output of a video, until it is released."""

    def __init__(self, plan: VideoPlan) -> None:
        """Lock the output, unless its folder is missing: `begin` makes that.

        Raises OutputInUseError, OutputExistsError.
        """
        self._plan = plan
        self._lock: OutputLock | None = None
        # A store needs no folder.
        if plan.output != PIPE and (is_remote(plan.output) or plan.output.parent.is_dir()):
            self._take()

    def begin(self) -> None:
        """Make the folder and lock the output, where that is not done. Raises OutputError."""
        if self._plan.output != PIPE:
            with as_output_error(self._plan):
                self._plan.output.parent.mkdir(parents=True, exist_ok=True)
            self._take()

    def release(self) -> None:
        """Release the lock. May be called again."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _take(self) -> None:
        if self._lock is None:
            self._lock = OutputLock(self._plan.output)
            if not self._plan.options.overwrite:
                try:
                    with as_output_error(self._plan):
                        existing = self._plan.existing()
                        if existing is not None:
                            refuse_existing(existing)
                except OutputError:
                    self.release()
                    raise


class VideoSink:
    """Encode a video in one piece, and make the final file of it."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        self._piped = plan.output == PIPE
        self._output = _Output(plan)
        partial = self._output.partial
        # y4m and animated images are not joined with anything.
        encoded = partial.with_name(f"{partial.stem}-0.partial") if plan.streams else partial
        self._encoding: _Encoding | AnimationEncoding
        if plan.is_animation:
            self._encoding = AnimationEncoding(plan, encoded)
        else:
            self._encoding = _Encoding(plan, encoded)
        self._written: list[Written] = []
        self._hold = OutputHold(plan)

    @property
    def notes(self) -> Sequence[Note]:
        """Notes that are known once the file is written."""
        if isinstance(self._encoding, AnimationEncoding):
            return self._encoding.notes
        return self._output.notes

    @property
    def written(self) -> list[Written]:
        """The file, once it is whole under its final name."""
        return self._written

    def converter(self) -> Callable[[Frame], tuple[Timing, av.VideoFrame | bytes]]:
        """Return a function from a translated frame to one for the encoder, one for each worker."""
        return self._encoding.converter()

    def write(self, item: tuple[Timing, av.VideoFrame | bytes]) -> None:
        """Encode the next frame. Raises OutputError, and BrokenPipeError for a closed pipe."""
        if self._encoding.is_empty:
            self._hold.begin()
        self._encoding.write(*item)

    def finish(self) -> Sequence[Dropped]:
        """Flush the encoder, join what it wrote with other streams, publish. Raises OutputError."""
        encoding = self._encoding
        if encoding.is_empty:
            raise without_frames(self._plan)
        encoding.finish()
        if self._piped:
            return ()
        dropped: Sequence[Dropped] = ()
        if self._plan.streams is not None and isinstance(encoding, _Encoding):
            dropped = self._output.join([encoding.stretch(encoding.path)])
        result, changed = self._output.publish()
        self._written.append(result)
        self.discard()
        return (*dropped, *changed)

    def discard(self) -> None:
        """Close the output, remove its temporary files, and release its lock."""
        self._encoding.discard()
        if not self._piped:
            _remove(self._output.partial)
        self._hold.release()


class StretchSink:
    """Encode one stretch of a video into a file of its own, which is to be joined with others."""

    def __init__(self, plan: VideoPlan, number: int, folder: Path) -> None:
        """Prepare the file ``number`` in ``folder``, which is made with the first frame."""
        self._plan = plan
        self._path = stretch_path(plan, number, folder)
        self._encoding = _Encoding(plan, temporary_path(self._path))
        self.written: list[Stretch] = []
        """The stretch, once it is whole under its name; nothing where it has no frames."""
        self.notes: tuple[Note, ...] = ()

    def converter(self) -> Callable[[Frame], tuple[Timing, av.VideoFrame]]:
        """Return a function from a translated frame to one for the encoder, one for each worker."""
        return self._encoding.converter()

    def write(self, item: tuple[Timing, av.VideoFrame]) -> None:
        """Encode the next frame. Raises OutputError."""
        self._encoding.write(*item)

    def finish(self) -> Sequence[Dropped]:
        """Flush the encoder and give the file its name. Raises OutputError."""
        encoding = self._encoding
        if encoding.is_empty:
            return ()
        encoding.finish()
        return_free_memory()
        try:
            # What is there of an earlier run was found unusable.
            publish(encoding.path, self._path, overwrite=True)
        except OutputError as error:
            cause = error.__cause__
            assert isinstance(cause, OSError)
            raise output_error(self._plan.output, cause) from cause
        self.written.append(encoding.stretch(self._path))
        return ()

    def discard(self) -> None:
        """Close the file and remove it, unless it has its name."""
        self._encoding.discard()


def stretch_path(plan: VideoPlan, number: int, folder: Path) -> Path:
    """Return where the stretch of this ``number`` is kept until all are joined."""
    suffix = {"matroska": "mkv", NUMBERED_MUXER: "json"}.get(
        plan.encoder.format, plan.encoder.format
    )
    return folder / f"{number}.{suffix}"


class JoinSink:
    """Join the stretches of a video with the other streams of its source.

    It takes no frames and no lock. The files of the stretches stay.
    """

    def __init__(self, plan: VideoPlan, stretches: Sequence[Stretch]) -> None:
        """``stretches``: those that have frames, in their order."""
        self._stretches = stretches
        self._output = _Output(plan)
        self.written: list[Written] = []
        """The file, once it is whole under its final name."""

    @property
    def notes(self) -> Sequence[Note]:
        """Notes that are known once the file is written."""
        return self._output.notes

    def converter(self) -> Callable[[Frame], object]:
        """Raise AssertionError: there is nothing to convert."""
        raise AssertionError("a join has no frames")

    def write(self, item: object) -> None:
        """Raise AssertionError: there is nothing to write."""
        raise AssertionError("a join has no frames")

    def finish(self) -> Sequence[Dropped]:
        """Join, check, and publish; return what is missing. Raises OutputError, InputError."""
        dropped = self._output.join(self._stretches)
        result, changed = self._output.publish()
        self.written.append(result)
        return (*dropped, *changed)

    def discard(self) -> None:
        """Remove the temporary file."""
        _remove(self._output.partial)


def without_frames(plan: VideoPlan) -> OutputError:
    """Return the error of an output for which there is no frame."""
    return OutputError(
        f"cannot write {printable(plan.output)}: no frame was read; see the failures above"
    )


def _remove(path: Path) -> None:
    # Removing raises where the folder does not exist.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def as_output_error(plan: VideoPlan) -> Iterator[None]:
    """Raise OutputError for the errors of FFmpeg and the system, except for a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (av.error.FFmpegError, OSError) as error:
        raise _failed(plan, error) from error


def _failed(plan: VideoPlan, error: Exception) -> OutputError:
    from_system = not isinstance(error, av.error.FFmpegError)
    if isinstance(error, OSError) and (from_system or error.errno in DISK_ERRNOS):
        return output_error(plan.output, error)
    return OutputError(
        f"cannot write {printable(plan.output)}: {plan.encoder.name} failed "
        f"({reason(error)}); choose another --codec"
    )
