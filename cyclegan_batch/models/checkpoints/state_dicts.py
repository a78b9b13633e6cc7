"""The tensors in a checkpoint by their full names, and the groups that share the start of a name.

Training programs save weights in many ways: the state dict of a network, one beside counters and
the state of optimizers (``{"state_dict": …, "epoch": 3}``), several networks in one dict
(``{"netG_A": …, "netG_B": …}``), or in one state dict under a prefix (``netG_A.model.1.weight``).
Read as names with dots they are all the same: a tree of names, in which every network is a `Group`.

This module imports torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from .content import Inert, NumPy, refuse

MOST_TENSORS = 50_000
"""Tensors in a checkpoint. Four networks with BatchNorm and all their averages have some 2,000."""

LONGEST_NAME = 400
"""Characters. The longest names of the networks that are read have 80."""

_DEEPEST = 24
"""Containers inside each other. Training programs nest their settings about six deep."""

_MOST_CONTAINERS = 200_000
"""Containers in a checkpoint, one that lies in several counted as often."""

WRAPPERS = frozenset({"module", "_orig_mod"})
"""What DataParallel, an AveragedModel and torch.compile put before the names of a network."""


class Saved(NamedTuple):
    """A tensor, and how many parts of its full name are the keys of the dict that it lies in."""

    tensor: Tensor
    depth: int


@dataclass(frozen=True)
class Group:
    """The tensors whose full names begin alike."""

    path: tuple[str, ...]
    """The parts of the names that they share, () for all tensors of a checkpoint."""
    saved: Mapping[str, Saved]
    """The tensors by the rest of their names."""

    @property
    def name(self) -> str:
        """The shared start of the names, as it is in the file."""
        return ".".join(self.path)

    @property
    def label(self) -> str:
        """The shared start of the names without those of wrappers, for people."""
        return ".".join(part for part in self.path if part not in WRAPPERS)

    @property
    def is_saved_by_itself(self) -> bool:
        """Whether the file has a dict for these tensors alone."""
        return all(saved.depth >= len(self.path) for saved in self.saved.values())

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the rest of their names."""
        return {name: saved.tensor for name, saved in self.saved.items()}

    def without_wrappers(self) -> Group | None:
        """Return the group with no wrapper in any name; None where there is none to remove."""
        if not any(part in WRAPPERS for name in self.saved for part in name.split(".")):
            return None
        plain = {
            ".".join(part for part in name.split(".") if part not in WRAPPERS): saved
            for name, saved in self.saved.items()
        }
        return Group(self.path, plain) if len(plain) == len(self.saved) else None

    def children(self) -> list[Group]:
        """Return the groups of which this one consists, tensors directly in it aside."""
        parts: dict[str, dict[str, Saved]] = {}
        for name, saved in self.saved.items():
            first, dot, rest = name.partition(".")
            if dot:
                parts.setdefault(first, {})[rest] = saved
        return [Group((*self.path, first), each) for first, each in parts.items()]

    def own(self) -> dict[str, Tensor]:
        """Return the tensors directly in this group, which are no child's."""
        return {name: saved.tensor for name, saved in self.saved.items() if "." not in name}


def all_tensors(path: Path, content: object) -> Group:
    """Return the tensors anywhere in ``content``, which was saved at ``path``, by full names.

    What is no tensor is left out: numbers, text, and dicts whose keys are no text, as in the state
    of an optimizer. Raises ModelError where there are none, or more than any training saves.
    """
    saved: dict[str, Saved] = {}
    containers: deque[tuple[tuple[str, ...], object]] = deque([((), content)])
    seen, arrays = 0, False
    # A pickle may hold one container in many places: what is in it is looked for once.
    known: dict[int, list[tuple[str, object]]] = {}
    while containers:
        keys, container = containers.popleft()
        seen += 1
        if seen > _MOST_CONTAINERS:
            refuse(path, f"holds more than {_MOST_CONTAINERS:,} lists and dicts", _ALONE)
        if id(container) not in known:
            known[id(container)] = _items(container)
        for key, value in known[id(container)]:
            if isinstance(value, Tensor):
                _add(path, saved, (*keys, key), value)
            elif isinstance(value, NumPy):
                arrays = True
            elif len(keys) >= _DEEPEST:
                refuse(path, f"nests its content more than {_DEEPEST} deep", _ALONE)
            else:
                containers.append(((*keys, key), value))
    if not saved:
        _refuse_content(path, content, arrays=arrays)
    return Group((), dict(saved))


_ALONE = "save the weights of one generator alone: torch.save(netG.state_dict(), path)"


def _items(container: object) -> list[tuple[str, object]]:
    """Return the tensors and containers in a container whose keys are text or, of a list, numbers.

    Arrays of NumPy are returned, too.
    """
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(container, Mapping):
        pairs = ((key, value) for key, value in container.items() if isinstance(key, str))
    elif isinstance(container, (list, tuple)):
        pairs = enumerate(container)
    kinds = (Tensor, Mapping, list, tuple, NumPy)
    return [(str(key), value) for key, value in pairs if isinstance(value, kinds)]


def _add(path: Path, saved: dict[str, Saved], keys: tuple[str, ...], value: Tensor) -> None:
    if sum(map(len, keys)) + len(keys) > LONGEST_NAME:
        start = ".".join(keys)[:40]
        refuse(path, f"has a name of more than {LONGEST_NAME} characters ({start!r}…)", _ALONE)
    name = ".".join(keys)
    if name in saved:
        refuse(path, f"has two tensors of the name {name!r}", _ALONE)
    if len(saved) >= MOST_TENSORS:
        refuse(path, f"holds more than {MOST_TENSORS:,} tensors", _ALONE)
    saved[name] = Saved(value, sum(key.count(".") + 1 for key in keys[:-1]))


def _refuse_content(path: Path, content: object, *, arrays: bool) -> None:
    """Raise ModelError with what a file without tensors holds."""
    if arrays:
        refuse(path, "holds arrays of NumPy where tensors of torch are expected",
               "give a PyTorch checkpoint of the generator, or an ONNX")  # fmt: skip
    if not isinstance(content, Mapping) or not content:
        kind = type(content).__name__
        if isinstance(content, Inert):
            kind = "options, a path or a time"
        refuse(path, f"holds {kind} where named tensors are expected", _ALONE)
    if {"state", "param_groups"} <= set(content):
        refuse(path, "is the state of an optimizer, not of a network", _ALONE)
    keys = [key for key in content if isinstance(key, str)][:4]
    named = f", only {', '.join(repr(key[:40]) for key in keys)}" if keys else ""
    refuse(path, f"holds no named tensors{named}", _ALONE)
