"""The demo: its sources, its model inside the contract, its results and its sheet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import demo, open_generator
from cyclegan_batch.demo.landscapes import DAY, NIGHT, window
from cyclegan_batch.job.job_folder import FOLDER
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import parity


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, told: list[str]) -> Iterator[demo.Demo]:
    """Run the demo with a clip of one second: drawing the four takes most of a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "_SECONDS", 1)
        patch.setattr(demo, "_MOMENTS", tuple(moment // 4 for moment in demo._MOMENTS))
        yield demo.run_demo(tmp_path_factory.mktemp("demo") / "new folder", say=told.append)


def _frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_demo_clip_moves_and_sounds(made):
    with av.open(str(made.clip)) as container:
        (audio,) = container.streams.audio
        assert audio.codec_context.name == "aac"
        sound = np.concatenate([f.to_ndarray() for f in container.decode(audio)], axis=1)
    assert np.sqrt((sound**2).mean()) > 0.02
    frames = _frames(made.clip)
    assert (len(frames), frames[0].shape) == (25, (360, 640, 3))
    steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(frames)]
    assert min(steps) > 1.0, "every frame must differ from the one before"


@pytest.mark.behaviour(1, 2, 3)
def test_the_demo_clip_comes_back_whole_in_time_with_its_sound(made):
    times, sounds = [], []
    for path in (made.clip, made.translated_clip):
        with av.open(str(path)) as container:
            times.append(
                [(f.pts * f.time_base, f.width, f.height) for f in container.decode(video=0)]
            )
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(audio=0) if packet.size]
            sounds.append([(p.pts * p.time_base, p.duration, bytes(p)) for p in packets])
    assert len(times[0]) == 25
    assert times[1] == times[0]
    assert sounds[1] == sounds[0]


@pytest.mark.behaviour(13, 15)
def test_every_demo_picture_comes_back_at_its_size_with_its_alpha(made):
    names = {p.relative_to(made.pictures) for p in made.pictures.rglob("*") if p.is_file()}
    results = made.translated_pictures
    assert len(names) == 6
    found = {p.relative_to(results) for p in results.rglob("*") if p.is_file()}
    assert {name for name in found if name.parts[0] != FOLDER} == names
    for name in names:
        with Image.open(made.pictures / name) as source, Image.open(results / name) as result:
            assert (result.size, result.format) == (source.size, source.format)
            if source.mode == "RGBA":
                assert result.getchannel("A").tobytes() == source.getchannel("A").tobytes()


def test_the_demo_translation_is_nearer_to_the_truth_than_its_source(made, told):
    before, after = demo.distances(made)
    # An image of the mean colour of the night alone would reach 17 dB.
    assert before < 10
    assert after > 20
    (sentence,) = (line for line in told if line.startswith("PSNR to the truth: "))
    assert f"{before:.1f} dB" in sentence
    assert f"{after:.1f} dB" in sentence


def test_the_demo_model_makes_night_of_valleys_that_it_never_saw():
    day, night = (
        np.stack([window(seed, light) for seed in range(2_000_000, 2_000_016)])
        for light in (DAY, NIGHT)
    )
    with open_generator(demo.MODEL) as generator:
        made = generator(day)
    before, after = (
        np.mean([parity(*pair).psnr for pair in zip(pictures, night, strict=True)])
        for pictures in (day, made)
    )
    assert after > before + 8
    assert after > 20
    # The best map of colours alone: the affine one that is fitted to the truth of these images.
    colours = np.concatenate([day.reshape(-1, 3), np.ones((day.size // 3, 1))], axis=1)
    fit, *_ = np.linalg.lstsq(colours, night.reshape(-1, 3), rcond=None)
    mapped = (colours @ fit).reshape(night.shape)
    assert after > np.mean([parity(*pair).psnr for pair in zip(mapped, night, strict=True)])


def test_the_demo_model_is_a_small_trained_generator_inside_the_contract(made, told):
    assert "trained on drawn valleys" in told[0]
    card = open_model(made.model).card
    assert (card.direction, card.precision, card.trained_size) == ("AtoB", "fp32", 128)
    assert demo.MODEL.stat().st_size <= 1_000_000


def test_the_demo_names_its_results_at_the_end(made, told):
    results = made.translated_clip, made.comparison, made.translated_pictures, made.sheet
    assert [line.rpartition(": ")[2] for line in told[-4:]] == list(map(str, results))


def test_the_demo_shows_its_clip_by_day_left_of_a_line_and_by_night_right_of_it(made):
    frames = _frames(made.comparison)
    assert len(frames) == 25
    first = frames[0][40:].astype(int)
    assert first[:, :300].mean() > 2 * first[:, 340:].mean()


def test_the_demo_sheet_shows_the_result_and_the_truth_below_their_source(made):
    with Image.open(made.sheet) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    # The first frame of the clip lies below the title, then its translation, then the truth.
    source, result, truth = (pixels[top : top + 150, 40:320].mean() for top in (50, 232, 410))
    assert source > 2 * result
    assert abs(result - truth) < 15


def test_the_demo_model_takes_any_size(made):
    with open_generator(made.model) as generator:
        for size in ((1, 1), (3, 5), (37, 53)):
            frames = np.full((2, *size, 3), 90, np.uint8)
            assert generator(frames).shape == frames.shape
