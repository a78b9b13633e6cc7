"""The images of a folder, ready to train on: found, decoded, resized, and cached where they fit.

What happens to an image:

- It is read as everywhere in this package (`decode_picture`), whatever its format: upright by its
  EXIF, 16 bits rounded to 8, CMYK to sRGB. Transparent parts are laid on white, since the colours
  beneath them are arbitrary. A domain of one channel holds BT.601 luma.
- The resize of ``preprocess`` (bicubic, antialiased) is done once.
- The cut and the flip are drawn anew at every use, for A and for B independently.

batches.py decides which images come in which order.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as tv  # type: ignore[import-untyped]

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import Pixels, SizeRequirements
from cyclegan_batch.machine import cpu_threads
from cyclegan_batch.media.formats import IMAGE_FORMATS, UNREAD_IMAGES, counted_suffixes, natural_key
from cyclegan_batch.media.images.codec import decode_picture
from cyclegan_batch.media.images.headers import read_header
from cyclegan_batch.options import MAX_PIXELS
from cyclegan_batch.wording import printable

from .settings import DataConfig

_AHEAD = 2
"""Images that are read ahead, per worker."""

_T = TypeVar("_T")


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


class Domain:
    """The images of one folder, cached or decoded as they are needed.

    Every image is decoded once in the constructor, so a damaged one is reported by name before
    the first step, and an image has the same number whether the images are cached or not.
    """

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        *,
        channels: int,
        sizes: SizeRequirements,
        budget: int = 0,
        most: int | None = None,
        watch: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read every image in ``folder``, recursively, or ``most`` of them, evenly spread.

        Prepared images are cached where all of them take at most ``budget`` bytes. ``watch`` is
        called with the number of images read so far, and with the number of all. Raises InputError
        where the folder cannot be read or holds no image that can be used.
        """
        self.folder, self._config, self._channels, self._sizes = folder, config, channels, sizes
        if channels not in (1, 3):
            raise InputError(f"{printable(folder)}: {channels} channels; images have 1 or 3")
        self.paths: list[Path] = []
        """The paths of the images that can be used, in order."""
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.cached: list[Tensor] | None = []
        """The prepared images, uint8 ``(C, H, W)``; None where they do not fit."""
        self.bytes = 0
        """The size of all prepared images, cached or not."""
        self.transparent = 0
        """Images that were laid on white."""
        self.shapes: dict[tuple[int, int], Path] = {}
        """The heights and widths of prepared images, each with the first image that has it."""
        self.content: list[bytes] = []
        """The SHA-256 of every file that can be used, in order."""
        note_counts: Counter[str] = Counter()
        digest = hashlib.sha256()
        contents = hashlib.sha256()
        paths, left_out = _listed(folder)
        self.left_out = dict(Counter(path.suffix.lower() for path in left_out).most_common())
        """Files that are not read, by their extensions."""
        self.notes += _left_out_notes(folder, left_out)
        if 0 < config.max_dataset_size < len(paths):
            self.notes.append(
                f"{printable(folder)}: the first {config.max_dataset_size} of its {len(paths)} "
                "images are used (max_dataset_size)"
            )
            paths = paths[: config.max_dataset_size]
        if most is not None and len(paths) > most:
            paths = [paths[number * len(paths) // most] for number in range(most)]
        workers = config.workers or cpu_threads()
        for number, (path, result) in enumerate(_in_parallel(self._load, paths, workers)):
            if watch:
                watch(number + 1, len(paths))
            if isinstance(result, InputError):
                self.skipped.append(Skipped(path, str(result)))
                continue
            prepared, content, transparent, notes = result
            note_counts.update(notes)
            digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + content)
            contents.update(content)
            self.content.append(content)
            self.shapes.setdefault((prepared.shape[1], prepared.shape[2]), path)
            self.paths.append(path)
            self.transparent += transparent
            self.bytes += prepared.nbytes
            if self.cached is not None and self.bytes <= budget:
                self.cached.append(prepared)
            else:
                self.cached = None
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

    def prepared(self, number: int) -> Tensor:
        """Return one image as it is before the cut, uint8 ``(C, H, W)``. Raises InputError."""
        if self.cached is not None:
            return self.cached[number]
        result = self._load(self.paths[number])
        if isinstance(result, InputError):
            raise InputError(f"{result}; it could be read when the run began") from result
        return result[0]

    def augmented(self, number: int, draw: random.Random) -> Tensor:
        """Return one image, cut and flipped as drawn: uint8 ``(C, H, W)``."""
        image = self.prepared(number)
        # Always three draws, so that no option shifts the draws of the other images.
        down, right, mirror = draw.random(), draw.random(), draw.random()
        if self._cuts:
            side = self._config.crop_size
            height, width = image.shape[1:]
            top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
            image = tv.crop(image, top, left, side, side)
        if self._config.flip and mirror < 0.5:
            image = tv.horizontal_flip(image)
        return image

    def middle(self, number: int) -> Tensor:
        """Return the middle of one image, as large as a cut: uint8 ``(C, H, W)``."""
        image = self.prepared(number)
        return tv.center_crop(image, [self._config.crop_size]) if self._cuts else image

    def centred(self, number: int) -> Tensor:
        """Return the middle of one image: float32 ``(C, H, W)`` in [-1, 1], for the samples."""
        return normalized(self.middle(number))

    def split_off(self, numbers: Collection[int]) -> Domain:
        """Move the images of these numbers into a domain of their own, and return it.

        Both keep the digest and the notes of the whole folder.
        """
        other = copy.copy(self)
        paths, content, cached = self.paths, self.content, self.cached
        moved = set(numbers)
        left = [number for number in range(len(paths)) if number not in moved]
        for domain, own in ((other, sorted(moved)), (self, left)):
            domain.paths = [paths[number] for number in own]
            domain.content = [content[number] for number in own]
            if cached is not None:
                domain.cached = [cached[number] for number in own]
                domain.bytes = sum(image.nbytes for image in domain.cached)
        return other

    def to(self, device: torch.device) -> None:
        """Move the cached images to ``device``, where they are cut and flipped from then on."""
        if self.cached is not None:
            self.cached = [image.to(device) for image in self.cached]

    @property
    def _cuts(self) -> bool:
        return "crop" in self._config.preprocess

    def _load(self, path: Path) -> tuple[Tensor, bytes, bool, tuple[str, ...]] | InputError:
        """Return a prepared image, its file's digest, whether it was transparent, and notes."""
        try:
            pixels, data, transparent, notes = read_image(path, white=self._config.white or None)
        except InputError as error:
            return error
        if self._channels == 1:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., None]
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        size = self._prepared_size(tensor.shape[1], tensor.shape[2])
        if tuple(tensor.shape[1:]) != size:
            tensor = tv.resize(
                tensor, list(size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            ).contiguous()
        return tensor, hashlib.sha256(data).digest(), transparent, notes

    def _prepared_size(self, height: int, width: int) -> tuple[int, int]:
        config = self._config
        if config.preprocess == "resize_and_crop":
            return config.load_size, config.load_size
        if config.preprocess.startswith("scale_width"):
            height, width = round(height * config.load_size / width), config.load_size
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


def load_domains(
    folders: tuple[Path, Path],
    config: DataConfig,
    *,
    channels: tuple[int, int],
    sizes: SizeRequirements,
    watch: Callable[[str, int, int], None] = lambda domain, read, count: None,
) -> tuple[Domain, Domain]:
    """Read both training folders; B is cached in the memory that A leaves.

    ``watch`` is called with A or B, how many of its images are read, and of how many. Raises
    InputError.
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
    a = Domain(
        folders[0], config, channels=channels[0], sizes=sizes, budget=budget, watch=watches[0]
    )
    rest = budget - (a.bytes if a.cached is not None else 0)
    b = Domain(folders[1], config, channels=channels[1], sizes=sizes, budget=rest, watch=watches[1])
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


def read_image(
    path: Path, *, white: int | None = None
) -> tuple[Pixels, bytes, bool, tuple[str, ...]]:
    """Return an image, the bytes of its file, whether it was transparent, and notes about it.

    RGB uint8 ``(H, W, 3)``, upright, transparent parts laid on white; ``white`` as in
    `decode_picture`. Raises InputError.
    """
    name = printable(path)
    try:
        with path.open("rb") as file:
            read_header(file, name, max_pixels=MAX_PIXELS)
            file.seek(0)
            data = file.read()
        image = decode_picture(data, name, white=white)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error
    pixels, alpha = image.pixels, image.extras.alpha
    # A fourth band that the file does not declare as alpha hides nothing.
    transparent = not image.extras.undeclared and alpha is not None and int(alpha.min()) < 255
    if transparent:
        share = np.asarray(alpha, np.float32)[..., None] / 255
        pixels = np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)
    return pixels, data, transparent, image.notes


def list_images(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the images in ``folder`` and beneath it in the order of their names, and notes.

    The notes report which files are left out; hidden files are not mentioned. Raises InputError
    where there are no images, or the folder cannot be read.
    """
    paths, left_out = _listed(folder)
    return paths, tuple(_left_out_notes(folder, left_out))


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
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
        raise InputError(
            f"{printable(folder)}: no images in it ({len(others)} other files{kinds}); put jpg, "
            "png, webp, avif or tiff files there"
        )
    return sorted(images, key=natural_key), others


def _left_out_notes(folder: Path, left_out: Sequence[Path]) -> Iterator[str]:
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


def _in_parallel(
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
