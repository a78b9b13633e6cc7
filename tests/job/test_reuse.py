"""A frame that repeats the one before it is not computed again, and nothing else changes."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation, run_plan, translate
from cyclegan_batch.errors import InputError, OutOfMemoryError, OutputError
from cyclegan_batch.frames import Frame, Pixels, PixelType
from cyclegan_batch.job.flow import Batch, Batcher, Channel, End, NetworkFrame, Origin, Unbatcher
from cyclegan_batch.job.pipeline import run
from cyclegan_batch.job.schedule import Schedule
from cyclegan_batch.job.units import Counters
from cyclegan_batch.media import Dropped
from tests.faults.jobs import assert_same
from tests.job.fakes import FakeBackend, FakeSink, FakeSource, as_it_is, unit
from tests.synthesis import generators
from tests.synthesis.generators import natural
from tests.synthesis.videos import encode

SCHEDULES = [
    Schedule(batch_size=1, contexts=1, converters=1),
    Schedule(batch_size=1, contexts=3, converters=4),
    Schedule(batch_size=4, contexts=1, converters=2),
    Schedule(batch_size=4, contexts=2, converters=3),
    Schedule(batch_size=2, contexts=2, converters=2, lot=4),
]


class Job:
    """Units of frames, each given by its value, and what a run makes of them."""

    def __init__(self, *values: Sequence[int]) -> None:
        self.values = values
        self.sources = [FakeSource(list(range(len(each)))) for each in values]
        for source, each in zip(self.sources, values, strict=True):
            source.shade = lambda number, each=each: each[number]  # type: ignore[misc]
        self.sinks = [FakeSink() for _ in values]
        self.backend = FakeBackend()
        self.calls: list[list[int]] = []
        """The values in each call of the network, without what fills the batch up."""
        self.backend.on_infer = self.record

    def record(self, frames: Pixels) -> None:
        values = [int(frame.max()) for frame in frames]
        while len(values) > 1 and values[-1] == values[-2]:
            values.pop()
        self.calls.append(values)

    def run(self, schedule: Schedule = SCHEDULES[0], **more: Any) -> Counters:
        units = map(unit, self.sources, self.sinks)
        return run(units, self.backend, schedule, geometry=as_it_is, **more)

    @property
    def computed(self) -> list[int]:
        return sorted(value for call in self.calls for value in call)

    def assert_complete(self, *lost: tuple[int, int]) -> None:
        """Check every frame but those ``lost``, given by the numbers of unit and frame."""
        for number, (sink, values) in enumerate(zip(self.sinks, self.values, strict=True)):
            assert sink.got == [
                (tag, (value + 1) % 256)
                for tag, value in enumerate(values)
                if (number, tag) not in lost
            ]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_repeated_frame_is_not_computed_and_is_written_like_any_other(schedule: Schedule) -> None:
    job = Job([1, 1, 1, 2, 3, 3, 1, 1, 4, 5, 6, 6, 6])
    counters = job.run(schedule)
    job.assert_complete()
    assert job.computed == [1, 1, 2, 3, 4, 5, 6]
    assert (counters.frames_done, counters.reused) == (13, 6)


def test_every_frame_is_computed_where_reuse_is_off() -> None:
    job = Job([1, 1, 1, 2, 2])
    assert job.run(reuse=False).reused == 0
    job.assert_complete()
    assert job.computed == [1, 1, 1, 2, 2]


def test_frames_share_batches_as_if_the_repeated_ones_were_not_there() -> None:
    job = Job([1, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 7])
    job.run(Schedule(batch_size=3, contexts=1, converters=1))
    job.assert_complete()
    assert job.calls == [[1, 2, 3], [4, 5, 6], [7]]


def test_the_first_frame_of_a_unit_repeats_none() -> None:
    job = Job([1, 1], [], [1, 1], [2, 2])
    counters = job.run(Schedule(batch_size=4, contexts=2, converters=2))
    job.assert_complete()
    assert job.computed == [1, 1, 2]
    assert counters.reused == 3


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("at", [2, 3])
def test_a_frame_that_is_lost_between_two_equal_ones_changes_nothing(
    schedule: Schedule, at: int
) -> None:
    job = Job([1, 2, 2, 2, 2, 3])
    job.sources[0].on_read = lambda number: (
        Dropped("clip", InputError("bad")) if number == at else number
    )
    counters = job.run(schedule, skip_errors=True)
    job.assert_complete((0, at))
    assert job.computed == [1, 2, 3]
    assert (counters.reused, counters.failed) == (2, 1)


@pytest.mark.behaviour(22)
def test_the_frames_that_repeat_one_that_cannot_be_encoded_are_written() -> None:
    job = Job([1, 1, 1, 2])

    def fail(frame: Frame) -> None:
        if frame.index == 0:
            raise OutputError("cannot be encoded")

    job.sinks[0].on_convert = fail
    counters = job.run(skip_errors=True)
    job.assert_complete((0, 0))
    assert job.computed == [1, 2]
    assert counters.reused == 2


def test_pictures_of_one_colour_and_two_sizes_repeat_only_their_own_size() -> None:
    job = Job([7, 7, 7, 7])
    sizes = [(4, 6), (4, 6), (6, 4), (6, 4)]

    def converter() -> Callable[[int], Frame]:
        return lambda number: Frame(number, np.full((*sizes[number], 3), 7, np.uint8), tag=number)

    job.sources[0].converter = converter  # type: ignore[method-assign]
    job.run(Schedule(batch_size=4, contexts=1, converters=2))
    job.assert_complete()
    assert job.backend.shapes == [(4, 4, 6, 3), (4, 6, 4, 3)]


def test_frames_that_differ_in_one_sample_are_both_computed() -> None:
    job = Job([0, 0])

    def converter() -> Callable[[int], Frame]:
        def convert(number: int) -> Frame:
            pixels = np.zeros((5, 7, 3), np.float16)
            pixels[3, 2, 1] = number
            return Frame(number, pixels, tag=number)

        return convert

    job.sources[0].converter = converter  # type: ignore[method-assign]
    job.sinks[0].converter = lambda: lambda frame: (frame.tag, 1)  # type: ignore[method-assign]
    assert job.run().reused == 0
    assert len(job.calls) == 2
    job.assert_complete()


def test_no_sink_can_change_the_pixels_that_frames_share() -> None:
    job = Job([1, 1])
    job.sinks[0].on_convert = lambda frame: frame.pixels.fill(0)
    with pytest.raises(ValueError, match="read-only"):
        job.run()


@pytest.mark.behaviour(26)
@pytest.mark.parametrize("contexts", [1, 3])
def test_out_of_memory_in_a_batch_with_repeated_frames_loses_none(contexts: int) -> None:
    values = [number // 3 for number in range(90)]
    job = Job(values, values)

    def small_device(frames: Pixels) -> None:
        if len(frames) > 3:
            raise OutOfMemoryError("no room for this batch")
        job.record(frames)

    job.backend.on_infer = small_device
    counters = job.run(Schedule(batch_size=8, contexts=contexts, converters=2))
    job.assert_complete()
    assert job.computed == sorted(2 * list(range(30)))
    assert counters.reused == 120
    assert len(counters.notes) == 2


@pytest.mark.timeout(120)
def test_no_context_waits_for_the_result_of_another_one() -> None:
    """Every call of the network lasts until both contexts are in one."""
    job, both = Job([number // 4 for number in range(80)]), threading.Barrier(2)
    job.backend.on_infer = lambda frames: both.wait(10) and None
    job.run(Schedule(batch_size=1, contexts=2, converters=2))
    job.assert_complete()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=str)
def test_a_repeated_frame_waits_for_none_behind_it(schedule: Schedule) -> None:
    """Each frame arrives only after the one before it was written, as from a camera."""
    job, written = Job([1, 1, 1, 2, 2, 3, 3]), threading.Semaphore(1)

    def read(number: int) -> int:
        assert written.acquire(timeout=10)
        return number

    job.sources[0].on_read = read
    job.sinks[0].on_write = lambda item: written.release()
    job.run(schedule)
    job.assert_complete()


@pytest.mark.behaviour(27)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_still_picture_is_computed_once_and_read_no_further_ahead_than_a_bound(
    schedule: Schedule,
) -> None:
    job = Job([9] * 10_000)
    alive, most, lock = 0, 0, threading.Lock()

    def born(number: int) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return number

    def gone(item: Any) -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def slow(frames: Pixels) -> None:
        job.record(frames)
        time.sleep(0.3)

    job.sources[0].on_read, job.sinks[0].on_write, job.backend.on_infer = born, gone, slow
    counters = job.run(schedule)
    job.assert_complete()
    assert job.computed == [9]
    assert counters.reused == 9999
    assert most <= 8 * schedule.frames_in_flight


def random_values(dice: random.Random) -> list[int]:
    values: list[int] = []
    while len(values) < 60:
        values += [dice.randrange(3)] * dice.choice([1, 1, 1, 2, 3, 20])
    return values


@pytest.mark.parametrize("seed", range(30))
def test_any_frames_come_out_as_from_a_plain_loop(seed: int) -> None:
    dice = random.Random(seed)
    job = Job(*(random_values(dice) for _ in range(3)))
    losses = {
        (number, at)
        for number, values in enumerate(job.values)
        for at in range(len(values))
        if dice.random() < 0.1
    }
    expected: list[int] = []
    for number, (source, values) in enumerate(zip(job.sources, job.values, strict=True)):
        lost = {at for unit_number, at in losses if unit_number == number}
        source.on_read = lambda at, lost=lost: (  # type: ignore[misc]
            Dropped("clip", InputError("bad")) if at in lost else at
        )
        kept = [value for at, value in enumerate(values) if at not in lost]
        pairs = zip([None, *kept[:-1]], kept, strict=True)
        expected += [value for before, value in pairs if value != before]
    pauses = random.Random(seed)

    def slow(frames: Pixels) -> None:
        job.record(frames)
        time.sleep(pauses.random() * 0.002)

    job.backend.on_infer = slow
    schedule = Schedule(
        batch_size=dice.choice([1, 2, 4]),
        contexts=dice.choice([1, 2, 3]),
        converters=dice.choice([1, 3]),
        lot=dice.choice([1, 4]),
    )
    counters = job.run(schedule, skip_errors=True)
    job.assert_complete(*losses)
    assert job.computed == sorted(expected)
    assert counters.reused == counters.frames_done - len(expected)


def test_the_results_of_repeated_frames_outlive_the_batch_and_end_with_the_unit() -> None:
    """What is kept for the next frame, in front of the network and behind it, is let go."""
    stop = threading.Event()
    waiting: Channel[Any] = Channel(10, stop)
    batcher, unbatcher = Batcher(waiting, 1, reuse=True), Unbatcher(waiting)
    owner: Any = object()
    pixels = np.zeros((4, 6, 3), np.uint8)

    def frame(index: int) -> NetworkFrame:
        return NetworkFrame(Origin(owner, index, None, as_it_is((4, 6))), pixels.copy())

    batcher.put(frame(0), frame(1))
    first = unbatcher.get(1) + unbatcher.get(1)
    batcher.put(frame(2), End(owner, owner))
    third, end = unbatcher.get(1) + unbatcher.get(1)
    assert isinstance(third, NetworkFrame)
    assert [each.origin.repeats for each in (*first, third)] == [False, True, True]  # type: ignore[union-attr]
    assert all(each.pixels.base is third.pixels.base for each in first)  # type: ignore[union-attr]
    assert isinstance(end, End)
    assert batcher._last is unbatcher._last is None
    batcher.put(frame(3))
    (last,) = waiting.get()
    assert isinstance(last, Batch)
    assert len(last.origins.computed) == 1


# With real runtimes and files

VALUES = [0, 0, 0, 1, 2, 2, 3, 0, 0, 0, 0, 4, 5, 5, 6, 6, 6, 6, 6, 6, 7, 8, 8, 9]
REPEATED = 13


def shown(value: int) -> Pixels:
    return natural((32, 40), seed=value)[0]


def clip(path: Path, values: Sequence[int]) -> Path:
    """Write a lossless video, 25 frames a second."""
    frames = [av.VideoFrame.from_ndarray(shown(value), "rgb24") for value in values]
    return encode(path, [frame.reformat(format="yuv420p") for frame in frames], "ffv1")


def folder(path: Path) -> Path:
    path.mkdir()
    for number, value in enumerate(VALUES):
        Image.fromarray(shown(value)).save(path / f"{number:02}.png")
    return path


@pytest.mark.behaviour(32)
@pytest.mark.parametrize(
    "backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.needs("openvino"))]
)
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("threads", "io"), [(1, "uint8"), (2, "float16"), (3, "uint8")])
def test_outputs_are_the_same_bytes_with_and_without_reuse(
    tmp_path: Path, backend: str, batch_size: int, threads: int, io: PixelType
) -> None:
    model = generators.tiny_resnet(tmp_path / "m.onnx", io=io)
    inputs = [clip(tmp_path / "clip.mkv", VALUES), folder(tmp_path / "pictures")]
    for source in inputs:
        reports = [
            translate(
                source, tmp_path / name / source.name, model=model, reuse=name == "with",
                backend=backend, batch_size=batch_size, threads=threads, codec="ffv1",
            )
            for name in ("with", "without")
        ]  # fmt: skip
        assert [report.status for report in reports] == ["whole", "whole"]
        assert [report.reused for report in reports] == [REPEATED, 0]
        assert_same(tmp_path / "with" / source.name, tmp_path / "without" / source.name)
    assert ", 13 repeated, " in reports[0].summary
    assert "repeated" not in reports[1].summary
    assert json.loads(reports[0].to_json())["reused"] == REPEATED


def test_pictures_that_are_equal_to_the_network_keep_what_is_their_own(tmp_path: Path) -> None:
    """Transparency, resolution, size and format: none of them reaches the network."""
    source = tmp_path / "pictures"
    source.mkdir()
    for number, opaque in enumerate((255, 40)):
        alpha = np.full((32, 40, 1), opaque, np.uint8)
        picture = Image.fromarray(np.concatenate([shown(1), alpha], axis=2))
        picture.save(source / f"0{number}.png", dpi=(72 + number, 72))
    Image.fromarray(shown(1)).save(source / "02.bmp")
    for number, size in enumerate([(20, 30), (30, 20), (64, 64)]):
        Image.new("RGB", size, "olive").save(source / f"1{number}.png")
    model = generators.tiny_resnet(tmp_path / "m.onnx")
    for name in ("with", "without"):
        report = translate(
            source, tmp_path / name, model=model, reuse=name == "with", size=(32, 40), fit="stretch"
        )
        assert report.reused == (4 if name == "with" else 0)
    assert_same(tmp_path / "with", tmp_path / "without")


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("reuse", [True, False])
def test_a_job_that_was_stopped_in_a_run_of_equal_frames_goes_on_to_the_same_bytes(
    tmp_path: Path, reuse: bool
) -> None:
    """It is the same job with and without reuse; the stretch that was not whole begins anew."""
    # A stretch has 250 frames, so the second begins among equal ones.
    source = clip(tmp_path / "clip.mkv", [number // 60 for number in range(600)])
    options: dict[str, Any] = {
        "model": generators.tiny_resnet(tmp_path / "m.onnx"),
        "codec": "libx264",
        "preset": "ultrafast",
        "crf": 0.0,
        "threads": 1,
    }
    whole = translate(source, tmp_path / "whole.mkv", reuse=not reuse, **options)
    assert whole.reused == (0 if reuse else 600 - 10 - 2)

    plan = plan_translation(source, tmp_path / "out.mkv", reuse=reuse, **options)
    backend, stopped = plan.open_backend(), threading.Event()
    infer, calls = backend.infer, iter(range(1000))

    def infer_until_stopped(frames: Pixels) -> Pixels:
        if next(calls) == (6 if reuse else 300):
            stopped.wait(20)
        return infer(frames)

    def stop(counters: Counters) -> None:
        if counters.frames_done > 260:
            stopped.set()
            raise KeyboardInterrupt

    backend.infer = infer_until_stopped  # type: ignore[method-assign]
    first = run_plan(plan, backend, watch=stop)
    assert first.status == "interrupted"
    assert 260 < first.frames <= 300
    again = translate(source, tmp_path / "out.mkv", reuse=not reuse, **options)
    assert again.resumed
    assert again.frames == 350
    assert_same(tmp_path / "out.mkv", tmp_path / "whole.mkv")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no worker processes")
def test_worker_processes_count_what_they_reuse(tmp_path: Path) -> None:
    model = generators.tiny_resnet(tmp_path / "m.onnx")
    source = folder(tmp_path / "pictures")
    clip(source / "clip.mkv", VALUES)
    one = translate(source, tmp_path / "one", model=model)
    two = translate(source, tmp_path / "two", model=model, workers=2)
    assert one.reused == two.reused == 2 * REPEATED
    assert_same(tmp_path / "two", tmp_path / "one")
