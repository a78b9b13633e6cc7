"""A job on videos of a store that is killed or stopped is finished by the same command."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch import remote
from cyclegan_batch.files import scratch_folder
from cyclegan_batch.remote import RemotePath
from tests.faults import jobs
from tests.faults.jobs import Start, ended, launch, whole
from tests.needs import need
from tests.stores import Gate
from tests.synthesis import generators

need("fsspec", "s3fs")
pytestmark = [pytest.mark.needs("linux"), pytest.mark.behaviour(19)]

FRAMES = 830
"""Three stretches, the last one longer."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.tiny_resnet(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=FRAMES)


@pytest.fixture(scope="module")
def expected(clip: Path, model: Path) -> bytes:
    """Return the output of the same job on local files."""
    whole(clip, clip.with_name("out.mp4"), "-m", model)
    return clip.with_name("out.mp4").read_bytes()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the processes of the test a scratch folder of their own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield scratch_folder()
    monkeypatch.setattr("tempfile.tempdir", None)


def stretches(bucket: RemotePath) -> list[Path]:
    """Return the stretches that the store has now."""
    remote.forget()
    return [
        path
        for path in (bucket / "real").beneath()
        if path.suffix == ".mp4" and path.stem.isdigit()
    ]


def recorded(bucket: RemotePath) -> int:
    """Return how many frames are in the stretches that the journal tells of."""
    remote.forget()
    found = (bucket / "real").beneath()
    journals = [bucket / "real" / name for name in found if name.suffix == ".jsonl"]
    lines = [json.loads(line) for path in journals for line in path.read_bytes().splitlines()]
    return sum(line["frames"] for line in lines if line["line"] == "stretch")


def wait_for_stretch(bucket: RemotePath, process: subprocess.Popen[Any]) -> None:
    """Wait until a stretch is written down as done."""
    jobs.wait_for(lambda: recorded(bucket) or process.poll() is not None)
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize(
    ("how", "workers"),
    [
        (signal.SIGKILL, 2),
        (signal.SIGINT, 1),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
    ],
)
def test_a_job_that_is_killed_or_stopped_goes_on_with_the_stretches_of_the_store(
    s3: RemotePath,
    clip: Path,
    model: Path,
    expected: bytes,
    scratch: Path,
    start: Start,
    gate: Callable[[str, int], Gate],
    how: signal.Signals,
    workers: int,
) -> None:
    words = job(s3, clip, model, workers)
    second = gate(r"/\d+\.mp4$", 1)
    process = launch(start, *words)
    second.wait(process)
    wait_for_stretch(s3, process)
    if how == signal.SIGKILL:
        jobs.kill_group(process)
    else:
        jobs.interrupt(process)
        second.open()  # it arrives; the third one is stopped
    first = ended(process, 0.0)
    assert first.code == (130 if how == signal.SIGINT else -how), first.stderr
    jobs.wait_for_end_of_workers(process)
    if how == signal.SIGKILL:
        second.refuse()
        gate(r"/\d+\.mp4$", 3)
    if how == signal.SIGINT:
        assert list(scratch.iterdir()) == []
    assert jobs.STRETCH <= recorded(s3) < FRAMES
    assert not (s3 / "real" / "out.mp4").exists()
    alone = [word for word in words if not str(word).startswith("--workers")]
    assert_finished(s3, alone, expected, scratch)


@pytest.mark.slow
@pytest.mark.parametrize("time_of_trial", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_is_killed_at_any_moment_is_finished_by_the_same_command(
    s3: RemotePath,
    clip: Path,
    model: Path,
    expected: bytes,
    scratch: Path,
    start: Start,
    workers: int,
    time_of_trial: int,
) -> None:
    words = job(s3, clip, model, workers)
    begin = time.monotonic()
    whole(*words[:1], str(s3 / "other" / "out.mp4"), *words[2:])
    seconds = time.monotonic() - begin
    process = launch(start, *words)
    time.sleep(seconds * jobs.seed().uniform(0.3, 0.95))
    jobs.kill_group(process)
    ended(process, 0.0)
    jobs.wait_for_end_of_workers(process)
    if (s3 / "real" / "out.mp4").exists():
        assert (s3 / "real" / "out.mp4").read_bytes() == expected
    assert_finished(s3, words, expected, scratch)
    assert whole(*words).frames == 0


def job(bucket: RemotePath, clip: Path, model: Path, workers: int) -> list[str | Path]:
    """Put the clip into the bucket; return the words of the command that translates it."""
    (bucket / "raw" / "clip.mp4").write_bytes(clip.read_bytes())
    several = [f"--workers={workers}"] if workers > 1 else []
    urls = [str(bucket / "raw" / "clip.mp4"), str(bucket / "real" / "out.mp4")]
    return [*urls, "-m", model, *several]


def assert_finished(
    bucket: RemotePath, words: list[str | Path], expected: bytes, scratch: Path
) -> None:
    """Run the same command to its end."""
    done = recorded(bucket)
    again = whole(*words)
    assert again.frames in (FRAMES - done, 0)
    remote.forget()
    assert (bucket / "real" / "out.mp4").read_bytes() == expected
    assert stretches(bucket) == []
    assert list(scratch.iterdir()) == []
