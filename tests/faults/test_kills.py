"""A job that is killed, and started again, ends as one that never was."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from tests.faults import jobs
from tests.faults.jobs import (
    Ended,
    Start,
    assert_same,
    ended,
    launch,
    left_over,
    seed,
    tree,
    whole,
)
from tests.synthesis import generators

pytestmark = [pytest.mark.needs("linux"), pytest.mark.behaviour(19)]

FRAMES = 830
PICTURES = 600


@dataclass(frozen=True)
class Job:
    """A job, and what it ends in when nothing disturbs it."""

    words: tuple[str | Path, ...]
    """Of the command, without the output."""
    expected: Path
    total: int
    """Frames of the video, or images."""
    unit: int
    """Frames or images of one unit of work."""
    changes: int
    """How often the run opens, flushes, renames, links and removes files, and appends to one."""
    seconds: float
    """From its first file to its end."""

    def command(self, output: Path, workers: int) -> list[str | Path]:
        several = [f"--workers={workers}"] if workers > 1 else []
        return [self.words[0], output, *self.words[1:], *several]


def job(folder: Path, source: Path, output: str, *words: str | Path, total: int, unit: int) -> Job:
    """Run the job once without a fault."""
    expected, count = folder / "expected" / output, folder / "changes"
    run = whole(source, expected, *words, count=(count, "/expected/"))
    assert run.frames == total
    changes = count.stat().st_size
    return Job((source, *words), expected, total, unit, changes, float(run.report["seconds"]))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.tiny_resnet(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def video(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A video of five stretches, the last one shorter."""
    folder = tmp_path_factory.mktemp("video")
    source = jobs.clip(folder / "clip.mp4", frames=FRAMES)
    return job(folder, source, "out.mp4", "-m", model, total=FRAMES, unit=jobs.STRETCH)


@pytest.fixture(scope="module")
def numbered(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A video of two stretches that is split into numbered images."""
    folder = tmp_path_factory.mktemp("numbered")
    source = jobs.clip(folder / "clip.mp4", frames=400, sound=False)
    return job(folder, source, "out_%03d.png", "-m", model, total=400, unit=jobs.STRETCH)


@pytest.fixture(scope="module")
def folder(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A folder of three shards of images."""
    folder = tmp_path_factory.mktemp("folder")
    source = jobs.pictures(folder / "in", PICTURES)
    return job(folder, source, "out", "-m", model, total=PICTURES, unit=256)


@pytest.fixture(scope="module")
def tars(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A folder of four tars."""
    folder = tmp_path_factory.mktemp("tars")
    source = jobs.tars(folder / "in", 4, images=PICTURES // 4)
    return job(folder, source, "out", "-m", model, total=PICTURES, unit=PICTURES // 4)


def kill_somewhere(
    start: Start, job: Job, output: Path, workers: int, how: str, random: Random
) -> Ended:
    """Run the job until it is killed, at a random moment or change, and return how it ended.

    How: ``change``: the process that is about to make the n-th change to the files; ``moment``: the
    command and its workers; ``runner``: the command alone; ``worker``: one of its workers.
    """
    share = random.random()
    for _ in range(12):
        faults = []
        if how == "change":
            after = int(share * job.changes)
            faults = [{"call": "change", "path": output.parent.name, "after": after, "kill": True}]
        print(f"{how}: {share:.3f} of {job.changes} changes, {job.seconds:.2f} s")
        process = launch(start, *job.command(output, workers), faults=faults)
        if how != "change":
            jobs.wait_for_journal(output, process)
            if how == "worker":
                jobs.wait_for_workers(process)
            time.sleep(share * job.seconds)
            victims = jobs.living(process)
            if how == "moment":
                jobs.kill_group(process)
            elif how == "runner":
                os.kill(process.pid, signal.SIGKILL)
            elif victims:
                os.kill(random.choice(victims), signal.SIGKILL)
        run = ended(process, 0.0)
        jobs.wait_for_end_of_workers(process)
        if run.code == -signal.SIGKILL or (how == "worker" and victims):
            return run
        # It was done already: it goes faster now, or makes fewer changes.
        assert run.code == 0, run.stderr
        shutil.rmtree(output.parent)
        share /= 2
    raise AssertionError("the job was done before it could be killed")


def assert_finished_by_the_same_command(
    start: Start, job: Job, folder: Path, workers: int, how: str
) -> None:
    """Kill the job, check what is left, finish it, and compare it with the undisturbed one."""
    output = folder / "out" / job.expected.name
    run = kill_somewhere(start, job, output, workers, how, seed())
    if how == "worker":
        assert run.code == 0, run.stderr
    else:
        if output.is_dir() or jobs.is_numbered(output):
            numbered = jobs.is_numbered(output)
            everything = tree(job.expected.parent if numbered else job.expected)
            for name, digest in tree(output.parent if numbered else output).items():
                assert name.endswith(".partial") or everything[name] == digest, name
        elif output.exists():
            assert_same(output, job.expected)
        done = jobs.recorded(output, job.total)
        shown = max(
            (event["frames"] for event in run.events if event["event"] == "progress"), default=0
        )
        assert shown - done <= job.unit * workers, "more than a unit for each worker was lost"
        run = whole(*job.command(output, workers))
        assert run.frames == job.total - done
    assert_same(output, job.expected)
    assert left_over(output.parent) == []
    assert whole(*job.command(output, workers)).frames == 0


QUICK = [
    ("video", 1, "change"),
    ("folder", 1, "moment"),
    ("video", 2, "runner"),
    ("folder", 2, "worker"),
    ("tars", 1, "moment"),
    ("numbered", 2, "moment"),
]


@pytest.mark.behaviour(47)
@pytest.mark.parametrize(("kind", "workers", "how"), QUICK)
def test_a_killed_job_is_finished_by_the_same_command(
    kind: str, workers: int, how: str, request: pytest.FixtureRequest, tmp_path: Path, start: Start
) -> None:
    job = request.getfixturevalue(kind)
    assert_finished_by_the_same_command(start, job, tmp_path, workers, how)


@pytest.mark.slow
@pytest.mark.behaviour(47)
@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize(
    ("workers", "how"),
    [(1, "change"), (1, "moment"), (2, "moment"), (2, "runner"), (2, "worker")],
)
@pytest.mark.parametrize("kind", ["video", "folder", "tars", "numbered"])
def test_a_job_that_is_killed_in_any_way_is_finished_by_the_same_command(
    kind: str,
    workers: int,
    how: str,
    time: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    start: Start,
) -> None:
    job = request.getfixturevalue(kind)
    assert_finished_by_the_same_command(start, job, tmp_path, workers, how)
