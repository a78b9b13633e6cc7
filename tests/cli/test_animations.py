"""Animated images from the command line to the files, through the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import cli
from cyclegan_batch.demo import MODEL
from tests.synthesis import animations
from tests.synthesis.animations import Part


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return int(ended.value.code or 0)


def moving(path: Path, count: int = 5, **how: object) -> Path:
    frames = [
        Part(np.full((16, 24, 4), (20 * shade, 90, 9, 255), np.uint8), time=3 + shade)
        for shade in range(count)
    ]
    write = {".gif": animations.gif, ".webp": animations.webp}.get(path.suffix, animations.apng)
    return write(path, frames, **how)


def durations(path: Path) -> list[int]:
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            found.append(round(image.info["duration"]))
        return found


@pytest.mark.behaviour(13)
@pytest.mark.behaviour(14)
@pytest.mark.behaviour(20)
def test_a_folder_of_animations_and_stills_is_translated_once(tmp_path, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    moving(folder / "a.gif")
    moving(folder / "b.webp")
    moving(folder / "c.png")
    cut = moving(folder / "d.gif")
    cut.write_bytes(cut.read_bytes()[:-30])
    Image.new("RGB", (24, 16), (9, 99, 9)).save(folder / "e.webp")
    words = ("translate", folder, tmp_path / "out", "-m", MODEL, "--size", 16)
    assert run(*words) == 3
    said = capfd.readouterr().err
    assert "c.png: is an animation; name it by itself" in said
    assert "d.gif: cannot be read to its end" in said
    written = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".")
    assert written == ["a.gif", "b.webp", "d.gif", "e.webp"]
    assert durations(tmp_path / "out" / "a.gif") == [30, 40, 50, 60, 70]
    assert durations(tmp_path / "out" / "b.webp") == [3, 4, 5, 6, 7]
    assert len(durations(tmp_path / "out" / "d.gif")) == 4
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[!.]*")}
    assert run(*words) == 3  # c.png fails again
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.behaviour(21)
@pytest.mark.behaviour(23)
def test_only_options_that_an_animation_has_make_it_outdated(tmp_path, capfd):
    source = moving(tmp_path / "a.gif")
    words = ("translate", source, tmp_path / "out.webp", "-m", MODEL, "--size", 16)
    assert run(*words) == 0
    assert run(*words, "--crf", 30) == 0
    assert "up to date" in capfd.readouterr().err
    assert run(*words, "--quality", 50) != 0
    assert "was made without --quality 50" in capfd.readouterr().err
    assert run(*words, "--quality", 50, "-y") == 0


@pytest.mark.behaviour(36)
def test_inspect_tells_frames_duration_and_loops(tmp_path, capfd):
    assert run("inspect", moving(tmp_path / "a.gif", loops=2), "--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["container"], found["plays"], found["duration_seconds"]) == ("gif", 3, 0.25)
    (stream,) = found["streams"]
    assert (stream["frames"], stream["size"], stream["constant_rate"]) == (5, "24x16", False)
    assert run("inspect", moving(tmp_path / "a.png"), "--json") == 0
    assert json.loads(capfd.readouterr().out)["plays"] == "for ever"


@pytest.mark.parametrize("name", ["o.gif", "o.webp", "o.png"])
def test_a_comparison_of_an_animation_is_one_too(tmp_path, name):
    source, output = moving(tmp_path / "a.gif"), tmp_path / name
    assert run("translate", source, output, "-m", MODEL, "--size", 16, "--compare", "side") == 0
    both = output.with_suffix(f".compare{output.suffix}")
    assert durations(both) == durations(output) == [30, 40, 50, 60, 70]
    with Image.open(both) as image, Image.open(output) as result:
        assert image.width > 2 * result.width - 1
