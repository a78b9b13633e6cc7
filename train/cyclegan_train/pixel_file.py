"""Prepared images in a file, from which a crop reads little more than its own pixels.

Images are stored in tiles of 32×32 pixels, one row of tiles after the other. The tiles of a crop in
one row lie side by side, so that a crop of 256×256 takes eight or nine reads of up to 27 KiB,
wherever it lies in however large an image. In rows of pixels it would take 256 reads, and 10 to 30
times as long from an SSD (8000×8000 pixels, nothing in the page cache).

The file has no name: it is gone when it is closed or the process ends, however that comes about. So
no file of a killed run is left, or taken for a whole one. What was read or written lately is in the
system's page cache, which counts as free memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cyclegan_batch.frames import Pixels

_TILE = 32
"""Pixels a side. From an SSD 64 is no faster, and 16 takes twice as long; 256 and 288 (which is
what 286 becomes) are multiples of 32."""


@dataclass(frozen=True)
class Disk:
    """Where a run may keep its images in files."""

    folder: Path
    processes: int = 1
    """How many processes make such files there at the same time."""

    def free(self) -> int:
        """Return the bytes that one process may take: half of what is free, shared by all."""
        try:
            return shutil.disk_usage(self.folder).free // 2 // self.processes
        except OSError:
            return 0


class PixelFile:
    """A file of images that lasts as long as this object. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Make the file on the disk of ``folder``. Raises OSError."""
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (see close)
        self.close = weakref.finalize(self, self._file.close)
        """Give the space of the disk back; called at the latest when this object goes."""
        self._lock = threading.Lock()
        self.bytes = 0
        """The bytes of all images."""

    def put(self, pixels: Pixels) -> StoredImage:
        """Write an image, uint8 ``(H, W, C)``. Raises OSError, where the disk is full for one."""
        height, width, channels = pixels.shape
        with self._lock:
            at = self.bytes
            self.bytes += stored_bytes(height, width, channels)
        across, whole = -(-width // _TILE), width // _TILE
        tiles = np.zeros((across, _TILE, _TILE, channels), np.uint8)
        rows = tiles.transpose(1, 0, 2, 3)
        for number, top in enumerate(range(0, height, _TILE)):
            strip = pixels[top : top + _TILE]
            shape = (len(strip), whole, _TILE, channels)
            rows[: len(strip), :whole] = strip[:, : whole * _TILE].reshape(shape)
            if whole < across:
                rows[: len(strip), whole, : width % _TILE] = strip[:, whole * _TILE :]
            self._write(tiles, at + number * tiles.nbytes)
        return StoredImage(self, at, (channels, height, width))

    def sync(self) -> None:
        """Wait until all is on the disk, since some file systems report only then that it is full.

        Raises OSError.
        """
        os.fsync(self._file.fileno())

    def empty(self) -> None:
        """Give the space back while others still write, whose images are lost."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file.fileno(), 0)

    def read(self, into: Pixels, at: int) -> None:
        """Fill the contiguous ``into`` with the bytes from ``at`` on. Raises OSError."""
        left = into.data.cast("B")
        while left:
            count = os.preadv(self._file.fileno(), [left], at)
            if not count:
                raise OSError("it ends early")
            left, at = left[count:], at + count

    def _write(self, pixels: Pixels, at: int) -> None:
        left = pixels.data.cast("B")
        while left:
            count = os.pwrite(self._file.fileno(), left, at)
            left, at = left[count:], at + count


@dataclass(frozen=True)
class StoredImage:
    """An image in a `PixelFile`."""

    file: PixelFile
    at: int
    shape: tuple[int, int, int]
    """``(C, H, W)``."""

    def window(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return a part, uint8 ``(C, height, width)``. Raises OSError."""
        channels, _, whole_width = self.shape
        first, last = top // _TILE, -(-(top + height) // _TILE)
        begin, end = left // _TILE, -(-(left + width) // _TILE)
        tile_bytes = _TILE * _TILE * channels
        row_bytes = -(-whole_width // _TILE) * tile_bytes
        tiles = np.empty((end - begin, _TILE, _TILE, channels), np.uint8)
        covered = np.empty((last - first, _TILE, end - begin, _TILE, channels), np.uint8)
        for number in range(first, last):
            self.file.read(tiles, self.at + number * row_bytes + begin * tile_bytes)
            covered[number - first] = tiles.transpose(1, 0, 2, 3)
        pixels = covered.reshape((last - first) * _TILE, (end - begin) * _TILE, channels)
        top, left = top - first * _TILE, left - begin * _TILE
        part = pixels[top : top + height, left : left + width].transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(part))


def stored_bytes(height: int, width: int, channels: int) -> int:
    """Return the bytes that an image takes in a `PixelFile`: whole tiles."""
    return -(-height // _TILE) * -(-width // _TILE) * _TILE**2 * channels
