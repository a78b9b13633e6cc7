"""A video as numbered images: what each image holds, and what the images lose of the video."""

from __future__ import annotations

import io
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cyclegan_batch.errors import OutputError
from cyclegan_batch.frames import Frame
from cyclegan_batch.media.video.numbered_sink import NumberedSink, is_stretch_whole
from cyclegan_batch.media.video.plan import Timing
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media import test_alpha
from tests.media.identity import leftovers, plan, run, seen
from tests.media.video.test_fields import clip as fields
from tests.media.video.test_plan import gradient
from tests.media.witness import needs_ffprobe, pictures
from tests.synthesis import streams

PLAIN = TranslateOptions()


def image(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@needs_ffprobe
@pytest.mark.behaviour(1, 9)
@pytest.mark.parametrize(
    ("suffix", "difference"),
    [(".png", 0), (".tif", 0), (".bmp", 0), (".jpg", 2), (".webp", 2), (".avif", 2)],
)
def test_every_frame_becomes_an_image_that_ffmpeg_plays(tmp_path, suffix, difference):
    source = streams.plain(tmp_path / "in.mkv", codec="ffv1", frames=3, audio=None, size=(37, 51))
    output = tmp_path / "new" / "folder" / f"f_%03d{suffix}"
    planned = plan(source, output, PLAIN)
    dropped, sink = run(planned)
    assert not dropped
    assert names(output.parent) == [f"f_{number:03d}{suffix}" for number in (1, 2, 3)]
    (written,) = sink.written
    assert (written.path, written.numbers, written.size) == (output, ((1, 3),), (37, 51))
    assert written.bytes == sum(path.stat().st_size for path in output.parent.iterdir())
    sent = np.stack([frame.pixels for frame in seen(planned)]).astype(int)
    got = np.stack([np.asarray(image(output.parent / each)) for each in names(output.parent)])
    assert np.abs(got - sent).mean() <= difference
    if suffix != ".avif":  # FFmpeg's pattern needs a demuxer of still AVIF
        assert np.abs(pictures(output).astype(int) - sent).mean() <= difference


def test_a_number_wider_than_the_pattern_takes_more_digits(tmp_path):
    source = streams.plain(tmp_path / "in.mkv", codec="ffv1", frames=11, audio=None)
    run(plan(source, tmp_path / "out" / "100%%_%d.bmp", PLAIN))
    assert names(tmp_path / "out") == sorted(f"100%_{number}.bmp" for number in range(1, 12))


@needs_ffprobe
@pytest.mark.behaviour(7, 15)
@pytest.mark.parametrize(
    ("suffix", "kept"), [(".png", True), (".webp", True), (".tif", True), (".jpg", False)]
)
def test_alpha_is_kept_where_the_format_holds_it(tmp_path, suffix, kept):
    source = test_alpha.clip(tmp_path / "in.mov")
    output = tmp_path / "out" / f"f_%d{suffix}"
    planned = plan(source, output, PLAIN)
    losses = [note for note in grouped(planned.notes) if "goes without the alpha of str" in note]
    assert len(losses) == (not kept)
    run(planned)
    sent = test_alpha.seen_alpha(source, "argb")
    for number, path in enumerate(sorted(output.parent.iterdir())):
        found = image(path)
        assert (found.mode == "RGBA") == kept
        if kept:
            assert np.array_equal(np.asarray(found)[..., 3], sent[number])
    if not kept:
        with pytest.raises(OutputError, match=r"the alpha of .*: JPEG cannot hold it; \.png"):
            plan(source, output, TranslateOptions(strict=True, overwrite=True))


@pytest.mark.behaviour(8)
@pytest.mark.parametrize(("suffix", "deep"), [(".png", True), (".tif", False)])
def test_more_than_8_bits_become_a_png_of_16(tmp_path, suffix, deep):
    source, output = gradient(tmp_path / "in.mkv"), tmp_path / "out" / f"f_%d{suffix}"
    planned = plan(source, output, PLAIN, pixel_type="float16")
    notes = [note for note in grouped(planned.notes) if "bits become 8" in note]
    assert len(notes) == (not deep)
    run(planned)
    with av.open(str(output.parent / f"f_1{suffix}")) as container:
        frame = next(container.decode(video=0))
    levels = len(np.unique(frame.to_ndarray()))
    assert (frame.format.name, levels > 800) == (("rgb48be", True) if deep else ("rgb24", False))


@pytest.mark.behaviour(5)
def test_what_images_do_not_hold_is_said_once_and_an_error_when_strict(tmp_path):
    source, output = streams.mkv(tmp_path / "in.mkv", frames=5), tmp_path / "out" / "f_%d.png"
    told = grouped(plan(source, output, PLAIN).notes)
    assert f"{output} goes without stream 1 (audio flac, eng): images cannot hold it" in "\n".join(
        told
    )
    assert any("chapters: images cannot hold them" in each for each in told)
    with pytest.raises(OutputError, match=r"images cannot hold it.* --strict"):
        plan(source, output, TranslateOptions(strict=True))
    silent = streams.plain(tmp_path / "silent.mkv", codec="ffv1", frames=3, audio=None)
    plan(silent, output, TranslateOptions(strict=True))
    useless = grouped(plan(silent, output, TranslateOptions(crf=3, pix_fmt="yuv420p")).notes)
    assert any("no effect of --crf, --pix-fmt, as numbered" in each for each in useless)


@needs_ffprobe
def test_variable_times_and_fields_are_said_to_be_lost(tmp_path):
    source = streams.variable_rate(tmp_path / "in.mkv")
    (note,) = [
        each
        for each in grouped(plan(source, tmp_path / "f_%d.png").notes)
        if "have no times" in each
    ]
    assert "so the variable ones are lost" in note
    interlaced = fields(tmp_path / "fields.mkv", "tff", frames=2)
    told = grouped(plan(interlaced, tmp_path / "f_%d.png").notes)
    assert any("goes without the mark that stream 0" in each for each in told)


@pytest.mark.behaviour(7)
def test_the_shape_of_pixels_is_said_to_be_lost(tmp_path):
    source = streams.plain(
        tmp_path / "in.mp4", frames=2, audio=None, sample_aspect_ratio=Fraction(8, 5)
    )
    told = grouped(plan(source, tmp_path / "f_%d.png", PLAIN).notes)
    assert any("without the shape of the pixels of stream 0" in note for note in told)


@needs_ffprobe
@pytest.mark.behaviour(6)
@pytest.mark.parametrize(("suffix", "stated"), [(".png", True), (".jpg", False)])
def test_wide_primaries_are_stated_or_said_to_be_lost(tmp_path, suffix, stated):
    source = tmp_path / "in.mkv"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:d=0.08", "-c:v"]
    command += ["ffv1", "-pix_fmt", "yuv444p", "-colorspace", "bt2020nc", "-color_trc", "bt2020-10"]
    subprocess.run([*command, "-color_primaries", "bt2020", source], check=True)
    planned = plan(source, tmp_path / "out" / f"f_%d{suffix}", PLAIN)
    assert any("(BT.2020)" in note for note in grouped(planned.notes)) != stated
    run(planned)
    content = (tmp_path / "out" / f"f_1{suffix}").read_bytes()
    assert (b"cICP\x09\x0e\x00\x01" in content) == stated


@pytest.mark.behaviour(19, 22)
def test_workers_encode_and_an_image_has_its_name_only_when_it_is_whole(tmp_path):
    source = streams.plain(tmp_path / "in.mkv", codec="ffv1", frames=2, audio=None)
    output = tmp_path / "out" / "f_%d.png"
    sink = NumberedSink(plan(source, output, PLAIN))
    encode = sink.converter()
    grey = np.full((48, 64, 3), 90, np.uint8)
    first, late = (encode(Frame(number, grey, Timing(number, None))) for number in (0, 1))
    assert [Path(name).suffix for name in names(output.parent)] == [".partial", ".partial"]
    assert Image.open(io.BytesIO(late.path.read_bytes())).size == (64, 48)
    assert sink.write(first) is None
    sink.discard()
    assert names(output.parent) == ["f_1.png"]
    assert leftovers(output.parent) == []
    encode(Frame(2, grey, Timing(2, None)))  # by a worker that was in the middle of it
    assert names(output.parent) == ["f_1.png"]


@pytest.mark.behaviour(23)
def test_images_that_appear_before_the_first_frame_are_not_replaced(tmp_path):
    source = streams.plain(tmp_path / "in.mkv", codec="ffv1", frames=2, audio=None)
    planned = plan(source, tmp_path / "f_%d.png", PLAIN)
    (tmp_path / "f_2.png").write_bytes(b"of another program")
    with pytest.raises(OutputError, match=r"f_2\.png: it exists already"):
        run(planned)
    assert (tmp_path / "f_2.png").read_bytes() == b"of another program"


@pytest.mark.parametrize("content", ["", "{}", "[[1, 2]]", "[[2, 9, 'a'], [1, 9, 'a']]", "[1]"])
def test_a_list_of_another_form_costs_its_stretch(tmp_path, content):
    source = streams.plain(tmp_path / "in.mkv", codec="ffv1", frames=2, audio=None)
    (tmp_path / "0.json").write_text(content)
    assert not is_stretch_whole(plan(source, tmp_path / "f_%d.png", PLAIN), tmp_path / "0.json")
