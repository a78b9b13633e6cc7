"""Two folders of unpaired pictures become batches: found, decoded, cut, mirrored, drawn.

What is done to a picture:

- It is read as everywhere in this package (`decode_picture`), whatever its format: upright
  by its EXIF, 16 bits rounded to 8, CMYK to sRGB. What is transparent is laid on white, since the
  colours below it were meant for nobody's eyes. A domain of one channel is BT.601 luma.
- Then come the steps that never change, once: the resize of ``preprocess`` (bicubic, antialiased).
- Then, at every use, those that do: the cut and the flip, drawn for A and for B by itself.

An epoch shows as many pictures as the larger folder has, each of that folder once; A in an order
drawn anew, B drawn at random (as the reference does). Every draw follows from the seed, the epoch
and the place in it alone: so the state of the sampler is two numbers, and the batches are the same
wherever the pictures are kept and whoever decodes them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from cyclegan_batch.media.headers import read_header
from cyclegan_batch.media.pictures import decode_picture
from cyclegan_batch.options import MAX_PIXELS
from cyclegan_batch.wording import printable

from .settings import DataConfig

_AHEAD = 2
"""Pictures per worker that are read ahead, and batches that wait beside those being made."""


@dataclass(frozen=True)
class Skipped:
    """A picture that cannot be trained on."""

    path: Path
    reason: str


def find_folders(
    data: Path | None, data_a: Path | None, data_b: Path | None
) -> tuple[Path, Path, Path | None, Path | None]:
    """Return trainA, trainB, and testA, testB where there are such folders.

    Either ``data`` holds them by these names, or ``data_a`` and ``data_b`` are the first two.
    Raises InputError.
    """
    if data_a is not None and data_b is not None and data is None:
        return (*_checked_pair(data_a, data_b), None, None)
    if data is None or data_a is not None or data_b is not None:
        raise InputError(
            "no pictures named: give one folder that holds trainA and trainB, or both --data-a "
            "and --data-b"
        )
    if not data.is_dir():
        raise InputError(f"{printable(data)}: no such folder; check the name")
    for name in ("trainA", "trainB"):
        if not (data / name).is_dir():
            held = sorted(path.name for path in data.iterdir() if path.is_dir())[:6]
            raise InputError(
                f"{printable(data)}: holds no {name} (it holds "
                f"{', '.join(printable(Path(each)) for each in held) or 'no folders'}); name its "
                "folders trainA and trainB, or give both with --data-a and --data-b"
            )
    tests = [path if (path := data / name).is_dir() else None for name in ("testA", "testB")]
    return (*_checked_pair(data / "trainA", data / "trainB"), tests[0], tests[1])


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
            "folders that share no picture"
        )
    return folder_a, folder_b


class Domain:
    """The pictures of one folder, decoded as they are needed or kept.

    Every one is decoded once at the beginning: so what is damaged is known by name before the
    first step, and the same pictures have the same numbers wherever they are kept.
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
        """Read every picture in ``folder``, recursively; of ``most`` only so many, evenly spread.

        Up to ``budget`` bytes of prepared pictures are kept in memory: all of them or none.
        ``watch`` is called with how many are read, and of how many. Raises InputError where the
        folder cannot be read or holds no picture that can be used.
        """
        self.folder, self._config, self._channels, self._sizes = folder, config, channels, sizes
        if channels not in (1, 3):
            raise InputError(f"{printable(folder)}: {channels} channels; pictures have 1 or 3")
        self.paths: list[Path] = []
        """Of the pictures that can be used, in order."""
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.cached: list[Tensor] | None = []
        """The prepared pictures, uint8 ``(C, H, W)``; None where they do not fit."""
        self.bytes = 0
        """Of all prepared pictures, kept or not."""
        self.transparent = 0
        """Pictures that were laid on white."""
        told: Counter[str] = Counter()
        self.shapes: dict[tuple[int, int], Path] = {}
        """The heights and widths of prepared pictures, each with the first one that has it."""
        self.content: list[bytes] = []
        """The SHA-256 of every file that can be used, in order."""
        digest = hashlib.sha256()
        contents = hashlib.sha256()
        found, left_out = _listed(folder)
        self.left_out = dict(Counter(path.suffix.lower() for path in left_out).most_common())
        """Files that are not read, by their extensions."""
        self.notes += _left_out_words(folder, left_out)
        if most is not None and len(found) > most:
            found = [found[number * len(found) // most] for number in range(most)]
        workers = config.workers or cpu_threads()
        for number, (path, result) in enumerate(_in_parallel(self._load, found, workers)):
            if watch:
                watch(number + 1, len(found))
            if isinstance(result, InputError):
                self.skipped.append(Skipped(path, str(result)))
                continue
            prepared, content, transparent, notes = result
            told.update(notes)
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
        """SHA-256 of the names and contents of the pictures that can be used."""
        self.contents = contents.hexdigest()
        """The same without the names."""
        if not self.paths:
            first = f", the first of them: {self.skipped[0].reason}" if self.skipped else ""
            raise InputError(
                f"{printable(folder)}: none of its {len(found)} pictures can be read{first}"
            )
        self.notes += [
            f"{printable(folder)}, {count} of its pictures: {note}" for note, count in told.items()
        ]
        if self.transparent:
            self.notes.append(
                f"{printable(folder)}: {self.transparent} pictures with transparency are laid on "
                "white"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def prepared(self, number: int) -> Tensor:
        """Return one picture as it is before the cut, uint8 ``(C, H, W)``. Raises InputError."""
        if self.cached is not None:
            return self.cached[number]
        result = self._load(self.paths[number])
        if isinstance(result, InputError):
            raise InputError(f"{result}; it could be read when the run began") from result
        return result[0]

    def augmented(self, number: int, draw: random.Random) -> Tensor:
        """Return one picture, cut and mirrored as drawn: uint8 ``(C, H, W)``."""
        picture = self.prepared(number)
        # Always the same three draws: so no option shifts those of the other pictures.
        down, right, mirror = draw.random(), draw.random(), draw.random()
        if self._cuts:
            side = self._config.crop_size
            height, width = picture.shape[1:]
            top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
            picture = tv.crop(picture, top, left, side, side)
        if self._config.flip and mirror < 0.5:
            picture = tv.horizontal_flip(picture)
        return picture

    def centred(self, number: int) -> Tensor:
        """Return one picture, cut out of its middle: float32 ``(C, H, W)`` in [-1, 1].

        It is what samples are drawn from.
        """
        picture = self.prepared(number)
        if self._cuts:
            picture = tv.center_crop(picture, [self._config.crop_size])
        return _normalized(picture)

    def to(self, device: torch.device) -> None:
        """Move what is kept to ``device``, so that it is cut and mirrored there."""
        if self.cached is not None:
            self.cached = [picture.to(device) for picture in self.cached]

    @property
    def _cuts(self) -> bool:
        return "crop" in self._config.preprocess

    def _load(self, path: Path) -> tuple[Tensor, bytes, bool, tuple[str, ...]] | InputError:
        """Return a prepared picture, its file's digest, whether it was transparent, and notes."""
        try:
            pixels, data, transparent, notes = read_picture(path, white=self._config.white or None)
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
        if self._cuts:
            # What is smaller than the cut grows until it holds one.
            scale = max(1.0, config.crop_size / min(height, width))
            return round(height * scale), round(width * scale)
        least, multiple = self._sizes.minimum, self._sizes.multiple_of
        return (
            max(least, round(height / multiple) * multiple),
            max(least, round(width / multiple) * multiple),
        )


def read_picture(
    path: Path, *, white: int | None = None
) -> tuple[Pixels, bytes, bool, tuple[str, ...]]:
    """Return a picture, the bytes of its file, whether it was transparent, and what to say of it.

    RGB uint8 ``(H, W, 3)``, upright, what is transparent laid on white; ``white`` as in
    `decode_picture`. Raises InputError.
    """
    name = printable(path)
    try:
        with path.open("rb") as file:
            read_header(file, name, max_pixels=MAX_PIXELS)
            file.seek(0)
            data = file.read()
        picture = decode_picture(data, name, white=white)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error
    pixels, alpha = picture.pixels, picture.extras.alpha
    # A fourth band that is not said to be alpha hides nothing.
    transparent = not picture.extras.unnamed and alpha is not None and int(alpha.min()) < 255
    if transparent:
        share = np.asarray(alpha, np.float32)[..., None] / 255
        pixels = np.rint(pixels * share + 255 * (1 - share)).astype(np.uint8)
    return pixels, data, transparent, picture.notes


def load_domains(
    folders: tuple[Path, Path],
    config: DataConfig,
    *,
    channels: tuple[int, int],
    sizes: SizeRequirements,
    watch: Callable[[str, int, int], None] = lambda domain, read, count: None,
) -> tuple[Domain, Domain]:
    """Read both training folders; A has the first call on the memory.

    ``watch`` is called with A or B, how many of its pictures are read, and of how many. Raises
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
            f"{printable(a.folder)} and {printable(b.folder)}: hold the same pictures; give two "
            "folders of different domains"
        )
    if shared := set(a.content) & set(b.content):
        a.notes.append(
            f"{sum(content in shared for content in a.content)} of the {len(a)} pictures of A are "
            "in B as well: what is in both teaches nothing of their difference"
        )
    for domain in (a, b):
        if config.batch_size > 1 and len(domain.shapes) > 1:
            (first, _), (size, path) = list(domain.shapes.items())[:2]
            raise _of_two_sizes(path, size, first)
    return a, b


def _of_two_sizes(path: Path, size: Sequence[int], other: Sequence[int]) -> InputError:
    return InputError(
        f"{printable(path)}: {size[1]}×{size[0]} does not go into one batch with "
        f"{other[1]}×{other[0]}; use batch_size 1, or a preprocess that cuts"
    )


def _normalized(pictures: Tensor) -> Tensor:
    """Return uint8 pictures as float32 in [-1, 1], wherever they are, without asking the host."""
    return pictures.to(torch.float32).mul_(1 / 255).sub_(0.5).div_(0.5)


def pictures_in(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Return the pictures in ``folder`` and beneath it, by their names, and what is left out.

    What is left out are sentences; hidden files are not mentioned. Raises InputError where there
    are no pictures, or the folder cannot be read.
    """
    found, left_out = _listed(folder)
    return found, tuple(_left_out_words(folder, left_out))


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the pictures in ``folder`` and beneath it, and the files that are not read."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{printable(Path(error.filename or folder))}: cannot be read: "
            f"{error.strerror or error}"
        ) from error

    found: list[Path] = []
    others: list[Path] = []
    # Links to folders are followed by nobody here: a circle of them would never end.
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (text)
                (found if suffix in IMAGE_FORMATS else others).append(Path(place, name))
    if not found:
        kinds = f": {counted_suffixes(path.suffix for path in others)}" if others else ""
        raise InputError(
            f"{printable(folder)}: no pictures in it ({len(others)} other files{kinds}); put jpg, "
            "png, webp, avif or tiff files there"
        )
    return sorted(found, key=natural_key), others


def _left_out_words(folder: Path, left_out: Sequence[Path]) -> Iterator[str]:
    """Yield what of a folder is not used: pictures that are not read, and other files."""
    pictures = [path.suffix for path in left_out if path.suffix.lower() in UNREAD_IMAGES]
    others = [path.suffix for path in left_out if path.suffix.lower() not in UNREAD_IMAGES]
    if pictures:
        yield (
            f"{printable(folder)}: left out, as pictures of kinds that are not read here: "
            f"{len(pictures)} ({counted_suffixes(pictures)}); convert them to PNG, TIFF or JPEG"
        )
    if others:
        yield (
            f"{printable(folder)}: left out, as no pictures: {len(others)} "
            f"({counted_suffixes(others)})"
        )


def _in_parallel(
    load: Callable[[Path], Any], paths: Sequence[Path], workers: int
) -> Iterator[tuple[Path, Any]]:
    """Yield every path with what ``load`` makes of it, in order, a few ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Any]] = []
        ahead = _AHEAD * workers
        try:
            for number, path in enumerate(paths):
                while len(waiting) < min(len(paths), number + ahead):
                    waiting.append(pool.submit(load, paths[len(waiting)]))
                yield path, waiting[number].result()
                waiting[number] = Future()  # lets go of the picture
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Draw:
    """One sample of a batch: which pictures, and what decides their cut and flip."""

    a: int
    b: int
    seed: str


class Sampler:
    """Says which pictures come next. Its state is the epoch and the place in it.

    Several processes share the pictures of an epoch: ``size`` of them, this one being ``rank``,
    together have what one of ``size`` times the batch size would have, in the same steps.
    """

    def __init__(
        self,
        n_a: int,
        n_b: int,
        *,
        batch_size: int = 1,
        seed: int = 0,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self._n_a, self._n_b, self._batch_size, self._seed = n_a, n_b, batch_size, seed
        self._rank, self._size = rank, size
        self.epoch = 1
        """The epoch of the next batch, counted from 1."""
        self.position = 0
        """Batches of that epoch that are behind."""

    @property
    def batches(self) -> int:
        """Batches in an epoch; pictures that fill no batch are left out of it."""
        return max(1, max(self._n_a, self._n_b) // (self._batch_size * self._size))

    def advance(self) -> None:
        """Step on to the next batch, and behind the last one to the next epoch."""
        self.epoch, self.position = self.after(1)

    def after(self, steps: int) -> tuple[int, int]:
        """Return the epoch and the place in it, ``steps`` batches on."""
        place = (self.epoch - 1) * self.batches + self.position + steps
        return place // self.batches + 1, place % self.batches

    def batch(self, epoch: int, position: int) -> list[Draw]:
        """Return the samples of a batch, wherever the sampler stands."""
        order = _order(max(self._n_a, self._n_b), f"{self._seed} {epoch}")
        draws = []
        begin = (position * self._size + self._rank) * self._batch_size
        for place in range(begin, begin + self._batch_size):
            number = order[place % len(order)]
            seed = f"{self._seed} {epoch} {place}"
            draws.append(Draw(number % self._n_a, random.Random(seed).randrange(self._n_b), seed))
        return draws

    def state_dict(self) -> dict[str, int]:
        """Return where it stands."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go back to where `state_dict` was taken."""
        self.epoch, self.position = state["epoch"], state["position"]


@functools.lru_cache(maxsize=2)
def _order(length: int, seed: str) -> list[int]:
    order = list(range(length))
    random.Random(seed).shuffle(order)
    return order


class Feed:
    """The batches in the sampler's order; what is not kept is decoded ahead, by threads."""

    def __init__(self, a: Domain, b: Domain, sampler: Sampler, *, workers: int) -> None:
        self.a, self.b, self.sampler = a, b, sampler
        kept = a.cached is not None and b.cached is not None
        self._pool = None if kept else ThreadPoolExecutor(workers)
        # Every one is a batch of floats: no more than keep all workers busy.
        self._ahead = workers + _AHEAD
        self._coming: dict[tuple[int, int], Future[tuple[Tensor, Tensor]]] = {}

    def next(self) -> tuple[Tensor, Tensor]:
        """Return real_A and real_B, float32 ``(N, C, H, W)`` in [-1, 1], and step on.

        Raises InputError where a picture is not what it was, or those of a batch differ in size.
        """
        here = (self.sampler.epoch, self.sampler.position)
        if self._pool is None:
            batch = self._make(*here)
        else:
            for steps in range(self._ahead):
                place = self.sampler.after(steps)
                if place not in self._coming:
                    self._coming[place] = self._pool.submit(self._make, *place)
            batch = self._coming.pop(here).result()
        self.sampler.advance()
        return batch

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _make(self, epoch: int, position: int) -> tuple[Tensor, Tensor]:
        draws = self.sampler.batch(epoch, position)
        return (
            _stacked(self.a, [draw.a for draw in draws], [f"A {draw.seed}" for draw in draws]),
            _stacked(self.b, [draw.b for draw in draws], [f"B {draw.seed}" for draw in draws]),
        )


def _stacked(domain: Domain, numbers: Sequence[int], seeds: Sequence[str]) -> Tensor:
    pictures = [
        domain.augmented(number, random.Random(seed))
        for number, seed in zip(numbers, seeds, strict=True)
    ]
    for number, picture in zip(numbers, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise _of_two_sizes(domain.paths[number], picture.shape[1:], pictures[0].shape[1:])
    return _normalized(torch.stack(pictures))
