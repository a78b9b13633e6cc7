"""Measure how fast image files are written, and a whole folder of them is translated.

    python benchmarks/images.py png PHOTOGRAPHS       the PNG writer against OpenCV's, one thread
    python benchmarks/images.py folder PHOTOGRAPHS    a folder against a bare pool of OpenCV

Both cut PHOTOGRAPHS, a folder, into images of 256². In each round all sides take turns; the rates
are ratios within a round. RESULTS.md holds the tables.

The identity of `folder` is one node, which onnxruntime runs: of the runtimes it takes the least
time for a frame, and what is measured is the pipeline. The threads of the pool have the priority of
the pipeline's, so that other programs on the machine slow down both sides alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY)]

from benchmarks.pipeline import write_identity  # noqa: E402
from cyclegan_batch import translate  # noqa: E402
from cyclegan_batch.frames import Pixels  # noqa: E402
from cyclegan_batch.media.images.codec import decode_picture, encode_picture  # noqa: E402

SIDE = 256


def crops(folder: Path) -> list[Pixels]:
    """Return RGB images of 256² from the middle of every JPEG and PNG of ``folder``."""
    images = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            images.append(middle(decode_picture(path.read_bytes(), path.name).pixels))
    return images


def middle(pixels: Pixels) -> Pixels:
    """Return the largest square in the middle of an image, scaled to 256²."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def png(images: list[Pixels], rounds: int, repeats: int = 20) -> None:
    """Print the rate and the bytes of the PNG writer over OpenCV's, by one thread."""
    cv2.setNumThreads(1)
    rates = []
    for _ in range(rounds):
        begin = time.perf_counter()
        ours = [encode_picture(image, "png") for _ in range(repeats) for image in images]
        between = time.perf_counter()
        theirs = [
            cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
            for _ in range(repeats)
            for image in images
        ]
        end = time.perf_counter()
        rates.append((end - between) / (between - begin))
    size = sum(map(len, ours)) / sum(map(len, theirs))
    print(f"images/s over OpenCV's: {_summary(rates)}; bytes over OpenCV's: {size:.3f}")


def folder(images: list[Pixels], rounds: int, count: int) -> None:
    """Print the rate of `translate` over that of a bare pool, identity generator, JPEG and PNG.

    The rates per CPU second hold on a machine that other programs use, too.
    A second pool writes JPEGs as `translate` does, without chroma subsampling.
    """
    whole = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    pools: dict[str, dict[str, tuple[int, ...]]] = {
        ".jpg": {"the bare pool's": (), "those of a pool without chroma subsampling": whole},
        ".png": {"the bare pool's": ()},
    }
    for suffix, written in pools.items():
        with tempfile.TemporaryDirectory() as name:
            work = Path(name)
            write_identity(work / "identity.onnx")
            source = work / "in"
            source.mkdir()
            for number in range(count):
                image = images[number % len(images)][:, :, ::-1]
                # No two files alike: each has a pixel of its own.
                image = np.ascontiguousarray(image)
                image[0, 0] = number % 256, number // 256 % 256, 0
                cv2.imwrite(str(source / f"{number:06}{suffix}"), image)
            rates: dict[str, list[float]] = {kind: [] for kind in written}
            costs: dict[str, list[float]] = {kind: [] for kind in written}
            for number in range(rounds + 1):
                begin, begin_cpu = time.perf_counter(), time.process_time()
                model = work / "identity.onnx"
                translate(source, work / f"ours{number}", model=model, backend="onnxruntime")
                ours, ours_cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
                for place, (kind, parameters) in enumerate(written.items()):
                    begin, begin_cpu = time.perf_counter(), time.process_time()
                    bare_pool(source, work / f"bare{number}-{place}", parameters)
                    if number:  # the first round imports what is needed, and warms the caches
                        rates[kind].append((time.perf_counter() - begin) / ours)
                        costs[kind].append((time.process_time() - begin_cpu) / ours_cpu)
        for kind in written:
            print(f"{suffix}: images/s over {kind}: {_summary(rates[kind])}")
            print(f"{suffix}: images per CPU second over {kind}: {_summary(costs[kind])}")


def bare_pool(source: Path, output: Path, parameters: Sequence[int]) -> None:
    """Decode and encode every file of ``source`` by OpenCV, in a thread for each core."""
    cv2.setNumThreads(1)
    output.mkdir()

    def one(path: Path) -> None:
        cv2.imwrite(str(output / path.name), cv2.imread(str(path)), parameters)

    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores, initializer=os.nice, initargs=(10,)) as pool:
        list(pool.map(one, sorted(source.iterdir())))


def _summary(rates: list[float]) -> str:
    return f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["png", "folder"])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="images of the folder")
    arguments = parser.parse_args()
    images = crops(arguments.photographs)
    if arguments.part == "png":
        png(images, arguments.rounds)
    else:
        folder(images, arguments.rounds, arguments.count)


if __name__ == "__main__":
    main()
