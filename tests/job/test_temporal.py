"""The filter against flicker in the pipeline: what it gets, in which order, and what is written."""

from __future__ import annotations

import shutil
import signal
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
import pytest

from cyclegan_batch.api import plan_translation, translate
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.frames import Frame, Geometry, Pixels, Size, SizeRequirements, geometry
from cyclegan_batch.job.pipeline import run
from cyclegan_batch.job.plan_text import plan_description, plan_lines
from cyclegan_batch.job.schedule import Schedule
from cyclegan_batch.job.units import Counters, Outcome, StretchUnit, VideoUnit
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.mux.joined_video import Stretch
from cyclegan_batch.media.video.decoding import FrameReader
from cyclegan_batch.media.video.plan import VideoPlan
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.temporal.flow_filter import FlowFilter, frames_to_forget
from tests.faults import jobs
from tests.faults.jobs import command, environment
from tests.job.fakes import FakeBackend, FakeSink, FakeSource, Unit, as_it_is
from tests.media.identity import plan
from tests.synthesis import generators
from tests.synthesis.videos import damaged, encode, moving

pytestmark = pytest.mark.behaviour(51)

STRENGTH = 0.5
WARM_UP = 9
PLAIN = Schedule(batch_size=1, contexts=1, converters=2, filters=True)
SCHEDULES = [
    PLAIN,
    Schedule(batch_size=4, contexts=2, converters=3, filters=True),
    Schedule(batch_size=2, contexts=2, converters=2, lot=4, filters=True),
]


class Crawling(FakeBackend):
    """A network whose noise has nothing to do with that of the frame before."""

    def infer(self, frames: Pixels) -> Pixels:
        self.shapes.append(frames.shape)
        self.on_infer(frames)
        return np.stack([crawling(frame) for frame in frames])

    def fork(self) -> Crawling:
        other = Crawling()
        other.shapes, other.cancelled, other.on_infer = self.shapes, self.cancelled, self.on_infer
        return other


def crawling(frame: Pixels) -> Pixels:
    random = np.random.default_rng(zlib.crc32(frame.tobytes()))
    if frame.dtype == np.float16:
        return np.clip(1 - frame + random.uniform(-0.1, 0.1, frame.shape), 0, 1).astype(np.float16)
    return np.clip(255 - frame.astype(int) + random.integers(-25, 26, frame.shape), 0, 255).astype(
        np.uint8
    )


class Collecting(FakeSink):
    """Keeps the frames that it is to write."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: dict[int, Pixels] = {}

    def converter(self) -> Callable[[Frame], Any]:
        return lambda frame: frame

    def write(self, item: Any) -> Dropped | None:
        assert item.index not in self.frames
        self.frames[item.index] = item.pixels
        return None


@dataclass(frozen=True)
class Piece(StretchUnit):
    """A stretch whose frames are kept instead of encoded."""

    sink: Any = field(default_factory=Collecting)

    def open_sink(self, source: Any) -> Any:
        return self.sink


@dataclass(frozen=True)
class OnePiece(VideoUnit):
    """A video whose frames are kept instead of encoded."""

    sink: Any = field(default_factory=Collecting)

    def open_sink(self, source: Any) -> Any:
        return self.sink


class Endings:
    """An observer that keeps how units end."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def dropped(self, unit: Any, dropped: Dropped) -> None:
        pass

    def published(self, unit: Any, items: Sequence[Any]) -> None:
        pass

    def ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def planned(source: Path, *, stretch: int | None = None, temporal: float = STRENGTH) -> VideoPlan:
    """Return a plan with the filter, in stretches of a few frames."""
    warm_up = frames_to_forget(temporal) if temporal and stretch else 0
    whole = plan(source, source.with_name("out.mkv"))
    return replace(whole, stretch_frames=stretch, temporal=temporal, warm_up=warm_up)


def done(units: Sequence[Any], schedule: Schedule = PLAIN, **how: Any) -> Counters:
    """Translate units, one after the other."""
    backend = how.pop("backend", None) or Crawling()
    how = {"geometry": as_it_is, "skip_errors": True} | how
    return run(iter(units), backend, schedule, **how)


def pieces(video: VideoPlan, numbers: Sequence[int], **how: Any) -> dict[int, dict[int, Pixels]]:
    """Translate stretches in this order in one process, and return the frames of each."""
    units = [Piece(video, number, Path("unused")) for number in numbers]
    done(units, **how)
    return {unit.number: unit.sink.frames for unit in units}


def one_piece(video: VideoPlan, **how: Any) -> dict[int, Pixels]:
    unit = OnePiece(replace(video, stretch_frames=None, warm_up=0))
    done([unit], **how)
    return dict(unit.sink.frames)


def by_hand(
    video: VideoPlan, strength: float = STRENGTH, fit: Callable[[Size], Geometry] = as_it_is
) -> dict[int, Pixels]:
    """Return the frames that the filter makes of a video, without the pipeline."""
    source = VideoSource(replace(video, stretch_frames=None, warm_up=0))
    convert = source.converter()
    filtered = FlowFilter(strength)
    frames = {}
    for item in source.read():
        frame = item if isinstance(item, Dropped) else convert(item)
        if isinstance(frame, Dropped):
            continue
        shape = fit((frame.pixels.shape[0], frame.pixels.shape[1]))
        pixels = shape.into_network(frame.pixels)
        frames[frame.index] = shape.out_of_network(filtered(pixels, crawling(pixels)))
    source.close()
    return frames


def assert_equal(found: dict[int, Pixels], expected: dict[int, Pixels]) -> None:
    assert list(found) == list(expected)
    for index, pixels in expected.items():
        assert np.array_equal(found[index], pixels), index


def together(parts: dict[int, dict[int, Pixels]]) -> dict[int, Pixels]:
    return {index: pixels for number in sorted(parts) for index, pixels in parts[number].items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return moving(tmp_path_factory.mktemp("clip") / "in.mp4", frames=52, options={"g": "12"})


@pytest.fixture(scope="module")
def expected(clip: Path) -> dict[int, Pixels]:
    """The frames of the clip in one piece."""
    return by_hand(planned(clip))


@pytest.fixture(scope="module")
def in_turn(clip: Path) -> dict[int, dict[int, Pixels]]:
    """The frames of its stretches, one after the other in one process."""
    return pieces(planned(clip, stretch=20), range(3))


# What the filter gets


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_video_is_filtered_frame_by_frame_behind_the_network(
    clip: Path, expected: dict[int, Pixels], schedule: Schedule
) -> None:
    assert_equal(one_piece(planned(clip), schedule=schedule), expected)
    plain = one_piece(planned(clip, temporal=0.0), schedule=schedule)
    assert np.array_equal(plain[0], expected[0])
    assert all(np.abs(plain[n].astype(int) - expected[n]).max() > 5 for n in range(1, 52))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_without_it_there_is_no_stage_and_every_batch_is_what_it_was(
    clip: Path, schedule: Schedule
) -> None:
    backend = Crawling()
    plain = planned(clip, temporal=0.0)
    unit = OnePiece(plain)
    counters = done([unit], replace(schedule, filters=False), backend=backend)
    assert list(counters.stages) == ["read", "to rgb", "network", "from rgb", "write"]
    assert backend.shapes == [(schedule.batch_size, 96, 128, 3)] * (52 // schedule.batch_size)
    source = VideoSource(plain)
    convert = source.converter()
    for item in source.read():
        frame = convert(item)  # type: ignore[arg-type]
        assert isinstance(frame, Frame)
        assert not frame.warm_up
        assert np.array_equal(unit.sink.frames[frame.index], crawling(frame.pixels))
    source.close()


def test_the_stage_stands_behind_the_network_and_its_time_is_counted(clip: Path) -> None:
    counters = done([OnePiece(planned(clip))])
    assert list(counters.stages) == ["read", "to rgb", "network", "temporal", "from rgb", "write"]
    assert counters.stages["temporal"].workers == 1
    assert counters.stages["temporal"].busy_seconds > 0.0


def test_images_among_the_videos_are_left_alone(clip: Path, expected: dict[int, Pixels]) -> None:
    sinks = [FakeSink(), FakeSink()]
    images = [Unit("in", lambda: FakeSource([7, 8, 9]), lambda sink=sink: sink) for sink in sinks]
    first, second = OnePiece(planned(clip)), OnePiece(planned(clip))
    backend = Crawling()
    backend.infer = lambda frames: FakeBackend.infer(backend, frames)  # type: ignore[method-assign]
    done([images[0], images[1]], backend=backend)
    assert [sink.got for sink in sinks] == [[(7, 8), (8, 9), (9, 10)]] * 2
    # Nor does a video know of the one before it.
    done([first, second], SCHEDULES[1])
    assert_equal(first.sink.frames, expected)
    assert_equal(second.sink.frames, expected)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_repeated_frames_are_filtered_like_all_others(tmp_path: Path, schedule: Schedule) -> None:
    clip = moving(tmp_path / "moving.mp4", frames=8)
    with av.open(str(clip)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    shown = [pictures[number] for number in (0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, 6, 7, 7)]
    source = encode(
        tmp_path / "in.mkv",
        [av.VideoFrame.from_ndarray(each, "rgb24").reformat(format="yuv444p") for each in shown],
        "ffv1",
    )
    video = planned(source)
    expected = by_hand(video)
    backend = Crawling()
    assert_equal(one_piece(video, schedule=schedule, backend=backend), expected)
    alone = Crawling()
    assert_equal(one_piece(video, schedule=schedule, backend=alone, reuse=False), expected)
    assert len(backend.shapes) < len(alone.shapes)
    # The result goes on to change where the frame does not.
    assert not np.array_equal(expected[8], expected[9])


@pytest.mark.parametrize("size", [64, (60, 100)])
def test_the_filter_works_at_the_size_of_the_network(clip: Path, size: Any) -> None:
    def fit(source: Size) -> Geometry:
        return geometry(source, SizeRequirements(multiple_of=16), size=size)

    expected = by_hand(planned(clip), fit=fit)
    assert_equal(one_piece(planned(clip), geometry=fit), expected)
    kept = one_piece(planned(clip), geometry=fit, keep_size=True)
    content = fit((96, 128)).content
    assert all(pixels.shape == (*content, 3) for pixels in kept.values())


def test_ten_bits_stay_ten_bits(tmp_path: Path) -> None:
    source = moving(tmp_path / "in.mkv", frames=12, pix_fmt="yuv420p10le", options={"g": "5"})
    video = replace(planned(source), pixel_type="float16")
    expected = by_hand(video)
    found = one_piece(video)
    assert found[5].dtype == np.float16
    assert_equal(found, expected)
    assert np.unique(found[5]).size > 256


# Stretches


def test_a_frame_that_two_stretches_convert_is_not_the_one_whose_tags_pyav_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cyclegan_batch.media.video import colour

    source = moving(tmp_path / "in.mkv", frames=2, pix_fmt="yuv444p")
    video = planned(source)
    item = next(iter(VideoSource(video).read()))
    got = []

    class Watched:
        def __init__(self) -> None:
            self.real = real()

        def reformat(self, frame: Any, **named: Any) -> Any:
            got.append(frame)
            return self.real.reformat(frame, **named)

    real = colour.VideoReformatter
    monkeypatch.setattr(colour, "VideoReformatter", Watched)
    results = [
        colour.ToRGB(video.colour, "uint8", shared=shared)(item.frame) for shared in (False, True)
    ]
    assert [frame is item.frame for frame in got] == [True, False]
    assert np.array_equal(*results)


def test_stretches_are_the_same_whoever_does_them_in_whichever_order(
    clip: Path, in_turn: dict[int, dict[int, Pixels]]
) -> None:
    video = planned(clip, stretch=20)
    assert [list(frames) for frames in in_turn.values()] == [
        [*range(20)],
        [*range(20, 40)],
        [*range(40, 52)],
    ]
    for numbers in ([0], [1], [2], [0, 2], [2, 1, 0]):
        for number, frames in pieces(video, numbers, schedule=SCHEDULES[1]).items():
            assert_equal(frames, in_turn[number])


def test_stretches_are_within_a_level_of_one_piece(
    expected: dict[int, Pixels], in_turn: dict[int, dict[int, Pixels]]
) -> None:
    found = together(in_turn)
    assert list(found) == list(expected)
    for index, pixels in expected.items():
        assert np.abs(found[index].astype(int) - pixels).max() <= (0 if index < 20 else 1), index


def test_a_warm_up_is_the_nine_frames_before_and_counts_as_nothing(clip: Path) -> None:
    video = planned(clip, stretch=20)
    assert video.warm_up == WARM_UP
    units = [Piece(video, number, Path("unused")) for number in range(3)]
    endings, backend = Endings(), Crawling()
    counters = done(units, observer=endings, backend=backend)
    assert [outcome.frames for outcome in endings.outcomes] == [20, 20, 12]
    assert (counters.frames_done, counters.failed, counters.notes) == (52, 0, [])
    assert len(backend.shapes) == 52 + 2 * WARM_UP


@pytest.mark.parametrize(("second", "most"), [(1, 53), (2, 1 + 1 + WARM_UP + 12)])
def test_a_resumed_stretch_is_that_of_an_uninterrupted_run(
    clip: Path,
    in_turn: dict[int, dict[int, Pixels]],
    second: int,
    most: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What precedes it is not decoded again, but for its warm-up, where a key frame is known.

    Then the first frame of the file, the last one that is known, the warm-up and the stretch come.
    """
    video = planned(clip, stretch=20)
    source = VideoSource(video)
    times = [item.timing.pts for item in source.read() if not isinstance(item, Dropped)]
    source.close()
    before = tuple(
        Stretch(Path("unused"), video.stream.time_base, tuple(times[20 * n : 20 * n + 20]), None)
        for n in range(second)
    )
    decoded = []
    frames = FrameReader.frames

    def counted(reader: FrameReader) -> Iterator[Any]:
        for item in frames(reader):
            decoded.append(item)
            yield item

    monkeypatch.setattr(FrameReader, "frames", counted)
    units = [Piece(video, number, Path("unused"), before) for number in range(second, 3)]
    done(units)
    assert len(decoded) == most
    for unit in units:
        assert_equal(unit.sink.frames, in_turn[unit.number])


def test_a_scene_that_begins_with_a_stretch_begins_as_the_network_drew_it(tmp_path: Path) -> None:
    wall = moving(tmp_path / "wall.mp4", frames=40)
    with av.open(str(wall)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    pictures[20:] = [np.ascontiguousarray(each[::-1, ::-1] // 3) for each in pictures[20:]]
    source = encode(
        tmp_path / "in.mkv",
        [av.VideoFrame.from_ndarray(each, "rgb24").reformat(format="yuv444p") for each in pictures],
        "ffv1",
    )
    found = pieces(planned(source, stretch=20), [0, 1])
    plain = one_piece(planned(source, temporal=0.0))
    assert np.array_equal(found[1][20], plain[20])
    assert not np.array_equal(found[1][21], plain[21])
    assert_equal(together(found), by_hand(planned(source)))


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("broken", [15, 25])
def test_a_lost_frame_is_told_once_and_the_next_one_goes_on_with_the_one_before_it(
    tmp_path: Path, clip: Path, broken: int
) -> None:
    whole = moving(tmp_path / "whole.mkv", frames=45, options={"g": "1", "bf": "0"})
    source = damaged(tmp_path / "in.mkv", whole, [broken])
    video = replace(planned(source, stretch=20), frames_expected=45)
    expected = by_hand(video)
    assert broken not in expected
    units = [Piece(video, number, Path("unused")) for number in range(3)]
    endings = Endings()
    counters = done(units, observer=endings)
    assert [len(outcome.dropped) for outcome in endings.outcomes] == [
        int(number == broken // 20) for number in range(3)
    ]
    assert counters.failed == 1
    found = together({unit.number: unit.sink.frames for unit in units})
    assert list(found) == list(expected)
    for index, pixels in expected.items():
        assert np.abs(found[index].astype(int) - pixels).max() <= 1, index
    alone = [Piece(video, 1, Path("unused"))]
    ending = Endings()
    done(alone, observer=ending)
    assert len(ending.outcomes[0].dropped) == (broken == 25)
    assert_equal(alone[0].sink.frames, units[1].sink.frames)


def test_a_frame_of_the_warm_up_that_cannot_be_converted_is_told_once(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cyclegan_batch.media.video import reading

    class Failing(reading.ToRGB):
        def __call__(self, frame: av.VideoFrame) -> Pixels:
            if frame.pts == 15 * 512:
                raise av.error.InvalidDataError(1, "bad")
            return super().__call__(frame)

    monkeypatch.setattr(reading, "ToRGB", Failing)
    units = [Piece(planned(clip, stretch=20), number, Path("unused")) for number in range(3)]
    counters = done(units)
    assert counters.failed == 1
    assert [len(unit.sink.frames) for unit in units] == [19, 20, 12]


def test_an_error_in_a_unit_ends_its_filter_too(clip: Path, expected: dict[int, Pixels]) -> None:
    def read(number: int) -> int:
        if number == 2:
            raise InputError("gone")
        return number

    source = FakeSource([1, 2, 3], size=(96, 128))
    source.on_read = read
    broken = Unit("broken", lambda: source, Collecting, temporal=STRENGTH)
    unit = OnePiece(planned(clip))
    counters = done([broken, unit])
    assert counters.failed == 1
    assert_equal(unit.sink.frames, expected)


@pytest.mark.behaviour(27)
def test_memory_counts_the_sources_that_wait_with_the_results() -> None:
    plain = Schedule(batch_size=4, contexts=2, converters=3)
    filtered = replace(plain, filters=True, kept=WARM_UP)
    assert filtered.frames_in_flight > plain.frames_in_flight + WARM_UP


# The option


@pytest.mark.parametrize(
    ("value", "strength"),
    [("off", 0.0), ("flow", 0.5), ("flow:0.3", 0.3), ("flow:.7", 0.7), ("flow:0.9", 0.9)],
)
def test_the_strength_is_read(value: str, strength: float) -> None:
    assert TranslateOptions(temporal=value).temporal_strength == strength


@pytest.mark.parametrize(
    "value",
    [
        "flow:0",
        "flow:0.0",
        "flow:0.91",
        "flow:1",
        "flow:",
        "flow:-0.5",
        "flow:nan",
        "on",
        "",
        "0.5",
    ],
)
def test_another_value_is_refused_in_one_sentence(value: str) -> None:
    with pytest.raises(ValueError, match=r"^temporal must be off, flow or flow:STRENGTH .* 0\.9"):
        TranslateOptions(temporal=value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.invert(tmp_path_factory.mktemp("model") / "invert.onnx")


LONG = 510


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of three stretches: a camera that moves over a wall, with noise."""
    random = np.random.default_rng(0)
    wall = cv2.GaussianBlur(random.random((200, 300, 3)).astype(np.float32), (0, 0), 2.0)
    wall = np.clip((wall - 0.5) * 1800 + 128, 20, 235)
    frames = []
    for number in range(LONG):
        row, column = (int(60 + 60 * np.sin(number / each)) for each in (40, 25))
        pixels = wall[row : row + 48, column : column + 64] + random.integers(-6, 7, (48, 64, 3))
        frames.append(av.VideoFrame.from_ndarray(pixels.astype(np.uint8), "rgb24"))
    frames = [frame.reformat(format="yuv420p") for frame in frames]
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return encode(path, frames, options={"preset": "ultrafast", "crf": "10"})


@pytest.fixture(scope="module")
def filtered(model: Path, long: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What becomes of it in a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("filtered") / "out.mp4"
    assert translate(long, output, model=model, temporal="flow:0.7").frames == LONG
    return output


@pytest.mark.parametrize(("value", "frames"), [("flow", 9), ("flow:0.9", 60)])
def test_the_plan_tells_the_strength_the_warm_up_and_the_memory(
    model: Path, long: Path, clip: Path, tmp_path: Path, value: str, frames: int
) -> None:
    strength = float(value.partition(":")[2] or 0.5)
    planned = plan_translation([long, clip], tmp_path / "out", model=model, temporal=value)
    lines = plan_lines(planned)
    assert (
        f"temporal flow, strength {strength}; each stretch begins with {frames} frames more that "
        "are computed and not written"
    ) in lines
    (memory,) = (line for line in lines if line.startswith("memory"))
    assert memory.endswith("of frames at most, and 1 MiB of the filter")
    videos: Any = plan_description(planned)["videos"]
    assert [(each["temporal"], each["warm_up"]) for each in videos] == [
        (strength, frames),
        (strength, 0),
    ]
    off = plan_translation([long, clip], tmp_path / "out", model=model)
    assert not [line for line in plan_lines(off) if "temporal" in line or "filter" in line]
    assert (off.schedule.filters, off.schedule.kept, off.filter_bytes) == (False, 0, 0)
    assert planned.memory is not None
    assert off.memory is not None
    assert planned.memory > off.memory + frames * 96 * 128 * 3


def test_a_frame_that_is_too_long_for_the_filter_is_refused(model: Path, tmp_path: Path) -> None:
    long = [av.VideoFrame.from_ndarray(np.zeros((8, 32768, 3), np.uint8), "rgb24")] * 2
    clip = encode(tmp_path / "long.mkv", [each.reformat(format="bgr0") for each in long], "ffv1")
    words: dict[str, Any] = {"model": model, "codec": "ffv1", "temporal": "flow"}
    with pytest.raises(InputError, match=r"at most 32766 pixels a side, .* sees 32768×8; give"):
        translate(clip, tmp_path / "out.mkv", **words)
    assert translate(clip, tmp_path / "out.mkv", **words, size=4).exit_code == 0


def test_a_video_in_one_piece_needs_no_warm_up(model: Path, clip: Path, tmp_path: Path) -> None:
    plan = plan_translation(clip, tmp_path / "out.mp4", model=model, temporal="flow:0.3")
    assert "temporal flow, strength 0.3" in plan_lines(plan)


def test_what_it_has_no_effect_on_is_said(model: Path, clip: Path, tmp_path: Path) -> None:
    previewed = plan_translation(
        clip, tmp_path / "out.mp4", model=model, temporal="flow", preview=2
    )
    note = "--temporal: no effect on a preview, whose frames are single ones"
    assert note in map(str, previewed.notes)
    image = tmp_path / "in.png"
    cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    images = plan_translation(image, tmp_path / "out.png", model=model, temporal="flow")
    assert "--temporal: no effect, as no video is among the inputs" in map(str, images.notes)
    assert not images.schedule.filters


def test_a_pattern_and_a_pipe_are_filtered_like_files(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "frames").mkdir()
    with av.open(str(clip)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            pixels = frame.to_ndarray(format="bgr24")
            cv2.imwrite(str(tmp_path / "frames" / f"{number:03}.png"), pixels)
    outputs = {}
    for name in ("off", "flow:0.7"):
        output = tmp_path / f"{name}.y4m"
        pattern = tmp_path / "frames" / "%03d.png"
        translate(pattern, output, model=model, fps="25", temporal=name)
        outputs[name] = output.read_bytes()
    assert outputs["off"] != outputs["flow:0.7"]
    translate(tmp_path / "off.y4m", tmp_path / "file.y4m", model=model, temporal="flow:0.7")
    words = command("-", "-", "-m", model, "--temporal", "flow:0.7")
    with (tmp_path / "off.y4m").open("rb") as source, (tmp_path / "pipe.y4m").open("wb") as out:
        subprocess.run(words, stdin=source, stdout=out, env=environment(), check=True)
    assert (tmp_path / "pipe.y4m").read_bytes() == (tmp_path / "file.y4m").read_bytes()


def test_a_folder_with_images_and_a_video_however_it_is_worked_on(
    model: Path, long: Path, filtered: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    jobs.pictures(source, 6)
    shutil.copy(long, source / "long.mp4")
    results = {}
    for name, how in (
        ("off", {}),
        ("two", {"temporal": "flow:0.7", "workers": 2}),
        ("four", {"temporal": "flow:0.7", "batch_size": 4, "reuse": False}),
    ):
        options: dict[str, Any] = {"model": model, **how}
        report = translate(source, tmp_path / name, **options)
        assert (report.status, report.frames) == ("whole", LONG + 6)
        stages = ["read", "to rgb", "network", "from rgb", "write"]
        assert list(report.stages) == stages[:3] + ["temporal"] * (name != "off") + stages[3:]
        results[name] = jobs.tree(tmp_path / name)
    for name in ("two", "four"):
        differing = {path for path in results["off"] if results["off"][path] != results[name][path]}
        assert differing == {"long.mp4"}
        jobs.assert_same(tmp_path / name / "long.mp4", filtered)


def test_another_strength_is_another_job(model: Path, clip: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    assert translate(clip, output, model=model, temporal="flow:0.5").frames == 52
    assert translate(clip, output, model=model, temporal="flow").frames == 0
    with pytest.raises(OutputError, match=r"made with --temporal flow:0\.5 \(now flow:0\.3\)"):
        translate(clip, output, model=model, temporal="flow:0.3")
    with pytest.raises(OutputError, match=r"made with --temporal flow:0\.5 \(now without it\)"):
        translate(clip, output, model=model)
    assert translate(clip, output, model=model, overwrite=True).frames == 52


@pytest.mark.needs("linux")
@pytest.mark.behaviour(19)
def test_a_job_that_is_killed_ends_as_one_that_was_not(
    model: Path, long: Path, filtered: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.mp4"
    second = {"call": "change", "path": rf"/{jobs.FOLDER}/.*/1\.[a-z0-9]+$", "kill": True}
    killed = jobs.translate(
        long, output, "-m", model, "--temporal=flow:0.7", "--workers=1", faults=[second]
    )
    assert killed.code == -signal.SIGKILL
    assert jobs.recorded(output, LONG) == 250
    assert not output.exists()
    resumed = translate(long, output, model=model, temporal="flow:0.7")
    assert (resumed.frames, resumed.resumed) == (LONG - 250, ("1 of 3 stretches of " + str(long),))
    jobs.assert_same(output, filtered)
    assert jobs.left_over(tmp_path) == []
