"""The chosen encoder opens, applies its options, and drops no frame."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.media.video import encoder as encoder_module
from cyclegan_batch.media.video.pixel_formats import choose_pix_fmt
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.identity import FAST, LOSSLESS, leftovers, plan, run, seen
from tests.media.witness import needs_ffprobe, pictures, probe, tick, times
from tests.synthesis import streams


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
@pytest.mark.behaviour(9)
@pytest.mark.parametrize("size", [(47, 64), (48, 61), (53, 67), (2, 2)])
def test_any_size_comes_out_as_it_went_in(tmp_path, size):
    source = streams.plain(tmp_path / "in.mkv", codec="ffv1", frames=3, audio=None, size=size)
    output = tmp_path / "out.mkv"
    planned = plan(source, output)
    odd = bool(size[0] % 2 or size[1] % 2)
    assert planned.encoder.pix_fmt == ("yuv444p" if odd else "yuv420p")
    notes = [note for note in grouped(planned.notes) if "so it encodes yuv444p" in note]
    assert len(notes) == odd
    run(planned)
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
    ("codec", "pix_fmt", "written_format"),
    [
        ("rawvideo", "uyvy422", "yuv422p"),
        ("rawvideo", "yuyv422", "yuv422p"),
        ("v210", "yuv422p10le", "yuv422p10le"),
    ],
)
def test_what_a_capture_card_writes_keeps_its_chroma(tmp_path, codec, pix_fmt, written_format):
    source = tmp_path / "in.mov"
    rows = "color=s=96x64:d=0.08,format=yuv444p,geq=lum=120:cb='100+50*mod(Y\\,2)':cr=128"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", rows]
    subprocess.run([*command, "-c:v", codec, "-pix_fmt", pix_fmt, source], check=True)
    output = tmp_path / "out.mkv"
    run(plan(source, output, LOSSLESS))
    assert probe(output, "stream=pix_fmt")["streams"][0]["pix_fmt"] == written_format
    # Its rows alternate between two colours, which 4:2:0 would average.
    blue = pictures(output)[0, :, 48, 2].astype(int)
    assert np.abs(np.diff(blue)).min() > 80
    assert np.abs(blue - pictures(source)[0, :, 48, 2]).max() <= 2


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
    planned = plan(source, tmp_path / "out.mp4", asked)
    assert planned.encoder.name == "libx264"
    notes = [note for note in grouped(planned.notes) if "h264_nvenc" in note]
    assert len(notes) == 1
    assert "h264_nvenc does not open here" in notes[0]
    assert "libx264 encodes" in notes[0]
    dropped, _ = run(planned)
    assert not dropped


def test_quality_is_said_in_the_words_of_each_encoder(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)

    def chosen(**options: Any) -> dict[str, str]:
        planned = plan(source, tmp_path / "out.mkv", TranslateOptions(**options))
        return dict(planned.encoder.options)

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
        ({"codec": "libx265x"}, r"libx265x is no encoder of this FFmpeg; do you mean libx265\?"),
        ({"codec": "aac"}, "--codec aac encodes audio; choose a video encoder"),
        ({"encoder_opt": {"speed": "1"}}, "libx264 does not take speed; ffmpeg -h encoder=libx264"),
        ({"preset": "warp"}, "libx264 does not open for 64×48.*preset=warp.*change"),
        ({"codec": "mjpeg"}, "mjpeg does not open for 64×48.*Non full-range YUV is non-standard"),
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


@pytest.mark.behaviour(28)
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx", "mpeg4", "ffv1"])
def test_a_plan_is_the_same_on_a_machine_of_any_size(tmp_path, monkeypatch, codec):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    options = TranslateOptions(codec=codec)
    plans = []
    for cores in (1, 2, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), False)
        monkeypatch.setattr(os, "cpu_count", lambda n=cores: n)
        plans.append(plan(source, tmp_path / "out.mkv", options))
    assert plans[0] == plans[1] == plans[2]


@pytest.mark.behaviour(28, 54)
@pytest.mark.parametrize("codec", ["libx264", "libx264rgb"])
def test_the_same_frames_give_the_same_bits_in_every_run(tmp_path, codec):
    """With AVX-512, x264 wrote other bits in every run."""
    first, *others = [_bits_of_noise(tmp_path, codec, (240, 320), frames=15) for _ in range(6)]
    assert all(other == first for other in others)


@pytest.mark.behaviour(28, 54)
def test_x265_writes_the_same_bits_on_a_machine_of_any_size(tmp_path, monkeypatch):
    """They told which CPU wrote them."""
    bits = []
    for cores in (1, 16):
        monkeypatch.setattr(encoder_module, "cpu_threads", lambda n=cores: n)
        bits.append(_bits_of_noise(tmp_path, "libx265", (240, 320), frames=10, preset="ultrafast"))
    assert bits[0] == bits[1]
    assert not any(b"cpuid" in packet for packet in bits[0])


@pytest.mark.parametrize(("cores", "pool"), [(1, 4), (2, 4), (64, 64)])
def test_x265_never_decides_as_it_does_with_a_small_pool(tmp_path, monkeypatch, cores, pool):
    """24 frames of a film in 720p came out different with 2 threads and with 4, 12 or 64."""
    source = streams.plain(tmp_path / "in.mp4", frames=1, audio=None)
    planned = plan(source, tmp_path / "out.mkv", TranslateOptions(codec="libx265"))
    monkeypatch.setattr(encoder_module, "cpu_threads", lambda: cores)
    with av.open(str(tmp_path / "out.nut"), "w", format="nut") as container:
        stream = encoder_module.add_encoder(
            container, planned.encoder, planned.colour, planned.output_size, None
        )
        assert f"pools={pool}" in stream.codec_context.options["x265-params"].split(":")


def _bits_of_noise(tmp_path, codec, size, *, frames, preset="faster"):
    """Return the packets of ``frames`` pictures of random squares."""
    source = tmp_path / "in.mkv"
    if not source.exists():
        streams.plain(source, frames=3, audio=None, size=size)
    planned = plan(source, tmp_path / "out.mkv", TranslateOptions(codec=codec, preset=preset))
    container = av.open(str(tmp_path / "out.nut"), "w", format="nut")
    stream = encoder_module.add_encoder(container, planned.encoder, planned.colour, size, None)
    random = np.random.default_rng(1)
    packets = []
    for number in range(frames):
        squares = random.integers(0, 255, (size[0] * 3 // 16, size[1] // 8), np.uint8)
        picture = np.kron(squares, np.ones((8, 8), np.uint8))
        frame = av.VideoFrame.from_ndarray(picture, "yuv420p")
        frame = frame.reformat(format=planned.encoder.pix_fmt)
        frame.pts, frame.time_base = 40 * number, Fraction(1, 1000)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    return [bytes(packet) for packet in packets]


def test_the_number_of_threads_is_part_of_the_plan(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    planned = plan(source, tmp_path / "out.mp4")
    assert planned.encoder.threads >= 1
    sink = VideoSink(planned)
    convert = sink.converter()
    for frame in seen(planned):
        sink.write(convert(frame))
    assert sink._encoding._stream.codec_context.thread_count == planned.encoder.threads
    sink.discard()


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".ts", ".nut", ".webm"])
def test_no_encoder_fails_after_the_last_frame(tmp_path, suffix):
    """Some muxers accept a header but no first packet, or write what no demuxer finds again."""
    source = streams.plain(tmp_path / "in.mkv", frames=25, audio=None)
    written = 0
    for codec in ("rawvideo", "ffv1", "mjpeg", "png", "prores_ks", "libvpx", "mpeg2video"):
        output = tmp_path / f"{codec}{suffix}"
        try:
            planned = plan(source, output, TranslateOptions(codec=codec))
        except OutputError:
            continue
        run(planned)
        with av.open(str(output)) as container:
            assert len(list(container.decode(video=0))) == 25, codec
        written += 1
    assert written > 0
    assert leftovers(tmp_path) == []
