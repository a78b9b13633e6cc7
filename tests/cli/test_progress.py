"""Progress on stderr, on fakes: every note once, the live line in the columns that there are."""

from __future__ import annotations

import io
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len

from cyclegan_batch.cli import progress
from cyclegan_batch.cli.progress import Reporter, live_line
from cyclegan_batch.errors import InputError
from cyclegan_batch.job.units import Counters, Failure, Stage
from cyclegan_batch.wording import Note, clock, printable


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> FakeTerminal:
    stream = FakeTerminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_columns", lambda: 80)
    return stream


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("time.monotonic", fake)
    return fake


def counters(**changes: Any) -> Counters:
    names = ("read", "to rgb", "network", "from rgb", "write")
    state = Counters(stages={name: Stage(1) for name in names})
    for name, value in changes.items():
        setattr(state, name, value)
    return state


def busy(now: Clock, unit: str = "folder/clip.mp4") -> Counters:
    """Return the state after 10 s: 50 frames, the network does most."""
    state = counters(frames_done=50, unit=unit, started=now.now)
    state.stages["network"].busy_seconds = 9.0
    state.stages["write"].busy_seconds = 3.0
    now.now += 10
    return state


@pytest.mark.behaviour(29)
def test_a_line_tells_frames_rate_time_left_and_the_stage_that_limits(
    log: io.StringIO, now: Clock
) -> None:
    reporter = Reporter("plain", total=200)
    state = busy(now)
    state.failures.append(Failure("a", InputError("b")))
    reporter.watch(state)
    assert log.getvalue() == (
        "50/200 frames, 5.0 frames/s, 0:00:30 left, 1 failed, limited by network\n"
    )


@pytest.mark.behaviour(29)
def test_plain_lines_come_every_five_seconds_and_json_every_second(
    log: io.StringIO, now: Clock
) -> None:
    for mode, lines in (("plain", 2), ("json", 10)):
        log.seek(0)
        log.truncate()
        reporter = Reporter(mode, total=200)  # type: ignore[arg-type]
        state = counters(frames_done=1)
        for _ in range(100):
            now.now += 0.1000001
            reporter.watch(state)
        assert len(log.getvalue().splitlines()) == lines


@pytest.mark.behaviour(29)
def test_json_events_hold_numbers_and_are_silent_about_what_is_unknown(
    log: io.StringIO, now: Clock
) -> None:
    reporter = Reporter("json")
    reporter.watch(busy(now))
    reporter.say("a note")
    reporter.insist("an error")
    progressed, note, error = map(json.loads, log.getvalue().splitlines())
    assert progressed == {
        "event": "progress",
        "workers": 1,
        "unit": "folder/clip.mp4",
        "frames": 50,
        "total": None,
        "rate": 5.0,
        "seconds_left": None,
        "limited_by": "network",
        "failures": 0,
    }
    assert (note, error) == (
        {"event": "note", "text": "a note"},
        {"event": "error", "text": "an error"},
    )


def test_the_time_left_is_never_negative(log: io.StringIO, now: Clock) -> None:
    Reporter("plain", total=20).watch(state := busy(now))
    assert state.frames_done > 20
    assert "0:00:00 left" in log.getvalue()


def test_everything_is_said_once(log: io.StringIO) -> None:
    reporter = Reporter("plain")
    one, two, zero = (Note(None, text) for text in ("one", "two", "zero"))
    state = counters(notes=[one])
    reporter.say("zero")
    reporter.watch(state)
    state.notes += [two, zero, one]
    reporter.watch(state)
    reporter.watch(state)
    assert log.getvalue() == "zero\none\ntwo\n"
    assert state.notes == [one, two, zero, one]  # the report holds them, too


def test_the_quiet_hear_only_what_is_missing(log: io.StringIO, now: Clock) -> None:
    reporter = Reporter("auto", total=9, quiet=True)
    reporter.say("a note")
    reporter.watch(busy(now))
    reporter.insist("missing")
    assert log.getvalue() == "missing\n"


def test_without_progress_notes_are_still_said(log: io.StringIO, now: Clock) -> None:
    reporter = Reporter("none", total=9)
    reporter.say("a note")
    reporter.watch(busy(now))
    assert log.getvalue() == "a note\n"


@pytest.mark.parametrize("mode", ["plain", "json"])
def test_a_reader_that_has_gone_does_not_stop_the_run(
    mode: str, now: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=Gone()))
    reporter = Reporter(mode, total=9)  # type: ignore[arg-type]
    reporter.say("a note")
    reporter.watch(busy(now))
    reporter.close()


# The live line


@pytest.mark.behaviour(29)
def test_the_live_line_is_one_line_that_the_next_one_covers(
    terminal: FakeTerminal, now: Clock
) -> None:
    reporter = Reporter(total=200)
    state = busy(now)
    for _ in range(3):
        reporter.watch(state)
    reporter.say("a note")
    reporter.watch(state)
    reporter.close()
    reporter.close()
    drawn = terminal.getvalue()
    assert drawn.count("\n") == 1
    # Erased before the note is printed in its place, and at the end; the cursor stays visible.
    assert "\r\x1b[Ka note\n\r" in drawn
    assert drawn.endswith("\r\x1b[K")
    assert "\x1b[?25l" not in drawn


@pytest.mark.parametrize("how", ["no terminal", "dumb", "plain", "quiet"])
def test_nothing_is_drawn_where_nobody_watches(
    how: str, terminal: FakeTerminal, now: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "no terminal":
        terminal.isatty = lambda: False  # type: ignore[method-assign]
    if how == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    reporter = Reporter("plain" if how == "plain" else "auto", total=9, quiet=how == "quiet")
    reporter.watch(busy(now))
    reporter.close()
    assert "\r" not in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


@pytest.mark.behaviour(17, 29)
@pytest.mark.parametrize(
    "name",
    ["clip.mp4", "[red]a[/b].mp4", "🐎🦓" * 30, "x" * 250, os.fsdecode(b"\xff\xfe.mp4"), ""],
    ids=["plain", "brackets", "emoji", "long", "bytes", "none"],
)
def test_the_live_line_fits_every_width(name: str, now: Clock) -> None:
    state = busy(now, unit=f"folder/{name}")
    for columns in range(1, 200):
        line = live_line(state, 200, columns)
        assert cell_len(line) <= columns
        line.encode()
        if columns >= 40:
            assert "50/200" in line
            assert "0:00:30 left" in line
            assert "network" in line


def test_what_goes_first_where_there_is_little_room(now: Clock) -> None:
    state = busy(now, unit="folder/[a] long name of a clip.mp4")
    numbers = "50/200 frames, 5.0 frames/s, 0:00:30 left, limited by network"
    assert live_line(state, 200, 130) == (
        f"[a] long name of a clip.mp4 ━━━━━━────────────────── {numbers}"
    )
    assert live_line(state, 200, 79) == f"[a] long name of… {numbers}"
    assert live_line(state, 200, 49) == "[a] long na… 50/200, 5.0/s, 0:00:30 left, network"
    assert live_line(state, 200, 36) == "50/200, 5.0/s, 0:00:30 left, network"
    assert live_line(state, 200, 20) == "50/200, 5.0/s, 0:00:"


def test_several_workers_are_told_in_every_form(now: Clock) -> None:
    state = counters(frames_done=50, started=90.0, workers=3, unit="clip.mp4")
    assert "50/100 frames, 5.0 frames/s, 3 workers, " in progress.live_line(state, 100, 100)
    assert "50/100, 5.0/s, ×3, " in progress.live_line(state, 100, 40)
    assert progress._state(state, 100)["workers"] == 3
    assert "worker" not in progress.live_line(counters(frames_done=50, started=90.0), 100, 100)


def test_clock_counts_hours_beyond_a_day() -> None:
    assert [clock(seconds) for seconds in (0, 0.6, 59.4, 61, 3600 * 30 + 62)] == [
        "0:00:00",
        "0:00:01",
        "0:00:59",
        "0:01:01",
        "30:01:02",
    ]


@pytest.mark.behaviour(17)
def test_printable_spells_what_is_not_utf8_and_keeps_the_rest() -> None:
    assert printable("[a] %s 🐎 é") == "[a] %s 🐎 é"
    assert printable(os.fsdecode(b"a\xff.png")) == r"a\xff.png"
    assert printable("\ud800") == r"\ud800"
