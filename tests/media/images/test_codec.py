"""The codec of image files: what the network sees of them, and what is written back."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, JpegImagePlugin

from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.media.formats import Entry
from cyclegan_batch.media.images.codec import Extras, decode_picture, encode_picture
from tests.media.images.test_shards import WHOLE, entries_in, one, translate
from tests.synthesis import pictures

# What the network sees


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_any_depth_becomes_rgb_over_the_full_range(depth: int) -> None:
    grey = (np.arange(64) % 2**depth).astype(np.uint8).reshape(4, 16)
    seen = decode_picture(pictures.png(grey, depth=depth), "g.png")
    expected = grey.astype(int) * 255 // (2**depth - 1)
    assert seen.pixels.dtype == np.uint8
    np.testing.assert_array_equal(seen.pixels, np.stack([expected] * 3, axis=-1))
    assert seen.extras == Extras()


@pytest.mark.behaviour(15)
@pytest.mark.parametrize(
    ("format_", "shape"),
    [
        *(("png", shape) for shape in [(256, 256), *((256, 256, n) for n in (2, 3, 4))]),
        *(("tiff", shape) for shape in [(256, 256), *((256, 256, n) for n in (3, 4))]),
    ],
)
def test_sixteen_bits_become_eight_by_rounding(shape: tuple[int, ...], format_: str) -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    deep = np.stack([deep, deep.T, deep[::-1], deep[:, ::-1]], axis=-1)
    deep = deep[..., 0] if len(shape) == 2 else deep[..., : shape[2]]
    if format_ == "png":
        data = pictures.png(deep)
    else:
        reordered = deep if deep.ndim == 2 else deep[..., [2, 1, 0, 3][: shape[2]]]
        data = cv2.imencode(".tiff", reordered)[1].tobytes()
    seen = decode_picture(data, "deep")
    # This is exact in floating point: there are no ties, since 65535 is odd.
    rounded = np.rint(deep.astype(np.float64) / 257.0).astype(np.uint8)
    if rounded.ndim == 3 and shape[2] in (2, 4):
        np.testing.assert_array_equal(seen.extras.alpha, rounded[..., -1])
        rounded = rounded[..., 0] if shape[2] == 2 else rounded[..., :3]
    if rounded.ndim == 2:
        rounded = np.stack([rounded] * 3, axis=-1)
    np.testing.assert_array_equal(seen.pixels, rounded)
    assert seen.notes == ("16 bits become 8 by rounding: the model takes 8",)


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_palette_and_one_bit_pictures_look_as_pillow_shows_them(format_: str, mode: str) -> None:
    data = pictures.pillow(pictures.photo(), format_, mode)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_picture(data, "p").pixels, expected)


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("depth", [2, 8, 16])
def test_the_one_transparent_grey_of_a_png_becomes_alpha(depth: int) -> None:
    kind = np.uint16 if depth == 16 else np.uint8
    grey = (np.arange(64) % 2**depth).astype(kind).reshape(8, 8)
    data = pictures.png(grey, (b"tRNS", struct.pack(">H", 3)), depth=depth)
    alpha = decode_picture(data, "g.png").extras.alpha
    np.testing.assert_array_equal(alpha, np.where(grey == 3, 0, 255))


def test_float16_models_see_more_than_256_levels_and_write_sixteen_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16)
    deep = np.stack([np.tile(ramp, (4, 1))] * 3 + [np.full((4, 4096), 1234, np.uint16)], axis=-1)
    result = one(tmp_path, "a.png", pictures.png(deep), "b.png", pixel_type="float16")
    assert result.mode == "RGBA"
    raw = cv2.imdecode(np.fromfile(tmp_path / "out" / "b.png", np.uint8), cv2.IMREAD_UNCHANGED)
    assert raw.dtype == np.uint16
    # float16 has 11 bits, so the error is at most half a step of 2**-11 below one.
    assert np.abs(raw[..., 0].astype(int) - deep[..., 0]).max() <= 16
    assert len(np.unique(raw[..., 0])) > 2000
    np.testing.assert_array_equal(raw[..., 3], deep[..., 3])
    seen = decode_picture(pictures.png(deep), "a.png", pixel_type="float16")
    assert (seen.pixels.dtype, seen.notes) == (np.float16, ())


def test_sixteen_bits_into_a_format_of_eight_are_said(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(pictures.png(pictures.photo().astype(np.uint16) * 257))
    entry = Entry("image", source, tmp_path / "b.tif")
    written, _, notes = translate((entry,), pixel_type="float16")
    assert notes == (f"{source}: is written with 8 bits; --format png keeps 16",)
    result = np.asarray(Image.open(io.BytesIO(written[0].read_bytes())))
    np.testing.assert_array_equal(result, pictures.photo())


def test_eight_bits_through_a_float16_model_come_back_as_they_were(tmp_path: Path) -> None:
    photo = pictures.photo()
    data = pictures.png(np.dstack([photo, pictures.alpha()]))
    result = one(tmp_path, "a.png", data, "b.png", pixel_type="float16")
    np.testing.assert_array_equal(
        np.asarray(result), np.dstack([photo, pictures.alpha()]), strict=True
    )


# Orientation


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_orientation_is_applied_once_and_not_written(
    tmp_path: Path, format_: str, orientation: int
) -> None:
    upright = pictures.photo(32, 48)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = pictures.pillow(
        pictures.turned(upright, orientation),
        format_,
        exif=pictures.exif(orientation, artist="A"),
        **options.get(format_, {}),
    )
    suffix = format_.lower()
    result = one(tmp_path, f"a.{suffix}", data, f"b.{suffix}", quality=100)
    assert result.getexif().get(0x0112, 1) == 1
    assert result.getexif()[0x013B] == "A"
    difference = np.abs(np.asarray(result).astype(int) - upright)
    assert difference.max() <= (8 if format_ == "JPEG" else 0)


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_cmyk_tiff_is_turned_once_too(compression: str, orientation: int) -> None:
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:8, :16] = 255
    stored = pictures.turned(inks, orientation)
    block = pictures.exif(orientation)
    data = pictures.cmyk(stored, "TIFF", compression=compression, exif=block[6:])
    seen = decode_picture(data, "a.tif").pixels
    assert seen.shape == (16, 32, 3)
    assert (seen[:8, :16] < 9).all()
    assert (seen[8:] > 246).all()
    assert (seen[:, 16:] > 246).all()


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_sixteen_bit_tiff_is_turned_once_too(orientation: int) -> None:
    upright = pictures.photo(6, 9).astype(np.uint16) * 257
    stored = pictures.turned(upright, orientation)[..., ::-1]
    data = cv2.imencode(".tiff", stored, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
    seen = decode_picture(_with_tiff_tag(data, 0x0112, orientation), "a.tif")
    np.testing.assert_array_equal(seen.pixels, upright // 257)


def _with_tiff_tag(data: bytes, tag: int, value: int) -> bytes:
    """Return a little-endian TIFF with one more SHORT tag, in a new directory at its end."""
    offset, *_ = struct.unpack_from("<4xI", data)
    (count,) = struct.unpack_from("<H", data, offset)
    records = [data[offset + 2 + 12 * i : offset + 14 + 12 * i] for i in range(count)]
    records = sorted([*records, struct.pack("<HHIHH", tag, 3, 1, value, 0)], key=_tag_number)
    body = data + bytes(len(data) % 2)
    directory = struct.pack("<H", len(records)) + b"".join(records) + bytes(4)
    return body[:4] + struct.pack("<I", len(body)) + body[8:] + directory


def _tag_number(record: bytes) -> int:
    return int.from_bytes(record[:2], "little")


def _xmp(orientation: int, form: str) -> bytes:
    value = (
        f"<tiff:Orientation>{orientation}</tiff:Orientation>"
        if form == "element"
        else f'<rdf:Description tiff:Orientation="{orientation}"/>'
    )
    return f"<x:xmpmeta><rdf:RDF>{value}</rdf:RDF></x:xmpmeta>".encode()


def _raw_profile(orientation: int, name: bytes) -> bytes:
    block = pictures.exif(orientation, artist="A")
    digits = block.hex().encode()
    lines = b"\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    return b"\n%s\n%8d\n%s\n" % (name, len(block), lines)


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "form", ["element", "attribute", "packed xmp", "raw exif", "raw APP1", "packed exif"]
)
def test_a_png_is_turned_once_by_xmp_and_by_a_raw_profile(orientation: int, form: str) -> None:
    upright = pictures.photo(32, 48)
    keyword = b"XML:com.adobe.xmp\0"
    chunk = {
        "element": (b"iTXt", keyword + b"\0\0\0\0" + _xmp(orientation, "element")),
        "attribute": (b"iTXt", keyword + b"\0\0en\0\0" + _xmp(orientation, "attribute")),
        "packed xmp": (
            b"iTXt",
            keyword + b"\1\0\0\0" + zlib.compress(_xmp(orientation, "element")),
        ),
        "raw exif": (b"tEXt", b"Raw profile type exif\0" + _raw_profile(orientation, b"exif")),
        "raw APP1": (b"tEXt", b"Raw profile type APP1\0" + _raw_profile(orientation, b"APP1")),
        "packed exif": (
            b"zTXt",
            b"Raw profile type exif\0\0" + zlib.compress(_raw_profile(orientation, b"exif")),
        ),
    }[form]
    stored = pictures.turned(upright, orientation)
    seen = decode_picture(pictures.png(stored, chunk), "a.png")
    np.testing.assert_array_equal(seen.pixels, upright)
    assert (b"A\0" in (seen.extras.exif or b"")) == ("xmp" not in form and form[0] in "rp")
    # An eXIf chunk takes precedence over both, so nothing is turned twice.
    block = (b"eXIf", pictures.exif(orientation)[6:])
    seen = decode_picture(pictures.png(stored, block, chunk), "a.png")
    np.testing.assert_array_equal(seen.pixels, upright)
    other = (b"eXIf", pictures.exif(1)[6:])
    seen = decode_picture(pictures.png(upright, other, chunk), "a.png")
    np.testing.assert_array_equal(seen.pixels, upright)


# What is written with the pixels


@pytest.mark.parametrize("output", ["png", "bmp", "tiff", "tif", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, output: str) -> None:
    photo = pictures.photo(33, 47)
    result = one(tmp_path, "a.png", pictures.png(photo), f"b.{output}", quality=100)
    assert result.format == {"tif": "TIFF"}.get(output, output.upper())
    np.testing.assert_array_equal(np.asarray(result), photo)


@pytest.mark.parametrize("output", ["jpg", "webp"])
def test_lossy_formats_have_quality_95_unless_told_otherwise(tmp_path: Path, output: str) -> None:
    photo = pictures.photo(128, 128)
    sizes = {}
    for quality in (None, 95, 30):
        result = one(tmp_path, "a.png", pictures.png(photo), f"{quality}.{output}", quality=quality)
        sizes[quality] = (tmp_path / "out" / f"{quality}.{output}").stat().st_size
        if quality != 30:
            # Lossy WebP always subsamples the chroma.
            limit = 3 if output == "webp" else 2
            assert np.abs(np.asarray(result).astype(int) - photo).mean() < limit
        if output == "jpg":
            assert JpegImagePlugin.get_sampling(result) == 0
    assert sizes[None] == sizes[95] > 1.5 * sizes[30]


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("output", ["png", "webp", "tiff"])
@pytest.mark.parametrize("quality", [None, 100])
def test_alpha_is_kept_bit_for_bit(tmp_path: Path, output: str, quality: int | None) -> None:
    alpha = pictures.alpha()
    data = pictures.png(np.dstack([pictures.photo(), alpha]))
    result = one(tmp_path, "a.png", data, f"b.{output}", lambda p: 255 - p, quality=quality)
    assert result.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(result)[..., 3], alpha)
    if output != "webp" or quality == 100:
        np.testing.assert_array_equal(np.asarray(result)[..., :3], 255 - pictures.photo())


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("source", ["LA", "P", "webp", "tiff"])
def test_alpha_of_every_kind_of_source_reaches_the_output(tmp_path: Path, source: str) -> None:
    photo, alpha = pictures.photo(), pictures.alpha()
    rgba = np.dstack([photo, alpha])
    if source == "LA":
        data = pictures.png(np.dstack([photo[..., 0], alpha]))
    elif source == "P":
        palette = [(b"PLTE", photo[0].tobytes()), (b"tRNS", bytes(range(64)))]
        indices = np.tile(np.arange(64, dtype=np.uint8), (48, 1))
        data, alpha = pictures.png(indices, *palette, colour=3), indices
    elif source == "webp":
        data = pictures.pillow(rgba, "WEBP", lossless=True, exact=True)
    else:
        data = pictures.pillow(rgba, "TIFF")
    result = one(tmp_path, "a.x", data, "b.png")
    np.testing.assert_array_equal(np.asarray(result)[..., 3], alpha)


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("output", ["jpg", "bmp"])
def test_alpha_into_a_format_without_it_names_the_choice_errors(
    tmp_path: Path, output: str
) -> None:
    rgba = np.dstack([pictures.photo(), pictures.alpha()])
    source = tmp_path / "a.png"
    source.write_bytes(pictures.png(rgba))
    entry = Entry("image", source, tmp_path / f"b.{output}")
    written, dropped, _ = translate((entry,))
    assert written == []
    assert dropped[0].name == str(source)
    with pytest.raises(InputError, match=r"a\.png: has transparency, and .* --format png"):
        raise dropped[0].error
    # Alpha that is opaque everywhere is left out without a loss.
    rgba[..., 3] = 255
    result = one(tmp_path, "c.png", pictures.png(rgba), f"c.{output}")
    assert result.mode == "RGB"


@pytest.mark.behaviour(15)
def test_alpha_is_resized_with_a_picture_that_keeps_the_networks_size(tmp_path: Path) -> None:
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 30:] = 255
    data = pictures.png(np.dstack([pictures.photo(40, 60), alpha]))
    for size in ((20, 30), (80, 120)):
        result = one(tmp_path, "a.png", data, f"{size}.png", partial(_resized, size=size))
        assert result.size == size[::-1]
        shown = np.asarray(result)[..., 3]
        half = size[1] // 2
        assert (shown[:, : half - 1] == 0).all()
        assert (shown[:, half + 1 :] == 255).all()


def _resized(pixels: Any, *, size: tuple[int, int]) -> Any:
    return cv2.resize(pixels, size[::-1])


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("output", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("extra", [0, 200_000])
def test_an_rgb_profile_is_carried_and_the_numbers_stay(
    tmp_path: Path, output: str, extra: int
) -> None:
    profile = pictures.srgb_profile() + bytes(extra)
    photo = pictures.photo()
    data = pictures.pillow(photo, "PNG", icc_profile=profile)
    result = one(tmp_path, "a.png", data, f"b.{output}", quality=100)
    assert result.info["icc_profile"] == profile
    assert np.abs(np.asarray(result).astype(int) - photo).mean() < 2


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("source", ["JPEG", "WEBP", "TIFF", "BMP"])
def test_profiles_are_read_from_every_format_that_has_them(tmp_path: Path, source: str) -> None:
    profile = pictures.srgb_profile()
    data = pictures.pillow(pictures.photo(), source, icc_profile=profile)
    result = one(tmp_path, "a.x", data, "b.png")
    assert result.info.get("icc_profile") == (None if source == "BMP" else profile)


@pytest.mark.behaviour(16)
def test_a_profile_that_cannot_be_meant_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, profile in (("broken", b"x" * 200), ("inks", pictures.cmyk_profile())):
        data = pictures.pillow(pictures.photo(), "PNG", icc_profile=profile)
        (tmp_path / "in" / f"{name}.png").write_bytes(data)
    written, dropped, notes = translate(entries_in(tmp_path / "in", tmp_path / "out"))
    assert (len(written), dropped) == (2, [])
    assert len(notes) == 1
    assert "broken.png and 1 more: its colour profile is broken or for other colours" in notes[0]
    for path in written:
        assert "icc_profile" not in Image.open(io.BytesIO(path.read_bytes())).info


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_grey_with_a_grey_profile_becomes_srgb(depth: type) -> None:
    ramp = np.linspace(0, np.iinfo(depth).max, 256).astype(depth)
    profile = pictures.grey_profile(1.0)
    chunk = (b"iCCP", b"grey\0\0" + zlib.compress(profile))
    gamma = (b"gAMA", struct.pack(">I", 100_000))  # No longer true of the result.
    seen = decode_picture(pictures.png(np.tile(ramp, (4, 1)), chunk, gamma), "g.png")
    linear = np.arange(256) / 255
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(seen.pixels[0].astype(int) - 255 * encoded[:, np.newaxis]).max() <= 1
    assert seen.extras == Extras()


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_becomes_srgb_by_its_profile(format_: str) -> None:
    for corner in range(16):
        inks = [(corner >> shift) & 1 for shift in (3, 2, 1, 0)]
        flat = np.full((16, 16, 4), np.array(inks) * 255, np.uint8)
        data = pictures.cmyk(flat, format_, icc_profile=pictures.cmyk_profile())
        seen = decode_picture(data, "c")
        assert seen.notes == ()
        assert seen.extras.icc is None
        expected = _srgb_from_lab(*pictures.ink_lab(*inks), black=10.0)
        assert np.abs(seen.pixels.astype(int) - expected).max() <= 2, inks


def _srgb_from_lab(lightness: float, a: float, b: float, *, black: float) -> Any:
    """Return sRGB by the published formulas (CIE 15, IEC 61966-2-1), ``black`` moved to zero."""

    def xyz_share(root: float) -> float:
        return root**3 if root > 6 / 29 else 3 * (6 / 29) ** 2 * (root - 4 / 29)

    y = (lightness + 16) / 116
    shares = np.array([xyz_share(y + a / 500), xyz_share(y), xyz_share(y - b / 200)])
    darkest = xyz_share((black + 16) / 116)
    xyz = (shares - darkest) / (1 - darkest) * [0.9642, 1.0, 0.8249]
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(np.array(matrix) @ xyz, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.behaviour(15, 16)
def test_cmyk_without_a_profile_is_converted_and_said(tmp_path: Path) -> None:
    flat = np.full((16, 16, 4), (255, 0, 0, 0), np.uint8)
    source = tmp_path / "c.jpg"
    source.write_bytes(pictures.cmyk(flat, "JPEG"))
    written, _, notes = translate((Entry("image", source, tmp_path / "b.png"),))
    assert np.asarray(Image.open(written[0]))[0, 0].tolist() == [0, 255, 255]
    assert len(notes) == 1
    assert "c.jpg: CMYK without a usable profile became RGB by plain arithmetic" in notes[0]


@pytest.mark.parametrize("output", ["png", "jpg", "webp", "tiff"])
def test_descriptive_exif_goes_along_and_what_is_no_longer_true_does_not(
    tmp_path: Path, output: str
) -> None:
    block = pictures.exif(6, make="Maker", taken="2020:02:03 04:05:06", latitude=(46.0, 30.0, 15.0))
    data = pictures.pillow(pictures.photo(), "JPEG", exif=block)
    found = one(tmp_path, "a.jpg", data, f"b.{output}").getexif()
    assert found[0x010F] == "Maker"
    assert dict(found.get_ifd(0x8769)) == {0x9003: "2020:02:03 04:05:06"}
    assert found.get_ifd(0x8825)[2] == (46.0, 30.0, 15.0)
    assert 0x0112 not in found


def test_the_thumbnail_of_the_old_picture_does_not_go_along(tmp_path: Path) -> None:
    small = pictures.pillow(pictures.photo(8, 8), "JPEG")
    # One directory holds the artist, a second one the start and the length of the thumbnail.
    first = struct.pack("<H HHI4s I", 1, 0x013B, 2, 4, b"me!\0", 26)
    second = struct.pack("<H HHII HHII I", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(small), 0)
    block = b"Exif\0\0II*\0\x08\0\0\0" + first + second + small
    data = pictures.pillow(pictures.photo(), "JPEG", exif=block)
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(ExifTags.IFD.IFD1)[0x0202] == len(small)
    result = one(tmp_path, "a.jpg", data, "b.jpg")
    assert dict(result.getexif()) == {0x013B: "me!"}
    assert result.getexif().get_ifd(ExifTags.IFD.IFD1) == {}


# As outside of tests, where the warnings of Pillow are ignored.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_costs_nothing_but_itself(tmp_path: Path) -> None:
    data = pictures.pillow(pictures.photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" * 3)
    assert not one(tmp_path, "a.jpg", data, "b.jpg").getexif()


def test_png_colour_chunks_are_carried_into_png(tmp_path: Path) -> None:
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    data = pictures.png(pictures.photo(), gamma, (b"tEXt", b"k\0v"))
    result = one(tmp_path, "a.png", data, "b.png")
    assert result.info == {"gamma": 1.0}


# What is refused


@pytest.mark.behaviour(14)
@pytest.mark.parametrize("name", WHOLE)
def test_a_picture_that_is_cut_off_anywhere_errors(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = WHOLE[name]
    assert decode_picture(data, name).pixels.shape == (48, 64, 3)
    cuts = {*range(0, len(data), max(len(data) // 97, 1)), len(data) - 1, len(data) - 2, 1, 15}
    for length in sorted(cuts):
        with pytest.raises(InputError, match=r"cannot be read as|not an image|is empty"):
            decode_picture(data[:length], name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.behaviour(14)
def test_a_png_with_one_bit_wrong_anywhere_errors(capfd: pytest.CaptureFixture[str]) -> None:
    data = pictures.png(pictures.photo(8, 8), (b"tEXt", b"k\0v"))
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 4
        with pytest.raises(InputError, match=r"cannot be read as|not an image"):
            decode_picture(bytes(broken), "a.png")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("decoder", ["opencv", "numpy"])
def test_a_picture_that_does_not_fit_into_memory_is_not_called_damaged_errors(
    monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    lack: Exception = MemoryError("Unable to allocate 3.00 GiB")
    if decoder == "opencv":
        lack = cv2.error("Failed to allocate 3221225472 bytes")
        lack.code = cv2.Error.STS_NO_MEM

    def fail(*_: object) -> None:
        raise lack

    monkeypatch.setattr(cv2, "imdecode", fail)
    data = pictures.png(np.zeros((4, 16), np.uint8), depth=8)
    with pytest.raises(InputError, match=r"^g\.png: there is no memory to decode its 16×4 pixels"):
        decode_picture(data, "g.png")


@pytest.mark.behaviour(14)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just text", r"its content is not recognised"),
        (b"8BPS" + bytes(20), r"its content is Photoshop"),
        (b"\0\0\0\x18ftypisom" + bytes(20), r"its content is an MP4-like container"),
        (b"\0\0\0\x18ftypcrx " + bytes(20), r"its content is an MP4-like container"),
        (b"<!DOCTYPE html><html>404</html>", r"its content is a web page"),
    ],
)
def test_what_is_no_picture_is_named_errors(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=r"a\.png: not an image of a known format: " + message):
        decode_picture(content, "a.png")


@pytest.mark.behaviour(14)
def test_an_empty_file_errors() -> None:
    with pytest.raises(InputError, match=r"a\.png: the file is empty; replace it"):
        decode_picture(b"", "a.png")


def _bombs(side: int) -> dict[str, bytes]:
    jpeg = bytearray(pictures.pillow(np.zeros((8, 8, 3), np.uint8), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", min(side, 65535), min(side, 65535))
    png = bytearray(pictures.png(np.zeros((8, 8, 3), np.uint8)))
    png[8:33] = pictures.png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    bmp = bytearray(pictures.pillow(np.zeros((8, 8, 3), np.uint8), "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    tiff = bytearray(pictures.pillow(np.zeros((8, 8, 3), np.uint8), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HHI", tag, 4, 1)) + 8
        tiff[at : at + 4] = struct.pack("<I", side)
    extended = b"VP8X" + struct.pack("<II", 10, 0) + struct.pack("<I", side - 1)[:3] * 2
    tiny = pictures.pillow(np.zeros((8, 8, 3), np.uint8), "WEBP")[12:]
    webp = b"RIFF" + struct.pack("<I", 4 + len(extended + tiny)) + b"WEBP" + extended + tiny
    return {"jpg": bytes(jpeg), "png": bytes(png), "bmp": bytes(bmp), "tiff": bytes(tiff)} | {
        "webp": webp
    }


@pytest.mark.behaviour(46)
@pytest.mark.parametrize("name", ["jpg", "png", "bmp", "tiff", "webp"])
def test_a_decompression_bomb_is_refused_by_its_header_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def taken(*_: object, **__: object) -> None:
        raise AssertionError("a bomb reached a decoder")

    bomb = _bombs(50_000)[name]
    monkeypatch.setattr(cv2, "imdecode", taken)
    monkeypatch.setattr(Image.Image, "load", taken)
    monkeypatch.setattr(Path, "read_bytes", taken)
    expected = r"cannot be read as WebP" if name == "webp" else r"50000×50000 is more than --max-"
    with pytest.raises(InputError, match=expected):
        decode_picture(bomb, name)
    source = tmp_path / f"bomb.{name}"
    source.write_bytes(bomb)
    _, dropped, _ = translate((Entry("image", source, tmp_path / "b.png"),))
    with pytest.raises(InputError, match=rf"bomb\.{name}: {expected}"):
        raise dropped[0].error


@pytest.mark.behaviour(46)
def test_a_small_tiff_of_giant_tiles_is_refused_by_its_header_errors() -> None:
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (277, 1)]
    tags += [(322, 30_000), (323, 30_000), (324, 8), (325, 64)]
    records = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + records + bytes(68)
    with pytest.raises(InputError, match="its tiles are far larger than the image"):
        decode_picture(data, "a.tif")


@pytest.mark.behaviour(46)
def test_the_limit_is_ours_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name, data in WHOLE.items():
        assert decode_picture(data, name, max_pixels=48 * 64).pixels.shape == (48, 64, 3)
        with pytest.raises(InputError, match="64×48 is more than --max-pixels 3071 allows"):
            decode_picture(data, name, max_pixels=48 * 64 - 1)


def test_animations_and_pages_errors() -> None:
    stills = [Image.fromarray(pictures.photo(seed=seed)) for seed in (0, 1)]
    for format_ in ("PNG", "WEBP"):
        file = io.BytesIO()
        stills[0].save(file, format_, save_all=True, append_images=stills[1:])
        with pytest.raises(InputError, match="a: is an animation; name it by itself"):
            decode_picture(file.getvalue(), "a")
    file = io.BytesIO()
    stills[0].save(file, "TIFF", save_all=True, append_images=stills[1:])
    with pytest.raises(InputError, match="a: holds several pages"):
        decode_picture(file.getvalue(), "a")


def test_a_thumbnail_beside_the_picture_of_a_tiff_is_no_second_page() -> None:
    file = io.BytesIO()
    small = Image.fromarray(pictures.photo(8, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(pictures.photo()).save(file, "TIFF", save_all=True, append_images=[small])
    assert decode_picture(file.getvalue(), "a").pixels.shape == (48, 64, 3)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_colour_modes_without_a_meaning_for_us_errors(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "TIFF")
    with pytest.raises(InputError, match=rf"a\.tif: colour mode {mode} is not supported; convert"):
        decode_picture(file.getvalue(), "a.tif")


@pytest.mark.parametrize(("format_", "side"), [("jpg", 65536), ("webp", 16384)])
def test_a_picture_too_large_for_its_format_errors(format_: Any, side: int) -> None:
    wide = np.zeros((1, side, 3), np.uint8)
    with pytest.raises(OutputError, match=rf"{side}×1 is more than .* can hold .*--format png"):
        encode_picture(wide, format_)


# Threads, and broken bytes


def test_many_threads_decode_and_encode_alike(capfd: pytest.CaptureFixture[str]) -> None:
    inks = pictures.cmyk(
        np.dstack([pictures.photo(), pictures.alpha()]),
        "TIFF",
        icc_profile=pictures.cmyk_profile(),
    )
    sources = [*WHOLE.values(), inks] * 4
    extras = Extras(alpha=pictures.alpha(), icc=pictures.srgb_profile())

    def both(data: bytes) -> bytes:
        pixels = decode_picture(data, "a").pixels
        formats: tuple[Any, ...] = ("png", "jpg", "webp", "tiff", "bmp")
        return b"".join(encode_picture(pixels, format_, extras=extras) for format_ in formats)

    expected = [both(data) for data in sources]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(both, sources)) == expected
    assert capfd.readouterr() == ("", "")


@pytest.mark.behaviour(14, 46)
# As outside of tests, where the warnings of Pillow are ignored.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", WHOLE)
def test_whatever_bytes_change_there_is_a_picture_or_an_error(name: str) -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(WHOLE[name])
        reach = min(len(broken), int(random.choice([64, 400, 1 << 20])))
        for position in random.integers(0, reach, random.integers(1, 6)):
            broken[position] = random.integers(0, 256)
        try:
            picture = decode_picture(bytes(broken), name, max_pixels=10**6)
        except InputError:
            continue
        height, width, channels = picture.pixels.shape
        assert (0 < height * width <= 10**6, channels) == (True, 3)
        encode_picture(picture.pixels, "png", extras=picture.extras)


# Levels


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("format_", ["png", "tiff"])
@pytest.mark.parametrize(("largest", "level"), [(4000, 4095), (1023, 1023), (100, 255)])
def test_few_levels_of_sixteen_bits_are_said_and_white_sets_the_range(
    format_: str, largest: int, level: int
) -> None:
    ramp = np.linspace(0, largest, 48 * 64).astype(np.uint16).reshape(48, 64)
    deep = np.dstack([ramp, ramp.T.reshape(48, 64), ramp[::-1]])
    data = pictures.png(deep) if format_ == "png" else pictures.tiff(deep)
    (note, *_) = decode_picture(data, "a").notes
    assert note == (
        f"its 16 bits hold no level above {level}, so it is nearly black; "
        f"--white {level} makes that level white"
    )
    seen = decode_picture(data, "a", white=level)
    np.testing.assert_array_equal(seen.pixels, np.rint(deep * (255 / level)).astype(np.uint8))
    assert not any("nearly black" in each for each in seen.notes)
    half = decode_picture(data, "a", white=level // 2, pixel_type="float16").pixels
    expected = np.minimum(deep / (level // 2), 1)
    assert np.abs(half.astype(np.float64) - expected).max() < 0.001


def test_the_full_range_of_a_dark_picture_of_twelve_bits_is_its_own() -> None:
    deep = np.full((8, 8, 1), 4095, np.uint16)
    assert (decode_picture(pictures.tiff(deep, bits=12), "a").pixels == 255).all()
    seen = decode_picture(pictures.tiff(deep // 2, bits=12), "a", white=2047)
    assert (seen.pixels == 255).all()


# Resolution, and where a picture lies


@pytest.mark.parametrize("source", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("output", ["png", "jpg", "tif"])
def test_the_resolution_is_kept_and_turned_with_the_picture(
    tmp_path: Path, source: str, output: str
) -> None:
    for orientation, expected in ((1, (300, 150)), (6, (150, 300))):
        block = pictures.exif(orientation)
        data = pictures.pillow(pictures.photo(), source, dpi=(300, 150), exif=block)
        result = one(tmp_path, f"{orientation}.x", data, f"{orientation}.{output}")
        assert result.info["dpi"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("output", ["png", "jpg", "tif"])
def test_no_resolution_is_made_up(tmp_path: Path, output: str) -> None:
    result = one(tmp_path, "a.png", pictures.png(pictures.photo()), f"a.{output}")
    assert "dpi" not in result.info or result.info["dpi"] == (1, 1)


GEO = {
    33550: (10.0, 10.0, 0.0),
    33922: (0.0, 0.0, 0.0, 500_000.0, 4_600_000.0, 0.0),
    34735: (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, 1),
    34737: "WGS 84|",
}


def _geo_tiff(orientation: int = 1, **options: Any) -> bytes:
    photo, file = pictures.turned(pictures.photo(), orientation), io.BytesIO()
    extra = [
        (33550, 12, 3, GEO[33550], True),
        (33922, 12, 6, GEO[33922], True),
        (34735, 3, 12, GEO[34735], True),
        (34737, 2, 7, GEO[34737], True),
        (274, 3, 1, orientation, True),
    ]
    tifffile.imwrite(file, photo, photometric="rgb", metadata=None, extratags=extra, **options)
    return file.getvalue()


def test_geotiff_is_kept_where_every_pixel_stays_in_its_place(tmp_path: Path) -> None:
    for options in ({}, {"description": "so that there is EXIF, too"}):
        kept = one(
            tmp_path, "a.tif", _geo_tiff(**options), "a.tif", lambda p: 255 - p, overwrite=True
        )
        assert {tag: kept.tag_v2.get(tag) for tag in GEO} == GEO
        np.testing.assert_array_equal(np.asarray(kept), 255 - pictures.photo())
        with tifffile.TiffFile(tmp_path / "out" / "a.tif") as read:
            assert read.pages[0].geotiff_tags["ModelPixelScale"] == [10.0, 10.0, 0.0]
            assert read.pages[0].description == options.get("description", "")
    entry = Entry("image", tmp_path / "a.tif", tmp_path / "b.png")
    (note,) = translate((entry,))[2]
    assert note.endswith("a.tif: its GeoTIFF tags were left out, since only TIFF holds them")
    for name, orientation, size, reason in (
        (
            "b.tif",
            1,
            (24, 32),
            "its GeoTIFF tags were left out, since it has another size than its source",
        ),
        ("c.tif", 6, (64, 48), "it is turned upright, and its GeoTIFF tags were left out"),
    ):
        (tmp_path / "a.tif").write_bytes(_geo_tiff(orientation))
        entry = Entry("image", tmp_path / "a.tif", tmp_path / name)
        (path,), _, notes = translate((entry,), partial(_resized, size=size))
        assert not set(GEO) & set(Image.open(io.BytesIO(path.read_bytes())).tag_v2)
        assert [note for note in notes if reason in note]


def test_a_band_that_is_not_called_alpha_is_not_called_so_in_the_output(tmp_path: Path) -> None:
    bands = np.dstack([pictures.photo(), pictures.alpha()])
    result = one(tmp_path, "a.tif", pictures.tiff(bands, tags={338: (0,)}), "b.tif")
    assert result.tag_v2[338] == (0,)
    with tifffile.TiffFile(tmp_path / "out" / "b.tif") as read:
        np.testing.assert_array_equal(read.pages[0].asarray(), bands)


@pytest.mark.parametrize("output", ["jpg", "bmp"])
def test_a_band_that_is_not_called_alpha_is_not_called_transparency_errors(
    tmp_path: Path, output: str
) -> None:
    bands = np.dstack([pictures.photo(), pictures.alpha()])
    source = tmp_path / "a.tif"
    source.write_bytes(pictures.tiff(bands, tags={338: (0,)}))
    written, dropped, _ = translate((Entry("image", source, tmp_path / f"b.{output}"),))
    assert written == []
    message = (
        r"a\.tif: has a band beside its colours that is not declared to be alpha, and "
        rf"{output.upper().replace('JPG', 'JPEG')} cannot hold it; write it with --format tiff"
    )
    with pytest.raises(InputError, match=message):
        raise dropped[0].error


def test_an_encoder_that_fails_is_called_an_encoder_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: Any) -> None:
        raise cv2.error("OpenCV(5): error: (-215)\n in function 'imencode'")

    monkeypatch.setattr(cv2, "imencode", failing)
    with pytest.raises(OutputError, match=r"^PNG encoder: the encoder gave up$"):
        encode_picture(pictures.photo(), "png", png_level=6)
