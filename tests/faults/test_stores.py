"""Jobs whose outputs lie in a store: killed in the middle, and left by the store itself."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from cyclegan_batch import remote
from cyclegan_batch.job.status import job_status
from cyclegan_batch.remote import RemotePath
from tests.faults import jobs
from tests.faults.jobs import FOLDER, Start, ended, launch, translate, whole
from tests.needs import need
from tests.stores import Server
from tests.synthesis import generators

need("s3fs", "moto.server")
pytestmark = pytest.mark.needs("linux")

PICTURES = 330
"""Two shards."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.pictures(tmp_path_factory.mktemp("source") / "in", PICTURES, side=16)


@pytest.fixture(scope="module")
def expected(source: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected") / "out"
    whole(source, folder, "-m", model)
    return folder


def objects(root: RemotePath) -> list[Path]:
    """Return the names of the outputs that are there."""
    remote.forget()
    return [name for name in root.beneath() if FOLDER not in name.parts]


def assert_whole(root: RemotePath, expected: Path) -> None:
    """Compare all outputs with those of an undisturbed run; no others are there."""
    assert {str(name): (root / name).read_bytes() for name in objects(root)} == {
        name: (expected / name).read_bytes() for name in jobs.tree(expected)
    }
    status = job_status(root)
    assert status is not None
    assert (status.done, status.is_whole) == (PICTURES, True)


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_job_is_finished_by_the_same_command(
    workers: int, s3: RemotePath, source: Path, expected: Path, model: Path, start: Start
) -> None:
    root = s3 / "x"
    command = [source, f"{root}/", "-m", model, *([f"--workers={workers}"] * (workers > 1))]
    number = int(os.environ.get("FAULTS_SEED") or random.randrange(2**32))
    print(f"FAULTS_SEED={number}")
    after = random.Random(number).randrange(1, 300)
    process = launch(start, *command)
    jobs.wait_for(lambda: len(objects(root)) >= after or process.poll() is not None)
    jobs.kill_group(process)
    assert ended(process, 0.0).code == -signal.SIGKILL
    jobs.wait_for_end_of_workers(process)
    everything = jobs.tree(expected)
    assert 0 < len(objects(root)) < PICTURES
    assert {str(name) for name in objects(root)} <= set(everything)
    status = job_status(root)
    assert status is not None
    assert (status.at_work, status.is_whole) == (None, False)
    run = whole(*command)
    assert run.frames == PICTURES - status.done
    assert PICTURES - len(objects(root)) <= run.frames
    assert_whole(root, expected)
    assert whole(*command).frames == 0


@pytest.mark.behaviour(25)
def test_a_store_that_goes_away_ends_the_run_with_one_sentence_and_is_gone_on_with(
    s3: RemotePath,
    source: Path,
    expected: Path,
    model: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = s3 / "x"
    command = [source, f"{root}/", "-m", model]
    other = Server()  # with the content of the first, which stays
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", other.url)
        process = launch(start, *command)
    jobs.wait_for(lambda: len(objects(root)) >= 20 or process.poll() is not None)
    other.stop()
    run = ended(process, 0.0)
    assert run.code == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert "exception was never retrieved" not in run.stderr
    error = str(run.report["error"])
    assert error.startswith(f"cannot write {root}/")
    assert "the store does not answer: Could not connect to the endpoint" in error
    assert error.endswith("run the same command again when it does")
    written = len(objects(root))
    assert 0 < written < PICTURES
    # It is told as well where it is away from the beginning.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", other.url)
        away = translate(*command)
    assert "the store does not answer: Could not connect" in away.error
    assert whole(*command).frames >= PICTURES - written
    assert_whole(root, expected)


@pytest.mark.behaviour(29)
def test_interrupted_it_tells_so_and_goes_on(
    s3: RemotePath, source: Path, expected: Path, model: Path, start: Start
) -> None:
    root = s3 / "x"
    command = [source, f"{root}/", "-m", model]
    process = launch(start, *command)
    jobs.wait_for(lambda: len(objects(root)) >= 20 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    run = ended(process, 0.0)
    assert run.code == 130, run.stderr
    done = len(run.report["outputs"])
    # What is on its way when the run is stopped arrives, is reported, and needs no work again.
    assert done == len(objects(root))
    assert whole(*command).frames == PICTURES - done
    assert_whole(root, expected)
