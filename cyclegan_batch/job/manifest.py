"""The manifest of a job: a line of JSON for each input, with what became of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import output_error, writing
from ..media.formats import PIPE, Entry
from ..wording import printable
from .job_folder import name_of
from .standing import read_record

if TYPE_CHECKING:
    from .plan import JobPlan
    from .report import Report


def write_manifest(plan: JobPlan, report: Report, path: Path) -> None:
    """Write a line for each input of the job, those included that needed no work.

    The file gets its name when it is whole; a pipe or a device is written to as it is. Raises
    OutputError.
    """
    lines = (json.dumps(row) + "\n" for row in manifest(plan, report))
    if path.exists() and not path.is_file():
        try:
            with path.open("w") as file:
                file.writelines(lines)
        except OSError as error:
            raise output_error(path, error) from error
        return
    with writing(path, overwrite=True) as partial, partial.open("w") as file:
        file.writelines(lines)


def manifest(plan: JobPlan, report: Report) -> Iterator[dict[str, object]]:
    """Yield what became of each input, in order.

    ``input``, ``output``: as text; bytes of names that are not UTF-8 are lone surrogates.
    ``input_size``, ``output_size``: height and width. ``bytes``, ``sha256``: of the output.
    ``status``: ``done`` by this run, ``up to date`` since an earlier one, ``skipped`` (``-n``),
    ``failed``, or ``left`` where the run ended before. ``reason``: why it failed or was skipped,
    or what is damaged in it. What is not known is None.
    """
    # The journal holds what the run itself has forgotten: a million outputs are only text there.
    record = read_record(plan.folder, plan.everything, plan.root)
    written, finished, left = set(report.outputs), set(report.up_to_date), set(plan.left)
    failures = {failure.name: failure.cause for failure in reversed(report.failures)}
    for entry in plan.everything:
        name = None if plan.root is None else name_of(entry.output, plan.root)
        whole = None if name is None else record.whole(name)
        reason = None
        if entry.output in finished or entry.output in written:
            status = "done" if entry.output in written else "up to date"
            if whole is not None and whole.failures:
                reason = whole.failures[0].cause
        elif entry.output in left:
            status, reason, whole = "skipped", "exists already", None
        elif (cause := _failure(entry, failures)) is not None:
            status, reason, whole = "failed", cause, None
        elif plan.options.skip_existing and _exists(entry.output):
            status, reason, whole = "skipped", "was written by another process", None
        else:
            status, whole = "left", None
        yield {
            "input": str(entry.source),
            "output": str(entry.output),
            "input_size": None if whole is None else whole.source_size,
            "output_size": None if whole is None else whole.size,
            "bytes": None if whole is None else whole.bytes,
            "sha256": None if whole is None else whole.sha256,
            "status": status,
            "reason": reason,
        }


def _failure(entry: Entry, failures: dict[str, str]) -> str | None:
    if not failures:
        return None
    return failures.get(printable(entry.source)) or failures.get(printable(entry.output))


def _exists(output: Path) -> bool:
    return output != PIPE and os.path.lexists(output)
