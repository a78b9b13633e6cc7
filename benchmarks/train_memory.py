"""Measure what a training step takes of memory and time, and with fewer activations kept.

    python benchmarks/train_memory.py                        on the CPU, ResNet-9, ngf 32, 256²
    python benchmarks/train_memory.py --size 512 --batch 4

Every way runs in a process of its own, in turns; the memory is the most that the process took (its
resident set) above what it took before the first step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "train")]

WAYS = {
    "plain": {},
    "checkpoint_activations": {"checkpoint_activations": True},
    "accumulate": {"accumulate": 0},
    "both": {"checkpoint_activations": True, "accumulate": 0},
}
"""The ways to compute a step; 0 stands for a part for each image of the batch."""


def measure(way: str, netG: str, ngf: int, size: int, batch: int, steps: int) -> dict[str, float]:
    """Return the memory in MB and the CPU seconds of a step."""
    import torch
    from cyclegan_train import CycleGAN, TrainConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    changes = {name: value or batch for name, value in WAYS[way].items()}
    config = TrainConfig(netG=netG, ngf=ngf, ndf=ngf, device="cpu", **changes)  # type: ignore[arg-type]
    model = CycleGAN(config)
    A, B = torch.rand(2, batch, 3, size, size) * 2 - 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model.optimize_parameters(A, B)
    begin = time.process_time()
    for _ in range(steps):
        model.optimize_parameters(A, B)
    seconds = (time.process_time() - begin) / steps
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"megabytes": (most - before) / 1024, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--netG", default="resnet_9blocks")
    parser.add_argument("--ngf", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="that are counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        found = measure(given.way, given.netG, given.ngf, given.size, given.batch, given.steps)
        print(json.dumps(found))
        return
    ways = list(WAYS) if given.batch > 1 else list(WAYS)[:2]
    for _ in range(given.rounds):
        for way in ways:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--way", way],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found = json.loads(done.stdout)
            print(f"{way}: {found['megabytes']:.0f} MB, {found['seconds']:.2f} CPU s", flush=True)


if __name__ == "__main__":
    main()
