"""Hand over many items that are worked on side by side, behind the one who hands them over.

A request to a store takes far longer than the work that it makes, so many are under way at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .ahead import MOST_BYTES, REQUESTS

Item = TypeVar("Item")


class Behind(Generic[Item]):
    """Calls a function for each item, in a thread of its own, `REQUESTS` at most.

    To start one took 0.07 ms of the CPU. The threads are daemons: one that waits for a store that
    does not answer keeps no process from ending.
    """

    def __init__(self, function: Callable[[Item], None]) -> None:
        self._function = function
        self._changed = threading.Condition()
        self._ended: list[tuple[Item, BaseException | None]] = []
        self._threads = 0
        self._bytes = 0
        """Of the items that are under way."""

    def add(self, item: Item, weight: int) -> None:
        """Hand over an item of ``weight`` bytes; wait where too much is under way."""
        with self._changed:
            while self._threads == REQUESTS or (
                self._threads and self._bytes + weight > MOST_BYTES
            ):
                self._changed.wait()
            self._threads += 1
            self._bytes += weight
        threading.Thread(target=self._work, args=(item, weight), daemon=True).start()

    def ended(self) -> list[tuple[Item, BaseException | None]]:
        """Return the items that have ended since the last call, and what their calls raised."""
        with self._changed:
            ended, self._ended = self._ended, []
        return ended

    def finish(self, patience: float | None = None) -> None:
        """Wait until all items have ended, ``patience`` seconds at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._threads, patience)

    def _work(self, item: Item, weight: int) -> None:
        error: BaseException | None = None
        try:
            self._function(item)
        except BaseException as problem:
            error = problem
        with self._changed:
            self._ended.append((item, error))
            self._threads -= 1
            self._bytes -= weight
            self._changed.notify_all()
