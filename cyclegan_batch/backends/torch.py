"""Run a checkpoint in torch, without an export: in fp32 or bf16, on CUDA also in tf32 or fp16.

Around the network this module repeats, in torch, the arithmetic that the contract adds to an ONNX
(contract.py). A checkpoint runs slower than its export; this backend is for a first look, and for
machines without the exporter. Tried, the horse→zebra generator at 256² on one core, CPU ms per
frame: 117, in bf16 89; exported, onnxruntime 78, OpenVINO 65, in bf16 21. CUDA is experimental: it
was never run on a GPU.

`torch.compile` is not used: on a CPU it requires a C++ compiler and a minute or two, and gains
nothing (tried, ResNet-9 at 256² on one core: 796 ms a frame against 792).
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)

from ..errors import BackendError, BackendUnavailableError, OutOfMemoryError
from ..frames import Pixels
from ..models.checkpoints import LoadedGenerator
from ..models.contract import BT601
from ..models.model import Model, ModelCard
from ..models.networks import InstanceNorm
from ..wording import Note, printable
from .common import (
    batch_within_index,
    checked,
    failure_of,
    in_batches,
    is_out_of_memory,
    out_of_memory,
    parity_of,
    verify,
)

# oneDNN keeps a kernel for each shape that it has seen, 1024 by default, which wastes memory over a
# folder of many sizes. It reads this variable at its first convolution.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

_TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class _CancelledError(Exception):
    """Stops the network after `cancel` was called."""


class _FrameNorm(nn.Module):
    """InstanceNorm of one frame in channels-last memory format; statistics in float32.

    torch's own InstanceNorm copies such a frame to channels first and back. Tried, ResNet-9 at
    256² on one core, CPU ms per frame: 1071 with it, 892 with the whole network in channels first,
    792 with this class; in bf16 567, 424 and 206. `torch.batch_norm` over the whole frame is as
    fast, but adds up the pixels one after the other and loses precision: at 3840×2160 it was off
    by 0.4 of a standard deviation, this class by 10⁻⁶.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel: ``(1, C, H, W)``."""
        wide = x.float()
        _, channels, height, width = x.shape
        # Statistics of each image column first, then of the columns together: short sums.
        columns = wide.permute(0, 2, 3, 1).reshape(height, width * channels)
        means, variances = torch.batch_norm_update_stats(columns, None, None, 0.0)
        means, variances = means.view(width, channels), variances.view(width, channels)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        return F.batch_norm(wide, mean, variance, eps=self.eps).to(x.dtype)


class TorchBackend:
    """A generator in torch; several contexts share its weights."""

    name = "torch"

    def __init__(
        self, card: ModelCard, generator: LoadedGenerator, device: str, precision: str, threads: int
    ) -> None:
        self.card, self.device, self.precision = card, device, precision
        self.notes: tuple[Note, ...] = ()
        self._generator: LoadedGenerator | None = generator
        self._threads = threads
        self._widest = 0.0 if device == "cpu" else _widest_tensor(generator)
        self._network = _sharing_weights(generator.network)
        self._cancelled = threading.Event()
        for module in self._network.modules():
            if next(module.children(), None) is None:
                module.register_forward_pre_hook(self._check_cancelled)

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`.

        On a CPU one frame at a time: a batch gains nothing there and does not change the pixels.
        """
        on_gpu = self.device != "cpu"
        return in_batches(
            self._run, frames, batch_within_index(frames, self._widest, None) if on_gpu else 1
        )

    def fork(self) -> TorchBackend:
        """Return another context over the same weights."""
        return TorchBackend(
            self.card, self._live_generator(), self.device, self.precision, self._threads
        )

    def cancel(self) -> None:
        """Stop a running `infer` before the network's next layer."""
        self._cancelled.set()

    def close(self) -> None:
        """Release the context. A second call does nothing."""
        self._generator = None

    def with_values(self, frames: Pixels) -> tuple[Pixels, Pixels]:
        """Translate ``frames`` (one on a CPU); return the floats before clamping, too."""
        out, values = self._on_host(frames, lambda out, values: (out, values))
        return out, values

    def _on_host(
        self, frames: Pixels, select: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> tuple[Pixels, ...]:
        """Translate ``frames``; copy what ``select`` returns to the host and return it.

        ``select`` is called with the pixels, and with the floats before clamping and rounding. The
        floats have four times the bytes of uint8 pixels, so they are copied only where needed.
        """
        generator = self._live_generator()
        # torch warns about read-only arrays, and refuses negative strides.
        writable = np.require(frames, requirements=["C", "W"])
        top = 255.0 if frames.dtype == np.uint8 else 1.0
        half = 0.5 if frames.dtype == np.uint8 else 0.0
        try:
            with torch.inference_mode(), self._arithmetic(), _cpu_threads(self._threads):
                self._check_cancelled()
                pixels = torch.from_numpy(writable).to(self.device)
                x = pixels.float() * (2.0 / top) - 1.0
                if generator.config.input_nc == 1:
                    x = x @ x.new_tensor(BT601).unsqueeze(1)
                # A permuted view, no copy: NCHW in channels-last memory format.
                y = self._network(x.permute(0, 3, 1, 2).to(_TYPES[self.precision]))
                y = y.float().permute(0, 2, 3, 1)
                values = (y * (top / 2.0) + (top / 2.0 + half)).expand(*y.shape[:3], 3)
                rounded = values.floor() if half else values
                out = rounded.clamp(0.0, top).to(pixels.dtype).contiguous()
                # This waits for the GPU, so errors of earlier kernels are raised here as well.
                return tuple(tensor.cpu().numpy() for tensor in select(out, values))
        except _CancelledError as error:
            raise BackendError("torch: cancelled") from error
        except torch.OutOfMemoryError as error:
            raise out_of_memory("torch", self.device, frames) from error
        except (RuntimeError, MemoryError) as error:
            raise failure_of("torch", error, self.card, self.device, frames) from error

    def _run(self, frames: Pixels) -> Pixels:
        (out,) = self._on_host(frames, lambda out, values: (out,))
        return checked(out, frames, self.card)

    def _arithmetic(self) -> contextlib.AbstractContextManager[None]:
        if self.device == "cpu":
            return contextlib.nullcontext()
        return _FLOAT32.set_to("tf32" if self.precision == "tf32" else "ieee")

    def _check_cancelled(self, *_: object) -> None:
        if self._cancelled.is_set():
            raise _CancelledError

    def _live_generator(self) -> LoadedGenerator:
        if self._generator is None:
            raise BackendError("torch: this context is closed; open another")
        return self._generator


def open_torch(
    model: Model, *, device: str, precision: str, threads: int, contexts: int
) -> TorchBackend:
    """Open the checkpoint of ``model`` on ``device`` (``cpu``, ``cuda[:N]``); see `open_backend`.

    Each context computes with its share of ``threads``.
    """
    assert model.checkpoint is not None
    device = "cuda:0" if device == "cuda" else device
    if precision == "auto":
        precision = "fp32" if device == "cpu" else "tf32"
    _check(device, precision)
    share = max(1, threads // contexts)

    def open_in(precision: str) -> TorchBackend:
        assert model.checkpoint is not None
        try:
            generator = _copy_on(model.checkpoint, device, _TYPES[precision])
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"torch: no memory on {device} for the weights of {printable(model.card.path)}; "
                "use another device"
            ) from error
        return TorchBackend(model.card, generator, device, precision, share)

    backend = open_in(precision)

    def run(frames: Pixels) -> tuple[Pixels, Pixels]:
        pairs = [backend.with_values(frame) for frame in frames[:, np.newaxis]]
        return np.concatenate([out for out, _ in pairs]), np.concatenate([v for _, v in pairs])

    verify(model.card, run)
    if precision != "fp32":
        remedy = "pass --precision fp32" if precision == "tf32" else "leave --precision out"
        parity = parity_of(backend, open_in("fp32"), remedy=remedy)
        name = printable(Path(model.card.path.name))
        backend.notes = (Note(None, f"{name} in {precision} against fp32 is {parity}"),)
    return backend


def sees_cuda() -> bool:
    """Tell whether this torch can use an NVIDIA GPU."""
    return torch.cuda.is_available()


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


def _copy_on(generator: LoadedGenerator, device: str, dtype: torch.dtype) -> LoadedGenerator:
    """Return a copy of ``generator`` on ``device``, its convolutions in ``dtype``."""
    network = copy.deepcopy(generator.network)
    for module in network.modules():
        # BatchNorm keeps its parameters and statistics in float32.
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)
        for name, child in module.named_children():
            if device == "cpu" and isinstance(child, InstanceNorm):
                setattr(module, name, _FrameNorm(child.eps))
    network = network.to(device).to(memory_format=torch.channels_last)
    return replace(generator, network=network)


def _widest_tensor(generator: LoadedGenerator) -> float:
    """Return how many elements the widest tensor of a network has for each pixel of a frame."""
    height, width = generator.config.sizes.smallest_fit((256, 256))
    counts = [0]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        counts.extend(tensor.numel() for tensor in (*inputs, out))

    network = copy.deepcopy(generator.network).to("meta")  # computes shapes only
    for module in network.modules():
        module.register_forward_hook(note)
    dtype = next((weight.dtype for weight in network.parameters()), torch.float32)
    network(torch.empty(1, generator.config.input_nc, height, width, dtype=dtype, device="meta"))
    return max(counts) / (height * width)


def _sharing_weights(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` that shares its weights, with hooks of its own."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


class _Float32Setting:
    """How CUDA multiplies float32, which is a setting of the whole process in torch.

    torch's default is TF32 in convolutions (torch 2.15). Contexts that need the same setting may
    compute at the same time; a context that needs the other one waits for them. After the last of
    them the setting from before the first is restored.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._how = ""
        self._before: list[str] = []

    @contextlib.contextmanager
    def set_to(self, how: str) -> Iterator[None]:
        """Let CUDA multiply as ``ieee`` or as ``tf32`` within the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._users or self._how == how)
            if not self._users:
                self._how = how
                self._before = [switch.fp32_precision for switch in self._switches()]
                for switch in self._switches():
                    switch.fp32_precision = how
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                if not self._users:
                    for switch, before in zip(self._switches(), self._before, strict=True):
                        switch.fp32_precision = before
                    self._changed.notify_all()

    @staticmethod
    def _switches() -> tuple[Any, ...]:
        backends: Any = torch.backends  # torch's type stubs lack these attributes
        # Not the older `allow_tf32`: torch raises on reading it while cuDNN's two settings differ.
        return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul


_FLOAT32 = _Float32Setting()


@contextlib.contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads within the block."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
