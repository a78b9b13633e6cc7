"""``cyclegan-batch status``: how far a job has come, in words and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_bulk import data
from tests.cli.test_cli import cyclegan_batch
from tests.job.test_standing import done, planned
from tests.synthesis import generators

__all__ = ["data"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.mark.behaviour(29)
def test_the_exit_code_tells_whole_partial_and_unknown(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = cyclegan_batch("status", out)
    assert (run.returncode, run.stdout) == (1, "")
    assert f"{out}: nothing is known of a job that writes it" in run.stderr
    training = tmp_path / "training"
    training.mkdir()
    for name in ("run.json", "config.toml"):
        (training / name).touch()
    run = cyclegan_batch("status", training)
    assert (run.returncode, run.stdout) == (1, "")
    assert f"{training}: is the run of a training; {training}/index.html" in run.stderr
    assert cyclegan_batch("status", out, "--json").stdout == "null\n"

    done(planned(data, out, model=model))
    run = cyclegan_batch("status", out)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"{out}: 6 of 6 files done\nmodel    {model} (sha256 ")

    (out / "b" / "0.png").unlink()
    run = cyclegan_batch("status", out, "--json")
    assert run.returncode == 3
    described = json.loads(run.stdout)
    assert (described["done"], described["left"], described["at_work"]) == (5, 1, False)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert cyclegan_batch("status", out).returncode == 3
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
