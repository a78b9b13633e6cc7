"""The journal: what is done is written down at once, in lines that are read as data."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import prepare_translation, run_plan
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.job import job_folder
from cyclegan_batch.job.job_folder import FOLDER, digest_of, name_of
from cyclegan_batch.job.journal import Journal
from cyclegan_batch.job.pipeline import run
from cyclegan_batch.job.plan import JobPlan
from cyclegan_batch.job.plan_text import plan_lines
from cyclegan_batch.job.units import ImageUnit, JoinUnit, Outcome, StretchUnit, is_hopeless
from cyclegan_batch.media import Dropped, Place, Written, dropped_at
from tests.job.test_standing import done, planned
from tests.synthesis import generators, streams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images and a video."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((24, 32, 3), 90, np.uint8)).save(folder / name)
    streams.plain(folder / "clip.mp4", frames=5, size=(48, 64))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Noted:
    """Units that a journal is told of as they are handed out."""

    def __init__(self, plan: JobPlan, journal: Journal) -> None:
        self.plan, self.journal = plan, journal

    def __iter__(self) -> Iterator[Any]:
        for unit in self.plan.units:
            self.journal.began(unit)
            yield unit


def journalled(plan: JobPlan) -> list[dict[str, Any]]:
    """Run a plan with a journal and return the lines of the journal."""
    journal = Journal(plan)
    with contextlib.closing(plan.open_backend()) as backend:
        run(
            Noted(plan, journal),
            backend,
            plan.schedule,
            geometry=plan.geometry,
            skip_errors=True,
            observer=journal,
        )
    assert plan.folder is not None
    (path,) = plan.folder.glob("*.jsonl")
    written = lines(path)
    journal.close()
    return written


@pytest.mark.behaviour(20)
def test_each_output_is_written_down_before_it_begins_and_when_it_is_whole(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    plan = planned(folder, tmp_path / "out", model=model)
    written = journalled(plan)
    assert [line["line"] for line in written[:3]] == ["run", "job", "job"]
    begun = {name for line in written if line["line"] == "begun" for name in line["outputs"]}
    whole = {row[0]: row for line in written if line["line"] == "whole" for row in line["outputs"]}
    assert begun == set(whole) == {"a.png", "b.png", "clip.mp4"}
    for name, (_, identity, source_size, size, bytes_, _) in whole.items():
        status = (folder / name).stat()
        assert identity == [status.st_size, status.st_mtime_ns, None]
        assert source_size == size == ([48, 64] if name == "clip.mp4" else [24, 32])
        assert bytes_ == (tmp_path / "out" / name).stat().st_size


# Stretches


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A video that is cut into three stretches of ten frames."""
    monkeypatch.setattr("cyclegan_batch.media.video.plan._KEY_FRAMES", 10)
    monkeypatch.setattr("cyclegan_batch.media.video.plan._MOST_GROUPS", 1)
    return streams.plain(tmp_path / "film.mp4", frames=27, size=(48, 64))


def stretches_done(plan: JobPlan, numbers: Sequence[int], *, join: bool = False) -> None:
    """Do some stretches of the only video of a plan, and perhaps the join of all."""
    (video,) = plan.videos
    assert plan.folder is not None
    assert plan.root is not None
    folder = plan.folder / digest_of(name_of(video.output, plan.root))
    journal = Journal(plan)
    stretches = {each.number: each.stretch for each in plan.done.get(video.output, ())}

    class Kept:
        """Keeps the stretches for the join."""

        def published(self, unit: Any, items: Sequence[Any]) -> None:
            journal.published(unit, items)
            if isinstance(unit, StretchUnit):
                stretches[unit.number] = items[0]

        def ended(self, outcome: Outcome) -> None:
            journal.ended(outcome)

    def units() -> Iterator[Any]:
        for number in numbers:
            unit = StretchUnit(video, number, folder)
            journal.began(unit)
            yield unit
        while join and len(stretches) < video.stretches:
            yield None
        if join:
            whole = JoinUnit(video, tuple(each for _, each in sorted(stretches.items()) if each))
            journal.began(whole)
            yield whole

    with contextlib.closing(plan.open_backend()) as backend:
        run(
            units(),
            backend,
            plan.schedule,
            geometry=plan.geometry,
            skip_errors=True,
            observer=Kept(),
        )
    journal.close()


@pytest.mark.behaviour(19)
def test_stretches_that_are_done_are_known_to_the_next_run(
    model: Path, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    first = planned(film, out, model=model)
    assert first.videos[0].stretches == 3
    stretches_done(first, [0, 2])
    again = planned(film, out, model=model)
    known = again.done[out]
    assert [(each.number, each.frames) for each in known] == [(0, 10), (2, 7)]
    assert all(each.stretch is not None and each.stretch.path.is_file() for each in known)
    assert again.frames == 10
    assert "         2 of 3 stretches are done already" in plan_lines(again)

    stretches_done(again, [1], join=True)
    assert again.folder is not None
    assert not [path for path in again.folder.iterdir() if path.is_dir()]
    plan, backend = prepare_translation(film, out, model=model)
    assert (plan.finished, backend) == ((out,), None)

    whole = tmp_path / "whole.mp4"
    stretches_done(planned(film, whole, model=model), [0, 1, 2], join=True)
    assert whole.read_bytes() == out.read_bytes()


@pytest.mark.behaviour(19, 21)
@pytest.mark.parametrize(
    "change",
    ["options", "input", "file is gone", "file has another size", "stretch length", "no resume"],
)
def test_stretches_of_another_state_are_dropped(
    change: str, model: Path, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.mp4"
    stretches_done(planned(film, out, model=model), [0])
    (path,) = (tmp_path / FOLDER).glob("*/0.*")
    options: dict[str, Any] = {}
    if change == "options":
        options = {"crf": 30.0, "overwrite": True}
    elif change == "input":
        os.utime(film, ns=(1, 1))
    elif change == "file is gone":
        path.unlink()
    elif change == "file has another size":
        path.write_bytes(path.read_bytes() + b"x")
    elif change == "stretch length":
        monkeypatch.setattr("cyclegan_batch.media.video.plan._KEY_FRAMES", 9)
    else:
        options = {"resume": False}
    plan = planned(film, out, model=model, **options)
    assert plan.done == {}
    # When its work begins, what is of no use goes.
    journal = Journal(plan)
    journal.began(StretchUnit(plan.videos[0], 1, path.parent))
    journal.close()
    assert not path.exists()


@pytest.mark.behaviour(21, 23)
def test_stretches_of_another_job_are_not_thrown_away_unasked(
    model: Path, film: Path, tmp_path: Path
) -> None:
    """An option forgotten in the second command cost what was done of the film, without a word."""
    out = tmp_path / "out.mp4"
    stretches_done(planned(film, out, model=model, crf=30.0), [0, 1])
    with pytest.raises(
        OutputError, match=r"out\.mp4: 2 of 3 stretches were made with --crf 30 \(n"
    ):
        planned(film, out, model=model)
    assert [each.number for each in planned(film, out, model=model, crf=30.0).done[out]] == [0, 1]
    for options in ({"overwrite": True}, {"skip_existing": True}, {"resume": False}):
        assert planned(film, out, model=model, **options).done == {}
    # Another output of the same folder has nothing to do with it.
    assert planned(film, tmp_path / "other.mp4", model=model).done == {}
    # Without its files there is nothing that could be lost.
    shutil.rmtree(tmp_path / FOLDER / digest_of("out.mp4"))
    assert planned(film, out, model=model).done == {}


@pytest.mark.behaviour(19)
def test_stretches_of_a_video_that_is_whole_are_removed_by_the_next_run(
    model: Path, film: Path, tmp_path: Path
) -> None:
    """A process may be killed after the video has its name, and before they are removed."""
    out = tmp_path / "out.mp4"
    stretches_done(planned(film, out, model=model), [0, 1, 2], join=True)
    left = tmp_path / FOLDER / digest_of("out.mp4") / "0.mp4"
    left.parent.mkdir()
    left.touch()
    assert run_plan(planned(film, out, model=model)).exit_code == 0
    assert not left.parent.exists()


@pytest.mark.behaviour(19)
def test_stretches_that_do_not_fit_together_are_dropped(
    model: Path, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    stretches_done(planned(film, out, model=model), [0, 1])
    (path,) = (tmp_path / FOLDER).glob("*.jsonl")
    changed = []
    for line in lines(path):
        if line["line"] == "stretch" and line["number"] == 1:
            line["times"][0] = 0
        changed.append(json.dumps(line) + "\n")
    path.write_text("".join(changed))
    assert planned(film, out, model=model).done == {}


@pytest.mark.behaviour(19)
def test_a_journal_whose_times_are_false_costs_its_video_and_is_told(
    model: Path, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    stretches_done(planned(film, out, model=model), [0])
    (path,) = (tmp_path / FOLDER).glob("*.jsonl")
    changed = []
    for line in lines(path):
        if line["line"] == "stretch":
            line["times"][0] += 10**9
        changed.append(json.dumps(line) + "\n")
    path.write_text("".join(changed))
    plan = planned(film, out, model=model)
    assert len(plan.done[out]) == 1
    stretches_done(plan, [1, 2], join=True)
    (cause,) = (
        cause for line in lines(path) if line["line"] == "failed" for _, cause in line["failures"]
    )
    assert "the times of its stretches do not ascend" in cause
    assert "--no-resume" in cause
    assert not out.exists()


@pytest.mark.behaviour(19, 22)
def test_the_damage_of_all_stretches_is_remembered_with_the_whole(
    model: Path, film: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    plan = planned(film, out, model=model)
    (video,) = plan.videos
    journal = Journal(plan)
    assert plan.folder is not None
    folder = plan.folder / digest_of("out.mp4")
    for number, frames in ((1, (10, 11)), (0, (9,))):
        unit = StretchUnit(video, number, folder)
        places = [
            Place(subject="film.mp4", kind="frame", number=each, seconds=None, trouble="is broken")
            for each in frames
        ]
        journal.began(unit)
        journal.ended(Outcome(unit, None, tuple(map(dropped_at, places)), frames=8))
    join = JoinUnit(video, ())
    out.write_bytes(b"whole")
    written = Written(
        path=out,
        source=film,
        identity=video.identity,
        source_size=(48, 64),
        size=(48, 64),
        bytes=5,
        sha256="ab",
    )
    journal.published(join, [written])
    lost = Dropped("film.mp4, audio", InputError("film.mp4, audio: is lost"))
    journal.ended(Outcome(join, None, (lost,)))
    journal.close()
    plan = planned(film, out, model=model)
    assert plan.finished == (out,)
    assert [failure.cause for failure in plan.damage] == [
        "film.mp4, frames 9–11, 3 in all: is broken",
        "film.mp4, audio: is lost",
    ]


# Faults


@pytest.mark.behaviour(25)
@pytest.mark.parametrize("short", [0, 7])
def test_a_full_disk_is_told_once_and_leaves_what_can_be_resumed(
    short: int, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(folder, tmp_path / "out", model=model)
    journal = Journal(plan)
    unit = plan.units[-1]
    assert isinstance(unit, ImageUnit)
    journal.began(unit)
    write = os.write
    room = short

    def full(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room:
            written = write(descriptor, data[:room])
            room = 0
            return written
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    failure = Outcome(unit, InputError("cannot be read"))
    with pytest.raises(OutputError, match=r"cannot write .*journal\.jsonl: the disk is full") as at:
        journal.ended(failure)
    assert is_hopeless(at.value)
    journal.ended(failure)
    journal.close()
    monkeypatch.setattr(os, "write", write)
    again = planned(folder, tmp_path / "out", model=model)
    assert len(again.entries) == 3
    done(again)
    assert len(planned(folder, tmp_path / "out", model=model).finished) == 3


@pytest.mark.behaviour(20)
def test_a_journal_that_cannot_be_rewritten_stays_as_it_is(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that cannot rename over a file."""
    replaced = os.replace

    def refuse(source: Any, target: Any) -> None:
        if str(target).endswith(".jsonl"):
            raise OSError(errno.EEXIST, "File exists")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    written = journalled(planned(folder, tmp_path / "out", model=model))
    path = tmp_path / "out" / FOLDER / "journal.jsonl"
    assert lines(path)[: len(written)] == written
    assert sorted(each.name for each in path.parent.iterdir()) == ["journal.jsonl", "lock"]
    assert len(planned(folder, tmp_path / "out", model=model).finished) == 3


@pytest.mark.behaviour(19)
def test_without_locks_every_run_is_let_in(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(job_folder.fcntl, "flock", refuse)
    plan = planned(folder, tmp_path / "out", model=model)
    first, second = Journal(plan), Journal(plan)
    assert job_folder.is_open(tmp_path / "out" / FOLDER / "journal.jsonl") is None
    first.close()
    second.close()


@pytest.mark.behaviour(20)
def test_a_clock_that_is_set_back_changes_nothing(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 10.0)
    journalled(planned(folder, tmp_path / "out", model=model))
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, ns=(1, 1))
    assert len(planned(folder, tmp_path / "out", model=model).finished) == 3


@pytest.mark.behaviour(19)
def test_the_journal_of_a_whole_job_keeps_a_line_of_each_output_and_no_more(
    model: Path, folder: Path, tmp_path: Path
) -> None:
    plan = planned(folder, tmp_path / "out", model=model)
    path = tmp_path / "out" / FOLDER / "journal.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"line":"begun","job":"x","outputs":["gone.png"]}\n{"line":"wh')
    done(plan)
    kept = lines(path)
    assert [line["line"] for line in kept] == ["run", "job", "job", "whole", "whole", "end"]
    assert sorted(row[0] for line in kept[3:5] for row in line["outputs"]) == [
        "a.png",
        "b.png",
        "clip.mp4",
    ]


def test_lines_of_several_threads_do_not_mix(model: Path, folder: Path, tmp_path: Path) -> None:
    plan = planned(folder, tmp_path / "out", model=model)
    journal = Journal(plan)
    unit = plan.units[-1]
    problem = InputError("x" * 5000)

    def tell() -> None:
        for _ in range(50):
            journal.ended(Outcome(unit, problem))

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    written = lines(tmp_path / "out" / FOLDER / "journal.jsonl")
    assert sum(line["line"] == "failed" for line in written) == 200
