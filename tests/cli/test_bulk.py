"""Bulk jobs on the command line: lists, globs and parts of a job."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_cli import assert_one_clear_line, cyclegan_batch, left_in, write_clip
from tests.needs import need
from tests.synthesis import generators
from tests.synthesis.tars import members, png, write_tar


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with the images a/0.png to a/4.png and b/0.png."""
    folder = tmp_path / "data"
    for name in (*(f"a/{number}.png" for number in range(5)), "b/0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 50, np.uint8)).save(folder / name)
    return folder


@pytest.mark.behaviour(13)
def test_names_from_find_are_translated_and_keep_their_paths(model: Path, data: Path) -> None:
    find = subprocess.run(["find", ".", "-name", "*.png", "-print0"], cwd=data, capture_output=True)
    command = [sys.executable, "-m", "cyclegan_batch", "translate", "@-", "../out", "-m", model]
    done = subprocess.run(command, input=find.stdout, cwd=data, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert left_in(data.parent / "out") == left_in(data)


@pytest.mark.behaviour(14, 22)
@pytest.mark.parametrize("arguments", [[], ["--on-error", "fail"], ["--max-failures", "1"]])
def test_a_missing_file_of_a_list_is_told_with_its_line(
    model: Path, data: Path, arguments: Sequence[str]
) -> None:
    (data / "names.txt").write_text("a/0.png\ngone.png\nb/0.png\nhttp://example.org/a.mp4\n")
    run = cyclegan_batch(
        "translate", "@names.txt", "out", "-m", model, "--dry-run", *arguments, cwd=data
    )
    if arguments:
        word = "line 2" if "fail" in arguments else "line 4"
        assert_one_clear_line(run, word, "no such file")
        return
    assert run.returncode == 3
    assert "FAILS    @names.txt, line 2: gone.png: no such file or folder" in run.stdout
    run = cyclegan_batch("translate", "@names.txt", "out", "-m", model, cwd=data)
    assert run.returncode == 3
    assert "failed: @names.txt, line 2: gone.png: no such file or folder; check the" in run.stderr
    assert "failed: @names.txt, line 4: http:/example.org/a.mp4: no such file" in run.stderr
    assert left_in(data / "out") == {"a/0.png", "b/0.png"}


def test_of_a_list_of_missing_files_the_first_are_told_errors(model: Path, data: Path) -> None:
    (data / "names.txt").write_text("".join(f"{number}.png\n" for number in range(500)))
    run = cyclegan_batch("translate", "@names.txt", "out", "-m", model, cwd=data)
    assert_one_clear_line(run, "none of the 500 inputs")
    assert "line 20: 19.png" in run.stderr
    assert "line 21" not in run.stderr
    assert "and 480 more" in run.stderr


@pytest.mark.behaviour(13)
def test_a_quoted_glob_is_translated(model: Path, data: Path) -> None:
    run = cyclegan_batch("translate", "**/[0-2].png", "../out", "-m", model, cwd=data)
    assert run.returncode == 0, run.stderr
    assert left_in(data.parent / "out") == {"a/0.png", "a/1.png", "a/2.png", "b/0.png"}
    run = cyclegan_batch("translate", "*.png", "../out", "-m", model, cwd=data)
    assert_one_clear_line(run, "*.png: no file of this name, and none that matches it as a glob")


@pytest.mark.behaviour(13)
def test_the_parts_of_a_job_write_all_files_once(model: Path, data: Path) -> None:
    clip = write_clip(data / "clip.mp4", frames=3)
    (data / "labels.json").write_text("{}")
    written = []
    for number in (1, 2, 3):
        report = data.parent / f"{number}.json"
        run = cyclegan_batch(
            "translate", data, data.parent / "out", "-m", model, "--copy-others",
            "--shard", f"{number}/3", "--report", report,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        written += json.loads(report.read_text())["outputs"]
    assert left_in(data.parent / "out") == left_in(data)
    assert len(written) == len(set(written)) == len(left_in(data))
    # A part beyond the last input has nothing to do.
    target = data.parent / "clip.mkv"
    run = cyclegan_batch("translate", clip, target, "-m", model, "--shard", "2/2")
    assert run.returncode == 0, run.stderr
    assert "--shard 2/2: no input falls to this part: nothing to do" in run.stderr
    assert not target.exists()


def test_a_report_that_would_replace_the_list_errors(model: Path, data: Path) -> None:
    names = data / "names.txt"
    names.write_text("a/0.png\n")
    run = cyclegan_batch(
        "translate", "@names.txt", "out", "-m", model, "--report", "names.txt", cwd=data
    )
    assert_one_clear_line(run, "names.txt: it is a file of the job itself")
    assert names.read_text() == "a/0.png\n"


@pytest.mark.behaviour(13, 14, 22)
def test_tars_of_a_folder_are_translated_and_read_by_gnu_tar(model: Path, tmp_path: Path) -> None:
    items = [("1.png", png(1)), ("1.cls", b"3"), ("2.png", b"no picture"), ("2.cls", b"4")]
    write_tar(tmp_path / "in" / "a" / "x.tar", [*items, ("../3.png", png(3)), ("4.png", png(4))])
    run = cyclegan_batch("translate", "in/a/x.tar", "out/", "-m", model, "--dry-run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "in/a/x.tar → out/x.tar (a tar, its images one by one)" in run.stdout
    run = cyclegan_batch("translate", "in", "out", "-m", model, cwd=tmp_path)
    assert run.returncode == 3
    assert "in/a/x.tar/2.png: not an image of a known format" in run.stderr
    assert "in/a/x.tar/../3.png: has a name that leads out of its folder" in run.stderr
    assert left_in(tmp_path) == {"in/a/x.tar", "out/a/x.tar"}
    need("tar")
    listed = subprocess.run(
        ["tar", "tvf", tmp_path / "out" / "a" / "x.tar"], capture_output=True, check=True, text=True
    )
    assert listed.stderr == ""
    assert [line.split()[0] + line.split()[-1] for line in listed.stdout.splitlines()] == [
        "-rw-r-----1.png",
        "-rw-r-----1.cls",
        "-rw-r-----4.png",
    ]


@pytest.mark.behaviour(13)
def test_masks_in_a_tar_are_carried_on_where_the_images_are_named(
    model: Path, tmp_path: Path
) -> None:
    items = [("1.png", png(1)), ("1.seg.png", b"a mask"), ("2.png", png(2))]
    write_tar(tmp_path / "x.tar", items)
    command = ("translate", "x.tar", "out.tar", "-m", model)
    run = cyclegan_batch(*command, "--tar-images", "", cwd=tmp_path)
    assert run.returncode == 2
    assert "tar_images must be extensions between commas" in run.stderr
    run = cyclegan_batch(*command, "--tar-images", "png", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert dict(members(tmp_path / "out.tar"))["1.seg.png"] == b"a mask"
