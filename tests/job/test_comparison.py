"""Comparisons of videos: what they show, when they are made, and what becomes of them later."""

from __future__ import annotations

import pickle
import re
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import Interpolation
from PIL import Image, ImageSequence

from cyclegan_batch import translate
from cyclegan_batch.api import prepare_translation, run_plan
from cyclegan_batch.cli.progress import Reporter
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.job.pipeline import _Run
from cyclegan_batch.job.plan_text import plan_lines
from cyclegan_batch.job.status import job_status
from cyclegan_batch.job.units import Counters, Stage
from cyclegan_batch.media.video.comparison import ComparisonSink
from tests.faults import jobs
from tests.synthesis import generators, streams, videos

FAST = {"preset": "ultrafast"}
LOSSLESS = {"preset": "ultrafast", "crf": 0, "pix_fmt": "yuv444p"}
GAP = 2
"""Pixels between the frames of a small comparison."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return generators.identity(tmp_path / "model.onnx")


@pytest.fixture
def negative(tmp_path: Path) -> Path:
    return generators.invert(tmp_path / "negative.onnx")


def pixels(path: Path) -> np.ndarray[Any, Any]:
    """Return all frames, ``(N, H, W, 3)``."""
    # The scaler's default flags darken by a level.
    how = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    with av.open(str(path)) as container:
        decoded = container.decode(video=0)
        return np.stack(
            [f.reformat(format="rgb24", interpolation=how).to_ndarray() for f in decoded]
        )


def times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [f.pts * f.time_base for f in container.decode(video=0)]  # type: ignore[operator]


def sound(path: Path) -> list[tuple[object, ...]]:
    """Return every packet of sound."""
    with av.open(str(path)) as container:
        return [
            (each.stream.index, each.pts, each.dts, bytes(each))
            for each in container.demux(*container.streams.audio)
            if each.size
        ]


def halves(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the frames of source and result of a comparison side by side, as float."""
    both = pixels(path).astype(np.float32)
    width = (both.shape[2] - GAP) // 2
    return both[:, :, :width], both[:, :, -width:]


def compared(output: Path) -> Path:
    return output.with_name(f"{output.stem}.compare{output.suffix}")


@pytest.mark.parametrize("layout", ["split", "side", "stack"])
def test_a_comparison_has_the_frames_times_and_sound_of_its_output(negative, tmp_path, layout):
    clip = streams.mp4(tmp_path / "clip.mp4", frames=30)
    out = tmp_path / "out.mp4"
    report = translate(clip, out, model=negative, compare=layout, **LOSSLESS)
    assert report.exit_code == 0
    assert report.outputs == (out, compared(out))
    assert report.comparisons == (compared(out),)
    assert report.frames == 30
    assert times(compared(out)) == times(out)
    assert sound(compared(out)) == sound(out)
    source, result, both = pixels(clip), pixels(out), pixels(compared(out))
    height, width = result.shape[1:3]
    if layout == "side":
        parts = (source, both[:, :, :width]), (result, both[:, :, -width:])
    elif layout == "stack":
        parts = (source, both[:, :height]), (result, both[:, -height:])
    else:
        edge = width // 10 - 3
        parts = (source[:, :, :edge], both[:, :, :edge]), (result[:, :, -edge:], both[:, :, -edge:])
    for expected, found in parts:
        assert np.abs(expected.astype(int) - found).mean() < 2
    assert np.abs(source.astype(int) - result).mean() > 50
    assert jobs.left_over(tmp_path) == []


def test_the_divider_is_where_the_time_puts_it(negative, tmp_path):
    """A source that is white, its black translation, and frames at uneven times."""
    frames = [av.VideoFrame.from_ndarray(np.full((48, 200, 3), 255, np.uint8), "rgb24")] * 60
    white = videos.encode(tmp_path / "a.mkv", [f.reformat(format="yuv420p") for f in frames])
    translate(white, tmp_path / "b.mkv", model=negative, compare="split", **LOSSLESS)
    both = pixels(tmp_path / "b.compare.mkv")
    edges = (both[:, 24, :, 0] < 128).argmax(axis=1)
    expected = [200 * (0.5 - 0.4 * np.sin(2 * np.pi * n / 25 / 8)) for n in range(60)]
    assert np.abs(edges - expected).max() <= 3


SAME = {
    "a rotated clip": lambda path: streams.plain(path / "a.mov", frames=8, rotation=(90, 0, 0)),
    "variable times": lambda path: streams.variable_rate(path / "a.mkv"),
    "odd sides": lambda path: streams.plain(path / "a.mkv", frames=8, size=(45, 63), codec="ffv1"),
    "a late beginning": lambda path: streams.plain(path / "a.ts", frames=8, start=Fraction(700)),
    "fields": lambda path: streams.plain(path / "a.mkv", frames=8, interlaced=True),
    "wide pixels": lambda path: streams.plain(
        path / "a.mp4", frames=8, sample_aspect_ratio=Fraction(4, 3)
    ),
    "ten bits": lambda path: videos.moving(path / "a.mkv", frames=8, pix_fmt="yuv444p10le"),
}


@pytest.mark.parametrize("what", SAME)
def test_an_untouched_frame_stands_beside_its_source(model, tmp_path, what):
    """Whatever the source is: of one time, upright, at one size, in the same colours."""
    clip = SAME[what](tmp_path)
    out = tmp_path / f"out{clip.suffix}"
    deep = {"pix_fmt": "yuv444p10le"} if what == "ten bits" else {}
    translate(clip, out, model=model, compare="side", **LOSSLESS | deep)
    source, result = halves(compared(out))
    assert times(compared(out)) == times(out)
    assert np.abs(source - result).mean() < 1


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".avi", LOSSLESS),
        (".y4m", {}),
        (".webm", {"crf": 0, "encoder_opt": {"cpu-used": "8", "deadline": "realtime"}}),
        (".mkv", {**LOSSLESS, "ss": 0.3, "to": 0.8}),
        (".mkv", {**LOSSLESS, "keep_size": True, "size": 32}),
        (".mkv", {**LOSSLESS, "deinterlace_rate": "field"}),
        (".mov", {"codec": "prores_ks"}),
        (".mkv", {"codec": "ffv1", "color": "bt709:full"}),
    ],
)
def test_outputs_of_every_kind_are_compared(model, tmp_path, suffix, options):
    clip = streams.plain(tmp_path / "clip.mkv", frames=25)
    out = tmp_path / f"out{suffix}"
    report = translate(clip, out, model=model, compare="side", **options)
    assert report.exit_code == 0
    assert times(compared(out)) == times(out)
    source, result = halves(compared(out))
    # A frame away the column of `streams.picture` is 4 pixels away: 10 levels in the mean.
    assert np.abs(source - result).mean() < 3


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_an_animation_is_compared_though_its_clock_is_coarse(model, tmp_path, suffix):
    """Three frames of the source lie within 2 ms; in a GIF they take a tenth of a second each."""
    clip = streams.variable_rate(tmp_path / "clip.mkv")
    out = tmp_path / f"out{suffix}"
    report = translate(clip, out, model=model, compare="side")
    assert [failure.cause for failure in report.failures] == []

    def shown(path: Path) -> list[tuple[int | None, np.ndarray[Any, Any]]]:
        with Image.open(path) as image:
            frames = ImageSequence.all_frames(image, lambda each: each.convert("RGB"))
            return [(each.info.get("duration"), np.asarray(each, float)) for each in frames]

    single, both = shown(out), shown(compared(out))
    assert [duration for duration, _ in both] == [duration for duration, _ in single]
    for _, frame in both:
        assert np.abs(frame[:, :64] - frame[:, -64:]).mean() < 3


def test_frames_that_are_lost_are_matched_by_their_times(model, tmp_path):
    whole = videos.moving(tmp_path / "whole.mkv", frames=20, codec="mpeg4", options={"bf": "0"})
    clip = videos.damaged(tmp_path / "clip.mkv", whole, [6, 7])
    out = tmp_path / "out.mkv"
    report = translate(clip, out, model=model, compare="side", **LOSSLESS)
    assert report.exit_code == 3
    assert {failure.name.partition(",")[0] for failure in report.failures} == {str(clip)}
    assert 0 < len(pixels(out)) < 20
    source, result = halves(compared(out))
    assert times(compared(out)) == times(out)
    assert np.abs(source - result).mean(axis=(1, 2, 3)).max() < 3


@pytest.mark.behaviour(1, 7)
@pytest.mark.parametrize(
    ("suffix", "rate", "gap"),
    [(".ts", 25, 300), (".mkv", 25, 300), (".mkv", 90_000, 0), (".mkv", 1_200, 0)],
)
def test_frames_whose_times_the_container_tells_otherwise_keep_their_partners(
    model, tmp_path, suffix, rate, gap
):
    clip, base = tmp_path / "clip.mp4", Fraction(1, rate)
    with av.open(str(clip), "w") as file:
        stream: Any = file.add_stream("libx264", rate=rate, options={"bf": "0", "crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.time_base = base
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 12 * number, np.uint8), "rgb24")
            frame = frame.reformat(format="yuv444p")
            frame.pts, frame.time_base = number + gap * (number > 8), base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    out = tmp_path / f"out{suffix}"
    report = translate(clip, out, model=model, compare="side", **LOSSLESS)
    assert (report.exit_code, report.outputs) == (0, (out, compared(out)))
    source, result = halves(compared(out))
    assert len(source) == 20
    assert np.abs(source - result).mean(axis=(1, 2, 3)).max() < 3
    assert times(compared(out)) == times(out)


@pytest.mark.behaviour(20, 21)
def test_a_finished_job_gets_its_comparison_without_its_network(model, tmp_path):
    clip = streams.plain(tmp_path / "clip.mp4", frames=10)
    out, words = tmp_path / "out.mp4", {"model": model, **FAST}
    translate(clip, out, **words)
    before = out.stat().st_mtime_ns
    plan, backend = prepare_translation(clip, out, compare="split", **words)
    assert backend is None
    assert plan.units == ()
    report = run_plan(plan)
    assert report.frames == 0
    assert report.outputs == (compared(out),)
    assert report.up_to_date == (out,)
    assert report.summary == f"Done: 1 comparison; 1 was up to date; {compared(out)}"
    assert out.stat().st_mtime_ns == before
    # Now there is nothing to do, with it and without it.
    made = compared(out).stat().st_mtime_ns
    again = translate(clip, out, compare="split", **words)
    assert again.up_to_date == (out, compared(out))
    assert translate(clip, out, **words).up_to_date == (out,)
    # Another layout is another comparison.
    with pytest.raises(OutputError, match=r"made with --compare split \(now side\); -y"):
        translate(clip, out, compare="side", **words)
    left = translate(clip, out, compare="side", skip_existing=True, **words)
    assert (left.outputs, left.skipped, left.exit_code) == ((), 1, 0)
    assert compared(out).stat().st_mtime_ns == made
    replaced = translate(clip, out, compare="side", overwrite=True, **words)
    assert replaced.outputs == (compared(out),)
    assert out.stat().st_mtime_ns == before
    status = job_status(out)
    assert status is not None
    assert (status.outputs, status.done, status.is_whole) == (2, 2, True)


@pytest.mark.behaviour(21)
def test_an_output_that_is_made_again_gets_its_comparison_again(model, tmp_path):
    clip = streams.plain(tmp_path / "clip.mp4", frames=10)
    out, words = tmp_path / "out.mp4", {"model": model, "compare": "split", **FAST}
    translate(clip, out, **words)
    first = compared(out).read_bytes()
    report = translate(clip, out, overwrite=True, crf=40, **words)
    assert report.outputs == (out, compared(out))
    assert compared(out).read_bytes() != first
    out.unlink()
    report = translate(clip, out, crf=40, **words)
    assert report.outputs == (out, compared(out))
    compared(out).unlink()
    assert translate(clip, out, crf=40, **words).outputs == (compared(out),)


@pytest.mark.behaviour(23)
def test_a_file_of_somebody_else_is_not_replaced(model, tmp_path):
    clip = streams.plain(tmp_path / "clip.mp4", frames=5)
    out, words = tmp_path / "out.mp4", {"model": model, "compare": "split", **FAST}
    compared(out).write_text("mine")
    with pytest.raises(OutputError, match=r"out\.compare\.mp4: exists already; -y overwrites"):
        translate(clip, out, **words)
    assert not out.exists()
    report = translate(clip, out, skip_existing=True, **words)
    assert report.outputs == (out,)
    assert compared(out).read_text() == "mine"
    assert translate(clip, out, overwrite=True, **words).outputs == (compared(out),)


@pytest.mark.behaviour(19, 24)
def test_an_interrupted_comparison_leaves_nothing_and_is_made_by_the_same_command(
    model, tmp_path, monkeypatch
):
    clip = streams.plain(tmp_path / "clip.mp4", frames=25)
    out, words = tmp_path / "out.mp4", {"model": model, "compare": "side", **FAST}
    plan, backend = prepare_translation(clip, out, **words)

    def interrupt(counters: Counters) -> None:
        if counters.comparing is not None:
            raise KeyboardInterrupt

    write, halt, halted = ComparisonSink.write, _Run._halt, threading.Event()

    def write_late(self, item):
        # The comparison must not be whole before the run is stopped.
        assert halted.wait(60)
        write(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(ComparisonSink, "write", write_late)
        patch.setattr(_Run, "_halt", lambda self: (halt(self), halted.set()))
        report = run_plan(plan, backend, watch=interrupt)
    assert (report.status, report.exit_code, report.outputs) == ("interrupted", 130, (out,))
    assert "1 of 2 files written; the same command does what is left" in report.summary
    assert not compared(out).exists()
    assert jobs.left_over(tmp_path) == []
    report = translate(clip, out, **words)
    assert (report.outputs, report.frames) == ((compared(out),), 0)


@pytest.mark.behaviour(19)
def test_a_run_that_is_killed_as_a_comparison_gets_its_name_is_finished_by_the_next(
    model, tmp_path
):
    clip = streams.plain(tmp_path / "clip.mp4", frames=10)
    out = tmp_path / "out" / "out.mp4"
    words = clip, out, "-m", model, "--compare", "split"
    fault = {"call": "link", "path": r"out\.compare\.mp4$", "kill": True}
    assert jobs.translate(*words, faults=[fault]).code == -9
    assert out.exists()
    assert not compared(out).exists()
    second = jobs.whole(*words)
    assert second.frames == 0
    assert second.report["outputs"] == second.report["comparisons"] == [str(compared(out))]
    assert jobs.left_over(tmp_path / "out") == []


@pytest.mark.behaviour(22)
def test_a_comparison_that_fails_costs_itself_and_is_told_in_one_sentence(
    model, tmp_path, monkeypatch
):
    clip = streams.plain(tmp_path / "clip.mp4", frames=5)
    out, words = tmp_path / "out.mp4", {"model": model, "compare": "side", **FAST}

    def fail(self, item):
        raise OutputError(f"cannot write {self._plan.output.name}: no reason; try again")

    with monkeypatch.context() as patch:
        patch.setattr(ComparisonSink, "write", fail)
        report = translate(clip, out, **words)
    assert (report.exit_code, report.outputs) == (3, (out,))
    assert [failure.cause for failure in report.failures] == [
        "cannot write out.compare.mp4: no reason; try again"
    ]
    assert translate(clip, out, **words).outputs == (compared(out),)


@pytest.mark.behaviour(20, 22)
@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_what_is_advised_where_an_output_was_damaged_under_its_size_helps(model, tmp_path, name):
    if name == "a.mp4":
        streams.plain(tmp_path / name, frames=2)
    else:
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    out, words = tmp_path / "out" / name, {"model": model, "compare": "side"}
    translate(tmp_path / name, out, model=model)
    out.write_bytes(bytes(out.stat().st_size))
    for overwrite in (False, True):
        report = translate(tmp_path / name, out, overwrite=overwrite, **words)
        (failure,) = report.failures
        assert re.search(rf"{name}: cannot be compared .*; delete it, and the same", failure.cause)
    out.unlink()
    assert translate(tmp_path / name, out, **words).outputs == (out, compared(out))


def test_each_file_of_a_folder_gets_one_beside_it(model, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    streams.plain(folder / "a.mp4", frames=5)
    streams.plain(folder / "deep" / "b.avi", frames=5, audio="mp3")
    jobs.pictures(folder / "images", 2)
    (folder / "broken.mp4").write_bytes(b"nothing")
    out = tmp_path / "out"
    report = translate(folder, out, model=model, compare="stack", **FAST)
    assert report.exit_code == 3
    assert [failure.name for failure in report.failures] == [str(folder / "broken.mp4")]
    names = [str(path.relative_to(out)) for path in out.rglob("*.compare.*")]
    assert len(names) == 4
    assert {"a.compare.mp4", "deep/b.compare.avi"} < set(names)
    assert len(report.comparisons) == 4
    again = translate(folder, out, model=model, compare="stack", **FAST)
    assert (again.outputs, len(again.up_to_date), again.exit_code) == ((), 8, 3)
    status = job_status(out)
    assert status is not None
    assert (status.outputs, status.done, status.failed) == (9, 8, 1)


@pytest.mark.parametrize("layout", ["split", "side", "stack"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_image_is_shown_beside_its_translation(negative, tmp_path, layout, suffix):
    source = np.full((40, 60, 3), (200, 120, 40), np.uint8)
    Image.fromarray(source).save(tmp_path / f"a{suffix}", quality=95)
    out = tmp_path / f"b{suffix}"
    report = translate(tmp_path / f"a{suffix}", out, model=negative, compare=layout)
    assert report.outputs == (out, compared(out))
    assert not [note for note in report.notes if "no effect" in str(note)]
    with Image.open(compared(out)) as picture:
        both = np.asarray(picture.convert("RGB")).astype(int)
    assert both.shape[:2] == {"split": (40, 60), "side": (40, 122), "stack": (82, 60)}[layout]
    assert np.abs(both[3, 3] - source[0, 0]).max() < 6
    assert np.abs(both[-4, -4] - (255 - source[0, 0])).max() < 6


@pytest.mark.behaviour(15, 16, 20, 21)
def test_images_and_their_comparisons_are_kept_apart(negative, tmp_path):
    """A folder with transparency, a damaged image, and a second run after one has changed."""
    folder, out = tmp_path / "in", tmp_path / "out"
    names = [path.relative_to(folder) for path in jobs.pictures(folder, 3).rglob("*.png")]
    Image.new("RGBA", (20, 30), (9, 8, 7, 50)).save(folder / "clear.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    words = {"model": negative, "compare": "side"}
    report = translate(folder, out, **words)
    assert report.exit_code == 3
    assert (len(report.outputs), len(report.comparisons), report.frames) == (8, 4, 4)
    with Image.open(out / "clear.png") as result, Image.open(out / "clear.compare.png") as both:
        assert (result.mode, both.mode) == ("RGBA", "RGB")
    translate(folder, out, overwrite=True, **words)
    first = {name: (compared(out / name)).stat().st_mtime_ns for name in names}
    Image.new("RGB", (32, 32), "red").save(folder / names[0])
    again = translate(folder, out, overwrite=True, **words)
    assert again.outputs == (out / names[0], compared(out / names[0]))
    for name in names[1:]:
        assert compared(out / name).stat().st_mtime_ns == first[name]
    compared(out / names[1]).unlink()
    assert translate(folder, out, **words).outputs == (compared(out / names[1]),)


def test_what_cannot_be_compared_is_refused_before_the_first_frame(model, tmp_path):
    clip = streams.plain(tmp_path / "clip.mp4", frames=5)
    words = {"model": model, "compare": "side", **FAST}
    with pytest.raises(OutputError, match="a pipe is gone by then; name files"):
        translate(clip, "-", **words)
    with pytest.raises(OutputError, match="numbered images have no comparison; name a video"):
        translate(clip, tmp_path / "f_%03d.png", **words)
    with pytest.raises(OutputError, match="is too long for a file system; choose a shorter name"):
        translate(clip, tmp_path / f"{'x' * 246}.mp4", **words)
    clip.rename(tmp_path / "out.compare.mp4")
    with pytest.raises(OutputError, match=r"would replace .*out\.compare\.mp4, a file of this job"):
        translate(tmp_path / "out.compare.mp4", tmp_path / "out.mp4", overwrite=True, **words)
    tars = jobs.tars(tmp_path / "tars", 1, images=1)
    with pytest.raises(InputError, match="the inputs are tars; --preview N shows"):
        translate(tars, tmp_path / "out", **words)
    dv = streams.plain(tmp_path / "a.mkv", frames=2, size=(576, 720), audio=None)
    with pytest.raises(OutputError, match=r"out\.compare\.avi cannot be made: .*--compare split"):
        translate(dv, tmp_path / "out.avi", **words | {"codec": "dvvideo", "preset": None})
    assert not list(tmp_path.glob("out*.avi"))


def test_a_plan_tells_of_its_comparisons_and_can_be_pickled(model, tmp_path):
    clip = streams.plain(tmp_path / "clip.mp4", frames=5)
    plan, backend = prepare_translation(
        clip, tmp_path / "out.mp4", model=model, compare="side", **FAST
    )
    assert backend is not None
    backend.close()
    assert pickle.loads(pickle.dumps(plan)).comparisons == plan.comparisons
    *_, line, summary = plan_lines(plan)
    assert line == (
        f"{clip}, {tmp_path / 'out.mp4'} → {tmp_path / 'out.compare.mp4'} "
        "(compared, side: libx264 yuv420p 130×48)"
    )
    assert summary == "would write 2 files, 5 frames"


def test_a_store_gets_its_comparison_like_a_folder(model, tmp_path, memory_store):
    clip = streams.plain(tmp_path / "clip.mkv", frames=5)
    far = memory_store / "out" / "far.mkv"
    translate(clip, tmp_path / "near.mkv", model=model, compare="split", **FAST)
    report = translate(clip, far, model=model, compare="split", **FAST)
    assert report.exit_code == 0
    copy = tmp_path / "copy.mkv"
    copy.write_bytes((memory_store / "out" / "far.compare.mkv").read_bytes())
    jobs.assert_same(copy, tmp_path / "near.compare.mkv")
    assert len(translate(clip, far, model=model, compare="split", **FAST).up_to_date) == 2


def test_a_folder_in_a_store_gets_its_comparisons(model, tmp_path, memory_store):
    """The listing that a run begins with lacks the times of what the run itself puts."""
    folder = jobs.pictures(tmp_path / "in", 2)
    streams.plain(folder / "clip.mkv", frames=5)
    out = memory_store / "out"
    report = translate(folder, out, model=model, compare="side", **FAST)
    assert [failure.cause for failure in report.failures] == []
    assert (report.exit_code, len(report.comparisons)) == (0, 3)
    again = translate(folder, out, model=model, compare="side", **FAST)
    assert (again.outputs, len(again.up_to_date)) == ((), 6)


def test_progress_tells_that_it_compares(capsys):
    counters = Counters(frames_done=7)
    counters.comparing = Counters(
        frames_done=3, expected=10, unit="out.compare.mp4", stages={"write": Stage(1)}
    )
    reporter = Reporter("json", total=7)
    reporter._next = 0
    reporter.watch(counters)
    line = capsys.readouterr().err
    assert '"unit": "out.compare.mp4"' in line
    assert '"frames": 3, "total": 10' in line
    reporter = Reporter("plain", total=7)
    reporter._next = 0
    reporter.watch(counters)
    assert capsys.readouterr().err.startswith("comparing: 3/10 frames")
