"""Animated images as videos: whole frames, their times, and what is wrong with a file."""

from __future__ import annotations

import contextlib
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.errors import InputError
from cyclegan_batch.media.animations import structure
from cyclegan_batch.media.animations.reading import (
    AnimationFile,
    Shown,
    Unreadable,
    describe_animation,
)
from cyclegan_batch.media.animations.structure import is_animation
from cyclegan_batch.options import MAX_PIXELS, TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.identity import plan, run, seen
from tests.synthesis import animations
from tests.synthesis.animations import Part


def read(path: Path) -> list[Shown | Unreadable]:
    file = AnimationFile(path, max_pixels=MAX_PIXELS)
    try:
        return list(file.frames())
    finally:
        file.close()


def canvases(path: Path) -> list[Any]:
    """Return all frames, with the colours of transparent pixels as zero."""
    return [_bare(each.canvas) for each in read(path) if isinstance(each, Shown)]


def _bare(rgba: Any) -> Any:
    return np.where(rgba[..., 3:] == 0, 0, rgba)


def by_ffmpeg(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        return [_bare(frame.to_ndarray(format="rgba")) for frame in container.decode(video=0)]


def by_pillow(path: Path) -> list[Any]:
    frames = []
    with Image.open(path) as image:
        for number in range(image.n_frames):
            image.seek(number)
            frames.append(_bare(np.asarray(image.convert("RGBA"))))
    return frames


def random_parts(seed: int, **how: Any) -> list[Part]:
    random = np.random.default_rng(seed)
    size = (int(random.integers(2, 20)), int(random.integers(2, 20)))
    return animations.parts(random, size, 6, **how)


def solid(colour: tuple[int, int, int, int], size: tuple[int, int] = (4, 6), **how: Any) -> Part:
    return Part(np.full((*size, 4), colour, np.uint8), **how)


RED, BLUE, CLEAR = (255, 0, 0, 255), (0, 0, 255, 255), (0, 0, 0, 0)


# The frames


@pytest.mark.behaviour(1)
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("alpha", ["none", "bit"])
def test_the_frames_of_a_gif_are_those_of_ffmpeg(tmp_path, seed, alpha):
    """Rectangles anywhere, every disposal, interlaced rows, tables of their own."""
    path = animations.gif(tmp_path / "a.gif", random_parts(seed, disposals=4, alpha=alpha))
    ours, theirs = canvases(path), by_ffmpeg(path)
    assert len(ours) == len(theirs) == 6
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.behaviour(1)
@pytest.mark.parametrize("seed", range(6))
def test_the_frames_of_a_gif_are_those_of_pillow(tmp_path, seed):
    """Pillow fills what is cleared with a background colour, as browsers do not."""
    path = animations.gif(tmp_path / "a.gif", random_parts(seed, disposals=2, alpha="bit"))
    assert all(np.array_equal(a, b) for a, b in zip(canvases(path), by_pillow(path), strict=True))


@pytest.mark.behaviour(1)
@pytest.mark.parametrize("seed", range(12))
def test_the_frames_of_an_apng_are_those_of_ffmpeg(tmp_path, seed):
    path = animations.apng(tmp_path / "a.png", random_parts(seed, disposals=3, alpha="bit"))
    ours, theirs = canvases(path), by_ffmpeg(path)
    assert len(ours) == len(theirs) == 6
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.behaviour(1)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", ["none", "bit"])
def test_the_frames_of_a_webp_are_those_of_libwebp(tmp_path, seed, alpha):
    path = animations.webp(tmp_path / "a.webp", random_parts(seed, disposals=2, alpha=alpha))
    assert all(np.array_equal(a, b) for a, b in zip(canvases(path), by_pillow(path), strict=True))


@pytest.mark.behaviour(7)
@pytest.mark.parametrize("write", [animations.apng, animations.webp])
def test_half_transparent_pixels_are_mixed_with_what_is_below(tmp_path, write):
    half = Part(np.full((4, 6, 4), (0, 200, 0, 51), np.uint8), blended=True)
    below = Part(np.full((4, 6, 4), (100, 0, 0, 102), np.uint8), blended=False)
    path = write(tmp_path / "a", [below, half])
    # Alpha 0.2 over 0.4 is 0.52; the colours are weighed by 0.2 and by 0.8 · 0.4.
    expected = (100 * 0.32 / 0.52, 200 * 0.2 / 0.52, 0, 0.52 * 255)
    assert np.abs(canvases(path)[1] - np.array(expected)).max() <= 1


def test_what_the_first_image_does_not_cover_is_transparent(tmp_path):
    part = solid(RED, (2, 2), left=4, top=2)
    for write in (animations.gif, animations.apng, animations.webp):
        canvas = canvases(write(tmp_path / "a", [part, solid(BLUE)], (4, 6)))[0]
        assert (canvas[2:, 4:] == RED).all()
        assert not canvas[:2].any()
        assert not canvas[:, :4].any()


def test_an_image_that_reaches_beyond_the_canvas_of_a_gif_is_cut_off(tmp_path):
    path = animations.gif(tmp_path / "a.gif", [solid(RED, left=3, top=2), solid(BLUE)], (4, 6))
    first, second = canvases(path)
    assert (first[2:, 3:] == RED).all()
    assert first.shape == (4, 6, 4)
    assert (second == BLUE).all()


@pytest.mark.parametrize("local", [True, False])
def test_images_without_an_extension_before_them_are_all_read(tmp_path, local):
    """FFmpeg takes them for one packet and returns the first image alone."""
    frames = [solid(RED, control=False), solid(RED, control=False), solid(RED)]
    path = animations.gif(tmp_path / "a.gif", frames, local=local, loops=None)
    shown = read(path)
    assert [each.pts for each in shown] == [0, 10, 20]
    assert all((canvas == RED).all() for canvas in canvases(path))


def test_an_image_of_an_apng_that_is_not_in_the_animation_is_left_out(tmp_path):
    hidden = np.full((4, 6, 4), (1, 2, 3, 255), np.uint8)
    path = animations.apng(tmp_path / "a.png", [solid(RED), solid(BLUE)], hidden=hidden)
    first, second = canvases(path)
    assert (first == RED).all()
    assert (second == BLUE).all()


def test_sixteen_bits_and_a_palette_of_an_apng_are_read(tmp_path):
    for name, image in (
        ("deep", Image.fromarray(np.full((4, 6), 40000, np.uint16))),
        ("palette", Image.new("P", (6, 4), 3)),
    ):
        path = tmp_path / f"{name}.png"
        image.save(path, save_all=True, append_images=[image.point(lambda v: v)], duration=50)
        if is_animation(path):
            assert len(canvases(path)) == 2


# Times


@pytest.mark.behaviour(2)
def test_a_gif_frame_without_time_is_shown_as_browsers_do(tmp_path):
    frames = [solid(RED, time=time) for time in (0, 1, 2, 7)]
    path = animations.gif(tmp_path / "a.gif", frames)
    shown = read(path)
    assert [each.pts for each in shown] == [0, 10, 20, 22]
    with av.open(str(path)) as container:
        # FFmpeg takes a single hundredth as it is.
        assert [frame.pts for frame in container.decode(video=0)] == [0, 10, 11, 13]
    assert shown[-1].duration == 7


@pytest.mark.behaviour(2)
def test_the_times_of_an_apng_are_fractions(tmp_path):
    times = [(1, 30), (1001, 30000), (3, 0), (0, 100), (1, 24)]
    path = animations.apng(tmp_path / "a.png", [solid(RED)] * 5, times=times)
    info = describe_animation(path, max_pixels=MAX_PIXELS)
    base = info.streams[0].time_base
    seconds = [Fraction(1, 30), Fraction(1001, 30000), Fraction(3, 100), Fraction(1, 10)]
    starts = [sum(seconds[:number], Fraction(0)) for number in range(5)]
    assert base <= Fraction(1, 30000)
    for shown, start in zip(read(path), starts, strict=True):
        assert abs(shown.pts * base - start) <= base / 2
    assert abs(info.duration - sum(seconds) - Fraction(1, 24)) <= base / 2


@pytest.mark.behaviour(2)
def test_the_times_of_a_webp_are_milliseconds(tmp_path):
    path = animations.webp(tmp_path / "a.webp", [solid(RED, time=time) for time in (7, 33, 0, 5)])
    assert [each.pts for each in read(path)] == [0, 7, 40, 140]


@pytest.mark.parametrize(
    ("write", "stated", "plays"),
    [
        (animations.gif, {"loops": None}, 1),
        (animations.gif, {"loops": 0}, 0),
        (animations.gif, {"loops": 3}, 4),
        (animations.apng, {"plays": 0}, 0),
        (animations.apng, {"plays": 3}, 3),
        (animations.webp, {"plays": 3}, 3),
    ],
)
def test_how_often_it_is_shown_is_known(tmp_path, write, stated, plays):
    path = write(tmp_path / "a", [solid(RED), solid(BLUE)], **stated)
    assert describe_animation(path, max_pixels=MAX_PIXELS).plays == plays


def test_a_constant_rate_is_recognised(tmp_path):
    for times, constant in (((4, 4, 4, 4), True), ((3, 3, 4, 3), True), ((4, 20, 4, 4), False)):
        frames = [solid(RED, time=time) for time in times]
        path = animations.gif(tmp_path / "a.gif", frames)
        stream = describe_animation(path, max_pixels=MAX_PIXELS).streams[0]
        assert stream.constant_rate is constant
        assert stream.average_rate == Fraction(400, sum(times))


# Transparency


@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("frames", "transparent"),
    [
        ([solid(RED), solid(BLUE)], False),
        ([solid(RED), solid(CLEAR)], False),
        ([solid(CLEAR), solid(RED)], True),
        ([solid(RED, (2, 2)), solid(BLUE)], True),
        ([solid(RED, disposal=2), solid(BLUE)], False),
        ([solid(RED, disposal=2), solid(CLEAR)], True),
        ([solid(RED, disposal=2), solid(BLUE, (2, 2))], True),
        ([solid(RED, disposal=3), solid(BLUE, (2, 2))], True),
        ([solid(RED, disposal=2), solid(BLUE, disposal=3), solid(RED, (2, 2))], True),
        ([solid(RED, disposal=2), solid(BLUE, disposal=3), solid(RED)], False),
    ],
)
def test_a_gif_is_transparent_only_where_nothing_is_shown(tmp_path, frames, transparent):
    """A transparent index alone tells nothing: most files have one to leave out what stays."""
    path = animations.gif(tmp_path / "a.gif", frames, (4, 6))
    assert describe_animation(path, max_pixels=MAX_PIXELS).streams[0].alpha is transparent
    shown = any((canvas[..., 3] < 255).any() for canvas in canvases(path))
    assert shown is transparent


@pytest.mark.behaviour(7)
@pytest.mark.parametrize("alpha", ["none", "bit"])
@pytest.mark.parametrize("write", [animations.gif, animations.apng, animations.webp])
def test_no_transparency_is_overlooked(tmp_path, write, alpha):
    disposals = {animations.gif: 4, animations.apng: 3, animations.webp: 2}[write]
    described = set()
    for seed in range(60):
        parts = random_parts(seed, disposals=disposals, alpha=alpha)
        if alpha == "bit":
            parts[0].pixels[..., 3] = 255
        path = write(tmp_path / "a", parts)
        shown = any((canvas[..., 3] < 255).any() for canvas in canvases(path))
        stated = describe_animation(path, max_pixels=MAX_PIXELS).streams[0].alpha
        assert stated or not shown
        described.add((stated, shown))
    assert (True, True) in described


@pytest.mark.behaviour(8)
def test_an_hdr_apng_is_mapped_to_sdr_or_refused(tmp_path):
    pq = animations.chunk(b"cICP", bytes([9, 16, 0, 1]))
    path = animations.apng(tmp_path / "a.png", [solid(RED, (16, 16))] * 2, chunks=pq)
    notes = grouped(plan(path, tmp_path / "out.webp").notes)
    assert any("HDR (PQ" in note for note in notes)
    with pytest.raises(InputError, match="refuse"):
        plan(path, tmp_path / "out.webp", TranslateOptions(hdr="refuse"))


# Which files are animations


def test_a_still_image_is_no_animation(tmp_path):
    still = Image.new("RGB", (6, 4), (9, 9, 9))
    for name in ("a.gif", "a.png", "a.webp", "a.jpg"):
        still.save(tmp_path / name)
        assert not is_animation(tmp_path / name)
    (tmp_path / "empty").touch()
    assert not is_animation(tmp_path / "empty")
    for write in (animations.gif, animations.apng, animations.webp):
        assert is_animation(write(tmp_path / "a", [solid(RED), solid(BLUE)]))
        assert describe_animation(tmp_path / "a.jpg", max_pixels=MAX_PIXELS) is None


# What is wrong with a file


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("write", [animations.gif, animations.apng, animations.webp])
def test_of_a_file_that_is_cut_off_anywhere_what_is_whole_is_read(tmp_path, write):
    parts = random_parts(3, disposals=2, alpha="bit")[:4]
    whole = write(tmp_path / "whole", parts)
    expected, data = canvases(whole), whole.read_bytes()
    counts = set()
    for length in range(1, len(data), 5):
        path = tmp_path / "cut"
        path.write_bytes(data[:length])
        try:
            info = describe_animation(path, max_pixels=MAX_PIXELS)
        except InputError as error:
            assert "damaged" in str(error)  # noqa: PT017 - one of two ways
            continue
        if info is None:
            assert length < 80
            continue
        file = AnimationFile(path, max_pixels=MAX_PIXELS)
        shown = list(file.frames())
        file.close()
        assert file.trouble is not None
        counts.add(len(shown))
        for each, canvas in zip(shown, expected, strict=False):
            if isinstance(each, Unreadable):
                # Nothing in a PNG tells that there was to be another piece of the last frame.
                assert write is animations.apng
                assert each is shown[-1]
            else:
                assert np.array_equal(_bare(each.canvas), canvas)
    assert counts >= {1, 2, 3}


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_the_frames_of_a_file_that_is_cut_off_are_translated_and_it_is_reported(tmp_path, suffix):
    write = {".gif": animations.gif, ".png": animations.apng, ".webp": animations.webp}[suffix]
    path = write(tmp_path / f"a{suffix}", [solid(RED, (16, 16))] * 5)
    path.write_bytes(path.read_bytes()[:-30])
    items = seen(plan(path, tmp_path / "out.mp4"))
    assert len(items) == 5
    assert "cannot be read to its end" in str(items[-1].error)


@pytest.mark.behaviour(14)
@pytest.mark.parametrize("write", [animations.apng, animations.webp])
def test_a_damaged_frame_is_left_out_and_the_others_are_read(tmp_path, write):
    random = np.random.default_rng(1)
    frames = [Part(random.integers(0, 256, (8, 8, 4), np.uint8), blended=False) for _ in range(3)]
    path = write(tmp_path / "a", frames)
    with path.open("rb") as file:
        begin, end = structure.read_structure(file).pieces[1].data[-1]
    data = bytearray(path.read_bytes())
    data[begin + 20 : end - 4] = bytes(end - begin - 24)
    path.write_bytes(data)
    kinds = [type(each) for each in read(path)]
    assert kinds == [Shown, Unreadable, Shown]
    dropped, _ = run(plan(path, tmp_path / "out.mkv"))
    assert [each.place.number for each in dropped] == [1]


@pytest.mark.behaviour(22)
def test_a_wrong_length_in_a_webp_is_reported(tmp_path):
    path = animations.webp(tmp_path / "a.webp", [solid(RED, (16, 24))] * 3)
    data = path.read_bytes()
    second = data.index(b"ANMF", data.index(b"ANMF") + 1)
    lengths = {4: (100, 0), second + 4: (2**31, 2**10, 30, 16, 2)}
    for at, values in lengths.items():
        for value in values:
            path.write_bytes(data[:at] + struct.pack("<I", value) + data[at + 4 :])
            try:
                shown = read(path)
            except InputError:
                continue
            with contextlib.closing(AnimationFile(path, max_pixels=MAX_PIXELS)) as file:
                assert file.trouble or any(isinstance(each, Unreadable) for each in shown), value


def test_a_webp_may_end_within_the_head_of_its_last_image(tmp_path):
    path = animations.webp(tmp_path / "a.webp", [solid(RED), solid(BLUE)])
    data = path.read_bytes()
    last = data.rindex(b"ANMF")
    for rest in range(29):
        cut = data[: last + 4] + struct.pack("<I", rest) + data[last + 8 :][:rest]
        path.write_bytes(cut[:4] + struct.pack("<I", len(cut) - 8) + cut[8:])
        assert [type(each) for each in read(path)] == [Shown, Unreadable][: 1 + (rest >= 16)], rest


@pytest.mark.parametrize("write", [animations.gif, animations.apng, animations.webp])
def test_no_damage_raises_anything_but_an_error_of_the_input(tmp_path, write):
    path = write(tmp_path / "a", random_parts(5, disposals=2, alpha="bit")[:3])
    data, random = path.read_bytes(), np.random.default_rng(2)
    read_any = 0
    for _ in range(150):
        changed = bytearray(data)
        for place in random.integers(0, len(data), 3):
            changed[place] = int(random.integers(0, 256))
        path.write_bytes(changed)
        try:
            if describe_animation(path, max_pixels=10**6) is not None:
                file = AnimationFile(path, max_pixels=10**6)
                read_any += len(list(file.frames()))
                file.close()
        except InputError:
            pass
    assert read_any > 100


@pytest.mark.behaviour(46)
@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_a_canvas_that_is_too_large_is_refused_by_the_header(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    if suffix == ".gif":
        animations.gif(path, [solid(RED)] * 2, (60000, 60000))
    elif suffix == ".png":
        animations.apng(path, [solid(RED)] * 2, (60000, 60000))
    else:
        animations.webp(path, [solid(RED)] * 2, (2**24, 2**24))
    monkeypatch.setattr(np, "zeros", lambda *how, **more: pytest.fail("memory was taken"))
    with pytest.raises(InputError, match=r"is more than --max-pixels .* allows"):
        plan(path, tmp_path / "out.mp4")


@pytest.mark.behaviour(46)
def test_a_piece_that_is_larger_than_a_small_canvas_takes_no_memory(tmp_path):
    path = animations.gif(tmp_path / "a.gif", [solid(RED), solid(BLUE), solid(RED)])
    with path.open("rb") as file:
        begin = structure.read_structure(file).pieces[1].data[0][0]
    data = bytearray(path.read_bytes())
    # Width and height stand 5 bytes before the flags and the table of colours.
    struct.pack_into("<HH", data, begin - 768 - 5, 60000, 60000)
    path.write_bytes(data)
    first, second, third = read(path)
    assert isinstance(first, Shown)
    assert "more than its canvas" in second.cause
    assert isinstance(third, Shown)


@pytest.mark.behaviour(46)
def test_more_frames_than_can_be_listed_are_refused(tmp_path, monkeypatch):
    path = animations.gif(tmp_path / "a.gif", [solid(RED)] * 5)
    monkeypatch.setattr(structure, "MOST_FRAMES", 4)
    with pytest.raises(InputError, match=r"a\.gif: it has more than 4 frames"):
        plan(path, tmp_path / "out.mp4")


def test_a_gif_without_an_image_is_refused(tmp_path):
    path = animations.gif(tmp_path / "a.gif", [], (4, 6))
    with pytest.raises(InputError, match="it has no image"):
        plan(path, tmp_path / "out.mp4")
