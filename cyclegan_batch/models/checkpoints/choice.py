"""The generators in a checkpoint, and the one of them that is meant.

A training program saves its two generators beside discriminators, averages of the weights (EMA) and
networks of its losses. `find_generators` tries the families on every group of names, from the whole
file down; `choose` takes the one that a `Selection` names, or the only one there is.

This module imports torch.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ...errors import SeveralGeneratorsError
from ...options import Direction
from ...wording import Note, counted, printable
from .content import refuse
from .families import Closest, Family, Fit, NetworkConfig, family_named, recognise, unlike
from .families.others import known_as
from .files import Selection
from .state_dicts import WRAPPERS, Group

__all__ = [
    "Candidate",
    "Chosen",
    "Misfit",
    "choose",
    "contents",
    "find_generators",
    "listed",
    "weights_of",
]

_MOST_TRIES = 100
"""Groups of names that the families are tried on."""

_MOST_BUILT = 12_000
"""Tensors of the networks that are built to compare with. Most networks have 100, and a file names
the number of blocks."""

_FEWEST_WEIGHTS = 5
"""Tensors of a group that is tried below the whole file."""

_DEEPEST = 8
"""Parts of a name that may come before those of a generator."""

_MOST_LISTED = 8

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What BatchNorm keeps beside its weights; InstanceNorm kept it too before torch 0.4."""

_COUNTERS = frozenset({"n_averaged"})
"""What an average of the weights counts beside them."""


@dataclass(frozen=True)
class Weights:
    """The shapes of a group's weights as a family reads them."""

    shapes: Mapping[str, tuple[int, ...]]
    uncounted: frozenset[str]
    """The counts of batches that BatchNorm has had since torch 0.4.1, and the file has not."""
    legacy_statistics: str | None
    """One of the statistics of norms without weights, which are left out."""


def weights_of(group: Group) -> Weights:
    """Return the shapes in ``group`` without what old versions of torch stored beside weights."""
    shapes = {n: tuple(v.shape) for n, v in group.tensors.items() if n not in _COUNTERS}
    uncounted: set[str] = set()
    legacy: str | None = None
    with_weight = {name.removesuffix(".weight") for name in shapes if name.endswith(".weight")}
    for name in list(shapes):
        module, _, last = name.rpartition(".")
        if last in _STATISTICS and module not in with_weight:
            # The reference implementation drops these as well.
            del shapes[name]
            legacy = name
        elif last == "running_mean" and f"{module}.num_batches_tracked" not in shapes:
            uncounted.add(f"{module}.num_batches_tracked")
    shapes |= dict.fromkeys(uncounted, ())
    return Weights(shapes, frozenset(uncounted), legacy)


@dataclass(frozen=True)
class Candidate:
    """A generator in a file."""

    group: Group
    """Its weights, without the names of wrappers among them."""
    weights: Weights
    fits: tuple[Fit, ...]
    """The families that have such weights; at least one."""

    @property
    def direction(self) -> Direction | None:
        """How it translates, where its name tells."""
        return _direction_of(self.group)[0]

    @property
    def has_direction_of_upit(self) -> bool:
        """Whether its name is read as UPIT's, whose G_A makes A of B."""
        return _direction_of(self.group)[1]

    @property
    def is_average(self) -> bool:
        """Whether its name tells that it is a moving average of another one's weights."""
        return any(_AVERAGE.search(part) for part in self.group.path)

    @property
    def configs(self) -> list[tuple[str, NetworkConfig]]:
        """The networks that its weights fit."""
        return [(fit.family.name, fit.reading.config) for fit in self.fits]

    def in_words(self) -> str:
        """Return what it is: ``resnet_9blocks, AtoB``."""
        kinds = " or ".join(dict.fromkeys(fit.reading.config.architecture for fit in self.fits))
        return f"{kinds}, {self.direction}" if self.direction else kinds


@dataclass(frozen=True)
class Chosen:
    """The generator that is meant."""

    candidate: Candidate
    fit: Fit
    name: str
    """Its name in the file, "" where the file holds nothing else."""
    others: Mapping[str, str]
    """What else the file holds: names, and what they are in words."""
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Misfit:
    """A group of tensors that is no generator."""

    group: Group
    weights: Weights
    closest: Closest | None
    """The family that it looks most like."""


def find_generators(root: Group) -> tuple[list[Candidate], list[Misfit]]:
    """Return the generators in a file, and the groups that were tried and are none."""
    found: list[Candidate] = []
    misfits: list[Misfit] = []
    queue, built = deque([root]), 0
    while queue and len(found) + len(misfits) < _MOST_TRIES and built < _MOST_BUILT:
        group = queue.popleft()
        tries = [_tried(each) for each in (group, group.without_wrappers()) if each is not None]
        built += sum(size for _, size in tries)
        candidate = next((each for each, _ in tries if isinstance(each, Candidate)), None)
        if candidate is not None:
            found.append(candidate)
            continue
        misfits += [each for each, _ in tries[-1:] if isinstance(each, Misfit)]
        if len(group.path) < _DEEPEST:
            queue.extend(g for g in group.children() if len(g.saved) >= _FEWEST_WEIGHTS)
    return found, misfits


def _tried(group: Group) -> tuple[Candidate | Misfit, int]:
    """Return what a group is, and how many tensors the networks have that were built for it."""
    weights = weights_of(group)
    recognised = recognise(weights.shapes)
    if recognised.fits:
        return Candidate(group, weights, recognised.fits), recognised.built
    return Misfit(group, weights, recognised.closest), recognised.built


# Names


_AVERAGE = re.compile(r"(?i)(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])|(?<=[a-z])(EMA|Ema)$")
"""Words for a moving average of the weights: params_ema, ema_state_dict, netG_A_ema."""

_PAIR = r"(?i)(?:^|_|-|gen|net|generator|g)({0})(?:2|_2_|to|_to_)?({1})(?=$|_|-)"
_BOTH: dict[Direction, tuple[re.Pattern[str], ...]] = {
    "AtoB": (re.compile(_PAIR.format("a", "b")), re.compile(_PAIR.format("x", "y"))),
    "BtoA": (re.compile(_PAIR.format("b", "a")), re.compile(_PAIR.format("y", "x"))),
}
"""Names with both domains: netG_A2B, genA2B, G_AB, generator_a_to_b, G_XtoY."""

_ONE = re.compile(r"(?i)(?:^|_)(?:net_?)?G_?([AB])(?=$|_)")
"""The reference implementation's names, by the domain that is read: netG_A, G_B.

Others name the domain that is drawn (gen_H, generators.zebra): such words tell no direction.
"""

_OTHER: dict[Direction, Direction] = {"AtoB": "BtoA", "BtoA": "AtoB"}

_GENERATOR = re.compile(r"^(net_?)?[GF](_?[A-Za-z0-9]{1,3})?(_.*)?$|^[gf](_.*)?$|^(?i:gen)")
"""Names of generators, whole networks by their meaning."""

_NO_GENERATOR = re.compile(
    r"^(net_?)?D(_?[A-Za-z0-9]{1,2})?(_.*)?$|^d(_.*)?$|^(?i:(net)?dis)|(?i:critic|vgg|loss|criteri"
    r"|percep|lpips|fid$|metric|inception|optim|sched|callback|loops|pool|buffer|rng|sampler)"
)
"""Names of what else a training saves: discriminators, networks of losses, the state of others."""

_STATE = re.compile(r"(?i)optim|sched|callback|loops|pool|buffer|rng|sampler")
"""Names of what is no network."""


def _direction_of(group: Group) -> tuple[Direction | None, bool]:
    """Return how the generator of a group translates, by the last part of its name that tells.

    The second value is whether the name is read as UPIT's.
    """
    for part in reversed(group.path):
        word = _AVERAGE.sub("", part)
        for direction, patterns in _BOTH.items():
            if any(pattern.search(word) for pattern in patterns):
                # arnab39's CycleGAN calls Gab what makes A of B.
                swapped = word in ("Gab", "Gba") and _begins(group, "res_model", "unet_model")
                return (_OTHER[direction] if swapped else direction), False
        if one := _ONE.search(word):
            named: Direction = "AtoB" if one[1].upper() == "A" else "BtoA"
            # UPIT's networks are bare sequences of layers, and its G_A makes A of B.
            is_sequence = all(name[:1].isdigit() for name in group.saved)
            return (_OTHER[named] if is_sequence else named), is_sequence
    return None, False


def _begins(group: Group, *parts: str) -> bool:
    return any(name.partition(".")[0] in parts for name in group.saved)


# What else there is


def _networks(group: Group, taken: set[tuple[str, ...]]) -> Iterator[Group]:
    """Yield what a file holds besides the groups at the paths ``taken``."""
    if group.path in taken:
        return
    children = group.children() if len(group.path) < _DEEPEST else []
    holds_taken = any(path[: len(group.path)] == group.path for path in taken)
    holds_networks = any(map(_is_named, children)) or (len(children) == 1 and not group.own())
    if holds_taken or (holds_networks and not _is_named(group)):
        for child in children:
            yield from _networks(child, taken)
    elif not any(_STATE.search(part) for part in group.path):
        yield group


def _is_named(group: Group) -> bool:
    """Return whether the last part of a group's name is one of networks."""
    last = group.path[-1] if group.path else ""
    return bool(_GENERATOR.search(last) or _NO_GENERATOR.search(last))


def what_it_is(group: Group) -> str:
    """Return what a group is that is no generator: ``a discriminator (PatchGAN)``."""
    plain = group.without_wrappers() or group
    shapes = {name: tuple(value.shape) for name, value in plain.tensors.items()}
    return known_as(shapes) or counted(len(shapes), "tensor")


def contents(root: Group) -> dict[str, str]:
    """Return the networks in a file that has no generator: names, and what they are."""
    return {group.label or group.name: what_it_is(group) for group in _networks(root, set())}


def listed(names: Mapping[str, str]) -> str:
    """Return names and what they are for a message: ``netG_A (resnet_9blocks, AtoB), …``."""
    first = [f"{name[:80]} ({words})" for name, words in list(names.items())[:_MOST_LISTED]]
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(first) + more


# The choice


def choose(path: Path, root: Group, found: Sequence[Candidate], selection: Selection) -> Chosen:
    """Return the generator among ``found`` that ``selection`` names. Raises ModelError.

    ``root``: all tensors of the file at ``path``. ``found`` has one generator at least.
    """
    taken = {each.group.path for each in found}
    labels = _labels([each.group for each in found])
    rest = [group for group in _networks(root, taken) if group.path]
    asides = {group.label or group.name: what_it_is(group) for group in rest}
    everything = _in_words(found, labels) | asides

    among = list(found)
    if selection.family is not None:
        among = _of_family(path, among, family_named(selection.family), labels)
    if selection.weights is not None:
        among = _named(path, among, selection.weights, labels, everything)
    replaced: dict[tuple[str, ...], Candidate] = {}
    if len(among) > 1:
        among, replaced = _without_copies(among, labels)
    if selection.direction is not None:
        among = _of_direction(path, among, selection.direction, selection.family, labels)
    if len(among) > 1:
        _refuse_several(path, among, selection.family, labels)
    (one,) = among
    name = labels[one.group.path]
    if selection.weights is None:
        _check_alone(path, root, one, rest, name)
    candidates = one.fits
    if selection.family is not None:
        candidates = tuple(fit for fit in one.fits if fit.family.name == selection.family)
    if len(candidates) > 1:
        finding = f"{len(candidates)} families have such weights: {_families(candidates)}"
        refuse(path, finding, "name one with --family")
    notes = []
    if (other := replaced.get(one.group.path)) is not None:
        notes.append(Note(path.name, _which_copy(one, name, labels[other.group.path])))
    if one.has_direction_of_upit:
        text = (
            f"{name} is taken to translate {one.direction}, as UPIT calls its networks, which are "
            "bare sequences of layers, too; in other programs this name means the other direction"
        )
        notes.append(Note(path.name, text))
    others = {label: words for label, words in everything.items() if label != name}
    return Chosen(one, candidates[0], name, others, tuple(notes))


def _labels(groups: Sequence[Group]) -> dict[tuple[str, ...], str]:
    """Return a name for each group: short where no other has the same."""
    short = [group.label for group in groups]
    return {g.path: g.label if short.count(g.label) == 1 else g.name for g in groups}


def _in_words(found: Sequence[Candidate], labels: Mapping[tuple[str, ...], str]) -> dict[str, str]:
    """Return generators for a message: their names, and what they are."""
    return {labels[each.group.path]: each.in_words() for each in found}


def _families(fits: Sequence[Fit]) -> str:
    return ", ".join(f"{fit.family.name} ({fit.family.title})" for fit in fits)


def _of_family(
    path: Path, found: Sequence[Candidate], family: Family, labels: Mapping[tuple[str, ...], str]
) -> list[Candidate]:
    fitting = [each for each in found if any(fit.family == family for fit in each.fits)]
    if not fitting:
        first = found[0]
        name = labels[first.group.path]
        whose = f"its {name} does" if name else "does"
        finding = unlike(first.weights.shapes, family)
        refuse(path, f"{whose} not fit the family {family.name} ({family.title}): {finding}; it "
               f"fits {_families(first.fits)}", "leave --family out")  # fmt: skip
    return fitting


def _named(
    path: Path,
    found: Sequence[Candidate],
    name: str,
    labels: Mapping[tuple[str, ...], str],
    everything: Mapping[str, str],
) -> list[Candidate]:
    """Return the generators that ``--weights`` names: wholly, by its last parts, or its first."""
    name = name.removesuffix(".")
    ways: tuple[Callable[[str], bool], ...] = (
        lambda full: full == name,
        lambda full: full.endswith(f".{name}"),
        lambda full: full.startswith(f"{name}."),
    )
    among: list[Candidate] = []
    for fits_name in ways:
        among = among or [
            each
            for each in found
            if fits_name(labels[each.group.path]) or fits_name(each.group.name)
        ]
    if not among:
        own = [label for label in everything if name and any(way(label) for way in ways)]
        if own:
            finding = f"its {own[0][:80]} is {everything[own[0]]} where a generator is asked for"
            refuse(path, finding, f"it holds {listed(_in_words(found, labels))}")
        finding = f"has no weights of the name {name[:80]!r}"
        if list(everything) == [""]:
            refuse(path, f"{finding}: it holds one generator alone", "leave --weights out")
        refuse(path, finding, f"it holds {listed(everything)}")
    return among


_LAST_WEIGHTS_FIRST = {"ema_state_dict": "state_dict"}
"""The names of averages whose own programs translate with the last weights: Lornatang's."""


def _without_copies(
    found: Sequence[Candidate], labels: Mapping[tuple[str, ...], str]
) -> tuple[list[Candidate], dict[tuple[str, ...], Candidate]]:
    """Return one generator where there are its last weights and their average, and which it was."""
    averages = [each for each in found if each.is_average]
    last = [each for each in found if not each.is_average]
    kept, replaced = list(found), {}
    for average in averages:
        raw = _last_weights_of(average, last)
        if raw is None or raw not in kept:
            continue
        first_raw = _LAST_WEIGHTS_FIRST.get(labels[average.group.path]) == labels[raw.group.path]
        taken, left = (raw, average) if first_raw else (average, raw)
        kept.remove(left)
        replaced[taken.group.path] = left
    return kept, replaced


def _last_weights_of(average: Candidate, last: Sequence[Candidate]) -> Candidate | None:
    """Return the generator that another one is the average of: by its name, or the only one."""
    alike = [each for each in last if each.configs == average.configs]
    name = _network_name(average)
    own = (
        [each for each in alike if _network_name(each) == name]
        or [each for each in alike if _network_name(each)[-1:] == name[-1:]]
        or alike
    )
    return own[0] if len(own) == 1 else None


def _network_name(candidate: Candidate) -> tuple[str, ...]:
    """Return the name of a generator without the words for an average."""
    parts = [_AVERAGE.sub("", part).strip("_-") for part in candidate.group.path]
    return tuple(part for part in parts if part and part not in WRAPPERS)


def _which_copy(one: Candidate, name: str, other: str) -> str:
    if one.is_average:
        return (
            f"the moving average of the weights (EMA), {name}, is used; --weights {other} for the "
            "last ones"
        )
    return (
        f"the last weights, {name}, are used, as by the program that saves such files; --weights "
        f"{other} for their moving average (EMA)"
    )


def _of_direction(
    path: Path,
    found: Sequence[Candidate],
    direction: Direction,
    family: str | None,
    labels: Mapping[tuple[str, ...], str],
) -> list[Candidate]:
    fitting = [each for each in found if each.direction == direction]
    if not fitting and len(found) > 1:
        names = listed(_in_words(found, labels))
        refuse(path, f"holds {len(found)} generators, and none is named as one that translates "
               f"{direction}: {names}", _by_name(found[0], family, labels))  # fmt: skip
    own = found[0].direction
    if not fitting and own is not None:
        refuse(path, f"translates {own}, as the name {labels[found[0].group.path]!r} in it says, "
               f"and {direction} was asked for",
               "give the file of the other generator, or leave --direction out")  # fmt: skip
    return fitting or list(found)


def _refuse_several(
    path: Path,
    found: Sequence[Candidate],
    family: str | None,
    labels: Mapping[tuple[str, ...], str],
) -> NoReturn:
    directions = [each.direction for each in found]
    told = sorted(map(str, directions)) == ["AtoB", "BtoA"]
    generators = _in_words(found, labels)
    remedy = (
        "choose one with --direction or --weights" if told else _by_name(found[0], family, labels)
    )
    finding = printable(f"holds {len(found)} generators: {listed(generators)}; {remedy}")
    error = SeveralGeneratorsError(f"{printable(path)}: {finding}")
    error.generators, error.remedy = generators, remedy
    raise error


def _by_name(example: Candidate, family: str | None, labels: Mapping[tuple[str, ...], str]) -> str:
    """Return what to pass to choose a generator by its name; ``family`` is what was passed."""
    families = list(dict.fromkeys(fit.family.name for fit in example.fits))
    remedy = f"choose one with --weights and its name, as in --weights {labels[example.group.path]}"
    if family is None and len(families) > 1:
        remedy += f", and its family with --family {' or '.join(families)}"
    return remedy


def _check_alone(path: Path, root: Group, one: Candidate, rest: Sequence[Group], name: str) -> None:
    """Refuse a generator that may be a part of a larger network. Raises ModelError."""
    group = one.group
    if not group.path or group.is_saved_by_itself or _GENERATOR.search(group.path[-1]):
        return
    parent = group.path[:-1]
    near = [
        (other.label, what_it_is(other))
        for other in rest
        if other.path[: len(parent)] == parent
        and not other.is_saved_by_itself
        and not any(_NO_GENERATOR.search(part) for part in other.path)
    ]
    beside = {label: words for label, words in near if "discriminator" not in words}
    own = [name for name, value in _parent(root, parent).own().items() if value.is_floating_point()]
    beside |= dict.fromkeys((".".join((*parent, name)) for name in own), "1 tensor")
    if beside:
        refuse(path, f"its {name} is {one.in_words()}, and beside it are {listed(beside)}, which "
               "may belong to the same network",
               f"where they do not, name the generator: --weights {name}")  # fmt: skip


def _parent(root: Group, path: Sequence[str]) -> Group:
    """Return the group at ``path``."""
    for part in path:
        root = next(child for child in root.children() if child.path[-1] == part)
    return root
