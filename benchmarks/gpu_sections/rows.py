"""Rows: the measurements, one line of JSON each, written to the file at once.

The processes of the sections write rows, and the command reads them. This module does not import
torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

LONG = 60
"""From this number of characters on, a value is not a cell of a table but a line below it."""


class NotRunError(Exception):
    """A section or row cannot be measured here, for a reason other than a defect."""


@dataclass(frozen=True)
class Notebook:
    """The file to which the rows of one run on one card are written."""

    file: Path
    run: str
    """Distinguishes the rows of this run from those of earlier runs in the same file."""
    card: str

    def write(self, section: str, name: str, **values: Any) -> None:
        """Append a row, floats rounded to four digits."""
        short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
        row = {"run": self.run, "card": self.card, "section": section, "name": name, **short}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return this run's rows. Incomplete lines, of processes that were killed, are skipped."""
        return [row for row in _parsed(self.file) if row.get("run") == self.run]


def write_rows(
    notebook: Notebook,
    section: str,
    jobs: Iterable[tuple[str, Callable[[], dict[str, Any]]]],
    *,
    clock: Callable[[], float],
    end: float,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Run the jobs of a section in order while there is time; a failed job costs only its own row.

    A job starts if at least half the time that the previous one took is left. ``after`` is called
    after each row. An exception from it ends the section, since a lost CUDA context stays lost.
    """
    took = 0.0
    for name, job in jobs:
        begin = clock()
        if begin + took / 2 > end:
            notebook.write(section, name, not_run="no time was left")
            continue
        values: dict[str, Any]
        try:
            values = job()
        except NotRunError as reason:
            values = {"not_run": str(reason)}
        except Exception as error:
            values = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
        took = clock() - begin
        notebook.write(section, name, **values, s=round(took, 1))
        after()


def markdown(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as RESULTS.md holds them: a heading for each section and card, and its tables."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:  # rows of the background section lie between the others
        parts.setdefault(f"### {row['section']}, {row['card']}", []).append(row)
    return "".join(f"{heading}\n\n{''.join(_tables(part))}" for heading, part in parts.items())


def committed(text: str) -> set[tuple[str, str]]:
    """Return the pairs of section and card with a measured row in ``text``, a RESULTS.md."""
    pairs: set[tuple[str, str]] = set()
    heading, lines_of_table = None, 0
    for line in text.splitlines():
        if line.startswith("#"):
            section, comma, card = line.removeprefix("### ").partition(", ")
            heading = (section, card.strip()) if line.startswith("### ") and comma else None
        lines_of_table = lines_of_table + 1 if line.startswith("|") else 0
        # The first two lines of a table are its head.
        if heading is not None and lines_of_table > 2:
            pairs.add(heading)
    return pairs


def _parsed(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for line in file.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # UnicodeDecodeError is one, too
            continue
        if isinstance(row, dict) and {"section", "name", "card"} <= row.keys():
            yield row


def _tables(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table for each group of adjacent rows with equal columns; other values as lines."""
    for columns, group in groupby(rows, _columns):
        same = list(group)
        if columns:
            yield _line(["", *columns]) + _line("---" for _ in ["", *columns])
            yield from (_line([row["name"], *(row[c] for c in columns)]) for row in same)
            yield "\n"
        for row in same:
            for key, value in row.items():
                if isinstance(value, list) and value:
                    lines = "".join(f"    {each}\n" for each in value)
                    yield f"{row['name']}, {key}:\n\n{lines}\n"
                elif key not in (*columns, *_HIDDEN) and value != []:
                    yield f"{row['name']}: {key.replace('_', ' ')}: {value}\n\n"


_HIDDEN = ("run", "card", "section", "name", "s")


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    """Return the columns of a row; a row that failed or was not run has none."""
    if "error" in row or "not_run" in row:
        return ()
    return tuple(
        key
        for key, value in row.items()
        if key not in _HIDDEN and not isinstance(value, list) and len(str(value)) < LONG
    )


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |\n"
