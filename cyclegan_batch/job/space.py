"""Whether the outputs of a plan find room on their disks, before the first frame.

The size of a y4m file is known beforehand: where the disk has less, the job is refused. The sizes
of other outputs are estimated from those of their inputs, which is worth no more than a note. A
store is not asked. What is written here before it is put there counts on the disk of the scratch
folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from ..file_identity import FileIdentity
from ..files import scratch_folder, size_of
from ..media.formats import IMAGE_FORMATS, PIPE, Entry
from ..media.pattern import numbered_files
from ..remote import is_remote
from ..wording import Note, byte_size, printable

if TYPE_CHECKING:
    from ..media.video.plan import VideoPlan

_SAMPLED = 1000
"""Files of which the size is looked up, evenly spread; the others count as their mean."""


def check_space(
    videos: Sequence[VideoPlan], images: Sequence[Entry], others: Sequence[Entry]
) -> list[Note]:
    """Compare the space that outputs need with what their disks have free.

    ``images`` are translated, ``others`` become about as large as they are: tars, and what is
    copied. Returns a note on each file system that has less than the inputs let expect. Raises
    OutputError for one that has less than is needed.
    """
    notes = _scratch_notes([video for video in videos if is_remote(video.output)])
    videos = [video for video in videos if not is_remote(video.output)]
    images, others = (
        [entry for entry in entries if not is_remote(entry.output)] for entries in (images, others)
    )
    disks = _Disks()
    known: dict[int, int] = defaultdict(int)
    likely: dict[int, int] = defaultdict(int)
    for video in videos:
        if video.output != PIPE and video.y4m_bytes is not None:
            sizes = known if video.is_count_stated else likely
            # What it replaces makes room for it.
            sizes[disks.of(video.output)] += video.y4m_bytes - _file_bytes(video.output)
        if video.likely_bytes is not None:
            existing = _file_bytes(video.output)
            existing += sum(map(_file_bytes, numbered_files(video.output).values()))
            likely[disks.of(video.output)] += video.likely_bytes - existing
    for disk, pairs in _pairs_of_like_size(videos, images, others, disks).items():
        sample = pairs[:: -(-len(pairs) // _SAMPLED)]
        grown = sum(
            (_file_bytes(source) if status is None else status.size) - _file_bytes(output)
            for source, status, output in sample
        )
        likely[disk] += grown * len(pairs) // len(sample)
    for disk in dict.fromkeys([*known, *likely]):
        free, need = disks.free(disk), known[disk] + likely[disk]
        where = printable(disks.folder(disk))
        if free is not None and known[disk] > free:
            raise OutputError(
                f"{where}: has {byte_size(free)} free, and the y4m files to be written there need "
                f"{byte_size(known[disk])}; free some space, choose another output folder, or a "
                "format that compresses, such as .mkv"
            )
        if free is not None and need > free:
            text = f"has {byte_size(free)} free, and by its inputs the job needs {byte_size(need)}"
            notes.append(Note(disks.folder(disk), text))
    return notes


def scratch_bytes(videos: Iterable[VideoPlan], workers: int = 1) -> int:
    """Return about how many bytes are in the scratch folder at once for videos that go to a store.

    Each video counts as twice its source: the output may be larger than that, and a stretch of the
    next video may lie beside it. Each worker may be at one of the largest.
    """
    sizes = []
    for video in videos:
        if not is_remote(video.output):
            continue
        if video.y4m_bytes is not None:
            sizes.append(video.y4m_bytes)
        elif video.likely_bytes is not None:
            sizes.append(video.likely_bytes)
        elif video.identity is not None:
            sizes.append(2 * video.identity.size)
    return sum(sorted(sizes)[-workers:])


def _scratch_notes(videos: Sequence[VideoPlan]) -> list[Note]:
    """Return a note where the scratch folder has less room than the videos of a store take."""
    if not videos:
        return []
    folder = scratch_folder()
    need = scratch_bytes(videos, videos[0].options.workers or 1)
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(folder)
        if usage.total and need > usage.free:
            text = (
                f"has {byte_size(usage.free)} free, and videos are joined there before they are "
                f"put into the store, which needs about {byte_size(need)}; TMPDIR names another "
                "folder"
            )
            return [Note(folder, text)]
    return []


def _pairs_of_like_size(
    videos: Iterable[VideoPlan], images: Iterable[Entry], others: Iterable[Entry], disks: _Disks
) -> dict[int, list[tuple[Path, FileIdentity | None, Path]]]:
    """Return, by file system, inputs with outputs that are likely of about their size.

    Beside an input stands what is known of it without asking for it again.
    """
    pairs: dict[int, list[tuple[Path, FileIdentity | None, Path]]] = defaultdict(list)
    for video in videos:
        options = video.options
        is_whole = options.ss is None and options.to is None and options.frames is None
        is_sized = video.y4m_bytes is not None or video.is_numbered or video.is_animation
        if video.output != PIPE and not is_sized and is_whole:
            status = video.identity if is_remote(video.path) else None
            pairs[disks.of(video.output)].append((video.path, status, video.output))
    for entry in images:
        if _format(entry.source) == _format(entry.output):
            pairs[disks.of(entry.output)].append((entry.source, entry.status, entry.output))
    for entry in others:
        pairs[disks.of(entry.output)].append((entry.source, entry.status, entry.output))
    return pairs


def _format(path: Path) -> str | None:
    return IMAGE_FORMATS.get(path.suffix.lower())


def _file_bytes(path: Path) -> int:
    """Return the size of a file; 0 where there is none, as for a pattern of images."""
    return size_of(path) or 0


class _Disks:
    """The file systems of outputs, by their device numbers."""

    def __init__(self) -> None:
        self._by_folder: dict[str, int] = {}
        self._folders: dict[int, Path] = {}

    def of(self, output: Path) -> int:
        """Return the file system on which ``output``, or its folder, is going to be."""
        folder = os.path.dirname(output)  # noqa: PTH120 - text
        if folder not in self._by_folder:
            self._by_folder[folder] = self._device(Path(folder))
        return self._by_folder[folder]

    def _device(self, folder: Path) -> int:
        for existing in (folder, *folder.parents):
            with contextlib.suppress(OSError):
                device = existing.stat().st_dev
                self._folders.setdefault(device, existing)
                return device
        return -1

    def folder(self, disk: int) -> Path:
        """Return an existing folder of a file system."""
        return self._folders.get(disk, Path())

    def free(self, disk: int) -> int | None:
        """Return the bytes that this user may write, or None where the system does not tell."""
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(self.folder(disk))
            return usage.free if usage.total else None
        return None
