"""The output holds the frames that were sent, at their times, and everything else of its source."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from cyclegan_batch.errors import OutputError
from cyclegan_batch.machine import own_scheduling
from cyclegan_batch.media import assemble as assemble_module
from cyclegan_batch.media.assemble import assemble
from cyclegan_batch.media.demuxing import open_container
from cyclegan_batch.media.joined_video import JoinedVideo, Stretch
from cyclegan_batch.media.probe import probe
from cyclegan_batch.media.stream_info import MediaInfo, StreamInfo
from cyclegan_batch.media.streams import StreamPlan, plan_streams
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.synthesis import streams

SETTINGS = {
    "libx264": {"preset": "veryfast", "bf": "2", "g": "12"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2:pools=1"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "libvpx-vp9": {"cpu-used": "8", "deadline": "realtime"},
}


def translate(
    source: Path, output: Path, *, codec: str = "libx264", per: int = 20, **options: Any
) -> tuple[StreamPlan, tuple[str, ...]]:
    """Encode the frames of ``source`` as they are, in stretches, and assemble ``output``."""
    info = probe(source)
    chosen = TranslateOptions(codec=codec, **options)
    video = info.best_video(chosen.stream)
    plan = plan_streams(
        info, video, output, chosen, encoder=codec, pix_fmt="yuv420p", size=video.size or (0, 0)
    )
    stretches = encode(info, video, output.parent, codec=codec, per=per, options=chosen)
    return plan, grouped(assemble(stretches, plan, output).notes)


def encode(
    info: MediaInfo,
    video: StreamInfo,
    folder: Path,
    *,
    codec: str = "libx264",
    per: int = 20,
    options: TranslateOptions | None = None,
) -> list[Stretch]:
    """Encode the frames of a stream with PyAV alone, ``per`` in each stretch."""
    options = options or TranslateOptions()
    with open_container(info.path) as container:
        frames = list(container.decode(container.streams[video.index]))
    start = options.ss or 0
    frames = [
        frame
        for frame in frames
        if frame.time >= start - 1e-9 and (options.to is None or frame.time < options.to - 1e-9)
    ][: options.frames]
    stretches = []
    for first in range(0, len(frames), per):
        part = frames[first : first + per]
        # Read before `reformat`, which may return the same frame: its time is set for the stretch.
        times = tuple(frame.pts for frame in part)
        path = folder / f".{len(stretches)}.unit"
        with own_scheduling(), av.open(str(path), "w", format="mp4") as output:
            stream: Any = output.add_stream(codec, rate=25, options=SETTINGS.get(codec, {}))
            stream.width, stream.height, stream.pix_fmt = part[0].width, part[0].height, "yuv420p"
            context = stream.codec_context
            context.time_base = stream.time_base = video.time_base
            context.thread_count = 1
            context.sample_aspect_ratio = video.sample_aspect_ratio or Fraction(1)
            context.colorspace, context.color_range = 1, 1
            for frame, time in zip(part, times, strict=True):
                picture = frame.reformat(format="yuv420p")
                picture.pts, picture.time_base = time - times[0], video.time_base
                picture.pict_type = 0
                output.mux(stream.encode(picture))
            output.mux(stream.encode(None))
        stretches.append(Stretch(path, video.time_base, times, part[-1].duration or None))
    return stretches


def ffprobe(path: Path, *arguments: str) -> Any:
    if shutil.which("ffprobe") is None:
        pytest.skip("no ffprobe to bear witness")
    command = ["ffprobe", "-v", "error", "-of", "json", *arguments, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def packets(path: Path, stream: str) -> list[tuple[float, str]]:
    """Return time and hash of every packet of a stream, by ffprobe."""
    answer = ffprobe(path, "-select_streams", stream, "-show_packets", "-show_data_hash", "md5")
    return [(float(p["pts_time"]), p["data_hash"]) for p in answer["packets"]]


def frame_times(path: Path) -> list[float]:
    """Return the time of every decoded frame of the first video stream, by ffprobe."""
    answer = ffprobe(path, "-select_streams", "v:0", "-show_frames")
    return [float(frame["best_effort_timestamp_time"]) for frame in answer["frames"]]


def columns(path: Path) -> list[int]:
    """Return the place of the bright column in every frame, which identifies the frame."""
    with av.open(str(path)) as container:
        return [
            int(frame.to_ndarray(format="gray")[20:].reshape(28, -1, 4).mean(axis=(0, 2)).argmax())
            for frame in container.decode(video=0)
        ]


# Everything survives


@pytest.mark.behaviour(2, 3, 4)
def test_everything_in_an_mkv_survives(tmp_path: Path) -> None:
    source, output = streams.mkv(tmp_path / "a.mkv"), tmp_path / "out.mkv"
    plan, notes = translate(source, output)

    assert (plan.notes, notes) == ((), ())
    before, after = probe(source), probe(output)
    assert after.metadata["title"] == "A title"
    assert after.metadata["MOOD"] == "calm"
    assert after.chapters == before.chapters
    for index in range(5):
        ours, theirs = after.streams[index], before.streams[index]
        assert (ours.codec, ours.disposition) == (theirs.codec, theirs.disposition)
        assert _tags(ours) == _tags(theirs)
    font = next(s for s in after.streams if s.kind == "attachment")
    assert font.metadata["filename"] == "Some Font.ttf"
    assert font.metadata["mimetype"] == "application/x-truetype-font"
    assert font.metadata["DESCRIPTION"] == "For the subtitles"
    cover = next(s for s in after.streams if s.attached_picture)
    assert cover.metadata["filename"] == "cover.png"
    with av.open(str(output)) as container:
        assert container.streams[font.index].data == streams.FONT
        assert (
            bytes(next(container.demux(container.streams[cover.index]))) == streams.cover_picture()
        )
    for stream in ("a:0", "a:1", "s:0", "s:1"):
        assert packets(output, stream) == packets(source, stream)
    assert frame_times(output) == frame_times(source)


def _tags(stream: StreamInfo) -> dict[str, str]:
    return {k: v for k, v in stream.metadata.items() if k not in ("ENCODER", "DURATION")}


@pytest.mark.behaviour(2, 3, 4)
@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov"])
def test_all_that_mp4_can_hold_survives(tmp_path: Path, suffix: str) -> None:
    source, output = streams.mp4(tmp_path / "a.mp4"), tmp_path / f"out{suffix}"
    plan, notes = translate(source, output)

    # A cover is part of iTunes' metadata, which MOV does not have.
    count = 5 if suffix == ".mov" else 6
    # The languages of MOV are those of the Macintosh, for which FFmpeg has the older codes.
    languages = {"deu": "ger"} if suffix == ".mov" else {}
    assert len(grouped(plan.notes)) == 6 - count
    assert notes == ()
    before, after = probe(source), probe(output)
    assert [s.codec for s in after.streams] == [s.codec for s in before.streams][:count]
    assert [s.disposition for s in after.streams] == [s.disposition for s in before.streams][:count]
    assert [s.metadata.get("language") for s in after.streams] == [
        languages.get(str(s.metadata.get("language")), s.metadata.get("language"))
        for s in before.streams[:count]
    ]
    assert _chapters(after) == _chapters(before) == [(0, 0.8, "Dawn"), (0.8, 2, "Däy")]
    assert after.metadata["title"] == "A title"
    assert after.metadata["comment"] == "Zwölf Boxkämpfer"
    for stream in ("a:0", "a:1", "s:0"):
        assert packets(output, stream) == packets(source, stream)
    with av.open(str(output)) as container:
        for cover in list(container.streams)[5:]:
            assert cover.disposition == Disposition.attached_pic
            assert bytes(next(container.demux(cover))) == streams.cover_picture()
    assert frame_times(output) == frame_times(source)


def _chapters(info: MediaInfo) -> list[tuple[float, float, str]]:
    return [
        (
            float(c["start"] * c["time_base"]),
            float(c["end"] * c["time_base"]),
            c["metadata"]["title"],
        )
        for c in info.chapters
    ]


@pytest.mark.behaviour(4)
def test_a_phones_own_tags_survive_in_mp4(tmp_path: Path) -> None:
    source, output = tmp_path / "a.mp4", tmp_path / "out.mp4"
    with av.open(
        str(source), "w", container_options={"movflags": "use_metadata_tags"}
    ) as container:
        container.metadata["com.apple.quicktime.model"] = "A phone"
        container.metadata["title"] = "A title"
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(streams.picture(0), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    translate(source, output)
    metadata = probe(output).metadata
    assert metadata["com.apple.quicktime.model"] == "A phone"
    assert metadata["title"] == "A title"


@pytest.mark.behaviour(4)
def test_the_other_video_is_copied_with_its_rotation(tmp_path: Path) -> None:
    small = streams.plain(
        tmp_path / "s.mp4", audio=None, size=(32, 32), rotation=(90, False, False)
    )
    large = streams.plain(tmp_path / "l.mp4")
    both, output = tmp_path / "both.mp4", tmp_path / "out.mp4"
    with av.open(str(both), "w") as container, av.open(str(small)) as s, av.open(str(large)) as t:
        for other in (s, t):
            for stream in other.streams:
                copy = container.add_stream_from_template(stream, opaque=True)
                stream.metadata["copy"] = str(copy.index)
        for other in (s, t):
            for packet in other.demux():
                if packet.size:
                    packet.stream = container.streams[int(packet.stream.metadata["copy"])]
                    container.mux(packet)
    plan, _ = translate(both, output, stream=1)

    assert [c.action for c in plan.streams] == ["copy", "video", "copy"]
    assert packets(output, "v:0") == packets(both, "v:0")
    assert probe(output).streams[0].rotation == 90
    assert len(packets(output, "v:1")) == 25


@pytest.mark.behaviour(6, 7)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_the_encoders_colour_tags_and_sample_aspect_reach_the_file(
    tmp_path: Path, suffix: str
) -> None:
    source = streams.plain(tmp_path / "a.mp4", frames=5, sample_aspect_ratio=Fraction(4, 3))
    output = tmp_path / f"out{suffix}"
    translate(source, output)
    stream = ffprobe(output, "-show_streams", "-select_streams", "v:0")["streams"][0]
    assert stream["sample_aspect_ratio"] == "4:3"
    assert (stream["color_space"], stream["color_range"]) == ("bt709", "tv")


# Times


@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_rate_keeps_every_time_and_the_order_of_frames(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    source, output = streams.variable_rate(tmp_path / "a.mp4"), tmp_path / f"out{suffix}"
    translate(source, output, codec=codec, per=6)

    times = frame_times(output)
    # AAC's priming lies below zero, where MKV cannot start.
    moved = 0.021 if suffix == ".mkv" else 0.0
    assert times == pytest.approx([t / 1000 + moved for t in streams.VFR_TIMES], abs=0.0011)
    assert columns(output) == columns(source)


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_the_last_frame_keeps_its_duration(tmp_path: Path, suffix: str) -> None:
    source, output = streams.variable_rate(tmp_path / "a.mkv"), tmp_path / f"out{suffix}"
    info = probe(source)
    plan = plan_streams(
        info, info.streams[0], output, TranslateOptions(audio="none"),
        encoder="libx264", pix_fmt="yuv420p", size=(48, 64),
    )  # fmt: skip
    stretches = encode(info, info.streams[0], tmp_path)
    assemble([replace(stretches[0], last_duration=777)], plan, output)
    assert float(ffprobe(output, "-show_format")["format"]["duration"]) == pytest.approx(2.177)


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("sound", [Fraction(3, 4), Fraction(1, 4)])
def test_what_begins_first_begins_at_zero_and_the_other_stays_as_far_from_it(
    tmp_path: Path, suffix: str, sound: Fraction
) -> None:
    source = _apart(tmp_path, picture=Fraction(1, 2), sound=sound)
    output = tmp_path / f"out{suffix}"
    assert translate(source, output)[1] == ()
    pictures, heard = frame_times(output)[0], packets(output, "a:0")[0][0]
    before = frame_times(source)[0], packets(source, "a:0")[0][0]
    assert heard - pictures == pytest.approx(before[1] - before[0], abs=0.0011)
    # The delay of MP3 (0.023 s) lies below zero; MPEG-TS also needs room for decoding times.
    assert -0.024 < min(pictures, heard) < (0.1 if suffix == ".ts" else 0.003)


@pytest.mark.behaviour(2, 3)
@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".nut"])
def test_where_nothing_can_start_below_zero_all_streams_move_together_and_a_note_reports_it(
    tmp_path: Path, suffix: str
) -> None:
    source, output = streams.plain(tmp_path / "a.mp4"), tmp_path / f"out{suffix}"
    _, notes = translate(source, output)

    assert len(notes) == 1
    assert "cannot start below zero, so all streams start" in notes[0]
    before, after = frame_times(source), frame_times(output)
    moved = after[0] - before[0]
    assert moved > 0.02
    assert after == pytest.approx([t + moved for t in before], abs=0.0011)
    sound, copied = packets(source, "a:0"), packets(output, "a:0")
    assert [t for t, _ in copied] == pytest.approx([t + moved for t, _ in sound], abs=0.0011)
    if suffix != ".ts":  # MPEG-TS adds ADTS headers to AAC.
        assert [h for _, h in copied] == [h for _, h in sound]


@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("a.ts", "libx264", "aac"),
        ("a.avi", "mpeg4", "libmp3lame"),
        ("a.webm", "libvpx-vp9", "libopus"),
        ("a.nut", "libx264", "aac"),
    ],
)
def test_the_other_containers_go_in_and_out(
    tmp_path: Path, name: str, codec: str, sound: str
) -> None:
    source = streams.plain(tmp_path / name, codec=codec, audio=sound)
    output = source.with_stem("out")
    plan, _ = translate(source, output, codec=codec)
    assert plan.notes == ()
    assert columns(output) == columns(source)
    assert [h for _, h in packets(output, "a:0")] == [h for _, h in packets(source, "a:0")]


def test_h264_in_avi_decodes(tmp_path: Path) -> None:
    source, output = streams.plain(tmp_path / "a.mp4"), tmp_path / "out.avi"
    translate(source, output)
    assert columns(output) == columns(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".m2ts"])
def test_streams_are_interleaved_in_the_file(tmp_path: Path, suffix: str) -> None:
    source, output = streams.plain(tmp_path / "a.mp4", frames=75), tmp_path / f"out{suffix}"
    translate(source, output)
    latest = 0.0
    with av.open(str(output)) as container:
        stamped = [p for p in container.demux() if p.size and p.dts is not None]
        for packet in sorted(stamped, key=lambda p: p.pos or 0):
            time = float(packet.dts * packet.time_base)
            assert time > latest - 1.2
            latest = max(latest, time)
    assert latest > 2.8


@pytest.mark.behaviour(2, 4)
@pytest.mark.parametrize("audio", ["copy", "aac", "libopus"])
@pytest.mark.parametrize("suffix", [".mkv", ".nut"])
def test_chapters_move_with_the_streams(tmp_path: Path, suffix: str, audio: str) -> None:
    source, output = streams.mp4(tmp_path / "a.mp4"), tmp_path / f"out{suffix}"
    translate(source, output, audio=audio)
    moved = frame_times(output)[0]
    if audio == "copy":
        assert moved > 0.02
    for ours, theirs in zip(_chapters(probe(output)), _chapters(probe(source)), strict=True):
        assert ours[:2] == pytest.approx([t + moved for t in theirs[:2]], abs=0.0021)


# What the container cannot hold


@pytest.mark.behaviour(5)
def test_what_mp4_cannot_hold_is_named_once_each_and_the_rest_goes_in(tmp_path: Path) -> None:
    source, output = streams.mkv(tmp_path / "a.mkv"), tmp_path / "out.mp4"
    plan, _ = translate(source, output)

    assert [note.split("without ")[1] for note in grouped(plan.notes)] == [
        "stream 5 (attachment application/x-truetype-font): MP4 cannot hold it",
    ]
    after = probe(output)
    assert [s.codec for s in after.streams][:5] == ["h264", "flac", "opus", "mov_text", "mov_text"]
    assert any(s.attached_picture for s in after.streams)
    assert [h for _, h in packets(output, "a:1")] == [h for _, h in packets(source, "a:1")]


@pytest.mark.behaviour(5)
@pytest.mark.parametrize(
    ("make", "name", "output", "lost"),
    [
        (streams.mkv, "a.mkv", "out.ts", [1, 3, 4, 5, 6, "2 chapters"]),
        (streams.mkv, "a.mkv", "out.avi", [2, 3, 4, 5, 6, "2 chapters"]),
        (streams.mp4, "a.mp4", "out.avi", [3, 5, "2 chapters"]),
        (streams.captioned, "a.ts", "out.mp4", ["the closed captions inside stream 0"]),
    ],
)
def test_each_loss_is_one_warning_and_an_error_when_strict_errors(
    tmp_path: Path, make: Callable[[Path], Path], name: str, output: str, lost: list[int | str]
) -> None:
    source = make(tmp_path / name)
    info = probe(source)
    video = info.best_video()

    def plan(**options: Any) -> StreamPlan:
        return plan_streams(
            info, video, tmp_path / output, TranslateOptions(**options),
            encoder="libx264", pix_fmt="yuv420p", size=(48, 64),
        )  # fmt: skip

    notes = grouped(plan().notes)
    assert len(notes) == len(lost)
    for note, what in zip(notes, lost, strict=True):
        assert (f"stream {what} (" if isinstance(what, int) else what) in note
    with pytest.raises(OutputError, match="leave out --strict"):
        plan(strict=True)


@pytest.mark.behaviour(5)
@pytest.mark.parametrize(
    ("known", "unknown", "index"), [(b"A_FLAC", b"A_XLAC", 1), (b"S_TEXT/ASS", b"S_TEXT/AXS", 4)]
)
def test_a_stream_of_an_unknown_codec_is_named_and_left_out(
    tmp_path: Path, known: bytes, unknown: bytes, index: int
) -> None:
    source, output = streams.mkv(tmp_path / "a.mkv", frames=5), tmp_path / "out.mkv"
    source.write_bytes(source.read_bytes().replace(known, unknown))
    plan, _ = translate(source, output)
    assert len(grouped(plan.notes)) == 1
    assert f"stream {index} ({probe(source).streams[index].kind} unknown" in grouped(plan.notes)[0]
    assert columns(output) == columns(source)


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("names", [("a.mkv", "out.mp4"), ("a.mp4", "out.mkv")])
def test_subrip_and_mov_text_become_each_other(tmp_path: Path, names: tuple[str, str]) -> None:
    source, output = tmp_path / names[0], tmp_path / names[1]
    (streams.mkv if source.suffix == ".mkv" else streams.mp4)(source)
    _, notes = translate(source, output)

    moved = 0.021 if notes else 0.0
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg to read the subtitles")
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
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg to write and read the subtitles")

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
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg to write and read the subtitles")
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


def test_a_cover_crosses_from_mp4_to_mkv_as_an_attachment(tmp_path: Path) -> None:
    source, output = streams.mp4(tmp_path / "a.mp4"), tmp_path / "out.mkv"
    translate(source, output)
    cover = next(s for s in probe(output).streams if s.attached_picture)
    assert (cover.metadata["filename"], cover.metadata["mimetype"]) == ("cover.png", "image/png")


# A part, and the sound in another form


@pytest.mark.behaviour(10)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_part_starts_at_zero_with_sound_subtitles_and_chapters_cut_alike(
    tmp_path: Path, name: str
) -> None:
    source = (streams.mkv if name == "a.mkv" else streams.mp4)(tmp_path / name)
    output = tmp_path / f"out{source.suffix}"
    _, notes = translate(source, output, ss=0.48, to=1.48)

    assert notes == ()
    times = [t for t in frame_times(source) if 0.48 <= t < 1.48]
    assert frame_times(output) == pytest.approx([t - 0.48 for t in times], abs=0.0011)
    sound = [(t, h) for t, h in packets(source, "a:0") if 0.48 <= t < 1.48]
    cut = packets(output, "a:0")
    assert [h for _, h in cut] == [h for _, h in sound]
    assert [t for t, _ in cut] == pytest.approx([t - 0.48 for t, _ in sound], abs=0.0011)
    assert _chapters(probe(output)) == [(0, 0.32, "Dawn"), (0.32, 1, "Däy")]
    texts = [t for t, _ in packets(output, "s:0")]
    # The first line is on screen at the cut, and the third begins after it.
    assert texts[0] == pytest.approx(0, abs=0.0011)
    assert max(texts) < 1


@pytest.mark.behaviour(10)
def test_an_end_alone_moves_nothing(tmp_path: Path) -> None:
    source, output = streams.mp4(tmp_path / "a.mp4"), tmp_path / "out.mp4"
    translate(source, output, frames=10)
    assert frame_times(output) == frame_times(source)[:10]
    assert packets(output, "a:0") == [p for p in packets(source, "a:0") if p[0] < 0.4]


@pytest.mark.behaviour(3)
@pytest.mark.parametrize(
    ("output", "encoder", "codec"),
    [("out.mp4", "aac", "aac"), ("out.mkv", "libopus", "opus"), ("out.mkv", "flac", "flac")],
)
def test_sound_is_encoded_anew_on_request(
    tmp_path: Path, output: str, encoder: str, codec: str
) -> None:
    source = streams.mkv(tmp_path / "a.mkv")
    translate(source, tmp_path / output, audio=encoder)

    assert [s.codec for s in probe(tmp_path / output).streams if s.kind == "audio"] == [codec] * 2
    before, after = _sound(source), _sound(tmp_path / output)
    assert len(after) == pytest.approx(len(before), abs=2048)
    # In step with the source, within one tick of MKV (48 samples).
    piece = slice(20000, 60000)
    differences = {
        lag: np.abs(before[piece] - after[20000 + lag : 60000 + lag]).mean()
        for lag in range(-1500, 1501, 4)
    }
    closest = min(differences, key=lambda lag: differences[lag])
    assert abs(closest) <= 48
    assert differences[closest] < 0.15 * np.abs(before[piece]).mean()


def _sound(path: Path) -> np.ndarray[Any, Any]:
    """Return the first audio stream's left channel at 48 kHz, every sample at its time."""
    sound = np.zeros(4 * 48000)
    end = 0
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray()
            left = (
                samples[0] if frame.format.is_planar else samples[0, :: len(frame.layout.channels)]
            )
            scale = 1.0 if left.dtype == np.float32 else float(np.iinfo(left.dtype).max)
            place = round(frame.pts * frame.time_base * 48000)
            left = left[max(0, -place) :] / scale
            place = max(0, place)
            end = place + len(left)
            sound[place:end] = left
    return sound[:end]


@pytest.mark.behaviour(3)
def test_sound_is_left_out_on_request(tmp_path: Path) -> None:
    source, output = streams.mp4(tmp_path / "a.mp4"), tmp_path / "out.mkv"
    plan, _ = translate(source, output, audio="none")
    assert plan.notes == ()
    assert not any(s.kind == "audio" for s in probe(output).streams)


# What is refused


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.xyz", r"extension '\.xyz' names no container.*choose one of \.mp4"),
        ("out", "no extension"),
        ("a/b.mpg", r"choose one of \.mp4.*, such as b\.mkv"),
    ],
)
def test_an_unknown_extension_errors(tmp_path: Path, name: str, words: str) -> None:
    info = probe(streams.plain(tmp_path / "a.mkv", frames=2, audio=None))
    with pytest.raises(OutputError, match=words):
        plan_streams(
            info, info.best_video(), Path(name), TranslateOptions(),
            encoder="libx264", pix_fmt="yuv420p", size=(48, 64),
        )  # fmt: skip


def test_what_cannot_be_written_at_all_errors_before_the_first_frame(tmp_path: Path) -> None:
    constant = probe(streams.plain(tmp_path / "a.mkv", frames=5))
    variable = probe(streams.variable_rate(tmp_path / "b.mkv"))
    for info, output, audio, words in (
        (constant, "o.webm", "copy", "WebM cannot hold libx264 video.*choose another --codec"),
        (variable, "o.avi", "copy", "AVI holds only a constant frame rate"),
        (constant, "o.mp4", "nonsense", r"--audio nonsense does not work for stream 1 \(audio aac"),
        (constant, "o.mp4", "pcm_s24be_planar_x", "choose another encoder such as aac"),
    ):
        with pytest.raises(OutputError, match=words):
            plan_streams(
                info, info.best_video(), tmp_path / output, TranslateOptions(audio=audio),
                encoder="libx264", pix_fmt="yuv420p", size=(48, 64),
            )  # fmt: skip
    assert not list(tmp_path.glob("o.*"))


def _planned(tmp_path: Path, output: str = "out.mkv") -> tuple[StreamPlan, list[Stretch], Path]:
    info = probe(streams.plain(tmp_path / "a.mkv"))
    path = tmp_path / output
    plan = plan_streams(
        info, info.best_video(), path, TranslateOptions(),
        encoder="libx264", pix_fmt="yuv420p", size=(48, 64),
    )  # fmt: skip
    return plan, encode(info, info.best_video(), tmp_path), path


@pytest.mark.behaviour(1)
def test_an_encoder_that_lost_a_frame_errors(tmp_path: Path) -> None:
    plan, stretches, output = _planned(tmp_path)
    longer = replace(stretches[-1], times=(*stretches[-1].times, stretches[-1].times[-1] + 40))
    with pytest.raises(OutputError, match="the encoder returned 5 packets for 6 frames"):
        assemble([*stretches[:-1], longer], plan, output)
    assert not output.exists()


@pytest.mark.behaviour(1, 2)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("lost", "it holds 24 frames, 25 were sent"),
        ("late", r"frame 7 is at 0\.2\d* s, not 0\.28"),
    ],
)
def test_a_written_file_that_lacks_a_frame_or_a_time_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    plan, stretches, output = _planned(tmp_path)
    honest = JoinedVideo.packets

    def faulty(joined: Any) -> Any:
        for packet in honest(joined):
            if packet.pts == joined.times[7]:
                if fault == "lost":
                    continue
                packet.pts += 5
            yield packet

    monkeypatch.setattr(JoinedVideo, "packets", faulty)
    with pytest.raises(OutputError, match=words):
        assemble(stretches, plan, output)
    assert not output.exists()


@pytest.mark.behaviour(3)
def test_a_lost_packet_of_sound_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, stretches, output = _planned(tmp_path)
    honest = assemble_module._write

    def boastful(*arguments: Any) -> Any:
        sent = honest(*arguments)
        sent[1] += 1
        return sent

    monkeypatch.setattr(assemble_module, "_write", boastful)
    with pytest.raises(OutputError, match=r"stream 1 holds \d+ audio packets, \d+ were sent"):
        assemble(stretches, plan, output)
    assert not output.exists()


@pytest.mark.behaviour(25)
@pytest.mark.parametrize("name", ["out.mkv", "out.mp4"])
def test_a_full_disk_errors(tmp_path: Path, name: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    plan, stretches, _ = _planned(tmp_path, name)
    partial = tmp_path / "partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        assemble(stretches, plan, partial)
    assert not partial.is_symlink()


def test_a_folder_that_does_not_exist_errors(tmp_path: Path) -> None:
    plan, stretches, _ = _planned(tmp_path)
    with pytest.raises(OutputError, match="its folder does not exist; create the folder first"):
        assemble(stretches, plan, tmp_path / "no" / "such")


@pytest.mark.behaviour(17)
def test_names_that_are_not_utf8_work_in_and_out(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff 100%d")
    folder.mkdir()
    source = streams.plain(tmp_path / "a.mp4", frames=5).rename(folder / os.fsdecode(b"\xfe.mp4"))
    output = folder / os.fsdecode(b"\xfd.mkv")
    _, notes = translate(source, output)
    assert notes[0].encode().count(b"\\xfd.mkv") == 1
    assert columns(output) == columns(source)


def test_sound_whose_times_stand_still_in_a_broken_source_still_gets_in(tmp_path: Path) -> None:
    whole, source = streams.plain(tmp_path / "a.mp4"), tmp_path / "b.mkv"
    with av.open(str(whole)) as container, av.open(str(source), "w") as broken:
        copies = [broken.add_stream_from_template(s, opaque=True) for s in container.streams]
        for packet in container.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                if packet.stream.type == "audio" and 4 <= (packet.pts or 0) // 1024 < 7:
                    packet.pts = packet.dts = 4 * 1024
                broken.mux(packet)
    output = tmp_path / "out.mp4"
    translate(source, output)
    assert [h for _, h in packets(output, "a:0")] == [h for _, h in packets(source, "a:0")]


@pytest.mark.behaviour(4)
def test_a_time_code_is_written_anew_by_the_muxer(tmp_path: Path) -> None:
    whole, source, output = (
        streams.plain(tmp_path / "a.mp4"),
        tmp_path / "b.mov",
        tmp_path / "o.mov",
    )
    with av.open(str(whole)) as container, av.open(str(source), "w") as timed:
        timed.metadata["timecode"] = "01:02:03:04"
        copies = [timed.add_stream_from_template(s, opaque=True) for s in container.streams]
        copies[0].codec_context.framerate = Fraction(25)
        for packet in container.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                timed.mux(packet)
    assert [s.kind for s in probe(source).streams] == ["video", "audio", "data"]
    plan, _ = translate(source, output)

    assert plan.notes == ()
    after = probe(output).streams
    assert [s.kind for s in after] == ["video", "audio", "data"]
    assert after[2].metadata["timecode"] == "01:02:03:04"


@pytest.mark.behaviour(3)
def test_sound_that_does_not_fit_is_offered_in_another_form(tmp_path: Path) -> None:
    info = probe(streams.mkv(tmp_path / "a.mkv", frames=5))
    plan = plan_streams(
        info, info.best_video(), tmp_path / "o.ts", TranslateOptions(),
        encoder="libx264", pix_fmt="yuv420p", size=(48, 64),
    )  # fmt: skip
    assert (
        "stream 1 (audio flac, eng): MPEG-TS cannot hold it; --audio aac keeps"
        in grouped(plan.notes)[0]
    )


def _broken_sound(tmp_path: Path) -> Path:
    """Write an MPEG-TS with one ADTS header overwritten, as a bad reception leaves it."""
    path = streams.plain(tmp_path / "broken.ts")
    content = path.read_bytes()
    place = -1
    for _ in range(10):
        place = content.index(b"\xff\xf1\x4c", place + 1)
    path.write_bytes(content[:place] + b"\0\0\0" + content[place + 3 :])
    return path


def test_sound_with_a_broken_packet_can_be_encoded_anew(tmp_path: Path) -> None:
    source, output = _broken_sound(tmp_path), tmp_path / "out.mp4"
    translate(source, output, audio="aac")
    # The damaged packet leaves a gap, and what follows it is not moved into it.
    sent, received = packets(source, "a:0"), packets(output, "a:0")
    late = frame_times(source)[0] - frame_times(output)[0]
    assert received[-1][0] == pytest.approx(sent[-1][0] - late, abs=0.03)
    assert columns(output) == columns(source)


@pytest.mark.behaviour(3)
def test_the_last_packet_of_sound_stays_where_the_source_has_no_durations(tmp_path: Path) -> None:
    """MKV holds none for ALAC, and an MP4 ends before a last packet without duration."""
    source, output = streams.plain(tmp_path / "a.mkv", audio="alac"), tmp_path / "out.mp4"
    translate(source, output)
    assert [h for _, h in packets(output, "a:0")] == [h for _, h in packets(source, "a:0")]


@pytest.mark.behaviour(2, 3)
@pytest.mark.parametrize("start", [Fraction(-2, 5), Fraction(7, 5), Fraction(90000)])
def test_in_avi_which_has_no_clock_all_streams_begin_with_the_first(
    tmp_path: Path, start: Fraction
) -> None:
    source = streams.plain(tmp_path / "a.nut", codec="mpeg4", audio="libmp3lame", start=start)
    output = tmp_path / "out.avi"
    translate(source, output, codec="mpeg4")
    sound = packets(source, "a:0")[0][0]
    late = round((frame_times(source)[0] - sound) * 25)
    with av.open(str(output)) as container:
        slots = [packet.dts for packet in container.demux(video=0) if packet.dts is not None]
    # The first frame fills the time before it.
    assert slots == [0, *range(late + 1, late + 25)]


@pytest.mark.behaviour(5)
def test_sound_that_begins_late_in_avi_is_a_loss(tmp_path: Path) -> None:
    source = _apart(tmp_path, picture=Fraction(0), sound=Fraction(1, 2))
    plan, _ = translate(source, tmp_path / "out.avi")
    assert len(grouped(plan.notes)) == 2
    assert "attached picture" in grouped(plan.notes)[0]
    assert "without the late start of stream 1 (audio mp3)" in grouped(plan.notes)[1]
    assert "AVI begins all sound at once" in grouped(plan.notes)[1]


@pytest.mark.behaviour(3, 4)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_before_the_picture_survives_beside_a_cover(tmp_path: Path, suffix: str) -> None:
    source = _apart(tmp_path, picture=Fraction(1), sound=Fraction(0))
    output = tmp_path / f"out{suffix}"
    translate(source, output)
    assert any(stream.attached_picture for stream in probe(output).streams)
    assert [h for _, h in packets(output, "a:0")] == [h for _, h in packets(source, "a:0")]


def _apart(folder: Path, *, picture: Fraction, sound: Fraction) -> Path:
    """Write an MKV with a cover, whose video and audio begin at these seconds."""
    video = streams.plain(folder / "v.mkv", audio=None, start=picture)
    audio = streams.plain(folder / "s.mkv", audio="libmp3lame", start=sound)
    path = folder / "apart.mkv"
    with av.open(str(video)) as v, av.open(str(audio)) as s, av.open(str(path), "w") as both:
        copies: list[Any] = [
            both.add_stream_from_template(v.streams.video[0], opaque=True),
            both.add_stream_from_template(s.streams.audio[0], opaque=True),
        ]
        both.add_attachment("cover.png", "image/png", streams.cover_picture())
        for copy, packets_ in zip(copies, (v.demux(video=0), s.demux(audio=0)), strict=True):
            for packet in packets_:
                if packet.size:
                    packet.stream = copy
                    both.mux(packet)
    return path
