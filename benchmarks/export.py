"""Measure what `cyclegan-batch export` writes: size, parity and rate, per precision and backend.

    python benchmarks/export.py CHECKPOINT PHOTOGRAPHS [--threads 1] [--size 256] [--rounds 5]

In each round all ways of running the generator take turns, one frame per call, torch in fp32
first; rates are relative to torch's in the same round. Parity is against torch in fp32 on
PHOTOGRAPHS, a folder. RESULTS.md and export/README.md hold the tables.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "export")]

from cyclegan_export import export_onnx  # noqa: E402
from cyclegan_export.gate import translated_by_torch  # noqa: E402
from cyclegan_export.samples import frames_from_files  # noqa: E402

from cyclegan_batch.backends import open_backend  # noqa: E402
from cyclegan_batch.errors import CycleganBatchError  # noqa: E402
from cyclegan_batch.frames import Pixels  # noqa: E402
from cyclegan_batch.models.checkpoints.loading import load_generator  # noqa: E402
from cyclegan_batch.models.model import open_model  # noqa: E402
from cyclegan_batch.models.parity import parity  # noqa: E402

Way = tuple[str, str, Callable[[Pixels], Pixels]]
"""The file, the runtime and its arithmetic, and the function that translates."""

PRECISIONS: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16")


def ways(files: dict[str, Path], threads: int) -> list[Way]:
    """Return every way in which this machine runs the files."""
    ways_to_run: list[Way] = []
    for precision, path in files.items():
        model = open_model(path)
        arithmetics = ["auto", "bf16"] if precision == "fp32" else ["auto"]
        for backend in ("onnxruntime", "openvino"):
            for arithmetic in arithmetics:
                options: dict[str, Any] = {"backend": backend, "precision": arithmetic}
                try:
                    context = open_backend(model, device="cpu", threads=threads, **options)
                except CycleganBatchError as error:
                    print(f"{precision} {backend} {arithmetic}: {error}", file=sys.stderr)
                    continue
                words = f"{backend}, {context.precision}"
                ways_to_run.append((precision, words, context.infer))
    return ways_to_run


def seconds(run: Callable[[Pixels], Pixels], frames: Pixels) -> float:
    """Return how long one pass over ``frames`` takes, one frame per call."""
    begun = time.perf_counter()
    for frame in frames:
        run(frame[None])
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = load_generator(given.checkpoint)
    frames = frames_from_files(given.photographs, (given.size, given.size), 4)

    def by_torch(batch: Pixels) -> Pixels:
        return translated_by_torch(loaded.network, batch, channels=loaded.config.input_nc)

    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for precision in PRECISIONS:
            files[precision] = Path(folder) / f"{precision}.onnx"
            export_onnx(given.checkpoint, files[precision], precision=precision)
        sizes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
        all_ways = ways(files, given.threads)
    reference = by_torch(frames)
    ratios: dict[tuple[str, str], list[float]] = {}
    for _ in range(given.rounds + 1):  # the first one warms up
        torchs = seconds(by_torch, frames)
        for name, how, run in all_ways:
            ratios.setdefault((name, how), []).append(torchs / seconds(run, frames))
    print("| file | MB | run by | over torch fp32 | PSNR | 99.9 % within | largest |")
    print("|---|---|---|---|---|---|---|")
    for name, how, run in all_ways:
        measured, rates = parity(run(frames), reference), ratios[name, how][1:]
        print(
            f"| {name} | {sizes[name]:.1f} | {how} | {statistics.median(rates):.2f} "
            f"({min(rates):.2f}–{max(rates):.2f}) | {measured.psnr:.1f} dB | {measured.p999:.0f} | "
            f"{measured.max:.0f} |"
        )


if __name__ == "__main__":
    main()
