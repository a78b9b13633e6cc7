"""A tar becomes a tar: the images translated, all else as it was, everything in its place."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cyclegan_batch.errors import InputError, OutputError, OutputExistsError, OutputInUseError
from cyclegan_batch.frames import Frame
from cyclegan_batch.job.units import TarUnit
from cyclegan_batch.media import Dropped
from cyclegan_batch.media.formats import Entry
from cyclegan_batch.media.tars import source as reading
from cyclegan_batch.media.tars import waiting
from cyclegan_batch.media.tars.plan import TarPlan, first_sizes, plan_tar
from cyclegan_batch.media.tars.sink import TarSink
from cyclegan_batch.media.tars.source import TarSource
from cyclegan_batch.options import TranslateOptions
from tests.synthesis import pictures
from tests.synthesis.tars import entry, headers, jpeg, members, packed, png, write_tar


def plan(path: Path, output: Path, **options: Any) -> TarPlan:
    return plan_tar(Entry("tar", path, output), TranslateOptions(**options), pixel_type="uint8")


def translate(
    planned: TarPlan, order: Callable[[list[Any]], Sequence[Any]] = lambda items: items
) -> tuple[list[Dropped], TarSink]:
    """Translate a tar by the identity; ``order`` is that in which what was read is decoded."""
    unit = TarUnit(planned)
    source = unit.open_source()
    sink = unit.open_sink(source)
    dropped: list[Dropped] = []
    try:
        decode, encode = source.converter(), sink.converter()
        for item in order(list(source.read())):
            frame = item if isinstance(item, Dropped) else decode(item)
            lost = frame if isinstance(frame, Dropped) else sink.write(encode(frame))
            dropped += [lost] if lost is not None else []
        dropped += sink.finish()
    finally:
        source.close()
        sink.discard()
    return dropped, sink


def leftovers(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir() if each.name.endswith(".partial")]


SAMPLES = [
    ("README", b"about"),
    ("0001.png", png(1)),
    ("0001.json", b'{"label": 1}'),
    ("0002.cls", b"7"),
    ("0002.png", png(2, (40, 20))),
    ("deep/0003.png", png(3)),
    ("deep/0003.npy", bytes(5000)),
    ("0004.txt", b"no image"),
]


@pytest.mark.behaviour(13)
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_keep_their_order_names_modes_and_times(tmp_path: Path, kind: int) -> None:
    folder = entry("deep", type=tarfile.DIRTYPE, mode=0o750, uname="me")
    source = write_tar(tmp_path / "x.tar", [folder, *SAMPLES], kind=kind)
    dropped, sink = translate(plan(source, tmp_path / "out" / "x.tar"))
    assert dropped == []
    assert headers(tmp_path / "out" / "x.tar") == headers(source)
    found = members(tmp_path / "out" / "x.tar")[1:]
    for (name, before), (_, after) in zip(SAMPLES, found, strict=True):
        if name.endswith(".png"):
            assert np.array_equal(pixels(before), pixels(after)), name
        else:
            assert before == after, name
    (written,) = sink.written
    assert written.images == 3
    assert written.bytes == written.path.stat().st_size
    assert written.bytes % tarfile.RECORDSIZE == 0
    assert written.path.read_bytes()[257:263] == source.read_bytes()[257:263]  # the same format
    assert leftovers(tmp_path / "out") == []


def pixels(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.behaviour(28)
def test_the_bytes_do_not_depend_on_the_order_in_which_images_are_done(tmp_path: Path) -> None:
    items = [(f"{n:03}.{kind}", b"x" * n if kind == "txt" else jpeg(n, (16, 16 + n % 3)))
             for n in range(60) for kind in ("jpg", "txt")]  # fmt: skip
    source = write_tar(tmp_path / "x.tar", items)
    orders: list[Callable[[list[Any]], Sequence[Any]]] = [
        lambda found: found,
        lambda found: found[::-1],
        lambda found: found[::2] + found[1::2],
    ]
    outputs = [tmp_path / f"{number}.tar" for number in range(3)]
    for output, order in zip(outputs, orders, strict=True):
        translate(plan(source, output), order)
    assert len({output.read_bytes() for output in outputs}) == 1


def test_images_of_one_size_follow_each_other_within_a_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SHARD", 4)
    widths = [16, 20, 16, 24, 16, 20, 16, 20, 30]
    source = write_tar(
        tmp_path / "x.tar", [(f"{n}.jpg", jpeg(n, (16, width))) for n, width in enumerate(widths)]
    )
    opened = TarSource(plan(source, tmp_path / "out.tar"))
    found = [each for each in opened.read() if not isinstance(each, Dropped)]
    opened.close()
    assert [each.size[1] for each in found] == [16, 16, 20, 24, 16, 16, 20, 20, 30]
    assert [each.slot.info.name[0] for each in found] == list("021346578")


# Samples that lose something


@pytest.mark.behaviour(14, 22)
def test_a_sample_with_an_unreadable_image_is_left_out_whole_and_listed(tmp_path: Path) -> None:
    items = [
        ("1.json", b"1"), ("1.jpg", jpeg(1)),
        ("2.json", b"2"), ("2.jpg", b"no picture"), ("2.depth.png", png(2)),
        ("3.jpg", jpeg(3)[:400]), ("3.json", b"3"),
        ("4.jpg", b""), ("4.json", b"4"),
        ("5.jpg", jpeg(5)), ("5.json", b"5"),
    ]  # fmt: skip
    source = write_tar(tmp_path / "x.tar", items)
    output = tmp_path / "out.tar"
    dropped, sink = translate(plan(source, output))
    assert [name for name, _ in members(output)] == ["1.json", "1.jpg", "5.jpg", "5.json"]
    assert [each.name for each in dropped] == [f"{source}/{n}.jpg" for n in (2, 3, 4)]
    assert str(dropped[0].error).endswith("(its sample 2 is left out)")
    assert "not an image of a known format" in str(dropped[0].error)
    assert sink.written[0].images == 2


@pytest.mark.behaviour(13, 45)
def test_a_refused_member_takes_its_sample_along_and_no_file_is_made_outside(
    tmp_path: Path,
) -> None:
    items = [
        ("1.jpg", jpeg(1)), entry("1.json", type=tarfile.LNKTYPE, linkname="1.jpg"),
        ("2.jpg", jpeg(2)), ("2.json", b"2"),
        ("../3.jpg", jpeg(3)), ("../3.json", b"3"),
        ("/tmp/4.jpg", jpeg(4)),
        entry("5.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    ]  # fmt: skip
    source = write_tar(tmp_path / "in" / "x.tar", items)
    dropped, _ = translate(plan(source, tmp_path / "out" / "x.tar"))
    assert [name for name, _ in members(tmp_path / "out" / "x.tar")] == ["2.jpg", "2.json"]
    expected = ["1.json", "../3.jpg", "../3.json", "/tmp/4.jpg", "5.jpg"]
    assert [each.name for each in dropped] == [f"{source}/{name}" for name in expected]
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"in/x.tar", "out/x.tar"}


def test_transparency_that_the_format_cannot_hold_costs_the_sample(tmp_path: Path) -> None:
    clear = np.dstack([pictures.photo(), pictures.alpha()])
    items = [("1.png", pictures.png(clear)), ("2.png", png(2))]
    source = write_tar(tmp_path / "x.tar", items)
    (dropped,), _ = translate(plan(source, tmp_path / "out.tar", format="jpg"))
    assert "has transparency, and JPEG cannot hold it" in str(dropped.error)
    assert [name for name, _ in members(tmp_path / "out.tar")] == ["2.jpg"]


@pytest.mark.behaviour(8)
def test_hdr_becomes_sdr_or_costs_the_sample(tmp_path: Path) -> None:
    hlg = pictures.png(pictures.photo(), (b"cICP", bytes([9, 18, 0, 1])))
    source = write_tar(tmp_path / "x.tar", [("1.png", hlg), ("2.png", png(2))])
    (dropped,), _ = translate(plan(source, tmp_path / "out.tar", hdr="refuse"))
    assert "which --hdr refuse refuses" in str(dropped.error)
    assert [name for name, _ in members(tmp_path / "out.tar")] == ["2.png"]
    dropped, _ = translate(plan(source, tmp_path / "mapped.tar"))
    assert dropped == []
    assert [name for name, _ in members(tmp_path / "mapped.tar")] == ["1.png", "2.png"]


@pytest.mark.behaviour(22)
def test_a_tar_of_which_nothing_is_left_fails(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", [("1.jpg", b"x"), ("1.txt", b""), ("2.jpg", b"y")])
    with pytest.raises(InputError, match="each of its 2 samples has a member that cannot be"):
        translate(plan(source, tmp_path / "out.tar"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.tar"]


@pytest.mark.behaviour(22)
@pytest.mark.parametrize("cut", [700, -2000])
def test_a_tar_that_is_cut_off_fails_as_a_whole_and_leaves_nothing(
    tmp_path: Path, cut: int
) -> None:
    data = packed([(f"{n}.jpg", jpeg(n)) for n in range(20)])
    source = tmp_path / "x.tar"
    source.write_bytes(data[: cut if cut > 0 else data.rstrip(b"\0").__len__() + cut])
    with pytest.raises(InputError, match=r"x\.tar: is cut off: it ends after .* whole copy"):
        translate(plan(source, tmp_path / "out.tar"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.tar"]


@pytest.mark.behaviour(46)
def test_images_that_declare_too_much_are_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    bomb = bytearray(png(1))
    bomb[16:24] = (2**30).to_bytes(4) * 2
    items = [("1.png", bytes(bomb)), ("2.bmp", b"BM" + bytes(70 << 20)), ("3.png", png(3))]
    source = write_tar(tmp_path / "x.tar", items)
    dropped, _ = translate(plan(source, tmp_path / "out.tar", max_pixels=10_000))
    assert "cannot be read" in str(dropped[0].error) or "--max-pixels" in str(dropped[0].error)
    assert "73400322 bytes are too many for an image" in str(dropped[1].error)
    assert [name for name, _ in members(tmp_path / "out.tar")] == ["3.png"]


def test_a_tar_that_changes_meanwhile_fails(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", SAMPLES)

    def touched(items: list[Any]) -> list[Any]:
        source.touch()
        return items

    with pytest.raises(InputError, match="was changed while it was translated"):
        translate(plan(source, tmp_path / "out.tar"), touched)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.tar"]


def test_frames_of_one_key_are_no_sample_of_thousands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_MEMBERS", 4)
    items = [(f"clip.{n}.jpg", jpeg(n) if n != 5 else b"no picture") for n in range(10)]
    source = write_tar(tmp_path / "x.tar", items)
    (dropped,), _ = translate(plan(source, tmp_path / "out.tar"))
    assert str(dropped.error).endswith("(its sample clip, part 2, is left out)")
    found = [name for name, _ in members(tmp_path / "out.tar")]
    assert found == [f"clip.{n}.jpg" for n in (0, 1, 2, 3, 8, 9)]


# What is carried on


def test_a_tar_without_images_is_copied_byte_for_byte_with_a_note(tmp_path: Path) -> None:
    source = tmp_path / "x.tar"
    source.write_bytes(packed([("a.txt", b"a"), ("b.cls", b"1")]) + b"more")
    dropped, sink = translate(plan(source, tmp_path / "out.tar"))
    assert (tmp_path / "out.tar").read_bytes() == source.read_bytes()
    assert dropped == []
    assert [note.text for note in sink.notes] == ["holds no image and was copied as it is"]
    assert sink.written[0].bytes == source.stat().st_size


def test_large_members_and_results_wait_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "IN_MEMORY", 100_000)
    items: list[tuple[str, bytes]] = []
    for number in range(30):
        size = (16, 16 if number % 2 else 20)
        items += [(f"{number}.png", png(number, size)), (f"{number}.bin", bytes([number]) * 50_000)]
    items.append(("30.bin", bytes(range(256)) * 12_000))  # more than a chunk
    source = write_tar(tmp_path / "x.tar", items)
    planned = plan(source, tmp_path / "out.tar")
    opened = TarSource(planned)
    sink = TarSink(planned, opened)
    decode, encode = opened.converter(), sink.converter()
    read = [item for item in opened.read() if not isinstance(item, Dropped)]
    for item in read:
        frame = decode(item)
        assert isinstance(frame, Frame)
        sink.write(encode(frame))
    assert sink.finish() == ()
    assert opened.samples._room.largest <= 100_000
    assert all(item.slot.held is None for item in read)  # nothing is kept that is written
    opened.close()
    for (name, before), (_, after) in zip(items, members(tmp_path / "out.tar"), strict=True):
        assert name.endswith(".png") or before == after
    assert leftovers(tmp_path) == []


@pytest.mark.behaviour(27)
def test_ten_thousand_tiny_members_pass(tmp_path: Path) -> None:
    items = [("0.jpg", jpeg(0)), *((f"{number}.txt", b"x") for number in range(1, 10_001))]
    source = write_tar(tmp_path / "x.tar", items)
    translate(plan(source, tmp_path / "out.tar"))
    assert [name for name, _ in members(tmp_path / "out.tar")] == [name for name, _ in items]


def test_media_that_is_no_image_here_is_carried_on_and_told(tmp_path: Path) -> None:
    items = [("1.jpg", jpeg(1)), ("1.mp4", b"film"), ("2.exr", b"depth"), ("2.jpg", jpeg(2))]
    source = write_tar(tmp_path / "x.tar", items)
    opened = TarSource(plan(source, tmp_path / "out.tar"))
    list(opened.read())
    opened.close()
    (note,) = opened.notes
    assert note.text.startswith("carried on as they are, since they are not images that are read")
    assert ".mp4 1" in note.text
    assert ".exr 1" in note.text


def test_two_members_of_one_name_are_both_translated(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", [("1.png", png(1)), ("1.png", png(2))])
    translate(plan(source, tmp_path / "out.tar"))
    one, two = members(tmp_path / "out.tar")
    assert one[0] == two[0] == "1.png"
    assert not np.array_equal(pixels(one[1]), pixels(two[1]))


def test_a_tar_that_is_given_up_is_not_read_to_its_end(tmp_path: Path) -> None:
    items = [("0.jpg", jpeg(0)), ("1.jpg", jpeg(1)), *((f"{n}.txt", b"") for n in range(2, 3000))]
    source = write_tar(tmp_path / "x.tar", items)
    planned = plan(source, tmp_path / "out.tar")
    opened = TarSource(planned)
    sink = TarSink(planned, opened)
    frames = opened.read()
    next(frames)
    sink.discard()
    assert list(frames) == []
    assert opened._reader.position < 20_000
    opened.close()


@pytest.mark.behaviour(13)
def test_images_that_are_not_asked_for_are_carried_on_byte_for_byte(tmp_path: Path) -> None:
    items = [
        ("1.jpg", jpeg(1)), ("1.seg.png", png(2)), ("1.png", b"a mask that nobody here can read"),
        ("2.seg.png", b""), ("2.LEFT.jpg", jpeg(3)), ("2.right.jpg", jpeg(4)),
        ("3.exr", b"depth"),
    ]  # fmt: skip
    source = write_tar(tmp_path / "x.tar", items)
    planned = plan(source, tmp_path / "out.tar", tar_images="left.jpg,JPG", format="png")
    dropped, sink = translate(planned)
    assert dropped == []
    found = dict(members(tmp_path / "out.tar"))
    translated = {"1.jpg.png": "1.jpg", "2.LEFT.png": "2.LEFT.jpg"}
    expected = ["1.jpg.png", "1.seg.png", "1.png", "2.seg.png", "2.LEFT.png", "2.right.jpg"]
    assert list(found) == [*expected, "3.exr"]
    for name, content in found.items():
        before = dict(items)[translated.get(name, name)]
        assert (content == before) == (name not in translated), name
    assert pixels(found["2.LEFT.png"]).shape == (24, 32, 3)
    assert (sink.written[0].images, list(sink.notes)) == (2, [])
    opened = TarSource(planned)
    assert len(list(opened.read())) == 2
    assert opened.notes == ()  # the depth, too, is carried on as it was asked
    opened.close()


def test_a_tar_without_an_image_that_is_asked_for_is_copied_and_told_what_it_has(
    tmp_path: Path,
) -> None:
    items = [("1.png", png(1)), ("1.seg.png", png(2)), ("1.txt", b""), ("2.png", png(1))]
    source = write_tar(tmp_path / "x.tar", items)
    planned = plan(source, tmp_path / "out.tar", tar_images="rgb.png,jpg")
    _, sink = translate(planned)
    assert (tmp_path / "out.tar").read_bytes() == source.read_bytes()
    why = "holds no image of --tar-images jpg,rgb.png (its images: png, seg.png)"
    assert [note.text for note in sink.notes] == [f"{why} and was copied as it is"]
    assert sink.written[0].images == 0
    sizes, (note,) = first_sizes(planned, 3)
    assert (sizes, note.text) == ([], f"as far as its first 4.0 MiB show, it {why}")
    frames = [(f"clip.{n}.jpg", jpeg(n)) for n in range(9)]
    source = write_tar(tmp_path / "y.tar", [*frames, ("8.txt", b"")])
    opened = TarSource(plan(source, tmp_path / "out.tar", tar_images="jpg"))
    list(opened.read())
    opened.close()
    assert opened.no_image.endswith("(its images: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg, …)")
    source = write_tar(tmp_path / "z.tar", [("1.txt", b"")])
    _, sink = translate(plan(source, tmp_path / "z-out.tar", tar_images="jpg"))
    assert [note.text for note in sink.notes] == ["holds no image and was copied as it is"]


# The output


@pytest.mark.behaviour(23)
def test_an_output_that_exists_or_is_in_work_is_refused(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", SAMPLES)
    planned = plan(source, tmp_path / "out.tar")
    opened = TarSource(planned)
    held = TarSink(planned, opened)
    with pytest.raises(OutputInUseError, match=r"out\.tar: process .* is writing it"):
        TarSink(planned, opened)
    held.discard()
    (tmp_path / "out.tar").write_text("mine")
    with pytest.raises(OutputExistsError):
        TarSink(planned, opened)
    assert leftovers(tmp_path) == []
    translate(plan(source, tmp_path / "out.tar", overwrite=True))
    assert len(members(tmp_path / "out.tar")) == len(SAMPLES)
    opened.close()


@pytest.mark.behaviour(23)
def test_an_output_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "x.tar", SAMPLES)

    def written(items: list[Any]) -> list[Any]:
        (tmp_path / "out.tar").write_text("mine")
        return items

    with pytest.raises(OutputExistsError):
        translate(plan(source, tmp_path / "out.tar"), written)
    assert (tmp_path / "out.tar").read_text() == "mine"
    assert leftovers(tmp_path) == []


@pytest.mark.behaviour(25)
@pytest.mark.needs("full-device")
def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tar(tmp_path / "x.tar", [*SAMPLES, ("9.bin", bytes(3 << 20))])
    monkeypatch.setattr(TarSink, "_open", lambda self: full(self))
    with pytest.raises(OutputError, match="the disk is full"):
        translate(plan(source, tmp_path / "out.tar"))


def full(sink: TarSink) -> io.BufferedWriter:
    sink._file = file = io.BufferedWriter(io.FileIO("/dev/full", "w"))
    return file


# The plan


def test_the_first_sizes_and_a_mask_are_found_in_the_first_bytes(tmp_path: Path) -> None:
    items = [("1.txt", b"x"), ("1.jpg", jpeg(1, (20, 30))), ("1.seg.png", png(1, (40, 50)))]
    source = write_tar(tmp_path / "x.tar", [*items, ("2.jpg", b"broken"), ("3.jpg", jpeg(3))])
    sizes, (note,) = first_sizes(plan(source, tmp_path / "out.tar"), 3)
    assert sizes == [(20, 30), (40, 50), (24, 32)]
    assert "a sample holds several images (jpg, seg.png), and each is translated" in note.text
    assert note.text.endswith("name the extensions of the others, such as --tar-images jpg")
    asked = plan(source, tmp_path / "out.tar", tar_images="jpg")
    assert first_sizes(asked, 3) == ([(20, 30), (24, 32)], [])
    asked = plan(source, tmp_path / "out.tar", tar_images="jpg,seg.png")
    assert first_sizes(asked, 3) == (sizes, [])  # who names both wants both
    assert first_sizes(plan(source, tmp_path / "out.tar"), 1) == ([(20, 30)], [])
    assert first_sizes(plan(tmp_path / "gone.tar", tmp_path / "out.tar"), 3) == ([], [])
