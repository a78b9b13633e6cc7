"""Load a generator from a PyTorch checkpoint, by the names and shapes of its weights.

A checkpoint does not state which network it is for. `load_generator` finds the family (families/)
whose network has exactly its weights, after it has removed the prefixes of wrappers and the
statistics that old versions of torch stored beside them. Anything that is not the weights of one
generator is refused, and the message names what it is or what it looks most like. What names and
shapes do not show is assumed, but of files that a training of this package has described.

This module imports torch; a translation by another runtime does not import it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from ...file_identity import sha256_of
from ...options import Direction
from ...wording import Note
from ..card import Recognition
from ..networks import GeneratorConfig
from .choice import (
    Candidate,
    Misfit,
    Weights,
    choose,
    contents,
    find_generators,
    listed,
)
from .content import SAVE_AGAIN, read_content, refuse
from .families import Family, Fit, NetworkConfig, family_named, unlike
from .families.others import known_as
from .families.reference import REFERENCE_RESNET, REFERENCE_UNET
from .files import ANY_GENERATOR, FoundCheckpoint, Selection, find_checkpoint
from .run_folder import GENERATOR_FORMAT
from .state_dicts import Group, all_tensors

__all__ = [
    "FoundCheckpoint",
    "LoadedGenerator",
    "Selection",
    "find_checkpoint",
    "load_generator",
    "load_state",
]


_SURE = 0.6
"""The likeness above which weights are said to look like a family's, whatever else they may be."""

_ALMOST = 0.9
"""The likeness above which weights may be a network's that were not saved whole."""

_FEWEST_CONVOLUTIONS = 5
"""The smallest generator that is known has five convolutions, and a block of one has two."""

_EXPORT_ELSEWHERE = "export it to ONNX where it was trained, and give that file"


@dataclass(frozen=True)
class LoadedGenerator:
    """The generator in a checkpoint."""

    path: Path
    digest: str
    """SHA-256 of the file, hexadecimal."""
    family: Family
    """What its weights were recognised as."""
    network: nn.Module
    """In float32 on the CPU, in eval mode: ``(N, C, H, W)`` in [-1, 1], both ways."""
    config: NetworkConfig
    assumed: tuple[str, ...] = ()
    """What the weights do not show and published networks differ in, as clauses."""
    published: tuple[str, ...] = ()
    """What the weights do not show and the family's own program always does alike, as clauses."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The metadata of a safetensors file."""
    prefix: str = ""
    """Its name in the file, which ``--weights`` may give; "" where the file holds nothing else."""
    direction: Direction | None = None
    """How it translates, where its name in the file tells."""
    others: Mapping[str, str] = field(default_factory=dict)
    """What else the file holds: names, and what they are in words."""
    also_fits: tuple[str, ...] = ()
    """The names of other families that have such weights, where ``--family`` named this one."""
    how_chosen: tuple[Note, ...] = ()
    """Notes on how it was chosen, each to be shown once."""

    @property
    def trained_size(self) -> int | None:
        """The side of the squares that it was trained on, where the metadata state it."""
        side = self.metadata.get("trained_size", "")
        return int(side) if re.fullmatch(r"[1-9][0-9]{0,5}", side) else None

    @property
    def recognised(self) -> Recognition:
        """What its weights were recognised as, for the card."""
        return Recognition(
            self.family.name,
            self.family.title,
            self.assumed,
            self.published,
            self.prefix or None,
            self.also_fits,
        )

    def directed(self, found: FoundCheckpoint) -> tuple[Direction | None, tuple[Note, ...]]:
        """Return how it translates, and notes: those of its file, and one where names disagree.

        ``found``: its file. The name in a file is nearer to the weights than that of the file.
        """
        if self.direction is None or found.direction in (None, self.direction):
            return self.direction or found.direction, found.notes
        text = (
            f"translates {self.direction}, as the name {self.prefix!r} in it says; its own name "
            f"says {found.direction}"
        )
        return self.direction, (*found.notes, Note(Path(self.path.name), text))

    @property
    def assumptions(self) -> tuple[Note, ...]:
        """Notes for the user on what was assumed."""
        name = Path(self.path.name)
        return tuple(Note(name, f"it is taken that {clause}") for clause in self.assumed)

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes for the user on what was assumed, and where other programs compute otherwise."""
        differences = []
        if getattr(self.config, "norm", None) == "batch":
            differences.append("BatchNorm uses the statistics of its training")
        if getattr(self.config, "dropout", False):
            differences.append("dropout is off")
        notes = [*self.how_chosen, *self.assumptions]
        if differences:
            others = (
                "the reference implementation's test script does so only with --eval"
                if isinstance(self.config, GeneratorConfig)
                else "a script that leaves the network in training mode draws another picture"
            )
            text = f"{' and '.join(differences)}; {others}"
            notes.append(Note(Path(self.path.name), text))
        return tuple(notes)


def load_generator(path: Path, selection: Selection = ANY_GENERATOR) -> LoadedGenerator:
    """Read the generator that ``selection`` means from ``path``: ``.pth`` of any age, safetensors.

    The network is derived from the names and shapes of the weights, among the networks of
    ``selection.family`` where it is given. What else the file holds is left aside, and is not even
    read where the format allows. Raises ModelError.
    """
    if selection.family is not None:
        family_named(selection.family)
    content, metadata = read_content(path)
    root = all_tensors(path, content)
    found, misfits = find_generators(root)
    if not found:
        _refuse_all(path, root, misfits, selection)
    chosen = choose(path, root, found, selection)
    reading = chosen.fit.reading
    weights = chosen.candidate.weights
    state = _checked(path, chosen.candidate, chosen.name)
    if weights.legacy_statistics is not None and _lacks_norms(reading.config):
        refuse(path, f"its {weights.legacy_statistics!r} is of a norm that has running statistics "
               "and no weights, behind convolutions without a bias", _EXPORT_ELSEWHERE)  # fmt: skip
    with torch.device("meta"):
        network = reading.build()
    names = reading.names or {}
    own = {names.get(n, n): value for n, value in state.items() if n not in reading.ignored}
    network.load_state_dict(own, strict=True, assign=True)
    assumed, published = reading.assumed, reading.published
    if _has_unused_statistics(weights, chosen.fit):
        if chosen.fit.family in (REFERENCE_RESNET, REFERENCE_UNET):
            published += (_STATISTICS,)
        else:
            assumed += (_STATISTICS,)
    if _describes(metadata, reading.config):
        assumed = published = ()
    return LoadedGenerator(
        path,
        sha256_of(path),
        chosen.fit.family,
        network.eval(),
        reading.config,
        assumed,
        published,
        metadata,
        chosen.name,
        chosen.candidate.direction,
        chosen.others,
        tuple(f.family.name for f in chosen.candidate.fits if f.family != chosen.fit.family),
        chosen.notes,
    )


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the named tensors at ``path``, on the CPU, and the metadata of a safetensors file.

    The names are without those of wrappers. Raises ModelError where the file cannot be read, holds
    no tensors, or can be read only by running code.
    """
    content, metadata = read_content(path)
    root = all_tensors(path, content)
    return (root.without_wrappers() or root).tensors, metadata


_STATISTICS = (
    "its InstanceNorms use the statistics of each frame (with track_running_stats and in eval mode "
    "they would use those in the file)"
)
"""What is assumed of a file that holds statistics of InstanceNorms.

The reference implementation, which never uses such statistics, makes it a published one."""


def _has_unused_statistics(weights: Weights, fit: Fit) -> bool:
    """Return whether a file has statistics of InstanceNorms that torch 0.4.1 or later has kept.

    Earlier versions, which counted no batches, did not use them either.
    """
    dropped = {weights.legacy_statistics or "", *fit.reading.ignored} - weights.uncounted
    return any(name.endswith("num_batches_tracked") for name in dropped)


def _describes(metadata: Mapping[str, str], config: NetworkConfig) -> bool:
    """Return whether a file's metadata, as a training writes them, describe this very network."""
    if metadata.get("format") != GENERATOR_FORMAT:
        return False
    try:
        described = json.loads(metadata.get("generator", ""))
    except (ValueError, RecursionError):
        return False
    return bool(described == dataclasses.asdict(config))


def _lacks_norms(config: NetworkConfig) -> bool:
    return getattr(config, "norm", None) == "none"


def _checked(path: Path, candidate: Candidate, name: str) -> dict[str, Tensor]:
    """Return the weights of a generator in float32, counts of batches as they are.

    They are copies: the file may change afterwards. Raises ModelError.
    """
    start = f"{name}." if name else ""
    weights, tensors = candidate.weights, candidate.group.tensors
    copies: dict[tuple[object, ...], Tensor] = {}
    state: dict[str, Tensor] = {}
    size = 0
    for each in weights.shapes:
        if each in weights.uncounted:
            state[each] = torch.tensor(0)
            continue
        value = tensors[each]
        _check_kind(path, start + each, value)
        # Weights that are tied in the file stay so.
        same = value.data_ptr(), value.dtype, value.shape, value.stride()
        if same not in copies:
            size += value.nbytes
            if size > path.stat().st_size:
                refuse(path, "declares more weights than it holds", SAVE_AGAIN)
            copies[same] = _copied(path, start + each, value.detach())
        state[each] = copies[same]
    return state


def _check_kind(path: Path, name: str, value: Tensor) -> None:
    """Raise ModelError where a tensor is no weight."""
    is_count = name.endswith("num_batches_tracked")
    if value.layout != torch.strided or not (value.is_floating_point() or is_count):
        kind = f"{value.dtype} ({value.layout})"
        refuse(path, f"its {name!r} is {kind} where weights are dense floating point", SAVE_AGAIN)
    if value.device.type != "cpu":
        refuse(path, f"its {name!r} has a shape and no values", SAVE_AGAIN)
    if value.nbytes > value.untyped_storage().nbytes():
        finding = f"its {name!r} declares a shape ({tuple(value.shape)}) larger than its content"
        refuse(path, finding, SAVE_AGAIN)


def _copied(path: Path, name: str, value: Tensor) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return value.clone()
    weight = value.to(torch.float32, copy=True)
    if not weight.isfinite().all():
        refuse(path, f"its {name!r} holds NaN or infinity where weights are finite",
               "take a checkpoint from before the training broke")  # fmt: skip
    return weight


def _refuse_all(
    path: Path, root: Group, misfits: Sequence[Misfit], selection: Selection
) -> NoReturn:
    """Raise ModelError for a file of no known generator: what it is, or what it looks most like."""
    shapes = misfits[0].weights.shapes
    if selection.family is not None:
        family = family_named(selection.family)
        refuse(path, f"does not fit the family {family.name} ({family.title}): "
               f"{unlike(shapes, family)}", "leave --family out")  # fmt: skip
    # A part of a network may have the names of another: a block of one is not told as the network.
    told = [
        each
        for each in misfits
        if each is misfits[0] or _convolutions(each.weights.shapes) >= _FEWEST_CONVOLUTIONS
    ]
    best = max(told, key=lambda each: each.closest.likeness if each.closest else 0.0)
    likeness, known = best.closest, known_as(shapes)
    if likeness is not None and (known is None or likeness.likeness > _SURE):
        name = f"its {best.group.label[:80]} is" if best.group.label else "is"
        remedy = f"{SAVE_AGAIN}, or {_EXPORT_ELSEWHERE}"
        refuse(path, f"{name} no network that is known; it looks most like "
               f"{likeness.family.title}, but {likeness.finding}",
               remedy if likeness.likeness > _ALMOST else _EXPORT_ELSEWHERE)  # fmt: skip
    rest = contents(root)
    if len(rest) == 1 and known is None:
        name, shape = next(iter(shapes.items()))
        refuse(path, f"is no network that is known: its {len(shapes)} weights begin with "
               f"{name[:80]!r} {shape}", f"if it is a generator, {_EXPORT_ELSEWHERE}")  # fmt: skip
    finding = f"is no generator of a CycleGAN: it is {known}"
    if len(rest) > 1:
        finding = f"holds no generator that is known, only {listed(rest)}"
    refuse(path, finding, "give the generator's weights, e.g. latest_net_G_A.pth")


def _convolutions(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of convolutions."""
    return sum(len(shape) == 4 for shape in shapes.values())
