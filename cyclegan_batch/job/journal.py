"""The journal of a run: what is done is written down at once, so that no later run does it again.

It lies in the job folder, `FOLDER`, beside the outputs: a file of lines, each a JSON object. A line
is appended by a single write, so that several processes on one machine can share a file; a line
that is damaged nevertheless is ignored by the reader (record.py), and costs what it told of.

A journal is a promise about outputs, and no more than that. Outputs are renamed first and written
down second. What a process was killed between stands under a line ``begun``, which is written
before, and is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import output_error
from ..media import Whole, Written
from ..media.formats import PIPE, Entry
from .fingerprint import COPY, Job, kind_of_output
from .units import ImageUnit, Outcome, Unit, VideoUnit

if TYPE_CHECKING:
    from ..file_identity import FileIdentity
    from .plan import JobPlan

FOLDER = ".cyclegan-batch"
"""The job folder's name. Hidden, so that it is never an input of another job."""


def name_of(output: Path, root: Path) -> str:
    """Return an output's name in a journal: relative to the root, with ``/`` on every system."""
    return output.relative_to(root).as_posix()


def digest_of(name: str) -> str:
    """Return what stands for an output in the names of files: 16 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


class Journal:
    """The journal of one run, open for appending. An `Observer`; any thread may call it.

    Every method raises OutputError where the journal cannot be written, `published` and `ended`
    once only: a run that is being stopped for this reason must be able to end.
    """

    def __init__(self, plan: JobPlan) -> None:
        """Create the job folder and begin the journal of a run of ``plan``.

        Raises OutputError, and OutputInUseError where another run has the folder for itself.
        """
        assert plan.root is not None
        assert plan.folder is not None
        self._plan = plan
        self._root = plan.root
        self._path = plan.folder / journal_name(plan)
        self._run = secrets.token_hex(4)
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._failed = False
        self._begun: set[Path] = set()
        """Videos that are written down as begun."""
        self._whole: dict[Path, Written] = {}
        """Videos that have their name, and whose damage is not known before their end."""
        self._jobs = {job.kind: job for job in plan.jobs}
        self._job_of = {entry.output: self._job(entry) for entry in plan.entries}
        try:
            plan.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor: int | None = os.open(
                self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666
            )
        except OSError as error:
            raise output_error(self._path, error) from error
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _job(self, entry: Entry) -> Job:
        return self._jobs.get(kind_of_output(entry.kind), COPY)

    def _begin(self) -> None:
        lines: list[dict[str, object]] = [
            {
                "line": "run",
                "host": socket.gethostname(),
                "process": os.getpid(),
                "outputs": len(self._plan.entries) + len(self._plan.finished),
                "frames": self._plan.frames,
            }
        ]
        lines += [
            {
                "line": "job",
                "job": job.id,
                "kind": job.kind,
                "values": dict(job.values),
                "contexts": job.contexts,
            }
            for job in self._plan.jobs
        ]
        self._append(*lines)

    def began(self, unit: Unit) -> None:
        """Write down that work on ``unit`` begins, before any of its outputs gets its name."""
        outputs = [
            output
            for output in _outputs(unit)
            if output not in self._begun and not os.path.lexists(output)
        ]
        if not outputs:
            return
        if not isinstance(unit, ImageUnit):
            self._begun.update(outputs)
        jobs: dict[str, list[str]] = {}
        for output in outputs:
            jobs.setdefault(self._job_of[output].id, []).append(name_of(output, self._root))
        self._append(
            *({"line": "begun", "job": job, "outputs": names} for job, names in jobs.items()),
            flush=True,
        )

    def published(self, unit: Unit, items: Sequence[Whole]) -> None:
        """Take what has become whole of ``unit``."""
        files = [item for item in items if isinstance(item, Written)]
        if not isinstance(unit, ImageUnit):
            # A video is written down at its end, with what is missing from it.
            self._whole |= {item.path: item for item in files}
            return
        self._write_whole(files)

    def ended(self, outcome: Outcome) -> None:
        """Take the end of a unit, and what of it is missing or damaged."""
        for output in _outputs(outcome.unit):
            if written := self._whole.pop(output, None):
                self._write_whole([written])

    def copied(self, entry: Entry, identity: FileIdentity) -> None:
        """Take a file that was copied as it is (``--copy-others``)."""

    def close(self) -> None:
        """End the journal of this run. May be called again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _write_whole(self, files: Iterable[Written]) -> None:
        jobs: dict[str, list[object]] = {}
        for item in files:
            row = [
                name_of(item.path, self._root),
                _row(item.identity),
                item.source_size,
                item.size,
                item.bytes,
                item.sha256,
            ]
            jobs.setdefault(self._job_of[item.path].id, []).append(row)
        self._append(
            *({"line": "whole", "job": job, "outputs": each} for job, each in jobs.items())
        )

    def _append(self, *lines: Mapping[str, object], flush: bool = False) -> None:
        """Append lines by one write; ``flush`` them to the disk. Raises OutputError, once."""
        seconds = round(time.monotonic() - self._began, 3)
        text = "".join(
            json.dumps({**line, "run": self._run, "at": seconds}, separators=(",", ":")) + "\n"
            for line in lines
        )
        data = text.encode()
        with self._lock:
            if self._descriptor is None or self._failed or not data:
                return
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
                if flush:
                    os.fsync(self._descriptor)
            except OSError as error:
                self._failed = True
                raise output_error(self._path, error) from error


def journal_name(plan: JobPlan) -> str:
    """Return the name of the file in which a run of ``plan`` writes its journal."""
    if plan.output == plan.root:
        return "journal.jsonl"
    return f"{digest_of(plan.output.name)}.jsonl"


def _outputs(unit: Unit) -> list[Path]:
    if isinstance(unit, ImageUnit):
        return [entry.output for entry in unit.shard.entries]
    return [unit.plan.output] if isinstance(unit, VideoUnit) and unit.plan.output != PIPE else []


def _row(identity: FileIdentity | None) -> list[object] | None:
    return None if identity is None else [identity.size, identity.mtime_ns, identity.sha256]
