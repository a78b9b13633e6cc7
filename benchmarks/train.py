"""Measure a training step: the plain one, as in the reference, against all faster options at once.

    python benchmarks/train.py curves.tsv                            on the CPU
    python benchmarks/train.py curves.tsv --device cuda --size 256   on a GPU: never run

The plain step is eager and computes in IEEE float32; with `--plain tf32` it computes as torch and
the reference do on CUDA by default. Both steps start from the same weights and draw the same
images and random numbers; they take turns within one run, so that other load of the machine affects
both. The command prints the ratio of their rates. It writes the losses of both, step by step, to
OUTPUT, and their curves to an image beside it, those of the plain step above.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "train")]

from cyclegan_train import CycleGAN, TrainConfig  # noqa: E402
from cyclegan_train.charts import losses_png  # noqa: E402
from cyclegan_train.cyclegan import LOSSES  # noqa: E402

FAST: dict[str, dict[str, Any]] = {
    "cpu": {"precision": "bf16", "joint_identity": True, "fused_adam": True},
    "cuda": {
        "precision": "bf16",
        "joint_identity": True,
        "fused_adam": True,
        "channels_last": True,
        "compile": True,
        "cuda_graphs": True,
    },
}
"""The options of the fast step, by device."""


def scenes(count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of images from which a network can learn: blobs in warm and cold colours."""
    draws = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(count):
        coarse = torch.rand(2, 1, 3, 6, 6, generator=draws) * 2 - 1
        A, B = (F.interpolate(x, size=size, mode="bicubic").clamp(-1, 1) for x in coarse)
        tint = torch.tensor([0.5, 0.0, -0.5])[:, None, None]
        pairs.append(((A + tint).clamp(-1, 1), (B - tint).clamp(-1, 1)))
    return pairs


class Contestant:
    """A model with a random state of its own."""

    def __init__(self, config: TrainConfig) -> None:
        random.seed(0)
        torch.manual_seed(0)
        self.model = CycleGAN(config)
        self._python = random.getstate()
        self.seconds: list[float] = []
        self.losses: list[dict[str, float]] = []

    def step(self, A: Tensor, B: Tensor) -> None:
        random.setstate(self._python)
        begin = time.perf_counter()
        # It returns the losses as numbers, so the device has finished the step by then.
        self.losses.append(self.model.optimize_parameters(A, B))
        self.seconds.append(time.perf_counter() - begin)
        self._python = random.getstate()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--netG", default="resnet_9blocks")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--ngf", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="of each that are counted")
    parser.add_argument("--warm-up", type=int, default=5, help="of each before them")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves it to torch")
    parser.add_argument("--plain", choices=["fp32", "tf32"], default="fp32")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction)
    parser.add_argument("--seconds", type=float, default=1e9, help="end after so many")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    changes = FAST[given.device] | {
        name: value
        for name in ("compile", "channels_last")
        if (value := getattr(given, name)) is not None
    }
    plain = TrainConfig(
        netG=given.netG,
        ngf=given.ngf,
        device=given.device,
        pool_size=10,
        precision=given.plain,
    )
    both = {"plain": Contestant(plain), "fast": Contestant(replace(plain, **changes))}
    print("plain:", given.plain, "with float32 as", both["plain"].model.float32)
    print("fast:", ", ".join(f"{name} = {value}" for name, value in changes.items()))
    pairs = scenes(16 * given.batch, given.size)
    end = time.monotonic() + given.seconds
    with given.output.open("w") as table:
        print("step", "which", "seconds", *LOSSES, sep="\t", file=table, flush=True)
        for number in range(given.warm_up + given.steps):
            if time.monotonic() > end:
                break
            drawn = [pairs[(number * given.batch + k) % len(pairs)] for k in range(given.batch)]
            A, B = (torch.cat(pictures) for pictures in zip(*drawn, strict=True))
            for name in list(both)[:: 1 if number % 2 else -1]:
                one = both[name]
                one.step(A, B)
                row = [f"{one.losses[-1][loss]:.5f}" for loss in LOSSES]
                seconds = f"{one.seconds[-1]:.3f}"
                print(number + 1, name, seconds, *row, sep="\t", file=table, flush=True)
    report(both, given.warm_up)
    write_curves(both, given.output.with_suffix(".png"))


def write_curves(both: dict[str, Contestant], path: Path) -> None:
    """Draw the curves of the plain step, and those of the fast one below."""
    charts = []
    for one in both.values():
        steps = list(range(1, len(one.losses) + 1))
        losses = {name: [each[name] for each in one.losses] for name in LOSSES}
        charts.append(Image.open(io.BytesIO(losses_png(steps, losses))))
    sheet = Image.new("RGB", (charts[0].width, sum(chart.height for chart in charts)))
    for number, chart in enumerate(charts):
        sheet.paste(chart, (0, number * chart.height))
    sheet.save(path)


def report(both: dict[str, Contestant], warm_up: int) -> None:
    medians = {}
    for name, one in both.items():
        counted = one.seconds[warm_up:]
        medians[name] = statistics.median(counted)
        print(
            f"{name}: {1 / medians[name]:.3f} it/s, {medians[name]:.3f} s a step "
            f"({min(counted):.3f} to {max(counted):.3f}, {len(counted)} steps)"
        )
    pairs = zip(both["plain"].seconds[warm_up:], both["fast"].seconds[warm_up:], strict=True)
    ratios = [plain / fast for plain, fast in pairs]
    print(
        f"ratio of the rates: median {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )
    last = {name: one.losses[-len(one.losses) // 2 :] for name, one in both.items()}
    for loss in LOSSES:
        means = [float(np.mean([each[loss] for each in losses])) for losses in last.values()]
        print(f"  mean {loss} of the second half: plain {means[0]:.4f}, fast {means[1]:.4f}")


if __name__ == "__main__":
    main()
