"""The names in the folder of a training run.

    RUN/
      config.toml               every key of the run, and what it means
      run.json                  versions, the machine, the data and their digest, what was skipped
      log.jsonl                 one JSON object per line: losses, epochs, health warnings
      losses.png                their curves
      validation.png            the scores of both generators, by which best is chosen
      index.html                all sheets and curves on one page, with file names and scores
      samples/epoch_0001.png    the generators' outputs for the same images after every epoch
                                (minute_1: after a minute; stopped: where the run has stopped)
      samples/epoch_0001.mp4    the beginning of the clip sample_video, translated
      tensorboard/              where TensorBoard is installed
      checkpoints/
        state.pt                all that the next step depends on: what --resume reads
        latest/ best/ epoch_0005/
          netG_A.safetensors    a generator with its card (netG_A_ema: its moving average)
          checkpoint.json       both cards in one file, for people

Training writes it, a translation finds its generator in it, and an export measures on the images
that it names. Where validation has scored both files of a generator, the cards tell which is
better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CONFIG = "config.toml"
DESCRIPTION = "run.json"
LOG = "log.jsonl"
CURVES = "losses.png"
VALIDATION = "validation.png"
INDEX = "index.html"
SAMPLES = "samples"
STOPPED = "stopped"
VIDEO_ENDING = ".mp4"
"""The ending of a translated clip among the samples."""
TENSORBOARD = "tensorboard"

CHECKPOINTS = "checkpoints"
STATE = "state.pt"
LATEST = "latest"
BEST = "best"
CARDS = "checkpoint.json"

GENERATOR_FORMAT = "cyclegan-batch generator 1"
"""What the metadata of a generator's file state as its format."""

EMA_ENDING = "_ema.safetensors"
"""The ending of the file of a generator whose weights are moving averages."""


class Score(NamedTuple):
    """A score that a validation gives a generator, and its card holds."""

    words: str
    more_is_better: bool


SCORES = {
    "iou": Score("class IoU", True),
    "psnr": Score("PSNR in dB", True),
    "ssim": Score("SSIM", True),
    "kid": Score("KID", False),
    "unpaired": Score("unpaired score", False),
    "fid": Score("FID", False),
    "random_kid": Score("random-feature KID", False),
}
"""By their names in a card. The first of these that a generator has is the one that decides."""


def deciding(scores: Mapping[str, object]) -> str:
    """Return the name of the score by which generators are compared; "" where there is none."""
    return next((name for name in SCORES if name in scores), "")


def is_better(name: str, score: float, other: float) -> bool:
    """Return whether a score of that name is better than another one; NaN is worse than any."""
    if math.isnan(score) or math.isnan(other):
        return math.isnan(other) and not math.isnan(score)
    return score > other if SCORES[name].more_is_better else score < other


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is that of a run, which may have no checkpoint yet."""
    return (folder / DESCRIPTION).is_file() and (folder / CONFIG).is_file()


def epoch_name(epoch: int) -> str:
    """Return the name of what is kept of one epoch: its checkpoint and its sheet of samples."""
    return f"epoch_{epoch:04d}"


def minute_name(minutes: int) -> str:
    """Return the name of the sheet of samples that is drawn after so many minutes."""
    return f"minute_{minutes}"


def generator_name(letter: str, *, ema: bool = False) -> str:
    """Return the file of the generator that reads domain ``letter``."""
    return f"netG_{letter}{EMA_ENDING if ema else '.safetensors'}"


def reference_name(network: str) -> str:
    """Return the file of a network such as ``G_A``, as the reference implementation calls it."""
    return f"latest_net_{network}.pth"
