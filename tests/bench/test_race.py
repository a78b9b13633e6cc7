"""Ways that run side by side: rounds, their order, and the time."""

from __future__ import annotations

import pytest

from cyclegan_batch.bench.race import Contestant, Lap, race


class Clock:
    """Time that passes only where something runs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def left(self) -> float:
        return self.seconds


class Fake:
    """A way whose call takes so many seconds; the machine may slow everything down."""

    def __init__(self, clock: Clock, seconds: float, slow: float = 1.0) -> None:
        self.clock, self.seconds, self.slow = clock, seconds, slow
        self.calls: list[int] = []

    def run(self, calls: int) -> Lap:
        self.calls.append(calls)
        took = calls * self.seconds * self.slow
        self.clock.seconds -= took
        return Lap(frames=calls, seconds=took, cpu_seconds=2 * took)


def contestant(clock: Clock, seconds: float, group: str = "a") -> Contestant:
    return Contestant(Fake(clock, seconds), group, seconds)


def test_every_way_runs_in_each_round_and_every_second_round_backwards():
    clock = Clock(10.0)
    ways = [contestant(clock, 0.1, group) for group in "abc"]
    order: list[tuple[int, str]] = []
    race(ways, clock.left, announce=lambda number, who: order.append((number, str(who.group))))
    first, second = ([group for number, group in order if number == n] for n in (1, 2))
    assert (first, second) == (["a", "b", "c"], ["c", "b", "a"])
    assert {len(way.laps) for way in ways} <= {5, 6}
    assert clock.seconds >= 0
    assert ways[0].rate == pytest.approx(10)
    assert ways[0].cpu_seconds == pytest.approx(0.2)


def test_what_is_far_slower_than_the_best_of_its_group_runs_once():
    clock = Clock(20.0)
    good, bad, other = (
        contestant(clock, 0.1),
        contestant(clock, 0.2),
        contestant(clock, 0.4, "another"),
    )
    race([good, bad, other], clock.left)
    assert len(bad.laps) == 1
    assert len(good.laps) == len(other.laps) > 3


def test_a_round_that_was_disturbed_does_not_move_the_median():
    clock = Clock(10.0)
    way = contestant(clock, 0.1)
    runner = way.runner
    assert isinstance(runner, Fake)

    def disturb(number: int, who: Contestant) -> None:
        runner.slow = 3.0 if number == 2 else 1.0

    race([way], clock.left, announce=disturb)
    assert len(way.laps) >= 5
    assert way.rate == pytest.approx(10)


def test_where_no_round_fits_the_last_ones_are_left_without_a_lap():
    clock = Clock(1.0)
    ways = [contestant(clock, 0.4, group) for group in "abcd"]
    race(ways, clock.left)
    assert [len(way.laps) for way in ways] == [1, 1, 0, 0]
    assert clock.seconds >= 0
    assert ways[3].rate == 0.0


def test_the_first_way_runs_even_where_no_time_is_left():
    clock = Clock(0.0)
    ways = [contestant(clock, 0.4, group) for group in "ab"]
    race(ways, clock.left)
    assert [len(way.laps) for way in ways] == [1, 0]


def test_without_ways_nothing_happens():
    race([], lambda: 1.0)
