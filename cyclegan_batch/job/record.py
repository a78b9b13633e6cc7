"""What earlier runs of a job have done, as the journals of the job folder tell.

A journal is read as data of unknown origin. A line that is damaged, too long or of another form is
left out; it costs that its outputs are made again. No path in it is ever used: the outputs of a
plan are looked up by their names, and the files of stretches have names that follow from the plan.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..media import Dropped
from ..wording import Note, printable
from .fingerprint import Job
from .journal_lines import (
    FACTS,
    Json,
    RecordedStretch,
    WholeOutput,
    as_count,
    as_job,
    as_numbers,
    as_stretch,
    as_text,
    as_texts,
    as_whole_output,
)
from .journal_storage import Line, journal_files, lines_of

if TYPE_CHECKING:
    from ..media.mux.joined_video import Stretch

_READINGS = 3
"""How often journals are read that change meanwhile."""

_NO_FACTS: dict[str, Json] = {}
"""What most images have: one object for a million of them."""


@dataclass(frozen=True, kw_only=True)
class DoneStretch:
    """A stretch of a video that an earlier run has finished."""

    number: int
    """From 0."""
    stretch: Stretch | None
    """None where no frame of the video falls into it."""
    dropped: tuple[Dropped, ...]
    """What is missing from it or damaged in it."""
    notes: tuple[Note, ...]
    frames: int
    """Frames that were written."""


@dataclass
class Run:
    """A run, as a journal tells of it."""

    journal: Path
    host: str
    process: int
    outputs: int
    """Outputs of the whole job, those included that were done before."""
    frames: int | None
    """Frames that were to be translated, or None where an input does not show its number."""
    command: Mapping[str, Json] = field(default_factory=dict)
    """Model, options and folder in words."""
    jobs: set[str] = field(default_factory=set)
    frames_done: int = 0
    outputs_done: int = 0
    seconds: float = 0.0
    """From its beginning to the last line."""
    ended: str | None = None
    """Its status at its end; None where it is at work or was killed."""
    reason: str = ""
    """The error that stopped it early."""


class Record:
    """The content of the journals of a job folder, the later line overriding the earlier."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        """By their ids, the latest last."""
        self.runs: dict[str, Run] = {}
        """By their names, the latest last."""
        self.failed: dict[str, str] = {}
        """Outputs that failed and were not begun again since, with the reason."""
        self._whole: dict[str, tuple[str, list[Json], dict[str, Json]]] = {}
        """Job, row and facts of each output. They are checked when an output is looked up."""
        self._begun: dict[str, str] = {}
        """The job of each output that was begun and is not whole."""
        self._before: dict[str, tuple[str, list[Json], dict[str, Json]]] = {}
        """What `_whole` held of those when they were begun."""
        self._stretches: dict[str, dict[int, dict[str, Json]]] = {}

    @classmethod
    def of(cls, lines: Iterable[tuple[Path, Line]]) -> Record:
        """Return what lines tell; each comes with the journal that it is of."""
        record = cls()
        for journal, line in lines:
            record._take(journal, line)
        return record

    @classmethod
    def read(cls, files: Sequence[Path]) -> Record:
        """Read the files of journals, the one that was written last overriding the others.

        Raises what `lines_of` raises.
        """
        return cls.of(lines_of(files))

    @classmethod
    def of_folder(
        cls, folder: Path, wanted: Callable[[Sequence[Path]], Sequence[Path]] = lambda files: files
    ) -> Record:
        """Read those journals of a job folder that ``wanted`` chooses among its files.

        Raises InputError and OSError for a store that does not answer.
        """
        for _ in range(_READINGS):
            files = wanted(journal_files(folder))
            # Another run may put one object in place of several while they are read.
            with contextlib.suppress(FileNotFoundError):
                return cls.read(files)
        raise InputError(
            f"{printable(folder)}: other runs change it all the time; run this again when they "
            "have ended"
        )

    @property
    def is_empty(self) -> bool:
        """Whether no output of any job is known."""
        return not (self._whole or self._begun or self._stretches)

    def names(self) -> Iterator[str]:
        """Yield the names of all outputs that are recorded as whole."""
        yield from self._whole

    def begun(self) -> Mapping[str, str]:
        """Return the job of each output that was begun and is not whole."""
        return self._begun

    def whole(self, name: str) -> WholeOutput | None:
        """Return what is known of an output, None where it is not recorded as whole."""
        found = self._whole.get(name)
        return None if found is None else as_whole_output(*found)

    def rows(self) -> Iterator[tuple[str, list[Json], dict[str, Json]]]:
        """Yield job, row and `FACTS` of each whole output, as a journal holds them."""
        yield from self._whole.values()

    def stretches(self, name: str) -> list[RecordedStretch]:
        """Return the stretches that are recorded of a video, by their number, ascending."""
        found = sorted(self._stretches.get(name, {}).items())
        return [each for _, line in found if (each := as_stretch(line)) is not None]

    def unfinished_videos(self) -> Iterator[tuple[str, str, int, int]]:
        """Yield each video that is not joined: name, job, stretches done, and stretches in all."""
        for name, lines in self._stretches.items():
            last = next(reversed(lines.values()), {})
            yield name, as_text(last.get("job")), len(lines), as_count(last.get("of")) or len(lines)

    def _take(self, journal: Path, line: Line) -> None:
        run = self.runs.get(as_text(line.get("run")))
        at = line.get("at")
        if run is not None and isinstance(at, (int, float)) and math.isfinite(at):
            run.seconds = max(run.seconds, float(at))
        job, outputs = as_text(line.get("job")), line.get("outputs")
        match line.get("line"):
            case "run":
                self._take_run(journal, line)
            case "job":
                self._take_job(line, run)
            case "begun":
                self._take_begun(as_texts(outputs), job, as_numbers(line.get("kept")))
            case "whole":
                rows = outputs if isinstance(outputs, list) else []
                facts = {key: line[key] for key in FACTS if key in line} or _NO_FACTS
                for row in rows:
                    if isinstance(row, list) and row and isinstance(row[0], str):
                        self._take_whole(row[0], job, row, facts)
                        if run is not None:
                            run.outputs_done += 1
                            run.frames_done += 0 if "frames" in line else 1
                if run is not None:
                    run.frames_done += as_count(line.get("frames")) or 0
            case "stretch":
                number = as_count(line.get("number"))
                if number is not None:
                    self._stretches.setdefault(as_text(line.get("output")), {})[number] = line
                    if run is not None:
                        run.frames_done += as_count(line.get("frames")) or 0
            case "appeared":
                self._take_appeared(as_texts(outputs))
            case "failed":
                self._take_failed(line.get("failures"))
            case "end" if run is not None:
                run.ended = as_text(line.get("status"))
                run.reason = as_text(line.get("reason"))
                frames, whole = as_count(line.get("frames")), as_count(line.get("outputs"))
                run.frames_done = run.frames_done if frames is None else frames
                run.outputs_done = run.outputs_done if whole is None else whole

    def _take_run(self, journal: Path, line: Line) -> None:
        name = as_text(line.get("run"))
        process, outputs = as_count(line.get("process")), as_count(line.get("outputs"))
        command = line.get("command")
        if not name or process is None or outputs is None:
            return
        self.runs[name] = Run(
            journal=journal,
            host=as_text(line.get("host")),
            process=process,
            outputs=outputs,
            frames=as_count(line.get("frames")),
            command=command if isinstance(command, dict) else {},
        )

    def _take_job(self, line: Line, run: Run | None) -> None:
        job = as_job(line)
        if job is None:
            return
        self.jobs.pop(job.id, None)
        self.jobs[job.id] = job
        if run is not None:
            run.jobs.add(job.id)

    def _take_begun(self, names: list[str], job: str, kept: list[int]) -> None:
        for name in names:
            if name in self._whole:
                self._before[name] = self._whole.pop(name)
            self.failed.pop(name, None)
            self._begun[name] = job
            stretches = self._stretches.get(name, {})
            for number in set(stretches).difference(kept):
                del stretches[number]

    def _take_appeared(self, names: list[str]) -> None:
        """Take outputs that were begun, and then were there already: they are somebody else's.

        Another run of this very job may have written them, so what it told of them holds again.
        """
        for name in names:
            self._begun.pop(name, None)
            if name in self._before:
                self._whole.setdefault(name, self._before[name])

    def _take_whole(self, name: str, job: str, row: list[Json], facts: dict[str, Json]) -> None:
        self._whole[name] = (job, row, facts)
        self._begun.pop(name, None)
        self.failed.pop(name, None)
        self._stretches.pop(name, None)

    def _take_failed(self, failures: Json) -> None:
        for each in failures if isinstance(failures, list) else []:
            if not isinstance(each, list) or len(each) != 2 or not isinstance(each[1], str):
                continue
            if isinstance(each[0], str):
                self.failed[each[0]] = each[1]
