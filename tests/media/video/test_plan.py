"""One video in, one video out, by the identity; ffmpeg and ffprobe are independent witnesses."""

from __future__ import annotations

import pickle
import subprocess
from dataclasses import replace
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
import pytest

from cyclegan_batch.errors import InputError
from cyclegan_batch.media.video.sink import VideoSink
from cyclegan_batch.media.video.source import VideoSource
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.identity import FAST, LOSSLESS, leftovers, plan, run, seen
from tests.media.witness import ALIKE, needs_ffprobe, pictures, probe, tags_of, tick, times
from tests.synthesis import colours, hdr, streams
from tests.synthesis import pictures as photos
from tests.synthesis.videos import gradient, patches

# Frames and times


@needs_ffprobe
@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts", ".avi"])
def test_every_frame_comes_out_at_its_time(tmp_path, suffix):
    source = streams.plain(tmp_path / f"in{suffix}", audio=None)
    output = tmp_path / f"out{suffix}"
    dropped, sink = run(plan(source, output))
    assert dropped == []
    assert [each.path for each in sink.written] == [output]
    assert leftovers(tmp_path) == []
    sent, got = times(source), times(output)
    assert len(got) == len(sent) == 25
    if suffix != ".avi":
        assert max(abs(a - b) for a, b in zip(sent, got, strict=True)) <= tick(output)
    assert np.abs(pictures(output).astype(int) - pictures(source)).mean() < 4


@needs_ffprobe
@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "mpeg4"])
def test_variable_frame_rate_keeps_every_time(tmp_path, suffix, codec):
    """MPEG-2 and MPEG-4 count frames or refuse fine time bases: the muxer gets the real times."""
    source = streams.variable_rate(tmp_path / f"in{suffix}")
    output = tmp_path / f"out{suffix}"
    options = FAST if codec == "libx264" else TranslateOptions(codec=codec)
    planned = plan(source, output, options)
    assert planned.encoder.counts_frames == (codec == "mpeg2video")
    run(planned)
    sent, got = times(source), times(output)
    assert len(sent) == len(streams.VFR_TIMES)
    assert len(got) == len(sent)
    assert max(abs(a - b) for a, b in zip(sent, got, strict=True)) <= tick(output)


@needs_ffprobe
@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("codec", ["mpeg2video", "mpeg4"])
def test_a_rate_that_no_standard_knows_keeps_every_time(tmp_path, codec):
    """Neither encoder accepts this time base, nor the average of these times as a rate."""
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w", options={"video_track_timescale": "90000"}) as file:
        stream: Any = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 90000)
        for number, pts in enumerate((0, 1, 2, 300, 301, 302, 9000)):
            frame = av.VideoFrame.from_ndarray(streams.picture(number), "rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 90000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    run(plan(source, tmp_path / "out.mp4", TranslateOptions(codec=codec)))
    assert times(tmp_path / "out.mp4") == times(source)


@needs_ffprobe
@pytest.mark.behaviour(2)
def test_a_late_start_moves_to_zero(tmp_path):
    source = streams.plain(tmp_path / "in.mkv", audio=None, start=Fraction(3, 2))
    run(plan(source, tmp_path / "out.mkv"))
    sent, got = times(source), times(tmp_path / "out.mkv")
    assert (sent[0], got[0]) == (Fraction(3, 2), 0)
    assert [time - sent[0] for time in sent] == got


# Orientation, shape, size


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_all_orientations_become_upright(tmp_path, angle, mirrored):
    source = streams.plain(
        tmp_path / "in.mp4", frames=3, audio=None, rotation=(angle, mirrored, False)
    )
    output = tmp_path / "out.mp4"
    planned = plan(source, output, LOSSLESS)
    assert planned.size == ((64, 48) if angle % 180 else (48, 64))
    upright = pictures(source)
    assert upright.shape[1:3] == planned.size
    for frame, expected in zip(seen(planned), upright, strict=True):
        assert np.abs(frame.pixels.astype(int) - expected).mean() < ALIKE
    run(planned)
    assert np.abs(pictures(output, "-autorotate", "0").astype(int) - upright).mean() < 4
    assert "side_data_list" not in probe(output, "stream_side_data=rotation")["streams"][0]


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize(("angle", "shape"), [(0, "4:3"), (90, "3:4"), (180, "4:3")])
def test_pixels_that_are_not_square_keep_their_shape(tmp_path, angle, shape):
    source = streams.plain(
        tmp_path / "in.mp4",
        frames=3,
        audio=None,
        rotation=(angle, False, False),
        sample_aspect_ratio=Fraction(4, 3),
    )
    output = tmp_path / "out.mp4"
    run(plan(source, output))
    stream = probe(output, "stream=sample_aspect_ratio")["streams"][0]
    assert stream["sample_aspect_ratio"] == shape


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libvpx-vp9", ".webm"),
        ("libvpx-vp9", ".mkv"),
        ("libvpx-vp9", ".mp4"),
        ("libvpx", ".webm"),
        ("libsvtav1", ".mp4"),
        ("libsvtav1", ".mkv"),
        ("ffv1", ".mkv"),
        ("ffv1", ".avi"),
        ("prores_ks", ".mov"),
        ("prores_ks", ".mkv"),
        ("qtrle", ".mov"),
        ("mpeg4", ".avi"),
        ("libx264", ".mkv"),
        ("libx264", ".ts"),
        ("libx264", ".nut"),
        ("ffv1", ".nut"),
        ("libvpx-vp9", ".nut"),
    ],
)
def test_pixels_keep_their_shape_with_every_encoder_and_container(tmp_path, codec, suffix):
    """Where the stream itself cannot hold the aspect ratio, the container does."""
    source = streams.plain(
        tmp_path / "in.mp4",
        frames=5,
        audio=None,
        size=(96, 144),
        sample_aspect_ratio=Fraction(8, 5),
    )
    output = tmp_path / f"out{suffix}"
    fast = {"cpu-used": "8"} if codec.startswith("libvpx") else {}
    run(plan(source, output, TranslateOptions(codec=codec, encoder_opt=fast)))
    stream = probe(output, "stream=sample_aspect_ratio:stream_tags=title")["streams"][0]
    across, down = map(int, stream["sample_aspect_ratio"].split(":"))
    # WebM holds a display size in whole pixels.
    assert across / down == pytest.approx(8 / 5, abs=0.5 / 144 if suffix == ".webm" else 0)
    assert "title" not in stream.get("tags", {})
    assert b"<aspect" not in output.read_bytes()
    assert len(pictures(output)) == 5


@needs_ffprobe
@pytest.mark.behaviour(4, 7)
@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".webm"])
def test_the_name_of_a_stream_survives_the_shape_of_its_pixels(tmp_path, suffix):
    """The aspect ratio is written over a placeholder inside the name."""
    whole = streams.plain(
        tmp_path / "in.mkv", frames=2, audio=None, sample_aspect_ratio=Fraction(16, 11)
    )
    source = tmp_path / "named.mkv"
    command = ["ffmpeg", "-v", "error", "-i", whole, "-c", "copy"]
    subprocess.run([*command, "-metadata:s:v", "title=Zwölf ½", source], check=True)
    output = tmp_path / f"out{suffix}"
    run(plan(source, output, TranslateOptions(codec="libvpx-vp9" if suffix == ".webm" else "ffv1")))
    stream = probe(output, "stream=sample_aspect_ratio:stream_tags=title")["streams"][0]
    assert stream["tags"]["title"] == "Zwölf ½"
    across, down = map(int, stream["sample_aspect_ratio"].split(":"))
    assert across / down == pytest.approx(16 / 11, abs=0.5 / 64)


@needs_ffprobe
@pytest.mark.behaviour(4, 7)
def test_a_copied_video_keeps_the_shape_of_its_pixels_too(tmp_path):
    """Of two videos in one file, one is translated."""
    source = tmp_path / "in.mkv"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc=s=64x48:d=0.1,setsar=16/11"]
    command += ["-f", "lavfi", "-i", "testsrc=s=32x32:d=0.1,setsar=8/5", "-map", "0", "-map", "1"]
    subprocess.run([*command, "-c:v", "libvpx-vp9", "-cpu-used", "8", source], check=True)
    for suffix in (".mkv", ".mp4"):
        output = tmp_path / f"out{suffix}"
        run(plan(source, output))
        ratios = subprocess.check_output(
            ["ffprobe", "-v", "error", "-show_entries", "stream=sample_aspect_ratio",
             "-of", "csv=p=0", output], text=True,
        )  # fmt: skip
        assert ratios.split() == ["16:11", "8:5"]


@needs_ffprobe
@pytest.mark.behaviour(7)
def test_a_kept_network_size_is_shown_in_the_source_shape(tmp_path):
    source = streams.plain(tmp_path / "in.mp4", frames=3, audio=None)
    output = tmp_path / "out.mp4"
    planned = plan(source, output, output_size=lambda size: (64, 64))
    assert planned.size == (48, 64)
    sink = VideoSink(planned)
    convert = sink.converter()
    for frame in seen(planned):
        sink.write(convert(replace(frame, pixels=np.zeros((64, 64, 3), np.uint8))))
    sink.finish()
    stream = probe(output, "stream=sample_aspect_ratio,width,height")["streams"][0]
    assert (stream["width"], stream["height"], stream["sample_aspect_ratio"]) == (64, 64, "4:3")


# Colour and depth


@needs_ffprobe
@pytest.mark.behaviour(6)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p10le"])
@pytest.mark.parametrize(("matrix", "full"), [("bt601", False), ("bt709", True), ("bt2020", False)])
def test_patches_through_a_lossless_codec(tmp_path, matrix, full, pix_fmt):
    source, frame = patches(tmp_path / "in.mkv", matrix, full=full, pix_fmt=pix_fmt)
    output = tmp_path / "out.mkv"
    planned = plan(source, output, TranslateOptions(codec="ffv1"))
    assert planned.encoder.pix_fmt == pix_fmt
    run(planned)
    with av.open(str(output)) as container:
        back = next(container.decode(video=0))
    for sent, got in zip(colours.plane_views(frame), colours.plane_views(back), strict=True):
        patch = colours.PATCH * sent.shape[0] // 128
        assert np.abs(colours.centres(sent.astype(int) - got, patch)).max() <= 2
    assert tags_of(output) == tags_of(source)
    assert tags_of(output)["color_range"] == ("pc" if full else "tv")


@needs_ffprobe
@pytest.mark.behaviour(6)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_tags_come_out_as_they_went_in(tmp_path, suffix):
    for matrix, full in (("bt601", True), ("bt709", False), ("bt2020", False)):
        source, _ = patches(tmp_path / f"in{suffix}", matrix, full=full, codec="libx264")
        output = tmp_path / f"{matrix}{suffix}"
        run(plan(source, output))
        assert tags_of(output) == tags_of(source)
        assert "color_space" in tags_of(output)


@needs_ffprobe
@pytest.mark.behaviour(6)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_untagged_source_stays_untagged(tmp_path, suffix):
    source = streams.plain(tmp_path / f"in{suffix}", frames=3, audio=None)
    output = tmp_path / f"out{suffix}"
    planned = plan(source, output)
    untagged = "has no tag of its colour matrix"
    assert len([note for note in grouped(planned.notes) if untagged in note]) == 1
    run(planned)
    assert tags_of(source) == {}
    assert tags_of(output) == {}
    explicit = plan(source, output, replace(FAST, color="bt709:full", overwrite=True))
    assert not explicit.notes
    assert explicit.colour.full_range
    run(explicit)
    assert tags_of(output) == {}


@pytest.mark.behaviour(8)
def test_ten_bits_pass_a_float16_network(tmp_path):
    source = gradient(tmp_path / "in.mkv")
    output = tmp_path / "out.mkv"
    planned = plan(source, output, LOSSLESS, pixel_type="float16")
    assert planned.encoder.pix_fmt == "yuv420p10le"
    assert not any(" bits become 8" in note for note in grouped(planned.notes))
    run(planned)
    with av.open(str(output)) as container:
        luma = colours.plane_views(next(container.decode(video=0)))[0]
    assert len(np.unique(luma)) > 800


@pytest.mark.behaviour(8)
def test_a_uint8_network_says_once_that_8_bits_pass(tmp_path):
    planned = plan(gradient(tmp_path / "in.mkv"), tmp_path / "out.mkv")
    assert [note for note in grouped(planned.notes) if " bits become 8" in note] == [
        f"{tmp_path}/in.mkv: its 10 bits become 8 (the model takes uint8); "
        "a model file that takes float16 keeps them"
    ]
    assert planned.encoder.pix_fmt == "yuv420p10le"


@pytest.mark.behaviour(8)
def test_hdr_errors_where_it_is_refused(tmp_path):
    source, _ = patches(tmp_path / "in.mkv", "bt2020", full=False, transfer=16)
    with pytest.raises(InputError, match=r"in.mkv: the video is HDR \(PQ\), which --hdr refuse"):
        plan(source, tmp_path / "out.mkv", replace(FAST, hdr="refuse"))


@needs_ffprobe
@pytest.mark.behaviour(8)
@pytest.mark.parametrize("pixel_type", ["uint8", "float16"])
@pytest.mark.parametrize(("curve", "transfer"), [("PQ", 16), ("HLG", 18)])
def test_an_hdr_video_comes_out_as_sdr(tmp_path, curve, transfer, pixel_type):
    source = hdr.video(tmp_path / "in.mp4", transfer)
    planned = plan(source, tmp_path / "out.mkv", LOSSLESS, pixel_type=pixel_type)
    assert planned.stream.peak == 600.0
    said = [note for note in grouped(planned.notes) if "is HDR" in note]
    assert len(said) == 1
    run(planned)
    entries = "stream:frame:frame_side_data:stream_side_data"
    assert "Mastering" in str(probe(source, entries))
    written = probe(tmp_path / "out.mkv", entries)
    (stream,) = written["streams"]
    assert stream["pix_fmt"] == "yuv420p10le"
    for tag in ("color_space", "color_primaries", "color_transfer"):
        assert stream[tag] == "bt709"
    assert "Mastering" not in str(written)
    assert "light level" not in str(written)
    assert tags_of(source)["color_transfer"] in ("smpte2084", "arib-std-b67")

    shown = colours.centres(pictures(tmp_path / "out.mkv")[0]).reshape(-1, 3)
    sent = colours.centres(colours.patches()).reshape(-1, 3).tolist()
    want = np.array([hdr.expected(curve, tuple(rgb), 600.0) for rgb in sent]) * 255
    # x265, the encoder of the source, is without loss here, and chroma of 4:2:0 is rounded twice.
    assert np.abs(shown - want).max() <= 3


@pytest.mark.behaviour(8)
def test_content_light_level_is_the_peak_without_a_mastering_display(tmp_path):
    source = hdr.video(tmp_path / "in.mp4", 16, display=None)
    assert plan(source, tmp_path / "out.mkv").stream.peak == 400.0
    source = hdr.video(tmp_path / "in.mp4", 16, display=None, max_cll=0)
    planned = plan(source, tmp_path / "out.mkv")
    assert planned.stream.peak is None
    assert any("PQ, peak 1,000 cd/m²" in note for note in grouped(planned.notes))


@pytest.mark.behaviour(8)
@pytest.mark.parametrize("transfer", [2, 16])
def test_dolby_vision_is_taken_by_a_base_layer_that_others_show(tmp_path, transfer):
    source = hdr.video(tmp_path / "in.mp4", transfer)
    content = source.read_bytes()
    assert b"hev1" in content
    source.write_bytes(content.replace(b"hev1", b"dvhe"))
    if transfer == 2:
        with pytest.raises(InputError, match=r"in.mp4: the video is Dolby Vision"):
            plan(source, tmp_path / "out.mkv")
    else:
        assert plan(source, tmp_path / "out.mkv").stream.dolby_vision


# The plan as a value


@pytest.mark.parametrize("pattern", [False, True])
def test_a_plan_is_pickled_and_what_comes_back_runs(tmp_path, pattern):
    source = tmp_path / "f_%02d.png" if pattern else tmp_path / "in.mkv"
    if pattern:
        for number in range(5):
            assert cv2.imwrite(str(tmp_path / f"f_{number:02d}.png"), streams.picture(number))
    else:
        streams.plain(source, frames=5)
    planned = plan(source, tmp_path / "out.mkv", replace(FAST, fps="25"))
    restored = pickle.loads(pickle.dumps(planned))
    assert restored == planned
    dropped, sink = run(restored)
    assert not dropped
    assert [each.path for each in sink.written] == [tmp_path / "out.mkv"]
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert len(list(container.decode(video=0))) == 5


# What is no video


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: path.write_text("no film"), "cannot read .*no media format"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: streams.audio_only(path), "no video stream"),
        (lambda path: None, "does not exist"),
    ],
)
def test_what_is_no_video_errors(tmp_path, make, match):
    make(tmp_path / "in.mp4")
    with pytest.raises(InputError, match=match):
        plan(tmp_path / "in.mp4", tmp_path / "out.mp4")


# Numbered images


@needs_ffprobe
@pytest.mark.behaviour(1)
def test_a_pattern_of_pictures_becomes_a_video(tmp_path):
    for number in range(7, 12):
        assert cv2.imwrite(
            str(tmp_path / f"f_{number:04d}.png"), streams.picture(number)[..., ::-1]
        )
    output = tmp_path / "out.mp4"
    planned = plan(tmp_path / "f_%04d.png", output, replace(FAST, fps="30000/1001", crf=1))
    assert planned.frames_expected == 5
    assert not planned.notes
    first = seen(planned)[0]
    assert np.array_equal(first.pixels, streams.picture(7))
    run(planned)
    assert [round(time * 30000 / 1001) for time in times(output)] == [0, 1, 2, 3, 4]
    assert probe(output, "stream=color_space,color_range")["streams"] == [
        {"color_space": "smpte170m", "color_range": "tv"}
    ]


@pytest.mark.behaviour(16)
def test_every_picture_of_a_pattern_is_turned_by_its_own_exif(tmp_path):
    upright = photos.photo()
    for number, turn in enumerate((6, 1, 4)):
        stored = photos.turned(upright, turn)
        data = photos.pillow(stored, "PNG", "RGB", exif=photos.exif(turn, artist="A"))
        (tmp_path / f"f_{number}.png").write_bytes(data)
    planned = plan(tmp_path / "f_%d.png", tmp_path / "out.mp4", replace(FAST, fps="25"))
    assert planned.size == (48, 64)
    source = VideoSource(planned)
    convert = source.converter()
    assert all(np.array_equal(convert(item).pixels, upright) for item in source.read())
    assert source.notes == ()
    source.close()


@pytest.mark.parametrize(
    ("fps", "match"),
    [
        (None, r"is a pattern of images, which have no frame rate; set it, e.g. --fps 25"),
        ("fast", "--fps fast is no frame rate"),
        ("0", "--fps 0 is no frame rate"),
        ("25", "no file matches .*f_%04d.png"),
    ],
)
def test_a_pattern_that_cannot_be_played_errors(tmp_path, fps, match):
    with pytest.raises(InputError, match=match):
        plan(tmp_path / "f_%04d.png", tmp_path / "out.mp4", replace(FAST, fps=fps))


def test_a_missing_picture_in_a_pattern_errors(tmp_path):
    for number in (1, 2, 4):
        assert cv2.imwrite(str(tmp_path / f"f_{number:02d}.png"), streams.picture(number))
    with pytest.raises(InputError, match=r"f_03.png is missing, between the numbers 1 and 4"):
        plan(tmp_path / "f_%02d.png", tmp_path / "out.mp4", replace(FAST, fps="25"))
