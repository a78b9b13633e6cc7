"""Run a checkpoint as it is, in torch: on the CPU in fp32 or bf16, on CUDA in tf32 or fp16, too.

The contract's arithmetic (contract.py) is here a second time, in torch, around the network. Nothing
is exported, so this is the slower way, for a first look, and where the exporter is not installed.
Tried, the horse→zebra generator at 256² on one core, CPU ms per frame: 117, in bf16 89; exported,
onnxruntime 78, OpenVINO 65, in bf16 21. CUDA is experimental: it was never run on a GPU.

Not compiled (`torch.compile`): on a CPU that takes a C++ compiler and a minute or two, and gains
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
    out_of_memory,
    parity_of,
    says_out_of_memory,
    verify,
)

# oneDNN keeps a kernel for every shape seen, 1024 of them unless told otherwise before its first
# convolution: over a folder of many sizes that takes memory for nothing.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

_TYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


class _CutOffError(Exception):
    """`cancel` was called while the network ran."""


class _FrameNorm(nn.Module):
    """InstanceNorm of one frame that lies channels last; statistics in float32.

    torch's own copies such a frame twice to get at its channels. Tried, ResNet-9 at 256² on one
    core, CPU ms per frame: 1071 with it and 892 with channels first, against 792; in bf16 567 and
    424, against 206. `torch.batch_norm` over the whole frame is as fast, but adds its pixels one
    after the other: at 3840×2160 it was off by 0.4 of a deviation, and this by 10⁻⁶.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel: ``(1, C, H, W)``."""
        wide = x.float()
        _, channels, height, width = x.shape
        # Down every column first, then across them.
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
                module.register_forward_pre_hook(self._go_on)

    def infer(self, frames: Pixels) -> Pixels:
        """Translate ``frames``; see `Backend.infer`.

        On a CPU one after the other: a batch gains nothing there, and pixels do not depend on it.
        """
        on_gpu = self.device != "cpu"
        return in_batches(
            self._run, frames, batch_within_index(frames, self._widest, None) if on_gpu else 1
        )

    def fork(self) -> TorchBackend:
        """Return another context over the same weights."""
        return TorchBackend(self.card, self._opened(), self.device, self.precision, self._threads)

    def cancel(self) -> None:
        """Cut off a running `infer`: it stops before the network's next layer."""
        self._cancelled.set()

    def close(self) -> None:
        """Release the context; twice is fine."""
        self._generator = None

    def with_values(self, frames: Pixels) -> tuple[Pixels, Pixels]:
        """Translate ``frames`` (on a CPU: one); return also the floats before they were clamped."""
        out, values = self._on_host(frames, lambda out, values: (out, values))
        return out, values

    def _on_host(
        self, frames: Pixels, wanted: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> tuple[Pixels, ...]:
        """Return what is ``wanted`` of the pixels and the floats before them.

        Nothing else leaves the device: the floats are four times the pixels' bytes.
        """
        generator = self._opened()
        # Torch warns of an array that may not be written, and takes none that runs backwards.
        own = np.require(frames, requirements=["C", "W"])
        top = 255.0 if frames.dtype == np.uint8 else 1.0
        half = 0.5 if frames.dtype == np.uint8 else 0.0
        try:
            with torch.inference_mode(), self._arithmetic(), _cpu_threads(self._threads):
                self._go_on()
                pixels = torch.from_numpy(own).to(self.device)
                x = pixels.float() * (2.0 / top) - 1.0
                if generator.config.input_nc == 1:
                    x = x @ x.new_tensor(BT601).unsqueeze(1)
                # The pixels' own order in memory: channels last.
                y = self._network(x.permute(0, 3, 1, 2).to(_TYPES[self.precision]))
                y = y.float().permute(0, 2, 3, 1)
                values = (y * (top / 2.0) + (top / 2.0 + half)).expand(*y.shape[:3], 3)
                rounded = values.floor() if half else values
                out = rounded.clamp(0.0, top).to(pixels.dtype).contiguous()
                # Here, too, CUDA reports what went wrong before.
                return tuple(tensor.cpu().numpy() for tensor in wanted(out, values))
        except _CutOffError as error:
            raise BackendError("torch: cut off") from error
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
        return _MULTIPLYING.as_said("tf32" if self.precision == "tf32" else "ieee")

    def _go_on(self, *_: object) -> None:
        if self._cancelled.is_set():
            raise _CutOffError

    def _opened(self) -> LoadedGenerator:
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

    def opened(precision: str) -> TorchBackend:
        assert model.checkpoint is not None
        try:
            placed = _placed(model.checkpoint, device, _TYPES[precision])
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and not says_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"torch: no memory on {device} for the weights of {printable(model.card.path)}; "
                "use another device"
            ) from error
        return TorchBackend(model.card, placed, device, precision, share)

    backend = opened(precision)

    def run(frames: Pixels) -> tuple[Pixels, Pixels]:
        found = [backend.with_values(frame) for frame in frames[:, np.newaxis]]
        return np.concatenate([out for out, _ in found]), np.concatenate([v for _, v in found])

    verify(model.card, run)
    if precision != "fp32":
        remedy = "pass --precision fp32" if precision == "tf32" else "leave --precision out"
        found = parity_of(backend, opened("fp32"), remedy=remedy)
        name = printable(Path(model.card.path.name))
        backend.notes = (Note(None, f"{name} in {precision} against fp32 is {found}"),)
    return backend


def sees_cuda() -> bool:
    """Tell whether this torch can use an NVIDIA GPU."""
    return torch.cuda.is_available()


def _check(device: str, precision: str) -> None:
    """Refuse what this machine cannot do. Raises BackendUnavailableError."""
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
        # Older torch cannot tell.
        has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        if not any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
            raise BackendUnavailableError(
                "torch was asked for bf16 and this CPU has none; leave --precision out"
            )


def _placed(generator: LoadedGenerator, device: str, dtype: torch.dtype) -> LoadedGenerator:
    """Return ``generator`` with weights of its own on ``device``, its convolutions in ``dtype``."""
    network = copy.deepcopy(generator.network)
    for module in network.modules():
        # A BatchNorm keeps its numbers in float32.
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(dtype)
        for name, child in module.named_children():
            if device == "cpu" and isinstance(child, InstanceNorm):
                setattr(module, name, _FrameNorm(child.eps))
    placed = network.to(device).to(memory_format=torch.channels_last)
    return replace(generator, network=placed)


def _widest_tensor(generator: LoadedGenerator) -> float:
    """Return how many elements the widest tensor of a network has for each pixel of a frame."""
    height, width = generator.config.sizes.smallest_fit((256, 256))
    counts = [0]

    def note(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        counts.extend(tensor.numel() for tensor in (*inputs, out))

    network = copy.deepcopy(generator.network).to("meta")  # shapes, and no arithmetic
    for module in network.modules():
        module.register_forward_hook(note)
    dtype = next((weight.dtype for weight in network.parameters()), torch.float32)
    network(torch.empty(1, generator.config.input_nc, height, width, dtype=dtype, device="meta"))
    return max(counts) / (height * width)


def _sharing_weights(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` that has its weights, not copies of them."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


class _Multiplying:
    """How CUDA multiplies float32, which torch has as a setting of the whole process.

    Unset it is TF32 in convolutions (torch 2.15). Contexts that agree compute side by side, others
    after them; behind the last one the setting is the caller's again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._how = ""
        self._before: list[str] = []

    @contextlib.contextmanager
    def as_said(self, how: str) -> Iterator[None]:
        """Let CUDA multiply as ``ieee`` or as ``tf32`` for as long."""
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
        backends: Any = torch.backends  # its types do not know them
        # torch's older switch cannot be read while cuDNN's two differ.
        return backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul


_MULTIPLYING = _Multiplying()


@contextlib.contextmanager
def _cpu_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads in this one, and as before afterwards."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
