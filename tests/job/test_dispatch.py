"""The dispatcher: what is handed out in which order, locks, and what a death leaves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation
from cyclegan_batch.errors import InputError, OutputError, OutputInUseError
from cyclegan_batch.files import OutputLock
from cyclegan_batch.job.dispatch import Dispatcher, RefusedUnit
from cyclegan_batch.job.plan import JobPlan
from cyclegan_batch.job.record import DoneStretch
from cyclegan_batch.job.units import ImageUnit, JoinUnit, Outcome, StretchUnit, Unit, VideoUnit
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.images import shards
from cyclegan_batch.media.mux.joined_video import Stretch
from tests.synthesis import generators, streams


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a video of three stretches, one of two, a short one and nine images."""
    folder = tmp_path_factory.mktemp("in")
    streams.plain(folder / "a.mp4", frames=400, size=(16, 32))
    streams.plain(folder / "b.mp4", frames=620, size=(16, 32))
    streams.plain(folder / "c.mp4", frames=5, size=(16, 32))
    for number in range(9):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def plan(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobPlan:
    monkeypatch.setattr(shards, "SHARD", 6)
    model = generators.identity(tmp_path / "m.onnx")
    plan = plan_translation(sources, tmp_path / "out", model=model)
    assert plan.folder is not None
    plan.folder.mkdir(parents=True)
    return plan


@pytest.fixture
def dispatcher(plan: JobPlan) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(plan)
    yield dispatcher
    dispatcher.close()


def word(unit: Unit | None) -> str:
    """Return ``a0`` for the first stretch of a.mp4, ``a join``, ``c`` for a whole video."""
    if unit is None:
        return "wait"
    if isinstance(unit, StretchUnit):
        return f"{unit.plan.path.stem}{unit.number}"
    if isinstance(unit, JoinUnit):
        return f"{unit.plan.path.stem} join"
    if isinstance(unit, VideoUnit):
        return unit.plan.path.stem
    return "images" if isinstance(unit, ImageUnit) else "refused"


def test_a_worker_goes_on_with_its_video_and_others_help_with_the_longest(
    dispatcher: Dispatcher,
) -> None:
    one, two, three = (dispatcher.units(worker) for worker in range(3))
    first = [next(one), next(two), next(three)]
    assert list(map(word, first)) == ["a0", "b0", "c"]
    dispatcher.ended(Outcome(first[2], None))  # type: ignore[arg-type]
    second = [next(three), next(one), next(two)]
    # a has one stretch left and b two; then each goes on with its own.
    assert list(map(word, second)) == ["b1", "a1", "b2"]
    dispatcher.ended(Outcome(first[0], None))  # type: ignore[arg-type]
    dispatcher.ended(Outcome(second[1], None))  # type: ignore[arg-type]
    third = [next(one), next(two), next(three), next(one)]
    assert list(map(word, third)) == ["a join", "images", "images", "wait"]
    for unit in (first[1], second[0], second[2]):
        dispatcher.ended(Outcome(unit, None))  # type: ignore[arg-type]
    last = next(one)
    assert word(last) == "b join"
    for unit in (third[0], third[1], third[2], last):
        assert not dispatcher.is_finished
        dispatcher.ended(Outcome(unit, None))  # type: ignore[arg-type]
    assert dispatcher.is_finished
    assert [list(units) for units in (one, two, three)] == [[], [], []]


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("damage", [None, 0])
def test_a_resumed_stretch_gets_the_times_before_it_unless_something_is_damaged(
    plan: JobPlan, damage: int | None
) -> None:
    a = plan.videos[0]
    trouble = (Dropped("a.mp4, frame 3", InputError("bad")),)
    done = tuple(
        DoneStretch(
            number=number,
            stretch=Stretch(Path(f"{number}.mp4"), a.stream.time_base, (number,), None),
            dropped=trouble if number == damage else (),
            notes=(),
            frames=1,
        )
        for number in range(a.stretches - 1)
    )
    dispatcher = Dispatcher(replace(plan, done={a.output: done}))
    last = next(dispatcher.units())
    dispatcher.close()
    assert isinstance(last, StretchUnit)
    assert (last.plan.path.name, last.number) == ("a.mp4", a.stretches - 1)
    expected = () if damage is not None else tuple(each.stretch for each in done[-3:])
    assert last.before == expected


@pytest.mark.behaviour(14)
def test_a_stretch_that_fails_gives_up_its_video_alone(dispatcher: Dispatcher) -> None:
    units = dispatcher.units()
    failed = next(units)
    dispatcher.ended(Outcome(failed, InputError("bad")))  # type: ignore[arg-type]
    done = []
    for unit in units:
        assert unit is not None
        done.append(word(unit))
        dispatcher.ended(Outcome(unit, None))
    assert done == ["b0", "b1", "b2", "b join", "c", "images", "images"]


@pytest.mark.behaviour(19)
def test_a_video_of_another_run_comes_last_and_is_refused_by_its_holder(
    plan: JobPlan, dispatcher: Dispatcher
) -> None:
    held = OutputLock(plan.output / "a.mp4")
    done: list[Any] = []
    for unit in dispatcher.units():
        assert unit is not None
        done.append(unit)
        dispatcher.ended(Outcome(unit, None))
    held.release()
    assert [word(unit) for unit in done][-3:] == ["images", "images", "refused"]
    assert isinstance(done[-1], RefusedUnit)
    with pytest.raises(OutputInUseError, match=r"process .* is writing it"):
        done[-1].open_source()


@pytest.mark.behaviour(19)
def test_images_of_another_run_are_waited_for(plan: JobPlan, dispatcher: Dispatcher) -> None:
    assert plan.folder is not None
    held = OutputLock(plan.folder / plan.shards[0].key)
    done = []
    for unit in dispatcher.units():
        if unit is None:
            held.release()
            dispatcher._next_look = 0
            continue
        done.append(unit)
        dispatcher.ended(Outcome(unit, None))
    assert isinstance(done[-1], ImageUnit)
    assert done[-1].shard == plan.shards[0]


def test_an_output_that_appeared_meanwhile_is_refused(
    plan: JobPlan, dispatcher: Dispatcher
) -> None:
    (plan.output / "a.mp4").touch()
    done = []
    for unit in dispatcher.units():
        assert unit is not None
        done.append(unit)
        dispatcher.ended(Outcome(unit, None))
    (refused,) = (unit for unit in done if isinstance(unit, RefusedUnit))
    assert isinstance(refused.error, OutputError)
    assert not [unit for unit in done if word(unit) in ("a0", "a1", "a join")]


@pytest.mark.behaviour(47)
def test_what_a_worker_had_is_tried_again_by_its_successor_each_alone(
    plan: JobPlan, dispatcher: Dispatcher
) -> None:
    units = dispatcher.units(0)
    assert list(map(word, (next(units), next(units)))) == ["a0", "a1"]
    assert dispatcher.died(0, "killed by SIGSEGV") == []
    again, other = dispatcher.units(0), dispatcher.units(1)
    first = next(again)
    assert [word(first), word(next(again)), word(next(other))] == ["a0", "wait", "b0"]
    dispatcher.ended(Outcome(first, None))  # type: ignore[arg-type]
    assert word(next(again)) == "a1"
    (outcome,) = dispatcher.died(0, "killed by SIGSEGV")
    assert "killed by SIGSEGV; twice" in str(outcome.error)
    dispatcher.ended(outcome)
    # The video is given up, and the worker goes on with another.
    assert word(next(dispatcher.units(0))) == "c"


@pytest.mark.behaviour(39, 47)
def test_a_worker_with_nothing_else_to_do_takes_what_another_died_with(
    dispatcher: Dispatcher,
) -> None:
    """In a full cluster the successor of a worker may wait for long."""
    units = dispatcher.units(0)
    assert [word(next(units)), word(next(units))] == ["a0", "a1"]
    dispatcher.died(0, "lost")
    done = []
    for unit in dispatcher.units(1):
        assert unit is not None
        done.append(word(unit))
        dispatcher.ended(Outcome(unit, None))
    assert done[-3:] == ["a0", "a1", "a join"]
    assert dispatcher.is_finished


@pytest.mark.behaviour(47)
@pytest.mark.parametrize("bad", [0, 3, 5])
def test_a_shard_is_halved_until_the_image_is_found(
    plan: JobPlan, dispatcher: Dispatcher, bad: int
) -> None:
    shard = plan.shards[0]
    killer, done, given_up = shard.entries[bad], [], []
    units = dispatcher.units()
    for unit in units:
        assert unit is not None
        if isinstance(unit, ImageUnit) and killer in unit.shard.entries:
            for outcome in dispatcher.died(0, "killed by SIGKILL"):
                given_up.append(outcome)
                dispatcher.ended(outcome)
            continue
        if isinstance(unit, ImageUnit):
            done += unit.shard.entries
        dispatcher.ended(Outcome(unit, None))
    assert sorted(map(str, done)) == sorted(
        str(entry) for each in plan.shards for entry in each.entries if entry != killer
    )
    (outcome,) = given_up
    assert isinstance(outcome.unit, ImageUnit)
    assert outcome.unit.shard.entries == (killer,)
    assert "out of memory" in str(outcome.error)
    # The lock is released with the last part.
    assert plan.folder is not None
    OutputLock(plan.folder / shard.key).release()
