"""How far a job has come: while a run is at work, after a kill, and at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import run_plan
from cyclegan_batch.errors import InputError
from cyclegan_batch.job.job_folder import FOLDER, digest_of
from cyclegan_batch.job.journal import Journal
from cyclegan_batch.job.status import job_status
from tests.job.test_standing import done, planned
from tests.synthesis import generators


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with five images, which make three shards."""
    monkeypatch.setattr("cyclegan_batch.media.images.shards.SHARD", 2)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(5):
        Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(folder / f"{number}.png")
    return folder


def numbers(output: Path) -> tuple[int, int, int, int, bool | None]:
    status = job_status(output)
    assert status is not None
    return status.outputs, status.done, status.failed, status.left, status.at_work


def test_nothing_is_known_of_an_output_without_a_job(tmp_path: Path) -> None:
    assert job_status(tmp_path) is None
    assert job_status(tmp_path / "none.mp4") is None
    (tmp_path / FOLDER).touch()
    assert job_status(tmp_path) is None


@pytest.mark.behaviour(29)
def test_the_numbers_hold_at_work_after_a_kill_and_at_the_end(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = planned(source, out, model=model)
    journal = Journal(plan)
    assert numbers(out) == (5, 0, 0, 5, True)
    journal._release()  # as the system does it to a process that is killed
    assert numbers(out) == (5, 0, 0, 5, False)
    assert "was cut off" in "\n".join(found(out).lines())

    done(planned(source, out, model=model), units=1)
    assert numbers(out) == (5, 2, 0, 3, False)
    status = found(out)
    assert status.rate is not None
    assert status.seconds_left == pytest.approx(3 / status.rate)
    assert not status.is_whole

    done(planned(source, out, model=model))
    assert numbers(out) == (5, 5, 0, 0, False)
    status = found(out)
    assert status.is_whole
    assert status.seconds_left is None
    # Those that were resumed do not count into the rate.
    assert status.runs[-1].frames_done == 3
    (out / "3.png").unlink()
    assert numbers(out) == (5, 4, 0, 1, False)


def found(output: Path) -> Any:
    status = job_status(output)
    assert status is not None
    return status


@pytest.mark.behaviour(22)
def test_what_failed_is_told_with_its_reason_until_it_is_done(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    whole = (source / "3.png").read_bytes()
    (source / "3.png").write_text("no picture")
    done(planned(source, out, model=model))
    assert numbers(out) == (5, 4, 1, 0, False)
    ((name, reason),) = found(out).failures
    assert (name, "3.png" in reason) == ("3.png", True)
    (source / "3.png").write_bytes(whole)
    done(planned(source, out, model=model))
    assert numbers(out) == (5, 5, 0, 0, False)


@pytest.mark.behaviour(22)
def test_what_stopped_a_run_is_told(model: Path, source: Path, tmp_path: Path) -> None:
    """Of a run with --on-error fail it told that five files are left, and not why."""
    out = tmp_path / "out"
    whole = (source / "3.png").read_bytes()
    (source / "3.png").write_text("no picture")
    with pytest.raises(InputError):
        run_plan(planned(source, out, model=model, on_error="fail"))
    status = found(out)
    *_, last = status.lines()
    assert last.startswith("stopped  ")
    assert "3.png: not an image" in last
    (run,) = status.description()["runs"]
    assert "3.png: not an image" in run["stopped_by"]
    (source / "3.png").write_bytes(whole)
    run_plan(planned(source, out, model=model, on_error="fail"))
    assert found(out).is_whole
    assert not any(line.startswith("stopped") for line in found(out).lines())


def test_the_job_is_told_in_words(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"size": (16, 24), "keep_size": True, "crf": 20.0, "resume": False}
    done(planned(source, out, model=model, **options), units=1)
    lines = list(found(out).lines())
    assert lines[0] == f"{out}: 2 of 5 files done, 3 left"
    assert lines[1].startswith(f"model    {model} (sha256 ")
    assert lines[2] == "options  --size 24x16 --keep-size --crf 20 --no-resume"
    assert "ended early" in lines[3]
    described = json.loads(json.dumps(found(out).description()))
    assert (described["done"], described["left"], described["whole"]) == (2, 3, False)
    assert described["command"]["options"] == options | {"size": [16, 24]}


def test_the_parts_of_a_job_are_one(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model, shard="1/2"))
    status = found(out)
    assert (status.done, status.left, status.parts, status.is_whole) == (3, 0, (1, 2), False)
    assert "1 of 2 parts have begun" in next(status.lines())
    done(planned(source, out, model=model, shard="2/2"))
    status = found(out)
    assert (status.outputs, status.done, status.parts, status.is_whole) == (5, 5, (2, 2), True)


@pytest.mark.parametrize("part", ["6/6", "2/2"])
def test_a_part_that_finds_nothing_to_do_has_begun(
    part: str, model: Path, source: Path, tmp_path: Path
) -> None:
    """One to which no input falls, or all of whose outputs exist, was waited for for ever."""
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    for number in range(1, int(part[0]) + 1):
        report = run_plan(planned(source, out, model=model, shard=f"{number}/{part[0]}"))
        assert report.exit_code == 0
    assert len(list((out / FOLDER).glob(f"journal-*of{part[0]}.jsonl"))) == int(part[0])
    assert (found(out).done, found(out).is_whole) == (5, True)
    before = [path.read_bytes() for path in sorted((out / FOLDER).iterdir())]
    run_plan(planned(source, out, model=model, shard=part))
    assert [path.read_bytes() for path in sorted((out / FOLDER).iterdir())] == before


@pytest.mark.behaviour(22, 23)
def test_what_another_run_has_written_meanwhile_is_no_failure(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plans = [planned(source, out, model=model, skip_existing=True) for _ in range(2)]
    for plan in plans:
        done(plan)
    assert numbers(out) == (5, 5, 0, 0, False)
    assert found(out).is_whole
    assert list(found(out).lines())[-1].endswith(", ended")


def test_stretches_that_are_gone_are_not_listed(model: Path, source: Path, tmp_path: Path) -> None:
    """A whole video that was begun anew with --no-resume, and left at that."""
    out = tmp_path / "out"
    plan = planned(source, out, model=model)
    done(plan)
    line = {"line": "stretch", "job": plan.jobs[0].id, "output": "0.png", "number": 0, "of": 3}
    with (out / FOLDER / "journal.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    stretches = out / FOLDER / digest_of("0.png")
    stretches.mkdir()
    assert found(out).videos == (("0.png", 1, 3),)
    stretches.rmdir()
    assert found(out).videos == ()


def test_a_single_file_has_a_status_of_its_own(model: Path, source: Path, tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        done(planned(source / name, tmp_path / name, model=model))
    assert numbers(tmp_path / "0.png") == (1, 1, 0, 0, False)
    assert numbers(tmp_path) == (2, 2, 0, 0, False)


@pytest.mark.parametrize("name", ["../secret", "sub/../../secret", "a\0b", "\ud800"])
def test_a_name_that_leads_out_of_the_outputs_is_not_looked_up(
    name: str, model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = planned(source, out, model=model)
    done(plan)
    (tmp_path / "secret").write_text("12345")
    line = {"line": "whole", "job": plan.jobs[0].id, "run": "r"}
    row = [name, [1, 2, None], [1, 1], [1, 1], 5, "ab"]
    with (out / FOLDER / "journal.jsonl").open("a") as file:
        file.write(json.dumps(line | {"outputs": [row]}) + "\n")
    (out / "0.png").unlink()
    assert numbers(out) == (5, 4, 0, 1, False)
