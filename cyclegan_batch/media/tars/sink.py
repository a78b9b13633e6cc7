"""Write a tar with translated images, its members in the order of its source."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from ...errors import CycleganBatchError, InputError, OutputError, OutputExistsError
from ...files import OutputLock, output_error, publish, refuse_existing, temporary_path
from ...frames import Frame
from ...remote import RemotePath, is_remote
from ...wording import Note, printable
from .. import Dropped, Written
from ..images.codec import encode_picture
from .plan import TarPlan
from .reading import CHUNK
from .samples import Slot
from .source import TarSource, TarTag
from .writing import TarWriter


@dataclass(frozen=True)
class _Encoded:
    """An encoded image and the member that it becomes."""

    slot: Slot
    data: bytes


class TarSink:
    """The tar of one source. It has its name when it is whole."""

    def __init__(self, plan: TarPlan, source: TarSource) -> None:
        """Lock the output. Raises OutputError, OutputInUseError, OutputExistsError."""
        self._plan, self._source, self._samples = plan, source, source.samples
        self._partial = temporary_path(plan.output)
        self._file: BinaryIO | None = None
        self._discard: Callable[[], None] | None = None
        """Ends an upload without an object."""
        self._tar: TarWriter | None = None
        self._written: list[Written] = []
        self._notes: list[Note] = []
        self._displaced = False
        try:
            plan.output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(plan.output, error) from error
        self._lock: OutputLock | None = OutputLock(plan.output)
        if not plan.overwrite:
            try:
                refuse_existing(plan.output)
            except OutputError:
                self._lock.release()
                raise
        self._samples.connect(self._writer)

    @property
    def notes(self) -> Sequence[Note]:
        """Notes that are known once the tar is written; `TarSource` has the others."""
        return self._notes

    @property
    def written(self) -> Sequence[Written]:
        """The tar, once it is whole under its final name."""
        return self._written

    def converter(self) -> Callable[[Frame], _Encoded | Dropped]:
        """Return the encoder, which all workers share."""
        return self._encode

    def _encode(self, frame: Frame) -> _Encoded | Dropped:
        tag = frame.tag
        assert isinstance(tag, TarTag)
        if tag.extras.geo and tag.extras.geo_size != frame.pixels.shape[:2]:
            self._displaced = True
        try:
            data = encode_picture(
                frame.pixels,
                tag.target,
                quality=self._plan.quality,
                png_level=self._plan.png_level,
                extras=tag.extras,
            )
        except OutputError as error:
            name = self._plan.member(tag.slot.info.name)
            problem = OutputError(f"cannot write {name}: {error} (its sample is left out)")
            problem.__cause__ = error
            self._samples.lose_image(tag.slot)
            return Dropped(name, problem)
        return _Encoded(tag.slot, data)

    def write(self, item: _Encoded | Dropped) -> Dropped | None:
        """Take an image, and write the samples that are complete. Raises OutputError."""
        if isinstance(item, Dropped):
            return item
        self._samples.settle(item.slot, item.data)
        self._check()
        return None

    def finish(self) -> Sequence[Dropped]:
        """Write the rest and give the tar its name. Raises OutputError, InputError."""
        plan, samples = self._plan, self._samples
        samples.finish()
        self._check()
        identity = self._source.identity
        if samples.left_out and not samples.written_samples:
            raise InputError(
                f"{plan.name}: each of its {samples.left_out} samples has a member that cannot be "
                "carried on, so nothing of it is left; see the failures above"
            )
        try:
            if samples.images or samples.left_out:
                tar = self._writer()
                tar.finish()
                length, digest = tar.bytes, tar.sha256
            else:
                self._abandon()
                length, digest = self._copy()
            self._close()
            if not is_remote(plan.output):
                publish(self._partial, plan.output, overwrite=plan.overwrite)
        except FileExistsError as error:
            raise OutputExistsError(
                f"cannot write {printable(plan.output)}: it exists already, since this run began; "
                "pass -y to overwrite or -n to skip"
            ) from error
        except OSError as error:
            raise output_error(plan.output, error) from error
        if self._displaced:
            text = "GeoTIFF tags were left out, as images have another size than their sources"
            self._notes.append(Note(plan.output, text))
        self._written.append(
            Written(
                path=plan.output,
                source=plan.path,
                identity=identity,
                source_size=None,
                size=None,
                bytes=length,
                sha256=digest,
                images=samples.written_images,
            )
        )
        self.discard()
        return ()

    def discard(self) -> None:
        """Remove the temporary file and what waits, and release the lock."""
        self._samples.close()
        self._abandon()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _check(self) -> None:
        """Raise the error that has kept a sample from being written."""
        error = self._samples.error
        if isinstance(error, CycleganBatchError):
            raise error
        if error is not None:
            raise output_error(self._plan.output, error) from error

    def _writer(self) -> TarWriter:
        """Return the tar that is written, which is opened with the first member. Raises OSError."""
        if self._tar is None:
            self._tar = TarWriter(self._open(), gnu=self._samples.gnu)
        return self._tar

    def _open(self) -> BinaryIO:
        """Open the file that becomes the output: an object of a store appears when it is closed."""
        output = self._plan.output
        if isinstance(output, RemotePath):
            raw = output.open("wb" if self._plan.overwrite else "xb")
            self._discard = raw.discard
            file: BinaryIO = io.BufferedWriter(raw, CHUNK)
        else:
            file = self._partial.open("wb", buffering=CHUNK)
            self._discard = None
        self._file = file
        return file

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _abandon(self) -> None:
        """Close the file without an output. May be called again."""
        with contextlib.suppress(OSError):
            if self._discard is not None:
                self._discard()
            else:
                self._close()
        self._file = self._tar = None
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _copy(self) -> tuple[int, str]:
        """Replace what was written by the bytes of the source; return their number and digest."""
        digest, length = hashlib.sha256(), 0
        target = self._open()
        with self._plan.path.open("rb") as source:
            while piece := source.read(CHUNK):
                target.write(piece)
                digest.update(piece)
                length += len(piece)
        text = f"{self._source.no_image} and was copied as it is"
        self._notes.append(Note(self._plan.path, text))
        return length, digest.hexdigest()
