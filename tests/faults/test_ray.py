"""A job on a Ray cluster equals the local one, whatever of the cluster is killed meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation
from cyclegan_batch.media.images import shards
from cyclegan_batch.remote import RemotePath
from tests.faults import jobs
from tests.faults.jobs import (
    FOLDER,
    Start,
    assert_same,
    ended,
    journal_lines,
    launch,
    left_over,
    tree,
    wait_for,
)
from tests.needs import has
from tests.stopwatch import Stopwatch
from tests.synthesis import generators, tars
from tests.synthesis.troubled import MARK, kill, troubled

pytestmark = [pytest.mark.needs("linux", "ray")]

FRAMES, PICTURES = 520, 300
"""Three stretches of a video, and two shards of images."""


def processes() -> Iterator[tuple[int, int, str]]:
    """Yield the number, the session and the words of every process that runs."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state, _, _, session = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:4]
            if state not in (b"Z", b"X"):
                yield int(folder.name), int(session), words


def in_session(number: int) -> list[str]:
    """Return the words of the processes of a session."""
    return [words for _, session, words in processes() if session == number]


def actors(session: int) -> list[int]:
    """Return the processes of our actors in the cluster of a session."""
    ours = "ray::RayWorker"
    return [number for number, of, words in processes() if of == session and ours in words]


@pytest.fixture(scope="module", autouse=True)
def _no_token() -> Iterator[None]:
    """Let clusters ask for no token, which Ray would write into the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Start a Ray cluster of two CPUs; yield its address and its session of processes.

    It has its own way to the store: what a command has in its environment stays there.
    """
    environment = jobs.environment()
    if has("moto") and has("s3fs"):
        environment |= request.getfixturevalue("s3_server").environment
    # The paths of its sockets must be short.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        port, client, agent = (each.getsockname()[1] for each in free)
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2",
        f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
        "--disable-usage-stats", f"--temp-dir={folder}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
    ]  # fmt: skip
    with subprocess.Popen(
        list(map(str, command)), env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as head:  # fmt: skip
        try:
            wait_for(lambda: _answers(port) or head.poll() is not None)
            assert head.poll() is None
            yield f"127.0.0.1:{port}", head.pid
        finally:
            head.terminate()
            head.wait(30)
            for number, session, _ in list(processes()):
                if session == head.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, inputs, and what the local run makes of them."""
    folder = tmp_path_factory.mktemp("work")
    generators.tiny_resnet(folder / "tiny.onnx")
    jobs.pictures(folder / "in", PICTURES)
    jobs.clip(folder / "in" / "clip.mp4", frames=FRAMES)
    (folder / "in" / "broken.png").write_bytes(b"no image")
    run = jobs.translate(*words(folder, folder / "local" / "out"))
    assert run.code == 3, run.stderr
    return folder


def words(work: Path, output: Path, *more: str) -> list[str | Path]:
    slow = ["--preset", "slower", "--png-level", "6"]
    return [work / "in", output, "-m", work / "tiny.onnx", "--threads", "1", *slow, *more]


def on_ray(work: Path, output: Path, address: str) -> list[str | Path]:
    return words(work, output, "--runner", "ray", "--ray-address", address, "--workers", "2")


def recorded(output: Path) -> dict[str, object]:
    """Return what a journal tells last of each output: all but when, and by which run."""
    found: dict[str, object] = {}
    for line in journal_lines(output):
        if line["line"] == "whole":
            facts = {key: line[key] for key in line.keys() - {"outputs", "at", "run"}}
            found |= {name: (facts, row) for name, *row in line["outputs"]}
        elif line["line"] == "failed":
            found |= dict(line["failures"])
    return found


def assert_equals_the_local_run(work: Path, output: Path) -> None:
    expected = work / "local" / "out"
    assert tree(output).keys() == tree(expected).keys()
    assert_same(output / "clip.mp4", expected / "clip.mp4")
    assert tree(output) == tree(expected)
    assert recorded(output) == recorded(expected)
    assert len(recorded(output)) == PICTURES + 2
    assert not left_over(output)


def wait_until_at_work(output: Path, run: subprocess.Popen[Any]) -> int:
    """Wait until an actor has begun a stretch; return its process, which the file's name tells."""
    found: list[Path] = []

    def begun() -> bool:
        found.extend(output.glob(f"{FOLDER}/*/.*.partial"))
        return bool(found) or run.poll() is not None

    wait_for(begun)
    assert run.poll() is None, run.communicate()[1]
    return int(found[0].name.split("-")[2])


@pytest.mark.behaviour(38, 39, 47)
def test_a_cluster_that_loses_an_actor_makes_what_the_local_run_makes(
    work: Path, tmp_path: Path, cluster: tuple[str, int], start: Start
) -> None:
    run = launch(start, *on_ray(work, tmp_path / "out", cluster[0]))
    victim = wait_until_at_work(tmp_path / "out", run)
    assert victim in actors(cluster[1])
    os.kill(victim, signal.SIGKILL)
    end = ended(run, time.monotonic())
    assert end.code == 3, end.stderr
    assert end.frames == FRAMES + PICTURES
    assert_equals_the_local_run(work, tmp_path / "out")
    assert "on the Ray cluster: 2 workers of 1 CPU" in end.stderr
    assert not [line for line in end.stderr.splitlines() if not line.startswith("{")]


@pytest.mark.behaviour(39)
def test_what_a_killed_command_has_begun_is_finished_by_the_same(
    work: Path, tmp_path: Path, cluster: tuple[str, int], start: Start
) -> None:
    output = tmp_path / "out"
    run = launch(start, *on_ray(work, output, cluster[0]))
    wait_until_at_work(output, run)
    wait_for(lambda: _stretches(output) or run.poll() is not None)
    run.kill()
    run.wait()
    wait_for(lambda: not actors(cluster[1]), 20)  # without the command
    again = jobs.translate(*on_ray(work, output, cluster[0]))
    assert again.code == 3, again.stderr
    assert again.frames < FRAMES + PICTURES
    assert_equals_the_local_run(work, output)


def _stretches(output: Path) -> int:
    return sum(line["line"] == "stretch" for line in journal_lines(output))


@pytest.mark.behaviour(39)
def test_ctrl_c_ends_the_command_and_the_cluster_that_it_started(
    work: Path, tmp_path: Path, start: Start
) -> None:
    """The terminal sends the signal to the whole group, which Ray's own processes belong to."""
    output = tmp_path / "out"
    run = launch(start, *on_ray(work, output, "local"))
    wait_until_at_work(output, run)
    with Stopwatch() as watch:
        os.killpg(run.pid, signal.SIGINT)
        end = ended(run, 0.0)
    assert (end.code, watch.seconds < 5) == (130, True), end
    assert "a Ray cluster was started for this command: 2 workers" in end.stderr
    assert end.report["status"] == "interrupted", end.report
    assert not [line for line in end.stderr.splitlines() if not line.startswith("{")]
    assert not list(output.glob(f"{FOLDER}/*/.*.partial"))
    wait_for(lambda: not in_session(run.pid), 20)


_RUN = """
import pickle, sys
from cyclegan_batch.api import run_plan
print(run_plan(pickle.load(open(sys.argv[1], "rb"))).to_json())
"""


@pytest.mark.behaviour(39, 47)
def test_an_image_that_kills_two_actors_is_listed(
    work: Path, tmp_path: Path, cluster: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 1)
    (tmp_path / "in").mkdir()
    for number in range(4):
        grey = MARK if number == 1 else 100 + number
        Image.fromarray(np.full((24, 32, 3), grey, np.uint8)).save(
            tmp_path / "in" / f"{number}.png"
        )
    plan = troubled(
        tmp_path / "in", tmp_path / "out", model=work / "tiny.onnx", at_mark=kill,
        runner="ray", ray_address=cluster[0],
    )  # fmt: skip
    (tmp_path / "plan").write_bytes(pickle.dumps(plan))
    run = subprocess.run(
        [sys.executable, "-c", _RUN, tmp_path / "plan"], env=jobs.environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    (failure,) = report["failures"]
    assert failure["name"] == str(tmp_path / "in" / "1.png")
    words = r"was lost on [0-9.]+ \(Ray: Worker unexpectedly exits .*\); twice; "
    assert re.search(words, failure["cause"])
    assert set(tree(tmp_path / "out")) == {"0.png", "2.png", "3.png"}


def test_the_plan_is_the_local_ones(work: Path, tmp_path: Path) -> None:
    """What changes pixels is decided where the command runs, not by the cluster."""
    plans = [
        plan_translation(work / "in", tmp_path, model=work / "tiny.onnx", **options)
        for options in ({}, {"runner": "ray"})
    ]
    local, ray = ((plan.jobs, plan.shards, plan.schedule.batch_size) for plan in plans)
    assert ray == local


@pytest.mark.behaviour(38, 39)
@pytest.mark.needs("moto", "s3fs")
@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_tars_of_a_store_go_through_a_cluster_that_loses_an_actor(
    work: Path, tmp_path: Path, cluster: tuple[str, int], s3: RemotePath, start: Start, count: int
) -> None:
    """Tars of 125 images, from and to S3; the same tars from a folder, without Ray."""
    (tmp_path / "in").mkdir()
    images = [tars.jpeg(seed) for seed in range(20)]
    for number in range(count):
        items = [
            item
            for key in range(125)
            for item in ((f"{key:03}.jpg", images[key % 20]), (f"{key:03}.cls", b"%d" % key))
        ]
        path = tars.write_tar(tmp_path / "in" / f"{number}.tar", items)
        (s3 / "in" / path.name).write_bytes(path.read_bytes())
    (s3 / "tiny.onnx").write_bytes((work / "tiny.onnx").read_bytes())
    options = ["-m", work / "tiny.onnx", "--threads", "1"]
    assert jobs.translate(tmp_path / "in", tmp_path / "out", *options).frames == 125 * count
    where = [f"{s3}/in/", f"{s3}/out/", "-m", f"{s3}/tiny.onnx", "--threads", "1"]
    ray = ["--runner", "ray", "--ray-address", cluster[0], "--workers", "2"]
    ray += ["--cache-dir", str(tmp_path / "cache")]
    run = launch(start, *where, *ray)
    wait_for(lambda: (s3 / "out" / "1.tar").exists() or run.poll() is not None)
    assert run.poll() is None, run.communicate()
    os.kill(actors(cluster[1])[0], signal.SIGKILL)
    end = ended(run, time.monotonic())
    assert (end.code, end.frames) == (0, 125 * count), end.stderr
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    assert len(made) == count
    assert {name: (s3 / "out" / name).read_bytes() for name in made} == made
