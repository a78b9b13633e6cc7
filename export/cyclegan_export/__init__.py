"""Export generators for deployment: a checkpoint becomes one ONNX file inside the contract.

    from cyclegan_export import export_onnx

    exported = export_onnx(Path("latest_net_G_A.pth"), Path("horse2zebra.onnx"), precision="fp16")
    print(exported.card.parity)

This package imports `cyclegan_batch` and never `cyclegan_train`. Only the commands that need it
import it, and a public name imports its module, and torch with it, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bundle import export_bundle
    from .engine_export import export_engine
    from .onnx_export import Exported, export_onnx
    from .options import ExportOptions
    from .outputs import export

__all__ = [
    "ExportOptions",
    "Exported",
    "export",
    "export_bundle",
    "export_engine",
    "export_onnx",
]

OPSET = 18
"""The opset of the files that are written. TensorRT 10.3 (JetPack 6) reads up to 20, and
onnxruntime before 1.25 moves every frame to the CPU for a Pad of opset 19 or later
(microsoft/onnxruntime#26393)."""

_MODULES = {
    "ExportOptions": ".options",
    "Exported": ".onnx_export",
    "export": ".outputs",
    "export_bundle": ".bundle",
    "export_engine": ".engine_export",
    "export_onnx": ".onnx_export",
}
"""The module of each public name."""


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562), and keep it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
