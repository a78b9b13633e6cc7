"""Encode a source with PyAV, assemble its output, and read what ffprobe finds in it."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from cyclegan_batch.machine import own_scheduling
from cyclegan_batch.media.demux.demuxing import open_container
from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.media.demux.stream_info import MediaInfo, StreamInfo
from cyclegan_batch.media.mux.assemble import assemble
from cyclegan_batch.media.mux.joined_video import Stretch
from cyclegan_batch.media.mux.streams import StreamPlan, plan_streams
from cyclegan_batch.media.mux.trial import TranslatedVideo
from cyclegan_batch.options import TranslateOptions
from cyclegan_batch.wording import grouped
from tests.needs import need
from tests.synthesis import streams

H264 = TranslatedVideo(encoder="libx264", pix_fmt="yuv420p", size=(48, 64))
"""The translated video of most tests."""
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
    translated = TranslatedVideo(encoder=codec, pix_fmt="yuv420p", size=video.size or (0, 0))
    plan = plan_streams(info, video, output, chosen, translated)
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
    need("ffprobe")
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


def planned(tmp_path: Path, output: str = "out.mkv") -> tuple[StreamPlan, list[Stretch], Path]:
    info = probe(streams.plain(tmp_path / "a.mkv"))
    path = tmp_path / output
    plan = plan_streams(info, info.best_video(), path, TranslateOptions(), H264)
    return plan, encode(info, info.best_video(), tmp_path), path


def apart(folder: Path, *, picture: Fraction, sound: Fraction) -> Path:
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
