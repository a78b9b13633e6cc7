"""y4m through standard input and standard output, and as a file."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.formats import PIPE
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.identity import FAST, LOSSLESS, plan, run, seen
from tests.media.witness import needs_ffprobe, pictures, probe, times
from tests.synthesis import streams
from tests.synthesis.videos import moving


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
    planned = plan(source, PIPE)
    assert planned.encoder.pix_fmt == pix_fmt
    _, sink = run(planned)
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
    planned = plan(source, PIPE)
    sink = VideoSink(planned)
    convert = sink.converter()
    encoded = [convert(frame) for frame in seen(planned)] * 50
    with pytest.raises(BrokenPipeError):
        write_all(sink, encoded)
    sink.discard()
    stdout.close()


@pytest.mark.behaviour(11)
def test_the_plan_of_a_pipe_is_a_value_and_its_header_is_read_once(tmp_path, monkeypatch):
    """A second plan finds the header that the first read, and a pickled one reads the frames."""
    run(plan(moving(tmp_path / "in.mkv", frames=10), tmp_path / "a.y4m"))
    with (tmp_path / "a.y4m").open("rb") as stdin:
        monkeypatch.setattr(sys, "stdin", Standard(stdin))
        first, second = plan(PIPE, tmp_path / "out.mkv"), plan(PIPE, tmp_path / "out.mkv")
        assert first == second
        assert len(seen(pickle.loads(pickle.dumps(second)))) == 10
        with pytest.raises(InputError, match="standard input is not y4m"):
            plan(PIPE, tmp_path / "out.mkv")


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


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("output", ["a.y4m", "-"])
def test_each_stream_that_y4m_loses_is_one_warning_and_an_error_when_strict(tmp_path, output):
    output = PIPE if output == "-" else tmp_path / output
    name = "standard output" if output == PIPE else output
    source = streams.mp4(tmp_path / "in.mp4", frames=10)
    lost = [
        "stream 1 (audio aac, eng): y4m cannot hold it",
        "stream 2 (audio aac, deu): y4m cannot hold it",
        "stream 3 (subtitle mov_text, fra): y4m cannot hold it",
        "stream 5 (attached picture png): y4m cannot hold it",
        "2 chapters: y4m cannot hold them",
    ]
    for options, expected in (
        (TranslateOptions(), lost),
        (TranslateOptions(audio="none"), lost[2:]),
    ):
        notes = grouped(plan(source, output, options).notes)
        assert [note for note in notes if "goes without" in note] == [
            f"{name} goes without {loss}" for loss in expected
        ]
        with pytest.raises(OutputError, match=r"y4m cannot hold it.*--strict .*, or choose \.mkv$"):
            plan(source, output, replace(options, strict=True))


@pytest.mark.behaviour(5)
def test_a_video_without_other_streams_becomes_y4m_without_a_warning(tmp_path):
    silent = moving(tmp_path / "silent.mkv", frames=3)
    sound = streams.plain(tmp_path / "sound.mp4", frames=3)
    for source, options in (
        (silent, TranslateOptions(strict=True)),
        (sound, TranslateOptions(strict=True, audio="none")),
    ):
        notes = grouped(plan(source, tmp_path / "a.y4m", options).notes)
        assert not [note for note in notes if "goes without" in note]


def test_options_of_an_encoder_have_no_effect_on_y4m_and_that_is_said(tmp_path):
    source = moving(tmp_path / "in.mkv", frames=3)
    options = TranslateOptions(codec="libx265", crf=20.0, pix_fmt="yuv444p")
    (note,) = (each for each in grouped(plan(source, PIPE, options).notes) if "no effect" in each)
    assert note == (
        f"{source}: no effect of --codec, --crf, as y4m holds frames that are not encoded"
    )


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
    assert f"is cut short: {there} bytes of a frame follow 9 whole ones" in str(last.error)
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
