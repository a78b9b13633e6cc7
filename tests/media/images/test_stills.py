"""AVIF, GIF, HEIC and JPEG 2000: how they are decoded, what they become, what is refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.errors import InputError
from cyclegan_batch.job.inputs import find_inputs, naming
from cyclegan_batch.media.formats import Entry, sniff_format
from cyclegan_batch.media.images.codec import decode_picture
from cyclegan_batch.media.images.headers import read_header
from cyclegan_batch.media.images.image_header import exif_orientation
from cyclegan_batch.media.images.stills import _primary_item
from cyclegan_batch.wording import grouped
from tests.media.images.test_shards import one, translate
from tests.synthesis import hdr, pictures


def heic(samples: Any, *more: Any, bits: int = 8, **options: Any) -> bytes:
    """Return images ``(H, W, 3)`` as one HEIC; skip where pillow-heif is not installed."""
    pillow_heif = pytest.importorskip("pillow_heif")
    mode = "RGB" if bits == 8 else "RGB;16"
    file = io.BytesIO()
    made = pillow_heif.HeifFile()
    for each in (samples, *more):
        made.add_frombytes(mode, each.shape[1::-1], each.tobytes())
    made.save(file, quality=-1, chroma=444, **options)
    return file.getvalue()


def avif(samples: Any, **options: Any) -> bytes:
    return pictures.pillow(samples, "AVIF", quality=95, subsampling="4:4:4", **options)


def gif(samples: Any, **options: Any) -> bytes:
    return pictures.pillow(samples, "GIF", **options)


def jp2(samples: Any, codecformat: str = "jp2") -> bytes:
    return imagecodecs.jpeg2k_encode(samples, level=0, codecformat=codecformat, reversible=True)


SHADES = np.stack([np.add.outer(np.arange(40), np.arange(60) + shift) for shift in (0, 30, 60)], -1)
"""A smooth image ``(40, 60, 3)`` with values below 160."""
PHOTO = SHADES.astype(np.uint8)


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("make", [avif, heic, jp2])
def test_a_still_is_seen_as_it_was_written(make: Any) -> None:
    difference = np.abs(decode_picture(make(PHOTO), "a").pixels.astype(int) - PHOTO)
    assert difference.max() <= 4
    assert difference.mean() < 1


@pytest.mark.behaviour(15)
@pytest.mark.parametrize("codecformat", ["jp2", "j2k"])
@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 3), (40, 60, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_jpeg_2000_is_exact_at_any_depth(shape: Any, kind: Any, codecformat: str) -> None:
    top = np.iinfo(kind).max
    samples = np.random.default_rng(0).integers(0, top, shape, kind, endpoint=True)
    seen = decode_picture(jp2(samples, codecformat), "a")
    expected = np.rint(samples / (top / 255)).astype(np.uint8)
    colours = expected[..., :3] if expected.ndim == 3 else np.stack([expected] * 3, -1)
    np.testing.assert_array_equal(seen.pixels, colours)
    if shape[2:] == (4,):
        np.testing.assert_array_equal(seen.extras.alpha, expected[..., 3])


@pytest.mark.behaviour(15)
def test_ten_bits_of_avif_and_heic_reach_a_model_that_takes_them() -> None:
    ramp = np.tile(np.arange(1024, dtype=np.uint16), (16, 1))
    deep = np.stack([ramp] * 3, -1)
    for data in (
        imagecodecs.avif_encode(deep, level=100, bitspersample=10, pixelformat="444"),
        heic(deep * 64, bits=10),
    ):
        seen = decode_picture(data, "a", pixel_type="float16")
        assert seen.extras.bits == 16
        assert len(np.unique(seen.pixels)) > 600
        assert np.abs(seen.pixels.astype(np.float64) - deep / 1023).max() < 0.006


@pytest.mark.behaviour(15)
def test_transparency_of_gif_and_avif_is_kept(tmp_path: Path) -> None:
    palette = Image.fromarray((np.arange(48 * 64) % 7).astype(np.uint8).reshape(48, 64))
    palette = palette.convert("P")
    file = io.BytesIO()
    palette.save(file, "GIF", transparency=3)
    expected = np.asarray(Image.open(file).convert("RGBA"))
    result = one(tmp_path, "a.gif", file.getvalue(), "b.png")
    np.testing.assert_array_equal(np.asarray(result), expected)
    assert {0, 255} == set(np.unique(expected[..., 3]))
    rgba = np.dstack([pictures.photo(), pictures.alpha()])
    result = one(tmp_path, "a.avif", avif(rgba), "b.avif")
    assert result.format == "AVIF"
    assert np.abs(np.asarray(result)[..., 3].astype(int) - pictures.alpha()).max() <= 4


@pytest.mark.parametrize("quality", [None, 100])
def test_avif_is_written_with_its_profile_camera_and_all_its_chroma(
    tmp_path: Path, quality: int | None
) -> None:
    profile, photo = pictures.srgb_profile(), pictures.photo(128, 128)
    source = pictures.pillow(photo, "PNG", icc_profile=profile, exif=pictures.exif(6, artist="A"))
    result = one(tmp_path, "a.png", source, "b.avif", quality=quality)
    assert result.info["icc_profile"] == profile
    assert (result.getexif()[0x013B], result.getexif().get(0x0112, 1)) == ("A", 1)
    difference = np.abs(np.asarray(result).astype(int) - np.rot90(photo, -1))
    assert difference.mean() < 2.5


@pytest.mark.behaviour(16)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("make", [avif, heic])
def test_a_still_is_turned_once(make: Any, orientation: int) -> None:
    # Both writers convert the EXIF orientation to the properties irot and imir.
    stored = np.ascontiguousarray(pictures.turned(PHOTO, orientation))
    seen = decode_picture(make(stored, exif=pictures.exif(orientation, artist="A")), "a")
    assert seen.pixels.shape == PHOTO.shape
    assert np.abs(seen.pixels.astype(int) - PHOTO).max() <= 6
    assert seen.extras.exif is not None
    assert b"A\0" in seen.extras.exif
    assert exif_orientation(seen.extras.exif) == 1


# What they become


@pytest.mark.behaviour(13)
def test_what_has_no_writer_becomes_png_and_it_is_said_with_a_count(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in {
        "a.gif": gif(PHOTO),
        "a.png": pictures.png(PHOTO),
        "b.jp2": jp2(PHOTO),
        "c.avif": avif(PHOTO),
        "d.gif": gif(PHOTO),
    }.items():
        (folder / name).write_bytes(data)
    tree = find_inputs([folder], tmp_path / "out")
    written, dropped, _ = translate(tree.entries)
    assert dropped == []
    assert {path.name: sniff_format(path.read_bytes()[:64]) for path in written} == {
        "a.gif.png": "png",
        "a.png": "png",
        "b.png": "png",
        "c.avif": "avif",
        "d.png": "png",
    }
    assert grouped(tree.notes)[:1] == (
        "3 images become PNG, since the format is not written here: .gif 2, .jp2 1; "
        "--format chooses another",
    )
    tree = find_inputs([folder / "d.gif", folder / "c.avif"], tmp_path / "out", format="avif")
    assert [entry.output.name for entry in tree.entries] == ["d.avif", "c.avif"]
    assert tree.notes == ()


@pytest.mark.behaviour(14)
def test_heic_without_its_extra_is_named_and_never_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming, "_reads_heic", lambda: False)
    for name in ("a.HEIC", "b.png", "c.json"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    for copy_others in (False, True):
        entries = find_inputs([tmp_path], tmp_path.parent / "o", copy_others=copy_others).entries
        kinds = {entry.source.name: entry.kind for entry in entries}
        assert kinds.pop("c.json", "other") == "other"
        assert kinds == {"a.HEIC": "unread", "b.png": "image"}
    assert "pip install 'cyclegan-batch[heic]'" in naming.why_unread(entries[0])


@pytest.mark.parametrize("make", [avif, gif, heic, jp2])
def test_the_format_is_known_by_content(tmp_path: Path, make: Any) -> None:
    source = tmp_path / "photo.jpg"
    source.write_bytes(make(PHOTO))
    _, dropped, _ = translate((Entry("image", source, tmp_path / "b.png"),))
    assert dropped == []
    source.rename(tmp_path / "photo")
    assert find_inputs([tmp_path / "photo"], tmp_path / "o.png").entries[0].kind == "image"


# What is refused


@pytest.mark.behaviour(14)
@pytest.mark.parametrize(
    ("format_", "message"),
    [("GIF", "is an animation; name it by itself"), ("AVIF", "is an animation; make a video")],
)
def test_an_animation_errors(format_: str, message: str) -> None:
    file = io.BytesIO()
    other = Image.fromarray(255 - PHOTO)
    Image.fromarray(PHOTO).save(file, format_, save_all=True, append_images=[other])
    with pytest.raises(InputError, match=f"a: {message}"):
        decode_picture(file.getvalue(), "a")


@pytest.mark.behaviour(14)
def test_several_pictures_in_a_heic_errors() -> None:
    with pytest.raises(InputError, match="a: holds several images; save the one"):
        decode_picture(heic(PHOTO, 255 - PHOTO), "a")


def _with_size(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    return data.replace(old, new)


@pytest.mark.behaviour(46)
@pytest.mark.parametrize("name", ["gif", "jp2", "avif", "heic"])
def test_a_bomb_is_refused_by_its_header_errors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    still = np.tile(PHOTO[:32, :32], (2, 2, 1))
    size, bomb = struct.pack(">II", 64, 64), struct.pack(">II", 40_000, 40_000)
    if name == "gif":
        sizes = struct.pack("<HH", 64, 64), struct.pack("<HH", 40_000, 40_000)
        data = _with_size(gif(still), *sizes)
    else:
        data = _with_size({"jp2": jp2, "avif": avif, "heic": heic}[name](still), size, bomb)

    def taken(*_: object, **__: object) -> None:
        raise AssertionError("a bomb reached a decoder")

    monkeypatch.setattr(Image.Image, "convert", taken)
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", taken)
    monkeypatch.setattr("cyclegan_batch.media.images.stills.decode_still", taken)
    expected = r"40000×40000 is more than --max-pixels|cannot be read as"
    with pytest.raises(InputError, match=expected):
        decode_picture(data, "a")


@pytest.mark.behaviour(8)
@pytest.mark.parametrize(("transfer", "word"), [(16, "PQ"), (18, "HLG")])
@pytest.mark.parametrize("name", ["png", "avif", "heic"])
def test_hdr_becomes_sdr_and_that_is_said_or_is_refused(
    name: str, transfer: int, word: str
) -> None:
    data = _tagged(name, transfer)
    with pytest.raises(InputError, match=rf"a: the image is HDR \({word}\), which --hdr refuse"):
        decode_picture(data, "a", hdr="refuse")
    header = read_header(io.BytesIO(data), "a", max_pixels=10**6)
    assert (header.transfer, header.primaries) == (transfer, 9)
    said = word if word == "HLG" else "PQ, peak 1,000 cd/m²"
    for pixel_type in ("uint8", "float16"):
        mapped = decode_picture(data, "a", pixel_type=pixel_type)
        plain = decode_picture(_tagged(name, 13), "a")
        assert mapped.notes == (
            f"is HDR ({said}): it is mapped to SDR; --hdr refuse makes that an error",
        )
        assert plain.notes == ()
        scale = 1 if pixel_type == "uint8" else 255
        seen = mapped.pixels[::9, ::9].reshape(-1, 3).astype(float) * scale
        stored = plain.pixels[::9, ::9].reshape(-1, 3).tolist()
        want = [
            hdr.expected(word, (r / 255, g / 255, b / 255), 1000.0, "srgb") for r, g, b in stored
        ]
        assert np.abs(seen - np.array(want) * 255).max() <= 1
        assert mapped.extras.colour_chunks == ()


@pytest.mark.behaviour(8)
@pytest.mark.parametrize("pixel_type", ["uint8", "float16"])
def test_hdr_of_16_bits_keeps_its_alpha_and_its_depth(pixel_type: Any) -> None:
    ramp = np.tile(np.linspace(0, 65535, 640).astype(np.uint16), (4, 1))
    chunk = (b"cICP", bytes([9, 16, 0, 1]))
    picture = decode_picture(pictures.png(np.dstack([ramp] * 4), chunk), "a", pixel_type=pixel_type)
    alpha = picture.extras.alpha
    assert alpha is not None
    assert alpha.dtype == (np.uint8 if pixel_type == "uint8" else np.uint16)
    assert picture.extras.bits == (8 if pixel_type == "uint8" else 16)
    values = np.unique(picture.pixels[..., 1])
    assert values.min() == 0
    assert values.max() == (255 if pixel_type == "uint8" else 1)
    assert (len(values) > 256) == (pixel_type == "float16")


@pytest.mark.behaviour(8)
def test_the_peak_of_a_png_is_that_of_its_display_else_of_its_content() -> None:
    tags = (b"cICP", bytes([9, 16, 0, 1]))
    display = (b"mDCV", bytes(16) + struct.pack(">II", 600 * 10000, 50))
    light = (b"cLLI", struct.pack(">II", 400 * 10000, 100 * 10000))
    for chunks, peak in (((display, light), 600), ((light,), 400), ((), None)):
        data = pictures.png(PHOTO, tags, *chunks)
        assert read_header(io.BytesIO(data), "a", max_pixels=10**6).peak == peak


def _tagged(name: str, transfer: int) -> bytes:
    """Return an image that is tagged BT.2020 with this transfer characteristic."""
    if name == "png":
        return pictures.png(PHOTO, (b"cICP", bytes([9, transfer, 0, 1])))
    data = avif(PHOTO) if name == "avif" else heic(PHOTO)
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", 9, transfer) + data[at + 4 :]


@pytest.mark.behaviour(14)
def test_a_heic_that_is_cut_off_or_changed_is_a_picture_or_an_error() -> None:
    whole = heic(PHOTO)
    for length in range(0, len(whole), 61):
        with pytest.raises(InputError):
            decode_picture(whole[:length], "a.heic")
    random = np.random.default_rng(0)
    for _ in range(100):
        broken = bytearray(whole)
        for position in random.integers(0, len(broken), random.integers(1, 6)):
            broken[position] = random.integers(0, 256)
        try:
            assert decode_picture(bytes(broken), "a", max_pixels=10**6).pixels.size
        except InputError:
            continue


@pytest.mark.parametrize(
    ("number", "name"), [(18, "sYCC"), (12, "CMYK"), (14, "CIELab"), (21, "number 21")]
)
def test_a_colour_space_of_jpeg_2000_that_is_not_read_is_named_errors(
    number: int, name: str
) -> None:
    data = pictures.pillow(pictures.photo(), "JPEG2000")
    box = b"colr\1\0\0" + (16).to_bytes(4)
    assert data.count(box) == 1
    data = data.replace(box, box[:-1] + bytes([number]))
    with pytest.raises(
        InputError, match=rf"a: colour space {name} is not supported; convert it to"
    ):
        decode_picture(data, "a")


@pytest.mark.behaviour(8)
@pytest.mark.parametrize(("listed", "peak"), [((1, 2), 600), ((2,), 400), ((), None)])
def test_the_peak_of_an_avif_is_that_of_its_display_else_of_its_content(
    listed: tuple[int, ...], peak: float | None
) -> None:
    def box(kind: bytes, *content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(b"".join(content))) + kind + b"".join(content)

    display = box(b"mdcv", bytes(16) + struct.pack(">II", 600 * 10000, 50))
    light = box(b"clli", struct.pack(">HH", 400, 100))
    colours = box(b"colr", b"nclx", struct.pack(">HHHB", 9, 16, 0, 128))
    numbers = bytes([3, *listed])
    lists = struct.pack(">IIHB", 0, 1, 1, len(numbers)) + numbers
    properties = box(b"iprp", box(b"ipco", display, light, colours), box(b"ipma", lists))
    meta = box(b"meta", bytes(4), box(b"pitm", struct.pack(">IH", 0, 1)), properties)
    primary = _primary_item(io.BytesIO(meta))
    assert (primary.primaries, primary.transfer, primary.peak) == (9, 16, peak)
