"""Train the generators that `cyclegan_batch` runs: the full CycleGAN, on unpaired images.

    from cyclegan_train import CycleGAN, TrainConfig

    model = CycleGAN(TrainConfig(netG="resnet_6blocks", device="cpu"))
    losses = model.optimize_parameters(real_A, real_B)  # (N, C, H, W) in [-1, 1]

This package imports `cyclegan_batch` and never `cyclegan_export`. A public name imports its module,
and torch with it, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import TrainConfig
    from .cyclegan import CycleGAN
    from .evaluation import (
        evaluate_labels,
        evaluate_pictures,
        evaluate_sets,
        inception_features,
        palette_from,
    )

__all__ = [
    "CycleGAN",
    "TrainConfig",
    "evaluate_labels",
    "evaluate_pictures",
    "evaluate_sets",
    "inception_features",
    "palette_from",
]

_MODULES = {
    "CycleGAN": ".cyclegan",
    "TrainConfig": ".config",
    "evaluate_labels": ".evaluation",
    "evaluate_pictures": ".evaluation",
    "evaluate_sets": ".evaluation",
    "inception_features": ".evaluation",
    "palette_from": ".evaluation",
}
"""The module that each public name comes from."""


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
