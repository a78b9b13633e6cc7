"""Worker processes: equal output, and what every kind of death costs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import run_plan, translate
from cyclegan_batch.errors import BackendError, InputError, OutputError
from cyclegan_batch.job.runners.supervision import WorkerError
from cyclegan_batch.job.units import Counters
from cyclegan_batch.media.images import shards
from tests.conftest import ENVIRONMENT
from tests.stopwatch import Stopwatch
from tests.synthesis import generators, streams
from tests.synthesis.troubled import (
    MARK,
    TroubledPlan,
    kill,
    kill_once,
    leave,
    raise_bug,
    segfault,
    troubled,
    wait_for_ever,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such workers")

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.tiny_resnet(tmp_path_factory.mktemp("model") / "tiny.onnx")


def picture(path: Path, grey: int | None = None, size: tuple[int, int] = (24, 32)) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    dice = np.random.default_rng(len(path.name) * 1000 + sum(os.fsencode(path.name)))
    pixels = dice.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels if grey is None else np.full_like(pixels, grey)).save(path)
    return path


def pictures(folder: Path, count: int, *marked: int) -> Path:
    for number in range(count):
        picture(folder / f"{number:03}.png", MARK if number in marked else None)
    return folder


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 8)


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file of a folder with its bytes, those of the job folder left out."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cyclegan-batch" not in path.parts
    }


def packets(path: Path) -> list[tuple[int, int | None, int | None, str]]:
    with av.open(str(path)) as container:
        return [
            (each.stream.index, each.pts, each.dts, hashlib.sha256(bytes(each)).hexdigest())
            for each in container.demux()
            if each.size
        ]


def children() -> set[int]:
    """Return the processes that this one has started and that run."""
    return set(_children_of(os.getpid()))


# Equal output


@pytest.mark.behaviour(28, 37)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_images_are_the_same_bytes_whoever_translates_them(
    model: Path, tmp_path: Path, backend: str, small_shards: None
) -> None:
    pytest.importorskip(backend)
    folder = pictures(tmp_path / "in", 30)
    picture(folder / "large.png", size=(90, 70))
    (folder / "broken.png").write_bytes(b"no image")
    reports = [
        translate(folder, tmp_path / name, model=model, backend=backend, **options)  # type: ignore[arg-type]
        for name, options in (
            ("one", {}),
            ("two", {"workers": 2}),
            ("threads", {"threads": 1}),
            ("more", {"threads": 5, "workers": 2}),
        )
    ]
    one = contents(tmp_path / "one")
    assert len(one) == 31
    for name in ("two", "threads", "more"):
        assert contents(tmp_path / name) == one
    assert {(each.status, each.frames, len(each.outputs)) for each in reports} == {
        ("partial", 31, 31)
    }
    assert len({tuple(failure.cause for failure in each.failures) for each in reports}) == 1


@pytest.mark.behaviour(28, 37)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_video_in_stretches_is_the_same_packets_whoever_translates_them(
    model: Path, tmp_path: Path, backend: str
) -> None:
    pytest.importorskip(backend)
    clip = streams.plain(tmp_path / "clip.mp4", frames=450, size=(32, 48))
    results = []
    for name, options in (("one", {}), ("two", {"workers": 2}), ("threads", {"threads": 1})):
        report = translate(
            clip, tmp_path / f"{name}.mp4", model=model, backend=backend, preset="ultrafast",
            **options,  # type: ignore[arg-type]
        )  # fmt: skip
        assert (report.status, report.frames) == ("whole", 450)
        results.append(packets(tmp_path / f"{name}.mp4"))
    assert sum(stream == 0 for stream, *_ in results[0]) == 450
    assert results[1] == results[0]
    assert results[2] == results[0]


@pytest.mark.behaviour(37)
def test_two_devices_share_the_work_in_proportion_to_their_speed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 2)
    folder = pictures(tmp_path / "in", 240)
    delays = {"cuda:0": 0.02, "cuda:1": 0.06}
    plan = troubled(folder, tmp_path / "out", model=model, delays=delays, threads=1)
    plan = _on_gpus(plan, "0,1")
    done: dict[int, int] = {}
    from cyclegan_batch.job.dispatch import Dispatcher

    given = Dispatcher._hand_out

    def counted(self: Dispatcher, task: Any, worker: int) -> None:
        done[worker] = done.get(worker, 0) + 1
        given(self, task, worker)

    monkeypatch.setattr(Dispatcher, "_hand_out", counted)
    report = run_plan(plan)
    assert (report.status, report.frames) == ("whole", 240)
    assert 2.0 < done[0] / done[1] < 4.0
    same = troubled(folder, tmp_path / "alone", model=model, delays={})
    run_plan(same)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def _on_gpus(plan: TroubledPlan, gpus: str) -> TroubledPlan:
    from dataclasses import replace

    return replace(plan, options=replace(plan.options, gpus=gpus))


# Deaths


@pytest.mark.behaviour(47)
def test_a_worker_that_is_killed_once_costs_nothing(
    model: Path, tmp_path: Path, small_shards: None
) -> None:
    folder = pictures(tmp_path / "in", 40, 20)
    plan = troubled(
        folder, tmp_path / "out", model=model, workers=2, at_mark=kill_once,
        witness=tmp_path / "killed",
    )  # fmt: skip
    report = run_plan(plan)
    assert (report.status, report.frames, len(report.outputs)) == ("whole", 40, 40)
    assert (tmp_path / "killed").exists()
    (note,) = [text for text in map(str, report.notes) if "killed" in text]
    assert re.fullmatch(
        r"worker [12]: was killed by SIGKILL; what it had and was not whole is begun again", note
    )
    run_plan(troubled(folder, tmp_path / "alone", model=model))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert not children()


@pytest.mark.behaviour(14, 47)
@pytest.mark.parametrize(
    ("death", "words"), [(segfault, "SIGSEGV; twice"), (kill, "SIGKILL; twice; the system may")]
)
def test_the_one_image_that_kills_is_found_and_all_others_are_written(
    model: Path, tmp_path: Path, small_shards: None, death: Callable[[Path], None], words: str
) -> None:
    folder = pictures(tmp_path / "in", 24, 3)
    plan = troubled(folder, tmp_path / "out", model=model, workers=2, at_mark=death)
    report = run_plan(plan)
    assert (report.status, report.frames, len(report.outputs)) == ("partial", 23, 23)
    (failure,) = report.failures
    assert failure.name == str(folder / "003.png")
    assert words in failure.cause
    assert set(contents(tmp_path / "out")) == {
        Path(f"{number:03}.png") for number in range(24) if number != 3
    }


@pytest.mark.behaviour(47)
def test_a_killed_stretch_is_tried_again_and_the_video_is_the_same(
    model: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    _clip_with_a_mark(clip, 450, mark=300)
    options: dict[str, Any] = {"model": model, "preset": "ultrafast"}
    plan = troubled(
        clip, tmp_path / "out.mp4", workers=2, at_mark=kill_once, witness=tmp_path / "k", **options
    )
    report = run_plan(plan)
    assert (report.status, report.frames) == ("whole", 450)
    assert (tmp_path / "k").exists()
    run_plan(troubled(clip, tmp_path / "alone.mp4", **options))
    assert packets(tmp_path / "out.mp4") == packets(tmp_path / "alone.mp4")


@pytest.mark.behaviour(47)
def test_a_video_whose_stretch_kills_twice_is_one_failure_and_the_others_are_done(
    model: Path, tmp_path: Path
) -> None:
    _clip_with_a_mark(tmp_path / "in" / "bad.mp4", 450, mark=300)
    streams.plain(tmp_path / "in" / "good.mp4", frames=20, size=(32, 48))
    plan = troubled(
        tmp_path / "in", tmp_path / "out", model=model, workers=2, preset="ultrafast",
        at_mark=segfault,
    )  # fmt: skip
    report = run_plan(plan)
    assert report.status == "partial"
    (failure,) = report.failures
    assert failure.name == str(tmp_path / "in" / "bad.mp4")
    assert "killed by SIGSEGV; twice" in failure.cause
    assert set(contents(tmp_path / "out")) == {Path("good.mp4")}


def _clip_with_a_mark(path: Path, frames: int, mark: int) -> None:
    """Write a grey clip, without loss, in which one frame is `MARK`."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb24"
        for number in range(frames):
            grey = MARK if number == mark else 100 + number % 50
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), grey, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.behaviour(47)
def test_workers_that_die_as_they_start_end_the_run_with_their_last_words_errors(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "in", 4)
    plan = troubled(folder, tmp_path / "out", model=model, workers=2, at_start=leave)
    with pytest.raises(BackendError, match=r"status 7 as it started.*\n  the driver says no"):
        run_plan(plan)
    assert not contents(tmp_path / "out") if (tmp_path / "out").exists() else True
    assert not children()


@pytest.mark.behaviour(47)
def test_workers_that_die_with_whatever_they_get_end_the_run_errors(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 1)
    folder = pictures(tmp_path / "in", 12, *range(12))
    plan = troubled(folder, tmp_path / "out", model=model, workers=2, at_mark=kill)
    words = "killed by SIGKILL before anything was done.*it printed nothing; .*use fewer workers"
    with pytest.raises(BackendError, match=words):
        run_plan(plan)


def test_a_bug_in_a_worker_reaches_the_caller_with_its_traceback_errors(
    model: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "in", 4, 2)
    plan = troubled(folder, tmp_path / "out", model=model, workers=2, at_mark=raise_bug)
    with pytest.raises(WorkerError, match=r"(?s)in raise_bug.*ZeroDivisionError: a bug of ours"):
        run_plan(plan)
    assert not children()


@pytest.mark.behaviour(14, 22)
def test_failures_are_counted_over_all_workers_errors(
    model: Path, tmp_path: Path, small_shards: None
) -> None:
    folder = pictures(tmp_path / "in", 32)
    for number in (1, 9, 17, 25):
        (folder / f"{number:03}.png").write_bytes(b"no image")
    options: dict[str, Any] = {"model": model, "workers": 2}
    with pytest.raises(InputError, match="3 failures are more than --max-failures 2 allows"):
        translate(folder, tmp_path / "a", max_failures=2, **options)
    with pytest.raises(InputError, match=r"\.png"):
        translate(folder, tmp_path / "b", on_error="fail", **options)
    report = translate(folder, tmp_path / "c", max_failures=4, **options)
    assert (report.status, len(report.failures), len(report.outputs)) == ("partial", 4, 28)


@pytest.mark.behaviour(25)
def test_a_folder_that_cannot_be_written_ends_the_run_of_all_workers_errors(
    model: Path, tmp_path: Path, small_shards: None
) -> None:
    folder = pictures(tmp_path / "in", 32)
    plan = troubled(folder, tmp_path / "out", model=model, workers=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "000.png").mkdir()  # a folder cannot be replaced by a file
    report = run_plan(plan)
    assert [failure.name for failure in report.failures] == [str(folder / "000.png")]


def test_standard_streams_are_not_given_to_workers_errors(model: Path, tmp_path: Path) -> None:
    clip = streams.plain(tmp_path / "clip.mp4", frames=3, size=(16, 32))
    with pytest.raises(OutputError, match=r"standard output is written by one process.*--workers"):
        translate(clip, "-", model=model, workers=2)
    with pytest.raises(InputError, match=r"standard input is read by one process.*--gpus"):
        translate("-", tmp_path / "out.mp4", model=model, gpus="0")


@pytest.mark.parametrize(
    "options", [{"gpus": "0;1"}, {"gpus": "0,1", "workers": 3}, {"gpus": "0", "device": "cpu"}]
)
def test_gpus_that_contradict_the_other_options_errors(
    model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="gpus"):
        translate(tmp_path / "in.png", tmp_path / "out.png", model=model, **options)


# The end of the runner

_RUN = """
import pickle, sys
from cyclegan_batch.api import run_plan
run_plan(pickle.load(open(sys.argv[1], "rb")))
"""


def started(start: Start, plan: TroubledPlan, tmp_path: Path) -> subprocess.Popen[bytes]:
    """Start a runner with two workers, each of which is in the middle of a unit."""
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    runner = start([sys.executable, "-c", _RUN, str(tmp_path / "plan")], env=ENVIRONMENT)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("here-*"))) < 2:
        assert time.monotonic() < deadline
        assert runner.poll() is None
        time.sleep(0.05)
    return runner


def workers_of(tmp_path: Path) -> list[int]:
    return [int(path.name.removeprefix("here-")) for path in tmp_path.glob("here-*")]


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def test_images_of_a_shard_that_was_interrupted_count(model: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 300)

    def interrupt(counters: Counters) -> None:
        if counters.written:
            raise KeyboardInterrupt

    # A shard's images appear after a second. All of them would take fifteen.
    slow = troubled(folder, tmp_path / "out", model=model, workers=2, delays={"cpu": 0.1})
    report = run_plan(slow, watch=interrupt)
    assert report.status == "interrupted"
    assert 0 < report.frames == len(report.outputs) < 300


@pytest.mark.behaviour(24)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_the_terminal_ends_the_run_and_all_its_workers(
    model: Path, tmp_path: Path, start: Start, times: int
) -> None:
    """The terminal sends the signal to every process of the group, the workers included."""
    clip = streams.plain(tmp_path / "clip.mp4", frames=900, size=(96, 128))
    command = [sys.executable, "-m", "cyclegan_batch", "translate", clip, tmp_path / "out.mp4"]
    options = ["-m", model, "--workers", "2", "--preset", "placebo"]
    run = start(
        [*map(str, command), *map(str, options)],
        env=ENVIRONMENT, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob(".cyclegan-batch/*/.*.partial"))) < 2:
        assert time.monotonic() < deadline
        assert run.poll() is None
        time.sleep(0.02)
    workers = _children_of(run.pid)
    assert len(workers) == 2
    if times == 1:
        with Stopwatch() as watch:
            os.killpg(run.pid, signal.SIGINT)
            assert run.wait(60) == 130
        assert watch.seconds < 5
    else:
        # The first one waits for the workers, which do nothing yet.
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        while run.poll() is None:
            os.killpg(run.pid, signal.SIGINT)
            time.sleep(0.05)
        assert run.returncode == 130
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    with Stopwatch() as watch:
        while any(map(is_alive, workers)):
            assert watch.seconds < 8
            time.sleep(0.05)
    assert run.stderr is not None
    said = run.stderr.read().decode()
    assert "Traceback" not in said
    assert ("Interrupted" in said) == (times == 1)
    assert not (tmp_path / "out.mp4").exists()
    if times == 1:
        assert not list(tmp_path.glob(".cyclegan-batch/*/.*.partial"))


def _children_of(process: int) -> list[int]:
    while True:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        # A thread that has ended meanwhile left its children to another one: look again.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return [int(each) for task in tasks for each in (task / "children").read_text().split()]


@pytest.mark.behaviour(19, 24)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_runner_that_is_killed(
    model: Path, tmp_path: Path, start: Start, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 4)
    folder = pictures(tmp_path / "in", 64, *range(3, 64, 4))
    plan = troubled(
        folder, tmp_path / "out", model=model, workers=2, at_mark=wait_for_ever,
        witness=tmp_path / "here", threads=2,
    )  # fmt: skip
    runner = started(start, plan, tmp_path)
    workers = workers_of(tmp_path)
    runner.send_signal(how)
    with Stopwatch() as watch:
        runner.wait(60)
        while any(map(is_alive, workers)):
            assert watch.seconds < 18
            time.sleep(0.05)
    for path, data in contents(tmp_path / "out").items():
        if not path.name.startswith("."):
            assert data.endswith(b"IEND\xaeB`\x82")
