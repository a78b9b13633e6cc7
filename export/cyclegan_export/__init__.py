"""Make generators that can be shipped: a checkpoint becomes one ONNX file in the contract.

    from cyclegan_export import export_onnx

    exported = export_onnx(Path("latest_net_G_A.pth"), Path("horse2zebra.onnx"), precision="fp16")
    print(exported.card.parity)

It may import `cyclegan_batch`, never `cyclegan_train`, and is loaded only by the commands that need
it. What a name needs is loaded when it is first used, torch first of all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import export_bundle
    from .engine_export import export_engine
    from .onnx_export import Exported, export_onnx
    from .options import ExportOptions, export

__all__ = [
    "ExportOptions",
    "Exported",
    "export",
    "export_bundle",
    "export_engine",
    "export_onnx",
]

OPSET = 18
"""Of the files that are written: TensorRT 10.3 (JetPack 6) reads up to 20, and onnxruntime before
1.25 runs Pad of 19 and later on the CPU, frames and all (microsoft/onnxruntime#26393)."""

_HOMES = {
    "ExportOptions": ".options",
    "Exported": ".onnx_export",
    "export": ".options",
    "export_bundle": ".bundle",
    "export_engine": ".engine_export",
    "export_onnx": ".onnx_export",
}
"""The module that each public name comes from."""


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562), and keep it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
