"""Train photographs → labels on the paper's Cityscapes, unpaired, and score the result.

    python benchmarks/cityscapes.py DATA OUT [--minutes 60] [--every 2500] [--set ngf=16]

DATA holds trainA, testA (label maps) and trainB, testB (photographs), paired by their names, as in
the CycleGAN data set. The command writes to OUT: links to these images in OUT/data, the run in
OUT/run, the scores in OUT/curve.csv, curve.png and scores.json, and the network's label maps in
OUT/labels and sheet.png.

The training cannot use the pairs, since the sampler draws A and B independently of each other. The
last 400 training pairs are not trained on: they are a second test set. The network's own image of
128² is scored: each pixel gets the class of the nearest colour, and the image is enlarged by
repeating pixels to the size of the ground truth, 256², which is not resized. Ctrl-C or SIGTERM ends
the training early, and the weights of that point are scored.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "train")]

from cyclegan_train import settings as train_settings  # noqa: E402
from cyclegan_train.charts import curves_png, sheet_png  # noqa: E402
from cyclegan_train.data import Domain  # noqa: E402
from cyclegan_train.evaluation import (  # noqa: E402
    CITYSCAPES,
    RESULTS,
    LabelEvaluation,
    LabelScore,
    evaluate_labels,
)
from cyclegan_train.image_files import read_image  # noqa: E402
from cyclegan_train.progress import Progress  # noqa: E402
from cyclegan_train.run import train  # noqa: E402

from cyclegan_batch.frames import SizeRequirements  # noqa: E402
from cyclegan_batch.media.formats import natural_key  # noqa: E402
from cyclegan_batch.models.checkpoints.loading import load_generator  # noqa: E402

SETS = ("test", "held")
WEIGHTS = {"raw": "netG_B.safetensors", "EMA": "netG_B_ema.safetensors"}
PAPER = {"Zhu et al. 2017, table 3 (500 scenes)": (0.58, 0.22, 0.16)}
_BATCH = 16


def link_pictures(data: Path, target: Path, held_out: int) -> None:
    """Link trainA and trainB without their last pairs, these as heldA, heldB, and the test sets."""
    for letter in "AB":
        training = sorted((data / f"train{letter}").iterdir(), key=natural_key)
        parts = {
            "train": training[:-held_out],
            "held": training[-held_out:],
            "test": list((data / f"test{letter}").iterdir()),
        }
        for name, files in parts.items():
            folder = target / f"{name}{letter}"
            folder.mkdir(parents=True, exist_ok=True)
            for file in files:
                link = folder / file.name
                if not link.is_symlink():
                    link.symlink_to(file.resolve())


def draw_labels(weights: Path, photos: Path, out: Path, side: int, device: torch.device) -> None:
    """Translate the photographs and write the results under their names, as PNG."""
    network = load_generator(weights).network.to(device)
    config = train_settings.DataConfig(load_size=side, crop_size=side, flip=False)
    pictures = Domain(photos, config, channels=3, sizes=SizeRequirements(), budget=2**30)
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(pictures), _BATCH):
        numbers = range(start, min(start + _BATCH, len(pictures)))
        real = torch.stack([pictures.centred(number) for number in numbers])
        with torch.inference_mode():
            fake = network(real.to(device))
        grey = ((fake.float() + 1) * 127.5 + 0.5).floor().clamp(0, 255).to(torch.uint8)
        for number, pixels in zip(numbers, grey.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            Image.fromarray(pixels).save(out / f"{pictures.paths[number].stem}.png")


class Measured:
    """Scores a run at several points, and keeps the scores."""

    def __init__(self, out: Path, every: int, minutes: float) -> None:
        self.out, self._every, self._limit = out, every, 60 * minutes
        self.points: list[dict[str, Any]] = []
        self.seconds = 0.0
        """Seconds spent in training steps, without reading images and scoring."""
        self.cpu_seconds = 0.0
        """The same in CPU seconds of all cores, which other load of the machine hardly changes."""
        self.stopped = False
        self._since: tuple[float, float] | None = None
        self._reported = time.monotonic()
        self.side = 128
        self.device = torch.device("cpu")

    @contextlib.contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self.stopped = True

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, stop) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def enough(self) -> bool:
        return self.stopped or self.seconds >= self._limit

    def watch(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._since is not None:
            self.seconds += now - self._since[0]
            self.cpu_seconds += time.process_time() - self._since[1]
        if now - self._reported > 30:
            self._reported = now
            print(
                f"  step {progress.step}, {self.seconds / 60:.1f} minutes, "
                f"{progress.rate:.2f} steps/s",
                file=sys.stderr,
            )
        if progress.step % self._every == 0:
            self.score(progress.step)
        self._since = time.monotonic(), time.process_time()

    def score(self, step: int) -> None:
        """Score the checkpoint that was written at this step, on the test pairs."""
        for weights in WEIGHTS:
            evaluation = self.evaluation("test", weights)
            score = evaluation.rows[RESULTS]
            self.points.append(
                {"step": step}
                | self.spent()
                | {"weights": weights}
                | numbers(score)
                | {"ignores_its_input": evaluation.ignores_input}
            )
            print(
                row(f"step {step}, {weights}", score) + verdict(evaluation.ignores_input),
                flush=True,
            )

    def spent(self) -> dict[str, float]:
        return {
            "minutes": round(self.seconds / 60, 2),
            "cpu_minutes": round(self.cpu_seconds / 60, 2),
        }

    def evaluation(
        self, name: str, weights: str, train_truth: Path | None = None
    ) -> LabelEvaluation:
        drawn = self.out / "labels" / weights / name
        file = self.out / "run" / "checkpoints" / "latest" / WEIGHTS[weights]
        data = self.out / "data"
        draw_labels(file, data / f"{name}B", drawn, self.side, self.device)
        truth = data / f"{name}A"
        return evaluate_labels(drawn, truth, CITYSCAPES, resize=True, train_truth=train_truth)


def numbers(score: LabelScore) -> dict[str, float]:
    return {
        "pixel_accuracy": score.pixel_accuracy,
        "class_accuracy": score.class_accuracy,
        "class_iou": score.class_iou,
    }


def row(name: str, score: LabelScore) -> str:
    return f"{name:<40}" + "".join(f"{value:>16.3f}" for value in numbers(score).values())


def verdict(ignores: bool) -> str:
    return "   ignores its input" if ignores else ""


def run(given: argparse.Namespace) -> None:
    out: Path = given.out
    link_pictures(given.data, out / "data", given.held_out)
    values = dict(train_settings.values_from_toml(train_settings.recipe("cityscapes")))
    values |= {"ema": 0.999, "samples": 0, "tensorboard": False, "device": given.device}
    values |= {"save_every_steps": given.every}
    for pair in given.set:
        name, _, text = pair.partition("=")
        values[name] = train_settings.value_from_text(name, text)
    settings = train_settings.settings_for(out / "run", values, resume=False)
    measured = Measured(out, given.every, given.minutes)
    measured.side = settings.data.crop_size
    if given.device != "cpu" and torch.cuda.is_available():
        measured.device = torch.device("cuda")

    def say(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    heads = ("pixel accuracy", "class accuracy", "class IoU")
    print(f"{'test pairs':<40}" + "".join(f"{head:>16}" for head in heads))
    with measured.ended_by_signals():
        outcome = train(
            out / "data",
            out / "run",
            settings,
            stop=measured.enough,
            say=say,
            watch=measured.watch,
        )
    if not measured.points or measured.points[-1]["step"] != outcome.step:
        measured.score(outcome.step)
    finish(measured, outcome.step)


def finish(measured: Measured, step: int) -> None:
    """Score the last weights and the baselines on both test sets, and write all results."""
    out = measured.out
    scores: dict[str, Any] = {"step": step} | measured.spent()
    for name in SETS:
        print()
        for weights in WEIGHTS:
            last = weights == list(WEIGHTS)[-1]
            train_truth = out / "data" / "trainA" if last else None
            evaluation = measured.evaluation(name, weights, train_truth)
            result = evaluation.rows[RESULTS]
            scores[f"{name} {weights}"] = numbers(result) | {
                "pairs": evaluation.pictures,
                "ignores_its_input": evaluation.ignores_input,
                "ious": dict(result.ious),
            }
            title = f"{name}, {evaluation.pictures} pairs: {weights}"
            print(row(title, result) + verdict(evaluation.ignores_input), flush=True)
            for other, score in evaluation.rows.items():
                if last and other != RESULTS:
                    scores[f"{name} {other}"] = numbers(score)
                    print(row(other, score), flush=True)
    for name, three in PAPER.items():
        print(f"{name:<40}" + "".join(f"{value:>16.2f}" for value in three))
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    with (out / "curve.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(measured.points[0]))
        table.writeheader()
        table.writerows(measured.points)
    draw_curve(measured.points, out / "curve.png")
    draw_sheet(out)


def draw_curve(points: list[dict[str, Any]], path: Path) -> None:
    steps = sorted({int(point["step"]) for point in points})
    curves = {
        f"{key} {weights}": [p[key] for p in points if p["weights"] == weights]
        for key in ("class_iou", "class_accuracy")
        for weights in WEIGHTS
    }
    panels = tuple(
        (f"{key} by step, test pairs", tuple(f"{key} {weights}" for weights in WEIGHTS))
        for key in ("class_iou", "class_accuracy")
    )
    path.write_bytes(curves_png(steps, curves, panels))


def draw_sheet(out: Path, scenes: int = 6) -> None:
    """Write photograph, raw, EMA and ground truth of a few test scenes as one image."""
    truths = sorted((out / "data" / "testA").iterdir(), key=natural_key)
    step = max(1, len(truths) // scenes)
    rows = []
    for truth in truths[::step][:scenes]:
        drawn = [out / "labels" / weights / "test" / f"{truth.stem}.png" for weights in WEIGHTS]
        files = [out / "data" / "testB" / truth.name, *drawn, truth]
        pictures = [read_image(file)[0] for file in files]
        times = [len(pictures[-1]) // len(picture) for picture in pictures]
        pictures = [p.repeat(k, 0).repeat(k, 1) for p, k in zip(pictures, times, strict=True)]
        rows.append(list(zip(("photograph", *WEIGHTS, "truth"), pictures, strict=True)))
    (out / "sheet.png").write_bytes(sheet_png(rows))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="holds trainA, trainB, testA and testB")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--minutes", type=float, default=60, help="of training, at most")
    parser.add_argument("--every", type=int, default=2500, help="steps between two points")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    parser.add_argument("--held-out", type=int, default=400, help="training pairs kept out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key")
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
