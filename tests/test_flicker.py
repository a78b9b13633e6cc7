"""The flicker of videos, from their files to what `evaluate` prints."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import cli, flicker
from cyclegan_batch.errors import InputError
from cyclegan_batch.flicker import evaluate_flicker, is_video
from cyclegan_batch.temporal.consistency import FlickerMeter, blurred, sharpness
from tests.conftest import ENVIRONMENT
from tests.stopwatch import Stopwatch
from tests.synthesis import streams, videos
from tests.temporal.test_flow_filter import noisy, panned, texture


def drawn(path: Path, frames: Sequence[np.ndarray]) -> Path:
    """Write frames without loss."""
    pictures = [
        av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format="bgr0") for frame in frames
    ]
    return videos.encode(path, pictures, "ffv1")


@pytest.fixture(scope="module")
def pan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a pan, a translation with noise and one with less, as frames and as files."""
    folder = tmp_path_factory.mktemp("pan")
    sources = panned(7)
    per_frame = [noisy(255 - frame, seed, 40) for seed, frame in enumerate(sources)]
    output = [noisy(255 - frame, seed + 50, 20) for seed, frame in enumerate(sources)]
    frames = {"source": sources, "output": output, "per_frame": per_frame}
    files = {name: drawn(folder / f"{name}.mkv", each) for name, each in frames.items()}
    return {"frames": frames, "files": files, "paths": [files[n] for n in ("output", "source")]}


def test_files_are_measured_as_their_frames_are(pan):
    found = evaluate_flicker(*pan["paths"], pan["files"]["per_frame"])
    frames = pan["frames"]
    assert found.frames == 7
    assert found.size == (96, 128)
    blurs = [blurred(frame, found.control_sigma) for frame in frames["per_frame"]]
    meter = FlickerMeter(4)
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    for source, *others in zip(*frames.values(), blurs, strict=True):
        meter.add(source, [source, *others])
    cv2.setNumThreads(before)
    assert list(found.rows.values()) == meter.results()
    assert list(found.rows) == ["source", "output", "per_frame", "control"]
    squares = np.mean(np.square(np.subtract(*map(np.float64, list(frames.values())[1:]))))
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / squares), abs=1e-6)
    assert found.rows["control"].sharpness == pytest.approx(
        found.rows["output"].sharpness, rel=0.02
    )
    assert found.notes == ()


def test_a_still_clip_with_known_noise_has_known_numbers(tmp_path):
    """Uniform noise of ±n levels has the variance n·(n + 1)/3; that of two frames adds up."""
    still, picture = texture(128, 160), texture(128, 160, seed=9) // 2 + 60
    sources = drawn(tmp_path / "source.mkv", [still] * 12)
    noise = drawn(tmp_path / "noise.mkv", [noisy(picture, seed, 12) for seed in range(12)])
    pumping = [(picture + shift).astype(np.uint8) for shift in (0, 3, 0, 3, 0, 3, 0, 3, 0, 3, 0, 3)]
    pumps = drawn(tmp_path / "pumps.mkv", pumping)
    noisy_one = evaluate_flicker(noise, sources)
    assert noisy_one.rows["source"].error == noisy_one.rows["source"].pump == 0.0
    assert noisy_one.rows["output"].error == pytest.approx(2 * 12 * 13 / 3 / 255**2, rel=0.01)
    # A Gaussian blur leaves 1/(4πσ²) of the variance of white noise.
    share = noisy_one.rows["output"].coarse_error / noisy_one.rows["output"].error
    assert share == pytest.approx(1 / (16 * np.pi), rel=0.1)
    pumping_one = evaluate_flicker(pumps, sources, noise).rows
    assert pumping_one["output"].pump == pytest.approx(6.0, abs=1e-9)
    assert pumping_one["output"].error == pytest.approx(9 / 255**2, rel=1e-5)
    assert pumping_one["output"].coarse_error == pytest.approx(9 / 255**2, rel=1e-5)
    assert pumping_one["output"].sharpness == pytest.approx(sharpness(picture))
    assert "control" in pumping_one


def ten_bit(path: Path) -> Path:
    return videos.moving(path, frames=5, pix_fmt="yuv420p10le")


def odd(path: Path) -> Path:
    pictures = [av.VideoFrame.from_ndarray(frame, "rgb24") for frame in panned(4, 37, 53)]
    return videos.encode(path, [each.reformat(format="yuv444p") for each in pictures])


def turned(path: Path) -> Path:
    return streams.plain(path, frames=3, audio=None, rotation=(90, False, False))


def variable(path: Path) -> Path:
    return streams.variable_rate(path)


@pytest.mark.parametrize("make", [ten_bit, odd, turned, variable])
def test_what_is_translated_can_be_measured(tmp_path, make: Callable[[Path], Path]):
    source = make(tmp_path / "in.mp4")
    with av.open(str(source)) as container:
        count = sum(1 for _ in container.decode(video=0))
    found = evaluate_flicker(source, source, source)
    stored = {ten_bit: (96, 128), odd: (37, 53), turned: streams.SIZE[::-1], variable: streams.SIZE}
    assert found.frames == count
    assert found.size == stored[make]
    assert found.rows["source"] == found.rows["output"] == found.rows["per_frame"]
    assert found.psnr == float("inf")
    assert found.control_sigma == 0.0


def test_a_pattern_of_images_is_a_video(tmp_path, pan):
    for number, frame in enumerate(pan["frames"]["output"]):
        cv2.imwrite(str(tmp_path / f"{number:03}.png"), frame[..., ::-1])
    found = evaluate_flicker(tmp_path / "%03d.png", pan["files"]["source"])
    assert found.rows == evaluate_flicker(*pan["paths"]).rows


def test_a_source_of_another_size_is_scaled_and_that_is_told(tmp_path, pan):
    small = [cv2.resize(each, (64, 48), interpolation=cv2.INTER_AREA) for each in panned(7)]
    output = drawn(tmp_path / "small.mkv", small)
    found = evaluate_flicker(output, pan["files"]["source"])
    assert found.size == (48, 64)
    assert found.rows["source"].error == pytest.approx(found.rows["output"].error, rel=0.3)
    (note,) = found.notes
    assert "source.mkv: its frames are scaled from 128×96 to 64×48, the size of " in note
    with pytest.raises(InputError, match=r"output.mkv: is 128×96, and .*small.mkv is 64×48"):
        evaluate_flicker(output, pan["files"]["source"], pan["files"]["output"])


def test_only_the_first_frames_are_measured_where_that_is_asked_for(tmp_path, pan):
    short = drawn(tmp_path / "short.mkv", pan["frames"]["output"][:4])
    found = evaluate_flicker(*pan["paths"], frames=4)
    assert found.frames == 4
    assert found.rows == evaluate_flicker(short, pan["files"]["source"], frames=4).rows


def test_different_numbers_of_frames_errors(tmp_path, pan):
    short = drawn(tmp_path / "short.mkv", pan["frames"]["output"][:4])
    said = r"short.mkv: has 4 frames, and .*source.mkv has more; .* --frames 4 where"
    with pytest.raises(InputError, match=said):
        evaluate_flicker(short, pan["files"]["source"])
    with pytest.raises(InputError, match=r"short.mkv: has 4 frames, and .*output.mkv has more"):
        evaluate_flicker(pan["files"]["output"], short)


def test_a_damaged_frame_is_left_out_and_told(tmp_path):
    whole = videos.moving(tmp_path / "whole.mkv", frames=12, options={"g": "1", "bf": "0"})
    broken = videos.damaged(tmp_path / "broken.mkv", whole, [5, 8])
    found = evaluate_flicker(broken, broken)
    assert found.frames == 10
    assert [note for note in found.notes if "broken.mkv, frame 5" in note] == [*found.notes]
    assert all("(the first of 2 such places)" in note for note in found.notes)


def test_frames_that_are_lost_do_not_count_among_those_that_are_asked_for(tmp_path):
    whole = videos.moving(tmp_path / "whole.mkv", frames=12, options={"g": "1", "bf": "0"})
    broken = videos.damaged(tmp_path / "broken.mkv", whole, [2])
    output = drawn(tmp_path / "output.mkv", [texture(48, 64)] * 11)
    assert evaluate_flicker(output, broken, frames=8).frames == 8
    # With fewer frames the two would be compared one frame apart.
    with pytest.raises(InputError, match=r"broken.mkv: has 11 frames, .*broken.mkv, frame 2") as e:
        evaluate_flicker(whole, broken)
    assert "--frames" not in str(e.value)


def test_a_single_frame_has_a_sharpness_only(tmp_path):
    one = drawn(tmp_path / "one.mkv", [texture(40, 48)])
    found = evaluate_flicker(one, one, one)
    assert found.rows["output"].sharpness > 0
    lines = found.lines()
    assert lines[0].startswith("1 frame of 48×40 ")
    assert lines[1].split()[:4] == ["source", "–", "–", "–"]
    assert json.loads(json.dumps(flicker.as_json(found), allow_nan=False))["psnr"] is None


def test_few_frames_are_in_memory_at_a_time(tmp_path, monkeypatch, pan):
    long = drawn(tmp_path / "long.mkv", [noisy(texture(48, 64), seed) for seed in range(80)])
    monkeypatch.setattr(flicker, "cpu_threads", lambda: 2)
    monkeypatch.setattr(flicker, "_SAMPLED", 6)
    alive: set[int] = set()
    most = 0
    real = flicker._Video.frames

    def watched(video):
        nonlocal most
        for number, pixels in enumerate(real(video)):
            key = id(video) + number
            alive.add(key)
            weakref.finalize(pixels, alive.discard, key)
            most = max(most, len(alive))
            yield pixels

    monkeypatch.setattr(flicker._Video, "frames", watched)
    evaluate_flicker(long, long, long)
    assert 6 <= most <= 6 + 3 * (2 + 3)


def test_the_frames_of_the_sample_are_spread_over_the_whole_video():
    sample = flicker._Sample()
    for number in range(1000):
        sample.add(np.full((4, 4, 3), number % 256, np.uint8))
    assert 12 <= len(sample.frames) <= 24
    steps = {int(b[0, 0, 0]) - int(a[0, 0, 0]) for a, b in itertools.pairwise(sample.frames)}
    assert {step % 256 for step in steps} == {64}
    large = flicker._Sample()
    for _ in range(50):
        large.add(np.broadcast_to(np.zeros(3, np.uint8), (8000, 8000, 3)))
    assert len(large.frames) == 2


def test_videos_are_told_from_images(tmp_path):
    (tmp_path / "clip").write_bytes(b"1")
    for name, count in (("still.gif", 1), ("moves.gif", 2), ("moves.webp", 2), ("still.png", 1)):
        first, *others = [Image.fromarray(texture(8, 8, seed)) for seed in range(count)]
        first.save(tmp_path / name, save_all=True, append_images=others)
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    names = ["a.mp4", "a.Y4M", "-", "f_%03d.png", "a.jpg", "a.gif", "a", ".", "clip", "still.gif"]
    names += ["moves.gif", "moves.webp", "still.png", "broken.gif"]
    paths = [Path(name) if name == "-" else tmp_path / name for name in names]
    found = {name for name, path in zip(names, paths, strict=True) if is_video(path)}
    by_name = {"a.mp4", "a.Y4M", "-", "f_%03d.png"}
    assert found == {*by_name, "clip", "moves.gif", "moves.webp"}
    found = {name for name, path in zip(names, paths, strict=True) if is_video(path, by_name=True)}
    assert found == by_name


def test_an_animated_image_is_a_video(tmp_path, pan):
    first, *others = [Image.fromarray(frame) for frame in pan["frames"]["output"]]
    first.save(tmp_path / "output.webp", save_all=True, append_images=others, lossless=True)
    found = evaluate_flicker(tmp_path / "output.webp", pan["files"]["source"])
    assert found.rows == evaluate_flicker(*pan["paths"]).rows


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.mp4", r"empty.mp4 is empty \(0 bytes\)"),
        ("missing.mp4", "missing.mp4 does not exist"),
        ("folder", "folder: is a folder; give a video, as the results are one"),
        ("image.png", "image.png: is an image; give a video, as the results are one"),
        ("pipe.mp4", "pipe.mp4: is a pipe or a device, and a video is read twice"),
        ("pipe.webp", "pipe.webp: is a pipe or a device, and a video is read twice"),
        ("-", "-: is a pipe or a device"),
        ("text.mp4", "cannot read text.mp4: its content is no media format"),
    ],
)
def test_what_is_no_video_errors(tmp_path, monkeypatch, pan, name, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("no video")
    Path("folder").mkdir()
    cv2.imwrite("image.png", texture(8, 8))
    if name.startswith("pipe") and hasattr(os, "mkfifo"):
        os.mkfifo(name)
    elif name.startswith("pipe"):
        pytest.skip("this system has no named pipes")
    for arguments in (
        (pan["files"]["output"], Path(name)),
        (*pan["paths"], Path(name)),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            evaluate_flicker(*arguments)


def test_a_video_of_a_store_is_measured(s3, pan):
    (s3 / "output.mkv").write_bytes(pan["files"]["output"].read_bytes())
    found = evaluate_flicker(s3 / "output.mkv", pan["files"]["source"])
    assert found.rows == evaluate_flicker(*pan["paths"]).rows


# The command


def evaluate(*arguments: str | Path) -> None:
    cli.main(["evaluate", *map(str, arguments)], standalone_mode=False)


def test_the_command_prints_a_table_and_what_it_means(capsys, monkeypatch, pan):
    for name in ("torch", "cyclegan_train"):  # without the extra train
        monkeypatch.setitem(sys.modules, name, None)
    output, source = pan["paths"]
    evaluate(output, "--source", source, "--per-frame", pan["files"]["per_frame"])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert " ".join(lines[0].split()) == "7 frames of 128×96 flicker coarse flicker pump sharpness"
    rows = {
        line[: len("per-frame, blurred, σ = 1.00")].strip(): line.split()[-4:]
        for line in lines[1:7]
    }
    assert [*rows][:3] == ["source", "output", "per-frame"]
    assert [*rows][3].startswith("per-frame, blurred, σ = ")
    assert [*rows][4:] == ["output ÷ per-frame", "blurred ÷ per-frame"]
    found = evaluate_flicker(output, source, pan["files"]["per_frame"])
    ours, plain = found.rows["output"], found.rows["per_frame"]
    assert float(rows["output"][0]) == pytest.approx(1000 * ours.error, abs=0.001)
    assert float(rows["output ÷ per-frame"][1]) == pytest.approx(
        ours.coarse_error / plain.coarse_error, abs=0.01
    )
    assert f"PSNR {found.psnr:.1f} dB" in lines[-2]
    share = f"{ours.coarse_error / plain.coarse_error:.0%}"
    assert lines[-1].startswith(f"Of the coarse flicker of per-frame, the output has {share}; ")


def test_the_command_prints_json_and_notes_apart(tmp_path, capsys, pan):
    small = drawn(tmp_path / "small.mkv", [each[:48, :64] for each in panned(7)])
    evaluate(small, "--source", pan["files"]["source"], "--json")
    said = capsys.readouterr()
    found = json.loads(said.out)["flicker"]
    assert (found["frames"], found["width"], found["height"]) == (7, 64, 48)
    assert set(found["rows"]) == {"source", "output"}
    assert set(found["rows"]["output"]) == {"error", "coarse_error", "pump", "sharpness"}
    assert found["psnr"] is found["output_to_per_frame"] is found["control_to_per_frame"] is None
    assert "source.mkv: its frames are scaled from 128×96 to 64×48" in said.err
    evaluate(small, "--source", small, "--per-frame", small, "--json", "-q")
    said = capsys.readouterr()
    assert json.loads(said.out)["flicker"]["output_to_per_frame"]["error"] == 1.0
    assert said.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.mp4"], "give --source VIDEO, the video that RESULTS was made from"),
        (["x.mp4", "--truth", "y"], "RESULTS is a video, and --truth is for images"),
        (["x.mp4", "--source", "y", "--resize"], "RESULTS is a video, and --resize is for images"),
        (["x", "--per-frame", "y.mp4"], "are for a video, and RESULTS is none"),
        (["x", "--truth", "y", "--frames", "3"], "are for a video, and RESULTS is none"),
        (["x.png", "--source", "y.mp4"], "--source is a video, and RESULTS is none"),
    ],
)
def test_a_wrong_command_errors(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", *arguments])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.behaviour(24)
def test_ctrl_c_ends_the_measurement_at_once(tmp_path, start):
    wide = texture(480, 640)
    clip = drawn(tmp_path / "clip.mkv", [np.roll(wide, 3 * each, 1) for each in range(8)])
    words = ["-m", "cyclegan_batch", "evaluate", clip, "--source", clip]
    code = (
        "import cyclegan_batch.flicker as f, runpy, sys\n"
        "real = f.Seen.between\n"
        "f.Seen.between = lambda *pair: (print('begun', flush=True), real(*pair))[1]\n"
        f"sys.argv = {list(map(str, words[1:]))!r}\n"
        "runpy.run_module('cyclegan_batch', run_name='__main__')\n"
    )
    run = start(
        [sys.executable, "-c", code],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout.readline() == b"begun\n"
    with Stopwatch() as watch:
        run.send_signal(signal.SIGINT)
        said = run.stderr.read().decode()
        assert run.wait(60) == 130
    assert watch.seconds < 5
    assert "Interrupted: nothing was written" in said
    assert "Traceback" not in said
