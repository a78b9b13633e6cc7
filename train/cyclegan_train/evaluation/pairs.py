"""What the scores share: which image belongs to which, its pixels, and one size for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as tv  # type: ignore[import-untyped]

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import Pixels, Size
from cyclegan_batch.wording import printable

from ..image_files import list_images, read_image

RESULTS = "results"
"""The row of what is scored; the other rows are there to compare it with."""
INPUT = "the input"
"""The row of what the results were made from."""

Classes: TypeAlias = npt.NDArray[np.uint8]
Watch: TypeAlias = Callable[[int, int], None]
"""Called with the number of images that are done, and with the number of all."""


@dataclass(frozen=True)
class Pair:
    """A result, its truth, and its source where sources are scored too."""

    result: Path
    truth: Path
    source: Path | None


@dataclass(frozen=True)
class Matched:
    """The pairs, and notes about files without a partner and files that are not read."""

    pairs: list[Pair]
    notes: list[str]


def match(results: Path, truth: Path, source: Path | None) -> Matched:
    """Return the images that have the same name in all places. Raises InputError."""
    places = [place for place in (results, truth, source) if place is not None]
    if all(place.is_file() for place in places):
        return Matched([Pair(results, truth, source)], [])
    folders = [images_in(place) for place in places]
    by_name = [images for images, _ in folders]
    own, true, sources = by_name[0], by_name[1], by_name[2] if source is not None else None
    common = [name for name in own if all(name in each for each in by_name[1:])]
    if not common:
        raise InputError(
            f"{printable(results)}: none of its {len(own)} images has a partner in "
            f"{' and '.join(printable(place) for place in places[1:])}: it holds "
            f"{printable(next(iter(own.values())))} and not the name of "
            f"{printable(next(iter(true.values())))}; a partner has the same path and name in its "
            "folder, extensions apart"
        )
    pairs = [Pair(own[name], true[name], sources[name] if sources else None) for name in common]
    notes = [note for _, notes in folders for note in notes]
    notes += [
        f"{printable(place)}: {len(each) - len(common)} of its {len(each)} images have no "
        "partner and are left out"
        for place, each in zip(places, by_name, strict=True)
        # A single result may have its truth in a folder of many.
        if len(each) > len(common) and not results.is_file()
    ]
    return Matched(pairs, notes)


def images_in(place: Path) -> tuple[dict[Path, Path], tuple[str, ...]]:
    """Return the images of a folder, by their paths within it without extensions, and notes.

    ``place`` may be a single image, too. The notes report which files are left out. Raises
    InputError.
    """
    if not place.exists():
        raise InputError(f"{printable(place)}: no such file or folder; check the name")
    if place.is_file():
        return {Path(place.stem): place}, ()
    images: dict[Path, Path] = {}
    paths, notes = list_images(place)
    for path in paths:
        name = path.relative_to(place).with_suffix("")
        if name in images:
            raise InputError(
                f"{printable(path)} and {printable(images[name])}: differ in their extensions "
                "only; remove one of them"
            )
        images[name] = path
    return images, notes


def other_pair(pairs: Sequence[Pair], number: int) -> Pair:
    """Return the pair half the list away from ``number``: neighbours often show one scene."""
    return pairs[(number + len(pairs) // 2) % len(pairs)]


# Pixels and sizes


def read_pixels(path: Path) -> Pixels:
    """Return an image, RGB uint8 ``(H, W, 3)``. Raises InputError."""
    return read_image(path)[0]


class Sizes:
    """Resizes images to the size of their truth where that is allowed, and counts them."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._counts: dict[tuple[Size, Size], int] = {}

    def fitted(self, pixels: Pixels, path: Path, size: Size) -> Pixels:
        """Return the pixels of ``path`` at ``size``.

        Raises InputError where they have another size and may not be resized.
        """
        return resized(pixels, size) if self._differs(pixels.shape, path, size) else pixels

    def fitted_labels(self, classes: Classes, path: Path, size: Size) -> Classes:
        """Return the label map ``path`` at ``size``. Raises InputError as `fitted` does."""
        return nearest(classes, size) if self._differs(classes.shape, path, size) else classes

    def notes(self) -> Iterator[str]:
        """Yield how many images were resized, size by size."""
        for (own, size), count in self._counts.items():
            yield (
                f"{count} images of {size_text(own)} are resized to their truth's {size_text(size)}"
            )

    def _differs(self, shape: tuple[int, ...], path: Path, size: Size) -> bool:
        own_size = (shape[0], shape[1])
        if own_size == size:
            return False
        if not self._allowed:
            raise InputError(
                f"{printable(path)}: is {size_text(own_size)}, and its truth is {size_text(size)}; "
                "--resize resizes it to its truth"
            )
        self._counts[own_size, size] = self._counts.get((own_size, size), 0) + 1
        return True


def size_text(size: Size) -> str:
    """Return a height and width as ``width×height``."""
    return f"{size[1]}×{size[0]}"


def resized(pixels: Pixels, size: Size) -> Pixels:
    """Return an image at another size, by the filter of the training (bicubic, antialiased)."""
    if pixels.shape[:2] == size:
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    planes = tv.resize(
        planes, list(size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
    )
    result: Pixels = planes.permute(1, 2, 0).numpy()
    return result


def nearest(classes: Classes, size: Size) -> Classes:
    """Return a label map at another size; every pixel has the class at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(size, classes.shape, strict=True)
    )
    resized: Classes = classes[rows[:, None], columns]
    return resized


def table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines of a table whose numbers are right-aligned."""
    width = max(len(title), *map(len, rows))
    lines = [f"{title:<{width}}" + "".join(f"  {head:>14}" for head in heads)]
    for name, values in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"  {value:>14}" for value in values))
    return lines
