"""Drawn landscapes: the same valley in every light, and two domains with a known truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cyclegan_batch import cli
from cyclegan_batch.demo import landscapes
from cyclegan_batch.demo.landscapes import DAY, NIGHT, Landscape, window, write_domains
from cyclegan_batch.errors import OutputError


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_seed_is_a_valley_and_another_seed_another_one():
    first = Landscape((72, 128), 5).at(1.5)
    assert (first.shape, first.dtype) == ((72, 128, 3), np.uint8)
    assert np.array_equal(first, Landscape((72, 128), 5).at(1.5))
    assert np.abs(first.astype(int) - Landscape((72, 128), 6).at(1.5)).mean() > 5


def test_the_camera_drifts():
    landscape = Landscape((72, 128), 5)
    assert np.abs(landscape.at(0).astype(int) - landscape.at(0.5)).mean() > 1


def test_night_is_dark_and_its_windows_shine():
    valleys = [Landscape((180, 320), seed) for seed in range(4)]
    for valley in valleys:
        day, night = valley.at().astype(int), valley.at(0, NIGHT).astype(int)
        assert night.mean() < 0.5 * day.mean()
        warm = np.abs(night - NIGHT.window).max(axis=-1) < 3
        assert warm.sum() > 20
        assert (night[warm].mean(axis=-1) > day[warm].mean(axis=-1) + 40).all()


def test_no_colour_table_turns_day_into_night():
    """The table that fits other valleys best fails, since white is cloud, snow and wall."""

    def pairs(seeds: range) -> tuple[np.ndarray, np.ndarray]:
        day, night = (np.stack([window(s, light) for s in seeds]) for light in (DAY, NIGHT))
        cells = day.astype(int) // 16
        return (cells[..., 0] * 16 + cells[..., 1]) * 16 + cells[..., 2], night.astype(float)

    colours, night = pairs(range(40))
    count = np.bincount(colours.ravel(), minlength=16**3)
    table = (
        np.stack(
            [np.bincount(colours.ravel(), night[..., c].ravel(), 16**3) for c in range(3)], axis=-1
        )
        / np.maximum(count, 1)[:, np.newaxis]
    )
    table[count == 0] = night.mean(axis=(0, 1, 2))
    colours, night = pairs(range(100, 120))
    error = ((table[colours] - night) ** 2).mean(axis=(1, 2, 3))
    assert 15 < (10 * np.log10(255**2 / error)).mean() < 26


def test_a_window_is_square_and_shows_the_same_in_both_lights():
    day, night = window(3, DAY, side=64), window(3, NIGHT, side=64)
    assert day.shape == night.shape == (64, 64, 3)
    # Most edges by day are edges by night too, since the valley is the same.
    edges = [np.abs(np.diff(view.astype(float).mean(axis=-1))).ravel() for view in (day, night)]
    assert np.corrcoef(*edges)[0, 1] > 0.3


def test_the_domains_share_no_valley_and_the_held_out_ones_are_pairs(tmp_path):
    write_domains(tmp_path, 3, side=32, held_out=2)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "testA", "testB", "trainA", "trainB",
    ]  # fmt: skip
    assert not set(_names(tmp_path / "trainA")) & set(_names(tmp_path / "trainB"))
    assert len(_names(tmp_path / "trainA")) == len(_names(tmp_path / "trainB")) == 3
    assert _names(tmp_path / "testA") == _names(tmp_path / "testB") == ["00000.png", "00001.png"]
    assert np.array_equal(_pixels(tmp_path / "testA/00001.png"), window(7, DAY, side=32))
    assert np.array_equal(_pixels(tmp_path / "testB/00001.png"), window(7, NIGHT, side=32))
    assert np.array_equal(_pixels(tmp_path / "trainB/00001.png"), window(1, NIGHT, side=32))


def test_domains_that_cannot_be_written_errors(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*taken"):
        write_domains(tmp_path / "taken", 1, side=32)


def test_the_command_draws_the_domains_and_names_the_training(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(landscapes, "write_domains", lambda *given: drawn.append(given))
    done = CliRunner().invoke(cli.main, ["demo", f"{tmp_path}/my data", "--training-data", "7"])
    assert done.exit_code == 0, done.output
    assert drawn == [(tmp_path / "my data", 7)]
    assert "my data: 7 valleys by day in trainA and as many others by night in trainB" in (
        done.stderr
    )
    assert f"next: cyclegan-batch train '{tmp_path}/my data' run --recipe demo\n" in done.stderr
