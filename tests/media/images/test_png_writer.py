"""The PNG writer: the same pixels in every decoder, whole chunks, the same bytes each time."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.media.images import png_writer
from cyclegan_batch.media.images.codec import Extras, decode_picture, encode_picture
from cyclegan_batch.media.images.png_writer import encode_png
from tests.conftest import REPOSITORY
from tests.synthesis import pictures

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (33, 17), (256, 256), (301, 1203)]
KINDS = [(np.uint8, 3), (np.uint8, 4), (np.uint16, 3), (np.uint16, 4)]


def _random(height: int, width: int, channels: int, dtype: Any) -> Any:
    largest = np.iinfo(dtype).max
    generator = np.random.default_rng(height * width + channels)
    return generator.integers(0, largest, (height, width, channels), dtype, endpoint=True)


def _flat(height: int, width: int, channels: int, dtype: Any) -> Any:
    return np.full((height, width, channels), np.iinfo(dtype).max * 3 // 5, dtype)


def _gradient(height: int, width: int, channels: int, dtype: Any) -> Any:
    down, across = np.mgrid[0:height, 0:width]
    bands = [(across * 257 + down * (13 + band)) for band in range(channels)]
    return np.stack(bands, axis=-1).astype(dtype)


def _photograph(height: int, width: int, channels: int, dtype: Any) -> Any:
    photo = np.dstack([pictures.photo(), pictures.alpha()])[..., :channels]
    resized = cv2.resize(photo, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized.astype(dtype) * (257 if dtype == np.uint16 else 1)


def assert_decoded_alike(data: bytes, samples: Any) -> None:
    """OpenCV, FFmpeg and, for 8 bits (it cuts 16-bit colours), Pillow return ``samples``."""
    deep, alpha = samples.dtype == np.uint16, samples.shape[2] == 4
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert by_opencv is not None
    order = cv2.COLOR_BGRA2RGBA if alpha else cv2.COLOR_BGR2RGB
    np.testing.assert_array_equal(cv2.cvtColor(by_opencv, order), samples)
    with av.open(io.BytesIO(data), format="png_pipe") as container:
        (frame,) = container.decode(video=0)
    assert (
        frame.format.name
        == {
            (False, False): "rgb24",
            (False, True): "rgba",
            (True, False): "rgb48be",
            (True, True): "rgba64be",
        }[deep, alpha]
    )
    np.testing.assert_array_equal(frame.to_ndarray(), samples)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == samples.shape[1::-1]
        if not deep:
            assert image.mode == ("RGBA" if alpha else "RGB")
            np.testing.assert_array_equal(np.asarray(image), samples)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a whole file, after checking the signature and every checksum."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = [], 8
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content = data[position + 8 : position + 8 + length]
        assert len(content) == length
        check = data[position + 8 + length : position + 12 + length]
        assert zlib.crc32(kind + content) == int.from_bytes(check), kind
        chunks.append((kind, content))
        position += 12 + length
    return chunks


@pytest.mark.parametrize("content", [_random, _flat, _gradient, _photograph])
@pytest.mark.parametrize(("dtype", "channels"), KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_decoder_returns_the_pixels(
    content: Any, dtype: Any, channels: int, size: tuple[int, int]
) -> None:
    samples = content(*size, channels, dtype)
    assert_decoded_alike(encode_png(samples), samples)


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_views_and_both_byte_orders_are_written_alike(dtype: Any, channels: int) -> None:
    samples = _random(40, 60, channels, dtype)
    view = np.asfortranarray(samples)[::2, ::-3]
    expected = encode_png(np.ascontiguousarray(view))
    assert encode_png(view) == expected
    assert encode_png(view.astype(view.dtype.newbyteorder(">"))) == expected


@pytest.mark.parametrize(("dtype", "channels"), KINDS)
def test_the_file_is_whole_and_the_same_each_time(dtype: Any, channels: int) -> None:
    samples = _photograph(700, 900, channels, dtype)
    data = encode_png(samples)
    assert encode_png(samples) == data
    chunks = _chunks(data)
    kinds = [kind for kind, _ in chunks]
    assert kinds[0] == b"IHDR"
    assert kinds[1:-1] == [b"IDAT"] * (len(kinds) - 2)
    assert chunks[-1] == (b"IEND", b"")
    assert all(content for kind, content in chunks if kind == b"IDAT")
    bits, colour = (16 if dtype == np.uint16 else 8), {3: 2, 4: 6}[channels]
    assert chunks[0][1] == struct.pack(">IIBBBBB", 900, 700, bits, colour, 0, 0, 0)
    inflater = zlib.decompressobj()
    rows = inflater.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"))
    assert inflater.eof
    assert not inflater.unused_data
    assert len(rows) == 700 * (900 * channels * samples.itemsize + 1)


def test_a_stream_longer_than_a_chunk_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_writer, "_LONGEST_CHUNK", 1000)
    samples = _random(64, 64, 3, np.uint8)
    data = encode_png(samples)
    lengths = [len(content) for kind, content in _chunks(data) if kind == b"IDAT"]
    assert max(lengths) == 1000
    assert_decoded_alike(data, samples)


def test_memory_beside_the_image_is_the_file_and_a_band() -> None:
    samples = _photograph(2000, 3000, 3, np.uint8)
    encode_png(samples[:2])
    tracemalloc.start()
    try:
        data = encode_png(samples)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The file once in parts and once joined.
    assert peak < 2 * len(data) + 8 * png_writer._BAND
    assert peak < samples.nbytes + 2 * len(data)


def test_without_isal_zlib_writes_the_same_pixels() -> None:
    code = (
        "import sys, zlib; sys.modules['isal'] = None\n"
        "import numpy as np\n"
        "from cyclegan_batch.media.images import png_writer\n"
        "assert png_writer._new_compressor is zlib.compressobj\n"
        "samples = np.arange(30 * 40 * 3).astype(np.uint8).reshape(30, 40, 3)\n"
        "sys.stdout.buffer.write(png_writer.encode_png(samples))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True
    )
    samples = np.arange(30 * 40 * 3).astype(np.uint8).reshape(30, 40, 3)
    assert_decoded_alike(done.stdout, samples)


@pytest.mark.parametrize("level", [None, 0, 6, 9])
@pytest.mark.parametrize("deep", [False, True])
def test_metadata_stand_before_the_pixels_at_every_level(level: int | None, deep: bool) -> None:
    photo = pictures.photo()
    pixels = (photo / np.float32(255)).astype(np.float16) if deep else photo
    extras = Extras(
        alpha=pictures.alpha(),
        bits=16 if deep else 8,
        icc=pictures.srgb_profile(),
        exif=b"MM\0*\0\0\0\x08\0\0\0\0\0\0",
        dpi=(300.0, 150.0),
        colour_chunks=((b"gAMA", struct.pack(">I", 45455)),),
    )
    data = encode_picture(pixels, "png", png_level=level, extras=extras)
    chunks = _chunks(data)
    kinds = [kind for kind, _ in chunks]
    assert kinds[:6] == [b"IHDR", b"gAMA", b"pHYs", b"iCCP", b"eXIf", b"IDAT"]
    contents = dict(chunks)
    assert contents[b"pHYs"] == struct.pack(">IIB", 11811, 5906, 1)
    assert zlib.decompress(contents[b"iCCP"].removeprefix(b"ICC profile\0\0")) == extras.icc
    assert contents[b"eXIf"] == extras.exif
    read = decode_picture(data, "a.png", pixel_type="float16" if deep else "uint8")
    assert read.extras.icc == extras.icc
    np.testing.assert_array_equal(read.pixels, pixels)
    alpha = pictures.alpha().astype(np.uint16) * 257 if deep else pictures.alpha()
    np.testing.assert_array_equal(read.extras.alpha, alpha)


def test_levels_trade_bytes_for_time_and_keep_the_pixels() -> None:
    photo = _photograph(300, 400, 3, np.uint8)
    files = [encode_picture(photo, "png", png_level=level) for level in range(10)]
    for data in files:
        assert_decoded_alike(data, photo)
    assert len(files[0]) > photo.nbytes
    assert len(files[9]) <= len(files[6]) < len(files[1])
    assert len(files[9]) < len(encode_picture(photo, "png"))


@pytest.mark.corpus
def test_all_of_pngsuite_is_written_pixel_exact(corpus: Path) -> None:
    files = sorted((corpus / "images" / "pngsuite").rglob("[!x]*.png"))
    assert len(files) > 100
    for path in files:
        with Image.open(path) as image:
            image.load()
            eight_bits = np.asarray(image.convert("RGBA"))
        assert_decoded_alike(encode_png(eight_bits), eight_bits)
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert stored is not None
        samples = stored if stored.ndim == 3 else np.dstack([stored] * 3)
        assert_decoded_alike(encode_png(samples), samples)
