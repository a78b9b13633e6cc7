"""The Python interface: arrays in and out, and `translate` with the options of the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import (
    BackendError,
    CycleganBatchError,
    InputError,
    ModelError,
    OutputError,
    OutputInUseError,
    open_generator,
    translate,
)
from cyclegan_batch.api import plan_translation, run_plan
from cyclegan_batch.files import OutputLock
from cyclegan_batch.job.job_folder import FOLDER
from cyclegan_batch.job.report import report_from_counters
from cyclegan_batch.job.units import Counters, Failure, Stage
from cyclegan_batch.media import Place, dropped_at
from tests.synthesis import generators, streams

DICE = np.random.default_rng(1)


def noise(*shape: int) -> np.ndarray:
    return DICE.integers(0, 256, shape, dtype=np.uint8)


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(noise(30, 50, 3)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.mark.behaviour(9)
@pytest.mark.parametrize("size", [(64, 64), (717, 1279), (37, 41), (1, 1), (3, 500)])
def test_a_generator_keeps_every_size(tmp_path: Path, size: tuple[int, int]) -> None:
    model = generators.identity(tmp_path / "m.onnx", multiple_of="4", minimum="8")
    frames = noise(2, *size, 3)
    with open_generator(model) as generator:
        np.testing.assert_array_equal(generator(frames), frames)


@pytest.mark.parametrize("io", ["uint8", "float16"])
def test_a_generator_takes_bytes_and_floats_and_returns_the_same(tmp_path: Path, io: str) -> None:
    model = generators.invert(tmp_path / "m.onnx", io)  # type: ignore[arg-type]
    frames = noise(1, 16, 24, 3)
    with open_generator(model) as generator:
        np.testing.assert_array_equal(generator(frames), 255 - frames)
        given = (frames / 255).astype(np.float32)
        out = generator(given)
        assert out.dtype == np.float32
        assert np.abs(out - (1 - given)).max() <= 0.5 / 255 + 1e-3


def test_what_is_no_picture_errors(tmp_path: Path) -> None:
    with open_generator(generators.identity(tmp_path / "m.onnx")) as generator:
        with pytest.raises(ValueError, match=r"\(N, H, W, 3\).*got \(4, 4, 3\)"):
            generator(noise(4, 4, 3))
        with pytest.raises(ValueError, match="not empty"):
            generator(noise(0, 4, 4, 3))
        with pytest.raises(ValueError, match=r"uint8 or floating point.*int32"):
            generator(noise(1, 4, 4, 3).astype(np.int32))


def test_translate_returns_a_report_and_prints_nothing(
    tmp_path: Path, picture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = generators.invert(tmp_path / "m.onnx")
    report = translate(picture, tmp_path / "out.png", model=model)
    assert (report.status, report.frames, report.exit_code) == ("whole", 1, 0)
    assert report.outputs == (tmp_path / "out.png",)
    np.testing.assert_array_equal(pixels_of(tmp_path / "out.png"), 255 - pixels_of(picture))
    assert capfd.readouterr() == ("", "")


def test_only_a_checkpoint_loads_the_exporter(tmp_path: Path, picture: Path) -> None:
    model = generators.identity(tmp_path / "m.onnx")
    code = (
        "import sys\n"
        "from cyclegan_batch import open_generator, translate\n"
        "from cyclegan_batch.cli import main\n"
        "picture, model, folder = sys.argv[1:]\n"
        "open_generator(model).close()\n"
        "translate(picture, folder + '/a.png', model=model)\n"
        "try: main(['translate', picture, folder + '/b.png', '-m', model])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'cyclegan_batch.opening' in sys.modules\n"
        "assert not [name for name in sys.modules if name.startswith('cyclegan_export')]\n"
    )
    arguments = [str(picture), str(model), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_network_may_see_another_size(tmp_path: Path, picture: Path) -> None:
    model = generators.identity(tmp_path / "m.onnx")
    translate(picture, tmp_path / "a.png", model=model, size=15, keep_size=True)
    assert pixels_of(tmp_path / "a.png").shape == (15, 25, 3)
    translate(picture, tmp_path / "b.png", model=model, size=15)
    assert pixels_of(tmp_path / "b.png").shape == (30, 50, 3)


def test_errors_reach_the_caller_errors(tmp_path: Path, picture: Path) -> None:
    model = generators.identity(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"nothing\.png"):
        translate(tmp_path / "nothing.png", tmp_path / "out.png", model=model)
    with pytest.raises(ModelError, match=r"nothing\.onnx"):
        translate(picture, tmp_path / "out.png", model=tmp_path / "nothing.onnx")
    picture.with_name("there.png").touch()
    with pytest.raises(OutputError, match="exists"):
        translate(picture, tmp_path / "there.png", model=model)
    with pytest.raises(TypeError, match="quallity"):
        translate(picture, tmp_path / "out.png", model=model, quallity=3)
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:80])
    with pytest.raises(InputError, match=r"broken\.png"):
        translate(tmp_path / "broken.png", tmp_path / "out.png", model=model)


@pytest.mark.behaviour(14, 22)
def test_what_is_damaged_is_in_the_report_or_raised_as_asked_for_errors(
    tmp_path: Path, picture: Path
) -> None:
    model = generators.identity(tmp_path / "m.onnx")
    whole = streams.plain(tmp_path / "whole.mkv", frames=50, audio=None)
    cut = streams.truncated(tmp_path / "cut.mkv", whole, keep=0.7)
    report = translate(cut, tmp_path / "out.mkv", model=model, preset="ultrafast")
    assert (report.status, report.exit_code, report.outputs) == (
        "partial",
        3,
        (tmp_path / "out.mkv",),
    )
    assert [failure.name for failure in report.failures] == [str(cut)]
    with pytest.raises(InputError, match=r"cut\.mkv.*leave out --on-error fail"):
        translate(cut, tmp_path / "not.mkv", model=model, preset="ultrafast", on_error="fail")
    assert not (tmp_path / "not.mkv").exists()


@pytest.mark.behaviour(22)
def test_a_job_that_writes_nothing_at_all_errors(tmp_path: Path, picture: Path) -> None:
    model = generators.identity(tmp_path / "m.onnx")
    broken = [tmp_path / "broken" / f"{number}.png" for number in range(2)]
    broken[0].parent.mkdir()
    for path in broken:
        path.write_bytes(picture.read_bytes()[:80])
    with pytest.raises(InputError, match=r"nothing was written: 2 failures, the first: .*0\.png"):
        translate(broken, tmp_path / "out", model=model)
    assert translate([*broken, picture], tmp_path / "out", model=model).status == "partial"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"size": "100x100"}, "size must be 'native', the shorter side or .*, got '100x100'"),
        ({"size": (0, 5)}, r"size must be .*\(height, width\), got \(0, 5\)"),
        ({"on_error": "stop"}, "on_error must be one of skip, fail, got 'stop'"),
        (
            {"container": "avi"},
            "container must be one of same, mp4, mkv, mov, webm, gif, webp, apng, got 'avi'",
        ),
        ({"deinterlace_rate": "double"}, "deinterlace_rate must be one of frame, field"),
        ({"ss": "0:01"}, "ss must be a number from 0, got '0:01'"),
        ({"frames": 0}, "frames must be a number from 1, got 0"),
        ({"overwrite": True, "skip_existing": True}, "overwrite and skip_existing contradict"),
    ],
)
def test_a_value_that_an_option_does_not_have_errors(
    tmp_path: Path, picture: Path, option: dict[str, Any], words: str
) -> None:
    """Each was taken for another: a size for the native one, no frames for all of them."""
    model = generators.identity(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=words):
        translate(picture, tmp_path / "out.png", model=model, **option)


@pytest.mark.behaviour(22)
@pytest.mark.parametrize(("planned", "status"), [(2, "failed"), (0, "partial")])
def test_frames_without_a_file_are_no_part_of_a_result_but_for_a_pipe(
    planned: int, status: str
) -> None:
    counters = Counters(
        frames_done=5, units_done=1, failures=[Failure("a.mkv", InputError("lost"))]
    )
    counters.stages = {"read": Stage(workers=1)}
    report = report_from_counters(
        counters,
        planned=planned,
        expected_frames=6,
        skipped=0,
        resumable=True,
        notes=(),
        error=None,
        record={},
    )
    assert report.status == status


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("at_places", [True, False])
def test_what_ended_the_run_is_listed_once(at_places: bool) -> None:
    counters = Counters()
    counters.stages = {"read": Stage(workers=1)}
    for number in range(3):
        trouble = "damaged" if at_places else f"damaged in the way {number}"
        dropped = dropped_at(
            Place(subject="a.ts", kind="frame", number=number, seconds=None, trouble=trouble)
        )
        failure = counters.record(dropped.name, dropped.error, dropped.place)
    ended = InputError("gave up")
    ended.__cause__ = failure.error

    def failures(error: CycleganBatchError) -> int:
        report = report_from_counters(
            counters,
            planned=1,
            expected_frames=6,
            skipped=0,
            resumable=True,
            notes=(),
            error=error,
            record={},
        )
        assert json.loads(report.to_json())["error"] == str(error)
        return len(report.failures)

    assert failures(ended) == failures(failure.error) == (1 if at_places else 3)
    assert failures(BackendError("no memory")) == (2 if at_places else 4)


def test_the_same_input_gives_the_same_pixels_twice(tmp_path: Path, picture: Path) -> None:
    model = generators.tiny_resnet(tmp_path / "m.onnx")
    for name in ("a.png", "b.png"):
        translate(picture, tmp_path / name, model=model)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# Two workers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of four pictures, two videos and a label."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(noise(8, 8, 3)).save(folder / f"{number}.png")
    for name in ("a.mkv", "b.mkv"):
        streams.plain(folder / name, frames=3, audio=None)
    (folder / "label.txt").write_text("horse")
    return folder


@pytest.mark.behaviour(23)
def test_what_another_worker_has_written_meanwhile_is_left(tmp_path: Path, folder: Path) -> None:
    model, out = generators.identity(tmp_path / "m.onnx"), tmp_path / "out"
    plan = plan_translation(
        folder, out, model=model, skip_existing=True, copy_others=True, preset="ultrafast"
    )
    out.mkdir()
    theirs = ["0.png", "2.png", "b.mkv", "label.txt"]
    for name in theirs:
        (out / name).write_bytes(b"theirs")
    report = run_plan(plan)

    assert (report.status, report.exit_code, report.failures) == ("whole", 0, ())
    assert (report.skipped, report.planned) == (4, 3)
    assert "4 existed already; 3 files" in report.summary
    assert all((out / name).read_bytes() == b"theirs" for name in theirs)
    assert sorted(path.name for path in report.outputs) == ["1.png", "3.png", "a.mkv"]
    assert len(list(out.glob("[!.]*"))) == 7


@pytest.mark.behaviour(23)
def test_a_video_that_another_worker_has_is_named_and_the_others_are_done(
    tmp_path: Path, folder: Path
) -> None:
    model, out = generators.identity(tmp_path / "m.onnx"), tmp_path / "out"
    out.mkdir()
    lock = OutputLock(out / "a.mkv")
    report = translate(folder, out, model=model, skip_existing=True, preset="ultrafast")
    assert (report.status, report.exit_code) == ("partial", 3)
    (failure,) = report.failures
    assert failure.cause.startswith(f"cannot write {out / 'a.mkv'}: process ")
    assert "the same command does what is left" in report.summary
    assert len(report.outputs) == 5

    with pytest.raises(OutputInUseError, match=r"a\.mkv: process \d+ on \S+ is writing it; wait"):
        translate(folder / "a.mkv", out / "a.mkv", model=model)
    assert not (out / "a.mkv").exists()
    lock.release()
    translate(folder / "a.mkv", out / "a.mkv", model=model, preset="ultrafast")
    assert (out / "a.mkv").exists()
    assert not list(out.glob(".*.partial"))


@pytest.mark.slow
@pytest.mark.behaviour(19, 23)
def test_two_processes_on_one_folder_do_it_together(tmp_path: Path, folder: Path) -> None:
    model, out = generators.identity(tmp_path / "m.onnx"), tmp_path / "out"
    for name in ("a.mkv", "b.mkv"):
        (folder / name).unlink()
    for number in range(4, 200):
        Image.fromarray(noise(64, 64, 3)).save(folder / f"{number}.png")
    command = [sys.executable, "-m", "cyclegan_batch", "translate", folder, out, "-m", model]
    both: list[subprocess.Popen[str]] = []
    try:
        for _ in range(2):
            both.append(subprocess.Popen([*command, "-n", "-q"], stderr=subprocess.PIPE, text=True))
        errors = [process.communicate(timeout=120)[1] for process in both]
    finally:
        # One that has not ended would compute beside every later test.
        for process in both:
            process.kill()
            process.communicate()
    assert [process.returncode for process in both] == [0, 0], errors
    assert sorted(path.name for path in out.iterdir() if path.name != FOLDER) == sorted(
        path.name for path in folder.iterdir() if path.suffix != ".txt"
    )
    for path in folder.glob("*.png"):
        np.testing.assert_array_equal(pixels_of(out / path.name), pixels_of(path))
