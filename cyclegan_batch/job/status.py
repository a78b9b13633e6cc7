"""How far a job has come, by what lies beside its outputs. It is read only; nothing is opened."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import size_of
from ..media.pattern import numbered_bytes
from ..option_table import options_of
from ..options import TranslateOptions
from ..remote import RemotePath, is_remote
from ..wording import clock, printable
from .job_folder import FOLDER, digest_of, is_open, journal_name
from .journal_lines import Json, WholeOutput
from .journal_storage import journal_of
from .record import Record, Run

_LISTED = 20
"""Failures and videos that are listed one by one."""


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """How far a job has come."""

    output: Path
    outputs: int
    """Files that the job writes, those included that were up to date when its last run began."""
    done: int
    """Of these, files that exist as they were recorded."""
    failed: int
    damaged: int
    """Files that are done and lack a part of their input."""
    at_work: bool | None
    """Whether a process is at work; None where the file system cannot tell, or a store."""
    silent: float | None = None
    """Where that is not known: seconds since a run that has not ended wrote to its journal."""
    runs: tuple[Run, ...]
    """Those at work, or else the last one."""
    parts: tuple[int, int]
    """How many parts of the job have begun (``--shard``), and how many there are."""
    failures: tuple[tuple[str, str], ...]
    """Output and reason."""
    videos: tuple[tuple[str, int, int], ...]
    """Videos that are not joined yet: how many of their stretches are done, and how many they
    have."""

    @property
    def left(self) -> int:
        """Files that are neither done nor failed."""
        return max(0, self.outputs - self.done - self.failed)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left, missing or damaged, and nobody is at work."""
        nothing_missing = not (self.left or self.failed or self.damaged)
        return nothing_missing and not self.at_work and self.parts[0] == self.parts[1]

    @property
    def rate(self) -> float | None:
        """Frames per second of the runs, all together; what was resumed does not count."""
        rates = [run.frames_done / run.seconds for run in self.runs if run.seconds > 0]
        return sum(rates) if any(rates) else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at this rate; None where it is not known."""
        if not self.left or not self.rate:
            return None
        frames = 0
        for run in self.runs:
            if run.frames is None:
                return None
            frames += max(0, run.frames - run.frames_done)
        return frames / self.rate

    def description(self) -> dict[str, object]:
        """Return the status as values for JSON."""
        command = self.runs[-1].command
        return {
            "output": str(self.output),
            "whole": self.is_whole,
            "at_work": self.at_work,
            "silent_seconds": self.silent,
            "outputs": self.outputs,
            "done": self.done,
            "failed": self.failed,
            "damaged": self.damaged,
            "left": self.left,
            "frames_per_second": self.rate,
            "seconds_left": self.seconds_left,
            "parts": list(self.parts),
            "videos": [
                {"output": name, "stretches_done": done, "stretches": whole}
                for name, done, whole in self.videos
            ],
            "failures": [{"output": name, "reason": reason} for name, reason in self.failures],
            "runs": [
                {"host": run.host, "process": run.process, "stopped_by": run.reason or None}
                for run in self.runs
            ],
            "command": dict(command),
        }

    def lines(self) -> Iterator[str]:
        """Yield the status in words, line by line."""
        missing = [f"{self.failed:,} failed"] * bool(self.failed)
        missing += [f"{self.damaged:,} damaged"] * bool(self.damaged)
        missing += [f"{self.left:,} left"] * bool(self.left)
        begun, parts = self.parts
        missing += [f"{begun} of {parts} parts have begun"] * (begun < parts)
        files = f"{self.done:,} of {self.outputs:,} {'file' if self.outputs == 1 else 'files'} done"
        yield f"{printable(self.output)}: {', '.join([files, *missing])}"
        yield from _command_lines(self.runs[-1].command)
        processes = ", ".join(
            f"process {run.process} on {printable(run.host)}" for run in self.runs
        )
        rate = f", {self.rate:.1f} frames/s" if self.rate else ""
        left = f", {clock(self.seconds_left)} left" if self.seconds_left is not None else ""
        if self.at_work:
            yield f"at work  {processes}{rate}{left}"
        elif self.silent is not None:
            yield f"last run {processes}, has not ended{rate}{left}{' at that rate' * bool(left)}"
            yield (
                f"         it wrote {clock(self.silent)} ago; no lock tells whether it is at work "
                "still"
            )
        else:
            how = "was cut off" if self.runs[-1].ended is None else "ended"
            # A run that went to its end despite what failed leaves nothing.
            how += " early" * (self.runs[-1].ended == "partial" and self.left > 0)
            at_rate = f"{left} at that rate" if left else ""
            yield f"last run {processes}, {how}{rate}{at_rate}"
            if self.runs[-1].reason:
                yield f"stopped  {printable(self.runs[-1].reason)}"
        for name, done, whole in self.videos[:_LISTED]:
            yield f"video    {printable(name)}: {done} of {whole} stretches"
        for name, reason in self.failures[:_LISTED]:
            yield f"failed   {printable(name)}: {printable(reason)}"
        if len(self.failures) > _LISTED:
            yield f"and {len(self.failures) - _LISTED:,} more failed"


def job_status(output: Path) -> JobStatus | None:
    """Return how far the job has come that writes ``output``; None where nothing is known.

    Raises InputError for a store that does not answer.
    """
    try:
        return _job_status(output)
    except OSError as error:
        if not is_remote(output):
            raise
        raise InputError(
            f"{printable(output)}: cannot be read: {error.strerror or error}; check the URL, "
            "and run this again when the store answers"
        ) from error


def _job_status(output: Path) -> JobStatus | None:
    root = output if output.is_dir() else output.parent
    own = journal_name(output, root)
    if isinstance(root, RemotePath) and root == output:
        root.beneath()  # with one listing no output costs a request of its own
    files: Sequence[Path] = ()

    def wanted(found: Sequence[Path]) -> Sequence[Path]:
        nonlocal files
        files = [file for file in found if root == output or journal_of(file).name == own]
        return files

    record = Record.of_folder(root / FOLDER, wanted)
    if not record.runs:
        return None
    by_journal = {run.journal: run for run in record.runs.values()}  # the last run of each
    family, parts = _family(list(by_journal))
    ids = {job for path in family for job in by_journal[path].jobs}
    done = damaged = 0
    for name in record.names():
        whole = record.whole(name)
        if whole is not None and whole.job in ids and _length(root, name, whole) == whole.bytes:
            done += 1
            damaged += bool(whole.failures)
    outputs = sum(by_journal[path].outputs for path in family)
    is_at_work = {path: is_open(path) for path in family}
    at_work: bool | None = any(is_at_work.values())
    runs = [run for run in record.runs.values() if is_at_work.get(run.journal) and _runs(run)]
    if None in is_at_work.values():
        runs = [by_journal[path] for path in family if by_journal[path].ended is None]
        at_work = None if runs else False
    return JobStatus(
        output=output,
        outputs=outputs,
        done=min(done, outputs),
        failed=len(record.failed),
        damaged=damaged,
        at_work=at_work,
        silent=_silent(files, runs) if at_work is None else None,
        runs=tuple(runs) or (by_journal[family[-1]],),
        parts=parts,
        failures=tuple(record.failed.items()),
        videos=tuple(
            (name, some, whole_video)
            for name, job, some, whole_video in record.unfinished_videos()
            # They are gone where the video was whole before, and is again.
            if job in ids and (root / FOLDER / digest_of(name)).is_dir()
        ),
    )


def _silent(files: Sequence[Path], runs: Sequence[Run]) -> float | None:
    """Return how many seconds ago the last line of the journals of ``runs`` was written."""
    journals = {run.journal for run in runs}
    times = [file.stat().st_mtime for file in files if journal_of(file) in journals]
    # The clock of a store may be ahead of this one.
    return max(0.0, time.time() - max(times)) if times else None


def _family(journals: Sequence[Path]) -> tuple[list[Path], tuple[int, int]]:
    """Return the journals that belong to one job with the last of ``journals``, and its parts."""
    last = re.fullmatch(r"journal-[0-9]+of([0-9]+)", journals[-1].stem)
    if last:
        pattern = rf"journal-[0-9]+of{last[1]}"
        family = [path for path in journals if re.fullmatch(pattern, path.stem)]
        return family, (len(family), max(len(family), int(last[1])))
    if journals[-1].stem == "journal":
        return [journals[-1]], (1, 1)
    # Jobs of single files, one journal each.
    return [path for path in journals if not path.stem.startswith("journal")], (1, 1)


def _runs(run: Run) -> bool:
    """Return whether a run has not ended, as far as can be found out."""
    if run.ended is not None:
        return False
    if run.host != socket.gethostname():
        return True
    try:
        os.kill(run.process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _length(root: Path, name: str, whole: WholeOutput) -> int | None:
    """Return the size of an output; None where it is missing, or its name leads out of the root."""
    if name.startswith("/") or ".." in name.split("/"):
        return None
    try:
        if whole.numbers:
            return numbered_bytes(root / name, whole.numbers)
        return size_of(root / name)
    except ValueError:
        return None


def _command_lines(command: object) -> Iterator[str]:
    """Yield model and options in words, as far as a journal tells them."""
    values = command if isinstance(command, dict) else {}
    model = values.get("model")
    if isinstance(model, dict):
        what = [str(values[key]) for key in ("backend", "device", "precision") if key in values]
        digest = str(model.get("sha256"))[:12]
        path = str(model.get("path"))
        yield printable(f"model    {path} (sha256 {digest}); {', '.join(what)}")
    options = values.get("options")
    if isinstance(options, dict) and options:
        flags = {option.name: option.flag for option in options_of(TranslateOptions)}
        words = [
            flags[key][:2] + "no-" + flags[key][2:]
            if value is False
            else f"{flags[key]} {_word(value)}".strip()
            for key, value in options.items()
            if key in flags
        ]
        yield printable(f"options  {' '.join(words)}")


def _word(value: Json) -> str:
    if value is True:
        return ""
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return "x".join(str(each) for each in reversed(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
