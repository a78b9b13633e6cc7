"""A disk of a few kilobytes that fills up: a file system in memory, seen by its commands only."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.faults import jobs
from tests.faults.jobs import Ended, Start

UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
"""Starts a command in file systems of its own, which takes no rights on most kernels."""


class SmallDisk:
    """A file system in memory of ``size`` bytes, mounted at ``path`` for its commands alone."""

    def __init__(self, start: Start, path: Path, size: int) -> None:
        path.mkdir()
        self.path = path
        script = f'mount -t tmpfs -o size={size} none "$0" && echo ready && exec sleep 600'
        self._holder = start([*UNSHARE, "sh", "-c", script, path], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.seen = Path(f"/proc/{self._holder.pid}/root{path.resolve()}")
        """The same folder as processes outside see it."""

    def fill(self, leave: int) -> None:
        """Fill the disk up, so that ``leave`` bytes are free."""
        filler = self.seen / "filler"
        step = 1 << 20
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(step)) == step:
                    pass
            except OSError:
                pass
            file.truncate(file.tell() - leave)

    def free(self) -> None:
        """Remove what `fill` wrote."""
        (self.seen / "filler").unlink()

    def translate(self, *words: str | Path) -> Ended:
        """Run ``translate`` where the disk is mounted."""
        into = ["nsenter", f"--target={self._holder.pid}", "--user", "--mount"]
        begin = time.monotonic()
        with subprocess.Popen(
            [*into, "--preserve-credentials", *jobs.command(*words)],
            env=jobs.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            return jobs.ended(process, begin)
