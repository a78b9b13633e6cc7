"""The exported file on onnxruntime's CUDA provider: its parity, its rate, and its notes.

``--backend auto`` may choose onnxruntime on a GPU only after a row within its class, without a note
that nodes are left to the CPU. Its rate against `host` decides which of the two `auto` prefers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cyclegan_batch.backends import open_backend
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import REQUIRED_CLASS, parity

from .measuring import Bench, Job, NotRunError, pictures, required
from .parity import described


def jobs(bench: Bench) -> Iterator[Job]:
    required("onnxruntime", "onnxscript")
    import onnxruntime

    if bench.cuda and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise NotRunError("this onnxruntime has no CUDA: onnxruntime-gpu has to be carried along")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = bench.checkpoint_in(folder)
        for precision in ("fp32", "fp16") if bench.cuda else ("fp32",):
            job = partial(export, checkpoint, folder / f"{precision}.onnx", precision)
            yield f"export {precision}", job
        for precision, file in bench.some((("fp32", "fp32"), ("tf32", "fp32"), ("fp16", "fp16"))):
            model = folder / f"{file}.onnx"
            yield f"onnxruntime {precision}", partial(of_file, bench, checkpoint, model, precision)


def export(checkpoint: Path, path: Path, precision: Any) -> dict[str, Any]:
    from cyclegan_export import export_onnx

    exported = export_onnx(checkpoint, path, precision=precision)
    assert exported.parity is not None
    return described(exported.parity, REQUIRED_CLASS[precision])


def of_file(bench: Bench, checkpoint: Path, path: Path, precision: str) -> dict[str, Any]:
    side = bench.side
    frames = pictures(side, side, 8 if bench.cuda else 1)
    reference = open_backend(open_model(checkpoint), device="cpu", precision="fp32")
    expected = reference.infer(frames)
    reference.close()
    backend = open_backend(
        open_model(path), backend="onnxruntime", device=bench.device, precision=precision
    )
    out, count, begin = backend.infer(frames), 0, time.perf_counter()
    while count == 0 or (bench.cuda and time.perf_counter() - begin < 1.5):
        backend.infer(frames)
        count += 1
    fps = count * len(frames) / (time.perf_counter() - begin)
    notes = list(map(str, backend.notes))
    backend.close()
    needed = REQUIRED_CLASS[precision]
    return (
        {"fps": fps, "batch": len(frames)}
        | described(parity(out, expected), needed)
        | ({"notes": notes} if notes else {})
    )
