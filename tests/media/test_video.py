"""One video in, one video out, by the identity; ffmpeg and ffprobe are independent witnesses."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.media import Dropped, video
from cyclegan_batch.media.formats import PIPE
from cyclegan_batch.media.video import VideoPlan, VideoSink, VideoSource, choose_pix_fmt, plan_video
from cyclegan_batch.options import TranslateOptions
from tests.synthesis import colours, streams
from tests.synthesis import pictures as photos

needs_ffprobe = pytest.mark.skipif(
    shutil.which("ffprobe") is None or shutil.which("ffmpeg") is None,
    reason="ffmpeg and ffprobe, the independent witnesses, are not installed",
)
FAST = TranslateOptions(preset="ultrafast")
ALIKE = 1.5
"""Grey levels between our RGB and another scaler's of one picture; the next picture is at 11."""
LOSSLESS = TranslateOptions(preset="ultrafast", crf=0)


def plan(source: Path, output: Path, options: TranslateOptions = FAST, **how: Any) -> VideoPlan:
    return plan_video(source, output, options, pixel_type=how.pop("pixel_type", "uint8"), **how)


def run(plan: VideoPlan) -> tuple[list[Dropped], VideoSink]:
    """Send every frame through both converters, as the pipeline does."""
    source, sink = VideoSource(plan), VideoSink(plan)
    from_raw, to_encoded = source.converter(), sink.converter()
    dropped = []
    for item in source.read():
        frame = item if isinstance(item, Dropped) else from_raw(item)
        if isinstance(frame, Dropped):
            dropped.append(frame)
        else:
            sink.write(to_encoded(frame))
    source.close()
    sink.finish()
    return dropped, sink


def seen(plan: VideoPlan) -> list[Any]:
    """Return all frames as the network sees them, and the dropped ones in their places."""
    source = VideoSource(plan)
    convert = source.converter()
    items = [each if isinstance(each, Dropped) else convert(each) for each in source.read()]
    source.close()
    return items


def probe(path: Path, entries: str, *more: str) -> dict[str, Any]:
    """Ask ffprobe about the first video stream."""
    command = ["ffprobe", "-v", "error", "-select_streams", "V:0", "-of", "json", *more]
    command += ["-show_entries", entries, str(path)]
    answer: dict[str, Any] = json.loads(subprocess.check_output(command))
    return answer


def times(path: Path) -> list[Fraction]:
    """Return when ffprobe would show each frame, in seconds."""
    found = probe(path, "frame=best_effort_timestamp,pkt_dts:stream=time_base")
    base = Fraction(found["streams"][0]["time_base"])
    # AVI has no presentation times, and ffprobe none for its B-frames.
    return [f.get("best_effort_timestamp", f.get("pkt_dts", 0)) * base for f in found["frames"]]


def tick(path: Path) -> Fraction:
    return Fraction(probe(path, "stream=time_base")["streams"][0]["time_base"])


def pictures(path: Path, *options: str) -> np.ndarray[Any, Any]:
    """Return all frames as ffmpeg decodes them, turned upright, ``(N, H, W, 3)``."""
    command = ["ffmpeg", "-v", "error", *options, "-i", str(path), "-fps_mode", "passthrough"]
    # The scaler's default flags darken by a level.
    command += [
        "-sws_flags",
        "bicubic+accurate_rnd+full_chroma_int",
        "-an",
        "-f",
        "image2pipe",
        "-c:v",
        "ppm",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    content = subprocess.check_output(command)
    stack = []
    while content:
        header = content[:64].split(b"\n", 3)
        width, height = map(int, header[1].split())
        start = sum(len(line) + 1 for line in header[:3])
        end = start + width * height * 3
        stack.append(np.frombuffer(content[start:end], np.uint8).reshape(height, width, 3))
        content = content[end:]
    return np.stack(stack)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# Frames and times


@needs_ffprobe
@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts", ".avi"])
def test_every_frame_comes_out_at_its_time(tmp_path, suffix):
    source = streams.plain(tmp_path / f"in{suffix}", audio=None)
    output = tmp_path / f"out{suffix}"
    dropped, sink = run(plan(source, output))
    assert dropped == []
    assert sink.written == [output]
    assert leftovers(tmp_path) == []
    sent, got = times(source), times(output)
    assert len(got) == len(sent) == 25
    if suffix != ".avi":
        assert max(abs(a - b) for a, b in zip(sent, got, strict=True)) <= tick(output)
    assert np.abs(pictures(output).astype(int) - pictures(source)).mean() < 4


@needs_ffprobe
@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
def test_variable_frame_rate_keeps_every_time(tmp_path, suffix, codec):
    """MPEG-2 and MPEG-4 count frames or refuse fine clocks: the times are put back behind them."""
    source = streams.variable_rate(tmp_path / f"in{suffix}")
    output = tmp_path / f"out{suffix}"
    options = FAST if codec == "libx264" else TranslateOptions(codec=codec)
    made = plan(source, output, options)
    assert made.encoder.counts_frames == (codec == "mpeg2video")
    run(made)
    sent, got = times(source), times(output)
    assert len(sent) == len(streams.VFR_TIMES)
    assert len(got) == len(sent)
    assert max(abs(a - b) for a, b in zip(sent, got, strict=True)) <= tick(output)


@needs_ffprobe
@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("codec", ["mpeg2video", "mpeg4"])
def test_a_rate_that_no_standard_knows_keeps_every_time(tmp_path, codec):
    """Neither encoder takes this clock, nor the average of these times as a rate."""
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w", options={"video_track_timescale": "90000"}) as file:
        stream: Any = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 90000)
        for number, pts in enumerate((0, 1, 2, 300, 301, 302, 9000)):
            frame = av.VideoFrame.from_ndarray(streams.picture(number), "rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 90000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    run(plan(source, tmp_path / "out.mp4", TranslateOptions(codec=codec)))
    assert times(tmp_path / "out.mp4") == times(source)


@needs_ffprobe
@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize(
    ("codec", "more"),
    [
        ("libx265", {"preset": "ultrafast"}),
        ("libsvtav1", {"preset": "12"}),
        ("libvpx-vp9", {"encoder_opt": {"cpu-used": "8"}}),
        ("libvpx", {"encoder_opt": {"cpu-used": "8"}}),
        ("ffv1", {}),
        ("prores_ks", {}),
    ],
)
def test_no_encoder_drops_or_doubles_a_frame(tmp_path, codec, more):
    source = streams.plain(tmp_path / "in.mkv", audio=None, frames=40)
    output = tmp_path / "out.mkv"
    run(plan(source, output, TranslateOptions(codec=codec, **more)))
    sent, got = times(source), times(output)
    assert len(got) == len(sent) == 40
    assert max(abs(a - b) for a, b in zip(sent, got, strict=True)) <= tick(output)
    assert np.abs(pictures(output).astype(int) - pictures(source)).mean() < 6


@needs_ffprobe
@pytest.mark.parametrize(
    ("codec", "more", "suffix"),
    [
        ("dnxhd", {"profile": "dnxhr_sq"}, ".mov"),
        ("qtrle", {}, ".mov"),
        ("mjpeg", {"strict": "unofficial"}, ".avi"),
    ],
)
def test_an_encoder_gets_its_options_and_its_container(tmp_path, codec, more, suffix):
    source = streams.plain(tmp_path / "in.mp4", audio=None, frames=5, size=(128, 256))
    output = tmp_path / f"out{suffix}"
    run(plan(source, output, TranslateOptions(codec=codec, encoder_opt=more)))
    assert np.abs(pictures(output).astype(int) - pictures(source)).mean() < 2


@pytest.mark.behaviour(1)
@pytest.mark.parametrize("frames", [1, 2])
def test_x265_encodes_a_clip_shorter_than_its_delay(tmp_path, capfd, frames):
    source = streams.plain(tmp_path / "in.mp4", audio=None, frames=frames)
    run(plan(source, tmp_path / "out.mp4", TranslateOptions(codec="libx265")))
    assert len(pictures(tmp_path / "out.mp4")) == frames
    assert capfd.readouterr().err == ""


@needs_ffprobe
@pytest.mark.behaviour(2)
def test_a_late_start_moves_to_zero(tmp_path):
    source = streams.plain(tmp_path / "in.mkv", audio=None, start=Fraction(3, 2))
    run(plan(source, tmp_path / "out.mkv"))
    sent, got = times(source), times(tmp_path / "out.mkv")
    assert (sent[0], got[0]) == (Fraction(3, 2), 0)
    assert [time - sent[0] for time in sent] == got


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
    """What comes before the first key frame is shown by no player, and is no damage."""
    whole = moving(tmp_path / "whole.ts", frames=60, codec=codec, options=options)
    source = tmp_path / "in.ts"
    content = whole.read_bytes()
    source.write_bytes(content[len(content) // 4 // 188 * 188 :])
    passes = []
    decode = VideoSource._decode

    def counted(self: VideoSource, *, careful: bool) -> Any:
        passes.append(careful)
        return decode(self, careful=careful)

    monkeypatch.setattr(VideoSource, "_decode", counted)
    items = seen(plan(source, tmp_path / "out.mkv"))
    assert not any(isinstance(item, Dropped) for item in items)
    # FFmpeg 5 shows some of HEVC's that FFmpeg 8 leaves out.
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
    made = plan(source, tmp_path / "out.mp4")
    reader = VideoSource(made)
    assert len(list(reader.read())) == 10
    assert len(reader.notes) == 1
    assert "in.h264: the video changes its size" in reader.notes[0]
    run(made)
    assert pictures(tmp_path / "out.mp4").shape == (10, *made.size, 3)


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
    made = plan(source, tmp_path / "out.mkv", replace(LOSSLESS, **options))
    # By the file's duration, which is the sound's: a frame longer than the picture.
    assert made.frames_expected is not None
    assert abs(made.frames_expected - count) <= 1
    frames = seen(made)
    assert [frame.index for frame in frames] == list(range(count))
    whole = pictures(source)
    base = made.stream.time_base
    assert [round(float(f.tag.pts * base - 2) * 25) for f in frames] == list(
        range(first, first + count)
    )
    for frame, number in zip(frames, range(first, first + count), strict=True):
        assert np.abs(frame.pixels.astype(int) - whole[number]).mean() < ALIKE
    run(made)
    assert len(times(tmp_path / "out.mkv")) == count


@pytest.mark.behaviour(10)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("x264", ["open-gop=0", "open-gop=1:bframes=3"])
def test_a_stretch_reached_by_seeking_equals_one_decoded_from_the_start(
    tmp_path, monkeypatch, suffix, x264
):
    source = moving(tmp_path / f"in{suffix}", frames=150, options={"g": "10", "x264-params": x264})
    made = plan(source, tmp_path / f"out{suffix}", replace(FAST, ss=4.0, frames=20))
    slow = seen(made)
    monkeypatch.setattr(video, "_FAR", 1)
    monkeypatch.setattr(video, "_MARGIN", Fraction(1, 10))
    reader = VideoSource(made)
    convert = reader.converter()
    fast: list[Any] = [convert(item) for item in reader.read()]  # type: ignore[arg-type]
    # The index has no key frame in the middle of an open GOP stream but the first.
    assert reader._sought
    assert "=1" in x264 or reader._packets < 60, "it has decoded everything"
    assert len(fast) == len(slow) == 20
    for one, other in zip(fast, slow, strict=True):
        assert one.tag == other.tag
        assert np.array_equal(one.pixels, other.pixels)


@pytest.mark.behaviour(10, 22)
def test_a_broken_frame_behind_a_seek_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_FAR", 1)
    monkeypatch.setattr(video, "_MARGIN", 0.5)
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
    made = plan(source, tmp_path / "out.mp4", replace(FAST, ss=5.0))
    with pytest.raises(InputError, match=r"in.mp4: no frame lies in the stretch .*ends at 1.0"):
        list(VideoSource(made).read())


# Orientation, shape, size


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_all_orientations_become_upright(tmp_path, angle, mirrored):
    source = streams.plain(
        tmp_path / "in.mp4", frames=3, audio=None, rotation=(angle, mirrored, False)
    )
    output = tmp_path / "out.mp4"
    made = plan(source, output, LOSSLESS)
    assert made.size == ((64, 48) if angle % 180 else (48, 64))
    upright = pictures(source)
    assert upright.shape[1:3] == made.size
    for frame, wanted in zip(seen(made), upright, strict=True):
        assert np.abs(frame.pixels.astype(int) - wanted).mean() < ALIKE
    run(made)
    assert np.abs(pictures(output, "-autorotate", "0").astype(int) - upright).mean() < 4
    assert "side_data_list" not in probe(output, "stream_side_data=rotation")["streams"][0]


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize(("angle", "shape"), [(0, "4:3"), (90, "3:4"), (180, "4:3")])
def test_pixels_that_are_not_square_keep_their_shape(tmp_path, angle, shape):
    source = streams.plain(
        tmp_path / "in.mp4",
        frames=3,
        audio=None,
        rotation=(angle, False, False),
        sample_aspect_ratio=Fraction(4, 3),
    )
    output = tmp_path / "out.mp4"
    run(plan(source, output))
    found = probe(output, "stream=sample_aspect_ratio")["streams"][0]
    assert found["sample_aspect_ratio"] == shape


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libvpx-vp9", ".webm"),
        ("libvpx-vp9", ".mkv"),
        ("libvpx-vp9", ".mp4"),
        ("libvpx", ".webm"),
        ("libsvtav1", ".mp4"),
        ("libsvtav1", ".mkv"),
        ("ffv1", ".mkv"),
        ("ffv1", ".avi"),
        ("prores_ks", ".mov"),
        ("prores_ks", ".mkv"),
        ("qtrle", ".mov"),
        ("mpeg4", ".avi"),
        ("libx264", ".mkv"),
        ("libx264", ".ts"),
        ("libx264", ".nut"),
        ("ffv1", ".nut"),
        ("libvpx-vp9", ".nut"),
    ],
)
def test_pixels_keep_their_shape_with_every_encoder_and_container(tmp_path, codec, suffix):
    """Where the stream itself has no place for it, the container has."""
    source = streams.plain(
        tmp_path / "in.mp4",
        frames=5,
        audio=None,
        size=(96, 144),
        sample_aspect_ratio=Fraction(8, 5),
    )
    output = tmp_path / f"out{suffix}"
    fast = {"cpu-used": "8"} if codec.startswith("libvpx") else {}
    run(plan(source, output, TranslateOptions(codec=codec, encoder_opt=fast)))
    found = probe(output, "stream=sample_aspect_ratio:stream_tags=title")["streams"][0]
    across, down = map(int, found["sample_aspect_ratio"].split(":"))
    # WebM counts whole pixels.
    assert across / down == pytest.approx(8 / 5, abs=0.5 / 144 if suffix == ".webm" else 0)
    assert "title" not in found.get("tags", {})
    assert b"<aspect" not in output.read_bytes()
    assert len(pictures(output)) == 5


@needs_ffprobe
@pytest.mark.behaviour(4, 7)
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".webm"])
def test_the_name_of_a_stream_survives_the_shape_of_its_pixels(tmp_path, suffix):
    """The shape is written into a place that the name has kept free."""
    whole = streams.plain(
        tmp_path / "in.mkv", frames=2, audio=None, sample_aspect_ratio=Fraction(16, 11)
    )
    source = tmp_path / "named.mkv"
    command = ["ffmpeg", "-v", "error", "-i", whole, "-c", "copy"]
    subprocess.run([*command, "-metadata:s:v", "title=Zwölf ½", source], check=True)
    output = tmp_path / f"out{suffix}"
    run(plan(source, output, TranslateOptions(codec="libvpx-vp9" if suffix == ".webm" else "ffv1")))
    found = probe(output, "stream=sample_aspect_ratio:stream_tags=title")["streams"][0]
    assert found["tags"]["title"] == "Zwölf ½"
    across, down = map(int, found["sample_aspect_ratio"].split(":"))
    assert across / down == pytest.approx(16 / 11, abs=0.5 / 64)


@needs_ffprobe
@pytest.mark.behaviour(4, 7)
def test_a_copied_video_keeps_the_shape_of_its_pixels_too(tmp_path):
    """Of two videos in one file, one is translated."""
    source = tmp_path / "in.mkv"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=s=64x48:d=0.1,setsar=16/11"]
    command += ["-f", "lavfi", "-i", "testsrc=s=32x32:d=0.1,setsar=8/5", "-map", "0", "-map", "1"]
    subprocess.run([*command, "-c:v", "libvpx-vp9", "-cpu-used", "8", source], check=True)
    for suffix in (".mkv", ".mp4"):
        output = tmp_path / f"out{suffix}"
        run(plan(source, output))
        found = subprocess.check_output(
            ["ffprobe", "-v", "error", "-show_entries", "stream=sample_aspect_ratio",
             "-of", "csv=p=0", output], text=True,
        )  # fmt: skip
        assert found.split() == ["16:11", "8:5"]


@needs_ffprobe
@pytest.mark.behaviour(7)
def test_a_kept_network_size_is_shown_in_the_source_shape(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    output = tmp_path / "out.mp4"
    made = plan(source, output, output_size=lambda size: (64, 64))
    assert made.size == (48, 64)
    sink = VideoSink(made)
    convert = sink.converter()
    for frame in seen(made):
        sink.write(convert(replace(frame, pixels=np.zeros((64, 64, 3), np.uint8))))
    sink.finish()
    found = probe(output, "stream=sample_aspect_ratio,width,height")["streams"][0]
    assert (found["width"], found["height"], found["sample_aspect_ratio"]) == (64, 64, "4:3")


@needs_ffprobe
@pytest.mark.behaviour(9)
@pytest.mark.parametrize("size", [(47, 64), (48, 61), (53, 67), (2, 2)])
def test_any_size_comes_out_as_it_went_in(tmp_path, size):
    source = streams.plain(tmp_path / "in.mkv", codec="ffv1", frames=3, audio=None, size=size)
    output = tmp_path / "out.mkv"
    made = plan(source, output)
    odd = bool(size[0] % 2 or size[1] % 2)
    assert made.encoder.pix_fmt == ("yuv444p" if odd else "yuv420p")
    told = [note for note in made.notes if "so it encodes yuv444p" in note]
    assert len(told) == odd
    run(made)
    assert pictures(output).shape == (3, *size, 3)


@pytest.mark.behaviour(9)
def test_an_explicit_format_that_cannot_hold_an_odd_side_errors(tmp_path):
    source = streams.plain(tmp_path / "in.mkv", codec="ffv1", frames=3, audio=None, size=(47, 63))
    with pytest.raises(
        OutputError,
        match=r"libx264 cannot encode 63×47 as yuv420p.* must be even.*choose --pix-fmt yuv444p",
    ):
        plan(source, tmp_path / "out.mkv", replace(FAST, pix_fmt="yuv420p"))
    assert plan(
        source, tmp_path / "o.mkv", TranslateOptions(codec="libvpx-vp9")
    ).encoder.pix_fmt == ("yuv420p")


# Colour and depth


@needs_ffprobe
@pytest.mark.behaviour(6)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le"])
@pytest.mark.parametrize(("matrix", "full"), [("bt601", False), ("bt709", True), ("bt2020", False)])
def test_patches_through_a_lossless_codec(tmp_path, matrix, full, pix_fmt):
    source, frame = patches(tmp_path / "in.mkv", matrix, full=full, pix_fmt=pix_fmt)
    output = tmp_path / "out.mkv"
    made = plan(source, output, TranslateOptions(codec="ffv1"))
    assert made.encoder.pix_fmt == pix_fmt
    run(made)
    with av.open(str(output)) as container:
        back = next(container.decode(video=0))
    for sent, got in zip(colours.plane_views(frame), colours.plane_views(back), strict=True):
        patch = colours.PATCH * sent.shape[0] // 128
        assert np.abs(colours.centres(sent.astype(int) - got, patch)).max() <= 2
    assert tags_of(output) == tags_of(source)
    assert tags_of(output)["color_range"] == ("pc" if full else "tv")


@needs_ffprobe
@pytest.mark.behaviour(6)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_tags_come_out_as_they_went_in(tmp_path, suffix):
    for matrix, full in (("bt601", True), ("bt709", False), ("bt2020", False)):
        source, _ = patches(tmp_path / f"in{suffix}", matrix, full=full, codec="libx264")
        output = tmp_path / f"{matrix}{suffix}"
        run(plan(source, output))
        assert tags_of(output) == tags_of(source)
        assert "color_space" in tags_of(output)


@needs_ffprobe
@pytest.mark.behaviour(6)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_untagged_source_stays_untagged(tmp_path, suffix):
    source = streams.plain(tmp_path / f"in{suffix}", frames=3, audio=None)
    output = tmp_path / f"out{suffix}"
    made = plan(source, output)
    assert len([note for note in made.notes if "does not say its colour matrix" in note]) == 1
    run(made)
    assert tags_of(source) == {}
    assert tags_of(output) == {}
    told = plan(source, output, replace(FAST, color="bt709:full", overwrite=True))
    assert not told.notes
    assert told.colour.full_range
    run(told)
    assert tags_of(output) == {}


@pytest.mark.behaviour(8)
def test_ten_bits_pass_a_float16_network(tmp_path):
    source = gradient(tmp_path / "in.mkv")
    output = tmp_path / "out.mkv"
    made = plan(source, output, LOSSLESS, pixel_type="float16")
    assert made.encoder.pix_fmt == "yuv420p10le"
    assert not any("pass the network" in note for note in made.notes)
    run(made)
    with av.open(str(output)) as container:
        luma = colours.plane_views(next(container.decode(video=0)))[0]
    assert len(np.unique(luma)) > 800


@pytest.mark.behaviour(8)
def test_a_uint8_network_says_once_that_8_bits_pass(tmp_path):
    made = plan(gradient(tmp_path / "in.mkv"), tmp_path / "out.mkv")
    assert [note for note in made.notes if "pass the network" in note] == [
        f"{tmp_path}/in.mkv: of its 10 bits, 8 pass the network (the model takes uint8); "
        "a model file that takes float16 keeps them"
    ]
    assert made.encoder.pix_fmt == "yuv420p10le"


@pytest.mark.behaviour(8)
def test_hdr_errors(tmp_path):
    source, _ = patches(tmp_path / "in.mkv", "bt2020", full=False, transfer=16)
    with pytest.raises(InputError, match=r"in.mkv: the video is HDR \(PQ\).*tone-map it first"):
        plan(source, tmp_path / "out.mkv")


@pytest.mark.parametrize(
    ("source", "formats", "chosen"),
    [
        ("yuv420p", ["yuv444p", "yuv420p", "yuv420p10le"], "yuv420p"),
        ("yuvj444p", ["yuvj444p", "yuv420p", "yuv444p"], "yuv444p"),
        ("yuv420p10le", ["yuv420p", "yuv444p10le", "yuv420p10le"], "yuv420p10le"),
        ("yuv444p12le", ["yuv420p", "yuv444p", "yuv444p10le"], "yuv444p10le"),
        ("yuv422p", ["yuv420p", "yuv444p"], "yuv444p"),
        ("yuv444p", ["yuv420p", "yuv420p10le"], "yuv420p"),
        ("rgb24", ["yuv444p", "yuv420p", "gbrp"], "yuv420p"),
        ("gray", ["gray", "yuv420p"], "yuv420p"),
        ("yuv420p10le", ["yuv420p", "nv12", "p010le"], "p010le"),
        ("yuva420p", ["yuva420p", "yuv420p"], "yuv420p"),
        ("yuv420p", [], "yuv420p"),
        ("uyvy422", ["yuv420p", "yuv422p", "yuv444p"], "yuv422p"),
        ("yuyv422", ["yuv420p", "yuv422p", "yuv422p10le"], "yuv422p"),
        ("yvyu422", ["yuv420p", "yuv422p"], "yuv422p"),
        ("y210le", ["yuv420p", "yuv422p", "yuv422p10le"], "yuv422p10le"),
        ("y212le", ["yuv422p", "yuv422p10le", "yuv420p10le"], "yuv422p10le"),
        ("p210le", ["yuv420p10le", "yuv422p10le"], "yuv422p10le"),
        ("nv16", ["yuv420p", "yuv422p"], "yuv422p"),
        ("uyyvyy411", ["yuv420p", "yuv422p", "yuv444p"], "yuv422p"),
        ("vuyx", ["yuv420p", "yuv444p"], "yuv444p"),
        ("xv30le", ["yuv420p", "yuv444p", "yuv444p10le"], "yuv444p10le"),
        ("pal8", ["yuv420p", "yuv444p"], "yuv420p"),
        ("bayer_rggb8", ["yuv420p", "yuv444p"], "yuv420p"),
    ],
)
def test_the_pixel_format_follows_the_source(source, formats, chosen):
    assert choose_pix_fmt(source, formats) == chosen


@needs_ffprobe
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "kept"),
    [
        ("rawvideo", "uyvy422", "yuv422p"),
        ("rawvideo", "yuyv422", "yuv422p"),
        ("v210", "yuv422p10le", "yuv422p10le"),
    ],
)
def test_what_a_capture_card_writes_keeps_its_chroma(tmp_path, codec, pix_fmt, kept):
    source = tmp_path / "in.mov"
    rows = "color=s=96x64:d=0.08,format=yuv444p,geq=lum=120:cb='100+50*mod(Y\\,2)':cr=128"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", rows]
    subprocess.run([*command, "-c:v", codec, "-pix_fmt", pix_fmt, source], check=True)
    output = tmp_path / "out.mkv"
    run(plan(source, output, LOSSLESS))
    assert probe(output, "stream=pix_fmt")["streams"][0]["pix_fmt"] == kept
    # Its rows are coloured in turn, and 4:2:0 would make one colour of two of them.
    blue = pictures(output)[0, :, 48, 2].astype(int)
    assert np.abs(np.diff(blue)).min() > 80
    assert np.abs(blue - pictures(source)[0, :, 48, 2]).max() <= 2


# Broken files


@needs_ffprobe
@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_file_that_is_cut_short_is_told_and_what_there_is_comes_out(tmp_path, suffix):
    whole = streams.plain(tmp_path / f"whole{suffix}", frames=100, audio=None)
    if suffix == ".mp4":
        # Only with its index first can a part of an MP4 be read at all.
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
    assert "is cut short: its header says" in str(last.error) or "to its end" in str(last.error)
    there = len(times(output))
    assert 20 < there < 100
    numbers = ("100 frames",) if suffix == ".mp4" else ("4.000 s",)
    assert all(number in str(last.error) for number in numbers)


@needs_ffprobe
@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_what_is_missing_from_a_damaged_transport_stream_is_counted(tmp_path, on_error):
    """Of a frame whose packet is lost as a whole, FFmpeg says nothing; its time stays empty."""
    whole = moving(tmp_path / "whole.ts", frames=75, options={"bf": "2", "g": "12"})
    content = bytearray(whole.read_bytes())
    starts = pes_starts(content)
    assert len(starts) == 75
    for number in (30, 40, 41):
        # A lost TS packet at a frame's start: the rest of the frame belongs to nothing.
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
    ("milliseconds", "told"),
    [
        ([40 * i for i in range(60) if i not in (20, 31, 32)], "3 frames are missing from 0.800 s"),
        ([40 * i for i in range(60)], None),
        (list(streams.VFR_TIMES), None),
    ],
)
def test_gaps_of_an_undamaged_transport_stream_are_a_note(tmp_path, milliseconds, told):
    source = streams.variable_rate(tmp_path / "in.ts", milliseconds)
    reader = VideoSource(plan(source, tmp_path / "out.mkv"))
    items = list(reader.read())
    reader.close()
    assert len(items) == len(milliseconds)
    assert not [item for item in items if isinstance(item, Dropped)]
    assert [told in note for note in reader.notes] == ([] if told is None else [True])


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
    """A lost key frame loses all that hangs on it; each is named, the others keep their times."""
    whole = moving(tmp_path / "whole.mkv", frames=60, options={"bf": "2", "g": "12"})
    source = damaged(tmp_path / "in.mkv", whole, broken)
    output = tmp_path / "out.mkv"
    dropped, _ = run(plan(source, output))
    # What comes after a later frame lacks its references: it is lost as well.
    shown = single_threaded_times(source)
    decodable = [time for k, time in enumerate(shown) if time == max(shown[: k + 1])]
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
    """HEVC's decoder leaves out, without a word, all that hangs on a lost frame (FFmpeg 8)."""
    if codec == "libx265":
        options = {"x265-params": f"log-level=none:keyint=10:{options['x265-params']}"}
    whole = moving(tmp_path / "whole.mkv", frames=30, codec=codec, options=options)
    source = damaged(tmp_path / "in.mkv", whole, [broken], half=half)
    dropped, _ = run(plan(source, tmp_path / "out.mkv"))
    assert [round(time * 25) for time in times(tmp_path / "out.mkv")] == [
        number for number in range(30) if number not in lost
    ]
    told = [
        [each.place.number for each in dropped if each.place and trouble in each.place.trouble]
        for trouble in ("cannot be decoded", "damaged, concealed by the decoder")
    ]
    assert told == [lost, list(concealed)]
    assert len(dropped) == sum(map(len, told))
    # Times count from the first frame.
    assert all(each.place and each.place.seconds == each.place.number / 25 for each in dropped)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: path.write_text("no film"), "cannot read .*no media format"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: streams.audio_only(path), "no video stream"),
        (lambda path: None, "does not exist"),
    ],
)
def test_what_is_no_video_errors(tmp_path, make, match):
    make(tmp_path / "in.mp4")
    with pytest.raises(InputError, match=match):
        plan(tmp_path / "in.mp4", tmp_path / "out.mp4")


def test_a_video_without_one_good_frame_errors(tmp_path):
    whole = moving(tmp_path / "whole.mkv", frames=5, options={"bf": "0", "g": "50"})
    source = damaged(tmp_path / "in.mkv", whole, range(5))
    with pytest.raises(InputError, match=r"in.mkv: stream 0 .video h264. cannot be decoded"):
        plan(source, tmp_path / "out.mkv")
    sink = VideoSink(plan(whole, tmp_path / "out.mkv"))
    with pytest.raises(OutputError, match=r"out.mkv: no frame arrived"):
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
    assert [note for note in as_is.notes if "interlaced" in note] == [
        f"{source}: the video is interlaced; --deinterlace makes whole frames of it"
    ]
    made = plan(source, output, replace(FAST, deinterlace=True))
    assert not [note for note in made.notes if "interlaced" in note]
    before, after = seen(as_is), seen(made)
    assert [frame.tag for frame in after] == [frame.tag for frame in before]
    assert any(
        not np.array_equal(one.pixels, other.pixels)
        for one, other in zip(before, after, strict=True)
    )
    run(made)
    assert times(output) == times(source)


# The encoder


@pytest.mark.behaviour(12)
def test_an_encoder_that_does_not_open_falls_back_once(tmp_path):
    try:
        trial: Any = av.CodecContext.create("h264_nvenc", "w")
        trial.width, trial.height, trial.pix_fmt = 256, 256, "yuv420p"
        trial.time_base = Fraction(1, 25)
        trial.open()
    except av.error.FFmpegError:
        pass
    else:
        pytest.skip("this machine has NVENC")
    source = streams.plain(tmp_path / "in.mp4", frames=5, audio=None)
    asked = TranslateOptions(codec="h264_nvenc", preset="p4", encoder_opt={"tune": "hq"})
    made = plan(source, tmp_path / "out.mp4", asked)
    assert made.encoder.name == "libx264"
    told = [note for note in made.notes if "h264_nvenc" in note]
    assert len(told) == 1
    assert "h264_nvenc does not open here" in told[0]
    assert "libx264 encodes" in told[0]
    dropped, _ = run(made)
    assert not dropped


def test_quality_is_said_in_the_words_of_each_encoder(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)

    def chosen(**options: Any) -> dict[str, str]:
        made = plan(source, tmp_path / "out.mkv", TranslateOptions(**options))
        return dict(made.encoder.options)

    assert chosen() == {"crf": "18"}
    assert chosen(crf=23.5, preset="slow") == {"crf": "23.5", "preset": "slow"}
    assert chosen(encoder_opt={"b": "1M"}) == {"b": "1M"}
    assert chosen(codec="libx265", crf=25)["crf"] == "25"
    assert chosen(codec="libvpx-vp9", crf=30) == {"crf": "30", "b": "0"}
    assert chosen(codec="libsvtav1", preset="10") == {"crf": "24", "preset": "10"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"codec": "libx999"}, "--codec libx999 is no encoder of this FFmpeg; choose one such as"),
        ({"codec": "aac"}, "--codec aac encodes audio; choose a video encoder"),
        ({"encoder_opt": {"speed": "1"}}, "libx264 does not take speed; ffmpeg -h encoder=libx264"),
        ({"preset": "warp"}, "libx264 does not open for 64×48.*preset=warp.*change"),
        ({"codec": "ffv1", "preset": "fast"}, "ffv1 has no --preset; leave it out"),
        ({"codec": "ffv1", "crf": 20}, "ffv1 has no --crf"),
        ({"codec": "libx264", "crf": 99}, "libx264 has no --crf 99; choose one from 0 to 51"),
        ({"codec": "libx264", "crf": -1}, "libx264 has no --crf -1; choose one from 0 to 51"),
        ({"codec": "libx265", "crf": 52}, "libx265 has no --crf 52; choose one from 0 to 51"),
        ({"codec": "libsvtav1", "crf": 64}, "libsvtav1 has no --crf 64; choose one from 0 to 63"),
        ({"codec": "libvpx-vp9", "crf": float("nan")}, "libvpx-vp9 has no --crf nan; choose one"),
        ({"pix_fmt": "rgb565"}, "libx264 does not take --pix-fmt rgb565; choose one of yuv420p"),
        ({"codec": "prores_ks"}, "WebM cannot hold prores_ks"),
        ({"encoder_opt": {"x264-params": "speed=1"}}, "libx264 does not take speed = 1; "),
        (
            {"codec": "libx265", "encoder_opt": {"x265-params": "speed=1:bframes=x"}},
            "libx265 does not take speed, bframes: x; ",
        ),
    ],
)
def test_an_encoder_that_cannot_do_it_errors(tmp_path, options, match):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    suffix = ".webm" if options.get("codec") == "prores_ks" else ".mkv"
    with pytest.raises(OutputError, match=match):
        plan(source, tmp_path / f"out{suffix}", TranslateOptions(**options))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


def test_the_number_of_threads_is_part_of_the_plan(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    made = plan(source, tmp_path / "out.mp4")
    assert made.encoder.threads >= 1
    sink = VideoSink(made)
    convert = sink.converter()
    for frame in seen(made):
        sink.write(convert(frame))
    assert sink._stream.codec_context.thread_count == made.encoder.threads
    sink.discard()


def test_what_the_encoder_refuses_is_not_blamed_on_the_folder_errors(tmp_path, monkeypatch):
    made = plan(streams.plain(tmp_path / "in.mp4", frames=2, audio=None), tmp_path / "out.mp4")

    def refuse(sink: VideoSink, packets: Any) -> None:
        raise av.error.ArgumentError(22, "Invalid argument")

    monkeypatch.setattr(VideoSink, "_mux", refuse)
    with pytest.raises(OutputError, match=r"libx264 failed \(Invalid argument\); choose"):
        run(made)


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".ts", ".nut", ".webm"])
def test_no_encoder_fails_after_the_last_frame(tmp_path, suffix):
    """Many a header is accepted whose first packet is not, or which nobody finds again."""
    source = streams.plain(tmp_path / "in.mkv", frames=25, audio=None)
    written = 0
    for codec in ("rawvideo", "ffv1", "mjpeg", "png", "prores_ks", "libvpx", "mpeg2video"):
        output = tmp_path / f"{codec}{suffix}"
        try:
            made = plan(source, output, TranslateOptions(codec=codec))
        except OutputError:
            continue
        run(made)
        with av.open(str(output)) as container:
            assert len(list(container.decode(video=0))) == 25, codec
        written += 1
    assert written > 0
    assert leftovers(tmp_path) == []


def test_discard_leaves_nothing(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=10, audio=None)
    made = plan(source, tmp_path / "out.mp4")
    sink = VideoSink(made)
    convert = sink.converter()
    for frame in seen(made)[:5]:
        sink.write(convert(frame))
    assert leftovers(tmp_path)
    sink.discard()
    sink.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]
    assert sink.written == []


def test_an_existing_output_is_not_overwritten_unasked(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    output = tmp_path / "out.mp4"
    output.write_text("precious")
    with pytest.raises(OutputError, match="exists already"):
        run(plan(source, output))
    assert output.read_text() == "precious"
    run(plan(source, output, replace(FAST, overwrite=True)))
    assert output.stat().st_size > 1000


def test_a_folder_is_made_and_a_file_in_its_place_errors(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    run(plan(source, tmp_path / "new" / "er" / "out.mp4"))
    assert (tmp_path / "new" / "er" / "out.mp4").is_file()
    with pytest.raises(OutputError, match=r"in.mp4.out.mp4: (its folder is a file|it exists)"):
        run(plan(source, source / "out.mp4"))


# Pictures


@needs_ffprobe
@pytest.mark.behaviour(1)
def test_a_pattern_of_pictures_becomes_a_video(tmp_path):
    for number in range(7, 12):
        assert cv2.imwrite(
            str(tmp_path / f"f_{number:04d}.png"), streams.picture(number)[..., ::-1]
        )
    output = tmp_path / "out.mp4"
    made = plan(tmp_path / "f_%04d.png", output, replace(FAST, fps="30000/1001", crf=1))
    assert made.frames_expected == 5
    assert not made.notes
    first = seen(made)[0]
    assert np.array_equal(first.pixels, streams.picture(7))
    run(made)
    assert [round(time * 30000 / 1001) for time in times(output)] == [0, 1, 2, 3, 4]
    assert probe(output, "stream=color_space,color_range")["streams"] == [
        {"color_space": "smpte170m", "color_range": "tv"}
    ]


@pytest.mark.behaviour(16)
def test_every_picture_of_a_pattern_is_turned_by_its_own_exif(tmp_path):
    upright = photos.photo()
    for number, turn in enumerate((6, 1, 4)):
        stored = photos.turned(upright, turn)
        data = photos.pillow(stored, "PNG", "RGB", exif=photos.exif(turn, artist="A"))
        (tmp_path / f"f_{number}.png").write_bytes(data)
    made = plan(tmp_path / "f_%d.png", tmp_path / "out.mp4", replace(FAST, fps="25"))
    assert made.size == (48, 64)
    source = VideoSource(made)
    convert = source.converter()
    assert all(np.array_equal(convert(item).pixels, upright) for item in source.read())
    assert source.notes == ()
    source.close()


@pytest.mark.parametrize(
    ("fps", "match"),
    [
        (None, r"is a pattern of pictures, which have no frame rate; say it, e.g. --fps 25"),
        ("fast", "--fps fast is no frame rate"),
        ("0", "--fps 0 is no frame rate"),
        ("25", "no file matches .*f_%04d.png"),
    ],
)
def test_a_pattern_that_cannot_be_played_errors(tmp_path, fps, match):
    with pytest.raises(InputError, match=match):
        plan(tmp_path / "f_%04d.png", tmp_path / "out.mp4", replace(FAST, fps=fps))


def test_a_missing_picture_in_a_pattern_errors(tmp_path):
    for number in (1, 2, 4):
        assert cv2.imwrite(str(tmp_path / f"f_{number:02d}.png"), streams.picture(number))
    with pytest.raises(InputError, match=r"f_03.png is missing, between the numbers 1 and 4"):
        plan(tmp_path / "f_%02d.png", tmp_path / "out.mp4", replace(FAST, fps="25"))


def test_numbered_pictures_as_output_error(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    with pytest.raises(OutputError, match="numbered pictures are no output here; name a video"):
        plan(source, tmp_path / "out_%04d.png")


# Pipes


class Standard:
    """Stands for sys.stdin or sys.stdout."""

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer


@needs_ffprobe
@pytest.mark.behaviour(11)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv422p", "yuv420p10le"])
def test_y4m_goes_out_and_in_again(tmp_path, monkeypatch, pix_fmt):
    source = moving(tmp_path / "in.mkv", frames=10, pix_fmt=pix_fmt)
    sink_end = (tmp_path / "pipe.y4m").open("wb")
    monkeypatch.setattr(sys, "stdout", Standard(sink_end))
    made = plan(source, PIPE)
    assert made.encoder.pix_fmt == pix_fmt
    _, sink = run(made)
    assert sink.written == []
    sink_end.close()
    monkeypatch.undo()
    assert probe(
        tmp_path / "pipe.y4m", "stream=pix_fmt,r_frame_rate,nb_read_frames", "-count_frames"
    )["streams"] == [{"pix_fmt": pix_fmt, "r_frame_rate": "25/1", "nb_read_frames": "10"}]

    reading, writing = os.pipe()
    feeder = subprocess.Popen(["cat", str(tmp_path / "pipe.y4m")], stdout=writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as stdin:
        monkeypatch.setattr(sys, "stdin", Standard(stdin))
        back = plan(PIPE, tmp_path / "out.mp4", LOSSLESS)
        assert back.name == "standard input"
        dropped, _ = run(back)
    assert feeder.wait() == 0
    assert not dropped
    difference = pictures(tmp_path / "out.mp4").astype(int) - pictures(source)
    assert len(difference) == 10
    assert np.abs(difference).mean() < 2


@pytest.mark.behaviour(11)
def test_a_closed_pipe_is_passed_on_as_such(tmp_path, monkeypatch):
    source = moving(tmp_path / "in.mkv", frames=10)
    reading, writing = os.pipe()
    os.close(reading)
    stdout = os.fdopen(writing, "wb", buffering=0)
    monkeypatch.setattr(sys, "stdout", Standard(stdout))
    made = plan(source, PIPE)
    sink = VideoSink(made)
    convert = sink.converter()
    encoded = [convert(frame) for frame in seen(made)] * 50
    with pytest.raises(BrokenPipeError):
        write_all(sink, encoded)
    sink.discard()
    stdout.close()


def test_standard_input_that_is_no_y4m_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Standard(io.BytesIO(b"RIFF, or so")))
    with pytest.raises(InputError, match=r"standard input is not y4m .*-f yuv4mpegpipe"):
        plan(PIPE, tmp_path / "out.mp4")


@needs_ffprobe
@pytest.mark.behaviour(11)
def test_y4m_can_be_a_file_too(tmp_path):
    source = streams.plain(
        tmp_path / "in.mp4", frames=5, audio=None, sample_aspect_ratio=Fraction(4, 3)
    )
    run(plan(source, tmp_path / "a.y4m"))
    header = (tmp_path / "a.y4m").read_bytes().split(b"\n")[0].split()
    assert header[:6] == [b"YUV4MPEG2", b"W64", b"H48", b"F25:1", b"Ip", b"A4:3"]
    assert header[6] == b"C420mpeg2"
    run(plan(tmp_path / "a.y4m", tmp_path / "b.mp4"))
    assert len(times(tmp_path / "b.mp4")) == 5


@pytest.mark.behaviour(1, 11, 22)
@pytest.mark.parametrize("missing", [1, 1000, 4608 + len("ME\n")])
@pytest.mark.parametrize("piped", [False, True])
def test_a_cut_short_y4m_is_told(tmp_path, monkeypatch, missing, piped):
    run(plan(streams.plain(tmp_path / "in.mkv", frames=10, audio=None), tmp_path / "whole.y4m"))
    source = tmp_path / "a.y4m"
    source.write_bytes((tmp_path / "whole.y4m").read_bytes()[:-missing])
    there = 4608 + len("FRAME\n") - missing
    with source.open("rb") as stdin:
        monkeypatch.setattr(sys, "stdin", Standard(stdin))
        *frames, last = seen(plan(PIPE if piped else source, tmp_path / "out.mkv"))
    assert len(frames) == 9
    assert isinstance(last, Dropped)
    assert f"is cut short: behind 9 whole frames there are {there} bytes" in str(last.error)
    assert last.name == ("standard input" if piped else str(source))


@pytest.mark.behaviour(11)
def test_a_whole_y4m_is_not_called_short(tmp_path, monkeypatch):
    run(plan(moving(tmp_path / "in.mkv", frames=10), tmp_path / "a.y4m"))
    # Every frame may have a header of its own length.
    content = (tmp_path / "a.y4m").read_bytes().replace(b"FRAME\n", b"FRAME Ip\n", 1)
    (tmp_path / "b.y4m").write_bytes(content)
    for options, count in ((FAST, 10), (replace(FAST, to=0.2), 5), (replace(FAST, frames=3), 3)):
        assert len(seen(plan(tmp_path / "b.y4m", tmp_path / "out.mkv", options))) == count
        with (tmp_path / "b.y4m").open("rb") as stdin:
            monkeypatch.setattr(sys, "stdin", Standard(stdin))
            assert len(seen(plan(PIPE, tmp_path / "out.mkv", options))) == count


def write_all(sink: VideoSink, encoded: Sequence[Any]) -> None:
    for item in encoded:
        sink.write(item)
    sink.finish()


# Material


def encode(
    path: Path,
    pictures: Sequence[av.VideoFrame],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    set_up: Callable[[Any], None] = lambda context: None,
) -> Path:
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = pictures[0].width, pictures[0].height
        stream.pix_fmt = pictures[0].format.name
        set_up(stream.codec_context)
        for number, picture in enumerate(pictures):
            picture.pts, picture.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def moving(
    path: Path,
    *,
    frames: int,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    codec: str = "libx264",
) -> Path:
    """A noisy wall that moves to the left: what is lost in one frame is missing in the next."""
    wall = np.random.default_rng(0).integers(0, 255, (12, 96, 3), dtype=np.uint8)
    wall = cv2.resize(wall, (64 * 12, 96), interpolation=cv2.INTER_CUBIC)
    cut = [np.ascontiguousarray(wall[:, i : i + 128]) for i in range(frames)]
    return encode(
        path,
        [av.VideoFrame.from_ndarray(each, "rgb24").reformat(format=pix_fmt) for each in cut],
        codec,
        {"preset": "ultrafast", "bf": "2", "crf": "10", **(options or {})},
    )


def elementary_stream(path: Path, *, frames: int, size: tuple[int, int] = (48, 64)) -> Path:
    """H.264 without any container, so without times."""
    context: Any = av.CodecContext.create("libx264", "w")
    context.height, context.width = size
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, 25), 25
    context.options = {"bf": "0", "g": "5", "preset": "ultrafast"}
    with path.open("wb") as out:
        for number in range(frames):
            picture = streams.picture(number, size)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            for packet in context.encode(frame):
                out.write(bytes(packet))
        for packet in context.encode(None):
            out.write(bytes(packet))
    return path


def patches(
    path: Path,
    matrix: str,
    *,
    full: bool,
    pix_fmt: str = "yuv420p",
    codec: str = "ffv1",
    transfer: int | None = None,
) -> tuple[Path, av.VideoFrame]:
    bits = av.VideoFormat(pix_fmt).components[0].bits
    codes = colours.codes_from_rgb(colours.patches(), matrix, full=full, bits=bits)
    frame = colours.frame_from_codes(codes, pix_fmt)
    tags = colours.TAGS[matrix]

    def tag(target: Any) -> None:
        target.colorspace, target.color_primaries, target.color_trc = tags
        if transfer is not None:
            target.color_trc = transfer
        target.color_range = 2 if full else 1

    tag(frame)
    return encode(path, [frame], codec, set_up=tag), frame


def gradient(path: Path) -> Path:
    ramp = np.broadcast_to(np.linspace(0, 1, 1024)[None, :, None], (16, 1024, 3)).copy()
    codes = colours.codes_from_rgb(ramp, "bt709", full=False, bits=10)
    return encode(path, [colours.frame_from_codes(codes, "yuv420p10le")], "ffv1")


def damaged(path: Path, whole: Path, broken: Sequence[int], *, half: bool = False) -> Path:
    """Zero the packets of these numbers, or overwrite the second half of each."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
        number = 0
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            content = bytearray(bytes(packet))
            if number in broken:
                start = len(content) // 2 if half else 0
                content[start:] = bytes([0x55 if half else 0]) * (len(content) - start)
            copy = av.Packet(bytes(content))
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            copy.time_base, copy.is_keyframe, copy.stream = (
                packet.time_base,
                packet.is_keyframe,
                stream,
            )
            output.mux(copy)
            number += 1
    return path


def pes_starts(content: bytes) -> list[int]:
    """Return the offsets of the TS packets in which a video frame begins (ISO/IEC 13818-1, 2.4)."""
    starts = []
    for offset in range(0, len(content), 188):
        packet = content[offset : offset + 188]
        payload = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
        if packet[1] & 0x40 and packet[payload : payload + 4] == b"\x00\x00\x01\xe0":
            starts.append(offset)
    return starts


def single_threaded_times(path: Path) -> list[float]:
    """What one thread of ffmpeg decodes, in seconds."""
    command = ["ffprobe", "-v", "quiet", "-threads", "1", "-select_streams", "v:0"]
    command += ["-show_entries", "frame=pts_time", "-of", "csv=p=0", str(path)]
    answer = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return [float(line.split(",")[0]) for line in answer.split()]


def tags_of(path: Path) -> dict[str, str]:
    entries = "stream=color_space,color_primaries,color_transfer,color_range"
    found: dict[str, str] = probe(path, entries)["streams"][0]
    return found
