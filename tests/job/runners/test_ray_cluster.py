"""What is decided for a Ray cluster, and what is refused; no cluster is started here."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation, translate
from cyclegan_batch.errors import BackendError, BackendUnavailableError, InputError, OutputError
from cyclegan_batch.job.plan import JobPlan
from cyclegan_batch.job.report import versions
from cyclegan_batch.job.runners import ray_cluster
from cyclegan_batch.job.runners.messages import Crashed, Done, Next, NoMore, Progress, Raised, Ready
from cyclegan_batch.job.runners.ray_actor import RayWorker, Surroundings
from cyclegan_batch.job.runners.ray_cluster import Actors
from tests.conftest import ENVIRONMENT
from tests.stopwatch import Stopwatch
from tests.synthesis import generators, streams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.tiny_resnet(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(3):
        pixels = np.full((24, 32, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    return tmp_path / "in"


def test_ray_is_imported_only_by_a_run_on_a_cluster() -> None:
    code = (
        "import cyclegan_batch.job.runners.ray_cluster, sys; "
        "sys.exit([name for name in sys.modules if name.split('.')[0] == 'ray'] != [])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0
    )


# What is refused


@pytest.mark.parametrize("spec", [None, ModuleSpec("ray", None, is_package=True)])
def test_a_missing_ray_is_told_with_its_extra_errors(
    model: Path,
    folder: Path,
    tmp_path: Path,
    spec: ModuleSpec | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder of its name, as /tmp/ray is to a command in /tmp, is no Ray."""
    found = importlib.util.find_spec

    def without_ray(name: str, package: str | None = None) -> Any:
        return spec if name == "ray" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_ray)
    words = r'ray is not installed; pip install "cyclegan-batch\[ray\]" brings it'
    with pytest.raises(BackendUnavailableError, match=words):
        translate(folder, tmp_path / "out", model=model, runner="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.needs("ray")
@pytest.mark.parametrize("address", ["nonsense", "ray://", "host:port", "http://host:1", "a:99999"])
def test_what_is_no_address_is_refused_errors(
    model: Path, folder: Path, tmp_path: Path, address: str
) -> None:
    with pytest.raises(BackendError, match=r"(is no address of|nobody answers)"):
        translate(folder, tmp_path / "out", model=model, runner="ray", ray_address=address)


@pytest.mark.needs("ray")
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "ray://[::1]:{}"])
def test_where_nobody_answers_the_command_ends_at_once_errors(
    model: Path, folder: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
    with Stopwatch() as watch:
        with pytest.raises(BackendError, match=r"nobody answers at .*ray start --head"):
            translate(folder, tmp_path / "out", model=model, runner="ray", ray_address=address)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(BackendError, match=r"nobody answers at "):
            translate(folder, tmp_path / "out", model=model, runner="ray")
    assert watch.seconds < 8


@pytest.mark.needs("ray")
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_server_that_is_not_rays_is_refused_at_once_errors(
    model: Path, folder: Path, tmp_path: Path, form: str
) -> None:
    """Such as Ray's own dashboard. Ray would try for a quarter of an hour."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        address = form.format(server.getsockname()[1])
        with pytest.raises(BackendError, match=r"is no Ray cluster; the usual ports are .*6379"):
            translate(folder, tmp_path / "out", model=model, runner="ray", ray_address=address)


@pytest.mark.needs("ray")
def test_a_note_of_a_cluster_that_has_ended_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray start` leaves one that only `ray stop` removes. Ray would try for many minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"127.0.0.1:{server.getsockname()[1]}"
    services = importlib.import_module("ray._private.services")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    note = Path(importlib.import_module("ray._private.utils").get_ray_address_file(None))
    assert note.is_relative_to(tmp_path)
    note.parent.mkdir(exist_ok=True)
    note.write_text(dead)
    assert ray_cluster._on_this_machine(None) is None
    with pytest.raises(BackendError, match=r"no Ray cluster runs on this machine.*address local"):
        ray_cluster._on_this_machine("auto")
    monkeypatch.setattr(ray_cluster, "_check", lambda address: None)
    assert ray_cluster._on_this_machine(None) == dead
    note.unlink()
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: {"127.0.0.1:1"})
    assert ray_cluster._on_this_machine(None) is None
    assert ray_cluster._on_this_machine("auto") == "127.0.0.1:1"


@pytest.mark.needs("ray")
def test_the_versions_that_ray_refuses_are_told_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray tells them in the later lines of its error."""
    import ray

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.44.1\n    Python: 3.12.1\n"
            "This process on node 192.0.2.2 was started with:\n    Ray: 2.60.0\n"
        )

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(BackendError, match=r"Ray: 2\.44\.1 Python: 3\.12\.1 .*Ray: 2\.60\.0; `ray"):
        ray_cluster._connect("192.0.2.1:6379")
    with pytest.raises(BackendError, match=r"cannot start a local .*RAY_TMPDIR"):
        ray_cluster._connect(None)


def test_a_ray_that_cannot_be_loaded_is_told_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailableError, match=r"Ray cannot be loaded: .*pip uninstall ray"):
        ray_cluster._loaded()


@pytest.mark.needs("ray")
def test_standard_streams_do_not_go_to_a_cluster_errors(model: Path, tmp_path: Path) -> None:
    clip = streams.plain(tmp_path / "clip.mp4", frames=3, size=(16, 32))
    with pytest.raises(OutputError, match=r"standard output is written by one .*--runner ray"):
        translate(clip, "-", model=model, runner="ray")
    with pytest.raises(InputError, match=r"standard input is read by one process.*--runner ray"):
        translate("-", tmp_path / "out.mp4", model=model, runner="ray")


@pytest.mark.parametrize(
    "options",
    [{"ray_address": "auto"}, {"ray_gpus": 0.5}, {"runner": "ray", "gpus": "0"},
     {"runner": "ray", "ray_gpus": 0}],
)  # fmt: skip
def test_options_that_contradict_each_other_errors(
    model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="ray"):
        translate(tmp_path / "in.png", tmp_path / "out.png", model=model, **options)


# What is decided


@pytest.fixture
def plan(model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobPlan:
    """A plan of many units."""
    pytest.importorskip("ray")
    plan = plan_translation(folder, tmp_path / "out", model=model, runner="ray")
    return replace(plan, shards=plan.shards * 100)


def with_options(plan: JobPlan, **options: Any) -> JobPlan:
    return replace(plan, options=replace(plan.options, **options))


_LARGE, _SMALL, _HEAD = {"CPU": 32.0, "GPU": 4.0}, {"CPU": 2.0}, {"memory": 1e9}


@pytest.mark.parametrize(
    ("nodes", "options", "workers", "threads"),
    [
        ([_SMALL], {}, 1, 2),
        ([_LARGE, _LARGE], {}, 16, 4),
        ([_LARGE, _HEAD], {"threads": 8}, 4, 8),
        ([_LARGE, _LARGE], {"workers": 4}, 4, 16),
        ([_LARGE, _SMALL], {"workers": 1}, 1, 32),
        ([_SMALL], {"workers": 2}, 2, 1),
        ([_SMALL], {"workers": 8}, 8, 1),
        ([_LARGE], {"workers": 8, "threads": 3}, 8, 3),
        # One that grows when something is asked for.
        ([_HEAD], {}, 1, 1),
        ([_HEAD], {"workers": 50, "threads": 8}, 50, 8),
        ([_LARGE] * 100, {}, 100, 4),
    ],
)
def test_workers_and_their_cpus_follow_from_what_the_cluster_holds(
    plan: JobPlan,
    nodes: list[dict[str, float]],
    options: dict[str, Any],
    workers: int,
    threads: int,
) -> None:
    actors = Actors(with_options(plan, **options))
    share, asked = actors._decide(nodes)
    assert (actors.count, share.threads, asked) == (workers, threads, {"num_cpus": threads})
    assert (share.device, share.converters) == ("cpu", min(threads, 8))
    assert 1 <= share.contexts <= threads


@pytest.mark.parametrize(
    ("options", "workers", "gpus", "threads"),
    [({}, 8, 1.0, 8), ({"ray_gpus": 0.5}, 16, 0.5, 4), ({"workers": 3}, 3, 1.0, 21)],
)
def test_workers_on_gpus_ask_for_gpus(
    plan: JobPlan, options: dict[str, Any], workers: int, gpus: float, threads: int
) -> None:
    plan = replace(plan, backend=replace(plan.backend, device="cuda:2"))
    actors = Actors(with_options(plan, **options))
    share, asked = actors._decide([_LARGE, _LARGE])
    assert actors.count == workers
    assert asked == {"num_gpus": gpus, "num_cpus": threads}
    # Ray hides the other GPUs of the machine.
    assert share.device == "cuda:0"
    assert share.contexts == plan.schedule.contexts


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: RayWorker\n"
            "\tpid: 5653\n\tip: 192.0.2.2\nThe actor is dead because its worker process has died. "
            "Worker exit type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a "
            "connection error code 2. End of file. Some common causes include: (1) …",
            "lost on 192.0.2.2 (Ray: Worker unexpectedly exits with a connection error code 2)",
        ),
        (
            "The actor died unexpectedly before finishing this task.\n\tip: 192.0.2.3\n"
            "The actor died because its node has died. Node Id: 4f\n"
            "\tthe actor's node was terminated unexpectedly: health check failed",
            "lost with its machine on 192.0.2.3 (Ray: the actor's node was terminated "
            "unexpectedly: health check failed)",
        ),
        (
            "1 worker(s) were killed due to the node running low on memory. Memory on the node "
            "(IP: 192.0.2.2, ID: 7a) was 1.83GB used / 23.54GB limit (0.077781)\nTop 10 memory "
            "users: PID MEM(GB)\nRefer to the documentation on how to address it.",
            "ended by Ray for want of memory on 192.0.2.2 (Ray: 1 worker(s) were "
            "killed due to the node running low on memory)",
        ),
        ("", "lost (Ray: )"),
    ],
)
def test_how_an_actor_died_is_told_in_our_words_and_rays(said: str, words: str) -> None:
    assert ray_cluster._how(Exception(said)) == words


@pytest.mark.behaviour(39)
def test_a_cluster_without_machines_ends_the_run_errors(
    plan: JobPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself keeps waiting, since an autoscaler might start another machine."""
    import ray

    actors = Actors(plan)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": False}, {"Alive": True}])
    actors._check_machines()
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": False}])
    actors._check_machines()  # it was looked a moment ago
    actors._looks_at = 0.0
    with pytest.raises(BackendError, match="the Ray cluster is lost"):
        actors._check_machines()


def test_machines_without_this_package_are_named_as_such_errors() -> None:
    lacking = Exception("…\nModuleNotFoundError: No module named 'cyclegan_batch'")
    error = ray_cluster._lacks_this_package(lacking)
    assert error is not None
    assert "lack cyclegan-batch" in str(error)
    assert ray_cluster._lacks_this_package(Exception("ModuleNotFoundError: numpy")) is None


# The actor, here in this process


def surroundings(**changes: Any) -> Surroundings:
    same = Surroundings("laptop", versions(), None, None, b"", None, None)
    return replace(same, **changes)


def test_a_machine_that_shares_everything_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "token").write_bytes(b"1")
    surroundings(folder=tmp_path, token=Path("token"), content=b"1", inputs=Path("token")).check()
    assert Path.cwd() == tmp_path
    surroundings().check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"folder": Path("/nowhere")},
            r"not see /nowhere of laptop; .*network folder, or URL",
        ),
        (
            {"token": Path("out/token"), "content": b"2"},
            "does not see what is written into out of laptop",
        ),
        ({"inputs": Path("missing.png")}, r"does not see missing\.png of laptop"),
        ({"engine": Path("a.engine")}, r"has no file a\.engine: an engine belongs to its GPU"),
        ({"versions": {}}, r"pixels depend: .* here none, .*more; install the same versions"),
    ],
)
def test_a_machine_that_differs_is_refused_with_its_name_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_bytes(b"1")
    with pytest.raises(BackendError, match=words) as caught:
        surroundings(**changes).check()
    assert socket.gethostname() in str(caught.value)


def test_one_other_version_is_named_errors() -> None:
    other = versions() | {"numpy": "1.0"}
    with pytest.raises(BackendError, match=r"depend: numpy \S+, here 1\.0; install"):
        surroundings(versions=other).check()


def test_an_actor_tells_all_that_a_worker_does(plan: JobPlan) -> None:
    worker = RayWorker()
    worker.begin(surroundings(), pickle.dumps(replace(plan, shards=())))
    messages: list[Any] = []
    while Next() not in messages:
        messages += worker.take(5)
    assert Ready() in messages
    worker.give(NoMore())
    while not isinstance(messages[-1], Done):
        messages += worker.take(5)


def test_an_actor_whose_machine_differs_tells_why_errors() -> None:
    worker = RayWorker()
    worker.begin(surroundings(engine=Path("/no.engine")), b"")
    ((message),) = worker.take(5)
    assert isinstance(message, Raised)
    worker.begin(surroundings(), b"no pickle")
    ((message),) = worker.take(5)
    assert isinstance(message, Crashed)


def test_progress_alone_waits_for_company() -> None:
    worker = RayWorker()
    progress = Progress(0, 0, "", {}, ())
    worker.send(progress)
    begin = time.monotonic()
    assert worker.take(0.2) == [progress]
    assert time.monotonic() - begin > 0.19
    worker.send(progress)
    worker.send(Next())
    worker.send(progress)
    assert worker.take(60) == [progress, Next(), progress]
