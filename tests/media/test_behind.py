"""Many items are worked on side by side, behind the one who hands them over."""

from __future__ import annotations

import threading
import time

from cyclegan_batch.media import behind
from cyclegan_batch.media.behind import Behind


def test_items_are_worked_on_side_by_side_up_to_a_number(monkeypatch) -> None:
    monkeypatch.setattr(behind, "REQUESTS", 4)
    together, lock, running, most = threading.Barrier(4, timeout=60), threading.Lock(), 0, 0

    def work(item: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()  # four are under way, or this fails
        with lock:
            running -= 1

    items: Behind[int] = Behind(work)
    for number in range(12):
        items.add(number, 1)
    items.finish()
    assert most == 4
    assert sorted(items.ended()) == [(number, None) for number in range(12)]
    assert items.ended() == []


def test_no_more_bytes_are_under_way_than_a_number_but_of_a_single_item(monkeypatch) -> None:
    monkeypatch.setattr(behind, "MOST_BYTES", 10)
    lock, weight, most = threading.Lock(), 0, 0

    def work(size: int) -> None:
        nonlocal weight, most
        with lock:
            weight += size
            most = max(most, weight)
        time.sleep(0.01)
        with lock:
            weight -= size

    items: Behind[int] = Behind(work)
    for size in (4, 4, 4, 25, 4, 4):
        items.add(size, size)
    items.finish()
    assert most == 25
    assert len(items.ended()) == 6


def test_an_error_is_told_with_its_item() -> None:
    problem = OSError("no")

    def work(item: int) -> None:
        if item == 1:
            raise problem

    items: Behind[int] = Behind(work)
    for number in range(3):
        items.add(number, 1)
    items.finish()
    assert sorted(items.ended(), key=lambda each: each[0]) == [(0, None), (1, problem), (2, None)]


def test_one_who_has_no_patience_does_not_wait_for_an_item_that_hangs() -> None:
    gate = threading.Event()
    items: Behind[int] = Behind(lambda item: gate.wait() and None)
    items.add(0, 1)
    items.finish(0.01)
    assert items.ended() == []
    gate.set()
    items.finish()
    assert items.ended() == [(0, None)]
