"""The pairs of benchmarks/harbour.py: one town in two seasons, and no colour that tells which."""

from __future__ import annotations

import itertools
from dataclasses import fields
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
    drawn = []
    for coast, (summer, _) in harbour.COASTS.items():
        harbour.write_harbours(tmp_path / coast, 1, 64, held_out=1, coast=coast)
        drawn.append(np.array(Image.open(tmp_path / coast / "testA" / "00002.png")))
        assert np.array_equal(drawn[-1], harbour.window(harbour.FIRST_TOWN[coast] + 2, summer, 64))
    for one, other in itertools.combinations(drawn, 2):
        assert not np.array_equal(one, other)
    summers = [harbour.window(7, summer, 64) for summer, _ in harbour.COASTS.values()]
    for one, other in itertools.combinations(summers, 2):
        assert not np.array_equal(one, other)


def test_a_repainted_coast_has_each_colour_moved_alike_in_both_seasons() -> None:
    moves = [
        {
            field.name: np.array(getattr(new, field.name)) - np.array(getattr(old, field.name))
            for field in fields(harbour.Season)
        }
        for old, new in zip(harbour.COASTS["elsewhere"], harbour.COASTS["repainted"], strict=True)
    ]
    for summer, winter in zip(moves[0].values(), moves[1].values(), strict=True):
        assert 0 < np.abs(summer).max() <= 40
        assert 0 < np.abs(winter).max() <= 40
        # Apart from channels at an end of the scale, which move less.
        assert np.all((summer == winter) | (np.sign(summer) * np.sign(winter) >= 0))


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
