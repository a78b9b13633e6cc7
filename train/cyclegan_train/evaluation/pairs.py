"""Which image belongs to which: partners by name, their pixels, and one size for both."""

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
from cyclegan_batch.frames import Pixels
from cyclegan_batch.wording import printable

from ..data import pictures_in, read_picture

RESULTS = "results"
"""The row of what is scored; every other row is there to compare it with."""
INPUT = "the input"

Classes: TypeAlias = npt.NDArray[np.uint8]
Watch: TypeAlias = Callable[[int, int], None]
"""Called with how many pictures are done, and of how many."""


@dataclass(frozen=True)
class Pair:
    """A result, its truth, and what it was made from where that is given."""

    result: Path
    truth: Path
    source: Path | None


@dataclass(frozen=True)
class Matched:
    """The pairs, and sentences about what has no partner or was left out."""

    pairs: list[Pair]
    notes: list[str]


def match(results: Path, truth: Path, source: Path | None) -> Matched:
    """Return what has the same name in all of them. Raises InputError."""
    places = [place for place in (results, truth, source) if place is not None]
    if all(place.is_file() for place in places):
        return Matched([Pair(results, truth, source)], [])
    folders = [images_in(place) for place in places]
    named = [pictures for pictures, _ in folders]
    own, true, sources = named[0], named[1], named[2] if source is not None else None
    common = [name for name in own if all(name in each for each in named[1:])]
    if not common:
        raise InputError(
            f"{printable(results)}: none of its {len(own)} pictures has a partner in "
            f"{' and '.join(printable(place) for place in places[1:])}: it holds "
            f"{printable(next(iter(own.values())))} and not the name of "
            f"{printable(next(iter(true.values())))}; a partner has the same path and name in its "
            "folder, endings apart"
        )
    pairs = [Pair(own[name], true[name], sources[name] if sources else None) for name in common]
    notes = [note for _, notes in folders for note in notes]
    notes += [
        f"{printable(place)}: {len(each) - len(common)} of its {len(each)} pictures have no "
        "partner and are left out"
        for place, each in zip(places, named, strict=True)
        # One picture may be looked up in a whole folder.
        if len(each) > len(common) and not results.is_file()
    ]
    return Matched(pairs, notes)


def images_in(place: Path) -> tuple[dict[Path, Path], tuple[str, ...]]:
    """Return the pictures in a folder, or the one, by their paths within it, endings apart.

    And sentences that tell what of the folder is left out.
    """
    if not place.exists():
        raise InputError(f"{printable(place)}: no such file or folder; check the name")
    if place.is_file():
        return {Path(place.stem): place}, ()
    found: dict[Path, Path] = {}
    pictures, left_out = pictures_in(place)
    for path in pictures:
        name = path.relative_to(place).with_suffix("")
        if name in found:
            raise InputError(
                f"{printable(path)} and {printable(found[name])}: differ in their endings only; "
                "leave one of them"
            )
        found[name] = path
    return found, left_out


def other_pair(pairs: Sequence[Pair], number: int) -> Pair:
    """Return the pair half the list away from ``number``: neighbours are often of one scene."""
    return pairs[(number + len(pairs) // 2) % len(pairs)]


# Pixels and sizes


def read_pixels(path: Path) -> Pixels:
    """Return an image, RGB uint8 ``(H, W, 3)``. Raises InputError."""
    return read_picture(path)[0]


class Sizes:
    """Brings pictures to the size of their truth where that is allowed, and counts them."""

    def __init__(self, allowed: bool) -> None:
        self._allowed = allowed
        self._seen: dict[tuple[tuple[int, int], tuple[int, int]], int] = {}

    def fitted(self, pixels: Pixels, path: Path, size: tuple[int, int]) -> Pixels:
        """Return the image ``path`` at ``size``. Raises InputError where it would be resized."""
        return resized(pixels, size) if self._differs(pixels.shape, path, size) else pixels

    def fitted_labels(self, classes: Classes, path: Path, size: tuple[int, int]) -> Classes:
        """Do the same with a label map."""
        return nearest(classes, size) if self._differs(classes.shape, path, size) else classes

    def notes(self) -> Iterator[str]:
        """Yield how many images were resized."""
        for (own, size), count in self._seen.items():
            yield (
                f"{count} pictures of {size_text(own)} are resized to their truth's "
                f"{size_text(size)}"
            )

    def _differs(self, shape: tuple[int, ...], path: Path, size: tuple[int, int]) -> bool:
        own = (shape[0], shape[1])
        if own == size:
            return False
        if not self._allowed:
            raise InputError(
                f"{printable(path)}: is {size_text(own)}, and its truth is {size_text(size)}; "
                "--resize brings it to the size of its truth"
            )
        self._seen[own, size] = self._seen.get((own, size), 0) + 1
        return True


def size_text(size: tuple[int, int]) -> str:
    """Return a height and width as ``width×height``."""
    return f"{size[1]}×{size[0]}"


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Return a picture at another size, by the filter that training resizes with."""
    if pixels.shape[:2] == size:
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    planes = tv.resize(
        planes, list(size), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
    )
    resized: Pixels = planes.permute(1, 2, 0).numpy()
    return resized


def nearest(classes: Classes, size: tuple[int, int]) -> Classes:
    """Return a label map at another size; every pixel takes the class at its centre."""
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
