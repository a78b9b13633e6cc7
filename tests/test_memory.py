"""Memory is flat: what a run holds does not grow with the frames that have passed.

Resident memory as the system counts it (VmRSS), of a fresh process, at two moments of one run. The
allocator and thread stacks fill up during the first hundred frames; after that nothing may grow.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.synthesis import generators

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs /proc/self/status"
)

MEASURE = """
import json, sys
from cyclegan_batch import api
from cyclegan_batch.job.units import Counters

source, target, model, *moments = sys.argv[1:]
left, sizes = [int(moment) for moment in moments], []

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

def watch(counters):
    if left and counters.frames_done >= left[0]:
        sizes.append([counters.frames_done, resident()])
        left.pop(0)

plan = api.plan_translation(source, target, model=model, preset="ultrafast")
report = api.run_plan(plan, watch=watch)
assert report.status == "whole", report.failures
assert not left, (left, report.frames)
print(json.dumps([sizes, plan.memory]))
"""


def resident_bytes(source: Path, target: Path, model: Path, *moments: int) -> list[int]:
    """Return the resident memory of a run after each of ``moments`` frames, or shortly later."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, source, target, model, *map(str, moments)],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    sizes, _ = json.loads(run.stdout)
    print("resident MiB:", [(frames, round(size / 2**20, 1)) for frames, size in sizes])
    return [size for _, size in sizes]


def clip(path: Path, frames: int, size: tuple[int, int]) -> Path:
    """Write ``frames`` frames that move and never look alike, so that the encoder has to work."""
    height, width = size
    noise = np.random.default_rng(0).integers(0, 256, (2 * height, 2 * width), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            row, column = number % height, number * 7 % width
            grey = noise[row : row + height, column : column + width]
            pixels = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generators.identity(tmp_path_factory.mktemp("model") / "identity.onnx")


@pytest.mark.behaviour(27)
def test_memory_is_flat_over_hundreds_of_frames(model: Path, tmp_path: Path) -> None:
    size = (240, 320)
    source = clip(tmp_path / "clip.mp4", 1000, size)
    # The second of the stretches, of 250 frames, meets the end of the first one's encoder.
    early, late = resident_bytes(source, tmp_path / "out.mp4", model, 300, 800)
    # Both moments have the same place in the source's group of pictures, whose packets are kept.
    # One frame lost in fifteen would be 33 frames of 225 KiB, 7 MiB. What does come and go is the
    # encoder's look-ahead and how full the queues happen to be: 3 MiB were seen.
    assert late - early < 6 * 2**20


@pytest.mark.behaviour(27)
def test_memory_is_flat_over_hundreds_of_pictures(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "0.jpg")
    for number in range(1, 900):
        (folder / f"{number}.jpg").hardlink_to(folder / "0.jpg")
    early, late = resident_bytes(folder, tmp_path / "out", model, 100, 800)
    assert late - early < 6 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.behaviour(27)
def test_memory_after_5000_frames_is_within_five_percent_of_after_500(
    model: Path, tmp_path: Path
) -> None:
    source = clip(tmp_path / "clip.mp4", 5100, (480, 640))
    early, late = resident_bytes(source, tmp_path / "out.mp4", model, 500, 5000)
    assert abs(late - early) < 0.05 * early
