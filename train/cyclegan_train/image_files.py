"""The image files of a folder: which they are, and their pixels as RGB of 8 bits.

However many threads read, what they decode at a time is bounded, so that images of a hundred
million pixels take no more memory than they must.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import Pixels
from cyclegan_batch.media.formats import IMAGE_FORMATS, UNREAD_IMAGES, counted_suffixes, natural_key
from cyclegan_batch.media.images.codec import decode_picture
from cyclegan_batch.media.images.headers import read_header
from cyclegan_batch.media.images.image_header import Header
from cyclegan_batch.options import MAX_PIXELS
from cyclegan_batch.wording import counted, printable

_AHEAD = 2
"""Images that are read ahead, per worker."""

_DECODED_AT_ONCE = 2**27
"""Pixels that all threads together decode at a time; a larger image is decoded alone."""

_STRIP = 256
"""Rows that are laid on white at a time, in float32."""

_T = TypeVar("_T")


class _Room:
    """Room for so many pixels at a time. Who wants more than all of it gets all of it."""

    def __init__(self, pixels: int) -> None:
        self._all = self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Hold room for ``pixels``, which is waited for."""
        pixels = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_room = _Room(_DECODED_AT_ONCE)


def read_image(
    path: Path, *, white: int | None = None
) -> tuple[Pixels, bytes, bool, tuple[str, ...]]:
    """Return an image, the bytes of its file, whether it was transparent, and notes about it.

    RGB uint8 ``(H, W, 3)``, upright, transparent parts laid on white; ``white`` as in
    `decode_picture`. Raises InputError.
    """
    with opened(path) as (file, header):
        return decoded(file, header, path, white)


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, Header]]:
    """Open an image and read its header; inside there is room to decode it. Raises InputError."""
    name = printable(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise _unreadable(name, error) from error
    with file:
        try:
            header = read_header(file, name, max_pixels=sys.maxsize)
        except OSError as error:
            raise _unreadable(name, error) from error
        height, width = header.size
        if height * width * max(header.bands, 4) > 4 * MAX_PIXELS:
            raise InputError(
                f"{name}: {width}×{height} is more than the {MAX_PIXELS} pixels that an image may "
                "have; cut it into several images"
            )
        with _room.of(height * width):
            yield file, header


def decoded(
    file: BinaryIO, header: Header, path: Path, white: int | None
) -> tuple[Pixels, bytes, bool, tuple[str, ...]]:
    """Return what `read_image` returns, of an opened image. Raises InputError."""
    name = printable(path)
    try:
        file.seek(0)
        data = file.read()
    except OSError as error:
        raise _unreadable(name, error) from error
    except MemoryError as error:
        raise InputError(f"{name}: there is no memory to read it; end other programs") from error
    image = decode_picture(data, name, header=header, white=white)
    pixels, alpha = image.pixels, image.extras.alpha
    # A fourth band that the file does not declare as alpha hides nothing.
    transparent = not image.extras.undeclared and alpha is not None and int(alpha.min()) < 255
    if alpha is not None and transparent:
        pixels = pixels if pixels.flags.writeable else pixels.copy()
        for top in range(0, len(pixels), _STRIP):
            rows = slice(top, top + _STRIP)
            share = np.asarray(alpha[rows], np.float32)[..., None] / 255
            pixels[rows] = np.rint(pixels[rows] * share + 255 * (1 - share))
    return pixels, data, transparent, image.notes


def _unreadable(name: str, error: OSError) -> InputError:
    return InputError(f"{name}: cannot be read: {error.strerror or error}")


def displayed_size(path: Path) -> tuple[int, int] | None:
    """Return the height and width of an upright image; None where its header is damaged."""
    try:
        with path.open("rb") as file:
            return read_header(file, printable(path), max_pixels=MAX_PIXELS).displayed_size
    except (InputError, OSError):
        return None


def list_images(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the images in ``folder`` and beneath it in the order of their names, and notes.

    The notes report which files are left out; hidden files are not mentioned. Raises InputError
    where there are no images, or the folder cannot be read.
    """
    paths, left_out = listed(folder)
    return paths, tuple(left_out_notes(folder, left_out))


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images in ``folder`` and beneath it, and the files that are not read."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{printable(Path(error.filename or folder))}: cannot be read: "
            f"{error.strerror or error}"
        ) from error

    images: list[Path] = []
    others: list[Path] = []
    # os.walk does not follow links to folders, which could form an endless circle.
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (text)
                (images if suffix in IMAGE_FORMATS else others).append(Path(place, name))
    if not images:
        kinds = f": {counted_suffixes(path.suffix for path in others)}" if others else ""
        found = counted(len(others), "other file") + kinds
        raise InputError(
            f"{printable(folder)}: no images in it ({found}); put jpg, "
            "png, webp, avif or tiff files there"
        )
    return sorted(images, key=natural_key), others


def left_out_notes(folder: Path, left_out: Sequence[Path]) -> Iterator[str]:
    """Yield a note about the images of formats that are not read, and one about other files."""
    images = [path.suffix for path in left_out if path.suffix.lower() in UNREAD_IMAGES]
    others = [path.suffix for path in left_out if path.suffix.lower() not in UNREAD_IMAGES]
    if images:
        yield (
            f"{printable(folder)}: left out, as images of formats that are not read here: "
            f"{len(images)} ({counted_suffixes(images)}); convert them to PNG, TIFF or JPEG"
        )
    if others:
        yield (
            f"{printable(folder)}: left out, as no images: {len(others)} "
            f"({counted_suffixes(others)})"
        )


def in_parallel(
    load: Callable[[Path], _T], paths: Sequence[Path], workers: int
) -> Iterator[tuple[Path, _T]]:
    """Yield every path with the result of ``load``, in order, reading a few ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[_T]] = []
        ahead = _AHEAD * workers
        try:
            for number, path in enumerate(paths):
                while len(waiting) < min(len(paths), number + ahead):
                    waiting.append(pool.submit(load, paths[len(waiting)]))
                yield path, waiting[number].result()
                waiting[number] = Future()  # drops the image
        finally:
            pool.shutdown(cancel_futures=True)
