"""Measure how fast image files are written, and a whole folder of them is translated.

    python benchmarks/images.py png PHOTOGRAPHS       the PNG writer against OpenCV's, one thread
    python benchmarks/images.py folder PHOTOGRAPHS    a folder against a bare pool of OpenCV
    python benchmarks/images.py sizes PHOTOGRAPHS     bytes and CPU time of an image, by its format
    python benchmarks/images.py job PHOTOGRAPHS --model MODEL   CPU time of an image in a whole job

All cut PHOTOGRAPHS, a folder, into images of 256², ``sizes`` into those of 512², too. In each round
all sides take turns; the rates are ratios within a round. RESULTS.md holds the tables.

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


def crops(folder: Path, size: int = SIDE) -> list[Pixels]:
    """Return RGB images of ``size``² from the middle of the JPEGs and PNGs of ``folder``.

    Those that are smaller are left out.
    """
    images = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
            pixels = decode_picture(path.read_bytes(), path.name).pixels
            if min(pixels.shape[:2]) >= size:
                images.append(middle(pixels, size))
    return images


def middle(pixels: Pixels, size: int) -> Pixels:
    """Return the largest square in the middle of an image, scaled to ``size``²."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)


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


def sizes(photographs: Path, rounds: int, count: int) -> None:
    """Print the bytes of an image, and the CPU time to decode and to encode it, by one thread.

    JPEG and PNG as `translate` writes them without options. The time is the median of the rounds.
    """
    cv2.setNumThreads(1)
    for size in (256, 512):
        images = crops(photographs, size)[:count]
        if not images:
            continue
        repeats = range(-(-count // len(images)))
        for name in ("jpg", "png"):
            times: list[tuple[float, float]] = []
            for _ in range(rounds):
                begin = time.process_time()
                files = [encode_picture(image, name) for _ in repeats for image in images]
                between = time.process_time()
                for data in files:
                    decode_picture(data, f"a.{name}")
                end = time.process_time()
                times.append(((between - begin) / len(files), (end - between) / len(files)))
            encoding, decoding = (
                1000 * statistics.median(each) for each in zip(*times, strict=True)
            )
            mean = sum(map(len, files)) / len(files)
            print(
                f"{size}² {name}, {len(images)} images: {mean:,.0f} bytes, "
                f"{decoding:.2f} ms to decode, {encoding:.2f} ms to encode"
            )


def job(images: list[Pixels], model: Path, precision: str, rounds: int, count: int) -> None:
    """Print the CPU time of an image of 256² in a job from JPEG to JPEG.

    Each round takes the difference of a job of ``count`` images and one of half as many, so that
    the opening of the model is not in it.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        halves = work / "all", work / "half"
        for place, folder in enumerate(halves):
            folder.mkdir()
            for number in range(count >> place):
                image = images[number % len(images)].copy()
                image[0, 0] = number % 256, number // 256 % 256, 0
                (folder / f"{number:06}.jpg").write_bytes(encode_picture(image, "jpg"))
        costs = []
        for number in range(rounds + 1):
            took = []
            for folder in halves:
                begin = time.process_time()
                output = work / f"{folder.name}{number}"
                translate(folder, output, model=model, precision=precision)
                took.append(time.process_time() - begin)
            if number:  # the first round imports what is needed
                costs.append(1000 * (took[0] - took[1]) / (count - count // 2))
        print(f"{model.name}, {precision}: {_summary(costs)} CPU ms an image")


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
    parser.add_argument("part", choices=["png", "folder", "sizes", "job"])

    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="images of the folder")
    parser.add_argument("--model", type=Path, help="of the job; the ResNet-9 without one")
    parser.add_argument("--precision", default="auto", help="of the job")
    arguments = parser.parse_args()
    if arguments.part == "sizes":
        sizes(arguments.photographs, arguments.rounds, arguments.count)
        return
    images = crops(arguments.photographs)
    if arguments.part == "job":
        from benchmarks.runtimes import seeded_resnet9

        with tempfile.TemporaryDirectory() as name:
            model = arguments.model or seeded_resnet9(Path(name) / "resnet9.pth")
            job(images, model, arguments.precision, arguments.rounds, arguments.count)
    elif arguments.part == "png":
        png(images, arguments.rounds)
    else:
        folder(images, arguments.rounds, arguments.count)


if __name__ == "__main__":
    main()
