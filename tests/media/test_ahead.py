"""Work on many items side by side, with results in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from cyclegan_batch.media import ahead as module
from cyclegan_batch.media.ahead import ahead


def reading_threads() -> list[threading.Thread]:
    """Return the threads that compute something ahead."""
    return [each for each in threading.enumerate() if each.name == "ahead"]


def test_results_come_in_order_and_are_computed_side_by_side() -> None:
    together = threading.Barrier(8, timeout=60)

    def double(item: int) -> int:
        if item < 8:
            together.wait()  # all eight are under way, or this fails
        return 2 * item

    found = list(ahead(double, range(100), threads=8))
    assert found == [(item, 2 * item) for item in range(100)]


def test_no_more_are_begun_than_two_for_each_thread() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = ahead(str, items(), threads=4)
    for item in range(50):
        assert next(results) == (item, str(item))
        # One is looked at to know its weight.
        assert len(taken) <= item + 1 + 8
    results.close()


def test_no_more_are_begun_than_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    begun: list[int] = []

    def begin(item: int) -> int:
        begun.append(item)
        return item

    weights = [40, 50, 20, 300, 10, 10]
    results = ahead(begin, range(6), weigh=weights.__getitem__, threads=8)
    for item, most in enumerate([2, 3, 3, 4, 6, 6]):
        assert next(results) == (item, item)
        time.sleep(0.02)
        assert len(begun) <= most, item
    assert list(results) == []
    assert sorted(begun) == list(range(6))


def test_an_error_comes_in_the_place_of_its_item() -> None:
    def invert(item: int) -> float:
        return 1 / item

    results = ahead(invert, [1, 2, 0, 4])
    assert next(results) == (1, 1.0)
    assert next(results) == (2, 0.5)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_what_is_not_begun_is_left_undone_and_the_threads_end() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def slow(item: int) -> None:
        begun.append(item)
        if item:
            go_on.wait(10)

    results = ahead(slow, range(100), threads=2)
    next(results)
    results.close()
    go_on.set()
    deadline = time.monotonic() + 120
    while reading_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reading_threads()
    assert len(begun) <= 3
