"""Tell whoever waits, on stderr: live on a terminal, lines elsewhere, JSON for scripts."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

from .pipeline import Counters

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Mode = Literal["auto", "plain", "json", "none"]

_PLAIN_EVERY = 5.0
"""Seconds between two lines where nobody watches live."""
_JSON_EVERY = 1.0


def printable(text: str) -> str:
    """Return ``text`` with bytes that are not UTF-8 written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Reporter:
    """Shows `Counters` while a run goes on, and says things once."""

    def __init__(
        self, mode: Mode = "auto", *, total: int | None = None, quiet: bool = False
    ) -> None:
        if mode == "auto":
            mode = "plain"
            self._live = sys.stderr.isatty() and not quiet
        else:
            self._live = False
        self.mode, self.quiet, self.total = mode, quiet, total
        self.said: list[str] = []
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._next = time.monotonic() + (_JSON_EVERY if mode == "json" else _PLAIN_EVERY)

    def say(self, text: str) -> None:
        """Say a sentence once."""
        if text in self.said:
            return
        self.said.append(text)
        if self.mode == "json":
            self._line({"event": "note", "text": text})
        elif not self.quiet:
            self._print(text)

    def watch(self, counters: Counters) -> None:
        """Show the state; called about ten times a second."""
        while counters.notes:
            self.say(counters.notes.popleft())
        if self.mode == "none" or (self.quiet and self.mode != "json"):
            return
        if self._live:
            self._draw(counters)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + (_JSON_EVERY if self.mode == "json" else _PLAIN_EVERY)
            if self.mode == "json":
                self._line({"event": "progress"} | _state(counters, self.total))
            else:
                self._print(_sentence(counters, self.total))

    def close(self) -> None:
        """Leave the terminal as it was; twice is fine."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _draw(self, counters: Counters) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TextColumn

        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[state]}"),
                console=Console(stderr=True),
                transient=True,
                refresh_per_second=8,
            )
            self._task = self._progress.add_task("", total=self.total, state="")
            self._progress.start()
        assert self._task is not None
        self._progress.update(
            self._task,
            description=escape(_shortened(printable(counters.unit))),
            completed=counters.frames_done,
            state=escape(_sentence(counters, self.total)),
        )

    def _print(self, text: str) -> None:
        text = printable(text)
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _line(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=sys.stderr, flush=True)


def _state(counters: Counters, total: int | None) -> dict[str, Any]:
    rate = counters.frames_done / counters.seconds if counters.seconds else 0.0
    left = (total - counters.frames_done) / rate if total and rate else None
    return {
        "unit": counters.unit,
        "frames": counters.frames_done,
        "total": total,
        "rate": round(rate, 3),
        "seconds_left": None if left is None else round(max(0.0, left), 1),
        "limited_by": counters.limiting_stage(),
        "failures": len(counters.failures),
    }


def _sentence(counters: Counters, total: int | None) -> str:
    state = _state(counters, total)
    parts = [f"{state['frames']}/{total} frames" if total else f"{state['frames']} frames"]
    parts.append(f"{state['rate']:.1f} frames/s")
    if state["seconds_left"] is not None:
        parts.append(f"{clock(state['seconds_left'])} left")
    if state["limited_by"]:
        parts.append(f"limited by {state['limited_by']}")
    if state["failures"]:
        parts.append(f"{state['failures']} failed")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Return ``seconds`` as ``h:mm:ss``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _shortened(name: str, length: int = 32) -> str:
    name = name.rsplit("/", 1)[-1]
    return name if len(name) <= length else f"{name[: length - 1]}…"
