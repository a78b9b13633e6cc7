"""What of a job is up to date, outdated, begun or somebody else's, and what follows from it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import prepare_translation, run_plan
from cyclegan_batch.errors import BackendError, InputError, OutputError, OutputInUseError
from cyclegan_batch.job.backend_choice import BackendRequest
from cyclegan_batch.job.job_folder import FOLDER
from cyclegan_batch.job.journal import Journal
from cyclegan_batch.job.pipeline import run
from cyclegan_batch.job.plan import JobPlan
from cyclegan_batch.job.plan_text import plan_lines
from tests.synthesis import generators, streams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with three images and a video."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / name)
    streams.plain(folder / "clip.mp4", frames=5, size=(48, 64))
    return folder


def picture(path: Path, level: int = 90) -> None:
    Image.fromarray(np.full((24, 32, 3), level, np.uint8)).save(path)


def planned(*arguments: Any, **options: Any) -> JobPlan:
    plan, backend = prepare_translation(*arguments, **options)
    if backend is not None:
        backend.close()
    return plan


def done(plan: JobPlan, units: int | None = None, *, close: bool = True) -> None:
    """Do the units of a plan, or the first of them, with a journal."""
    journal = Journal(plan)

    def began() -> Iterator[Any]:
        for unit in plan.units[:units]:
            journal.began(unit)
            yield unit

    with contextlib.closing(plan.open_backend()) as backend:
        run(
            began(),
            backend,
            plan.schedule,
            geometry=plan.geometry,
            skip_errors=True,
            observer=journal,
        )
    if close:
        journal.close()


def names(paths: Any) -> list[str]:
    return sorted(getattr(path, "output", path).name for path in paths)


@pytest.mark.behaviour(20)
def test_a_finished_job_has_nothing_left(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    plan, backend = prepare_translation(source, out, model=model)
    assert backend is None
    assert (plan.units, plan.entries, plan.frames) == ((), (), 0)
    assert names(plan.finished) == ["a.png", "b.png", "c.png", "clip.mp4"]
    assert plan_lines(plan)[-1] == "would write 0 files, 0 frames; 4 are up to date"
    # Neither -y nor -n is needed, and neither changes anything.
    for options in ({"overwrite": True}, {"skip_existing": True}):
        assert names(planned(source, out, model=model, **options).finished) == names(plan.finished)


@pytest.mark.behaviour(20)
def test_a_single_file_has_a_record_of_its_own(model: Path, source: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        done(planned(source / name, tmp_path / name, model=model))
    assert len(list((tmp_path / FOLDER).glob("*.jsonl"))) == 2
    plan = planned(source / "a.png", tmp_path / "a.png", model=model)
    assert names(plan.finished) == ["a.png"]


@pytest.mark.behaviour(19)
def test_what_is_missing_is_done_again(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    (out / "b.png").unlink()
    plan = planned(source, out, model=model)
    assert (names(plan.entries), len(plan.finished)) == (["b.png"], 3)
    done(plan)
    assert len(planned(source, out, model=model).finished) == 4


@pytest.mark.behaviour(23)
@pytest.mark.parametrize("name", ["b.png", "clip.mp4"])
def test_what_somebody_else_wrote_meanwhile_is_replaced_by_no_later_run(
    name: str, model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Journal.began

    def began(self: Journal, unit: Any) -> None:
        real(self, unit)
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_bytes(b"mine")

    monkeypatch.setattr(Journal, "began", began)
    assert run_plan(planned(source, tmp_path / "out", model=model)).exit_code == 3
    monkeypatch.undo()
    with pytest.raises(OutputError, match=f"{name}: exists already; -y overwrites"):
        planned(source, tmp_path / "out", model=model)
    assert (tmp_path / "out" / name).read_bytes() == b"mine"


@pytest.mark.behaviour(19, 37)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_with_gpus_takes_no_device_from_an_earlier_one(
    device: str, model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it took contradicted --gpus, which was a traceback."""
    plan = planned(source, tmp_path / "out", model=model)
    jobs = [replace(job, values={**job.values, "device": device}) for job in plan.jobs]
    done(replace(plan, jobs=tuple(jobs)), units=0)
    asked = []

    def opened(request: BackendRequest, *_: object) -> NoReturn:
        asked.append(request.device)
        raise BackendError("no GPU")

    monkeypatch.setattr(BackendRequest, "open", opened)
    with pytest.raises(BackendError, match="no GPU"):
        planned(source, tmp_path / "out", model=model, gpus="1,0")
    assert asked == ["cuda:1"]


@pytest.mark.behaviour(19, 23)
def test_what_was_begun_and_not_finished_is_done_again_without_y(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = planned(source, out, model=model)
    done(plan)
    # Killed between the name of an output and its line in the journal.
    assert plan.folder is not None
    path = plan.folder / "journal.jsonl"
    jobs = {job.kind: job.id for job in plan.jobs}
    begun = {"line": "begun", "job": jobs["image"], "outputs": ["b.png"]}
    film = {"line": "begun", "job": jobs["video"], "outputs": ["clip.mp4"]}
    with path.open("a") as file:
        file.write(json.dumps(begun) + "\n" + json.dumps(film) + "\n")
    before = (out / "a.png").stat().st_mtime_ns
    plan = planned(source, out, model=model)
    assert names(plan.entries) == ["b.png", "clip.mp4"]
    done(plan)
    assert len(planned(source, out, model=model).finished) == 4
    assert (out / "a.png").stat().st_mtime_ns == before


@pytest.mark.behaviour(21)
def test_a_changed_input_makes_its_own_output_outdated_and_no_other(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    picture(source / "b.png", 20)
    os.utime(source / "b.png", ns=(1, 1))
    with pytest.raises(
        OutputError, match=r"b\.png: was made from another state of .*in/b\.png; -y makes it again"
    ):
        planned(source, out, model=model)
    plan = planned(source, out, model=model, overwrite=True)
    assert (names(plan.entries), len(plan.finished)) == (["b.png"], 3)
    assert any("b.png: outdated, made from another state" in line for line in plan_lines(plan))
    left = planned(source, out, model=model, skip_existing=True)
    assert (left.units, left.skipped, len(left.finished)) == ((), 1, 3)
    done(plan)
    assert len(planned(source, out, model=model).finished) == 4


@pytest.mark.behaviour(21)
def test_hash_inputs_compares_the_content(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model, hash_inputs=True))
    for path in source.iterdir():
        os.utime(path, ns=(5, 5))
    assert len(planned(source, out, model=model, hash_inputs=True).finished) == 4
    with pytest.raises(OutputError, match=r"and 3 more: were made from another state"):
        planned(source, out, model=model)
    # The same size and time, and another content.
    data = bytearray((source / "a.png").read_bytes())
    data[-1] ^= 1
    (source / "a.png").write_bytes(data)
    plan = planned(source, out, model=model, hash_inputs=True, overwrite=True)
    assert names(plan.entries) == ["a.png"]


@pytest.mark.behaviour(21)
@pytest.mark.parametrize(
    ("before", "now", "outdated", "difference"),
    [
        ({}, {"crf": 30.0}, ["clip.mp4"], "clip.mp4: was made without --crf 30; -y"),
        ({"crf": 30.0}, {}, ["clip.mp4"], "was made with --crf 30 (now without it)"),
        ({}, {"png_level": 9}, ["a.png", "b.png", "c.png"], "and 2 more: were made without --png"),
        (
            {"size": (16, 24)},
            {"size": 32, "keep_size": True},
            ["a.png", "b.png", "c.png", "clip.mp4"],
            "with --size 24x16 (now 32), without --keep-size True",
        ),
        (
            {"batch_size": 2},
            {"batch_size": 3},
            ["a.png", "b.png", "c.png", "clip.mp4"],
            "with --batch-size 2 (now 3)",
        ),
        ({"batch_size": 2}, {}, [], ""),
        ({}, {"on_error": "fail", "threads": 1, "max_pixels": 10**6}, [], ""),
    ],
)
def test_another_job_is_told_by_what_differs_and_y_redoes_what_it_touches(
    before: dict[str, Any],
    now: dict[str, Any],
    outdated: list[str],
    difference: str,
    model: Path,
    source: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model, **before))
    if difference:
        with pytest.raises(OutputError) as caught:
            planned(source, out, model=model, **now)
        assert difference in str(caught.value)
    plan = planned(source, out, model=model, **now, overwrite=True)
    assert names(plan.entries) == outdated
    assert len(plan.finished) == 4 - len(outdated)


@pytest.mark.behaviour(21)
def test_another_model_is_named_by_both_digests(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = planned(source, out, model=model)
    done(first)
    other = generators.invert(tmp_path / "invert.onnx")
    digest = first.model.card.digest[:12]
    with pytest.raises(OutputError, match=rf"by the model {digest} \(this is [0-9a-f]{{12}}, by S"):
        planned(source, out, model=other)
    assert len(planned(source, out, model=other, overwrite=True).outdated) == 4


@pytest.mark.behaviour(23)
def test_what_somebody_else_wrote_is_not_touched(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    (out / "a.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"a\.png: exists already; -y overwrites, -n does"):
        planned(source, out, model=model)
    assert planned(source, out, model=model, skip_existing=True).skipped == 1
    assert names(planned(source, out, model=model, overwrite=True).entries) == ["a.png"]


@pytest.mark.behaviour(23)
def test_without_resume_what_exists_is_an_error_as_without_a_record(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    with pytest.raises(OutputError, match=r"and 3 more: exist already"):
        planned(source, out, model=model, resume=False)
    plan = planned(source, out, model=model, resume=False, overwrite=True)
    assert len(plan.entries) == 4


@pytest.mark.behaviour(20)
def test_a_preview_takes_no_notice_of_the_record(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(planned(source, out, model=model))
    plan = planned(source, out, model=model, preview=1)
    assert (len(plan.entries), plan.folder) == (4, None)


@pytest.mark.behaviour(22)
def test_a_damaged_video_reports_its_failures_again_without_work(
    model: Path, tmp_path: Path
) -> None:
    clip = streams.plain(tmp_path / "clip.ts", frames=60, size=(48, 64))
    data = bytearray(clip.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    clip.write_bytes(data)
    first = planned(clip, tmp_path / "out.mkv", model=model)
    done(first)
    plan, backend = prepare_translation(clip, tmp_path / "out.mkv", model=model)
    assert backend is None
    assert names(plan.finished) == ["out.mkv"]
    assert plan.damage
    assert all("clip.ts" in failure.cause for failure in plan.damage)
    with pytest.raises(InputError, match=r"clip\.ts"):
        planned(clip, tmp_path / "out.mkv", model=model, on_error="fail")


@pytest.mark.behaviour(19)
def test_a_failed_image_is_tried_again(model: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (source / "b.png").write_text("no picture")
    done(planned(source, out, model=model))
    assert names(planned(source, out, model=model).entries) == ["b.png"]


def test_two_runs_form_the_same_shards_whatever_each_has_left(
    model: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(source, tmp_path / "out", model=model)
    done(first)
    (tmp_path / "out" / "b.png").unlink()
    monkeypatch.chdir(tmp_path)
    second = planned("in", "out", model=model)
    assert [len(shard.entries) for shard in (*first.shards, *second.shards)] == [3, 1]
    assert first.shards[0].key == second.shards[0].key
    assert first.shards[0].key != planned("in/a.png", "out/d.png", model=model).shards[0].key


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("options", [{}, {"skip_existing": True}])
def test_a_second_run_is_refused_unless_both_share(
    options: dict[str, Any], model: Path, source: Path, tmp_path: Path
) -> None:
    plan = planned(source, tmp_path / "out", model=model, **options)
    journal = Journal(plan)
    with pytest.raises(OutputInUseError, match=rf"process {os.getpid()} on .* is at work there"):
        Journal(planned(source, tmp_path / "out", model=model))
    shared = planned(source, tmp_path / "out", model=model, skip_existing=True)
    if options:
        Journal(shared).close()
    else:
        with pytest.raises(OutputInUseError, match="wait until it has ended"):
            Journal(shared)
    journal.close()
    Journal(planned(source, tmp_path / "out", model=model)).close()


@pytest.mark.behaviour(25)
def test_a_job_folder_that_cannot_be_made_is_named(
    model: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / FOLDER).touch()
    with pytest.raises(OutputError, match=rf"cannot write .*{FOLDER}.*: its folder is a file"):
        Journal(planned(source, out, model=model))
    (out / FOLDER).unlink()
    (tmp_path / "elsewhere").mkdir()
    (out / FOLDER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"it is a link"):
        Journal(planned(source, out, model=model))
    assert not list((tmp_path / "elsewhere").iterdir())
