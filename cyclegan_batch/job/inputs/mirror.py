"""Build the entries of a job whose output is a folder: files, and the trees of folders."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from ...errors import InputError
from ...file_identity import FileIdentity
from ...media.formats import ANIMATION_SUFFIXES, PIPE, Entry, Kind
from ...remote import is_remote
from ...wording import Note, counted, printable
from .globs import matches_part, split_glob
from .listing import Listing
from .lists import ListedName, NameList
from .naming import OFTEN_ANIMATED, Naming, kind_by_suffix, kind_of_named_file, moves
from .refusals import not_regular, real_path, refuse_inside, unreadable


class Mirror:
    """The entries of a job whose output is the folder ``root``, input by input."""

    def __init__(self, root: Path, naming: Naming, *, copy_others: bool) -> None:
        self.root = root
        self.naming = naming
        self.entries: list[Entry] = []
        self.notes: list[Note] = []
        self.folders: list[Path] = []
        """The input folders, in which no output may lie."""
        self._copy_others = copy_others
        self._folders: dict[str, Path] = {}
        """The folders of outputs of lists, by their places below ``root``."""
        self._listed: set[str] = set()
        """The identities of the files that came from lists."""

    def add_file(self, source: Path, status: FileIdentity | None) -> None:
        """Add a file that the user named; it keeps its name in ``root``. Raises InputError."""
        looked_into = OFTEN_ANIMATED if is_remote(source) else tuple(ANIMATION_SUFFIXES)
        self.entries.append(self._file(source, self.root, status, looked_into))

    def add_folder(self, source: Path, beneath: Path) -> None:
        """Add the files of the folder ``source``, whose tree is mirrored into ``beneath``.

        Raises InputError where there is nothing to translate, OutputError where the output lies in
        the folder.
        """
        # Refused first, so that no listing includes the outputs of this job.
        refuse_inside(self.root, source)
        self.folders.append(source)
        self.entries += [entry for _, entry in self._mirrored(Listing.of(source), beneath)]

    def add_glob(self, glob: Path, beneath: Path) -> None:
        """Add the files that match ``glob``, as those of its fixed folder.

        Raises InputError where nothing matches or can be translated, OutputError where the glob
        may match outputs.
        """
        folder, parts = split_glob(glob)
        root, searched = (Path(real_path(path)) for path in (self.root, folder))
        if root == searched or (
            searched in root.parents and matches_part(root.relative_to(searched).parts[0], parts[0])
        ):
            refuse_inside(self.root, folder)
        listing = Listing.of_glob(glob)
        if listing.is_empty:
            raise InputError(
                f"{printable(glob)}: no file of this name, and none that matches it as a glob; "
                "check the names, and that the current folder is the right one"
            )
        self.entries += [entry for _, entry in self._mirrored(listing, beneath)]

    def add_list(self, names: NameList) -> None:
        """Add the files and folders of a list, each file once.

        A file that is missing or cannot be read becomes an entry with a problem. Raises InputError
        and OutputError for a folder as `add_folder` does.
        """
        repeated = 0
        for name in names.names:
            if name.identity in self._listed:
                repeated += 1
                continue
            try:
                mode = os.stat(name.name).st_mode  # noqa: PTH116 - there may be a million names
                entry = None if stat.S_ISDIR(mode) else self._listed_file(name, mode)
            except (OSError, InputError) as error:
                entry = self._problem(names, name, error)
            if entry is None:
                repeated += self._add_listed_folder(names, name)
                continue
            self._listed.add(name.identity)
            self.entries.append(entry)
        if repeated:
            text = f"{counted(repeated, 'repetition')} of a file: each file is translated once"
            self.notes.append(Note(names.source, text))

    def _listed_file(self, name: ListedName, mode: int) -> Entry:
        """Return the entry of a file in a list. Raises InputError where it cannot be read."""
        source = Path(name.name)
        if not stat.S_ISREG(mode):
            raise not_regular(source)
        if source == PIPE:
            source = Path(name.identity)  # in a list, - is the name of a file
        folder = os.path.dirname(name.place)  # noqa: PTH120 - text
        if folder not in self._folders:
            self._folders[folder] = self.root / folder
        return self._file(source, self._folders[folder], None, OFTEN_ANIMATED)

    def _problem(self, names: NameList, name: ListedName, error: OSError | InputError) -> Entry:
        """Return the entry of a file that cannot be read; InputError where that is a folder."""
        source, place = Path(name.name), Path(name.place)
        reason = error if isinstance(error, InputError) else unreadable(source, error)
        problem = f"{names.where(name)}: {reason}"
        if not place.name:
            raise InputError(problem) from error
        # The same name as if it could be read.
        output = self.naming.output_name(place, kind_by_suffix(place.name))
        return Entry("unread", source, self.root / place.with_name(output), problem)

    def _add_listed_folder(self, names: NameList, name: ListedName) -> int:
        """Add the files of a folder in a list; return how many of them the lists had already."""
        source = Path(name.name)
        refuse_inside(self.root, source)
        self.folders.append(source)
        repeated = 0
        try:
            for relative, entry in self._mirrored(Listing.of(source), self.root / name.place):
                identity = os.path.join(name.identity, relative)  # noqa: PTH118 - text
                if identity in self._listed:
                    repeated += 1
                else:
                    self._listed.add(identity)
                    self.entries.append(entry)
        except InputError as error:
            raise InputError(f"{names.where(name)}: {error}") from error
        return repeated

    def _file(
        self, source: Path, beneath: Path, status: FileIdentity | None, looked_into: Collection[str]
    ) -> Entry:
        """Return the entry of a file that the user named. Raises InputError.

        Files with an extension of ``looked_into`` are looked into for whether they move.
        """
        by_name = kind_by_suffix(source.name)
        kind: Kind = by_name
        if by_name in ("other", "unread"):
            kind = kind_of_named_file(source, Path())
        elif by_name == "image" and moves(source, looked_into):
            kind = "video"
        if self._copy_others and (kind, by_name) in (("video", "other"), ("unread", "unread")):
            kind = "other"  # neither its name nor its content can be translated
        output = beneath / self.naming.output_name(source, kind)
        return _entry(kind, source, output, status)

    def _mirrored(self, listing: Listing, beneath: Path) -> Iterator[tuple[Path, Entry]]:
        """Yield the files of a listing, relative to its folder, with their entries.

        Raises InputError where nothing can be translated.
        """
        kinds = listing.kinds(self._copy_others)
        if all(kind == "unread" for kind, _ in kinds):
            name, is_folder = printable(listing.name), listing.name == listing.folder
            found = "in this folder; it holds" if is_folder else "among its files; it matches"
            raise InputError(f"{name}: nothing to translate {found} {listing.summary()}")
        self.notes += listing.notes(self._copy_others)
        for kind, relative in kinds:
            output = beneath / relative.parent / self.naming.output_name(relative, kind)
            status = listing.status.get(relative)
            yield relative, _entry(kind, listing.folder / relative, output, status)


def _entry(kind: Kind, source: Path, output: Path, status: FileIdentity | None) -> Entry:
    """Return the entry of a file, which is not translated where its output would be many files."""
    entry = Entry(kind, source, output, status=status)
    if not entry.is_numbered:
        return entry
    problem = (
        f"{printable(source)}: its output {printable(output.name)} would be a pattern of numbered "
        "images; name it by itself with another output, or rename it"
    )
    return Entry("unread", source, output, problem, status)
