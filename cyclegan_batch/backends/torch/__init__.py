"""Run a checkpoint or a contract ONNX in torch: fp32, bf16, on CUDA also tf32 and fp16.

`TorchBackend` is a context. What it computes with is a body (bodies.py); on a GPU it runs batches
through one stream and CUDA graphs (recording.py).

On a CPU torch is slower than the other runtimes; there it is for a first look, and for machines
without the exporter. Tried, the horse→zebra generator at 256² on one core, CPU ms per frame: 117,
in bf16 89; exported, onnxruntime 78, OpenVINO 65, in bf16 21. `torch.compile` is not used on a CPU:
it requires a C++ compiler and a minute or two, and gains nothing (tried, ResNet-9 at 256² on one
core: 796 ms a frame against 792). CUDA is experimental: it was never run on a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import BackendError, BackendUnavailableError, ModelError, OutOfMemoryError
from ...frames import Pixels
from ...models.model import Model, ModelCard, widest_tensor
from ...models.parity import REQUIRED_CLASS, parity
from ...wording import Note, first_line, printable
from ..common import (
    batch_within_index,
    checked,
    failure_of,
    in_batches,
    out_of_memory,
    parity_of,
    verify,
)
from . import bodies
from .bodies import Body, NoBodyError
from .recording import CudaBatches, memory_failed
from .settings import CUDA_SETTING, cpu_threads

# oneDNN keeps a kernel for each shape that it has seen, 1024 by default, which wastes memory over a
# folder of many sizes. It reads this variable at its first convolution.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class _CancelledError(Exception):
    """Stops the network after `cancel` was called."""


class TorchBackend:
    """A generator in torch; several contexts share its weights."""

    name = "torch"

    def __init__(
        self,
        card: ModelCard,
        body: Body,
        device: str,
        precision: str,
        threads: int,
        widest: float = 0.0,
        how: str = "",
    ) -> None:
        """Take what computes; ``how`` is its name in `BODIES`, on a GPU.

        ``widest``: elements of the largest tensor for each pixel of a frame (`widest_tensor`).
        """
        self.card, self.device, self.precision = card, device, precision
        self.notes: tuple[Note, ...] = ()
        self.how = how
        self._shared: Body | None = body
        """What the contexts share; None after `close`."""
        self._body = body
        self._threads, self._widest = threads, widest
        self._cancelled = threading.Event()
        self._batches: CudaBatches | None = None
        if device != "cpu":
            arithmetic = "tf32" if precision == "tf32" else "ieee"
            self._batches = CudaBatches(
                body,
                device,
                arithmetic,
                search=bodies.SEARCHES,
                launch=body.network if isinstance(body, bodies.Compiled) else None,
            )
        elif isinstance(body, nn.Module):
            # A hook belongs to one context, so each has modules of its own.
            self._body = network = _sharing_weights(body)
            for module in network.modules():
                if next(module.children(), None) is None:
                    module.register_forward_pre_hook(self._check_cancelled)

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`.

        On a CPU one frame at a time: a batch gains nothing there and does not change the pixels.
        """
        fixed = self.card.sizes.fixed
        if fixed is not None and frames.shape[1:3] != fixed:
            reason = f"the file takes {fixed[0]}×{fixed[1]} only"
            raise failure_of("torch", ValueError(reason), self.card, self.device, frames)
        batch = self.card.batch
        if self._batches is None:
            batch = batch or 1
        else:
            batch = batch_within_index(frames, self._widest, batch)
        return in_batches(self._run, frames, batch)

    def fork(self) -> TorchBackend:
        """Return another context over the same weights."""
        return TorchBackend(
            self.card,
            self._live(self._shared),
            self.device,
            self.precision,
            self._threads,
            self._widest,
            self.how,
        )

    def cancel(self) -> None:
        """Stop a running `infer`: on a CPU before the next layer, on a GPU before its next batch.

        A batch on a GPU takes milliseconds, and what a graph has begun cannot be stopped.
        """
        self._cancelled.set()

    def close(self) -> None:
        """Release the context. A second call does nothing."""
        self._shared = None
        if self._batches is not None:
            self._batches.close()

    def with_values(self, frames: Pixels) -> tuple[Pixels, Pixels]:
        """Translate ``frames``; return the floats before clamping, too.

        They have four times the bytes of uint8 pixels, so `infer` does not copy them from the
        device.
        """
        body = self._live(self._body)

        def run() -> tuple[Pixels, Pixels]:
            out, values = self._on_device(frames, body.with_values)
            return out.cpu().numpy(), values.cpu().numpy()

        return self._translating(run, frames)

    def compute(self, frames: Tensor) -> Tensor:
        """Translate ``frames`` that are on the device; the result stays there."""
        with torch.inference_mode(), self._arithmetic(search=bodies.SEARCHES):
            return self._live(self._body)(frames)

    @property
    def not_recorded(self) -> str | None:
        """Why a GPU launches kernel by kernel; None where it replays graphs, and on a CPU."""
        return None if self._batches is None else self._batches.not_recorded

    def launch_always(self, reason: str) -> None:
        """Record no more batches on a GPU, and drop what is recorded."""
        assert self._batches is not None
        self._batches.launch_always(reason)

    def _run(self, frames: Pixels) -> Pixels:
        body, batches = self._live(self._body), self._batches
        if batches is not None:
            out = self._translating(lambda: batches(frames), frames)
        else:
            out = self._translating(lambda: self._on_device(frames, body).cpu().numpy(), frames)
        return checked(out, frames, self.card)

    def _on_device(self, frames: Pixels, compute: Callable[[Tensor], T]) -> T:
        """Call ``compute`` with ``frames`` on the device."""
        # torch warns about read-only arrays, and refuses negative strides.
        writable = np.require(frames, requirements=["C", "W"])
        with torch.inference_mode(), self._arithmetic(), cpu_threads(self._threads):
            return compute(torch.from_numpy(writable).to(self.device))

    def _translating(self, run: Callable[[], T], frames: Pixels) -> T:
        """Return ``run()``; what torch raises becomes an error of `errors`."""
        try:
            self._check_cancelled()
            return run()
        except _CancelledError as error:
            raise BackendError("torch: cancelled") from error
        except (RuntimeError, MemoryError) as error:
            if memory_failed(error):
                raise out_of_memory("torch", self.device, frames) from error
            raise failure_of("torch", error, self.card, self.device, frames) from error

    def _arithmetic(self, *, search: bool = False) -> contextlib.AbstractContextManager[None]:
        if self.device == "cpu":
            return contextlib.nullcontext()
        how = "tf32" if self.precision == "tf32" else "ieee"
        return CUDA_SETTING.set_to(how, search=search)

    def _check_cancelled(self, *_: object) -> None:
        if self._cancelled.is_set():
            raise _CancelledError

    def _live(self, body: Body | None) -> Body:
        if self._shared is None or body is None:
            raise BackendError("torch: this context is closed; open another")
        return body


def open_torch(
    model: Model, *, device: str, precision: str, threads: int, contexts: int
) -> TorchBackend:
    """Open ``model`` on ``device`` (``cpu``, ``cuda[:N]``); see `open_backend`.

    Each context computes with its share of ``threads``. Raises ModelError for an ONNX with a node
    that torch does not run here.
    """
    device = "cuda:0" if device == "cuda" else device
    precision = _arithmetic_of(model.card, device, precision)
    _check(device, precision)
    share = max(1, threads // contexts)
    if device == "cpu":
        backend = _on_cpu(model, precision, share)
    else:
        backend = _on_cuda(model, device, precision, share)
    if precision == "fp32":
        return backend
    exact = (
        _on_cpu(model, "fp32", share) if device == "cpu" else _on_cuda(model, device, "fp32", share)
    )
    try:
        remedy = "pass --precision fp32" if precision == "tf32" else "leave --precision out"
        measured = parity_of(backend, exact, remedy=remedy)
    finally:
        exact.close()
    name = printable(Path(model.card.path.name))
    backend.notes += (Note(None, f"{name} in {precision} against fp32 is {measured}"),)
    return backend


def sees_cuda() -> bool:
    """Tell whether this torch can use an NVIDIA GPU."""
    return torch.cuda.is_available()


def _on_cpu(model: Model, precision: str, threads: int) -> TorchBackend:
    backend = _made(
        lambda: TorchBackend(
            model.card, bodies.body_on_cpu(model, precision), "cpu", precision, threads
        ),
        model,
        "cpu",
    )
    verify(model.card, lambda frames: _in_turn(backend, frames))
    return backend


def _on_cuda(model: Model, device: str, precision: str, threads: int) -> TorchBackend:
    """Return a context with the first body of `BODIES` that works, and notes of what did not."""
    passed_over: list[str] = []
    widest = (
        bodies.widest_tensor_of(model.checkpoint)
        if model.checkpoint is not None
        else widest_tensor(model)
    )
    *others, last = bodies.BODIES[precision]

    def opened(how: str) -> TorchBackend:
        body = bodies.body_on_cuda(how, model, device, precision)
        return TorchBackend(model.card, body, device, precision, threads, widest, how)

    for how in (*others, last):
        try:
            backend = _made(lambda how=how: opened(how), model, device)  # type: ignore[misc]
            _verify_on_cuda(backend)
        except NoBodyError as reason:
            passed_over.append(f"not {how}, as {reason}")
        except (ModelError, OutOfMemoryError):
            raise
        except Exception as error:
            # A compiler that is missing or fails, for which Triton and torch have many exceptions.
            if how == last:
                raise
            passed_over.append(f"not {how}, as it fails: {first_line(error)}")
        else:
            break
    else:
        raise BackendUnavailableError(
            f"torch has no way to run {printable(model.card.path)} on {device}: "
            f"{'; '.join(passed_over)}; pass --device cpu"
        )
    name = printable(Path(model.card.path.name))
    words = [f"{name} runs {how} on {device}", *passed_over]
    if backend.not_recorded is not None:
        words.append(f"without CUDA graphs: {backend.not_recorded}")
    backend.notes = (Note(None, "; ".join(words)),)
    return backend


def _verify_on_cuda(backend: TorchBackend) -> None:
    """Check the sample: its values, and that a recorded batch gives what a launched one does.

    Raises ModelError.
    """

    def run(frames: Pixels) -> tuple[Pixels, Pixels]:
        launched = backend.infer(frames)
        backend.infer(frames[:, ::-1])  # recorded, with other frames than it is replayed with
        alike = parity(backend.infer(frames), launched)
        if not alike.reaches(REQUIRED_CLASS[backend.precision]):
            backend.launch_always(f"a replay differs from it: {alike}")
        return backend.with_values(frames)

    verify(backend.card, run)


def _in_turn(backend: TorchBackend, frames: Pixels) -> tuple[Pixels, Pixels]:
    """Return `TorchBackend.with_values` of the batches that `infer` makes."""
    step = backend.card.batch or 1
    pairs = [backend.with_values(frames[i : i + step]) for i in range(0, len(frames), step)]
    return np.concatenate([out for out, _ in pairs]), np.concatenate([v for _, v in pairs])


def _made(make: Callable[[], TorchBackend], model: Model, device: str) -> TorchBackend:
    """Return ``make()``. Raises OutOfMemoryError where the weights find no memory."""
    try:
        return make()
    except (RuntimeError, MemoryError) as error:
        if not memory_failed(error):
            raise
        raise OutOfMemoryError(
            f"torch: no memory on {device} for the weights of {printable(model.card.path)}; "
            "use another device"
        ) from error


def _arithmetic_of(card: ModelCard, device: str, precision: str) -> str:
    """Return the precision in which a file is computed where the user chose ``precision``."""
    if card.precision == "fp16":
        # On a CPU such a file is smaller, not faster.
        return "fp32" if device == "cpu" else "fp16"
    if precision == "auto":
        return "fp32" if device == "cpu" else "tf32"
    return precision


def _check(device: str, precision: str) -> None:
    """Refuse a device or a precision that this machine lacks. Raises BackendUnavailableError."""
    if device != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(device.partition(":")[2]) >= count:
            raise BackendUnavailableError(
                f"torch was asked for {device} and sees {count or 'no'} NVIDIA GPUs; see "
                "cyclegan-batch doctor, or pass --device cpu"
            )
        return
    if precision in ("fp16", "tf32"):
        raise BackendUnavailableError(
            f"torch computes in {precision} on a GPU only; pass --precision bf16, or leave it out"
        )
    if precision == "bf16":
        # An older torch has no such function.
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if not any(features.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
            raise BackendUnavailableError(
                "torch was asked for bf16 and this CPU has none; leave --precision out"
            )


def _sharing_weights(network: M) -> M:
    """Return a copy of ``network`` that shares its weights, with hooks of its own."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
