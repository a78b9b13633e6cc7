"""Push video files and image folders through a CycleGAN generator, as fast as the machine allows.

    from cyclegan_batch import open_generator, translate

    translate("in.mp4", "out.mp4", model="day2night.onnx", crf=20)
    fake_B = open_generator("day2night.onnx")(real_A)  # uint8 RGB, (N, H, W, 3)

Importing this package loads nothing heavy; what a name needs is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .api import translate
    from .errors import (
        BackendError,
        BackendUnavailableError,
        ContradictionError,
        CycleganBatchError,
        InputError,
        ModelError,
        OutOfMemoryError,
        OutputError,
        OutputExistsError,
        OutputInUseError,
    )
    from .generator import open_generator
    from .options import TranslateOptions

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "ContradictionError",
    "CycleganBatchError",
    "InputError",
    "ModelError",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "OutputInUseError",
    "TranslateOptions",
    "__version__",
    "open_generator",
    "translate",
]

_HOMES = {
    "open_generator": ".generator",
    "translate": ".api",
    "TranslateOptions": ".options",
}
"""The module that each public name comes from; the errors are the rest."""


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562), and keep it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, ".errors"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
