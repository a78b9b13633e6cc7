"""What is refused before anything is written: what cannot be read, and outputs in a wrong place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...errors import InputError, OutputError
from ...files import exists
from ...media.formats import Entry
from ...remote import is_remote
from ...wording import printable, why_store_failed


def status_of(source: Path) -> os.stat_result:
    """Return the status of an input. Raises InputError where it is neither a file nor a folder."""
    try:
        status = source.stat()
    except OSError as error:
        raise unreadable(source, error) from error
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise not_regular(source)
    return status


def is_there(source: Path) -> bool:
    """Return whether there is something of this name. Raises InputError where nothing tells it."""
    if not is_remote(source):
        return exists(source)
    try:
        return source.exists()
    except OSError as error:
        raise unreadable(source, error) from error


def not_regular(path: Path) -> InputError:
    """Return the error for a queue, a socket or a device."""
    return InputError(
        f"{printable(path)}: is neither a file nor a folder; "
        "to read from a pipe, send y4m to - (standard input)"
    )


def unreadable(path: Path, error: OSError) -> InputError:
    """Return ``error``, which came from reading ``path``, as an InputError with a remedy."""
    if is_remote(path):
        return InputError(f"{printable(path)}: {why_store_failed(error)}")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputError(f"{printable(path)}: no such file or folder; check the name")
    if isinstance(error, PermissionError):
        return InputError(f"{printable(path)}: permission denied; make it readable for this user")
    return InputError(f"{printable(path)}: cannot be read: {error.strerror or error}")


def real_path(path: Path) -> str:
    """Return the path with all links resolved; a store has none."""
    return str(path) if is_remote(path) else os.path.realpath(path)


class Places:
    """The real paths of files, with each folder resolved once.

    Paths are text here, since a job may have a million of them.
    """

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}
        """The real paths of the folders so far."""

    def of(self, path: Path) -> str:
        """Return the real path of the entry ``path``: links in its folder resolved, its own not."""
        if is_remote(path):
            text = str(path)
            folder = text.rpartition("/")[0]
            self.folders[folder] = folder
            return text
        folder, name = os.path.split(path)
        real = self.folders.get(folder)
        if real is None:
            real = self.folders[folder] = os.path.realpath(folder)
        return os.path.join(real, name)  # noqa: PTH118 - text


def refuse_misplaced(
    entries: Sequence[Entry], *, root: Path | None = None, input_folders: Iterable[Path] = ()
) -> None:
    """Refuse outputs of one place, and outputs that are inputs or lie in input folders.

    With ``root``, the folder of all outputs, those that a link leads out of it are refused, too.
    Raises InputError for two inputs that would become one output, OutputError for the rest.
    """
    places = Places()
    outputs: dict[str, Entry] = {}
    for entry in entries:
        other = outputs.setdefault(places.of(entry.output), entry)
        if other is not entry and places.of(other.source) == places.of(entry.source):
            raise InputError(
                f"{printable(entry.source)}: is given twice, and would become "
                f"{printable(entry.output)} both times; name it once"
            )
        if other is not entry:
            raise InputError(
                f"{printable(other.source)} and {printable(entry.source)} would both become "
                f"{printable(entry.output)}; translate them into different folders"
            )
    if root is not None:
        _refuse_leaving(root, places.folders)
    _refuse_inside_inputs(places.folders, input_folders)
    existing: set[str] = set()
    if entries and is_remote(entries[0].output):
        # Inputs in a store exist, and have no other names there.
        existing = outputs.keys() & {str(each.source) for each in entries}
    # An output that does not exist is no input: a new folder needs no look at each of its files.
    elif any(map(os.path.isdir, places.folders.values())):
        existing = {place for place in outputs if os.path.lexists(place)}
    _refuse_replacing(entries, {place: outputs[place].output for place in existing})


def _refuse_replacing(entries: Iterable[Entry], existing: Mapping[str, Path]) -> None:
    """Raise OutputError where an input is one of the outputs that exist, or a link to one."""
    places = Places()
    for entry in entries if existing else ():
        source = str(entry.source)
        is_link = not is_remote(entry.source) and os.path.islink(source)  # noqa: PTH114 - text
        real = os.path.realpath(source) if is_link else ""
        for place in (places.of(entry.source), real):
            if place in existing:
                raise OutputError(
                    f"{printable(existing[place])}: the output would replace the input "
                    f"{printable(entry.source)}; choose another output name or folder"
                )


def _refuse_inside_inputs(folders: Mapping[str, str], input_folders: Iterable[Path]) -> None:
    inputs = {Path(real_path(each)): each for each in input_folders}
    for folder, real in folders.items() if inputs else ():
        for above in (Path(real), *Path(real).parents):
            if above in inputs:
                raise OutputError(
                    f"{printable(folder)}: the output lies inside the input folder "
                    f"{printable(inputs[above])}; choose a folder outside it"
                )


def _refuse_leaving(root: Path, folders: Mapping[str, str]) -> None:
    real_root = real_path(root)
    beneath = real_root.rstrip(os.sep) + os.sep
    for folder, real in folders.items():
        if real != real_root and not real.startswith(beneath):
            raise OutputError(
                f"{printable(folder)}: leads out of the output folder {printable(root)} "
                f"(to {printable(real)}); remove the link or choose another output folder"
            )


def refuse_inside(root: Path, folder: Path) -> None:
    """Raise OutputError where the output folder is an input folder or lies in it."""
    real_root, real_folder = (Path(real_path(path)) for path in (root, folder))
    if real_root == real_folder:
        raise OutputError(f"{printable(root)}: is the input folder; choose another output folder")
    if real_folder in real_root.parents:
        raise OutputError(
            f"{printable(root)}: the output lies inside the input folder {printable(folder)}; "
            "choose a folder outside it"
        )
