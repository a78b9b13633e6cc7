"""Load a generator from a PyTorch checkpoint, by the names and shapes of its weights alone.

A checkpoint does not state which network it is for. `load_generator` finds the family (families/)
whose network has exactly its weights, after it has removed the prefixes of wrappers and the
statistics that old versions of torch stored beside them. Anything that is not the weights of one
generator is refused, and the message names what it is or what it looks most like.

This module imports torch; a translation by another runtime does not import it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..wording import Note
from .checkpoint_content import SAVE_AGAIN, read_content, refuse
from .checkpoint_files import FoundCheckpoint, Selection, find_checkpoint
from .families import FAMILIES, Family, Fit, NetworkConfig, closest, family_named, fits, unlike
from .networks import GeneratorConfig

__all__ = [
    "FoundCheckpoint",
    "LoadedGenerator",
    "Selection",
    "find_checkpoint",
    "load_generator",
    "load_state",
]

_WRAPPERS = ("module.", "_orig_mod.")
"""The prefixes that DataParallel and torch.compile put before every name."""

_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What BatchNorm keeps beside its weights; InstanceNorm kept it too before torch 0.4."""

_ANY = Selection()

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
    """What the weights do not show, as clauses."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The metadata of a safetensors file."""

    @property
    def trained_size(self) -> int | None:
        """The side of the squares that it was trained on, where the metadata state it."""
        side = self.metadata.get("trained_size", "")
        return int(side) if re.fullmatch(r"[1-9][0-9]{0,5}", side) else None

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes for the user on what was assumed, and where other programs compute otherwise."""
        sentences = [f"it is taken that {clause}" for clause in self.assumed]
        differences = []
        if getattr(self.config, "norm", None) == "batch":
            differences.append("BatchNorm uses the statistics of its training")
        if getattr(self.config, "dropout", False):
            differences.append("dropout is off")
        if differences:
            others = (
                "the reference implementation's test script does so only with --eval"
                if isinstance(self.config, GeneratorConfig)
                else "a script that leaves the network in training mode draws another picture"
            )
            sentences.append(f"{' and '.join(differences)}; {others}")
        return tuple(Note(Path(self.path.name), text) for text in sentences)


def load_generator(path: Path, selection: Selection = _ANY) -> LoadedGenerator:
    """Read the generator's weights at ``path``: ``.pth`` of any age, or safetensors.

    The network is derived from the names and shapes of the weights, among the networks of
    ``selection.family`` where it is given. Raises ModelError.
    """
    among = FAMILIES if selection.family is None else (family_named(selection.family),)
    state, metadata = load_state(path)
    fit, weights = _recognised(path, state, among)
    reading = fit.reading
    with torch.device("meta"):
        network = reading.build()
    names = reading.names or {}
    own = {names.get(n, n): value for n, value in weights.items() if n not in reading.ignored}
    network.load_state_dict(own, strict=True, assign=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return LoadedGenerator(
        path, digest, fit.family, network.eval(), reading.config, reading.assumed, metadata
    )


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the named tensors at ``path``, on the CPU, and the metadata of a safetensors file.

    The names are without the prefixes of wrappers. Raises ModelError where the file cannot be read,
    holds anything but named tensors, or can be read only by running code.
    """
    content, metadata = read_content(path)
    return _without_wrappers(_named_tensors(path, content)), metadata


def _named_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """Return ``content`` if it is a state dict. Raises ModelError with what it is otherwise."""
    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        refuse(path, f"holds {kind} where named tensors are expected", SAVE_AGAIN)
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(name, str) for name in content):
        names = ", ".join(repr(name) for name in others[:4]) or "names that are no text"
        refuse(path, f"holds more than a generator's weights: {names}",
               "save the weights of one generator alone")  # fmt: skip
    return dict(content)


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in _WRAPPERS if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            return state
        state = {name.removeprefix(prefix): value for name, value in state.items()}


def _recognised(
    path: Path, state: dict[str, Tensor], among: Sequence[Family]
) -> tuple[Fit, dict[str, Tensor]]:
    """Return the family that ``state`` is of, and its weights in float32. Raises ModelError."""
    state = {name: _checked_weight(path, name, value) for name, value in state.items()}
    legacy_statistics: str | None = None
    with_weight = {name.removesuffix(".weight") for name in state if name.endswith(".weight")}
    for name in list(state):
        module, _, last = name.rpartition(".")
        if last in _RUNNING_STATISTICS and module not in with_weight:
            # The reference implementation drops these as well.
            del state[name]
            legacy_statistics = name
        elif last == "running_mean":
            # BatchNorm has counted its batches since torch 0.4.1 only.
            state.setdefault(f"{module}.num_batches_tracked", torch.tensor(0))
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    found = fits(shapes, among)
    if not found:
        if among != FAMILIES:
            (named,) = among
            fitting = fits(shapes)
            hint = f"; it fits {_listed(fitting)}" if fitting else ""
            finding = f"does not fit the family {named.name} ({named.title}): "
            refuse(path, f"{finding}{unlike(shapes, named)}{hint}", "leave --family out")
        likeness = closest(shapes)
        if likeness is None:
            refuse(path, f"is no generator of a CycleGAN: {_network_in_words(shapes)}",
                   "give the generator's weights, e.g. latest_net_G_A.pth")  # fmt: skip
        finding = f"is no network that is known; it looks most like {likeness.family.title}, but "
        refuse(path, finding + likeness.finding, f"{SAVE_AGAIN}, or {_EXPORT_ELSEWHERE}")
    no_norm = getattr(found[0].reading.config, "norm", None) == "none"
    if no_norm and legacy_statistics is not None:
        refuse(path, f"its {legacy_statistics!r} is of a norm that has running statistics and no "
               "weights, behind convolutions without a bias", _EXPORT_ELSEWHERE)  # fmt: skip
    if len(found) > 1:
        refuse(path, f"{len(found)} families have such weights: {_listed(found)}",
               "name one with --family")  # fmt: skip
    return found[0], state


def _listed(found: Sequence[Fit]) -> str:
    return ", ".join(f"{fit.family.name} ({fit.family.title})" for fit in found)


def _checked_weight(path: Path, name: str, value: Tensor) -> Tensor:
    """Return ``value`` in float32, a count of batches as it is. Raises ModelError."""
    if name.endswith("num_batches_tracked"):
        return value
    if not value.is_floating_point() or value.layout != torch.strided:
        kind = f"{value.dtype} ({value.layout})"
        refuse(path, f"its {name!r} is {kind} where weights are dense floating point", SAVE_AGAIN)
    if value.nbytes > value.untyped_storage().nbytes():
        finding = f"its {name!r} declares a shape ({tuple(value.shape)}) larger than its content"
        refuse(path, finding, SAVE_AGAIN)
    weight = value.float()
    if not weight.isfinite().all():
        refuse(path, f"its {name!r} holds NaN or infinity where weights are finite",
               "take a checkpoint from before the training broke")  # fmt: skip
    return weight


def _network_in_words(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return in words whose weights these are, where they are no generator's."""
    if shapes.get("model.0.weight", ())[2:] == (4, 4):
        return "it is a discriminator (PatchGAN)"
    if shapes.get("net.0.weight", ())[2:] == (1, 1):
        return "it is a discriminator (pixel)"
    name, shape = next(iter(shapes.items()))
    return f"its {len(shapes)} weights begin with {name!r} {shape}"
