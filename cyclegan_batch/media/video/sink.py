"""Encode one stretch of a video, and make the final file of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO

import av
import av.container
import av.error
from av.video.stream import VideoStream

from ...errors import OutputError
from ...file_identity import sha256_of
from ...files import OutputLock, output_error, publish, refuse_existing, temporary_path
from ...frames import Frame
from ...machine import own_scheduling
from ...wording import Note, printable
from .. import Dropped, Written
from ..demux.demuxing import Packet, reason
from ..formats import PIPE
from ..mux.assemble import assemble
from ..mux.joined_video import Stretch
from ..mux.muxing import DISK_ERRNOS
from .colour import FromRGB
from .encoder import add_encoder
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


class VideoSink:
    """Encode one stretch, and make the final file of it."""

    def __init__(self, plan: VideoPlan) -> None:
        self._plan = plan
        self._piped = plan.output == PIPE
        # Not files.writing: many calls write the file, `finish` publishes it, `discard` removes it.
        self._partial = temporary_path(plan.output)
        self._stretch = self._partial.with_name(f"{self._partial.stem}-0.partial")
        if plan.streams is None:
            # y4m is not joined with anything.
            self._stretch = self._partial
        self._container: av.container.OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._file: BinaryIO | None = None
        """The open file or pipe of y4m."""
        self._times: list[int] = []
        """The PTS of the source, for each frame that was encoded."""
        self._last_duration: int | None = None
        self._written: list[Written] = []
        self._lock: OutputLock | None = None
        if not self._piped and plan.output.parent.is_dir():
            self._lock_output()
        self.notes: tuple[Note, ...] = ()
        """Notes that are known once the file is written."""

    @property
    def written(self) -> list[Written]:
        """The file, once it is whole under its final name."""
        return self._written

    def converter(self) -> Callable[[Frame], tuple[Timing, av.VideoFrame]]:
        """Return a function from a translated frame to one for the encoder, one for each worker."""
        plan = self._plan
        from_rgb = FromRGB(plan.colour, plan.encoder.pix_fmt, plan.encoder.fields)

        def convert(frame: Frame) -> tuple[Timing, av.VideoFrame]:
            timing = frame.tag
            assert isinstance(timing, Timing)
            try:
                return timing, from_rgb(
                    frame.pixels, interlaced=timing.interlaced, alpha=timing.alpha
                )
            except av.error.FFmpegError as error:
                raise self._failed(error) from error

        return convert

    def write(self, item: tuple[Timing, av.VideoFrame]) -> None:
        """Encode the next frame. Raises OutputError, and BrokenPipeError for a closed pipe."""
        timing, frame = item
        encoder = self._plan.encoder
        with self._as_output_error():
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

    def finish(self) -> Sequence[Dropped]:
        """Flush the encoder, join the stretch with other streams, publish. Raises OutputError."""
        plan = self._plan
        dropped: Sequence[Dropped] = ()
        if self._container is None:
            raise OutputError(
                f"cannot write {printable(plan.output)}: no frame was read; see the failures above"
            )
        with self._as_output_error():
            if plan.streams is not None:
                self._mux(self._last_packets())
            container, self._container = self._container, None
            container.close()
            self._close_file()
            if self._piped:
                return ()
        if plan.streams is not None:
            stretch = Stretch(
                self._stretch, plan.stream.time_base, tuple(self._times), self._last_duration
            )
            assembled = assemble([stretch], plan.streams, self._partial)
            self.notes, dropped = assembled.notes, assembled.dropped
        if error := plan.why_changed():
            dropped = (*dropped, Dropped(plan.name, error))
        result = self._result()
        publish(self._partial, plan.output, overwrite=plan.options.overwrite)
        self._written.append(result)
        self.discard()
        return dropped

    def _result(self) -> Written:
        """Return what the partial file is under its final name."""
        plan = self._plan
        with self._as_output_error():
            return Written(
                path=plan.output,
                source=plan.path,
                identity=plan.identity,
                source_size=plan.size,
                size=plan.output_size,
                bytes=self._partial.stat().st_size,
                sha256=sha256_of(self._partial),
            )

    def discard(self) -> None:
        """Close the output, remove its temporary files, and release its lock."""
        container, self._container = self._container, None
        if container is not None:
            # Where a full disk or a closed pipe ended the run, this fails for the same reason.
            with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
                container.close()
        with contextlib.suppress(OSError):
            self._close_file()
        if not self._piped:
            for path in {self._stretch, self._partial}:
                # Removing raises where the output's folder does not exist.
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _lock_output(self) -> None:
        """Lock the output for this process. Raises OutputInUseError, OutputExistsError."""
        if self._lock is None:
            self._lock = OutputLock(self._plan.output)
            if not self._plan.options.overwrite:
                try:
                    refuse_existing(self._plan.output)
                except OutputError:
                    self._lock.release()
                    raise

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
        plan = self._plan
        encoder = plan.encoder
        # FFmpeg writes y4m of more than 8 bits with "-strict -1" only: it is an extension.
        options = {"strict": "-1"} if plan.streams is None else {}
        if encoder.format in ("mp4", "mov"):
            # A time scale so fine that the time stamps of any source keep their order.
            options["movie_timescale"] = str(min(encoder.time_base.denominator, 2**31 - 1))
        if not self._piped:
            plan.output.parent.mkdir(parents=True, exist_ok=True)
            self._lock_output()
        target: str | _Y4MFile = f"file:{self._stretch.absolute()}"
        if plan.streams is None:
            self._file = sys.stdout.buffer if self._piped else self._stretch.open("wb")
            target = _Y4MFile(self._file, plan.sample_aspect_ratio)
        self._container = av.open(target, "w", format=encoder.format, container_options=options)
        self._stream = add_encoder(
            self._container, encoder, plan.colour, plan.output_size, plan.sample_aspect_ratio
        )

    def _mux(self, packets: list[Packet]) -> None:
        assert self._container is not None
        for packet in packets:
            self._container.mux_one(packet)

    @contextlib.contextmanager
    def _as_output_error(self) -> Iterator[None]:
        """Raise OutputError for the errors of FFmpeg and the system, except for a closed pipe."""
        try:
            yield
        except BrokenPipeError:
            raise
        except (av.error.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> OutputError:
        plan = self._plan
        from_system = not isinstance(error, av.error.FFmpegError)
        if isinstance(error, OSError) and (from_system or error.errno in DISK_ERRNOS):
            return output_error(plan.output, error)
        return OutputError(
            f"cannot write {printable(plan.output)}: {plan.encoder.name} failed "
            f"({reason(error)}); choose another --codec"
        )
