"""The images of a folder, ready to train on: found, decoded, resized, and kept.

What happens to an image:

- It is read as everywhere in this package (`decode_picture`), whatever its format: upright by its
  EXIF, 16 bits rounded to 8, CMYK to sRGB. Transparent parts are laid on white, since the colours
  beneath them are arbitrary. A domain of one channel holds BT.601 luma.
- The resize of ``preprocess`` (bicubic, antialiased) is done once.
- It is kept in memory, or where a domain does not fit there, in a temporary file (pixel_file.py).
  Where the disk has no room for that either, it is decoded again whenever it is needed.
- The cut and the flip are drawn anew at every use, for A and for B independently. A cut reads only
  its own part of the file.

batches.py decides which images come in which order.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as tv  # type: ignore[import-untyped]

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import Pixels, SizeRequirements
from cyclegan_batch.machine import cpu_threads
from cyclegan_batch.options import MAX_PIXELS
from cyclegan_batch.wording import byte_size, counted, printable

from .image_files import decoded, displayed_size, in_parallel, left_out_notes, listed, opened
from .pixel_file import Disk, PixelFile, StoredImage, stored_bytes
from .settings import DataConfig

_MOST_TOLD = 10
"""Images that are skipped, each told by its name."""


@dataclass(frozen=True)
class Skipped:
    """An image that cannot be trained on."""

    path: Path
    reason: str


def find_folders(
    data: Path | None,
    data_a: Path | None,
    data_b: Path | None,
    test_a: Path | None = None,
    test_b: Path | None = None,
) -> tuple[Path, Path, Path | None, Path | None]:
    """Return trainA, trainB, and testA, testB where there are such folders.

    Either ``data`` holds them by these names, or ``data_a`` and ``data_b`` are the first two.
    ``test_a`` and ``test_b`` replace the other two. Raises InputError.
    """
    for folder in (test_a, test_b):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{printable(folder)}: no such folder; check the name")
    if data_a is not None and data_b is not None and data is None:
        return (*_checked_pair(data_a, data_b), test_a, test_b)
    if data is None or data_a is not None or data_b is not None:
        raise InputError(
            "no images named: give one folder that holds trainA and trainB, or both --data-a "
            "and --data-b"
        )
    if not data.is_dir():
        raise InputError(f"{printable(data)}: no such folder; check the name")
    for name in ("trainA", "trainB"):
        if not (data / name).is_dir():
            folders = sorted(path.name for path in data.iterdir() if path.is_dir())[:6]
            raise InputError(
                f"{printable(data)}: holds no {name} (it holds "
                f"{', '.join(map(printable, folders)) or 'no folders'}); name its folders trainA "
                "and trainB, or give both with --data-a and --data-b"
            )
    tests = [path if (path := data / name).is_dir() else None for name in ("testA", "testB")]
    pair = _checked_pair(data / "trainA", data / "trainB")
    return (*pair, test_a or tests[0], test_b or tests[1])


def _checked_pair(folder_a: Path, folder_b: Path) -> tuple[Path, Path]:
    for folder in (folder_a, folder_b):
        if not folder.is_dir():
            raise InputError(f"{printable(folder)}: no such folder; check the name")
    one, other = folder_a.resolve(), folder_b.resolve()
    if one == other:
        raise InputError(f"{printable(folder_a)}: is both A and B; give two folders")
    if one in other.parents or other in one.parents:
        raise InputError(
            f"{printable(folder_a)} and {printable(folder_b)}: one is inside the other; give two "
            "folders that share no image"
        )
    return folder_a, folder_b


class _Loaded(NamedTuple):
    """What is known of an image after it was decoded."""

    kept: Tensor | StoredImage | None
    """None where it is decoded again when it is needed."""
    shape: tuple[int, int, int]
    """``(C, H, W)``, prepared."""
    content: bytes
    """The SHA-256 of its file."""
    transparent: bool
    notes: tuple[str, ...]


class Domain:
    """The images of one folder: in memory, in a temporary file, or decoded as they are needed.

    Every image is decoded once in the constructor, so a damaged one is reported by name before
    the first step, and an image has the same number and pixels wherever the images are kept.
    """

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        *,
        channels: int,
        sizes: SizeRequirements,
        budget: int = 0,
        disk: Disk | None = None,
        most: int | None = None,
        watch: Callable[[int, int], None] = lambda read, count: None,
    ) -> None:
        """Read every image in ``folder``, recursively, or ``most`` of them, evenly spread.

        Prepared images are cached where all of them take at most ``budget`` bytes, otherwise kept
        in a file on ``disk`` where they take no more than it gives. ``watch`` is called with the
        number of images read so far, and with the number of all. Raises InputError where the folder
        cannot be read or holds no image that can be used.
        """
        self.folder, self._config, self._channels, self._sizes = folder, config, channels, sizes
        self._workers = config.workers or cpu_threads()
        if channels not in (1, 3):
            raise InputError(f"{printable(folder)}: {channels} channels; images have 1 or 3")
        self.paths: list[Path] = []
        """The paths of the images that can be used, in order."""
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.cached: list[Tensor] | None = None
        """The prepared images, uint8 ``(C, H, W)``; None where they do not fit into memory."""
        self.stored: list[StoredImage] | None = None
        """The prepared images where they are in a file."""
        self.where = "in memory"
        """Where the prepared images are, in words."""
        self.bytes = 0
        """The size of all prepared images, wherever they are."""
        self.transparent = 0
        """Images that were laid on white."""
        self.shapes: dict[tuple[int, int], Path] = {}
        """The heights and widths of prepared images, each with the first image that has it."""
        self.content: list[bytes] = []
        """The SHA-256 of every file that can be used, in order."""
        note_counts: Counter[str] = Counter()
        digest = hashlib.sha256()
        contents = hashlib.sha256()
        paths, left_out = listed(folder)
        self.left_out = dict(Counter(path.suffix.lower() for path in left_out).most_common())
        """Files that are not read, by their extensions."""
        self.notes += left_out_notes(folder, left_out)
        if 0 < config.max_dataset_size < len(paths):
            self.notes.append(
                f"{printable(folder)}: the first {config.max_dataset_size} of its {len(paths)} "
                "images are used (max_dataset_size)"
            )
            paths = paths[: config.max_dataset_size]
        if most is not None and len(paths) > most:
            paths = [paths[number * len(paths) // most] for number in range(most)]
        self._choose_place(paths, budget, disk, watch)
        kept: list[Tensor | StoredImage | None] = []
        for number, (path, result) in enumerate(in_parallel(self._load, paths, self._workers)):
            watch(number + 1, len(paths))
            if isinstance(result, InputError):
                self.skipped.append(Skipped(path, str(result)))
                continue
            note_counts.update(result.notes)
            digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + result.content)
            contents.update(result.content)
            self.content.append(result.content)
            self.shapes.setdefault(result.shape[1:], path)
            self.paths.append(path)
            self.transparent += result.transparent
            self.bytes += math.prod(result.shape)
            kept.append(result.kept)
        self._keep(kept)
        self.digest = digest.hexdigest()
        """SHA-256 of the names and contents of the images that can be used."""
        self.contents = contents.hexdigest()
        """SHA-256 of the contents alone."""
        if not self.paths:
            first = f", the first of them: {self.skipped[0].reason}" if self.skipped else ""
            raise InputError(
                f"{printable(folder)}: none of its {len(paths)} images can be read{first}"
            )
        self.notes += [
            f"{printable(folder)}, {count} of its images: {note}"
            for note, count in note_counts.items()
        ]
        if self.transparent:
            self.notes.append(
                f"{printable(folder)}: {self.transparent} images with transparency are laid on "
                "white"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def sentences(self, name: str) -> Iterator[str]:
        """Yield what is to be told of the images that were read; ``name`` is the domain's."""
        yield from self.notes
        yield from (f"skipped: {skipped.reason}" for skipped in self.skipped[:_MOST_TOLD])
        if self.skipped:
            yield f"{name}: {counted(len(self.skipped), 'image')} skipped"

    def prepared(self, number: int) -> Tensor:
        """Return one image as it is before the cut, uint8 ``(C, H, W)``. Raises InputError."""
        image = self._image(number)
        return self._part(image, 0, 0, image.shape[1], image.shape[2])

    def augmented(self, number: int, draw: random.Random) -> Tensor:
        """Return one image, cut and flipped as drawn: uint8 ``(C, H, W)``. Raises InputError."""
        image = self._image(number)
        # Always three draws, so that no option shifts the draws of the other images.
        down, right, mirror = draw.random(), draw.random(), draw.random()
        height, width = image.shape[1:]
        top = left = 0
        if self._cuts:
            side = self._config.crop_size
            top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
            height = width = side
        part = self._part(image, top, left, height, width)
        if self._config.flip and mirror < 0.5:
            part = tv.horizontal_flip(part)
        return part

    def middle(self, number: int) -> Tensor:
        """Return the middle of one image, as large as a cut: uint8 ``(C, H, W)``.

        It shares no memory with the whole image, so that it can be kept by itself. Raises
        InputError.
        """
        image = self._image(number)
        height, width = image.shape[1:]
        top = left = 0
        if self._cuts:
            side = self._config.crop_size
            # Rounded as torchvision's center_crop does.
            top, left = round((height - side) / 2), round((width - side) / 2)
            height = width = side
        return self._part(image, top, left, height, width).clone()

    def centred(self, number: int) -> Tensor:
        """Return the middle of one image: float32 ``(C, H, W)`` in [-1, 1], for the samples."""
        return normalized(self.middle(number))

    def split_off(self, numbers: Collection[int]) -> Domain:
        """Move the images of these numbers into a domain of their own, and return it.

        Both keep the digest and the notes of the whole folder.
        """
        other = copy.copy(self)
        paths, content, cached, stored = self.paths, self.content, self.cached, self.stored
        moved = set(numbers)
        left = [number for number in range(len(paths)) if number not in moved]
        for domain, own in ((other, sorted(moved)), (self, left)):
            domain.paths = [paths[number] for number in own]
            domain.content = [content[number] for number in own]
            if stored is not None:
                domain.stored = [stored[number] for number in own]
            if cached is not None:
                domain.cached = [cached[number] for number in own]
                domain.bytes = sum(image.nbytes for image in domain.cached)
        return other

    def to(self, device: torch.device) -> None:
        """Move the cached images to ``device``, where they are cut and flipped from then on."""
        if self.cached is not None:
            self.cached = [image.to(device) for image in self.cached]

    def close(self) -> None:
        """Remove the temporary file, if there is one; no image can be read from then on."""
        if self._file is not None:
            self._file.close()

    @property
    def _cuts(self) -> bool:
        return "crop" in self._config.preprocess

    def _choose_place(
        self,
        paths: Sequence[Path],
        budget: int,
        disk: Disk | None,
        watch: Callable[[int, int], None],
    ) -> None:
        """Decide where the prepared images are to be, by their headers, before any is decoded."""
        self._file: PixelFile | None = None
        in_memory = in_file = 0
        for height, width in self._prepared_sizes(paths, watch):
            in_memory += height * width * self._channels
            in_file += stored_bytes(height, width, self._channels)
        if in_memory <= budget:
            self.cached = []
            return
        self.where = "decoded as they are needed"
        if disk is None:
            return
        free = disk.free()
        if in_file > free:
            self.where += (
                f": a file of them would take {byte_size(in_file)} in {printable(disk.folder)}, "
                f"and may take {byte_size(free)} (half of what is free, shared by all processes); "
                "free some space there, or raise memory_gb, and steps wait less for images"
            )
            return
        try:
            self._file = PixelFile(disk.folder)
        except OSError as error:
            self._fail_file(error)
        else:
            self.stored = []
            self.where = (
                f"in a temporary file of {byte_size(in_file)} in {printable(disk.folder)}, since "
                "they take more than memory_gb leaves"
            )

    def _prepared_sizes(
        self, paths: Sequence[Path], watch: Callable[[int, int], None]
    ) -> Iterator[tuple[int, int]]:
        """Yield the height and width that each image will have, as far as its header is whole."""
        if self._config.preprocess == "resize_and_crop":
            yield from [self._prepared_size(1, 1)] * len(paths)
            return
        for _, size in in_parallel(displayed_size, paths, self._workers):
            watch(0, len(paths))
            if size is not None and math.prod(prepared := self._prepared_size(*size)) <= MAX_PIXELS:
                yield prepared

    def _fail_file(self, error: OSError) -> None:
        """Go on without the file, which could not be written."""
        self.stored = None
        if self._file is not None:
            self._file.empty()
        self.where = (
            "decoded as they are needed: a temporary file of them could not be written: "
            f"{error.strerror or error}"
        )

    def _keep(self, kept: Sequence[Tensor | StoredImage | None]) -> None:
        """Keep the images that were loaded, in order."""
        if self.stored is not None and self._file is not None:
            try:
                self._file.sync()
            except OSError as error:
                self._fail_file(error)
        if self.stored is not None:
            self.stored = [image for image in kept if isinstance(image, StoredImage)]
        elif self.cached is not None:
            self.cached = [image for image in kept if isinstance(image, Tensor)]
        else:
            self.close()

    def _image(self, number: int) -> Tensor | StoredImage:
        """Return one prepared image, decoded where it has to be. Raises InputError."""
        if self.cached is not None:
            return self.cached[number]
        if self.stored is not None:
            return self.stored[number]
        try:
            with opened(self.paths[number]) as (file, header):
                pixels = decoded(file, header, self.paths[number], self._white)[0]
                return _tensor(self._prepare(pixels))
        except InputError as error:
            raise InputError(f"{error}; it could be read when the run began") from error

    def _part(
        self, image: Tensor | StoredImage, top: int, left: int, height: int, width: int
    ) -> Tensor:
        """Return a part of an image, uint8 ``(C, height, width)``. Raises InputError."""
        if isinstance(image, Tensor):
            return image[:, top : top + height, left : left + width]
        try:
            return image.window(top, left, height, width)
        except OSError as error:
            raise InputError(
                f"{printable(self.folder)}: the temporary file of its images cannot be read: "
                f"{error.strerror or error}; check the disk, and resume the run"
            ) from error

    @property
    def _white(self) -> int | None:
        return self._config.white or None

    def _load(self, path: Path) -> _Loaded | InputError:
        """Decode and prepare an image, and put it where the images are kept."""
        try:
            with opened(path) as (file, header):
                self._refuse_enlarged(path, header.displayed_size)
                pixels, data, transparent, notes = decoded(file, header, path, self._white)
                content = hashlib.sha256(data).digest()
                del data
                pixels = self._prepare(pixels)
                kept: Tensor | StoredImage | None = None
                if self.cached is not None:
                    kept = _tensor(pixels)
                elif self.stored is not None and self._file is not None:
                    try:
                        kept = self._file.put(pixels)
                    except OSError as error:
                        self._fail_file(error)
        except InputError as error:
            return error
        height, width, channels = pixels.shape
        return _Loaded(kept, (channels, height, width), content, transparent, notes)

    def _refuse_enlarged(self, path: Path, size: tuple[int, int]) -> None:
        """Raise InputError where an image of this size becomes too large by the preprocess."""
        height, width = self._prepared_size(*size)
        if height * width > MAX_PIXELS:
            raise InputError(
                f"{printable(path)}: {size[1]}×{size[0]} becomes {width}×{height} by preprocess = "
                f"{self._config.preprocess}, which is more than the {MAX_PIXELS} pixels that an "
                "image may have; cut it into pieces that are not so narrow"
            )

    def _prepare(self, pixels: Pixels) -> Pixels:
        """Return an image as it is before the cut: uint8 ``(H, W, C)``."""
        if self._channels == 1:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        size = self._prepared_size(pixels.shape[0], pixels.shape[1])
        if pixels.shape[:2] == size:
            return pixels
        resized: Tensor = tv.resize(
            _tensor(pixels),
            list(size),
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        return resized.permute(1, 2, 0).numpy()

    def _prepared_size(self, height: int, width: int) -> tuple[int, int]:
        config = self._config
        if config.preprocess == "resize_and_crop":
            return config.load_size, config.load_size
        if config.preprocess.startswith("scale_width"):
            height, width = max(1, round(height * config.load_size / width)), config.load_size
        if config.preprocess.startswith("scale_shortside"):
            scale = config.load_size / min(height, width)
            height, width = round(height * scale), round(width * scale)
        if self._cuts:
            # An image smaller than the cut is enlarged until it holds one.
            scale = max(1.0, config.crop_size / min(height, width))
            return round(height * scale), round(width * scale)
        least, multiple = self._sizes.minimum, self._sizes.multiple_of
        return (
            max(least, round(height / multiple) * multiple),
            max(least, round(width / multiple) * multiple),
        )


def _tensor(pixels: Pixels) -> Tensor:
    """Return ``(H, W, C)`` as a contiguous ``(C, H, W)``."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def load_domains(
    folders: tuple[Path, Path],
    config: DataConfig,
    *,
    channels: tuple[int, int],
    sizes: SizeRequirements,
    disk: Disk | None = None,
    watch: Callable[[str, int, int], None] = lambda domain, read, count: None,
) -> tuple[Domain, Domain]:
    """Read both training folders; B is cached in the memory that A leaves.

    What does not fit into memory goes to a file on ``disk``. ``watch`` is called with A or B, how
    many of its images are read, and of how many. Raises InputError.
    """
    if "crop" in config.preprocess:
        side = config.crop_size
        if side % sizes.multiple_of or side < sizes.minimum:
            raise InputError(
                f"crop_size = {side}: the generator takes sides in multiples of "
                f"{sizes.multiple_of}, from {sizes.minimum} on; choose another crop_size"
            )
    budget = int(config.memory_gb * 1e9)
    watches = [functools.partial(watch, letter) for letter in "AB"]
    domain_of = functools.partial(Domain, config=config, sizes=sizes, disk=disk)
    a = domain_of(folders[0], channels=channels[0], budget=budget, watch=watches[0])
    rest = budget - (a.bytes if a.cached is not None else 0)
    b = domain_of(folders[1], channels=channels[1], budget=rest, watch=watches[1])
    if a.contents == b.contents:
        raise InputError(
            f"{printable(a.folder)} and {printable(b.folder)}: hold the same images; give two "
            "folders of different domains"
        )
    if shared := set(a.content) & set(b.content):
        a.notes.append(
            f"{sum(content in shared for content in a.content)} of the {len(a)} images of A are "
            "in B as well: images in both teach no difference between the domains"
        )
    for domain in (a, b):
        if config.batch_size > 1 and len(domain.shapes) > 1:
            (first, _), (size, path) = list(domain.shapes.items())[:2]
            raise two_sizes_error(path, size, first)
    return a, b


def two_sizes_error(path: Path, size: Sequence[int], other: Sequence[int]) -> InputError:
    """Return the error for an image whose ``(height, width)`` is not that of its batch."""
    return InputError(
        f"{printable(path)}: {size[1]}×{size[0]} does not go into one batch with "
        f"{other[1]}×{other[0]}; use batch_size 1, or a preprocess that crops"
    )


def normalized(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1], on their device and without a synchronisation."""
    return images.to(torch.float32).mul_(1 / 255).sub_(0.5).div_(0.5)
