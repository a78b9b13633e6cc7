"""Animated images among the inputs: which are videos, and what they become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.errors import ContradictionError, OutputError
from cyclegan_batch.job.inputs import find_inputs
from tests.synthesis import animations
from tests.synthesis.animations import Part

WRITERS = {
    ".gif": animations.gif,
    ".webp": animations.webp,
    ".png": animations.apng,
    ".apng": animations.apng,
}


def moving(path: Path) -> Path:
    frames = [Part(np.full((8, 8, 4), (shade, 9, 9, 255), np.uint8)) for shade in (0, 90, 180)]
    return WRITERS[path.suffix.lower()](path, frames)


def still(path: Path) -> Path:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path, "PNG" if path.suffix == ".apng" else None)
    return path


def became(tree) -> dict[str, tuple[str, str]]:
    return {entry.source.name: (entry.kind, entry.output.name) for entry in tree.entries}


@pytest.mark.parametrize("source", ["a.gif", "a.webp", "a.png", "a.apng", "a.GIF"])
@pytest.mark.parametrize("output", ["o.gif", "o.webp", "o.png", "o.apng", "o.mp4", "o.MKV", "-"])
def test_an_animated_image_moves_where_the_output_can(tmp_path, source, output):
    entry = find_inputs([moving(tmp_path / source)], output).entries[0]
    assert (entry.kind, entry.output.name) == ("video", output)


@pytest.mark.parametrize("source", ["a.webp", "a.png", "a.apng"])
def test_a_still_image_stays_one(tmp_path, source):
    for output in ("o.png", "o.webp", "o.apng"):
        assert find_inputs([still(tmp_path / source)], output).entries[0].kind == "image"
    with pytest.raises(OutputError, match=r"cannot write an image as \.gif"):
        find_inputs([tmp_path / source], "o.gif")


def test_a_gif_of_one_image_can_become_a_gif_again(tmp_path):
    source = still(tmp_path / "a.gif")
    assert find_inputs([source], "o.gif").entries[0].kind == "video"
    assert find_inputs([source], "o.png").entries[0].kind == "image"


@pytest.mark.behaviour(22)
def test_a_file_in_a_folder_never_becomes_numbered_images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    source = moving(folder / "%06d.gif")
    (folder / "a%d.mp4").touch()
    moving(folder / "b.gif")
    for inputs in ([folder], [source, folder / "a%d.mp4", folder / "b.gif"]):
        tree = find_inputs(inputs, tmp_path / "out", container="webp")
        assert became(tree) == {
            "%06d.gif": ("unread", "%06d.webp"),
            "a%d.mp4": ("unread", "a%d.webp"),
            "b.gif": ("video", "b.webp"),
        }
        problems = [entry.problem for entry in tree.entries if entry.kind == "unread"]
        assert all("would be a pattern of numbered images" in problem for problem in problems)


@pytest.mark.behaviour(13)
def test_in_a_folder_animated_images_keep_their_format_and_still_ones_are_images(tmp_path):
    """PNG files are not looked into: a large listing would take 1.4 times as long."""
    folder = tmp_path / "in"
    folder.mkdir()
    for suffix in WRITERS:
        moving(folder / f"moving{suffix}")
        still(folder / f"still{suffix}")
    assert became(find_inputs([folder], tmp_path / "out")) == {
        "moving.gif": ("video", "moving.gif"),
        "moving.webp": ("video", "moving.webp"),
        "moving.apng": ("video", "moving.apng"),
        "moving.png": ("image", "moving.png"),
        "still.gif": ("image", "still.gif.png"),  # still.png is another one
        "still.webp": ("image", "still.webp"),
        "still.apng": ("image", "still.apng"),
        "still.png": ("image", "still.png"),
    }


def test_a_png_that_is_named_is_looked_into(tmp_path):
    (tmp_path / "out").mkdir()
    sources = [moving(tmp_path / "a.png"), still(tmp_path / "b.png")]
    assert became(find_inputs(sources, tmp_path / "out")) == {
        "a.png": ("video", "a.png"),
        "b.png": ("image", "b.png"),
    }


@pytest.mark.parametrize(
    ("container", "names"),
    [
        ("mp4", ["a.mp4", "b.mp4", "c.webp"]),
        ("webp", ["a.webp", "b.webp", "c.webp"]),
        ("gif", ["a.gif", "b.gif", "c.webp"]),
    ],
)
def test_container_decides_for_all_that_moves(tmp_path, container, names):
    folder = tmp_path / "in"
    folder.mkdir()
    moving(folder / "a.gif")
    (folder / "b.mkv").write_bytes(b"x")
    still(folder / "c.webp")
    tree = find_inputs([folder], tmp_path / "out", container=container)
    assert [entry.output.name for entry in tree.entries] == names


def test_format_is_for_still_images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    moving(folder / "a.webp")
    still(folder / "b.webp")
    tree = find_inputs([folder], tmp_path / "out", format="png")
    assert became(tree) == {"a.webp": ("video", "a.webp"), "b.webp": ("image", "b.png")}


def test_a_name_that_contradicts_the_container_errors(tmp_path):
    source = moving(tmp_path / "a.gif")
    with pytest.raises(ContradictionError, match="ask for different containers"):
        find_inputs([source], tmp_path / "o.gif", container="webp")


@pytest.mark.behaviour(14)
def test_what_cannot_be_looked_into_is_an_image_that_fails(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "empty.gif").touch()
    (folder / "gone.webp").symlink_to(tmp_path / "nowhere")
    whole = moving(folder / "whole.gif").read_bytes()
    (folder / "cut.gif").write_bytes(whole[:800])
    kinds = {name: kind for name, (kind, _) in became(find_inputs([folder], "out")).items()}
    assert kinds == {
        "cut.gif": "image",
        "empty.gif": "image",
        "gone.webp": "image",
        "whole.gif": "video",
    }


def test_a_list_looks_into_them_as_a_folder_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.gif", "b.png"):
        moving(tmp_path / name)
    (tmp_path / "names.txt").write_text("a.gif\nb.png\n")
    assert became(find_inputs(["@names.txt"], tmp_path / "out")) == {
        "a.gif": ("video", "a.gif"),
        "b.png": ("image", "b.png"),
    }
