"""Jobs whose outputs lie in a store: killed in the middle, and left by the store itself."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cyclegan_batch import remote
from cyclegan_batch.job.status import job_status
from cyclegan_batch.remote import RemotePath
from tests.faults import jobs
from tests.faults.jobs import FOLDER, Start, ended, launch, translate, whole
from tests.needs import need
from tests.stores import Gate, Server
from tests.synthesis import generators

need("s3fs", "moto.server")
pytestmark = pytest.mark.needs("linux")

PICTURES = 330
"""Two shards."""

OUTPUTS = r"\.png$"
"""The keys of the outputs, and of nothing else that a run puts."""

PutUp = Callable[[str, int], Gate]
"""The fixture `gate`."""


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
    workers: int,
    s3: RemotePath,
    source: Path,
    expected: Path,
    model: Path,
    start: Start,
    gate: PutUp,
) -> None:
    root = s3 / "x"
    command = [source, f"{root}/", "-m", model, *([f"--workers={workers}"] * (workers > 1))]
    after = jobs.seed().randrange(1, 300)
    held = gate(OUTPUTS, after)
    process = launch(start, *command)
    held.wait(process)
    jobs.kill_group(process)
    assert ended(process, 0.0).code == -signal.SIGKILL
    jobs.wait_for_end_of_workers(process)
    held.refuse()  # what the killed process had asked for is not put behind its back
    assert len(objects(root)) == after
    assert {str(name) for name in objects(root)} <= set(jobs.tree(expected))
    status = job_status(root)
    assert status is not None
    assert (status.at_work, status.is_whole) == (None, False)
    gate(OUTPUTS, PICTURES)
    run = whole(*command)
    assert run.frames == PICTURES - status.done
    assert PICTURES - after <= run.frames
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
    other.gate = Gate(OUTPUTS, 20)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", other.url)
        process = launch(start, *command)
    other.gate.wait(process)
    other.stop()
    other.gate.refuse()
    run = ended(process, 0.0)
    assert run.code == 1, run.stderr
    assert all(line.startswith("{") for line in run.stderr.splitlines()), run.stderr
    error = str(run.report["error"])
    assert error.startswith(f"cannot write {root}/")
    # The store closes the connections that it has, and takes no new ones.
    words = ["the store does not answer: Co" + each for each in ("uld not connect", "nnection was")]
    assert any(each in error for each in words)
    assert error.endswith("run the same command again when it does")
    assert len(objects(root)) == 20
    # It is told as well where it is away from the beginning.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", other.url)
        away = translate(*command)
    assert "the store does not answer: Could not connect" in away.error
    assert whole(*command).frames >= PICTURES - 20
    assert_whole(root, expected)


@pytest.mark.behaviour(29)
def test_interrupted_it_tells_so_and_goes_on(
    s3: RemotePath, source: Path, expected: Path, model: Path, start: Start, gate: PutUp
) -> None:
    root = s3 / "x"
    command = [source, f"{root}/", "-m", model]
    held = gate(OUTPUTS, 20)
    process = launch(start, *command)
    held.wait(process)
    jobs.interrupt(process)
    held.open()
    run = ended(process, 0.0)
    assert run.code == 130, run.stderr
    done = len(run.report["outputs"])
    # What is on its way when the run is stopped arrives, is reported, and needs no work again.
    assert done == len(objects(root)) > 20
    assert whole(*command).frames == PICTURES - done
    assert_whole(root, expected)
