"""The images that a run validates on: those of val folders, held out, or of the training.

The choice depends on the folders, the keys and the seed only. How many are held out is in the state
of a run, so that a resumed one trains on the same images.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cyclegan_batch.errors import InputError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.wording import printable

from .data import Domain
from .settings import Settings

SHARE = 0.05
"""The images that a validation translates in one direction, as a share of the samples of the epochs
since the last one: its cost is under 3 % of the time then (benchmarks/validation.py)."""
LEAST = 16
"""Images of a domain, at least: the kernel distance of fewer says little."""


@dataclass(frozen=True)
class Images:
    """The images of one domain that are validated on, and where they are from."""

    origin: str
    """``valA``, ``held out of trainA`` or ``trainA``, by the names of the folders."""
    held_out: int
    """How many of them are taken away from the training."""
    names: tuple[Path, ...]
    """Their paths in their folder."""
    pixels: tuple[Tensor, ...]
    """uint8 ``(C, H, W)``, as large as a cut of the training."""
    told: tuple[str, ...] = ()
    """What is to be told of the images that were read for it, apart from those of the training."""

    def words(self) -> str:
        """Return where they are from, for a person."""
        if self.origin.startswith("held out"):
            return self.origin
        if self.origin.startswith("val"):
            return f"of {self.origin}"
        return f"of the training ({self.origin}), of which none are held out"

    def described(self) -> dict[str, object]:
        """Return what run.json says about them."""
        names = [printable(name) for name in self.names]
        return {"from": self.origin, "held_out": self.held_out, "images": names}


def validation_folders(data: Path | None) -> tuple[Path | None, Path | None]:
    """Return valA and valB in the folder of the data, where there are such folders."""
    if data is None:
        return None, None
    one, other = (path if (path := data / f"val{each}").is_dir() else None for each in "AB")
    return one, other


def set_apart(
    domains: tuple[Domain, Domain],
    folders: tuple[Path | None, Path | None],
    settings: Settings,
    sizes: SizeRequirements,
    saved: Sequence[int] | None,
) -> tuple[Images, Images]:
    """Choose the images to validate on; those that are held out are taken out of ``domains``.

    ``saved`` is how many a resumed run has held out of each domain. With ``val_images = 0``
    none are chosen. Raises InputError where the folders for validation cannot be used.
    """
    run = settings.run
    count = min(run.val_images, max(LEAST, round(SHARE * max(map(len, domains)))))
    channels = settings.train.input_nc, settings.train.output_nc
    chosen: list[Images] = []
    for number, (domain, folder) in enumerate(zip(domains, folders, strict=True)):
        name, whole = domain.folder.name, len(domain)
        if saved is not None:
            held_out = saved[number]
        else:
            held_out = 0 if folder else min(count, int(run.val_fraction * whole))
            held_out = held_out if held_out >= LEAST else 0
        draw = random.Random(f"{run.seed} validation {'AB'[number]}")
        own = domain.split_off(draw.sample(range(whole), held_out)) if held_out else None
        if folder is not None and count:
            most = None if run.val_truth else count
            own = Domain(
                folder,
                settings.data,
                channels=channels[number],
                sizes=sizes,
                budget=2**30,
                most=most,
            )
            images = _images(own, range(len(own)), folder.name, held_out)
            chosen.append(replace(images, told=tuple(own.sentences(folder.name))))
        elif own is not None:
            chosen.append(_images(own, range(held_out), f"held out of {name}", held_out))
        else:
            chosen.append(_images(domain, _spread(whole, count), name, held_out))
    a, b = chosen
    if not count:
        return _part(a, ()), _part(b, ())
    return _paired(a, b, folders, count) if run.val_truth else (a, b)


def _images(domain: Domain, numbers: Sequence[int], origin: str, held_out: int) -> Images:
    names = tuple(domain.paths[number].relative_to(domain.folder) for number in numbers)
    return Images(origin, held_out, names, tuple(domain.middle(number) for number in numbers))


def _spread(length: int, count: int) -> list[int]:
    """Return ``count`` numbers below ``length`` in even steps; all where there are no more."""
    count = min(length, count)
    return [number * length // count for number in range(count)]


def _paired(
    a: Images, b: Images, folders: tuple[Path | None, Path | None], count: int
) -> tuple[Images, Images]:
    """Return ``count`` images of each that have a partner of the same name, extensions apart."""
    if None in folders:
        raise InputError(
            "val_truth: the truth of an image of valA is the image of its name in valB, and the "
            "data has no two such folders; add them, or leave val_truth out"
        )
    one, other = _by_name(a), _by_name(b)
    both = [name for name in one if name in other]
    if not both:
        raise InputError(
            f"val_truth: none of the {len(one)} images in valA has a partner of the same name in "
            f"valB ({printable(a.names[0])} and {printable(b.names[0])} are the first ones); name "
            "them alike, or leave val_truth out"
        )
    both = [both[number] for number in _spread(len(both), count)]
    for name in both:
        sizes = [each.pixels[index[name]].shape[1:] for each, index in ((a, one), (b, other))]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"val_truth: {printable(name)} is {sizes[0][1]}×{sizes[0][0]} in valA and "
                f"{sizes[1][1]}×{sizes[1][0]} in valB; use pairs of one size, or a preprocess that "
                "resizes"
            )
    return _part(a, [one[name] for name in both]), _part(b, [other[name] for name in both])


def _by_name(images: Images) -> dict[Path, int]:
    """Return the numbers of images by their names without extensions. Raises InputError."""
    numbers: dict[Path, int] = {}
    for number, path in enumerate(images.names):
        name = path.with_suffix("")
        if name in numbers:
            raise InputError(
                f"val_truth: {printable(path)} and {printable(images.names[numbers[name]])} of "
                f"{images.origin} differ in their extensions only; remove one of them"
            )
        numbers[name] = number
    return numbers


def _part(images: Images, numbers: Sequence[int]) -> Images:
    names = tuple(images.names[number] for number in numbers)
    pixels = tuple(images.pixels[number] for number in numbers)
    return replace(images, names=names, pixels=pixels)
