"""Scores of images: against their paired truth, as label maps, or as a set against another set.

- PSNR, SSIM and L1 (pictures.py) of every image against its truth, then the mean over the images.
  SSIM is that of Wang, Bovik, Sheikh, Simoncelli (IEEE TIP 13, 2004): a Gaussian window of 11 × 11
  with σ = 1.5, K1 = 0.01, K2 = 0.03, for every channel, images reflected at their edges.
- Label maps (labels.py): the class of a pixel is the one whose palette colour is nearest in RGB.
  Pixel accuracy, class accuracy and class IoU are those of Long, Shelhamer, Darrell (CVPR 2015,
  section 5), over the pixels of all images together, as in the reference implementation's script
  for Cityscapes; a class that does not occur is left out of a mean, where that script counts it as
  0.
- FID (Heusel et al., NeurIPS 2017) and KID (Bińkowski et al., ICLR 2018) of two sets of images
  (sets.py), which need not be pairs, by the features of InceptionV3.

The truth is never resized, so that scores of different networks against it stay comparable. The
tables also score predictors that never see the input (the mean colour of the truth, the commonest
label of every pixel, …): a score means something only above theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from .labels import (
    CITYSCAPES,
    MODE,
    OTHER_LABELS,
    LabelEvaluation,
    LabelScore,
    Palette,
    evaluate_labels,
    palette_from,
)
from .pairs import INPUT, RESULTS, Watch
from .pictures import MEAN_COLOUR, OTHER_TRUTH, PictureEvaluation, PictureScore, evaluate_pictures
from .sets import SetEvaluation, evaluate_sets, inception_features

__all__ = [
    "CITYSCAPES",
    "INPUT",
    "MEAN_COLOUR",
    "MODE",
    "OTHER_LABELS",
    "OTHER_TRUTH",
    "RESULTS",
    "Evaluation",
    "LabelEvaluation",
    "LabelScore",
    "Palette",
    "PictureEvaluation",
    "PictureScore",
    "SetEvaluation",
    "as_json",
    "evaluate",
    "evaluate_labels",
    "evaluate_pictures",
    "evaluate_sets",
    "inception_features",
    "palette_from",
]


Evaluation: TypeAlias = PictureEvaluation | LabelEvaluation | SetEvaluation


def evaluate(
    results: Path,
    *,
    truth: Path | None = None,
    source: Path | None = None,
    palette: str | None = None,
    train_truth: Path | None = None,
    resize: bool = False,
    real: Path | None = None,
    inception: Path | None = None,
    watch: Watch = lambda done, total: None,
) -> Mapping[str, Evaluation]:
    """Return every score that the named folders allow, by its kind.

    ``truth`` gives ``labels`` with a ``palette`` and ``pictures`` without; ``real`` gives ``sets``,
    by the weights ``inception``. The other arguments are those of `evaluate_labels` and
    `evaluate_pictures`. Raises InputError, ModelError, BackendUnavailableError.
    """
    # Before the images, which take minutes to read, so that a missing file is reported at once.
    features = inception_features(inception) if real else None
    scores: dict[str, Evaluation] = {}
    if truth and palette:
        scores["labels"] = evaluate_labels(
            results,
            truth,
            palette_from(palette),
            source=source,
            train_truth=train_truth,
            resize=resize,
            watch=watch,
        )
    elif truth:
        scores["pictures"] = evaluate_pictures(
            results, truth, source=source, resize=resize, watch=watch
        )
    if real and features:
        scores["sets"] = evaluate_sets(results, real, features, watch=watch)
    return scores


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """Return an evaluation for JSON, where None stands for infinity, which JSON does not have."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: plain(each) for key, each in asdict(evaluation).items()}
