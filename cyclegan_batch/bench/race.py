"""Several ways to do the same work, measured side by side in short rounds that alternate.

A machine that does something else meanwhile then disturbs all of them alike, where one after the
other it would disturb one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

_HOPELESS = 0.7
"""A way that reaches less than this share of the best of its group runs in no further round."""

_ROUNDS = 5
"""Rounds that the time is planned for; more follow where time is left."""

_MOST_ROUNDS = 9

_LEAST_SLOT, _MOST_SLOT = 0.05, 1.0
"""Seconds of a way in one round."""


@dataclass(frozen=True)
class Lap:
    """What one way did in one round."""

    frames: int
    seconds: float
    cpu_seconds: float


class Runner(Protocol):
    """A way to do the work."""

    def run(self, calls: int) -> Lap:
        """Do ``calls`` calls on each context."""


@dataclass
class Contestant:
    """A way and its laps."""

    runner: Runner
    group: Hashable
    """Those of one group stand for the same thing: the best of them is looked for."""
    call_seconds: float
    """How long a call takes, as far as it is known."""
    laps: list[Lap] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Frames per second: the median of the laps; 0 without one."""
        return statistics.median([each.frames / each.seconds for each in self.laps] or [0.0])

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds per frame: the median of the laps; 0 without one."""
        return statistics.median([each.cpu_seconds / each.frames for each in self.laps] or [0.0])


def race(
    contestants: Sequence[Contestant],
    left: Callable[[], float],
    *,
    announce: Callable[[int, Contestant], None] = lambda number, contestant: None,
) -> None:
    """Let the contestants run in rounds for as long as ``left()``, the seconds left, allows.

    ``contestants`` come in the order of their importance: where not even one round fits, the last
    ones keep no laps; the first one runs once in any case. ``announce`` gets the round, from 1, and
    who runs.
    """
    if not contestants:
        return
    slot = min(_MOST_SLOT, max(_LEAST_SLOT, left() / (_ROUNDS * len(contestants))))
    for number in range(1, _MOST_ROUNDS + 1):
        best: dict[Hashable, float] = {}
        for each in contestants:
            best[each.group] = max(best.get(each.group, 0.0), each.rate)
        others = contestants if number % 2 else contestants[::-1]
        for each in others:
            if number > 1 and (not each.laps or each.rate < _HOPELESS * best[each.group]):
                continue
            calls = max(1, round(slot / each.call_seconds))
            if calls * each.call_seconds > left():
                calls = int(left() / each.call_seconds)
                if calls < 1 and (each is not contestants[0] or each.laps):
                    continue
                calls = max(1, calls)
            announce(number, each)
            lap = each.runner.run(calls)
            each.laps.append(lap)
            each.call_seconds = max(lap.seconds / calls, 1e-6)
        if left() <= 0:
            return
