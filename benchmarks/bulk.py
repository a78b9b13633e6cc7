"""Measure what a bulk job pays for losing nothing, and what a second worker gives.

    python benchmarks/bulk.py video       stretches and journal against one encoder run, two minutes
    python benchmarks/bulk.py images      a journal against none, 10,000 images of 64²
    python benchmarks/bulk.py workers     two workers against one, 10,000 images of 64²
    python benchmarks/bulk.py manifest    a manifest as Parquet and as lines, --count rows

The clip and the images are synthesised. The two sides of a round run one after the other, and the
ratios are those within a round; RESULTS.md holds them. CPU seconds depend less than seconds on what
else the machine does. `benchmarks/images.py` compares a folder of
images with a bare pool of OpenCV.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]

from benchmarks.pipeline import write_identity  # noqa: E402
from cyclegan_batch import demo  # noqa: E402
from cyclegan_batch.api import plan_translation, run_plan  # noqa: E402
from cyclegan_batch.job.plan import JobPlan  # noqa: E402

RATE = 25
SIZE = (360, 640)
"""Height and width of the clip."""
SIDE = 64
"""Of the images."""
GENERATOR = Path(demo.__file__).with_name("day2night.onnx")
"""The small generator that comes with the package."""


def write_clip(path: Path, seconds: float) -> Path:
    """Write a clip in which a noisy landscape moves, so that the encoder has to work."""
    height, width = SIZE
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = cv2.resize(small, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
    grain = random.integers(0, 12, picture.shape, np.uint8)
    picture = cv2.add(picture, grain)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(round(seconds * RATE)):
            row, column = number % height, 3 * number % width
            pixels = np.ascontiguousarray(picture[row : row + height, column : column + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_images(folder: Path, count: int) -> Path:
    """Write ``count`` PNG images of noise, no two of them alike."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2 * SIDE, 2 * SIDE, 3), np.uint8)
    for number in range(count):
        row, column = number % SIDE, number // SIDE % SIDE
        pixels = np.ascontiguousarray(noise[row : row + SIDE, column : column + SIDE])
        pixels[0, 0] = number % 256, number // 256 % 256, 0
        cv2.imwrite(str(folder / f"{number:06}.png"), pixels)
    return folder


def without_journal(plan: JobPlan) -> JobPlan:
    """Return the job as it was before there were journals: one encoder run for a video."""
    videos = tuple(replace(video, stretch_frames=None) for video in plan.videos)
    return replace(plan, folder=None, videos=videos)


@dataclass(frozen=True)
class Cost:
    """What a job took."""

    wall: float
    cpu: float
    """Seconds of all threads and of all processes that it started."""


@contextlib.contextmanager
def measured(costs: list[Cost]) -> Iterator[None]:
    """Append what the block takes to ``costs``."""
    before, begin = os.times(), time.perf_counter()
    yield
    wall, after = time.perf_counter() - begin, os.times()
    costs.append(Cost(wall, sum(after[:4]) - sum(before[:4])))


def cost(
    source: Path,
    output: Path,
    model: Path,
    change: Callable[[JobPlan], JobPlan] = lambda plan: plan,
) -> Cost:
    """Return what it takes to plan and to run a job in this process; its output is removed."""
    costs: list[Cost] = []
    with measured(costs):
        report = run_plan(change(plan_translation(source, output, model=model)))
    assert report.status == "whole", report.summary
    clear(output)
    return costs[0]


def clear(output: Path) -> None:
    """Remove an output and the folder of its job."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink()
        shutil.rmtree(output.parent / ".cyclegan-batch", ignore_errors=True)


def by_command(source: Path, output: Path, *words: str) -> Cost:
    """Return what the command line takes for a job, the start of its processes included."""
    command = [sys.executable, "-m", "cyclegan_batch", "translate", str(source), str(output)]
    costs: list[Cost] = []
    with measured(costs):
        subprocess.run([*command, "-m", str(GENERATOR), "-q", *words], check=True)
    clear(output)
    return costs[0]


def compare(what: str, ours: Callable[[], Cost], other: Callable[[], Cost], rounds: int) -> None:
    """Print what ``ours`` takes over what ``other`` takes, round by round."""
    ours(), other()  # warm the caches
    walls, cpus = [], []
    for number in range(rounds):
        # Whoever comes first in a round may find the disk busy with the files of the one before.
        if number % 2:
            theirs, mine = other(), ours()
        else:
            mine, theirs = ours(), other()
        walls.append(mine.wall / theirs.wall)
        cpus.append(mine.cpu / theirs.cpu)
        print(
            f"  {mine.wall:.2f} s over {theirs.wall:.2f} s: {walls[-1]:.3f}; "
            f"{mine.cpu:.2f} CPU s over {theirs.cpu:.2f} CPU s: {cpus[-1]:.3f}",
            flush=True,
        )
    for unit, ratios in (("seconds", walls), ("CPU seconds", cpus)):
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{unit} {what}: {statistics.median(ratios):.3f} ({spread}, {rounds} rounds)")


def manifests(count: int, work: Path) -> None:
    """Print bytes, CPU time and memory of a manifest of ``count`` made-up rows, in each format."""
    import pyarrow.parquet  # noqa: F401 - its memory is not counted

    from cyclegan_batch.job import manifest

    def rows() -> Iterator[manifest.Row]:
        for number in range(count):
            name = f"sequence{number // 1000:05}/frame{number:08}.png"
            yield {
                **{"input": f"/data/sim/{name}", "output": f"/data/real/{name}"},
                **{"input_size": (256, 256), "output_size": (256, 256)},
                **{"bytes": 90_000 + number % 7000, "frames": 1, "damaged": 0},
                "sha256": hashlib.sha256(name.encode()).hexdigest(),
                **{"status": "done", "reason": None, "failures": []},
            }

    for suffix, write in (("jsonl", manifest._write_lines), ("parquet", manifest._write_parquet)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.process_time()
        with (work / f"manifest.{suffix}").open("wb") as file:
            write(file, rows())
        seconds = time.process_time() - begin
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        size = (work / f"manifest.{suffix}").stat().st_size / count
        print(f"{suffix}: {size:.0f} bytes a row, {seconds:.1f} CPU s, {grown:.0f} MiB more memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["video", "images", "workers", "manifest"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120, help="of the clip")
    parser.add_argument("--count", type=int, default=10_000, help="images, or rows")
    parser.add_argument("--folder", type=Path, help="where the files are written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        work, numbers = Path(name), itertools.count()

        def fresh(suffix: str = "") -> Path:
            return work / f"out{next(numbers)}{suffix}"

        if arguments.part == "manifest":
            manifests(arguments.count, work)
            return
        if arguments.part == "video":
            clip = write_clip(work / "clip.mp4", arguments.seconds)
            identity = write_identity(work / "identity.onnx")
            compare(
                "in stretches with a journal over those of one encoder run",
                lambda: cost(clip, fresh(".mp4"), identity),
                lambda: cost(clip, fresh(".mp4"), identity, without_journal),
                arguments.rounds,
            )
            return
        images = write_images(work / "in", arguments.count)
        if arguments.part == "images":
            compare(
                "with a journal over those without",
                lambda: cost(images, fresh(), GENERATOR),
                lambda: cost(images, fresh(), GENERATOR, without_journal),
                arguments.rounds,
            )
        else:
            compare(
                "of two workers over those of one",
                lambda: by_command(images, fresh(), "--workers", "2"),
                lambda: by_command(images, fresh()),
                arguments.rounds,
            )


if __name__ == "__main__":
    main()
