"""The measures of flicker against their formulas, and against what they must tell apart."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from cyclegan_batch.temporal.consistency import (
    Flicker,
    FlickerMeter,
    blurred,
    control_sigma,
    psnr,
    sharpness,
    shown_before,
)

from .test_flow_filter import noisy, panned, texture


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def measured(sources: list[np.ndarray], *translations: list[np.ndarray]) -> list[Flicker]:
    meter = FlickerMeter(len(translations))
    for source, *frames in zip(sources, *translations, strict=True):
        meter.add(source, frames)
    return meter.results()


def gaussian(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Return a Gaussian blur in float64, reflected at the border without repeating it."""
    half = int(np.ceil(6 * sigma))
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(picture, ((half, half), (half, half), (0, 0)), mode="reflect")
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights), axis)
        padded = windows @ weights
    return padded


def test_on_a_still_source_the_error_is_the_mean_square_of_what_changes():
    still = texture(64, 80)
    frames = [noisy(texture(64, 80, seed=3), seed, 30) for seed in range(4)]
    (flicker,) = measured([still] * 4, frames)
    levels = [frame / 255 for frame in frames]
    expected = np.mean([(one - two) ** 2 for one, two in itertools.pairwise(levels)])
    assert flicker.error == pytest.approx(expected, rel=1e-4)
    coarse = [gaussian(frame, 2.0) for frame in levels]
    expected = np.mean([(one - two) ** 2 for one, two in itertools.pairwise(coarse)])
    assert flicker.coarse_error == pytest.approx(expected, rel=1e-2)


def test_pump_is_the_second_difference_of_the_means():
    still = texture(64, 80)
    base = texture(64, 80, seed=3) // 2 + 40
    shifts = [0, 5, 2, 2, -4]
    frames = [(base.astype(int) + shift).astype(np.uint8) for shift in shifts]
    (flicker,) = measured([still] * 5, frames)
    assert flicker.pump == pytest.approx(np.mean([8, 3, 6]), abs=1e-9)


def test_sharpness_is_the_mean_gradient():
    picture = texture(40, 56)
    numbers = picture.astype(np.float64)
    expected = np.abs(np.diff(numbers, axis=0)).mean() + np.abs(np.diff(numbers, axis=1)).mean()
    assert sharpness(picture) == pytest.approx(expected)
    assert sharpness(picture[:1, :1]) == 0.0


def test_psnr():
    black = [np.zeros((4, 4, 3), np.uint8)] * 2
    grey = [np.full((4, 4, 3), 10, np.uint8), np.zeros((4, 4, 3), np.uint8)]
    assert psnr(black, grey) == pytest.approx(10 * np.log10(255**2 / 50))
    assert psnr(black, black) == float("inf")
    with pytest.raises(ValueError, match="no frame"):
        psnr([], [])


def test_what_moves_with_its_source_does_not_flicker():
    sources = panned(6)
    steady = [255 - frame for frame in sources]
    crawling = [noisy(frame, seed, 30) for seed, frame in enumerate(steady)]
    still = [steady[0]] * 6
    moving, crawls, stays = measured(sources, steady, crawling, still)
    assert moving.error < 0.15 * crawls.error
    assert moving.error < 0.02 * stays.error
    assert moving.coarse_error < 0.02 * stays.coarse_error


def test_a_blur_lowers_the_error_and_hardly_the_coarse_one():
    sources = panned(5)
    frames = [noisy(255 - frame, seed, 30) for seed, frame in enumerate(sources)]
    plain, blur = measured(sources, frames, [blurred(frame, 0.6) for frame in frames])
    assert blur.error < 0.6 * plain.error
    assert blur.coarse_error > 0.85 * plain.coarse_error


def test_nothing_is_measured_across_a_cut():
    first, second = [texture(64, 80)] * 3, [texture(64, 80, seed=8)] * 3
    (flicker,) = measured(first + second, first + second)
    assert flicker.error == flicker.coarse_error == flicker.pump == 0.0


def test_of_one_frame_only_the_sharpness_is_known():
    frame = texture(64, 80)
    (flicker,) = measured([frame], [frame])
    assert np.isnan([flicker.error, flicker.coarse_error, flicker.pump]).all()
    assert flicker.sharpness == sharpness(frame)
    with pytest.raises(ValueError, match="no frame"):
        FlickerMeter(1).results()


def test_float16_frames_are_measured_like_those_of_8_bits():
    sources = panned(3)
    frames = [noisy(255 - frame, seed, 30) for seed, frame in enumerate(sources)]
    halves = [(frame / np.float32(255)).astype(np.float16) for frame in frames]
    assert len(set(measured(sources, frames, halves))) == 1


def test_the_control_costs_as_much_sharpness():
    frames = [texture(64, 80, seed, 1.0) for seed in range(3)]
    for ratio in (0.9, 0.8, 0.5):
        sigma = control_sigma(frames, ratio)
        left = sum(sharpness(blurred(frame, sigma)) for frame in frames)
        assert left / sum(map(sharpness, frames)) == pytest.approx(ratio, abs=0.01)
    assert control_sigma(frames, 1.0) == control_sigma(frames, 1.2) == 0.0


def test_pixels_that_were_hidden_are_left_out():
    """A square moves by 4 pixels over a background that stays."""
    flow, back = (np.zeros((40, 60, 2), np.float32) for _ in range(2))
    flow[10:30, 24:44, 0] = -4
    back[10:30, 20:40, 0] = 4
    mask = shown_before(flow, back)
    assert mask[15:25, 30:38].all()
    assert mask[:8].all()
    # Uncovered: the background says that it was there, where the square was.
    assert not mask[15:25, 20:23].any()
    assert not mask[15:25, 24].any()  # the flow changes abruptly


def test_what_came_in_over_the_border_is_left_out():
    flow, back = (np.zeros((40, 60, 2), np.float32) for _ in range(2))
    flow[..., 0], back[..., 0] = 3, -3
    mask = shown_before(flow, back)
    assert mask[:, :57].all()
    assert not mask[:, 57:].any()
