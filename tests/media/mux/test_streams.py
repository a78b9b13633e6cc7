"""What an output holds is decided before the first frame, and each loss is named."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from cyclegan_batch.errors import OutputError
from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.media.mux.streams import StreamPlan, plan_streams
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.mux.assembling import H264, apart, columns, packets, translate
from tests.synthesis import streams


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
        return plan_streams(info, video, tmp_path / output, TranslateOptions(**options), H264)

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
def test_another_video_of_an_unknown_codec_is_named_and_left_out(tmp_path: Path) -> None:
    first = streams.plain(tmp_path / "a.mkv", frames=5)
    second = streams.plain(tmp_path / "b.mkv", codec="mpeg4", audio=None, size=(32, 32))
    source, output = tmp_path / "both.mkv", tmp_path / "out.mkv"
    with av.open(str(first)) as a, av.open(str(second)) as b, av.open(str(source), "w") as both:
        copies = {
            stream: both.add_stream_from_template(stream, opaque=True)
            for stream in (*a.streams, *b.streams)
        }
        for packet in (*a.demux(), *b.demux()):
            if packet.size:
                packet.stream = copies[packet.stream]
                both.mux(packet)
    source.write_bytes(source.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_XPEG4/ISO/ASP"))
    plan, _ = translate(source, output)
    assert [note.split("without ")[1] for note in grouped(plan.notes)] == [
        "stream 2 (video unknown): MKV cannot hold it"
    ]
    assert columns(output) == columns(first)


@pytest.mark.behaviour(3)
def test_sound_is_left_out_on_request(tmp_path: Path) -> None:
    source, output = streams.mp4(tmp_path / "a.mp4"), tmp_path / "out.mkv"
    plan, _ = translate(source, output, audio="none")
    assert plan.notes == ()
    assert not any(s.kind == "audio" for s in probe(output).streams)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.xyz", r"extension '\.xyz' names no container.*choose one of \.mp4.* or \.apng"),
        ("out", "no extension"),
        ("a/b.mpg", r"choose one of \.mp4.*, such as b\.mkv"),
    ],
)
def test_an_unknown_extension_errors(tmp_path: Path, name: str, words: str) -> None:
    info = probe(streams.plain(tmp_path / "a.mkv", frames=2, audio=None))
    with pytest.raises(OutputError, match=words):
        plan_streams(info, info.best_video(), Path(name), TranslateOptions(), H264)


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
                info, info.best_video(), tmp_path / output, TranslateOptions(audio=audio), H264
            )
    assert not list(tmp_path.glob("o.*"))


@pytest.mark.behaviour(3)
def test_sound_that_does_not_fit_is_offered_in_another_form(tmp_path: Path) -> None:
    info = probe(streams.mkv(tmp_path / "a.mkv", frames=5))
    plan = plan_streams(info, info.best_video(), tmp_path / "o.ts", TranslateOptions(), H264)
    assert (
        "stream 1 (audio flac, eng): MPEG-TS cannot hold it; --audio aac keeps"
        in grouped(plan.notes)[0]
    )


@pytest.mark.behaviour(5)
def test_sound_that_begins_late_in_avi_is_a_loss(tmp_path: Path) -> None:
    source = apart(tmp_path, picture=Fraction(0), sound=Fraction(1, 2))
    plan, _ = translate(source, tmp_path / "out.avi")
    assert len(grouped(plan.notes)) == 2
    assert "attached picture" in grouped(plan.notes)[0]
    assert "without the late start of stream 1 (audio mp3)" in grouped(plan.notes)[1]
    assert "AVI begins all sound at once" in grouped(plan.notes)[1]


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
