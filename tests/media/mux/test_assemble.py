"""The output holds the frames that were sent, at their times, and everything else of its source."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from cyclegan_batch.errors import OutputError
from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.media.demux.stream_info import MediaInfo, StreamInfo
from cyclegan_batch.media.mux import assemble as assemble_module
from cyclegan_batch.media.mux.assemble import assemble
from cyclegan_batch.media.mux.containers import CONTAINERS
from cyclegan_batch.media.mux.joined_video import JoinedVideo
from cyclegan_batch.media.mux.streams import plan_streams
from cyclegan_batch.media.mux.trial import TranslatedVideo
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.mux.assembling import (
    H264,
    apart,
    columns,
    encode,
    ffprobe,
    frame_times,
    packets,
    planned,
    translate,
)
from tests.needs import need
from tests.synthesis import streams

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


@pytest.mark.behaviour(28)
@pytest.mark.parametrize("suffix", [suffix for suffix in CONTAINERS if suffix != ".m4v"])
def test_the_same_stretches_give_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    make = streams.mkv if suffix == ".mkv" else streams.plain
    source = make(tmp_path / "a.mkv", frames=10)
    info = probe(source)
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    audio = "libopus" if suffix == ".webm" else "copy"
    options = TranslateOptions(codec=codec, audio=audio)
    video = TranslatedVideo(encoder=codec, pix_fmt="yuv420p", size=(48, 64))
    plan = plan_streams(info, info.best_video(None), tmp_path / f"out{suffix}", options, video)
    stretches = encode(info, info.best_video(None), tmp_path, codec=codec, per=6)
    files = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for file in files:
        assemble(stretches, plan, file)
    assert files[0].read_bytes() == files[1].read_bytes()


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
    plan = plan_streams(info, info.streams[0], output, TranslateOptions(audio="none"), H264)
    stretches = encode(info, info.streams[0], tmp_path)
    assemble([replace(stretches[0], last_duration=777)], plan, output)
    assert float(ffprobe(output, "-show_format")["format"]["duration"]) == pytest.approx(2.177)


@pytest.mark.behaviour(2)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("sound", [Fraction(3, 4), Fraction(1, 4)])
def test_what_begins_first_begins_at_zero_and_the_other_stays_as_far_from_it(
    tmp_path: Path, suffix: str, sound: Fraction
) -> None:
    source = apart(tmp_path, picture=Fraction(1, 2), sound=sound)
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


@pytest.mark.behaviour(1)
def test_an_encoder_that_lost_a_frame_errors(tmp_path: Path) -> None:
    plan, stretches, output = planned(tmp_path)
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
    plan, stretches, output = planned(tmp_path)
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
    plan, stretches, output = planned(tmp_path)
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
    need("full-device")
    plan, stretches, _ = planned(tmp_path, name)
    partial = tmp_path / "partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        assemble(stretches, plan, partial)
    assert not partial.is_symlink()


def test_a_folder_that_does_not_exist_errors(tmp_path: Path) -> None:
    plan, stretches, _ = planned(tmp_path)
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


@pytest.mark.behaviour(3, 4)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_before_the_picture_survives_beside_a_cover(tmp_path: Path, suffix: str) -> None:
    source = apart(tmp_path, picture=Fraction(1), sound=Fraction(0))
    output = tmp_path / f"out{suffix}"
    translate(source, output)
    assert any(stream.attached_picture for stream in probe(output).streams)
    assert [h for _, h in packets(output, "a:0")] == [h for _, h in packets(source, "a:0")]
