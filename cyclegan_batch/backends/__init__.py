"""The runtimes behind one face: `open_backend` gives a `Backend`, whatever runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import BackendError, BackendUnavailableError, ModelError
from ..machine import cpu_threads, nvidia_gpus
from ..models.model import Model, writes_out_its_norm
from ..wording import Note, printable
from .common import Backend

OF_ONNX = ("onnxruntime", "openvino", "tensorrt")
"""The runtimes of an ONNX file."""

BACKENDS = (*OF_ONNX, "torch")
"""All of them; torch runs a checkpoint as it is."""

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")

MEASURED_ON_GPU: frozenset[tuple[str, str]] = frozenset()
"""Each backend and precision that has a row of a GPU in benchmarks/RESULTS.md: with ``auto`` no
other runs on a GPU. There is none so far."""

_MOST_CPU_CONTEXTS = 4
"""More contexts than these gain little, and each holds a network's worth of activations."""

_INSTALL = (
    'pip install "cyclegan-batch[openvino]" or "cyclegan-batch[cpu]" for this machine\'s CPU, '
    '"cyclegan-batch[gpu]" for an NVIDIA GPU'
)


def open_backend(
    model: Model,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    contexts: int = 1,
    shapes: Sequence[tuple[int, int, int]] = (),
    cache_dir: Path | None = None,
    trust_engine: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Backend:
    """Open ``model`` with a runtime, prove it on a sample, and return its first context.

    ``backend``: one of `BACKENDS` or ``auto``. ``device``: ``auto``, ``cpu`` or ``cuda[:N]``.
    ``precision``: ``auto`` is the file's, and on a GPU tf32 for one in fp32; ``tf32`` is a way of
    GPUs to run an FP32 file, ``bf16`` one of OpenVINO, and bf16 and (on a GPU) fp16 are ways of
    torch to run a checkpoint, taken only where their parity is measured to be in its class.
    ``threads``: CPU threads for the network, of all contexts together (None: `cpu_threads`).
    ``contexts``: how many will run side by side; `Backend.fork` gives the others.
    ``shapes``: the frames (N, H, W) that will come, where known: what is built is built for them,
    kept in ``cache_dir`` and told to ``say``, since it takes minutes. ``trust_engine``: load an
    engine that was not built here.

    ``auto`` depends on what is installed and on the file, so that the same command gives the same
    pixels twice, and takes a GPU only by a path that was measured (`MEASURED_ON_GPU`). What runs on
    a GPU is compared with the CPU once; the verdict is kept in ``cache_dir``. Raises
    BackendUnavailableError, BackendError, ModelError.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendError(f"no backend {backend!r}: it is auto or one of {', '.join(BACKENDS)}")
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", device):
        raise BackendError(f"no device {device!r}: it is auto, cpu or cuda[:N]")
    _check_kind(model, backend)
    _check_precision(model, precision, backend, device)
    threads = threads or cpu_threads()
    missing: list[BackendError | ModelError] = []
    for name, where in _candidates(model, backend, device, precision):
        try:
            if name == "tensorrt":
                opened = _open_tensorrt(
                    model, where, precision, shapes, cache_dir, trust_engine, say
                )
            else:
                opened = _open(model, name, where, precision, threads, contexts)
                if where != "cpu":
                    _compare_with_cpu(opened, model, threads, cache_dir, say)
        except (BackendError, ModelError) as error:
            if isinstance(error, ModelError) and (where == "cpu" or device != "auto"):
                raise
            missing.append(error)
            continue
        # A runtime that is not installed is no news; one that is and does not work, is.
        broken = [e for e in missing if not isinstance(e.__cause__, ImportError)]
        opened.notes += tuple(
            Note(None, f"{error}; going on with {name} on {where}") for error in broken
        )
        if not broken and (device, where) == ("auto", "cpu"):
            opened.notes += _unused_gpu(backend, precision)
        return opened
    for reason in missing:
        if len(missing) == 1 or not isinstance(reason.__cause__, ImportError):
            raise reason
    raise BackendUnavailableError(
        f"no runtime for {device if device != 'auto' else 'this machine'} is installed; {_INSTALL}"
    ) from missing[-1]


def default_contexts(device: str, threads: int) -> int:
    """Return how many contexts use the device best.

    On a CPU one for each thread, up to four: layers split over threads wait for one another, frames
    do not (tried on two cores, CPU ms per frame, two contexts of one thread against one of two:
    onnxruntime 85 and 90, OpenVINO 45 and 50). On a GPU two: one computes while the other copies.
    """
    if device == "cpu":
        return max(1, min(threads, _MOST_CPU_CONTEXTS))
    return 2


def _candidates(model: Model, backend: str, device: str, precision: str) -> list[tuple[str, str]]:
    """Return what may be tried, the best first."""
    if precision == "tf32" and device == "auto":
        device = "cuda:0"
    if model.checkpoint is not None:
        from .torch import sees_cuda as torch_sees_cuda

        found = [("torch", "cpu" if device == "auto" else device)]
        on_gpu = "tf32" if precision == "auto" else precision
        if device == "auto" and ("torch", on_gpu) in MEASURED_ON_GPU and torch_sees_cuda():
            found.insert(0, ("torch", "cuda:0"))
        return found
    # Only when named: it has not yet run on a GPU.
    if model.engine is not None or backend == "tensorrt":
        return [("tensorrt", device)]
    if precision == "bf16":
        return [("openvino", "cpu")]
    if backend == "openvino":
        return [("openvino", "cpu" if device == "auto" else device)]
    if device.startswith("cuda"):
        return [("tensorrt" if model.card.precision == "int8" else "onnxruntime", device)]
    on_cpu = ["openvino", "onnxruntime"]
    if writes_out_its_norm(model):
        # OpenVINO pays for every change of layout around a norm that is written out in small
        # operators (tried: 115 ms of CPU a frame against 86); as one operator it is the faster.
        on_cpu.reverse()
    if backend == "onnxruntime":
        on_cpu = ["onnxruntime"]
    found = [(name, "cpu") for name in on_cpu]
    if device == "auto":
        from .onnxruntime import precision_on_cuda, sees_cuda

        on_gpu = precision_on_cuda(model.card, precision)
        if ("onnxruntime", on_gpu) in MEASURED_ON_GPU and sees_cuda():
            found.insert(0, ("onnxruntime", "cuda:0"))
    return found


def _unused_gpu(backend: str, precision: str) -> tuple[Note, ...]:
    """Return a note where a GPU is left alone that could be named."""
    if backend == "openvino" or (backend != "torch" and precision == "bf16"):
        return ()
    gpus = nvidia_gpus()
    if not gpus:
        return ()
    text = (
        "is not used, as translating on it has not been measured yet; pass --device cuda to use "
        "it all the same (experimental)"
    )
    return (Note(gpus[0], text),)


def _compare_with_cpu(
    opened: Backend,
    model: Model,
    threads: int,
    cache_dir: Path | None,
    say: Callable[[str], None],
) -> None:
    """Compare ``opened``, on a GPU, with the CPU, unless that was done before.

    Raises ModelError where it misses the class of its precision.
    """
    from .verdicts import Verdict

    verdict = Verdict(model, opened, cache_dir)
    if verdict.stands():
        return
    on_cpu = _open(model, opened.name, "cpu", "auto", threads, 1)
    try:
        found = verdict.find(on_cpu)
    finally:
        on_cpu.close()
    name = printable(Path(model.card.path.name))
    say(f"{name}: on {opened.device} in {opened.precision} against the CPU it is {found}")


def _open(
    model: Model, name: str, device: str, precision: str, threads: int, contexts: int
) -> Backend:
    if name == "torch":
        from .torch import open_torch

        return open_torch(
            model, device=device, precision=precision, threads=threads, contexts=contexts
        )
    if name == "openvino":
        from .openvino import open_openvino

        return open_openvino(
            model, device=device, precision=precision, threads=threads, contexts=contexts
        )
    from .onnxruntime import open_onnxruntime

    return open_onnxruntime(
        model, device=device, precision=precision, threads=threads, contexts=contexts
    )


def _open_tensorrt(
    model: Model,
    device: str,
    precision: str,
    shapes: Sequence[tuple[int, int, int]],
    cache_dir: Path | None,
    trust_engine: bool,
    say: Callable[[str], None],
) -> Backend:
    from .tensorrt import open_tensorrt

    return open_tensorrt(
        model,
        device=device,
        precision=precision,
        shapes=shapes,
        cache_dir=cache_dir,
        trust_engine=trust_engine,
        say=say,
    )


def _check_kind(model: Model, backend: str) -> None:
    """Refuse a backend that does not run this kind of file. Raises BackendError."""
    name = printable(model.card.path)
    if model.engine is not None and backend not in ("auto", "tensorrt"):
        raise BackendError(
            f"{name}: is an engine, which only TensorRT runs, and {backend} was asked for; leave "
            "--backend out, or use the ONNX that it was built from"
        )
    if model.checkpoint is None and backend == "torch":
        raise BackendError(
            f"{name}: is no checkpoint, and torch runs nothing else; leave --backend out"
        )
    if model.checkpoint is not None and backend in OF_ONNX:
        raise BackendError(
            f"{name}: is a checkpoint, and {backend} runs ONNX; export it, or pass --backend torch"
        )


def _check_precision(model: Model, precision: str, backend: str, device: str) -> None:
    if precision not in ("auto", *PRECISIONS):
        raise BackendError(
            f"no precision {precision!r}: it is auto or one of {', '.join(PRECISIONS)}"
        )
    card = model.card
    name = printable(card.path)
    if card.precision == "int8" and backend == "onnxruntime" and device.startswith("cuda"):
        raise BackendError(
            f"{name}: is int8, and onnxruntime has no int8 convolutions for NVIDIA GPUs: it would "
            "compute them in floats, slower than those of an fp32 file; pass --backend tensorrt, "
            "or use a file in fp16"
        )
    if precision in ("auto", card.precision):
        return
    if precision == "tf32" and (backend == "openvino" or device == "cpu"):
        raise BackendError(
            f"{name}: tf32 is an arithmetic of NVIDIA GPUs and was asked for on the CPU; pass "
            "--device cuda, or leave --precision out"
        )
    if precision == "tf32" and card.precision == "fp32":
        return
    if model.checkpoint is not None:
        if precision == "int8":
            raise BackendError(
                f"{name}: is a checkpoint, which torch runs in fp32, tf32, bf16 or fp16, and int8 "
                "was asked for; leave --precision out"
            )
        return
    if precision not in ("bf16", "tf32"):
        raise BackendError(
            f"{name}: is {card.precision} and {precision} was asked for; the precision is the "
            f"file's: use a file that was exported in {precision} (cyclegan-batch export), or "
            "leave --precision out"
        )
    if card.precision != "fp32":
        raise BackendError(
            f"{name}: is {card.precision}, and {precision} is a way to run an fp32 file; leave "
            "--precision out"
        )
    if backend in ("onnxruntime", "tensorrt"):
        raise BackendError(
            f"{backend} cannot compute in bf16; pass --backend openvino, or leave --precision out"
        )


__all__ = [
    "BACKENDS",
    "MEASURED_ON_GPU",
    "OF_ONNX",
    "PRECISIONS",
    "Backend",
    "default_contexts",
    "open_backend",
]
