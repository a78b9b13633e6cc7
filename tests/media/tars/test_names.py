"""Keys and extensions by the WebDataset convention, and the names of images in another format."""

from __future__ import annotations

import pytest

from cyclegan_batch.media.tars.names import extension_of, image_format, key_of, output_names

KEYS = {
    "0001.jpg": ("0001", "jpg"),
    "0001.seg.png": ("0001", "seg.png"),
    "a/b/0001.jpg": ("a/b/0001", "jpg"),
    "a.b/0001.tar.gz": ("a.b/0001", "tar.gz"),
    "./0001.JPG": ("./0001", "jpg"),
    "frame.0001.jpg": ("frame", "0001.jpg"),
    "README": (None, ""),
    ".hidden.jpg": (None, ""),
    "a/.jpg": ("a/", "jpg"),
    "a/._1.jpg": ("a/", "_1.jpg"),
    "a.b/README": (None, ""),
    "a/b.": ("a/b", ""),
    "..": (None, ""),
    "x/../y.jpg": ("x/../y", "jpg"),
    "": (None, ""),
    "ü ä.png": ("ü ä", "png"),
}
"""What webdataset.tariterators.base_plus_ext of the package webdataset 1.0.2 returns; extensions
become lower case there as a sample is made."""


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_those_of_webdataset(name: str) -> None:
    assert (key_of(name), extension_of(name)) == KEYS[name]


def test_what_an_image_is_follows_from_its_last_extension_and_hidden_files_are_none() -> None:
    found = {name: image_format(name) for name in KEYS}
    assert {name for name, format_ in found.items() if format_ is not None} == {
        "0001.jpg", "0001.seg.png", "a/b/0001.jpg", "./0001.JPG", "frame.0001.jpg", "x/../y.jpg",
        "ü ä.png",
    }  # fmt: skip
    assert image_format("a/._0001.jpg") is None  # what macOS packs beside each file
    assert image_format("a.d/0001") is None


@pytest.mark.behaviour(13)
def test_names_stay_and_another_format_changes_the_extension() -> None:
    assert output_names([("a/1.JPG", "jpg"), ("a/1.json", None)], "same") == ["a/1.JPG", "a/1.json"]
    assert output_names([("a/1.JPG", "jpg"), ("a/1.json", None)], "png") == ["a/1.png", "a/1.json"]
    assert output_names([("1.gif", "gif"), ("1.x.tiff", "tiff")], "same") == ["1.png", "1.x.tiff"]


def test_no_two_members_get_one_name_by_another_format() -> None:
    both = [("1.jpg", "jpg"), ("1.png", "png")]
    assert output_names(both, "png") == ["1.jpg.png", "1.png"]
    assert output_names(both[::-1], "png") == ["1.png", "1.jpg.png"]
    assert output_names([("1.jpg", "jpg"), ("1.webp", "webp")], "png") == ["1.jpg.png", "1.png"]
    three = [*both, ("1.jpg.png", "png")]
    assert output_names(three, "png") == ["1.jpg.png.png", "1.png", "1.jpg.png"]
    # Two members of one name stay what they are.
    assert output_names([("1.jpg", "jpg"), ("1.jpg", "jpg")], "same") == ["1.jpg", "1.jpg"]
