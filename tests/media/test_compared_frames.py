"""The picture of a frame and its translation: what stands where, at any size and in both types."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cyclegan_batch.media.compared_frames import (
    ComparedFrames,
    compared_size,
    divider_at,
    label_from,
)

RED, BLUE = (200, 30, 40), (20, 40, 210)
LABELS = ("source", "night")
SIZES = [(64, 64), (1, 1), (7, 201), (359, 479), (720, 1280)]


def plain(colour, size, dtype=np.uint8):
    pixels = np.full((*size, 3), colour, np.uint8)
    return pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["split", "side", "stack"])
def test_each_frame_is_where_its_layout_puts_it_at_any_size(layout, size):
    height, width = size
    picture = ComparedFrames(layout, size, LABELS)(plain(RED, size), plain(BLUE, size), 0.0)
    assert picture.shape == (*compared_size(layout, size), 3)
    if layout == "side":
        assert picture[-1, 0].tolist() == list(RED)
        assert picture[-1, -1].tolist() == list(BLUE)
        assert picture.shape[1] % 2 == 0
    elif layout == "stack":
        assert picture[height - 1, 0].tolist() == list(RED)
        assert picture[-1, 0].tolist() == list(BLUE)
        assert picture.shape[0] % 2 == 0
    elif width > 8:
        assert picture[-1, 0].tolist() == list(RED)
        assert picture[-1, -1].tolist() == list(BLUE)


@pytest.mark.parametrize("layout", ["split", "side", "stack"])
def test_float_frames_become_the_same_picture_as_bytes(layout):
    size = (180, 240)
    draw = ComparedFrames(layout, size, LABELS)
    of_bytes = draw(plain(RED, size), plain(BLUE, size), 1.0)
    of_floats = draw(plain(RED, size, np.float16), plain(BLUE, size, np.float16), 1.0)
    assert of_floats.dtype == np.float16
    assert np.abs(np.rint(of_floats.astype(np.float32) * 255) - of_bytes).max() <= 1


def test_a_source_of_another_size_gets_that_of_the_result():
    picture = ComparedFrames("side", (60, 40), LABELS)(plain(RED, (30, 90)), plain(BLUE, (60, 40)))
    assert picture[:, :40].reshape(-1, 3).tolist() == [list(RED)] * 2400


@pytest.mark.parametrize(("ground", "other"), [((255, 255, 255), (0, 0, 0)), ((0, 0, 0),) * 2,
                                               ((255, 255, 255),) * 2])  # fmt: skip
def test_divider_and_labels_show_on_any_ground(ground, other):
    """Each has light and dark pixels beside each other, whatever it stands on."""
    size = (180, 320)
    picture = ComparedFrames("split", size, LABELS)(plain(ground, size), plain(other, size))
    middle = picture[120, 150:170].astype(int).sum(axis=1)
    assert middle.max() - middle.min() > 500
    for label in (picture[4:24, 4:60], picture[4:24, -60:-4]):
        assert label.max() == 255
        assert label.min() < 110


def test_small_frames_and_long_names_have_no_labels():
    for size, labels in (((64, 64), LABELS), ((300, 120), ("source", "m" * 24))):
        picture = ComparedFrames("stack", size, labels)(plain(RED, size), plain(BLUE, size))
        colours = {tuple(pixel) for pixel in picture[: size[0]].reshape(-1, 3)}
        assert colours == {RED}


def test_the_divider_goes_to_and_fro_and_never_leaves_the_frame():
    places = [divider_at(number / 25) for number in range(8 * 25)]
    assert [places[0], divider_at(8.0)] == pytest.approx([0.5, 0.5])
    assert min(places) == pytest.approx(0.1, abs=0.001)
    assert max(places) == pytest.approx(0.9, abs=0.001)
    assert max(abs(b - a) for a, b in itertools.pairwise(places)) < 0.02


def test_the_frames_that_are_given_stay_as_they_are():
    source, result = plain(RED, (180, 240)), plain(BLUE, (180, 240))
    for layout in ("split", "side", "stack"):
        ComparedFrames(layout, (180, 240), LABELS)(source, result, 1.0)
    assert (source == RED).all()
    assert (result == BLUE).all()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("day2night", "day2night"),
        ("latest_net_G_A", "latest_net_G_A"),
        ("", "translated"),
        ("0" * 64, "translated"),
        ("Pferd→Zebra", "translated"),
        ("tab\tin it", "translated"),
    ],
)
def test_a_label_is_a_short_plain_name(name, label):
    assert label_from(name, "translated") == label
