"""The pipeline on fakes: order, bounds, and what every kind of error leads to."""

from __future__ import annotations

import _thread
import contextlib
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.errors import (
    BackendError,
    InputError,
    OutOfMemoryError,
    OutputError,
    OutputExistsError,
    OutputInUseError,
)
from cyclegan_batch.frames import Frame, Pixels, SizeRequirements, geometry
from cyclegan_batch.job.pipeline import run
from cyclegan_batch.job.schedule import Schedule
from cyclegan_batch.job.units import Counters, Outcome, Span
from cyclegan_batch.media import Dropped, Place, dropped_at
from cyclegan_batch.wording import grouped
from tests.job.fakes import (
    PLAIN,
    FakeBackend,
    FakeSink,
    FakeSource,
    Unit,
    as_it_is,
    translated,
    unit,
)
from tests.stopwatch import Stopwatch


class TroubleError(Exception):
    """An exception of a foreign library."""


@pytest.mark.parametrize(
    "schedule",
    [
        PLAIN,
        Schedule(batch_size=3, contexts=2, converters=4),
        Schedule(batch_size=8, contexts=1, converters=1),
        Schedule(batch_size=1, contexts=4, converters=8),
    ],
    ids=["plain", "batches of three", "batches of eight", "wide"],
)
def test_every_frame_comes_out_once_and_in_order(schedule: Schedule) -> None:
    dice = random.Random(7)
    source, sink, backend = FakeSource(list(range(100))), FakeSink(), FakeBackend()
    source.on_convert = lambda number: time.sleep(dice.random() * 0.002)
    sink.on_convert = lambda frame: time.sleep(dice.random() * 0.002)
    backend.on_infer = lambda frames: time.sleep(dice.random() * 0.002)
    counters = run([unit(source, sink)], backend, schedule, geometry=as_it_is)
    assert sink.got == translated(list(range(100)))
    assert (counters.frames_done, counters.units_done) == (100, 1)
    assert sink.finished
    assert not sink.discarded
    assert source.closed


def test_a_batch_never_straddles_two_units_and_the_last_one_is_filled_up() -> None:
    first, second, backend = FakeSink(), FakeSink(), FakeBackend()
    seen: list[list[int]] = []
    backend.on_infer = lambda frames: seen.append([int(frame.max()) for frame in frames])
    units = [unit(FakeSource([1, 2, 3, 4, 5]), first), unit(FakeSource([6, 7]), second)]
    run(units, backend, Schedule(batch_size=3, contexts=1, converters=1), geometry=as_it_is)
    assert seen == [[1, 2, 3], [4, 5, 5], [6, 7, 7]]
    assert first.got == translated([1, 2, 3, 4, 5])
    assert second.got == translated([6, 7])


def test_pictures_of_different_sizes_are_never_in_one_batch() -> None:
    source, sink, backend = FakeSource([0, 1, 2, 3]), FakeSink(), FakeBackend()
    sizes = [(4, 6), (4, 6), (8, 6), (8, 6)]

    def converter() -> Callable[[int], Frame]:
        return lambda number: Frame(
            number, np.full((*sizes[number], 3), number, np.uint8), tag=number
        )

    source.converter = converter  # type: ignore[method-assign]
    run(
        [unit(source, sink)],
        backend,
        Schedule(batch_size=4, contexts=1, converters=2),
        geometry=as_it_is,
    )
    assert backend.shapes == [(4, 4, 6, 3), (4, 8, 6, 3)]
    assert sink.got == translated([0, 1, 2, 3])


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("stage", ["read", "to rgb", "from rgb"])
@pytest.mark.parametrize("at", [0, 4, 5, 7])
def test_a_frame_lost_in_a_batch_keeps_its_place_among_the_others(stage: str, at: int) -> None:
    """The failure is recorded after the frames before it and before those behind it."""
    source, sink = FakeSource(list(range(10))), FakeSink()
    counters = Counters()
    failed_before: list[int] = []
    error: Exception = InputError("bad")
    if stage == "read":
        source.on_read = lambda number: Dropped("clip", error) if number == at else number  # type: ignore[arg-type]
    elif stage == "to rgb":
        source.on_convert = lambda number: raise_(error) if number == at else None
    else:
        sink.on_convert = lambda frame: raise_(error) if frame.tag == at else None
    sink.on_write = lambda item: failed_before.append(counters.failed)
    run(
        [unit(source, sink)], FakeBackend(), Schedule(batch_size=4, contexts=2, converters=3),
        geometry=as_it_is, skip_errors=True, counters=counters,
    )  # fmt: skip
    assert sink.got == translated([number for number in range(10) if number != at])
    assert failed_before == [0] * at + [1] * (9 - at)


@pytest.mark.behaviour(26)
def test_out_of_memory_in_a_batch_that_waited_loses_no_frame_of_its_end() -> None:
    """Batches of eight wait in the queue when the first one shows that two are too many."""
    sinks, backend = [FakeSink(), FakeSink()], FakeBackend()

    def small_device(frames: Pixels) -> None:
        if len(frames) > 1:
            raise OutOfMemoryError("no room for two")

    backend.on_infer = small_device
    units = [unit(FakeSource(list(range(21))), sinks[0]), unit(FakeSource([7, 8, 9]), sinks[1])]
    counters = run(
        units, backend, Schedule(batch_size=8, contexts=1, converters=2), geometry=as_it_is
    )
    assert sinks[0].got == translated(list(range(21)))
    assert sinks[1].got == translated([7, 8, 9])
    assert [shape[0] for shape in backend.shapes[:4]] == [8, 4, 2, 1]
    assert len(counters.notes) == 3


def test_the_next_file_fills_the_pipeline_while_the_last_one_drains() -> None:
    first, second = FakeSink(), FakeSink()
    second_read = threading.Event()
    source = FakeSource([5])
    source.on_read = lambda number: (second_read.set(), number)[1]
    # The first file is not finished before a frame of the second one has been read.
    first.on_finish = lambda: None if second_read.wait(10) else pytest.fail("second never read")
    run(
        [unit(FakeSource([1, 2]), first), unit(source, second)],
        FakeBackend(),
        PLAIN,
        geometry=as_it_is,
    )
    assert second.got == translated([5])


@pytest.mark.behaviour(27)
@pytest.mark.parametrize(
    "schedule",
    [
        PLAIN,
        Schedule(batch_size=4, contexts=2, converters=3),
        Schedule(batch_size=1, contexts=2, converters=2, lot=3),
        Schedule(batch_size=1, contexts=1, converters=2, filters=True),
        Schedule(batch_size=4, contexts=2, converters=3, filters=True),
        Schedule(batch_size=1, contexts=2, converters=2, lot=3, filters=True),
    ],
)
def test_no_more_frames_are_in_flight_than_the_plan_says(schedule: Schedule) -> None:
    source, sink = FakeSource(list(range(200))), FakeSink()
    alive, most, lock = 0, 0, threading.Lock()

    def born(number: int) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return number

    def gone(item: Any) -> None:
        nonlocal alive
        time.sleep(0.002)
        with lock:
            alive -= 1

    source.on_read, sink.on_write = born, gone
    clip = unit(source, sink)
    clip.temporal = 0.5 * schedule.filters
    run([clip], FakeBackend(), schedule, geometry=as_it_is)
    # No queue holds the reader's own frame and the lot of the writer.
    assert most <= schedule.frames_in_flight + 1 + schedule.lot
    assert most > schedule.converter_queue


def inject(stage: str, error: Exception, at: int = 7) -> tuple[Unit, FakeSink, FakeBackend]:
    """Return a unit of 100 frames whose ``stage`` raises ``error`` at frame ``at`` (odd)."""
    source, sink, backend = FakeSource(list(range(100))), FakeSink(), FakeBackend()

    def trouble(number: int) -> int:
        if number == at:
            raise error
        return number

    def only_trouble(number: int) -> None:
        trouble(number)

    failing = unit(source, sink)
    if stage == "open source":
        failing = Unit("clip", opens_source=lambda: trouble(at), opens_sink=lambda: sink)  # type: ignore[arg-type,return-value]
    elif stage == "open sink":
        failing = Unit("clip", opens_source=lambda: source, opens_sink=lambda: trouble(at))  # type: ignore[arg-type,return-value]
    elif stage == "read":
        source.on_read = trouble
    elif stage == "to rgb":
        source.on_convert = only_trouble
    elif stage == "network":
        backend.on_infer = lambda frames: only_trouble(int(frames[-1].max()))
    elif stage == "from rgb":
        sink.on_convert = lambda frame: only_trouble(frame.index)
    elif stage == "write":
        sink.on_write = lambda item: only_trouble(item[0])
    elif stage == "finish":
        sink.on_finish = lambda: only_trouble(at)
    return failing, sink, backend


STAGES = ["open source", "open sink", "read", "to rgb", "network", "from rgb", "write", "finish"]


@pytest.mark.behaviour(22)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("skip", [False, True], ids=["fail", "skip"])
def test_an_unknown_error_in_any_stage_ends_the_run_and_reaches_the_caller(
    stage: str, skip: bool
) -> None:
    failing, sink, backend = inject(stage, TroubleError(stage))
    with pytest.raises(TroubleError, match=stage):
        run(
            [failing],
            backend,
            Schedule(batch_size=2, contexts=2, converters=2),
            geometry=as_it_is,
            skip_errors=skip,
        )
    assert not sink.finished
    assert sink.discarded or stage.startswith("open")
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "write", "netw"))]


@pytest.mark.behaviour(22)
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("stage", "error"),
    [
        ("open source", InputError("bad")),
        ("open sink", OutputError("bad")),
        ("read", InputError("bad")),
        ("write", OutputError("bad")),
        ("finish", OutputError("bad")),
    ],
)
def test_a_unit_that_fails_is_recorded_and_the_others_are_done(
    stage: str, error: Exception
) -> None:
    failing, sink, backend = inject(stage, error)
    other = FakeSink()
    counters = run(
        [failing, unit(FakeSource([3]), other, "other")],
        backend,
        PLAIN,
        geometry=as_it_is,
        skip_errors=True,
    )
    assert [(failure.name, failure.cause) for failure in counters.failures] == [("clip", "bad")]
    assert not sink.finished
    assert other.finished
    assert other.got == translated([3])
    assert counters.written == [Path("out")]


@pytest.mark.behaviour(22)
@pytest.mark.parametrize(
    ("stage", "error"), [("to rgb", InputError("bad")), ("from rgb", OutputError("bad"))]
)
def test_a_picture_that_fails_is_recorded_and_its_neighbours_are_done(
    stage: str, error: Exception
) -> None:
    failing, sink, backend = inject(stage, error)
    counters = run([failing], backend, PLAIN, geometry=as_it_is, skip_errors=True)
    assert [failure.cause for failure in counters.failures] == ["bad"]
    assert [number for number, _ in sink.got] == [n for n in range(100) if n != 7]
    assert sink.finished


def test_a_dropped_picture_is_recorded_under_its_own_name() -> None:
    source, sink = FakeSource([1, 2, 3]), FakeSink()
    lost = Dropped("clip, frame 1", InputError("cannot be decoded"))
    source.on_read = lambda number: lost if number == 2 else number
    counters = run([unit(source, sink)], FakeBackend(), PLAIN, geometry=as_it_is, skip_errors=True)
    assert [failure.name for failure in counters.failures] == ["clip, frame 1"]
    assert sink.got == translated([1, 3])


def test_a_dropped_picture_ends_a_run_that_does_not_skip_errors() -> None:
    source, sink = FakeSource([1, 2, 3]), FakeSink()
    lost = Dropped("clip, frame 1", InputError("cannot be decoded"))
    source.on_read = lambda number: lost if number == 2 else number
    with pytest.raises(InputError, match="cannot be decoded"):
        run([unit(source, sink)], FakeBackend(), PLAIN, geometry=as_it_is)
    assert sink.discarded
    assert not sink.finished


# What another process writes meanwhile


@pytest.mark.behaviour(23)
@pytest.mark.parametrize("stage", ["read", "write", "open sink", "finish"])
@pytest.mark.parametrize("skip", [True, False])
def test_what_has_come_to_exist_meanwhile_is_left_where_that_was_asked_for(
    stage: str, skip: bool
) -> None:
    error = OutputExistsError("it exists already")
    source, sink = FakeSource([1, 2, 3]), FakeSink()
    first = unit(source, sink)
    if stage == "read":
        source.on_read = lambda number: Dropped("2", error) if number == 2 else number
    elif stage == "write":
        sink.on_write = lambda item: Dropped("2", error) if item[0] == 2 else None
    elif stage == "finish":
        sink.on_finish = lambda: raise_(error)
    else:
        first = Unit("clip", opens_source=lambda: source, opens_sink=lambda: raise_(error))
    other = FakeSink()
    counters = run(
        [first, unit(FakeSource([4]), other)], FakeBackend(), PLAIN,
        geometry=as_it_is, skip_errors=True, skip_existing=skip,
    )  # fmt: skip
    assert counters.left == (1 if skip else 0)
    assert [failure.cause for failure in counters.failures] == ([] if skip else [str(error)])
    assert other.got == translated([4])
    assert source.closed


def raise_(error: Exception) -> Any:
    raise error


@pytest.mark.behaviour(22, 23)
@pytest.mark.parametrize("finishes", [True, False])
def test_an_output_in_use_is_a_failure_unless_it_is_there_at_the_end(
    tmp_path: Path, finishes: bool
) -> None:
    output = tmp_path / "clip.mp4"
    error = OutputInUseError("process 7 on there is writing it", output)
    busy = Unit("clip", opens_source=lambda: FakeSource([]), opens_sink=lambda: raise_(error))
    sink = FakeSink()
    if finishes:
        sink.on_finish = output.touch  # while this one is done, that process ends
    counters = run(
        [busy, unit(FakeSource([4]), sink)], FakeBackend(), PLAIN,
        geometry=as_it_is, skip_errors=True, skip_existing=True,
    )  # fmt: skip
    assert counters.left == (1 if finishes else 0)
    assert [f.cause for f in counters.failures] == ([] if finishes else [str(error)])
    assert sink.finished


def lost(number: int, trouble: str = "cannot be decoded; repair the file") -> Dropped:
    return dropped_at(
        Place(subject="clip.ts", kind="frame", number=number, seconds=number / 25, trouble=trouble)
    )


def failures_of(items: list[Any], **more: Any) -> Counters:
    """Run frames of which some are reported as damaged."""
    source, sink = FakeSource(list(range(len(items)))), FakeSink()
    source.on_read = lambda number: items[number]
    return run(
        [unit(source, sink)], FakeBackend(), PLAIN, geometry=as_it_is, skip_errors=True, **more
    )


@pytest.mark.behaviour(22)
def test_what_is_the_matter_with_many_frames_of_a_file_is_said_once() -> None:
    kept = [lost(number, "damaged, concealed by the decoder") for number in (1, 4)]
    items = [0, kept[0], 1, lost(2), lost(3), kept[1], 4, 5, lost(6), lost(7), lost(8), 9]
    counters = failures_of(items)
    assert [failure.cause for failure in counters.failures] == [
        "clip.ts, frames 1 (0.040 s) and 4 (0.160 s), 2 in all: damaged, concealed by the decoder",
        "clip.ts, frames 2–3 (0.080–0.120 s) and 6–8 (0.240–0.320 s), 5 in all: cannot be decoded; "
        "repair the file",
    ]
    assert [failure.name for failure in counters.failures] == ["clip.ts", "clip.ts"]
    assert counters.failures[1].spans == (
        Span(first=2, last=3, start_seconds=0.08, end_seconds=0.12),
        Span(first=6, last=8, start_seconds=0.24, end_seconds=0.32),
    )
    assert (counters.failed, counters.frames_done) == (7, 5)


@pytest.mark.behaviour(22, 27)
def test_thousands_of_damaged_frames_are_a_line_and_little_memory() -> None:
    counters = Counters()
    for number in range(0, 40_000, 2):
        dropped = lost(number)
        counters.record(dropped.name, dropped.error, dropped.place)
    (failure,) = counters.failures
    assert failure.cause == (
        "clip.ts, frames 0 (0.000 s), 2 (0.080 s), 4 (0.160 s), 6 (0.240 s), 8 (0.320 s), "
        "10 (0.400 s) and 19,994 more up to 39998 (1599.920 s), 20,000 in all: cannot be decoded; "
        "repair the file"
    )
    assert (failure.count, len(failure.spans)) == (20_000, 1000)


@pytest.mark.behaviour(22)
def test_the_same_trouble_in_two_files_stays_apart() -> None:
    counters = Counters()
    for name in ("a.ts", "b.ts"):
        dropped = dropped_at(
            Place(subject=name, kind="frame", number=1, seconds=None, trouble="cannot be decoded")
        )
        counters.record(dropped.name, dropped.error, dropped.place)
    assert [failure.cause for failure in counters.failures] == [
        "a.ts, frame 1: cannot be decoded",
        "b.ts, frame 1: cannot be decoded",
    ]


@pytest.mark.behaviour(22)
def test_what_a_finished_file_lacks_is_recorded() -> None:
    sink = FakeSink()
    sink.lacking = [
        dropped_at(
            Place(subject="clip, stream 1", kind="packet", number=3, seconds=0.1, trouble="damaged")
        )
    ]
    counters = run(
        [unit(FakeSource([1]), sink)], FakeBackend(), PLAIN, geometry=as_it_is, skip_errors=True
    )
    assert [each.cause for each in counters.failures] == [
        "clip, stream 1, packet 3 (0.100 s): damaged"
    ]
    assert counters.written == [Path("out")]


@pytest.mark.behaviour(27)
def test_a_failure_that_is_kept_keeps_no_pixels_alive() -> None:
    pixels_of_the_damaged: list[weakref.ref[Pixels]] = []

    def fail(frame: Frame) -> None:
        if frame.tag == 2:
            pixels_of_the_damaged.append(weakref.ref(frame.pixels))
            try:
                raise ValueError(frame.pixels.shape)
            except ValueError as error:
                raise OutputError("cannot be encoded") from error

    sink = FakeSink()
    sink.on_convert = fail
    counters = run(
        [unit(FakeSource([1, 2, 3]), sink)], FakeBackend(), PLAIN,
        geometry=as_it_is, skip_errors=True,
    )  # fmt: skip
    (failure,) = counters.failures
    assert isinstance(failure.error.__cause__, ValueError)
    assert [pixels() for pixels in pixels_of_the_damaged] == [None]


def test_every_damaged_frame_counts_as_a_failure_errors() -> None:
    items = [lost(number) for number in range(10)]
    with pytest.raises(InputError, match=r"3 failures .* --max-failures 2 allows; .*frame 2 "):
        failures_of(items, max_failures=2)


def test_more_failures_than_allowed_errors() -> None:
    source, sink = FakeSource(list(range(10))), FakeSink()
    source.on_read = lambda number: Dropped(f"frame {number}", InputError(f"bad {number}"))
    with pytest.raises(InputError, match=r"3 failures .* --max-failures 2 allows; bad 2$"):
        run(
            [unit(source, sink)],
            FakeBackend(),
            PLAIN,
            geometry=as_it_is,
            skip_errors=True,
            max_failures=2,
        )


def test_a_full_disk_ends_the_run_even_where_errors_are_skipped_errors() -> None:
    def full(item: Any) -> None:
        raise OutputError("out.mp4: no space left") from OSError(28, "No space left on device")

    sink, other = FakeSink(), FakeSink()
    sink.on_write = full
    units = [unit(FakeSource([1, 2]), sink), unit(FakeSource([3]), other)]
    with pytest.raises(OutputError, match="no space left"):
        run(units, FakeBackend(), PLAIN, geometry=as_it_is, skip_errors=True)
    assert sink.discarded
    assert not other.finished


def test_a_reader_of_our_pipe_that_leaves_ends_the_run_quietly() -> None:
    def gone(item: tuple[int, int]) -> None:
        if item[0] == 3:
            raise BrokenPipeError

    sink = FakeSink()
    sink.on_write = gone
    counters = run(
        [unit(FakeSource(list(range(100))), sink)], FakeBackend(), PLAIN, geometry=as_it_is
    )
    assert counters.pipe_closed
    assert sink.got == translated([0, 1, 2])


@pytest.mark.behaviour(24)
@pytest.mark.timeout(120)
def test_an_interrupt_ends_the_run_within_five_seconds_and_leaves_no_output() -> None:
    source, sink, backend = FakeSource(list(range(10_000))), FakeSink(), FakeBackend()
    # The network is in the middle of a long call, which cancel cuts off.
    backend.on_infer = lambda frames: backend.cancelled.wait(60) and None

    def interrupt(counters: Counters) -> None:
        if backend.shapes:
            raise KeyboardInterrupt

    with Stopwatch() as watch:
        counters = run([unit(source, sink)], backend, PLAIN, geometry=as_it_is, watch=interrupt)
    assert counters.interrupted
    assert watch.seconds < 5
    assert sink.discarded
    assert not sink.finished
    assert source.closed


@pytest.mark.behaviour(24)
@pytest.mark.timeout(120)
def test_an_interrupt_waits_for_the_writer_before_it_removes_what_he_writes() -> None:
    source, sink, backend = FakeSource(list(range(10))), FakeSink(), FakeBackend()
    events: list[str] = []

    def slow(item: Any) -> None:
        if item[0] == 3:
            _thread.interrupt_main()
            backend.cancelled.wait(60)  # the run has begun to stop
            time.sleep(0.3)
            events.append("written")

    sink.on_write = slow
    sink.discard = lambda: events.append("discarded")  # type: ignore[method-assign]
    counters = run([unit(source, sink)], backend, PLAIN, geometry=as_it_is)
    assert counters.interrupted
    assert events == ["written", "discarded"]


@pytest.mark.behaviour(22)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("skip", [False, True], ids=["fail", "skip"])
def test_a_source_is_not_closed_under_its_reader_where_the_writer_fails(skip: bool) -> None:
    source, sink, reading = FakeSource(list(range(1000))), FakeSink(), threading.Event()
    closed_while_reading: list[bool] = []

    def slow_read(number: int) -> int:
        reading.set()
        time.sleep(0.01)
        reading.clear()
        return number

    def fail(item: Any) -> None:
        reading.wait(5)
        raise OutputError("cannot write out")

    source.on_read, sink.on_write = slow_read, fail
    source.close = lambda: closed_while_reading.append(reading.is_set())  # type: ignore[method-assign]
    read: list[int] = []
    source.on_read = lambda number: (read.append(number), slow_read(number))[1]
    with contextlib.suppress(OutputError):
        run([unit(source, sink)], FakeBackend(), PLAIN, geometry=as_it_is, skip_errors=skip)
    assert closed_while_reading == [False]
    assert len(read) < 100
    assert sink.discarded


@pytest.mark.behaviour(22)
def test_an_error_of_the_network_names_file_and_frame() -> None:
    failing, _, backend = inject("network", BackendError("the network gives NaN"))
    with pytest.raises(BackendError, match=r"^clip, frame 7: the network gives NaN$"):
        run([failing], backend, PLAIN, geometry=as_it_is, skip_errors=True)


@pytest.mark.behaviour(22)
def test_what_ends_a_run_is_on_record_with_its_name() -> None:
    source, sink, counters = FakeSource([1, 2]), FakeSink(), Counters()
    source.on_read = lambda number: Dropped("clip, frame 1", InputError("bad"))
    with pytest.raises(InputError, match="bad"):
        run([unit(source, sink)], FakeBackend(), PLAIN, geometry=as_it_is, counters=counters)
    assert [(each.name, each.cause) for each in counters.failures] == [("clip, frame 1", "bad")]


@pytest.mark.behaviour(26)
@pytest.mark.parametrize("contexts", [1, 3])
def test_out_of_memory_halves_the_batch_and_loses_no_frame(contexts: int) -> None:
    source, sink, backend = FakeSource(list(range(50))), FakeSink(), FakeBackend()

    def small_device(frames: Pixels) -> None:
        if len(frames) > 3:
            raise OutOfMemoryError("no room for this batch")

    backend.on_infer = small_device
    counters = run(
        [unit(source, sink)],
        backend,
        Schedule(batch_size=8, contexts=contexts, converters=2),
        geometry=as_it_is,
    )
    assert sink.got == translated(list(range(50)))
    assert {shape[0] for shape in backend.shapes} <= {8, 4, 2}
    assert backend.shapes[-1][0] == 2
    notes = grouped(counters.notes)
    assert len(notes) == 2
    assert notes[0].startswith("clip: out of memory with a batch of 8 at frame ")
    assert notes[1].endswith("going on with 2")


@pytest.mark.behaviour(26)
def test_out_of_memory_with_a_single_frame_errors() -> None:
    backend = FakeBackend()

    def no_device(frames: Pixels) -> None:
        raise OutOfMemoryError("no room for a single frame")

    backend.on_infer = no_device
    with pytest.raises(OutOfMemoryError, match="single frame"):
        run(
            [unit(FakeSource([1]), FakeSink())],
            backend,
            Schedule(batch_size=4, contexts=1, converters=1),
            geometry=as_it_is,
        )


@pytest.mark.behaviour(29)
def test_the_stage_that_limits_is_named() -> None:
    source, sink, backend = FakeSource(list(range(6))), FakeSink(), FakeBackend()
    # Long against the moments for which a loaded machine lets a thread wait.
    sink.on_write = lambda item: time.sleep(0.05)
    counters = run([unit(source, sink)], backend, PLAIN, geometry=as_it_is)
    assert counters.limiting_stage() == "write"
    assert counters.stages["write"].busy_seconds >= 0.3
    assert counters.stages["network"].busy_seconds < 0.3


def test_frames_meet_the_network_padded_and_leave_it_cropped() -> None:
    source, sink, backend = FakeSource([9], size=(5, 7)), FakeSink(), FakeBackend()
    seen: list[tuple[int, ...]] = []
    sink.on_convert = lambda frame: seen.append(frame.pixels.shape)
    run(
        [unit(source, sink)],
        backend,
        PLAIN,
        geometry=lambda size: geometry(size, SizeRequirements(multiple_of=4)),
    )
    assert backend.shapes == [(1, 8, 8, 3)]
    assert seen == [(5, 7, 3)]


# What an observer is told


class Told:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.outcomes: list[Outcome] = []

    def dropped(self, unit: Any, dropped: Dropped) -> None:
        self.events.append((unit.name, f"without {dropped.name}"))

    def published(self, unit: Any, items: Sequence[Any]) -> None:
        self.events.append((unit.name, f"{len(items)} whole"))

    def ended(self, outcome: Outcome) -> None:
        self.events.append((outcome.unit.name, str(outcome.error or "done")))
        self.outcomes.append(outcome)


def test_an_observer_is_told_what_is_whole_and_how_each_unit_ends() -> None:
    def trouble() -> Any:
        raise InputError("no such file")

    damaged = FakeSource([0, 1, 2])
    damaged.on_read = lambda number: number if number != 1 else Dropped("1", InputError("bad"))
    broken = FakeSink()
    broken.on_write = lambda item: (_ for _ in ()).throw(OutputError("full"))
    units = [
        unit(damaged, FakeSink(), "damaged"),
        Unit("gone", opens_source=trouble, opens_sink=FakeSink),
        unit(FakeSource([0, 1]), broken, "broken"),
    ]
    told = Told()
    run(units, FakeBackend(), PLAIN, observer=told, skip_errors=True, geometry=as_it_is)
    assert told.events == [
        ("damaged", "without 1"),
        ("damaged", "1 whole"),
        ("damaged", "done"),
        ("gone", "no such file"),
        ("broken", "full"),
    ]
    assert [outcome.frames for outcome in told.outcomes] == [2, 0, 0]
    assert [dropped.name for dropped in told.outcomes[0].dropped] == ["1"]


def test_a_unit_that_is_stopped_in_the_middle_has_no_end() -> None:
    told = Told()
    sink, backend = FakeSink(), FakeBackend()
    sink.on_write = lambda item: _thread.interrupt_main() if item[0] == 0 else None
    source = FakeSource([0, 1])
    source.on_read = lambda number: number if number == 0 else backend.cancelled.wait(60) and number
    counters = run([unit(source, sink)], backend, PLAIN, observer=told, geometry=as_it_is)
    assert counters.interrupted
    assert told.events == []


def test_units_that_are_not_ready_are_asked_for_again_and_sources_follow_one_another() -> None:
    first, second = FakeSource([0]), FakeSource([1])
    sinks = [FakeSink(), FakeSink()]
    previous: list[Any] = []

    class Following(Unit):
        def open_source(self, previous_source: Any = None) -> Any:
            previous.append((previous_source, previous_source and previous_source.closed))
            return super().open_source()

    units = [
        Following("a", opens_source=lambda: first, opens_sink=lambda: sinks[0]),
        Following("b", opens_source=lambda: second, opens_sink=lambda: sinks[1]),
    ]

    def slowly() -> Iterator[Any]:
        yield units[0]
        while not sinks[0].finished:
            yield None
        yield units[1]

    run(slowly(), FakeBackend(), PLAIN, geometry=as_it_is)
    assert previous == [(None, None), (first, False)]
    assert first.closed
    assert second.closed
    assert [sink.got for sink in sinks] == [translated([0]), translated([1])]
