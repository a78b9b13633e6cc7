"""The values in the lines of a journal: how they are written, and how they are read as data.

A reader returns None for what is not of the expected form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias, get_args

from .. import errors
from ..errors import CycleganBatchError, InputError
from ..file_identity import FileIdentity
from ..media import Dropped, Place
from ..options import BackendName, TranslatePrecision
from ..wording import Note
from .fingerprint import RESOLVED, Job, OutputKind
from .units import Failure, Span

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

_KINDS = (("backend", BackendName), ("precision", TranslatePrecision))
_LARGEST_BATCH = 4096

FACTS = ("translated", "failures", "numbers")
"""What a line ``whole`` of one output tells of it besides its row."""

_MOST_FRAMES = 1 << 20
"""Frames of a stretch whose times are read: a hundred times what one has."""


@dataclass(frozen=True, kw_only=True)
class WholeOutput:
    """An output that an earlier run has finished."""

    job: str
    identity: FileIdentity | None
    """Of its input; None for standard input."""
    source_size: tuple[int, int] | None
    """Height and width of the input; None for a file that was copied."""
    size: tuple[int, int] | None
    bytes: int
    sha256: str
    translated: int | None
    """Frames of a video, or images, that were translated; None where the journal does not tell."""
    failures: tuple[Failure, ...]
    """What is missing from it or damaged in it."""
    numbers: tuple[tuple[int, int], ...]
    """Of numbered images: the first and the last number of each row of consecutive ones."""


@dataclass(frozen=True, kw_only=True)
class RecordedStretch:
    """A stretch that a journal tells of; whether its file exists is for the caller to find out."""

    job: str
    number: int
    frames_each: int
    identity: FileIdentity
    bytes: int | None
    """Of its file; None where it has no frames and no file."""
    time_base: Fraction
    times: tuple[int, ...]
    last_duration: int | None
    dropped: tuple[Dropped, ...]
    notes: tuple[Note, ...]
    frames: int


def as_text(value: Json) -> str:
    """Return a text, an empty one for anything else."""
    return value if isinstance(value, str) else ""


def as_texts(value: Json) -> list[str]:
    """Return the texts of a list."""
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def as_count(value: Json) -> int | None:
    """Return a number from 0 that fits into 63 bits."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _whole_number(value: Json) -> int | None:
    return value if type(value) is int and abs(value) < 1 << 63 else None


def as_numbers(value: Json) -> list[int]:
    """Return the numbers from 0 of a list."""
    items = value if isinstance(value, list) else []
    return [number for each in items if (number := as_count(each)) is not None]


def _size(value: Json) -> tuple[int, int] | None:
    numbers = as_numbers(value)
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def as_job(line: dict[str, Json]) -> Job | None:
    """Return the job of a line, whose id is computed anew."""
    kind, values = line.get("kind"), line.get("values")
    if kind not in get_args(OutputKind) or not isinstance(values, dict):
        return None
    if kind not in ("copy", "comparison") and not _is_resolved(values):
        return None
    return Job(kind=kind, values=values, contexts=as_count(line.get("contexts")) or 0)  # type: ignore[arg-type]


def _is_resolved(values: dict[str, Json]) -> bool:
    """Return whether what ``auto`` became is there, and within what a run can have."""
    batch = as_count(values.get("batch_size"))
    return (
        batch is not None
        and 1 <= batch <= _LARGEST_BATCH
        and values.get("device") in ("cpu", "cuda", "webgpu")
        and all(values.get(name) in get_args(kinds) for name, kinds in _KINDS)
        and "auto" not in (values.get(name) for name in RESOLVED)
    )


def _identity(value: Json) -> FileIdentity | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    size, modified, digest = as_count(value[0]), _whole_number(value[1]), value[2]
    if size is None or modified is None or not isinstance(digest, str | None):
        return None
    return FileIdentity(size, modified, digest)


def as_whole_output(job: str, row: list[Json], facts: dict[str, Json]) -> WholeOutput | None:
    """Return the output of a row of a line ``whole``, which has these `FACTS` besides."""
    if len(row) != 6:
        return None
    _, identity, source_size, size, length, digest = row
    found, length = _identity(identity), as_count(length)
    if length is None or not isinstance(digest, str):
        return None
    if identity is not None and found is None:
        return None
    return WholeOutput(
        job=job,
        identity=found,
        source_size=_size(source_size),
        size=_size(size),
        bytes=length,
        sha256=digest,
        translated=as_count(facts.get("translated")),
        failures=tuple(_failures(facts.get("failures"))),
        numbers=tuple(
            span for each in _list(facts.get("numbers")) if (span := _size(each)) is not None
        ),
    )


def as_stretch(line: dict[str, Json]) -> RecordedStretch | None:
    """Return the stretch of a line."""
    number, each, frames = (as_count(line.get(key)) for key in ("number", "frames_each", "frames"))
    identity, job, base = _identity(line.get("identity")), line.get("job"), line.get("time_base")
    times, duration, length = (
        read_times(line.get("times")),
        line.get("last_duration"),
        line.get("bytes"),
    )
    if number is None or not each or frames is None or identity is None or times is None:
        return None
    if not isinstance(job, str) or not isinstance(base, list) or len(base) != 2:
        return None
    above, below = as_count(base[0]), as_count(base[1])
    if not above or not below:
        return None
    if (duration is not None and as_count(duration) is None) or (
        length is not None and as_count(length) is None
    ):
        return None
    dropped = [_dropped(item) for item in _list(line.get("dropped"))]
    notes = [_note(item) for item in _list(line.get("notes"))]
    return RecordedStretch(
        job=job,
        number=number,
        frames_each=each,
        identity=identity,
        bytes=as_count(length),
        time_base=Fraction(above, below),
        times=times,
        last_duration=as_count(duration),
        dropped=tuple(each for each in dropped if each is not None),
        notes=tuple(each for each in notes if each is not None),
        frames=frames,
    )


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def read_times(value: Json) -> tuple[int, ...] | None:
    """Return the times of which `written_times` made ``value``, None for any other value."""
    if not isinstance(value, list):
        return None
    if not value:
        return ()
    time = _whole_number(value[0])
    if time is None:
        return None
    times = [time]
    for pair in value[1:]:
        step, count = _size(pair) or (0, 0)
        if not step or not count or len(times) + count > _MOST_FRAMES:
            return None
        times += range(times[-1] + step, times[-1] + step * count + 1, step)
    return tuple(times)


def written_times(times: Sequence[int]) -> list[object]:
    """Return ascending times as the first of them and pairs of step and number of steps."""
    steps: list[list[int]] = []
    for earlier, later in itertools.pairwise(times):
        if steps and steps[-1][0] == later - earlier:
            steps[-1][1] += 1
        else:
            steps.append([later - earlier, 1])
    return [*times[:1], *steps]


# Errors, notes and failures: written by the journal, read here


def written_error(error: CycleganBatchError) -> list[object]:
    """Return an error as its class and its text."""
    return [type(error).__name__, str(error)]


def _error(value: Json) -> CycleganBatchError | None:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], str):
        return None
    kind = getattr(errors, value[0], None) if isinstance(value[0], str) else None
    if isinstance(kind, type) and issubclass(kind, CycleganBatchError):
        return kind(value[1])
    return InputError(value[1])


def written_identity(identity: FileIdentity | None) -> list[object] | None:
    """Return an identity as its values in order."""
    return None if identity is None else [identity.size, identity.mtime_ns, identity.sha256]


def written_note(note: Note) -> list[object]:
    """Return a note as its subject, whether that is a path, and its text."""
    subject = note.subject
    return [None if subject is None else str(subject), isinstance(subject, Path), note.text]


def _note(value: Json) -> Note | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    subject, is_path, text = value
    if not isinstance(subject, str | None) or not isinstance(text, str):
        return None
    return Note(Path(subject) if is_path and subject is not None else subject, text)


def written_place(place: Place | None) -> list[object] | None:
    """Return a place as its values in order."""
    if place is None:
        return None
    return [place.subject, place.kind, place.number, place.seconds, place.trouble]


def _place(value: Json) -> Place | None:
    if not isinstance(value, list) or len(value) != 5:
        return None
    subject, kind, number, seconds, trouble = value
    if not isinstance(subject, str) or not isinstance(trouble, str) or as_count(number) is None:
        return None
    if kind not in ("frame", "packet") or not _is_time(seconds):
        return None
    return Place(subject=subject, kind=kind, number=number, seconds=seconds, trouble=trouble)  # type: ignore[arg-type]


def _is_time(value: Json) -> bool:
    return value is None or (type(value) in (int, float) and math.isfinite(value))  # type: ignore[arg-type]


def written_dropped(dropped: Dropped) -> list[object]:
    """Return what is missing as its name, its error and its place."""
    return [dropped.name, written_error(dropped.error), written_place(dropped.place)]


def _dropped(value: Json) -> Dropped | None:
    if not isinstance(value, list) or len(value) != 3 or not isinstance(value[0], str):
        return None
    error = _error(value[1])
    return None if error is None else Dropped(value[0], error, _place(value[2]))


def written_failures(failures: Sequence[Failure]) -> list[list[object]]:
    """Return the failures of one output, each as its values in order.

    A line that is too long is not read again, so those beyond `_MOST_FAILURES` are one.
    """
    kept, rest = failures[:_MOST_FAILURES], failures[_MOST_FAILURES:]
    rows = [written_failure(each) for each in kept]
    if rest:
        count = sum(each.count for each in rest)
        text = f"{rest[0].name} and others, {count:,} in all: are missing or damaged as well"
        rows.append([rest[0].name, written_error(InputError(text)), count, [], None])
    return rows


_MOST_FAILURES = 2000
"""Failures of one output that are written down one by one: a tar may have a million images."""


def written_failure(failure: Failure) -> list[object]:
    """Return a failure as its values in order."""
    spans = [[s.first, s.last, s.start_seconds, s.end_seconds] for s in failure.spans]
    error, last = written_error(failure.error), written_place(failure.last)
    return [failure.name, error, failure.count, spans, last]


def _failures(value: Json) -> Iterator[Failure]:
    for each in _list(value):
        if not isinstance(each, list) or len(each) != 5 or not isinstance(each[0], str):
            continue
        error, count = _error(each[1]), as_count(each[2])
        spans = [span for item in _list(each[3]) if (span := _span(item)) is not None]
        last = _place(each[4])
        if error is not None and count:
            yield Failure(each[0], error, count, tuple(spans), last if spans else None)


def _span(value: Json) -> Span | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    first, last = as_count(value[0]), as_count(value[1])
    if first is None or last is None or not (_is_time(value[2]) and _is_time(value[3])):
        return None
    return Span(first=first, last=last, start_seconds=value[2], end_seconds=value[3])  # type: ignore[arg-type]
