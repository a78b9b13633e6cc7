"""The alpha of a video is kept, or its loss is reported; ffmpeg is the independent witness."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.media.alpha import Alpha, alpha_of, has_alpha, put_alpha
from cyclegan_batch.media.demux.description import describe
from cyclegan_batch.media.demux.probe import probe as probe_media
from cyclegan_batch.media.video import sink as video_sink
from cyclegan_batch.media.video import source as video_source
from cyclegan_batch.media.video.pixel_formats import choose_pix_fmt
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.identity import FAST, plan, run, seen
from tests.media.video.test_fields import clip as fields
from tests.media.witness import needs_ffprobe, probe

SIZE = (48, 64)
ENCODERS = {
    "prores_ks": ("yuva444p10le", ("-profile:v", "4444")),
    "qtrle": ("argb", ()),
    "png": ("rgba", ()),
    "ffv1": ("yuva420p10le", ()),
    "libvpx-vp9": ("yuva420p", ("-cpu-used", "8", "-crf", "10", "-b:v", "0")),
    "libvpx": ("yuva420p", ("-auto-alt-ref", "0", "-cpu-used", "8", "-b:v", "2M")),
}
"""The encoders of the sources that ffmpeg writes, each with its pixel format and options."""


def clip(path: Path, codec: str = "qtrle", *, before: tuple[str, ...] = ()) -> Path:
    """Four frames of 64×48 whose alpha is a slope that moves."""
    pix_fmt, options = ENCODERS[codec]
    picture = "testsrc2=s=64x48:r=25:d=0.16,format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)'"
    picture += ":a='mod(4*X+8*N,256)'"
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", picture, "-c:v", codec]
    subprocess.run([*command, "-pix_fmt", pix_fmt, *options, *before, str(path)], check=True)
    return path


def seen_alpha(path: Path, pix_fmt: str) -> np.ndarray[Any, Any]:
    """Return the alpha that ffmpeg decodes, ``(N, H, W)``, in the codes of a pixel format."""
    stream = probe(path, "stream=codec_name,width,height")["streams"][0]
    size = stream["height"], stream["width"]
    reader = {"vp9": "libvpx-vp9", "vp8": "libvpx"}.get(stream["codec_name"])
    command = ["ffmpeg", "-v", "error", *(("-c:v", reader) if reader else ()), "-noautorotate"]
    command += ["-i", str(path), "-f", "rawvideo", "-pix_fmt", pix_fmt, "-"]
    content = subprocess.check_output(command)
    samples = np.frombuffer(content, "<u2" if "10le" in pix_fmt else "u1").astype(int)
    if pix_fmt in ("argb", "rgba"):
        return samples.reshape(-1, *size, 4)[..., pix_fmt.index("a")]
    chroma = 4 if "420" in pix_fmt else 1
    frames = samples.reshape(-1, size[0] * size[1] * 2 + 2 * (size[0] * size[1] // chroma))
    return frames[:, -size[0] * size[1] :].reshape(-1, *size)


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("source_codec", "codec", "suffix", "written"),
    [
        ("prores_ks", "prores_ks", ".mov", "yuva444p10le"),
        ("qtrle", "qtrle", ".mov", "argb"),
        ("qtrle", "prores_ks", ".mov", "yuva444p10le"),
        ("png", "png", ".mov", "rgba"),
        ("ffv1", "ffv1", ".mkv", "yuva420p10le"),
        ("libvpx-vp9", "ffv1", ".mkv", "yuva420p"),
        ("libvpx", "qtrle", ".mov", "argb"),
        ("libvpx-vp9", None, ".webm", "yuva420p"),
        ("prores_ks", None, ".webm", "yuva420p"),
        ("qtrle", "libvpx", ".webm", "yuva420p"),
        ("qtrle", "libvpx-vp9", ".mkv", "yuva420p"),
    ],
)
def test_alpha_is_carried_past_the_network(tmp_path, source_codec, codec, suffix, written):
    """Sample for sample, except for the bit depth and the loss of the encoder."""
    kind = {"libvpx": ".webm", "libvpx-vp9": ".webm", "ffv1": ".mkv"}.get(source_codec, ".mov")
    source = clip(tmp_path / f"in{kind}", source_codec)
    output = tmp_path / f"out{suffix}"
    lossy = {}
    if suffix == ".webm" or codec == "libvpx-vp9":
        lossy = {"crf": 4.0, "encoder_opt": {"cpu-used": "8"}}
    planned = plan(source, output, TranslateOptions(codec=codec, strict=True, **lossy))
    assert (planned.encoder.alpha, planned.encoder.pix_fmt) == (True, written)
    assert not [note for note in grouped(planned.notes) if "the alpha of" in note]
    run(planned)
    sent, got = seen_alpha(source, ENCODERS[source_codec][0]), seen_alpha(output, written)
    assert got.shape == sent.shape == (4, *SIZE)
    assert np.ptp(sent) > 200
    both_deep = "10le" in written and "10le" in ENCODERS[source_codec][0]
    sent, got = (
        np.rint(codes * (255 / 1023)) if "10le" in pix_fmt and not both_deep else codes
        for codes, pix_fmt in ((sent, ENCODERS[source_codec][0]), (got, written))
    )
    difference = np.abs(got - sent)
    assert (np.percentile(difference, 80) if lossy else difference.max()) <= 3 * bool(lossy)
    tags = probe(output, "stream_tags=alpha_mode")["streams"][0].get("tags", {})
    assert ("ALPHA_MODE" in tags) == str(planned.encoder.name).startswith("libvpx")


@needs_ffprobe
@pytest.mark.behaviour(7)
@pytest.mark.parametrize(
    ("source_codec", "suffix", "options", "why"),
    [
        ("prores_ks", ".mov", {}, "libx264 in .mov cannot hold it"),
        ("qtrle", ".mkv", {}, "libx264 in .mkv cannot hold it"),
        ("libvpx-vp9", ".mkv", {}, "libx264 in .mkv cannot hold it"),
        ("libvpx-vp9", ".mp4", {"codec": "libvpx-vp9"}, "libvpx-vp9 in .mp4 cannot hold it"),
        ("qtrle", ".mov", {"codec": "qtrle", "pix_fmt": "rgb24"}, "--pix-fmt rgb24 has none"),
        ("qtrle", ".y4m", {}, "y4m cannot hold it"),
    ],
)
def test_the_loss_of_alpha_is_said_once_and_an_error_when_strict(
    tmp_path, source_codec, suffix, options, why
):
    source = clip(tmp_path / ("in.webm" if "vp" in source_codec else "in.mov"), source_codec)
    output = tmp_path / f"out{suffix}"
    planned = plan(source, output, TranslateOptions(**options))
    notes = [note for note in grouped(planned.notes) if "the alpha of" in note]
    assert len(notes) == 1
    assert notes[0].startswith(f"{output} goes without the alpha of stream 0 (video ")
    assert f"): {why}" in notes[0]
    assert not has_alpha(planned.encoder.pix_fmt)
    run(planned)
    tags = probe(output, "stream_tags=alpha_mode")["streams"][0].get("tags", {})
    assert "ALPHA_MODE" not in tags
    with pytest.raises(OutputError, match=r"goes without the alpha of stream 0 .*--strict"):
        plan(source, output, TranslateOptions(strict=True, **options))


@needs_ffprobe
@pytest.mark.behaviour(7)
def test_a_video_without_alpha_goes_into_an_encoder_with_it_as_opaque(tmp_path):
    source = tmp_path / "in.mkv"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:d=0.08"]
    subprocess.run([*command, "-c:v", "ffv1", "-pix_fmt", "yuv420p", source], check=True)
    output = tmp_path / "out.mov"
    options = TranslateOptions(codec="prores_ks", pix_fmt="yuva444p10le", strict=True)
    planned = plan(source, output, options)
    assert not planned.encoder.alpha
    run(planned)
    assert (seen_alpha(output, "yuva444p10le") == 1023).all()


@needs_ffprobe
@pytest.mark.behaviour(7, 10)
@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_a_part_that_is_reached_without_a_seek_keeps_its_alpha(tmp_path, codec):
    source = clip(tmp_path / "in.webm", codec)
    lossless = TranslateOptions(codec="ffv1")
    whole = seen(plan(source, tmp_path / "out.mkv", lossless))
    part = seen(plan(source, tmp_path / "out.mkv", replace(lossless, ss=0.08)))
    assert [frame.tag.pts for frame in part] == [frame.tag.pts for frame in whole[2:]]
    for one, other in zip(part, whole[2:], strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.tag.alpha.values, other.tag.alpha.values)


@needs_ffprobe
@pytest.mark.behaviour(7)
def test_alpha_is_turned_and_resized_with_its_picture(tmp_path):
    upright = clip(tmp_path / "upright.mov")
    source = tmp_path / "in.mov"
    with av.open(str(upright)) as read, av.open(str(source), "w") as written:
        stream: Any = written.add_stream_from_template(read.streams.video[0], opaque=True)
        stream.set_display_rotation(90)
        for packet in read.demux():
            if packet.size:
                packet.stream = stream
                written.mux(packet)
    output = tmp_path / "out.mov"
    run(plan(source, output, TranslateOptions(codec="qtrle")))
    # 90 degrees counter-clockwise.
    assert np.array_equal(
        seen_alpha(output, "argb"), np.rot90(seen_alpha(upright, "argb"), axes=(1, 2))
    )

    small = tmp_path / "small.mov"
    planned = plan(upright, small, TranslateOptions(codec="qtrle"), output_size=lambda _: (24, 32))
    source_, sink = video_source.VideoSource(planned), video_sink.VideoSink(planned)
    from_raw, to_encoded = source_.converter(), sink.converter()
    for item in source_.read():
        frame: Any = from_raw(item)  # type: ignore[arg-type]
        sink.write(to_encoded(replace(frame, pixels=np.zeros((24, 32, 3), np.uint8))))
    sink.finish()
    source_.close()
    halves = seen_alpha(upright, "argb").reshape(4, 24, 2, 32, 2).mean(axis=(2, 4))
    assert np.abs(seen_alpha(small, "argb") - halves).max() <= 1


@pytest.mark.parametrize(
    "name",
    [
        *("argb", "abgr", "rgba", "bgra", "ya8", "ya16be", "ya16le", "rgba64be", "bgra64le"),
        *("yuva420p", "yuva422p10le", "yuva444p12le", "yuva444p16be", "gbrap", "gbrap10le"),
        *("gbrap16be", "ayuv64le", "vuya", "ayuv", "gbrapf32le"),
    ],
)
def test_alpha_is_found_in_every_format(name):
    """swscale wrote it there."""
    alpha = np.arange(48 * 64).reshape(SIZE).astype(np.uint8)
    rgba = np.dstack([np.full((*SIZE, 3), 90, np.uint8), alpha])
    frame = av.VideoFrame.from_ndarray(rgba, "rgba").reformat(format=name)
    assert has_alpha(name)
    alpha_read = alpha_of(frame)
    assert alpha_read is not None
    levels = alpha_read.values.astype(float) * 255 / (2**alpha_read.bits - 1)
    # swscale converts 8 bits to 16 by a shift, or by repeating them.
    assert np.abs(levels - alpha).max() <= 1
    if not name.startswith("gbrapf"):
        put_alpha(frame, Alpha(255 - alpha, 8))
        again = alpha_of(frame)
        assert again is not None
        levels = again.values.astype(float) * 255 / (2**again.bits - 1)
        assert np.array_equal(np.rint(levels), 255 - alpha)


@needs_ffprobe
@pytest.mark.behaviour(36)
def test_what_a_file_tells_of_alpha_and_fields(tmp_path):
    for codec, suffix, alpha in (("libvpx-vp9", ".webm", True), ("qtrle", ".mov", True)):
        source = clip(tmp_path / f"in{suffix}", codec)
        words = describe(probe_media(source))["streams"][0]
        assert (words["alpha"], words["interlaced"], words["first_field"]) == (alpha, False, None)
    source = fields(tmp_path / "fields.mkv", "bff", frames=1)
    words = describe(probe_media(source))["streams"][0]
    assert (words["alpha"], words["interlaced"], words["first_field"]) == (False, True, "bottom")


def test_formats_without_alpha_have_none():
    for name in ("yuv420p", "rgb24", "gray", "nv12", "bgr0", "gbrp", "pal8"):
        assert not has_alpha(name)
        assert alpha_of(av.VideoFrame(16, 16, name)) is None


@pytest.mark.parametrize(
    ("source", "formats", "chosen"),
    [
        ("argb", ["rgb24", "rgb555be", "argb", "gray"], "argb"),
        ("yuva444p12le", ["yuv422p10le", "yuv444p10le", "yuva444p10le"], "yuva444p10le"),
        ("yuva420p", ["yuv420p", "yuva420p", "yuva444p", "bgra"], "yuva420p"),
        ("rgba64be", ["rgb24", "rgba", "rgb48be", "rgba64be"], "rgba64be"),
        ("rgba", ["bgra", "yuva420p", "gbrap"], "yuva420p"),
        ("yuva420p", ["yuv420p", "yuv444p"], "yuv420p"),
        ("yuv420p", [], "yuva420p"),
    ],
)
def test_the_pixel_format_keeps_alpha(source, formats, chosen):
    assert choose_pix_fmt(source, formats, alpha=True) == chosen


@pytest.mark.behaviour(7)
def test_a_gif_is_transparent_only_where_something_is_missing(tmp_path):
    """FFmpeg's decoder returns alpha for every GIF, most of which are opaque."""
    from PIL import Image

    for name, colours in (("opaque", 255), ("clear", 128)):
        first = Image.new("RGBA", (32, 32), (200, 30, 30, 255))
        first.paste((0, 0, 0, 255 if colours == 255 else 0), (0, 0, 16, 16))
        second = Image.new("RGBA", (32, 32), (30, 30, 200, 255))
        first.save(tmp_path / f"{name}.gif", save_all=True, append_images=[second], duration=40)
    for name, has_note in (("opaque", False), ("clear", True)):
        planned = plan(tmp_path / f"{name}.gif", tmp_path / "out.mp4", FAST)
        assert any("the alpha of" in note for note in grouped(planned.notes)) == has_note
