"""The families of generators that a checkpoint is recognised as, by names and shapes alone.

`recognise` returns every family whose network has exactly the weights of a file, and where none
has, what the file looks most like and what differs. Each module of this package holds one family or
several kindred ones; `FAMILIES` lists them.

This package imports torch; a translation by another runtime does not import it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ....errors import ModelError
from .aladdinpersson import ALADDINPERSSON
from .animegan import ANIMEGAN
from .copies import COPIES
from .course import MNIST_SVHN, TORONTO, UDACITY
from .cut import CUT
from .family import Family, NetworkConfig, Reading, Shapes, UnfitError
from .fast_style import FAST_STYLE
from .mmgeneration import MMEDITING, MMGENERATION
from .pix2pixhd import PIX2PIXHD
from .pytorch_gan import PYTORCH_GAN
from .reference import REFERENCE_RESNET, REFERENCE_UNET
from .ugatit import UGATIT

__all__ = [
    "FAMILIES",
    "Closest",
    "Family",
    "Fit",
    "NetworkConfig",
    "Reading",
    "Recognised",
    "Shapes",
    "family_named",
    "recognise",
    "unlike",
]

FAMILIES: tuple[Family, ...] = (
    REFERENCE_RESNET,
    REFERENCE_UNET,
    CUT,
    PIX2PIXHD,
    ANIMEGAN,
    FAST_STYLE,
    UGATIT,
    COPIES,
    PYTORCH_GAN,
    ALADDINPERSSON,
    MMGENERATION,
    MMEDITING,
    UDACITY,
    TORONTO,
    MNIST_SVHN,
)
"""The families in the order in which messages list them."""

_SEQUENCE = "model."
"""The name of the sequence of layers in the networks of the reference and of their kin."""

_LEAST_LIKENESS = 0.25
"""The least share of equal names and shapes at which weights look like a family's."""


@dataclass(frozen=True)
class Fit:
    """A family, and how it reads the weights in a file."""

    family: Family
    reading: Reading


@dataclass(frozen=True)
class Closest:
    """The family that weights look most like, and what differs."""

    family: Family
    finding: str
    """A clause about the file: "it lacks 'model.15.bias', which a resnet_9blocks has"."""
    likeness: float
    """The share of the names and shapes that are equal, 0 to 1."""


def family_named(name: str) -> Family:
    """Return the family that ``--family`` calls ``name``. Raises ModelError with all names."""
    for family in FAMILIES:
        if family.name == name:
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise ModelError(f"no family {name!r}: it is one of {names}")


@dataclass(frozen=True)
class Recognised:
    """What the families make of a set of weights."""

    fits: tuple[Fit, ...]
    """Every family whose network has exactly these weights, each network once."""
    closest: Closest | None
    """The family that they look most like, where they fit none and look like any."""
    built: int
    """The tensors of the networks that were built to compare with."""


def recognise(shapes: Shapes) -> Recognised:
    """Compare weights with the networks of all families.

    The likeness to a network is the share of the names and shapes that are equal.
    """
    found: list[Fit] = []
    best, built = None, 0
    for family, reading, expected in _readings(shapes, FAMILIES):
        built += len(expected)
        differences = _differences(shapes, reading, expected)
        total = max(1, len(shapes) + sum(name not in shapes for name in expected))
        share = 1 - len(differences) / total
        if not differences:
            known = [(fit.reading.config, _own_names(shapes, fit.reading)) for fit in found]
            if (reading.config, _own_names(shapes, reading)) not in known:
                found.append(Fit(family, reading))
        elif share > (best.likeness if best else _LEAST_LIKENESS):
            best = Closest(family, differences[0], share)
    if found:
        return Recognised(tuple(found), None, built)
    return Recognised((), best or next(_unfit(shapes, FAMILIES), None), built)


def unlike(shapes: Shapes, family: Family) -> str:
    """Return how weights that do not fit ``family`` differ from it, as a clause about the file."""
    for _, reading, expected in _readings(shapes, (family,)):
        if differences := _differences(shapes, reading, expected):
            return differences[0]
    unfit = next(_unfit(shapes, (family,)), None)
    return unfit.finding if unfit else "its names have no sign of it"


def _readings(
    shapes: Shapes, among: Sequence[Family]
) -> Iterator[tuple[Family, Reading, dict[str, tuple[int, ...]]]]:
    """Yield how each family reads the weights, with the shapes that it expects in the file.

    The weights of a module of layers that was saved by itself have no name before their numbers:
    each family reads them with the name that such a module has in most networks, too.
    """
    alone = all(name[:1].isdigit() or name.startswith(_SEQUENCE) for name in shapes)
    for before in ("", _SEQUENCE) if alone else ("",):
        given = {before + name: shape for name, shape in shapes.items()}
        for family in among:
            try:
                reading = family.read(given)
                if reading is None:
                    continue
                with torch.device("meta"):
                    network = reading.build()
            # torch refuses shapes of more numbers than it can count by RuntimeError.
            except (UnfitError, ValueError, RuntimeError):
                continue
            own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
            in_file = {name: key for key, name in (reading.names or {}).items()}
            expected = {in_file.get(name, name): shape for name, shape in own.items()}
            if before:
                expected = {name.removeprefix(before): shape for name, shape in expected.items()}
                names = {name: (reading.names or {}).get(before + name, before + name)
                         for name in shapes}  # fmt: skip
                ignored = frozenset(name.removeprefix(before) for name in reading.ignored)
                reading = replace(reading, names=names, ignored=ignored)
            yield family, reading, expected


def _own_names(shapes: Shapes, reading: Reading) -> dict[str, str]:
    """Return the name in the network of each weight that it needs."""
    names = reading.names or {}
    return {name: names.get(name, name) for name in shapes if name not in reading.ignored}


def _unfit(shapes: Shapes, among: Sequence[Family]) -> Iterator[Closest]:
    """Yield the families whose sign is there, with why none of their networks has the weights."""
    for family in among:
        try:
            family.read(shapes)
        except (UnfitError, ValueError) as error:
            finding = f"it {error}" if isinstance(error, UnfitError) else str(error)
            yield Closest(family, finding, _LEAST_LIKENESS)


def _differences(shapes: Shapes, reading: Reading, expected: Shapes) -> list[str]:
    """Return how the weights differ from those of a network, as clauses about the file."""
    kind = f"a {reading.config.architecture}"
    found = []
    for name, shape in expected.items():
        if name not in shapes:
            found.append(f"it lacks {name!r}, which {kind} has")
        elif shapes[name] != shape:
            found.append(f"its {name!r} is {shapes[name]} where {kind} of its width has {shape}")
    for name in shapes:
        if name not in expected and name not in reading.ignored:
            found.append(f"it has {name!r}, which {kind} has not")
    return found
