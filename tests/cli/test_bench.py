"""``bench`` on the command line: what it prints, its exit codes, and Ctrl-C."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cyclegan_batch.cli import main
from tests.conftest import ENVIRONMENT
from tests.stopwatch import Stopwatch
from tests.synthesis import generators

pytestmark = pytest.mark.needs("onnxruntime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.tiny_resnet(tmp_path_factory.mktemp("model") / "tiny.onnx")


def bench(model: Path, *words: str) -> Result:
    common = [
        "--seconds",
        "1",
        "--threads",
        "1",
        "--backend",
        "onnxruntime",
        "--cache-dir",
        str(model.parent / "c"),
    ]
    return CliRunner().invoke(main, ["bench", "-m", str(model), *common, *words])


@pytest.mark.behaviour(52)
def test_it_prints_each_part_in_order_and_the_command_last(model):
    done = bench(model)
    assert done.exit_code == 0, done.output
    places = [
        done.stdout.index(word)
        for word in ("Model", "CPU", "Input", "Each stage alone", "Limit", "Pipeline",
                     "The network alone", "Measured in")
    ]  # fmt: skip
    assert places == sorted(places)
    lines = done.stdout.splitlines()
    assert max(map(len, lines[:-1])) < 80
    assert shlex.split(lines[-1])[:6] == [
        "cyclegan-batch", "translate", "INPUT", "OUTPUT", "-m", str(model)
    ]  # fmt: skip
    assert "\x1b" not in done.stdout


def test_with_json_it_prints_one_object_and_with_quiet_the_command(model):
    done = bench(model, "--json", "--progress", "none")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["limit"]["rate"] > 0
    assert found["pipeline"]["frames"] > 0
    assert found["network"]
    done = bench(model, "-q")
    assert shlex.split(done.stdout)[:2] == ["cyclegan-batch", "translate"]
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("utf-8", "🐴.mp4".encode()), ("ascii", rb"\U0001f434.mp4")],
)
def test_a_command_is_printed_in_any_encoding(encoding, expected):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from cyclegan_batch.cli.process import *; "
         r"claim_standard_streams(); print_result('\U0001f434.mp4')"],
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == expected


def test_an_error_is_one_message(model, tmp_path):
    done = bench(model, str(tmp_path / "missing.mp4"))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.output
    for seconds in ("0", "nan", "inf"):
        done = bench(model, "--seconds", seconds)
        assert (done.exit_code, done.stdout) == (2, "")
    done = bench(tmp_path / "missing.onnx", "--progress", "json")
    assert done.exit_code == 1
    assert json.loads(done.stderr.splitlines()[-1])["event"] == "error"


@pytest.mark.behaviour(24)
def test_ctrl_c_ends_it_within_five_seconds_and_leaves_nothing(model, tmp_path, start):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = start(
        [sys.executable, "-m", "cyclegan_batch", "bench", "-m", str(model), "--progress", "json",
         "--seconds", "30", "--backend", "onnxruntime", "--cache-dir", str(tmp_path / "c")],
        env=ENVIRONMENT | {"TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    for line in process.stderr:
        if b"each stage alone" in line:
            break
    with Stopwatch() as watch:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert watch.seconds < 5
    # onnxruntime leaves a file of its own there.
    assert not list(temporary.glob("cyclegan-batch*"))
