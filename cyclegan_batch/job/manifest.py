"""The manifest of a job: a row for each input, with what became of it, as lines of JSON or Parquet.

Both have the same columns, those of `manifest`. Parquet adds two for names that are not UTF-8.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from ..errors import missing_extra
from ..files import exists, output_error, writing
from ..media.formats import PIPE, Entry
from ..media.pattern import numbered_files
from ..wording import printable
from .job_folder import name_of
from .standing import read_record

if TYPE_CHECKING:
    from .journal_lines import WholeOutput
    from .plan import JobPlan
    from .report import Report

Row: TypeAlias = dict[str, object]

_GROUP = 1 << 16
"""Rows of a row group: a reader takes a group at once, and the writer holds one."""
_SLICE = 1 << 12
"""Rows that are Python objects at once."""


def write_manifest(plan: JobPlan, report: Report, path: Path) -> None:
    """Write a row for each input of the job, those included that needed no work.

    The suffix ``.parquet`` asks for Parquet, any other name for lines of JSON. The file gets its
    name when it is whole; a pipe or a device is written to as it is. Raises OutputError, and
    BackendUnavailableError as `check_format` does.
    """
    check_format(path)
    write = _write_parquet if _is_parquet(path) else _write_lines
    rows = manifest(plan, report)
    if path.exists() and not path.is_file():
        try:
            with path.open("wb") as file:
                write(file, rows)
        except OSError as error:
            raise output_error(path, error) from error
        return
    with writing(path, overwrite=True) as partial, partial.open("wb") as file:
        write(file, rows)


def check_format(path: Path) -> None:
    """Raise BackendUnavailableError where ``path`` is Parquet and pyarrow is not installed."""
    if _is_parquet(path):
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            doing = f"write {printable(path)}"
            raise missing_extra("parquet", error, doing=doing, package="pyarrow") from error


def manifest(plan: JobPlan, report: Report) -> Iterator[Row]:
    """Yield what became of each input, in order.

    ``input``, ``output``: as text; bytes of names that are not UTF-8 are lone surrogates.
    ``input_size``, ``output_size``: height and width. ``bytes``, ``sha256``: of the output.
    ``frames``: how many frames or images were translated. ``damaged``: how many frames, packets or
    images are missing from the output or damaged in it. ``status``: ``done`` by this run, ``up to
    date`` since an earlier one, ``skipped`` (``-n``), ``failed``, or ``left`` where the run ended
    before. ``reason``: why it failed or was skipped, or what is damaged in it first.
    ``failures``: everything that is missing or damaged, a sentence for each kind of damage with its
    places. What is not known is None.
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
        elif plan.options.skip_existing and _exists(entry):
            status, reason, whole = "skipped", "was written by another process", None
        else:
            status, whole = "left", None
        causes = [] if whole is None else [failure.cause for failure in whole.failures]
        yield {
            "input": str(entry.source),
            "output": str(entry.output),
            "input_size": None if whole is None else whole.source_size,
            "output_size": None if whole is None else whole.size,
            "bytes": None if whole is None else whole.bytes,
            "sha256": None if whole is None else whole.sha256,
            "frames": None if whole is None else _frames(entry, whole),
            "damaged": None if whole is None else sum(each.count for each in whole.failures),
            "status": status,
            "reason": reason,
            "failures": [reason] if status == "failed" else causes,
        }


def _frames(entry: Entry, whole: WholeOutput) -> int | None:
    return 1 if entry.kind == "image" else whole.translated


def _failure(entry: Entry, failures: dict[str, str]) -> str | None:
    if not failures:
        return None
    return failures.get(printable(entry.source)) or failures.get(printable(entry.output))


def _exists(entry: Entry) -> bool:
    if entry.is_numbered:
        return bool(numbered_files(entry.output))
    return entry.output != PIPE and exists(entry.output)


# Lines of JSON


def _write_lines(file: IO[bytes], rows: Iterator[Row]) -> None:
    """Write a line for each row. Raises OSError."""
    file.writelines(json.dumps(row).encode() + b"\n" for row in rows)


# Parquet


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


_COLUMNS = {
    "input": "string",
    "input_bytes": "binary",
    "output": "string",
    "output_bytes": "binary",
    "input_size": "size",
    "output_size": "size",
    "bytes": "int64",
    "sha256": "string",
    "frames": "int64",
    "damaged": "int64",
    "status": "string",
    "reason": "string",
    "failures": "strings",
}
"""The columns of Parquet, which has text in UTF-8 only.

In the text of a name, a byte that is not UTF-8 is written as in the lines of JSON: ``\\udcff`` is
the byte ff. ``input_bytes`` and ``output_bytes`` then hold the name itself; else they are null.
"""


def _write_parquet(file: IO[bytes], rows: Iterator[Row]) -> None:
    """Write Parquet in row groups of `_GROUP` rows, compressed by zstd. Raises OSError."""
    import pyarrow
    from pyarrow import parquet

    types = {
        "string": pyarrow.string(),
        "binary": pyarrow.binary(),
        "int64": pyarrow.int64(),
        "strings": pyarrow.list_(pyarrow.string()),
        "size": pyarrow.list_(pyarrow.int32()),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in _COLUMNS.items()])
    slices = iter(lambda: [_portable(row) for row in itertools.islice(rows, _SLICE)], [])
    batches = (pyarrow.RecordBatch.from_pylist(rows, schema) for rows in slices)
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(itertools.islice(batches, _GROUP // _SLICE)):
            writer.write_table(pyarrow.Table.from_batches(group, schema), row_group_size=_GROUP)


def _portable(row: Row) -> Row:
    """Return a row whose texts are UTF-8, with the two columns of names that are not."""
    portable = {name: _as_utf8(value) for name, value in row.items()}
    for name in ("input", "output"):
        if portable[name] != row[name]:
            portable[f"{name}_bytes"] = os.fsencode(str(row[name]))
    return portable


def _as_utf8(value: object) -> object:
    if isinstance(value, list):
        return [_as_utf8(each) for each in value]
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return value
