"""TIFF: every layout of the samples is read as the values that were written."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.errors import InputError
from cyclegan_batch.media.images.codec import Picture, decode_picture
from cyclegan_batch.media.images.tiff import decode_tiff
from tests.synthesis import pictures


def values(bands: int, bits: int = 16, size: tuple[int, int] = (37, 53)) -> Any:
    """Return samples in which no two planes, rows or bytes are alike: ``(H, W, bands)``."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    planes = [columns * 1231, rows * 1777, (rows + columns) * 911, rows * columns * 17, rows * 53]
    samples = np.stack(planes[:bands], axis=-1) % 65536 >> (16 - bits)
    return samples.astype(np.uint8 if bits <= 8 else np.uint16)


def eight(samples: Any, bits: int) -> Any:
    """Return samples of ``bits`` as 8 bits, rounded."""
    return np.rint(samples.astype(np.float64) * 255 / (2**bits - 1)).astype(np.uint8)


def seen(data: bytes) -> Picture:
    return decode_picture(data, "a.tif")


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_every_layout_gives_the_written_values(bands: int, bits: int, order: str) -> None:
    written = values(bands, bits)
    tags = {338: (2,)} if bands in (2, 4) else {}
    expected = eight(written, bits)
    grey = expected.shape[2] < 3
    colours = expected[..., [0, 0, 0]] if grey else expected[..., :3]
    count = 0
    for planes, tile, predictor, compression, big in itertools.product(
        [False, True], [None, (16, 32)], [False, True], [1, 8, 32773], [False, True]
    ):
        data = pictures.tiff(
            written,
            order=order,
            planes=planes,
            tile=tile,
            predictor=predictor,
            compression=compression,
            big=big,
            tags=tags,
        )
        if predictor and compression == 1:
            continue  # TIFF 6.0, section 14: with LZW and its like only
        found, told = seen(data), (planes, tile, predictor, compression, big)
        np.testing.assert_array_equal(found.pixels, colours, err_msg=str(told))
        if tags:
            np.testing.assert_array_equal(found.extras.alpha, expected[..., -1], err_msg=str(told))
        else:
            assert found.extras.alpha is None
        count += 1
    assert count == 40


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
def test_what_opencv_writes_by_libtiff_is_read(bits: int, compression: int) -> None:
    written = values(3, bits)
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression]
    data = cv2.imencode(".tiff", written[..., ::-1], options)[1].tobytes()
    np.testing.assert_array_equal(seen(data).pixels, eight(written, bits))


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt", "tiff_lzw", "packbits"])
def test_pages_of_a_fax_are_read(compression: str) -> None:
    ink = values(1, 8)[..., 0] > 100
    data = pictures.pillow(ink, "TIFF", compression=compression)
    np.testing.assert_array_equal(seen(data).pixels[..., 1], np.where(ink, 255, 0))


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("compression", ["jpeg", "raw"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "YCbCr", "CMYK"])
def test_colours_and_jpeg_in_a_tiff_look_as_pillow_shows_them(mode: str, compression: str) -> None:
    photo = Image.fromarray(pictures.photo(64, 80)).convert(mode)
    file = io.BytesIO()
    photo.save(file, "TIFF", compression=compression, quality=90)
    expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert np.abs(seen(file.getvalue()).pixels - expected).max() <= 1


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("from_white", [False, True])
def test_grey_of_any_depth_is_read_from_black_and_from_white(bits: int, from_white: bool) -> None:
    written = values(1, bits)
    data = pictures.tiff(written, bits=bits, photometric=0 if from_white else 1)
    grey = 2**bits - 1 - written if from_white else written
    np.testing.assert_array_equal(seen(data).pixels, eight(grey, bits)[..., [0, 0, 0]])


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("scale", [1, 256, 257])
def test_a_palette_is_read_whichever_byte_it_fills(bits: int, scale: int) -> None:
    palette = np.random.default_rng(1).integers(0, 256, (3, 2**bits))
    palette[0, 0] = 255
    tags = {320: tuple((palette * scale).reshape(-1).tolist())}
    written = values(1, bits)
    data = pictures.tiff(written, bits=bits, photometric=3, tags=tags)
    np.testing.assert_array_equal(seen(data).pixels, palette.T[written[..., 0]])


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", [False, True])
def test_colours_that_were_multiplied_by_alpha_are_divided_by_it(bits: int, planes: bool) -> None:
    white, kind = 2**bits - 1, np.uint8 if bits == 8 else np.uint16
    straight = values(3, bits)
    alpha = np.full((37, 53), white // 4 * 3, kind)
    alpha[:5] = 0
    multiplied = np.rint(straight * (alpha[..., np.newaxis] / white)).astype(kind)
    data = pictures.tiff(np.dstack([multiplied, alpha]), planes=planes, tags={338: (1,)})
    found = seen(data)
    np.testing.assert_array_equal(found.extras.alpha, eight(alpha, bits))
    difference = found.pixels[5:].astype(int) - eight(straight, bits)[5:]
    assert np.abs(difference).max() <= 1
    assert not found.pixels[:5].any()


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planes", [False, True])
def test_a_fourth_band_that_is_not_said_to_be_alpha_is_kept_and_said(
    bits: int, planes: bool
) -> None:
    written = values(4, bits)
    found = seen(pictures.tiff(written, planes=planes, tags={338: (0,)}))
    np.testing.assert_array_equal(found.pixels, eight(written, bits)[..., :3])
    np.testing.assert_array_equal(found.extras.alpha, eight(written, bits)[..., 3])
    assert any(
        "its last band is not declared to be alpha; it is carried as alpha is" in note
        for note in found.notes
    )
    assert found.extras.undeclared


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("bits", [8, 16])
def test_further_bands_are_left_out_and_said(bits: int) -> None:
    written = values(5, bits)
    found = seen(pictures.tiff(written, planes=True, tags={338: (2, 0)}))
    np.testing.assert_array_equal(found.pixels, eight(written, bits)[..., :3])
    np.testing.assert_array_equal(found.extras.alpha, eight(written, bits)[..., 3])
    assert any("1 more bands than a colour and its alpha were left out" in n for n in found.notes)


def test_inks_of_sixteen_bits_are_read() -> None:
    written = values(4, 16)
    found = decode_tiff(pictures.tiff(written, planes=True, photometric=5))
    np.testing.assert_array_equal(found.colours, written)


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_separate_planes_are_turned_once(orientation: int) -> None:
    upright = values(3)
    stored = pictures.turned(upright, orientation)
    data = pictures.tiff(stored, planes=True, order=">", tags={274: (orientation,)})
    np.testing.assert_array_equal(seen(data).pixels, eight(upright, 16))


def test_a_thumbnail_in_front_of_the_picture_is_not_taken_for_it() -> None:
    small, whole = values(3, 8, (8, 8)), values(3, 8)
    first = pictures.tiff(small, tags={254: (1,)})
    second = pictures.tiff(whole)
    # The second file is appended to the first, so its offsets grow by the length of the first.
    moved = _moved(second, len(first))
    count = struct.unpack_from("<H", first, 8)[0]
    end = 10 + 12 * count
    data = first[:end] + struct.pack("<I", len(first) + 8) + first[end + 4 :] + moved
    np.testing.assert_array_equal(seen(data).pixels, whole)


def _moved(data: bytes, by: int) -> bytes:
    """Return a little-endian TIFF whose offsets point ``by`` bytes further."""
    moved = bytearray(data)
    (count,) = struct.unpack_from("<H", data, 8)
    for record in range(10, 10 + 12 * count, 12):
        tag, kind, number, value = struct.unpack_from("<HHII", data, record)
        size = {3: 2, 4: 4}[kind] * number
        if size > 4:
            struct.pack_into("<I", moved, record + 8, value + by)
        if tag == 273:
            places = range(value, value + size, 4) if size > 4 else [record + 8]
            for place in places:
                (offset,) = struct.unpack_from("<I", data, place)
                struct.pack_into("<I", moved, place, offset + by)
    return bytes(moved)


# What is refused


@pytest.mark.behaviour(14)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tags": {259: (34712,)}}, r"compression JPEG2000.* is not supported; save it with LZW"),
        ({"tags": {259: (6,)}}, r"compression OJPEG is not supported"),
        ({"tags": {339: (3,)}}, r"colour mode F is not supported"),
        ({"tags": {339: (2,)}}, r"colour mode I is not supported"),
        ({"photometric": 8}, r"colour mode LAB is not supported"),
        ({"photometric": 6}, r"YCbCr of other than 8 bits is not supported"),
        ({"photometric": 5, "tags": {332: (2,)}}, r"colour mode SEPARATED is not supported"),
        ({"tags": {258: (5, 6, 5)}}, r"samples of different sizes"),
        ({"tags": {317: (3,)}}, r"cannot be read as TIFF"),
    ],
)
def test_what_is_not_read_right_is_refused_errors(changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"a\.tif: .*{message}"):
        seen(pictures.tiff(values(3), **changes))


@pytest.mark.behaviour(14)
def test_a_strip_that_is_missing_or_behind_the_end_errors() -> None:
    whole = pictures.tiff(values(3), compression=8, planes=True)
    assert seen(whole)
    for tag, value in ((273, 1 << 30), (273, 0), (279, 0), (279, 1 << 24)):
        at = whole.index(struct.pack("<HHI", tag, 4, 18)) + 8
        broken = bytearray(whole)
        struct.pack_into("<I", broken, struct.unpack_from("<I", whole, at)[0] + 4, value)
        with pytest.raises(InputError, match=r"a\.tif: cannot be read as TIFF"):
            seen(bytes(broken))


@pytest.mark.behaviour(14)
def test_a_tag_that_points_nowhere_is_not_guessed_errors() -> None:
    data = bytearray(pictures.tiff(values(3)))
    at = data.index(struct.pack("<HHI", 258, 3, 3)) + 8
    struct.pack_into("<I", data, at, 1 << 30)
    with pytest.raises(InputError, match=r"its tag 258 cannot be read"):
        seen(bytes(data))


@pytest.mark.behaviour(46)
def test_a_jpeg_in_a_tiff_that_is_larger_than_its_strip_errors() -> None:
    data = bytearray(pictures.pillow(pictures.photo(), "TIFF", compression="jpeg"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(InputError, match=r"is 60000×60000"):
        seen(bytes(data))


@pytest.mark.behaviour(46)
def test_many_bands_are_counted_in_the_limit_errors() -> None:
    data = pictures.tiff(values(3), tags={277: (60_000,), 258: (16,)})
    with pytest.raises(InputError, match=r"53×37 of 60000 bands is more than --max-pixels"):
        decode_picture(data, "a.tif", max_pixels=10**6)


@pytest.mark.behaviour(46)
def test_directories_in_a_circle_and_endless_lists_end_errors(tmp_path: Path) -> None:
    whole = pictures.tiff(values(3))
    (count,) = struct.unpack_from("<H", whole, 8)
    circle = bytearray(whole)
    struct.pack_into("<I", circle, 10 + 12 * count, 8)
    for data in (circle, whole[:8] + b"\xff\xff" + whole[10:]):
        try:
            found = seen(bytes(data))
        except InputError:
            continue
        np.testing.assert_array_equal(found.pixels, eight(values(3), 16))
