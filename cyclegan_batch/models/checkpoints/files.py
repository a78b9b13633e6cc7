"""Find the file of a generator: a checkpoint, or one in the folder of a run.

This module lists folders and reads the metadata of safetensors files. It neither loads weights nor
imports torch; `loading.load_generator` does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol, get_args

from ...errors import ModelError
from ...options import Direction
from ...wording import Note, printable
from .file_names import direction_by_name, generators_by_name, has_checkpoint_name
from .run_folder import (
    CHECKPOINTS,
    EMA_ENDING,
    LATEST,
    SCORES,
    deciding,
    generator_name,
    is_better,
    is_run,
    reference_name,
)

_UNDIRECTED_NAME = "latest_net_G.pth"
"""The one generator of CUT, and of the reference implementation's test model."""

_NAMES: dict[Direction | None, tuple[str, ...]] = {
    "AtoB": (
        generator_name("A", ema=True),
        generator_name("A"),
        reference_name("G_A"),
    ),
    "BtoA": (
        generator_name("B", ema=True),
        generator_name("B"),
        reference_name("G_B"),
    ),
    None: (_UNDIRECTED_NAME,),
}
"""The names of a generator's file in a folder, in order of preference: ours (its moving average,
then its last weights, unless validation scored these better), and the reference implementation's.
The names of others come after these (file_names.py)."""

_DIRECTIONS: tuple[Direction, ...] = get_args(Direction)

HDF5 = b"\x89HDF"
"""The first bytes of an HDF5 file, as which Keras saves models."""

_SAVED_MODEL = "saved_model.pb"
"""The graph of a model in a folder that TensorFlow saved."""

_BUNDLED = ("model.onnx", "models/generator/1/model.onnx")
"""Where a bundle that ``export`` wrote has its ONNX, beside its card.json."""

_LONGEST_HEADER = 2**26
"""Bytes. Safetensors headers are a few kilobytes; the format's own limit is 100 MB."""


@dataclass(frozen=True)
class Selection:
    """Which generator is meant, where there are several, and as what it is read."""

    direction: Direction | None = None
    """Of the two generators in a folder or in a file, the one that translates so."""
    weights: str | None = None
    """Of several generators in one file, the one whose weights have this name before theirs."""
    family: str | None = None
    """The name of the family (families/) that the weights are read as, None for any."""

    @classmethod
    def of(cls, options: _Choosing) -> Selection:
        """Return what the options of a command choose."""
        return cls(options.direction, options.weights, options.family)


ANY_GENERATOR = Selection()
"""What is chosen where no option says it."""


class _Choosing(Protocol):
    """Options that choose a generator: those of a translation and those of an export."""

    @property
    def direction(self) -> Direction | None: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def family(self) -> str | None: ...


@dataclass(frozen=True)
class FoundCheckpoint:
    """The file of one generator."""

    path: Path
    direction: Direction | None
    """None where neither the file nor the caller names it."""
    notes: tuple[Note, ...] = ()
    """Notes for the user on how the file was chosen, each to be shown once."""


def is_checkpoint(path: Path) -> bool:
    """Return whether ``path`` is to be opened as a checkpoint: by its name or its first bytes."""
    if path.is_dir() or has_checkpoint_name(path.name):
        return True
    try:
        with path.open("rb") as file:
            start, size = file.read(9), path.stat().st_size
    except OSError:
        return False
    is_zip, is_pickle = start[:2] == b"PK", start[:1] == b"\x80"
    is_hdf5 = start[:4] == HDF5  # which is refused as what it is
    return is_zip or is_pickle or begins_safetensors(start, size) or is_hdf5


def begins_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file of ``size`` bytes that begins with ``start`` is one of safetensors.

    Such a file begins with the length of its header, which is JSON.
    """
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size


def find_checkpoint(path: Path, direction: Direction | None = None) -> FoundCheckpoint:
    """Return the file of the generator at ``path``, the one of ``direction`` where there are two.

    ``path``: a checkpoint; the folder of a training run, for its latest checkpoint; a folder in it
    (``checkpoints/best``); or the reference implementation's ``checkpoints/NAME``. Where a run
    keeps a moving average (EMA) of its generators, the average is returned, unless validation has
    scored both and the weights themselves better, as it may in ``best``. Without ``direction`` AtoB
    is returned where there are both. Raises ModelError.
    """
    if direction not in (None, *_DIRECTIONS):
        raise ModelError(f"no direction {direction!r}: it is AtoB or BtoA")
    if path.is_dir():
        return _in_folder(path, direction)
    if not path.exists():
        raise ModelError(f"{printable(path)}: no such file or folder; check the path")
    own_direction, source = _direction_of(path)
    if direction is not None and own_direction not in (None, direction):
        raise ModelError(
            f"{printable(path)}: translates {own_direction}, as {source} says, and {direction} was "
            "asked for; give the file of the other generator or leave --direction out; of a file "
            "that holds both, --weights names one"
        )
    return FoundCheckpoint(path, direction or own_direction)


def _in_folder(path: Path, direction: Direction | None) -> FoundCheckpoint:
    # A run may also hold the reference's names (train --reference-names); its own names come first.
    places = (path / CHECKPOINTS / LATEST, path / LATEST, path)
    generators = next((found for place in places if (found := _generators(place))), {})
    directed = {each: files for each, files in generators.items() if each is not None}
    choice = direction or next(iter(directed), None)
    # A generator whose name tells no direction may be that of any.
    files = generators.get(choice) or generators.get(None) or []
    if not files:
        _refuse_folder(path, direction, directed)
    file = files[0].path
    checkpoint = find_checkpoint(file, direction)
    notes = []
    if direction is None and len(directed) == 2:
        text = "holds two generators: AtoB is used; --direction BtoA for the other"
        notes.append(Note(path, text))
    if choice is not None and (text := _which_weights(file, choice)):
        notes.append(Note(path, text))
    epochs = sum(each.is_of_an_epoch for each in files)
    if files[0].is_of_an_epoch and epochs > 1:
        text = (
            f"holds {epochs} epochs of a generator: the last one, {file.name}, is used; name the "
            "file of another epoch for that one"
        )
        notes.append(Note(path, text))
    return FoundCheckpoint(file, checkpoint.direction, tuple(notes))


class _File(NamedTuple):
    """A file of a generator in a folder."""

    path: Path
    is_of_an_epoch: bool = False


def _generators(folder: Path) -> dict[Direction | None, list[_File]]:
    """Return the files of the generators directly in ``folder``, AtoB first, the best one first.

    None is the direction of those whose names do not tell it.
    """
    try:
        names = {each.name for each in folder.iterdir() if each.is_file()}
    except OSError:
        return {}
    by_name = generators_by_name(names)
    found = {}
    for direction in _NAMES:
        files = [
            _File(folder / each.name, each.is_of_an_epoch) for each in by_name.get(direction, ())
        ]
        own = [_File(folder / name) for name in _NAMES[direction] if name in names]
        if direction is not None and _scores_decide_for_weights(folder, direction):
            own[:2] = own[1::-1]
        if own or files:
            found[direction] = [*own, *files]
    return found


class _Scored(NamedTuple):
    """The score by which validation compares a generator, as its card tells it."""

    name: str
    value: float
    epoch: str


def _scores_decide_for_weights(folder: Path, direction: Direction) -> bool:
    """Return whether validation has scored a generator better than its moving average."""
    scores = _scores(folder, direction)
    if scores is None:
        return False
    average, weights = scores
    return is_better(weights.name, weights.value, average.value)


def _scores(folder: Path, direction: Direction) -> tuple[_Scored, _Scored] | None:
    """Return the scores of a moving average and of the weights; None where they do not compare."""
    found = []
    for ema in (True, False):
        metadata = safetensors_metadata(folder / generator_name(direction[0], ema=ema))
        try:
            scores = json.loads(metadata.get("validation", ""))
        except (ValueError, RecursionError):
            return None
        name = deciding(scores) if isinstance(scores, dict) else ""
        if not name or not isinstance(scores[name], int | float):
            return None
        found.append(_Scored(name, float(scores[name]), metadata.get("epoch", "?")))
    average, weights = found
    return (average, weights) if average.name == weights.name else None


def _which_weights(file: Path, direction: Direction) -> str:
    """Return which of the two files of a run's generator is used, and why; empty for no such."""
    average_is_used = file.name.endswith(EMA_ENDING)
    scores = _scores(file.parent, direction)
    if average_is_used:
        used, other = "the moving average of the weights (EMA)", "the weights themselves"
        verb = "is"
    elif scores is not None and file.name == generator_name(direction[0]):
        used, other = "the weights themselves", "their moving average (EMA)"
        verb = "are"
    else:
        return ""
    why = ""
    if scores is not None:
        one, two = scores if average_is_used else scores[::-1]
        better = "better" if is_better(one.name, one.value, two.value) else "as well"
        why = (
            f", which validation scored {better}: {one.value:.4g} in epoch {one.epoch}, and "
            f"{two.value:.4g} in epoch {two.epoch} ({SCORES[one.name].words})"
        )
    unused = generator_name(direction[0], ema=not average_is_used)
    return f"{used}, {file.name}, {verb} used{why}; name {unused} in the same folder for {other}"


def _refuse_folder(
    path: Path, direction: Direction | None, generators: Mapping[Direction, Sequence[_File]]
) -> NoReturn:
    """Raise ModelError with what a folder holds where a generator is expected."""
    name, latest = printable(path), f"{CHECKPOINTS}/{LATEST}"
    if generators:
        (other, files), = generators.items()  # fmt: skip
        file = files[0].path
        expected = " or ".join(_NAMES[direction or "AtoB"][1:3])
        raise ModelError(
            f"{name}: holds no generator {direction} ({expected} is expected), only {other} "
            f"({file.name}); leave --direction out for that one"
        )
    if (path / _SAVED_MODEL).is_file():
        raise ModelError(
            f"{name}: is a SavedModel of TensorFlow where a generator of PyTorch is expected; "
            "convert it to ONNX with tf2onnx, and give that file"
        )
    if is_run(path):
        raise ModelError(
            f"{name}: is a run that has no checkpoint yet ({latest} is written once a minute, "
            "after each epoch and where the run is stopped); wait for it, or resume the run"
        )
    for onnx in _BUNDLED:
        if (path / "card.json").is_file() and (path / onnx).is_file():
            raise ModelError(
                f"{name}: is a bundle for another program or a device; give {onnx} in it"
            )
    try:
        names = sorted(each.name for each in path.iterdir())
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror}; check the folder") from error
    checkpoints = [each for each in names if has_checkpoint_name(each)]
    first_names = [printable(Path(each)) for each in (checkpoints or names)[:4]]
    holds = (
        ", ".join(first_names) + (" …" if len(checkpoints or names) > 4 else "")
        if first_names
        else "nothing"
    )
    raise ModelError(
        f"{name}: holds no generator under a usual name ({latest}/{generator_name('A')}, "
        f"{reference_name('G_A')} or {_UNDIRECTED_NAME} is expected), it holds {holds}; "
        "give the file of a generator, or the folder of a run"
    )


def _direction_of(path: Path) -> tuple[Direction | None, str]:
    """Return the direction of a file, and in words what states it: its metadata or its name."""
    in_metadata = safetensors_metadata(path).get("direction")
    for direction in _DIRECTIONS:
        if in_metadata == direction:
            return direction, "the file itself"
    return direction_by_name(path.name), "its name"


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, empty for a damaged one or any other file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size):
                return {}
            header: object = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError):
        return {}
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        return {}
    return {str(key): str(value) for key, value in metadata.items()}
