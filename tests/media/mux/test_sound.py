"""Audio is tried before the first frame; damage loses only the damaged packets."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
import pytest
from click.testing import CliRunner

from cyclegan_batch import cli, translate
from cyclegan_batch.errors import InputError, OutputError
from cyclegan_batch.job.job_folder import FOLDER
from cyclegan_batch.media.demux import ffmpeg_log
from cyclegan_batch.media.demux.demuxing import open_container
from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.media.mux import other_streams
from cyclegan_batch.media.mux.assemble import Assembled, assemble
from cyclegan_batch.media.mux.joined_video import Stretch
from cyclegan_batch.media.mux.sound import plan_sound, state_layout
from cyclegan_batch.media.mux.streams import StreamPlan, plan_streams
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.media.mux.assembling import H264
from tests.synthesis import generators

FRAMES = 12
SECONDS = FRAMES / 25


def clip(
    path: Path,
    codec: str = "pcm_s16le",
    *,
    layout: str = "stereo",
    rate: int = 48000,
    video: str = "mpeg4",
) -> Path:
    """Write grey frames and a tone of another pitch in every channel; the name tells the format."""
    with av.open(str(path), "w") as output:
        picture: Any = output.add_stream(video, rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound: Any = output.add_stream(codec, rate=rate)
        sound.codec_context.layout = layout
        sound.codec_context.bit_rate = 128_000
        packets = []
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90 + number, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += picture.encode(frame)
        packets += picture.encode(None)
        for frame in tones(layout, rate):
            packets += sound.encode(frame)
        packets += sound.encode(None)
        packets.sort(key=lambda packet: (packet.dts or 0) * packet.time_base)
        output.mux(packets)
    return path


def pitch(channel: int) -> int:
    return 300 + 250 * channel


def tones(layout: str, rate: int, seconds: float = SECONDS) -> list[av.AudioFrame]:
    """Return audio in which channel ``k`` is a tone of `pitch`, in frames of 1024 samples."""
    channels = av.AudioLayout(layout).nb_channels
    time = np.arange(int(seconds * rate)) / rate
    waves = np.stack([0.2 * np.sin(2 * np.pi * pitch(k) * time) for k in range(channels)])
    frames = []
    for start in range(0, waves.shape[1], 1024):
        part = waves[:, start : start + 1024].T.reshape(1, -1).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        frames.append(frame)
    return frames


def planned(source: Path, output: Path, **options: Any) -> StreamPlan:
    info = probe(source)
    return plan_streams(info, info.best_video(), output, TranslateOptions(**options), H264)


def translated(source: Path, output: Path, **options: Any) -> Assembled:
    """Assemble grey H.264 at the times of the video with everything else that is planned."""
    plan = planned(source, output, **options)
    with open_container(source) as container:
        video = container.streams[plan.video.index]
        times = sorted(packet.pts for packet in container.demux(video) if packet.size)
    stretch = output.parent / ".stretch.mp4"
    with av.open(str(stretch), "w") as encoded:
        stream: Any = encoded.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(len(times)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            encoded.mux(stream.encode(frame))
        encoded.mux(stream.encode(None))
    return assemble([Stretch(stretch, plan.video.time_base, tuple(times), None)], plan, output)


def sound_packets(path: Path) -> list[bytes]:
    with open_container(path) as container:
        streams = container.streams.audio
        return [bytes(p) for p in container.demux(streams[0]) if p.size] if streams else []


def heard(path: Path) -> tuple[str, np.ndarray[Any, Any], int]:
    """Return layout, samples ``(channels, N)`` and rate of the decoded audio."""
    with open_container(path) as container:
        frames = list(container.decode(audio=0))
    layout = frames[0].layout
    to_float = av.AudioResampler("flt", layout, frames[0].sample_rate)
    parts = [each.to_ndarray() for frame in frames for each in to_float.resample(frame)]
    samples = np.concatenate(parts, axis=1).reshape(-1, layout.nb_channels).T
    return layout.name, samples, frames[0].sample_rate


def pitches(samples: np.ndarray[Any, Any], rate: int) -> list[int]:
    """Return the loudest frequency of each channel to the nearest 10 Hz, 0 for silence."""
    middle = samples[:, samples.shape[1] // 4 : samples.shape[1] * 3 // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(middle.shape[1]), n=rate // 2))
    loudest = np.argmax(spectrum, axis=1) * 2
    silent = np.abs(middle).max(axis=1) < 0.01
    return [0 if mute else round(int(f), -1) for f, mute in zip(loudest, silent, strict=True)]


# The layout


@pytest.mark.needs("ffmpeg")
@pytest.mark.behaviour(3)
@pytest.mark.parametrize("channels", range(1, 9))
def test_a_layout_that_is_not_stated_is_the_one_that_ffmpeg_guesses(channels: int) -> None:
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-f", "s16le", "-ac", str(channels)]
    command += ["-i", "pipe:0", "-f", "null", "-"]
    log = subprocess.run(
        command, input=bytes(2 * channels * 100), capture_output=True, check=True
    ).stderr.decode()
    guessed = re.search(r"Guessed Channel Layout.* : (\S+)", log)
    assert guessed is not None
    decoder: Any = av.CodecContext.create("pcm_s16le", "r")
    decoder.layout = f"{channels} channels"
    state_layout(decoder)
    assert decoder.layout.name == guessed[1]


def test_a_layout_that_is_stated_stays() -> None:
    decoder: Any = av.CodecContext.create("pcm_s16le", "r")
    decoder.layout = "5.1(side)"
    state_layout(decoder)
    assert decoder.layout.name == "5.1(side)"


@pytest.mark.behaviour(3)
@pytest.mark.parametrize("suffix", [".avi", ".wmv"])
@pytest.mark.parametrize("encoder", ["aac", "libopus", "libmp3lame", "flac", "ac3"])
def test_sound_without_a_stated_layout_is_encoded(
    tmp_path: Path, suffix: str, encoder: str
) -> None:
    codec = {".avi": "adpcm_ima_wav", ".wmv": "wmav2"}[suffix]
    source = clip(tmp_path / f"in{suffix}", codec)
    assert "channels" in open_container(source).streams.audio[0].layout.name
    done = translated(source, tmp_path / "out.mkv", audio=encoder)
    assert not done.dropped
    layout, samples, rate = heard(tmp_path / "out.mkv")
    assert (layout, pitches(samples, rate)) == ("stereo", [pitch(0), pitch(1)])
    assert samples.shape[1] / rate == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.behaviour(3)
@pytest.mark.parametrize(
    ("layout", "encoder", "result"),
    [
        ("5.1(side)", "libopus", "5.1"),
        ("5.1(side)", "aac", "5.1"),
        ("5.1(side)", "ac3", "5.1(side)"),
        ("5.1(side)", "alac", "5.1"),
        ("5.0(side)", "libopus", "5.0"),
        ("quad(side)", "libopus", "quad"),
        ("quad", "aac", "quad"),
        ("6.1", "alac", "6.1(back)"),
        ("7.1", "flac", "7.1"),
        ("mono", "libmp3lame", "mono"),
    ],
)
def test_every_channel_keeps_its_content_in_the_layout_that_the_encoder_takes(
    tmp_path: Path, layout: str, encoder: str, result: str
) -> None:
    source = clip(tmp_path / "in.mov", layout=layout)
    assert not translated(source, tmp_path / "out.mkv", audio=encoder).dropped
    name, samples, rate = heard(tmp_path / "out.mkv")
    assert name == result
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    expected = [pitch(names.index(n)) for n in names if n != "LFE"]
    decoded = [
        f for f, c in zip(pitches(samples, rate), av.AudioLayout(name).channels, strict=True)
        if c.name != "LFE"
    ]  # fmt: skip
    assert sorted(decoded) == sorted(expected)
    # The front channels keep their places.
    assert decoded[:2] == expected[:2]


@pytest.mark.behaviour(3)
@pytest.mark.parametrize(
    ("layout", "encoder", "result"),
    [("5.1(side)", "libmp3lame", "stereo"), ("7.1", "ac3", "5.1"), ("quad", "mp2", "stereo")],
)
def test_channels_that_an_encoder_does_not_take_are_mixed_down_with_a_note(
    tmp_path: Path, layout: str, encoder: str, result: str
) -> None:
    source = clip(tmp_path / "in.mov", layout=layout)
    plan = planned(source, tmp_path / "out.mkv", audio=encoder)
    (note,) = (note for note in grouped(plan.notes) if "mixed down" in note)
    assert f"{encoder} does not take its" in note
    assert note.endswith(f"so they are mixed down to {result}")
    with open_container(source) as container:
        sound = plan_sound(encoder, container.streams.audio[0].codec_context)
    assert (sound.layout, sound.mixed_down) == (result, True)


def test_an_encoder_that_does_not_exist_errors(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mov")
    with pytest.raises(OutputError, match=r"--audio nosuch does not work for stream 1 .*nosuch"):
        planned(source, tmp_path / "out.mkv", audio="nosuch")
    with pytest.raises(OutputError, match=r"--audio libx264 does not work .*encodes video"):
        planned(source, tmp_path / "out.mkv", audio="libx264")


def test_sound_whose_layout_and_rate_change_is_encoded(tmp_path: Path) -> None:
    """Broadcasts change from stereo to 5.1 and back within a stream."""
    frames = [*tones("stereo", 48000, 0.2), *tones("5.1", 48000, 0.2), *tones("mono", 44100, 0.2)]
    source = tmp_path / "in.ts"
    with av.open(str(source), "w", format="mpegts") as output:
        picture: Any = output.add_stream("mpeg2video", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        track: Any = output.add_mux_stream("aac", rate=48000)
        track.time_base = Fraction(1, 90000)
        packets = []
        for number in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            packets += picture.encode(frame)
        packets += picture.encode(None)
        at = 0
        for part in (frames[:10], frames[10:20], frames[20:]):
            for content in adts(part):
                packet = av.Packet(content)
                packet.stream, packet.time_base = track, Fraction(1, 90000)
                packet.pts = packet.dts = at
                at += 1024 * 90000 // part[0].sample_rate
                packets.append(packet)
        packets.sort(key=lambda packet: (packet.dts or 0) * packet.time_base)
        output.mux(packets)
    assert not translated(source, tmp_path / "out.mkv", audio="libopus").dropped
    _, samples, rate = heard(tmp_path / "out.mkv")
    third = samples.shape[1] // 3
    for k in range(3):
        assert pitches(samples[:1, k * third + third // 8 : (k + 1) * third - third // 8], rate)[0]


def adts(frames: Sequence[av.AudioFrame]) -> list[bytes]:
    """Return AAC packets with a header each (ISO/IEC 13818-7), as MPEG-TS holds them."""
    encoder: Any = av.CodecContext.create("aac", "w")
    encoder.layout, encoder.sample_rate = frames[0].layout.name, frames[0].sample_rate
    encoder.format = "fltp"
    packets = [packet for frame in (*frames, None) for packet in encoder.encode(frame)]
    rate = [96000, 88200, 64000, 48000, 44100].index(frames[0].sample_rate)
    channels = frames[0].layout.nb_channels
    with_headers = []
    for packet in packets:
        size = packet.size + 7
        head = 0xFFF1 << 40 | 1 << 38 | rate << 34 | channels << 30 | size << 13 | 0x7FF << 2
        with_headers.append(head.to_bytes(7, "big") + bytes(packet))
    return with_headers


# What a container takes


@pytest.mark.behaviour(3, 5)
@pytest.mark.parametrize(
    ("suffix", "codec", "rate"),
    [
        (".wmv", "wmav2", 48000),
        (".wmv", "wmav1", 44100),
        (".avi", "adpcm_ima_wav", 48000),
        (".avi", "adpcm_ms", 48000),
        (".avi", "pcm_mulaw", 8000),
        (".mov", "pcm_alaw", 8000),
        (".mov", "pcm_mulaw", 8000),
        (".avi", "pcm_u8", 8000),
        (".mov", "pcm_s16be", 48000),
        (".flv", "nellymoser", 22050),
    ],
)
def test_mkv_holds_what_its_writer_takes(
    tmp_path: Path, suffix: str, codec: str, rate: int
) -> None:
    video = "flv" if suffix == ".flv" else "mpeg4"
    layout = "mono" if codec == "nellymoser" else "stereo"
    source = clip(tmp_path / f"in{suffix}", codec, rate=rate, layout=layout, video=video)
    plan = planned(source, tmp_path / "out.mkv")
    if codec == "nellymoser":
        # The only codec of these without a name in MKV.
        assert "MKV cannot hold it; --audio aac keeps its sound" in grouped(plan.notes)[0]
        return
    assert plan.notes == ()
    assert not translated(source, tmp_path / "out.mkv").dropped
    assert sound_packets(tmp_path / "out.mkv") == sound_packets(source) != []
    with open_container(tmp_path / "out.mkv") as written, open_container(source) as container:
        ours, theirs = written.streams.audio[0], container.streams.audio[0]
        assert ours.codec.canonical_name == theirs.codec.canonical_name
        assert ours.rate == theirs.rate == rate


@pytest.mark.behaviour(3, 5)
@pytest.mark.parametrize(
    ("layout", "rate", "codec"), [("7.1", 48000, "pcm_s16le"), ("stereo", 192000, "pcm_s24le")]
)
def test_mp4_holds_pcm_once_its_layout_is_known(
    tmp_path: Path, layout: str, rate: int, codec: str
) -> None:
    source = clip(tmp_path / "in.mkv", codec, layout=layout, rate=rate)
    assert "channels" in open_container(source).streams.audio[0].layout.name
    assert planned(source, tmp_path / "out.mp4", strict=True).notes == ()
    assert not translated(source, tmp_path / "out.mp4").dropped
    assert b"".join(sound_packets(tmp_path / "out.mp4")) == b"".join(sound_packets(source))
    name, samples, output_rate = heard(tmp_path / "out.mp4")
    assert (name, output_rate, samples.shape) == (
        layout,
        rate,
        (av.AudioLayout(layout).nb_channels, int(SECONDS * rate)),
    )


@pytest.mark.behaviour(3, 5)
def test_sound_that_mp4_cannot_hold_is_named_before_the_first_frame(tmp_path: Path) -> None:
    """The MP4 muxer refuses PCM without a layout only at the end of the file."""
    source = clip(tmp_path / "in.mkv", layout="10 channels")
    plan = planned(source, tmp_path / "out.mp4")
    assert grouped(plan.notes) == (
        f"{tmp_path}/out.mp4 goes without stream 1 (audio pcm_s16le): MP4 cannot hold it; "
        "--audio aac keeps its sound",
    )
    with pytest.raises(OutputError, match="MP4 cannot hold it"):
        planned(source, tmp_path / "out.mp4", strict=True)
    assert not translated(source, tmp_path / "out.mp4").dropped


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".ts", ".m2ts", ".nut"])
@pytest.mark.parametrize(
    ("source_suffix", "codec", "layout"),
    [(".avi", "pcm_s16le", "stereo"), (".mkv", "pcm_f32le", "7.1"), (".wmv", "wmav2", "stereo"),
     (".mkv", "flac", "stereo"), (".avi", "mp2", "stereo"), (".mov", "alac", "stereo"),
     (".ts", "aac", "stereo"), (".ts", "eac3", "5.1(side)"), (".avi", "adpcm_ms", "mono")],
)  # fmt: skip
def test_what_is_planned_comes_out(
    tmp_path: Path, suffix: str, source_suffix: str, codec: str, layout: str
) -> None:
    """A stream is copied, or named before the first frame; none fails while it is written."""
    source = clip(tmp_path / f"in{source_suffix}", codec, layout=layout)
    output = tmp_path / f"out{suffix}"
    plan = planned(source, output)
    assert not translated(source, output).dropped
    copied = not any("cannot hold it" in note for note in grouped(plan.notes))
    assert bool(sound_packets(output)) == copied


@pytest.mark.behaviour(5)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".webm"])
def test_video_that_a_container_cannot_hold_is_refused_before_the_first_frame_errors(
    tmp_path: Path, suffix: str
) -> None:
    info = probe(clip(tmp_path / "in.mov"))
    with pytest.raises(OutputError, match="cannot hold rawvideo video in yuv420p"):
        plan_streams(
            info, info.best_video(), tmp_path / f"out{suffix}", TranslateOptions(),
            replace(H264, encoder="rawvideo", stretch_format="mov"),
        )  # fmt: skip


# Damage


def broken_sound(path: Path, numbers: Sequence[int], *, at: int = 0, suffix: str = ".ts") -> Path:
    """Write an MPEG-TS in which the ADTS headers of these packets are overwritten."""
    whole = clip(path.with_suffix(suffix), "aac", rate=44100)
    content = bytearray(whole.read_bytes())
    headers = [m.start() for m in re.finditer(rb"\xff\xf1\x50\x80", bytes(content))]
    for number in numbers:
        content[headers[number] + at : headers[number] + at + 4] = bytes(4)
    path.write_bytes(content)
    return path


@pytest.mark.behaviour(3, 22)
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_a_damaged_packet_of_sound_is_left_out_and_listed(tmp_path: Path, suffix: str) -> None:
    whole = clip(tmp_path / "whole.ts", "aac", rate=44100)
    assert not translated(whole, tmp_path / f"whole{suffix}").dropped
    source = broken_sound(tmp_path / "in.ts", [5])
    done = translated(source, tmp_path / f"out{suffix}")
    (place,) = (each.place for each in done.dropped)
    assert place is not None
    assert (place.subject, place.number) == (f"{source}, stream 1 (audio aac)", 5)
    assert place.trouble.startswith("damaged (Invalid data")
    assert place.seconds == pytest.approx(4 * 1024 / 44100, abs=0.03)
    others = [p for n, p in enumerate(sound_packets(tmp_path / f"whole{suffix}")) if n != 5]
    assert sound_packets(tmp_path / f"out{suffix}") == others


@pytest.mark.behaviour(14, 22)
def test_lost_sound_is_in_the_report_of_the_run_and_the_video_is_written(tmp_path: Path) -> None:
    source = broken_sound(tmp_path / "in.ts", [5])
    model = generators.identity(tmp_path / "m.onnx")
    report = translate(source, tmp_path / "out.mkv", model=model, preset="ultrafast")
    assert (report.exit_code, report.frames) == (3, FRAMES)
    assert report.outputs == (tmp_path / "out.mkv",)
    (failure,) = report.failures
    assert failure.name == f"{source}, stream 1 (audio aac), packet 5 (0.093 s)"
    assert re.search(r"damaged \(Invalid data.*; left out; repair the file$", failure.cause)
    with pytest.raises(InputError, match=r"stream 1 .*packet 5"):
        translate(source, tmp_path / "no.mkv", model=model, preset="ultrafast", on_error="fail")
    left = {path.name for path in tmp_path.iterdir() if path.name != FOLDER}
    assert left == {"in.ts", "m.onnx", "out.mkv"}


@pytest.mark.behaviour(3, 22)
def test_a_packet_that_a_muxer_refuses_for_any_reason_is_left_out_alone(tmp_path: Path) -> None:
    """FFmpeg reports some damage as a feature that is not implemented yet."""
    source = broken_sound(tmp_path / "in.ts", [12])
    done = translated(source, tmp_path / "out.mkv")
    errors = " ".join(str(each.error) for each in done.dropped)
    assert "Not yet implemented" in errors
    assert "Invalid data" in errors
    with open_container(source) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    assert len(sound_packets(tmp_path / "out.mkv")) == len(packets) - len(done.dropped)


@pytest.mark.behaviour(22)
def test_a_damaged_packet_of_sound_ends_a_run_that_stops_at_damage_errors(tmp_path: Path) -> None:
    source = broken_sound(tmp_path / "in.ts", [5])
    with pytest.raises(InputError, match=r"stream 1 .*packet 5 .*leave out --on-error fail"):
        translated(source, tmp_path / "out.mkv", on_error="fail")
    assert not (tmp_path / "out.mkv").exists()


@pytest.mark.behaviour(3, 22)
def test_a_packet_that_cannot_be_decoded_loses_only_its_own_sound(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mkv", "flac")
    contents = sound_packets(whole)
    source = tmp_path / "in.mkv"
    source.write_bytes(whole.read_bytes().replace(contents[2], bytes(len(contents[2])), 1))
    done = translated(source, tmp_path / "out.mkv", audio="aac")
    assert [each.place and each.place.number for each in done.dropped] == [2]
    assert "cannot be decoded" in str(done.dropped[0].error)
    _, samples, rate = heard(tmp_path / "out.mkv")
    # What follows stays at its time, so the audio is as long as in the source.
    with open_container(tmp_path / "out.mkv") as container:
        last = [p for p in container.demux(audio=0) if p.size][-1]
    assert last.pts is not None
    assert float(last.pts * last.time_base) == pytest.approx(SECONDS, abs=0.04)
    assert pitches(samples, rate) == [pitch(0), pitch(1)]


@pytest.mark.behaviour(22)
def test_a_track_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mkv", "flac")
    content = whole.read_bytes()
    dice = random.Random(1)
    for packet in sound_packets(whole):
        content = content.replace(packet, dice.randbytes(len(packet)), 1)
    source = tmp_path / "in.mkv"
    source.write_bytes(content)
    plan = planned(source, tmp_path / "out.mkv", audio="aac")
    assert [each.action for each in plan.streams] == ["video"]
    words = r"in\.mkv: stream 1 \(audio flac\): nothing of it can be decoded"
    assert re.search(words, grouped(plan.notes)[-1])
    done = translated(source, tmp_path / "out.mkv", audio="aac")
    assert [bool(re.search(words, str(each.error))) for each in done.dropped] == [True]
    for options in ({"strict": True}, {"on_error": "fail"}):
        with pytest.raises(InputError, match=words):
            planned(source, tmp_path / "out.mkv", audio="aac", **options)
    # A copied stream is not decoded, so there is nothing to report.
    assert planned(source, tmp_path / "out.mkv").notes == ()


@pytest.mark.behaviour(22)
def test_a_track_of_an_unknown_codec_cannot_be_encoded_and_is_named(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mkv", "flac")
    source.write_bytes(source.read_bytes().replace(b"A_FLAC", b"A_XLAC"))
    plan = planned(source, tmp_path / "out.mkv", audio="aac")
    assert [each.action for each in plan.streams] == ["video"]
    assert re.search(
        r"in\.mkv: stream 1 \(audio unknown\): nothing of it can be decoded",
        grouped(plan.notes)[-1],
    )
    done = translated(source, tmp_path / "out.mkv", audio="aac")
    assert ["nothing of it can be decoded" in str(each.error) for each in done.dropped] == [True]


@pytest.mark.behaviour(1, 22)
@pytest.mark.parametrize("audio", ["copy", "libopus"])
def test_the_sound_of_a_file_that_breaks_off_is_written_up_to_there(
    tmp_path: Path, audio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = clip(tmp_path / "in.mkv", "flac")
    whole = sound_packets(source)

    def breaks_off(container: Any, streams: Any) -> Any:
        heard = 0
        for packet in container.demux(streams):
            heard += packet.stream.type == "audio"
            if heard == 4:
                raise av.error.InvalidDataError(1094995529, "Invalid data", "in.mkv")
            yield packet

    plan = planned(source, tmp_path / "out.mkv", audio=audio)
    monkeypatch.setattr("cyclegan_batch.media.mux.streams.plan_streams", None)
    monkeypatch.setattr(f"{__name__}.planned", lambda *_, **__: plan)
    honest = other_streams.demux
    reads: list[str] = []

    def demux(container: Any, streams: Any) -> Any:
        reads.append(container.name)
        broken = container.name.endswith("in.mkv")
        return breaks_off(container, streams) if broken else honest(container, streams)

    monkeypatch.setattr(other_streams, "demux", demux)
    done = translated(source, tmp_path / "out.mkv")
    assert ["cannot be read to their end (Invalid data)" in str(e.error) for e in done.dropped] == [
        True
    ]
    _, samples, rate = heard(tmp_path / "out.mkv")
    assert samples.shape[1] / rate == pytest.approx(3 * 4608 / 48000, abs=0.03)
    if audio == "copy":
        assert sound_packets(tmp_path / "out.mkv") == whole[:3]


# What FFmpeg prints by itself


@pytest.mark.behaviour(22)
def test_ffmpegs_messages_about_a_damaged_file_are_printed_only_with_v(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = clip(tmp_path / "whole.avi", video="mpeg4")
    with open_container(whole) as container:
        packet = [bytes(each) for each in container.demux(video=0) if each.size][6]
    source = tmp_path / "in.avi"
    half = packet[: len(packet) // 2] + b"\x55" * (len(packet) - len(packet) // 2)
    source.write_bytes(whole.read_bytes().replace(packet, half, 1))
    model = generators.identity(tmp_path / "m.onnx")
    arguments = ["translate", str(source), str(tmp_path / "out.mkv"), "-m", str(model), "-y"]
    arguments += ["--preset", "ultrafast", "--progress", "none", "--no-resume"]
    logs = []
    for more in ([], ["-v"], []):
        done = CliRunner().invoke(cli.main, [*arguments, *more])
        assert done.exit_code == 3, done.output
        assert "concealed by the decoder" in done.output
        logs.append(capfd.readouterr().err)
    assert [len(re.findall(r"^\[mpeg4 @ ", each, re.MULTILINE)) > 0 for each in logs] == [
        False,
        True,
        False,
    ]


def test_ffmpeg_still_prints_after_its_messages_were_captured(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with ffmpeg_log.printed():
        with ffmpeg_log.captured() as logs:
            av.logging.log(av.logging.ERROR, "here", "caught")
        av.logging.log(av.logging.ERROR, "here", "printed")
    av.logging.log(av.logging.ERROR, "here", "dropped")
    assert [text for *_, text in logs] == ["caught"]
    assert capfd.readouterr().err.count("printed") == 1
