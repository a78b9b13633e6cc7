"""Where a job stands: which of its outputs are up to date, and which are made, again or at all.

An output that a journal tells of is *up to date* where it was made by the same job from the same
state of its input and still has its size; then it needs no work. It is *outdated* where job or
input are others: that is an error which names what differs, unless ``-y`` (make it again) or ``-n``
(leave it). Stretches that another job has done of a video are an error, too, since they would be
removed. What exists and is in no journal, or has another size than its journal tells, is somebody
else's: an error, unless ``-y`` or ``-n``. What was begun by this job and not finished is made again
in any case.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, OutputError
from ..file_identity import FileIdentity, identity_of
from ..files import exists, output_error, size_of
from ..media.formats import PIPE, Entry
from ..media.pattern import numbered_bytes, numbered_files, pattern_files
from ..option_table import options_of
from ..options import TranslateOptions
from ..wording import printable
from .fingerprint import RESOLVED, Job, OutputKind, kind_of_output, resolved
from .job_folder import FOLDER, digest_of, name_of
from .journal_lines import RecordedStretch, WholeOutput
from .journal_storage import journal_of
from .record import DoneStretch, Record
from .units import Failure

if TYPE_CHECKING:
    from ..media.video.plan import VideoPlan


@dataclass
class Standing:
    """The entries of a job by what becomes of them."""

    rest: list[Entry] = field(default_factory=list)
    """Those that are to be done, in order."""
    finished: list[Path] = field(default_factory=list)
    """Outputs that are up to date."""
    left: list[Path] = field(default_factory=list)
    """Outputs that exist and stay (``-n``)."""
    outdated: dict[Path, str] = field(default_factory=dict)
    """Outputs that are to be made again (``-y``), and what differs."""
    redone: set[Path] = field(default_factory=set)
    """Outputs that exist, are of earlier runs, and are made again."""
    resumed: set[Path] = field(default_factory=set)
    """Those of them that this very job has begun: they are replaced without ``-y``."""
    damage: list[Failure] = field(default_factory=list)
    """What is missing from outputs that are up to date, or damaged in them."""


def read_record(folder: Path | None, entries: Sequence[Entry], root: Path | None) -> Record:
    """Return what the journals of a job folder tell; nothing where there is no folder.

    Of the journals of single files only those are read that belong to ``entries``. Raises
    InputError for a store that does not answer.
    """
    if folder is None or root is None or folder.is_symlink():
        return Record()

    def wanted(files: Sequence[Path]) -> Sequence[Path]:
        if len(entries) >= len(files):
            return files
        own = {digest_of(name_of(entry.output, root)) for entry in entries}
        stems = ((journal_of(file).stem, file) for file in files)
        return [file for stem, file in stems if stem in own or stem[:7] == "journal"]

    try:
        return Record.of_folder(folder, wanted)
    except OSError as error:
        raise InputError(
            f"{printable(folder)}: cannot be read: {error.strerror or error}; run this again when "
            "the store answers"
        ) from error


def same_jobs(record: Record, jobs: Iterable[Job]) -> dict[OutputKind, list[Job]]:
    """Return the recorded jobs that are the same as those of ``jobs``, the latest last.

    An ``auto`` of these is the same as whatever it became there.
    """
    return {
        job.kind: [
            recorded
            for recorded in record.jobs.values()
            if recorded.kind == job.kind and resolved(job, recorded.values).id == recorded.id
        ]
        for job in jobs
    }


def standing(
    entries: Sequence[Entry],
    root: Path | None,
    record: Record,
    jobs: Sequence[Job],
    options: TranslateOptions,
    *,
    renewed: Collection[Path] = (),
) -> Standing:
    """Return where a job stands. Raises OutputError for what exists and may not be touched.

    ``jobs`` are what is asked for, one for each kind of output, perhaps with ``auto``. ``renewed``
    are sources that this very job makes anew: what an earlier run has made of them is replaced. A
    preview writes none of the outputs: all of them are to be done.
    """
    result = Standing()
    if options.preview:
        result.rest = list(entries)
        return result
    same = same_jobs(record, jobs)
    asked = {job.kind: job for job in jobs}
    foreign: list[Path] = []
    others = _stretches_of_others(root, record, asked, same)
    begun_by_others: dict[Path, str] = {}
    for entry in entries:
        kind = kind_of_output(entry)
        ids = {job.id for job in same.get(kind, ())}
        state = _State.of(entry, root, record)
        if not state.exists or entry.output == PIPE:
            result.rest.append(entry)
            if others and root is not None and (found := others.get(name_of(entry.output, root))):
                begun_by_others[entry.output] = found
        elif (state.begun is not None and state.begun in ids) or (
            entry.source in renewed and state.whole is not None
        ):
            result.rest.append(entry)
            result.redone.add(entry.output)
            result.resumed.add(entry.output)
        elif (why := _why_outdated(entry, state, record, asked.get(kind), ids, options)) is None:
            assert state.whole is not None
            result.finished.append(entry.output)
            result.damage += state.whole.failures
        elif options.skip_existing:
            result.left.append(entry.output)
        else:
            result.rest.append(entry)
            if why:
                result.redone.add(entry.output)
                result.outdated[entry.output] = why
            else:
                foreign.append(entry.output)
    if not options.overwrite:
        _refuse(foreign, result.outdated)
    if not options.overwrite and not options.skip_existing:
        _refuse_begun(begun_by_others)
    return result


def stretches_done(
    videos: Sequence[VideoPlan],
    root: Path | None,
    folder: Path | None,
    record: Record,
    ids: Collection[str],
) -> dict[Path, tuple[DoneStretch, ...]]:
    """Return the stretches of ``videos`` that an earlier run of the same job has finished.

    ``ids`` are the recorded jobs that are the same as this one.
    """
    done: dict[Path, tuple[DoneStretch, ...]] = {}
    if root is None or folder is None:
        return done
    for video in videos:
        name = name_of(video.output, root)
        stretches = [
            each
            for recorded in record.stretches(name)
            if recorded.job in ids
            and (each := _as_done(recorded, video, folder / digest_of(name))) is not None
        ]
        times = [time for each in stretches if each.stretch for time in each.stretch.times]
        # What does not fit together was not written by one job.
        if stretches and all(earlier < later for earlier, later in itertools.pairwise(times)):
            done[video.output] = tuple(stretches)
    return done


def _as_done(recorded: RecordedStretch, video: VideoPlan, folder: Path) -> DoneStretch | None:
    """Return a recorded stretch as done, None where it is not of this plan or has no file."""
    from ..media.mux.joined_video import Stretch
    from ..media.video.numbered_sink import is_stretch_whole
    from ..media.video.sink import stretch_path

    if (
        video.identity is None
        or not video.identity.matches(recorded.identity)
        or recorded.frames_each != video.stretch_frames
        or not 0 <= recorded.number < video.stretches
        or recorded.time_base != video.stream.time_base
        or (recorded.bytes is None) != (not recorded.times)
    ):
        return None
    stretch = None
    if recorded.times:
        path = stretch_path(video, recorded.number, folder)
        try:
            if path.is_symlink() or path.stat().st_size != recorded.bytes:
                return None
        except OSError:
            return None
        stretch = Stretch(path, recorded.time_base, recorded.times, recorded.last_duration)
        if video.is_numbered and not is_stretch_whole(video, path):
            return None
    return DoneStretch(
        number=recorded.number,
        stretch=stretch,
        dropped=recorded.dropped,
        notes=recorded.notes,
        frames=recorded.frames,
    )


def _stretches_of_others(
    root: Path | None,
    record: Record,
    asked: Mapping[OutputKind, Job],
    same: Mapping[OutputKind, Sequence[Job]],
) -> dict[str, str]:
    """Return what other jobs have done of videos that are not joined yet, in words, by name."""
    known = {job.id for jobs in same.values() for job in jobs}
    found = {}
    for name, job, done, stretches in record.unfinished_videos():
        if root is None or job in known or not (root / FOLDER / digest_of(name)).is_dir():
            continue
        recorded = record.jobs.get(job)
        now = None if recorded is None else asked.get(recorded.kind)
        why = "with other settings"
        if recorded is not None and now is not None:
            why = _difference(recorded, now)
        found[name] = f"{done} of {stretches} stretches were made {why}"
    return found


@dataclass
class _State:
    """What is there of one output, and what is known of it."""

    exists: bool
    begun: str | None
    """The job that has begun and not finished it."""
    whole: WholeOutput | None
    """What is recorded of it, where it still has the recorded size."""

    @classmethod
    def of(cls, entry: Entry, root: Path | None, record: Record) -> _State:
        if entry.is_numbered:
            return cls._of_numbered(entry, root, record)
        try:
            length = size_of(entry.output)
        except OSError as error:
            raise output_error(entry.output, error) from error
        if length is None:
            return cls(exists(entry.output), None, None)
        if record.is_empty or root is None:
            return cls(True, None, None)
        name = name_of(entry.output, root)
        whole = record.whole(name)
        if whole is not None and whole.bytes != length:
            whole = None
        return cls(True, record.begun().get(name), whole)

    @classmethod
    def _of_numbered(cls, entry: Entry, root: Path | None, record: Record) -> _State:
        """Return what is there of numbered images: all have their names, and the recorded sizes."""
        is_there = bool(numbered_files(entry.output))
        if not is_there or root is None:
            return cls(is_there, None, None)
        name = name_of(entry.output, root)
        whole = record.whole(name)
        if whole is not None and numbered_bytes(entry.output, whole.numbers) != whole.bytes:
            whole = None
        return cls(True, record.begun().get(name), whole)


def _why_outdated(
    entry: Entry,
    state: _State,
    record: Record,
    asked: Job | None,
    same: set[str],
    options: TranslateOptions,
) -> str | None:
    """Return why an output that exists is not up to date; None where it is.

    An empty text: it is not known to be of this program.
    """
    job = state.begun if state.whole is None else state.whole.job
    if job is None or asked is None:
        return ""
    if job not in same:
        recorded = record.jobs.get(job)
        return "with other settings" if recorded is None else _difference(recorded, asked)
    if state.whole is None or not _is_unchanged(entry, state.whole.identity, options):
        return f"from another state of {printable(entry.source)}"
    return None


def _is_unchanged(entry: Entry, recorded: FileIdentity | None, options: TranslateOptions) -> bool:
    """Return whether an input is as it was recorded."""
    if recorded is None:
        return False
    try:
        files = [entry.source]
        if entry.kind == "pattern":
            files = list(pattern_files(entry.source).values())
        now = entry.status or identity_of(files, hashed=False)
        if now.size == recorded.size and options.hash_inputs and recorded.sha256 is not None:
            now = identity_of(files, hashed=True)
    except OSError:
        return False
    return now.matches(recorded)


def _difference(recorded: Job, asked: Job) -> str:
    """Return in words by what one job differs from the one that is asked for."""
    flags = {option.name: option.flag for option in options_of(TranslateOptions)}
    words = []
    for name in dict.fromkeys((*recorded.values, *asked.values)):
        before, now = recorded.values.get(name), asked.values.get(name)
        if before == now or (now == "auto" and name in RESOLVED):
            continue
        if name == "version":
            words.append(f"by version {before} (this is {now})")
        elif name == "model":
            words.append(f"by the model {str(before)[:12]} (this is {str(now)[:12]}, by SHA-256)")
        elif before is None:
            words.append(f"without {flags.get(name, name)} {_value(now)}")
        else:
            instead = "without it" if now is None else _value(now)
            words.append(f"with {flags.get(name, name)} {_value(before)} (now {instead})")
    return ", ".join(words) or "with other settings"


def _value(value: object) -> str:
    """Return the value of an option as it is written on the command line."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return "x".join(map(str, reversed(value)))
    return printable(f"{value:g}" if isinstance(value, float) else str(value))


def _refuse_begun(begun: Mapping[Path, str]) -> None:
    """Raise OutputError where another job has done stretches of a video."""
    for output, what in begun.items():
        among = f" and {len(begun) - 1} more" if len(begun) > 1 else ""
        raise OutputError(
            f"{printable(output)}{among}: {what}; the earlier command goes on with "
            "them, -y begins anew, and another OUTPUT keeps both"
        )


def _refuse(foreign: Sequence[Path], outdated: Mapping[Path, str]) -> None:
    """Raise OutputError where an output exists that may not be touched."""
    if foreign:
        among = f" and {len(foreign) - 1} more: exist" if len(foreign) > 1 else ": exists"
        raise OutputError(
            f"{printable(foreign[0])}{among} already; -y overwrites, -n does only the rest"
        )
    if outdated:
        first, why = next(iter(outdated.items()))
        many = len(outdated) > 1
        raise OutputError(
            f"{printable(first)}{f' and {len(outdated) - 1} more' if many else ''}: "
            f"{'were' if many else 'was'} made {why}; -y makes {'them' if many else 'it'} again, "
            f"-n leaves {'them' if many else 'it'}, and another OUTPUT keeps both"
        )
