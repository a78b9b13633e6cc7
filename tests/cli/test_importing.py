"""What makes the imports of a command cheap leaves no trace on the process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

import pytest

from cyclegan_batch.cli.process import importing
from tests.needs import REPOSITORY


@pytest.mark.parametrize("value", [None, "3"])
def test_the_environment_and_the_collector_are_as_before(monkeypatch, value):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", value)
    thresholds = gc.get_threshold()
    with importing():
        assert gc.get_threshold() != thresholds
        assert os.environ.get("OPENBLAS_NUM_THREADS") == value
    assert gc.get_threshold() == thresholds
    assert gc.isenabled()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the threads of a process")
def test_numpy_starts_no_threads():
    code = (
        "import json, os\n"
        "from cyclegan_batch.cli.process import importing\n"
        "with importing(): pass\n"
        "print(json.dumps(len(os.listdir('/proc/self/task'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == 1
