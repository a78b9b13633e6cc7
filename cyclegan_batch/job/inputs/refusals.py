"""What is refused before anything is written: what cannot be read, and outputs in a wrong place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import InputError, OutputError
from ...media.formats import Entry
from ...wording import printable


def must_exist(source: Path) -> None:
    """Raise InputError where ``source`` is neither a file nor a folder."""
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise unreadable(source, error) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"{printable(source)}: is neither a file nor a folder; "
            "to read from a pipe, send y4m to - (standard input)"
        )


def unreadable(path: Path, error: OSError) -> InputError:
    """Return ``error``, which came from reading ``path``, as an InputError with a remedy."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputError(f"{printable(path)}: no such file or folder; check the name")
    if isinstance(error, PermissionError):
        return InputError(f"{printable(path)}: permission denied; make it readable for this user")
    return InputError(f"{printable(path)}: cannot be read: {error.strerror or error}")


class Places:
    """The real paths of files, with each folder resolved once.

    Paths are text here, since a job may have a million of them.
    """

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def folder_of(self, path: Path) -> str:
        """Return the real path of the folder of ``path``."""
        folder = os.path.dirname(path)  # noqa: PTH120 - text
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = os.path.realpath(folder)
        return real

    def of(self, path: Path) -> str:
        """Return the real path of the entry ``path``: links in its folder resolved, its own not."""
        return os.path.join(self.folder_of(path), path.name)  # noqa: PTH118 - text


def refuse_collisions(entries: Iterable[Entry], places: Places) -> None:
    """Raise InputError where two inputs would become one output."""
    sources: dict[str, Path] = {}
    for entry in entries:
        other = sources.setdefault(places.of(entry.output), entry.source)
        if other is not entry.source:
            raise InputError(
                f"{printable(other)} and {printable(entry.source)} would both become "
                f"{printable(entry.output)}; translate them into different folders"
            )


def refuse_touching_inputs(
    entries: Sequence[Entry], sources: Sequence[Path], places: Places
) -> None:
    """Raise OutputError where an output is an input or lies inside an input folder."""
    inputs: dict[str, Path] = {}
    for entry in entries:
        inputs[places.of(entry.source)] = entry.source
        if entry.source.is_symlink():
            inputs[os.path.realpath(entry.source)] = entry.source
    folders = {Path(os.path.realpath(each)): each for each in sources if each.is_dir()}
    checked_folders: set[str] = set()
    for entry in entries:
        target = places.of(entry.output)
        if target in inputs:
            raise OutputError(
                f"{printable(entry.output)}: the output would replace the input "
                f"{printable(inputs[target])}; choose another output name or folder"
            )
        home = places.folder_of(entry.output)
        if home in checked_folders:
            continue
        checked_folders.add(home)
        for folder in (Path(home), *Path(home).parents):
            if folder in folders:
                raise OutputError(
                    f"{printable(entry.output)}: the output lies inside the input folder "
                    f"{printable(folders[folder])}; choose a folder outside it"
                )


def refuse_inside(root: Path, folder: Path) -> None:
    """Raise OutputError where the output folder is an input folder or lies in it."""
    real_root, real_folder = (Path(os.path.realpath(path)) for path in (root, folder))
    if real_root == real_folder:
        raise OutputError(f"{printable(root)}: is the input folder; choose another output folder")
    if real_folder in real_root.parents:
        raise OutputError(
            f"{printable(root)}: the output lies inside the input folder {printable(folder)}; "
            "choose a folder outside it"
        )


def refuse_leaving(root: Path, entries: Iterable[Entry]) -> None:
    """Raise OutputError where a link inside ``root`` would lead an output out of it."""
    real_root = Path(os.path.realpath(root))
    for parent in dict.fromkeys(entry.output.parent for entry in entries):
        real = Path(os.path.realpath(parent))
        if real != real_root and real_root not in real.parents:
            raise OutputError(
                f"{printable(parent)}: leads out of the output folder {printable(root)} "
                f"(to {printable(real)}); remove the link or choose another output folder"
            )
