"""The benchmark on Cityscapes, on pictures of our own: what is trained on, and what is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
cityscapes = pytest.importorskip("benchmarks.cityscapes")

SMALL = ["netG=resnet_1blocks", "ngf=4", "ndf=4", "load_size=18", "crop_size=16", "threads=1",
         "netD=n_layers", "n_layers_D=1", "n_epochs=1", "n_epochs_decay=0"]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    colours = np.array(list(cityscapes.CITYSCAPES.colours.values()), np.uint8)
    for part, count in (("train", 12), ("test", 3)):
        for number in range(1, count + 1):
            random = np.random.default_rng([count, number])
            classes = random.integers(0, 19, (4, 4)).repeat(8, 0).repeat(8, 1)
            for letter, pixels in (
                ("A", colours[classes]),
                ("B", random.integers(0, 256, (32, 32, 3), np.uint8)),
            ):
                folder = tmp_path / "data" / f"{part}{letter}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "data"


def test_the_last_pairs_are_trained_on_by_nobody(data, tmp_path):
    cityscapes.link_pictures(data, tmp_path / "out", 4)
    for letter in "AB":
        held = {path.stem for path in (tmp_path / "out" / f"held{letter}").iterdir()}
        train = {path.stem for path in (tmp_path / "out" / f"train{letter}").iterdir()}
        assert held == {"9", "10", "11", "12"}
        assert train == {str(number) for number in range(1, 9)}
    assert all(path.is_symlink() for path in (tmp_path / "out").rglob("*.png"))


def test_both_weights_are_scored_on_both_sets_beside_what_is_blind(data, tmp_path, capsys):
    before = sorted(data.rglob("*"))
    options = [option for key in SMALL for option in ("--set", key)]
    out = tmp_path / "out"
    cityscapes.main([str(data), str(out), "--held-out=4", "--every=5", "--device=cpu", *options])
    with (out / "curve.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [(point["step"], point["weights"]) for point in points] == [
        ("5", "raw"), ("5", "EMA"), ("8", "raw"), ("8", "EMA")
    ]  # fmt: skip
    scores = json.loads((out / "scores.json").read_text())
    for name, pairs in (("test", 3), ("held", 4)):
        for weights in ("raw", "EMA"):
            assert scores[f"{name} {weights}"]["pairs"] == pairs
        for blind in ("per-pixel mode of the training labels", "another scene's labels"):
            assert 0 < scores[f"{name} {blind}"]["class_iou"] < 0.2
    assert float(points[-1]["class_iou"]) == scores["test EMA"]["class_iou"]
    for name in ("curve.png", "sheet.png"):
        with Image.open(out / name) as picture:
            assert picture.size > (400, 100)
    assert "Zhu et al. 2017" in capsys.readouterr().out
    assert sorted(data.rglob("*")) == before
