"""Measure training crops of very large images: cut from a temporary file, and decoded each time.

    python benchmarks/train_crops.py                              8 images of 8000×8000, JPEG
    python benchmarks/train_crops.py --format png --side 4000

The images are drawn, four of each domain. Every way runs in a process of its own, in turns:

- decoded: no disk is given, so each crop decodes its image (as where the disk is full);
- file: the images are decoded once, and a crop reads its part of the file;
- cold: the same, with the file dropped from the page cache before the first sample.

A sample is a crop of A and one of B. The memory is the most that the process took (its resident
set) above what it took before it read the images. The digests of the samples must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "train")]

WAYS = ("decoded", "file", "cold")


def draw(folder: Path, images: int, side: int, suffix: str) -> None:
    """Draw ``images`` of ``side`` × ``side``: smooth colours, with the noise of a camera."""
    import cv2
    import numpy as np

    for number in range(images):
        random = np.random.default_rng(number)
        small = random.integers(0, 256, (40, 40, 3), np.uint8)
        image = cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)
        for top in range(0, side, 500):
            strip = image[top : top + 500]
            noise = random.integers(-6, 7, strip.shape, np.int16)
            strip[:] = np.clip(strip + noise, 0, 255)
        place = folder / ("trainA" if number % 2 else "trainB")
        place.mkdir(exist_ok=True)
        options = [cv2.IMWRITE_JPEG_QUALITY, 90] if suffix == "jpg" else []
        _, data = cv2.imencode(f".{suffix}", image, options)
        (place / f"{number}.{suffix}").write_bytes(data)


def measure(
    way: str, folder: Path, crop: int, samples: int, workers: int
) -> dict[str, float | str]:
    """Return the seconds and memory of the reading, the samples per second, and their digest."""
    import torch
    from cyclegan_train.batches import Feed, Sampler
    from cyclegan_train.data import load_domains
    from cyclegan_train.pixel_file import Disk
    from cyclegan_train.settings import DataConfig

    from cyclegan_batch.frames import SizeRequirements

    torch.set_num_threads(1)
    config = DataConfig(preprocess="crop", crop_size=crop, memory_gb=0.0, workers=workers)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.monotonic(), time.process_time()
    a, b = load_domains(
        (folder / "trainA", folder / "trainB"),
        config,
        channels=(3, 3),
        sizes=SizeRequirements(4, 64),
        disk=None if way == "decoded" else Disk(folder),
    )
    reading, reading_cpu = time.monotonic() - begin, time.process_time() - cpu
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "cold":
        for domain in (a, b):
            file = domain._file._file
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    feed = Feed(a, b, Sampler(len(a), len(b)), workers=workers)
    digest = hashlib.sha256()
    begin, cpu = time.monotonic(), time.process_time()
    for _ in range(samples):
        for images in feed.next():
            digest.update(images.numpy().tobytes())
    seconds, cpu_seconds = time.monotonic() - begin, time.process_time() - cpu
    feed.close()
    a.close()
    b.close()
    return {
        "reading": reading,
        "reading_cpu": reading_cpu,
        "megabytes": (most - before) / 1024,
        "rate": samples / seconds,
        "cpu": cpu_seconds / samples,
        "digest": digest.hexdigest()[:12],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, default=8000)
    parser.add_argument("--format", default="jpg", help="a suffix that OpenCV writes")
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        found = measure(given.way, given.folder, given.crop, given.samples, given.workers)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), given.images, given.side, given.format)
        for _ in range(given.rounds):
            for way in WAYS:
                done = subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--way", way, "--folder", folder],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                found = json.loads(done.stdout)
                print(
                    f"{way}: read in {found['reading']:.1f} s ({found['reading_cpu']:.1f} CPU s, "
                    f"{found['megabytes']:.0f} MB); {found['rate']:.2f} samples/s, "
                    f"{1000 * found['cpu']:.1f} CPU ms each; {found['digest']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
