"""ProRes and DNxHR as editing programs expect them; the ffmpeg program is the witness."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.media.video.encoder import why_in_one_piece
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media import test_alpha
from tests.media.identity import plan, run
from tests.media.video.test_fields import clip as fields
from tests.media.video.test_fields import marks
from tests.media.witness import needs_ffprobe, pictures, probe, tags_of, tick, times
from tests.synthesis import colours

pytestmark = needs_ffprobe

SIZE = (128, 256)
"""DNxHR begins at 120×256."""


def clip(path: Path, pix_fmt: str = "yuv420p", size: tuple[int, int] = SIZE) -> Path:
    """Write three frames of BT.709, losslessly."""
    picture = f"testsrc2=s=320x240:r=25:d=0.12,format=yuv444p,crop={size[1]}:{size[0]}:exact=1"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", picture, "-c:v", "ffv1"]
    command += ["-pix_fmt", pix_fmt, "-colorspace", "bt709", "-color_primaries", "bt709"]
    subprocess.run([*command, "-color_trc", "bt709", "-color_range", "tv", path], check=True)
    return path


def written(path: Path) -> tuple[str, ...]:
    entries = ("codec_tag_string", "profile", "pix_fmt")
    stream = probe(path, f"stream={','.join(entries)}")["streams"][0]
    return tuple(stream[each] for each in entries)


@pytest.mark.behaviour(1, 2, 6)
@pytest.mark.parametrize(
    ("codec", "profile", "source_format", "suffix", "expected"),
    [
        ("prores", None, "yuv420p", ".mov", ("apch", "HQ", "yuv422p10le")),
        ("prores_ks", None, "yuv422p10le", ".mkv", ("apch", "HQ", "yuv422p10le")),
        ("prores", None, "yuv444p", ".mov", ("ap4h", "4444", "yuv444p12le")),
        ("prores", None, "gbrp", ".mkv", ("ap4h", "4444", "yuv444p12le")),
        ("prores", "proxy", "yuv444p", ".mov", ("apco", "Proxy", "yuv422p10le")),
        ("prores", "4444xq", "yuv420p", ".mov", ("ap4x", "XQ", "yuv444p12le")),
        ("dnxhr", None, "yuv420p", ".mov", ("AVdh", "DNXHR HQ", "yuv422p")),
        ("dnxhd", None, "yuv420p10le", ".mov", ("AVdh", "DNXHR HQX", "yuv422p10le")),
        ("dnxhr", None, "yuv444p", ".mkv", ("AVdn", "DNXHR 444", "yuv444p10le")),
        ("dnxhr", "lb", "yuv420p10le", ".mov", ("AVdh", "DNXHR LB", "yuv422p")),
        ("dnxhr", "dnxhr_sq", "gbrp", ".mov", ("AVdh", "DNXHR SQ", "yuv422p")),
    ],
)
def test_the_profile_follows_the_source_or_the_user(
    tmp_path, codec, profile, source_format, suffix, expected
):
    source, output = clip(tmp_path / "in.mkv", source_format), tmp_path / f"out{suffix}"
    chosen = {} if profile is None else {"profile": profile}
    planned = plan(source, output, TranslateOptions(codec=codec, encoder_opt=chosen))
    assert why_in_one_piece(planned.encoder) is None
    run(planned)
    assert written(output) == expected
    sent, got = times(source), times(output)
    assert len(got) == len(sent) == 3
    assert max(abs(a - b) for a, b in zip(sent, got, strict=True)) <= tick(output)
    # Edges lose chroma where 4:4:4 becomes 4:2:2, and detail by the profile.
    difference = np.abs(pictures(output).astype(int) - pictures(source))
    assert np.percentile(difference, 75) <= (2 if profile else 1)
    tags = tags_of(output)
    assert [tags[f"color_{each}"] for each in ("space", "primaries", "transfer")] == ["bt709"] * 3


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("codec", ["prores", "dnxhr"])
@pytest.mark.parametrize(
    ("matrix", "full", "bits"),
    [("bt601", False, 8), ("bt709", True, 8), ("bt2020", False, 10), ("bt601", True, 10)],
)
def test_patches_keep_their_colours_whatever_the_codec_can_state(
    tmp_path, codec, matrix, full, bits
):
    rgb = np.tile(colours.patches(), (1, 2, 1))
    pix_fmt = "yuv444p" if bits == 8 else "yuv444p10le"
    codes = colours.codes_from_rgb(rgb, matrix, full=full, bits=bits)
    frame = colours.frame_from_codes(codes, pix_fmt)
    numbers = colours.TAGS[matrix]
    source, output = tmp_path / "in.mkv", tmp_path / "out.mov"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = *rgb.shape[:2], pix_fmt
        context.colorspace, context.color_primaries, context.color_trc = numbers
        context.color_range = 2 if full else 1
        frame.pts = 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    planned = plan(source, output, TranslateOptions(codec=codec), pixel_type="float16")
    run(planned)
    levels = pictures(output)[0].astype(float)
    assert np.abs(colours.centres(levels - rgb * 255)).max() <= 2

    notes = [note for note in grouped(planned.notes) if " becomes that" in note]
    tags, was = tags_of(output), tags_of(source)
    if codec == "prores":
        assert tags == was | {"color_range": "tv"}
        assert len(notes) == full
    else:
        assert tags == was | {"color_space": "bt709"}
        assert len(notes) == (matrix != "bt709")


@pytest.mark.behaviour(7)
@pytest.mark.parametrize("suffix", [".mov", ".mkv"])
def test_alpha_makes_it_4444(tmp_path, suffix):
    source = test_alpha.clip(tmp_path / "in.mov")
    output = tmp_path / f"out{suffix}"
    planned = plan(source, output, TranslateOptions(codec="prores", strict=True))
    run(planned)
    assert written(output) == ("ap4h", "4444", "yuva444p12le")
    sent, got = test_alpha.seen_alpha(source, "argb"), test_alpha.seen_alpha(output, "yuva444p10le")
    assert np.abs(np.rint(got * (255 / 1023)) - sent).max() == 0

    lost = plan(source, output, TranslateOptions(codec="prores", encoder_opt={"profile": "hq"}))
    assert any("prores_ks's profile hq has none" in note for note in grouped(lost.notes))


@pytest.mark.behaviour(9)
@pytest.mark.parametrize("codec", ["prores", "dnxhr"])
@pytest.mark.parametrize("size", [(121, 259), (121, 256)])
def test_an_odd_width_gets_full_chroma(tmp_path, codec, size):
    """With halved chroma both encoders damage what is beside the last column."""
    source, output = clip(tmp_path / "in.mkv", size=size), tmp_path / "out.mov"
    planned = plan(source, output, TranslateOptions(codec=codec))
    assert planned.encoder.pix_fmt.startswith("yuv444p10" if size[1] % 2 else "yuv422p")
    run(planned)
    got, sent = pictures(output), pictures(source)
    assert got.shape == sent.shape == (3, *size, 3)
    assert np.abs(got[:, :, -2:].astype(int) - sent[:, :, -2:]).mean() < 4


@pytest.mark.behaviour(9)
@pytest.mark.parametrize(
    ("options", "asked", "instead"),
    [
        ({"codec": "prores", "encoder_opt": {"profile": "hq"}}, "profile hq", "profile=4444"),
        ({"codec": "prores", "pix_fmt": "yuv422p10le"}, "--pix-fmt yuv422p10le", "profile=4444"),
        ({"codec": "dnxhr", "encoder_opt": {"profile": "sq"}}, "profile dnxhr_sq", "dnxhr_444"),
    ],
)
def test_halved_chroma_of_an_odd_width_is_refused_with_what_holds_it(
    tmp_path, options, asked, instead
):
    source = clip(tmp_path / "in.mkv", "yuv444p", (128, 257))
    with pytest.raises(OutputError, match=f"257×128 in {asked}, which .*{instead}"):
        plan(source, tmp_path / "out.mov", TranslateOptions(**options))


@pytest.mark.behaviour(7)
def test_fields_are_kept_or_said_to_be_lost(tmp_path):
    source = fields(tmp_path / "in.mkv", "tff", size="256x128", frames=2)
    run(plan(source, tmp_path / "out.mov", TranslateOptions(codec="prores", strict=True)))
    assert marks(tmp_path / "out.mov") == {(1, 1)}
    lost = plan(source, tmp_path / "dnx.mov", TranslateOptions(codec="dnxhr"))
    assert any("the mark that stream 0" in note for note in grouped(lost.notes))


@pytest.mark.parametrize(
    ("options", "suffix", "reason"),
    [
        ({"codec": "prores", "crf": 3.0}, ".mov", "no --crf: its profile sets .* hq, 4444"),
        ({"codec": "dnxhr", "preset": "hq"}, ".mov", "no --preset: its profile .* dnxhr_lb"),
        ({"codec": "prores", "encoder_opt": {"profile": "best"}}, ".mov", "no profile best; .* lt"),
        (
            {"codec": "dnxhr", "encoder_opt": {"profile": "hq"}, "pix_fmt": "yuv422p10le"},
            ".mov",
            "profile dnxhr_hq does not hold --pix-fmt yuv422p10le; .* choose yuv422p$",
        ),
        (
            {"codec": "prores"},
            ".mp4",
            r"MP4 cannot hold prores_ks .* than \.mp4: \.mov, \.mkv$",
        ),
        ({"codec": "dnxhr"}, ".mp4", "MP4 cannot hold dnxhd"),
        ({"codec": "dnxhr", "encoder_opt": {"b": "8M"}}, ".mov", "does not open for 256×128"),
    ],
)
def test_what_they_do_not_have_is_refused_with_what_they_have(tmp_path, options, suffix, reason):
    source = clip(tmp_path / "in.mkv")
    with pytest.raises(OutputError, match=reason):
        plan(source, tmp_path / f"out{suffix}", TranslateOptions(**options))


def test_a_picture_below_the_least_of_dnxhr_is_refused(tmp_path):
    source = clip(tmp_path / "in.mkv", size=(48, 64))
    with pytest.raises(OutputError, match=r"64×48 .* must be at least 256x120"):
        plan(source, tmp_path / "out.mov", TranslateOptions(codec="dnxhr"))


@pytest.mark.behaviour(4)
def test_another_prores_stream_keeps_its_profile(tmp_path):
    """The tag of ProRes states its profile, and a copied stream has it as well."""
    one = tmp_path / "one.mov"
    source, output = clip(tmp_path / "in.mkv", "yuv444p"), tmp_path / "out.mov"
    run(plan(source, one, TranslateOptions(codec="prores")))
    two = tmp_path / "two.mov"
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        one,
        "-i",
        one,
        "-map",
        "0",
        "-map",
        "1",
        "-c",
        "copy",
    ]
    subprocess.run([*command, two], check=True)
    run(plan(two, output, replace(TranslateOptions(codec="prores"), stream=0)))
    with av.open(str(output)) as container:
        assert [each.codec_context.codec_tag for each in container.streams.video] == ["ap4h"] * 2
