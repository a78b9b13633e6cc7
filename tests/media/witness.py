"""What ffmpeg and ffprobe, the independent witnesses, find in a video."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

needs_ffprobe = pytest.mark.needs("ffmpeg", "ffprobe")
ALIKE = 1.5
"""Grey levels by which our RGB and that of another scaler differ; the next frame differs by 11."""


def probe(path: Path, entries: str, *more: str) -> dict[str, Any]:
    """Ask ffprobe about the first video stream."""
    command = ["ffprobe", "-v", "error", "-select_streams", "V:0", "-of", "json", *more]
    command += ["-show_entries", entries, str(path)]
    answer: dict[str, Any] = json.loads(subprocess.check_output(command))
    return answer


def times(path: Path) -> list[Fraction]:
    """Return when ffprobe would show each frame, in seconds."""
    answer = probe(path, "frame=best_effort_timestamp,pkt_dts:stream=time_base")
    base = Fraction(answer["streams"][0]["time_base"])
    # AVI has no PTS, and ffprobe derives none for its B-frames.
    return [f.get("best_effort_timestamp", f.get("pkt_dts", 0)) * base for f in answer["frames"]]


def tick(path: Path) -> Fraction:
    return Fraction(probe(path, "stream=time_base")["streams"][0]["time_base"])


def pictures(path: Path, *options: str) -> np.ndarray[Any, Any]:
    """Return all frames as ffmpeg decodes them, turned upright, ``(N, H, W, 3)``."""
    command = ["ffmpeg", "-v", "error", *options, "-i", str(path), "-fps_mode", "passthrough"]
    # The scaler's default flags darken by a level.
    command += [
        "-sws_flags",
        "bicubic+accurate_rnd+full_chroma_int",
        "-an",
        "-f",
        "image2pipe",
        "-c:v",
        "ppm",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    content = subprocess.check_output(command)
    stack = []
    while content:
        header = content[:64].split(b"\n", 3)
        width, height = map(int, header[1].split())
        start = sum(len(line) + 1 for line in header[:3])
        end = start + width * height * 3
        stack.append(np.frombuffer(content[start:end], np.uint8).reshape(height, width, 3))
        content = content[end:]
    return np.stack(stack)


def single_threaded_times(path: Path) -> list[float]:
    """Return the times, in seconds, of the frames that one thread of ffprobe decodes."""
    command = ["ffprobe", "-v", "quiet", "-threads", "1", "-select_streams", "v:0"]
    command += ["-show_entries", "frame=pts_time", "-of", "csv=p=0", str(path)]
    answer = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return [float(line.split(",")[0]) for line in answer.split()]


def tags_of(path: Path) -> dict[str, str]:
    entries = "stream=color_space,color_primaries,color_transfer,color_range"
    tags: dict[str, str] = probe(path, entries)["streams"][0]
    return tags
