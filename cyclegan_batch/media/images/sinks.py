"""Image files as a sink: those of a shard are published together, or put into a store one by one.

`codec` encodes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from ...errors import OutputError
from ...files import publishing_error
from ...frames import Frame
from ...remote import RemotePath
from ...wording import Note, printable
from .. import Dropped, Written
from ..behind import Behind
from ..formats import IMAGE_FORMATS
from .codec import encode_picture
from .lots import Lot, Partial
from .shards import ImageShard, PictureTag


class _Encoder:
    """Encodes the images of a shard; all workers share it."""

    def __init__(self, shard: ImageShard) -> None:
        self._shard = shard
        self._displaced: list[Path] = []
        """Images whose GeoTIFF tags hold for another size."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes on what the size of the output made impossible; `ImageSource` has the others."""
        text = "its GeoTIFF tags were left out, since it has another size than its source"
        return tuple(Note(output, text) for output in sorted(self._displaced))

    def encode(self, frame: Frame) -> tuple[Written, bytes] | Dropped:
        """Return an image as it is going to be, and its bytes."""
        tag = frame.tag
        assert isinstance(tag, PictureTag)
        output = tag.entry.output
        if tag.extras.geo and tag.extras.geo_size != frame.pixels.shape[:2]:
            self._displaced.append(output)
        try:
            data = encode_picture(
                frame.pixels,
                IMAGE_FORMATS[output.suffix.lower()],  # which `find_inputs` has checked
                quality=self._shard.quality,
                png_level=self._shard.png_level,
                extras=tag.extras,
            )
        except OutputError as error:
            # Returned and not raised: only this image is lost.
            name = printable(output)
            problem = OutputError(f"cannot write {name}: {error}")
            problem.__cause__ = error
            return Dropped(name, problem)
        height, width = frame.pixels.shape[:2]
        result = Written(
            path=output,
            source=tag.entry.source,
            identity=tag.identity,
            source_size=tag.source_size,
            size=(height, width),
            bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
        )
        return result, data


# Files


class ImageSink:
    """The output files of a shard: its workers write them, and they are published together."""

    def __init__(self, shard: ImageShard) -> None:
        self.shard = shard
        self._encoder = _Encoder(shard)
        self._lot: Lot[Written] = Lot(shard.overwrites)
        self._lost: list[Dropped] = []
        """Images that could not be published and are not reported yet."""
        self._written: list[Written] = []

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes on what the size of the output made impossible; `ImageSource` has the others."""
        return self._encoder.notes

    def converter(self) -> Callable[[Frame], Partial[Written] | Dropped]:
        """Return the encoder, which writes each image under a temporary name."""
        return self._encode

    def _encode(self, frame: Frame) -> Partial[Written] | Dropped:
        encoded = self._encoder.encode(frame)
        if isinstance(encoded, Dropped):
            return encoded
        result, data = encoded
        try:
            return self._lot.write(result.path, data, result)
        except OutputError as error:
            return Dropped(printable(result.path), error)

    @property
    def written(self) -> Sequence[Written]:
        """The files that are published so far."""
        return self._written

    def write(self, item: Partial[Written] | Dropped) -> Dropped | None:
        """Take an image; return Dropped where this one, or one before it, is lost."""
        if isinstance(item, Dropped):
            return item
        self._lot.add(item)
        if self._lot.is_due:
            self._publish()
        return self._lost.pop(0) if self._lost else None

    def _publish(self) -> None:
        """Give the images that are whole their final names."""
        for result, error in self._lot.publish():
            if error is None:
                self._written.append(result)
            else:
                self._lost.append(Dropped(printable(result.path), error))

    def finish(self) -> Sequence[Dropped]:
        """Publish the rest; return the images that could not be published."""
        self._publish()
        lost, self._lost = self._lost, []
        return lost

    def discard(self) -> None:
        """Publish the images that `write` has taken, which are whole, and remove all others."""
        self._publish()
        self._lot.discard()


# Objects

_Object: TypeAlias = "tuple[Written, bytes]"

_PATIENCE = 2.0
"""Seconds that a sink which is given up waits for what is on its way."""


class ObjectSink:
    """The outputs of a shard in a store: each is put from the memory, many side by side.

    An object appears as a whole when it has been put, so it needs no temporary name.
    """

    def __init__(self, shard: ImageShard) -> None:
        self.shard = shard
        self._encoder = _Encoder(shard)
        self._puts: Behind[_Object] = Behind(self._put)
        self._lost: list[Dropped] = []
        """Images that could not be put and are not reported yet."""
        self._written: list[Written] = []

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes on what the size of the output made impossible; `ImageSource` has the others."""
        return self._encoder.notes

    @property
    def written(self) -> Sequence[Written]:
        """The objects that are put so far."""
        return self._written

    def converter(self) -> Callable[[Frame], _Object | Dropped]:
        """Return the encoder."""
        return self._encoder.encode

    def write(self, item: _Object | Dropped) -> Dropped | None:
        """Begin to put an image; return Dropped where this one, or one before it, is lost."""
        if isinstance(item, Dropped):
            return item
        self._puts.add(item, len(item[1]))
        self._collect()
        return self._lost.pop(0) if self._lost else None

    def _put(self, item: _Object) -> None:
        result, data = item
        assert isinstance(result.path, RemotePath)
        result.path.put(data, overwrite=self.shard.overwrites(result.path))

    def _collect(self) -> None:
        """Take note of what has been put, and of what could not be."""
        for (result, _), error in self._puts.ended():
            if error is None:
                self._written.append(result)
            elif isinstance(error, OSError):
                problem = publishing_error(result.path, error)
                self._lost.append(Dropped(printable(result.path), problem))
            else:
                raise error

    def finish(self) -> Sequence[Dropped]:
        """Wait until all images are put; return those that could not be."""
        self._puts.finish()
        self._collect()
        lost, self._lost = self._lost, []
        return lost

    def discard(self) -> None:
        """Wait a moment for what is on its way. What arrives later was begun by this job."""
        self._puts.finish(_PATIENCE)
        self._collect()
