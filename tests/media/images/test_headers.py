"""The headers of JPEGs without metadata, which Pillow does not read."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.media.images import headers
from cyclegan_batch.media.images.headers import read_header
from cyclegan_batch.media.images.image_header import Header
from tests.synthesis import pictures

PHOTO = pictures.photo()

PLAIN = {
    "colour": pictures.pillow(PHOTO, "JPEG"),
    "grey": pictures.pillow(PHOTO[..., 0], "JPEG"),
    "progressive": pictures.pillow(PHOTO, "JPEG", progressive=True),
    "per inch": pictures.pillow(PHOTO, "JPEG", dpi=(300, 200)),
    "per centimetre": pictures.pillow(PHOTO, "JPEG").replace(
        b"JFIF\0\1\1\0\0\1\0\1", b"JFIF\0\1\1\2\0\x76\0\x27"
    ),
    "comment": pictures.pillow(PHOTO, "JPEG", comment=b"a comment"),
    "restarts": pictures.pillow(PHOTO, "JPEG", restart_marker_blocks=2),
}

OTHERS = {
    "exif": pictures.pillow(PHOTO, "JPEG", exif=pictures.exif(6)),
    "profile": pictures.pillow(PHOTO, "JPEG", icc_profile=bytes(200)),
    "inks": pictures.cmyk(np.dstack([PHOTO, pictures.alpha()]), "JPEG"),
    "cut off": PLAIN["colour"][:200],
}


def by_pillow(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Header | str:
    """Return the header, or the reason why there is none, as Pillow finds it."""
    with monkeypatch.context() as patch:
        patch.setattr(headers, "_plain_jpeg", lambda head: None)
        return described(data)


def described(data: bytes) -> Header | str:
    try:
        return read_header(io.BytesIO(data), "a.jpg", max_pixels=1 << 32)
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_the_header_of_a_jpeg_is_the_one_that_pillow_reads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (PLAIN | OTHERS)[name]
    assert described(data) == by_pillow(data, monkeypatch)
    assert (headers._plain_jpeg(data) is not None) == (name in PLAIN)


@pytest.mark.behaviour(15)
def test_damaged_headers_of_jpegs_are_read_or_refused_as_pillow_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(1)
    read = 0
    for _ in range(3000):
        data = bytearray(chance.choice(list(PLAIN.values()))[:1000])
        for _ in range(chance.randint(1, 12)):
            at = chance.randrange(2, len(data))
            change = chance.choice([b"\xff", b"\0", b"\x10", b"\xc2", b"\xda", b"\xe0", b""])
            data[at : at + 1] = change
        result = described(bytes(data))
        assert result == by_pillow(bytes(data), monkeypatch)
        read += isinstance(result, Header)
    assert 500 < read < 2500


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("length", [9, 12])
def test_a_png_that_ends_within_its_header_is_told_in_words_errors(length: int) -> None:
    with pytest.raises(InputError, match="cannot be read as PNG: it ends within its header; "):
        read_header(io.BytesIO(pictures.png(PHOTO)[:length]), "a.png", max_pixels=1 << 32)
