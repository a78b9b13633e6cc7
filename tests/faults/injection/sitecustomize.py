"""Faults in every process that starts with this folder on its PYTHONPATH.

The variable ``FAULTS`` holds a list of rules, as JSON. A rule names one operation on files by its
``call``: open (to write), write, fsync, rename, link, remove, mkdir, flock, or read (open to read);
``change`` stands for each of the first seven. It names the files by a regular expression that their
``path`` must contain; of a rename or a link that is the new name. Such an operation fails with the
error of the system that ``error`` names. Instead, ``kill`` sends the process SIGKILL, and ``hold``
lets it wait until the file of that name exists, after one with ``.held`` behind it was made.
``after`` lets that many operations pass first, and ``only_over`` all whose file does not exist yet.

``CLOCK`` holds seconds by which ``time.time`` is wrong, one number for each call in turn, so that
the clock jumps. ``COUNT`` holds the name of a file and an expression; the file receives a byte for
each change under a path that contains it.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import sys
import threading
import time

_CHANGES = {"open", "write", "fsync", "rename", "link", "remove", "mkdir"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_BUSY = threading.local()


class _Rule:
    def __init__(
        self,
        call: str,
        path: str,
        error: str = "ENOSPC",
        *,
        after: int = 0,
        kill: bool = False,
        hold: str | None = None,
        only_over: bool = False,
    ) -> None:
        self.calls = _CHANGES if call == "change" else {call}
        self.pattern = re.compile(path)
        self.number = getattr(errno, error)
        self.kill, self.hold, self.only_over = kill, hold, only_over
        self.seen, self.after = itertools.count(), after

    def check(self, call: str, path: str) -> None:
        """Fail, or die, where the rule says so."""
        if call not in self.calls or not self.pattern.search(path):
            return
        if self.only_over and not os.path.lexists(path):
            return
        if next(self.seen) < self.after:
            return
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        if self.hold is not None:
            os.close(os.open(f"{self.hold}.held", os.O_CREAT | os.O_WRONLY))
            while not os.path.exists(self.hold):  # noqa: PTH110
                time.sleep(0.005)
            return
        raise OSError(self.number, os.strerror(self.number), path)


class _Count:
    """Counts the changes under a pattern, by a byte for each in a file."""

    def __init__(self, file: str, pattern: str) -> None:
        self.pattern = re.compile(pattern)
        self.file = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def check(self, call: str, path: str) -> None:
        if call in _CHANGES and self.pattern.search(path):
            _WRITE(self.file, b".")


def _name(path: object) -> str:
    """Return a path as text; of an open file, where the system tells it."""
    if isinstance(path, int):
        try:
            return os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115 - text
        except OSError:
            return ""
    try:
        return os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # noqa: PTH100
    except TypeError:
        return ""


def _check(call: str, path: object) -> None:
    if getattr(_BUSY, "on", False):
        return
    _BUSY.on = True
    try:
        name = _name(path)
        for rule in _RULES:
            rule.check(call, name)
    finally:
        _BUSY.on = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and not isinstance(path, int):
            _check("open" if flags & _WRITES else "read", path)
    elif event == "os.rename":
        _check("rename", arguments[1])
    elif event == "os.link":
        _check("link", arguments[1])
    elif event in ("os.remove", "os.mkdir"):
        _check(event[3:], arguments[0])
    elif event == "fcntl.flock":
        _check("flock", arguments[0])


def _write(descriptor: int, data: bytes) -> int:
    _check("write", descriptor)
    return _WRITE(descriptor, data)


def _fsync(descriptor: int) -> None:
    _check("fsync", descriptor)
    # Only a power cut could tell, and thousands of them cost seconds.


_WRITE, _TIME = os.write, time.time
_RULES: list[_Rule | _Count] = [
    _Rule(**rule) for rule in json.loads(os.environ.get("FAULTS", "[]"))
]
if "COUNT" in os.environ:
    _RULES.append(_Count(*json.loads(os.environ["COUNT"])))
os.fsync = _fsync
if _RULES:
    os.write = _write  # type: ignore[assignment]
    sys.addaudithook(_hook)
if "CLOCK" in os.environ:
    _OFFSETS = json.loads(os.environ["CLOCK"])
    _CALLS = itertools.count()
    time.time = lambda: _TIME() + _OFFSETS[next(_CALLS) % len(_OFFSETS)]
    time.time_ns = lambda: int(time.time() * 1e9)
