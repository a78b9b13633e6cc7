"""The parity measure and the limits of its classes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cyclegan_batch.frames import Pixels
from cyclegan_batch.models.parity import REQUIRED_CLASS, Parity, natural_frames, parity

GREY = np.full((1, 100, 100, 3), 100, np.uint8)


def moved(*levels_and_counts: tuple[int, int]) -> Pixels:
    """Return GREY with ``count`` values raised by ``levels``, for each pair."""
    out = GREY.copy().ravel()
    begin = 0
    for levels, count in levels_and_counts:
        out[begin : begin + count] += levels
        begin += count
    return out.reshape(GREY.shape)


def test_nothing_differs_is_exact() -> None:
    assert parity(GREY, GREY) == Parity(psnr=math.inf, max=0.0, p999=0.0, within2=1.0, cls="exact")


@pytest.mark.behaviour(33)
@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (moved((1, 30_000)), "exact"),  # every value by one
        (moved((2, 1)), "half"),  # one value by two
        (moved((2, 10_000)), "near"),  # within two all of it, but 49.7 dB
        (moved((4, 30)), "half"),  # 99.9 % within two
        (moved((4, 31)), "near"),  # a little less
        (moved((3, 300)), "near"),  # 99 % within two
        (moved((3, 301)), "coarse"),
        (moved((2, 30_000)), "coarse"),  # 42.1 dB
        (moved((4, 30_000)), "coarse"),  # 36.1 dB
        (moved((5, 30_000)), "none"),  # 34.2 dB
    ],
)
def test_the_classes_end_where_the_contract_says(found: Pixels, expected: str) -> None:
    assert parity(found, GREY).cls == expected
    assert parity(GREY, found).cls == expected


def test_the_numbers_are_grey_levels_decibels_and_shares() -> None:
    found = parity(moved((4, 3_000)), GREY)
    assert found.max == found.p999 == 4.0
    assert parity(moved((4, 30)), GREY).p999 == 0.0
    assert parity(moved((4, 31)), GREY).p999 == 4.0
    assert found.within2 == pytest.approx(0.9)
    assert found.psnr == pytest.approx(20 * math.log10(255 / math.sqrt(1.6)))
    assert str(found) == "coarse: 46.1 dB, 90.00% within 2 levels, 99.9 % within 4, largest 4"


def test_float16_is_measured_in_grey_levels_too() -> None:
    one = np.full((2, 2, 3), 0.5, np.float16)
    other = np.full((2, 2, 3), 0.5 + 4 / 256, np.float16)
    assert parity(one, other).max == pytest.approx(255 * 4 / 256)
    assert parity(moved((1, 5)), (moved((1, 5)) / 255).astype(np.float16)).cls == "exact"


@pytest.mark.behaviour(33)
def test_nan_is_in_no_class() -> None:
    found = parity(np.full((2, 2, 3), np.nan, np.float16), np.zeros((2, 2, 3), np.float16))
    assert found.cls == "none"
    assert not found.reaches("coarse")


def test_a_closer_class_reaches_a_further_one() -> None:
    exact = parity(GREY, GREY)
    near = parity(moved((3, 300)), GREY)
    assert all(exact.reaches(needed) for needed in REQUIRED_CLASS.values())
    assert near.reaches("near")
    assert near.reaches("coarse")
    assert not near.reaches("half")


def test_pictures_of_different_sizes_errors() -> None:
    with pytest.raises(ValueError, match="must be equal"):
        parity(GREY, GREY[:, :50])


def test_computed_frames_have_edges_and_flat_ground_and_are_always_the_same() -> None:
    frames = natural_frames((96, 128), 2)
    assert (frames.shape, frames.dtype) == ((2, 96, 128, 3), np.uint8)
    assert np.array_equal(frames, natural_frames((96, 128), 2))
    assert not np.array_equal(frames[0], frames[1])
    steps = np.abs(np.diff(frames.astype(int), axis=2)).max(axis=3)
    assert 0.4 < np.mean(steps <= 3) < 0.95
    assert np.mean(steps > 30) > 0.02
    assert natural_frames((1, 1), 1).shape == (1, 1, 1, 3)
