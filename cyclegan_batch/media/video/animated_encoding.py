"""Encode the frames of a video into an animated image, as `animated` has planned it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from ...errors import OutputError
from ...files import output_error
from ...frames import Frame, to_uint8
from ...wording import Note, printable
from ..alpha import alpha_samples
from ..animations.structure import read_structure
from ..animations.writing import WRITERS, Schedule, Settings, Writer, encode_frame
from .animated import LABELS, animation_format
from .plan import Timing, VideoPlan


class AnimationEncoding:
    """Translated frames become an animated image. A frame waits until the next tells its end."""

    def __init__(self, plan: VideoPlan, path: Path) -> None:
        """``path`` is where the file is written. Its folder may not exist yet."""
        format_ = animation_format(plan.output)
        assert format_ is not None
        self.plan, self.path = plan, path
        self.notes: tuple[Note, ...] = ()
        """Notes on what shows only while it is written."""
        self._format = format_
        settings = dict(plan.encoder.options)
        self._settings = Settings(
            size=plan.output_size,
            alpha=plan.encoder.alpha,
            plays=plan.info.plays or 0,
            icc=None if plan.colour.tone_mapping else plan.info.icc,
            quality=int(settings.get("quality", 0)),
            png_level=int(settings["png_level"]) if "png_level" in settings else None,
        )
        self._file: BinaryIO | None = None
        self._writer: Writer | None = None
        self._schedule = Schedule(WRITERS[format_].ticks)
        self._first_pts = 0
        self._waiting: tuple[Timing, bytes] | None = None
        self._frames = 0
        """How many were written."""

    @property
    def is_empty(self) -> bool:
        """No frame was taken."""
        return self._waiting is None

    def converter(self) -> Callable[[Frame], tuple[Timing, bytes]]:
        """Return a function that encodes a translated frame, one for each worker."""
        plan, settings = self.plan, self._settings

        def convert(frame: Frame) -> tuple[Timing, bytes]:
            timing = frame.tag
            assert isinstance(timing, Timing)
            alpha = None
            if settings.alpha:
                alpha = np.full(settings.size, 255, np.uint8)
                if timing.alpha is not None:
                    alpha = alpha_samples(timing.alpha, settings.size, 8)
            try:
                encoded = encode_frame(self._format, to_uint8(frame.pixels), alpha, settings)
            except OutputError as error:
                raise OutputError(f"cannot write {printable(plan.output)}: {error}") from error
            return timing, encoded

        return convert

    def write(self, timing: Timing, frame: av.VideoFrame | bytes) -> None:
        """Take the next frame, and write the one before it. Raises OutputError."""
        assert isinstance(frame, bytes)
        if self._waiting is None:
            self._first_pts = timing.pts
            with self._as_output_error():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w+b")
                self._writer = WRITERS[self._format](self._file, self._settings)
            self._schedule.next(Fraction(0))
        else:
            self._write_waiting(timing.pts)
        self._waiting = timing, frame

    def _write_waiting(self, end: Fraction | int) -> None:
        """Write the frame that waits, which ends at ``end`` in ticks of the source."""
        assert self._waiting is not None
        assert self._writer is not None
        seconds = (end - self._first_pts) * self.plan.stream.time_base
        ticks, longest = self._schedule.next(seconds), self._writer.longest
        if ticks > longest:
            text = (
                f"a frame is shown for {ticks / self._writer.ticks:.6g} s, and in a "
                f"{LABELS[self._format]} that ends after {longest / self._writer.ticks:.6g} s"
            )
            self.notes = (Note(self.plan.name, text),)
        with self._as_output_error():
            self._writer.add(self._waiting[1], min(ticks, longest))
        self._frames += 1

    def finish(self) -> None:
        """Write the last frame and the end, and read the file's structure. Raises OutputError."""
        assert self._waiting is not None
        assert self._writer is not None
        assert self._file is not None
        stream, timing = self.plan.stream, self._waiting[0]
        duration: Fraction | int = timing.duration or 0
        if not duration:
            duration = 1 / (stream.average_rate or Fraction(25)) / stream.time_base
        self._write_waiting(timing.pts + duration)
        with self._as_output_error():
            self._writer.finish()
            self._file.seek(0)
            structure = read_structure(self._file)
            self._file.close()
        found = 0 if structure is None else len(structure.pieces)
        if structure is None or structure.trouble or found != self._frames:
            raise OutputError(
                f"cannot write {printable(self.plan.output)}: it holds {found} of "
                f"{self._frames} frames as it was read again; check the disk"
            )

    def discard(self) -> None:
        """Close the file and remove it."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _as_output_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(self.plan.output, error) from error
        except ValueError as error:
            raise OutputError(f"cannot write {printable(self.plan.output)}: {error}") from error
