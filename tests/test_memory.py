"""Memory is flat: what a run holds does not grow with the frames that have passed.

Resident memory as the system counts it (VmRSS), of a fresh process, in two periods of one run. The
allocator and thread stacks fill up during the first hundred frames; after that nothing may grow.
What comes and goes within seconds (the encoder's look-ahead, how full the queues are, what the
allocator returns to the system at the end of a stretch) is left out by taking each period's median.
"""

from __future__ import annotations

import json
import statistics
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

source, target, model, *periods = sys.argv[1:]
ranges = [range(*map(int, period.split("-"))) for period in periods]
sizes = [[] for _ in ranges]

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) * 1024

def watch(counters):
    for found, frames in zip(sizes, ranges):
        if counters.frames_done in frames:
            found.append(resident())

plan = api.plan_translation(source, target, model=model, preset="ultrafast")
report = api.run_plan(plan, watch=watch)
assert report.status == "whole", report.failures
print(json.dumps(sizes))
"""


def resident_bytes(source: Path, target: Path, model: Path, *periods: str) -> list[float]:
    """Return the median resident memory of a run in each of ``periods``: ``FIRST-END``, frames."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, source, target, model, *periods],
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    sizes = [sorted(found) for found in json.loads(run.stdout)]
    for period, found in zip(periods, sizes, strict=True):
        print(f"resident MiB, frames {period}:", [round(size / 2**20, 1) for size in found])
    return [statistics.median(found) for found in sizes]


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
    source = clip(tmp_path / "clip.mp4", 2000, size)
    # The second and third stretches, of 250 frames, still meet memory that was never used before.
    early, late = resident_bytes(source, tmp_path / "out.mp4", model, "500-1000", "1500-2000")
    # One frame lost in fifteen would be 66 frames of 225 KiB, 15 MiB. Over 8,000 frames without a
    # loss the medians of such periods differed by 5 MiB.
    assert late - early < 10 * 2**20


@pytest.mark.behaviour(27)
def test_memory_is_flat_over_hundreds_of_pictures(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 240, 320, 3), np.uint8)
    for number in range(1200):
        picture = folder / f"{number:04}.jpg"
        if number < 2:
            Image.fromarray(pixels[number]).save(picture)
        else:
            picture.hardlink_to(folder / f"{number % 2:04}.jpg")
    early, late = resident_bytes(folder, tmp_path / "out", model, "100-300", "1000-1200")
    assert late - early < 10 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.behaviour(27)
def test_memory_after_5000_frames_is_within_five_percent_of_after_500(
    model: Path, tmp_path: Path
) -> None:
    source = clip(tmp_path / "clip.mp4", 5100, (480, 640))
    early, late = resident_bytes(source, tmp_path / "out.mp4", model, "500-750", "4750-5000")
    assert abs(late - early) < 0.05 * early
