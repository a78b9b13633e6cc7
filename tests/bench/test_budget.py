"""The time that is left, and work that is watched and stopped."""

from __future__ import annotations

import threading

import pytest

from cyclegan_batch.bench.budget import Budget, has_left_threads


def test_time_that_is_excluded_does_not_count():
    now = [100.0]
    budget = Budget(60.0, clock=lambda: now[0])
    now[0] = 130.0
    assert (budget.used, budget.left, budget.until(0.75)) == (30.0, 30.0, 15.0)
    budget.exclude(20.0)
    assert (budget.used, budget.left, budget.excluded) == (10.0, 50.0, 20.0)
    now[0] = 200.0
    assert budget.left == -20.0


def test_work_returns_its_result_or_raises_its_error_in_the_calling_thread():
    budget = Budget(1.0)
    assert budget.attend(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(ZeroDivisionError):
        budget.attend(lambda: 1 // 0)


def test_a_request_to_stop_cancels_the_work_and_waits_for_it():
    stopped = threading.Event()

    def watch(step: str, left: float) -> None:
        assert step == "waiting"
        raise KeyboardInterrupt

    budget = Budget(1.0, watch=watch)
    budget.step = "waiting"
    with pytest.raises(KeyboardInterrupt):
        budget.attend(lambda: stopped.wait(30), cancel=stopped.set)
    assert stopped.is_set()
    assert not has_left_threads()


def test_work_that_cannot_be_stopped_is_left_and_told(monkeypatch):
    monkeypatch.setattr("cyclegan_batch.bench.budget._PATIENCE", 0.05)
    released = threading.Event()

    def watch(step: str, left: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Budget(1.0, watch=watch).attend(lambda: released.wait(30))
    assert has_left_threads()
    released.set()
    for thread in threading.enumerate():
        if thread.name == "bench":
            thread.join()
    assert not has_left_threads()
