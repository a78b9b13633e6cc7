"""Decide from INPUT… and OUTPUT which file becomes which, before anything is written.

Names, folders and the first bytes of files are read; nothing is decoded. The rules:

- One file: OUTPUT is the file. Where OUTPUT is an existing folder, ends in a separator or has no
  extension, it is a folder, and the file keeps its name in it.
- One folder: its tree is mirrored into OUTPUT. Several inputs: each keeps its own name in OUTPUT,
  as with ``cp -r``.
- A list (``@names.txt``, ``@-``; lists.py) or a glob (globs.py): OUTPUT is a folder. In it a name
  of a list keeps its path below the current folder, and what a glob matches its path below the
  fixed folder in front of the first magic part.
- Names and formats stay, except that ``--format`` changes the extension of images and
  ``--container`` that of videos. An image or a video whose format is not written becomes PNG or
  MKV. Where two files would then share one name, both keep their full names and the new extension
  is appended (``a.wmv.mkv``).
- A symbolic link to a file is read like the file. A link to a folder is followed where it is an
  INPUT, but not inside a tree, where links can form loops; a note lists those.
- Hidden files and folders are left out, among them this program's temporary files.
- INPUT may be a URL of a store: an object is a file, and a prefix is a folder that has objects
  beneath it. A prefix is listed once, and the listing tells the size and the time of each object. A
  URL as OUTPUT is a folder where it ends in ``/`` or has no extension.
- Nothing is written outside OUTPUT, not even through a link inside it that leads out of it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import InputError, OutputError
from ...file_identity import FileIdentity, identity_of_status, sha256_of
from ...files import writing
from ...media.formats import PIPE, Entry, Kind, is_numbered_output
from ...media.pattern import parse_pattern, pattern_files
from ...remote import as_path, copy_in, is_bucket, is_remote
from ...wording import Note, printable
from .globs import is_glob, split_glob
from .lists import is_list, read_lists
from .mirror import Mirror
from .naming import Naming, kind_of_named_file, why_unread, with_full_names
from .refusals import Places, is_there, refuse_misplaced, status_of, unreadable

__all__ = ["InputTree", "copy_file", "find_inputs", "why_unread"]


@dataclass(frozen=True)
class InputTree:
    """The files of a job, in natural order (``f2`` before ``f10``) within each input."""

    entries: tuple[Entry, ...]
    root: Path | None
    """The folder of all outputs, or None where OUTPUT is one file or a pipe."""
    notes: tuple[Note, ...] = ()


def find_inputs(
    inputs: Sequence[Path | str],
    output: Path | str,
    *,
    copy_others: bool = False,
    format: str = "same",  # noqa: A002 - the option's own name
    container: str = "same",
    part: tuple[int, int] = (1, 1),
) -> InputTree:
    """Return which files are translated (or, with ``copy_others``, copied), and their outputs.

    ``format`` is the option ``--format``, for images; ``container`` is ``--container``, for videos.
    ``part`` is the number of the part that is returned, from 1, and how many parts there are; all
    parts together are the whole job, and have no file in common. The names depend on the inputs
    alone, so that a later run finds what an earlier one wrote. Nothing is created or changed.

    Raises InputError for a missing file, for a folder with nothing to translate, for a list or a
    glob without a file, and for inputs whose outputs collide; OutputError for an OUTPUT that is an
    input or lies inside one, leads out of its own root or has a format that cannot be written;
    ContradictionError for a name that ``format`` or ``container`` excludes.
    """
    tree = _whole_job(inputs, output, Naming(format, container), copy_others=copy_others)
    if part == (1, 1):
        return tree
    entries = tuple(_part(tree.entries, *part))
    if entries:
        return replace(tree, entries=entries)
    note = Note(f"--shard {part[0]}/{part[1]}", "no input falls to this part: nothing to do")
    return replace(tree, entries=(), notes=(*tree.notes, note))


def _part(entries: Sequence[Entry], number: int, parts: int) -> Iterator[Entry]:
    """Yield the entries of one part: of each kind by itself, every ``parts``-th.

    Where each image stands beside a label or a video, all images would fall to one part otherwise.
    """
    counts: Counter[Kind] = Counter()
    for entry in entries:
        if counts[entry.kind] % parts == number - 1:
            yield entry
        counts[entry.kind] += 1


def _whole_job(
    inputs: Sequence[Path | str], output: Path | str, naming: Naming, *, copy_others: bool
) -> InputTree:
    if not inputs:
        raise InputError("no input: name a video, an image or a folder, and then the output")
    sources = [as_path(each) for each in inputs]
    target = as_path(output)
    if len(sources) == 1 and (special := _pipe_or_pattern(sources[0], output)):
        naming.check(special.output, special.kind)
        return InputTree((special,), None)
    if PIPE in sources:
        raise InputError("- (standard input) cannot be mixed with other inputs: name it alone")
    lists = list(dict.fromkeys(filter(is_list, sources)))
    globs = set(filter(is_glob, sources)).difference(lists)
    found = {
        source: status_of(source)
        for source in sources
        if source not in globs and source not in lists
    }
    folders = {source for source, status in found.items() if stat.S_ISDIR(status.st_mode)}
    named = {
        source: identity_of_status(status) if is_remote(source) else None
        for source, status in found.items()
        if source not in folders
    }
    is_single_file = len(sources) == 1 and bool(named)
    if target == PIPE:
        if not is_single_file or kind_of_named_file(sources[0], PIPE) != "video":
            raise OutputError(
                "- (standard output) holds one video, as y4m; name a file or a folder for the rest"
            )
        naming.check(PIPE, "video")
        return InputTree((Entry("video", sources[0], PIPE, status=named[sources[0]]),), None)

    if is_single_file and not _means_folder(output):
        kind = kind_of_named_file(sources[0], target)
        entry = Entry(kind, sources[0], target, status=named[sources[0]])
        naming.check(target, entry.kind)
        refuse_misplaced([entry])
        return InputTree((entry,), None)
    root = target
    # In a store an object may have the name of a prefix.
    if not is_remote(root) and root.exists() and not root.is_dir():
        if is_single_file:
            raise OutputError(
                f"{printable(root)}: is a file and was named as a folder; remove the separator"
            )
        one = "a list needs" if lists else "a glob needs" if globs else "a folder needs"
        subject = one if len(sources) == 1 else "several inputs need"
        raise OutputError(
            f"{printable(root)}: is a file, and {subject} a folder as output; choose another name"
        )
    mirror = Mirror(root, naming, copy_others=copy_others)
    return _mirrored(sources, lists, globs, named, mirror)


def _mirrored(
    sources: Sequence[Path],
    lists: Sequence[Path],
    globs: Collection[Path],
    files: Mapping[Path, FileIdentity | None],
    mirror: Mirror,
) -> InputTree:
    """Return the job of which ``mirror`` makes the entries.

    Lists, globs and files are among ``sources``; the rest are folders.
    """
    read = dict(zip(lists, read_lists(lists), strict=True))
    root = mirror.root

    def own_folder(folder: Path) -> Path:
        return root if len(sources) == 1 else root / _own_name(folder)

    for source in sources:
        if source in read:
            mirror.add_list(read[source])
        elif source in globs:
            mirror.add_glob(source, own_folder(split_glob(source)[0]))
        elif source in files:
            mirror.add_file(source, files[source])
        else:
            mirror.add_folder(source, own_folder(source))
    entries, notes = with_full_names(mirror.entries)
    refuse_misplaced(entries, root=root, input_folders=mirror.folders)
    return InputTree(tuple(entries), root, (*mirror.notes, *mirror.naming.notes(entries), *notes))


def copy_file(entry: Entry, *, overwrite: bool) -> tuple[int, str]:
    """Copy a file that is not translated, byte for byte and with its modification time.

    An object gets the time at which it is put. Returns the bytes of the copy and their SHA-256.
    Raises InputError where the file cannot be read, OutputError where it cannot be written.
    """
    if entry.status is not None:
        return _copy_object(entry, entry.status, overwrite=overwrite)
    try:
        source = entry.source.open("rb")
    except OSError as error:
        raise unreadable(entry.source, error) from error
    with source, writing(entry.output, overwrite=overwrite) as partial:
        entry.output.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        times = os.fstat(source.fileno())
        os.utime(partial, ns=(times.st_atime_ns, times.st_mtime_ns))
        return partial.stat().st_size, sha256_of(partial)


def _copy_object(entry: Entry, status: FileIdentity, *, overwrite: bool) -> tuple[int, str]:
    with writing(entry.output, overwrite=overwrite) as partial:
        entry.output.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()  # what fails here is a failure of the output
        try:
            copy_in(entry.source, partial)
        except OSError as error:
            raise unreadable(entry.source, error) from error
        os.utime(partial, ns=(status.mtime_ns, status.mtime_ns))
        return partial.stat().st_size, sha256_of(partial)


def _pipe_or_pattern(source: Path, output: Path | str) -> Entry | None:
    """Return the entry of a job whose only input is standard input or a pattern, else None."""
    target = as_path(output)
    if source == PIPE:
        if target != PIPE and _means_folder(output):
            raise OutputError(
                f"{printable(target)}: standard input has no name to keep; "
                "name the output file, such as out.mp4, or - for y4m"
            )
        return Entry("pipe", PIPE, target)
    # An existing file with % in its name is not treated as a pattern.
    if not parse_pattern(source.name) or is_there(source):
        return None
    if is_remote(source):
        raise InputError(
            f"{printable(source)}: no such object, and numbered images are played from a local "
            "folder only; copy them here (or give the prefix as INPUT to translate its images)"
        )
    files = pattern_files(source) if source.parent.is_dir() else {}
    if not files:
        raise InputError(
            f"{printable(source)}: no file of this name, and none that matches it as a pattern; "
            "check the folder and the number of digits (%06d means six)"
        )
    if target != PIPE and _means_folder(output):
        raise OutputError(
            f"{printable(target)}: a pattern is played as one video; name the output file, "
            "such as out.mp4 (or give the folder itself as INPUT to translate its images)"
        )
    places = Places()
    inputs = {places.of(path) for path in files.values()}
    outputs = [target]
    if is_numbered_output(target) and (pattern := parse_pattern(target.name)) is not None:
        # The images keep their numbers. Names of other digits may be the same ones.
        outputs = [target.with_name(pattern.name(number)) for number in files]
    for each in outputs:
        if places.of(each) in inputs:
            raise OutputError(
                f"{printable(each)}: is one of the inputs; choose another output name"
            )
    return Entry("pattern", source, target)


def _means_folder(output: Path | str) -> bool:
    """Return whether OUTPUT is a folder: it is one, ends in a separator, or has no extension.

    No image and no video can be written without an extension, and a Path drops the separator at its
    end.
    """
    ends_in_separator = isinstance(output, str) and output.endswith(("/", os.sep))
    path = as_path(output)
    if is_remote(path):
        return ends_in_separator or is_bucket(path) or not path.suffix
    return path.is_dir() or ends_in_separator or (not path.suffix and not path.is_file())


def _own_name(folder: Path) -> str:
    """Return the name that a folder keeps beside other inputs, resolved for ``.`` and ``..``."""
    name = folder.name if folder.name not in ("", ".", "..") else folder.resolve().name
    if not name:
        raise InputError(
            f"{printable(folder)}: has no name to keep beside other inputs; translate it alone"
        )
    return name
