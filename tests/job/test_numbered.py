"""Videos that are split into numbered images, from the command's options to the journal."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation, translate
from cyclegan_batch.errors import OutputError
from cyclegan_batch.inspection import inspect_file
from cyclegan_batch.job import dispatch as dispatch_module
from cyclegan_batch.job.job_folder import FOLDER
from cyclegan_batch.job.status import job_status
from cyclegan_batch.job.units import StretchUnit
from cyclegan_batch.wording import grouped
from tests.faults.jobs import clip as moving
from tests.synthesis import generators, streams

FRAMES = 400
"""Two stretches at 10 frames a second."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("film") / "film.mp4"
    return moving(source, frames=FRAMES, size=(16, 24), sound=False)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return streams.plain(tmp_path / "short.mkv", codec="ffv1", frames=5, audio=None)


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_after(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    """Let the process die when so many stretches have ended."""
    ended, count = dispatch_module.Dispatcher.ended, itertools.count(1)

    def counted(self: dispatch_module.Dispatcher, outcome: Any) -> None:
        ended(self, outcome)
        if isinstance(outcome.unit, StretchUnit) and next(count) == units:
            raise Killed

    monkeypatch.setattr(dispatch_module.Dispatcher, "ended", counted)


@pytest.mark.behaviour(1, 19, 20)
def test_a_run_that_was_cut_off_goes_on_and_ends_as_one_that_was_not(
    model: Path, film: Path, tmp_path: Path
) -> None:
    whole, output = tmp_path / "whole" / "f_%03d.png", tmp_path / "out" / "f_%03d.png"
    assert translate(film, whole, model=model).frames == FRAMES
    with pytest.MonkeyPatch.context() as patched:
        killed_after(patched, 1)
        with pytest.raises(Killed):
            translate(film, output, model=model)
    some = images(output.parent)
    assert 250 <= len(some) < FRAMES
    (output.parent / "f_300.png").write_bytes(b"half")  # of the stretch that was not finished
    status = job_status(output)
    assert status is not None
    assert [videos[1:] for videos in status.videos] == [(1, 2)]

    report = translate(film, output, model=model)
    assert report.frames == FRAMES - 250
    assert images(output.parent) == images(whole.parent)
    assert list(images(whole.parent)) == [f"f_{number:03d}.png" for number in range(1, FRAMES + 1)]
    assert [each.name for each in (output.parent / FOLDER).iterdir() if each.is_dir()] == []

    again = translate(film, output, model=model)
    assert (again.frames, again.up_to_date) == (0, (output,))
    status = job_status(output)
    assert status is not None
    assert (status.done, status.outputs) == (1, 1)

    copy = tmp_path / "copy" / "g_%03d.png"
    assert translate(output, copy, model=model).frames == FRAMES
    assert list(images(copy.parent).values()) == list(images(whole.parent).values())


@pytest.mark.behaviour(19)
def test_a_stretch_of_which_an_image_was_removed_is_made_again(
    model: Path, film: Path, tmp_path: Path
) -> None:
    output = tmp_path / "f_%d.jpg"
    with pytest.MonkeyPatch.context() as patched:
        killed_after(patched, 1)
        with pytest.raises(Killed):
            translate(film, output, model=model)
    (tmp_path / "f_7.jpg").unlink()
    # What this job has begun is not what -n leaves.
    assert translate(film, output, model=model, skip_existing=True).frames == FRAMES
    assert (tmp_path / "f_7.jpg").exists()


@pytest.mark.behaviour(20, 21, 23)
def test_what_exists_is_refused_and_a_change_is_noticed(
    model: Path, short: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "f_%02d.png"
    output.parent.mkdir()
    (output.parent / "f_07.png").write_bytes(b"of somebody else")
    with pytest.raises(OutputError, match=r"f_%02d\.png: exists already; -y overwrites"):
        translate(short, output, model=model)
    assert list(images(output.parent)) == ["f_07.png"]
    left = translate(short, output, model=model, skip_existing=True)
    assert (left.frames, left.skipped) == (0, 1)

    report = translate(short, output, model=model, overwrite=True)
    assert report.frames == 5
    (note,) = [each for each in grouped(report.notes) if "of the same pattern" in each]
    assert "that this job did not write, and stay (f_07.png); remove them" in note
    assert images(output.parent)["f_07.png"] == b"of somebody else"

    assert translate(short, output, model=model).up_to_date == (output,)
    with pytest.raises(OutputError, match=r"was made without --png-level 9; -y makes it again"):
        translate(short, output, model=model, png_level=9)
    assert translate(short, output, model=model, png_level=9, overwrite=True).frames == 5
    (output.parent / "f_03.png").write_bytes(b"changed")
    with pytest.raises(OutputError, match="exists already"):
        translate(short, output, model=model, png_level=9)


@pytest.mark.behaviour(21)
def test_fewer_frames_than_before_leave_the_others_and_say_so(
    model: Path, short: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "f_%d.bmp"
    translate(short, output, model=model)
    report = translate(short, output, model=model, frames=3, overwrite=True)
    (note,) = [each for each in grouped(report.notes) if "of the same pattern" in each]
    assert "(f_4.bmp … f_5.bmp, 2 in all)" in note
    assert translate(short, output, model=model, frames=3).up_to_date == (output,)


@pytest.mark.behaviour(9, 10)
def test_images_of_a_pattern_keep_their_numbers(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(98, 103):
        picture = streams.picture(number)
        Image.fromarray(picture).save(tmp_path / "in" / f"a_{number:02d}.png")
    source, output = tmp_path / "in" / "a_%02d.png", tmp_path / "new" / "deeper" / "b_%02d.png"
    translate(source, output, model=model)
    assert list(images(output.parent)) == [f"b_{number}.png" for number in (100, 101, 102, 98, 99)]
    for number in range(98, 103):
        found = np.asarray(Image.open(output.parent / f"b_{number}.png"))
        assert np.array_equal(found, streams.picture(number))

    part = tmp_path / "part" / "b_%d.png"
    translate(source, part, model=model, fps="10", ss=0.2, frames=2)
    assert list(images(part.parent)) == ["b_100.png", "b_101.png"]
    with pytest.raises(OutputError, match=r"a_98\.png: is one of the inputs"):
        translate(source, tmp_path / "in" / "a_%d.png", model=model)


def test_inspect_tells_the_numbers(model: Path, short: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "f_%02d.png"
    translate(short, output, model=model)
    (output.parent / "f_02.png").unlink()
    description = inspect_file(output)
    assert (description["images"], description["numbers"]) == (4, "1, 3–5")
    assert description["missing"] == 1


@pytest.mark.behaviour(25)
def test_a_disk_that_may_be_too_small_is_noted(
    model: Path, short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def notes(free: int) -> list[str]:
        class Usage:
            total = 10**12

        Usage.free = free  # type: ignore[attr-defined]
        monkeypatch.setattr("cyclegan_batch.job.space.shutil.disk_usage", lambda folder: Usage)
        planned = plan_translation(short, tmp_path / "out" / "f_%02d.bmp", model=model)
        return [each for each in grouped(planned.notes) if "free, and by its inputs" in each]

    frame = 3 * 48 * 64
    assert len(notes(5 * frame - 100)) == 1
    assert notes(5 * frame + 100) == []


@pytest.mark.behaviour(22)
def test_a_lost_frame_leaves_its_number_out(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(1, 6):
        Image.fromarray(streams.picture(number)).save(source / f"a_{number}.png")
    content = (source / "a_3.png").read_bytes()
    (source / "a_3.png").write_bytes(content[: len(content) // 2])
    output = tmp_path / "out" / "b_%d.png"
    report = translate(source / "a_%d.png", output, model=model)
    assert [each.count for each in report.failures] == [1]
    assert list(images(output.parent)) == ["b_1.png", "b_2.png", "b_4.png", "b_5.png"]
    again = translate(source / "a_%d.png", output, model=model)
    assert (again.frames, len(again.failures)) == (0, 1)


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("frames", [5, FRAMES])
def test_an_image_that_gets_no_name_is_made_by_the_next_run(
    model: Path, film: Path, short: Path, tmp_path: Path, frames: int
) -> None:
    source, output = (short if frames == 5 else film), tmp_path / "out" / "n_%d.png"
    (tmp_path / "out" / "n_3.png").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"n_3\.png: a folder has this name"):
        translate(source, output, model=model, overwrite=True)
    (tmp_path / "out" / "n_3.png").rmdir()
    assert translate(source, output, model=model, overwrite=True).exit_code == 0
    assert len(images(tmp_path / "out")) == frames
