"""Two runs on one folder at once: refused, or shared without work done twice."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.faults import jobs
from tests.faults.jobs import Start, assert_same, ended, launch, left_over, translate, whole
from tests.synthesis import generators

pytestmark = pytest.mark.needs("linux")

PICTURES = 700
"""Three shards."""
SHARD = 256
FIRST = r"/00000\.png$"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.pictures(tmp_path_factory.mktemp("source") / "in", PICTURES)


@pytest.fixture(scope="module")
def expected(source: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected") / "out"
    whole(source, folder, "-m", model)
    return folder


def held(gate: Path, path: str) -> dict[str, object]:
    """Return the rule by which a run waits before it gives ``path`` its name."""
    return {"call": "link", "path": path, "hold": gate}


def reached(gate: Path) -> bool:
    return Path(f"{gate}.held").exists()


@pytest.mark.behaviour(23)
def test_a_second_run_on_a_folder_is_refused_with_the_process_and_the_host_of_the_first(
    source: Path, expected: Path, model: Path, tmp_path: Path, start: Start
) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    first = launch(start, source, out, "-m", model, faults=[held(gate, FIRST)])
    jobs.wait_for(lambda: reached(gate))
    for more in ([], ["-y"], ["-n"], ["--shard=1/2"]):
        second = translate(source, out, "-m", model, *more)
        assert f"process {first.pid} on {socket.gethostname()}" in second.error, more
    gate.touch()
    assert ended(first, 0.0).code == 0
    assert_same(out, expected)
    assert left_over(out) == []


@pytest.mark.behaviour(19)
def test_the_lock_of_a_run_that_was_killed_locks_nothing(
    source: Path, expected: Path, model: Path, tmp_path: Path, start: Start
) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    first = launch(start, source, out, "-m", model, faults=[held(gate, FIRST)])
    jobs.wait_for(lambda: reached(gate))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    whole(source, out, "-m", model)
    assert_same(out, expected)
    assert left_over(out) == []


def test_two_runs_with_n_share_a_folder_and_write_every_image_once(
    source: Path, expected: Path, model: Path, tmp_path: Path, start: Start
) -> None:
    out = tmp_path / "out"
    begin = time.monotonic()
    processes = [launch(start, source, out, "-m", model, "-n") for _ in range(2)]
    runs = [ended(process, begin) for process in processes]
    assert sum(run.frames for run in runs) == PICTURES, [run.report for run in runs]
    assert [run.code for run in runs] == [0, 0], [run.report["failures"] for run in runs]
    assert_same(out, expected)
    assert left_over(out) == []


def named(folder: Path) -> int:
    """Return how many images have their names: others come and go while a run is at work."""
    return sum(1 for _ in folder.rglob("[!.]*.png"))


@pytest.mark.parametrize("first_is_killed", [False, True])
def test_a_run_with_n_waits_for_the_images_that_another_is_writing_and_does_them_if_that_one_dies(
    first_is_killed: bool, source: Path, expected: Path, model: Path, tmp_path: Path, start: Start
) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    first = launch(start, source, out, "-m", model, "-n", faults=[held(gate, FIRST)])
    jobs.wait_for(lambda: reached(gate))
    second = launch(start, source, out, "-m", model, "-n")
    # The first has begun a second shard ahead.
    jobs.wait_for(lambda: named(out) >= PICTURES - 2 * SHARD or second.poll() is not None)
    assert second.poll() is None
    if first_is_killed:
        os.kill(first.pid, signal.SIGKILL)
    else:
        gate.touch()
    last, other = ended(second, 0.0), ended(first, 0.0)
    assert last.code == 0, last.stderr
    if first_is_killed:
        assert last.frames == PICTURES
    else:
        assert other.code == 0, other.stderr
        assert other.frames + last.frames == PICTURES
    assert_same(out, expected)
    assert left_over(out) == []


@pytest.mark.behaviour(13)
def test_both_halves_of_a_job_run_at_once_and_make_the_whole(
    source: Path, expected: Path, model: Path, tmp_path: Path, start: Start
) -> None:
    out = tmp_path / "out"
    begin = time.monotonic()
    halves = ["--shard=1/2", "--shard=2/2"]
    processes = [launch(start, source, out, "-m", model, half) for half in halves]
    runs = [ended(process, begin) for process in processes]
    assert [run.code for run in runs] == [0, 0], [run.report["failures"] for run in runs]
    assert sum(run.frames for run in runs) == PICTURES
    assert_same(out, expected)
    assert left_over(out) == []
    for half in halves:
        assert whole(source, out, "-m", model, half).frames == 0
