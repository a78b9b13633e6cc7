"""Image files as source and sink: shards, order, names, and files that fail."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch import frames
from cyclegan_batch.errors import InputError, OutputError, OutputExistsError
from cyclegan_batch.frames import SizeRequirements
from cyclegan_batch.job.inputs import find_inputs
from cyclegan_batch.job.pipeline import run
from cyclegan_batch.job.schedule import Schedule
from cyclegan_batch.job.units import ImageUnit
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.formats import Entry
from cyclegan_batch.media.images import lots, shards
from cyclegan_batch.media.images.shards import (
    ImageShard,
    ImageSource,
    PictureTag,
    plan_images,
)
from cyclegan_batch.media.images.sinks import ImageSink
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import Note, grouped
from tests.job.test_inputs import NAMES
from tests.synthesis import pictures


def entries_in(folder: Path, output: Path, **options: Any) -> tuple[Entry, ...]:
    return find_inputs([folder], output, **options).entries


def unchanged(pixels: Any) -> Any:
    return pixels


def translate(
    entries: tuple[Entry, ...],
    change: Callable[[Any], Any] = unchanged,
    *,
    pixel_type: frames.PixelType = "uint8",
    **options: Any,
) -> tuple[list[Path], list[Dropped], tuple[str, ...]]:
    """Run the images through source and sink; return what was written, dropped and noted."""
    written: list[Path] = []
    dropped: list[Dropped] = []
    notes: tuple[Note, ...] = ()
    for shard in plan_images(entries, TranslateOptions(**options), pixel_type=pixel_type):
        source, sink = ImageSource(shard), ImageSink(shard)
        decode, encode = source.converter(), sink.converter()
        for item in source.read():
            frame = item if isinstance(item, Dropped) else decode(item)
            if not isinstance(frame, Dropped):
                frame = encode(replace(frame, pixels=change(frame.pixels)))
                frame = sink.write(frame)
            if frame is not None:
                dropped.append(frame)
        sink.finish()
        source.close()
        written += [each.path for each in sink.written]
        notes += (*source.notes, *sink.notes)
    return written, dropped, grouped(notes)


def one(
    tmp_path: Path,
    name: str,
    data: bytes,
    output: str,
    change: Callable[[Any], Any] = unchanged,
    **options: Any,
) -> Image.Image:
    """Translate one image and return the result, opened by Pillow."""
    source = tmp_path / name
    source.write_bytes(data)
    entry = Entry("image", source, tmp_path / "out" / output)
    written, dropped, _ = translate((entry,), change, **options)
    assert dropped == []
    image = Image.open(io.BytesIO(written[0].read_bytes()))
    image.load()
    return image


WHOLE = {
    "jpg": pictures.pillow(pictures.photo(), "JPEG"),
    "progressive.jpg": pictures.pillow(pictures.photo(), "JPEG", progressive=True),
    "cmyk.jpg": pictures.cmyk(np.dstack([pictures.photo(), pictures.alpha()]), "JPEG"),
    "png": pictures.png(pictures.photo()),
    "webp": pictures.pillow(pictures.photo(), "WEBP"),
    "lossless.webp": pictures.pillow(pictures.photo(), "WEBP", lossless=True),
    "bmp": pictures.pillow(pictures.photo(), "BMP"),
    "tiff": pictures.pillow(pictures.photo(), "TIFF"),
    "lzw.tiff": pictures.pillow(pictures.photo(), "TIFF", compression="tiff_lzw"),
    "avif": pictures.pillow(pictures.photo(), "AVIF"),
    "gif": pictures.pillow(pictures.photo(), "GIF"),
    "jp2": pictures.pillow(pictures.photo(), "JPEG2000"),
    "j2k": pictures.pillow(pictures.photo(), "JPEG2000", no_jp2=True),
    "deep.jp2": imagecodecs.jpeg2k_encode(
        pictures.photo().astype(np.uint16) * 257, level=0, codecformat="jp2"
    ),
}


def test_the_format_is_known_by_content_whatever_the_name_says(tmp_path: Path) -> None:
    result = one(tmp_path, "a.jpg", pictures.png(pictures.photo()), "a.jpg")
    assert result.format == "JPEG"


@pytest.mark.behaviour(46)
def test_a_file_too_large_to_be_a_picture_is_not_read_errors(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    source.write_bytes(pictures.png(pictures.photo()))
    os.truncate(source, 1 << 33)
    _, dropped, _ = translate((Entry("image", source, tmp_path / "b.png"),))
    with pytest.raises(InputError, match="8589934592 bytes are too many for an image"):
        raise dropped[0].error


def test_pictures_are_planned_in_shards_of_256() -> None:
    entries = tuple(
        Entry("image", Path(f"in/{number}.png"), Path(f"out/{number}.png")) for number in range(600)
    )
    video = Entry("video", Path("in/a.mp4"), Path("out/a.mp4"))
    planned = plan_images((video, *entries), TranslateOptions(quality=80), pixel_type="uint8")
    assert [len(shard.entries) for shard in planned] == [256, 256, 88]
    assert sum((shard.entries for shard in planned), ()) == entries
    assert planned[2].name == "in/512.png … 599.png (88 of 600 images)"
    assert [len(shard.notes) for shard in planned] == [1, 0, 0]
    assert "--quality 80: no image is written as jpg, webp or avif" in grouped(planned[0].notes)[0]
    assert plan_images((video,), TranslateOptions(), pixel_type="uint8") == ()


def test_the_level_of_png_reaches_the_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(pictures.png(pictures.photo()))
    sizes = {}
    for level in (None, 0, 9):
        entries = entries_in(tmp_path / "in", tmp_path / f"out{level}")
        written, dropped, notes = translate(entries, png_level=level)
        assert (len(written), dropped, notes) == (2, [], ())
        sizes[level] = written[0].stat().st_size
        np.testing.assert_array_equal(np.asarray(Image.open(written[0])), pictures.photo())
    assert sizes[9] < sizes[None] < sizes[0]


def test_a_level_of_png_without_a_png_gives_a_note() -> None:
    entry = Entry("image", Path("in/a.jpg"), Path("out/a.jpg"))
    (shard,) = plan_images((entry,), TranslateOptions(png_level=9), pixel_type="uint8")
    assert grouped(shard.notes) == ("--png-level 9: no image is written as png",)


@pytest.mark.parametrize("level", [-1, 10])
def test_a_level_of_png_out_of_range_errors(level: int) -> None:
    with pytest.raises(ValueError, match="png_level must be a number from 0 to 9"):
        TranslateOptions(png_level=level)


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_out_of_range_errors(quality: int) -> None:
    with pytest.raises(ValueError, match=rf"quality must be a number from 1 to 100, got {quality}"):
        plan_images((), TranslateOptions(quality=quality), pixel_type="uint8")


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_pictures_of_one_displayed_size_follow_each_other(
    small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small files are read as a whole together with their headers, others not.
    monkeypatch.setattr(shards, "_SMALL", small)
    folder = tmp_path / "in"
    folder.mkdir()
    tall, wide = pictures.photo(16, 8), pictures.photo(8, 16)
    (folder / "1.png").write_bytes(pictures.png(tall))
    (folder / "2.png").write_bytes(pictures.png(wide))
    (folder / "3.png").write_bytes(b"broken")
    # This image is stored wide and displayed tall.
    (folder / "4.jpg").write_bytes(pictures.pillow(wide, "JPEG", exif=pictures.exif(6)))
    (folder / "5.png").write_bytes(pictures.png(wide))
    shard = _shard(entries_in(folder, tmp_path / "out"))
    source = ImageSource(shard)
    decode = source.converter()
    order = []
    for item in source.read():
        if isinstance(item, Dropped):
            order.append((Path(item.name).name, None))
        else:
            frame = decode(item)
            assert not isinstance(frame, Dropped)
            tag: PictureTag = frame.tag
            order.append((tag.entry.output.name, frame.index))
    assert order == [("1.png", 0), ("4.jpg", 1), ("2.png", 2), ("5.png", 3), ("3.png", None)]


def test_pictures_of_the_first_size_do_not_wait_for_the_headers_of_the_others(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(WHOLE["png"])
    images = ImageSource(_shard(entries_in(folder, tmp_path / "out"))).read()
    assert not isinstance(next(images), Dropped)
    (folder / "1.png").write_bytes(b"replaced meanwhile")
    (folder / "2.png").unlink()
    losses = [item.error for item in images if isinstance(item, Dropped)]
    assert "1.png: not an image" in str(losses[0])
    assert "2.png: cannot be read" in str(losses[1])


def _shard(entries: tuple[Entry, ...], **options: Any) -> ImageShard:
    return plan_images(entries, TranslateOptions(**options), pixel_type="uint8")[0]


@pytest.mark.behaviour(17)
def test_every_name_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    photo = pictures.photo(8, 8)
    for name in NAMES:
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(pictures.png(photo))
    written, dropped, _ = translate(entries_in(tmp_path / "in", tmp_path / "out"))
    assert dropped == []
    assert {os.fsencode(path.name) for path in (tmp_path / "out").iterdir()} == set(NAMES)
    assert len(written) == len(NAMES)
    for name in NAMES:
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(b"broken")
    _, dropped, _ = translate(entries_in(tmp_path / "in", tmp_path / "out2"))
    assert len(dropped) == len(NAMES)
    for loss in dropped:
        (loss.name + str(loss.error)).encode("utf-8")


class _Inverting:
    """A backend that inverts."""

    name, device, precision = "fake", "cpu", "fp32"

    def infer(self, pixels: Any) -> Any:
        return 255 - pixels

    def fork(self) -> _Inverting:
        return self

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.behaviour(13, 14, 15)
def test_one_corrupt_file_among_many_costs_only_itself(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    rgba = np.dstack([pictures.photo(), pictures.alpha()])
    for number in range(30):
        (root / "sub" / f"{number}.png").write_bytes(pictures.png(rgba))
    (root / "sub" / "17.png").write_bytes(pictures.png(rgba)[:-20])
    (root / "clip.jpg").write_bytes(WHOLE["jpg"])
    shard = _shard(entries_in(root, tmp_path / "out"))
    unit = ImageUnit(shard)
    counters = run(
        [unit],
        _Inverting(),  # type: ignore[arg-type]
        Schedule(batch_size=4, contexts=2, converters=3),
        geometry=partial(frames.geometry, requirements=SizeRequirements(multiple_of=4)),
        skip_errors=True,
    )
    assert counters.frames_done == 30
    assert [failure.name for failure in counters.failures] == [str(root / "sub" / "17.png")]
    assert "17.png: cannot be read as PNG" in counters.failures[0].cause
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in counters.written)
    kept = {"clip.jpg", *(f"sub/{number}.png" for number in range(30) if number != 17)}
    assert set(written) == kept
    expected = np.dstack([255 - pictures.photo(), pictures.alpha()])
    for number in (0, 29):
        result = np.asarray(Image.open(tmp_path / "out" / "sub" / f"{number}.png"))
        np.testing.assert_array_equal(result, expected)


@pytest.mark.behaviour(23)
def test_an_existing_output_is_not_replaced_unasked_errors(tmp_path: Path) -> None:
    source, output = tmp_path / "a.png", tmp_path / "b.png"
    source.write_bytes(WHOLE["png"])
    output.write_bytes(b"old")
    written, dropped, _ = translate((Entry("image", source, output),))
    assert written == []
    with pytest.raises(OutputError, match=r"b\.png: it exists already; pass -y"):
        raise dropped[0].error
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    assert translate((Entry("image", source, output),), overwrite=True)[0] == [output]


@pytest.mark.behaviour(25)
def test_a_full_disk_leaves_nothing_behind_and_is_final_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(WHOLE["png"])
    monkeypatch.setattr(Path, "write_bytes", full)
    _, dropped, _ = translate(entries_in(tmp_path / "in", tmp_path / "out"))
    with pytest.raises(OutputError, match=r"a\.png: the disk is full"):
        raise dropped[0].error
    # From the cause the pipeline concludes that every other image would fail too.
    cause = dropped[0].error.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC
    assert list((tmp_path / "out").iterdir()) == []


def encoded(tmp_path: Path, count: int, **options: Any) -> tuple[ImageSink, list[Any]]:
    """Return the sink of a shard and what its converter makes of the images."""
    (tmp_path / "in").mkdir()
    for number in range(count):
        (tmp_path / "in" / f"{number}.png").write_bytes(WHOLE["png"])
    shard = _shard(entries_in(tmp_path / "in", tmp_path / "out"), **options)
    source, sink = ImageSource(shard), ImageSink(shard)
    decode, encode = source.converter(), sink.converter()
    decoded = [decode(item) for item in source.read() if not isinstance(item, Dropped)]
    return sink, [encode(item) for item in decoded if not isinstance(item, Dropped)]


def names(folder: Path) -> list[str]:
    """Return the names in ``folder``, in order; a temporary one is its suffix alone."""
    return sorted(path.suffix if path.name[0] == "." else path.name for path in folder.iterdir())


@pytest.mark.behaviour(22)
def test_the_images_of_a_shard_get_their_names_together(tmp_path: Path) -> None:
    sink, items = encoded(tmp_path, 3)
    assert names(tmp_path / "out") == 3 * [".partial"]
    assert [sink.write(item) for item in items] == 3 * [None]
    assert names(tmp_path / "out") == 3 * [".partial"]
    assert list(sink.written) == []
    assert sink.finish() == []
    assert names(tmp_path / "out") == ["0.png", "1.png", "2.png"]
    assert len(sink.written) == 3
    sink.discard()
    assert names(tmp_path / "out") == ["0.png", "1.png", "2.png"]


@pytest.mark.behaviour(22)
def test_an_image_that_took_long_gets_its_name_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lots, "_PUBLISHED_AFTER", 0.0)
    sink, items = encoded(tmp_path, 2)
    assert sink.write(items[0]) is None
    assert [each.path for each in sink.written] == [tmp_path / "out" / "0.png"]
    assert names(tmp_path / "out") == [".partial", "0.png"]


@pytest.mark.behaviour(22, 24)
def test_a_shard_that_stops_keeps_its_whole_images_and_no_temporary_file(tmp_path: Path) -> None:
    sink, items = encoded(tmp_path, 4)
    for item in items[:2]:
        sink.write(item)
    sink.discard()
    assert names(tmp_path / "out") == ["0.png", "1.png"]
    assert len(sink.written) == 2
    late = tmp_path / "out" / "late.png"
    # A worker that was in the middle of an image when the run stopped.
    sink._lot.write(late, b"", sink.written[0])
    sink.discard()
    assert names(tmp_path / "out") == ["0.png", "1.png"]


@pytest.mark.behaviour(13, 23)
@pytest.mark.parametrize("after", [0.0, 60.0])
def test_an_image_that_another_process_wrote_meanwhile_stays_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: float
) -> None:
    monkeypatch.setattr(lots, "_PUBLISHED_AFTER", after)
    sink, items = encoded(tmp_path, 3)
    (tmp_path / "out" / "1.png").write_bytes(b"of another process")
    lost = [item for item in map(sink.write, items) if item]
    assert len(lost) == (0 if after else 1)
    lost += sink.finish()
    assert [type(each.error) for each in lost] == [OutputExistsError]
    assert lost[0].name == str(tmp_path / "out" / "1.png")
    assert names(tmp_path / "out") == ["0.png", "1.png", "2.png"]
    assert (tmp_path / "out" / "1.png").read_bytes() == b"of another process"
    assert [each.path.name for each in sink.written] == ["0.png", "2.png"]


def test_a_file_that_goes_away_is_named_errors(tmp_path: Path) -> None:
    source = tmp_path / "gone.png"
    _, dropped, _ = translate((Entry("image", source, tmp_path / "b.png"),))
    with pytest.raises(InputError, match=r"gone\.png: cannot be read: No such file"):
        raise dropped[0].error


def test_white_reaches_pictures_and_leaves_those_of_eight_bits(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    deep = pictures.photo().astype(np.uint16) * 16
    (tmp_path / "in" / "deep.png").write_bytes(pictures.png(deep))
    (tmp_path / "in" / "flat.png").write_bytes(pictures.png(pictures.photo()))
    entries = entries_in(tmp_path / "in", tmp_path / "out")
    written, dropped, notes = translate(entries, white=16 * 255)
    assert dropped == []
    (note,) = (each for each in notes if "--white" in each)
    assert note.endswith("flat.png: --white 4080 has no effect on an image of 8 bits")
    for path in written:
        result = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
        np.testing.assert_array_equal(result, pictures.photo())
    with pytest.raises(ValueError, match="white must be a number from 1 to 65535, got 0"):
        plan_images(entries, TranslateOptions(white=0), pixel_type="uint8")


@pytest.mark.behaviour(8)
def test_hdr_becomes_sdr_or_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    chunk = (b"cICP", bytes([9, 18, 0, 1]))
    (tmp_path / "in" / "hlg.png").write_bytes(pictures.png(pictures.photo(), chunk))
    entries = entries_in(tmp_path / "in", tmp_path / "out")
    _, dropped, _ = translate(entries, hdr="refuse")
    assert ["which --hdr refuse refuses" in str(each.error) for each in dropped] == [True]
    (path,), dropped, notes = translate(entries)
    assert dropped == []
    assert ["hlg.png: is HDR (HLG): it is mapped to SDR" in each for each in notes] == [True]
    assert b"cICP" not in path.read_bytes()
