"""The scripts in examples/ run as they stand, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

from cyclegan_batch.demo import MODEL
from tests.conftest import ENVIRONMENT, PATHS
from tests.needs import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def _run(script, *arguments):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *map(str, arguments)],
        env=ENVIRONMENT | {"PYTHONPATH": f"{PATHS}:{REPOSITORY / 'export'}"},
        capture_output=True,
        text=True,
    )


def _image(path, size=(40, 32), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_translate_folder_translates_the_rest_and_lists_what_is_damaged(tmp_path):
    _image(tmp_path / "in/a.png")
    _image(tmp_path / "in/b.png")
    (tmp_path / "in/c.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:100])
    done = _run("translate_folder.py", tmp_path / "in", tmp_path / "out", MODEL)
    assert done.returncode == 3, done.stderr
    assert "not translated: " in done.stderr
    assert "c.png" in done.stderr
    assert done.stdout.startswith("2 files, 2 frames, ")
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["a.png", "b.png"]
    again = _run("translate_folder.py", tmp_path / "in", tmp_path / "out", MODEL)
    assert again.stdout.startswith("0 files, 0 frames")


def test_arrays_writes_one_translated_image_of_the_same_size(tmp_path):
    _image(tmp_path / "a.png", size=(50, 38))
    done = _run("arrays.py", tmp_path / "a.png", tmp_path / "b.png", MODEL)
    assert done.returncode == 0, done.stderr
    assert "trained at 128" in done.stdout
    source, result = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert result.shape == source.shape == (38, 50, 3)
    assert np.abs(result.astype(int) - source).mean() > 5


@pytest.mark.needs("torch", "torchvision", "onnxscript", "onnxruntime")
def test_train_and_export_writes_an_onnx_file_with_its_parity(tmp_path):
    for number in range(3):
        for letter in "AB":
            _image(
                tmp_path / f"data/train{letter}/{number}.png",
                size=(72, 72),
                seed=2 * number + (letter == "A"),
            )
    paths = [tmp_path / name for name in ("data", "run", "g.onnx")]
    done = _run("train_and_export.py", *paths, 1)
    assert done.returncode == 0, done.stderr
    assert "g.onnx: exact: " in done.stdout
    model = onnx.load(tmp_path / "g.onnx")
    card = {prop.key.removeprefix("cyclegan_batch."): prop.value for prop in model.metadata_props}
    assert json.loads(card["trained_size"]) == 64
    assert card["direction"] == "AtoB"
