"""Measure what validation without a truth tells: its rank correlation with PSNR to the truth.

    python benchmarks/validation.py WORK [--seeds 0 1 2] [--side 64]

Draws the demo's valleys by day and by night into WORK/data, with pairs in valA and valB, and trains
a small CycleGAN on them for every seed, in WORK/seedN (one that is there already is used as it is).
After every epoch the run scores its generators by random-feature KID, which sees no truth, and by
PSNR and SSIM to the truth. Prints for every seed, direction and kind of weights Spearman's rank
correlation of the two over the epochs, the PSNR of the epoch that the kernel distance chooses, of
the last and of the best epoch, and what share of the time the validation took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "train")]

from cyclegan_train.run import train  # noqa: E402
from cyclegan_train.settings import settings_from  # noqa: E402

from cyclegan_batch.demo.landscapes import write_domains  # noqa: E402

KEYS: dict[str, Any] = {
    "netG": "resnet_3blocks", "ngf": 8, "ndf": 16, "netD": "n_layers", "n_layers_D": 2,
    "upsample": "resize", "lambda_identity": 0.0, "lr": 4e-4, "ema": 0.998, "preprocess": "crop",
    "device": "cpu", "threads": 1, "samples": 0, "tensorboard": False,
    "val_truth": "pictures",
}  # fmt: skip


def draw(folder: Path, count: int, side: int) -> None:
    """Draw the domains, whose pairs are in valA and valB."""
    write_domains(folder, count, side=side, held_out=64)
    for letter in "AB":
        (folder / f"test{letter}").rename(folder / f"val{letter}")


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's ρ of two lists without equal values."""
    ranks = [np.argsort(np.argsort(each)).astype(float) for each in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def rows(log: Path) -> Iterator[tuple[str, float, float, float, float]]:
    """Yield every generator with ρ, and the PSNR of the chosen, of the last and the best epoch."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    scores = [event["scores"] for event in events if event["event"] == "validation"]
    for generator in scores[0]:
        distance = [each[generator]["random_kid"] for each in scores]
        psnr = [each[generator]["psnr"] for each in scores]
        rho = rank_correlation([-each for each in distance], psnr)
        yield generator, rho, psnr[int(np.argmin(distance))], psnr[-1], max(psnr)


def share_of_time(log: Path) -> float:
    """Return which share of the seconds of a run its validations took."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    spent = sum(event["seconds"] for event in events if event["event"] == "validation")
    whole = max(event["seconds"] for event in events if event["event"] == "losses")
    return float(spent / whole)


def main() -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    data = arguments.work / "data"
    if not data.exists():
        draw(data, arguments.images, arguments.side)
    found: list[tuple[float, float]] = []
    print("seed  generator  rho    chosen  last    best (PSNR in dB)")
    for seed in arguments.seeds:
        run = arguments.work / f"seed{seed}"
        epochs = {"n_epochs": arguments.epochs // 2, "n_epochs_decay": arguments.epochs // 2}
        sides = {"load_size": arguments.side, "crop_size": arguments.side}
        if not run.exists():
            train(data, run, settings_from(KEYS | epochs | sides | {"seed": seed}))
        for generator, rho, chosen, last, best in rows(run / "log.jsonl"):
            print(f"{seed:<5} {generator:<10} {rho:5.2f}  {chosen:6.2f}  {last:6.2f}  {best:6.2f}")
            found.append((rho, chosen - last))
        print(f"{seed:<5} validation took {share_of_time(run / 'log.jsonl'):.1%} of the time")
    rhos, gains = zip(*found, strict=True)
    print(f"mean rho {statistics.mean(rhos):.2f} (least {min(rhos):.2f}, greatest {max(rhos):.2f})")
    print(f"the chosen epoch against the last: {statistics.mean(gains):+.2f} dB")


if __name__ == "__main__":
    main()
