"""Colours survive the conversion to RGB and back, by the published formulas, without any codec."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.media.demux.stream_info import ColourTags, StreamInfo
from cyclegan_batch.media.video.colour import FromRGB, ToRGB, resolve
from cyclegan_batch.media.video.pixel_formats import bits_of
from cyclegan_batch.wording import grouped
from tests.synthesis import colours, hdr

FORMATS = ("yuv420p", "yuv444p", "yuv420p10le", "yuv444p10le")


def stream(
    pix_fmt: str = "yuv420p",
    tags: ColourTags = ColourTags(),  # noqa: B008 (frozen)
    size: tuple[int, int] = (128, 128),
) -> StreamInfo:
    return StreamInfo(
        index=0,
        kind="video",
        codec="ffv1",
        time_base=Fraction(1, 25),
        start_pts=0,
        duration=None,
        metadata={},
        disposition=(),
        size=size,
        pix_fmt=pix_fmt,
        bits=bits_of(pix_fmt),
        colour=tags,
    )


def tagged(matrix: str, *, full: bool) -> ColourTags:
    number, primaries, transfer = colours.TAGS[matrix]
    return ColourTags(number, primaries, transfer, 2 if full else 1)


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("pixel_type", ["uint8", "float16"])
@pytest.mark.parametrize(
    ("matrix", "full", "pix_fmt"), [*itertools.product(colours.WEIGHTS, [False, True], FORMATS)]
)
def test_flat_patches_go_to_rgb_and_back_within_two_levels(matrix, full, pix_fmt, pixel_type):
    rgb = colours.patches()
    bits = bits_of(pix_fmt)
    codes = colours.codes_from_rgb(rgb, matrix, full=full, bits=bits)
    frame = colours.frame_from_codes(codes, pix_fmt)
    plan = resolve(stream(pix_fmt, tagged(matrix, full=full)))
    assert plan.notes == ()

    seen = ToRGB(plan, pixel_type)(frame)
    assert seen.shape == rgb.shape
    assert seen.dtype == np.dtype(pixel_type)
    levels = seen.astype(np.float64) * (1 if pixel_type == "uint8" else 255)
    assert np.abs(colours.centres(levels - rgb * 255)).max() <= 2

    back = FromRGB(plan, pix_fmt)(seen)
    assert back.format.name == pix_fmt
    for sent, got in zip(colours.plane_views(frame), colours.plane_views(back), strict=True):
        patch = colours.PATCH * sent.shape[0] // rgb.shape[0]
        difference = colours.centres(sent.astype(int) - got.astype(int), patch)
        assert np.abs(difference).max() <= 2


@pytest.mark.behaviour(8)
@pytest.mark.parametrize("full", [False, True])
def test_ten_bits_of_grey_survive_float16(full):
    ramp = np.linspace(0, 1, 1024)
    rgb = np.broadcast_to(ramp[None, :, None], (16, 1024, 3)).copy()
    codes = colours.codes_from_rgb(rgb, "bt709", full=full, bits=10)
    frame = colours.frame_from_codes(codes, "yuv420p10le")
    plan = resolve(stream("yuv420p10le", tagged("bt709", full=full)))
    back = FromRGB(plan, "yuv420p10le")(ToRGB(plan, "float16")(frame))
    sent, got = colours.plane_views(frame)[0], colours.plane_views(back)[0]
    assert np.abs(sent.astype(int) - got.astype(int)).max() <= 1
    assert len(np.unique(got)) > 800


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("pixel_type", ["uint8", "float16"])
def test_all_greys_survive_unchanged(pixel_type):
    frame = av.VideoFrame(256, 16, "yuv420p")
    luma, *chroma = colours.plane_views(frame)
    luma[:] = np.clip(np.arange(256), 16, 235)
    for plane in chroma:
        plane[:] = 128
    plan = resolve(stream(tags=tagged("bt601", full=False)))
    back = FromRGB(plan, "yuv420p")(ToRGB(plan, pixel_type)(frame))
    for sent, got in zip(colours.plane_views(frame), colours.plane_views(back), strict=True):
        # 8-bit RGB has more levels than limited-range luma, so nothing may be lost.
        assert np.abs(sent.astype(int) - got.astype(int)).max() <= (
            0 if pixel_type == "uint8" else 1
        )


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("location", [1, 2, 3])
def test_chroma_stays_in_its_place(location):
    """An edge of colour returns to its position, whatever the chroma location."""
    frame = av.VideoFrame(96, 96, "yuv420p")
    luma, cb, cr = colours.plane_views(frame)
    luma[:], cr[:] = 120, 128
    cb[:] = np.where(np.arange(48) < 24, 100, 150)
    tags = ColourTags(1, 1, 1, 1, chroma_location=location)
    plan = resolve(stream(tags=tags))
    back = FromRGB(plan, "yuv420p")(ToRGB(plan, "uint8")(frame))
    got = colours.plane_views(back)[1].astype(float)[24]
    # The position of the edge, from the sum of the row, in chroma samples.
    edge = (150 * 48 - got.sum()) / (150 - 100)
    assert edge == pytest.approx(24, abs=0.05)
    assert got[22] < 112
    assert got[25] > 138


def test_the_left_siting_is_seen_by_the_converter():
    frame = av.VideoFrame(96, 16, "yuv420p")
    luma, cb, cr = colours.plane_views(frame)
    luma[:], cr[:] = 120, 128
    cb[:] = 80 + 2 * np.arange(48)
    blue = {}
    for number, name in ((1, "left"), (2, "center")):
        plan = resolve(stream(tags=ColourTags(1, 1, 1, 1, chroma_location=number)))
        assert plan.chroma_location == name
        blue[name] = ToRGB(plan, "float16")(frame)[8, 20:70, 2].astype(float)
    # Half a luma sample on a slope of one code each; a code of Cb is 1.8556 * 255/224 in blue.
    shift = (blue["left"] - blue["center"]).mean() * 255
    assert shift == pytest.approx(0.5 * 1.8556 * 255 / 224, abs=0.15)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 33), (7, 1279)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv444p", "gbrp", "nv12"])
def test_odd_sizes_keep_every_pixel(size, pix_fmt):
    rng = np.random.default_rng(0)
    pixels = np.full((*size, 3), 90, np.uint8)
    pixels += rng.integers(0, 3, pixels.shape, dtype=np.uint8)
    plan = resolve(stream(tags=tagged("bt709", full=False)))
    frame = FromRGB(plan, pix_fmt)(pixels)
    assert (frame.height, frame.width) == size
    if pix_fmt != "gbrp":
        again = ToRGB(plan, "uint8")(frame)
        assert again.shape == pixels.shape
        assert np.abs(again.astype(int) - pixels).max() <= 6


def test_a_converter_takes_pictures_of_changing_size():
    plan = resolve(stream(tags=tagged("bt709", full=False)))
    there, back = ToRGB(plan, "uint8"), FromRGB(plan, "yuv420p")
    for size in ((16, 32), (33, 17), (16, 32)):
        pixels = np.full((*size, 3), 77, np.uint8)
        assert np.abs(there(back(pixels)).astype(int) - 77).max() <= 1


def test_frames_made_one_after_the_other_do_not_share_memory():
    plan = resolve(stream(tags=tagged("bt709", full=False)))
    for pix_fmt in ("yuv420p", "rgb24"):
        back = FromRGB(plan, pix_fmt)
        first = back(np.full((16, 16, 3), 10, np.uint8))
        second = back(np.full((16, 16, 3), 200, np.uint8))
        assert np.asarray(first.planes[0])[0] < 50 < np.asarray(second.planes[0])[0]


@pytest.mark.parametrize("pix_fmt", ["gbrp", "gbrp10le", "gbrp12le", "rgb48le", "gbrap10le"])
def test_white_is_white_in_rgb_of_every_depth(pix_fmt):
    plan = resolve(stream(tags=tagged("bt709", full=False)))
    for pixels in (np.full((16, 16, 3), 255, np.uint8), np.ones((16, 16, 3), np.float16)):
        frame = FromRGB(plan, pix_fmt)(pixels)
        dtype = np.uint8 if bits_of(pix_fmt) == 8 else np.dtype("<u2")
        for plane in frame.planes:
            row = np.frombuffer(plane, dtype)[: frame.width]  # type: ignore[call-overload]
            assert set(row.tolist()) == {2 ** bits_of(pix_fmt) - 1}


def test_half_floats_out_of_range_are_clamped():
    plan = resolve(stream("yuv420p10le", tagged("bt709", full=False)))
    pixels = np.full((16, 16, 3), np.nan, np.float16)
    for value, luma in ((2.0, 940), (np.inf, 940), (-1.0, 64), (-np.inf, 64), (np.nan, 64)):
        pixels[:] = value
        got = colours.plane_views(FromRGB(plan, "yuv420p10le")(pixels))[0]
        assert np.abs(got.astype(int) - luma).max() <= 1


# What is decided, and what the user is told


@pytest.mark.behaviour(6)
def test_an_untagged_stream_stays_untagged_and_the_guess_is_said():
    for size, guess in (((719, 1280), "bt601"), ((720, 1280), "bt709")):
        plan = resolve(stream(size=size), name="clip.mp4")
        assert (plan.matrix, plan.full_range, plan.guessed) == (guess, False, True)
        assert plan.tags == ColourTags()
        assert grouped(plan.notes) == (
            f"clip.mp4: the video has no tag of its colour matrix: taken as {guess} "
            "(limited range); --color MATRIX[:RANGE] overrides that",
        )
        frame = FromRGB(plan, "yuv420p")(np.zeros((16, 16, 3), np.uint8))
        assert (frame.colorspace, frame.color_range, frame.color_primaries) == (2, 0, 2)


@pytest.mark.behaviour(6)
def test_tags_are_passed_on_to_every_frame():
    tags = ColourTags(9, 9, 14, 2)
    plan = resolve(stream("yuv420p10le", tags))
    frame = FromRGB(plan, "yuv420p10le")(np.zeros((16, 16, 3), np.uint8))
    assert frame.colorspace == 9
    assert frame.color_primaries == 9
    assert frame.color_trc == 14
    assert frame.color_range == 2


@pytest.mark.behaviour(6)
def test_color_replaces_the_guess_and_tags_stay():
    plan = resolve(stream(), "bt2020:full")
    assert (plan.matrix, plan.full_range, plan.guessed, plan.notes) == ("bt2020", True, False, ())
    assert plan.tags == ColourTags()
    plan = resolve(stream(tags=tagged("bt601", full=False)), "bt709", name="a.mp4")
    assert (plan.matrix, plan.full_range) == ("bt709", False)
    assert plan.tags == tagged("bt601", full=False)
    assert grouped(plan.notes) == (
        "a.mp4: --color bt709 is used although the video is tagged bt601",
    )


def test_the_old_full_range_formats_say_so_themselves():
    plan = resolve(stream("yuvj420p"))
    assert plan.full_range
    assert plan.tags.range == 2
    assert plan.chroma_location == "center"


def test_an_rgb_source_gets_a_matrix_that_its_output_names():
    plan = resolve(stream("rgb24", ColourTags(0, 1, 13, 2), size=(720, 1280)))
    assert (plan.matrix, plan.output_matrix, plan.output_full_range) == ("rgb", "bt709", False)
    assert plan.tags == ColourTags(1, 1, 13, 1)
    assert plan.notes == ()
    pixels = np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
    assert np.array_equal(ToRGB(plan, "uint8")(frame), pixels)


@pytest.mark.behaviour(8)
@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_errors_where_it_is_refused(transfer, name):
    with pytest.raises(
        InputError, match=rf"film.mkv: the video is HDR \({name}\), which --hdr refuse refuses"
    ):
        resolve(stream(tags=ColourTags(9, 9, transfer, 1)), hdr="refuse", name="film.mkv")


@pytest.mark.behaviour(8)
@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ, peak 4,000 cd/m²"), (18, "HLG")])
def test_hdr_becomes_sdr_and_that_is_said(transfer, name):
    plan = resolve(replace(stream(tags=ColourTags(9, 9, transfer, 1, 3)), peak=4000.0))
    assert (plan.matrix, plan.output_matrix) == ("bt2020", "bt709")
    assert plan.tags == ColourTags(1, 1, 1, 1, 3)
    assert [str(note) for note in plan.notes] == [
        f"the video is HDR ({name}): it is mapped to SDR (BT.709); --hdr refuse makes that an error"
    ]
    of_rgb = resolve(stream("gbrp10le", ColourTags(0, 9, transfer, 2)))
    assert (of_rgb.matrix, of_rgb.output_matrix, of_rgb.tags.matrix) == ("rgb", "bt709", 1)
    assert resolve(stream(tags=ColourTags(2, 2, transfer))).matrix == "bt2020"


@pytest.mark.behaviour(8)
def test_dolby_vision_without_a_base_layer_for_others_errors():
    with pytest.raises(InputError, match=r"a: the video is Dolby Vision .*profile 5"):
        resolve(replace(stream(), dolby_vision=True), name="a")
    for transfer in (1, 16, 18):
        tags = ColourTags(9, 9, transfer, 1)
        plain = resolve(stream(tags=tags))
        assert resolve(replace(stream(tags=tags), dolby_vision=True)) == plain
        assert (plain.tone_mapping is None) == (transfer == 1)


@pytest.mark.behaviour(8)
@pytest.mark.parametrize("pixel_type", ["uint8", "float16"])
@pytest.mark.parametrize(("curve", "transfer"), [("PQ", 16), ("HLG", 18)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p12le"])
def test_patches_of_hdr_are_seen_by_the_formulas(curve, transfer, full, pix_fmt, pixel_type):
    codes = colours.codes_from_rgb(colours.patches(), "bt2020", full=full, bits=bits_of(pix_fmt))
    frame = colours.frame_from_codes(codes, pix_fmt)
    plan = resolve(stream(pix_fmt, ColourTags(9, 9, transfer, 2 if full else 1)))
    seen = ToRGB(plan, pixel_type)(frame)
    assert seen.dtype == np.dtype(pixel_type)
    levels = colours.centres(seen.astype(np.float64) * (1 if pixel_type == "uint8" else 255))
    sent = colours.centres(colours.patches()).reshape(-1, 3).tolist()
    want = np.array([hdr.expected(curve, tuple(rgb), 1000.0) for rgb in sent]) * 255
    assert np.abs(levels.reshape(-1, 3) - want).max() <= 3


def test_a_matrix_that_cannot_be_computed_errors():
    with pytest.raises(InputError, match=r"matrix is number 10 .*--color bt709"):
        resolve(stream(tags=ColourTags(matrix=10)))
    assert resolve(stream(tags=ColourTags(matrix=10)), "bt2020").matrix == "bt2020"


@pytest.mark.parametrize("text", ["rec709", "bt709:pc", "bt709:", ":full", "BT709"])
def test_a_color_that_is_none_errors(text):
    with pytest.raises(InputError, match=r"expected MATRIX\[:RANGE\] with MATRIX one of bt601"):
        resolve(stream(), text)
