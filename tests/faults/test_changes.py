"""What changes during a run or between two: inputs, the clock, the journal, the model, options."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.faults import jobs
from tests.faults.jobs import Start, assert_same, ended, launch, left_over, translate, tree, whole
from tests.synthesis import generators

pytestmark = pytest.mark.needs("linux")

PICTURES = 300
FRAMES = 580
"""Of a video of three stretches."""
YEAR = 365 * 86400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A video of three stretches, and its translation."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = jobs.clip(folder / "clip.mp4", frames=FRAMES)
    whole(source, folder / "out" / "out.mp4", "-m", model)
    return source, folder / "out" / "out.mp4"


def held_before(start: Start, gate: Path, path: str, *words: str | Path) -> object:
    """Start a command that waits before it opens its first file whose path contains ``path``."""
    faults = [{"call": "open", "path": path, "hold": gate}]
    process = launch(start, *words, faults=faults)
    jobs.wait_for(lambda: Path(f"{gate}.held").exists() or process.poll() is not None)
    return process


# During a run


@pytest.mark.behaviour(14, 22)
def test_images_that_vanish_or_change_during_a_run_cost_themselves_at_most(
    model: Path, tmp_path: Path, start: Start
) -> None:
    source, out, gate = jobs.pictures(tmp_path / "in", PICTURES), tmp_path / "out", tmp_path / "go"
    process = held_before(start, gate, "/out/a/", source, out, "-m", model)
    (source / "b" / "00290.png").unlink()
    shutil.copyfile(source / "b" / "00295.png", source / "b" / "00280.png")
    Image.new("RGB", (50, 20)).save(source / "b" / "00281.png")
    gate.touch()
    run = ended(process, 0.0)
    assert run.code == 3, run.stderr
    (failure,) = run.report["failures"]
    assert "00290.png: cannot be read: No such file" in failure["cause"]
    assert left_over(out) == []

    # What changed was read as it is now, so there is nothing to do for it.
    again = whole(source, out, "-m", model)
    assert again.frames == 0
    whole(source, tmp_path / "expected", "-m", model)
    assert_same(out, tmp_path / "expected")


@pytest.mark.behaviour(1, 22)
def test_a_video_that_changes_during_a_run_is_named_and_translated_again_on_request(
    model: Path, undisturbed: tuple[Path, Path], tmp_path: Path, start: Start
) -> None:
    source, out, gate = tmp_path / "clip.mp4", tmp_path / "out.mp4", tmp_path / "go"
    shutil.copyfile(undisturbed[0], source)
    process = held_before(
        start, gate, r"/out|\.cyclegan-batch/[0-9a-f]{16}/", source, out, "-m", model
    )
    with source.open("ab") as file:
        file.write(b"\0\0\0\x08free")
    gate.touch()
    run = ended(process, 0.0)
    assert run.code == 3, run.stderr
    assert "clip.mp4" in run.stderr
    assert "changed" in run.stderr
    refused = translate(source, out, "-m", model)
    assert "clip.mp4" in refused.error
    whole(source, out, "-m", model, "-y")
    assert_same(out, undisturbed[1])
    assert whole(source, out, "-m", model).frames == 0


@pytest.mark.behaviour(19, 22)
def test_a_video_that_vanishes_during_a_run_fails_and_goes_on_when_it_is_back(
    model: Path, undisturbed: tuple[Path, Path], tmp_path: Path, start: Start
) -> None:
    source, out, gate = tmp_path / "clip.mp4", tmp_path / "out.mp4", tmp_path / "go"
    shutil.copyfile(undisturbed[0], source)
    process = held_before(
        start, gate, r"/out|\.cyclegan-batch/[0-9a-f]{16}/", source, out, "-m", model
    )
    source.rename(tmp_path / "elsewhere")
    gate.touch()
    run = ended(process, 0.0)
    assert run.code in (1, 3), run.stderr
    assert "clip.mp4" in run.stderr
    assert "Traceback" not in run.stderr
    (tmp_path / "elsewhere").rename(source)
    if run.code == 1:
        assert not out.exists()
        whole(source, out, "-m", model)
    assert_same(out, undisturbed[1])


# The clock


@pytest.mark.behaviour(19, 20)
def test_a_clock_that_is_set_back_changes_nothing(model: Path, tmp_path: Path) -> None:
    source, out = jobs.pictures(tmp_path / "in", PICTURES), tmp_path / "out"
    jobs.clip(source / "clip.mp4", frames=400)
    for number, path in enumerate(sorted(source.rglob("*.*"))):
        # In the future, in the past, before 1970.
        when = (time.time() + YEAR, YEAR, -YEAR)[number % 3]
        os.utime(path, (when, when))
    killed = {"call": "write", "path": r"\.jsonl$", "after": 5, "kill": True}
    assert translate(source, out, "-m", model, faults=[killed], clock=[YEAR, -YEAR]).code == -9
    run = whole(source, out, "-m", model, clock=[0.0, -YEAR])
    assert 0 < run.frames < PICTURES + 400
    assert run.report["seconds"] > 0
    assert run.report["rate"] > 0
    assert left_over(out) == []
    assert whole(source, out, "-m", model, clock=[-2 * YEAR]).frames == 0
    whole(source, tmp_path / "expected", "-m", model)
    assert_same(out, tmp_path / "expected")


# The journal


@pytest.fixture(scope="module")
def cut_off(
    model: Path, undisturbed: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """A video, its output's folder as a killed run left it, and the output undisturbed."""
    folder = tmp_path_factory.mktemp("cut off")
    source, expected = undisturbed
    (folder / "out").mkdir()
    killed = [
        {"call": call, "path": r"/\.cyclegan-batch/[0-9a-f]{16}/2\.", "kill": True}
        for call in ("link", "rename")
    ]
    run = translate(source, folder / "out" / "out.mp4", "-m", model, faults=killed)
    assert run.code == -9, run.stderr
    return source, folder / "out", expected


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def garbage(path: Path) -> None:
    data = path.read_bytes()
    middle = len(data) * 2 // 3
    noise = b'\0\xff{"line": 3}\n[]\n"whole"\n{"line":"stretch","video":["x"]}\n\n{}\nnull\n'
    path.write_bytes(data[:middle] + noise + data[middle + 30 :])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def all_garbage(path: Path) -> None:
    path.write_bytes(os.urandom(100_000))


def nested(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"[" * 200_000 + b"\n")


DAMAGES: dict[Callable[[Path], None], int] = {
    cut: 1,
    garbage: FRAMES,
    empty: FRAMES,
    all_garbage: FRAMES,
    nested: 0,
}
"""Each way to damage a journal, and how many stretches it may cost."""


@pytest.mark.behaviour(19)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_costs_what_is_damaged_at_most(
    damage: Callable[[Path], None],
    cut_off: tuple[Path, Path, Path],
    model: Path,
    tmp_path: Path,
) -> None:
    source, left, expected = cut_off
    shutil.copytree(left, tmp_path / "out")
    out = tmp_path / "out" / "out.mp4"
    (journal,) = jobs.job_folder(out).glob("*.jsonl")
    damage(journal)
    run = whole(source, out, "-m", model)
    assert run.frames <= min(FRAMES, FRAMES - 2 * jobs.STRETCH + jobs.STRETCH * DAMAGES[damage])
    assert_same(out, expected)
    assert left_over(tmp_path / "out") == []
    assert whole(source, out, "-m", model).frames == 0


def test_a_journal_that_is_a_folder_is_an_error_that_names_it(
    cut_off: tuple[Path, Path, Path], model: Path, tmp_path: Path
) -> None:
    source, left, _ = cut_off
    shutil.copytree(left, tmp_path / "out")
    (journal,) = jobs.job_folder(tmp_path / "out" / "out.mp4").glob("*.jsonl")
    journal.unlink()
    journal.mkdir()
    run = translate(source, tmp_path / "out" / "out.mp4", "-m", model)
    assert str(journal) in run.error


def test_a_journal_that_cannot_be_read_is_an_error_that_names_it(
    cut_off: tuple[Path, Path, Path], model: Path, tmp_path: Path
) -> None:
    source, left, expected = cut_off
    shutil.copytree(left, tmp_path / "out")
    out = tmp_path / "out" / "out.mp4"
    faults = [{"call": call, "path": r"\.jsonl$", "error": "EACCES"} for call in ("read", "open")]
    run = translate(source, out, "-m", model, faults=faults)
    assert ".jsonl" in run.error
    whole(source, out, "-m", model)
    assert_same(out, expected)


# Between two runs


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and what a run made of it."""
    folder = tmp_path_factory.mktemp("finished")
    jobs.pictures(folder / "in", 30)
    jobs.clip(folder / "in" / "clip.mp4", frames=400)
    whole(folder / "in", folder / "out", "-m", model)
    return folder


@pytest.fixture
def job(finished: Path, model: Path, tmp_path: Path) -> tuple[str | Path, ...]:
    """The words of a job that is finished, in a folder of its own."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "in", tmp_path / "out", "-m", model


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in tree(folder)}


def changed(before: dict[str, int], folder: Path) -> set[str]:
    """Return which outputs were written again."""
    now = times(folder)
    assert set(now) == set(before)
    return {name for name in now if now[name] != before[name]}


@pytest.mark.behaviour(20)
def test_a_finished_job_does_nothing_again_and_what_is_missing_alone_is_done(
    job: tuple[str | Path, ...], tmp_path: Path
) -> None:
    out, before = tmp_path / "out", times(tmp_path / "out")
    again = whole(*job)
    assert again.frames == 0
    assert again.report["status"] == "whole"
    assert changed(before, out) == set()
    (out / "a" / "00003.png").unlink()
    (out / "clip.mp4").unlink()
    assert whole(*job).frames == 401
    assert changed(before, out) == {"a/00003.png", "clip.mp4"}


@pytest.mark.behaviour(21, 23)
def test_an_input_that_was_touched_is_refused_left_or_redone_alone(
    job: tuple[str | Path, ...], tmp_path: Path
) -> None:
    out, before = tmp_path / "out", times(tmp_path / "out")
    for name in ("a/00003.png", "clip.mp4"):
        os.utime(tmp_path / "in" / name, (0, 0))
    refused = translate(*job)
    assert "00003.png" in refused.error
    assert whole(*job, "-n").frames == 0
    assert changed(before, out) == set()
    assert whole(*job, "-y").frames == 401
    assert changed(before, out) == {"a/00003.png", "clip.mp4"}
    assert whole(*job).frames == 0


@pytest.mark.behaviour(21)
def test_with_hashes_a_touched_input_is_as_it_was_and_a_changed_one_is_not(
    model: Path, tmp_path: Path
) -> None:
    source, out = jobs.pictures(tmp_path / "in", 30), tmp_path / "out"
    jobs.clip(source / "clip.mp4", frames=400)
    job = [source, out, "-m", model, "--hash-inputs"]
    whole(*job)
    before = times(out)
    for name in ("a/00003.png", "clip.mp4"):
        os.utime(source / name, (0, 0))
    assert whole(*job).frames == 0
    status = (source / "a" / "00004.png").stat()
    data = bytearray((source / "a" / "00004.png").read_bytes())
    # Another picture of the same size and time.
    other = (source / "a" / "00005.png").read_bytes()
    (source / "a" / "00004.png").write_bytes(
        other[: len(data)] if len(other) > len(data) else other
    )
    os.utime(source / "a" / "00004.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "00004.png" in translate(*job).error
    assert whole(*job, "-y").frames == 1
    assert changed(before, out) == {"a/00004.png"}


@pytest.mark.behaviour(21, 23)
@pytest.mark.parametrize(
    ("option", "kinds"),
    [("--png-level=1", {".png"}), ("--crf=30", {".mp4"}), ("--fit=stretch", {".png", ".mp4"})],
)
def test_another_option_redoes_exactly_the_outputs_whose_pixels_it_changes(
    option: str, kinds: set[str], job: tuple[str | Path, ...], tmp_path: Path
) -> None:
    out, before = tmp_path / "out", times(tmp_path / "out")
    refused = translate(*job, option)
    assert option.split("=")[0] in refused.error
    assert changed(before, out) == set()
    redone = {name for name in before if Path(name).suffix in kinds}
    run = whole(*job, option, "-y")
    assert changed(before, out) == redone
    assert run.frames == (400 if ".mp4" in kinds else 0) + (30 if ".png" in kinds else 0)
    assert whole(*job, option).frames == 0


@pytest.mark.behaviour(21)
def test_an_option_that_changes_no_pixel_changes_nothing(
    job: tuple[str | Path, ...], tmp_path: Path
) -> None:
    before = times(tmp_path / "out")
    more = ["--on-error=fail", "--max-failures=3", "--threads=1", "--strict"]
    assert whole(*job, *more).frames == 0
    assert changed(before, tmp_path / "out") == set()


@pytest.mark.behaviour(21, 23)
def test_another_model_redoes_everything_and_is_named_by_its_digest(
    job: tuple[str | Path, ...], tmp_path: Path
) -> None:
    other = generators.invert(tmp_path / "other.onnx")
    words = [*job[:3], other]
    refused = translate(*words)
    assert "model" in refused.error
    assert whole(*words, "-y").frames == 430
    assert whole(*words).frames == 0
    assert "model" in translate(*job).error
