"""Globs that the shell did not expand."""

from __future__ import annotations

import glob
import itertools
import os
import random
import time
from pathlib import Path

import pytest

from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.job.inputs import find_inputs
from cyclegan_batch.wording import grouped
from tests.job.test_inputs import PNG, pairs, touch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder of each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(pattern: str, output: str = "out", **options: object) -> list[str]:
    """Return the outputs of a glob, in order, below its output folder."""
    tree = find_inputs([pattern], output, **options)  # type: ignore[arg-type]
    return [str(entry.output.relative_to(output)) for entry in tree.entries]


@pytest.mark.behaviour(13)
def test_a_glob_mirrors_below_the_fixed_folder_in_natural_order() -> None:
    for name in ("f/a/10.png", "f/a/2.png", "f/b/c/1.png", "f/3.png", "f/a/x.jpg", "g/4.png"):
        touch(Path(name))
    assert pairs(["f/**/*.png"], "out") == {
        "image f/3.png": "out/3.png",
        "image f/a/2.png": "out/a/2.png",
        "image f/a/10.png": "out/a/10.png",
        "image f/b/c/1.png": "out/b/c/1.png",
    }
    assert found("f/a/*.png") == ["2.png", "10.png"]
    assert found("f/*/*.[jp][pn]g") == ["a/2.png", "a/10.png", "a/x.jpg"]
    assert found("?/?.png") == ["f/3.png", "g/4.png"]
    assert found(f"{Path.cwd()}/f/[a-b]*/**/1*.png") == ["a/10.png", "b/c/1.png"]
    assert find_inputs(["f/a/*.png"], "out.png").root == Path("out.png")


@pytest.mark.behaviour(13)
def test_a_folder_that_a_glob_matches_is_mirrored() -> None:
    for name in ("d/trainA/x/1.png", "d/trainB/2.png", "d/test/3.png", "d/train.json"):
        touch(Path(name))
    assert found("d/train*") == ["trainA/x/1.png", "trainB/2.png"]
    assert found("d/train*", copy_others=True) == ["train.json", "trainA/x/1.png", "trainB/2.png"]
    assert found("d/**") == ["test/3.png", "trainA/x/1.png", "trainB/2.png"]
    (note,) = grouped(find_inputs(["d/train*"], "out").notes)
    assert note.startswith(
        "d/train*: left out, as neither images nor videos: 1 of its files (.json)"
    )


def test_a_file_of_that_very_name_and_a_pattern_of_numbers_are_no_globs() -> None:
    for name in ("[a].png", "a.png", "f_*_1.png", "f_*_2.png"):
        touch(Path(name), PNG)
    assert pairs(["[a].png"], "out") == {"image [a].png": "out/[a].png"}
    assert pairs(["f_*_%d.png"], "out.mp4") == {"pattern f_*_%d.png": "out.mp4"}
    assert found("[[]a].pn?") == ["[a].png"]


@pytest.mark.behaviour(17)
def test_names_that_are_not_utf8_are_matched() -> None:
    name = os.fsdecode(b"a\xff\xfe.png")
    touch(Path("d") / name)
    assert found("d/a*.png") == [name]
    assert found("d/a??.png") == [name]


def test_hidden_files_and_folders_are_left_out() -> None:
    for name in ("d/a.png", "d/.b.png", "d/.e/c.png", "d/f/.g/d.png", "d/f/h.png"):
        touch(Path(name))
    for pattern in ("d/**/*.png", "d/**", "d/*", "d/**/**/?*"):
        assert found(pattern) == ["a.png", "f/h.png"], pattern
    assert found("d/.e/*.png") == ["c.png"]
    assert found("d/*/.g/*.png") == ["f/.g/d.png"]


def test_a_glob_without_a_match_errors() -> None:
    touch(Path("d/a.png"))
    touch(Path("d/.b.jpg"))
    with pytest.raises(
        InputError, match=r"^d/\*\.jpg: no file of this name, and none that matches"
    ):
        find_inputs(["d/*.jpg"], "out")
    with pytest.raises(InputError, match=r"^gone: no such file or folder"):
        find_inputs(["gone/*.png"], "out")
    touch(Path("d/c.txt"))
    with pytest.raises(InputError, match=r"^d/\*\.txt: nothing to .*; it matches 1 \.txt; images"):
        find_inputs(["d/*.txt"], "out")


@pytest.mark.behaviour(13)
def test_links_to_folders_form_no_loop_in_a_glob() -> None:
    touch(Path("d/a/1.png"))
    for number in range(3):
        Path(f"d/a/loop{number}").symlink_to("..")
    started = time.monotonic()
    assert found("d/**/*.png") == ["a/1.png"]
    assert found("d/**/**/**") == ["a/1.png"]
    # With the folder spelled out, a link is followed one step.
    assert found("d/*/*/*/*.png") == [f"a/loop{number}/a/1.png" for number in range(3)]
    assert time.monotonic() - started < 5
    notes = grouped(find_inputs(["d/**/*.png"], "out").notes)
    assert notes[0].startswith("d/a/loop0 and 2 more: a link to a folder is not followed")


@pytest.mark.behaviour(13)
def test_an_output_that_a_glob_would_match_errors() -> None:
    touch(Path("d/a/1.png"))
    for pattern, output in (("d/**/*.png", "d/out"), ("d/*", "d/out"), ("d/*/*.png", "d/a/out")):
        with pytest.raises(OutputError, match="inside the input folder"):
            find_inputs([pattern], output)
    with pytest.raises(OutputError, match="is the input folder"):
        find_inputs(["d/*/*.png"], "d")
    assert found("[a-d]/**/*.png", "out") == ["d/a/1.png"]
    assert found("d/a/*.png", "d/a/out") == ["1.png"]


@pytest.mark.behaviour(13)
def test_a_glob_beside_other_inputs_keeps_the_name_of_its_fixed_folder() -> None:
    for name in ("x/a/1.png", "y/a/1.png", "z.png"):
        touch(Path(name))
    assert list(pairs(["x/*/*.png", "y/**", "z.png"], "out").values()) == [
        "out/x/a/1.png",
        "out/y/a/1.png",
        "out/z.png",
    ]


def test_a_glob_needs_a_folder_as_output_errors() -> None:
    touch(Path("d/a.png"))
    touch(Path("taken.png"))
    with pytest.raises(OutputError, match=r"taken\.png: is a file, and a glob needs a folder"):
        find_inputs(["d/*.png"], "taken.png")
    with pytest.raises(OutputError, match="holds one video, as y4m"):
        find_inputs(["d/*.png"], "-")


@pytest.mark.parametrize("seed", range(5))
def test_a_glob_means_what_python_means(seed: int) -> None:
    chosen = random.Random(seed)
    parts = ["a", "b", "ab", ".h", "[c]", "d-1"]
    for _ in range(40):
        depth = chosen.randint(0, 3)
        folder = "/".join(["t", *chosen.choices(parts, k=depth)])
        touch(Path(f"{folder}/{chosen.choice(parts)}{chosen.choice(['1', '2'])}.png"))
    magic = ["*", "**", "?", "a*", "[!a]*", "[[]c]", "a", "*b"]
    for middle in itertools.product(magic, repeat=2):
        pattern = f"t/{'/'.join(middle)}/*.png"
        expected = set(glob.glob(pattern, recursive=True))  # noqa: PTH207 - what is compared with
        try:
            entries = find_inputs([pattern], "out").entries
        except InputError:
            entries = ()
        assert {str(entry.source) for entry in entries} == expected, pattern
