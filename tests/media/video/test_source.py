"""What is read of a video: order, times, the stretch, and what is lost or cut short."""

from __future__ import annotations

import itertools
import re
import subprocess
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.video import decoding
from cyclegan_batch.media.video.decoding import FrameReader
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.wording import grouped
from tests.media.identity import FAST, LOSSLESS, plan, run, seen
from tests.media.witness import ALIKE, needs_ffprobe, pictures, single_threaded_times, times
from tests.synthesis import streams
from tests.synthesis.videos import damaged, elementary_stream, encode, moving, pes_starts


@needs_ffprobe
@pytest.mark.behaviour(1)
def test_frames_without_times_follow_each_other_by_the_rate(tmp_path):
    source = elementary_stream(tmp_path / "in.h264", frames=12)
    output = tmp_path / "out.mp4"
    run(plan(source, output))
    got = times(output)
    assert len(got) == 12
    steps = {round(b - a, 3) for a, b in itertools.pairwise(got)}
    assert steps == {Fraction(1, 25)}


@needs_ffprobe
@pytest.mark.behaviour(1)
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"g": "20"}),
        ("libx264", {"g": "20", "x264-params": "open-gop=1:bframes=2"}),
        ("libx265", {"x265-params": "log-level=none:keyint=20:min-keyint=20:scenecut=0"}),
        ("mpeg2video", {"g": "20"}),
    ],
)
def test_a_recording_that_begins_between_key_frames_is_read_once(
    tmp_path, monkeypatch, codec, options
):
    """No player shows what precedes the first key frame, and it is no damage."""
    whole = moving(tmp_path / "whole.ts", frames=60, codec=codec, options=options)
    source = tmp_path / "in.ts"
    content = whole.read_bytes()
    source.write_bytes(content[len(content) // 4 // 188 * 188 :])
    passes = []
    decode = FrameReader._decode

    def counted(self: FrameReader, *, careful: bool) -> Any:
        passes.append(careful)
        return decode(self, careful=careful)

    monkeypatch.setattr(FrameReader, "_decode", counted)
    items = seen(plan(source, tmp_path / "out.mkv"))
    assert not any(isinstance(item, Dropped) for item in items)
    # FFmpeg 5 shows some of HEVC's frames that FFmpeg 8 leaves out.
    assert len(items) == len(pictures(source)) or codec == "libx265"
    assert 39 <= len(items) <= 41
    assert passes == [False]


@needs_ffprobe
@pytest.mark.behaviour(1)
def test_a_stream_that_changes_its_size_comes_out_in_one(tmp_path):
    first = elementary_stream(tmp_path / "a.h264", frames=5, size=(48, 64)).read_bytes()
    second = elementary_stream(tmp_path / "b.h264", frames=5, size=(96, 80)).read_bytes()
    source = tmp_path / "in.h264"
    source.write_bytes(first + second)
    planned = plan(source, tmp_path / "out.mp4")
    reader = VideoSource(planned)
    assert len(list(reader.read())) == 10
    assert len(grouped(reader.notes)) == 1
    assert "in.h264: the video changes its size" in grouped(reader.notes)[0]
    run(planned)
    assert pictures(tmp_path / "out.mp4").shape == (10, *planned.size, 3)


# The stretch


@needs_ffprobe
@pytest.mark.behaviour(10)
@pytest.mark.parametrize(
    ("options", "first", "count"),
    [
        ({"ss": 0.4}, 10, 40),
        ({"to": 0.4}, 0, 10),
        ({"ss": 0.2, "to": 0.6}, 5, 10),
        ({"frames": 7}, 0, 7),
        ({"ss": 1.0, "frames": 3}, 25, 3),
        ({"ss": 0.41}, 11, 39),
    ],
)
def test_exactly_the_stretch_that_was_asked_for(tmp_path, options, first, count):
    source = streams.plain(tmp_path / "in.mkv", frames=50, start=Fraction(2))
    planned = plan(source, tmp_path / "out.mkv", replace(LOSSLESS, **options))
    # From the duration of the file, whose sound is a frame longer than its video.
    assert planned.frames_expected is not None
    assert abs(planned.frames_expected - count) <= 1
    frames = seen(planned)
    assert [frame.index for frame in frames] == list(range(count))
    whole = pictures(source)
    base = planned.stream.time_base
    assert [round(float(f.tag.pts * base - 2) * 25) for f in frames] == list(
        range(first, first + count)
    )
    for frame, number in zip(frames, range(first, first + count), strict=True):
        assert np.abs(frame.pixels.astype(int) - whole[number]).mean() < ALIKE
    run(planned)
    assert len(times(tmp_path / "out.mkv")) == count


@pytest.mark.behaviour(10)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("x264", ["open-gop=0", "open-gop=1:bframes=3"])
def test_a_stretch_reached_by_seeking_equals_one_decoded_from_the_start(
    tmp_path, monkeypatch, suffix, x264
):
    source = moving(tmp_path / f"in{suffix}", frames=150, options={"g": "10", "x264-params": x264})
    planned = plan(source, tmp_path / f"out{suffix}", replace(FAST, ss=4.0, frames=20))
    slow = seen(planned)
    monkeypatch.setattr(decoding, "_SEEK_FROM", 1)
    monkeypatch.setattr(decoding, "_SEEK_MARGIN", Fraction(1, 10))
    reader = VideoSource(planned)
    convert = reader.converter()
    fast: list[Any] = [convert(item) for item in reader.read()]  # type: ignore[arg-type]
    # In the index of an open GOP stream only the first frame is a key frame.
    assert reader._reading._reader.has_seeked
    assert "=1" in x264 or reader._reading._reader.received.packets < 60, (
        "it has decoded everything"
    )
    assert len(fast) == len(slow) == 20
    for one, other in zip(fast, slow, strict=True):
        assert one.tag == other.tag
        assert np.array_equal(one.pixels, other.pixels)


@pytest.mark.behaviour(10, 22)
def test_a_broken_frame_behind_a_seek_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "_SEEK_FROM", 1)
    monkeypatch.setattr(decoding, "_SEEK_MARGIN", 0.5)
    whole = moving(tmp_path / "whole.mkv", frames=100, options={"g": "10", "bf": "0"})
    source = damaged(tmp_path / "in.mkv", whole, [87])
    items = seen(plan(source, tmp_path / "out.mkv", replace(FAST, ss=3.0)))
    lost = [number for number, item in enumerate(items) if isinstance(item, Dropped)]
    assert 12 in lost
    assert lost == list(range(12, 12 + len(lost)))
    assert len(items) == 25
    got = [item.tag.pts for item in items if not isinstance(item, Dropped)]
    assert got == [40 * n for n in range(75, 100) if n - 75 not in lost]


def test_a_stretch_behind_the_end_errors(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", audio=None)
    planned = plan(source, tmp_path / "out.mp4", replace(FAST, ss=5.0))
    with pytest.raises(InputError, match=r"in.mp4: no frame lies in the range .*ends at 1\.0"):
        list(VideoSource(planned).read())


# Broken files


@needs_ffprobe
@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_that_is_cut_short_is_told_and_what_there_is_comes_out(tmp_path, suffix):
    whole = streams.plain(tmp_path / f"whole{suffix}", frames=100, audio=None)
    if suffix == ".mp4":
        # A part of an MP4 can be read only if the index comes first.
        faststart = tmp_path / "fast.mp4"
        command = ["ffmpeg", "-v", "error", "-i", whole, "-c", "copy", "-movflags", "+faststart"]
        subprocess.check_call([*command, faststart])
        whole = faststart
    source = streams.truncated(tmp_path / f"in{suffix}", whole, keep=0.7)
    output = tmp_path / f"out{suffix}"
    dropped, _ = run(plan(source, output))
    assert dropped
    last = dropped[-1]
    assert last.name == str(source)
    assert "is cut short: its header states" in str(last.error) or "to its end" in str(last.error)
    there = len(times(output))
    assert 20 < there < 100
    numbers = ("100 frames",) if suffix == ".mp4" else ("4.000 s",)
    assert all(number in str(last.error) for number in numbers)


@needs_ffprobe
@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_what_is_missing_from_a_damaged_transport_stream_is_counted(tmp_path, on_error):
    """FFmpeg reports nothing of a frame whose whole packet is lost; its time stays empty."""
    whole = moving(tmp_path / "whole.ts", frames=75, options={"bf": "2", "g": "12"})
    content = bytearray(whole.read_bytes())
    starts = pes_starts(content)
    assert len(starts) == 75
    for number in (30, 40, 41):
        # Without the TS packet in which a frame begins, its other packets belong to no frame.
        content[starts[number]] ^= 0xFF
    damage = slice(starts[48] + 188 + 20, starts[48] + 188 + 180)
    content[damage] = bytes(byte ^ 0xFF for byte in content[damage])
    source = tmp_path / "in.ts"
    source.write_bytes(content)
    dropped, _ = run(plan(source, tmp_path / "out.mkv", replace(FAST, on_error=on_error)))
    written = len(times(tmp_path / "out.mkv"))
    counted = [each for each in dropped if " missing from " in str(each.error)]
    concealed = [each for each in dropped if "concealed" in str(each.error)]
    assert len(counted) == 1
    missing = re.search(r"in\.ts: (\d+) (more )?frames? (are|is) missing", str(counted[0].error))
    assert missing is not None
    assert written + len(dropped) - len(concealed) - 1 + int(missing[1]) == 75
    assert all(("--on-error fail" in str(each.error)) == (on_error == "fail") for each in dropped)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        ([40 * i for i in range(60) if i not in (20, 31, 32)], "3 frames are missing from 0.800 s"),
        ([40 * i for i in range(60)], None),
        (list(streams.VFR_TIMES), None),
    ],
)
def test_gaps_of_an_undamaged_transport_stream_are_a_note(tmp_path, milliseconds, text):
    source = streams.variable_rate(tmp_path / "in.ts", milliseconds)
    reader = VideoSource(plan(source, tmp_path / "out.mkv"))
    items = list(reader.read())
    reader.close()
    assert len(items) == len(milliseconds)
    assert not [item for item in items if isinstance(item, Dropped)]
    assert [text in note for note in grouped(reader.notes)] == ([] if text is None else [True])


@pytest.mark.behaviour(1, 10)
def test_a_stretch_ends_short_only_where_the_file_does_before(tmp_path):
    whole = streams.plain(tmp_path / "whole.mkv", frames=100, audio=None)
    source = streams.truncated(tmp_path / "in.mkv", whole, keep=0.7)

    def dropped(to: float) -> list[str]:
        items = seen(plan(source, tmp_path / "out.mkv", replace(FAST, to=to)))
        return [str(item.error) for item in items if isinstance(item, Dropped)]

    there = len(seen(plan(source, tmp_path / "out.mkv"))) - 1
    assert 20 < there < 90
    assert dropped(there / 25) == []
    assert "is cut short" in dropped(3.9)[0]


@pytest.mark.behaviour(1)
@pytest.mark.parametrize(
    "suffix", [".mp4", ".mkv", ".avi", ".ts", ".mov", ".mpg", ".webm", ".flv", ".wmv", ".nut"]
)
def test_a_whole_file_is_not_called_short(tmp_path, suffix):
    codec, audio = {
        ".webm": ("libvpx", "libopus"),
        ".avi": ("libx264", "mp2"),
        ".wmv": ("wmv2", "libmp3lame"),
    }.get(suffix, ("libx264", "aac"))
    source = tmp_path / f"in{suffix}"
    if suffix == ".mpg":
        frames = [av.VideoFrame(64, 48, "yuv420p") for _ in range(30)]
        encode(source, frames, "mpeg2video", {"bf": "2"})
    else:
        streams.plain(source, frames=30, codec=codec, audio=audio, start=Fraction(1, 5))
    items = seen(plan(source, tmp_path / "out.mkv"))
    assert not [item for item in items if isinstance(item, Dropped)]
    assert len(items) == 30


@needs_ffprobe
@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize("broken", [[0], [10], [12], [30], [58, 59]])
def test_an_undecodable_packet_costs_its_frames_and_no_other(tmp_path, broken):
    """All frames that refer to a lost key frame are named as lost; the others keep their times."""
    whole = moving(tmp_path / "whole.mkv", frames=60, options={"bf": "2", "g": "12"})
    source = damaged(tmp_path / "in.mkv", whole, broken)
    output = tmp_path / "out.mkv"
    dropped, _ = run(plan(source, output))
    # A frame that comes out after a later one lacks its references: it is lost as well.
    shown_times = single_threaded_times(source)
    decodable = [time for k, time in enumerate(shown_times) if time == max(shown_times[: k + 1])]
    assert [float(time) for time in times(output)] == pytest.approx(decodable, abs=0.001)
    assert len(dropped) == 60 - len(decodable)
    lost = sorted(set(range(60)) - {round(time * 25) for time in decodable})
    assert all(each.name.startswith(f"{source}, frame ") for each in dropped)
    assert [each.name.split("(")[1] for each in dropped] == [
        f"{number / 25:.3f} s)" for number in lost
    ]
    assert all("cannot be decoded" in str(each.error) for each in dropped)


@needs_ffprobe
@pytest.mark.behaviour(22)
@pytest.mark.parametrize(
    ("codec", "options", "broken", "half", "lost", "concealed"),
    [
        ("libx264", {"bf": "0", "g": "10"}, 10, True, [], [10]),
        ("libx264", {"bf": "2", "g": "12"}, 12, True, [], [12]),
        ("mpeg4", {"g": "10", "bf": "0"}, 10, True, [], [10]),
        ("libx265", {"x265-params": "bframes=0"}, 12, False, [12], range(13, 20)),
        ("libx265", {"x265-params": "bframes=2"}, 12, False, [12], [11, *range(14, 20)]),
    ],
)
def test_a_frame_that_the_decoder_conceals_is_kept_and_counted(
    tmp_path, codec, options, broken, half, lost, concealed
):
    """HEVC's decoder silently leaves out all frames that refer to a lost one (FFmpeg 8)."""
    if codec == "libx265":
        options = {"x265-params": f"log-level=none:keyint=10:{options['x265-params']}"}
    whole = moving(tmp_path / "whole.mkv", frames=30, codec=codec, options=options)
    source = damaged(tmp_path / "in.mkv", whole, [broken], half=half)
    dropped, _ = run(plan(source, tmp_path / "out.mkv"))
    assert [round(time * 25) for time in times(tmp_path / "out.mkv")] == [
        number for number in range(30) if number not in lost
    ]
    numbers = [
        [each.place.number for each in dropped if each.place and trouble in each.place.trouble]
        for trouble in ("cannot be decoded", "damaged, concealed by the decoder")
    ]
    assert numbers == [lost, list(concealed)]
    assert len(dropped) == sum(map(len, numbers))
    # Times count from the first frame.
    assert all(each.place and each.place.seconds == each.place.number / 25 for each in dropped)


def test_a_video_without_one_good_frame_errors(tmp_path):
    whole = moving(tmp_path / "whole.mkv", frames=5, options={"bf": "0", "g": "50"})
    source = damaged(tmp_path / "in.mkv", whole, range(5))
    with pytest.raises(InputError, match=r"in.mkv: stream 0 .video h264. cannot be decoded"):
        plan(source, tmp_path / "out.mkv")
    sink = VideoSink(plan(whole, tmp_path / "out.mkv"))
    with pytest.raises(OutputError, match=r"out.mkv: no frame was read"):
        sink.finish()
    sink.discard()
    assert not (tmp_path / "out.mkv").exists()


# Interlaced


@needs_ffprobe
@pytest.mark.behaviour(1, 2)
def test_deinterlacing_keeps_count_and_times(tmp_path):
    source = streams.plain(tmp_path / "in.mkv", frames=20, audio=None, interlaced=True)
    output = tmp_path / "out.mkv"
    as_is = plan(source, output)
    assert [note for note in grouped(as_is.notes) if "interlaced" in note] == [
        f"{source}: the video is interlaced; --deinterlace makes whole frames of it"
    ]
    planned = plan(source, output, replace(FAST, deinterlace=True))
    assert not [note for note in grouped(planned.notes) if "interlaced" in note]
    before, after = seen(as_is), seen(planned)
    assert [frame.tag for frame in after] == [frame.tag for frame in before]
    assert any(
        not np.array_equal(one.pixels, other.pixels)
        for one, other in zip(before, after, strict=True)
    )
    run(planned)
    assert times(output) == times(source)
