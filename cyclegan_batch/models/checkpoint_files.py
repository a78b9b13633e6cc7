"""Find the file that is meant: a checkpoint, or a generator in the folder of a run.

No file is opened as a checkpoint here, and torch is not imported: `checkpoints.load_generator` does
both. What is read is the folder, and what a safetensors file says of itself before its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, get_args

from ..errors import ModelError
from ..wording import Note, printable
from .run_folder import CHECKPOINTS, CONFIG, DESCRIPTION, LATEST, generator_name, reference_name

Direction: TypeAlias = Literal["AtoB", "BtoA"]

SUFFIXES = frozenset({".safetensors", ".pth", ".pt", ".ckpt"})
"""What the names of checkpoints end in."""

_NAMES: dict[Direction, tuple[str, ...]] = {
    "AtoB": (
        generator_name("A", ema=True),
        generator_name("A"),
        reference_name("G_A"),
        "netG_A2B.pth",
    ),
    "BtoA": (
        generator_name("B", ema=True),
        generator_name("B"),
        reference_name("G_B"),
        "netG_B2A.pth",
    ),
}
"""The names of a generator's file in a folder, in order of preference: ours (its moving average,
then its last weights), the reference implementation's, and aitorzip's."""

_EITHER = "latest_net_G.pth"
"""The one generator of the reference implementation's test model: either direction."""

_LONGEST_HEADER = 2**26
"""Safetensors headers are a few kilobytes; the format itself ends at 100 MB."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """The file of one generator, and how it was chosen."""

    path: Path
    direction: Direction | None
    """None where neither the file nor the caller says it."""
    notes: tuple[Note, ...] = ()
    """What the user should be told once."""


def is_checkpoint(path: Path) -> bool:
    """Tell whether ``path`` is to be opened as a checkpoint: a folder, or a file that looks so."""
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            start, size = file.read(9), path.stat().st_size
    except OSError:
        return False
    # A zip, a pickle, or the length of a header and its brace.
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return True
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size


def find_checkpoint(path: Path, direction: Direction | None = None) -> FoundCheckpoint:
    """Return the generator that ``path`` holds, the one of ``direction`` where it holds two.

    ``path``: a checkpoint; the folder of a training run, for its latest checkpoint; a folder in it
    (``checkpoints/best``); or the reference implementation's ``checkpoints/NAME``. Where a run
    keeps a moving average (EMA) of its generators, the average is taken. Without ``direction`` it
    is AtoB where both are there. Raises ModelError.
    """
    if direction not in (None, *get_args(Direction)):
        raise ModelError(f"no direction {direction!r}: it is AtoB or BtoA")
    if path.is_dir():
        return _in_folder(path, direction)
    if not path.exists():
        raise ModelError(f"{printable(path)}: no such file or folder; check the path")
    said, where = _said_direction(path)
    if direction is not None and said not in (None, direction):
        raise ModelError(
            f"{printable(path)}: translates {said}, as {where} says, and {direction} was asked for; give "
            "the file of the other generator, or leave --direction out"
        )
    return FoundCheckpoint(path, direction or said)


def _in_folder(path: Path, direction: Direction | None) -> FoundCheckpoint:
    # A run may hold the reference's names, too (train --reference-names): its own come first.
    places = (path / CHECKPOINTS / LATEST, path / LATEST, path)
    there = next((held for place in places if (held := _generators(place))), {})
    chosen = direction or next(iter(there), None)
    if chosen is not None and chosen in there:
        file = there[chosen]
    elif (path / _EITHER).is_file():
        file = path / _EITHER
    else:
        _refuse_folder(path, direction, there)
    found = find_checkpoint(file, direction)
    notes = []
    if direction is None and len(there) == 2:
        text = "holds two generators: AtoB is used; --direction BtoA for the other"
        notes.append(Note(path, text))
    if chosen is not None:
        average, last, *_ = _NAMES[chosen]
        if file.name == average:
            text = (
                f"the moving average of the weights (EMA), {average}, is used; "
                f"name {last} in the same folder for the last ones"
            )
            notes.append(Note(path, text))
    return FoundCheckpoint(file, found.direction, tuple(notes))


def _generators(folder: Path) -> dict[Direction, Path]:
    """Return the generators of both directions that ``folder`` itself holds, AtoB first."""
    found: dict[Direction, Path] = {}
    for direction, names in _NAMES.items():
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is not None:
            found[direction] = file
    return found


def _refuse_folder(
    path: Path, direction: Direction | None, there: Mapping[Direction, Path]
) -> NoReturn:
    """Say what a folder holds where a generator is expected. Raises ModelError."""
    name, latest = printable(path), f"{CHECKPOINTS}/{LATEST}"
    if there:
        (other, file), = there.items()  # fmt: skip
        wanted = " or ".join(_NAMES[direction or "AtoB"][1:3])
        raise ModelError(
            f"{name}: holds no generator {direction} ({wanted} is expected), only {other} "
            f"({file.name}); leave --direction out for that one"
        )
    if (path / DESCRIPTION).is_file() and (path / CONFIG).is_file():
        raise ModelError(
            f"{name}: is a run that has no checkpoint yet ({latest} is written at the end of an "
            "epoch); let it finish one"
        )
    try:
        names = sorted(each.name for each in path.iterdir())
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror}; check the folder") from error
    files = [each for each in names if Path(each).suffix.lower() in SUFFIXES]
    listed = [printable(Path(each)) for each in (files or names)[:4]]
    holds = ", ".join(listed) + (" …" if len(files or names) > 4 else "") if listed else "nothing"
    raise ModelError(
        f"{name}: holds no generator under a name that is known ({latest}/"
        f"{generator_name('A')}, {reference_name('G_A')} or {_EITHER} is expected), it holds "
        f"{holds}; give the file of a generator, or the folder of a run"
    )


def _said_direction(path: Path) -> tuple[Direction | None, str]:
    """Return the direction that the file says, by its metadata or else by its name, and which."""
    said = safetensors_metadata(path).get("direction")
    for direction in _NAMES:
        if said == direction:
            return direction, "the file itself"
    for direction, names in _NAMES.items():
        # The reference implementation writes one for every few epochs: 200_net_G_A.pth.
        if path.name in names or path.name.endswith(f"_net_G_{direction[0]}.pth"):
            return direction, "its name"
    return None, ""


def safetensors_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file says of itself; nothing for any other or a damaged one."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size):
                return {}
            header: Any = json.loads(file.read(length))
    except (OSError, ValueError, RecursionError):
        return {}
    said = header.get("__metadata__") if isinstance(header, dict) else None
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else {}
