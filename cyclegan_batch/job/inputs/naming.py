"""What an input is by its name and its first bytes, and the name that its output gets."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...errors import ContradictionError, InputError, OutputError
from ...media.formats import (
    ANIMATION_SUFFIXES,
    HEIC_MISSING,
    IMAGE_FORMATS,
    PACKED_TARS,
    PIPE,
    SNIFFED,
    TAR_SUFFIX,
    UNREAD_IMAGES,
    VIDEO_SUFFIXES,
    WRITTEN_FORMATS,
    Entry,
    ImageFormat,
    Kind,
    counted_suffixes,
    is_numbered_output,
    output_format,
    sniff_format,
)
from ...remote import RemotePath, is_remote
from ...wording import Note, printable
from .refusals import unreadable


@dataclass(frozen=True)
class Naming:
    """How outputs are named: the options ``--format`` (images) and ``--container`` (videos)."""

    format: str = "same"
    container: str = "same"

    def output_name(self, source: Path, kind: Kind) -> str:
        """Return the name that ``source`` keeps in an output folder.

        Raises InputError where the first bytes are needed and cannot be read.
        """
        if kind == "video":
            return self._video_name(source)
        if kind != "image":
            return source.name
        by_name = IMAGE_FORMATS.get(source.suffix.lower())
        # A file without an image's extension is an image by its content; the output gets one.
        target = output_format(by_name or _sniff(source) or "png", self.format)
        if by_name == target:
            return source.name
        return f"{source.stem if by_name else source.name}.{target}"

    def _video_name(self, source: Path) -> str:
        suffix = source.suffix.lower()
        if _means_container(suffix, self.container):
            return source.name
        # An ending that is not a video's extension is part of the name: ``talk.2024``.
        is_known = suffix in VIDEO_SUFFIXES or suffix in ANIMATION_SUFFIXES
        stem = source.stem if is_known else source.name
        return f"{stem}.{'mkv' if self.container == 'same' else self.container}"

    def check(self, target: Path, kind: Kind) -> None:
        """Refuse the name of a file that cannot be written, or is not of the format asked for.

        Raises OutputError, and ContradictionError where an option excludes the name.
        """
        is_numbered = kind not in ("image", "tar") and is_numbered_output(target)
        if kind == "image" or is_numbered:
            self._check_image(target)
        if is_numbered and is_remote(target):
            raise OutputError(
                f"{printable(target)}: numbered images are written into a local folder only; "
                "name one, and copy it into the store"
            )
        if kind == "image" or (is_numbered and self.container == "same"):
            return
        if kind == "tar":
            if target.suffix.lower() != TAR_SUFFIX:
                raise OutputError(
                    f"{printable(target)}: a tar becomes a tar; name it .tar, or name a folder"
                )
        elif self.container != "same" and not _means_container(
            target.suffix.lower(), self.container
        ):
            name = "- (standard output)" if target == PIPE else printable(target)
            raise ContradictionError(
                f"{name}: --container {self.container} and the name ask for different containers; "
                "change one of them"
            )

    def _check_image(self, target: Path) -> None:
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
        if self.format not in ("same", format_by_name):
            raise ContradictionError(
                f"{printable(target)}: --format {self.format} and the name ask for different "
                "formats; change one of them"
            )

    def notes(self, entries: Sequence[Entry]) -> Iterator[Note]:
        """Yield notes on videos and images whose own format is read and not written."""
        videos = [
            entry.source.suffix
            for entry in entries
            if entry.kind == "video" and entry.output.name != entry.source.name
        ]
        if videos and self.container == "same":
            many = (
                "1 video becomes MKV, since its container is"
                if len(videos) == 1
                else f"{len(videos)} videos become MKV, since their containers are"
            )
            yield Note(
                None,
                f"{many} read and not written here ({counted_suffixes(videos)}); "
                "--container chooses another",
            )
        images = [
            entry.source.suffix
            for entry in entries
            if entry.kind == "image"
            and IMAGE_FORMATS.get(entry.source.suffix.lower(), "png") not in WRITTEN_FORMATS
        ]
        if images and self.format == "same":
            many = f"{len(images)} images become" if len(images) > 1 else "1 image becomes"
            yield Note(
                None,
                f"{many} PNG, since the format is not written here: {counted_suffixes(images)}; "
                "--format chooses another",
            )


def _means_container(suffix: str, container: str) -> bool:
    """Return whether an extension means ``container``; for ``same``, any that is written."""
    # Imported here, since images alone need no FFmpeg.
    from ...media.mux.containers import CONTAINERS

    if suffix in ANIMATION_SUFFIXES:
        return container in ("same", ANIMATION_SUFFIXES[suffix])
    by_suffix = CONTAINERS.get(suffix)
    if container == "same":
        return by_suffix is not None or suffix == ".y4m"
    return by_suffix is not None and by_suffix.label.lower() == container


def with_full_names(entries: Sequence[Entry]) -> tuple[Sequence[Entry], list[Note]]:
    """Return ``entries`` with full names where new extensions would give two sources one name.

    A note tells it.
    """
    count = Counter(str(entry.output) for entry in entries)
    alike = [
        entry
        for entry in (entries if len(count) < len(entries) else ())
        if count[str(entry.output)] > 1 and entry.output.name != entry.source.name
    ]
    if not alike:
        return entries, []
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
    return [renamed.get(entry, entry) for entry in entries], [note]


def kind_of_named_file(path: Path, output: Path) -> Kind:
    """Return the kind of a file that the user named: by extension, else by its first bytes.

    An animated image whose ``output`` is a video or an animated image by its name counts as a
    video, and a GIF of one image does, too. So does every file that is neither an image nor named
    like one; one that is no video is refused when it is opened. Raises InputError for a compressed
    tar.
    """
    if path.name.lower().endswith(PACKED_TARS):
        raise InputError(
            f"{printable(path)}: is a compressed tar, and plain .tar files are read; decompress it "
            "first (JPEG and PNG get no smaller by it)"
        )
    suffix, ending = path.suffix.lower(), output.suffix.lower()
    becomes_video = output == PIPE or ending in VIDEO_SUFFIXES or is_numbered_output(output)
    if suffix == ".gif" and (becomes_video or ending == ".gif"):
        return "video"
    kind = kind_by_suffix(path.name)
    if kind == "image" and (becomes_video or ending in ANIMATION_SUFFIXES):
        return "video" if moves(path, ANIMATION_SUFFIXES) else "image"
    if kind in ("other", "unread"):
        return "image" if _sniff(path) else "video" if kind == "other" else "unread"
    return kind


def kind_by_suffix(name: str) -> Literal["image", "video", "tar", "unread", "other"]:
    """Return the kind of a file by the extension of its name."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a name, not a path
    if suffix in IMAGE_FORMATS:
        return "image" if IMAGE_FORMATS[suffix] != "heic" or _reads_heic() else "unread"
    if suffix in UNREAD_IMAGES:
        return "unread"
    if suffix == TAR_SUFFIX:
        return "tar"
    return "video" if suffix in VIDEO_SUFFIXES else "other"


OFTEN_ANIMATED = tuple(suffix for suffix in ANIMATION_SUFFIXES if suffix != ".png")
"""Extensions of files that are looked into where there may be many. PNG files are not: few of a
million move, and to open each would take a listing 1.4 times as long."""


def moves(path: Path, suffixes: Collection[str]) -> bool:
    """Return whether a file, if it has one of ``suffixes``, is an animated image.

    Raises InputError.
    """
    if path.suffix.lower() not in suffixes:
        return False
    # Imported here, since most jobs have no such file.
    from ...media.animations.structure import is_animation

    try:
        return is_animation(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _sniff(path: Path) -> ImageFormat | None:
    """Return the image format by the first bytes of a file, or None."""
    try:
        if isinstance(path, RemotePath):
            return sniff_format(path.read_range(0, SNIFFED))
        with path.open("rb") as file:
            return sniff_format(file.read(SNIFFED))
    except OSError as error:
        raise unreadable(path, error) from error


@functools.cache
def _reads_heic() -> bool:
    return importlib.util.find_spec("pillow_heif") is not None


def why_unread(entry: Entry) -> str:
    """Return why an ``unread`` file is not translated, and the remedy."""
    name, suffix = printable(entry.source), entry.source.suffix.lower()
    if entry.problem is not None:
        return entry.problem
    if suffix in IMAGE_FORMATS:
        return f"{name}: {HEIC_MISSING}"
    return (
        f"{name}: images of the kind {printable(suffix)} are not read here; "
        "convert it to PNG, TIFF or JPEG"
    )
