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
- Nothing is written outside OUTPUT, not even through a link inside it that leads out of it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import InputError, OutputError
from ...files import writing
from ...media.formats import PIPE, Entry, Kind
from ...media.pattern import parse_pattern, pattern_files
from ...wording import Note, printable
from .globs import is_glob, split_glob
from .lists import is_list, read_lists
from .mirror import Mirror
from .naming import Naming, kind_of_named_file, why_unread, with_full_names
from .refusals import Places, must_exist, refuse_misplaced, unreadable

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
    sources = [Path(each) for each in inputs]
    if len(sources) == 1 and (special := _pipe_or_pattern(sources[0], output)):
        naming.check(special.output, special.kind)
        return InputTree((special,), None)
    if PIPE in sources:
        raise InputError("- (standard input) cannot be mixed with other inputs: name it alone")
    lists = list(dict.fromkeys(filter(is_list, sources)))
    globs = set(filter(is_glob, sources)).difference(lists)
    for source in sources:
        if source not in globs and source not in lists:
            must_exist(source)
    is_single_file = len(sources) == 1 and not (lists or globs or sources[0].is_dir())
    if Path(output) == PIPE:
        if not is_single_file or kind_of_named_file(sources[0], PIPE) != "video":
            raise OutputError(
                "- (standard output) holds one video, as y4m; name a file or a folder for the rest"
            )
        naming.check(PIPE, "video")
        return InputTree((Entry("video", sources[0], PIPE),), None)

    if is_single_file and not _means_folder(output):
        target = Path(output)
        entry = Entry(kind_of_named_file(sources[0], target), sources[0], target)
        naming.check(target, entry.kind)
        refuse_misplaced([entry])
        return InputTree((entry,), None)
    root = Path(output)
    if root.exists() and not root.is_dir():
        if is_single_file:
            raise OutputError(
                f"{printable(root)}: is a file and was named as a folder; remove the separator"
            )
        one = "a list needs" if lists else "a glob needs" if globs else "a folder needs"
        subject = one if len(sources) == 1 else "several inputs need"
        raise OutputError(
            f"{printable(root)}: is a file, and {subject} a folder as output; choose another name"
        )
    return _mirrored(sources, lists, globs, Mirror(root, naming, copy_others=copy_others))


def _mirrored(
    sources: Sequence[Path], lists: Sequence[Path], globs: Collection[Path], mirror: Mirror
) -> InputTree:
    """Return the job of which ``mirror`` makes the entries; lists and globs are among sources."""
    read = dict(zip(lists, read_lists(lists), strict=True))
    root = mirror.root

    def own_folder(folder: Path) -> Path:
        return root if len(sources) == 1 else root / _own_name(folder)

    for source in sources:
        if source in read:
            mirror.add_list(read[source])
        elif source in globs:
            mirror.add_glob(source, own_folder(split_glob(source)[0]))
        elif source.is_dir():
            mirror.add_folder(source, own_folder(source))
        else:
            mirror.add_file(source)
    entries, notes = with_full_names(mirror.entries)
    refuse_misplaced(entries, root=root, input_folders=mirror.folders)
    return InputTree(tuple(entries), root, (*mirror.notes, *mirror.naming.notes(entries), *notes))


def copy_file(entry: Entry, *, overwrite: bool) -> None:
    """Copy a file that is not translated, byte for byte and with its modification time.

    Raises InputError where it cannot be read, OutputError where it cannot be written.
    """
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


def _pipe_or_pattern(source: Path, output: Path | str) -> Entry | None:
    """Return the entry of a job whose only input is standard input or a pattern, else None."""
    if source == PIPE:
        if Path(output) != PIPE and _means_folder(output):
            raise OutputError(
                f"{printable(Path(output))}: standard input has no name to keep; "
                "name the output file, such as out.mp4, or - for y4m"
            )
        return Entry("pipe", PIPE, Path(output))
    # An existing file with % in its name is not treated as a pattern.
    if not parse_pattern(source.name) or os.path.lexists(source):
        return None
    files = pattern_files(source) if source.parent.is_dir() else {}
    if not files:
        raise InputError(
            f"{printable(source)}: no file of this name, and none that matches it as a pattern; "
            "check the folder and the number of digits (%06d means six)"
        )
    if Path(output) != PIPE and _means_folder(output):
        raise OutputError(
            f"{printable(Path(output))}: a pattern is played as one video; name the output file, "
            "such as out.mp4 (or give the folder itself as INPUT to translate its images)"
        )
    target = Path(output)
    places = Places()
    if places.of(target) in {places.of(path) for path in files.values()}:
        raise OutputError(f"{printable(target)}: is one of the inputs; choose another output name")
    return Entry("pattern", source, target)


def _means_folder(output: Path | str) -> bool:
    """Return whether OUTPUT is a folder: it is one, ends in a separator, or has no extension.

    No image and no video can be written without an extension, and a Path drops the separator at its
    end.
    """
    ends_in_separator = isinstance(output, str) and output.endswith(("/", os.sep))
    path = Path(output)
    return path.is_dir() or ends_in_separator or (not path.suffix and not path.is_file())


def _own_name(folder: Path) -> str:
    """Return the name that a folder keeps beside other inputs, resolved for ``.`` and ``..``."""
    name = folder.name if folder.name not in ("", ".", "..") else folder.resolve().name
    if not name:
        raise InputError(
            f"{printable(folder)}: has no name to keep beside other inputs; translate it alone"
        )
    return name
