"""The command line from outside: what a person types, reads and finds on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cyclegan_batch import TranslateOptions, api, cli
from cyclegan_batch.cli import process
from cyclegan_batch.job import pipeline
from cyclegan_batch.job import report as job_report
from cyclegan_batch.job.job_folder import FOLDER
from cyclegan_batch.job.plan import JobPlan
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.images import sinks
from tests.stopwatch import Stopwatch
from tests.synthesis import generators, streams

Start = Callable[..., subprocess.Popen[bytes]]
"""The fixture `start`."""

COMMAND = [sys.executable, "-m", "cyclegan_batch"]


def cyclegan_batch(
    *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the start of an interpreter.

    Returns its exit code and what it printed; raises what the command lets escape.
    """
    words = list(map(str, arguments))
    with contextlib.chdir(cwd or Path.cwd()):
        result = CliRunner().invoke(cli.main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


def cyclegan_batch_alone(
    *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a person would."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        check=False,
        errors="surrogateescape",
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        pixels = np.full((24, 32, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=12)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clip that is translated for seconds with the encoder's preset placebo."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_clip(path, frames=1000, size=(240, 320))


def write_clip(
    path: Path, *, frames: int, size: tuple[int, int] = (48, 64), codec: str = "libx264"
) -> Path:
    """Write a clip of ``frames`` frames at 25 per second; its grey counts upwards."""
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            pixels = np.full((*size, 3), 60 + number % 128, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def left_in(folder: Path) -> set[str]:
    """Return every file under ``folder``, hidden ones too, those of the job folder left out."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and FOLDER not in path.parts
    }


def assert_one_clear_line(run: subprocess.CompletedProcess[str], *words: str) -> None:
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    lines = [line for line in run.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, run.stderr
    for word in words:
        assert word in lines[0], run.stderr


# What it does


def test_a_clip_and_a_folder_are_translated_and_nothing_else_is_left(
    model: Path, clip: Path, pictures: Path, tmp_path: Path
) -> None:
    run = cyclegan_batch("translate", clip, tmp_path / "out" / "clip.mp4", "-m", model)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert "12 frames" in run.stderr
    run = cyclegan_batch("translate", pictures, tmp_path / "out" / "pictures", "-m", model)
    assert run.returncode == 0, run.stderr
    assert left_in(tmp_path / "out") == {
        "clip.mp4",
        "pictures/0.png",
        "pictures/1.png",
        "pictures/2.png",
    }


@pytest.mark.behaviour(13)
def test_images_and_videos_of_several_inputs_are_one_job(
    model: Path, clip: Path, pictures: Path, tmp_path: Path
) -> None:
    run = cyclegan_batch("translate", clip, pictures, tmp_path / "out", "-m", model, "--dry-run")
    assert run.returncode == 0, run.stderr
    run = cyclegan_batch("translate", clip, pictures, tmp_path / "out", "-m", model)
    assert run.returncode == 0, run.stderr
    names = {Path(name).name for name in left_in(tmp_path / "out")}
    assert names == {"clip.mp4", "0.png", "1.png", "2.png"}


def test_a_dry_run_prints_the_plan_to_stdout_and_writes_nothing(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    run = cyclegan_batch("translate", clip, tmp_path / "out.mp4", "-m", model, "--dry-run")
    assert run.returncode == 0, run.stderr
    assert f"{clip} → {tmp_path / 'out.mp4'}\n" in run.stdout
    assert "12 frames, 64×48, 25/s, h264 yuv420p → libx264 yuv420p 64×48 crf=18" in run.stdout
    assert re.search(r"frames in flight × 0\.0 MiB \(64×48, RGB\) = \d MiB of frames", run.stdout)
    assert run.stdout.splitlines()[-1] == "would write 1 file, 12 frames"
    assert run.stderr == ""
    assert left_in(tmp_path) == set()


@pytest.mark.behaviour(13)
def test_a_folder_of_videos_in_containers_that_are_not_written_becomes_files(
    model: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_clip(folder / "a.mpg", frames=5, codec="mpeg2video")
    write_clip(folder / "a.wmv", frames=5, codec="wmv2")
    write_clip(folder / "b.flv", frames=5)
    write_clip(tmp_path / "c.m2ts", frames=5).rename(folder / "c.MTS")
    names = {"a.mpg.mkv", "a.wmv.mkv", "b.mkv", "c.MTS"}

    run = cyclegan_batch("translate", folder, out, "-m", model, "--dry-run")
    assert run.returncode == 0, run.stderr
    assert f"{folder / 'a.wmv'} → {out / 'a.wmv.mkv'}\n" in run.stdout
    assert f"{folder / 'b.flv'} → {out / 'b.mkv'}\n" in run.stdout
    assert run.stdout.count("--container chooses another") == 1

    run = cyclegan_batch("translate", folder, out, "-m", model)
    assert run.returncode == 0, run.stderr
    assert left_in(out) == names
    for name in names:
        with av.open(str(out / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 5
            assert container.format.name == ("mpegts" if name == "c.MTS" else "matroska,webm")
    assert (out / "c.MTS").read_bytes()[4] == 0x47  # packets of 192 bytes, as on the camera

    run = cyclegan_batch("translate", folder, out, "-m", model, "-n")
    assert run.returncode == 0, run.stderr
    assert "nothing to do, 4 files are up to date" in run.stderr
    assert left_in(out) == names


@pytest.mark.behaviour(17)
def test_a_dry_run_shows_sound_copies_what_exists_and_what_would_fail(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    streams.plain(pictures / "film.mp4", frames=3)
    (pictures / "text.mp4").write_text("Dear diary")
    (pictures / "label.txt").write_text("horse")
    (pictures / "0.png").rename(os.fsdecode(os.fsencode(pictures) + b"/\xff[a].png"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "1.png").touch()
    arguments = ["translate", pictures, out, "-m", model, "-n", "--copy-others", "--dry-run"]
    run = cyclegan_batch(*arguments)
    assert run.returncode == 3, run.stderr
    assert "audio aac, eng copied" in run.stdout
    assert f"{pictures / 'label.txt'} → {out / 'label.txt'} (copied)" in run.stdout
    assert "\\xff[a].png (2 of 2 images)" in run.stdout
    (failure,) = (line for line in run.stdout.splitlines() if line.startswith("FAILS"))
    assert "text.mp4" in failure
    assert run.stdout.splitlines()[-1] == (
        "would write 4 files, 5 frames; 1 exists already and stays; 1 cannot be translated"
    )
    run = cyclegan_batch(*arguments, "--progress", "json")
    told = json.loads(run.stdout)
    assert [Path(video["output"]).name for video in told["videos"]] == ["film.mp4"]
    assert told["frames_in_flight"] * 64 * 48 * 3 == told["memory_bytes"]


@pytest.mark.behaviour(14, 22)
def test_one_corrupt_file_among_many_is_listed_and_the_exit_code_says_partial(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    broken = pictures / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    report = tmp_path / "report.json"
    run = cyclegan_batch("translate", pictures, tmp_path / "out", "-m", model, "--report", report)
    assert run.returncode == 3, run.stderr
    assert "1.png" in run.stderr
    assert left_in(tmp_path / "out") == {"0.png", "2.png"}
    told = json.loads(report.read_text())
    assert (told["status"], told["exit_code"], told["frames"]) == ("partial", 3, 2)
    assert [failure["name"].endswith("1.png") for failure in told["failures"]] == [True]


@pytest.mark.behaviour(28, 30)
def test_the_report_holds_versions_digests_and_the_stage_that_limits(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    run = cyclegan_batch(
        "translate", clip, tmp_path / "out.mp4", "-m", model, "--report", report, "-v"
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(report.read_text())
    assert told["limiting_stage"] in told["stages"]
    assert set(told["stages"]) == {"read", "to rgb", "network", "from rgb", "write"}
    assert len(told["record"]["card"]["digest"]) == 64
    assert {"av", "numpy", "python"} <= set(told["record"]["versions"])
    assert "network ×" in run.stderr


def test_options_that_contradict_each_other_are_a_usage_error(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    for options in (["--gpus", "0,1", "--workers", "3"], ["--ray-address", "auto"]):
        run = cyclegan_batch("translate", pictures, tmp_path / "out", "-m", model, *options)
        assert run.returncode == 2
        assert "Traceback" not in run.stderr
        assert options[0][2:].replace("-", "_") in run.stderr.splitlines()[-1]


@pytest.mark.behaviour(23)
def test_nothing_is_overwritten_unasked(model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "1.png").write_text("mine")
    run = cyclegan_batch("translate", pictures, out, "-m", model)
    assert_one_clear_line(run, "1.png", "-y", "-n")
    assert left_in(out) == {"1.png"}

    run = cyclegan_batch("translate", pictures, out, "-m", model, "-n")
    assert run.returncode == 0, run.stderr
    assert left_in(out) == {"0.png", "1.png", "2.png"}
    assert (out / "1.png").read_text() == "mine"

    run = cyclegan_batch("translate", pictures, out, "-m", model, "-y")
    assert run.returncode == 0, run.stderr
    with Image.open(out / "1.png") as image:
        assert image.size == (32, 24)


@pytest.mark.behaviour(29)
def test_progress_as_json_is_one_object_a_line_and_ends_with_the_report(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    run = cyclegan_batch("translate", clip, tmp_path / "out.mp4", "-m", model, "--progress", "json")
    assert run.returncode == 0, run.stderr
    events = [json.loads(line) for line in run.stderr.splitlines()]
    assert events[-1]["event"] == "end"
    assert events[-1]["frames"] == 12


@pytest.mark.behaviour(10)
def test_a_preview_shows_frames_below_their_source(model: Path, clip: Path, tmp_path: Path) -> None:
    run = cyclegan_batch("translate", clip, tmp_path / "out.mp4", "-m", model, "--preview", "3")
    assert run.returncode == 0, run.stderr
    assert left_in(tmp_path) == {"out.mp4.preview.png"}
    assert run.stdout.strip() == str(tmp_path / "out.mp4.preview.png")
    with Image.open(tmp_path / "out.mp4.preview.png") as image:
        sheet = np.asarray(image.convert("RGB")).astype(int)
    assert sheet.shape == (48 + 8 + 48, 64 + 8 + 64 + 8 + 64, 3)
    # The identity model: every result equals the source above it, and the grey counts upwards.
    greys = [sheet[20, column].mean() for column in (20, 92, 164)]
    assert greys == sorted(greys)
    assert len(set(greys)) == 3
    assert np.abs(sheet[:48] - sheet[56:]).max() == 0


@pytest.mark.behaviour(11)
def test_y4m_goes_through_pipes_and_nothing_but_data_reaches_stdout(
    model: Path, clip: Path
) -> None:
    first = subprocess.run(
        [*COMMAND, "translate", str(clip), "-", "-m", str(model)],
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert first.stdout.startswith(b"YUV4MPEG2 W64 H48 F25:1")
    assert first.stdout.count(b"FRAME\n") == 12
    second = subprocess.run(
        [*COMMAND, "translate", "-", "-", "-m", str(model), "-q"],
        input=first.stdout,
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert second.stdout.count(b"FRAME\n") == 12
    assert second.stderr == b""


@pytest.mark.behaviour(5)
def test_a_pipe_that_loses_sound_is_reported_on_stderr_and_refused_when_strict(
    model: Path, tmp_path: Path
) -> None:
    source = streams.plain(tmp_path / "sound.mp4", frames=3)
    lost = "standard output goes without stream 1 (audio aac, eng): y4m cannot hold it"
    for more, code, frames, has_note in (
        ([], 0, 3, True),
        (["--audio", "none", "--strict"], 0, 3, False),
        (["--strict"], 1, 0, True),
    ):
        run = subprocess.run(
            [*COMMAND, "translate", str(source), "-", "-m", str(model), *more],
            capture_output=True,
            check=False,
            timeout=120,
        )
        said = " ".join(run.stderr.decode().split())
        assert (run.returncode, run.stdout.count(b"FRAME\n")) == (code, frames), said
        assert said.count(lost) == has_note


@pytest.mark.behaviour(11)
def test_a_closed_pipe_ends_the_run_cleanly(model: Path, long: Path, start: Start) -> None:
    run = start(
        [*COMMAND, "translate", str(long), "-", "-m", str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.read(100_000)
    run.stdout.close()
    said = run.stderr.read().decode()
    run.stderr.close()
    assert run.wait(120) == 3
    assert "Traceback" not in said
    assert "Exception" not in said


@pytest.mark.behaviour(24)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_run_within_five_seconds_and_leaves_nothing(
    model: Path, long: Path, tmp_path: Path, how: signal.Signals, start: Start
) -> None:
    out = tmp_path / "out"
    words = ["translate", str(long), str(out / "long.mp4"), "-m", str(model)]
    run = start([*COMMAND, *words, "--preset", "placebo"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in out.glob(".*.partial")):
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.02)
    assert run.stderr is not None
    with Stopwatch() as watch:
        run.send_signal(how)
        said = run.stderr.read().decode()
        run.stderr.close()
        assert run.wait(60) == 130
    assert watch.seconds < 5
    assert "Interrupted" in said
    assert "Traceback" not in said
    assert left_in(out) == set()


@pytest.mark.behaviour(24)
def test_a_second_ctrl_c_ends_at_once_and_the_next_run_replaces_what_it_left(
    model: Path, clip: Path, tmp_path: Path, start: Start
) -> None:
    # A final join that does not come back: the first Ctrl-C waits for it, for some seconds.
    code = (
        "import os, signal, time\n"
        "from cyclegan_batch.cli import main, process\n"
        "from cyclegan_batch.media.video import sink\n"
        "def stuck(*arguments):\n"
        "    print('stuck', flush=True)\n"
        "    time.sleep(60)\n"
        "sink.assemble = stuck\n"
        "stop = process.Stops._stop\n"
        "def tell(*arguments):\n"
        "    try:\n"
        "        stop(*arguments)\n"
        "    finally:\n"
        "        os.write(1, b'heard\\n')\n"
        "process.Stops._stop = tell\n"
        "main()\n"
    )
    out = tmp_path / "out"
    arguments = ["translate", str(clip), str(out / "clip.mp4"), "-m", str(model)]
    run = start(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout is not None
    assert run.stdout.readline() == b"stuck\n"
    run.send_signal(signal.SIGINT)
    assert run.stdout.readline() == b"heard\n"
    assert run.poll() is None
    with Stopwatch() as watch:
        run.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
    assert watch.seconds < pipeline._PATIENCE
    _, said = run.communicate()
    assert b"Traceback" not in said
    left = left_in(out)
    assert left
    assert all(name.startswith(".") and name.endswith(".partial") for name in left)

    again = cyclegan_batch(*arguments)
    assert again.returncode == 0, again.stderr
    assert left_in(out) == {"clip.mp4"}


@pytest.mark.behaviour(24)
def test_a_ctrl_c_that_foreign_code_swallows_is_not_lost() -> None:
    stops = process.Stops()
    with contextlib.suppress(KeyboardInterrupt):  # what a callback in C does with an exception
        stops._stop(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        stops.check()


@pytest.mark.behaviour(24)
@pytest.mark.parametrize("late", ["report_run", "write_report", "_print_outcome"])
def test_a_stop_behind_the_last_file_says_what_was_written(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """It said that nothing was written, or that the same command does it again."""
    where = {"report_run": api, "write_report": job_report, "_print_outcome": cli.translate}[late]
    sent = [signal.SIGTERM]
    really = getattr(where, late)

    def stopped(*arguments: Any, **options: Any) -> Any:
        if sent:
            signal.raise_signal(sent.pop())
        return really(*arguments, **options)

    monkeypatch.setattr(where, late, stopped)
    words = [pictures, tmp_path / "out", "-m", model, "--report", tmp_path / "report.json"]
    done = cyclegan_batch("translate", *words)
    assert not sent
    assert (done.returncode, done.stderr.splitlines()[-1][:10]) == (0, "Done: 3 fr"), done.stderr
    assert done.stderr.endswith("; 3 files\n")
    assert json.loads((tmp_path / "report.json").read_text())["status"] == "whole"


@pytest.mark.behaviour(22, 24)
def test_what_a_stopped_folder_of_images_has_by_then_is_counted(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that is not whole has pictures that are; 24 of 31 were told as 2."""
    out, really, halt = tmp_path / "out", sinks.ImageSink.write, pipeline._Run._halt
    taken, halted = [], threading.Event()

    def second_stops(sink: sinks.ImageSink, item: Any) -> Dropped | None:
        result = really(sink, item)
        taken.append(item)
        if len(taken) == 2:
            process.STOPS.requested = True
            assert halted.wait(60)
        return result

    monkeypatch.setattr(sinks.ImageSink, "write", second_stops)
    monkeypatch.setattr(pipeline._Run, "_halt", lambda self: (halt(self), halted.set()))
    done = cyclegan_batch("translate", pictures, out, "-m", model)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].endswith(
        "; 2 of 3 files written; the same command does what is left"
    )
    assert len(left_in(out)) == 2


EMBEDDED = """
import signal, sys
from click.testing import CliRunner
from cyclegan_batch import cli, doctor

def mine(number, frame):
    raise AssertionError

numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
for number in numbers:
    signal.signal(number, mine)
assert CliRunner().invoke(cli.main, ["inspect", sys.argv[-1]]).exit_code == 0
assert {signal.getsignal(number) for number in numbers} == {mine}, "not the program's own any more"

doctor.examine = lambda: signal.raise_signal(signal.SIGINT)
assert CliRunner().invoke(cli.main, ["doctor"]).exit_code == 130
done = CliRunner().invoke(cli.main, ["translate", *sys.argv[1:]])
assert done.exit_code == 0, done.output
"""


def test_a_program_that_calls_the_command_keeps_its_handlers_and_is_not_stopped_for_good(
    model, pictures, tmp_path
):
    words = [str(pictures), str(tmp_path / "out"), "-m", str(model)]
    done = subprocess.run(
        [sys.executable, "-c", EMBEDDED, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(left_in(tmp_path / "out")) == 3


@pytest.mark.behaviour(24)
def test_an_interrupted_job_says_what_is_left_to_do(
    model: Path, long: Path, tmp_path: Path, start: Start
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_clip(folder / "1.mp4", frames=3)
    (folder / "2.mp4").hardlink_to(long)
    words = ["translate", str(folder), str(out), "-m", str(model), "--preset", "placebo"]
    run = start([*COMMAND, *words], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (out / "1.mp4").exists():
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130
    last = said.decode().splitlines()[-1]
    assert last.startswith("Interrupted: ")
    assert " of 1003 frames" in last
    assert last.endswith("1 of 2 files written; the same command does what is left")


@pytest.mark.behaviour(22)
def test_a_partial_run_ends_with_what_is_missing_and_why_also_for_the_quiet(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in ("0.png", "1.png"):
        (pictures / name).write_bytes((pictures / name).read_bytes()[:60])
    run = cyclegan_batch("translate", pictures, tmp_path / "out", "-m", model, "-q")
    assert run.returncode == 3
    *listed, last = run.stderr.splitlines()
    assert [Path(line.split(":")[1]).name for line in listed] == ["0.png", "1.png"]
    assert last.startswith("Partial: 1 of 3 frames")
    assert "1 of 3 files written; 2 failures, listed above, the first: " in last
    assert str(pictures / "0.png") in last
    assert last.endswith("; the same command does what is left")


@pytest.mark.behaviour(22, 29)
def test_a_run_that_is_given_up_leaves_a_report_and_says_what_there_is(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in ("1.png", "2.png"):
        (pictures / name).write_bytes((pictures / name).read_bytes()[:60])
    report = tmp_path / "report.json"
    arguments = ["translate", pictures, tmp_path / "out", "-m", model, "--report", report]
    arguments += ["--max-failures", "1", "-y"]
    run = cyclegan_batch(*arguments)
    assert_one_clear_line(run, "--max-failures 1", "2.png", "the same command does what is left")
    told = json.loads(report.read_text())
    assert (told["status"], told["exit_code"]) == ("failed", 1)
    assert [Path(each["name"]).name for each in told["failures"]] == ["1.png", "2.png"]
    run = cyclegan_batch(*arguments, "--progress", "json")
    assert run.returncode == 1
    events = [json.loads(line) for line in run.stderr.splitlines()]
    assert events[-1]["event"] == "end"
    assert "2.png" in events[-1]["error"]


def test_an_error_is_json_where_progress_is(model: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no.mp4"
    run = cyclegan_batch(
        "translate", missing, tmp_path / "out.mp4", "-m", model, "--progress", "json"
    )
    assert run.returncode == 1
    (event,) = [json.loads(line) for line in run.stderr.splitlines()]
    assert event["event"] == "error"
    assert "no.mp4" in event["text"]


@pytest.mark.behaviour(10)
def test_a_preview_goes_beside_the_file_that_the_job_would_write(
    model: Path, clip: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run = cyclegan_batch("translate", clip, out, "-m", model, "--preview", "1")
    assert run.returncode == 0, run.stderr
    assert left_in(out) == {"clip.mp4.preview.png"}
    run = cyclegan_batch("translate", pictures, ".", "-m", model, "--preview", "1", cwd=out)
    assert run.returncode == 0, run.stderr
    assert left_in(tmp_path) - left_in(pictures.parent) == set()
    assert (tmp_path / "out.preview.png").exists()
    # What it would write may be there already.
    (out / "0.png").touch()
    run = cyclegan_batch("translate", pictures / "0.png", out, "-m", model, "--preview", "1")
    assert run.returncode == 0, run.stderr


def test_a_preview_looks_only_at_what_can_be_translated(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("Dear diary")
    run = cyclegan_batch("translate", text, clip, tmp_path / "out", "-m", model, "--preview", "2")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out.preview.png").exists()


@pytest.mark.behaviour(11)
def test_a_pipe_closed_before_the_first_frame_ends_the_run_cleanly(
    model: Path, tmp_path: Path, start: Start
) -> None:
    # One frame is larger than a pipe holds.
    wide = write_clip(tmp_path / "wide.mp4", frames=5, size=(480, 640))
    run = start(
        [*COMMAND, "translate", str(wide), "-", "-m", str(model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.read(10)
    run.stdout.close()
    last = run.stderr.read().decode().splitlines()[-1]
    run.stderr.close()
    assert run.wait(120) == 3
    assert last.startswith("Partial: 0 of 5 frames")
    assert "standard output" in last


@pytest.mark.behaviour(11)
@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_a_log_that_cannot_be_written_neither_stops_a_run_nor_spoils_its_data(
    model: Path, clip: Path, closed: str
) -> None:
    run = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *COMMAND, "translate", clip, "-", "-m", model],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0
    frame = len(b"FRAME\n") + 64 * 48 * 3 // 2
    header, data = run.stdout.split(b"\n", 1)
    assert header.startswith(b"YUV4MPEG2 W64 H48")
    assert len(data) == 12 * frame


@pytest.mark.behaviour(17)
def test_a_name_that_is_not_utf8_is_told_as_it_is_typed(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    source = os.fsdecode(os.fsencode(pictures) + b"/\xff.png")
    (pictures / "0.png").rename(source)
    target = os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.png")
    run = cyclegan_batch_alone("translate", source, target, "-m", model)
    assert run.returncode == 0, run.stderr
    assert run.stderr.rstrip().endswith("\\xfe.png")
    # Data keeps its bytes, whatever the locale says about them.
    run = subprocess.run(
        [*COMMAND, "translate", source, target, "-m", model, "--preview", "1"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith(b"\xfe.png.preview.png\n")


# What it refuses


def test_a_report_that_could_not_be_written_errors_before_the_work(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    for report, word in (
        (tmp_path / "nowhere" / "report.json", "its folder does not exist"),
        (tmp_path, "it is a folder"),
        (out, "a file of the job itself"),
        (model, "a file of the job itself"),
    ):
        run = cyclegan_batch("translate", clip, out, "-m", model, "--report", report)
        assert_one_clear_line(run, str(report), word)
    assert left_in(tmp_path) == set()


def test_a_preview_into_a_pipe_errors(model: Path, clip: Path, tmp_path: Path) -> None:
    run = cyclegan_batch("translate", clip, "-", "-m", model, "--preview", "1", cwd=tmp_path)
    assert_one_clear_line(run, "preview", "name a file")
    assert left_in(tmp_path) == set()


@pytest.mark.needs("full-device")
def test_a_standard_output_that_is_full_errors(model: Path) -> None:
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [*COMMAND, "inspect", model],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert run.returncode == 1
    assert run.stderr.startswith("Error: cannot write to standard output: No space left")
    assert len(run.stderr.splitlines()) == 1


def test_a_stretch_that_ends_before_it_begins_errors(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    run = cyclegan_batch("translate", clip, out, "-m", model, "--ss", "3", "--to", "0:02")
    assert_one_clear_line(run, "--to 2 s is not after the start, 3 s")


def test_a_missing_file_errors(model: Path, tmp_path: Path) -> None:
    run = cyclegan_batch("translate", tmp_path / "no.mp4", tmp_path / "out.mp4", "-m", model)
    assert_one_clear_line(run, "no.mp4")


def test_an_empty_folder_errors(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = cyclegan_batch("translate", tmp_path / "empty", tmp_path / "out", "-m", model)
    assert_one_clear_line(run, "empty")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("text.mp4", b"Dear diary,\n" * 100), ("zero.mp4", b""), ("zero.png", b"")],
)
def test_a_file_that_is_no_medium_errors(
    model: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    run = cyclegan_batch("translate", tmp_path / name, tmp_path / "out" / name, "-m", model)
    assert_one_clear_line(run, name)
    assert left_in(tmp_path) == {name}


def test_an_audio_only_file_errors(model: Path, tmp_path: Path) -> None:
    sound = streams.audio_only(tmp_path / "sound.mp4")
    run = cyclegan_batch("translate", sound, tmp_path / "out.mp4", "-m", model)
    assert_one_clear_line(run, "sound.mp4", "video")
    assert left_in(tmp_path) == {"sound.mp4"}


@pytest.mark.behaviour(1)
def test_of_a_truncated_clip_what_is_there_is_written(model: Path, tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", frames=100)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    run = cyclegan_batch("translate", cut, tmp_path / "out.mkv", "-m", model, "--on-error", "fail")
    assert_one_clear_line(run, "cut.mkv")
    assert left_in(tmp_path) == {"whole.mkv", "cut.mkv"}
    run = cyclegan_batch("translate", cut, tmp_path / "out.mkv", "-m", model)
    assert run.returncode == 3, run.stderr
    assert "cut.mkv" in run.stderr
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert 10 < len(list(container.decode(video=0))) < 100


def test_a_model_that_is_none_errors(clip: Path, tmp_path: Path) -> None:
    text = tmp_path / "model.onnx"
    text.write_text("not a model")
    run = cyclegan_batch("translate", clip, tmp_path / "out.mp4", "-m", text)
    assert_one_clear_line(run, "model.onnx")


def test_a_model_that_is_no_generator_errors(clip: Path, tmp_path: Path) -> None:
    model = generators.classifier(tmp_path / "classifier.onnx")
    run = cyclegan_batch("translate", clip, tmp_path / "out.mp4", "-m", model)
    assert_one_clear_line(run, "classifier.onnx")


def test_an_output_inside_the_input_errors(model: Path, pictures: Path) -> None:
    run = cyclegan_batch("translate", pictures, pictures / "out", "-m", model)
    assert_one_clear_line(run, "pictures")
    assert left_in(pictures) == {"0.png", "1.png", "2.png"}


def test_an_output_equal_to_the_input_errors_even_when_overwriting(
    model: Path, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    before = clip.read_bytes()
    run = cyclegan_batch("translate", clip, clip, "-m", model, "-y")
    assert_one_clear_line(run, "clip.mp4")
    assert clip.read_bytes() == before
    run = cyclegan_batch("translate", pictures, pictures, "-m", model, "-y")
    assert_one_clear_line(run, "pictures")


def test_a_target_that_cannot_be_written_errors(model: Path, clip: Path, tmp_path: Path) -> None:
    # root may write anywhere but into a file: the folder's name is taken by one.
    (tmp_path / "folder").write_text("a file")
    run = cyclegan_batch("translate", clip, tmp_path / "folder" / "out.mp4", "-m", model)
    assert_one_clear_line(run, "folder")
    assert left_in(tmp_path) == {"folder"}


@pytest.mark.needs("no-root")
def test_a_read_only_target_errors(model: Path, clip: Path, tmp_path: Path) -> None:
    target = tmp_path / "locked"
    target.mkdir(mode=0o555)
    run = cyclegan_batch("translate", clip, target / "out.mp4", "-m", model)
    assert_one_clear_line(run, "locked")


@pytest.mark.needs("full-device")
def test_a_full_disk_errors_and_leaves_nothing(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("resource")
    out = tmp_path / "out"
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from cyclegan_batch import files\n"
        "def full(fd):\n"
        "    raise OSError(28, 'No space left on device')\n"
        "files.os.fsync = full\n"
        "from cyclegan_batch.cli import main\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "translate", pictures, out, "-m", model],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert_one_clear_line(run, "space")
    assert left_in(out) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "big"],
        ["--size", "0x4"],
        ["--batch-size", "0"],
        ["--ss", "soon"],
        ["--encoder-opt", "bframes"],
        ["-y", "-n"],
        ["--codecs", "x"],
        ["--container", "webm"],
        ["--shard", "0/4"],
        ["--shard", "3"],
    ],
)
def test_a_wrong_word_is_a_usage_error(model: Path, clip: Path, arguments: Sequence[str]) -> None:
    run = cyclegan_batch("translate", clip, "out.mp4", "-m", model, *arguments)
    assert run.returncode == 2
    assert "Usage:" in run.stderr


def test_flags_options_and_plan_share_their_words() -> None:
    command = cli.main.commands["translate"]
    params = command.get_params(click.Context(command))
    flags = {each.name for each in params if "--help" not in each.opts}
    told_to_the_command = {"progress", "quiet", "verbose", "dry_run", "report", "manifest"}
    options = {item.name for item in fields(TranslateOptions)}
    in_plan = {item.name for item in fields(JobPlan)}
    assert flags - told_to_the_command - {"inputs", "output", "model"} == options
    assert {"inputs", "output", "model", "options"} <= in_plan


def test_every_command_and_every_option_has_help() -> None:
    for command in cli.main.commands.values():
        assert command.help
        for parameter in command.get_params(click.Context(command)):
            assert parameter.param_type_name == "argument" or parameter.help, parameter.name  # type: ignore[attr-defined]


@pytest.mark.behaviour(36)
def test_inspect_and_doctor_print_text_and_json(model: Path, clip: Path, pictures: Path) -> None:
    for file, words in ((model, "identity"), (clip, "h264"), (pictures / "0.png", "32")):
        run = cyclegan_batch("inspect", file)
        assert run.returncode == 0, run.stderr
        assert words in run.stdout
        run = cyclegan_batch("inspect", file, "--json")
        assert isinstance(json.loads(run.stdout), dict)
    run = cyclegan_batch("doctor", "--json")
    assert run.returncode == 0, run.stderr
    assert isinstance(json.loads(run.stdout), dict)
