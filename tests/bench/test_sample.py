"""The frames that are measured with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.bench.sample import ComputedSample, sample_of
from cyclegan_batch.errors import InputError
from cyclegan_batch.models.card import ModelCard
from cyclegan_batch.models.model import open_model
from tests.synthesis import generators, pictures, streams


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    return open_model(generators.identity(tmp_path / "model.onnx", multiple_of="4")).card


def test_the_computed_clip_has_the_frames_that_are_asked_for_and_repeats(tmp_path):
    sample = ComputedSample((38, 51))
    assert sample.size == (38, 52)
    path, options = sample.inputs(120, tmp_path / "in")
    assert options == 120
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 150  # whole turns of 50
    assert [frame.pts for frame in frames] == sorted({frame.pts for frame in frames})
    pixels = [frame.to_ndarray(format="rgb24").astype(int) for frame in frames]
    assert pixels[0].shape == (38, 52, 3)
    assert np.abs(pixels[0] - pixels[50]).max() == 0
    assert np.abs(pixels[0] - pixels[25]).mean() > 5  # it moves


def test_the_computed_clip_has_the_size_of_the_model_or_of_the_option(card, tmp_path):
    def size(card: ModelCard, option: object) -> object:
        sample = sample_of(None, card, option, tmp_path / "out")  # type: ignore[arg-type]
        assert isinstance(sample, ComputedSample)
        return sample.size

    assert size(card, "native") == (256, 256)
    assert size(replace(card, trained_size=128), "native") == (128, 128)
    assert size(card, 30) == (32, 32)
    assert size(card, (30, 44)) == (32, 44)
    fixed = replace(card, sizes=replace(card.sizes, fixed=(64, 96)))
    assert size(fixed, (30, 44)) == (64, 96)


def test_a_video_is_used_as_it_is(card, tmp_path):
    clip = streams.mp4(tmp_path / "clip.mp4", frames=5)
    sample = sample_of(clip, card, "native", tmp_path / "out")
    assert sample.kind == "video"
    assert sample.inputs(3, tmp_path / "in") == (clip, 3)


def test_images_are_used_again_where_more_frames_are_needed(card, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(pictures.photo(seed=number)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    sample = sample_of(folder, card, "native", tmp_path / "out")
    assert (sample.kind, sample.words) == ("images", f"{folder}, 3 images")
    path, options = sample.inputs(7, tmp_path / "in")
    made = sorted(path.iterdir())
    assert (len(made), options) == (7, None)
    assert made[0].read_bytes() == made[3].read_bytes() == (folder / "0.png").read_bytes()
    one = sample_of(folder / "1.png", card, "native", tmp_path / "out")
    assert len(list(one.inputs(4, tmp_path / "again")[0].iterdir())) == 4


def test_what_is_nothing_to_measure_with_is_refused(card, tmp_path):
    unread = tmp_path / "photo.cr2"
    unread.write_bytes(b"raw")
    for path in (tmp_path / "missing.mp4", Path("-"), unread):
        with pytest.raises(InputError):
            sample_of(path, card, "native", tmp_path / "out")
