"""The pairs of benchmarks/harbour.py: one town in two seasons, and no colour that tells which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import harbour


def test_the_test_pairs_are_the_same_towns_and_the_training_images_are_not(tmp_path: Path) -> None:
    harbour.write_harbours(tmp_path, 3, 64, held_out=2)
    names = {
        part: [path.name for path in sorted((tmp_path / part).iterdir())]
        for part in ("trainA", "trainB", "testA", "testB")
    }
    assert len(names["trainA"]) == len(names["trainB"]) == 3
    assert not set(names["trainA"]) & set(names["trainB"])
    assert names["testA"] == names["testB"]
    for name in names["testA"]:
        summer, winter = (Image.open(tmp_path / f"test{letter}" / name) for letter in "AB")
        assert summer.size == winter.size == (64, 64)
        number = int(name.removesuffix(".png"))
        assert np.array_equal(summer, harbour.window(number, harbour.SUMMER, 64))
        assert np.array_equal(winter, harbour.window(number, harbour.WINTER, 64))


def test_a_coast_has_its_own_towns_and_colours(tmp_path: Path) -> None:
    images = []
    for coast in ("home", "elsewhere"):
        harbour.write_harbours(tmp_path / coast, 1, 64, held_out=1, coast=coast)
        images.append(np.array(Image.open(tmp_path / coast / "testA" / "00002.png")))
    elsewhere = harbour.window(1_000_002, harbour.ELSEWHERE_SUMMER, 64)
    assert np.array_equal(images[1], elsewhere)
    assert not np.array_equal(elsewhere, harbour.window(1_000_002, harbour.SUMMER, 64))
    assert not np.array_equal(*images)


def test_no_colour_curve_translates_summer_into_winter() -> None:
    """A table of colours that was fitted to the truth itself stays far from it."""
    summer, winter = (
        np.stack([harbour.window(seed, season, 64) for seed in range(16)]).astype(np.float64)
        for season in (harbour.SUMMER, harbour.WINTER)
    )
    place = (summer // 32).astype(int) @ [64, 8, 1]
    fitted = np.empty_like(winter)
    for channel in range(3):
        count = np.bincount(place.ravel(), minlength=512)
        total = np.bincount(place.ravel(), winter[..., channel].ravel(), 512)
        fitted[..., channel] = (total / np.maximum(count, 1))[place]
    errors = [np.mean((image - winter) ** 2) for image in (fitted, winter.mean((0, 1, 2)), summer)]
    psnr, of_mean, of_input = (10 * np.log10(255**2 / error) for error in errors)
    assert of_input < of_mean < psnr < 17
