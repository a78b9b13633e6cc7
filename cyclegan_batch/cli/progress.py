"""Progress on stderr: a live line on a terminal, plain lines elsewhere, JSON for scripts."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypedDict

from ..wording import clock, grouped, printable

if TYPE_CHECKING:
    from ..job.units import Counters

Mode = Literal["auto", "plain", "json", "none"]

_PLAIN_INTERVAL = 5.0
"""Seconds between two plain lines."""
_JSON_INTERVAL = 1.0
_BAR_COLUMNS = 24
"""The length of the bar; where there is room for less than half of it, it is left out."""
_NAME_COLUMNS = 32
"""The longest part of a file's name that is shown."""
_LEAST_NAME_COLUMNS = 10
"""With fewer columns the name is left out."""


class _State(TypedDict):
    """The state of a run as ``--progress json`` prints it."""

    unit: str
    workers: int
    """Processes that work side by side."""
    frames: int
    total: int | None
    rate: float
    """Frames per second."""
    seconds_left: float | None
    limited_by: str | None
    failures: int


class Reporter:
    """Shows `Counters` while a run goes on, and prints each note once.

    The live line is drawn by the calling thread and without hiding the cursor, so that the terminal
    stays usable however the process ends. The run goes on where standard error is closed.
    """

    def __init__(
        self, mode: Mode = "auto", *, total: int | None = None, quiet: bool = False
    ) -> None:
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        self._live = mode == "auto" and not quiet and not dumb and sys.stderr.isatty()
        self.mode: Mode = "plain" if mode == "auto" else mode
        self.quiet, self.total = quiet, total
        self._sentences: set[str] = set()
        """Those printed so far."""
        self._notes_shown = 0
        self._line_drawn = False
        self._next = time.monotonic() + self._interval
        """When the next plain or JSON line is due."""

    def say(self, text: str) -> None:
        """Print a sentence, unless it was printed before."""
        if text in self._sentences:
            return
        self._sentences.add(text)
        if self.mode == "json":
            self._line({"event": "note", "text": text})
        elif not self.quiet:
            self._print(text)

    def insist(self, text: str) -> None:
        """Print what failed, and why, even with ``quiet``."""
        if self.mode == "json":
            self._line({"event": "error", "text": text})
        else:
            self._print(text)

    def watch(self, counters: Counters) -> None:
        """Show the state of a run; called about ten times a second."""
        notes = counters.notes[self._notes_shown :]
        self._notes_shown += len(notes)
        for sentence in grouped(notes):
            self.say(sentence)
        total, shown = self.total, counters
        if counters.comparing is not None:
            shown = counters.comparing
            total = shown.expected
        self.show(
            lambda columns: live_line(shown, total, columns),
            lambda: f"{'comparing: ' if shown is not counters else ''}{_sentence(shown, total)}",
            lambda: _state(shown, total),
        )

    def show(
        self,
        line: Callable[[int], str],
        sentence: Callable[[], str],
        state: Callable[[], Mapping[str, object]],
    ) -> None:
        """Show a state of any kind, in the form and as often as the mode requires.

        ``line`` returns the state in at most as many columns as it is given, ``sentence`` as a
        plain line, ``state`` as values for JSON. Only the one for the form that is shown is called.
        """
        if self.mode == "none" or (self.quiet and self.mode != "json"):
            return
        if self._live:
            # A full line would wrap on some terminals, so the last column stays empty.
            self._write(f"\r{line(_columns() - 1)}\x1b[K")
            self._line_drawn = True
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            if self.mode == "json":
                self._line({"event": "progress", **state()})
            else:
                self._print(sentence())

    def close(self) -> None:
        """Remove the live line from the terminal. A second call does nothing."""
        if self._line_drawn:
            self._write("\r\x1b[K")
            self._line_drawn = False

    @property
    def _interval(self) -> float:
        return _JSON_INTERVAL if self.mode == "json" else _PLAIN_INTERVAL

    def _print(self, text: str) -> None:
        self.close()
        self._write("\n".join(map(printable, text.split("\n"))) + "\n")

    def _line(self, content: Mapping[str, object]) -> None:
        self._write(json.dumps(content) + "\n")

    def _write(self, text: str) -> None:
        # A closed pipe or a log on a full disk is no reason to stop the run.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()


def live_line(counters: Counters, total: int | None, columns: int) -> str:
    """Return the state in one line of at most ``columns`` columns: name, bar, numbers.

    Where there is too little room the bar is left out first, then words, then the name.
    """
    from rich.cells import cell_len, set_cell_size

    numbers = _sentence(counters, total)
    if columns - cell_len(numbers) - 1 < _LEAST_NAME_COLUMNS:
        numbers = _sentence(counters, total, brief=True)
    room = columns - cell_len(numbers) - 1
    if room < _LEAST_NAME_COLUMNS:
        return set_cell_size(numbers, columns).rstrip() if cell_len(numbers) > columns else numbers
    name = _shortened(printable(counters.unit), min(room, _NAME_COLUMNS))
    parts = [name] if name else []
    bar = min(room - cell_len(name) - 1, _BAR_COLUMNS)
    if total and bar >= _BAR_COLUMNS // 2:
        full = round(bar * min(1.0, counters.frames_done / total))
        parts.append("━" * full + "─" * (bar - full))
    return " ".join([*parts, numbers])


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _state(counters: Counters, total: int | None) -> _State:
    rate = counters.frames_done / counters.seconds if counters.seconds else 0.0
    left = (total - counters.frames_done) / rate if total and rate else None
    return {
        "unit": counters.unit,
        "workers": counters.workers,
        "frames": counters.frames_done,
        "total": total,
        "rate": round(rate, 3),
        "seconds_left": None if left is None else round(max(0.0, left), 1),
        "limited_by": counters.limiting_stage(),
        "failures": counters.failed,
    }


def _sentence(counters: Counters, total: int | None, *, brief: bool = False) -> str:
    state = _state(counters, total)
    count = f"{state['frames']}/{total}" if total else f"{state['frames']}"
    parts = [count if brief else f"{count} frames"]
    parts.append(f"{state['rate']:.1f}/s" if brief else f"{state['rate']:.1f} frames/s")
    if state["workers"] > 1:
        parts.append(f"×{state['workers']}" if brief else f"{state['workers']} workers")
    if state["seconds_left"] is not None:
        parts.append(f"{clock(state['seconds_left'])} left")
    if state["failures"]:
        parts.append(f"{state['failures']} failed")
    if state["limited_by"]:
        parts.append(state["limited_by"] if brief else f"limited by {state['limited_by']}")
    return ", ".join(parts)


def _shortened(name: str, columns: int) -> str:
    """Return the file's name in at most ``columns`` columns; a wide character takes two."""
    from rich.cells import cell_len, set_cell_size

    name = name.rsplit("/", 1)[-1]
    if cell_len(name) <= columns:
        return name
    return set_cell_size(name, columns - 1).rstrip() + "…"
