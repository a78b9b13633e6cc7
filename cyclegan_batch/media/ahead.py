"""Do the same with many items side by side, ahead of the one who takes the results, in order.

A request to a store takes far longer than the work on its answer, so many are under way at once.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

REQUESTS = 32
"""Requests to a store that are under way at once."""

MOST_BYTES = 64 << 20
"""Bytes that are under way or wait, at most, unless a single item has more."""


def ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    weigh: Callable[[Item], int] = lambda item: 0,
    threads: int = REQUESTS,
) -> Generator[tuple[Item, Result]]:
    """Yield each item with ``function`` of it, in order; ``threads`` compute them ahead.

    ``weigh`` returns about how many bytes the result of an item has: as many items are begun as
    weigh `MOST_BYTES`, but no more than two for each thread. ``items`` are taken in the thread of
    the caller. What ``function`` raises is raised in the place of its item.

    When the generator is closed, what is not begun is left undone. The threads are daemons: one
    that waits for a store that does not answer keeps no process from ending.
    """
    tasks: queue.SimpleQueue[_Task[Item, Result] | None] = queue.SimpleQueue()
    begun: deque[_Task[Item, Result]] = deque()
    stopped = threading.Event()
    started = 0
    weight = 0
    rest = iter(items)
    try:
        upcoming: _Task[Item, Result] | None = _next(rest, weigh)
        while begun or upcoming is not None:
            while upcoming is not None and len(begun) < 2 * threads:
                if begun and weight + upcoming.weight > MOST_BYTES:
                    break
                begun.append(upcoming)
                weight += upcoming.weight
                tasks.put(upcoming)
                if started < threads:
                    work = threading.Thread(
                        target=_work, args=(function, tasks, stopped), name="ahead", daemon=True
                    )
                    work.start()
                    started += 1
                upcoming = _next(rest, weigh)
            task = begun.popleft()
            task.done.wait()
            if task.error is not None:
                raise task.error
            (result,) = task.result
            yield task.item, result
            weight -= task.weight
            del task, result
    finally:
        stopped.set()
        for _ in range(started):
            tasks.put(None)


class _Task(Generic[Item, Result]):
    """An item, and what became of it."""

    def __init__(self, item: Item, weight: int) -> None:
        self.item, self.weight = item, weight
        self.done = threading.Event()
        self.result: tuple[Result, ...] = ()
        self.error: BaseException | None = None


def _next(rest: Iterable[Item], weigh: Callable[[Item], int]) -> _Task[Item, Result] | None:
    for item in rest:
        return _Task(item, weigh(item))
    return None


def _work(
    function: Callable[[Item], Result],
    tasks: queue.SimpleQueue[_Task[Item, Result] | None],
    stopped: threading.Event,
) -> None:
    while (task := tasks.get()) is not None:
        if stopped.is_set():
            continue
        try:
            task.result = (function(task.item),)
        except BaseException as error:
            task.error = error
        task.done.set()
        del task
