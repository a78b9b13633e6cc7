"""Timestamps that begin late or below zero, begin anew, or jump; ffprobe is the witness."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from cyclegan_batch.media.demux import lookahead
from cyclegan_batch.media.demux.description import describe
from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.media.demux.timestamps import Timeline
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.wording import grouped
from tests.media.identity import FAST, plan, run
from tests.media.witness import times as frame_times
from tests.synthesis import streams

pytestmark = pytest.mark.needs("ffmpeg", "ffprobe")
MPEG2 = {"codec": "mpeg2video", "audio": "mp2"}
WRAP = Fraction(2**33, 90_000)


def packet_times(path: Path, stream: str) -> list[Fraction]:
    """Return the presentation times of all packets by ffprobe, in ascending order."""
    if stream == "v" and path.suffix in (".mpg", ".vob"):
        # Not every frame of MPEG-PS has a PTS; these have 25 per second.
        frames = frame_times(path)
        return [frames[0] + Fraction(number, 25) for number in range(len(frames))]
    command = ["ffprobe", "-v", "error", "-select_streams", stream, "-of", "json"]
    command += ["-show_entries", "packet=pts:stream=time_base", str(path)]
    asked = subprocess.run(command, check=True, capture_output=True)
    # ffprobe logs nothing about the files that are written here.
    assert path.name.startswith("in.") or asked.stderr == b""
    answer = json.loads(asked.stdout)
    base = Fraction(answer["streams"][0]["time_base"])
    return sorted(packet["pts"] * base for packet in answer["packets"])


def fragmented(path: Path, start: Fraction) -> Path:
    """An MP4 of fragments as DASH writes it, with the timestamps of the whole broadcast."""
    whole = streams.plain(path.with_name("whole.mkv"), start=start)
    command = ["ffmpeg", "-v", "error", "-copyts", "-i", whole, "-c", "copy"]
    flags = "frag_keyframe+empty_moov+default_base_moof+delay_moov"
    subprocess.check_call([*command, "-movflags", flags, path])
    return path


def moved(path: Path, source: Path, by: Callable[[str, int], float]) -> Path:
    """``source`` with the times of packet ``n`` of each kind of stream moved ``by`` seconds."""
    with av.open(str(source)) as original, av.open(str(path), "w") as copy:
        copies = [copy.add_stream_from_template(s, opaque=True) for s in original.streams]
        count = {"video": itertools.count(), "audio": itertools.count()}
        for packet in original.demux():
            if packet.size:
                kind = packet.stream.type
                ticks = round(Fraction(by(kind, next(count[kind]))) / packet.time_base)
                if packet.pts is not None:
                    packet.pts += ticks
                if packet.dts is not None:
                    packet.dts += ticks
                packet.stream = copies[packet.stream.index]
                copy.mux(packet)
    return path


def joined(path: Path, *parts: Path) -> Path:
    """The concatenated bytes of ``parts``."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def since_first(times: list[Fraction]) -> list[Fraction]:
    return [time - times[0] for time in times]


def from_first_frame(path: Path) -> dict[str, list[Fraction]]:
    """Return the times of video ("v") and sound ("a"), counted from the first frame."""
    times = {kind: packet_times(path, kind) for kind in "va"}
    return {kind: [time - times["v"][0] for time in times[kind]] for kind in "va"}


def same(got: dict[str, list[Fraction]], sent: dict[str, list[Fraction]], within: float) -> bool:
    return all(
        len(got[kind]) == len(sent[kind])
        and all(abs(a - b) <= within for a, b in zip(got[kind], sent[kind], strict=True))
        for kind in "va"
    )


TICK = 0.0021
"""Seconds: two roundings to the milliseconds of Matroska."""


def clock_notes(notes: tuple[str, ...]) -> list[str]:
    return [note for note in notes if "the clock" in note]


# Where it begins


def late_clip(folder: Path, name: str, start: Fraction) -> Path:
    if name == "in.mp4":
        return fragmented(folder / name, start)
    more: Any = MPEG2 if name in ("in.mpg", "in.vob") else {}
    return streams.plain(folder / name, start=start, **more)


@pytest.mark.behaviour(2)
@pytest.mark.parametrize(
    ("name", "start", "how"),
    [
        ("in.ts", 36000, "at 9:59:59.979, and the output at 0"),
        ("in.mp4", 3600, "at 0:59:59.979, and"),
        ("in.mpg", 5000, "at 1:23:"),
        ("in.vob", 5000, "at 1:23:"),
        ("in.flv", 100, "at 0:01:39.979"),
        ("in.mkv", 100, "at 0:01:40.000"),
        ("in.ts", WRAP - Fraction(1, 2), "0.521 s below zero, and the output at 0"),
    ],
)
def test_a_clock_that_begins_anywhere_begins_at_zero(tmp_path, name, start, how):
    source = late_clip(tmp_path, name, Fraction(start))
    output = tmp_path / ("out.mp4" if start == 36000 else "out.mkv")
    planned = plan(source, output)
    # Where only the duration of the whole file is known, it is that of the sound.
    assert planned.frames_expected == pytest.approx(25, abs=2)
    dropped, sink = run(planned)
    assert dropped == []
    pictures, sound = (packet_times(output, kind) for kind in "va")
    assert min(pictures[0], sound[0]) == pytest.approx(0, abs=0.022)
    assert len(pictures) == 25
    assert max(*pictures, *sound) < 1.1
    # Their distance is kept, too: both are counted from the first frame.
    assert same(from_first_frame(output), from_first_frame(source), TICK)
    assert clock_notes((*grouped(planned.notes), *grouped(sink.notes))) == clock_notes(
        grouped(planned.notes)
    )
    assert [how in note for note in clock_notes(grouped(planned.notes))] == [True]
    assert clock_notes(grouped(planned.notes))[0].startswith(f"{source}: the clock begins ")


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("name", ["in.ts", "in.mkv"])
def test_a_common_beginning_is_not_worth_a_word(tmp_path, name):
    source = streams.plain(tmp_path / name, start=Fraction(7, 5))
    output = tmp_path / "out.mp4"
    planned = plan(source, output)
    _, sink = run(planned)
    assert clock_notes((*grouped(planned.notes), *grouped(sink.notes))) == []
    assert packet_times(output, "v")[0] < 0.03


@pytest.mark.behaviour(2)
def test_a_transport_stream_of_a_transport_stream_keeps_its_clock(tmp_path):
    source = streams.plain(tmp_path / "in.ts", start=Fraction(36000))
    planned = plan(source, tmp_path / "out.ts")
    run(planned)
    assert clock_notes(grouped(planned.notes)) == []
    for kind in "va":
        assert packet_times(tmp_path / "out.ts", kind) == packet_times(source, kind)


@pytest.mark.behaviour(2, 4)
@pytest.mark.parametrize("of_the_file", [False, True])
def test_subtitles_and_chapters_come_along(tmp_path, of_the_file):
    """Chapters follow the timestamps of the streams, or were left where they were."""
    whole, source = streams.mkv(tmp_path / "whole.mkv"), tmp_path / "in.mkv"
    chapters = tmp_path / "chapters.txt"
    late = 0 if of_the_file else 100
    chapters.write_text(
        ";FFMETADATA1\n"
        + "".join(
            f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={1000 * late + at}\nEND={1000 * late + at + 900}\n"
            for at in (0, 900)
        )
    )
    command = ["ffmpeg", "-v", "error", "-i", whole, "-i", chapters, "-c", "copy"]
    command += ["-map", "0:v:0", "-map", "0:a", "-map", "0:s"]
    command += ["-map_chapters", "1", "-output_ts_offset", "100", source]
    subprocess.check_call(command)
    output = tmp_path / "out.mkv"
    run(plan(source, output))
    before, after = probe(source), probe(output)
    assert [float(c["start"] * c["time_base"]) for c in after.chapters] == pytest.approx(
        [0, 0.9], abs=0.03
    )
    assert len(after.streams) == len(before.streams)
    for index in ("s:0", "s:1"):
        sent, got = packet_times(whole, index), packet_times(output, index)
        assert [float(time) for time in got] == pytest.approx([float(t) for t in sent], abs=0.03)


# Where it begins anew


@pytest.mark.behaviour(1, 2, 3)
@pytest.mark.parametrize(
    ("name", "output", "frames"),
    [
        ("in.ts", "out.mp4", (25, 20, 15)),
        ("in.ts", "out.mkv", (25, 20)),
        ("in.vob", "out.mkv", (25, 20, 15)),
        ("in.mpg", "out.mp4", (25, 20)),
        ("in.flv", "out.mkv", (25, 20, 15)),
        ("in.mkv", "out.mp4", (25, 20)),
    ],
)
def test_joined_parts_follow_each_other(tmp_path, name, output, frames):
    more: Any = MPEG2 if name in ("in.vob", "in.mpg") else {}
    parts = [
        streams.plain(tmp_path / f"{number}{name}", frames=count, **more)
        for number, count in enumerate(frames)
    ]
    source = joined(tmp_path / name, *parts)
    output = tmp_path / output
    planned = plan(source, output)
    if name != "in.mkv":
        assert planned.frames_expected == sum(frames)
    reader_dropped, sink = run(planned)
    assert reader_dropped == []
    for kind in "va":
        got = packet_times(output, kind)
        first = 0
        for part in parts:
            # Within a part all distances are kept.
            sent = packet_times(part, kind)
            part = got[first : first + len(sent)]
            assert since_first(part) == pytest.approx(since_first(sent), abs=TICK)
            first += len(sent)
        assert len(got) == first
        steps = [later - earlier for earlier, later in itertools.pairwise(got)]
        assert min(steps) > 0.019
        assert max(steps) < 0.12
    # Sound and video of the second part keep their distance from each other.
    first, second = ({kind: packet_times(part, kind) for kind in "va"} for part in parts[:2])
    begins = {kind: packet_times(output, kind)[len(first[kind])] for kind in "va"}
    apart = second["a"][0] - second["v"][0]
    assert begins["a"] - begins["v"] == pytest.approx(apart, abs=TICK)
    assert len(clock_notes((*grouped(planned.notes), *grouped(sink.notes)))) <= 1


@pytest.mark.behaviour(2)
def test_a_stream_that_only_one_part_has_begins_with_its_part(tmp_path):
    """Its first packets are the first on the new clock, but nothing in them shows that yet."""
    one = streams.plain(tmp_path / "1.vob", frames=50, **MPEG2)
    two = streams.plain(tmp_path / "2.vob", frames=50, codec="mpeg2video", audio="ac3")
    clock = Timeline("mpeg")
    times: dict[int, list[Fraction]] = {}
    with av.open(str(joined(tmp_path / "in.vob", one, two, one))) as container:
        assert len(container.streams) == 3
        for packet in clock.place(container.demux()):
            if packet.dts is not None:
                times.setdefault(packet.stream.index, []).append(packet.dts * packet.time_base)
    assert [each.kind for each in clock.discontinuities] == ["restart", "restart"]
    for each in times.values():
        assert min(b - a for a, b in itertools.pairwise(each)) > 0.019
    (pictures,) = (each for each in times.values() if len(each) == 150)
    only_two = next(each for each in times.values() if each[0] > pictures[0] + 1)
    assert only_two[0] - pictures[50] == pytest.approx(0, abs=0.1)


@pytest.mark.behaviour(2)
def test_a_clock_that_begins_anew_is_told_once(tmp_path):
    parts = [streams.plain(tmp_path / f"{number}.ts", frames=20) for number in range(3)]
    source = joined(tmp_path / "in.ts", *parts)
    planned = plan(source, tmp_path / "out.mkv")
    assert clock_notes(grouped(planned.notes)) == [
        f"{source}: the clock begins anew 2 times, first at 0.811 s; "
        "the parts are joined without a gap"
    ]
    assert describe(planned.info)["clock"]["begins_anew"] == 2


@pytest.mark.behaviour(2)
def test_what_only_reading_shows_is_told_afterwards(tmp_path, monkeypatch):
    """Planning does not read the whole of a large recording."""
    monkeypatch.setattr(lookahead, "_CHEAP_BYTES", 0)
    monkeypatch.setattr(lookahead, "LOOKAHEAD_PACKETS", 10)
    part = streams.plain(tmp_path / "part.ts", frames=30)
    source = joined(tmp_path / "in.ts", part, part)
    planned = plan(source, tmp_path / "out.mkv")
    assert clock_notes(grouped(planned.notes)) == []
    reader = VideoSource(planned)
    assert len(list(reader.read())) == 60
    reader.close()
    assert grouped(reader.notes) == (
        f"{source}: the clock begins anew at 1.216 s; the parts are joined without a gap",
    )


@pytest.mark.behaviour(2, 3)
@pytest.mark.parametrize("longer", ["sound", "pictures"])
def test_nothing_comes_to_lie_over_anything_where_parts_are_joined(tmp_path, longer):
    both = streams.plain(tmp_path / "both.ts", frames=75)
    cut = {"sound": "video", "pictures": "audio"}[longer]
    first = tmp_path / "first.ts"
    with av.open(str(both)) as original, av.open(str(first), "w") as copy:
        copies = [copy.add_stream_from_template(s, opaque=True) for s in original.streams]
        count = 0
        for packet in original.demux():
            count += packet.stream.type == cut
            # The video ends before a key frame, after 0.96 s.
            late = packet.stream.type == cut and count > (24 if cut == "video" else 45)
            if packet.size and not late:
                packet.stream = copies[packet.stream.index]
                copy.mux(packet)
    source = joined(tmp_path / "in.ts", first, both)
    output = tmp_path / "out.mkv"
    dropped, _ = run(plan(source, output))
    assert dropped == []
    pictures, sound = packet_times(output, "v"), packet_times(output, "a")
    for times, kind in ((pictures, "v"), (sound, "a")):
        assert len(times) == len(packet_times(source, kind))
        assert min(b - a for a, b in itertools.pairwise(times)) > 0.019
    # The longer stream goes on without a pause, and the other one pauses.
    times, step = (sound, 0.045) if longer == "sound" else (pictures, 0.085)
    assert max(b - a for a, b in itertools.pairwise(times)) < step
    assert 5.9 < max(*pictures, *sound) < 6.1


# Where it jumps


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("kinds", [("video", "audio"), ("video",), ("audio",)])
@pytest.mark.parametrize("suffix", [".ts", ".flv"])
def test_a_jump_ahead_is_closed(tmp_path, suffix, kinds):
    whole = streams.plain(tmp_path / f"whole{suffix}")
    source = moved(
        tmp_path / f"in{suffix}",
        whole,
        lambda kind, number: (
            3600 if kind in kinds and number >= {"video": 12, "audio": 23}[kind] else 0
        ),
    )
    output = tmp_path / "out.mkv"
    planned = plan(source, output)
    dropped, _ = run(planned)
    assert dropped == []
    if suffix == ".ts":
        assert planned.frames_expected == 25
    got = from_first_frame(output)
    assert same(got, from_first_frame(whole), 0.05)
    for times in got.values():
        assert min(b - a for a, b in itertools.pairwise(times)) > 0.019
    assert [note.split("; ")[1] for note in clock_notes(grouped(planned.notes))] == [
        "the gap is closed"
    ]


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_gap_in_a_file_with_a_clock_of_its_own_is_content(tmp_path, suffix):
    whole = streams.plain(tmp_path / f"whole{suffix}")
    source = moved(tmp_path / f"in{suffix}", whole, lambda _, number: 20 if number >= 12 else 0)
    output = tmp_path / "out.mkv"
    planned = plan(source, output)
    run(planned)
    got, sent = packet_times(output, "v"), packet_times(source, "v")
    assert since_first(got) == pytest.approx(since_first(sent), abs=TICK)
    assert got[-1] > 20
    assert clock_notes(grouped(planned.notes)) == []


@pytest.mark.behaviour(2)
def test_a_shorter_gap_is_content_everywhere(tmp_path):
    whole = streams.plain(tmp_path / "whole.ts")
    source = moved(tmp_path / "in.ts", whole, lambda _, number: 8 if number >= 24 else 0)
    planned = plan(source, tmp_path / "out.mkv")
    run(planned)
    assert since_first(packet_times(tmp_path / "out.mkv", "v"))[-1] == pytest.approx(8.96, abs=0.01)
    assert clock_notes(grouped(planned.notes)) == []


@pytest.mark.behaviour(2)
def test_what_is_missing_from_one_stream_alone_is_no_jump(tmp_path):
    """A recording has no sound for a while: the sound after that is still beside its frames."""
    source = moved(
        tmp_path / "in.ts",
        streams.plain(tmp_path / "whole.ts", codec="mpeg4"),
        lambda kind, number: number if kind == "video" else (15 if number >= 10 else 0),
    )
    output = tmp_path / "out.mkv"
    planned = plan(source, output)
    run(planned)
    assert clock_notes(grouped(planned.notes)) == []
    got = from_first_frame(output)
    assert same(got, from_first_frame(source), TICK)
    assert max(b - a for a, b in itertools.pairwise(got["a"])) > 15


# The same timeline for all readers


@pytest.mark.behaviour(10)
@pytest.mark.parametrize(
    ("options", "count", "first"),
    [({"ss": 1.2}, 45, 1.224), ({"to": 1.5}, 37, 0), ({"ss": 0.4, "to": 1.52}, 28, 0.4)],
)
def test_a_stretch_counts_on_the_one_clock(tmp_path, options, count, first):
    parts = [
        streams.plain(tmp_path / f"{number}.ts", frames=frames, start=Fraction(36000))
        for number, frames in enumerate((25, 50))
    ]
    source = joined(tmp_path / "in.ts", *parts)
    whole, output = tmp_path / "whole.mkv", tmp_path / "out.mkv"
    run(plan(source, whole))
    planned = plan(source, output, replace(FAST, **options))
    run(planned)
    frames = packet_times(output, "v")
    assert len(frames) == count
    assert planned.frames_expected == pytest.approx(count, abs=1)
    of_whole = packet_times(whole, "v")
    # The stretch is exact, but Matroska rounds times.
    begin, end = options.get("ss", 0) - 0.001, options.get("to", 99) - 0.001
    expected = [time for time in since_first(of_whole) if begin <= time < end]
    assert expected[0] == pytest.approx(first, abs=0.002)
    assert since_first(frames) == pytest.approx(since_first(expected), abs=TICK)
    apart = packet_times(whole, "a")[-1] - of_whole[-1]
    if "to" not in options:
        assert packet_times(output, "a")[-1] - frames[-1] == pytest.approx(apart, abs=TICK)


@pytest.mark.behaviour(36)
def test_inspect_counts_from_the_first_frame(tmp_path):
    part = streams.plain(tmp_path / "1.ts", start=Fraction(36000))
    description = describe(probe(joined(tmp_path / "in.ts", part, part)))
    assert description["clock"] == {"begins_at_seconds": 36000.0, "begins_anew": 1, "jumps": 0}
    assert [stream["start_seconds"] for stream in description["streams"]] == [
        0,
        pytest.approx(-0.0213, abs=0.0001),
    ]
    assert description["duration_seconds"] == pytest.approx(2.05, abs=0.01)


@pytest.mark.behaviour(36)
def test_a_matroska_that_begins_late_is_as_long_as_what_it_holds(tmp_path):
    info = probe(streams.plain(tmp_path / "in.mkv", start=Fraction(100)))
    assert describe(info)["duration_seconds"] == pytest.approx(1.02, abs=0.01)


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("by", [-0.5, 5000, -5000])
def test_one_damaged_time_moves_nothing_but_itself(tmp_path, by):
    source = streams.plain(tmp_path / "in.ts", frames=50)

    def damaged(packets: Any) -> Any:
        sounds = itertools.count()
        for packet in packets:
            if packet.size and packet.stream.type == "audio" and next(sounds) == 30:
                packet.pts = packet.dts = packet.dts + round(by * 90_000)
            yield packet

    def seen(packets: Any) -> list[tuple[int, int, bytes]]:
        return [(p.stream_index, p.pts, bytes(p)) for p in packets if p.size]

    with av.open(str(source)) as container:
        sent = seen(container.demux())
    clock = Timeline("mpegts")
    with av.open(str(source)) as container:
        got = seen(clock.place(damaged(container.demux())))
    assert [(index, data) for index, _, data in got] == [(index, data) for index, _, data in sent]
    wrong = [a for a, b in zip(got, sent, strict=True) if abs(a[1] - b[1]) > 90]
    assert [index for index, *_ in wrong] == ([1] if abs(by) < 10 else [])
