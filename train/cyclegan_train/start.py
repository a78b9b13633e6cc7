"""What a run begins from: generators and discriminators that exist, in place of random weights.

`start_of` finds and reads them, with the loader of a translation; `keys_of` are the keys of a run
that they need; `begin_from` puts their weights into the networks of a run and reports what is taken
over, layer by layer where it is not all. The optimisers and the schedule begin anew.

A discriminator without weights would be worse than no judge to a generator that can translate
already: for the first ``warm_up`` steps only such discriminators learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from cyclegan_batch.errors import ModelError, SeveralGeneratorsError
from cyclegan_batch.file_identity import sha256_of
from cyclegan_batch.models.checkpoints.files import Selection, find_checkpoint
from cyclegan_batch.models.checkpoints.loading import LoadedGenerator, load_generator, load_state
from cyclegan_batch.models.checkpoints.run_folder import STATE
from cyclegan_batch.models.networks import GeneratorConfig
from cyclegan_batch.options import Direction
from cyclegan_batch.wording import Note, printable

from .cyclegan import NETWORKS, CycleGAN, State
from .settings import IDENTITY, RunConfig, Settings, Value

Weights: TypeAlias = Mapping[str, Tensor]

_NETWORK: dict[Direction, str] = {"AtoB": "netG_A", "BtoA": "netG_B"}
_OTHER: dict[Direction, Direction] = {"AtoB": "BtoA", "BtoA": "AtoB"}

_FIXED = ("netG", "ngf", "norm")
"""The keys without which the weights of a generator fit no network at all."""

_MOST_NAMED = 8
"""Layers that a message names."""


@dataclass(frozen=True)
class Source:
    """The weights of one network, and the file that they are from."""

    path: Path
    digest: str
    """SHA-256 of the file, hexadecimal."""
    weights: Weights
    config: GeneratorConfig | None = None
    """Of a generator."""


@dataclass(frozen=True)
class Start:
    """The networks that a run can begin from."""

    place: Path
    networks: dict[str, Source]
    """By the names of a run: netG_A, netG_B, netD_A, netD_B; those that exist."""
    notes: tuple[Note, ...] = ()
    """How the files were chosen, and what was assumed of them."""


@dataclass(frozen=True)
class Beginning:
    """How a run has begun."""

    warm_up: tuple[str, ...] = ()
    """The networks that alone learn in the steps before the first epoch."""
    described: State = field(default_factory=dict)
    """The files, their digests and what was taken over, for run.json; empty for random weights."""


_read: dict[RunConfig, Start] = {}
"""The last start that `start_of` has read, until `begin_from` takes it: the weights in it are those
that the keys of the run were read from, and they are loaded once."""


def start_of(run: RunConfig) -> Start:
    """Return the networks that ``init_from`` names: of a run, a folder of the reference's, a file.

    A generator whose direction no name tells is taken as ``init_direction``, with ``both`` as AtoB.
    Raises ModelError, also for generators that a run cannot train.
    """
    _read.clear()
    place = Path(run.init_from)
    wanted: Direction | None = None
    if run.init_direction in _NETWORK:
        wanted = run.init_direction
    if run.init_names:
        generators, notes = _named(place, wanted, run.init_names)
    else:
        generators, notes = _generators(place, wanted)
    first, *rest = generators.values()
    for other in rest:
        if _shape(other.config) != _shape(first.config):
            raise ModelError(
                f"{printable(place)}: its two generators differ ({_in_words(first.config)}, and "
                f"{_in_words(other.config)}), and both of a run are alike; choose one with "
                "--init-direction AtoB or BtoA"
            )
    networks: dict[str, Source] = {}
    for direction, loaded in generators.items():
        assert isinstance(loaded.config, GeneratorConfig)
        name = _NETWORK[direction]
        weights = loaded.network.state_dict()
        networks[name] = Source(loaded.path, loaded.digest, weights, loaded.config)
        discriminator = _discriminator_beside(loaded.path, name[-1])
        if discriminator is not None:
            networks[f"netD_{name[-1]}"] = discriminator
    _read[run] = start = Start(place, networks, tuple(dict.fromkeys(notes)))
    return start


def keys_of(start: Start, given: Mapping[str, object]) -> dict[str, Value]:
    """Return the keys that fit the networks of ``start``, those in ``given`` aside.

    Raises ValueError where a given key contradicts a generator. A discriminator that a given key
    contradicts is not used, and one that is missing leaves its keys as they are.
    """
    source = next(each for each in start.networks.values() if each.config is not None)
    config = source.config
    assert config is not None
    found: dict[str, Value] = {
        name: getattr(config, name) for name in (*_FIXED, "upsample", "dropout")
    }
    if given.get("norm") == "syncbatch" and config.norm == "batch":
        del found["norm"]
    for name in _FIXED:
        if name in given and name in found and given[name] != found[name]:
            raise ValueError(
                f"{name} = {given[name]!r}: {printable(source.path)} has {found[name]!r}; leave "
                f"{name} out, or init_from"
            )
    for name, discriminator in start.networks.items():
        if name.startswith("netD"):
            found |= _discriminator_keys(discriminator.weights)
    return {name: value for name, value in found.items() if name not in given}


def begin_from(model: CycleGAN, settings: Settings, say: Callable[[str], None]) -> Beginning:
    """Put the weights that ``init_from`` names into a new model. Raises ModelError.

    ``say`` is called with what every network begins from.
    """
    run = settings.run
    if not run.init_from:
        return Beginning()
    if run.init_from == IDENTITY:
        warming: tuple[str, ...] = ("netG_A", "netG_B") if run.warm_up else ()
        if warming:
            say(
                f"for {run.warm_up} steps before the first epoch the generators learn to return "
                "their input, and nothing else"
            )
        return Beginning(warming, _described(IDENTITY, {}, run.warm_up, warming))
    start = _read.pop(run, None) or start_of(run)
    _read.clear()
    for note in start.notes:
        say(str(note))
    taken: State = {}
    for name in NETWORKS:
        source = start.networks.get(name)
        if source is None:
            say(f"{name} begins with random weights: {printable(start.place)} has none for it")
            continue
        weights, changes = _fitted(getattr(model, name).state_dict(), source)
        if weights is None:
            if name.startswith("netG"):
                raise ModelError(
                    f"{printable(source.path)}: does not fit {name} of this run ({changes[0]}); "
                    "leave out the keys of the networks"
                )
            say(
                f"{name} begins with random weights: {printable(source.path)} is another kind of "
                f"discriminator ({changes[0]})"
            )
            continue
        model.begin_with(name, weights)
        say(f"{name} begins from {printable(source.path)}{_but(changes)}")
        taken[name] = {
            "file": printable(source.path.resolve()),
            "sha256": source.digest,
            "changed_layers": changes,
        }
    warming = tuple(
        f"netD_{letter}"
        for letter in "AB"
        if run.warm_up and f"netG_{letter}" in taken and f"netD_{letter}" not in taken
    )
    if warming:
        say(
            f"for {run.warm_up} steps before the first epoch only {' and '.join(warming)} "
            f"learn{'s' if len(warming) == 1 else ''}"
        )
    place = printable(start.place.resolve())
    return Beginning(warming, _described(place, taken, run.warm_up, warming))


def _described(place: str, taken: State, steps: int, warming: tuple[str, ...]) -> State:
    return {
        "from": place,
        "networks": {name: taken.get(name, "random") for name in NETWORKS},
        "warm_up": {"steps": steps if warming else 0, "networks": list(warming)},
    }


def _but(changes: list[str]) -> str:
    if not changes:
        return ", all weights"
    more = f" and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
    return f", all weights but: {'; '.join(changes[:_MOST_NAMED])}{more}"


# Finding


def _generators(
    place: Path, wanted: Direction | None
) -> tuple[dict[Direction, LoadedGenerator], list[Note]]:
    """Return the generators at ``place`` that are wanted, one at least, and notes on the choice."""
    if not place.is_dir():
        return _in_file(place, wanted)
    found = find_checkpoint(place, wanted)
    if wanted is None and found.direction is None:
        return _in_file(found.path, None)
    first = wanted or found.direction
    assert first is not None
    directions = [first]
    if wanted is None:
        directions.append(_OTHER[first])
    generators: dict[Direction, LoadedGenerator] = {}
    notes: list[Note] = []
    for direction in directions:
        try:
            found = find_checkpoint(place, direction)
        except ModelError:
            if not generators:
                raise
            continue
        generators[direction] = loaded = _loaded(found.path, None)
        notes += [*found.notes, *loaded.how_chosen, *loaded.assumptions]
    return generators, notes


def _named(
    place: Path, wanted: Direction | None, names: Sequence[str]
) -> tuple[dict[Direction, LoadedGenerator], list[Note]]:
    """Return the generators of these names in a file, and notes; of two the first is AtoB."""
    found = find_checkpoint(place, wanted) if place.is_dir() else find_checkpoint(place)
    generators: dict[Direction, LoadedGenerator] = {}
    for number, name in enumerate(names):
        loaded = _loaded(found.path, None, name)
        given = ("AtoB", "BtoA")[number] if len(names) > 1 else wanted
        if given is not None and loaded.direction not in (None, given):
            raise ModelError(
                f"{printable(found.path)}: its {printable(name)} translates {loaded.direction}, as "
                f"its name says, and it is given for {given} (init_weights = "
                f"{','.join(map(printable, names))}); exchange the names, or leave init_direction "
                "out"
            )
        generators[given or loaded.direction or "AtoB"] = loaded
    return generators, [
        note for each in generators.values() for note in (*each.how_chosen, *each.assumptions)
    ]


def _in_file(
    path: Path, wanted: Direction | None
) -> tuple[dict[Direction, LoadedGenerator], list[Note]]:
    """Return the generators in a file that are wanted, one at least, and notes on the choice."""
    found = find_checkpoint(path)
    try:
        loaded = _loaded(path, wanted)
    except SeveralGeneratorsError as error:
        told = sorted(words.rpartition(", ")[2] for words in error.generators.values())
        if wanted is not None or told != ["AtoB", "BtoA"]:
            names = ", ".join(f"{name} ({words})" for name, words in error.generators.items())
            raise ModelError(
                f"{printable(path)}: holds {len(error.generators)} generators ({names}), and their "
                "names do not tell which is meant; name one with --init-weights, or both, that of "
                f"AtoB first: --init-weights {','.join(list(error.generators)[:2])}"
            ) from error
        both: dict[Direction, LoadedGenerator] = {
            "AtoB": _loaded(path, "AtoB"),
            "BtoA": _loaded(path, "BtoA"),
        }
        return both, [
            note for each in both.values() for note in (*each.how_chosen, *each.assumptions)
        ]
    direction, notes = loaded.directed(found)
    if wanted is not None and direction not in (None, wanted):
        raise ModelError(
            f"{printable(path)}: translates {direction}, as its name says, and init_direction = "
            f"{wanted} was asked for; leave it out (direction = BtoA exchanges the images of A "
            "and B)"
        )
    return {direction or wanted or "AtoB": loaded}, [
        *notes,
        *loaded.how_chosen,
        *loaded.assumptions,
    ]


def _loaded(path: Path, direction: Direction | None, weights: str | None = None) -> LoadedGenerator:
    """Return a generator that a run can train. Raises ModelError."""
    for family in ("resnet", "unet", None):
        try:
            loaded = load_generator(path, Selection(direction, weights, family))
            break
        except SeveralGeneratorsError:
            raise
        except ModelError:
            if family is None:
                raise
    config = loaded.config
    if not isinstance(config, GeneratorConfig) or config.widths is not None:
        what = loaded.family.title if not isinstance(config, GeneratorConfig) else (
            f"a compressed {config.netG} whose layers have widths of their own"
        )  # fmt: skip
        raise ModelError(
            f"{printable(path)}: is {what}, which is not trained here; a run begins from a ResNet, "
            "a U-Net or a mobile ResNet of the reference implementation"
        )
    return loaded


def _discriminator_beside(generator: Path, letter: str) -> Source | None:
    """Return the discriminator of a generator: in the state of its run, or under its name."""
    name = f"netD_{letter}"
    for state in (generator, generator.parent.parent / STATE):
        if state.name == STATE and state.is_file():
            start = f"model.networks.{name}."
            tensors, _ = load_state(state)
            weights = {
                key.removeprefix(start): value
                for key, value in tensors.items()
                if key.startswith(start)
            }
            return Source(state, sha256_of(state), weights) if weights else None
    path = generator.with_name(generator.name.replace("_net_G", "_net_D"))
    if path == generator or not path.is_file():
        return None
    return Source(path, sha256_of(path), load_state(path)[0])


def _discriminator_keys(weights: Weights) -> dict[str, Value]:
    """Return the keys of a discriminator; empty where it is none of those that are trained."""
    convolutions = [value for value in weights.values() if value.dim() == 4]
    if "net.0.weight" in weights:
        return {"netD": "pixel", "ndf": len(weights["net.0.weight"])}
    n_layers = len(convolutions) - 2
    if "model.0.weight" not in weights or not 1 <= n_layers <= 5:
        return {}
    ndf = len(weights["model.0.weight"])
    if n_layers == 3:
        return {"netD": "basic", "ndf": ndf}
    return {"netD": "n_layers", "n_layers_D": n_layers, "ndf": ndf}


def _shape(config: object) -> tuple[object, ...]:
    """Return what the two generators of a run have in common."""
    names = (*_FIXED, "upsample", "dropout")
    return tuple(getattr(config, name) for name in names)


def _in_words(config: object) -> str:
    assert isinstance(config, GeneratorConfig)
    return f"{config.netG}, ngf {config.ngf}, norm {config.norm}, {config.upsample}"


# Taking over


def _fitted(own: Weights, source: Source) -> tuple[dict[str, Tensor] | None, list[str]]:
    """Return the weights of a network from ``source``, and what is not as it was, by layers.

    The layers of both stand in the same order; dropout and the kind of upsampling change their
    names. None, with the reason, where the networks are of another kind. ``own``: the network's
    weights, which layers of another shape keep. The first layer of another number of channels, and
    a generator's last one, are averaged over their channels and repeated.
    """
    given = list(source.weights.items())
    if len(own) != len(given):
        return None, [f"{len(given)} weights in place of {len(own)}"]
    is_generator = source.config is not None
    out: dict[str, Tensor] = {}
    changes: list[str] = []
    pairs = zip(own.items(), given, strict=True)
    for place, ((name, mine), (their_name, theirs)) in enumerate(pairs):
        last = len(given) - place <= 2 and is_generator
        differing = _differing_axes(mine, theirs)
        if not differing:
            out[name] = theirs
        elif differing == [1] if place == 0 else (len(differing) == 1 and last):
            (axis,) = differing
            channels = mine.shape[axis]
            out[name] = with_channels(theirs, axis, channels, reads=place == 0)
            changes.append(f"{name} of {theirs.shape[axis]} channels made one of {channels}")
        elif is_generator and name != their_name:
            out[name] = mine
            changes.append(f"{name} random, {tuple(mine.shape)} in place of {tuple(theirs.shape)}")
        else:
            return None, [f"{name} is {tuple(theirs.shape)} in place of {tuple(mine.shape)}"]
    return out, changes


def _differing_axes(one: Tensor, other: Tensor) -> list[int]:
    """Return the axes along which two tensors differ in length; more than one for any other."""
    if one.dim() != other.dim():
        return [0, 1]
    pairs = zip(one.shape, other.shape, strict=True)
    return [axis for axis, (mine, theirs) in enumerate(pairs) if mine != theirs]


def with_channels(weight: Tensor, axis: int, channels: int, *, reads: bool) -> Tensor:
    """Return the weights of a layer for another number of channels, their mean in each.

    ``reads``: the layer reads them, and its output for images whose channels are equal stays the
    same; otherwise it draws them.
    """
    mean = weight.mean(axis, keepdim=True)
    if reads:
        mean = mean * (weight.shape[axis] / channels)
    return torch.repeat_interleave(mean, channels, axis)
