"""What is decided before the first frame: the work, the notes, refusals, the memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation, run_plan, translate
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.job import plan as planning
from cyclegan_batch.job.job_folder import FOLDER
from cyclegan_batch.job.plan import JobPlan
from cyclegan_batch.job.plan_text import plan_description, plan_lines
from cyclegan_batch.wording import grouped
from tests.synthesis import generators, streams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return streams.plain(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=5, size=(48, 64))


def picture(path: Path, size: tuple[int, int] = (24, 32), **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, **options)
    return path


def planned(*arguments: Any, **options: Any) -> JobPlan:
    return plan_translation(*arguments, **options)


# Memory


@pytest.mark.behaviour(27)
def test_memory_is_the_frames_in_flight_times_the_largest_frame(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    large = streams.plain(tmp_path / "large.mp4", frames=2, size=(96, 128))
    plan = planned([clip, large], tmp_path / "out", model=model)
    assert plan.largest == (96, 128)
    assert plan.memory == plan.schedule.frames_in_flight * 96 * 128 * 3
    (memory,) = (line for line in plan_lines(plan) if line.startswith("memory"))
    assert f"{plan.schedule.frames_in_flight} frames in flight × 0.0 MiB (128×96" in memory


def test_memory_counts_what_the_network_sees_where_that_is_larger(
    tmp_path: Path, model: Path, clip: Path
) -> None:
    half = generators.identity(tmp_path / "half.onnx", "float16")
    plan = planned(clip, tmp_path / "out.mp4", model=half, size=(480, 640))
    # float16: two bytes for each of the three channels.
    assert plan.memory == plan.schedule.frames_in_flight * 480 * 640 * 3 * 2
    small = planned(clip, tmp_path / "out.mp4", model=model, size=8)
    assert small.memory == small.schedule.frames_in_flight * 48 * 64 * 3


def test_memory_of_pictures_is_told_from_their_headers(model: Path, tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png", (24, 32))
    picture(tmp_path / "in" / "b.png", (240, 320))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture(tmp_path / "in" / "c.jpg", (50, 60), exif=exif)
    (tmp_path / "in" / "broken.png").write_text("no picture")
    plan = planned(tmp_path / "in", tmp_path / "out", model=model)
    assert set(plan.sizes) == {(24, 32), (240, 320), (60, 50)}
    assert plan.memory == plan.schedule.frames_in_flight * 240 * 320 * 3
    assert any("its input is 32×24, 320×240, 50×60" in note for note in grouped(plan.notes))


def test_memory_that_nothing_tells_is_not_guessed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    plan = planned(tmp_path / "broken.png", tmp_path / "out.png", model=model)
    assert plan.memory is None
    assert any("which is not known yet" in line for line in plan_lines(plan))


def test_only_some_of_many_pictures_are_looked_at(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_SAMPLED_IMAGES", 4)
    for number in range(11):
        picture(tmp_path / "in" / f"{number}.png", (10 + number, 8))
    plan = planned(tmp_path / "in", tmp_path / "out", model=model)
    assert [height - 10 for height, _ in plan.sizes] == [0, 3, 6, 9]


# Pictures that are not read


@pytest.mark.behaviour(14, 22)
def test_a_picture_of_a_kind_that_is_not_read_fails_alone_and_is_listed(
    model: Path, tmp_path: Path
) -> None:
    picture(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "a.psd").write_bytes(b"8BPS" + bytes(20))
    done = translate(tmp_path / "in", tmp_path / "out", model=model)
    assert (done.exit_code, [path.name for path in done.outputs]) == (3, ["b.png"])
    (failure,) = done.failures
    assert "a.psd: images of the kind .psd are not read here; convert it to PNG" in failure.cause
    with pytest.raises(InputError, match=r"a\.psd: images of the kind \.psd are not read"):
        translate(tmp_path / "in" / "a.psd", tmp_path / "o.png", model=model)


# What is said


def test_what_is_true_of_many_files_is_said_once(model: Path, tmp_path: Path) -> None:
    for name in ("a: b.mp4", "c.mp4", "d.mp4"):
        (tmp_path / "in").mkdir(exist_ok=True)
        streams.plain(tmp_path / "in" / name, frames=2)
    plan = planned(tmp_path / "in", tmp_path / "out", model=model)
    guesses = [note for note in grouped(plan.notes) if "colour matrix" in note]
    assert len(guesses) == 1
    assert guesses[0].startswith(
        f"{tmp_path / 'in' / 'a: b.mp4'} and 2 more: the video has no tag of"
    )
    assert len(set(grouped(plan.notes))) == len(grouped(plan.notes))


def test_what_the_network_sees_is_said_first(model: Path, clip: Path, tmp_path: Path) -> None:
    trained = generators.tiny_resnet(tmp_path / "tiny.onnx")
    plan = planned(clip, tmp_path / "out.mp4", model=trained)
    assert grouped(plan.notes)[0] == "tiny.onnx: trained at 64, its input is 64×48"
    fixed = generators.invert(tmp_path / "fixed.onnx", fixed=(32, 32))
    plan = planned(clip, tmp_path / "out.mp4", model=fixed)
    assert grouped(plan.notes)[0] == "fixed.onnx: its input is 64×48 resized to 32×32"


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"fps": "25"}, "--fps: no effect, as no pattern of images is among the inputs"),
        ({"quality": 3}, "--quality: no effect, as no image is among the inputs"),
        ({"png_level": 0}, "--png-level: no effect, as no image is among the inputs"),
        ({"max_pixels": 9}, "--max-pixels: no effect, as no image is among the inputs"),
        ({"tar_images": "jpg"}, "--tar-images: no effect, as no tar is among the inputs"),
        ({"crf": 3.0, "audio": "copy", "fit": "pad"}, None),
    ],
)
def test_an_option_that_does_nothing_is_said(
    options: dict[str, Any], note: str | None, model: Path, clip: Path, tmp_path: Path
) -> None:
    plan = planned(clip, tmp_path / "out.mp4", model=model, **options)
    assert [each for each in grouped(plan.notes) if "no effect" in each] == ([note] if note else [])


def test_options_of_videos_do_nothing_to_pictures(model: Path, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    plan = planned(source, tmp_path / "b.png", model=model, ss=1.0, encoder_opt={"bf": "0"})
    (note,) = (each for each in grouped(plan.notes) if "no effect" in each)
    assert note == "--ss, --encoder-opt: no effect, as no video is among the inputs"


@pytest.mark.parametrize(
    ("size", "has_note"),
    [
        ("native", False),
        ((32, 48), False),
        (32, False),
        (48, True),
        ((48, 32), True),
        ((16, 16), True),
    ],
)
def test_a_size_beside_a_model_of_fixed_size_is_said_once(
    size: Any, has_note: bool, model: Path, clip: Path, tmp_path: Path
) -> None:
    fixed = generators.invert(tmp_path / "fixed.onnx", fixed=(32, 48))
    notes = grouped(planned(clip, tmp_path / "out.mp4", model=fixed, size=size).notes)
    note = "--size: no effect, as fixed.onnx takes 48×32 only"
    assert [each for each in notes if each.startswith("--size")] == [note] * has_note
    plan = planned(clip, tmp_path / "out.mp4", model=model, size=size)
    assert not any("--size" in each for each in grouped(plan.notes))


# What exists already


@pytest.mark.behaviour(23)
def test_what_exists_is_refused_skipped_or_overwritten(model: Path, tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png")
    out = tmp_path / "out"
    picture(out / "0.png")
    # A link to nowhere is something, too.
    (out / "1.png").symlink_to("nowhere")
    with pytest.raises(OutputError, match=r"0\.png and 1 more: exist already.*-y .*-n "):
        planned(tmp_path / "in", out, model=model)
    plan = planned(tmp_path / "in", out, model=model, skip_existing=True)
    assert ([entry.output.name for entry in plan.entries], plan.skipped) == (["2.png"], 2)
    plan = planned(tmp_path / "in", out, model=model, overwrite=True)
    assert (len(plan.entries), plan.skipped) == (3, 0)
    # A preview writes none of them.
    assert len(planned(tmp_path / "in", out, model=model, preview=1).entries) == 3


def test_a_job_with_nothing_left_has_no_units(model: Path, tmp_path: Path) -> None:
    source = picture(tmp_path / "a.png")
    plan = planned(source, picture(tmp_path / "b.png"), model=model, skip_existing=True)
    assert (plan.units, plan.frames, plan.skipped) == ((), 0, 1)
    assert plan_lines(plan)[-1] == "would write 0 files, 0 frames; 1 exists already and stays"


# What cannot be done


def not_a_video(path: Path) -> Path:
    path.write_text("Dear diary")
    return path


@pytest.mark.behaviour(14, 22)
def test_a_video_that_cannot_be_planned_costs_only_itself(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    bad = not_a_video(tmp_path / "bad.mp4")
    plan = planned([bad, clip], tmp_path / "out", model=model)
    assert [failure.name for failure in plan.failures] == [str(bad)]
    assert [video.path for video in plan.videos] == [clip]
    assert plan_lines(plan)[-1].endswith("would write 1 file, 5 frames; 1 cannot be translated")
    with pytest.raises(InputError, match=r"bad\.mp4"):
        planned([bad, clip], tmp_path / "out", model=model, on_error="fail")


@pytest.mark.behaviour(14, 18, 22)
def test_the_rest_of_the_job_is_done_without_the_only_video_too(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    not_a_video(tmp_path / "in" / "bad.mp4")
    (tmp_path / "in" / "label.txt").write_text("cat")
    plan = planned(tmp_path / "in", tmp_path / "out", model=model, copy_others=True)
    assert [Path(failure.name).name for failure in plan.failures] == ["bad.mp4"]
    assert [each.source.name for each in plan.others] == ["label.txt"]
    with pytest.raises(InputError, match=r"bad\.mp4"):
        planned(tmp_path / "in", tmp_path / "out", model=model, copy_others=True, on_error="fail")


def test_nothing_that_can_be_planned_errors(model: Path, tmp_path: Path) -> None:
    bad = [not_a_video(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    with pytest.raises(InputError, match=r"(?s)none of the 2 inputs.*a\.mp4.*b\.mp4"):
        planned(bad, tmp_path / "out", model=model)


def test_the_only_input_that_cannot_be_planned_errors_in_its_own_words(
    model: Path, tmp_path: Path
) -> None:
    bad = not_a_video(tmp_path / "bad.mp4")
    with pytest.raises(InputError, match=r"^cannot read .*bad\.mp4"):
        planned(bad, tmp_path / "out.mp4", model=model)


def test_more_failures_than_allowed_while_planning_errors(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    bad = [not_a_video(tmp_path / name) for name in ("a.mp4", "b.mp4")]
    with pytest.raises(InputError, match=r"2 failures .* --max-failures 1 allows; .*b\.mp4"):
        planned([*bad, clip], tmp_path / "out", model=model, max_failures=1)
    assert len(planned([*bad, clip], tmp_path / "out", model=model, max_failures=2).failures) == 2


@pytest.mark.parametrize(("ss", "to"), [(3.0, 2.0), (2.0, 2.0), (None, 0.0)])
def test_a_stretch_that_holds_nothing_errors(
    ss: float | None, to: float, model: Path, clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"--to {to:g} s is not after the start, {ss or 0:g} s"):
        planned(clip, tmp_path / "out.mp4", model=model, ss=ss, to=to)


# The record


@pytest.mark.behaviour(28)
def test_the_record_holds_how_every_video_is_written(
    model: Path, clip: Path, tmp_path: Path
) -> None:
    plan = planned(clip, tmp_path / "out.mp4", model=model, crf=20.0, size=24, keep_size=True)
    (video,) = plan_description(plan)["videos"]
    assert video["size"] == [48, 64]
    assert video["output_size"] == [24, 32]
    assert (video["encoder"], video["pix_fmt"]) == ("libx264", "yuv420p")
    assert video["encoder_options"]["crf"] == "20"
    assert [each["way"] for each in video["streams"]] == ["video", "copy"]
    assert plan_description(plan)["options"] == {"crf": 20.0, "keep_size": True, "size": 24}


@pytest.mark.behaviour(13)
@pytest.mark.parametrize(
    ("name", "encoder"), [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.mp4", "libx264")]
)
def test_the_encoder_follows_the_container(
    tmp_path: Path, model: Path, clip: Path, name: str, encoder: str
) -> None:
    plan = planned(clip, tmp_path / name, model=model, audio="none")
    assert any(f" {encoder} " in line for line in plan_lines(plan)), plan_lines(plan)


# A plan is a value

_RUN_ELSEWHERE = """
import pickle, sys
from cyclegan_batch.api import run_plan

report = run_plan(pickle.loads(sys.stdin.buffer.read()))
print(report.status, report.frames, len(report.failures))
"""


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_plan_is_pickled_and_run_in_another_process(tmp_path: Path, backend: str) -> None:
    """A video, images of two sizes, a copied label and an input that fails."""
    folder = tmp_path / "in"
    picture(folder / "a.png")
    picture(folder / "sub.png", (40, 32))
    streams.plain(folder / "clip.mp4", frames=5, size=(48, 64))
    (folder / "bad.mp4").write_bytes(b"no video")
    (folder / "label.txt").write_text("horse")
    if backend == "auto":
        model = generators.tiny_resnet(tmp_path / "tiny.onnx")
    else:
        pytest.importorskip("torch")
        from tests.backends.test_torch import checkpoint

        model = checkpoint(tmp_path / "g.pth")

    def plan_of(output: str) -> JobPlan:
        return plan_translation(
            folder,
            tmp_path / output,
            model=model,
            copy_others=True,
            preset="ultrafast",
            threads=1,
            backend=backend,
        )

    here, there = run_plan(plan_of("here")), pickle.dumps(plan_of("there"))
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ELSEWHERE], input=there, capture_output=True, check=True
    )
    assert done.stdout.decode().split() == ["partial", "7", "1"]
    assert (here.status, here.frames, len(here.failures)) == ("partial", 7, 1)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len(contents(tmp_path / "here")) == 4


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and FOLDER not in path.parts
    }
