"""The samples of a tar between its source and its sink: taken apart, translated, in order again.

Images of one size share batches, so they leave the network in another order than that of the tar.
A sample is written when all that is before it is written and each of its images is either encoded
or lost; a sample that has lost something is left out whole.
"""

from __future__ import annotations

import tarfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from ...errors import CycleganBatchError
from ..formats import ImageFormat
from .names import output_names
from .reading import CHUNK, Member, TarReader
from .waiting import Held, WaitingRoom
from .writing import TarWriter

MOST_MEMBERS = 256
"""Members of one sample. Real ones have ten; more of one key are no sample but, for example, the
frames of a video (``clip.0001.jpg``), and are taken in parts, so that few of them have to wait."""


class Sample:
    """Members of one key that follow each other."""

    def __init__(self, key: str, part: int = 1) -> None:
        self.key, self.part = key, part
        self.slots: list[Slot] = []
        self.pending = 0
        """Its images that are neither encoded nor lost."""
        self.is_closed = self.is_lost = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.key if self.part == 1 else f"{self.key}, part {self.part},"


class Slot:
    """A member of a sample, on its way."""

    def __init__(self, sample: Sample, info: tarfile.TarInfo, stored: ImageFormat | None) -> None:
        self.sample, self.info = sample, info
        self.stored = stored
        """The format of an image by its name; None for what is carried on as it is."""
        self.held: Held | None = None
        """What is going to be written; None for a folder, and for an image that is on its way."""

    def leave(self) -> Held | None:
        """Return what is going to be written, and keep it no longer.

        The source keeps its images until their window has ended, and with them the slots.
        """
        held, self.held = self.held, None
        return held


class Samples:
    """The samples of one tar, from its reader to its writer. Any thread may call it.

    The source appends, the sink settles. Neither waits for the other: what is read too early lies
    in the waiting room.
    """

    def __init__(self, asked: str, folder: Path) -> None:
        """``asked`` is the option ``--format``; ``folder`` is for what waits on the disk."""
        self._asked = asked
        self._room = WaitingRoom(folder)
        self._lock = threading.Lock()
        self._waiting: deque[Sample] = deque()
        self._writer: Callable[[], TarWriter] | None = None
        self._pending = 0
        """Images that are neither encoded nor lost."""
        self._is_closed = False
        self.gnu = False
        """Whether the source is in the format of GNU tar; known with the first sample."""
        self.images = 0
        """Images that were found, whether or not they can be read."""
        self.written_images = 0
        self.written_samples = 0
        self.left_out = 0
        """Samples that are left out."""
        self.error: CycleganBatchError | OSError | None = None
        """Why nothing more can be written."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more can or shall be written."""
        return self._is_closed or self.error is not None

    # The source

    def begin(self, key: str, part: int = 1) -> Sample:
        """Close the last sample and append one."""
        with self._lock:
            self._close_last()
            sample = Sample(key, part)
            self._waiting.append(sample)
        return sample

    def end(self) -> None:
        """Close the last sample: the tar has ended."""
        with self._lock:
            self._close_last()

    def _close_last(self) -> None:
        if self._waiting:
            self._waiting[-1].is_closed = True
        # Where no image is on its way the sink is not called: a tar may hold a million labels.
        if not self._pending:
            self._advance()

    def carry(self, sample: Sample, member: Member, reader: TarReader) -> None:
        """Append a member that is carried on as it is. Raises InputError."""
        slot = Slot(sample, member.info, None)
        try:
            if not member.info.isdir():
                size, room = member.info.size, self._room
                small = size <= CHUNK
                slot.held = room.put(reader.read()) if small else room.fetch(size, reader.read)
        except OSError as error:
            self.error = self.error or error
        with self._lock:
            sample.slots.append(slot)

    def expect(self, sample: Sample, member: Member, stored: ImageFormat) -> Slot:
        """Append an image, which is to be settled."""
        slot = Slot(sample, member.info, stored)
        with self._lock:
            sample.slots.append(slot)
            sample.pending += 1
            self._pending += 1
            self.images += 1
        return slot

    def lose(self, sample: Sample) -> None:
        """Leave out a sample: a member of it cannot be carried on."""
        with self._lock:
            sample.is_lost = True

    def lose_image(self, slot: Slot) -> None:
        """Settle an image that is lost, and leave its sample out."""
        with self._lock:
            slot.sample.is_lost = True
            self._settled(slot)

    # The sink

    def connect(self, writer: Callable[[], TarWriter]) -> None:
        """Take the function that returns the writer; it opens the output when first called."""
        self._writer = writer

    def settle(self, slot: Slot, data: bytes) -> None:
        """Take an encoded image, and write the samples that are complete."""
        try:
            held = self._room.put(data)
        except OSError as error:
            self.error = self.error or error
            return
        with self._lock:
            slot.info.size = len(data)
            slot.held = held
            self._settled(slot)
            self._advance()

    def _settled(self, slot: Slot) -> None:
        slot.sample.pending -= 1
        self._pending -= 1

    def finish(self) -> None:
        """Write what is left; every image is settled by now."""
        with self._lock:
            self._advance()
            assert self.error or not self._waiting

    def close(self) -> None:
        """Write nothing more, and free what waits. May be called again."""
        with self._lock:
            self._is_closed = True
            self._waiting.clear()
        self._room.close()

    def _advance(self) -> None:
        """Write the samples at the head that are complete; without a sink (a preview) none."""
        waiting = self._waiting
        if self._writer is None:
            return
        while waiting and waiting[0].is_closed and not waiting[0].pending:
            if self.is_over:
                return
            sample = waiting.popleft()
            if sample.is_lost:
                self.left_out += 1
                for slot in sample.slots:
                    if (held := slot.leave()) is not None:
                        self._room.forget(held)
                continue
            try:
                self._write(sample)
            except (CycleganBatchError, OSError) as error:
                self.error = error

    def _write(self, sample: Sample) -> None:
        assert self._writer is not None
        writer = self._writer()
        members = [(slot.info.name, slot.stored) for slot in sample.slots]
        for slot, name in zip(sample.slots, output_names(members, self._asked), strict=True):
            slot.info.name = name
            held = slot.leave()

            def content(write: Callable[[bytes], None], held: Held | None = held) -> None:
                if held is not None:
                    self._room.take(held, write)

            writer.add(slot.info, content)
            self.written_images += slot.stored is not None
        self.written_samples += 1
