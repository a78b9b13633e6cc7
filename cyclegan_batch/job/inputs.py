"""Decide from INPUT… and OUTPUT which file becomes which, before anything is written.

Names, folders and the first bytes of files are read; nothing is decoded. The rules:

- One file: OUTPUT is the file. Where OUTPUT is an existing folder, ends in a separator or has no
  extension, it is a folder, and the file keeps its name in it.
- One folder: its tree is mirrored into OUTPUT. Several inputs: each keeps its own name in OUTPUT,
  as with ``cp -r``.
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

import functools
import importlib.util
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import ContradictionError, InputError, OutputError
from ..files import writing
from ..media.formats import (
    HEIC_MISSING,
    IMAGE_FORMATS,
    PIPE,
    SNIFFED,
    UNREAD_IMAGES,
    VIDEO_SUFFIXES,
    WRITTEN_FORMATS,
    Entry,
    ImageFormat,
    Kind,
    counted_suffixes,
    natural_key,
    sniff_format,
)
from ..media.pattern import parse_pattern, pattern_files
from ..wording import Note, printable


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
) -> InputTree:
    """Return which files are translated (or, with ``copy_others``, copied), and their outputs.

    ``format`` is the option ``--format``, for images; ``container`` is ``--container``, for videos.
    The names depend on the inputs alone, so that a later run finds what an earlier one wrote.
    Nothing is created or changed.

    Raises InputError for a missing file, for a folder with nothing to translate and for inputs
    whose outputs collide; OutputError for an OUTPUT that is an input or lies inside one, leads out
    of its own root or has a format that cannot be written; ContradictionError for a name that
    ``format`` or ``container`` excludes.
    """
    if not inputs:
        raise InputError("no input: name a video, an image or a folder, and then the output")
    sources = [Path(each) for each in inputs]
    if len(sources) == 1 and (special := _pipe_or_pattern(sources[0], output)):
        _check_container(special.entries[0].output, container)
        return special
    for source in sources:
        if source == PIPE:
            raise InputError("- (standard input) cannot be mixed with other inputs: name it alone")
        _must_exist(source)
    if Path(output) == PIPE:
        if len(sources) > 1 or _kind_of_named_file(sources[0], PIPE) != "video":
            raise OutputError(
                "- (standard output) holds one video, as y4m; name a file or a folder for the rest"
            )
        _check_container(PIPE, container)
        return InputTree((Entry("video", sources[0], PIPE),), None)

    if len(sources) == 1 and not sources[0].is_dir():
        tree = _single_file(sources[0], output, format, container)
    else:
        tree = _mirrored(
            sources, Path(output), copy_others=copy_others, format=format, container=container
        )
    if tree.root is not None:
        tree = _with_full_names(tree)
    places = _Places()
    _refuse_collisions(tree.entries, places)
    _refuse_touching_inputs(tree.entries, sources, places)
    if tree.root is not None:
        _refuse_leaving(tree.root, tree.entries)
    if format == "same" and tree.root is not None:
        tree = replace(tree, notes=(*tree.notes, *_png_note(tree.entries)))
    return tree


def _png_note(entries: Sequence[Entry]) -> Iterator[Note]:
    """Yield a note on images that become PNG because their own format is not written."""
    suffixes = [
        entry.source.suffix
        for entry in entries
        if entry.kind == "image"
        and IMAGE_FORMATS.get(entry.source.suffix.lower(), "png") not in WRITTEN_FORMATS
    ]
    if suffixes:
        many = f"{len(suffixes)} images become" if len(suffixes) > 1 else "1 image becomes"
        yield Note(
            None,
            f"{many} PNG, since the format is not written here: {counted_suffixes(suffixes)}; "
            "--format chooses another",
        )


def copy_file(entry: Entry, *, overwrite: bool) -> None:
    """Copy a file that is not translated, byte for byte and with its modification time.

    Raises InputError where it cannot be read, OutputError where it cannot be written.
    """
    try:
        source = entry.source.open("rb")
    except OSError as error:
        raise _unreadable(entry.source, error) from error
    with source, writing(entry.output, overwrite=overwrite) as partial:
        entry.output.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        times = os.fstat(source.fileno())
        os.utime(partial, ns=(times.st_atime_ns, times.st_mtime_ns))


def why_unread(path: Path) -> str:
    """Return why an ``unread`` image is not translated, and the remedy."""
    if path.suffix.lower() in IMAGE_FORMATS:
        return f"{printable(path)}: {HEIC_MISSING}"
    kind = printable(path.suffix.lower())
    return (
        f"{printable(path)}: images of the kind {kind} are not read here; "
        "convert it to PNG, TIFF or JPEG"
    )


# One input


def _pipe_or_pattern(source: Path, output: Path | str) -> InputTree | None:
    """Return the files of a job whose only input is standard input or a pattern, else None."""
    if source == PIPE:
        if Path(output) != PIPE and _means_folder(output):
            raise OutputError(
                f"{printable(Path(output))}: standard input has no name to keep; "
                "name the output file, such as out.mp4, or - for y4m"
            )
        return InputTree((Entry("pipe", PIPE, Path(output)),), None)
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
    places = _Places()
    if places.of(target) in {places.of(path) for path in files.values()}:
        raise OutputError(f"{printable(target)}: is one of the inputs; choose another output name")
    return InputTree((Entry("pattern", source, target),), None)


def _single_file(
    source: Path,
    output: Path | str,
    format: str,  # noqa: A002
    container: str,
) -> InputTree:
    target = Path(output)
    kind = _kind_of_named_file(source, target)
    if _means_folder(output):
        if target.exists() and not target.is_dir():
            raise OutputError(
                f"{printable(target)}: is a file and was named as a folder; remove the separator"
            )
        entry = Entry(kind, source, target / _output_name(source, kind, format, container))
        return InputTree((entry,), target, tuple(_mkv_note([entry], container)))
    if kind == "image":
        _check_image_output(target, format)
    else:
        _check_container(target, container)
    return InputTree((Entry(kind, source, target),), None)


def _means_folder(output: Path | str) -> bool:
    """Return whether OUTPUT is a folder: it is one, ends in a separator, or has no extension.

    No image and no video can be written without an extension, and a Path drops the separator at its
    end.
    """
    ends_in_separator = isinstance(output, str) and output.endswith(("/", os.sep))
    path = Path(output)
    return path.is_dir() or ends_in_separator or (not path.suffix and not path.is_file())


def _check_image_output(target: Path, format: str) -> None:  # noqa: A002
    """Raise OutputError where no image can be written under this name, or not in ``format``."""
    format_by_name = IMAGE_FORMATS.get(target.suffix.lower())
    if format_by_name not in WRITTEN_FORMATS:
        choices = ", ".join(
            suffix.removeprefix(".")
            for suffix, name in IMAGE_FORMATS.items()
            if name in WRITTEN_FORMATS
        )
        suffix = target.suffix or "no extension"
        raise OutputError(
            f"{printable(target)}: cannot write an image as {suffix}; choose one of {choices}"
        )
    if format not in ("same", format_by_name):
        raise ContradictionError(
            f"{printable(target)}: --format {format} and the name ask for different formats; "
            "change one of them"
        )


def _check_container(target: Path, container: str) -> None:
    """Raise ContradictionError where the name of a video means another container."""
    if container != "same" and not _means_container(target.suffix.lower(), container):
        name = "- (standard output)" if target == PIPE else printable(target)
        raise ContradictionError(
            f"{name}: --container {container} and the name ask for different containers; "
            "change one of them"
        )


def _means_container(suffix: str, container: str) -> bool:
    """Return whether an extension means ``container``; for ``same``, any that is written."""
    # Imported here, since images alone need no FFmpeg.
    from ..media.mux.containers import CONTAINERS

    by_suffix = CONTAINERS.get(suffix)
    if container == "same":
        return by_suffix is not None or suffix == ".y4m"
    return by_suffix is not None and by_suffix.label.lower() == container


def _video_name(source: Path, container: str) -> str:
    """Return the name that a video keeps in an output folder."""
    suffix = source.suffix.lower()
    if _means_container(suffix, container):
        return source.name
    # An ending that is not a video's extension is part of the name: ``talk.2024``.
    stem = source.stem if suffix in VIDEO_SUFFIXES else source.name
    return f"{stem}.{'mkv' if container == 'same' else container}"


def _with_full_names(tree: InputTree) -> InputTree:
    """Return ``tree`` with full names where new extensions would give two sources one name."""
    count = Counter(entry.output for entry in tree.entries)
    alike = [
        entry
        for entry in tree.entries
        if count[entry.output] > 1 and entry.output.name != entry.source.name
    ]
    if not alike:
        return tree
    renamed = {
        entry: replace(
            entry, output=entry.output.with_name(f"{entry.source.name}{entry.output.suffix}")
        )
        for entry in alike
    }
    many = f"{len(alike)} files keep their full names" if len(alike) > 1 else None
    note = Note(
        None,
        f"{many or '1 file keeps its full name'}, since two outputs would share a shorter one: "
        f"{printable(alike[0].source)} becomes {printable(renamed[alike[0]].output)}",
    )
    return replace(
        tree,
        entries=tuple(renamed.get(entry, entry) for entry in tree.entries),
        notes=(*tree.notes, note),
    )


def _mkv_note(entries: Iterable[Entry], container: str) -> Iterator[Note]:
    """Yield a note on videos that become MKV because their own container is not written."""
    others = [
        entry.source.suffix
        for entry in entries
        if entry.kind == "video" and entry.output.name != entry.source.name
    ]
    if others and container == "same":
        counted = counted_suffixes(others)
        many = (
            "1 video becomes MKV, since its container is"
            if len(others) == 1
            else f"{len(others)} videos become MKV, since their containers are"
        )
        yield Note(
            None, f"{many} read and not written here ({counted}); --container chooses another"
        )


def _output_name(source: Path, kind: Kind, format: str, container: str) -> str:  # noqa: A002
    """Return the name that ``source`` keeps in an output folder."""
    if kind == "video":
        return _video_name(source, container)
    if kind != "image":
        return source.name
    by_name = IMAGE_FORMATS.get(source.suffix.lower())
    # A file without an image's extension is an image by its content; the output gets an extension.
    stored = by_name or _sniff(source)
    target = format if format != "same" else stored if stored in WRITTEN_FORMATS else "png"
    if by_name == target:
        return source.name
    return f"{source.stem if by_name else source.name}.{target}"


def _kind_of_named_file(path: Path, output: Path) -> Kind:
    """Return the kind of a file that the user named: by extension, else by its first bytes.

    A GIF whose ``output`` is a video counts as a video. So does every file that is neither an image
    nor named like one; one that is no video is refused when it is opened.
    """
    if path.is_dir():
        return "other"
    if path.suffix.lower() == ".gif" and (
        output == PIPE or output.suffix.lower() in VIDEO_SUFFIXES
    ):
        return "video"
    kind = _kind_by_suffix(path.name)
    if kind in ("other", "unread"):
        return "image" if _sniff(path) else "video" if kind == "other" else "unread"
    return kind


def _kind_by_suffix(name: str) -> Literal["image", "video", "unread", "other"]:
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a name, not a path
    if suffix in IMAGE_FORMATS:
        return "image" if IMAGE_FORMATS[suffix] != "heic" or _reads_heic() else "unread"
    if suffix in UNREAD_IMAGES:
        return "unread"
    return "video" if suffix in VIDEO_SUFFIXES else "other"


@functools.cache
def _reads_heic() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def _sniff(path: Path) -> ImageFormat | None:
    """Return the image format by the first bytes of a file, or None."""
    try:
        with path.open("rb") as file:
            return sniff_format(file.read(SNIFFED))
    except OSError as error:
        raise _unreadable(path, error) from error


# Folders and several inputs


def _mirrored(
    sources: Sequence[Path],
    root: Path,
    *,
    copy_others: bool,
    format: str,  # noqa: A002
    container: str,
) -> InputTree:
    """Return the job that mirrors folders, and files beside them, into the folder ``root``."""
    if root.exists() and not root.is_dir():
        subject = "a folder needs" if len(sources) == 1 else "several inputs need"
        raise OutputError(
            f"{printable(root)}: is a file, and {subject} a folder as output; choose another name"
        )
    entries: list[Entry] = []
    notes: list[Note] = []
    for source in sources:
        if not source.is_dir():
            kind = _kind_of_named_file(source, root)
            by_name = _kind_by_suffix(source.name)
            if copy_others and (kind, by_name) in (("video", "other"), ("unread", "unread")):
                kind = "other"  # neither its name nor its content can be translated
            entries.append(
                Entry(kind, source, root / _output_name(source, kind, format, container))
            )
            continue
        # Refused first, so that no listing includes the outputs of this job.
        _refuse_inside(root, source)
        beneath = root if len(sources) == 1 else root / _own_name(source)
        listing = _Listing.of(source)
        to_copy = [*listing.others, *listing.labels] if copy_others else []
        failing = set(listing.unread) - set(to_copy)
        if not (listing.images or listing.videos or to_copy):
            raise InputError(
                f"{printable(source)}: nothing to translate in this folder; it holds "
                f"{listing.summary()}; images are {_words(IMAGE_FORMATS)}, "
                f"videos {_words(VIDEO_SUFFIXES)}"
            )
        kinds: list[tuple[Kind, Path]] = [
            *(("image", path) for path in listing.images),
            *(("video", path) for path in listing.videos),
            *(("unread", path) for path in failing),
            *(("other", path) for path in to_copy),
        ]
        kinds.sort(key=lambda each: natural_key(each[1]))
        for kind, relative in kinds:
            name = _output_name(relative, kind, format, container)
            entries.append(Entry(kind, source / relative, beneath / relative.parent / name))
        notes += listing.notes(source, copy_others)
    notes += _mkv_note(entries, container)
    return InputTree(tuple(entries), root, tuple(notes))


@dataclass(frozen=True)
class _Listing:
    """The content of a folder, as paths relative to it, in no particular order."""

    images: list[Path]
    videos: list[Path]
    unread: list[Path]
    """Images of kinds that are not read."""
    others: list[Path]
    links: list[Path]
    """Links to folders, not followed."""
    hidden: list[Path]

    @classmethod
    def of(cls, folder: Path) -> _Listing:
        """List ``folder`` and everything beneath it. Raises InputError."""
        listing = cls([], [], [], [], [], [])
        lists = {
            "image": listing.images,
            "video": listing.videos,
            "unread": listing.unread,
            "other": listing.others,
        }
        for relative, entry in _walk(folder, Path()):
            if entry.name.startswith("."):
                listing.hidden.append(relative)
            elif entry.is_dir():
                listing.links.append(relative)
            # A broken link counts as a file, so that it is reported. Sockets, pipes and devices do
            # not count, since reading them could block for ever.
            elif entry.is_file() or not (folder / relative).exists():
                lists[_kind_by_suffix(entry.name)].append(relative)
        return listing

    @property
    def labels(self) -> list[Path]:
        """Unread images that may be labels, such as depth in EXR; HEIC files are photographs."""
        return [path for path in self.unread if path.suffix.lower() not in IMAGE_FORMATS]

    def summary(self) -> str:
        """Return the content in words, for a folder that has nothing to translate."""
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
        return ", ".join(parts) or "no files"

    def notes(self, folder: Path, copy_others: bool) -> Iterator[Note]:
        """Yield what is left out or copied, with the reason."""
        for link in sorted(self.links):
            yield Note(
                folder / link,
                "a link to a folder is not followed; name it as an input of its own to include it",
            )
        if self.labels and copy_others:
            yield Note(
                folder,
                "copied as they are, since images of these kinds are not read here: "
                f"{counted_suffixes(path.suffix for path in self.labels)}",
            )
        if self.others and not copy_others:
            suffixes = sorted({path.suffix for path in self.others if path.suffix})[:5]
            examples = f" ({printable(', '.join(suffixes))})" if suffixes else ""
            yield Note(
                folder,
                f"left out, as neither images nor videos: {len(self.others)} of its files"
                f"{examples}; --copy-others copies them",
            )


def _walk(folder: Path, relative: Path) -> Iterator[tuple[Path, os.DirEntry[str]]]:
    """Yield all files beneath ``folder``, and the folders not entered: hidden ones and links."""
    try:
        with os.scandir(folder / relative) as scan:
            entries = list(scan)
    except OSError as error:
        raise _unreadable(folder / relative, error) from error
    for entry in entries:
        path = relative / entry.name
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from _walk(folder, path)
        else:
            yield path, entry


def _own_name(folder: Path) -> str:
    """Return the name that a folder keeps beside other inputs, resolved for ``.`` and ``..``."""
    name = folder.name if folder.name not in ("", ".", "..") else folder.resolve().name
    if not name:
        raise InputError(
            f"{printable(folder)}: has no name to keep beside other inputs; translate it alone"
        )
    return name


# What is refused


def _must_exist(source: Path) -> None:
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise _unreadable(source, error) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"{printable(source)}: is neither a file nor a folder; "
            "to read from a pipe, send y4m to - (standard input)"
        )


def _unreadable(path: Path, error: OSError) -> InputError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputError(f"{printable(path)}: no such file or folder; check the name")
    if isinstance(error, PermissionError):
        return InputError(f"{printable(path)}: permission denied; make it readable for this user")
    return InputError(f"{printable(path)}: cannot be read: {error.strerror or error}")


class _Places:
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


def _refuse_collisions(entries: Iterable[Entry], places: _Places) -> None:
    """Raise InputError where two inputs would become one output."""
    sources: dict[str, Path] = {}
    for entry in entries:
        other = sources.setdefault(places.of(entry.output), entry.source)
        if other is not entry.source:
            raise InputError(
                f"{printable(other)} and {printable(entry.source)} would both become "
                f"{printable(entry.output)}; translate them into different folders"
            )


def _refuse_touching_inputs(
    entries: Sequence[Entry], sources: Sequence[Path], places: _Places
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


def _refuse_inside(root: Path, folder: Path) -> None:
    """Raise OutputError where the output folder is an input folder or lies in it."""
    real_root, real_folder = (Path(os.path.realpath(path)) for path in (root, folder))
    if real_root == real_folder:
        raise OutputError(f"{printable(root)}: is the input folder; choose another output folder")
    if real_folder in real_root.parents:
        raise OutputError(
            f"{printable(root)}: the output lies inside the input folder {printable(folder)}; "
            "choose a folder outside it"
        )


def _refuse_leaving(root: Path, entries: Iterable[Entry]) -> None:
    """Raise OutputError where a link inside ``root`` would lead an output out of it."""
    real_root = Path(os.path.realpath(root))
    for parent in dict.fromkeys(entry.output.parent for entry in entries):
        real = Path(os.path.realpath(parent))
        if real != real_root and real_root not in real.parents:
            raise OutputError(
                f"{printable(parent)}: leads out of the output folder {printable(root)} "
                f"(to {printable(real)}); remove the link or choose another output folder"
            )


def _words(suffixes: Iterable[str]) -> str:
    return ", ".join(sorted(suffix.removeprefix(".") for suffix in suffixes))
