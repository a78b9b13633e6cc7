"""The same command again: what is done stays, what is left or outdated is done, on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.test_bulk import data
from tests.cli.test_cli import assert_one_clear_line, cyclegan_batch, left_in, write_clip
from tests.synthesis import generators

__all__ = ["data"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


def last_line(run: object) -> str:
    return str(getattr(run, "stderr", "")).splitlines()[-1]


def times_of(folder: Path) -> dict[str, int]:
    """Return when each output was written."""
    return {name: (folder / name).stat().st_mtime_ns for name in left_in(folder)}


@pytest.mark.behaviour(19, 20, 21, 23)
def test_the_same_command_does_what_is_left_and_nothing_else(
    model: Path, data: Path, tmp_path: Path
) -> None:
    write_clip(data / "clip.mp4", frames=5)
    (data / "label.txt").write_text("horse")
    whole = (data / "b" / "0.png").read_bytes()
    (data / "b" / "0.png").write_text("no picture")
    out, manifest = tmp_path / "out", tmp_path / "manifest.jsonl"
    command = ["translate", data, out, "-m", model, "--copy-others", "--manifest", manifest]
    run = cyclegan_batch(*command)
    assert run.returncode == 3, run.stderr
    assert last_line(run).endswith("the same command does what is left")
    (data / "b" / "0.png").write_bytes(whole)
    run = cyclegan_batch(*command)
    assert run.returncode == 0, run.stderr
    assert "; 7 were up to date; " in last_line(run)
    times = times_of(out)

    for more in ([], ["-y"], ["-n"]):
        run = cyclegan_batch(*command, *more)
        assert (run.returncode, last_line(run)) == (
            0,
            "Done: nothing to do, 8 files are up to date",
        )
    statuses = [json.loads(line)["status"] for line in manifest.read_text().splitlines()]
    assert statuses == ["up to date"] * 8
    assert times_of(out) == times

    run = cyclegan_batch(*command, "--crf", "30")
    assert_one_clear_line(run, "clip.mp4: was made without --crf 30; -y makes it again")
    run = cyclegan_batch(*command, "--crf", "30", "-y", "--dry-run")
    assert f"{out / 'clip.mp4'}: outdated, made without --crf 30" in run.stdout
    assert cyclegan_batch(*command, "--crf", "30", "-y").returncode == 0
    now = times_of(out)
    assert {name for name in times if now[name] != times[name]} == {"clip.mp4"}


@pytest.mark.behaviour(23)
def test_outputs_without_a_journal_are_treated_as_before(
    model: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["translate", data, out, "-m", model]
    assert cyclegan_batch(*command).returncode == 0
    shutil.rmtree(out / ".cyclegan-batch")
    assert_one_clear_line(cyclegan_batch(*command), "and 5 more: exist already; -y overwrites")
    run = cyclegan_batch(*command, "-n")
    assert (run.returncode, "6 existed already" in last_line(run)) == (0, True)


@pytest.mark.behaviour(25)
def test_a_job_folder_that_cannot_be_made_is_one_clear_line(
    model: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".cyclegan-batch").touch()
    run = cyclegan_batch("translate", data, tmp_path / "out", "-m", model)
    assert_one_clear_line(run, "cannot write", ".cyclegan-batch", "its folder is a file")
