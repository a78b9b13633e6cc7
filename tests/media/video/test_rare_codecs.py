"""Codecs that a container identifies by a tag only, coarse time bases, and joined OGG."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.options import TranslateOptions
from tests.media.identity import plan, run
from tests.media.witness import needs_ffprobe, pictures
from tests.synthesis import streams

pytestmark = needs_ffprobe
RATE = 48_000


def ffmpeg(*arguments: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True)


def probed(path: Path, stream: str, entries: str) -> Any:
    command = ["ffprobe", "-v", "error", "-select_streams", stream, "-of", "json"]
    return json.loads(subprocess.check_output([*command, "-show_entries", entries, str(path)]))


@pytest.mark.behaviour(1)
@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [
        ("rawvideo", ".nut", "yuv420p"),
        ("rawvideo", ".mkv", "yuv420p"),
        ("rawvideo", ".avi", "yuv420p"),
        ("rawvideo", ".mov", "uyvy422"),
        ("utvideo", ".avi", "yuv420p"),
        ("utvideo", ".nut", "yuv422p"),
        ("huffyuv", ".mkv", "yuv422p"),
        ("ffvhuff", ".avi", "yuv420p"),
        ("magicyuv", ".mkv", "yuv420p"),
        ("png", ".mkv", "rgb24"),
    ],
)
def test_lossless_codecs_come_out_as_they_went_in(tmp_path, codec, suffix, pix_fmt):
    source = streams.plain(tmp_path / "in.mkv", frames=3, audio=None)
    output = tmp_path / f"out{suffix}"
    run(plan(source, output, TranslateOptions(codec=codec, pix_fmt=pix_fmt)))
    there, here = pictures(source).astype(int), pictures(output).astype(int)
    assert there.shape == here.shape
    assert np.abs(there - here).mean() < 1.5
    assert probed(output, "V:0", "stream=pix_fmt")["streams"][0]["pix_fmt"] == pix_fmt


@pytest.mark.behaviour(5)
@pytest.mark.parametrize(("suffix", "pix_fmt"), [(".mov", "yuv444p"), (".mov", "yuv420p")])
def test_pictures_that_would_be_read_as_others_are_refused_errors(tmp_path, suffix, pix_fmt):
    """MOV read three planes as packed RGB: as many frames, all noise."""
    source = streams.plain(tmp_path / "in.mkv", frames=3, audio=None)
    with pytest.raises(OutputError, match=r"MOV cannot hold rawvideo video in .*choose another"):
        plan(source, tmp_path / f"out{suffix}", TranslateOptions(codec="rawvideo", pix_fmt=pix_fmt))


def test_lossless_vp9_needs_no_other_option(tmp_path):
    """The default CRF was out of range for lossless coding."""
    source = streams.plain(tmp_path / "in.mkv", frames=3, audio=None)
    fast = {"lossless": "1", "deadline": "realtime", "cpu-used": "8"}
    output = tmp_path / "out.webm"
    run(plan(source, output, TranslateOptions(encoder_opt=fast)))
    assert np.abs(pictures(source).astype(int) - pictures(output).astype(int)).mean() < 1.5


def test_png_beside_the_translated_video_is_copied_into_mkv(tmp_path):
    source = tmp_path / "in.mov"
    two = ["testsrc=s=96x64:r=10:d=0.3", "testsrc=s=48x32:r=10:d=0.3,setsar=2"]
    inputs = [word for each in two for word in ("-f", "lavfi", "-i", each)]
    coded = ["-c:v:0", "mpeg4", "-c:v:1", "png", "-pix_fmt:v:1", "rgb24"]
    ffmpeg(*inputs, "-map", "0", "-map", "1", *coded, str(source))
    planned = plan(source, tmp_path / "out.mkv")
    run(planned)
    answer = probed(planned.output, "v:1", "stream=codec_name,sample_aspect_ratio,nb_read_frames")
    assert answer["streams"] == [{"codec_name": "png", "sample_aspect_ratio": "2:1"}]
    command = ["-map", "0:v:1", "-f", "framemd5", "-"]
    sums = [
        [line.split(",")[-1] for line in made_of.splitlines() if not line.startswith("#")]
        for made_of in (
            subprocess.check_output(["ffmpeg", "-v", "error", "-i", str(path), *command], text=True)
            for path in (source, planned.output)
        )
    ]
    assert sums[0] == sums[1]
    assert len(sums[0]) == 3


@pytest.mark.behaviour(3)
@pytest.mark.parametrize("suffix", [".mkv", ".nut"])
def test_packets_shorter_than_a_tick_do_not_slow_the_sound_down(tmp_path, suffix):
    """TrueHD has 1200 packets per second, MKV 1000 ticks: the sound ran at 5/6 of its speed."""
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as output:
        video: Any = output.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        sound: Any = output.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 9 * number, np.uint8))
            picture.pts = number
            output.mux(video.encode(picture))
        for number in range(480):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 40), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = RATE, 40 * number
            frame.time_base = Fraction(1, RATE)
            output.mux(sound.encode(frame))
    planned = plan(source, tmp_path / f"out{suffix}")
    run(planned)
    ends = [
        float(probed(path, "a:0", "packet=pts_time")["packets"][-1]["pts_time"])
        for path in (source, planned.output)
    ]
    assert ends[0] == pytest.approx(0.399, abs=0.001)
    assert ends[1] == pytest.approx(ends[0], abs=0.002)


def _ogg(path: Path, *more: str) -> bytes:
    inputs = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=0.4", *more]
    try:
        ffmpeg(*inputs, "-c:v", "libtheora", "-c:a", "libvorbis", str(path))
    except subprocess.CalledProcessError:
        pytest.skip("this ffmpeg writes no Theora")
    return path.read_bytes()


@pytest.mark.behaviour(1)
def test_the_headers_of_a_joined_ogg_are_no_lost_frames(tmp_path):
    part = _ogg(tmp_path / "part.ogv")
    source = tmp_path / "in.ogv"
    source.write_bytes(part + part)
    planned = plan(source, tmp_path / "out.mp4")
    dropped, _ = run(planned)
    assert dropped == []
    assert len(pictures(planned.output)) == 20


def test_a_file_that_breaks_off_early_gives_what_is_there(tmp_path):
    """FFmpeg cannot read the second part of an OGG with sound; there was no output at all."""
    sound = ["-f", "lavfi", "-i", "sine=d=0.4"]
    source = tmp_path / "in.ogv"
    # Each part has its own serial numbers.
    source.write_bytes(b"".join(_ogg(tmp_path / "part.ogv", *sound) for _ in range(2)))
    planned = plan(source, tmp_path / "out.mkv")
    dropped, _ = run(planned)
    assert "cannot be read to its end" in str(dropped[0].error)
    assert len(pictures(planned.output)) == 10
