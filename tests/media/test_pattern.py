"""The one grammar of ``f_%06d.png``: what FFmpeg's image2 demuxer accepts."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.media.pattern import Pattern, parse_pattern, pattern_files
from tests.synthesis import streams

PATTERNS = [
    ("f_%d.png", "f_7.png", Pattern("f_", 0, ".png")),
    ("f_%1d.png", "f_7.png", Pattern("f_", 1, ".png")),
    ("f_%06d.png", "f_000007.png", Pattern("f_", 6, ".png")),
    ("f_%6d.png", "f_000007.png", Pattern("f_", 6, ".png")),
    ("f_%0006d.png", "f_000007.png", Pattern("f_", 6, ".png")),
    ("f_%020d.png", "f_00000000000000000007.png", Pattern("f_", 20, ".png")),
    ("%d%%.png", "7%.png", Pattern("", 0, "%.png")),
    ("100%%_%02d.png", "100%_07.png", Pattern("100%_", 2, ".png")),
    ("a%%d_%d.png", "a%d_7.png", Pattern("a%d_", 0, ".png")),
    ("a%5%_%d.png", "a%_7.png", Pattern("a%_", 0, ".png")),
]
"""Each with a file that it stands for."""

NO_PATTERNS = [
    ("f_7.png", "f_7.png"),
    ("f_%%d.png", "f_%d.png"),
    ("f_%%06d.png", "f_%06d.png"),
    ("f_%d_%d.png", "f_7_7.png"),
    ("50% off_%d.png", "50% off_7.png"),
    ("f_%d%.png", "f_7%.png"),
    ("f_%-2d.png", "f_7.png"),
    ("f_%i.png", "f_7.png"),
    ("f_%0256d.png", "f_7.png"),
    ("f_%0999999999d.png", "f_7.png"),
    (f"f_%{'9' * 200}d.png", "f_7.png"),
    ("f_%", "f_%"),
]
"""Each with a file that one might take it for."""


@pytest.mark.parametrize(("name", "file", "pattern"), PATTERNS)
def test_a_pattern_is_what_ffmpeg_reads_as_one(
    tmp_path: Path, name: str, file: str, pattern: Pattern
) -> None:
    assert parse_pattern(name) == pattern
    assert pattern.name(7) == file
    assert pattern.number(file) == 7
    (tmp_path / file).write_bytes(streams.cover_picture())
    assert pattern_files(tmp_path / name) == {7: tmp_path / file}
    assert frames_by_ffmpeg(tmp_path / name) == 1


@pytest.mark.parametrize(("name", "file"), NO_PATTERNS)
def test_any_other_percent_sign_makes_no_pattern_errors(
    tmp_path: Path, name: str, file: str
) -> None:
    assert parse_pattern(name) is None
    (tmp_path / file).write_bytes(streams.cover_picture())
    with pytest.raises(InputError, match="is no pattern of numbered images: write exactly one num"):
        pattern_files(tmp_path / name)
    if name != file:  # FFmpeg reads that as the one file of this name
        with pytest.raises(av.error.FileNotFoundError):
            frames_by_ffmpeg(tmp_path / name)


def frames_by_ffmpeg(pattern: Path) -> int:
    folder = str(pattern.parent).replace("%", "%%")
    options = {"pattern_type": "sequence", "start_number": "7"}
    with av.open(f"file:{folder}/{pattern.name}", format="image2", options=options) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("f_%d.png", "f_07.png"),
        ("f_%d.png", "f_.png"),
        ("f_%03d.png", "f_07.png"),
        ("f_%03d.png", "f_0007.png"),
        ("f_%d.png", "f_7.jpg"),
        ("f_%d.png", "f_\u0667.png"),
    ],
)
def test_a_name_of_other_digits_does_not_match(pattern: str, name: str) -> None:
    parsed = parse_pattern(pattern)
    assert parsed is not None
    assert parsed.number(name) is None


def test_numbers_may_outgrow_the_width_and_begin_anywhere(tmp_path: Path) -> None:
    for name in ("f_0.png", "f_9.png", "f_09.png", "f_10.png", "f_11.png", "f_x.png"):
        (tmp_path / name).touch()
    parsed = parse_pattern("f_%d.png")
    assert parsed is not None
    assert parsed.number("f_0.png") == 0
    (tmp_path / "f_0.png").unlink()
    files = pattern_files(tmp_path / "f_%1d.png")
    assert list(files) == [9, 10, 11]
    assert files[10] == tmp_path / "f_10.png"


def test_a_folder_that_cannot_be_listed_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*f_%d\.png: No such file or directory; ch"):
        pattern_files(tmp_path / "missing" / "f_%d.png")
