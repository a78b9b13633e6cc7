"""A file is reported as cut short only where its frames, its index or its size prove it."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from cyclegan_batch.media import Dropped
from cyclegan_batch.media.video.source import VideoSource
from tests.media.identity import plan

pytestmark = pytest.mark.needs("ffmpeg")
H264 = "-c:v libx264 -preset ultrafast -bf 2 -g 10 -pix_fmt yuv420p"
MPEG4 = "-c:v mpeg4 -c:a libmp3lame"
DURATIONS = r"states \d\.\d{3} s, it holds \d\.\d{3} s"
FRAGMENTS = "-movflags frag_keyframe+empty_moov"


def ffmpeg(
    path: Path, rest: str, *, rate: str = "25", seconds: float = 1, sound: float = 0
) -> Path:
    """A clip of ``seconds`` with ``sound`` seconds of sound."""
    inputs = f"-f lavfi -i testsrc2=s=64x48:r={rate}:d={seconds}"
    if sound:
        inputs += f" -f lavfi -i sine=d={sound}"
    subprocess.check_call(["ffmpeg", "-v", "error", *inputs.split(), *rest.split(), str(path)])
    return path


def read(path: Path) -> tuple[int, list[str]]:
    """Return how many frames arrive, and the errors that are reported."""
    reader = VideoSource(plan(path, path.with_name("out.mkv")))
    items = list(reader.read())
    reader.close()
    wrong = [str(item.error) for item in items if isinstance(item, Dropped)]
    return len(items) - len(wrong), wrong


@pytest.mark.behaviour(1)
@pytest.mark.parametrize(
    ("name", "how", "more", "frames"),
    [
        ("in.wmv", "-c:v wmv2 -c:a wmav2", {"sound": 1.2}, 25),
        ("in.wmv", "-c:v wmv2 -c:a wmav2", {"sound": 3}, 25),
        ("in.wmv", "-c:v wmv2", {"rate": "1/5", "seconds": 10}, 2),
        ("in.flv", "-c:v flv1 -c:a adpcm_swf -ar 44100", {"sound": 1}, 25),
        ("in.flv", "-c:v flv1 -c:a adpcm_swf -ar 11025", {"sound": 2}, 25),
        ("in.flv", "-c:v flv1", {"rate": "1/2", "seconds": 4}, 2),
        ("in.mp4", f"{H264} {FRAGMENTS} -c:a aac", {"sound": 1}, 25),
        ("in.mp4", f"{H264} {FRAGMENTS} -use_editlist 0", {}, 25),
        ("in.mp4", f"{H264} -movflags frag_keyframe", {}, 25),
        ("in.avi", MPEG4, {"sound": 3}, 25),
        ("in.mkv", MPEG4, {"rate": "1/2", "seconds": 4, "sound": 9}, 2),
        ("in.ogv", "-c:v libtheora -q:v 9 -c:a libvorbis", {"sound": 3, "rate": "2"}, 2),
        ("in.ogv", "-c:v libtheora", {"rate": "1/2", "seconds": 4}, 2),
        ("in.mpg", "-c:v mpeg2video -c:a mp2", {"sound": 3}, 25),
        ("in.mxf", "-c:v mpeg2video", {}, 25),
        ("in.nut", MPEG4, {"sound": 3}, 25),
    ],
)
def test_a_whole_file_is_whole(tmp_path, name, how, more, frames):
    assert read(ffmpeg(tmp_path / name, how, **more)) == (frames, [])


@pytest.mark.behaviour(1)
@pytest.mark.parametrize("first", [1, 2])
def test_a_part_of_a_broadcast_is_whole(tmp_path, first):
    """The init segment of DASH, and segments from the ``first`` on."""
    ffmpeg(tmp_path / "m.mpd", f"{H264} -g 25 -f dash -seg_duration 1", seconds=3)
    segments = ["init-stream0.m4s", *(f"chunk-stream0-0000{n}.m4s" for n in range(first, 4))]
    source = tmp_path / "in.mp4"
    source.write_bytes(b"".join((tmp_path / segment).read_bytes() for segment in segments))
    assert read(source) == (25 * (4 - first), [])


@pytest.mark.behaviour(1)
def test_what_an_edit_list_cuts_off_is_not_missing(tmp_path):
    source = ffmpeg(tmp_path / "in.mp4", H264, seconds=2)
    content = bytearray(source.read_bytes())
    # ISO/IEC 14496-12, 8.6.6: the duration of the only entry, in milliseconds here.
    place = content.index(b"elst") + 12
    assert struct.unpack_from(">I", content, place)[0] == 2000
    struct.pack_into(">I", content, place, 1000)
    source.write_bytes(content)
    planned = plan(source, tmp_path / "out.mkv")
    assert planned.frames_expected == 25
    assert read(source) == (25, [])


@pytest.mark.behaviour(1)
def test_a_subtitle_that_outlasts_the_pictures_is_not_missing(tmp_path):
    (tmp_path / "a.srt").write_text("1\n00:00:00,500 --> 00:00:09,000\nLong\n")
    source = ffmpeg(tmp_path / "in.mkv", f"-i {tmp_path / 'a.srt'} {H264} -c:s srt")
    assert read(source) == (25, [])


@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize(
    ("name", "how", "text"),
    [
        ("in.wmv", "-c:v wmv2 -c:a wmav2", DURATIONS),
        ("in.wmv", "-c:v wmv2 -an", DURATIONS),
        ("in.flv", "-c:v flv1 -c:a adpcm_swf -ar 44100", DURATIONS),
        ("in.avi", MPEG4, DURATIONS),
        ("in.mkv", MPEG4, DURATIONS),
        ("in.mp4", f"{H264} -g 100 {FRAGMENTS} -c:a aac", "states 100 frames, it holds"),
        ("in.mp4", f"{H264} -movflags faststart -c:a aac", "states 100 frames, it holds"),
    ],
)
def test_a_cut_file_is_found(tmp_path, name, how, text):
    source = ffmpeg(tmp_path / name, how, seconds=4, sound=4)
    content = source.read_bytes()
    source.write_bytes(content[: int(len(content) * 0.7)])
    frames, wrong = read(source)
    assert 25 < frames < 95
    assert "cut short" in wrong[-1] or "to its end" in wrong[-1]
    assert re.search(text, wrong[-1]) or "to its end" in wrong[-1]
