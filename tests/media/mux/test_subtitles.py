"""Text subtitles are converted where a container holds another format."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import av
import pytest

from cyclegan_batch.media.demux.probe import probe
from tests.media.mux.assembling import translate
from tests.needs import need
from tests.synthesis import streams


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("names", [("a.mkv", "out.mp4"), ("a.mp4", "out.mkv")])
def test_subrip_and_mov_text_become_each_other(tmp_path: Path, names: tuple[str, str]) -> None:
    source, output = tmp_path / names[0], tmp_path / names[1]
    (streams.mkv if source.suffix == ".mkv" else streams.mp4)(source)
    _, notes = translate(source, output)

    moved = 0.021 if notes else 0.0
    need("ffmpeg")
    text = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", output, "-map", "0:s:0", "-f", "srt", "-"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    lines = [block.split("\n") for block in text.strip().split("\n\n")]
    slanted = "two <i>slanted</i>" if source.suffix == ".mkv" else "two slanted"
    assert [block[2] for block in lines] == ["one", slanted, "three"]
    for block, (start, end, _) in zip(lines, streams.SUBTITLES, strict=True):
        seconds = [float(t.split(":")[-1].replace(",", ".")) for t in block[1].split(" --> ")]
        assert seconds == pytest.approx([start + moved, end + moved], abs=0.0011)
    with av.open(str(output)) as container:
        subtitle = container.streams.subtitles[0]
        assert subtitle.metadata["language"] == "fra"


TEXTS = {
    "ass": """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, Bold, Italic, Alignment, Encoding
Style: Default,Arial,16,&Hffffff,0,0,2,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.20,0:00:00.40,Default,,0,0,0,,{\\pos(10,10)}one, with a comma
Dialogue: 0,0:00:00.45,0:00:00.50,Default,,0,0,0,,{\\p1}m 0 0 l 10 0 10 10{\\p0}
Dialogue: 0,0:00:00.60,0:00:00.80,Default,,0,0,0,,two {\\i1}slanted{\\i0}\\Nlines
""",
    "vtt": "WEBVTT\n\n00:00.200 --> 00:00.400\none, with a comma\n\n"
    "00:00.600 --> 00:00.800\ntwo <i>slanted</i>\nlines\n",
    "srt": "1\n00:00:00,200 --> 00:00:00,400\none, with a comma\n\n"
    "2\n00:00:00,600 --> 00:00:00,800\ntwo <i>slanted</i>\nlines\n",
}
"""The same subtitles in three formats; ASS also draws a shape."""


@pytest.mark.behaviour(5)
@pytest.mark.parametrize(
    ("kind", "output", "becomes"),
    [
        ("ass", "out.mp4", "mov_text"),
        ("ass", "out.mov", "mov_text"),
        ("vtt", "out.mp4", "mov_text"),
        ("ass", "out.webm", "webvtt"),
        ("srt", "out.webm", "webvtt"),
        ("ass", "out.mkv", "ass"),
        ("vtt", "out.mkv", "webvtt"),
    ],
)
def test_subtitles_that_are_text_become_what_the_container_holds(
    tmp_path: Path, kind: str, output: str, becomes: str
) -> None:
    need("ffmpeg")

    def ffmpeg(*arguments: str | Path) -> str:
        return subprocess.run(
            ["ffmpeg", "-nostdin", "-v", "error", *arguments],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    plain = streams.plain(tmp_path / "plain.mkv", audio=None)
    (tmp_path / f"a.{kind}").write_text(TEXTS[kind])
    source = tmp_path / "a.mkv"
    ffmpeg("-i", plain, "-i", tmp_path / f"a.{kind}", "-c", "copy", source)
    codec = "libvpx-vp9" if output.endswith("webm") else "libx264"
    plan, _ = translate(source, tmp_path / output, codec=codec)

    assert plan.notes == ()
    assert probe(tmp_path / output).streams[1].codec == becomes
    srt = ffmpeg("-i", tmp_path / output, "-map", "0:s:0", "-f", "srt", "-")
    blocks = [block.split("\n", 2)[1:] for block in srt.strip().split("\n\n")]
    lines = [re.sub(r"</?(font|i)[^>]*>|\{.*?\}", "", text) for _, text in blocks]
    if becomes == "ass":
        lines.pop(1)  # the drawing, which is copied
        blocks.pop(1)
    assert lines == ["one, with a comma", "two slanted\nlines"]
    for (times, _), due in zip(blocks, ([0.2, 0.4], [0.6, 0.8]), strict=True):
        seconds = [float(time.split(":")[-1].replace(",", ".")) for time in times.split(" --> ")]
        assert seconds == pytest.approx(due, abs=0.0011)


@pytest.mark.behaviour(4, 5)
def test_subtitles_that_overlap_are_all_on_screen_in_mp4(tmp_path: Path) -> None:
    need("ffmpeg")
    lines = [(0.1, 0.5, "below"), (0.2, 0.4, "<i>above</i>"), (0.2, 0.3, "third"), (0.6, 0.7, "x")]
    times = [tuple(f"00:00:0{t:.3f}".replace(".", ",") for t in line[:2]) for line in lines]
    blocks = [f"{i}\n{a} --> {b}\n{lines[i][2]}\n" for i, (a, b) in enumerate(times)]
    (tmp_path / "a.srt").write_text("\n".join(blocks))
    plain = streams.plain(tmp_path / "plain.mkv", audio=None)
    source, output = tmp_path / "a.mkv", tmp_path / "out.mp4"
    ffmpeg = ["ffmpeg", "-nostdin", "-v", "error"]
    subprocess.run(
        [*ffmpeg, "-i", plain, "-i", tmp_path / "a.srt", "-c", "copy", source], check=True
    )
    translate(source, output)
    srt = subprocess.run(
        [*ffmpeg, "-i", output, "-map", "0:s:0", "-f", "srt", "-"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert [block.split("\n", 1)[1] for block in srt.strip().split("\n\n")] == [
        "00:00:00,100 --> 00:00:00,200\nbelow",
        "00:00:00,200 --> 00:00:00,300\nbelow\n<i>above</i>\nthird",
        "00:00:00,300 --> 00:00:00,400\nbelow\n<i>above</i>",
        "00:00:00,400 --> 00:00:00,500\nbelow",
        "00:00:00,600 --> 00:00:00,700\nx",
    ]
