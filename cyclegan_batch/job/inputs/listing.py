"""The files of a folder, or those of them that a glob matches, by kind."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError
from ...file_identity import FileIdentity, identity_of_status
from ...media.formats import IMAGE_FORMATS, VIDEO_SUFFIXES, Kind, counted_suffixes, natural_key
from ...remote import RemotePath
from ...wording import Note, counted, printable
from .globs import fixed_beginning, matching, search, split_glob
from .naming import OFTEN_ANIMATED, kind_by_suffix, moves
from .refusals import unreadable


@dataclass(frozen=True)
class Listing:
    """Files beneath a folder, as paths relative to it, in no particular order."""

    name: Path
    """What the user named: the folder, or a glob."""
    folder: Path
    images: list[Path]
    videos: list[Path]
    tars: list[Path]
    unread: list[Path]
    """Images of kinds that are not read."""
    others: list[Path]
    links: list[Path]
    """Links to folders, not followed."""
    hidden: list[Path]
    status: dict[Path, FileIdentity] = field(default_factory=dict)
    """Sizes and times of all that is listed in a store."""
    unnamable: tuple[str, ...] = ()
    """Objects beneath the folder whose keys are no relative paths."""

    @classmethod
    def of(cls, folder: Path) -> Listing:
        """List ``folder`` and everything beneath it. Raises InputError."""
        return cls._searched(folder, folder, ())

    @classmethod
    def of_glob(cls, glob: Path) -> Listing:
        """List the files that match ``glob``. Raises InputError."""
        return cls._searched(glob, *split_glob(glob))

    @classmethod
    def _searched(cls, name: Path, folder: Path, parts: tuple[str, ...]) -> Listing:
        if isinstance(folder, RemotePath):
            return cls._searched_in_store(name, folder, parts)
        listing = cls(name, folder, [], [], [], [], [], [], [])
        lists = listing._lists
        for relative, entry in dict(search(folder, parts)).items():
            if entry.name.startswith("."):
                listing.hidden.append(relative)
            elif entry.is_dir():
                listing.links.append(relative)
            # A broken link counts as a file, so that it is reported. Sockets, pipes and devices do
            # not count, since reading them could block for ever.
            elif entry.is_file() or not (folder / relative).exists():
                kind = kind_by_suffix(entry.name)
                if entry.name.lower().endswith(OFTEN_ANIMATED) and _moves(folder / relative):
                    kind = "video"
                lists[kind].append(relative)
        return listing

    @classmethod
    def _searched_in_store(cls, name: Path, prefix: RemotePath, parts: tuple[str, ...]) -> Listing:
        try:
            objects = prefix.beneath(fixed_beginning(parts))
        except OSError as error:
            raise unreadable(prefix, error) from error
        status: dict[Path, FileIdentity] = {}
        unnamable = tuple(prefix.unnamable)
        listing = cls(name, prefix, [], [], [], [], [], [], [], status, unnamable)
        lists = listing._lists
        for relative in dict.fromkeys(matching(objects, parts)):
            if relative.name.startswith("."):
                listing.hidden.append(relative)
            else:
                lists[kind_by_suffix(relative.name)].append(relative)
                status[relative] = identity_of_status(objects[relative])
        return listing

    @property
    def _lists(self) -> dict[str, list[Path]]:
        """The lists of files by their kinds."""
        return {
            "image": self.images,
            "video": self.videos,
            "tar": self.tars,
            "unread": self.unread,
            "other": self.others,
        }

    def kinds(self, copy_others: bool) -> list[tuple[Kind, Path]]:
        """Return the files in natural order: those that are translated, fail, or are copied."""
        to_copy = [*self.others, *self.labels] if copy_others else []
        failing = set(self.unread) - set(to_copy)
        kinds: list[tuple[Kind, Path]] = [
            *(("image", path) for path in self.images),
            *(("video", path) for path in self.videos),
            *(("tar", path) for path in self.tars),
            *(("unread", path) for path in failing),
            *(("other", path) for path in to_copy),
        ]
        return sorted(kinds, key=lambda each: natural_key(each[1]))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing at all, not even what is left out."""
        found = self.images, self.videos, self.tars, self.unread, self.others
        return not any((*found, self.links, self.hidden))

    @property
    def labels(self) -> list[Path]:
        """Unread images that may be labels, such as depth in EXR; HEIC files are photographs."""
        return [path for path in self.unread if path.suffix.lower() not in IMAGE_FORMATS]

    def summary(self) -> str:
        """Return in words what a folder with nothing to translate holds, and what it should."""
        parts = [
            f"{count} {suffix or 'without extension'}"
            for suffix, count in Counter(
                path.suffix.lower() for path in (*self.unread, *self.others)
            ).most_common(5)
        ]
        if self.links:
            parts.append(f"{len(self.links)} links to folders, which are not followed")
        if self.hidden:
            parts.append(f"{len(self.hidden)} hidden")
        return (
            f"{', '.join(parts) or 'no files'}; images are {_words(IMAGE_FORMATS)}, "
            f"videos {_words(VIDEO_SUFFIXES)}, and a tar holds images"
        )

    def notes(self, copy_others: bool) -> Iterator[Note]:
        """Yield what is left out or copied, with the reason."""
        for link in sorted(self.links):
            yield Note(
                self.folder / link,
                "a link to a folder is not followed; name it as an input of its own to include it",
            )
        if self.unnamable:
            many = len(self.unnamable)
            verb = (
                "were left out, since their keys are" if many > 1 else "was left out, as its key is"
            )
            yield Note(
                self.folder,
                f"{counted(many, 'object')} {verb} no relative path: {printable(self.unnamable[0])}"
                f"{' and others' if many > 1 else ''}",
            )
        if self.labels and copy_others:
            yield Note(
                self.name,
                "copied as they are, since images of these kinds are not read here: "
                f"{counted_suffixes(path.suffix for path in self.labels)}",
            )
        if self.others and not copy_others:
            suffixes = sorted({path.suffix for path in self.others if path.suffix})[:5]
            examples = f" ({printable(', '.join(suffixes))})" if suffixes else ""
            yield Note(
                self.name,
                f"left out, as neither images nor videos: {len(self.others)} of its files"
                f"{examples}; --copy-others copies them",
            )


def _moves(path: Path) -> bool:
    """Return whether a file is an animated image; a PNG does not count, and none that is broken."""
    with contextlib.suppress(InputError):
        return moves(path, OFTEN_ANIMATED)
    return False


def _words(suffixes: Iterable[str]) -> str:
    return ", ".join(sorted(suffix.removeprefix(".") for suffix in suffixes))
