"""The journal of a run: what is done is written down at once, so that no later run does it again.

It lies in the job folder, beside the outputs: lines, each a JSON object. This module makes them;
where they lie is journal_storage.py's. A line is appended by a single write, so that several
processes on one machine can share a file; a line that is damaged nevertheless is ignored by the
reader (record.py), and costs that what it told of is made again.

Outputs get their names first and are written down second. What a process was killed between, and
what a power cut took from the end of the file, stands under a line ``begun``, which is on the disk
or in the store before any of the outputs has its name: it is made again, and no ``-y`` is needed
for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CycleganBatchError, InputError, OutputError, OutputExistsError
from ..file_identity import FileIdentity
from ..files import exists, output_error, remove_tree, size_of
from ..media import Dropped, Whole, Written
from ..media.formats import PIPE, Entry
from ..remote import RemotePath, is_remote
from ..wording import printable
from .comparison import ComparisonUnit, ImageComparisonUnit
from .fingerprint import COPY, Job, OutputKind, kind_of_output
from .job_folder import FolderLock, digest_of, journal_name, name_of, stretch_folders
from .journal_lines import (
    Json,
    written_dropped,
    written_failures,
    written_identity,
    written_note,
    written_times,
)
from .journal_storage import Storage, open_storage
from .plan_text import command_description
from .record import Record
from .units import (
    Counters,
    ImageUnit,
    JoinUnit,
    Outcome,
    StretchUnit,
    TarUnit,
    Unit,
    VideoUnit,
    output_exists,
)

if TYPE_CHECKING:
    from ..media.mux.joined_video import Stretch
    from .plan import JobPlan

_ROWS = 256
"""Outputs in a line of a journal that is rewritten."""


class Journal:
    """The journal of one run, open for appending. An `Observer`; any thread may call it.

    Where it cannot be written, the first call raises OutputError and later ones do nothing: a run
    that is stopped for this reason must be able to end.
    """

    def __init__(self, plan: JobPlan) -> None:
        """Create the job folder and begin the journal of a run of ``plan``, which has one.

        Raises OutputError, and OutputInUseError where another run has the folder for itself.
        """
        assert plan.root is not None
        assert plan.folder is not None
        self._plan = plan
        self._root, self._folder = plan.root, plan.folder
        self._path = plan.folder / journal_name(plan.output, plan.root, plan.options.part)
        self._began = time.monotonic()
        self._lock = threading.RLock()
        self._storage: Storage | None = None
        self._folder_lock: FolderLock | None = None
        self._broken = False
        """A line could not be written."""
        self._begun: set[Path] = set()
        """Videos and tars that are written down as begun."""
        self._named: dict[Path, Written] = {}
        """Videos and tars that have their name, and whose damage is not known before their end."""
        self._stretches: dict[Path, list[Stretch]] = {}
        """Stretches that are whole and whose unit has not ended, by their own files."""
        self._damage = {
            output: {each.number: each.dropped for each in stretches}
            for output, stretches in plan.done.items()
        }
        """What is missing from each stretch of a video that is not joined yet."""
        self._whole: set[Path] = set()
        """Outputs that this run has written down as whole."""
        self._left: set[Path] = set()
        """Outputs that another run has written meanwhile (``-n``)."""
        self._frames = 0
        self._jobs = {job.kind: job for job in plan.jobs}
        self._job_of = {
            entry.output: self._jobs[kind_of_output(entry)]
            for entry in plan.entries
            if entry.kind != "image"
        }
        for unit in plan.comparisons:
            self._job_of |= dict.fromkeys(unit.outputs, self._jobs["comparison"])
        try:
            self._open()
        except BaseException:
            self._release()
            raise

    def _open(self) -> None:
        plan = self._plan
        try:
            if self._folder.is_symlink():
                raise OutputError(
                    f"cannot write into {printable(self._folder)}: it is a link, and what lies "
                    "behind it is none of this job's; remove the link"
                )
            self._folder.mkdir(parents=True, exist_ok=True)
            if plan.output == plan.root and not is_remote(plan.root):
                self._folder_lock = FolderLock(self._folder, self._root, shared=plan.shares)
            self._storage = open_storage(self._path)
        except OSError as error:
            raise output_error(self._path, error) from error
        remove_joined_stretches(plan)
        self._append(None, *self._head(), *self._failures(_named_failures(plan)))

    def _head(self) -> Iterator[Mapping[str, object]]:
        plan = self._plan
        yield {
            "line": "run",
            "host": socket.gethostname(),
            "process": os.getpid(),
            "outputs": plan.files + len(plan.finished),
            "frames": plan.frames,
            "command": command_description(plan),
        }
        for job in plan.jobs:
            yield _job_line(job)

    # What the run tells

    def began(self, unit: Unit) -> None:
        """Write down that work on ``unit`` begins, before any of its outputs gets its name.

        A video that is begun anew loses the stretches that are there of another state of the job.
        """
        if isinstance(unit, ImageUnit):
            outputs = self._new(entry.output for entry in unit.shard.entries)
            if outputs:
                self._write_begun(unit, self._jobs[_kind_of_images(unit)], outputs)
        elif (output := _output(unit)) is not None:
            with self._lock:
                known = output in self._begun
                self._begun.add(output)
            if known:
                return
            kept = [each.number for each in self._plan.done.get(output, ())]
            if not kept and isinstance(unit, StretchUnit):
                # Nobody else is at work on them: whoever hands out a stretch has locked its video.
                self._remove_stretches(output)
            if output in self._plan.redone or not output_exists(unit, output):
                self._write_begun(unit, self._job_of[output], [output], kept)

    def _new(self, outputs: Iterable[Path]) -> list[Path]:
        """Return the outputs that will be this run's, whatever happens: none of others' files."""
        redone = self._plan.redone
        return [each for each in outputs if each in redone or not exists(each)]

    def _write_begun(
        self, about: object, job: Job, outputs: list[Path], kept: Sequence[int] = ()
    ) -> None:
        names = [name_of(output, self._root) for output in outputs]
        line = {"line": "begun", "job": job.id, "outputs": names}
        self._append(about, line | {"kept": kept} if kept else line, flush=True)

    def dropped(self, unit: Unit, dropped: Dropped) -> None:
        """Do nothing: it is written down at the end of the unit."""

    def published(self, unit: Unit, items: Sequence[Whole]) -> None:
        """Take what has become whole of ``unit``."""
        files = [item for item in items if isinstance(item, Written)]
        if isinstance(unit, ImageUnit):
            if isinstance(unit, ImageComparisonUnit):
                # Not translated: they do not count into the rate of the run.
                job, uncounted = self._jobs["comparison"], {"frames": 0}
                self._write_whole(unit, job, files, uncounted, frames=0)
            else:
                self._write_whole(unit, self._jobs["image"], files, {})
            return
        with self._lock:
            # Written down at the end of the unit, with what is missing from it.
            self._named |= {item.path: item for item in files}
            if isinstance(unit, StretchUnit):
                stretches = [item for item in items if not isinstance(item, Written)]
                self._stretches.setdefault(unit.folder / str(unit.number), []).extend(stretches)

    def ended(self, outcome: Outcome) -> None:
        """Take the end of a unit, and what of it is missing or damaged."""
        unit = outcome.unit
        if isinstance(unit, ImageUnit):
            self._end_images(unit, outcome)
        elif (output := _output(unit)) is None:
            return
        elif outcome.error is not None:
            self._append(unit, *self._failures([(output, outcome.error)]))
        elif isinstance(unit, StretchUnit):
            self._end_stretch(unit, outcome)
        else:
            self._end_file(output, outcome)
        self._settle(unit)

    def _end_images(self, unit: ImageUnit, outcome: Outcome) -> None:
        outputs = {}
        for entry in unit.shard.entries:
            outputs[printable(entry.source)] = outputs[printable(entry.output)] = entry.output
        failures = [(outputs.get(each.name), each.error) for each in outcome.dropped]
        if outcome.error is not None:
            failed = {output for output, _ in failures}
            left = {entry.output for entry in unit.shard.entries} - self._whole - failed
            failures += [(output, outcome.error) for output in sorted(left)]
        self._append(unit, *self._failures(failures))

    def _end_stretch(self, unit: StretchUnit, outcome: Outcome) -> None:
        video = unit.plan
        with self._lock:
            stretches = self._stretches.pop(unit.folder / str(unit.number), [])
            self._damage.setdefault(video.output, {})[unit.number] = outcome.dropped
        stretch = stretches[0] if stretches else None
        base = video.stream.time_base
        line: dict[str, object] = {
            "line": "stretch",
            "job": self._job_of[video.output].id,
            "output": name_of(video.output, self._root),
            "number": unit.number,
            "of": video.stretches,
            "frames_each": video.stretch_frames,
            "identity": written_identity(video.identity),
            "bytes": None,
            "time_base": [base.numerator, base.denominator],
            "times": [],
            "last_duration": None,
            "dropped": [written_dropped(each) for each in outcome.dropped],
            "notes": [written_note(note) for note in outcome.notes],
            "frames": outcome.frames,
        }
        if stretch is not None:
            base = stretch.time_base
            line |= {
                "bytes": _bytes_of(stretch.path),
                "time_base": [base.numerator, base.denominator],
                "times": written_times(stretch.times),
                "last_duration": stretch.last_duration,
            }
        self._append(unit, line, frames=outcome.frames, flush=True)

    def _end_file(self, output: Path, outcome: Outcome) -> None:
        """Take the end of a video or of a tar."""
        with self._lock:
            named = self._named.pop(output, None)
            damage = self._damage.pop(output, {})
        if named is None:
            return
        counters = Counters()
        for dropped in (*_in_order(damage), *outcome.dropped):
            counters.record(dropped.name, dropped.error, dropped.place)
        # Those of this unit, which a status adds up, and those of the output.
        translated = _translated(outcome) if named.images is None else named.images
        # The frames of a comparison are none that were translated.
        frames = 0 if isinstance(outcome.unit, ComparisonUnit) else outcome.frames
        facts: dict[str, object] = {"frames": frames, "translated": translated}
        if named.numbers:
            facts["numbers"] = named.numbers
        if counters.failures:
            facts["failures"] = written_failures(counters.failures)
        # On the disk before the stretches are removed, without which a begun video is made anew.
        job, unit = self._job_of[output], outcome.unit
        self._write_whole(unit, job, [named], facts, frames=frames, flush=True)
        if not isinstance(unit, TarUnit):
            self._remove_stretches(output)

    def begin_copies(self, entries: Iterable[Entry]) -> None:
        """Write down that files are going to be copied as they are (``--copy-others``)."""
        names = [name_of(each, self._root) for each in self._new(each.output for each in entries)]
        slices = (names[start : start + _ROWS] for start in range(0, len(names), _ROWS))
        lines = ({"line": "begun", "job": COPY.id, "outputs": some} for some in slices)
        self._append(COPY, *lines, flush=True)

    def copied(self, entry: Entry, identity: FileIdentity, length: int, digest: str) -> None:
        """Take a file that was copied: its source's identity before that, its bytes and SHA-256."""
        row = [name_of(entry.output, self._root), written_identity(identity), None, None]
        self._append(COPY, {"line": "whole", "job": COPY.id, "outputs": [[*row, length, digest]]})
        self._whole.add(entry.output)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(error)

    def close(self, error: BaseException | None = None) -> None:
        """End the journal of this run, which ``error`` has stopped. May be called again.

        Where all is whole and no other run shares the folder, it is rewritten without what is of no
        use any more.
        """
        with self._lock:
            if self._storage is None:
                return
            whole = len(self._whole | self._left) == self._plan.files
            end: dict[str, object] = {
                "line": "end",
                "status": "whole" if whole else "partial",
                "outputs": len(self._whole),
                "frames": self._frames,
            }
            if isinstance(error, CycleganBatchError):
                end["reason"] = str(error)
            try:
                # An end that cannot be written is no failure of the run: all else is on the disk.
                with contextlib.suppress(OutputError):
                    self._append(None, end)
                if whole and not self._broken and self._is_alone:
                    with contextlib.suppress(OSError, InputError):
                        self._rewrite(end)
            finally:
                self._release()

    @property
    def _is_alone(self) -> bool:
        """Whether no other run writes this journal at the same time."""
        if is_remote(self._path):
            # A file keeps its length in a folder that is shared, and so many objects do not.
            return not self._plan.options.skip_existing
        return not self._plan.shares

    def _release(self) -> None:
        storage, self._storage = self._storage, None
        if storage is not None:
            storage.close()
        if self._folder_lock is not None:
            self._folder_lock.release()

    # Lines

    def _write_whole(
        self,
        about: object,
        job: Job,
        files: Sequence[Written],
        facts: Mapping[str, object],
        *,
        frames: int | None = None,
        flush: bool = False,
    ) -> None:
        if not files:
            return
        rows = [
            [
                name_of(each.path, self._root),
                written_identity(each.identity),
                each.source_size,
                each.size,
                each.bytes,
                each.sha256,
            ]
            for each in files
        ]
        line = {"line": "whole", "job": job.id, "outputs": rows, **facts}
        self._append(about, line, frames=len(files) if frames is None else frames, flush=flush)
        self._whole.update(each.path for each in files)

    def _failures(
        self, failures: Sequence[tuple[Path | None, CycleganBatchError]]
    ) -> Iterator[Mapping[str, object]]:
        rows, others = [], []
        for output, error in failures:
            name = None if output is None else name_of(output, self._root)
            if isinstance(error, OutputExistsError) and output is not None:
                others.append(name)
            if self._plan.options.skip_existing and isinstance(error, OutputExistsError):
                # Another run that shares the folder has written it.
                if output is not None:
                    self._left.add(output)
                continue
            rows.append([name, str(error)])
        if others:
            yield {"line": "appeared", "outputs": others}
        if rows:
            yield {"line": "failed", "failures": rows}

    def _append(
        self, about: object, *lines: Mapping[str, object], frames: int = 0, flush: bool = False
    ) -> None:
        """Append lines about a unit by one write, empty ones left out; ``flush`` them to the disk.

        Raises OutputError, the first time.
        """
        with self._lock:
            if self._storage is None or self._broken:
                return
            common = self._common()
            data = b"".join(_encoded({**line, **common}) for line in lines if line)
            if data:
                self._frames += frames
                with self._breaking():
                    self._storage.append(data, about, flush=flush)

    def _settle(self, unit: Unit) -> None:
        """Take that nothing more is told about a unit. Raises OutputError, the first time."""
        with self._lock:
            if self._storage is not None and not self._broken:
                with self._breaking():
                    self._storage.settle(unit)

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._broken = True
            raise output_error(self._path, error) from error

    def _common(self) -> dict[str, object]:
        """Return what every line has."""
        assert self._storage is not None
        return {"run": self._storage.run, "at": round(time.monotonic() - self._began, 3)}

    def _rewrite(self, end: Mapping[str, object]) -> None:
        """Write the journal anew: the jobs, the outputs, and this run in short."""
        assert self._storage is not None
        record = Record.of(self._storage.read())
        by_job: dict[str, list[list[Json]]] = {}
        lines: list[Mapping[str, object]] = []
        used: set[str] = set()
        for job, row, facts in record.rows():
            used.add(job)
            if facts:
                lines.append({"line": "whole", "job": job, "outputs": [row], **facts})
            else:
                by_job.setdefault(job, []).append(row)
        for job, rows in by_job.items():
            lines += [
                {"line": "whole", "job": job, "outputs": rows[start : start + _ROWS]}
                for start in range(0, len(rows), _ROWS)
            ]
        common = self._common()
        head = [{**line, **common} for line in self._head()]
        used -= {job.id for job in self._plan.jobs}
        older = [_job_line(job) for key, job in record.jobs.items() if key in used]
        self._storage.rewrite(map(_encoded, (*older, *head, *lines, {**end, **common})))

    def _remove_stretches(self, output: Path) -> None:
        folder = self._folder / digest_of(name_of(output, self._root))
        remove_tree(folder)


def _bytes_of(path: Path) -> int | None:
    """Return the size of a stretch; None where it is gone."""
    if not isinstance(path, RemotePath):
        return size_of(path)
    try:
        # Another process may have put it, of which this one's listing tells nothing.
        return path.ask().st_size
    except OSError:
        return None


def is_unrecorded_part(plan: JobPlan) -> bool:
    """Return whether a plan is a part of a job (``--shard``) that has no journal yet.

    `status` counts the parts by their journals, so one with nothing to do has one, too.
    """
    if plan.folder is None or plan.root is None or plan.output != plan.root:
        return False
    name = journal_name(plan.output, plan.root, plan.options.part)
    return plan.options.part[1] > 1 and not (plan.folder / name).exists()


def remove_joined_stretches(plan: JobPlan) -> None:
    """Remove the stretches of videos that are whole: a process that was killed may leave them."""
    if plan.folder is None or plan.root is None or not plan.finished:
        return
    folders: set[str] = set()
    with contextlib.suppress(OSError):  # what stays takes room, and is found by the next run
        folders = stretch_folders(plan.folder)
    for output in plan.finished if folders else ():
        name = digest_of(name_of(output, plan.root))
        if name in folders:
            remove_tree(plan.folder / name)


def _output(unit: Unit) -> Path | None:
    """Return the file that a unit writes, or is a part of; no image, and no pipe."""
    kinds = VideoUnit | StretchUnit | JoinUnit | TarUnit | ComparisonUnit
    if isinstance(unit, kinds) and unit.plan.output != PIPE:
        return unit.plan.output
    return None


def _kind_of_images(unit: ImageUnit) -> OutputKind:
    return "comparison" if isinstance(unit, ImageComparisonUnit) else "image"


def _translated(outcome: Outcome) -> int:
    """Return how many frames the output of a unit has that makes a whole one."""
    if isinstance(outcome.unit, JoinUnit):
        return sum(len(stretch.times) for stretch in outcome.unit.stretches)
    return outcome.frames


def _named_failures(plan: JobPlan) -> list[tuple[Path | None, CycleganBatchError]]:
    """Return the failures of the planning with the outputs that they belong to."""
    if not plan.failures:
        return []
    outputs = {printable(entry.source): entry.output for entry in plan.entries}
    return [(outputs.get(each.name), each.error) for each in plan.failures]


def _in_order(damage: Mapping[int, Sequence[Dropped]]) -> Iterator[Dropped]:
    for number in sorted(damage):
        yield from damage[number]


def _job_line(job: Job) -> Mapping[str, object]:
    return {
        "line": "job",
        "job": job.id,
        "kind": job.kind,
        "values": dict(job.values),
        "contexts": job.contexts,
    }


def _encoded(line: Mapping[str, object]) -> bytes:
    # Bytes of names that are not UTF-8 are lone surrogates, which JSON writes as escapes.
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
