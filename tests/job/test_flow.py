"""The queues and the workers of the pipeline: order, and what is taken and handed on together."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest

from cyclegan_batch.job.flow import Channel, EndedError, StageWorkers
from cyclegan_batch.job.schedule import LOT_BYTES, lot_of
from cyclegan_batch.job.units import Stage


@dataclass(frozen=True)
class Item:
    """A message with a number."""

    number: int
    nbytes: int = 1000


def channel(length: int, lot: int, *items: Item) -> Channel[Item]:
    """Return a channel that holds ``items``."""
    made: Channel[Item] = Channel(length, threading.Event(), lot=lot)
    made.put(*items)
    return made


def numbers(items: list[Item]) -> list[int]:
    return [item.number for item in items]


def test_a_taker_gets_its_share_of_what_waits_but_no_more_than_a_lot() -> None:
    waiting = channel(10, 4, *map(Item, range(11)))
    assert numbers(waiting.get(2)) == [0, 1, 2, 3]
    assert numbers(waiting.get(2)) == [4, 5, 6, 7]
    assert numbers(waiting.get(2)) == [8, 9]
    assert numbers(waiting.get(2)) == [10]


def test_large_items_are_taken_one_by_one() -> None:
    waiting = channel(10, 4, *(Item(number, LOT_BYTES) for number in range(3)))
    assert [numbers(waiting.get()) for _ in range(3)] == [[0], [1], [2]]


@pytest.mark.behaviour(27)
@pytest.mark.parametrize(("nbytes", "most"), [(1000, 8), (LOT_BYTES, 2), (LOT_BYTES // 3, 3)])
def test_only_small_items_may_be_more_than_the_length(nbytes: int, most: int) -> None:
    waiting = channel(2, 4)
    put = threading.Event()

    def fill() -> None:
        waiting.put(*(Item(number, nbytes) for number in range(most)))
        put.set()
        waiting.put(Item(most, nbytes))
        waiting.close()

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    assert put.wait(10)
    filler.join(0.05)
    assert filler.is_alive()  # waits for room for the last one
    taken: list[int] = []
    while len(taken) <= most:
        taken += numbers(waiting.get())
    assert taken == list(range(most + 1))
    with pytest.raises(EndedError):
        waiting.get()


class Work:
    """A stage whose workers take the lots that are given and record what they hand on."""

    def __init__(self, workers: int, lots: list[list[Item]]) -> None:
        self.handed_on: list[list[int]] = []
        self.closed = False
        waiting = iter(lots)

        def take(takers: int) -> list[Item]:
            lot = next(waiting, None)
            if lot is None:
                raise EndedError
            return list(lot)

        def close() -> None:
            self.closed = True

        self.stage: StageWorkers[Item, Item] = StageWorkers(
            Stage(workers=workers),
            threading.Event(),
            take=take,
            hand_on=lambda *items: self.handed_on.append(numbers(list(items))),
            close=close,
        )

    def run(self, *converts: Any) -> None:
        threads = [threading.Thread(target=self.stage.work, args=(each,)) for each in converts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert self.closed


def test_the_results_of_a_lot_are_handed_on_together_and_in_the_order_of_taking() -> None:
    later = threading.Event()

    def convert(item: Item) -> Item:
        # The lot that was taken first is ready last.
        if item.number == 0:
            assert later.wait(10)
        if item.number == 5:
            later.set()
        return item

    work = Work(2, [[Item(0), Item(1)], [Item(2), Item(3), Item(4), Item(5)]])
    work.run(convert, convert)
    assert work.handed_on == [[0, 1], [2, 3, 4, 5]]


@pytest.mark.behaviour(27)
def test_results_that_turn_out_large_are_handed_on_one_by_one() -> None:
    # A photograph among thumbnails: nothing but its header shows how large it will be.
    work = Work(1, [[Item(0), Item(1), Item(2), Item(3)]])
    work.run(lambda item: Item(item.number, LOT_BYTES if item.number in (1, 2) else 1000))
    assert work.handed_on == [[0, 1], [2], [3]]


@pytest.mark.parametrize(
    ("frame_bytes", "lot"), [(12, 4), (256 * 256 * 3, 4), (363 * 363 * 3, 1), (LOT_BYTES, 1)]
)
def test_frames_of_256_pixels_travel_by_four_and_large_ones_alone(
    frame_bytes: int, lot: int
) -> None:
    assert lot_of(frame_bytes) == lot
    assert lot_of(100 * LOT_BYTES) == 1
