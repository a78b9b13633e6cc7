"""The runtimes behind one interface: `open_backend` returns a `Backend`, whichever runs the model.

common.py holds what all backends share; each backend has a module or a package of its own.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import BackendError, BackendUnavailableError, ModelError
from ..machine import cpu_threads, nvidia_gpus
from ..models.model import Model
from ..wording import Note, printable
from .common import Backend

ONNX_BACKENDS = ("onnxruntime", "openvino", "tensorrt")
"""The backends that run an ONNX file and nothing else but engines."""

BACKENDS = (*ONNX_BACKENDS, "torch")
"""All backends; torch runs a checkpoint, without an export, and an ONNX where it is named."""

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")

MEASURED_ON_GPU: frozenset[tuple[str, str]] = frozenset()
"""The pairs of backend and precision that benchmarks/RESULTS.md has a row of a GPU for. ``auto``
chooses a GPU only for these. No pair has such a row so far."""

_MOST_CPU_CONTEXTS = 4
"""The most contexts on a CPU: more gain little, and each holds the activations of a network."""

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
    """Open ``model`` with a runtime, check it on a sample, and return its first context.

    ``backend``: one of `BACKENDS` or ``auto``. ``device``: ``auto``, ``cpu``, ``cuda[:N]``, or
    ``webgpu``, onnxruntime's provider for the GPUs of any maker.
    ``precision``: ``auto`` is the file's own, except that fp32 on a GPU is computed in tf32. An
    fp32 ONNX also runs in tf32 on a GPU and in bf16 with OpenVINO; torch runs it, and a checkpoint,
    in bf16, and on a GPU in tf32 and fp16. A precision other than the file's is accepted only where
    the measured parity reaches its class.
    ``threads``: CPU threads for the network, those of all contexts together (None: `cpu_threads`).
    ``contexts``: how many contexts will run at a time; `Backend.fork` returns the others.
    ``shapes``: the frames (N, H, W) to be translated, where known. TensorRT builds an engine for
    them, which takes minutes and is reported to ``say``, and keeps it in ``cache_dir``.
    ``trust_engine``: load an engine that was not built here.

    What ``auto`` chooses depends on the file and on what is installed, so that the same command
    gives the same pixels twice. It chooses a GPU only by a path that was measured
    (`MEASURED_ON_GPU`). A path on a GPU is compared with the CPU once, and the verdict is kept in
    ``cache_dir``. Raises BackendUnavailableError, BackendError, ModelError.
    """
    _check_request(model, backend, device, precision)
    threads = threads or cpu_threads()
    failures: list[BackendError | ModelError] = []
    for name, where in _candidates(model, backend, device, precision):
        try:
            if name == "tensorrt":
                context = _open_tensorrt(
                    model, where, precision, shapes, cache_dir, trust_engine, say
                )
            else:
                context = _open(model, name, where, precision, threads, contexts)
                if where != "cpu":
                    _compare_with_cpu(context, model, threads, cache_dir, say)
        except (BackendError, ModelError) as error:
            # A ModelError on a GPU that `auto` chose: the file may still be right on the CPU.
            if isinstance(error, ModelError) and (where == "cpu" or device != "auto"):
                raise
            failures.append(error)
            continue
        # Report only runtimes that are installed but do not work.
        broken = [error for error in failures if not isinstance(error.__cause__, ImportError)]
        context.notes += tuple(
            Note(None, f"{error}; going on with {name} on {where}") for error in broken
        )
        if not broken and (device, where) == ("auto", "cpu"):
            context.notes += _unused_gpu(backend, precision)
        return context
    for failure in failures:
        if len(failures) == 1 or not isinstance(failure.__cause__, ImportError):
            raise failure
    raise BackendUnavailableError(
        f"no runtime for {device if device != 'auto' else 'this machine'} is installed; {_INSTALL}"
    ) from failures[-1]


class ExpectedBackend(NamedTuple):
    """The name, the device (``cpu``, ``cuda:N``, ``webgpu``) and the precision of a backend."""

    name: str
    device: str
    precision: str


def expected_backend(
    model: Model, *, backend: str, device: str, precision: str
) -> ExpectedBackend | None:
    """Return which backend `open_backend` will open, as far as can be told without a runtime.

    It opens another one where the first that is installed does not work; and on a CPU whose integer
    arithmetic overflows, OpenVINO computes in another precision. None where no runtime that can run
    ``model`` is installed.
    Raises BackendError as `open_backend` does for arguments that contradict each other.
    """
    _check_request(model, backend, device, precision)
    for name, where in _candidates(model, backend, device, precision):
        installed = sys.modules[name] if name in sys.modules else importlib.util.find_spec(name)
        if installed is not None:
            if where not in ("cpu", "webgpu"):
                where = f"cuda:{where.partition(':')[2] or '0'}"
            return ExpectedBackend(name, where, _expected_precision(model, name, where, precision))
    return None


def _expected_precision(model: Model, name: str, device: str, precision: str) -> str:
    of_file = model.card.precision
    if device == "cpu":
        return "bf16" if precision == "bf16" else "int8" if of_file == "int8" else "fp32"
    if device == "webgpu":
        return of_file
    if name == "torch" and of_file != "fp16":
        return "tf32" if precision == "auto" else precision
    tf32 = precision != "fp32" if model.engine is None else model.engine.build.tf32
    return "tf32" if of_file == "fp32" and tf32 else of_file


def default_contexts(device: str, threads: int) -> int:
    """Return how many contexts use the device best.

    On a CPU one for each thread, up to four: threads that share a layer wait for one another,
    contexts that each compute a frame do not (tried on two cores, CPU ms per frame, two contexts of
    one thread against one of two: onnxruntime 85 and 90, OpenVINO 45 and 50). On a GPU two: one
    computes while the other copies.
    """
    if device == "cpu":
        return max(1, min(threads, _MOST_CPU_CONTEXTS))
    return 2


def _candidates(model: Model, backend: str, device: str, precision: str) -> list[tuple[str, str]]:
    """Return the backends to try and their devices, the best first."""
    if precision == "tf32" and device == "auto":
        device = "cuda:0"
    if model.checkpoint is not None or backend == "torch":
        from .torch import sees_cuda as torch_sees_cuda

        candidates = [("torch", "cpu" if device == "auto" else device)]
        on_gpu = model.card.precision if precision == "auto" else precision
        on_gpu = "tf32" if (precision, on_gpu) == ("auto", "fp32") else on_gpu
        if device == "auto" and ("torch", on_gpu) in MEASURED_ON_GPU and torch_sees_cuda():
            candidates.insert(0, ("torch", "cuda:0"))
        return candidates
    # TensorRT has not yet run on a GPU. It runs an ONNX only where it is named, or where no other
    # runtime can (int8 on a GPU, below).
    if model.engine is not None or backend == "tensorrt":
        return [("tensorrt", device)]
    if precision == "bf16":
        return [("openvino", "cpu")]
    if backend == "openvino":
        return [("openvino", "cpu" if device == "auto" else device)]
    if device == "webgpu":
        return [("onnxruntime", device)]
    if device.startswith("cuda"):
        # onnxruntime has no int8 convolutions for NVIDIA GPUs.
        return [("tensorrt" if model.card.precision == "int8" else "onnxruntime", device)]
    on_cpu = ["openvino", "onnxruntime"]
    if model.norm_written_out:
        # Where the instance normalisation is spelled out in small operators, cpu_graph.py makes
        # each one operator where it can. With that, onnxruntime takes 0.74 of the CPU time that it
        # takes for the file as it is, and OpenVINO 0.79 (tried: a fast neural style network). What
        # remains spelled out makes OpenVINO convert the memory layout before and after each one.
        on_cpu.reverse()
    if backend == "onnxruntime":
        on_cpu = ["onnxruntime"]
    candidates = [(name, "cpu") for name in on_cpu]
    if device == "auto":
        from .onnxruntime_cuda import lists_cuda, precision_on_cuda

        on_gpu = precision_on_cuda(model.card, precision)
        if ("onnxruntime", on_gpu) in MEASURED_ON_GPU and lists_cuda():
            candidates.insert(0, ("onnxruntime", "cuda:0"))
    return candidates


def _unused_gpu(backend: str, precision: str) -> tuple[Note, ...]:
    """Return a note where there is a GPU, but `auto` does not use it."""
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
    on_gpu: Backend,
    model: Model,
    threads: int,
    cache_dir: Path | None,
    say: Callable[[str], None],
) -> None:
    """Compare ``on_gpu`` with the CPU, unless an earlier verdict stands.

    Raises ModelError where ``on_gpu`` misses the class of its precision.
    """
    from .verdicts import Verdict

    verdict = Verdict(model, on_gpu, cache_dir)
    if verdict.stands():
        return
    on_cpu = _open(model, on_gpu.name, "cpu", "auto", threads, 1)
    try:
        parity = verdict.compare(on_cpu)
    finally:
        on_cpu.close()
    name = printable(Path(model.card.path.name))
    say(f"{name}: on {on_gpu.device} in {on_gpu.precision} against the CPU it is {parity}")


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
    if device == "cpu":
        from .onnxruntime import open_onnxruntime

        return open_onnxruntime(model, threads=threads, contexts=contexts)
    if device == "webgpu":
        from .onnxruntime_webgpu import open_onnxruntime_webgpu

        return open_onnxruntime_webgpu(model, threads=threads, contexts=contexts)
    from .onnxruntime_cuda import open_onnxruntime_cuda

    return open_onnxruntime_cuda(
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


def _check_request(model: Model, backend: str, device: str, precision: str) -> None:
    """Refuse arguments that contradict each other or the file. Raises BackendError."""
    if backend not in ("auto", *BACKENDS):
        raise BackendError(f"no backend {backend!r}: it is auto or one of {', '.join(BACKENDS)}")
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?|webgpu", device):
        raise BackendError(f"no device {device!r}: it is auto, cpu, cuda[:N] or webgpu")
    _check_kind(model, backend)
    if device == "webgpu":
        _check_webgpu(model, backend, precision)
    _check_precision(model, precision, backend, device)


def _check_kind(model: Model, backend: str) -> None:
    """Refuse a backend that does not run this kind of file. Raises BackendError."""
    name = printable(model.card.path)
    if model.engine is not None and backend not in ("auto", "tensorrt"):
        raise BackendError(
            f"{name}: is an engine, which only TensorRT runs, and {backend} was asked for; leave "
            "--backend out, or use the ONNX that it was built from"
        )
    if model.card.precision == "int8" and backend == "torch":
        raise BackendError(
            f"{name}: is int8, and torch is made to run floats here; leave --backend out"
        )
    if model.checkpoint is not None and backend in ONNX_BACKENDS:
        raise BackendError(
            f"{name}: is a checkpoint, and {backend} runs ONNX; export it, or pass --backend torch"
        )


def _check_webgpu(model: Model, backend: str, precision: str) -> None:
    """Refuse what does not run on WebGPU. Raises BackendError."""
    name, of_file = printable(model.card.path), model.card.precision
    if backend not in ("auto", "onnxruntime") or model.engine is not None:
        raise BackendError(
            f"{name}: only onnxruntime computes on webgpu, and only an ONNX file; leave --backend "
            "out, or pass another --device"
        )
    if model.checkpoint is not None:
        raise BackendError(
            f"{name}: is a checkpoint, and webgpu runs ONNX; export it, or pass another --device"
        )
    if of_file == "int8" or precision not in ("auto", of_file):
        raise BackendError(
            f"{name}: is {of_file}, and webgpu computes a file in fp32 or fp16 as it is; leave "
            "--precision out, and use such a file"
        )


def _check_precision(model: Model, precision: str, backend: str, device: str) -> None:
    """Refuse a precision in which this file cannot be computed as asked. Raises BackendError."""
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
    if precision == "tf32" and device == "auto" and not nvidia_gpus():
        raise BackendError(
            f"{name}: tf32 is an arithmetic of NVIDIA GPUs, and this machine has none; leave "
            "--precision out"
        )
    if precision == "tf32" and card.precision == "fp32":
        return
    if model.checkpoint is not None or (backend == "torch" and card.precision == "fp32"):
        if precision == "int8":
            raise BackendError(
                f"{name}: torch runs it in fp32, tf32, bf16 or fp16, and int8 was asked for; leave "
                "--precision out"
            )
        return
    if card.adopted and card.precision == "fp32" and precision == "fp16":
        raise BackendError(
            f"{name}: is a foreign ONNX in fp32, and fp16 was asked for, which is not made of one: "
            "export it in fp16 where it was trained, or leave --precision out"
        )
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
    "ONNX_BACKENDS",
    "PRECISIONS",
    "Backend",
    "ExpectedBackend",
    "default_contexts",
    "expected_backend",
    "open_backend",
]
