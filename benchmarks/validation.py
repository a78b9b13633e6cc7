"""Measure what validation without a truth tells: its rank correlation with PSNR to the truth.

    python benchmarks/validation.py WORK [--seeds 0 1 2] [--side 64]

Draws the demo's valleys by day and by night into WORK/data, with pairs in valA and valB, and trains
a small CycleGAN on them for every seed, in WORK/seedN (one that is there already is used as it is).
Then scores the generators of every epoch by what sees no truth (the unpaired score, and
random-feature KID) and by PSNR to the truth. Prints for every seed, direction and kind of weights
Spearman's rank correlation of each with PSNR over the epochs, and how much less PSNR than the best
epoch the one has that is chosen by it, and the last one; then what share of the time of the runs
their validations took.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "train")]

from cyclegan_train.cyclegan import CycleGAN  # noqa: E402
from cyclegan_train.data import load_domains  # noqa: E402
from cyclegan_train.run import train  # noqa: E402
from cyclegan_train.run_images import trainable_sizes  # noqa: E402
from cyclegan_train.settings import settings_from, values_from_toml  # noqa: E402
from cyclegan_train.validation import Scores, Validation  # noqa: E402
from cyclegan_train.validation_images import set_apart  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from cyclegan_batch.demo.landscapes import write_domains  # noqa: E402

KEYS: dict[str, Any] = {
    "netG": "resnet_3blocks", "ngf": 8, "ndf": 16, "netD": "n_layers", "n_layers_D": 2,
    "upsample": "resize", "lambda_identity": 0.0, "lr": 4e-4, "ema": 0.998, "preprocess": "crop",
    "n_epochs": 8, "n_epochs_decay": 8, "save_every_epochs": 1, "keep_last": 0, "device": "cpu",
    "threads": 1, "tensorboard": False,
}  # fmt: skip
BLIND = ("unpaired", "random_kid")
"""The scores that see no truth, less being better."""


def draw(folder: Path, count: int, side: int) -> None:
    """Draw the domains, whose pairs are in valA and valB."""
    write_domains(folder, count, side=side, held_out=64)
    for letter in "AB":
        (folder / f"test{letter}").rename(folder / f"val{letter}")


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's ρ of two lists without equal values."""
    ranks = [np.argsort(np.argsort(each)).astype(float) for each in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def scores_of(run: Path, data: Path) -> list[Scores]:
    """Return the scores of the generators of every epoch of a run."""
    values = values_from_toml(run / "config.toml")
    settings = settings_from(values | {"val_truth": "pictures"})
    model = CycleGAN(settings.train)
    sizes = trainable_sizes(model, settings)
    training = load_domains(
        (data / "trainA", data / "trainB"), settings.data, channels=(3, 3), sizes=sizes
    )
    images = set_apart(training, (data / "valA", data / "valB"), settings, sizes, None)
    validation = Validation(images, settings, model.device, len(training[0]))
    found = []
    for epoch in sorted((run / "checkpoints").glob("epoch_*")):
        for letter in "AB":
            for name, file in (("netG", f"netG_{letter}"), ("ema", f"netG_{letter}_ema")):
                weights = load_file(epoch / f"{file}.safetensors")
                getattr(model, f"{name}_{letter}").load_state_dict(weights)
        found.append(validation.scores(model))
    return found


def rows(epochs: Sequence[Scores]) -> Iterator[tuple[str, list[tuple[float, float]], float]]:
    """Yield every generator with ρ and the loss of PSNR of every blind score, and of the last."""
    for generator in epochs[0]:
        psnr = [each[generator]["psnr"] for each in epochs]
        found = []
        for name in BLIND:
            score = [each[generator][name] for each in epochs]
            rho = rank_correlation([-each for each in score], psnr)
            found.append((rho, max(psnr) - psnr[int(np.argmin(score))]))
        yield generator, found, max(psnr) - psnr[-1]


def share_of_time(log: Path) -> float | None:
    """Return which share of the seconds of a run its validations took; None where it has none."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    spent = [event["seconds"] for event in events if event["event"] == "validation"]
    whole = max(event["seconds"] for event in events if event["event"] == "losses")
    return sum(spent) / whole if spent else None


def main() -> None:
    """Train what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--images", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = arguments.work / "data"
    if not data.exists():
        draw(data, arguments.images, arguments.side)
    every = []
    print("seed  generator  unpaired score  random-feature KID  last epoch (rho, PSNR lost)")
    for seed in arguments.seeds:
        run = arguments.work / f"seed{seed}"
        sides = {"load_size": arguments.side, "crop_size": arguments.side}
        if not run.exists():
            train(data, run, settings_from(KEYS | sides | {"seed": seed}))
        for generator, found, lost in rows(scores_of(run, data)):
            words = "  ".join(f"{rho:5.2f} {less:5.2f} dB" for rho, less in found)
            print(f"{seed:<5} {generator:<10} {words}  {lost:5.2f} dB", flush=True)
            every.append([*(value for pair in found for value in pair), lost])
        share = share_of_time(run / "log.jsonl")
        print(
            f"{seed:<5} validation: {'none' if share is None else format(share, '.1%')} of the time"
        )
    mean = np.mean(every, 0)
    print("mean             " + "  ".join(f"{value:5.2f}" for value in mean))


if __name__ == "__main__":
    main()
