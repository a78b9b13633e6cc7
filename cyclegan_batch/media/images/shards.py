"""Image files as a source: shards of them, in groups of one size. `codec` decodes them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from ...errors import InputError, OutputError
from ...file_identity import FileIdentity, identity_of_data, identity_of_status
from ...files import refuse_existing
from ...frames import Frame, PixelType, Size
from ...options import HdrChoice, TranslateOptions
from ...remote import RemotePath, is_remote
from ...wording import Note, printable
from .. import Dropped
from ..ahead import ahead
from ..formats import IMAGE_FORMATS, Entry, ImageFormat
from .codec import Extras
from .decoding import decode_for
from .headers import read_header
from .image_header import Header
from .objects import open_image

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

SHARD = 256
"""Images in one unit of work."""

_MOST_METADATA = 64 << 20
"""Bytes beside its pixels that an image file may have; a larger file is not read into memory."""


def most_bytes(max_pixels: int) -> int:
    """Return the bytes of a file above which it is no image of at most ``max_pixels``."""
    # Eight bytes hold a pixel of any format uncompressed; the rest is metadata.
    return 8 * max_pixels + _MOST_METADATA


@dataclass(frozen=True)
class PictureTag:
    """The tag of a Frame from an `ImageSource`, for the sink."""

    entry: Entry
    extras: Extras
    identity: FileIdentity
    """Of the file that was read."""
    source_size: Size
    """Height and width of the upright image."""


@dataclass(frozen=True)
class ImageShard:
    """Up to 256 images that form one unit of work."""

    name: str
    """Its name in messages: the image, or the first and the last of several."""
    entries: tuple[Entry, ...]
    pixel_type: PixelType
    quality: int | None
    png_level: int | None
    max_pixels: int
    overwrite: bool
    hash_inputs: bool = False
    white: int | None = None
    hdr: HdrChoice = "tonemap"
    notes: tuple[Note, ...] = ()
    key: str = ""
    """The same for two runs that form the shard of the same outputs, whatever each has left to do:
    16 hexadecimal digits."""
    replaced: frozenset[Path] = frozenset()
    """Outputs that are replaced without ``overwrite``, since an earlier run has begun them."""

    def overwrites(self, output: Path) -> bool:
        """Return whether an output may replace a file that exists."""
        return self.overwrite or output in self.replaced


def plan_images(
    entries: Sequence[Entry],
    options: TranslateOptions,
    *,
    pixel_type: PixelType,
    root: Path | None = None,
    rest: Collection[Path] | None = None,
    replaced: frozenset[Path] = frozenset(),
) -> tuple[ImageShard, ...]:
    """Return the images among ``entries`` in shards. No file is opened.

    ``root`` is the folder of all outputs. Of each shard only those images are left whose outputs
    are in ``rest``, where that is given; those in ``replaced`` may exist.
    """
    images = [entry for entry in entries if entry.kind == "image"]
    notes: tuple[Note, ...] = ()
    formats = {_format_of(entry.output) for entry in images}
    lossy = {"jpg", "webp", "avif"} & formats
    if options.quality is not None and images and not lossy:
        subject = f"--quality {options.quality}"
        notes = (Note(subject, "no image is written as jpg, webp or avif"),)
    if options.png_level is not None and images and "png" not in formats:
        notes += (Note(f"--png-level {options.png_level}", "no image is written as png"),)
    total = len(images) if rest is None else sum(entry.output in rest for entry in images)
    shards: list[ImageShard] = []
    for start in range(0, len(images), SHARD):
        whole = tuple(images[start : start + SHARD])
        part = whole
        if rest is not None:
            part = tuple(entry for entry in whole if entry.output in rest)
        if not part:
            continue
        shards.append(
            ImageShard(
                name=_shard_name(part, total),
                entries=part,
                pixel_type=pixel_type,
                quality=options.quality,
                png_level=options.png_level,
                max_pixels=options.max_pixels,
                overwrite=options.overwrite,
                hash_inputs=options.hash_inputs,
                white=options.white,
                hdr=options.hdr,
                notes=notes if not shards else (),
                key=_key(whole, root),
                replaced=replaced.intersection(entry.output for entry in part),
            )
        )
    return tuple(shards)


def _key(entries: Sequence[Entry], root: Path | None) -> str:
    # The root may be written in different ways.
    start = 0 if root in (None, Path()) else len(str(root or "").rstrip(os.sep)) + 1
    names = b"\0".join(os.fsencode(str(entry.output))[start:] for entry in entries)
    return hashlib.sha256(names).hexdigest()[:16]


def _shard_name(part: Sequence[Entry], total: int) -> str:
    first = printable(part[0].source)
    if total == 1:
        return first
    return f"{first} … {printable(Path(part[-1].source.name))} ({len(part)} of {total} images)"


# Reading


@dataclass(frozen=True)
class _Content:
    """The bytes of an image file."""

    data: bytes
    mtime_ns: int
    """Of the file when it was read; of an object when it was listed."""
    header: Header | None = None
    """The header in ``data``, where it has been read."""


@dataclass(frozen=True)
class ReadImage:
    """An image that was read, for a decoder."""

    index: int
    entry: Entry
    content: _Content


_SMALL = 1 << 20
"""Bytes of a file up to which it is read at once, and its header from the memory."""
_SMALL_OBJECT = 8 << 20
"""The same of an object of a store, where a second request takes longer than these bytes."""

_KEPT = 64 << 20
"""Bytes of objects that are kept until the turn of their group comes, instead of being read again.
The page cache of the system does so for files."""

_Found: TypeAlias = "_Content | InputError | None"
"""What is known of an image by its header: its content, if it is at hand, or why it is left out."""


class ImageSource:
    """The images of a shard, ordered so that those of one size can share batches.

    A shard with objects of a store is read side by side, ahead of its turn.
    """

    def __init__(self, shard: ImageShard) -> None:
        self.shard = shard
        self._is_remote = any(entry.status is not None for entry in shard.entries)
        self._notes: list[Note] = []

    def read(self) -> Iterator[ReadImage | Dropped]:
        """Yield the bytes of each image, or Dropped where it or its header cannot be read.

        A batch holds one size, so the images come in groups of one displayed size, ordered by the
        first image of each size. Those of the first size are yielded as they are found; all others
        wait, and their files are read again when the turn of their group comes.
        """
        index = 0
        for (entry, _), content in self._each(self._content, self._grouped(), _bytes_of_content):
            if isinstance(content, _Content):
                yield ReadImage(index, entry, content)
                index += 1
            else:
                yield Dropped(printable(entry.source), content)

    def _each(
        self,
        function: Callable[[_Item], _Result],
        items: Iterable[_Item],
        weigh: Callable[[_Item], int],
    ) -> Iterator[tuple[_Item, _Result]]:
        """Yield each item with ``function`` of it, for objects ahead (`ahead`)."""
        if self._is_remote:
            return ahead(function, items, weigh=weigh)
        return ((item, function(item)) for item in items)

    def _grouped(self) -> Iterator[tuple[Entry, _Found]]:
        """Yield each image in its group, with its content where that is at hand."""
        groups: dict[Size | None, deque[tuple[Entry, _Found]]] = {}
        room = _KEPT if self._is_remote else 0
        for entry, (size, found) in self._each(self._header, self.shard.entries, _bytes_of_header):
            waiting = groups.setdefault(size, deque())
            if waiting is next(iter(groups.values())):
                yield entry, found
                continue
            if isinstance(found, _Content):
                room -= len(found.data)
                found = found if room >= 0 else None
            waiting.append((entry, found))
        for group in groups.values():
            while group:
                yield group.popleft()

    def _header(self, entry: Entry) -> tuple[Size | None, _Found]:
        """Return the displayed size of an image, and its content if the file is small."""
        try:
            header, content = self._read_header(entry)
        except InputError as error:
            return None, error
        except OSError as error:
            return None, _unreadable(entry.source, error)
        return header.displayed_size, content

    def _read_header(self, entry: Entry) -> tuple[Header, _Content | None]:
        """Return the header of an image, and its content if the file is small. Raises OSError."""
        name = printable(entry.source)
        most = self.shard.max_pixels
        if entry.status is not None and entry.status.size <= _SMALL_OBJECT:
            assert isinstance(entry.source, RemotePath)
            data = entry.source.read_range(0, entry.status.size + 1)
            if len(data) != entry.status.size:  # it was replaced since it was listed
                data = entry.source.read_bytes()
            return self._with_header(entry, data, FileIdentity(len(data), entry.status.mtime_ns))
        with open_image(entry) as file:
            status = entry.status or identity_of_status(os.fstat(file.fileno()))
            if entry.status is None and status.size <= _SMALL:
                return self._with_header(entry, file.read(status.size + 1), status)
            if status.size > most_bytes(most):
                raise InputError(f"{name}: {status.size} bytes are too many for an image; check it")
            return read_header(file, name, max_pixels=most), None

    def _with_header(
        self, entry: Entry, data: bytes, status: FileIdentity
    ) -> tuple[Header, _Content | None]:
        """Return the header in ``data``, and that as the content where it is whole.

        ``data`` may be one byte more than the file has, to notice one that is being written.
        """
        name, most = printable(entry.source), self.shard.max_pixels
        header = read_header(io.BytesIO(data), name, max_pixels=most)
        whole = len(data) == status.size
        return header, _Content(data, status.mtime_ns, header) if whole else None

    def _content(self, item: tuple[Entry, _Found]) -> _Content | InputError | OutputError:
        """Return the content of an image, or why it is left out."""
        entry, found = item
        if isinstance(found, InputError):
            return found
        try:
            # Another process may have written it meanwhile. A store tells it as the output is put,
            # and would need a request for it here.
            if not (is_remote(entry.output) or self.shard.overwrites(entry.output)):
                refuse_existing(entry.output)
            if found is not None:
                return found
            if entry.status is not None:
                return _Content(entry.source.read_bytes(), entry.status.mtime_ns)
            with entry.source.open("rb") as file:
                return _Content(file.read(), os.fstat(file.fileno()).st_mtime_ns)
        except OutputError as error:
            return error
        except OSError as error:
            return _unreadable(entry.source, error)

    def converter(self) -> Callable[[ReadImage], Frame | Dropped]:
        """Return the decoder, which all workers share."""
        return self._decode

    def _decode(self, file: ReadImage) -> Frame | Dropped:
        name, content = printable(file.entry.source), file.content
        try:
            picture = decode_for(
                _format_of(file.entry.output),
                content.data,
                name,
                header=content.header,
                pixel_type=self.shard.pixel_type,
                max_pixels=self.shard.max_pixels,
                white=self.shard.white,
                hdr=self.shard.hdr,
            )
        except InputError as error:
            return Dropped(name, error)
        self._notes += [Note(file.entry.source, text) for text in picture.notes]
        height, width = picture.pixels.shape[:2]
        identity = identity_of_data(content.data, content.mtime_ns, hashed=self.shard.hash_inputs)
        tag = PictureTag(file.entry, picture.extras, identity, (height, width))
        return Frame(file.index, picture.pixels, tag)

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was changed or left out so far, sorted by text and name."""
        return tuple(sorted(self._notes, key=lambda note: (note.text, note.subject)))

    def close(self) -> None:
        """Release nothing: no file stays open."""


def _bytes_of_header(entry: Entry) -> int:
    """Return about how many bytes are read of an image for its header."""
    return _SMALL if entry.status is None else min(entry.status.size, _SMALL_OBJECT)


def _bytes_of_content(item: tuple[Entry, _Found]) -> int:
    """Return how many bytes of an image are in memory with its content."""
    entry, found = item
    if isinstance(found, InputError):
        return 0
    if isinstance(found, _Content):
        return len(found.data)
    with contextlib.suppress(OSError):
        return entry.source.stat().st_size if entry.status is None else entry.status.size
    return 0


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{printable(path)}: cannot be read: {error.strerror or error}")


def _format_of(path: Path) -> ImageFormat:
    """Return the format of an output by its extension, which `find_inputs` has checked."""
    return IMAGE_FORMATS[path.suffix.lower()]
