"""Score pictures: against their paired truth, as label maps, or as a set against another set.

What the numbers are:

- PSNR, SSIM and L1 of every picture against its truth, then the mean over the pictures. SSIM is
  that of Wang, Bovik, Sheikh, Simoncelli (IEEE TIP 13, 2004): a Gaussian window of 11 × 11 with
  σ = 1.5, K1 = 0.01, K2 = 0.03, of every channel, pictures reflected at their edges.
- Label maps: every pixel is of the class whose palette colour is nearest in RGB. Pixel accuracy,
  class accuracy and class IoU are those of Long, Shelhamer, Darrell (CVPR 2015, section 5), over
  the pixels of all pictures together, as in the reference implementation's script for Cityscapes;
  a class that is nowhere is left out of a mean, where that script counts it as 0.
- FID (Heusel et al., NeurIPS 2017) and KID (Bińkowski et al., ICLR 2018) of two sets of pictures
  that need not be pairs, by the features of InceptionV3.

The truth is never resized: scores of different networks against the same truth stay comparable.
Beside the results stand predictors that know nothing, made of what was given: a number means
something only above theirs.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

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
from .pairs import INPUT, RESULTS
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
    "LabelEvaluation",
    "LabelScore",
    "Palette",
    "PictureEvaluation",
    "PictureScore",
    "SetEvaluation",
    "as_json",
    "evaluate_labels",
    "evaluate_pictures",
    "evaluate_sets",
    "inception_features",
    "palette_from",
]


def as_json(evaluation: PictureEvaluation | LabelEvaluation | SetEvaluation) -> dict[str, Any]:
    """Return it for JSON, which has no infinity: None stands for it."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    plained: dict[str, Any] = plain(asdict(evaluation))
    return plained
