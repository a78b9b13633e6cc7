"""Build the entries of a job whose output is a folder: files, and the trees of folders."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ...media.formats import Entry, Kind
from ...wording import Note, printable
from .listing import Listing
from .naming import Naming, kind_by_suffix, kind_of_named_file
from .refusals import refuse_inside


class Mirror:
    """The entries of a job whose output is the folder ``root``, input by input."""

    def __init__(self, root: Path, naming: Naming, *, copy_others: bool) -> None:
        self.root = root
        self.entries: list[Entry] = []
        self.notes: list[Note] = []
        self._naming = naming
        self._copy_others = copy_others

    def add_file(self, source: Path, beneath: Path) -> None:
        """Add a file that the user named; it keeps its name in ``beneath``. Raises InputError."""
        kind = self._kind(source)
        self.entries.append(Entry(kind, source, beneath / self._naming.output_name(source, kind)))

    def add_folder(self, source: Path, beneath: Path) -> None:
        """Add the files of the folder ``source``, whose tree is mirrored into ``beneath``.

        Raises InputError where there is nothing to translate, OutputError where the output lies in
        the folder.
        """
        # Refused first, so that no listing includes the outputs of this job.
        refuse_inside(self.root, source)
        self._add_listing(Listing.of(source), source, beneath)

    def _kind(self, source: Path) -> Kind:
        kind = kind_of_named_file(source, Path())
        by_name = kind_by_suffix(source.name)
        if self._copy_others and (kind, by_name) in (("video", "other"), ("unread", "unread")):
            return "other"  # neither its name nor its content can be translated
        return kind

    def _add_listing(self, listing: Listing, source: Path, beneath: Path) -> None:
        kinds = listing.kinds(self._copy_others)
        if not (listing.images or listing.videos or any(kind == "other" for kind, _ in kinds)):
            raise InputError(
                f"{printable(source)}: nothing to translate in this folder; it holds "
                f"{listing.summary()}"
            )
        for kind, relative in kinds:
            name = self._naming.output_name(relative, kind)
            self.entries.append(Entry(kind, source / relative, beneath / relative.parent / name))
        self.notes += listing.notes(source, self._copy_others)
