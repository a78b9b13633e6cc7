"""The filter against a plain transcription of its formula, and what it must not do."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from cyclegan_batch.temporal.flow_filter import FlowFilter, filter_bytes, frames_to_forget
from cyclegan_batch.temporal.motion import Motion, grey_of, is_cut, likeness


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


def texture(height: int, width: int, seed: int = 0, sigma: float = 2.0) -> np.ndarray:
    """Return an RGB picture of smooth noise over the whole range of levels."""
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.clip((smooth - 0.5) * 3.5 * sigma * 255 + 128, 0, 255).astype(np.uint8)


def noisy(picture: np.ndarray, seed: int, levels: int = 2) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-levels, levels + 1, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def panned(count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """Return frames of a camera that moves by 3 pixels to the right and 1 down."""
    wide = texture(height + count, width + 3 * count)
    return [np.ascontiguousarray(wide[t : t + height, 3 * t : 3 * t + width]) for t in range(count)]


def transcribed(
    now: np.ndarray, before: np.ndarray, translated: np.ndarray, past: np.ndarray, strength: float
) -> np.ndarray:
    """Return O_t in levels, in float64, for frames whose working size is their own."""
    flow = Motion().between(grey_of(now), grey_of(before))
    d = now - np.rint(drawn(before.astype(np.float64), flow, linear_weights))
    difference = drawn(past, flow, cubic_weights) - translated
    coarse = cells(difference)
    exponent = cells((d**2).mean(axis=2, keepdims=True)) / (0.06 * 255) ** 2
    exponent += (around(cells(d)) ** 2).mean(axis=2, keepdims=True) / (0.03 * 255) ** 2
    exponent += (coarse**2).mean(axis=2, keepdims=True) / (0.2 * 255) ** 2
    mask = np.exp(-exponent)
    change = 0.75 * strength * between_cells(mask) * difference
    change += (strength**0.75 - 0.75 * strength) * between_cells(mask * coarse)
    shift = now.mean(axis=(0, 1)) - before.mean(axis=(0, 1))
    steady = np.exp(-(shift**2).mean() / (0.008 * 255) ** 2)
    means = (mask * coarse).mean(axis=(0, 1))
    change += steady * (np.sqrt(strength) - strength**0.75) * means
    return np.clip(translated + change, 0, 255)


def cells(picture: np.ndarray) -> np.ndarray:
    height, width, channels = picture.shape
    return picture.reshape(height // 4, 4, width // 4, 4, channels).mean(axis=(1, 3))


def between_cells(means: np.ndarray) -> np.ndarray:
    """Return values between the middles of the cells, and those of the border beyond them."""
    for axis in (0, 1):
        count = means.shape[axis]
        places = np.clip((np.arange(4 * count) + 0.5) / 4 - 0.5, 0, count - 1)
        first = np.minimum(places.astype(int), count - 2)
        rest = (places - first).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        means = means.take(first, axis) * (1 - rest) + means.take(first + 1, axis) * rest
    return means


def around(picture: np.ndarray) -> np.ndarray:
    """Return the mean over 3×3, reflected at the border without repeating it."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    return windows.mean(axis=(-2, -1))


def drawn(picture: np.ndarray, flow: np.ndarray, weights) -> np.ndarray:
    """Return ``picture[p + flow[p]]``, the place rounded to 1/32 pixel, as OpenCV does."""
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    x = np.rint((columns + flow[..., 0]).astype(np.float32) * 32) / 32
    y = np.rint((rows + flow[..., 1]).astype(np.float32) * 32) / 32
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    total = np.zeros(picture.shape)
    for down, vertical in weights(y - top):
        for right, horizontal in weights(x - left):
            row = np.clip(top + down, 0, height - 1)
            column = np.clip(left + right, 0, width - 1)
            total += (vertical * horizontal)[..., np.newaxis] * picture[row, column]
    return total


def linear_weights(t: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(0, 1 - t), (1, t)]


def cubic_weights(t: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return Keys' cubic convolution with a = −0.75 at the four pixels around a place."""
    a = -0.75

    def near(s: np.ndarray) -> np.ndarray:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1

    def far(s: np.ndarray) -> np.ndarray:
        return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a

    return [(-1, far(1 + t)), (0, near(t)), (1, near(1 - t)), (2, far(2 - t))]


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.9])
def test_a_clip_is_filtered_as_the_formula_says(strength):
    sources = panned(5)
    outputs = [noisy(255 - frame, seed, 25) for seed, frame in enumerate(sources)]
    filtered = FlowFilter(strength)
    past = outputs[0].astype(np.float64)
    assert np.array_equal(filtered(sources[0], outputs[0]), outputs[0])
    for now, before, translated in zip(sources[1:], sources[:-1], outputs[1:], strict=True):
        past = transcribed(now, before, translated, past, strength)
        ours = filtered(now, translated)
        # Half a level of rounding; and a pixel of W I_{t−1}, which is rounded too, may go the
        # other way, which changes m a little.
        assert np.abs(ours - past).max() < 0.75
        assert np.abs(ours.astype(int) - translated).max() > 5


def test_float16_frames_are_filtered_like_those_of_8_bits():
    sources = panned(4)
    outputs = [noisy(255 - frame, seed, 25) for seed, frame in enumerate(sources)]
    by_levels, by_halves = FlowFilter(), FlowFilter()
    for source, translated in zip(sources, outputs, strict=True):
        half = (translated / np.float32(255)).astype(np.float16)
        expected = by_levels(source, translated)
        ours = by_halves((source / np.float32(255)).astype(np.float16), half)
        assert ours.dtype == np.float16
        assert np.abs(ours.astype(np.float32) * 255 - expected).max() < 1.0


def test_without_strength_nothing_changes():
    off = FlowFilter(0.0)
    for seed, frame in enumerate(panned(3)):
        assert off(frame, translated := noisy(frame, seed, 25)) is translated


@pytest.mark.parametrize("strength", [-0.1, 0.91, float("nan")])
def test_a_strength_outside_its_range_is_refused(strength):
    with pytest.raises(ValueError, match=r"0\.\.0\.9"):
        FlowFilter(strength)


def test_a_translation_of_another_size_is_refused():
    with pytest.raises(ValueError, match="64, 64, 3"):
        FlowFilter()(texture(64, 64), texture(64, 80))


def test_the_first_frame_of_a_scene_is_the_translated_one():
    first, second = panned(4), [255 - frame for frame in panned(4)[::-1]]
    second = [np.ascontiguousarray(frame // 3) for frame in second]
    filtered = FlowFilter()
    changed = []
    for seed, source in enumerate(first + second):
        translated = noisy(source, seed, 25)
        changed.append(not np.array_equal(filtered(source, translated), translated))
    assert changed == [False, True, True, True, False, True, True, True]


def test_after_a_reset_and_at_another_size_it_begins_anew():
    filtered = FlowFilter()
    frames = panned(3)
    filtered(frames[0], frames[0])
    filtered.reset()
    translated = noisy(frames[1], 1, 25)
    assert filtered(frames[1], translated) is translated
    other = texture(80, 72)
    assert filtered(other, other) is other
    assert not np.array_equal(filtered(other, noisy(other, 2, 25)), noisy(other, 2, 25))


def test_the_noise_of_a_still_clip_is_averaged():
    still, drawing = texture(96, 128), texture(96, 128, seed=9)
    filtered = FlowFilter(0.5)
    before, after = [], []
    for seed in range(40):
        translated = noisy(drawing, 100 + seed, 2)
        result = filtered(noisy(still, seed, 2), translated)
        if seed >= 10:
            before.append(translated.astype(np.float64) - drawing)
            after.append(result.astype(np.float64) - drawing)
    # A recursion with weight w keeps (1 − w)/(1 + w) of the variance: of the coarse part, where it
    # is 0.5^¾, 0.25, of the fine part, where it is 0.375, 0.45. Rounding to 8 bits adds 1/12.
    assert np.var(after) < 0.6 * np.var(before) + 1 / 12
    assert abs(np.mean(after)) < 0.05


def test_the_pumping_of_a_still_clip_is_averaged():
    still, drawing = texture(96, 128), texture(96, 128, seed=9) // 2 + 60
    filtered = FlowFilter(0.5)
    shifts = np.random.default_rng(5).integers(-6, 7, 40)
    results = [filtered(still, (drawing + shift).astype(np.uint8)) for shift in shifts]
    left = [float(np.mean(result.astype(np.float64) - drawing)) for result in results]
    held = [float(shifts[0])]
    for shift in shifts[1:]:
        held.append(shift + np.sqrt(0.5) * (held[-1] - shift))
    # The mask lets a little less through where the colours differ more.
    assert np.abs(np.subtract(left, held)).max() < 0.75
    assert np.abs(np.diff(left[10:], 2)).mean() < 0.35 * np.abs(np.diff(shifts[10:], 2)).mean()


@pytest.mark.parametrize("rate", [0.5, 2, 5])
def test_the_mean_colour_follows_that_of_the_source(rate):
    """In a fade the mean colour lags by what the recursion makes up, and by no more."""
    picture = texture(96, 128) / 2 + 120
    filtered = FlowFilter(0.5)
    for frame in range(24):
        source = (picture - rate * frame).astype(np.uint8)
        translated = 255 - source
        lag = filtered(source, translated).astype(np.float64) - translated
        # Of a steady change, a recursion with weight w lags by w/(1 − w) frames, with w = 0.5^¾.
        assert np.abs(lag.mean()) <= 1.47 * rate + 0.6
        assert np.abs(lag).max() <= 4


def test_what_was_before_does_not_shine_through_a_fade():
    picture = texture(96, 128).astype(np.float64)
    filtered = FlowFilter(0.5)
    for frame in range(24):
        source = (picture * (1 - frame / 23)).astype(np.uint8)
        translated = 255 - source
        assert np.abs(filtered(source, translated).astype(int) - translated).max() <= 6


def test_a_flash_leaves_no_trace():
    picture = texture(96, 128) // 2
    filtered = FlowFilter(0.5)
    for frame in range(9):
        source = noisy(picture + 90 * (frame % 4 == 2), frame).astype(np.uint8)
        translated = 255 - source
        result = filtered(source, translated)
        if frame % 4 in (2, 3):
            assert np.array_equal(result, translated)


def test_a_translation_that_leaves_its_source_is_not_blended_with_what_it_was():
    """The source is flat, so it shows no flow; the translation jumps."""
    source = np.full((96, 128, 3), 90, np.uint8)
    drawings = [texture(96, 128, seed, 6.0) for seed in (1, 2)]
    filtered = FlowFilter(0.5)
    for frame in range(8):
        translated = drawings[frame // 4]
        result = filtered(source, translated)
        coarse = cells(result.astype(np.float64) - translated)
        # w·x·exp(−x²/0.2²) is at most w·0.2·0.43, of 255, with w = √0.5: as the mean of channels.
        assert np.sqrt((coarse**2).mean(axis=2)).max() < 12.0
        jump = cv2.absdiff(drawings[0], drawings[1])
    assert jump.mean() > 50


@pytest.mark.parametrize(
    ("strength", "frames"), [(0.01, 2), (0.3, 6), (0.5, 9), (0.7, 18), (0.9, 60)]
)
def test_the_first_frame_is_forgotten_when_half_a_level_of_it_is_left(strength, frames):
    assert frames_to_forget(strength) == frames
    assert 255 * strength**frames <= 0.5 < 255 * strength ** (frames - 1)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.0, float("nan")])
def test_what_is_never_forgotten_is_refused(strength):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        frames_to_forget(strength)


def test_the_arrays_of_a_filter_are_counted():
    tracemalloc.start()
    try:
        filtered, source = FlowFilter(), texture(720, 1280)
        before = tracemalloc.get_traced_memory()[0]
        filtered(source, source)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # The source at working size is held too: it is not counted.
    assert filter_bytes((720, 1280)) == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize("start", [4, 9])
def test_a_run_that_begins_nine_frames_early_gives_the_same_frames(start):
    sources = panned(24)
    outputs = [noisy(255 - frame, seed, 25) for seed, frame in enumerate(sources)]
    whole, part = FlowFilter(0.5), FlowFilter(0.5)
    all_frames = [whole(*pair) for pair in zip(sources, outputs, strict=True)]
    some = [part(*pair) for pair in zip(sources[start:], outputs[start:], strict=True)]
    for expected, ours in zip(all_frames[start + 9 :], some[9:], strict=True):
        assert np.abs(expected.astype(int) - ours).max() <= 1


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 40), (7, 9), (20, 300), (300, 20), (31, 600), (65, 63), (541, 543)]
)
def test_frames_of_any_size_are_filtered(size):
    """OpenCV's DIS ends the process at some of these sizes."""
    source = texture(*size)
    filtered = FlowFilter()
    for seed in range(3):
        result = filtered(source, noisy(source, seed))
        assert result.shape == source.shape
        assert np.abs(result.astype(int) - source).max() <= 3


@pytest.mark.parametrize("effort", ["low", "usual", "best"])
@pytest.mark.parametrize("size", [(1, 1), (20, 300), (31, 600), (33, 1000), (65, 63)])
def test_a_flow_has_the_size_of_its_frames(effort, size):
    grey = grey_of(texture(*size))
    flow = Motion(effort).between(grey, grey)
    assert flow.shape == (*size, 2)
    assert np.abs(flow).max() < 0.01


def test_large_frames_follow_their_motion_too():
    """Their flow is computed at half the size."""
    wide = texture(620, 800, sigma=6.0)
    filtered, still = FlowFilter(0.5), []
    for frame in range(4):
        source = np.ascontiguousarray(wide[2 * frame :][:600, 4 * frame : 4 * frame + 640])
        drawing = 255 - source
        result = filtered(source, noisy(drawing, frame, 20))
        still.append(np.var(result[40:-40, 40:-40].astype(np.float64) - drawing[40:-40, 40:-40]))
    assert still[3] < 0.65 * still[0]


def test_a_value_that_is_no_number_does_not_spread():
    filtered = FlowFilter()
    source = texture(64, 64)
    for frame in range(3):
        translated = (source / np.float32(255)).astype(np.float16)
        if frame == 1:
            translated[30, 30] = np.nan
        result = filtered(source, translated)
    assert np.isfinite(result).all()


def test_a_cut_is_told_from_motion():
    for other, cut in ((panned(2)[1], False), (texture(96, 128, seed=8), True)):
        now, before = other, panned(2)[0]
        flow = Motion().between(grey_of(now), grey_of(before))
        assert is_cut(likeness(now, before, flow)) == cut


def test_the_flow_finds_the_motion():
    now, before = (grey_of(frame) for frame in panned(2)[::-1])
    flow = Motion().between(now, before)
    assert np.allclose(np.median(flow, axis=(0, 1)), [3, 1], atol=0.25)
