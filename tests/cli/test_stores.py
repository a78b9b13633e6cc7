"""The command line with URLs of a store."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.api import plan_translation, translate
from cyclegan_batch.errors import OutputError
from cyclegan_batch.job import inputs
from cyclegan_batch.job.plan_text import plan_lines
from cyclegan_batch.remote import RemotePath, forget
from tests.needs import REPOSITORY, need
from tests.synthesis import generators, pictures

need("fsspec", "s3fs")


def command(folder: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cyclegan_batch", *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == code, done.stderr
    return done


def photo(seed: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_a_prefix_is_translated_by_a_model_of_the_same_store(
    s3: RemotePath, tmp_path: Path
) -> None:
    for number in range(5):
        size = (24, 32) if number != 2 else (20, 30)
        (s3 / f"raw/a{number % 2}/{number}.png").write_bytes(pictures.png(photo(number, size)))
    (s3 / "raw/a0/broken.jpg").write_bytes(b"no image")
    (s3 / "raw/a0/label.json").write_bytes(b"{}")
    model = generators.invert(tmp_path / "m.onnx")
    (s3 / "models/m.onnx").write_bytes(model.read_bytes())
    options: dict[str, Any]
    options = {"model": f"{s3}/models/m.onnx", "copy_others": True, "cache_dir": tmp_path / "cache"}
    source, output = f"{s3}/raw/", f"{tmp_path}/out/"
    lines = "\n".join(plan_lines(plan_translation(source, output, **options)))
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert f"model    {s3}/models/m.onnx (" in lines
    assert f"sha256 {digest[:12]})" in lines
    assert f"{s3}/raw/a0/0.png … 3.png (6 of 6 images) → {output}" in lines
    forget()
    words = ["-m", options["model"], "--copy-others", "--cache-dir", options["cache_dir"]]
    words += ["--report", "report.json"]
    done = command(tmp_path, "translate", source, output, *words, code=3)
    assert f"{s3}/raw/a0/broken.jpg: not an image of a known format" in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["record"]["model"] == {"path": f"{s3}/models/m.onnx", "sha256": digest}
    for number in range(5):
        with Image.open(tmp_path / f"out/a{number % 2}/{number}.png") as image:
            size = (24, 32) if number != 2 else (20, 30)
            np.testing.assert_array_equal(np.asarray(image), 255 - photo(number, size))
    assert (tmp_path / "out/a0/label.json").read_bytes() == b"{}"
    # What is done is known by the listing alone, and what has changed there is told.
    (s3 / "raw/a0/broken.jpg").unlink()
    assert len(translate(source, output, **options).up_to_date) == 6
    (s3 / "raw/a1/1.png").write_bytes(pictures.png(photo(9, (30, 30))))
    with pytest.raises(OutputError, match=r"made from another state of s3://.*1\.png; -y makes it"):
        translate(source, output, **options)
    (written,) = translate(source, output, overwrite=True, **options).outputs
    with Image.open(written) as image:
        np.testing.assert_array_equal(np.asarray(image), 255 - photo(9, (30, 30)))


@pytest.mark.behaviour(18)
def test_other_objects_are_copied_by_one_request_each(
    s3: RemotePath, requests: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (s3 / "raw/a.png").write_bytes(pictures.png(photo(0)))
    for number in range(20):
        (s3 / f"raw/{number}.txt").write_bytes(str(number).encode())
    options: dict[str, Any] = {"model": generators.identity(tmp_path / "m.onnx")}
    requests.clear()
    report = translate(f"{s3}/raw", tmp_path / "out", copy_others=True, **options)
    assert len(report.outputs) == 21
    # The image twice: its header for the plan, and its pixels.
    assert requests == {"GetObject": 20 + 2, "HeadObject": 1, "ListObjectsV2": 2}
    translate(f"{s3}/raw", f"{s3}/real", copy_others=True, **options)
    for number in range(20):
        for folder in (tmp_path / "out", s3 / "real"):
            assert (folder / f"{number}.txt").read_bytes() == str(number).encode()
    assert len(translate(f"{s3}/raw", f"{s3}/real", copy_others=True, **options).up_to_date) == 21
    # One that the store does not give is listed, and costs itself.
    real = inputs.copy_in

    def refuse_one(path: Path, local: Path) -> None:
        if path.name == "7.txt":
            raise OSError(errno.EREMOTEIO, "the store answers: SlowDown")
        real(path, local)

    monkeypatch.setattr(inputs, "copy_in", refuse_one)
    report = translate(f"{s3}/raw", tmp_path / "again", copy_others=True, **options)
    (failure,) = report.failures
    assert failure.cause.startswith(
        f"{s3}/raw/7.txt: cannot be read: the store answers: SlowDown; check the URL"
    )
    assert len(report.outputs) == 20


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host/a.png", "http://host/a.png: http:// is not read here"),
        ("s3://", "is no URL of an object"),
        ("s3://bucket-none/x", "s3://bucket-none/x: no such object, and none beneath it; check"),
    ],
)
def test_a_url_that_cannot_be_read_errors(
    s3: RemotePath, tmp_path: Path, url: str, message: str
) -> None:
    done = command(tmp_path, "translate", url, "out/", "-m", "m.onnx", code=1)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_image_of_a_store_is_described(s3: RemotePath, tmp_path: Path) -> None:
    (s3 / "a.png").write_bytes(pictures.png(photo(1)))
    described = json.loads(command(tmp_path, "inspect", s3 / "a.png", "--json").stdout)
    assert (described["path"], described["size"]) == (f"{s3}/a.png", "32×24")
