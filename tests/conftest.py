"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import DATA, REPOSITORY, has, need, needs_of, refuse_absence

pytest_plugins = ["tests.stores"]

# Tests import OpenVINO by themselves, too; see `backends.openvino.import_openvino`.
_ABSENT: Any = None
sys.modules.setdefault("openvino_telemetry", _ABSENT)

INTERPRETED = not has("cuda")
"""Whether Triton interprets its kernels, as it is made to without a GPU. Triton reads the variable
when it is imported, and any test that calls `torch.compile` may be the first to import it."""
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"

SMALL = [
    "--netG=resnet_1blocks", "--ngf=4", "--ndf=4", "--netD=n_layers", "--n_layers_D=1",
    "--set", "load_size=36", "--crop-size=32", "--n-epochs=2", "--set", "n_epochs_decay=0",
    "--samples=2", "--no-tensorboard", "--threads=1", "--device=cpu", "--log-every=2",
]  # fmt: skip
"""A training of seconds, as words of the command line."""

PATHS = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "train")])
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS}
"""Of a process that is to find the packages of this checkout."""


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """Replace fsync, which only a power cut could tell: thousands of them cost seconds."""
    real, os.fsync = os.fsync, lambda descriptor: None
    yield
    os.fsync = real


@pytest.fixture(autouse=True)
def scheduling_stays() -> Iterator[None]:
    """Fail a test that leaves this thread real-time, as SVT-AV1 does: all later ones would be."""
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    after = os.sched_getscheduler(0)
    os.sched_setscheduler(0, *before)
    assert after == before[0]


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    """Set the handlers of signals again that a command which was stopped in this process left.

    The next SIGINT would end the process at once: a test that sends itself one, the whole run.
    """
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        if signal.getsignal(each) is not handler:
            signal.signal(each, handler)


def pytest_configure() -> None:
    """Refuse to run where REQUIRE lists what is absent."""
    refuse_absence()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine has not all needs of."""
    need(*needs_of(item))


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Return the folder of real models, clips and images."""
    need("corpus")
    return DATA


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """Return `subprocess.Popen`; however the test ends, its processes are killed and closed."""
    processes: list[subprocess.Popen[Any]] = []

    def started(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
        processes.append(subprocess.Popen(*arguments, **options))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()
        with process:  # closes its pipes, and waits
            pass
