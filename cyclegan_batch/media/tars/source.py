"""Read the images of a tar in windows, ordered so that those of one size can share batches."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from ...errors import InputError
from ...file_identity import FileIdentity, identity_of
from ...files import temporary_path
from ...frames import Frame, Size
from ...wording import Note, printable
from .. import Dropped
from ..formats import UNREAD_IMAGES, VIDEO_SUFFIXES, ImageFormat, counted_suffixes, output_format
from ..images.codec import Extras
from ..images.decoding import decode_for
from ..images.headers import read_header
from ..images.image_header import Header
from ..images.shards import SHARD, most_bytes
from .names import extension_of, image_format, key_of
from .plan import LISTED, TarPlan
from .reading import CHUNK, Member, TarReader
from .samples import MOST_MEMBERS, Sample, Samples, Slot

WINDOW_BYTES = 64 << 20
"""Bytes of image files that wait in a window at most, unless one image has more."""


@dataclass(frozen=True)
class TarTag:
    """The tag of a Frame from a `TarSource`, for the `TarSink`."""

    slot: Slot
    extras: Extras
    target: ImageFormat
    """In which the image is written."""


@dataclass(frozen=True)
class _Image:
    """An image that was read, for a decoder."""

    index: int
    slot: Slot
    stored: ImageFormat
    """By its name."""
    data: bytes
    header: Header

    @property
    def size(self) -> Size:
        return self.header.displayed_size


class TarSource:
    """The images of a tar; what else is in it goes to the sink by way of `samples`."""

    def __init__(self, plan: TarPlan) -> None:
        """Open the tar. Raises InputError."""
        self.plan = plan
        try:
            self._before = plan.status or identity_of([plan.path], hashed=False)
            self._file: BinaryIO = plan.path.open("rb", buffering=CHUNK)
        except OSError as error:
            raise InputError(f"{plan.name}: cannot be read: {error.strerror or error}") from error
        self._reader = TarReader(
            self._file, plan.name, length=self._before.size, hashed=plan.hash_inputs
        )
        self.samples = Samples(plan.format, temporary_path(plan.output).parent)
        self._notes: list[Note] = []
        self._carried: Counter[str] = Counter()
        """What is carried on although it shows something, by its extension."""
        self._others: set[str] = set()
        """Extensions of the images that are not asked for, a few of them."""

    @property
    def identity(self) -> FileIdentity:
        """Return the identity of the tar. Raises InputError where it has changed meanwhile."""
        now: FileIdentity | None = None
        with contextlib.suppress(OSError):
            now = identity_of([self.plan.path], hashed=False, asked=True)
        if now is None or now != self._before or self._reader.position != now.size:
            raise InputError(
                f"{self.plan.name}: was changed while it was translated; "
                "run the same command again when it stays as it is"
            )
        return FileIdentity(now.size, now.mtime_ns, self._reader.sha256)

    @property
    def no_image(self) -> str:
        """Why nothing was translated, where nothing was, as a predicate of the tar."""
        return self.plan.no_image(self._others)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was changed or left out so far, sorted by text and name."""
        notes = sorted(self._notes, key=lambda note: (note.text, str(note.subject)))
        if self._carried:
            kinds = counted_suffixes(self._carried.elements())
            text = f"carried on as they are, since they are not images that are read here: {kinds}"
            notes.append(Note(self.plan.path, text))
        if self._reader.note is not None:
            notes.append(Note(self.plan.path, self._reader.note))
        return tuple(notes)

    def read(self) -> Iterator[_Image | Dropped]:
        """Yield each image, or Dropped for a member that cannot be carried on.

        A batch holds one size. So of `SHARD` images, or of `WINDOW_BYTES`, those of the first size
        are yielded as they are found; the others wait for the end of the window.
        """
        window = _Window()
        for found in self._members():
            if isinstance(found, Dropped):
                yield found
            else:
                yield from window.add(found)
        yield from window.rest()

    def _members(self) -> Iterator[_Image | Dropped]:
        """Yield the images in the order of the tar. Raises InputError."""
        sample: Sample | None = None
        index = 0
        for member in self._reader.members():
            name = member.info.name
            key = key_of(name)
            if sample is None or key is None or key != sample.key:
                # A member without a key is a sample of its own.
                self.samples.gnu = self._reader.is_gnu
                sample = self.samples.begin(name if key is None else key)
            elif len(sample.slots) == MOST_MEMBERS:
                sample = self.samples.begin(key, sample.part + 1)
            if self.samples.is_over:
                return
            found = self._taken(sample, member, index)
            if found is not None:
                index += isinstance(found, _Image)
                yield found
        self.samples.end()

    def _taken(self, sample: Sample, member: Member, index: int) -> _Image | Dropped | None:
        """Take a member; return it if it is an image or cannot be carried on."""
        name = member.info.name
        if member.refusal is not None:
            self.samples.lose(sample)
            error = InputError(f"{self.plan.member(name)}: {member.refusal}")
            return self._dropped(name, sample, error)
        stored = None if member.info.isdir() else self.plan.translated_format(name)
        if stored is None:
            self._remember(member)
            self.samples.carry(sample, member, self._reader)
            return None
        slot = self.samples.expect(sample, member, stored)
        called, most = self.plan.member(name), self.plan.max_pixels
        if member.info.size > most_bytes(most):
            text = f"{called}: {member.info.size} bytes are too many for an image; check it"
            return self._lost(slot, InputError(text))
        data = self._reader.read()
        try:
            header = read_header(io.BytesIO(data), called, max_pixels=most)
        except InputError as error:
            return self._lost(slot, error)
        return _Image(index, slot, stored, data, header)

    def _remember(self, member: Member) -> None:
        """Remember for notes what is carried on although it shows something."""
        name = member.info.name
        suffix = "." + extension_of(name).rpartition(".")[2]
        if not self.plan.asks_for(name):
            # Each name may have an extension of its own, as in ``clip.0001.jpg``.
            is_image = not member.info.isdir() and image_format(name) is not None
            if is_image and len(self._others) <= LISTED:
                self._others.add(extension_of(name))
        elif suffix in UNREAD_IMAGES or suffix in VIDEO_SUFFIXES:
            self._carried[suffix] += 1

    def _lost(self, slot: Slot, error: InputError) -> Dropped:
        self.samples.lose_image(slot)
        return self._dropped(slot.info.name, slot.sample, error)

    def _dropped(self, name: str, sample: Sample, error: InputError) -> Dropped:
        problem = InputError(f"{error} (its sample {printable(sample.name)} is left out)")
        problem.__cause__ = error
        return Dropped(self.plan.member(name), problem)

    def converter(self) -> Callable[[_Image], Frame | Dropped]:
        """Return the decoder, which all workers share."""
        return self._decode

    def _decode(self, image: _Image) -> Frame | Dropped:
        name = self.plan.member(image.slot.info.name)
        target = output_format(image.stored, self.plan.format)
        try:
            picture = decode_for(
                target,
                image.data,
                name,
                header=image.header,
                pixel_type=self.plan.pixel_type,
                max_pixels=self.plan.max_pixels,
                white=self.plan.white,
                hdr=self.plan.hdr,
            )
        except InputError as error:
            return self._lost(image.slot, error)
        self._notes += [Note(name, text) for text in picture.notes]
        return Frame(image.index, picture.pixels, TarTag(image.slot, picture.extras, target))

    def close(self) -> None:
        """Close the tar."""
        with contextlib.suppress(OSError):
            self._file.close()


class _Window:
    """Images that follow each other, of which those of the first size need not wait."""

    def __init__(self) -> None:
        self._groups: dict[Size, list[_Image]] = {}
        self._count = self._bytes = 0

    def add(self, image: _Image) -> list[_Image]:
        """Take an image and return those whose turn it is."""
        first = not self._groups or image.size == next(iter(self._groups))
        waiting = self._groups.setdefault(image.size, [])
        self._count += 1
        if not first:
            waiting.append(image)
            self._bytes += len(image.data)
        ready = [image] if first else []
        if self._count >= SHARD or self._bytes >= WINDOW_BYTES:
            ready += self.rest()
        return ready

    def rest(self) -> list[_Image]:
        """Return the images that wait, size by size, and begin anew."""
        ready = [image for group in self._groups.values() for image in group]
        self._groups.clear()
        self._count = self._bytes = 0
        return ready
