"""Small media files with everything that a container can hold, made with PyAV.

The picture of frame ``i`` is a dark field with a bright column at ``x = 4·i`` (mod width), so that
order and count can be seen. Every function writes one file and returns its path.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
from av.stream import Disposition

RATE = 25
SAMPLE_RATE = 48000
SIZE = (48, 64)

FONT = b"\x00\x01\x00\x00" + bytes(range(256)) * 4
"""Looks like a TrueType font to a container; nothing reads it."""

SUBTITLES = ((0.2, 0.6, "one"), (0.9, 1.2, "two <i>slanted</i>"), (1.5, 1.9, "three"))
"""Start and end in seconds, and the text, in SubRip's words."""

VFR_TIMES = (0, 40, 80, 200, 210, 300, 333, 500, 540, 700, 701, 702, 900, 1000, 1333, 1400)
"""Milliseconds, unevenly spaced."""


def mp4(path: Path, *, frames: int = 50) -> Path:
    """H.264 with B-frames, two AAC tracks, MOV text, chapters and a cover, in MP4 (or MOV)."""
    with _create(path, {"movie_timescale": "48000"}) as output:
        output.metadata["title"] = "A title"
        output.metadata["comment"] = "Zwölf Boxkämpfer"
        video = _video(output)
        video.metadata["language"] = "eng"
        sounds = [_audio(output, "aac", "eng"), _audio(output, "aac", "deu", default=False)]
        text = _subtitles(output, "mov_text", "fra")
        cover = _cover_stream(output)
        output.set_chapters(_chapters())
        for packets in (
            [_cover_packet(cover)],
            _text_packets(text, [(a, b, _mov_text(t)) for a, b, t in SUBTITLES]),
            *(
                _audio_packets(sound, frames / RATE, tone)
                for sound, tone in zip(sounds, (440, 880), strict=True)
            ),
            _video_packets(video, frames),
        ):
            output.mux(packets)
    return path


def mkv(path: Path, *, frames: int = 50, codec: str = "libx264") -> Path:
    """Video with B-frames, FLAC, Opus, SubRip, ASS, chapters, font, cover, languages; in MKV."""
    with _create(path) as output:
        output.metadata["title"] = "A title"
        output.metadata["MOOD"] = "calm"
        video = _video(output, codec)
        video.metadata["title"] = "The picture"
        flac = _audio(output, "flac", "eng")
        opus = _audio(output, "libopus", "jpn", default=False)
        opus.metadata["title"] = "Commentary"
        opus.disposition = Disposition.comment
        srt = _subtitles(output, "subrip", "fra")
        srt.disposition = Disposition.forced
        ass = _subtitles(output, "ass", "deu")
        font = output.add_attachment("Some Font.ttf", "application/x-truetype-font", FONT)
        font.metadata["DESCRIPTION"] = "For the subtitles"
        output.add_attachment("cover.png", "image/png", cover_picture())
        output.set_chapters(_chapters())
        for packets in (
            _text_packets(srt, [(a, b, t.encode()) for a, b, t in SUBTITLES]),
            _text_packets(
                ass,
                [
                    (a, b, f"{i},0,Default,,0,0,0,,{t}".encode())
                    for i, (a, b, t) in enumerate(SUBTITLES)
                ],
            ),
            _audio_packets(flac, frames / RATE, 440),
            _audio_packets(opus, frames / RATE, 880),
            _video_packets(video, frames),
        ):
            output.mux(packets)
    return path


def plain(
    path: Path,
    *,
    frames: int = 25,
    codec: str = "libx264",
    audio: str | None = "aac",
    start: Fraction = Fraction(0),
    rotation: tuple[float, bool, bool] | None = None,
    sample_aspect_ratio: Fraction | None = None,
    interlaced: bool = False,
    size: tuple[int, int] = SIZE,
) -> Path:
    """One video and at most one audio stream, in whatever container the name says.

    ``start``: seconds of the first frame and sample. ``rotation``: degrees counter-clockwise, then
    mirrored left to right, then upside down, written as a display matrix.
    """
    with _create(path) as output:
        # AVI's clock counts frames: a finer one would fill it with empty ones. So does MPEG-2's.
        counts = path.suffix == ".avi" or codec == "mpeg2video"
        base = Fraction(1, RATE if counts else RATE * 512)
        video = _video(output, codec, size=size, time_base=base)
        if interlaced:
            video.options = {"x264-params": "tff=1"}
        if rotation is not None:
            video.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        if sample_aspect_ratio is not None:
            video.codec_context.sample_aspect_ratio = sample_aspect_ratio
        sound = None if audio is None else _audio(output, audio, "eng")
        packets = _video_packets(video, frames, size=size)
        if sound is not None:
            packets = packets + _audio_packets(sound, frames / RATE, 440)
        for packet in packets:
            assert packet.time_base is not None
            for name in ("pts", "dts"):
                ticks = getattr(packet, name)
                setattr(packet, name, ticks + round(start / packet.time_base))
        packets.sort(key=lambda packet: (packet.dts or 0) * packet.time_base)
        output.mux(packets)
    return path


def variable_rate(path: Path, times: Sequence[int] = VFR_TIMES) -> Path:
    """Frames at ``times`` milliseconds, with B-frames and sound; MP4 or MKV."""
    with _create(
        path, {"video_track_timescale": "1000"} if path.suffix == ".mp4" else {}
    ) as output:
        video = _video(output, time_base=Fraction(1, 1000))
        sound = _audio(output, "aac", "eng")
        packets = _video_packets(video, len(times), times=times)
        packets += _audio_packets(sound, 1.5, 440)
        packets.sort(key=lambda packet: (packet.dts or 0) * packet.time_base)
        output.mux(packets)
    return path


def truncated(path: Path, whole: Path, *, keep: float = 0.6) -> Path:
    """The first part of ``whole``'s bytes, as a broken download leaves it (not MP4)."""
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def audio_only(path: Path) -> Path:
    """One second of sound and nothing else."""
    with _create(path) as output:
        codec = {".mp3": "libmp3lame", ".flac": "flac", ".wav": "pcm_s16le"}.get(path.suffix, "aac")
        sound = _audio(output, codec, "eng")
        output.mux(_audio_packets(sound, 1.0, 440))
    return path


def picture_and_sound(path: Path) -> Path:
    """Sound with an attached picture, as a music file has it; MP4."""
    with _create(path) as output:
        sound = _audio(output, "aac", "eng")
        cover = _cover_stream(output)
        output.mux([_cover_packet(cover)])
        output.mux(_audio_packets(sound, 1.0, 440))
    return path


def captioned(path: Path, *, frames: int = 10) -> Path:
    """H.264 with CEA-708 closed captions in an SEI message of every frame; MPEG-TS or MKV."""
    # ITU-T T.35: country USA, provider ATSC, "GA94", cc_data with one pair of null captions.
    payload = b"\xb5\x00\x31GA94\x03" + bytes([0x41, 0xFF, 0xFC, 0x80, 0x80, 0xFF])
    sei = b"\x00\x00\x00\x01\x06\x04" + bytes([len(payload)]) + payload + b"\x80"
    with _create(path) as output:
        video = _video(output, options={"x264-params": "annexb=1:repeat-headers=1"})
        packets = []
        for packet in _video_packets(video, frames):
            with_captions = av.Packet(_after_delimiter(bytes(packet), sei))
            with_captions.pts, with_captions.dts = packet.pts, packet.dts
            with_captions.time_base = packet.time_base
            with_captions.duration = packet.duration
            with_captions.is_keyframe = packet.is_keyframe
            with_captions.stream = video
            packets.append(with_captions)
        output.mux(packets)
    return path


def cover_picture() -> bytes:
    """A small PNG."""
    frame = av.VideoFrame.from_ndarray(
        np.full((16, 16, 3), (200, 30, 60), np.uint8), format="rgb24"
    )
    context: Any = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = 16, 16, "rgb24"
    context.time_base = Fraction(1, 25)
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def picture(index: int, size: tuple[int, int] = SIZE) -> np.ndarray[Any, Any]:
    """Frame ``index`` as RGB, ``(H, W, 3)``."""
    pixels = np.full((*size, 3), 40, np.uint8)
    column = 4 * index % size[1]
    pixels[:, column : column + 4] = (220, 180, 60)
    pixels[: size[0] // 4, : size[1] // 4] = (60, 200, 90)
    return pixels


def _create(path: Path, options: dict[str, str] | None = None) -> av.container.OutputContainer:
    return av.open(str(path), "w", container_options=options or {})


def _video(
    output: av.container.OutputContainer,
    codec: str = "libx264",
    *,
    size: tuple[int, int] = SIZE,
    time_base: Fraction = Fraction(1, RATE * 512),
    options: dict[str, str] | None = None,
) -> Any:
    stream: Any = output.add_stream(codec, rate=RATE)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = time_base
    stream.time_base = time_base
    stream.codec_context.thread_count = 1
    if codec == "libx264":
        stream.options = {"preset": "veryfast", "bf": "2", "g": "12", **(options or {})}
    return stream


def _video_packets(
    stream: Any, frames: int, *, size: tuple[int, int] = SIZE, times: Sequence[int] | None = None
) -> list[Any]:
    time_base = stream.codec_context.time_base
    step = round(1 / (RATE * time_base))
    packets = []
    for i in range(frames):
        frame = av.VideoFrame.from_ndarray(picture(i, size), format="rgb24").reformat(
            format="yuv420p"
        )
        frame.pts = i * step if times is None else times[i]
        frame.time_base = time_base
        packets += stream.encode(frame)
    packets += stream.encode(None)
    for packet in packets:
        packet.duration = step
    return packets


def _audio(
    output: av.container.OutputContainer, codec: str, language: str, *, default: bool = True
) -> Any:
    stream: Any = output.add_stream(codec, rate=SAMPLE_RATE)
    stream.layout = "stereo"
    stream.metadata["language"] = language
    stream.disposition = Disposition.default if default else Disposition(0)
    return stream


def _audio_packets(stream: Any, seconds: float, tone: float) -> list[Any]:
    count = round(seconds * SAMPLE_RATE)
    seconds_in = np.arange(count) / SAMPLE_RATE
    # Rising, so that no two moments sound alike and a shift can be measured.
    wave = np.sin(2 * np.pi * (tone + 200 * seconds_in) * seconds_in) * 8000
    samples = np.repeat(wave.astype(np.int16), 2)[np.newaxis]
    frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    resampler = av.AudioResampler(
        stream.format, stream.layout, SAMPLE_RATE, stream.frame_size or 1024
    )
    packets = []
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        packets += stream.encode(part)
    return packets + list(stream.encode(None))


def _subtitles(output: av.container.OutputContainer, codec: str, language: str) -> Any:
    stream: Any = output.add_stream(codec)
    stream.codec_context.subtitle_header = _ASS_HEADER
    stream.codec_context.time_base = Fraction(1, 1000)
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = language
    return stream


_ASS_HEADER = (
    b"[Script Info]\r\nScriptType: v4.00+\r\nPlayResX: 384\r\nPlayResY: 288\r\n\r\n[V4+ Styles]\r\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, "
    b"Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, "
    b"Shadow, Alignment, MarginL, MarginR, MarginV, Encoding\r\n"
    b"Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1\r\n"
    b"\r\n[Events]\r\n"
    b"Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\r\n"
)


def _text_packets(stream: Any, events: Sequence[tuple[float, float, bytes]]) -> list[Any]:
    packets = []
    for start, end, text in events:
        packet: Any = av.Packet(text)
        packet.time_base = Fraction(1, 1000)
        packet.pts = packet.dts = round(start * 1000)
        packet.duration = round((end - start) * 1000)
        packet.is_keyframe = True
        packet.stream = stream
        packets.append(packet)
    return packets


def _mov_text(text: str) -> bytes:
    """A sample of 3GPP timed text: its length in two bytes, then the text (TS 26.245, 5.17)."""
    content = text.replace("<i>", "").replace("</i>", "").encode()
    return len(content).to_bytes(2, "big") + content


def _cover_stream(output: av.container.OutputContainer) -> Any:
    # A template with the picture's parameters: a PNG file is a container of one such stream.
    with av.open(io.BytesIO(cover_picture())) as image:
        stream: Any = output.add_stream_from_template(image.streams.video[0], opaque=True)
    stream.disposition = Disposition.attached_pic
    return stream


def _cover_packet(stream: Any) -> Any:
    packet: Any = av.Packet(cover_picture())
    packet.pts = packet.dts = 0
    packet.time_base = Fraction(1, 90000)
    packet.is_keyframe = True
    packet.stream = stream
    return packet


def _chapters() -> list[Any]:
    base = Fraction(1, 1000)
    return [
        {"id": 1, "start": 0, "end": 800, "time_base": base, "metadata": {"title": "Dawn"}},
        {"id": 2, "start": 800, "end": 2000, "time_base": base, "metadata": {"title": "Däy"}},
    ]


def _after_delimiter(packet: bytes, unit: bytes) -> bytes:
    """Insert a NAL unit before the first coded slice of an Annex B access unit."""
    position = 0
    while True:
        position = packet.index(b"\x00\x00\x01", position) + 3
        if packet[position] & 0x1F in (1, 5):
            start = position - 3
            start -= packet[start - 1 : start] == b"\x00"
            return packet[:start] + unit + packet[start:]
