"""A video in stretches: the frames, findings and output of one uninterrupted run."""

from __future__ import annotations

import pickle
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import CycleganBatchError, InputError, OutputError
from cyclegan_batch.frames import Frame
from cyclegan_batch.job.units import JoinUnit, StretchUnit
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.mux.joined_video import Stretch
from cyclegan_batch.media.video.loss import LossDetector
from cyclegan_batch.media.video.plan import VideoPlan
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.media.video.source import StretchSource, VideoSource
from cyclegan_batch.wording import Note
from tests.media.identity import FAST, leftovers, plan, run
from tests.media.witness import needs_ffprobe, pictures, times
from tests.synthesis import streams
from tests.synthesis.videos import damaged, elementary_stream, moving, pes_starts

NOWHERE = Path("unused")


@dataclass
class Read:
    """What a source gave."""

    items: list[Any]
    """Frames, and `Dropped` in their places."""
    notes: list[Note]
    error: CycleganBatchError | None

    def described(self) -> list[Any]:
        """Return it in a form that can be compared."""
        described: list[Any] = [
            (each.name, str(each.error), each.place)
            if isinstance(each, Dropped)
            else (each.index, each.tag, each.tag.interlaced, each.pixels.tobytes())
            for each in self.items
        ]
        return [*described, *self.notes, *([] if self.error is None else [str(self.error)])]


def in_stretches(planned: VideoPlan, frames: int) -> VideoPlan:
    """Return the plan with stretches of a few frames."""
    return replace(planned, stretch_frames=frames)


def read(source: VideoSource) -> Read:
    convert = source.converter()
    found = Read([], [], None)
    try:
        for item in source.read():
            found.items.append(item if isinstance(item, Dropped) else convert(item))
    except InputError as error:
        found.error = error
    found.notes = list(source.notes)
    return found


def read_whole(planned: VideoPlan) -> Read:
    source = VideoSource(planned)
    found = read(source)
    source.close()
    return found


def read_in_turn(planned: VideoPlan, numbers: Sequence[int]) -> dict[int, Read]:
    """Read the stretches in this order in one process, as the pipeline does."""
    found = {}
    previous: VideoSource | None = None
    for number in numbers:
        source = StretchUnit(planned, number, NOWHERE).open_source(previous)
        if previous is not None:
            previous.close()
        found[number] = read(source)
        previous = source
    if previous is not None:
        previous.close()
    return found


def read_side_by_side(planned: VideoPlan, readers: int) -> dict[int, Read]:
    """Read every stretch by one of several readers, which take turns."""
    found = {}
    previous: list[StretchSource | None] = [None] * readers
    for number in range(planned.stretches):
        last = previous[number % readers]
        source = StretchUnit(planned, number, NOWHERE).open_source(last)
        if last is not None:
            last.close()
        found[number] = read(source)
        previous[number % readers] = source
    for each in previous:
        if each is not None:
            each.close()
    return found


def together(parts: dict[int, Read]) -> Read:
    """Return what all stretches gave, in their order."""
    in_order = [parts[number] for number in range(len(parts))]
    errors = [each.error for each in in_order if each.error is not None]
    return Read(
        [item for each in in_order for item in each.items],
        [note for each in in_order for note in each.notes],
        errors[0] if errors else None,
    )


def assert_reads_alike(planned: VideoPlan) -> Read:
    """Assert that stretches give what the whole gives, whoever reads them in whichever order."""
    whole = read_whole(planned)
    count, each_has = planned.stretches, planned.stretch_frames
    assert each_has is not None
    assert count > 1
    in_turn = read_in_turn(planned, range(count))
    assert together(in_turn).described() == whole.described()
    for number, part in in_turn.items():
        numbers = [
            each.place.number if isinstance(each, Dropped) and each.place else each.index
            for each in part.items
            if not isinstance(each, Dropped) or each.place
        ]
        is_last = number == count - 1
        assert all(min(each // each_has, count - 1) == number for each in numbers)
        assert is_last or len(numbers) == len(part.items), "only the last knows the end"
    backwards = read_in_turn(planned, range(count)[::-1])
    side_by_side = read_side_by_side(planned, 2)
    for others in (backwards, side_by_side):
        assert {number: part.described() for number, part in others.items()} == {
            number: part.described() for number, part in in_turn.items()
        }
    assert_warms_up(planned, whole, in_turn)
    return whole


def assert_warms_up(planned: VideoPlan, whole: Read, in_turn: dict[int, Read]) -> None:
    """Assert that the frames before a stretch come in front of it and change nothing else.

    They may have been read before, by the stretch before or by none; some may be lost.
    """
    each_has = planned.stretch_frames
    assert each_has is not None
    for warm_up, numbers in ((7, range(len(in_turn))), (each_has + 3, [*in_turn][::2])):
        for number, part in read_in_turn(replace(planned, warm_up=warm_up), numbers).items():
            before = [each for each in part.items if each.warm_up]
            first = number * each_has
            assert [(each.index, each.pixels.tobytes()) for each in before] == [
                (each.index, each.pixels.tobytes())
                for each in whole.items
                if isinstance(each, Frame) and first - warm_up <= each.index < first
            ]
            assert part.items[: len(before)] == before
            rest = replace(part, items=part.items[len(before) :])
            assert rest.described() == in_turn[number].described()


# What is read


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mp4", "libx264", {"g": "12", "bf": "2"}),
        (".mkv", "libx264", {"g": "12", "x264-params": "open-gop=1:bframes=3"}),
        (".ts", "libx264", {"g": "12", "bf": "2"}),
        (".avi", "mpeg4", {"g": "12", "bf": "2"}),
        (".mpg", "mpeg2video", {"g": "12", "bf": "2"}),
        (".webm", "libvpx", {"cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    ],
)
def test_the_stretches_of_a_whole_video_are_its_frames(tmp_path, suffix, codec, options):
    source = moving(tmp_path / f"in{suffix}", frames=65, codec=codec, options=options)
    whole = assert_reads_alike(in_stretches(plan(source, tmp_path / "out.mkv"), 20))
    assert len(whole.items) == 65


@pytest.mark.parametrize(
    "options",
    [
        {"ss": 0.4},
        {"to": 1.0},
        {"ss": 0.33, "to": 1.9},
        {"frames": 41},
        {"ss": 1.0, "frames": 40},
        {"deinterlace": True},
        {"deinterlace": True, "deinterlace_rate": "field"},
        {"deinterlace": True, "deinterlace_rate": "field", "ss": 0.5, "to": 1.5},
    ],
)
def test_a_part_and_fields_in_stretches_are_those_of_the_whole(tmp_path, options):
    source = streams.plain(tmp_path / "in.mkv", frames=50, interlaced="deinterlace" in options)
    planned = plan(source, tmp_path / "out.mkv", replace(FAST, **options))
    assert_reads_alike(in_stretches(planned, 12))


def test_a_variable_rate_is_kept_across_stretches(tmp_path):
    source = streams.variable_rate(tmp_path / "in.mkv")
    whole = assert_reads_alike(in_stretches(plan(source, tmp_path / "out.mkv"), 5))
    assert [frame.tag.pts for frame in whole.items] == list(streams.VFR_TIMES)


def test_a_change_of_size_is_noted_once_by_the_stretch_in_which_it_comes(tmp_path):
    sizes = ((48, 64), (96, 80), (32, 32))
    parts = [elementary_stream(tmp_path / f"{s[0]}", frames=15, size=s).read_bytes() for s in sizes]
    source = tmp_path / "in.h264"
    source.write_bytes(b"".join(parts))
    planned = in_stretches(plan(source, tmp_path / "out.mp4"), 10)
    planned = replace(planned, frames_expected=45)
    assert_reads_alike(planned)
    found = read_in_turn(planned, range(planned.stretches))
    assert [len(part.notes) for part in found.values()] == [0, 1, 0, 0, 0]
    assert {frame.pixels.shape for part in found.values() for frame in part.items} == {(48, 64, 3)}


def test_a_rotated_video_is_upright_in_every_stretch(tmp_path):
    upright = moving(tmp_path / "upright.mp4", frames=30)
    source = tmp_path / "in.mp4"
    with av.open(str(upright)) as whole, av.open(str(source), "w") as turned:
        stream: Any = turned.add_stream_from_template(whole.streams.video[0], opaque=True)
        stream.set_display_rotation(90)
        for packet in whole.demux():
            if packet.size:
                packet.stream = stream
                turned.mux(packet)
    planned = plan(source, tmp_path / "out.mp4")
    assert planned.size == (128, 96)
    assert_reads_alike(in_stretches(planned, 10))


# What is damaged


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize(
    ("broken", "half"),
    [
        *(([3], False), ([19], False), ([20, 21], False), ([58, 59], False)),
        *((range(18, 45), False), ([12], True), ([36, 48], True)),
    ],
)
def test_damage_is_reported_by_the_stretch_that_it_is_in(tmp_path, suffix, half, broken):
    whole = moving(tmp_path / f"whole{suffix}", frames=60, options={"bf": "2", "g": "12"})
    source = damaged(tmp_path / f"in{suffix}", whole, broken, half=half)
    found = assert_reads_alike(in_stretches(plan(source, tmp_path / "out.mkv"), 20))
    assert any(isinstance(item, Dropped) for item in found.items)


@pytest.mark.parametrize("on_error", ["skip", "fail"])
def test_what_a_transport_stream_has_lost_is_reported_once_at_its_end(tmp_path, on_error):
    whole = moving(tmp_path / "whole.ts", frames=75, options={"bf": "2", "g": "12"})
    content = bytearray(whole.read_bytes())
    starts = pes_starts(content)
    for number in (30, 40, 41):
        content[starts[number]] ^= 0xFF
    place = slice(starts[48] + 188 + 20, starts[48] + 188 + 180)
    content[place] = bytes(byte ^ 0xFF for byte in content[place])
    source = tmp_path / "in.ts"
    source.write_bytes(content)
    planned = plan(source, tmp_path / "out.mkv", replace(FAST, on_error=on_error))
    found = assert_reads_alike(in_stretches(planned, 20))
    assert sum(" missing from " in str(each.error) for each in found.items if _dropped(each)) == 1


def test_gaps_and_joints_of_recordings_are_noted_once(tmp_path):
    kept = [40 * i for i in range(60) if i not in (20, 31, 32)]
    gaps = streams.variable_rate(tmp_path / "gaps.ts", kept)
    found = assert_reads_alike(in_stretches(plan(gaps, tmp_path / "out.mkv"), 20))
    assert len(found.notes) == 1
    part = moving(tmp_path / "part.ts", frames=40, options={"g": "12"}).read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part + part)
    found = assert_reads_alike(in_stretches(plan(joined, tmp_path / "out.mkv"), 20))
    assert len([item for item in found.items if not _dropped(item)]) == 80


@pytest.mark.parametrize("suffix", [pytest.param(".mp4", marks=needs_ffprobe), ".mkv"])
def test_a_file_that_is_cut_short_is_told_by_the_last_stretch_alone(tmp_path, suffix):
    planned = in_stretches(plan(cut(tmp_path, suffix), tmp_path / "out.mkv"), 20)
    assert planned.stretches == 5
    found = assert_reads_alike(planned)
    assert 20 < len(found.items) < 80
    assert isinstance(found.items[-1], Dropped)
    last = read_in_turn(planned, range(5))[4]
    assert len(last.items) == 1, "it has no frame, and tells why"


def cut(folder: Path, suffix: str) -> Path:
    """A file that holds about two thirds of the 100 frames of which its header tells."""
    whole = streams.plain(folder / f"whole{suffix}", frames=100, audio=None)
    if suffix == ".mp4":
        # A part of an MP4 can be read only if the index comes first.
        fast = folder / "fast.mp4"
        command = ["ffmpeg", "-v", "error", "-i", whole, "-c", "copy", "-movflags", "+faststart"]
        subprocess.check_call([*command, fast])
        whole = fast
    return streams.truncated(folder / f"in{suffix}", whole, keep=0.7)


@pytest.mark.parametrize("expected", [25, 41, 65, 130])
def test_a_header_that_lies_about_the_number_of_frames_costs_none(tmp_path, expected):
    source = moving(tmp_path / "in.mkv", frames=65, options={"g": "12"})
    planned = replace(plan(source, tmp_path / "out.mkv"), frames_expected=expected)
    found = assert_reads_alike(in_stretches(planned, 20))
    assert len(found.items) == 65
    with_ends = in_stretches(planned, 20)
    shares = [StretchUnit(with_ends, n, NOWHERE).frames for n in range(with_ends.stretches)]
    assert sum(shares) == expected
    assert all(share > 0 for share in shares)


def test_a_range_without_frames_is_an_error_of_every_stretch(tmp_path):
    source = moving(tmp_path / "in.mkv", frames=50)
    planned = plan(source, tmp_path / "out.mkv", replace(FAST, ss=9.0))
    planned = replace(in_stretches(planned, 20), frames_expected=50)
    for found in (read_in_turn(planned, range(3)), read_side_by_side(planned, 3)):
        assert [part.items for part in found.values()] == [[], [], []]
        assert all("no frame lies in the range" in str(part.error) for part in found.values())


def _dropped(item: object) -> bool:
    return isinstance(item, Dropped)


def test_a_stretch_that_is_given_up_in_its_middle_costs_the_next_one_nothing(tmp_path):
    source = moving(tmp_path / "in.mkv", frames=60)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    expected = read_in_turn(planned, range(3))[1]
    given_up = StretchUnit(planned, 0, NOWHERE).open_source()
    items = given_up.read()
    assert next(iter(items))
    following = StretchUnit(planned, 1, NOWHERE).open_source(given_up)
    given_up.close()
    given_up.close()
    del items
    assert read(following).described() == expected.described()
    following.close()


def test_a_reading_of_another_video_or_a_later_stretch_is_not_gone_on_with(tmp_path):
    source = moving(tmp_path / "in.mkv", frames=60)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    expected = read_in_turn(planned, range(3))
    other = plan(moving(tmp_path / "other.mkv", frames=60), tmp_path / "out.mkv")
    for previous in (
        StretchUnit(in_stretches(other, 20), 0, NOWHERE).open_source(),
        VideoSource(planned),
        StretchUnit(planned, 2, NOWHERE).open_source(),
    ):
        read(previous)
        reading = StretchUnit(planned, 1, NOWHERE).open_source(previous)
        previous.close()
        assert read(reading).described() == expected[1].described()
        reading.close()


# Going on where an earlier run ended


def done(planned: VideoPlan, numbers: Sequence[int]) -> tuple[Stretch, ...]:
    """Return stretches that are done, as the journal keeps them."""
    frames, base = planned.stretch_frames, planned.stream.time_base
    assert frames is not None
    pts = [frame.tag.pts for frame in read_whole(planned).items if not _dropped(frame)]
    each_has = [tuple(pts[n * frames : (n + 1) * frames]) for n in numbers]
    return tuple(Stretch(NOWHERE, base, each, None) for each in each_has)


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list whose only number grows by each packet that is decoded."""
    decoded = [0]
    expect = LossDetector.expect

    def counted(self: LossDetector, packet: Any) -> None:
        decoded[0] += packet.size > 0
        expect(self, packet)

    monkeypatch.setattr(LossDetector, "expect", counted)
    return decoded


GROUPS = [
    ("libx264", {"g": "10", "bf": "0"}),
    ("libx264", {"g": "10", "bf": "3"}),
    ("libx264", {"g": "10", "x264-params": "open-gop=1:bframes=3"}),
    ("libx265", {"x265-params": "log-level=none:keyint=10:min-keyint=10:open-gop=1:bframes=3"}),
    ("mpeg4", {"g": "10", "bf": "2"}),
    ("libvpx-vp9", {"g": "10", "cpu-used": "8", "deadline": "realtime", "lag-in-frames": "5"}),
]


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("codec", "options"), GROUPS)
def test_a_resumed_video_is_not_decoded_from_its_start(
    tmp_path, monkeypatch, suffix, codec, options
):
    source = moving(tmp_path / f"in{suffix}", frames=170, codec=codec, options=options)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    whole = assert_reads_alike(planned)
    before = done(planned, range(6))
    decoded = count_decoded(monkeypatch)
    unit = StretchUnit(planned, 6, NOWHERE, before)
    reading = unit.open_source()
    found = {6: read(reading)}
    following = StretchUnit(planned, 7, NOWHERE).open_source(reading)
    reading.close()
    found[7] = read(following)
    last = StretchUnit(planned, 8, NOWHERE).open_source(following)
    following.close()
    found[8] = read(last)
    last.close()
    got = Read([], [], None)
    for part in found.values():
        got.items += part.items
        got.notes += part.notes
    assert got.described() == replace(whole, items=whole.items[120:]).described()
    # The first frame, and from the first key frame of the last three stretches on.
    assert decoded[0] < 120


@pytest.mark.behaviour(19)
@pytest.mark.parametrize(
    "options",
    [
        {"g": "500", "bf": "2"},
        {"g": "20", "x264-params": "intra-refresh=1"},
        {"g": "10", "bf": "0"},
    ],
)
def test_a_video_without_a_usable_key_frame_is_resumed_from_its_start(tmp_path, options):
    """Or, in the last case, whose frames before the place of resuming are unknown."""
    source = moving(tmp_path / "in.mp4", frames=100, options=options)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    expected = read_in_turn(planned, range(5))[4]
    before = done(planned, range(4)) if options["g"] != "10" else ()
    reading = StretchUnit(planned, 4, NOWHERE, before).open_source()
    assert read(reading).described() == expected.described()
    reading.close()


@pytest.mark.behaviour(19)
def test_a_resumed_video_of_variable_rate_is_that_of_an_uninterrupted_run(tmp_path, monkeypatch):
    ticks = np.cumsum(np.random.default_rng(0).integers(11, 90, 100)).tolist()
    source = streams.variable_rate(tmp_path / "in.mkv", ticks)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    parts = read_in_turn(planned, range(5))
    for number in range(1, 5):
        before = done(planned, range(number))
        reading = StretchUnit(planned, number, NOWHERE, before).open_source()
        assert read(reading).described() == parts[number].described()
        reading.close()


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("suffix", [pytest.param(".mp4", marks=needs_ffprobe), ".mkv"])
def test_a_resumed_run_also_finds_that_the_file_is_cut_short(tmp_path, suffix):
    source = cut(tmp_path, suffix)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    parts = read_in_turn(planned, range(5))
    last_whole = max(n for n, part in parts.items() if len(part.items) == 20)
    unit = StretchUnit(planned, last_whole + 1, NOWHERE, done(planned, range(last_whole + 1)))
    previous = unit.open_source()
    found = {last_whole + 1: read(previous)}
    for number in range(last_whole + 2, 5):
        reading = StretchUnit(planned, number, NOWHERE).open_source(previous)
        previous.close()
        found[number] = read(reading)
        previous = reading
    previous.close()
    assert {n: part.described() for n, part in found.items()} == {
        n: parts[n].described() for n in found
    }


@pytest.mark.behaviour(19)
@pytest.mark.parametrize(
    "change",
    [
        lambda times: (*times[:-1], times[-1] + 1),
        lambda times: tuple(time + 1 for time in times),
        lambda times: times[1:],
        lambda times: tuple(time + 10**6 for time in times),
    ],
)
def test_a_resumed_video_whose_times_are_not_met_is_decoded_from_its_start(tmp_path, change):
    source = moving(tmp_path / "in.mkv", frames=100, options={"g": "10"})
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    expected = read_in_turn(planned, range(5))[3]
    before = tuple(replace(each, times=change(each.times)) for each in done(planned, range(3)))
    reading = StretchUnit(planned, 3, NOWHERE, before).open_source()
    assert read(reading).described() == expected.described()
    reading.close()


@pytest.mark.behaviour(19)
@pytest.mark.parametrize(("broken", "half"), [(65, False), (70, True), (79, False), (90, True)])
def test_damage_behind_the_place_of_resuming_is_reported_alike(tmp_path, broken, half):
    whole = moving(tmp_path / "whole.mkv", frames=100, options={"g": "10", "bf": "2"})
    source = damaged(tmp_path / "in.mkv", whole, [broken], half=half)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    parts = read_in_turn(planned, range(5))
    assert not any(_dropped(item) for n in range(3) for item in parts[n].items)
    before = done(in_stretches(plan(whole, tmp_path / "out.mkv"), 20), range(3))
    previous = StretchUnit(planned, 3, NOWHERE, before).open_source()
    found = {3: read(previous)}
    reading = StretchUnit(planned, 4, NOWHERE).open_source(previous)
    previous.close()
    found[4] = read(reading)
    reading.close()
    assert any(_dropped(item) for part in found.values() for item in part.items)
    assert {n: part.described() for n, part in found.items()} == {
        n: parts[n].described() for n in found
    }


@pytest.mark.behaviour(10, 19)
def test_a_resumed_part_of_a_video_counts_from_its_own_start(tmp_path):
    source = moving(tmp_path / "in.mp4", frames=130, options={"g": "10"})
    options = replace(FAST, ss=0.6, to=4.5)
    planned = in_stretches(plan(source, tmp_path / "out.mp4", options), 20)
    parts = read_in_turn(planned, range(planned.stretches))
    before = done(planned, range(3))
    reading = StretchUnit(planned, 3, NOWHERE, before).open_source()
    assert read(reading).described() == parts[3].described()
    reading.close()


def test_a_resumed_reading_is_not_taken_for_stretches_that_it_left_out(tmp_path):
    source = moving(tmp_path / "in.mkv", frames=100, options={"g": "10"})
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    expected = read_in_turn(planned, range(5))[1]
    unread = StretchUnit(planned, 3, NOWHERE, done(planned, range(3))).open_source()
    reading = StretchUnit(planned, 1, NOWHERE).open_source(unread)
    unread.close()
    assert read(reading).described() == expected.described()
    reading.close()


# What is written


def encode(planned: VideoPlan, number: int, folder: Path) -> list[Stretch]:
    """Translate one stretch by the identity; return it, or nothing where it has no frames."""
    unit: StretchUnit = pickle.loads(pickle.dumps(StretchUnit(planned, number, folder)))
    source = unit.open_source()
    sink = unit.open_sink(source)
    from_raw, to_encoded = source.converter(), sink.converter()
    for item in source.read():
        frame = item if isinstance(item, Dropped) else from_raw(item)
        if not isinstance(frame, Dropped):
            sink.write(to_encoded(frame))
    source.close()
    assert sink.finish() == ()
    sink.discard()
    assert leftovers(folder) == [] if folder.exists() else not sink.written
    return sink.written


def join(planned: VideoPlan, stretches: Sequence[Stretch]) -> Sequence[Dropped]:
    unit = JoinUnit(planned, tuple(stretches))
    sink = unit.open_sink(unit.open_source())
    missing = sink.finish()
    sink.discard()
    assert [each.path for each in sink.written] == [planned.output]
    return missing


@needs_ffprobe
@pytest.mark.behaviour(1, 2, 19)
@pytest.mark.parametrize(
    ("suffix", "options", "kept"),
    [
        (".mp4", FAST, "mp4"),
        (".mkv", FAST, "mp4"),
        (".mkv", replace(FAST, codec="libx265"), "mp4"),
        (".mkv", replace(FAST, preset=None, codec="ffv1"), "mp4"),
        (".avi", replace(FAST, preset=None, codec="huffyuv"), "nut"),
        (".avi", replace(FAST, preset=None, codec="mpeg4"), "mp4"),
        (".mkv", replace(FAST, preset=None, codec="mpeg2video"), "mp4"),
    ],
)
def test_joined_stretches_are_the_whole_video(tmp_path, suffix, options, kept):
    # The last stretch has two frames: x265 knows no decoding times by then.
    source = moving(tmp_path / "in.mkv", frames=42, options={"g": "12", "bf": "2"})
    planned = in_stretches(plan(source, tmp_path / f"out{suffix}", options), 20)
    folder = tmp_path / "made" / "here"
    stretches = [each for n in (2, 0, 1) for each in encode(planned, n, folder)]
    assert sorted(path.name for path in folder.iterdir()) == [f"{n}.{kept}" for n in range(3)]
    assert join(planned, sorted(stretches, key=lambda each: each.times)) == ()
    assert leftovers(tmp_path) == []
    one_piece = replace(planned, output=tmp_path / f"one{suffix}")
    assert one_piece.streams is not None
    run(replace(one_piece, streams=replace(one_piece.streams, output=one_piece.output)))
    assert times(planned.output) == times(one_piece.output)
    difference = pictures(planned.output).astype(int) - pictures(source)
    assert np.abs(difference).mean() < 4


@needs_ffprobe
@pytest.mark.behaviour(7)
def test_alpha_and_fields_are_kept_in_every_stretch(tmp_path):
    source = streams.plain(tmp_path / "in.mkv", frames=30, audio=None, interlaced=True)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 10)
    assert planned.encoder.fields
    whole = assert_reads_alike(planned)
    assert all(frame.tag.interlaced for frame in whole.items)
    join(planned, [each for n in range(3) for each in encode(planned, n, tmp_path / "parts")])
    again = plan(planned.output, tmp_path / "again.mkv")
    assert again.stream.interlaced
    see_through = moving(tmp_path / "in.mov", frames=30, codec="qtrle", pix_fmt="argb", options={})
    lossless = replace(FAST, preset=None, codec="ffv1")
    planned = in_stretches(plan(see_through, tmp_path / "alpha.mkv", lossless), 10)
    assert planned.encoder.alpha
    assert_reads_alike(planned)
    join(planned, [each for n in range(3) for each in encode(planned, n, tmp_path / "alpha")])
    again = plan(planned.output, tmp_path / "again.mkv", lossless)
    assert [frame.tag.alpha.values.min() for frame in read_whole(again).items] == [255] * 30


@needs_ffprobe
def test_a_stretch_without_frames_is_no_file_and_the_others_are_joined(tmp_path):
    whole = moving(tmp_path / "whole.mkv", frames=80, options={"bf": "0", "g": "20"})
    source = damaged(tmp_path / "in.mkv", whole, range(20, 40))
    output = tmp_path / "out.mkv"
    planned = replace(in_stretches(plan(source, output), 20), frames_expected=120)
    assert_reads_alike(planned)
    folder = tmp_path / "parts"
    written = [encode(planned, n, folder) for n in range(6)]
    assert [len(each) for each in written] == [1, 0, 1, 1, 0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["0.mp4", "2.mp4", "3.mp4"]
    join(planned, [each for stretch in written for each in stretch])
    assert [round(time * 25) for time in times(output)] == [*range(20), *range(40, 80)]


def test_a_join_without_frames_errors_and_leaves_nothing(tmp_path):
    planned = plan(moving(tmp_path / "in.mkv", frames=5), tmp_path / "out.mkv")
    unit = JoinUnit(planned, ())
    sink = unit.open_sink(unit.open_source())
    with pytest.raises(OutputError, match=r"out.mkv: no frame was read"):
        sink.finish()
    sink.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv"]


@pytest.mark.behaviour(22)
def test_a_source_that_changed_meanwhile_is_told_at_the_join(tmp_path):
    source = moving(tmp_path / "in.mkv", frames=30)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    stretches = [each for n in range(2) for each in encode(planned, n, tmp_path / "parts")]
    source.touch()
    (missing,) = join(planned, stretches)
    assert "was changed while it was translated" in str(missing.error)
    failing = replace(planned, options=replace(planned.options, on_error="fail", overwrite=True))
    unit = JoinUnit(failing, tuple(stretches))
    sink = unit.open_sink(unit.open_source())
    with pytest.raises(InputError, match="was changed"):
        sink.finish()
    sink.discard()
    assert leftovers(tmp_path) == []


def test_a_stretch_that_is_discarded_leaves_nothing_and_locks_nothing(tmp_path):
    source = moving(tmp_path / "in.mkv", frames=30)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)
    held = VideoSink(planned)
    folder = tmp_path / "parts"
    unit = StretchUnit(planned, 0, folder)
    sink = unit.open_sink(unit.open_source())
    convert = sink.converter()
    for frame in read_whole(planned).items:
        sink.write(convert(frame))
    assert leftovers(folder)
    sink.discard()
    sink.discard()
    assert list(folder.iterdir()) == []
    assert sink.written == []
    held.discard()


@pytest.mark.behaviour(25)
@pytest.mark.parametrize(
    "place", ["os.fsync", "pathlib.Path.mkdir", "cyclegan_batch.media.video.sink.add_encoder"]
)
def test_a_full_disk_names_the_output_and_not_the_stretch(tmp_path, monkeypatch, place):
    source = moving(tmp_path / "in.mkv", frames=30)
    planned = in_stretches(plan(source, tmp_path / "out.mkv"), 20)

    def full(*args: object, **how: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(place, full)
        with pytest.raises(OutputError, match=r"out\.mkv: the disk is full") as caught:
            encode(planned, 0, tmp_path / "parts")
    assert isinstance(caught.value.__cause__, OSError)
    assert "parts" not in str(caught.value)


# The plan


@pytest.mark.parametrize(
    ("frames", "options", "stretches"),
    [(200, {}, 1), (400, {}, 2), (500, {}, 2), (501, {}, 3), (500, {"frames": 300}, 1)],
)
def test_a_stretch_is_about_ten_seconds_long(tmp_path, monkeypatch, frames, options, stretches):
    source = elementary_stream(tmp_path / "in.h264", frames=3)
    planned = plan(source, tmp_path / "out.mkv")
    monkeypatch.setattr(
        "cyclegan_batch.media.video.plan._frames_expected",
        lambda info, stream, given: min(frames, given.frames or frames),
    )
    planned = plan(source, tmp_path / "out.mkv", replace(FAST, **options))
    assert planned.stretches == stretches
    assert planned.stretch_frames == (None if stretches == 1 else 250)
    assert planned.notes == plan(source, tmp_path / "out.mkv").notes
    y4m = plan(source, tmp_path / "out.y4m")
    assert (y4m.stretch_frames, y4m.stretches) == (None, 1)


_Y4M_FRAME = b"FRAME\n" + bytes(64 * 48 * 3 // 2)


@pytest.mark.parametrize(
    ("rate", "each"), [(10, 250), (24, 250), (25, 250), (30, 250), (60, 500), (240, 1000)]
)
def test_a_stretch_ends_where_the_encoder_sets_a_key_frame(tmp_path, monkeypatch, rate, each):
    source = tmp_path / "in.y4m"
    source.write_bytes(b"YUV4MPEG2 W64 H48 F%d:1 Ip C420jpeg\n" % rate + _Y4M_FRAME)
    monkeypatch.setattr("cyclegan_batch.media.video.plan._frames_expected", lambda *given: 5000)
    assert plan(source, tmp_path / "out.mkv").stretch_frames == each


def test_an_encoder_that_must_see_the_whole_video_is_told_once(tmp_path, monkeypatch):
    source = moving(tmp_path / "in.mkv", frames=3)
    options = replace(FAST, encoder_opt={"b": "1M"})
    short = plan(source, tmp_path / "out.mkv", options)
    monkeypatch.setattr("cyclegan_batch.media.video.plan._frames_expected", lambda *given: 1000)
    long = plan(source, tmp_path / "out.mkv", options)
    assert (long.stretch_frames, long.stretches) == (None, 1)
    (said,) = (note for note in long.notes if note not in short.notes)
    assert "one piece" in str(said)
    assert plan(source, tmp_path / "out.mkv").stretches == 4
