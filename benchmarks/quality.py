"""Measure what each option of training is worth on drawn domains, whose truth is known.

    python benchmarks/quality.py WORK [--steps 1600] [--arms geometry ...] [--seeds 0 1 2]
    python benchmarks/quality.py WORK --cost          CPU time of a step of every arm

Draws the demo's valleys by day and by night, 64 pixels wide, into WORK/data. Trains every arm (the
reference's keys with one option changed, or several) for every seed, in WORK/ARM_STEPS/seedN where
it is not there yet; the small generator is the same in all. Then prints how near the translations
of 64 held-out images are to the truth, as the weights are at the end and as their moving average
(EMA), and by how much nearer than those of the arm's twin, which has the same seed and images and
the reference's keys, with its weights as they are. Last what `best`, which is chosen without a
truth, wins over the last epoch, in all the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "train")]

import torch  # noqa: E402
from cyclegan_train.cyclegan import CycleGAN  # noqa: E402
from cyclegan_train.evaluation.pictures import picture_score, ssim_function  # noqa: E402
from cyclegan_train.run import train  # noqa: E402
from cyclegan_train.settings import settings_from  # noqa: E402

from cyclegan_batch.demo.landscapes import DAY, Landscape, write_domains  # noqa: E402
from cyclegan_batch.frames import Pixels  # noqa: E402
from cyclegan_batch.models.checkpoints.loading import load_generator  # noqa: E402
from cyclegan_batch.temporal.consistency import FlickerMeter  # noqa: E402

Scores: TypeAlias = dict[str, dict[str, float]]
"""PSNR and SSIM by generator, e.g. ``latest/netG_A_ema``; of the drive also E_low and others."""

IMAGES = 400
"""Images of each domain, and steps of an epoch with one image each."""
FAITHFUL: dict[str, Any] = {
    "netG": "resnet_3blocks", "ngf": 8, "ndf": 16, "netD": "n_layers", "n_layers_D": 2,
    "upsample": "resize", "ema": 0.998, "preprocess": "crop", "load_size": 64, "crop_size": 48,
    "save_every_epochs": 100, "keep_last": 1, "save_every_steps": 0, "save_latest_every": 0.0,
    "precision": "bf16", "joint_identity": True, "fused_adam": True, "channels_last": True,
    "device": "cpu", "threads": 1, "tensorboard": False,
}  # fmt: skip
FEW = {"max_dataset_size": 50}
AUGMENTED = {"diffaugment": "color,translation,cutout"}
ARMS: dict[str, dict[str, Any]] = {
    "faithful": {},
    "lr4": {"lr": 4e-4},
    "lr8": {"lr": 8e-4},
    "no_identity": {"lambda_identity": 0.0},
    "geometry": {"lambda_geometry": 2.0},
    "batch4": {"batch_size": 4, "lr": 4e-4},
    "identity_start": {"init_from": "identity", "warm_up": IMAGES},
    "temporal": {"lambda_temporal": 10.0},
    "best": {"lr": 8e-4, "lambda_geometry": 2.0},
    "best_no_identity": {"lr": 8e-4, "lambda_geometry": 2.0, "lambda_identity": 0.0},
    "few": FEW,
    "few_augmented": FEW | AUGMENTED,
}


def keys_of(arm: str, steps: int, seed: int) -> dict[str, Any]:
    """Return the keys of a run whose generators learn from as many images as ``steps``.

    The rate is full in the first half of the epochs; steps before the first epoch replace one.
    """
    keys = FAITHFUL | ARMS[arm] | {"seed": seed}
    epochs = steps // keys.get("max_dataset_size", IMAGES)
    full = epochs // 2 - keys.get("warm_up", 0) // IMAGES
    return keys | {"n_epochs": full, "n_epochs_decay": epochs - epochs // 2}


def draw(folder: Path) -> None:
    """Draw 400 images of each domain, 64 pairs to test on, and 64 images of each to validate on."""
    write_domains(folder, IMAGES, side=64, held_out=128)
    for letter in "AB":
        (folder / f"val{letter}").mkdir()
        for path in sorted((folder / f"test{letter}").iterdir())[64:]:
            path.rename(folder / f"val{letter}" / path.name)


def pictures(folder: Path) -> list[Pixels]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())]


def translated(generator: Path, images: Sequence[Pixels]) -> Iterator[Pixels]:
    network = load_generator(generator).network
    with torch.inference_mode():
        for image in images:
            values = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            (out,) = network(values)
            yield ((out + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def near(images: Sequence[Pixels], truth: Sequence[Pixels]) -> dict[str, float]:
    """Return the mean PSNR and SSIM of images to their truth."""
    ssim = ssim_function()
    scores = [picture_score(*pair, ssim)[:2] for pair in zip(images, truth, strict=True)]
    return dict(zip(("psnr", "ssim"), np.mean(scores, 0).tolist(), strict=True))


def drive() -> list[Pixels]:
    """Return two seconds of a valley through which the camera drifts, 128 lines high."""
    valley = Landscape((128, 228), seed=7)
    return [valley.at(frame / 25, DAY) for frame in range(50)]


def flicker(generator: Path) -> dict[str, float]:
    """Return how much the translated drive flickers."""
    frames, meter = drive(), FlickerMeter(1)
    for frame, out in zip(frames, translated(generator, frames), strict=True):
        meter.add(frame, [out])
    (found,) = meter.results()
    return {"E_low": found.coarse_error, "pump": found.pump, "gradient": found.sharpness}


def scores_of(run: Path, data: Path) -> Scores:
    """Return the scores of the generators of a run, which are kept in its scores.json."""
    kept = run / "scores.json"
    if kept.exists():
        found: Scores = json.loads(kept.read_text())
        return found
    tests = {letter: pictures(data / f"test{letter}") for letter in "AB"}
    scores: Scores = {}
    for checkpoint in ("latest", "best"):
        for letter, other in ("AB", "BA"):
            for kind in ("", "_ema"):
                name = f"{checkpoint}/netG_{letter}{kind}"
                path = run / "checkpoints" / f"{name}.safetensors"
                scores[name] = near(list(translated(path, tests[letter])), tests[other])
                if name.startswith("latest/netG_A"):
                    scores[name] |= flicker(path)
    kept.write_text(json.dumps(scores, indent=1))
    return scores


def references(data: Path) -> str:
    """Return the scores of the inputs, and of the mean colour of the truth."""
    tests = {letter: pictures(data / f"test{letter}") for letter in "AB"}
    lines = []
    for letter, other in ("AB", "BA"):
        truth = tests[other]
        colour = np.rint(np.mean(truth, (0, 1, 2))).astype(np.uint8)
        rows = {
            "the input": tests[letter],
            "mean colour": [np.broadcast_to(colour, image.shape) for image in truth],
        }
        for name, images in rows.items():
            found = near(images, truth)
            lines.append(
                f"{letter}to{other} {name}: {found['psnr']:.2f} dB, SSIM {found['ssim']:.3f}"
            )
    return "\n".join(lines)


def mean_of(score: str, scores: Scores, kind: str) -> float:
    """Return the mean of both directions, of the weights as they are ("") or their "_ema"."""
    return statistics.mean(scores[f"latest/netG_{letter}{kind}"][score] for letter in "AB")


def with_error(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean and its standard error."""
    mean = f"{statistics.mean(values):+.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.{digits}f}"


def twin_of(arm: str) -> str:
    return "few" if arm.startswith("few") else "faithful"


def table(arm: str, runs: Mapping[int, Scores], twins: Mapping[int, Scores]) -> Iterator[str]:
    """Yield the scores of an arm in both kinds of weights, and its gain over its twin."""
    for kind in ("", "_ema"):
        each = [mean_of("psnr", scores, kind) for scores in runs.values()]
        sides = [
            statistics.mean(scores[f"latest/netG_{letter}{kind}"][what] for scores in runs.values())
            for what in ("psnr", "ssim")
            for letter in "AB"
        ]
        gains = [
            mean_of("psnr", runs[seed], kind) - mean_of("psnr", twins[seed], "") for seed in runs
        ]
        same = [
            mean_of("psnr", runs[seed], kind) - mean_of("psnr", twins[seed], kind) for seed in runs
        ]
        likeness = [
            mean_of("ssim", runs[seed], kind) - mean_of("ssim", twins[seed], "") for seed in runs
        ]
        yield (
            f"{arm + kind:<22} {statistics.mean(each):6.2f} dB (AtoB {sides[0]:.2f}, BtoA "
            f"{sides[1]:.2f}; SSIM {sides[2]:.3f}, {sides[3]:.3f})  over the twin as it is "
            f"{with_error(gains)} dB, SSIM {with_error(likeness, 3)}, in the same weights "
            f"{with_error(same)} dB  " + " ".join(f"{gain:+.2f}" for gain in gains)
        )
        ratios = {
            what: statistics.mean(
                runs[seed][f"latest/netG_A{kind}"][what] / twins[seed][f"latest/netG_A{kind}"][what]
                for seed in runs
            )
            for what in ("E_low", "pump", "gradient")
        }
        words = ", ".join(f"{what} {ratio:.2f}" for what, ratio in ratios.items())
        yield f"{'':<22} of the twin's in the same weights: {words}"


def choice(every: Sequence[Scores]) -> str:
    """Return how the generators of ``best`` compare with those of the last epoch."""
    gains = [
        scores[f"best/netG_{letter}{kind}"]["psnr"] - scores[f"latest/netG_{letter}{kind}"]["psnr"]
        for scores in every
        for letter in "AB"
        for kind in ("", "_ema")
    ]
    won, lost = (sum(sign * gain > 0.005 for gain in gains) for sign in (1, -1))
    return (
        f"best against the last epoch, {len(gains)} generators of {len(every)} runs: better {won}, "
        f"worse {lost}, the same {len(gains) - won - lost}; {with_error(gains)} dB, from "
        f"{min(gains):+.2f} to {max(gains):+.2f}"
    )


def cost(rounds: int = 5, steps: int = 6) -> None:
    """Print the CPU time of a step of every arm over that of `faithful`, in alternating rounds."""
    models, times = {}, {arm: [] for arm in ARMS}  # type: ignore[var-annotated]
    for arm in ARMS:
        settings = settings_from(keys_of(arm, 1600, 0))
        shape = (settings.data.batch_size, 3, settings.data.crop_size, settings.data.crop_size)
        models[arm] = CycleGAN(settings.train), torch.rand(shape) * 2 - 1, torch.rand(shape) * 2 - 1
    for number in range(rounds + 1):
        for arm, (model, *images) in models.items():
            begin = time.process_time()
            for _ in range(steps):
                model.optimize_parameters(*images)
            if number:
                times[arm].append((time.process_time() - begin) / steps)
    for arm, each in times.items():
        ratios = [one / plain for one, plain in zip(each, times["faithful"], strict=True)]
        print(
            f"{arm:<16} {statistics.median(each) * 1e3:.0f} ms, {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    """Train what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--cost", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cost:
        cost()
        return
    data = arguments.work / "data"
    if not data.exists():
        draw(data)

    def run_of(arm: str, seed: int) -> Path:
        run: Path = arguments.work / f"{arm}_{arguments.steps}" / f"seed{seed}"
        if not run.exists():
            train(data, run, settings_from(keys_of(arm, arguments.steps, seed)), say=print)
        return run

    for arm in arguments.arms:
        for seed in arguments.seeds:
            run_of(arm, seed)
    if arguments.train_only:
        return
    print(references(data))
    for arm in arguments.arms:
        runs, twins = (
            {seed: scores_of(run_of(each, seed), data) for seed in arguments.seeds}
            for each in (arm, twin_of(arm))
        )
        print("\n".join(table(arm, runs, twins)), flush=True)
    kept = sorted(arguments.work.glob("*/seed*/scores.json"))
    print(choice([json.loads(path.read_text()) for path in kept]))


if __name__ == "__main__":
    main()
