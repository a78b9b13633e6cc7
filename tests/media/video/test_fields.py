"""Interlaced video keeps its fields, or is deinterlaced; ffmpeg and ffprobe are witnesses."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.media.video.deinterlace import FieldTimes
from cyclegan_batch.media.video.loss import Lost
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.identity import FAST, plan, run, seen
from tests.media.witness import needs_ffprobe, pictures, probe, times
from tests.synthesis import streams


def clip(path: Path, order: str = "tff", *, size: str = "64x48", frames: int = 5) -> Path:
    """Fields of a moving grey image, coded losslessly by FFV1 or as MPEG-2."""
    source = f"testsrc2=s={size}:r=50:d={frames / 25},hue=s=0"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", source]
    command += ["-vf", f"interlace=scan={order}:lowpass=0", "-pix_fmt", "yuv420p"]
    if path.suffix in (".mkv", ".avi"):
        command += ["-c:v", "ffv1", "-level", "3"]
    else:
        top = "1" if order == "tff" else "0"
        command += ["-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-top", top, "-q:v", "2"]
    subprocess.run([*command, str(path)], check=True)
    return path


def marks(path: Path) -> set[tuple[int, int]]:
    """Return ffprobe's flags of the frames: interlaced, and top field first."""
    frames = probe(path, "frame=interlaced_frame,top_field_first")["frames"]
    return {(frame["interlaced_frame"], frame["top_field_first"]) for frame in frames}


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("codec", "suffix", "order"),
    [
        ("libx264", ".mp4", "tff"),
        ("libx264", ".mkv", "bff"),
        ("libx264", ".ts", "tff"),
        ("mpeg2video", ".ts", "bff"),
        ("mpeg2video", ".mkv", "tff"),
        ("mpeg4", ".mp4", "tff"),
        ("prores_ks", ".mov", "bff"),
        ("ffv1", ".mkv", "tff"),
    ],
)
def test_fields_keep_their_mark(tmp_path, codec, suffix, order):
    source = clip(tmp_path / "in.mpg", order)
    assert marks(source) == {(1, int(order == "tff"))}
    output = tmp_path / f"out{suffix}"
    planned = plan(source, output, TranslateOptions(codec=codec, strict=True))
    assert [note for note in grouped(planned.notes) if "interlaced" in note] == [
        f"{source}: the video is interlaced; --deinterlace makes whole frames of it"
    ]
    run(planned)
    assert marks(output) == {(1, int(order == "tff"))}
    if suffix == ".mkv" and codec != "libx264":
        order_written = probe(output, "stream=field_order")["streams"][0]["field_order"]
        assert order_written == ("tt" if order == "tff" else "bb")


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("codec", "suffix", "size"),
    [
        ("libx265", ".mp4", "64x48"),
        ("libsvtav1", ".mkv", "64x64"),
        ("libvpx-vp9", ".webm", "64x48"),
        # Each field of 4:2:0 needs an even number of lines.
        ("libx264", ".mp4", "64x50"),
    ],
)
def test_a_mark_that_the_encoder_cannot_set_is_said_to_be_lost(tmp_path, codec, suffix, size):
    source = clip(tmp_path / "in.mkv", size=size, frames=2)
    output = tmp_path / f"out{suffix}"
    planned = plan(source, output, TranslateOptions(codec=codec))
    assert [note for note in grouped(planned.notes) if "interlaced" in note] == [
        f"{output} goes without the mark that stream 0 (video ffv1) is interlaced: {codec} cannot "
        "set it here, so players will show both fields at once; --deinterlace makes whole frames "
        "of them"
    ]
    run(planned)
    assert marks(output) == {(0, 0)}
    with pytest.raises(OutputError, match=r"without the mark that stream 0 .*--strict"):
        plan(source, output, TranslateOptions(codec=codec, strict=True))


@needs_ffprobe
@pytest.mark.behaviour(6, 7)
@pytest.mark.parametrize(
    ("codec", "pixel_type"),
    [("ffv1", "uint8"), ("ffv1", "float16"), ("libvpx-vp9", "uint8")],
)
def test_the_chroma_of_one_field_does_not_reach_the_other(tmp_path, codec, pixel_type):
    """In interlaced 4:2:0 every second line of chroma belongs to the same field, marked or not."""
    source = tmp_path / "in.mkv"
    stripes = "color=s=64x48:r=25:d=0.08,format=yuv420p,geq=lum=120:cb='80+90*mod(Y\\,2)':cr=128"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", stripes, "-vf", "setfield=tff"]
    subprocess.run([*command, "-c:v", "ffv1", source], check=True)
    output = tmp_path / "out.mkv"
    lossless = {"lossless": "1", "crf": "0"} if codec == "libvpx-vp9" else {}
    options = TranslateOptions(codec=codec, encoder_opt=lossless)
    run(plan(source, output, options, pixel_type=pixel_type))
    assert marks(source) == {(1, 1)}
    assert marks(output) == {(1, 1) if codec == "ffv1" else (0, 0)}
    planes = []
    for path in (source, output):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            planes.append(frame.to_ndarray().astype(int))
    assert np.abs(planes[1] - planes[0]).max() <= 2


@needs_ffprobe
@pytest.mark.behaviour(7)
def test_a_video_that_is_turned_over_has_its_fields_the_other_way_round(tmp_path):
    whole = clip(tmp_path / "whole.mkv", "tff", frames=2)
    for angle, expected in ((180, {(1, 0)}), (90, {(0, 0)})):
        source = tmp_path / "in.mov"
        with av.open(str(whole)) as read, av.open(str(source), "w") as written:
            stream: Any = written.add_stream("prores_ks", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv422p10le"
            stream.codec_context.flags |= 1 << 18  # interlaced DCT
            stream.set_display_rotation(angle)
            for frame in read.decode(video=0):
                picture = frame.reformat(format="yuv422p10le")
                picture.pts = None
                written.mux(stream.encode(picture))
            written.mux(stream.encode(None))
        assert marks(source) == {(1, 1)}
        output = tmp_path / f"{angle}.mkv"
        run(plan(source, output, TranslateOptions(codec="ffv1", pix_fmt="yuv422p")))
        assert marks(output) == expected


@needs_ffprobe
@pytest.mark.behaviour(1, 2, 7)
def test_a_dv_tape_keeps_its_rate_its_fields_and_its_shape(tmp_path):
    """Raw DV has a time base of 1/60000, and FFmpeg takes each tick for a frame."""
    source = tmp_path / "in.dv"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=720x576:r=50:d=0.08"]
    command += ["-vf", "interlace=scan=bff,setsar=16/15,format=yuv420p", "-c:v", "dvvideo"]
    subprocess.run([*command, source], check=True)
    output = tmp_path / "out.mp4"
    run(plan(source, output))
    assert times(output) == times(source)
    assert len(times(output)) == 2
    assert marks(output) == {(1, 0)}
    stream = probe(output, "stream=avg_frame_rate,sample_aspect_ratio")["streams"][0]
    assert (stream["avg_frame_rate"], stream["sample_aspect_ratio"]) == ("25/1", "16:15")


@pytest.mark.behaviour(7, 11)
def test_y4m_says_which_field_is_first(tmp_path):
    source = clip(tmp_path / "in.mkv", "bff", frames=1)
    output = tmp_path / "out.y4m"
    run(plan(source, output))
    assert b" Ib " in output.read_bytes().split(b"\n")[0]


def test_a_kept_network_size_has_no_fields(tmp_path):
    source = clip(tmp_path / "in.mkv", frames=1)
    planned = plan(source, tmp_path / "out.mp4", output_size=lambda _: (24, 32))
    assert planned.encoder.fields is None
    assert not [note for note in grouped(planned.notes) if "goes without" in note]


# Deinterlacing


@needs_ffprobe
@pytest.mark.behaviour(1, 2, 7)
@pytest.mark.parametrize(
    ("suffix", "order"), [(".mkv", "tff"), (".mpg", "bff"), (".avi", "tff"), (".mp4", "bff")]
)
def test_every_field_becomes_a_frame_at_its_time(tmp_path, suffix, order):
    """The result is that of FFmpeg's own filter, also where a tick is a whole frame (AVI)."""
    source = clip(tmp_path / f"in{suffix}", order)
    reference = tmp_path / "reference.mkv"
    command = ["ffmpeg", "-v", "error", "-i", source, "-vf", "bwdif=send_field"]
    subprocess.run([*command, "-fps_mode", "passthrough", "-c:v", "ffv1", reference], check=True)
    output = tmp_path / "out.mkv"
    planned = plan(source, output, TranslateOptions(codec="ffv1", deinterlace_rate="field"))
    run(planned)
    if suffix != ".mpg":
        assert planned.frames_expected == 10
    assert not [note for note in grouped(planned.notes) if "interlaced" in note]
    got = [float(time) for time in times(output)]
    assert len(got) == len(times(reference)) == 10
    since = [time - got[0] for time in got]
    assert since == pytest.approx([number * 0.02 for number in range(10)], abs=0.0011)
    assert marks(output) == {(0, 0)}
    assert np.abs(pictures(output).astype(int) - pictures(reference)).mean() < 1
    assert probe(output, "stream=r_frame_rate")["streams"][0]["r_frame_rate"] == "50/1"


@pytest.mark.behaviour(3, 10)
def test_a_stretch_at_field_rate_keeps_its_sound(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=25, interlaced=True)
    output = tmp_path / "out.mp4"
    planned = plan(source, output, replace(FAST, deinterlace_rate="field", ss=0.2, to=0.6))
    assert planned.frames_expected == 20
    run(planned)
    assert [float(time) for time in times(output)] == pytest.approx(
        [number * 0.02 for number in range(20)], abs=1e-4
    )
    with av.open(str(source)) as before, av.open(str(output)) as after:
        sound = [bytes(packet) for packet in before.demux(audio=0) if packet.size]
        copied = [bytes(packet) for packet in after.demux(audio=0) if packet.size]
    first = sound.index(copied[0])
    assert copied == sound[first : first + len(copied)]
    assert len(copied) == pytest.approx(0.4 * 48000 / 1024, abs=1)


def test_the_rate_of_frames_is_what_deinterlacing_gives_anyway(tmp_path):
    source = clip(tmp_path / "in.mkv", frames=3)
    outputs = [
        seen(plan(source, tmp_path / "out.mkv", replace(FAST, **options)))
        for options in ({"deinterlace": True}, {"deinterlace_rate": "frame"})
    ]
    assert len(outputs[0]) == len(outputs[1]) == 3
    for one, other in zip(*outputs, strict=True):
        assert one.tag == other.tag
        assert np.array_equal(one.pixels, other.pixels)


def test_the_second_field_lies_halfway_to_the_next_frame():
    """A lost frame counts as two frames of the output."""
    waiting = FieldTimes(both=True, step=40)
    for pts in (0, 40, None, 100):
        frame: av.VideoFrame | Lost = Lost(80, "broken")
        if pts is not None:
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = pts
        waiting.put(frame)
    items = list(waiting.timed([av.VideoFrame(16, 16, "yuv420p") for _ in range(6)]))
    assert [item.pts for item in items] == [0, 40, 80, 140, 160, 200, 200, 240]
    assert [isinstance(item, Lost) for item in items] == [False] * 4 + [True] * 2 + [False] * 2
