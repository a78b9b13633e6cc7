"""The clip that a run translates as it goes on: its frames, its times, and when it is written."""

from __future__ import annotations

import contextlib
import json
import types
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from cyclegan_train import sample_video  # noqa: E402 (after the check for torch)
from cyclegan_train.sample_video import SampleVideo  # noqa: E402
from cyclegan_train.settings import settings_from  # noqa: E402

from cyclegan_batch.errors import InputError  # noqa: E402
from cyclegan_batch.frames import SizeRequirements  # noqa: E402
from cyclegan_batch.models.checkpoints.loading import load_generator  # noqa: E402
from tests.media.witness import needs_ffprobe, probe  # noqa: E402
from tests.synthesis import streams  # noqa: E402
from tests.train.test_run import TINY, assert_same, fill, log_of, state_of, train  # noqa: E402
from tests.train.test_validation import Page  # noqa: E402

SIZES = SizeRequirements(multiple_of=4, minimum=16)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Return a second of 64×48 with sound, on its side."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return streams.plain(path, frames=12, rotation=(90, False, False))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    fill(folder / "trainA", range(3))
    fill(folder / "trainB", range(10, 13))
    return folder


@pytest.fixture(scope="module")
def options(clip) -> dict[str, Any]:
    return {"sample_video": str(clip), "samples": 1, "ema": 0.9, "val_images": 0}


@pytest.fixture(scope="module")
def whole(data, options, tmp_path_factory) -> Path:
    """Return the folder of a run of three epochs that was never stopped."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_video, "_SHARE", 100.0)
        assert train(data, folder, **options).finished
    return folder


class Negative(torch.nn.Module):
    """A generator that exchanges light and dark."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


class Grey(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


def model(**networks: torch.nn.Module) -> Any:
    """Return what a video takes of a model."""
    absent = dict.fromkeys(("netG_A", "netG_B", "ema_A", "ema_B"))
    return types.SimpleNamespace(
        device=torch.device("cpu"), computing=contextlib.nullcontext, **absent | networks
    )


def video_of(clip: Path, sizes: SizeRequirements = SIZES, **changes: Any) -> SampleVideo:
    return SampleVideo(settings_from(TINY | {"sample_video": str(clip)} | changes), sizes)


def decoded(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Return the frames of a video, and their times in seconds."""
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in frames], [f.time for f in frames]


def videos(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "samples").glob("*.mp4"))


# What is in it


@pytest.mark.parametrize(("direction", "letter"), [("AtoB", "A"), ("BtoA", "B")])
@pytest.mark.parametrize("average", [False, True])
def test_the_frames_are_what_the_generator_or_its_average_makes(
    tmp_path, direction, letter, average
):
    clip = streams.plain(tmp_path / "clip.mkv", frames=3)
    video = video_of(clip, crop_size=48, load_size=48, sample_direction=direction)
    networks: dict[str, torch.nn.Module] = {f"netG_{letter}": Negative()}
    if average:
        networks = {f"netG_{letter}": Grey(), f"ema_{letter}": Negative()}
    video.write(tmp_path / "out.mp4", model(**networks))
    ours, theirs = decoded(tmp_path / "out.mp4")[0], decoded(clip)[0]
    assert len(ours) == len(theirs) == 3
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape == (*streams.SIZE, 3)
        assert np.abs(one.astype(int) - (255 - other.astype(int))).mean() < 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mkv", "out.mp4"]


def test_a_network_of_one_channel_gets_and_gives_grey(tmp_path, clip):
    seen: list[tuple[int, ...]] = []

    class Watched(Negative):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(x.shape))
            return super().forward(x)

    video = video_of(clip, input_nc=1, lambda_identity=0.0)
    video.write(tmp_path / "out.mp4", model(netG_A=Watched()))
    assert set(seen) == {(1, 1, 44, 32)}
    assert np.ptp(decoded(tmp_path / "out.mp4")[0][0].astype(int), axis=2).max() < 6


def test_an_upright_clip_keeps_its_shape_and_is_padded_for_the_network_alone(tmp_path, clip):
    video = video_of(clip, SizeRequirements(multiple_of=32, minimum=32))
    described = video.described()
    assert described["size"] == [42, 32]
    video.write(tmp_path / "out.mp4", model(netG_A=Negative()))
    assert decoded(tmp_path / "out.mp4")[0][0].shape == (42, 32, 3)
    assert described["clip"] == str(clip)
    assert (described["frames"], described["direction"]) == (12, "AtoB")


def test_a_clip_that_is_smaller_than_the_images_keeps_its_size(clip):
    assert video_of(clip, crop_size=256, load_size=286).described()["size"] == [64, 48]


def test_variable_times_stay(tmp_path):
    clip = streams.variable_rate(tmp_path / "clip.mkv")
    video_of(clip).write(tmp_path / "out.mp4", model(netG_A=Negative()))
    ours, theirs = decoded(tmp_path / "out.mp4")[1], decoded(clip)[1]
    assert len(ours) == len(streams.VFR_TIMES)
    assert np.subtract(ours, ours[0]) == pytest.approx(np.subtract(theirs, theirs[0]), abs=1e-3)


@needs_ffprobe
def test_another_program_finds_four_seconds_without_sound(tmp_path):
    clip = streams.plain(tmp_path / "clip.mov", frames=110, rotation=(90, False, False))
    video_of(clip).write(tmp_path / "out.mp4", model(netG_A=Negative()))
    entries = "stream=codec_name,pix_fmt,width,height,r_frame_rate,duration,nb_read_frames"
    found = probe(tmp_path / "out.mp4", f"{entries}:stream_side_data", "-count_frames")
    (stream,) = found["streams"]
    assert (stream["codec_name"], stream["pix_fmt"]) == ("h264", "yuv420p")
    assert (stream["width"], stream["height"]) == (32, 42)
    assert stream["r_frame_rate"] == f"{streams.RATE}/1"
    assert float(stream["duration"]) == pytest.approx(4.0)
    assert int(stream["nb_read_frames"]) == 4 * streams.RATE
    assert "side_data_list" not in stream


def test_numbered_images_are_a_clip_too(tmp_path):
    fill(tmp_path / "f", range(4))
    video_of(tmp_path / "f" / "%d.png").write(tmp_path / "out.mp4", model(netG_A=Negative()))
    assert len(decoded(tmp_path / "out.mp4")[0]) == 4


def test_a_clip_takes_so_much_memory_and_no_more(clip, monkeypatch):
    monkeypatch.setattr(sample_video, "_MOST_BYTES", 5 * 44 * 32 * 3)
    assert video_of(clip).described()["frames"] == 5
    monkeypatch.setattr(sample_video, "_MOST_BYTES", 1)
    assert video_of(clip).described()["frames"] == 1


# When it is written


def test_a_video_is_due_as_often_as_costs_little(clip):
    video = video_of(clip)
    # 12 frames, of 44×32 where an image of the training has 32², are a quarter of 66 samples.
    for samples, every in ((1000, 1), (66, 1), (65, 2), (33, 2), (5, 14)):
        video.follow(samples)
        due = [epoch for epoch in range(1, 16) if video.due(epoch, last=False)]
        assert due == list(range(every, 16, every)), samples
    assert video.due(1, last=True)


@pytest.mark.behaviour(42)
def test_a_run_shows_its_clip_after_its_epochs(whole, clip, data):
    assert videos(whole) == [f"epoch_000{epoch}.mp4" for epoch in (1, 2, 3)]
    page = Page((whole / "index.html").read_text("utf-8"))
    assert page.tags.count("video") == 3
    assert {f"samples/{name}" for name in videos(whole)} <= set(page.sources)
    described = json.loads((whole / "run.json").read_text())["sample_video"]
    assert described == {
        "clip": str(clip), "frames": 12, "size": [42, 32], "direction": "AtoB", "every_epochs": 1,
    }  # fmt: skip
    events = [event for event in log_of(whole) if event["event"] == "sample_video"]
    assert [(event["epoch"], event["step"]) for event in events] == [(1, 3), (2, 6), (3, 9)]
    # The last one is of the generator that the run leaves.
    network = load_generator(whole / "checkpoints" / "latest" / "netG_A_ema.safetensors").network
    source = torch.from_numpy(np.stack([frame.pixels for frame in video_of(clip)._frames]))
    with torch.inference_mode():
        made = network(source.permute(0, 3, 1, 2) / 127.5 - 1).permute(0, 2, 3, 1)
    # Luma, since a video of so few pixels blurs the colours of noise.
    shown, expected, unchanged = (
        each[:, :42, :32] @ np.array([0.299, 0.587, 0.114])
        for each in (
            np.stack(decoded(whole / "samples" / "epoch_0003.mp4")[0]),
            (made.numpy() + 1) * 127.5,
            source.numpy(),
        )
    )
    assert np.abs(shown - expected).mean() < 4
    assert np.abs(shown - unchanged).mean() > 20


@pytest.mark.behaviour(40)
@pytest.mark.parametrize("steps", [4])
def test_a_run_with_a_clip_stopped_and_resumed_equals_one_never_stopped(
    data, options, whole, tmp_path, monkeypatch, steps
):
    monkeypatch.setattr(sample_video, "_SHARE", 100.0)
    folder = tmp_path / "run"
    train(data, folder, steps=steps, **options)
    assert train(data, folder, resume=True).finished
    assert_same(state_of(folder), state_of(whole))
    assert log_of(folder) == log_of(whole)
    for name in ("index.html", *(f"samples/{name}" for name in videos(whole))):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.behaviour(40)
def test_a_clip_changes_nothing_of_the_training(data, options, whole, tmp_path):
    folder = tmp_path / "run"
    assert train(data, folder, **options | {"sample_video": ""}).finished
    assert_same(state_of(folder)["model"], state_of(whole)["model"])
    assert not videos(folder)


def test_a_run_goes_on_where_its_clip_is_gone(data, options, clip, tmp_path):
    own = tmp_path / "own.mp4"
    own.write_bytes(clip.read_bytes())
    folder, said = tmp_path / "run", []
    train(data, folder, steps=2, **options | {"sample_video": str(own)})
    own.unlink()
    assert train(data, folder, resume=True, say=said.append, n_epochs_decay=0).finished
    (sentence,) = [each for each in said if each.startswith("sample_video")]
    assert "own.mp4 does not exist" in sentence
    assert sentence.endswith("; the run goes on without it")
    assert not videos(folder)
    # Another clip may take its place.
    assert train(data, folder, resume=True, n_epochs_decay=1, sample_video=str(clip)).finished
    assert videos(folder) == ["epoch_0003.mp4"]


def test_a_clip_that_goes_away_on_the_way_is_not_read_again(tmp_path, clip):
    own = tmp_path / "own.mp4"
    own.write_bytes(clip.read_bytes())
    video = video_of(own)
    own.write_bytes(b"")
    video.write(tmp_path / "out.mp4", model(netG_A=Negative()))
    assert len(decoded(tmp_path / "out.mp4")[0]) == 12


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not exist"), (b"", "is empty"), (b"text", "cannot read")]
)
def test_a_clip_that_cannot_be_read_errors_before_anything_is_written(
    data, options, tmp_path, content, words
):
    clip, said = tmp_path / "clip.mp4", []
    if content is not None:
        clip.write_bytes(content)
    with pytest.raises(InputError, match=f"^sample_video: .*{words}"):
        train(data, tmp_path / "run", say=said.append, **options | {"sample_video": str(clip)})
    assert not said
    assert not (tmp_path / "run").exists()
