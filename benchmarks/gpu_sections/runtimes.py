"""The exported file on onnxruntime's CUDA provider and on TensorRT: parity, rate, and notes.

``--backend auto`` may choose onnxruntime on a GPU only after a row within its class, without a note
that nodes are left to the CPU. Its rate against `host` decides which of the two `auto` prefers.

The way with the best rate becomes the default of `onnxruntime_cuda.Way`: `plain` unless `bound` is
5 % above it, `graph` only if it is 5 % above `bound`, and `NHWC` likewise. The fewest contexts
within 5 % of the best become the default. `half norm` is a file of ``--half-norm``: if it is in its
class and quicker, fp16 files for GPUs are to be exported so. TensorRT builds an engine for minutes,
so its rows need ``--sections runtimes --minutes 8``; they decide whether its graph stays on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cyclegan_batch.backends import open_backend
from cyclegan_batch.backends.common import Backend
from cyclegan_batch.backends.onnxruntime_cuda import Way, open_onnxruntime_cuda, sees_cuda
from cyclegan_batch.machine import cpu_threads
from cyclegan_batch.models.model import open_model
from cyclegan_batch.models.parity import REQUIRED_CLASS, parity

from .measuring import Bench, Job, NotRunError, frames_per_second, pictures, required
from .parity import described

BATCH = 8

ROWS: tuple[tuple[str, str, Way, bool, int], ...] = (
    ("fp16", "fp16", "plain", False, 2),
    ("fp16", "fp16", "bound", False, 2),
    ("fp16", "fp16", "graph", False, 2),
    ("fp16", "half norm", "bound", False, 2),
    ("fp16", "fp16", "bound", True, 2),
    ("fp16", "fp16", "bound", False, 1),
    ("fp16", "fp16", "graph", False, 1),
    ("fp16", "fp16", "bound", False, 3),
    ("tf32", "fp32", "bound", False, 2),
    ("fp32", "fp32", "bound", False, 2),
    ("fp16", "half norm", "graph", True, 2),
)
"""Of onnxruntime: the precision, the file, the way, whether the layout is NHWC, the contexts."""


def jobs(bench: Bench) -> Iterator[Job]:
    required("onnxruntime", "onnxscript")
    if bench.cuda and not sees_cuda():
        raise NotRunError("this onnxruntime has no CUDA: onnxruntime-gpu has to be carried along")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = bench.checkpoint_in(folder)
        yield "export fp32", partial(export, checkpoint, folder / "fp32.onnx", "fp32")
        if not bench.cuda:
            on_cpu = partial(onnxruntime_on_cpu, folder / "fp32.onnx")
            yield "onnxruntime fp32", partial(of_file, bench, checkpoint, on_cpu, "fp32", 1)
            return
        for file, half_norm in (("fp16", False), ("half norm", True)):
            job = partial(export, checkpoint, folder / f"{file}.onnx", "fp16", half_norm=half_norm)
            yield f"export {file}", job
        for precision, file, way, nhwc, contexts in ROWS:
            opened = partial(
                on_onnxruntime, bench, folder / f"{file}.onnx", precision, way, nhwc, contexts
            )
            words = [precision, *(["half norm"] if file == "half norm" else []), way]
            words += [*(["NHWC"] if nhwc else []), f"{contexts} contexts"]
            name = f"onnxruntime, {', '.join(words)}"
            yield name, partial(of_file, bench, checkpoint, opened, precision, contexts)
        for file, graph, contexts in (
            ("fp16", True, 2), ("fp16", False, 2), ("half norm", True, 2), ("fp16", True, 3)
        ):  # fmt: skip
            opened = partial(on_tensorrt, bench, folder / f"{file}.onnx", folder, graph)
            name = f"tensorrt, {file}, {'graph, ' if graph else ''}{contexts} contexts"
            yield name, partial(of_file, bench, checkpoint, opened, "fp16", contexts)


def export(
    checkpoint: Path, path: Path, precision: Any, *, half_norm: bool = False
) -> dict[str, Any]:
    from cyclegan_export import export_onnx

    # The parity of a half-precision file is measured on the GPU below.
    verified = precision == "fp32"
    exported = export_onnx(
        checkpoint, path, precision=precision, half_norm=half_norm, verify=verified
    )
    if exported.parity is None:
        return {"mb": path.stat().st_size / 1e6}
    return described(exported.parity, REQUIRED_CLASS[precision])


def onnxruntime_on_cpu(path: Path) -> Backend:
    return open_backend(open_model(path), backend="onnxruntime", device="cpu")


def on_onnxruntime(
    bench: Bench, path: Path, precision: str, way: Way, nhwc: bool, contexts: int
) -> Backend:
    return open_onnxruntime_cuda(
        open_model(path),
        device=bench.device,
        precision=precision,
        threads=cpu_threads(),
        contexts=contexts,
        way=way,
        nhwc=nhwc,
    )


def on_tensorrt(bench: Bench, path: Path, folder: Path, graph: bool) -> Backend:
    required("tensorrt")
    from cyclegan_batch.backends.tensorrt import open_tensorrt

    shapes = [(BATCH, bench.side, bench.side)]
    return open_tensorrt(
        open_model(path), device=bench.device, shapes=shapes, cache_dir=folder, graph=graph
    )


def of_file(
    bench: Bench, checkpoint: Path, opened: Callable[[], Backend], precision: str, contexts: int
) -> dict[str, Any]:
    side = bench.side
    frames = pictures(side, side, BATCH if bench.cuda else 1)
    reference = open_backend(open_model(checkpoint), device="cpu", precision="fp32")
    expected = reference.infer(frames)
    reference.close()
    first = opened()
    notes = list(map(str, first.notes))
    backends = [first, *(first.fork() for _ in range(contexts - 1))]
    try:
        fps = frames_per_second(backends, frames, 1.5 if bench.cuda else 0.01)
        # A recorded graph has been replayed by now.
        out = first.infer(frames)
    finally:
        for backend in backends:
            backend.close()
    return (
        {"fps": fps, "batch": len(frames)}
        | described(parity(out, expected), REQUIRED_CLASS[precision])
        | ({"notes": notes} if notes else {})
    )
